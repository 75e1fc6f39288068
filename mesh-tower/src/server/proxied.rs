//! Connections that begin with a header of the PROXY protocol: until it is read, nobody knows whose they are.
//!
//! It is read past no byte of what comes after it, which may be TLS's. A connection without one is closed: whoever reaches the
//! listener past its load balancer must not be taken for the load balancer.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::id::ListenerName;
use mesh_core::proxy_protocol::{Parsed, parse};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::listeners::Listeners;

/// How long a header may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many connections may be without theirs at a time. The others wait where they are, in the backlog of the socket.
const MOST: usize = 1024;
/// How much is looked at in one go: most headers are shorter.
const LOOK: usize = 256;

/// A connection whose header was read.
#[derive(Debug)]
pub(super) struct Proxied {
    pub(super) stream: TcpStream,
    /// Who the client is.
    pub(super) client: SocketAddr,
    /// Who has connected.
    pub(super) direct: SocketAddr,
}

/// Connections whose headers are being read.
#[derive(Debug, Default)]
pub(super) struct Headers(JoinSet<Option<Proxied>>);

impl Headers {
    /// Whether another one has to wait.
    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= MOST
    }

    /// Reads the header of one more. Where there is none, it is noted by these.
    pub(super) fn read(
        &mut self,
        mut stream: TcpStream,
        direct: SocketAddr,
        listener: &ListenerName,
        listeners: Arc<Listeners>,
    ) {
        let listener = listener.clone();
        self.0.spawn(async move {
            let read = tokio::time::timeout(PATIENCE, header(&mut stream)).await.unwrap_or_else(|_| Err(late()));
            match read {
                Ok(client) => Some(Proxied { stream, client: client.unwrap_or(direct), direct }),
                // Who comes and goes may be somebody's check of health.
                Err(reason) if !matches!(reason.kind(), io::ErrorKind::InvalidData | io::ErrorKind::TimedOut) => {
                    tracing::debug!(%listener, peer = %direct, %reason, "connection refused");
                    None
                }
                Err(reason) => {
                    listeners.note_unproxied(&listener, direct, &reason);
                    None
                }
            }
        });
    }

    /// The next one whose header was read. `None` where there is none to wait for. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Proxied> {
        loop {
            if let Ok(Some(proxied)) = self.0.join_next().await? {
                return Some(proxied);
            }
        }
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no header of the PROXY protocol in time")
}

/// Who the client is, where the header says so.
async fn header(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut read = Vec::new();
    loop {
        let mut seen = [0; LOOK];
        let count = stream.peek(&mut seen).await?;
        let seen = seen.get_mut(..count).unwrap_or_default();
        if seen.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let before = read.len();
        read.extend_from_slice(seen);
        match parse(&read).map_err(|invalid| io::Error::new(io::ErrorKind::InvalidData, invalid))? {
            Parsed::Header { length, client } => {
                // No more of it is taken than is the header's.
                let own = seen.get_mut(..length.saturating_sub(before)).unwrap_or_default();
                stream.read_exact(own).await?;
                return Ok(client);
            }
            _ => _ = stream.read_exact(seen).await?,
        }
    }
}
