//! The metrics of calls that gRPC's own clients and servers have (gRFC A66), by their names, labels and buckets.
//!
//! A call that begins is given the [`Counts`] that it counts among: those of its method, and on a client of its target. How
//! many of them there are is bounded; what there is no room for is of the method `other`. Tries of a client count by whose
//! endpoints they went to, too (gRFC A78, A89), and without that where there is no room for more of these.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::registry::Reporter;
use super::writer::{Kind, MetricsWriter, Value};
use crate::error::GRPC_STATUSES;
use crate::request_info::{AttemptEnd, CallCounter, RequestInfo};
use crate::state::{Backend, EndpointState};

/// The bounds of latencies, in seconds.
const LATENCIES: [f64; 41] = [
    0.0, 0.00001, 0.00005, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01,
    0.013, 0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8,
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0,
];
/// The bounds of sizes, in bytes.
const SIZES: [f64; 14] = [
    0.0,
    1024.0,
    2048.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
    4_294_967_296.0,
];
/// How many methods, and on a client of how many targets, have numbers of their own; and how often these are told apart by where
/// tries went.
const MOST: usize = 1_000;
/// The method of calls that have none of their own.
const OTHER: &str = "other";
/// The prefix of each message of gRPC, which is no part of its size.
const PREFIX: u64 = 5;

const CANCELLED: u32 = 1;
const UNKNOWN: u32 = 2;
const UNIMPLEMENTED: u32 = 12;

/// Values by their size, in the buckets of one of the tables above.
struct Buckets<const BOUNDS: usize> {
    counts: [AtomicU64; BOUNDS],
    beyond: AtomicU64,
    /// In the unit that is counted in.
    sum: AtomicU64,
}

impl<const BOUNDS: usize> Default for Buckets<BOUNDS> {
    fn default() -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Buckets { counts, beyond: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }
}

impl<const BOUNDS: usize> Buckets<BOUNDS> {
    /// Counts a value of `amount` units, of which `per` are one of those of the bounds.
    fn record(&self, bounds: &[f64; BOUNDS], amount: u64, per: f64) {
        let at = bounds.partition_point(|bound| *bound < amount as f64 / per);
        self.counts.get(at).unwrap_or(&self.beyond).fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(amount, Ordering::Relaxed);
    }

    fn write(&self, bounds: &[f64; BOUNDS], per: f64, labels: &[(&str, &str)], to: &mut dyn MetricsWriter) {
        let counts = self.counts.iter().chain([&self.beyond]).map(|count| count.load(Ordering::Relaxed));
        let counts: Vec<u64> = counts.collect();
        let sum = self.sum.load(Ordering::Relaxed) as f64 / per;
        to.sample(labels, Value::Histogram { bounds, counts: &counts, sum }, None);
    }
}

/// What was counted of calls, or of their tries, that ended with one status.
#[derive(Default)]
struct Outcomes {
    latency: Buckets<{ LATENCIES.len() }>,
    sent: Buckets<{ SIZES.len() }>,
    received: Buckets<{ SIZES.len() }>,
}

const NANOS: f64 = 1e9;

impl Outcomes {
    fn took(&self, time: Duration) {
        self.latency.record(&LATENCIES, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), NANOS);
    }

    fn passed(&self, sent: u64, received: u64) {
        self.sent.record(&SIZES, sent, 1.0);
        self.received.record(&SIZES, received, 1.0);
    }
}

/// The same for each status.
type ByStatus = [OnceLock<Box<Outcomes>>; GRPC_STATUSES.len()];

fn of(all: &ByStatus, status: u32) -> Option<&Outcomes> {
    // A code that there is none of is UNKNOWN.
    let place = if status < GRPC_STATUSES.len() as u32 { status } else { UNKNOWN };
    Some(&**all.get(place as usize)?.get_or_init(Box::default))
}

/// What is counted of the calls of one method, and on a client to one target.
struct Counts {
    reporter: Reporter,
    method: Arc<str>,
    target: Arc<str>,
    calls: AtomicU64,
    attempts: AtomicU64,
    call_ends: ByStatus,
    /// By whose endpoints they went to.
    attempt_ends: RwLock<Vec<(Arc<Backend>, Arc<ByStatus>)>>,
}

/// gRPC's own metrics of the calls of a process.
pub struct GrpcMetrics {
    hashing: RandomState,
    all: RwLock<HashMap<u64, Arc<Counts>>>,
    /// How many there are in all of [`Counts::attempt_ends`].
    backends: AtomicUsize,
}

/// A call that is counted: what of it, and since when each of its tries is under way.
pub struct Call {
    all: Arc<GrpcMetrics>,
    /// Those that it counts among; a server does not know them before it has answered one of theirs.
    counts: Option<Arc<Counts>>,
    method: Box<str>,
    /// The tries that have not ended, by their numbers, and what they count among.
    attempts: SmallVec<[(u32, Instant, Arc<ByStatus>); 1]>,
}

impl GrpcMetrics {
    /// Of a process that has made and answered none yet.
    #[expect(clippy::new_without_default, reason = "there is one for a process, and no other value of it")]
    pub fn new() -> GrpcMetrics {
        GrpcMetrics { hashing: RandomState::default(), all: RwLock::default(), backends: AtomicUsize::new(0) }
    }

