//! Whom to trust by trust domain, as gRPC's own programs read it (gRFC A87; SPIFFE Trust Domain and Bundle, 4).

use std::collections::BTreeMap;
use std::time::SystemTime;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use mesh_core::identity::TrustDomain;
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use x509_parser::oid_registry::{OID_EC_P256, OID_NIST_EC_P384};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::authority::{parsed, since_epoch};

/// The bundles of the mesh's own trust domain and of foreign ones, in PEM by their names. Written later, they count as newer.
///
/// # Errors
/// Where such a file cannot say what stands there: lists of revoked certificates, and keys that gRPC does not take.
pub(crate) fn bundle_map(
    own: &TrustDomain,
    roots: &str,
    foreign: &BTreeMap<String, String>,
    now: SystemTime,
) -> anyhow::Result<Value> {
    let mut domains = serde_json::Map::new();
    let foreign = foreign.iter().map(|(domain, roots)| (domain.as_str(), roots.as_str()));
    for (domain, roots) in foreign.chain([(own.as_str(), roots)]) {
        let is_own = domain == own.as_str();
        // Those of the mesh itself stand beside its roots, where they count.
        ensure!(
            is_own || !roots.contains("X509 CRL"),
            "the bundle of {domain} has lists of revoked certificates, which would not count"
        );
        let keys = CertificateDer::pem_slice_iter(roots.as_bytes()).map(|root| jwk(&root?));
        let keys: Vec<Value> =
            keys.collect::<anyhow::Result<_>>().with_context(|| format!("the bundle of {domain}"))?;
        domains.insert(domain.to_owned(), json!({ "keys": keys, "spiffe_sequence": since_epoch(now) }));
    }
    Ok(json!({ "trust_domains": domains }))
}

/// A root as a JWK (RFC 7517, RFC 7518).
pub(super) fn jwk(root: &CertificateDer<'_>) -> anyhow::Result<Value> {
    let certificate = parsed(root)?;
    let mut key = public(certificate.public_key())?;
    key["use"] = json!("x509-svid");
    key["x5c"] = json!([STANDARD.encode(root)]);
    Ok(key)
}

fn public(key: &SubjectPublicKeyInfo<'_>) -> anyhow::Result<Value> {
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let curve = match curve {
        Some(curve) if curve == OID_EC_P256 => Some("P-256"),
        Some(curve) if curve == OID_NIST_EC_P384 => Some("P-384"),
        _ => None,
    };
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    match (key.parsed()?, curve) {
        (PublicKey::EC(point), Some(curve)) => {
            // SEC 1, 2.3.3: uncompressed.
            let point = point.data().strip_prefix(&[4]).context("the point of its key is malformed")?;
            let (x, y) = point.split_at(point.len() / 2);
            Ok(json!({ "kty": "EC", "crv": curve, "x": text(x), "y": text(y) }))
        }
        (PublicKey::RSA(rsa), _) => {
            let modulus: Vec<u8> = rsa.modulus.iter().copied().skip_while(|byte| *byte == 0).collect();
            let exponent = rsa.try_exponent()?.to_be_bytes();
            let exponent: Vec<u8> = exponent.into_iter().skip_while(|byte| *byte == 0).collect();
            Ok(json!({ "kty": "RSA", "n": text(&modulus), "e": text(&exponent) }))
        }
        _ => bail!("bundles have keys of RSA, P-256 and P-384, as gRPC takes them, and no other key"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_core::tls::SpiffeBundleMap;

    use super::*;

    fn root(key: &rcgen::KeyPair) -> String {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(key).expect("a root").pem()
    }

    #[test]
    fn the_roots_of_each_domain_are_those_that_a_reader_finds_there() {
        let key = |algorithm| rcgen::KeyPair::generate_for(algorithm).expect("a key");
        let [p256, p384] = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384].map(key);
        let (own, foreign) = (root(&p256), root(&p256) + &root(&p384));
        let domain: TrustDomain = "a.example".parse().expect("a domain");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(77);
        let map =
            |foreign: &str| bundle_map(&domain, &own, &[("b.example".to_owned(), foreign.to_owned())].into(), now);
        let written = map(&foreign).expect("a map");
        let key = &written["trust_domains"]["b.example"]["keys"][1];
        assert_eq!((&key["kty"], &key["crv"], &key["use"]), (&json!("EC"), &json!("P-384"), &json!("x509-svid")));
        assert_eq!(key["y"].as_str().map(str::len), Some(64));
        let read = SpiffeBundleMap::from_json(written.to_string().as_bytes()).expect("it is read");
        for (name, roots) in [("a.example", &own), ("b.example", &foreign)] {
            let bundle = &read.domains[&name.parse::<TrustDomain>().expect("a domain")];
            let expected: Vec<_> =
                CertificateDer::pem_slice_iter(roots.as_bytes()).collect::<Result<_, _>>().expect("roots");
            assert_eq!((&bundle.roots, bundle.sequence), (&expected, Some(77)));
        }
        let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        for (wrong, why) in [
            (root(&ed25519), "no other key"),
            (format!("{foreign}-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"), "revoked"),
        ] {
            let refused = format!("{:#}", map(&wrong).expect_err("it cannot be said"));
            assert!(refused.contains("b.example") && refused.contains(why), "{refused}");
        }
    }
}
