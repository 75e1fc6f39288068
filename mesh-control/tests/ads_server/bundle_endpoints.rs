//! Endpoints of bundles (SPIFFE Federation): what is fetched from others, and what others fetch here.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_core::tls::SpiffeBundle;
use rcgen::SanType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::federation::{A, B, Realm, WEB, abroad, becomes, get, json_of, put};
use crate::process::{output, page, text};
use crate::renewal::serve;
use crate::secured::Authority;
use crate::support::{PATIENCE, until};

/// A server of the web at `localhost` that answers every request with what it is told to.
struct Web {
    url: String,
    answer: Arc<Mutex<String>>,
    _serving: JoinSet<()>,
}

impl Web {
    async fn start(authority: &Authority) -> Web {
        let (_, key, certificate) = authority.issue(SanType::DnsName("localhost".try_into().unwrap()));
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate], key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/of/b.json", listener.local_addr().unwrap().port());
        let answer = Arc::new(Mutex::new(String::new()));
        let (mut serving, answers) = (JoinSet::new(), Arc::clone(&answer));
        serving.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {}
                let answer = match answers.lock().unwrap().clone() {
                    answer if head.starts_with(b"GET /of/b.json HTTP/1.1\r\n") => answer,
                    _ => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
                };
                _ = stream.write_all(answer.as_bytes()).await;
                _ = stream.shutdown().await;
            }
        });
        Web { url, answer, _serving: serving }
    }

    fn says(&self, bundle: &str) {
        self.answers(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{bundle}", bundle.len()));
    }

    fn answers(&self, answer: &str) {
        answer.clone_into(&mut self.answer.lock().unwrap());
    }
}

