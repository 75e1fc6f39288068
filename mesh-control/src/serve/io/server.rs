//! The server around the streams: listeners, connections, the end of them all.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use mesh_core::error::Invalid;
use mesh_core::identity::{SpiffeId, TrustDomain};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::{Connected, Router};
use tonic::{Request, Status};

use crate::calls::Calls;
use crate::catalog::Kind;
use crate::quota::{Quotas, Store};
use crate::ratelimit::RateLimits;
use crate::serve::clients::admission::Admission;
use crate::serve::clients::certificates::{Asked, Certificates, Desk};
use crate::serve::clients::clock::now;
use crate::serve::clients::feed::Feed;
use crate::serve::clients::fleet::{Fleet, Limits};
use crate::serve::clients::load::Load;
use crate::serve::clients::metrics::Metrics;
use crate::serve::clients::presence::{Presence, Workloads};
use crate::serve::clients::refusals::{Port, Refusals};
use crate::serve::clients::settling::Settling;
use crate::serve::clients::state::ServerState;
use crate::serve::clients::traffic::Traffic;
use crate::serve::io::access_log::AccessLogs;
use crate::serve::io::ads::Ads;
use crate::serve::io::certificates::CertificateService;
use crate::serve::io::csds::Csds;
use crate::serve::io::door::{Door, accept};
use crate::serve::io::health_checks::HealthChecks;
use crate::serve::io::live_trace::LiveTraces;
use crate::serve::io::load_stats::LoadReports;
use crate::serve::io::own_tls::{HANDSHAKE, OwnTls};
use crate::serve::io::quotas::QuotaDesk;
use crate::serve::io::rate_limits::RateLimitDesk;
use crate::serve::io::secrets::Secrets;
use crate::serve::io::tls::{Reloading, TlsFiles};
use crate::serve::protocol::push::Pace;

/// How the ADS server behaves.
///
/// ```
/// use std::time::Duration;
///
/// let options = mesh_control::serve::Options::default().settle(Duration::ZERO).grace(Duration::from_secs(3));
/// assert_eq!(options.max_stream_age, None);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// For how long after the start clients are given no fewer endpoints than they brought along, while workloads
    /// register themselves again; longer, if they are so many that they have to wait for their turn.
    pub settle: Duration,
    /// How long a workload stays registered after its stream broke.
    pub grace: Duration,
    /// How pushes wait for answers.
    pub pace: Pace,
    /// When streams are ended so that clients spread over servers again; ten percent more or less. Never,
    /// unless set.
    pub max_stream_age: Option<Duration>,
    /// Streams that may begin per second, after a burst of [`stream_burst`](Self::stream_burst).
    pub stream_rate: u32,
    /// Streams that may begin at once.
    pub stream_burst: u32,
    /// The certificates that it issues, if it does.
    pub certificates: Option<Certificates>,
    /// The trust domain of the mesh, where it issues none: a client certificate of another one is refused. With
    /// [`certificates`](Self::certificates), it is that of their authority.
    pub trust_domain: TrustDomain,
    /// Where the records of who called what are kept, which workloads of the library then send, and Envoys that are told to. In
    /// memory, unless set; `None` keeps none, and no workload makes any.
    pub calls: Option<Arc<Calls>>,
    /// Streams that one identity may have at a time. Those that come without a certificate are counted by their address.
    pub streams_per_identity: usize,
    /// How many bytes of names all streams of one identity may ask for together, 64 bytes of bookkeeping each included.
    pub name_bytes_per_identity: usize,
    /// What the rate limit service goes by, if there is one; see [`listen_rate_limits`](Server::listen_rate_limits).
    pub rate_limits: Option<Arc<RateLimits>>,
    /// Where quotas are kept, of which shares are assigned to workloads on the same addresses as xDS.
    pub quotas: QuotasIn,
}

