//! A member of a `WorkloadGroup` is asked how it is, and the control plane is told, by Envoy's health discovery service
//! (`envoy.service.health.v3.HealthDiscoveryService`): a stream of its own, over the connection of the stream of xDS.
//!
//! The control plane says what to ask, where, and how often; thresholds are those of all health checks ([`Checks`]). How the workload is
//! is told when that changes, and again as often as the control plane wants it. Before the first answer nothing is told: to the control
//! plane it is not well until it is known to be.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::address::Address;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{HealthStatus, Node};
use envoy_types::pb::envoy::config::endpoint::v3::Endpoint;
use envoy_types::pb::envoy::service::health::v3::capability::Protocol;
use envoy_types::pb::envoy::service::health::v3::health_check_request_or_endpoint_health_response::RequestType;
use envoy_types::pb::envoy::service::health::v3::health_discovery_service_client::HealthDiscoveryServiceClient;
use envoy_types::pb::envoy::service::health::v3::{
    Capability, ClusterEndpointsHealth, ClusterHealthCheck, EndpointHealth, EndpointHealthResponse, HealthCheckRequest,
    HealthCheckRequestOrEndpointHealthResponse, HealthCheckSpecifier, LocalityEndpointsHealth,
};
use http::header::HOST;
use http::uri::PathAndQuery;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use crate::error::Invalid;
use crate::health_check::{CheckOutcome, Checked, Checks};
use crate::model::{GrpcProbe, HealthCheck, HttpProbe, Probe};
use crate::xds::backoff;
use crate::xds::channels::{Open, OpenStream, opened};
use crate::xds::clock::{now, sleep_until};
use crate::xds::decode::health_check_alone;
use crate::xds::task::Owned;

/// How many checks one workload makes: more are nobody's.
const MOST_CHECKS: usize = 16;
/// How often is told how it is, where the control plane does not say.
const REPORTED: Duration = Duration::from_secs(1);
/// No more often than that.
const SHORTEST: Duration = Duration::from_millis(100);

type Message = HealthCheckRequestOrEndpointHealthResponse;

/// Asks and tells for as long as it is held.
#[derive(Debug)]
pub(crate) struct Checking {
    open: watch::Sender<Open>,
    _task: Owned,
}

impl Checking {
    /// To be called inside a runtime.
    pub(crate) fn start(node: Node, seed: u64) -> Checking {
        let open = watch::Sender::new(None);
        let task = Owned::spawn(follow(open.subscribe(), node, fastrand::Rng::with_seed(seed)));
        Checking { open, _task: task }
    }

    /// For a new stream, by its number.
    pub(crate) fn stream(&self, number: u64) -> OpenStream {
        OpenStream::new(&self.open, number)
    }
}

