//! Lists of revoked certificates (RFC 5280, 5).
//!
//! Where there are some, each authority of a chain needs one, as with Envoy: whose status is not known is refused. Who reads
//! them takes none that has expired; one that was good when it was taken goes on counting, since those in it stay revoked.

use std::time::{Duration, SystemTime};

use tokio_rustls::rustls::pki_types::CertificateRevocationListDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use webpki::{
    CertRevocationList, ExpirationPolicy, OwnedCertRevocationList, RevocationCheckDepth, RevocationOptions,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::pem_error;
use crate::error::Invalid;

type Scope = (Vec<u8>, Option<Vec<u8>>);

/// Lists of revoked certificates, or none.
#[derive(Default)]
pub struct Revoked {
    lists: Vec<CertRevocationList<'static>>,
    /// What they were read from: by it they are told apart.
    der: Vec<CertificateRevocationListDer<'static>>,
    /// Whose they are, and until when they hold.
    ends: Vec<(String, SystemTime)>,
    /// Of which certificates they tell: the issuer, and the distribution points where a list is for some only.
    scopes: Vec<Scope>,
}

impl Revoked {
    /// The lists (`X509 CRL`) in a text; whatever else is in it is passed over.
    ///
    /// # Errors
    /// Where one cannot be read, or does not say until when it holds.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Invalid> {
        let der: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
        let der =
            der.map_err(|error| Invalid::new(format!("not a list of revoked certificates: {}", pem_error(&error))))?;
        let mut revoked = Revoked::default();
        for der in der {
            let list = OwnedCertRevocationList::from_der(&der)
                .map_err(|error| Invalid::new(format!("a list of revoked certificates cannot be used: {error:?}")))?;
            if revoked.der.contains(&der) {
                continue;
            }
            let (scope, end) = read(&der)?;
            if revoked.scopes.contains(&scope) {
                let issuer = end.0;
                return Err(Invalid::new(format!(
                    "there are two lists of revoked certificates of {issuer:?}, of which verifiers look at one: leave the \
                     older one out"
                )));
            }
            revoked.scopes.push(scope);
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
        self.scopes.extend(other.scopes);
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

/// Of whom a list tells, whose it is, and until when it holds.
fn read(der: &[u8]) -> Result<(Scope, (String, SystemTime)), Invalid> {
    use x509_parser::oid_registry::OID_X509_EXT_ISSUER_DISTRIBUTION_POINT as POINTS;
    use x509_parser::prelude::{CertificateRevocationList, FromDer};
    let (_, list) = CertificateRevocationList::from_der(der)
        .map_err(|_| Invalid::new("a list of revoked certificates cannot be parsed"))?;
    let issuer = list.issuer().to_string();
    let end = list.next_update().and_then(|end| u64::try_from(end.timestamp()).ok());
    let end = end.ok_or_else(|| Invalid::new(format!("the list of revoked certificates of {issuer:?} has no end")))?;
    let points = list.extensions().iter().find(|extension| extension.oid == POINTS);
    let scope = (list.issuer().as_raw().to_vec(), points.map(|points| points.value.to_vec()));
    Ok((scope, (issuer, SystemTime::UNIX_EPOCH + Duration::from_secs(end))))
}
