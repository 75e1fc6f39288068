//! The load reporting service: clients say how many requests they sent where, and how those ended.
//!
//! Who reports is known as on a stream of xDS: by the certificate, which the node of the first report may not contradict. What is
//! told goes into the sums ([`Load`](crate::serve::clients::load::Load)) and into the picture of now
//! ([`Traffic`](crate::serve::clients::traffic::Traffic)).

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::load_stats::v3::load_reporting_service_server::{
    LoadReportingService, LoadReportingServiceServer,
};
use envoy_types::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use envoy_types::pb::google::protobuf::Duration;
use mesh_core::xds::load_stats::SEND_ALL;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::catalog::Kind;
use crate::serve::clients::clock::now;
use crate::serve::clients::load::{Allowance, Lost, MOST_NAME};
use crate::serve::clients::node::About;
use crate::serve::clients::state::ServerState;
use crate::serve::clients::traffic::Reporter;
use crate::serve::io::guest::Guest;

/// How often clients report, in seconds, and how often where there are many of them.
const INTERVAL: i64 = 2;
const INTERVAL_OF_MANY: i64 = 5;
const MANY: usize = 500;
/// Clusters of one report that are looked at.
const MOST_CLUSTERS: usize = 5_000;

/// The service.
pub(crate) struct LoadReports(Arc<ServerState>);

impl LoadReports {
    pub(crate) fn service(state: &Arc<ServerState>) -> LoadReportingServiceServer<LoadReports> {
        LoadReportingServiceServer::new(LoadReports(state.clone()))
    }
}

#[async_trait]
impl LoadReportingService for LoadReports {
    type StreamLoadStatsStream = ReceiverStream<Result<LoadStatsResponse, Status>>;

    async fn stream_load_stats(
        &self,
        requests: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let guest = Guest::enter(&self.0, &requests)?;
        let (sender, receiver) = mpsc::channel(1);
        let state = self.0.clone();
        tokio::spawn(async move {
            if let Err(status) = gather(&state, &guest, requests.into_inner(), &sender).await {
                // The client may be gone: then there is nobody to tell.
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// The life of one stream: one answer to the first request, then reports until somebody leaves.
async fn gather(
    state: &ServerState,
    guest: &Guest,
    mut requests: Streaming<LoadStatsRequest>,
    sender: &mpsc::Sender<Result<LoadStatsResponse, Status>>,
) -> Result<(), Status> {
    let Some(mut request) = guest.first(&mut requests).await? else { return Ok(()) };
    let (client, node) = guest.client(request.node.take())?;
    let reporter = Reporter::of(&client, &About::read(&node));
    let mut allowance = Allowance::new(now());
    // The client may have left; the loop finds out.
    let _ = sender.send(Ok(answer(state, &node))).await;
    let mut over = std::pin::pin!(guest.over());
    loop {
        let catalog = state.feed.latest();
        for stats in request.cluster_stats.iter().take(MOST_CLUSTERS) {
            let (name, now) = (&stats.cluster_name, now());
            // A client can tell of what it has, and of nothing that it makes up.
            let longest = name.len().max(stats.cluster_service_name.len());
            if longest > MOST_NAME || catalog.resource(&client, Kind::Cluster, name).is_none() {
                state.load.lose(Lost::Unknown);
            } else if !allowance.take(stats, now) {
                state.load.lose(Lost::TooMany);
            } else {
                state.load.add(stats, now);
                state.traffic.add(&reporter, stats, || catalog.host_of(&client, &stats.cluster_service_name), now);
            }
        }
        let next = tokio::select! {
            biased;
            status = &mut over => return Err(status),
            () = sender.closed() => return Ok(()),
            next = requests.message() => next,
        };
        let Ok(Some(next)) = next else { return Ok(()) };
        request = next;
    }
}

fn answer(state: &ServerState, node: &Node) -> LoadStatsResponse {
    let all = node.client_features.iter().any(|feature| feature == SEND_ALL);
    let seconds = if state.fleet.count() > MANY { INTERVAL_OF_MANY } else { INTERVAL };
    LoadStatsResponse {
        clusters: if all { Vec::new() } else { clusters_of(state, &node.id) },
        send_all_clusters: all,
        load_reporting_interval: Some(Duration { seconds, nanos: 0 }),
        report_endpoint_granularity: false,
    }
}

/// Every cluster that a node asks for, on whichever stream.
fn clusters_of(state: &ServerState, node_id: &str) -> Vec<String> {
    let streams = state.fleet.all();
    let mut names: Vec<String> = streams
        .iter()
        .map(|stream| stream.session())
        .filter(|session| &*session.client().node_id == node_id)
        .flat_map(|mut session| {
            let (ledger, _) = session.ledger(Kind::Cluster);
            ledger.explicit().map(|name| name.to_string()).collect::<Vec<_>>()
        })
        .collect();
    names.sort();
    names.dedup();
    names
}
