//! Fetches from a server of HTTPS of the test's own, which answers with whatever bytes it is told.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Fetcher, KeyFetching};
use crate::policy::tokens::KeySource;

const KEY: &str = r#"{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
const LIMIT: Duration = Duration::from_secs(30);

/// A server, by path the bytes of its answers. A body without an end is one that never comes.
struct Server {
    address: SocketAddr,
    roots: tempfile::NamedTempFile,
    asked: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(answers: impl FnOnce(SocketAddr) -> Vec<(&'static str, Vec<u8>)>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let answers: Arc<HashMap<_, _>> = Arc::new(answers(address).into_iter().collect());
        let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let roots = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&roots, own.cert.pem()).expect("written");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = config.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
        let config = config.with_single_cert(vec![own.cert.der().clone()], key).expect("a key pair");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answers, count) = (acceptor.clone(), Arc::clone(&answers), Arc::clone(&count));
                connections.spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or_default();
                    if let Some(answer) = answers.get(path) {
                        let _ = stream.write_all(answer).await;
                    }
                    if path.contains("slow") {
                        std::future::pending::<()>().await;
                    }
                    let _ = stream.shutdown().await;
                });
            }
        });
        Server { address, roots, asked, _tasks: tasks }
    }

    fn fetcher(&self) -> Fetcher {
        let only_this: fn(IpAddr) -> _ = |ip| if ip.is_loopback() { Ok(()) } else { crate::fetch::guard::check(ip) };
        Fetcher::new(&KeyFetching::default().roots(self.roots.path())).with_guard(only_this)
    }

    fn uri(&self, path: &str) -> KeySource {
        KeySource::Uri(format!("https://localhost:{}{path}", self.address.port()))
    }

    async fn fetch(&self, path: &str) -> Result<usize, String> {
        self.fetcher().fetch(&self.uri(path), LIMIT).await.map(|set| set.keys().len())
    }
}

fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into()
}

fn to(place: &str) -> Vec<u8> {
    format!("HTTP/1.1 302 Found\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n").into()
}

#[tokio::test]
async fn keys_are_fetched_by_uri_and_by_discovery() {
    let keys = format!("{{\"keys\": [{KEY}]}}");
    let server = Server::start(|address| {
        let at = |path: &str| format!("https://localhost:{}{path}", address.port());
        let document = |issuer: &str, uri: &str| ok(&format!(r#"{{"issuer": "{issuer}", "jwks_uri": "{uri}"}}"#));
        vec![
            ("/keys", ok(&keys)),
            ("/moved", to(&at("/moved-again"))),
            ("/moved-again", to("/keys")),
            ("/realm/.well-known/openid-configuration", document(&at("/realm"), &at("/keys"))),
            ("/other/.well-known/openid-configuration", document(&at("/realm"), &at("/keys"))),
            ("/half/.well-known/openid-configuration", ok(&format!(r#"{{"issuer": "{}"}}"#, at("/half")))),
        ]
    })
    .await;
    assert_eq!(server.fetch("/keys").await, Ok(1));
    assert_eq!(server.fetch("/moved").await, Ok(1));
    let discovered = |path: &'static str| {
        let KeySource::Uri(issuer) = server.uri(path) else { unreachable!() };
        let fetcher = server.fetcher();
        async move { fetcher.fetch(&KeySource::Discovery(issuer), LIMIT).await.map(|set| set.keys().len()) }
    };
    assert_eq!(discovered("/realm").await, Ok(1));
    let why = discovered("/other").await.unwrap_err();
    assert!(why.contains("the discovery document of") && why.contains("/realm"), "{why}");
    assert!(discovered("/half").await.unwrap_err().contains("has no \"jwks_uri\""));
}

/// Hazards J8 and J10.
#[tokio::test]
async fn j8_j10_what_is_wrong_with_a_server_of_keys_is_a_reason_and_never_half_a_set() {
    let keys = format!("{{\"keys\": [{KEY}]}}");
    let server = Server::start(|address| {
        let large = format!("{}{}", keys, " ".repeat(1 << 20));
        vec![
            ("/fails", b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".to_vec()),
            ("/large", ok(&large)),
            // Of a length that it does not tell.
            ("/endless", format!("HTTP/1.1 200 OK\r\n\r\n{large}").into()),
            ("/short", format!("HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n{}", keys).into()),
            ("/slow", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"keys\"".to_vec()),
            ("/gzip", b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}".to_vec()),
            ("/html", ok("<html>")),
            ("/none", ok("{\"keys\": []}")),
            ("/many", ok(&format!("{{\"keys\": [{}]}}", vec![KEY; 65].join(",")))),
            ("/round", to("/round")),
            ("/metadata", to("https://169.254.169.254/latest")),
            ("/mapped", to("https://[::ffff:a9fe:a9fe]/latest")),
            ("/plain", to(&format!("http://localhost:{}/keys", address.port()))),
            ("/file", to("file:///etc/passwd")),
            ("/nowhere", to("")),
            ("/keys", ok(&keys)),
        ]
    })
    .await;
    for (path, expected) in [
        ("/fails", "answered 500"),
        ("/large", "more than 1048576 bytes"),
        ("/endless", "more than 1048576 bytes"),
        ("/short", "the body ended early"),
        ("/gzip", "is encoded"),
        ("/html", "no JSON"),
        ("/none", "it has none"),
        ("/many", "more than 64 keys"),
        ("/round", "more than 3 redirects"),
        ("/metadata", "169.254.169.254, a link-local address"),
        ("/mapped", "a link-local address"),
        ("/plain", "only https:// is fetched"),
        ("/file", "which is no URL"),
        ("/nowhere", "which is no URL"),
    ] {
        let why = server.fetch(path).await.unwrap_err();
        assert!(why.contains(expected) && why.contains("localhost") | why.contains("://"), "{path}: {why}");
    }
    let slow = server.fetcher().fetch(&server.uri("/slow"), Duration::from_millis(300)).await.map(|_| ());
    assert!(slow.unwrap_err().contains("did not answer within 300ms"));
    // The own machine is asked only where that is allowed; and a server that nobody vouches for, never.
    let asked = server.asked.load(Ordering::SeqCst);
    let strict = Fetcher::new(&KeyFetching::default().roots(server.roots.path()));
    for host in ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "127.1"] {
        let source = KeySource::Uri(format!("https://{host}:{}/keys", server.address.port()));
        let why = strict.fetch(&source, LIMIT).await.map(|_| ()).unwrap_err();
        assert!(why.contains("a loopback address") || why.contains("cannot look up"), "{host}: {why}");
    }
    let other = tempfile::NamedTempFile::new().expect("a file");
    let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    std::fs::write(&other, certificate.cert.pem()).expect("written");
    let loose = KeyFetching::default().allow_insecure(true);
    let untrusted = Fetcher::new(&loose.clone().roots(other.path()));
    assert!(untrusted.fetch(&server.uri("/keys"), LIMIT).await.map(|_| ()).unwrap_err().contains("TLS"));
    assert_eq!(server.asked.load(Ordering::SeqCst), asked, "nobody got as far as to ask");
    let fetched = Fetcher::new(&loose.roots(server.roots.path())).fetch(&server.uri("/keys"), LIMIT).await;
    assert!(fetched.is_ok(), "the flag is for development");
    for wrong in ["https://", "keys", "https://user@localhost/keys", "ftp://localhost/keys"] {
        assert!(server.fetcher().fetch(&KeySource::Uri(wrong.to_owned()), LIMIT).await.is_err(), "{wrong}");
    }
}
