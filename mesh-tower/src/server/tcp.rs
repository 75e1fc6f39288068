//! Connections whose bytes nobody looks into: a listener that hands them out when it is known who the client is, and the
//! policies let it in.
//!
//! It serves by the same resource as a server of HTTP. A condition on requests is in doubt there: an ALLOW that has one is for no
//! connection, and a DENY is for all that its other conditions are for (Istio, TCP services).

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::id::ListenerName;
use mesh_core::request_info::Direction;
use mesh_core::store::{ChainView, ServerState};
use mesh_core::workload::{Peer, Workload};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::access_log::ConnectionLog;
use crate::connection::ConnectionInfo;
use crate::drain::Phase;
use crate::io::Half;
use crate::listeners::ListenerState;
use crate::mesh::Mesh;
use crate::server::accept::{MeshIo, MeshListener};
use crate::server::handshake::Carries;
use crate::server::limits::Limits;
use crate::server::request::{ends, tell};

/// A bound socket for connections that are not HTTP: see [`Mesh::bind_tcp`].
#[derive(Debug)]
pub struct MeshTcpListener {
    listener: MeshListener,
    opening: JoinSet<Option<(MeshIo, SocketAddr)>>,
    is_closed: bool,
    /// For so many connections there is room.
    room: Arc<Semaphore>,
}

impl MeshTcpListener {
    pub(super) async fn bind(mesh: &Mesh, address: impl tokio::net::ToSocketAddrs) -> io::Result<Self> {
        let listener = MeshListener::bind(mesh, address, Carries::Bytes).await?;
        let listener =
            MeshTcpListener { listener, opening: JoinSet::new(), is_closed: false, room: Arc::new(Semaphore::new(0)) };
        Ok(listener.limits(&Limits::default()))
    }

