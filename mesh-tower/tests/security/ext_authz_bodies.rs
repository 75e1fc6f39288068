//! Bodies that authorizers are shown (`includeRequestBodyInCheck`): what they see, what the application gets, and what is
//! refused. Over sockets with an authorizer that speaks HTTP, and with one in the same process whose configuration the test plays.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::server_support::{Log, app_route, chain, listener, within};
use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::model::{CheckProtocol, CheckedBody, ExtAuthz, FilterConfig, NamedFilter};
use mesh_core::xds::Bootstrap;
use mesh_tower::Mesh;
use mesh_tower::server::{Allow, AuthorizationRequest, ConnectionInfo, Decision, RequestBody, ServerBody, ServerLayer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt;
use tower::util::BoxCloneService;
use tower_layer::Layer;

/// What an authorizer was asked: by which method, whether it saw a part, and the body.
type Seen = Arc<Mutex<Vec<(String, String, Bytes)>>>;

/// An authorizer that lets in what is not bad.
async fn authorizer() -> (u16, Seen) {
    let seen: Seen = Arc::default();
    let all = Arc::clone(&seen);
    let app = axum::Router::new().fallback(move |request: Request| async move {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let is_partial = head.headers["x-envoy-auth-partial-body"].to_str().unwrap().to_owned();
        let is_good = !body.starts_with(b"bad");
        all.lock().unwrap().push((head.method.to_string(), is_partial, body));
        if is_good { StatusCode::OK } else { StatusCode::FORBIDDEN }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, app).await });
    (port, seen)
}

/// A server of `reviews` that sends back what it gets.
async fn serve(control: &Embedded) -> (Mesh, SocketAddr) {
    let bootstrap = Bootstrap::new("embedded")
        .node_id("mesh~127.0.0.1~reviews.shop~shop.svc.cluster.local")
        .metadata("NAMESPACE", "shop")
        .metadata("LABELS", json!({"app": "reviews"}));
    let mesh = Mesh::builder().source(control.source(bootstrap)).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let echo = |request: Request| async move { request.into_body() };
    let app = axum::Router::new().fallback(echo).layer(mesh.server_layer());
    tokio::spawn(async move { mesh_tower::server::serve(listener, app).await });
    within(mesh.serving()).await.unwrap();
    (mesh, address)
}

/// Sends one request; the status and the end of the answer.
async fn ask(address: SocketAddr, head: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("{head}\r\nhost: reviews\r\nconnection: close\r\n\r\n");
    let (mut reader, mut writer) = stream.split();
    let send = async {
        writer.write_all(head.as_bytes()).await.unwrap();
        // What is refused may be reset while it is sent.
        _ = writer.write_all(body).await;
    };
    let mut answer = Vec::new();
    let read = async { _ = reader.read_to_end(&mut answer).await };
    within(async { tokio::join!(send, read) }).await;
    let status = String::from_utf8_lossy(&answer).split(' ').nth(1).expect("an answer").parse().unwrap();
    let at = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    (status, answer.split_off(at))
}

