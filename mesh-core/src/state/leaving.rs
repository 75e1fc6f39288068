//! Streams that are about to leave an endpoint: they are under way there until they are elsewhere, and load of it no more for
//! whoever decides what should leave.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::EndpointState;

/// One stream that is about to leave, until this is dropped.
#[derive(Debug)]
pub struct Leaving(Arc<EndpointState>);

impl EndpointState {
    /// Counts one of its streams among those that are about to leave.
    pub fn leaving(self: &Arc<Self>) -> Leaving {
        self.leaving.fetch_add(1, Ordering::Relaxed);
        Leaving(Arc::clone(self))
    }

    /// What is in flight and not about to leave.
    pub fn staying(&self) -> u32 {
        self.in_flight().saturating_sub(self.leaving.load(Ordering::Relaxed))
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.leaving.fetch_sub(1, Ordering::Relaxed);
    }
}
