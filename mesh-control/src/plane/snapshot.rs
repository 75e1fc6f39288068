//! Everything that can be asked for at one moment: the policy and the endpoints, and what was already made
//! of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use envoy_types::pb::envoy::service::health::v3::HealthCheckSpecifier;
use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_core::model::RouteConfiguration;
use prost::Message;

use crate::analysis;
use crate::catalog::{Catalog, Changes, Client, ClientClass, Encoded, Kind, QuotaLimit};
use crate::config::Diagnostic;
use crate::config::file::Meta;
use crate::config::store::Wrong;
use crate::plane::gateway;
use crate::plane::recent::Recent;
use crate::policy::access::{Condition, RulesByEffect};
use crate::policy::filters::{self, FilterInForce, Passing};
use crate::policy::gateway_api::{GatewayStatus, ParentStatus, TargetStatus};
use crate::policy::gateways::Taken;
use crate::policy::limits::{self, LimitInForce};
use crate::policy::locality::Place;
use crate::policy::locality::zones::Zones;
use crate::policy::route::{ClusterKey, ServerName};
use crate::policy::security::Served;
use crate::policy::telemetry::Side;
use crate::policy::tokens::FetchedKeys;
use crate::policy::traffic::{ServerTls, Tls};
use crate::policy::view::View;
use crate::policy::{Cluster, Policy};
use crate::registry::endpoints::EncodedKey;
use crate::registry::{Endpoint, EndpointsSnapshot, ServiceId};
use crate::render::envoy::{self, Outbound};
use crate::render::judge::Judge;
use crate::render::{self, Degraded, Rendered};

/// What a configuration means, and what was made of it so far; shared by every snapshot until the
/// configuration changes, so that a workload that comes or goes costs one set of endpoints.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    pub(super) policy: Policy,
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) wrong: Vec<Wrong>,
    pub(super) objects: usize,
    /// Why hosts that no object describes are not called, although they may be.
    pub(super) held_back: Option<String>,
    /// Whether workloads serve although what guards them is not enforced.
    pub(super) allow_unenforced: bool,
    /// Whether who a workload says it is counts without proof.
    pub(super) trust_claims: bool,
    /// The judge of what is rendered: the same one whatever the configuration.
    pub(super) judge: Arc<Judge>,
    pub(super) cache: Mutex<RenderCache>,
}

type ByName = HashMap<Arc<str>, Made>;

/// A resource, and what it was made for beyond the view.
#[derive(Debug)]
struct Made {
    peers: Peers,
    encoded: Encoded,
}

/// Both ends of a cluster's connections, as far as mutual TLS goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Peers {
    /// Whether the client calls by mutual TLS.
    pub(super) may_have_certificate: bool,
    /// Who serves by mutual TLS.
    pub(super) identities: Arc<[SpiffeId]>,
}

#[derive(Debug, Default)]
pub(super) struct RenderCache {
    resources: HashMap<(ClientClass, Kind), HashMap<View, ByName>>,
    /// Every name of a kind, as clients of a view see it.
    names: HashMap<(Kind, View), Arc<[Arc<str>]>>,
    /// What sidecars of a view may call.
    outbound: HashMap<View, Arc<Outbound>>,
    /// What gateways are told.
    gateways: HashMap<gateway::Who, Arc<gateway::Told>>,
    /// What those are that have asked.
    edges: BTreeSet<ClientClass>,
    /// The routes that somebody has looked at last, as clients of a view read them.
    read: Option<(View, Arc<str>, Arc<RouteConfiguration>)>,
    count: usize,
    found: BTreeMap<String, Diagnostic>,
}

/// Why a server does not serve that cannot do what the mesh asks of all.
const LACKS_CERTIFICATE: &str = "connections must be mutual TLS (the mesh's default is STRICT), and this server has not shown \
    that it has a certificate: the stream on which it asks mesh-control has to come with it; give it one (`mesh-control token \
    create` or `ca issue`), or let a PeerAuthentication say PERMISSIVE or DISABLE";

/// Names and namespaces come from clients: what is remembered for them has a bound.
const MOST_CACHED: usize = 65_536;
const MOST_FOUND: usize = 1_000;

impl Compiled {
    /// What was found when resources were rendered: what gRPC clients cannot do, and what the data plane would refuse.
    pub(super) fn found(&self) -> Vec<Diagnostic> {
        self.cache().found.values().cloned().collect()
    }

    /// Takes out what is said of gateways that may come, where those that are there are none of them.
    pub(super) fn pass_over_gateways(&self, findings: &mut Vec<Diagnostic>) {
        let cache = self.cache();
        let has_envoys = cache.edges.is_empty() || cache.edges.contains(&ClientClass::Envoy);
        let labels: Vec<_> = cache.gateways.keys().map(|(_, labels, _)| labels).collect();
        findings.retain(|finding| {
            (has_envoys || !analysis::is_about_envoys(finding))
                && !analysis::is_for_known(finding, &self.policy, &labels)
        });
    }

