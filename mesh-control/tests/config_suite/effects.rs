//! What the table of support calls enforced has an effect: every such field of `testdata/everything` is taken out or
//! changed, and what clients are told must change with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3::Listener;
use mesh_control::catalog::{Catalog, Client, ClientClass, Kind};
use mesh_control::config::node::{self, Node, Value};
use mesh_control::config::support::{ObjectKind, Support, is_own_row, row};
use mesh_control::config::{Code, Source};
use mesh_control::plane::{Plane, Snapshot};
use prost::Message;
use serde_json::Value as Json;

use crate::support::{client_of, testdata};

/// A step from a value to one inside it.
#[derive(Clone, Debug)]
enum Step {
    Key(String),
    Index(usize),
}

/// An enforced field where it is written: which configuration and document, and the way there.
struct Place {
    configuration: usize,
    document: usize,
    way: Vec<Step>,
}

/// Configurations that say nothing of each other, so that a change in one is not looked for in all.
fn configurations() -> [Vec<Json>; 3] {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(testdata("everything")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    // The settings of the mesh are a text in another object: `mesh_config.rs` has a test for each.
    files.retain(|file| !file.ends_with("mesh-config.yaml"));
    let (routes, files): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| file.ends_with("gateway-api.yaml"));
    let texts = |files: &[PathBuf]| files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect::<Vec<_>>();
    let parsed = |texts: Vec<String>| texts.iter().flat_map(|text| parse(text)).collect();
    let of_routes = [secrets(["api", "api-ca", "api-other-ca"]), vec![authorities()]].concat();
    let of_gateways = secrets(["edge", "edge-other", "edge-ca"]);
    [
        parsed([texts(&files), vec![MORE.to_owned()], of_gateways].concat()),
        guards(),
        parsed([texts(&routes), of_routes].concat()),
    ]
}

/// What gateways of `testdata/everything` show.
fn secrets(names: [&str; 3]) -> Vec<String> {
    names.map(|name| crate::gateways::secret("shop", name, "a.edge.example.com")).into()
}

/// Who vouches for what is behind them: no cluster and no etcd has it to give.
fn authorities() -> String {
    crate::backend_tls::authorities("backend-authorities")
}

