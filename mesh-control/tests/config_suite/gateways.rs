//! What a gateway is told: where it listens, for which hosts, with which certificates, and by which rules. That a real Envoy serves a
//! real browser by it is shown by `interop/gateway.py`.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3 as listener_pb;
use envoy_types::pb::envoy::config::route::v3 as route_pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::ForwardClientCertDetails;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls_pb;
use mesh_control::analysis::{Mesh, validate, validate_scan};
use mesh_control::catalog::{Catalog, Client, ClientClass, Kind};
use mesh_control::config::Severity;
use mesh_control::config::load::Scan;
use mesh_control::plane::{Plane, PlaneOptions};
use mesh_control::registry::Workload;
use prost::Message;

/// Istio's own bookinfo, as it is.
pub(crate) const BOOKINFO: &str = include_str!("../../../interop/bookinfo/bookinfo.yaml");
const BOOKINFO_GATEWAY: &str = include_str!("../../../interop/bookinfo/bookinfo-gateway.yaml");

pub(crate) fn plane(text: &str) -> Plane {
    let plane = Plane::start(PlaneOptions::default().trust_claims(true)).unwrap();
    plane.set_yaml("c.yaml", text).unwrap();
    plane
}

pub(crate) fn edge() -> Client {
    let client =
        Client::new("router~10.0.0.1~edge.edges~edges.svc.cluster.local", ClientClass::Envoy, [10, 0, 0, 1].into());
    client.namespace("edges").labels([("istio", "ingressgateway")]).gateway()
}

/// The same, and no gateway.
fn workload() -> Client {
    let mut client = edge();
    client.is_gateway = false;
    client
}

pub(crate) fn names(plane: &Plane, client: &Client, kind: Kind) -> String {
    plane.snapshot().everything(client, kind).join(" ")
}

pub(crate) fn listener(plane: &Plane, client: &Client, name: &str) -> listener_pb::Listener {
    let found = plane.snapshot().resource(client, Kind::Listener, name).unwrap_or_else(|| panic!("{name}"));
    listener_pb::Listener::decode(&*found.body).unwrap()
}

/// The chains of a listener: the names that are asked for, and whether TLS ends there.
pub(crate) fn chains(plane: &Plane, client: &Client, name: &str) -> Vec<(Vec<String>, bool)> {
    let chains = listener(plane, client, name).filter_chains.into_iter();
    let of = |chain: listener_pb::FilterChain| {
        (chain.filter_chain_match.unwrap_or_default().server_names, chain.transport_socket.is_some())
    };
    chains.map(of).collect()
}

pub(crate) fn hosts(plane: &Plane, client: &Client, name: &str) -> BTreeMap<String, route_pb::VirtualHost> {
    let found = plane.snapshot().resource(client, Kind::Route, name).unwrap_or_else(|| panic!("{name}"));
    let config = route_pb::RouteConfiguration::decode(&*found.body).unwrap();
    config.virtual_hosts.into_iter().map(|host| (host.name.clone(), host)).collect()
}

pub(crate) fn clusters_of(host: &route_pb::VirtualHost) -> Vec<String> {
    use route_pb::route::Action;
    use route_pb::route_action::ClusterSpecifier;
    let of = |route: &route_pb::Route| match &route.action {
        Some(Action::Route(action)) => match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => name.clone(),
            other => format!("{other:?}"),
        },
        Some(Action::DirectResponse(answer)) => answer.status.to_string(),
        other => format!("{other:?}"),
    };
    host.routes.iter().map(of).collect()
}

/// A Secret with a certificate for a host, and with its own root where it is to be one.
pub(crate) fn secret(namespace: &str, name: &str, host: &str) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap().self_signed(&key).unwrap();
    let of = |pem: String| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let (certificate, key) = (of(certificate.pem()), of(key.serialize_pem()));
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\ntype: kubernetes.io/tls\nstringData:\n  \
         tls.crt: |\n{certificate}  tls.key: |\n{key}  ca.crt: |\n{certificate}---\n"
    )
}

pub(crate) fn gateway(name: &str, servers: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{selector: {{istio: ingressgateway}}, servers: [{servers}]}}\n---\n"
    )
}

pub(crate) fn rules(name: &str, gateway: &str, hosts: &str, rest: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{hosts: [{hosts}], gateways: [{gateway}], {rest}}}\n---\n"
    )
}

pub(crate) const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {selector: {app: web}, ports: [{name: http, port: 80}]}\n---\n";
const TO_WEB: &str = "http: [{route: [{destination: {host: web}}]}]";
const WEB_CLUSTER: &str = "outbound|80||web.shop.svc.cluster.local";

fn https(name: &str, host: &str, tls: &str) -> String {
    format!("{{port: {{number: 8443, name: {name}, protocol: HTTPS}}, hosts: ['{host}'], tls: {{{tls}}}}}")
}

