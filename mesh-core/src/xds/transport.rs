//! One stream to one management server: it moves messages and decides nothing.
//!
//! A response is handed over and the next one is not read before that one was dealt with (rule 11), so that a
//! flood of responses waits in the server and not here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DiscoveryRequest,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient as Client,
};
use hyper_util::rt::TokioIo;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::tls::Credentials;
use crate::xds::access_log::Wanted;
use crate::xds::bootstrap::{ChannelCredentials, Server};
use crate::xds::certificates::Showing;
use crate::xds::channels::OpenStream;
use crate::xds::connect::{Connector, Watched};
use crate::xds::istio_ca::ROOTS;
use crate::xds::live_trace::Asked;
use crate::xds::place::Place;
use crate::xds::session::{End, Request, Response};

/// How long a server may take until it speaks HTTP/2.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest response (hazard X5). gRPC's own default of 4 MiB is less than large meshes need.
const MAX_RESPONSE: usize = 64 << 20;
/// How many requests may wait to be sent. A server that lets more pile up does not read them: the stream is given
/// up.
const MAX_PENDING: usize = 1024;
/// The longest time between pings, for servers that complain of too many.
const MAX_KEEPALIVE: Duration = Duration::from_secs(300);

/// How a connection is kept alive: a ping after so much silence, and so much time to answer it.
#[derive(Clone, Debug)]
pub(crate) struct Keepalive {
    millis: Arc<AtomicU64>,
    timeout: Duration,
}