async fn follow(mut open: watch::Receiver<Open>, node: Node, mut random: fastrand::Rng) {
    let mut failures = 0_u32;
    while let Some((_, channel)) = opened(&mut open).await {
        let end = tokio::select! {
            end = converse(channel, &node, &mut failures, &mut random) => end,
            // A stream that has ended, or a new one.
            changed = open.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let status = end.err().unwrap_or_else(|| Status::unavailable("the stream ended"));
        tracing::debug!("nobody is told how this workload is: {status}");
        failures = failures.saturating_add(1);
        // A server that does not know the service is not asked again before its stream is a new one.
        match status.code() {
            Code::Unimplemented => {
                if open.changed().await.is_err() {
                    return;
                }
            }
            _ => _ = tokio::time::timeout(backoff::pause(failures, random.f64()), open.changed()).await,
        }
    }
}

/// The life of one stream.
async fn converse(channel: Channel, node: &Node, failures: &mut u32, random: &mut fastrand::Rng) -> Result<(), Status> {
    let (sender, receiver) = mpsc::channel(1);
    // There is room for one.
    _ = sender.try_send(introduction(node));
    let mut client = HealthDiscoveryServiceClient::new(channel);
    let mut specifiers = client.stream_health_check(ReceiverStream::new(receiver)).await?.into_inner();
    let news = Arc::new(Notify::new());
    let mut asked = Vec::new();
    let mut interval = REPORTED;
    let mut due: Option<Instant> = None;
    loop {
        tokio::select! {
            specifier = specifiers.message() => match specifier? {
                Some(specifier) => {
                    *failures = 0;
                    interval = interval_of(&specifier);
                    // What was asked before is not asked any more.
                    asked = asked_by(specifier, &news, random);
                    due = Some(now() + interval);
                }
                None => return Ok(()),
            },
            () = news.notified() => tell(&sender, &asked),
            () = sleep_until(due) => {
                due = Some(now() + interval);
                tell(&sender, &asked);
            }
        }
    }
}

fn introduction(node: &Node) -> Message {
    let protocols = [Protocol::Http, Protocol::Tcp].map(i32::from);
    let capability = Capability { health_check_protocols: protocols.into() };
    let request = HealthCheckRequest { node: Some(node.clone()), capability: Some(capability) };
    Message { request_type: Some(RequestType::HealthCheckRequest(request)) }
}

fn interval_of(specifier: &HealthCheckSpecifier) -> Duration {
    let told = specifier.interval.as_ref().and_then(|time| {
        Some(Duration::new(u64::try_from(time.seconds).ok()?, u32::try_from(time.nanos).ok()?.min(999_999_999)))
    });
    told.unwrap_or(REPORTED).clamp(SHORTEST, Duration::from_secs(3600))
}

/// Tells how everything is that is asked, once all of it is known; unless the server has not read the last message yet.
fn tell(sender: &mpsc::Sender<Message>, asked: &[Asked]) {
    let Some(report) = report(asked) else { return };
    // It is told again soon.
    _ = sender.try_send(Message { request_type: Some(RequestType::EndpointHealthResponse(report)) });
}

fn report(asked: &[Asked]) -> Option<EndpointHealthResponse> {
    let clusters: Option<Vec<ClusterEndpointsHealth>> = asked.iter().map(Asked::report).collect();
    let cluster_endpoints_health = clusters.filter(|clusters| !clusters.is_empty())?;
    Some(EndpointHealthResponse { cluster_endpoints_health, ..EndpointHealthResponse::default() })
}

/// One thing that is asked.
struct Asked {
    cluster: String,
    endpoint: Endpoint,
    checks: Arc<Checks>,
    _task: Option<Owned>,
}

impl Asked {
    fn report(&self) -> Option<ClusterEndpointsHealth> {
        let health_status = match self.checks.checked() {
            Checked::Never => return None,
            Checked::Healthy | Checked::Degraded => HealthStatus::Healthy,
            Checked::Unhealthy => HealthStatus::Unhealthy,
        };
        let endpoint = EndpointHealth {
            endpoint: Some(self.endpoint.clone()),
            health_status: health_status.into(),
            ..EndpointHealth::default()
        };
        let locality = LocalityEndpointsHealth { locality: None, endpoints_health: vec![endpoint] };
        Some(ClusterEndpointsHealth { cluster_name: self.cluster.clone(), locality_endpoints_health: vec![locality] })
    }
}

/// Begins to ask what a control plane wants asked. What cannot be asked has no answer, and so nothing is told.
fn asked_by(specifier: HealthCheckSpecifier, news: &Arc<Notify>, random: &mut fastrand::Rng) -> Vec<Asked> {
    let mut all = Vec::new();
    for ClusterHealthCheck { cluster_name, mut health_checks, locality_endpoints, .. } in
        specifier.cluster_health_checks
    {
        let check = match (health_checks.pop(), health_checks.is_empty()) {
            (Some(check), true) => health_check_alone(check).and_then(askable),
            _ => Err(Invalid::new("there is not one check")),
        };
        let check = check.map(Arc::new);
        if let Err(why) = &check {
            tracing::warn!(cluster = cluster_name, "this workload cannot be asked how it is: {why}");
        }
        for endpoint in locality_endpoints.into_iter().flat_map(|locality| locality.endpoints) {
            let checks = Arc::<Checks>::default();
            let place = check.as_ref().ok().zip(address_of(&endpoint)).filter(|_| all.len() < MOST_CHECKS);
            let task = place.map(|(check, at)| {
                let random = random.fork();
                Owned::spawn(ask_for_good(Arc::clone(check), at, Arc::clone(&checks), Arc::clone(news), random))
            });
            all.push(Asked { cluster: cluster_name.clone(), endpoint, checks, _task: task });
        }
    }
    all
}

fn address_of(endpoint: &Endpoint) -> Option<SocketAddr> {
    let Some(Address::SocketAddress(address)) = &endpoint.address.as_ref()?.address else { return None };
    let Some(PortSpecifier::PortValue(port)) = address.port_specifier else { return None };
    Some(SocketAddr::new(address.address.parse::<IpAddr>().ok()?, u16::try_from(port).ok()?))
}

/// A check, unless it asks for more than is done here.
fn askable(check: HealthCheck) -> Result<HealthCheck, Invalid> {
    let is_plain = match &check.probe {
        Probe::Http(http) => !http.is_http2 && http.send.is_none() && http.receive.is_empty() && http.service.is_none(),
        Probe::Tcp(tcp) => tcp.send.is_none() && tcp.receive.is_empty(),
        Probe::Grpc(grpc) => grpc.headers.is_empty() && grpc.authority.is_none(),
    };
    if is_plain { Ok(check) } else { Err(Invalid::new("what is sent and received besides is not supported")) }
}

async fn ask_for_good(
    check: Arc<HealthCheck>,
    at: SocketAddr,
    checks: Arc<Checks>,
    news: Arc<Notify>,
    mut random: fastrand::Rng,
) {
    // `None` is a check that is under way, which none is here.
    while let Some(due) = checks.due(&check, true, now(), &mut random) {
        sleep_until(Some(due)).await;
        checks.begin();
        let outcome = match tokio::time::timeout(check.timeout, ask(&check.probe, at)).await {
            Ok(Ok(true)) => CheckOutcome::Passed,
            Ok(Ok(false)) => CheckOutcome::Failed,
            Ok(Err(why)) => {
                tracing::debug!(%at, "this workload does not say how it is: {why}");
                CheckOutcome::Failed
            }
            Err(_) => {
                tracing::debug!(%at, timeout = ?check.timeout, "this workload does not say in time how it is");
                CheckOutcome::Failed
            }
        };
        if checks.note(&check, outcome, true, now(), &mut random) {
            news.notify_one();
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Asks once, over a connection of its own.
async fn ask(probe: &Probe, at: SocketAddr) -> Result<bool, Failure> {
    match probe {
        Probe::Tcp(_) => {
            TcpStream::connect(at).await?;
            Ok(true)
        }
        Probe::Http(http) => get(http, at).await,
        Probe::Grpc(grpc) => call(grpc, at).await,
    }
}

async fn get(probe: &HttpProbe, at: SocketAddr) -> Result<bool, Failure> {
    let stream = TcpStream::connect(at).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with this.
    let _connection = Owned::spawn(async move { drop(connection.await) });
    let host = probe.host.as_deref().map_or_else(|| at.to_string(), str::to_owned);
    let mut request = http::Request::builder().method(&probe.method).uri(&*probe.path).header(HOST, host);
    for (name, value) in &probe.headers {
        request = request.header(name, value);
    }
    let answer = sender.send_request(request.body(Body::empty())?).await?;
    let status = answer.status().as_u16();
    Ok(probe.expected.iter().any(|range| range.contains(&status)))
}

/// `grpc.health.v1.HealthCheckRequest`
#[derive(Clone, PartialEq, prost::Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SERVING`
const SERVING: i32 = 1;

async fn call(probe: &GrpcProbe, at: SocketAddr) -> Result<bool, Failure> {
    let channel = Channel::from_shared(format!("http://{at}"))?.connect().await?;
    let mut client = Grpc::new(channel);
    client.ready().await?;
    let question = tonic::Request::new(Question { service: probe.service.to_string() });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let answer = client.unary(question, path, ProstCodec::<Question, Answer>::default()).await?;
    Ok(answer.into_inner().status == SERVING)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use envoy_types::pb::envoy::config::core::v3 as core;
    use envoy_types::pb::envoy::config::core::v3::health_check::{HealthChecker, TcpHealthCheck};
    use envoy_types::pb::envoy::service::health::v3::LocalityEndpoints;
    use envoy_types::pb::google::protobuf::{self, UInt32Value};

    use super::*;

    fn specifier(at: SocketAddr, checks: usize) -> HealthCheckSpecifier {
        let address = core::SocketAddress {
            address: at.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(at.port().into())),
            ..Default::default()
        };
        let address = core::Address { address: Some(Address::SocketAddress(address)) };
        let time = Some(protobuf::Duration { seconds: 1, nanos: 0 });
        let check = core::HealthCheck {
            timeout: time,
            interval: time,
            healthy_threshold: Some(UInt32Value { value: 1 }),
            unhealthy_threshold: Some(UInt32Value { value: 1 }),
            health_checker: Some(HealthChecker::TcpHealthCheck(TcpHealthCheck::default())),
            ..Default::default()
        };
        let endpoint = Endpoint { address: Some(address), ..Default::default() };
        let cluster = ClusterHealthCheck {
            cluster_name: "probe".to_owned(),
            health_checks: vec![check; checks],
            locality_endpoints: vec![LocalityEndpoints { locality: None, endpoints: vec![endpoint] }],
            ..Default::default()
        };
        HealthCheckSpecifier { cluster_health_checks: vec![cluster], interval: time }
    }

    fn told(asked: &[Asked]) -> Option<i32> {
        let report = report(asked)?;
        Some(report.cluster_endpoints_health[0].locality_endpoints_health[0].endpoints_health[0].health_status)
    }

    #[tokio::test]
    async fn nothing_is_told_before_the_first_answer_nor_of_what_cannot_be_asked() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("an address");
        let (news, mut random) = (Arc::new(Notify::new()), fastrand::Rng::with_seed(1));
        let asked = asked_by(specifier(at, 1), &news, &mut random);
        // Nothing has run yet on this thread.
        assert_eq!(told(&asked), None);
        news.notified().await;
        assert_eq!(told(&asked), Some(i32::from(HealthStatus::Healthy)));
        drop((listener, asked));
        let asked = asked_by(specifier(at, 1), &news, &mut random);
        news.notified().await;
        assert_eq!(told(&asked), Some(i32::from(HealthStatus::Unhealthy)), "nobody listens any more");
        // Which of two is meant is anybody's guess.
        assert_eq!(told(&asked_by(specifier(at, 2), &news, &mut random)), None);
        assert_eq!(told(&asked_by(HealthCheckSpecifier::default(), &news, &mut random)), None);
    }

    /// A server of `grpc.health.v1.Health` that has this answer.
    #[derive(Clone)]
    struct Health(i32);

    impl tonic::server::NamedService for Health {
        const NAME: &'static str = "grpc.health.v1.Health";
    }

    impl tonic::codegen::Service<http::Request<Body>> for Health {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            let check = Check(self.0);
            Box::pin(async move {
                Ok(tonic::server::Grpc::new(ProstCodec::<Answer, Question>::default()).unary(check, request).await)
            })
        }
    }

    struct Check(i32);

    impl tonic::server::UnaryService<Question> for Check {
        type Response = Answer;
        type Future = std::future::Ready<Result<tonic::Response<Answer>, Status>>;

        fn call(&mut self, request: tonic::Request<Question>) -> Self::Future {
            let is_known = request.into_inner().service == "shop.Reviews";
            let answer = tonic::Response::new(Answer { status: self.0 });
            std::future::ready(if is_known { Ok(answer) } else { Err(Status::not_found("no such service")) })
        }
    }

    #[tokio::test]
    async fn a_server_of_grpc_is_well_that_serves() {
        for (service, status, expected) in
            [("shop.Reviews", SERVING, Some(true)), ("shop.Reviews", 2, Some(false)), ("", SERVING, None)]
        {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let at = listener.local_addr().expect("an address");
            tokio::spawn(async move {
                let (stream, _) = listener.accept().await.expect("a client");
                let incoming = tokio_stream::once(Ok::<_, std::io::Error>(stream));
                drop(
                    tonic::transport::Server::builder().add_service(Health(status)).serve_with_incoming(incoming).await,
                );
            });
            let probe = Probe::Grpc(GrpcProbe { service: service.into(), ..GrpcProbe::default() });
            assert_eq!(ask(&probe, at).await.ok(), expected, "{service:?} {status}");
        }
    }

    #[tokio::test]
    async fn a_status_that_is_expected_is_well_and_the_host_and_the_headers_are_those_of_the_probe() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        for (status, expected) in [("204 No Content", true), ("302 Found", true), ("400 Bad Request", false)] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let at = listener.local_addr().expect("an address");
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.expect("a head"));
                }
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.expect("it is read");
                String::from_utf8(head).expect("text").to_ascii_lowercase()
            });
            let mut probe = HttpProbe::get("/healthz");
            probe.host = Some("reviews.example.com".into());
            probe.headers = vec![("x-a".parse().expect("a name"), "5%".parse().expect("a value"))];
            probe.expected = vec![std::ops::Range { start: 200, end: 400 }];
            assert_eq!(ask(&Probe::Http(probe), at).await.expect("an answer"), expected, "{status}");
            let head = server.await.expect("a request");
            assert!(head.starts_with("get /healthz http/1.1\r\n"), "{head}");
            assert!(head.contains("\r\nhost: reviews.example.com\r\n") && head.contains("\r\nx-a: 5%\r\n"), "{head}");
        }
    }
}
