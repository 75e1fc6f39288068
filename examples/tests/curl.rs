//! `mesh-curl` as people run it: a process with arguments, an environment, a reader and signals.

use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mesh_control::embedded::{Config, Embedded, Options};
use mesh_examples::echo::{self, Identity};
use mesh_examples::node::{Control, Workload};
use mesh_tower::{Mesh, server};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tower::Layer;

/// Generous: it only bounds a test that fails.
const PATIENCE: Duration = Duration::from_secs(60);

const ECHO: &str = "
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {selector: {app: echo}, ports: [{name: http, port: 80}]}
";

/// A control plane, and an echo that is `http://echo/` for its clients.
struct Fixture {
    control: Arc<Embedded>,
    _echo: Mesh,
}

impl Fixture {
    async fn start() -> Fixture {
        let embedded = Embedded::start(Config::yaml(ECHO), Options::default()).await.unwrap();
        let control = Arc::new(embedded);
        let echo = Control::Embedded(control.clone()).mesh(&Workload::new("echo", "v1")).start().unwrap();
        let listener = echo.bind("127.0.0.1:0").await.unwrap();
        let app = echo::app(&echo, Identity::new("echo", "v1", listener.local_addr()));
        tokio::spawn(server::serve(listener, mesh_tonic::server_layer(&echo).layer(app)).into_future());
        echo.serving().await.unwrap();
        Fixture { control, _echo: echo }
    }

    fn address(&self) -> String {
        self.control.xds_addr().to_string()
    }

    /// Waits for the tool to be a client of the control plane: from then on it has taken over its signals.
    async fn connected(&self, name: &str) {
        let connected = async {
            while !self.control.status().clients.iter().any(|client| client.node.contains(name)) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, connected).await.expect("it connects");
    }

    fn curl(&self, arguments: &[&str]) -> Command {
        let mut command = curl(arguments);
        command.args(["--control", &self.address()]);
        command
    }
}

