//! What a control plane makes for one client at once, by the cases by which Istio measures its own: as many services, with what those
//! have. The objects are this project's own, so that figures compare by what is asked for, and not byte by byte. Of Istio's cases
//! those are not here for which there is nothing: waypoints, and tables of names.

use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use envoy_types::pb::google::protobuf::Any;
use mesh_control::catalog::{Catalog, Client, ClientClass, Encoded, Kind};
use mesh_control::plane::{Plane, PlaneOptions, Snapshot};
use prost::Message;

use crate::Result;

/// So many services, a client, and what is made for it.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name, Istio's where there is one.
    pub name: &'static str,
    /// How many services there are.
    pub services: usize,
    /// How many endpoints each has.
    pub endpoints: usize,
    /// What is made.
    pub made: &'static [Made],
    objects: fn(&Case) -> String,
    client: fn() -> Client,
}

/// Resources of a kind, and how many there are.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    /// The kind.
    pub kind: Kind,
    /// For each service.
    pub each: usize,
    /// And besides.
    pub besides: usize,
}

const fn made(kind: Kind, each: usize, besides: usize) -> Made {
    Made { kind, each, besides }
}

/// Of redirected connections (`virtualInbound`, `virtualOutbound`), and of the port that all services have.
const LISTENERS: Made = made(Kind::Listener, 0, 3);
/// The caller's own, in and out, and those without a service: nowhere, onward, and inward.
const CLUSTERS: Made = made(Kind::Cluster, 1, 5);
const ROUTES: Made = made(Kind::Route, 0, 1);
/// Without a port, and without a service.
const BARE_LISTENERS: Made = made(Kind::Listener, 0, 2);
const BARE_CLUSTERS: Made = made(Kind::Cluster, 0, 3);
/// Each service has a port of its own; all have another than the caller.
const TCP_LISTENERS: Made = made(Kind::Listener, 1, 3);
const TLS_LISTENERS: Made = made(Kind::Listener, 0, 4);
/// With two subsets each.
const SUBSETS: Made = made(Kind::Cluster, 3, 5);
/// Of a gateway, which has one port.
const AT_EDGE: Made = made(Kind::Listener, 0, 1);
const BEHIND_EDGE: Made = made(Kind::Cluster, 1, 1);
const REVISIONS: Made = made(Kind::Cluster, 2, 1);
/// With those of the cluster that leads nowhere.
const ENDPOINTS: &[Made] = &[made(Kind::Endpoints, 1, 1)];

/// All cases.
pub const CASES: &[Case] = &[
    sidecar("empty", 0, &[BARE_LISTENERS, BARE_CLUSTERS], |_| String::new()),
    gateway("gateways", 1000, &[AT_EDGE, BEHIND_EDGE, ROUTES], gateways),
    gateway("gateways-shared", 1000, &[AT_EDGE, BEHIND_EDGE, ROUTES], shared_gateway),
    gateway("knative-gateway", 100, &[AT_EDGE, REVISIONS, ROUTES], revisions),
    sidecar("http", 100, &[LISTENERS, CLUSTERS, ROUTES], http),
    sidecar("tcp", 100, &[TCP_LISTENERS, CLUSTERS], |case| {
        called(case, |number| service(&name(number), "name: tcp, ", 10_000 + number))
    }),
    sidecar("tls", 100, &[TLS_LISTENERS, CLUSTERS], |case| {
        called(case, |number| service(&name(number), "name: tls, ", 443))
    }),
    sidecar("auto", 100, &[LISTENERS, CLUSTERS, ROUTES], |case| called(case, |number| service(&name(number), "", 80))),
    sidecar("strict", 100, &[LISTENERS], |case| http(case) + &peer_authentication("STRICT")),
    sidecar("disabled", 100, &[LISTENERS], |case| http(case) + &peer_authentication("DISABLE")),
    sidecar("externalname", 100, &[LISTENERS, ROUTES], |case| {
        called(case, external) + &service("real", "name: http, ", 80)
    }),
    sidecar("telemetry-api", 100, &[LISTENERS, CLUSTERS, ROUTES], |case| http(case) + &telemetry()),
    sidecar("virtualservice", 100, &[LISTENERS, SUBSETS, ROUTES], |case| http(case) + &all(case, rules)),
    sidecar("authorizationpolicy", 100, &[LISTENERS], |case| called(case, authorization_policy)),
    sidecar("serviceentry-workloadentry", 100, &[LISTENERS, CLUSTERS, ROUTES], |case| called(case, workload_entries)),
    endpoints(100, 1),
    endpoints(10, 10),
    endpoints(10, 100),
    endpoints(1, 1000),
];

const fn sidecar(name: &'static str, services: usize, made: &'static [Made], objects: fn(&Case) -> String) -> Case {
    Case { name, services, endpoints: 0, made, objects, client: beside_a_workload }
}

