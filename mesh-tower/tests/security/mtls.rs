//! Mutual TLS between a client and a server of the mesh, over real sockets: who is let in, who is talked to, and that not
//! a byte travels otherwise.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::mtls_support::{Authority, CLIENT, SERVER, mutual, permissive, with_tls};
use crate::server_support::{Player, played, within};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::TokioExecutor;
use mesh_core::error::ErrorKind;
use mesh_core::fixed::Fixed;
use mesh_core::identity::SpiffeId;
use mesh_core::model::{
    Cluster, ClusterKind, ClusterProtocol, ClusterTls, DirectResponse, Endpoints, Listener, Route, RouteAction,
    RouteMatch, ServerTls, UpstreamTls,
};
use mesh_core::resources::{Change, Resource};
use mesh_core::tls::{Credentials, client_config, server_name};
use mesh_tower::client::Client;
use mesh_tower::server::{self, ConnectionInfo, MeshListener};
use mesh_tower::{Mesh, body::Body};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower_layer::Layer;

/// A server that tells who asked, and counts the requests that reached it.
struct Server {
    player: Player,
    mesh: Mesh,
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

/// What it answers: the peer, and the version of TLS.
async fn tell(_: Request<hyper::body::Incoming>) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let connection = ConnectionInfo::current().expect("served by the mesh");
    let peer = connection.peer_identity().map_or("nobody", SpiffeId::as_str);
    let version = connection.tls().and_then(|tls| tls.version.as_deref()).unwrap_or("plaintext");
    Ok(Response::new(Full::from(format!("{peer} {version}"))))
}

async fn serve(credentials: Option<Credentials>, tls: impl Fn(SocketAddr) -> mesh_core::resources::Change) -> Server {
    let (player, source) = played();
    let mut builder = Mesh::builder().source(source);
    if let Some(credentials) = credentials {
        builder = builder.credentials(credentials);
    }
    let mesh = builder.start().unwrap();
    let bound: MeshListener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = bound.local_addr();
    player.send(tls(address));
    within(bound.serving()).await.unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let app = tower::service_fn(move |request| {
        counted.fetch_add(1, Ordering::Relaxed);
        tell(request)
    });
    tokio::spawn(server::serve(bound, mesh.server_layer().layer(app)).into_future());
    Server { player, mesh, address, requests }
}

/// A client of the server, which it knows as `http://server/`.
fn client(server: &Server, credentials: Option<Credentials>, tls: ClusterTls, protocol: ClusterProtocol) -> Mesh {
    let mut cluster = Cluster::new("server:80", ClusterKind::Static(Endpoints::fixed([server.address])));
    cluster.tls = tls;
    cluster.protocol = protocol;
    cluster.connect_timeout = std::time::Duration::from_secs(1);
    let source = Fixed::new().routes("server:80", vec![mesh_core::fixed::route_to("server:80")]).cluster(cluster);
    let mut builder = Mesh::builder().source(source);
    if let Some(credentials) = credentials {
        builder = builder.credentials(credentials);
    }
    builder.start().unwrap()
}

