//! How many requests went where, for a control plane that wants to know (load reports, gRFC A27): by cluster and locality.
//!
//! A try costs a few additions where its cluster is reported, and one look where it is not. Requests for which no endpoint was
//! picked are counted, too: as dropped by their cluster or, where there is none, by the target that was asked for. What was counted is
//! [taken](Traffic::take) to be told, and begins at zero again. Counts last as long as an endpoint refers to them, or they are
//! not told yet.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use tokio::sync::watch;

use super::{ClusterState, EndpointState, NewPart, Shared, lock};
use crate::histogram::{BOUNDS, Histogram};
use crate::id::{ClusterName, Locality, Target};
use crate::model::{BLACK_HOLE_CLUSTER, Cluster, ClusterKind, ClusterTls};

/// So many targets whose requests lead to no cluster are told apart; those of all others count as of one without a name.
const MOST_TARGETS: usize = 100;

/// What there is to report, of all clusters that are reported.
#[derive(Debug, Default)]
pub struct Traffic {
    counted: Mutex<Counted>,
    is_wanted: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Counted {
    clusters: BTreeMap<ClusterName, OfCluster>,
    /// Requests that led to no cluster, by their target.
    nowhere: BTreeMap<Arc<str>, u64>,
    /// Whether these are to be reported, whatever else is.
    wants_nowhere: bool,
}

/// What is counted of one cluster.
#[derive(Debug)]
struct OfCluster {
    service_name: Arc<str>,
    shared: Weak<Shared>,
    /// Requests for which no endpoint was picked; those that a limit was in the way of are counted elsewhere.
    unsent: u64,
    /// By locality, and by whether connections are secured.
    localities: BTreeMap<(Locality, bool), Arc<LocalityTraffic>>,
}

/// What is counted of the endpoints of one locality.
#[derive(Debug, Default)]
pub(super) struct LocalityTraffic {
    in_flight: AtomicU64,
    issued: AtomicU64,
    failed: AtomicU64,
    /// Of those that were answered, or failed: in milliseconds.
    latency: Histogram,
}

/// What became of the requests to one cluster since the last report.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ClusterTraffic {
    /// Its name.
    pub name: ClusterName,
    /// The name of its endpoints, where that is another one; empty else. Of [`BLACK_HOLE_CLUSTER`], the target that was asked for.
    pub service_name: Arc<str>,
    /// Requests that were not sent: a limit of the cluster was in the way, it has nothing healthy, a fault was injected.
    pub dropped: u64,
    /// By where its endpoints are.
    pub localities: Vec<LocalityFigures>,
}

/// What became of the requests to the endpoints of one locality since the last report. One that its caller gave up is neither a
/// success nor a failure.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LocalityFigures {
    /// Where they are.
    pub locality: Locality,
    /// How many were sent.
    pub issued: u64,
    /// How many were answered, and not with a failure of the server (5xx; of gRPC, any status but OK).
    pub succeeded: u64,
    /// How many were answered with one, or not at all.
    pub failed: u64,
    /// How many are under way now.
    pub in_flight: u64,
    /// How many of those that ended went by TLS.
    pub secured: u64,
    /// How many ended, by how long they took: in Envoy's default buckets, in milliseconds.
    pub latency: [u64; BOUNDS.len() + 1],
    /// The same, in milliseconds altogether.
    pub latency_sum: f64,
}

impl Traffic {
    /// What was counted since it was asked the last time; clusters without any are left out.
    pub fn take(&self) -> Vec<ClusterTraffic> {
        let mut taken = Vec::new();
        let Counted { clusters, nowhere, wants_nowhere } = &mut *lock(&self.counted);
        clusters.retain(|name, of| {
            let told = of.take(name);
            let is_told = told.dropped > 0 || !told.localities.is_empty();
            if is_told {
                taken.push(told);
            }
            of.localities.retain(|_, counts| Arc::strong_count(counts) > 1);
            // One without endpoints is there as long as its state is, besides in the list of all of them.
            is_told || !of.localities.is_empty() || of.shared.strong_count() > 1
        });
        let told = std::mem::take(nowhere).into_iter().map(|(target, dropped)| ClusterTraffic {
            name: BLACK_HOLE_CLUSTER.into(),
            service_name: target,
            dropped,
            localities: Vec::new(),
        });
        taken.extend(told);
        let is_wanted = !clusters.is_empty() || *wants_nowhere;
        self.is_wanted.send_if_modified(|wanted| std::mem::replace(wanted, is_wanted) != is_wanted);
        taken
    }

