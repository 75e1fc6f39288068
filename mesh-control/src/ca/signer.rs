//! The authority that mesh-control makes itself: a root for ten years, and under it an intermediate for thirty days, which
//! signs.

use std::time::SystemTime;

use anyhow::{Context, anyhow, ensure};
use mesh_core::identity::TrustDomain;
use mesh_core::tls::pem_error;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyUsagePurpose, SanType,
    SerialNumber,
};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::authority::{Authority, BACKDATED, Serial, pem, set_validity, since_epoch, validity};
use super::key::Key;

const DAY: u64 = 24 * 3600;
const ROOT: u64 = 3650 * DAY;
const INTERMEDIATE: u64 = 30 * DAY;

/// A key, and the certificate that says what it signs.
#[derive(Debug)]
pub(crate) struct Signer {
    key: Key,
    certificate: CertificateDer<'static>,
}

impl Signer {
    /// A new root.
    pub(crate) fn root(domain: &TrustDomain, now: SystemTime) -> anyhow::Result<Signer> {
        let key = Key::generate()?;
        let params = params(domain, "root", BasicConstraints::Constrained(1), ROOT, now)?;
        let certificate = params.self_signed(&key).context("cannot sign the root")?.der().clone();
        Ok(Signer { key, certificate })
    }

    /// A new intermediate of this root.
    pub(crate) fn intermediate(&self, domain: &TrustDomain, now: SystemTime) -> anyhow::Result<Signer> {
        self.sign(domain, "intermediate", INTERMEDIATE, now)
    }

    /// A new intermediate of this root for a replica that is called so, for so many seconds.
    pub(super) fn intermediate_of(
        &self,
        replica: &str,
        life: u64,
        domain: &TrustDomain,
        now: SystemTime,
    ) -> anyhow::Result<Signer> {
        self.sign(domain, &format!("intermediate {replica}"), life, now)
    }

    fn sign(&self, domain: &TrustDomain, role: &str, life: u64, now: SystemTime) -> anyhow::Result<Signer> {
        let key = Key::generate()?;
        let params = params(domain, role, BasicConstraints::Constrained(0), life, now)?;
        let root = Issuer::from_ca_cert_der(&self.certificate, &self.key)?;
        let certificate = params.signed_by(&key, &root).context("cannot sign the intermediate")?.der().clone();
        Ok(Signer { key, certificate })
    }

    /// What signs with this intermediate, where relying parties are given these roots.
    pub(crate) fn under(
        self,
        roots: Vec<CertificateDer<'static>>,
        domain: &TrustDomain,
        now: SystemTime,
    ) -> anyhow::Result<Authority> {
        Authority::new(domain.clone(), self.key, vec![self.certificate], roots, now)
    }

    /// Its certificate.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The same in PEM.
    pub(super) fn certificate_pem(&self) -> String {
        pem(&self.certificate)
    }

    /// Its key in PEM.
    pub(super) fn key_pem(&self) -> Zeroizing<String> {
        self.key.pem()
    }

    /// When it was made and when it ends, in seconds since 1970.
    pub(crate) fn life(&self) -> anyhow::Result<(u64, u64)> {
        let (begins, ends) = validity(&self.certificate)?;
        Ok((begins.saturating_add(BACKDATED), ends))
    }

    /// Key and certificate in one text, so that one never stands without the other.
    pub(crate) fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}{}", *self.key.pem(), pem(&self.certificate)))
    }

    /// Reads such a text.
    pub(crate) fn from_pem(text: &[u8]) -> anyhow::Result<Signer> {
        let key = Key::from_pem(text)?;
        let mut certificates = CertificateDer::pem_slice_iter(text);
        let certificate = certificates.next().context("there is no certificate in it")?;
        ensure!(certificates.next().is_none(), "there is more than one certificate in it");
        Ok(Signer {
            key,
            certificate: certificate.map_err(|error| anyhow!("its certificate is malformed: {}", pem_error(&error)))?,
        })
    }
}

/// What the name of a signing certificate begins with.
fn called(role: &str) -> String {
    format!("mesh {role}")
}

/// Whether a certificate with this name is an intermediate of a replica that is called so.
pub(crate) fn is_of_replica(name: &str, replica: &str) -> bool {
    name.rsplit_once(' ').is_some_and(|(begin, _)| begin == called(&format!("intermediate {replica}")))
}

fn params(
    domain: &TrustDomain,
    role: &str,
    path_length: BasicConstraints,
    life: u64,
    now: SystemTime,
) -> anyhow::Result<CertificateParams> {
    let serial = Serial::random()?;
    let [_, a, b, c, d, ..] = *serial.as_bytes();
    let mut params = CertificateParams::default();
    let now = since_epoch(now);
    set_validity(&mut params, now.saturating_sub(BACKDATED), now.saturating_add(life));
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, domain.as_str());
    // Names differ, so that verifiers do not try the keys of others (hazard M15).
    params.distinguished_name.push(DnType::CommonName, format!("{} {a:02x}{b:02x}{c:02x}{d:02x}", called(role)));
    // X509-SVID, 3.1: a signing certificate may have the ID of its trust domain, which has no path.
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{domain}").try_into()?)];
    params.is_ca = IsCa::Ca(path_length);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}