/// Where quotas are kept.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum QuotasIn {
    /// Nobody says it: in the state directory of an embedded control plane that has one, else in memory.
    #[default]
    Default,
    /// Here.
    These(Arc<Quotas>),
    /// Nobody is assigned a share.
    Nowhere,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            // Our library dials a server that was down again within 3.6 s; all have caught up within 5 s.
            settle: Duration::from_secs(4),
            grace: Duration::from_secs(10),
            pace: Pace::default(),
            max_stream_age: None,
            // 2,000 clients that come back together are spread over eight seconds.
            stream_rate: 250,
            stream_burst: 100,
            certificates: None,
            trust_domain: TrustDomain::default(),
            calls: Some(Arc::new(Calls::in_memory())),
            // Five times the replicas that this server is made for, and some two million names.
            streams_per_identity: 10_000,
            name_bytes_per_identity: 256 << 20,
            rate_limits: None,
            quotas: QuotasIn::Default,
        }
    }
}

impl Options {
    /// Settles for this long after the start; see [`settle`](field@Self::settle).
    pub fn settle(mut self, time: Duration) -> Options {
        self.settle = time;
        self
    }

    /// Keeps a workload whose stream broke for this long.
    pub fn grace(mut self, time: Duration) -> Options {
        self.grace = time;
        self
    }

    /// Waits for answers like this.
    pub fn pace(mut self, pace: Pace) -> Options {
        self.pace = pace;
        self
    }

    /// Ends streams of this age, or none; see [`max_stream_age`](field@Self::max_stream_age).
    pub fn max_stream_age(mut self, age: impl Into<Option<Duration>>) -> Options {
        self.max_stream_age = age.into();
        self
    }

    /// Lets so many streams begin per second, after a burst of so many.
    pub fn stream_rate(mut self, per_second: u32, burst: u32) -> Options {
        self.stream_rate = per_second;
        self.stream_burst = burst;
        self
    }

    /// Lets one identity have so many streams; see [`streams_per_identity`](field@Self::streams_per_identity).
    pub fn streams_per_identity(mut self, streams: usize) -> Options {
        self.streams_per_identity = streams;
        self
    }

    /// Lets one identity ask for so many bytes of names; see [`name_bytes_per_identity`](field@Self::name_bytes_per_identity).
    pub fn name_bytes_per_identity(mut self, bytes: usize) -> Options {
        self.name_bytes_per_identity = bytes;
        self
    }

    /// Issues these certificates, over Istio's protocol (`IstioCertificateService`), on the same addresses as xDS.
    pub fn certificates(mut self, certificates: impl Into<Option<Certificates>>) -> Options {
        self.certificates = certificates.into();
        self
    }

    /// Decides about requests by these rate limits; see [`Server::listen_rate_limits`].
    pub fn rate_limits(mut self, limits: impl Into<Option<Arc<RateLimits>>>) -> Options {
        self.rate_limits = limits.into();
        self
    }

    /// Keeps quotas here, or nowhere; see [`quotas`](field@Self::quotas).
    pub fn quotas(mut self, quotas: impl Into<Option<Arc<Quotas>>>) -> Options {
        self.quotas = quotas.into().map_or(QuotasIn::Nowhere, QuotasIn::These);
        self
    }

    /// Keeps the records of calls here, or nowhere; see [`calls`](field@Self::calls).
    pub fn calls(mut self, calls: impl Into<Option<Arc<Calls>>>) -> Options {
        self.calls = calls.into();
        self
    }

    /// Serves a mesh of this trust domain; see [`trust_domain`](field@Self::trust_domain).
    pub fn trust_domain(mut self, domain: TrustDomain) -> Options {
        self.trust_domain = domain;
        self
    }
}

/// How long a stream waits for its turn to begin; who would have to wait longer is sent away.
const STREAM_PATIENCE: Duration = Duration::from_secs(15);
// Istiod's: a dead peer is noticed after 40 seconds.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams of one connection: up to four for most clients. A process of gRPC C-core has two for each target, of resources and of
/// load, over one connection; where there are no more, its calls wait.
const STREAMS_PER_CONNECTION: u32 = 4096;
/// Connections that were accepted and are not served yet.
const BACKLOG: usize = 64;
/// Between the GOAWAY of a connection and the end of its streams, so that clients see a server that
/// leaves, rather than an error (gRFC A57).
const GOAWAY_LEAD: Duration = Duration::from_millis(100);
/// How long a stop waits for connections to close.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// The buffer of an in-memory connection, per direction.
const MEMORY_BUFFER: usize = 64 << 10;

