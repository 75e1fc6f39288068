//! How connections shake hands: TLS 1.3, both sides with a certificate, and nothing resumed.
//!
//! A resumed session would skip the checks of a peer's certificate, and what was true under one set of roots or names need
//! not be true under the next. Connections are kept, so handshakes are few.

use std::fmt;
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{ClientConfig, Resumption};
use tokio_rustls::rustls::crypto::verify_tls13_signature;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{NoServerSessionStorage, ServerConfig};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, CommonState, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use super::bundle::TrustBundles;
use super::chain::Side;
use super::credentials::{Credentials, PROVIDER};
use super::svid;
use crate::error::Invalid;
use crate::identity::SpiffeId;
use crate::model::UpstreamTls;

/// By which Envoy's and Istio's servers tell that a client speaks the mesh's mutual TLS.
const ISTIO: &[u8] = b"istio";

/// How a client shakes hands with the endpoints of a cluster. `alpn` is what it will speak, where that is known.
///
/// # Errors
/// Where rustls refuses the configuration.
pub fn client_config(
    credentials: &Credentials,
    tls: &UpstreamTls,
    alpn: Option<&[u8]>,
) -> Result<ClientConfig, Invalid> {
    let verifier = PeerVerifier { bundles: Arc::clone(&credentials.bundles), peers: Some(Arc::clone(&tls.peers)) };
    let config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| Invalid::new(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&credentials.key))));
    config.alpn_protocols = [ISTIO].into_iter().chain(alpn).map(<[u8]>::to_vec).collect();
    config.resumption = Resumption::disabled();
    config.enable_sni = tls.sni.is_some();
    Ok(config)
}

/// How a client shakes hands with one server of which it knows who it is, and shows nothing of itself: SPIFFE's profile `https_spiffe`
/// of endpoints of bundles.
///
/// ```
/// use mesh_core::tls::{TrustBundles, spiffe_config};
///
/// let mut bundles = TrustBundles::new();
/// # let mut params = rcgen::CertificateParams::default();
/// # params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
/// # let roots = params.self_signed(&rcgen::KeyPair::generate()?)?.pem();
/// bundles.add_pem("partner.example".parse()?, roots.as_bytes())?;
/// let config = spiffe_config(bundles, "spiffe://partner.example/bundles".parse()?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Where rustls refuses the configuration.
pub fn spiffe_config(bundles: TrustBundles, server: SpiffeId) -> Result<ClientConfig, Invalid> {
    let verifier = PeerVerifier { bundles: Arc::new(bundles), peers: Some([server].into()) };
    let config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| Invalid::new(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = config.with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// How a server shakes hands with whoever connects: it has to show a certificate.
pub(super) fn server_config(key: &Arc<CertifiedKey>, bundles: &Arc<TrustBundles>) -> Result<ServerConfig, Invalid> {
    let verifier = PeerVerifier { bundles: Arc::clone(bundles), peers: None };
    let config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| Invalid::new(error.to_string()))?
        .with_client_cert_verifier(Arc::new(verifier));
    let mut config = config.with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(key))));
    config.alpn_protocols = [b"h2".as_slice(), b"http/1.1", ISTIO].map(<[u8]>::to_vec).into();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// What a client gives as the server's name: the cluster's SNI. Nothing is verified by it.
///
/// # Errors
/// Where it is no name.
pub fn server_name(tls: &UpstreamTls) -> Result<ServerName<'static>, Invalid> {
    let name = tls.sni.as_deref().unwrap_or("127.0.0.1");
    ServerName::try_from(name.to_owned())
        .map_err(|_| Invalid::new(format!("{name:?} is no name of a server")).at("sni"))
}

/// Who the peer of an established connection is. It was verified in the handshake.
pub fn peer_identity(connection: &CommonState) -> Option<SpiffeId> {
    svid::identity(connection.peer_certificates()?.first()?).ok()
}

/// A certificate that is not good, as rustls wants to be told.
pub(super) fn refused(invalid: &Invalid) -> Error {
    let reason = Box::<dyn std::error::Error + Send + Sync>::from(invalid.to_string());
    Error::InvalidCertificate(CertificateError::Other(OtherError(reason.into())))
}

/// Verifies the other side, whichever that is.
struct PeerVerifier {
    bundles: Arc<TrustBundles>,
    /// Who it may be; `None` = anybody of a trusted domain.
    peers: Option<Arc<[SpiffeId]>>,
}

impl PeerVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        now: UnixTime,
    ) -> Result<(), Error> {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        let id =
            self.bundles.verify(leaf, intermediates, side, now, algorithms).map_err(|invalid| refused(&invalid))?;
        match &self.peers {
            Some(peers) if !peers.contains(&id) => {
                let wanted: Vec<&str> = peers.iter().take(3).map(SpiffeId::as_str).collect();
                let wanted = if wanted.is_empty() { "nobody".to_owned() } else { wanted.join(", ") };
                Err(refused(&Invalid::new(format!("the peer is {id}, and the service is that of {wanted}"))))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier").field("bundles", &self.bundles).field("peers", &self.peers).finish()
    }
}

/// How signatures of handshakes are verified: those of TLS 1.3, and where foreign ones speak it, of TLS 1.2.
macro_rules! signatures {
    (tls13) => {
        signatures!(@tls13);

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 is not spoken inside the mesh".to_owned()))
        }
    };
    (tls12 and tls13) => {
        signatures!(@tls13);

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, certificate, signature, &PROVIDER.signature_verification_algorithms)
        }
    };
    (@tls13) => {
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signature, &PROVIDER.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            PROVIDER.signature_verification_algorithms.supported_schemes()
        }
    };
}
pub(super) use signatures;

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, Side::Server, now).map(|()| ServerCertVerified::assertion())
    }

    signatures!(tls13);
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, Side::Client, now).map(|()| ClientCertVerified::assertion())
    }

    signatures!(tls13);
}
