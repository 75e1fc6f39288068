//! What a gateway listens for, by the Gateways that select it, Istio's and Gateway API's, merged as Istio merges them
//! (pilot/pkg/model/gateway.go), and which rules are in force there.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use super::Policy;
use super::compile::{self, Surroundings};
use super::connections::{self, Addressed, Connections};
use super::gateway_api::{KubernetesServed, internal_name};
use super::route::{Action, ClusterKey, Condition, Faults, HeaderChanges, Route, ServerName, Written};
use super::view::View;
use super::virtual_services::Entry;
use super::workloads::is_gateway;
use crate::config::decode::Text;
use crate::config::file::{self, Age, Listens, Meta, Object, Objects, Workloads};
use crate::config::gateway_api::GATEWAY_NAME;
use crate::config::istio::gateway::{Gateway, lets_in, split_host};
use crate::config::support::{ObjectKind, is_foreign_to_gateways};
use crate::registry::host::{Hosts, covers, in_namespace, plain, specificity};
use crate::registry::service::{Target, is_subset};
use crate::registry::{Discovery, Service, Services};

// How connections are taken means what is written.
pub use crate::config::istio::gateway::{Server, ServerTls, TlsMode, TlsVersion};

/// All Gateways, in the order in which they compete.
#[derive(Debug, Default)]
pub struct Gateways(Vec<Selecting>);

/// A Gateway, and whom it is for.
#[derive(Debug)]
struct Selecting {
    gateway: Arc<Object<Gateway>>,
    /// Of Gateway API: the Gateway that it is a part of, or all of.
    of: Option<Arc<Meta>>,
    /// Of Gateway API: the Services whose workloads are meant.
    services: Vec<Arc<str>>,
    /// What is answered where it listens, since it is wrong.
    closed: Option<Arc<str>>,
}

/// Where a gateway listens.
pub type Address = (IpAddr, u16);

/// What a gateway listens for at an address.
#[derive(Clone, Debug)]
pub struct Listening {
    /// What is spoken.
    pub speaks: Speaks,
    /// What it has to do: of bytes, exactly one.
    pub servers: Vec<ServerAt>,
}

/// What is spoken at an address: servers that speak something else cannot share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP in plaintext: all servers have their hosts there.
    Http,
    /// TLS: servers are told apart by the name that a client asks for.
    Tls,
    /// Anything, which nothing tells apart.
    Bytes,
}

/// How a gateway takes connections of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// By nothing but the mesh's mutual TLS.
    MutualTls,
    /// In another way.
    Otherwise {
        /// Whether a Gateway of the gateway's own namespace says so.
        is_own: bool,
    },
}

/// A server of a Gateway.
#[derive(Clone, Debug)]
pub struct ServerAt {
    /// The object.
    pub gateway: Arc<Object<Gateway>>,
    /// Its place in it.
    pub index: usize,
    /// The port that it is known by, which is the one of a service where that leads to the gateway.
    pub port: u16,
    /// What is answered there, and to whom it is said, since the object is wrong: it serves nothing, and nobody else has its hosts.
    pub closed: Option<Arc<str>>,
}

/// Why a server is left out of a gateway.
#[derive(Clone, Debug)]
pub struct LeftOut {
    /// Which one.
    pub server: ServerAt,
    /// Why.
    pub why: String,
}

/// The hosts of all servers at an address; none where no server keeps its hosts for itself. A host is that server's which has it most
/// closely. Servers of Istio's Gateways alone have hosts in common, as Istio has it.
#[derive(Debug, Default)]
pub struct Owners(Vec<Owned>);

/// The hosts of servers of a Gateway, each for the objects of some namespaces.
pub(crate) struct Allowed<'a> {
    /// The namespace of the Gateway.
    own: &'a str,
    /// Of each host, which namespaces it is for, as it is written.
    namespaces: Vec<&'a str>,
    hosts: Hosts,
}

/// A host of a server.
#[derive(Debug)]
struct Owned {
    /// As it is asked for, in lower case.
    host: String,
    /// Whether it is nobody else's; see [`ServerAt::keeps_its_hosts`].
    is_kept: bool,
}

