//! A tonic server behind the mesh: its connections from the mesh's listener, its requests through the mesh's
//! layers, its end with the mesh's drain.

use std::error::Error;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use http::{Extensions, Request, Response};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_tower::Mesh;
use mesh_tower::server::{ConnectionInfo, Incoming, MeshIo, MeshListener, ServerLayer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::server::{Connected, Router, TcpConnectInfo};
use tower_layer::{Layer, Stack};
use tower_service::Service;

use crate::deadline::DeadlineLayer;

/// How long calls may take once nobody connects any more: with the lame-duck time, a little less than the 30 s
/// that Kubernetes grants.
const DEADLINE: Duration = Duration::from_secs(25);

/// What [`server_layer`] is: the deadline around the mesh's routing.
pub type GrpcLayer = Stack<ServerLayer, DeadlineLayer>;

/// The layer of a tonic server: the mesh's own ([`Mesh::server_layer`]), under the deadlines that callers set.
///
/// ```
/// use mesh_core::fixed::Fixed;
/// use mesh_tower::Mesh;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mesh = Mesh::builder().source(Fixed::new()).start()?;
/// let health = mesh_tonic::health::HealthService::new(&mesh).into_server();
/// let server = tonic::transport::Server::builder().layer(mesh_tonic::server_layer(&mesh)).add_service(health);
/// let listener = mesh.bind("127.0.0.1:0").await?;
/// # let draining = mesh.clone();
/// # tokio::spawn(async move { draining.drain().begin().await });
/// mesh_tonic::serve(listener, server).await?;
/// # Ok(()) }
/// ```
pub fn server_layer(mesh: &Mesh) -> GrpcLayer {
    layer_of(mesh.server_layer())
}

/// The same of a layer of [`Mesh::server_layer`] that was given more, such as an
/// [`authorizer`](mesh_tower::server::ServerLayer::authorizer).
pub fn layer_of(layer: ServerLayer) -> GrpcLayer {
    Stack::new(layer.connection_by(connection_of).bodies_by::<Body>(Body::new), DeadlineLayer)
}

fn connection_of(extensions: &Extensions) -> Option<Arc<ConnectionInfo>> {
    if let Some(connection) = extensions.get::<Arc<ConnectionInfo>>() {
        return Some(Arc::clone(connection));
    }
    let ends = extensions.get::<TcpConnectInfo>()?;
    Some(Arc::new(ConnectionInfo::new(ends.local_addr()?, ends.remote_addr()?)))
}

/// Serves a tonic router on a listener of the mesh until the mesh has drained and every call has ended, but no
/// longer than 25 s after nobody could connect any more.
///
/// Limits are tonic's, as set at its `Server`, but for how many connections a client may have, which the listener says
/// ([`MeshListener::max_connections_per_client`]). For the mesh's own, give `tonic::service::Routes` under
/// [`server_layer`] to [`mesh_tower::server::serve`], which also cuts what outlasts the deadline; authorizers are shown
/// bodies there with [`mesh_tower::server::Serve::readable_bodies`].
///
/// # Errors
/// [`ErrorKind::Draining`] if calls outlasted the deadline, which go on until the runtime ends;
/// [`ErrorKind::NotServing`] if tonic cannot serve.
pub async fn serve<L, R>(listener: MeshListener, router: Router<L>) -> Result<(), MeshError>
where
    L: Layer<Routes>,
    L::Service: Service<Request<Body>, Response = Response<R>> + Clone + Send + 'static,
    <L::Service as Service<Request<Body>>>::Future: Send,
    <L::Service as Service<Request<Body>>>::Error: Into<Box<dyn Error + Send + Sync>> + Send,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let name = listener.name().clone();
    let (drained, closed) = (listener.mesh().drained(), listener.mesh().drained());
    let serving = router.serve_with_incoming_shutdown(incoming(listener), drained);
    let ended = tokio::select! {
        ended = serving => {
            ended.map_err(|error| MeshError::new(ErrorKind::NotServing, "tonic cannot serve").caused_by(error))
        }
        () = async { closed.await; tokio::time::sleep(DEADLINE).await } => {
            Err(MeshError::new(ErrorKind::Draining, format!("calls did not end within {DEADLINE:?}")))
        }
    };
    ended.map_err(|error| error.within(format_args!("listener {name}")))
}

/// The connections of a listener, for any of tonic's `serve_with_incoming` methods. The stream ends with the
/// drain.
///
/// ```
/// use mesh_core::fixed::Fixed;
/// use mesh_tower::Mesh;
/// use tonic::transport::Server;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mesh = Mesh::builder().source(Fixed::new()).start()?;
/// let incoming = mesh_tonic::server::incoming(mesh.bind("127.0.0.1:0").await?);
/// let health = mesh_tonic::health::HealthService::new(&mesh).into_server();
/// # let draining = mesh.clone();
/// # tokio::spawn(async move { draining.drain().begin().await });
/// Server::builder().add_service(health).serve_with_incoming_shutdown(incoming, mesh.drained()).await?;
/// # Ok(()) }
/// ```
pub fn incoming(listener: MeshListener) -> GrpcIncoming {
    GrpcIncoming { incoming: listener.incoming() }
}

/// Connections as tonic wants them: see [`incoming`].
#[derive(Debug)]
pub struct GrpcIncoming {
    incoming: Incoming,
}

impl Stream for GrpcIncoming {
    type Item = io::Result<GrpcIo>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<GrpcIo>>> {
        let io = ready!(Pin::new(&mut self.incoming).poll_next(cx));
        Poll::Ready(io.map(|io| io.map(GrpcIo)))
    }
}

/// A connection that the mesh let in. Requests find what is known of it (`Arc<ConnectionInfo>`) in their extensions, and
/// below [`server_layer`] their peer's address where tonic looks for it.
#[derive(Debug)]
pub struct GrpcIo(MeshIo);

impl Connected for GrpcIo {
    type ConnectInfo = Arc<ConnectionInfo>;

    fn connect_info(&self) -> Arc<ConnectionInfo> {
        Arc::clone(self.0.connection())
    }
}

impl AsyncRead for GrpcIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for GrpcIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
