//! TLS to a management server, with `tls` channel credentials (gRFC A65): its certificate has to be of the authority in
//! a file, and name the host that was dialled; the client shows its own where the bootstrap names one.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::state::lock;
use crate::xds::bootstrap::TlsFiles;

/// A byte stream in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The files of all servers as they were last read well.
#[derive(Default)]
pub(crate) struct Tls {
    last_good: Mutex<HashMap<TlsFiles, Arc<ClientConfig>>>,
}

impl Tls {
    /// TLS over a connection to `host`. The files are read now: whoever replaces them need not tell anybody. If they
    /// cannot be used, perhaps because only one of two was replaced yet, those before them are.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        files: TlsFiles,
        host: &str,
        io: Box<dyn Io>,
    ) -> io::Result<Box<dyn Io>> {
        let own = Arc::clone(self);
        let config = tokio::task::spawn_blocking(move || own.config(&files)).await.map_err(io::Error::other)?;
        let config = config.map_err(io::Error::other)?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| io::Error::other(format!("TLS: {host:?} cannot be a name in a certificate")))?;
        let stream = TlsConnector::from(config).connect(name, io).await;
        let stream = stream.map_err(|error| io::Error::new(error.kind(), format!("TLS with {host}: {error}")))?;
        Ok(Box::new(stream))
    }

    fn config(&self, files: &TlsFiles) -> Result<Arc<ClientConfig>, String> {
        match read(files) {
            Ok(config) => {
                let config = Arc::new(config);
                lock(&self.last_good).insert(files.clone(), Arc::clone(&config));
                Ok(config)
            }
            Err(reason) => match lock(&self.last_good).get(files) {
                Some(config) => {
                    tracing::warn!(
                        "the TLS files of the xDS bootstrap cannot be used, the last good ones are: {reason}"
                    );
                    Ok(Arc::clone(config))
                }
                None => Err(reason),
            },
        }
    }
}

fn read(files: &TlsFiles) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    let authority = &files.ca_certificate;
    for certificate in certificates(authority)? {
        roots.add(certificate).map_err(|error| format!("{}: not a root certificate: {error}", authority.display()))?;
    }
    // The provider is a value: a process-wide default belongs to the application.
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let config = config.with_root_certificates(roots);
    let mut config = match &files.identity {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let pem = bytes(key)?;
            let private = PrivateKeyDer::from_pem_slice(&pem)
                .map_err(|error| format!("cannot read a private key from {}: {error}", key.display()))?;
            config
                .with_client_auth_cert(certificates(certificate)?, private)
                .map_err(|error| format!("{} and {}: {error}", certificate.display(), key.display()))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = bytes(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(format!("no certificate in {}", path.display())),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("cannot read certificates from {}: {error}", path.display())),
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}
