//! Connections that are not HTTP, from YAML to bytes: embedded control plane, `Mesh::bind_tcp` and `Mesh::connect` over sockets.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::error::ErrorKind;
use mesh_core::fixed::Fixed;
use mesh_core::model::LogText;
use mesh_core::xds::Bootstrap;
use mesh_tower::server::Limits;
use mesh_tower::{LogFormat, Mesh, MeshBuilder};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;

const LEDGER: &str = "
apiVersion: v1
kind: Service
metadata: {name: ledger, namespace: shop}
spec: {selector: {app: ledger}, ports: [{name: tcp-ledger, port: 7000}]}
";

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it hangs")
}

fn mesh(control: &Embedded, account: &str) -> Mesh {
    builder(control, account).start().unwrap()
}

fn builder(control: &Embedded, account: &str) -> MeshBuilder {
    let bootstrap = Bootstrap::new("embedded")
        .node_id(format!("mesh~127.0.0.1~{account}.shop~shop.svc.cluster.local"))
        .metadata("NAMESPACE", "shop")
        .metadata("SERVICE_ACCOUNT", account)
        .metadata("LABELS", json!({"app": account}));
    Mesh::builder().source(control.source(bootstrap)).cold_start_wait(Duration::from_secs(10))
}

/// A server of `ledger` that says who the client is, and then sends back what it gets.
async fn serve(control: &Embedded) -> (Mesh, SocketAddr) {
    serve_with(control, &Limits::default()).await
}

async fn serve_with(control: &Embedded, limits: &Limits) -> (Mesh, SocketAddr) {
    serve_by(mesh(control, "ledger"), limits).await
}

async fn serve_by(mesh: Mesh, limits: &Limits) -> (Mesh, SocketAddr) {
    let mut listener = mesh.bind_tcp("127.0.0.1:0").await.unwrap().limits(limits);
    let address = listener.local_addr();
    tokio::spawn(async move {
        while let Some((mut io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let peer = io.connection().peer_identity().map_or("nobody".to_owned(), ToString::to_string);
                _ = io.write_all(format!("{peer}\n").as_bytes()).await;
                let (mut reader, mut writer) = tokio::io::split(&mut io);
                _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    within(mesh.serving()).await.unwrap();
    (mesh, address)
}

/// What the server says to who sends a line, until the connection is closed or the line comes back.
async fn say(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) -> String {
    let mut said = Vec::new();
    // What is refused may be reset.
    _ = stream.write_all(b"hello\n").await;
    while !said.ends_with(b"hello\n") {
        match within(stream.read_buf(&mut said)).await {
            Ok(1..) => {}
            _ => return "closed".to_owned(),
        }
    }
    String::from_utf8(said).unwrap().trim_end_matches("\nhello\n").to_owned()
}

async fn in_plaintext(address: SocketAddr) -> String {
    say(TcpStream::connect(address).await.unwrap()).await
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: ledger, namespace: shop}}\nspec: {spec}\n"
    )
}

fn mtls(mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: ledger, namespace: shop}}\n\
         spec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