async fn start(shown: &str) -> (Embedded, Mesh, SocketAddr, Seen) {
    let (port, seen) = authorizer().await;
    let yaml = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    \
         extensionProviders:\n    - name: authz\n      envoyExtAuthzHttp: {{service: authz.example.com, port: 8000, timeout: 9s, \
         includeRequestBodyInCheck: {{{shown}}}}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: authz, namespace: shop}}\n\
         spec: {{hosts: [authz.example.com], ports: [{{number: 8000, name: http, targetPort: {port}}}], \
         resolution: STATIC, endpoints: [{{address: 127.0.0.1}}]}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: reviews, namespace: shop}}\n\
         spec: {{selector: {{app: reviews}}, ports: [{{name: http, port: 80, targetPort: 9080}}]}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: ask, namespace: shop}}\n\
         spec: {{action: CUSTOM, provider: {{name: authz}}, rules: [{{to: [{{operation: {{paths: [/private*]}}}}]}}]}}\n"
    );
    let control = Embedded::start(Config::yaml(yaml), Options::default()).await.unwrap();
    let (mesh, address) = serve(&control).await;
    (control, mesh, address, seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_shown_whole_or_refused_and_reaches_the_application_as_it_was_sent() {
    let (_control, _mesh, address, seen) = start("maxRequestBytes: 8").await;
    let asked = || std::mem::take(&mut *seen.lock().unwrap());
    let (status, body) = ask(address, "POST /private HTTP/1.1\r\ncontent-length: 8", b"12345678").await;
    assert_eq!((status, &body[..]), (200, &b"12345678"[..]));
    assert_eq!(asked(), [("POST".to_owned(), "false".to_owned(), Bytes::from_static(b"12345678"))]);
    let chunked = "POST /private HTTP/1.1\r\ntransfer-encoding: chunked";
    let (status, body) = ask(address, chunked, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").await;
    assert!(status == 200 && body.windows(5).any(|five| five == b"abcde"), "{body:?}");
    assert_eq!(asked(), [("POST".to_owned(), "false".to_owned(), Bytes::from_static(b"abcde"))]);
    let (status, body) = ask(address, "GET /private HTTP/1.1", b"").await;
    assert_eq!((status, &body[..]), (200, &b""[..]));
    assert_eq!(asked(), [("GET".to_owned(), "false".to_owned(), Bytes::new())]);
    let (status, _) = ask(address, "POST /private HTTP/1.1\r\ncontent-length: 3", b"bad").await;
    assert_eq!((status, asked().len()), (403, 1));
    for (head, body) in [
        ("POST /private HTTP/1.1\r\ncontent-length: 9", &b"123456789"[..]),
        (chunked, &b"5\r\nabcde\r\n4\r\nfghi\r\n0\r\n\r\n"[..]),
    ] {
        let (status, _) = ask(address, head, body).await;
        assert_eq!((status, asked().len()), (413, 0), "{head}");
    }
    let long = vec![b'x'; 100_000];
    let (status, body) = ask(address, "POST /open HTTP/1.1\r\ncontent-length: 100000", &long).await;
    assert!(status == 200 && body == long && asked().is_empty(), "what nobody is asked about is not read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_bytes_are_shown_where_that_is_enough_and_all_reach_the_application() {
    let (_control, _mesh, address, seen) = start("maxRequestBytes: 8, allowPartialMessage: true").await;
    let long: Vec<u8> = (0..300_000u32).map(|at| (at % 251) as u8).collect();
    let (status, body) = ask(address, "PUT /private HTTP/1.1\r\ncontent-length: 300000", &long).await;
    assert!(status == 200 && body == long, "{status}");
    let expected = ("PUT".to_owned(), "true".to_owned(), Bytes::copy_from_slice(&long[..8]));
    assert_eq!(*seen.lock().unwrap(), [expected]);
    let (status, body) = ask(address, "PUT /private HTTP/1.1\r\ncontent-length: 8", b"12345678").await;
    assert_eq!((status, &body[..]), (200, &b"12345678"[..]));
    assert_eq!(seen.lock().unwrap()[1].1, "false");
}

type Served<B> = BoxCloneService<http::Request<B>, http::Response<ServerBody<Full<Bytes>>>, Infallible>;

/// A service behind an authorizer in this process that is shown bodies like this, and lets in who gets a permit.
async fn in_process<B>(
    shown: CheckedBody,
    permits: Arc<Semaphore>,
    with: impl FnOnce(ServerLayer) -> ServerLayer,
) -> (Mesh, crate::server_support::Player, Seen, Served<B>)
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<mesh_tower::body::BoxError>,
{
    let seen: Seen = Arc::default();
    let all = Arc::clone(&seen);
    let decide = move |request: AuthorizationRequest| {
        let (all, permits) = (Arc::clone(&all), Arc::clone(&permits));
        async move {
            let body = request.body.ok_or("no body is shown")?;
            all.lock().unwrap().push((request.method.to_string(), body.is_partial.to_string(), body.bytes));
            permits.acquire().await?.forget();
            Ok(Decision::from(Allow::new()))
        }
    };
    let (player, mesh) = crate::server_support::mesh();
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let mut config = ExtAuthz::new("own.in-process.invalid:1", CheckProtocol::InProcess("own".into()));
    config.timeout = Duration::from_secs(3600);
    config.body = Some(shown);
    let filter = NamedFilter::new("ask", FilterConfig::ExtAuthz(Arc::new(config)));
    player.send(listener(bound.local_addr(), vec![chain(vec![app_route()], vec![filter])]));
    bound.serving().await.unwrap();
    let app = tower::service_fn(|request: http::Request<B>| async move {
        let body = request.into_body().collect().await;
        let (length, trailers) = match body {
            Ok(body) => (body.trailers().is_some(), body.to_bytes().len()),
            Err(_) => (false, 0),
        };
        Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(format!("{length} {trailers}")))))
    });
    let layer = bound.layer().named_authorizer("own", decide);
    let service = BoxCloneService::new(with(layer).layer(app));
    // The listener goes on being bound.
    tokio::spawn(async move {
        let _bound = bound;
        std::future::pending::<()>().await
    });
    (mesh, player, seen, service)
}

