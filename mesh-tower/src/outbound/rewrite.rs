//! What a route makes of a request, and whoever sent it knows better.

use http::header::HOST;
use http::request::Parts;
use mesh_core::error::MeshError;
use mesh_core::model::Forward;
use mesh_core::rewrite::{self, edit};
use mesh_core::view::RouteRef;

use crate::uri::SentHost;

/// Makes a request what its route wants the cluster to see.
#[inline]
pub(super) fn rewrite(head: &mut Parts, forward: &Forward, route: &RouteRef<'_>) -> Result<(), MeshError> {
    let to = route.destination;
    rewrite::rewrite(head, to.request_changes(), to.authority(), forward, &route.route.matches)?;
    if let Some(SentHost(host)) = head.extensions.remove::<SentHost>() {
        head.headers.insert(HOST, host);
        edit(&mut head.uri, |uri| uri.authority = None);
    }
    Ok(())
}