/// What `testdata/everything` cannot have, as one value rules out the other there.
const MORE: &str = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: written, namespace: shop}
spec:
  host: written.example.com
  trafficPolicy:
    connectionPool:
      tcp: {connectTimeout: 3s}
      http: {idleTimeout: 7s, maxRequestsPerConnection: 7, h2UpgradePolicy: UPGRADE, http2MaxRequests: 9, maxConcurrentStreams: 5}
    portLevelSettings:
    - {port: {number: 82}, connectionPool: {http: {idleTimeout: 8s}}}
  subsets:
  - {name: v1, labels: {v: "1"}, trafficPolicy: {tls: {mode: SIMPLE}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: limits, namespace: shop}
spec:
  host: vms
  trafficPolicy: {connectionPool: {tcp: {idleTimeout: 6s}, http: {http2MaxRequests: 6}}, outlierDetection: {consecutive5xxErrors: 0, splitExternalLocalOriginErrors: true, consecutiveGatewayErrors: 6, interval: 6s, baseEjectionTime: 6s, maxEjectionPercent: 6}, portLevelSettings: [{port: {number: 81}, connectionPool: {tcp: {idleTimeout: 7s}, http: {http2MaxRequests: 7, h2UpgradePolicy: UPGRADE}}, outlierDetection: {consecutive5xxErrors: 0, splitExternalLocalOriginErrors: true, consecutiveGatewayErrors: 7, interval: 7s, baseEjectionTime: 7s, maxEjectionPercent: 7}}]}
  subsets:
  - {name: v1, labels: {v: "1"}, trafficPolicy: {connectionPool: {tcp: {idleTimeout: 8s}, http: {http2MaxRequests: 8, h2UpgradePolicy: UPGRADE}}, outlierDetection: {consecutive5xxErrors: 0, splitExternalLocalOriginErrors: true, consecutiveGatewayErrors: 8, interval: 8s, baseEjectionTime: 8s, maxEjectionPercent: 8}, portLevelSettings: [{port: {number: 81}, connectionPool: {tcp: {idleTimeout: 9s}, http: {http2MaxRequests: 9, h2UpgradePolicy: UPGRADE}}, outlierDetection: {consecutive5xxErrors: 0, splitExternalLocalOriginErrors: true, consecutiveGatewayErrors: 9, interval: 9s, baseEjectionTime: 9s, maxEjectionPercent: 9}}]}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: selected, namespace: shop}
spec:
  host: selected.example.com
  trafficPolicy:
    portLevelSettings:
    - {port: {number: 80}, loadBalancer: {simple: RANDOM}, connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}
  subsets:
  - name: v1
    labels: {v: "1"}
    trafficPolicy:
      portLevelSettings:
      - {port: {number: 80}, loadBalancer: {simple: RANDOM}, connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}
  - {name: v2, labels: {v: "2"}}
---
apiVersion: v1
kind: Service
metadata: {name: vms, namespace: shop}
spec:
  selector: {app: vm}
  ports: [{port: 80, name: web, targetPort: http}, {port: 81, name: other}, {port: 82, name: calls, appProtocol: grpc}]
---
apiVersion: v1
kind: Service
metadata: {name: close, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, name: http}], trafficDistribution: PreferSameZone}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: two, namespace: shop}
spec:
  hosts: [two]
  http:
  - name: named
    match:
    - {uri: {exact: /Gold}, ignoreUriCase: true, name: one}
    - {uri: {prefix: /port}, port: 8080}
    - headers: {x: {exact: "1"}, z: {prefix: z}, w: {regex: ".+"}}
      withoutHeaders: {n: {exact: "1"}, o: {prefix: p}, k: {regex: ".*"}}
    - {uri: {prefix: /labels}, sourceLabels: {tier: gold}}
    - {uri: {prefix: /namespace}, sourceNamespace: shop}
    timeout: 2s
    corsPolicy: {allowOrigin: [a, b]}
    fault: {abort: {httpStatus: 503, percent: 5}, delay: {fixedDelay: 2s, percentage: {value: 3}}}
    retries: {attempts: 2, retryOn: "unavailable,503", backoff: 2s, perTryTimeout: 1s, retryRemoteLocalities: true, retryIgnorePreviousHosts: false}
    route: [{destination: {host: two, port: {number: 8080}}, weight: 1}, {destination: {host: web, port: {number: 80}, subset: v1}, weight: 2}]
  - match: [{gateways: [mesh], uri: {prefix: /mesh}}]
    fault: {abort: {httpStatus: 500, percentage: {value: 2}}}
    route: [{destination: {host: two, port: {number: 8080}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: raw, namespace: shop}
spec:
  hosts: [raw.example.com]
  ports: [{number: 443, name: tls, protocol: TLS}, {number: 8080, name: tcp, protocol: TCP}]
  resolution: STATIC
  endpoints: [{address: 10.1.0.9, labels: {v: "1"}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: raw, namespace: shop}
spec: {host: raw.example.com, subsets: [{name: v1, labels: {v: "1"}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: raw, namespace: shop}
spec:
  hosts: [raw.example.com, "*.raw.example.com"]
  tls:
  - match: [{sniHosts: [a.raw.example.com], destinationSubnets: [10.0.0.0/8]}]
    route: [{destination: {host: two}}]
  - match: [{sniHosts: [b.raw.example.com, c.raw.example.com], port: 443, sourceLabels: {tier: gold}, gateways: [mesh], sourceNamespace: shop}]
    route: [{destination: {host: raw.example.com, subset: v1, port: {number: 443}}, weight: 1}, {destination: {host: two}, weight: 2}]
  tcp:
  - match: [{destinationSubnets: [10.0.0.0/8]}]
    route: [{destination: {host: two}}]
  - match: [{port: 8080, sourceLabels: {tier: gold}, gateways: [mesh], sourceNamespace: shop}]
    route: [{destination: {host: raw.example.com, subset: v1, port: {number: 8080}}, weight: 1}, {destination: {host: two}, weight: 2}]
"#;

/// For each document, a configuration of those that speak of the same, and where it stands in it. What has an effect there
/// has one, and a trial costs a fraction of one with all documents.
fn surroundings(documents: &[Json]) -> Vec<(Vec<Json>, usize)> {
    let words: Vec<BTreeSet<String>> = documents.iter().map(words).collect();
    // A namespace, a version, a protocol: everybody has those.
    let is_common = |word: &String| words.iter().filter(|words| words.contains(word)).count() * 4 > documents.len();
    let related = |one: usize, other: usize| words[one].intersection(&words[other]).any(|word| !is_common(word));
    let around = |number: usize| {
        let near = (0..documents.len()).filter(|other| *other == number || related(number, *other));
        let near: BTreeSet<usize> = near.collect();
        let own = near.range(..number).count();
        (near.into_iter().map(|near| documents[near].clone()).collect(), own)
    };
    (0..documents.len()).map(around).collect()
}

/// Its texts, those that are hosts by their first label.
fn words(value: &Json) -> BTreeSet<String> {
    match value {
        Json::String(text) => [text.split('.').next().unwrap_or(text).to_owned()].into(),
        Json::Array(items) => items.iter().flat_map(words).collect(),
        Json::Object(entries) => entries.values().flat_map(words).collect(),
        _ => BTreeSet::new(),
    }
}

fn parse(text: &str) -> Vec<Json> {
    let source = Source { name: "everything.yaml".into(), text: text.into() };
    node::parse(&source).unwrap().iter().map(json).collect()
}

fn json(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::Str(value) => value.clone().into(),
        Value::Seq(items) => items.iter().map(json).collect(),
        Value::Map(entries) => {
            Json::Object(entries.iter().map(|(key, value)| (key.name.clone(), json(value))).collect())
        }
    }
}

/// A rule on tokens with everything that is enforced.
const TOKENS: &str = r#"{issuer: me, audiences: [shop], fromHeaders: [{name: x-token, prefix: T}], fromParams: [a],
    fromCookies: [b], outputPayloadToHeader: x-payload, forwardOriginalToken: true,
    outputClaimToHeaders: [{header: x-sub, claim: sub}], spaceDelimitedClaims: [roles],
    jwks: '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}'}"#;

/// One whose keys are to be fetched, which nobody does here.
const ELSEWHERE: &str = "{issuer: me, jwksUri: 'https://keys.example/me', timeout: 7s}";

/// What guards workloads: each another one, so that each has an effect of its own.
fn guards() -> Vec<Json> {
    let service = |number: usize| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: g{number}, namespace: shop}}, spec: {{selector: {{guard: '{number}'}}, ports: [{{port: 80}}]}}}}"
        )
    };
    let guard = |number: usize, kind: &str, spec: &str| {
        format!(
            "{{apiVersion: security.istio.io/v1, kind: {kind}, metadata: {{name: g{number}, namespace: shop}}, spec: {{{spec}}}}}"
        )
    };
    let rules = "jwtRules: [{issuer: me}]";
    let selector = |number: usize| format!("selector: {{matchLabels: {{guard: '{number}'}}}}");
    let target = |number: usize| format!("{{kind: Service, name: g{number}}}");
    let access = "rules: [{\
        from: [{source: {principals: [a/ns/b/sa/c], notPrincipals: [d], namespaces: [e], notNamespaces: [f], \
            ipBlocks: [10.0.0.1], notIpBlocks: [10.0.0.2], remoteIpBlocks: [10.0.0.3], notRemoteIpBlocks: [10.0.0.4], \
            serviceAccounts: [g/h], notServiceAccounts: [i], trustDomains: [j], notTrustDomains: [k]}}], \
        to: [{operation: {hosts: [a], notHosts: [b], ports: ['1'], notPorts: ['2'], methods: [GET], \
            notMethods: [PUT], paths: [/c], notPaths: [/d]}}], \
        when: [{key: source.namespace, values: [l], notValues: [m]}]}]";
    // By itself: gRPC's servers can do none of it.
    let on_tokens = "rules: [{from: [{source: {requestPrincipals: [n/o], notRequestPrincipals: [p/q]}}]}]";
    let documents = [
        guard(1, "PeerAuthentication", &format!("{}, mtls: {{mode: STRICT}}", selector(1))),
        guard(2, "RequestAuthentication", &format!("{}, {rules}", selector(2))),
        guard(3, "AuthorizationPolicy", &selector(3)),
        guard(4, "AuthorizationPolicy", &format!("targetRef: {}", target(4))),
        guard(5, "AuthorizationPolicy", &format!("targetRefs: [{}]", target(5))),
        guard(6, "RequestAuthentication", &format!("targetRef: {}, {rules}", target(6))),
        guard(7, "RequestAuthentication", &format!("targetRefs: [{}], {rules}", target(7))),
        guard(8, "AuthorizationPolicy", &format!("{}, action: ALLOW, {access}", selector(8))),
        guard(9, "RequestAuthentication", &format!("{}, jwtRules: [{TOKENS}]", selector(9))),
        guard(10, "AuthorizationPolicy", &format!("{}, {on_tokens}", selector(10))),
        guard(11, "RequestAuthentication", &format!("{}, jwtRules: [{ELSEWHERE}]", selector(11))),
        // Who is asked is in the settings of the mesh, and here is nobody: the answer says whom it misses.
        guard(
            12,
            "AuthorizationPolicy",
            &format!("{}, action: CUSTOM, provider: {{name: a}}, rules: [{{}}]", selector(12)),
        ),
    ];
    let documents = documents.into_iter().chain((4..=7).map(service));
    documents.flat_map(|text| parse(&text)).collect()
}

