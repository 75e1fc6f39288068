//! Where a mesh keeps its present credentials.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{Notify, watch};

use super::{Credentials, MaterialReader, TrustBundles};
use crate::error::{ErrorKind, MeshError};

/// The present credentials of a mesh. Whoever shakes hands asks here; whoever has an authority to ask puts them here.
///
/// Nobody is asked for a certificate before one is wanted: a mesh without TLS needs no authority.
#[derive(Debug)]
pub struct Certificates {
    current: watch::Sender<Option<Arc<Credentials>>>,
    trusted: watch::Sender<Arc<TrustBundles>>,
    wanted: watch::Sender<bool>,
    /// Why there are none, or no newer ones.
    problem: watch::Sender<Option<Arc<str>>>,
    /// Told that the present ones may not be good any more.
    doubt: Notify,
    /// What clusters go by for TLS with servers outside of the mesh.
    material: Arc<MaterialReader>,
}

impl Default for Certificates {
    fn default() -> Self {
        Certificates {
            current: watch::Sender::new(None),
            trusted: watch::Sender::default(),
            wanted: watch::Sender::new(false),
            problem: watch::Sender::new(None),
            doubt: Notify::new(),
            material: Arc::default(),
        }
    }
}

impl Certificates {
    /// The present ones.
    pub fn current(&self) -> Option<Arc<Credentials>> {
        self.current.borrow().clone()
    }

    /// From now on these. Connections that were made before carry no new request where the
    /// certificate is another one, and end where nobody whom these trust vouches for the peer.
    pub fn set(&self, credentials: Arc<Credentials>) {
        if self.current().is_none_or(|present| !present.is_same(&credentials)) {
            tracing::info!(id = %credentials.id(), serial = credentials.serial(), "a new certificate, or other roots");
        }
        self.problem.send_replace(None);
        let trusted = Arc::clone(&credentials.bundles);
        // A new certificate is no news to whoever asks for the roots. They come first: who shakes hands by these credentials
        // asks next whether the peer is trusted.
        self.trusted.send_if_modified(|present| {
            *present != trusted && {
                *present = trusted;
                true
            }
        });
        self.current.send_replace(Some(credentials));
    }

    /// Waits until the workload shows another certificate than that of `credentials`. Cancel safe.
    pub async fn replaced(&self, credentials: &Credentials) {
        let another = |present: &Option<Arc<Credentials>>| {
            present.as_ref().is_some_and(|present| !present.shows_the_same_as(credentials))
        };
        // An error would say that the sender is gone, which is `self`.
        let _ = self.current.subscribe().wait_for(another).await;
    }

    /// The reader of what clusters go by for TLS with servers outside of the mesh: files and secrets.
    pub fn material(&self) -> &Arc<MaterialReader> {
        &self.material
    }

    /// Whom the present ones trust; nobody, where there are none. Tells of changes of that and of nothing else.
    pub fn trusted(&self) -> watch::Receiver<Arc<TrustBundles>> {
        self.trusted.subscribe()
    }

    /// Says why there are no newer ones. Those that are there stay.
    pub fn failed(&self, reason: impl Into<Arc<str>>) {
        let reason = reason.into();
        tracing::warn!("no new certificate: {reason}");
        self.problem.send_replace(Some(reason));
    }

    /// Why there are no newer ones, where the last attempt to get some has failed.
    pub fn problem(&self) -> Option<Arc<str>> {
        self.problem.borrow().clone()
    }

    /// All that keeps this process from trusting and showing what it should, in words: that there is no newer certificate, that
    /// lists of revoked certificates have expired, that files which clusters name (`caCertificates`, `caCrl`, ...) cannot be used,
    /// so that what they said before is in force. For a check of health or an alarm; see `Mesh::certificates` of mesh-tower.
    pub fn problems(&self, now: SystemTime) -> Vec<String> {
        let renewal = self.problem().map(|why| format!("no new certificate: {why}"));
        let revoked = self.trusted.borrow().check(now).err().map(|expired| expired.to_string());
        let material = self.material.problems(now).into_iter().map(|invalid| invalid.to_string());
        renewal.into_iter().chain(revoked).chain(material).collect()
    }

    /// Says that the present ones may not be good any more, because the authority is another one: whoever keeps them asks it
    /// for new ones, as soon as it would after a failure.
    pub fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Waits until somebody doubts the present ones. Cancel safe.
    pub async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// Says that there is TLS to be done.
    pub fn want(&self) {
        self.wanted.send_if_modified(|wanted| !std::mem::replace(wanted, true));
    }

    /// Waits until somebody wants some.
    pub async fn wanted(&self) {
        // An error would say that the sender is gone, which is `self`.
        let _ = self.wanted.subscribe().wait_for(|wanted| *wanted).await;
    }

    /// The present ones, as soon as there are some that still hold. Cancel safe.
    pub async fn get(&self) -> Arc<Credentials> {
        self.want();
        let mut current = self.current.subscribe();
        let holds = |credentials: &Arc<Credentials>| credentials.not_after() > SystemTime::now();
        loop {
            let found = current.borrow_and_update().clone().filter(holds);
            match found {
                Some(credentials) => return credentials,
                // An error would say that the sender is gone, which is `self`.
                None => _ = current.changed().await,
            }
        }
    }

    /// Why there are none that hold, where getting some has failed.
    pub fn lack(&self) -> Option<String> {
        let holds = self.current().is_some_and(|credentials| credentials.not_after() > SystemTime::now());
        let is_lacking = !holds && self.problem.borrow().is_some();
        is_lacking.then(|| self.missing().to_string())
    }

    /// What a handshake fails with that has waited for credentials in vain.
    pub fn missing(&self) -> MeshError {
        let problem = self.problem.borrow().clone();
        let what = match (self.current(), problem) {
            (Some(_), Some(problem)) => format!("the workload's certificate has expired: {problem}"),
            (Some(_), None) => "the workload's certificate has expired".to_owned(),
            (None, Some(problem)) => format!("the workload has no certificate yet: {problem}"),
            (None, None) => "the workload has no certificate yet".to_owned(),
        };
        MeshError::new(ErrorKind::ConnectFailure, what)
    }
}
