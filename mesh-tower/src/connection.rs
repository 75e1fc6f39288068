//! What is known of a connection that the mesh let in.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use mesh_core::identity::SpiffeId;
use tokio::task::futures::TaskLocalFuture;

/// The two ends of a connection. Shared by whoever works on it: get it as an `Arc`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Where the client connected to.
    pub local: SocketAddr,
    /// Where it connected from.
    pub peer: SocketAddr,
    /// Set once by the handshake, which ends after servers were told of the connection. Clones share it.
    tls: Arc<OnceLock<TlsInfo>>,
}

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
}

tokio::task_local! {
    static CURRENT: Arc<ConnectionInfo>;
}

impl ConnectionInfo {
    /// A connection between these ends.
    pub fn new(local: SocketAddr, peer: SocketAddr) -> Self {
        ConnectionInfo { local, peer, tls: Arc::default() }
    }

    /// What is known of its TLS; `None` in plaintext. Known to every request.
    pub fn tls(&self) -> Option<&TlsInfo> {
        self.tls.get()
    }

    /// Who the peer is, where mutual TLS told.
    pub fn peer_identity(&self) -> Option<&SpiffeId> {
        self.tls()?.identity.as_ref()
    }

    /// Notes what the handshake came to.
    pub(crate) fn secured(&self, tls: TlsInfo) {
        // There is one handshake.
        _ = self.tls.set(tls);
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
