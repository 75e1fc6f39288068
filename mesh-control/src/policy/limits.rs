//! Limits, on rates and on what there is at a time: which are for a workload, as a server and as a client.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::model::{
    AdaptiveConcurrency, AdmissionControl, ExpiredQuota, Fraction, GlobalRateLimit, LocalRateLimit, QuotaStrategy,
    RateLimit as Counted, RateLimitQuota,
};

use super::telemetry::Side;
use super::workloads;
use crate::catalog::QuotaLimit;
use crate::config::extensions::overload::Overload;
use crate::config::extensions::quota::Quota;
use crate::config::extensions::rate_limit::{Counter, RateLimit, WhoseRequests};
use crate::config::file::{Meta, Object, Objects, Workloads};
use crate::config::istio::security::{Selector, TargetRef};
use crate::registry::Services;

/// All limits.
#[derive(Debug, Default)]
pub struct Limits {
    root: Arc<str>,
    rate_limits: Vec<Arc<Object<RateLimit>>>,
    overloads: Vec<Arc<Object<Overload>>>,
    quotas: Vec<Arc<Object<Quota>>>,
    /// What they say, in the order of the objects: who is over a rate takes no place.
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    id: Arc<str>,
    namespace: Arc<str>,
    workloads: Workloads,
    is_of_client: bool,
    /// Of a client's calls, those to these hosts; none for all.
    hosts: Vec<String>,
    /// On all ports, or on one.
    limits: Vec<(Option<u16>, Limit)>,
    /// What requests are counted by, on all ports or on one, for limits of others that do not say it.
    counted: Vec<(Option<u16>, Vec<Arc<Counted>>)>,
}

/// A limit.
#[derive(Clone, Debug)]
pub enum Limit {
    /// How many requests in a time.
    Rate(Arc<LocalRateLimit>),
    /// How many requests in a time, as a service counts them.
    Global(Arc<GlobalRateLimit>),
    /// How many requests in a period, of which shares are assigned.
    Quota {
        /// The rule that says it.
        rule: Arc<str>,
        /// How much each identity has.
        limit: QuotaLimit,
        /// How processes go by it.
        quota: Arc<RateLimitQuota>,
    },
    /// How many at a time.
    Concurrency(Arc<AdaptiveConcurrency>),
    /// Which are held back, since they would fail.
    Throttle(Arc<AdmissionControl>),
}

impl From<Counter> for Limit {
    fn from(counter: Counter) -> Self {
        match counter {
            Counter::Process(limit) => Limit::Rate(limit),
            Counter::Service(limit) => Limit::Global(limit),
        }
    }
}

impl Limit {
    /// The same, by these where it is a rate that does not say what requests are counted by.
    fn or_by(self, counted: &[Arc<Counted>]) -> Limit {
        match self {
            Limit::Rate(limit) => Counter::Process(limit).or_by(counted).into(),
            Limit::Global(limit) => Counter::Service(limit).or_by(counted).into(),
            limit => limit,
        }
    }
}

/// A limit in force, and the object that says it.
#[derive(Clone, Debug)]
pub struct LimitInForce {
    /// The object.
    pub id: Arc<str>,
    /// What it says.
    pub limit: Limit,
}

/// Objects in the order in which they count.
fn sorted<T>(objects: &[Arc<Object<T>>]) -> Vec<Arc<Object<T>>> {
    let mut sorted = objects.to_vec();
    sorted.sort_by(|a, b| a.meta.order().cmp(&b.meta.order()));
    sorted
}

