//! The same with a control plane that issues certificates: what a request experiences, whatever the PeerAuthentication of its
//! server and the DestinationRule of its host say.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::BodyExt;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::error::ErrorKind;
use mesh_core::xds::Bootstrap;
use mesh_tower::Mesh;
use mesh_tower::server::ConnectionInfo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Generous: it only bounds a test that fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a server's PeerAuthentication says, if there is one; what a client without TLS gets of its port; and what a client of
/// the mesh gets without a DestinationRule, with ISTIO_MUTUAL, with DISABLE, and with SIMPLE, which shows no certificate.
const MATRIX: [(Option<&str>, &str, [&str; 4]); 5] = [
    (None, "nothing", ["by client", "by client", "ConnectionLost", "ConnectFailure"]),
    (Some("UNSET"), "nothing", ["by client", "by client", "ConnectionLost", "ConnectFailure"]),
    (Some("STRICT"), "nothing", ["by client", "by client", "ConnectionLost", "ConnectFailure"]),
    (Some("PERMISSIVE"), "by nobody", ["by client", "by client", "by nobody", "ConnectFailure"]),
    (Some("DISABLE"), "by nobody", ["by nobody", "ConnectFailure", "by nobody", "ConnectFailure"]),
];

const RULES: [Option<&str>; 4] = [None, Some("ISTIO_MUTUAL"), Some("DISABLE"), Some("SIMPLE")];

/// A service for each rule and each server, and what is said of them.
fn yaml() -> String {
    let mut yaml = String::new();
    for (server, (mode, ..)) in MATRIX.iter().enumerate() {
        if let Some(mode) = mode {
            _ = write!(
                yaml,
                "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                 metadata: {{name: server-{server}, namespace: corpus}}\n\
                 spec: {{selector: {{matchLabels: {{server: '{server}'}}}}, mtls: {{mode: {mode}}}}}\n"
            );
        }
        for (rule, tls) in RULES.iter().enumerate() {
            _ = write!(
                yaml,
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s-{server}-{rule}, namespace: corpus}}\n\
                 spec: {{selector: {{server: '{server}'}}, ports: [{{name: http, port: 80}}]}}\n"
            );
            if let Some(tls) = tls {
                _ = write!(
                    yaml,
                    "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                     metadata: {{name: s-{server}-{rule}, namespace: corpus}}\n\
                     spec: {{host: s-{server}-{rule}, trafficPolicy: {{tls: {{mode: {tls}}}}}}}\n"
                );
            }
        }
    }
    yaml
}

fn mesh(control: &Embedded, account: &str, labels: serde_json::Value) -> Mesh {
    let bootstrap = Bootstrap::new("embedded")
        .node_id(format!("mesh~127.0.0.1~{account}.corpus~corpus.svc.cluster.local"))
        .metadata("NAMESPACE", "corpus")
        .metadata("SERVICE_ACCOUNT", account)
        .metadata("LABELS", labels);
    Mesh::builder().source(control.source(bootstrap)).cold_start_wait(PATIENCE).start().expect("a mesh")
}

/// A server that tells in its answer who asked.
async fn serve(control: &Embedded, server: usize) -> (Mesh, SocketAddr) {
    let mesh = mesh(control, &format!("server-{server}"), serde_json::json!({"server": server.to_string()}));
    let listener = mesh.bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr();
    let tell = || async {
        let connection = ConnectionInfo::current().expect("served by the mesh");
        let account =
            connection.peer_identity().and_then(|peer| peer.workload().map(|(_, account)| account.to_owned()));
        format!("by {}", account.as_deref().unwrap_or("nobody"))
    };
    let app = axum::Router::new().route("/", axum::routing::get(tell)).layer(mesh.server_layer());
    tokio::spawn(mesh_tower::server::serve(listener, app).into_future());
    mesh.serving().await.expect("it may serve");
    (mesh, address)
}

async fn in_plaintext(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n").await.expect("it is written");
    let mut answer = Vec::new();
    // A reset, where bytes that nobody read were thrown away, is an end, too.
    _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    let answer = String::from_utf8_lossy(&answer);
    answer.rsplit_once("\r\n").map_or("nothing", |(_, body)| body).to_owned()
}

async fn by_mesh(client: &Mesh, server: usize, rule: usize) -> String {
    let started = std::time::Instant::now();
    loop {
        match client.client().get(format!("http://s-{server}-{rule}.corpus/")).await {
            Ok(response) => {
                let body = response.into_body().collect().await.expect("a body").to_bytes();
                return String::from_utf8_lossy(&body).into_owned();
            }
            // The server has just come, and the client may not have heard of it.
            Err(error) if error.kind() == ErrorKind::NoHealthyEndpoint && started.elapsed() < PATIENCE => {
                tokio::task::yield_now().await;
            }
            Err(error) => return format!("{:?}", error.kind()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_authentication_and_a_destination_rule_do_what_is_written_where_certificates_are_issued() {
    let control = Embedded::start(Config::yaml(yaml()), Options::default().dev()).await.expect("started");
    let said = control.status().diagnostics;
    // What is enforced is no error. A rule that no server takes is one, and no other.
    let errors = said.iter().filter(|finding| finding.severity == "error");
    let told: BTreeSet<String> =
        errors.map(|finding| finding.object.as_deref().unwrap_or_default().to_owned()).collect();
    let cells = MATRIX.iter().enumerate().flat_map(|(server, (.., answers))| {
        answers.iter().enumerate().map(move |(rule, answer)| (server, rule, answer))
    });
    let failing = cells.filter(|(.., answer)| !answer.starts_with("by "));
    let failing = failing.map(|(server, rule, _)| format!("DestinationRule corpus/s-{server}-{rule}"));
    assert_eq!(told, failing.collect(), "{said:#?}");
    let client = mesh(&control, "client", serde_json::json!({}));
    let mut faults = Vec::new();
    for (server, (mode, plaintext, answers)) in MATRIX.iter().enumerate() {
        let (_serving, address) = serve(&control, server).await;
        let mut compare = |rule: &str, seen: String, expected: &str| {
            if seen != expected {
                faults.push(format!("{mode:?}, {rule}: {seen} instead of {expected}"));
            }
        };
        compare("plaintext", in_plaintext(address).await, plaintext);
        for (rule, expected) in answers.iter().enumerate() {
            compare(&format!("{:?}", RULES[rule]), by_mesh(&client, server, rule).await, expected);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