#[test]
fn istios_own_bookinfo_gateway_drives_a_gateway_unchanged() {
    let plane = plane(&format!("{BOOKINFO}\n---\n{BOOKINFO_GATEWAY}"));
    let client = edge();
    assert_eq!(names(&plane, &client, Kind::Listener), "0.0.0.0_8080");
    assert_eq!(names(&plane, &client, Kind::Route), "http.8080");
    let cluster = "outbound|9080||productpage.default.svc.cluster.local";
    assert_eq!(names(&plane, &client, Kind::Cluster), format!("BlackHoleCluster {cluster}"));
    assert_eq!(chains(&plane, &client, "0.0.0.0_8080"), [(vec![], false)]);
    let hosts = hosts(&plane, &client, "http.8080");
    assert_eq!(hosts.keys().collect::<Vec<_>>(), ["*:8080"]);
    assert_eq!(clusters_of(&hosts["*:8080"]), vec![cluster; 5]);
    // Another workload is no gateway of it, and is told nothing of it.
    let other = edge().labels([("istio", "other")]);
    assert_eq!(names(&plane, &other, Kind::Listener), "");
    // Where a Service leads to it, a Gateway names the port of the Service.
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: edge, namespace: edges}\n\
        spec: {selector: {istio: ingressgateway}, ports: [{name: http, port: 8080, targetPort: 18080}]}\n---\n";
    plane.set_yaml("s.yaml", service).unwrap();
    assert_eq!(names(&plane, &client, Kind::Listener), "0.0.0.0_18080");
}

