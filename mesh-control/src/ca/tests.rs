//! Where keys are kept, and authorities of somebody else (hazard rows C10 to C12, M14).

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber,
};

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::server::WebPkiClientVerifier;

use super::files::Present;
use super::rotation::{INTERMEDIATE, NEXT, ROOT};
use super::signer::Signer;
use super::*;

pub(super) const NOW: u64 = 1_795_824_000;

pub(super) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

pub(super) fn web() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/web".parse().expect("an ID")
}

fn open(dir: &Path, now: u64) -> anyhow::Result<CertificateAuthority> {
    CertificateAuthority::in_directory(dir, TrustDomain::default(), at(now))
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("there").mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
}

fn why<T: fmt::Debug>(result: anyhow::Result<T>) -> String {
    format!("{:#}", result.expect_err("it is refused"))
}

/// An intermediate that a later one replaces has to differ from it.
fn signs_with(authority: &CertificateAuthority, now: u64) -> String {
    let (_, issued) = authority.issue_with_key(&web(), 0, at(now)).expect("issued");
    issued.chain[1].clone()
}

#[test]
fn an_authority_in_a_directory_is_the_same_after_a_restart() {
    let state = tempfile::tempdir().expect("a directory");
    let dir = state.path().join("ca");
    let before = open(&dir, NOW).expect("made");
    assert_eq!((mode(&dir), mode(&dir.join(ROOT)), mode(&dir.join(INTERMEDIATE))), (0o700, 0o600, 0o600));
    let after = open(&dir, NOW).expect("read");
    assert_eq!(before.roots_pem(), after.roots_pem());
    assert_eq!(signs_with(&before, NOW), signs_with(&after, NOW));
    let other = CertificateAuthority::in_directory(&dir, "other.example".parse().expect("a domain"), at(NOW));
    assert!(why(other).contains("trust domain"), "it is of cluster.local");
}

#[test]
fn an_intermediate_is_replaced_after_two_thirds_of_its_life_or_when_it_has_ended() {
    let state = tempfile::tempdir().expect("a directory");
    let dir = state.path().join("ca");
    let authority = open(&dir, NOW).expect("made");
    let first = signs_with(&authority, NOW);
    let day = 24 * 3600;
    assert_eq!(signs_with(&authority, NOW + 19 * day), first);
    let second = signs_with(&authority, NOW + 20 * day);
    assert_ne!(second, first);
    assert_eq!(signs_with(&open(&dir, NOW + 20 * day).expect("read"), NOW + 20 * day), second, "it was written down");
    let roots = authority.roots_pem();
    // The server was off for a year.
    let authority = open(&dir, NOW + 400 * day).expect("read");
    assert_eq!(authority.roots_pem(), roots);
    assert_ne!(signs_with(&authority, NOW + 400 * day), second);
    assert!(why(open(&dir, NOW + 3651 * day)).contains("expired"), "the root has ended");
}

/// The certificates of a text.
fn ders(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().expect("PEM")
}

/// Whether somebody with these roots takes this chain for good.
fn accepts(roots: &str, chain: &[String], now: u64) -> bool {
    let mut store = RootCertStore::empty();
    ders(roots).into_iter().for_each(|root| store.add(root).expect("a root"));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).build().expect("roots");
    let chain = ders(&chain.concat());
    verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::since_unix_epoch(Duration::from_secs(now))).is_ok()
}

