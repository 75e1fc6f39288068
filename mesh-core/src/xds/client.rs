//! The client's one task: it carries events to the machines and their actions out, and decides nothing itself.
//!
//! It runs where the source is run. A mesh gives its source a thread of its own, so that a flood of updates never
//! holds the application's threads up; whoever runs a source himself should do the same.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

use crate::calls::Recorder;
use crate::error::Invalid;
use crate::id::{ListenerName, Target};
use crate::limits::Quotas;
use crate::live_trace::LiveTraces;
use crate::model::ClusterKind;
use crate::resources::{Change, Progress, Resource, ResourceKey, ResourceType, Update};
use crate::state::Traffic;
use crate::store::{Sink, Source};
use crate::tls::Certificates;
use crate::workload::{Introductions, Workload};
use crate::xds::access_log::Telling;
use crate::xds::bootstrap::{Bootstrap, Server};
use crate::xds::certificates::{self, Showing};
use crate::xds::client_status::{ClientStatus, Readings, StatusHandle};
use crate::xds::clock::{now, sleep_until};
use crate::xds::connect::Connector;
use crate::xds::csds;
use crate::xds::decode::Options;
use crate::xds::dns::{Dns, Resolver, cluster_of};
use crate::xds::dump;
use crate::xds::health_discovery::Checking;
use crate::xds::intake;
use crate::xds::live_trace::Following;
use crate::xds::load_stats::Reporting;
use crate::xds::names;
use crate::xds::peer_metadata;
use crate::xds::quota::Quoting;
use crate::xds::session::{Action, End, Outcome, Session};
use crate::xds::task::Owned;
use crate::xds::transport::{self, Event, Keepalive, Requests, Told};

/// How often the status is brought up to date at most.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);
/// How long the servers are given to take the last requests when the client stops.
const FAREWELL: Duration = Duration::from_millis(500);

/// Configuration from management servers, over xDS.
///
/// ```
/// use mesh_core::xds::{Bootstrap, XdsSource};
///
/// let source = XdsSource::new(Bootstrap::new("127.0.0.1:15010").node_id("web-1"));
/// let status = source.status();
/// assert!(status.get().resources.is_empty());
/// ```
#[derive(Clone, Debug)]
pub struct XdsSource {
    bootstrap: Arc<Bootstrap>,
    connector: Connector,
    resolver: Resolver,
    keepalive: (Duration, Duration),
    seed: u64,
    status: StatusHandle,
}

impl XdsSource {
    /// A source that follows this bootstrap.
    pub fn new(bootstrap: Bootstrap) -> Self {
        XdsSource {
            bootstrap: Arc::new(bootstrap),
            connector: Connector::default(),
            resolver: Resolver::default(),
            keepalive: (Duration::from_secs(10), Duration::from_secs(5)),
            seed: fastrand::u64(..),
            status: StatusHandle::told_by(Readings { answer: csds::answer, show: dump::show }),
        }
    }

    /// Connects to the servers in another way than by TCP.
    pub fn connector(mut self, connector: Connector) -> Self {
        self.connector = connector;
        self
    }

    /// Looks the names of STRICT_DNS clusters up in another way than by the system's resolver.
    pub fn resolver(mut self, resolver: Resolver) -> Self {
        self.resolver = resolver;
        self
    }

    /// A ping after so much silence of a server, and so much time to answer it. 10 s and 5 s by default, so that a
    /// hung server is noticed after 15 s; the interval doubles for a server that finds it too short.
    pub fn keepalive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.keepalive = (interval, timeout);
        self
    }

    /// Makes the jitter of the waits repeatable.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Where the client's status is found while it runs.
    pub fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    /// The bootstrap that it follows.
    pub fn bootstrap(&self) -> &Bootstrap {
        &self.bootstrap
    }

    /// Learns for any consumer until it wants no more.
    pub async fn run_for(&self, consumer: impl Consumer) {
        Client::new(self, consumer).run().await;
    }
}

impl Source for XdsSource {
    fn listener_name(&self, target: &Target) -> Result<ListenerName, Invalid> {
        self.bootstrap.listener_name(target)
    }

    fn server_listener_name(&self, address: SocketAddr) -> Result<ListenerName, Invalid> {
        self.bootstrap.server_listener_name(address)
    }

    fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    fn workload(&self) -> Workload {
        let node = &self.bootstrap.node;
        Workload::of_node(&node.id, &node.metadata)
    }

    fn node_metadata(&self) -> serde_json::Map<String, serde_json::Value> {
        self.bootstrap.node.metadata.clone()
    }

    fn introductions(&self) -> Option<Introductions> {
        Some(Introductions::new(peer_metadata::encode, peer_metadata::decode))
    }

    fn run(self: Arc<Self>, sink: Sink) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move { self.run_for(sink).await })
    }
}

/// Who learns: the store, through its [`Sink`], or a test.
pub trait Consumer: Send {
    /// What the decoders must know of the application: its own filters and balancers. None, unless it says otherwise.
    fn options(&self) -> Options {
        Options::default()
    }

    /// Where the workload's certificate is kept, if it needs one.
    fn certificates(&self) -> Option<Arc<Certificates>> {
        None
    }

    /// Where the calls to its servers are recorded, if they are.
    fn calls(&self) -> Option<Arc<Recorder>> {
        None
    }

    /// Which live requests are followed, if any are.
    fn live_traces(&self) -> Option<Arc<LiveTraces>> {
        None
    }

    /// Where it is counted what becomes of requests, if it is.
    fn traffic(&self) -> Option<Arc<Traffic>> {
        None
    }

    /// The buckets of quotas, if there are any.
    fn quotas(&self) -> Option<Arc<Quotas>> {
        None
    }

    /// Takes in what was learned, and says what is wanted next.
    fn apply(&mut self, update: Update) -> Progress;

    /// Waits until other things are wanted than before; `None` = nothing any more. Must lose nothing when dropped.
    fn changed(&mut self) -> impl Future<Output = Option<Progress>> + Send;
}

impl Consumer for Sink {
    fn options(&self) -> Options {
        self.extensions().into()
    }

    fn certificates(&self) -> Option<Arc<Certificates>> {
        Some(Arc::clone(Sink::certificates(self)))
    }

    fn calls(&self) -> Option<Arc<Recorder>> {
        Some(Arc::clone(Sink::calls(self)))
    }

    fn live_traces(&self) -> Option<Arc<LiveTraces>> {
        Some(Arc::clone(Sink::live_traces(self)))
    }

    fn traffic(&self) -> Option<Arc<Traffic>> {
        Some(Arc::clone(Sink::traffic(self)))
    }

    fn quotas(&self) -> Option<Arc<Quotas>> {
        Some(Arc::clone(self.extensions().filters.quotas()))
    }

    fn apply(&mut self, update: Update) -> Progress {
        Sink::apply(self, update)
    }

    async fn changed(&mut self) -> Option<Progress> {
        Sink::changed(self).await
    }
}

/// An event of a stream: which session, which server, which of its streams, and what.
type StreamEvent = (usize, usize, u64, Event);

struct Client<C> {
    consumer: C,
    bootstrap: Arc<Bootstrap>,
    connector: Connector,
    sessions: Vec<Running>,
    /// The session of an authority; the default one is that of names without an authority.
    by_authority: HashMap<String, usize>,
    events: mpsc::Sender<StreamEvent>,
    incoming: mpsc::Receiver<StreamEvent>,
    /// Tells the events of a stream from those of the one that replaced it.
    turns: u64,
    dns: Dns,
    /// Keeps the workload's certificate.
    _certificates: Option<Owned>,
    /// How the servers are shown who the workload is.
    showing: Option<Showing>,
    /// Tells who called what, and hears whether that is wanted.
    calls: Option<Telling>,
    /// Follows live requests, where servers ask for it.
    following: Option<Following>,
    /// Tells how many requests went where.
    load: Option<Reporting>,
    /// Tells what is used of quotas, and hears what is assigned.
    quotas: Option<Quoting>,
    /// Asks the workload how it is, where its group says so.
    checks: Option<Checking>,
    status: StatusHandle,
    status_due: Option<Instant>,
    status_set: Option<Instant>,
}

/// A session with its streams.
struct Running {
    session: Session,
    streams: Vec<Option<Stream>>,
    keepalives: Vec<Keepalive>,
}

struct Stream {
    turn: u64,
    requests: Option<Requests>,
    _task: Owned,
}