    /// Other limits than the default ones, for connections from now on: [`Limits::max_connections`] and
    /// [`Limits::max_connections_per_client`], those that shake hands included. The others are about HTTP.
    pub fn limits(mut self, limits: &Limits) -> Self {
        self.room = Arc::new(Semaphore::new(limits.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
        self.listener = self.listener.max_connections_per_client(limits.max_connections_per_client);
        self
    }

    /// Where it is bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// The resource that it serves by.
    pub fn name(&self) -> &ListenerName {
        self.listener.name()
    }

    /// Waits until it may serve; see [`MeshListener::serving`].
    ///
    /// # Errors
    /// As there.
    pub async fn serving(&self) -> Result<(), MeshError> {
        self.listener.serving().await
    }

    /// The next connection that is let in, with its handshake done: who the client is stands in [`MeshIo::connection`]. `None`
    /// when the drain is over. A client that is slow to shake hands holds up nobody else, and one that has too many connections gets
    /// no more of them. Cancel safe.
    pub async fn accept(&mut self) -> Option<(MeshIo, SocketAddr)> {
        loop {
            tokio::select! {
                biased;
                Some(opened) = self.opening.join_next() => {
                    if let Ok(Some(opened)) = opened {
                        return Some(opened);
                    }
                }
                accepted = next(&mut self.listener, &self.room), if !self.is_closed => {
                    match accepted {
                        Some((mut io, peer, room)) => {
                            io.takes(room);
                            let listener = Arc::clone(self.listener.listener());
                            let mesh = self.listener.mesh().clone();
                            self.opening.spawn(async move { Some((open(io, &listener, &mesh).await?, peer)) });
                        }
                        None => self.is_closed = true,
                    }
                }
                else => return None,
            }
        }
    }
}

/// The next connection for which there is room. When nobody connects any more, what is left in the backlog is let in.
async fn next(
    listener: &mut MeshListener,
    room: &Arc<Semaphore>,
) -> Option<(MeshIo, SocketAddr, Option<OwnedSemaphorePermit>)> {
    let mesh = listener.mesh().clone();
    let room = tokio::select! {
        room = Arc::clone(room).acquire_owned() => room.ok(),
        () = mesh.drain().reached(Phase::Closing) => None,
    };
    let (io, peer) = listener.accept().await?;
    Some((io, peer, room))
}

/// Waits for the handshake, and asks the policies.
async fn open(mut io: MeshIo, listener: &ListenerState, mesh: &Mesh) -> Option<MeshIo> {
    // Why a handshake fails is told there.
    poll_fn(|cx| io.poll_open(cx, Half::Reader).map_ok(drop)).await.ok()?;
    if !is_let_in(io.connection(), listener, mesh) {
        return None;
    }
    counted(&mut io, listener, mesh);
    let mut log = log_of(io.connection(), listener, mesh);
    log.info.note_complete();
    io.logs(Box::new(log));
    Some(io)
}

/// Whether a connection is let in, with what policies say of it told and counted. One that is not has its line all the same.
pub(super) fn is_let_in(connection: &ConnectionInfo, listener: &ListenerState, mesh: &Mesh) -> bool {
    let mut denied = None;
    if let ServerState::Serving(view) = &**listener.state()
        && let Some(chain) = connection.chain(view)
    {
        let verdict = chain.routes.verdict_on_bytes(ends(connection));
        tell(&verdict, mesh.store().decided(), listener.name(), Some(connection));
        denied = (!verdict.is_allowed).then(|| verdict.policy.unwrap_or("none").to_owned());
    }
    if let Err(reason) = lets_in(&listener.state(), connection) {
        tracing::debug!(listener = %listener.name(), peer = %connection.peer, %reason, "connection refused");
        let mut log = log_of(connection, listener, mesh);
        match denied {
            Some(policy) => {
                log.info.note_error(ErrorKind::AccessDenied);
                log.info.note_details(format!("rbac_access_denied_matched_policy[{policy}]"));
            }
            None => log.info.note_error(ErrorKind::NotServing),
        }
        return false;
    }
    true
}

/// The line of a connection, which it has once it is over.
pub(super) fn log_of(connection: &ConnectionInfo, listener: &ListenerState, mesh: &Mesh) -> ConnectionLog {
    let mut log = mesh.connection_log(Direction::Inbound);
    let info = &mut log.info;
    info.note_peer(connection.peer);
    let name = connection.server_name().map(Arc::<str>::from);
    info.note_connection(connection.local, connection.direct, name.as_ref());
    let id = connection.peer_identity().cloned();
    let is_secured = id.is_some();
    info.note_source(id.map(|id| Arc::new(Peer::new(Workload::default(), Some(id)))), is_secured);
    if let ServerState::Serving(view) = &**listener.state()
        && let Some(chain) = connection.chain(view)
    {
        info.note_logs(&chain.access_logs);
    }
    log
}

/// Counts a connection that is let in, and its bytes. The drain waits for it.
pub(super) fn counted(io: &mut MeshIo, listener: &ListenerState, mesh: &Mesh) {
    if let Some(telemetry) = mesh.telemetry() {
        let connection = io.connection();
        let (service, rules) = match &**listener.state() {
            ServerState::Serving(view) => {
                let chain = connection.chain(view);
                (view.listener.service.clone(), chain.and_then(|chain| chain.metrics.clone()))
            }
            ServerState::NotServing(_) | ServerState::Waiting => (None, None),
        };
        let count = telemetry.accepted(connection, service.as_ref(), rules.as_ref());
        io.counts_bytes(count);
    }
    io.counts_in(mesh.drain().enter());
}

/// Whether a connection may have its bytes go to the application. Where the server must not serve, nobody could be told so.
pub(super) fn lets_in(state: &ServerState, connection: &ConnectionInfo) -> Result<(), Arc<str>> {
    let view = match state {
        ServerState::Serving(view) => view,
        ServerState::NotServing(reason) => return Err(Arc::clone(reason)),
        ServerState::Waiting => return Err("no configuration".into()),
    };
    let chain = connection.chain(view).ok_or("no filter chain matches")?;
    chain.admits(connection.security())?;
    // What a gateway sends on as it is has its routes apart.
    if let Some(reason) = chain.routes.why_no_bytes().filter(|_| !chain.is_opaque) {
        return Err(reason);
    }
    policies_let_in(chain, connection)
}

/// Whether a connection that a gateway sends on as it is may go on. While the listener does not serve, what was let in stays.
pub(super) fn lets_on(state: &ServerState, connection: &ConnectionInfo) -> Result<(), Arc<str>> {
    let ServerState::Serving(view) = state else { return Ok(()) };
    let chain = connection.chain(view).ok_or("no filter chain matches it any more")?;
    chain.admits(connection.security())?;
    if chain.is_opaque { policies_let_in(chain, connection) } else { Ok(()) }
}

fn policies_let_in(chain: &ChainView, connection: &ConnectionInfo) -> Result<(), Arc<str>> {
    let verdict = chain.routes.verdict_on_bytes(ends(connection));
    match verdict.is_allowed {
        true => Ok(()),
        false => Err(format!("RBAC: access denied by {}", verdict.policy.unwrap_or("no policy that allows")).into()),
    }
}