/// The ADS server. Dropping it ends everything at once; [`shutdown`](Self::shutdown) does it gracefully.
pub struct Server {
    state: Arc<ServerState>,
    desk: Option<Arc<Desk>>,
    trust_domain: TrustDomain,
    connections: mpsc::Sender<Conn>,
    goaway: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    acceptors: Mutex<Vec<JoinHandle<()>>>,
    /// What goes on as long as the server does.
    upkeep: Vec<JoinHandle<()>>,
    serving: Mutex<Vec<JoinHandle<()>>>,
}

impl Server {
    /// Starts serving the feed's catalogs to whoever connects; nobody can until [`listen`](Self::listen) or
    /// [`connect`](Self::connect). To be called inside a runtime.
    pub fn new(feed: Feed, workloads: Arc<dyn Workloads>, options: &Options) -> Server {
        let (stop, stopped) = watch::channel(false);
        let (goaway, leaving) = watch::channel(false);
        let desk = options.certificates.clone().map(|certificates| Arc::new(Desk::new(certificates)));
        let limits = Limits { streams: options.streams_per_identity, name_bytes: options.name_bytes_per_identity };
        let state = Arc::new(ServerState {
            desk: desk.clone(),
            calls: options.calls.clone(),
            rate_limits: options.rate_limits.clone(),
            quotas: match &options.quotas {
                QuotasIn::Default => Some(Arc::new(Quotas::new(Store::in_memory()))),
                QuotasIn::These(quotas) => Some(Arc::clone(quotas)),
                QuotasIn::Nowhere => None,
            },
            started: SystemTime::now(),
            feed,
            presence: Presence::new(workloads, options.grace),
            fleet: Fleet::new(limits),
            interner: Arc::default(),
            following: Arc::default(),
            metrics: Metrics::default(),
            load: Load::default(),
            traffic: Traffic::new(now()),
            refusals: Refusals::default(),
            admission: Mutex::new(Admission::new(options.stream_rate, options.stream_burst, STREAM_PATIENCE)),
            pace: options.pace,
            settling: Settling::new(now(), options.settle, STREAM_PATIENCE),
            max_stream_age: options.max_stream_age,
            revoked: watch::Sender::new(()),
            stop: stopped,
        });
        let (connections, incoming) = mpsc::channel(BACKLOG);
        let router = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .add_service(Ads::new(state.clone()))
            .add_service(InterceptedService::new(Csds::service(state.clone()), certified))
            .add_service(InterceptedService::new(LiveTraces(state.clone()), certified))
            .add_service(InterceptedService::new(LoadReports::service(&state), certified))
            .add_service(InterceptedService::new(HealthChecks::service(&state), certified))
            .add_optional_service(QuotaDesk::service(&state).map(|desk| InterceptedService::new(desk, certified)))
            .add_optional_service(AccessLogs::service(&state).map(|logs| InterceptedService::new(logs, certified)))
            .add_optional_service(desk.as_ref().map(|_| Secrets::service(&state)))
            .add_optional_service(desk.clone().map(CertificateService));
        let serving = tokio::spawn(serve(router, incoming, leaving));
        // Each by itself: the end of one is not that of the others.
        let [expiring, telling, reconsidering, revoking, fetching] = std::array::from_fn(|_| state.clone());
        let upkeep = vec![
            tokio::spawn(async move { expiring.presence.expire().await }),
            tokio::spawn(async move { telling.fleet.follow(&telling.feed).await }),
            tokio::spawn(async move { reconsider(&reconsidering).await }),
            tokio::spawn(async move { revoking.follow_revoked().await }),
            tokio::spawn(async move { fetching.fetch_bundles().await }),
        ];
        Server {
            state,
            trust_domain: desk
                .as_ref()
                .map_or_else(|| options.trust_domain.clone(), |desk| desk.authority().trust_domain()),
            desk,
            connections,
            goaway,
            stop,
            acceptors: Mutex::default(),
            upkeep,
            serving: Mutex::new(vec![serving]),
        }
    }