#[test]
fn while_the_root_is_replaced_nobody_is_shown_a_certificate_whose_root_they_lack() {
    let state = tempfile::tempdir().expect("a directory");
    let dir = state.path().join("ca");
    let day = 24 * 3600;
    let mut authority = open(&dir, NOW).expect("made");
    let (old, mut signers) = (authority.roots_pem(), Vec::new());
    // Workloads get a certificate on each half of a day, for as long as there are any, and renew at its very end.
    let mut issued: Vec<(u64, Vec<String>, String)> = Vec::new();
    for half in 0..60 {
        let now = NOW + half * day / 2;
        if half == 6 {
            // By the command, in another process: the server notices by itself.
            open(&dir, now - 60).expect("read").rotate_root(at(now - 60)).expect("begun");
        }
        if half % 9 == 4 {
            authority = open(&dir, now).expect("a restart");
        }
        let (_, mut certificate) = authority.issue_with_key(&web(), 7 * day as i64, at(now)).expect("issued");
        let roots = certificate.chain.pop().expect("roots");
        signers.push(signer_root(&certificate.chain, &roots, now));
        issued.push((now, certificate.chain, roots));
        let alive = issued.iter().filter(|(begun, ..)| begun + 7 * day > now);
        for (begun, chain, _) in alive.clone() {
            for (other, _, roots) in alive.clone() {
                assert!(accepts(roots, chain, now), "of day {} by day {}", (begun - NOW) / day, (other - NOW) / day);
            }
        }
    }
    let (first, last) = (&signers[0], signers.last().expect("some"));
    assert!(first != last && signers.windows(2).filter(|pair| pair[0] != pair[1]).count() == 1, "one change");
    assert_eq!(ders(&issued[5].2).len(), 1);
    assert_eq!(ders(&issued[7].2).len(), 2, "both roots are handed out");
    let alone = &issued.last().expect("some").2;
    assert!(ders(alone).len() == 1 && *alone != old, "the old one is dropped");
    assert!(!dir.join(NEXT).exists() && open(&dir, NOW + 30 * day).expect("read").roots_pem() == *alone);
}

/// Which of the roots a chain leads to.
fn signer_root(chain: &[String], roots: &str, now: u64) -> CertificateDer<'static> {
    let mut leads = ders(roots).into_iter().filter(|root| accepts(&authority::pem(root), chain, now));
    leads.next().expect("one of them")
}

#[test]
fn a_root_in_the_last_fifth_of_its_life_is_replaced_without_being_told() {
    let authority = CertificateAuthority::in_memory(TrustDomain::default(), at(NOW)).expect("made");
    let day = 24 * 3600;
    let roots = |days: u64| {
        let (_, issued) = authority.issue_with_key(&web(), 0, at(NOW + days * day)).expect("issued");
        ders(issued.chain.last().expect("roots"))
    };
    let first = roots(2_900);
    assert_eq!(first.len(), 1);
    assert_eq!(roots(2_921).len(), 2);
    let last = roots(2_921 + 17);
    assert!(last.len() == 1 && last != first);
}

#[test]
fn a_plugged_in_root_is_somebody_elses_to_replace() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = self_signed(ca_params("root"));
    plug(dir.path(), &root.pem, &root.key, "", &root.pem);
    assert!(why(plugged(dir.path()).expect("usable").rotate_root(at(NOW))).contains("plugged-in"));
}

#[test]
fn c10_no_private_key_is_in_debug_output_or_errors() {
    let state = tempfile::tempdir().expect("a directory");
    let dir = state.path().join("ca");
    let authority = open(&dir, NOW).expect("made");
    let text = fs::read_to_string(dir.join(INTERMEDIATE)).expect("there");
    let secret: Vec<&str> = text.lines().skip(1).take(2).collect();
    let signer = Signer::from_pem(text.as_bytes()).expect("read");
    let mut shown = format!("{authority:?} {authority:#?} {signer:?} {:?}", authority.current.load());
    for (from, to) in [("MI", "XX"), ("-----END PRIVATE", "-----END"), ("\n", ""), ("CERTIFICATE", "NOTHING")] {
        let broken = text.replacen(from, to, 2);
        let error = Signer::from_pem(broken.as_bytes()).map(drop);
        shown.push_str(&format!("{error:?}"));
        fs::write(dir.join(INTERMEDIATE), broken).expect("written");
        shown.push_str(&format!("{:?}", open(&dir, NOW).map(drop)));
    }
    for line in secret {
        assert!(line.len() > 20 && !shown.contains(&line[4..20]), "{shown}");
    }
    assert!(!shown.contains("PRIVATE KEY-----"), "{shown}");
}