/// A host as it is served.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    /// The host, possibly with a wildcard.
    pub host: String,
    /// Its routes; none where all of its requests are redirected.
    pub routes: Vec<Route>,
    /// Whether requests are redirected to `https`.
    pub redirects: bool,
}

impl ServerAt {
    /// What is written.
    pub fn server(&self) -> Option<&Server> {
        self.gateway.spec.servers.get(self.index)
    }

    /// Whether it takes nothing but the mesh's mutual TLS.
    fn asks_for_mutual_tls(&self) -> bool {
        self.server().is_some_and(|server| {
            server.port.is_tls() && server.tls.as_ref().is_some_and(|tls| tls.mode == TlsMode::IstioMutual)
        })
    }

    /// Whether it is a listener of Gateway API.
    pub fn is_listener(&self) -> bool {
        matches!(self.gateway.meta.kind, ObjectKind::KubernetesGateway | ObjectKind::ListenerSet)
    }

    /// What its Gateway is called; of Gateway API, each listener is one of its own.
    pub fn gateway_name(&self) -> Cow<'_, str> {
        let own = &*self.gateway.meta.name;
        let listener = self.server().filter(|_| self.is_listener());
        listener.map_or(Cow::Borrowed(own), |server| internal_name(&self.gateway.meta, &server.name).into())
    }

    /// Whether its hosts are nobody else's: it is a listener of Gateway API, or it is wrong.
    fn keeps_its_hosts(&self) -> bool {
        self.is_listener() || self.closed.is_some()
    }

    /// `NAMESPACE/NAME` of its Gateway.
    pub fn name(&self) -> String {
        format!("{}/{}", self.gateway.meta.namespace, self.gateway_name())
    }

    /// The namespace and the name of a Secret that it names: those of Gateway API say both, and Istio's are of the namespace of
    /// the gateway, its `own`.
    pub fn secret<'n>(&self, own: &'n str, written: &'n str) -> (&'n str, &'n str) {
        let in_full = written.split_once('/').filter(|_| self.is_listener());
        in_full.unwrap_or((own, written))
    }

    /// Its hosts, as they are asked for, in lower case.
    pub fn hosts(&self) -> Vec<String> {
        let hosts = self.server().into_iter().flat_map(|server| &server.hosts);
        let of = |host: &Text| match self.is_listener() {
            // A name without a dot is one that clients ask for, too.
            true => plain(host),
            false => in_namespace(split_host(host).1, &self.gateway.meta.namespace),
        };
        hosts.map(of).collect()
    }
}

impl<'a> Allowed<'a> {
    /// Those of these servers of a Gateway of the namespace `own`.
    pub(crate) fn of(servers: &'a [Server], own: &'a str) -> Allowed<'a> {
        let written = || servers.iter().flat_map(|server| &server.hosts).map(|host| split_host(host));
        let hosts = written().map(|(_, host)| in_namespace(host, own)).collect();
        Allowed { own, namespaces: written().map(|(namespace, _)| namespace).collect(), hosts }
    }

    /// Of these hosts of an object of a namespace, those that it lets in: of a host and what covers it, the narrower one. In the order
    /// of its own.
    pub(crate) fn shared(&self, hosts: &[String], namespace: &str) -> Vec<String> {
        let lets_it_in = |place: usize| self.namespaces.get(place).is_some_and(|of| lets_in(of, self.own, namespace));
        let of_each = hosts.iter().flat_map(|host| self.hosts.shared(host));
        let mut found: Vec<(usize, &str)> = of_each.filter(|(place, _)| lets_it_in(*place)).collect();
        // Those of one place stay in the order of the object's.
        found.sort_by_key(|(place, _)| *place);
        let mut seen = HashSet::new();
        found.into_iter().filter(|(_, host)| seen.insert(*host)).map(|(_, host)| host.to_owned()).collect()
    }
}

impl Entry {
    /// Whether it is for a gateway.
    fn is_at(&self, gateway: &str) -> bool {
        self.gateways.iter().any(|name| name == gateway || name == "*")
    }
}

