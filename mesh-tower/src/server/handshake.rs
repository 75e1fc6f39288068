//! What comes before a connection's first byte of HTTP, where the configuration asks for TLS: a look at whether the client
//! speaks it, the chain that takes it, the handshake.
//!
//! Nothing of a connection that is refused here reaches the application.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::model::ServerTls;
use mesh_core::store::{Edge, Secured, ServerState, TargetEntry};
use mesh_core::tls::{Certificates, Credentials, EdgeClient, Peer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::server::{Accepted, Acceptor};
use tokio_rustls::rustls::{ProtocolVersion, ServerConfig, ServerConnection};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{StartHandshake, TlsAcceptor};

use crate::connection::{ConnectionInfo, TlsInfo};
use crate::io::{Bytes, Io, distrusted};
use crate::listeners::ListenerState;
use crate::server::tcp::{lets_in, lets_on};

/// How long it may take from the client's first byte to the end of the handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// The first byte of a TLS connection: a record that is part of a handshake (RFC 8446, 5.1). No method of HTTP begins so.
const HANDSHAKE_RECORD: u8 = 0x16;

/// The largest ClientHello that is read. rustls takes no larger one.
const LONGEST_HELLO: usize = 64 << 10;

/// Fatal alerts (RFC 8446, 6.2; RFC 6066, 3), for whom no handshake has begun.
const UNRECOGNIZED_NAME: u8 = 112;
const INTERNAL_ERROR: u8 = 80;

/// What the connections of a listener carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carries {
    /// Requests, each of which policies decide on.
    Http,
    /// What nobody looks into: policies decide on the connection.
    Bytes,
    /// The same, of a connection that a gateway sends on as it is.
    Onward,
}

impl Carries {
    /// The same of one connection, which a gateway may send on as it is.
    fn of(self, onward: Option<&Arc<TargetEntry>>) -> Carries {
        if onward.is_some() { Carries::Onward } else { self }
    }
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