/// What a member of a group is told to ask stands under the name of the group, after this.
const CHECKS: &str = "checks of ";

/// What is asked for: by which client, and which resource.
type Key = (usize, Kind, String);

/// Everything that some clients are told.
type Told = BTreeMap<Key, Vec<u8>>;

/// A control plane, and some clients of one class.
struct Asked {
    plane: Plane,
    snapshot: Arc<Snapshot>,
    clients: Vec<Client>,
}

fn plane(documents: &[Json]) -> Option<Plane> {
    let text = documents.iter().map(Json::to_string).collect::<Vec<_>>().join("\n---\n");
    Plane::from_yaml(&text).ok()
}

/// Clients of the namespaces, then one for each of the guards.
fn clients(class: ClientClass) -> Vec<Client> {
    let gold: &[(&str, &str)] = &[("tier", "gold")];
    let namespaces = [("shop", &[] as &[_]), ("shop", gold), ("other", &[])];
    let guards = (1..=GUARDS).map(|guard| client_of(class, "shop", &[("guard", &guard.to_string())]));
    let placed = |(ns, labels)| {
        let mut client = client_of(class, ns, labels);
        client.locality = ["r1", "z", "s"].map(Into::into);
        client
    };
    let labels = [("istio", "everything"), ("gateway.networking.k8s.io/gateway-name", "edge")];
    let mut gateway = client_of(class, "shop", &labels).gateway();
    gateway.identity = "spiffe://cluster.local/ns/shop/sa/edge".parse().ok();
    namespaces.map(placed).into_iter().chain(guards).chain([gateway]).collect()
}