impl Gateways {
    /// Those of these objects, and of Gateway API.
    pub fn new(objects: &Objects, kubernetes: &[KubernetesServed]) -> Gateways {
        let of_istio = |(gateway, closed): (&Arc<Object<Gateway>>, Option<Arc<str>>)| Selecting {
            gateway: gateway.clone(),
            of: None,
            services: Vec::new(),
            closed,
        };
        let others = kubernetes.iter().map(|one| Selecting {
            gateway: one.gateway.clone(),
            of: Some(one.of.clone()),
            services: one.services.clone(),
            closed: one.closed.clone(),
        });
        let wrong = objects.refused.iter().filter_map(|object| match &object.closes.as_ref()?.listens {
            Listens::Servers(gateway) => Some((gateway, Some(object.answer()))),
            _ => None,
        });
        let istios = objects.gateways.iter().map(|gateway| (gateway, None)).chain(wrong);
        let mut all: Vec<Selecting> = istios.map(of_istio).chain(others).collect();
        // One that says nothing of its age takes no port away from others that do. A ListenerSet is as old as it is itself, and no older
        // than its Gateway: behind that, they stay in their own order. Of the same age by name, then by namespace, as Istio has it.
        all.sort_by(|a, b| {
            let (of_a, of_b) = (a.whole(), b.whole());
            (a.age(), &of_a.name, &of_a.namespace).cmp(&(b.age(), &of_b.name, &of_b.namespace))
        });
        Gateways(all)
    }

    /// Those of Istio, in the order in which they compete.
    pub fn of_istio(&self) -> impl Iterator<Item = &Arc<Object<Gateway>>> {
        self.in_force().filter(|gateway| gateway.meta.kind == ObjectKind::Gateway)
    }

    /// Those that are right, in the order in which they compete.
    pub fn in_force(&self) -> impl Iterator<Item = &Arc<Object<Gateway>>> {
        self.0.iter().filter(|selecting| selecting.closed.is_none()).map(|selecting| &selecting.gateway)
    }

    /// The Gateway that makes a workload a gateway: it selects it by its labels, or, of Gateway API and where no labels are known, is
    /// called as the workload is. One that selects everybody says nothing of anybody.
    pub fn selecting(
        &self,
        (namespace, name): (&str, &str),
        labels: &BTreeMap<String, String>,
        services: &Services,
    ) -> Option<&Meta> {
        let is_it = |one: &&Selecting| match one.gateway.meta.kind {
            ObjectKind::Gateway => !one.gateway.spec.selector.is_empty() && one.selects(namespace, labels, services),
            _ => {
                let whole = one.whole();
                let is_called_so = *whole.namespace == *namespace && *whole.name == *name;
                (labels.is_empty() && is_called_so) || one.selects(namespace, labels, services)
            }
        };
        self.0.iter().find(is_it).map(Selecting::whole)
    }

    /// The workload that a Gateway of this name is, as far as that is said: that of a Service which leads to it, or else what the Gateway
    /// says of it itself.
    pub(crate) fn workload_of(
        &self,
        (namespace, name): (&str, &str),
        services: &Services,
    ) -> Option<(Arc<str>, BTreeMap<String, String>)> {
        let mut named = self.0.iter().map(|one| (one, one.whole()));
        let (one, whole) = named.find(|(_, whole)| *whole.namespace == *namespace && *whole.name == *name)?;
        let selector = &one.gateway.spec.selector;
        let leading = services.iter().filter_map(|(_, service)| Some((&service.namespace, service.selector.as_ref()?)));
        let mut leading = leading.filter(|(namespace, labels)| one.selects(namespace, labels, services));
        let found = leading.next().filter(|_| !selector.is_empty());
        let (namespace, labels) = found.unwrap_or((&whole.namespace, selector));
        Some((namespace.clone(), labels.clone()))
    }