const fn gateway(name: &'static str, services: usize, made: &'static [Made], objects: fn(&Case) -> String) -> Case {
    Case { name, services, endpoints: 0, made, objects, client: at_the_edge }
}

const fn endpoints(services: usize, endpoints: usize) -> Case {
    let name = "endpoints";
    Case { name, services, endpoints, made: ENDPOINTS, objects: with_endpoints, client: beside_a_workload }
}

/// An Envoy beside a workload whose connections are redirected to it.
fn beside_a_workload() -> Client {
    let id = "sidecar~10.0.0.1~caller.shop~shop.svc.cluster.local";
    let client = Client::new(id, ClientClass::Envoy, [10, 0, 0, 1].into()).namespace("shop");
    client.labels([("app", "caller"), ("security.istio.io/tlsMode", "istio")]).sidecar([10, 0, 0, 1], true)
}

/// An Envoy that is a gateway.
fn at_the_edge() -> Client {
    let id = "router~10.0.0.1~edge.shop~shop.svc.cluster.local";
    let client = Client::new(id, ClientClass::Envoy, [10, 0, 0, 1].into()).namespace("shop");
    client.labels([("istio", "ingressgateway"), ("security.istio.io/tlsMode", "istio")]).gateway()
}

/// A control plane with the objects of a case, and its client.
#[derive(Debug)]
pub struct Generation {
    /// The control plane.
    pub plane: Plane,
    client: Client,
}

impl Generation {
    /// Of this case. Nothing was made yet.
    pub fn new(case: &Case) -> Result<Generation> {
        let options = PlaneOptions::default().issues_certificates(true).trust_claims(true).permissive(true);
        let plane = Plane::start(options)?;
        plane.set_yaml("case.yaml", &(case.objects)(case))?;
        Ok(Generation { plane, client: (case.client)() })
    }

    /// A configuration that is another, and says the same to the client: of what was made, nothing is used again.
    pub fn renew(&self, turn: usize) -> Result<Arc<Snapshot>> {
        let hidden = format!(
            "apiVersion: v1\nkind: Service\n\
             metadata: {{name: turn-{turn}, namespace: elsewhere, annotations: {{networking.istio.io/exportTo: '.'}}}}\n\
             spec: {{selector: {{app: turn}}, ports: [{{name: http, port: 80}}]}}\n"
        );
        self.plane.set_yaml("turn.yaml", &hidden)?;
        Ok(self.plane.snapshot())
    }

    /// Everything of a kind that the client is told, rendered and encoded.
    pub fn push(&self, snapshot: &Snapshot, kind: Kind) -> Vec<Encoded> {
        let names = snapshot.everything(&self.client, kind);
        names.iter().filter_map(|name| snapshot.resource(&self.client, kind, name)).collect()
    }
}

/// How long the message is with which resources of a kind travel.
pub fn message_bytes(kind: Kind, resources: &[Encoded]) -> usize {
    let any = |resource: &Encoded| Any { type_url: kind.type_url().to_owned(), value: resource.body.to_vec() };
    let type_url = kind.type_url().to_owned();
    DiscoveryResponse { resources: resources.iter().map(any).collect(), type_url, ..Default::default() }.encoded_len()
}

/// Something for each service.
fn all(case: &Case, one: fn(usize) -> String) -> String {
    (0..case.services).map(one).collect()
}

/// The same, with the service that the client is of.
fn called(case: &Case, one: fn(usize) -> String) -> String {
    service("caller", "name: http, ", 80) + &all(case, one)
}

fn http(case: &Case) -> String {
    called(case, of_http)
}

fn of_http(number: usize) -> String {
    service(&name(number), "name: http, ", 80)
}

fn name(number: usize) -> String {
    format!("service-{number}")
}

fn object(version: &str, kind: &str, name: &str, spec: &str) -> String {
    format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n")
}

fn networking(kind: &str, name: &str, spec: &str) -> String {
    object("networking.istio.io/v1", kind, name, spec)
}

fn service(name: &str, port_name: &str, port: usize) -> String {
    let spec = format!("{{selector: {{app: {name}}}, ports: [{{{port_name}port: {port}}}]}}");
    object("v1", "Service", name, &spec)
}

fn external(number: usize) -> String {
    let spec = "{type: ExternalName, externalName: real.shop.svc.cluster.local}";
    object("v1", "Service", &name(number), spec)
}

fn peer_authentication(mode: &str) -> String {
    object("security.istio.io/v1", "PeerAuthentication", "default", &format!("{{mtls: {{mode: {mode}}}}}"))
}

