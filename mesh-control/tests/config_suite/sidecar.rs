//! What an Envoy beside a workload is told: names, authorities, how connections are secured, and what becomes of what it cannot
//! do. That a real one takes it all is shown by `interop/sidecar.py`.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::cluster::v3 as cluster_pb;
use envoy_types::pb::envoy::config::listener::v3 as listener_pb;
use envoy_types::pb::envoy::config::route::v3 as route_pb;
use mesh_control::analysis::{Mesh, validate_scan};
use mesh_control::catalog::{Catalog, Client, ClientClass, Kind};
use mesh_control::config::Code;
use mesh_control::config::load::Scan;
use mesh_control::plane::{Plane, PlaneOptions};
use prost::Message;

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}, {name: grpc, port: 9090}, {name: tcp, port: 9100}]}
---
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: other}
spec: {selector: {app: ratings}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hidden, namespace: other}
spec: {hosts: [hidden.example], exportTo: [.], ports: [{number: 9080, name: http, protocol: HTTP}], resolution: STATIC}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: many, namespace: shop}
spec: {hosts: ['*.example.org'], ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP}]}
";

fn plane(extra: &str) -> Plane {
    let plane = Plane::start(PlaneOptions::default().issues_certificates(true).trust_claims(true)).unwrap();
    plane.set_yaml("c.yaml", &format!("{SHOP}---{extra}")).unwrap();
    plane
}

/// Objects that are wrong, as a directory may have them at a start.
fn plane_of_dir(extra: &str) -> (Plane, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c.yaml"), format!("{SHOP}---{extra}")).unwrap();
    (Plane::start(PlaneOptions::default().config_dir(dir.path())).unwrap(), dir)
}

fn sidecar(redirects: bool) -> Client {
    let labels = [("app", "reviews"), ("security.istio.io/tlsMode", "istio")];
    let client = Client::new("c", ClientClass::Envoy, [127, 0, 0, 1].into()).namespace("shop").labels(labels);
    client.sidecar([10, 0, 0, 1], redirects)
}

fn listener(plane: &Plane, client: &Client, name: &str) -> listener_pb::Listener {
    let found = plane.snapshot().resource(client, Kind::Listener, name).unwrap_or_else(|| panic!("{name}"));
    listener_pb::Listener::decode(&*found.body).unwrap()
}

fn routes(plane: &Plane, client: &Client, name: &str) -> BTreeMap<String, route_pb::VirtualHost> {
    let found = plane.snapshot().resource(client, Kind::Route, name).unwrap_or_else(|| panic!("{name}"));
    let config = route_pb::RouteConfiguration::decode(&*found.body).unwrap();
    assert_eq!(config.name, name);
    config.virtual_hosts.into_iter().map(|host| (host.name.clone(), host)).collect()
}

fn text(message: &impl Message) -> String {
    String::from_utf8_lossy(&message.encode_to_vec()).into_owned()
}

