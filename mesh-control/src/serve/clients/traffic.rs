//! The live picture: how many requests went from whom to which service a moment ago, and how they ended.
//!
//! It is made of the reports of load of all clients, which are differences since the one before. Who calls is who reports, by
//! the certificate of the stream as far as that goes: nobody can put calls into another namespace's mouth. What is kept is
//! bounded, by who reports it (not by whom that claims to be) and altogether, and forgotten when it is old.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::endpoint::v3::ClusterStats;
use mesh_core::model::{BLACK_HOLE_CLUSTER, PASSTHROUGH_CLUSTER};
use mesh_core::telemetry::BOUNDS;
use mesh_core::workload::{Workload, said};
use mesh_core::xds::load_stats::Details;

use crate::catalog::{Client, ClientClass};
use crate::policy::route::ClusterKey;
use crate::serve::clients::node::About;

/// How far back a rate looks, and in how many steps it moves on.
const WINDOW: Duration = Duration::from_secs(15);
const SLOTS: usize = 5;
const SLOT: Duration = Duration::from_secs(WINDOW.as_secs() / SLOTS as u64);
/// How many edges there are at most, and how many of one who reports.
const MOST_EDGES: usize = 10_000;
const MOST_OF_ONE: usize = 1_000;
/// An edge without a request for so long is forgotten.
const FORGET: Duration = Duration::from_secs(600);
/// The longest name of a host or a subset.
const MOST_NAME: usize = 253;

/// Who calls: all replicas of a workload together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Caller {
    pub(crate) namespace: Arc<str>,
    /// Its canonical name: by label, else that of the workload.
    pub(crate) name: Arc<str>,
    /// Its version, by label; empty where there is none.
    pub(crate) version: Arc<str>,
}

impl Caller {
    /// Who a client is.
    pub(crate) fn of(client: &Client, about: &About) -> Caller {
        let label = |key: &str| client.labels.get(key).and_then(|value| said(value));
        let workload = Workload::of_parts(said(&about.name), None, None, label);
        Caller {
            namespace: client.namespace.clone(),
            name: workload.canonical_name.unwrap_or_default(),
            version: workload.canonical_revision.unwrap_or_default(),
        }
    }
}

/// `NAMESPACE/NAME`.
impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Who reports: who calls, and whose edges are counted together.
#[derive(Clone, Debug)]
pub(crate) struct Reporter {
    pub(crate) caller: Caller,
    class: ClientClass,
    /// An identity that was proven, else the address: what a client says of itself would give it as much room as it makes up.
    who: Arc<str>,
}

impl Reporter {
    pub(crate) fn of(client: &Client, about: &About) -> Reporter {
        let who = client.identity.as_ref().map_or_else(|| client.peer_ip.to_string(), ToString::to_string);
        Reporter { caller: Caller::of(client, about), class: client.class, who: who.into() }
    }
}

/// What is called: a service, or a subset of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Callee {
    pub(crate) host: Arc<str>,
    /// Empty where all of the service is called.
    pub(crate) subset: Arc<str>,
}

impl Callee {
    /// What a cluster of a client leads to. Others than those of services are nobody's business here, but for the one of calls that
    /// lead nowhere, which are of the `host` that was meant, where that is known, and the one of calls that pass by the mesh.
    fn of(cluster: &str, host: impl FnOnce() -> Option<Arc<str>>) -> Option<Callee> {
        if cluster == BLACK_HOLE_CLUSTER {
            return Some(Callee { host: host().unwrap_or_else(|| cluster.into()), subset: Arc::default() });
        }
        if cluster == PASSTHROUGH_CLUSTER {
            return Some(Callee { host: cluster.into(), subset: Arc::default() });
        }
        let ClusterKey { host, subset, .. } = ClusterKey::parse(cluster)?;
        let is_name = |text: &str| text.len() <= MOST_NAME && text.bytes().all(|byte| byte.is_ascii_graphic());
        (is_name(&host) && is_name(&subset)).then_some(Callee { host, subset })
    }
}

