//! The meaning of the configuration as xDS, for each kind of client.
//!
//! Equal meaning gives equal bytes, on every replica and after every restart: the version of a resource is
//! a hash of them.

pub mod access;
pub mod access_log;
mod authorizer;
mod cluster;
mod connections;
pub mod endpoints;
pub mod envoy;
mod extensions;
pub mod filters;
mod grpc;
mod http;
mod json;
pub mod judge;
mod library;
pub mod limits;
pub mod listener;
mod metrics;
mod overload;
pub mod probe;
pub mod proto;
mod quota;
pub mod secrets;
mod tls;
mod tokens;
pub mod tracing;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::accesslog::v3::AccessLog;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::config::route::v3::route_action::HashPolicy;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::FaultDelay;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as fault_pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use mesh_core::error::Invalid;
use mesh_core::model::RouteConfiguration;
use mesh_core::resources::{Resource, ResourceType};
use mesh_core::xds::decode::{Options, decode_routes};
use prost::Message;
use xxhash_rust::xxh3::xxh3_64;

use crate::catalog::{ClientClass, Encoded, Kind};
use crate::config::diagnostic::{Code, Diagnostic, Origin, Severity};
use crate::policy::access::Access;
use crate::policy::destination_rules::MergedRule;
use crate::policy::filters::{FilterInForce, Passing, Stage};
use crate::policy::limits::LimitInForce;
use crate::policy::locality::zones::Zones;
use crate::policy::locality::{Nearness, Place};
use crate::policy::outbound::OutboundTrafficPolicy;
use crate::policy::paths::PathNormalization;
use crate::policy::route::{AbortWith, Action, ClusterKey, Fallback, FallbackName, Faults, Route, ServerName, Written};
use crate::policy::telemetry::{Collector, Side};
use crate::policy::tokens::{FetchedKeys, TokenRule};
use crate::policy::traffic::{HashedBy, ServerTls};
use crate::policy::view::{Applied, View};
use crate::policy::{Address, Cluster, Policy};
use crate::registry::host::{candidates, join, short_forms, split_port};
use crate::registry::{Discovery, Endpoint, Health, Service, ServiceEndpoints, WrittenEndpoint};
pub use cluster::{leads_nowhere, render_cluster};
use judge::Judge;
#[cfg(test)]
pub(crate) use library::RENDERED;
use listener::Telemetry;
use proto::OfRoutes;

/// The cluster of calls that go nowhere, by Istio's name.
pub const BLACK_HOLE: &str = mesh_core::model::BLACK_HOLE_CLUSTER;

/// The cluster of calls to hosts that nothing describes, by Istio's name: each goes where its own authority says.
pub const PASSTHROUGH: &str = mesh_core::model::PASSTHROUGH_CLUSTER;

/// Who cannot do something, in findings.
const GRPC: &str = "a gRPC client";
const ENVOY: &str = "an Envoy";

/// A resource, what the client cannot do of what it means, and what of it was refused.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// The resource.
    pub encoded: Encoded,
    /// What the client cannot do.
    pub degraded: Vec<Degraded>,
    /// What the data plane would have refused, so that the resource says something else.
    pub refused: Vec<Diagnostic>,
}

/// Something that a client of another kind than the library cannot do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Degraded {
    /// Who cannot.
    who: &'static str,
    object: Arc<str>,
    field: String,
    message: String,
    origin: Origin,
}

impl Degraded {
    fn new(written: &Written, field: &str, message: String) -> Degraded {
        Degraded {
            who: GRPC,
            object: written.object.clone(),
            field: format!("{}.{field}", written.field),
            message,
            origin: written.origin.clone(),
        }
    }

    fn of_rule(rule: &MergedRule, field: &str, message: String) -> Degraded {
        let origin = rule.meta.origin.clone();
        Degraded { who: GRPC, object: rule.meta.id(), field: format!("trafficPolicy.{field}"), message, origin }
    }

