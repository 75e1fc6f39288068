//! An authority that somebody else runs: an intermediate of theirs, in files as Istio names them (`cacerts`). Of these, the lists
//! of revoked certificates are followed while the server runs.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, anyhow, ensure};
use mesh_core::identity::TrustDomain;
use mesh_core::tls::Revoked;
use rustix::fs::OFlags;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

use super::authority::Authority;
use super::files;
use super::key::Key;

const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOT: &str = "root-cert.pem";
const REVOKED: &str = "ca-crl.pem";

/// That there is nothing of that name.
const GONE: &str = "there is no such file";
/// The largest file that is read.
const MOST: u64 = 16 << 20;

/// The directory, and what was last found in its lists of revoked certificates.
pub(super) struct Plugged {
    path: PathBuf,
    /// Or why it could not be read.
    seen: Result<Vec<u8>, String>,
}

impl Plugged {
    /// Reads `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`, `root-cert.pem`, and `ca-crl.pem` where there is one, of a directory.
    pub(super) fn open(dir: &Path, domain: &TrustDomain, now: SystemTime) -> anyhow::Result<(Authority, Plugged)> {
        let authority = load(dir, domain, now)?;
        let mut plugged = Plugged { path: dir.join(REVOKED), seen: Err(GONE.to_owned()) };
        let revoking = plugged.look(&authority, now)?;
        Ok((revoking.unwrap_or(authority), plugged))
    }

    /// The authority with the lists that are there by now; `None` where they are as they were.
    ///
    /// # Errors
    /// What is wrong with the file, once.
    pub(super) fn look(&mut self, present: &Authority, now: SystemTime) -> anyhow::Result<Option<Authority>> {
        let found = read(&self.path);
        if found == self.seen {
            return Ok(None);
        }
        self.seen.clone_from(&found);
        let context = || format!("{} cannot be used", self.path.display());
        let text = found.map_err(anyhow::Error::msg).with_context(context)?;
        let revoked = Revoked::from_pem(&text).and_then(|revoked| revoked.check(now).map(|()| revoked));
        revoked.map_err(|invalid| anyhow!("{invalid}")).with_context(context)?;
        let lists = CertificateRevocationListDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
        let lists = lists.with_context(context)?;
        ensure!(!lists.is_empty(), "{}: there is no list of revoked certificates in it", self.path.display());
        present.revoking(lists, now).map(Some).with_context(context)
    }
}

fn load(dir: &Path, domain: &TrustDomain, now: SystemTime) -> anyhow::Result<Authority> {
    let context = || format!("the authority in {} cannot be used", dir.display());
    let path = dir.join(KEY);
    let key = files::read(&path)?.with_context(|| format!("there is no {}", path.display())).with_context(context)?;
    let key = Key::from_pem(&key).with_context(|| path.display().to_string())?;
    let path = dir.join(CERTIFICATE);
    let mut chain = certificates(&path)?;
    ensure!(chain.len() == 1, "{}: one certificate is expected, and there are {}", path.display(), chain.len());
    // Istio's may be empty, begin with the authority's own certificate, or go up to the root.
    for certificate in certificates(&dir.join(CHAIN))? {
        if !chain.contains(&certificate) {
            chain.push(certificate);
        }
    }
    let roots = certificates(&dir.join(ROOT))?;
    ensure!(!roots.is_empty(), "{}: there is no certificate in it", dir.join(ROOT).display());
    Authority::new(domain.clone(), key, chain, roots, now).with_context(context)
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let text = read(path).map_err(|why| anyhow!("cannot read {}: {why}", path.display()))?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>();
    certificates.with_context(|| format!("{} is malformed PEM", path.display()))
}

/// What a file holds, or why it cannot be read.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    // A pipe would be waited for.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_ok() => {
            return Err("it is a link to nothing".to_owned());
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(GONE.to_owned()),
        opened => opened.map_err(|error| error.to_string())?,
    };
    let mut bytes = Vec::new();
    let read = file.metadata().and_then(|found| match found.is_file() {
        true => file.take(MOST + 1).read_to_end(&mut bytes),
        false => Err(io::Error::other("it is no regular file")),
    });
    match read {
        Err(error) => Err(error.to_string()),
        Ok(_) if bytes.len() as u64 > MOST => Err(format!("it is larger than {MOST} bytes")),
        Ok(_) => Ok(bytes),
    }
}