/// Figures of one edge over some time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    pub(crate) issued: f64,
    pub(crate) succeeded: f64,
    pub(crate) failed: f64,
    pub(crate) dropped: f64,
    /// Of those whose caller says so: how many ended, and how many of them went by TLS.
    pub(crate) detailed: f64,
    pub(crate) secured: f64,
    /// How many ended by bucket; the bounds are milliseconds.
    pub(crate) latency: [f64; BOUNDS.len() + 1],
}

impl Figures {
    fn add(&mut self, other: &Figures, share: f64) {
        let pairs = [
            (&mut self.issued, other.issued),
            (&mut self.succeeded, other.succeeded),
            (&mut self.failed, other.failed),
            (&mut self.dropped, other.dropped),
            (&mut self.detailed, other.detailed),
            (&mut self.secured, other.secured),
        ];
        let latency = self.latency.iter_mut().zip(other.latency);
        pairs.into_iter().chain(latency).for_each(|(sum, more)| *sum += more * share);
    }

    /// What a client says of one cluster.
    fn of(stats: &ClusterStats) -> Figures {
        let mut figures = Figures { dropped: stats.total_dropped_requests as f64, ..Figures::default() };
        for locality in &stats.upstream_locality_stats {
            figures.issued += locality.total_issued_requests as f64;
            figures.succeeded += locality.total_successful_requests as f64;
            figures.failed += locality.total_error_requests as f64;
            if let Some(details) = Details::of(locality) {
                figures.secured += details.secured as f64;
                for (sum, count) in figures.latency.iter_mut().zip(details.latency) {
                    *sum += count as f64;
                    figures.detailed += count as f64;
                }
            }
        }
        figures
    }

    fn is_nothing(&self) -> bool {
        self.issued + self.succeeded + self.failed + self.dropped == 0.0
    }

    /// The share of those that ended which failed.
    pub(crate) fn error_rate(&self) -> Option<f64> {
        let ended = self.succeeded + self.failed + self.dropped;
        (ended > 0.0).then(|| (self.failed + self.dropped) / ended)
    }

    /// The time in milliseconds within which this share of requests ended, where that is known: on a line between the bounds
    /// of its bucket, as Prometheus has it.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let all: f64 = self.latency.iter().sum();
        if all <= 0.0 {
            return None;
        }
        let (mut left, mut lower) = (all * share, 0.0);
        for (count, upper) in self.latency.iter().zip(BOUNDS) {
            if left <= *count && *count > 0.0 {
                return Some(lower + (upper - lower) * left / count);
            }
            (left, lower) = (left - count, upper);
        }
        Some(lower)
    }

    /// The share that went by TLS, where callers say so.
    pub(crate) fn secured_share(&self) -> Option<f64> {
        (self.detailed > 0.0).then(|| self.secured / self.detailed)
    }
}

/// One edge, as of now.
#[derive(Clone, Debug)]
pub(crate) struct EdgeNow {
    pub(crate) caller: Caller,
    pub(crate) callee: Callee,
    /// `library`, `grpc` or `envoy`: what the caller runs.
    pub(crate) class: ClientClass,
    /// All requests since the edge is known.
    pub(crate) requests: u64,
    /// Those of them that failed.
    pub(crate) failures: u64,
    /// Per second.
    pub(crate) rate: f64,
    /// What was told within the window.
    pub(crate) figures: Figures,
}

#[derive(Debug)]
struct Edge {
    class: ClientClass,
    /// Who reported it first.
    who: Arc<str>,
    requests: f64,
    failures: f64,
    /// Since when there is something to tell.
    since: Instant,
    /// When there was the last request.
    last: Instant,
    /// What was told, by the slot of time in which it was: the newest one last.
    slots: Vec<(u64, Figures)>,
}

/// All edges.
#[derive(Debug)]
pub(crate) struct Traffic {
    started: Instant,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    edges: BTreeMap<(Caller, Callee), Edge>,
    /// How many are whose.
    shares: BTreeMap<Arc<str>, usize>,
    /// Reports that found no place.
    lost: u64,
}

impl Traffic {
    pub(crate) fn new(now: Instant) -> Traffic {
        Traffic { started: now, book: Mutex::default() }
    }

