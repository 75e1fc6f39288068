//! All services of a configuration, and who answers to which host.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::identity::TrustDomain;

use super::host;
use super::probe::Probe;
use super::protocol::Protocol;
use super::service::{self, Service, ServicePort, Target, Visibility, WrittenEndpoint};
use super::workload::{self, Workload};
use crate::config::file::{Governs, Meta, Object, Objects, Refused};
use crate::config::istio::service::Session;
use crate::config::istio::virtual_service::Subnet;
use crate::config::istio::workload_entry::WorkloadEntry;
use crate::config::istio::workload_group::WorkloadGroup;
use crate::config::support::ObjectKind;
use crate::config::{Code, Diagnostic, Severity};

/// The first port that a system picks for a server that asks for any (Linux: ip_local_port_range; others begin later). What is
/// below was chosen, and means itself.
const FIRST_EPHEMERAL: u16 = 32_768;

/// The target ports that a bound port stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// Those that it is sure to stand for: itself, where a service names it, else, of a port that the system picked, the only
    /// port of each service.
    pub sure: Vec<u16>,
    /// Those that it may stand for: the only port of a service, where the workload chose another one.
    pub doubtful: Vec<u16>,
    /// Whether it may stand for any, since a service calls its target port by a name.
    pub is_open: bool,
}

/// At which ports of its own a workload serves, and what it speaks there.
#[derive(Clone, Debug, Default)]
pub struct ServedPorts {
    /// As one that services select: it is an endpoint there while it is connected.
    pub registered: BTreeMap<u16, Protocol>,
    /// As one that is written down.
    pub written: BTreeMap<u16, Protocol>,
    /// Ports of services whose target port it has no number for.
    pub unknown: Vec<(Arc<Service>, ServicePort)>,
}

impl ServedPorts {
    /// All of them.
    pub fn all(&self) -> BTreeMap<u16, Protocol> {
        let mut all = self.written.clone();
        all.extend(&self.registered);
        all
    }
}

/// The place of a service among all, and of its endpoints in [`super::Endpoints`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub(crate) usize);

/// All services of a configuration.
#[derive(Debug, Default)]
pub struct Services {
    all: Vec<Arc<Service>>,
    by_host: HashMap<Arc<str>, Vec<ServiceId>>,
    /// Services of the cluster, by their names without a namespace.
    by_name: HashMap<Arc<str>, Vec<ServiceId>>,
    /// The longest suffix first.
    wildcards: Vec<(Arc<str>, Vec<ServiceId>)>,
    /// Those that have addresses.
    addressed: Vec<ServiceId>,
    /// Aliases, by the host that they stand for.
    aliases: HashMap<Arc<str>, Vec<ServiceId>>,
    /// Services that take registrations, by namespace and the first label of their selector.
    by_selector: HashMap<NamespacedLabel, Vec<ServiceId>>,
    /// WorkloadEntries that each service selects.
    selected: Vec<Vec<WrittenEndpoint>>,
    groups: HashMap<NamespacedName, Arc<Object<WorkloadGroup>>>,
    /// Why nobody knows what a group adds to its members.
    refused_groups: HashMap<NamespacedName, Arc<str>>,
    refused: Vec<RefusedHost>,
}

/// A host whose service nobody knows: its object is wrong.
#[derive(Debug)]
struct RefusedHost {
    host: String,
    namespace: Arc<str>,
    visibility: Visibility,
    answer: Arc<str>,
}

type NamespacedName = (Arc<str>, Arc<str>);
pub(super) type NamespacedLabel = (Arc<str>, String, String);

