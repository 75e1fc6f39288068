//! What the tests of configuration and rendering share.
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::Address;
use envoy_types::pb::envoy::config::core::v3::address::Address as Kinds;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, Route, RouteAction, RouteConfiguration};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use mesh_control::catalog::{Catalog, Client, ClientClass, Encoded, Kind};
use mesh_control::plane::{Plane, Snapshot};
use mesh_control::registry::Workload;
use prost::Message;

pub(crate) fn testdata(folder: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(folder)
}

/// A plane with every file of a folder of `testdata`, as texts.
pub(crate) fn plane_of(folder: &str) -> Plane {
    let plane = Plane::empty();
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(testdata(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&file).unwrap();
        plane.set_yaml(&name, &text).unwrap_or_else(|rejected| panic!("{name}: {rejected}"));
    }
    plane
}

pub(crate) fn client(namespace: &str) -> Client {
    client_of(ClientClass::Library, namespace, &[])
}

pub(crate) fn grpc_client(namespace: &str) -> Client {
    client_of(ClientClass::Grpc, namespace, &[])
}

pub(crate) fn client_of(class: ClientClass, namespace: &str, labels: &[(&str, &str)]) -> Client {
    let node_id = "mesh~127.0.0.1~test.default~default.svc.cluster.local";
    let client = Client::new(node_id, class, IpAddr::V4(Ipv4Addr::LOCALHOST));
    client.namespace(namespace).labels(labels.iter().copied())
}

pub(crate) fn workload(key: &str, app: &str, version: &str, address: &str) -> Workload {
    Workload::new(key, "default", key, address.parse().unwrap()).labelled([("app", app), ("version", version)])
}

/// The snapshot as one client sees it, decoded.
pub(crate) struct Seen {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) client: Client,
}

impl Seen {
    pub(crate) fn new(plane: &Plane, client: Client) -> Seen {
        Seen { snapshot: plane.snapshot(), client }
    }

    pub(crate) fn get(&self, kind: Kind, name: &str) -> Option<Encoded> {
        self.snapshot.resource(&self.client, kind, name)
    }

    fn must(&self, kind: Kind, name: &str) -> Encoded {
        self.get(kind, name).unwrap_or_else(|| panic!("there is no {kind:?} {name}"))
    }

    pub(crate) fn manager(&self, target: &str) -> HttpConnectionManager {
        let listener = Listener::decode(self.must(Kind::Listener, target).body).unwrap();
        assert_eq!(listener.name, target);
        let any = listener.api_listener.unwrap().api_listener.unwrap();
        HttpConnectionManager::decode(any.value.as_slice()).unwrap()
    }

    pub(crate) fn filters_of(&self, target: &str) -> Vec<String> {
        self.manager(target).http_filters.into_iter().map(|filter| filter.name).collect()
    }

    /// The routes that a target leads to.
    pub(crate) fn routes_of(&self, target: &str) -> RouteConfiguration {
        let Some(RouteSpecifier::Rds(rds)) = self.manager(target).route_specifier else { panic!("not by RDS") };
        self.routes(&rds.route_config_name)
    }

    /// Its routes, unless they are in its listener: what a Sidecar hides is called as what nobody describes.
    pub(crate) fn routes_if_any_of(&self, target: &str) -> Option<RouteConfiguration> {
        match self.manager(target).route_specifier {
            Some(RouteSpecifier::Rds(rds)) => Some(self.routes(&rds.route_config_name)),
            _ => None,
        }
    }

    pub(crate) fn routes(&self, name: &str) -> RouteConfiguration {
        RouteConfiguration::decode(self.must(Kind::Route, name).body).unwrap()
    }

    pub(crate) fn cluster(&self, name: &str) -> Cluster {
        Cluster::decode(self.must(Kind::Cluster, name).body).unwrap()
    }

    pub(crate) fn assignment(&self, name: &str) -> ClusterLoadAssignment {
        ClusterLoadAssignment::decode(self.must(Kind::Endpoints, name).body).unwrap()
    }

    pub(crate) fn addresses(&self, name: &str) -> Vec<String> {
        addresses_in(&self.assignment(name))
    }

    pub(crate) fn server_listener(&self, bound: &str) -> Listener {
        let name = format!("xds.istio.io/grpc/lds/inbound/{bound}");
        Listener::decode(self.must(Kind::Listener, &name).body).unwrap()
    }
}

pub(crate) fn addresses_in(assignment: &ClusterLoadAssignment) -> Vec<String> {
    let mut addresses = Vec::new();
    for endpoint in assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints) {
        let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else { panic!("no endpoint") };
        addresses.push(address_of(endpoint.address.as_ref().unwrap()));
    }
    addresses
}

pub(crate) fn address_of(address: &Address) -> String {
    let Some(Kinds::SocketAddress(socket)) = &address.address else { panic!("no socket address") };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { panic!("no port") };
    match socket.address.contains(':') {
        true => format!("[{}]:{port}", socket.address),
        false => format!("{}:{port}", socket.address),
    }
}

/// A plane with this text alone.
pub(crate) fn plane_from(text: &str) -> Plane {
    Plane::from_yaml(text).unwrap_or_else(|rejected| panic!("{rejected}"))
}

/// What is behind the name in the `metadata` of an object that was made in this year; nothing, without any.
pub(crate) fn made_in(year: &str) -> String {
    if year.is_empty() { String::new() } else { format!(", creationTimestamp: '{year}-01-01T00:00:00Z'") }
}

/// What became of each policy of Gateway API at each of its targets, by its name: the reasons of its conditions.
pub(crate) fn policy_reasons(plane: &Plane) -> Vec<(String, Vec<&'static str>)> {
    let snapshot = plane.snapshot();
    let all = snapshot.policy_statuses().map(|status| {
        let name = status.policy.rsplit('/').next().unwrap_or_default().to_owned();
        (name, status.conditions.iter().map(|condition| condition.reason).collect())
    });
    let mut all: Vec<_> = all.collect();
    all.sort();
    all
}

