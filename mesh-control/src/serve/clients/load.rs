//! How many requests all clients together say that they have sent, by cluster.
//!
//! Reports are differences since the one before, so sums need no memory of who reported: a node may report
//! on any number of streams, one after the other or at the same time.
//!
//! Clients may lie: a report counts where the client has such a cluster, and within the [`Allowance`] of its stream. What does not
//! count is counted.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};

use crate::ratelimit::label;
use crate::serve::clients::metrics::family;

/// How many clusters are counted.
const CLUSTERS: usize = 4096;
/// The longest name of one, in bytes.
pub(crate) const MOST_NAME: usize = 512;
/// A cluster of which nobody reports for so long makes room for another.
const IDLE: Duration = Duration::from_secs(600);
/// No process makes more requests in a second; what was gathered without a stream is told for an hour at most.
const MOST_PER_SECOND: u64 = 10_000_000;
const MOST_SECONDS: u64 = 3600;

/// What all clients reported together, by cluster.
#[derive(Debug, Default)]
pub(crate) struct Load(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    clusters: BTreeMap<String, Totals>,
    lost: BTreeMap<Lost, u64>,
}

#[derive(Clone, Copy, Debug)]
struct Totals {
    issued: u64,
    succeeded: u64,
    failed: u64,
    dropped: u64,
    /// When there was the last report.
    last: Instant,
}

/// Why a report of a cluster does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lost {
    /// There is no room for another cluster.
    Room,
    /// It tells of more requests than a process can make.
    TooMany,
    /// Its client has no such cluster.
    Unknown,
}

impl Lost {
    fn name(self) -> &'static str {
        match self {
            Lost::Room => "room",
            Lost::TooMany => "too_many",
            Lost::Unknown => "unknown_cluster",
        }
    }
}

/// How many requests one stream may still tell of.
#[derive(Debug)]
pub(crate) struct Allowance {
    left: u64,
    at: Instant,
}

impl Allowance {
    pub(crate) fn new(now: Instant) -> Allowance {
        Allowance { left: MOST_PER_SECOND * MOST_SECONDS, at: now }
    }

    /// Whether a report is within it; then it is less from here on.
    pub(crate) fn take(&mut self, report: &ClusterStats, now: Instant) -> bool {
        let more = now.saturating_duration_since(self.at).as_secs_f64() * MOST_PER_SECOND as f64;
        self.left = self.left.saturating_add(more as u64).min(MOST_PER_SECOND * MOST_SECONDS);
        self.at = now;
        let of_locality = |locality: &UpstreamLocalityStats| {
            let ended = locality.total_successful_requests.saturating_add(locality.total_error_requests);
            let named = locality.load_metric_stats.iter().map(|named| named.num_requests_finished_with_metric);
            named.chain([ended, locality.total_issued_requests]).max().unwrap_or_default()
        };
        let told = report.upstream_locality_stats.iter().map(of_locality);
        let told = told.fold(report.total_dropped_requests, u64::saturating_add);
        let left = self.left.checked_sub(told);
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }
}

impl Load {
    /// Takes in what a client says of a cluster that it has.
    pub(crate) fn add(&self, report: &ClusterStats, now: Instant) {
        let mut book = self.book();
        if !book.clusters.contains_key(&report.cluster_name) && !book.make_room(now) {
            *book.lost.entry(Lost::Room).or_default() += 1;
            return;
        }
        let none = Totals { issued: 0, succeeded: 0, failed: 0, dropped: 0, last: now };
        let totals = book.clusters.entry(report.cluster_name.clone()).or_insert(none);
        totals.last = now;
        let add = |total: &mut u64, more: u64| *total = total.saturating_add(more);
        for locality in &report.upstream_locality_stats {
            add(&mut totals.issued, locality.total_issued_requests);
            add(&mut totals.succeeded, locality.total_successful_requests);
            add(&mut totals.failed, locality.total_error_requests);
        }
        add(&mut totals.dropped, report.total_dropped_requests);
    }

    /// A report does not count.
    pub(crate) fn lose(&self, why: Lost) {
        *self.book().lost.entry(why).or_default() += 1;
    }

    /// Appends the text form, if there is anything to say.
    pub(crate) fn write(&self, out: &mut String) {
        let Book { clusters, lost } = &*self.book();
        if !lost.is_empty() {
            let name = "mesh_reports_lost_total";
            family(out, name, "counter", "What clients reported of a cluster and does not count, by the reason.");
            for (why, count) in lost {
                let _ = writeln!(out, "{name}{{reason=\"{}\"}} {count}", why.name());
            }
        }
        if clusters.is_empty() {
            return;
        }
        let name = "mesh_reported_requests_total";
        family(out, name, "counter", "Requests that clients reported, by cluster and what became of them.");
        for (cluster, totals) in clusters {
            let cluster = label(cluster);
            let Totals { issued, succeeded, failed, dropped, .. } = *totals;
            let outcomes = [("issued", issued), ("succeeded", succeeded), ("failed", failed), ("dropped", dropped)];
            for (outcome, count) in outcomes {
                let _ = writeln!(out, "{name}{{cluster=\"{cluster}\",outcome=\"{outcome}\"}} {count}");
            }
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Whether there is room for another cluster, if need be in the place of one that nobody has any more.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.clusters.len() < CLUSTERS {
            return true;
        }
        let oldest = self.clusters.iter().min_by_key(|(_, totals)| totals.last);
        let oldest = oldest.filter(|(_, totals)| now.saturating_duration_since(totals.last) > IDLE);
        match oldest.map(|(name, _)| name.clone()) {
            Some(name) => self.clusters.remove(&name).is_some(),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
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
        let (load, now) = (Load::default(), Instant::now());
        let mut text = String::new();
        load.write(&mut text);
        assert!(text.is_empty());
        load.add(&report("a\"b", 3, 1), now);
        load.add(&report("a\"b", 4, 0), now);
        (0..2 * CLUSTERS).for_each(|n| load.add(&report(&n.to_string(), 1, 0), now));
        assert_eq!(load.book().clusters.len(), CLUSTERS);
        load.add(&report("a\"b", u64::MAX, 0), now + IDLE);
        load.write(&mut text);
        assert!(text.contains(&format!("mesh_reports_lost_total{{reason=\"room\"}} {}\n", CLUSTERS + 1)), "{text}");
        // What nobody has any more makes room; what somebody has does not.
        load.add(&report("new", 1, 0), now + IDLE + Duration::from_secs(1));
        let names = |name: &str| load.book().clusters.contains_key(name);
        assert!(names("new") && names("a\"b") && load.book().clusters.len() == CLUSTERS);
        assert!(text.contains("{cluster=\"a\\\"b\",outcome=\"dropped\"} 1"), "{text}");
        assert!(text.contains(&format!("{{cluster=\"a\\\"b\",outcome=\"issued\"}} {}", u64::MAX)));
    }

    #[test]
    fn no_stream_tells_of_more_requests_than_a_process_can_make() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        assert!(!allowance.take(&report("a", u64::MAX, 1), now));
        assert!(allowance.take(&report("a", MOST_PER_SECOND * MOST_SECONDS, 0), now), "an hour without a stream");
        assert!(!allowance.take(&report("a", 1, 0), now) && !allowance.take(&report("a", 0, 1), now));
        let later = now + Duration::from_secs(2);
        assert!(!allowance.take(&report("a", 3 * MOST_PER_SECOND, 0), later));
        assert!(allowance.take(&report("a", 2 * MOST_PER_SECOND, 0), later));
    }
}