    /// Accepts plaintext connections at `address`; port 0 takes a free one. Returns the address bound. Where the server issues
    /// certificates, whoever begins with a TLS handshake gets one, with a certificate of its authority.
    pub async fn listen(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        let door = self.door(false);
        let own = self.desk.as_ref().map(|desk| Arc::new(OwnTls::new(desk.authority().clone())));
        self.keep(tokio::spawn(async move {
            while let Some((stream, peer)) = accept(&listener, &door.connections).await {
                match own.clone() {
                    None => door.plaintext(stream, peer).await,
                    Some(own) => door.let_in(stream, peer, move |door, stream, first| async move {
                        if first != HANDSHAKE {
                            return Some(Conn::plaintext(stream, peer));
                        }
                        door.tls(own.latest_or_told(SystemTime::now())?, stream, peer).await
                    }),
                }
            }
        }));
        Ok(bound)
    }

    /// What accepts TLS connections with these files, and takes certificates of the mesh.
    pub(super) fn reloading(&self, files: TlsFiles) -> anyhow::Result<Reloading> {
        let authority = self.desk.as_ref().map(|desk| desk.authority().clone());
        Reloading::new(files, authority, self.trust_domain.clone(), now())
    }

    /// Accepts TLS connections at `address`; port 0 takes a free one. Returns the address bound. A client
    /// that shows a certificate is held to it: a node that claims another namespace is refused. The files may be
    /// replaced at any time: the next connection is made with what is in them then.
    pub async fn listen_tls(&self, address: SocketAddr, files: &TlsFiles) -> anyhow::Result<SocketAddr> {
        let acceptor = Arc::new(self.reloading(files.clone())?);
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        let door = self.door(files.client_ca.is_some());
        self.keep(tokio::spawn(async move {
            while let Some((stream, peer)) = accept(&listener, &door.connections).await {
                let acceptor = acceptor.clone();
                door.let_in(stream, peer, move |door, stream, _| async move {
                    door.tls(acceptor.latest().await, stream, peer).await
                });
            }
        }));
        Ok(bound)
    }

    /// Serves the rate limits of [`Options::rate_limits`] at `address`: in plaintext to whoever reaches it, or over TLS with the
    /// files of [`listen_tls`](Self::listen_tls). Returns the address bound.
    ///
    /// # Errors
    /// There are no rate limits, the files cannot be used, or the address is taken.
    pub async fn listen_rate_limits(
        &self,
        address: SocketAddr,
        files: Option<&TlsFiles>,
    ) -> anyhow::Result<SocketAddr> {
        let Some(limits) = self.state.rate_limits.clone() else { anyhow::bail!("there are no rate limits") };
        let authority = self.desk.as_ref().map(|desk| desk.authority().clone());
        let acceptor = files.map(|files| Reloading::new(files.clone(), authority, self.trust_domain.clone(), now()));
        let acceptor = acceptor.transpose()?.map(Arc::new);
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        let (connections, incoming) = mpsc::channel(BACKLOG);
        let router = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .add_service(RateLimitDesk::service(limits));
        self.serving().push(tokio::spawn(serve(router, incoming, self.goaway.subscribe())));
        let door = Door::new(
            connections,
            Port::RateLimits,
            self.state.clone(),
            files.is_some_and(|files| files.client_ca.is_some()),
        );
        self.keep(tokio::spawn(async move {
            while let Some((stream, peer)) = accept(&listener, &door.connections).await {
                match acceptor.clone() {
                    None => door.plaintext(stream, peer).await,
                    Some(acceptor) => door.let_in(stream, peer, move |door, stream, _| async move {
                        door.tls(acceptor.latest().await, stream, peer).await
                    }),
                }
            }
        }));
        Ok(bound)
    }

    fn door(&self, verifies: bool) -> Door {
        Door::new(self.connections.clone(), Port::Xds, self.state.clone(), verifies)
    }

    /// A connection inside the process, to the same server.
    pub async fn connect(&self) -> io::Result<DuplexStream> {
        let (near, far) = tokio::io::duplex(MEMORY_BUFFER);
        let conn = Conn { peer: Peer::nameless(IpAddr::V4(Ipv4Addr::LOCALHOST)), io: Io::Memory(far) };
        match self.connections.send(conn).await {
            Ok(()) => Ok(near),
            Err(_) => Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the control plane has stopped")),
        }
    }

