//! What TLS with servers that need not be of the mesh goes by, and the control plane is such a server: the one reader of files, and of
//! what is told in their place.
//!
//! Whoever replaces files need not tell anybody. They are read anew for each connection; if they cannot be used, perhaps
//! because only one of two was replaced yet, what they said before is. Secrets of a control plane stand in for files.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, Digest, SHA256};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{CertificateError, Error as TlsError};
use webpki::anchor_from_trusted_cert;

use super::credentials::PROVIDER;
use super::pem_error;
use super::revoked::{NewestLists, Revoked};
use crate::error::Invalid;
use crate::model::{Roots, Secret, TlsMaterial};

/// Where systems keep the authorities that they trust.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What stands for the name of a file where the text is told.
const TOLD: &str = "what is told of authorities";

/// The largest file that is read. Lists of revoked certificates may be long.
const MOST_BYTES: u64 = 16 << 20;

/// Of how much material is remembered what it said. The one that nobody has read for the longest time makes room.
const MOST: usize = 1000;

/// What TLS material says. Immutable: what is read later is another one.
pub struct ForeignTrust {
    /// Who vouches for servers; `None` = nobody has to.
    pub(super) anchors: Option<Vec<TrustAnchor<'static>>>,
    pub(super) revoked: Revoked,
    /// What the client shows.
    pub(super) key: Option<Arc<CertifiedKey>>,
    digest: Digest,
}

impl ForeignTrust {
    /// Whether both have been read from the same bytes.
    pub(super) fn is_same(&self, other: &ForeignTrust) -> bool {
        self.digest.as_ref() == other.digest.as_ref()
    }

    /// Reads files. They are small, but this blocks.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn read(material: &TlsMaterial, now: SystemTime) -> Result<Self, Invalid> {
        Self::parse(Texts::read(material, |_| None)?, now)
    }

    fn parse(texts: Texts<'_>, now: SystemTime) -> Result<Self, Invalid> {
        let digest = texts.digest();
        let key = texts.identity.map(identity).transpose()?;
        let anchors = texts.roots.map(|(path, pem)| anchors(path, &pem)).transpose()?;
        let revoked = match texts.revoked {
            None => Revoked::default(),
            Some((path, pem)) => revoked_of(&pem, now).map_err(|invalid| within(path, &invalid))?,
        };
        Ok(ForeignTrust { anchors, revoked, key, digest })
    }
}

/// Without a byte of the key.
impl fmt::Debug for ForeignTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.anchors.as_ref().map(Vec::len);
        f.debug_struct("ForeignTrust")
            .field("anchors", &count)
            .field("has_key", &self.key.is_some())
            .finish_non_exhaustive()
    }
}

/// What was last read well of all material.
#[derive(Default)]
pub struct MaterialReader {
    last: Mutex<HashMap<TlsMaterial, Last>>,
    /// What was delivered in the place of files.
    secrets: Mutex<HashMap<Arc<str>, Arc<Secret>>>,
}

struct Last {
    read: SystemTime,
    /// `None`: it was let go, since nobody needs the key in it.
    trust: Option<Arc<ForeignTrust>>,
    /// How new its lists of revoked certificates were.
    newest: NewestLists,
    /// Why what came later cannot be used. Told once: the files are read for every connection.
    complaint: Option<Invalid>,
}

impl MaterialReader {
    /// From now on the secret of this name says this; `None`: it is gone. What is in force of it then goes on.
    pub fn deliver(&self, name: &Arc<str>, secret: Option<Arc<Secret>>) {
        let mut secrets = self.secrets();
        match secret {
            Some(secret) => _ = secrets.insert(Arc::clone(name), secret),
            None => _ = secrets.remove(name),
        }
    }

    /// Nobody needs the secret of this name any more: neither it nor a key that was read of it is kept. How new lists of
    /// revoked certificates were is, so that no older ones count where somebody needs it again.
    pub fn release(&self, name: &str) {
        self.secrets().remove(name);
        let mut last = self.last();
        for (_, last) in last.iter_mut().filter(|(material, _)| material.secret.as_deref() == Some(name)) {
            (last.trust, last.complaint) = (None, None);
        }
    }