impl Services {
    /// The services of these objects, and what is to be said about them.
    /// `domain` is that of the identities of endpoints that are written down.
    pub fn new(objects: &Objects, domain: &TrustDomain) -> (Services, Vec<Diagnostic>) {
        let mut services = Services::default();
        let mut found = Vec::new();
        let mut all: Vec<Service> = objects.services.iter().map(|object| service::of_service(object)).collect();
        all.extend(objects.service_entries.iter().flat_map(|object| service::of_entry(object, domain)));
        all.sort_by(|a, b| {
            (&a.host, &a.namespace, a.rank(&a.namespace)).cmp(&(&b.host, &b.namespace, b.rank(&b.namespace)))
        });
        for service in all {
            services.add(service, &mut found);
        }
        for (host, ids) in &services.by_host {
            if host.starts_with('*') {
                services.wildcards.push((host.clone(), ids.clone()));
            }
        }
        services.wildcards.sort_by(|a, b| (b.0.len(), &a.0).cmp(&(a.0.len(), &b.0)));
        let addressed = services.iter().filter(|(_, service)| !service.addresses.is_empty()).map(|(id, _)| id);
        services.addressed = addressed.collect();
        let entries = entries_by_namespace(objects);
        services.selected = services.all.iter().map(|service| selected(service, &entries, domain)).collect();
        for group in &objects.workload_groups {
            let key = (group.meta.namespace.clone(), group.meta.name.clone());
            services.groups.insert(key, group.clone());
        }
        let groups = objects.refused.iter().filter(|object| object.meta.kind == ObjectKind::WorkloadGroup);
        services.refused_groups =
            groups.map(|group| ((group.meta.namespace.clone(), group.meta.name.clone()), group.answer())).collect();
        services.refused = objects.refused.iter().flat_map(|object| refused_hosts(object)).collect();
        (services, found)
    }

    /// Has requests of a session with a service stay at their endpoint by this, unless the service says so itself; whether they do.
    pub fn set_session(&mut self, id: ServiceId, session: Session) -> bool {
        let Some(service) = self.all.get_mut(id.0).filter(|service| service.session.is_none()) else { return false };
        Arc::make_mut(service).session = Some(session);
        true
    }

    fn add(&mut self, service: Service, found: &mut Vec<Diagnostic>) {
        let ids = self.by_host.entry(service.host.clone()).or_default();
        let same = ids.iter().find(|id| self.all.get(id.0).is_some_and(|other| other.namespace == service.namespace));
        if let Some(other) = same.and_then(|id| self.all.get_mut(id.0)) {
            let merged = Arc::make_mut(other).merge(&service);
            let winner = format!("{} ({}), which is the one that counts", other.meta.id(), other.meta.origin);
            let message = match merged.as_deref() {
                Some([]) => return,
                Some(ports) => {
                    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                    format!("host {} has port {} from {winner}", service.host, ports.join(", "))
                }
                None => format!("host {} is already that of {winner}", service.host),
            };
            let origin = &service.meta.origin;
            let finding = Diagnostic::at(origin, Severity::Warning, Code::Conflict, message);
            found.push(finding.object(service.meta.id()));
            return;
        }
        let id = ServiceId(self.all.len());
        ids.push(id);
        if let Some(real) = &service.alias {
            self.aliases.entry(real.clone()).or_default().push(id);
        }
        if let Some(name) = host::name_in_cluster(&service.host) {
            self.by_name.entry(name.into()).or_default().push(id);
        }
        if let Some(label) = first_label(&service) {
            self.by_selector.entry(label).or_default().push(id);
        }
        self.all.push(Arc::new(service));
    }

    /// The service of this place.
    pub fn get(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.all.get(id.0)
    }

    /// All services, with their places.
    pub fn iter(&self) -> impl Iterator<Item = (ServiceId, &Arc<Service>)> {
        self.all.iter().enumerate().map(|(index, service)| (ServiceId(index), service))
    }

    /// The service of this exact host that a client of this namespace sees.
    pub fn exact(&self, host: &str, client_namespace: &str) -> Option<(ServiceId, &Arc<Service>)> {
        self.best(self.by_host.get(host)?, client_namespace)
    }

    /// Services of the cluster of this name, in any namespace.
    pub fn of_name(&self, name: &str) -> impl Iterator<Item = &Service> {
        let ids = self.by_name.get(name).into_iter().flatten();
        ids.filter_map(|id| self.all.get(id.0)).map(AsRef::as_ref)
    }

    /// Those that a client of this namespace sees.
    pub fn namesakes(&self, name: &str, client_namespace: &str) -> impl Iterator<Item = &Service> {
        self.of_name(name).filter(move |service| service.visibility.includes(client_namespace))
    }

    /// Services that have their host in common with others, host by host; first the one that counts for a client of yet
    /// another namespace.
    pub fn of_same_host(&self) -> impl Iterator<Item = Vec<&Service>> {
        // They are sorted by host.
        self.all.chunk_by(|a, b| a.host == b.host).filter(|same| same.len() > 1).map(|same| {
            let mut services: Vec<&Service> = same.iter().map(AsRef::as_ref).collect();
            services.sort_by(|a, b| a.rank("").cmp(&b.rank("")));
            services
        })
    }

