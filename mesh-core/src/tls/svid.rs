//! The leaf of an X.509-SVID (SPIFFE X509-SVID, sections 2 to 5).

use std::time::{Duration, SystemTime};

use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use crate::error::Invalid;
use crate::identity::SpiffeId;

/// Who a leaf says its owner is, by the one URI in it. Whether somebody trusted has signed it, and whether it is one that a
/// workload may show to others ([`identity`]), are other questions.
///
/// # Errors
/// Where it has more or fewer than one URI, or one that is no SPIFFE ID.
pub fn id(leaf: &[u8]) -> Result<SpiffeId, Invalid> {
    id_of(&parsed(leaf)?)
}

/// Who a leaf says its owner is, if it is one that a workload may show. Whether somebody trusted has signed it is another
/// question.
///
/// # Errors
/// Where it is no leaf of a workload: more or fewer than one URI, a URI that is no SPIFFE ID, an authority's
/// certificate, or one whose key is for other things.
pub fn identity(leaf: &[u8]) -> Result<SpiffeId, Invalid> {
    let certificate = parsed(leaf)?;
    check_use(&certificate)?;
    id_of(&certificate)
}

fn parsed(leaf: &[u8]) -> Result<X509Certificate<'_>, Invalid> {
    let (rest, certificate) =
        X509Certificate::from_der(leaf).map_err(|_| Invalid::new("the certificate cannot be parsed"))?;
    match rest.is_empty() {
        true => Ok(certificate),
        false => Err(Invalid::new("the certificate is followed by other bytes")),
    }
}

fn id_of(certificate: &X509Certificate<'_>) -> Result<SpiffeId, Invalid> {
    let mut uris = Vec::new();
    for extension in certificate.extensions() {
        let names = match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => names,
            ParsedExtension::ParseError { .. } => {
                return Err(Invalid::new("an extension of the certificate cannot be parsed"));
            }
            _ => continue,
        };
        uris.extend(names.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        }));
        // A name that cannot be parsed may be a second URI.
        if names.general_names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
            return Err(Invalid::new("a name of the certificate cannot be parsed"));
        }
    }
    match uris.as_slice() {
        [uri] => uri.parse().map_err(|error: Invalid| Invalid::new(format!("the certificate's URI {uri:?}: {error}"))),
        [] => Err(Invalid::new("the certificate has no URI, so it is no SPIFFE ID's")),
        _ => Err(Invalid::new("the certificate has more than one URI")),
    }
}

/// Whether the key of a leaf is for showing who its owner is, to servers and to clients, and for nothing else.
fn check_use(certificate: &X509Certificate<'_>) -> Result<(), Invalid> {
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                return Err(Invalid::new("the certificate is that of an authority, not of a workload"));
            }
            ParsedExtension::KeyUsage(usage) => {
                if usage.key_cert_sign() || usage.crl_sign() {
                    return Err(Invalid::new("the certificate's key may sign certificates or revocations"));
                }
                if !usage.digital_signature() {
                    return Err(Invalid::new("the certificate's key is not for digital signatures"));
                }
                if !extension.critical {
                    return Err(Invalid::new("the certificate's key usage is not critical"));
                }
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let is_for_both = usage.any || (usage.server_auth && usage.client_auth);
                if !is_for_both {
                    return Err(Invalid::new("the certificate is not for both servers and clients"));
                }
            }
            _ => {}
        }
    }
    match certificate.key_usage().ok().flatten() {
        Some(_) => Ok(()),
        None => Err(Invalid::new("the certificate does not say what its key is for")),
    }
}

/// The serial number of a certificate, in hexadecimal: for messages.
pub fn serial(certificate: &[u8]) -> Option<String> {
    X509Certificate::from_der(certificate).ok().map(|(_, certificate)| certificate.raw_serial_as_string())
}

/// Until when a certificate holds.
///
/// # Errors
/// Where it cannot be parsed.
pub fn not_after(leaf: &[u8]) -> Result<SystemTime, Invalid> {
    let (_, certificate) =
        X509Certificate::from_der(leaf).map_err(|_| Invalid::new("the certificate cannot be parsed"))?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or_default();
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}
