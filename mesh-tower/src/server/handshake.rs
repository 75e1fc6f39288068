//! What comes before a connection's first byte of HTTP, where the configuration asks for TLS: a look at whether the client
//! speaks it, the chain that takes it, the handshake.
//!
//! Nothing of a connection that is refused here reaches the application.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::model::ServerTls;
use mesh_core::store::ServerState;
use mesh_core::tls::{Certificates, Peer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ProtocolVersion;
use tokio_rustls::server::TlsStream;

use crate::connection::{ConnectionInfo, TlsInfo};
use crate::io::{Bytes, Io, distrusted};
use crate::listeners::ListenerState;
use crate::server::tcp::lets_in;

/// How long it may take from the client's first byte to the end of the handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// The first byte of a TLS connection: a record that is part of a handshake (RFC 8446, 5.1). No method of HTTP begins so.
const HANDSHAKE_RECORD: u8 = 0x16;

/// What the connections of a listener carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carries {
    /// Requests, each of which policies decide on.
    Http,
    /// What nobody looks into: policies decide on the connection.
    Bytes,
}

/// A connection about which it is not known yet how its bytes travel.
pub(super) struct Handshake {
    pub(super) listener: Arc<ListenerState>,
    pub(super) certificates: Arc<Certificates>,
    pub(super) connection: Arc<ConnectionInfo>,
    pub(super) carries: Carries,
}

impl Handshake {
    /// Lets the connection in, or not. It may not take for ever.
    pub(super) async fn within_time(self, stream: TcpStream) -> io::Result<Io> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no handshake in time");
        let opened = tokio::time::timeout(PATIENCE, self.open(stream)).await.unwrap_or_else(|_| Err(late()));
        if let Err(reason) = &opened {
            tracing::debug!(listener = %self.listener.name(), peer = %self.connection.peer, %reason, "connection refused");
        }
        opened
    }

    async fn open(&self, stream: TcpStream) -> io::Result<Io> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match self.security(first == [HANDSHAKE_RECORD])? {
            false => Ok(plaintext(stream, &self.listener, &self.connection, self.carries)),
            true => {
                let credentials = self.certificates.get().await;
                let stream = TlsAcceptor::from(credentials.server_config()).accept(stream).await?;
                let peer = Peer::client(stream.get_ref().1, &credentials);
                let peer = peer.ok_or_else(|| io::Error::other("the client has not shown who it is"))?;
                self.connection.secured(info(&stream, &peer));
                let forbidden = forbidden(Arc::clone(&self.listener), Arc::clone(&self.connection), self.carries);
                let distrusted = distrusted(peer, Arc::clone(&self.certificates));
                Ok(Io::new(Bytes::Tls(Box::new(stream.into())), async move {
                    tokio::select! {
                        reason = forbidden => reason,
                        reason = distrusted => reason,
                    }
                }))
            }
        }
    }

    /// Whether the connection is to be secured, by what the configuration says now.
    fn security(&self, is_tls: bool) -> io::Result<bool> {
        let refused = |reason: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        let state = self.listener.state();
        let view = match &**state {
            ServerState::Serving(view) => view,
            ServerState::NotServing(reason) => return refused(reason),
            ServerState::Waiting => return refused("no configuration"),
        };
        match view.chain(self.connection.local, self.connection.peer, is_tls) {
            None => refused("no filter chain matches"),
            // The handshake tells who the peer is, so a client that begins one may be let in.
            Some(chain) => match chain.admits(is_tls) {
                Ok(()) => Ok(chain.tls == ServerTls::Mutual),
                Err(reason) => refused(&reason),
            },
        }
    }
}

/// The bytes of a connection in plaintext, for as long as the listener lets it in.
pub(super) fn plaintext(
    stream: TcpStream,
    listener: &Arc<ListenerState>,
    connection: &Arc<ConnectionInfo>,
    carries: Carries,
) -> Io {
    Io::new(Bytes::Plaintext(stream), forbidden(Arc::clone(listener), Arc::clone(connection), carries))
}

/// Waits until the listener would not let a connection in any more, and tells why.
async fn forbidden(listener: Arc<ListenerState>, connection: Arc<ConnectionInfo>, carries: Carries) -> Arc<str> {
    let mut changes = match carries {
        Carries::Http => listener.security_changes(),
        Carries::Bytes => listener.news(),
    };
    loop {
        let allowed = match carries {
            Carries::Http => allows(&listener.state(), &connection),
            Carries::Bytes => lets_in(&listener.state(), &connection),
        };
        if let Err(reason) = allowed {
            return reason;
        }
        // An error would say that the sender is gone, which is `listener`.
        _ = changes.changed().await;
    }
}

/// Whether a connection that was let in may go on. While the server does not serve, its requests are told so.
fn allows(state: &ServerState, connection: &ConnectionInfo) -> Result<(), Arc<str>> {
    let ServerState::Serving(view) = state else { return Ok(()) };
    match view.chain(connection.local, connection.peer, connection.tls().is_some()) {
        Some(chain) => chain.admits(connection.peer_identity().is_some()),
        None => Err("no filter chain matches it any more".into()),
    }
}

fn info(stream: &TlsStream<TcpStream>, peer: &Peer) -> TlsInfo {
    let (_, session) = stream.get_ref();
    TlsInfo {
        identity: Some(peer.id().clone()),
        fingerprint: peer.fingerprint(),
        version: session.protocol_version().map(|version| match version {
            // rustls writes TLSv1_3.
            ProtocolVersion::TLSv1_3 => "TLSv1.3".into(),
            other => format!("{other:?}").into(),
        }),
        alpn: session.alpn_protocol().map(|protocol| String::from_utf8_lossy(protocol).into()),
        sni: session.server_name().map(Arc::from),
    }
}
