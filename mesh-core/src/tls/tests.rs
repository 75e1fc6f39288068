//! The checks of a peer's certificate, by the rows of the hazards that they answer.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CrlIssuingDistributionPoint, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, RevokedCertParams, SanType, SerialNumber,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

use super::chain::Side;
use super::credentials::PROVIDER;
use super::*;
use crate::error::Invalid;
use crate::identity::SpiffeId;
use crate::model::{ForeignTls, Roots, Secret, Sni};

/// An authority, and what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    fn sign(&self, params: &CertificateParams) -> (String, String) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    fn trusted_for(&self, domain: &str) -> TrustBundles {
        let mut bundles = TrustBundles::new();
        bundles.add_pem(domain.parse().expect("a domain"), self.pem.as_bytes()).expect("a root");
        bundles
    }
}

/// The leaf of a workload, as an authority should make it.
fn leaf(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// Whoever waits for credentials, and looks at the moment that he is told.
struct Waiting {
    certificates: Arc<Certificates>,
    is_trusted: std::sync::OnceLock<bool>,
}

impl std::task::Wake for Waiting {
    fn wake(self: Arc<Self>) {
        let present = self.certificates.current().expect("there are some by now");
        self.is_trusted.get_or_init(|| *self.certificates.trusted().borrow() == present.bundles);
    }
}

#[test]
fn whom_credentials_trust_is_known_as_soon_as_there_are_credentials() {
    let authority = Authority::named("one");
    let (certificate, key) = authority.sign(&leaf(&[WEB]));
    let certificates = Arc::<Certificates>::default();
    let waiting = Arc::new(Waiting { certificates: Arc::clone(&certificates), is_trusted: std::sync::OnceLock::new() });
    let waker = std::task::Waker::from(Arc::clone(&waiting));
    let mut getting = std::pin::pin!(certificates.get());
    assert!(getting.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
    let credentials = Credentials::from_pem(certificate.as_bytes(), key.as_bytes(), authority.pem.as_bytes());
    certificates.set(Arc::new(credentials.expect("they fit")));
    assert_eq!(waiting.is_trusted.get(), Some(&true));
}

const WEB: &str = "spiffe://td/ns/shop/sa/web";

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")
}

/// Who the peer is taken for, on either side of the connection; the same on both.
fn verify(bundles: &TrustBundles, pem: &str) -> Result<SpiffeId, String> {
    let at = |side| {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        bundles.verify(&der(pem), &[], side, UnixTime::now(), algorithms).map_err(|invalid| invalid.to_string())
    };
    let both = [at(Side::Server), at(Side::Client)];
    assert_eq!(both[0], both[1]);
    at(Side::Client)
}

fn refused(params: &CertificateParams) -> String {
    let authority = Authority::named("root");
    let (pem, _) = authority.sign(params);
    verify(&authority.trusted_for("td"), &pem).expect_err("it must be refused")
}

#[test]
fn a_leaf_that_the_standard_allows_is_its_workloads() {
    let authority = Authority::named("root");
    let bundles = authority.trusted_for("td");
    assert_eq!(verify(&bundles, &authority.sign(&leaf(&[WEB])).0).expect("good").as_str(), WEB);
    // M8: without an extended usage, the key is for anything.
    let mut params = leaf(&[WEB]);
    params.extended_key_usages = Vec::new();
    assert!(verify(&bundles, &authority.sign(&params).0).is_ok());
}

#[test]
fn m1_a_leaf_with_two_uris_is_refused() {
    assert!(refused(&leaf(&[WEB, "spiffe://td/ns/shop/sa/admin"])).contains("more than one URI"));
    assert!(refused(&leaf(&[WEB, WEB])).contains("more than one URI"));
    assert!(refused(&leaf(&["https://example.com", WEB])).contains("more than one URI"));
}

#[test]
fn an_id_is_read_from_the_only_uri_of_a_leaf_whatever_its_key_is_for() {
    let read = |uris: &[&str]| {
        let mut params = leaf(uris);
        params.key_usages = Vec::new();
        super::svid::id(&der(&Authority::named("root").sign(&params).0))
    };
    assert_eq!(read(&[WEB]).expect("an ID").workload(), Some(("shop", "web")));
    for uris in [
        &[][..],
        &[WEB, "spiffe://a/ns/d/sa/c"],
        &["spiffe:///ns/b/sa/c"],
        &["spiffe://a/ns//sa/c"],
        &["spiffe://a/ns/../sa/c"],
        &["spiffe://a/ns/%62/sa/c"],
        &["spiffe://A/ns/b/sa/c"],
        &["https://a/ns/b/sa/c"],
    ] {
        assert!(read(uris).is_err(), "{uris:?}");
    }
    assert!(super::svid::id(b"not a certificate").is_err());
}

#[test]
fn m2_what_is_no_workloads_leaf_is_refused() {
    assert!(refused(&leaf(&[])).contains("no URI"));
    assert!(refused(&leaf(&["spiffe://td"])).contains("no path"));
    let mut authority = leaf(&[WEB]);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert!(refused(&authority).contains("authority"));
    for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        let mut params = leaf(&[WEB]);
        params.key_usages.push(usage);
        assert!(refused(&params).contains("may sign"));
    }
    let mut params = leaf(&[WEB]);
    params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    assert!(refused(&params).contains("digital signatures"));
    params.key_usages = Vec::new();
    assert!(refused(&params).contains("what its key is for"));
}

