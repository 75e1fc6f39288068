//! The secured listener: TLS 1.2 and 1.3 over aws-lc, and who a client certificate says its owner is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Where the secured listener's keys are.
#[derive(Clone, Debug)]
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

/// Who a client certificate says its owner is: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) namespace: String,
    pub(crate) service_account: String,
}

/// Why a verified certificate does not say who its owner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anonymous(pub(crate) &'static str);

impl Identity {
    /// Reads the leaf of a verified chain.
    pub(crate) fn of(leaf: &[u8]) -> Result<Identity, Anonymous> {
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| Anonymous("it cannot be parsed"))?;
        let names = certificate.subject_alternative_name().map_err(|_| Anonymous("its names cannot be parsed"))?;
        let names = names.map(|names| &names.value.general_names[..]).unwrap_or_default();
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        // X.509-SVID: exactly one URI.
        match (uris.next(), uris.next()) {
            (Some(uri), None) => Identity::parse(uri).ok_or(Anonymous("its URI is not spiffe://DOMAIN/ns/NS/sa/SA")),
            (Some(_), Some(_)) => Err(Anonymous("it has more than one URI")),
            (None, _) => Err(Anonymous("it has no URI")),
        }
    }

    fn parse(uri: &str) -> Option<Identity> {
        let mut parts = uri.strip_prefix("spiffe://")?.split('/');
        let domain = parts.next()?;
        let ["ns", namespace, "sa", service_account] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?]
        else {
            return None;
        };
        let complete = [domain, namespace, service_account].iter().all(|part| !part.is_empty());
        (complete && parts.next().is_none())
            .then(|| Identity { namespace: namespace.to_owned(), service_account: service_account.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn leaf(uris: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))).collect();
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    #[test]
    fn an_identity_is_read_from_the_only_uri_of_the_leaf() {
        let identity = Identity::of(&leaf(&["spiffe://cluster.local/ns/shop/sa/web"]));
        assert_eq!(identity, Ok(Identity { namespace: "shop".to_owned(), service_account: "web".to_owned() }));
        for uris in [
            &[][..],
            &["spiffe://a/ns/b/sa/c", "spiffe://a/ns/d/sa/c"],
            &["spiffe://a/ns/b/sa/c/d"],
            &["spiffe://a/ns/b"],
            &["spiffe:///ns/b/sa/c"],
            &["spiffe://a/ns//sa/c"],
            &["https://a/ns/b/sa/c"],
        ] {
            assert!(Identity::of(&leaf(uris)).is_err(), "{uris:?}");
        }
        assert!(Identity::of(b"not a certificate").is_err());
    }
}
