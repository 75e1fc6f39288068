//! Browsers at the edge: gRPC-Web, and answers that are compressed.

use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::{Cors, CorsPolicy};
use envoy_types::pb::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_types::pb::google::protobuf::BoolValue;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::testing::ManagementServer;
use mesh_core::testing::resources::{
    filter_chain, http_filter, http_manager, pack, rds, route as to, routes, routes_to, virtual_host,
};

use super::gateway::{Gateway, chain, get, listener};
use super::*;

const CORS: &str = "envoy.filters.http.cors";

/// A service of gRPC that answers with the messages that it gets, and says as what they came.
async fn grpc_echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let echo = hyper::service::service_fn(|request: Request<Incoming>| async move {
        assert_eq!(request.version(), Version::HTTP_2);
        assert_eq!(request.headers()["te"], "trailers");
        let seen = request.headers()["content-type"].clone();
        let body = Full::new(request.into_body().collect().await.unwrap().to_bytes());
        let status = (HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"));
        let body = body.with_trailers(std::future::ready(Some(Ok(HeaderMap::from_iter([status])))));
        Response::builder().header("content-type", "application/grpc").header("x-seen", seen).body(body)
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), echo));
        }
    });
    address
}

/// A chain whose requests may be gRPC-Web.
fn web_chain(routes: &str) -> pb::FilterChain {
    let mut manager = http_manager(rds(routes));
    manager.use_remote_address = Some(BoolValue { value: true });
    manager.http_filters.insert(0, http_filter(CORS, pack(&Cors::default())));
    manager.http_filters.insert(0, http_filter("envoy.filters.http.grpc_web", pack(&GrpcWeb {})));
    pb::FilterChain { name: "web".to_owned(), ..filter_chain(&manager) }
}

/// Pages of one origin may call it, and read its status.
fn for_pages(route: route::Route) -> route::Route {
    let origin = StringMatcher {
        match_pattern: Some(MatchPattern::Exact("https://shop.example".to_owned())),
        ..Default::default()
    };
    let policy = CorsPolicy {
        allow_origin_string_match: vec![origin],
        allow_methods: "POST".to_owned(),
        expose_headers: "grpc-status".to_owned(),
        ..Default::default()
    };
    route::Route { typed_per_filter_config: [(CORS.to_owned(), pack(&policy))].into(), ..route }
}