impl Limits {
    /// Those of these objects.
    pub fn new(objects: &Objects, root: &Arc<str>) -> Limits {
        let (rate_limits, overloads) = (sorted(&objects.rate_limits), sorted(&objects.overloads));
        let quotas = sorted(&objects.quotas);
        let mut entries = Vec::new();
        for object in &rate_limits {
            let spec = &object.spec;
            let limits = spec.limits.iter().map(|(port, counter)| (*port, Limit::from(counter.clone())));
            entries.push(Entry {
                id: object.meta.id(),
                namespace: Arc::clone(&object.meta.namespace),
                workloads: workloads(objects, &object.meta, spec.selector.as_ref(), &spec.target_refs),
                is_of_client: spec.mode == WhoseRequests::Client,
                hosts: spec.hosts.clone(),
                limits: limits.collect(),
                counted: spec.counted.clone(),
            });
        }
        for object in &quotas {
            let spec = &object.spec;
            entries.extend(spec.rules.iter().map(|rule| Entry {
                id: object.meta.id(),
                namespace: Arc::clone(&object.meta.namespace),
                workloads: workloads(objects, &object.meta, spec.selector.as_ref(), &spec.target_refs),
                is_of_client: spec.mode == WhoseRequests::Client,
                hosts: spec.hosts.clone(),
                limits: vec![(
                    None,
                    Limit::Quota { rule: Arc::clone(&rule.name), limit: rule.limit, quota: Arc::clone(&rule.quota) },
                )],
                counted: Vec::new(),
            }));
        }
        for object in &overloads {
            let spec = &object.spec;
            let entry = |is_of_client: bool, limit: Limit| Entry {
                id: object.meta.id(),
                namespace: Arc::clone(&object.meta.namespace),
                workloads: workloads(objects, &object.meta, spec.selector.as_ref(), &spec.target_refs),
                is_of_client,
                hosts: spec.hosts.clone(),
                limits: vec![(None, limit)],
                counted: Vec::new(),
            };
            entries.extend(spec.concurrency.clone().map(|limit| entry(false, Limit::Concurrency(limit))));
            entries.extend(spec.throttle.clone().map(|limit| entry(true, Limit::Throttle(limit))));
        }
        Limits { root: Arc::clone(root), rate_limits, overloads, quotas, entries }
    }

    /// The objects that say a rate.
    pub fn rate_limits(&self) -> &[Arc<Object<RateLimit>>] {
        &self.rate_limits
    }

    /// All objects that say a limit.
    pub fn objects(&self) -> impl Iterator<Item = &Meta> {
        let rates = self.rate_limits.iter().map(|object| &object.meta);
        let others = self.overloads.iter().map(|object| &object.meta);
        rates.chain(others).chain(self.quotas.iter().map(|object| &object.meta))
    }

    /// What they say of servers, whomever it is for.
    pub fn of_servers(&self) -> impl Iterator<Item = LimitInForce> {
        let entries = self.entries.iter().filter(|entry| !entry.is_of_client);
        entries.flat_map(|entry| {
            let limits = entry.limits.iter().map(|(_, limit)| limit.clone());
            limits.map(move |limit| LimitInForce { id: Arc::clone(&entry.id), limit })
        })
    }

    /// Whether objects of two namespaces may be for the same workload.
    pub fn may_meet(&self, one: &str, other: &str) -> bool {
        one == other || [one, other].contains(&&*self.root)
    }

    /// The objects that say what is done about overload.
    pub fn overloads(&self) -> &[Arc<Object<Overload>>] {
        &self.overloads
    }

    /// The objects that say a quota.
    pub fn quotas(&self) -> &[Arc<Object<Quota>>] {
        &self.quotas
    }

    /// How much of a rule of a quota there is, by the name of its object, where it is for this workload, or whoever it is for.
    pub fn quota(
        &self,
        of: Option<(&str, &BTreeMap<String, String>)>,
        services: &Services,
        quota: &str,
        rule: &str,
    ) -> Option<QuotaLimit> {
        self.entries.iter().find_map(|entry| match entry.limits.first() {
            Some((_, Limit::Quota { rule: name, limit, .. })) if *entry.id == *quota && **name == *rule => {
                let is_meant = of.is_none_or(|(namespace, labels)| self.is_for(entry, namespace, labels, services));
                is_meant.then_some(*limit)
            }
            _ => None,
        })
    }

