//! The clients that are compared: hyper's bare connection, hyper-util's pool, tonic's channels, the mesh.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::HOST as HOST_HEADER;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::filter::{Decision, Filter, FilterFactory};
use mesh_core::fixed::{Fixed, route_to};
use mesh_core::model::{
    Cluster, ClusterKind, ClusterProtocol, CorsPolicy, Endpoints, FilterConfig, Forward, Fraction, HeaderChange,
    NamedFilter, OutlierDetection, PathTest, QueryTest, RetryPolicy, Route, RouteAction, StringTest, Tracing,
};
use mesh_core::request_info::{Observer, RequestInfo};
use mesh_core::telemetry::{Span, SpanSink};
use mesh_core::trace::{Tables, Trace};
use mesh_tower::{Client, Mesh, MeshBuilder};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::body::Body as GrpcBody;
use tower::Service;

use crate::Result;
use crate::exchange::{FRAME_BYTES, FRAMES, Frames, STREAM_PATH, plain, plain_path};
use crate::load::Caller;

/// Which HTTP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1
    Http1,
    /// HTTP/2
    Http2,
}

/// The host by which the mesh knows the server.
pub const HOST: &str = "server.bench:8080";

/// What any client can send, again and again.
pub trait Payload:
    http_body::Body<Data = Bytes, Error: Into<BoxError>> + Clone + Send + Sync + Unpin + 'static
{
}
impl<B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Clone + Send + Sync + Unpin + 'static> Payload for B {}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// One kind of request, made once. Everybody who is measured clones it.
#[derive(Clone, Debug)]
pub struct Job<B> {
    host: HeaderValue,
    path: Uri,
    uri: Uri,
    body: B,
    answer: usize,
}

impl Job<Full<Bytes>> {
    /// Bodies of this many bytes, each way; the URI is for those who know the server as `host`.
    pub fn plain(host: &str, bytes: usize) -> Result<Self> {
        Job::new("http", host, &plain_path(bytes), plain(bytes), bytes)
    }

    /// The same over TLS.
    pub fn secured(host: &str, bytes: usize) -> Result<Self> {
        Job::new("https", host, &plain_path(bytes), plain(bytes), bytes)
    }

    /// Plain, with the query that the last route of [`routed_mesh`] is for.
    pub fn routed(host: &str, bytes: usize) -> Result<Self> {
        let path = format!("{}?tenant=t{}", plain_path(bytes), ROUTES - 1);
        Job::new("http", host, &path, plain(bytes), bytes)
    }
}

impl Job<Frames> {
    /// A stream each way.
    pub fn streamed(host: &str) -> Result<Self> {
        Job::new("http", host, STREAM_PATH, Frames::default(), FRAMES * FRAME_BYTES)
    }
}

impl<B: Payload> Job<B> {
    fn new(scheme: &str, host: &str, path: &str, body: B, answer: usize) -> Result<Self> {
        // For as long as the program runs, as a literal would be.
        let whole: &'static str = String::leak(format!("{scheme}://{host}{path}"));
        let behind = whole.get(scheme.len() + "://".len()..).unwrap_or_default();
        let (host, path) = behind.split_at_checked(host.len()).unwrap_or((behind, "/"));
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        let (path, uri) = (Uri::from_maybe_shared(bytes(path))?, Uri::from_maybe_shared(bytes(whole))?);
        Ok(Job { host: HeaderValue::from_maybe_shared(bytes(host))?, path, uri, body, answer })
    }

    fn request(&self, uri: &Uri) -> Result<Request<B>> {
        Ok(Request::post(uri.clone()).body(self.body.clone())?)
    }

    async fn read<R>(&self, response: Response<R>) -> Result
    where
        R: http_body::Body<Data = Bytes> + Unpin,
        R::Error: std::error::Error + Send + Sync + 'static,
    {
        anyhow::ensure!(response.status().is_success(), "status {}", response.status());
        let mut body = response.into_body();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame?.data_ref().map_or(0, Bytes::len);
        }
        anyhow::ensure!(bytes == self.answer, "{bytes} bytes came for {}", self.answer);
        Ok(())
    }
}

/// A bare connection, driven by a task of its own. Clones share an HTTP/2 connection.
pub enum Raw<B> {
    /// HTTP/1.1
    Http1(http1::SendRequest<B>),
    /// HTTP/2
    Http2(http2::SendRequest<B>),
}

