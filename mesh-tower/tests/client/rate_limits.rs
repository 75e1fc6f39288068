//! Local rate limits of a client: who is over never goes out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderMap, Request, StatusCode};
use mesh_core::fixed::{Fixed, route_to};
use mesh_core::model::{
    Cluster, ClusterKind, DescriptorAction, Endpoints, FilterConfig, Fraction, LocalRateLimit, LocalRule, NamedFilter,
    RateLimit, RestHeaders, TokenBucket,
};
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use tokio::net::TcpListener;

fn an_hour(tokens: u32) -> TokenBucket {
    TokenBucket::new(tokens, tokens, Duration::from_secs(3600)).unwrap()
}

/// A client of a server that counts what reaches it.
async fn client(limit: LocalRateLimit) -> (Mesh, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let arrived = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&arrived);
    let answer = move || async move {
        counted.fetch_add(1, Ordering::Relaxed);
        "here"
    };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    let filter = NamedFilter::new("limit", FilterConfig::LocalRateLimit(Arc::new(limit)));
    let source = Fixed::new()
        .routes("web.shop:80", vec![route_to("web.shop")])
        .cluster(Cluster::new("web.shop", ClusterKind::Static(Endpoints::fixed([at]))))
        .filters("web.shop:80", vec![filter]);
    (Mesh::builder().source(source).start().unwrap(), arrived)
}

async fn ask(mesh: &Mesh, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap) {
    let mut request = Request::get("http://web.shop/");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (head, _) = mesh.client().request(request.body(Body::empty()).unwrap()).await.unwrap().into_parts();
    (head.status, head.headers)
}

#[tokio::test]
async fn who_is_over_is_answered_here_with_when_to_come_back_and_what_is_left() {
    let mut limit = LocalRateLimit::new("calls", Some(an_hour(2)));
    (limit.tells_when, limit.tells) = (true, RestHeaders::XRateLimit);
    let (mesh, arrived) = client(limit).await;
    let (status, headers) = ask(&mesh, &[]).await;
    assert_eq!((status, &headers["x-ratelimit-remaining"]), (StatusCode::OK, &"1".parse().unwrap()));
    assert_eq!(headers["x-ratelimit-limit"], "2, 2;w=3600");
    assert_eq!(ask(&mesh, &[]).await.0, StatusCode::OK);
    let (status, headers) = ask(&mesh, &[]).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        (&headers["x-envoy-ratelimited"], &headers["x-ratelimit-remaining"]),
        (&"true".parse().unwrap(), &"0".parse().unwrap())
    );
    let again: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1700..=1800).contains(&again), "{again}");
    assert_eq!(arrived.load(Ordering::Relaxed), 2);
    let text = mesh.prometheus();
    for line in ["verdict=\"within\"} 2", "verdict=\"over\"} 1"] {
        let is_there = text
            .lines()
            .any(|found| found.starts_with("mesh_ratelimit_requests_total{limit=\"calls\"") && found.ends_with(line));
        assert!(is_there, "{line} in {text}");
    }
}

#[tokio::test]
async fn grpc_is_told_in_its_own_tongue() {
    for (is_exhaustion, code) in [(false, "14"), (true, "8")] {
        let mut limit = LocalRateLimit::new("calls", Some(an_hour(1)));
        limit.is_exhaustion = is_exhaustion;
        let (mesh, _) = client(limit).await;
        let grpc = [("content-type", "application/grpc")];
        ask(&mesh, &grpc).await;
        let (status, headers) = ask(&mesh, &grpc).await;
        assert_eq!((status, &headers["grpc-status"]), (StatusCode::OK, &code.parse().unwrap()));
    }
}

#[tokio::test]
async fn each_value_of_a_header_has_a_limit_of_its_own_and_what_is_not_enforced_only_counts() {
    let user = DescriptorAction::Header { key: "user".into(), name: "x-user".into(), skip_if_absent: false };
    let mut limit = LocalRateLimit::new("users", None);
    limit.rate_limits = vec![Arc::new(RateLimit::by(vec![user]))];
    limit.rules = vec![LocalRule::new("each", vec![("user".into(), "".into())], an_hour(1))];
    let (mesh, arrived) = client(limit.clone()).await;
    for (user, expected) in [("a", 200), ("a", 429), ("b", 200), ("b", 429)] {
        assert_eq!(ask(&mesh, &[("x-user", user)]).await.0, expected, "{user}");
    }
    assert_eq!(ask(&mesh, &[]).await.0, 200, "without the header there is no descriptor");
    assert_eq!(arrived.load(Ordering::Relaxed), 3);
    limit.enforced = Fraction::default();
    let (mesh, arrived) = client(limit).await;
    for _ in 0..3 {
        assert_eq!(ask(&mesh, &[("x-user", "a")]).await.0, 200);
    }
    assert_eq!(arrived.load(Ordering::Relaxed), 3);
}
