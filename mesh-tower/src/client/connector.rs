//! A connector for hyper-util's client: the client keeps its own pool, the mesh chooses where each new
//! connection goes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use http::{Request, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection as Describe};
use hyper_util::rt::TokioIo;
use mesh_core::call::Call;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::ClusterTls;
use mesh_core::request::RequestHead;
use mesh_core::state::InFlight;
use tokio::net::TcpStream;
use tower_service::Service;

use super::{connect, route};
use crate::mesh::Mesh;

/// Connects to an endpoint of the target that a URI names: for `hyper_util::client::legacy::Client` and
/// anything else that takes a connector. The route is found for `GET` and the URI's path; routing by anything
/// else needs the mesh's own client or its layer. A connection counts as in flight as long as it is open.
#[derive(Clone, Debug)]
pub struct Connector {
    mesh: Mesh,
    under_tls: bool,
}

impl Connector {
    /// For a connector that speaks TLS over this one, such as that of `hyper-rustls`: lets `https` pass, which fails with
    /// `Security` otherwise, since nobody would speak TLS.
    pub fn under_tls(mut self) -> Self {
        self.under_tls = true;
        self
    }
}

impl Mesh {
    /// A connector for a client that keeps its own connections.
    pub fn connector(&self) -> Connector {
        Connector { mesh: self.clone(), under_tls: false }
    }
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = MeshError;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, MeshError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), MeshError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(open(self.mesh.clone(), self.under_tls, uri))
    }
}

async fn open(mesh: Mesh, under_tls: bool, uri: Uri) -> Result<Connection, MeshError> {
    if !under_tls {
        route::refuse_tls(&uri)?;
    }
    let mut request = Request::new(());
    *request.uri_mut() = uri;
    let mut call = Call::new(Instant::now(), fastrand::Rng::new());
    let head = RequestHead::of_request(&request)?;
    let view = match route::view(&mesh, None, &head)? {
        Ok(view) => view,
        Err(entry) => route::first_view(&mesh, &entry, &call).await?,
    };
    let routed = view.find(&head, &mut call)?;
    let cluster = routed.cluster.ok_or_else(|| MeshError::new(ErrorKind::NoRoute, "the route has no cluster"))?;
    let pick = cluster.pick(&mut call, || head.authority)?;
    if let ClusterTls::Unusable(reason) = &pick.cluster.tls {
        return Err(MeshError::new(ErrorKind::Security, format!("cluster {}: {reason}", pick.cluster.name)));
    }
    let stream = connect::open(pick.cluster, pick.in_flight.endpoint()).await?;
    Ok(Connection { io: TokioIo::new(stream), _in_flight: pick.in_flight })
}

/// A connection to an endpoint that the mesh chose.
#[derive(Debug)]
pub struct Connection {
    io: TokioIo<TcpStream>,
    _in_flight: InFlight,
}

impl Describe for Connection {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}
