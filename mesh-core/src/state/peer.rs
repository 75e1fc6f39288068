//! Who an endpoint is to telemetry.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwapOption, Guard};
use http::HeaderValue;

use super::{EndpointState, lock};
use crate::identity::SpiffeId;
use crate::workload::{Peer, Workload};

/// After how long an endpoint may say to be somebody else. Each one that it says to be has series of its own, so that one that makes
/// names up has few.
const SAID_ANEW: Duration = Duration::from_secs(10);

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Known {
    peer: ArcSwapOption<Peer>,
    /// What it said of itself last that was taken in, and when that was.
    said: ArcSwapOption<(HeaderValue, Instant)>,
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

    /// Takes in what it says of itself, which is read only where it is another thing than before, and that was some time ago.
    #[inline]
    pub fn note_said(
        &self,
        said: &HeaderValue,
        now: impl FnOnce() -> Instant,
        read: impl FnOnce(&[u8]) -> Option<Workload>,
    ) {
        let last = self.known.said.load();
        if last.as_ref().is_some_and(|last| last.0 == *said) {
            return;
        }
        let now = now();
        if last.as_ref().is_some_and(|last| now.saturating_duration_since(last.1) < SAID_ANEW) {
            return;
        }
        self.known.said.store(Some(Arc::new((said.clone(), now))));
        if let Some(workload) = read(said.as_bytes()) {
            self.is_peer(workload, self.peer().and_then(|peer| peer.principal.clone()));
        }
    }

    fn is_peer(&self, workload: Workload, principal: Option<SpiffeId>) {
        let peer = Peer::new(workload, principal);
        // Whoever counts by it goes on as before.
        if self.look_at_peer().as_deref() != Some(&peer) {
            self.known.peer.store(Some(Arc::new(peer)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::EndpointId;
    use crate::state::ClusterState;

    #[test]
    fn an_endpoint_that_says_to_be_another_one_all_the_time_is_believed_now_and_then() {
        let (cluster, start) = (ClusterState::default(), Instant::now());
        let endpoint = cluster.endpoint(&EndpointId::new(std::net::SocketAddr::from(([10, 0, 0, 1], 80))), false);
        let read = |said: &[u8]| Some(Workload::of_endpoint(std::str::from_utf8(said).ok()?));
        let mut all = Vec::new();
        for second in 0..60 {
            for number in 0..10 {
                let said = HeaderValue::try_from(format!("w{second}-{number};shop;;;")).unwrap();
                endpoint.note_said(&said, || start + Duration::from_secs(second), read);
                all.push(endpoint.peer().and_then(|peer| peer.workload.name.clone()).unwrap());
            }
        }
        all.dedup();
        assert_eq!(
            all.iter().map(|name| &**name).collect::<Vec<_>>(),
            ["w0-0", "w10-0", "w20-0", "w30-0", "w40-0", "w50-0"]
        );
        // Several that are alike stand behind one address.
        let before = endpoint.peer().unwrap();
        let said = HeaderValue::from_static("w50-0;shop;;;;another-pod");
        endpoint.note_said(&said, || start + Duration::from_secs(600), read);
        assert!(Arc::ptr_eq(&before, &endpoint.peer().unwrap()));
    }
}
