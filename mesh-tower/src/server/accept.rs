//! The first station of a server: connections, handed out only while the configuration lets the listener serve
//! (gRFC A36).
//!
//! While nothing is known, connections wait in the backlog. Where the configuration says no, or has no filter
//! chain for a connection, or asks for TLS that cannot be had, they are closed. Nothing is served without a
//! listener resource; once there is one, the loss of the control plane changes nothing.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::id::ListenerName;
use mesh_core::store::{Secured, ServerHandle, ServerState, TargetEntry};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tokio::time::Instant;

use crate::access_log::ConnectionLog;
use crate::connection::ConnectionInfo;
use crate::drain::{Accepting, InFlight, Phase, reached};
use crate::io::{Both, Half, Io};
use crate::listeners::{ListenerGuard, ListenerState, WatchTask, watch_listener};
use crate::mesh::Mesh;
use crate::server::handshake::{self, Carries, Handshake};
use crate::server::layer::ServerLayer;
use crate::server::limits::Limits;
use crate::server::peers::{PeerTable, Seat};
use crate::server::protocol::{Broken, Protocol, Says, Sent};
use crate::server::proxied::{Headers, Proxied};
use crate::server::unseen::{self, Answers};
use crate::telemetry::TcpCount;

/// After how long without a word a peer is probed, and how often from then on.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));

/// How many connections tokio lets wait in a socket's backlog.
const BACKLOG: usize = 1024;

/// A bound socket that accepts as the configuration allows.
///
/// It works with [`crate::server::serve`], with `axum::serve` (Cargo feature `axum`), with tonic (`mesh-tonic`),
/// and in any loop:
///
/// ```
/// use mesh_core::fixed::Fixed;
/// use mesh_tower::Mesh;
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mesh = Mesh::builder().source(Fixed::new()).start()?;
/// let mut listener = mesh.bind("127.0.0.1:0").await?;
/// let mut client = tokio::net::TcpStream::connect(listener.local_addr()).await?;
/// client.write_all(b"hello").await?;
/// let (mut io, _peer) = listener.accept().await.expect("not draining");
/// let mut hello = [0; 5];
/// io.read_exact(&mut hello).await?;
/// # assert_eq!(&hello, b"hello");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct MeshListener {
    mesh: Mesh,
    address: SocketAddr,
    carries: Carries,
    guard: ListenerGuard,
    socket: Socket,
    news: watch::Receiver<()>,
    phase: watch::Receiver<Phase>,
    failures: u32,
    /// Those whose header is being read, where they have one.
    headers: Headers,
    peers: PeerTable,
    most_per_client: usize,
    patience: Duration,
    /// Where a gateway's listener may be taken away from it.
    withdrawn: Option<oneshot::Receiver<()>>,
    /// `None` once it was.
    watching: Option<WatchTask>,
}

#[derive(Debug)]
enum Socket {
    Open(TcpListener, Accepting),
    /// Closed, with what had connected before.
    Closed(VecDeque<(TcpStream, SocketAddr)>),
}

impl MeshListener {
    /// Binds, and subscribes to the listener resource of the address.
    pub(super) async fn bind(
        mesh: &Mesh,
        address: impl tokio::net::ToSocketAddrs,
        carries: Carries,
    ) -> io::Result<Self> {
        let drain = mesh.drain();
        if drain.is_leaving() {
            return Err(io::Error::other(MeshError::new(ErrorKind::Draining, "the mesh is draining")));
        }
        let socket = TcpListener::bind(address).await?;
        let handle = mesh.store().server(socket.local_addr()?).map_err(io::Error::other)?;
        MeshListener::on(mesh, socket, handle, carries)
    }

