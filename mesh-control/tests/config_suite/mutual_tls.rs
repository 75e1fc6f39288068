//! What clients are told of endpoints and peers where workloads have certificates.

use std::sync::Arc;

use mesh_control::catalog::{Catalog, Client, ClientClass, Kind};
use mesh_control::plane::{Plane, PlaneOptions};
use mesh_control::registry::Workload;
use mesh_core::identity::SpiffeId;
use mesh_core::model::{Cluster, ClusterKind, ClusterTls, Endpoint, Endpoints};
use mesh_core::resources::{Resource, ResourceType};
use mesh_core::xds::decode::{Options, decode};

const REVIEWS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{port: 9080, name: http}]}
";

const NAME: &str = "outbound|9080||reviews.shop.svc.cluster.local";
const ID: &str = "spiffe://cluster.local/ns/shop/sa/reviews";

fn plane(extra: &str) -> Plane {
    let plane = Plane::start(PlaneOptions::default().issues_certificates(true)).unwrap();
    plane.set_yaml("c.yaml", &format!("{REVIEWS}---{extra}")).unwrap();
    plane
}

fn workload(key: &str, id: Option<&str>) -> Workload {
    let address = "10.0.0.1:9080".parse().unwrap();
    let mut workload = Workload::new(key, "shop", key, address).labelled([("app", "reviews")]);
    workload.identity = id.map(|id| id.parse().unwrap());
    workload
}

fn client(class: ClientClass) -> Client {
    Client::new("c", class, [127, 0, 0, 1].into()).namespace("shop")
}

fn cluster(plane: &Plane, client: &Client) -> Arc<Cluster> {
    let found = plane.snapshot().resource(client, Kind::Cluster, NAME).unwrap();
    match decode(ResourceType::Cluster, &found.body, &Options::default()).unwrap().resource {
        Resource::Cluster(cluster) => cluster,
        other => panic!("{other:?}"),
    }
}

fn endpoints(plane: &Plane) -> Vec<Endpoint> {
    let found = plane.snapshot().resource(&client(ClientClass::Library), Kind::Endpoints, NAME).unwrap();
    let decoded = decode(ResourceType::Endpoints, &found.body, &Options::default()).unwrap().resource;
    let Resource::Endpoints(endpoints) = decoded else { panic!("{decoded:?}") };
    let Endpoints { localities, .. } = &*endpoints;
    localities.iter().flat_map(|locality| &locality.endpoints).cloned().collect()
}

