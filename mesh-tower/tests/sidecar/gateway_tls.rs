//! TLS at the edge: certificates that the control plane delivers, chosen by the name that a client asks for.

use envoy_types::pb::envoy::config::core::v3::{DataSource, TransportSocket, data_source, transport_socket};
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::google::protobuf::BoolValue;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::testing::ManagementServer;
use mesh_core::testing::resources::{pack, route as to, routes, routes_to, virtual_host};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::gateway::{Gateway, ads, bytes_to, chain, for_names, get, listener, proxy_protocol};
use super::tls_support::{ANY, Authority, Pair};
use super::*;

/// A certificate with its key, under this name.
fn put_pair(control: &ManagementServer, name: &str, pair: &Pair) {
    let certificate = tls::TlsCertificate {
        certificate_chain: inline(&pair.chain),
        private_key: inline(&pair.key),
        ..Default::default()
    };
    put_secret(control, name, tls::secret::Type::TlsCertificate(certificate));
}

/// Whose certificates clients may show, under this name.
fn put_authority(control: &ManagementServer, name: &str, authority: &Authority) {
    let context = tls::CertificateValidationContext { trusted_ca: inline(&authority.pem), ..Default::default() };
    put_secret(control, name, tls::secret::Type::ValidationContext(context));
}

fn put_secret(control: &ManagementServer, name: &str, r#type: tls::secret::Type) {
    control.put(name, &tls::Secret { name: name.to_owned(), r#type: Some(r#type) });
}

fn inline(text: &str) -> Option<DataSource> {
    let specifier = Some(data_source::Specifier::InlineBytes(text.as_bytes().to_vec()));
    Some(DataSource { specifier, ..Default::default() })
}

fn named(secret: &str) -> tls::SdsSecretConfig {
    tls::SdsSecretConfig { name: secret.to_owned(), sds_config: ads() }
}

/// A chain for these names by this certificate: asking clients for one of an authority, where there is one, which they have to show
/// or not.
fn secured(names: &[&str], routes: &str, secret: &str, clients: Option<(&str, bool)>) -> pb::FilterChain {
    let common = tls::CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![named(secret)],
        validation_context_type: clients
            .map(|(ca, _)| ValidationContextType::ValidationContextSdsSecretConfig(named(ca))),
        ..Default::default()
    };
    let context = tls::DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: clients.map(|(_, value)| BoolValue { value }),
        ..Default::default()
    };
    let socket = transport_socket::ConfigType::TypedConfig(pack(&context));
    pb::FilterChain {
        filter_chain_match: Some(for_names(names)),
        transport_socket: Some(TransportSocket { name: "tls".to_owned(), config_type: Some(socket) }),
        ..chain(&names.join("+"), routes)
    }
}

/// Somebody outside, who trusts this authority.
pub(super) struct Caller<'a> {
    trusts: &'a Authority,
    shows: Option<&'a Pair>,
    versions: &'a [&'static SupportedProtocolVersion],
    alpn: &'static [u8],
    /// What it sends before TLS.
    header: &'a [u8],
}

impl<'a> Caller<'a> {
    pub(super) fn new(trusts: &'a Authority) -> Self {
        Caller { trusts, shows: None, versions: ANY, alpn: b"http/1.1", header: b"" }
    }

    async fn connect(&self, edge: SocketAddr, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let mut stream = TcpStream::connect(edge).await.unwrap();
        stream.write_all(self.header).await?;
        self.over(stream, name).await
    }