    /// Serves by a listener of a gateway, until the sender is dropped.
    pub(crate) async fn of_gateway(
        mesh: &Mesh,
        name: &ListenerName,
        address: SocketAddr,
        withdrawn: oneshot::Receiver<()>,
    ) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        let handle = mesh.store().gateway_server(name.clone(), address);
        let listener = MeshListener::on(mesh, socket, handle, Carries::Http)?;
        Ok(MeshListener { withdrawn: Some(withdrawn), ..listener })
    }

    fn on(mesh: &Mesh, socket: TcpListener, handle: ServerHandle, carries: Carries) -> io::Result<Self> {
        let drain = mesh.drain();
        // Accepted connections inherit it: a peer that vanished without a word is noticed.
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE.0).with_interval(KEEPALIVE.1);
        _ = SockRef::from(&socket).set_tcp_keepalive(&keepalive);
        let address = socket.local_addr()?;
        let (guard, watching) = watch_listener(mesh.listeners(), handle, address, drain);
        Ok(MeshListener {
            address,
            carries,
            news: guard.listener().news(),
            phase: drain.watch(),
            guard,
            socket: Socket::Open(socket, drain.accepting()),
            failures: 0,
            headers: Headers::default(),
            peers: PeerTable::default(),
            most_per_client: Limits::default().max_connections_per_client,
            patience: mesh.cold_start_wait(),
            mesh: mesh.clone(),
            withdrawn: None,
            watching: Some(watching),
        })
    }

    /// How many connections a client may have at once, whatever loop serves them; more are closed. 5,000 by default. What a client
    /// is, [`Limits::max_connections_per_client`] says, by which [`crate::server::serve`] goes instead.
    ///
    /// ```
    /// use mesh_core::fixed::Fixed;
    /// use mesh_tower::Mesh;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mesh = Mesh::builder().source(Fixed::new()).start()?;
    /// // All clients come by one load balancer.
    /// let listener = mesh.bind("127.0.0.1:0").await?.max_connections_per_client(50_000);
    /// # Ok(()) }
    /// ```
    pub fn max_connections_per_client(mut self, most: usize) -> Self {
        self.most_per_client = most;
        self
    }

    /// Where it is bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The resource that it serves by.
    pub fn name(&self) -> &ListenerName {
        self.listener().name()
    }

    /// The layer for a service behind this listener: [`Mesh::server_layer`] when several are bound.
    pub fn layer(&self) -> ServerLayer {
        ServerLayer::of(&self.mesh, Some(Arc::clone(self.listener())))
    }

    /// Waits until it may serve. Accepting does not need this.
    ///
    /// # Errors
    /// [`ErrorKind::Draining`] when the drain begins; after the mesh's [`Mesh::cold_start_wait`],
    /// [`ErrorKind::NotServing`] with the reason when the configuration still says no, and
    /// [`ErrorKind::NotServingYet`] when it says nothing. It may serve later: it goes on asking.
    pub async fn serving(&self) -> Result<(), MeshError> {
        let deadline = Instant::now() + self.patience;
        serving(self.listener(), &self.mesh, deadline).await
    }

    /// Whose it is.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Whether it can be taken away, as those of a gateway.
    pub(super) fn is_of_gateway(&self) -> bool {
        self.withdrawn.is_some()
    }

    pub(super) fn listener(&self) -> &Arc<ListenerState> {
        self.guard.listener()
    }

    /// The next connection, with `TCP_NODELAY` set, and who it is from; `None` when the drain is over. Failures
    /// to accept are waited out. Cancel safe.
    pub async fn accept(&mut self) -> Option<(MeshIo, SocketAddr)> {
        loop {
            let waiting = matches!(**self.listener().state(), ServerState::Waiting);
            let accepted = match &mut self.socket {
                Socket::Closed(backlog) => match backlog.pop_front() {
                    Some(connected) => Ok(connected),
                    None => {
                        tokio::select! {
                            biased;
                            Some(proxied) = self.headers.next() => match self.admit(proxied) {
                                Some(accepted) => return Some(accepted),
                                None => continue,
                            },
                            () = reached(&mut self.phase, Phase::Closed), if self.watching.is_some() => {}
                            else => {}
                        }
                        return None;
                    }
                },
                Socket::Open(..) if waiting => {
                    self.wait_for_configuration().await;
                    continue;
                }
                Socket::Open(socket, _) => tokio::select! {
                    biased;
                    () = reached(&mut self.phase, Phase::Closing) => {
                        self.close();
                        continue;
                    }
                    () = withdrawn(&mut self.withdrawn) => {
                        self.close();
                        self.watching = None;
                        continue;
                    }
                    Some(proxied) = self.headers.next() => match self.admit(proxied) {
                        Some(accepted) => return Some(accepted),
                        None => continue,
                    },
                    accepted = socket.accept() => accepted,
                },
            };
            match accepted {
                Ok((stream, peer)) => {
                    self.failures = 0;
                    if self.is_behind_proxy() {
                        self.headers.read(stream, peer, self.guard.listener().name(), self.guard.listeners());
                    } else if let Some(accepted) = self.admit(Proxied { stream, client: peer, direct: peer }) {
                        return Some(accepted);
                    }
                }
                Err(error) => {
                    self.failures = self.failures.saturating_add(1);
                    tracing::warn!(address = %self.address, %error, "cannot accept a connection");
                    tokio::time::sleep(backoff(self.failures)).await;
                }
            }
        }
    }

    /// The connections as a stream, for servers that want one. It ends with the drain.
    pub fn incoming(self) -> Incoming {
        Incoming { next: Some(Box::pin(next(self))) }
    }

    /// Leaves connections in the backlog until something is known, saying so now and then.
    async fn wait_for_configuration(&mut self) {
        tokio::select! {
            _ = self.news.changed() => {}
            () = reached(&mut self.phase, Phase::Closing) => self.close(),
            () = withdrawn(&mut self.withdrawn) => {
                self.close();
                self.watching = None;
            }
            () = tokio::time::sleep(self.patience) => tracing::warn!(
                listener = %self.listener().name(),
                address = %self.address,
                "not serving yet: no configuration, the control plane has not answered",
            ),
        }
    }

    /// Takes what has already connected, and closes the socket: a connection in the backlog of a closed socket
    /// is reset, and its client cannot know whether the request was read.
    fn close(&mut self) {
        let Socket::Open(socket, accepting) = std::mem::replace(&mut self.socket, Socket::Closed(VecDeque::new()))
        else {
            return;
        };
        let mut backlog = VecDeque::new();
        if let Ok(socket) = socket.into_std() {
            // No more than fit, should clients come faster than they can be taken.
            for (stream, peer) in (0..BACKLOG).map_while(|_| socket.accept().ok()) {
                if stream.set_nonblocking(true).is_ok()
                    && let Ok(stream) = TcpStream::from_std(stream)
                {
                    backlog.push_back((stream, peer));
                }
            }
        }
        self.socket = Socket::Closed(backlog);
        drop(accepting);
    }

    /// Whether every connection begins with a header that says whose it is.
    fn is_behind_proxy(&self) -> bool {
        matches!(&**self.listener().state(), ServerState::Serving(view) if view.listener.proxy_protocol)
    }

    /// Lets a connection in, or drops it.
    fn admit(&self, proxied: Proxied) -> Option<(MeshIo, SocketAddr)> {
        let Proxied { stream, client: peer, direct } = proxied;
        // A peer that is gone already.
        let local = stream.local_addr().ok()?;
        let listener = self.listener();
        let refused = |reason: &str| {
            tracing::debug!(listener = %listener.name(), %peer, reason, "connection refused");
            None
        };
        let Some(seat) = self.peers.enter(peer.ip(), self.most_per_client) else {
            tracing::info!(listener = %listener.name(), %peer, "connection refused: its client has too many, or floods them");
            return None;
        };
        let mut onward = None;
        let asks_for_tls = match &**listener.state() {
            ServerState::Waiting => return refused("no configuration"),
            ServerState::NotServing(reason) => return refused(reason),
            ServerState::Serving(view) => {
                // Whether the client speaks TLS is seen with its first byte: it is let in if it may, one way or the other.
                let ways = [(false, Secured::Plaintext), (true, Secured::Willing)];
                let ways = ways.map(|(is_tls, how)| view.chain(local, peer, is_tls, None).map(|it| it.admits(how)));
                match ways {
                    // By which name it asks is seen with its first message.
                    _ if view.reads_names() => true,
                    [None, None] => return refused("no filter chain matches"),
                    [Some(Ok(())), _] | [_, Some(Ok(()))] => {
                        let chain = view.chain(local, peer, false, None).filter(|chain| chain.is_opaque);
                        onward = chain.and_then(|chain| chain.onward.clone());
                        view.asks_for_tls()
                    }
                    [Some(Err(reason)), _] | [_, Some(Err(reason))] => {
                        listener.note_refused(peer, &reason);
                        return None;
                    }
                }
            }
        };
        _ = stream.set_nodelay(true);
        let connection = Arc::new(ConnectionInfo::accepted(local, peer, direct));
        let state = match asks_for_tls {
            false => State::Open(handshake::plaintext(stream, listener, &connection, self.carries, onward)),
            true => {
                let handshake = Handshake {
                    listener: Arc::clone(listener),
                    certificates: Arc::clone(self.mesh.store().certificates()),
                    connection: Arc::clone(&connection),
                    carries: self.carries,
                };
                State::Opening(Both::new(handshake.within_time(stream)))
            }
        };
        let io = MeshIo {
            state,
            connection,
            protocol: (self.carries == Carries::Http).then(Protocol::new),
            sent: (self.carries == Carries::Http).then(Sent::new),
            answers: (self.carries == Carries::Http).then(Answers::new),
            seat: Arc::new(seat),
            listener: self.guard.clone(),
            in_flight: None,
            room: None,
            count: None,
            log: None,
        };
        Some((io, peer))
    }
}

