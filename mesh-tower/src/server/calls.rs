//! Writes down who called what, where the control plane wants to know ([`mesh_core::calls`]): what came of every request on
//! which policies were asked, and neither its body nor its query nor its headers.

use std::sync::Arc;
use std::time::SystemTime;

use http::{Method, Request};
use mesh_core::authz::Verdict;
use mesh_core::calls::{Call, seconds};
use mesh_core::error::MeshError;
use mesh_core::identity::SpiffeId;
use mesh_core::model::RouteAction;
use mesh_core::request::{RequestHead, is_grpc};
use mesh_core::view::Found;

use crate::connection::ConnectionInfo;
use crate::mesh::Mesh;

/// A request that policies decided on.
#[inline]
pub(super) fn record(
    mesh: &Mesh,
    head: &RequestHead<'_>,
    verdict: &Verdict<'_>,
    found: &Result<Found<'_>, MeshError>,
    connection: (u16, Option<&ConnectionInfo>),
    random: &mut fastrand::Rng,
) {
    let recorder = mesh.store().calls();
    if !recorder.is_on() {
        return;
    }
    let is_allowed = match found {
        // What answers here is why the server must not serve.
        Ok((_, route, _)) => matches!(route.action, RouteAction::NonForwarding),
        Err(_) if verdict.is_allowed => return,
        Err(_) => false,
    };
    recorder.record(&call_of(head, connection, is_allowed, verdict.policy), random, || seconds(SystemTime::now()));
}

/// A request that an authorizer refused.
pub(super) fn record_refused<B>(
    mesh: &Mesh,
    request: &Request<B>,
    port: u16,
    connection: impl FnOnce() -> Option<Arc<ConnectionInfo>>,
) {
    let recorder = mesh.store().calls();
    if !recorder.is_on() {
        return;
    }
    if let Ok(head) = RequestHead::received(request) {
        let peer = connection();
        let call = call_of(&head, (port, peer.as_deref()), false, Some("authorizer"));
        recorder.record(&call, &mut fastrand::Rng::new(), || seconds(SystemTime::now()));
    }
}

#[inline]
fn call_of<'r>(
    head: &RequestHead<'r>,
    (port, peer): (u16, Option<&'r ConnectionInfo>),
    is_allowed: bool,
    rule: Option<&'r str>,
) -> Call<'r> {
    Call {
        principal: peer.and_then(ConnectionInfo::peer_identity).map(SpiffeId::as_str),
        port,
        // Only with POST is it a call of gRPC, which is called by its name as a whole.
        is_grpc: *head.method == Method::POST && is_grpc(head.headers),
        method: head.method.as_str(),
        path: head.path(),
        is_allowed,
        rule,
    }
}
