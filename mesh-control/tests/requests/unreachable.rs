//! Endpoints that nobody can reach and that the control plane still lists: who is slowed down by them, and for how long.

use std::net::SocketAddr;
use std::time::Instant;

use http::Request;
use mesh_core::fixed::{Fixed, route_to};
use mesh_core::id::{EndpointId, Locality};
use mesh_core::model::{Cluster, ClusterKind, Endpoint, Endpoints, LocalityEndpoints};
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use tower_service::Service;

use crate::breakers::{ask_through_layer, called_by};
use crate::support::World;
use crate::upstream::{PATIENCE, Upstream, until};

fn get() -> Request<Body> {
    Request::get("http://web.example.com/").body(Body::empty()).unwrap()
}

fn call() -> Request<Body> {
    let call = Request::post("http://web.example.com/a.B/C").header("content-type", "application/grpc");
    call.version(http::Version::HTTP_2).body(Body::empty()).unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Face {
    Client,
    Grpc,
    Layer,
    Connector,
}

impl Face {
    /// One request, or one connection.
    async fn ask(self, world: &World) {
        match self {
            Face::Client => assert_eq!(world.ask(get()).await.unwrap().status, 200),
            Face::Grpc => assert_eq!(world.ask(call()).await.unwrap().status, 200),
            Face::Layer => assert_eq!(ask_through_layer(world, get()).await.unwrap(), 200),
            Face::Connector => {
                drop(world.mesh.connector().call("http://web.example.com/".parse().unwrap()).await.unwrap())
            }
        }
    }
}

#[tokio::test]
async fn one_that_refuses_is_tried_once_and_gets_no_requests_until_it_is_back() {
    for face in [Face::Client, Face::Grpc, Face::Layer, Face::Connector] {
        let (dead, live) = (Upstream::new().await, Upstream::new().await);
        let world = World::new(&called_by("{loadBalancer: {simple: ROUND_ROBIN}}", &[&dead, &live])).await;
        for _ in 0..4 {
            face.ask(&world).await;
        }
        let at = dead.at;
        dead.kill().await;
        let killed = Instant::now();
        while world.uses(at) {
            assert!(killed.elapsed() < PATIENCE, "{face:?}: it is still used");
            face.ask(&world).await;
        }
        for _ in 0..50 {
            face.ask(&world).await;
            if !matches!(face, Face::Connector) {
                assert_eq!(world.attempts(), 1, "{face:?}: no request goes there");
            }
        }
        let back = Upstream::bind(at).await;
        until("it is found again", || world.uses(at)).await;
        let before = back.connections.all();
        let started = Instant::now();
        while back.requests.all() == 0 && !(matches!(face, Face::Connector) && back.connections.all() > before) {
            assert!(started.elapsed() < PATIENCE, "{face:?}: it gets nothing");
            face.ask(&world).await;
        }
    }
}

#[tokio::test]
async fn where_nobody_can_be_reached_everybody_is_tried_and_the_first_that_is_back_serves_at_once() {
    let (one, two) = (Upstream::new().await, Upstream::new().await);
    let world = World::new(&called_by("{}", &[&one, &two])).await;
    Face::Client.ask(&world).await;
    let at = one.at;
    one.kill().await;
    two.kill().await;
    for _ in 0..20 {
        let error = world.ask(get()).await.unwrap_err();
        assert_eq!(error.kind(), mesh_core::error::ErrorKind::ConnectFailure, "{error}");
    }
    let _back = Upstream::bind(at).await;
    let started = Instant::now();
    while world.ask(get()).await.is_err() {
        assert!(started.elapsed() < PATIENCE);
    }
}

/// One cluster of two priorities, and an aggregate of two clusters.
fn sources(first: [SocketAddr; 2], second: SocketAddr) -> [Fixed; 2] {
    let locality = |priority, addresses: &[SocketAddr]| {
        let endpoints = addresses.iter().map(|at| Endpoint::new(EndpointId::new(*at))).collect();
        let mut locality = LocalityEndpoints::new(Locality::default(), endpoints);
        locality.priority = priority;
        locality
    };
    let both = Endpoints::new(vec![locality(0, &first), locality(1, &[second])]);
    let fixed = |addresses: &[SocketAddr]| ClusterKind::Static(Endpoints::new(vec![locality(0, addresses)]));
    let routed = || Fixed::new().routes("web.example.com:80", vec![route_to("c")]);
    let aggregate = Cluster::new("c", ClusterKind::Aggregate(vec!["a".into(), "b".into()]));
    [
        routed().cluster(Cluster::new("c", ClusterKind::Static(both))),
        routed()
            .cluster(aggregate)
            .cluster(Cluster::new("a", fixed(&first)))
            .cluster(Cluster::new("b", fixed(&[second]))),
    ]
}

#[tokio::test]
async fn a_priority_that_cannot_be_reached_gives_way_to_the_next_and_takes_over_when_it_is_back() {
    for kind in 0..2 {
        let (one, two, other) = (Upstream::new().await, Upstream::new().await, Upstream::new().await);
        let source = sources([one.at, two.at], other.at).into_iter().nth(kind).unwrap();
        let mesh = Mesh::builder().source(source).start().unwrap();
        let ask = async || mesh.client().request(get()).await.map(|answer| answer.status());
        for _ in 0..10 {
            ask().await.unwrap();
        }
        assert_eq!(other.requests.all(), 0);
        let first = [one.at, two.at];
        one.kill().await;
        two.kill().await;
        // Those that find out may fail: both their tries may be there.
        let started = Instant::now();
        let mut in_a_row = 0;
        while in_a_row < 50 {
            assert!(started.elapsed() < PATIENCE, "requests still fail");
            in_a_row = if ask().await.is_ok() { in_a_row + 1 } else { 0 };
        }
        assert!(other.requests.all() >= 50);
        let back = [Upstream::bind(first[0]).await, Upstream::bind(first[1]).await];
        let started = Instant::now();
        let mut elsewhere = 0;
        while elsewhere < 20 {
            assert!(started.elapsed() < PATIENCE, "it never takes over");
            let before = other.requests.all();
            ask().await.unwrap();
            elsewhere = if other.requests.all() == before { elsewhere + 1 } else { 0 };
        }
        assert!(back.iter().any(|upstream| upstream.requests.all() > 0));
    }
}