/// Waits until a listener is taken away, if it can be.
async fn withdrawn(signal: &mut Option<oneshot::Receiver<()>>) {
    match signal {
        // An error is that it was.
        Some(signal) => _ = signal.await,
        None => std::future::pending().await,
    }
}

/// Waits until a listener may serve.
pub(super) async fn serving(listener: &ListenerState, mesh: &Mesh, deadline: Instant) -> Result<(), MeshError> {
    let refused = |kind, reason: &str| {
        let place = format_args!("listener {}", listener.name());
        Err(MeshError::new(kind, reason).within(place))
    };
    let drain = mesh.drain();
    let mut news = listener.news();
    loop {
        if let ServerState::Serving(_) = **listener.state() {
            return Ok(());
        }
        tokio::select! {
            _ = news.changed() => {}
            () = drain.reached(Phase::LameDuck) => return refused(ErrorKind::Draining, "the mesh is draining"),
            () = tokio::time::sleep_until(deadline) => return match &**listener.state() {
                ServerState::NotServing(reason) => refused(ErrorKind::NotServing, reason),
                _ => {
                    let silence = mesh.client_status().silence(std::time::Instant::now());
                    refused(ErrorKind::NotServingYet, &format!("no configuration yet ({silence})"))
                }
            },
        }
    }
}

