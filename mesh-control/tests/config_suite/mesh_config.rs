//! The settings of the mesh, as Istio's users have them: in a ConfigMap, or in a file of their own.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager as hcm,
};
use envoy_types::pb::envoy::r#type::v3::Percent;
use mesh_control::catalog::{Catalog, ClientClass, Kind};
use mesh_control::config::Severity;
use mesh_control::plane::{OutboundTrafficPolicy, Plane, PlaneOptions};
use mesh_core::model::Cluster;
use mesh_core::path::{EscapedSlashes, PathNormalization};
use mesh_core::resources::{Resource, ResourceType};
use mesh_core::xds::decode::{Options, decode};
use prost::Message;
use tokio::time::timeout;

use crate::support::{client, client_of};

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{port: 9080, name: http}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: open, namespace: shop}
spec: {hosts: [open.example.com], ports: [{number: 80, name: http}], resolution: DNS, exportTo: ['*']}
";

/// A ConfigMap with these settings, which begin in its ninth line.
fn config_map(settings: &str) -> String {
    let settings: String = settings.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: istio\n  namespace: istio-system\ndata:\n  meshNetworks: 'networks: {{}}'\n  mesh: |-\n{settings}"
    )
}

fn plane(settings: &str) -> Plane {
    let plane = Plane::empty();
    plane.set_yaml("config.yaml", &format!("{}---{SHOP}", config_map(settings))).unwrap_or_else(|why| panic!("{why}"));
    plane
}

fn said(plane: &Plane) -> Vec<String> {
    plane.diagnostics().iter().map(ToString::to_string).collect()
}

/// Whether a host that nothing describes is called.
fn passes(plane: &Plane) -> bool {
    let found = plane.snapshot().resource(&client("shop"), Kind::Listener, "unknown.example.com:80").unwrap();
    String::from_utf8_lossy(&found.body).contains("allow_any")
}

fn paths(plane: &Plane) -> PathNormalization {
    let name = "xds.istio.io/grpc/lds/inbound/127.0.0.1:9080";
    let found = plane.snapshot().resource(&client("shop"), Kind::Listener, name).unwrap();
    let decoded = decode(ResourceType::Listener, &found.body, &Options::default()).unwrap().resource;
    let Resource::Listener(listener) = decoded else { panic!("no listener") };
    let mesh_core::model::Listener::Server(server) = &*listener else { panic!("no server") };
    server.chains().next().unwrap().http.paths
}

#[test]
fn what_the_settings_say_is_in_force() {
    let none = Plane::empty();
    none.set_yaml("config.yaml", SHOP).unwrap();
    assert!(passes(&none));
    assert_eq!(paths(&none), PathNormalization::BASE);

    let set = plane(
        "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\npathNormalization:\n  normalization: DECODE_AND_MERGE_SLASHES\n",
    );
    assert!(!passes(&set));
    assert_eq!(paths(&set).escaped_slashes, EscapedSlashes::Decode);
    assert_eq!(set.trust_domain().as_str(), "cluster.local");
    assert!(said(&set).is_empty(), "{:?}", said(&set));
    // Without a mode, protobuf's first one holds.
    assert!(!passes(&plane("outboundTrafficPolicy: {}\n")));
    assert_eq!(plane("trustDomain: example.org\n").trust_domain().as_str(), "example.org");
    // They may be written in one line, too.
    let one = config_map("").replace("mesh: |-\n", "mesh: '{trustDomain: one.org}'\n");
    assert_eq!(Plane::from_yaml(&one).unwrap().trust_domain().as_str(), "one.org");
    // And taken away again.
    set.set_yaml("config.yaml", SHOP).unwrap();
    assert!(passes(&set));
}

/// The cluster of reviews, as its client is told of it.
fn cluster_of_reviews(yaml: &str) -> Arc<Cluster> {
    let plane = Plane::empty();
    plane.set_yaml("config.yaml", yaml).unwrap_or_else(|why| panic!("{why}"));
    let name = "outbound|9080||reviews.shop.svc.cluster.local";
    let found = plane.snapshot().resource(&client("shop"), Kind::Cluster, name).unwrap();
    let decoded = decode(ResourceType::Cluster, &found.body, &Options::default()).unwrap().resource;
    let Resource::Cluster(cluster) = decoded else { panic!("no cluster") };
    cluster
}