#[test]
fn m4_only_a_uri_is_an_identity() {
    let mut params = leaf(&[]);
    params.subject_alt_names = vec![
        SanType::Rfc822Name(WEB.try_into().expect("ASCII")),
        SanType::DnsName("web.shop".try_into().expect("a name")),
    ];
    assert!(refused(&params).contains("no URI"));
}

#[test]
fn m5_bytes_that_no_id_has_do_not_cut_it_short() {
    assert!(refused(&leaf(&["spiffe://td/ns/shop/sa/admin\0.evil"])).contains("path has only"));
}

#[test]
fn m6_a_peer_is_verified_by_the_roots_of_its_own_domain_only() {
    let (ours, theirs) = (Authority::named("ours"), Authority::named("theirs"));
    let mut bundles = ours.trusted_for("td");
    bundles.add_pem("partner".parse().expect("a domain"), theirs.pem.as_bytes()).expect("a root");
    let of = |authority: &Authority, id: &str| verify(&bundles, &authority.sign(&leaf(&[id])).0);
    assert!(of(&ours, WEB).is_ok() && of(&theirs, "spiffe://partner/ns/a/sa/b").is_ok());
    // Both are trusted, and neither may speak for the other.
    assert!(of(&theirs, WEB).expect_err("a foreign authority").contains("no trusted authority has signed it"));
    assert!(of(&ours, "spiffe://partner/ns/a/sa/b").is_err());
    for other in ["spiffe://tdx/a", "spiffe://td.evil/a", "spiffe://t/a"] {
        assert!(of(&ours, other).expect_err("no domain of ours").contains("is not trusted"), "{other}");
    }
}

/// A list of revoked certificates, with what more it says.
fn revoked(authority: &Authority, serials: &[u64], more: impl FnOnce(&mut CertificateRevocationListParams)) -> Vec<u8> {
    let now = time::OffsetDateTime::now_utc();
    let one = |serial: &u64| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    };
    let mut params = CertificateRevocationListParams {
        this_update: now,
        next_update: now + Duration::from_secs(3600),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(one).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    more(&mut params);
    params.signed_by(&authority.issuer).expect("signed").der().to_vec()
}

fn crl_pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN X509 CRL-----\n{text}\n-----END X509 CRL-----\n")
}

