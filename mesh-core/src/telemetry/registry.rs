//! The series of a process: found by what is alike, kept within bounds, given up with what they are of.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use foldhash::fast::RandomState;
use serde_json::{Map, Value};
use smallvec::SmallVec;

use crate::model::{
    BLACK_HOLE_CLUSTER, CelExpression, LabelRule, MetricRules, MetricSet, Nothing, PASSTHROUGH_CLUSTER, ServiceNames,
};
use crate::request_info::{Direction, Observer, RequestInfo};
use crate::state::{EndpointState, lock};
use crate::tls::Certificates;
use crate::workload::{OwnWorkload, Peer, Workload};

use super::facts::Ended;
use super::labels::{LabelChanges, Labels, Told};
use super::series::{Histograms, Sample, Series};

/// How many series there are at most. What there is no room for counts as one, whose labels are `unknown`.
pub const MOST_SERIES: usize = 10_000;
/// How many sets of values there are at most that labels have by expressions: whoever makes requests makes them up.
pub(super) const MOST_VALUES: usize = 1_000;
/// How many ways to a series are kept before all are looked through.
const MOST_WAYS: usize = 1 << 18;
/// For how many seconds a series is kept after the last endpoint that it is of is gone, so that its end is scraped.
const RETENTION: u32 = 300;
/// For how many seconds one without an endpoint is kept after its last request.
const IDLE: u32 = 3600;
const SHARDS: usize = 16;

/// Which end of a request tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client.
    Source,
    /// The server.
    Destination,
}

impl Reporter {
    /// Istio's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        }
    }
}

/// The two ends of something, seen from this process.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Ends<'a> {
    /// Which one this process is.
    pub reporter: Reporter,
    /// The endpoint, on a client.
    pub endpoint: Option<&'a Arc<EndpointState>>,
    /// The client, on a server.
    pub source: Option<&'a Arc<Peer>>,
    /// The service.
    pub service: Option<&'a Arc<ServiceNames>>,
    /// What the client asked for, where no service is known: a cluster, or a host.
    pub name: &'a str,
    /// Whether mutual TLS has shown who both are.
    pub is_secured: bool,
}

impl<'a> Ends<'a> {
    /// Those of which nothing is known.
    pub fn new(reporter: Reporter) -> Ends<'a> {
        Ends { reporter, endpoint: None, source: None, service: None, name: "", is_secured: false }
    }
}

/// Istio's standard metrics of this process. Register it as an observer of the mesh.
pub struct Metrics {
    own: Arc<OwnWorkload>,
    certificates: Arc<Certificates>,
    began: Instant,
    hashing: RandomState,
    ways: [RwLock<HashMap<Way, Found, RandomState>>; SHARDS],
    series: Mutex<HashMap<(Labels, bool), Arc<Series>>>,
    /// How requests are counted by now, of a client and of a server.
    in_force: Mutex<[Rules; 2]>,
    /// What labels have by expressions, by its hash, and when that was so last.
    values: RwLock<HashMap<u64, AtomicU32>>,
    /// When room was looked for last among them.
    values_swept: AtomicU32,
    /// What the node of this process says of itself.
    node: Map<String, Value>,
    without_room: AtomicU64,
    /// Whose histograms are told of requests, too.
    histograms: OnceLock<Arc<dyn Histograms>>,
}

/// What requests of one series have in common that is found without a text: addresses of what lives as long as its way.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Way {
    endpoint: usize,
    peer: usize,
    service: usize,
    name: u64,
    code: u16,
    grpc_status: u8,
    flags: u32,
    /// Who this process was.
    own: u32,
    /// What is otherwise than usual of its labels, and of which metrics.
    changes: u64,
    metrics: u16,
    /// Reporter, gRPC, TLS, TCP.
    kind: u8,
}

impl Way {
    /// Where it is kept: a hash of all of it would be made twice.
    #[inline]
    fn shard(&self) -> usize {
        let Way { endpoint, peer, service, code, .. } = self;
        (((endpoint ^ peer ^ service) >> 6) ^ usize::from(*code)) % SHARDS
    }
}

/// All that is said of how requests are counted; `None` where they are as usual. Nothing at all, as long as nothing is known.
type Rules = Vec<Option<Arc<MetricRules>>>;