impl<B: Payload> Raw<B> {
    /// Connects.
    pub async fn connect(address: SocketAddr, version: Version) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Raw::over(stream, version).await
    }

    /// The same over a connection that is there.
    pub async fn over<S>(stream: S, version: Version) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let io = TokioIo::new(stream);
        Ok(match version {
            Version::Http1 => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection);
                Raw::Http1(sender)
            }
            Version::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                Raw::Http2(sender)
            }
        })
    }

    /// As many as are needed for callers at the same time: HTTP/2 shares one connection.
    pub async fn several(address: SocketAddr, version: Version, count: usize) -> Result<Vec<Self>> {
        let mut all = vec![Raw::connect(address, version).await?];
        while all.len() < count {
            let next = match &all[0] {
                Raw::Http1(_) => Raw::connect(address, version).await?,
                Raw::Http2(sender) => Raw::Http2(sender.clone()),
            };
            all.push(next);
        }
        Ok(all)
    }

    /// One request, its response read to the end.
    pub async fn send(&mut self, job: &Job<B>) -> Result {
        self.send_with(job, |_| ()).await
    }

    /// The same with other headers.
    pub async fn send_with(&mut self, job: &Job<B>, change: impl FnOnce(&mut HeaderMap)) -> Result {
        let response = match self {
            Raw::Http1(sender) => {
                let mut request = job.request(&job.path)?;
                request.headers_mut().insert(HOST_HEADER, job.host.clone());
                change(request.headers_mut());
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Raw::Http2(sender) => {
                let mut request = job.request(&job.uri)?;
                change(request.headers_mut());
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        job.read(response).await
    }
}

/// A caller over a bare connection.
pub struct RawCaller<B> {
    /// The connection.
    pub sender: Raw<B>,
    /// What is sent.
    pub job: Job<B>,
}

impl<B: Payload> Caller for RawCaller<B> {
    async fn call(&mut self) -> Result {
        self.sender.send(&self.job).await
    }
}

/// hyper-util's pooled client.
pub type Pooled<B> = legacy::Client<legacy::connect::HttpConnector, B>;

/// A pooled client.
pub fn pooled<B: Payload>(version: Version) -> Pooled<B> {
    let mut connector = legacy::connect::HttpConnector::new();
    connector.set_nodelay(true);
    legacy::Client::builder(TokioExecutor::new()).http2_only(version == Version::Http2).build(connector)
}

/// One request through a pooled client.
pub async fn send_pooled<B: Payload>(client: &Pooled<B>, job: &Job<B>) -> Result {
    job.read(client.request(job.request(&job.uri)?).await?).await
}

/// A mesh that knows one service under [`HOST`].
pub fn mesh(addresses: impl IntoIterator<Item = SocketAddr>) -> Result<Mesh> {
    Ok(Mesh::builder().source(Fixed::new().service(HOST, addresses)).start()?)
}

/// The same, with what production has: an observer, three filters that let every request go on, and a retry policy.
pub fn armed_mesh(addresses: impl IntoIterator<Item = SocketAddr>) -> Result<Mesh> {
    let filter = |name: &str| NamedFilter::new(name, FilterConfig::Custom("pass".into(), "{}".into()));
    let source = Fixed::new().service(HOST, addresses).routes(HOST, vec![armed()]);
    let source = source.filters(HOST, ["one", "two", "three"].map(filter).into());
    let factory: FilterFactory = Arc::new(|_, _| Ok(Arc::new(Pass)));
    Ok(Mesh::builder().source(source).filter("pass", factory).observer(Count::default()).start()?)
}

/// A route that tries again.
fn armed() -> Route {
    let mut retry = RetryPolicy::default();
    retry.retries = 3;
    let mut forward = Forward::to(HOST);
    forward.retry = Some(Arc::new(retry));
    let mut route = route_to(HOST);
    route.action = RouteAction::Forward(forward);
    route
}

/// How many routes the service of [`routed_mesh`] has.
pub const ROUTES: usize = 100;

/// A mesh that knows one service under [`HOST`] as production has it: by many routes, each with a query to match, changes of
/// headers, a policy on pages of other origins and retries; with outlier detection and limits. The last route is for
/// [`Job::routed`].
pub fn routed_mesh(addresses: impl IntoIterator<Item = SocketAddr>) -> Result<Mesh> {
    let mut cluster = Cluster::new(HOST, ClusterKind::Static(Endpoints::fixed(addresses)));
    cluster.protocol = ClusterProtocol::AsCaller;
    cluster.outlier_detection = Some(OutlierDetection::default());
    cluster.circuit_breakers.max_requests = 1024;
    let source = Fixed::new().routes(HOST, (0..ROUTES).map(routed).collect()).cluster(cluster);
    let cors = NamedFilter::new(CORS, FilterConfig::Cors(Arc::default()));
    Ok(Mesh::builder().source(source.filters(HOST, vec![cors])).start()?)
}

const TENANT: &str = "x-tenant";
const CORS: &str = "envoy.filters.http.cors";

fn routed(position: usize) -> Route {
    let exact = |value: String| StringTest::Exact { value, ignore_case: false };
    let set = |name: &'static str, value: &'static str| {
        HeaderChange::Set(HeaderName::from_static(name), HeaderValue::from_static(value).into())
    };
    let mut route = armed();
    let path = if position + 1 == ROUTES { "/".to_owned() } else { format!("/r{position}/") };
    route.matches.path = PathTest::Prefix { value: path, ignore_case: false };
    route.matches.query.push(QueryTest::new("tenant", Some(exact(format!("t{position}")))));
    route.mutations.request = vec![set(TENANT, "one"), HeaderChange::Remove(HeaderName::from_static("x-internal"))];
    route.mutations.response =
        vec![set("x-served-by", "mesh"), HeaderChange::Remove(HeaderName::from_static("x-debug"))];
    let policy = CorsPolicy::for_origins(vec![exact("https://shop.example".to_owned())]);
    route.filters.insert(CORS.into(), FilterConfig::Cors(Arc::new(policy)));
    route
}

/// Sets the header that the routes of [`routed_mesh`] set.
pub fn ask(headers: &mut HeaderMap) {
    headers.insert(const { HeaderName::from_static(TENANT) }, const { HeaderValue::from_static("one") });
}

/// A mesh that knows one service under [`HOST`], and records traces: of requests like those that are measured, none.
pub fn traced_mesh(addresses: impl IntoIterator<Item = SocketAddr>) -> Result<Mesh> {
    Ok(Mesh::builder().source(Fixed::new().service(HOST, addresses)).traces(Unsampled).start()?)
}

/// The same, which counts requests, too, and serves its admin port: to be called on a runtime.
pub fn observed_mesh(addresses: impl IntoIterator<Item = SocketAddr>) -> Result<Mesh> {
    observed(Mesh::builder().source(Fixed::new().service(HOST, addresses)))
}

/// A mesh that tells all that it can of itself.
pub fn observed(builder: MeshBuilder) -> Result<Mesh> {
    let mesh = builder.traces(Unsampled).metrics().start()?;
    mesh.serve_admin(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    Ok(mesh)
}

/// Tells of a trace that is not recorded, as a client of the mesh would that records some.
pub fn tell(headers: &mut HeaderMap) {
    static TRACING: LazyLock<Tracing> = LazyLock::new(|| Unsampled.tracing());
    let mut trace = Trace::default();
    trace.begin(&TRACING, headers, &mut fastrand::Rng::new());
    trace.tell(None, Tables::Kept, headers);
}

/// Takes spans, and samples nothing by itself.
#[derive(Debug)]
pub struct Unsampled;

impl SpanSink for Unsampled {
    fn take(&self, _: Span) {}

    fn tracing(&self) -> Tracing {
        let mut tracing = Tracing::default();
        tracing.random = Fraction::default();
        tracing
    }
}

/// A filter that lets every request go on.
#[derive(Debug)]
struct Pass;

impl Filter for Pass {
    fn on_request(&self, _: &mut RequestInfo, _: &mut Parts) -> Decision {
        Decision::Continue
    }
}

/// An observer that counts what failed.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Observer for Count {
    fn on_end(&self, request: &RequestInfo) {
        if request.error().is_some() || !request.is_complete() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One request through the mesh.
pub async fn send_mesh<B: Payload>(client: &Client, version: Version, job: &Job<B>) -> Result {
    let mut request = job.request(&job.uri)?;
    *request.version_mut() = match version {
        Version::Http1 => http::Version::HTTP_11,
        Version::Http2 => http::Version::HTTP_2,
    };
    job.read(client.request(request).await?).await
}

/// tonic's codec over hyper's bare connection.
#[derive(Clone)]
pub struct RawGrpc {
    sender: http2::SendRequest<GrpcBody>,
    change: fn(&mut HeaderMap),
}

impl RawGrpc {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        RawGrpc::connect_with(address, |_| ()).await
    }

    /// The same, to send other headers.
    pub async fn connect_with(address: SocketAddr, change: fn(&mut HeaderMap)) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(RawGrpc { sender, change })
    }
}

impl Service<Request<GrpcBody>> for RawGrpc {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<GrpcBody>) -> Self::Future {
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = Some(http::uri::Authority::from_static(HOST));
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        (self.change)(request.headers_mut());
        Box::pin(self.sender.send_request(request))
    }
}