#[test]
fn connections_take_as_long_as_the_mesh_says_where_no_rule_does() {
    let cluster = |yaml: &str| {
        let cluster = cluster_of_reviews(yaml);
        (cluster.connect_timeout, cluster.tcp_keepalive)
    };
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews, namespace: shop}\nspec: {host: reviews, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 1s}}}}\n";
    let settings = config_map("connectTimeout: 3s\ntcpKeepalive: {probes: 7, time: 9s, interval: 2s}\n");
    let (timeout, probes) = cluster(SHOP);
    assert!(timeout == Duration::from_secs(10) && probes.is_none(), "{timeout:?} {probes:?}");
    let (timeout, probes) = cluster(&format!("{settings}---{SHOP}"));
    assert_eq!(timeout, Duration::from_secs(3));
    let probes = probes.expect("probes");
    assert_eq!(
        (probes.probes, probes.time, probes.interval),
        (Some(7), Some(Duration::from_secs(9)), Some(Duration::from_secs(2)))
    );
    let (timeout, probes) = cluster(&format!("{settings}---{SHOP}{rule}"));
    assert!(timeout == Duration::from_secs(1) && probes.is_some(), "a rule goes before it");
}

#[test]
fn a_block_of_the_mesh_is_what_a_rule_that_says_the_same_is() {
    let cluster = |yaml: &str| format!("{:?}", cluster_of_reviews(yaml));
    let http2 = |fields: &str| format!("connectionPool: {{http: {{h2UpgradePolicy: UPGRADE, {fields}}}}}");
    let tcp = ["maxConnections: 7", "connectTimeout: 7s", "maxConnectionDuration: 7s", "idleTimeout: 7s"];
    let keepalive = ["probes: 7", "time: 7s", "interval: 7s"].map(|field| format!("tcpKeepalive: {{{field}}}"));
    let http = [
        "http1MaxPendingRequests: 7",
        "http2MaxRequests: 7",
        "maxRequestsPerConnection: 7",
        "maxRetries: 7",
        "idleTimeout: 8s",
        "h2UpgradePolicy: UPGRADE",
        "useClientProtocol: true",
    ];
    let outliers = [
        "consecutive5xxErrors: 7",
        "consecutiveGatewayErrors: 7",
        "splitExternalLocalOriginErrors: true",
        "splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 7",
        "interval: 7s",
        "baseEjectionTime: 7s",
        "maxEjectionPercent: 7",
        "minHealthPercent: 7",
    ];
    let tcp = tcp.map(str::to_owned).into_iter().chain(keepalive);
    let blocks = tcp.map(|field| format!("connectionPool: {{tcp: {{{field}}}}}"));
    let blocks = blocks.chain(http.map(|field| format!("connectionPool: {{http: {{{field}}}}}")));
    let blocks = blocks.chain([http2("maxConcurrentStreams: 7"), http2("http2KeepAlive: {interval: 7s, timeout: 8s}")]);
    let blocks = blocks.chain(outliers.map(|field| format!("outlierDetection: {{{field}}}")));
    let mut seen = vec![cluster(SHOP)];
    for block in blocks {
        let rule = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews, namespace: shop}}\nspec: {{host: reviews, trafficPolicy: {{{block}}}}}\n"
        );
        let by_mesh = cluster(&format!("{}---{SHOP}", config_map(&format!("defaultTrafficPolicy: {{{block}}}\n"))));
        assert_eq!(by_mesh, cluster(&format!("{SHOP}{rule}")), "{block}");
        assert!(!seen.contains(&by_mesh), "{block} says nothing");
        seen.push(by_mesh);
    }
}

