//! What Telemetry objects make of the listeners of each kind of client.

use std::net::Ipv4Addr;

use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use mesh_control::analysis::{Mesh, validate_scan};
use mesh_control::catalog::{Catalog, Client, ClientClass, Kind};
use mesh_control::config::load::Scan;
use mesh_control::plane::Plane;
use prost::Message;

use crate::support::client_of;

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
";

const SETTINGS: &str = "---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - {name: b3, zipkin: {service: zipkin.shop.svc.cluster.local, port: 9411}}
    - {name: json, envoyFileAccessLog: {path: /dev/stdout, logFormat: {labels: {z: '%RESPONSE_CODE%', a: {b: 1}}}}}
";

const OBJECT: &str = "---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: all, namespace: shop}
spec:
  tracing:
  - {randomSamplingPercentage: 25, customTags: {team: {literal: {value: a}}}}
  - {match: {mode: SERVER}, providers: [{name: b3}], randomSamplingPercentage: 50}
  - {match: {mode: CLIENT}, disableSpanReporting: true}
  metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, tagOverrides: {a: {value: \"'b'\"}, source_app: {operation: REMOVE}}}]}]
  accessLogging: [{providers: [{name: json}], filter: {expression: \"!has(request.headers['x'])\"}}]
";

const NAMES: [&str; 2] = ["reviews.shop.svc.cluster.local:9080", "xds.istio.io/grpc/lds/inbound/127.0.0.1:9080"];

fn manager(plane: &Plane, client: &Client, name: &str) -> HttpConnectionManager {
    let found = plane.snapshot().resource(client, Kind::Listener, name).unwrap_or_else(|| panic!("{name}"));
    let listener = Listener::decode(&*found.body).unwrap();
    let of_chain = || match listener.filter_chains.iter().chain(&listener.default_filter_chain).next()?.filters[0]
        .config_type
        .clone()?
    {
        ConfigType::TypedConfig(any) => Some(any),
        ConfigType::ConfigDiscovery(_) => None,
    };
    let any = listener.api_listener.clone().and_then(|client| client.api_listener).or_else(of_chain).unwrap();
    HttpConnectionManager::decode(&*any.value).unwrap()
}

#[test]
fn the_library_is_told_of_each_side_and_grpc_of_nothing() {
    let plane = Plane::from_yaml(&format!("{SERVICE}{SETTINGS}{OBJECT}")).unwrap();
    let [client, server] = NAMES.map(|name| manager(&plane, &client_of(ClientClass::Library, "shop", &[]), name));
    let percent = |share: Option<envoy_types::pb::envoy::r#type::v3::Percent>| share.map(|share| share.value);
    assert_eq!(percent(client.tracing.unwrap().overall_sampling), Some(0.0), "no spans of what it calls");
    let tracing = server.tracing.unwrap();
    assert_eq!((percent(tracing.random_sampling), &*tracing.custom_tags[0].tag), (Some(50.0), "team"));
    assert_eq!(tracing.provider.unwrap().name, "envoy.tracers.zipkin");
    for manager in [&client.http_filters, &server.http_filters] {
        let stats = manager.iter().find(|filter| filter.name == "istio.stats").unwrap();
        let bytes = stats.encode_to_vec();
        let shown = String::from_utf8_lossy(&bytes);
        for part in ["stats.PluginConfig", "requests_total", "'b'", "source_app"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
    for log in [&client.access_log[0], &server.access_log[0]] {
        let bytes = log.encode_to_vec();
        assert!(String::from_utf8_lossy(&bytes).contains("!('x' in request.headers)"), "in the words of the standard");
    }
    for name in NAMES {
        let grpc = manager(&plane, &client_of(ClientClass::Grpc, "shop", &[]), name);
        assert!(grpc.access_log.is_empty() && grpc.tracing.is_none(), "{name}");
        assert!(grpc.http_filters.iter().all(|filter| filter.name != "istio.stats"), "{name}");
    }
    let elsewhere = manager(&plane, &client_of(ClientClass::Library, "other", &[]), NAMES[1]);
    assert!(elsewhere.access_log.is_empty() && elsewhere.tracing.is_none());
}

#[test]
fn an_envoy_beside_a_workload_gets_the_same_access_log_as_the_library() {
    let plane = Plane::from_yaml(&format!("{SERVICE}{SETTINGS}{OBJECT}")).unwrap();
    let of_library = manager(&plane, &client_of(ClientClass::Library, "shop", &[]), NAMES[0]).access_log;
    let envoy = Client::new("e", ClientClass::Envoy, Ipv4Addr::LOCALHOST.into());
    let envoy = envoy.namespace("shop").sidecar("127.0.0.2".parse::<Ipv4Addr>().unwrap(), true);
    let names = plane.snapshot().everything(&envoy, Kind::Listener);
    let name = names.iter().find(|name| name.ends_with("_9080")).unwrap_or_else(|| panic!("{names:?}"));
    assert_eq!(manager(&plane, &envoy, name).access_log, of_library);
}

/// What the application of a process has the library do with a collector, an Envoy does by itself.
#[test]
fn an_envoy_sends_its_access_log_to_the_collector_that_is_written() {
    let settings = "---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - {name: otel, envoyOtelAls: {service: otel.far.svc.cluster.local, port: 4317, logFormat: {labels: {code: '%RESPONSE_CODE%'}}}}
    defaultProviders: {accessLogging: [otel]}
";
    let collector = |port: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: otel, namespace: far}}\nspec: {{ports: [{{name: {port}, port: 4317}}]}}\n"
        )
    };
    let envoy = Client::new("e", ClientClass::Envoy, Ipv4Addr::LOCALHOST.into()).namespace("shop");
    let envoy = envoy.labels([("app", "reviews")]).sidecar("127.0.0.2".parse::<Ipv4Addr>().unwrap(), true);
    for (port, is_called) in [("grpc-otlp", true), ("otlp", false)] {
        let yaml = format!("{SERVICE}{settings}{}", collector(port));
        let plane = Plane::from_yaml(&yaml).unwrap();
        let snapshot = plane.snapshot();
        let cluster = "outbound|4317||otel.far.svc.cluster.local";
        let outbound = snapshot.everything(&envoy, Kind::Listener).into_iter().find(|name| name.ends_with("_9080"));
        let sent: Vec<_> = manager(&plane, &envoy, &outbound.unwrap()).access_log;
        assert_eq!(sent.len(), usize::from(is_called), "{port}: {sent:?}");
        let said = format!("{:?}", sent.iter().map(|log| log.config_type.clone()).collect::<Vec<_>>());
        let bytes = |text: &str| format!("{:?}", text.as_bytes()).trim_matches(['[', ']']).to_owned();
        for text in [cluster, "otel_envoy_accesslog", "%RESPONSE_CODE%"].iter().filter(|_| is_called) {
            assert!(said.contains(text) || said.contains(&bytes(text)), "{text}: {said}");
        }
        assert!(snapshot.everything(&envoy, Kind::Cluster).iter().any(|name| **name == *cluster));
        let mut scan = Scan::default();
        scan.files.insert("t.yaml".into(), Ok(yaml.into()));
        let found = validate_scan(scan, Mesh { has_envoys: true, ..Mesh::default() }).diagnostics;
        let told =
            found.iter().any(|one| one.message.contains("sees no service otel.far.svc.cluster.local with a port 4317"));
        assert_eq!(told, !is_called, "{found:?}");
    }
}

#[test]
fn what_others_cannot_do_is_said_where_they_are() {
    let told = |mesh: Mesh| {
        let mut scan = Scan::default();
        scan.files.insert("t.yaml".into(), Ok(format!("{SERVICE}{SETTINGS}{OBJECT}").into()));
        let found = validate_scan(scan, mesh).diagnostics;
        found.iter().filter(|one| one.to_string().contains("[degraded]")).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(told(Mesh::default()).is_empty());
    for (mesh, fields) in [
        (Mesh { has_grpc: true, ..Mesh::default() }, ["accessLogging", "metrics", "tracing"].as_slice()),
        (Mesh { has_envoys: true, ..Mesh::default() }, &["metrics", "tracing"]),
    ] {
        let told = told(mesh);
        for field in fields {
            assert!(
                told.iter().any(|one| one.contains(&format!("Telemetry shop/all: {field}: "))),
                "{field}: {told:?}"
            );
        }
    }
}
