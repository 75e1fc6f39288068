//! The fourth station: an endpoint for one try, and a connection to it.

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use mesh_core::call::Call;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::ClusterTls;
use mesh_core::request::RequestHead;
use mesh_core::view::{ClusterView, Pick, TargetView};

use super::connect::{self, Exchange, Failure, Guard, Lease, Protocol};
use super::route;
use crate::body::Body;

/// How many connections may turn out to be closed under one try, before a new one is dialled for it.
const MAX_STALE: u32 = 3;

/// An endpoint for a try.
pub(super) fn pick<'v>(
    cluster: &'v ClusterView,
    call: &mut Call,
    request: &Request<Body>,
) -> Result<Pick<'v>, MeshError> {
    cluster.pick(call, || RequestHead::of_request(request).map_or("", |head| head.authority))
}

/// One try: connect, send.
pub(super) async fn try_once(
    view: &TargetView,
    pick: Pick<'_>,
    call: &mut Call,
    mut request: Request<Body>,
) -> Result<(Response<Incoming>, Guard), Failure> {
    let endpoint = pick.in_flight.endpoint();
    if call.is_observed {
        call.endpoint = Some(Arc::clone(endpoint));
    }
    if let ClusterTls::Unusable(reason) = &pick.cluster.tls {
        let detail = format!("cluster {}: {reason}", pick.cluster.name);
        return Err(Failure::last(MeshError::new(ErrorKind::Security, detail)));
    }
    let head = RequestHead::of_request(&request).map_err(Failure::last)?;
    let protocol = Protocol::of(&head, request.version(), pick.cluster, call.is_grpc);
    protocol.form(&mut request, view.host()).map_err(Failure::last)?;
    route::tell_deadline(call, request.headers_mut());
    let mut stale = 0;
    let failure = loop {
        let lease = match connect::lease(pick.cluster, endpoint, protocol, stale < MAX_STALE).await {
            Ok(lease) => lease,
            Err(error) => break Failure::unsent(error, request),
        };
        let goes_on = lease.may_go_on(pick.cluster);
        let mut exchange = Exchange::new(lease, goes_on);
        exchange.begin(request, Lease::send);
        match exchange.await {
            Ok((response, lease)) => return Ok((response, Guard::new(pick.in_flight, lease))),
            Err(Failure { request: Some(whole), stale: true, .. }) if stale < MAX_STALE => {
                request = *whole;
                stale += 1;
            }
            Err(failure) => break failure,
        }
    };
    call.tried.push(Arc::clone(endpoint));
    Err(failure.within(pick.cluster, endpoint))
}