#[test]
fn c11_what_others_can_get_at_is_refused_and_the_message_says_what_to_do() {
    let state = tempfile::tempdir().expect("a directory");
    let dir = state.path().join("ca");
    open(&dir, NOW).expect("made");
    let root = dir.join(ROOT);
    for wrong in [0o644, 0o640, 0o660, 0o604] {
        set_mode(&root, wrong);
        let why = why(open(&dir, NOW));
        assert!(why.contains("chmod 600") && why.contains("root.pem") && why.contains(&format!("{wrong:o}")), "{why}");
    }
    set_mode(&root, 0o600);
    for wrong in [0o777, 0o755, 0o710] {
        set_mode(&dir, wrong);
        let why = why(open(&dir, NOW));
        assert!(why.contains("chmod 700"), "{why}");
    }
    set_mode(&dir, 0o700);
    let elsewhere = state.path().join("elsewhere.pem");
    fs::rename(&root, &elsewhere).expect("moved");
    symlink(&elsewhere, &root).expect("linked");
    assert!(why(open(&dir, NOW)).contains("is a link"));
    fs::remove_file(&root).expect("removed");
    fs::rename(&elsewhere, &root).expect("moved");
    let link = state.path().join("link");
    symlink(&dir, &link).expect("linked");
    assert!(why(open(&link, NOW)).contains("link"));
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&root, Some(1), None).expect("root may");
        assert!(why(open(&dir, NOW)).contains("chown 0"));
        std::os::unix::fs::chown(&root, Some(0), None).expect("root may");
    }
    open(&dir, NOW).expect("as it was");
}

#[test]
fn c12_there_is_the_old_file_or_the_new_one_whatever_happens() {
    let state = tempfile::tempdir().expect("a directory");
    let dir = state.path().join("ca");
    let authority = open(&dir, NOW).expect("made");
    // A process that died between any two steps leaves a file with another name, or none.
    for torn in ["", "-----BEGIN PRIVATE KEY-----\nMIG", "nonsense"] {
        fs::write(dir.join("root.pem.0123456789abcdef.new"), torn).expect("written");
        fs::write(dir.join("intermediate.pem.0123456789abcdef.new"), torn).expect("written");
        assert_eq!(open(&dir, NOW).expect("read").roots_pem(), authority.roots_pem());
    }
    let count = || fs::read_dir(&dir).expect("readable").count();
    let before = count();
    let path = dir.join("held");
    files::write(&path, b"old", Present::Keep).expect("written");
    let kept = files::write(&path, b"new", Present::Keep).expect_err("it is there");
    assert_eq!(kept.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&path).expect("there"), b"old");
    files::write(&path, b"new", Present::Replace).expect("written");
    assert_eq!((fs::read(&path).expect("there"), mode(&path)), (b"new".to_vec(), 0o600));
    fs::create_dir(dir.join("taken")).expect("made");
    assert!(files::write(&dir.join("taken"), b"new", Present::Replace).is_err());
    assert_eq!(count(), before + 2, "nothing stays behind");
    // A half file is no reason to make another root.
    fs::write(dir.join(ROOT), "-----BEGIN PRIVATE KEY-----").expect("written");
    assert!(why(open(&dir, NOW)).contains("root.pem"));
}

#[test]
fn c12_of_many_that_begin_at_once_one_makes_the_root() {
    let state = tempfile::tempdir().expect("a directory");
    let dir = state.path().join("ca");
    let roots: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| open(&dir, NOW).expect("made").roots_pem())).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(roots.iter().all(|root| *root == roots[0]));
}

/// A certificate that signs, and its key.
pub(super) struct Ca {
    params: CertificateParams,
    pub(super) key: KeyPair,
    pub(super) pem: String,
}

pub(super) fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(super) fn self_signed(params: CertificateParams) -> Ca {
    let key = KeyPair::generate().expect("a key");
    let pem = params.self_signed(&key).expect("signed").pem();
    Ca { params, key, pem }
}

impl Ca {
    pub(super) fn sign(&self, params: CertificateParams) -> Ca {
        let key = KeyPair::generate().expect("a key");
        let issuer = Issuer::from_params(&self.params, &self.key);
        let pem = params.signed_by(&key, &issuer).expect("signed").pem();
        Ca { params, key, pem }
    }
}

/// Istio's files.
pub(super) fn plug(dir: &Path, cert: &str, key: &KeyPair, chain: &str, root: &str) {
    fs::write(dir.join("ca-cert.pem"), cert).expect("written");
    fs::write(dir.join("ca-key.pem"), key.serialize_pem()).expect("written");
    fs::write(dir.join("cert-chain.pem"), chain).expect("written");
    fs::write(dir.join("root-cert.pem"), root).expect("written");
    set_mode(&dir.join("ca-key.pem"), 0o600);
}