#[test]
fn a_certificate_is_told_to_the_gateway_of_its_namespace_and_a_missing_one_closes_its_own_hosts_alone() {
    let servers = [
        https("a", "a.example", "mode: SIMPLE, credentialName: a"),
        https("b", "b.example", "mode: SIMPLE, credentialName: missing"),
        https("c", "c.example", "mode: MUTUAL, credentialName: c, minProtocolVersion: TLSV1_3"),
        https("d", "d.example", "mode: SIMPLE, credentialName: elsewhere"),
    ];
    let secrets = [
        secret("edges", "a", "a.example"),
        secret("edges", "c", "c.example"),
        secret("shop", "elsewhere", "d.example"),
    ];
    let text = [WEB.to_owned(), gateway("web", &servers.join(", ")), rules("web", "web", "'*.example'", TO_WEB)];
    let text = [&text[..], &secrets].concat().concat();
    let plane = plane(&text);
    let client = edge();
    let of = |host: &str, is_served: bool| (vec![host.to_owned()], is_served);
    let expected = [of("a.example", true), of("b.example", false), of("c.example", true), of("d.example", false)];
    assert_eq!(chains(&plane, &client, "0.0.0.0_8443"), expected);
    let secrets = "kubernetes://edges/a kubernetes://edges/c kubernetes://edges/c-cacert";
    assert_eq!(names(&plane, &client, Kind::Secret), secrets);
    let told = |client: &Client, name: &str| plane.snapshot().resource(client, Kind::Secret, name);
    let own = tls_pb::Secret::decode(&*told(&client, "kubernetes://edges/a").unwrap().body).unwrap();
    assert!(matches!(own.r#type, Some(tls_pb::secret::Type::TlsCertificate(_))));
    let roots = tls_pb::Secret::decode(&*told(&client, "kubernetes://edges/c-cacert").unwrap().body).unwrap();
    assert!(matches!(roots.r#type, Some(tls_pb::secret::Type::ValidationContext(_))));
    // Neither what is in another namespace, nor what no Gateway names for it, nor to anybody else.
    for (who, name) in [
        (edge(), "kubernetes://shop/elsewhere"),
        (edge(), "kubernetes://edges/elsewhere"),
        (edge().labels([("istio", "other")]), "kubernetes://edges/a"),
        (edge().namespace("shop"), "kubernetes://edges/a"),
        (workload(), "kubernetes://edges/a"),
        (workload().sidecar([10, 0, 0, 1], false), "kubernetes://edges/a"),
    ] {
        assert!(told(&who, name).is_none(), "{name}");
    }
    // A gateway that has proven nothing is told no certificate, and closes what would need one.
    let strict = Plane::start(PlaneOptions::default()).unwrap();
    strict.set_yaml("c.yaml", &text).unwrap();
    assert!(strict.snapshot().resource(&client, Kind::Secret, "kubernetes://edges/a").is_none());
    assert!(chains(&strict, &client, "0.0.0.0_8443").iter().all(|(_, is_served)| !is_served));
    // One of the library is told which it would need, so that it says what it lacks, and gets none either.
    let library = Client::new("edge", ClientClass::Library, [10, 0, 0, 1].into());
    let library = library.namespace("edges").labels([("istio", "ingressgateway")]).gateway();
    assert!(chains(&strict, &library, "0.0.0.0_8443").iter().all(|(_, is_tls)| *is_tls));
    assert_eq!(names(&strict, &library, Kind::Secret), "");
    assert!(strict.snapshot().resource(&library, Kind::Secret, "kubernetes://edges/a").is_none());
    // Each server of TLS has its own routes, by Istio's names.
    let routes = "https.8443.a.web.shop https.8443.b.web.shop https.8443.c.web.shop https.8443.d.web.shop";
    assert_eq!(names(&plane, &client, Kind::Route), routes);
    let of_a = hosts(&plane, &client, "https.8443.a.web.shop");
    assert_eq!(of_a.keys().collect::<Vec<_>>(), ["a.example:8443"]);
    assert_eq!(of_a["a.example:8443"].domains, ["a.example", "a.example:*"]);
}

#[test]
fn nothing_of_a_secret_is_in_a_finding() {
    let good = secret("edges", "a", "a.example");
    let other = secret("edges", "a", "a.example");
    let key = |text: &str| text[text.find("tls.key").unwrap()..text.find("ca.crt").unwrap()].to_owned();
    for (broken, expected) in [
        (good.replace(&key(&good), &key(&other)), "it cannot be used with tls.key"),
        (good.replace(&key(&good), "tls.key: nonsense\n  "), "not a private key in PEM"),
        (good.replace("stringData", "data"), "not base64"),
    ] {
        let mut scan = Scan::default();
        scan.files.insert("s.yaml".into(), Ok(broken.as_str().into()));
        let report = validate_scan(scan, Mesh::default());
        let said: Vec<String> = report.diagnostics.iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|line| line.contains(expected)), "{said:?}");
        let secret = broken.lines().filter(|line| line.len() > 40).map(str::trim);
        for line in secret {
            assert!(!said.iter().any(|said| said.contains(line)), "{said:?}");
        }
    }
    let plane = plane(&good);
    assert!(!format!("{:?}", plane.snapshot()).contains(good.lines().find(|line| line.contains("MI")).unwrap().trim()));
}

#[test]
fn gateways_are_merged_as_istio_merges_them_and_what_is_left_out_is_told() {
    let http =
        |name: &str, hosts: &str| format!("{{port: {{number: 80, name: {name}, protocol: HTTP}}, hosts: [{hosts}]}}");
    let text = [
        WEB.to_owned(),
        gateway(
            "a",
            &[
                http("http", "a.example, 'other/b.example'"),
                https("https", "a.example", "mode: SIMPLE, credentialName: a"),
            ]
            .join(", "),
        ),
        gateway(
            "b",
            &[http("http", "b.example"), https("https", "a.example", "mode: SIMPLE, credentialName: a")].join(", "),
        ),
        gateway("c", "{port: {number: 80, name: tcp, protocol: TCP}, hosts: ['*']}"),
        rules("both", "a, b", "a.example, b.example", TO_WEB),
        rules(
            "later",
            "a",
            "a.example",
            "http: [{match: [{uri: {prefix: /later}}], route: [{destination: {host: web, port: {number: 80}}}]}]",
        ),
        rules("elsewhere", "nobody", "a.example", TO_WEB),
        secret("edges", "a", "a.example"),
    ]
    .concat();
    let plane = plane(&text);
    let hosts = hosts(&plane, &edge(), "http.80");
    assert_eq!(hosts.keys().collect::<Vec<_>>(), ["a.example:80", "b.example:80"]);
    // What is for every request comes last, whichever object it is of.
    let paths: Vec<_> =
        hosts["a.example:80"].routes.iter().map(|route| route.r#match.clone().unwrap().path_specifier).collect();
    assert_eq!(paths[0], Some(route_pb::route_match::PathSpecifier::Prefix("/later".to_owned())));
    assert_eq!(paths.len(), 2);
    assert_eq!(clusters_of(&hosts["b.example:80"]), [WEB_CLUSTER]);
    assert_eq!(chains(&plane, &edge(), "0.0.0.0_8443"), [(vec!["a.example".to_owned()], true)]);
    let mut scan = Scan::default();
    scan.files.insert("c.yaml".into(), Ok(text.as_str().into()));
    let said: Vec<String> = validate_scan(scan, Mesh::default()).diagnostics.iter().map(ToString::to_string).collect();
    for expected in [
        "Gateway shop/b: servers[1]: it is left out: another server has host a.example at port 8443, and its certificate is shown",
        "Gateway shop/c: servers[0]: it is left out: port 80 is taken by Gateway shop/a, and nothing tells their connections apart",
        "VirtualService shop/elsewhere: gateways[0]: there is no Gateway shop/nobody: the rules apply nowhere there",
    ] {
        assert!(said.iter().any(|line| line.contains(expected)), "{expected}: {said:#?}");
    }
}

#[test]
fn plaintext_is_redirected_and_tls_passes_by_name() {
    let servers = [
        "{port: {number: 80, name: http, protocol: HTTP}, hosts: [a.example], tls: {httpsRedirect: true}}",
        "{port: {number: 8443, name: tls, protocol: TLS}, hosts: [b.example, c.example], tls: {mode: PASSTHROUGH}}",
    ];
    let tls = "tls: [{match: [{sniHosts: [b.example, stranger.example]}], route: [{destination: {host: web}}]}]";
    let text = [WEB.to_owned(), gateway("a", &servers.join(", ")), rules("b", "a", "b.example, stranger.example", tls)];
    let plane = plane(&text.concat());
    let hosts = hosts(&plane, &edge(), "http.80");
    assert_eq!(hosts["a.example:80"].require_tls, route_pb::virtual_host::TlsRequirementType::All as i32);
    // A name that no rule has is closed, and one that is none of the server's is nobody's.
    let expected = [(vec!["b.example".to_owned()], false), (vec!["c.example".to_owned()], false)];
    assert_eq!(chains(&plane, &edge(), "0.0.0.0_8443"), expected);
    assert_eq!(names(&plane, &edge(), Kind::Cluster), format!("BlackHoleCluster {WEB_CLUSTER}"));
}

/// Whose hosts they are, the Gateway says: no rule of another namespace has them, however wide its own are.
#[test]
fn a_name_that_passes_is_led_by_rules_of_the_namespace_that_it_is_for_alone() {
    let server = |hosts: &str| {
        format!("{{port: {{number: 8443, name: tls, protocol: TLS}}, hosts: [{hosts}], tls: {{mode: PASSTHROUGH}}}}")
    };
    let route = "route: [{destination: {host: web}}]";
    let led = |hosts: &str, sni: &str| {
        let tls = format!("tls: [{{match: [{{sniHosts: [{sni}]}}], {route}}}]");
        let text = [WEB.to_owned(), gateway("a", &server(hosts)), rules("b", "a", "'*.example'", &tls)];
        let plane = plane(&text.concat());
        let led = listener(&plane, &edge(), "0.0.0.0_8443")
            .filter_chains
            .into_iter()
            .filter(|chain| String::from_utf8_lossy(&chain.encode_to_vec()).contains(WEB_CLUSTER));
        led.flat_map(|chain| chain.filter_chain_match.unwrap_or_default().server_names).collect::<Vec<_>>()
    };
    let both = "pay/pay.example, shop/shop.example";
    assert_eq!(led(both, "pay.example"), [""; 0]);
    assert_eq!(led(both, "shop.example, pay.example"), ["shop.example"]);
    assert_eq!(led(both, "'*.example'"), ["shop.example"]);
    assert_eq!(led("'*/*.example'", "pay.example"), ["pay.example"]);
}

#[tokio::test]
async fn a_rule_that_is_wrong_from_the_start_keeps_others_from_its_host() {
    let server = "{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}";
    let wrong =
        rules("admin", "a", "a.example", "htpp: [{match: [{uri: {prefix: /admin}}], directResponse: {status: 403}}]");
    let text = [WEB.to_owned(), gateway("a", server), rules("a", "a", "a.example, b.example", TO_WEB), wrong];
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c.yaml"), text.concat()).unwrap();
    let plane = Plane::start(PlaneOptions::default().config_dir(dir.path())).unwrap();
    let hosts = hosts(&plane, &edge(), "http.80");
    assert_eq!(clusters_of(&hosts["a.example:80"]), ["503"]);
    assert_eq!(clusters_of(&hosts["b.example:80"]), [WEB_CLUSTER]);
}

#[tokio::test]
async fn a_wrong_gateway_keeps_its_hosts_from_rules_of_others() {
    let server = |hosts: &str, more: &str| {
        format!("{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: [{hosts}]{more}}}")
    };
    let wrong = gateway("a", &server("a.example, '*.c.example'", ", tlz: {}"));
    let theirs = rules("b", "b", "a.example, b.example, x.c.example", TO_WEB);
    let text = [WEB.to_owned(), wrong, gateway("b", &server("'*'", "")), theirs];
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c.yaml"), text.concat()).unwrap();
    let plane = Plane::start(PlaneOptions::default().config_dir(dir.path())).unwrap();
    let hosts = hosts(&plane, &edge(), "http.80");
    assert_eq!(clusters_of(&hosts["a.example:80"]), ["503"]);
    assert_eq!(clusters_of(&hosts["*.c.example:80"]), ["503"]);
    assert!(!hosts.contains_key("x.c.example:80"), "{hosts:?}");
    assert_eq!(clusters_of(&hosts["b.example:80"]), [WEB_CLUSTER]);
}

#[test]
fn what_guards_the_labels_of_a_gateway_guards_its_ports() {
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: edge, namespace: edges}\n\
        spec: {selector: {matchLabels: {istio: ingressgateway}}, action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}\n---\n";
    let servers = "{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}, \
        {port: {number: 81, name: tcp, protocol: TCP}, hosts: ['*']}";
    let tcp = "tcp: [{match: [{port: 81}], route: [{destination: {host: web}}]}]";
    let text = [WEB.to_owned(), gateway("a", servers), rules("t", "a", "'*'", tcp)].concat();
    let plane = plane(&text);
    let told = |port: u16| {
        let listener = listener(&plane, &edge(), &format!("0.0.0.0_{port}"));
        String::from_utf8_lossy(&listener.encode_to_vec()).into_owned()
    };
    assert!(!told(80).contains("mesh.rbac.deny") && told(81).contains(WEB_CLUSTER));
    plane.set_yaml("p.yaml", policy).unwrap();
    assert!(told(80).contains("mesh.rbac.deny"), "{}", told(80));
    // What is not looked into has filters of its own (`gateway_bytes.rs`).
    assert!(told(81).contains("mesh.rbac.deny") && told(81).contains("filters.network.rbac.v3"), "{}", told(81));
}

#[test]
fn a_subset_for_the_way_to_a_gateway_is_not_asked_of_the_gateway_s_own_namespace() {
    let server = "{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}";
    let edge = "apiVersion: v1\nkind: Service\nmetadata: {name: edge, namespace: edges}\n\
        spec: {selector: {istio: ingressgateway}, ports: [{name: http, port: 80}]}\n---\n";
    let subset = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: edge, namespace: shop}\n\
        spec: {host: edge.edges.svc.cluster.local, subsets: [{name: out}]}\n---\n";
    let leads = |gateways: &str| {
        let rest = "http: [{match: [{gateways: [mesh]}], route: [{destination: {host: edge.edges.svc.cluster.local, subset: out}}]}]";
        rules("out", gateways, "api.example.com", rest)
    };
    let said = |gateways: &str| {
        let text = [gateway("a", server), edge.to_owned(), subset.to_owned(), leads(gateways)].concat();
        let said = validate([("c.yaml", text.as_str())]);
        said.into_iter()
            .filter(|finding| finding.message.contains("is no subset"))
            .map(|it| it.message)
            .collect::<Vec<_>>()
    };
    assert_eq!(said("mesh, a"), Vec::<String>::new());
    let other = said("mesh");
    assert!(other.len() == 1 && other[0].contains("for clients of namespace edges"), "{other:?}");
}

#[test]
fn a_wildcard_without_resolution_behind_a_gateway_is_told_what_to_write() {
    let server = "{port: {number: 443, name: tls, protocol: TLS}, hosts: ['*'], tls: {mode: PASSTHROUGH}}";
    let entry = |host: &str, resolution: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: wild, namespace: shop}}\n\
             spec: {{hosts: ['{host}'], ports: [{{number: 443, name: tls, protocol: TLS}}], resolution: {resolution}}}\n---\n"
        )
    };
    let leads = |kind: &str, at: &str, host: &str| {
        let names = if kind == "tls" { format!(", sniHosts: ['{host}']") } else { String::new() };
        let rest = format!(
            "{kind}: [{{match: [{{gateways: [{at}]{names}}}], route: [{{destination: {{host: '{host}', port: {{number: 443}}}}}}]}}]"
        );
        rules("r", "mesh, a", "'*.com'", &rest)
    };
    let said = |entry: String, rules: String| {
        let text = [gateway("a", server), entry, rules].concat();
        let said = validate([("c.yaml", text.as_str())]);
        let mut said = said.into_iter().filter(|finding| finding.message.contains("DYNAMIC_DNS"));
        said.next().map(|finding| (finding.severity, finding.field.as_deref().unwrap_or_default().to_owned()))
    };
    let none = || entry("*.com", "NONE");
    for (entry, rules, expected) in [
        (none(), leads("tls", "a", "*.com"), Some((Severity::Error, "tls[0].route[0].destination.host"))),
        (none(), leads("tcp", "a", "*.com"), Some((Severity::Error, "tcp[0].route[0].destination.host"))),
        (none(), leads("http", "a", "*.com"), Some((Severity::Warning, "http[0].route[0].destination.host"))),
        (none(), leads("tls", "mesh", "*.com"), None),
        (entry("*.com", "DYNAMIC_DNS"), leads("tls", "a", "*.com"), None),
        (entry("a.com", "NONE"), leads("tls", "a", "a.com"), None),
    ] {
        let text = format!("{entry}{rules}");
        let expected = expected.map(|(severity, field)| (severity, field.to_owned()));
        assert_eq!(said(entry, rules), expected, "{text}");
    }
}

