//! The secured listener: TLS 1.2 and 1.3 over aws-lc.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// Where the secured listener's keys are.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TlsFiles {
    /// The server's certificate and its chain, as PEM.
    pub cert: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
    /// Whose client certificates to accept, as PEM. If set, a client must have one, and is who it says;
    /// if not, the connection is encrypted and the client is whoever it claims to be.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// The server's certificate with its chain, and its private key; whoever connects is who it claims to be.
    pub fn new(cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> TlsFiles {
        TlsFiles { cert: cert.into(), key: key.into(), client_ca: None }
    }

    /// Asks clients for a certificate of this authority, or of none; see [`client_ca`](field@Self::client_ca).
    pub fn client_ca(mut self, authority: impl Into<Option<PathBuf>>) -> TlsFiles {
        self.client_ca = authority.into();
        self
    }

    /// Reads the files.
    pub(crate) fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
        // The provider is a value: a process-wide default belongs to the application.
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .with_context(|| format!("cannot read a private key from {}", self.key.display()))?;
        let config = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let config = match &self.client_ca {
            Some(path) => config.with_client_cert_verifier(verifier(path, provider)?),
            None => config.with_no_client_auth(),
        };
        let pair = || format!("{} and {}", self.cert.display(), self.key.display());
        let mut config = config.with_single_cert(chain, key).with_context(pair)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn verifier(
    path: &Path,
    provider: Arc<CryptoProvider>,
) -> anyhow::Result<Arc<dyn tokio_rustls::rustls::server::danger::ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).with_context(|| format!("{}: not a root certificate", path.display()))?;
    }
    Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?)
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let context = || format!("cannot read certificates from {}", path.display());
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(path).with_context(context)?.collect::<Result<_, _>>().with_context(context)?;
    if certificates.is_empty() {
        bail!("no certificate in {}", path.display());
    }
    Ok(certificates)
}