fn telemetry() -> String {
    let spec = "
  metrics:
  - providers: [{name: prometheus}]
    overrides:
    - match: {metric: REQUEST_COUNT, mode: CLIENT_AND_SERVER}
      tagOverrides: {tenant: {value: 'request.host'}}
    - match: {metric: REQUEST_SIZE}
      disabled: true
  accessLogging:
  - providers: [{name: envoy}]
    filter: {expression: 'response.code >= 500'}";
    object("telemetry.istio.io/v1", "Telemetry", "default", spec)
}

/// Conditions, retries, a rewrite, and weights of two subsets.
fn rules(number: usize) -> String {
    let host = name(number);
    let subsets = "[{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]";
    let to = |subset: &str| format!("{{destination: {{host: {host}, subset: {subset}}}");
    let (one, two) = (to("v1"), to("v2"));
    let routes = format!(
        "
  hosts: [{host}]
  http:
  - match: [{{headers: {{end-user: {{exact: jason}}}}}}, {{uri: {{prefix: /new}}}}]
    route: [{two}}}]
    timeout: 5s
    retries: {{attempts: 3, perTryTimeout: 1s, retryOn: '5xx'}}
  - match: [{{uri: {{regex: '/items/[0-9]+'}}}}]
    rewrite: {{uri: /item}}
    route: [{one}}}]
  - route: [{one}, weight: 90}}, {two}, weight: 10}}]"
    );
    networking("DestinationRule", &host, &format!("{{host: {host}, subsets: {subsets}}}"))
        + &networking("VirtualService", &host, &routes)
}