impl Keepalive {
    pub(crate) fn new(interval: Duration, timeout: Duration) -> Self {
        let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        Keepalive { millis: Arc::new(AtomicU64::new(millis)), timeout }
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.millis.load(Ordering::Relaxed))
    }

    /// The server finds that there are too many pings: half as many from now on, as gRPC clients do.
    fn relax(&self) {
        let relaxed = self.interval().saturating_mul(2).min(MAX_KEEPALIVE.max(self.interval()));
        self.millis.store(u64::try_from(relaxed.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// What a stream reports.
pub(crate) enum Event {
    /// It is open; requests go here.
    Opened(Requests),
    /// The server has taken it, and may have nothing to say.
    Taken,
    /// A response; drop the sender when it has been dealt with.
    Response(Response, oneshot::Sender<()>),
    /// It has ended. The last event.
    Closed(End),
}

/// Where the requests of a stream go.
pub(crate) enum Requests {
    /// State of the world.
    Sotw(mpsc::Sender<DiscoveryRequest>),
    /// Incremental.
    Delta(mpsc::Sender<DeltaDiscoveryRequest>),
}

impl Requests {
    /// Sends a request; `false` if the stream cannot take it.
    pub(crate) fn send(&self, request: Request) -> bool {
        match (self, request) {
            (Requests::Sotw(requests), Request::Sotw(request)) => requests.try_send(request).is_ok(),
            (Requests::Delta(requests), Request::Delta(request)) => requests.try_send(request).is_ok(),
            _ => false,
        }
    }
}

/// Who is told of what the head of a stream's responses says.
pub(crate) struct Told {
    pub(crate) showing: Option<Showing>,
    pub(crate) calls: Option<Wanted>,
    pub(crate) traces: Option<Asked>,
    pub(crate) load: Option<OpenStream>,
    pub(crate) quotas: Option<OpenStream>,
    pub(crate) checks: Option<OpenStream>,
}

impl Told {
    /// The head may say that the authority has other roots than the workload knows, that calls are wanted, and that
    /// live requests may be followed.
    fn hear<R>(&self, response: tonic::Response<Streaming<R>>, channel: &Channel) -> Streaming<R> {
        if let Some(showing) = &self.showing
            && let Some(Ok(roots)) = response.metadata().get(ROOTS).map(|roots| roots.to_str())
        {
            showing.compare(roots);
        }
        if let Some(calls) = &self.calls {
            calls.hear(response.metadata(), channel);
        }
        if let Some(traces) = &self.traces {
            traces.hear(response.metadata(), channel);
        }
        for stream in self.load.iter().chain(&self.quotas).chain(&self.checks) {
            stream.set(Some(channel));
        }
        response.into_inner()
    }
}

/// Connects, opens a stream, and reports on it until it ends. `events` gives up where nobody listens any more.
pub(crate) async fn run(
    connector: Connector,
    server: Server,
    keepalive: Keepalive,
    told: Told,
    events: impl AsyncFn(Event) -> bool,
) {
    let end = match open(&connector, &server, &keepalive, told.showing.as_ref()).await {
        Ok(channel) if server.is_incremental() => delta(channel, &told, &events).await,
        Ok(channel) => sotw(channel, &told, &events).await,
        Err(reason) => Some(End::Refused(reason)),
    };
    if let Some(end) = end {
        // h2's words for ENHANCE_YOUR_CALM, with which gRPC servers answer too many pings.
        if matches!(&end, End::Closed(reason) if reason.contains("too_many_pings") || reason.contains("excessive load"))
        {
            keepalive.relax();
        }
        events(Event::Closed(end)).await;
    }
}

/// A channel to a server that knows who the workload is, where it shows that.
async fn open(
    connector: &Connector,
    server: &Server,
    keepalive: &Keepalive,
    showing: Option<&Showing>,
) -> Result<Channel, String> {
    let workload = match showing {
        Some(showing) => showing.to(server).await?,
        None => None,
    };
    let is_shown = workload.is_some();
    connect(connector, server, keepalive, workload).await.map_err(|failed| {
        if let Some(showing) = showing.filter(|_| is_shown && failed.is_of_peers) {
            showing.doubt();
        }
        failed.reason
    })
}

/// Why there is no channel.
pub(crate) struct Failed {
    pub(crate) reason: String,
    /// Somebody is there, and did not want to go on, or was not to be trusted.
    pub(crate) is_of_peers: bool,
}

/// A channel to a server that has spoken HTTP/2.
pub(crate) async fn connect(
    connector: &Connector,
    server: &Server,
    keepalive: &Keepalive,
    workload: Option<Arc<Credentials>>,
) -> Result<Channel, Failed> {
    let failed = |reason: String| Failed { reason, is_of_peers: false };
    let broken = |reason: String| Failed { reason, is_of_peers: true };
    let authority = match Place::parse(&server.uri) {
        Ok(Place::Host(authority)) => authority,
        // A custom connector knows where to go; a name has to stand in the request all the same.
        Ok(Place::Unix(_)) | Err(_) => "localhost".to_owned(),
    };
    let scheme = match (&server.credentials, &workload) {
        (ChannelCredentials::Insecure, None) => "http",
        (ChannelCredentials::Tls(_), _) | (_, Some(_)) => "https",
    };
    let origin = http::Uri::try_from(format!("{scheme}://{authority}")).map_err(|error| failed(error.to_string()))?;
    // The connector sees to TLS. An endpoint of this scheme would want to do it itself, if some other crate of the
    // application turns tonic's TLS on.
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|error| failed(error.to_string()))?
        .origin(origin)
        .http2_keep_alive_interval(keepalive.interval())
        .keep_alive_timeout(keepalive.timeout)
        .keep_alive_while_idle(true);
    let connecting = async {
        let io = connector.connect(server, workload).await.map_err(|error| Failed {
            // What rustls finds wrong.
            is_of_peers: error.kind() == std::io::ErrorKind::InvalidData,
            reason: format!("cannot connect: {error}"),
        })?;
        let (io, heard) = Watched::new(io);
        let channel = endpoint.connect_with_connector(Once(Some(io))).await.map_err(|error| broken(chain(&error)))?;
        heard.wait().await.map_err(|error| broken(format!("cannot connect: {error}")))?;
        Ok(channel)
    };
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(result) => result,
        Err(_) => Err(failed(format!("no HTTP/2 conversation within {} s", CONNECT_TIMEOUT.as_secs()))),
    }
}

async fn sotw(channel: Channel, told: &Told, events: &impl AsyncFn(Event) -> bool) -> Option<End> {
    let (requests, pending) = mpsc::channel(MAX_PENDING);
    if !events(Event::Opened(Requests::Sotw(requests))).await {
        return None;
    }
    let mut client = Client::new(channel.clone()).max_decoding_message_size(MAX_RESPONSE);
    match client.stream_aggregated_resources(ReceiverStream::new(pending)).await {
        Ok(responses) => read(told.hear(responses, &channel), Response::Sotw, events).await,
        Err(status) => Some(ended(&status)),
    }
}

async fn delta(channel: Channel, told: &Told, events: &impl AsyncFn(Event) -> bool) -> Option<End> {
    let (requests, pending) = mpsc::channel(MAX_PENDING);
    if !events(Event::Opened(Requests::Delta(requests))).await {
        return None;
    }
    let mut client = Client::new(channel.clone()).max_decoding_message_size(MAX_RESPONSE);
    match client.delta_aggregated_resources(ReceiverStream::new(pending)).await {
        Ok(responses) => match events(Event::Taken).await {
            true => read(told.hear(responses, &channel), Response::Delta, events).await,
            false => None,
        },
        Err(status) => Some(ended(&status)),
    }
}

async fn read<R>(
    mut responses: Streaming<R>,
    wrap: fn(R) -> Response,
    events: &impl AsyncFn(Event) -> bool,
) -> Option<End> {
    loop {
        match responses.message().await {
            Ok(Some(response)) => {
                let (done, dealt_with) = oneshot::channel();
                if !events(Event::Response(wrap(response), done)).await {
                    return None;
                }
                // An error only says that the sender was dropped, which is what is waited for.
                let _ = dealt_with.await;
                // The other tasks of this thread, keepalive among them, have their turn between two responses.
                tokio::task::yield_now().await;
            }
            Ok(None) => return Some(End::Closed("the stream ended".to_owned())),
            Err(status) => return Some(ended(&status)),
        }
    }
}

fn ended(status: &Status) -> End {
    let text = format!("{:?}: {}", status.code(), chain(status));
    if is_unreadable(status) { End::Unreadable(text) } else { End::Closed(text) }
}

/// What tonic and prost say of a message that is too large, or no Protobuf. A status of the server's own that happens to read the
/// same costs it nothing but time.
pub(crate) fn is_unreadable(status: &Status) -> bool {
    match status.code() {
        Code::OutOfRange => status.message().contains("message length too large"),
        Code::Internal => status.message().contains("failed to decode Protobuf message"),
        _ => false,
    }
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

/// A connector for a connection that is there already.
struct Once(Option<Watched>);

impl tonic::codegen::Service<http::Uri> for Once {
    type Response = TokioIo<Watched>;
    type Error = std::io::Error;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let gone = || std::io::Error::new(std::io::ErrorKind::NotConnected, "the connection is gone");
        std::future::ready(self.0.take().map(TokioIo::new).ok_or_else(gone))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn a_message_that_cannot_be_read_is_not_just_the_end_of_a_stream() {
        let error = DiscoveryRequest::decode(b"\xff".as_slice()).unwrap_err();
        assert!(matches!(ended(&Status::internal(error.to_string())), End::Unreadable(_)));
        assert!(matches!(ended(&Status::internal("restarting")), End::Closed(_)));
        assert!(matches!(ended(&Status::unavailable("gone")), End::Closed(_)));
    }

    #[test]
    fn pings_become_rarer_where_they_are_not_welcome() {
        let keepalive = Keepalive::new(Duration::from_secs(10), Duration::from_secs(5));
        keepalive.relax();
        assert_eq!(keepalive.interval(), Duration::from_secs(20));
        for _ in 0..20 {
            keepalive.relax();
        }
        assert_eq!(keepalive.interval(), MAX_KEEPALIVE);
    }
}