async fn get(client: &Client) -> Result<(StatusCode, String), mesh_core::error::MeshError> {
    let response = within(client.clone().get("http://server/")).await?;
    let status = response.status();
    let body = within(response.into_body().collect()).await.unwrap().to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[tokio::test]
async fn both_sides_know_each_other_over_http1_and_http2() {
    let authority = Authority::new();
    let server = serve(Some(authority.credentials(SERVER)), |address| with_tls(address, ServerTls::Mutual)).await;
    for protocol in [ClusterProtocol::Http1, ClusterProtocol::Http2] {
        let mesh = client(&server, Some(authority.credentials(CLIENT)), mutual(&[SERVER]), protocol);
        let answer = get(&mesh.client()).await.unwrap();
        assert_eq!(answer, (StatusCode::OK, format!("{CLIENT} TLSv1.3")));
    }
    // A client with a pool of its own, over the mesh's connector.
    let mesh = client(&server, Some(authority.credentials(CLIENT)), mutual(&[SERVER]), ClusterProtocol::Http1);
    let other = HyperClient::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(mesh.connector());
    let response = within(other.get("http://server/".parse().unwrap())).await.unwrap();
    let body = within(response.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(body, format!("{CLIENT} TLSv1.3"));
}

#[tokio::test]
async fn m7_a_server_with_a_good_certificate_of_somebody_else_is_not_sent_a_byte() {
    let authority = Authority::new();
    let server = serve(Some(authority.credentials(SERVER)), |address| with_tls(address, ServerTls::Mutual)).await;
    for peers in [&["spiffe://td/ns/shop/sa/other"][..], &["spiffe://td/ns/shop/sa/serve"], &[]] {
        let mesh = client(&server, Some(authority.credentials(CLIENT)), mutual(peers), ClusterProtocol::Http1);
        let error = get(&mesh.client()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectFailure);
        assert!(format!("{error:#}").contains(&format!("the peer is {SERVER}")), "{error}");
    }
    assert_eq!(server.requests.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn m12_under_strict_whoever_does_not_show_who_he_is_is_closed_without_a_byte() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let server = serve(Some(authority.credentials(SERVER)), |address| with_tls(address, ServerTls::Mutual)).await;
    for said in [&b"GET / HTTP/1.1\r\nhost: server\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x80"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        // A reset, where bytes that nobody read were thrown away, is an end, too.
        _ = within(stream.read_to_end(&mut answer)).await;
        assert!(answer.is_empty(), "{answer:?}");
    }
    // In plaintext by configuration, and with a certificate that nobody here trusts.
    let plain = client(&server, None, ClusterTls::None, ClusterProtocol::Http1);
    let error = get(&plain.client()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost);
    let stranger = client(&server, Some(foreign.credentials(CLIENT)), mutual(&[SERVER]), ClusterProtocol::Http1);
    assert_eq!(get(&stranger.client()).await.unwrap_err().kind(), ErrorKind::ConnectFailure);
    assert_eq!(server.requests.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_client_that_was_told_of_tls_never_falls_back_to_plaintext() {
    let authority = Authority::new();
    let server = serve(None, |address| with_tls(address, ServerTls::None)).await;
    let mesh = client(&server, Some(authority.credentials(CLIENT)), mutual(&[SERVER]), ClusterProtocol::Http1);
    assert_eq!(get(&mesh.client()).await.unwrap_err().kind(), ErrorKind::ConnectFailure);
    // Nor does one that has no certificate.
    let mesh = client(&server, None, mutual(&[SERVER]), ClusterProtocol::Http1);
    let error = get(&mesh.client()).await.unwrap_err();
    assert!(error.to_string().contains("the workload has no certificate yet"), "{error}");
    // Nor a client of the application's own, which knows nothing of the mesh's TLS.
    let layered = mesh.client_layer().layer(HyperClient::builder(TokioExecutor::new()).build_http::<Body>());
    let request = Request::get("http://server/").body(Body::empty()).unwrap();
    let error = within(tower::ServiceExt::oneshot(layered, request)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Security);
    assert_eq!(server.requests.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn under_permissive_plaintext_is_served_as_nobody() {
    let authority = Authority::new();
    let server = serve(Some(authority.credentials(SERVER)), permissive).await;
    let secured = client(&server, Some(authority.credentials(CLIENT)), mutual(&[SERVER]), ClusterProtocol::Http2);
    assert_eq!(get(&secured.client()).await.unwrap().1, format!("{CLIENT} TLSv1.3"));
    let plain = client(&server, None, ClusterTls::None, ClusterProtocol::Http1);
    assert_eq!(get(&plain.client()).await.unwrap().1, "nobody plaintext");
}

#[tokio::test]
async fn a_connection_in_plaintext_is_of_no_use_once_tls_is_asked_for() {
    let authority = Authority::new();
    let server = serve(Some(authority.credentials(SERVER)), permissive).await;
    let plain = client(&server, None, ClusterTls::None, ClusterProtocol::Http1);
    let plain = plain.client();
    assert_eq!(get(&plain).await.unwrap().1, "nobody plaintext");
    server.player.send(with_tls(server.address, ServerTls::Mutual));
    within(async {
        loop {
            match get(&plain).await {
                Ok((StatusCode::OK, _)) => tokio::task::yield_now().await,
                Ok((status, body)) => {
                    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
                    break assert!(body.contains("mutual TLS is required"), "{body}");
                }
                // The connection was closed, and another one is not let in.
                Err(error) => break assert_eq!(error.kind(), ErrorKind::ConnectionLost),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_new_certificate_is_shown_from_the_next_handshake_on_and_costs_no_request() {
    let authority = Authority::new();
    let server = serve(Some(authority.credentials(SERVER)), |address| with_tls(address, ServerTls::Mutual)).await;
    let mesh = client(&server, Some(authority.credentials(CLIENT)), mutual(&[SERVER]), ClusterProtocol::Http1);
    let first = mesh.client();
    assert!(get(&first).await.is_ok());
    server.mesh.certificates().set(Arc::new(authority.credentials(SERVER)));
    mesh.certificates().set(Arc::new(authority.credentials(CLIENT)));
    assert!(get(&first).await.is_ok());
    let other = client(&server, Some(authority.credentials(CLIENT)), mutual(&[SERVER]), ClusterProtocol::Http1);
    assert!(get(&other.client()).await.is_ok());
    // Whom nobody trusts any more is not let in.
    let next = Authority::new();
    server.mesh.certificates().set(Arc::new(next.credentials(SERVER)));
    let late = client(&server, Some(authority.credentials(CLIENT)), mutual(&[SERVER]), ClusterProtocol::Http1);
    assert_eq!(get(&late.client()).await.unwrap_err().kind(), ErrorKind::ConnectFailure);
}

#[tokio::test]
async fn a_handshake_that_stalls_is_given_up_and_holds_nobody_up() {
    let authority = Authority::new();
    let server = serve(Some(authority.credentials(SERVER)), |address| with_tls(address, ServerTls::Mutual)).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut stalled = TcpStream::connect(server.address).await.unwrap();
    stalled.write_all(&[0x16, 3, 1]).await.unwrap();
    let mesh = client(&server, Some(authority.credentials(CLIENT)), mutual(&[SERVER]), ClusterProtocol::Http1);
    assert!(get(&mesh.client()).await.is_ok());
    for stream in [&mut silent, &mut stalled] {
        assert_eq!(within(stream.read(&mut [0; 1])).await.unwrap_or(0), 0, "closed");
    }
}

#[tokio::test]
async fn who_reads_and_who_writes_both_learn_of_the_end_of_the_handshake() {
    let authority = Authority::new();
    for reader_is_first in [true, false] {
        let (player, source) = played();
        let mesh = Mesh::builder().source(source).credentials(authority.credentials(SERVER)).start().unwrap();
        let mut bound = mesh.bind("127.0.0.1:0").await.unwrap();
        player.send(with_tls(bound.local_addr(), ServerTls::Mutual));
        let stream = TcpStream::connect(bound.local_addr()).await.unwrap();
        let (io, _) = within(bound.accept()).await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(io);
        let read = async move {
            let mut said = [0; 5];
            reader.read_exact(&mut said).await.map(|_| said)
        };
        let write = async move { writer.write_all(b"hello").await };
        // Each asks before the handshake has begun, whoever is the first.
        let (read, write) = match reader_is_first {
            true => {
                let read = tokio::spawn(read);
                (read, tokio::spawn(write))
            }
            false => {
                let write = tokio::spawn(write);
                (tokio::spawn(read), write)
            }
        };
        tokio::task::yield_now().await;
        let tls = UpstreamTls::with([SERVER.parse().unwrap()]);
        let config = client_config(&authority.credentials(CLIENT), &tls, None).unwrap();
        let shaking = TlsConnector::from(Arc::new(config)).connect(server_name(&tls).unwrap(), stream);
        let mut stream = within(shaking).await.unwrap();
        within(write).await.unwrap().unwrap();
        within(stream.write_all(b"world")).await.unwrap();
        assert_eq!(&within(read).await.unwrap().unwrap(), b"world");
    }
}

/// Objects, files and lines of the configuration are for who belongs to the mesh.
#[tokio::test]
async fn why_a_server_must_not_serve_is_told_to_peers_and_to_nobody_else() {
    const WHY: &str = "AuthorizationPolicy shop/p (rules.yaml:7:3) is not enforced";
    let authority = Authority::new();
    let refusing = |address| {
        let mut change = permissive(address);
        let Change::Put(_, Resource::Listener(listener)) = &mut change else { panic!("a listener") };
        let Listener::Server(listener) = Arc::make_mut(listener) else { panic!("of a server") };
        let direct = DirectResponse::new(StatusCode::SERVICE_UNAVAILABLE, WHY);
        for of in &mut listener.filter_chains {
            let route = Route::new(RouteMatch::any(), RouteAction::Direct(direct.clone()));
            of.http = crate::server_support::chain(vec![route], vec![]).http;
        }
        change
    };
    let server = serve(Some(authority.credentials(SERVER)), refusing).await;
    let none = serve(Some(authority.credentials(SERVER)), |address| {
        let chain = crate::server_support::chain(vec![], vec![]);
        crate::server_support::listener(address, vec![chain])
    })
    .await;
    let peer = client(&server, Some(authority.credentials(CLIENT)), mutual(&[SERVER]), ClusterProtocol::Http1);
    assert_eq!(get(&peer.client()).await.unwrap(), (StatusCode::SERVICE_UNAVAILABLE, WHY.to_owned()));
    for (server, status) in [(&server, StatusCode::SERVICE_UNAVAILABLE), (&none, StatusCode::NOT_FOUND)] {
        let stranger = client(server, None, ClusterTls::None, ClusterProtocol::Http1);
        let (answered, told) = get(&stranger.client()).await.unwrap();
        assert!(answered == status && told.contains("mesh-control status"), "{answered} {told}");
        assert!(!told.contains("shop") && !told.contains("server/"), "{told}");
    }
    // Who cannot tell peers from others tells everybody.
    let plain = serve(None, |address| {
        let direct = DirectResponse::new(StatusCode::SERVICE_UNAVAILABLE, WHY);
        let route = Route::new(RouteMatch::any(), RouteAction::Direct(direct));
        crate::server_support::listener(address, vec![crate::server_support::chain(vec![route], vec![])])
    })
    .await;
    let stranger = client(&plain, None, ClusterTls::None, ClusterProtocol::Http1);
    assert_eq!(get(&stranger.client()).await.unwrap(), (StatusCode::SERVICE_UNAVAILABLE, WHY.to_owned()));
}