    fn cache(&self) -> MutexGuard<'_, RenderCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what was found when something was rendered.
    pub(super) fn note(&self, found: impl IntoIterator<Item = Diagnostic>) {
        let mut cache = self.cache();
        for finding in found {
            if cache.found.len() < MOST_FOUND {
                cache.found.insert(finding.to_string(), finding);
            }
        }
    }

    /// What the sidecars of a view may call.
    pub(super) fn outbound(&self, view: &View) -> Arc<Outbound> {
        if let Some(outbound) = self.cache().outbound.get(view) {
            return outbound.clone();
        }
        let outbound = Arc::new(Outbound::of(&self.policy, view));
        let mut cache = self.cache();
        cache.make_room(outbound.clusters.len());
        cache.outbound.insert(view.clone(), outbound.clone());
        outbound
    }

    /// What the gateways of these labels are told.
    pub(super) fn gateway(&self, who: &gateway::Who, class: ClientClass) -> Arc<gateway::Told> {
        let known = {
            let mut cache = self.cache();
            cache.edges.insert(class);
            cache.gateways.get(who).cloned()
        };
        if let Some(told) = known {
            return told;
        }
        let told = Arc::new(gateway::Told::of(self, who));
        let mut cache = self.cache();
        cache.make_room(told.len());
        cache.gateways.insert(who.clone(), told.clone());
        told
    }

    pub(super) fn resource(
        &self,
        class: ClientClass,
        view: View,
        kind: Kind,
        name: &str,
        peers: Peers,
    ) -> Option<Encoded> {
        let remembered = {
            let cache = self.cache();
            let by_view = cache.resources.get(&(class, kind));
            let made = by_view.and_then(|by_view| by_view.get(&view)?.get(name));
            made.filter(|made| made.peers == peers).map(|made| made.encoded.clone())
        };
        if remembered.is_some() {
            return remembered;
        }
        let (judge, policy) = (&*self.judge, &self.policy);
        let rendered = match kind {
            Kind::Listener => render::render_listener(judge, policy, class, &view, name),
            Kind::Route if class == ClientClass::Envoy => {
                let port = name.parse().ok().filter(|port: &u16| port.to_string() == name)?;
                envoy::routes(judge, policy, &view, &self.outbound(&view), port)
            }
            Kind::Route => render::render_routes(judge, policy, class, &view, name),
            Kind::Cluster => {
                render::render_cluster(judge, policy, class, &view, name, peers.may_have_certificate, &peers.identities)
            }
            Kind::Endpoints | Kind::Secret => None,
        };
        let Rendered { encoded, degraded, refused } = rendered?;
        let remember = render::is_worth_remembering(&self.policy, &view, name);
        self.note(degraded.iter().map(Degraded::diagnostic).chain(refused));
        if remember {
            let mut cache = self.cache();
            cache.make_room(1);
            let by_view = cache.resources.entry((class, kind)).or_default();
            let made = Made { peers, encoded: encoded.clone() };
            by_view.entry(view).or_default().insert(encoded.name.clone(), made);
        }
        Some(encoded)
    }

    /// What a client of the library reads in the routes of this name. `None` where there are none, or some are refused, so that
    /// what is published says something else.
    fn read_routes(&self, view: View, name: &str) -> Option<Arc<RouteConfiguration>> {
        let is_it = |(by, of, _): &&(View, Arc<str>, _)| *by == view && **of == *name;
        let known = self.cache().read.as_ref().filter(is_it).map(|(.., routes)| Arc::clone(routes));
        if known.is_some() {
            return known;
        }
        let routes = render::read_routes(&self.policy, &view, name)?;
        // Thousands of routes are taken apart without the lock.
        let _before = self.cache().read.replace((view, name.into(), Arc::clone(&routes)));
        Some(routes)
    }

    fn names(&self, view: View, kind: Kind) -> Arc<[Arc<str>]> {
        let key = (kind, view);
        if let Some(names) = self.cache().names.get(&key) {
            return names.clone();
        }
        let names: Arc<[Arc<str>]> = render::names(&self.policy, &key.1, kind).into_iter().map(Arc::from).collect();
        let mut cache = self.cache();
        cache.make_room(names.len());
        cache.names.insert(key, names.clone());
        names
    }
}

impl RenderCache {
    fn make_room(&mut self, wanted: usize) {
        if self.count >= MOST_CACHED {
            self.resources.clear();
            self.names.clear();
            self.outbound.clear();
            self.gateways.clear();
            self.count = 0;
        }
        self.count += wanted;
    }
}

