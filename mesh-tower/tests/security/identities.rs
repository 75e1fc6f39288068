//! A mesh whose control plane gives identities: mutual TLS from YAML to request, without a file or a token.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::BodyExt;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::identity::SpiffeId;
use mesh_tower::Mesh;
use mesh_tower::server::ConnectionInfo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::shop::workload;
use crate::tls_support::ask_over_connector;

const REVIEWS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
";

fn peers(mode: &str) -> String {
    format!(
        "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: reviews, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: reviews}}}}
  mtls: {{mode: {mode}}}
"
    )
}

fn rule(tls: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: reviews, namespace: shop}}
spec: {{host: reviews, trafficPolicy: {{tls: {tls}}}}}
"
    )
}

async fn control() -> Embedded {
    Embedded::start(Config::yaml(REVIEWS), Options::default().dev()).await.unwrap()
}

/// A server of `reviews` that answers with who asked.
async fn serve(control: &Embedded) -> (Mesh, SocketAddr) {
    let mesh = workload(control, "reviews");
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let tell = || async {
        let connection = ConnectionInfo::current().expect("served by the mesh");
        connection.peer_identity().map_or("nobody", SpiffeId::as_str).to_owned()
    };
    let app = axum::Router::new().route("/", axum::routing::get(tell)).layer(mesh.server_layer());
    tokio::spawn(async move { mesh_tower::server::serve(listener, app).await });
    mesh.serving().await.unwrap();
    (mesh, address)
}

async fn ask(mesh: &Mesh) -> Result<String, MeshError> {
    let response = mesh.client().get("http://reviews.shop:9080/").await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(format!("{} {}", status.as_u16(), String::from_utf8_lossy(&body)))
}

/// Asks until it goes as `expected`.
async fn becomes(mesh: &Mesh, expected: impl Fn(&Result<String, MeshError>) -> bool) {
    settles(async || ask(mesh).await, expected).await;
}

/// The same over a connector.
async fn becomes_over_connector(mesh: &Mesh, expected: impl Fn(&Result<String, MeshError>) -> bool) {
    settles(async || ask_over_connector(mesh, "reviews.shop:9080").await, expected).await;
}