#[test]
fn what_is_in_front_of_gateways_is_told_to_them() {
    let servers = "{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}, \
        {port: {number: 8443, name: tls, protocol: TLS}, hosts: [b.example], tls: {mode: PASSTHROUGH}}";
    let told = |settings: &str| {
        let settings = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: '{settings}'\n---\n"
        );
        let plane = plane(&[WEB.to_owned(), gateway("a", servers), settings].concat());
        let filters = |port: u16| -> Vec<String> {
            let listener = listener(&plane, &edge(), &format!("0.0.0.0_{port}"));
            listener.listener_filters.into_iter().map(|filter| filter.name).collect()
        };
        let chain = listener(&plane, &edge(), "0.0.0.0_80").filter_chains.remove(0);
        let Some(listener_pb::filter::ConfigType::TypedConfig(any)) = chain.filters[0].config_type.clone() else {
            panic!("{chain:?}")
        };
        let manager = HttpConnectionManager::decode(&*any.value).unwrap();
        (manager.xff_num_trusted_hops, manager.forward_client_cert_details, filters(80), filters(8443))
    };
    const PROXY: &str = "envoy.filters.listener.proxy_protocol";
    const TLS: &str = "envoy.filters.listener.tls_inspector";
    let names = |names: &[&str]| -> Vec<String> { names.iter().map(|&name| name.to_owned()).collect() };
    let usual = ForwardClientCertDetails::SanitizeSet as i32;
    assert_eq!(told("ingressClass: istio"), (0, usual, names(&[]), names(&[TLS])));
    let topology = |said: &str| told(&format!("defaultConfig: {{gatewayTopology: {{{said}}}}}"));
    assert_eq!(topology("numTrustedProxies: 2"), (2, usual, names(&[]), names(&[TLS])));
    let forwards = ForwardClientCertDetails::AppendForward as i32;
    let expected = (0, forwards, names(&[PROXY]), names(&[PROXY, TLS]));
    assert_eq!(topology("forwardClientCertDetails: APPEND_FORWARD, proxyProtocol: {}"), expected);
}