    fn of_annotation(rule: &MergedRule, key: &str, message: String) -> Degraded {
        let field = format!("metadata.annotations.{key}");
        Degraded { who: GRPC, object: rule.meta.id(), field, message, origin: rule.meta.origin.clone() }
    }

    /// Of an annotation of the object that a route stands in.
    fn of_route_annotation(written: &Written, key: &str, message: String) -> Degraded {
        let field = format!("metadata.annotations.{key}");
        Degraded { who: GRPC, object: written.object.clone(), field, message, origin: written.origin.clone() }
    }

    fn of_service(seen: &Cluster<'_>, field: &str, message: String) -> Degraded {
        Degraded::of_port(seen.service, field, message)
    }

    fn of_port(service: &Service, field: &str, message: String) -> Degraded {
        let meta = &service.meta;
        Degraded { who: GRPC, object: meta.id(), field: field.to_owned(), message, origin: meta.origin.clone() }
    }

    /// The same of an Envoy.
    fn for_envoy(mut self) -> Degraded {
        self.who = ENVOY;
        self
    }

    /// The rule that asks for it, and the path of the field.
    pub fn place(&self) -> (&Origin, &str) {
        (&self.origin, &self.field)
    }

    /// As a finding.
    pub fn diagnostic(&self) -> Diagnostic {
        self.diagnostic_at(&self.origin)
    }

    /// As a finding at this place.
    pub fn diagnostic_at(&self, origin: &Origin) -> Diagnostic {
        let message = format!("{} cannot do this: {}", self.who, self.message);
        Diagnostic::at(origin, Severity::Warning, Code::Degraded, message)
            .object(self.object.clone())
            .field(self.field.as_str())
    }
}

/// Every name of a kind for which a client of this view may get something, in order: what a wildcard asks for. A
/// server's own listener is not among them, since asking for it means to be that server, and neither is what a
/// wildcard host covers, since it has no end.
pub fn names(policy: &Policy, view: &View, kind: Kind) -> BTreeSet<String> {
    let addresses = policy.addresses(view);
    match kind {
        Kind::Listener => addresses.iter().map(|Address { host, port }| join(host, *port)).collect(),
        Kind::Route => addresses.iter().map(routes_name).collect(),
        Kind::Cluster | Kind::Endpoints => clusters(policy, view, &addresses),
        Kind::Secret => BTreeSet::new(),
    }
}

/// The clusters that routes lead to.
fn clusters_of(policy: &Policy, view: &View, routes: &[Route]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for route in routes {
        let Action::Forward(forward) = &route.action else { continue };
        for target in &forward.targets {
            names.extend([target.cluster.to_string(), target.cluster_name()]);
            let seen = policy.cluster(target.cluster.clone(), view);
            if let Some(Fallback::To(other)) = seen.and_then(|seen| seen.fallback) {
                names.insert(other.to_string());
            }
        }
        names.extend(forward.mirrors.iter().map(|(cluster, _)| cluster.to_string()));
    }
    names
}

/// The clusters of these addresses, with their subsets, and those that their routes lead to.
fn clusters(policy: &Policy, view: &View, addresses: &BTreeSet<Address>) -> BTreeSet<String> {
    let mut names = BTreeSet::from([BLACK_HOLE.to_owned()]);
    for address in addresses {
        let whole = ClusterKey { host: address.host.clone(), port: address.port, subset: "".into() };
        if let Some(rule) = policy.cluster(whole.clone(), view).and_then(|seen| seen.rule) {
            let subsets = rule.subset_names().map(|subset| ClusterKey { subset: subset.into(), ..whole.clone() });
            names.extend(subsets.map(|key| key.to_string()));
        }
        names.extend(clusters_of(policy, view, &policy.routes(address, view)));
        for way in policy.connections(address, view) {
            names.extend(way.targets.iter().map(|(cluster, _)| cluster.to_string()));
        }
        names.insert(whole.to_string());
    }
    names
}