#[test]
fn a_wrong_setting_is_told_with_its_line_and_column_in_the_file() {
    for (settings, expected) in [
        ("trustDomain: a.b\noutboundTrafficPolicy:\n  mode: OPEN\n", ":11:13: error[invalid-value]"),
        (
            "connectTimeout: 0s\n",
            ": error[invalid-value]: MeshConfig istio-system/istio: connectTimeout: less than 1ms",
        ),
        ("trustDomian: x\n", ":9:5: error[unknown-field]"),
        ("defaultTrafficPolicy: {outlierDetection: {interval: 0s}}\n", ":9:46: error[invalid-value]"),
        ("\n# why\nrootNamespace: 'A B'\n", ":11:20: error[invalid-value]"),
        ("trustDomain: Example.org\n", ":9:18: error[invalid-value]"),
        ("trustDomainAliases: [a, b/c]\n", ":9:29: error[invalid-value]"),
        ("defaultServiceExportTo: ['*', x]\n", ":9:30: error[invalid-value]"),
        ("extensionProviders:\n- name: a\n", ":10:7: error[invalid-value]"),
        ("extensionProviders:\n- {name: a, zipkin: {}}\n- {name: a, zipkin: {}}\n", ":11:14: error[invalid-value]"),
        (
            "extensionProviders:\n- name: a\n  envoyExtAuthzHttp: {service: a.b, port: 0}\n",
            ":11:47: error[invalid-value]",
        ),
        (
            "extensionProviders:\n- name: a\n  envoyExtAuthzHttp:\n    service: a.b\n    port: 80\n    statusOnError: '200'\n",
            ":14:24: error[invalid-value]",
        ),
        (
            "extensionProviders:\n- name: a\n  envoyExtAuthzHttp:\n    service: a.b\n    port: 80\n    headersToUpstreamOnAllow: [x-a, '*']\n",
            ":14:41: error[invalid-value]",
        ),
        (
            "extensionProviders:\n- name: a\n  envoyExtAuthzHttp:\n    service: a.b\n    port: 80\n    headersToUpstreamOnAllow: [Transfer-Encoding]\n",
            ":14:36: error[invalid-value]",
        ),
        (
            "extensionProviders:\n- name: a\n  envoyExtAuthzHttp:\n    service: a.in-process.invalid\n    port: 80\n",
            ":12:18: error[invalid-value]",
        ),
        (
            "extensionProviders:\n- name: a\n  envoyExtAuthzGrpc:\n    service: a.b\n    port: 80\n    includeRequestBodyInCheck: {}\n",
            ":14:36: error[invalid-value]",
        ),
        (
            "extensionProviders:\n- name: a\n  envoyExtAuthzHttp:\n    service: a.b\n    port: 80\n    includeRequestBodyInCheck: {maxRequestBytes: 16777217}\n",
            ":14:36: error[invalid-value]",
        ),
        ("defaultConfig:\n  gatewayTopology:\n    proxyProtocol:\n", ":11:9: error[invalid-value]"),
        (
            "defaultConfig: {gatewayTopology: {numTrustedProxies: 4294967295}}\n",
            "`gatewayTopology.numTrustedProxies` is 4294967295",
        ),
        ("a: [\n", ":9:5: error[syntax]"),
    ] {
        let why = Plane::from_yaml(&config_map(settings)).expect_err(settings).to_string();
        assert!(why.contains(expected) && why.contains("MeshConfig istio-system/istio"), "{settings}\n{why}");
    }
    // Where the text is not in the file as it is read, its place is.
    let quoted = config_map("").replace("mesh: |-\n", "mesh: \"trustDomain: 'A\\u0020B'\"\n");
    let why = Plane::from_yaml(&quoted).expect_err("wrong").to_string();
    assert!(why.contains(":8:9: error[invalid-value]: MeshConfig istio-system/istio: trustDomain"), "{why}");
}

#[test]
fn what_is_not_enforced_is_told_and_what_guards_louder() {
    let plane = plane(
        "enableTracing: true\ndefaultConfig: {concurrency: 2, tracing: {sampling: 5}}\ncaCertificates: [{pem: x}]\nmeshMTLS: {minProtocolVersion: TLSV1_3, cipherSuites: [a]}\nenableAutoMtls: false\ningressClass: istio\n",
    );
    let said = said(&plane);
    for expected in [
        "config.yaml:10:",
        "info[ignored]: MeshConfig: defaultConfig.concurrency: without effect in this mesh",
        "config.yaml:11:5: warning[not-supported-yet]: MeshConfig istio-system/istio: caCertificates",
        "config.yaml:12:",
        "config.yaml:13:5: warning[not-supported-yet]: MeshConfig istio-system/istio: enableAutoMtls",
        "info[ignored]: MeshConfig: ingressClass",
    ] {
        assert!(said.iter().any(|line| line.contains(expected)), "{expected} is not in\n{}", said.join("\n"));
    }
    assert!(!said.iter().any(|line| line.contains("MeshConfig: defaultConfig:")), "{said:#?}");
}