    /// Those whose gateways are for certain among these workloads, which an object of the namespace `own` is for.
    pub(crate) fn among<'a>(
        &'a self,
        workloads: &'a Workloads,
        (own, root): (&'a str, &'a str),
        services: &'a Services,
    ) -> impl Iterator<Item = &'a Arc<Object<Gateway>>> {
        let among = move |one: &&Selecting| match one.gateway.meta.kind {
            ObjectKind::Gateway => is_among(&one.gateway.spec.selector, workloads, (own, root), services),
            _ => is_kubernetes_among(one.whole(), workloads, (own, root)),
        };
        self.0.iter().filter(among).map(|one| &one.gateway)
    }

    /// Who may be a gateway, as far as Gateways say: a namespace and labels for each whom they select, once.
    pub fn described(&self, services: &Services) -> Vec<(Arc<str>, BTreeMap<String, String>)> {
        let of = |one: &Selecting| {
            let Meta { namespace, .. } = one.whole();
            let own = (namespace.clone(), one.gateway.spec.selector.clone());
            let named = one.services.iter().filter_map(|host| services.exact(host, namespace));
            let named = named.filter_map(|(_, service)| Some((service.namespace.clone(), service.selector.clone()?)));
            let own = one.services.is_empty().then_some(own);
            own.into_iter().chain(named).collect::<Vec<_>>()
        };
        let mut seen = BTreeSet::new();
        self.0.iter().flat_map(of).filter(|one| seen.insert(one.clone())).collect()
    }

    /// What the gateway with these labels listens for, and what is left out of that. The Gateways that select it may be of any
    /// namespace.
    pub fn of(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        ports: &[(String, u16)],
        services: &Services,
    ) -> (BTreeMap<Address, Listening>, Vec<LeftOut>) {
        let (mut listening, mut left_out) = (BTreeMap::new(), Vec::new());
        let mut hosts: BTreeMap<Address, BTreeMap<String, bool>> = BTreeMap::new();
        // Most servers have a port in common.
        let mut targets: BTreeMap<u16, u16> = BTreeMap::new();
        let selecting = self.0.iter().filter(|one| one.selects(namespace, labels, services));
        for Selecting { gateway, closed, .. } in selecting {
            for (index, server) in gateway.spec.servers.iter().enumerate() {
                let port = server.port.number.0;
                let served = ServerAt { gateway: gateway.clone(), index, port, closed: closed.clone() };
                let ip = server.bind.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
                let own = targets.entry(port).or_insert_with(|| target(namespace, labels, ports, services, port));
                let address = (ip, *own);
                if let Err(why) = add(&mut listening, hosts.entry(address).or_default(), address, &served)
                    && served.closed.is_none()
                {
                    left_out.push(LeftOut { server: served, why });
                }
            }
        }
        (listening, left_out)
    }

    /// How gateways with these labels take connections of the mesh at this port of a service that leads to them, by the servers that
    /// are in force there; `None` where there is none. Those of their own namespace decide. Of others, one whose servers all ask for
    /// mutual TLS is enough: nobody has what is for another's server sent in plaintext.
    pub fn taken_at(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        services: &Services,
        port: u16,
    ) -> Option<Taken> {
        let (listening, _) = self.of(namespace, labels, &[], services);
        let there = listening.values().flat_map(|at| &at.servers).filter(|served| served.port == port);
        // By namespace, whether all of its servers ask for it.
        let mut ask: BTreeMap<&str, bool> = BTreeMap::new();
        for served in there {
            // One that is wrong has nothing sent in plaintext.
            let asks = served.closed.is_some() || served.asks_for_mutual_tls();
            *ask.entry(&served.gateway.meta.namespace).or_insert(true) &= asks;
        }
        if ask.is_empty() {
            return None;
        }
        let own = ask.get(namespace).copied();
        let is_mutual = own.unwrap_or_else(|| ask.values().any(|asks| *asks));
        Some(if is_mutual { Taken::MutualTls } else { Taken::Otherwise { is_own: own.is_some() } })
    }

    /// Whether whom a service selects are gateways: a Gateway selects them by what the service says of them.
    pub fn select(&self, namespace: &str, selector: &BTreeMap<String, String>, services: &Services) -> bool {
        self.0.iter().any(|one| one.selects(namespace, selector, services))
    }
}

impl Selecting {
    /// The Gateway that it is a part of, or all of.
    fn whole(&self) -> &Meta {
        self.of.as_deref().unwrap_or(&self.gateway.meta)
    }

