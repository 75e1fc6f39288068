//! Who asks for everything, with the real plane: is given everything, or is told why not.

use envoy_types::pb::envoy::config::core::v3::Node;
use hyper_util::rt::TokioIo;
use mesh_control::catalog::Kind;
use mesh_control::embedded::{Config, Embedded, Options};
use tonic::transport::{Channel, Endpoint};

use crate::support::{Delta, ServiceFn, Sotw, node, said};

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}, {name: admin, port: 9090}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: front, namespace: shop}
spec: {hosts: [front.example], http: [{route: [{destination: {host: reviews, port: {number: 9080}}}]}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hidden, namespace: pay}
spec: {hosts: [hidden.example], exportTo: [.], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: many, namespace: shop}
spec: {hosts: ['*.example.org'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: NONE}
";

const RATINGS: &str = "
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: shop}
spec: {selector: {app: ratings}, ports: [{name: http, port: 9080}]}
";

const EVERYTHING: [(Kind, &[&str]); 4] = [
    (
        Kind::Cluster,
        &[
            "BlackHoleCluster",
            "outbound|9080|v1|reviews.shop.svc.cluster.local",
            "outbound|9080||reviews.shop.svc.cluster.local",
            "outbound|9090|v1|reviews.shop.svc.cluster.local",
            "outbound|9090||reviews.shop.svc.cluster.local",
        ],
    ),
    (
        Kind::Endpoints,
        &[
            "BlackHoleCluster",
            "outbound|9080|v1|reviews.shop.svc.cluster.local",
            "outbound|9080||reviews.shop.svc.cluster.local",
            "outbound|9090|v1|reviews.shop.svc.cluster.local",
            "outbound|9090||reviews.shop.svc.cluster.local",
        ],
    ),
    (
        Kind::Listener,
        &["front.example:80", "reviews.shop.svc.cluster.local:9080", "reviews.shop.svc.cluster.local:9090"],
    ),
    (
        Kind::Route,
        &[
            "outbound|80||front.example",
            "outbound|9080||reviews.shop.svc.cluster.local",
            "outbound|9090||reviews.shop.svc.cluster.local",
        ],
    ),
];

async fn start() -> (Embedded, Channel) {
    let mesh = Embedded::start(Config::yaml(SHOP), Options::default()).await.unwrap();
    let server = mesh.server().clone();
    let connect = ServiceFn(move || {
        let server = server.clone();
        async move { server.connect().await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://embedded").connect_with_connector(connect).await.unwrap();
    (mesh, channel)
}

fn names(said: &[String]) -> Vec<&str> {
    said.iter().map(|one| one.split('=').next().unwrap()).collect()
}

#[tokio::test]
async fn server_rule_10_a_star_is_everything_in_both_protocols_for_every_class_that_is_served() {
    for agent in ["mesh-core", "gRPC C-core", "a-tool"] {
        let (mesh, channel) = start().await;
        let mut delta = Delta::open(channel.clone(), node(agent)).await.unwrap();
        let mut sotw = Sotw::open(channel.clone(), node(agent)).await.unwrap();
        for (kind, expected) in EVERYTHING {
            delta.send(kind, &["*"], &[]).await;
            assert_eq!(names(&delta.take().await), expected, "{agent}");
            sotw.send(kind, &["*"], None, None).await;
            assert_eq!(sotw.next().await.resources.len(), expected.len(), "{agent} {kind:?}");
        }
        mesh.set_yaml("more.yaml", RATINGS).unwrap();
        let more = delta.take().await;
        assert_eq!(names(&more), ["outbound|9080||ratings.shop.svc.cluster.local"], "{agent}");
    }
}

#[tokio::test]
async fn server_rule_10_an_empty_first_request_is_everything_unless_the_client_is_one_that_never_means_it() {
    let (_mesh, channel) = start().await;
    for (agent, means_it) in [("a-tool", true), ("", true), ("gRPC Node Pure JS", false), ("mesh-core", false)] {
        for kind in [Kind::Listener, Kind::Cluster] {
            let mut delta = Delta::open(channel.clone(), node(agent)).await.unwrap();
            delta.send(kind, &[], &[]).await;
            let mut sotw = Sotw::open(channel.clone(), node(agent)).await.unwrap();
            sotw.send(kind, &[], None, None).await;
            if means_it {
                assert!(delta.take().await.len() >= 3, "{agent} {kind:?}");
                assert!(sotw.next().await.resources.len() >= 3, "{agent} {kind:?}");
            } else {
                // Answers come in the order of the questions: the first one is to the second request.
                delta.send(Kind::Route, &["outbound|9080||reviews.shop.svc.cluster.local"], &[]).await;
                assert_eq!(delta.next().await.type_url, Kind::Route.type_url());
                sotw.send(Kind::Route, &["outbound|9080||reviews.shop.svc.cluster.local"], None, None).await;
                assert_eq!(sotw.next().await.type_url, Kind::Route.type_url());
            }
        }
    }
}

#[tokio::test]
async fn server_rule_10_a_name_given_up_while_a_star_stands_is_answered_whether_or_not_the_star_covers_it() {
    let (_mesh, channel) = start().await;
    let mut client = Delta::open(channel, node("mesh-core")).await.unwrap();
    let covered = "reviews.shop.svc.cluster.local:9080";
    // A short name is another listener than the one that the wildcard has.
    let others = ["reviews:9080", "nowhere:80"];
    client.send(Kind::Listener, &["*", covered, others[0], others[1]], &[]).await;
    client.take().await;
    client.send(Kind::Listener, &[], &[covered]).await;
    assert_eq!(names(&client.take().await), [covered]);
    client.send(Kind::Listener, &[], &others).await;
    assert_eq!(client.take().await, ["!nowhere:80", "!reviews:9080"]);
}

#[tokio::test]
async fn server_rule_10_a_class_that_is_not_served_is_refused_by_name_and_shown_in_status() {
    let (mesh, channel) = start().await;
    let waypoint = || {
        let id = "waypoint~127.0.0.1~web.shop~shop.svc.cluster.local".to_owned();
        Node { id, ..node("envoy") }
    };
    for protocol in ["delta", "sotw"] {
        let status = match protocol {
            "delta" => {
                let mut client = Delta::open(channel.clone(), waypoint()).await.unwrap();
                client.send(Kind::Cluster, &["*"], &[]).await;
                client.responses.message().await.map(|answer| answer.map(|answer| said(&answer))).unwrap_err()
            }
            _ => {
                let mut client = Sotw::open(channel.clone(), waypoint()).await.unwrap();
                client.send(Kind::Cluster, &[], None, None).await;
                client.responses.message().await.map(drop).unwrap_err()
            }
        };
        assert_eq!(status.code(), tonic::Code::Unimplemented, "{status}");
        assert!(status.message().contains("sidecar~IP~NAME"), "{status}");
        assert!(status.message().contains(&waypoint().id), "{status}");
    }
    let report = serde_json::to_value(mesh.status()).unwrap();
    assert_eq!(report["clients"].as_array().unwrap().len(), 0);
    let refused = &report["turned_away"][0];
    assert_eq!((&refused["reason"], refused["count"].as_u64()), (&serde_json::json!("class"), Some(2)), "{report}");
    assert_eq!(refused["node"], waypoint().id);
    assert!(mesh.metrics().contains("mesh_xds_refused_total{reason=\"class\"} 2"));
}
