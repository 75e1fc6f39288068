//! The server: a listener that serves as the configuration allows, and a layer that routes what comes in.
//!
//! A request's walk is these files in order: `accept` (may this connection be served; `tcp` where nobody looks into it), `layer` (the service around the
//! application's), `request` (which route, which filters, or an answer of the mesh), the application's own service,
//! `response` (the way back). Beside them are `serve` (a server loop on hyper), its `limits`, `monitor` (what each
//! connection is doing), `protocol` (what it speaks), `peers` (what those of one client add up to), and `unseen` (answers that
//! went past the layer).

mod accept;
mod asked;
mod authorizer;
mod calls;
mod carry;
mod check;
mod early;
mod handshake;
mod layer;
mod limits;
mod load;
mod monitor;
mod observe;
mod peers;
mod protocol;
mod proxied;
mod request;
mod request_body;
mod response;
mod response_future;
mod serve;
mod stalled;
mod tcp;
mod trailers;
mod unseen;
mod untold;

use std::io;

use mesh_core::error::{ErrorKind, MeshError};

use crate::drain::Phase;
use crate::health::HealthWatch;
use crate::mesh::Mesh;
use crate::server::handshake::Carries;

pub use crate::connection::{ClientAddress, ConnectionInfo, TlsInfo};
pub use accept::{Incoming, MeshIo, MeshListener};
pub use authorizer::{Allow, AuthorizationRequest, Authorizer, AuthorizerError, Decision, Deny, ShownBody};
pub use carry::Carry;
pub use layer::{ServerLayer, ServerService};
pub use limits::Limits;
pub use load::{LoadBody, LoadFuture, LoadService, ReportLoad};
pub use request_body::RequestBody;
pub use response::ServerBody;
pub use response_future::ResponseFuture;
pub use serve::{ReadableBodies, Serve, serve};
pub use tcp::MeshTcpListener;

impl Mesh {
    /// Binds a listener, and asks the configuration whether and how to serve there. The control plane may take
    /// it as a registration: this process then is an endpoint, until the drain begins or the listener is
    /// dropped.
    ///
    /// Returns at once. Connections wait until the configuration is known; nothing is served without.
    /// [`Mesh::serving`] tells when that is, or why it is not.
    ///
    /// # Errors
    /// As for any socket; also if the source of configuration has no name for the address, or the mesh is
    /// draining.
    ///
    /// ```
    /// use http_body_util::BodyExt;
    /// use mesh_core::fixed::Fixed;
    /// use mesh_tower::{Mesh, server};
    /// use tower_layer::Layer;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mesh = Mesh::builder().source(Fixed::new()).start()?;
    /// let listener = mesh.bind("127.0.0.1:0").await?;
    /// let source = Fixed::new().service("hello:80", [listener.local_addr()]);
    /// let hello = tower::service_fn(|_| async { Ok::<_, std::io::Error>(http::Response::new("hello".to_owned())) });
    /// let app = mesh.server_layer().layer(hello);
    /// let serving = tokio::spawn(server::serve(listener, app).into_future());
    ///
    /// let client = Mesh::builder().source(source).start()?.client();
    /// let response = client.get("http://hello:80/").await?;
    /// assert_eq!(response.into_body().collect().await?.to_bytes(), "hello");
    /// mesh.drain().begin().await;
    /// serving.await??;
    /// # Ok(()) }
    /// ```
    pub async fn bind(&self, address: impl tokio::net::ToSocketAddrs) -> io::Result<MeshListener> {
        MeshListener::bind(self, address, Carries::Http).await
    }

    /// Binds a listener for connections that are not HTTP. What the mesh's configuration says of the server holds for them as far
    /// as it is about connections: mutual TLS as `PeerAuthentication` wants it, and policies on who the client is, from where it
    /// connects and to which port. A condition on requests cannot be met: an ALLOW that has one is for no connection, a DENY for
    /// all that its other conditions are for, and a CUSTOM refuses them. A connection ends when the configuration does not let
    /// it in any more.
    ///
    /// In plaintext next to TLS (PERMISSIVE), the client has to send the first byte: it tells which one it speaks.
    ///
    /// # Errors
    /// As [`Mesh::bind`].
    ///
    /// ```
    /// use mesh_core::fixed::Fixed;
    /// use mesh_tower::Mesh;
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mesh = Mesh::builder().source(Fixed::new()).start()?;
    /// let mut listener = mesh.bind_tcp("127.0.0.1:0").await?;
    /// let address = listener.local_addr();
    /// tokio::spawn(async move {
    ///     while let Some((mut io, _peer)) = listener.accept().await {
    ///         tokio::spawn(async move {
    ///             let (mut reader, mut writer) = tokio::io::split(&mut io);
    ///             tokio::io::copy(&mut reader, &mut writer).await
    ///         });
    ///     }
    /// });
    ///
    /// let client = Mesh::builder().source(Fixed::new().service("echo:7", [address])).start()?;
    /// let mut stream = client.connect("echo", 7).await?;
    /// stream.write_all(b"hello").await?;
    /// let mut answer = [0; 5];
    /// stream.read_exact(&mut answer).await?;
    /// assert_eq!(&answer, b"hello");
    /// # Ok(()) }
    /// ```
    pub async fn bind_tcp(&self, address: impl tokio::net::ToSocketAddrs) -> io::Result<MeshTcpListener> {
        MeshTcpListener::bind(self, address).await
    }

