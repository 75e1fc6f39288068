//! An agent of the test's own, over a real socket.

use std::convert::Infallible;
use std::time::Duration;

use http::HeaderMap;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber,
};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::server::{Grpc as Answers, NamedService, ServerStreamingService};

use super::*;
use crate::xds::Bootstrap;
use crate::xds::bootstrap::CertificateProvider;
use crate::xds::certificates::keep;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: Vec<u8>,
}

impl Authority {
    fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let root = params.self_signed(&key).expect("a certificate").der().to_vec();
        Authority { issuer: Issuer::new(params, key), root }
    }

    /// Its list of revoked certificates, which holds for an hour or has ended.
    fn list(&self, serials: &[u64], has_ended: bool) -> Vec<u8> {
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
        let now = rcgen::date_time_ymd(1970, 1, 1) + since_epoch;
        let end = if has_ended { now - Duration::from_secs(1) } else { now + Duration::from_secs(3600) };
        let one = |serial: &u64| rcgen::RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let params = rcgen::CertificateRevocationListParams {
            this_update: now - Duration::from_secs(60),
            next_update: end,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(one).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("a list").der().to_vec()
    }

    fn svid(&self, id: &str) -> X509Svid {
        self.svid_of(id, fastrand::u64(1 << 32..1 << 62))
    }

    fn svid_of(&self, id: &str, serial: u64) -> X509Svid {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial));
        params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ASCII"))];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        X509Svid {
            spiffe_id: id.to_owned(),
            x509_svid: params.signed_by(&key, &self.issuer).expect("a certificate").der().to_vec(),
            x509_svid_key: key.serialize_der(),
            bundle: self.root.clone(),
        }
    }
}

const WEB: &str = "spiffe://td/ns/shop/sa/web";

fn answer(svids: Vec<X509Svid>) -> X509SvidResponse {
    X509SvidResponse { svids, ..Default::default() }
}

/// One stream that somebody has opened: what came with it, and where its answers go.
type Opened = (HeaderMap, mpsc::Sender<Result<X509SvidResponse, Status>>);

#[derive(Clone)]
struct Agent(mpsc::Sender<Opened>);

impl NamedService for Agent {
    const NAME: &'static str = "SpiffeWorkloadAPI";
}

impl Service<http::Request<Body>> for Agent {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        struct Fetch(Agent, HeaderMap);
        impl ServerStreamingService<X509SvidRequest> for Fetch {
            type Response = X509SvidResponse;
            type ResponseStream = ReceiverStream<Result<X509SvidResponse, Status>>;
            type Future = BoxFuture<tonic::Response<Self::ResponseStream>, Status>;

            fn call(&mut self, _: tonic::Request<X509SvidRequest>) -> Self::Future {
                let (opened, headers) = (self.0.0.clone(), self.1.clone());
                Box::pin(async move {
                    let (answers, stream) = mpsc::channel(4);
                    opened.send((headers, answers)).await.map_err(|_| Status::unavailable("gone"))?;
                    Ok(tonic::Response::new(ReceiverStream::new(stream)))
                })
            }
        }
        assert_eq!(request.uri().path(), FETCH_X509_SVID);
        let fetch = Fetch(self.clone(), request.headers().clone());
        Box::pin(async move {
            let codec = ProstCodec::<X509SvidResponse, X509SvidRequest>::default();
            Ok(Answers::new(codec).server_streaming(fetch, request).await)
        })
    }
}

/// A workload that follows an agent.
struct Rig {
    opened: mpsc::Receiver<Opened>,
    certificates: Arc<Certificates>,
    keeper: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

fn start() -> Rig {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let (sender, opened) = mpsc::channel(4);
    tokio::spawn(async move {
        let server = tonic::transport::Server::builder().add_service(Agent(sender));
        let _ = server.serve_with_incoming(UnixListenerStream::new(listener)).await;
    });
    let mut bootstrap = Bootstrap::new("unused:1");
    let config = serde_json::json!({"socket": format!("unix://{}", socket.display())});
    let provider = CertificateProvider { plugin: "spiffe_workload_api".to_owned(), config };
    bootstrap.certificate_providers.insert("default".to_owned(), provider);
    let certificates = Arc::new(Certificates::default());
    certificates.want();
    let keeper = tokio::spawn(keep(Arc::clone(&certificates), Arc::new(bootstrap), Connector::default(), 1));
    Rig { opened, certificates, keeper, _dir: dir }
}

impl Rig {
    /// The next stream that the workload opens.
    async fn opened(&mut self) -> Opened {
        self.opened.recv().await.expect("a stream")
    }