fn post<B>(body: B) -> http::Request<B> {
    http::Request::post("/").header("host", "reviews").body(body).unwrap()
}

async fn text(response: http::Response<impl http_body::Body<Data = Bytes>>) -> (u16, String) {
    let (head, body) = response.into_parts();
    let Ok(body) = body.collect().await else { panic!("a body that breaks off") };
    (head.status.as_u16(), String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

fn axum_body(read: RequestBody<Body>) -> Body {
    Body::new(read)
}

#[tokio::test]
async fn a_body_that_breaks_off_or_never_comes_is_refused_and_trailers_stay() {
    let permits = Arc::new(Semaphore::new(100));
    let with = |layer: ServerLayer| layer.bodies_by(axum_body);
    let (_mesh, _player, seen, service) = in_process::<Body>(CheckedBody::whole(8), permits, with).await;
    tokio::time::pause();
    let frames = |frames: Vec<Result<Frame<Bytes>, &'static str>>| {
        Body::new(StreamBody::new(futures_util::stream::iter(frames)))
    };
    let data = |text: &'static str| Ok(Frame::data(Bytes::from_static(text.as_bytes())));
    let broken = service.clone().oneshot(post(frames(vec![data("12"), Err("gone")]))).await.unwrap();
    assert_eq!(text(broken).await.0, 400);
    let never = Body::new(StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, &str>>()));
    let begun = tokio::time::Instant::now();
    let late = service.clone().oneshot(post(never)).await.unwrap();
    assert_eq!((text(late).await.0, begun.elapsed().as_secs()), (408, 60));
    assert!(seen.lock().unwrap().is_empty(), "nobody was asked");
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "1".parse().unwrap());
    let whole = frames(vec![data("1234"), data(""), data("5678"), Ok(Frame::trailers(trailers))]);
    let whole = service.clone().oneshot(post(whole)).await.unwrap();
    assert_eq!(text(whole).await, (200, "true 8".to_owned()));
    assert_eq!(*seen.lock().unwrap(), [("POST".to_owned(), "false".to_owned(), Bytes::from_static(b"12345678"))]);
}