/// How the requests of a client's target, and those of a server, are traced.
fn tracing(plane: &Plane) -> [Option<hcm::Tracing>; 2] {
    ["reviews.shop.svc.cluster.local:9080", "xds.istio.io/grpc/lds/inbound/127.0.0.1:9080"].map(|name| {
        let found = plane.snapshot().resource(&client("shop"), Kind::Listener, name).unwrap();
        let listener = Listener::decode(&*found.body).unwrap();
        let manager = match listener.api_listener {
            Some(client) => client.api_listener.unwrap(),
            None => match listener.filter_chains[0].filters[0].config_type.clone().unwrap() {
                ConfigType::TypedConfig(any) => any,
                ConfigType::ConfigDiscovery(_) => panic!("not written out"),
            },
        };
        HttpConnectionManager::decode(&*manager.value).unwrap().tracing
    })
}

#[test]
fn how_requests_are_traced_is_told_to_clients_and_servers() {
    assert_eq!(tracing(&plane("trustDomain: example.org\n")), [None, None], "it is the application's to say");
    let percent = |value| Some(Percent { value });
    for both in tracing(&plane("enableTracing: true\n")) {
        assert_eq!(both.unwrap().random_sampling, percent(1.0), "Istio's default");
    }
    for both in tracing(&plane("enableTracing: false\ndefaultConfig: {tracing: {sampling: 50}}\n")) {
        assert_eq!(both.unwrap().overall_sampling, percent(0.0));
    }
    let settings = "defaultConfig:\n  tracing:\n    sampling: 12.5\n    max_path_tag_length: 64\n    customTags:\n      \
        my_team: {literal: {value: shop}}\n      zone: {environment: {name: ZONE, default_value: nowhere}}\n      \
        user: {header: {name: x-user}}\n";
    let plane = plane(settings);
    assert!(said(&plane).is_empty(), "{:?}", said(&plane));
    for both in tracing(&plane) {
        let both = both.unwrap();
        assert_eq!((both.random_sampling, both.overall_sampling), (percent(12.5), percent(100.0)));
        assert_eq!(both.max_path_tag_length.unwrap().value, 64);
        let tags: Vec<String> = both.custom_tags.iter().map(|tag| format!("{}: {:?}", tag.tag, tag.r#type)).collect();
        for (tag, expected) in tags.iter().zip([["my_team", "shop"], ["user", "x-user"], ["zone", "nowhere"]]) {
            assert!(expected.iter().all(|part| tag.contains(part)), "{tag}");
        }
        assert_eq!(tags.len(), 3);
    }
}

#[test]
fn another_config_map_has_no_settings_and_one_that_looks_like_it_is_told_of() {
    for (name, namespace, expected) in [
        ("settings", "istio-system", "info[ignored]"),
        ("istio", "shop", "warning[ignored]"),
        ("istio-canary", "istio-system", "warning[ignored]"),
    ] {
        let text = config_map("trustDomain: example.org\n");
        let text = text.replace("name: istio\n", &format!("name: {name}\n")).replace("istio-system", namespace);
        let plane = Plane::from_yaml(&text).unwrap();
        assert_eq!(plane.trust_domain().as_str(), "cluster.local");
        assert!(said(&plane).iter().any(|line| line.contains(expected)), "{:?}", said(&plane));
    }
    // That of the root namespace counts.
    let text = config_map("rootNamespace: root\ntrustDomain: example.org\n").replace("istio-system", "root");
    assert_eq!(Plane::from_yaml(&text).unwrap().trust_domain().as_str(), "example.org");
}

#[test]
fn a_config_map_of_that_name_whose_settings_are_not_found_is_an_error() {
    let good = config_map("outboundTrafficPolicy: {mode: REGISTRY_ONLY}");
    for (from, to) in [
        ("  mesh: |-", "  meshh: |-"),
        ("  mesh: |-", "  Mesh: |-"),
        ("\ndata:", "\ndatta:"),
        ("\ndata:", "\nbinaryData:"),
    ] {
        let refused = Plane::from_yaml(&good.replacen(from, to, 1)).err().map(|why| why.to_string());
        assert!(refused.as_ref().is_some_and(|why| why.contains("no text in data.mesh")), "{to}: {refused:?}");
    }
}

#[test]
fn the_root_namespace_is_where_the_settings_say() {
    let policy = |namespace: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: closed, namespace: {namespace}}}\nspec: {{}}\n"
        )
    };
    let guarded = |settings: &str, namespace: &str| {
        let plane = Plane::empty();
        plane.set_yaml("c.yaml", &format!("{}---{SHOP}{}", config_map(settings), policy(namespace))).unwrap();
        // Where policies guard, slashes are merged.
        paths(&plane).merge_slashes
    };
    assert!(guarded("", "istio-system") && !guarded("", "root"));
    assert!(guarded("rootNamespace: root\n", "root") && !guarded("rootNamespace: root\n", "istio-system"));
}