    /// The service that an address stands for, to a client of this namespace: of several, the one of the smallest subnet.
    pub fn of_address(&self, address: IpAddr, client_namespace: &str) -> Option<&Arc<Service>> {
        let seen = self.addressed.iter().filter_map(|id| self.get(*id));
        let seen =
            seen.filter(|service| service.visibility.includes(client_namespace) && !service.host.starts_with('*'));
        let covering = seen.filter_map(|service| {
            let subnets = service.addresses.iter().filter(|subnet| subnet.contains(address));
            Some((subnets.map(Subnet::bits).max()?, service))
        });
        let best = covering.min_by(|(a, one), (b, other)| {
            b.cmp(a).then_with(|| one.rank(client_namespace).cmp(&other.rank(client_namespace)))
        });
        best.map(|(_, service)| service)
    }

    /// The service that answers to this full host name, exactly or by its wildcard.
    pub fn find(&self, host: &str, client_namespace: &str) -> Option<(ServiceId, &Arc<Service>)> {
        self.exact(host, client_namespace).or_else(|| {
            let mut covering = self.wildcards.iter().filter(|(pattern, _)| host::covers(pattern, host));
            covering.find_map(|(_, ids)| self.best(ids, client_namespace))
        })
    }

    /// Why nobody knows the service of this full host name, where the object that a client of this namespace would have it
    /// from is wrong.
    pub fn refused(&self, host: &str, client_namespace: &str) -> Option<&Arc<str>> {
        let seen = self.refused.iter().filter(|refused| refused.visibility.includes(client_namespace));
        let covering = seen.filter(|refused| host::covers(&refused.host, host));
        let refused = covering.max_by_key(|refused| host::specificity(&refused.host))?;
        let rank = |host: &str, namespace: &str| (host::specificity(host), namespace == client_namespace);
        let known = self.find(host, client_namespace).map(|(_, known)| rank(&known.host, &known.namespace));
        let is_hidden = known.is_some_and(|known| known > rank(&refused.host, &refused.namespace));
        (!is_hidden).then_some(&refused.answer)
    }

    /// The host that a full host name stands for: itself, or what it is an alias of. `None` where aliases lead nowhere.
    pub fn real(&self, host: &str, client_namespace: &str) -> Option<Arc<str>> {
        /// Nobody needs as many, and a circle has no end.
        const MOST_ALIASES: usize = 8;
        let mut host: Arc<str> = host.into();
        for _ in 0..MOST_ALIASES {
            let alias = self.exact(&host, client_namespace).and_then(|(_, service)| service.alias.clone());
            let Some(real) = alias else { return Some(host) };
            host = real;
        }
        None
    }

    /// An alias of this host, which is no service itself.
    pub fn alias_of(&self, host: &str, client_namespace: &str) -> Option<(ServiceId, &Arc<Service>)> {
        self.best(self.aliases.get(host)?, client_namespace)
    }

    /// Whether a service that clients of this namespace see answers to this full host name, or one of the cluster, whoever
    /// sees that, or would by this short one in its namespace.
    pub fn describes(&self, host: &str, client_namespace: &str) -> bool {
        let covering = self.wildcards.iter().filter(|(pattern, _)| host::covers(pattern, host)).map(|(_, ids)| ids);
        let mut ids = self.by_host.get(host).into_iter().chain(covering).flatten();
        let is_meant = |service: &Arc<Service>| {
            service.visibility.includes(client_namespace) || host::name_in_cluster(&service.host).is_some()
        };
        ids.any(|id| self.get(*id).is_some_and(is_meant))
            || self.all.iter().any(|service| *service.name == *host && is_meant(service))
            || self.refused.iter().any(|refused| {
                let is_seen = refused.visibility.includes(client_namespace);
                (is_seen || host::name_in_cluster(&refused.host).is_some()) && host::covers(&refused.host, host)
            })
    }

    fn best(&self, ids: &[ServiceId], client_namespace: &str) -> Option<(ServiceId, &Arc<Service>)> {
        ids.iter()
            .filter_map(|id| Some((*id, self.all.get(id.0)?)))
            .filter(|(_, service)| service.visibility.includes(client_namespace))
            .min_by(|(_, a), (_, b)| a.rank(client_namespace).cmp(&b.rank(client_namespace)))
    }

