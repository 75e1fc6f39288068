//! What certificates look like, and what becomes of requests (hazard rows C1 to C7, C13, C16).

use std::collections::HashSet;

use proptest::prelude::*;
use rcgen::{BasicConstraints, CustomExtension, DnType, KeyPair, RsaKeySize};
use x509_parser::extensions::GeneralName;

use super::*;
use crate::ca::signer::Signer;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn domain() -> TrustDomain {
    TrustDomain::default()
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// 2026-11-28.
const NOW: u64 = 1_795_824_000;

fn authority(now: u64) -> Authority {
    let root = Signer::root(&domain(), at(now)).expect("a root");
    root.intermediate(&domain(), at(now))
        .and_then(|signer| signer.under(vec![root.certificate().clone()], &domain(), at(now)))
        .expect("usable")
}

fn serial() -> Serial {
    Serial::random().expect("random")
}

fn csr_of(params: &CertificateParams, key: &KeyPair) -> String {
    params.serialize_request(key).expect("a request").pem().expect("PEM")
}

fn csr() -> String {
    csr_of(&CertificateParams::default(), &KeyPair::generate().expect("a key"))
}

fn issue(authority: &Authority, csr: &str, ttl: i64, now: u64) -> Result<Issued, Refused> {
    authority.issue(csr, &WEB.parse().expect("an ID"), ttl, serial(), at(now))
}

fn der(pem: &str) -> Vec<u8> {
    ::pem::parse(pem).expect("PEM").into_contents()
}

/// The names in a certificate.
fn names(leaf: &X509Certificate<'_>) -> Vec<String> {
    let names = leaf.subject_alternative_name().expect("readable").expect("there");
    assert!(names.critical);
    names.value.general_names.iter().map(|name| format!("{name:?}")).collect()
}

/// That a certificate is what the template says, and of this identity.
fn check_leaf(pem: &str) {
    let der = der(pem);
    let leaf = parsed(&der).expect("a certificate");
    assert_eq!(names(&leaf), [format!("{:?}", GeneralName::URI(WEB))]);
    assert_eq!(leaf.subject().iter().count(), 0, "no subject");
    let constraints = leaf.basic_constraints().expect("readable").expect("there");
    assert!(constraints.critical && !constraints.value.ca);
    let usage = leaf.key_usage().expect("readable").expect("there");
    assert!(usage.critical && usage.value.flags == 1, "digitalSignature alone");
    let extended = leaf.extended_key_usage().expect("readable").expect("there").value;
    assert!(extended.server_auth && extended.client_auth && !extended.any && extended.other.is_empty());
    assert!(!(extended.code_signing || extended.email_protection || extended.time_stamping || extended.ocsp_signing));
    let mut known: Vec<String> = leaf.extensions().iter().map(|extension| extension.oid.to_id_string()).collect();
    known.sort();
    // Key identifiers, key usage, names, constraints, the authority's key, extended key usage.
    assert_eq!(known, ["2.5.29.14", "2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.35", "2.5.29.37"]);
}

#[test]
fn c1_a_certificate_has_the_proven_identity_and_not_that_of_the_request() {
    let authority = authority(NOW);
    let mut params = CertificateParams::default();
    let other = "spiffe://cluster.local/ns/shop/sa/admin";
    params.subject_alt_names = vec![SanType::URI(other.try_into().expect("ASCII"))];
    let issued = issue(&authority, &csr_of(&params, &KeyPair::generate().expect("a key")), 0, NOW).expect("issued");
    check_leaf(&issued.chain[0]);
    let stranger = "spiffe://cluster.local.evil/ns/shop/sa/web".parse().expect("an ID");
    let refused = authority.issue(&csr(), &stranger, 0, serial(), at(NOW));
    assert!(matches!(refused, Err(Refused::Identity(_))), "{refused:?}");
}

#[test]
fn c2_no_name_of_the_request_is_copied() {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![
        SanType::URI(WEB.try_into().expect("ASCII")),
        SanType::URI("spiffe://cluster.local/ns/a/sa/b".try_into().expect("ASCII")),
        SanType::DnsName("example.org".try_into().expect("ASCII")),
        SanType::IpAddress([127, 0, 0, 1].into()),
        SanType::Rfc822Name("spiffe@example.org".try_into().expect("ASCII")),
        SanType::OtherName((vec![1, 2, 3], rcgen::OtherNameValue::Utf8String("other".to_owned()))),
    ];
    let key = KeyPair::generate().expect("a key");
    let issued = issue(&authority(NOW), &csr_of(&params, &key), 0, NOW).expect("issued");
    check_leaf(&issued.chain[0]);
}

#[test]
fn c3_nothing_of_the_request_is_copied_but_its_key() {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "admin");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
    for key in [
        KeyPair::generate(),
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        KeyPair::generate_for(&rcgen::PKCS_ED25519),
        KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048),
    ] {
        let key = key.expect("a key");
        let issued = issue(&authority(NOW), &csr_of(&params, &key), 0, NOW).expect("issued");
        check_leaf(&issued.chain[0]);
        let der = der(&issued.chain[0]);
        assert_eq!(parsed(&der).expect("a certificate").public_key().raw, key.subject_public_key_info());
    }
}