const TELLER: &str = "spiffe://cluster.local/ns/shop/sa/teller";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_travel_by_mutual_tls_and_the_server_knows_from_whom() {
    for (mode, over_plaintext) in [("STRICT", "closed"), ("PERMISSIVE", "nobody"), ("DISABLE", "nobody")] {
        let yaml = format!("{LEDGER}---\n{}", mtls(mode));
        let control = Embedded::start(Config::yaml(yaml), Options::default().dev()).await.unwrap();
        let (_server, address) = serve(&control).await;
        let teller = mesh(&control, "teller");
        let stream = within(teller.connect("ledger.shop", 7000)).await.unwrap();
        let expected = if mode == "DISABLE" { "nobody" } else { TELLER };
        assert_eq!(say(stream).await, expected, "{mode}");
        assert_eq!(in_plaintext(address).await, over_plaintext, "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_decide_on_connections_and_what_asks_for_requests_lets_nobody_in() {
    let control = Embedded::start(Config::yaml(LEDGER), Options::default().dev()).await.unwrap();
    let (_server, address) = serve(&control).await;
    let (teller, other) = (mesh(&control, "teller"), mesh(&control, "other"));
    let ask = async |mesh: &Mesh| match within(mesh.connect("ledger.shop", 7000)).await {
        Ok(stream) => say(stream).await,
        Err(_) => "closed".to_owned(),
    };
    let by_teller = "from: [{source: {principals: [cluster.local/ns/shop/sa/teller]}}]";
    let port = address.port();
    for (spec, of_teller, of_other) in [
        ("{}".to_owned(), false, false),
        (format!("{{rules: [{{{by_teller}}}]}}"), true, false),
        (format!("{{action: DENY, rules: [{{{by_teller}}}]}}"), false, true),
        (format!("{{rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]}}"), true, true),
        ("{rules: [{to: [{operation: {ports: ['1']}}]}]}".to_owned(), false, false),
        (format!("{{rules: [{{{by_teller}, to: [{{operation: {{methods: [GET]}}}}]}}]}}"), false, false),
        (format!("{{rules: [{{{by_teller}, to: [{{operation: {{notPaths: [/x]}}}}]}}]}}"), false, false),
        (format!("{{action: DENY, rules: [{{{by_teller}, to: [{{operation: {{paths: [/x]}}}}]}}]}}"), false, true),
        ("{action: DENY, rules: [{to: [{operation: {notMethods: [GET]}}]}]}".to_owned(), false, false),
        ("{action: AUDIT, rules: [{to: [{operation: {paths: [/x]}}]}]}".to_owned(), true, true),
    ] {
        control.set_yaml("policy.yaml", &policy(&spec)).unwrap();
        let (expected_teller, expected_other) = (
            if of_teller { TELLER.to_owned() } else { "closed".to_owned() },
            if of_other { TELLER.replace("teller", "other") } else { "closed".to_owned() },
        );
        // Until the server has heard of it.
        within(Box::pin(async {
            while (ask(&teller).await, ask(&other).await) != (expected_teller.clone(), expected_other.clone()) {
                tokio::task::yield_now().await;
            }
        }))
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_ends_when_it_would_not_be_let_in_any_more() {
    let control = Embedded::start(Config::yaml(LEDGER), Options::default().dev()).await.unwrap();
    let (server, _) = serve(&control).await;
    let teller = mesh(&control, "teller");
    let allow = policy("{rules: [{from: [{source: {principals: ['*/sa/teller']}}]}]}");
    for later in [
        policy("{}"),
        // It asks about every request, and cannot.
        policy("{action: CUSTOM, provider: {name: nobody}, rules: [{}]}"),
        // It is on requests, and in doubt on everything.
        policy("{action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}"),
    ] {
        control.set_yaml("a.yaml", &allow).unwrap();
        let mut kept = within(async {
            loop {
                if let Ok(mut stream) = teller.connect("ledger.shop", 7000).await {
                    let mut said = vec![0; TELLER.len() + 1];
                    if stream.read_exact(&mut said).await.is_ok() {
                        return stream;
                    }
                }
            }
        })
        .await;
        assert_eq!(server.drain().in_flight(), 1);
        control.set_yaml("a.yaml", &later).unwrap();
        let end = within(kept.read(&mut [0; 1])).await;
        assert!(!matches!(end, Ok(1..)), "{later}");
        drop(kept);
        within(async {
            while server.drain().in_flight() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_connects_to_nobody_but_those_who_may_answer_and_never_in_plaintext() {
    let control = Embedded::start(Config::yaml(LEDGER), Options::default().dev()).await.unwrap();
    let teller = mesh(&control, "teller");
    let nobody = within(teller.connect("ledger.shop", 7000)).await.unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::NoHealthyEndpoint, "{nobody:#}");
    // Somebody in plaintext says that he is the ledger.
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let entry = format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: ledger, namespace: shop}}\n\
         spec: {{address: 127.0.0.1, ports: {{tcp-ledger: {port}}}, labels: {{app: ledger}}, serviceAccount: ledger}}\n"
    );
    control.set_yaml("entry.yaml", &entry).unwrap();
    let seen = tokio::spawn(async move {
        let (mut stream, _) = socket.accept().await.unwrap();
        let mut first = [0];
        stream.read_exact(&mut first).await.unwrap();
        first[0]
    });
    within(async {
        while let Err(error) = teller.connect("ledger.shop", 7000).await {
            if seen.is_finished() {
                return;
            }
            assert!(matches!(error.kind(), ErrorKind::NoHealthyEndpoint | ErrorKind::ConnectFailure), "{error:#}");
            tokio::task::yield_now().await;
        }
        panic!("it connects to who has not shown who he is");
    })
    .await;
    assert_eq!(seen.await.unwrap(), 0x16, "the first byte of a handshake, and none of the application's");
}

/// A connection from another address of this machine.
async fn from(client: &str, server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{client}:0").parse().unwrap()).unwrap();
    within(socket.connect(server)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h7_a_client_with_too_many_connections_gets_no_more_and_holds_up_nobody_else() {
    let control = Embedded::start(Config::yaml(LEDGER), Options::default()).await.unwrap();
    let mut limits = Limits::default();
    limits.max_connections_per_client = 3;
    let (_mesh, address) = serve_with(&control, &limits).await;
    // They say nothing.
    let _silent = [from("127.0.0.2", address).await, from("127.0.0.2", address).await];
    let mut third = from("127.0.0.2", address).await;
    third.write_all(b"h").await.unwrap();
    within(third.read_exact(&mut [0; 7])).await.expect("it may have three");
    let mut fourth = from("127.0.0.2", address).await;
    assert!(matches!(within(fourth.read(&mut [0])).await, Ok(0) | Err(_)), "it is one too many");
    assert_eq!(in_plaintext(address).await, "nobody", "another client is served");
    // Whoever leaves makes room again.
    drop(third);
    let again = async { while say(from("127.0.0.2", address).await).await != "nobody" {} };
    within(again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_limit_of_a_server_wait_for_their_turn() {
    let control = Embedded::start(Config::yaml(LEDGER), Options::default()).await.unwrap();
    let mut limits = Limits::default();
    limits.max_connections = 1;
    let (_mesh, address) = serve_with(&control, &limits).await;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(b"hello").await.unwrap();
    let mut said = [0; 12];
    within(first.read_exact(&mut said)).await.unwrap();
    let second = tokio::spawn(in_plaintext(address));
    // It is served by then, and the second one is not.
    within(first.write_all(b"!")).await.unwrap();
    within(first.read_exact(&mut [0])).await.unwrap();
    assert!(!second.is_finished());
    drop(first);
    assert_eq!(within(second).await.unwrap(), "nobody");
}

/// A mesh, and the lines of its access log.
fn logged(builder: MeshBuilder) -> (Mesh, mpsc::Receiver<String>) {
    let columns = "%REQ(:METHOD)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %CONNECTION_TERMINATION_DETAILS% %BYTES_RECEIVED% \
                   %BYTES_SENT% %UPSTREAM_CLUSTER% %UPSTREAM_HOST% %DOWNSTREAM_LOCAL_ADDRESS%";
    let (sender, lines) = mpsc::channel(64);
    let format = LogFormat::Text(LogText::parse(columns).unwrap());
    let mesh = builder.access_log_to(format, move |line: &str| _ = sender.try_send(line.trim_end().to_owned()));
    (mesh.start().unwrap(), lines)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_a_line_in_the_access_log_of_either_side() {
    const CLUSTER: &str = "outbound|7000||ledger.shop.svc.cluster.local";
    let yaml = format!("{LEDGER}---\n{}", mtls("DISABLE"));
    let control = Embedded::start(Config::yaml(yaml), Options::default().dev()).await.unwrap();
    let (teller, mut of_teller) = logged(builder(&control, "teller"));
    within(teller.connect("ledger.shop", 7000)).await.unwrap_err();
    assert_eq!(within(of_teller.recv()).await.unwrap(), format!("- - 0 UH - 0 0 {CLUSTER} - -"));

    let (ledger, mut of_ledger) = logged(builder(&control, "ledger"));
    let (_ledger, address) = serve_by(ledger, &Limits::default()).await;
    let said = within(async {
        loop {
            // Until the client knows where it is.
            if let Ok(stream) = teller.connect("ledger.shop", 7000).await {
                return say(stream).await;
            }
            of_teller.recv().await;
        }
    })
    .await;
    assert_eq!(said, "nobody");
    // "hello" there, and "nobody" and "hello" back, each with its end.
    assert_eq!(within(of_teller.recv()).await.unwrap(), format!("- - 0 - - 6 13 {CLUSTER} {address} -"));
    assert_eq!(within(of_ledger.recv()).await.unwrap(), format!("- - 0 - - 6 13 - - {address}"));

    control.set_yaml("policy.yaml", &policy("{}")).unwrap();
    within(async {
        loop {
            if let Ok(stream) = teller.connect("ledger.shop", 7000).await {
                say(stream).await;
            }
            let line = of_ledger.recv().await.unwrap();
            if line == format!("- - 0 - rbac_access_denied_matched_policy[none] 0 0 - - {address}") {
                return;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_connected_to_has_a_line_with_the_flag_that_says_why() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let source = Fixed::new().service("ledger:7000", [gone]);
    let (mesh, mut lines) = logged(Mesh::builder().source(source));
    for (host, flag) in [("ledger", "UF"), ("nobody", "NR")] {
        within(mesh.connect(host, 7000)).await.unwrap_err();
        let line = within(lines.recv()).await.unwrap();
        let flags = line.split(' ').nth(3).unwrap();
        assert!(flags.split(',').any(|one| one == flag), "{host}: {line}");
    }
}
