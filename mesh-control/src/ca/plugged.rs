//! An authority that somebody else runs: an intermediate of theirs, in files as Istio names them (`cacerts`).

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, ensure};
use mesh_core::identity::TrustDomain;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use super::authority::Authority;
use super::files;
use super::key::Key;

const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOT: &str = "root-cert.pem";

/// Reads `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem` and `root-cert.pem` of a directory.
pub(crate) fn load(dir: &Path, domain: &TrustDomain, now: SystemTime) -> anyhow::Result<Authority> {
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
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>();
    certificates.with_context(|| format!("{} is malformed PEM", path.display()))
}
