//! Who a client certificate says its owner is (SPIFFE, X.509-SVID).

use mesh_core::identity::SpiffeId;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Why a verified certificate does not say who its owner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anonymous(pub(crate) &'static str);

/// Reads the leaf of a verified chain.
pub(crate) fn read(leaf: &[u8]) -> Result<SpiffeId, Anonymous> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| Anonymous("it cannot be parsed"))?;
    let names = certificate.subject_alternative_name().map_err(|_| Anonymous("its names cannot be parsed"))?;
    let names = names.map(|names| &names.value.general_names[..]).unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    // X.509-SVID: exactly one URI.
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().map_err(|_| Anonymous("its URI is no SPIFFE ID")),
        (Some(_), Some(_)) => Err(Anonymous("it has more than one URI")),
        (None, _) => Err(Anonymous("it has no URI")),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn leaf(uris: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))).collect();
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    #[test]
    fn an_identity_is_read_from_the_only_uri_of_the_leaf() {
        let identity = read(&leaf(&["spiffe://cluster.local/ns/shop/sa/web"]));
        assert_eq!(identity.as_ref().map(SpiffeId::workload), Ok(Some(("shop", "web"))));
        for uris in [
            &[][..],
            &["spiffe://a/ns/b/sa/c", "spiffe://a/ns/d/sa/c"],
            &["spiffe:///ns/b/sa/c"],
            &["spiffe://a/ns//sa/c"],
            &["spiffe://a/ns/../sa/c"],
            &["spiffe://a/ns/%62/sa/c"],
            &["spiffe://A/ns/b/sa/c"],
            &["https://a/ns/b/sa/c"],
        ] {
            assert!(read(&leaf(uris)).is_err(), "{uris:?}");
        }
        assert!(read(b"not a certificate").is_err());
    }
}
