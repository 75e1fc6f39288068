//! The command as people run it: a process with arguments, output, signals and an exit code.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use mesh_control::catalog::Kind;
use tonic::transport::Channel;

use crate::support::{Delta, PATIENCE, node};

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
";

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
    command.args(arguments).env("RUST_LOG", "warn");
    command
}

pub(crate) fn output(arguments: &[&str]) -> Output {
    command(arguments).output().expect("it runs")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running server; killed if a test forgets it.
pub(crate) struct Control {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Control {
    pub(crate) fn start(dir: &Path, more: &[&str]) -> Control {
        let dir = dir.to_str().expect("a plain path");
        let free = "127.0.0.1:0";
        let arguments = ["serve", "--config", dir, "--xds-addr", free, "--status-addr", free];
        let mut child = command(&[&arguments, more].concat()).stdout(Stdio::piped()).spawn().expect("it runs");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Control { child, stdout }
    }

    pub(crate) fn address(&mut self, what: &str) -> SocketAddr {
        let line = self.line();
        let address = line.strip_prefix(what).unwrap_or_else(|| panic!("{what:?} expected, {line:?} read"));
        address.trim().parse().expect("an address")
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        line
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs").success());
    }

    /// Its resident memory in bytes; 0 where the system does not say.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        kib.unwrap_or_default() << 10
    }

    #[expect(clippy::disallowed_methods, reason = "no task is held up: the test has no runtime")]
    fn exit_code(&mut self) -> Option<i32> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not end");
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_prints_its_addresses_serves_reports_and_stops_on_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("shop.yaml"), SHOP).unwrap();
    let mut control = Control::start(dir.path(), &[]);
    let xds = control.address("xds listening on ");
    assert!(control.line().starts_with("secured xds not listening"));
    let status = control.address("status listening on ").to_string();

    let channel = Channel::from_shared(format!("http://{xds}")).unwrap().connect().await.unwrap();
    let mut client = Delta::open(channel, node("mesh-core")).await.unwrap();
    let cluster = "outbound|9080||reviews.shop.svc.cluster.local";
    client.send(Kind::Cluster, &[cluster], &[]).await;
    let response = client.next().await;
    assert_eq!(response.resources[0].name, cluster);
    client.answer(&response, Some("I do not like it")).await;

    let start = Instant::now();
    let table = loop {
        let out = output(&["status", "--addr", &status]);
        let table = text(&out.stdout);
        if table.contains("I do not like it") {
            break table;
        }
        assert!(start.elapsed() < PATIENCE, "{table} {}", text(&out.stderr));
    };
    assert!(table.starts_with("mesh-control ") && table.contains("1 service, 1 client,"), "{table}");
    let json = output(&["status", "--addr", &status, "--json"]);
    assert!(serde_json::from_slice::<serde_json::Value>(&json.stdout).is_ok());

    control.signal("TERM");
    let end = tokio::time::timeout(PATIENCE, client.responses.message()).await.unwrap();
    assert!(matches!(end, Ok(None)), "the stream ended well: {end:?}");
    drop(client);
    assert_eq!(control.exit_code(), Some(0));
    assert_eq!(output(&["status", "--addr", &status]).status.code(), Some(1), "nobody is there any more");
}

#[test]
fn plaintext_on_an_address_that_others_reach_is_refused_unless_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let refused = output(&["serve", "--config", dir, "--xds-addr", "0.0.0.0:0"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("--insecure-allow-remote"), "{}", text(&refused.stderr));
    let mut control = Control::start(Path::new(dir), &["--insecure-allow-remote"]);
    assert!(control.line().starts_with("xds listening on "));
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    let out = output(&["serve", "--config", "no/such/directory"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("no/such/directory"));
}

#[test]
fn validate_says_what_is_wrong_and_where_and_exits_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shop.yaml");
    std::fs::write(&path, SHOP).unwrap();
    let out = output(&["validate", dir.path().to_str().unwrap()]);
    assert_eq!((out.status.code(), text(&out.stdout).trim()), (Some(0), "1 object: 0 errors, 0 warnings"));

    std::fs::write(&path, SHOP.replace("port: 9080", "port: ninety")).unwrap();
    let out = output(&["validate", path.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stdout).contains("ninety"), "{}", text(&out.stdout));
    let out = output(&["validate", "--json", path.to_str().unwrap()]);
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((report["errors"].as_u64(), report["diagnostics"][0]["line"].as_u64()), (Some(1), Some(5)));
    assert_eq!(output(&["validate", "no/such/file.yaml"]).status.code(), Some(1));
}

#[test]
fn whoever_has_read_enough_may_close_the_pipe() {
    for arguments in [&["bootstrap"] as &[&str], &["validate", env!("CARGO_MANIFEST_DIR")]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
        let mut child = command.args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn bootstrap_writes_what_it_would_print() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bootstrap.json");
    let printed = output(&["bootstrap", "--name", "web", "--namespace", "shop"]);
    let written = output(&["bootstrap", "--name", "web", "--namespace", "shop", "--out", path.to_str().unwrap()]);
    assert!(printed.status.success() && written.status.success() && written.stdout.is_empty());
    assert_eq!(std::fs::read(path).unwrap(), printed.stdout);
}
