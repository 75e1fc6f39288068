//! What a route makes of a request: headers, path, authority.

use http::header::HOST;
use http::request::Parts;
use http::uri::PathAndQuery;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::Forward;
use mesh_core::view::RouteRef;

use crate::headers::apply_to_request;
use crate::reply::change_path;
use crate::uri::edit;

/// Makes a request what its route wants the cluster to see.
#[inline]
pub(super) fn rewrite(head: &mut Parts, forward: &Forward, route: &RouteRef<'_>) -> Result<(), MeshError> {
    let changes = route.destination.request_changes();
    if !changes.is_empty() {
        apply_to_request(changes, head);
    }
    if let Some(change) = &forward.path {
        let mut path = change_path(change, &route.route.matches.path, head.uri.path());
        if let Some(query) = head.uri.query().filter(|_| !path.contains('?')) {
            path.push('?');
            path.push_str(query);
        }
        let path = PathAndQuery::try_from(path).map_err(|error| {
            MeshError::new(ErrorKind::BadRequest, "the rewritten path is malformed").caused_by(error)
        })?;
        edit(&mut head.uri, |uri| uri.path_and_query = Some(path));
    }
    if let Some(host) = &forward.authority {
        head.headers.insert(HOST, host.clone());
        edit(&mut head.uri, |uri| uri.authority = None);
    }
    Ok(())
}
