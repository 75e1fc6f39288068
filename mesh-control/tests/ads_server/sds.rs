//! Envoy's secret discovery service: who is given what, and who is refused.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use mesh_control::ca::CertificateAuthority;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_control::serve::{self, Certificates};
use mesh_core::tls::Credentials;
use prost::{Message, Name};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::certificates::plain;
use crate::certificates_process::{Logged, plugged_in};
use crate::identity::Door;
use crate::process::page;
use crate::secrets::{has, scalar};
use crate::secured::Authority;
use crate::support::{PATIENCE, until};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

struct Subscription {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Subscription {
    async fn open(channel: Channel, names: &[&str]) -> Result<Subscription, Status> {
        let (requests, receiver) = mpsc::channel(4);
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let first =
            DiscoveryRequest { type_url: pb::Secret::type_url(), resource_names: names, ..DiscoveryRequest::default() };
        requests.send(first).await.unwrap();
        let answer = SecretDiscoveryServiceClient::new(channel).stream_secrets(ReceiverStream::new(receiver)).await?;
        Ok(Subscription { requests, responses: answer.into_inner() })
    }

    /// The next secrets, which are acknowledged.
    async fn next(&mut self) -> Result<Vec<pb::Secret>, Status> {
        let next = tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("an answer in time")?;
        let response = next.expect("the stream goes on");
        let secrets: Vec<_> = response.resources.iter().map(|any| pb::Secret::decode(&*any.value).unwrap()).collect();
        let acknowledged = DiscoveryRequest {
            version_info: response.version_info,
            response_nonce: response.nonce,
            type_url: response.type_url,
            resource_names: secrets.iter().map(|secret| secret.name.clone()).collect(),
            ..DiscoveryRequest::default()
        };
        self.requests.send(acknowledged).await.unwrap();
        Ok(secrets)
    }
}

/// What the first request leads to.
async fn asked(channel: Channel, name: &str) -> Result<Vec<pb::Secret>, Status> {
    Subscription::open(channel, &[name]).await?.next().await
}

fn text(source: Option<pb::TlsCertificate>, key: bool) -> String {
    let certificate = source.unwrap();
    let source = if key { certificate.private_key } else { certificate.certificate_chain };
    match source.unwrap().specifier.unwrap() {
        Specifier::InlineString(text) => text,
        other => panic!("{other:?}"),
    }
}

/// Trust domains and how many roots each has.
fn domains(secret: &pb::Secret) -> Vec<(String, usize)> {
    let Some(pb::secret::Type::ValidationContext(context)) = &secret.r#type else { panic!("no validation context") };
    assert!(context.trusted_ca.is_none(), "one pool of roots would let each vouch for all");
    let validator = context.custom_validator_config.as_ref().unwrap();
    assert_eq!(validator.name, "envoy.tls.cert_validator.spiffe");
    let config = pb::SpiffeCertValidatorConfig::decode(&*validator.typed_config.as_ref().unwrap().value).unwrap();
    let of = |domain: pb::spiffe_cert_validator_config::TrustDomain| match domain.trust_bundle.unwrap().specifier {
        Some(Specifier::InlineString(roots)) => (domain.name, roots.matches("BEGIN CERTIFICATE").count()),
        other => panic!("{other:?}"),
    };
    config.trust_domains.into_iter().map(of).collect()
}

fn authority(files: &Path) -> Arc<CertificateAuthority> {
    let now = SystemTime::now();
    let authority = CertificateAuthority::in_memory("cluster.local".parse().unwrap(), now).unwrap();
    let partner = ("partner.example".parse().unwrap(), files.join("partner.pem"));
    Arc::new(authority.trust_bundles(vec![partner], vec![], None, now).unwrap())
}

async fn control(offers: Certificates) -> Embedded {
    let serve = serve::Options::default().certificates(offers);
    Embedded::start(Config::yaml(""), Options::default().serve(serve)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_is_told_the_roots_of_each_trust_domain_apart_and_again_when_they_change() {
    let files = tempfile::tempdir().unwrap();
    let authority = authority(files.path());
    let control = control(Certificates::new(authority.clone())).await;
    let door = Door::open(control.server()).await;
    let mut stream = Subscription::open(door.enter(&authority, WEB).await, &["ROOTCA"]).await.unwrap();
    let [secret] = &stream.next().await.unwrap()[..] else { panic!("one secret") };
    assert_eq!((&*secret.name, domains(secret)), ("ROOTCA", vec![("cluster.local".to_owned(), 1)]));
    std::fs::write(files.path().join("partner.pem"), Authority::signing().0.pem()).unwrap();
    let told = stream.next().await.unwrap();
    assert_eq!(domains(&told[0]), [("cluster.local".to_owned(), 1), ("partner.example".to_owned(), 1)]);
    // Its own roots change, too: both are handed out from now on.
    authority.rotate_root(SystemTime::now()).unwrap();
    let told = stream.next().await.unwrap();
    assert_eq!(domains(&told[0])[0], ("cluster.local".to_owned(), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn x11_a_secret_is_for_whom_it_is_and_a_key_only_where_the_operator_says_so() {
    let files = tempfile::tempdir().unwrap();
    let authority = authority(files.path());
    let control_without = control(Certificates::new(authority.clone())).await;
    // Who has proven nothing gets nothing, by whatever name.
    for name in ["ROOTCA", "default"] {
        let refused = asked(plain(control_without.xds_addr()).await, name).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        assert!(refused.message().contains("certificate of the mesh"), "{refused}");
    }
    let door = Door::open(control_without.server()).await;
    let refused = asked(door.enter(&authority, WEB).await, "default").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("--sds-private-keys") && refused.message().contains(WEB), "{refused}");

    let control = control(Certificates::new(authority.clone()).hands_out_keys(true)).await;
    let door = Door::open(control.server()).await;
    let other = "spiffe://cluster.local/ns/pay/sa/bank";
    for name in [other, "kubernetes://tls", "kubernetes://pay/tls", "file-cert:a~b", ""] {
        let refused = asked(door.enter(&authority, WEB).await, name).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains(&format!("{name:?}")) && refused.message().contains(WEB), "{refused}");
    }
    let refused = control.status().turned_away;
    assert!(refused.iter().any(|one| one.node == WEB && one.text.contains("nobody else's")), "{refused:?}");

    let told = asked(door.enter(&authority, WEB).await, "default").await.unwrap();
    let Some(pb::secret::Type::TlsCertificate(own)) = told[0].r#type.clone() else { panic!("{}", told[0].name) };
    let (key, chain) = (text(Some(own.clone()), true), text(Some(own), false));
    let own = Credentials::from_pem(chain.as_bytes(), key.as_bytes(), authority.roots_pem().as_bytes()).unwrap();
    assert_eq!(own.id().as_str(), WEB, "its own, whoever else there is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_over_sds_is_renewed_in_time_and_its_key_stands_in_nothing_that_anybody_reads() {
    let files = tempfile::tempdir().unwrap();
    let authority = authority(files.path());
    let offers = Certificates::new(authority.clone()).hands_out_keys(true).ttl(Duration::from_secs(4));
    let control = control(offers).await;
    let door = Door::open(control.server()).await;
    let mut stream = Subscription::open(door.enter(&authority, WEB).await, &["default"]).await.unwrap();
    let mut keys = Vec::new();
    for _ in 0..2 {
        let [secret] = &stream.next().await.unwrap()[..] else { panic!("one secret") };
        let Some(pb::secret::Type::TlsCertificate(own)) = secret.r#type.clone() else { panic!("no certificate") };
        keys.push(text(Some(own), true));
    }
    assert_ne!(keys[0], keys[1], "it is another key");
    let seen = format!("{:?} {} {:?}", control.status(), control.metrics(), control.server());
    keys.iter().for_each(|key| assert!(!has(seen.as_bytes(), &scalar(key.as_bytes())), "{seen}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn c10_a_key_that_is_handed_out_is_in_no_log() {
    let (config, ca, dir) = (tempfile::tempdir().unwrap(), plugged_in(), tempfile::tempdir().unwrap());
    let operator = Authority::new();
    let files = crate::certificates::files(dir.path(), &operator);
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (secure, ca_dir) = (address.to_string(), ca.path().to_str().unwrap());
    let tls = ["--tls-cert", files.cert.to_str().unwrap(), "--tls-key", files.key.to_str().unwrap()];
    let more = [&["--ca-dir", ca_dir, "--sds-private-keys", "--secure-addr", &secure], &tls[..]].concat();
    let control = Logged::saying("trace", "127.0.0.1:0", config.path(), &more);
    let authority =
        CertificateAuthority::plugged_in(ca.path(), None, "cluster.local".parse().unwrap(), SystemTime::now()).unwrap();
    let (key, issued) = authority.issue_with_key(&WEB.parse().unwrap(), 600, SystemTime::now()).unwrap();
    let (_, chain) = issued.chain.split_last().unwrap();
    let channel =
        crate::certificates::secured(address, &[operator.0.der().clone()], Some((&key, chain))).await.unwrap();
    let told = asked(channel, "default").await.unwrap();
    let Some(pb::secret::Type::TlsCertificate(own)) = told[0].r#type.clone() else { panic!("no certificate") };
    let secret = scalar(text(Some(own), true).as_bytes());
    until("it is counted", || {
        page(control.status, "/metrics").contains("\ncitadel_server_success_cert_issuance_count 1\n")
    })
    .await;
    let seen = page(control.status, "/status?names=all") + &page(control.status, "/debug/syncz") + &control.log();
    assert!(seen.contains("\"method\":\"secret\"") && seen.len() > 5_000, "{seen}");
    assert!(!has(seen.as_bytes(), &secret));
}

/// What an Envoy is told to trust.
fn context(secrets: &[pb::Secret]) -> pb::CertificateValidationContext {
    match secrets.first().and_then(|secret| secret.r#type.clone()) {
        Some(pb::secret::Type::ValidationContext(context)) => context,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_roots_an_envoy_cannot_be_told_together_with_lists_it_does_not_trust_and_it_is_a_problem() {
    let (files, ca) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (partner, root) = (Authority::signing(), Authority::signing());
    let signer = root.intermediate();
    // The lists of the partner.
    std::fs::write(files.path().join("partner.pem"), partner.0.pem() + &partner.revoked(&[])).unwrap();
    let authority = authority(files.path());
    let control = self::control(Certificates::new(authority.clone())).await;
    let secrets = |control: &Embedded| control.status().authority.and_then(|authority| authority.secrets);
    assert_eq!(secrets(&control), None, "there is no Envoy");
    let door = Door::open(control.server()).await;
    let mut stream = Subscription::open(door.enter(&authority, WEB).await, &["ROOTCA"]).await.unwrap();
    assert_eq!(domains(&stream.next().await.unwrap()[0]), [("cluster.local".to_owned(), 1)]);
    let told = secrets(&control).expect("a problem");
    assert!(told.contains("partner.example") && told.contains("ROOTCA"), "{told}");
    assert!(control.metrics().contains("\nmesh_sds_trust_wrong 1\n"));

    // The mesh's own.
    crate::certificates_process::plug_in(ca.path(), &signer, &[&root]);
    std::fs::write(ca.path().join("ca-crl.pem"), root.revoked(&[]) + &signer.revoked(&[])).unwrap();
    std::fs::write(files.path().join("partner.pem"), partner.0.pem()).unwrap();
    let now = SystemTime::now();
    let plugged = CertificateAuthority::plugged_in(ca.path(), None, "cluster.local".parse().unwrap(), now).unwrap();
    let partner = ("partner.example".parse().unwrap(), files.path().join("partner.pem"));
    let plugged = Arc::new(plugged.trust_bundles(vec![partner], vec![], None, now).unwrap());
    let control = self::control(Certificates::new(plugged.clone()).hands_out_keys(true)).await;
    assert!(secrets(&control).is_some_and(|told| told.contains("partner.example")), "from the start");
    let door = Door::open(control.server()).await;
    let mut stream = Subscription::open(door.enter(&plugged, WEB).await, &["ROOTCA"]).await.unwrap();
    let context = context(&stream.next().await.unwrap());
    let inline = |source: Option<envoy_types::pb::envoy::config::core::v3::DataSource>| match source.unwrap().specifier
    {
        Some(Specifier::InlineString(text)) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(inline(context.trusted_ca).matches("BEGIN CERTIFICATE").count(), 1, "its own root alone");
    assert_eq!(inline(context.crl).matches("BEGIN X509 CRL").count(), 2);
    assert!(context.custom_validator_config.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_secrets_are_counted_by_identity() {
    let files = tempfile::tempdir().unwrap();
    let authority = authority(files.path());
    let serve = serve::Options::default().certificates(Certificates::new(authority.clone())).streams_per_identity(1);
    let control = Embedded::start(Config::yaml(""), Options::default().serve(serve)).await.unwrap();
    let door = Door::open(control.server()).await;
    let mut first = Subscription::open(door.enter(&authority, WEB).await, &["ROOTCA"]).await.unwrap();
    first.next().await.unwrap();
    let refused = asked(door.enter(&authority, WEB).await, "ROOTCA").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("--streams-per-identity"), "{refused}");
    asked(door.enter(&authority, "spiffe://cluster.local/ns/shop/sa/other").await, "ROOTCA").await.unwrap();
    drop(first);
    let again = async { while asked(door.enter(&authority, WEB).await, "ROOTCA").await.is_err() {} };
    tokio::time::timeout(PATIENCE, again).await.expect("its stream has ended");
}

/// A Secret of the namespace `shop` with a new certificate and its key, and the key.
fn of_kubernetes() -> (String, String) {
    use base64::Engine;
    let key = rcgen::KeyPair::generate().unwrap();
    let chain = rcgen::CertificateParams::new(["client".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let (crt, pem) = (encoded(&chain), encoded(&key.serialize_pem()));
    let data = format!("data: {{tls.crt: {crt}, tls.key: {pem}, ca.crt: {crt}}}");
    let head = "apiVersion: v1\nkind: Secret\nmetadata: {name: client, namespace: shop}\ntype: kubernetes.io/tls\n";
    (format!("{head}{data}\n"), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn x11_a_secret_is_told_to_workloads_of_its_namespace_again_when_it_changes_and_stands_in_nothing_that_anybody_reads()
 {
    const NAME: &str = "kubernetes://shop/client";
    let files = tempfile::tempdir().unwrap();
    let authority = authority(files.path());
    let control = control(Certificates::new(authority.clone())).await;
    let key_of = |secret: &pb::Secret| match secret.r#type.clone() {
        Some(pb::secret::Type::TlsCertificate(pair)) => match pair.private_key.unwrap().specifier.unwrap() {
            Specifier::InlineBytes(bytes) => String::from_utf8(bytes).unwrap(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let door = Door::open(control.server()).await;
    let mut stream = Subscription::open(door.enter(&authority, WEB).await, &[NAME]).await.unwrap();
    // As long as no rule names it, it is for nobody.
    control.set_yaml("secret.yaml", &of_kubernetes().0).unwrap();
    let (first, first_key) = of_kubernetes();
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: client, namespace: shop}\n\
                spec: {host: api.example.com, workloadSelector: {matchLabels: {app: web}},\n  \
                trafficPolicy: {tls: {mode: MUTUAL, credentialName: client}}}\n";
    control.set_yaml("secret.yaml", &format!("{first}{rule}")).unwrap();
    let told = stream.next().await.unwrap();
    assert_eq!((&*told[0].name, key_of(&told[0])), (NAME, first_key.clone()));
    let roots = asked(door.enter(&authority, WEB).await, &format!("{NAME}-cacert")).await.unwrap();
    assert!(matches!(roots[0].r#type, Some(pb::secret::Type::ValidationContext(_))), "{}", roots[0].name);
    let (second, second_key) = of_kubernetes();
    control.set_yaml("secret.yaml", &format!("{second}{rule}")).unwrap();
    assert_eq!(key_of(&stream.next().await.unwrap()[0]), second_key);
    for (who, name) in [
        ("spiffe://cluster.local/ns/pay/sa/web", NAME),
        ("spiffe://cluster.local/shop", NAME),
        (WEB, "kubernetes://pay/client"),
    ] {
        let refused = asked(door.enter(&authority, who).await, name).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{who} {name}: {refused}");
        assert!(refused.message().contains("of its own namespace"), "{refused}");
    }
    let seen = format!("{:?} {} {:?} {:?}", control.status(), control.metrics(), control.server(), control);
    for key in [first_key, second_key] {
        assert!(!has(seen.as_bytes(), &scalar(key.as_bytes())), "{seen}");
    }
}
