//! The issuing core: a key, its chain, and what a certificate of the mesh looks like. No file, clock or socket.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail, ensure};
use mesh_core::identity::{SpiffeId, TrustDomain};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::OWN_BYTES;
use super::csr;
use super::key::{self, Key};
use crate::hex::hex;

/// How long a certificate holds unless the request says otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long one may hold.
pub const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// Certificates begin this long before they are made: clocks of clients go wrong.
pub(super) const BACKDATED: u64 = 120;
/// The last second of 9999, which is the last that a certificate can name (RFC 5280, 4.1.2.5).
const LAST: u64 = 253_402_300_799;

/// What certificates are signed with, checked as a whole.
pub(crate) struct Authority {
    domain: TrustDomain,
    issuer: Arc<Issuer<'static, Key>>,
    /// What stands between a leaf and the roots, the signer first.
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    /// Its lists of revoked certificates, and those of the authorities above it.
    revoked: Vec<CertificateRevocationListDer<'static>>,
    /// When the first of them ends.
    revoked_end: Option<SystemTime>,
    verifier: Arc<dyn ClientCertVerifier>,
    begins: u64,
    ends: u64,
    root_ends: u64,
}

/// A certificate and its chain.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Issued {
    /// In PEM: the leaf first, the roots last, together in one text with the lists of revoked certificates.
    pub chain: Vec<String>,
    /// The leaf's serial number, in hexadecimal digits.
    pub serial: String,
    /// For how long it holds from now on.
    pub ttl: Duration,
    /// The roots of foreign trust domains, in PEM by their names.
    pub trust_bundles: Arc<BTreeMap<String, String>>,
}