#[test]
fn m18_who_is_revoked_is_refused_and_so_is_of_whom_no_list_of_its_domain_tells() {
    let (ours, theirs) = (Authority::named("ours"), Authority::named("theirs"));
    let trusting = |pem: String| {
        let mut bundles = theirs.trusted_for("partner");
        bundles.add_pem("td".parse().expect("a domain"), pem.as_bytes()).expect("a bundle");
        bundles
    };
    let mut params = leaf(&[WEB]);
    params.serial_number = Some(7.into());
    let (web, _) = ours.sign(&params);
    let list = |authority, serials: &[u64]| format!("{}{}", ours.pem, crl_pem(&revoked(authority, serials, |_| {})));
    assert!(verify(&trusting(list(&ours, &[8])), &web).is_ok());
    assert!(verify(&trusting(list(&ours, &[8, 7])), &web).expect_err("revoked").contains("has been revoked"));
    assert!(verify(&trusting(list(&theirs, &[])), &web).expect_err("no list of ours").contains("not known"));
    // Others have their own lists, or none.
    let (partner, _) = theirs.sign(&leaf(&["spiffe://partner/a"]));
    assert!(verify(&trusting(list(&ours, &[7])), &partner).is_ok());
    // By it, bundles are told apart.
    assert_ne!(roots_fingerprint(list(&ours, &[7]).as_bytes()), roots_fingerprint(list(&ours, &[8]).as_bytes()));
    assert!(trusting(list(&ours, &[7])) != trusting(list(&ours, &[8])));
}

#[test]
fn m18_of_two_lists_of_one_issuer_neither_is_passed_over() {
    let (ours, theirs) = (Authority::named("ours"), Authority::named("theirs"));
    let list = |authority: &Authority, serials: &[u64]| crl_pem(&revoked(authority, serials, |_| {}));
    let two = list(&ours, &[7]) + &list(&ours, &[8]);
    let why = Revoked::from_pem(two.as_bytes()).map(drop).expect_err("verifiers would look at the first").to_string();
    assert!(why.contains("ours") && why.contains("two lists"), "{why}");
    let same = list(&ours, &[7]);
    Revoked::from_pem((same.clone() + &same).as_bytes()).expect("the same list twice says nothing else");
    Revoked::from_pem((same + &list(&theirs, &[7])).as_bytes()).expect("each has its own");
    // Lists for some certificates only tell of different ones.
    let point = |uri: &str| CrlIssuingDistributionPoint {
        distribution_point: CrlDistributionPoint { uris: vec![uri.to_owned()] },
        scope: None,
    };
    let [a, b] = ["http://a", "http://b"]
        .map(|uri| crl_pem(&revoked(&ours, &[7], |it| it.issuing_distribution_point = Some(point(uri)))));
    Revoked::from_pem((a + &b).as_bytes()).expect("a list for each point");
}

