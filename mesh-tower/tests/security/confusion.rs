//! Certificates that must not count, shown over real sockets: to a server by a client, and to a client by a server. The peer
//! is rustls alone, which shows whatever it is given and takes whatever it is shown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::mtls_support::Authority;
use crate::server_support::{app_route, chain, listener, played, within};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use mesh_core::error::ErrorKind;
use mesh_core::fixed::Fixed;
use mesh_core::model::{Cluster, ClusterKind, ClusterTls, Endpoints, ServerTls, UpstreamTls};
use mesh_tower::server::{self, ConnectionInfo, MeshListener};
use mesh_tower::{Mesh, body::Body};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tower_layer::Layer;

const OURS: &str = "spiffe://td/ns/shop/sa/ours";
const PEER: &str = "spiffe://td/ns/shop/sa/peer";

/// What a peer shows of itself.
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn sign(authority: &Authority, params: &CertificateParams) -> Shown {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    Shown { chain: vec![certificate.der().clone()], key }
}

/// The leaf of a workload, as an authority should make it.
fn leaf(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// What must not count, by name. `ours` is whom everybody trusts.
fn wrong(ours: &Authority) -> Vec<(&'static str, Shown)> {
    let foreign = Authority::new();
    let of = |ids: &[&str]| sign(ours, &leaf(ids));
    let new_year = |year| rcgen::date_time_ymd(year, 1, 1);
    let mut past = leaf(&[PEER]);
    (past.not_before, past.not_after) = (new_year(2020), new_year(2021));
    let mut future = leaf(&[PEER]);
    (future.not_before, future.not_after) = (new_year(2990), new_year(2991));
    let mut authority = leaf(&[PEER]);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let mut signs = leaf(&[PEER]);
    signs.key_usages.push(KeyUsagePurpose::KeyCertSign);
    let mut mail = leaf(&[]);
    mail.subject_alt_names = vec![SanType::Rfc822Name(PEER.try_into().unwrap())];
    let mut dns = leaf(&[]);
    dns.subject_alt_names = vec![SanType::DnsName("peer.shop.svc.cluster.local".try_into().unwrap())];
    let long = format!("spiffe://td/{}", "a".repeat(2048));
    let longer = format!("spiffe://td/{}", "a".repeat(60_000));
    let intermediate = {
        // One that a workload's own certificate stands for as an authority.
        let (leaf_params, key) = (leaf(&[PEER]), KeyPair::generate().unwrap());
        let middle = leaf_params.signed_by(&key, &ours.issuer).unwrap();
        let issuer = Issuer::new(leaf_params, key);
        let last = KeyPair::generate().unwrap();
        let certificate = leaf(&[PEER]).signed_by(&last, &issuer).unwrap();
        let key = PrivateKeyDer::from_pem_slice(last.serialize_pem().as_bytes()).unwrap();
        Shown { chain: vec![certificate.der().clone(), middle.der().clone()], key }
    };
    vec![
        ("the same path in a foreign trust domain, by our authority", of(&["spiffe://other/ns/shop/sa/peer"])),
        ("a foreign trust domain by its own authority", sign(&foreign, &leaf(&["spiffe://other/ns/shop/sa/peer"]))),
        ("our trust domain by a foreign authority", sign(&foreign, &leaf(&[PEER]))),
        ("a trust domain that ours begins", of(&["spiffe://tdx/ns/shop/sa/peer"])),
        ("a trust domain below ours", of(&["spiffe://td.evil/ns/shop/sa/peer"])),
        ("two URIs, the good one first", of(&[PEER, "spiffe://td/ns/shop/sa/admin"])),
        ("two URIs, the good one last", of(&["https://example.com/", PEER])),
        ("no name at all", of(&[])),
        ("a DNS name alone", sign(ours, &dns)),
        ("the id as a mail address", sign(ours, &mail)),
        ("a trust domain alone", of(&["spiffe://td"])),
        ("an authority", sign(ours, &authority)),
        ("a key that may sign certificates", sign(ours, &signs)),
        ("signed by a workload", intermediate),
        ("expired", sign(ours, &past)),
        ("not valid yet", sign(ours, &future)),
        ("a query", of(&["spiffe://td/ns/shop/sa/peer?x=y"])),
        ("a fragment", of(&["spiffe://td/ns/shop/sa/peer#x"])),
        ("an escape", of(&["spiffe://td/ns/shop/sa/%70eer"])),
        ("a user and a port", of(&["spiffe://a@td:1/ns/shop/sa/peer"])),
        ("a dot segment", of(&["spiffe://td/ns/shop/sa/x/../peer"])),
        ("an empty segment", of(&["spiffe://td/ns/shop/sa//peer"])),
        ("a slash at the end", of(&["spiffe://td/ns/shop/sa/peer/"])),
        ("a byte that ends a text of C", of(&["spiffe://td/ns/shop/sa/peer\0.evil"])),
        ("a trust domain in capitals", of(&["spiffe://TD/ns/shop/sa/peer"])),
        ("an id of more than 2048 bytes", of(&[&long])),
        ("an id of 60 kB", of(&[&longer])),
    ]
}

/// Takes whatever a server shows.
#[derive(Debug)]
struct TakesAnything;

impl ServerCertVerifier for TakesAnything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

fn client_config(shown: Shown) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TakesAnything))
        .with_client_auth_cert(shown.chain, shown.key)
        .unwrap();
    config.alpn_protocols = vec![b"istio".to_vec(), b"http/1.1".to_vec()];
    config
}

