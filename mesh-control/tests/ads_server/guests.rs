//! Streams beside that of the resources: who has one, for how long, and how many. What is said on them is nothing to it.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_client::AccessLogServiceClient;
use envoy_types::pb::envoy::service::load_stats::v3::LoadStatsRequest;
use envoy_types::pb::envoy::service::load_stats::v3::load_reporting_service_client::LoadReportingServiceClient;
use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use futures_util::FutureExt;
use hyper_util::rt::TokioIo;
use mesh_control::ca::CertificateAuthority;
use mesh_control::serve::{Certificates, Options};
use mesh_core::xds::live_trace::{FOLLOW, Followed, Orders};
use rcgen::SerialNumber;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::certificates::WEB;
use crate::certificates_process::plug_in;
use crate::identity::Door;
use crate::secured::{Authority, report};
use crate::support::{Fixture, PATIENCE, ServiceFn, Shelf, settled, until};

#[derive(Clone, Copy, Debug)]
enum Side {
    LiveTrace,
    Load,
    Status,
    Calls,
}

const SIDES: [Side; 4] = [Side::LiveTrace, Side::Load, Side::Status, Side::Calls];

/// A stream of somebody who has said who they are, if that, and says nothing more.
struct Silent {
    /// How the server ends it.
    end: Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>,
}

impl Silent {
    /// Opens a stream; it is there when the server has answered the first message, where it answers any.
    async fn open(side: Side, channel: Channel, introduces_itself: bool) -> Result<Silent, Status> {
        let told = report("shop");
        let node = told.identifier.clone().and_then(|identifier| identifier.node);
        let end: Pin<Box<dyn Future<Output = Result<(), Status>> + Send>> = match side {
            Side::LiveTrace => {
                let (sender, messages) = mpsc::channel(1);
                let mut grpc = tonic::client::Grpc::new(channel);
                grpc.ready().await.unwrap();
                let codec = ProstCodec::<Followed, Orders>::default();
                let path = http::uri::PathAndQuery::from_static(FOLLOW);
                let answer = grpc.streaming(Request::new(ReceiverStream::new(messages)), path, codec).await?;
                let mut orders = answer.into_inner();
                if introduces_itself {
                    sender.send(Followed { node, ..Followed::default() }).await.unwrap();
                    orders.message().await?.expect("what there is to follow");
                }
                Box::pin(async move { orders.message().await.map(|_| drop(sender)) })
            }
            Side::Load => {
                let (sender, messages) = mpsc::channel(1);
                let mut client = LoadReportingServiceClient::new(channel);
                let mut answers = client.stream_load_stats(ReceiverStream::new(messages)).await?.into_inner();
                if introduces_itself {
                    sender.send(LoadStatsRequest { node, ..LoadStatsRequest::default() }).await.unwrap();
                    answers.message().await?.expect("an answer");
                }
                Box::pin(async move { answers.message().await.map(|_| drop(sender)) })
            }
            Side::Status => {
                let (sender, messages) = mpsc::channel(1);
                let mut client = ClientStatusDiscoveryServiceClient::new(channel);
                let mut answers = client.stream_client_status(ReceiverStream::new(messages)).await?.into_inner();
                if introduces_itself {
                    sender.send(ClientStatusRequest::default()).await.unwrap();
                    answers.message().await?.expect("the state of the fleet");
                }
                Box::pin(async move { answers.message().await.map(|_| drop(sender)) })
            }
            Side::Calls => {
                let (sender, messages) = mpsc::channel(1);
                if introduces_itself {
                    sender.send(told).await.unwrap();
                }
                let mut client = AccessLogServiceClient::new(channel);
                Box::pin(async move {
                    let answer = client.stream_access_logs(ReceiverStream::new(messages)).await;
                    answer.map(|_| drop(sender))
                })
            }
        };
        Ok(Silent { end })
    }

    /// The error that it ends with.
    async fn end(self) -> Status {
        tokio::time::timeout(PATIENCE, self.end).await.expect("it ends").expect_err("with an error")
    }
}

/// A server with a plugged-in authority that has lists of revoked certificates.
struct Served {
    fixture: Fixture,
    authority: Arc<CertificateAuthority>,
    door: Door,
    root: Authority,
    signer: Authority,
    ca: tempfile::TempDir,
}

impl Served {
    async fn start(options: Options) -> Served {
        let (root, ca) = (Authority::signing(), tempfile::tempdir().unwrap());
        let signer = root.intermediate();
        plug_in(ca.path(), &signer, &[&root]);
        put(ca.path(), &root, &signer, &[]);
        let domain = "cluster.local".parse().unwrap();
        let authority = CertificateAuthority::plugged_in(ca.path(), None, domain, SystemTime::now()).unwrap();
        let authority = Arc::new(authority);
        let fixture =
            Fixture::start(Shelf::default(), options.certificates(Certificates::new(authority.clone()))).await;
        let door = Door::open(&fixture.server).await;
        Served { fixture, authority, door, root, signer, ca }
    }

    /// A channel of somebody with a certificate for so many seconds, and its serial number.
    async fn enter(&self, identity: &str, seconds: i64) -> (Channel, SerialNumber) {
        let issued = self.authority.issue_with_key(&identity.parse().unwrap(), seconds, SystemTime::now()).unwrap();
        let serial = &issued.1.serial;
        let serial: Vec<u8> =
            (0..serial.len() / 2).map(|at| u8::from_str_radix(&serial[2 * at..2 * at + 2], 16).unwrap()).collect();
        (self.door.enter_with(&issued).await, SerialNumber::from_slice(&serial))
    }

