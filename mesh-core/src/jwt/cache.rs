//! Tokens that were verified, so that each is verified once. Bounded: two generations of them, and the older one goes when
//! the younger is full.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::claims::Claims;

/// How many tokens a generation has.
const MOST_TOKENS: usize = 512;

/// Longer ones are verified each time: what is kept must not take more than 4 MiB.
const MOST_BYTES: usize = 4 << 10;

type Tokens = HashMap<Box<str>, Claims, foldhash::fast::RandomState>;

#[derive(Default)]
pub(super) struct Cache {
    generations: Mutex<(Tokens, Tokens)>,
}

impl Cache {
    /// The claims of a token whose signature, issuer and audience are good. Its times are to be looked at again.
    pub(super) fn get(&self, token: &str) -> Option<Claims> {
        if token.len() > MOST_BYTES {
            return None;
        }
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(claims) = generations.0.get(token) {
            return Some(claims.clone());
        }
        let (token, claims) = generations.1.remove_entry(token)?;
        insert(&mut generations, token, claims.clone());
        Some(claims)
    }

    pub(super) fn insert(&self, token: &str, claims: &Claims) {
        if token.len() <= MOST_BYTES {
            let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
            insert(&mut generations, token.into(), claims.clone());
        }
    }

    pub(super) fn remove(&self, token: &str) {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.0.remove(token);
        generations.1.remove(token);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.0.len() + generations.1.len()
    }
}

fn insert(generations: &mut (Tokens, Tokens), token: Box<str>, claims: Claims) {
    if generations.0.len() >= MOST_TOKENS {
        generations.1 = std::mem::take(&mut generations.0);
    }
    generations.0.insert(token, claims);
}