#[test]
fn objects_that_say_nothing_are_exported_to_whom_the_settings_say() {
    let plane = plane("defaultServiceExportTo: ['.']\n");
    let seen = |namespace: &str, target: &str| {
        plane.snapshot().resource(&client(namespace), Kind::Listener, target).is_some_and(|it| {
            let text = String::from_utf8_lossy(&it.body).into_owned();
            !text.contains("PassthroughCluster")
        })
    };
    assert!(seen("shop", "reviews.shop.svc.cluster.local:9080"));
    assert!(!seen("other", "reviews.shop.svc.cluster.local:9080"));
    assert!(seen("other", "open.example.com:80"), "it says for itself who sees it");
}

/// A CUSTOM policy for everybody, whose provider says this.
fn custom(provider: &str) -> String {
    let settings = config_map(&format!("extensionProviders:\n- name: opa\n  {provider}\n"));
    format!(
        "{settings}---{SHOP}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: ask, namespace: shop}}\n\
         spec: {{action: CUSTOM, provider: {{name: opa}}, rules: [{{}}]}}\n"
    )
}

fn told(plane: &Plane, class: ClientClass) -> String {
    String::from_utf8_lossy(&bytes_told(plane, class)).into_owned()
}

fn bytes_told(plane: &Plane, class: ClientClass) -> Vec<u8> {
    let name = "xds.istio.io/grpc/lds/inbound/127.0.0.1:9080";
    plane.snapshot().resource(&client_of(class, "shop", &[]), Kind::Listener, name).unwrap().body.to_vec()
}

#[test]
fn an_authorizer_is_told_to_the_library_and_grpc_s_servers_serve_nobody() {
    let service = "service: reviews.shop.svc.cluster.local, port: 9080";
    let plane = Plane::from_yaml(&custom(&format!("envoyExtAuthzGrpc: {{{service}}}"))).unwrap();
    assert!(said(&plane).is_empty(), "{:?}", said(&plane));
    let library = told(&plane, ClientClass::Library);
    assert!(library.contains("mesh.ext_authz.0") && library.contains("reviews.shop.svc.cluster.local:9080"));
    let grpc = told(&plane, ClientClass::Grpc);
    // A server fails calls whose route forwards, and has no other way to say so.
    assert!(grpc.contains("BlackHoleCluster") && !grpc.contains("ext_authz"), "{grpc}");
    // Whatever is written of a provider is told.
    let all = ", timeout: 1s, failOpen: true, statusOnError: '500'";
    let http = ", pathPrefix: /check, includeHeadersInCheck: [x-a], includeRequestHeadersInCheck: [x-b], \
        includeAdditionalHeadersInCheck: {x-c: d}, headersToUpstreamOnAllow: [x-e], headersToDownstreamOnDeny: [x-f], \
        headersToDownstreamOnAllow: [x-g]";
    for (kind, more) in [("envoyExtAuthzGrpc", all.to_owned()), ("envoyExtAuthzHttp", format!("{all}{http}"))] {
        let with = |more: &str| {
            let plane = Plane::from_yaml(&custom(&format!("{kind}: {{{service}{more}}}"))).unwrap();
            bytes_told(&plane, ClientClass::Library)
        };
        let before = with(&more);
        for field in more.trim_start_matches(", ").split(", ") {
            assert_ne!(before, with(&more.replace(&format!(", {field}"), "")), "{kind} {field}");
        }
        let bodies = ["9", "10", "9, allowPartialMessage: true", "9, packAsBytes: true"];
        let bodies = bodies.map(|body| with(&format!(", includeRequestBodyInCheck: {{maxRequestBytes: {body}}}")));
        for (index, body) in bodies.iter().enumerate() {
            assert!(*body != with("") && !bodies[..index].contains(body), "{kind} {index}");
        }
    }
}

