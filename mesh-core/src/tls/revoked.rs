//! Lists of revoked certificates (RFC 5280, 5).
//!
//! Where there are some, each authority of a chain needs one, as with Envoy: whose status is not known is refused. Who reads
//! them takes none that has expired; one that was good when it was taken goes on counting, since those in it stay revoked.

use std::time::{Duration, SystemTime};

use tokio_rustls::rustls::pki_types::CertificateRevocationListDer;
use tokio_rustls::rustls::pki_types::pem::{PemObject, SectionKind};
use webpki::{
    CertRevocationList, ExpirationPolicy, OwnedCertRevocationList, RevocationCheckDepth, RevocationOptions,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};

use x509_parser::num_bigint::BigUint;

use super::pem_error;
use crate::error::Invalid;

/// Of which certificates a list tells: the issuer's, and the distribution points where it is for some of them only.
type Scope = (Vec<u8>, Option<Vec<u8>>);

/// What tells a list from the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    scope: Scope,
    issuer: String,
    number: Option<BigUint>,
    /// In seconds since 1970.
    this_update: i64,
}

/// Lists of revoked certificates, or none.
#[derive(Default)]
pub struct Revoked {
    lists: Vec<CertRevocationList<'static>>,
    /// What they were read from: by it they are told apart.
    der: Vec<CertificateRevocationListDer<'static>>,
    /// Whose they are, and until when they hold.
    ends: Vec<(String, SystemTime)>,
    marks: Vec<Mark>,
}

impl Revoked {
    /// The lists (`X509 CRL`) in a text; certificates and keys in it are passed over.
    ///
    /// # Errors
    /// Where one cannot be read, or does not say until when it holds; where something in it has another label, for it may be a
    /// list that would not count.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Invalid> {
        check_labels(pem)?;
        let der: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
        let der =
            der.map_err(|error| Invalid::new(format!("not a list of revoked certificates: {}", pem_error(&error))))?;
        Revoked::from_der(der)
    }

    /// The same of lists in DER.
    pub(crate) fn from_der(
        der: impl IntoIterator<Item = CertificateRevocationListDer<'static>>,
    ) -> Result<Self, Invalid> {
        let mut revoked = Revoked::default();
        for der in der {
            let list = OwnedCertRevocationList::from_der(&der)
                .map_err(|error| Invalid::new(format!("a list of revoked certificates cannot be used: {error:?}")))?;
            if revoked.der.contains(&der) {
                continue;
            }
            let (mark, end) = read(&der)?;
            if revoked.marks.iter().any(|other| other.scope == mark.scope) {
                let issuer = end.0;
                return Err(Invalid::new(format!(
                    "there are two lists of revoked certificates of {issuer:?}, of which verifiers look at one: leave the \
                     older one out"
                )));
            }
            revoked.marks.push(mark);
            revoked.ends.push(end);
            revoked.lists.push(list.into());
            revoked.der.push(der);
        }
        Ok(revoked)
    }

    /// When the first of them ends.
    pub fn first_end(&self) -> Option<SystemTime> {
        self.ends.iter().map(|(_, end)| *end).min()
    }

    /// Whether all of them hold at `now`.
    ///
    /// # Errors
    /// Whose does not.
    pub fn check(&self, now: SystemTime) -> Result<(), Invalid> {
        match self.ends.iter().find(|(_, end)| *end < now) {
            Some((issuer, _)) => {
                Err(Invalid::new(format!("the list of revoked certificates of {issuer:?} has expired")))
            }
            None => Ok(()),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Takes these in, too.
    pub(super) fn extend(&mut self, other: Revoked) {
        self.lists.extend(other.lists);
        self.der.extend(other.der);
        self.ends.extend(other.ends);
        self.marks.extend(other.marks);
    }

    pub(super) fn lists(&self) -> Vec<&CertRevocationList<'static>> {
        self.lists.iter().collect()
    }

    /// How they are to be asked; `None` where there are none.
    pub(super) fn options<'l>(
        lists: &'l [&'l CertRevocationList<'static>],
        depth: RevocationCheckDepth,
    ) -> Option<RevocationOptions<'l>> {
        let options = RevocationOptionsBuilder::new(lists).ok()?;
        let options = options.with_depth(depth).with_status_policy(UnknownStatusPolicy::Deny);
        Some(options.with_expiration_policy(ExpirationPolicy::Ignore).build())
    }
}