fn curl(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-curl"));
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn output(mut command: Command) -> Output {
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    output.expect("it ends").expect("it starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn ended(mut child: Child) -> Option<i32> {
    tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_when_its_reader_is_gone() {
    let fixture = Fixture::start().await;
    let mut command = fixture.curl(&["http://echo/", "--duration", "60m", "-o", "json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line: serde_json::Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    assert_eq!(line["status"], 200);
    drop(lines);
    let mut errors = child.stderr.take().unwrap();
    assert_eq!(ended(child).await, Some(0), "as the calls went so far");
    let mut said = String::new();
    errors.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_waits_for_what_is_under_way_and_a_second_one_does_not() {
    let fixture = Fixture::start().await;
    let mut command = fixture.curl(&["http://echo/?x-echo-hang", "-n", "2", "--timeout", "60m"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let id = child.id().unwrap().to_string();
    let mut out = child.stdout.take().unwrap();
    fixture.connected("mesh-curl").await;
    let end = tokio::spawn(ended(child));
    while !end.is_finished() {
        let _ = Command::new("kill").args(["-s", "TERM", &id]).stderr(Stdio::null()).status().await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(end.await.unwrap(), Some(1), "it ended by itself, and no call had succeeded");
    let mut said = String::new();
    out.read_to_string(&mut said).await.unwrap();
    assert!(said.starts_with("0 calls in"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_who_it_is_called() {
    let fixture = Fixture::start().await;
    let mut command = fixture.curl(&["http://echo/?x-echo-hang", "--timeout", "60m", "--name", "web"]);
    let _child = command.stdout(Stdio::null()).spawn().unwrap();
    fixture.connected("web-v1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_prints_the_headers_of_a_response_where_asked_to() {
    let fixture = Fixture::start().await;
    let out = output(fixture.curl(&["-i", "http://echo/"])).await;
    let out = text(&out.stdout);
    let (head, body) = out.split_once("\n\n").expect("an empty line between head and body");
    assert!(head.starts_with("200 by echo-v1-") && head.contains("\ncontent-type: application/json"), "{out}");
    assert!(body.contains("\"backend\""), "{out}");
    let plain = text(&output(fixture.curl(&["http://echo/"])).await.stdout);
    assert!(!plain.contains("content-type: "), "{plain}");
    let grpc = text(&output(fixture.curl(&["-i", "xds:///echo:80"])).await.stdout);
    assert!(grpc.contains("\ncontent-type: application/grpc") && grpc.contains("\ngrpc-status: 0"), "{grpc}");
}

#[tokio::test(flavor = "multi_thread")]
async fn options_come_from_the_environment_too_and_the_command_line_wins() {
    let fixture = Fixture::start().await;
    let mut command = curl(&["http://echo/"]);
    command.env("MESH_CURL_CONTROL", fixture.address()).env("MESH_CURL_OUTPUT", "json").env("MESH_CURL_COUNT", "3");
    let out = output(command).await;
    assert_eq!(text(&out.stdout).lines().count(), 4, "{out:?}");
    let mut command = curl(&["http://echo/", "-n", "1"]);
    command.env("MESH_CURL_CONTROL", fixture.address()).env("MESH_CURL_OUTPUT", "json").env("MESH_CURL_COUNT", "3");
    assert_eq!(text(&output(command).await.stdout).lines().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_lines_of_json_where_asked_for() {
    let fixture = Fixture::start().await;
    let mut command = fixture.curl(&["http://echo/", "--log-format", "json"]);
    command.env("RUST_LOG", "debug");
    let out = output(command).await;
    let log = text(&out.stderr);
    assert!(log.lines().count() > 0);
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        assert!(line["level"].is_string() && line["fields"].is_object(), "{line}");
    }
}

#[tokio::test]
async fn numbers_that_make_no_sense_are_refused() {
    for arguments in [["-c", "0"], ["-n", "0"], ["--rate", "0"]] {
        let out = output(curl(&[&["http://echo/"], &arguments[..]].concat())).await;
        assert_eq!(out.status.code(), Some(2), "{arguments:?}: {out:?}");
        assert!(text(&out.stderr).contains("invalid value '0'"), "{out:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_header_is_refused_with_the_reason_and_not_dropped() {
    for name in ["Host", "host"] {
        let out = output(curl(&["http://echo/", "-H", &format!("{name}: other")])).await;
        assert_eq!(out.status.code(), Some(2));
        assert!(text(&out.stderr).contains("rewrite.authority"), "{}", text(&out.stderr));
    }
}

/// A server that knows nothing of any mesh and speaks TLS, and the file with its authority.
async fn outside(dir: &std::path::Path) -> u16 {
    let made = rcgen::generate_simple_self_signed(vec!["api.example.com".to_owned()]).unwrap();
    std::fs::write(dir.join("ca.pem"), made.cert.pem()).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = [0; 4096];
                while stream.read(&mut request).await.is_ok_and(|count| count > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nsecured").await.unwrap();
                }
            });
        }
    });
    port
}

/// What most do who call a server outside: `http` in the program, TLS on the way, by a rule.
#[tokio::test(flavor = "multi_thread")]
async fn http_in_the_program_is_tls_on_the_way_to_a_host_that_a_rule_says_so_of() {
    let dir = tempfile::tempdir().unwrap();
    let port = outside(dir.path()).await;
    let of = |rule: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api}}\nspec:\n  \
             hosts: [api.example.com]\n  resolution: DNS\n  endpoints: [{{address: localhost}}]\n  \
             ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}]\n---\n\
             apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: api}}\n\
             spec: {{host: api.example.com, trafficPolicy: {{tls: {{mode: SIMPLE{rule}}}}}}}\n"
        )
    };
    let good = of(&format!(", caCertificates: {}", dir.path().join("ca.pem").display()));
    for (yaml, code, said) in [(good, Some(0), "secured"), (of(""), Some(1), "no trusted authority")] {
        let control = Embedded::start(Config::yaml(yaml), Options::default()).await.unwrap();
        let address = control.xds_addr().to_string();
        let out = output(curl(&["http://api.example.com/", "--control", &address])).await;
        let all = format!("{}{}", text(&out.stdout), text(&out.stderr));
        assert_eq!(out.status.code(), code, "{all}");
        assert!(all.contains(said), "{all}");
    }
}

#[tokio::test]
async fn an_admin_port_is_served_where_it_is_asked_for_and_on_the_loopback_alone() {
    let fixture = Fixture::start().await;
    let control = fixture.address();
    let echo = |admin: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-echo"));
        command.args(["--control", &control, "--listen", "127.0.0.1:0", "--admin-addr", admin]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    };
    let mut running = echo("127.0.0.1:0").spawn().unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    let address = line.strip_prefix("admin listening on ").unwrap_or_else(|| panic!("{line}"));
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("istio_build{"), "{answer}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let mut own = echo(&format!("unix:{}", path.display())).spawn().unwrap();
    // Its output stays open: it goes on writing.
    let mut lines = BufReader::new(own.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    assert_eq!(line, format!("admin listening on unix:{}", path.display()));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "it is this user's alone");
    let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    let page = "/explain?url=http%3A%2F%2Fnobody%2F";
    stream
        .write_all(format!("GET {page} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("nobody here has asked for nobody:80"), "{answer}");
    let open = echo("0.0.0.0:0").output().await.unwrap();
    let why = String::from_utf8_lossy(&open.stderr);
    assert!(!open.status.success() && why.contains("--admin-anywhere"), "{why}");
}