/// Why there is no certificate.
#[derive(Debug)]
#[non_exhaustive]
pub enum Refused {
    /// The request is at fault: its key, its signature, its form, its lifetime.
    Request(anyhow::Error),
    /// The identity is of another trust domain.
    Identity(String),
    /// The authority cannot sign: it has expired.
    Authority(anyhow::Error),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Request(why) | Refused::Authority(why) => write!(f, "{why:#}"),
            Refused::Identity(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Refused {}

/// A serial number: positive, of 128 bits, 126 of which are random.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Serial([u8; 16]);

impl Serial {
    /// A new one.
    pub(crate) fn random() -> anyhow::Result<Serial> {
        let mut bytes = [0; 16];
        ::aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow!("the system has no randomness"))?;
        // RFC 5280, 4.1.2.2: positive; and always of the same length.
        bytes[0] = bytes[0] & 0x3f | 0x40;
        Ok(Serial(bytes))
    }

    pub(super) fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl Authority {
    /// An authority that signs with `key`. `chain` are the certificates from the key's own upwards, `roots` those that
    /// relying parties trust.
    ///
    /// # Errors
    /// Where certificates of this authority would not be accepted by those who trust the roots.
    pub(crate) fn new(
        domain: TrustDomain,
        key: Key,
        mut chain: Vec<CertificateDer<'static>>,
        mut roots: Vec<CertificateDer<'static>>,
        now: SystemTime,
    ) -> anyhow::Result<Authority> {
        let signer = chain.first().context("there is no certificate of the authority")?.clone();
        is_key_of(&key, &signer)?;
        let seconds = since_epoch(now);
        for (below, certificate) in chain.iter().enumerate() {
            check_signing(certificate, below, &domain, seconds)
                .with_context(|| format!("certificate {} of the chain", below + 1))?;
        }
        chain.retain(|certificate| !roots.contains(certificate));
        // A root that has ended may stay in a bundle for a while: it is handed out to nobody.
        let mut fault = None;
        roots.retain(|root| match check_signing(root, chain.len(), &domain, seconds) {
            Ok(()) => true,
            Err(why) => {
                fault = Some(why);
                false
            }
        });
        if roots.is_empty() {
            return Err(fault.map_or_else(|| anyhow!("there is no root certificate"), |why| why.context("the root")));
        }
        let issuer = Issuer::from_ca_cert_der(&signer, key).context("the authority's certificate cannot be used")?;
        let mut authority = Authority {
            domain,
            issuer: Arc::new(issuer),
            chain,
            verifier: verifier(&roots, &[])?,
            revoked: Vec::new(),
            revoked_end: None,
            roots,
            begins: seconds,
            ends: LAST,
            root_ends: LAST,
        };
        authority.check(&signer, now)?;
        authority.check_size()?;
        Ok(authority)
    }

    /// Whether workloads can be told of it.
    fn check_size(&self) -> anyhow::Result<()> {
        let chain = self.chain.iter().map(|certificate| pem(certificate).len());
        let size = self.bundle_pem().len() + chain.sum::<usize>();
        ensure!(
            size <= OWN_BYTES,
            "the chain, the roots and the lists of revoked certificates have {size} bytes, and {OWN_BYTES} fit into what a workload \
             is told"
        );
        Ok(())
    }

    /// The same authority with these lists of revoked certificates, the first of which ends then.
    ///
    /// # Errors
    /// Where with them none of its certificates would be accepted: each authority of its chain needs a list. Where they are too
    /// large to be told.
    pub(super) fn revoking(
        &self,
        revoked: Vec<CertificateRevocationListDer<'static>>,
        revoked_end: Option<SystemTime>,
        now: SystemTime,
    ) -> anyhow::Result<Authority> {
        let mut next = Authority {
            domain: self.domain.clone(),
            issuer: self.issuer.clone(),
            chain: self.chain.clone(),
            roots: self.roots.clone(),
            verifier: verifier(&self.roots, &revoked)?,
            revoked,
            revoked_end,
            ..*self
        };
        next.check_size()?;
        next.root_ends = next.probe(now)?;
        Ok(next)
    }

    /// Its lists of revoked certificates.
    pub(crate) fn revoked(&self) -> &[CertificateRevocationListDer<'static>] {
        &self.revoked
    }

    /// When the first of them ends.
    pub(super) fn revoked_end(&self) -> Option<SystemTime> {
        self.revoked_end
    }

    /// The lists in PEM.
    pub(crate) fn revoked_pem(&self) -> String {
        self.revoked.iter().map(|list| block("X509 CRL", list)).collect()
    }

    /// Holds a certificate against the roots, and takes from them how long the authority lasts.
    fn check(&mut self, signer: &CertificateDer<'static>, now: SystemTime) -> anyhow::Result<()> {
        let ends = self.probe(now)?;
        self.begins = validity(signer)?.0;
        self.root_ends = ends;
        let all = self.chain.iter().map(|certificate| validity(certificate).map(|(_, ends)| ends));
        self.ends = all.collect::<anyhow::Result<Vec<_>>>()?.into_iter().fold(ends, u64::min);
        Ok(())
    }

    /// When the last root ends that a certificate of this authority leads to.
    fn probe(&self, now: SystemTime) -> anyhow::Result<u64> {
        let probe: SpiffeId = format!("spiffe://{}/probe", self.domain).parse()?;
        let serial = Serial::random()?;
        let leaf = self.leaf(self.issuer.key(), &probe, serial, since_epoch(now), DEFAULT_TTL)?;
        let mut ends = None;
        let mut fault = None;
        for root in &self.roots {
            let verifier = verifier(std::slice::from_ref(root), &self.revoked)?;
            match verifier.verify_client_cert(leaf.der(), &self.chain, unix_time(now)) {
                Ok(_) => ends = ends.max(Some(validity(root)?.1)),
                Err(error) => fault = Some(error),
            }
        }
        ends.ok_or_else(|| {
            let why = fault.map(|error| error.to_string()).unwrap_or_default();
            anyhow!("a certificate of this authority does not lead to a root ({why}); is the chain complete?")
        })
    }

    /// The trust domain that it is the authority of.
    pub(crate) fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The roots, in PEM.
    pub(crate) fn roots_pem(&self) -> String {
        self.roots.iter().map(|root| pem(root)).collect()
    }

    /// The roots and the lists of revoked certificates, in PEM: what workloads are given.
    pub(crate) fn bundle_pem(&self) -> String {
        self.roots_pem() + &self.revoked_pem()
    }

    /// Whether it signs with an intermediate of this root.
    pub(super) fn is_under(&self, root: &CertificateDer<'_>) -> bool {
        self.chain.first().is_some_and(|signer| is_issued_by(signer, root))
    }

    /// What stands between a leaf and the roots, the signer first.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The roots.
    pub(crate) fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// When the root ends that it signs under, and when the first of what stands between it and a leaf, in seconds since 1970.
    pub(super) fn ends(&self) -> (u64, u64) {
        (self.root_ends, self.ends)
    }

    /// Whether two thirds of the signing certificate's life are over.
    pub(crate) fn is_due(&self, now: SystemTime) -> bool {
        since_epoch(now) >= self.begins + self.ends.saturating_sub(self.begins) / 3 * 2
    }

    /// Signs a request for somebody whose identity was proven, for so many seconds (0 = the default).
    pub(crate) fn issue(
        &self,
        csr: &str,
        identity: &SpiffeId,
        ttl: i64,
        serial: Serial,
        now: SystemTime,
    ) -> Result<Issued, Refused> {
        let key = csr::public_key(csr).map_err(Refused::Request)?;
        self.issue_for(&key, identity, ttl, serial, now)
    }

    /// Signs a key; otherwise as [`issue`](Self::issue).
    pub(crate) fn issue_for(
        &self,
        key: &impl PublicKeyData,
        identity: &SpiffeId,
        ttl: i64,
        serial: Serial,
        now: SystemTime,
    ) -> Result<Issued, Refused> {
        if identity.trust_domain() != self.domain.as_str() {
            return Err(Refused::Identity(format!("{identity} is not of the trust domain {}", self.domain)));
        }
        let ttl = lifetime(ttl).map_err(Refused::Request)?;
        let seconds = since_epoch(now);
        let left = Duration::from_secs(self.ends.saturating_sub(seconds));
        if left.is_zero() {
            return Err(Refused::Authority(anyhow!("the authority's own certificate has expired")));
        }
        // A certificate that outlives its signer would be refused before its time.
        let ttl = ttl.min(left);
        let leaf = self.leaf(key, identity, serial, seconds, ttl).map_err(Refused::Authority)?;
        let chain = std::iter::once(leaf.pem()).chain(self.chain.iter().map(|certificate| pem(certificate)));
        let chain = chain.chain([self.bundle_pem()]).collect();
        Ok(Issued { chain, serial: hex(&serial.0), ttl, trust_bundles: Arc::default() })
    }

    fn leaf(
        &self,
        key: &impl PublicKeyData,
        identity: &SpiffeId,
        serial: Serial,
        now: u64,
        ttl: Duration,
    ) -> anyhow::Result<rcgen::Certificate> {
        let mut params = CertificateParams::default();
        set_validity(&mut params, now.saturating_sub(BACKDATED), now.saturating_add(ttl.as_secs()));
        params.serial_number = Some(SerialNumber::from_slice(&serial.0));
        // Without a subject the name is critical (RFC 5280, 4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.signed_by(key, &self.issuer).context("cannot sign")
    }

    /// Whether a chain that somebody showed is of this authority, and live.
    pub(crate) fn verify(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> anyhow::Result<()> {
        let (leaf, intermediates) = chain.split_first().context("there is no certificate")?;
        self.verifier.verify_client_cert(leaf, intermediates, unix_time(now))?;
        Ok(())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("domain", &self.domain).finish_non_exhaustive()
    }
}

/// How long a certificate shall hold, from the seconds of a request.
fn lifetime(seconds: i64) -> anyhow::Result<Duration> {
    let most = MAX_TTL.as_secs();
    match u64::try_from(seconds) {
        Ok(0) => Ok(DEFAULT_TTL),
        Ok(seconds) if seconds <= most => Ok(Duration::from_secs(seconds)),
        Ok(seconds) => bail!("a certificate cannot hold for {seconds} s, {most} s at most"),
        Err(_) => bail!("a certificate cannot hold for {seconds} s"),
    }
}

/// Whether a key is that of a certificate.
pub(super) fn is_key_of(key: &Key, certificate: &[u8]) -> anyhow::Result<()> {
    let matches = parsed(certificate)?.public_key().subject_public_key.data == key.der_bytes();
    ensure!(matches, "the private key is not that of the authority's certificate");
    Ok(())
}

/// A certificate that signs: what webpki and other verifiers ask of it, said at once and in words.
pub(super) fn check_signing(certificate: &[u8], below: usize, domain: &TrustDomain, now: u64) -> anyhow::Result<()> {
    let certificate = parsed(certificate)?;
    let constraints = certificate.basic_constraints()?.map(|extension| extension.value);
    let Some(constraints) = constraints.filter(|constraints| constraints.ca) else {
        bail!("it is not one of an authority (CA:TRUE)");
    };
    if let Some(most) = constraints.path_len_constraint {
        ensure!(below <= most as usize, "its path length allows {most} more below it, and there are {below}");
    }
    let usage = certificate.key_usage()?;
    ensure!(usage.is_some_and(|usage| usage.value.key_cert_sign()), "its key usage is not to sign certificates");
    for extension in certificate.extensions() {
        let ParsedExtension::NameConstraints(names) = extension.parsed_extension() else { continue };
        let subtrees = [&names.permitted_subtrees, &names.excluded_subtrees].into_iter().flatten().flatten();
        let on_uri = subtrees.filter(|subtree| matches!(subtree.base, GeneralName::URI(_))).count();
        ensure!(
            on_uri == 0,
            "it has name constraints on URIs, which no verifier here can apply: every certificate below it would be \
             refused (rustls-webpki rejects such chains); use an authority without them"
        );
    }
    let names = certificate.subject_alternative_name()?;
    let names = names.map(|names| &names.value.general_names[..]).unwrap_or_default();
    for name in names {
        if let GeneralName::URI(uri) = name
            && let Some(other) = uri.strip_prefix("spiffe://")
        {
            ensure!(other == domain.as_str(), "it is of the trust domain {other:?}, and this one is {domain}");
        }
    }
    key::check(certificate.public_key())?;
    let (begins, ends) = times(&certificate);
    ensure!(now < ends, "it has expired: it ended {}", certificate.validity().not_after);
    ensure!(now + BACKDATED >= begins, "it is not valid yet: it begins {}", certificate.validity().not_before);
    Ok(())
}

pub(super) fn parsed(certificate: &[u8]) -> anyhow::Result<X509Certificate<'_>> {
    let (rest, certificate) = X509Certificate::from_der(certificate).map_err(|_| anyhow!("it cannot be parsed"))?;
    ensure!(rest.is_empty(), "there is something behind it");
    Ok(certificate)
}

/// Whether a certificate names another one as its issuer. Whether that one signed it is for a verifier to say.
pub(super) fn is_issued_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    match (parsed(certificate), parsed(issuer)) {
        (Ok(certificate), Ok(issuer)) => certificate.issuer().as_raw() == issuer.subject().as_raw(),
        _ => false,
    }
}

/// How whoever a certificate is for is called.
pub(super) fn common_name(certificate: &[u8]) -> anyhow::Result<String> {
    let certificate = parsed(certificate)?;
    let name = certificate.subject().iter_common_name().next().context("it has no name")?;
    Ok(name.as_str()?.to_owned())
}

/// When a certificate begins and ends, in seconds since 1970.
pub(super) fn validity(certificate: &[u8]) -> anyhow::Result<(u64, u64)> {
    Ok(times(&parsed(certificate)?))
}

fn times(certificate: &X509Certificate<'_>) -> (u64, u64) {
    let validity = certificate.validity();
    let seconds = |time: i64| u64::try_from(time).unwrap_or_default();
    (seconds(validity.not_before.timestamp()), seconds(validity.not_after.timestamp()))
}

pub(super) fn set_validity(params: &mut CertificateParams, begins: u64, ends: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(begins.min(LAST));
    params.not_after = epoch + Duration::from_secs(ends.min(LAST));
}

pub(super) fn since_epoch(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn unix_time(now: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Whose certificates are taken that lead to these roots: nobody's who is revoked. With lists, each authority of a chain needs one.
/// The provider is a value: a process-wide default belongs to the application.
pub(crate) fn verifier(
    roots: &[CertificateDer<'static>],
    revoked: &[CertificateRevocationListDer<'static>],
) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider);
    Ok(verifier.with_crls(revoked.iter().cloned()).build()?)
}

/// A certificate in PEM.
pub(super) fn pem(certificate: &[u8]) -> String {
    block("CERTIFICATE", certificate)
}

pub(super) fn block(label: &str, der: &[u8]) -> String {
    let config = ::pem::EncodeConfig::new().set_line_ending(::pem::LineEnding::LF);
    ::pem::encode_config(&::pem::Pem::new(label, der), config)
}

#[cfg(test)]
#[path = "authority_tests.rs"]
pub(super) mod tests;
