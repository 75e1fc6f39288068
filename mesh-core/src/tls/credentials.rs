//! What a workload shows of itself.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::bundle::TrustBundles;
use super::chain::Side;
use super::revoked::Revoked;
use super::spiffe_bundle::SpiffeBundleMap;
use super::{bundle, handshake, pem_error, svid};
use crate::error::Invalid;
use crate::identity::{SpiffeId, TrustDomain};

/// The provider is a value: a process-wide default belongs to the application.
pub(super) static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

/// A workload's key and certificate, and whom it trusts. Immutable: a rotation makes new ones.
pub struct Credentials {
    pub(super) id: SpiffeId,
    pub(super) key: Arc<CertifiedKey>,
    pub(super) bundles: Arc<TrustBundles>,
    server: Arc<ServerConfig>,
    serial: String,
    /// Names the roots that came with it.
    roots: String,
    not_after: SystemTime,
}

impl Credentials {
    /// From PEM: the chain with the leaf first, its key, and the roots of its own trust domain. Everything is checked
    /// against everything, so what was only half replaced is refused.
    ///
    /// # Errors
    /// What does not fit, without a byte of the key.
    pub fn from_pem(chain: &[u8], key: &[u8], roots: &[u8]) -> Result<Self, Invalid> {
        Self::with_foreign(chain, key, roots, &BTreeMap::new())
    }

    /// The same, trusting the roots of foreign domains, too: in PEM by their names, each for its own domain alone.
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem), and where one of them is its own.
    pub fn with_foreign(
        chain: &[u8],
        key: &[u8],
        roots: &[u8],
        foreign: &BTreeMap<String, String>,
    ) -> Result<Self, Invalid> {
        let (chain, key) = parsed(chain, key)?;
        let leaf = chain.first().ok_or_else(|| Invalid::new("no certificate").at("certificate chain"))?;
        let id = svid::identity(leaf).map_err(|invalid| invalid.at("certificate chain"))?;
        let domain: TrustDomain = id.trust_domain().parse()?;
        let mut bundles = TrustBundles::new();
        bundles.add_pem(domain, roots).map_err(|invalid| invalid.at("roots"))?;
        for (domain, roots) in foreign {
            let at = |invalid: Invalid| invalid.at(format!("roots of {domain}"));
            if domain == id.trust_domain() {
                return Err(at(Invalid::new("it is the workload's own trust domain")));
            }
            bundles.add_pem(domain.parse().map_err(at)?, roots.as_bytes()).map_err(at)?;
        }
        Self::new(chain, key, bundles, bundle::trust_fingerprint(roots, foreign))
    }

    /// The same, trusting these bundles, one of which is that of its own domain, but for whom its authority has revoked (`X509 CRL`
    /// in PEM). Nobody vouches for a domain that has revoked all its keys.
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem).
    pub fn with_bundles(chain: &[u8], key: &[u8], map: &SpiffeBundleMap, revoked: &[u8]) -> Result<Self, Invalid> {
        let (chain, key) = parsed(chain, key)?;
        let leaf = chain.first().ok_or_else(|| Invalid::new("no certificate").at("certificate chain"))?;
        let id = svid::identity(leaf).map_err(|invalid| invalid.at("certificate chain"))?;
        let mut bundles = TrustBundles::new();
        bundles.revoke(id.trust_domain().parse()?, Revoked::from_pem(revoked)?);
        for (domain, bundle) in map.domains.iter().filter(|(_, bundle)| !bundle.roots.is_empty()) {
            let at = |invalid: Invalid| invalid.at(format!("trust_domains[{:?}]", domain.as_str()));
            bundles.add(domain.clone(), &bundle.roots).map_err(at)?;
        }
        Self::new(chain, key, bundles, String::new())
    }

    /// From what was parsed before: the chain with the leaf first, its key, and whom to trust.
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem).
    pub(crate) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        bundles: TrustBundles,
        roots: String,
    ) -> Result<Self, Invalid> {
        let (leaf, intermediates) =
            chain.split_first().ok_or_else(|| Invalid::new("no certificate").at("certificate chain"))?;
        let not_after = svid::not_after(leaf)?;
        // Whether it holds now is asked at each handshake; here, whether it ever does.
        let during = UnixTime::since_unix_epoch(not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        let algorithms = &PROVIDER.signature_verification_algorithms;
        let id = bundles.verify(leaf, intermediates, Side::Server, during, algorithms)?;
        let serial = svid::serial(leaf).unwrap_or_default();
        let key = CertifiedKey::from_der(chain, key, &PROVIDER)
            .map_err(|error| Invalid::new(format!("the key and the certificate do not fit: {error}")))?;
        let (key, bundles) = (Arc::new(key), Arc::new(bundles));
        let server = handshake::server_config(&key, &bundles)?;
        Ok(Credentials { id, key, bundles, server: Arc::new(server), serial, roots, not_after })
    }

    /// Who it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Whether both show the same chain and trust the same roots.
    pub fn is_same(&self, other: &Credentials) -> bool {
        self.shows_the_same_as(other) && self.bundles == other.bundles
    }

    /// Whether both show the same chain, whomever they trust.
    pub fn shows_the_same_as(&self, other: &Credentials) -> bool {
        self.key.cert == other.key.cert
    }

    /// The serial number of its certificate.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Names the roots that came with it, as [`trust_fingerprint`](crate::tls::trust_fingerprint) does.
    pub fn roots(&self) -> &str {
        &self.roots
    }

    /// How a client shows it to a server that asks.
    pub fn client_certificate(&self) -> Arc<dyn ResolvesClientCert> {
        Arc::new(SingleCertAndKey::from(Arc::clone(&self.key)))
    }

    /// Until when it holds.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether the leaf of a client would be let in.
    #[cfg(test)]
    pub(crate) fn trusts(&self, leaf: &CertificateDer<'_>) -> bool {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        self.bundles.verify(leaf, &[], Side::Client, UnixTime::now(), algorithms).is_ok()
    }

    /// Whether this domain's authorities are trusted by what they vouch for: it is the own one, or federated with it.
    pub fn trusts_domain(&self, domain: &str) -> bool {
        self.bundles.has(domain)
    }

    /// How a server that asks for mutual TLS shakes hands.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// How long after `now`, when it was issued, to renew it: half of its life, a tenth of that more or less, so that those
    /// who began together do not renew together. `jitter` is between 0 and 1. When its certificate says that it begins is of
    /// no use here: authorities backdate.
    pub fn renew_after(&self, now: SystemTime, jitter: f64) -> Duration {
        let life = self.not_after.duration_since(now).unwrap_or_default();
        life.mul_f64(0.45 + 0.1 * jitter.clamp(0.0, 1.0))
    }
}

