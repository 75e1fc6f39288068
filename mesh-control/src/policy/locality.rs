//! Which endpoints are near a client, and so go first: Istio's `localityLbSetting`, as istiod works it out
//! (`loadbalancer.go`), and its `zoneAwareLbSetting`, where zones of the own region share requests.

pub mod zones;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::istio::destination_rule::{Failover, LoadBalancer, LocalityLb, ZoneAwareLb};
use zones::Zones;

/// Region, zone, subzone.
pub type Locality = [Arc<str>; 3];

/// The labels that stand for the parts of a locality.
const TOPOLOGY: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

/// What is said of near and far endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalitySetting {
    /// Clients there, and the shares of localities, in percent.
    distribute: Vec<(String, BTreeMap<String, u32>)>,
    /// Where a region fails over to.
    failover: BTreeMap<String, String>,
    /// Labels that rank endpoints, and the values that count instead of the client's own.
    labels: Vec<(String, Option<String>)>,
    /// Whether of places only regions rank, and the zones of a region share what there is.
    zone_aware: Option<ZoneAware>,
}

/// What becomes of the zones of the client's own region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ZoneAware {
    /// How many endpoints there have to be for zones to have shares; `None` where endpoints are found by hashes.
    at_least: Option<u64>,
}

/// The endpoints below which zones have no shares, where nothing is said (Istio).
const MIN_CLUSTER_SIZE: u64 = 6;

/// A client, as far as it can be near to something.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Where it is.
    pub locality: &'a Locality,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// What of a client's place makes a difference among some endpoints: equal ones have equal endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Nearness {
    /// Localities have these shares, and others nothing.
    Shares(Vec<(String, u32)>),
    /// Near ones go first.
    Order {
        /// Where the client is. A part that no endpoint has is `None`.
        locality: [Option<Arc<str>>; 3],
        /// Which parts of the locality rank, besides labels.
        by: Parts,
        /// The zones of the client's region that share its requests, and how, in parts of [`zones::WHOLE`].
        zones: Vec<(Arc<str>, u32)>,
        /// The region that its region fails over to.
        failover: Option<String>,
        /// Labels and the values that are near. A value that no endpoint has is `None`.
        labels: Vec<(String, Option<String>)>,
    },
}

/// Which parts of a locality rank endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parts {
    /// None.
    None,
    /// The region.
    Region,
    /// All of them.
    All,
}

/// What is said of near and far endpoints besides a rule.
#[derive(Clone, Copy, Debug, Default)]
pub struct Defaults<'a> {
    /// By the mesh.
    pub mesh: Option<&'a LocalityLb>,
    /// The same, by zones.
    pub mesh_zones: Option<&'a ZoneAwareLb>,
    /// Whether the service is called in the client's own zone, where it is there (`trafficDistribution`).
    pub prefers_near: bool,
}

impl LocalitySetting {
    /// What is in force of a rule, of the service and of the mesh's settings. Without outlier detection nothing fails over, and
    /// only shares, zones and what the service says count (Istio: loadbalancer.go).
    pub fn of(rule: Option<&LoadBalancer>, defaults: Defaults<'_>, detects_outliers: bool) -> Option<LocalitySetting> {
        let of_rule = rule.and_then(|rule| rule.locality_lb_setting.as_ref());
        let zones_of_rule = rule.and_then(|rule| rule.zone_aware_lb_setting.as_ref());
        if of_rule.is_none() && zones_of_rule.is_none() && defaults.prefers_near {
            let labels = TOPOLOGY.iter().take(2).map(|&label| (label.to_owned(), None)).collect();
            return Some(LocalitySetting { labels, ..LocalitySetting::default() });
        }
        let zones = zones_of_rule.or(defaults.mesh_zones.filter(|_| of_rule.is_none()));
        if let Some(zones) = zones.filter(|zones| zones.enabled != Some(false)) {
            let hashes = rule.is_some_and(|rule| rule.consistent_hash.is_some());
            let at_least = (!hashes).then(|| zones.min_cluster_size.unwrap_or(MIN_CLUSTER_SIZE));
            return Some(LocalitySetting {
                distribute: Vec::new(),
                failover: failovers(&zones.failover),
                labels: labels(&zones.failover_priority),
                zone_aware: Some(ZoneAware { at_least }),
            });
        }
        let written = of_rule.or(defaults.mesh);
        if written.is_some_and(|written| written.enabled == Some(false)) {
            return None;
        }
        let distribute: Vec<_> = written
            .iter()
            .flat_map(|written| &written.distribute)
            .map(|distribute| (distribute.from.clone(), distribute.to.clone()))
            .collect();
        if distribute.is_empty() && !detects_outliers {
            return None;
        }
        Some(LocalitySetting {
            distribute,
            failover: written.map(|written| failovers(&written.failover)).unwrap_or_default(),
            labels: written.map(|written| labels(&written.failover_priority)).unwrap_or_default(),
            zone_aware: None,
        })
    }

