//! Who a client certificate says its owner is (SPIFFE, X.509-SVID).

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Who a client certificate says its owner is: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) namespace: String,
    pub(crate) service_account: String,
}

/// Why a verified certificate does not say who its owner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anonymous(pub(crate) &'static str);

impl Identity {
    /// Reads the leaf of a verified chain.
    pub(crate) fn of(leaf: &[u8]) -> Result<Identity, Anonymous> {
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| Anonymous("it cannot be parsed"))?;
        let names = certificate.subject_alternative_name().map_err(|_| Anonymous("its names cannot be parsed"))?;
        let names = names.map(|names| &names.value.general_names[..]).unwrap_or_default();
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        // X.509-SVID: exactly one URI.
        match (uris.next(), uris.next()) {
            (Some(uri), None) => Identity::parse(uri).ok_or(Anonymous("its URI is not spiffe://DOMAIN/ns/NS/sa/SA")),
            (Some(_), Some(_)) => Err(Anonymous("it has more than one URI")),
            (None, _) => Err(Anonymous("it has no URI")),
        }
    }

    fn parse(uri: &str) -> Option<Identity> {
        let mut parts = uri.strip_prefix("spiffe://")?.split('/');
        let domain = parts.next()?;
        let ["ns", namespace, "sa", service_account] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?]
        else {
            return None;
        };
        let complete = [domain, namespace, service_account].iter().all(|part| !part.is_empty());
        (complete && parts.next().is_none())
            .then(|| Identity { namespace: namespace.to_owned(), service_account: service_account.to_owned() })
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
        let identity = Identity::of(&leaf(&["spiffe://cluster.local/ns/shop/sa/web"]));
        assert_eq!(identity, Ok(Identity { namespace: "shop".to_owned(), service_account: "web".to_owned() }));
        for uris in [
            &[][..],
            &["spiffe://a/ns/b/sa/c", "spiffe://a/ns/d/sa/c"],
            &["spiffe://a/ns/b/sa/c/d"],
            &["spiffe://a/ns/b"],
            &["spiffe:///ns/b/sa/c"],
            &["spiffe://a/ns//sa/c"],
            &["https://a/ns/b/sa/c"],
        ] {
            assert!(Identity::of(&leaf(uris)).is_err(), "{uris:?}");
        }
        assert!(Identity::of(b"not a certificate").is_err());
    }
}