/// Who may answer at endpoints that are marked.
fn peers(cluster: &Cluster) -> Vec<String> {
    match &cluster.tls {
        ClusterTls::MutualWhereMarked(tls) => tls.peers.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn while_nobody_serves_a_marked_endpoint_is_still_not_called_in_plaintext() {
    let plane = plane("");
    let library = client(ClientClass::Library);
    assert_eq!(peers(&cluster(&plane, &library)), Vec::<String>::new());
    plane.register(workload("one", Some(ID)));
    assert_eq!(peers(&cluster(&plane, &library)), [ID]);
    assert!(endpoints(&plane).iter().all(|endpoint| endpoint.mutual_tls));
    // Whoever had more is not told of fewer before the workloads have come back: the version says how many there are.
    let told = plane.snapshot().resource(&library, Kind::Cluster, NAME).unwrap();
    assert!(told.self_registered && told.endpoints == 2 && told.version.ends_with("-2"), "{}", told.version);
    let before = plane.snapshot().revision(Kind::Cluster);
    plane.unregister("one");
    assert_eq!(peers(&cluster(&plane, &library)), Vec::<String>::new());
    assert_ne!(plane.snapshot().revision(Kind::Cluster), before, "streams have to look again");
}

#[test]
fn a_workload_without_a_certificate_is_no_endpoint_where_mutual_tls_is_strict() {
    let modes = |mode: &str| {
        format!(
            "\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{mtls: {{mode: {mode}}}}}\n"
        )
    };
    for (extra, expected) in [("", None), (&modes("PERMISSIVE"), Some(false)), (&modes("DISABLE"), Some(false))] {
        let plane = plane(extra);
        plane.register(workload("rogue", None));
        let marks: Vec<bool> = endpoints(&plane).iter().map(|endpoint| endpoint.mutual_tls).collect();
        assert_eq!(marks, Vec::from_iter(expected), "{extra}");
    }
    // Who has one and must not show it is called in plaintext.
    let plane = plane(&modes("DISABLE"));
    plane.register(workload("one", Some(ID)));
    assert!(!endpoints(&plane)[0].mutual_tls);
    // A change of the mode is seen, though the endpoints are the same.
    plane.set_yaml("c.yaml", REVIEWS).unwrap();
    assert!(endpoints(&plane)[0].mutual_tls);
}

#[test]
fn a_gateway_is_called_as_its_gateways_take_connections_and_not_as_workloads_do() {
    let gateway = |servers: &str| {
        format!(
            "\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: shop}}\n\
             spec: {{selector: {{app: reviews}}, servers: [{servers}]}}\n"
        )
    };
    let (http, mutual, passing) = (HTTP, MUTUAL, PASSING);
    let both = format!("{mutual}, {passing}");
    let registered = |id: Option<&str>| {
        let mut gateway = workload("edge", id);
        (gateway.is_proxied, gateway.is_gateway) = (true, true);
        gateway
    };
    // The mesh is STRICT.
    for (servers, id, expected) in [
        (http, Some(ID), Some(false)),
        // Nothing but its id says that it is a gateway.
        (http, None, None),
        (mutual, Some(ID), Some(true)),
        // It takes nobody, and a request must not be sent there in plaintext.
        (mutual, None, None),
        // Of which nobody can tell what is called.
        (&both, Some(ID), Some(false)),
    ] {
        let plane = plane(&gateway(servers));
        plane.register(registered(id));
        let marks: Vec<bool> = endpoints(&plane).iter().map(|endpoint| endpoint.mutual_tls).collect();
        assert_eq!(marks, Vec::from_iter(expected), "{servers} {id:?}");
    }
    // A change is seen, though the endpoints are the same; and who may answer is known for a rule that asks for it.
    let plane = plane(&gateway(http));
    plane.register(registered(Some(ID)));
    assert!(!endpoints(&plane)[0].mutual_tls);
    plane.set_yaml("c.yaml", &format!("{REVIEWS}---{}", gateway(mutual))).unwrap();
    assert!(endpoints(&plane)[0].mutual_tls);
    assert_eq!(peers(&cluster(&plane, &client(ClientClass::Library))), [ID]);
    // The same where no workload has a certificate: what takes mutual TLS alone is no endpoint there.
    let plain = Plane::from_yaml(&format!("{REVIEWS}---{}", gateway(http))).unwrap();
    plain.register(registered(None));
    assert_eq!(endpoints(&plain).len(), 1);
    plain.set_yaml("config.yaml", &format!("{REVIEWS}---{}", gateway(mutual))).unwrap();
    assert!(endpoints(&plain).is_empty());
}

const HTTP: &str = "{port: {number: 9080, name: http, protocol: HTTP}, hosts: ['*']}";
const MUTUAL: &str = "{port: {number: 9080, name: a, protocol: HTTPS}, hosts: [a.example], tls: {mode: ISTIO_MUTUAL}}";
const PASSING: &str = "{port: {number: 9080, name: b, protocol: TLS}, hosts: [b.example], tls: {mode: PASSTHROUGH}}";
const PERMISSIVE: &str = "
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: p, namespace: shop}
spec: {mtls: {mode: PERMISSIVE}}
";

/// A Gateway of this namespace and name.
fn gateway_of(namespace: &str, name: &str, selector: &str, servers: &str) -> String {
    format!(
        "\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{selector: {{{selector}}}, servers: [{servers}]}}\n"
    )
}

/// A node that says it is a gateway, with the labels of the service and of gateways.
fn router(id: Option<&str>) -> Workload {
    let mut router = workload("edge", id).labelled([("app", "reviews"), ("istio", "ingress")]);
    (router.is_proxied, router.is_gateway) = (true, true);
    router
}

/// How those are called that say they are gateways: whether by mutual TLS; nothing where nobody is called.
fn calls(plane: &Plane, id: Option<&str>) -> Vec<bool> {
    plane.register(router(id));
    endpoints(plane).iter().map(|endpoint| endpoint.mutual_tls).collect()
}

#[test]
fn who_calls_itself_a_gateway_is_an_endpoint_only_with_proof_and_takes_plaintext_only_by_its_own_gateway() {
    let (evil, foreign) = ("spiffe://cluster.local/ns/evil/sa/reviews", "spiffe://elsewhere/ns/shop/sa/reviews");
    let own = gateway_of("shop", "g", "app: reviews", HTTP);
    let others = gateway_of("evil", "g", "app: reviews", HTTP);
    // It selects the workload, and does not say that those of the service are gateways.
    let beside = gateway_of("shop", "g", "istio: ingress", HTTP);
    for (gateway, id, strict, permissive) in [
        (&own, Some(ID), Some(false), Some(false)),
        (&own, None, None, None),
        (&own, Some(evil), None, None),
        (&own, Some(foreign), None, None),
        (&others, Some(ID), None, Some(false)),
        (&others, None, None, None),
        (&beside, Some(ID), None, None),
        (&beside, None, None, None),
    ] {
        assert_eq!(calls(&plane(gateway), id), Vec::from_iter(strict), "{gateway} {id:?}");
        let text = format!("{gateway}{PERMISSIVE}");
        assert_eq!(calls(&plane(&text), id), Vec::from_iter(permissive), "{text} {id:?}");
    }
    // In development words are enough, but not for plaintext beside STRICT.
    let development = |text: &str| {
        let plane = Plane::start(PlaneOptions::default().issues_certificates(true).trust_claims(true)).unwrap();
        plane.set_yaml("c.yaml", &format!("{REVIEWS}---{text}")).unwrap();
        plane
    };
    assert_eq!(calls(&development(&own), None), [false; 0]);
    assert_eq!(calls(&development(&format!("{own}{PERMISSIVE}")), None), [false]);
}

#[test]
fn a_gateway_of_another_namespace_does_not_have_a_server_of_mutual_tls_called_in_plaintext() {
    let owner = |namespace: &str| gateway_of(namespace, "m", "app: reviews", MUTUAL);
    // One that is left out, and one that is in force, before or behind the owner's.
    for (name, servers) in [("z", HTTP), ("z", PASSING), ("a", PASSING)] {
        for namespace in ["shop", "edges"] {
            let text = format!("{}---{}", owner(namespace), gateway_of("evil", name, "app: reviews", servers));
            for text in [text.clone(), format!("{text}{PERMISSIVE}")] {
                assert_eq!(calls(&plane(&text), Some(ID)), [true], "{text}");
            }
        }
    }
    // Where the owner's is left out itself, nothing is sent there in plaintext that is to be secret.
    let text = format!("{}---{}", owner("shop"), gateway_of("evil", "a", "app: reviews", HTTP));
    assert_eq!(calls(&plane(&text), Some(ID)), [false; 0]);
}

/// Endpoints that are written down: where they are, and whether they are marked.
fn marks(endpoints: &Endpoints) -> Vec<(String, bool)> {
    let all = endpoints.localities.iter().flat_map(|locality| &locality.endpoints);
    all.map(|endpoint| (endpoint.id.to_string(), endpoint.mutual_tls)).collect()
}

/// The cluster of a host with its endpoints, as the library is told of them.
fn told(plane: &Plane, host: &str) -> (Arc<Cluster>, Vec<(String, bool)>) {
    let (snapshot, name) = (plane.snapshot(), format!("outbound|80||{host}"));
    let read = |kind, resource_type| {
        let found = snapshot.resource(&client(ClientClass::Library), kind, &name)?;
        Some(decode(resource_type, &found.body, &Options::default()).unwrap().resource)
    };
    let Some(Resource::Cluster(cluster)) = read(Kind::Cluster, ResourceType::Cluster) else { panic!("no cluster") };
    let endpoints = match (read(Kind::Endpoints, ResourceType::Endpoints), &cluster.kind) {
        (Some(Resource::Endpoints(endpoints)), _) => marks(&endpoints),
        (None, ClusterKind::StrictDns { endpoints, .. } | ClusterKind::Static(endpoints)) => marks(endpoints),
        (None, ClusterKind::Eds { service_name }) if &**service_name == "BlackHoleCluster" => Vec::new(),
        other => panic!("{other:?}"),
    };
    (cluster, endpoints)
}

/// A ServiceEntry of the host `w.shop` with one endpoint.
fn entry(address: &str, endpoint: &str, more: &str) -> String {
    let resolution = if address.starts_with('1') { "STATIC" } else { "DNS" };
    format!(
        "\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: w, namespace: shop}}\n\
         spec: {{hosts: [w.shop], ports: [{{number: 80, name: http}}], resolution: {resolution}, {more}\
         endpoints: [{{address: {address}, {endpoint}}}]}}\n"
    )
}

#[test]
fn the_library_is_told_whether_who_may_answer_is_named_for_being_an_endpoint_or_by_a_rule() {
    let rule = |tls: &str| {
        format!(
            "\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: w, namespace: shop}}\n\
             spec: {{host: w.shop, trafficPolicy: {{tls: {tls}}}}}\n"
        )
    };
    let endpoint = "serviceAccount: w";
    let automatic = entry("10.0.0.9", endpoint, "location: MESH_INTERNAL, ");
    let names = format!("location: MESH_INTERNAL, subjectAltNames: ['{ID}'], ");
    let with = |tls: &str| format!("{automatic}---{}", rule(tls));
    for (objects, expected) in [
        (automatic.clone(), true),
        (entry("10.0.0.9", endpoint, &names), false),
        (with("{mode: ISTIO_MUTUAL}"), true),
        (with(&format!("{{mode: ISTIO_MUTUAL, subjectAltNames: ['{ID}']}}")), false),
    ] {
        let (cluster, _) = told(&plane(&objects), "w.shop");
        let upstream = cluster.tls.upstream().unwrap();
        assert!(upstream.by_endpoints == expected && !upstream.peers.is_empty(), "{objects}: {upstream:?}");
    }
}

const LABELLED: &str = "labels: {security.istio.io/tlsMode: istio}";

#[test]
fn an_endpoint_that_is_written_down_and_speaks_mutual_tls_is_not_called_in_plaintext() {
    let account = format!("{LABELLED}, serviceAccount: reviews");
    let disabled = "labels: {security.istio.io/tlsMode: disabled}, serviceAccount: reviews";
    let internal = "location: MESH_INTERNAL, ";
    let names = format!("subjectAltNames: ['{ID}', w.example], ");
    // What the endpoint and its ServiceEntry say; whether it is an endpoint, and marked.
    let cases = [
        (account.as_str(), "", Some(true)),
        (LABELLED, "", None),
        (LABELLED, &names, Some(true)),
        ("serviceAccount: reviews", "", Some(false)),
        ("serviceAccount: reviews", internal, Some(true)),
        (disabled, internal, Some(false)),
        ("weight: 1", internal, Some(false)),
    ];
    for address in ["10.0.0.7", "name.example"] {
        for (endpoint, more, expected) in cases {
            let plane = plane(&entry(address, endpoint, more));
            let (cluster, seen) = told(&plane, "w.shop");
            let expected: Vec<_> = expected.into_iter().map(|marked| (format!("{address}:80"), marked)).collect();
            assert_eq!(seen, expected, "{endpoint} {more}");
            if expected.iter().any(|(_, marked)| *marked) {
                assert_eq!(peers(&cluster), [ID], "{endpoint} {more}");
            }
        }
    }
}

#[test]
fn a_workload_entry_that_speaks_mutual_tls_is_called_so_and_who_it_is_is_told_of_where_nobody_knows() {
    let written = |spec: &str| {
        format!(
            "\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: v, namespace: shop}}\n\
             spec: {{address: 10.0.0.9, labels: {{app: reviews, security.istio.io/tlsMode: istio}}, {spec}}}\n"
        )
    };
    let known = plane(&written("serviceAccount: reviews"));
    assert!(endpoints(&known)[0].mutual_tls);
    for class in [ClientClass::Library, ClientClass::Grpc] {
        let certified = client(class).labels([("security.istio.io/tlsMode", "istio")]);
        let cluster = cluster(&known, &certified);
        assert_eq!(cluster.tls.upstream().unwrap().peers.iter().map(SpiffeId::as_str).collect::<Vec<_>>(), [ID]);
    }
    let warns =
        |plane: &Plane| plane.diagnostics().iter().any(|found| found.message.contains("nobody knows who it is"));
    assert!(!warns(&known));
    let unknown = plane(&written("weight: 1"));
    assert!(endpoints(&unknown).is_empty() && warns(&unknown));
    // A rule says how to call it, whoever it is.
    for (tls, marked) in [("{mode: DISABLE}", true), ("{mode: ISTIO_MUTUAL, subjectAltNames: [spiffe://td/x]}", true)] {
        let rule = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d, namespace: shop}}\n\
             spec: {{host: reviews, trafficPolicy: {{tls: {tls}}}}}\n"
        );
        let plane = plane(&(written("weight: 1") + &rule));
        assert_eq!(endpoints(&plane).iter().map(|one| one.mutual_tls).collect::<Vec<_>>(), [marked], "{tls}");
    }
    // One that registers, and so says who may answer.
    unknown.register(workload("one", Some(ID)));
    assert_eq!(endpoints(&unknown).iter().map(|one| one.mutual_tls).collect::<Vec<_>>(), [true, true]);
}

/// Istio's migration from one trust domain to another: whoever serves may have an identity of either.
#[test]
fn an_identity_of_an_alias_of_the_trust_domain_may_answer_for_a_service_too() {
    let settings = "\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    \
                    trustDomainAliases: [old.example, cluster.local]\n";
    let plane = plane(settings);
    plane.register(workload("one", Some(ID)));
    let told = cluster(&plane, &client(ClientClass::Library));
    assert_eq!(peers(&told), [ID, "spiffe://old.example/ns/shop/sa/reviews"]);
}
