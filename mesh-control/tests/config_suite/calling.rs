//! DestinationRule and ServiceEntry, rule by rule (`istio.md` 1.2, 1.3 and 2.2).

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::UpstreamProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::google::protobuf::value::Kind as ValueKind;
use mesh_control::catalog::{ClientClass, Kind};
use prost::Message;

use crate::support::{Seen, addresses_in, client, client_of, grpc_client, plane_from};

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{port: 80, name: http}, {port: 81, name: grpc}, {port: 82, name: http2-x}]
";

const WEB: &str = "outbound|80||web.shop.svc.cluster.local";
const GRPC: &str = "outbound|81||web.shop.svc.cluster.local";

fn dr(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  host: web.shop.svc.cluster.local\n{spec}\n"
    )
}

fn policy(lb: &str) -> String {
    format!("  trafficPolicy: {{loadBalancer: {{simple: {lb}}}}}\n")
}

fn lb(seen: &Seen, name: &str) -> String {
    seen.cluster(name).lb_policy().as_str_name().to_owned()
}

fn http_options(cluster: &Cluster) -> Option<HttpProtocolOptions> {
    let any = cluster.typed_extension_protocol_options.values().next()?;
    assert_eq!(any.type_url, "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions");
    Some(HttpProtocolOptions::decode(any.value.as_slice()).unwrap())
}

fn is_http2(cluster: &Cluster) -> bool {
    match http_options(cluster).and_then(|options| options.upstream_protocol_options) {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(config)) => {
            matches!(config.protocol_config, Some(ProtocolConfig::Http2ProtocolOptions(_)))
        }
        _ => false,
    }
}

fn discovery(cluster: &Cluster) -> DiscoveryType {
    let Some(ClusterDiscoveryType::Type(kind)) = cluster.cluster_discovery_type else { panic!("no type") };
    DiscoveryType::try_from(kind).unwrap()
}

#[test]
fn the_client_s_namespace_goes_first_then_the_service_s_then_the_root() {
    let root = dr("istio-system", "root", &policy("RANDOM"));
    let service = dr("shop", "service", &policy("ROUND_ROBIN"));
    let own = dr("mine", "own", &policy("LEAST_REQUEST"));
    let hidden = dr("shop", "service", &format!("  exportTo: ['.']\n{}", policy("ROUND_ROBIN")));
    let lb_of = |rules: &str, namespace: &str| {
        let plane = plane_from(&format!("{SERVICES}{rules}"));
        lb(&Seen::new(&plane, client(namespace)), WEB)
    };
    assert_eq!(lb_of(&format!("{root}{service}{own}"), "mine"), "LEAST_REQUEST");
    assert_eq!(lb_of(&format!("{root}{service}{own}"), "yours"), "ROUND_ROBIN");
    assert_eq!(lb_of(&format!("{root}{own}"), "yours"), "RANDOM");
    assert_eq!(lb_of(&format!("{root}{hidden}"), "yours"), "RANDOM");
    assert_eq!(lb_of(&format!("{root}{hidden}"), "shop"), "ROUND_ROBIN");
    assert_eq!(lb_of("", "shop"), "LEAST_REQUEST");
}

#[test]
fn a_rule_for_some_clients_is_for_them_only() {
    let all = dr("shop", "all", &policy("RANDOM"));
    let some =
        dr("shop", "some", &format!("  workloadSelector: {{matchLabels: {{app: batch}}}}\n{}", policy("ROUND_ROBIN")));
    let plane = plane_from(&format!("{SERVICES}{all}{some}"));
    let of = |labels: &[(&str, &str)], namespace| {
        lb(&Seen::new(&plane, client_of(ClientClass::Library, namespace, labels)), WEB)
    };
    assert_eq!(of(&[], "shop"), "RANDOM");
    assert_eq!(of(&[("app", "batch")], "shop"), "ROUND_ROBIN");
    assert_eq!(of(&[("app", "batch")], "mine"), "RANDOM");
}

