//! The secured listeners: TLS 1.3 over aws-lc, and 1.2 where others than workloads ask; and nothing resumed, so that every connection
//! is verified by the roots of its moment.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use futures_util::future::BoxFuture;
use mesh_core::identity::TrustDomain;
use mesh_core::tls::pem_error;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::ca::CertificateAuthority;
use crate::serve::clients::clock::now;
use crate::serve::io::verifier::{Anchors, Verifier};

/// Where the secured listener's keys are.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TlsFiles {
    /// The server's certificate and its chain, as PEM.
    pub cert: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
    /// Whose client certificates to accept, as PEM. If set, a client must have one, and is who it says;
    /// if not, the connection is encrypted and the client is whoever it claims to be. Where the server issues certificates
    /// itself, its own authority alone vouches for identities of its trust domain, and this one for none of them.
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

    /// Their contents, and the roots of the server's own authority.
    fn read(&self, authority: Option<&CertificateAuthority>) -> anyhow::Result<Contents> {
        let read = |path: &PathBuf| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        Ok(Contents {
            cert: read(&self.cert)?,
            key: read(&self.key)?,
            client_ca: self.client_ca.as_ref().map(read).transpose()?,
            roots: authority.map(CertificateAuthority::roots).unwrap_or_default(),
            revoked: authority.map(CertificateAuthority::revoked).unwrap_or_default(),
        })
    }

    /// What accepts connections with these contents. Whoever has no certificate of the server's own authority yet gets in, and
    /// is asked for one where it takes one.
    fn acceptor(&self, audience: Audience, contents: &Contents, domain: &TrustDomain) -> anyhow::Result<TlsAcceptor> {
        let Contents { cert, key, client_ca, roots: own, revoked } = contents;
        let chain = certificates(&self.cert, cert)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| anyhow!("cannot read a private key from {}: {}", self.key.display(), pem_error(&error)))?;
        let operators = self.client_ca.as_ref().zip(client_ca.as_ref());
        let operators = operators.map(|(path, pem)| root_certificates(path, pem)).transpose()?;
        let (own, revoked) = (own.clone(), revoked.clone());
        let anchors = Anchors { own, revoked, operators: operators.unwrap_or_default() };
        acceptor(audience, chain, key, domain, anchors)
            .with_context(|| format!("{} and {}", self.cert.display(), self.key.display()))
    }
}

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Workloads and operators, whom somebody may vouch for. They speak TLS 1.3 and HTTP/2.
    Mesh,
    /// Whoever wants to, by TLS 1.2 or 1.3 (Mozilla's intermediate compatibility). Nobody is asked for a certificate.
    Anybody,
}

/// TLS with this certificate, for clients whom these vouch for.
pub(super) fn acceptor(
    audience: Audience,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    domain: &TrustDomain,
    anchors: Anchors,
) -> anyhow::Result<TlsAcceptor> {
    // The provider is a value: a process-wide default belongs to the application.
    let provider = Arc::new(aws_lc_rs::default_provider());
    let (versions, protocols): (&[_], &[&[u8]]) = match audience {
        Audience::Mesh => (&[&TLS13], &[b"h2"]),
        Audience::Anybody => (&[&TLS13, &TLS12], &[b"h2", b"http/1.1"]),
    };
    let config = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
    let verifier = match audience {
        Audience::Mesh => Verifier::new(domain.clone(), anchors, &provider)?,
        Audience::Anybody => None,
    };
    let config = match verifier {
        None => config.with_no_client_auth(),
        Some(verifier) => config.with_client_cert_verifier(Arc::new(verifier)),
    };
    let mut config = config.with_single_cert(chain, key)?;
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What an acceptor is made of.
#[derive(PartialEq, Eq)]
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
    /// Those of the server's own authority; none where it has none.
    roots: Vec<CertificateDer<'static>>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
}

/// How often the files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);

/// An acceptor that follows its files: certificates are replaced while the server runs. Files that cannot be used,
/// perhaps because only one of two was replaced yet, leave the last good ones in use.
pub(crate) struct Reloading {
    audience: Audience,
    files: TlsFiles,
    authority: Option<Arc<CertificateAuthority>>,
    domain: TrustDomain,
    present: Mutex<Present>,
}

struct Present {
    acceptor: TlsAcceptor,
    contents: Contents,
    looked: Instant,
    complaint: String,
}

impl Reloading {
    /// Reads the files, which must be good at the start.
    pub(crate) fn new(
        files: TlsFiles,
        authority: Option<Arc<CertificateAuthority>>,
        domain: TrustDomain,
        now: Instant,
    ) -> anyhow::Result<Reloading> {
        Reloading::for_audience(Audience::Mesh, files, authority, domain, now)
    }

    /// The same for others.
    pub(crate) fn for_audience(
        audience: Audience,
        files: TlsFiles,
        authority: Option<Arc<CertificateAuthority>>,
        domain: TrustDomain,
        now: Instant,
    ) -> anyhow::Result<Reloading> {
        let contents = files.read(authority.as_deref())?;
        let acceptor = files.acceptor(audience, &contents, &domain)?;
        let present = Present { acceptor, contents, looked: now, complaint: String::new() };
        Ok(Reloading { audience, files, authority, domain, present: Mutex::new(present) })
    }

    /// What the next connection is accepted with.
    pub(crate) async fn latest(self: &Arc<Self>) -> TlsAcceptor {
        let (own, at) = (self.clone(), now());
        match tokio::task::spawn_blocking(move || own.look(at)).await {
            Ok(acceptor) => acceptor,
            // The runtime is on its way down.
            Err(_) => self.present().acceptor.clone(),
        }
    }

    /// The same, as [`https::listen`](super::https::listen) asks for it.
    pub(super) fn following(
        self,
    ) -> impl Fn() -> BoxFuture<'static, Option<TlsAcceptor>> + Clone + Send + Sync + 'static {
        let own = Arc::new(self);
        move || {
            let own = own.clone();
            Box::pin(async move { Some(own.latest().await) })
        }
    }

    fn look(&self, now: Instant) -> TlsAcceptor {
        let mut present = self.present();
        if now.saturating_duration_since(present.looked) >= LOOK {
            present.looked = now;
            if let Err(error) = self.reload(&mut present) {
                let complaint = format!("{error:#}");
                if present.complaint != complaint {
                    tracing::warn!("the TLS files cannot be used, the last good ones are: {complaint}");
                    present.complaint = complaint;
                }
            }
        }
        present.acceptor.clone()
    }

    fn reload(&self, present: &mut Present) -> anyhow::Result<()> {
        let contents = self.files.read(self.authority.as_deref())?;
        if contents != present.contents {
            present.acceptor = self.files.acceptor(self.audience, &contents, &self.domain)?;
            present.contents = contents;
            tracing::info!("the TLS files were replaced");
        }
        present.complaint.clear();
        Ok(())
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn root_certificates(path: &Path, pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates = certificates(path, pem)?;
    for certificate in &certificates {
        let usable = RootCertStore::empty().add(certificate.clone());
        usable.with_context(|| format!("{}: not a root certificate", path.display()))?;
    }
    Ok(certificates)
}

fn certificates(path: &Path, pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates
        .map_err(|error| anyhow!("cannot read certificates from {}: {}", path.display(), pem_error(&error)))?;
    if certificates.is_empty() {
        bail!("no certificate in {}", path.display());
    }
    Ok(certificates)
}