/// How long to wait after this many failures in a row to accept: 5 ms, doubling to 100 ms. File descriptors
/// that ran out come back, and a loop without a pause would take the processor that frees them.
fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(5);
    Duration::from_millis((5u64 << doublings).min(100))
}

#[cfg(feature = "axum")]
mod with_axum {
    use super::*;

    /// For `axum::serve`, which cannot be told of an end: give it [`Mesh::drained`] as its shutdown signal.
    ///
    /// ```
    /// use axum::routing::get;
    /// use mesh_core::fixed::Fixed;
    /// use mesh_tower::Mesh;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mesh = Mesh::builder().source(Fixed::new()).start()?;
    /// let app = axum::Router::new().route("/", get(|| async { "hello" })).layer(mesh.server_layer());
    /// let listener = mesh.bind("127.0.0.1:0").await?;
    /// # let draining = mesh.clone();
    /// # tokio::spawn(async move { draining.drain().begin().await });
    /// axum::serve(listener, app).with_graceful_shutdown(mesh.drained()).await?;
    /// # Ok(()) }
    /// ```
    impl axum::serve::Listener for MeshListener {
        type Io = MeshIo;
        type Addr = SocketAddr;

        async fn accept(&mut self) -> (MeshIo, SocketAddr) {
            match MeshListener::accept(self).await {
                Some(accepted) => accepted,
                None => std::future::pending().await,
            }
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(self.address)
        }
    }

    impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, MeshListener>> for ConnectionInfo {
        fn connect_info(stream: axum::serve::IncomingStream<'_, MeshListener>) -> Self {
            (**stream.io().connection()).clone()
        }
    }
}

type Next = Pin<Box<dyn Future<Output = Option<(MeshListener, MeshIo)>> + Send>>;

/// The connections of a listener, as a stream.
pub struct Incoming {
    next: Option<Next>,
}

async fn next(mut listener: MeshListener) -> Option<(MeshListener, MeshIo)> {
    let (io, _) = listener.accept().await?;
    Some((listener, io))
}

impl Stream for Incoming {
    type Item = io::Result<MeshIo>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<MeshIo>>> {
        let Some(pending) = &mut self.next else { return Poll::Ready(None) };
        let accepted = ready!(pending.as_mut().poll(cx));
        let (listener, io) = match accepted {
            Some((listener, io)) => (Some(listener), Some(io)),
            None => (None, None),
        };
        self.next = listener.map(|listener| Box::pin(next(listener)) as Next);
        Poll::Ready(io.map(Ok))
    }
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Incoming")
    }
}

