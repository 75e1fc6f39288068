//! What a route makes of a request: headers, path, authority.

use http::header::HOST;
use http::request::Parts;
use http::uri::PathAndQuery;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::Forward;
use mesh_core::view::RouteRef;

use crate::headers::apply_to_request;
use crate::reply::change_path;
use crate::uri::{SentHost, edit};

/// Makes a request what its route wants the cluster to see.
#[inline]
pub(super) fn rewrite(head: &mut Parts, forward: &Forward, route: &RouteRef<'_>) -> Result<(), MeshError> {
    let changes = route.destination.request_changes();
    if !changes.is_empty() {
        apply_to_request(changes, head);
    }
    if let Some(change) = &forward.path {
        let mut path = change_path(change, &route.route.matches.path, head.uri.path())?;
        // What stands behind it would never be sent.
        if path.contains('#') {
            let message = "the path that the route makes of the request's has a # in it";
            return Err(MeshError::new(ErrorKind::BadRequest, message));
        }
        // A new path may bring parameters of its own; the request's come behind them.
        if let Some(query) = head.uri.query() {
            path.push(if path.contains('?') { '&' } else { '?' });
            path.push_str(query);
        }
        let path = PathAndQuery::try_from(path).map_err(|error| {
            MeshError::new(ErrorKind::BadRequest, "the rewritten path is malformed").caused_by(error)
        })?;
        edit(&mut head.uri, |uri| uri.path_and_query = Some(path));
    }
    if let Some(SentHost(host)) = head.extensions.remove::<SentHost>() {
        head.headers.insert(HOST, host);
        edit(&mut head.uri, |uri| uri.authority = None);
    } else if let Some(host) = &forward.authority {
        head.headers.insert(HOST, host.clone());
        edit(&mut head.uri, |uri| uri.authority = None);
    }
    Ok(())
}
