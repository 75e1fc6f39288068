//! What clients say of themselves (`x-envoy-peer-metadata`), read once and kept within bounds: whoever makes names up drives
//! nobody out.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use foldhash::{fast, quality::RandomState};

use crate::identity::SpiffeId;
use crate::workload::{Peer, Workload};

/// How many are kept of clients that have shown who they are, and as many of what they say of themselves.
const PROVEN: usize = 4096;
/// How many of the latter are kept of one of them: one for each replica of a large deployment.
const SAID_BY_ONE: usize = 1024;
/// How many workloads one of them may say to be.
const WORKLOADS_OF_ONE: usize = 256;
/// How many are kept of all others.
const CLAIMED: usize = 256;
/// After how many seconds without a request one makes room.
const IDLE: u32 = 3600;
/// How much one may say.
const LONGEST: usize = 8 << 10;

/// Clients, by what they say and who they are.
#[derive(Debug)]
pub struct Peers {
    hashing: RandomState,
    /// Those that say nothing, or more than there is room for.
    proven: RwLock<Known>,
    said: RwLock<Known>,
    claimed: RwLock<Known>,
    decode: fn(&[u8]) -> Option<Workload>,
}

#[derive(Debug, Default)]
struct Known {
    /// By what is a hash already, whose key nobody else knows.
    by_hash: HashMap<u64, Entry, fast::RandomState>,
    /// What each of those says that have shown who they are.
    shares: HashMap<SpiffeId, Share>,
    /// When room was looked for last.
    swept: Option<u32>,
}

/// What one client takes of the room.
#[derive(Debug, Default)]
struct Share {
    entries: usize,
    /// Whom it says to be, each once.
    peers: Vec<Arc<Peer>>,
}

#[derive(Debug)]
struct Entry {
    said: Box<[u8]>,
    peer: Arc<Peer>,
    used: AtomicU32,
}

impl Peers {
    /// Nobody yet; `decode` reads what clients say.
    pub fn new(decode: fn(&[u8]) -> Option<Workload>) -> Peers {
        Peers {
            hashing: RandomState::default(),
            proven: RwLock::default(),
            said: RwLock::default(),
            claimed: RwLock::default(),
            decode,
        }
    }

    /// The client that says this, and has shown to be `principal`, at this second. `None` where nothing is known of it, or
    /// there are too many. Who has shown who it is and says too much is known by that alone.
    pub fn find(&self, said: &[u8], principal: Option<&SpiffeId>, second: u32) -> Option<Arc<Peer>> {
        let said = if said.len() > LONGEST { &[] } else { said };
        match (principal, said) {
            (None, []) => None,
            (None, said) => self.find_in(&self.claimed, CLAIMED, (said, None), second),
            (Some(_), []) => self.find_in(&self.proven, PROVEN, (said, principal), second),
            (Some(_), said) => self
                .find_in(&self.said, PROVEN, (said, principal), second)
                .or_else(|| self.find_in(&self.proven, PROVEN, (&[], principal), second)),
        }
    }

    fn find_in(
        &self,
        known: &RwLock<Known>,
        most: usize,
        (said, principal): (&[u8], Option<&SpiffeId>),
        second: u32,
    ) -> Option<Arc<Peer>> {
        let mut hasher = self.hashing.build_hasher();
        hasher.write(said);
        hasher.write(principal.map_or(&[], |principal| principal.as_str().as_bytes()));
        let hash = hasher.finish();
        let is_it = |entry: &Entry| *entry.said == *said && entry.peer.principal.as_ref() == principal;
        {
            let known = known.read().unwrap_or_else(PoisonError::into_inner);
            match known.by_hash.get(&hash) {
                Some(entry) if is_it(entry) => {
                    if entry.used.load(Ordering::Relaxed) != second {
                        entry.used.store(second, Ordering::Relaxed);
                    }
                    return Some(Arc::clone(&entry.peer));
                }
                // A flood of made-up names waits for nobody, and holds nobody up.
                _ if known.swept == Some(second) && known.is_full(most, principal) => return None,
                _ => {}
            }
        }
        let mut known = known.write().unwrap_or_else(PoisonError::into_inner);
        if known.is_full(most, principal) && known.swept != Some(second) {
            known.sweep(second);
        }
        if known.is_full(most, principal) {
            return None;
        }
        let workload = (self.decode)(said).unwrap_or_default();
        let peer = known.share(Peer::new(workload, principal.cloned()))?;
        let entry = Entry { said: said.into(), peer: Arc::clone(&peer), used: AtomicU32::new(second) };
        known.by_hash.insert(hash, entry);
        Some(peer)
    }
}