    /// [`Meta::age`]; a part is no older than the whole.
    fn age(&self) -> Age<'_> {
        self.whole().age().max(self.gateway.meta.age())
    }

    /// Whether it is for the gateway with these labels: those of Gateway API are for their own namespace, or for the workloads of
    /// the Services that they name.
    fn selects(&self, namespace: &str, labels: &BTreeMap<String, String>, services: &Services) -> bool {
        let Gateway { selector, .. } = &self.gateway.spec;
        if self.gateway.meta.kind == ObjectKind::Gateway {
            return selector.is_empty() || is_subset(selector, labels);
        }
        let Meta { namespace: own, name, .. } = self.whole();
        is_gateway((own, name), &self.services, (namespace, labels), services)
    }
}

impl Owners {
    /// Those of these servers.
    pub fn of(servers: &[ServerAt]) -> Owners {
        if !servers.iter().any(ServerAt::keeps_its_hosts) {
            return Owners::default();
        }
        let of = |served: &ServerAt| {
            let is_kept = served.keeps_its_hosts();
            served.hosts().into_iter().map(move |host| Owned { host, is_kept })
        };
        Owners(servers.iter().flat_map(of).collect())
    }

    /// Whether a host that a server with these hosts has is another's: a listener gives way to every server that has it more closely,
    /// another server to those that keep their hosts.
    fn is_anothers(&self, own: &[String], is_listener: bool, host: &str) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let own = own.iter().filter(|own| covers(own, host)).max_by_key(|own| specificity(own));
        own.is_some_and(|own| {
            let mut others = self.0.iter().filter(|other| is_listener || other.is_kept);
            others.any(|other| is_closer(&other.host, own, host))
        })
    }

    /// Whether a server with a wider host, which it keeps, would have the requests for this one.
    fn is_below_a_kept_host(&self, host: &str) -> bool {
        self.0.iter().any(|other| other.is_kept && other.host != host && covers(&other.host, host))
    }

    /// The names of connections that are left to a server; no names are all names. `None` where others have all of them.
    fn left(&self, served: &ServerAt, mut names: Vec<String>) -> Option<Vec<String>> {
        let (own, are_all) = (served.hosts(), names.is_empty());
        names.retain(|name| !self.is_anothers(&own, served.is_listener(), name));
        (are_all || !names.is_empty()).then_some(names)
    }
}

/// Whether gateways with these labels are for certain among the workloads that an object of the namespace `own` is for. Where they
/// are, the Services say that lead to them, if any does.
fn is_among(
    selector: &BTreeMap<String, String>,
    workloads: &Workloads,
    (own, root): (&str, &str),
    services: &Services,
) -> bool {
    let leads_there = |service: &Service| {
        !selector.is_empty() && service.selector.as_ref().is_some_and(|labels| is_subset(selector, labels))
    };
    let mut leading = services.iter().map(|(_, service)| service).filter(|service| leads_there(service)).peekable();
    let is_known = leading.peek().is_some();
    let is_here = own == root || leading.any(|service| *service.namespace == *own);
    match workloads {
        Workloads::Labelled(wanted) if wanted.is_empty() => is_here,
        Workloads::Labelled(wanted) => (is_here || !is_known) && is_subset(wanted, selector),
        Workloads::OfTargets(targets) => targets.iter().any(|target| match target {
            file::Target::Service(name) => {
                let service = services.exact(&in_namespace(name, own), own);
                service.is_some_and(|(_, service)| *service.namespace == *own && leads_there(service))
            }
            file::Target::Gateway(_) => false,
        }),
    }
}

/// The same of a Gateway of Gateway API.
fn is_kubernetes_among(gateway: &Meta, workloads: &Workloads, (own, root): (&str, &str)) -> bool {
    let is_here = own == root || *gateway.namespace == *own;
    match workloads {
        Workloads::Labelled(wanted) => {
            let is_its_name = |(key, value): (&String, &String)| key == GATEWAY_NAME && **value == *gateway.name;
            is_here && wanted.iter().all(is_its_name)
        }
        Workloads::OfTargets(targets) => targets.iter().any(|target| match target {
            file::Target::Gateway(meant) => *meant.namespace == *gateway.namespace && *meant.name == *gateway.name,
            file::Target::Service(_) => false,
        }),
    }
}

/// Whether of two hosts that both have a third one, `other` has it more closely than `own`.
pub(super) fn is_closer(other: &str, own: &str, host: &str) -> bool {
    other != own && covers(own, other) && covers(other, host)
}

