//! What the program calls: by the proxy, and by ports that are services.

use std::sync::Mutex;

use axum::Router;
use axum::extract::Request;
use axum::routing::{any, get};
use hyper_util::rt::TokioIo;
use mesh_tower::server::{self, ConnectionInfo};
use tower_layer::Layer;

use super::*;

/// A service `other` of the mesh, which answers with who called and what it was asked.
async fn other(control: &Embedded) -> Mesh {
    let mesh = mesh(control, "other").start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let echo = |request: Request| async move {
        let peer = ConnectionInfo::current().and_then(|it| it.peer_identity().map(ToString::to_string));
        let names = request.headers().keys().map(|name| name.as_str()).collect::<Vec<_>>().join(",");
        let host = request.headers().get("host").map(|host| host.to_str().unwrap().to_owned());
        let host = host.or(request.uri().authority().map(ToString::to_string)).unwrap_or_default();
        format!("{} {host}{} {names} {}", request.method(), request.uri().path(), peer.unwrap_or_default())
    };
    let app = Router::new().fallback(any(echo));
    tokio::spawn(server::serve(listener, mesh.server_layer().layer(app)).into_future());
    within(mesh.serving()).await.unwrap();
    mesh
}

const SHOP: &str = "spiffe://cluster.local/ns/default/sa/shop";

