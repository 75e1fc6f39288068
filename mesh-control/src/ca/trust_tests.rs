//! Whom workloads trust, and no longer: what is older, or says less, does not take the place of what is in force; and what they are
//! told fits into an answer.

use std::fs;
use std::path::Path;

use mesh_core::identity::TrustDomain;
use rcgen::{CustomExtension, SerialNumber};

use super::tests::{Ca, NOW, at, ca_params, plug, self_signed};
use super::{CertificateAuthority, FOREIGN_BYTES, OWN_BYTES};

const HOUR: u64 = 3600;

fn plugged(dir: &Path, state: Option<&Path>) -> anyhow::Result<CertificateAuthority> {
    CertificateAuthority::plugged_in(dir, state, TrustDomain::default(), at(NOW))
}

/// A mesh that trusts a partner by a file.
fn trusting(file: &Path, state: Option<&Path>) -> CertificateAuthority {
    let authority = CertificateAuthority::in_memory(TrustDomain::default(), at(NOW)).expect("an authority");
    let files = vec![("partner".parse().expect("a domain"), file.to_owned())];
    authority.trust_bundles(files, vec![], state, at(NOW)).expect("followed")
}

fn problem(authority: &CertificateAuthority) -> String {
    authority.federated(at(NOW))[0].problem.clone().unwrap_or_default()
}

fn in_force(authority: &CertificateAuthority) -> String {
    authority.trusted().1.get("partner").cloned().unwrap_or_default()
}

/// A root that takes some 50 KiB.
fn large_root() -> Ca {
    let mut params = ca_params("large");
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![7; 40_000])];
    self_signed(params)
}

#[test]
fn m18_lists_of_revoked_certificates_do_not_go_back_in_time_nor_across_a_restart() {
    let (dir, state) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let root = self_signed(ca_params("root"));
    let own = root.sign(ca_params("own"));
    plug(dir.path(), &own.pem, &own.key, "", &root.pem);
    let put = |number: u64, made: u64| {
        let text = root.list_made(1, NOW - HOUR, &[], NOW + HOUR) + &own.list_made(number, made, &[], NOW + HOUR);
        fs::write(dir.path().join("ca-crl.pem"), text).expect("written");
    };
    put(5, NOW - 100);
    let authority = plugged(dir.path(), Some(state.path())).expect("usable");
    let lists = authority.trusted().0.revoked_pem();
    let told =
        |authority: &CertificateAuthority| authority.revocation(at(NOW)).and_then(|it| it.problem).unwrap_or_default();
    for (number, made, why) in
        [(4, NOW - 50, "the number 4, and 5 was in force"), (6, NOW - 101, "it was made 1 s before")]
    {
        put(number, made);
        assert!(!authority.look_for_revoked(at(NOW)), "{why}");
        assert!(told(&authority).contains(why), "{}", told(&authority));
        assert_eq!(authority.trusted().0.revoked_pem(), lists);
    }
    // It stays so where the process starts anew.
    let authority = plugged(dir.path(), Some(state.path())).expect("usable");
    assert_eq!(authority.trusted().0.revoked_pem(), lists);
    assert!(told(&authority).contains("goes back"), "{}", told(&authority));
    put(6, NOW - 99);
    assert!(authority.look_for_revoked(at(NOW)));
    assert_eq!(told(&authority), "");
    // What nobody can read is no list that is not there.
    let text = fs::read_to_string(dir.path().join("ca-crl.pem")).expect("read");
    let (first, second) = text.split_at(text.rfind("-----BEGIN").expect("a list"));
    fs::write(dir.path().join("ca-crl.pem"), first.to_owned() + &second.replace("X509 CRL", "CRL")).expect("written");
    assert!(!authority.look_for_revoked(at(NOW)));
    assert!(told(&authority).contains("-----BEGIN CRL-----"), "{}", told(&authority));
}

