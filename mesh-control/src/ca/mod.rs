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
mod csr;
mod files;
mod key;
mod plugged;
mod signer;
mod tokens;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, anyhow};
use arc_swap::ArcSwap;
use mesh_core::identity::{SpiffeId, TrustDomain};
use tokio_rustls::rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use authority::{Authority, Serial};
pub use authority::{DEFAULT_TTL, Issued, MAX_TTL, Refused};
use files::Present;
use key::Key;
use signer::Signer;
pub(crate) use tokens::Pending;
pub use tokens::{MAX_TOKEN_TTL, TOKEN_TTL, Tokens};

/// Where a state directory keeps the authority.
const DIRECTORY: &str = "ca";
/// The root of a self-signed authority: its key and its certificate.
const ROOT: &str = "root.pem";
/// The intermediate that signs, likewise.
const INTERMEDIATE: &str = "intermediate.pem";

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
}

struct SelfSigned {
    root: Signer,
    dir: Option<PathBuf>,
}

impl CertificateAuthority {
    /// A self-signed authority that ends with the process.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn in_memory(domain: TrustDomain, now: SystemTime) -> anyhow::Result<CertificateAuthority> {
        let root = Signer::root(&domain, now)?;
        let authority = root.intermediate(&domain, now)?.under(&root, &domain, now)?;
        Ok(CertificateAuthority::new(authority, Some(SelfSigned { root, dir: None })))
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
        let context = || format!("the certificate authority in {} cannot be used", dir.display());
        let open = || -> anyhow::Result<CertificateAuthority> {
            files::directory(dir)?;
            let root = kept(&dir.join(ROOT), || Signer::root(&domain, now))?;
            let path = dir.join(INTERMEDIATE);
            let make = || root.intermediate(&domain, now);
            let authority = match kept(&path, make)?.under(&root, &domain, now) {
                Ok(authority) => authority,
                // The server was off for longer than its intermediate lived, or the root was replaced.
                Err(why) => {
                    tracing::warn!("{} is replaced: {why:#}", path.display());
                    let next = make()?;
                    let text = next.to_pem();
                    let authority =
                        next.under(&root, &domain, now).with_context(|| dir.join(ROOT).display().to_string())?;
                    files::write(&path, text.as_bytes(), Present::Replace)?;
                    authority
                }
            };
            Ok(CertificateAuthority::new(authority, Some(SelfSigned { root, dir: Some(dir.to_owned()) })))
        };
        open().with_context(context)
    }

    /// The authority of somebody else whose intermediate is in a directory, in Istio's layout: `ca-cert.pem`,
    /// `ca-key.pem`, `cert-chain.pem`, `root-cert.pem`.
    ///
    /// # Errors
    /// Where others can get at the key, or certificates of this authority would not be accepted by those who trust the
    /// root.
    pub fn plugged_in(dir: &Path, domain: TrustDomain, now: SystemTime) -> anyhow::Result<CertificateAuthority> {
        Ok(CertificateAuthority::new(plugged::load(dir, &domain, now)?, None))
    }

    fn new(authority: Authority, source: Option<SelfSigned>) -> CertificateAuthority {
        CertificateAuthority { current: ArcSwap::from_pointee(authority), source: source.map(Mutex::new) }
    }

    /// Its trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        self.current.load().domain().clone()
    }

    /// The certificates that relying parties trust, in PEM.
    pub fn roots_pem(&self) -> String {
        self.current.load().roots_pem()
    }

    pub(crate) fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().roots().to_vec()
    }

    /// Signs a request (PKCS#10 in PEM) for somebody whose identity was proven, for so many seconds; zero is the default
    /// of a day. Of the request, the key counts and nothing else.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn issue(&self, csr: &str, identity: &SpiffeId, ttl: i64, now: SystemTime) -> Result<Issued, Refused> {
        let serial = Serial::random().map_err(Refused::Authority)?;
        self.at(now).issue(csr, identity, ttl, serial, now)
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
        Ok((key.pem(), issued))
    }

    /// Whether a chain that somebody showed, the leaf first, is of this authority, and live.
    pub(crate) fn verify(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> anyhow::Result<()> {
        self.current.load().verify(chain, now)
    }

    /// What signs now: the next intermediate, where two thirds of this one's life are over.
    fn at(&self, now: SystemTime) -> Arc<Authority> {
        let current = self.current.load_full();
        let Some(source) = self.source.as_ref().filter(|_| current.is_due(now)) else {
            return current;
        };
        let source = lock(source);
        // Somebody else may have been quicker.
        let current = self.current.load_full();
        if !current.is_due(now) {
            return current;
        }
        match source.next(current.domain(), now) {
            Ok(next) => {
                let next = Arc::new(next);
                self.current.store(next.clone());
                tracing::info!("the certificate authority has a new intermediate");
                next
            }
            Err(why) => {
                tracing::error!("the certificate authority cannot renew its intermediate: {why:#}");
                current
            }
        }
    }
}

impl SelfSigned {
    fn next(&self, domain: &TrustDomain, now: SystemTime) -> anyhow::Result<Authority> {
        let next = self.root.intermediate(domain, now)?;
        let text = next.to_pem();
        let authority = next.under(&self.root, domain, now)?;
        if let Some(dir) = &self.dir {
            let path = dir.join(INTERMEDIATE);
            let written = files::write(&path, text.as_bytes(), Present::Replace);
            written.with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(authority)
    }
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority").field("trust_domain", &self.trust_domain()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The signer in a file. Where there is none, one is made; of several processes that do so at once, the first wins.
fn kept(path: &Path, make: impl FnOnce() -> anyhow::Result<Signer>) -> anyhow::Result<Signer> {
    let read = || -> anyhow::Result<Option<Signer>> {
        let text = files::read(path)?;
        let signer = text.map(|text| Signer::from_pem(&text)).transpose();
        signer.with_context(|| path.display().to_string())
    };
    if let Some(signer) = read()? {
        return Ok(signer);
    }
    let signer = make()?;
    match files::write(path, signer.to_pem().as_bytes(), Present::Keep) {
        Ok(()) => Ok(signer),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            read()?.ok_or_else(|| anyhow!("{} came and went", path.display()))
        }
        Err(error) => Err(error).with_context(|| format!("cannot write {}", path.display())),
    }
}

#[cfg(test)]
mod tests;
