//! The facts of one request: opened when it enters the mesh, carried through every try, closed with its outcome.

use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use crate::state::EndpointState;

/// When the caller of a request stops waiting. Put it into a request's extensions: the client enforces it, and
/// a server puts it there for the requests that its handlers make in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub Instant);

/// One request on its way. Decisions read it; the async code around them updates it.
#[derive(Debug)]
pub struct Call {
    /// When it entered the mesh.
    pub started: Instant,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// Whether it carries gRPC.
    pub is_grpc: bool,
    /// Whether the caller speaks HTTP/2; the protocol of a try may be another.
    pub is_http2: bool,
    /// What consistent hashing chooses by, where a policy computed it.
    pub hash: Option<u64>,
    /// Tries so far, the current one included; 1 also before there is any.
    pub attempt: u32,
    /// Whether a connection that had been in use before closed under it: from then on only new ones will do.
    pub was_cut: bool,
    /// The endpoints of earlier tries: not to be picked again while there are others.
    pub tried: SmallVec<[Arc<EndpointState>; 2]>,
    /// Whether somebody is told of it in the end.
    pub is_observed: bool,
    /// The endpoint of the last try; noted only where the call is observed.
    pub endpoint: Option<Arc<EndpointState>>,
    /// The source of every random choice of this request. Seed it to make them repeat.
    pub random: fastrand::Rng,
}

impl Call {
    /// A request that starts now.
    #[inline]
    pub fn new(now: Instant, random: fastrand::Rng) -> Self {
        Call {
            started: now,
            deadline: None,
            is_grpc: false,
            is_http2: false,
            hash: None,
            attempt: 1,
            was_cut: false,
            tried: SmallVec::new(),
            is_observed: false,
            endpoint: None,
            random,
        }
    }

    /// Brings the deadline forward; a later one than the present has no effect.
    pub fn not_after(&mut self, deadline: Instant) {
        self.deadline = Some(self.deadline.map_or(deadline, |present| present.min(deadline)));
    }
}