    fn is_for(&self, entry: &Entry, namespace: &str, labels: &BTreeMap<String, String>, services: &Services) -> bool {
        workloads::is_for(&entry.workloads, (&entry.namespace, &self.root), namespace, labels, services)
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
            entry.is_of_client == (side == Side::Client) && self.is_for(entry, namespace, labels, services)
        };
        self.entries.iter().enumerate().filter(|(_, entry)| is_meant(entry)).map(|(place, _)| place).collect()
    }

    /// Those at these places that are for a port of a server, which has these numbers.
    pub fn on_port(&self, places: &[usize], numbers: &[u16]) -> Vec<LimitInForce> {
        let entries = places.iter().filter_map(|place| self.entries.get(*place));
        let counted = entries.filter_map(|entry| on_port(&entry.counted, numbers)).flatten().cloned();
        let counted = counted.collect::<Vec<_>>();
        let limits = self.at(places, |limits| on_port(limits, numbers)).into_iter();
        limits.map(|LimitInForce { id, limit }| LimitInForce { id, limit: limit.or_by(&counted) }).collect()
    }

    /// Those at these places that are for calls to a host.
    pub fn to_host(&self, places: &[usize], host: &str) -> Vec<LimitInForce> {
        let is_meant = |place: &&usize| {
            let hosts = self.entries.get(**place).map_or(&[][..], |entry| &entry.hosts);
            hosts.is_empty() || hosts.iter().any(|meant| **meant == *host)
        };
        let places: Vec<usize> = places.iter().filter(is_meant).copied().collect();
        // Questions to a service are calls, too, which it is not asked about.
        let is_asked = |limit: &Limit| match limit {
            Limit::Global(limit) => limit.target.rsplit_once(':').is_some_and(|(asked, _)| asked == host),
            _ => false,
        };
        self.at(&places, |limits| limits.first().map(|(_, limit)| limit).filter(|limit| !is_asked(limit)))
    }

    fn at<'l>(
        &'l self,
        places: &[usize],
        find: impl Fn(&'l [(Option<u16>, Limit)]) -> Option<&'l Limit>,
    ) -> Vec<LimitInForce> {
        let entries = places.iter().filter_map(|place| self.entries.get(*place));
        let in_force = entries
            .filter_map(|entry| Some(LimitInForce { id: Arc::clone(&entry.id), limit: find(&entry.limits)?.clone() }));
        in_force.collect()
    }
}

/// Why a server must not serve where nobody counts by these, if it must not: one that says that nothing passes uncounted.
pub fn not_counted(limits: &[LimitInForce]) -> Option<String> {
    let is_closed = |limit: &&LimitInForce| match &limit.limit {
        Limit::Global(limit) => needs_answer(limit),
        Limit::Quota { quota, .. } => needs_share(quota),
        Limit::Rate(_) | Limit::Concurrency(_) | Limit::Throttle(_) => false,
    };
    limits.iter().find(is_closed).map(|limit| format!("{}: nobody counts by it here (failureMode)", limit.id))
}

/// Whether requests are refused that the service has no answer about.
pub(crate) fn needs_answer(limit: &GlobalRateLimit) -> bool {
    limit.fails_closed && limit.enforced != Fraction::default()
}

/// Whether requests are refused that nobody has assigned a share for.
pub(crate) fn needs_share(quota: &RateLimitQuota) -> bool {
    let denies = Some(ExpiredQuota::Fallback(QuotaStrategy::DenyAll));
    let is_closed = quota.rules.iter().any(|rule| rule.settings.expired.map(|(kind, _)| kind) == denies);
    is_closed && quota.enforced != Fraction::default()
}

/// What there is for a port: what is said of it, or of all.
fn on_port<'s, T>(said: &'s [(Option<u16>, T)], numbers: &[u16]) -> Option<&'s T> {
    let of_it = said.iter().find(|(of, _)| of.is_some_and(|of| numbers.contains(&of)));
    of_it.or_else(|| said.iter().find(|(of, _)| of.is_none())).map(|(_, said)| said)
}

/// The workloads that a policy is for.
pub(crate) fn workloads(
    objects: &Objects,
    meta: &Meta,
    selector: Option<&Selector>,
    target_refs: &[TargetRef],
) -> Workloads {
    objects.workloads(meta, selector, &target_refs.iter().collect::<Vec<_>>())
}
