//! Whose client certificates are taken on the secured listener: each by the bundle of its own trust domain (X509-SVID, 5.2).
//!
//! An identity of the mesh is vouched for by the mesh's authority where there is one, and else by that of `--client-ca`. One
//! pool of both would let whoever is in the one issue identities of the other.

use std::fmt;
use std::sync::Arc;

use mesh_core::identity::TrustDomain;
use mesh_core::tls::svid;
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use crate::ca;

/// Who may vouch for clients.
pub(super) struct Anchors {
    /// The roots of the server's own authority; none where it has none.
    pub(super) own: Vec<CertificateDer<'static>>,
    /// Whom that authority vouches for no longer.
    pub(super) revoked: Vec<CertificateRevocationListDer<'static>>,
    /// Those that the operator names.
    pub(super) operators: Vec<CertificateDer<'static>>,
}

/// See the [module](self).
pub(super) struct Verifier {
    domain: TrustDomain,
    own: Option<Arc<dyn ClientCertVerifier>>,
    operators: Option<Arc<dyn ClientCertVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// `None` where nobody vouches for anybody.
    pub(super) fn new(
        domain: TrustDomain,
        anchors: Anchors,
        provider: &Arc<CryptoProvider>,
    ) -> anyhow::Result<Option<Verifier>> {
        let of = |roots: &[CertificateDer<'static>], revoked: &[CertificateRevocationListDer<'static>]| {
            (!roots.is_empty()).then(|| ca::verifier(roots, revoked)).transpose()
        };
        let (own, operators) = (of(&anchors.own, &anchors.revoked)?, of(&anchors.operators, &[])?);
        let is_of_use = own.is_some() || operators.is_some();
        Ok(is_of_use.then(|| Verifier { domain, own, operators, provider: provider.clone() }))
    }

    /// Who has to vouch for a leaf.
    fn voucher(&self, leaf: &CertificateDer<'_>) -> Result<&Arc<dyn ClientCertVerifier>, Error> {
        let voucher = match svid::id(leaf) {
            Ok(id) if id.trust_domain() != self.domain.as_str() => {
                let (domain, ours) = (id.trust_domain(), self.domain.as_str());
                let why = format!("the certificate of {id}: the trust domain {domain:?} is not the mesh's, {ours:?}");
                return Err(refused(why));
            }
            Ok(_) => self.own.as_ref().or(self.operators.as_ref()),
            // It names nobody, which is for the services to say.
            Err(_) => self.operators.as_ref().or(self.own.as_ref()),
        };
        voucher.ok_or_else(|| refused("nobody vouches for clients".to_owned()))
    }
}

fn refused(why: String) -> Error {
    let why = Box::<dyn std::error::Error + Send + Sync>::from(why);
    Error::InvalidCertificate(CertificateError::Other(OtherError(why.into())))
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Verifier {
    /// With an authority of its own, whoever has no certificate yet may come for one.
    fn client_auth_mandatory(&self) -> bool {
        self.own.is_none()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.voucher(leaf)?.verify_client_cert(leaf, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