#[test]
fn a_rule_for_clients_of_the_root_namespace_alone_goes_before_the_service_s() {
    let service = dr("shop", "service", &policy("RANDOM"));
    let lb_of = |rules: &str, namespace: &str, labels: &[(&str, &str)]| {
        let plane = plane_from(&format!("{SERVICES}{rules}"));
        lb(&Seen::new(&plane, client_of(ClientClass::Library, namespace, labels)), WEB)
    };
    let some = dr(
        "istio-system",
        "some",
        &format!("  workloadSelector: {{matchLabels: {{app: edge}}}}\n{}", policy("ROUND_ROBIN")),
    );
    let hidden = dr("istio-system", "hidden", &format!("  exportTo: ['.']\n{}", policy("ROUND_ROBIN")));
    let open = dr("istio-system", "open", &policy("ROUND_ROBIN"));
    let (edge, none): (&[_], &[_]) = (&[("app", "edge")], &[]);
    for (rules, namespace, labels, expected) in [
        (some.clone(), "istio-system", edge, "ROUND_ROBIN"),
        (format!("{service}{some}"), "istio-system", edge, "ROUND_ROBIN"),
        (format!("{service}{some}"), "istio-system", none, "RANDOM"),
        (format!("{service}{some}"), "mine", edge, "RANDOM"),
        (hidden.clone(), "istio-system", none, "ROUND_ROBIN"),
        (format!("{service}{hidden}"), "istio-system", none, "ROUND_ROBIN"),
        (format!("{service}{hidden}"), "mine", none, "RANDOM"),
        // What the root namespace has for everybody is a default there, too.
        (format!("{service}{open}"), "istio-system", none, "RANDOM"),
        (open.clone(), "istio-system", none, "ROUND_ROBIN"),
    ] {
        assert_eq!(lb_of(&rules, namespace, labels), expected, "{namespace} {labels:?}: {rules}");
    }
    // So it may ask for TLS.
    let secured = dr(
        "istio-system",
        "some",
        "  workloadSelector: {matchLabels: {app: edge}}\n  trafficPolicy: {tls: {mode: SIMPLE, sni: web.example}}\n",
    );
    let plane = plane_from(&format!("{SERVICES}{secured}"));
    let seen = Seen::new(&plane, client_of(ClientClass::Library, "istio-system", edge));
    assert!(seen.cluster(WEB).transport_socket.is_some());
}

#[test]
fn rules_for_one_host_are_merged_and_the_first_policy_counts() {
    let a = dr("shop", "a", "  subsets: [{name: v1, labels: {v: '1'}}]\n");
    let b = dr(
        "shop",
        "b",
        &format!("{}  subsets: [{{name: v2, labels: {{v: '2'}}}}, {{name: v1, labels: {{v: x}}}}]\n", policy("RANDOM")),
    );
    let c = dr("shop", "c", &policy("ROUND_ROBIN"));
    let plane = plane_from(&format!("{SERVICES}{c}{b}{a}"));
    let seen = Seen::new(&plane, client("shop"));
    assert_eq!(lb(&seen, WEB), "RANDOM");
    assert!(seen.get(Kind::Cluster, "outbound|80|v1|web.shop.svc.cluster.local").is_some());
    assert!(seen.get(Kind::Cluster, "outbound|80|v2|web.shop.svc.cluster.local").is_some());
    let said = plane.diagnostics().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(said.contains("subset `v1` from DestinationRule shop/a"), "{said}");
    assert!(
        said.contains("DestinationRule shop/c: host web.shop.svc.cluster.local has its traffic policy from"),
        "{said}"
    );
}

#[test]
fn a_subset_overrides_setting_by_setting_and_a_port_inherits_nothing() {
    let rule = dr(
        "shop",
        "a",
        "  trafficPolicy:
    loadBalancer: {simple: RANDOM}
    connectionPool: {tcp: {connectTimeout: 1s}}
    portLevelSettings:
    - port: {number: 81}
      loadBalancer: {simple: ROUND_ROBIN}
  subsets:
  - name: v1
    labels: {v: '1'}
    trafficPolicy: {connectionPool: {tcp: {connectTimeout: 2s}}}
",
    );
    let plane = plane_from(&format!("{SERVICES}{rule}"));
    let seen = Seen::new(&plane, client("shop"));
    let settings = |name: &str| {
        let cluster = seen.cluster(name);
        (cluster.lb_policy().as_str_name().to_owned(), cluster.connect_timeout.unwrap().seconds)
    };
    assert_eq!(settings(WEB), ("RANDOM".to_owned(), 1));
    assert_eq!(settings(GRPC), ("ROUND_ROBIN".to_owned(), 10));
    assert_eq!(settings("outbound|80|v1|web.shop.svc.cluster.local"), ("RANDOM".to_owned(), 2));
    assert_eq!(settings("outbound|81|v1|web.shop.svc.cluster.local"), ("ROUND_ROBIN".to_owned(), 2));
}

#[test]
fn the_protocol_and_the_limits_of_connections_are_told() {
    let plane = plane_from(SERVICES);
    let seen = Seen::new(&plane, client("shop"));
    assert!(http_options(&seen.cluster(WEB)).is_none());
    assert!(is_http2(&seen.cluster(GRPC)));
    assert!(is_http2(&seen.cluster("outbound|82||web.shop.svc.cluster.local")));

    let rule = dr(
        "shop",
        "a",
        "  trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE, idleTimeout: 5s, maxRequestsPerConnection: 7}}}\n",
    );
    let plane = plane_from(&format!("{SERVICES}{rule}"));
    let cluster = Seen::new(&plane, client("shop")).cluster(WEB);
    assert!(is_http2(&cluster));
    let common = http_options(&cluster).unwrap().common_http_protocol_options.unwrap();
    assert_eq!(common.idle_timeout.unwrap().seconds, 5);
    assert_eq!(common.max_requests_per_connection.unwrap().value, 7);
    // Istio's limits are none, not Envoy's 1024.
    let thresholds = &cluster.circuit_breakers.unwrap().thresholds[0];
    assert_eq!(thresholds.max_requests.as_ref().unwrap().value, u32::MAX);
}