    fn last(&self) -> MutexGuard<'_, HashMap<TlsMaterial, Last>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn secrets(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Secret>>> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what was read of these may be kept: a secret may have been let go meanwhile.
    fn may_keep(&self, material: &TlsMaterial) -> bool {
        material.secret.as_deref().is_none_or(|name| self.secret(name).is_some())
    }

    fn secret(&self, name: &str) -> Option<Arc<Secret>> {
        self.secrets().get(name).cloned()
    }

    /// What the files say now, or said last if they cannot be used. Blocks, for it reads them.
    ///
    /// # Errors
    /// Where they never could be used: which of them cannot, and why.
    pub fn read(&self, material: &TlsMaterial, now: SystemTime) -> Result<Arc<ForeignTrust>, Invalid> {
        let texts = Texts::read(material, |name| self.secret(name));
        let before = {
            let mut last = self.last();
            last.get_mut(material).and_then(|last| {
                last.read = now;
                last.trust.clone()
            })
        };
        let read =
            texts.and_then(|texts| match before.filter(|before| before.digest.as_ref() == texts.digest().as_ref()) {
                // Nothing to parse.
                Some(before) => Ok(before),
                None => ForeignTrust::parse(texts, now).map(Arc::new),
            });
        let mut last = self.last();
        let read = read.and_then(|trust| match (last.get(material), material.lists()) {
            (Some(present), Some(path)) => match present.newest.check(&trust.revoked) {
                Ok(()) => Ok(trust),
                Err(older) => Err(within(path, &older.reason)),
            },
            _ => Ok(trust),
        });
        match (read, last.get_mut(material)) {
            (Ok(trust), _) if !self.may_keep(material) => Ok(trust),
            (Ok(trust), Some(present)) => {
                present.newest.note(&trust.revoked);
                (present.trust, present.complaint) = (Some(Arc::clone(&trust)), None);
                Ok(trust)
            }
            (Ok(trust), None) => {
                if last.len() >= MOST
                    && let Some(oldest) =
                        last.iter().min_by_key(|(_, last)| last.read).map(|(material, _)| material.clone())
                {
                    last.remove(&oldest);
                }
                if material.roots == Roots::Nobody {
                    tracing::warn!("servers are called whose certificates nobody verifies (insecureSkipVerify)");
                }
                let mut newest = NewestLists::default();
                newest.note(&trust.revoked);
                let kept = Some(Arc::clone(&trust));
                last.insert(material.clone(), Last { read: now, trust: kept, newest, complaint: None });
                Ok(trust)
            }
            (Err(invalid), present) => {
                let Some((trust, complaint)) =
                    present.and_then(|last| Some((Arc::clone(last.trust.as_ref()?), &mut last.complaint)))
                else {
                    return Err(invalid);
                };
                if complaint.as_ref() != Some(&invalid) {
                    tracing::warn!("TLS material cannot be used, what it said before is: {invalid}");
                    *complaint = Some(invalid);
                }
                Ok(trust)
            }
        }
    }

    /// Which files cannot be used, so that what they said before is in force, and which lists of revoked certificates have
    /// expired since they were read.
    pub fn problems(&self, now: SystemTime) -> Vec<Invalid> {
        let last = self.last();
        let ended = |material: &TlsMaterial, last: &Last| {
            let (path, ended) = material.lists().zip(last.trust.as_ref()?.revoked.check(now).err())?;
            Some(within(path, &ended.reason))
        };
        let problems =
            last.iter().filter_map(|(material, last)| last.complaint.clone().or_else(|| ended(material, last)));
        let mut problems: Vec<Invalid> = problems.collect();
        problems.sort_by_key(ToString::to_string);
        problems.dedup();
        problems
    }

    /// As [`read`](Self::read); who has looked within this time need not look again.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn recent(&self, material: &TlsMaterial, age: Duration, now: SystemTime) -> Result<Arc<ForeignTrust>, Invalid> {
        let last = self.last();
        let is_recent = |last: &&Last| now.duration_since(last.read).is_ok_and(|since| since < age);
        if let Some(trust) = last.get(material).filter(is_recent).and_then(|last| last.trust.as_ref()) {
            return Ok(Arc::clone(trust));
        }
        drop(last);
        self.read(material, now)
    }
}

impl fmt::Debug for MaterialReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MaterialReader")
    }
}

type Text<'f> = (&'f Path, Vec<u8>);