    /// How many endpoints there have to be in the client's region for its zones to have shares, where they may have some.
    pub fn shares_zones_from(&self) -> Option<u64> {
        self.zone_aware?.at_least
    }

    /// Whether localities have shares.
    pub fn has_shares(&self) -> bool {
        !self.distribute.is_empty() || self.shares_zones_from().is_some()
    }

    /// What of a client's place makes a difference among endpoints with these localities and labels; `None` if nothing
    /// does.
    pub fn nearness<'e>(
        &self,
        client: Place<'_>,
        endpoints: impl Iterator<Item = Place<'e>> + Clone,
    ) -> Option<Nearness> {
        if !self.distribute.is_empty() {
            let shares = self.distribute.iter().find(|(from, _)| covers(from, client.locality));
            return shares.map(|(_, to)| Nearness::Shares(to.iter().map(|(to, share)| (to.clone(), *share)).collect()));
        }
        // What no endpoint has is as good as anything else that none has: so clients cannot make up ever new places.
        let is_known = |depth: usize| {
            let same = |of: &Locality| of.iter().zip(client.locality).take(depth + 1).all(|(a, b)| a == b);
            endpoints.clone().any(|endpoint| same(endpoint.locality))
        };
        let failover = self.failover.get(&*client.locality[0]).cloned();
        let by = match self.zone_aware {
            Some(_) => Parts::Region,
            None if self.labels.is_empty() || !self.failover.is_empty() => Parts::All,
            None => Parts::None,
        };
        let counts = |depth: usize| by != Parts::Region || depth == 0;
        let known = |depth| client.locality.get(depth).filter(|_| counts(depth) && is_known(depth)).cloned();
        let labels = self.labels.iter().map(|(label, value)| {
            let wanted = value.clone().unwrap_or_else(|| client.label(label));
            let is_known = endpoints.clone().any(|endpoint| endpoint.label(label) == wanted);
            (label.clone(), is_known.then_some(wanted))
        });
        Some(Nearness::Order {
            locality: std::array::from_fn(known),
            by,
            zones: Vec::new(),
            failover,
            labels: labels.collect(),
        })
    }
}

impl Place<'_> {
    /// The value of a label; those of the topology are the locality's.
    fn label(&self, label: &str) -> String {
        match TOPOLOGY.iter().zip(self.locality).find(|(name, _)| **name == label) {
            Some((_, part)) if !part.is_empty() => part.to_string(),
            _ => self.labels.get(label).cloned().unwrap_or_default(),
        }
    }
}