const GUARDS: usize = 12;
/// The one that is a gateway.
const GATEWAY: usize = 3 + GUARDS;

impl Asked {
    /// `None` where the configuration is refused.
    fn new(documents: &[Json], class: ClientClass) -> Option<Asked> {
        let plane = plane(documents)?;
        for (app, group, address) in [
            ("web", None, "127.0.0.1:8080"),
            ("web", None, "127.0.0.2:7000"),
            ("two", None, "127.0.0.3:8080"),
            ("none", Some("vms"), "127.0.0.4:8080"),
        ] {
            let mut workload =
                mesh_control::registry::Workload::new(address, "shop", address, address.parse().unwrap());
            workload.group = group.map(Into::into);
            // A member of a group is where the group says.
            if group.is_none() {
                let region = if address.ends_with("7000") { "r2" } else { "r1" };
                workload.locality = [region, "z", "s"].map(Into::into);
            }
            workload.ports = vec![("rpc".to_owned(), 7000)];
            let labels = [("app", app), ("v", if address.ends_with("7000") { "2" } else { "1" })];
            plane.register(if group.is_some() { workload } else { workload.labelled(labels) });
        }
        Some(Asked { snapshot: plane.snapshot(), plane, clients: clients(class) })
    }

    /// What there may be to ask for.
    fn keys(&self) -> Vec<Key> {
        // A service is asked for at its own ports, and what may have become a host at all of these.
        const PORTS: [u16; 6] = [80, 81, 82, 443, 8080, 9090];
        let mut hosts: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
        for service in self.plane.services() {
            hosts.entry(service.host).or_default().extend(service.ports.iter().map(|port| port.number));
        }
        for host in ["a.web.example.com", "b.dns.example.com", "240.0.0.1", "changed"] {
            hosts.entry(host.to_owned()).or_default().extend(PORTS);
        }
        let inbound = "xds.istio.io/grpc/lds/inbound/";
        let workloads: Vec<_> = self.plane.workloads().into_iter().map(|workload| workload.address).collect();
        let (of_namespaces, of_guards) = (0..GATEWAY - GUARDS, GATEWAY - GUARDS..GATEWAY);
        let mut keys = Vec::new();
        for who in of_namespaces {
            for (host, ports) in &hosts {
                keys.push((who, Kind::Listener, host.clone()));
                for port in ports {
                    keys.push((who, Kind::Listener, format!("{host}:{port}")));
                    for subset in ["", "v1", "v2", "changed"] {
                        for kind in [Kind::Route, Kind::Cluster, Kind::Endpoints] {
                            keys.push((who, kind, format!("outbound|{port}|{subset}|{host}")));
                        }
                    }
                }
            }
            keys.extend(workloads.iter().map(|address| (who, Kind::Listener, format!("{inbound}{address}"))));
        }
        for kind in [Kind::Listener, Kind::Route, Kind::Cluster] {
            let names = self.snapshot.everything(&self.clients[GATEWAY], kind).into_iter();
            keys.extend(names.map(|name| (GATEWAY, kind, name.to_string())));
        }
        keys.extend(["vms", "vms-tcp", "vms-grpc"].map(|group| (0, Kind::Endpoints, format!("{CHECKS}{group}"))));
        keys.extend(of_guards.map(|who| (who, Kind::Listener, format!("{inbound}127.0.0.5:80"))));
        keys
    }