#[test]
fn m18_no_list_takes_the_place_of_a_newer_one_of_its_issuer() {
    let (ours, theirs) = (Authority::named("ours"), Authority::named("theirs"));
    let start = time::OffsetDateTime::now_utc();
    let list = |authority: &Authority, number: u64, after: u64, point: Option<&str>| {
        crl_pem(&revoked(authority, &[], |it| {
            it.crl_number = SerialNumber::from(number);
            it.this_update = start + Duration::from_secs(after);
            it.issuing_distribution_point = point.map(|uri| CrlIssuingDistributionPoint {
                distribution_point: CrlDistributionPoint { uris: vec![uri.to_owned()] },
                scope: None,
            });
        }))
    };
    let read = |text: &str| Revoked::from_pem(text.as_bytes()).expect("lists");
    let mut newest = NewestLists::default();
    newest.check(&Revoked::default()).expect("there were none");
    newest.note(&read(&list(&ours, 5, 10, None)));
    for (text, is_newer) in [
        (list(&ours, 5, 10, None), true),
        (list(&ours, 6, 11, None) + &list(&theirs, 1, 0, None), true),
        (list(&ours, 4, 11, None), false),
        (list(&ours, 6, 9, None), false),
        (list(&theirs, 1, 0, None), true),
        (String::new(), false),
        // For some certificates only, and older than the one for all.
        (list(&ours, 6, 9, Some("http://a")), false),
        (list(&ours, 1, 11, Some("http://a")), true),
    ] {
        assert_eq!(newest.check(&read(&text)).is_ok(), is_newer, "{text}");
    }
    // One that was not there for a while does not come back as it was before.
    newest.note(&read(&list(&theirs, 1, 0, None)));
    newest.check(&read(&list(&ours, 4, 9, None))).expect_err("it is older");

    // Nor does one in a file that a rule names.
    let dir = std::env::temp_dir().join(format!("mesh-core-lists-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let (roots, path) = (dir.join("ca.pem"), dir.join("crl.pem"));
    let put = |text: &str| std::fs::write(&path, text).expect("written");
    std::fs::write(&roots, &ours.pem).expect("written");
    put(&list(&ours, 5, 10, None));
    let mut files = ForeignTls::with(Sni::None, Roots::File(roots)).material;
    files.revoked = Some(path.clone());
    let (reader, now) = (MaterialReader::default(), std::time::SystemTime::now());
    let good = reader.read(&files, now).expect("good");
    put(&list(&ours, 4, 11, None));
    assert!(reader.read(&files, now).expect("what it said before").is_same(&good));
    assert!(reader.problems(now).iter().any(|problem| problem.to_string().contains("goes back")));
    std::fs::remove_dir_all(&dir).expect("removed");
}

#[test]
fn what_a_secret_said_goes_on_where_a_newer_one_is_no_good_or_none_is_there() {
    let ours = Authority::named("ours");
    let name: Arc<str> = "kubernetes://shop/api-cacert".into();
    let files = ForeignTls::with(Sni::None, Roots::Secret(Arc::clone(&name))).material;
    let (reader, now) = (MaterialReader::default(), std::time::SystemTime::now());
    let why = reader.read(&files, now).expect_err("it is not known yet");
    assert!(why.to_string().starts_with("kubernetes://shop/api-cacert: this secret is not there"), "{why}");
    let with = |revoked: Option<String>| {
        Arc::new(Secret::Authorities { roots: ours.pem.clone().into_bytes(), revoked: revoked.map(String::into_bytes) })
    };
    reader.deliver(&name, Some(with(Some(crl_pem(&revoked(&ours, &[7], |_| {}))))));
    let good = reader.read(&files, now).expect("good");
    for later in [
        // Lists that were there do not go.
        Some(with(None)),
        Some(Arc::new(Secret::Unusable("no".into()))),
        Some(Arc::new(Secret::Certificate { chain: Vec::new(), key: Vec::new() })),
        None,
    ] {
        reader.deliver(&name, later);
        assert!(reader.read(&files, now).expect("what it said before").is_same(&good));
        assert!(!reader.problems(now).is_empty());
    }
}

#[test]
fn a_key_that_nobody_needs_is_let_go_with_its_secret_and_older_lists_do_not_come_back_with_it() {
    let ours = Authority::named("ours");
    let dir = tempfile::tempdir().expect("a directory");
    let (roots, lists) = (dir.path().join("ca.pem"), dir.path().join("crl.pem"));
    std::fs::write(&roots, &ours.pem).expect("written");
    let put = |number: u64| {
        let list = revoked(&ours, &[7], |it| it.crl_number = SerialNumber::from(number));
        std::fs::write(&lists, crl_pem(&list)).expect("written");
    };
    put(5);
    let name: Arc<str> = "kubernetes://shop/api".into();
    let mut files = ForeignTls::with(Sni::None, Roots::File(roots)).material;
    (files.revoked, files.secret) = (Some(lists.clone()), Some(Arc::clone(&name)));
    let (chain, key) = ours.sign(&leaf(&[WEB]));
    let secret = Arc::new(Secret::Certificate { chain: chain.into_bytes(), key: key.into_bytes() });
    let (reader, now) = (MaterialReader::default(), SystemTime::now());
    reader.deliver(&name, Some(Arc::clone(&secret)));
    let trust = reader.read(&files, now).expect("good");
    let (kept, pair) = (Arc::downgrade(&trust), Arc::downgrade(&secret));
    drop((trust, secret));
    assert!(kept.upgrade().is_some() && pair.upgrade().is_some(), "for the next connection");

    reader.release(&name);
    assert!(kept.upgrade().is_none() && pair.upgrade().is_none());
    let why = reader.read(&files, now).expect_err("it is not there");
    assert!(why.to_string().contains("this secret is not there"), "{why}");
    assert!(reader.recent(&files, Duration::from_secs(60), now).is_err());
    assert!(reader.problems(now).is_empty(), "nobody has a problem with what nobody needs");

    let (chain, key) = ours.sign(&leaf(&[WEB]));
    reader.deliver(&name, Some(Arc::new(Secret::Certificate { chain: chain.into_bytes(), key: key.into_bytes() })));
    put(4);
    let why = reader.read(&files, now).expect_err("older than what was in force");
    assert!(why.to_string().contains("goes back"), "{why}");
    put(6);
    reader.read(&files, now).expect("good");
}

#[test]
fn m18_what_no_reader_of_pem_knows_is_an_error_beside_lists_and_roots() {
    let ours = Authority::named("ours");
    let list = crl_pem(&revoked(&ours, &[7], |_| {}));
    for text in [
        list.replace("X509 CRL", "CRL"),
        list.replace("X509 CRL", "X509 crl"),
        format!(" {list}"),
        list.replace("-----BEGIN", "----BEGIN"),
        list.to_lowercase(),
        ours.pem.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
    ] {
        let why = Revoked::from_pem((ours.pem.clone() + &text).as_bytes()).map(drop).expect_err(&text);
        assert!(why.to_string().contains("nobody reads"), "{why}");
        TrustBundles::new()
            .add_pem("td".parse().expect("a domain"), (ours.pem.clone() + &text).as_bytes())
            .expect_err(&text);
    }
    let key = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    Revoked::from_pem((key.to_owned() + &list).as_bytes()).expect("no list, and nothing like one");
}

#[test]
fn m18_a_malformed_list_is_an_error_or_lets_nobody_in() {
    let ours = Authority::named("ours");
    let mut params = leaf(&[WEB]);
    params.serial_number = Some(7.into());
    let (web, _) = ours.sign(&params);
    let point = |uris: &[&str]| CrlIssuingDistributionPoint {
        distribution_point: CrlDistributionPoint { uris: uris.iter().map(|uri| (*uri).to_owned()).collect() },
        scope: None,
    };
    let check = |list: &[u8]| {
        let mut bundles = TrustBundles::new();
        let text = format!("{}{}", ours.pem, crl_pem(list));
        match bundles.add_pem("td".parse().expect("a domain"), text.as_bytes()) {
            Ok(()) => verify(&bundles, &web).expect_err("revoked, or not known"),
            Err(invalid) => invalid.to_string(),
        }
    };
    // Several places where it is found.
    let several = revoked(&ours, &[7], |it| it.issuing_distribution_point = Some(point(&["http://a", "http://b"])));
    check(&several);
    // For some reasons only, of which there are none: an empty string of bits in the place of a name.
    let mut empty = revoked(&ours, &[7], |it| it.issuing_distribution_point = Some(point(&[""])));
    let name = [0xa0, 0x04, 0xa0, 0x02, 0x86, 0x00];
    let position = empty.windows(name.len()).position(|bytes| bytes == name).expect("the name");
    empty[position..position + name.len()].copy_from_slice(&[0x83, 0x01, 0x00, 0x84, 0x01, 0x00]);
    check(&empty);
    // Any byte of it may be another one. Of what follows the list, some bytes have no meaning.
    for position in 0..several.len() {
        for byte in [0x00, 0x01, 0x03, 0x30, 0x80, 0xff] {
            let mut list = several.clone();
            list[position] = byte;
            if list != several {
                _ = Revoked::from_pem(crl_pem(&list).as_bytes());
            }
        }
    }
}

#[test]
fn m8_a_leaf_for_servers_alone_is_refused_and_so_is_one_for_clients_alone() {
    for usage in [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth] {
        let mut params = leaf(&[WEB]);
        params.extended_key_usages = vec![usage];
        assert!(refused(&params).contains("both servers and clients"));
    }
}

#[test]
fn m9_a_leaf_out_of_its_time_is_refused_with_the_reason() {
    let now = time::OffsetDateTime::now_utc();
    let mut params = leaf(&[WEB]);
    (params.not_before, params.not_after) = (now - Duration::from_secs(7200), now - Duration::from_secs(3600));
    assert!(refused(&params).contains("expired"));
    (params.not_before, params.not_after) = (now + Duration::from_secs(3600), now + Duration::from_secs(7200));
    assert!(refused(&params).contains("not valid yet"));
}

#[test]
fn m9_a_leaf_stands_first_and_what_is_behind_it_may_have_any_order_but_not_any_date() {
    let root = Authority::named("root");
    let below = |name: &str, above: &Issuer<'static, KeyPair>, ends: i64| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let now = time::OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - time::Duration::days(2), now + time::Duration::days(ends));
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, above).expect("a certificate").der().clone();
        (certificate, Issuer::new(params, key))
    };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let check = |chain: &[&CertificateDer<'static>]| {
        let (leaf, rest) = chain.split_first().expect("a leaf");
        let rest: Vec<CertificateDer<'_>> = rest.iter().map(|one| (*one).clone()).collect();
        let of = |side| {
            let algorithms = &PROVIDER.signature_verification_algorithms;
            root.trusted_for("td").verify(leaf, &rest, side, UnixTime::now(), algorithms).map_err(|why| why.to_string())
        };
        assert_eq!(of(Side::Server), of(Side::Client));
        of(Side::Client)
    };
    let (upper, issuer) = below("upper", &root.issuer, 2);
    let (lower, lowest) = below("lower", &issuer, 2);
    let workload = leaf(&[WEB]).signed_by(&key, &lowest).expect("a certificate").der().clone();
    let junk = der(&Authority::named("somebody").pem);
    // RFC 8446, 4.4.2: any order, and what is of no use.
    for good in [&[&workload, &lower, &upper][..], &[&workload, &upper, &lower], &[&workload, &junk, &upper, &lower]] {
        assert_eq!(check(good).map(|id| id.to_string()), Ok(WEB.to_owned()));
    }
    for (wrong, why) in [
        (&[&lower, &workload, &upper][..], "may sign certificates"),
        (&[&workload, &lower], "no trusted authority has signed it"),
        (&[&workload, &upper], "no trusted authority has signed it"),
        (&[&junk, &workload, &lower, &upper], ""),
    ] {
        let refused = check(wrong).expect_err("it must be refused");
        assert!(refused.contains(why), "{refused}");
    }
    let (late, of_late) = below("late", &root.issuer, -1);
    let workload = leaf(&[WEB]).signed_by(&key, &of_late).expect("a certificate").der().clone();
    let refused = check(&[&workload, &late]).expect_err("its authority's own time is over");
    assert!(refused.contains("expired"), "{refused}");
}

