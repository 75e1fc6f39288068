//! TLS to a management server, with `tls` channel credentials (gRFC A65): its certificate has to be of the authority in
//! a file, and name the host that was dialled; the client shows its own where the bootstrap names one, or else the one that it
//! has as a workload.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::identity::{SpiffeId, TrustDomain};
use crate::model::UpstreamTls;
use crate::state::lock;
use crate::tls::{self as mutual, Credentials};
use crate::xds::bootstrap::ClientTlsFiles;

/// A byte stream in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The files of all servers as they were last read well.
#[derive(Default)]
pub(crate) struct Tls {
    last_good: Mutex<HashMap<ClientTlsFiles, LastGood>>,
}

struct LastGood {
    config: Arc<ClientConfig>,
    /// Why what came later cannot be used. Told once: every connection reads the files.
    complaint: Option<String>,
}

impl Tls {
    /// TLS over a connection to `host`, with the workload's own certificate where there is one and the files name none. The
    /// files are read now: whoever replaces them need not tell anybody. If they
    /// cannot be used, perhaps because only one of two was replaced yet, those before them are.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        files: ClientTlsFiles,
        host: &str,
        io: Box<dyn Io>,
        workload: Option<Arc<Credentials>>,
    ) -> io::Result<Box<dyn Io>> {
        let own = Arc::clone(self);
        let workload = workload.filter(|_| files.identity.is_none());
        let config = tokio::task::spawn_blocking(move || own.config(&files)).await.map_err(io::Error::other)?;
        let mut config = config.map_err(io::Error::other)?;
        if let Some(workload) = workload {
            Arc::make_mut(&mut config).client_auth_cert_resolver = workload.client_certificate();
        }
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| io::Error::other(format!("TLS: {host:?} cannot be a name in a certificate")))?;
        let stream = TlsConnector::from(config).connect(name, io).await;
        let stream = stream.map_err(|error| io::Error::new(error.kind(), format!("TLS with {host}: {error}")))?;
        Ok(Box::new(stream))
    }

    fn config(&self, files: &ClientTlsFiles) -> Result<Arc<ClientConfig>, String> {
        match read(files) {
            Ok(config) => {
                let config = Arc::new(config);
                let last_good = LastGood { config: Arc::clone(&config), complaint: None };
                lock(&self.last_good).insert(files.clone(), last_good);
                Ok(config)
            }
            Err(reason) => match lock(&self.last_good).get_mut(files) {
                Some(last_good) => {
                    if last_good.complaint.as_ref() != Some(&reason) {
                        tracing::warn!(
                            "the TLS files of the xDS bootstrap cannot be used, the last good ones are: {reason}"
                        );
                        last_good.complaint = Some(reason);
                    }
                    Ok(Arc::clone(&last_good.config))
                }
                None => Err(reason),
            },
        }
    }
}

/// Mutual TLS with a mesh-control that is its own authority: by the roots that came with the workload's certificate.
pub(crate) async fn of_the_mesh(workload: &Credentials, io: Box<dyn Io>) -> io::Result<Box<dyn Io>> {
    let failed = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, format!("TLS: {error}"));
    let domain: TrustDomain = workload.id().trust_domain().parse().map_err(|error| failed(&error))?;
    let peers = UpstreamTls::with([SpiffeId::of_control_plane(&domain)]);
    let config = mutual::client_config(workload, &peers, Some(b"h2")).map_err(|error| failed(&error))?;
    let name = mutual::server_name(&peers).map_err(|error| failed(&error))?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, io).await;
    Ok(Box::new(stream.map_err(|error| io::Error::new(error.kind(), format!("TLS: {error}")))?))
}

fn read(files: &ClientTlsFiles) -> Result<ClientConfig, String> {
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
    // The next connection may be made with other files, or another certificate.
    config.resumption = Resumption::disabled();
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

#[cfg(test)]
mod tests {
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tracing::Level;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What dialling a management server by this name comes to, whose certificate is for `*.example.com`.
    async fn dial(host: &str) -> io::Result<()> {
        let certified = rcgen::generate_simple_self_signed(["*.example.com".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certified.cert.der().clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let server = server.unwrap().with_no_client_auth().with_single_cert(vec![certified.cert.der().clone()], key);
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(client.with_root_certificates(roots).with_no_client_auth());
        let (tls, files) = (Arc::<Tls>::default(), ClientTlsFiles::new("no/such/file.pem"));
        lock(&tls.last_good).insert(files.clone(), LastGood { config, complaint: None });
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let accepting = TlsAcceptor::from(Arc::new(server.unwrap())).accept(theirs);
        let (dialled, _) = tokio::join!(tls.connect(files, host, Box::new(ours), None), accepting);
        dialled.map(|_| ())
    }

    #[tokio::test]
    async fn m13_a_wildcard_stands_for_one_label_and_no_more() {
        dial("a.example.com").await.unwrap();
        for host in ["a.b.example.com", "example.com", "aexample.com", "a.example.com.evil.org"] {
            let refused = dial(host).await.unwrap_err().to_string();
            assert!(refused.contains("not valid for name"), "{host}: {refused}");
        }
    }

    #[test]
    fn files_that_cannot_be_used_are_told_of_once_and_the_last_good_ones_stay() {
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
        let files = ClientTlsFiles::new("no/such/file.pem");
        let tls = Tls::default();
        tls.config(&files).unwrap_err();
        let last_good = LastGood { config: Arc::clone(&config), complaint: None };
        lock(&tls.last_good).insert(files.clone(), last_good);
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_max_level(Level::WARN).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..3 {
                assert!(Arc::ptr_eq(&tls.config(&files).unwrap(), &config));
            }
        });
        let told = String::from_utf8(lock(&log.0).clone()).unwrap();
        assert_eq!(told.matches("no/such/file.pem").count(), 1, "{told}");
    }
}