#[test]
fn the_names_are_istios_byte_for_byte_and_what_another_namespace_hides_is_not_there() {
    let plane = plane("");
    let all = |client: &Client, kind| plane.snapshot().everything(client, kind).join(" ");
    let (binds, redirected) = (sidecar(false), sidecar(true));
    assert_eq!(
        all(&redirected, Kind::Listener),
        "0.0.0.0_443 0.0.0.0_80 0.0.0.0_9080 0.0.0.0_9090 0.0.0.0_9100 virtualInbound virtualOutbound"
    );
    // The workload listens at three of them itself.
    assert_eq!(all(&binds, Kind::Listener), "10.0.0.1_9080 10.0.0.1_9090 10.0.0.1_9100 127.0.0.1_443 127.0.0.1_80");
    let said = plane.diagnostics().into_iter().map(|finding| finding.message).collect::<Vec<_>>().join("\n");
    assert!(said.contains("calls to port 9080 have no listener at 127.0.0.1"), "{said}");
    assert_eq!(all(&binds, Kind::Route), "80 9080 9090");
    let clusters = "BlackHoleCluster PassthroughCluster inbound|9080|| inbound|9090|| inbound|9100|| \
        outbound|443||*.example.org outbound|80||*.example.org outbound|9080||ratings.other.svc.cluster.local \
        outbound|9080||reviews.shop.svc.cluster.local outbound|9090||reviews.shop.svc.cluster.local \
        outbound|9100||reviews.shop.svc.cluster.local";
    assert_eq!(all(&binds, Kind::Cluster), clusters);
    assert_eq!(
        all(&redirected, Kind::Cluster),
        format!("BlackHoleCluster InboundPassthroughCluster {}", &clusters[17..])
    );

    let hosts = routes(&plane, &binds, "9080");
    assert_eq!(
        hosts.keys().map(String::as_str).collect::<Vec<_>>(),
        ["allow_any", "ratings.other.svc.cluster.local:9080", "reviews.shop.svc.cluster.local:9080"]
    );
    assert_eq!(
        hosts["reviews.shop.svc.cluster.local:9080"].domains.join(" "),
        "reviews.shop.svc.cluster.local reviews.shop.svc.cluster.local:9080 reviews.shop.svc.cluster.local. \
         reviews.shop.svc.cluster.local.:9080 reviews reviews:9080 reviews.shop reviews.shop:9080 reviews.shop.svc \
         reviews.shop.svc:9080"
    );
    assert!(!hosts["ratings.other.svc.cluster.local:9080"].domains.contains(&"ratings".to_owned()));
    let outbound = listener(&plane, &redirected, "0.0.0.0_9080");
    assert_eq!(outbound.bind_to_port.map(|it| it.value), Some(false));
    let own = listener(&plane, &redirected, "virtualOutbound");
    assert!(text(&own).contains("PassthroughCluster") && own.use_original_dst.is_some());
    for none in ["0.0.0.0_1", "127.0.0.1_9080", "virtualoutbound", "reviews:9080"] {
        assert!(plane.snapshot().resource(&redirected, Kind::Listener, none).is_none(), "{none}");
    }
}

const MODE: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: mode, namespace: shop}
spec: {mtls: {mode: MODE}}
";

/// The chains of a listener: what each matches, whether it is mutual TLS, and whether it leads to the workload.
fn chains(listener: &listener_pb::Listener) -> Vec<(String, bool, bool)> {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    let chain = |chain: &listener_pb::FilterChain| {
        let matched = chain.filter_chain_match.clone().unwrap_or_default();
        let port = matched.destination_port.map(|port| port.value.to_string()).unwrap_or_default();
        let socket = chain.transport_socket.as_ref().map(text).unwrap_or_default();
        let is_mutual = socket.contains("sds-grpc") && socket.contains("ROOTCA");
        let leads = !text(chain).contains("BlackHoleCluster");
        (format!("{port}{}", matched.transport_protocol), is_mutual, leads)
    };
    chains.map(chain).collect()
}

#[test]
fn connections_are_taken_as_the_peer_authentication_says_and_none_falls_back_to_another_chain() {
    let of = |mode: &str, redirects, name: &str| {
        let plane = plane(&MODE.replace("MODE", mode));
        let all = chains(&listener(&plane, &sidecar(redirects), name));
        all.into_iter().filter(|(what, ..)| !what.contains("9090") && !what.contains("9100")).collect::<Vec<_>>()
    };
    let chain = |what: &str, is_mutual, leads| (what.to_owned(), is_mutual, leads);
    assert_eq!(of("STRICT", false, "10.0.0.1_9080"), [chain("tls", true, true)]);
    assert_eq!(of("PERMISSIVE", false, "10.0.0.1_9080"), [chain("tls", true, true), chain("raw_buffer", false, true)]);
    assert_eq!(of("DISABLE", false, "10.0.0.1_9080"), [chain("", false, true)]);
    // Where all ports are one listener, what is plaintext at a port ends there, and other ports are shut.
    assert_eq!(
        of("STRICT", true, "virtualInbound"),
        [chain("9080tls", true, true), chain("9080", false, false), chain("", false, false)]
    );
    assert_eq!(
        of("DISABLE", true, "virtualInbound"),
        [chain("9080", false, true), chain("", false, true)],
        "nothing guards any port"
    );
}

