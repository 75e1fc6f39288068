//! How a connection to a management server is made.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::tls::{Credentials, MaterialReader};
use crate::xds::bootstrap::{ChannelCredentials, Server};
use crate::xds::place::Place;
use crate::xds::tls::{self, Io};

type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>>;

/// How connections to management servers are made. TCP (and Unix sockets) by default, over TLS where the bootstrap's
/// credentials say so; a test, or an application that has the control plane in its own process, hands in a pipe
/// instead. Whoever does sees to its security: nothing is put around it.
#[derive(Clone, Default)]
pub struct Connector(Way);

#[derive(Clone)]
enum Way {
    Sockets(Arc<MaterialReader>),
    Custom(Arc<dyn Fn(&Server) -> Connecting + Send + Sync>),
}

impl Connector {
    /// A connector that asks `connect` for every connection.
    ///
    /// ```
    /// use mesh_core::xds::Connector;
    ///
    /// let connector = Connector::new(|_server| async {
    ///     let (client, _server_side) = tokio::io::duplex(1 << 16);
    ///     Ok(client)
    /// });
    /// ```
    pub fn new<F, C, S>(connect: F) -> Self
    where
        F: Fn(&Server) -> C + Send + Sync + 'static,
        C: Future<Output = io::Result<S>> + Send + 'static,
        S: Io + 'static,
    {
        Connector(Way::Custom(Arc::new(move |server| {
            let connecting = connect(server);
            Box::pin(async move { Ok(Box::new(connecting.await?) as Box<dyn Io>) })
        })))
    }

    /// Whether its connections can show who the workload is.
    pub(crate) fn shows_certificates(&self) -> bool {
        matches!(self.0, Way::Sockets(_))
    }

    /// Makes a connection. With the workload's certificate it is mutual TLS, whatever the bootstrap says of the server.
    pub(crate) async fn connect(&self, server: &Server, workload: Option<Arc<Credentials>>) -> io::Result<Box<dyn Io>> {
        let reader = match &self.0 {
            Way::Sockets(reader) => reader,
            Way::Custom(connect) => return connect(server).await,
        };
        let place = Place::parse(&server.uri).map_err(|invalid| io::Error::other(invalid.to_string()))?;
        let host = place.host().to_owned();
        let io = dial(place).await?;
        match (&server.credentials, workload) {
            (ChannelCredentials::Insecure, None) => Ok(io),
            (ChannelCredentials::Insecure, Some(workload)) => tls::of_the_mesh(&workload, io).await,
            (ChannelCredentials::Tls(files), workload) => tls::by_files(reader, files, &host, io, workload).await,
        }
    }
}

impl Default for Way {
    fn default() -> Self {
        Way::Sockets(Arc::default())
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

async fn dial(place: Place) -> io::Result<Box<dyn Io>> {
    match place {
        Place::Host(authority) => {
            let stream = tokio::net::TcpStream::connect(authority).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        #[cfg(unix)]
        Place::Unix(path) => Ok(Box::new(tokio::net::UnixStream::connect(path).await?)),
        #[cfg(not(unix))]
        Place::Unix(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "no Unix sockets on this system")),
    }
}

/// A byte stream that tells when the first byte arrived: an HTTP/2 server speaks first (its SETTINGS), so until
/// then nobody has accepted the connection but the kernel. A TLS server may refuse the client's certificate only then.
pub(crate) struct Watched {
    io: Box<dyn Io>,
    heard: Arc<Heard>,
}

/// Whether the peer of a [`Watched`] stream has said anything.
#[derive(Default)]
pub(crate) struct Heard {
    /// Set once: by the first byte, or by what came in its place.
    first: OnceLock<Result<(), String>>,
    notify: Notify,
}

impl Heard {
    /// Waits for the first byte.
    pub(crate) async fn wait(&self) -> Result<(), String> {
        loop {
            let mut notified = std::pin::pin!(self.notify.notified());
            notified.as_mut().enable();
            if let Some(first) = self.first.get() {
                return first.clone();
            }
            notified.await;
        }
    }

    fn set(&self, first: Result<(), String>) {
        if self.first.set(first).is_ok() {
            self.notify.notify_waiters();
        }
    }
}

impl Watched {
    pub(crate) fn new(io: Box<dyn Io>) -> (Self, Arc<Heard>) {
        let heard = Arc::new(Heard::default());
        (Watched { io, heard: Arc::clone(&heard) }, heard)
    }
}

/// Whoever waits for the first byte waits in vain from now on.
impl Drop for Watched {
    fn drop(&mut self) {
        self.heard.set(Err("the connection broke off before a word of HTTP/2".into()));
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        if self.heard.first.get().is_none() {
            match &polled {
                Poll::Pending => {}
                Poll::Ready(Ok(())) if buffer.filled().len() > before => self.heard.set(Ok(())),
                Poll::Ready(Ok(())) if room == 0 => {}
                Poll::Ready(Ok(())) => self.heard.set(Err("the connection was closed before a word of HTTP/2".into())),
                Poll::Ready(Err(error)) => self.heard.set(Err(error.to_string())),
            }
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(context, bytes);
        if let Poll::Ready(Err(error)) = &polled {
            self.heard.set(Err(error.to_string()));
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