fn refused(csr: &str) -> String {
    match issue(&authority(NOW), csr, 0, NOW) {
        Err(Refused::Request(why)) => format!("{why:#}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn c4_a_request_that_is_not_exactly_one_good_one_is_refused() {
    let good = csr();
    let label = |der: &[u8], label: &str| ::pem::encode(&::pem::Pem::new(label, der));
    let again = |der: &[u8]| label(der, "CERTIFICATE REQUEST");
    assert!(issue(&authority(NOW), &format!("\n{good}\n"), 0, NOW).is_ok(), "blanks around it are nothing");
    let der = der(&good);
    let mut forged = der.clone();
    *forged.last_mut().expect("bytes") ^= 1;
    assert!(refused(&again(&forged)).contains("not signed by its own key"));
    // The signature of another key.
    let mut mixed = der.clone();
    let at = mixed.windows(4).position(|bytes| bytes == [0x03, 0x42, 0x00, 0x04]).expect("a point") + 10;
    mixed[at] ^= 1;
    assert!(!refused(&again(&mixed)).is_empty());
    assert!(refused(&again(&[&der[..], b"more"].concat())).contains("behind the request"));
    assert!(refused(&format!("{good}{good}")).contains("one block"));
    assert!(refused(&format!("{good}-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----")).contains("one block"));
    assert!(refused(&format!("{good}\nand more")).contains("around"));
    assert!(refused(&format!("before\n{good}")).contains("around"));
    assert!(refused(&label(&der, "CERTIFICATE")).contains("around"));
    assert!(refused(&format!("{good}{}", " ".repeat(16 << 10))).contains("larger than"));
    assert!(refused(&"A".repeat(1 << 20)).contains("larger than"));
    for (length, _) in der.iter().enumerate().step_by(7) {
        assert!(!refused(&again(&der[..length])).is_empty(), "{length} bytes of it");
    }
    for nothing in [
        "",
        "-----BEGIN CERTIFICATE REQUEST-----",
        "-----BEGIN CERTIFICATE REQUEST----------END CERTIFICATE REQUEST-----",
    ] {
        assert!(!refused(nothing).is_empty());
    }
}

proptest! {
    #[test]
    fn c4_no_bytes_are_a_panic(at in 0..200_usize, value: u8, text in any::<String>()) {
        let mut der = der(&csr());
        let place = at % der.len();
        der[place] = value;
        _ = csr::public_key(&::pem::encode(&::pem::Pem::new("CERTIFICATE REQUEST", der)));
        _ = csr::public_key(&text);
    }
}

/// DER by hand.
pub(in crate::ca) fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len();
    let length = match length {
        0..128 => vec![length as u8],
        128..256 => vec![0x81, length as u8],
        _ => vec![0x82, (length >> 8) as u8, length as u8],
    };
    [&[tag][..], &length, &content].concat()
}

const SEQUENCE: u8 = 0x30;
const RSA_ENCRYPTION: &[u8] = &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
const EC: &[u8] = &[0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const P224: &[u8] = &[0x06, 5, 0x2b, 0x81, 0x04, 0, 33];
const P521: &[u8] = &[0x06, 5, 0x2b, 0x81, 0x04, 0, 35];
const P256: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];

/// A request for a key that nobody has: its signature is nothing.
fn request_for(algorithm: &[&[u8]], key: &[u8]) -> String {
    let spki = tlv(SEQUENCE, &[&tlv(SEQUENCE, algorithm), &tlv(3, &[&[0], key])]);
    let info = tlv(SEQUENCE, &[&[2, 1, 0], &tlv(SEQUENCE, &[]), &spki, &tlv(0xa0, &[])]);
    let ecdsa_sha256: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    let request = tlv(SEQUENCE, &[&info, &tlv(SEQUENCE, &[ecdsa_sha256]), &tlv(3, &[&[0, 1, 2, 3]])]);
    ::pem::encode(&::pem::Pem::new("CERTIFICATE REQUEST", request))
}

#[test]
fn c5_weak_and_costly_keys_are_refused_before_anything_is_computed() {
    let rsa = |bits: usize, exponent: &[u8]| {
        let mut modulus = vec![0xc3; bits / 8];
        modulus[0] = 0x80;
        let key = tlv(SEQUENCE, &[&tlv(2, &[&[0], &modulus]), &tlv(2, &[exponent])]);
        refused(&request_for(&[RSA_ENCRYPTION, &[5, 0]], &key))
    };
    let f4 = &[1, 0, 1];
    assert!(rsa(1024, f4).contains("RSA key of 1024 bits"));
    assert!(rsa(2040, f4).contains("RSA key of 2040 bits"));
    assert!(rsa(4104, f4).contains("RSA key of 4104 bits"));
    assert!(rsa(16384, f4).contains("RSA key of 16384 bits"));
    for exponent in [&[1][..], &[3], &[1, 0, 0], &[0], &[0x81], &[1; 9]] {
        assert!(rsa(2048, exponent).contains("exponent"), "{exponent:?}");
    }
    // Of a size that is accepted, the signature is looked at.
    assert!(rsa(2048, f4).contains("not signed") && rsa(4096, f4).contains("not signed"));
    let ec = |curve: &[u8], length: usize, form: u8| {
        let mut point = vec![1; length];
        point[0] = form;
        refused(&request_for(&[EC, curve], &point))
    };
    assert!(ec(P224, 57, 4).contains("curve") && ec(P521, 133, 4).contains("curve"));
    assert!(
        ec(P256, 33, 2).contains("point") && ec(P256, 65, 6).contains("point") && ec(P256, 97, 4).contains("point")
    );
    let dsa: &[u8] = &[0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x38, 4, 1];
    assert!(refused(&request_for(&[dsa], &[1, 2, 3])).contains("algorithm"));
}

#[test]
fn c6_a_lifetime_is_the_default_what_was_asked_for_or_an_error() {
    let authority = authority(NOW);
    let csr = csr();
    let lasts = |ttl: i64, now: u64| issue(&authority, &csr, ttl, now).map(|issued| issued.ttl.as_secs());
    let refused = |ttl: i64| matches!(lasts(ttl, NOW), Err(Refused::Request(_)));
    assert_eq!(lasts(0, NOW).expect("the default"), 24 * 3600);
    assert_eq!(lasts(600, NOW).expect("asked for"), 600);
    assert_eq!(lasts(7 * 24 * 3600, NOW).expect("the most"), 7 * 24 * 3600);
    assert!(refused(7 * 24 * 3600 + 1) && refused(10 * 365 * 24 * 3600) && refused(i64::MAX));
    assert!(refused(-1) && refused(i64::MIN));
    // The intermediate holds for 30 days.
    let end = NOW + 30 * 24 * 3600;
    assert_eq!(lasts(0, end - 3600).expect("clamped"), 3600);
    let issued = issue(&authority, &csr, 0, end - 3600).expect("clamped");
    assert_eq!(validity(&der(&issued.chain[0])).expect("readable").1, end);
    for late in [end, end + 1, end + 1_000_000] {
        assert!(matches!(lasts(0, late), Err(Refused::Authority(_))), "an authority that has expired");
    }
}

#[test]
fn c7_a_certificate_holds_for_clocks_that_are_two_minutes_off() {
    let authority = authority(NOW);
    let issued = issue(&authority, &csr(), 0, NOW).expect("issued");
    let chain: Vec<_> = issued.chain.iter().take(2).map(|pem| CertificateDer::from(der(pem))).collect();
    assert_eq!(validity(&chain[0]).expect("readable"), (NOW - 120, NOW + 24 * 3600));
    for clock in [NOW - 90, NOW, NOW + 90, NOW + 24 * 3600 - 1] {
        authority.verify(&chain, at(clock)).expect("it holds");
    }
    for (clock, why) in [(NOW - 301, "not valid yet"), (NOW + 24 * 3600 + 1, "expired")] {
        let error = format!("{:#}", authority.verify(&chain, at(clock)).expect_err("it does not hold"));
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn c13_serial_numbers_are_positive_of_128_bits_and_never_the_same() {
    let mut seen = HashSet::new();
    for _ in 0..1_000_000 {
        let serial = serial();
        assert!((0x40..0x80).contains(&serial.0[0]));
        assert!(seen.insert(serial), "twice the same");
    }
    // What two authorities sign at the same moment differs, too.
    let csr = csr();
    let [one, other] =
        [authority(NOW), authority(NOW)].map(|authority| issue(&authority, &csr, 0, NOW).expect("issued"));
    assert_ne!(one.serial, other.serial);
    let leaf = der(&one.chain[0]);
    let leaf = parsed(&leaf).expect("a certificate");
    assert_eq!((leaf.raw_serial_as_string().replace(':', ""), one.serial.len()), (one.serial, 32));
}

fn check_dates(now: u64) {
    let authority = authority(now);
    let issued = issue(&authority, &csr(), 0, now).expect("issued");
    let leaf = der(&issued.chain[0]);
    let leaf = parsed(&leaf).expect("a certificate");
    assert_eq!(times(&leaf), (now - 120, now + 24 * 3600), "{now}");
    let of_2050 = 2_524_608_000;
    let validity = leaf.validity();
    for (time, seconds) in [(validity.not_before, now - 120), (validity.not_after, now + 24 * 3600)] {
        assert_eq!(time.is_utctime(), seconds < of_2050, "RFC 5280, 4.1.2.5: {time}");
    }
    let chain: Vec<_> = issued.chain.iter().take(2).map(|pem| CertificateDer::from(der(pem))).collect();
    authority.verify(&chain, at(now)).expect("it holds");
}

#[test]
fn c16_certificates_of_special_days_have_the_right_dates() {
    for now in [
        1_835_395_200, // 2028-02-29
        1_835_481_599, // its last second
        1_774_746_000, // the hour that Europe's clocks skip in 2026
        1_792_976_400, // and the one that they repeat
        2_147_483_647, // 2038-01-19: 2^31 - 1
        2_147_483_648,
        2_524_521_600, // 2049-12-31: ends in 2050
        2_524_607_999, // 2049-12-31 23:59:59
        2_524_608_000, // 2050
        2_524_608_060, // 2050, begins in 2049
        4_107_542_400, // 2100-03-01: no leap year
    ] {
        check_dates(now);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn c16_certificates_of_any_day_have_the_right_dates(now in 1_700_000_000_u64..7_000_000_000) {
        check_dates(now);
    }
}

#[test]
fn root_and_intermediate_are_what_the_standard_asks_of_signing_certificates() {
    let authority = authority(NOW);
    let issued = issue(&authority, &csr(), 0, NOW).expect("issued");
    let [_, intermediate, root] = &issued.chain[..] else { panic!("{} certificates", issued.chain.len()) };
    for (pem, path_length, days) in [(root, 1, 3650), (intermediate, 0, 30)] {
        let der = der(pem);
        let certificate = parsed(&der).expect("a certificate");
        let constraints = certificate.basic_constraints().expect("readable").expect("there");
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(path_length));
        let usage = certificate.key_usage().expect("readable").expect("there");
        assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
        assert_eq!(usage.value.flags.count_ones(), 2);
        assert_eq!(times(&certificate), (NOW - 120, NOW + days * 24 * 3600));
        let name = certificate.subject_alternative_name().expect("readable").expect("there");
        assert!(matches!(name.value.general_names[..], [GeneralName::URI("spiffe://cluster.local")]));
    }
}
