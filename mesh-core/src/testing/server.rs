//! A management server that answers correctly, and misbehaves on command.
//!
//! Every connection passes through a pump that the test can stop or cut, so that a server can be hung or killed
//! without a process. Nothing here depends on wall time: with tokio's clock paused, a test runs as fast as it can.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
};
use prost::{Message, Name};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::answers::{Answer, DeltaState, Flaw, Served, SotwState, World};
use super::resources::pack;
use crate::xds::{Connector, Io};

/// How the server treats connections and streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As a server should.
    Serve,
    /// Connections are refused.
    Refuse,
    /// Connections are accepted, and nobody speaks.
    Mute,
    /// Streams are opened and closed again before any response.
    CloseStreams,
    /// Streams are opened, requests are read, nothing is answered.
    Silent,
}

/// A request as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    /// State of the world. The number tells streams apart.
    Sotw(usize, DiscoveryRequest),
    /// Incremental.
    Delta(usize, DeltaDiscoveryRequest),
}

impl Asked {
    /// Which stream it came over.
    pub fn stream(&self) -> usize {
        match self {
            Asked::Sotw(stream, _) | Asked::Delta(stream, _) => *stream,
        }
    }

    /// The last part of the type's name: `Listener`, `Cluster`, …
    pub fn kind(&self) -> &str {
        let url = match self {
            Asked::Sotw(_, request) => &request.type_url,
            Asked::Delta(_, request) => &request.type_url,
        };
        url.rsplit('.').next().unwrap_or(url)
    }

    /// The text of the rejection, if it is one.
    pub fn rejection(&self) -> Option<&str> {
        let detail = match self {
            Asked::Sotw(_, request) => &request.error_detail,
            Asked::Delta(_, request) => &request.error_detail,
        };
        detail.as_ref().map(|detail| detail.message.as_str())
    }
}

/// A management server. Clones are the same server.
#[derive(Clone)]
pub struct ManagementServer(Arc<ManagementState>);

struct ManagementState {
    state: Mutex<State>,
    /// Counts changes of the state; streams and tests wait for them.
    changes: watch::Sender<u64>,
    frozen: watch::Sender<bool>,
    incoming: mpsc::Sender<DuplexStream>,
}

struct State {
    world: World,
    version: u64,
    mode: Mode,
    delay: Duration,
    reports_missing: bool,
    flaws: VecDeque<Flaw>,
    /// Responses that a test wants sent, whatever was asked.
    scripted: Vec<Answer>,
    asked: Vec<Asked>,
    streams: usize,
    open: usize,
    connections: usize,
    /// Streams opened before this number are closed.
    close_before: usize,
    pumps: Vec<AbortHandle>,
    muted: Vec<Box<dyn Io>>,
}

impl ManagementServer {
    /// A server without resources. It runs on the current runtime.
    pub fn start() -> Self {
        let (incoming, accepted) = mpsc::channel::<DuplexStream>(16);
        let state = State {
            world: World::new(),
            version: 0,
            mode: Mode::Serve,
            delay: Duration::ZERO,
            reports_missing: false,
            flaws: VecDeque::new(),
            scripted: Vec::new(),
            asked: Vec::new(),
            streams: 0,
            open: 0,
            connections: 0,
            close_before: 0,
            pumps: Vec::new(),
            muted: Vec::new(),
        };
        let shared = ManagementState {
            state: Mutex::new(state),
            changes: watch::Sender::new(0),
            frozen: watch::Sender::new(false),
            incoming,
        };
        let server = ManagementServer(Arc::new(shared));
        let service = AggregatedDiscoveryServiceServer::new(Ads(server.clone())).max_encoding_message_size(usize::MAX);
        let connections = ReceiverStream::new(accepted).map(Ok::<_, io::Error>);
        tokio::spawn(async move {
            let serving = tonic::transport::Server::builder().add_service(service);
            // It ends with the test's runtime.
            let _ = serving.serve_with_incoming(connections).await;
        });
        server
    }

    /// Connections to it through memory.
    pub fn connector(&self) -> Connector {
        let server = self.clone();
        Connector::new(move |_| {
            let server = server.clone();
            async move { server.connect().await }
        })
    }

    /// Connections to several servers through memory, by the URI of each; there is nobody at any other URI.
    pub fn connector_to(servers: &[(&str, &ManagementServer)]) -> Connector {
        let servers: Vec<_> = servers.iter().map(|(uri, server)| ((*uri).to_owned(), (*server).clone())).collect();
        Connector::new(move |wanted| {
            let server = servers.iter().find(|(uri, _)| *uri == wanted.uri).map(|(_, server)| server.clone());
            async move {
                match server {
                    Some(server) => server.connect().await,
                    None => Err(io::ErrorKind::NotFound.into()),
                }
            }
        })
    }