    async fn open(&self, mut stream: TcpStream) -> io::Result<Io> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let is_tls = first == [HANDSHAKE_RECORD];
        let reads_hello = is_tls && reads_names(&self.listener.state());
        let hello = match reads_hello {
            true => Some(Hello::read(&mut stream).await?),
            false => None,
        };
        let way = match self.way(is_tls, hello.as_ref().and_then(Hello::server_name)) {
            Ok(way) => way,
            Err((alert, reason)) => {
                if alert == Some(INTERNAL_ERROR) && is_tls {
                    self.listener.note_refused(self.connection.peer, &reason);
                }
                if let Some(alert) = alert.filter(|_| is_tls) {
                    refuse(&mut stream, alert).await;
                }
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, &*reason));
            }
        };
        match way {
            Way::Plaintext(onward) => {
                if is_tls && onward.is_some() {
                    // Its TLS is somebody else's, and the name is all that is known of it.
                    self.connection.passes_by(hello.as_ref().and_then(Hello::server_name));
                }
                let io = plaintext(stream, &self.listener, &self.connection, self.carries, onward);
                Ok(io.begun_with(hello.map(|hello| hello.bytes).unwrap_or_default()))
            }
            Way::Mutual(onward) => {
                let credentials = self.certificates.get().await;
                let stream = shake_hands(stream, hello, credentials.server_config()).await?;
                self.mutual(stream, &credentials, onward)
            }
            Way::Edge(rules, config, edge, onward) => {
                let stream = shake_hands(stream, hello, config).await?;
                let session = stream.get_ref().1;
                let client = EdgeClient::of(session);
                let known = client.as_ref();
                let (identity, fingerprint) = known.map_or((None, None), |known| (known.id.clone(), known.fingerprint));
                // Who is of a domain of the mesh is vouched for by that domain's authorities, and not by those of a gateway.
                let own = self.certificates.current();
                let identity =
                    identity.filter(|id| own.as_ref().is_some_and(|own| !own.trusts_domain(id.trust_domain())));
                self.connection.secured(TlsInfo { identity, fingerprint, rules: Some(rules), ..info(session) });
                let bytes = Bytes::Tls(Box::new(stream.into()));
                let forbidden = self.forbidden(onward.as_ref());
                let Some(client) = client else { return Ok(Io::new(bytes, forbidden).going_to(onward)) };
                let disowned = disowned(Arc::clone(&self.listener), Arc::clone(&self.connection), client, edge);
                let over = async move {
                    tokio::select! {
                        reason = forbidden => reason,
                        reason = disowned => reason,
                    }
                };
                Ok(Io::new(bytes, over).going_to(onward))
            }
        }
    }

    /// The bytes of a connection whose client has shown that it is of the mesh, for as long as it would be let in again.
    fn mutual(
        &self,
        stream: TlsStream<TcpStream>,
        credentials: &Credentials,
        onward: Option<Arc<TargetEntry>>,
    ) -> io::Result<Io> {
        let session = stream.get_ref().1;
        let peer = Peer::client(session, credentials);
        let peer = peer.ok_or_else(|| io::Error::other("the client has not shown who it is"))?;
        let (identity, fingerprint) = (Some(peer.id().clone()), peer.fingerprint());
        self.connection.secured(TlsInfo { identity, fingerprint, ..info(session) });
        let forbidden = self.forbidden(onward.as_ref());
        let distrusted = distrusted(peer, Arc::clone(&self.certificates));
        let over = async move {
            tokio::select! {
                reason = forbidden => reason,
                reason = distrusted => reason,
            }
        };
        Ok(Io::new(Bytes::Tls(Box::new(stream.into())), over).going_to(onward))
    }

    fn forbidden(&self, onward: Option<&Arc<TargetEntry>>) -> impl Future<Output = Arc<str>> + Send + use<> {
        forbidden(Arc::clone(&self.listener), Arc::clone(&self.connection), self.carries.of(onward))
    }

    /// How the connection is to be secured, by what the configuration says now; or why it is not, with what a client that speaks
    /// TLS is told.
    fn way(&self, is_tls: bool, name: Option<&str>) -> Result<Way, (Option<u8>, Arc<str>)> {
        let refused = |reason: &str| Err((None, Arc::from(reason)));
        let state = self.listener.state();
        let view = match &**state {
            ServerState::Serving(view) => view,
            ServerState::NotServing(reason) => return refused(reason),
            ServerState::Waiting => return refused("no configuration"),
        };
        let chain = view.chain(self.connection.local, self.connection.peer, is_tls, name);
        let chain = chain.ok_or((Some(UNRECOGNIZED_NAME), Arc::from("no filter chain matches")))?;
        // The handshake tells who the peer is, so a client that begins one may be let in.
        let secured = if is_tls { Secured::Willing } else { Secured::Plaintext };
        let onward = chain.onward.clone().filter(|_| chain.is_opaque);
        match (chain.admits(secured), &chain.tls, &chain.edge) {
            (Err(reason), ..) => Err((Some(INTERNAL_ERROR), reason)),
            (Ok(()), ServerTls::Mutual, _) => Ok(Way::Mutual(onward)),
            (Ok(()), ServerTls::Edge(rules), Some(edge)) => match &edge.config {
                Ok(config) => Ok(Way::Edge(Arc::clone(rules), Arc::clone(config), Arc::clone(edge), onward)),
                Err(reason) => Err((Some(INTERNAL_ERROR), Arc::clone(reason))),
            },
            (Ok(()), ..) => Ok(Way::Plaintext(onward)),
        }
    }
}

/// How a connection is secured, and where a gateway sends it on as it is.
enum Way {
    Plaintext(Option<Arc<TargetEntry>>),
    Mutual(Option<Arc<TargetEntry>>),
    Edge(Arc<mesh_core::model::EdgeTls>, Arc<ServerConfig>, Arc<Edge>, Option<Arc<TargetEntry>>),
}

fn reads_names(state: &ServerState) -> bool {
    matches!(state, ServerState::Serving(view) if view.reads_names())
}

/// The first message of a client, as it came and as it is understood.
struct Hello {
    bytes: Vec<u8>,
    accepted: Accepted,
    name: Option<String>,
}