#[test]
fn m11_a_peer_passes_for_as_long_as_its_handshake_would_succeed() {
    let (authority, next) = (Authority::named("root"), Authority::named("next"));
    let now = SystemTime::now();
    let seconds = |count| now + Duration::from_secs(count);
    let peer = || {
        let mut params = leaf(&[WEB]);
        let start = time::OffsetDateTime::from(now);
        (params.not_before, params.not_after) = (start - Duration::from_secs(10), start + Duration::from_secs(100));
        Peer::new(&[der(&authority.sign(&params).0)], Side::Client, &Arc::new(authority.trusted_for("td")))
    };
    let mut peer = peer().expect("it has an identity");
    let both = {
        let mut both = next.trusted_for("td");
        both.add_pem("td".parse().expect("a domain"), authority.pem.as_bytes()).expect("a root");
        Arc::new(both)
    };
    // The same roots, more roots, and the same again.
    for trusted in [Arc::new(authority.trusted_for("td")), Arc::clone(&both), Arc::new(authority.trusted_for("td"))] {
        assert_eq!(peer.check(&trusted, now).map_err(|error| error.to_string()), Ok(()));
    }
    let refused = |checked: Result<(), Invalid>| checked.expect_err("it must not pass").to_string();
    for trusted in [next.trusted_for("td"), authority.trusted_for("other"), TrustBundles::new()] {
        assert!(refused(peer.check(&Arc::new(trusted), now)).contains("trusted"));
    }
    assert!(peer.check(&both, seconds(99)).is_ok() && peer.check(&both, peer.next_check().expect("it ends")).is_err());
    assert!(refused(peer.check(&both, seconds(102))).contains("expired"));
}

