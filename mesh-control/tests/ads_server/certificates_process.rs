//! The command and its certificate authority, as people run them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tonic::Code;

use crate::certificates::{NAMES, WEB, create, owner, plain, request};
use crate::process::{output, text};
use crate::secured::Authority;

/// A server whose log can be read.
pub(crate) struct Logged {
    child: Child,
    /// A pipe that nobody reads would hold it up.
    log: tempfile::NamedTempFile,
    pub(crate) xds: SocketAddr,
    pub(crate) status: SocketAddr,
    /// Where its bundle is, if anywhere.
    pub(crate) bundle: Option<SocketAddr>,
}

impl Logged {
    pub(crate) fn start(config: &Path, more: &[&str]) -> Logged {
        Logged::at("127.0.0.1:0", config, more)
    }

    pub(crate) fn at(xds: &str, config: &Path, more: &[&str]) -> Logged {
        Logged::saying("info", xds, config, more)
    }

    pub(crate) fn saying(level: &str, xds: &str, config: &Path, more: &[&str]) -> Logged {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
        command.args(["serve", "--config", config.to_str().unwrap(), "--log-format", "json"]);
        command.args(["--xds-addr", xds, "--status-addr", "127.0.0.1:0"]).args(more);
        let log = tempfile::NamedTempFile::new().unwrap();
        let stderr = log.reopen().unwrap();
        let mut child = command.env("RUST_LOG", level).stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut bundle = None;
        let mut address = |name: &str| loop {
            let mut line = String::new();
            assert!(stdout.read_line(&mut line).unwrap() > 0, "it has ended before it was listening: {name}");
            let is_bundle = line.strip_prefix("bundle listening on ");
            bundle = bundle.or(is_bundle.map(|address| address.trim().parse().unwrap()));
            if let Some(address) = line.trim().strip_prefix(&format!("{name} listening on ")) {
                return address.parse().unwrap();
            }
        };
        let (xds, status) = (address("xds"), address("status"));
        Logged { child, log, xds, status, bundle }
    }