    /// The services that a workload is an endpoint of, if it serves any of their ports.
    pub(super) fn selecting<'s>(
        &'s self,
        workload: &'s Workload,
    ) -> impl Iterator<Item = (ServiceId, &'s Arc<Service>)> {
        self.of_labels(&workload.namespace, &workload.labels)
    }

    /// The service that a workload with these labels is an endpoint of; of several, the first by its host.
    pub fn own(&self, namespace: &Arc<str>, labels: &BTreeMap<String, String>) -> Option<ServiceId> {
        self.of_labels(namespace, labels).map(|(id, _)| id).min()
    }

    fn of_labels<'s>(
        &'s self,
        namespace: &'s Arc<str>,
        labels: &'s BTreeMap<String, String>,
    ) -> impl Iterator<Item = (ServiceId, &'s Arc<Service>)> {
        let keys = labels.iter().map(|(key, value)| (namespace.clone(), key.clone(), value.clone()));
        let ids = keys.filter_map(|key| self.by_selector.get(&key)).flatten();
        let services = ids.filter_map(|id| Some((*id, self.all.get(id.0)?)));
        services.filter(|(_, service)| service.selects(labels))
    }

    /// Whether a workload with these labels is an endpoint of any of these services, named by their objects.
    pub fn any_selects(&self, namespace: &str, names: &[String], labels: &BTreeMap<String, String>) -> bool {
        let own = self.all.iter().filter(|service| *service.namespace == *namespace);
        own.filter(|service| names.iter().any(|name| **name == *service.name)).any(|service| service.selects(labels))
    }

    /// The target ports that a bound port of a workload stands for, by the services that select the workload.
    pub fn targets_of(&self, namespace: &str, labels: &BTreeMap<String, String>, bound: u16) -> Targets {
        let own = self.all.iter().filter(|service| *service.namespace == *namespace && service.takes_registrations());
        let selecting: Vec<&Arc<Service>> = own.filter(|service| service.selects(labels)).collect();
        let all = || selecting.iter().flat_map(|service| &service.ports);
        if all().any(|port| port.target == Target::Number(bound)) {
            return Targets { sure: vec![bound], ..Targets::default() };
        }
        let only = selecting.iter().filter_map(|service| match service.ports.as_slice() {
            [ServicePort { target: Target::Number(number), .. }] => Some(*number),
            _ => None,
        });
        let only = only.collect();
        let is_open = all().any(|port| matches!(port.target, Target::Name(_)));
        match bound >= FIRST_EPHEMERAL {
            true => Targets { sure: only, is_open, ..Targets::default() },
            false => Targets { doubtful: only, is_open, ..Targets::default() },
        }
    }

    /// The service that a bound port of a workload serves: one whose target port it is, or else any that selects the workload,
    /// the first by its host.
    pub fn served_by(&self, namespace: &str, labels: &BTreeMap<String, String>, bound: u16) -> Option<&Service> {
        let own = self.all.iter().map(|service| &**service).filter(|service| *service.namespace == *namespace);
        let mut selecting = own.filter(|service| service.takes_registrations() && service.selects(labels));
        let first = selecting.next()?;
        let is_target = |service: &Service| service.ports.iter().any(|port| port.target == Target::Number(bound));
        if is_target(first) { Some(first) } else { selecting.find(|service| is_target(service)).or(Some(first)) }
    }

    /// The numbers that a bound port of a workload has: its own, and those of the ports of services whose target it is, or of all
    /// that select the workload where it is the target of none.
    pub fn numbers_of(&self, namespace: &str, labels: &BTreeMap<String, String>, bound: u16) -> Vec<u16> {
        let own = self.all.iter().filter(|service| *service.namespace == *namespace);
        let selecting = own.filter(|service| service.takes_registrations() && service.selects(labels));
        let ports: Vec<_> = selecting.flat_map(|service| &service.ports).collect();
        let is_target = ports.iter().any(|port| port.target == Target::Number(bound));
        let meant = ports.iter().filter(|port| !is_target || port.target == Target::Number(bound));
        [bound].into_iter().chain(meant.map(|port| port.number)).collect()
    }

    /// At which ports of its own a workload serves, and what it speaks there: those that services which select it name, and those
    /// that are written down for its address. `named` are ports by the names that it has for them.
    pub fn served_ports(
        &self,
        namespace: &Arc<str>,
        group: Option<&Arc<str>>,
        own: &BTreeMap<String, String>,
        named: &[(String, u16)],
        ip: IpAddr,
    ) -> ServedPorts {
        let labels = self.labels_in_group(namespace, group, own);
        let group = group.and_then(|group| self.groups.get(&(namespace.clone(), group.clone())));
        let of_group = group.into_iter().flat_map(|group| &group.spec.template).flat_map(|template| &template.ports);
        let named: BTreeMap<&str, u16> = of_group
            .map(|(name, port)| (name.as_str(), port.0))
            .chain(named.iter().map(|(n, port)| (n.as_str(), *port)))
            .collect();
        let mut served = ServedPorts::default();
        for (id, service) in self.iter().filter(|(_, service)| service.namespace == *namespace) {
            let is_selected = service.takes_registrations() && service.selects(&labels);
            let written = self.written(id).find(|written| written.ip() == Some(ip));
            for port in &service.ports {
                let target = match &port.target {
                    Target::Number(number) => Some(*number),
                    Target::Name(name) => named.get(&**name).copied(),
                };
                if is_selected && let Some(target) = target {
                    served.registered.entry(target).or_insert(port.protocol);
                } else if is_selected {
                    served.unknown.push((service.clone(), port.clone()));
                }
                if let Some(target) = written.and_then(|written| written.port_for(port)) {
                    served.written.entry(target).or_insert(port.protocol);
                }
            }
        }
        served
    }

    /// Hosts of which nobody knows how they are called, for their objects are wrong, as a client of this namespace sees them.
    pub fn refused_hosts(&self, client_namespace: &str) -> impl Iterator<Item = &str> {
        let seen = self.refused.iter().filter(move |refused| refused.visibility.includes(client_namespace));
        seen.map(|refused| refused.host.as_str())
    }

    /// The labels of a workload with those that its group adds to them.
    pub fn labels_in_group(
        &self,
        namespace: &Arc<str>,
        group: Option<&Arc<str>>,
        own: &BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        let group = group.and_then(|group| self.groups.get(&(namespace.clone(), group.clone())));
        group.map_or_else(|| own.clone(), |group| workload::labels_in_group(&group.spec, own))
    }

    /// The names of all groups, each with its namespace.
    pub fn groups(&self) -> impl Iterator<Item = (&str, &str)> {
        self.groups.keys().map(|(namespace, name)| (&**namespace, &**name))
    }

    /// Why nobody knows the labels of the members of a group, where its object is wrong.
    pub fn refused_group(&self, namespace: &Arc<str>, group: Option<&Arc<str>>) -> Option<&Arc<str>> {
        self.refused_groups.get(&(namespace.clone(), group?.clone()))
    }

    /// The service account that the members of a group have to have, where it says: inside, where there is such a group.
    pub fn account_of_group(&self, namespace: &Arc<str>, group: &Arc<str>) -> Option<Option<&str>> {
        let group = self.groups.get(&(namespace.clone(), group.clone()))?;
        let account = group.spec.template.as_ref().map(|template| template.service_account.as_str());
        Some(account.filter(|account| !account.is_empty()))
    }

    /// How the members of a group are checked, if they are.
    pub fn probe_of_group(&self, namespace: &Arc<str>, group: &Arc<str>) -> Option<Probe> {
        Probe::of(&self.groups.get(&(namespace.clone(), group.clone()))?.spec)
    }

    /// The groups whose members are checked, and how.
    pub fn probes(&self) -> impl Iterator<Item = (&Meta, Probe)> {
        self.groups.values().filter_map(|group| Some((&group.meta, Probe::of(&group.spec)?)))
    }

    /// Whether a workload has to be well by the probe of its group, and is not known to be.
    pub fn is_unwell(&self, workload: &Arc<Workload>) -> bool {
        self.with_group(workload).is_unwell
    }

    /// Whether the group of a workload has a probe, and somebody can ask it that.
    pub fn is_asked(&self, workload: &Workload) -> bool {
        let probe = workload.group.as_ref().and_then(|group| self.probe_of_group(&workload.namespace, group));
        probe.is_some_and(|probe| probe.is_for(workload.class))
    }

    /// The hosts of the services that select a workload with what its group adds to it, whether or not it gets their requests.
    pub fn hosts_selecting(&self, workload: &Arc<Workload>) -> BTreeSet<Arc<str>> {
        let placed = self.with_group(workload);
        let selecting = self.selecting(&placed);
        selecting.map(|(_, service)| service.host.clone()).collect()
    }

    /// Whether the group of a workload has a probe, and nobody can ask it that.
    pub fn is_unasked(&self, workload: &Workload) -> bool {
        let group = workload.group.as_ref().map(|group| (workload.namespace.clone(), group.clone()));
        let group = group.and_then(|key| self.groups.get(&key)).filter(|group| group.spec.probe.is_some());
        group.is_some_and(|group| !Probe::of(&group.spec).is_some_and(|probe| probe.is_for(workload.class)))
    }

    /// The group that has a service account or a probe for the members of a service, beside which a workload without a group is an
    /// endpoint of that service: nobody compares it with them. Of several, the first by its name.
    pub fn group_passed_by(&self, workload: &Workload) -> Option<&Meta> {
        if workload.group.is_some() {
            return None;
        }
        let asks = |group: &WorkloadGroup| {
            let template = group.template.as_ref();
            group.probe.is_some() || template.is_some_and(|template| !template.service_account.is_empty())
        };
        let asking = self.groups.values().filter(|group| group.meta.namespace == workload.namespace);
        let asking: Vec<_> = asking
            .filter(|group| asks(&group.spec))
            .map(|group| (&group.meta, workload::labels_in_group(&group.spec, &BTreeMap::new())))
            .collect();
        if asking.is_empty() {
            return None;
        }
        let own: Vec<&Arc<Service>> = self.selecting(workload).map(|(_, service)| service).collect();
        let passed = asking.into_iter().filter(|(_, labels)| own.iter().any(|service| service.selects(labels)));
        passed.map(|(meta, _)| meta).min_by(|a, b| a.name.cmp(&b.name))
    }

    /// The endpoints of a service that are written down, in its own object or in WorkloadEntries.
    pub fn written(&self, id: ServiceId) -> impl Iterator<Item = &WrittenEndpoint> {
        let own = self.all.get(id.0).into_iter().flat_map(|service| &service.endpoints);
        own.chain(self.selected.get(id.0).into_iter().flatten())
    }

    /// A workload with what its group adds to it.
    pub(crate) fn with_group(&self, workload: &Arc<Workload>) -> Arc<Workload> {
        let group =
            workload.group.as_ref().and_then(|group| self.groups.get(&(workload.namespace.clone(), group.clone())));
        match group {
            Some(group) => Arc::new(workload.with_group(&group.spec)),
            None => workload.clone(),
        }
    }
}