#[test]
fn a_port_that_no_service_has_is_taken_as_the_peer_authentication_says_of_it() {
    const ALONE: &str = "
apiVersion: v1
kind: Service
metadata: {name: alone, namespace: shop}
spec: {selector: {app: alone}, ports: [{name: http, port: 9080}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: alone, namespace: shop}
spec: {selector: {matchLabels: {app: alone}}, mtls: {mode: MODE}, portLevelMtls: {7000: {mode: PORT}}}
";
    let client = Client::new("c", ClientClass::Envoy, [127, 0, 0, 1].into()).namespace("shop");
    let client = client.labels([("app", "alone"), ("security.istio.io/tlsMode", "istio")]).sidecar([10, 0, 0, 1], true);
    let of = |mode: &str, port: &str, more: &str| {
        let plane = plane(&format!("{}---{more}", ALONE.replace("MODE", mode).replace("PORT", port)));
        let all = chains(&listener(&plane, &client, "virtualInbound"));
        all.into_iter().filter(|(what, ..)| !what.starts_with("9080")).collect::<Vec<_>>()
    };
    let chain = |what: &str, is_mutual, leads| (what.to_owned(), is_mutual, leads);
    let any = |leads| chain("", false, leads);
    assert_eq!(of("PERMISSIVE", "STRICT", ""), [chain("7000tls", true, true), chain("7000", false, false), any(true)]);
    assert_eq!(of("PERMISSIVE", "DISABLE", ""), [chain("7000", false, true), any(true)]);
    // What guards any port guards this one.
    let deny = "\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec: {}\n";
    assert_eq!(
        of("PERMISSIVE", "STRICT", deny),
        [chain("7000tls", true, false), chain("7000", false, false), any(false)]
    );
}

#[test]
fn a_request_authentication_closes_no_port_of_a_service_that_carries_no_requests() {
    let tokens = "
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: t, namespace: shop}
spec: {jwtRules: [{issuer: me, jwksUri: 'https://me.example/keys'}]}
";
    let plane = plane(&format!("{tokens}---{}", MODE.replace("MODE", "DISABLE")));
    let all = chains(&listener(&plane, &sidecar(true), "virtualInbound"));
    let leads: Vec<(&str, bool)> = all.iter().map(|(what, _, leads)| (&**what, *leads)).collect();
    // What is HTTP at a port that no service has is nobody's to tell.
    assert_eq!(leads, [("9080", true), ("9090", true), ("9100", true), ("", false)]);
}

#[test]
fn calls_are_mutual_tls_with_who_serves_and_with_nobody_where_that_is_not_known() {
    let plane = plane("");
    let name = "outbound|9090||reviews.shop.svc.cluster.local";
    let of = |plane: &Plane| {
        let found = plane.snapshot().resource(&sidecar(false), Kind::Cluster, name).unwrap();
        let cluster = cluster_pb::Cluster::decode(&*found.body).unwrap();
        let matches = cluster.transport_socket_matches;
        assert_eq!(matches.iter().map(|it| &*it.name).collect::<Vec<_>>(), ["tlsMode-istio", "tlsMode-disabled"]);
        text(matches[0].transport_socket.as_ref().unwrap())
    };
    let socket = of(&plane);
    assert!(
        socket.contains("outbound_.9090_._.reviews.shop.svc.cluster.local") && socket.contains("istio-peer-exchange")
    );
    assert!(socket.contains("spiffe://nobody.invalid/"), "without a name, Envoy takes anybody");
    let address = "10.0.0.1:9090".parse().unwrap();
    let mut workload = mesh_control::registry::Workload::new("w", "shop", "w", address).labelled([("app", "reviews")]);
    workload.identity = Some("spiffe://cluster.local/ns/shop/sa/reviews".parse().unwrap());
    plane.register(workload);
    let socket = of(&plane);
    assert!(socket.contains("spiffe://cluster.local/ns/shop/sa/reviews") && !socket.contains("nobody.invalid"));
}

#[test]
fn connections_whose_bytes_are_not_http_go_by_their_rules_and_by_the_names_of_their_service() {
    let rules = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: raw, namespace: shop}
