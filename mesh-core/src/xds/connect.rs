//! Where a management server is, and how a connection to it is made.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::error::Invalid;
use crate::xds::bootstrap::Server;

/// A byte stream in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>>;

/// How connections to management servers are made. TCP (and Unix sockets) by default; a test, or an application
/// that has the control plane in its own process, hands in a pipe instead.
#[derive(Clone)]
pub struct Connector(Arc<dyn Fn(&Server) -> Connecting + Send + Sync>);

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
        Connector(Arc::new(move |server| {
            let connecting = connect(server);
            Box::pin(async move { Ok(Box::new(connecting.await?) as Box<dyn Io>) })
        }))
    }

    /// Makes a connection.
    pub(crate) async fn connect(&self, server: &Server) -> io::Result<Box<dyn Io>> {
        (self.0)(server).await
    }
}

impl Default for Connector {
    fn default() -> Self {
        Connector(Arc::new(|server| {
            let place = Place::parse(&server.uri);
            Box::pin(async move { dial(place.map_err(|invalid| io::Error::other(invalid.to_string()))?).await })
        }))
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

/// Where a server is, in gRPC's notation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `host:port`
    Host(String),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Place {
    /// Parses `host:port`, `dns:host:port`, `dns:///host:port`, `ipv4:…`, `ipv6:…`, `passthrough:///…`,
    /// `unix:path` or `unix:///path`.
    pub(crate) fn parse(uri: &str) -> Result<Self, Invalid> {
        if let Some(path) = uri.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path.is_empty() {
                true => Err(Invalid::new(format!("{uri:?}: expected a path"))),
                false => Ok(Place::Unix(path.into())),
            };
        }
        let rest = ["dns:", "ipv4:", "ipv6:", "passthrough:"]
            .into_iter()
            .find_map(|scheme| uri.strip_prefix(scheme))
            .unwrap_or(uri);
        let rest = rest.strip_prefix("///").unwrap_or(rest);
        if let Ok(address) = rest.parse::<SocketAddr>() {
            return Ok(Place::Host(address.to_string()));
        }
        let is_host = |host: &str| {
            !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        };
        match rest.rsplit_once(':') {
            Some((host, port)) if is_host(host) && port.parse::<u16>().is_ok_and(|port| port > 0) => {
                Ok(Place::Host(rest.to_owned()))
            }
            _ => Err(Invalid::new(format!("{uri:?}: expected host:port"))),
        }
    }
}

/// A byte stream that tells when the first byte arrived: an HTTP/2 server speaks first (its SETTINGS), so until
/// then nobody has accepted the connection but the kernel.
pub(crate) struct Watched {
    io: Box<dyn Io>,
    heard: Arc<Heard>,
}

/// Whether the peer of a [`Watched`] stream has said anything.
#[derive(Default)]
pub(crate) struct Heard {
    flag: AtomicBool,
    notify: Notify,
}

impl Heard {
    /// Waits for the first byte.
    pub(crate) async fn wait(&self) {
        let notified = self.notify.notified();
        if !self.flag.load(Ordering::Acquire) {
            notified.await;
        }
    }
}

impl Watched {
    pub(crate) fn new(io: Box<dyn Io>) -> (Self, Arc<Heard>) {
        let heard = Arc::new(Heard::default());
        (Watched { io, heard: Arc::clone(&heard) }, heard)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        if buffer.filled().len() > before && !self.heard.flag.swap(true, Ordering::AcqRel) {
            self.heard.notify.notify_one();
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_grpcs_notation() {
        let host = |host: &str| Some(Place::Host(host.to_owned()));
        for (uri, expected) in [
            ("mesh:15010", host("mesh:15010")),
            ("dns:///mesh.local:15010", host("mesh.local:15010")),
            ("dns:mesh:1", host("mesh:1")),
            ("ipv4:127.0.0.1:1", host("127.0.0.1:1")),
            ("ipv6:[::1]:1", host("[::1]:1")),
            ("[::1]:1", host("[::1]:1")),
            ("unix:a/b", Some(Place::Unix("a/b".into()))),
            ("unix:///a/b", Some(Place::Unix("/a/b".into()))),
            ("", None),
            ("mesh", None),
            ("mesh:", None),
            ("mesh:0", None),
            ("mesh:99999", None),
            (":1", None),
            ("http://mesh:1", None),
            ("unix:", None),
        ] {
            assert_eq!(Place::parse(uri).ok(), expected, "{uri}");
        }
    }
}
