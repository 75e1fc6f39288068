//! A server that is started again: what it does with configuration that became wrong while nobody looked.

use std::fs;
use std::path::Path;

use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use mesh_control::catalog::Kind;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::Channel;

use crate::process::{Control, output, text};
use crate::support::{Delta, node};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{name: http, port: 80}]}\n";
const ROUTES: &str = "outbound|80||web.default.svc.cluster.local";

fn rule(http: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n  hosts: [web]\n  http:\n  - {http}\n"
    )
}

fn good() -> String {
    rule("redirect: {uri: /good}")
}

fn wrong() -> String {
    rule("redirct: {uri: /wrong}")
}

struct Dirs {
    config: tempfile::TempDir,
    state: tempfile::TempDir,
}

impl Dirs {
    fn new() -> Dirs {
        let dirs = Dirs { config: tempfile::tempdir().unwrap(), state: tempfile::tempdir().unwrap() };
        dirs.write("web.yaml", SERVICE);
        dirs
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.config.path().join(name), text).unwrap();
    }

    fn start(&self) -> Started {
        Started::new(self.config.path(), &["--state-dir", self.state.path().to_str().unwrap()])
    }

    fn saved(&self) -> std::path::PathBuf {
        self.state.path().join("last-good.json")
    }
}

struct Started {
    _control: Control,
    xds: String,
    status: String,
}

impl Started {
    fn new(config: &Path, more: &[&str]) -> Started {
        let mut control = Control::start(config, more);
        let xds = control.address("xds listening on ").to_string();
        control.line();
        let status = control.address("status listening on ").to_string();
        Started { _control: control, xds, status }
    }

    /// What requests to `web` come to.
    async fn action(&self) -> Option<Action> {
        let channel = Channel::from_shared(format!("http://{}", self.xds)).unwrap().connect().await.unwrap();
        let mut client = Delta::open(channel, node("mesh-core")).await.unwrap();
        client.send(Kind::Route, &[ROUTES], &[]).await;
        let response = client.next().await;
        let body = response.resources[0].resource.clone().unwrap().value;
        RouteConfiguration::decode(&*body).unwrap().virtual_hosts[0].routes[0].action.clone()
    }