#[test]
fn m18_lists_of_a_foreign_domain_stay_in_force_where_its_file_has_older_ones_or_none_or_what_nobody_reads() {
    let (dir, state) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (file, root) = (dir.path().join("partner.pem"), self_signed(ca_params("partner")));
    let list = |number: u64| root.list_made(number, NOW - 10 + number, &[SerialNumber::from(7)], NOW + HOUR);
    let put = |text: &str| fs::write(&file, text).expect("written");
    put(&(root.pem.clone() + &list(5)));
    let authority = trusting(&file, Some(state.path()));
    let good = in_force(&authority);
    assert!(good.contains("X509 CRL") && problem(&authority).is_empty(), "{}", problem(&authority));
    let cases = [
        (root.pem.clone(), "no list of revoked certificates in it any more"),
        (root.pem.clone() + &list(4), "goes back"),
        (root.pem.clone() + &list(6).replace("X509 CRL", "CRL"), "BEGIN CRL"),
        (root.pem.clone() + &list(6).replace("-----BEGIN", " -----BEGIN"), "BEGIN X509 CRL"),
    ];
    for (text, why) in &cases {
        put(text);
        assert!(!authority.look_for_trust(at(NOW)), "{why}");
        assert!(problem(&authority).contains(why), "{why}: {}", problem(&authority));
        assert_eq!(in_force(&authority), good, "{why}");
        let anew = trusting(&file, Some(state.path()));
        assert_eq!(in_force(&anew), good, "{why}, at a start");
        assert!(problem(&anew).contains(why), "{why}: {}", problem(&anew));
    }
    // Nor do they vanish with the file.
    fs::remove_file(&file).expect("removed");
    assert_eq!(in_force(&trusting(&file, Some(state.path()))), good);
    put(&(root.pem.clone() + &list(6)));
    assert!(authority.look_for_trust(at(NOW)));
    assert_eq!(problem(&authority), "");
}

