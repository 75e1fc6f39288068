//! One ADS stream as a state machine without I/O, shared by both protocol variants.
//!
//! Requests, catalogs and the clock come in; [`Session::next`] hands out one response at a time, when the
//! stream has room for it. [`sotw`](super::sotw) and [`delta`](super::delta) read the requests of their
//! variant; what is the same for both is here: which name is owed an answer, what may be pushed in which
//! order, and what is held back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::catalog::{Catalog, Changes, Client, ClientClass, Encoded, Kind};
use crate::serve::protocol::ledger::{Interner, Ledger, Pushes, Report, Scope, View};
use crate::serve::protocol::push::{self, Gate, Lane, Lanes, Pace, Turn};

/// The listener names that a server asks for to become part of the mesh; the address follows.
pub const SERVER_LISTENER_PREFIX: &str = "xds.istio.io/grpc/lds/inbound/";

/// About how much one response carries where it may be divided: keeps a client with small buffers going
/// and bounds what a slow one makes the server hold.
const RESPONSE_BYTES: usize = 64 << 10;
/// The same for the first answer to a client that asks for whatever clusters there are: Envoy takes that answer for all of them, and
/// opens listeners whose routes lead to clusters that it would only be told of later.
const FIRST_CLUSTERS_BYTES: usize = 32 << 20;

/// The two variants of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// `StreamAggregatedResources`: a response of a whole-set kind repeats everything.
    Sotw,
    /// `DeltaAggregatedResources`: a response carries differences.
    Delta,
}

impl Variant {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Variant::Sotw => "sotw",
            Variant::Delta => "delta",
        }
    }
}

/// What a session is made from.
pub(crate) struct Opening {
    pub(crate) client: Client,
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) pace: Pace,
    /// Until then the registry is filling up after a start.
    pub(crate) settles_at: Instant,
    /// Distinguishes the nonces of this stream from those of every other.
    pub(crate) tag: u32,
    /// What streams hold alike.
    pub(crate) interner: Arc<Interner>,
}

/// One response, ready to be written.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) variant: Variant,
    pub(crate) kind: Kind,
    pub(crate) version: String,
    pub(crate) nonce: String,
    pub(crate) resources: Vec<Encoded>,
    /// Names that do not exist (any more).
    pub(crate) absent: Vec<Arc<str>>,
    /// What more there is to say of some of these.
    pub(crate) reasons: BTreeMap<Arc<str>, String>,
}

/// What a request said, besides asking.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) answer: Option<Answer>,
    /// Server listeners that the client now asks for, and those that it gave up.
    pub(crate) joined: Vec<Arc<str>>,
    pub(crate) left: Vec<Arc<str>>,
    /// With this answer the client has all that there is; it took this long since the change.
    pub(crate) converged: Option<Duration>,
    /// The client asks for more names than a stream may.
    pub(crate) overfull: bool,
    /// The client has listeners that it took on an earlier stream, and may be told of nothing new.
    pub(crate) brought_listeners: bool,
}

/// The client's verdict on a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Ack(Kind),
    Nack(Kind, String),
}

/// What a nonce refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nonce {
    /// The request answers nothing.
    None,
    /// The response of this number on this stream.
    Number(u64),
    /// No response of this stream.
    Foreign,
}

/// See the [module](self).
pub(crate) struct Session {
    variant: Variant,
    client: Client,
    catalog: Arc<dyn Catalog>,
    revisions: [Option<u64>; Kind::ALL.len()],
    ledgers: [Ledger; Kind::ALL.len()],
    pace: Pace,
    settles_at: Instant,
    settled: bool,
    tag: u32,
    gate: Gate,
    /// How many removals waited after the last request.
    held: usize,
    behind_since: Option<Instant>,
    /// See [`View::given_up`].
    given_up: BTreeMap<Arc<str>, Arc<str>>,
}

