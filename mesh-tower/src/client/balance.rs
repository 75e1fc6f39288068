//! The fourth station: an endpoint for one try, and a connection to it.

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use mesh_core::call::Call;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::ClusterTls;
use mesh_core::view::{Pick, TargetView};

use super::connect::{self, Blame, Exchange, Failure, Guard, Lease, Protocol};
use super::route;
use crate::body::Body;

/// How many connections may turn out to be closed under one try, before a new one is dialled for it.
const MAX_STALE: u32 = 3;

/// One try at an endpoint: connect, send.
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
    let protocol = Protocol::of(&request, pick.cluster, call);
    protocol.form(&mut request, view.host()).map_err(Failure::last)?;
    route::tell_deadline(call, request.headers_mut());
    let (mut stale, mut reuse) = (0, !call.was_cut);
    let failure = loop {
        let lease = match connect::lease(pick.cluster, endpoint, protocol, reuse).await {
            Ok(lease) => lease,
            Err(error) => break Failure::unsent(error, request),
        };
        let goes_on = lease.may_go_on(pick.cluster);
        let mut exchange = Exchange::new(lease, goes_on);
        exchange.begin(request, Lease::send);
        let failure = match exchange.await {
            Ok((response, lease)) => return Ok((response, Guard::new(pick.in_flight, lease))),
            Err(failure) => failure,
        };
        match (failure.blame, failure.request) {
            (Blame::Stale, Some(whole)) if stale < MAX_STALE => {
                stale += 1;
                reuse = reuse && stale < MAX_STALE;
                request = *whole;
            }
            (Blame::Cut, Some(whole)) if reuse => {
                call.was_cut = true;
                reuse = false;
                request = *whole;
            }
            (_, request) => break Failure { request, ..failure },
        }
    };
    call.tried.push(Arc::clone(endpoint));
    Err(failure.within(pick.cluster, endpoint))
}