/// Everything that can be asked for at one moment. Immutable.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub(super) generation: u64,
    pub(super) config_generation: u64,
    pub(super) compiled: Arc<Compiled>,
    pub(super) endpoints: EndpointsSnapshot,
    /// Keys of issuers that were fetched.
    pub(super) keys: Arc<FetchedKeys>,
    pub(super) recent: Recent,
}

impl Snapshot {
    /// Counts every change, of configuration and of workloads alike.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Counts changes of the configuration; between snapshots with the same count, only endpoints differ.
    pub fn config_generation(&self) -> u64 {
        self.config_generation
    }

    /// How many objects are in force.
    #[cfg(test)]
    pub(crate) fn objects(&self) -> usize {
        self.compiled.objects
    }

    /// Who serves a port of a service of the cluster.
    #[cfg(test)]
    pub(crate) fn endpoints_of(&self, name: &str, namespace: &str, port: u16) -> Vec<Endpoint> {
        let host = crate::registry::host::service_host(name, namespace);
        let service = self.compiled.policy.services.exact(&host, namespace);
        let endpoints = service.and_then(|(id, _)| self.endpoints.of(id));
        endpoints.map(|endpoints| endpoints.of_port(port).to_vec()).unwrap_or_default()
    }

    /// What became of each route of Gateway API at each of its parents.
    pub fn route_statuses(&self) -> &[ParentStatus] {
        &self.compiled.policy.gateway_routes.statuses
    }

    /// What became of each Gateway of Gateway API, and of each ListenerSet of one.
    pub fn gateway_statuses(&self) -> &[GatewayStatus] {
        &self.compiled.policy.gateway_routes.gateway_statuses
    }

    /// What became of each BackendTLSPolicy and XBackendTrafficPolicy at each of its targets.
    pub fn policy_statuses(&self) -> impl Iterator<Item = &TargetStatus> {
        self.compiled.policy.target_statuses()
    }

