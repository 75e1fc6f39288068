//! The resources of large responses as bytes, which streams have in common while they are told the same: when all clients of a mesh
//! come at once, as after a restart, each would have a copy of its own until its connection has taken it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;

use crate::catalog::{Encoded, Kind};
use crate::serve::protocol::session::Variant;

/// How many are known at most: looking for one takes time with each.
const MOST: usize = 64;

/// The blocks that streams have at present.
#[derive(Debug, Default)]
pub(crate) struct Blocks(Mutex<VecDeque<Weak<Block>>>);

/// The resources of a response, and as bytes.
#[derive(Debug)]
struct Block {
    variant: Variant,
    kind: Kind,
    resources: Vec<Encoded>,
    bytes: Vec<u8>,
}

/// What keeps a block for as long as its bytes are there.
struct Held(Arc<Block>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl Blocks {
    /// These resources as bytes: those of a stream that has them too, or else new ones.
    pub(crate) fn of(
        &self,
        variant: Variant,
        kind: Kind,
        resources: Vec<Encoded>,
        encode: impl FnOnce(&[Encoded]) -> Vec<u8>,
    ) -> Bytes {
        let is_same =
            |block: &Arc<Block>| (block.variant, block.kind) == (variant, kind) && block.resources == resources;
        let known = self.known().iter().rev().filter_map(Weak::upgrade).find(is_same);
        let block = known.unwrap_or_else(|| {
            let bytes = encode(&resources);
            let block = Arc::new(Block { variant, kind, resources, bytes });
            self.note(&block);
            block
        });
        Bytes::from_owner(Held(block))
    }

    fn note(&self, block: &Arc<Block>) {
        let mut known = self.known();
        known.retain(|one| one.strong_count() > 0);
        if known.len() >= MOST {
            known.pop_front();
        }
        known.push_back(Arc::downgrade(block));
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<Weak<Block>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(version: &str) -> Encoded {
        Encoded::new("a", version.to_owned(), version.to_owned())
    }

    #[test]
    fn streams_that_are_told_the_same_have_the_same_bytes_and_others_do_not() {
        let blocks = Blocks::default();
        let of = |variant, kind, version: &str| {
            blocks.of(variant, kind, vec![resource(version)], |resources| resources[0].body.to_vec())
        };
        let first = of(Variant::Delta, Kind::Cluster, "1");
        assert_eq!(&first[..], b"1");
        let others: Vec<Bytes> = (0..200).map(|_| of(Variant::Delta, Kind::Cluster, "1")).collect();
        assert!(others.iter().all(|other| other.as_ptr() == first.as_ptr()));
        for (variant, kind, version) in [
            (Variant::Sotw, Kind::Cluster, "1"),
            (Variant::Delta, Kind::Route, "1"),
            (Variant::Delta, Kind::Cluster, "2"),
        ] {
            let other = of(variant, kind, version);
            assert_eq!(&other[..], version.as_bytes());
            assert_ne!(other.as_ptr(), first.as_ptr(), "{variant:?} {kind:?} {version}");
        }
    }

    #[test]
    fn what_no_stream_has_any_more_is_gone_and_no_more_are_known_than_may_be() {
        let blocks = Blocks::default();
        let of = |version: usize| {
            blocks.of(Variant::Delta, Kind::Cluster, vec![resource(&version.to_string())], |_| vec![0])
        };
        let weak = {
            let _one = of(0);
            blocks.known()[0].clone()
        };
        assert!(weak.upgrade().is_none());
        let held: Vec<Bytes> = (0..2 * MOST).map(of).collect();
        assert_eq!(blocks.known().len(), MOST);
        drop(held);
        drop(of(0));
        assert_eq!(blocks.known().len(), 1);
    }
}