    fn answer(&self, (who, kind, name): &Key) -> Option<Vec<u8>> {
        if let Some(group) = name.strip_prefix(CHECKS) {
            let mut member = self.clients[*who].clone();
            member.group = Some(group.into());
            return self.snapshot.health_checks(&member).map(|checks| checks.encode_to_vec());
        }
        self.snapshot.resource(&self.clients[*who], *kind, name).map(|resource| resource.body.to_vec())
    }

    fn told(&self) -> Told {
        self.keys().into_iter().filter_map(|key| self.answer(&key).map(|answer| (key, answer))).collect()
    }
}

/// `None` where the configuration is refused.
fn told(documents: &[Json], class: ClientClass) -> Option<Told> {
    Asked::new(documents, class).map(|asked| asked.told())
}

/// What clients were told of a configuration, to be compared with what they are told of changed documents.
struct Before {
    class: ClientClass,
    documents: Vec<Json>,
    told: Told,
    /// Where the last differences were: where the next one is, too, most of the time.
    likely: Vec<Key>,
}

impl Before {
    /// `None` where the configuration is refused.
    fn of(documents: Vec<Json>, class: ClientClass) -> Option<Before> {
        let told = told(&documents, class)?;
        Some(Before { class, documents, told, likely: Vec::new() })
    }

    /// Not so where they are refused: nobody is told of them.
    fn differs_from(&mut self, documents: &[Json]) -> bool {
        let Some(asked) = Asked::new(documents, self.class) else { return false };
        let differs = |key: &&Key| asked.answer(key).as_ref() != self.told.get(*key);
        if self.likely.iter().any(|key| differs(&key)) {
            return true;
        }
        let keys = asked.keys();
        // Each once: most are told nothing else, and this is where that is found out.
        let new = keys.iter().filter(|key| !self.told.contains_key(*key));
        let Some(key) = self.told.keys().chain(new).find(differs).cloned() else { return false };
        self.likely.push(key);
        true
    }
}

/// Where fields stand that are enforced for this class of client, in these documents of configurations.
fn enforced<'j>(
    documents: impl Iterator<Item = (usize, usize, &'j Json)>,
    class: ClientClass,
) -> BTreeMap<String, Vec<Place>> {
    let mut places: BTreeMap<String, Vec<Place>> = BTreeMap::new();
    for (configuration, number, document) in documents {
        let Some(kind) = ObjectKind::ALL.into_iter().find(|kind| is_of(kind, document)) else { continue };
        let mut collect = |field: &str, way: &[Step]| {
            if is_enforced(kind, field, class) {
                let field = format!("{} {field}", kind.title());
                let place = Place { configuration, document: number, way: way.to_vec() };
                places.entry(field).or_default().push(place);
            }
        };
        walk(&document["spec"], "", false, &mut vec![Step::Key("spec".to_owned())], &mut collect);
    }
    places
}

fn is_of(kind: &ObjectKind, document: &Json) -> bool {
    let text = |key: &str| document[key].as_str().unwrap_or_default();
    kind.is(text("apiVersion"), text("kind"))
}

fn walk(value: &Json, field: &str, is_keyed: bool, way: &mut Vec<Step>, collect: &mut impl FnMut(&str, &[Step])) {
    let mut inside = |field: &str, step: Step, value: &Json, is_key: bool| {
        way.push(step);
        collect(field, way);
        walk(value, field, is_key, way, collect);
        way.pop();
    };
    match value {
        Json::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                // The items of a list are no entries of a map, whatever it is called.
                inside(field, Step::Index(index), item, true);
            }
        }
        Json::Object(entries) => {
            for (key, value) in entries {
                // The key of a map is not a part of the path of the field.
                let is_map = matches!(
                    field.rsplit('.').next(),
                    Some("headers" | "withoutHeaders" | "queryParams" | "customTags" | "tagOverrides")
                );
                let is_key = is_map && !is_keyed && !matches!(&**key, "request" | "response");
                let field = match is_key || field.is_empty() {
                    true if is_key => field.to_owned(),
                    true => key.clone(),
                    false => format!("{field}.{key}"),
                };
                inside(&field, Step::Key(key.clone()), value, is_key);
            }
        }
        _ => {}
    }
}

