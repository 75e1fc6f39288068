//! The listeners of a mesh: what each is told by the configuration, kept where every request finds it.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::id::ListenerName;
use mesh_core::store::{ServerHandle, ServerState};
use tokio::sync::watch;

use crate::drain::{Drain, Phase, reached};
use crate::health::Health;
use crate::server::accept::Connection;

/// All listeners of a mesh that are bound or have connections.
#[derive(Debug)]
pub(crate) struct Listeners {
    all: ArcSwap<Vec<Arc<Listening>>>,
    health: watch::Sender<Health>,
}

impl Default for Listeners {
    fn default() -> Self {
        Listeners { all: ArcSwap::default(), health: watch::Sender::new(Health::Starting) }
    }
}

impl Listeners {
    pub(super) fn load(&self) -> Guard<Arc<Vec<Arc<Listening>>>> {
        self.all.load()
    }

    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn add(&self, listening: &Arc<Listening>) {
        self.all.rcu(|all| all.iter().chain([listening]).cloned().collect::<Vec<_>>());
        self.assess();
    }

    fn remove(&self, listening: &Arc<Listening>) {
        self.all.rcu(|all| all.iter().filter(|it| !Arc::ptr_eq(it, listening)).cloned().collect::<Vec<_>>());
        self.assess();
    }

    fn assess(&self) {
        let states: Vec<_> = self.all.load().iter().map(|listening| listening.state.load_full()).collect();
        let health = Health::of(states.iter().map(AsRef::as_ref));
        self.health.send_if_modified(|present| std::mem::replace(present, health.clone()) != health);
    }
}

/// The listener that a request came by, by its connection.
pub(super) fn find(all: &[Arc<Listening>], connection: Option<Connection>) -> Result<&Arc<Listening>, MeshError> {
    let Some(connection) = connection else {
        let detail = match all.len() {
            0 => "no listener of this mesh is bound",
            _ => "several listeners of this mesh are bound, and the connection is not known",
        };
        return Err(MeshError::new(ErrorKind::Draining, detail));
    };
    let found = all.iter().find(|listening| listening.is_at(connection.local));
    found.ok_or_else(|| {
        let detail = format!("no listener of this mesh is bound at {}", connection.local);
        MeshError::new(ErrorKind::Draining, detail)
    })
}

/// One listener, as its requests see it. It outlives the socket for as long as there are connections.
#[derive(Debug)]
pub(super) struct Listening {
    address: SocketAddr,
    name: ListenerName,
    state: ArcSwap<ServerState>,
    news: watch::Sender<()>,
}

impl Listening {
    pub(super) fn name(&self) -> &ListenerName {
        &self.name
    }

    /// Whether to serve, and how.
    pub(super) fn state(&self) -> Guard<Arc<ServerState>> {
        self.state.load()
    }

    /// Tells of every change of the state from now on.
    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    fn is_at(&self, local: SocketAddr) -> bool {
        self.address == local || (self.address.port() == local.port() && self.address.ip().is_unspecified())
    }

    fn publish(&self, state: ServerState) {
        match &state {
            ServerState::Serving(_) if !matches!(**self.state.load(), ServerState::Serving(_)) => {
                tracing::info!(listener = %self.name, address = %self.address, "serving");
            }
            ServerState::NotServing(reason) => {
                tracing::warn!(listener = %self.name, address = %self.address, %reason, "not serving");
            }
            _ => {}
        }
        self.state.store(Arc::new(state));
        self.news.send_replace(());
    }
}

/// A part of a listener: the socket or one of its connections. The last one to go takes it off the list.
#[derive(Clone, Debug)]
pub(super) struct Part(Arc<Whole>);

#[derive(Debug)]
struct Whole {
    listening: Arc<Listening>,
    listeners: Arc<Listeners>,
}

impl Part {
    pub(super) fn listening(&self) -> &Arc<Listening> {
        &self.0.listening
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        self.listeners.remove(&self.listening);
    }
}

/// Follows what the configuration says of a listener until the drain begins or the task is aborted; the
/// subscription ends with it, and the last state stays.
pub(super) fn follow(
    listeners: &Arc<Listeners>,
    handle: ServerHandle,
    address: SocketAddr,
    drain: &Drain,
) -> (Part, Following) {
    let listening = Arc::new(Listening {
        address,
        name: handle.listener().clone(),
        state: ArcSwap::from_pointee(ServerState::Waiting),
        news: watch::Sender::new(()),
    });
    listeners.add(&listening);
    let part = Part(Arc::new(Whole { listening: Arc::clone(&listening), listeners: Arc::clone(listeners) }));
    let (listeners, mut phase) = (Arc::clone(listeners), drain.watch());
    let task = tokio::spawn(async move {
        let mut state = handle.state();
        let mut news = true;
        while news {
            let next = state.borrow_and_update().clone();
            listening.publish(next);
            listeners.assess();
            news = tokio::select! {
                changed = state.changed() => changed.is_ok(),
                () = reached(&mut phase, Phase::LameDuck) => false,
            };
        }
    });
    (part, Following(task))
}

/// The task that follows a listener; ends when dropped.
#[derive(Debug)]
pub(super) struct Following(tokio::task::JoinHandle<()>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(address: &str) -> Arc<Listening> {
        Arc::new(Listening {
            address: address.parse().unwrap(),
            name: address.into(),
            state: ArcSwap::from_pointee(ServerState::Waiting),
            news: watch::Sender::new(()),
        })
    }

    #[test]
    fn a_request_finds_its_listener_by_its_connection() {
        let any = listening("0.0.0.0:80");
        let one = listening("127.0.0.1:81");
        let connection = |local: &str| Connection { local: local.parse().unwrap(), peer: "1.2.3.4:5".parse().unwrap() };
        let cases = [
            (vec![&any, &one], None, None),
            (vec![], None, None),
            (vec![&any, &one], Some("127.0.0.1:80"), Some(&any)),
            (vec![&any, &one], Some("127.0.0.1:81"), Some(&one)),
            (vec![&one], Some("127.0.0.2:81"), None),
            (vec![&any, &one], Some("127.0.0.1:82"), None),
        ];
        for (all, local, expected) in cases {
            let all: Vec<_> = all.into_iter().cloned().collect();
            let found = find(&all, local.map(connection)).ok();
            assert_eq!(found.map(|it| it.address), expected.map(|it| it.address), "{local:?} among {all:?}");
        }
    }
}
