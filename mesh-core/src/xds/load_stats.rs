//! How many requests went where, told to the control plane over its load reporting service
//! (`envoy.service.load_stats.v3.LoadReportingService`, gRFC A27).
//!
//! It is told to the servers of the bootstrap, over the connection of the stream of xDS, and only while some cluster says that
//! its load is to be reported (`lrs_server: self`). How often is for the server to say. A report that is lost on the way is
//! not made up for, as in gRPC; a server that does not know the service is not asked again before its stream is a new one.
//!
//! gRPC's clients and Envoy tell how many requests there were. Ours say besides how long those took that have ended, and how many
//! went by TLS, as named metrics ([`LATENCY`], [`SECURED`]) that others pass over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::{Locality, Node};
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterStats, EndpointLoadMetricStats, UpstreamLocalityStats};
use envoy_types::pb::envoy::service::load_stats::v3::load_reporting_service_client::LoadReportingServiceClient;
use envoy_types::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use envoy_types::pb::google::protobuf::Duration as Seconds;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::state::{ClusterTraffic, LocalityFigures, Traffic};
use crate::telemetry::BOUNDS;
use crate::xds::backoff::{Attempt, Backoff};
use crate::xds::channels::{Open, OpenStream, opened};
use crate::xds::clock::{now, sleep_until};

/// A client with this feature takes "all clusters" for an answer.
pub const SEND_ALL: &str = "envoy.lrs.supports_send_all_clusters";
/// The metric with how long requests took: how many have ended, and their milliseconds together. With `.le_` and a bound after it,
/// how many ended within that bound and not within the one before; `.le_inf` beyond all.
pub const LATENCY: &str = "mesh.latency_ms";
/// The metric with how many of them went by TLS.
pub const SECURED: &str = "mesh.secured";

/// The shortest interval, whatever a server says, and the one where it says nothing (gRPC's minimum).
const SHORTEST: Duration = Duration::from_secs(1);
/// Clusters of one message.
const MOST_CLUSTERS: usize = 500;

/// Reports for as long as it is held, over the connections of the streams.
#[derive(Debug)]
pub(crate) struct Reporting {
    open: watch::Sender<Open>,
    leave: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Reporting {
    /// Begins to report where that is wanted. To be called inside a runtime.
    pub(crate) fn start(traffic: Arc<Traffic>, mut node: Node, seed: u64) -> Reporting {
        node.client_features.push(SEND_ALL.to_owned());
        let open = watch::Sender::new(None);
        let (leave, leaving) = oneshot::channel();
        let reporter = Reporter { traffic, node, random: fastrand::Rng::with_seed(seed), last: now() };
        let task = tokio::spawn(reporter.run(open.subscribe(), leaving));
        Reporting { open, leave: Some(leave), task }
    }

    /// For a new stream, by its number.
    pub(crate) fn stream(&self, number: u64) -> OpenStream {
        OpenStream::new(&self.open, number)
    }

    /// Tells what is left, within this time.
    pub(crate) async fn end(mut self, patience: Duration) {
        if let Some(leave) = self.leave.take() {
            // The task may have ended: there is nobody to tell.
            _ = leave.send(());
            _ = tokio::time::timeout(patience, &mut self.task).await;
        }
    }
}

impl Drop for Reporting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How one stream of reports ended.
enum End {
    /// Nothing is to be reported any more.
    Unwanted,
    /// The client leaves, and has told what was left.
    Left,
    /// The server does not know the service.
    Unknown,
    /// Otherwise: whether it had answered, and why.
    Broken(Attempt, Status),
}

struct Reporter {
    traffic: Arc<Traffic>,
    node: Node,
    random: fastrand::Rng,
    /// When the last report was made.
    last: Instant,
}

impl Reporter {
    async fn run(mut self, mut open: watch::Receiver<Open>, mut leaving: oneshot::Receiver<()>) {
        let mut wanted = self.traffic.wanted();
        let mut backoff = Backoff::default();
        loop {
            let ready = async {
                wanted.wait_for(|wanted| *wanted).await.ok()?;
                opened(&mut open).await
            };
            let (stream, channel) = tokio::select! {
                _ = &mut leaving => return,
                ready = ready => match ready {
                    Some(ready) => ready,
                    None => return,
                },
            };
            let started = now();
            let until = match self.stream(channel, &mut wanted, &mut leaving).await {
                End::Left => return,
                End::Unwanted => continue,
                End::Unknown => None,
                End::Broken(attempt, status) => {
                    tracing::debug!("load is not reported: {status}");
                    Some(backoff.next(attempt, started, now(), &mut self.random))
                }
            };
            // A new stream may be to another server, or to one that is back.
            let another =
                async { drop(open.wait_for(|open| open.as_ref().is_none_or(|(number, _)| *number != stream)).await) };
            tokio::select! {
                _ = &mut leaving => return,
                () = sleep_until(until) => {}
                () = another => {}
            }
        }
    }