spec: {hosts: [reviews], tcp: [{match: [{port: 9100}], route: [{destination: {host: ratings.other.svc.cluster.local, port: {number: 9080}}}]}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: secret, namespace: shop}
spec: {hosts: [a.secret.example], ports: [{number: 443, name: tls, protocol: TLS}], resolution: STATIC}
";
    let plane = plane(rules);
    let client = sidecar(true);
    let raw = text(&listener(&plane, &client, "0.0.0.0_9100"));
    assert!(raw.contains("outbound|9080||ratings.other.svc.cluster.local"), "{raw}");
    let by_name = listener(&plane, &client, "0.0.0.0_443");
    let names = |chain: &listener_pb::FilterChain| chain.filter_chain_match.clone().unwrap().server_names.join(" ");
    let names: Vec<_> = by_name.filter_chains.iter().map(names).collect();
    assert_eq!(names, ["*.example.org", "a.secret.example a.secret.example."]);
    assert!(by_name.default_filter_chain.is_none(), "what names nobody goes nowhere");
    let outbound = text(&listener(&plane, &client, "0.0.0.0_9080"));
    let filters =
        ["envoy.filters.http.fault", "envoy.filters.http.cors", "stateful_session", "envoy.filters.http.router"];
    assert!(filters.windows(2).all(|two| outbound.find(two[0]) < outbound.find(two[1])), "in Istio's order");
}

#[tokio::test]
async fn what_an_envoy_cannot_enforce_is_answered_with_503_and_what_it_can_is_there() {
    let policy = |spec: &str| {
        format!(
            "\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let of = |extra: &str| text(&listener(&plane(extra), &sidecar(false), "10.0.0.1_9080"));
    let open = of("");
    assert!(open.contains("inbound|9080||") && !open.contains("rbac"));
    let allowed = of(&policy("{rules: [{from: [{source: {namespaces: [shop]}}]}]}"));
    assert!(allowed.contains("mesh.rbac.allow") && allowed.contains("inbound|http|9080"));
    // A claim that is no text may be meant, and Envoy would let it pass.
    let token = "{action: DENY, rules: [{when: [{key: 'request.auth.claims[a]', values: [b]}]}]}";
    let shut = of(&policy(token));
    assert!(shut.contains("AuthorizationPolicy/shop/p#0: a condition on tokens has no form for an Envoy"), "{shut}");
    assert!(!shut.contains("rbac"));
    // Where nobody can tell what guards it, nobody is served: not over HTTP, and over nothing else.
    let (plane, _dir) = plane_of_dir(&policy("{rulez: []}"));
    let tcp = text(&listener(&plane, &sidecar(false), "10.0.0.1_9100"));
    assert!(tcp.contains("BlackHoleCluster") && !tcp.contains("inbound|9100||"), "{tcp}");
}

#[tokio::test]
async fn a_host_whose_object_is_wrong_is_passed_by_nowhere() {
    let wrong = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wrong, namespace: shop}
spec: {hosts: [wrong.example], ports: [{number: 9080, name: http, protocol: HTTP}], resolution: SOMEHOW}
";
    let client = sidecar(true);
    assert!(text(&listener(&plane(""), &client, "virtualOutbound")).contains("PassthroughCluster"));
    let (plane, _dir) = plane_of_dir(wrong);
    let own = text(&listener(&plane, &client, "virtualOutbound"));
    assert!(!own.contains("PassthroughCluster"), "it may have any port");
    let hosts = routes(&plane, &client, "9080");
    assert!(hosts.contains_key("block_all") && text(&hosts["wrong.example:9080"]).contains("ServiceEntry shop/wrong"));
}

#[test]
fn what_an_envoy_cannot_do_is_said_at_the_field() {
    let extra = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop, annotations: {mesh-control/coalesce: get}}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews}}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop, annotations: {mesh-control/endpoint-subset: size=3, mesh-control/fallback: 'status=200'}}
