//! How many requests all clients together say that they have sent, by cluster.
//!
//! Reports are differences since the one before, so sums need no memory of who reported: a node may report
//! on any number of streams, one after the other or at the same time.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use envoy_types::pb::envoy::config::endpoint::v3::ClusterStats;

use crate::serve::clients::metrics::family;

/// How many clusters are counted: their names come from clients.
const CLUSTERS: usize = 4096;

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
    pub(crate) fn add(&self, report: &ClusterStats) {
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