fn plugged(dir: &Path) -> anyhow::Result<CertificateAuthority> {
    CertificateAuthority::plugged_in(dir, None, TrustDomain::default(), at(NOW))
}

#[test]
fn a_plugged_in_authority_signs_whatever_form_its_chain_has() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = self_signed(ca_params("root"));
    let above = root.sign(ca_params("above"));
    let own = above.sign(ca_params("own"));
    let all = [&own.pem, &above.pem, &root.pem];
    for chain in [all[1].clone(), format!("{}{}", all[0], all[1]), all.map(String::as_str).concat()] {
        plug(dir.path(), &own.pem, &own.key, &chain, &root.pem);
        let authority = plugged(dir.path()).expect("usable");
        let (_, issued) = authority.issue_with_key(&web(), 0, at(NOW)).expect("issued");
        assert_eq!(issued.chain.len(), 4);
        assert!(issued.chain[1..].iter().zip(all).all(|(issued, known)| *issued == known.replace('\r', "")));
        let chain: Vec<_> =
            issued.chain.iter().take(3).map(|pem| ::pem::parse(pem).expect("PEM").into_contents()).collect();
        let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
        authority.verify(&chain, at(NOW)).expect("it is of this authority");
    }
    // Istio allows the root itself to sign, and a chain that is empty.
    plug(dir.path(), &root.pem, &root.key, "", &root.pem);
    let (_, issued) = plugged(dir.path()).expect("usable").issue_with_key(&web(), 0, at(NOW)).expect("issued");
    assert_eq!(issued.chain.len(), 2);
    // Several roots: all of them are handed out, together.
    let next = self_signed(ca_params("next root"));
    plug(dir.path(), &own.pem, &own.key, &above.pem, &format!("{}{}", root.pem, next.pem));
    let (_, issued) = plugged(dir.path()).expect("usable").issue_with_key(&web(), 0, at(NOW)).expect("issued");
    assert_eq!(issued.chain.last().map(|last| last.matches("BEGIN CERTIFICATE").count()), Some(2));
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Puts an intermediate of a replica into its directory.
fn give(root: &CertificateAuthority, name: &str, dir: &Path, life: Duration, now: SystemTime) {
    for (file, text) in root.intermediate(name, life, now).expect("made") {
        fs::write(dir.join(file), text.as_bytes()).expect("written");
    }
    set_mode(&dir.join("ca-key.pem"), 0o600);
}

#[test]
fn replicas_with_intermediates_of_one_root_vouch_for_workloads_of_each_other_without_its_key() {
    let [state, first, second] = [(), (), ()].map(|()| tempfile::tempdir().expect("a directory"));
    let root = open(&state.path().join("ca"), NOW).expect("made");
    let replicas = [("r1", &first), ("r2", &second)].map(|(name, dir)| {
        give(&root, name, dir.path(), 90 * DAY, at(NOW));
        assert!(called(dir.path()).expect("a name").is_some_and(|called| is_of_replica(&called, name)));
        plugged(dir.path()).expect("usable")
    });
    let issued = replicas.each_ref().map(|replica| replica.issue_with_key(&web(), 0, at(NOW)).expect("issued").1);
    assert_ne!(issued[0].chain[1], issued[1].chain[1], "each has its own");
    for (of, by) in [(0, 1), (1, 0)] {
        // Leaf and intermediate are sent, and the root alone is known.
        let (roots, shown) = issued[of].chain.split_last().expect("a chain");
        assert_eq!((shown.len(), roots), (2, &root.roots_pem()));
        assert!(
            accepts(&replicas[by].roots_pem(), shown, NOW) && !accepts(&replicas[by].roots_pem(), &shown[..1], NOW)
        );
        let chain = ders(&shown.concat());
        replicas[by].verify(&chain, at(NOW)).expect("it is of the same root");
    }
    let own = ders(&issued[0].chain[1]);
    let below = authority::parsed(&own[0]).expect("a certificate");
    let constraints = below.basic_constraints().expect("read").expect("there").value;
    assert_eq!((constraints.ca, constraints.path_len_constraint), (true, Some(0)));
    let names = [("r1", true), ("r", false), ("r1 1", false), ("r2", false)];
    let name = called(first.path()).expect("a name").expect("there");
    assert!(names.into_iter().all(|(replica, is_own)| is_of_replica(&name, replica) == is_own), "{name}");
    // It does not outlive the root, and is made by whoever has that alone.
    assert!(why(root.intermediate("r1", 3650 * DAY, at(NOW)).map(drop)).contains("before its root"));
    assert!(why(replicas[0].intermediate("r3", DAY, at(NOW)).map(drop)).contains("no root of its own"));
}

