//! The servers of one or more authorities, in order of preference: which of them to talk to, when to try again,
//! and what they said. A machine like the protocols inside it: events in, actions out, no I/O and no clock.
//!
//! Fallback (gRFC A71): the next server is asked when the one before it cannot be reached and something that is
//! wanted is not known. The one before is tried on, and its first response sends the later ones away.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

use crate::resources::{Change, Progress, Resource, ResourceKey};
use crate::xds::backoff::{Attempt, Backoff};
use crate::xds::bootstrap::{Node, Server};
use crate::xds::cache::{Cache, Step};
use crate::xds::client_status::{ResourceStatus, ServerStatus};
use crate::xds::decode::Options;
use crate::xds::delta::Delta;
use crate::xds::intake::{self, Taken};
use crate::xds::names::KINDS;
use crate::xds::sotw::Sotw;

/// How long no server can be reached before those who wait for a first answer are told. An application may be
/// started a moment before its control plane: its requests wait, within their own limits, instead of failing.
const GRACE: Duration = Duration::from_secs(15);
/// How long a stream has to last of a server that says nothing, so that its end is none of the server's failures.
const QUIET: Duration = Duration::from_secs(30);

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Action {
    /// Open a stream to the server at this place of the list.
    Connect(usize),
    /// Give up the stream, or the attempt, to this server. It reports nothing more.
    Disconnect(usize),
    /// Send this over the stream.
    Send(usize, Box<Request>),
}

/// A request of either protocol.
#[derive(Debug)]
pub(crate) enum Request {
    /// State of the world.
    Sotw(DiscoveryRequest),
    /// Incremental.
    Delta(DeltaDiscoveryRequest),
}

/// A response of either protocol.
#[derive(Debug)]
pub(crate) enum Response {
    /// State of the world.
    Sotw(DiscoveryResponse),
    /// Incremental.
    Delta(DeltaDiscoveryResponse),
}

/// How a stream, or the attempt at one, ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Nobody spoke HTTP/2 at the other end.
    Refused(String),
    /// The stream ended.
    Closed(String),
    /// What the server sent cannot be read: it would send the same again.
    Unreadable(String),
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Session {
    node: core::Node,
    options: Arc<Options>,
    links: Vec<Link>,
    /// The least preferred server in use.
    active: usize,
    /// Every server has failed.
    outage: Option<Outage>,
    cache: Cache,
    rng: fastrand::Rng,
}

#[derive(Clone, Copy, Debug)]
struct Outage {
    since: Instant,
    /// Those who wait for a first answer are told from now on.
    told: bool,
}

/// One server.
#[derive(Debug)]
struct Link {
    server: Server,
    variant: Variant,
    phase: Phase,
    backoff: Backoff,
    started: Instant,
    responded: bool,
    /// Whether the server has taken the stream that is open.
    is_taken: bool,
    error: Option<String>,
    last_ack: Option<Instant>,
    failures: u64,
    accepted: u64,
    rejected: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not needed.
    Idle,
    Connecting,
    Open,
    /// To be tried again.
    Waiting(Instant),
}

#[derive(Debug)]
enum Variant {
    Sotw(Sotw),
    Delta(Delta),
}

/// What came of an event.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// To be done, in this order, after the changes were applied.
    pub(crate) actions: Vec<Action>,
    /// For the store.
    pub(crate) changes: Vec<Change>,
}