    /// Takes in what a client says of a cluster that it has. `host` is whose the service is that it calls, where it has no cluster.
    pub(crate) fn add(
        &self,
        reporter: &Reporter,
        stats: &ClusterStats,
        host: impl FnOnce() -> Option<Arc<str>>,
        now: Instant,
    ) {
        let Reporter { caller, class, who } = reporter;
        let Some(callee) = Callee::of(&stats.cluster_name, host) else { return };
        let figures = Figures::of(stats);
        if figures.is_nothing() {
            return;
        }
        let time = stats.load_report_interval.as_ref().and_then(|time| {
            Some(Duration::new(u64::try_from(time.seconds).ok()?, u32::try_from(time.nanos).ok()?.min(999_999_999)))
        });
        // What was gathered for longer than is looked back, as after a break, is no rate of this moment.
        let time = time.unwrap_or_default();
        let share = if time > WINDOW { WINDOW.as_secs_f64() / time.as_secs_f64() } else { 1.0 };
        let slot = self.slot(now);
        let mut book = self.book();
        let key = (caller.clone(), callee);
        if !book.edges.contains_key(&key) {
            if !book.make_room(who, now) {
                book.lost += 1;
                return;
            }
            *book.shares.entry(Arc::clone(who)).or_default() += 1;
        }
        let edge = book.edges.entry(key).or_insert_with(|| Edge {
            class: *class,
            who: Arc::clone(who),
            requests: 0.0,
            failures: 0.0,
            since: now.checked_sub(time.min(WINDOW)).unwrap_or(now),
            last: now,
            slots: Vec::with_capacity(SLOTS + 1),
        });
        if figures.issued + figures.dropped > 0.0 {
            edge.last = now;
        }
        edge.class = *class;
        edge.requests += figures.issued + figures.dropped;
        edge.failures += figures.failed + figures.dropped;
        edge.slots.retain(|(at, _)| slot.saturating_sub(*at) < SLOTS as u64);
        match edge.slots.last_mut().filter(|(at, _)| *at == slot) {
            Some((_, present)) => present.add(&figures, share),
            None => {
                let mut new = Figures::default();
                new.add(&figures, share);
                edge.slots.push((slot, new));
            }
        }
    }

    /// Every edge that is known, as of now.
    pub(crate) fn edges(&self, now: Instant) -> Vec<EdgeNow> {
        let slot = self.slot(now);
        let mut book = self.book();
        let Book { edges, shares, .. } = &mut *book;
        edges.retain(|_, edge| {
            let is_kept = now.saturating_duration_since(edge.last) < FORGET;
            if !is_kept {
                give_back(shares, &edge.who);
            }
            is_kept
        });
        let edges = book.edges.iter().map(|((caller, callee), edge)| {
            let mut figures = Figures::default();
            let present = edge.slots.iter().filter(|(at, _)| slot.saturating_sub(*at) < SLOTS as u64);
            present.for_each(|(_, more)| figures.add(more, 1.0));
            // From the beginning of the oldest slot on, or of the edge.
            let in_slot = now.saturating_duration_since(self.started).as_secs_f64() % SLOT.as_secs_f64();
            let looked_back = SLOT.as_secs_f64() * (SLOTS - 1) as f64 + in_slot;
            let time = now.saturating_duration_since(edge.since).as_secs_f64().clamp(1.0, looked_back.max(1.0));
            EdgeNow {
                caller: caller.clone(),
                callee: callee.clone(),
                class: edge.class,
                requests: edge.requests as u64,
                failures: edge.failures as u64,
                rate: (figures.issued + figures.dropped) / time,
                figures,
            }
        });
        edges.collect()
    }

    /// How many edges are known, and how many reports found no place.
    pub(crate) fn counts(&self) -> (usize, u64) {
        let book = self.book();
        (book.edges.len(), book.lost)
    }

