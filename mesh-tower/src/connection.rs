//! What is known of a connection that the mesh let in.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::futures::TaskLocalFuture;

/// The two ends of a connection. Shared by whoever works on it: get it as an `Arc`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Where the client connected to.
    pub local: SocketAddr,
    /// Who it is.
    pub peer: SocketAddr,
}

tokio::task_local! {
    static CURRENT: Arc<ConnectionInfo>;
}

impl ConnectionInfo {
    /// A connection between these ends.
    pub fn new(local: SocketAddr, peer: SocketAddr) -> Self {
        ConnectionInfo { local, peer }
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