/// How a server serves, besides who may do what to it.
pub struct Serving<'a> {
    /// What it makes of paths.
    pub paths: PathNormalization,
    /// How it takes connections.
    pub tls: ServerTls,
    /// The service that it serves.
    pub service: Option<&'a Service>,
    /// Its labels, where its group adds to those that it says itself.
    pub labels: Option<&'a BTreeMap<String, String>>,
    /// What is told of its requests.
    pub telemetry: Telemetry,
    /// How many there may be.
    pub limits: Vec<LimitInForce>,
    /// What they pass.
    pub filters: Vec<FilterInForce>,
}

/// The listener of a server, by its name, with who may do what to it, and which tokens are good. With a reason not to serve, every request is answered
/// with it; so it is where a client cannot enforce what is asked of it.
pub fn render_server(
    judge: &Judge,
    class: ClientClass,
    name: &str,
    refusal: Option<String>,
    (access, tokens, keys): (&Access<'_>, &[&TokenRule], &FetchedKeys),
    Serving { paths, tls, service, labels, telemetry, limits, filters: own }: Serving<'_>,
) -> Option<Encoded> {
    use envoy_types::pb::envoy::config::route::v3::NonForwardingAction;
    use envoy_types::pb::envoy::config::route::v3::route::Action;
    let bound = listener::bound_address(name)?;
    // gRPC's paths are names of methods, and its servers leave them alone.
    let paths = match class {
        ClientClass::Library => paths.of(access.is_guarded()),
        ClientClass::Grpc | ClientClass::Envoy => PathNormalization::None.of(false),
    };
    // Others have no use for it.
    let (about, telemetry) = match class {
        ClientClass::Library => (proto::server_metadata(service, labels), telemetry),
        ClientClass::Grpc | ClientClass::Envoy => (None, Telemetry::default()),
    };
    let refusal = match (class, refusal) {
        (ClientClass::Envoy, _) => return None,
        (_, Some(reason)) => reason,
        (_, None) => match passed((access, tokens, keys), class, &own, &limits) {
            Err(reason) => reason,
            Ok(filters) => {
                let action = Action::NonForwardingAction(NonForwardingAction {});
                let listener = listener::server(name, bound, action, filters, paths, (tls, &telemetry));
                let encoded = with_metadata(name, &listener, about.clone());
                match judge.verdict(ResourceType::Listener, &encoded.body) {
                    Ok(()) => return Some(encoded),
                    Err(invalid) => format!("refused by the data plane: {}: {}", invalid.field, invalid.reason),
                }
            }
        },
    };
    let action = match class {
        // A server fails calls whose route forwards (gRFC A36). Any other action, some take for a reason to go on with the
        // listener that they had before.
        ClientClass::Grpc => Action::Route(grpc::to_nowhere()),
        ClientClass::Library | ClientClass::Envoy => Action::DirectResponse(library::unavailable(&refusal)),
    };
    Some(with_metadata(name, &listener::server(name, bound, action, Vec::new(), paths, (tls, &telemetry)), about))
}

/// What the data plane says of a limit of a server.
///
/// # Errors
/// Why it refuses the server, and with it every request.
pub fn verdict_on_limit(judge: &Judge, limit: &LimitInForce) -> Result<(), Invalid> {
    use envoy_types::pb::envoy::config::route::v3::NonForwardingAction;
    use envoy_types::pb::envoy::config::route::v3::route::Action;
    let bound = SocketAddr::from(([127, 0, 0, 1], 1));
    let filters = limits::filters(std::slice::from_ref(limit), ClientClass::Library);
    let action = Action::NonForwardingAction(NonForwardingAction {});
    let (name, paths) = (format!("{}{bound}", listener::SERVER_PREFIX), PathNormalization::None.of(false));
    let listener =
        listener::server(&name, bound, action, filters, paths, (ServerTls::Plaintext, &Telemetry::default()));
    judge.verdict(ResourceType::Listener, &listener.encode_to_vec())
}

/// Who may do what to a server, as JSON for an Envoy that is configured by hand.
pub fn render_envoy_guards(
    (access, tokens): (&Access<'_>, &[&TokenRule]),
    paths: PathNormalization,
) -> Result<serde_json::Value, String> {
    if !tokens.is_empty() {
        return Err(
            "a RequestAuthentication is for it, and only policies on who may do what are written here".to_owned()
        );
    }
    if let Some(why) = access::not_by_hand(access) {
        return Err(why);
    }
    let filters = access::filters(access, ClientClass::Envoy)?;
    let manager = hcm::HttpConnectionManager { http_filters: filters, ..Default::default() };
    json::manager(&listener::normalized(manager, paths.of(access.is_guarded())))
}

/// What the requests of a server pass, in this order: who calls comes before what they may do, and who is let in is decided before
/// what becomes of it.
fn passed(
    (access, tokens, keys): (&Access<'_>, &[&TokenRule], &FetchedKeys),
    class: ClientClass,
    own: &[FilterInForce],
    limits: &[LimitInForce],
) -> Result<Vec<hcm::HttpFilter>, String> {
    let in_process = access.asks.iter().map(|(authorizer, _)| authorizer).find(|authorizer| authorizer.is_in_process());
    if let Some(authorizer) = in_process.filter(|_| class == ClientClass::Envoy) {
        return Err(format!("{}: nobody in the process of an Envoy can be asked", authorizer.name));
    }
    let own = of_library(class, own);
    let mut all: Vec<_> = filters::at(own, Stage::BeforeTokens).collect();
    all.extend(tokens::filter(tokens, keys, class)?);
    all.extend(filters::at(own, Stage::BeforePolicies));
    all.extend(access::filters(access, class)?);
    limited(&mut all, own, limits, class);
    Ok(all)
}

/// What requests pass once policies have let them in, on either side: limits count what rules let pass, as they have made it.
fn limited(all: &mut Vec<hcm::HttpFilter>, own: &[FilterInForce], limits: &[LimitInForce], class: ClientClass) {
    all.extend(filters::at(own, Stage::Rules));
    all.extend(filters::at(own, Stage::BeforeMetrics));
    all.extend(limits::filters(limits, class));
    all.extend(filters::at(own, Stage::Last));
}

/// Others run none of them.
fn of_library(class: ClientClass, own: &[FilterInForce]) -> &[FilterInForce] {
    match class {
        ClientClass::Library => own,
        ClientClass::Grpc | ClientClass::Envoy => &[],
    }
}

/// What a client's requests to a port pass, whether or not anything describes the host.
fn passed_by_calls(policy: &Policy, class: ClientClass, view: &View, host: &str, port: u16) -> Vec<hcm::HttpFilter> {
    let own = policy.filters.at(&view.filters, Passing { side: Side::Client, ports: &[port], host });
    let own = of_library(class, &own);
    let mut all: Vec<_> =
        [Stage::BeforeTokens, Stage::BeforePolicies].into_iter().flat_map(|stage| filters::at(own, stage)).collect();
    limited(&mut all, own, &policy.limits.to_host(&view.limits, host), class);
    all
}

/// What a sidecar cannot do for a port of its own workload.
pub fn lost_at_sidecar(service: &Service, message: String) -> Diagnostic {
    Degraded::of_port(service, "spec.ports", message).for_envoy().diagnostic()
}

/// What a workload tells of the requests of a side.
pub fn telemetry(policy: &Policy, applied: Applied, side: Side) -> Telemetry {
    let Policy { telemetries, mesh, .. } = policy;
    Telemetry {
        logs: telemetries.access_logs(applied, side, mesh).into_iter().map(access_log::log).collect(),
        tracing: telemetries.tracing(applied, side, mesh).as_ref().map(tracing::manager),
        metrics: metrics::filter(&telemetries.metrics(applied, side, mesh)),
    }
}

/// Where an Envoy logs the requests of a side. It has no collector of its application's, and calls the one that is written, where
/// it sees a service there that speaks gRPC (`analysis::envoy` says where it does not).
pub fn envoy_logs(policy: &Policy, view: &View, applied: Applied, side: Side) -> Vec<AccessLog> {
    let logs = policy.telemetries.access_logs(applied, side, &policy.mesh).into_iter();
    let called = |collector: &Collector| policy.called_by_grpc(&collector.host, collector.port, view);
    logs.filter_map(|log| access_log::of_envoy(log, called)).collect()
}

/// The listener of `host:port`.
pub fn render_listener(
    judge: &Judge,
    policy: &Policy,
    class: ClientClass,
    view: &View,
    name: &str,
) -> Option<Rendered> {
    if class == ClientClass::Envoy {
        return None;
    }
    let telemetry = match class {
        ClientClass::Library => telemetry(policy, view.telemetry, Side::Client),
        ClientClass::Grpc | ClientClass::Envoy => Telemetry::default(),
    };
    let Some(address) = policy.resolve(name, view) else {
        // A gRPC client that asks for a listener cannot look the name up instead, and fails what there is no listener for.
        let outside = policy.beside_the_mesh(name, view).filter(|_| class == ClientClass::Library)?;
        let listener = match outside {
            OutboundTrafficPolicy::AllowAny => {
                let (host, port) = name.rsplit_once(':').unwrap_or((name, ""));
                let filters = passed_by_calls(policy, class, view, host, port.parse().unwrap_or_default());
                listener::passing_by(name, telemetry, filters)
            }
            OutboundTrafficPolicy::RegistryOnly => listener::blocked(name, policy.why_blocked(name, view), telemetry),
        };
        return Some(plain(encode(name, &listener)));
    };
    let routes = policy.routes(&address, view);
    let of_routes = OfRoutes {
        faults: routes.iter().any(|route| has_fault(route, class)),
        cors: class == ClientClass::Library && routes.iter().any(|route| route.cors.is_some()),
    };
    let key = ClusterKey { host: address.host.clone(), port: address.port, subset: "".into() };
    let service = policy.cluster(key, view).map(|seen| Arc::clone(seen.service));
    let session = service.as_ref().and_then(|service| service.session.as_ref());
    let session = session.filter(|_| class == ClientClass::Library);
    let filters = passed_by_calls(policy, class, view, &address.host, address.port);
    let mut listener = listener::client(name, &routes_name(&address), of_routes, session, telemetry, filters);
    if class == ClientClass::Library {
        listener.filter_chains = connections::filter_chains(policy.connections(&address, view));
    }
    let encoded = encode(name, &listener);
    // A name that cannot be one leads nowhere.
    judge.verdict(ResourceType::Listener, &encoded.body).is_ok().then(|| plain(encoded))
}

/// The routes of an address, and its domains, by the name that they have: `outbound|port||host`.
fn named_routes(policy: &Policy, view: &View, name: &str) -> Option<(Arc<Vec<Route>>, Vec<String>)> {
    let key = ClusterKey::parse(name).filter(|key| key.subset.is_empty())?;
    let address = Address { host: key.host, port: key.port };
    policy.exists(&address, view).then(|| (policy.routes(&address, view), domains(&address, view)))
}

/// What a client of the library reads in the routes of this name, where none of them is refused: the message that
/// [`render_routes`] encodes, for whoever looks at what is published and sends it to nobody.
pub fn read_routes(policy: &Policy, view: &View, name: &str) -> Option<Arc<RouteConfiguration>> {
    let (routes, domains) = named_routes(policy, view, name)?;
    let routes = routes.iter().map(|route| library::render_route(route, &policy.mesh));
    let read = decode_routes(library::route_configuration(name, domains, &policy.mesh), routes, &Options::default());
    match read.ok()?.resource {
        Resource::Route(routes) => Some(routes),
        _ => None,
    }
}

/// The routes of this name, `outbound|port||host`.
pub fn render_routes(judge: &Judge, policy: &Policy, class: ClientClass, view: &View, name: &str) -> Option<Rendered> {
    let (routes, domains) = named_routes(policy, view, name)?;
    let accepted = |routes: &[Route], degraded: &mut Vec<Degraded>| match class {
        ClientClass::Grpc => {
            judge.accepted(grpc::route_configuration(name, domains.clone()), grpc::render_routes(routes, degraded))
        }
        ClientClass::Library | ClientClass::Envoy => {
            let routes = routes.iter().map(|route| library::render_route(route, &policy.mesh));
            judge.accepted(library::route_configuration(name, domains.clone(), &policy.mesh), routes)
        }
    };
    let mut degraded = Vec::new();
    if let Ok(rendered) = accepted(&routes, &mut degraded) {
        return Some(Rendered { encoded: encoded(name, rendered), degraded, refused: Vec::new() });
    }
    let verdict = |routes: &[Route]| accepted(routes, &mut Vec::new()).map(drop);
    let (routes, refused) = judge::publishable(routes.to_vec(), verdict);
    degraded.clear();
    let rendered = accepted(&routes, &mut degraded).ok()?;
    Some(Rendered { encoded: encoded(name, rendered), degraded, refused })
}

/// Routes as they can be published, in the form that the library and Envoys get: the data plane's own decoder finds what Envoy
/// would refuse for the same reason.
pub(crate) fn publishable(
    judge: &Judge,
    policy: &Policy,
    routes: Vec<Route>,
    refused: &mut Vec<Diagnostic>,
) -> Vec<Route> {
    let verdict = |routes: &[Route]| judge.verdict_on_routes(routes, &policy.mesh);
    if verdict(&routes).is_ok() {
        return routes;
    }
    let (routes, found) = judge::publishable(routes, verdict);
    refused.extend(found);
    routes
}

/// The endpoints of a cluster that is found by them.
/// `speaks_tls` says which of them speak the mesh's mutual TLS; `None` is no endpoint at all.
pub fn render_endpoints(
    seen: &Cluster<'_>,
    name: &str,
    endpoints: &ServiceEndpoints,
    nearness: Option<&Nearness>,
    speaks_tls: impl Fn(&Endpoint) -> Option<bool>,
) -> Encoded {
    let labels = seen.labels.as_deref();
    let assignment = endpoints::load_assignment(name, endpoints.of_port(seen.key.port), labels, nearness, speaks_tls);
    Encoded { self_registered: seen.service.takes_registrations(), ..encoded_endpoints(name, &assignment) }
}

/// What of a client's place makes a difference among the endpoints of a cluster. `callers` tells how many clients of its kind
/// there are in each zone of its region.
pub fn nearness(
    seen: &Cluster<'_>,
    endpoints: &ServiceEndpoints,
    client: Place<'_>,
    callers: impl FnOnce() -> Zones,
) -> Option<Nearness> {
    let (labels, setting) = (seen.labels.as_deref(), seen.traffic.locality.as_ref()?);
    let endpoints = endpoints.of_port(seen.key.port).iter();
    let endpoints = endpoints.filter(|endpoint| endpoints::has_labels(&endpoint.labels, labels));
    let mut nearness = setting.nearness(client, endpoints.clone().map(endpoints::place_of))?;
    if let Some(at_least) = setting.shares_zones_from() {
        let near: Vec<_> = endpoints.filter(|endpoint| nearness.is_shared(endpoints::place_of(endpoint))).collect();
        if near.len() as u64 >= at_least {
            nearness.share_zones(&client.locality[1], &callers(), &zones_of(near.into_iter()));
        }
    }
    Some(nearness)
}

/// How many of these endpoints are well, by zone.
pub fn zones_of<'e>(endpoints: impl Iterator<Item = &'e Endpoint>) -> Zones {
    let mut zones = Zones::new();
    for endpoint in endpoints.filter(|endpoint| endpoint.health == Health::Healthy) {
        *zones.entry(Arc::clone(&endpoint.locality[1])).or_default() += 1;
    }
    zones
}

/// The endpoints of the cluster of calls that go nowhere: none.
pub fn render_no_endpoints(name: &str) -> Encoded {
    let assignment = ClusterLoadAssignment { cluster_name: name.to_owned(), ..Default::default() };
    encoded_endpoints(name, &assignment)
}

fn encoded_endpoints(name: &str, assignment: &ClusterLoadAssignment) -> Encoded {
    let endpoints = assignment.endpoints.iter().map(|locality| locality.lb_endpoints.len()).sum();
    let bytes = endpoints::encoded(assignment);
    let version = Encoded::version_of(xxh3_64(&bytes), endpoints);
    Encoded { version: version.into(), endpoints, ..encoded(name, bytes) }
}

/// Whether a name is one of the few by which a service is known, so that remembering what was made for it
/// is bounded by the configuration and not by what clients ask for.
pub fn is_worth_remembering(policy: &Policy, view: &View, name: &str) -> bool {
    // An Envoy's routes of a port: they exist only where a service has it.
    if name.parse::<u16>().is_ok() {
        return true;
    }
    let by_host = |host: &str| policy.services.exact(host, &view.namespace).is_some();
    match ClusterKey::parse(name) {
        Some(key) => by_host(&key.host),
        None if let Some(key) = FallbackName::parse(name) => by_host(&key.host),
        None if let Some(key) = ServerName::parse(name) => by_host(&key.host),
        None => {
            split_port(name).is_some_and(|(host, _)| candidates(host, &view.namespace).iter().any(|host| by_host(host)))
        }
    }
}

/// `outbound|port||host`.
fn routes_name(address: &Address) -> String {
    ClusterKey { host: address.host.clone(), port: address.port, subset: "".into() }.to_string()
}

/// The authorities of one address: its names with and without the port (Istio: httproute.go), and, since a
/// listener is of one address only, anything else as well.
fn domains(address: &Address, view: &View) -> Vec<String> {
    let mut names = vec![address.host.to_string()];
    names.extend(short_forms(&address.host, &view.namespace));
    let mut domains = Vec::new();
    for name in names {
        let with_port = match name.contains(':') {
            true => format!("[{name}]:{}", address.port),
            false => format!("{name}:{}", address.port),
        };
        for domain in [name, with_port] {
            if !domains.contains(&domain) {
                domains.push(domain);
            }
        }
    }
    domains.push("*".to_owned());
    domains
}

/// The names by which a client may call a host.
fn names_of(host: &str, view: &View) -> Vec<String> {
    let is_name = !host.starts_with('*') && host.parse::<std::net::IpAddr>().is_err();
    let full = is_name.then(|| format!("{host}."));
    std::iter::once(host.to_owned()).chain(full).chain(short_forms(host, &view.namespace)).collect()
}

fn has_fault(route: &Route, class: ClientClass) -> bool {
    use crate::policy::route::Action;
    let stands_in = class == ClientClass::Grpc && !matches!(route.action, Action::Forward(_));
    stands_in || !route.faults.is_none()
}

/// How a client finds the endpoints of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// mesh-control tells them.
    Endpoints,
    /// The host itself is resolved.
    Host,
    /// The names that are written down are resolved.
    Dns { logical: bool },
}

fn found_by(seen: &Cluster<'_>) -> Found {
    match seen.service.discovery {
        Discovery::Registry => Found::Endpoints,
        Discovery::Dns => Found::Dns { logical: false },
        Discovery::LogicalDns => Found::Dns { logical: true },
        Discovery::Passthrough | Discovery::Dynamic => Found::Host,
    }
}

/// Whether the endpoints of a cluster are a resource of their own.
pub fn has_endpoints_resource(seen: &Cluster<'_>) -> bool {
    found_by(seen) == Found::Endpoints
}

/// Whether mesh-control says of each endpoint how it is to be called: it tells the endpoints, or one whose name is looked up
/// speaks mutual TLS.
fn is_marked(seen: &Cluster<'_>, written: &[(&WrittenEndpoint, u16)]) -> bool {
    match found_by(seen) {
        Found::Endpoints => true,
        Found::Dns { .. } => written.iter().any(|(written, _)| written.mutual_tls),
        Found::Host => false,
    }
}

/// How the hash of a request is made.
fn hash_policy(hashed_by: &HashedBy) -> HashPolicy {
    use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::{
        ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter,
    };
    let specifier = match hashed_by {
        HashedBy::Header(name) => PolicySpecifier::Header(Header { header_name: name.clone(), ..Default::default() }),
        HashedBy::Cookie { name, path, ttl, attributes } => {
            let attributes = attributes.iter().cloned().map(|(name, value)| CookieAttribute { name, value });
            PolicySpecifier::Cookie(Cookie {
                name: name.clone(),
                ttl: ttl.map(proto::duration),
                path: path.clone(),
                attributes: attributes.collect(),
            })
        }
        HashedBy::SourceAddress => PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }),
        HashedBy::Query(name) => PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() }),
    };
    HashPolicy { terminal: false, policy_specifier: Some(specifier) }
}