#[test]
fn transport_security_that_is_not_built_makes_clients_fail_and_is_an_error() {
    let rule = dr(
        "shop",
        "a",
        "  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}\n  subsets: [{name: plain, labels: {v: '1'}, trafficPolicy: {tls: {mode: DISABLE}}}]\n",
    );
    let plane = plane_from(&format!("{SERVICES}{rule}"));
    let plain = "outbound|80|plain|web.shop.svc.cluster.local";
    let library = Seen::new(&plane, client("shop"));
    let socket = library.cluster(WEB).transport_socket.expect("a transport socket");
    assert_eq!(socket.name, "envoy.transport_sockets.tls");
    assert!(library.cluster(plain).transport_socket.is_none());

    // Plain channel credentials would ignore the socket: there is nowhere to call.
    let grpc = Seen::new(&plane, grpc_client("shop"));
    let secured = grpc.cluster(WEB);
    assert_eq!(secured.eds_cluster_config.expect("EDS").service_name, "BlackHoleCluster");
    assert!(secured.transport_socket.is_none());
    assert_eq!(grpc.cluster(plain).eds_cluster_config.expect("EDS").service_name, plain);
    let error = plane.diagnostics().into_iter().find(|finding| finding.field.as_deref() == Some("trafficPolicy.tls"));
    assert!(error.unwrap().to_string().contains("error[needs-certificates]"));
}

#[test]
fn telemetry_finds_the_service_in_the_cluster_and_the_workload_in_the_endpoint() {
    let plane = plane_from(SERVICES);
    let mut workload = mesh_control::registry::Workload::new("k", "shop", "web-1", "10.0.0.1:80".parse().unwrap())
        .labelled([("app", "web"), ("version", "v3")]);
    workload.cluster = "east".into();
    plane.register(workload);
    let seen = Seen::new(&plane, client("shop"));
    let metadata = seen.cluster(WEB).metadata.unwrap();
    let Some(ValueKind::ListValue(services)) = &metadata.filter_metadata["istio"].fields["services"].kind else {
        panic!("a list")
    };
    let Some(ValueKind::StructValue(service)) = &services.values[0].kind else { panic!("a struct") };
    let text = |key: &str| match &service.fields[key].kind {
        Some(ValueKind::StringValue(text)) => text.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        (text("host").as_str(), text("name").as_str(), text("namespace").as_str()),
        ("web.shop.svc.cluster.local", "web", "shop")
    );
    let assignment = seen.assignment(WEB);
    let endpoint = &assignment.endpoints[0].lb_endpoints[0];
    let metadata = endpoint.metadata.as_ref().unwrap();
    let Some(ValueKind::StringValue(workload)) = &metadata.filter_metadata["istio"].fields["workload"].kind else {
        panic!("text")
    };
    assert_eq!(workload, "web-1;shop;web;v3;east");
}

fn entry(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}]\n{spec}\n"
    )
}

#[test]
fn a_service_outside_is_found_as_its_entry_says() {
    let text = [
        entry("dns", "  hosts: [api.example.com]\n  resolution: DNS\n"),
        entry("names", "  hosts: [names.example.com]\n  resolution: DNS\n  endpoints: [{address: a.example.com, weight: 2}, {address: b.example.com, ports: {http: 99}}]\n"),
        entry("one", "  hosts: [one.example.com]\n  resolution: DNS_ROUND_ROBIN\n"),
        entry("wild", "  hosts: ['*.wild.example.com']\n  resolution: NONE\n"),
        entry("ips", "  hosts: [ips.example.com]\n  resolution: DNS\n  endpoints: [{address: 10.0.0.1}]\n"),
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: shop}\nspec: {type: ExternalName, externalName: far.example.com, ports: [{port: 80}]}\n".to_owned(),
    ]
    .concat();
    let plane = plane_from(&text);
    let seen = Seen::new(&plane, client("shop"));
    let grpc = Seen::new(&plane, grpc_client("shop"));
    for (target, library, of_library, of_grpc) in [
        ("api.example.com", DiscoveryType::StrictDns, &["api.example.com:8080"][..], &["api.example.com:8080"][..]),
        (
            "names.example.com",
            DiscoveryType::StrictDns,
            &["a.example.com:8080", "b.example.com:99"],
            &["a.example.com:8080"],
        ),
        ("one.example.com", DiscoveryType::LogicalDns, &["one.example.com:8080"], &["one.example.com:8080"]),
        ("x.wild.example.com", DiscoveryType::StrictDns, &["x.wild.example.com:80"], &["x.wild.example.com:80"]),
        ("alias", DiscoveryType::StrictDns, &["far.example.com:80"], &["far.example.com:80"]),
    ] {
        let name = seen.routes_of(&format!("{target}:80")).name;
        let cluster = seen.cluster(&name);
        assert_eq!(discovery(&cluster), library, "{target}");
        assert_eq!(addresses_in(&cluster.load_assignment.unwrap()), of_library);
        let cluster = grpc.cluster(&name);
        assert_eq!(discovery(&cluster), DiscoveryType::LogicalDns, "{target}");
        assert_eq!(addresses_in(&cluster.load_assignment.unwrap()), of_grpc);
        assert!(seen.get(Kind::Endpoints, &name).is_none(), "{target}");
    }
    assert_eq!(discovery(&seen.cluster("outbound|80||ips.example.com")), DiscoveryType::Eds);
    assert_eq!(seen.addresses("outbound|80||ips.example.com"), ["10.0.0.1:8080"]);
    // Of a wildcard alone nobody can say where it is.
    assert!(seen.get(Kind::Cluster, "outbound|80||*.wild.example.com").is_none());
}

