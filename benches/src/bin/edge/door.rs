//! How clients come to an edge, by TLS as browsers speak it or in plaintext, and whom they trust.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use mesh_benches::Result;
use mesh_benches::clients::{Job, Raw, RawCaller, Version};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Where an edge is asked for a host, and how.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    pub(crate) host: String,
    pub(crate) version: Version,
    /// By TLS, or in plaintext.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

impl Door {
    /// A request with a body of this size each way.
    pub(crate) fn job(&self, bytes: usize) -> Result<Job<Full<Bytes>>> {
        match self.tls {
            Some(_) => Job::secured(&self.host, bytes),
            None => Job::plain(&self.host, bytes),
        }
    }

    /// So many callers, each over a connection of its own.
    pub(crate) async fn callers(&self, job: &Job<Full<Bytes>>, count: usize) -> Result<Vec<RawCaller<Full<Bytes>>>> {
        let mut callers = Vec::new();
        for _ in 0..count {
            callers.push(RawCaller { sender: self.connect().await?, job: job.clone() });
        }
        Ok(callers)
    }

    async fn connect(&self) -> Result<Raw<Full<Bytes>>> {
        match &self.tls {
            Some(config) => Raw::over(shake_hands(self.address, &self.host, config).await?, self.version).await,
            None => Raw::connect(self.address, self.version).await,
        }
    }
}

/// A connection by TLS.
pub(crate) async fn shake_hands(
    address: SocketAddr,
    host: &str,
    config: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(host.to_owned())?;
    Ok(TlsConnector::from(Arc::clone(config)).connect(name, stream).await?)
}

/// An authority that clients trust.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key.
pub(crate) struct Certificate {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) pem: String,
    pub(crate) key: String,
}

impl Authority {
    /// A new one.
    pub(crate) fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "edge");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Authority(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// A new certificate for a host, with a key on P-256.
    pub(crate) fn issue(&self, host: &str) -> Result<Certificate> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new([host.to_owned()])?.signed_by(&key, &self.0)?;
        Ok(Certificate { der: certificate.der().clone(), pem: certificate.pem(), key: key.serialize_pem() })
    }

    /// Clients that trust it. One suite and one group, so that both gateways have the same to compute, and no session is resumed.
    pub(crate) fn client(&self, version: Version) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone())?;
        let provider = CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        };
        let config = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[&TLS13])?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        let protocol = match version {
            Version::Http1 => "http/1.1",
            Version::Http2 => "h2",
        };
        config.alpn_protocols = vec![protocol.into()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}
