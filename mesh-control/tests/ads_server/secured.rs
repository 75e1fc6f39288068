//! The secured listener: who may connect, and as whom.

use std::path::PathBuf;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_client::AccessLogServiceClient;
use envoy_types::pb::envoy::service::load_stats::v3::LoadStatsRequest;
use envoy_types::pb::envoy::service::load_stats::v3::load_reporting_service_client::LoadReportingServiceClient;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use hyper_util::rt::TokioIo;
use mesh_control::catalog::Kind;
use mesh_control::ratelimit::{RateLimits, Store};
use mesh_control::serve::{TlsFiles, status};
use mesh_core::calls::{Call, CallKey, Counted, Report};
use mesh_core::xds::access_log;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, SerialNumber};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ALL_VERSIONS, ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tonic::transport::Channel;

use crate::rate_limits::{descriptor, request};
use crate::support::{Delta, Fixture, PATIENCE, ServiceFn, Shelf, node, settled, until};

pub(crate) struct Authority(pub(crate) CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// One that says what it signs, and is called so.
    pub(crate) fn signing() -> Authority {
        Authority(CertifiedIssuer::self_signed(Authority::params(), KeyPair::generate().unwrap()).unwrap())
    }

    /// One that signs for it.
    pub(crate) fn intermediate(&self) -> Authority {
        Authority(CertifiedIssuer::signed_by(Authority::params(), KeyPair::generate().unwrap(), &self.0).unwrap())
    }

    /// Its list of revoked certificates, for an hour.
    pub(crate) fn revoked(&self, serials: &[SerialNumber]) -> String {
        let since_epoch = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let now = rcgen::date_time_ymd(1970, 1, 1) + since_epoch;
        let one = |serial: &SerialNumber| rcgen::RevokedCertParams {
            serial_number: serial.clone(),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let params = rcgen::CertificateRevocationListParams {
            this_update: now,
            next_update: now + std::time::Duration::from_secs(3600),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(one).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().pem().unwrap()
    }

    fn params() -> CertificateParams {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        // Verifiers find an issuer by its name.
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("authority {:x}", fastrand::u64(..)));
        params
    }

    /// A certificate for a name, and its key.
    pub(crate) fn issue(&self, name: SanType) -> (String, KeyPair, CertificateDer<'static>) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key, certificate.der().clone())
    }
}

struct Secured {
    fixture: Fixture,
    authority: Authority,
    address: std::net::SocketAddr,
    files: TlsFiles,
    directory: tempfile::TempDir,
}

impl Secured {
    async fn start(verifies_clients: bool) -> Secured {
        let authority = Authority::new();
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| -> PathBuf {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (cert, key, _) = authority.issue(SanType::DnsName("control".try_into().unwrap()));
        let files = TlsFiles::new(write("cert.pem", cert), write("key.pem", key.serialize_pem()))
            .client_ca(verifies_clients.then(|| write("ca.pem", authority.0.pem())));
        let limits = RateLimits::new(Store::in_memory(10));
        limits.apply_texts([]);
        let options = settled().rate_limits(Arc::new(limits));
        let fixture = Fixture::start(Shelf::default().with(Kind::Cluster, "a", "1"), options).await;
        let address = fixture.server.listen_tls(([127, 0, 0, 1], 0).into(), &files).await.unwrap();
        Secured { fixture, authority, address, files, directory }
    }

    /// How a client with the certificate for a URI shakes hands, or one without any.
    fn config(&self, uri: Option<&str>, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.0.der().clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let config = config.with_root_certificates(roots);
        let mut config = match uri {
            Some(uri) => {
                let (_, key, certificate) = self.authority.issue(SanType::URI(uri.try_into().unwrap()));
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                config.with_client_auth_cert(vec![certificate], key).unwrap()
            }
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    /// A channel of a client with the certificate for a URI, or without any.
    async fn channel(&self, uri: Option<&str>) -> Result<Channel, tonic::transport::Error> {
        let (connector, address) = (TlsConnector::from(self.config(uri, ALL_VERSIONS)), self.address);
        let connect = ServiceFn(move || {
            let connector = connector.clone();
            async move {
                let stream = tokio::net::TcpStream::connect(address).await?;
                let name = ServerName::try_from("control").unwrap();
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        });
        Channel::from_static("http://control").connect_with_connector(connect).await
    }

    /// What a client with this certificate and this node is told about `a`.
    async fn ask(&self, uri: Option<&str>, node: Node) -> Result<(), tonic::Code> {
        let channel = self.channel(uri).await.map_err(|_| tonic::Code::Unavailable)?;
        let mut client = Delta::open(channel, node).await.map_err(|status| status.code())?;
        client.send(Kind::Cluster, &["a"], &[]).await;
        let answer = tokio::time::timeout(PATIENCE, client.responses.message()).await.unwrap();
        answer.map(drop).map_err(|status| status.code())
    }
}

const SHOP: &str = "spiffe://cluster.local/ns/shop/sa/web";

#[tokio::test]
async fn server_rule_18_a_node_is_held_to_its_client_certificate() {
    let secured = Secured::start(true).await;
    assert_eq!(secured.ask(Some(SHOP), node("mesh-core")).await, Ok(()));
    assert_eq!(secured.ask(Some(SHOP), Node::default()).await, Ok(()), "the certificate says who it is");
    let other = "spiffe://cluster.local/ns/pay/sa/web";
    assert_eq!(secured.ask(Some(other), node("mesh-core")).await, Err(tonic::Code::PermissionDenied));
    let nobody = "https://example.org";
    assert_eq!(secured.ask(Some(nobody), node("mesh-core")).await, Err(tonic::Code::PermissionDenied));
    assert!(secured.ask(None, node("mesh-core")).await.is_err(), "no certificate, no connection");
    until("nobody is left", || secured.fixture.report().clients.is_empty()).await;
}

#[tokio::test]
async fn server_rule_18_who_is_turned_away_leaves_a_trace_in_status_and_metrics() {
    let secured = Secured::start(true).await;
    let refused = || serde_json::to_value(secured.fixture.report()).unwrap()["turned_away"].clone();
    let has = |reason: &str| {
        let refused = refused();
        let refused = refused.as_array().into_iter().flatten();
        refused.filter(|one| one["reason"] == reason).map(|one| one["count"].as_u64().unwrap()).sum::<u64>()
    };
    assert!(secured.ask(None, node("mesh-core")).await.is_err());
    until("the client without a certificate is told", || has("no-certificate") == 1).await;
    let stranger = Secured { authority: Authority::new(), ..Secured::start(true).await };
    let stranger = Secured { address: secured.address, ..stranger };
    assert!(stranger.ask(Some(SHOP), node("mesh-core")).await.is_err());
    // The client trusts another authority than the server's: it ends the handshake.
    until("the handshake that failed is told", || has("handshake") == 1).await;
    let other = "spiffe://cluster.local/ns/pay/sa/web";
    assert!(secured.ask(Some(other), node("mesh-core")).await.is_err());
    assert!(secured.ask(Some("https://example.org"), node("mesh-core")).await.is_err());
    until("the wrong names are told", || has("identity") == 2).await;
    let told = refused();
    let identity = told.as_array().unwrap().iter().find(|one| one["reason"] == "identity").unwrap().clone();
    assert!(identity["text"].as_str().unwrap().contains("names nobody"), "{identity}");
    assert_eq!(identity["node"], node("").id);
    let metrics = secured.fixture.metrics();
    for line in ["{reason=\"no-certificate\"} 1", "{reason=\"handshake\"} 1", "{reason=\"identity\"} 2"] {
        assert!(metrics.contains(&format!("mesh_xds_refused_total{line}")), "{metrics}");
    }
}

#[tokio::test]
async fn certificates_of_the_server_and_its_authority_are_replaced_while_it_runs() {
    let mut secured = Secured::start(true).await;
    assert_eq!(secured.ask(Some(SHOP), node("mesh-core")).await, Ok(()));
    secured.authority = Authority::new();
    assert!(secured.ask(Some(SHOP), node("mesh-core")).await.is_err(), "nobody knows the new authority yet");
    let (cert, key, _) = secured.authority.issue(SanType::DnsName("control".try_into().unwrap()));
    let write = |name: &str, text: String| std::fs::write(secured.directory.path().join(name), text).unwrap();
    write("cert.pem", cert);
    write("ca.pem", secured.authority.0.pem());
    write("key.pem", key.serialize_pem());
    let accepted = async { while secured.ask(Some(SHOP), node("mesh-core")).await.is_err() {} };
    tokio::time::timeout(PATIENCE, accepted).await.expect("the new files are used");
}

#[tokio::test]
async fn without_a_client_ca_the_secured_listener_encrypts() {
    let secured = Secured::start(false).await;
    assert_eq!(secured.ask(None, node("mesh-core")).await, Ok(()));
}

#[tokio::test]
async fn a_certificate_of_another_trust_domain_is_nobodys_of_this_mesh() {
    let secured = Secured::start(true).await;
    for foreign in ["spiffe://partner.example/ns/shop/sa/web", "spiffe://cluster.local.evil/ns/shop/sa/web"] {
        assert!(secured.ask(Some(foreign), node("mesh-core")).await.is_err(), "{foreign}");
    }
    let told = || serde_json::to_string(&secured.fixture.report().turned_away).unwrap();
    until("it is told", || told().contains("cluster.local.evil")).await;
    assert!(told().contains("bad-certificate") && secured.fixture.report().clients.is_empty(), "{}", told());
}

#[tokio::test]
async fn the_secured_port_speaks_tls_1_3_alone_and_resumes_nothing() {
    let secured = Secured::start(true).await;
    let shake = async |config: &Arc<ClientConfig>| {
        let stream = tokio::net::TcpStream::connect(secured.address).await.unwrap();
        let mut stream =
            TlsConnector::from(config.clone()).connect(ServerName::try_from("control").unwrap(), stream).await?;
        // A ticket would come with the first bytes of the server: its SETTINGS.
        tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 9]).await?;
        Ok::<_, std::io::Error>(stream.get_ref().1.handshake_kind())
    };
    let old = shake(&secured.config(Some(SHOP), &[&TLS12])).await;
    assert!(old.as_ref().is_err_and(|error| error.to_string().contains("ProtocolVersion")), "{old:?}");
    let config = secured.config(Some(SHOP), &[&TLS13]);
    for _ in 0..3 {
        assert_eq!(shake(&config).await.unwrap(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed_and_keeps_nobody_out() {
    let secured = Secured::start(true).await;
    let mut silent = tokio::net::TcpStream::connect(secured.address).await.unwrap();
    assert_eq!(secured.ask(Some(SHOP), node("mesh-core")).await, Ok(()));
    let end = tokio::time::timeout(PATIENCE, tokio::io::AsyncReadExt::read(&mut silent, &mut [0])).await;
    assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
    let told = || serde_json::to_string(&secured.fixture.report().turned_away).unwrap();
    until("it is told", || told().contains("it said nothing within 3 s")).await;
}

/// A report of one call to a workload that says that it is `reviews` of a namespace.
pub(crate) fn report(namespace: &str) -> StreamAccessLogsMessage {
    let text = |text: &str| Value { kind: Some(value::Kind::StringValue(text.to_owned())) };
    let labels = Struct { fields: [("app".to_owned(), text("reviews"))].into() };
    let labels = Value { kind: Some(value::Kind::StructValue(labels)) };
    let fields = [("NAMESPACE".to_owned(), text(namespace)), ("LABELS".to_owned(), labels)].into();
    let node = Node { id: "n".to_owned(), metadata: Some(Struct { fields }), ..Node::default() };
    let call = Call {
        principal: Some("spiffe://cluster.local/ns/shop/sa/friend"),
        port: 80,
        is_grpc: false,
        method: "GET",
        path: "/a",
        is_allowed: true,
        rule: None,
    };
    let mut report = Report::default();
    report.calls.push(Counted::new(CallKey::of(&call), None, 1, 1, 1));
    access_log::encode(&report, &node).remove(0)
}

#[tokio::test]
async fn whose_record_a_report_of_calls_is_for_says_the_certificate_and_not_the_node() {
    let secured = Secured::start(true).await;
    let send = async |uri: Option<&str>, namespace: &str| {
        let channel = secured.channel(uri).await.map_err(|_| tonic::Code::Unavailable)?;
        let mut client = AccessLogServiceClient::new(channel);
        let answer = client.stream_access_logs(tokio_stream::iter([report(namespace)])).await;
        answer.map(drop).map_err(|status| status.code())
    };
    let calls = || secured.fixture.server.calls().unwrap().records(None);
    // Another namespace's, and without a certificate.
    assert_eq!(send(Some(SHOP), "pay").await, Err(tonic::Code::PermissionDenied));
    assert!(send(None, "shop").await.is_err());
    assert!(calls().is_empty());
    // The neighbour's in the same namespace: it stands under the account of the one who says so, apart from the other's own.
    assert_eq!(send(Some(SHOP), "shop").await, Ok(()));
    assert_eq!(send(Some("spiffe://cluster.local/ns/shop/sa/reviews"), "shop").await, Ok(()));
    let found = calls();
    let found: Vec<_> =
        found.iter().map(|one| (&*one.workload.service_account, one.workload.is_proven, one.count)).collect();
    assert_eq!(found, [("reviews", true, 1), ("web", true, 1)]);
    let refused = mesh_control::calls::of_workload(calls(), "shop", "reviews", None).unwrap_err();
    assert!(refused.contains("--service-account: reviews, web"), "{refused}");
}

#[tokio::test]
async fn whose_calls_a_report_of_load_is_of_says_the_certificate_and_not_the_node() {
    let secured = Secured::start(true).await;
    let send = async |uri: Option<&str>, namespace: &str| {
        let channel = secured.channel(uri).await.map_err(|_| tonic::Code::Unavailable)?;
        let node = report(namespace).identifier.and_then(|identifier| identifier.node);
        let locality = UpstreamLocalityStats { total_issued_requests: 5, ..UpstreamLocalityStats::default() };
        let told = LoadStatsRequest {
            node,
            cluster_stats: vec![ClusterStats {
                cluster_name: "outbound|80||bank.pay.svc.cluster.local".to_owned(),
                upstream_locality_stats: vec![locality],
                ..ClusterStats::default()
            }],
        };
        let mut client = LoadReportingServiceClient::new(channel);
        let answers = client.stream_load_stats(tokio_stream::iter([told])).await.map_err(|status| status.code())?;
        let mut answers = answers.into_inner();
        answers.message().await.map_err(|status| status.code())?.expect("an answer");
        // The server ends its side when it has read all of it.
        answers.message().await.map(drop).map_err(|status| status.code())
    };
    secured.fixture.publish(|shelf| shelf.put(Kind::Cluster, "outbound|80||bank.pay.svc.cluster.local", "1"));
    let edges = || status::graph(&secured.fixture.server, &crate::support::Quiet).edges;
    // Another namespace's, and without a certificate.
    assert_eq!(send(Some(SHOP), "pay").await, Err(tonic::Code::PermissionDenied));
    assert!(send(None, "shop").await.is_err());
    assert!(edges().is_empty());
    assert!(secured.fixture.metrics().contains("mesh_xds_refused_total{reason=\"identity\"} 1\n"));
    assert_eq!(send(Some(SHOP), "shop").await, Ok(()));
    let found = edges();
    let ends: Vec<_> = found.iter().map(|edge| (&*edge.source, &*edge.destination, edge.requests)).collect();
    assert_eq!(ends, [("shop/reviews", "bank.pay.svc.cluster.local", 5)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limits_over_tls_are_for_who_has_a_certificate_where_one_is_asked_for() {
    for (verifies, uri, is_answered) in
        [(false, None, true), (true, None, false), (true, Some("spiffe://cluster.local/ns/shop/sa/web"), true)]
    {
        let mut secured = Secured::start(verifies).await;
        let address = ([127, 0, 0, 1], 0).into();
        secured.address = secured.fixture.server.listen_rate_limits(address, Some(&secured.files)).await.unwrap();
        let asked = match secured.channel(uri).await {
            Ok(channel) => {
                let mut client = RateLimitServiceClient::new(channel);
                client.should_rate_limit(request(&[descriptor("user", "eve")])).await.is_ok()
            }
            Err(_) => false,
        };
        assert_eq!(asked, is_answered, "{verifies} {uri:?}");
    }
}
