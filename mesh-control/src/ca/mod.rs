//! The mesh's certificate authority: it vouches for who a workload is, and for nothing else that a workload asks for.
//!
//! ```text
//!  who asks (serve/clients) ─▶ CertificateAuthority ─▶ Authority: one leaf, from scratch
//!                                 │
//!                                 └─ self-signed, in a directory or in memory; or plugged in, in Istio's files
//! ```
//!
//! Whoever calls [`CertificateAuthority::issue`] has proven who they are: names in a request are not looked at.

mod authority;
mod bundle_map;
mod csr;
mod endpoint;
mod federation;
pub(crate) mod files;
mod key;
mod own_bundle;
mod plugged;
mod rotation;
mod signer;
mod tokens;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use arc_swap::ArcSwap;
use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_core::xds::istio_ca::MAX_RESPONSE;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use zeroize::Zeroizing;

pub(crate) use authority::Authority;
pub(crate) use authority::verifier;
pub use authority::{DEFAULT_TTL, Issued, MAX_TTL, Refused};
use authority::{Serial, since_epoch};
pub(crate) use bundle_map::bundle_map;
pub use endpoint::{BundleEndpoint, EndpointProfile};
use federation::Federation;
pub use federation::TrustBundle;
use key::Key;
use own_bundle::OwnBundle;
use plugged::Plugged;
pub(crate) use plugged::{called, findings};
use rotation::SelfSigned;
pub(crate) use signer::is_of_replica;
pub use tokens::{MAX_TOKEN_TTL, TOKEN_TTL, Tokens};
pub(crate) use tokens::{NewToken, Pending, Unusable, token_name};

/// Where a state directory keeps the authority.
const DIRECTORY: &str = "ca";
/// How long an intermediate of a replica holds unless it is said otherwise.
pub(crate) const INTERMEDIATE_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long after a look at what there should be the next one comes.
const LOOK: Duration = Duration::from_secs(3600);

/// How much of an answer to a workload is for whom to trust of the mesh itself: the chain, the roots, the lists of revoked certificates.
const OWN_BYTES: usize = MAX_RESPONSE / 2;
/// And of foreign trust domains. What is left is for the workload's own certificate.
const FOREIGN_BYTES: usize = MAX_RESPONSE / 2 - (1 << 20);

/// A certificate authority of one trust domain.
///
/// ```
/// use std::time::SystemTime;
///
/// use mesh_control::ca::CertificateAuthority;
///
/// let authority = CertificateAuthority::in_memory("cluster.local".parse()?, SystemTime::now())?;
/// let web = "spiffe://cluster.local/ns/shop/sa/web".parse()?;
/// let (key, issued) = authority.issue_with_key(&web, 0, SystemTime::now())?;
/// assert!(key.contains("PRIVATE KEY") && issued.chain[0].contains("CERTIFICATE"));
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct CertificateAuthority {
    current: ArcSwap<Authority>,
    /// Where its intermediates come from; none where somebody else makes them.
    source: Option<Mutex<SelfSigned>>,
    /// Where that somebody says whose certificates are revoked.
    plugged: Option<Mutex<Plugged>>,
    /// Whom workloads trust of other domains.
    federation: Federation,
    /// What other domains are told of this one.
    bundle: OwnBundle,
    /// When to see whether they are still what there should be, in seconds since 1970.
    look: AtomicU64,
}

