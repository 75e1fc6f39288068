//! Istio's standard metrics of this process, and what its two sides tell each other of themselves for them: the headers
//! `x-envoy-peer-metadata` and `x-envoy-peer-metadata-id`, as Istio's proxies do.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::model::{MetricRules, MetricSet, ServiceNames};
use mesh_core::state::EndpointState;
use mesh_core::telemetry::{Ends, GrpcMetrics, Metrics, Peers, Reporter, Series};
use mesh_core::tls::Certificates;
use mesh_core::workload::{Introductions, OwnWorkload, Peer, Workload};
use serde_json::{Map, Value};
use smallvec::SmallVec;

use crate::connection::ConnectionInfo;

/// Places of the metrics of connections (`METRIC_NAMES`).
const SENT: usize = 6;
const RECEIVED: usize = 7;
const OPENED: usize = 8;
const CLOSED: usize = 9;

/// What both headers begin with, and the one of them is.
const PEER_METADATA: &str = "x-envoy-peer-metadata";
const METADATA: HeaderName = HeaderName::from_static(PEER_METADATA);
const METADATA_ID: HeaderName = HeaderName::from_static("x-envoy-peer-metadata-id");

/// The metrics of a mesh that keeps them.
pub(crate) struct Telemetry {
    metrics: Arc<Metrics>,
    peers: Peers,
    introductions: Option<Introductions>,
    decode: fn(&[u8]) -> Option<Workload>,
    /// Where calls count by the names of gRPC, too.
    grpc: Option<Arc<GrpcMetrics>>,
    told: ArcSwap<Told>,
}

/// What this process tells of itself.
struct Told {
    /// The version of who it is.
    version: u32,
    /// Where it knows who it is.
    headers: Option<[HeaderValue; 2]>,
}

impl Told {
    fn of(own: &OwnWorkload, introductions: Option<Introductions>) -> Arc<Told> {
        let version = own.version();
        Arc::new(Told { version, headers: headers_of(&own.get(), introductions) })
    }
}

impl Telemetry {
    pub(crate) fn new(
        own: &Arc<OwnWorkload>,
        introductions: Option<Introductions>,
        certificates: &Arc<Certificates>,
        node: Map<String, Value>,
    ) -> Self {
        // Nothing is to be read where nobody says who he is.
        let decode = introductions.map_or((|_| None) as fn(&[u8]) -> Option<Workload>, |known| known.decode);
        Telemetry {
            told: ArcSwap::new(Told::of(own, introductions)),
            introductions,
            decode,
            metrics: Arc::new(Metrics::new(Arc::clone(own), Arc::clone(certificates), Instant::now()).of_node(node)),
            peers: Peers::new(decode),
            grpc: None,
        }
    }

    /// The same, with the metrics of calls by the names of gRPC.
    pub(crate) fn of_grpc(self) -> Self {
        Telemetry { grpc: Some(Arc::new(GrpcMetrics::new())), ..self }
    }