    /// The labels of the workload of this name, as the configuration has it: those that the service of its name selects, those
    /// of the WorkloadGroup of its name, or `app` with its name, where an object selects workloads by that.
    pub fn labels_of(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, String>> {
        let Policy { services, .. } = &self.compiled.policy;
        let mut all = services.iter().map(|(_, service)| service);
        let named = all.find(|service| *service.namespace == *namespace && *service.name == *name);
        if let Some(selector) = named.and_then(|service| service.selector.clone()) {
            return Some(selector);
        }
        if services.groups().any(|group| group == (namespace, name)) {
            return Some(services.labels_in_group(&namespace.into(), Some(&name.into()), &BTreeMap::new()));
        }
        let by_app = || BTreeMap::from([("app".to_owned(), name.to_owned())]);
        self.workloads().contains(&(name.to_owned(), namespace.to_owned())).then(by_app)
    }

    /// The workloads that the configuration has a name for, each with its namespace.
    pub fn workloads(&self) -> BTreeSet<(String, String)> {
        let Policy { services, security, .. } = &self.compiled.policy;
        let named = services.iter().map(|(_, service)| (&*service.namespace, &*service.name)).chain(services.groups());
        let selecting =
            services.iter().filter_map(|(_, service)| Some((&*service.namespace, service.selector.as_ref()?)));
        let selected = selecting.chain(security.selectors());
        let by_app = selected.filter_map(|(namespace, labels)| Some((namespace, labels.get("app")?.as_str())));
        named.chain(by_app).map(|(namespace, name)| (name.to_owned(), namespace.to_owned())).collect()
    }

    /// The namespaces of services, groups and objects of security.
    pub fn namespaces(&self) -> BTreeSet<String> {
        let Policy { services, security, virtual_services, sidecars, gateway_routes, .. } = &self.compiled.policy;
        let all = services.iter().map(|(_, service)| &*service.namespace);
        let all = all.chain(services.groups().map(|(namespace, _)| namespace));
        let all = all.chain(virtual_services.iter().map(|rule| &*rule.meta.namespace)).chain(sidecars.namespaces());
        let all = all.chain(gateway_routes.attached().flat_map(|(.., namespaces)| namespaces));
        all.chain(security.selectors().map(|(namespace, _)| namespace)).map(str::to_owned).collect()
    }

    /// The Gateway that makes a workload of this name with these labels a gateway, if one does.
    pub(crate) fn gateway_of(
        &self,
        namespace: &str,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Option<Arc<str>> {
        let Policy { gateways, services, .. } = &self.compiled.policy;
        gateways.selecting((namespace, name), labels, services).map(Meta::id)
    }

    /// The gateway that is called so: that of a Gateway of this name, or else a workload that Gateways select. Its namespace and its
    /// labels.
    pub(crate) fn gateway_named(&self, namespace: &str, name: &str) -> Option<(Arc<str>, BTreeMap<String, String>)> {
        let Policy { gateways, services, .. } = &self.compiled.policy;
        gateways.workload_of((namespace, name), services).or_else(|| {
            let labels = self.labels_of(namespace, name)?;
            gateways.selecting((namespace, name), &labels, services)?;
            Some((namespace.into(), labels))
        })
    }

    /// The labels of a client, with those of its group.
    pub(crate) fn labels(&self, client: &Client) -> BTreeMap<String, String> {
        self.compiled.policy.services.labels_in_group(&client.namespace, client.group.as_ref(), &client.labels)
    }

    /// The PeerAuthentication in force for a server, and how it has connections taken.
    pub(crate) fn peer_authentication(&self, client: &Client, port: u16) -> Option<(Arc<str>, ServerTls)> {
        let Policy { services, security, .. } = &self.compiled.policy;
        let labels = self.labels(client);
        let served = Served { namespace: &client.namespace, labels: &labels, port };
        security.mode_of(served, services).map(|(meta, tls)| (meta.id(), tls))
    }

    /// The AuthorizationPolicies that are for a server, and the PeerAuthentication that is in force.
    pub(crate) fn guards_of(&self, client: &Client, port: u16) -> BTreeSet<Arc<str>> {
        let Policy { services, security, .. } = &self.compiled.policy;
        let labels = self.labels(client);
        let served = Served { namespace: &client.namespace, labels: &labels, port };
        let policies = security.policies_of(served, services).map(|meta| meta.id());
        policies.chain(security.mode_of(served, services).map(|(meta, _)| meta.id())).collect()
    }

    /// The rules that decide on a server's requests by a condition of this kind.
    pub(crate) fn rules_by(
        &self,
        client: &Client,
        port: u16,
        is_meant: impl Fn(&Condition) -> bool,
    ) -> BTreeSet<Arc<str>> {
        let Policy { services, security, .. } = &self.compiled.policy;
        let labels = self.labels(client);
        let served = Served { namespace: &client.namespace, labels: &labels, port };
        let access = security.access(served, services, self.compiled.allow_unenforced);
        let RulesByEffect { allow, deny } = &access.enforced;
        let asks = access.asks.iter().flat_map(|(_, rules)| rules);
        let rules = allow.iter().flatten().chain(deny).chain(asks);
        let asked = rules.filter(|rule| rule.conditions.all().any(&is_meant));
        asked.map(|rule| rule.id.clone()).collect()
    }

    /// What a client reads in the routes of this name, without the bytes that it would be sent. `None` where those have to be looked
    /// at: there is nothing that could be sent as it is meant, or other clients than this project's library are told otherwise.
    pub(crate) fn read_routes(&self, client: &Client, name: &str) -> Option<Arc<RouteConfiguration>> {
        let is_other = client.class != ClientClass::Library || client.is_gateway || client.sidecar.is_some();
        if is_other {
            return None;
        }
        let view = self.compiled.policy.view(&client.namespace, &client.labels);
        self.compiled.read_routes(view, name)
    }

    /// The listener of a server: who may do what to it, or why nobody may.
    fn server(&self, client: &Client, listener: &str) -> Option<Encoded> {
        let Policy { services, security, paths, .. } = &self.compiled.policy;
        let labels = self.labels(client);
        let port = render::listener::bound_address(listener)?.port();
        let served = Served { namespace: &client.namespace, labels: &labels, port };
        let (refusal, tls) = (self.not_served(client, served), self.taken_by(client, served));
        let guards = (
            &security.access(served, services, self.compiled.allow_unenforced),
            &*security.tokens(served, services),
            &*self.keys,
        );
        let service = services.served_by(&client.namespace, &labels, port);
        let applied = self.compiled.policy.telemetries.of(&client.namespace, &labels, services);
        let telemetry = render::telemetry(&self.compiled.policy, applied, Side::Server);
        let (limits, filters) = (self.limits_of(client, served), self.filters_of(client, served));
        let of_group = client.group.is_some().then_some(&labels);
        let serving = render::Serving { paths: *paths, tls, service, labels: of_group, telemetry, limits, filters };
        render::render_server(&self.compiled.judge, client.class, listener, refusal, guards, serving)
    }

    /// How many requests a server takes.
    pub(super) fn limits_of(&self, client: &Client, served: Served<'_>) -> Vec<LimitInForce> {
        let Policy { services, limits, .. } = &self.compiled.policy;
        let places = limits.of(&client.namespace, served.labels, services, Side::Server);
        limits.on_port(&places, &services.numbers_of(&client.namespace, served.labels, served.port))
    }

    /// The filters that the requests of a server, or of a gateway, pass.
    pub(super) fn filters_of(&self, client: &Client, served: Served<'_>) -> Vec<FilterInForce> {
        let Policy { services, filters, .. } = &self.compiled.policy;
        let side = Side::serving(client.is_gateway);
        let places = filters.of(&client.namespace, served.labels, services, side);
        if places.is_empty() {
            return Vec::new();
        }
        let ports = &services.numbers_of(&client.namespace, served.labels, served.port);
        filters.at(&places, Passing { side, ports, host: "" })
    }

    /// How a server takes connections.
    pub(super) fn taken_by(&self, client: &Client, served: Served<'_>) -> ServerTls {
        let Policy { services, security, .. } = &self.compiled.policy;
        match (self.is_certified(client), security.server_tls(served, services)) {
            (false, _) => ServerTls::Plaintext,
            // gRPC's servers take the one or the other, and a client that has a certificate shows it (Istio: lds.go).
            (true, ServerTls::Permissive) if client.class == ClientClass::Grpc => ServerTls::Strict,
            (true, tls) => tls,
        }
    }

    /// Why a server must not serve, if it must not.
    pub(super) fn not_served(&self, client: &Client, served: Served<'_>) -> Option<String> {
        if self.compiled.allow_unenforced {
            return None;
        }
        let refused = self.not_guarded(client, served, self.is_certified(client));
        refused.or_else(|| self.lacks_certificate(client, served).then(|| LACKS_CERTIFICATE.to_owned()))
    }

    /// Why nobody can tell what guards a server, or it cannot be enforced. One that `speaks_tls` can be held to mutual TLS.
    pub(super) fn not_guarded(&self, client: &Client, served: Served<'_>, speaks_tls: bool) -> Option<String> {
        if self.compiled.allow_unenforced {
            return None;
        }
        let Policy { services, security, .. } = &self.compiled.policy;
        let answer = services.refused_group(&client.namespace, client.group.as_ref());
        let in_doubt = answer.filter(|_| security.looks_at_labels(&client.namespace));
        let in_doubt = in_doubt.map(|answer| format!("nobody can tell what guards this workload: {answer}"));
        let refused = in_doubt.or_else(|| security.refusal(served, services, speaks_tls));
        if refused.is_some() || client.class == ClientClass::Library {
            return refused;
        }
        // Nobody else runs the filters of an application, or asks somebody who counts.
        let not_run = filters::not_run(&self.filters_of(client, served));
        not_run.or_else(|| limits::not_counted(&self.limits_of(client, served)))
    }

    /// Who may do what to a server at this port, for an Envoy that is configured by hand: as JSON, the part of its connection
    /// manager that decides it. `Err` is why that cannot be said.
    pub fn envoy_guards(&self, client: &Client, port: u16) -> Result<serde_json::Value, String> {
        let Policy { services, security, paths, .. } = &self.compiled.policy;
        let served = Served { namespace: &client.namespace, labels: &client.labels, port };
        match self.not_served(client, served) {
            Some(reason) => Err(reason),
            None => {
                let guards = (
                    &security.access(served, services, self.compiled.allow_unenforced),
                    &*security.tokens(served, services),
                );
                render::render_envoy_guards(guards, *paths)
            }
        }
    }

    /// Whether a client may have a certificate of this mesh: it is told to call by mutual TLS. Its word is enough for that, since
    /// who has none then calls nobody.
    pub(super) fn may_have_certificate(&self, client: &Client) -> bool {
        let Policy { security, trust_domain, .. } = &self.compiled.policy;
        let has_one = if security.is_permissive { client.shows_certificate() } else { client.has_certificate() };
        has_one && trust_domain.is_some()
    }

    /// Whether a client has a certificate of this mesh, as its stream has proven; in development mode, its word is enough.
    pub(super) fn is_certified(&self, client: &Client) -> bool {
        self.may_have_certificate(client) && (client.identity.is_some() || self.compiled.trust_claims)
    }

    /// Whether a server must be called by mutual TLS, and cannot be.
    fn lacks_certificate(&self, client: &Client, served: Served<'_>) -> bool {
        let Policy { services, security, trust_domain, .. } = &self.compiled.policy;
        let is_strict = || security.server_tls(served, services) == ServerTls::Strict;
        trust_domain.is_some() && !self.is_certified(client) && is_strict()
    }

    /// What says which endpoints speak mutual TLS, as a number: all of the configuration may have its part in it.
    fn security(&self) -> u64 {
        if self.compiled.policy.trust_domain.is_some() { self.config_generation } else { 0 }
    }

    /// Who serves a cluster by mutual TLS.
    pub(super) fn identities(&self, view: &View, name: &str) -> Option<Arc<[SpiffeId]>> {
        let policy = &self.compiled.policy;
        policy.trust_domain.as_ref()?;
        let cluster = policy.cluster(ClusterKey::parse(name)?, view)?;
        self.endpoints.of(cluster.id).map(|endpoints| endpoints.identities().clone())
    }

    /// A Secret that a rule names which is for a program of this project: that has proven of which namespace it is. What it says of
    /// its labels is believed, as everywhere.
    pub(super) fn named_secret(&self, client: &Client, name: &str) -> Option<Encoded> {
        let policy = &self.compiled.policy;
        // A certificate proves nothing for this where the mesh gives none.
        let is_told_so = client.identity.is_none() || policy.trust_domain.is_some();
        let is_known = is_told_so && self.has_proven_namespace(&client.namespace, client.identity.as_ref());
        let labels = self.labels(client);
        let is_for_it =
            is_known && render::secrets::is_for(policy, &client.namespace, &labels, client.is_gateway, name);
        let may_have = is_for_it && client.class == ClientClass::Library;
        let secret = may_have.then(|| render::secrets::secret(policy, name)).flatten()?;
        Some(render::encode(name, &secret))
    }

    /// How many clients of a kind there are in each zone of its region: the endpoints of the service that it is one of itself.
    fn callers(&self, view: &View, client: Place<'_>) -> Zones {
        let own = self.compiled.policy.services.own(&view.namespace, client.labels);
        let endpoints = own.and_then(|own| self.endpoints.of(own));
        let of_a_port = endpoints.and_then(|endpoints| endpoints.ports().next()).map(|(_, endpoints)| endpoints);
        let near = of_a_port.unwrap_or_default().iter();
        render::zones_of(near.filter(|endpoint| endpoint.locality[0] == client.locality[0]))
    }

    /// Whether somebody has proven to be of the namespace that it says it is of, by a certificate of this mesh that names it. In
    /// development mode, the word of one without a certificate is enough.
    pub(super) fn has_proven_namespace(&self, namespace: &str, identity: Option<&SpiffeId>) -> bool {
        let domain = &self.compiled.policy.mesh.fixed.trust_domain;
        identity.map_or(self.compiled.trust_claims, |identity| is_of(identity, domain, namespace))
    }

    /// Whether a gateway, or a member of a group, counts as one of the namespace that it says it is of: nothing but its own word says
    /// that it is one. Where there are no certificates, there is nothing to prove.
    pub(super) fn is_believed(&self, namespace: &str, identity: Option<&SpiffeId>) -> bool {
        self.compiled.policy.trust_domain.is_none() || self.has_proven_namespace(namespace, identity)
    }

    /// Whether a gateway is called by mutual TLS, as an endpoint of this cluster; `None` where it must not be called. Its Gateways say
    /// how it takes connections. A PeerAuthentication that is STRICT gives way to those of its own namespace alone, where it has proven
    /// to be of that.
    fn calls_gateway(&self, cluster: &Cluster<'_>, endpoint: &Endpoint) -> Option<bool> {
        let Policy { gateways, services, security, trust_domain, .. } = &self.compiled.policy;
        let (namespace, labels, port) = (&*endpoint.namespace, &*endpoint.labels, endpoint.address.port());
        let taken = gateways.taken_at(namespace, labels, services, cluster.port.number);
        let Some(domain) = trust_domain else {
            // What takes mutual TLS alone takes nobody.
            return (taken != Some(Taken::MutualTls)).then_some(false);
        };
        let is_of_gateways = || {
            let selector = cluster.service.selector.as_ref();
            selector.is_some_and(|selector| gateways.select(&cluster.service.namespace, selector, services))
        };
        let is_believed = self.is_believed(namespace, endpoint.identity.as_ref());
        let is_endpoint = is_believed && (self.compiled.trust_claims || is_of_gateways());
        if !is_endpoint {
            return None;
        }
        let is_certified = endpoint.identity.as_ref().is_some_and(|identity| is_of(identity, domain, namespace));
        if taken == Some(Taken::MutualTls) {
            return is_certified.then_some(true);
        }
        let is_strict = security.server_tls(Served { namespace, labels, port }, services) == ServerTls::Strict;
        let says_so = is_certified && taken == Some(Taken::Otherwise { is_own: true });
        (says_so || !is_strict).then_some(false)
    }

    pub(super) fn endpoints(&self, view: &View, client: &Client, name: &str) -> Option<Encoded> {
        if name == render::BLACK_HOLE {
            return Some(render::render_no_endpoints(name));
        }
        let policy = &self.compiled.policy;
        let passed_on = ServerName::parse(name);
        let is_passed_on = passed_on.is_some();
        let cluster = policy.cluster(passed_on.or_else(|| ClusterKey::parse(name))?, view)?;
        if cluster.is_refused {
            return Some(render::render_no_endpoints(name));
        }
        if !render::has_endpoints_resource(&cluster) {
            return None;
        }
        let endpoints = self.endpoints.of(cluster.id)?;
        let security = &policy.security;
        let is_automatic = cluster.traffic.tls == Tls::Automatic;
        let may_nobody_answer = endpoints.identities().is_empty();
        let speaks_tls = |endpoint: &Endpoint| {
            let (namespace, labels, port) = (&*endpoint.namespace, &*endpoint.labels, endpoint.address.port());
            let has_certificates = policy.trust_domain.is_some();
            if endpoint.is_gateway {
                return self.calls_gateway(&cluster, endpoint);
            }
            let served = Served { namespace, labels, port };
            let tls = security.server_tls(served, &policy.services);
            let speaks_tls = has_certificates && endpoint.mutual_tls && tls != ServerTls::Plaintext;
            // It must not be called in plaintext, and there is no other way to call it: it registered without a certificate,
            // or it is written down and nobody knows who it is.
            let is_strict = has_certificates && tls == ServerTls::Strict && endpoint.key.is_some();
            let is_out = (is_strict && !endpoint.mutual_tls) || (speaks_tls && is_automatic && may_nobody_answer);
            (!is_out).then_some(speaks_tls)
        };
        // Nobody knows what is in connections that are passed on: whoever takes plaintext must not be reached by them.
        let speaks_tls = |endpoint: &Endpoint| speaks_tls(endpoint).filter(|speaks_tls| *speaks_tls || !is_passed_on);
        let in_group = client.group.as_ref().map(|_| self.labels(client));
        let client = Place { locality: &client.locality, labels: in_group.as_ref().unwrap_or(&client.labels) };
        let nearness = render::nearness(&cluster, endpoints, client, || self.callers(view, client));
        let make = || render::render_endpoints(&cluster, name, endpoints, nearness.as_ref(), speaks_tls);
        if !render::is_worth_remembering(policy, view, name) {
            return Some(make());
        }
        let key = EncodedKey {
            name: name.into(),
            labels: cluster.labels.clone(),
            // How a gateway takes connections is written in any mesh.
            security: if endpoints.has_gateways() { self.config_generation } else { self.security() },
            is_automatic,
            nearness: nearness.clone().map(Arc::new),
        };
        // The endpoints may have outlived a configuration in which nobody could register.
        let self_registered = cluster.service.takes_registrations();
        Some(Encoded { self_registered, ..endpoints.encoded(key, make) })
    }
}

/// Whether this is an identity of the mesh, and of this namespace.
fn is_of(identity: &SpiffeId, domain: &TrustDomain, namespace: &str) -> bool {
    domain.as_str() == identity.trust_domain() && identity.workload().is_some_and(|(own, _)| own == namespace)
}

impl Catalog for Snapshot {
    fn quota(&self, client: Option<&Client>, quota: &str, rule: &str) -> Option<QuotaLimit> {
        let Policy { limits, services, .. } = &self.compiled.policy;
        let labels = client.map(|client| self.labels(client));
        let of = client.zip(labels.as_ref()).map(|(client, labels)| (&*client.namespace, labels));
        limits.quota(of, services, quota, rule)
    }

    fn health_checks(&self, client: &Client) -> Option<HealthCheckSpecifier> {
        let probe = self.compiled.policy.services.probe_of_group(&client.namespace, client.group.as_ref()?)?;
        probe.is_for(client.class).then(|| render::probe::health_checks(&probe))
    }

    fn secret(&self, workload: &SpiffeId, name: &str) -> Option<Bytes> {
        let policy = &self.compiled.policy;
        let of = policy.trust_domain.as_ref().zip(render::secrets::namespace_of(name));
        let is_own = of.is_some_and(|(domain, namespace)| is_of(workload, domain, namespace));
        let may_have = is_own && render::secrets::is_named(policy, name);
        may_have.then(|| render::secrets::secret(policy, name)).flatten().map(|secret| secret.encode_to_vec().into())
    }

    fn resource(&self, client: &Client, kind: Kind, name: &str) -> Option<Encoded> {
        if client.is_gateway {
            return self.gateway_resource(client, kind, name);
        }
        if let Some(sidecar) = &client.sidecar {
            return self.sidecar_resource(client, sidecar, kind, name);
        }
        if kind == Kind::Listener && name.starts_with(render::listener::SERVER_PREFIX) {
            return self.server(client, name);
        }
        let view = self.compiled.policy.view(&client.namespace, &client.labels);
        match kind {
            Kind::Endpoints => self.endpoints(&view, client, name),
            Kind::Secret => self.named_secret(client, name),
            Kind::Cluster => {
                let identities = self.identities(&view, name).unwrap_or_default();
                let peers = Peers { may_have_certificate: self.may_have_certificate(client), identities };
                self.compiled.resource(client.class, view, kind, name, peers)
            }
            _ => self.compiled.resource(client.class, view, kind, name, Peers::default()),
        }
    }

    fn everything(&self, client: &Client, kind: Kind) -> Vec<Arc<str>> {
        if client.is_gateway {
            return self.gateway_names(client, kind);
        }
        if let Some(sidecar) = &client.sidecar {
            return self.sidecar_names(client, sidecar, kind);
        }
        let view = self.compiled.policy.view(&client.namespace, &client.labels);
        let names = self.compiled.names(view, kind);
        // A name may stand in a route and have nothing behind it.
        names.iter().filter(|name| self.resource(client, kind, name).is_some()).cloned().collect()
    }

    fn instead(&self, client: &Client, kind: Kind, name: &str) -> Option<Encoded> {
        match kind {
            Kind::Cluster if client.is_gateway => self.gateway_instead(client, name),
            Kind::Cluster if client.sidecar.is_some() => self.sidecar_instead(client, name),
            _ => None,
        }
    }

    fn absence(&self, client: &Client, kind: Kind, name: &str) -> Option<String> {
        let has_own_names = client.sidecar.is_some() || client.is_gateway;
        if kind != Kind::Listener || name.starts_with(render::listener::SERVER_PREFIX) || has_own_names {
            return None;
        }
        let policy = &self.compiled.policy;
        let view = policy.view(&client.namespace, &client.labels);
        let held_back = || self.compiled.held_back.clone().filter(|_| policy.is_undescribed(name, &view));
        policy.absence(name, &view).or_else(held_back)
    }

    fn host_of(&self, client: &Client, target: &str) -> Option<Arc<str>> {
        let policy = &self.compiled.policy;
        Some(policy.resolve(target, &policy.view(&client.namespace, &client.labels))?.host)
    }

    fn refusal(&self, client: &Client) -> Option<String> {
        let is_other = client.class == ClientClass::Envoy && client.sidecar.is_none() && !client.is_gateway;
        is_other.then(|| {
            format!(
                "of Envoys, sidecars and gateways are served here (`sidecar~IP~NAME.NAMESPACE~NAMESPACE.svc.cluster.local`, or \
                 `router~...`, as `mesh-control bootstrap --envoy` writes it), and the id of this node is {:?}",
                client.node_id
            )
        })
    }

    fn served_at(&self, client: &Client) -> Result<BTreeSet<SocketAddr>, String> {
        match &client.sidecar {
            Some(sidecar) => self.sidecar_addresses(client, sidecar),
            None if client.is_gateway => Ok(self.gateway_addresses(client)),
            None => Ok(BTreeSet::new()),
        }
    }

    fn changes(&self, client: &Client, kind: Kind, since: u64) -> Changes<'_> {
        if kind != Kind::Endpoints {
            return Changes::Any;
        }
        let Some(replaced) = self.recent.since(since, self.generation) else { return Changes::Any };
        let Policy { services, .. } = &self.compiled.policy;
        // Where callers are says how they are spread over zones.
        let own = services.own(&client.namespace, &self.labels(client));
        // The one host whose clusters have these endpoints.
        let host = |id: &ServiceId| {
            let service = services.get(*id).filter(|service| service.alias.is_none())?;
            Some(&*service.host).filter(|host| !host.starts_with('*'))
        };
        let hosts: Option<HashSet<&str>> = replaced.iter().map(host).collect();
        match hosts {
            Some(hosts) if own.is_none_or(|own| !replaced.contains(&own)) => {
                Changes::Only(Box::new(move |name| match ServerName::parse(name) {
                    Some(key) => hosts.contains(&*key.host),
                    None => name.rsplit('|').next().is_some_and(|host| hosts.contains(host)),
                }))
            }
            _ => Changes::Any,
        }
    }

    fn revision(&self, kind: Kind) -> Option<u64> {
        Some(match kind {
            Kind::Endpoints => self.generation,
            // Clusters say who may answer.
            Kind::Cluster => self.config_generation + self.endpoints.identities(),
            _ => self.config_generation,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_proves_its_own_namespace_of_the_mesh_even_where_words_are_enough() {
        for trust_claims in [false, true] {
            let compiled = Compiled { trust_claims, ..Compiled::default() };
            let snapshot = Snapshot { compiled: Arc::new(compiled), ..Snapshot::default() };
            let proves = |id: &str| {
                let identity: SpiffeId = id.parse().expect("an identity");
                snapshot.has_proven_namespace("shop", Some(&identity))
            };
            assert!(proves("spiffe://cluster.local/ns/shop/sa/web"));
            assert!(!proves("spiffe://cluster.local/ns/pay/sa/web"), "another namespace");
            assert!(!proves("spiffe://elsewhere.example/ns/shop/sa/web"), "another mesh");
            assert!(!proves("spiffe://cluster.local/web"), "no namespace");
            assert_eq!(snapshot.has_proven_namespace("shop", None), trust_claims);
        }
    }
}
