//! The load reporting service: clients say how many requests they sent where.
//!
//! Reports are differences since the one before, so sums need no memory of who reported: a node may report
//! on any number of streams, one after the other or at the same time.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterStats;
use envoy_types::pb::envoy::service::load_stats::v3::load_reporting_service_server::{
    LoadReportingService, LoadReportingServiceServer,
};
use envoy_types::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use envoy_types::pb::google::protobuf::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::catalog::Kind;
use crate::serve::clients::metrics::family;
use crate::serve::clients::state::ServerState;

/// How often clients report.
const INTERVAL: Duration = Duration { seconds: 10, nanos: 0 };
/// How many clusters are counted: their names come from clients.
const CLUSTERS: usize = 4096;
/// A client with this feature takes "all clusters" for an answer.
const SEND_ALL: &str = "envoy.lrs.supports_send_all_clusters";

/// What all clients reported together, by cluster.
#[derive(Debug, Default)]
pub(crate) struct Load(Mutex<BTreeMap<String, Totals>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    issued: u64,
    succeeded: u64,
    failed: u64,
    dropped: u64,
}

impl Load {
    fn add(&self, report: &ClusterStats) {
        let mut clusters = self.clusters();
        if clusters.len() >= CLUSTERS && !clusters.contains_key(&report.cluster_name) {
            return;
        }
        let totals = clusters.entry(report.cluster_name.clone()).or_default();
        let add = |total: &mut u64, more: u64| *total = total.saturating_add(more);
        for locality in &report.upstream_locality_stats {
            add(&mut totals.issued, locality.total_issued_requests);
            add(&mut totals.succeeded, locality.total_successful_requests);
            add(&mut totals.failed, locality.total_error_requests);
        }
        add(&mut totals.dropped, report.total_dropped_requests);
    }

    /// Appends the text form, if there is anything to say.
    pub(crate) fn write(&self, out: &mut String) {
        let clusters = self.clusters();
        if clusters.is_empty() {
            return;
        }
        let name = "mesh_reported_requests_total";
        family(out, name, "counter", "Requests that clients reported, by cluster and what became of them.");
        for (cluster, totals) in clusters.iter() {
            let cluster = cluster.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let Totals { issued, succeeded, failed, dropped } = *totals;
            let outcomes = [("issued", issued), ("succeeded", succeeded), ("failed", failed), ("dropped", dropped)];
            for (outcome, count) in outcomes {
                let _ = writeln!(out, "{name}{{cluster=\"{cluster}\",outcome=\"{outcome}\"}} {count}");
            }
        }
    }

    fn clusters(&self) -> MutexGuard<'_, BTreeMap<String, Totals>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The service.
pub(crate) struct Reporting(Arc<ServerState>);

impl Reporting {
    pub(crate) fn service(state: Arc<ServerState>) -> LoadReportingServiceServer<Reporting> {
        LoadReportingServiceServer::new(Reporting(state))
    }
}

#[async_trait]
impl LoadReportingService for Reporting {
    type StreamLoadStatsStream = ReceiverStream<Result<LoadStatsResponse, Status>>;

    async fn stream_load_stats(
        &self,
        requests: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(gather(self.0.clone(), requests.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// The life of one stream: one answer to the first request, then reports until somebody leaves.
async fn gather(
    state: Arc<ServerState>,
    mut requests: Streaming<LoadStatsRequest>,
    sender: mpsc::Sender<Result<LoadStatsResponse, Status>>,
) {
    let mut stop = state.stop.clone();
    let mut answered = false;
    loop {
        let request = tokio::select! {
            request = requests.message() => request,
            () = sender.closed() => return,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let Ok(Some(request)) = request else { return };
        if !std::mem::replace(&mut answered, true) {
            // The client may have left; the next turn of the loop finds out.
            let _ = sender.send(Ok(answer(&state, request.node.as_ref()))).await;
        }
        request.cluster_stats.iter().for_each(|report| state.load.add(report));
    }
}

fn answer(state: &ServerState, node: Option<&Node>) -> LoadStatsResponse {
    let all = node.is_some_and(|node| node.client_features.iter().any(|feature| feature == SEND_ALL));
    let clusters = match node {
        Some(node) if !all => clusters_of(state, &node.id),
        _ => Vec::new(),
    };
    LoadStatsResponse {
        clusters,
        send_all_clusters: all,
        load_reporting_interval: Some(INTERVAL),
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

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::endpoint::v3::UpstreamLocalityStats;

    use super::*;

    fn report(cluster: &str, issued: u64, dropped: u64) -> ClusterStats {
        ClusterStats {
            cluster_name: cluster.to_owned(),
            upstream_locality_stats: vec![UpstreamLocalityStats {
                total_issued_requests: issued,
                total_successful_requests: issued,
                ..UpstreamLocalityStats::default()
            }],
            total_dropped_requests: dropped,
            ..ClusterStats::default()
        }
    }

    #[test]
    fn reports_are_summed_by_cluster_and_their_number_is_bounded() {
        let load = Load::default();
        let mut text = String::new();
        load.write(&mut text);
        assert!(text.is_empty());
        load.add(&report("a\"b", 3, 1));
        load.add(&report("a\"b", 4, 0));
        (0..2 * CLUSTERS).for_each(|n| load.add(&report(&n.to_string(), 1, 0)));
        assert_eq!(load.clusters().len(), CLUSTERS);
        load.add(&report("a\"b", u64::MAX, 0));
        load.write(&mut text);
        assert!(text.contains("{cluster=\"a\\\"b\",outcome=\"dropped\"} 1"), "{text}");
        assert!(text.contains(&format!("{{cluster=\"a\\\"b\",outcome=\"issued\"}} {}", u64::MAX)));
    }
}
