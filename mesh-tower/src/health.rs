//! Whether this process wants requests: what its listeners are told, and whether it is draining.

use std::sync::Arc;

use mesh_core::store::ServerState;
use tokio::sync::watch;

use crate::drain::{Drain, Phase};

/// Whether a process wants requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not yet: nothing is bound, or the configuration of a listener is not known.
    Starting,
    /// It does.
    Serving,
    /// The configuration keeps a listener from serving, and why.
    NotServing(Arc<str>),
    /// Not any more.
    Draining,
}

impl Health {
    /// Of all listeners together. One that must not serve speaks for all, else one that waits.
    pub(crate) fn of<'s>(listeners: impl IntoIterator<Item = &'s ServerState>) -> Health {
        let mut health = Health::Starting;
        let mut waiting = false;
        for state in listeners {
            match state {
                ServerState::NotServing(reason) => return Health::NotServing(Arc::clone(reason)),
                ServerState::Waiting => waiting = true,
                ServerState::Serving(_) => health = Health::Serving,
            }
        }
        if waiting { Health::Starting } else { health }
    }
}

/// The health of a mesh, now and as it changes. Cheap to clone.
///
/// ```
/// use mesh_core::fixed::Fixed;
/// use mesh_tower::Mesh;
/// use mesh_tower::health::Health;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mesh = Mesh::builder().source(Fixed::new()).start()?;
/// let mut health = mesh.health();
/// assert_eq!(health.now(), Health::Starting);
/// let listener = mesh.bind("127.0.0.1:0").await?;
/// health.changed().await;
/// assert_eq!(health.now(), Health::Serving);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct HealthWatch {
    listeners: watch::Receiver<Health>,
    phase: watch::Receiver<Phase>,
}

impl HealthWatch {
    pub(crate) fn new(listeners: watch::Receiver<Health>, drain: &Drain) -> Self {
        HealthWatch { listeners, phase: drain.watch() }
    }

    /// How it is.
    pub fn now(&self) -> Health {
        match *self.phase.borrow() {
            Phase::Serving => self.listeners.borrow().clone(),
            _ => Health::Draining,
        }
    }

    /// Waits until it is another than now. Never returns once the mesh is gone or drains: nothing changes then.
    pub async fn changed(&mut self) {
        let now = self.now();
        while self.now() == now {
            let (listeners, phase) = (&mut self.listeners, &mut self.phase);
            tokio::select! {
                Ok(()) = listeners.changed() => {}
                Ok(()) = phase.changed() => {}
                else => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_health_of_several_listeners_is_that_of_the_worst() {
        let listener = mesh_core::model::ServerListener::new("l", "127.0.0.1:1".parse().unwrap());
        let view = mesh_core::store::ServerView::new(Arc::new(listener), vec![]);
        let (waiting, serving) = (ServerState::Waiting, ServerState::Serving(Arc::new(view)));
        let (gone, reason) = (ServerState::NotServing("gone".into()), Health::NotServing("gone".into()));
        assert_eq!(Health::of([]), Health::Starting);
        assert_eq!(Health::of([&serving]), Health::Serving);
        assert_eq!(Health::of([&serving, &waiting]), Health::Starting);
        assert_eq!(Health::of([&waiting, &gone, &serving]), reason);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_is_a_change_of_health_at_once() {
        let (listeners, drain) = (watch::Sender::new(Health::Serving), Drain::new(Duration::from_secs(9)));
        let mut health = HealthWatch::new(listeners.subscribe(), &drain);
        assert_eq!(health.now(), Health::Serving);
        let begun = tokio::time::Instant::now();
        tokio::spawn(async move { drain.begin().await });
        health.changed().await;
        assert_eq!((health.now(), begun.elapsed()), (Health::Draining, Duration::ZERO));
    }
}
