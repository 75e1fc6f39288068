//! A control plane with some YAML, a client of it, and servers that do what they are told.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::error::MeshError;
use mesh_core::health_check::Checked;
use mesh_core::request_info::{Observer, RequestInfo};
use mesh_core::state::ClusterState;
use mesh_core::xds::Bootstrap;
use mesh_tower::Mesh;
use mesh_tower::body::{Body, BoxError};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// What the servers of a world saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<Seen>>>);

/// A request, as a server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) server: SocketAddr,
    pub(crate) path: String,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Option<Bytes>,
}

impl Log {
    /// What was seen since the last time that somebody asked.
    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    /// How much was seen since then.
    pub(crate) fn seen(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// A server that does with a request what its path says, and writes it down before:
///
/// - `/status/503` answers with that status; headers of the request named `give-x` are headers `x` of the answer.
/// - `/then-ok/n/...` does the rest of the path for the first `n` requests with this path and query that the servers of the
///   log see, and answers with 200 and the request's body from then on; `/then-hang/n/...` does not answer then.
/// - `/reset` reads the request and ends its stream, or its connection, without an answer. `/refuse` refuses the stream.
/// - `/hang` never answers. `/late/...` does the rest of the path as soon as servers have seen a second request with this
///   path and query.
///
/// What it does first is to read the body, unless the query is `unread` and it is not going to answer with it.
pub(crate) async fn server(log: &Log, open: &watch::Sender<usize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (log, open) = (log.clone(), open.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (log, open) = (log.clone(), open.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(address, request, log.clone(), open.clone()));
                _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

/// Counts a request that is being answered, until it is or is given up.
struct Open(watch::Sender<usize>);

impl Open {
    fn new(open: watch::Sender<usize>) -> Self {
        open.send_modify(|open| *open += 1);
        Open(open)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

async fn answer(
    server: SocketAddr,
    request: Request<Incoming>,
    log: Log,
    open: watch::Sender<usize>,
) -> Result<Response<Full<Bytes>>, BoxError> {
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let (position, number) = {
        let mut log = log.0.lock().unwrap();
        log.push(Seen { server, path: path.clone(), headers: head.headers.clone(), body: None });
        (log.len() - 1, log.iter().filter(|seen| seen.path == path).count())
    };
    let mut changes = open.subscribe();
    let _open = Open::new(open);
    let mut steps = head.uri.path().split('/').skip(1);
    let mut step = steps.next().unwrap_or_default();
    if let Some(last) = step.strip_prefix("then-") {
        let failing: usize = steps.next().unwrap().parse().unwrap();
        step = if number > failing { last } else { steps.next().unwrap() };
    }
    let body = match head.uri.query() {
        Some("unread") if step != "ok" => Bytes::new(),
        _ => body.collect().await?.to_bytes(),
    };
    if let Some(seen) = log.0.lock().unwrap().get_mut(position) {
        seen.body = Some(body.clone());
    }
    while step == "late" {
        let is_second = |_: &usize| log.0.lock().unwrap().iter().filter(|seen| seen.path == path).count() > 1;
        _ = changes.wait_for(is_second).await;
        step = steps.next().unwrap();
    }
    let mut response = match step {
        "ok" => Response::new(Full::new(body)),
        "status" => {
            let mut response = Response::new(Full::new(Bytes::new()));
            *response.status_mut() = StatusCode::from_bytes(steps.next().unwrap().as_bytes()).unwrap();
            response
        }
        "reset" => return Err("no answer".into()),
        "refuse" => return Err(h2::Error::from(h2::Reason::REFUSED_STREAM).into()),
        "hang" => std::future::pending().await,
        other => panic!("no server does {other:?}"),
    };
    for (name, value) in &head.headers {
        if let Some(given) = name.as_str().strip_prefix("give-") {
            response.headers_mut().insert(HeaderName::try_from(given).unwrap(), value.clone());
        }
    }
    if head.version == Version::HTTP_11 {
        // So that no request meets a connection that was used before.
        response.headers_mut().insert("connection", HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// An address on which nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    // The port stays taken, without a listener: no other test comes to listen there.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    Box::leak(Box::new(socket)).local_addr().unwrap()
}

/// How many tries each request took.
#[derive(Clone, Debug, Default)]
struct Tries(Arc<Mutex<Vec<u32>>>);

impl Observer for Tries {
    fn on_end(&self, request: &RequestInfo) {
        self.0.lock().unwrap().push(request.attempts);
    }
}

/// A client, and the servers of the host `web.example.com`.
pub(crate) struct World {
    control: Embedded,
    /// What every configuration of it begins with.
    service: String,
    pub(crate) mesh: Mesh,
    pub(crate) log: Log,
    /// How many requests servers have not answered yet.
    pub(crate) open: watch::Receiver<usize>,
    tries: Tries,
}

/// A rule for the host: what stands beside its destination.
pub(crate) fn rule(fields: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n  hosts: [web.example.com]\n  http:\n  - {{{fields}route: [{{destination: {{host: web.example.com}}}}]}}\n"
    )
}

/// A rule with these retries.
pub(crate) fn retries(policy: &str) -> String {
    rule(&format!("retries: {{{policy}}}, "))
}

impl World {
    /// With so many servers, and this YAML besides the service.
    pub(crate) async fn new(servers: usize, yaml: &str) -> World {
        let (log, open) = (Log::default(), watch::Sender::new(0));
        let mut addresses = Vec::new();
        for _ in 0..servers {
            addresses.push(server(&log, &open).await);
        }
        World::of(&addresses, yaml, log, &open).await
    }

    /// With servers at these addresses.
    pub(crate) async fn of(addresses: &[SocketAddr], yaml: &str, log: Log, open: &watch::Sender<usize>) -> World {
        let endpoints: String = addresses
            .iter()
            .map(|at| {
                format!("\n  - {{address: {}, ports: {{http: {port}, http2: {port}}}}}", at.ip(), port = at.port())
            })
            .collect();
        let service = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: web}}\nspec:\n  hosts: [web.example.com]\n  resolution: STATIC\n  ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 81, name: http2, protocol: HTTP2}}]\n  endpoints:{endpoints}\n"
        );
        let control = Embedded::start(Config::yaml(format!("{service}{yaml}")), Options::default()).await;
        let control = control.unwrap_or_else(|error| panic!("{error}"));
        let tries = Tries::default();
        let mesh = Mesh::builder().source(control.source(Bootstrap::new("embedded"))).observer(tries.clone());
        let mesh = mesh.cold_start_wait(Duration::from_secs(20)).start().unwrap();
        World { control, service, mesh, log, open: open.subscribe(), tries }
    }

    /// Puts another YAML in force, and waits until the client goes by it.
    pub(crate) async fn change(&self, yaml: &str) {
        let entry = self.mesh.store().find("web.example.com:80").expect("it was called");
        let before = entry.view().expect("it was called");
        self.control.set_yaml("config.yaml", &format!("{}{yaml}", self.service)).unwrap();
        let changed = entry.changed(&before);
        tokio::time::timeout(Duration::from_secs(60), changed).await.expect("it changes");
    }

    /// The status of the answer, or the failure.
    pub(crate) async fn ask<B>(&self, request: Request<B>) -> Result<(StatusCode, Bytes), MeshError>
    where
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let asked = async {
            let response = self.mesh.client().request(request).await?;
            let status = response.status();
            Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        tokio::time::timeout(Duration::from_secs(60), asked).await.expect("it ends")
    }

    /// Asks, and counts the tries: as observers are told, and as servers saw them.
    pub(crate) async fn tries<B>(&self, request: Request<B>) -> (u32, usize)
    where
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        self.log.take();
        _ = self.ask(request).await;
        (*self.tries.0.lock().unwrap().last().expect("a request that is over"), self.log.take().len())
    }