    /// Accepts connections over loopback TCP, too.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn listen(&self) -> io::Result<SocketAddr> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if server.state().mode == Mode::Mute {
                    server.state().muted.push(Box::new(stream));
                } else if let Ok(inner) = server.inner().await {
                    server.pump(stream, inner);
                }
            }
        });
        Ok(address)
    }

    /// Serves this resource, in place of an older one of the same type and name.
    pub fn put<M: Message + Name>(&self, name: &str, resource: &M) {
        let any = pack(resource);
        let mut state = self.state();
        state.version += 1;
        let served = Served { version: state.version, any: any.clone() };
        state.world.entry(any.type_url).or_default().insert(name.to_owned(), served);
        drop(state);
        self.changed();
    }

    /// Serves several resources at once, so that one response has them all.
    pub fn put_all<M: Message + Name>(&self, resources: impl IntoIterator<Item = (String, M)>) {
        let mut state = self.state();
        state.version += 1;
        for (name, resource) in resources {
            let any = pack(&resource);
            let served = Served { version: state.version, any: any.clone() };
            state.world.entry(any.type_url).or_default().insert(name, served);
        }
        drop(state);
        self.changed();
    }

    /// Serves a resource no more.
    pub fn remove<M: Name>(&self, name: &str) {
        let mut state = self.state();
        state.version += 1;
        if let Some(of_type) = state.world.get_mut(&M::type_url()) {
            of_type.remove(name);
        }
        drop(state);
        self.changed();
    }

    /// Treats connections and streams in this way from now on. Those that are open stay as they are.
    pub fn set_mode(&self, mode: Mode) {
        self.state().mode = mode;
        self.changed();
    }

    /// Waits so long before every response.
    pub fn set_delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// Reports what it does not have as `resource_errors` (state of the world).
    pub fn report_missing(&self) {
        self.state().reports_missing = true;
    }

    /// Spoils the next response; several flaws spoil one response each.
    pub fn spoil(&self, flaw: Flaw) {
        self.state().flaws.push_back(flaw);
    }

    /// Sends this over the newest stream, whatever was asked.
    pub fn send(&self, answer: Answer) {
        self.state().scripted.push(answer);
        self.changed();
    }

    /// Ends every open stream; connections stay.
    pub fn close_streams(&self) {
        let mut state = self.state();
        state.close_before = state.streams;
        drop(state);
        self.changed();
    }

    /// Cuts every connection, as if the process were killed. What was said is forgotten by either side.
    pub fn cut(&self) {
        let mut state = self.state();
        for pump in state.pumps.drain(..) {
            pump.abort();
        }
        state.muted.clear();
    }

    /// Stops every byte on the way, as if the process were stopped; or lets them go on.
    pub fn freeze(&self, frozen: bool) {
        self.0.frozen.send_replace(frozen);
    }

    /// Every request so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }

    /// Forgets the requests so far.
    pub fn forget_asked(&self) {
        self.state().asked.clear();
    }

    /// How many streams were opened so far.
    pub fn streams(&self) -> usize {
        self.state().streams
    }

    /// How many streams are open.
    pub fn open_streams(&self) -> usize {
        self.state().open
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.state().connections
    }

    /// Waits until the requests so far satisfy `done`.
    ///
    /// # Panics
    /// After ten minutes of (usually virtual) time.
    pub async fn wait_for(&self, what: &str, done: impl Fn(&[Asked]) -> bool) {
        let mut changes = self.0.changes.subscribe();
        let waiting = async {
            while !done(&self.state().asked) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(Duration::from_secs(600), waiting).await.is_err() {
            panic!("waited in vain for {what}; asked so far: {:#?}", self.asked());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.0.changes.send_modify(|count| *count += 1);
    }

    async fn connect(&self) -> io::Result<DuplexStream> {
        let (client, outer) = tokio::io::duplex(1 << 16);
        let mode = self.state().mode;
        match mode {
            Mode::Refuse => return Err(io::ErrorKind::ConnectionRefused.into()),
            Mode::Mute => {
                self.state().muted.push(Box::new(outer));
                return Ok(client);
            }
            _ => {}
        }
        let inner = self.inner().await?;
        self.pump(outer, inner);
        Ok(client)
    }

    /// A new connection as the server itself sees it; this is our end.
    async fn inner(&self) -> io::Result<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        self.0.incoming.send(theirs).await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        self.state().connections += 1;
        Ok(ours)
    }

    fn pump(&self, outer: impl Io + 'static, inner: DuplexStream) {
        let (from_client, to_client) = tokio::io::split(Box::new(outer) as Box<dyn Io>);
        let (from_server, to_server) = tokio::io::split(inner);
        let frozen = self.0.frozen.subscribe();
        let up = pump(from_client, to_server, frozen.clone());
        let down = pump(from_server, to_client, frozen);
        let task = tokio::spawn(async move {
            tokio::join!(up, down);
        });
        self.state().pumps.push(task.abort_handle());
    }
}

impl std::fmt::Debug for ManagementServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ManagementServer")
    }
}