    /// Whether any cluster is reported, told whenever that changes.
    pub fn wanted(&self) -> watch::Receiver<bool> {
        self.is_wanted.subscribe()
    }

    /// Counts a request that led to no cluster. `is_wanted`, that is to be reported even if nothing else is.
    pub fn note_nowhere(&self, target: &Target, is_wanted: bool) {
        let mut counted = lock(&self.counted);
        let Counted { nowhere, wants_nowhere, .. } = &mut *counted;
        let is_known = nowhere.contains_key(target.as_str()) || nowhere.len() < MOST_TARGETS;
        *nowhere.entry(if is_known { target.as_str().into() } else { Arc::default() }).or_default() += 1;
        if is_wanted {
            *wants_nowhere = true;
            self.want();
        }
    }

    fn want(&self) {
        self.is_wanted.send_if_modified(|wanted| !std::mem::replace(wanted, true));
    }

    /// Has something counted of a cluster that is reported.
    fn of<T>(&self, cluster: &Cluster, shared: &Arc<Shared>, count: impl FnOnce(&mut OfCluster) -> T) -> T {
        let mut counted = lock(&self.counted);
        let of = counted.clusters.entry(cluster.name.clone()).or_insert_with(|| OfCluster {
            service_name: match &cluster.kind {
                ClusterKind::Eds { service_name } if **service_name != *cluster.name.as_str() => service_name.clone(),
                _ => Arc::default(),
            },
            shared: Weak::new(),
            unsent: 0,
            localities: BTreeMap::new(),
        });
        of.shared = Arc::downgrade(shared);
        let result = count(of);
        self.want();
        result
    }
}

impl OfCluster {
    fn take(&mut self, name: &ClusterName) -> ClusterTraffic {
        let mut localities: BTreeMap<&Locality, LocalityFigures> = BTreeMap::new();
        for ((locality, is_secured), counts) in &self.localities {
            let (latency, latency_sum) = counts.latency.take();
            let (issued, failed) = (counts.issued.swap(0, Ordering::Relaxed), counts.failed.swap(0, Ordering::Relaxed));
            let in_flight = counts.in_flight.load(Ordering::Relaxed);
            let ended: u64 = latency.iter().sum();
            if issued == 0 && failed == 0 && ended == 0 && in_flight == 0 {
                continue;
            }
            let into = localities
                .entry(locality)
                .or_insert_with(|| LocalityFigures { locality: locality.clone(), ..LocalityFigures::default() });
            into.issued += issued;
            into.failed += failed;
            // A failure may be seen before the time that it took, and then counts as ended the next time.
            into.succeeded += ended.saturating_sub(failed);
            into.in_flight += in_flight;
            into.secured += if *is_secured { ended } else { 0 };
            into.latency_sum += latency_sum;
            for (sum, count) in into.latency.iter_mut().zip(latency) {
                *sum += count;
            }
        }
        ClusterTraffic {
            name: name.clone(),
            service_name: Arc::clone(&self.service_name),
            dropped: std::mem::take(&mut self.unsent)
                + self.shared.upgrade().map_or(0, |shared| shared.usage.take_dropped()),
            localities: localities.into_values().collect(),
        }
    }
}