#[test]
fn headers_that_are_added_for_an_authorizer_are_formats_and_what_none_can_make_is_said() {
    let yaml = |value: &str| {
        let more = format!("includeAdditionalHeadersInCheck: {{x-c: '{value}'}}");
        let service = "service: reviews.shop.svc.cluster.local, port: 9080";
        custom(&format!("envoyExtAuthzHttp: {{{service}, {more}}}"))
    };
    for value in ["%REQ(:PATH)%", "100%%", "%REQ(x-a?x-b):8% by %PROTOCOL%"] {
        let plane = Plane::from_yaml(&yaml(value)).unwrap();
        assert!(said(&plane).is_empty(), "{value}: {:?}", said(&plane));
        // Of Envoy's own reading: the same bytes.
        assert!(told(&plane, ClientClass::Library).contains(value), "{value}");
    }
    for (value, why) in [("100%", "a lone %"), ("%START_TIME%", "%START_TIME% is not supported here")] {
        let plane = Plane::start(PlaneOptions::default()).unwrap();
        _ = plane.set_yaml("c.yaml", &yaml(value));
        let said = said(&plane);
        let is_it = |line: &String| line.contains("includeAdditionalHeadersInCheck[x-c]") && line.contains(why);
        assert!(said.iter().any(|line| is_it(line) && line.contains("error")), "{value}: {said:?}");
    }
}

#[test]
fn an_authorizer_in_the_servers_own_process_needs_no_service() {
    let plane = Plane::from_yaml(&custom("envoyExtAuthzGrpc: {service: plans.in-process.invalid, port: 80}")).unwrap();
    assert!(said(&plane).is_empty(), "{:?}", said(&plane));
    let library = told(&plane, ClientClass::Library);
    assert!(library.contains("plans.in-process.invalid:80") && !library.contains("AuthorizationPolicy shop/ask"));
    assert!(told(&plane, ClientClass::Grpc).contains("BlackHoleCluster"), "who asks nobody lets nobody in");
}

#[test]
fn a_provider_that_nothing_describes_is_told_and_serves_nobody() {
    for (provider, why) in [
        ("envoyExtAuthzHttp: {service: none.example.com, port: 80}", "none.example.com:80, which nothing describes"),
        ("envoyExtAuthzHttp: {service: reviews.shop.svc.cluster.local, port: 81}", "which nothing describes"),
        ("zipkin: {}", "the extension provider opa is none that can be asked"),
    ] {
        let plane = Plane::from_yaml(&custom(provider)).unwrap();
        assert!(said(&plane).iter().any(|line| line.contains(why) && line.contains("error")), "{:?}", said(&plane));
        assert!(told(&plane, ClientClass::Library).contains("AuthorizationPolicy shop/ask"), "{provider}");
        // Whoever wants to be served all the same is, and nobody is asked who may be anybody.
        let plane = Plane::start(PlaneOptions::default().allow_unenforced(true)).unwrap();
        plane.set_yaml("c.yaml", &custom(provider)).unwrap();
        let told = told(&plane, ClientClass::Library);
        assert!(!told.contains("AuthorizationPolicy shop/ask") && !told.contains("ext_authz"), "{provider}: {told}");
    }
}

#[test]
fn without_automatic_mutual_tls_calls_are_plaintext_unless_a_rule_says_otherwise() {
    let secured = |settings: &str, class| {
        let plane = Plane::start(PlaneOptions::default().issues_certificates(true)).unwrap();
        plane.set_yaml("c.yaml", &format!("{}---{SHOP}", config_map(settings))).unwrap();
        let name = "outbound|9080||reviews.shop.svc.cluster.local";
        let client = client_of(class, "shop", &[("security.istio.io/tlsMode", "istio")]);
        let found = plane.snapshot().resource(&client, Kind::Cluster, name).unwrap();
        String::from_utf8_lossy(&found.body).contains("envoy.transport_sockets.tls")
    };
    assert!(secured("enableAutoMtls: true\n", ClientClass::Library));
    assert!(!secured("enableAutoMtls: false\n", ClientClass::Library));
}

