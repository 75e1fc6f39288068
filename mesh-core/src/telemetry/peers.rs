//! What clients say of themselves (`x-envoy-peer-metadata`), read once and kept within bounds: whoever makes names up drives
//! nobody out.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use foldhash::{fast, quality::RandomState};

use crate::identity::SpiffeId;
use crate::workload::{Peer, Workload};

/// How many are kept of clients that have shown who they are.
const PROVEN: usize = 4096;
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
    proven: RwLock<Known>,
    claimed: RwLock<Known>,
    decode: fn(&[u8]) -> Option<Workload>,
}

#[derive(Debug, Default)]
struct Known {
    /// By what is a hash already, whose key nobody else knows.
    by_hash: HashMap<u64, Entry, fast::RandomState>,
    /// When room was looked for last.
    swept: Option<u32>,
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
        Peers { hashing: RandomState::default(), proven: RwLock::default(), claimed: RwLock::default(), decode }
    }

    /// The client that says this, and has shown to be `principal`, at this second. `None` where nothing is known of it, or
    /// there are too many.
    pub fn find(&self, said: &[u8], principal: Option<&SpiffeId>, second: u32) -> Option<Arc<Peer>> {
        let said = if said.len() > LONGEST { &[] } else { said };
        let (known, most) = match principal {
            Some(_) => (&self.proven, PROVEN),
            None if said.is_empty() => return None,
            None => (&self.claimed, CLAIMED),
        };
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
                _ if known.by_hash.len() >= most && known.swept == Some(second) => return None,
                _ => {}
            }
        }
        let mut known = known.write().unwrap_or_else(PoisonError::into_inner);
        if known.by_hash.len() >= most && known.swept != Some(second) {
            known.swept = Some(second);
            known.by_hash.retain(|_, entry| second.saturating_sub(entry.used.load(Ordering::Relaxed)) < IDLE);
        }
        if known.by_hash.len() >= most {
            return None;
        }
        let workload = (self.decode)(said).unwrap_or_default();
        let peer = Arc::new(Peer::new(workload, principal.cloned()));
        let entry = Entry { said: said.into(), peer: Arc::clone(&peer), used: AtomicU32::new(second) };
        known.by_hash.insert(hash, entry);
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
}
