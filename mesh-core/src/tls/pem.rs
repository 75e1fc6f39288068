//! What is wrong with a text in PEM, for whoever has to mend it.

use tokio_rustls::rustls::pki_types::pem::Error;

/// The longest piece of a text that an error repeats.
const LONGEST: usize = 80;

/// What is wrong with a text in PEM. The parser's own words have lists of bytes in them.
pub fn pem_error(error: &Error) -> String {
    let text = |bytes: &[u8]| {
        let shown = bytes.get(..LONGEST).unwrap_or(bytes);
        String::from_utf8_lossy(shown).trim_end().escape_debug().to_string()
    };
    match error {
        Error::MissingSectionEnd { end_marker } => {
            let label = text(end_marker);
            let label = label.trim_end_matches('-');
            format!("the line -----END {label}----- is missing: a section of it does not end")
        }
        Error::IllegalSectionStart { line } => format!("a section of it begins wrongly: {}", text(line)),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

    use super::*;

    #[test]
    fn what_is_wrong_with_a_text_is_told_in_words() {
        let certificate = CertificateDer::from_pem_slice(b"-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap_err();
        assert!(pem_error(&certificate).contains("the line -----END CERTIFICATE----- is missing"));
        let list = CertificateRevocationListDer::from_pem_slice(b"-----BEGIN X509 CRL-----\nAAAA\n").unwrap_err();
        assert!(pem_error(&list).contains("the line -----END X509 CRL----- is missing"));
        let begun = CertificateDer::from_pem_slice(b"-----BEGIN CERTIFICATE\nAAAA\n").unwrap_err();
        assert!(pem_error(&begun).ends_with("begins wrongly: -----BEGIN CERTIFICATE"), "{}", pem_error(&begun));
        let long = pem_error(&Error::IllegalSectionStart { line: vec![0xff; 10_000] });
        assert!(long.len() < 500, "{long}");
    }
}
