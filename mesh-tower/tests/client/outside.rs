//! Hosts that no object describes: reached as if there were no mesh, or not at all, as the control plane is told
//! (Istio's `outboundTrafficPolicy`). `localhost` is such a host.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Empty};
use mesh_control::embedded::{Config, Embedded, Options, OutboundTrafficPolicy, PlaneOptions};
use mesh_core::error::ErrorKind;
use mesh_core::xds::Bootstrap;
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tower::{Layer, ServiceExt};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Answers every request. The requests have no body and are read in one piece.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {
        stream.write_all(ANSWER).await.unwrap();
    }
}

/// A server that knows nothing of any mesh, and counts its connections.
async fn outside() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(answer(stream));
        }
    });
    (port, connections)
}

async fn control(yaml: &str, policy: OutboundTrafficPolicy) -> Embedded {
    Embedded::start(
        Config::yaml(yaml),
        Options::default().plane(PlaneOptions::default().outbound_traffic_policy(policy)),
    )
    .await
    .unwrap()
}

fn mesh(control: &Embedded) -> Mesh {
    Mesh::builder().source(control.source(Bootstrap::new("embedded").node_id("caller-1"))).start().unwrap()
}

#[tokio::test]
async fn a_host_that_nothing_describes_is_reached_unless_the_policy_says_otherwise() {
    let (port, connections) = outside().await;
    let open = control("", OutboundTrafficPolicy::default()).await;
    for host in ["localhost", "127.0.0.1"] {
        let uri = format!("http://{host}:{port}/a?b");
        let response = mesh(&open).client().get(uri).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok", "{host}");
    }
    let before = connections.load(Ordering::SeqCst);
    let closed = control("", OutboundTrafficPolicy::RegistryOnly).await;
    let error = mesh(&closed).client().get(format!("http://localhost:{port}/")).await.unwrap_err();
    assert_eq!((error.kind(), error.kind().http_status()), (ErrorKind::UnknownTarget, http::StatusCode::BAD_GATEWAY));
    assert!(
        error.to_string().contains("no object describes it, and such hosts are not called (REGISTRY_ONLY)"),
        "{error}"
    );
    assert_eq!(connections.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn a_name_that_nobody_has_fails_with_what_the_look_up_says() {
    let control = control("", OutboundTrafficPolicy::AllowAny).await;
    let error = mesh(&control).client().get("http://no-such-host.invalid/").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectFailure);
    let said = format!("{error:#}");
    assert!(said.contains("allow_any") && said.contains("no-such-host.invalid:80"), "{said}");
}

#[tokio::test]
async fn a_name_never_passes_by_that_an_object_speaks_of_which_the_client_sees() {
    let (port, connections) = outside().await;
    let object = |kind: &str, meta: &str, spec: &str| {
        let group = if kind == "Service" { "v1" } else { "networking.istio.io/v1" };
        format!("apiVersion: {group}\nkind: {kind}\nmetadata: {{name: localhost{meta}}}\nspec: {spec}\n")
    };
    for described in [
        // Another port.
        object("Service", "", "{ports: [{name: http, port: 1}]}"),
        object(
            "ServiceEntry",
            ", namespace: other",
            "{hosts: [localhost], ports: [{name: http, number: 1, protocol: HTTP}], resolution: NONE}",
        ),
        object(
            "ServiceEntry",
            "",
            "{hosts: ['*.outside.invalid'], ports: [{name: http, number: 1, protocol: HTTP}], resolution: NONE}",
        ),
        // A rule says how to call it; to go on in plaintext without it would be to weaken it.
        object(
            "DestinationRule",
            ", namespace: other",
            "{host: localhost.default.svc.cluster.local, trafficPolicy: {tls: {mode: SIMPLE}}}",
        ),
    ] {
        let control = control(&described, OutboundTrafficPolicy::AllowAny).await;
        let host = if described.contains("outside.invalid") { "a.outside.invalid" } else { "localhost" };
        let error = mesh(&control).client().get(format!("http://{host}:{port}/")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownTarget, "{described}: {error:#}");
        assert_eq!(connections.load(Ordering::SeqCst), 0, "{described}");
    }
    // Nobody takes a host of the world away from those who do not see his object.
    let own =
        "{hosts: [localhost], exportTo: ['.'], ports: [{name: http, number: 1, protocol: HTTP}], resolution: NONE}";
    let control = control(&object("ServiceEntry", ", namespace: other", own), OutboundTrafficPolicy::AllowAny).await;
    assert_eq!(mesh(&control).client().get(format!("http://localhost:{port}/")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn nothing_passes_by_what_nobody_can_read_and_the_caller_is_told_why() {
    let (port, connections) = outside().await;
    let dir = tempfile::tempdir().unwrap();
    for wrong in [
        "kind: [",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec: {trafficPolicy: {}}\n",
    ] {
        std::fs::write(dir.path().join("a.yaml"), wrong).unwrap();
        let control = Embedded::start(Config::dir(dir.path()), Options::default()).await.unwrap();
        let error = mesh(&control).client().get(format!("http://localhost:{port}/")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownTarget, "{wrong}: {error:#}");
        assert!(format!("{error:#}").contains("a.yaml:"), "{wrong}: {error:#}");
        assert_eq!(connections.load(Ordering::SeqCst), 0, "{wrong}");
    }
    // Of whom this one speaks is known: of nobody else.
    let wrong = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\n\
                 spec: {hosts: [shop], http: [{match: [{uri: {regex: '('}}], directResponse: {status: 200}}]}\n";
    std::fs::write(dir.path().join("a.yaml"), wrong).unwrap();
    let control = Embedded::start(Config::dir(dir.path()), Options::default()).await.unwrap();
    assert_eq!(mesh(&control).client().get(format!("http://localhost:{port}/")).await.unwrap().status(), 200);
    assert_eq!(mesh(&control).client().get("http://shop/").await.unwrap().status(), 503);
}

#[tokio::test]
async fn a_host_that_is_described_later_follows_its_description() {
    let (port, _) = outside().await;
    let control = control("", OutboundTrafficPolicy::AllowAny).await;
    let client = mesh(&control).client();
    let uri = format!("http://localhost:{port}/");
    assert_eq!(client.get(&uri).await.unwrap().status(), 200);
    let rule = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: localhost}
spec: {hosts: [localhost], http: [{directResponse: {status: 418}}]}
";
    control.set_yaml("later.yaml", rule).unwrap();
    let followed = async {
        while client.get(&uri).await.unwrap().status() != 418 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), followed).await.expect("the rule is in force");
}

/// Whoever was given the listener of such a host must not keep it when the host is held back.
#[tokio::test]
async fn a_host_that_passed_by_is_not_called_any_more_once_it_is_held_back_and_passes_again_later() {
    let (port, _) = outside().await;
    let uri = format!("http://localhost:{port}/");
    let service = |name| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{name: http, port: 1}}]}}\n"
        )
    };
    for later in ["kind: [", &service("localhost")] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("later.yaml");
        std::fs::write(&file, "").unwrap();
        let control = Embedded::start(Config::dir(dir.path()), Options::default()).await.unwrap();
        let client = mesh(&control).client();
        assert_eq!(client.get(&uri).await.unwrap().status(), 200);
        std::fs::write(&file, later).unwrap();
        let held_back = async {
            loop {
                match client.get(&uri).await {
                    Ok(_) => tokio::task::yield_now().await,
                    Err(error) => return error,
                }
            }
        };
        let error = tokio::time::timeout(Duration::from_secs(20), held_back).await.expect(later);
        assert_eq!(error.kind(), ErrorKind::UnknownTarget, "{later}: {error:#}");
        // It had one connection, which was pooled: the next call must not find it.
        assert_eq!(client.get(&uri).await.unwrap_err().kind(), ErrorKind::UnknownTarget, "{later}");
        std::fs::write(&file, service("other")).unwrap();
        let passes = async {
            while client.get(&uri).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), passes).await.expect(later);
    }
}