#[test]
fn connections_of_a_gateway_are_in_the_access_log_of_its_requests() {
    let logs = "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: logs, namespace: edges}\n\
        spec: {accessLogging: [{providers: [{name: envoy}]}]}\n---\n";
    let servers = "{port: {number: 81, name: tcp, protocol: TCP}, hosts: ['*']}, \
        {port: {number: 82, name: closed, protocol: TCP}, hosts: ['*']}";
    let tcp = "tcp: [{match: [{port: 81}], route: [{destination: {host: web}}]}]";
    let text = [WEB.to_owned(), gateway("a", servers), rules("t", "a", "'*'", tcp)].concat();
    let plane = plane(&text);
    let logs_at = |client: &Client, port: u16| {
        let chain = listener(&plane, client, &format!("0.0.0.0_{port}")).filter_chains.remove(0);
        let Some(listener_pb::filter::ConfigType::TypedConfig(any)) = chain.filters[0].config_type.clone() else {
            panic!("{chain:?}")
        };
        TcpProxy::decode(&*any.value).unwrap().access_log.len()
    };
    let mut library = edge();
    library.class = ClientClass::Library;
    assert_eq!(logs_at(&edge(), 81), 0);
    plane.set_yaml("t.yaml", logs).unwrap();
    for client in [edge(), library] {
        assert_eq!((logs_at(&client, 81), logs_at(&client, 82)), (1, 1), "{client:?}");
    }
}