    /// The life of one stream.
    async fn stream(
        &mut self,
        channel: Channel,
        wanted: &mut watch::Receiver<bool>,
        leaving: &mut oneshot::Receiver<()>,
    ) -> End {
        let (requests, pending) = mpsc::channel(1);
        let first = LoadStatsRequest { node: Some(self.node.clone()), ..LoadStatsRequest::default() };
        if requests.try_send(first).is_err() {
            // It is the first one, and there is a place for it.
            return End::Left;
        }
        let mut client = LoadReportingServiceClient::new(channel);
        let opening = client.stream_load_stats(ReceiverStream::new(pending));
        let opened = tokio::select! {
            opened = opening => opened,
            _ = &mut *leaving => return End::Left,
        };
        let mut answers = match opened {
            Ok(answers) => answers.into_inner(),
            Err(status) => return ended(Attempt::Failed, status),
        };
        let mut asked: Option<LoadStatsResponse> = None;
        let mut next = None;
        loop {
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        next = Some(now() + interval_of(&answer));
                        asked = Some(answer);
                    }
                    Ok(None) => return ended(attempt(&asked), Status::unavailable("the stream ended")),
                    Err(status) => return ended(attempt(&asked), status),
                },
                () = sleep_until(next) => {
                    let Some(asked) = &asked else { continue };
                    next = Some(now() + interval_of(asked));
                    self.send(asked, &requests);
                }
                () = async { drop(wanted.wait_for(|wanted| !wanted).await) } => return End::Unwanted,
                _ = &mut *leaving => {
                    if let Some(asked) = &asked {
                        self.send(asked, &requests);
                    }
                    drop(requests);
                    // The server ends its side when it has read the last report.
                    while let Ok(Some(_)) = answers.message().await {}
                    return End::Left;
                }
            }
        }
    }

    /// Sends what was counted since the last time, unless the server has not read that yet: then it is told with the next.
    fn send(&mut self, asked: &LoadStatsResponse, requests: &mpsc::Sender<LoadStatsRequest>) {
        let Ok(place) = requests.try_reserve() else { return };
        let now = now();
        let mut traffic = self.traffic.take();
        if !asked.send_all_clusters {
            traffic.retain(|cluster| asked.clusters.iter().any(|name| *name == cluster.name.as_str()));
        }
        let since = now.saturating_duration_since(std::mem::replace(&mut self.last, now));
        let mut cluster_stats = encode(&traffic, since);
        // What does not fit into one message is more than any mesh has: it is left out rather than refused.
        cluster_stats.truncate(MOST_CLUSTERS);
        if !cluster_stats.is_empty() {
            place.send(LoadStatsRequest { node: None, cluster_stats });
        }
    }
}

fn attempt(asked: &Option<LoadStatsResponse>) -> Attempt {
    if asked.is_some() { Attempt::Served } else { Attempt::Failed }
}

fn ended(attempt: Attempt, status: Status) -> End {
    if status.code() == Code::Unimplemented { End::Unknown } else { End::Broken(attempt, status) }
}

/// How often a server wants to be told.
fn interval_of(answer: &LoadStatsResponse) -> Duration {
    let interval = answer.load_reporting_interval.as_ref().and_then(|time| {
        Some(Duration::new(u64::try_from(time.seconds).ok()?, u32::try_from(time.nanos).ok()?.min(999_999_999)))
    });
    interval.unwrap_or_default().clamp(SHORTEST, Duration::from_secs(3600))
}

/// What was counted in this time, as it is told.
pub fn encode(traffic: &[ClusterTraffic], time: Duration) -> Vec<ClusterStats> {
    let time = Seconds {
        seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(time.subsec_nanos()).unwrap_or_default(),
    };
    let clusters = traffic.iter().map(|cluster| ClusterStats {
        cluster_name: cluster.name.to_string(),
        cluster_service_name: cluster.service_name.to_string(),
        upstream_locality_stats: cluster.localities.iter().map(locality_stats).collect(),
        total_dropped_requests: cluster.dropped,
        load_report_interval: Some(time),
        ..ClusterStats::default()
    });
    clusters.collect()
}

fn locality_stats(figures: &LocalityFigures) -> UpstreamLocalityStats {
    let metric = |name: String, count: u64, total: f64| EndpointLoadMetricStats {
        metric_name: name,
        num_requests_finished_with_metric: count,
        total_metric_value: total,
    };
    let ended: u64 = figures.latency.iter().sum();
    let mut metrics = Vec::new();
    if ended > 0 {
        metrics.push(metric(LATENCY.to_owned(), ended, figures.latency_sum));
        let buckets = figures.latency.iter().enumerate().filter(|(_, count)| **count > 0);
        metrics.extend(buckets.map(|(at, count)| metric(bucket_name(at), *count, 0.0)));
        metrics.push(metric(SECURED.to_owned(), figures.secured, 0.0));
    }
    UpstreamLocalityStats {
        locality: Some(Locality {
            region: figures.locality.region.to_string(),
            zone: figures.locality.zone.to_string(),
            sub_zone: figures.locality.sub_zone.to_string(),
        }),
        total_successful_requests: figures.succeeded,
        total_requests_in_progress: figures.in_flight,
        total_error_requests: figures.failed,
        total_issued_requests: figures.issued,
        load_metric_stats: metrics,
        ..UpstreamLocalityStats::default()
    }
}