/// The fields of the protos that have a row of their own which says enforced.
fn own_rows(class: ClientClass) -> Vec<String> {
    let mut fields = Vec::new();
    for kind in ObjectKind::ALL.into_iter().filter(|kind| *kind != ObjectKind::MeshConfig) {
        let text = std::fs::read_to_string(testdata("fields").join(format!("{}.txt", kind.title()))).unwrap();
        let enforced = text.lines().filter(|field| is_enforced(kind, field, class));
        fields.extend(enforced.map(|field| format!("{} {field}", kind.title())));
    }
    fields
}

fn is_enforced(kind: ObjectKind, field: &str, class: ClientClass) -> bool {
    row(kind, field).filter(|row| is_own_row(row, field)).is_some_and(|row| {
        let support = if class == ClientClass::Grpc { row.grpc } else { row.library };
        matches!(support, Support::Enforced | Support::Partly(_))
    })
}

/// The fields that are reported as not supported as they are written, without indexes.
fn reported(documents: &[Json]) -> BTreeSet<String> {
    let findings = plane(documents).unwrap().diagnostics().into_iter();
    let findings = findings.filter(|finding| matches!(finding.code, Code::NotSupportedYet | Code::NeedsCertificates));
    let fields = findings.map(|finding| {
        let (object, field) = (finding.object.unwrap(), finding.field.unwrap());
        let names: Vec<&str> = field.split(['[', ']']).step_by(2).collect();
        format!("{} {}", object.split(' ').next().unwrap_or_default(), names.concat())
    });
    fields.collect()
}

fn at<'j>(mut value: &'j mut Json, way: &[Step]) -> &'j mut Json {
    for step in way {
        value = match step {
            Step::Key(key) => &mut value[key],
            Step::Index(index) => &mut value[index],
        };
    }
    value
}

fn without(value: &mut Json, way: &[Step]) {
    let (last, parent) = way.split_last().unwrap();
    match (last, at(value, parent)) {
        (Step::Key(key), Json::Object(entries)) => drop(entries.remove(key)),
        (Step::Index(index), Json::Array(items)) => drop(items.remove(*index)),
        _ => unreachable!("the way leads there"),
    }
}

/// Other values of the same type, of which one at least is allowed for every field.
fn others(value: &Json) -> Vec<Json> {
    match value {
        Json::Bool(value) => vec![(!value).into()],
        Json::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            [number + 1.0, number / 2.0, 81.0, 301.0].map(|number| Json::from(number as i64)).into()
        }
        Json::String(_) => [
            ".",
            "/changed",
            "changed",
            "(changed)",
            "7s",
            "ROUND_ROBIN",
            "LEAST_REQUEST",
            "UPGRADE",
            "DO_NOT_UPGRADE",
            "DNS",
            "ClusterIP",
            "FROM_PROTOCOL_DEFAULT",
            "http",
            "TCP",
            "GRPC",
            "127.0.0.9",
            "CANCELLED",
            "two",
            "r9",
            "connect-failure",
            "SIMPLE",
            "DISABLE",
            "dGVy",
            "(.)(.)",
            "source.principal",
            "DENY",
            "ALLOW_ANY",
            "PRINCIPAL",
        ]
        .map(Json::from)
        .into(),
        Json::Array(_) => vec![Json::Array(vec![".".into()]), Json::Array(vec!["changed".into()])],
        _ => Vec::new(),
    }
}

/// Whether clients are told something else where the document of a place is edited.
fn makes_a_difference(place: &Place, before: &mut [Before], edit: impl FnOnce(&mut Json)) -> bool {
    let before = &mut before[place.configuration];
    let mut changed = before.documents.clone();
    edit(&mut changed[place.document]);
    before.differs_from(&changed)
}

/// What made a difference before. The same settings stand in several places, so that it most likely does again.
#[derive(Default)]
struct Learned {
    /// The value that did in the place of the one that was written, by the last name of the field.
    values: BTreeMap<String, Json>,
    /// How often it was in which document.
    documents: BTreeMap<(usize, usize), usize>,
}