#[test]
fn an_intermediate_is_replaced_while_the_server_runs_and_one_that_cannot_be_used_is_told() {
    let [state, dir] = [(), ()].map(|()| tempfile::tempdir().expect("a directory"));
    let root = open(&state.path().join("ca"), NOW).expect("made");
    give(&root, "r1", dir.path(), 90 * DAY, at(NOW));
    let authority = plugged(dir.path()).expect("usable");
    let first = signs_with(&authority, NOW);
    let (_, issued) = authority.issue_with_key(&web(), 7 * 24 * 3600, at(NOW)).expect("issued");
    assert!(!authority.look_for_trust(at(NOW)));
    assert_eq!(authority.fault(at(NOW)), None);
    let late = at(NOW) + 80 * DAY;
    let fault = authority.fault(late).expect("it ends soon");
    assert!(fault.contains("ca-cert.pem") && fault.contains("ends in 10 days"), "{fault}");

    // Its key is there before it is: the one of before goes on.
    let successor = root.intermediate("r1", 90 * DAY, late).expect("made");
    let [(key, text), rest @ ..] = successor;
    fs::write(dir.path().join(key), text.as_bytes()).expect("written");
    for _ in 0..2 {
        assert!(!authority.look_for_trust(late));
        let fault = authority.fault(late).expect("told");
        assert!(fault.contains("ca-key.pem") && fault.contains("not that of"), "{fault}");
    }
    let seconds = since_epoch(late);
    assert_eq!(signs_with(&authority, seconds), first);
    for (file, text) in rest {
        fs::write(dir.path().join(file), text.as_bytes()).expect("written");
    }
    assert!(!authority.look_for_trust(late), "the root is the same, so that no workload has to learn of it");
    assert_eq!(authority.fault(late), None);
    assert_ne!(signs_with(&authority, seconds), first);
    assert_eq!(authority.ends().1, seconds + 90 * 24 * 3600);
    let chain = ders(&issued.chain[..2].concat());
    authority.verify(&chain, at(NOW)).expect("certificates of the one before count");

    // Another root is news to workloads.
    let other = tempfile::tempdir().expect("a directory");
    let other = open(&other.path().join("ca"), NOW).expect("made");
    give(&other, "r1", dir.path(), 90 * DAY, at(NOW));
    assert!(authority.look_for_trust(at(NOW)));
    assert_eq!(authority.roots_pem(), other.roots_pem());
}

#[test]
fn m18_a_new_signer_lets_nobody_in_who_is_revoked() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = self_signed(ca_params("root"));
    let [before, after] = ["before", "after"].map(|name| root.sign(ca_params(name)));
    let hour = NOW + 3600;
    let put = |lists: &[String]| fs::write(dir.path().join("ca-crl.pem"), lists.concat()).expect("written");
    put(&[root.list(&[], hour), before.list(&[], hour)]);
    plug(dir.path(), &before.pem, &before.key, "", &root.pem);
    let authority = plugged(dir.path()).expect("usable");
    let (first, lists) = (signs_with(&authority, NOW), authority.trusted().0.revoked_pem());
    // There is no list of its own: nobody would accept its certificates.
    plug(dir.path(), &after.pem, &after.key, "", &root.pem);
    assert!(!authority.look_for_trust(at(NOW)));
    assert!(authority.fault(at(NOW)).is_some_and(|fault| fault.contains("neither the lists")));
    assert_eq!(authority.revocation(at(NOW)).expect("lists").problem, None, "those in force are right");
    assert_eq!((signs_with(&authority, NOW), authority.trusted().0.revoked_pem()), (first.clone(), lists));
    put(&[root.list(&[], hour), before.list(&[], hour), after.list(&[], hour)]);
    assert!(authority.look_for_trust(at(NOW)), "the lists are others");
    assert_eq!(authority.fault(at(NOW)), None);
    assert_ne!(signs_with(&authority, NOW), first);
    assert_eq!(authority.trusted().0.revoked().len(), 3);
}