#[test]
fn m6_a_bundle_with_a_smaller_number_or_with_none_does_not_take_the_place_of_one_with_a_number() {
    let (dir, state) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (file, root) = (dir.path().join("partner.json"), self_signed(ca_params("partner")));
    let key: String = root.pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let put = |more: &str| {
        let key = format!(r#"{{"use": "x509-svid", "kty": "EC", "x5c": ["{key}"]}}"#);
        fs::write(&file, format!(r#"{{"keys": [{key}]{more}}}"#)).expect("written");
    };
    put(r#", "spiffe_sequence": 7"#);
    let authority = trusting(&file, Some(state.path()));
    let good = in_force(&authority);
    assert!(!good.is_empty());
    for (more, why) in [("", "no spiffe_sequence, and that in force is 7"), (r#", "spiffe_sequence": 6"#, "smaller")] {
        put(more);
        authority.look_for_trust(at(NOW));
        assert!(problem(&authority).contains(why), "{why}: {}", problem(&authority));
        let anew = trusting(&file, Some(state.path()));
        assert!(problem(&anew).contains(why), "{why}: {}", problem(&anew));
        assert_eq!(in_force(&anew), good);
    }
    // Once it is refused, the number before is not forgotten.
    put("");
    authority.look_for_trust(at(NOW));
    put(r#", "spiffe_sequence": 6"#);
    authority.look_for_trust(at(NOW));
    assert!(problem(&authority).contains("smaller"), "{}", problem(&authority));
    // To trust nobody any more is never too late.
    fs::write(&file, r#"{"keys": []}"#).expect("written");
    assert!(authority.look_for_trust(at(NOW)));
    assert_eq!(in_force(&authority), "");
}

#[test]
fn what_does_not_fit_into_an_answer_to_a_workload_is_not_put_in_force_and_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let large = large_root();
    // The mesh's own: without the lists it would fit.
    let root = self_signed(ca_params("root"));
    let own = root.sign(ca_params("own"));
    let roots = root.pem.clone() + &large.pem.repeat(OWN_BYTES / large.pem.len() - 1);
    plug(dir.path(), &own.pem, &own.key, "", &roots);
    let many: Vec<_> = (0..3_000_u64).map(|serial| SerialNumber::from(u64::MAX / 2 - serial)).collect();
    let lists = root.list_made(1, NOW - 1, &[], NOW + HOUR) + &own.list_made(1, NOW - 1, &many, NOW + HOUR);
    fs::write(dir.path().join("ca-crl.pem"), lists).expect("written");
    let why = format!("{:#}", plugged(dir.path(), None).expect_err("it is too large"));
    assert!(why.contains("ca-crl.pem cannot be used") && why.contains("fit into what a workload is told"), "{why}");

    // A foreign domain's: what was in force stays.
    let (file, root) = (dir.path().join("partner.pem"), self_signed(ca_params("partner")));
    fs::write(&file, &root.pem).expect("written");
    let authority = trusting(&file, None);
    fs::write(&file, large.pem.repeat(FOREIGN_BYTES / large.pem.len() + 1)).expect("written");
    assert!(!authority.look_for_trust(at(NOW)));
    assert!(problem(&authority).contains("fit into what a workload is told"), "{}", problem(&authority));
    assert!(in_force(&authority).contains(root.pem.lines().nth(1).expect("a line")));
}

#[test]
fn m11_no_domain_holds_up_the_roots_of_another_by_copies_of_them_nor_by_the_size_of_its_own() {
    let (dir, state) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let [old, new, other, third] = ["old", "new", "other", "third"].map(|name| self_signed(ca_params(name)).pem);
    let file = |domain: &str| dir.path().join(domain);
    let put = |domain: &str, roots: &[&String]| {
        fs::write(file(domain), roots.iter().map(|root| root.as_str()).collect::<String>()).expect("written");
    };
    // Whoever copies is looked at first.
    let trusting = |state| {
        let authority = CertificateAuthority::in_memory(TrustDomain::default(), at(NOW)).expect("an authority");
        let files = ["copier", "partner"].map(|domain| (domain.parse().expect("a domain"), file(domain)));
        authority.trust_bundles(files.into(), vec![], state, at(NOW)).expect("followed")
    };
    let in_force = |authority: &CertificateAuthority, domain: &str| {
        let roots = authority.trusted().1.get(domain).cloned().unwrap_or_default();
        [&old, &new, &other, &third].map(|root| roots.contains(root.as_str()))
    };
    let problems = |authority: &CertificateAuthority| {
        let all = authority.federated(at(NOW)).into_iter();
        all.map(|bundle| bundle.problem.unwrap_or_default()).collect::<Vec<_>>()
    };
    put("copier", &[&other]);
    put("partner", &[&old]);
    let authority = trusting(Some(state.path()));
    assert_eq!(problems(&authority), ["", ""]);
    // The next root of the partner is known to everybody before it comes here.
    put("copier", &[&other, &new]);
    assert!(authority.look_for_trust(at(NOW)));
    for (roots, expected) in [(&[&old, &new][..], [true, true, false, false]), (&[&new], [false, true, false, false])] {
        put("partner", roots);
        assert!(authority.look_for_trust(at(NOW)), "{:?}", problems(&authority));
        assert_eq!(in_force(&authority, "partner"), expected);
        let told = problems(&authority);
        assert!(told[0].contains("is one of partner, too") && told[1].contains("is one of copier, too"), "{told:?}");
        let anew = trusting(Some(state.path()));
        assert_eq!(in_force(&anew, "partner"), expected, "after a restart: {:?}", problems(&anew));
    }
    put("copier", &[&other]);
    assert!(authority.look_for_trust(at(NOW)));
    assert_eq!(problems(&authority), ["", ""]);
    // What does not go on from what is in force may be somebody else's by mistake.
    put("copier", &[&third, &new]);
    assert!(!authority.look_for_trust(at(NOW)));
    assert!(
        problems(&authority)[0].contains("a root in it is one of partner, too, so that"),
        "{:?}",
        problems(&authority)
    );
    assert_eq!(in_force(&authority, "copier"), [false, false, true, false]);
    let anew = trusting(None);
    assert!(problems(&anew)[1].contains("a root in it is one of copier, too, so that"), "{:?}", problems(&anew));

    let large = large_root().pem;
    put("copier", &vec![&large; FOREIGN_BYTES / large.len() / 2 + 1]);
    assert!(!authority.look_for_trust(at(NOW)));
    assert!(
        problems(&authority)[0].contains("what grows has to leave free as much as it takes"),
        "{:?}",
        problems(&authority)
    );
}
