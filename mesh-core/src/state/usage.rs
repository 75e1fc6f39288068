//! What a cluster and its endpoints have under way, and whether they may have more (circuit breakers).
//!
//! Counts belong to the name of a cluster: they are the same ones whatever its configuration becomes. Who comes above a
//! limit is never let in for a moment: a count is compared and raised in one step.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::model::CircuitBreakers;

/// How many of something there are.
#[derive(Default)]
pub(super) struct Gauge(AtomicU32);

impl Gauge {
    /// One more, if there are fewer than `max`; how many there were.
    #[inline]
    pub(super) fn enter(&self, max: u32) -> Option<u32> {
        if max == u32::MAX {
            return Some(self.0.fetch_add(1, Ordering::SeqCst));
        }
        let more = |count: u32| (count < max).then_some(count + 1);
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()
    }

    #[inline]
    pub(super) fn leave(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// What a cluster has under way.
#[derive(Debug, Default)]
pub struct Usage {
    pub(super) requests: Gauge,
    pub(super) retries: Gauge,
    pending: Gauge,
    connections: Gauge,
    overflows: AtomicU64,
    pub(super) retried: AtomicU64,
    opened: AtomicU64,
    pub(super) lost: AtomicU64,
    /// Requests that were not sent for a limit, since that was told the last time.
    dropped: AtomicU64,
    was_called: AtomicBool,
}

impl Usage {
    /// One request more, if there may be; it has to leave.
    #[inline]
    pub(super) fn request(&self, max: u32) -> bool {
        // Written once, so that a request finds it where it may stay.
        if !self.was_called() {
            self.was_called.store(true, Ordering::Relaxed);
        }
        let entered = self.requests.enter(max).is_some();
        if !entered {
            self.drop_request();
        }
        entered
    }

    /// Notes that a limit was in the way of one.
    pub(super) fn overflow(&self) {
        self.overflows.fetch_add(1, Ordering::Relaxed);
    }

    fn drop_request(&self) {
        self.overflow();
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests were not sent for a limit since it was asked the last time.
    pub(super) fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }

    /// Whether there has ever been a request.
    #[inline]
    pub fn was_called(&self) -> bool {
        self.was_called.load(Ordering::Relaxed)
    }

    /// Requests in flight.
    pub fn requests(&self) -> u32 {
        self.requests.get()
    }

    /// Retries, from the decision that there is to be one until it is answered or fails.
    pub fn retries(&self) -> u32 {
        self.retries.get()
    }

    /// Requests that wait for a connection.
    pub fn pending(&self) -> u32 {
        self.pending.get()
    }

    /// Connections, with those that are being made.
    pub fn connections(&self) -> u32 {
        self.connections.get()
    }

    /// How many retries there were since the start.
    pub fn retried(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    /// How many connections were begun since the start.
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// How often one of its endpoints could not be reached any more.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// How many requests and connections a limit was in the way of.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Ordering::Relaxed)
    }
}

/// The connections to one endpoint.
#[derive(Debug, Default)]
pub struct HostConnections {
    open: Gauge,
    waiting: AtomicU32,
    freed: Notify,
}

impl HostConnections {
    /// Whether requests wait until a connection is free.
    #[inline]
    pub fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// A connection, or a place on one, is free: whoever has waited longest is told.
    #[inline]
    pub fn free(&self) {
        if self.is_awaited() {
            self.freed.notify_one();
        }
    }

    /// Waits for [`HostConnections::free`]. Look for a connection after it is made and before it is awaited.
    pub fn freed(&self) -> Freed<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Freed { connections: self, freed: Box::pin(self.freed.notified()) }
    }
}

/// A place among those who wait until a connection is free.
#[derive(Debug)]
pub struct Freed<'c> {
    connections: &'c HostConnections,
    freed: std::pin::Pin<Box<Notified<'c>>>,
}

impl Freed<'_> {
    /// Counts from here on what becomes free.
    pub fn enable(&mut self) {
        self.freed.as_mut().enable();
    }

    /// Waits until something is free.
    pub async fn wait(mut self) {
        self.freed.as_mut().await;
    }
}

impl Drop for Freed<'_> {
    fn drop(&mut self) {
        self.connections.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One connection, counted as long as this lives.
#[derive(Debug)]
pub struct ConnectionPermit {
    cluster: Arc<super::Shared>,
    host: Arc<HostConnections>,
}

impl ConnectionPermit {
    /// One connection more, if there may be.
    pub(super) fn take(
        cluster: &Arc<super::Shared>,
        host: &Arc<HostConnections>,
        limits: &CircuitBreakers,
    ) -> Option<ConnectionPermit> {
        let before = host.open.enter(limits.max_connections_per_host.max(1))?;
        // Without one, whoever waits here could wait for ever: the others may be of other endpoints (Envoy's
        // ConnPoolImplBase::tryCreateNewConnection).
        let max = if before == 0 { u32::MAX } else { limits.max_connections };
        if cluster.usage.connections.enter(max).is_none() {
            host.open.leave();
            return None;
        }
        cluster.usage.opened.fetch_add(1, Ordering::Relaxed);
        Some(ConnectionPermit { cluster: Arc::clone(cluster), host: Arc::clone(host) })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.cluster.usage.connections.leave();
        self.host.open.leave();
        self.host.free();
    }
}

/// One request that waits for a connection, counted as long as this lives.
#[derive(Debug)]
pub struct PendingPermit(Arc<super::Shared>);

impl PendingPermit {
    /// One more, if there may be.
    pub(super) fn take(cluster: &Arc<super::Shared>, limits: &CircuitBreakers) -> Option<PendingPermit> {
        let usage = &cluster.usage;
        if usage.pending.enter(limits.max_pending_requests).is_none() {
            usage.drop_request();
            return None;
        }
        Some(PendingPermit(Arc::clone(cluster)))
    }
}

impl Drop for PendingPermit {
    fn drop(&mut self) {
        self.0.usage.pending.leave();
    }
}