    /// The layer for a service behind this mesh's listener: it routes by the listener's current configuration,
    /// passes filters, changes headers, and answers what has no route, and with 400 what has no valid `Host` or target
    /// (RFC 9112, 3.2); HTTP/1.0 without a `Host` goes to the default virtual host. It adds `connection: close` while the
    /// mesh drains.
    ///
    /// Policies, tokens, limits and filters are enforced here and nowhere else, so it has to be around every route. In axum
    /// `.layer(mesh.server_layer())` is for the routes that were added before it, so that it comes last:
    ///
    /// ```text
    /// Router::new().route("/", get(home)).route("/admin", get(admin)).layer(mesh.server_layer())
    /// ```
    ///
    /// Where there is no layer at all, and the configuration of a listener has any of them, no answer leaves: its connection is closed,
    /// the log has an error, and [`Mesh::health`] is [`NotServing`](crate::health::Health::NotServing). A route beside the layer is
    /// answered, and nothing guards it: it may be meant, for health checks and the like. The log has an error then, at most every 10 s;
    /// a warning, once, where the configuration has nothing to enforce.
    ///
    /// [`serve`] knows of each request whether it came through. Of other servers the bytes are looked at: there are to be no more
    /// answers on a connection than requests that the layer saw. Not seen are those of HTTP/1.1 that were asked for before the
    /// one before was answered, those of HTTP/2 without a body, and any, once the layer saw a request whose connection it cannot
    /// tell (see below).
    ///
    /// Where several listeners are bound, it finds a request's by the connection: under [`serve`] and with
    /// `mesh-tonic` that is known; with `axum::serve`, use
    /// `into_make_service_with_connect_info::<ConnectionInfo>()`, or [`MeshListener::layer`].
    ///
    /// ```
    /// use mesh_core::fixed::Fixed;
    /// use mesh_tower::Mesh;
    /// use tower::{ServiceExt, service_fn};
    /// use tower_layer::Layer;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mesh = Mesh::builder().source(Fixed::new()).start()?;
    /// let listener = mesh.bind("127.0.0.1:0").await?;
    /// mesh.serving().await?;
    /// let hello = service_fn(|_| async { Ok::<_, std::io::Error>(http::Response::new("hello".to_owned())) });
    /// let service = mesh.server_layer().layer(hello);
    /// let response = service.oneshot(http::Request::get("/").header("host", "hello").body(())?).await?;
    /// assert_eq!(response.status(), 200);
    /// # Ok(()) }
    /// ```
    pub fn server_layer(&self) -> ServerLayer {
        ServerLayer::of(self, None)
    }

    /// Waits until every listener that is bound now may serve.
    ///
    /// # Errors
    /// [`ErrorKind::Draining`] when the drain begins; [`ErrorKind::NoListener`] when nothing is bound; after
    /// [`Mesh::cold_start_wait`], [`ErrorKind::NotServing`] with the reason when the configuration still says no, and
    /// [`ErrorKind::NotServingYet`] when it says nothing. They may serve later: they go on asking.
    pub async fn serving(&self) -> Result<(), MeshError> {
        let bound = self.listeners().load().to_vec();
        if bound.is_empty() {
            return Err(MeshError::new(ErrorKind::NoListener, "no listener of this mesh is bound"));
        }
        let deadline = tokio::time::Instant::now() + self.cold_start_wait();
        for listener in bound {
            accept::serving(&listener, self, deadline).await?;
        }
        Ok(())
    }

    /// Whether this process wants requests.
    pub fn health(&self) -> HealthWatch {
        HealthWatch::new(self.listeners().health(), self.drain())
    }

    /// Ready when the drain has come so far that nobody connects any more, and connections are to end with their
    /// last request: the shutdown signal for a server. Pending for ever without a drain.
    pub fn drained(&self) -> impl Future<Output = ()> + Send + use<> {
        let drain = self.drain().clone();
        async move { drain.reached(Phase::Closed).await }
    }

    /// Begins the drain on SIGTERM or SIGINT; see [`crate::drain::Drain::begin_on_signals`]. The process ends when `main` does:
    /// await [`serve`], or hand [`Mesh::drained`] to another server as its shutdown signal. Without either, it stays.
    ///
    /// ```no_run
    /// use mesh_tower::Mesh;
    ///
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let mesh = Mesh::from_env()?;
    /// mesh.drain_on_signals()?;
    /// // A process without a server of its own, such as one that reads a queue.
    /// mesh.drained().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// If the signals cannot be had.
    pub fn drain_on_signals(&self) -> io::Result<()> {
        self.drain().begin_on_signals()
    }
}
