//! Who counts as somebody: whoever proves it. What a stream without a credential gets, and what it cannot change.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest};
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use mesh_control::ca::{CertificateAuthority, Issued};
use mesh_control::catalog::Kind;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_control::serve::{self, Certificates, Server};
use tonic::{Code, Status};
use zeroize::Zeroizing;

use crate::certificates::{NAMES, create, files, plain, request, secured};
use crate::certificates_process::{Logged, plugged_in};
use crate::embedded::labelled;
use crate::process::{output, text};
use crate::secured::Authority;
use crate::support::{Delta, Fixture, PATIENCE, Shelf, Sotw, node, said, settled, until};

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
";
const CLUSTER: &str = "outbound|9080||reviews.shop.svc.cluster.local";
pub(crate) const LISTENER: &str = "xds.istio.io/grpc/lds/inbound/127.0.0.1:9080";
const REVIEWS: &str = "spiffe://cluster.local/ns/shop/sa/reviews";

/// A workload of the service, with what else its node says.
pub(crate) fn claims(name: &str, more: &[(&str, &str)]) -> Node {
    let mut node = labelled(name, "reviews");
    let text = |text: &str| Value { kind: Some(value::Kind::StringValue(text.to_owned())) };
    let metadata = node.metadata.get_or_insert_with(Struct::default);
    metadata.fields.extend(more.iter().map(|(key, value)| ((*key).to_owned(), text(value))));
    node
}

/// Opens a stream that asks for the server's listener.
pub(crate) async fn registers(address: SocketAddr, node: Node) -> (Delta, Result<DeltaDiscoveryResponse, Status>) {
    let mut stream = Delta::open(plain(address).await, node).await.unwrap();
    stream.send(Kind::Listener, &[LISTENER], &[]).await;
    let answer = tokio::time::timeout(PATIENCE, stream.responses.message()).await.expect("an answer in time");
    (stream, answer.map(|response| response.expect("a response")))
}

fn body(response: &DeltaDiscoveryResponse) -> String {
    String::from_utf8_lossy(&response.resources[0].resource.as_ref().unwrap().value).into_owned()
}