/// A bundle that wants to be looked at every second.
fn bundle(root: &Authority, sequence: u64) -> String {
    json_of(root, sequence).replace("\"spiffe_refresh_hint\": 60", "\"spiffe_refresh_hint\": 1")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_fetched_by_https_web_again_and_again_and_nothing_that_is_wrong_takes_its_place() {
    let (root_a, root_b, other, public) =
        (Authority::signing(), Authority::signing(), Authority::signing(), Authority::signing());
    let files = tempfile::tempdir().unwrap();
    let (of_a, system) = (files.path().join("a.pem"), files.path().join("system.pem"));
    put(&of_a, &root_a.0.pem());
    put(&system, &public.0.pem());
    let b = Realm::with(B, &root_b, WEB, &["--trust-bundle", &format!("{A}={}", of_a.display())]);
    let web = b.workload("web");
    let port = serve(&web).await.port();
    let endpoint = Web::start(&public).await;
    endpoint.says(&bundle(&root_b, 7));
    let option = format!("{B}={}", endpoint.url);
    let option = ["--trust-bundle-web", &option, "--trust-bundle-roots", system.to_str().unwrap()];
    let services = abroad(port, &format!("spiffe://{B}/ns/shop/sa/web"));
    let a = Realm::with(A, &root_a, &services, &option);
    let ready = |a: &Realm| page(a.control.status, "/ready");
    let caller = a.workload("caller");
    becomes(&caller, Result::is_ok).await;
    let trusted = a.trusted();
    assert_eq!((&trusted["source"], &trusted["sequence"]), (&(&*endpoint.url).into(), &7.into()), "{trusted}");

    let redirect = |to: &str| format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
    let ok = |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    for (answer, why) in [
        (ok("<html>"), "there is no certificate in it"),
        (ok("{\"keys\": 1}"), "keys"),
        // It would name workloads of the mesh itself.
        (ok(&bundle(&root_a, 8)), "one of the mesh, too"),
        // An older one does not come back.
        (ok(&bundle(&other, 6)), "spiffe_sequence, 6, is smaller than"),
        (redirect(&endpoint.url.replace("https", "http")), "only https:// is fetched"),
        (redirect("https://me@localhost/b.json"), "no host, or more than that"),
        (redirect("https://169.254.169.254/b.json"), "a link-local address"),
        ("HTTP/1.1 404 Gone\r\ncontent-length: 0\r\n\r\n".to_owned(), "answered 404"),
    ] {
        endpoint.answers(&answer);
        until(why, || ready(&a).contains(why) && ready(&a).contains("those that it had before")).await;
        assert!(ready(&a).contains("200 OK"), "{}", ready(&a));
        assert!(get(&caller).await.is_ok(), "the last good one is in force: {why}");
    }
    // The last good one stays over a restart, and nothing older takes its place then either.
    endpoint.says(&bundle(&other, 6));
    let a = a.again(&option);
    until("it is told", || ready(&a).contains("is smaller than")).await;
    assert_eq!(a.trusted()["sequence"], 7);
    // A later one does, and one without keys revokes all.
    endpoint.says(&bundle(&other, 8));
    until("it counts", || a.trusted()["sequence"] == 8).await;
    endpoint.says("{\"keys\": [], \"spiffe_refresh_hint\": 1}");
    until("nobody is trusted", || ready(&a).contains("revoked all its roots")).await;
    assert_eq!(a.trusted()["roots"], 0);
    endpoint.says(&bundle(&root_b, 9));
    until("it counts", || a.trusted()["sequence"] == 9).await;
    // Nobody vouches for the endpoint: its bundle is not taken, and the last good one stays over a restart.
    put(&system, &root_a.0.pem());
    endpoint.says(&bundle(&other, 10));
    let a = a.again(&option);
    until("it is told", || ready(&a).contains("TLS: ") && ready(&a).contains("those that it had before")).await;
    assert_eq!((&a.trusted()["roots"], &a.trusted()["sequence"]), (&1.into(), &9.into()));
    let new = Realm::with(A, &root_a, WEB, &option);
    until("it is told", || ready(&new).contains("TLS: ") && ready(&new).contains("nobody of b.example")).await;
    assert_eq!(new.trusted()["roots"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_fetches_the_bundle_of_another_by_https_spiffe_from_the_workload_that_is_meant() {
    let (root_a, root_b, root_c) = (Authority::signing(), Authority::signing(), Authority::signing());
    let files = tempfile::tempdir().unwrap();
    let (of_a, of_b, of_c) = (files.path().join("a.pem"), files.path().join("b.json"), files.path().join("c.pem"));
    put(&of_a, &root_a.0.pem());
    put(&of_b, &json_of(&root_b, 7));
    put(&of_c, &root_c.0.pem());
    let first = format!("{B}={}", of_b.display());
    let trusts_a = format!("{A}={}", of_a.display());
    let b = Realm::with(B, &root_b, WEB, &["--trust-bundle", &trusts_a, "--bundle-addr", "127.0.0.1:0"]);
    let at_b = format!("https://{}/", b.control.bundle.unwrap());
    let web = b.workload("web");
    let port = serve(&web).await.port();
    let services = abroad(port, &format!("spiffe://{B}/ns/shop/sa/web"));
    let from = |server: &str, url: &str| format!("{B}={server}@{url}");
    let own = from("spiffe://b.example/mesh-control", &at_b);

    // Served by itself: the first bundle vouches for the endpoint, and what is fetched takes its place.
    let a = Realm::with(A, &root_a, &services, &["--trust-bundle", &first, "--trust-bundle-spiffe", &own]);
    until("it is fetched", || a.trusted()["sequence"].as_u64() > Some(1_000_000_000)).await;
    assert_eq!(a.trusted()["source"], *at_b);
    assert!(!page(a.control.status, "/ready").contains("trust bundle"));
    assert_eq!(get(&a.workload("caller")).await.as_deref(), Ok("spiffe://a.example/ns/shop/sa/caller"));

    // Somebody else of the same domain is not the one that is meant: the first bundle stays in force.
    let other = from("spiffe://b.example/other", &at_b);
    let a = Realm::with(A, &root_a, &services, &["--trust-bundle", &first, "--trust-bundle-spiffe", &other]);
    let ready = |realm: &Realm| page(realm.control.status, "/ready");
    until("it is told", || ready(&a).contains("the peer is spiffe://b.example/mesh-control")).await;
    assert_eq!(a.trusted()["sequence"], 7);
    // By another domain, whose own bundle vouches for it: what it serves is its own bundle, and no other domain's.
    let c = Realm::with("c.example", &root_c, WEB, &["--bundle-addr", "127.0.0.1:0"]);
    let at_c = format!("https://{}/", c.control.bundle.unwrap());
    let trusts_c = format!("c.example={}", of_c.display());
    let by_c = from("spiffe://c.example/mesh-control", &at_c);
    let a = Realm::with(A, &root_a, WEB, &["--trust-bundle", &trusts_c, "--trust-bundle-spiffe", &by_c]);
    until("it is told", || ready(&a).contains("a root in it is one of c.example, too")).await;
    assert!(ready(&a).contains("nobody of b.example is trusted"));
    // Who is at the address has the certificate of another domain.
    let wrong = from("spiffe://b.example/mesh-control", &at_c);
    let a = Realm::with(A, &root_a, WEB, &["--trust-bundle", &first, "--trust-bundle-spiffe", &wrong]);
    until("it is told", || ready(&a).contains("is not trusted")).await;
    assert_eq!(a.trusted()["sequence"], 7);
}

#[test]
fn an_endpoint_is_given_whole_or_the_server_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().to_str().unwrap();
    let spiffe = "b.example=spiffe://b.example/x@https://b/";
    for (more, why) in [
        (&["--trust-bundle-web", "b.example=http://b/"][..], "https:// alone"),
        (&["--trust-bundle-web", "b.example=https://me@b/"], "there is a user in it"),
        (&["--trust-bundle-web", "https://b/"], "invalid value"),
        (&["--trust-bundle-web", "cluster.local=https://b/"], "own trust domain"),
        (
            &["--trust-bundle-web", "b.example=https://b/", "--trust-bundle-web", "b.example=https://c/"],
            "two endpoints",
        ),
        (&["--trust-bundle-web", "b.example=https://b/", "--trust-bundle-spiffe", spiffe], "two endpoints"),
        (&["--trust-bundle-spiffe", "b.example=https://b/"], "SPIFFE-ID@URL"),
        (&["--trust-bundle-spiffe", "b.example=spiffe://b.example/x@http://b/"], "https:// alone"),
        // Nothing would vouch for the first one.
        (&["--trust-bundle-spiffe", spiffe], "a first bundle of b.example is needed"),
        (
            &["--trust-bundle-spiffe", "b.example=spiffe://c.example/x@https://b/"],
            "a first bundle of c.example is needed",
        ),
        (&["--bundle-addr", "127.0.0.1:0", "--bundle-cert", "cert.pem"], "--bundle-key"),
        (&["--bundle-addr", "0.0.0.0:0"], "--bundle-addr 0.0.0.0:0 is reachable"),
    ] {
        let addresses = ["--xds-addr", "127.0.0.1:0", "--status-addr", "127.0.0.1:0"];
        let refused = output(&[&["serve", "--config", config, "--dev"], &addresses[..], more].concat());
        let told = text(&refused.stderr);
        assert!(!refused.status.success() && told.contains(why), "{more:?}: {told}");
    }
}

/// Asks for a path by this version of TLS, and shows no certificate.
async fn ask(
    realm: &Realm,
    roots: &Authority,
    version: &'static SupportedProtocolVersion,
    path: &str,
) -> Option<(String, String)> {
    let mut store = RootCertStore::empty();
    store.add(roots.0.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = config.with_protocol_versions(&[version]).unwrap().with_root_certificates(store);
    let stream = TcpStream::connect(realm.control.bundle.unwrap()).await.unwrap();
    let name = ServerName::try_from("bundles.b.example").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config.with_no_client_auth())).connect(name, stream).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: bundles.b.example\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer.split_once("\r\n\r\n").map(|(head, body)| (head.to_owned(), body.to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bundle_of_a_mesh_is_served_to_whoever_asks_for_it_with_the_roots_of_its_moment() {
    let (root, public) = (Authority::signing(), Authority::signing());
    let files = tempfile::tempdir().unwrap();
    let (cert, key) = (files.path().join("cert.pem"), files.path().join("key.pem"));
    let issued = public.issue(SanType::DnsName("bundles.b.example".try_into().unwrap()));
    fs::write(&cert, issued.0).unwrap();
    fs::write(&key, issued.1.serialize_pem()).unwrap();
    let options = ["--bundle-addr", "127.0.0.1:0", "--bundle-cert", cert.to_str().unwrap()];
    let b = Realm::with(B, &root, WEB, &[&options[..], &["--bundle-key", key.to_str().unwrap()]].concat());
    for version in [&TLS12, &TLS13] {
        let (head, body) = ask(&b, &public, version, "/").await.expect("an answer");
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-type: application/json"), "{head}");
        let bundle = SpiffeBundle::from_json(body.as_bytes()).unwrap();
        assert_eq!(bundle.roots, [CertificateDer::from(root.0.der().to_vec())]);
        assert_eq!(bundle.refresh_hint, Some(Duration::from_secs(300)));
        assert!(bundle.sequence.is_some());
    }
    let (head, _) = ask(&b, &public, &TLS13, "/other").await.expect("an answer");
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    assert!(ask(&b, &root, &TLS13, "/").await.is_none(), "it shows the certificate of its name");
}