/// A chain, which may be empty, and a key, from PEM.
pub(super) fn parsed(
    chain: &[u8],
    key: &[u8],
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Invalid> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let chain = chain.map_err(|error| Invalid::new(pem_error(&error)).at("certificate chain"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| Invalid::new("no private key").at("private key"))?;
    Ok((chain, key))
}

/// The key stays where it is.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("id", &self.id).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// A new key, and the request to sign it. The key leaves this value only as [`Credentials`].
pub struct CertificateRequest {
    key: rcgen::KeyPair,
    csr: String,
}

impl CertificateRequest {
    /// Makes an ECDSA key on P-256 and a request (PKCS#10) that names nobody: who it is for is the authority's to say.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn new() -> Result<Self, Invalid> {
        let failed = |error: rcgen::Error| Invalid::new(format!("cannot make a key: {error}"));
        let key = rcgen::KeyPair::generate().map_err(failed)?;
        let csr = rcgen::CertificateParams::default().serialize_request(&key).and_then(|csr| csr.pem());
        Ok(CertificateRequest { csr: csr.map_err(failed)?, key })
    }

    /// The request in PEM.
    pub fn csr(&self) -> &str {
        &self.csr
    }

    /// The credentials that an authority's answer completes: certificates in PEM, the leaf first, the root last, and the roots of
    /// foreign trust domains by their names.
    ///
    /// # Errors
    /// Where the answer is not for this key, is no workload's, or its own root does not vouch for it.
    pub fn signed(self, chain: &[String], foreign: &BTreeMap<String, String>) -> Result<Credentials, Invalid> {
        let (root, chain) = chain.split_last().ok_or_else(|| Invalid::new("the authority sent no certificate"))?;
        let (chain, key) = (chain.join("\n"), self.key.serialize_pem());
        Credentials::with_foreign(chain.as_bytes(), key.as_bytes(), root.as_bytes(), foreign)
    }
}

impl fmt::Debug for CertificateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateRequest")
    }
}