/// A TLS server for `localhost`, and what trusts it.
async fn outside_with_tls() -> (u16, TlsConnector) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let server =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    answer(stream).await;
                }
            });
        }
    });
    let mut trusted = RootCertStore::empty();
    trusted.add(certificate).unwrap();
    let client = ClientConfig::builder().with_root_certificates(trusted).with_no_client_auth();
    (port, TlsConnector::from(Arc::new(client)))
}

#[tokio::test]
async fn https_to_such_a_host_is_the_application_s_own_tls_over_a_connection_of_the_mesh() {
    let (port, tls) = outside_with_tls().await;
    let control = control("", OutboundTrafficPolicy::AllowAny).await;
    let uri: Uri = format!("https://localhost:{port}/").parse().unwrap();
    // What hyper-rustls does with the connector below it.
    let stream = mesh(&control).connector().under_tls().oneshot(uri).await.unwrap();
    let stream = hyper_util::rt::TokioIo::new(stream);
    let mut stream = tls.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = vec![0; ANSWER.len()];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, ANSWER);
}

#[tokio::test]
async fn https_to_such_a_host_goes_through_the_layer_to_a_client_that_speaks_tls_and_to_no_other_host() {
    let yaml = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{name: http, port: 443}]}\n";
    let control = control(yaml, OutboundTrafficPolicy::AllowAny).await;
    let seen = Arc::<Mutex<Vec<(Uri, String)>>>::default();
    let log = Arc::clone(&seen);
    // It stands for a client that speaks TLS, and sends where it is told.
    let inner = tower::service_fn(move |request: Request<Body>| {
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        log.lock().unwrap().push((request.uri().clone(), host));
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    });
    let client = mesh(&control).client_layer().layer(inner);
    let get = |uri: &str| client.clone().oneshot(Request::get(uri).body(Body::empty()).unwrap());
    assert_eq!(get("https://outside.example/a?b=c").await.unwrap().status(), 200);
    let (uri, host) = seen.lock().unwrap().pop().unwrap();
    assert_eq!((uri.scheme_str(), uri.host(), uri.port_u16()), (Some("https"), Some("outside.example"), Some(443)));
    assert_eq!((uri.path(), uri.query(), host.as_str()), ("/a", Some("b=c"), "outside.example"));
    let error = get("https://web/").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Security);
    assert!(seen.lock().unwrap().is_empty(), "nothing went out in plaintext");
}