/// By what a request counts under a series: what becomes of its labels, with the hash of that, for which metrics, and which group
/// of which rules says so, where they do.
#[derive(Clone, Copy)]
struct By<'a> {
    changes: &'a LabelChanges,
    hash: u64,
    metrics: MetricSet,
    group: Option<(&'a Arc<MetricRules>, usize)>,
}

struct Found {
    series: Arc<Series>,
    metrics: MetricSet,
    group: Option<(Arc<MetricRules>, usize)>,
    endpoint: Option<Weak<EndpointState>>,
    /// Keeps its address from being another one's.
    peer: Option<Weak<Peer>>,
    _service: Option<Arc<ServiceNames>>,
}

/// What is told of a request, besides its ends.
#[derive(Clone, Copy)]
struct Outcome<'a> {
    protocol: Protocol,
    code: u16,
    grpc_status: Option<u32>,
    request: Option<&'a RequestInfo>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http,
    Grpc,
    Tcp,
}

impl Metrics {
    /// The metrics of this workload, which shows who it is by these certificates.
    pub fn new(own: Arc<OwnWorkload>, certificates: Arc<Certificates>, now: Instant) -> Metrics {
        Metrics {
            own,
            certificates,
            began: now,
            hashing: RandomState::default(),
            ways: std::array::from_fn(|_| RwLock::default()),
            series: Mutex::default(),
            in_force: Mutex::default(),
            values: RwLock::default(),
            values_swept: AtomicU32::new(u32::MAX),
            node: Map::new(),
            without_room: AtomicU64::new(0),
            histograms: OnceLock::new(),
        }
    }

    /// Has these told of each request, too, from the first one on. Those that were set first count.
    pub fn record_in(&self, histograms: Arc<dyn Histograms>) {
        _ = self.histograms.set(histograms);
    }

    /// The same in a process whose node says this of itself.
    pub fn of_node(self, node: Map<String, Value>) -> Metrics {
        Metrics { node, ..self }
    }

    /// Whose metrics they are.
    pub fn own(&self) -> &Arc<OwnWorkload> {
        &self.own
    }

