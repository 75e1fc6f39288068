//! Sessions that stay at their endpoint, and clients that call some endpoints only: by which server answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::fixed::{Fixed, route_to};
use mesh_core::id::{EndpointId, Locality};
use mesh_core::model::{
    BalancerPolicy, Cluster, ClusterKind, Endpoint, Endpoints, FilterConfig, Health, HealthCheck, LocalityEndpoints,
    NamedFilter, Probe, SessionCarrier, StatefulSession, TcpProbe,
};
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use tokio::net::TcpListener;

/// A server that answers with its address.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let app = axum::Router::new().fallback(move || async move { at.to_string() });
    tokio::spawn(async move { axum::serve(listener, app).await });
    at
}

fn cluster(endpoints: &[(SocketAddr, Health)]) -> Cluster {
    let endpoints = endpoints.iter().map(|(at, health)| {
        let mut endpoint = Endpoint::new(EndpointId::new(*at));
        endpoint.health = *health;
        endpoint
    });
    let locality = LocalityEndpoints::new(Locality::default(), endpoints.collect());
    let mut cluster = Cluster::new("web.shop", ClusterKind::Static(Endpoints::new(vec![locality])));
    cluster.balancer = BalancerPolicy::RoundRobin;
    cluster.priorities.panic_percent = 0;
    cluster
}

fn mesh(cluster: Cluster, session: Option<StatefulSession>) -> Mesh {
    let filters = session.map(|session| NamedFilter::new("session", FilterConfig::StatefulSession(Arc::new(session))));
    let source = Fixed::new().routes("web.shop:80", vec![route_to("web.shop")]).cluster(cluster);
    Mesh::builder().source(source.filters("web.shop:80", filters.into_iter().collect())).start().unwrap()
}

/// Who answered, and with which headers.
async fn ask(mesh: &Mesh, path: &str, headers: &[(&str, &str)]) -> Result<(SocketAddr, HeaderMap), MeshError> {
    let mut request = Request::get(format!("http://web.shop{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (head, body) = mesh.client().request(request.body(Body::empty()).unwrap()).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok((std::str::from_utf8(&body).unwrap().parse().unwrap(), head.headers))
}

fn by_cookie() -> StatefulSession {
    let (name, path, ttl) = ("at".into(), "/shop".into(), None);
    StatefulSession::by(SessionCarrier::Cookie { name, path, ttl, attributes: Vec::new() })
}

#[tokio::test]
async fn a_cookie_brings_requests_back_to_the_server_that_gave_it() {
    let servers = [server().await, server().await, server().await];
    let mesh = mesh(cluster(&servers.map(|at| (at, Health::Healthy))), Some(by_cookie()));
    let (first, headers) = ask(&mesh, "/shop", &[]).await.unwrap();
    let given = headers[SET_COOKIE].to_str().unwrap();
    assert!(given.starts_with("at=\"") && given.ends_with("; Path=/shop; HttpOnly"), "{given}");
    let cookie = format!("other=1; {}", given.split(';').next().unwrap());
    for _ in 0..6 {
        let (again, headers) = ask(&mesh, "/shop/cart", &[(COOKIE.as_str(), &cookie)]).await.unwrap();
        assert_eq!((again, headers.contains_key(SET_COOKIE)), (first, false));
    }
    // Outside of its path there is no session.
    let mut others = Vec::new();
    for _ in 0..6 {
        let (at, headers) = ask(&mesh, "/", &[(COOKIE.as_str(), &cookie)]).await.unwrap();
        assert!(!headers.contains_key(SET_COOKIE));
        others.push(at);
    }
    others.sort_unstable();
    others.dedup();
    assert_eq!(others.len(), 3);
}

#[tokio::test]
async fn what_an_endpoint_without_checks_says_of_its_health_keeps_no_session_away() {
    let mut servers = Vec::new();
    for _ in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let answer = move || async move { ([("x-envoy-immediate-health-check-fail", "1")], at.to_string()) };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        servers.push(at);
    }
    let endpoints = servers.iter().map(|at| {
        let mut endpoint = Endpoint::new(EndpointId::new(*at));
        endpoint.is_checked = false;
        endpoint
    });
    let locality = LocalityEndpoints::new(Locality::default(), endpoints.collect());
    let mut cluster = Cluster::new("web.shop", ClusterKind::Static(Endpoints::new(vec![locality])));
    cluster.balancer = BalancerPolicy::RoundRobin;
    let check = HealthCheck::new(Probe::Tcp(TcpProbe::default()), Duration::from_secs(3600));
    cluster.health_check = Some(Arc::new(check));
    let mesh = mesh(cluster, Some(by_cookie()));
    let (first, headers) = ask(&mesh, "/shop", &[]).await.unwrap();
    let cookie = headers[SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
    for _ in 0..6 {
        assert_eq!(ask(&mesh, "/shop", &[(COOKIE.as_str(), &cookie)]).await.unwrap().0, first);
    }
}

#[tokio::test]
async fn a_draining_server_keeps_its_sessions_where_the_cluster_says_so_and_others_move_on_or_fail() {
    let (draining, other) = (server().await, server().await);
    let endpoints = [(draining, Health::Draining), (other, Health::Healthy)];
    let carrier = SessionCarrier::Header("x-at".parse().unwrap());
    let value = |at: SocketAddr| {
        use base64::Engine as _;
        base64::prelude::BASE64_STANDARD.encode(at.to_string())
    };
    for (keeps, is_strict) in [(true, false), (false, false), (false, true)] {
        let mut cluster = cluster(&endpoints);
        if keeps {
            cluster.session_health.push(Health::Draining);
        }
        let mut session = StatefulSession::by(carrier.clone());
        session.is_strict = is_strict;
        let mesh = mesh(cluster, Some(session));
        let (fresh, headers) = ask(&mesh, "/", &[]).await.unwrap();
        assert_eq!((fresh, headers["x-at"].to_str().unwrap()), (other, &*value(other)), "nobody new goes there");
        match ask(&mesh, "/", &[("x-at", &value(draining))]).await {
            Ok((at, headers)) => {
                let expected = if keeps { draining } else { other };
                assert_eq!((at, headers["x-at"].to_str().unwrap()), (expected, &*value(expected)));
                assert!(!is_strict);
            }
            Err(error) => {
                assert!(is_strict && error.kind() == ErrorKind::NoHealthyEndpoint, "{error}");
                assert!(error.to_string().contains("the session's endpoint"), "{error}");
            }
        }
        // What is no address is no session, however strict it is.
        assert!(ask(&mesh, "/", &[("x-at", "nobody")]).await.is_ok());
    }
}

#[tokio::test]
async fn a_client_of_a_subset_calls_so_many_servers_and_clients_differ() {
    let mut servers = Vec::new();
    for _ in 0..8 {
        servers.push(server().await);
    }
    let endpoints: Vec<_> = servers.iter().map(|at| (*at, Health::Healthy)).collect();
    let mut all = Vec::new();
    for _ in 0..12 {
        let mut cluster = cluster(&endpoints);
        cluster.balancer = BalancerPolicy::RandomSubset { size: 2, child: Box::new(BalancerPolicy::RoundRobin) };
        let mesh = mesh(cluster, None);
        let mut called = Vec::new();
        for _ in 0..8 {
            called.push(ask(&mesh, "/", &[]).await.unwrap().0);
        }
        called.sort_unstable();
        called.dedup();
        assert_eq!(called.len(), 2);
        all.push(called);
    }
    all.sort_unstable();
    all.dedup();
    assert!(all.len() > 1, "each client has its own");
}