impl<C: Consumer> Client<C> {
    fn new(source: &XdsSource, consumer: C) -> Self {
        let now = now();
        let bootstrap = Arc::clone(&source.bootstrap);
        let options = Arc::new(consumer.options());
        // Authorities with the same servers share one session, and so one stream (rule 30).
        let mut by_servers: BTreeMap<&[Server], usize> = BTreeMap::new();
        let mut by_authority = HashMap::new();
        let mut sessions = Vec::new();
        let own = std::iter::once((None, bootstrap.servers.as_slice()));
        let others = bootstrap.authorities.iter().map(|(name, authority)| {
            let own = authority.servers.is_empty();
            (Some(name), if own { bootstrap.servers.as_slice() } else { authority.servers.as_slice() })
        });
        for (authority, servers) in own.chain(others) {
            let index = *by_servers.entry(servers).or_insert_with(|| {
                let seed = source.seed.wrapping_add(sessions.len() as u64);
                let (interval, timeout) = source.keepalive;
                sessions.push(Running {
                    session: Session::new(servers, &bootstrap.node, Arc::clone(&options), now, seed),
                    streams: servers.iter().map(|_| None).collect(),
                    keepalives: servers.iter().map(|_| Keepalive::new(interval, timeout)).collect(),
                });
                sessions.len() - 1
            });
            if let Some(authority) = authority {
                by_authority.insert(authority.clone(), index);
            }
        }
        // Every stream sends one event and waits until it was dealt with, so this bound only spares memory.
        let (events, incoming) = mpsc::channel(64);
        let certificates = consumer.certificates();
        let showing = certificates.as_ref().and_then(|own| Showing::of(&bootstrap, own, &source.connector));
        let certificates = certificates.map(|certificates| {
            let (bootstrap, connector) = (Arc::clone(&bootstrap), source.connector.clone());
            Owned::spawn(certificates::keep(certificates, bootstrap, connector, source.seed))
        });
        let calls = consumer.calls().map(|calls| Telling::start(calls, intake::node(&bootstrap.node), source.seed));
        let follow = |traces| Following::start(traces, intake::node(&bootstrap.node), source.seed);
        let following = consumer.live_traces().map(follow);
        let load =
            consumer.traffic().map(|traffic| Reporting::start(traffic, intake::node(&bootstrap.node), source.seed));
        let quote = |quotas: Arc<Quotas>| Quoting::start(&quotas, intake::node(&bootstrap.node), source.seed);
        let quotas = consumer.quotas().map(quote);
        let is_member = bootstrap.node.group().is_some();
        let checks = is_member.then(|| Checking::start(intake::node(&bootstrap.node), source.seed));
        Client {
            consumer,
            connector: source.connector.clone(),
            sessions,
            by_authority,
            events,
            incoming,
            turns: 0,
            _certificates: certificates,
            showing,
            calls,
            following,
            load,
            quotas,
            checks,
            dns: Dns::new(source.resolver.clone()),
            status: source.status.clone(),
            status_due: Some(now),
            status_set: None,
            bootstrap,
        }
    }

    async fn run(mut self) {
        loop {
            self.tick();
            self.report_status();
            let deadline = self.next_deadline();
            tokio::select! {
                biased;
                progress = self.consumer.changed() => match progress {
                    Some(progress) => self.interest(progress),
                    None => break,
                },
                Some(event) = self.incoming.recv() => self.stream_event(event),
                Some(answer) = self.dns.recv() => {
                    let changes = self.dns.answered(answer).into_iter().collect();
                    self.settle(0, Outcome { changes, actions: Vec::new() });
                }
                () = sleep_until(deadline) => {}
            }
            tokio::task::yield_now().await;
        }
        self.farewell().await;
    }

    fn stream_event(&mut self, (session, server, turn, event): StreamEvent) {
        let Some(running) = self.sessions.get_mut(session) else { return };
        let Some(slot) = running.streams.get_mut(server) else { return };
        let Some(stream) = slot.as_mut().filter(|stream| stream.turn == turn) else { return };
        let now = now();
        match event {
            Event::Opened(requests) => {
                stream.requests = Some(requests);
                let outcome = running.session.opened(server, now);
                self.settle(session, outcome);
            }
            Event::Taken => running.session.taken(server),
            Event::Response(response, dealt_with) => {
                let outcome = running.session.response(server, response, now);
                self.settle(session, outcome);
                drop(dealt_with);
            }
            Event::Closed(end) => {
                *slot = None;
                let outcome = running.session.closed(server, end, now);
                self.settle(session, outcome);
            }
        }
    }

