//! A connection for bytes that are not HTTP: chosen, balanced and secured as those of a [connector](super::Connector).

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Request;
use hyper_util::rt::TokioIo;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::request_info::Direction;
use mesh_core::store::TargetEntry;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connector::{Bytes, ConnectorStream};
use crate::access_log::ConnectionLog;
use crate::mesh::Mesh;
use crate::telemetry::TcpCount;

/// A connection of [`Mesh::connect`].
///
/// Nobody knows where a pause in its bytes is. So where a change of the configuration leads new connections elsewhere, it goes on
/// for 45 s, as with Envoy, and is closed at the first pause after a word of the server then; without routes of connections it goes
/// on as long as both sides want. Where its bytes must not travel as they do any more (TLS is asked for by now, or nobody trusted vouches
/// for the server), every use of it is an error.
pub struct MeshStream {
    stream: TokioIo<ConnectorStream>,
    /// Where its bytes are counted.
    count: Option<TcpCount>,
    /// Its line of the access log.
    log: Option<Box<ConnectionLog>>,
}

impl Mesh {
    /// Connects to an endpoint of a service, for bytes that are not HTTP: balanced, within its cluster's connect timeout, and by
    /// mutual TLS where its server speaks it, in plaintext never in its place. It follows the routes of connections (`tcp` of a
    /// VirtualService), or where the service has none, the route of `GET /`; it counts as in flight as long as it is open.
    ///
    /// Rules by the name of a server (`tls`) are for [`Mesh::connect_by_name`]: nobody looks into bytes for it, since a
    /// connection would have to be chosen before there are any.
    ///
    /// # Errors
    /// As for a request: nothing describes the service, no endpoint takes a connection, or it cannot be secured. `NoRoute` where
    /// all of its rules are for names of servers.
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
        self.connect_for(host, port, Bytes::Unknown).await
    }

    /// The same, for TLS that the application speaks over the connection itself: by which name it will ask for the server (SNI).
    /// That name finds the rule of `tls` in a VirtualService, exactly or by the longest wildcard.
    ///
    /// # Errors
    /// As [`Mesh::connect`]; `NoRoute` where there are rules, and none is for the name.
    ///
    /// ```no_run
    /// # async fn example(mesh: mesh_tower::Mesh) -> Result<(), Box<dyn std::error::Error>> {
    /// let stream = mesh.connect_by_name("db.shop", 5432, "replica.db.shop").await?;
    /// # Ok(()) }
    /// ```
    pub async fn connect_by_name(&self, host: &str, port: u16, server_name: &str) -> Result<MeshStream, MeshError> {
        self.connect_for(host, port, Bytes::OfTls(Some(server_name.to_owned()))).await
    }

    /// The same, for bytes of somebody else, who has named a host and nothing more, as a proxy is asked by CONNECT: by the rules for
    /// any bytes (`tcp`), or where none is for them, by the rules of `tls` for the host as the name of its server.
    ///
    /// # Errors
    /// As [`Mesh::connect`]; `NoRoute` where there are rules, and none is for either.
    ///
    /// ```no_run
    /// # async fn example(mesh: mesh_tower::Mesh) -> Result<(), Box<dyn std::error::Error>> {
    /// let stream = mesh.connect_by_host("bank.example.com", 443).await?;
    /// # Ok(()) }
    /// ```
    pub async fn connect_by_host(&self, host: &str, port: u16) -> Result<MeshStream, MeshError> {
        self.connect_for(host, port, Bytes::ForHost(host.to_owned())).await
    }

    async fn connect_for(&self, host: &str, port: u16, bytes: Bytes) -> Result<MeshStream, MeshError> {
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
        let uri = format!("http://{host}:{port}/").parse();
        let uri = uri.map_err(|error: http::uri::InvalidUri| {
            MeshError::new(ErrorKind::BadRequest, format!("{host:?} is not a host")).caused_by(error)
        })?;
        let mut log = self.connection_log(Direction::Outbound);
        let opened = self.connector().open(uri, bytes, &mut log.info).await;
        log.opened(&opened);
        Ok(self.counted(opened?, Some(Box::new(log))))
    }

    /// Connects for a connection that came to a gateway, to where its listener's chain says. The line of that one says where.
    pub(crate) async fn connect_onward(
        &self,
        entry: Arc<TargetEntry>,
        log: &mut ConnectionLog,
    ) -> Result<MeshStream, MeshError> {
        // It names nothing: the chain has one route, and that is for everything.
        let (head, ()) = Request::get("http://gateway/").body(()).expect("it is a valid request").into_parts();
        let opened = self.connector().open_to(entry, head, Bytes::Unknown, &mut log.info).await;
        log.opened(&opened);
        Ok(self.counted(opened?, None))
    }

    fn counted(&self, stream: ConnectorStream, log: Option<Box<ConnectionLog>>) -> MeshStream {
        let count =
            self.telemetry().map(|telemetry| telemetry.connection(&stream.both_ends(), stream.metric_rules().as_ref()));
        MeshStream { stream: TokioIo::new(stream.of_bytes()), count, log }
    }
}

impl MeshStream {
    fn note_written(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let Poll::Ready(Ok(bytes)) = written else { return written };
        if let Some(count) = &self.count {
            count.written(bytes);
        }
        if let Some(log) = &mut self.log {
            log.received(bytes);
        }
        written
    }
}

impl AsyncRead for MeshStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = buf.filled().len().saturating_sub(before);
        if let Some(count) = &self.count {
            count.read(read);
        }
        if let Some(log) = &mut self.log {
            log.sent(read);
        }
        polled
    }
}

impl AsyncWrite for MeshStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note_written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note_written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl fmt::Debug for MeshStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MeshStream").field(self.stream.inner()).finish()
    }
}