impl Session {
    pub(crate) fn new(variant: Variant, opening: Opening, now: Instant) -> Session {
        let ledgers = Kind::ALL.map(|kind| {
            let (whole, window) = match variant {
                // A listener or cluster that a state-of-the-world response leaves out counts as deleted.
                Variant::Sotw => (matches!(kind, Kind::Listener | Kind::Cluster), 1),
                Variant::Delta => (false, 4),
            };
            Ledger::new(kind, whole, window, opening.interner.clone())
        });
        Session {
            variant,
            revisions: Kind::ALL.map(|kind| opening.catalog.revision(kind)),
            client: opening.client,
            catalog: opening.catalog,
            ledgers,
            pace: opening.pace,
            settles_at: opening.settles_at,
            settled: opening.settles_at <= now,
            tag: opening.tag,
            gate: Gate::default(),
            held: 0,
            behind_since: None,
            given_up: BTreeMap::new(),
        }
    }

    /// Who is on the other end.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// How many bytes of names it asks for, with their bookkeeping.
    pub(crate) fn name_bytes(&self) -> usize {
        self.ledgers.iter().map(Ledger::name_bytes).sum()
    }

    pub(crate) fn variant(&self) -> Variant {
        self.variant
    }

    /// The ledger of a kind, and what its names are looked up in.
    pub(crate) fn ledger(&mut self, kind: Kind) -> (&mut Ledger, View<'_>) {
        let (settled, given_up) = (self.settled, &self.given_up);
        let view = View { catalog: &*self.catalog, client: &self.client, settled, given_up };
        (&mut self.ledgers[kind as usize], view)
    }

    /// Whether an empty first request means everything: the protocol has that for listeners and clusters only.
    pub(crate) fn has_legacy_wildcard(&self, kind: Kind) -> bool {
        self.client.empty_means_all && matches!(kind, Kind::Listener | Kind::Cluster)
    }

    /// Reads a nonce. Nonces carry the stream's tag: one kept from an earlier stream must not be mistaken
    /// for an answer to a response of this one.
    pub(crate) fn nonce(&self, text: &str) -> Nonce {
        if text.is_empty() {
            return Nonce::None;
        }
        let number = text.split_once('-').filter(|(tag, _)| u32::from_str_radix(tag, 16) == Ok(self.tag));
        number.and_then(|(_, number)| number.parse().ok()).map_or(Nonce::Foreign, Nonce::Number)
    }

    /// Notes the client's verdict on response `number`.
    pub(crate) fn verdict(&mut self, kind: Kind, number: u64, error: Option<&str>, now: Instant) -> Option<Answer> {
        let (ledger, _) = self.ledger(kind);
        match error {
            None => ledger.accept(number, now).then_some(Answer::Ack(kind)),
            Some(text) => {
                let is_news = ledger.refuse(number, text, now);
                if is_news && kind == Kind::Cluster {
                    self.give_up();
                }
                is_news.then(|| Answer::Nack(kind, text.to_owned()))
            }
        }
    }

    /// A client that refuses a cluster goes on with the one before. Where that may be less secure, something takes its place.
    fn give_up(&mut self) {
        let refused = self.ledgers[Kind::Cluster as usize].certainly_refused();
        let has_other = |name: &str| self.catalog.instead(&self.client, Kind::Cluster, name).is_some();
        let new: Vec<_> = refused.into_iter().filter(|(name, _)| has_other(name)).collect();
        if !new.is_empty() {
            self.given_up.extend(new);
            self.compare(Kind::Cluster, None);
        }
    }

    /// What remains to be said about a request once its variant has read it.
    pub(crate) fn conclude(&mut self, kind: Kind, mut heard: Heard, now: Instant) -> Heard {
        self.ledgers[kind as usize].share();
        if kind != Kind::Listener {
            heard.joined.clear();
            heard.left.clear();
        }
        heard.joined.retain(|name| name.starts_with(SERVER_LISTENER_PREFIX));
        heard.left.retain(|name| name.starts_with(SERVER_LISTENER_PREFIX));
        // What a client brings along and no longer exists waits its own time, too.
        let held = self.ledgers.iter().map(Ledger::held).sum();
        if held > std::mem::replace(&mut self.held, held) {
            self.gate.restart();
        }
        heard.overfull = self.ledgers.iter().any(Ledger::is_overfull);
        let quiet = push::turn(&self.lanes(), now, &self.pace) == Turn::Quiet;
        if quiet && let Some(since) = self.behind_since.take() {
            heard.converged = heard.answer.is_some().then(|| now.saturating_duration_since(since));
        }
        heard
    }