/// A gateway of the library warns of each field that is set and has no effect: by default there is none.
#[test]
fn a_gateway_of_the_library_is_told_nothing_that_has_no_effect_there() {
    use mesh_core::resources::ResourceType;
    let servers = [
        "{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*'], tls: {httpsRedirect: true}}".to_owned(),
        "{port: {number: 81, name: tcp, protocol: TCP}, hosts: ['*']}".to_owned(),
        https("a", "a.example", "mode: SIMPLE, credentialName: a"),
        https("m", "m.example", "mode: ISTIO_MUTUAL"),
        "{port: {number: 8443, name: tls, protocol: TLS}, hosts: [b.example], tls: {mode: PASSTHROUGH}}".to_owned(),
    ];
    let rest = format!(
        "{TO_WEB}, tcp: [{{match: [{{port: 81}}], route: [{{destination: {{host: web}}}}]}}], \
         tls: [{{match: [{{port: 8443, sniHosts: [b.example]}}], route: [{{destination: {{host: web}}}}]}}]"
    );
    let logs = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
        data: {mesh: 'accessLogFile: /dev/stdout'}\n---\n";
    let text = [
        WEB.to_owned(),
        gateway("a", &servers.join(", ")),
        rules("t", "a", "'*'", &rest),
        secret("edges", "a", "a.example"),
        logs.to_owned(),
    ];
    let plane = plane(&text.concat());
    let mut library = edge();
    library.class = ClientClass::Library;
    let mut looked_at = 0;
    for (kind, as_read) in [
        (Kind::Listener, ResourceType::Listener),
        (Kind::Route, ResourceType::Route),
        (Kind::Cluster, ResourceType::Cluster),
    ] {
        for name in plane.snapshot().everything(&library, kind) {
            let found = plane.snapshot().resource(&library, kind, &name).unwrap();
            let decoded = mesh_core::xds::decode::decode(as_read, &found.body, &Default::default());
            let decoded = decoded.unwrap_or_else(|invalid| panic!("{kind:?} {name}: {invalid}"));
            assert!(decoded.ignored.is_empty(), "{kind:?} {name}: {:?}", decoded.ignored);
            looked_at += 1;
        }
    }
    assert!(looked_at > 6, "{looked_at}");
}

/// An Envoy refuses a listener that names a cluster which it does not have.
#[test]
fn who_is_asked_about_requests_is_among_the_clusters_of_a_gateway() {
    let asker = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |-\n    \
        extensionProviders:\n    - {name: asker, envoyExtAuthzHttp: {service: asker.example, port: 80}}\n---\n\
        apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: asker, namespace: edges}\n\
        spec: {hosts: [asker.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.0.0.9}]}\n---\n";
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: asked, namespace: edges}\n\
        spec: {selector: {matchLabels: {istio: ingressgateway}}, action: CUSTOM, provider: {name: asker}, rules: [{}]}\n---\n";
    let server = "{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}";
    let text = [WEB.to_owned(), gateway("a", server), rules("a", "a", "a.example", TO_WEB), asker.to_owned()].concat();
    let plane = plane(&text);
    let is_told = || names(&plane, &edge(), Kind::Cluster).contains("outbound|80||asker.example");
    assert!(!is_told());
    plane.set_yaml("p.yaml", policy).unwrap();
    assert!(is_told());
}

#[test]
fn a_mutual_server_without_authorities_is_told_which_secret_to_add() {
    let server = https("https", "a.example", "mode: MUTUAL, credentialName: own");
    let (certificate, roots) =
        secret("shop", "own", "a.example").split_once("  ca.crt").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let plane = plane(&(certificate.clone() + "---\n" + &gateway("a", &server)));
    let is_said = |plane: &Plane| {
        let found = plane.diagnostics();
        found
            .iter()
            .any(|finding| finding.message.contains("no Secret own-cacert with the authorities of clients (`ca.crt`)"))
    };
    assert!(is_said(&plane), "{:?}", plane.diagnostics());
    plane.set_yaml("c.yaml", &format!("{certificate}  ca.crt{roots}{}", gateway("a", &server))).unwrap();
    assert!(!is_said(&plane), "{:?}", plane.diagnostics());
}

