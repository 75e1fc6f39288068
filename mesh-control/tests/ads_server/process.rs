//! The command as people run it: a process with arguments, output, signals and an exit code.

use std::io::{BufRead, BufReader, Read as _, Write as _};
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

/// A service `gone.example.com` whose only endpoint refuses connections.
pub(crate) fn gone() -> tempfile::TempDir {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let yaml = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: gone, namespace: shop}}\nspec:\n  \
         hosts: [gone.example.com]\n  resolution: STATIC\n  ports: [{{number: 80, name: http, protocol: HTTP}}]\n  \
         endpoints: [{{address: {}, ports: {{http: {}}}}}]\n",
        gone.ip(),
        gone.port()
    );
    std::fs::write(dir.path().join("gone.yaml"), yaml).unwrap();
    dir
}

pub(crate) fn command(arguments: &[&str]) -> Command {
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
    /// A server of a folder, and where it listens: xDS, and the status port.
    pub(crate) fn listening(config: &Path) -> (Control, SocketAddr, String) {
        let mut control = Control::start(config, &[]);
        let xds = control.address("xds listening on ");
        assert!(control.line().starts_with("secured xds not listening"));
        let status = control.address("status listening on ").to_string();
        (control, xds, status)
    }

    pub(crate) fn start(dir: &Path, more: &[&str]) -> Control {
        let dir = dir.to_str().expect("a plain path");
        let free = "127.0.0.1:0";
        let arguments = ["serve", "--config", dir, "--xds-addr", free, "--status-addr", free];
        let mut child = command(&[&arguments, more].concat()).stdout(Stdio::piped()).spawn().expect("it runs");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Control { child, stdout }
    }

    /// Why it does not start.
    pub(crate) fn refused(dir: &Path, more: &[&str]) -> String {
        let free = "127.0.0.1:0";
        let dir = dir.to_str().expect("a plain path");
        let arguments = ["serve", "--config", dir, "--xds-addr", free, "--status-addr", free];
        let mut command = command(&[&arguments, more].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        let mut stderr = child.stderr.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        // Killed if it starts all the same.
        let mut control = Control { child, stdout };
        assert_eq!(control.line(), "", "it starts");
        assert_eq!(control.exit_code(), Some(1));
        let mut why = String::new();
        stderr.read_to_string(&mut why).expect("text");
        why
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

    pub(crate) fn signal(&self, name: &str) {
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
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
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
    let json = output(&["status", "--addr", &status, "-o", "json"]);
    assert!(serde_json::from_slice::<serde_json::Value>(&json.stdout).is_ok());

    control.signal("TERM");
    let end = tokio::time::timeout(PATIENCE, client.responses.message()).await.unwrap();
    assert!(matches!(end, Ok(None)), "the stream ended well: {end:?}");
    drop(client);
    assert_eq!(control.exit_code(), Some(0));
    assert_eq!(output(&["status", "--addr", &status]).status.code(), Some(1), "nobody is there any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_right_behind_the_first_does_not_cut_the_streams() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("shop.yaml"), SHOP).unwrap();
    let mut control = Control::start(dir.path(), &[]);
    let xds = control.address("xds listening on ");
    control.line();
    control.address("status listening on ");
    let channel = Channel::from_shared(format!("http://{xds}")).unwrap().connect().await.unwrap();
    let mut client = Delta::open(channel, node("mesh-core")).await.unwrap();
    client.send(Kind::Cluster, &["outbound|9080||reviews.shop.svc.cluster.local"], &[]).await;
    client.take().await;
    let twice = format!("kill -s TERM {0}; kill -s INT {0}", control.child.id());
    assert!(Command::new("sh").args(["-c", &twice]).status().unwrap().success());
    let end = tokio::time::timeout(PATIENCE, client.responses.message()).await.unwrap();
    assert!(matches!(end, Ok(None)), "the stream ended well: {end:?}");
    drop(client);
    assert_eq!(control.exit_code(), Some(0));
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
fn validate_counts_what_is_wrong_beside_what_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("good.yaml", &format!("{SHOP}---\n{}", SHOP.replace("name: reviews,", "name: ratings,")));
    write("wrong.YAML", &SHOP.replace("name: reviews,", "name: details,").replace("ports", "prots"));
    write("broken.Yml", "a: [");
    write("unread.JSON", "{\"a\": 1}");
    let out = output(&["validate", dir.path().to_str().unwrap()]);
    let last = text(&out.stdout).lines().last().unwrap_or_default().to_owned();
    assert_eq!(last, "3 objects: 1 wrong, 2 unreadable, 4 errors, 0 warnings", "{}", text(&out.stdout));
}

#[test]
fn what_is_not_read_stops_a_strict_start_and_is_told_by_validate_with_its_name() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("shop.yaml", SHOP);
    type Make = fn(&Path);
    let cases: [(&str, Make, &str); 4] = [
        ("a.yaml", |path| symlink("nowhere", path).unwrap(), "a.yaml: cannot be read: "),
        (
            "fifo.yaml",
            |path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
            "not a regular file",
        ),
        ("a.ymal", |path| std::fs::write(path, SHOP).unwrap(), "a.ymal: warning[not-read]: "),
        (
            "below",
            |path| {
                std::fs::create_dir(path).unwrap();
                std::fs::write(path.join("b.yaml"), SHOP).unwrap();
            },
            "below: warning[not-read]: ",
        ),
    ];
    for (name, make, expected) in cases {
        let path = dir.path().join(name);
        make(&path);
        let why = Control::refused(dir.path(), &["--strict"]);
        assert!(why.contains(expected) && why.contains(name), "{name}: {why}");
        let told = output(&["validate", "--deny-warnings", dir.path().to_str().unwrap()]);
        assert_eq!(told.status.code(), Some(1), "{name}");
        assert!(text(&told.stdout).contains(name), "{name}: {}", text(&told.stdout));
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }
    // Without --strict it starts, and is not ready.
    symlink("nowhere", dir.path().join("a.yaml")).unwrap();
    let mut control = Control::start(dir.path(), &[]);
    control.address("xds listening on ");
    control.line();
    let status = control.address("status listening on ").to_string();
    let shown = text(&output(&["status", "--addr", &status]).stdout);
    assert!(shown.contains("not ready") && shown.contains("a.yaml"), "{shown}");
}

#[test]
fn a_start_that_is_refused_for_its_settings_puts_nothing_in_force_and_validate_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let free = "127.0.0.1:0";
    let config_map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: ";
    // The last ones are in a document that nobody can read.
    for settings in
        ["{mesh: 'trustDomian: a'}", "{mesh: 'rootNamespace: a}", "\n  mesh: \"\n    rootNamespace: a\n", "{"]
    {
        std::fs::write(dir.path().join("mesh.yaml"), format!("{config_map}{settings}\n")).unwrap();
        let out = command(&["serve", "--config", path, "--xds-addr", free, "--status-addr", free])
            .env("RUST_LOG", "info")
            .output()
            .expect("it runs");
        let stderr = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{settings}: {stderr}");
        assert!(stderr.contains("the settings of the mesh are wrong") && !stderr.contains("in force"), "{stderr}");
        assert!(stderr.contains("mesh.yaml"), "{stderr}");
        let out = output(&["validate", path]);
        assert!(text(&out.stdout).contains("mesh-control does not start with these settings"), "{}", text(&out.stdout));
    }
}

/// A page of the status, with its head.
pub(crate) fn page(address: SocketAddr, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n").as_bytes()).unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

#[test]
fn a_configuration_whose_directory_is_gone_stays_ready_and_says_how_old_it_is() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("config");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("shop.yaml"), SHOP).unwrap();
    let mut control = Control::start(&dir, &[]);
    control.address("xds listening on ");
    control.line();
    let status = control.address("status listening on ");
    assert!(page(status, "/metrics").contains("\nmesh_config_stale_seconds 0\n"));
    assert!(!page(status, "/ready").contains("stale"));
    let until = |is_stale: bool| {
        let start = Instant::now();
        while page(status, "/ready").contains("stale: ") != is_stale {
            assert!(start.elapsed() < PATIENCE, "{}", page(status, "/ready"));
        }
    };
    std::fs::rename(&dir, outer.path().join("elsewhere")).unwrap();
    until(true);
    let ready = page(status, "/ready");
    assert!(ready.contains("200 OK") && ready.contains("\nready\n"), "{ready}");
    let metrics = page(status, "/metrics");
    assert!(metrics.contains("\nmesh_config_stale_seconds ") && !metrics.contains("\nmesh_config_stale_seconds 0\n"));
    let shown = text(&output(&["status", "--addr", &status.to_string()]).stdout);
    assert!(
        shown.contains("1 service,") && shown.contains("s old (the directory of the configuration is gone, or empty)"),
        "{shown}"
    );
    std::fs::rename(outer.path().join("elsewhere"), &dir).unwrap();
    until(false);
}

#[test]
fn validate_is_told_how_the_control_plane_is_started_as_serve_is() {
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {mtls: {mode: STRICT}}\n";
    assert_eq!(validate(strict, &[]).status.code(), Some(1));
    let ca = crate::certificates_process::plugged_in();
    for options in [&["--dev"][..], &["--ca-dir", ca.path().to_str().unwrap()], &["--state-dir", "state"]] {
        let out = validate(strict, &[options, &["--deny-warnings"]].concat());
        assert_eq!(out.status.code(), Some(0), "{options:?}: {}", text(&out.stdout));
    }
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
    assert!(text(&out.stdout).ends_with("\n1 object: 1 wrong, 1 error, 0 warnings\n"), "{}", text(&out.stdout));
    std::fs::write(&path, SHOP.replace("port: 9080", "port: ninety") + "---\nkind: x\n").unwrap();
    let out = output(&["validate", "-o", "json", path.to_str().unwrap()]);
    let lines = text(&out.stdout);
    let findings: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let at: Vec<_> = findings.iter().map(|finding| (finding["severity"].as_str(), finding["line"].as_u64())).collect();
    assert_eq!(at, [(Some("error"), Some(5)), (Some("error"), Some(7))], "{lines}");
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

/// Runs `validate` on one file of this content.
fn validate(text: &str, options: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.yaml");
    std::fs::write(&path, text).unwrap();
    output(&[&["validate", path.to_str().unwrap()], options].concat())
}

#[test]
fn warnings_fail_a_validation_where_asked_to() {
    let lonely = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: b}\n";
    assert_eq!(validate(lonely, &[]).status.code(), Some(0));
    assert_eq!(validate(lonely, &["--deny-warnings"]).status.code(), Some(1));
    assert_eq!(validate(SHOP, &["--deny-warnings"]).status.code(), Some(0));
}

#[test]
fn a_request_that_would_fail_for_a_name_that_nobody_has_is_an_error() {
    let rule = |destination: &str| {
        format!(
            "{SHOP}---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: r, namespace: shop}}\n\
             spec: {{hosts: [reviews], http: [{{route: [{{destination: {destination}}}]}}]}}\n"
        )
    };
    for (destination, code) in [
        ("{host: reviews}", 0),
        ("{host: reveiws}", 1),
        ("{host: reviews, subset: v1}", 1),
        ("{host: reviews.shoop.svc.cluster.local}", 1),
        ("{host: reviews, port: {number: 80}}", 1),
    ] {
        let out = validate(&rule(destination), &[]);
        assert_eq!(out.status.code(), Some(code), "{destination}: {}", text(&out.stdout));
    }
}

#[test]
fn what_grpc_clients_cannot_do_is_said_where_asked_for_and_at_its_field() {
    let rule = format!(
        "{SHOP}---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: r, namespace: shop}}\n\
         spec:\n  hosts: [reviews]\n  http:\n  - match: [{{uri: {{prefix: /a}}}}]\n    rewrite:\n      uri: /b\n    \
         route: [{{destination: {{host: reviews}}}}]\n"
    )
    .replace("name: http", "name: grpc");
    let plain = validate(&rule, &["-o", "json"]);
    assert_eq!(text(&plain.stdout), "", "nothing is wrong for the library");
    let out = text(&validate(&rule, &["-o", "json", "--for", "grpc"]).stdout);
    let finding: serde_json::Value = serde_json::from_str(out.trim()).expect(&out);
    assert_eq!((finding["code"].as_str(), finding["field"].as_str()), (Some("degraded"), Some("http[0].rewrite")));
    let line = rule.lines().position(|line| line.contains("rewrite:")).unwrap() as u64 + 1;
    assert_eq!((finding["line"].as_u64(), finding["column"].as_u64()), (Some(line), Some(5)));
}

#[test]
fn an_empty_file_or_directory_says_so() {
    for nothing in ["", "\n\n", "---\n---\n", "# a comment\n"] {
        let out = validate(nothing, &["--deny-warnings"]);
        assert_eq!(out.status.code(), Some(1), "{nothing:?}");
        assert!(text(&out.stdout).contains("t.yaml: warning[file]: nothing to check: no object is in it"), "{out:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let out = output(&["validate", dir]);
    assert!(text(&out.stdout).contains("nothing to check: the directory has no file"), "{out:?}");
    let out = output(&["validate", dir, "--deny-warnings"]);
    assert_eq!(out.status.code(), Some(1));
}

#[test]
fn a_tab_is_shown_where_it_stands() {
    for (before, tabbed, after) in [
        ("apiVersion: v1\nkind: Service\nmetadata:\n", "\tname: a", "\nspec: {}\n"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n", "\t- port: 80", "\n"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  selector:\n    app: x\n", "\tports: []", "\n"),
        ("apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  labels:\n", "  \tapp: b", "\nspec: {}\n"),
    ] {
        let out = validate(&format!("{before}{tabbed}{after}"), &["-o", "json"]);
        let out = text(&out.stdout);
        let finding: serde_json::Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
        let line = before.lines().count() as u64 + 1;
        assert_eq!(finding["line"].as_u64(), Some(line), "{tabbed:?}: {finding}");
        assert!(finding["message"].as_str().unwrap().contains("tab"), "{finding}");
    }
}

#[test]
fn serve_says_its_addresses_and_logs_as_json_where_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let mut control = Control::start(dir.path(), &["-o", "json", "--log-format", "json"]);
    for name in ["xds", "secured xds", "status"] {
        let line: serde_json::Value = serde_json::from_str(&control.line()).unwrap();
        assert_eq!(line["listener"], name);
        assert_eq!(line["address"].is_string(), name != "secured xds", "{line}");
    }
    let mut command = command(&["serve", "--config", "no/such/directory", "--log-format", "json"]);
    assert_eq!(command.output().unwrap().status.code(), Some(1));
}

#[test]
fn a_log_is_lines_of_json_where_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), SHOP.replace("ports", "prots")).unwrap();
    let free = "127.0.0.1:0";
    let mut command = command(&["serve", "--log-format", "json"]);
    command.env("MESH_CONTROL_CONFIG", dir.path()).env("MESH_CONTROL_XDS_ADDR", free);
    command.env("MESH_CONTROL_STATUS_ADDR", free).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut control = Control { stdout: BufReader::new(child.stdout.take().unwrap()), child };
    control.address("xds listening on ");
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).expect(&line);
    assert_eq!(line["level"], "ERROR");
    assert!(line["fields"]["message"].as_str().unwrap().starts_with("a.yaml:5:7: error"), "{line}");
}