/// What a server of the mesh answers to a client that shows this; nothing where it is not let in.
async fn ask(address: SocketAddr, shown: Shown) -> String {
    let config = client_config(shown);
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("server").unwrap();
    let Ok(mut stream) = TlsConnector::from(Arc::new(config)).connect(name, stream).await else {
        return String::new();
    };
    let mut answer = Vec::new();
    // The client is done with its handshake before the server has seen its certificate; a reset is an end, too.
    _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n").await;
    _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

async fn tell(_: Request<hyper::body::Incoming>) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let connection = ConnectionInfo::current().expect("served by the mesh");
    Ok(Response::new(Full::from(connection.peer_identity().expect("somebody").to_string())))
}

/// A server of the mesh that takes nothing but mutual TLS, and how many requests have reached it.
async fn server_of(authority: &Authority) -> (SocketAddr, Mesh, Arc<AtomicUsize>) {
    let mut only = chain(vec![app_route()], vec![]);
    only.tls = ServerTls::Mutual;
    let (player, source) = played();
    let mesh = Mesh::builder().source(source).credentials(authority.credentials(OURS)).start().unwrap();
    let bound: MeshListener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = bound.local_addr();
    player.send(listener(address, vec![only]));
    within(bound.serving()).await.unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let app = tower::service_fn(move |request| {
        counted.fetch_add(1, Ordering::Relaxed);
        tell(request)
    });
    tokio::spawn(server::serve(bound, mesh.server_layer().layer(app)).into_future());
    (address, mesh, requests)
}

#[tokio::test]
async fn no_client_is_let_in_by_a_certificate_that_must_not_count() {
    let authority = Authority::new();
    let (address, _mesh, requests) = server_of(&authority).await;
    for (name, shown) in wrong(&authority) {
        assert_eq!(within(ask(address, shown)).await, "", "{name}");
    }
    assert_eq!(requests.load(Ordering::Relaxed), 0);
    let answer = within(ask(address, sign(&authority, &leaf(&[PEER])))).await;
    assert!(answer.ends_with(PEER), "{answer}");
}

/// A server that shows this and counts the bytes that it is sent inside TLS.
async fn serve(shown: Shown) -> (SocketAddr, Arc<AtomicUsize>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(shown.chain, shown.key)
        .unwrap();
    config.alpn_protocols = vec![b"istio".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let bytes = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&bytes);
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                counted.fetch_add(count, Ordering::Relaxed);
                if buffer.windows(4).any(|end| end == b"\r\n\r\n") {
                    _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            }
        }
    });
    (address, bytes)
}

#[tokio::test]
async fn no_server_is_sent_a_byte_that_shows_a_certificate_that_must_not_count() {
    let authority = Authority::new();
    let call = async |shown: Shown| {
        let (address, bytes) = serve(shown).await;
        let mut cluster = Cluster::new("server:80", ClusterKind::Static(Endpoints::fixed([address])));
        let peers = [PEER.parse().unwrap(), "spiffe://other/ns/shop/sa/peer".parse().unwrap()];
        cluster.tls = ClusterTls::Mutual(Arc::new(UpstreamTls::with(peers)));
        let source = Fixed::new().routes("server:80", vec![mesh_core::fixed::route_to("server:80")]).cluster(cluster);
        let mesh = Mesh::builder().source(source).credentials(authority.credentials(OURS)).start().unwrap();
        let request = Request::get("http://server/").body(Body::empty()).unwrap();
        (within(mesh.client().request(request)).await, bytes)
    };
    for (name, shown) in wrong(&authority) {
        let (answer, bytes) = call(shown).await;
        let error = answer.err().unwrap_or_else(|| panic!("{name}: it is called"));
        assert_eq!((error.kind(), bytes.load(Ordering::Relaxed)), (ErrorKind::ConnectFailure, 0), "{name}: {error}");
    }
    let (answer, bytes) = call(sign(&authority, &leaf(&[PEER]))).await;
    assert_eq!(answer.unwrap().status(), 200);
    assert!(bytes.load(Ordering::Relaxed) > 0);
}

/// A session would skip the checks of certificates, and what was trusted then need not be trusted now.
#[tokio::test]
async fn m10_no_session_is_resumed() {
    let authority = Authority::new();
    let (address, _mesh, _) = server_of(&authority).await;
    // One configuration, and with it one store of sessions.
    let config = Arc::new(client_config(sign(&authority, &leaf(&[PEER]))));
    for _ in 0..3 {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("server").unwrap();
        let mut stream = within(TlsConnector::from(Arc::clone(&config)).connect(name, stream)).await.unwrap();
        let mut answer = Vec::new();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n").await.unwrap();
        _ = within(stream.read_to_end(&mut answer)).await;
        assert!(answer.starts_with(b"HTTP/1.1 200"));
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}