impl Ca {
    /// Its list of revoked certificates, in PEM.
    fn list(&self, serials: &[u64], ends: u64) -> String {
        let serials: Vec<_> = serials.iter().map(|serial| SerialNumber::from(*serial)).collect();
        self.list_of(&serials, ends)
    }

    fn list_of(&self, serials: &[SerialNumber], ends: u64) -> String {
        self.list_made(1, NOW - 7200, serials, ends)
    }

    /// The one with this number, made then.
    pub(super) fn list_made(&self, number: u64, made: u64, serials: &[SerialNumber], ends: u64) -> String {
        let time = |seconds: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
        let one = |serial: &SerialNumber| rcgen::RevokedCertParams {
            serial_number: serial.clone(),
            revocation_time: time(NOW),
            reason_code: None,
            invalidity_date: None,
        };
        let params = rcgen::CertificateRevocationListParams {
            this_update: time(made),
            next_update: time(ends),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(one).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let issuer = Issuer::from_params(&self.params, &self.key);
        params.signed_by(&issuer).expect("signed").pem().expect("PEM")
    }
}

#[test]
fn m18_a_plugged_in_authority_hands_out_its_lists_of_revoked_certificates_and_follows_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = self_signed(ca_params("root"));
    let mut params = ca_params("own");
    params.serial_number = Some(SerialNumber::from(5));
    let own = root.sign(params);
    plug(dir.path(), &own.pem, &own.key, "", &root.pem);
    let put = |lists: &[String]| fs::write(dir.path().join("ca-crl.pem"), lists.concat()).expect("written");
    let refused = |lists: &[String]| {
        put(lists);
        format!("{:#}", plugged(dir.path()).expect_err("unusable"))
    };
    let hour = NOW + 3600;
    // What would let nobody in, and what cannot be used, is told at the start.
    for (lists, why) in [
        (vec![root.list(&[], hour)], "UnknownRevocationStatus"),
        (vec![root.list(&[5], hour), own.list(&[], hour)], "Revoked"),
        (vec![root.list(&[], hour), own.list(&[], NOW - 1)], "has expired"),
        (vec!["-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n".to_owned()], "cannot be used"),
        (Vec::new(), "no list of revoked certificates"),
    ] {
        let said = refused(&lists);
        assert!(said.contains("ca-crl.pem") && said.contains(why), "{why}: {said}");
    }
    // Nor does what is no file hold anything up, or count as none.
    let path = dir.path().join("ca-crl.pem");
    fs::remove_file(&path).expect("removed");
    std::os::unix::fs::symlink("nowhere", &path).expect("a link");
    assert!(format!("{:#}", plugged(dir.path()).expect_err("unusable")).contains("a link to nothing"));
    fs::remove_file(&path).expect("removed");
    let fifo = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo");
    assert!(fifo.success() && format!("{:#}", plugged(dir.path()).expect_err("unusable")).contains("no regular file"));
    fs::remove_file(&path).expect("removed");
    let lists = [root.list(&[], hour), own.list(&[], hour)];
    put(&lists);
    let authority = plugged(dir.path()).expect("usable");
    let (_, issued) = authority.issue_with_key(&web(), 0, at(NOW)).expect("issued");
    let bundle = issued.chain.last().expect("the roots");
    assert_eq!((bundle.matches("BEGIN CERTIFICATE").count(), bundle.matches("BEGIN X509 CRL").count()), (1, 2));
    let (chain, name) = (ders(&issued.chain[..2].concat()), authority.roots_name());
    authority.verify(&chain, at(NOW)).expect("it is not revoked");
    assert!(!authority.look_for_revoked(at(NOW)), "it is as it was");
    let mut serial = [0; 16];
    serial.iter_mut().enumerate().for_each(|(at, byte)| {
        *byte = u8::from_str_radix(&issued.serial[2 * at..2 * at + 2], 16).expect("hexadecimal");
    });
    put(&[root.list(&[], hour), own.list_of(&[SerialNumber::from_slice(&serial)], hour)]);
    assert!(authority.look_for_revoked(at(NOW)));
    assert_ne!(authority.roots_name(), name, "workloads learn of it");
    authority.verify(&chain, at(NOW)).expect_err("it is revoked");
    // What cannot be used leaves it so.
    for bad in [vec![own.list(&[], NOW - 1)], vec!["nothing".to_owned()], vec![root.list(&[], hour)]] {
        put(&bad);
        assert!(!authority.look_for_revoked(at(NOW)));
        authority.verify(&chain, at(NOW)).expect_err("it is revoked");
    }
    fs::remove_file(dir.path().join("ca-crl.pem")).expect("removed");
    assert!(!authority.look_for_revoked(at(NOW)));
    authority.verify(&chain, at(NOW)).expect_err("it is revoked");
    put(&lists);
    assert!(authority.look_for_revoked(at(NOW)));
    authority.verify(&chain, at(NOW)).expect("it is not revoked any more");
}