    /// The second of their clock that it is.
    #[inline]
    pub fn second(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.began).as_secs()).unwrap_or(u32::MAX)
    }

    /// Counts a request that ended now.
    #[inline]
    pub fn record(&self, request: &RequestInfo, now: Instant) {
        let Some(direction) = request.direction() else { return };
        let reporter = match direction {
            Direction::Outbound => Reporter::Source,
            Direction::Inbound if !request.is_at_edge() => Reporter::Destination,
            // What a gateway sends on counts where that goes; what it answers itself, as its own, too.
            Direction::Inbound if request.was_sent_on() => return,
            Direction::Inbound => Reporter::Source,
        };
        // Strangers ask a gateway for any name.
        let asked_for = || if request.is_at_edge() { "" } else { request.authority() };
        let ends = Ends {
            reporter,
            endpoint: request.endpoint(),
            source: request.source().filter(|_| !request.is_at_edge()),
            service: request.service(),
            name: request.cluster().map_or_else(asked_for, |cluster| cluster.as_str()),
            is_secured: request.is_secured(),
        };
        let outcome = Outcome {
            protocol: if request.is_grpc { Protocol::Grpc } else { Protocol::Http },
            code: request.response_code(),
            // To clients a code that there is none of is UNKNOWN.
            grpc_status: request.grpc_response_status().map(|status| if status > 16 { 2 } else { status }),
            request: Some(request),
        };
        let sample = Sample {
            duration: now.saturating_duration_since(request.started),
            request_bytes: request.request_bytes(),
            response_bytes: request.response_bytes(),
            request_messages: request.request_messages(),
            response_messages: request.response_messages(),
        };
        let second = self.second(now);
        match request.metric_rules() {
            None => {
                let usual = By { changes: &LabelChanges::default(), hash: 0, metrics: MetricSet::ALL, group: None };
                self.find(&ends, outcome, second, usual, |series| series.record(&sample, second, MetricSet::ALL));
            }
            Some(rules) => self.record_by(rules, (&ends, outcome), (&sample, second)),
        }
    }

    /// Counts a request where that is otherwise than usual.
    #[inline(never)]
    fn record_by(
        &self,
        rules: &Arc<MetricRules>,
        (ends, outcome): (&Ends<'_>, Outcome<'_>),
        (sample, second): (&Sample, u32),
    ) {
        let ended = outcome.request.map(|request| Ended::new(request, sample.duration, SystemTime::now(), &self.node));
        let value = |expression: &CelExpression| match &ended {
            Some(ended) => expression.show(ended),
            None => expression.show(&Nothing),
        };
        for (at, group) in rules.groups().iter().enumerate() {
            let (changes, hash) = self.changes(&group.labels, second, value);
            let record = |series: &Arc<Series>| series.record(sample, second, group.metrics);
            let by = By { changes: &changes, hash, metrics: group.metrics, group: Some((rules, at)) };
            self.find(ends, outcome, second, by, record);
        }
    }

    /// What these rules make of labels, with its hash; 0 for nothing.
    fn changes(
        &self,
        rules: &[LabelRule],
        second: u32,
        value: impl Fn(&CelExpression) -> Option<String>,
    ) -> (LabelChanges, u64) {
        if rules.is_empty() {
            return (LabelChanges::default(), 0);
        }
        let changes = LabelChanges::of(rules, value);
        let hash = self.hashing.hash_one(&changes).max(1);
        let is_bounded = rules.iter().all(|(_, rule)| rule.as_ref().is_none_or(CelExpression::is_constant));
        if is_bounded || self.has_room(hash, second) {
            return (changes, hash);
        }
        let changes = LabelChanges::unknown(rules);
        let hash = self.hashing.hash_one(&changes).max(1);
        (changes, hash)
    }

    /// Whether these values of labels are among those that there is room for.
    fn has_room(&self, hash: u64, second: u32) -> bool {
        {
            let values = self.values.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(used) = values.get(&hash) {
                used.store(second, Ordering::Relaxed);
                return true;
            }
            if values.len() >= MOST_VALUES && self.values_swept.load(Ordering::Relaxed) == second {
                self.without_room.fetch_add(1, Ordering::Relaxed);
                return false;
            }
        }
        let mut values = self.values.write().unwrap_or_else(PoisonError::into_inner);
        if values.len() >= MOST_VALUES {
            self.values_swept.store(second, Ordering::Relaxed);
            values.retain(|_, used| second.saturating_sub(*used.get_mut()) < IDLE);
        }
        let has_room = values.len() < MOST_VALUES;
        if has_room {
            values.insert(hash, AtomicU32::new(second));
        } else {
            self.without_room.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    /// What a connection between these ends counts by that is not HTTP: the series, and which metrics of each.
    pub fn connection(
        &self,
        ends: &Ends<'_>,
        rules: Option<&Arc<MetricRules>>,
        now: Instant,
    ) -> SmallVec<[(Arc<Series>, MetricSet); 1]> {
        let outcome = Outcome { protocol: Protocol::Tcp, code: 0, grpc_status: None, request: None };
        let second = self.second(now);
        let mut all = SmallVec::new();
        let mut add = |labels: &[LabelRule], metrics, group| {
            let (changes, hash) = self.changes(labels, second, |expression| expression.show(&Nothing));
            self.find(ends, outcome, second, By { changes: &changes, hash, metrics, group }, |series| {
                series.touch(second);
                all.push((Arc::clone(series), metrics));
            });
        };
        match rules {
            None => add(&[], MetricSet::ALL, None),
            Some(rules) => {
                let groups = rules.groups().iter().enumerate();
                groups.for_each(|(at, group)| add(&group.labels, group.metrics, Some((rules, at))));
            }
        }
        all
    }

    #[inline]
    fn find(&self, ends: &Ends<'_>, outcome: Outcome<'_>, second: u32, by: By<'_>, then: impl FnOnce(&Arc<Series>)) {
        let known = ends.endpoint.map(|endpoint| endpoint.look_at_peer());
        let peer: Option<&Arc<Peer>> = match &known {
            Some(known) => (**known).as_ref(),
            None => ends.source,
        };
        let way = Way {
            endpoint: ends.endpoint.map_or(0, |endpoint| Arc::as_ptr(endpoint) as usize),
            peer: peer.map_or(0, |peer| Arc::as_ptr(peer) as usize),
            service: ends.service.map_or(0, |service| Arc::as_ptr(service) as usize),
            name: match (ends.service, ends.reporter) {
                (None, Reporter::Source) => self.hashing.hash_one(ends.name),
                // A server's labels have nothing of what it is called by.
                (None, Reporter::Destination) | (Some(_), _) => 0,
            },
            code: outcome.code,
            grpc_status: outcome.grpc_status.map_or(u8::MAX, |status| u8::try_from(status).unwrap_or(2)),
            flags: outcome.request.map_or(0, |request| request.response_flags().bits()),
            own: self.own.version(),
            changes: by.hash,
            metrics: by.metrics.bits(),
            kind: u8::from(ends.reporter == Reporter::Source)
                | u8::from(ends.is_secured) << 1
                | (outcome.protocol as u8) << 2,
        };
        let Some(shard) = self.ways.get(way.shard()) else { return };
        if let Some(found) = shard.read().unwrap_or_else(PoisonError::into_inner).get(&way) {
            return then(&found.series);
        }
        let series = self.series_of(ends, peer.map(|peer| &**peer), outcome, second, by.changes);
        series.show(by.metrics);
        then(&series);
        let found = Found {
            series,
            metrics: by.metrics,
            group: by.group.map(|(rules, at)| (Arc::clone(rules), at)),
            endpoint: ends.endpoint.map(Arc::downgrade),
            peer: peer.map(Arc::downgrade),
            _service: ends.service.cloned(),
        };
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        if shard.len().is_power_of_two() {
            // Now and then, so that nothing is left of what comes and goes, scraped or not.
            shard.retain(|_, found| found.is_needed(second));
        }
        if shard.len() >= MOST_WAYS / SHARDS {
            shard.clear();
        }
        shard.insert(way, found);
    }

    #[cold]
    fn series_of(
        &self,
        ends: &Ends<'_>,
        peer: Option<&Peer>,
        outcome: Outcome<'_>,
        second: u32,
        changes: &LabelChanges,
    ) -> Arc<Series> {
        let principal = self.certificates.current().filter(|_| ends.is_secured).map(|own| own.id().clone());
        let own = Peer::new(Workload::clone(&self.own.get()), principal);
        let nobody = Peer::default();
        let mut peer = peer.cloned().unwrap_or(nobody);
        if !ends.is_secured {
            peer.principal = None;
        }
        let (source, destination) = match ends.reporter {
            Reporter::Source => (&own, &peer),
            Reporter::Destination => (&peer, &own),
        };
        let namespace = destination.workload.namespace.as_deref().unwrap_or_default();
        let service = match (ends.service, ends.reporter) {
            (Some(service), _) if !service.host.is_empty() => [&*service.host, &*service.name, &*service.namespace],
            (_, Reporter::Source) if matches!(ends.name, PASSTHROUGH_CLUSTER | BLACK_HOLE_CLUSTER) => {
                ["", ends.name, namespace]
            }
            (_, Reporter::Source) => [ends.name, ends.name, namespace],
            // A server that serves no service is called by its own name.
            (_, Reporter::Destination) => ["", own.workload.canonical_name.as_deref().unwrap_or_default(), namespace],
        };
        let labels = Labels::of(Told {
            reporter: ends.reporter,
            source,
            destination,
            service,
            protocol: match outcome.protocol {
                Protocol::Http => "http",
                Protocol::Grpc => "grpc",
                Protocol::Tcp => "tcp",
            },
            code: outcome.code,
            grpc_status: outcome.grpc_status,
            flags: outcome.request.map_or_else(|| "-".to_owned(), |request| request.response_flags().to_string()),
            is_secured: ends.is_secured,
        });
        let labels = labels.changed(changes);
        let (is_tcp, is_grpc) = (outcome.protocol == Protocol::Tcp, outcome.protocol == Protocol::Grpc);
        let since = self.began + Duration::from_secs(second.into());
        // Without the lock: whoever reads all series may hold what this waits for.
        let bound = self.histograms.get().filter(|_| !is_tcp).map(|histograms| histograms.bind(&labels));
        let mut all = lock(&self.series);
        if let Some(series) = all.get(&(labels.clone(), is_tcp)) {
            return Arc::clone(series);
        }
        if all.len() >= MOST_SERIES {
            self.without_room.fetch_add(1, Ordering::Relaxed);
            let rest = Labels::of_the_rest(ends.reporter).changed(changes);
            // What there is no room for is not told to them.
            let make = || Arc::new(Series::new(rest.clone(), is_tcp, is_grpc, since, None));
            return Arc::clone(all.entry((rest.clone(), is_tcp)).or_insert_with(make));
        }
        let series = Arc::new(Series::new(labels.clone(), is_tcp, is_grpc, since, bound));
        series.touch(second);
        all.insert((labels, is_tcp), Arc::clone(&series));
        series
    }

    /// Says how requests are counted by now: what was counted otherwise is given up. Nothing is, where nothing is said.
    pub fn set_rules(&self, reporter: Reporter, rules: Vec<Option<Arc<MetricRules>>>) {
        if let Some(present) = lock(&self.in_force).get_mut(usize::from(reporter == Reporter::Source)) {
            *present = rules;
        }
    }

    /// All series, in order of their labels. Those of endpoints that are gone are given up, and those that no rule in force has
    /// any more; the latter are gathered once more, for requests that are counted meanwhile may find them again.
    pub fn gather(&self, now: Instant) -> Vec<Arc<Series>> {
        let second = self.second(now);
        let is_over = |series: &Arc<Series>| Arc::strong_count(series) == 1 && series.is_superseded();
        lock(&self.series).retain(|_, series| !is_over(series));
        let in_force = lock(&self.in_force).clone();
        let mut shown = HashMap::<*const Series, MetricSet>::new();
        for shard in &self.ways {
            shard.write().unwrap_or_else(PoisonError::into_inner).retain(|way, found| {
                let metrics = found.metrics_by(in_force.get(usize::from(way.kind & 1)).map_or(&[], Vec::as_slice));
                let is_superseded = metrics == MetricSet::default();
                found.series.supersede(is_superseded);
                let of_series = shown.entry(Arc::as_ptr(&found.series)).or_default();
                *of_series = of_series.with(metrics);
                !is_superseded && found.is_needed(second)
            });
        }
        let mut series: Vec<Arc<Series>> = {
            let mut all = lock(&self.series);
            all.retain(|_, series| Arc::strong_count(series) > 1 || series.idle(second) < RETENTION);
            all.values().cloned().collect()
        };
        for one in &series {
            match shown.get(&Arc::as_ptr(one)) {
                Some(metrics) if *metrics != MetricSet::default() => {
                    one.supersede(false);
                    one.show_only(*metrics);
                }
                _ => {}
            }
        }
        series.sort_by(|a, b| (&a.labels, a.is_tcp).cmp(&(&b.labels, b.is_tcp)));
        series
    }

    /// How many kinds of requests found no room for a series of their own.
    pub fn without_room(&self) -> u64 {
        self.without_room.load(Ordering::Relaxed)
    }
}

impl Found {
    /// Which of its metrics are there by rules.
    fn metrics_by(&self, rules: &[Option<Arc<MetricRules>>]) -> MetricSet {
        if rules.is_empty() {
            return self.metrics;
        }
        let own = self.group.as_ref().and_then(|(rules, at)| rules.groups().get(*at));
        let labels = own.map_or(&[][..], |group| &group.labels);
        let all = rules.iter().map(|rules| match rules {
            None if labels.is_empty() => MetricSet::ALL,
            None => MetricSet::default(),
            Some(rules) => {
                let alike = rules.groups().iter().filter(|group| group.labels == labels);
                alike.fold(MetricSet::default(), |all, group| all.with(group.metrics))
            }
        });
        self.metrics.within(all.fold(MetricSet::default(), MetricSet::with))
    }

    fn is_needed(&self, second: u32) -> bool {
        let is_gone = |peer: &Weak<Peer>| peer.strong_count() == 0;
        match &self.endpoint {
            _ if self.peer.as_ref().is_some_and(is_gone) => false,
            Some(endpoint) => endpoint.strong_count() > 0,
            None => self.series.idle(second) < IDLE,
        }
    }
}

impl Observer for Metrics {
    fn on_end(&self, request: &RequestInfo) {
        self.record(request, request.ended());
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("own", &self.own).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
