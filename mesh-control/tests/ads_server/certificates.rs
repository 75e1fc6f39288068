//! The certificate service over real connections: who gets which certificate, and who gets none.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::google::protobuf::{Struct, Value, value};
use hyper_util::rt::TokioIo;
use mesh_control::ca::{CertificateAuthority, TOKEN_TTL, Tokens};
use mesh_control::embedded::{Config, Embedded};
use mesh_control::serve::{Certificates, TlsFiles};
use mesh_core::identity::SpiffeId;
use mesh_core::xds::istio_ca::{CREATE_CERTIFICATE, IstioCertificateRequest, IstioCertificateResponse};
use rcgen::{CertificateParams, KeyPair, SanType};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::secured::Authority;
use crate::support::{Delta, Fixture, PATIENCE, ServiceFn, Shelf, node, settled, until};

pub(crate) const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// A request for a new key, of somebody with these names.
pub(crate) fn request(names: &[(&str, &str)]) -> IstioCertificateRequest {
    let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let value = |text: &str| Value { kind: Some(value::Kind::StringValue(text.to_owned())) };
    let fields = names.iter().map(|(key, name)| ((*key).to_owned(), value(name))).collect();
    IstioCertificateRequest { csr: csr.pem().unwrap(), validity_duration: 0, metadata: Some(Struct { fields }) }
}

pub(crate) const NAMES: [(&str, &str); 2] = [("NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "web")];

/// Asks for a certificate.
pub(crate) async fn create(
    channel: Channel,
    request: IstioCertificateRequest,
    token: Option<&str>,
) -> Result<Vec<String>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(request);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token.parse().unwrap());
    }
    let codec = tonic_prost::ProstCodec::<IstioCertificateRequest, IstioCertificateResponse>::default();
    let path = http::uri::PathAndQuery::from_static(CREATE_CERTIFICATE);
    Ok(grpc.unary(request, path, codec).await?.into_inner().cert_chain)
}

/// Whom a certificate is for.
pub(crate) fn owner(pem: &str) -> String {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    match names.value.general_names[..] {
        [GeneralName::URI(uri)] => uri.to_owned(),
        ref other => panic!("{other:?}"),
    }
}

