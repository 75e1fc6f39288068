//! Whom to trust: the roots of each trust domain.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use aws_lc_rs::digest::{Context, SHA256};
use tokio_rustls::rustls::crypto::WebPkiSupportedAlgorithms;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use webpki::{RevocationCheckDepth, anchor_from_trusted_cert};

use super::chain::{Side, Trust};
use super::revoked::Revoked;
use super::{pem_error, svid};
use crate::error::Invalid;
use crate::identity::{SpiffeId, TrustDomain};

/// The roots of each trust domain that is trusted.
///
/// A peer is verified against the roots of the domain that its own ID names, and against no others: one pool of roots
/// would let every domain issue the IDs of every other one (X509-SVID, 5.2).
#[derive(Default, PartialEq)]
pub struct TrustBundles {
    domains: BTreeMap<TrustDomain, Bundle>,
}

/// Who vouches for one domain, and for whom no longer.
#[derive(Default, PartialEq)]
struct Bundle {
    anchors: Vec<TrustAnchor<'static>>,
    revoked: Revoked,
}

impl TrustBundles {
    /// Nobody.
    pub fn new() -> Self {
        TrustBundles::default()
    }

    /// Trusts these roots to vouch for a domain, too. Lists of revoked certificates (`X509 CRL`) beside them count, whether or
    /// not they have expired: see [`Revoked::check`].
    ///
    /// # Errors
    /// Where one is no certificate of an authority, or there is none.
    pub fn add_pem(&mut self, domain: TrustDomain, pem: &[u8]) -> Result<(), Invalid> {
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let roots = roots.map_err(|error| Invalid::new(format!("not a certificate: {}", pem_error(&error))))?;
        let revoked = Revoked::from_pem(pem)?;
        self.add(domain.clone(), &roots)?;
        self.revoke(domain, revoked);
        Ok(())
    }

    /// Whether there are authorities of this domain.
    pub(crate) fn has(&self, domain: &str) -> bool {
        self.domains.keys().any(|known| known.as_str() == domain)
    }

    /// Whom a domain's authorities no longer vouch for.
    pub(crate) fn revoke(&mut self, domain: TrustDomain, revoked: Revoked) {
        self.domains.entry(domain).or_default().revoked.extend(revoked);
    }

    /// The same of roots that were parsed before.
    pub(crate) fn add(&mut self, domain: TrustDomain, roots: &[CertificateDer<'_>]) -> Result<(), Invalid> {
        if roots.is_empty() {
            return Err(Invalid::new("no certificate"));
        }
        let anchors: Vec<_> = roots.iter().map(anchor).collect::<Result<_, _>>()?;
        self.domains.entry(domain).or_default().anchors.extend(anchors);
        Ok(())
    }

    /// Whose lists of revoked certificates have expired by now. They go on counting.
    ///
    /// # Errors
    /// The first one.
    pub fn check(&self, now: SystemTime) -> Result<(), Invalid> {
        self.domains.values().try_for_each(|bundle| bundle.revoked.check(now))
    }

    /// Who a peer is: its leaf is that of a workload, and its chain leads to a root of the workload's own domain.
    pub(super) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<SpiffeId, Invalid> {
        let id = svid::identity(leaf)?;
        let about = |reason: &dyn fmt::Display| Invalid::new(format!("the certificate of {id}: {reason}"));
        let known = self.domains.iter().find(|(domain, _)| domain.as_str() == id.trust_domain());
        let (_, Bundle { anchors, revoked }) =
            known.ok_or_else(|| about(&format_args!("the trust domain {:?} is not trusted", id.trust_domain())))?;
        let trust = Trust { anchors, revoked, depth: RevocationCheckDepth::Chain };
        trust.verify(leaf, intermediates, side, now, algorithms).map_err(|why| about(&why))?;
        Ok(id)
    }
}

/// A short name of the roots and the lists of revoked certificates in a text, whatever their order: the same for the same
/// ones, and for no others.
pub fn fingerprint(pem: &[u8]) -> String {
    let mut roots: Vec<_> = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
    roots.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
    roots.dedup();
    let mut revoked: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
    revoked.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
    let mut context = Context::new(&SHA256);
    roots.iter().for_each(|root| context.update(root));
    revoked.iter().for_each(|list| context.update(list));
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The same with the roots of foreign trust domains, in PEM by their names.
pub fn trust_fingerprint(pem: &[u8], foreign: &BTreeMap<String, String>) -> String {
    if foreign.is_empty() {
        return fingerprint(pem);
    }
    let mut context = Context::new(&SHA256);
    context.update(fingerprint(pem).as_bytes());
    for (domain, pem) in foreign {
        // The names of domains have no blanks, and the others always the same length.
        context.update(format!(" {domain} {}", fingerprint(pem.as_bytes())).as_bytes());
    }
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A root as webpki wants it. It must be an authority's.
fn anchor(certificate: &CertificateDer<'_>) -> Result<TrustAnchor<'static>, Invalid> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let unreadable = || Invalid::new("a root certificate cannot be parsed");
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| unreadable())?;
    if !parsed.is_ca() {
        return Err(Invalid::new(format!("{:?} is no certificate of an authority", parsed.subject().to_string())));
    }
    let anchor = anchor_from_trusted_cert(certificate).map_err(|_| unreadable())?;
    if anchor.name_constraints.is_some() {
        // RS-2026-0098: constraints on URIs are refused by the verifier, at every handshake.
        return Err(Invalid::new("name constraints of roots are not supported"));
    }
    Ok(anchor.to_owned())
}

impl fmt::Debug for TrustBundles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.domains.iter().map(|(domain, bundle)| (domain, bundle.anchors.len()))).finish()
    }
}