#[test]
fn a_listener_that_is_gone_is_absent_for_a_program_too() {
    let server = |port: u16| format!("{{port: {{number: {port}, name: http-{port}, protocol: HTTP}}, hosts: ['*']}}");
    let plane = plane(&gateway("a", &format!("{}, {}", server(80), server(81))));
    let mut program = edge();
    program.class = ClientClass::Library;
    let is_told = |name: &str| plane.snapshot().resource(&program, Kind::Listener, name).is_some();
    assert!(is_told("0.0.0.0_80") && is_told("0.0.0.0_81"));
    plane.set_yaml("c.yaml", &gateway("a", &server(80))).unwrap();
    assert!(is_told("0.0.0.0_80") && !is_told("0.0.0.0_81"));
    for name in ["10.0.0.1_443", "::_443", "xds.istio.io/grpc/lds/inbound/0.0.0.0:80"] {
        assert!(!is_told(name), "{name}");
    }
    // Hosts that nobody describes are as for every client.
    assert!(is_told("beside.example:443"));
}

#[test]
fn a_secret_is_told_to_a_program_of_its_namespace_that_a_rule_is_for() {
    let rule = |selector: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: api, namespace: shop}}\n\
             spec: {{host: api.example.com, {selector}trafficPolicy: {{tls: {{mode: MUTUAL, credentialName: api}}}}}}\n"
        )
    };
    let objects = |selector: &str| secret("shop", "api", "api.example.com") + &rule(selector);
    let selected = objects("workloadSelector: {matchLabels: {app: shop}}, ");
    let program = |class, namespace: &str, app: &str| {
        Client::new("p", class, [10, 0, 0, 2].into()).namespace(namespace).labels([("app", app)])
    };
    let told = |plane: &Plane, client: &Client| {
        let snapshot = plane.snapshot();
        ["", "-cacert"]
            .map(|end| snapshot.resource(client, Kind::Secret, &format!("kubernetes://shop/api{end}")).is_some())
    };
    // What is said counts here, and a gateway is a program like others.
    let plane = plane(&selected);
    let own = program(ClientClass::Library, "shop", "shop");
    assert_eq!(told(&plane, &own), [true; 2]);
    assert_eq!(told(&plane, &own.clone().gateway()), [true; 2]);
    for other in [
        program(ClientClass::Library, "shop", "other"),
        program(ClientClass::Library, "pay", "shop"),
        program(ClientClass::Grpc, "shop", "shop"),
        // Of its own secret discovery.
        program(ClientClass::Envoy, "shop", "shop").sidecar([10, 0, 0, 2], true),
    ] {
        assert_eq!(told(&plane, &other), [false; 2], "{other:?}");
    }
    plane.set_yaml("c.yaml", &objects("")).unwrap();
    assert_eq!(told(&plane, &own), [false; 2], "it is for gateways alone");
    // A gateway of its namespace needs no such word, as in Istio.
    let elsewhere = program(ClientClass::Library, "pay", "other").gateway();
    let at_edge = program(ClientClass::Library, "shop", "other").gateway();
    assert_eq!((told(&plane, &at_edge), told(&plane, &elsewhere)), ([true; 2], [false; 2]));
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: api, namespace: shop}\n\
        spec: {hosts: [api.example.com], resolution: DNS, ports: [{number: 443, name: http, protocol: HTTP}]}\n---\n";
    let server = "{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}";
    let leads = rules("api", "edge", "api.example.com", "http: [{route: [{destination: {host: api.example.com}}]}]");
    let beside = [entry.to_owned(), gateway("edge", server), leads].concat();
    plane.set_yaml("e.yaml", &beside.replace("selector: {istio: ingressgateway}", "selector: {app: other}")).unwrap();
    let names_secret = |client: &Client| {
        let cluster = plane.snapshot().resource(client, Kind::Cluster, "outbound|443||api.example.com").unwrap();
        String::from_utf8_lossy(&cluster.body).contains("kubernetes://shop/api")
    };
    assert_eq!((names_secret(&at_edge), names_secret(&own)), (true, false));
    let said = |texts: &[(&str, &str)]| {
        let said = validate(texts.iter().copied());
        let mut said = said.into_iter().filter(|finding| finding.message.contains("`workloadSelector`"));
        said.next().map(|finding| finding.severity)
    };
    let unselective = objects("");
    assert_eq!(said(&[("c.yaml", unselective.as_str()), ("e.yaml", entry)]), Some(Severity::Error));
    assert_eq!(said(&[("c.yaml", unselective.as_str()), ("e.yaml", beside.as_str())]), Some(Severity::Info));
    assert_eq!(said(&[("c.yaml", selected.as_str()), ("e.yaml", entry)]), None);
    // Elsewhere it has to be proven, to this mesh.
    let strict = Plane::start(PlaneOptions::default().issues_certificates(true)).unwrap();
    strict.set_yaml("c.yaml", &selected).unwrap();
    for (identity, expected) in [
        (None, false),
        (Some("spiffe://cluster.local/ns/shop/sa/any"), true),
        (Some("spiffe://elsewhere/ns/shop/sa/any"), false),
        (Some("spiffe://cluster.local/ns/pay/sa/any"), false),
    ] {
        let mut client = own.clone();
        client.identity = identity.map(|id| id.parse().unwrap());
        assert_eq!(told(&strict, &client), [expected; 2], "{identity:?}");
    }
}