#[test]
fn a_plugged_in_authority_whose_certificates_nobody_would_accept_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, other) = (self_signed(ca_params("root")), self_signed(ca_params("other")));
    let refused = |own: &Ca, key: &KeyPair, chain: &str, root: &str| {
        plug(dir.path(), &own.pem, key, chain, root);
        why(plugged(dir.path()))
    };
    let with = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = ca_params("own");
        change(&mut params);
        root.sign(params)
    };
    let own = with(&|_| {});
    assert!(refused(&own, &other.key, "", &root.pem).contains("private key is not that of"));
    assert!(refused(&own, &own.key, "", &other.pem).contains("does not lead to a root"));
    assert!(refused(&own, &own.key, "", "").contains("no certificate"));
    let below = own.sign(ca_params("below"));
    assert!(refused(&below, &below.key, "", &root.pem).contains("is the chain complete?"));
    let leaf = with(&|params| params.is_ca = IsCa::ExplicitNoCa);
    assert!(refused(&leaf, &leaf.key, "", &root.pem).contains("CA:TRUE"));
    let no_usage = with(&|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    assert!(refused(&no_usage, &no_usage.key, "", &root.pem).contains("key usage"));
    let ended = with(&|params| params.not_after = rcgen::date_time_ymd(2026, 11, 27));
    assert!(refused(&ended, &ended.key, "", &root.pem).contains("expired"));
    let future = with(&|params| params.not_before = rcgen::date_time_ymd(2026, 12, 24));
    assert!(refused(&future, &future.key, "", &root.pem).contains("not valid yet"));
    let narrow = with(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let below = narrow.sign(ca_params("below"));
    assert!(refused(&below, &below.key, &narrow.pem, &root.pem).contains("path length"));
    let foreign = with(&|params| {
        params.subject_alt_names = vec![SanType::URI("spiffe://other.example".try_into().expect("ASCII"))];
    });
    assert!(refused(&foreign, &foreign.key, "", &root.pem).contains("trust domain"));
    plug(dir.path(), &own.pem, &own.key, "", &root.pem);
    plugged(dir.path()).expect("the rest of it is right");
    for file in ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"] {
        plug(dir.path(), &own.pem, &own.key, "", &root.pem);
        fs::remove_file(dir.path().join(file)).expect("removed");
        assert!(why(plugged(dir.path())).contains(file), "{file}");
    }
}

#[test]
fn c11_the_key_of_a_plugged_in_authority_is_held_to_the_same_rules() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = self_signed(ca_params("root"));
    plug(dir.path(), &root.pem, &root.key, "", &root.pem);
    set_mode(&dir.path().join("ca-key.pem"), 0o644);
    let why = why(plugged(dir.path()));
    assert!(why.contains("chmod 600") && why.contains("ca-key.pem"), "{why}");
}

#[test]
fn m14_name_constraints_on_uris_are_refused_at_load_with_the_reason() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = self_signed(ca_params("root"));
    // permittedSubtrees { uniformResourceIdentifier "cluster.local" }
    let name = b"cluster.local";
    let subtree = authority::tests::tlv(0x30, &[&authority::tests::tlv(0x86, &[name])]);
    let constraints = authority::tests::tlv(0x30, &[&authority::tests::tlv(0xa0, &[&subtree])]);
    let mut params = ca_params("own");
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], constraints);
    extension.set_criticality(true);
    params.custom_extensions = vec![extension];
    let own = root.sign(params);
    plug(dir.path(), &own.pem, &own.key, "", &root.pem);
    let why = why(plugged(dir.path()));
    assert!(why.contains("name constraints on URIs"), "{why}");
}
