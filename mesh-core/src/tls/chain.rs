//! Whether a chain of certificates leads to somebody who is trusted: the one place that asks webpki.

use tokio_rustls::rustls::crypto::WebPkiSupportedAlgorithms;
use tokio_rustls::rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, RevocationCheckDepth};

use super::revoked::Revoked;

/// On which side of the connection the peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// It was dialled.
    Server,
    /// It has dialled.
    Client,
}

/// Who vouches for a peer, and for whom no longer.
pub(super) struct Trust<'a> {
    pub(super) anchors: &'a [TrustAnchor<'static>],
    pub(super) revoked: &'a Revoked,
    /// How far up the lists of revoked certificates are asked.
    pub(super) depth: RevocationCheckDepth,
}

impl Trust<'_> {
    /// Whether the chain of a leaf leads to one of the anchors, and nothing of it is revoked.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), String> {
        let usage = match side {
            Side::Server => KeyUsage::server_auth(),
            Side::Client => KeyUsage::client_auth(),
        };
        let lists = self.revoked.lists();
        let revocation = Revoked::options(&lists, self.depth);
        let leaf = EndEntityCert::try_from(leaf).map_err(|error| reason(&error))?;
        let verified = leaf.verify_for_usage(algorithms.all, self.anchors, intermediates, now, usage, revocation, None);
        verified.map(drop).map_err(|error| reason(&error))
    }
}

/// What the verifier found, in words of our own.
pub(super) fn reason(error: &webpki::Error) -> String {
    match error {
        webpki::Error::CertExpired { .. } => "it has expired".to_owned(),
        webpki::Error::CertNotValidYet { .. } => "it is not valid yet".to_owned(),
        webpki::Error::UnknownIssuer => "no trusted authority has signed it".to_owned(),
        webpki::Error::CertRevoked => "it, or an authority above it, has been revoked".to_owned(),
        webpki::Error::UnknownRevocationStatus => {
            "whether it has been revoked is not known: every authority of its chain needs a list of revoked certificates"
                .to_owned()
        }
        other => format!("{other:?}"),
    }
}
