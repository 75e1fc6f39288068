//! The server layer: a request finds its route, passes the filters, and goes on to the application or is answered.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::server_support::{Log, Player, absent, app_route, chain, listener, mesh, within};
use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Full};
use mesh_core::error::{ErrorKind, Invalid};
use mesh_core::fixed::{Fixed, route_to};
use mesh_core::model::{
    DescriptorAction, Fault, FaultAbort, FaultDelay, FilterConfig, Fraction, GlobalRateLimit, HeaderChange,
    NamedFilter, PathTest, RateLimit, Route, RouteAction, ServerTls,
};
use mesh_core::request_info::{Observer, RequestInfo};
use mesh_core::state::FilterState;
use mesh_tower::Mesh;
use mesh_tower::server::{ConnectionInfo, MeshListener, ServerBody, ServerLayer};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;

type Body = Full<Bytes>;

/// Says what it saw.
async fn app(request: Request<Empty<Bytes>>) -> Result<Response<Body>, std::convert::Infallible> {
    let seen = format!("{} {:?}", request.uri(), request.headers().get("x-added"));
    Ok(Response::new(Body::from(seen)))
}

async fn send(layer: &ServerLayer, request: http::request::Builder) -> Response<ServerBody<Body>> {
    let service = layer.layer(service_fn(app));
    within(service.oneshot(request.body(Empty::new()).unwrap())).await.unwrap()
}

async fn text(response: Response<ServerBody<Body>>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn get(path: &str) -> http::request::Builder {
    Request::get(path).header("host", "h")
}

fn grpc(path: &str) -> http::request::Builder {
    Request::post(path).version(Version::HTTP_2).header("host", "h").header("content-type", "application/grpc")
}

fn at(path: &str, mut route: Route) -> Route {
    route.matches.path = PathTest::Exact { value: path.into(), ignore_case: false };
    route
}

async fn served(routes: Vec<Route>, filters: Vec<NamedFilter>) -> (Player, Mesh, MeshListener) {
    let (player, mesh) = mesh();
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    player.send(listener(bound.local_addr(), vec![chain(routes, filters)]));
    mesh.serving().await.unwrap();
    (player, mesh, bound)
}

fn fault(delay: Option<u64>, status: Option<u16>) -> NamedFilter {
    let mut fault = Fault::default();
    fault.delay = delay.map(|millis| FaultDelay::new(Duration::from_millis(millis), Fraction::ALL));
    fault.abort = status.map(|status| FaultAbort::http(status, Fraction::ALL));
    NamedFilter::new("fault", FilterConfig::Fault(Arc::new(fault)))
}

#[tokio::test]
async fn a_route_of_the_application_leads_to_it_and_any_other_is_answered() {
    let mut forward = at("/forward", route_to("elsewhere"));
    forward.name = "f".into();
    let mut unusable = at("/unusable", app_route());
    unusable.name = "u".into();
    unusable.action = RouteAction::Unusable("asks for what is not built".into());
    let routes = vec![at("/app", app_route()), forward, unusable];
    let (_player, mesh, _bound) = served(routes, vec![]).await;
    let layer = mesh.server_layer();
    // (path, HTTP status, gRPC code, what the answer says)
    let cases = [
        ("/app", 200, None, "/app None"),
        ("/forward", 404, Some("14"), "route f: a server's route must have a non-forwarding action"),
        ("/unusable", 404, Some("14"), "route u: asks for what is not built"),
        ("/none", 404, Some("14"), "route configuration inline: no route for GET h/none"),
    ];
    for (path, status, code, says) in cases {
        let response = send(&layer, get(path)).await;
        assert_eq!(response.status(), status, "{path}");
        assert_eq!(text(response).await, says);
        let response = send(&layer, grpc(path)).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(response.headers().get("grpc-status").map(|code| code.to_str().unwrap()), code, "{path}");
        if code.is_some() {
            assert_eq!(response.headers()["grpc-message"].to_str().unwrap(), says.replace("GET", "POST"));
            assert!(http_body::Body::is_end_stream(response.body()), "trailers only");
        }
    }
}

#[tokio::test]
async fn a_malformed_request_is_a_bad_one() {
    let (_player, mesh, _bound) = served(vec![app_route()], vec![]).await;
    for request in [Request::get("/"), get("/").header("host", "other"), Request::get("/").header("host", "")] {
        assert_eq!(send(&mesh.server_layer(), request).await.status(), 400);
    }
}

#[tokio::test]
async fn headers_are_changed_on_the_way_in_and_on_the_way_out() {
    let set = |value| HeaderChange::Set("x-added".parse().unwrap(), http::HeaderValue::from_static(value).into());
    let mut route = app_route();
    route.mutations.request.push(set("in"));
    route.mutations.response.push(set("out"));
    let (_player, mesh, _bound) = served(vec![route], vec![]).await;
    let response = send(&mesh.server_layer(), get("/")).await;
    assert_eq!(response.headers()["x-added"], "out");
    assert_eq!(text(response).await, "/ Some(\"in\")");
}

#[tokio::test]
async fn a_filter_may_hold_a_request_back_answer_it_or_both() {
    for (delay, status) in [(None, None), (None, Some(555)), (Some(50), None), (Some(50), Some(555))] {
        let (_player, mesh, _bound) = served(vec![app_route()], vec![fault(delay, status)]).await;
        let began = std::time::Instant::now();
        let response = send(&mesh.server_layer(), get("/")).await;
        assert_eq!(response.status(), status.unwrap_or(200));
        assert!(began.elapsed() >= Duration::from_millis(delay.unwrap_or(0)));
        let response = send(&mesh.server_layer(), grpc("/")).await;
        assert_eq!(response.headers().get("grpc-status").is_some(), status.is_some());
    }
}

#[tokio::test]
async fn a_rate_limit_service_without_an_answer_holds_no_request_up_and_its_failure_mode_decides() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_max_level(tracing::Level::WARN);
    let _default = tracing::subscriber::set_default(subscriber.finish());
    for (fails_closed, status, verdict) in [(false, 200, "within"), (true, 500, "over")] {
        let mut limit = GlobalRateLimit::new("shop", "limits.mesh:8081");
        limit.fails_closed = fails_closed;
        let constant = DescriptorAction::Constant { key: "key".into(), value: "value".into() };
        limit.rate_limits = vec![Arc::new(RateLimit::by(vec![constant]))];
        let filter = NamedFilter::new("limit", FilterConfig::RateLimit(Arc::new(limit)));
        let (_player, mesh, _bound) = served(vec![app_route()], vec![filter]).await;
        assert_eq!(send(&mesh.server_layer(), get("/")).await.status(), status);
        let (line, text) = (format!("rule=\"no answer\",verdict=\"{verdict}\"}} 1"), mesh.prometheus());
        assert!(text.contains(&line), "{line} in {text}");
        for _ in 0..20 {
            assert_eq!(send(&mesh.server_layer(), get("/")).await.status(), status);
        }
    }
    // Of those that are refused, the log has one now and then.
    let told = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!((1..=2).contains(&told.matches("the request is refused").count()), "{told}");
}

