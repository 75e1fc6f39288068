//! Which endpoints are near a client, and so go first: Istio's `localityLbSetting`, as istiod works it out
//! (`loadbalancer.go`).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::istio::destination_rule::LocalityLb;

/// Region, zone, subzone.
pub type Locality = [Arc<str>; 3];

/// The labels that stand for the parts of a locality.
const TOPOLOGY: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

/// What is said of near and far endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalitySetting {
    /// Clients there, and the shares of localities, in percent.
    distribute: Vec<(String, BTreeMap<String, u32>)>,
    /// Where a region fails over to.
    failover: BTreeMap<String, String>,
    /// Labels that rank endpoints, and the values that count instead of the client's own.
    labels: Vec<(String, Option<String>)>,
}

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
        /// Whether the parts of the locality rank, and not labels alone.
        by_locality: bool,
        /// The region that its region fails over to.
        failover: Option<String>,
        /// Labels and the values that are near. A value that no endpoint has is `None`.
        labels: Vec<(String, Option<String>)>,
    },
}

/// What is said of near and far endpoints besides a rule.
#[derive(Clone, Copy, Debug, Default)]
pub struct Around<'a> {
    /// By the mesh.
    pub mesh: Option<&'a LocalityLb>,
    /// Whether the service is called in the client's own zone, where it is there (`trafficDistribution`).
    pub prefers_near: bool,
}

impl LocalitySetting {
    /// What is in force of a rule, of the service and of the mesh's settings. Without outlier detection nothing fails over, and
    /// only shares and what the service says count (Istio: loadbalancer.go).
    pub fn of(rule: Option<&LocalityLb>, around: Around<'_>, detects_outliers: bool) -> Option<LocalitySetting> {
        if rule.is_none() && around.prefers_near {
            let labels = TOPOLOGY.iter().take(2).map(|&label| (label.to_owned(), None)).collect();
            return Some(LocalitySetting { distribute: Vec::new(), failover: BTreeMap::new(), labels });
        }
        let written = rule.or(around.mesh);
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
        let failover = written.iter().flat_map(|written| &written.failover);
        let labels = written.iter().flat_map(|written| &written.failover_priority);
        Some(LocalitySetting {
            distribute,
            failover: failover.map(|failover| (failover.from.clone(), failover.to.clone())).collect(),
            labels: labels
                .map(|label| match label.split_once('=') {
                    Some((label, value)) => (label.to_owned(), Some(value.to_owned())),
                    None => (label.clone(), None),
                })
                .collect(),
        })
    }

    /// Whether localities have shares, and not an order.
    pub fn has_shares(&self) -> bool {
        !self.distribute.is_empty()
    }

    /// What of a client's place makes a difference among endpoints with these localities and labels; `None` if nothing
    /// does.
    pub fn nearness<'e>(
        &self,
        client: Place<'_>,
        endpoints: impl Iterator<Item = Place<'e>> + Clone,
    ) -> Option<Nearness> {
        if self.has_shares() {
            let shares = self.distribute.iter().find(|(from, _)| covers(from, client.locality));
            return shares.map(|(_, to)| Nearness::Shares(to.iter().map(|(to, share)| (to.clone(), *share)).collect()));
        }
        // What no endpoint has is as good as anything else that none has: so clients cannot make up ever new places.
        let is_known = |depth: usize| {
            let same = |of: &Locality| of.iter().zip(client.locality).take(depth + 1).all(|(a, b)| a == b);
            endpoints.clone().any(|endpoint| same(endpoint.locality))
        };
        let failover = self.failover.get(&*client.locality[0]).cloned();
        let known = |depth| client.locality.get(depth).filter(|_| is_known(depth)).cloned();
        let labels = self.labels.iter().map(|(label, value)| {
            let wanted = value.clone().unwrap_or_else(|| client.label(label));
            let is_known = endpoints.clone().any(|endpoint| endpoint.label(label) == wanted);
            (label.clone(), is_known.then_some(wanted))
        });
        Some(Nearness::Order {
            locality: std::array::from_fn(known),
            by_locality: self.labels.is_empty() || !self.failover.is_empty(),
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
        let Nearness::Order { locality, by_locality, failover, labels } = self else { return 0 };
        // The first label that differs ranks it.
        let near = labels.iter().take_while(|(label, value)| value.as_ref() == Some(&endpoint.label(label))).count();
        let by_label = (labels.len() - near) as u32;
        if !by_locality {
            return by_label;
        }
        let same = endpoint.locality.iter().zip(locality).take_while(|(part, own)| own.as_ref() == Some(*part)).count();
        let by_locality = match (same, failover) {
            (3, _) => 0,
            (2, _) => 1,
            (1, _) => 2,
            (_, Some(region)) if **region != *endpoint.locality[0] => 4,
            _ => 3,
        };
        by_label * 5 + by_locality
    }

    /// The share of an endpoint's locality, as the entry that names it, and in percent; `None` where it has nothing.
    pub fn share(&self, locality: &Locality) -> Option<(usize, u32)> {
        let Nearness::Shares(shares) = self else { return None };
        let named = shares.iter().enumerate().find(|(_, (to, _))| covers(to, locality));
        named.map(|(entry, (_, share))| (entry, *share))
    }
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