    /// Stops listening, tells every client that the server leaves, ends the streams, waits for the
    /// connections to close.
    pub async fn shutdown(&self) {
        self.acceptors().drain(..).for_each(|task| task.abort());
        self.goaway.send_replace(true);
        tokio::time::sleep(GOAWAY_LEAD).await;
        self.stop.send_replace(true);
        let mut serving = std::mem::take(&mut *self.serving());
        if tokio::time::timeout(STOP_PATIENCE, join_all(&mut serving)).await.is_err() {
            serving.iter().for_each(JoinHandle::abort);
        }
    }

    /// The records of who called what, where they are kept.
    pub fn calls(&self) -> Option<&Arc<Calls>> {
        self.state.calls.as_ref()
    }

    pub(crate) fn state(&self) -> &Arc<ServerState> {
        &self.state
    }

    fn serving(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, task: JoinHandle<()>) {
        self.acceptors().push(task);
    }

    fn acceptors(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.acceptors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.goaway.send_replace(true);
        self.stop.send_replace(true);
        self.upkeep.iter().for_each(JoinHandle::abort);
        self.acceptors().drain(..).for_each(|task| task.abort());
        self.serving().drain(..).for_each(|task| task.abort());
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

/// Serves connections until the server leaves.
async fn serve(router: Router, incoming: mpsc::Receiver<Conn>, mut leaving: watch::Receiver<bool>) {
    let incoming = tokio_stream::StreamExt::map(ReceiverStream::new(incoming), Ok::<_, io::Error>);
    let signal = async move { drop(leaving.wait_for(|leaving| *leaving).await) };
    if let Err(error) = router.serve_with_incoming_shutdown(incoming, signal).await {
        tracing::error!(%error, "a server of gRPC stopped");
    }
}

/// Ends what a change of the configuration does not allow any more, and tells those whose it was; for ever.
async fn reconsider(state: &ServerState) {
    let mut pulse = state.feed.pulse();
    let mut known = None;
    while pulse.changed().await.is_ok() {
        // Listeners change with the configuration alone.
        let revision = state.feed.latest().revision(Kind::Listener);
        if revision.is_some() && revision == known {
            continue;
        }
        known = revision;
        for (stream, why) in state.presence.reconsider() {
            state.fleet.dismiss(stream, format!("this workload is registered no longer: {why}"));
        }
    }
}

/// Who is on the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) ip: IpAddr,
    /// What its certificate says, where it had to show one.
    pub(crate) identity: Option<Result<SpiffeId, Invalid>>,
    /// Whether the connection is encrypted.
    pub(crate) is_secured: bool,
    /// The certificates that it showed, the leaf first.
    pub(crate) chain: Option<Arc<[CertificateDer<'static>]>>,
    /// Until when the certificate holds that says who it is.
    pub(crate) expires: Option<SystemTime>,
    /// How often it has asked for certificates.
    pub(crate) asked: Arc<Asked>,
}

impl Peer {
    pub(crate) fn nameless(ip: IpAddr) -> Peer {
        Peer { ip, identity: None, is_secured: false, chain: None, expires: None, asked: Arc::default() }
    }
}

/// Turns away who should have shown a certificate. Streams of xDS are held to more than that.
pub(super) fn certified(request: Request<()>) -> Result<Request<()>, Status> {
    match request.extensions().get::<Peer>().and_then(|peer| peer.identity.as_ref()) {
        Some(Err(why)) => Err(Status::permission_denied(format!("the client certificate names nobody: {why}"))),
        _ => Ok(request),
    }
}

/// A connection of either sort.
pub(crate) struct Conn {
    pub(crate) peer: Peer,
    pub(crate) io: Io,
}

impl Conn {
    pub(crate) fn plaintext(stream: TcpStream, peer: SocketAddr) -> Conn {
        Conn { peer: Peer::nameless(peer.ip()), io: Io::Tcp(stream) }
    }
}

pub(crate) enum Io {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Memory(DuplexStream),
}

impl Connected for Conn {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
            Io::Memory(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_write(cx, buf),
            Io::Memory(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Io::Memory(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tcp(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
            Io::Memory(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
            Io::Memory(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
            Io::Memory(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