#[tokio::test]
async fn a_filter_of_the_applications_own_is_configured_by_name() {
    #[derive(Debug)]
    struct Teapot(String);
    impl mesh_core::filter::Filter for Teapot {
        fn on_request(&self, _: &mut RequestInfo, _: &mut http::request::Parts) -> mesh_core::filter::Decision {
            mesh_core::filter::Decision::Reply(mesh_core::filter::Reply::new(StatusCode::IM_A_TEAPOT, self.0.clone()))
        }
    }
    let (player, source) = crate::server_support::played();
    let factory = Arc::new(|json: &str, _: &FilterState<'_>| -> Result<Arc<dyn mesh_core::filter::Filter>, Invalid> {
        Ok(Arc::new(Teapot(json.to_owned())))
    });
    let mesh = Mesh::builder().source(source).filter("teapot", factory).start().unwrap();
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let filter = NamedFilter::new("f", FilterConfig::Custom("teapot".into(), "{}".into()));
    player.send(listener(bound.local_addr(), vec![chain(vec![app_route()], vec![filter])]));
    mesh.serving().await.unwrap();
    let response = send(&mesh.server_layer(), get("/")).await;
    assert_eq!((response.status().as_u16(), text(response).await.as_str()), (418, "{}"));
}

#[tokio::test]
async fn a_change_bites_on_the_next_request_and_its_withdrawal_too() {
    let (player, mesh, bound) = served(vec![app_route()], vec![]).await;
    let layer = mesh.server_layer();
    let becomes = async |status: u16| {
        within(async {
            while send(&layer, get("/")).await.status() != status {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    };
    becomes(200).await;
    player.send(listener(bound.local_addr(), vec![chain(vec![], vec![])]));
    becomes(404).await;
    player.send(absent(bound.local_addr(), "withdrawn"));
    becomes(503).await;
    assert_eq!(text(send(&layer, get("/")).await).await, "withdrawn");
    let mut secured = chain(vec![app_route()], vec![]);
    secured.tls = ServerTls::Unusable("TLS is not built".into());
    player.send(listener(bound.local_addr(), vec![secured]));
    within(mesh.serving()).await.unwrap();
    let refused = send(&layer, get("/")).await;
    assert_eq!(refused.status(), 503);
    assert!(text(refused).await.ends_with("TLS is not built"));
    player.send(crate::server_support::serve_all(bound.local_addr()));
    becomes(200).await;
}

#[tokio::test]
async fn with_several_listeners_a_request_is_routed_by_the_one_it_came_to() {
    let (player, mesh, first) = served(vec![app_route()], vec![]).await;
    let second = mesh.bind("127.0.0.1:0").await.unwrap();
    player.send(listener(second.local_addr(), vec![chain(vec![], vec![])]));
    mesh.serving().await.unwrap();
    let unknown = send(&mesh.server_layer(), get("/")).await;
    assert_eq!(unknown.status(), 503);
    let text = text(unknown).await;
    assert!(text.contains("the connection is not known") && text.contains("ServerLayer::connection_by"), "{text}");
    for (bound, status) in [(&first, 200), (&second, 404)] {
        assert_eq!(send(&bound.layer(), get("/")).await.status(), status);
        let connection = Arc::new(ConnectionInfo::new(bound.local_addr(), "127.0.0.1:9".parse().unwrap()));
        assert_eq!(send(&mesh.server_layer(), get("/").extension(Arc::clone(&connection))).await.status(), status);
        let by = mesh
            .server_layer()
            .connection_by(|extensions| extensions.get::<(Arc<ConnectionInfo>,)>().map(|it| Arc::clone(&it.0)));
        assert_eq!(send(&by, get("/").extension((connection,))).await.status(), status);
    }
}

#[tokio::test]
async fn a_request_is_in_flight_to_the_end_of_its_body_and_told_to_close_while_the_mesh_drains() {
    let (_player, mesh, _bound) = served(vec![app_route()], vec![]).await;
    let layer = mesh.server_layer();
    let response = send(&layer, get("/")).await;
    assert_eq!(response.headers().get("connection"), None);
    assert_eq!(mesh.drain().in_flight(), 1);
    drop(response);
    assert_eq!(mesh.drain().in_flight(), 0);
    let drain = mesh.drain().clone();
    tokio::spawn(async move { drain.begin().await });
    within(mesh.drain().reached(mesh_tower::drain::Phase::LameDuck)).await;
    assert_eq!(send(&layer, get("/")).await.headers()["connection"], "close");
    assert_eq!(send(&layer, get("/none")).await.headers()["connection"], "close");
    assert_eq!(send(&layer, grpc("/")).await.headers().get("connection"), None, "not in HTTP/2");
}

#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Observer for Seen {
    fn on_end(&self, request: &RequestInfo) {
        let status = request.status().map(|status| status.as_u16());
        let route = request.route().unwrap_or_default();
        let line = format!("{} {route:?} {status:?} {:?}", request.authority(), request.error());
        self.0.lock().unwrap().push(line);
    }
}

#[tokio::test]
async fn observers_are_told_once_of_every_request_that_ended_however_it_did() {
    let seen = Seen::default();
    let mesh = Mesh::builder().source(Fixed::new()).observer(seen.clone()).start().unwrap();
    let _bound = mesh.bind("127.0.0.1:0").await.unwrap();
    mesh.serving().await.unwrap();
    let layer = mesh.server_layer();
    send(&layer, get("/")).await;
    send(&layer, Request::get("/")).await;
    let never = service_fn(|_: Request<Empty<Bytes>>| std::future::pending::<Result<Response<Body>, std::io::Error>>());
    let gone = layer.layer(never).oneshot(get("/").body(Empty::new()).unwrap());
    assert!(tokio::time::timeout(Duration::from_millis(10), gone).await.is_err());
    assert_eq!(
        *seen.0.lock().unwrap(),
        [
            "h \"default\" Some(200) None".to_owned(),
            format!(" \"\" Some(400) Some({:?})", ErrorKind::BadRequest),
            "h \"default\" None None".to_owned(),
        ]
    );
}