impl Session {
    /// A session with these servers, the preferred one first.
    pub(crate) fn new(servers: &[Server], node: &Node, options: Arc<Options>, now: Instant, seed: u64) -> Self {
        let link = |server: &Server| Link {
            server: server.clone(),
            variant: match server.is_incremental() {
                true => Variant::Delta(Delta::default()),
                false => Variant::Sotw(Sotw::default()),
            },
            phase: Phase::Idle,
            backoff: Backoff::default(),
            started: now,
            responded: false,
            is_taken: false,
            error: None,
            last_ack: None,
            failures: 0,
            accepted: 0,
            rejected: 0,
        };
        Session {
            node: intake::node(node),
            options,
            links: servers.iter().map(link).collect(),
            active: 0,
            outage: None,
            cache: Cache::new(node.id.as_str()),
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    /// The server at a place of the list.
    pub(crate) fn server(&self, index: usize) -> Option<&Server> {
        self.links.get(index).map(|link| &link.server)
    }

    /// The application wants other things than before.
    pub(crate) fn interest(&mut self, progress: &Progress, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        let mut changed: Vec<ResourceKey> = Vec::new();
        changed.extend(progress.unsubscribe.iter().filter(|key| self.cache.unsubscribe(key, now)).cloned());
        for key in &progress.subscribe {
            if self.cache.subscribe(key, &mut outcome.changes) {
                changed.push(key.clone());
            }
        }
        for (index, link) in self.links.iter_mut().enumerate() {
            let step = Step { index, server: &link.server, now, out: &mut outcome.changes };
            outcome.actions.extend(link.variant.changed(&self.cache, &step, &changed, index));
        }
        self.connect_preferred(now, &mut outcome);
        self.after_failure(now, &mut outcome);
        outcome
    }

    /// The application wants nothing any more.
    pub(crate) fn abandon(&mut self, now: Instant) -> Outcome {
        let unsubscribe = KINDS.into_iter().flat_map(|kind| {
            self.cache.names(kind).map(move |name| ResourceKey { kind, name: Arc::clone(name) }).collect::<Vec<_>>()
        });
        let progress = Progress { unsubscribe: unsubscribe.collect(), subscribe: Vec::new() };
        self.interest(&progress, now)
    }

    /// A stream is open.
    pub(crate) fn opened(&mut self, index: usize, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        if let Some(link) = self.links.get_mut(index).filter(|link| link.phase == Phase::Connecting) {
            link.phase = Phase::Open;
            link.responded = false;
            let step = Step { index, server: &link.server, now, out: &mut outcome.changes };
            outcome.actions = link.variant.opened(&self.cache, &step, &self.node, index);
        }
        outcome
    }

    /// The server has taken the stream. To who knows everything already it may say nothing more (incremental).
    pub(crate) fn taken(&mut self, index: usize) {
        if let Some(link) = self.links.get_mut(index).filter(|link| link.phase == Phase::Open) {
            link.is_taken = true;
        }
    }

    /// A stream, or the attempt at one, has ended.
    pub(crate) fn closed(&mut self, index: usize, end: End, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(link) = self.links.get_mut(index) else { return outcome };
        if !matches!(link.phase, Phase::Connecting | Phase::Open) {
            return outcome;
        }
        link.variant.closed();
        let was_quiet = link.is_quiet() && now.saturating_duration_since(link.started) >= QUIET;
        let served = std::mem::take(&mut link.responded) || was_quiet;
        let (attempt, error) = match end {
            // gRFC A57: a stream that ends after a response is how servers balance their clients.
            End::Closed(_) if served => (Attempt::Served, None),
            End::Closed(error) => (Attempt::Failed, Some(error)),
            End::Unreadable(error) => (Attempt::Failed, Some(error)),
            End::Refused(error) => (Attempt::Refused, Some(error)),
        };
        let next = link.backoff.next(attempt, link.started, now, &mut self.rng);
        link.phase = if self.cache.is_wanted() { Phase::Waiting(next) } else { Phase::Idle };
        if let Some(error) = error {
            let wait = next.saturating_duration_since(now);
            let (node, server) = (&*self.node.id, &*link.server.uri);
            // One line for an outage, and one for its end.
            match &link.error {
                None => tracing::warn!(
                    node,
                    server,
                    "no connection to the management server: {error}; what is known stays in use, and it is tried again"
                ),
                Some(_) => tracing::debug!(node, server, "{error}; next attempt in {wait:?}"),
            }
            link.error = Some(error);
            link.failures += 1;
            self.after_failure(now, &mut outcome);
        }
        outcome
    }

    /// A response has arrived.
    pub(crate) fn response(&mut self, index: usize, response: Response, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(link) = self.links.get_mut(index).filter(|link| link.phase == Phase::Open) else { return outcome };
        if !std::mem::replace(&mut link.responded, true) && link.error.take().is_some() {
            tracing::info!(node = %self.node.id, server = %link.server.uri, "the management server answers again");
        }
        let mut step = Step { index, server: &link.server, now, out: &mut outcome.changes };
        let (taken, request) = link.variant.response(&mut self.cache, &mut step, response, &self.options);
        if request.is_some() {
            link.last_ack = Some(now);
        }
        link.accepted += taken.accepted;
        link.rejected += taken.errors.len() as u64;
        for error in taken.errors.iter().take(10) {
            tracing::warn!(node = %self.node.id, server = %link.server.uri, "resource rejected: {error}");
        }
        outcome.actions.extend(request.map(|request| Action::Send(index, Box::new(request))));
        // gRFC A71: the servers after this one are not needed any more.
        for (later, link) in self.links.iter_mut().enumerate().skip(index + 1) {
            if std::mem::replace(&mut link.phase, Phase::Idle) != Phase::Idle {
                link.variant.closed();
                outcome.actions.push(Action::Disconnect(later));
            }
        }
        self.active = self.active.min(index);
        self.outage = None;
        outcome
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        for (index, link) in self.links.iter_mut().enumerate() {
            let mut step = Step { index, server: &link.server, now, out: &mut outcome.changes };
            link.variant.expire(&mut self.cache, &mut step);
            if matches!(link.phase, Phase::Waiting(until) if until <= now) {
                if self.cache.is_wanted() {
                    link.connect(index, now, &mut outcome);
                } else {
                    link.phase = Phase::Idle;
                }
            }
        }
        self.report_outage(now, &mut outcome);
        self.cache.forget(now);
        outcome
    }

    /// When to call [`Self::tick`].
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let outage = self.outage.filter(|outage| !outage.told).map(|outage| outage.since + GRACE);
        let of_links = self.links.iter().flat_map(|link| {
            let retry = match link.phase {
                Phase::Waiting(until) => Some(until),
                _ => None,
            };
            [retry, link.variant.next_deadline()]
        });
        of_links.chain([self.cache.next_forget(), outage]).flatten().min()
    }

    /// How the servers are doing.
    pub(crate) fn servers(&self) -> impl Iterator<Item = ServerStatus> {
        self.links.iter().map(|link| ServerStatus {
            uri: link.server.uri.clone(),
            connected: link.phase == Phase::Open && (link.responded || link.is_quiet()),
            last_ack: link.last_ack,
            failures: link.failures,
            accepted: link.accepted,
            rejected: link.rejected,
            error: link.error.clone(),
        })
    }

    /// What is known of everything that is wanted.
    pub(crate) fn resources(&self, now: Instant, wall: SystemTime) -> impl Iterator<Item = ResourceStatus> {
        self.cache.status(now, wall)
    }

    /// How many fields were met that have no effect.
    pub(crate) fn ignored_fields(&self) -> u64 {
        self.cache.ignored_fields()
    }

    /// The content of a resource, as long as somebody wants it.
    pub(crate) fn content(&self, key: &ResourceKey) -> Option<&Resource> {
        self.cache.content(key)
    }

    fn connect_preferred(&mut self, now: Instant, outcome: &mut Outcome) {
        if self.cache.is_wanted()
            && let Some(link) = self.links.first_mut().filter(|link| link.phase == Phase::Idle)
        {
            self.active = 0;
            self.outage = None;
            link.connect(0, now, outcome);
        }
    }

    /// Falls back where that can help.
    fn after_failure(&mut self, now: Instant, outcome: &mut Outcome) {
        if self.cache.is_wanted() && self.links.iter().all(|link| link.error.is_some()) {
            self.outage.get_or_insert(Outage { since: now, told: false });
            self.report_outage(now, outcome);
        }
        if self.links.get(self.active).is_none_or(|link| link.error.is_none()) || !self.cache.lacks_something() {
            return;
        }
        if let Some(next) = self.links.get_mut(self.active + 1) {
            self.active += 1;
            if next.phase == Phase::Idle {
                tracing::warn!(node = %self.node.id, "falling back to the management server {}", next.server.uri);
                next.connect(self.active, now, outcome);
            }
        }
    }

    /// gRFC A71: connectivity is an error only when every server has failed.
    fn report_outage(&mut self, now: Instant, outcome: &mut Outcome) {
        if let Some(outage) = self.outage.as_mut().filter(|outage| outage.since + GRACE <= now)
            && let Some(link) = self.links.first()
        {
            outage.told = true;
            let mut step = Step { index: 0, server: &link.server, now, out: &mut outcome.changes };
            self.cache.unreachable(&mut step, link.error.as_deref().unwrap_or_default());
        }
    }
}

impl Link {
    fn connect(&mut self, index: usize, now: Instant, outcome: &mut Outcome) {
        self.phase = Phase::Connecting;
        self.started = now;
        self.responded = false;
        self.is_taken = false;
        outcome.actions.push(Action::Connect(index));
    }

