//! Connections of a gateway that nobody looks into: their bytes go to where their chain says.

use std::fmt;
use std::sync::Arc;

use mesh_core::store::TargetEntry;
use tokio::sync::Semaphore;

use crate::listeners::ListenerState;
use crate::mesh::Mesh;
use crate::server::accept::MeshIo;
use crate::server::tcp::{counted, is_let_in, log_of};

/// How many connections may be carried at once.
const MOST_CARRIED: usize = 50_000;

/// Carries connections that nobody looks into to where their listener's chain says, as bytes: [`Serve::carrying`].
///
/// [`Serve::carrying`]: crate::server::Serve::carrying
#[derive(Clone)]
pub struct Carry {
    mesh: Mesh,
    room: Arc<Semaphore>,
}

impl Carry {
    /// For the listeners of this mesh. 50,000 connections are carried at once at most; more are closed.
    pub fn new(mesh: &Mesh) -> Self {
        Carry { mesh: mesh.clone(), room: Arc::new(Semaphore::new(MOST_CARRIED)) }
    }

    pub(crate) async fn carry(&self, mut io: MeshIo, listener: &ListenerState, onward: Arc<TargetEntry>) {
        let peer = io.connection().peer;
        // Before anything is said to whoever is behind.
        if !is_let_in(io.connection(), listener, &self.mesh) {
            return;
        }
        let Ok(_room) = self.room.try_acquire() else {
            tracing::warn!(listener = %listener.name(), %peer, "a connection is closed: as many are carried as there may be");
            return;
        };
        io.carries_bytes();
        counted(&mut io, listener, &self.mesh);
        let log = io.logs(Box::new(log_of(io.connection(), listener, &self.mesh)));
        let onward = self.mesh.connect_onward(onward, log).await;
        let carried = async {
            let mut other = onward.map_err(std::io::Error::other)?;
            tokio::io::copy_bidirectional(&mut io, &mut other).await
        };
        if let Err(reason) = carried.await {
            tracing::debug!(listener = %listener.name(), %peer, %reason, "a connection broke");
        }
    }
}

impl fmt::Debug for Carry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carry").field("room", &self.room.available_permits()).finish_non_exhaustive()
    }
}