impl Learned {
    /// Whether a field makes a difference somewhere: taken out first, which is the more likely, and then changed.
    fn has_effect(&mut self, field: &str, places: &[Place], before: &mut [Before]) -> bool {
        let times = |place: &Place| self.documents.get(&(place.configuration, place.document)).copied();
        let mut places: Vec<&Place> = places.iter().collect();
        places.sort_by_key(|place| std::cmp::Reverse(times(place)));
        let name = field.rsplit('.').next().unwrap_or(field);
        let with = |place: &Place, value: &Json, before: &mut [Before]| {
            makes_a_difference(place, before, |document| *at(document, &place.way) = value.clone())
        };
        let known = self.values.get(name).cloned();
        let mut found = known.and_then(|value| places.iter().find(|place| with(place, &value, before)));
        if found.is_none() {
            let is_missed = |place: &Place, before: &mut [Before]| {
                makes_a_difference(place, before, |document| without(document, &place.way))
            };
            found = places.iter().find(|place| is_missed(place, before));
        }
        if found.is_none() {
            found = places.iter().find(|place| {
                let written = at(&mut before[place.configuration].documents[place.document], &place.way).clone();
                let value = others(&written).into_iter().find(|value| with(place, value, before));
                value.map(|value| self.values.insert(name.to_owned(), value)).is_some()
            });
        }
        let place = found.map(|place| (place.configuration, place.document));
        place.map(|place| *self.documents.entry(place).or_default() += 1).is_some()
    }
}

/// Fields of which nobody is told where no certificates are issued, as here: `mutual_tls.rs` has their effect. Shares of
/// localities, of which none can be changed alone, and of zones, which take more endpoints than there are here:
/// `requests/balancing.rs` has theirs. Words that say which other field
/// there is: `requests/gateway_api` has theirs. And what of Telemetry nobody here is meant by, or needs settings of the mesh:
/// `telemetry.rs` and `requests/telemetry_api.rs` have theirs. Of RateLimit, `mesh-tower/tests/security/rate_limits.rs` has, and
/// of Overload and Quota `overload.rs` and `quotas.rs` there; of WasmPlugin and RequestRules `requests/plugins.rs` and `requests/request_rules.rs`,
/// of the kinds and groups of targets `gateway_targets.rs`, and of FilterSchema, which no client is told of, `filters.rs`.
/// Of Gateway API's Gateways: where TLS ends, which needs a certificate, `kubernetes_gateways.rs` and
/// `mesh-tower/tests/sidecar/gateway_api.rs` have; which namespaces a selector lets in, of whose labels only their names are known,
/// `config/gateway_api/gateway.rs` itself. Of ListenerSets and policies what they are for cannot be left out: of what they name
/// each field is tried here.
const ELSEWHERE_TESTED: [&str; 63] = [
    "BackendTLSPolicy targetRefs",
    "XBackendTrafficPolicy targetRefs",
    "ListenerSet parentRef",
    "BackendTLSPolicy validation.subjectAltNames.type",
    "KubernetesGateway listeners.tls.mode",
    "ListenerSet listeners.tls.mode",
    "selector.matchExpressions.operator",
    "FilterSchema filter",
    "FilterSchema schema",
    "Overload concurrency.queue.by.method",
    "AuthorizationPolicy targetRef.group",
    "AuthorizationPolicy targetRef.kind",
    "AuthorizationPolicy targetRefs.group",
    "AuthorizationPolicy targetRefs.kind",
    "RequestAuthentication targetRef.group",
    "RequestAuthentication targetRef.kind",
    "RequestAuthentication targetRefs.group",
    "RequestAuthentication targetRefs.kind",
    "Overload targetRefs.group",
    "Overload targetRefs.kind",
    "Overload targetRefs.name",
    "Quota rules.by.method",
    "Quota rules.limit.per",
    "Quota rules.limit.requests",
    "Quota targetRefs.group",
    "Quota targetRefs.kind",
    "Quota targetRefs.name",
    "RateLimit targetRefs.group",
    "RateLimit targetRefs.kind",
    "RateLimit targetRefs.name",
    "RateLimit rules.by.method",
    "Telemetry targetRef.group",
    "Telemetry targetRef.kind",
    "Telemetry targetRef.name",
    "Telemetry targetRefs.group",
    "Telemetry targetRefs.kind",
    "Telemetry targetRefs.name",
    "Telemetry tracing.providers.name",
    "Telemetry metrics.overrides.tagOverrides.operation",
    "Telemetry metrics.overrides.tagOverrides.value",
    "RequestRules rules.allow",
    "RequestRules targetRefs.group",
    "RequestRules targetRefs.kind",
    "RequestRules targetRefs.name",
    "WasmPlugin targetRef.group",
    "WasmPlugin targetRef.kind",
    "WasmPlugin targetRef.name",
    "WasmPlugin targetRefs.group",
    "WasmPlugin targetRefs.kind",
    "WasmPlugin targetRefs.name",
    "WasmPlugin type",
    "serviceAccount",
    "ServiceEntry location",
    "ServiceEntry subjectAltNames",
    "localityLbSetting.distribute.to",
    "zoneAwareLbSetting.enabled",
    "zoneAwareLbSetting.failover.from",
    "zoneAwareLbSetting.failover.to",
    "zoneAwareLbSetting.failoverPriority",
    "zoneAwareLbSetting.minClusterSize",
    "filters.type",
    "requestRedirect.path.type",
    "urlRewrite.path.type",
];

