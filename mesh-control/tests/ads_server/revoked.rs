//! Lists of revoked certificates that are not in force, as operators see it, and across a restart.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tonic::Code;

use crate::certificates::{NAMES, WEB, create, files, request, secured};
use crate::certificates_process::{Logged, plug_in};
use crate::process::{output, page, text};
use crate::secured::Authority;
use crate::support::until;

/// A plugged-in authority with lists, and where the server has its things.
struct Place {
    config: tempfile::TempDir,
    state: tempfile::TempDir,
    ca: tempfile::TempDir,
    root: Authority,
    signer: Authority,
    /// Who vouches for the server where it is asked over TLS, and where that is.
    operator: Authority,
    secure: String,
    files: [String; 2],
}

impl Place {
    fn new() -> Place {
        let root = Authority::signing();
        let signer = root.intermediate();
        let [config, state, ca] = [(), (), ()].map(|()| tempfile::tempdir().unwrap());
        plug_in(ca.path(), &signer, &[&root]);
        let operator = Authority::new();
        let files = files(ca.path(), &operator);
        let files = [files.cert, files.key].map(|file| path(&file).to_owned());
        // It is the same after a restart.
        let secure = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let place = Place { config, state, ca, root, signer, operator, secure, files };
        place.revoke(&[]);
        place
    }

    fn revoke(&self, serials: &[rcgen::SerialNumber]) {
        self.put(&(self.root.revoked(&[]) + &self.signer.revoked(serials)));
    }

    fn put(&self, text: &str) {
        let (list, new) = (self.list(), self.ca.path().join("new"));
        fs::write(&new, text).unwrap();
        fs::rename(&new, &list).unwrap();
    }

    fn list(&self) -> std::path::PathBuf {
        self.ca.path().join("ca-crl.pem")
    }

    fn more(&self) -> Vec<&str> {
        let [ca, state] = [self.ca.path(), self.state.path()].map(path);
        let [cert, key] = &self.files;
        let own = ["--ca-dir", ca, "--state-dir", state, "--settle", "0"];
        [&own[..], &["--secure-addr", &self.secure, "--tls-cert", cert, "--tls-key", key]].concat()
    }

    fn start(&self) -> Logged {
        Logged::start(self.config.path(), &self.more())
    }

