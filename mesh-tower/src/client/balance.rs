//! The fourth station: an endpoint for one try, held until the response's body has ended.

use std::sync::Arc;

use http::Response;
use mesh_core::call::Call;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::ClusterTls;
use mesh_core::request::RequestHead;
use mesh_core::state::InFlight;
use mesh_core::view::{ClusterView, TargetView};

use super::Outgoing;
use super::attempt::Failure;
use super::connect::{self, Lease};
use crate::body::ResponseBody;

/// What a response in progress holds: its place among the requests in flight, and its connection.
#[derive(Default)]
pub(crate) struct Guard {
    in_flight: Option<InFlight>,
    lease: Option<Lease>,
}

impl Guard {
    /// The response has ended well: the connection can be used again.
    pub(crate) fn finished(&mut self) {
        if let (Some(in_flight), Some(lease)) = (self.in_flight.take(), self.lease.take()) {
            connect::give_back(in_flight.endpoint(), lease);
        }
    }

    /// The response has not ended well: the connection is given up.
    pub(crate) fn failed(&mut self) {
        self.lease = None;
        self.in_flight = None;
    }
}

/// One try: pick, connect, send.
pub(super) async fn try_once(
    view: &TargetView,
    cluster: &Arc<ClusterView>,
    call: &mut Call,
    request: &mut Outgoing,
) -> Result<Response<ResponseBody>, Failure> {
    let authority = || RequestHead::of(&request.parts).map_or("", |head| head.authority);
    let pick = match cluster.pick(call, authority) {
        Ok(pick) => pick,
        Err(error) => return Err(Failure { error, unsent: false }),
    };
    let endpoint = pick.in_flight.endpoint();
    if call.is_observed {
        call.endpoint = Some(Arc::clone(endpoint));
    }
    if let ClusterTls::Unusable(reason) = &pick.cluster.tls {
        let detail = format!("cluster {}: {reason}", pick.cluster.name);
        return Err(Failure { error: MeshError::new(ErrorKind::Security, detail), unsent: false });
    }
    match connect::exchange(pick.cluster, endpoint, view.host(), call.is_grpc, request).await {
        Ok((response, lease)) => {
            let guard = Guard { in_flight: Some(pick.in_flight), lease };
            let deadline = call.deadline;
            Ok(response.map(|incoming| ResponseBody::incoming(incoming, guard, deadline)))
        }
        Err(failure) => {
            call.tried.push(Arc::clone(endpoint));
            let place = format!("cluster {}: endpoint {}", pick.cluster.name, endpoint.id());
            Err(Failure { error: failure.error.within(place), ..failure })
        }
    }
}