    /// TLS over a connection that is there.
    async fn over<S: Bytes>(&self, stream: S, name: &str) -> std::io::Result<TlsStream<S>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.trusts.pem.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match self.shows {
            None => config.with_no_client_auth(),
            Some(pair) => {
                let shown = CertificateDer::pem_slice_iter(pair.chain.as_bytes()).map(Result::unwrap).collect();
                config
                    .with_client_auth_cert(shown, PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap())
                    .unwrap()
            }
        };
        config.alpn_protocols = vec![self.alpn.to_vec()];
        let name = ServerName::try_from(name.to_owned()).unwrap();
        within(TlsConnector::from(Arc::new(config)).connect(name, stream)).await
    }

    /// The status and the body for a host, asked over a connection for a name; or why there was none.
    pub(super) async fn ask(&self, edge: SocketAddr, name: &str, host: &str) -> Result<(u16, String), String> {
        let stream = self.connect(edge, name).await.map_err(|error| error.to_string())?;
        ask_over(stream, host).await
    }

    /// The same over a connection that is there, for the host of that name.
    pub(super) async fn ask_through<S: Bytes>(&self, stream: S, name: &str) -> Result<(u16, String), String> {
        let stream = self.over(stream, name).await.map_err(|error| error.to_string())?;
        ask_over(stream, name).await
    }
}

/// A connection.
pub(super) trait Bytes: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Bytes for S {}