    /// The metrics of calls by the names of gRPC, where they are kept.
    #[inline]
    pub(crate) fn grpc(&self) -> Option<&Arc<GrpcMetrics>> {
        self.grpc.as_ref()
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Tells who this process is.
    #[inline]
    pub(crate) fn introduce(&self, headers: &mut HeaderMap) {
        let mut told = self.told.load();
        if told.version != self.metrics.own().version() {
            self.told.store(Told::of(self.metrics.own(), self.introductions));
            told = self.told.load();
        }
        if let Some([metadata, id]) = &told.headers {
            headers.insert(METADATA, metadata.clone());
            headers.insert(METADATA_ID, id.clone());
        }
    }

    /// Takes off what the other side tells of itself, and says whether it wants to know of this one, too.
    #[inline]
    fn take(headers: &mut HeaderMap) -> (Option<HeaderValue>, bool) {
        // Both begin so. Looking them up costs more than looking at the few that there are.
        if !headers.keys().any(|name| name.as_str().starts_with(PEER_METADATA)) {
            return (None, false);
        }
        let told = headers.remove(METADATA);
        let wants = headers.remove(METADATA_ID).is_some();
        (told, wants)
    }

    /// Who sends a request, whether mutual TLS has shown it, and whether the sender wants to know of this process.
    #[inline]
    pub(crate) fn source(
        &self,
        headers: &mut HeaderMap,
        connection: Option<&ConnectionInfo>,
        now: Instant,
    ) -> (Option<Arc<Peer>>, bool, bool) {
        let (told, wants) = Self::take(headers);
        let told = told.as_ref().map_or(&[][..], HeaderValue::as_bytes);
        let principal = connection.and_then(ConnectionInfo::peer_identity);
        (self.peers.find(told, principal, self.metrics.second(now)), principal.is_some(), wants)
    }

    /// Takes in what an endpoint tells of itself in an answer, which is no business of the application's. Of one that was told nothing,
    /// such as a server outside of the mesh, it is `None`: whatever it says would be a name that it makes up.
    #[inline]
    pub(crate) fn answered(&self, headers: &mut HeaderMap, endpoint: Option<&Arc<EndpointState>>) {
        if let ((Some(told), _), Some(endpoint)) = (Self::take(headers), endpoint) {
            endpoint.note_said(&told, Instant::now, self.decode);
        }
    }

    /// Counts a connection that is not HTTP, from now until what is returned is dropped.
    pub(crate) fn connection(&self, ends: &Ends<'_>, rules: Option<&Arc<MetricRules>>) -> TcpCount {
        let series = self.metrics.connection(ends, rules, Instant::now());
        let count = TcpCount { series, is_server: ends.reporter == Reporter::Destination };
        count.add(OPENED, |series| &series.opened, 1);
        count
    }

    /// The same on a server.
    pub(crate) fn accepted(
        &self,
        connection: &ConnectionInfo,
        service: Option<&Arc<ServiceNames>>,
        rules: Option<&Arc<MetricRules>>,
    ) -> TcpCount {
        let principal = connection.peer_identity();
        let source = self.peers.find(&[], principal, self.metrics.second(Instant::now()));
        let mut ends = Ends::new(Reporter::Destination);
        (ends.source, ends.service, ends.is_secured) = (source.as_ref(), service, principal.is_some());
        self.connection(&ends, rules)
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("metrics", &self.metrics).finish_non_exhaustive()
    }
}

/// A connection that is not HTTP, as it is counted.
#[derive(Debug)]
pub(crate) struct TcpCount {
    series: SmallVec<[(Arc<Series>, MetricSet); 1]>,
    is_server: bool,
}

impl TcpCount {
    /// Bytes came in.
    #[inline]
    pub(crate) fn read(&self, bytes: usize) {
        self.passed(!self.is_server, bytes);
    }

    /// Bytes went out.
    #[inline]
    pub(crate) fn written(&self, bytes: usize) {
        self.passed(self.is_server, bytes);
    }

    fn passed(&self, is_from_server: bool, bytes: usize) {
        match is_from_server {
            true => self.add(SENT, |series| &series.sent_bytes, bytes as u64),
            false => self.add(RECEIVED, |series| &series.received_bytes, bytes as u64),
        }
    }

    /// Counts in the series that have this metric.
    #[inline]
    fn add(&self, place: usize, counter: fn(&Series) -> &AtomicU64, count: u64) {
        for (series, _) in self.series.iter().filter(|(_, metrics)| metrics.has(place)) {
            counter(series).fetch_add(count, Ordering::Relaxed);
        }
    }
}

impl Drop for TcpCount {
    fn drop(&mut self) {
        self.add(CLOSED, |series| &series.closed, 1);
    }
}

fn headers_of(own: &Workload, introductions: Option<Introductions>) -> Option<[HeaderValue; 2]> {
    let metadata = (introductions?.encode)(own);
    let id = own.node.as_deref()?;
    Some([HeaderValue::try_from(metadata).ok()?, HeaderValue::from_str(id).ok()?])
}