/// The port that a gateway listens at for one that a Gateway names: that to which a service leads which selects the gateway, or
/// else that port itself.
fn target(
    namespace: &str,
    labels: &BTreeMap<String, String>,
    named: &[(String, u16)],
    services: &Services,
    port: u16,
) -> u16 {
    let own = services.iter().map(|(_, service)| service);
    let mut own = own.filter(|service| *service.namespace == *namespace && service.selects(labels));
    let target = own.find_map(|service| service.port(port)).map(|port| port.target.clone());
    match target {
        Some(Target::Number(number)) => number,
        Some(Target::Name(name)) => named.iter().find(|(own, _)| **own == *name).map_or(port, |(_, number)| *number),
        None => port,
    }
}

/// Adds a server to those at an address, or says why it cannot be there. `hosts` are those that others have there, each with whether
/// a listener of Gateway API has it.
fn add(
    listening: &mut BTreeMap<Address, Listening>,
    hosts: &mut BTreeMap<String, bool>,
    address: Address,
    served: &ServerAt,
) -> Result<(), String> {
    let Some(server) = served.server() else { return Ok(()) };
    if is_foreign_to_gateways(&server.port.protocol) {
        return Err(format!("{} is not served", server.port.protocol.value));
    }
    let speaks = match &server.port {
        port if port.is_http() => Speaks::Http,
        port if port.is_tls() => Speaks::Tls,
        _ => Speaks::Bytes,
    };
    let at = listening.entry(address).or_insert_with(|| Listening { speaks, servers: Vec::new() });
    if at.speaks != speaks || (speaks == Speaks::Bytes && !at.servers.is_empty()) {
        let first = at.servers.first().map(ServerAt::name).unwrap_or_default();
        return Err(format!(
            "port {} is taken by Gateway {first}, and nothing tells their connections apart",
            address.1
        ));
    }
    let (own, is_listener) = (served.hosts(), served.is_listener());
    match speaks {
        Speaks::Tls => {
            if let Some(host) = own.iter().find(|host| hosts.contains_key(*host)) {
                return Err(format!(
                    "another server has host {host} at port {}, and its certificate is shown",
                    address.1
                ));
            }
        }
        // Istio's have hosts in common, and so have listeners.
        Speaks::Http => {
            if let Some(host) = own.iter().find(|host| hosts.get(*host) == Some(&!is_listener)) {
                let other = if is_listener { "a Gateway of Istio's" } else { "a listener of Gateway API" };
                return Err(format!("{other} has host {host} at port {}, and goes first", address.1));
            }
        }
        Speaks::Bytes => {}
    }
    hosts.extend(own.into_iter().map(|host| (host, is_listener)));
    at.servers.push(served.clone());
    Ok(())
}

impl Policy {
    /// A gateway, reduced to what can change what it is told: no Sidecar is for it, and it has no calls of its own that limits and
    /// filters could be for.
    pub fn gateway_view(&self, namespace: &Arc<str>, labels: &BTreeMap<String, String>) -> View {
        let of_workload = self.view(namespace, labels);
        View { is_gateway: true, sidecar: None, limits: Arc::default(), filters: Arc::default(), ..of_workload }
    }