#[test]
fn options_come_from_the_environment_too_and_the_command_line_wins() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    std::fs::write(&file, SHOP.replace("ports", "prots")).unwrap();
    let validate = |more: &[&str]| {
        let mut command = command(&["validate", file.to_str().unwrap()]);
        text(&command.args(more).env("MESH_CONTROL_OUTPUT", "json").output().unwrap().stdout)
    };
    assert!(validate(&[]).starts_with('{'), "{}", validate(&[]));
    assert!(!validate(&["-o", "text"]).starts_with('{'), "{}", validate(&["-o", "text"]));
}

#[test]
fn what_the_environment_sets_for_other_commands_does_not_change_a_bootstrap() {
    let plain = output(&["bootstrap"]);
    let mut command = command(&["bootstrap"]);
    command.env("MESH_CONTROL_TLS_CERT", "c.pem").env("MESH_CONTROL_TLS_KEY", "k.pem");
    let out = command.env("MESH_CONTROL_FOR", "grpc").output().unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(text(&out.stdout), text(&plain.stdout));
}

#[test]
fn shells_are_given_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let out = output(&["completions", shell]);
        assert!(out.status.success());
        let script = text(&out.stdout);
        assert!(script.contains("mesh-control") && script.contains("deny-warnings"), "{shell}");
    }
}

#[test]
fn bootstrap_for_istiod_names_a_node_type_that_istiod_knows() {
    let out = output(&["bootstrap", "--for", "istiod", "--name", "web", "--namespace", "shop"]);
    let bootstrap: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(bootstrap["node"]["id"], "sidecar~127.0.0.1~web.shop~shop.svc.cluster.local");
    assert_eq!(bootstrap["node"]["metadata"]["GENERATOR"], "grpc");
}