    async fn ready(&self) -> String {
        let mut stream = tokio::net::TcpStream::connect(&self.status).await.unwrap();
        stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn table(&self) -> String {
        text(&output(&["status", "--addr", &self.status]).stdout)
    }
}

fn is_redirect(action: &Option<Action>) -> bool {
    matches!(action, Some(Action::Redirect(_)))
}

fn fails(action: &Option<Action>) -> bool {
    matches!(action, Some(Action::DirectResponse(answer)) if answer.status == 503)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_good_state_survives_a_restart_and_what_was_deleted_does_not() {
    let dirs = Dirs::new();
    dirs.write("rules.yaml", &good());
    assert!(is_redirect(&dirs.start().action().await));

    // While it is down, the rule becomes wrong.
    dirs.write("rules.yaml", &wrong());
    let control = dirs.start();
    assert!(is_redirect(&control.action().await));
    let ready = control.ready().await;
    assert!(
        ready.starts_with("HTTP/1.0 200") && ready.contains("held: VirtualService default/web: rules.yaml:7"),
        "{ready}"
    );
    let table = control.table();
    assert!(table.contains("VirtualService default/web  its last good state"), "{table}");
    drop(control);
    // And stays so, however often it is started, and as a text that nobody can read.
    dirs.write("rules.yaml", "a: [");
    assert!(is_redirect(&dirs.start().action().await));

    // Deleted while it is down, and then written anew and wrong: nothing of it is left.
    fs::remove_file(dirs.config.path().join("rules.yaml")).unwrap();
    assert!(matches!(dirs.start().action().await, Some(Action::Route(_))));
    dirs.write("rules.yaml", &wrong());
    assert!(fails(&dirs.start().action().await));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_for_a_provider_that_there_is_not_is_told_of_as_not_in_force() {
    let dirs = Dirs::new();
    let (api, spec) =
        ("apiVersion: telemetry.istio.io/v1\nkind: Telemetry", "accessLogging: [{providers: [{name: nobody}]}]");
    dirs.write("telemetry.yaml", &format!("{api}\nmetadata: {{name: t}}\nspec: {{{spec}}}\n"));
    let control = Started::new(dirs.config.path(), &[]);
    let ready = control.ready().await;
    let told =
        ready.contains("not-in-force: Telemetry default/t: telemetry.yaml:4") && ready.contains("no provider `nobody`");
    assert!(ready.starts_with("HTTP/1.0 200") && told, "{ready}");
    assert!(control.table().contains("who is not there is told nothing"), "{}", control.table());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_last_good_state_what_is_wrong_fails_closed_and_says_so() {
    let dirs = Dirs::new();
    dirs.write("rules.yaml", &wrong());
    let control = Started::new(dirs.config.path(), &[]);
    assert!(fails(&control.action().await));
    let ready = control.ready().await;
    assert!(ready.starts_with("HTTP/1.0 200") && ready.contains("fails-closed: VirtualService default/web"), "{ready}");
    assert!(control.table().contains("nothing, so what it governs fails"), "{}", control.table());
    drop(control);

    // Of this, nobody can tell what it governs.
    dirs.write("more.yaml", "a: [");
    let control = Started::new(dirs.config.path(), &[]);
    let ready = control.ready().await;
    assert!(ready.starts_with("HTTP/1.0 503") && ready.contains("unread: more.yaml: more.yaml:1"), "{ready}");
    assert!(control.table().contains("nobody can tell what it governs"), "{}", control.table());
}

#[tokio::test(flavor = "multi_thread")]
async fn state_that_is_spoiled_or_of_somebody_else_is_reported_and_ignored() {
    let dirs = Dirs::new();
    dirs.write("rules.yaml", &good());
    drop(dirs.start());
    let saved = fs::read_to_string(dirs.saved()).unwrap();
    dirs.write("rules.yaml", &wrong());
    let cut = saved.split_at(saved.len() / 2).0;
    for spoiled in ["", "{", "[1]", "null", "{\"format\": \"another\", \"files\": {}}", "\u{0}\u{1}", cut] {
        fs::write(dirs.saved(), spoiled).unwrap();
        let control = dirs.start();
        assert!(fails(&control.action().await), "{spoiled:?}");
        assert!(control.table().contains("is ignored"), "{}", control.table());
    }
    // It is well-formed, and what it says of the objects is not good.
    fs::write(dirs.saved(), saved.replace("redirect", "redirct")).unwrap();
    assert!(fails(&dirs.start().action().await));
    fs::write(dirs.saved(), saved).unwrap();
    assert!(is_redirect(&dirs.start().action().await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_is_for_one_server_and_one_configuration() {
    let dirs = Dirs::new();
    dirs.write("rules.yaml", &good());
    let state = dirs.state.path().to_str().unwrap();
    let first = dirs.start();
    let why = Control::refused(dirs.config.path(), &["--state-dir", state]);
    assert!(why.contains("another server") && why.contains(state), "{why}");
    drop(first);

    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("rules.yaml"), wrong()).unwrap();
    let why = Control::refused(other.path(), &["--state-dir", state]);
    assert!(why.contains(dirs.config.path().canonicalize().unwrap().to_str().unwrap()), "{why}");
    assert!(is_redirect(&dirs.start().action().await), "nothing of it was touched");

    for inside in [dirs.config.path().to_owned(), dirs.config.path().join("."), dirs.config.path().join("new/state")] {
        let why = Control::refused(dirs.config.path(), &["--state-dir", inside.to_str().unwrap()]);
        assert!(why.contains("inside the configuration"), "{why}");
    }
    assert!(!dirs.config.path().join("new").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_is_written_for_its_owner_alone_and_through_no_link() {
    use std::os::unix::fs::PermissionsExt;
    let dirs = Dirs::new();
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    fs::write(elsewhere.path(), "precious").unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), dirs.state.path().join("last-good.new")).unwrap();
    dirs.start();
    assert_eq!(fs::read_to_string(elsewhere.path()).unwrap(), "precious");
    assert_eq!(fs::metadata(dirs.saved()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_strict_server_does_not_start_without_any_object() {
    let dirs = Dirs::new();
    drop(dirs.start());
    fs::remove_file(dirs.config.path().join("web.yaml")).unwrap();
    let why = Control::refused(dirs.config.path(), &["--strict"]);
    assert!(why.contains("no object"), "{why}");
    // What the state holds does not stand in for it.
    let why = Control::refused(dirs.config.path(), &["--strict", "--state-dir", dirs.state.path().to_str().unwrap()]);
    assert!(why.contains("every configuration file is gone"), "{why}");
}

#[test]
fn a_server_does_not_start_where_an_option_and_the_settings_of_the_mesh_say_different_things() {
    let dirs = Dirs::new();
    let file = dirs.state.path().join("mesh.yaml");
    let mesh = ["--mesh-config", file.to_str().unwrap()];
    fs::write(&file, "trustDomain: one.org\n").unwrap();
    let why = Control::refused(dirs.config.path(), &[&mesh[..], &["--trust-domain", "two.org"]].concat());
    assert!(why.contains("mesh.yaml:1:14") && why.contains("--trust-domain says two.org"), "{why}");
    fs::write(&file, "trustDomain: [one.org]\n").unwrap();
    let why = Control::refused(dirs.config.path(), &mesh);
    assert!(why.contains("the settings of the mesh are wrong"), "{why}");
    fs::write(&file, "trustDomain: one.org\n").unwrap();
    assert!(Control::start(dirs.config.path(), &mesh).address("xds listening on ").port() > 0);
}

#[test]
fn a_strict_server_does_not_start_with_anything_wrong() {
    let dirs = Dirs::new();
    let config = dirs.config.path().to_str().unwrap();
    let free = "127.0.0.1:0";
    let serve = ["serve", "--strict", "--config", config, "--xds-addr", free, "--status-addr", free];
    for (wrong, named) in [(wrong(), "VirtualService default/web"), ("a: [".to_owned(), "rules.yaml:1")] {
        dirs.write("rules.yaml", &wrong);
        let out = output(&serve);
        assert_eq!(out.status.code(), Some(1));
        assert!(text(&out.stderr).contains("--strict") && text(&out.stderr).contains(named), "{}", text(&out.stderr));
    }
    dirs.write("rules.yaml", &good());
    Started::new(dirs.config.path(), &["--strict"]);
}
