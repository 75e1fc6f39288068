//! Filters on both sides: what they see of a request and its response, what they may decide, what they keep, and
//! what is known of the request at its end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::server_support::{Played, Player, app_route, chain, listener, played, within};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, request, response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_core::error::ErrorKind;
use mesh_core::filter::{Decision, Filter, FilterFactory, Reply, Resume};
use mesh_core::fixed::{Fixed, route_to};
use mesh_core::model::{
    ApiListener, Cluster, ClusterKind, ClusterProtocol, Endpoints, FilterConfig, HeaderChange, HttpManager, Listener,
    NamedFilter, Route, RouteConfiguration, RouteSource, VirtualHost,
};
use mesh_core::request_info::{Deadline, Observer, RequestInfo};
use mesh_core::resources::{Change, Resource, ResourceKey, ResourceType};
use mesh_tower::body::Body;
use mesh_tower::{Mesh, MeshBuilder, server};
use tokio::net::TcpListener;
use tower_layer::Layer;

type Log = Arc<Mutex<Vec<String>>>;

/// Does what its configuration says, and writes down what it sees.
#[derive(Debug)]
struct Probe {
    name: String,
    log: Log,
    /// How many requests passed, through all configurations.
    count: Arc<AtomicUsize>,
}

impl Probe {
    fn note(&self, what: impl std::fmt::Display) {
        self.log.lock().unwrap().push(format!("{} {what}", self.name));
    }
}

impl Filter for Probe {
    fn on_request(&self, _: &mut RequestInfo, head: &mut request::Parts) -> Decision {
        let count = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        self.note(format_args!("request {count}"));
        head.headers.append("x-passed", HeaderValue::from_str(&self.name).unwrap());
        match self.name.as_str() {
            "refuse" => Decision::Reply(Reply::new(StatusCode::FORBIDDEN, "no")),
            "delay" => Decision::Delay(Duration::from_millis(50), None),
            "ask" => Decision::Callout(Box::pin(async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let go_on: Resume = Box::new(|_, head| {
                    head.headers.insert("x-asked", HeaderValue::from_static("yes"));
                    Decision::Continue
                });
                go_on
            })),
            "ask-twice" => Decision::Callout(Box::pin(async {
                let ask_again: Resume = Box::new(|_, _| {
                    Decision::Callout(Box::pin(async {
                        let refuse: Resume =
                            Box::new(|_, _| Decision::Reply(Reply::new(StatusCode::UNAUTHORIZED, "asked twice")));
                        refuse
                    }))
                });
                ask_again
            })),
            "hang" => Decision::Callout(Box::pin(std::future::pending())),
            _ => Decision::Continue,
        }
    }

    fn on_response(&self, _: &mut RequestInfo, head: &mut response::Parts) {
        self.note(format_args!("response {}", head.status.as_u16()));
        head.headers.append("x-returned", HeaderValue::from_str(&self.name).unwrap());
    }

    fn on_end(&self, request: &RequestInfo) {
        if self.name == "witness" {
            let status = request.status().map(|status| status.as_u16());
            let (complete, bytes) = (request.is_complete(), request.response_bytes());
            self.note(format_args!("saw {status:?} {bytes} {complete} {:?}", request.error()));
        }
        self.note("end");
    }
}

fn probes(log: &Log) -> FilterFactory {
    let log = Arc::clone(log);
    Arc::new(move |config, state| {
        let name = config.trim_matches('"').to_owned();
        Ok(Arc::new(Probe { name, log: Arc::clone(&log), count: state.get(AtomicUsize::default) }))
    })
}

fn filters(names: &[&str]) -> Vec<NamedFilter> {
    let config = |name: &str| FilterConfig::Custom("probe".into(), Arc::from(format!("{name:?}")));
    let filter = |name: &&str| NamedFilter::new(*name, config(name));
    names.iter().map(filter).collect()
}

/// A server that answers with the headers that filters added to the request.
async fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let service = service_fn(|request: Request<hyper::body::Incoming>| async move { answer(&request) });
                _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