    /// Waits until servers have so many requests that they have not answered.
    pub(crate) async fn until_open(&self, count: usize) {
        let mut open = self.open.clone();
        let until = open.wait_for(|open| *open == count);
        tokio::time::timeout(Duration::from_secs(60), until).await.expect("it comes to that").unwrap();
    }

    /// Requests in flight, and retries, as the client counts them.
    pub(crate) fn under_way(&self) -> (u32, u32) {
        let (mut requests, mut retries) = (0, 0);
        self.each_cluster(|state| {
            state.each(|endpoint| requests += endpoint.in_flight());
            retries += state.usage().retries();
        });
        (requests, retries)
    }

    /// How many endpoints are ejected.
    pub(crate) fn ejected(&self) -> u32 {
        let mut ejected = 0;
        self.each_cluster(|state| state.each(|endpoint| ejected += u32::from(endpoint.is_ejected())));
        ejected
    }

    /// How many endpoints fail their health checks, or say so themselves.
    pub(crate) fn unwell(&self) -> u32 {
        let mut unwell = 0;
        self.each_cluster(|state| state.each(|endpoint| unwell += u32::from(endpoint.checked() == Checked::Unhealthy)));
        unwell
    }

    /// How many endpoints cannot be reached.
    pub(crate) fn unreachable(&self) -> u32 {
        let mut unreachable = 0;
        self.each_cluster(|state| state.each(|endpoint| unreachable += u32::from(!endpoint.is_reachable())));
        unreachable
    }

    fn each_cluster(&self, mut each: impl FnMut(&ClusterState)) {
        for port in [80, 81] {
            let entry = self.mesh.store().find(&format!("web.example.com:{port}"));
            let Some(view) = entry.and_then(|entry| entry.view()) else { continue };
            view.clusters().iter().flat_map(|cluster| cluster.leaves()).for_each(|leaf| each(&leaf.state));
        }
    }
}

/// A request without a body over HTTP/1.1.
pub(crate) fn request(method: &str, path: &str) -> Request<Body> {
    Request::builder().method(method).uri(format!("http://web.example.com{path}")).body(Body::empty()).unwrap()
}

/// A request over HTTP/2.
pub(crate) fn http2(method: &str, path: &str) -> Request<Body> {
    Request::builder().method(method).uri(format!("http://web.example.com:81{path}")).body(Body::empty()).unwrap()
}

/// A gRPC call: of those, a server answers with what the request's headers say.
pub(crate) fn grpc(path: &str, fields: &[(&str, &str)]) -> Request<Body> {
    let mut request =
        Request::post(format!("http://web.example.com:81{path}")).header("content-type", "application/grpc");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Body::from("message")).unwrap()
}

/// Frames of a body that is streamed.
pub(crate) fn streamed(frames: Vec<Bytes>) -> Body {
    let frames = frames.into_iter().map(|data| Ok::<_, Infallible>(http_body::Frame::data(data)));
    Body::new(http_body_util::StreamBody::new(futures_util::stream::iter(frames.collect::<Vec<_>>())))
}
