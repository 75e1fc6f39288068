//! Global rate limits of a client: a service is asked about each request, by the rules of mesh-control's own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use mesh_core::fixed::{Fixed, route_to};
use mesh_core::model::{
    Cluster, ClusterKind, ClusterProtocol, DescriptorAction, Endpoints, FilterConfig, GlobalRateLimit, HeaderChange,
    HeaderText, NamedFilter, RateLimit, RestHeaders,
};
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use tokio::net::TcpListener;

use crate::limits_support::{limits, serve};

const RULES: &str = "
domain: shop
descriptors:
- key: user
  rate_limit: {unit: year, requests_per_unit: 2}
";

/// A client of a server that counts what reaches it, with a limit that a service at an address is asked about.
async fn client(service: SocketAddr, change: impl FnOnce(&mut GlobalRateLimit)) -> (Mesh, Arc<AtomicUsize>) {
    let arrived = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&arrived);
    let answer = move || async move {
        counted.fetch_add(1, Ordering::Relaxed);
        "here"
    };
    let server = serve(axum::Router::new().fallback(answer)).await;
    let mut limit = GlobalRateLimit::new("shop", "limits.mesh:8081");
    limit.timeout = Duration::from_secs(30);
    let user = DescriptorAction::Header { key: "user".into(), name: "x-user".into(), skip_if_absent: false };
    limit.rate_limits = vec![Arc::new(RateLimit::by(vec![user]))];
    change(&mut limit);
    let mut services = Cluster::new("limits", ClusterKind::Static(Endpoints::fixed([service])));
    services.protocol = ClusterProtocol::Http2;
    let source = Fixed::new()
        .routes("web.shop:80", vec![route_to("web.shop")])
        .cluster(Cluster::new("web.shop", ClusterKind::Static(Endpoints::fixed([server]))))
        .filters("web.shop:80", vec![NamedFilter::new("limit", FilterConfig::RateLimit(Arc::new(limit)))])
        .routes("limits.mesh:8081", vec![route_to("limits")])
        .cluster(services);
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
async fn the_service_decides_and_answers_tell_what_it_said() {
    let (mesh, arrived) = client(limits(RULES).await, |limit| {
        (limit.tells, limit.tells_when) = (RestHeaders::XRateLimit, true);
        let name = HeaderName::from_static("x-why");
        limit.response_changes = vec![HeaderChange::Set(name, HeaderText::Fixed(HeaderValue::from_static("limit")))];
    })
    .await;
    for (user, status, left) in [("eve", 200, "1"), ("eve", 200, "0"), ("ada", 200, "1"), ("eve", 429, "0")] {
        let (said, headers) = ask(&mesh, &[("x-user", user)]).await;
        assert_eq!((said.as_u16(), headers["x-ratelimit-remaining"].to_str().unwrap()), (status, left), "{user}");
        assert_eq!(headers["x-ratelimit-limit"], "2, 2;w=31536000");
        assert_eq!(headers["ratelimit-limit"], "2", "what the service has the answer told");
        let refused = ["x-envoy-ratelimited", "retry-after", "x-why"].map(|name| headers.contains_key(name));
        assert_eq!(refused, [status == 429; 3], "{headers:?}");
    }
    assert_eq!(ask(&mesh, &[]).await.0, 200, "what is counted by nothing is not asked about");
    assert_eq!(arrived.load(Ordering::Relaxed), 4);
    let text = mesh.prometheus();
    for line in [r#"rule="service",verdict="within"} 3"#, r#"rule="service",verdict="over"} 1"#] {
        assert!(text.lines().any(|found| found.contains(line)), "{line} in {text}");
    }
}

#[tokio::test]
async fn grpc_is_told_in_its_own_tongue_and_nobody_that_it_was_a_limit_where_that_is_said() {
    for (is_exhaustion, code) in [(false, "14"), (true, "8")] {
        let change = |limit: &mut GlobalRateLimit| (limit.is_exhaustion, limit.tells_why) = (is_exhaustion, false);
        let (mesh, _) = client(limits(&RULES.replace(": 2}", ": 0}")).await, change).await;
        let (status, headers) = ask(&mesh, &[("x-user", "eve"), ("content-type", "application/grpc")]).await;
        assert_eq!((status, &headers["grpc-status"]), (StatusCode::OK, &code.parse().unwrap()));
        assert!(!headers.contains_key("x-envoy-ratelimited"));
    }
}

#[tokio::test]
async fn without_an_answer_the_failure_mode_decides_and_no_request_waits_longer_than_that_may_take() {
    // One that takes connections and says nothing, one that refuses them, and one without rules.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let confused = limits("domain: shop\ndescriptors: [{key: a, rate_limit: {}}]\n").await;
    for (service, name) in [(silent.local_addr().unwrap(), "silent"), (gone, "gone"), (confused, "confused")] {
        for fails_closed in [false, true] {
            let change = |limit: &mut GlobalRateLimit| {
                (limit.fails_closed, limit.timeout) = (fails_closed, Duration::from_millis(50));
            };
            let (mesh, arrived) = client(service, change).await;
            let status = if fails_closed { 500 } else { 200 };
            assert_eq!(ask(&mesh, &[("x-user", "eve")]).await.0, status, "{name}");
            assert_eq!(arrived.load(Ordering::Relaxed), usize::from(!fails_closed), "{name}");
            let verdict = if fails_closed { "over" } else { "within" };
            let line = format!("rule=\"no answer\",verdict=\"{verdict}\"}} 1");
            let text = mesh.prometheus();
            assert!(text.lines().any(|found| found.contains(&line)), "{line} in {text}");
        }
    }
}