    fn slot(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs() / SLOT.as_secs()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Whether there is room for another edge of one who reports, if need be in the place of one that is idle: of their own where
    /// they have as many as one may have, else of whoever has the most.
    fn make_room(&mut self, who: &Arc<str>, now: Instant) -> bool {
        let full_one = if self.shares.get(who).is_some_and(|share| *share >= MOST_OF_ONE) {
            Some(who)
        } else if self.edges.len() >= MOST_EDGES {
            self.shares.iter().max_by_key(|(_, share)| **share).map(|(who, _)| who)
        } else {
            return true;
        };
        let idle = |edge: &Edge| now.saturating_duration_since(edge.last);
        let own = self.edges.iter().filter(|(_, edge)| full_one == Some(&edge.who));
        let oldest = own.max_by_key(|(_, edge)| idle(edge)).filter(|(_, edge)| idle(edge) > WINDOW);
        let Some(edge) = oldest.map(|(key, _)| key.clone()).and_then(|key| self.edges.remove(&key)) else {
            return false;
        };
        give_back(&mut self.shares, &edge.who);
        true
    }
}

/// An edge of theirs is gone.
fn give_back(shares: &mut BTreeMap<Arc<str>, usize>, who: &Arc<str>) {
    if let Some(share) = shares.get_mut(who) {
        *share -= 1;
        if *share == 0 {
            shares.remove(who);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use envoy_types::pb::envoy::config::endpoint::v3::UpstreamLocalityStats;
    use envoy_types::pb::google::protobuf::Duration as Seconds;
    use mesh_core::xds::load_stats::{LATENCY, SECURED};

    use super::*;

    fn reporter(name: &str) -> Reporter {
        let caller = Caller { namespace: "shop".into(), name: name.into(), version: "".into() };
        Reporter { caller, class: ClientClass::Grpc, who: name.into() }
    }

    fn stats(cluster: &str, issued: u64, failed: u64, seconds: i64) -> ClusterStats {
        ClusterStats {
            cluster_name: cluster.to_owned(),
            upstream_locality_stats: vec![UpstreamLocalityStats {
                total_issued_requests: issued,
                total_successful_requests: issued - failed,
                total_error_requests: failed,
                ..UpstreamLocalityStats::default()
            }],
            load_report_interval: Some(Seconds { seconds, nanos: 0 }),
            ..ClusterStats::default()
        }
    }

    const REVIEWS: &str = "outbound|9080|v2|reviews.shop.svc.cluster.local";

    #[test]
    fn a_rate_is_that_of_the_last_moments_whoever_reports_how_often() {
        let start = Instant::now();
        let traffic = Traffic::new(start);
        let add = |issued, seconds, at| {
            let now = start + Duration::from_secs(at);
            traffic.add(&reporter("web"), &stats(REVIEWS, issued, issued / 10, seconds), || None, now);
        };
        let rate = |at| traffic.edges(start + Duration::from_secs(at)).first().map(|edge| edge.rate.round());
        add(20, 2, 2);
        assert_eq!(rate(2), Some(10.0), "from the first report on");
        for at in 3..=30 {
            add(30, 2, at);
            add(30, 2, at);
        }
        let edges = traffic.edges(start + Duration::from_secs(30));
        assert!((54.0..=66.0).contains(&edges[0].rate), "{}", edges[0].rate);
        assert_eq!((edges[0].requests, edges[0].figures.error_rate()), (20 + 28 * 60, Some(0.1)));
        assert_eq!(rate(60), Some(0.0));
        assert_eq!(rate(700), None, "it is forgotten");
        // What an hour without a stream has gathered is no rush.
        add(3600, 3600, 701);
        assert_eq!(rate(701), Some(1.0));
        assert_eq!(traffic.edges(start + Duration::from_secs(702))[0].requests, 3600);
    }

    #[test]
    fn quantiles_lie_between_the_bounds_of_their_bucket() {
        let mut figures = Figures::default();
        assert_eq!((figures.quantile(0.5), figures.error_rate(), figures.secured_share()), (None, None, None));
        // 90 of 5 to 10 ms, 10 beyond the last bound.
        (figures.latency[3], figures.latency[BOUNDS.len()]) = (90.0, 10.0);
        let median = figures.quantile(0.5).expect("known");
        assert!((median - (5.0 + 5.0 * 50.0 / 90.0)).abs() < 1e-9, "{median}");
        assert_eq!(figures.quantile(0.99), Some(3_600_000.0));
    }

    #[test]
    fn our_own_clients_say_how_long_and_by_tls() {
        let (start, mut told) = (Instant::now(), stats(REVIEWS, 4, 0, 2));
        let metric = |name: &str, count| envoy_types::pb::envoy::config::endpoint::v3::EndpointLoadMetricStats {
            metric_name: name.to_owned(),
            num_requests_finished_with_metric: count,
            total_metric_value: 1.0,
        };
        told.upstream_locality_stats[0].load_metric_stats =
            vec![metric(LATENCY, 4), metric("mesh.latency_ms.le_10", 4), metric(SECURED, 3)];
        let traffic = Traffic::new(start);
        traffic.add(&reporter("web"), &told, || None, start);
        let edge = &traffic.edges(start)[0];
        assert_eq!((edge.figures.secured_share(), edge.figures.quantile(1.0)), (Some(0.75), Some(10.0)));
        assert_eq!((&*edge.callee.host, &*edge.callee.subset), ("reviews.shop.svc.cluster.local", "v2"));
    }

    #[test]
    fn what_clients_make_up_finds_no_room_and_takes_nobody_elses() {
        let start = Instant::now();
        let traffic = Traffic::new(start);
        let add = |who: &str, cluster: &str, at| {
            traffic.add(&reporter(who), &stats(cluster, 1, 0, 1), || None, start + Duration::from_secs(at));
        };
        let long = format!("outbound|80||{}", "a".repeat(300));
        for cluster in
            ["", "inbound|80||", "outbound|80|", "xds-grpc", &long, "outbound|80||a b", "outbound|80||\u{e9}"]
        {
            add("liar", cluster, 0);
        }
        assert_eq!(traffic.counts(), (0, 0));
        add("web", REVIEWS, 0);
        (0..2 * MOST_OF_ONE).for_each(|n| add("liar", &format!("outbound|80||h{n}"), 0));
        assert_eq!(traffic.counts(), (1 + MOST_OF_ONE, MOST_OF_ONE as u64));
        // Under other names, too.
        let other = Reporter { who: "liar".into(), ..reporter("made up") };
        traffic.add(&other, &stats(REVIEWS, 1, 0, 1), || None, start);
        assert_eq!(traffic.counts(), (1 + MOST_OF_ONE, MOST_OF_ONE as u64 + 1));
        // Idle ones make room: first the liar's own.
        add("liar", "outbound|80||another", 20);
        assert_eq!(traffic.counts(), (1 + MOST_OF_ONE, MOST_OF_ONE as u64 + 1));
        assert!(traffic.edges(start + Duration::from_secs(20)).iter().any(|edge| &*edge.caller.name == "web"));
        for n in 0..20 {
            (0..MOST_OF_ONE).for_each(|m| add(&format!("l{n}"), &format!("outbound|80||h{m}"), 21));
        }
        assert_eq!(traffic.counts().0, MOST_EDGES);
        // Where all is taken, whoever has the most gives way, not who has little.
        let late = start + Duration::from_secs(60);
        add("newcomer", REVIEWS, 60);
        let edges = traffic.edges(late);
        let has = |name: &str| edges.iter().filter(|edge| &*edge.caller.name == name).count();
        assert_eq!((has("newcomer"), has("web"), edges.len()), (1, 1, MOST_EDGES));
        assert!(traffic.edges(start + 2 * FORGET).is_empty() && traffic.book().shares.is_empty());
    }

    #[test]
    fn replicas_of_a_workload_are_one_caller() {
        let client = Client::new("id", ClientClass::Library, Ipv4Addr::LOCALHOST.into()).namespace("shop");
        let about = About { name: "web-1".to_owned(), ..About::default() };
        let of = |labels: &[(&str, &str)]| Caller::of(&client.clone().labels(labels.iter().copied()), &about);
        assert_eq!((&*of(&[]).name, &*of(&[]).version), ("web-1", ""));
        let labelled = of(&[("app", "web"), ("version", "v1")]);
        assert_eq!((&*labelled.name, &*labelled.version, &*labelled.namespace), ("web", "v1", "shop"));
    }
}