/// Carries bytes one way until either side ends, unless it is frozen.
async fn pump<A, B>(mut from: ReadHalf<A>, mut to: WriteHalf<B>, mut frozen: watch::Receiver<bool>)
where
    A: tokio::io::AsyncRead,
    B: tokio::io::AsyncWrite,
{
    let mut buffer = vec![0; 1 << 14];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        if frozen.wait_for(|frozen| !frozen).await.is_err() {
            return;
        }
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            // The other side may have gone first.
            let _ = to.shutdown().await;
            return;
        };
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

/// The gRPC service.
struct Ads(ManagementServer);

type Responses<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let mut protocol = SotwState::default();
        let responses = self.0.clone().open(request.into_inner(), move |event, state| match event {
            Event::Asked(stream, request) => {
                state.asked.push(Asked::Sotw(stream, DiscoveryRequest::clone(request)));
                protocol.asked(request, &state.world, state.reports_missing)
            }
            Event::Changed => protocol.due(&state.world, state.reports_missing),
        });
        Ok(Response::new(Box::pin(responses.filter_map(|answer| match answer {
            Ok(Answer::Sotw(response)) => Some(Ok(response)),
            Ok(Answer::Delta(_)) => None,
            Err(status) => Some(Err(status)),
        }))))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let mut protocol = DeltaState::default();
        let responses = self.0.clone().open(request.into_inner(), move |event, state| match event {
            Event::Asked(stream, request) => {
                state.asked.push(Asked::Delta(stream, DeltaDiscoveryRequest::clone(request)));
                protocol.asked(request, &state.world)
            }
            Event::Changed => protocol.due(&state.world),
        });
        Ok(Response::new(Box::pin(responses.filter_map(|answer| match answer {
            Ok(Answer::Delta(response)) => Some(Ok(response)),
            Ok(Answer::Sotw(_)) => None,
            Err(status) => Some(Err(status)),
        }))))
    }
}

enum Event<'r, R> {
    Asked(usize, &'r R),
    Changed,
}

impl ManagementServer {
    /// Runs one stream in a task of its own.
    fn open<R, P>(self, requests: Streaming<R>, protocol: P) -> ReceiverStream<Result<Answer, Status>>
    where
        R: Send + 'static,
        P: FnMut(Event<'_, R>, &mut State) -> Vec<Answer> + Send + 'static,
    {
        let (sender, responses) = mpsc::channel(1);
        let number = {
            let mut state = self.state();
            state.streams += 1;
            state.open += 1;
            state.streams
        };
        self.changed();
        tokio::spawn(async move {
            let end = self.run(number, requests, protocol, &sender).await;
            if let Err(status) = end {
                // The client may be gone.
                let _ = sender.send(Err(status)).await;
            }
            self.state().open -= 1;
            self.changed();
        });
        ReceiverStream::new(responses)
    }

    async fn run<R, P>(
        &self,
        number: usize,
        mut requests: Streaming<R>,
        mut protocol: P,
        sender: &mpsc::Sender<Result<Answer, Status>>,
    ) -> Result<(), Status>
    where
        P: FnMut(Event<'_, R>, &mut State) -> Vec<Answer> + Send + 'static,
    {
        let mut changes = self.0.changes.subscribe();
        let mut line = Line { previous_nonce: String::new(), held: None };
        if self.state().mode == Mode::CloseStreams {
            return Ok(());
        }
        loop {
            let answers = tokio::select! {
                biased;
                request = requests.message() => match request {
                    Ok(Some(request)) => {
                        let answers = protocol(Event::Asked(number, &request), &mut self.state());
                        self.changed();
                        answers
                    }
                    Ok(None) | Err(_) => return Ok(()),
                },
                changed = changes.changed() => {
                    if changed.is_err() || number <= self.state().close_before {
                        return Ok(());
                    }
                    let mut state = self.state();
                    let mut answers = protocol(Event::Changed, &mut state);
                    if number == state.streams {
                        answers.append(&mut state.scripted);
                    }
                    answers
                }
                () = sender.closed() => return Ok(()),
            };
            for answer in answers {
                if self.state().mode == Mode::Silent {
                    continue;
                }
                let (flaw, delay) = {
                    let mut state = self.state();
                    (state.flaws.pop_front(), state.delay)
                };
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                for answer in line.next(answer, flaw) {
                    if sender.send(Ok(answer)).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// The order in which responses go out.
struct Line {
    previous_nonce: String,
    held: Option<Answer>,
}

impl Line {
    fn next(&mut self, answer: Answer, flaw: Option<Flaw>) -> Vec<Answer> {
        let answer = match flaw {
            Some(Flaw::Lost) => return Vec::new(),
            Some(Flaw::AfterTheNext) => {
                self.held = Some(answer);
                return Vec::new();
            }
            Some(flaw) => answer.spoilt(&flaw, &self.previous_nonce),
            None => answer,
        };
        self.previous_nonce = answer.nonce().to_owned();
        std::iter::once(answer).chain(self.held.take()).collect()
    }
}