    /// Takes a newer catalog if there is nothing to do about it: none of what may be different concerns this stream. Whether that is
    /// so; otherwise it is for [`on_catalog`](Self::on_catalog).
    pub(crate) fn passes_over(&mut self, catalog: &Arc<dyn Catalog>) -> bool {
        let revisions = Kind::ALL.map(|kind| catalog.revision(kind));
        let is_concerned = |kind: Kind| {
            let (known, revision) = (self.revisions[kind as usize], revisions[kind as usize]);
            (revision.is_none() || revision != known) && {
                let changes = known.map_or(Changes::Any, |since| catalog.changes(&self.client, kind, since));
                self.ledgers[kind as usize].is_concerned(&changes)
            }
        };
        if !self.given_up.is_empty() || Kind::ALL.into_iter().any(is_concerned) {
            return false;
        }
        self.revisions = revisions;
        self.catalog = Arc::clone(catalog);
        true
    }

    /// Takes a newer catalog. Nothing is queued: what differs is marked, and sent as it then is.
    pub(crate) fn on_catalog(&mut self, catalog: Arc<dyn Catalog>, now: Instant) {
        if Arc::ptr_eq(&self.catalog, &catalog) {
            return;
        }
        self.catalog = catalog;
        // Another version is another try.
        let is_same = |name: &str, version: &Arc<str>| {
            self.catalog.resource(&self.client, Kind::Cluster, name).is_some_and(|found| found.version == *version)
        };
        self.given_up.retain(|name, version| is_same(name, version));
        for kind in Kind::ALL {
            let revision = self.catalog.revision(kind);
            let known = std::mem::replace(&mut self.revisions[kind as usize], revision);
            if revision.is_none() || revision != known {
                self.compare(kind, known);
            }
        }
        if self.ledgers.iter().any(|ledger| ledger.has_pushes(true) || ledger.has_removals()) {
            self.behind_since.get_or_insert(now);
        }
    }

    /// Compares what may be different since a revision of the catalog, or everything.
    fn compare(&mut self, kind: Kind, since: Option<u64>) {
        let catalog = self.catalog.clone();
        let (ledger, view) = self.ledger(kind);
        let changes = since.map_or(Changes::Any, |since| catalog.changes(view.client, kind, since));
        if ledger.compare(&changes, &view) && kind != Kind::Listener {
            self.gate.restart();
        }
    }

    /// Whether the client asked for what it was not told of yet.
    pub(crate) fn owes_answers(&self) -> bool {
        self.ledgers.iter().any(|ledger| ledger.has_answers(true))
    }

    /// Notes until when the registry is filling up after a start: a crowd that comes back takes longer.
    pub(crate) fn on_settling(&mut self, until: Instant) {
        self.settles_at = until;
    }

