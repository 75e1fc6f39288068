//! A server that knows nothing of any mesh, files for TLS with it, and the examples of how it is called.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::xds::Bootstrap;
use mesh_tower::Mesh;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};

pub const HOST: &str = "api.example.com";

const PAGE: &str = include_str!("../../../docs/egress.md");

/// An example of the page on calls that leave the mesh, with other words in the place of some.
pub fn example(name: &str, words: &[(&str, &str)]) -> String {
    let mut blocks = PAGE.split("```yaml\n").skip(1).filter_map(|block| block.split("```").next());
    let block = blocks.find(|block| block.starts_with(&format!("# {name}\n")));
    let mut text = block.unwrap_or_else(|| panic!("the page has no {name}")).to_owned();
    for (word, instead) in words {
        assert!(text.contains(word), "{name}: {word}");
        text = text.replace(word, instead);
    }
    text
}

/// An authority in memory.
pub struct Authority {
    pub issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate with its chain, and its key.
#[derive(Clone)]
pub struct Pair {
    pub chain: String,
    pub key: String,
}

impl Authority {
    pub fn named(name: &str) -> Self {
        let (params, key) = authority(name);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// An authority below this one.
    pub fn below(&self, name: &str, serial: u64) -> Self {
        let (mut params, key) = authority(name);
        params.serial_number = Some(serial.into());
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A leaf of these names.
    pub fn leaf(&self, names: &[&str]) -> Pair {
        self.leaf_with(names, |_| {})
    }

    pub fn leaf_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Pair { chain: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    /// Its list of revoked certificates, which holds for so many hours from now on.
    pub fn revoked(&self, serials: &[u64], hours: i64) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now - Duration::from_secs(60),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now - Duration::from_secs(48 * 3600),
            next_update: now + time::Duration::hours(hours),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn authority(name: &str) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params, KeyPair::generate().unwrap())
}

/// How the server shakes hands: with this, asking for certificates of that authority.
pub fn tls(pair: &Pair, clients: Option<&Authority>, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions).unwrap();
    let config = match clients {
        None => config.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            config.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let chain = CertificateDer::pem_slice_iter(pair.chain.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let mut config = config.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

pub const ANY: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
pub const OLD: &[&SupportedProtocolVersion] = &[&TLS12];

/// A TLS server. It answers what it saw: SNI, ALPN, version, whether the client showed a certificate, and the authority.
pub struct Foreign {
    pub port: u16,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    /// How many requests came, and how many connections there are.
    pub requests: watch::Receiver<usize>,
    pub connections: watch::Receiver<usize>,
}

impl Foreign {
    pub async fn start(config: ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = Arc::new(Mutex::new(Arc::new(config)));
        let (counted, requests) = watch::channel(0);
        let (open, connections) = watch::channel(0);
        let (own, counted, open) = (Arc::clone(&config), Arc::new(counted), Arc::new(open));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = TlsAcceptor::from(own.lock().unwrap().clone());
                let (counted, open) = (Arc::clone(&counted), Arc::clone(&open));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    open.send_modify(|count| *count += 1);
                    _ = serve(stream, &counted).await;
                    open.send_modify(|count| *count -= 1);
                });
            }
        });
        Foreign { port, config, requests, connections }
    }

    /// From now on it shakes hands in this way.
    pub fn set(&self, config: ServerConfig) {
        *self.config.lock().unwrap() = Arc::new(config);
    }
}

async fn serve(
    stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    counted: &watch::Sender<usize>,
) -> io::Result<()> {
    let tls = stream.get_ref().1;
    let text = |bytes: Option<&[u8]>| bytes.map_or("-".to_owned(), |bytes| String::from_utf8_lossy(bytes).into_owned());
    let seen = format!(
        "sni={} alpn={} version={:?} certificate={}",
        tls.server_name().unwrap_or("-"),
        text(tls.alpn_protocol()),
        tls.protocol_version().unwrap(),
        tls.peer_certificates().is_some(),
    );
    let is_http2 = tls.alpn_protocol() == Some(b"h2");
    let service = service_fn(|request: Request<Incoming>| {
        counted.send_modify(|count| *count += 1);
        let host = request.headers().get("host").map(|host| host.to_str().unwrap().to_owned());
        let uri = request.uri();
        let (scheme, authority) = (uri.scheme_str().unwrap_or("-"), uri.authority().map(ToString::to_string));
        let of_mesh = ["x-envoy-peer-metadata", "x-envoy-peer-metadata-id", "x-mesh-trace"];
        let told =
            if of_mesh.iter().any(|name| request.headers().contains_key(*name)) { " told who calls" } else { "" };
        let answer = format!("{seen} host={} scheme={scheme}{told}", host.or(authority).unwrap_or_default());
        async { Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(answer)))) }
    });
    let io = TokioIo::new(stream);
    match is_http2 {
        true => hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await,
        false => hyper::server::conn::http1::Builder::new().serve_connection(io, service).await,
    }
    .map_err(io::Error::other)
}

/// `api.example.com`, port 80, which is the TLS server's own port, and a rule on how to call it.
pub fn origination(port: u16, tls: &str) -> String {
    service_entry(&format!("{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}"))
        + &rule(&format!("portLevelSettings: [{{port: {{number: 80}}, tls: {{{tls}}}}}]"))
}

pub fn service_entry(port: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api}}\n\
         spec: {{hosts: [{HOST}], ports: [{port}], resolution: STATIC, endpoints: [{{address: 127.0.0.1}}]}}\n---\n"
    )
}

pub fn rule(policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: api}}\n\
         spec: {{host: {HOST}, trafficPolicy: {{{policy}}}}}\n"
    )
}

pub async fn control(yaml: &str) -> Embedded {
    Embedded::start(Config::yaml(yaml), Options::default()).await.unwrap()
}

pub fn mesh(control: &Embedded) -> Mesh {
    Mesh::builder().source(control.source(Bootstrap::new("embedded").node_id("caller-1"))).start().unwrap()
}

/// What the server saw of a call, or why there was none.
pub async fn ask(mesh: &Mesh) -> Result<String, MeshError> {
    use http_body_util::BodyExt;
    let response = mesh.client().get(format!("http://{HOST}/")).await?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| panic!("{error}")).unwrap().to_bytes();
    Ok(format!("{} {}", status.as_u16(), String::from_utf8_lossy(&body)))
}

/// The same of a GET over a connection that the mesh makes for a client above it.
pub async fn ask_over_connector(mesh: &Mesh, authority: &str) -> Result<String, MeshError> {
    use http_body_util::{BodyExt, Empty};
    use tower_service::Service;
    let lost = |error: hyper::Error| MeshError::new(ErrorKind::ConnectionLost, error.to_string());
    let stream = mesh.connector().call(format!("http://{authority}/").parse().unwrap()).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(lost)?;
    tokio::spawn(connection);
    let request = http::Request::get("/").header("host", authority).body(Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.map_err(lost)?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(lost)?.to_bytes();
    Ok(format!("{} {}", status.as_u16(), String::from_utf8_lossy(&body)))
}

/// Puts a file in the place of another at once.
pub fn put(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}
