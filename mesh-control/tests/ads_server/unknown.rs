//! What a client is told of a host that does not exist: where it does; and one that cannot be told from another.

use std::sync::Arc;
use std::time::Duration;

use mesh_control::catalog::Kind;
use mesh_control::embedded::{Config, Embedded, Options, OutboundTrafficPolicy, PlaneOptions};
use mesh_core::request::RequestHead;
use mesh_core::store::{Source, Store};
use mesh_core::view::Extensions;
use mesh_core::xds::Bootstrap;
use tonic::transport::Channel;

use crate::support::{Sotw, node, until};

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}, {name: admin, port: 9090}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: pay}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: secret, namespace: pay, annotations: {networking.istio.io/exportTo: .}}
spec: {selector: {app: secret}, ports: [{name: http, port: 80}]}
";

const TOLD: [(&str, &str); 4] = [
    ("reviews.shop:80", "the host reviews.shop.svc.cluster.local has no port 80, it has ports 9080, 9090"),
    (
        "reviews:9080",
        "namespace default has no host \"reviews\", there is reviews.pay (port 80), reviews.shop (ports 9080, 9090)",
    ),
    // What is not seen cannot be told from what is not there.
    ("secret:80", "no object describes it, and such hosts are not called (REGISTRY_ONLY)"),
    ("nowhere:80", "no object describes it, and such hosts are not called (REGISTRY_ONLY)"),
];

#[tokio::test]
async fn an_unknown_host_is_answered_with_the_ports_and_namespaces_where_it_does_exist() {
    let options =
        Options::default().plane(PlaneOptions::default().outbound_traffic_policy(OutboundTrafficPolicy::RegistryOnly));
    let mesh = Embedded::start(Config::yaml(SHOP), options).await.unwrap();
    let source = Arc::new(mesh.source(Bootstrap::new("embedded").node_id("web-1")));
    let (store, sink) = Store::new(source.clone(), Extensions::default(), Duration::from_secs(600));
    tokio::spawn(source.clone().run(sink));
    for (target, told) in TOLD {
        let entry = store.target(target).unwrap();
        until("the answer is there", || entry.view().is_some()).await;
        let (head, ()) = http::Request::get(format!("http://{target}/")).body(()).unwrap().into_parts();
        let head = RequestHead::of(&head).unwrap();
        let view = entry.view().unwrap();
        let error = view.find(&head, &mut fastrand::Rng::new()).err().map(|error| error.to_string());
        assert_eq!(error.unwrap_or_default(), format!("listener {target}: {told}"));
    }

    let channel = Channel::from_shared(format!("http://{}", mesh.xds_addr())).unwrap().connect().await.unwrap();
    let mut client = Sotw::open(channel, node("gRPC C-core")).await.unwrap();
    client.send(Kind::Listener, &["reviews.pay:9080"], None, None).await;
    let errors = client.next().await.resource_errors;
    let told = &errors[0].error_detail.as_ref().unwrap().message;
    assert_eq!(told, "the host reviews.pay.svc.cluster.local has no port 9080, it has port 80");
}

/// Rules and what guards a workload find it by its labels: without them it would be taken for another.
#[tokio::test]
async fn a_client_whose_labels_cannot_be_read_is_turned_away_with_the_reason() {
    let mesh = Embedded::start(Config::yaml(SHOP), Options::default()).await.unwrap();
    for (labels, told) in [
        (serde_json::json!({"app": "web", "version": 2}), "LABELS.version is not a string"),
        (serde_json::json!("app=web"), "LABELS is not an object of strings"),
    ] {
        let source = Arc::new(mesh.source(Bootstrap::new("embedded").node_id("web-1").metadata("LABELS", labels)));
        let (store, sink) = Store::new(source.clone(), Extensions::default(), Duration::from_secs(600));
        let running = tokio::spawn(source.clone().run(sink));
        let _entry = store.target("reviews.shop:9080").unwrap();
        let is_told = || mesh.status().turned_away.iter().any(|client| client.text.contains(told));
        until("it is turned away", is_told).await;
        assert!(mesh.status().clients.is_empty(), "{told}");
        running.abort();
    }
    assert!(mesh.metrics().contains("mesh_xds_refused_total{reason=\"node\"}"));
}