fn share(millionths: u32) -> FractionalPercent {
    FractionalPercent { numerator: millionths, denominator: DenominatorType::Million.into() }
}

fn fault(faults: &Faults) -> Option<fault_pb::HttpFault> {
    let delay = faults.delay.map(|(pause, millionths)| FaultDelay {
        percentage: Some(share(millionths)),
        fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(proto::duration(pause))),
    });
    let abort = faults.abort.map(|(with, millionths)| fault_pb::FaultAbort {
        percentage: Some(share(millionths)),
        error_type: Some(match with {
            AbortWith::Http(status) => fault_pb::fault_abort::ErrorType::HttpStatus(status),
            AbortWith::Grpc(status) => fault_pb::fault_abort::ErrorType::GrpcStatus(status),
        }),
        ..Default::default()
    });
    (!faults.is_none()).then(|| fault_pb::HttpFault { delay, abort, ..Default::default() })
}

/// The one field of `envoy.config.listener.v3.Listener` that is encoded apart.
#[derive(Clone, PartialEq, Message)]
struct ListenerMetadata {
    #[prost(message, optional, tag = "6")]
    metadata: Option<proto::OrderedMetadata>,
}

/// A server's listener with what telemetry has to know of it.
fn with_metadata(name: &str, listener: &impl Message, metadata: Option<proto::OrderedMetadata>) -> Encoded {
    let mut bytes = listener.encode_to_vec();
    let metadata = ListenerMetadata { metadata };
    bytes.extend(metadata.encode_to_vec());
    encoded(name, bytes)
}

fn plain(encoded: Encoded) -> Rendered {
    Rendered { encoded, degraded: Vec::new(), refused: Vec::new() }
}

/// A resource as bytes, under its name.
pub fn encode(name: &str, message: &impl Message) -> Encoded {
    encoded(name, message.encode_to_vec())
}

/// A route may have several filters, which are a map: by an order of its own.
fn encode_routes(name: &str, config: route::RouteConfiguration) -> Encoded {
    encoded(name, proto::ordered_routes(config))
}

fn encoded(name: &str, bytes: Vec<u8>) -> Encoded {
    Encoded {
        name: name.into(),
        version: format!("{:016x}", xxh3_64(&bytes)).into(),
        body: Bytes::from(bytes),
        self_registered: false,
        endpoints: 0,
    }
}