/// `name: conditions -> what happens`, one line for each route: short enough to write down in a test.
pub(crate) fn told(routes: &RouteConfiguration) -> Vec<String> {
    routes.virtual_hosts[0].routes.iter().map(tell_route).collect()
}

fn tell_route(route: &Route) -> String {
    let condition = route.r#match.as_ref().unwrap();
    let mut line = match condition.path_specifier.as_ref().unwrap() {
        PathSpecifier::Prefix(path) => format!("{path}*"),
        PathSpecifier::Path(path) => format!("={path}"),
        PathSpecifier::SafeRegex(regex) => format!("~{}", regex.regex),
        other => format!("{other:?}"),
    };
    if condition.case_sensitive.as_ref().is_some_and(|sensitive| !sensitive.value) {
        line += " nocase";
    }
    for header in &condition.headers {
        line += &format!(" {}", tell_header(header));
    }
    for query in &condition.query_parameters {
        use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier as Q;
        line += &match query.query_parameter_match_specifier.as_ref().unwrap() {
            Q::StringMatch(matcher) => format!(" ?{}{}", query.name, tell_string(matcher)),
            Q::PresentMatch(_) => format!(" ?{}", query.name),
        };
    }
    line += " -> ";
    line += &match route.action.as_ref().unwrap() {
        Action::Route(action) => tell_action(action),
        Action::Redirect(redirect) => format!(
            "redirect {} {}:{} {:?} {:?}",
            redirect.response_code,
            redirect.host_redirect,
            redirect.port_redirect,
            redirect.scheme_rewrite_specifier,
            redirect.path_rewrite_specifier
        ),
        Action::DirectResponse(response) => {
            format!("answer {} {:?}", response.status, response.body)
        }
        other => format!("{other:?}"),
    };
    for (what, options) in [("req", &route.request_headers_to_add), ("res", &route.response_headers_to_add)] {
        for option in options {
            let header = option.header.as_ref().unwrap();
            let sign = if option.append_action == 0 { "+=" } else { "=" };
            line += &format!(" {what}:{}{sign}{}", header.key, header.value);
        }
    }
    for (what, names) in [("req", &route.request_headers_to_remove), ("res", &route.response_headers_to_remove)] {
        for name in names {
            line += &format!(" {what}:-{name}");
        }
    }
    if let Some(fault) = route.typed_per_filter_config.get("envoy.filters.http.fault") {
        let fault = HttpFault::decode(fault.value.as_slice()).unwrap();
        if let Some(delay) = &fault.delay {
            let pause = delay.fault_delay_secifier.as_ref().unwrap();
            line += &format!(" delay {} {}", tell_debug(pause), delay.percentage.as_ref().unwrap().numerator);
        }
        if let Some(abort) = &fault.abort {
            let with = abort.error_type.as_ref().unwrap();
            line += &format!(" abort {} {}", tell_debug(with), abort.percentage.as_ref().unwrap().numerator);
        }
    }
    if route.name.is_empty() { line } else { format!("{}: {line}", route.name) }
}

fn tell_debug(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").replace(' ', "")
}

fn tell_action(action: &RouteAction) -> String {
    let mut line = match action.cluster_specifier.as_ref().unwrap() {
        ClusterSpecifier::Cluster(name) => name.clone(),
        ClusterSpecifier::WeightedClusters(clusters) => clusters
            .clusters
            .iter()
            .map(|cluster| format!("{} {}", cluster.weight.as_ref().unwrap().value, cluster.name))
            .collect::<Vec<_>>()
            .join(" / "),
        other => format!("{other:?}"),
    };
    if let Some(timeout) = action.timeout.as_ref().filter(|timeout| timeout.seconds > 0 || timeout.nanos > 0) {
        line += &format!(" within {}.{:03}s", timeout.seconds, timeout.nanos / 1_000_000);
    }
    if !action.prefix_rewrite.is_empty() {
        line += &format!(" path={}", action.prefix_rewrite);
    }
    if let Some(regex) = &action.regex_rewrite {
        line += &format!(" path~{}={}", regex.pattern.as_ref().unwrap().regex, regex.substitution);
    }
    if let Some(rewrite) = &action.host_rewrite_specifier {
        line += &format!(" {rewrite:?}");
    }
    line
}

#[expect(deprecated, reason = "gRPC clients are told the older forms")]
fn tell_header(header: &HeaderMatcher) -> String {
    let not = if header.invert_match { "!" } else { "" };
    let or_missing = if header.treat_missing_header_as_empty { "?" } else { "" };
    let value = match header.header_match_specifier.as_ref().unwrap() {
        HeaderMatchSpecifier::StringMatch(matcher) => tell_string(matcher),
        HeaderMatchSpecifier::PresentMatch(_) => String::new(),
        HeaderMatchSpecifier::ExactMatch(text) => format!("={text}"),
        HeaderMatchSpecifier::PrefixMatch(text) => format!("={text}*"),
        HeaderMatchSpecifier::SafeRegexMatch(regex) => format!("~{}", regex.regex),
        other => format!("{other:?}"),
    };
    format!("{not}{}{value}{or_missing}", header.name)
}

fn tell_string(matcher: &StringMatcher) -> String {
    match matcher.match_pattern.as_ref().unwrap() {
        MatchPattern::Exact(text) => format!("={text}"),
        MatchPattern::Prefix(text) => format!("={text}*"),
        MatchPattern::SafeRegex(regex) => format!("~{}", regex.regex),
        other => format!("{other:?}"),
    }
}
