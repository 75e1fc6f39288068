//! Envoy's health discovery service: members of a WorkloadGroup with a probe are asked how they are by whoever is beside them, an Envoy
//! or our library, which reports it here.
//!
//! Who reports is known as on a stream of xDS: by the certificate, which the node of the first message may not contradict. It is told what
//! to ask once its workload is registered, and what it says is of that workload alone.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::HealthStatus;
use envoy_types::pb::envoy::service::health::v3::health_check_request_or_endpoint_health_response::RequestType;
use envoy_types::pb::envoy::service::health::v3::health_discovery_service_server::{
    HealthDiscoveryService, HealthDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::health::v3::{
    EndpointHealthResponse, HealthCheckRequestOrEndpointHealthResponse, HealthCheckSpecifier,
};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::catalog::Client;
use crate::serve::clients::clock::now;
use crate::serve::clients::state::ServerState;
use crate::serve::io::guest::Guest;

/// How often it is looked whether there is something else to ask.
const LOOK: Duration = Duration::from_secs(1);

/// How long a client may take to hear why its stream ends.
const LAST_WORD: Duration = Duration::from_secs(5);

/// For how long a report counts, at least and at most.
const SHORTEST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// The service.
pub(crate) struct HealthChecks(Arc<ServerState>);

impl HealthChecks {
    pub(crate) fn service(state: &Arc<ServerState>) -> HealthDiscoveryServiceServer<HealthChecks> {
        HealthDiscoveryServiceServer::new(HealthChecks(state.clone()))
    }
}

type Message = HealthCheckRequestOrEndpointHealthResponse;
type Sender = mpsc::Sender<Result<HealthCheckSpecifier, Status>>;

#[async_trait]
impl HealthDiscoveryService for HealthChecks {
    type StreamHealthCheckStream = ReceiverStream<Result<HealthCheckSpecifier, Status>>;

    async fn stream_health_check(
        &self,
        requests: Request<Streaming<Message>>,
    ) -> Result<Response<Self::StreamHealthCheckStream>, Status> {
        let guest = Guest::enter(&self.0, &requests)?;
        let (sender, receiver) = mpsc::channel(1);
        let state = self.0.clone();
        tokio::spawn(async move {
            if let Err(status) = converse(&state, &guest, requests.into_inner(), &sender).await {
                // The client may be gone, or take nothing any more: then there is nobody to tell.
                let _ = tokio::time::timeout(LAST_WORD, sender.send(Err(status))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn fetch_health_check(&self, _: Request<Message>) -> Result<Response<HealthCheckSpecifier>, Status> {
        Err(Status::unimplemented("what to ask is told on streams"))
    }
}

/// The life of one stream: what to ask, as often as it changes, and how the workload is.
async fn converse(
    state: &ServerState,
    guest: &Guest,
    mut messages: Streaming<Message>,
    sender: &Sender,
) -> Result<(), Status> {
    let Some(first) = guest.first(&mut messages).await? else { return Ok(()) };
    let Some(RequestType::HealthCheckRequest(first)) = first.request_type else {
        return Err(Status::invalid_argument("the first message does not say who the client is"));
    };
    let (client, _) = guest.client(first.node)?;
    let mut told: Option<HealthCheckSpecifier> = None;
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut over = std::pin::pin!(guest.over());
    loop {
        let message = tokio::select! {
            biased;
            status = &mut over => return Err(status),
            () = sender.closed() => return Ok(()),
            message = messages.message() => message?,
            _ = look.tick() => {
                let wanted = wanted(state, &client);
                if wanted != told {
                    // Nothing to ask is said as well.
                    let next = wanted.clone().unwrap_or_else(nothing);
                    // What a slow client has not taken is told it later, as it then is.
                    if sender.try_send(Ok(next)).is_ok() {
                        told = wanted;
                    }
                }
                continue;
            }
        };
        match message.map(|message| message.request_type) {
            None => return Ok(()),
            Some(Some(RequestType::EndpointHealthResponse(report))) => {
                if let Some(told) = &told
                    && let Some(is_well) = is_well(&report, told)
                {
                    state.presence.report(&client, is_well, good_for(told), now());
                }
            }
            Some(_) => {}
        }
    }
}

/// What a client is to ask now.
fn wanted(state: &ServerState, client: &Client) -> Option<HealthCheckSpecifier> {
    state.presence.knows(client).then(|| state.feed.latest().health_checks(client)).flatten()
}

fn nothing() -> HealthCheckSpecifier {
    use envoy_types::pb::google::protobuf::Duration;
    HealthCheckSpecifier { cluster_health_checks: Vec::new(), interval: Some(Duration { seconds: 1, nanos: 0 }) }
}

/// How long a report counts: three times what a check takes. It is told again much more often.
fn good_for(told: &HealthCheckSpecifier) -> Duration {
    use envoy_types::pb::google::protobuf::Duration as Time;
    const THRICE: u64 = 3;
    let seconds = |time: Option<&Time>| time.and_then(|time| u64::try_from(time.seconds).ok()).unwrap_or_default();
    let checks = told.cluster_health_checks.iter().flat_map(|cluster| &cluster.health_checks);
    let taken = checks.map(|check| seconds(check.interval.as_ref()).saturating_add(seconds(check.timeout.as_ref())));
    Duration::from_secs(taken.max().unwrap_or_default().saturating_mul(THRICE)).clamp(SHORTEST, LONGEST)
}

/// Whether a report says that all of what was asked is well; `None` where it says nothing of it.
fn is_well(report: &EndpointHealthResponse, told: &HealthCheckSpecifier) -> Option<bool> {
    let is_asked = |name: &str| told.cluster_health_checks.iter().any(|asked| asked.cluster_name == name);
    let clusters = report.cluster_endpoints_health.iter().filter(|cluster| is_asked(&cluster.cluster_name));
    let localities = clusters.flat_map(|cluster| &cluster.locality_endpoints_health);
    let mut endpoints = localities.flat_map(|locality| &locality.endpoints_health).peekable();
    endpoints.peek()?;
    Some(endpoints.all(|endpoint| endpoint.health_status == i32::from(HealthStatus::Healthy)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::probe::{Probe, Question};
    use crate::render::probe::health_checks;

    #[test]
    fn a_report_counts_for_three_checks_within_bounds() {
        for (period, timeout, expected) in [(1, 1, 30), (10, 1, 33), (60, 5, 195), (u64::from(u32::MAX), 1, 86_400)] {
            let probe = Probe {
                question: Question::Tcp,
                at: ([127, 0, 0, 1], 80).into(),
                timeout: Duration::from_secs(timeout),
                period: Duration::from_secs(period),
                successes: 1,
                failures: 1,
            };
            assert_eq!(good_for(&health_checks(&probe)), Duration::from_secs(expected), "{period}");
        }
        assert_eq!(good_for(&nothing()), SHORTEST);
    }
}
