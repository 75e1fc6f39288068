//! What is known of a connection that the mesh let in.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use mesh_core::identity::SpiffeId;
use mesh_core::model::EdgeTls;
use mesh_core::store::{ChainView, Secured, ServerView};
use tokio::task::futures::TaskLocalFuture;

/// The two ends of a connection. Shared by whoever works on it: get it as an `Arc`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Where the client connected to.
    pub local: SocketAddr,
    /// Where it connected from. Where a load balancer tells whose its connections are (PROXY protocol), that is the client.
    pub peer: SocketAddr,
    /// Who has connected here: the client, or such a load balancer.
    pub direct: SocketAddr,
    /// Clones share it.
    shared: Arc<Shared>,
}

/// Who has sent a request, where that is not who its connection is from: put into its extensions by a gateway, in front of the
/// [server layer](crate::server::ServerLayer), which believes the proxies that have said so
/// ([`ServerLayer::edge_trust`](crate::server::ServerLayer::edge_trust)). Policies by `remoteIpBlocks`, limits and telemetry go by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub SocketAddr);

/// What becomes known of a connection later than servers are told of it.
#[derive(Debug, Default)]
struct Shared {
    /// Set once, by the handshake, which ends after servers were told of the connection.
    tls: OnceLock<TlsInfo>,
    /// The name that a client asks for whose TLS is with somebody else, if it asks for any.
    passed: OnceLock<Option<Arc<str>>>,
    /// How many of its requests have come to the mesh's layer; `None` of a connection that the mesh did not let in.
    seen: Option<AtomicUsize>,
    /// Whether its client has closed its side.
    half_closed: AtomicBool,
}

impl PartialEq for Shared {
    fn eq(&self, other: &Self) -> bool {
        self.tls == other.tls && self.passed == other.passed
    }
}

impl Eq for Shared {}

/// What the handshake of a connection came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsInfo {
    /// Who the peer is, by its certificate, which was verified.
    pub identity: Option<SpiffeId>,
    /// The SHA-256 of that certificate.
    pub fingerprint: Option<[u8; 32]>,
    /// The version, such as `TLSv1.3`.
    pub version: Option<Arc<str>>,
    /// The protocol that both agreed on.
    pub alpn: Option<Arc<str>>,
    /// The name that the client asked for.
    pub sni: Option<Arc<str>>,
    /// By which rules of a gateway; `None` where it is mutual TLS of the mesh.
    pub(crate) rules: Option<Arc<EdgeTls>>,
}

tokio::task_local! {
    static CURRENT: Arc<ConnectionInfo>;
}

impl ConnectionInfo {
    /// A connection between these ends.
    pub fn new(local: SocketAddr, peer: SocketAddr) -> Self {
        ConnectionInfo { local, peer, direct: peer, shared: Arc::default() }
    }

    /// A connection that the mesh lets in; `direct` is who has connected.
    pub(crate) fn accepted(local: SocketAddr, peer: SocketAddr, direct: SocketAddr) -> Self {
        let shared = Shared { seen: Some(AtomicUsize::new(0)), ..Shared::default() };
        ConnectionInfo { local, peer, direct, shared: Arc::new(shared) }
    }

    /// One of its requests has come to the mesh's layer. Returns whether the mesh let the connection in: of another nobody asks.
    #[inline]
    pub(crate) fn note_seen(&self) -> bool {
        let seen = self.shared.seen.as_ref();
        seen.inspect(|seen| _ = seen.fetch_add(1, Ordering::Relaxed)).is_some()
    }

    /// How many of its requests have come to the mesh's layer.
    #[inline]
    pub(crate) fn seen(&self) -> usize {
        self.shared.seen.as_ref().map_or(0, |seen| seen.load(Ordering::Relaxed))
    }

    /// What is known of its TLS; `None` in plaintext. Known to every request.
    pub fn tls(&self) -> Option<&TlsInfo> {
        self.shared.tls.get()
    }

    /// Who the peer is, where mutual TLS told.
    pub fn peer_identity(&self) -> Option<&SpiffeId> {
        self.tls()?.identity.as_ref()
    }

    /// Whether its client has closed its side and all that it sent has been read: it may be gone, or wait for its answer. Looked
    /// for over HTTP/1.1 while a request is answered, about every second.
    pub fn is_half_closed(&self) -> bool {
        self.shared.half_closed.load(Ordering::Relaxed)
    }

    /// Its client has closed its side.
    pub(crate) fn note_half_closed(&self) {
        self.shared.half_closed.store(true, Ordering::Relaxed);
    }

    /// Whether the client that this task works for may be gone.
    #[inline]
    pub(crate) fn may_be_left() -> bool {
        CURRENT.try_with(|connection| connection.is_half_closed()).unwrap_or(false)
    }

    /// The name that its client asked for.
    pub(crate) fn server_name(&self) -> Option<&str> {
        match self.tls() {
            Some(tls) => tls.sni.as_deref(),
            None => self.shared.passed.get()?.as_deref(),
        }
    }

    /// How it is secured, for chains that ask.
    pub(crate) fn security(&self) -> Secured<'_> {
        match self.tls() {
            Some(TlsInfo { rules: Some(rules), .. }) => Secured::Edge(rules),
            Some(TlsInfo { identity: Some(_), .. }) => Secured::Mutual,
            _ => Secured::Plaintext,
        }
    }

    /// The chain of a listener that is for it.
    pub(crate) fn chain<'v>(&self, view: &'v ServerView) -> Option<&'v ChainView> {
        let is_tls = self.tls().is_some() || self.shared.passed.get().is_some();
        view.chain(self.local, self.peer, is_tls, self.server_name())
    }

    /// Notes that its client speaks TLS with somebody else, by this name.
    pub(crate) fn passes_by(&self, name: Option<&str>) {
        _ = self.shared.passed.set(name.map(Arc::from));
    }

    /// Notes what the handshake came to.
    pub(crate) fn secured(&self, tls: TlsInfo) {
        // There is one handshake.
        _ = self.shared.tls.set(tls);
    }

    /// The connection of the request that this task is working on, under [`crate::server::serve`].
    pub fn current() -> Option<Arc<ConnectionInfo>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Runs a future on behalf of this connection.
    pub(crate) fn scope<F: Future>(connection: Arc<ConnectionInfo>, future: F) -> TaskLocalFuture<Arc<Self>, F> {
        CURRENT.scope(connection, future)
    }
}
