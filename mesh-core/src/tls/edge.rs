//! How a gateway shakes hands: by certificates and authorities that a control plane delivers as secrets. Clients need not be of the
//! mesh, and may show no certificate where none is asked for.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WantsServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    CommonState, ConfigBuilder, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use webpki::RevocationCheckDepth;

use super::chain::{Side, Trust};
use super::credentials::{PROVIDER, parsed};
use super::foreign::has_one_of;
use super::handshake::{refused, signatures};
use super::material::{anchors_of, revoked_of};
use super::revoked::Revoked;
use super::svid;
use crate::error::Invalid;
use crate::identity::SpiffeId;
use crate::model::{EdgeTls, Secret, TlsVersions};

/// Who verifies what clients show, by these rules and the secret that they name; nobody where they are asked for nothing.
///
/// # Errors
/// Which secret cannot be used, and why.
pub(crate) fn client_verifier(
    tls: &EdgeTls,
    secret: impl Fn(&str) -> Result<Arc<Secret>, Invalid>,
    now: SystemTime,
) -> Result<Option<Arc<ClientVerifier>>, Invalid> {
    let Some(name) = &tls.clients else { return Ok(None) };
    let known = authorities(&*secret(name)?, now);
    let (anchors, revoked) = known.map_err(|invalid| within(name, &invalid))?;
    let (names, is_mandatory) = (tls.names.clone(), tls.requires_client);
    Ok(Some(Arc::new(ClientVerifier { anchors, revoked, names, is_mandatory })))
}

fn within(name: &str, invalid: &Invalid) -> Invalid {
    Invalid::new(format!("secret {name:?}: {invalid}"))
}

/// How a server shakes hands with whoever connects, by these rules and the secrets that they name, with who verifies what clients show.
///
/// # Errors
/// Which secret cannot be used, and why. A certificate that has expired can: it is its client's to refuse.
pub(crate) fn edge_config(
    tls: &EdgeTls,
    secret: impl Fn(&str) -> Result<Arc<Secret>, Invalid>,
    verifier: Option<Arc<ClientVerifier>>,
) -> Result<ServerConfig, Invalid> {
    let key = |name: &Arc<str>| certificate(&*secret(name)?).map_err(|invalid| within(name, &invalid));
    let keys: Result<Vec<_>, Invalid> = tls.certificates.iter().map(key).collect();
    let keys = keys?;
    if keys.is_empty() {
        return Err(Invalid::new("it names no certificate"));
    }
    let versions: &[&SupportedProtocolVersion] = match tls.versions {
        TlsVersions::Both => &[&TLS13, &TLS12],
        TlsVersions::Tls12 => &[&TLS12],
        TlsVersions::Tls13 => &[&TLS13],
    };
    let config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(versions)
        .map_err(|error| Invalid::new(error.to_string()))?;
    let config: ConfigBuilder<ServerConfig, WantsServerCert> = match verifier {
        None => config.with_no_client_auth(),
        Some(verifier) => config.with_client_cert_verifier(verifier),
    };
    let mut config = config.with_cert_resolver(Arc::new(Certificates(keys)));
    config.alpn_protocols = [b"h2".as_slice(), b"http/1.1"].map(<[u8]>::to_vec).into();
    if tls.clients.is_some() {
        // Who is a client of a session that goes on was found by rules that may not hold any more.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

/// When the certificate of a secret ends, where it has one.
pub(crate) fn certificate_end(secret: &Secret) -> Option<SystemTime> {
    let Secret::Certificate { chain, .. } = secret else { return None };
    let leaf = CertificateDer::pem_slice_iter(chain).next()?.ok()?;
    svid::not_after(&leaf).ok()
}

fn certificate(secret: &Secret) -> Result<Arc<CertifiedKey>, Invalid> {
    let (chain, key) = match secret {
        Secret::Certificate { chain, key } => parsed(chain, key)?,
        Secret::Authorities { .. } => return Err(Invalid::new("it has no certificate to show")),
        Secret::Unusable(reason) => return Err(Invalid::new(&**reason)),
    };
    if chain.is_empty() {
        return Err(Invalid::new("no certificate"));
    }
    let pair = CertifiedKey::from_der(chain, key, &PROVIDER);
    pair.map(Arc::new).map_err(|error| Invalid::new(format!("the key and the certificate do not fit: {error}")))
}

fn authorities(secret: &Secret, now: SystemTime) -> Result<(Vec<TrustAnchor<'static>>, Revoked), Invalid> {
    match secret {
        Secret::Authorities { roots, revoked } => {
            let lists = revoked.as_deref().map(|lists| revoked_of(lists, now)).transpose()?;
            Ok((anchors_of(roots)?, lists.unwrap_or_default()))
        }
        Secret::Certificate { .. } => Err(Invalid::new("it does not say whom to trust")),
        Secret::Unusable(reason) => Err(Invalid::new(&**reason)),
    }
}

/// The certificates of a chain: the first whose key a client can verify.
#[derive(Debug)]
struct Certificates(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        self.0.iter().find(fits).or(self.0.first()).cloned()
    }
}

/// Verifies what a client shows.
pub(crate) struct ClientVerifier {
    anchors: Vec<TrustAnchor<'static>>,
    revoked: Revoked,
    names: Vec<crate::model::NameTest>,
    is_mandatory: bool,
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier").field("is_mandatory", &self.is_mandatory).finish_non_exhaustive()
    }
}

impl ClientVerifier {
    /// Whether what a client has shown would be let in now.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check(&self, client: &EdgeClient, now: SystemTime) -> Result<(), Arc<str>> {
        let Some((leaf, intermediates)) = client.shown.split_first() else { return Ok(()) };
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let verified = self.verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(now));
        verified.map(drop).map_err(|error| error.to_string().into())
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.is_mandatory
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
        let about = |why: String| refused(&Invalid::new(format!("the certificate of the client: {why}")));
        let trust = Trust { anchors: &self.anchors, revoked: &self.revoked, depth: RevocationCheckDepth::Chain };
        let algorithms = &PROVIDER.signature_verification_algorithms;
        trust.verify(leaf, intermediates, Side::Client, now, algorithms).map_err(about)?;
        if !self.names.is_empty() {
            has_one_of(leaf, &self.names).map_err(|invalid| about(invalid.reason))?;
        }
        Ok(ClientCertVerified::assertion())
    }

    signatures!(tls12 and tls13);
}

/// What a client of a gateway has shown, which was verified in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeClient {
    /// Who it is, where its certificate is like a workload's.
    pub id: Option<SpiffeId>,
    /// The SHA-256 of its certificate.
    pub fingerprint: Option<[u8; 32]>,
    /// The certificate and what vouches for it, to be looked at again.
    shown: Vec<CertificateDer<'static>>,
}

impl EdgeClient {
    /// The client of an established connection; `None` where it showed no certificate.
    pub fn of(connection: &CommonState) -> Option<Self> {
        let shown = connection.peer_certificates()?;
        let leaf = shown.first()?;
        let fingerprint = digest(&SHA256, leaf).as_ref().try_into().ok();
        let shown = shown.iter().map(|one| one.clone().into_owned()).collect();
        Some(EdgeClient { id: svid::identity(leaf).ok(), fingerprint, shown })
    }
}
