//! A gateway: a server whose application is a client. Which listeners there are is the control plane's to say; they are bound as
//! they come, and end with their last request as they go.
//!
//! A request passes the filters and policies of its listener as on any server, and goes on by the same listener's routes
//! ([`Mesh::gateway_client`](crate::Mesh::gateway_client)). What `mesh-gateway` adds is what proxies do with messages.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_core::id::ListenerName;
use mesh_core::store::GatewayListeners;
use tokio::sync::{oneshot, watch};

use crate::drain::{Phase, reached};
use crate::mesh::Mesh;
use crate::server::MeshListener;

/// After how long an address is tried again that could not be bound.
const AGAIN: Duration = Duration::from_secs(1);

/// The listeners of a gateway.
///
/// ```no_run
/// # async fn serve(listener: mesh_tower::server::MeshListener) {}
/// # async fn run(mesh: mesh_tower::Mesh) {
/// let mut gateway = mesh.gateway();
/// while let Some(listener) = gateway.bind().await {
///     tokio::spawn(serve(listener));
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Gateway {
    mesh: Mesh,
    wanted: watch::Receiver<GatewayListeners>,
    phase: watch::Receiver<Phase>,
    /// With what takes each away.
    bound: BTreeMap<ListenerName, (SocketAddr, oneshot::Sender<()>)>,
}

impl Mesh {
    /// The listeners that the control plane has for this process, where that is a gateway: every one, whatever its name.
    pub fn gateway(&self) -> Gateway {
        let (wanted, phase) = (self.store().gateway(), self.drain().watch());
        Gateway { mesh: self.clone(), wanted, phase, bound: BTreeMap::new() }
    }
}

impl Gateway {
    /// The next listener that is bound; `None` when the drain begins. One that is gone from the configuration ends by itself, as
    /// [`server::serve`](crate::server::serve) does at the end of a drain; one that changes keeps its socket and its connections, unless
    /// its address is another. One that cannot be bound is told of, on the admin port, too, and tried again; the others go on.
    ///
    /// Cancel safe.
    pub async fn bind(&mut self) -> Option<MeshListener> {
        loop {
            if self.mesh.drain().is_leaving() {
                return None;
            }
            let wanted = self.wanted.borrow_and_update().clone();
            let before = self.bound.len();
            self.bound.retain(|name, (address, _)| wanted.get(name) == Some(address));
            if self.bound.len() < before {
                // Their sockets are closed by those who serve them.
                tokio::task::yield_now().await;
            }
            self.mesh.listeners().forget_problems(|name| wanted.contains_key(name));
            let mut has_failed = false;
            for (name, address) in wanted.iter().filter(|(name, _)| !self.bound.contains_key(*name)).collect::<Vec<_>>()
            {
                let (withdraw, withdrawn) = oneshot::channel();
                match MeshListener::of_gateway(&self.mesh, name, *address, withdrawn).await {
                    Ok(listener) => {
                        tracing::info!(listener = %name, "bound at {}", listener.local_addr());
                        self.mesh.listeners().note_problem(name, None);
                        self.bound.insert(name.clone(), (*address, withdraw));
                        return Some(listener);
                    }
                    Err(error) => {
                        let problem = format!("{address} cannot be bound: {error}");
                        if self.mesh.listeners().note_problem(name, Some(problem.clone())) {
                            tracing::error!(listener = %name, "{problem}");
                        }
                        has_failed = true;
                    }
                }
            }
            tokio::select! {
                changed = self.wanted.changed() => {
                    // The source is gone: what is bound goes on.
                    if changed.is_err() {
                        reached(&mut self.phase, Phase::LameDuck).await;
                    }
                }
                () = reached(&mut self.phase, Phase::LameDuck) => return None,
                () = tokio::time::sleep(AGAIN), if has_failed => {}
            }
        }
    }
}