/// Istio has it by the protocol of the server. A browser comes by TLS, where no server can say it: then the port of the service does.
#[test]
fn grpc_web_is_translated_where_the_server_or_a_port_that_its_routes_lead_to_is_called_so() {
    let servers = "{port: {number: 80, name: web, protocol: GRPC-WEB}, hosts: [a.example]}, \
        {port: {number: 81, name: http, protocol: HTTP}, hosts: [b.example]}, \
        {port: {number: 82, name: other, protocol: HTTP}, hosts: [c.example]}";
    let rpc = "apiVersion: v1\nkind: Service\nmetadata: {name: rpc, namespace: shop}\n\
        spec: {selector: {app: rpc}, ports: [{name: grpc-web-1, port: 9000}]}\n---\n";
    let text = [
        WEB.to_owned(),
        rpc.to_owned(),
        gateway("a", servers),
        rules("a", "a", "a.example", TO_WEB),
        rules("b", "a", "b.example", "http: [{route: [{destination: {host: rpc}}]}]"),
        rules("c", "a", "c.example", TO_WEB),
    ];
    let plane = plane(&text.concat());
    let places = |client: &Client, port: u16| {
        let chain = listener(&plane, client, &format!("0.0.0.0_{port}")).filter_chains.remove(0);
        let Some(listener_pb::filter::ConfigType::TypedConfig(any)) = chain.filters[0].config_type.clone() else {
            panic!("{chain:?}")
        };
        let filters = HttpConnectionManager::decode(&*any.value).unwrap().http_filters;
        let place = |name: &str| filters.iter().position(|filter| filter.name == name);
        (place("envoy.filters.http.grpc_web"), place("envoy.filters.http.cors").unwrap())
    };
    let mut library = edge();
    library.class = ClientClass::Library;
    for client in [edge(), library] {
        for port in [80, 81] {
            let (web, cors) = places(&client, port);
            assert!(web.is_some_and(|web| web < cors), "{port} {client:?}");
        }
        assert_eq!(places(&client, 82).0, None, "{client:?}");
    }
}

/// What is in such connections nobody knows: who takes plaintext is not reached by them.
#[test]
fn mutual_tls_passes_by_its_name_to_services_that_the_hosts_let_in_and_to_endpoints_that_speak_it() {
    const WHOLE: &str = "outbound_.80_._.web.shop.svc.cluster.local";
    const SUBSET: &str = "outbound_.80_.v1_.web.shop.svc.cluster.local";
    let servers =
        "{port: {number: 15443, name: tls, protocol: TLS}, hosts: ['shop/*.local'], tls: {mode: AUTO_PASSTHROUGH}}";
    let others = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: other}\n\
        spec: {selector: {app: web}, ports: [{name: http, port: 80}]}\n---\n\
        apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: out, namespace: shop}\n\
        spec: {hosts: [out.example.local], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC}\n---\n\
        apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\n\
        spec: {host: web, subsets: [{name: v1, labels: {version: v1}}]}\n---\n";
    let options = PlaneOptions::default().issues_certificates(true).permissive(true).trust_claims(true);
    let plane = Plane::start(options).unwrap();
    plane.set_yaml("c.yaml", &[WEB, others, &gateway("east", servers)].concat()).unwrap();
    for (name, last, identity) in
        [("plain", 1, None), ("secured", 2, Some("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()))]
    {
        let address = format!("10.0.0.{last}:80").parse().unwrap();
        let mut workload = Workload::new(name, "shop", name, address).labelled([("app", "web")]);
        workload.identity = identity;
        plane.register(workload);
    }
    let mut library = edge();
    library.class = ClientClass::Library;
    let closed = (vec!["*.local".to_owned()], false);
    for client in [edge(), library] {
        let passed = [WHOLE, SUBSET].map(|name| (vec![name.to_owned()], false));
        assert_eq!(chains(&plane, &client, "0.0.0.0_15443"), [&passed[..], std::slice::from_ref(&closed)].concat());
        assert_eq!(names(&plane, &client, Kind::Cluster), format!("BlackHoleCluster {WHOLE} {SUBSET}"));
        // Their TLS is with who is behind.
        let cluster = plane.snapshot().resource(&client, Kind::Cluster, WHOLE).unwrap();
        let cluster = Cluster::decode(&*cluster.body).unwrap();
        assert!(cluster.transport_socket.is_none() && cluster.transport_socket_matches.is_empty());
        assert_eq!(cluster.eds_cluster_config.unwrap().service_name, WHOLE);
        let count = |name: &str| {
            let found = plane.snapshot().resource(&client, Kind::Endpoints, name).unwrap();
            let assignment = ClusterLoadAssignment::decode(&*found.body).unwrap();
            assert_eq!(assignment.cluster_name, name);
            assignment.endpoints.iter().map(|locality| locality.lb_endpoints.len()).sum::<usize>()
        };
        assert_eq!([count(WEB_CLUSTER), count(WHOLE), count(SUBSET)], [2, 1, 0]);
    }
    // A policy on requests refuses by the rest of it, which is everything.
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: edge, namespace: edges}\n\
        spec: {selector: {matchLabels: {istio: ingressgateway}}, action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}\n---\n";
    plane.set_yaml("p.yaml", policy).unwrap();
    let told = listener(&plane, &edge(), "0.0.0.0_15443").filter_chains;
    let first: Vec<&str> = told.iter().map(|chain| chain.filters[0].name.as_str()).collect();
    assert_eq!(first, ["mesh.rbac.deny", "mesh.rbac.deny", "envoy.filters.network.tcp_proxy"]);
}
