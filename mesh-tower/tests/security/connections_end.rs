//! Connections that would not be made again do not go on: when nobody trusted vouches for the peer any more, when its
//! certificate expires, when the server asks for mutual TLS, when somebody else answers for a service. And nothing else
//! ends them. Each over real sockets, with an answer that is on its way.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::mtls_support::{Authority, CLIENT, SERVER, id, mutual, permissive, with_tls};
use crate::server_support::{Player, app_route, chain, listener, played, within};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use mesh_core::fixed::route_to;
use mesh_core::model::{
    ApiListener, Cluster, ClusterKind, ClusterProtocol, ClusterTls, Endpoint, Endpoints, HttpManager, Listener,
    RouteConfiguration, RouteSource, ServerTls, UpstreamTls, VirtualHost,
};
use mesh_core::resources::{Change, Resource, ResourceKey, ResourceType};
use mesh_core::tls::Credentials;
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use mesh_tower::server::{self, MeshListener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tower_layer::Layer;

type Chunk = Result<Frame<Bytes>, Infallible>;

/// A server whose answers to `/stream` the test writes.
struct Server {
    player: Player,
    mesh: Mesh,
    address: SocketAddr,
    streams: Arc<Mutex<Vec<mpsc::Sender<Chunk>>>>,
}

impl Server {
    async fn start(credentials: Credentials, listener: impl Fn(SocketAddr) -> Change) -> Self {
        let (player, source) = played();
        let mesh = Mesh::builder().source(source).credentials(credentials).start().unwrap();
        let bound: MeshListener = mesh.bind("127.0.0.1:0").await.unwrap();
        let address = bound.local_addr();
        player.send(listener(address));
        within(bound.serving()).await.unwrap();
        let streams = Arc::<Mutex<Vec<_>>>::default();
        let opened = Arc::clone(&streams);
        let app = tower::service_fn(move |request: Request<hyper::body::Incoming>| {
            let body: BoxBody<Bytes, Infallible> = match request.uri().path() {
                "/stream" => {
                    let (sender, receiver) = mpsc::channel(8);
                    opened.lock().unwrap().push(sender);
                    StreamBody::new(ReceiverStream::new(receiver)).boxed()
                }
                _ => Full::from("hello").boxed(),
            };
            std::future::ready(Ok::<_, Infallible>(Response::new(body)))
        });
        tokio::spawn(server::serve(bound, mesh.server_layer().layer(app)).into_future());
        Server { player, mesh, address, streams }
    }

    async fn strict(credentials: Credentials) -> Self {
        Server::start(credentials, |address| with_tls(address, ServerTls::Mutual)).await
    }
}

/// A client that knows the server as `http://server/`.
struct Client {
    player: Player,
    mesh: Mesh,
    cluster: Cluster,
}

const NAME: &str = "server:80";

impl Client {
    fn start(server: &Server, credentials: Option<Credentials>, tls: ClusterTls, protocol: ClusterProtocol) -> Self {
        let (player, source) = played();
        let mut builder = Mesh::builder().source(source);
        if let Some(credentials) = credentials {
            builder = builder.credentials(credentials);
        }
        let mut cluster = Cluster::new(NAME, ClusterKind::Static(Endpoints::fixed([server.address])));
        (cluster.tls, cluster.protocol) = (tls, protocol);
        cluster.connect_timeout = Duration::from_secs(10);
        let config = RouteConfiguration::new(vec![VirtualHost::new(["*"], vec![route_to(NAME)])]);
        let http = HttpManager::new(RouteSource::Inline(Arc::new(config)));
        let listener = Resource::Listener(Arc::new(Listener::Api(ApiListener::new(NAME, http))));
        player.send(Change::Put(ResourceKey::new(ResourceType::Listener, NAME), listener));
        let client = Client { player, mesh: builder.start().unwrap(), cluster };
        client.send_cluster();
        client
    }

    fn mutual(server: &Server, credentials: Credentials, protocol: ClusterProtocol) -> Self {
        Client::start(server, Some(credentials), mutual(&[SERVER]), protocol)
    }

    fn send_cluster(&self) {
        let cluster = Resource::Cluster(Arc::new(self.cluster.clone()));
        self.player.send(Change::Put(ResourceKey::new(ResourceType::Cluster, NAME), cluster));
    }

    fn secure(&mut self, tls: ClusterTls) {
        self.cluster.tls = tls;
        self.send_cluster();
    }

    async fn is_answered(&self) -> bool {
        within(self.mesh.client().get("http://server/")).await.is_ok_and(|response| response.status().is_success())
    }
}

/// An answer that has begun.
struct Stream {
    sender: mpsc::Sender<Chunk>,
    body: mesh_tower::client::ResponseBody,
}

impl Stream {
    async fn open(server: &Server, client: &Client) -> Self {
        let request = Request::get("http://server/stream").body(Body::empty()).unwrap();
        let response = within(client.mesh.client().request(request)).await.unwrap();
        let sender = server.streams.lock().unwrap().pop().expect("the request has reached the server");
        let mut stream = Stream { sender, body: response.into_body() };
        stream.goes_on().await;
        stream
    }

    async fn goes_on(&mut self) {
        self.sender.send(Ok(Frame::data(Bytes::from_static(b"more")))).await.expect("the server sends it");
        let frame = within(self.body.frame()).await.expect("it has no end").expect("it goes on");
        assert_eq!(frame.into_data().unwrap(), "more");
    }

    async fn ends_well(self) {
        drop(self.sender);
        let rest = within(self.body.collect()).await.expect("it has an end").to_bytes();
        assert_eq!(rest, "");
    }

    /// Both sides know: neither of them takes it for the end of the answer.
    async fn ends_in_an_error(mut self) {
        let end = within(self.body.frame()).await;
        assert!(matches!(end, Some(Err(_))), "{end:?}");
        // Over HTTP/1.1 a client that closed its side may still read, so that a server knows by what it sends next.
        let more = || self.sender.send(Ok(Frame::data(Bytes::from_static(b"more"))));
        within(async { while more().await.is_ok() {} }).await;
    }
}

const BOTH: [ClusterProtocol; 2] = [ClusterProtocol::Http1, ClusterProtocol::Http2];

#[tokio::test]
async fn m11_a_server_closes_the_connection_of_a_client_whose_root_is_gone() {
    let (old, new) = (Authority::new(), Authority::new());
    for protocol in BOTH {
        let server = Server::strict(old.credentials(SERVER)).await;
        let client = Client::mutual(&server, old.credentials_of(CLIENT, None, &[&new]), protocol);
        let stream = Stream::open(&server, &client).await;
        server.mesh.certificates().set(Arc::new(new.credentials(SERVER)));
        stream.ends_in_an_error().await;
        assert!(!client.is_answered().await);
    }
}

#[tokio::test]
async fn m11_a_client_closes_the_connection_to_a_server_whose_root_is_gone() {
    let (old, new) = (Authority::new(), Authority::new());
    for protocol in BOTH {
        let server = Server::strict(old.credentials_of(SERVER, None, &[&new])).await;
        let client = Client::mutual(&server, old.credentials(CLIENT), protocol);
        let stream = Stream::open(&server, &client).await;
        client.mesh.certificates().set(Arc::new(new.credentials(CLIENT)));
        stream.ends_in_an_error().await;
        assert!(!client.is_answered().await);
    }
}

#[tokio::test]
async fn m9_a_connection_ends_with_the_certificate_of_its_client_and_with_that_of_its_server() {
    let authority = Authority::new();
    let life = Some(Duration::from_secs(5));
    for (of_server, of_client) in [(None, life), (life, None)] {
        let server = Server::strict(authority.credentials_of(SERVER, of_server, &[])).await;
        let client = |protocol| Client::mutual(&server, authority.credentials_of(CLIENT, of_client, &[]), protocol);
        let clients = BOTH.map(client);
        let streams = [Stream::open(&server, &clients[0]).await, Stream::open(&server, &clients[1]).await];
        for stream in streams {
            stream.ends_in_an_error().await;
        }
    }
}

/// A leaf is replaced long before it expires; the connections that were made by it have to be, too.
#[tokio::test]
async fn a_client_makes_another_connection_in_time_and_cuts_no_answer_for_a_certificate_that_expires() {
    let authority = Authority::new();
    let life = Duration::from_secs(10);
    let mut all = Vec::new();
    for (of_server, of_client) in [(Some(life), None), (None, Some(life))] {
        for protocol in BOTH {
            let server = Server::strict(authority.credentials_of(SERVER, of_server, &[])).await;
            let client = Client::mutual(&server, authority.credentials_of(CLIENT, of_client, &[]), protocol);
            assert!(client.is_answered().await);
            server.mesh.certificates().set(Arc::new(authority.credentials(SERVER)));
            client.mesh.certificates().set(Arc::new(authority.credentials(CLIENT)));
            all.push((server, client));
        }
    }
    let all_expired = Instant::now() + life + Duration::from_secs(2);
    while Instant::now() < all_expired {
        // Answers that are on their way nearly all the time, and take less than a tenth of the leaf's life.
        let mut streams = Vec::new();
        for (server, client) in &all {
            streams.push(Stream::open(server, client).await);
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(300) {
            for stream in &mut streams {
                stream.goes_on().await;
            }
        }
        for stream in streams {
            stream.ends_well().await;
        }
    }
}

/// In the order in which an authority is replaced: both are trusted, both sides have new leaves, one is trusted.
#[tokio::test]
async fn f14_an_authority_that_is_replaced_cuts_no_answer_of_who_has_a_new_certificate_on_either_side() {
    let (old, new) = (Authority::new(), Authority::new());
    for protocol in BOTH {
        // The leaf of the client is the old one until it has another.
        let server = Server::strict(new.credentials_of(SERVER, None, &[&old])).await;
        let client = Client::mutual(&server, old.credentials_of(CLIENT, None, &[&new]), protocol);
        assert!(client.is_answered().await);
        client.mesh.certificates().set(Arc::new(new.credentials_of(CLIENT, None, &[&old])));
        assert!(client.is_answered().await, "meanwhile the connection learns of it");
        let mut stream = Stream::open(&server, &client).await;
        server.mesh.certificates().set(Arc::new(new.credentials(SERVER)));
        for _ in 0..20 {
            stream.goes_on().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stream.ends_well().await;

        // The leaf of the server was the old one when the connection was made.
        let server = Server::strict(old.credentials_of(SERVER, None, &[&new])).await;
        let client = Client::mutual(&server, new.credentials_of(CLIENT, None, &[&old]), protocol);
        let mut stream = Stream::open(&server, &client).await;
        server.mesh.certificates().set(Arc::new(new.credentials_of(SERVER, None, &[&old])));
        client.mesh.certificates().set(Arc::new(new.credentials(CLIENT)));
        stream.goes_on().await;
        assert!(client.is_answered().await, "by another connection");
        stream.ends_well().await;
    }
}

#[tokio::test]
async fn no_plaintext_goes_on_once_the_server_asks_for_mutual_tls() {
    let authority = Authority::new();
    let (mut plain, mut secured) = (chain(vec![app_route()], vec![]), chain(vec![app_route()], vec![]));
    (plain.matches.is_tls, secured.matches.is_tls) = (Some(false), Some(true));
    secured.tls = ServerTls::Mutual;
    // The chain asks for it, or there is none for plaintext, or TLS is wanted that cannot be had.
    let strict: [&dyn Fn(SocketAddr) -> Change; 3] = [
        &|address| with_tls(address, ServerTls::Mutual),
        &|address| {
            let mut refusing = plain.clone();
            refusing.tls = ServerTls::Mutual;
            listener(address, vec![secured.clone(), refusing.clone(), refusing])
        },
        &|address| with_tls(address, ServerTls::Unusable("it cannot be had".into())),
    ];
    let first: [&dyn Fn(SocketAddr) -> Change; 2] = [&|address| with_tls(address, ServerTls::None), &permissive];
    for (first, strict) in first.iter().flat_map(|first| strict.iter().map(move |strict| (first, strict))) {
        let server = Server::start(authority.credentials(SERVER), first).await;
        let clients = BOTH.map(|protocol| Client::start(&server, None, ClusterTls::None, protocol));
        let streams = [Stream::open(&server, &clients[0]).await, Stream::open(&server, &clients[1]).await];
        let mut idle = TcpStream::connect(server.address).await.unwrap();
        idle.write_all(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello") {
            assert!(within(idle.read_buf(&mut answer)).await.unwrap() > 0, "{answer:?}");
        }
        server.player.send(strict(server.address));
        for stream in streams {
            stream.ends_in_an_error().await;
        }
        assert_eq!(within(idle.read(&mut [0; 1])).await.unwrap_or(0), 0, "closed");
    }
}

#[tokio::test]
async fn who_may_not_answer_for_a_service_any_more_is_cut_off() {
    let authority = Authority::new();
    let other = "spiffe://td/ns/shop/sa/other";
    for protocol in BOTH {
        let server = Server::strict(authority.credentials(SERVER)).await;
        let mut client = Client::mutual(&server, authority.credentials(CLIENT), protocol);
        let mut first = Stream::open(&server, &client).await;
        client.secure(mutual(&[SERVER, other]));
        let second = Stream::open(&server, &client).await;
        first.goes_on().await;
        client.secure(mutual(&[other]));
        for stream in [first, second] {
            stream.ends_in_an_error().await;
        }
        assert!(!client.is_answered().await);
    }
}

/// Who may answer, named for being endpoints.
fn endpoints(peers: &[&str]) -> ClusterTls {
    let mut tls = UpstreamTls::with(peers.iter().map(|peer| id(peer)));
    tls.by_endpoints = true;
    ClusterTls::Mutual(Arc::new(tls))
}

/// A connection to a peer that is no endpoint any more, with an answer on its way.
async fn left(authority: &Authority, server: &Server, others: &[&str], protocol: ClusterProtocol) -> (Client, Stream) {
    let credentials = Some(authority.credentials(CLIENT));
    let mut client = Client::start(server, credentials, endpoints(&[SERVER]), protocol);
    let mut stream = Stream::open(server, &client).await;
    client.secure(endpoints(others));
    // Its address is still called, and nothing new is sent there: not over this connection either.
    within(async { while client.is_answered().await {} }).await;
    stream.goes_on().await;
    (client, stream)
}

#[tokio::test]
async fn who_is_no_endpoint_any_more_answers_to_the_end_and_is_asked_nothing_more() {
    let authority = Authority::new();
    for protocol in BOTH {
        let server = Server::strict(authority.credentials(SERVER)).await;
        for others in [&[][..], &["spiffe://td/ns/shop/sa/other"]] {
            let (mut client, mut stream) = left(&authority, &server, others, protocol).await;
            client.cluster.max_requests_per_connection = Some(1000);
            client.secure(endpoints(&[CLIENT]));
            assert!(!client.is_answered().await);
            stream.goes_on().await;
            stream.ends_well().await;
        }
    }
}

#[tokio::test]
async fn who_is_no_endpoint_any_more_is_cut_off_by_a_rule_and_once_its_certificate_is_revoked() {
    let authority = Authority::new();
    let mut revoked = Vec::new();
    for protocol in BOTH {
        let credentials = authority.credentials(SERVER);
        let serial = credentials.serial().to_owned();
        let server = Server::strict(credentials).await;
        for others in [&[][..], &["spiffe://td/ns/shop/sa/other"]] {
            let (mut client, stream) = left(&authority, &server, others, protocol).await;
            client.secure(mutual(&["spiffe://td/ns/shop/sa/other"]));
            stream.ends_in_an_error().await;
        }
        let (client, mut stream) = left(&authority, &server, &[], protocol).await;
        // A list that is about somebody else says nothing of it.
        client.mesh.certificates().set(Arc::new(authority.credentials_but_for(CLIENT, "0b:ad:ca:fe")));
        stream.goes_on().await;
        client.mesh.certificates().set(Arc::new(authority.credentials_but_for(CLIENT, &serial)));
        revoked.push((server, client, stream));
    }
    // The answers of both have a moment left, at the same time.
    for (_server, _client, stream) in revoked {
        stream.ends_in_an_error().await;
    }
}

#[tokio::test]
async fn a_client_sends_no_more_plaintext_once_its_cluster_asks_for_mutual_tls() {
    let authority = Authority::new();
    for (protocol, tls) in [
        (ClusterProtocol::Http1, mutual(&[SERVER])),
        (ClusterProtocol::Http2, mutual(&[SERVER])),
        (ClusterProtocol::Http2, ClusterTls::Unusable("it cannot be had".into())),
    ] {
        let server = Server::start(authority.credentials(SERVER), permissive).await;
        let mut client = Client::start(&server, Some(authority.credentials(CLIENT)), ClusterTls::None, protocol);
        let stream = Stream::open(&server, &client).await;
        client.secure(tls.clone());
        stream.ends_in_an_error().await;
        assert_eq!(client.is_answered().await, tls == mutual(&[SERVER]));
    }
}

#[tokio::test]
async fn a_client_sends_no_more_plaintext_to_an_endpoint_that_is_marked_for_mutual_tls_by_now() {
    let authority = Authority::new();
    let where_marked = || ClusterTls::MutualWhereMarked(Arc::new(UpstreamTls::with([id(SERVER)])));
    // The endpoint alone changes, or the cluster with it.
    for (protocol, first) in
        BOTH.into_iter().flat_map(|protocol| [where_marked(), ClusterTls::None].map(|tls| (protocol, tls)))
    {
        let server = Server::start(authority.credentials(SERVER), permissive).await;
        let mut client = Client::start(&server, Some(authority.credentials(CLIENT)), first, protocol);
        let stream = Stream::open(&server, &client).await;
        let mut endpoints = Endpoints::fixed([server.address]);
        let marked = |_, one: &Endpoint| {
            let mut one = one.clone();
            one.mutual_tls = true;
            Some(one)
        };
        endpoints.localities[0].endpoints = endpoints.localities[0].endpoints.replaced(marked);
        client.cluster.kind = ClusterKind::Static(endpoints);
        client.secure(where_marked());
        stream.ends_in_an_error().await;
        assert!(client.is_answered().await);
    }
}

#[tokio::test]
async fn what_leaves_a_connection_as_good_as_it_was_does_not_end_it() {
    let (authority, next) = (Authority::new(), Authority::new());
    for protocol in BOTH {
        let server = Server::start(authority.credentials(SERVER), permissive).await;
        let mut client = Client::mutual(&server, authority.credentials(CLIENT), protocol);
        let plain = Client::start(&server, None, ClusterTls::None, protocol);
        let mut streams = [Stream::open(&server, &client).await, Stream::open(&server, &plain).await];
        // Other routes, a new certificate, one more root on each side, one more who may answer.
        let (mut secured, mut open) = (chain(vec![app_route(), app_route()], vec![]), chain(vec![app_route()], vec![]));
        (secured.matches.is_tls, secured.tls, open.matches.is_tls) = (Some(true), ServerTls::Mutual, Some(false));
        server.player.send(listener(server.address, vec![secured, open, chain(vec![app_route()], vec![])]));
        server.mesh.certificates().set(Arc::new(authority.credentials(SERVER)));
        client.mesh.certificates().set(Arc::new(authority.credentials(CLIENT)));
        server.mesh.certificates().set(Arc::new(authority.credentials_of(SERVER, None, &[&next])));
        client.mesh.certificates().set(Arc::new(authority.credentials_of(CLIENT, None, &[&next])));
        client.cluster.max_requests_per_connection = Some(1000);
        client.secure(mutual(&["spiffe://td/ns/shop/sa/other", SERVER]));
        // By the new certificate of the other authority, which both trust by now: all of that is in force.
        server.mesh.certificates().set(Arc::new(next.credentials_of(SERVER, None, &[&authority])));
        let late = Client::mutual(&server, next.credentials_of(CLIENT, None, &[]), protocol);
        assert!(late.is_answered().await && client.is_answered().await);
        for stream in &mut streams {
            stream.goes_on().await;
        }
    }
}