impl Known {
    /// Whether there is no room for something else that this client says.
    fn is_full(&self, most: usize, principal: Option<&SpiffeId>) -> bool {
        let own = principal.and_then(|principal| self.shares.get(principal)).map_or(0, |share| share.entries);
        self.by_hash.len() >= most || own >= SAID_BY_ONE
    }

    /// Gives up what was of no use for long.
    fn sweep(&mut self, second: u32) {
        self.swept = Some(second);
        self.by_hash.retain(|_, entry| second.saturating_sub(entry.used.load(Ordering::Relaxed)) < IDLE);
        self.shares.clear();
        for entry in self.by_hash.values() {
            let Some(principal) = &entry.peer.principal else { continue };
            let share = self.shares.entry(principal.clone()).or_default();
            share.entries += 1;
            if !share.peers.iter().any(|peer| Arc::ptr_eq(peer, &entry.peer)) {
                share.peers.push(Arc::clone(&entry.peer));
            }
        }
    }

    /// A client that says something new: the one that it has said to be before, or another one, if it may be.
    fn share(&mut self, peer: Peer) -> Option<Arc<Peer>> {
        let Some(principal) = &peer.principal else { return Some(Arc::new(peer)) };
        let share = self.shares.entry(principal.clone()).or_default();
        let peer = match share.peers.iter().find(|known| ***known == peer) {
            Some(known) => Arc::clone(known),
            None if share.peers.len() >= WORKLOADS_OF_ONE => {
                // What else it says is not read for nothing.
                share.entries += 1;
                return None;
            }
            None => {
                let peer = Arc::new(peer);
                share.peers.push(Arc::clone(&peer));
                peer
            }
        };
        share.entries += 1;
        Some(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers() -> Peers {
        Peers::new(|said| Some(Workload::of_endpoint(std::str::from_utf8(said).ok()?)))
    }

    #[test]
    fn a_client_is_read_once_and_is_who_its_certificate_says() {
        let (peers, id): (_, SpiffeId) = (peers(), "spiffe://td/ns/shop/sa/web".parse().unwrap());
        let first = peers.find(b"web;shop;web;v1;", Some(&id), 0).unwrap();
        assert!(Arc::ptr_eq(&first, &peers.find(b"web;shop;web;v1;", Some(&id), 1).unwrap()));
        let claimed = peers.find(b"web;shop;web;v1;", None, 0).unwrap();
        assert_eq!((&claimed.principal, &claimed.workload), (&None, &first.workload));
        let silent = peers.find(b"", Some(&id), 0).unwrap();
        assert_eq!(silent.workload.namespace.as_deref(), Some("shop"));
        assert_eq!(peers.find(b"", None, 0), None);
    }

    #[test]
    fn a_flood_of_claims_has_its_bounds_and_an_hour_later_there_is_room() {
        let (peers, id): (_, SpiffeId) = (peers(), "spiffe://td/ns/shop/sa/web".parse().unwrap());
        let claim = |number: usize, second| peers.find(format!("w{number};n;;;").as_bytes(), None, second);
        assert_eq!((0..1000).filter(|number| claim(*number, 0).is_some()).count(), CLAIMED);
        assert!(peers.find(b"w;shop;;;", Some(&id), 0).is_some(), "who has shown who it is has room of its own");
        assert!(claim(0, IDLE - 1).is_some() && claim(1000, IDLE).is_some());
        assert!(claim(0, IDLE).is_some());
        assert_eq!(peers.find(&[b'x'; LONGEST + 1], None, 0), None);
    }

    #[test]
    fn who_makes_names_up_drives_nobody_out_and_is_known_by_his_certificate_alone() {
        let peers = peers();
        let [liar, other] =
            ["web", "other"].map(|name| format!("spiffe://td/ns/shop/sa/{name}").parse::<SpiffeId>().unwrap());
        let named = |number: usize, second| {
            let peer = peers.find(format!("w{number};shop;;;").as_bytes(), Some(&liar), second).unwrap();
            assert_eq!((peer.principal.as_ref(), peer.workload.namespace.as_deref()), (Some(&liar), Some("shop")));
            peer.workload.name.is_some()
        };
        assert_eq!((0..2 * PROVEN).filter(|number| named(*number, 0)).count(), WORKLOADS_OF_ONE);
        // Replicas of one workload say different things.
        let replica = |number: usize| peers.find(format!("api;shop;;;;{number}").as_bytes(), Some(&other), 0).unwrap();
        let first = replica(0);
        assert_eq!(first.workload.name.as_deref(), Some("api"));
        assert!((1..SAID_BY_ONE).all(|number| Arc::ptr_eq(&first, &replica(number))));
        assert_eq!(replica(SAID_BY_ONE).workload.name, None, "there is room for others");
        assert!(named(2 * PROVEN, IDLE), "an hour later there is room again");
    }
}
