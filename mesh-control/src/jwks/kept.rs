//! Fetched keys on disk, so that a restart while an issuer is away refuses nobody. They are public.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::model::JwkSet;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::fetch::Good;
use crate::policy::tokens::KeySource;

#[derive(Serialize, Deserialize)]
struct Kept {
    source: KeySource,
    /// Seconds since 1970.
    fetched: u64,
    keys: String,
}

/// What was kept. What is wrong with it is only missed.
pub(crate) fn read(bytes: &[u8], now: Instant, wall: SystemTime) -> BTreeMap<KeySource, Good<Arc<str>>> {
    let all: Vec<Kept> = serde_json::from_slice(bytes).unwrap_or_default();
    let good = all.into_iter().filter_map(|Kept { source, fetched, keys }| {
        let age = wall.duration_since(UNIX_EPOCH + Duration::from_secs(fetched)).ok()?;
        let keys = JwkSet::parse(keys.as_bytes()).ok()?.to_json().into();
        Some((source, Good { value: keys, since: now.checked_sub(age)? }))
    });
    good.collect()
}

/// What is to be kept.
pub(crate) fn write<'g>(
    good: impl Iterator<Item = (&'g KeySource, &'g Good<Arc<str>>)>,
    now: Instant,
    wall: SystemTime,
) -> Vec<u8> {
    let all = good.map(|(source, good)| {
        let fetched = wall.checked_sub(now.saturating_duration_since(good.since)).unwrap_or(UNIX_EPOCH);
        let fetched = fetched.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Kept { source: source.clone(), fetched, keys: good.value.to_string() }
    });
    serde_json::to_vec(&all.collect::<Vec<_>>()).unwrap_or_default()
}