/// A connection that the mesh let in.
///
/// Where the configuration asks for TLS, the handshake runs when it is first read from or written to: in the connection's
/// own task, under every server loop. It may take 10 s.
pub struct MeshIo {
    state: State,
    connection: Arc<ConnectionInfo>,
    /// What it speaks, where anybody cares.
    protocol: Option<Protocol>,
    /// What is written, where nobody else tells why the connection ended.
    sent: Option<Sent>,
    /// What is answered, where nobody else tells whether the layer saw what was asked.
    answers: Option<Answers>,
    /// It is one of its client's.
    seat: Arc<Seat>,
    listener: ListenerGuard,
    /// Where it is one of those that the drain waits for.
    in_flight: Option<InFlight>,
    /// Where it is one of those that are limited by number.
    room: Option<OwnedSemaphorePermit>,
    /// Where its bytes are counted.
    count: Option<TcpCount>,
    /// Where it has a line of its own in the access log.
    log: Option<Box<ConnectionLog>>,
}

enum State {
    Opening(Both<io::Result<Io>>),
    Open(Io),
    /// It was said why.
    Refused,
}

impl MeshIo {
    /// What is known of it.
    pub fn connection(&self) -> &Arc<ConnectionInfo> {
        &self.connection
    }

    /// Waits until it is known how its bytes travel. Where a gateway sends it on as it is, that is where.
    pub(super) async fn opened(&mut self) -> io::Result<Option<Arc<TargetEntry>>> {
        std::future::poll_fn(|cx| self.poll_open(cx, Half::Reader).map_ok(|io| io.onward().cloned())).await
    }

    /// Nobody looks into what it carries.
    pub(super) fn carries_bytes(&mut self) {
        (self.protocol, self.sent) = (None, None);
    }

    /// What it speaks.
    pub(super) fn protocol(&self) -> Option<&Protocol> {
        self.protocol.as_ref()
    }

    /// Whoever serves it tells why it ended, and which requests came to the layer.
    pub(super) fn is_told_of(&mut self) -> ListenerGuard {
        (self.sent, self.answers) = (None, None);
        self.listener.clone()
    }