pub(crate) async fn plain(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

fn mesh_authority() -> Arc<CertificateAuthority> {
    Arc::new(CertificateAuthority::in_memory("cluster.local".parse().unwrap(), SystemTime::now()).unwrap())
}

/// A channel over TLS to a server whose certificate is of `trusted`, with this certificate.
pub(crate) async fn secured(
    address: SocketAddr,
    trusted: &[CertificateDer<'static>],
    own: Option<(&str, &[String])>,
) -> Result<Channel, tonic::transport::Error> {
    let mut roots = RootCertStore::empty();
    trusted.iter().for_each(|root| roots.add(root.clone()).unwrap());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let mut config = match own {
        Some((key, chain)) => {
            let chain = chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).collect();
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let connect = ServiceFn(move || {
        let connector = connector.clone();
        async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            connector.connect(ServerName::try_from("control").unwrap(), stream).await.map(TokioIo::new)
        }
    });
    Channel::from_static("http://control").connect_with_connector(connect).await
}

/// The files of a secured listener of another authority than the mesh's, which is the usual thing.
pub(crate) fn files(dir: &Path, authority: &Authority) -> TlsFiles {
    let (cert, key, _) = authority.issue(SanType::DnsName("control".try_into().unwrap()));
    std::fs::write(dir.join("cert.pem"), cert).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    std::fs::write(dir.join("ca.pem"), authority.0.pem()).unwrap();
    TlsFiles::new(dir.join("cert.pem"), dir.join("key.pem"))
}

/// A server with an authority and a secured listener.
struct Served {
    fixture: Fixture,
    mesh: Arc<CertificateAuthority>,
    operator: Authority,
    tokens: Tokens,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Served {
    async fn start(dev: bool, client_ca: bool) -> Served {
        let (mesh, operator, dir) = (mesh_authority(), Authority::new(), tempfile::tempdir().unwrap());
        let tokens = Tokens::of(dir.path());
        let options = settled().certificates(Certificates::new(mesh.clone()).dev(dev).tokens(tokens.clone()));
        let fixture = Fixture::start(Shelf::default(), options).await;
        let files = files(dir.path(), &operator).client_ca(client_ca.then(|| dir.path().join("ca.pem")));
        let address = fixture.server.listen_tls(([127, 0, 0, 1], 0).into(), &files).await.unwrap();
        Served { fixture, mesh, operator, tokens, address, _dir: dir }
    }

    async fn secured(&self, own: Option<(&str, &[String])>) -> Channel {
        self.try_secured(own).await.unwrap()
    }

    async fn try_secured(&self, own: Option<(&str, &[String])>) -> Result<Channel, tonic::transport::Error> {
        secured(self.address, &[self.operator.0.der().clone()], own).await
    }
}

#[tokio::test]
async fn in_development_mode_a_workload_on_this_machine_gets_the_identity_that_it_names() {
    let mesh = Embedded::start(Config::yaml(""), mesh_control::embedded::Options::default().dev()).await.unwrap();
    let socket = plain(mesh.xds_addr()).await;
    let chain = create(socket.clone(), request(&NAMES), None).await.unwrap();
    assert_eq!((owner(&chain[0]), chain.len()), (WEB.to_owned(), 3));
    assert_eq!(chain[2], mesh.authority().unwrap().roots_pem(), "the root is last");
    let chain = create(socket.clone(), request(&[]), None).await.unwrap();
    assert_eq!(owner(&chain[0]), "spiffe://cluster.local/ns/default/sa/default");
    // Inside the process, too.
    let server = mesh.server().clone();
    let connect = ServiceFn(move || {
        let server = server.clone();
        async move { server.connect().await.map(TokioIo::new) }
    });
    let memory = Endpoint::from_static("http://embedded").connect_with_connector(connect).await.unwrap();
    assert_eq!(owner(&create(memory, request(&NAMES), None).await.unwrap()[0]), WEB);

    let refused = async |names: &[(&str, &str)], token: Option<&str>| {
        create(socket.clone(), request(names), token).await.unwrap_err().code()
    };
    assert_eq!(refused(&[("NAMESPACE", "../admin")], None).await, Code::Unauthenticated);
    assert_eq!(refused(&[("ImpersonatedIdentity", WEB)], None).await, Code::PermissionDenied, "hazard C15");
    assert_eq!(refused(&[("NAMESPACE", "")], None).await, Code::InvalidArgument);
    for token in ["Bearer nonsense", "Bearer ", "Basic dXNlcjpwYXNz", "nonsense"] {
        assert_eq!(refused(&NAMES, Some(token)).await, Code::Unauthenticated, "{token}");
    }
}

#[tokio::test]
async fn an_embedded_mesh_has_the_trust_domain_that_it_was_given_and_gives_identities_away_on_loopback_alone() {
    use mesh_control::embedded::{Options, PlaneOptions};
    let state = tempfile::tempdir().unwrap();
    let config = tempfile::tempdir().unwrap();
    let plane = PlaneOptions::default().trust_domain("example.org".parse().unwrap()).state_dir(state.path());
    let mesh = Embedded::start(Config::dir(config.path()), Options::default().plane(plane).dev()).await.unwrap();
    let chain = create(plain(mesh.xds_addr()).await, request(&NAMES), None).await.unwrap();
    assert_eq!(owner(&chain[0]), "spiffe://example.org/ns/shop/sa/web");
    let dir = state.path().join("ca");
    let kept = CertificateAuthority::in_directory(&dir, "example.org".parse().unwrap(), SystemTime::now()).unwrap();
    assert_eq!(kept.roots_pem(), chain[2], "it is kept in the state directory");

    let open = Options::default().dev().xds_addr(([0, 0, 0, 0], 0).into());
    let refused = Embedded::start(Config::yaml(""), open).await.unwrap_err();
    assert!(refused.to_string().contains("loopback"), "{refused}");
    let none = Embedded::start(Config::yaml(""), Options::default()).await.unwrap();
    let refused = create(plain(none.xds_addr()).await, request(&NAMES), None).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "there is no authority");
}

#[tokio::test]
async fn without_development_mode_nobody_gets_a_certificate_without_proof() {
    let served = Served::start(false, false).await;
    let plain = plain(served.fixture.address).await;
    for channel in [plain, served.secured(None).await] {
        let refused = create(channel, request(&NAMES), None).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains("token"), "it says what to do: {refused}");
    }
}

#[tokio::test]
async fn c1_a_live_certificate_renews_its_own_identity_and_no_other() {
    let served = Served::start(false, false).await;
    let web: SpiffeId = WEB.parse().unwrap();
    let (key, issued) = served.mesh.issue_with_key(&web, 600, SystemTime::now()).unwrap();
    let channel = served.secured(Some((&key, &issued.chain[..2]))).await;
    for names in [&NAMES[..], &[]] {
        assert_eq!(owner(&create(channel.clone(), request(names), None).await.unwrap()[0]), WEB);
    }
    for names in
        [[("NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "admin")], [("NAMESPACE", "pay"), ("SERVICE_ACCOUNT", "web")]]
    {
        let refused = create(channel.clone(), request(&names), None).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{names:?}");
    }
    // The CSR asks for another name.
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://cluster.local/ns/shop/sa/admin".try_into().unwrap())];
    let csr = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let named = IstioCertificateRequest { csr, ..request(&[]) };
    assert_eq!(owner(&create(channel, named, None).await.unwrap()[0]), WEB);
}

#[tokio::test]
async fn where_the_mesh_has_an_authority_no_other_one_vouches_for_its_identities() {
    let served = Served::start(true, true).await;
    // A certificate of the operator's authority is for whoever is not of this mesh; a partner's is not for ours.
    for identity in [WEB, "spiffe://partner.example/ns/shop/sa/web"] {
        let (cert, key, _) = served.operator.issue(SanType::URI(identity.try_into().unwrap()));
        let channel = served.try_secured(Some((&key.serialize_pem(), &[cert]))).await;
        let refused = match channel {
            Ok(channel) => create(channel, request(&NAMES), None).await.is_err(),
            Err(_) => true,
        };
        assert!(refused, "{identity}");
    }
    let told = || serde_json::to_string(&served.fixture.report().turned_away).unwrap();
    until("both are told", || told().contains("\"count\":2")).await;
    assert!(told().contains("bad-certificate"), "{}", told());
    // The mesh's own does.
    let (key, issued) = served.mesh.issue_with_key(&WEB.parse().unwrap(), 600, SystemTime::now()).unwrap();
    let mut client =
        Delta::open(served.secured(Some((&key, &issued.chain[..2]))).await, node("mesh-core")).await.unwrap();
    client.send(mesh_control::catalog::Kind::Cluster, &["a"], &[]).await;
    until("it is connected", || !served.fixture.report().clients.is_empty()).await;
}

#[tokio::test]
async fn with_a_client_ca_those_without_a_certificate_get_to_the_certificate_service_and_no_further() {
    use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;
    use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
    let served = Served::start(false, true).await;
    let channel = served.secured(None).await;
    let refused = create(channel.clone(), request(&NAMES), None).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "it takes a token, or a certificate");
    let mut client = Delta::open(channel.clone(), node("mesh-core")).await.unwrap();
    client.send(mesh_control::catalog::Kind::Cluster, &["a"], &[]).await;
    assert_eq!(client.responses.message().await.unwrap_err().code(), Code::PermissionDenied);
    let mut status = ClientStatusDiscoveryServiceClient::new(channel);
    let refused = status.fetch_client_status(ClientStatusRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // A certificate of the mesh is as good as one of the operator's authority.
    let (key, issued) = served.mesh.issue_with_key(&WEB.parse().unwrap(), 0, SystemTime::now()).unwrap();
    let channel = served.secured(Some((&key, &issued.chain[..2]))).await;
    let mut status = ClientStatusDiscoveryServiceClient::new(channel);
    status.fetch_client_status(ClientStatusRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_request_that_cannot_be_signed_is_the_requesters_fault_and_says_so() {
    let served = Served::start(true, false).await;
    let channel = plain(served.fixture.address).await;
    let refused = async |change: &dyn Fn(&mut IstioCertificateRequest)| {
        let mut request = request(&NAMES);
        change(&mut request);
        create(channel.clone(), request, None).await.unwrap_err()
    };
    for (change, why) in [
        (
            &(|request: &mut IstioCertificateRequest| request.csr.clear()) as &dyn Fn(&mut IstioCertificateRequest),
            "PEM",
        ),
        (&|request| request.csr = format!("{0}{0}", request.csr), "one block"),
        (&|request| request.csr = "A".repeat(20_000), "larger than"),
        (&|request| request.validity_duration = -1, "-1 s"),
        (&|request| request.validity_duration = 10 * 365 * 24 * 3600, "at most"),
    ] {
        let refused = refused(change).await;
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(why), "{refused}");
    }
    // c4: a megabyte is not even read.
    assert_eq!(refused(&|request| request.csr = "A".repeat(1 << 20)).await.code(), Code::OutOfRange);
}

#[tokio::test]
async fn c14_an_identity_that_asks_too_often_is_throttled_and_others_are_served() {
    let served = Served::start(true, false).await;
    let channel = plain(served.fixture.address).await;
    let request = request(&NAMES);
    let all = (0..1_000).map(|_| create(channel.clone(), request.clone(), None));
    let all = futures_util::future::join_all(all).await;
    let issued = all.iter().filter(|answer| answer.is_ok()).count();
    assert!((200..1_000).contains(&issued), "{issued}");
    let throttled = all.iter().filter_map(|answer| answer.as_ref().err());
    assert!(throttled.clone().all(|status| status.code() == Code::ResourceExhausted) && throttled.count() > 0);
    // A connection has a rate of its own.
    let channel = plain(served.fixture.address).await;
    create(channel, self::request(&[("SERVICE_ACCOUNT", "other")]), None).await.unwrap();
}

fn bearer(tokens: &Tokens, identity: &str) -> String {
    let token = tokens.create(&identity.parse().unwrap(), TOKEN_TTL, SystemTime::now()).unwrap();
    format!("Bearer {}", *token)
}

#[tokio::test]
async fn c8_a_token_gives_one_certificate_of_its_identity() {
    let served = Served::start(false, true).await;
    let channel = served.secured(None).await;
    let token = bearer(&served.tokens, WEB);
    // What is wrong with the request does not cost the token.
    let other = request(&[("NAMESPACE", "pay"), ("SERVICE_ACCOUNT", "web")]);
    assert_eq!(create(channel.clone(), other, Some(&token)).await.unwrap_err().code(), Code::PermissionDenied);
    let broken = IstioCertificateRequest { csr: "nonsense".to_owned(), ..request(&NAMES) };
    assert_eq!(create(channel.clone(), broken, Some(&token)).await.unwrap_err().code(), Code::InvalidArgument);
    let chain = create(channel.clone(), request(&[]), Some(&token)).await.unwrap();
    assert_eq!(owner(&chain[0]), WEB);
    let again = create(channel.clone(), request(&NAMES), Some(&token)).await.unwrap_err();
    assert_eq!(again.code(), Code::Unauthenticated);
    let now = SystemTime::now();
    let expired = served.tokens.create(&WEB.parse().unwrap(), TOKEN_TTL, now - 2 * TOKEN_TTL).unwrap();
    let refused = create(channel.clone(), request(&NAMES), Some(&format!("Bearer {}", *expired))).await.unwrap_err();
    assert!(refused.code() == Code::Unauthenticated && refused.message().contains("expired"), "{refused}");
    let foreign = bearer(&served.tokens, "spiffe://other.example/ns/shop/sa/web");
    let refused = create(channel, request(&[]), Some(&foreign)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn c8_of_a_thousand_requests_with_one_token_one_succeeds() {
    let served = Served::start(false, false).await;
    let channel = served.secured(None).await;
    let token = bearer(&served.tokens, WEB);
    let request = request(&NAMES);
    let all = (0..1_000).map(|_| create(channel.clone(), request.clone(), Some(&token)));
    let all = futures_util::future::join_all(all).await;
    assert_eq!(all.iter().filter(|answer| answer.is_ok()).count(), 1);
    let refused: Vec<Code> = all.into_iter().filter_map(Result::err).map(|status| status.code()).collect();
    assert!(refused.iter().all(|code| matches!(code, Code::Unauthenticated | Code::ResourceExhausted)), "{refused:?}");
}

#[tokio::test]
async fn the_secured_listener_takes_certificates_of_a_root_that_came_while_it_runs() {
    let served = Served::start(false, false).await;
    let now = SystemTime::now();
    let renews = async || {
        let (key, issued) = served.mesh.issue_with_key(&WEB.parse().unwrap(), 600, now).unwrap();
        let (_, chain) = issued.chain.split_last().unwrap();
        let channel = secured(served.address, &[served.operator.0.der().clone()], Some((&key, chain))).await.ok()?;
        create(channel, request(&NAMES), None).await.ok()
    };
    assert_eq!(renews().await.expect("renewed")[2].matches("BEGIN CERTIFICATE").count(), 1);
    // It was announced nine days ago, so it signs.
    served.mesh.rotate_root(now - Duration::from_secs(9 * 24 * 3600)).unwrap();
    let (_, issued) = served.mesh.issue_with_key(&WEB.parse().unwrap(), 600, now).unwrap();
    assert_eq!(issued.chain[2].matches("BEGIN CERTIFICATE").count(), 2);
    let accepted = async {
        loop {
            if let Some(chain) = renews().await {
                return chain;
            }
        }
    };
    let chain = tokio::time::timeout(PATIENCE, accepted).await.expect("the new root is known");
    assert_eq!(chain[1], issued.chain[1], "of the new root");
}

#[tokio::test]
async fn x10_a_registration_is_its_identitys_and_nobody_elses() {
    use mesh_control::catalog::Kind;
    let served = Served::start(false, false).await;
    let listener = "xds.istio.io/grpc/lds/inbound/127.0.0.1:9080";
    let (key, issued) = served.mesh.issue_with_key(&WEB.parse().unwrap(), 600, SystemTime::now()).unwrap();
    let mut web = Delta::open(served.secured(Some((&key, &issued.chain[..2]))).await, node("mesh-core")).await.unwrap();
    web.send(Kind::Listener, &[listener], &[]).await;
    web.take().await;
    // The same node id, or another one, at the same address, by another identity or without any.
    let admin = "spiffe://cluster.local/ns/shop/sa/admin";
    let (key, issued) = served.mesh.issue_with_key(&admin.parse().unwrap(), 600, SystemTime::now()).unwrap();
    let by_admin = served.secured(Some((&key, &issued.chain[..2]))).await;
    let other = envoy_types::pb::envoy::config::core::v3::Node { id: "other".to_owned(), ..node("mesh-core") };
    for (channel, node) in [
        (plain(served.fixture.address).await, node("mesh-core")),
        (plain(served.fixture.address).await, other.clone()),
        (by_admin.clone(), node("mesh-core")),
        (by_admin, other),
    ] {
        let mut taker = Delta::open(channel, node).await.unwrap();
        taker.send(Kind::Listener, &[listener], &[]).await;
        let refused = taker.responses.message().await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        assert!(refused.message().contains("127.0.0.1:9080"), "{refused}");
    }
    let report = served.fixture.report();
    let [workload] = &report.workloads[..] else { panic!("{report:?}") };
    assert_eq!((workload.identity.as_deref(), &*workload.certificate), (Some(WEB), "seen"));
    assert_eq!(*served.fixture.registry.told.lock().unwrap(), ["+127.0.0.1:9080"], "it is as it was");
    let told = report.turned_away.iter().find(|one| one.reason == "registration").expect("it is told");
    assert_eq!(told.count, 4);
}

#[tokio::test]
async fn a_member_of_a_workload_group_has_the_service_account_of_the_group() {
    use mesh_control::catalog::Kind;
    let yaml = "
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: vms, namespace: shop}
spec: {template: {serviceAccount: web}}
";
    let control = Embedded::start(Config::yaml(yaml), mesh_control::embedded::Options::default()).await.unwrap();
    let joins = async |account: &str| {
        let text = |text: &str| Value { kind: Some(value::Kind::StringValue(text.to_owned())) };
        let fields = [("SERVICE_ACCOUNT", account), ("AUTO_REGISTER_GROUP", "vms")];
        let fields = fields.map(|(key, value)| (key.to_owned(), text(value)));
        let mut node = node("mesh-core");
        node.metadata = Some(Struct { fields: fields.into() });
        let mut client = Delta::open(plain(control.xds_addr()).await, node).await.unwrap();
        client.send(Kind::Listener, &["xds.istio.io/grpc/lds/inbound/127.0.0.1:9080"], &[]).await;
        client.responses.message().await.map(drop)
    };
    let refused = joins("admin").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("shop/vms") && refused.message().contains("\"web\""), "{refused}");
    assert!(control.status().workloads.is_empty() && control.status().turned_away.len() == 1);
    joins("web").await.unwrap();
}

#[tokio::test]
async fn what_was_issued_and_what_was_denied_is_counted_under_istios_names() {
    let served = Served::start(true, false).await;
    let channel = plain(served.fixture.address).await;
    create(channel.clone(), request(&NAMES), None).await.unwrap();
    for (request, token) in [
        (request(&NAMES), Some("Bearer nonsense")),
        (request(&NAMES), Some("Basic nonsense")),
        (request(&[("NAMESPACE", "")]), None),
        (IstioCertificateRequest { csr: "nonsense".to_owned(), ..request(&NAMES) }, None),
        (IstioCertificateRequest { csr: "A".repeat(1 << 20), ..request(&NAMES) }, None),
    ] {
        create(channel.clone(), request, token).await.unwrap_err();
    }
    let metrics = served.fixture.metrics();
    for line in [
        "citadel_server_csr_count 6",
        "citadel_server_success_cert_issuance_count 1",
        "citadel_server_authentication_failure_count 1",
        "citadel_server_csr_parsing_err_count 4",
        "citadel_server_csr_sign_err_count 0",
        "mesh_certificates_denied_total{reason=\"unreadable\"} 3",
        "mesh_certificates_denied_total{reason=\"unauthenticated\"} 1",
        "mesh_certificates_denied_total{reason=\"request\"} 1",
    ] {
        assert!(metrics.lines().any(|one| one == line), "{line} in {metrics}");
    }
    let value = |name: &str| -> u64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).expect(name);
        line.parse().unwrap()
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let day = 24 * 3600;
    assert!(value("citadel_server_root_cert_expiry_timestamp") > now + 3_600 * day);
    assert!((29 * day..=30 * day).contains(&value("citadel_server_cert_chain_expiry_seconds")));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_workloads_of_one_identity_that_renew_at_once_all_get_their_certificates() {
    let served = Served::start(true, false).await;
    let request = request(&NAMES);
    let all = (0..2_000).map(|_| {
        let (server, request) = (served.fixture.server.clone(), request.clone());
        tokio::spawn(async move {
            let connect = ServiceFn(move || {
                let server = server.clone();
                async move { server.connect().await.map(TokioIo::new) }
            });
            let own = Endpoint::from_static("http://control").connect_with_connector(connect).await.unwrap();
            create(own, request, None).await.map(|chain| chain.len())
        })
    });
    for one in futures_util::future::join_all(all).await {
        assert_eq!(one.unwrap().map_err(|status| status.to_string()), Ok(3));
    }
}

#[tokio::test]
async fn a_stream_lasts_no_longer_than_the_certificate_that_says_who_its_client_is() {
    use mesh_control::catalog::Kind;
    let served = Served::start(false, false).await;
    let (key, issued) = served.mesh.issue_with_key(&WEB.parse().unwrap(), 2, SystemTime::now()).unwrap();
    let mut web = Delta::open(served.secured(Some((&key, &issued.chain[..2]))).await, node("mesh-core")).await.unwrap();
    web.send(Kind::Cluster, &["a"], &[]).await;
    let end = async {
        while let Some(_response) = web.responses.message().await? {}
        Ok::<(), Status>(())
    };
    tokio::time::timeout(PATIENCE, end).await.expect("it ends").unwrap();
    until("nobody is left", || served.fixture.report().clients.is_empty()).await;
}