impl CertificateAuthority {
    /// A self-signed authority that ends with the process.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn in_memory(domain: TrustDomain, now: SystemTime) -> anyhow::Result<CertificateAuthority> {
        CertificateAuthority::self_signed(&domain, None, now)
    }

    /// The self-signed authority of a server: in the directory `ca` of its state directory, or in memory where it has none.
    ///
    /// # Errors
    /// See [`in_directory`](Self::in_directory).
    pub fn own(state: Option<&Path>, domain: TrustDomain, now: SystemTime) -> anyhow::Result<CertificateAuthority> {
        match state {
            Some(state) => CertificateAuthority::in_directory(&state.join(DIRECTORY), domain, now),
            None => CertificateAuthority::in_memory(domain, now),
        }
    }

    /// The self-signed authority that is kept in a directory, which is made with it where there is none.
    ///
    /// # Errors
    /// Where others can get at the directory or at a file in it, or what is there cannot be used.
    pub fn in_directory(dir: &Path, domain: TrustDomain, now: SystemTime) -> anyhow::Result<CertificateAuthority> {
        let opened = CertificateAuthority::self_signed(&domain, Some(dir.to_owned()), now);
        opened.with_context(|| format!("the certificate authority in {} cannot be used", dir.display()))
    }

    fn self_signed(
        domain: &TrustDomain,
        dir: Option<PathBuf>,
        now: SystemTime,
    ) -> anyhow::Result<CertificateAuthority> {
        let source = SelfSigned::open(domain, dir, now)?;
        Ok(CertificateAuthority::new(source.authority(now)?, Some(source), now))
    }

    /// The authority of somebody else whose intermediate is in a directory, in Istio's layout: `ca-cert.pem`,
    /// `ca-key.pem`, `cert-chain.pem`, `root-cert.pem`, and with `ca-crl.pem` lists of revoked certificates. A server follows these
    /// files, and what cannot be used leaves the last good ones in force. It keeps the lists in its state directory: where they are
    /// gone, or cannot be used, the last good ones count from there after a restart, too.
    ///
    /// # Errors
    /// Where others can get at the key, or certificates of this authority would not be accepted by those who trust the
    /// root; which files are wrong, and why.
    pub fn plugged_in(
        dir: &Path,
        state: Option<&Path>,
        domain: TrustDomain,
        now: SystemTime,
    ) -> anyhow::Result<CertificateAuthority> {
        let (authority, plugged) = Plugged::open(dir, state, &domain, now)?;
        let plugged = Some(Mutex::new(plugged));
        Ok(CertificateAuthority { plugged, ..CertificateAuthority::new(authority, None, now) })
    }

    fn new(authority: Authority, source: Option<SelfSigned>, now: SystemTime) -> CertificateAuthority {
        let (current, source) = (ArcSwap::from_pointee(authority), source.map(Mutex::new));
        CertificateAuthority {
            current,
            source,
            plugged: None,
            federation: Federation::default(),
            bundle: OwnBundle::default(),
            look: AtomicU64::new(next_look(now)),
        }
    }

    /// Has workloads trust foreign domains, too: the roots in these files, and at these endpoints, vouch for the identities of their
    /// domain, and for no others. Files are PEM, or bundles in SPIFFE's form (JSON), and are followed; a server fetches from
    /// endpoints, and beside one, a file counts until the first fetch. What cannot be used, or is older than what was said before, is
    /// told, and leaves that in force, or nobody of its domain is trusted. A server keeps in its state directory what is in force.
    ///
    /// # Errors
    /// Where a domain is named twice, or is the authority's own; where nothing vouches for an endpoint.
    pub fn trust_bundles(
        mut self,
        files: Vec<(TrustDomain, PathBuf)>,
        endpoints: Vec<BundleEndpoint>,
        state: Option<&Path>,
        now: SystemTime,
    ) -> anyhow::Result<CertificateAuthority> {
        self.federation = Federation::new(files, endpoints, state, &self.trust_domain())?;
        self.federation.look(&self.roots(), now);
        Ok(self)
    }

    /// The bundle of its trust domain, in SPIFFE's form, for other domains.
    ///
    /// # Errors
    /// A root has a key that the form does not have.
    pub fn bundle(&self, now: SystemTime) -> anyhow::Result<String> {
        // The one that is due, so that it is known before it signs.
        self.bundle.latest(self.at(now).roots(), now)
    }

    /// The foreign domains, and what is wrong with what is said of them.
    pub fn federated(&self, now: SystemTime) -> Vec<TrustBundle> {
        self.federation.report(now)
    }

    /// Begins to replace the root of a self-signed authority. Both roots are handed out from now on; after eight days the new
    /// one signs, after eight more the old one is dropped. A certificate holds for seven days at most, so nobody is ever
    /// shown one whose root they lack. A server with the same directory takes part within an hour.
    ///
    /// # Errors
    /// Where it is plugged in, so that its root is somebody else's, or cannot be written.
    pub fn rotate_root(&self, now: SystemTime) -> anyhow::Result<()> {
        let source = self.source.as_ref().context("a plugged-in authority has no root of its own")?;
        lock(source).announce(now)?;
        self.look.store(0, Ordering::Relaxed);
        self.at(now);
        Ok(())
    }

    /// A new intermediate of a self-signed authority, for a replica that is called so, in the files that
    /// [`plugged_in`](Self::plugged_in) reads, by their names, the key first. There can be no other authority below it.
    ///
    /// # Errors
    /// Where it is plugged in, so that its root is somebody else's; where the intermediate would not end before the root.
    pub(crate) fn intermediate(
        &self,
        replica: &str,
        life: Duration,
        now: SystemTime,
    ) -> anyhow::Result<[(&'static str, Zeroizing<String>); 4]> {
        let source = self.source.as_ref().context("a plugged-in authority has no root of its own")?;
        let (intermediate, roots) = lock(source).intermediate_of(replica, life, now)?;
        Ok(plugged::files_of(&intermediate, &roots))
    }

    /// Its trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        self.current.load().domain().clone()
    }

    /// The certificates that relying parties trust, in PEM.
    pub fn roots_pem(&self) -> String {
        self.current.load().roots_pem()
    }

    /// When its root ends, and when the first certificate of its chain, in seconds since 1970.
    pub(crate) fn ends(&self) -> (u64, u64) {
        self.current.load().ends()
    }

    /// A short name of them, of the lists of revoked certificates, and of the roots of foreign domains.
    pub(crate) fn roots_name(&self) -> String {
        mesh_core::tls::trust_fingerprint(self.current.load().bundle_pem().as_bytes(), &self.federation.roots())
    }

    /// Whom workloads trust: the authority, with its lists, and the roots of foreign trust domains, in PEM by their names. As long as
    /// these are the same ones, nothing has changed.
    pub(crate) fn trusted(&self) -> (Arc<Authority>, Arc<BTreeMap<String, String>>) {
        (self.current.load_full(), self.federation.roots())
    }

    pub(crate) fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().roots().to_vec()
    }

    pub(crate) fn revoked(&self) -> Vec<CertificateRevocationListDer<'static>> {
        self.current.load().revoked().to_vec()
    }

    /// Looks whether others are revoked by now, or roots of foreign domains are others, and tells whether that is so.
    pub(crate) fn look_for_trust(&self, now: SystemTime) -> bool {
        let is_replaced = self.look_for_next(now);
        let is_news = self.federation.look(&self.roots(), now);
        self.look_for_revoked(now) || is_news || is_replaced
    }

    /// Takes in what somebody has put into the place of a plugged-in authority, and tells whether workloads trust others by it. What
    /// cannot be used leaves the one of before in force. Blocks as well.
    fn look_for_next(&self, now: SystemTime) -> bool {
        let Some(plugged) = &self.plugged else { return false };
        let mut plugged = lock(plugged);
        let present = self.current.load_full();
        match plugged.replaced(&present, now) {
            Ok(None) => false,
            Ok(Some(next)) => {
                plugged.keep(&next);
                let is_news = next.bundle_pem() != present.bundle_pem();
                self.current.store(Arc::new(next));
                tracing::info!("the certificate authority was replaced");
                is_news
            }
            Err(why) => {
                tracing::error!("the certificate authority is that of before: {why:#}");
                false
            }
        }
    }

    /// What is wrong with a plugged-in authority: what is in its files is not in force, or a certificate of it ends soon.
    pub(crate) fn fault(&self, now: SystemTime) -> Option<String> {
        let plugged = lock(self.plugged.as_ref()?);
        plugged.fault(&self.current.load(), now)
    }

    /// Looks whether others are revoked by now, and tells whether that is so. What cannot be used leaves the last good lists in
    /// force. Blocks, for it reads a file, and keeps what is in force in another one.
    fn look_for_revoked(&self, now: SystemTime) -> bool {
        let Some(plugged) = &self.plugged else { return false };
        let mut plugged = lock(plugged);
        let is_news = match plugged.look(&self.current.load(), now) {
            Ok(None) => false,
            Ok(Some(next)) => {
                // First, so that nobody who was refused is let in after a crash.
                plugged.keep(&next);
                self.current.store(Arc::new(next));
                tracing::info!("the lists of revoked certificates were replaced");
                true
            }
            Err(why) => {
                tracing::error!("revoked certificates are those of before: {why:#}");
                false
            }
        };
        plugged.keep(&self.current.load());
        is_news
    }

    /// The lists of revoked certificates that are in force, and whether they are those that should be. `None` where there are
    /// none, and none are missing.
    pub fn revocation(&self, now: SystemTime) -> Option<Revocation> {
        let plugged = lock(self.plugged.as_ref()?);
        let (current, file) = (self.current.load(), plugged.path().to_owned());
        let (lists, ends) = (current.revoked().len(), current.revoked_end());
        let ended = ends.filter(|end| *end < now).map(|_| {
            let file = file.display();
            format!("{file}: a list of revoked certificates has expired: whom it names stays revoked, and nobody knows who else is")
        });
        let problem = plugged.problem().or(ended);
        (lists > 0 || problem.is_some()).then_some(Revocation { file, lists, ends, problem })
    }

    /// Signs a request (PKCS#10 in PEM) for somebody whose identity was proven, for so many seconds; zero is the default
    /// of a day. Of the request, the key counts and nothing else.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn issue(&self, csr: &str, identity: &SpiffeId, ttl: i64, now: SystemTime) -> Result<Issued, Refused> {
        let serial = Serial::random().map_err(Refused::Authority)?;
        let issued = self.at(now).issue(csr, identity, ttl, serial, now)?;
        let issued = Issued { trust_bundles: self.federation.roots(), ..issued };
        // It would not be read, and the token that it is the answer to would be used up. There is room for what stands around texts.
        let foreign: usize = issued.trust_bundles.iter().map(|(domain, roots)| domain.len() + roots.len() + 32).sum();
        let size = issued.chain.iter().map(|pem| pem.len() + 16).sum::<usize>() + foreign;
        if size > MAX_RESPONSE {
            let why = anyhow!(
                "an answer with all whom to trust would have {size} bytes, of which a workload reads {MAX_RESPONSE}"
            );
            return Err(Refused::Authority(why));
        }
        Ok(issued)
    }

    /// A new key, in PEM, and a certificate for it; `ttl` as for [`issue`](Self::issue).
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn issue_with_key(
        &self,
        identity: &SpiffeId,
        ttl: i64,
        now: SystemTime,
    ) -> Result<(Zeroizing<String>, Issued), Refused> {
        let serial = Serial::random().map_err(Refused::Authority)?;
        let key = Key::generate().map_err(Refused::Authority)?;
        let issued = self.at(now).issue_for(&key, identity, ttl, serial, now)?;
        Ok((key.pem(), Issued { trust_bundles: self.federation.roots(), ..issued }))
    }

    /// Whether a chain that somebody showed, the leaf first, is of this authority, and live.
    pub(crate) fn verify(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> anyhow::Result<()> {
        self.at(now).verify(chain, now)
    }

    /// What signs now: with the next intermediate, where two thirds of this one's life are over, and under the next root,
    /// where it is that one's turn.
    fn at(&self, now: SystemTime) -> Arc<Authority> {
        let current = self.current.load_full();
        let Some(source) = self.source.as_ref().filter(|_| since_epoch(now) >= self.look.load(Ordering::Relaxed))
        else {
            return current;
        };
        let mut source = lock(source);
        // Somebody else may have been quicker.
        if since_epoch(now) < self.look.load(Ordering::Relaxed) {
            return self.current.load_full();
        }
        let current = self.current.load_full();
        let next = source.settle(now).and_then(|()| match source.is_current(&current, now)? {
            true => Ok(None),
            false => source.renewed(now).map(Some),
        });
        self.look.store(next_look(now), Ordering::Relaxed);
        match next {
            Ok(None) => current,
            Ok(Some(next)) => {
                let next = Arc::new(next);
                self.current.store(next.clone());
                tracing::info!("the certificate authority has a new intermediate");
                next
            }
            Err(why) => {
                tracing::error!("the certificate authority cannot renew itself, and goes on as it is: {why:#}");
                current
            }
        }
    }
}

/// Lists of revoked certificates, see [`CertificateAuthority::revocation`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Revocation {
    /// Where they are read from.
    pub file: PathBuf,
    /// How many are in force.
    pub lists: usize,
    /// When the first of them ends.
    pub ends: Option<SystemTime>,
    /// Why those in force are not those that should be: the file is gone, cannot be used or is out of date.
    pub problem: Option<String>,
}

fn next_look(now: SystemTime) -> u64 {
    since_epoch(now).saturating_add(LOOK.as_secs())
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority").field("trust_domain", &self.trust_domain()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod trust_tests;