#[tokio::test]
async fn a_client_that_speaks_plaintext_says_what_to_use_for_https() {
    let control = control("", OutboundTrafficPolicy::AllowAny).await;
    let mesh = mesh(&control);
    let error = mesh.client().get("https://outside.example/").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Security);
    let said = error.to_string();
    assert!(said.contains("mesh.client_layer()") && said.contains("mesh.connector().under_tls()"), "{said}");
    let uri = Uri::from_static("https://outside.example/");
    assert_eq!(mesh.connector().oneshot(uri).await.unwrap_err().kind(), ErrorKind::Security);
}

#[tokio::test]
async fn what_is_no_http_is_refused_as_explained() {
    let control = control("", OutboundTrafficPolicy::AllowAny).await;
    let mesh = mesh(&control);
    for uri in ["ftp://outside.example/", "ws://outside.example/"] {
        let request = http::Request::get(uri).body(()).unwrap();
        let explained = mesh.explain(&request).await.unwrap_err();
        let error = mesh.client().get(uri).await.unwrap_err();
        assert_eq!((error.kind(), explained.kind()), (ErrorKind::BadRequest, ErrorKind::BadRequest), "{error}");
        assert!(error.to_string().contains("is no scheme of the mesh"), "{error}");
    }
}

#[tokio::test]
async fn an_http2_request_goes_out_as_http2() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let app = axum::Router::new()
        .fallback(|request: axum::extract::Request| async move { format!("{:?}", request.version()) });
    tokio::spawn(async move { axum::serve(listener, app).await });
    let control = control("", OutboundTrafficPolicy::AllowAny).await;
    let client = mesh(&control).client();
    for (version, said) in [(http::Version::HTTP_11, "HTTP/1.1"), (http::Version::HTTP_2, "HTTP/2.0")] {
        let request = Request::get(format!("http://{address}/")).version(version).body(Body::empty()).unwrap();
        let response = client.request(request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), said);
    }
}

#[tokio::test]
async fn an_alias_of_a_host_that_nothing_describes_is_as_unknown_as_that_host() {
    let (port, connections) = outside().await;
    let alias = |name: &str, of: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: ExternalName, externalName: {of}}}\n"
        )
    };
    let described = "apiVersion: v1\nkind: Service\nmetadata: {name: known}\nspec: {ports: [{name: http, port: 80}]}\n";
    let inside = alias("inside", "known.default.svc.cluster.local");
    let yaml = [alias("alias", "localhost"), inside, described.to_owned()].join("---\n");
    let open = control(&yaml, OutboundTrafficPolicy::AllowAny).await;
    let response = mesh(&open).client().get(format!("http://alias:{port}/")).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    let before = connections.load(Ordering::SeqCst);

    let closed = control(&yaml, OutboundTrafficPolicy::RegistryOnly).await;
    // The alias is known, so that it can be said why it leads nowhere.
    let response = mesh(&closed).client().get(format!("http://alias:{port}/")).await.unwrap();
    assert_eq!(response.status(), 503);
    let said = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&said).contains("localhost"), "{said:?}");
    let error = mesh(&closed).client().get("http://inside:81/").await.unwrap_err();
    assert_eq!((error.kind(), error.kind().http_status().as_u16()), (ErrorKind::UnknownTarget, 502));
    assert!(format!("{error:#}").contains("which has no port 81, it has port 80"), "{error:#}");
    assert_eq!(connections.load(Ordering::SeqCst), before);
}