    /// A client begins a call of the method of this path, to this target.
    pub fn client(self: &Arc<Self>, path: &str, target: &str) -> Call {
        let method = path.strip_prefix('/').unwrap_or(path);
        let counts = self.counts(Reporter::Source, method, target);
        counts.calls.fetch_add(1, Ordering::Relaxed);
        Call { all: Arc::clone(self), counts: Some(counts), method: Box::default(), attempts: SmallVec::new() }
    }

    /// A server is asked for the method of this path.
    ///
    /// Who calls makes paths up: a method has a name once the application has answered one of its calls, other than that it has
    /// none of that name. The first call of each counts as begun when it ends.
    pub fn server(self: &Arc<Self>, path: &str) -> Call {
        let method = path.strip_prefix('/').unwrap_or(path);
        let counts = self.known(self.key(Reporter::Destination, method, ""));
        if let Some(counts) = &counts {
            counts.calls.fetch_add(1, Ordering::Relaxed);
        }
        let method = if counts.is_some() { Box::default() } else { method.into() };
        Call { all: Arc::clone(self), counts, method, attempts: SmallVec::new() }
    }

    fn key(&self, reporter: Reporter, method: &str, target: &str) -> u64 {
        self.hashing.hash_one((reporter, method, target))
    }

    fn known(&self, key: u64) -> Option<Arc<Counts>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    fn counts(&self, reporter: Reporter, method: &str, target: &str) -> Arc<Counts> {
        let key = self.key(reporter, method, target);
        if let Some(known) = self.known(key) {
            return known;
        }
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let is_full = all.len() >= MOST && !all.contains_key(&key);
        let (method, target) = if is_full { (OTHER, "") } else { (method, target) };
        let key = self.key(reporter, method, target);
        let counts = all.entry(key).or_insert_with(|| {
            Arc::new(Counts {
                reporter,
                method: method.into(),
                target: if target.is_empty() { "".into() } else { format!("xds:///{target}").into() },
                calls: AtomicU64::new(0),
                attempts: AtomicU64::new(0),
                call_ends: Default::default(),
                attempt_ends: Default::default(),
            })
        });
        Arc::clone(counts)
    }

    /// What tries of these calls count among that go to this backend.
    fn attempt_ends(&self, counts: &Counts, backend: Option<Arc<Backend>>) -> Arc<ByStatus> {
        let find = |all: &[(Arc<Backend>, Arc<ByStatus>)], backend: &Arc<Backend>| {
            all.iter().find(|(one, _)| one == backend).map(|(_, ends)| Arc::clone(ends))
        };
        let backend = backend.unwrap_or_default();
        if let Some(known) = find(&counts.attempt_ends.read().unwrap_or_else(PoisonError::into_inner), &backend) {
            return known;
        }
        let is_full = self.backends.load(Ordering::Relaxed) >= MOST;
        let backend = if is_full { Arc::default() } else { backend };
        let mut all = counts.attempt_ends.write().unwrap_or_else(PoisonError::into_inner);
        find(&all, &backend).unwrap_or_else(|| {
            self.backends.fetch_add(1, Ordering::Relaxed);
            let ends = Arc::<ByStatus>::default();
            all.push((backend, Arc::clone(&ends)));
            ends
        })
    }

    /// Tells all of them.
    pub fn write(&self, to: &mut dyn MetricsWriter) {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Arc<Counts>> = all.values().cloned().collect();
        all.sort_by(|a, b| (&a.method, &a.target).cmp(&(&b.method, &b.target)));
        for (reporter, families) in [(Reporter::Source, CLIENT), (Reporter::Destination, SERVER)] {
            let mut of_side = all.iter().filter(|counts| counts.reporter == reporter).peekable();
            if of_side.peek().is_none() {
                continue;
            }
            let of_side: Vec<_> = of_side.collect();
            for Family { name, help, read } in families {
                let kind = if matches!(read, Read::Counter(_)) { Kind::Counter } else { Kind::Histogram };
                to.family(name, kind, help);
                of_side.iter().for_each(|counts| counts.write(read, to));
            }
        }
    }
}

struct Family {
    name: &'static str,
    help: &'static str,
    read: Read,
}

enum Read {
    Counter(fn(&Counts) -> &AtomicU64),
    Calls(Part),
    Attempts(Part),
}

/// What of calls or tries that ended.
#[derive(Clone, Copy)]
enum Part {
    Latency,
    Sent,
    Received,
}

const fn family(name: &'static str, help: &'static str, read: Read) -> Family {
    Family { name, help, read }
}

const CLIENT: &[Family] = &[
    family("grpc.client.attempt.started", "Tries of calls that were begun.", Read::Counter(|counts| &counts.attempts)),
    family("grpc.client.attempt.duration", "How long tries of calls took, in seconds.", Read::Attempts(Part::Latency)),
    family(
        "grpc.client.attempt.sent_total_compressed_message_size",
        "How many bytes of messages a try sent.",
        Read::Attempts(Part::Sent),
    ),
    family(
        "grpc.client.attempt.rcvd_total_compressed_message_size",
        "How many bytes of messages a try received.",
        Read::Attempts(Part::Received),
    ),
    family("grpc.client.call.duration", "How long calls took, in seconds.", Read::Calls(Part::Latency)),
];