impl ClusterState {
    /// Takes in whether requests to these endpoints are counted, for reports of load. `news` are those that are not as they were.
    pub(crate) fn note_reported(&self, cluster: &Cluster, news: &[NewPart<'_>]) {
        let all = news.iter().flat_map(|(locality, part)| part.iter().map(move |one| (locality, one)));
        if !cluster.reports_load {
            return all.for_each(|(_, (_, state))| state.stop_reporting());
        }
        self.traffic.of(cluster, &self.shared, |_| ());
        for (locality, (endpoint, state)) in all {
            let is_secured = match &cluster.tls {
                ClusterTls::Mutual(_) => true,
                ClusterTls::MutualWhereMarked(_) => endpoint.mutual_tls,
                ClusterTls::None | ClusterTls::Foreign(_) | ClusterTls::Unusable(_) => false,
            };
            self.report(cluster, state, locality, is_secured);
        }
    }

    /// The same of an endpoint that is known by nothing but its caller's word.
    #[inline]
    pub(crate) fn note_visited(&self, cluster: &Cluster, endpoint: &EndpointState) {
        if !cluster.reports_load {
            endpoint.stop_reporting();
        } else if endpoint.traffic.load().is_none() {
            self.report(cluster, endpoint, &Locality::default(), false);
        }
    }

    /// Requests to this endpoint are counted from now on as of this locality.
    fn report(&self, cluster: &Cluster, endpoint: &EndpointState, locality: &Locality, is_secured: bool) {
        let key = (locality.clone(), is_secured);
        let counts = self.traffic.of(cluster, &self.shared, |of| Arc::clone(of.localities.entry(key).or_default()));
        if !endpoint.traffic.load().as_ref().is_some_and(|known| Arc::ptr_eq(known, &counts)) {
            endpoint.traffic.store(Some(counts));
        }
    }

    /// Counts a request for which no endpoint was picked, where its cluster is reported.
    pub fn note_unsent(&self, cluster: &Cluster) {
        if cluster.reports_load {
            self.traffic.of(cluster, &self.shared, |of| of.unsent += 1);
        }
    }
}

impl EndpointState {
    /// Requests to it are not counted any more. Most never were, and then nothing is written.
    #[inline]
    fn stop_reporting(&self) {
        if self.traffic.load().is_some() {
            self.traffic.store(None);
        }
    }