impl PartialEq for Revoked {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

/// How new the lists were that counted so far: none that is older takes their place.
///
/// A list has a number that grows, and the time at which it was made (RFC 5280, 5.2.3 and 5.1.2.4). Whoever puts an older one back
/// in its place lets in again who was revoked since.
#[derive(Clone, Debug, Default)]
pub struct NewestLists(Vec<Mark>);

impl NewestLists {
    /// Whether these lists may take the place of those before.
    ///
    /// # Errors
    /// Where there are none any more, or one is older than another of the same issuer that counted.
    pub fn check(&self, revoked: &Revoked) -> Result<(), Invalid> {
        if revoked.is_empty() && !self.0.is_empty() {
            return Err(Invalid::new("there is no list of revoked certificates in it any more, and there were some"));
        }
        self.0.iter().try_for_each(|newest| {
            match revoked.marks.iter().find(|mark| mark.scope == newest.scope) {
                Some(mark) => mark.follows(newest),
                // What it tells of may be what another one tells of now.
                None => {
                    let of_issuer = revoked.marks.iter().filter(|mark| mark.scope.0 == newest.scope.0);
                    of_issuer
                        .map(|mark| Mark { number: None, ..mark.clone() })
                        .try_for_each(|mark| mark.follows(newest))
                }
            }
        })
    }

    /// Notes that these lists count.
    pub fn note(&mut self, revoked: &Revoked) {
        for mark in &revoked.marks {
            match self.0.iter_mut().find(|newest| newest.scope == mark.scope) {
                Some(newest) => {
                    newest.this_update = newest.this_update.max(mark.this_update);
                    newest.number = newest.number.take().max(mark.number.clone());
                }
                None => self.0.push(mark.clone()),
            }
        }
    }
}

impl Mark {
    fn follows(&self, newest: &Mark) -> Result<(), Invalid> {
        let issuer = &self.issuer;
        if let (Some(number), Some(before)) = (&self.number, &newest.number)
            && number < before
        {
            return Err(Invalid::new(format!(
                "the list of revoked certificates of {issuer:?} goes back: it has the number {number}, and {before} was in force"
            )));
        }
        if self.this_update < newest.this_update {
            return Err(Invalid::new(format!(
                "the list of revoked certificates of {issuer:?} goes back: it was made {} s before the one that was in force",
                newest.this_update.saturating_sub(self.this_update)
            )));
        }
        Ok(())
    }
}

/// Whether a text in PEM has nothing in it but what readers know. They pass over a section with another label.
fn check_labels(pem: &[u8]) -> Result<(), Invalid> {
    let looks_like_one =
        |line: &&[u8]| line.contains(&b'-') && line.windows(7).any(|part| part.eq_ignore_ascii_case(b"--begin"));
    let mut starts = pem.split(|byte| matches!(byte, b'\n' | b'\r')).filter(looks_like_one);
    starts.try_for_each(|line| {
        let label = line.strip_prefix(b"-----BEGIN ").map(<[u8]>::trim_ascii_end);
        let label = label.and_then(|label| label.strip_suffix(b"-----"));
        // Neither keys nor their parameters are lists.
        let is_known = |label: &[u8]| {
            SectionKind::try_from(label).is_ok() || label.ends_with(b"KEY") || label.ends_with(b"PARAMETERS")
        };
        match label.is_some_and(is_known) {
            true => Ok(()),
            false => Err(Invalid::new(format!(
                "{:?} begins something that nobody reads: expected are `-----BEGIN CERTIFICATE-----` and `-----BEGIN X509 CRL-----`",
                String::from_utf8_lossy(line.get(..100).unwrap_or(line))
            ))),
        }
    })
}

/// Of whom a list tells and how new it is; whose it is, and until when it holds.
fn read(der: &[u8]) -> Result<(Mark, (String, SystemTime)), Invalid> {
    use x509_parser::oid_registry::OID_X509_EXT_ISSUER_DISTRIBUTION_POINT as POINTS;
    use x509_parser::prelude::{CertificateRevocationList, FromDer};
    let (_, list) = CertificateRevocationList::from_der(der)
        .map_err(|_| Invalid::new("a list of revoked certificates cannot be parsed"))?;
    let issuer = list.issuer().to_string();
    let end = list.next_update().and_then(|end| u64::try_from(end.timestamp()).ok());
    let end = end.ok_or_else(|| Invalid::new(format!("the list of revoked certificates of {issuer:?} has no end")))?;
    let points = list.extensions().iter().find(|extension| extension.oid == POINTS);
    let mark = Mark {
        scope: (list.issuer().as_raw().to_vec(), points.map(|points| points.value.to_vec())),
        issuer: issuer.clone(),
        number: list.crl_number().cloned(),
        this_update: list.last_update().timestamp(),
    };
    Ok((mark, (issuer, SystemTime::UNIX_EPOCH + Duration::from_secs(end))))
}