impl Nearness {
    /// How far away an endpoint is, 0 for the nearest. Priorities follow from it, without gaps.
    pub fn distance(&self, endpoint: Place<'_>) -> u32 {
        let Nearness::Order { locality, by, zones, failover, labels } = self else { return 0 };
        let by_label = by_label(labels, endpoint);
        if *by == Parts::None {
            return by_label;
        }
        let same = endpoint.locality.iter().zip(locality).take_while(|(part, own)| own.as_ref() == Some(*part)).count();
        let shares = || by_label == 0 && zones.iter().any(|(zone, _)| *zone == endpoint.locality[1]);
        let by_locality = match (same, failover) {
            (3, _) => 0,
            (2, _) => 1,
            (1, _) if shares() => 1,
            (1, _) => 2,
            (_, Some(region)) if **region != *endpoint.locality[0] => 4,
            _ => 3,
        };
        by_label * 5 + by_locality
    }

    /// Whether an endpoint is of those that zones share: near by its labels, and in the client's region.
    pub fn is_shared(&self, endpoint: Place<'_>) -> bool {
        let Nearness::Order { by: Parts::Region, locality, labels, .. } = self else { return false };
        locality[0].as_ref() == Some(&endpoint.locality[0]) && by_label(labels, endpoint) == 0
    }

    /// Has the zones of the client's region share its requests, by how many clients of its kind there are in each, and how many
    /// `healthy` endpoints.
    pub fn share_zones(&mut self, own: &str, callers: &Zones, healthy: &Zones) {
        if let Nearness::Order { zones, .. } = self {
            *zones = zones::shares(own, callers, healthy).unwrap_or_default();
        }
    }

    /// The share of an endpoint's locality, as the entry that names it, and in parts of [`zones::WHOLE`]; `None` where no entry
    /// does.
    pub fn share(&self, place: &Locality) -> Option<(usize, u32)> {
        match self {
            Nearness::Shares(shares) => {
                let named = shares.iter().enumerate().find(|(_, (to, _))| covers(to, place));
                named.map(|(entry, (_, percent))| (entry, percent * (zones::WHOLE / 100)))
            }
            Nearness::Order { zones, locality, .. } => {
                let is_near = locality[0].as_ref() == Some(&place[0]);
                let named = zones.iter().enumerate().find(|(_, (zone, _))| is_near && *zone == place[1]);
                named.map(|(entry, (_, share))| (entry, *share))
            }
        }
    }
}

/// How many labels are not near, from the first that differs on.
fn by_label(labels: &[(String, Option<String>)], endpoint: Place<'_>) -> u32 {
    let near = labels.iter().take_while(|(label, value)| value.as_ref() == Some(&endpoint.label(label))).count();
    (labels.len() - near) as u32
}

fn failovers(written: &[Failover]) -> BTreeMap<String, String> {
    written.iter().map(|failover| (failover.from.clone(), failover.to.clone())).collect()
}

fn labels(written: &[String]) -> Vec<(String, Option<String>)> {
    let labels = written.iter().map(|label| match label.split_once('=') {
        Some((label, value)) => (label.to_owned(), Some(value.to_owned())),
        None => (label.clone(), None),
    });
    labels.collect()
}

