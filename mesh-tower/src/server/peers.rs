//! What the connections of one client add up to: a flood that is spread over many of them has an end, too.

use std::collections::HashMap;
use std::error::Error;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_core::request::client_of;

/// So many connections that end for a flood, each within [`MEMORY`] of the one before, and a client is let in no more.
const MOST_FLOODS: u32 = 10;

/// How long a flood is remembered.
const MEMORY: Duration = Duration::from_secs(60);

/// The clients of a server, by address.
#[derive(Debug, Default)]
struct Peers(HashMap<IpAddr, Peer>);

#[derive(Debug, Default)]
struct Peer {
    connections: usize,
    floods: u32,
    last_flood: Option<Instant>,
}

impl Peer {
    fn forget(&mut self, now: Instant) {
        if self.last_flood.is_some_and(|last| now.duration_since(last) >= MEMORY) {
            (self.floods, self.last_flood) = (0, None);
        }
    }
}

impl Peers {
    /// Counts a connection in, where it may come in.
    fn enter(&mut self, address: IpAddr, most: usize, now: Instant) -> bool {
        if self.0.len().is_power_of_two() {
            // Now and then, so that clients that come and go leave nothing behind.
            self.0.retain(|_, peer| {
                peer.forget(now);
                peer.connections > 0 || peer.floods > 0
            });
        }
        let peer = self.0.entry(address).or_default();
        peer.forget(now);
        let may_enter = peer.connections < most && peer.floods < MOST_FLOODS;
        peer.connections += usize::from(may_enter);
        may_enter
    }

    fn leave(&mut self, address: IpAddr) {
        if let Some(peer) = self.0.get_mut(&address) {
            peer.connections = peer.connections.saturating_sub(1);
        }
    }

    fn note_flood(&mut self, address: IpAddr, now: Instant) {
        let peer = self.0.entry(address).or_default();
        peer.forget(now);
        (peer.floods, peer.last_flood) = (peer.floods.saturating_add(1), Some(now));
    }
}

/// The clients of a server, as its connections share them.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerTable(Arc<Mutex<Peers>>);

/// A connection that is counted for its client, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    peers: PeerTable,
    address: IpAddr,
}

impl PeerTable {
    /// Counts a connection of this address in; `None` where it may not come in. A client has `most` at once.
    pub(super) fn enter(&self, address: IpAddr, most: usize) -> Option<Seat> {
        let address = client_of(address);
        let may_enter = self.with(|peers| peers.enter(address, most, Instant::now()));
        may_enter.then(|| Seat { peers: self.clone(), address })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Peers) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Seat {
    /// Notes why the connection ended.
    pub(super) fn ended(&self, why: &(dyn Error + 'static)) {
        if is_flood(why) {
            self.note_flood();
        }
    }

    /// Notes that the client floods its server.
    #[cold]
    pub(super) fn note_flood(&self) {
        self.peers.with(|peers| peers.note_flood(self.address, Instant::now()));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.peers.with(|peers| peers.leave(self.address));
    }
}

/// Whether we ended a connection since its client sent too much that costs more than it says (ENHANCE_YOUR_CALM).
fn is_flood(why: &(dyn Error + 'static)) -> bool {
    let mut next = Some(why);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return !error.is_remote() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h7_connections_and_floods_are_counted_for_a_client_as_a_whole_and_forgotten() {
        let (mut peers, start) = (Peers::default(), Instant::now());
        let [one, other]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|address| address.parse().unwrap());
        assert!(peers.enter(one, 2, start) && peers.enter(one, 2, start));
        assert!(!peers.enter(one, 2, start), "it has two");
        assert!(peers.enter(other, 2, start));
        peers.leave(one);
        assert!(peers.enter(one, 2, start));
        let mut now = start;
        for flood in 0..MOST_FLOODS {
            assert!(peers.enter(other, 100, now), "{flood}");
            peers.note_flood(other, now);
            now += MEMORY / 2;
        }
        assert!(!peers.enter(other, 100, now));
        assert!(peers.enter(one, 3, now));
        assert!(peers.enter(other, 100, now + MEMORY), "it is forgotten");
        for address in 0..1000_u32 {
            let address = IpAddr::V4(address.into());
            peers.enter(address, 2, now);
            peers.leave(address);
        }
        assert!(peers.0.len() < 600, "{}", peers.0.len());
    }
}
