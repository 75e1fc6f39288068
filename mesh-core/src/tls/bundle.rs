//! Whom to trust: the roots of each trust domain.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};
use tokio_rustls::rustls::crypto::WebPkiSupportedAlgorithms;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::svid;
use crate::error::Invalid;
use crate::identity::{SpiffeId, TrustDomain};

/// The roots of each trust domain that is trusted.
///
/// A peer is verified against the roots of the domain that its own ID names, and against no others: one pool of roots
/// would let every domain issue the IDs of every other one (X509-SVID, 5.2).
#[derive(Clone, Default, PartialEq)]
pub struct TrustBundles {
    domains: BTreeMap<TrustDomain, Vec<TrustAnchor<'static>>>,
}

/// On which side of the connection the peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// It was dialled.
    Server,
    /// It has dialled.
    Client,
}

impl TrustBundles {
    /// Nobody.
    pub fn new() -> Self {
        TrustBundles::default()
    }

    /// Trusts these roots to vouch for a domain, too.
    ///
    /// # Errors
    /// Where one is no certificate of an authority, or there is none.
    pub fn add_pem(&mut self, domain: TrustDomain, pem: &[u8]) -> Result<(), Invalid> {
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let roots = roots.map_err(|error| Invalid::new(format!("not a certificate: {error}")))?;
        self.add(domain, &roots)
    }

    /// The same of roots that were parsed before.
    pub(crate) fn add(&mut self, domain: TrustDomain, roots: &[CertificateDer<'_>]) -> Result<(), Invalid> {
        if roots.is_empty() {
            return Err(Invalid::new("no certificate"));
        }
        let anchors: Vec<_> = roots.iter().map(anchor).collect::<Result<_, _>>()?;
        self.domains.entry(domain).or_default().extend(anchors);
        Ok(())
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
        let anchors = self
            .domains
            .iter()
            .find(|(domain, _)| domain.as_str() == id.trust_domain())
            .map(|(_, anchors)| anchors)
            .ok_or_else(|| about(&format_args!("the trust domain {:?} is not trusted", id.trust_domain())))?;
        let usage = match side {
            Side::Server => KeyUsage::server_auth(),
            Side::Client => KeyUsage::client_auth(),
        };
        let failed = |error: webpki::Error| about(&reason(&error));
        let leaf = EndEntityCert::try_from(leaf).map_err(failed)?;
        leaf.verify_for_usage(algorithms.all, anchors, intermediates, now, usage, None, None).map_err(failed)?;
        Ok(id)
    }
}

/// A short name of the roots in a text, whatever their order: the same for the same certificates, and for no others.
pub fn fingerprint(pem: &[u8]) -> String {
    let mut roots: Vec<_> = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
    roots.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
    roots.dedup();
    let mut context = Context::new(&SHA256);
    roots.iter().for_each(|root| context.update(root));
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

/// What the verifier found, in words of our own.
fn reason(error: &webpki::Error) -> String {
    match error {
        webpki::Error::CertExpired { .. } => "it has expired".to_owned(),
        webpki::Error::CertNotValidYet { .. } => "it is not valid yet".to_owned(),
        webpki::Error::UnknownIssuer => "no trusted authority of its trust domain has signed it".to_owned(),
        other => format!("{other:?}"),
    }
}

impl fmt::Debug for TrustBundles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.domains.iter().map(|(domain, roots)| (domain, roots.len()))).finish()
    }
}