    /// Its place among those of its client.
    pub(super) fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }

    /// Takes in what was read. An error is the end of the connection.
    #[inline]
    fn hear(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(protocol) = &mut self.protocol else { return Ok(()) };
        if let Some(answers) = &mut self.answers {
            answers.note_read();
        }
        let agreed = || self.connection.tls().and_then(|tls| tls.alpn.as_deref());
        protocol.hear(bytes, agreed, std::time::Instant::now).map_err(|broken| {
            if broken == Broken::Flood {
                self.seat.note_flood();
            }
            io::Error::new(io::ErrorKind::InvalidData, broken)
        })
    }

    /// The drain waits for it.
    pub(super) fn counts_in(&mut self, in_flight: InFlight) {
        self.in_flight = Some(in_flight);
    }

    /// Its bytes are counted.
    pub(super) fn counts_bytes(&mut self, count: TcpCount) {
        self.count = Some(count);
    }

    /// It has this line in the access log, once it is over.
    pub(super) fn logs(&mut self, log: Box<ConnectionLog>) -> &mut ConnectionLog {
        self.log.insert(log)
    }

    /// Notes what was written of these.
    #[inline]
    fn note_written<'b>(
        &mut self,
        written: Poll<io::Result<usize>>,
        bytes: impl Iterator<Item = &'b [u8]>,
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(Ok(mut left)) = written else { return written };
        if let Some(count) = &self.count {
            count.written(left);
        }
        if let Some(log) = &mut self.log {
            log.sent(left);
        }
        if let (Some(sent), Some(Protocol::Http2(_))) = (&mut self.sent, &self.protocol) {
            let seen = self.connection.seen();
            for part in bytes {
                let mut part = part.get(..left).unwrap_or(part);
                left -= part.len();
                while let Some((says, rest)) = sent.next(part) {
                    part = rest;
                    match (says, &mut self.answers) {
                        (Says::Answer(head, is_all), Some(answers)) => _ = answers.is_unseen_head(head, is_all, seen),
                        (Says::Answer(..), None) => {}
                        (Says::Flood, _) => {
                            self.seat.note_flood();
                            (self.sent, self.answers) = (None, None);
                            return written;
                        }
                    }
                }
            }
        }
        written
    }

    /// Keeps what is about to be written back where it is an answer to what the layer did not see and should have. Of HTTP/2 it
    /// is counted once it is written.
    #[inline]
    fn check_answers<'b>(&mut self, mut bytes: impl Iterator<Item = &'b [u8]>) -> io::Result<()> {
        let Some(answers) = &mut self.answers else { return Ok(()) };
        let seen = self.connection.seen();
        let is_unseen = match (&self.protocol, &self.sent) {
            (Some(Protocol::Http2(_)), Some(sent)) => {
                let (mut sent, mut answers) = (sent.clone(), answers.clone());
                bytes.any(|mut part| {
                    while let Some((says, rest)) = sent.next(part) {
                        part = rest;
                        if let Says::Answer(head, is_all) = says
                            && answers.is_unseen_head(head, is_all, seen)
                        {
                            return true;
                        }
                    }
                    false
                })
            }
            // Servers of HTTP/2 may say first what they can do.
            (Some(Protocol::Unknown(_)), _) => false,
            _ => answers.is_unseen(bytes.find(|part| !part.is_empty()).unwrap_or_default(), seen),
        };
        if !is_unseen {
            return Ok(());
        }
        match unseen::lets_out(&self.listener, &self.connection) {
            true => Ok(()),
            false => {
                self.state = State::Refused;
                Err(io::Error::new(io::ErrorKind::PermissionDenied, "an answer past the mesh's policies"))
            }
        }
    }

    /// It takes its place until it is dropped.
    pub(super) fn takes(&mut self, room: Option<OwnedSemaphorePermit>) {
        self.room = room;
    }

    /// Whether the peer has said all that it had to say. Pending while nothing is to be read.
    pub(super) fn poll_has_ended(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        match &mut self.state {
            State::Open(io) => io.poll_has_ended(cx),
            State::Opening(_) | State::Refused => Poll::Pending,
        }
    }

    /// The bytes, once it is known how they travel.
    #[inline]
    pub(super) fn poll_open(&mut self, cx: &mut Context<'_>, half: Half) -> Poll<io::Result<Pin<&mut Io>>> {
        loop {
            match &mut self.state {
                State::Opening(opening) => {
                    let opened = ready!(opening.poll(cx, half));
                    self.state = State::Refused;
                    self.state = State::Open(opened?);
                }
                State::Refused => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
                // Not in the first arm's place: the borrow would outlive the loop.
                State::Open(_) => break,
            }
        }
        match &mut self.state {
            State::Open(io) => Poll::Ready(Ok(Pin::new(io))),
            State::Opening(_) | State::Refused => Poll::Pending,
        }
    }
}

impl std::fmt::Debug for MeshIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshIo").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl AsyncRead for MeshIo {
    #[inline]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = ready!(self.poll_open(cx, Half::Reader))?.poll_read(cx, buf);
        let read = buf.filled().len().saturating_sub(before);
        if let Some(count) = &self.count {
            count.read(read);
        }
        if let Some(log) = &mut self.log {
            log.received(read);
        }
        match buf.filled().get(before..) {
            Some(bytes) if polled.is_ready() && !bytes.is_empty() => self.hear(bytes)?,
            _ => {}
        }
        polled
    }
}

impl AsyncWrite for MeshIo {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check_answers([buf].into_iter())?;
        let written = ready!(self.poll_open(cx, Half::Writer))?.poll_write(cx, buf);
        self.note_written(written, [buf].into_iter())
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_answers(bufs.iter().map(|part| &**part))?;
        let written = ready!(self.poll_open(cx, Half::Writer))?.poll_write_vectored(cx, bufs);
        self.note_written(written, bufs.iter().map(|part| &**part))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Open(io) => Pin::new(io).poll_flush(cx),
            // Nothing was written.
            State::Opening(_) | State::Refused => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Open(io) => Pin::new(io).poll_shutdown(cx),
            State::Opening(_) | State::Refused => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_after_a_failed_accept_grows_from_5_to_100_ms() {
        let pauses: Vec<_> = [1, 2, 3, 5, 6, 7, u32::MAX].map(|failures| backoff(failures).as_millis()).into();
        assert_eq!(pauses, [5, 10, 20, 80, 100, 100, 100]);
    }
}