pub(super) fn first_label(service: &Service) -> Option<NamespacedLabel> {
    let selector = service.selector.as_ref().filter(|_| service.takes_registrations())?;
    let (key, value) = selector.iter().next()?;
    Some((service.namespace.clone(), key.clone(), value.clone()))
}

fn refused_hosts(object: &Refused) -> Vec<RefusedHost> {
    let Governs::Hosts { hosts, export_to, .. } = &object.governs else { return Vec::new() };
    let namespace = &object.meta.namespace;
    let full = |host: &String| match object.meta.kind {
        ObjectKind::Service => Some(host::service_host(host, namespace)),
        ObjectKind::ServiceEntry => Some(host::plain(host)),
        _ => None,
    };
    let hosts = hosts.iter().filter_map(full).map(|host| RefusedHost {
        host,
        namespace: namespace.clone(),
        visibility: Visibility::new(export_to.iter().map(String::as_str), namespace),
        answer: object.answer(),
    });
    hosts.collect()
}

type Entries<'a> = HashMap<&'a str, Vec<&'a Arc<Object<WorkloadEntry>>>>;

fn entries_by_namespace(objects: &Objects) -> Entries<'_> {
    let mut entries: Entries<'_> = HashMap::new();
    for object in &objects.workload_entries {
        entries.entry(&object.meta.namespace).or_default().push(object);
    }
    for entries in entries.values_mut() {
        entries.sort_by(|a, b| a.meta.order().cmp(&b.meta.order()));
    }
    entries
}

fn selected(service: &Service, entries: &Entries<'_>, domain: &TrustDomain) -> Vec<WrittenEndpoint> {
    let Some(selector) = &service.selector else {
        return Vec::new();
    };
    let entries = entries.get(&*service.namespace).into_iter().flatten();
    let endpoints = entries.filter_map(|object| {
        // The object's own labels win over those of its specification (Istio: conversion.go).
        let mut labels = object.spec.labels.clone();
        labels.extend(object.meta.labels.clone());
        if !service::is_subset(selector, &labels) {
            return None;
        }
        WrittenEndpoint::new(&object.spec, &object.meta, labels, service.is_internal, domain)
    });
    endpoints.collect()
}