fn bucket_name(at: usize) -> String {
    match BOUNDS.get(at) {
        Some(bound) => format!("{LATENCY}.le_{bound}"),
        None => format!("{LATENCY}.le_inf"),
    }
}

/// What clients of ours say besides of the requests to one locality.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Details {
    /// How many of those that ended went by TLS.
    pub secured: u64,
    /// How many ended, by how long they took ([`BOUNDS`], in milliseconds).
    pub latency: [u64; BOUNDS.len() + 1],
    /// Their milliseconds together.
    pub latency_sum: f64,
}

impl Details {
    /// Reads what a client says; `None` where it is none of ours.
    pub fn of(stats: &UpstreamLocalityStats) -> Option<Details> {
        let mut details = Details::default();
        let mut is_ours = false;
        for metric in &stats.load_metric_stats {
            let count = metric.num_requests_finished_with_metric;
            let Some(rest) = metric.metric_name.strip_prefix(LATENCY) else {
                if metric.metric_name == SECURED {
                    details.secured = count;
                }
                continue;
            };
            if rest.is_empty() {
                is_ours = true;
                details.latency_sum = Some(metric.total_metric_value).filter(|sum| sum.is_finite() && *sum >= 0.0)?;
            } else if let Some(bucket) = bucket_of(rest).and_then(|at| details.latency.get_mut(at)) {
                *bucket = bucket.saturating_add(count);
            }
        }
        is_ours.then_some(details)
    }
}

fn bucket_of(rest: &str) -> Option<usize> {
    match rest.strip_prefix(".le_")? {
        "inf" => Some(BOUNDS.len()),
        bound => {
            let bound: f64 = bound.parse().ok()?;
            BOUNDS.iter().position(|known| *known == bound)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Locality as Place;

    #[test]
    fn figures_arrive_as_they_were() {
        let mut latency = [0; BOUNDS.len() + 1];
        (latency[0], latency[3], latency[BOUNDS.len()]) = (2, 5, 1);
        let figures = LocalityFigures {
            locality: Place { region: "r".into(), ..Place::default() },
            issued: 9,
            succeeded: 7,
            failed: 1,
            in_flight: 3,
            secured: 6,
            latency,
            latency_sum: 12.5,
        };
        let cluster =
            ClusterTraffic { name: "c".into(), service_name: "s".into(), dropped: 4, localities: vec![figures] };
        let told = encode(&[cluster], Duration::from_millis(2500));
        let stats = &told[0].upstream_locality_stats[0];
        assert_eq!((told[0].cluster_name.as_str(), told[0].total_dropped_requests), ("c", 4));
        assert_eq!(told[0].load_report_interval, Some(Seconds { seconds: 2, nanos: 500_000_000 }));
        assert_eq!((stats.total_issued_requests, stats.total_successful_requests), (9, 7));
        let details = Details::of(stats).expect("ours");
        assert_eq!(details, Details { secured: 6, latency, latency_sum: 12.5 });
    }

    #[test]
    fn what_others_say_is_passed_over() {
        let mut stats = UpstreamLocalityStats::default();
        assert_eq!(Details::of(&stats), None);
        let metric = |name: &str, total| EndpointLoadMetricStats {
            metric_name: name.to_owned(),
            num_requests_finished_with_metric: u64::MAX,
            total_metric_value: total,
        };
        stats.load_metric_stats =
            ["mesh.latency_ms.le_7", "mesh.latency_ms.x", "queue"].map(|name| metric(name, 1.0)).to_vec();
        assert_eq!(Details::of(&stats), None);
        stats.load_metric_stats = vec![metric(LATENCY, f64::NAN)];
        assert_eq!(Details::of(&stats), None);
    }

    #[test]
    fn a_server_that_does_not_know_the_service_is_not_asked_again() {
        assert!(matches!(ended(Attempt::Failed, Status::unimplemented("")), End::Unknown));
        assert!(matches!(ended(Attempt::Served, Status::unavailable("")), End::Broken(Attempt::Served, _)));
    }

    #[test]
    fn an_interval_is_a_second_at_least_whatever_a_server_says() {
        let of = |seconds, nanos| {
            let load_reporting_interval = Some(Seconds { seconds, nanos });
            interval_of(&LoadStatsResponse { load_reporting_interval, ..LoadStatsResponse::default() }).as_secs()
        };
        assert_eq!((of(2, 0), of(0, 1), of(-1, -1), of(i64::MAX, 0)), (2, 1, 1, 3600));
        assert_eq!(interval_of(&LoadStatsResponse::default()), SHORTEST);
    }
}