/// Every `parts`th field, so that the others can be looked at beside it.
fn check(class: ClientClass, part: usize, parts: usize) {
    let whole = configurations();
    let reported: BTreeSet<String> = whole.iter().flat_map(|documents| reported(documents)).collect();
    let mut all = whole.clone().map(|documents| Before::of(documents, class).expect("it is a good configuration"));
    let targets = all.iter().flat_map(|before| &before.told).filter(|((_, kind, _), _)| *kind == Kind::Listener);
    assert!(targets.clone().count() > 20);
    for ((_, _, name), body) in targets {
        assert_eq!(Listener::decode(&**body).unwrap().name, *name);
    }
    let everywhere = whole.iter().enumerate();
    let everywhere =
        everywhere.flat_map(|(at, documents)| documents.iter().enumerate().map(move |(own, it)| (at, own, it)));
    let places = enforced(everywhere, class);
    for field in own_rows(class) {
        assert!(places.contains_key(&field), "{field} is written nowhere");
    }
    let related = whole.iter().flat_map(|documents| surroundings(documents));
    let related = related.filter_map(|(documents, own)| Some((Before::of(documents, class)?, own)));
    let (mut near, owns): (Vec<Before>, Vec<usize>) = related.unzip();
    let alone = near.iter().map(|before| before.documents.clone()).zip(owns).collect::<Vec<_>>();
    let places_near =
        enforced(alone.iter().enumerate().map(|(at, (documents, own))| (at, *own, &documents[*own])), class);

    let (mut learned_near, mut learned) = (Learned::default(), Learned::default());
    // What only an Envoy does at a gateway is told to each, and reported.
    let is_left_out = |field: &str| {
        let is_elsewhere = ELSEWHERE_TESTED.iter().any(|end| field.ends_with(end));
        is_elsewhere || (reported.contains(field) && !field.starts_with("Gateway "))
    };
    let idle = places
        .iter()
        .skip(part)
        .step_by(parts)
        .filter(|(field, _)| !is_left_out(field))
        .filter(|(field, _)| {
            !places_near.get(*field).is_some_and(|near_by| learned_near.has_effect(field, near_by, &mut near))
        })
        .filter(|(field, places)| !learned.has_effect(field, places, &mut all));
    let idle: Vec<&String> = idle.map(|(field, _)| field).collect();
    assert!(idle.is_empty(), "enforced for {class:?}, and nobody is told: {idle:#?}");
}

/// The library's own decoder takes everything, and what it finds set and passes over belongs to a field that is
/// reported.
#[test]
fn the_library_accepts_what_it_is_told_and_passes_over_nothing_that_is_not_reported() {
    use mesh_core::resources::ResourceType;
    let mut ignored = BTreeSet::new();
    // What a gateway is told is a proxy's, as Envoy has it.
    let told = told(&configurations().concat(), ClientClass::Library).unwrap();
    let resources = told.into_iter().filter(|((who, _, name), _)| *who != GATEWAY && !name.starts_with(CHECKS));
    for ((_, kind, name), body) in resources {
        let kind = match kind {
            Kind::Cluster => ResourceType::Cluster,
            Kind::Endpoints => ResourceType::Endpoints,
            Kind::Listener => ResourceType::Listener,
            Kind::Route => ResourceType::Route,
            other => panic!("{other:?} is no kind that the library asks for"),
        };
        let decoded = mesh_core::xds::decode::decode(kind, &body, &Default::default());
        let decoded = decoded.unwrap_or_else(|invalid| panic!("{kind:?} {name}: {invalid}"));
        let fields = decoded.ignored.iter().map(|field| field.split(['[', ']']).step_by(2).collect::<String>());
        // There is no application here that would have it.
        let fields = fields.filter(|field| !field.contains("no filter is registered as"));
        ignored.extend(fields.map(|field| format!("{kind:?} {field}")));
    }
    assert!(ignored.is_empty(), "{ignored:#?}");
}

#[test]
fn every_field_that_is_enforced_changes_what_the_library_is_told() {
    check(ClientClass::Library, 0, 2);
}

#[test]
fn every_other_field_that_is_enforced_changes_what_the_library_is_told() {
    check(ClientClass::Library, 1, 2);
}

#[test]
fn every_field_that_is_enforced_for_grpc_changes_what_its_clients_are_told() {
    check(ClientClass::Grpc, 0, 2);
}

#[test]
fn every_other_field_that_is_enforced_for_grpc_changes_what_its_clients_are_told() {
    check(ClientClass::Grpc, 1, 2);
}