    /// The rules that are for a server of a gateway, in their order, and for which hosts.
    fn at_server<'a>(&'a self, served: &'a ServerAt, view: &'a View) -> impl Iterator<Item = (&'a Entry, Vec<String>)> {
        let name = served.name();
        let entries = self.virtual_services.at_gateways(&served.hosts()).into_iter();
        let entries = entries.filter(move |entry| entry.is_at(&name) && entry.visibility.includes(&view.namespace));
        let allowed =
            Allowed::of(served.server().map(std::slice::from_ref).unwrap_or_default(), &served.gateway.meta.namespace);
        let shared = move |entry: &'a Entry| (entry, allowed.shared(&entry.hosts, &entry.meta.namespace));
        entries.map(shared).filter(|(_, hosts)| !hosts.is_empty())
    }

    /// The hosts of these servers, which are one table of routes, in order, but for those of others at their address.
    pub fn virtual_hosts(&self, servers: &[ServerAt], owners: &Owners, view: &View) -> Vec<VirtualHost> {
        let mut hosts: BTreeMap<String, Host> = BTreeMap::new();
        for served in servers.iter().filter(|served| served.closed.is_none()) {
            let (name, own_hosts, is_listener) = (served.name(), served.hosts(), served.is_listener());
            let is_own = |host: &String| !owners.is_anothers(&own_hosts, is_listener, host);
            if is_listener {
                // A host that no route has is nobody else's either.
                let own = own_hosts.iter().cloned().map(|host| (host, Vec::new()));
                let of_routes = self.gateway_routes.at_listener(&name, served.port).into_iter();
                for (host, routes) in own.chain(of_routes.filter(|(host, _)| is_own(host))) {
                    hosts.entry(host).or_default().routes.extend(self.finished(routes, view));
                }
                continue;
            }
            let redirects =
                served.server().and_then(|server| server.tls.as_ref()).is_some_and(|tls| tls.https_redirect);
            for (entry, shared) in self.at_server(served, view) {
                let service_of = |host: &str| self.ports_of(host, view);
                let around = Surroundings {
                    service_of: &service_of,
                    default_retry: self.mesh.retry.as_ref(),
                    gateway: Some(&name),
                };
                let routes = compile::routes(&entry.rules, view, served.port, &around);
                if routes.is_empty() {
                    continue;
                }
                let routes = self.finished(routes, view);
                for host in shared.into_iter().filter(&is_own) {
                    let of = hosts.entry(host).or_default();
                    of.redirects |= redirects;
                    // A Gateway may have a host twice.
                    if of.rules.insert((name.clone(), entry.meta.id())) {
                        of.is_refused |= entry.object.is_none();
                        of.routes.extend(routes.iter().cloned());
                    }
                }
            }
            for host in own_hosts.iter().filter(|host| redirects || owners.is_below_a_kept_host(host)) {
                hosts.entry(host.clone()).or_default().redirects |= redirects;
            }
        }
        for served in servers {
            let Some(reason) = &served.closed else { continue };
            // Nobody may take all hosts away from others by a typo.
            let own = served.hosts().into_iter().filter(|host| host != "*" || !hosts.contains_key(host));
            for host in own.collect::<Vec<String>>() {
                let of = hosts.entry(host).or_default();
                of.is_refused = true;
                of.routes.push(closed_route(served, reason));
            }
        }
        let finished =
            hosts.into_iter().map(|(host, of)| VirtualHost { host, redirects: of.redirects, routes: of.in_order() });
        finished.collect()
    }

    /// How long connections to these may be idle.
    fn idle_timeout(&self, targets: &[(ClusterKey, u32)], view: &View) -> Option<Duration> {
        let first = targets.first().and_then(|(key, _)| self.cluster(key.clone(), view));
        first.and_then(|seen| seen.traffic.connection_pool.tcp_idle_timeout)
    }

    /// The names by which a server passes on connections of mutual TLS, where it does (`AUTO_PASSTHROUGH`): those of the services of the
    /// mesh that the gateway sees and its hosts let in, with their subsets.
    pub fn passed_on_at(&self, served: &ServerAt, view: &View) -> Vec<String> {
        let is_passed_on =
            |server: &&Server| server.tls.as_ref().is_some_and(|tls| tls.mode == TlsMode::AutoPassthrough);
        let Some(server) = served.server().filter(is_passed_on) else { return Vec::new() };
        let own = &served.gateway.meta.namespace;
        let is_let_in = |host: &str, of: &str| {
            server.hosts.iter().any(|written| {
                let (namespace, allowed) = split_host(written);
                lets_in(namespace, own, of) && covers(&in_namespace(allowed, own), host)
            })
        };
        let mut names = Vec::new();
        for address in self.addresses(view) {
            let whole = ClusterKey { host: address.host, port: address.port, subset: "".into() };
            let Some(seen) = self.cluster(whole.clone(), view) else { continue };
            let is_of_the_mesh = seen.service.is_internal && seen.service.discovery == Discovery::Registry;
            if !is_of_the_mesh || !is_let_in(&whole.host, &seen.service.namespace) {
                continue;
            }
            names.push(ServerName(&whole).to_string());
            let subsets = seen.rule.into_iter().flat_map(|rule| rule.subset_names());
            names.extend(
                subsets.map(|subset| ServerName(&ClusterKey { subset: subset.into(), ..whole.clone() }).to_string()),
            );
        }
        names
    }

    /// Where connections go whose bytes are not looked at, by the name that a client asks for; the one without names is for all
    /// others. A way without targets leads nowhere.
    pub fn ways_at(&self, served: &ServerAt, owners: &Owners, view: &View, is_tls: bool) -> Vec<Connections> {
        if served.closed.is_some() {
            return Vec::new();
        }
        let name = served.name();
        if served.is_listener() {
            let there = self.gateway_routes.connections_at(&name);
            let there = there.filter_map(|(name, server_names, targets)| {
                Some(Connections {
                    name: name.to_string(),
                    server_names: owners.left(served, server_names)?,
                    targets: targets.to_vec(),
                    idle_timeout: self.idle_timeout(targets, view),
                    tunnel: None,
                })
            });
            return there.collect();
        }
        let mut ways: Vec<Connections> = Vec::new();
        for (entry, shared) in self.at_server(served, view) {
            let Some(object) = &entry.object else {
                let names = if shared.iter().any(|host| host == "*") { Vec::new() } else { shared };
                let Some(names) = owners.left(served, names) else { continue };
                let nowhere = Connections {
                    tunnel: None,
                    name: entry.meta.id().to_string(),
                    server_names: names,
                    targets: Vec::new(),
                    idle_timeout: None,
                };
                ways.insert(0, nowhere);
                continue;
            };
            let to = Addressed { port: served.port, addresses: &[], is_tls: Some(is_tls), gateway: Some(&name) };
            let found = connections::ways(object, view, &to, &|host: &str| self.ports_of(host, view));
            for way in found {
                // Only names that the server has for objects of this namespace.
                let mut names: Vec<String> = Vec::new();
                for name in &way.server_names {
                    let both = shared.iter().filter_map(|shared| match () {
                        () if covers(shared, name) => Some(name),
                        () if covers(name, shared) => Some(shared),
                        () => None,
                    });
                    let both: Vec<&String> = both.filter(|name| !names.contains(*name)).collect();
                    names.extend(both.into_iter().cloned());
                }
                if names.is_empty() && !way.server_names.is_empty() {
                    continue;
                }
                let is_for_all = names.is_empty() && is_tls && !shared.iter().any(|host| host == "*");
                let names = if is_for_all { shared.clone() } else { names };
                let Some(names) = owners.left(served, names) else { continue };
                let idle_timeout = self.idle_timeout(&way.targets, view);
                ways.push(Connections { server_names: names, idle_timeout, ..way });
            }
        }
        ways
    }
}