/// What a client is told of the cluster: who may answer, and how many endpoints there are.
async fn told(address: SocketAddr) -> (String, String) {
    let mut client = Delta::open(plain(address).await, labelled("web", "web")).await.unwrap();
    client.send(Kind::Cluster, &[CLUSTER], &[]).await;
    let cluster = client.next().await;
    client.answer(&cluster, None).await;
    client.send(Kind::Endpoints, &[CLUSTER], &[]).await;
    (body(&cluster), client.next().await.resources[0].version.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn x12_a_stream_of_this_machine_without_a_certificate_is_nobodys_identity_but_in_development() {
    let (config, ca, state) = (tempfile::tempdir().unwrap(), plugged_in(), tempfile::tempdir().unwrap());
    std::fs::write(config.path().join("shop.yaml"), SHOP).unwrap();
    let (ca, state) = (ca.path().to_str().unwrap(), state.path().to_str().unwrap());
    let permissive = "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\nspec: {mtls: {mode: PERMISSIVE}}\n";
    let label = ("security.istio.io/tlsMode", "istio");
    for (arguments, class, counts) in [
        (&["--ca-dir", ca][..], "mesh-core", false),
        (&["--ca-dir", ca], "gRPC C-core", false),
        (&["--state-dir", state], "gRPC C-core", false),
        (&["--dev"], "mesh-core", true),
        (&["--dev"], "gRPC C-core", true),
    ] {
        let control = Logged::start(config.path(), &[arguments, &["--settle", "0"]].concat());
        let mut node = claims("reviews-1", &[("SERVICE_ACCOUNT", "reviews")]);
        node.user_agent_name = class.to_owned();
        let metadata = node.metadata.as_mut().unwrap();
        if let Some(value::Kind::StructValue(labels)) = &mut metadata.fields.get_mut("LABELS").unwrap().kind {
            let value = Value { kind: Some(value::Kind::StringValue(label.1.to_owned())) };
            labels.fields.insert(label.0.to_owned(), value);
        }
        let (_stream, listener) = registers(control.xds, node).await;
        let listener = body(&listener.unwrap());
        let (cluster, endpoints) = told(control.xds).await;
        let what = format!("{arguments:?} {class}");
        assert_eq!(cluster.contains(REVIEWS), counts, "{what}: {cluster}");
        let is_strict = arguments[0] != "--state-dir";
        // gRPC has no place for a reason.
        if class == "mesh-core" {
            let reason = "has not shown that it has a certificate";
            assert_eq!(listener.contains(reason), is_strict && !counts, "{what}: {listener}");
        }
        // Where mutual TLS is STRICT, nobody is sent there; where it is not, everybody is let in and called in plaintext.
        assert_eq!(endpoints.ends_with("-1"), counts || !is_strict, "{what}: {endpoints}");
    }
    std::fs::write(config.path().join("shop.yaml"), format!("{SHOP}{permissive}")).unwrap();
    let control = Logged::start(config.path(), &["--ca-dir", ca, "--settle", "0"]);
    let (_stream, listener) = registers(control.xds, claims("reviews-1", &[("SERVICE_ACCOUNT", "reviews")])).await;
    assert!(listener.is_ok());
    let (cluster, endpoints) = told(control.xds).await;
    assert!(!cluster.contains(REVIEWS) && endpoints.ends_with("-1"), "it is called in plaintext: {cluster}");
}

#[tokio::test(flavor = "multi_thread")]
async fn x12_without_a_credential_this_machine_reads_configuration_and_status_and_gets_nothing_that_is_somebodys() {
    let (config, ca) = (tempfile::tempdir().unwrap(), plugged_in());
    std::fs::write(config.path().join("shop.yaml"), SHOP).unwrap();
    let ca = ca.path().to_str().unwrap();
    let control = Logged::start(config.path(), &["--ca-dir", ca, "--settle", "0"]);
    // --xds-addr and --status-addr ask for it: configuration and status, for everybody who reaches them.
    assert!(told(control.xds).await.0.contains("reviews"));
    let read = output(&["status", "--status-addr", &control.status.to_string()]);
    assert!(read.status.success(), "{}", text(&read.stderr));
    // What is somebody's is for who proves to be it.
    let refused = create(plain(control.xds).await, request(&NAMES), None).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    drop(control);
    // `none` serves nobody without a credential.
    let refused = output(&["serve", "--config", config.path().to_str().unwrap(), "--xds-addr", "none"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("--tls-cert"), "{}", text(&refused.stderr));
}

#[tokio::test]
async fn x10_who_has_proven_nothing_does_not_change_what_another_one_has_registered() {
    let control = Embedded::start(Config::yaml(SHOP), Options::default()).await.unwrap();
    let address = control.xds_addr();
    let (mut first, answer) = registers(address, claims("reviews-1", &[])).await;
    assert_eq!(said(&answer.unwrap()).len(), 1);
    let before = format!("{:?}", control.plane().services()[0].ports);
    let labels = Value {
        kind: Some(value::Kind::StructValue(Struct {
            fields: [("app".to_owned(), Value { kind: Some(value::Kind::StringValue("other".to_owned())) })].into(),
        })),
    };
    let mut relabelled = claims("reviews-1", &[]);
    relabelled.metadata.as_mut().unwrap().fields.insert("LABELS".to_owned(), labels);
    // By the same node id, or by another one at the same address.
    for taker in [relabelled.clone(), claims("a-reviews", &[])] {
        let refused = registers(address, taker).await.1.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        assert!(refused.message().contains("127.0.0.1:9080"), "{refused}");
        assert_eq!(format!("{:?}", control.plane().services()[0].ports), before);
    }
    // The same one, which comes back before its end is known.
    let (_again, answer) = registers(address, claims("reviews-1", &[])).await;
    assert!(answer.is_ok(), "{answer:?}");
    drop(_again);
    first.send(Kind::Listener, &[], &[LISTENER]).await;
    until("it is nobody's", || control.status().workloads.iter().all(|workload| !workload.connected)).await;
    let (_taker, answer) = registers(address, relabelled).await;
    assert!(answer.is_ok(), "nobody is there for it any more: {answer:?}");
}

fn group(account: &str) -> String {
    format!(
        "{SHOP}---\napiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {{name: vms, namespace: shop}}\nspec: \
         {{metadata: {{labels: {{tier: back}}}}, template: {{serviceAccount: {account}}}}}\n"
    )
}

#[tokio::test]
async fn a_workload_group_that_is_gone_or_for_another_account_ends_its_memberships() {
    let member = || claims("reviews-1", &[("SERVICE_ACCOUNT", "reviews"), ("AUTO_REGISTER_GROUP", "vms")]);
    for (changed, why) in
        [(group("other"), "the service account \"other\""), (SHOP.to_owned(), "there is no WorkloadGroup shop/vms")]
    {
        let control = Embedded::start(Config::yaml(group("reviews")), Options::default()).await.unwrap();
        let (mut stream, answer) = registers(control.xds_addr(), member()).await;
        assert!(answer.is_ok(), "{answer:?}");
        // A change that leaves it a member.
        control.set_yaml("config.yaml", &group("reviews").replace("back", "front")).unwrap();
        control.set_yaml("config.yaml", &changed).unwrap();
        let end = async {
            loop {
                if let Err(status) = stream.responses.message().await {
                    return status;
                }
            }
        };
        let status = tokio::time::timeout(PATIENCE, end).await.expect("it is told");
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(status.message().contains(why), "{status}");
        assert!(control.status().workloads.is_empty(), "{:?}", control.status().workloads);
        let refused = registers(control.xds_addr(), member()).await.1.unwrap_err();
        assert!(refused.message().contains(why), "{refused}");
        let told = control.status().turned_away;
        assert!(told.iter().any(|one| one.reason == "registration" && one.text.contains(why)), "{told:?}");
    }
}

fn authority() -> Arc<CertificateAuthority> {
    Arc::new(CertificateAuthority::in_memory("cluster.local".parse().unwrap(), SystemTime::now()).unwrap())
}

/// A server's secured listener.
pub(crate) struct Door {
    address: SocketAddr,
    operator: Authority,
    _dir: tempfile::TempDir,
}

impl Door {
    pub(crate) async fn open(server: &Server) -> Door {
        let (operator, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let files = files(dir.path(), &operator);
        let address = server.listen_tls(([127, 0, 0, 1], 0).into(), &files).await.unwrap();
        Door { address, operator, _dir: dir }
    }

    /// A channel with a certificate of this identity.
    pub(crate) async fn enter(&self, authority: &CertificateAuthority, identity: &str) -> tonic::transport::Channel {
        self.enter_with(&authority.issue_with_key(&identity.parse().unwrap(), 600, SystemTime::now()).unwrap()).await
    }

    /// One with this certificate.
    pub(crate) async fn enter_with(&self, (key, issued): &(Zeroizing<String>, Issued)) -> tonic::transport::Channel {
        let (_, chain) = issued.chain.split_last().unwrap();
        secured(self.address, &[self.operator.0.der().clone()], Some((key, chain))).await.unwrap()
    }
}

#[tokio::test]
async fn where_certificates_are_issued_a_member_of_a_group_has_proven_its_account() {
    // A group for one service account, and one for whoever is of its namespace.
    for account in ["reviews", "''"] {
        let authority = authority();
        let serve = serve::Options::default().certificates(Certificates::new(authority.clone()));
        let control = Embedded::start(Config::yaml(group(account)), Options::default().serve(serve)).await.unwrap();
        let door = Door::open(control.server()).await;
        let member = || claims("reviews-1", &[("SERVICE_ACCOUNT", "reviews"), ("AUTO_REGISTER_GROUP", "vms")]);
        let refused = registers(control.xds_addr(), member()).await.1.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        assert!(refused.message().contains("without a certificate"), "{refused}");
        let channel = door.enter(&authority, REVIEWS).await;
        let mut stream = Delta::open(channel, member()).await.unwrap();
        stream.send(Kind::Listener, &[LISTENER], &[]).await;
        assert_eq!(said(&stream.next().await).len(), 1);
    }
}

#[tokio::test]
async fn an_identity_has_so_many_streams_and_names_and_others_have_theirs() {
    let authority = authority();
    let options = settled().certificates(Certificates::new(authority.clone()));
    let options = options.streams_per_identity(2).name_bytes_per_identity(1 << 20);
    let fixture = Fixture::start(Shelf::default().with(Kind::Cluster, "a", "1"), options).await;
    let door = Door::open(&fixture.server).await;
    let open = async |channel| {
        let mut stream = Delta::open(channel, node("mesh-core")).await.unwrap();
        stream.send(Kind::Cluster, &["a"], &[]).await;
        let answer = tokio::time::timeout(PATIENCE, stream.responses.message()).await.expect("an answer in time");
        answer.map(|response| {
            assert_eq!(said(&response.expect("a response")), ["a=1"]);
            stream
        })
    };
    let (mut first, second) =
        (open(fixture.channel().await).await.unwrap(), open(fixture.channel().await).await.unwrap());
    let refused = open(fixture.channel().await).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(
        refused.message().contains("127.0.0.1") && refused.message().contains("--streams-per-identity"),
        "{refused}"
    );
    // Who shows a certificate is counted by itself, wherever it comes from.
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let mut certified = open(door.enter(&authority, web).await).await.unwrap();
    drop(second);
    until("a stream is gone", || fixture.report().clients.len() == 2).await;
    let mut third = open(fixture.channel().await).await.unwrap();
    // The names of all its streams count together.
    let name = |n: usize| format!("{n}{}", "x".repeat(600 << 10));
    first.send(Kind::Cluster, &[&name(1)], &[]).await;
    assert_eq!(said(&first.next().await), [format!("!{}", name(1))]);
    third.send(Kind::Cluster, &[&name(2)], &[]).await;
    let refused = loop {
        if let Err(status) = third.responses.message().await {
            break status;
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("--name-mib-per-identity"), "{refused}");
    certified.send(Kind::Cluster, &[&name(3)], &[]).await;
    assert_eq!(said(&certified.next().await).len(), 1);
    let limited = fixture.report().turned_away.into_iter().find(|one| one.reason == "limit").expect("it is told");
    assert_eq!(limited.count, 2);
}

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

#[tokio::test]
async fn x11_whoever_asks_for_a_secret_by_whatever_name_is_told_the_same() {
    let (authority, dir) = (authority(), tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("shop.yaml"), format!("{SHOP}---\napiVersion: v1\nkind: Secret\nmetadata: {{name: tls, namespace: pay}}\nstringData: {{tls.key: hush}}\n")).unwrap();
    let serve = serve::Options::default().certificates(Certificates::new(authority.clone()));
    let control = Embedded::start(Config::dir(dir.path()), Options::default().serve(serve)).await.unwrap();
    let door = Door::open(control.server()).await;
    // Its own, somebody else's, and what nobody has: `default` and `ROOTCA` are what Istio's agents call a workload's own.
    for name in ["default", "ROOTCA", "kubernetes://tls", "kubernetes://pay/tls", "kubernetes://pay/none"] {
        for channel in [plain(control.xds_addr()).await, door.enter(&authority, REVIEWS).await] {
            let mut delta = Delta::open(channel.clone(), labelled("reviews-1", "reviews")).await.unwrap();
            let asked = DeltaDiscoveryRequest {
                node: Some(labelled("reviews-1", "reviews")),
                type_url: SECRET.to_owned(),
                resource_names_subscribe: vec![name.to_owned()],
                ..DeltaDiscoveryRequest::default()
            };
            delta.requests.send(asked).await.unwrap();
            // Only gateways are told any by such a stream: to whoever else asks, there is none of any name.
            let answer = delta.next().await;
            assert_eq!((&*answer.type_url, answer.resources.len()), (SECRET, 0), "{name}");
            assert_eq!(answer.removed_resources, [name]);
            delta.send(Kind::Cluster, &[CLUSTER], &[]).await;
            let answer = delta.next().await;
            assert_eq!((&*answer.type_url, answer.resources.len()), (Kind::Cluster.type_url(), 1), "{name}");
            let mut sotw = Sotw::open(channel.clone(), labelled("reviews-1", "reviews")).await.unwrap();
            let asked = DiscoveryRequest {
                node: Some(labelled("reviews-1", "reviews")),
                type_url: SECRET.to_owned(),
                resource_names: vec![name.to_owned()],
                ..DiscoveryRequest::default()
            };
            sotw.requests.send(asked).await.unwrap();
            let answer = sotw.next().await;
            assert_eq!((&*answer.type_url, answer.resources.len()), (SECRET, 0), "{name}");
            sotw.send(Kind::Cluster, &[CLUSTER], None, None).await;
            assert_eq!(sotw.next().await.type_url, Kind::Cluster.type_url(), "{name}");
            // There is nothing to fetch, whoever asks: the service tells streams what is their own (tests/ads_server/sds.rs).
            let mut grpc = tonic::client::Grpc::new(channel);
            grpc.ready().await.unwrap();
            let path =
                http::uri::PathAndQuery::from_static("/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets");
            let codec = tonic_prost::ProstCodec::<DiscoveryRequest, DeltaDiscoveryResponse>::default();
            let asked = DiscoveryRequest { resource_names: vec![name.to_owned()], ..DiscoveryRequest::default() };
            let refused = grpc.unary(tonic::Request::new(asked), path, codec).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unimplemented, "{name}: {refused}");
        }
    }
}