    /// Ends it, and reads what it logged.
    pub(crate) fn log(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        fs::read_to_string(self.log.path()).unwrap()
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of the audit log in a log.
pub(crate) fn audit(log: &str) -> Vec<serde_json::Value> {
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter(|line| line["target"] == "mesh_control::audit").collect()
}

/// An authority in Istio's layout.
pub(crate) fn plugged_in() -> tempfile::TempDir {
    let (ca, root) = (tempfile::tempdir().unwrap(), Authority::signing());
    plug_in(ca.path(), &root.intermediate(), &[&root]);
    ca
}

/// Puts an authority in the place of the one before it, with the roots that are handed out.
pub(crate) fn plug_in(ca: &Path, signer: &Authority, roots: &[&Authority]) {
    let key = ca.join("ca-key.pem");
    for (name, text) in [
        ("ca-cert.pem", signer.0.pem()),
        ("cert-chain.pem", String::new()),
        ("root-cert.pem", roots.iter().map(|root| root.0.pem()).collect()),
        ("ca-key.pem", signer.0.key().serialize_pem()),
    ] {
        fs::write(ca.join(name), text).unwrap();
    }
    fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
}

fn path(dir: &tempfile::TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_owned()
}

fn root_of(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_dev_issues_says_so_loudly_and_notes_who_got_what_and_who_did_not() {
    let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let more = ["--dev", "--trust-domain", "example.org", "--state-dir", state.path().to_str().unwrap()];
    let server = Logged::start(config.path(), &more);
    let channel = plain(server.xds).await;
    let chain = create(channel.clone(), request(&NAMES), None).await.unwrap();
    assert_eq!(owner(&chain[0]), "spiffe://example.org/ns/shop/sa/web");
    let denied = create(channel, request(&NAMES), Some("Bearer no-such-token")).await.unwrap_err();
    assert_eq!(denied.code(), Code::Unauthenticated);
    let log = server.log();
    assert!(log.contains("DEVELOPMENT MODE"), "{log}");
    let audit = audit(&log);
    let [issued, denied] = &audit[..] else { panic!("{log}") };
    let fields = &issued["fields"];
    assert_eq!(fields["message"], "certificate issued");
    assert_eq!((&fields["identity"], &fields["method"]), (&owner(&chain[0]).into(), &"development".into()));
    assert_eq!((&fields["peer"], fields["ttl"].as_u64()), (&"127.0.0.1".into(), Some(24 * 3600)));
    assert_eq!(fields["serial"].as_str().map(str::len), Some(32));
    assert_eq!((&denied["level"], &denied["fields"]["message"]), (&"WARN".into(), &"certificate denied".into()));
    assert!(!log.contains("no-such-token") && !log.contains("PRIVATE KEY"), "c10: {log}");
    for file in ["ca/root.pem", "ca/intermediate.pem"] {
        let text = fs::read_to_string(state.path().join(file)).unwrap();
        let secret = text.lines().nth(1).unwrap();
        assert!(!log.contains(&secret[8..40]), "c10: {log}");
    }
}

#[test]
fn serve_dev_says_that_its_authority_ends_with_it_unless_it_has_a_place() {
    let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let kept = ["--dev", "--state-dir", state.path().to_str().unwrap()];
    for (more, is_told) in [(&["--dev"][..], true), (&kept, false)] {
        let log = Logged::start(config.path(), more).log();
        assert_eq!(log.contains("this authority ends with this process"), is_told, "{log}");
    }
}

#[test]
fn serve_dev_listens_on_loopback_alone() {
    let config = tempfile::tempdir().unwrap();
    let config = config.path().to_str().unwrap();
    for (option, more) in [
        ("--xds-addr", &["--xds-addr", "0.0.0.0:0"][..]),
        ("--status-addr", &["--status-addr", "0.0.0.0:0"]),
        ("--secure-addr", &["--secure-addr", "0.0.0.0:0", "--tls-cert", "c", "--tls-key", "k"]),
        ("--insecure-allow-remote", &["--xds-addr", "0.0.0.0:0", "--insecure-allow-remote"]),
    ] {
        let out = output(&[&["serve", "--config", config, "--dev"], more].concat());
        assert!(!out.status.success());
        assert!(text(&out.stderr).contains(option), "{}", text(&out.stderr));
    }
}

#[test]
fn c11_serve_does_not_start_with_keys_that_others_can_read() {
    let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state_dir = state.path().to_str().unwrap();
    Logged::start(config.path(), &["--dev", "--state-dir", state_dir]).log();
    let root = state.path().join("ca/root.pem");
    fs::set_permissions(&root, fs::Permissions::from_mode(0o644)).unwrap();
    let out = output(&["serve", "--config", config.path().to_str().unwrap(), "--state-dir", state_dir]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("chmod 600"), "{}", text(&out.stderr));
}

#[test]
fn c10_a_server_that_has_keys_leaves_no_core_behind() {
    let (config, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let operator = Authority::new();
    let tls = crate::certificates::files(place.path(), &operator);
    // A crash of a process that may leave as much as it likes. Whether one was left is what the system says.
    let leaves_core = |script: &str| {
        let script = format!("ulimit -c unlimited 2>/dev/null; {script}");
        let mut crashing = Command::new("sh");
        let crashing =
            crashing.args(["-c", &script]).current_dir(place.path()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = crashing.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let killed = Command::new("kill").args(["-ABRT", &child.id().to_string()]).status().unwrap();
        assert!(killed.success() && !line.is_empty(), "it has not begun");
        child.wait().unwrap().core_dumped()
    };
    if !leaves_core("echo begun; while :; do sleep 1; done") {
        println!("nobody leaves any here");
        return;
    }
    let serve = format!(
        "exec {} serve --config {} --xds-addr 127.0.0.1:0 --secure-addr 127.0.0.1:0 --status-addr none",
        env!("CARGO_BIN_EXE_mesh-control"),
        config.path().display()
    );
    for keys in [
        "--dev".to_owned(),
        format!("--state-dir {}", place.path().join("state").display()),
        format!("--tls-cert {} --tls-key {}", tls.cert.display(), tls.key.display()),
    ] {
        assert!(!leaves_core(&format!("{serve} {keys}")), "{keys}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ca_issue_writes_what_foreign_programs_need_and_the_server_vouches_for_it() {
    let (config, state, out) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state_dir = state.path().to_str().unwrap();
    let issue =
        |more: &[&str]| output(&[&["ca", "issue", "--identity", WEB, "--out", &path(&out, "web")], more].concat());
    let made = issue(&["--state-dir", state_dir, "--ttl", "600"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let read = |name: &str| fs::read_to_string(out.path().join("web").join(name)).unwrap();
    assert!(read("key.pem").contains("PRIVATE KEY") && !text(&made.stdout).contains("PRIVATE KEY"));
    let mode = |name: &str| fs::metadata(out.path().join("web").join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("key.pem"), 0o600);
    assert_eq!((owner(&read("cert-chain.pem")), read("cert-chain.pem").matches("BEGIN").count()), (WEB.to_owned(), 2));
    assert_eq!(read("root-cert.pem").matches("BEGIN CERTIFICATE").count(), 1);
    // openssl believes it.
    let verified = Command::new("openssl")
        .args(["verify", "-CAfile", &path(&out, "web/root-cert.pem"), "-untrusted", &path(&out, "web/cert-chain.pem")])
        .arg(path(&out, "web/cert-chain.pem"))
        .output();
    if let Ok(verified) = verified {
        assert!(verified.status.success(), "{}", text(&verified.stderr));
    }

    // A server with the same state directory has the same authority.
    let server = Logged::start(config.path(), &["--state-dir", state_dir, "--dev"]);
    let chain = create(plain(server.xds).await, request(&NAMES), None).await.unwrap();
    assert_eq!(root_of(chain.last().unwrap()), root_of(&read("root-cert.pem")));
    drop(server.log());

    // Nobody gets the key of another identity back.
    let kept = read("key.pem");
    let other = |more: &[&str]| {
        let identity = WEB.replace("/web", "/other");
        let to = path(&out, "web");
        output(&[&["ca", "issue", "--identity", &identity, "--out", &to, "--state-dir", state_dir], more].concat())
    };
    let refused = other(&[]);
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.contains(WEB) && said.contains("--force"), "{said}");
    assert_eq!((read("key.pem"), owner(&read("cert-chain.pem"))), (kept.clone(), WEB.to_owned()));
    assert!(issue(&["--state-dir", state_dir]).status.success(), "a new one of the same identity");
    assert_ne!(read("key.pem"), kept);
    fs::remove_file(out.path().join("web/cert-chain.pem")).unwrap();
    assert!(!issue(&["--state-dir", state_dir]).status.success(), "a key of nobody knows whom");
    assert!(other(&["--force"]).status.success());
    assert_eq!(owner(&read("cert-chain.pem")), WEB.replace("/web", "/other"));
    assert!(issue(&["--state-dir", state_dir, "--force"]).status.success());

    let refused = issue(&[]);
    assert_eq!(refused.status.code(), Some(2), "it has to be said which authority");
    let refused = issue(&["--state-dir", state_dir, "--ttl", "99999999"]);
    assert!(text(&refused.stderr).contains("at most"), "{}", text(&refused.stderr));
    let other = "spiffe://other.example/ns/shop/sa/web";
    let refused = output(&["ca", "issue", "--identity", other, "--out", &path(&out, "x"), "--state-dir", state_dir]);
    assert!(text(&refused.stderr).contains("trust domain"), "{}", text(&refused.stderr));
    let refused = output(&["ca", "issue", "--identity", "spiffe://td", "--out", "x", "--state-dir", state_dir]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn ca_rotate_root_prints_both_roots_and_keeps_the_old_one_signing() {
    let (state, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state_dir = state.path().to_str().unwrap();
    let issue = || {
        let made = output(&["ca", "issue", "--identity", WEB, "--out", &path(&out, "web"), "--state-dir", state_dir]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        fs::read_to_string(out.path().join("web/root-cert.pem")).unwrap()
    };
    let old = issue();
    let rotated = output(&["ca", "rotate-root", "--state-dir", state_dir]);
    assert!(rotated.status.success(), "{}", text(&rotated.stderr));
    let both = text(&rotated.stdout);
    assert!(both.starts_with(&old) && both.matches("BEGIN CERTIFICATE").count() == 2, "{both}");
    let again = output(&["ca", "rotate-root", "--state-dir", state_dir]);
    assert_eq!(text(&again.stdout), both, "there is one rotation at a time");
    assert_eq!(issue(), both);
}

#[test]
fn serve_and_ca_issue_sign_with_a_plugged_in_authority() {
    let (ca, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let authority = crate::secured::Authority::signing();
    for (name, text) in [
        ("ca-cert.pem", authority.0.pem()),
        ("cert-chain.pem", String::new()),
        ("root-cert.pem", authority.0.pem()),
        ("ca-key.pem", authority.0.key().serialize_pem()),
    ] {
        fs::write(ca.path().join(name), text).unwrap();
    }
    let ca_dir = ca.path().to_str().unwrap();
    let issue = || output(&["ca", "issue", "--identity", WEB, "--out", &path(&out, "web"), "--ca-dir", ca_dir]);
    let refused = issue();
    assert!(text(&refused.stderr).contains("chmod 600"), "{}", text(&refused.stderr));
    fs::set_permissions(ca.path().join("ca-key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    let made = issue();
    assert!(made.status.success(), "{}", text(&made.stderr));
    let roots = fs::read_to_string(out.path().join("web/root-cert.pem")).unwrap();
    assert_eq!(root_of(&roots), *authority.0.der());

    let config = tempfile::tempdir().unwrap();
    Logged::start(config.path(), &["--ca-dir", ca_dir]).log();
    fs::write(ca.path().join("root-cert.pem"), crate::secured::Authority::signing().0.pem()).unwrap();
    let refused = output(&["serve", "--config", config.path().to_str().unwrap(), "--ca-dir", ca_dir]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("does not lead to a root"), "{}", text(&refused.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_the_command_is_taken_by_the_server_once_and_stands_in_no_log() {
    let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state_dir = state.path().to_str().unwrap();
    let server = Logged::start(config.path(), &["--state-dir", state_dir]);
    let channel = plain(server.xds).await;
    let made = output(&["token", "create", "--identity", WEB, "--state-dir", state_dir]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let token = text(&made.stdout).trim().to_owned();
    let file = path(&state, "bootstrap.json");
    let made = output(&["bootstrap", "--token", &token, "--out", &file]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let bootstrap: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let provider = &bootstrap["certificate_providers"]["default"];
    assert_eq!(provider["plugin_name"], "mesh_ca");
    let bearer = format!("Bearer {}", provider["config"]["token"].as_str().unwrap());
    assert_eq!(owner(&create(channel.clone(), request(&NAMES), Some(&bearer)).await.unwrap()[0]), WEB);
    let again = create(channel.clone(), request(&NAMES), Some(&bearer)).await.unwrap_err();
    assert_eq!(again.code(), Code::Unauthenticated);
    assert_eq!(create(channel, request(&NAMES), None).await.unwrap_err().code(), Code::Unauthenticated);
    let log = server.log();
    assert!(!log.contains(&token) && log.contains("\"method\":\"token\""), "{log}");
    let refused = output(&["token", "create", "--identity", WEB, "--state-dir", state_dir, "--ttl", "99999999"]);
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn a_token_that_nobody_would_take_is_not_made() {
    let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state_dir = state.path().to_str().unwrap();
    let make = |identity: &str, state: &str| output(&["token", "create", "--identity", identity, "--state-dir", state]);
    let missing = state.path().join("none");
    let refused = make(WEB, missing.to_str().unwrap());
    assert!(!refused.status.success() && text(&refused.stderr).contains("no state directory"), "{refused:?}");
    assert!(!missing.exists());
    for nobody in ["spiffe://cluster.local/web", "spiffe://cluster.local/ns/shop"] {
        let refused = make(nobody, state_dir);
        assert!(
            !refused.status.success() && text(&refused.stderr).contains("/ns/NAMESPACE/sa/"),
            "{nobody}: {refused:?}"
        );
    }
    let early = make(WEB, state_dir);
    assert!(early.status.success() && text(&early.stderr).contains("no server has used"), "{early:?}");
    let more = ["--trust-domain", "example.org", "--state-dir", state_dir];
    drop(Logged::start(config.path(), &more));
    let refused = make(WEB, state_dir);
    assert!(!refused.status.success() && text(&refused.stderr).contains("example.org"), "{refused:?}");
    assert_eq!(text(&refused.stdout), "");
    let made = make("spiffe://example.org/ns/shop/sa/web", state_dir);
    assert!(made.status.success() && text(&made.stderr).is_empty(), "{made:?}");
    // A bootstrap takes it from the environment, too.
    let token = text(&made.stdout).trim().to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
    let printed = command.arg("bootstrap").env("MESH_CONTROL_TOKEN", &token).output().unwrap();
    assert!(text(&printed.stdout).contains(&token), "{printed:?}");
}

#[test]
fn whoever_allows_keys_in_plaintext_is_not_told_that_they_are_refused() {
    let config = tempfile::tempdir().unwrap();
    let yaml = "apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: shop}
spec: {jwtRules: [{issuer: idp, jwksUri: 'http://127.0.0.1:1/keys'}]}
";
    fs::write(config.path().join("jwt.yaml"), yaml).unwrap();
    for (more, expected) in [(&[][..], true), (&["--jwks-allow-insecure"], false)] {
        let log = Logged::start(config.path(), more).log();
        assert_eq!(log.contains("keys are fetched over https:// only"), expected, "{log}");
    }
}