#[test]
fn only_a_change_of_roots_is_told_to_those_who_ask_for_them() {
    let (authority, next) = (Authority::named("root"), Authority::named("next"));
    let of = |authority: &Authority| {
        let (chain, key) = authority.sign(&leaf(&[WEB]));
        let credentials = Credentials::from_pem(chain.as_bytes(), key.as_bytes(), authority.pem.as_bytes());
        Arc::new(credentials.expect("they fit"))
    };
    let certificates = Certificates::default();
    certificates.set(of(&authority));
    let trusted = certificates.trusted();
    certificates.set(of(&authority));
    assert!(!trusted.has_changed().expect("it is there"));
    certificates.set(of(&next));
    assert!(trusted.has_changed().expect("it is there"));
}

#[test]
fn a_root_that_is_no_authoritys_is_refused() {
    let authority = Authority::named("root");
    let (pem, _) = authority.sign(&leaf(&[WEB]));
    let mut bundles = TrustBundles::new();
    for pem in [pem.as_str(), "", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(bundles.add_pem("td".parse().expect("a domain"), pem.as_bytes()).is_err(), "{pem}");
    }
}

#[test]
fn credentials_are_taken_only_if_their_parts_fit() {
    let (authority, other) = (Authority::named("root"), Authority::named("other"));
    let (chain, key) = authority.sign(&leaf(&[WEB]));
    let (_, another_key) = authority.sign(&leaf(&[WEB]));
    let of = |chain: &str, key: &str, roots: &str| {
        Credentials::from_pem(chain.as_bytes(), key.as_bytes(), roots.as_bytes()).map_err(|invalid| invalid.to_string())
    };
    let good = of(&chain, &key, &authority.pem).expect("they fit");
    assert_eq!(good.id().as_str(), WEB);
    for (chain, key, roots) in [
        (chain.as_str(), another_key.as_str(), authority.pem.as_str()),
        (&chain, &key, &other.pem),
        (&chain, &chain, &authority.pem),
        (&key, &key, &authority.pem),
        (&chain, &key, ""),
        ("", &key, &authority.pem),
    ] {
        let refused = of(chain, key, roots).expect_err("they do not fit");
        // C10, M17: no part of a key is in a message.
        let secret: String = key.lines().filter(|line| !line.starts_with("---")).collect();
        assert!(!secret.is_empty() && !refused.contains(&secret[..16.min(secret.len())]), "{refused}");
    }
    let shown = format!("{good:?} {:?} {:?}", Certificates::default(), CertificateRequest::new().expect("a key"));
    let secret: String = key.lines().filter(|line| !line.starts_with("---")).collect();
    assert!(!shown.contains(&secret[..16]) && shown.contains(WEB), "{shown}");
}