    /// Whether the server has taken the stream of one whom it has told before what there is.
    fn is_quiet(&self) -> bool {
        self.is_taken && self.last_ack.is_some()
    }
}

impl Variant {
    fn opened(&mut self, cache: &Cache, step: &Step<'_>, node: &core::Node, index: usize) -> Vec<Action> {
        match self {
            Variant::Sotw(machine) => send(index, machine.opened(cache, step, node), Request::Sotw),
            Variant::Delta(machine) => send(index, machine.opened(cache, step, node), Request::Delta),
        }
    }

    fn closed(&mut self) {
        match self {
            Variant::Sotw(machine) => machine.closed(),
            Variant::Delta(machine) => machine.closed(),
        }
    }

    fn changed(&mut self, cache: &Cache, step: &Step<'_>, keys: &[ResourceKey], index: usize) -> Vec<Action> {
        match self {
            Variant::Sotw(machine) => send(index, machine.changed(cache, step, keys), Request::Sotw),
            Variant::Delta(machine) => send(index, machine.changed(cache, step, keys), Request::Delta),
        }
    }

    fn response(
        &mut self,
        cache: &mut Cache,
        step: &mut Step<'_>,
        response: Response,
        options: &Options,
    ) -> (Taken, Option<Request>) {
        match (self, response) {
            (Variant::Sotw(machine), Response::Sotw(response)) => {
                let (taken, request) = machine.response(cache, step, response, options);
                (taken, request.map(Request::Sotw))
            }
            (Variant::Delta(machine), Response::Delta(response)) => {
                let (taken, request) = machine.response(cache, step, response, options);
                (taken, request.map(Request::Delta))
            }
            // The stream's type says which one it carries; the other cannot arrive.
            _ => (Taken::default(), None),
        }
    }

    fn expire(&mut self, cache: &mut Cache, step: &mut Step<'_>) {
        match self {
            Variant::Sotw(machine) => machine.expire(cache, step),
            Variant::Delta(machine) => machine.expire(cache, step),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        match self {
            Variant::Sotw(machine) => machine.next_deadline(),
            Variant::Delta(machine) => machine.next_deadline(),
        }
    }
}

fn send<R>(index: usize, requests: Vec<R>, wrap: fn(R) -> Request) -> Vec<Action> {
    requests.into_iter().map(|request| Action::Send(index, Box::new(wrap(request)))).collect()
}

#[cfg(test)]
#[path = "tests/session.rs"]
mod tests;