/// The bytes of all files, read at one time.
struct Texts<'f> {
    roots: Option<Text<'f>>,
    revoked: Option<Text<'f>>,
    identity: Option<(Text<'f>, Text<'f>)>,
}

impl<'f> Texts<'f> {
    fn read(material: &'f TlsMaterial, secret: impl Fn(&str) -> Option<Arc<Secret>>) -> Result<Self, Invalid> {
        let text = |path: &'f Path| -> Result<Text<'f>, Invalid> { Ok((path, bytes(path)?)) };
        let system = || {
            let found = SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.is_file());
            found.ok_or_else(|| Invalid::new("this system has no file of authorities: name one"))
        };
        let mut revoked = material.revoked.as_deref().map(text).transpose()?;
        let roots = match &material.roots {
            Roots::System => Some(text(system()?)?),
            Roots::File(path) => Some(text(path)?),
            Roots::Text(told) => Some((Path::new(TOLD), told.as_bytes().to_vec())),
            Roots::Secret(name) => {
                let place = Path::new(&**name);
                let (roots, lists) = authorities_in(place, secret(name))?;
                revoked = revoked.or_else(|| lists.map(|lists| (place, lists)));
                Some((place, roots))
            }
            Roots::Nobody => None,
        };
        let identity = match (&material.identity, &material.secret) {
            (Some((certificate, key)), _) => Some((text(certificate)?, text(key)?)),
            (None, Some(name)) => {
                let place = Path::new(&**name);
                let (chain, key) = pair_in(place, secret(name))?;
                Some(((place, chain), (place, key)))
            }
            (None, None) => None,
        };
        Ok(Texts { roots, revoked, identity })
    }

    fn digest(&self) -> Digest {
        let mut context = Context::new(&SHA256);
        let identity = self.identity.as_ref();
        let all = [self.roots.as_ref(), self.revoked.as_ref(), identity.map(|it| &it.0), identity.map(|it| &it.1)];
        for text in all.into_iter().flatten().map(|(_, text)| text) {
            context.update(&(text.len() as u64).to_le_bytes());
            context.update(text);
        }
        context.finish()
    }
}

/// The authorities in a secret, and their lists of revoked certificates.
fn authorities_in(place: &Path, secret: Option<Arc<Secret>>) -> Result<(Vec<u8>, Option<Vec<u8>>), Invalid> {
    match secret.as_deref() {
        Some(Secret::Authorities { roots, revoked }) => Ok((roots.clone(), revoked.clone())),
        Some(Secret::Certificate { .. }) => Err(within(place, &"this secret does not say whom to trust")),
        Some(Secret::Unusable(reason)) => Err(within(place, reason)),
        None => Err(within(place, &NOT_THERE)),
    }
}

/// The certificate in a secret with its chain, and the key.
fn pair_in(place: &Path, secret: Option<Arc<Secret>>) -> Result<(Vec<u8>, Vec<u8>), Invalid> {
    match secret.as_deref() {
        Some(Secret::Certificate { chain, key }) => Ok((chain.clone(), key.clone())),
        Some(Secret::Authorities { .. }) => Err(within(place, &"this secret has no certificate to show")),
        Some(Secret::Unusable(reason)) => Err(within(place, reason)),
        None => Err(within(place, &NOT_THERE)),
    }
}

const NOT_THERE: &str = "this secret is not there, or not for this workload";

fn identity(((certificate, chain), (key, private)): (Text<'_>, Text<'_>)) -> Result<Arc<CertifiedKey>, Invalid> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
    let chain =
        chain.map_err(|error| within(certificate, &format_args!("not a certificate: {}", pem_error(&error))))?;
    if chain.is_empty() {
        return Err(within(certificate, &"no certificate"));
    }
    let private = PrivateKeyDer::from_pem_slice(&private).map_err(|_| within(key, &"no private key"))?;
    let pair = CertifiedKey::from_der(chain, private, &PROVIDER);
    pair.map(Arc::new).map_err(|error| {
        let (shown, key) = (certificate.display(), key.display());
        match error {
            TlsError::InconsistentKeys(_) => Invalid::new(format!("{shown} and {key} do not fit: {error}")),
            // Such as those that `openssl x509 -req` makes without an extension.
            TlsError::InvalidCertificate(CertificateError::Other(why)) if is_old(&*why.0) => {
                within(certificate, &"a certificate of X.509 version 1, which has no extensions; make one of version 3")
            }
            error => within(certificate, &error),
        }
    })
}