impl Hello {
    /// Reads it. Nothing is answered but to what cannot be read.
    async fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let (mut acceptor, mut bytes, mut chunk) = (Acceptor::default(), Vec::new(), [0; 4096]);
        while bytes.len() < LONGEST_HELLO {
            let count = stream.read(&mut chunk).await?;
            let mut rest = chunk.get(..count).unwrap_or_default();
            if rest.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes.extend_from_slice(rest);
            while !rest.is_empty() {
                if acceptor.read_tls(&mut rest)? == 0 {
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                    return Ok(Hello { bytes, accepted, name });
                }
                Err((error, mut alert)) => {
                    let mut answer = Vec::new();
                    alert.write_all(&mut answer)?;
                    // Who is gone need not be told.
                    _ = stream.write_all(&answer).await;
                    return Err(io::Error::other(error));
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the client's first message does not end"))
    }

    fn server_name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

/// Tells a client that speaks TLS why there is no handshake.
async fn refuse(stream: &mut TcpStream, alert: u8) {
    // A record of one fatal alert (RFC 8446, 5.1 and 6). Who is gone need not be told.
    _ = stream.write_all(&[0x15, 3, 3, 0, 2, 2, alert]).await;
}

async fn shake_hands(
    stream: TcpStream,
    hello: Option<Hello>,
    config: Arc<ServerConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    match hello {
        Some(hello) => StartHandshake::from_parts(hello.accepted, stream).into_stream(config).await,
        None => TlsAcceptor::from(config).accept(stream).await,
    }
}

/// The bytes of a connection in plaintext, for as long as the listener lets it in.
pub(super) fn plaintext(
    stream: TcpStream,
    listener: &Arc<ListenerState>,
    connection: &Arc<ConnectionInfo>,
    carries: Carries,
    onward: Option<Arc<TargetEntry>>,
) -> Io {
    let forbidden = forbidden(Arc::clone(listener), Arc::clone(connection), carries.of(onward.as_ref()));
    Io::new(Bytes::Plaintext(stream), forbidden).going_to(onward)
}

/// Waits until the listener would not let a connection in any more, and tells why.
async fn forbidden(listener: Arc<ListenerState>, connection: Arc<ConnectionInfo>, carries: Carries) -> Arc<str> {
    let mut changes = match carries {
        Carries::Http => listener.security_changes(),
        Carries::Bytes | Carries::Onward => listener.news(),
    };
    loop {
        let allowed = match carries {
            Carries::Http => allows(&listener.state(), &connection),
            Carries::Bytes => lets_in(&listener.state(), &connection),
            Carries::Onward => lets_on(&listener.state(), &connection),
        };
        if let Err(reason) = allowed {
            return reason;
        }
        // An error would say that the sender is gone, which is `listener`.
        _ = changes.changed().await;
    }
}

/// Waits until whoever vouched for the client of a gateway does so no more, and tells why. `known` is by whom it was let in.
async fn disowned(
    listener: Arc<ListenerState>,
    connection: Arc<ConnectionInfo>,
    client: EdgeClient,
    mut known: Arc<Edge>,
) -> Arc<str> {
    let mut changes = listener.security_changes();
    loop {
        if let ServerState::Serving(view) = &**listener.state()
            && let Some(chain) = connection.chain(view)
        {
            let Some(edge) = &chain.edge else { return "nobody asks clients for a certificate any more".into() };
            if !Arc::ptr_eq(edge, &known) {
                if let Err(reason) = edge.vouches_for(&client, SystemTime::now()) {
                    return reason;
                }
                known = Arc::clone(edge);
            }
        }
        // An error would say that the sender is gone, which is `listener`.
        _ = changes.changed().await;
    }
}

/// Whether a connection that was let in may go on. While the server does not serve, its requests are told so.
fn allows(state: &ServerState, connection: &ConnectionInfo) -> Result<(), Arc<str>> {
    let ServerState::Serving(view) = state else { return Ok(()) };
    match connection.chain(view) {
        Some(chain) => chain.admits(connection.security()),
        None => Err("no filter chain matches it any more".into()),
    }
}

fn info(session: &ServerConnection) -> TlsInfo {
    TlsInfo {
        version: session.protocol_version().map(|version| match version {
            // rustls writes TLSv1_3.
            ProtocolVersion::TLSv1_3 => "TLSv1.3".into(),
            other => format!("{other:?}").into(),
        }),
        alpn: session.alpn_protocol().map(|protocol| String::from_utf8_lossy(protocol).into()),
        sni: session.server_name().map(|name| name.to_ascii_lowercase().into()),
        ..TlsInfo::default()
    }
}