type Answer = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

fn answer<B>(request: &Request<B>) -> Result<Response<Answer>, Infallible> {
    let seen: Vec<_> = request.headers().get_all("x-passed").iter().map(|value| value.to_str().unwrap()).collect();
    let asked = request.headers().get("x-asked").map_or("", |value| value.to_str().unwrap());
    let text = Bytes::from(format!("{} {asked}", seen.join(",")));
    if request.uri().path() == "/grpc" {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("8"));
        let frames = [Ok(Frame::data(text)), Ok(Frame::trailers(trailers))];
        return Ok(Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()));
    }
    Ok(Response::new(Full::new(text).boxed_unsync()))
}

/// Sends a configuration with filters of these names.
type Put = Box<dyn Fn(&Player, &[&str])>;

/// The same mesh on both sides: requests pass its filters where they are made, or where they are answered.
struct Side {
    name: &'static str,
    player: Player,
    client: mesh_tower::Client,
    log: Log,
    /// What the filters' configuration is written to.
    put: Put,
    _meshes: Vec<Mesh>,
}

fn builder(log: &Log, source: Played) -> MeshBuilder {
    Mesh::builder().source(source).filter("probe", probes(log))
}

async fn outbound() -> Side {
    let address = upstream().await;
    let log = Log::default();
    let (player, source) = played();
    let mesh = builder(&log, source).start().unwrap();
    let mut cluster = Cluster::new("c", ClusterKind::Static(Endpoints::fixed([address])));
    cluster.protocol = ClusterProtocol::AsCaller;
    player.send(Change::Put(ResourceKey::new(ResourceType::Cluster, "c"), Resource::Cluster(Arc::new(cluster))));
    let put = |player: &Player, names: &[&str]| put_client(player, vec![changed(route_to("c"))], filters(names));
    Side { name: "outbound", player, client: mesh.client(), log, put: Box::new(put), _meshes: vec![mesh] }
}

/// The route changes the response, too.
fn changed(mut route: Route) -> Route {
    let name = http::HeaderName::from_static("x-route");
    route.mutations.response.push(HeaderChange::Set(name, HeaderValue::from_static("1").into()));
    route
}

fn put_client(player: &Player, routes: Vec<Route>, filters: Vec<NamedFilter>) {
    let host = VirtualHost::new(["*"], routes);
    let config = RouteConfiguration::new(vec![host]);
    let mut http = HttpManager::new(RouteSource::Inline(Arc::new(config)));
    http.filters = filters;
    let listener = Listener::Api(ApiListener::new("s:80", http));
    player.send(Change::Put(ResourceKey::new(ResourceType::Listener, "s:80"), Resource::Listener(Arc::new(listener))));
}

async fn inbound() -> Side {
    let log = Log::default();
    let (player, source) = played();
    let mesh = builder(&log, source).start().unwrap();
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = bound.local_addr();
    let app = tower::service_fn(|request: Request<hyper::body::Incoming>| async move { answer(&request) });
    let mut limits = server::Limits::default();
    limits.half_close_timeout = Duration::from_millis(100);
    tokio::spawn(server::serve(bound, mesh.server_layer().layer(app)).limits(limits).into_future());
    let client = Mesh::builder().source(Fixed::new().service("s:80", [address])).start().unwrap();
    let put = move |player: &Player, names: &[&str]| {
        player.send(listener(address, vec![chain(vec![changed(app_route())], filters(names))]));
    };
    Side { name: "inbound", player, client: client.client(), log, put: Box::new(put), _meshes: vec![mesh, client] }
}

impl Side {
    fn put(&self, names: &[&str]) {
        (self.put)(&self.player, names);
    }

    async fn ask(&self, path: &str) -> (StatusCode, HeaderMap, String) {
        let response = within(self.client.get(format!("http://s{path}"))).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = within(body.collect()).await.unwrap().to_bytes();
        (head.status, head.headers, String::from_utf8(bytes.to_vec()).unwrap())
    }

