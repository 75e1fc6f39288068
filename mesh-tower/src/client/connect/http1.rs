//! HTTP/1.1: one request at a time, so idle connections wait on a stack; the one used last is used next.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::Cluster;
use mesh_core::state::EndpointState;

use crate::body::Body;

/// One connection.
pub(crate) struct Connection {
    sender: http1::SendRequest<Body>,
    requests: u32,
    idle_since: Instant,
}

impl Connection {
    /// Sends a request. Where it was not written, the error has it.
    pub(super) async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        self.requests += 1;
        self.sender.try_send_request(request).await
    }

    /// Whether the cluster allows another request.
    pub(super) fn may_go_on(&self, cluster: &Cluster) -> bool {
        cluster.max_requests_per_connection.is_none_or(|max| self.requests < max)
    }
}

/// Connections that nobody uses.
#[derive(Default)]
pub(super) struct Idle(Mutex<Vec<Connection>>);

/// How long a connection may take to become ready after its last response, before another is dialled instead.
const SETTLE: Duration = Duration::from_millis(1);

impl Idle {
    /// A connection that is ready for a request.
    pub(super) async fn take(&self, idle_timeout: Option<Duration>) -> Option<Connection> {
        loop {
            let mut connection = self.pop()?;
            if connection.sender.is_closed() {
                continue;
            }
            if idle_timeout.is_some_and(|timeout| connection.idle_since.elapsed() > timeout) {
                continue;
            }
            if connection.sender.is_ready() {
                return Some(connection);
            }
            // The response ended an instant ago and the connection's task has not run since.
            if let Ok(Ok(())) = tokio::time::timeout(SETTLE, connection.sender.ready()).await {
                return Some(connection);
            }
        }
    }

    pub(super) fn give_back(&self, mut connection: Connection) {
        if !connection.sender.is_closed() {
            connection.idle_since = Instant::now();
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }

    /// Closes what has been idle for too long; how many are left.
    pub(super) fn reap(&self, now: Instant, idle: Duration) -> usize {
        let mut connections = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|connection| {
            !connection.sender.is_closed() && now.saturating_duration_since(connection.idle_since) <= idle
        });
        connections.len()
    }

    fn pop(&self) -> Option<Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// Opens a connection. It is driven by a task of its own, which ends with it.
pub(super) async fn dial(cluster: &Cluster, endpoint: &Arc<EndpointState>) -> Result<Connection, MeshError> {
    let stream = super::open(cluster, endpoint).await?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| MeshError::new(ErrorKind::ConnectFailure, "HTTP/1.1 handshake").caused_by(error))?;
    tokio::spawn(async move {
        // Its end is seen by whoever holds the sender.
        let _ = connection.with_upgrades().await;
    });
    Ok(Connection { sender, requests: 0, idle_since: Instant::now() })
}
