//! Calls that leave the mesh: the examples of `docs/egress.md`, from YAML to servers over sockets.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::xds::{Bootstrap, Resolver};
use mesh_tower::Mesh;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::tls_support::{ANY, Authority, Foreign, HOST, Pair, ask_over_connector, control, example, mesh, tls};

/// Generous: it only bounds a test that fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory in the place of `/etc/egress`.
fn files(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

async fn get(mesh: &Mesh, uri: &str) -> Result<(u16, String), MeshError> {
    use http_body_util::BodyExt;
    let response = mesh.client().get(uri).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_described_is_called_and_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let app = axum::Router::new().fallback(async || "partner");
    tokio::spawn(async move { axum::serve(listener, app).await });
    let control = control(&example("registry-only.yaml", &[("8080", &port.to_string())])).await;
    let mesh = mesh(&control);
    assert_eq!(get(&mesh, "http://partner.example.com/").await.unwrap(), (200, "partner".to_owned()));
    let refused = |error: MeshError| {
        assert!(format!("{error:#}").contains("REGISTRY_ONLY"), "{error:#}");
        assert_eq!(error.kind().response_flags().to_string(), "NR");
        error.kind()
    };
    // What listens there is not asked.
    let other = format!("127.0.0.1:{port}");
    for uri in [format!("http://{other}/"), "http://api.example.com/".to_owned()] {
        let error = get(&mesh, &uri).await.unwrap_err();
        assert_eq!(refused(error), ErrorKind::UnknownTarget, "{uri}");
    }
    let connect = http::Request::connect(other.as_str()).body(mesh_tower::body::Body::empty()).unwrap();
    assert_eq!(refused(mesh.client().request(connect).await.unwrap_err()), ErrorKind::UnknownTarget);
    let error = mesh.connect("127.0.0.1", port).await.unwrap_err();
    assert_eq!(refused(error), ErrorKind::UnknownTarget);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_begins_in_the_process_by_files_and_the_server_proves_its_name() {
    let authority = Authority::named("outside");
    let own = authority.leaf(&["client"]);
    let dir = files(&[("ca.pem", &authority.pem), ("client.pem", &own.chain), ("client.key", &own.key)]);
    let at = dir.path().display().to_string();
    let server = Foreign::start(tls(&authority.leaf(&[HOST]), Some(&authority), ANY)).await;
    let port = format!("targetPort: {}", server.port);
    let entry = |example: String| example.split("---\n").next().unwrap().to_owned();
    let words: &[(&str, &str)] = &[("targetPort: 443", &port), ("/etc/egress", &at)];
    let simple = example("origination.yaml", words);
    let mutual = format!("{}---\n{}", entry(simple.clone()), example("mutual.yaml", &[("/etc/egress", &at)]));
    let control = control(&mutual).await;
    let seen = get(&mesh(&control), &format!("http://{HOST}/")).await.unwrap();
    assert!(seen.1.contains("sni=api.example.com") && seen.1.contains("certificate=true"), "{seen:?}");
    let over = ask_over_connector(&mesh(&control), HOST).await.unwrap();
    assert!(over.contains("certificate=true"), "{over}");
    // Who wants no certificate is shown none; who is somebody else is asked for nothing.
    server.set(tls(&authority.leaf(&[HOST]), None, ANY));
    let control = crate::tls_support::control(&simple).await;
    let seen = get(&mesh(&control), &format!("http://{HOST}/")).await.unwrap();
    assert!(seen.1.contains("sni=api.example.com") && seen.1.contains("certificate=false"), "{seen:?}");
    server.set(tls(&authority.leaf(&["other.example.com"]), None, ANY));
    let requests = *server.requests.borrow();
    let error = get(&mesh(&control), &format!("http://{HOST}/")).await.unwrap_err();
    assert!(format!("{error:#}").contains("not that of api.example.com"), "{error:#}");
    assert_eq!(*server.requests.borrow(), requests);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_of_a_wildcard_is_looked_up_when_it_is_called_and_proves_its_own_name() {
    let authority = Authority::named("outside");
    let dir = files(&[("ca.pem", &authority.pem)]);
    let server = Foreign::start(tls(&authority.leaf(&["a.cloud.example.com"]), None, ANY)).await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let names = Arc::clone(&asked);
    let resolver = Resolver::new(move |name: &str| {
        names.lock().unwrap().push(name.to_owned());
        async { Ok(vec![[127, 0, 0, 1].into()]) }
    });
    let port = format!("number: {}", server.port);
    let at = dir.path().display().to_string();
    let control = control(&example("wildcard.yaml", &[("number: 443", &port), ("/etc/egress", &at)])).await;
    let source = control.source(Bootstrap::new("embedded").node_id("caller-1")).resolver(resolver);
    let mesh = Mesh::builder().source(source).start().unwrap();
    let uri = |host: &str| format!("http://{host}:{}/", server.port);
    let (status, seen) = get(&mesh, &uri("a.cloud.example.com")).await.unwrap();
    assert!(status == 200 && seen.contains("sni=a.cloud.example.com"), "{seen}");
    let error = get(&mesh, &uri("b.cloud.example.com")).await.unwrap_err();
    assert!(format!("{error:#}").contains("not that of b.cloud.example.com"), "{error:#}");
    let over = ask_over_connector(&mesh, &format!("a.cloud.example.com:{}", server.port)).await.unwrap();
    assert!(over.contains("sni=a.cloud.example.com"), "{over}");
    let names = asked.lock().unwrap().clone();
    assert!(names.iter().all(|name| name.ends_with(".cloud.example.com") && !name.contains('*')), "{names:?}");
}

/// A Secret with what a client shows, and whom it trusts, as the page has it.
fn secret(own: &Pair, trusted: &Authority) -> String {
    let quoted = |key: &str, pem: &str| format!("{key}: {pem:?}");
    example(
        "secret.yaml",
        &[
            ("kubernetes.io/tls\ndata:", "kubernetes.io/tls\nstringData:"),
            ("tls.crt: CERTIFICATE", &quoted("tls.crt", &own.chain)),
            ("tls.key: KEY", &quoted("tls.key", &own.key)),
            ("ca.crt: AUTHORITY", &quoted("ca.crt", &trusted.pem)),
        ],
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_shows_the_certificate_of_a_secret_and_trusts_whom_that_says_where_a_rule_is_for_it() {
    let (outside, clients) = (Authority::named("outside"), Authority::named("clients"));
    let own = clients.leaf(&["client"]);
    let server = Foreign::start(tls(&outside.leaf(&[HOST]), Some(&clients), ANY)).await;
    let port = format!("targetPort: {}", server.port);
    let entry = example("origination.yaml", &[("targetPort: 443", &port)]).split("---\n").next().unwrap().to_owned();
    let good = format!("{entry}---\n{}", secret(&own, &outside));
    // Who says what it is is believed in development mode.
    let control = Embedded::start(Config::yaml(&good), Options::default().dev()).await.unwrap();
    let workload = |control: &Embedded, app: &str| {
        let bootstrap =
            Bootstrap::new("embedded").workload(app, "default", app, &[("app".into(), app.into())].into(), 1);
        Mesh::builder().source(control.source(bootstrap)).start().unwrap()
    };
    let shop = workload(&control, "shop");
    let seen = get(&shop, &format!("http://{HOST}/")).await.unwrap();
    assert!(seen.1.contains("sni=api.example.com") && seen.1.contains("certificate=true"), "{seen:?}");
    let over = ask_over_connector(&shop, HOST).await.unwrap();
    assert!(over.contains("certificate=true"), "{over}");
    let requests = *server.requests.borrow();
    let fails = async |mesh: &Mesh, why: &str| {
        let error = get(mesh, &format!("http://{HOST}/")).await.unwrap_err();
        assert!(format!("{error:#}").contains(why), "{why}: {error:#}");
    };
    // It is not for another one, and who has proven nothing is told nothing.
    fails(&workload(&control, "other"), "").await;
    let unproven = Embedded::start(Config::yaml(&good), Options::default()).await.unwrap();
    fails(&workload(&unproven, "shop"), "this secret is not there").await;
    // Whom another Secret trusts, or without a rule that says for whom it is, nobody is sent anything.
    let elsewhere = format!("{entry}---\n{}", secret(&own, &Authority::named("elsewhere")));
    control.set_yaml("config.yaml", &elsewhere).unwrap();
    fails(&workload(&control, "shop"), "no trusted authority has signed it").await;
    let selector = "workloadSelector: {matchLabels: {app: shop}}\n  exportTo: [.]";
    assert!(good.contains(selector));
    control.set_yaml("config.yaml", &good.replace(selector, "exportTo: ['*']")).unwrap();
    fails(&workload(&control, "shop"), "credentialName").await;
    assert_eq!(*server.requests.borrow(), requests);
}

/// What a proxy was asked for, and where it leads whoever asks for that.
struct Proxy {
    at: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

/// A proxy that answers with this, and leads to a server that says `hello` and then what it hears.
async fn proxy(answer: &'static str, tls: Option<tokio_rustls::rustls::ServerConfig>) -> Proxy {
    let behind = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = behind.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = behind.accept().await {
            tokio::spawn(async move {
                _ = stream.write_all(b"hello").await;
                let (mut reader, mut writer) = stream.split();
                _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, asked) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default());
    let (told, tls) = (Arc::clone(&asked), tls.map(|config| TlsAcceptor::from(Arc::new(config))));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (told, tls) = (Arc::clone(&told), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => lead(stream, answer, to, &told).await,
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => lead(stream, answer, to, &told).await,
                        Err(_) => told.lock().unwrap().push("no TLS".to_owned()),
                    },
                }
            });
        }
    });
    Proxy { at, asked }
}

async fn lead(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: &str,
    to: SocketAddr,
    told: &Mutex<Vec<String>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
        // Somebody who means something else.
        if !ASKED.as_bytes().starts_with(&head) {
            return;
        }
    }
    told.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
    let mut behind = TcpStream::connect(to).await.unwrap();
    // In one piece with what the server behind it says.
    let mut first = [0; 5];
    behind.read_exact(&mut first).await.unwrap();
    let is_led = answer.starts_with("HTTP/1.1 200");
    let all = [answer.as_bytes(), if is_led { &first } else { b"" }].concat();
    _ = stream.write_all(&all).await;
    _ = stream.flush().await;
    if is_led {
        _ = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
    }
}

