//! A rate limit service, by the rules of mesh-control's own. Each binary of tests takes its part of it.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::response::IntoResponse;
use envoy_types::pb::envoy::service::ratelimit::v3::RateLimitRequest;
use http::{HeaderMap, HeaderValue};
use mesh_control::ratelimit::{RateLimits, Store};
use prost::Message;
use tokio::net::TcpListener;

/// A server.
pub(crate) async fn serve(app: axum::Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    at
}

/// A rate limit service.
pub(crate) async fn limits(rules: &str) -> SocketAddr {
    let limits = RateLimits::new(Store::in_memory(100)).tells_headers(true);
    limits.apply_texts([("rules.yaml", rules)]);
    let limits = Arc::new(limits);
    let answer = move |path: axum::http::Uri, question: Bytes| async move {
        assert_eq!(path.path(), "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit");
        let request = RateLimitRequest::decode(&question[5..]).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        let (status, message) = match limits.decide(&request, Duration::from_secs(1_800_000_000)).await {
            Ok(answer) => ("0", answer.encode_to_vec()),
            Err(_) => ("14", Vec::new()),
        };
        headers.insert("grpc-status", HeaderValue::from_static(status));
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        (headers, [&[0], &length[..], &message].concat()).into_response()
    };
    serve(axum::Router::new().fallback(answer)).await
}
