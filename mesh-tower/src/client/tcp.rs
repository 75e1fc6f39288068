//! A connection for bytes that are not HTTP: chosen, balanced and secured as those of a [connector](super::Connector).

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use mesh_core::error::{ErrorKind, MeshError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connector::ConnectorStream;
use crate::mesh::Mesh;

/// A connection of [`Mesh::connect`].
///
/// Nobody knows where a pause in its bytes is, so that it goes on where a change of the configuration only leads new
/// connections elsewhere. Where its bytes must not travel as they do any more (TLS is asked for by now, or nobody trusted vouches
/// for the server), every use of it is an error.
pub struct MeshStream(TokioIo<ConnectorStream>);

impl Mesh {
    /// Connects to an endpoint of a service, for bytes that are not HTTP: balanced, within its cluster's connect timeout, and by
    /// mutual TLS where its server speaks it, in plaintext never in its place. It follows the route of `GET /`, and counts as in
    /// flight as long as it is open.
    ///
    /// # Errors
    /// As for a request: nothing describes the service, no endpoint takes a connection, or it cannot be secured.
    ///
    /// ```no_run
    /// use tokio::io::AsyncWriteExt;
    ///
    /// # async fn example(mesh: mesh_tower::Mesh) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut stream = mesh.connect("ledger.shop", 7000).await?;
    /// stream.write_all(b"hello").await?;
    /// # Ok(()) }
    /// ```
    pub async fn connect(&self, host: &str, port: u16) -> Result<MeshStream, MeshError> {
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
        let uri = format!("http://{host}:{port}/").parse();
        let uri = uri.map_err(|error: http::uri::InvalidUri| {
            MeshError::new(ErrorKind::BadRequest, format!("{host:?} is not a host")).caused_by(error)
        })?;
        let stream = self.connector().open(uri).await?;
        Ok(MeshStream(TokioIo::new(stream.of_bytes())))
    }
}

impl AsyncRead for MeshStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for MeshStream {
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

impl fmt::Debug for MeshStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MeshStream").field(self.0.inner()).finish()
    }
}