    /// Counts a try that begins, where its cluster is reported; how it ends is noted by what is returned.
    #[inline]
    pub fn begin_reported(&self, now: impl FnOnce() -> Instant) -> Option<ReportedTry> {
        let counts = self.traffic.load_full()?;
        counts.issued.fetch_add(1, Ordering::Relaxed);
        counts.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(ReportedTry { counts, began: now(), ended: AtomicU8::new(GIVEN_UP) })
    }
}

/// How a try ends, unless it is said: its caller gave it up.
const GIVEN_UP: u8 = 0;
const SUCCEEDED: u8 = 1;
const FAILED: u8 = 2;

/// A try that is counted, until this is dropped.
#[derive(Debug)]
pub struct ReportedTry {
    counts: Arc<LocalityTraffic>,
    began: Instant,
    ended: AtomicU8,
}

impl ReportedTry {
    /// How it ends, as far as is known by now: the last word counts.
    #[inline]
    pub fn note(&self, is_success: bool) {
        self.ended.store(if is_success { SUCCEEDED } else { FAILED }, Ordering::Relaxed);
    }
}

impl Drop for ReportedTry {
    #[inline]
    fn drop(&mut self) {
        self.counts.in_flight.fetch_sub(1, Ordering::Relaxed);
        let ended = *self.ended.get_mut();
        if ended == GIVEN_UP {
            return;
        }
        let took = self.began.elapsed().as_micros();
        self.counts.latency.record(u64::try_from(took).unwrap_or(u64::MAX));
        if ended == FAILED {
            self.counts.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Endpoints;
    use crate::state::{CircuitBreakers, States};

    fn cluster(reports_load: bool) -> (Cluster, Endpoints) {
        let endpoints = Endpoints::fixed([std::net::SocketAddr::from(([10, 0, 0, 1], 1))]);
        let mut cluster = Cluster::new("c", ClusterKind::Static(endpoints.clone()));
        cluster.reports_load = reports_load;
        (cluster, endpoints)
    }

    fn note(state: &ClusterState, cluster: &Cluster, endpoints: &Endpoints) {
        let (parts, _) = state.resolve(endpoints, None);
        let news = endpoints.localities.iter().map(|of| &of.locality).zip(parts.iter().flatten());
        state.note_reported(cluster, &news.collect::<Vec<_>>());
    }

    #[test]
    fn what_was_counted_is_told_once_and_what_nobody_refers_to_is_forgotten() {
        let (states, (cluster, endpoints)) = (States::default(), cluster(true));
        let (traffic, state) = (Arc::clone(states.traffic()), states.cluster(&cluster.name, &cluster.tls));
        let mut wanted = traffic.wanted();
        assert!(!*wanted.borrow());
        // As views do, it holds the states of endpoints.
        let endpoint = state.endpoint(&endpoints.localities[0].endpoints[0].id, false);
        note(&state, &cluster, &endpoints);
        assert!(*wanted.borrow_and_update());
        assert!(traffic.take().is_empty() && !wanted.has_changed().unwrap());
        let begin = || endpoint.begin_reported(Instant::now).expect("it is reported");
        let (well, badly, gone, still) = (begin(), begin(), begin(), begin());
        well.note(true);
        badly.note(true);
        badly.note(false);
        drop((well, badly, gone));
        assert!(endpoint.enter_within(0).is_none());
        let told = traffic.take();
        let figures = &told[0].localities[0];
        let of = |figures: &LocalityFigures| (figures.issued, figures.succeeded, figures.failed, figures.in_flight);
        assert_eq!((told[0].name.as_str(), told[0].dropped, of(figures)), ("c", 1, (4, 1, 1, 1)));
        assert_eq!(figures.latency.iter().sum::<u64>(), 2);
        still.note(true);
        drop(still);
        assert_eq!(of(&traffic.take()[0].localities[0]), (0, 1, 0, 0));
        assert!(traffic.take().is_empty());
        drop((endpoint, state));
        assert!(traffic.take().is_empty() && wanted.has_changed().unwrap() && !*wanted.borrow());
    }

    #[test]
    fn a_cluster_that_is_not_reported_counts_nothing() {
        let (states, (cluster, endpoints)) = (States::default(), cluster(false));
        let state = states.cluster(&cluster.name, &cluster.tls);
        let endpoint = state.endpoint(&endpoints.localities[0].endpoints[0].id, false);
        note(&state, &cluster, &endpoints);
        assert!(endpoint.begin_reported(Instant::now).is_none());
        // It may be at any time, and no more at any time.
        note(&state, &self::cluster(true).0, &endpoints);
        assert!(endpoint.begin_reported(Instant::now).is_some());
        note(&state, &cluster, &endpoints);
        assert!(endpoint.begin_reported(Instant::now).is_none());
        assert_eq!(CircuitBreakers::default(), cluster.circuit_breakers);
    }

    #[test]
    fn requests_that_are_not_sent_are_told_of_their_cluster_or_of_their_target() {
        let (states, (cluster, _)) = (States::default(), cluster(true));
        let (traffic, state) = (Arc::clone(states.traffic()), states.cluster(&cluster.name, &cluster.tls));
        note(&state, &cluster, &Endpoints::default());
        let wanted = traffic.wanted();
        assert!(*wanted.borrow() && traffic.take().is_empty(), "it has no endpoint, and is reported");
        state.note_unsent(&cluster);
        state.note_unsent(&self::cluster(false).0);
        let target = |name: String| Target::from(name);
        for n in 0..=MOST_TARGETS + 1 {
            traffic.note_nowhere(&target(format!("made-up-{n}:80")), false);
        }
        let told = traffic.take();
        let of =
            |name: &str| told.iter().find(|one| &*one.service_name == name).map(|one| (one.name.as_str(), one.dropped));
        assert_eq!((told[0].name.as_str(), told[0].dropped, told[0].localities.len()), ("c", 1, 0));
        assert_eq!(of("made-up-0:80"), Some((BLACK_HOLE_CLUSTER, 1)));
        assert!(
            told.iter()
                .any(|one| one.name.as_str() == BLACK_HOLE_CLUSTER && one.service_name.is_empty() && one.dropped == 2)
        );
        assert_eq!(told.len(), 1 + MOST_TARGETS + 1);
        drop(state);
        assert!(traffic.take().is_empty() && !*wanted.borrow());
        traffic.note_nowhere(&target("blocked:80".to_owned()), true);
        assert!(*wanted.borrow() && traffic.take().len() == 1 && *wanted.borrow());
    }

    #[test]
    fn tries_by_tls_count_as_such_beside_others_of_their_locality() {
        let (states, (mut cluster, mut endpoints)) = (States::default(), cluster(true));
        let one = endpoints.localities[0].endpoints[0].clone();
        let other = crate::model::Endpoint { mutual_tls: true, ..one.clone() };
        endpoints.localities[0].endpoints = vec![one, other].into();
        cluster.tls = ClusterTls::MutualWhereMarked(Arc::new(crate::model::UpstreamTls::with([])));
        let state = states.cluster(&cluster.name, &cluster.tls);
        let both = [false, true].map(|tls| state.endpoint(&endpoints.localities[0].endpoints[0].id, tls));
        note(&state, &cluster, &endpoints);
        both.iter().for_each(|one| one.begin_reported(Instant::now).expect("it is").note(true));
        let told = states.traffic().take();
        assert_eq!(
            (told[0].localities.len(), told[0].localities[0].succeeded, told[0].localities[0].secured),
            (1, 2, 1)
        );
    }
}
