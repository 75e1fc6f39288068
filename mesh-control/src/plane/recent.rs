//! Which services came to have other endpoints of late: what does not call them need not be looked at again.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::registry::ServiceId;

/// How many of the last changes are remembered. A stream that has missed more looks at everything.
const MOST: usize = 32;

/// The last changes in a row that were of endpoints alone.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent(VecDeque<(u64, Arc<BTreeSet<ServiceId>>)>);

impl Recent {
    /// Notes what a generation changed.
    pub(super) fn add(&mut self, generation: u64, services: BTreeSet<ServiceId>) {
        if self.0.len() >= MOST {
            self.0.pop_front();
        }
        self.0.push_back((generation, Arc::new(services)));
    }

    /// What the generations after the one changed, up to the other; `None` if that is not known.
    pub(super) fn since(&self, known: u64, now: u64) -> Option<BTreeSet<ServiceId>> {
        let after = || self.0.iter().filter(|(generation, _)| *generation > known && *generation <= now);
        let is_whole = known <= now && after().count() as u64 == now - known;
        is_whole.then(|| after().flat_map(|(_, services)| services.iter().copied()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missed_is_known_as_long_as_all_of_it_is() {
        let mut recent = Recent::default();
        let ids = |all: &[usize]| all.iter().map(|id| ServiceId(*id)).collect::<BTreeSet<_>>();
        recent.add(5, ids(&[1]));
        recent.add(6, ids(&[2, 3]));
        assert_eq!(recent.since(4, 6), Some(ids(&[1, 2, 3])));
        assert_eq!(recent.since(5, 6), Some(ids(&[2, 3])));
        assert_eq!(recent.since(6, 6), Some(ids(&[])));
        assert_eq!(recent.since(3, 6), None, "the fourth may have been anything");
        assert_eq!(recent.since(7, 6), None);
        (7..7 + MOST as u64).for_each(|generation| recent.add(generation, ids(&[4])));
        assert_eq!(recent.since(6, 6 + MOST as u64), Some(ids(&[4])));
        assert_eq!(recent.since(5, 6 + MOST as u64), None);
    }
}