    /// Waits until this is what handshakes are told.
    async fn said(&self, part: &str) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while !self.certificates.missing().to_string().contains(part) {
            assert!(tokio::time::Instant::now() < deadline, "{:?}", self.certificates.missing());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn serial_other_than(&self, serial: &str) -> String {
        loop {
            let now = self.certificates.get().await.serial().to_owned();
            if now != serial {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn a_workload_is_whoever_its_agent_says_and_each_answer_takes_the_place_of_the_one_before() {
    let mut rig = start();
    let (headers, answers) = rig.opened().await;
    assert_eq!(headers.get(SECURITY_HEADER).map(|value| value.as_bytes()), Some(b"true".as_slice()));
    let authority = Authority::named("own");
    let second = authority.svid("spiffe://td/ns/shop/sa/other");
    answers.send(Ok(answer(vec![authority.svid(WEB), second]))).await.expect("sent");
    let first = rig.certificates.get().await;
    assert_eq!(first.id().as_str(), WEB, "the first one is the default");
    answers.send(Ok(answer(vec![authority.svid(WEB)]))).await.expect("sent");
    let serial = rig.serial_other_than(first.serial()).await;

    // The agent goes away: what it said last stands, and it is asked again.
    answers.send(Err(Status::unavailable("going down"))).await.expect("sent");
    rig.said("going down").await;
    let (_, answers) = rig.opened().await;
    assert_eq!(rig.certificates.get().await.serial(), serial);
    answers.send(Ok(answer(vec![authority.svid(WEB)]))).await.expect("sent");
    rig.serial_other_than(&serial).await;
}

#[tokio::test]
async fn an_agent_that_finds_the_call_malformed_is_not_asked_again_and_one_that_denies_is() {
    let mut rig = start();
    let (_, answers) = rig.opened().await;
    answers.send(Err(Status::permission_denied("no identity issued"))).await.expect("sent");
    let (_, answers) = rig.opened().await;
    rig.said("no identity issued").await;
    answers.send(Err(Status::invalid_argument("security header missing"))).await.expect("sent");
    rig.keeper.await.expect("it gives up");
    assert!(rig.certificates.missing().to_string().contains("security header missing"));
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_the_last_good_answer_stands() {
    let mut rig = start();
    let (_, answers) = rig.opened().await;
    let (authority, foreign) = (Authority::named("own"), Authority::named("foreign"));
    answers.send(Ok(answer(vec![authority.svid(WEB)]))).await.expect("sent");
    let good = rig.certificates.get().await;
    let with = |change: &dyn Fn(&mut X509SvidResponse)| {
        let mut response = answer(vec![authority.svid(WEB)]);
        change(&mut response);
        response
    };
    let cut = |bytes: &[u8]| bytes.split_last().map(|(_, rest)| rest.to_vec()).unwrap_or_default();
    for (bad, why) in [
        (with(&|it| it.svids.clear()), "svids: there is none"),
        (with(&|it| it.svids[0].spiffe_id = "spiffe://td/ns/shop/sa/admin".to_owned()), "svids[0].spiffe_id"),
        (with(&|it| it.svids[0].spiffe_id = "spiffe://td/../x".to_owned()), "svids[0].spiffe_id"),
        (with(&|it| it.svids[0].x509_svid = cut(&it.svids[0].x509_svid)), "svids[0].x509_svid"),
        (with(&|it| it.svids[0].x509_svid.push(0)), "svids[0].x509_svid"),
        (with(&|it| it.svids[0].bundle.clear()), "svids[0].bundle: no certificate"),
        (with(&|it| it.svids[0].bundle.clone_from(&foreign.root)), "no trusted authority has signed it"),
        (with(&|it| it.svids[0].x509_svid_key = authority.svid(WEB).x509_svid_key), "do not fit"),
        (with(&|it| it.svids[0].x509_svid_key.clear()), "do not fit"),
        (with(&|it| it.crl.push(vec![1])), "crl: a list of revoked certificates cannot be parsed"),
        (with(&|it| it.crl.push(foreign.list(&[], false))), "is the name of authorities of 0 trust domains"),
        (with(&|it| it.crl.push(authority.list(&[], true))), "has expired"),
        (
            with(&|it| it.crl = vec![authority.list(&[1], false), authority.list(&[2], false)]),
            "crl: there are two lists of revoked certificates",
        ),
        (
            with(&|it| {
                it.crl.push(authority.list(&[], false));
                it.federated_bundles.insert("spiffe://other".to_owned(), authority.root.clone());
            }),
            "is the name of authorities of 2 trust domains",
        ),
        (
            with(&|it| _ = it.federated_bundles.insert("spiffe://td".to_owned(), foreign.root.clone())),
            "the workload's own trust domain is not a foreign one",
        ),
        (with(&|it| _ = it.federated_bundles.insert("spiffe://other".to_owned(), vec![1])), "not a certificate in DER"),
    ] {
        answers.send(Ok(bad)).await.expect("sent");
        rig.said(why).await;
        assert_eq!(rig.certificates.get().await.serial(), good.serial());
    }
}

/// The roots of a foreign trust domain vouch for that one alone.
#[test]
fn a_federated_bundle_vouches_for_its_own_domain() {
    let (own, foreign) = (Authority::named("own"), Authority::named("foreign"));
    let mut response = answer(vec![own.svid(WEB)]);
    response.federated_bundles.insert("spiffe://other".to_owned(), foreign.root.clone());
    let credentials = credentials(response, SystemTime::now()).expect("good");
    let trusts = |svid: &X509Svid| credentials.trusts(&CertificateDer::from(svid.x509_svid.clone()));
    assert!(trusts(&foreign.svid("spiffe://other/ns/a/sa/b")));
    assert!(trusts(&own.svid("spiffe://td/ns/a/sa/b")));
    assert!(!trusts(&foreign.svid(WEB)), "a partner would issue our identities");
    assert!(!trusts(&own.svid("spiffe://other/ns/a/sa/b")));
}

/// A list of revoked certificates is about the domain of the authority that has signed it, and an answer without lists revokes
/// nobody any more.
#[test]
fn who_is_revoked_is_not_trusted_for_as_long_as_the_agent_says_so() {
    let (own, foreign) = (Authority::named("own"), Authority::named("foreign"));
    let trusts = |lists: Vec<Vec<u8>>, svid: &X509Svid| {
        let mut response = answer(vec![own.svid(WEB)]);
        response.federated_bundles.insert("spiffe://other".to_owned(), foreign.root.clone());
        response.crl = lists;
        let credentials = credentials(response, SystemTime::now()).expect("good");
        credentials.trusts(&CertificateDer::from(svid.x509_svid.clone()))
    };
    let (one, two) = (own.svid_of("spiffe://td/ns/a/sa/b", 7), own.svid_of("spiffe://td/ns/a/sa/c", 8));
    let guest = foreign.svid_of("spiffe://other/ns/a/sa/b", 7);
    let lists = || vec![own.list(&[7], false)];
    assert!(!trusts(lists(), &one) && trusts(lists(), &two) && trusts(lists(), &guest));
    let lists = || vec![foreign.list(&[7], false)];
    assert!(trusts(lists(), &one) && trusts(lists(), &two) && !trusts(lists(), &guest));
    assert!([&one, &two, &guest].into_iter().all(|svid| trusts(Vec::new(), svid)));
}

/// What holds a key is never shown.
#[test]
fn an_answer_that_is_printed_has_no_key_in_it() {
    let svid = Authority::named("own").svid(WEB);
    let shown = format!("{:?}", answer(vec![svid.clone()]));
    assert!(shown.contains(WEB) && !shown.contains("x509_svid_key"), "{shown}");
    assert!(!shown.contains(&format!("{:?}", &svid.x509_svid_key[..8]).trim_matches(['[', ']']).to_owned()));
}
