//! Who an endpoint is to telemetry.

use std::sync::{Arc, Mutex};

use arc_swap::{ArcSwapOption, Guard};
use http::HeaderValue;

use super::{EndpointState, lock};
use crate::identity::SpiffeId;
use crate::workload::{Peer, Workload};

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Known {
    peer: ArcSwapOption<Peer>,
    /// What it said of itself last.
    said: ArcSwapOption<HeaderValue>,
    /// What the control plane said of it last.
    told: Mutex<Option<Arc<str>>>,
}

impl EndpointState {
    /// Who it is, as far as is known.
    #[inline]
    pub fn peer(&self) -> Option<Arc<Peer>> {
        self.known.peer.load_full()
    }

    /// The same to look at, which touches no count that all threads share.
    #[inline]
    pub(crate) fn look_at_peer(&self) -> Guard<Option<Arc<Peer>>> {
        self.known.peer.load()
    }

    /// Whether anything is known of who it is.
    #[inline]
    pub fn has_peer(&self) -> bool {
        self.look_at_peer().is_some()
    }

    /// Takes in what the control plane says of its workload: `workload;namespace;canonical name;canonical revision;cluster`.
    pub fn note_workload(&self, told: &Arc<str>) {
        let mut last = lock(&self.known.told);
        if last.as_ref() != Some(told) {
            *last = Some(Arc::clone(told));
            self.is_peer(Workload::of_endpoint(told), self.peer().and_then(|peer| peer.principal.clone()));
        }
    }

    /// Takes in who it has shown to be.
    pub fn note_principal(&self, principal: &SpiffeId) {
        let peer = self.peer();
        if peer.as_ref().and_then(|peer| peer.principal.as_ref()) != Some(principal) {
            let workload = peer.map(|peer| peer.workload.clone()).unwrap_or_default();
            self.is_peer(workload, Some(principal.clone()));
        }
    }

    /// Takes in what it says of itself, which is read only where it is another thing than before.
    #[inline]
    pub fn note_said(&self, said: &HeaderValue, read: impl FnOnce(&[u8]) -> Option<Workload>) {
        if self.known.said.load().as_deref() == Some(said) {
            return;
        }
        self.known.said.store(Some(Arc::new(said.clone())));
        if let Some(workload) = read(said.as_bytes()) {
            self.is_peer(workload, self.peer().and_then(|peer| peer.principal.clone()));
        }
    }

    fn is_peer(&self, workload: Workload, principal: Option<SpiffeId>) {
        self.known.peer.store(Some(Arc::new(Peer::new(workload, principal))));
    }
}