const SERVER: &[Family] = &[
    family("grpc.server.call.started", "Calls that were begun.", Read::Counter(|counts| &counts.calls)),
    family("grpc.server.call.duration", "How long calls took, in seconds.", Read::Calls(Part::Latency)),
    family(
        "grpc.server.call.sent_total_compressed_message_size",
        "How many bytes of messages were sent in a call.",
        Read::Calls(Part::Sent),
    ),
    family(
        "grpc.server.call.rcvd_total_compressed_message_size",
        "How many bytes of messages were received in a call.",
        Read::Calls(Part::Received),
    ),
];

impl Counts {
    fn write(&self, read: &Read, to: &mut dyn MetricsWriter) {
        let mut labels = vec![("grpc.method", &*self.method)];
        if !self.target.is_empty() {
            labels.push(("grpc.target", &self.target));
        }
        match read {
            Read::Counter(count) => to.sample(&labels, count(self).load(Ordering::Relaxed).into(), None),
            Read::Calls(part) => write_ends(&self.call_ends, *part, &labels, to),
            Read::Attempts(part) => {
                for (backend, ends) in &*self.attempt_ends.read().unwrap_or_else(PoisonError::into_inner) {
                    let place =
                        [("grpc.lb.backend_service", &*backend.service), ("grpc.lb.locality", &*backend.locality)];
                    write_ends(ends, *part, &[&labels[..], &place].concat(), to);
                }
            }
        }
    }
}

fn write_ends(ends: &ByStatus, part: Part, labels: &[(&str, &str)], to: &mut dyn MetricsWriter) {
    for (outcomes, status) in ends.iter().zip(GRPC_STATUSES) {
        let Some(outcomes) = outcomes.get() else { continue };
        let labels = &[labels, &[("grpc.status", status)]].concat();
        match part {
            Part::Latency => outcomes.latency.write(&LATENCIES, NANOS, labels, to),
            Part::Sent => outcomes.sent.write(&SIZES, 1.0, labels, to),
            Part::Received => outcomes.received.write(&SIZES, 1.0, labels, to),
        }
    }
}

impl CallCounter for Call {
    fn attempt(&mut self, number: u32, endpoint: &EndpointState, now: Instant) {
        if let Some(counts) = &self.counts {
            counts.attempts.fetch_add(1, Ordering::Relaxed);
            self.attempts.push((number, now, self.all.attempt_ends(counts, endpoint.backend())));
        }
    }

    /// What it sent and received is not known.
    fn attempt_ended(&mut self, number: u32, end: AttemptEnd, now: Instant) {
        let Some(place) = self.attempts.iter().position(|(one, ..)| *one == number) else { return };
        let (_, began, ends) = self.attempts.remove(place);
        let status = match end {
            AttemptEnd::Answered(_, Some(status)) => status,
            AttemptEnd::Answered(_, None) => UNKNOWN,
            AttemptEnd::Failed(kind) => kind.grpc_code(),
            AttemptEnd::GivenUp => CANCELLED,
        };
        if let Some(outcomes) = of(&ends, status) {
            outcomes.took(now.saturating_duration_since(began));
        }
    }

    fn ended(&self, request: &RequestInfo, now: Instant) {
        let status = match (request.grpc_response_status(), request.is_complete()) {
            (Some(status), _) => status,
            // It ended without one, or the caller gave it up.
            (None, true) => UNKNOWN,
            (None, false) => CANCELLED,
        };
        let counts = match &self.counts {
            Some(counts) => Arc::clone(counts),
            None => {
                let is_the_applications = request.error().is_none() && request.is_complete();
                let is_known = is_the_applications && status != UNIMPLEMENTED;
                let method = if is_known { &*self.method } else { OTHER };
                let counts = self.all.counts(Reporter::Destination, method, "");
                counts.calls.fetch_add(1, Ordering::Relaxed);
                counts
            }
        };
        let size = |bytes: u64, messages: u64| bytes.saturating_sub(messages.saturating_mul(PREFIX));
        let request_bytes = size(request.request_bytes(), request.request_messages());
        let response_bytes = size(request.response_bytes(), request.response_messages());
        if let Some(outcomes) = of(&counts.call_ends, status) {
            outcomes.took(now.saturating_duration_since(request.started));
            if counts.reporter == Reporter::Destination {
                outcomes.passed(response_bytes, request_bytes);
            }
        }
        if let Some((_, began, ends)) = self.attempts.last()
            && let Some(outcomes) = of(ends, status)
        {
            outcomes.took(now.saturating_duration_since(*began));
            outcomes.passed(request_bytes, response_bytes);
        }
    }
}

impl fmt::Debug for GrpcMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("GrpcMetrics").field("methods", &all.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("attempts", &self.attempts.len()).finish_non_exhaustive()
    }
}