/// What requests for a host of a server that is wrong are answered with.
fn closed_route(served: &ServerAt, reason: &Arc<str>) -> Route {
    let meta = &served.gateway.meta;
    let field = if served.is_listener() { "listeners" } else { "servers" };
    Route {
        name: String::new(),
        condition: Condition::default(),
        action: Action::Fail(Arc::clone(reason)),
        faults: Faults::default(),
        cors: None,
        headers: HeaderChanges::default(),
        written: Some(Written { object: meta.id(), field: field.into(), origin: meta.origin.clone() }),
    }
}

/// A host while its routes are gathered.
#[derive(Default)]
struct Host {
    routes: Vec<Route>,
    redirects: bool,
    /// Whether the rules of an object that is wrong would be among them: nobody knows what they would have kept others from.
    is_refused: bool,
    /// By which Gateway, and which object.
    rules: BTreeSet<(String, Arc<str>)>,
}

impl Host {
    /// What is for every request comes last, by whichever object it is.
    fn in_order(self) -> Vec<Route> {
        let is_failing = |route: &Route| matches!(route.action, Action::Fail(_));
        if self.is_refused {
            return self.routes.into_iter().filter(is_failing).take(1).collect();
        }
        let (last, mut first): (Vec<Route>, Vec<Route>) =
            self.routes.into_iter().partition(|route| route.condition.is_catch_all());
        first.extend(last.into_iter().take(1));
        first
    }
}