    fn revoke(&self, serial: SerialNumber) {
        put(self.ca.path(), &self.root, &self.signer, &[serial]);
    }

    /// How many reports of calls were taken.
    fn reports(&self) -> u64 {
        self.fixture.server.calls().unwrap().records(None).iter().map(|one| one.count).sum()
    }
}

fn put(ca: &Path, root: &Authority, signer: &Authority, serials: &[SerialNumber]) {
    std::fs::write(ca.join("new"), root.revoked(&[]) + &signer.revoked(serials)).unwrap();
    std::fs::rename(ca.join("new"), ca.join("ca-crl.pem")).unwrap();
}

const OTHER: &str = "spiffe://cluster.local/ns/shop/sa/other";

#[tokio::test(flavor = "multi_thread")]
async fn m18_who_is_revoked_and_silent_loses_the_streams_beside_that_of_the_resources_too() {
    let served = Served::start(settled()).await;
    let ((web, serial), (other, _)) = (served.enter(WEB, 600).await, served.enter(OTHER, 600).await);
    let (mut of_web, mut of_other) = (Vec::new(), Vec::new());
    for side in SIDES {
        of_web.push((side, Silent::open(side, web.clone(), true).await.unwrap()));
        of_other.push((side, Silent::open(side, other.clone(), true).await.unwrap()));
    }
    // Those of calls are answered at their end only: they run until their reports are taken.
    for (_, stream) in of_web.iter_mut().chain(&mut of_other) {
        assert!((&mut stream.end).now_or_never().is_none());
    }
    let ends: Vec<_> = of_web.into_iter().map(|(side, stream)| (side, tokio::spawn(stream.end()))).collect();
    let (side, last) = of_other.pop().unwrap();
    let mut last = tokio::spawn(last.end);
    until("the reports are taken", || served.reports() == 2).await;

    served.revoke(serial);
    for (side, end) in ends {
        assert_eq!(end.await.unwrap().code(), Code::Unauthenticated, "{side:?}");
    }
    for side in SIDES {
        let again = Silent::open(side, web.clone(), true).await;
        let refused = match again {
            Ok(stream) => stream.end().await,
            Err(refused) => refused,
        };
        assert_eq!(refused.code(), Code::Unauthenticated, "{side:?}: {refused}");
    }
    for (side, stream) in &mut of_other {
        assert!((&mut stream.end).now_or_never().is_none(), "{side:?} of who was not revoked");
    }
    assert!((&mut last).now_or_never().is_none(), "{side:?} of who was not revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beside_that_of_the_resources_last_no_longer_than_the_certificate() {
    let served = Served::start(settled()).await;
    let (web, _) = served.enter(WEB, 5).await;
    let ends = SIDES.map(|side| {
        let web = web.clone();
        async move { Silent::open(side, web, true).await.unwrap().end().await }
    });
    for end in futures_util::future::join_all(ends).await {
        assert_eq!(end.code(), Code::Unauthenticated, "{end}");
        assert!(end.message().contains("has ended"), "{end}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beside_that_of_the_resources_have_a_share_of_those_of_an_identity() {
    let served = Served::start(settled().streams_per_identity(SIDES.len())).await;
    let ((web, _), (other, _)) = (served.enter(WEB, 600).await, served.enter(OTHER, 600).await);
    let mut all = Vec::new();
    for side in SIDES {
        all.push(tokio::spawn(Silent::open(side, web.clone(), true).await.unwrap().end));
    }
    until("the report is taken", || served.reports() == 1).await;
    for side in SIDES {
        let refused = match Silent::open(side, web.clone(), true).await {
            Ok(stream) => stream.end().await,
            Err(refused) => refused,
        };
        assert_eq!(refused.code(), Code::ResourceExhausted, "{side:?}: {refused}");
        assert!(refused.message().contains("--streams-per-identity"), "{refused}");
        let theirs = Silent::open(side, other.clone(), true).await.unwrap().end.now_or_never();
        assert!(theirs.is_none(), "{side:?} of another identity");
    }
    assert!(served.fixture.metrics().contains("mesh_xds_refused_total{reason=\"limit\"} 4\n"));
    // Whoever leaves makes room.
    all.drain(..).for_each(|stream| stream.abort());
    let again = async { while Silent::open(Side::LiveTrace, web.clone(), true).await.is_err() {} };
    tokio::time::timeout(PATIENCE, again).await.expect("there is room");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_say_who_it_is_is_not_waited_for() {
    let fixture = Fixture::start(Shelf::default(), settled()).await;
    let server = fixture.server.clone();
    let connect = ServiceFn(move || {
        let server = server.clone();
        async move { server.connect().await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://control").connect_with_connector(connect).await.unwrap();
    for side in SIDES {
        let began = tokio::time::Instant::now();
        let end = Silent::open(side, channel.clone(), false).await.unwrap().end().await;
        assert_eq!(end.code(), Code::DeadlineExceeded, "{side:?}: {end}");
        assert!(began.elapsed() < Duration::from_secs(20), "{side:?}");
    }
}
