//! Overload: how many requests a server takes on at a time (`envoy.extensions.filters.http.adaptive_concurrency.v3`), and how a
//! client holds back what would fail (`envoy.extensions.filters.http.admission_control.v3`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::model::{ClientPart, DescriptorAction, Fraction, RateLimit};

/// How many requests there may be at a time, by how long they take: as long as that is near the shortest time that is known,
/// more, else fewer. A limit that is fixed has a least that is the most.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdaptiveConcurrency {
    /// The most at a time.
    pub most: u32,
    /// The least.
    pub least: u32,
    /// How much of the limit requests may take that can be left out
    /// ([`Criticality::Sheddable`](crate::request_info::Criticality)).
    pub sheddable: Fraction,
    /// How often the limit is calculated.
    pub interval: Duration,
    /// The share of requests that is faster than the time that counts.
    pub percentile: Fraction,
    /// The time that they would take without load.
    pub unloaded: UnloadedTime,
    /// So much more than that time is no load yet.
    pub buffer: Fraction,
    /// Who has no place is answered so.
    pub status: StatusCode,
    /// Where requests wait for a place; `None`: who has none is answered at once.
    pub queue: Option<Arc<ConcurrencyQueue>>,
}

/// Where requests wait that find no place. Callers take turns, so that none of them waits for all that another one sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConcurrencyQueue {
    /// The most that wait at a time, up to [`MOST`](Self::MOST).
    pub most: u32,
    /// The longest that one waits, up to [`LONGEST`](Self::LONGEST).
    pub wait: Duration,
    /// What callers are told apart by. Requests of which it yields nothing are those of one caller.
    pub by: Arc<RateLimit>,
    /// How many requests of a caller are let in at its turn, up to [`HEAVIEST`](Self::HEAVIEST), by the first value that it is told
    /// apart by; 1 where nothing is said.
    pub weights: BTreeMap<String, u32>,
}

impl ConcurrencyQueue {
    /// The most that may wait at a time.
    pub const MOST: u32 = 10_000;
    /// The longest that one may wait.
    pub const LONGEST: Duration = Duration::from_secs(60);
    /// The most requests at a turn.
    pub const HEAVIEST: u32 = 1_000;

    /// So many requests wait, for a second each, and clients take turns that have shown who they are.
    pub fn new(most: u32) -> Self {
        let principal = DescriptorAction::Client { key: "client.principal".into(), part: ClientPart::Principal };
        ConcurrencyQueue {
            most,
            wait: Duration::from_secs(1),
            by: Arc::new(RateLimit::by(vec![principal])),
            weights: BTreeMap::new(),
        }
    }
}

/// How long requests take without load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnloadedTime {
    /// It is known.
    Fixed(Duration),
    /// It is measured now and then, with few requests at a time.
    Measured {
        /// How often.
        interval: Duration,
        /// By so much later each time, at most, as a share of the interval: so that not all measure at once.
        jitter: Fraction,
        /// With how many requests.
        requests: u32,
        /// With how many at a time.
        at_a_time: u32,
    },
}

impl AdaptiveConcurrency {
    /// Always so many.
    pub fn fixed(limit: u32) -> Self {
        AdaptiveConcurrency {
            most: limit,
            least: limit,
            unloaded: UnloadedTime::Fixed(Duration::from_millis(1)),
            ..AdaptiveConcurrency::default()
        }
    }
}

/// Envoy's, with what Istio's users would set.
impl Default for AdaptiveConcurrency {
    fn default() -> Self {
        AdaptiveConcurrency {
            most: 1_000,
            least: 3,
            sheddable: Fraction::new(80, 100),
            interval: Duration::from_millis(100),
            percentile: Fraction::new(1, 2),
            unloaded: UnloadedTime::Measured {
                interval: Duration::from_secs(60),
                jitter: Fraction::new(15, 100),
                requests: 50,
                at_a_time: 3,
            },
            buffer: Fraction::new(25, 100),
            status: StatusCode::SERVICE_UNAVAILABLE,
            queue: None,
        }
    }
}

/// Which requests a client holds back, by how many of the last ones failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdmissionControl {
    /// The time that counts.
    pub window: Duration,
    /// Below this share of successes some are held back.
    pub enough: Fraction,
    /// The most that are held back.
    pub most: Fraction,
    /// None is, of fewer a second.
    pub least_per_second: u32,
    /// How fast more are held back as fewer succeed, in thousandths: 1000 is in step, more is faster.
    pub aggression: u32,
    /// The HTTP statuses that are a success.
    pub statuses: Vec<Range<u16>>,
    /// The gRPC statuses that are one.
    pub grpc_statuses: Vec<u32>,
}

/// Envoy's.
impl Default for AdmissionControl {
    fn default() -> Self {
        AdmissionControl {
            window: Duration::from_secs(30),
            enough: Fraction::new(95, 100),
            most: Fraction::new(80, 100),
            least_per_second: 0,
            aggression: 1_000,
            statuses: std::iter::once(100..500).collect(),
            // OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED, FAILED_PRECONDITION,
            // OUT_OF_RANGE, UNIMPLEMENTED, UNAUTHENTICATED.
            grpc_statuses: vec![0, 1, 2, 3, 5, 6, 7, 9, 11, 12, 16],
        }
    }
}