async fn settles(
    ask: impl AsyncFn() -> Result<String, MeshError>,
    expected: impl Fn(&Result<String, MeshError>) -> bool,
) {
    let mut last = None;
    let settled = async {
        loop {
            let answer = ask().await;
            if expected(&answer) {
                return;
            }
            last = Some(answer);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(20), settled).await.is_err() {
        panic!("it stays at {last:?}");
    }
}

fn is(expected: &str) -> impl Fn(&Result<String, MeshError>) -> bool {
    move |answer| matches!(answer, Ok(text) if text == expected)
}

/// What a client without TLS gets of the server's port.
async fn in_plaintext(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // A reset, where bytes that nobody read were thrown away, is an end, too.
    _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.expect("an end");
    String::from_utf8_lossy(&answer).into_owned()
}

const WEB: &str = "200 spiffe://cluster.local/ns/shop/sa/web";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_word_of_configuration_everybody_is_known_and_plaintext_is_refused() {
    let control = control().await;
    let (_server, address) = serve(&control).await;
    let client = workload(&control, "web");
    becomes(&client, is(WEB)).await;
    assert_eq!(in_plaintext(address).await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_authentication_says_who_is_let_in_and_how_others_call() {
    let control = control().await;
    let (_server, address) = serve(&control).await;
    let client = workload(&control, "web");
    becomes(&client, is(WEB)).await;
    control.set_yaml("peers.yaml", &peers("PERMISSIVE")).unwrap();
    let told = async {
        while !in_plaintext(address).await.ends_with("nobody") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told).await.expect("plaintext is served");
    // Those who have a certificate go on showing it.
    assert_eq!(ask(&client).await.unwrap(), WEB);
    control.set_yaml("peers.yaml", &peers("DISABLE")).unwrap();
    becomes(&client, is("200 nobody")).await;
    control.set_yaml("peers.yaml", &peers("STRICT")).unwrap();
    becomes(&client, is(WEB)).await;
    // The client may be told first, and go on with a connection that it has.
    let told = async {
        while !in_plaintext(address).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told).await.expect("plaintext is served no more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_rule_says_how_to_call_whatever_the_server_wants() {
    let control = control().await;
    let (_server, _) = serve(&control).await;
    let client = workload(&control, "web");
    control.set_yaml("rule.yaml", &rule("{mode: ISTIO_MUTUAL}")).unwrap();
    becomes(&client, is(WEB)).await;
    // Who the rule lets answer is somebody else: not a byte is sent.
    let other = "{mode: ISTIO_MUTUAL, subjectAltNames: [spiffe://cluster.local/ns/shop/sa/other]}";
    control.set_yaml("rule.yaml", &rule(other)).unwrap();
    becomes(&client, |answer| {
        matches!(answer, Err(error) if format!("{error:#}").contains("the service is that of spiffe://cluster.local/ns/shop/sa/other"))
    })
    .await;
    // In plaintext to a server that is STRICT: refused there.
    control.set_yaml("rule.yaml", &rule("{mode: DISABLE}")).unwrap();
    becomes(&client, |answer| matches!(answer, Err(error) if error.kind() == ErrorKind::ConnectionLost)).await;
    // A server of the mesh is nobody whom the system's authorities vouch for, and is shown no certificate of the mesh.
    for files in ["{mode: SIMPLE}", "{mode: SIMPLE, insecureSkipVerify: true}"] {
        control.set_yaml("rule.yaml", &rule(files)).unwrap();
        becomes(&client, Result::is_err).await;
        control.set_yaml("rule.yaml", "").unwrap();
        becomes(&client, is(WEB)).await;
    }
    control.set_yaml("rule.yaml", "").unwrap();
    becomes(&client, is(WEB)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_mesh_turns_automatic_mtls_off_calls_are_plaintext_unless_a_rule_says_how() {
    let control = control().await;
    let (_server, _) = serve(&control).await;
    let client = workload(&control, "web");
    becomes(&client, is(WEB)).await;
    becomes_over_connector(&client, is(WEB)).await;
    let mesh = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'enableAutoMtls: false'}\n";
    control.set_yaml("mesh.yaml", mesh).unwrap();
    // The server is STRICT.
    let is_lost =
        |answer: &Result<String, MeshError>| matches!(answer, Err(error) if error.kind() == ErrorKind::ConnectionLost);
    becomes(&client, is_lost).await;
    becomes_over_connector(&client, is_lost).await;
    control.set_yaml("rule.yaml", &rule("{mode: ISTIO_MUTUAL}")).unwrap();
    becomes(&client, is(WEB)).await;
    becomes_over_connector(&client, is(WEB)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validate_names_the_rules_that_no_server_takes_and_no_others() {
    let control = control().await;
    let (_server, _) = serve(&control).await;
    let client = workload(&control, "web");
    becomes(&client, is(WEB)).await;
    let nobody = rule("{mode: ISTIO_MUTUAL, subjectAltNames: [spiffe://cluster.local/ns/shop/sa/other]}");
    for mode in ["UNSET", "STRICT", "PERMISSIVE", "DISABLE"] {
        control.set_yaml("peers.yaml", &peers(mode)).unwrap();
        for asked in ["{mode: DISABLE}", "{mode: SIMPLE, insecureSkipVerify: true}", "{mode: ISTIO_MUTUAL}"] {
            control.set_yaml("rule.yaml", &rule(asked)).unwrap();
            let told = control.plane().diagnostics();
            let is_told = told.iter().any(|finding| finding.message.contains("every call to reviews.shop"));
            // From the opposite, so that what was in force before is not taken for it.
            control.set_yaml("rule.yaml", if is_told { "" } else { &nobody }).unwrap();
            becomes(&client, |answer| answer.is_ok() == is_told).await;
            control.set_yaml("rule.yaml", &rule(asked)).unwrap();
            becomes(&client, |answer| answer.is_err() == is_told).await;
        }
    }
}