async fn world(proxy: &Proxy, more: &str) -> (Embedded, Mesh) {
    let port = format!("protocol: TCP, targetPort: {}}}]\n  resolution: STATIC", proxy.at.port());
    let tunnel = "tunnel: {protocol: CONNECT";
    let words = [("protocol: TCP}]\n  resolution: STATIC", port.as_str()), (tunnel, &format!("{more}{tunnel}"))];
    let control = control(&example("tunnel.yaml", &words)).await;
    let source = control.source(Bootstrap::new("embedded").node_id("caller-1"));
    let mesh = Mesh::builder().source(source).metrics().start().unwrap();
    (control, mesh)
}

/// What a server says, and says back.
async fn spoken(mesh: &Mesh) -> Result<String, MeshError> {
    let talk = async {
        let mut stream = mesh.connect("db.example.com", 5432).await?;
        stream.write_all(b" there").await.unwrap();
        let mut said = [0; 11];
        stream.read_exact(&mut said).await.unwrap();
        Ok(String::from_utf8_lossy(&said).into_owned())
    };
    tokio::time::timeout(PATIENCE, talk).await.expect("in time")
}

const ASKED: &str = "CONNECT db.example.com:5432 HTTP/1.1\r\nHost: db.example.com:5432\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_goes_through_a_proxy_to_where_its_tunnel_leads_and_nothing_passes_where_it_refuses() {
    let open = proxy("HTTP/1.1 200 Connection established\r\n\r\n", None).await;
    let (_control, mesh) = world(&open, "").await;
    assert_eq!(spoken(&mesh).await.unwrap(), "hello there");
    assert_eq!(*open.asked.lock().unwrap(), [ASKED]);
    let counted = mesh.prometheus();
    let line = counted.lines().find(|line| line.starts_with("istio_tcp_connections_opened_total{"));
    assert!(line.is_some_and(|line| line.contains("destination_service=\"proxy.example.com\"")), "{counted}");
    // What the proxy does not want is an error that says what it answered, after as many tries as any connection has.
    let shut = proxy("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", None).await;
    let (_control, mesh) = world(&shut, "").await;
    let error = spoken(&mesh).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectFailure);
    let said = format!("{error:#}");
    assert!(said.contains("db.example.com:5432") && said.contains("answered 403"), "{said}");
    assert!(shut.asked.lock().unwrap().iter().all(|asked| asked == ASKED));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_asked_over_tls_where_a_rule_wants_that_and_never_in_plaintext() {
    let authority = Authority::named("outside");
    let dir = files(&[("ca.pem", &authority.pem)]);
    let by_tls = |path: &Path| format!("tls: {{mode: SIMPLE, caCertificates: {}}}, ", path.join("ca.pem").display());
    let answer = "HTTP/1.1 200 OK\r\n\r\n";
    let mut config = tls(&authority.leaf(&["proxy.example.com"]), None, ANY);
    config.alpn_protocols.clear();
    let secured = proxy(answer, Some(config)).await;
    let (_control, mesh) = world(&secured, &by_tls(dir.path())).await;
    assert_eq!(spoken(&mesh).await.unwrap(), "hello there");
    assert_eq!(*secured.asked.lock().unwrap(), [ASKED]);
    let plain = proxy(answer, None).await;
    let (_control, mesh) = world(&plain, &by_tls(dir.path())).await;
    assert!(spoken(&mesh).await.is_err());
    assert!(plain.asked.lock().unwrap().is_empty(), "nothing but a handshake");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_cannot_be_made_is_no_way_around_it() {
    // By POST it is not asked, and not without either.
    let open = proxy("HTTP/1.1 200 OK\r\n\r\n", None).await;
    let port = format!("protocol: TCP, targetPort: {}}}]\n  resolution: STATIC", open.at.port());
    let words = [("protocol: TCP}]\n  resolution: STATIC", port.as_str()), ("protocol: CONNECT", "protocol: POST")];
    let control = control(&example("tunnel.yaml", &words)).await;
    let error = spoken(&mesh(&control)).await.unwrap_err();
    assert!(open.asked.lock().unwrap().is_empty(), "{error:#}");
    let found = mesh_control::analysis::validate([("t.yaml", example("tunnel.yaml", &words[1..]).as_str())]);
    assert!(found.iter().any(|one| one.to_string().contains("tunnel.protocol")), "{found:?}");
}
