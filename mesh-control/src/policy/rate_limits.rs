//! Rate limits: which are for a workload, as a server and as a client.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::model::LocalRateLimit;

use super::telemetry::{Side, is_one_of};
use crate::config::extensions::rate_limit::{LimitMode, RateLimit};
use crate::config::file::{Object, Objects, Workloads};
use crate::config::istio::security::selected;
use crate::registry::Services;

/// All rate limits.
#[derive(Debug, Default)]
pub struct RateLimits {
    root: Arc<str>,
    /// In the order of their objects.
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    object: Arc<Object<RateLimit>>,
    workloads: Workloads,
}

/// A rate limit in force, and the object that says it.
#[derive(Clone, Debug)]
pub struct LimitInForce {
    /// The object.
    pub id: Arc<str>,
    /// What it says.
    pub limit: Arc<LocalRateLimit>,
}

impl RateLimits {
    /// Those of these objects.
    pub fn new(objects: &Objects, root: &Arc<str>) -> RateLimits {
        let mut sorted: Vec<_> = objects.rate_limits.iter().collect();
        sorted.sort_by(|a, b| a.meta.order().cmp(&b.meta.order()));
        let entry = |object: &Arc<Object<RateLimit>>| Entry {
            workloads: Workloads::of(
                selected(object.spec.selector.as_ref()),
                &object.spec.target_refs.iter().collect::<Vec<_>>(),
            ),
            object: Arc::clone(object),
        };
        RateLimits { root: Arc::clone(root), entries: sorted.into_iter().map(entry).collect() }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Object<RateLimit>>> {
        self.entries.iter().map(|entry| &entry.object)
    }

    /// The places of those that are for a side of a workload. In the root namespace, labels are those of any namespace.
    pub fn of(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        services: &Services,
        side: Side,
    ) -> Arc<[usize]> {
        let is_meant = |entry: &Entry| {
            let of = &*entry.object.meta.namespace;
            (entry.object.spec.mode == LimitMode::Client) == (side == Side::Client)
                && (*of == *namespace || *of == *self.root)
                && is_one_of(&entry.workloads, namespace, labels, services)
        };
        self.entries.iter().enumerate().filter(|(_, entry)| is_meant(entry)).map(|(place, _)| place).collect()
    }

    /// Those at these places that are for a port of a server.
    pub fn on_port(&self, places: &[usize], port: u16) -> Vec<LimitInForce> {
        self.at(places, |limits| {
            let of = |wanted: Option<u16>| limits.iter().find(|(of, _)| *of == wanted);
            of(Some(port)).or_else(|| of(None)).map(|(_, limit)| limit)
        })
    }

    /// Those at these places that are for calls to a host.
    pub fn to_host(&self, places: &[usize], host: &str) -> Vec<LimitInForce> {
        let is_meant = |place: &&usize| {
            let hosts = self.entries.get(**place).map_or(&[][..], |entry| &entry.object.spec.hosts);
            hosts.is_empty() || hosts.iter().any(|meant| **meant == *host)
        };
        let places: Vec<usize> = places.iter().filter(is_meant).copied().collect();
        self.at(&places, |limits| limits.first().map(|(_, limit)| limit))
    }

    fn at<'l>(
        &'l self,
        places: &[usize],
        find: impl Fn(&'l [(Option<u16>, Arc<LocalRateLimit>)]) -> Option<&'l Arc<LocalRateLimit>>,
    ) -> Vec<LimitInForce> {
        let entries = places.iter().filter_map(|place| self.entries.get(*place));
        let in_force = entries.filter_map(|entry| {
            Some(LimitInForce { id: entry.object.meta.id(), limit: Arc::clone(find(&entry.object.spec.limits)?) })
        });
        in_force.collect()
    }
}
