//! The certificates that were issued lately, for people to look at: of each identity the last one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use mesh_core::identity::SpiffeId;
use serde::{Deserialize, Serialize};

use crate::serve::clients::fleet::unix;

/// How many identities are remembered: the one whose certificate ends first makes room.
const MOST: usize = 10_000;

/// The certificate that an identity was given last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct IssuedStatus {
    /// Whose it is.
    pub identity: String,
    /// Its serial number, in hexadecimal digits.
    pub serial: String,
    /// Unix time in seconds at which it ends.
    pub expires: u64,
    /// How many the identity was given since the start; each of its replicas has one of its own.
    pub count: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct IssuedBook(Mutex<BTreeMap<SpiffeId, IssuedStatus>>);

impl IssuedBook {
    /// Notes one.
    pub(crate) fn note(&self, identity: &SpiffeId, serial: &str, expires: SystemTime) {
        let (serial, expires) = (serial.to_owned(), unix(expires));
        let mut book = self.book();
        if let Some(known) = book.get_mut(identity) {
            (known.serial, known.expires, known.count) = (serial, expires, known.count + 1);
            return;
        }
        if book.len() >= MOST {
            let first = book.iter().min_by_key(|(_, one)| one.expires).map(|(identity, _)| identity.clone());
            first.map(|identity| book.remove(&identity));
        }
        let new = IssuedStatus { identity: identity.to_string(), serial, expires, count: 1 };
        book.insert(identity.clone(), new);
    }

    /// Those that hold, the next to end first.
    pub(crate) fn report(&self, now: SystemTime) -> Vec<IssuedStatus> {
        let now = unix(now);
        let mut book = self.book();
        book.retain(|_, one| one.expires > now);
        let mut all: Vec<_> = book.values().cloned().collect();
        all.sort_by_key(|one| one.expires);
        all
    }

    fn book(&self) -> MutexGuard<'_, BTreeMap<SpiffeId, IssuedStatus>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_last_one_of_each_identity_is_told_until_it_ends_and_their_number_is_bounded() {
        let (book, start) = (IssuedBook::default(), SystemTime::UNIX_EPOCH);
        let at = |seconds| start + Duration::from_secs(seconds);
        let id = |n: usize| format!("spiffe://cluster.local/ns/shop/sa/a{n}").parse::<SpiffeId>().expect("an ID");
        book.note(&id(0), "aa", at(100));
        book.note(&id(1), "bb", at(50));
        book.note(&id(0), "cc", at(200));
        let told = book.report(at(10));
        let told: Vec<_> = told.iter().map(|one| (&*one.serial, one.expires, one.count)).collect();
        assert_eq!(told, [("bb", 50, 1), ("cc", 200, 2)]);
        assert_eq!(book.report(at(60)).len(), 1);
        (2..2 * MOST).for_each(|n| book.note(&id(n), "dd", at(1000)));
        assert_eq!(book.report(at(60)).len(), MOST);
    }
}