    /// Asks until the filter of this name is in use, and forgets what was written down.
    async fn settle(&self, name: &str) {
        within(async {
            loop {
                self.log.lock().unwrap().clear();
                _ = tokio::time::timeout(Duration::from_millis(500), self.client.get("http://s/")).await;
                if self.log.lock().unwrap().iter().any(|line| line.starts_with(&format!("{name} request"))) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        self.told("end").await;
        self.log.lock().unwrap().clear();
    }

    /// Waits until a line that ends so was written down, and returns all of them.
    async fn told(&self, end: &str) -> Vec<String> {
        within(async {
            loop {
                let lines = self.log.lock().unwrap().clone();
                if lines.iter().any(|line| line.ends_with(end)) {
                    return lines;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
    }
}

async fn both() -> [Side; 2] {
    [outbound().await, inbound().await]
}

#[tokio::test]
async fn filters_see_the_request_in_order_the_response_in_reverse_and_the_end() {
    for side in both().await {
        side.put(&["a", "b", "c"]);
        side.settle("a").await;
        let (status, headers, body) = side.ask("/").await;
        assert_eq!((status.as_u16(), body.as_str()), (200, "a,b,c "), "{}", side.name);
        let returned: Vec<_> = headers.get_all("x-returned").iter().collect();
        assert_eq!(returned, ["c", "b", "a"], "{}", side.name);
        assert_eq!(headers["x-route"], "1");
        let lines = side.told("c end").await;
        let what: Vec<_> = lines.iter().map(|line| line.trim_end_matches(char::is_numeric).trim()).collect();
        let expected = [
            "a request",
            "b request",
            "c request",
            "c response",
            "b response",
            "a response",
            "a end",
            "b end",
            "c end",
        ];
        assert_eq!(what, expected, "{}", side.name);
    }
}

#[tokio::test]
async fn an_answer_of_a_filter_goes_back_by_those_that_saw_the_request() {
    for side in both().await {
        side.put(&["a", "refuse", "never"]);
        side.settle("a").await;
        let (status, headers, body) = side.ask("/").await;
        assert_eq!((status.as_u16(), body.as_str()), (403, "no"), "{}", side.name);
        assert_eq!(headers.get_all("x-returned").iter().collect::<Vec<_>>(), ["refuse", "a"], "{}", side.name);
        assert_eq!(headers["x-route"], "1", "{}", side.name);
        let lines = side.told("refuse end").await;
        assert!(lines.iter().all(|line| !line.starts_with("never")), "{}: {lines:?}", side.name);
    }
}

#[tokio::test]
async fn a_filter_may_wait_or_ask_somebody_and_the_next_one_comes_after() {
    for side in both().await {
        side.put(&["delay", "ask", "after"]);
        side.settle("delay").await;
        let started = Instant::now();
        let (status, _, body) = side.ask("/").await;
        assert_eq!((status.as_u16(), body.as_str()), (200, "delay,ask,after yes"), "{}", side.name);
        assert!(started.elapsed() >= Duration::from_millis(70), "{}", side.name);
        side.put(&["ask-twice", "never"]);
        side.settle("ask-twice").await;
        let (status, _, body) = side.ask("/").await;
        assert_eq!((status.as_u16(), body.as_str()), (401, "asked twice"), "{}", side.name);
    }
}

#[tokio::test]
async fn a_filter_that_waits_for_ever_ends_with_the_deadline_or_with_its_caller() {
    let side = outbound().await;
    side.put(&["hang"]);
    side.settle("hang").await;
    let request = Request::get("http://s/").extension(Deadline(Instant::now() + Duration::from_millis(50)));
    let error = within(side.client.request(request.body(Body::empty()).unwrap())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("a filter held the request back"), "{error}");
    assert_eq!(side.told("end").await.len(), 2, "it saw the request and its end");
    let side = inbound().await;
    side.put(&["hang"]);
    // The client gives up, and so does its connection: the filter is told.
    side.settle("hang").await;
}

#[tokio::test]
async fn what_a_filter_keeps_survives_a_push() {
    for side in both().await {
        side.put(&["a"]);
        side.settle("a").await;
        side.ask("/").await;
        let before: usize = last_count(&side.told("a end").await);
        // Another list of filters, and so every filter made anew.
        side.put(&["first", "a"]);
        side.settle("first").await;
        side.ask("/").await;
        let lines = side.told("a end").await;
        assert!(last_count(&lines) > before, "{}: {lines:?} after {before}", side.name);
    }
}

fn last_count(lines: &[String]) -> usize {
    let counts = lines.iter().filter_map(|line| line.strip_prefix("a request ")?.parse().ok());
    counts.max().expect("it saw a request")
}

/// Outlier detection and the like are filters or as good as filters: they are told without an observer, too.
#[tokio::test]
async fn a_filter_knows_at_the_end_what_became_of_the_request() {
    for side in both().await {
        side.put(&["witness"]);
        side.settle("witness").await;
        let (_, _, body) = side.ask("/").await;
        assert_eq!(
            side.told("end").await[2],
            format!("witness saw Some(200) {} true None", body.len()),
            "{}",
            side.name
        );
        side.put(&["witness", "refuse"]);
        side.settle("refuse").await;
        side.ask("/").await;
        let lines = side.told("refuse end").await;
        assert!(lines.iter().any(|line| line == "witness saw Some(403) 2 true None"), "{}: {lines:?}", side.name);
    }
}

/// HEAD is answered by a head, whoever answers, and that is all of it.
#[tokio::test]
async fn nothing_follows_the_head_that_answers_head() {
    for side in both().await {
        side.put(&["refuse"]);
        side.settle("refuse").await;
        for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
            let request = Request::head("http://s/").version(version).body(Body::empty()).unwrap();
            let response = within(side.client.request(request)).await.unwrap();
            assert_eq!(
                (response.status().as_u16(), response.headers()["content-length"].as_bytes()),
                (403, &b"2"[..]),
                "{}",
                side.name
            );
            let body = within(response.into_body().collect()).await.expect("no more than a head");
            assert!(body.to_bytes().is_empty(), "{} {version:?}", side.name);
        }
        side.put(&["witness"]);
        side.settle("witness").await;
        let request = Request::head("http://s/").body(Body::empty()).unwrap();
        within(within(side.client.request(request)).await.unwrap().into_body().collect()).await.unwrap();
        assert_eq!(side.told("end").await[2], "witness saw Some(200) 0 true None", "{}", side.name);
    }
}

#[tokio::test]
async fn a_server_holds_a_request_back_no_longer_than_its_deadline() {
    let log = Log::default();
    let (player, source) = played();
    let mesh = builder(&log, source).start().unwrap();
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    player.send(listener(bound.local_addr(), vec![chain(vec![app_route()], filters(&["hang"]))]));
    within(mesh.serving()).await.unwrap();
    let app = tower::service_fn(|request: Request<Empty<Bytes>>| async move { answer(&request) });
    let deadline = Deadline(Instant::now() + Duration::from_millis(50));
    let request = Request::get("/").header("host", "s").extension(deadline).body(Empty::new()).unwrap();
    let answered = tower::ServiceExt::oneshot(mesh.server_layer().layer(app), request);
    assert_eq!(within(answered).await.unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
}

/// Filters that are not there would be a hole.
#[tokio::test]
async fn fixed_filters_are_in_force_whenever_their_target_is_added() {
    let refuse = || filters(&["refuse"]);
    let address = upstream().await;
    let sources = [
        Fixed::new().filters("s:80", refuse()).service("s:80", [address]),
        Fixed::new().service("s:80", [address]).filters("s:80", refuse()),
        Fixed::new().service("s:80", [address]).filters("s:80", refuse()).service("s:80", [address]),
    ];
    for source in sources {
        let mesh = Mesh::builder().source(source).filter("probe", probes(&Log::default())).start().unwrap();
        assert_eq!(within(mesh.client().get("http://s/")).await.unwrap().status(), StatusCode::FORBIDDEN);
    }
}

/// What an application does wrong is not its caller's giving up.
#[tokio::test]
async fn an_application_that_fails_is_told_as_one() {
    let told = Told::default();
    let served = Mesh::builder().source(Fixed::new()).observer(told.clone()).start().unwrap();
    let _bound = served.bind("127.0.0.1:0").await.unwrap();
    within(served.serving()).await.unwrap();
    let broken = tower::service_fn(|request: Request<Empty<Bytes>>| async move {
        if request.uri().path() == "/error" {
            return Err(std::io::Error::other("no answer"));
        }
        let frames = [Ok(Frame::data(Bytes::from_static(b"x"))), Err(std::io::Error::other("no more"))];
        Ok(Response::new(StreamBody::new(futures_util::stream::iter(frames))))
    });
    let service = served.server_layer().layer(broken);
    let send = |path: &str| {
        let request = Request::get(path).header("host", "s").body(Empty::new()).unwrap();
        tower::ServiceExt::oneshot(service.clone(), request)
    };
    send("/error").await.map(drop).unwrap_err();
    send("/body").await.unwrap().into_body().collect().await.map(drop).unwrap_err();
    let flags: Vec<_> =
        told.0.lock().unwrap().iter().map(|line| line.split("flag=").nth(1).unwrap().to_owned()).collect();
    assert_eq!(flags, ["\"UC\"", "\"UC\""]);
}

#[derive(Clone, Debug, Default)]
struct Told(Log);

impl Observer for Told {
    fn on_end(&self, request: &RequestInfo) {
        let line = format!(
            "{:?} {} {} peer={} {:?} grpc={:?} {} bytes complete={} flag={:?}",
            request.direction().unwrap(),
            request.method().unwrap(),
            request.authority(),
            request.peer().is_some(),
            request.status().map(|status| status.as_u16()),
            request.grpc_status(),
            request.response_bytes(),
            request.is_complete(),
            request.response_flags().to_string(),
        );
        self.0.lock().unwrap().push(line);
    }
}

#[tokio::test]
async fn at_the_end_of_the_body_both_sides_know_all_of_the_request() {
    let (client_told, server_told) = (Told::default(), Told::default());
    let served = Mesh::builder().source(Fixed::new()).observer(server_told.clone()).start().unwrap();
    let bound = served.bind("127.0.0.1:0").await.unwrap();
    let source = Fixed::new().service("s:80", [bound.local_addr()]);
    let app = tower::service_fn(|request: Request<hyper::body::Incoming>| async move { answer(&request) });
    tokio::spawn(server::serve(bound, served.server_layer().layer(app)).into_future());
    let mesh = Mesh::builder().source(source).observer(client_told.clone()).start().unwrap();
    let request = Request::post("http://s:80/grpc").version(http::Version::HTTP_2).body(Empty::<Bytes>::new()).unwrap();
    let response = within(mesh.client().request(request)).await.unwrap();
    assert!(client_told.0.lock().unwrap().is_empty(), "the body is not read yet");
    within(response.into_body().collect()).await.unwrap();
    assert_eq!(
        *client_told.0.lock().unwrap(),
        ["Outbound POST s:80 peer=false Some(200) grpc=Some(8) 1 bytes complete=true flag=\"-\""]
    );
    within(async {
        while server_told.0.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    assert_eq!(
        *server_told.0.lock().unwrap(),
        ["Inbound POST s:80 peer=true Some(200) grpc=Some(8) 1 bytes complete=true flag=\"-\""]
    );
    // A body that is given up.
    client_told.0.lock().unwrap().clear();
    drop(within(mesh.client().get("http://s:80/")).await.unwrap());
    assert_eq!(
        *client_told.0.lock().unwrap(),
        ["Outbound GET s:80 peer=false Some(200) grpc=None 0 bytes complete=false flag=\"DC\""]
    );
}