#[test]
fn a_certificate_is_renewed_after_half_of_its_life_and_not_by_all_at_once() {
    let authority = Authority::named("root");
    let now = time::OffsetDateTime::now_utc();
    let mut params = leaf(&[WEB]);
    (params.not_before, params.not_after) = (now, now + Duration::from_secs(1000));
    let (chain, key) = authority.sign(&params);
    let credentials = Credentials::from_pem(chain.as_bytes(), key.as_bytes(), authority.pem.as_bytes()).expect("good");
    // It begins before it was issued, as every authority has it.
    let issued = credentials.not_after() - Duration::from_secs(600);
    let after = |jitter| credentials.renew_after(issued, jitter).as_secs();
    assert_eq!([after(0.0), after(0.5), after(1.0)], [270, 300, 330]);
    assert_eq!(credentials.renew_after(issued + Duration::from_secs(700), 0.5), Duration::ZERO);
}

/// Authorities of one name that all vouch for each other: as many ways as their number has permutations, and none leads to a
/// root.
#[test]
fn m15_a_chain_with_more_ways_than_can_be_tried_is_refused_and_holds_nobody_up() {
    const AUTHORITIES: usize = 10;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "same");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let keys: Vec<KeyPair> =
        (0..AUTHORITIES).map(|_| KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key")).collect();
    let mut crossed = Vec::new();
    for (signer, key) in keys.iter().enumerate() {
        let issuer = Issuer::from_params(&params, key);
        let others = keys.iter().enumerate().filter(|(other, _)| *other != signer);
        crossed.extend(others.map(|(_, of)| params.signed_by(of, &issuer).expect("a certificate").der().clone()));
    }
    let own = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let issuer = Issuer::from_params(&params, &keys[0]);
    let workload = leaf(&[WEB]).signed_by(&own, &issuer).expect("a certificate");
    // The root has their name, too.
    let bundles = Authority::named("same").trusted_for("td");
    for side in [Side::Server, Side::Client] {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        let verified = bundles.verify(workload.der(), &crossed, side, UnixTime::now(), algorithms);
        assert!(verified.is_err(), "{verified:?}");
    }
}