    /// What a start says that comes to nothing.
    fn refused(&self) -> String {
        let refused = output(&[&["serve", "--config", path(self.config.path())], &self.more()[..]].concat());
        assert_eq!(refused.status.code(), Some(1));
        text(&refused.stderr)
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn m18_lists_that_are_not_in_force_are_told_by_ready_status_and_metrics() {
    let place = Place::new();
    let control = place.start();
    let has = |wanted: &str| page(control.status, "/metrics").contains(&format!("\n{wanted}"));
    assert!(has("mesh_ca_crl_lists 2\n") && has("mesh_ca_crl_wrong 0\n") && has("mesh_ca_crl_expiry_timestamp 1"));
    let ready = || page(control.status, "/ready");
    assert!(ready().contains("200 OK") && !ready().contains("revoked"), "{}", ready());

    let other = Authority::signing();
    for (text, why) in [
        (Some("no list".to_owned()), "there is no list"),
        (Some(other.revoked(&[])), "UnknownRevocationStatus"),
        (None, "no such file"),
    ] {
        match text {
            Some(text) => place.put(&text),
            None => fs::remove_file(place.list()).unwrap(),
        }
        until("it is told", || ready().contains(why)).await;
        let ready = ready();
        // Whoever was revoked stays so: nothing is served that would be wrong.
        assert!(ready.contains("200 OK") && ready.contains("revoked certificates: ") && ready.contains("ca-crl.pem"));
        assert!(has("mesh_ca_crl_lists 2\n") && has("mesh_ca_crl_wrong 1\n"));
        let shown = crate::process::text(&output(&["status", "--addr", &control.status.to_string()]).stdout);
        assert!(shown.contains("AUTHORITY") && shown.contains("2 lists") && shown.contains(why), "{shown}");
        let told = output(&["status", "--addr", &control.status.to_string(), "-o", "json"]);
        let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
        assert!(told["authority"]["revoked"]["problem"].as_str().unwrap().contains(why), "{told}");
        assert_eq!(told["authority"]["revoked"]["lists"], 2);
        assert!(told["authority"]["root_expires"].as_u64() > Some(0), "{told}");
    }
    place.revoke(&[]);
    until("it is good again", || has("mesh_ca_crl_wrong 0\n") && !ready().contains("revoked")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn m18_who_was_revoked_stays_so_after_a_restart_without_the_lists() {
    let place = Place::new();
    let out = place.ca.path().join("web");
    let made = output(&["ca", "issue", "--identity", WEB, "--out", path(&out), "--ca-dir", path(place.ca.path())]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let said = text(&made.stdout);
    let serial = said.split("serial ").nth(1).unwrap().split(':').next().unwrap();
    let serial: Vec<u8> =
        (0..serial.len() / 2).map(|at| u8::from_str_radix(&serial[2 * at..2 * at + 2], 16).unwrap()).collect();
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    let (key, chain) = (read("key.pem"), read("cert-chain.pem"));
    let chain: Vec<String> = chain.split_inclusive("-----END CERTIFICATE-----\n").map(str::to_owned).collect();
    let (address, operator) = (place.secure.parse().unwrap(), [place.operator.0.der().clone()]);
    let renew = async || match secured(address, &operator, Some((&key, &chain))).await {
        Ok(channel) => create(channel, request(&NAMES), None).await.map(drop).map_err(|status| status.code()),
        Err(_) => Err(Code::Unauthenticated),
    };

    let control = place.start();
    assert_eq!(renew().await, Ok(()));
    place.revoke(&[rcgen::SerialNumber::from_slice(&serial)]);
    let refused = async { while renew().await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), refused).await.expect("it is revoked");
    let kept = place.state.path().join("last-good-crl.pem");
    until("the lists are kept", || fs::read_to_string(&kept).is_ok_and(|kept| kept.len() > 100)).await;
    drop(control);

    fs::remove_file(place.list()).unwrap();
    let control = place.start();
    renew().await.expect_err("it was revoked");
    let ready = page(control.status, "/ready");
    assert!(ready.contains("ca-crl.pem: there is no such file, and there was one"), "{ready}");
    assert!(page(control.status, "/metrics").contains("\nmesh_ca_crl_wrong 1\n"));
    assert!(control.log().contains("revoked certificates are those of before the start"));

    // Nor does one that cannot be used.
    place.put("nothing");
    let control = place.start();
    renew().await.expect_err("it was revoked");

    drop(control);

    // Of another authority, nobody knows whom it has revoked: somebody has to say.
    fs::remove_file(place.list()).unwrap();
    let other = Authority::signing();
    plug_in(place.ca.path(), &other.intermediate(), &[&other]);
    let why = place.refused();
    assert!(why.contains("ca-crl.pem") && why.contains("last-good-crl.pem") && why.contains("remove"), "{why}");
    fs::remove_file(kept).unwrap();
    drop(place.start());
}

#[test]
fn validate_looks_at_a_plugged_in_authority_as_serve_does_and_tells_all_that_is_wrong() {
    let place = Place::new();
    let validate = |more: &[&str]| {
        let told = output(&[&["validate", "--ca-dir", path(place.ca.path())], more].concat());
        (told.status.code(), text(&told.stdout))
    };
    let (code, said) = validate(&["--deny-warnings"]);
    assert_eq!(code, Some(0), "{said}");

    place.put("no list");
    fs::write(place.ca.path().join("cert-chain.pem"), Authority::new().0.pem()).unwrap();
    fs::write(place.ca.path().join("root-cert.pem"), "").unwrap();
    fs::set_permissions(place.ca.path().join("ca-key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    let (code, said) = validate(&[]);
    assert_eq!(code, Some(1));
    let served = place.refused();
    for (file, why) in
        [("ca-key.pem", "chmod 600"), ("cert-chain.pem", "key usage"), ("root-cert.pem", "no certificate")]
    {
        assert!(said.contains(file) && said.contains(why), "{file}: {said}");
        assert!(served.contains(file) && served.contains(why), "{file}: {served}");
    }
    assert!(said.contains("ca-crl.pem") && said.contains("no list of revoked"), "{said}");

    // Of another trust domain, and with another key.
    plug_in(place.ca.path(), &place.signer, &[&place.root]);
    place.revoke(&[]);
    fs::write(place.ca.path().join("ca-key.pem"), place.root.0.key().serialize_pem()).unwrap();
    let (code, said) = validate(&["--trust-domain", "example.org"]);
    assert!(code == Some(1) && said.contains("ca-key.pem") && said.contains("private key is not that of"), "{said}");
}