#[tokio::test]
async fn wrong_settings_leave_the_last_good_ones_in_force_and_a_new_trust_domain_waits_for_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let write = |settings: &str| fs::write(dir.path().join("mesh.yaml"), config_map(settings)).unwrap();
    write("trustDomain: one.org\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n");
    let plane = Plane::start(PlaneOptions::default().config_dir(dir.path())).unwrap();
    assert!(!passes(&plane));
    write("trustDomain: one.org\noutboundTrafficPolicy: {mode: OPEN}\n");
    plane.reload().await;
    assert!(!passes(&plane));
    assert!(said(&plane).iter().any(|line| line.contains("last good state")), "{:?}", said(&plane));
    write("trustDomain: two.org\nrootNamespace: other\noutboundTrafficPolicy: {mode: ALLOW_ANY}\n");
    plane.reload().await;
    assert!(passes(&plane));
    assert_eq!(plane.trust_domain().as_str(), "one.org");
    for expected in ["the trust domain stays one.org until", "the root namespace stays istio-system until"] {
        let is_told = |line: &String| line.contains(expected) && line.contains("mesh.yaml:");
        assert!(said(&plane).iter().any(is_told), "{:?}", said(&plane));
    }
}

#[tokio::test]
async fn nothing_starts_with_wrong_settings_or_with_an_option_that_says_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let start = |settings: &str, options: PlaneOptions| {
        fs::write(dir.path().join("mesh.yaml"), config_map(settings)).unwrap();
        Plane::start(options.config_dir(dir.path())).map_err(|error| error.to_string())
    };
    let plain = PlaneOptions::default;
    let why = start("outboundTrafficPolicy: {mode: OPEN}\n", plain()).unwrap_err();
    assert!(why.contains("mesh.yaml:9") && why.contains("`OPEN` is none of"), "{why}");
    let closed = plain().outbound_traffic_policy(OutboundTrafficPolicy::RegistryOnly);
    let why = start("outboundTrafficPolicy: {mode: ALLOW_ANY}\n", closed.clone()).unwrap_err();
    assert!(why.contains("--outbound-traffic-policy says REGISTRY_ONLY"), "{why}");
    assert!(!passes(&start("outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n", closed).unwrap()));
    let domain = plain().trust_domain("a.org".parse().unwrap());
    let why = start("trustDomain: b.org\n", domain.clone()).unwrap_err();
    assert!(why.contains("--trust-domain says a.org"), "{why}");
    assert_eq!(start("", domain).unwrap().trust_domain().as_str(), "a.org");
    let paths = plain().path_normalization("BASE".parse().unwrap());
    let why = start("pathNormalization: {normalization: NONE}\n", paths).unwrap_err();
    assert!(why.contains("--path-normalization says"), "{why}");
}

#[tokio::test]
async fn settings_in_a_file_of_their_own_are_read_again_when_it_changes() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(dir.path().join("shop.yaml"), SHOP).unwrap();
    let file = other.path().join("mesh");
    let write = |text: &str| fs::write(&file, text).unwrap();
    write("outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n");
    let options = PlaneOptions::default().config_dir(dir.path()).mesh_config(&file);
    let plane = Plane::start(options.clone()).unwrap();
    assert!(!passes(&plane));
    let mut snapshots = plane.subscribe();
    write("outboundTrafficPolicy:\n  mode: OPEN\n");
    let is_told = || said(&plane).iter().any(|line| line.contains("mesh:2:9: error[invalid-value]"));
    timeout(Duration::from_secs(30), snapshots.wait_for(|_| is_told())).await.expect("noticed").unwrap();
    assert!(!passes(&plane), "the last good state stays");
    for bad in ["", "a: [", "a: 1\n---\nb: 1\n", "[]"] {
        write(bad);
        plane.reload().await;
        assert!(!passes(&plane), "{bad:?}");
        assert!(said(&plane).iter().any(|line| line.contains("--mesh-config=")), "{:?}", said(&plane));
    }
    fs::remove_file(&file).unwrap();
    plane.reload().await;
    assert!(!passes(&plane), "the file is gone");
    // All of the directory may be gone, too.
    fs::remove_file(dir.path().join("shop.yaml")).unwrap();
    write("outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n");
    plane.reload().await;
    assert!(said(&plane).iter().any(|line| line.contains("every configuration file is gone")));
    fs::write(dir.path().join("shop.yaml"), SHOP).unwrap();
    write("outboundTrafficPolicy: {mode: ALLOW_ANY}\n");
    plane.reload().await;
    assert!(passes(&plane));
    assert!(plane.diagnostics().iter().all(|finding| finding.severity < Severity::Error));

    fs::remove_file(&file).unwrap();
    assert!(Plane::start(options).unwrap_err().to_string().contains("--mesh-config="));
}