/// Whether a certificate is refused for its version, of which rustls has no error of its own.
fn is_old(why: &(dyn std::error::Error + 'static)) -> bool {
    matches!(why.downcast_ref(), Some(webpki::Error::UnsupportedCertVersion))
}

/// The authorities in a file. Those that no verifier knows what to make of are passed over: bundles have some.
fn anchors(path: &Path, pem: &[u8]) -> Result<Vec<TrustAnchor<'static>>, Invalid> {
    anchors_of(pem).map_err(|invalid| within(path, &invalid))
}

/// The same of a text from elsewhere.
pub(super) fn anchors_of(pem: &[u8]) -> Result<Vec<TrustAnchor<'static>>, Invalid> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates =
        certificates.map_err(|error| Invalid::new(format!("not a certificate: {}", pem_error(&error))))?;
    let anchors = certificates.iter().filter_map(|one| anchor_from_trusted_cert(one).ok());
    let anchors: Vec<_> = anchors.map(|anchor| anchor.to_owned()).collect();
    if anchors.is_empty() { Err(Invalid::new("no certificate of an authority")) } else { Ok(anchors) }
}

pub(super) fn revoked_of(pem: &[u8], now: SystemTime) -> Result<Revoked, Invalid> {
    let revoked = Revoked::from_pem(pem)?;
    revoked.check(now)?;
    if revoked.is_empty() { Err(Invalid::new("no list of revoked certificates")) } else { Ok(revoked) }
}

fn within(path: &Path, reason: &dyn fmt::Display) -> Invalid {
    Invalid::new(format!("{}: {reason}", path.display()))
}

/// The bytes of a file. Whoever writes a configuration names it, so it has to be one, and of a size that such files have.
///
/// # Errors
/// Why it cannot be read.
pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>, Invalid> {
    let failed = |error: std::io::Error| Invalid::new(format!("cannot read {}: {error}", path.display()));
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(within(path, &"not a file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes)).map_err(failed)?;
    match bytes.len() as u64 > MOST_BYTES {
        true => Err(within(path, &format_args!("larger than {MOST_BYTES} bytes"))),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `openssl req -new` and `openssl x509 -req` make, without a file of extensions.
    const OLD: &str = "-----BEGIN CERTIFICATE-----
MIIBHjCBxQIUGFCAUsFBuV1sP+A98u8y3jQSlvYwCgYIKoZIzj0EAwIwETEPMA0G
A1UEAwwGY2xpZW50MCAXDTI2MTEyOTA1Mzg0OVoYDzIxMjYxMTA1MDUzODQ5WjAR
MQ8wDQYDVQQDDAZjbGllbnQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAS++yEs
i6rBts7xS0nRFAMhU+1aH0ut0UhDLce5E0KMbZNLF7wdjYeNO7plRMTR7n/7F7zN
lQuN4pjOxKZ/hvSUMAoGCCqGSM49BAMCA0gAMEUCIQCk+mYtwFHCPEAzZ0W1Ubxw
PgDwXsIRvGBIQIIWMadhhwIgSh/miu8jwC81k+fdIuhokh6zzhaB359lALDNtYp9
src=
-----END CERTIFICATE-----";
    const OLD_KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgOMleorGUg+3IirN8
ew9SGv1GhrpSPwmHazYiF4KBVY6hRANCAAS++yEsi6rBts7xS0nRFAMhU+1aH0ut
0UhDLce5E0KMbZNLF7wdjYeNO7plRMTR7n/7F7zNlQuN4pjOxKZ/hvSU
-----END PRIVATE KEY-----";

    #[test]
    fn a_certificate_that_is_too_old_is_told_from_one_that_is_of_another_key() {
        let refused = |key: &str| {
            let certificate = (Path::new("client.crt"), OLD.as_bytes().to_vec());
            identity((certificate, (Path::new("client.key"), key.as_bytes().to_vec()))).unwrap_err().reason
        };
        let old = refused(OLD_KEY);
        assert!(old.starts_with("client.crt: a certificate of X.509 version 1"), "{old}");
    }
}