/// Whether a locality is of those that are written as `region/zone/subzone`, with `*` for any rest.
pub fn covers(written: &str, locality: &Locality) -> bool {
    let mut parts = written.splitn(3, '/');
    locality.iter().enumerate().all(|(depth, part)| match parts.next() {
        Some("*") => true,
        None | Some("") => depth > 0,
        Some(text) => *text == **part,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Locality {
        crate::registry::service::parse_locality(text)
    }

    fn setting(failover: &[(&str, &str)], labels: &[&str]) -> LocalitySetting {
        let labels = labels.iter().map(|label| match label.split_once('=') {
            Some((label, value)) => (label.to_owned(), Some(value.to_owned())),
            None => ((*label).to_owned(), None),
        });
        LocalitySetting {
            distribute: Vec::new(),
            failover: failover.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect(),
            labels: labels.collect(),
            zone_aware: None,
        }
    }

    fn distances(
        setting: &LocalitySetting,
        client: (&str, &[(&str, &str)]),
        endpoints: &[(&str, &[(&str, &str)])],
    ) -> Vec<u32> {
        let labels = |labels: &[(&str, &str)]| -> BTreeMap<String, String> {
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let owned: Vec<_> = endpoints.iter().map(|(at, of)| (place(at), labels(of))).collect();
        let places = || owned.iter().map(|(locality, labels)| Place { locality, labels });
        let (locality, labels) = (place(client.0), labels(client.1));
        let nearness = setting.nearness(Place { locality: &locality, labels: &labels }, places()).unwrap();
        places().map(|endpoint| nearness.distance(endpoint)).collect()
    }

    #[test]
    fn the_same_place_is_near_and_another_region_is_far() {
        let endpoints: &[(&str, &[_])] =
            &[("r/z/s", &[]), ("r/z/t", &[]), ("r/y/s", &[]), ("q/z/s", &[]), ("p/z/s", &[]), ("", &[])];
        // (failover, client) -> distances
        type Case<'c> = (&'c [(&'c str, &'c str)], &'c str, [u32; 6]);
        let cases: [Case<'_>; 5] = [
            (&[], "r/z/s", [0, 1, 2, 3, 3, 3]),
            (&[("r", "q")], "r/z/s", [0, 1, 2, 3, 4, 4]),
            (&[("other", "q")], "r/z/s", [0, 1, 2, 3, 3, 3]),
            (&[], "elsewhere/z/s", [3, 3, 3, 3, 3, 3]),
            (&[], "r", [2, 2, 2, 3, 3, 3]),
        ];
        for (failover, client, expected) in cases {
            assert_eq!(distances(&setting(failover, &[]), (client, &[]), endpoints), expected, "{failover:?} {client}");
        }
    }

    #[test]
    fn labels_rank_endpoints_by_the_first_that_differs() {
        let endpoints: &[(&str, &[_])] = &[
            ("r/z", &[("net", "n1"), ("v", "1")]),
            ("r/z", &[("net", "n1"), ("v", "2")]),
            ("q/z", &[("net", "n2"), ("v", "1")]),
            ("r/z", &[]),
        ];
        let client: (&str, &[_]) = ("r/z", &[("net", "n1"), ("v", "1")]);
        assert_eq!(distances(&setting(&[], &["net", "v"]), client, endpoints), [0, 1, 2, 2]);
        assert_eq!(distances(&setting(&[], &["v=2"]), client, endpoints), [1, 0, 1, 1]);
        let region = "topology.kubernetes.io/region";
        assert_eq!(distances(&setting(&[], &[region]), client, endpoints), [0, 0, 1, 0]);
        // What neither has is equal (Istio).
        assert_eq!(distances(&setting(&[], &["none"]), client, endpoints), [0, 0, 0, 0]);
        // With failover, the locality ranks within.
        assert_eq!(distances(&setting(&[("r", "q")], &["v"]), client, endpoints), [0, 5, 3, 5]);
    }

    #[test]
    fn places_that_no_endpoint_knows_are_one_place() {
        let owned = [(place("r/z/s"), BTreeMap::new())];
        let endpoints = || owned.iter().map(|(locality, labels)| Place { locality, labels });
        let near = |client: &str| {
            let labels = BTreeMap::from([("v".to_owned(), client.to_owned())]);
            setting(&[], &["v"]).nearness(Place { locality: &place(client), labels: &labels }, endpoints())
        };
        assert_eq!(near("a/b/c"), near("x/y/z"));
        assert_eq!(near("r/b/c"), near("r/y/z"));
        assert_ne!(near("r/b/c"), near("x/y/z"));
    }

    #[test]
    fn what_a_written_locality_covers() {
        for (written, locality, expected) in [
            ("r/z/s", "r/z/s", true),
            ("r/z/s", "r/z/t", false),
            ("r/z/*", "r/z/t", true),
            ("r/*", "r/y/t", true),
            ("r", "r/y/t", true),
            ("*", "q/y/t", true),
            ("*", "", true),
            ("r/z", "r/y", false),
            ("", "r", false),
        ] {
            assert_eq!(covers(written, &place(locality)), expected, "{written} {locality}");
        }
    }
}
