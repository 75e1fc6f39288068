//! What a peer showed in the handshake of a connection, to be looked at again for as long as the connection lasts.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use tokio_rustls::rustls::CommonState;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

use super::bundle::TrustBundles;
use super::chain::Side;
use super::credentials::{Credentials, PROVIDER};
use super::svid;
use crate::error::Invalid;
use crate::identity::SpiffeId;

const LAST_SECOND: Duration = Duration::from_secs(1);

/// The peer of an established connection: what it showed, and by whose roots that was good.
pub struct Peer {
    id: SpiffeId,
    shown: Shown,
    side: Side,
    trusted: Arc<TrustBundles>,
}

impl Peer {
    /// The client of a connection that was accepted with these credentials; `None` where it showed no certificate.
    pub fn client(connection: &CommonState, credentials: &Credentials) -> Option<Self> {
        Self::of(connection, Side::Client, credentials)
    }

    /// The server of a connection that was made with these credentials.
    pub fn server(connection: &CommonState, credentials: &Credentials) -> Option<Self> {
        Self::of(connection, Side::Server, credentials)
    }

    fn of(connection: &CommonState, side: Side, credentials: &Credentials) -> Option<Self> {
        Self::new(connection.peer_certificates()?, side, &credentials.bundles)
    }

    pub(super) fn new(chain: &[CertificateDer<'static>], side: Side, trusted: &Arc<TrustBundles>) -> Option<Self> {
        let id = svid::identity(chain.first()?).ok()?;
        Some(Peer { id, shown: Shown::new(chain), side, trusted: Arc::clone(trusted) })
    }

    /// Who it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The SHA-256 of its certificate, by which proxies tell of it.
    pub fn fingerprint(&self) -> Option<[u8; 32]> {
        let (leaf, _) = self.shown.split().ok()?;
        digest(&SHA256, leaf).as_ref().try_into().ok()
    }

    /// Whether the handshake would succeed once more, by those who are trusted by now.
    ///
    /// # Errors
    /// Why it would not.
    pub fn check(&mut self, trusted: &Arc<TrustBundles>, now: SystemTime) -> Result<(), Invalid> {
        let is_as_before = Arc::ptr_eq(trusted, &self.trusted) || **trusted == *self.trusted;
        if is_as_before && !self.shown.has_one_that_ended(now) {
            return Ok(());
        }
        let (leaf, intermediates) = self.shown.split()?;
        let algorithms = &PROVIDER.signature_verification_algorithms;
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        trusted.verify(leaf, intermediates, self.side, UnixTime::since_unix_epoch(since_epoch), algorithms)?;
        self.trusted = Arc::clone(trusted);
        self.shown.forget_ended(now);
        Ok(())
    }

    /// When the next certificate that it showed has expired, so that it has to be looked at again.
    pub fn next_check(&self) -> Option<SystemTime> {
        self.shown.next_end()
    }
}

/// The certificates that a peer showed, the leaf first.
pub(super) struct Shown {
    chain: Vec<CertificateDer<'static>>,
    /// When they expire, the next one first.
    ends: Vec<SystemTime>,
}

impl Shown {
    pub(super) fn new(chain: &[CertificateDer<'static>]) -> Self {
        // Whose end cannot be read, holds no longer.
        let end = |certificate: &CertificateDer<'_>| svid::not_after(certificate).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut ends: Vec<SystemTime> = chain.iter().map(end).collect();
        ends.sort_unstable();
        Shown { chain: chain.to_vec(), ends }
    }

    /// The leaf, and the others.
    pub(super) fn split(&self) -> Result<(&CertificateDer<'static>, &[CertificateDer<'static>]), Invalid> {
        self.chain.split_first().ok_or_else(|| Invalid::new("no certificate"))
    }

    pub(super) fn has_one_that_ended(&self, now: SystemTime) -> bool {
        self.ends.first().is_some_and(|end| has_ended(*end, now))
    }

    /// The chain is good without them.
    pub(super) fn forget_ended(&mut self, now: SystemTime) {
        self.ends.retain(|end| !has_ended(*end, now));
    }

    /// When the next one has expired.
    pub(super) fn next_end(&self) -> Option<SystemTime> {
        self.ends.first()?.checked_add(LAST_SECOND)
    }
}

/// A certificate holds to the end of its last second.
fn has_ended(end: SystemTime, now: SystemTime) -> bool {
    end.checked_add(LAST_SECOND).is_none_or(|end| now >= end)
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("id", &self.id).field("side", &self.side).finish_non_exhaustive()
    }
}