fn post(path: &str, content_type: &str, more: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\norigin: https://shop.example\r\n\
         content-type: {content_type}\r\ncontent-length: {}\r\n{more}\r\n{body}",
        body.len()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_calls_a_service_of_grpc_where_the_listener_has_grpc_web_and_nowhere_else() {
    let control = ManagementServer::start();
    Gateway::put_cluster(&control, "grpc", grpc_echo().await);
    Gateway::put_cluster(&control, "plain", program(ok).await);
    let host = virtual_host("all", &["*"], vec![to("/plain", "plain"), for_pages(to("/", "grpc"))]);
    control.put("r", &routes("r", vec![host]));
    control.put("web", &listener("web", vec![web_chain("r")]));
    let mut gateway = Gateway::start(control, &[]).await;
    let web = gateway.bound().await;

    let binary = post("/a.B/C", "application/grpc-web+proto", "", "\0\0\0\0\u{3}abc");
    let answer = exchange(web, &binary).await;
    assert_eq!(status(&answer), "200", "{answer}");
    for told in [
        "content-type: application/grpc-web+proto\r\n",
        "x-seen: application/grpc\r\n",
        "access-control-allow-origin: https://shop.example\r\n",
        "access-control-expose-headers: grpc-status\r\n",
        "\0\0\0\0\u{3}abc",
        "\0\0\0\u{f}grpc-status:0\r\n",
    ] {
        assert!(answer.contains(told), "{told:?}: {answer:?}");
    }
    assert!(!answer.contains("content-length"), "{answer:?}");

    // Text, in parts that each have an end; so is the answer where it may be.
    let text = "AAAAAAM=YWJj";
    let answer =
        exchange(web, &post("/a.B/C", "application/grpc-web-text", "accept: application/grpc-web-text\r\n", text))
            .await;
    for told in ["content-type: application/grpc-web-text+proto\r\n", "AAAAAANhYmM=", "gAAAAA9ncnBjLXN0YXR1czowDQo="] {
        assert!(answer.contains(told), "{told}: {answer:?}");
    }
    let answer = exchange(web, &post("/a.B/C", "application/grpc-web-text", "accept: */*\r\n", text)).await;
    assert!(answer.contains("\0\0\0\0\u{3}abc"), "{answer:?}");

    // The question of a browser whether it may is answered as any other.
    let preflight = "OPTIONS /a.B/C HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\norigin: https://shop.example\r\n\
        access-control-request-method: POST\r\n\r\n";
    let answer = exchange(web, preflight).await;
    assert!(status(&answer) == "200" && answer.contains("access-control-allow-methods: POST\r\n"), "{answer}");

    // Where the listener says nothing of it, and where it is no gRPC-Web, requests go on as they are.
    gateway.control.put("other", &listener("other", vec![chain("other", "r")]));
    let other = gateway.bound().await;
    for (at, content_type) in [(other, "application/grpc-web+proto"), (web, "application/json")] {
        let answer = exchange(at, &post("/plain", content_type, "", "")).await;
        assert!(answer.contains(&format!("content-type: {content_type}\r\n")), "{answer}");
    }
}

/// A page of each kind: its header, and how long it is.
fn page(head: &str) -> String {
    let (fields, length) = match head.split(' ').nth(1).unwrap() {
        "/text" => ("content-type: text/html; charset=utf-8\r\netag: \"1\"\r\n", 4096),
        "/small" => ("content-type: text/html\r\n", 100),
        "/image" => ("content-type: image/png\r\n", 4096),
        "/events" => ("content-type: text/event-stream\r\n", 4096),
        "/as-it-is" => ("content-type: text/html\r\ncache-control: no-transform\r\n", 4096),
        "/encoded" => ("content-type: text/html\r\ncontent-encoding: zstd\r\n", 4096),
        other => panic!("{other}"),
    };
    format!("HTTP/1.1 200 OK\r\n{fields}content-length: {length}\r\n\r\n{}", "a".repeat(length))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_compressed_where_the_gateway_is_told_to_and_the_client_reads_it() {
    let pages = program(page).await;
    let start = async |options: &[&str]| {
        let control = ManagementServer::start();
        Gateway::put_cluster(&control, "pages", pages);
        control.put("r", &routes_to("r", "pages"));
        control.put("edge", &listener("edge", vec![chain("edge", "r")]));
        let mut gateway = Gateway::start(control, options).await;
        let edge = gateway.bound().await;
        (gateway, edge)
    };
    let (_compresses, edge) = start(&["--compress"][..]).await;
    for (accepted, coding) in [("gzip", "gzip"), ("zstd, gzip;q=0.5, br", "br")] {
        let answer = exchange(edge, &get("shop.example", "/text", &format!("accept-encoding: {accepted}\r\n"))).await;
        for told in
            [format!("content-encoding: {coding}\r\n").as_str(), "vary: accept-encoding\r\n", "etag: W/\"1\"\r\n"]
        {
            assert!(answer.contains(told), "{told:?}: {answer:?}");
        }
        assert!(answer.len() < 1024 && !answer.contains("content-length"), "{answer:?}");
        // What every text of gzip begins with.
        assert!(coding != "gzip" || answer.contains("\u{1f}\u{fffd}"), "{answer:?}");
    }
    let accepts = "accept-encoding: gzip, br\r\n";
    let (_does_not, other) = start(&[][..]).await;
    for (at, path, more) in [
        (edge, "/text", ""),
        (edge, "/text", "accept-encoding: identity;q=0\r\n"),
        (edge, "/small", accepts),
        (edge, "/image", accepts),
        (edge, "/events", accepts),
        (edge, "/as-it-is", accepts),
        (edge, "/encoded", accepts),
        (other, "/text", accepts),
    ] {
        let answer = exchange(at, &get("shop.example", path, more)).await;
        let length = if path == "/small" { 100 } else { 4096 };
        assert_eq!(status(&answer), "200", "{path}: {answer}");
        assert!(answer.ends_with(&"a".repeat(length)) && !answer.contains("gzip"), "{path} {more}: {answer}");
    }
}