async fn ask_over<S: Bytes>(stream: TlsStream<S>, host: &str) -> Result<(u16, String), String> {
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = TokioIo::new(stream);
    let request = http::Request::get(format!("https://{host}/")).header("host", host);
    let failed = |error: hyper::Error| format!("{error:?}");
    let response = match is_http2 {
        true => {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.map_err(failed)?;
            tokio::spawn(connection);
            let request = http::Request::get(format!("https://{host}/")).body(Empty::<bytes::Bytes>::new()).unwrap();
            within(sender.send_request(request)).await.map_err(failed)?
        }
        false => {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(failed)?;
            tokio::spawn(connection);
            let mut request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
            *request.uri_mut() = "/".parse().unwrap();
            within(sender.send_request(request)).await.map_err(failed)?
        }
    };
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(failed)?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// The serial number of the certificate that a server shows.
fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// `shop.example` and what is below `shop.example`, each by routes and a certificate of its own.
async fn start(ca: &Authority) -> (Gateway, SocketAddr) {
    let control = ManagementServer::start();
    Gateway::put_cluster(&control, "shop", program(|head| ok(&format!("shop\n{head}"))).await);
    Gateway::put_cluster(&control, "all", program(|_| ok("all")).await);
    for (name, hosts, cluster) in
        [("https.shop", &["shop.example"][..], "shop"), ("https.all", &["*.shop.example"], "all")]
    {
        control.put(name, &routes(name, vec![virtual_host("one", hosts, vec![to("/", cluster)])]));
    }
    put_pair(&control, "kubernetes://ns/shop", &ca.leaf(&["shop.example"]));
    put_pair(&control, "kubernetes://ns/all", &ca.leaf(&["*.shop.example", "deep.a.shop.example"]));
    control.put(
        "edge",
        &listener(
            "edge",
            vec![
                secured(&["shop.example"], "https.shop", "kubernetes://ns/shop", None),
                secured(&["*.shop.example"], "https.all", "kubernetes://ns/all", None),
            ],
        ),
    );
    let mut gateway = Gateway::start(control, &[]).await;
    let edge = gateway.bound().await;
    let settled = async {
        let caller = Caller::new(ca);
        for name in ["shop.example", "a.shop.example"] {
            while caller.connect(edge, name).await.is_err() {
                tokio::task::yield_now().await;
            }
        }
    };
    within(settled).await;
    (gateway, edge)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_that_a_client_asks_for_finds_certificate_and_routes() {
    let ca = Authority::named("ca");
    let (_gateway, edge) = start(&ca).await;
    for (alpn, versions) in [(&b"h2"[..], ANY), (b"http/1.1", ANY), (b"h2", &[&TLS12][..])] {
        let caller = Caller { versions, alpn, ..Caller::new(&ca) };
        let (status, body) = caller.ask(edge, "shop.example", "shop.example").await.unwrap();
        assert!(status == 200 && body.starts_with("shop\n"), "{body}");
        assert!(
            body.contains("\r\nx-forwarded-proto: https\r\n") && body.contains("\r\nhost: shop.example\r\n"),
            "{body}"
        );
        assert_eq!(caller.ask(edge, "A.shop.EXAMPLE", "a.shop.example").await.unwrap(), (200, "all".to_owned()));
        assert_eq!(caller.ask(edge, "deep.a.shop.example", "deep.a.shop.example").await.unwrap().0, 200);
        // Another host of this gateway, over a connection that is not for it; and a host that nobody has.
        assert_eq!(caller.ask(edge, "shop.example", "a.shop.example").await.unwrap().0, 421);
        assert_eq!(caller.ask(edge, "shop.example", "other.example").await.unwrap().0, 404);
    }
    let refused = Caller::new(&ca).ask(edge, "other.example", "other.example").await.unwrap_err();
    assert!(refused.contains("UnrecognisedName"), "{refused}");
    // Plaintext is nobody's.
    let plain = exchange(edge, "GET / HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n").await;
    assert_eq!(plain, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_change_under_connections_that_stay_and_a_bad_one_is_only_its_own_chains() {
    let ca = Authority::named("ca");
    let (mut gateway, edge) = start(&ca).await;
    let caller = Caller::new(&ca);
    let kept = caller.connect(edge, "shop.example").await.unwrap();
    let before = shown(&kept);
    put_pair(&gateway.control, "kubernetes://ns/shop", &ca.leaf(&["shop.example"]));
    let renewed = async {
        while shown(&caller.connect(edge, "shop.example").await.unwrap()) == before {
            tokio::task::yield_now().await;
        }
    };
    within(renewed).await;
    assert_eq!(ask_over(kept, "shop.example").await.unwrap().0, 200);

    // One whose key is another's: its chain has none any more, and the other one goes on.
    let wrong = Pair { key: ca.leaf(&["x"]).key, ..ca.leaf(&["shop.example"]) };
    put_pair(&gateway.control, "kubernetes://ns/shop", &wrong);
    let broken = async {
        while caller.connect(edge, "shop.example").await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    within(broken).await;
    let why = gateway.says("connection refused, and others like it").await;
    assert!(why.contains("kubernetes://ns/"), "{why}");
    assert_eq!(caller.ask(edge, "a.shop.example", "a.shop.example").await.unwrap().0, 200);
    put_pair(&gateway.control, "kubernetes://ns/shop", &ca.leaf(&["shop.example"]));
    let mended = async {
        while caller.connect(edge, "shop.example").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    within(mended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_each_certificate_ends_that_is_shown_is_a_metric() {
    let ca = Authority::named("ca");
    let control = ManagementServer::start();
    Gateway::put_cluster(&control, "shop", program(ok).await);
    control.put("r", &routes_to("r", "shop"));
    let until =
        |year: i32| ca.leaf_with(&["shop.example"], |params| params.not_after = rcgen::date_time_ymd(year, 1, 1));
    put_pair(&control, "kubernetes://ns/shop", &until(2100));
    let broken = Pair { key: ca.leaf(&["x"]).key, ..ca.leaf(&["all.example"]) };
    put_pair(&control, "kubernetes://ns/broken", &broken);
    let chains = vec![
        secured(&["shop.example"], "r", "kubernetes://ns/shop", None),
        secured(&["all.example"], "r", "kubernetes://ns/broken", None),
    ];
    control.put("edge", &listener("edge", chains));
    let mut gateway = Gateway::start(control, &["--admin-addr", "127.0.0.1:0"]).await;
    gateway.bound().await;
    let admin = gateway.admin().await;
    let told = async |end: u64| {
        let expected = format!("mesh_certificate_expiry_timestamp_seconds{{secret=\"kubernetes://ns/shop\"}} {end}");
        loop {
            let page = exchange(admin, &get(&admin.to_string(), "/metrics", "")).await;
            let mut lines = page.lines().filter(|line| line.starts_with("mesh_certificate_expiry_timestamp_seconds"));
            // Nobody is shown the other one.
            if lines.next().is_some_and(|line| line.trim_end() == expected) && lines.next().is_none() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    // The first days of 2100, of 2000 and of 2200, as seconds since 1970.
    within(told(4_102_444_800)).await;
    for (year, end) in [(2000, 946_684_800), (2200, 7_258_118_400)] {
        put_pair(&gateway.control, "kubernetes://ns/shop", &until(year));
        within(told(end)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_show_what_they_are_asked_for_and_the_program_is_told() {
    let (ca, clients, others) = (Authority::named("ca"), Authority::named("clients"), Authority::named("others"));
    let control = ManagementServer::start();
    Gateway::put_cluster(&control, "shop", program(ok).await);
    control.put("r", &routes_to("r", "shop"));
    put_pair(&control, "pair", &ca.leaf(&["must.example", "may.example", "lost.example"]));
    put_authority(&control, "pair-cacert", &clients);
    control.put(
        "edge",
        &listener(
            "edge",
            vec![
                secured(&["must.example"], "r", "pair", Some(("pair-cacert", true))),
                secured(&["may.example"], "r", "pair", Some(("pair-cacert", false))),
                secured(&["lost.example"], "r", "pair", Some(("nowhere-cacert", true))),
            ],
        ),
    );
    let mut gateway = Gateway::start(control, &[]).await;
    let edge = gateway.bound().await;
    let (good, bad) = (clients.leaf(&["client"]), others.leaf(&["client"]));
    let caller = |shows| Caller { shows, ..Caller::new(&ca) };
    let settled = async {
        while caller(Some(&good)).ask(edge, "must.example", "a").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    within(Box::pin(settled)).await;
    for (name, shows, is_let_in) in [
        ("must.example", Some(&good), true),
        ("must.example", Some(&bad), false),
        ("must.example", None, false),
        ("may.example", Some(&good), true),
        ("may.example", Some(&bad), false),
        ("may.example", None, true),
        // Whom to trust is not known: nobody is.
        ("lost.example", Some(&good), false),
        ("lost.example", None, false),
    ] {
        let answer = caller(shows).ask(edge, name, name).await;
        assert_eq!(answer.is_ok(), is_let_in, "{name} {} {answer:?}", shows.is_some());
        if let Ok((_, seen)) = answer {
            assert_eq!(seen.contains("\r\nx-forwarded-client-cert: Hash="), shows.is_some(), "{seen}");
        }
    }
    // What one name asks of clients, who asked for another has not given.
    assert_eq!(caller(None).ask(edge, "may.example", "must.example").await.unwrap().0, 421);
    // Who is of the mesh, its own authorities say, and not those of the gateway.
    let workload = clients.leaf_with(&[], |params| {
        let id = "spiffe://cluster.local/ns/ops/sa/admin".try_into().unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI(id));
    });
    let (_, seen) = caller(Some(&workload)).ask(edge, "must.example", "must.example").await.unwrap();
    assert!(seen.contains("\r\nx-forwarded-client-cert: Hash=") && !seen.contains("spiffe:"), "{seen}");
    let old = Caller { versions: &[&TLS12], shows: Some(&good), ..Caller::new(&ca) };
    assert!(old.ask(edge, "must.example", "a").await.is_ok());
    let new = Caller { versions: &[&TLS13], ..old };
    assert!(new.ask(edge, "must.example", "a").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_authority_is_trusted_no_more_is_let_go_and_others_stay() {
    let (ca, clients, others) = (Authority::named("ca"), Authority::named("clients"), Authority::named("others"));
    let control = ManagementServer::start();
    Gateway::put_cluster(&control, "shop", program(|_| ok("shop")).await);
    control.put("r", &routes_to("r", "shop"));
    put_pair(&control, "pair", &ca.leaf(&["must.example", "may.example"]));
    put_authority(&control, "pair-cacert", &clients);
    let must = secured(&["must.example"], "r", "pair", Some(("pair-cacert", true)));
    let may = secured(&["may.example"], "r", "pair", Some(("pair-cacert", false)));
    control.put("edge", &listener("edge", vec![must, may]));
    let mut gateway = Gateway::start(control, &[]).await;
    let edge = gateway.bound().await;
    let shown = clients.leaf(&["client"]);
    let (known, unknown) = (Caller { shows: Some(&shown), ..Caller::new(&ca) }, Caller::new(&ca));
    for is_replaced in [true, false] {
        put_authority(&gateway.control, "pair-cacert", &clients);
        let settled = async {
            while known.ask(edge, "must.example", "must.example").await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        within(Box::pin(settled)).await;
        // Who waits for more reads the end of it; what a client has not shown, nobody asks for again.
        let mut must = known.connect(edge, "must.example").await.unwrap();
        let mut may = known.connect(edge, "may.example").await.unwrap();
        let stays = unknown.connect(edge, "may.example").await.unwrap();
        // Another certificate of the same gateway changes nothing for them.
        put_pair(&gateway.control, "pair", &ca.leaf(&["must.example", "may.example"]));
        match is_replaced {
            true => put_authority(&gateway.control, "pair-cacert", &others),
            // Nobody can tell any more who is to be trusted.
            false => put_pair(&gateway.control, "pair-cacert", &ca.leaf(&["pair"])),
        }
        for closed in [&mut must, &mut may] {
            let end = within(closed.read(&mut [0; 1])).await;
            assert!(end.as_ref().map_or(true, |count| *count == 0), "{end:?}");
        }
        assert_eq!(ask_over(stays, "may.example").await.unwrap(), (200, "shop".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_balancer_says_before_tls_whose_a_connection_is() {
    let ca = Authority::named("ca");
    let control = ManagementServer::start();
    Gateway::put_cluster(&control, "shop", program(ok).await);
    control.put("https", &routes("https", vec![virtual_host("one", &["shop.example"], vec![to("/", "shop")])]));
    put_pair(&control, "kubernetes://ns/shop", &ca.leaf(&["shop.example"]));
    let mut edge = listener("edge", vec![secured(&["shop.example"], "https", "kubernetes://ns/shop", None)]);
    edge.listener_filters = proxy_protocol();
    control.put("edge", &edge);
    let mut gateway = Gateway::start(control, &[]).await;
    let edge = gateway.bound().await;
    let header = b"PROXY TCP4 192.0.2.1 10.0.0.1 5000 443\r\n";
    let balanced = Caller { header, ..Caller::new(&ca) };
    let (status, seen) = within(Box::pin(async {
        loop {
            // Until the certificate is there.
            if let Ok(answered) = balanced.ask(edge, "shop.example", "shop.example").await {
                return answered;
            }
            tokio::task::yield_now().await;
        }
    }))
    .await;
    assert_eq!(status, 200);
    for line in ["x-forwarded-for: 192.0.2.1", "x-forwarded-proto: https"] {
        assert!(seen.lines().any(|said| said == line), "{line}: {seen}");
    }
    assert!(Caller::new(&ca).ask(edge, "shop.example", "shop.example").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_of_somebody_else_passes_by_its_name() {
    let ca = Authority::named("ca");
    let control = ManagementServer::start();
    // The second is a name of mutual TLS of the mesh.
    const NAMES: [&str; 2] = ["db.example", "outbound_.80_._.db.shop.svc.cluster.local"];
    let server = super::tls_support::tls(&ca.leaf(&NAMES), None, ANY);
    let behind = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Gateway::put_cluster(&control, "db", behind.local_addr().unwrap());
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(server));
        while let Ok((stream, _)) = behind.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                let name = stream.get_ref().1.server_name().unwrap().to_owned();
                stream.write_all(format!("hello from {name}").as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            });
        }
    });
    control.put("edge", &listener("edge", vec![bytes_to("db", &NAMES)]));
    let mut gateway = Gateway::start(control, &[]).await;
    let edge = gateway.bound().await;
    for name in NAMES {
        let mut stream = Caller::new(&ca).connect(edge, name).await.unwrap();
        let mut said = String::new();
        within(stream.read_to_string(&mut said)).await.unwrap();
        assert_eq!(said, format!("hello from {name}"));
    }
    assert!(Caller::new(&ca).connect(edge, "other.example").await.is_err());
    assert!(Caller::new(&ca).connect(edge, "outbound_.81_._.db.shop.svc.cluster.local").await.is_err());
}