    /// The next response, if one may be sent now. To be called whenever the stream has room, until it
    /// returns nothing.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Response> {
        self.tick(now);
        let open = self.gate.is_open();
        let answers = Kind::ALL.into_iter().find(|kind| {
            let ledger = &self.ledgers[*kind as usize];
            ledger.has_answers(open) && ledger.has_window(now, self.pace.grace)
        });
        if let Some(kind) = answers {
            let scope = Scope { pushes: Pushes::None, removals: open };
            return self.compose(kind, scope, now);
        }
        let pushed = match push::turn(&self.lanes(), now, &self.pace) {
            Turn::Push(kind) => Some((kind, Scope { pushes: Pushes::All, removals: open })),
            Turn::PushAwaited(kind) => Some((kind, Scope { pushes: Pushes::Awaited, removals: false })),
            Turn::Wait(_) | Turn::Quiet => None,
        };
        if let Some((kind, scope)) = pushed {
            return self.compose(kind, scope, now);
        }
        // What refers goes before what it refers to, and so does a listener that still waits for its turn to be
        // pushed: the gate may have opened because the client is silent.
        let removals = [Kind::Listener, Kind::Route, Kind::Secret, Kind::Cluster, Kind::Endpoints];
        let kind = removals.into_iter().find(|kind| open && self.ledgers[*kind as usize].has_removals())?;
        self.compose(kind, Scope { pushes: Pushes::None, removals: true }, now)
    }

    fn tick(&mut self, now: Instant) {
        if !self.settled && self.settles_at <= now {
            self.settled = true;
            Kind::ALL.into_iter().for_each(|kind| self.compare(kind, None));
        }
        let held = self.ledgers.iter().any(|ledger| ledger.held() > 0);
        let open = self.gate.is_open();
        // Silence is not an answer here, although it does not hold back pushes for ever.
        let quiet = push::turn(&self.lanes(), now, &self.pace) == Turn::Quiet
            && !self.ledgers.iter().any(|ledger| ledger.has_answers(open) || ledger.unanswered().is_some());
        let refused = [Kind::Listener, Kind::Route].iter().any(|kind| self.ledgers[*kind as usize].is_refused());
        self.gate.observe(held, quiet, refused, now, &self.pace);
    }

    fn lanes(&self) -> Lanes {
        let open = self.gate.is_open();
        Kind::ALL.map(|kind| {
            let ledger = &self.ledgers[kind as usize];
            Lane {
                work: ledger.has_pushes(open),
                awaited: ledger.has_awaited(),
                unanswered: ledger.unanswered(),
                refused: ledger.refusal().map(|nack| nack.at),
            }
        })
    }

    fn compose(&mut self, kind: Kind, scope: Scope, now: Instant) -> Option<Response> {
        let (ledger, view) = self.ledger(kind);
        let is_first = kind == Kind::Cluster && ledger.owes_greeting();
        let limit = if is_first { FIRST_CLUSTERS_BYTES } else { RESPONSE_BYTES };
        let parcel = ledger.compose(scope, limit, &view)?;
        let (number, version) = ledger.launch(&parcel, now);
        if kind == Kind::Cluster && self.client.class == ClientClass::Envoy {
            // Envoy warms a changed cluster until its endpoints arrive, changed or not (envoy#13009), and does not answer
            // before (cluster_manager_impl.cc holds back what CDS has to say).
            self.ledgers[Kind::Endpoints as usize].repeat(parcel.given.iter());
        }
        let reason = |name: &Arc<str>| Some((name.clone(), self.catalog.absence(&self.client, kind, name)?));
        Some(Response {
            reasons: parcel.absent.iter().filter_map(reason).collect(),
            variant: self.variant,
            kind,
            version,
            nonce: format!("{:x}-{number}", self.tag),
            resources: parcel.resources,
            absent: parcel.absent,
        })
    }

    /// When [`next`](Self::next) may have something although nothing happened; later than `now` if it had
    /// nothing just then.
    pub(crate) fn wakes_at(&self, now: Instant) -> Option<Instant> {
        let turn = match push::turn(&self.lanes(), now, &self.pace) {
            Turn::Wait(at) => Some(at),
            Turn::Push(_) | Turn::PushAwaited(_) | Turn::Quiet => None,
        };
        let window = self.ledgers.iter().filter(|ledger| ledger.has_answers(self.gate.is_open()));
        let window = window.filter_map(|ledger| ledger.unanswered().map(|at| at + self.pace.grace));
        let settle = self.ledgers.iter().any(Ledger::is_settling).then_some(self.settles_at);
        let times = turn.into_iter().chain(window).chain(settle).chain(self.gate.opens_at(&self.pace));
        times.filter(|at| *at > now).min()
    }

    /// What there is to say about every kind that the client asks for.
    pub(crate) fn reports(&self) -> Vec<Report> {
        self.ledgers
            .iter()
            .filter(|ledger| ledger.is_wildcard() || ledger.explicit().next().is_some() || ledger.last_nonce() > 0)
            .map(Ledger::report)
            .collect()
    }
}