spec: {host: reviews, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /etc/roots.pem}}}
---
apiVersion: v1
kind: Service
metadata: {name: second, namespace: shop}
spec: {selector: {app: second}, ports: [{name: tcp, port: 9100}]}
";
    let scan = |text: String| {
        let mut scan = Scan::default();
        scan.files.insert("c.yaml".into(), Ok(text.into()));
        scan
    };
    let found = |has_envoys| {
        let mesh = Mesh { has_envoys, ..Mesh::default() };
        let found = validate_scan(scan(format!("{SHOP}---{extra}")), mesh).diagnostics.into_iter();
        let found = found.filter(|finding| finding.code == Code::Degraded);
        found.map(|finding| (finding.field.unwrap().to_string(), finding.line > 0)).collect::<BTreeMap<_, _>>()
    };
    let fields = [
        "metadata.annotations.mesh-control/coalesce",
        "metadata.annotations.mesh-control/endpoint-subset",
        "metadata.annotations.mesh-control/fallback",
        "spec.ports",
        "trafficPolicy.tls",
    ];
    assert_eq!(found(true), fields.map(|field| (field.to_owned(), true)).into());
    assert_eq!(found(false), BTreeMap::new());
}

const EGRESS: &str = "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: own, namespace: shop}
spec: {egress: [{hosts: ['shop/reviews.shop.svc.cluster.local']}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}}
";

#[test]
fn a_sidecar_says_what_an_envoy_sees_wildcards_too_and_whether_other_calls_pass() {
    let (open, closed) = (plane(""), plane(EGRESS));
    let envoy = sidecar(true);
    let others = |plane: &Plane| routes(plane, &envoy, "9080").into_keys().any(|name| name == "allow_any");
    assert!(others(&open) && !others(&closed));
    let ports = |plane: &Plane| plane.snapshot().everything(&envoy, Kind::Listener).join(" ");
    assert!(ports(&open).contains("0.0.0.0_443") && !ports(&closed).contains("0.0.0.0_443"), "{}", ports(&closed));
    // A policy without a mode is REGISTRY_ONLY, as in Istio.
    assert!(!others(&plane(&EGRESS.replace("mode: REGISTRY_ONLY", ""))));
}

#[tokio::test]
async fn connections_whose_rule_is_wrong_lead_nowhere() {
    const WRONG: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec: {hosts: [reviews], tcp: [{route: [{destination: {host: ratings.other}, wieght: 3}]}]}
";
    let envoy = sidecar(true);
    let (good, (wrong, _dir)) = (plane(""), plane_of_dir(WRONG));
    assert!(text(&listener(&good, &envoy, "0.0.0.0_9100")).contains("outbound|9100||reviews.shop.svc.cluster.local"));
    let told = text(&listener(&wrong, &envoy, "0.0.0.0_9100"));
    assert!(told.contains("BlackHoleCluster") && !told.contains("outbound|9100"), "{told}");
}

#[tokio::test]
async fn while_a_sidecar_with_an_outbound_policy_is_wrong_nothing_passes_the_mesh_by() {
    let passes = |spec: &str| {
        let (plane, _dir) = plane_of_dir(&format!(
            "\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: own, namespace: shop}}\nspec: {spec}\n"
        ));
        routes(&plane, &sidecar(true), "9080").contains_key("allow_any")
    };
    assert!(passes("{egress: [{hosts: ['./*'], bogus: 1}]}"), "it says nothing of other hosts");
    assert!(!passes("{outboundTrafficPolicy: {mode: REGISTRY_ONLY, bogus: 1}}"));
    assert!(!passes("{outboundTrafficPolcy: {mode: REGISTRY_ONLY}, bogus: 1}"));
}

#[test]
fn a_sidecar_makes_grpc_of_grpc_web_at_ports_that_are_called_so() {
    const FILTER: &str = "envoy.filters.http.grpc_web";
    let web = "\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
        spec: {selector: {app: reviews}, ports: [{name: grpc-web, port: 9095}]}\n";
    let (with, without) = (plane(web), plane(""));
    let has = |plane: &Plane, name: &str| text(&listener(plane, &sidecar(true), name)).contains(FILTER);
    assert!(has(&with, "0.0.0.0_9095") && has(&with, "virtualInbound"));
    assert!(!has(&with, "0.0.0.0_9090") && !has(&without, "virtualInbound"));
}