fn authorization_policy(number: usize) -> String {
    let spec = format!(
        "
  selector: {{matchLabels: {{app: caller}}}}
  action: ALLOW
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/shop/sa/account-{number}]}}}}, {{source: {{namespaces: [shop]}}}}]
    to: [{{operation: {{methods: [GET, HEAD], paths: [/items/{number}, /public/*]}}}}]
    when: [{{key: 'request.headers[x-tenant]', values: [tenant-{number}]}}]"
    );
    object("security.istio.io/v1", "AuthorizationPolicy", &format!("policy-{number}"), &spec)
}

/// A service of ten instances that are objects of their own.
fn workload_entries(number: usize) -> String {
    let name = name(number);
    let selector = format!("workloadSelector: {{labels: {{app: {name}}}}}");
    let mut text = networking("ServiceEntry", &name, &service_entry(number, &selector));
    for instance in 0..10 {
        let spec = format!("{{address: {}, labels: {{app: {name}}}}}", address(number, instance));
        text += &networking("WorkloadEntry", &format!("{name}-{instance}"), &spec);
    }
    text
}

fn with_endpoints(case: &Case) -> String {
    let one = |number: usize| {
        let written = (0..case.endpoints).map(|endpoint| format!("{{address: {}}}", address(number, endpoint)));
        let written = format!("endpoints: [{}]", written.collect::<Vec<_>>().join(", "));
        networking("ServiceEntry", &name(number), &service_entry(number, &written))
    };
    (0..case.services).map(one).collect()
}

fn service_entry(number: usize, whose: &str) -> String {
    let ports = "[{number: 80, name: http, protocol: HTTP}]";
    let host = format!("service-{number}.example.com");
    format!("{{hosts: [{host}], location: MESH_INTERNAL, resolution: STATIC, ports: {ports}, {whose}}}")
}

/// The address of an endpoint: another one for each of a thousand of each of fifteen thousand services.
fn address(service: usize, endpoint: usize) -> String {
    let block = service * 4 + endpoint / 250;
    format!("10.{}.{}.{}", 1 + block / 250, block % 250, 1 + endpoint % 250)
}

fn gateway_object(name: &str, host: &str) -> String {
    let port = "{number: 8080, name: http, protocol: HTTP}";
    let spec = format!("{{selector: {{istio: ingressgateway}}, servers: [{{port: {port}, hosts: ['{host}']}}]}}");
    networking("Gateway", name, &spec)
}

/// A Gateway, a host and a rule for each service.
fn gateways(case: &Case) -> String {
    all(case, |number| {
        let (name, gateway, host) =
            (name(number), format!("gateway-{number}"), format!("service-{number}.example.com"));
        let to = format!("http: [{{route: [{{destination: {{host: {name}}}}}]}}]");
        let rule = format!("{{hosts: [{host}], gateways: [{gateway}], {to}}}");
        of_http(number) + &gateway_object(&gateway, &host) + &networking("VirtualService", &name, &rule)
    })
}

/// One host, whose paths lead to all services.
fn shared_gateway(case: &Case) -> String {
    let routes = all(case, |number| {
        let name = name(number);
        format!("  - match: [{{uri: {{prefix: /{name}/}}}}]\n    route: [{{destination: {{host: {name}}}}}]\n")
    });
    let rule = format!("\n  hosts: [www.example.com]\n  gateways: [gateway]\n  http:\n{routes}");
    all(case, of_http) + &gateway_object("gateway", "*.example.com") + &networking("VirtualService", "all", &rule)
}

/// A host for each service, whose requests two revisions of it share, with headers that say so.
fn revisions(case: &Case) -> String {
    let of = |number: usize| {
        let host = format!("route-{number}.example.com");
        let revision = |number: usize, revision: usize| format!("service-{number}-{revision}");
        let to = |which: usize, weight: usize| {
            format!(
                "    - {{destination: {{host: {}, port: {{number: 80}}}}, weight: {weight}, \
                 headers: {{request: {{set: {{x-revision: revision-{number}-{which}}}}}}}}}\n",
                revision(number, which)
            )
        };
        let set = format!("    headers: {{request: {{set: {{x-network-hash: hash-{number}}}}}}}\n    route:\n");
        let to = to(1, 20) + &to(2, 80);
        let rule = format!(
            "
  hosts: [{host}]
  gateways: [gateway]
  http:
  - match: [{{authority: {{prefix: {host}}}, headers: {{x-network-hash: {{exact: override}}}}}}]
{set}{to}  - match: [{{authority: {{prefix: {host}}}}}]
{set}{to}"
        );
        let services = [1, 2].map(|which| service(&revision(number, which), "name: http, ", 80));
        services.concat() + &networking("VirtualService", &format!("route-{number}"), &rule)
    };
    gateway_object("gateway", "*.example.com") + &all(case, of)
}

#[cfg(test)]
mod tests {
    use mesh_control::config::Severity;

    use super::*;

    /// What a change allocates with so many services, in the case of this name.
    fn change(name: &str, services: usize) -> u64 {
        let case = CASES.iter().find(|case| case.name == name).unwrap();
        let of = Generation::new(&Case { services, ..*case }).unwrap();
        allocation_counter::measure(|| drop(of.renew(0).unwrap())).count_total
    }

    #[test]
    fn a_change_among_twice_as_many_gateways_costs_no_more_than_three_times_as_much() {
        let (few, many) = (change("gateways", 150), change("gateways", 300));
        assert!(many <= few * 3, "{few} {many}");
    }

    /// One server that names the host of each service.
    fn named_hosts(case: &Case) -> String {
        let host = |number: usize| format!("service-{number}.example.com");
        let hosts = (0..case.services).map(host).collect::<Vec<_>>().join("', '");
        let rules = (0..case.services).map(|number| {
            let (name, host) = (name(number), host(number));
            let to = "http: [{route: [{destination: {host: service-0}}]}]";
            let rule = format!("{{hosts: [{host}], gateways: [gateway], {to}}}");
            networking("VirtualService", &name, &rule)
        });
        of_http(0) + &gateway_object("gateway", &hosts) + &rules.collect::<String>()
    }

    #[test]
    fn a_change_among_twice_as_many_hosts_of_a_gateway_costs_hardly_more_than_twice_as_much() {
        let change = |services: usize| {
            let of = Generation::new(&gateway("hosts", services, &[], named_hosts)).unwrap();
            let routes = || of.push(&of.renew(0).unwrap(), Kind::Route).len();
            let mut made = 0;
            let allocated = allocation_counter::measure(|| made = routes()).count_total;
            assert_eq!(made, 1);
            allocated
        };
        let (few, many) = (change(500), change(1000));
        assert!(many * 2 <= few * 5, "{few} {many}");
    }

    #[test]
    fn every_case_makes_what_it_says_without_an_error_and_the_same_again() {
        for case in CASES {
            let case = Case { services: case.services.min(3), ..*case };
            let of = Generation::new(&case).unwrap();
            let first = of.plane.snapshot();
            for made in case.made {
                let (what, before) = (format!("{}: {:?}", case.name, made.kind), of.push(&first, made.kind));
                assert_eq!(before.len(), made.each * case.services + made.besides, "{what}");
                if made.kind == Kind::Endpoints {
                    let endpoints: usize = before.iter().map(|resource| resource.endpoints).sum();
                    assert_eq!(endpoints, case.services * case.endpoints, "{what}");
                }
                let again = of.push(&of.renew(0).unwrap(), made.kind);
                assert_eq!(before, again, "{what}: another configuration says the same to this client");
                assert!(
                    before.iter().zip(&again).any(|(one, other)| one.body.as_ptr() != other.body.as_ptr()),
                    "{what}"
                );
                let bodies: usize = before.iter().map(|resource| resource.body.len()).sum();
                assert!(message_bytes(made.kind, &before) > bodies, "{what}");
            }
            let found = of.plane.diagnostics();
            let errors: Vec<_> = found.iter().filter(|finding| finding.severity == Severity::Error).collect();
            assert!(errors.is_empty(), "{}: {errors:#?}", case.name);
        }
    }
}