async fn shop(control: &Embedded, options: &[&str]) -> (Sidecar, SocketAddr) {
    let mut sidecar = Sidecar::start(control, "shop", options, "sleep 1000");
    let proxy = sidecar.proxy().await;
    (sidecar, proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_with_a_whole_url_are_sent_in_the_programs_name_without_what_is_of_the_connection() {
    let control = control("").await;
    let _other = other(&control).await;
    let (_sidecar, proxy) = shop(&control, &[]).await;
    let answer = exchange(
        proxy,
        "GET http://other/a HTTP/1.1\r\nhost: evil.example\r\nproxy-authorization: Basic eDp5\r\nproxy-connection: keep-alive\r\n\
         x-secret: 1\r\nx-envoy-retry-on: 5xx\r\nx-forwarded-client-cert: By=x\r\nconnection: close, x-secret\r\n\r\n",
    )
    .await;
    assert_eq!(status(&answer), "200", "{answer}");
    let body = answer.split("\r\n\r\n").nth(1).unwrap();
    // The target is the host, whatever `Host` says.
    assert!(body.starts_with("GET other/a "), "{body}");
    assert!(body.ends_with(SHOP), "{body}");
    for taken in ["proxy-", "connection", "x-secret", "x-envoy-retry-on", "x-forwarded-client-cert"] {
        assert!(!body.contains(taken), "{taken}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_two_meanings_or_is_no_request_for_a_proxy_is_refused() {
    let control = control("").await;
    let (_sidecar, proxy) = shop(&control, &[]).await;
    let cases = [
        ("GET / HTTP/1.1\r\nhost: other\r\n", "400"),
        ("GET https://other/ HTTP/1.1\r\nhost: other\r\n", "400"),
        ("GET http://user@other/ HTTP/1.1\r\nhost: other\r\n", "400"),
        ("GET http://other/ HTTP/1.1\r\n", "400"),
        ("GET http://other/ HTTP/1.1\r\nhost: other\r\nhost: other\r\n", "400"),
        ("CONNECT other HTTP/1.1\r\nhost: other\r\n", "400"),
        ("CONNECT http://other:80/ HTTP/1.1\r\nhost: other\r\n", "400"),
        ("GET other:80 HTTP/1.1\r\nhost: other\r\n", "400"),
        ("POST http://other/ HTTP/1.1\r\nhost: other\r\ncontent-length: 1\r\ncontent-length: 2\r\n", "400"),
        ("POST http://other/ HTTP/1.1\r\nhost: other\r\ncontent-length: +1\r\n", "400"),
        ("POST http://other/ HTTP/1.1\r\nhost: other\r\ntransfer-encoding: gzip, chunked\r\n", "400"),
        ("POST http://other/ HTTP/1.1\r\nhost: other\r\ntransfer-encoding: identity\r\n", "400"),
        ("GET http://other/ HTTP/1.1\r\nhost: other\r\nconnection: close, host\r\n", "400"),
        ("POST http://other/ HTTP/1.1\r\nhost: other\r\ncontent-length: 0\r\nconnection: content-length\r\n", "400"),
        ("GET http://other/ HTTP/1.1\r\nhost: other\r\nx : y\r\n", "400"),
    ];
    for (head, expected) in cases {
        let answer = exchange(proxy, &format!("{head}connection: close\r\n\r\n")).await;
        assert_eq!(status(&answer), expected, "{head}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_could_end_in_two_places_is_one_request_and_no_second() {
    let control = control("").await;
    let _other = other(&control).await;
    let (_sidecar, proxy) = shop(&control, &[]).await;
    let hidden = "GET http://other/hidden HTTP/1.1\r\nhost: other\r\n\r\n";
    for frame in ["content-length: 5\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 60"]
    {
        let answer = exchange(
            proxy,
            &format!("POST http://other/a HTTP/1.1\r\nhost: other\r\n{frame}\r\n\r\n0\r\n\r\n{hidden}"),
        )
        .await;
        assert!(!answer.contains("hidden"), "{frame}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_does_not_call_itself() {
    let control = control("").await;
    // A port that is a service which is that port: names are this machine's.
    let own = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let bytes = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (http, tcp) = (format!("{own}=localhost:{own}"), format!("{bytes}=tcp://localhost:{bytes}"));
    let (_sidecar, proxy) = shop(&control, &["--listen", &http, "--listen", &tcp]).await;
    let port = proxy.port();
    for host in ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "127.0.0.2", "[::ffff:127.0.0.1]"] {
        let answer =
            exchange(proxy, &format!("GET http://{host}:{port}/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))
                .await;
        assert_eq!(status(&answer), "508", "{host}: {answer}");
        let answer =
            exchange(proxy, &format!("CONNECT {host}:{port} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(status(&answer), "508", "{host}: {answer}");
    }
    // A loop by way of the mesh comes back once.
    let answer =
        exchange(([127, 0, 0, 1], own).into(), "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert_eq!(status(&answer), "508", "{answer}");
    assert_eq!(exchange(([127, 0, 0, 1], bytes).into(), "hello").await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_of_bytes_whose_service_leads_back_to_it_makes_one_connection_and_no_more() {
    let bytes = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let control = control(&format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: back}}\nspec: {{hosts: [back.example], \
         ports: [{{number: 7000, name: tcp, protocol: TCP, targetPort: {bytes}}}], resolution: STATIC, endpoints: [{{address: 127.0.0.1}}]}}"
    ))
    .await;
    let tcp = format!("{bytes}=tcp://back.example:7000");
    let (mut sidecar, _) = shop(&control, &["--listen", &tcp]).await;
    for _ in 0..2 {
        assert_eq!(exchange(([127, 0, 0, 1], bytes).into(), "hello").await, "");
    }
    // The one that came back is closed, and so is the one that it came from: there is no third one.
    for _ in 0..2 {
        sidecar.says("the service leads back to this process").await;
    }
    sidecar.signal("TERM");
    while let Some(line) = within(sidecar.stderr.next_line()).await.unwrap() {
        assert!(!line.contains("the service leads back"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_is_a_connection_of_the_mesh_and_a_port_is_a_service() {
    let control = control("").await;
    let _other = other(&control).await;
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let bytes = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (http, tcp) = (format!("{port}=other:80"), format!("{bytes}=tcp://other:80"));
    let (_sidecar, proxy) = shop(&control, &["--listen", &http, "--listen", &tcp]).await;
    let request = "GET /in HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(b"CONNECT other:80 HTTP/1.1\r\nhost: other:80\r\n\r\n").await.unwrap();
    let head = within(head(&mut stream)).await.unwrap();
    assert_eq!(status(&head), "200", "{head}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.contains("GET localhost/in ") && answer.ends_with(SHOP), "{answer}");

    for (port, expected) in [(port, "GET other:80/in "), (bytes, "GET localhost/in ")] {
        let answer = exchange(([127, 0, 0, 1], port).into(), request).await;
        assert!(answer.contains(expected) && answer.ends_with(SHOP), "{answer}");
    }
    let answer = exchange(([127, 0, 0, 1], port).into(), &request.replace("localhost", "evil.example")).await;
    assert_eq!(status(&answer), "421", "{answer}");
}

/// A bank outside whose rule is by the name of its server, and an access log on stderr.
const BY_NAME: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: 'accessLogFile: /dev/stderr'}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: bank}
spec:
  hosts: [bank.example]
  location: MESH_EXTERNAL
  ports: [{number: 443, name: tls, protocol: TLS, targetPort: PORT}]
  resolution: STATIC
  endpoints: [{address: 127.0.0.1}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: bank}
spec:
  hosts: [bank.example]
  tls:
  - match: [{port: 443, sniHosts: [bank.example]}]
    route: [{destination: {host: bank.example, port: {number: 443}}}]
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connect_that_goes_by_a_rule_of_tls_is_one_line_of_the_access_log() {
    let bank = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = bank.local_addr().unwrap().port().to_string();
    let control = control(&BY_NAME.replace("PORT", &port)).await;
    let mut sidecar = Sidecar::start(&control, "shop", &[], "sleep 1000");
    let proxy = sidecar.proxy().await;
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(b"CONNECT bank.example:443 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let head = within(head(&mut stream)).await.unwrap();
    assert_eq!(status(&head), "200", "{head}");
    let (served, _) = within(bank.accept()).await.unwrap();
    drop((stream, served));
    // The first line is that of the connection, and no flag is in it.
    let line = sidecar.says("\"- - -\" 0 ").await;
    assert!(line.starts_with("- ") && line.contains("outbound|443||bank.example"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_a_port_of_bytes_the_server_may_speak_first() {
    let control = control("").await;
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let tcp = format!("{port}=tcp://{}", server.local_addr().unwrap());
    let (_sidecar, _) = shop(&control, &["--listen", &tcp]).await;
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut served, _) = within(server.accept()).await.unwrap();
    served.write_all(b"hello").await.unwrap();
    let mut greeting = [0; 5];
    within(client.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_nobody_describes_are_refused_where_the_mesh_says_so() {
    let outside = program(|_| ok("outside")).await;
    let settings = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: 'outboundTrafficPolicy: {mode: REGISTRY_ONLY}'}
";
    for (settings, status_of_get, status_of_connect) in [("", "200", "200"), (settings, "502", "502")] {
        let control = control(settings).await;
        let (_sidecar, proxy) = shop(&control, &[]).await;
        let answer =
            exchange(proxy, &format!("GET http://{outside}/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(status(&answer), status_of_get, "{answer}");
        let mut stream = TcpStream::connect(proxy).await.unwrap();
        let connect = format!("CONNECT {outside} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(connect.as_bytes()).await.unwrap();
        let head = within(head(&mut stream)).await.unwrap();
        assert_eq!(status(&head), status_of_connect, "{head}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_pass_as_they_come_and_an_upgrade_in_both_directions() {
    let control = control("").await;
    let mesh = mesh(&control, "other").start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let shout = |mut request: Request| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut upgraded = TokioIo::new(upgrade.await.unwrap());
            let mut two = [0; 2];
            upgraded.read_exact(&mut two).await.unwrap();
            upgraded.write_all(&two.to_ascii_uppercase()).await.unwrap();
        });
        let response =
            http::Response::builder().status(101).header("connection", "upgrade").header("upgrade", "websocket");
        response.body(axum::body::Body::empty()).unwrap()
    };
    // What of the body has come goes back before the rest is there.
    let back = |request: Request| async move { axum::body::Body::new(request.into_body()) };
    let app = Router::new().route("/shout", get(shout)).fallback(any(back));
    tokio::spawn(server::serve(listener, mesh.server_layer().layer(app)).into_future());
    within(mesh.serving()).await.unwrap();
    let (_sidecar, proxy) = shop(&control, &[]).await;

    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let upload =
        "POST http://other/ HTTP/1.1\r\nhost: other\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n";
    stream.write_all(upload.as_bytes()).await.unwrap();
    let go_on = within(head(&mut stream)).await.unwrap();
    assert_eq!(status(&go_on), "100", "{go_on}");
    stream.write_all(b"3\r\none\r\n").await.unwrap();
    let answered = within(head(&mut stream)).await.unwrap();
    assert_eq!(status(&answered), "200", "{answered}");
    let mut chunk = [0; 8];
    within(stream.read_exact(&mut chunk)).await.unwrap();
    assert_eq!(&chunk, b"3\r\none\r\n");
    stream.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.unwrap();
    let mut rest = [0; 13];
    within(stream.read_exact(&mut rest)).await.unwrap();
    assert_eq!(&rest, b"3\r\ntwo\r\n0\r\n\r\n");

    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let shout = "GET http://other/shout HTTP/1.1\r\nhost: other\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(shout.as_bytes()).await.unwrap();
    let head = within(head(&mut stream)).await.unwrap();
    assert_eq!(status(&head), "101", "{head}");
    stream.write_all(b"hi").await.unwrap();
    let mut louder = [0; 2];
    within(stream.read_exact(&mut louder)).await.unwrap();
    assert_eq!(&louder, b"HI");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_mesh_fails_is_tried_again_and_said_by_a_status() {
    let routes = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: other}
spec:
  hosts: [other]
  http:
  - {match: [{uri: {prefix: /again}}], retries: {attempts: 2, retryOn: 5xx}, route: [{destination: {host: other}}]}
  - {match: [{uri: {exact: /tea}}], directResponse: {status: 418, body: {string: tea}}}
  - {route: [{destination: {host: nobody}}]}
";
    let control = control(routes).await;
    let tries = Arc::new(Mutex::new(0));
    let mesh = mesh(&control, "other").start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let counted = Arc::clone(&tries);
    let fail_once = move || {
        let mut tries = counted.lock().unwrap();
        *tries += 1;
        std::future::ready(if *tries == 1 { http::StatusCode::SERVICE_UNAVAILABLE } else { http::StatusCode::OK })
    };
    let app = Router::new().fallback(any(fail_once));
    tokio::spawn(server::serve(listener, mesh.server_layer().layer(app)).into_future());
    within(mesh.serving()).await.unwrap();
    let (_sidecar, proxy) = shop(&control, &[]).await;
    for (path, expected) in [("/again", "200"), ("/tea", "418"), ("/nowhere", "503")] {
        let answer =
            exchange(proxy, &format!("GET http://other{path} HTTP/1.1\r\nhost: other\r\nconnection: close\r\n\r\n"))
                .await;
        assert_eq!(status(&answer), expected, "{path}: {answer}");
    }
    assert_eq!(*tries.lock().unwrap(), 2);
}