    fn tick(&mut self) {
        let now = now();
        for session in 0..self.sessions.len() {
            let Some(running) = self.sessions.get_mut(session) else { continue };
            if running.session.next_deadline().is_some_and(|at| at <= now) {
                let outcome = running.session.tick(now);
                self.settle(session, outcome);
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let sessions = self.sessions.iter().filter_map(|running| running.session.next_deadline());
        sessions.chain(self.status_due).min()
    }

    fn interest(&mut self, progress: Progress) {
        for (session, outcome) in self.route(progress) {
            self.settle(session, outcome);
        }
    }

    /// Applies an outcome, then whatever follows from it.
    fn settle(&mut self, session: usize, outcome: Outcome) {
        self.status_due.get_or_insert_with(now);
        let mut outcomes = VecDeque::from([(session, outcome)]);
        while let Some((session, Outcome { actions, changes })) = outcomes.pop_front() {
            // First the store, then the acknowledgement: what was acknowledged is in use.
            let mut progress = Progress::default();
            if !changes.is_empty() {
                self.note_names(&changes);
                progress = self.consumer.apply(Update { changes });
            }
            for action in actions {
                outcomes.extend(self.act(session, action));
            }
            outcomes.extend(self.route(progress));
        }
    }

    /// Clusters whose names are looked up may have changed.
    fn note_names(&mut self, changes: &[Change]) {
        for change in changes {
            if let Change::Put(key, Resource::Cluster(cluster)) = change {
                self.dns.update(&key.name, &cluster.kind);
            }
        }
    }

    /// Hands what is wanted to those who can provide it.
    fn route(&mut self, progress: Progress) -> Vec<(usize, Outcome)> {
        if progress.is_empty() {
            return Vec::new();
        }
        let mut by_session: BTreeMap<usize, Progress> = BTreeMap::new();
        let mut absent = Vec::new();
        for key in progress.unsubscribe {
            match (cluster_of(&key), self.session_of(&key)) {
                (Some(cluster), _) => self.dns.unsubscribe(cluster),
                (None, Ok(session)) => by_session.entry(session).or_default().unsubscribe.push(key),
                (None, Err(_)) => {}
            }
        }
        for key in progress.subscribe {
            match (cluster_of(&key), self.session_of(&key)) {
                (Some(cluster), _) => {
                    let kind = self.cluster_kind(cluster);
                    self.dns.subscribe(cluster, kind.as_ref());
                }
                (None, Ok(session)) => by_session.entry(session).or_default().subscribe.push(key),
                (None, Err(reason)) => {
                    let reason = format!("{key}: {reason} [node id {:?}]", self.bootstrap.node.id);
                    absent.push(Change::Absent(key, reason.into()));
                }
            }
        }
        let now = now();
        let mut outcomes = vec![(0, Outcome { actions: Vec::new(), changes: absent })];
        for (session, progress) in by_session {
            if let Some(running) = self.sessions.get_mut(session) {
                outcomes.push((session, running.session.interest(&progress, now)));
            }
        }
        outcomes
    }

    /// The session that can provide a resource, or why there is none.
    fn session_of(&self, key: &ResourceKey) -> Result<usize, String> {
        if key.is_all() {
            return Ok(0);
        }
        let name = names::canonical(key.kind, &key.name).map_err(|invalid| invalid.to_string())?;
        match names::authority(&name) {
            None => Ok(0),
            Some(authority) => match self.by_authority.get(authority) {
                Some(session) => Ok(*session),
                None => Err(format!("the authority {authority:?} is not in the xDS bootstrap")),
            },
        }
    }

    fn cluster_kind(&self, name: &str) -> Option<ClusterKind> {
        let key = ResourceKey::new(ResourceType::Cluster, name);
        let session = self.sessions.get(self.session_of(&key).ok()?)?;
        match session.session.content(&key)? {
            Resource::Cluster(cluster) => Some(cluster.kind.clone()),
            _ => None,
        }
    }

    fn act(&mut self, session: usize, action: Action) -> Option<(usize, Outcome)> {
        let running = self.sessions.get_mut(session)?;
        match action {
            Action::Connect(index) => {
                self.turns += 1;
                let (turn, events) = (self.turns, self.events.clone());
                let report = async move |event: Event| events.send((session, index, turn, event)).await.is_ok();
                let server = running.session.server(index)?.clone();
                let keepalive = running.keepalives.get(index)?.clone();
                // Only the bootstrap's own servers are told of calls, and of load.
                let calls = self.calls.as_ref().filter(|_| session == 0).map(|calls| calls.wanted(turn));
                let traces = self.following.as_ref().filter(|_| session == 0).map(|following| following.asked(turn));
                let load = self.load.as_ref().filter(|_| session == 0).map(|load| load.stream(turn));
                let quotas = self.quotas.as_ref().filter(|_| session == 0).map(|quotas| quotas.stream(turn));
                let checks = self.checks.as_ref().filter(|_| session == 0).map(|checks| checks.stream(turn));
                let task = Owned::spawn(transport::run(
                    self.connector.clone(),
                    server,
                    keepalive,
                    Told { showing: self.showing.clone(), calls, traces, load, quotas, checks },
                    report,
                ));
                *running.streams.get_mut(index)? = Some(Stream { turn, requests: None, _task: task });
                None
            }
            Action::Disconnect(index) => {
                *running.streams.get_mut(index)? = None;
                None
            }
            Action::Send(index, request) => {
                let slot = running.streams.get_mut(index)?;
                if slot.as_ref().and_then(|stream| stream.requests.as_ref())?.send(*request) {
                    return None;
                }
                // Its queue is full: it does not read. Or it has ended, and its last event is on the way.
                *slot = None;
                let end = End::Closed("the management server does not read its requests".to_owned());
                Some((session, running.session.closed(index, end, now())))
            }
        }
    }

    fn report_status(&mut self) {
        let now = now();
        let Some(due) = self.status_due else { return };
        let due = self.status_set.map_or(due, |set| due.max(set + STATUS_INTERVAL));
        if due > now {
            self.status_due = Some(due);
            return;
        }
        let wall = SystemTime::now();
        self.status_due = None;
        self.status_set = Some(now);
        let mut resources: Vec<_> =
            self.sessions.iter().flat_map(|running| running.session.resources(now, wall)).collect();
        resources.sort_by(|a, b| a.key.cmp(&b.key));
        self.status.set(ClientStatus {
            node_id: self.bootstrap.node.id.clone(),
            servers: self.sessions.iter().flat_map(|running| running.session.servers()).collect(),
            resources,
            ignored_fields: self.sessions.iter().map(|running| running.session.ignored_fields()).sum(),
        });
    }

    /// Unsubscribes from everything and gives the servers a moment to read it, so that they need not find out by
    /// a timeout that this client is gone.
    async fn farewell(mut self) {
        // Over the streams that are still there.
        let (calls, load, quotas) = (self.calls.take(), self.load.take(), self.quotas.take());
        tokio::join!(
            async {
                if let Some(calls) = calls {
                    calls.end(FAREWELL).await;
                }
            },
            async {
                if let Some(load) = load {
                    load.end(FAREWELL).await;
                }
            },
            async {
                if let Some(quotas) = quotas {
                    quotas.end(FAREWELL).await;
                }
            }
        );
        let now = now();
        for session in 0..self.sessions.len() {
            if let Some(running) = self.sessions.get_mut(session) {
                let outcome = running.session.abandon(now);
                for action in outcome.actions {
                    self.act(session, action);
                }
            }
        }
        let mut open = 0;
        for stream in self.sessions.iter_mut().flat_map(|running| &mut running.streams).flatten() {
            // Without a sender the stream ends as soon as everything was sent.
            open += usize::from(stream.requests.take().is_some());
        }
        let goodbye = async {
            while open > 0 {
                match self.incoming.recv().await {
                    Some((.., Event::Closed(_))) => open -= 1,
                    Some(_) => {}
                    None => return,
                }
            }
        };
        // A server that does not end its side is left alone.
        let _ = tokio::time::timeout(FAREWELL, goodbye).await;
    }
}

impl<C> fmt::Debug for Client<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({} sessions)", self.sessions.len())
    }
}