#[test]
fn without_an_original_destination_passing_through_is_taking_turns() {
    let rule = dr("shop", "a", &policy("PASSTHROUGH"));
    let plane = plane_from(&format!("{SERVICES}{rule}"));
    for client in [client("shop"), grpc_client("shop")] {
        let cluster = Seen::new(&plane, client).cluster(WEB);
        assert_eq!(discovery(&cluster), DiscoveryType::Eds);
        assert_eq!(cluster.lb_policy().as_str_name(), "ROUND_ROBIN");
    }
}

/// A client waits for a cluster that it is not told of, and with it for all that stands beside.
#[test]
fn a_destination_that_does_not_exist_is_a_cluster_without_endpoints() {
    let rules = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - route: [{destination: {host: web, subset: v9}, weight: 1}, {destination: {host: nobody}, weight: 1}]
";
    let plane = plane_from(&format!("{SERVICES}{rules}"));
    for client in [client("shop"), grpc_client("shop")] {
        let seen = Seen::new(&plane, client);
        for name in [
            "outbound|80|v9|web.shop.svc.cluster.local",
            "outbound|80||nobody.shop.svc.cluster.local",
            // The port is the one that is addressed.
            "outbound|81|v9|web.shop.svc.cluster.local",
        ] {
            let cluster = seen.cluster(name);
            assert_eq!((cluster.name.as_str(), discovery(&cluster)), (name, DiscoveryType::Eds));
            let endpoints = cluster.eds_cluster_config.unwrap().service_name;
            assert!(seen.addresses(&endpoints).is_empty());
        }
        for name in ["outbound|80|v8|web.shop.svc.cluster.local", "outbound|80||anybody.shop.svc.cluster.local"] {
            assert!(seen.get(Kind::Cluster, name).is_none(), "{name}");
        }
    }
}

#[test]
fn endpoints_are_grouped_by_locality_with_their_weights() {
    let text = entry(
        "sets",
        "  hosts: [sets.example.com]
  resolution: STATIC
  endpoints:
  - {address: 10.0.0.1, locality: r1/z1, weight: 3}
  - {address: 10.0.0.2, locality: r1/z1}
  - {address: 10.0.0.3, locality: r2/z1/s1, weight: 4294967295}
  - {address: 10.0.0.4, locality: r2/z1/s1, weight: 4294967295}
  - {address: 10.0.0.4, locality: r3}
",
    );
    let plane = plane_from(&text);
    let assignment = Seen::new(&plane, client("shop")).assignment("outbound|80||sets.example.com");
    let localities: Vec<(String, usize)> = assignment
        .endpoints
        .iter()
        .map(|group| {
            let at = group.locality.as_ref().unwrap();
            (format!("{}/{}/{}", at.region, at.zone, at.sub_zone), group.lb_endpoints.len())
        })
        .collect();
    // The address that is written twice is one endpoint.
    assert_eq!(localities, [("r1/z1/".to_owned(), 2), ("r2/z1/s1".to_owned(), 2)]);
    let sum: u64 =
        assignment.endpoints.iter().map(|group| u64::from(group.load_balancing_weight.as_ref().unwrap().value)).sum();
    assert!(sum <= u64::from(u32::MAX), "{sum}");
    assert!(
        assignment.endpoints.iter().flat_map(|group| &group.lb_endpoints).all(|endpoint| endpoint
            .load_balancing_weight
            .as_ref()
            .unwrap()
            .value
            > 0)
    );
}