#[tokio::test]
async fn a_body_that_nobody_can_read_is_refused_with_the_reason_and_told_once() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_max_level(tracing::Level::WARN);
    let _default = tracing::subscriber::set_default(subscriber.finish());
    let permits = Arc::new(Semaphore::new(100));
    let (_mesh, _player, seen, service) =
        in_process::<Full<Bytes>>(CheckedBody::whole(8), permits, |layer| layer).await;
    for _ in 0..3 {
        let body = Full::new(Bytes::from_static(b"x"));
        let (status, why) = text(service.clone().oneshot(post(body)).await.unwrap()).await;
        assert!(status == 503 && why.contains("bodies_by") && seen.lock().unwrap().is_empty(), "{status} {why}");
    }
    let told = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(told.matches("readable_bodies").count(), 1, "{told}");
    // Nobody has to say how an empty one is read.
    let (status, _) = text(service.clone().oneshot(post(Full::new(Bytes::new()))).await.unwrap()).await;
    assert_eq!(status, 200);
    assert_eq!(*seen.lock().unwrap(), [("POST".to_owned(), "false".to_owned(), Bytes::new())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_meshs_own_server_shows_bodies_where_it_is_told_to_and_empty_ones_in_any_case() {
    let (control, _mesh, _, seen) = start("maxRequestBytes: 8").await;
    let bootstrap = Bootstrap::new("embedded")
        .node_id("mesh~127.0.0.1~reviews.shop~shop.svc.cluster.local")
        .metadata("NAMESPACE", "shop")
        .metadata("LABELS", json!({"app": "reviews"}));
    for is_readable in [false, true] {
        let mesh = Mesh::builder().source(control.source(bootstrap.clone())).start().unwrap();
        let bound = mesh.bind("127.0.0.1:0").await.unwrap();
        let address = bound.local_addr();
        let layer = mesh.server_layer();
        match is_readable {
            true => {
                let echo = |request: http::Request<mesh_tower::body::Body>| async {
                    Ok::<_, Infallible>(http::Response::new(request.into_body()))
                };
                let app = layer.layer(tower::service_fn(echo));
                tokio::spawn(mesh_tower::server::serve(bound, app).readable_bodies().into_future());
            }
            false => {
                let echo = |request: http::Request<hyper::body::Incoming>| async {
                    Ok::<_, Infallible>(http::Response::new(request.into_body()))
                };
                tokio::spawn(mesh_tower::server::serve(bound, layer.layer(tower::service_fn(echo))).into_future());
            }
        }
        within(mesh.serving()).await.unwrap();
        let asked = || std::mem::take(&mut *seen.lock().unwrap());
        let (status, _) = ask(address, "GET /private HTTP/1.1", b"").await;
        assert_eq!(status, 200, "readable {is_readable}");
        assert_eq!(asked(), [("GET".to_owned(), "false".to_owned(), Bytes::new())], "readable {is_readable}");
        let (status, body) = ask(address, "POST /private HTTP/1.1\r\ncontent-length: 5", b"hello").await;
        match is_readable {
            true => {
                assert_eq!((status, &body[..]), (200, &b"hello"[..]));
                assert_eq!(asked(), [("POST".to_owned(), "false".to_owned(), Bytes::from_static(b"hello"))]);
            }
            false => assert!(status == 503 && asked().is_empty(), "{status}"),
        }
        let (status, _) = ask(address, "POST /open HTTP/1.1\r\ncontent-length: 5", b"hello").await;
        assert_eq!(status, 200, "readable {is_readable}");
    }
}

#[tokio::test]
async fn what_is_held_of_all_bodies_together_has_a_bound_and_a_client_leaves_room_for_others() {
    const LONG: usize = CheckedBody::LIMIT;
    let permits = Arc::new(Semaphore::new(0));
    let with = |layer: ServerLayer| layer.bodies_by(axum_body);
    let (_mesh, _player, seen, service) =
        in_process::<Body>(CheckedBody::whole(LONG), Arc::clone(&permits), with).await;
    let body = Bytes::from(vec![0; LONG]);
    let ask = |client: &str, length: usize| {
        let mut request = post(Body::from(body.slice(..length)));
        let (here, peer) = ("127.0.0.1:80".parse().unwrap(), client.parse().unwrap());
        request.extensions_mut().insert(Arc::new(ConnectionInfo::new(here, peer)));
        service.clone().oneshot(request)
    };
    let shown = async |count: usize| {
        within(async {
            while seen.lock().unwrap().len() < count {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    // Two of one client are half of all there is.
    let mut held = vec![tokio::spawn(ask("10.0.0.1:1", LONG)), tokio::spawn(ask("10.0.0.1:2", LONG))];
    shown(2).await;
    let (status, why) = text(within(ask("10.0.0.1:3", LONG)).await.unwrap()).await;
    assert!(status == 503 && why.contains("held"), "{status} {why}");
    held.push(tokio::spawn(ask("10.0.0.2:1", LONG)));
    shown(3).await;
    let (status, why) = text(within(ask("10.0.0.3:1", LONG)).await.unwrap()).await;
    assert!(status == 503 && why.contains("held"), "{status} {why}");
    permits.add_permits(6);
    for held in held {
        assert_eq!(text(within(held).await.unwrap().unwrap()).await, (200, format!("false {LONG}")));
    }
    assert_eq!(text(within(ask("10.0.0.1:3", LONG)).await.unwrap()).await.0, 200, "there is room again");
}
