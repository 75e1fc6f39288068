//! Which policies a request can be for at all. A policy that is for some peers, paths or namespaces by their exact names is
//! found by them; the others are always looked at.

use std::collections::HashMap;

use super::condition::Condition;
use super::seen::Seen;
use crate::model::{PeerTest, StringTest};

type ByName = HashMap<Box<str>, Vec<usize>, foldhash::fast::RandomState>;

/// The positions of policies by what they ask for, each list in order.
#[derive(Debug, Default)]
pub(super) struct Index {
    by_peer: ByName,
    by_path: ByName,
    by_namespace: ByName,
    others: Vec<usize>,
}

/// What policies are found by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Peer,
    Path,
    Namespace,
}

impl Index {
    /// Of these policies, each by the conditions that it needs.
    pub(super) fn new<'c>(policies: impl Iterator<Item = [&'c Condition; 2]>) -> Self {
        let mut index = Index::default();
        for (position, needed) in policies.enumerate() {
            let names = |key| needed.iter().find_map(|condition| names(condition, key));
            let (by, names) = if let Some(names) = names(Key::Peer) {
                (&mut index.by_peer, names)
            } else if let Some(names) = names(Key::Path) {
                (&mut index.by_path, names)
            } else if let Some(names) = names(Key::Namespace) {
                (&mut index.by_namespace, names)
            } else {
                index.others.push(position);
                continue;
            };
            for name in names {
                let positions = by.entry(name.into()).or_default();
                if positions.last() != Some(&position) {
                    positions.push(position);
                }
            }
        }
        index
    }

    /// The policies that a request can be for, where both it and its connection are known.
    pub(super) fn candidates(&self, seen: &Seen<'_>) -> [&[usize]; 4] {
        let peer = seen.connection.as_ref().and_then(|ends| ends.peer.as_ref());
        let namespace = peer.and_then(|peer| peer.workload).map(|(namespace, _)| namespace);
        [
            find(&self.by_peer, peer.map(|peer| peer.id)),
            find(&self.by_path, Some(seen.path())),
            find(&self.by_namespace, namespace),
            &self.others,
        ]
    }
}

fn find<'i>(by: &'i ByName, name: Option<&str>) -> &'i [usize] {
    // Most sets are found by one of the keys, and nothing is hashed for the others.
    if by.is_empty() {
        return &[];
    }
    name.and_then(|name| by.get(name)).map_or(&[], Vec::as_slice)
}

/// The exact names without one of which a condition cannot hold; `None` where there is no such list.
fn names(condition: &Condition, key: Key) -> Option<Vec<&str>> {
    match (condition, key) {
        (Condition::Peer(PeerTest::Id(StringTest::Exact { value, ignore_case: false })), Key::Peer)
        | (Condition::Path(StringTest::Exact { value, ignore_case: false }), Key::Path)
        | (Condition::Peer(PeerTest::Namespace(StringTest::Exact { value, ignore_case: false })), Key::Namespace) => {
            Some(vec![value])
        }
        (Condition::All(conditions), _) => conditions.iter().find_map(|condition| names(condition, key)),
        (Condition::Any(conditions), _) => {
            let names: Option<Vec<_>> = conditions.iter().map(|condition| names(condition, key)).collect();
            Some(names?.concat())
        }
        _ => None,
    }
}
