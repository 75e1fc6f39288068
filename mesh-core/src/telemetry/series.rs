//! What is counted under one set of labels.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::labels::Labels;
use crate::histogram::Histogram;
use crate::model::MetricSet;

/// What is counted under one set of labels: of requests, or of connections that are not HTTP.
#[derive(Debug)]
pub struct Series {
    /// The labels.
    pub labels: Labels,
    /// Whether it is of connections that are not HTTP.
    pub is_tcp: bool,
    /// Whether it is of gRPC.
    pub is_grpc: bool,
    /// Since when it has been counted, to the second.
    pub since: Instant,
    /// Requests that ended.
    pub requests: AtomicU64,
    /// How long they took, in milliseconds.
    pub duration: Histogram,
    /// How large their bodies were, in bytes.
    pub request_bytes: Histogram,
    /// How large the bodies of their answers were, in bytes.
    pub response_bytes: Histogram,
    /// Messages of gRPC requests.
    pub request_messages: AtomicU64,
    /// Messages of gRPC answers.
    pub response_messages: AtomicU64,
    /// Connections that were opened.
    pub opened: AtomicU64,
    /// Connections that were closed.
    pub closed: AtomicU64,
    /// Bytes that the server sent.
    pub sent_bytes: AtomicU64,
    /// Bytes that the server received.
    pub received_bytes: AtomicU64,
    /// Which metrics have these labels, by their places.
    shown: AtomicU16,
    /// Whether it has labels by rules that were not in force any more when it was gathered last.
    is_superseded: AtomicBool,
    /// When something was counted last, in seconds of its metrics' own clock.
    used: AtomicU32,
    /// Histograms of somebody else's, where there are any.
    bound: Option<Box<dyn BoundHistograms>>,
}

/// Histograms of somebody else's, which cannot be given what is counted already: they are told of each request.
pub trait Histograms: Send + Sync + fmt::Debug {
    /// Those of requests with these labels. They are kept for as long as the series.
    fn bind(&self, labels: &Labels) -> Box<dyn BoundHistograms>;
}

/// Those of one series.
pub trait BoundHistograms: Send + Sync + fmt::Debug {
    /// A request ended that counts in these metrics. Must not block, and must not panic.
    fn record(&self, sample: &Sample, metrics: MetricSet);
}

/// One request that ended.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Sample {
    /// How long it took.
    pub duration: Duration,
    /// How large its body was.
    pub request_bytes: u64,
    /// How large the body of its answer was.
    pub response_bytes: u64,
    /// Messages in it, of gRPC.
    pub request_messages: u64,
    /// Messages in its answer, of gRPC.
    pub response_messages: u64,
}

impl Series {
    pub(super) fn new(
        labels: Labels,
        is_tcp: bool,
        is_grpc: bool,
        since: Instant,
        bound: Option<Box<dyn BoundHistograms>>,
    ) -> Series {
        Series {
            labels,
            is_tcp,
            is_grpc,
            since,
            requests: AtomicU64::new(0),
            duration: Histogram::default(),
            request_bytes: Histogram::default(),
            response_bytes: Histogram::default(),
            request_messages: AtomicU64::new(0),
            response_messages: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            shown: AtomicU16::new(0),
            is_superseded: AtomicBool::new(false),
            used: AtomicU32::new(0),
            bound,
        }
    }

    #[inline]
    pub(super) fn record(&self, sample: &Sample, second: u32, metrics: MetricSet) {
        self.touch(second);
        if metrics.has(0) {
            self.requests.fetch_add(1, Ordering::Relaxed);
        }
        if metrics.has(1) {
            self.duration.record(u64::try_from(sample.duration.as_micros()).unwrap_or(u64::MAX));
        }
        if metrics.has(2) {
            self.request_bytes.record(sample.request_bytes.saturating_mul(1000));
        }
        if metrics.has(3) {
            self.response_bytes.record(sample.response_bytes.saturating_mul(1000));
        }
        if self.is_grpc && metrics.has(4) {
            self.request_messages.fetch_add(sample.request_messages, Ordering::Relaxed);
        }
        if self.is_grpc && metrics.has(5) {
            self.response_messages.fetch_add(sample.response_messages, Ordering::Relaxed);
        }
        if let Some(bound) = &self.bound {
            bound.record(sample, metrics);
        }
    }

    /// These metrics have its labels, too.
    pub(super) fn show(&self, metrics: MetricSet) {
        self.shown.fetch_or(metrics.bits(), Ordering::Relaxed);
    }

    /// These have, and no others.
    pub(super) fn show_only(&self, metrics: MetricSet) {
        self.shown.store(metrics.bits(), Ordering::Relaxed);
    }

    pub(super) fn supersede(&self, is_superseded: bool) {
        self.is_superseded.store(is_superseded, Ordering::Relaxed);
    }

    pub(super) fn is_superseded(&self) -> bool {
        self.is_superseded.load(Ordering::Relaxed)
    }

    /// Which metrics have its labels.
    pub fn shown(&self) -> MetricSet {
        MetricSet::of_bits(self.shown.load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn touch(&self, second: u32) {
        // Written only when it changes: cores keep the line shared.
        if self.used.load(Ordering::Relaxed) != second {
            self.used.store(second, Ordering::Relaxed);
        }
    }

    /// For how many seconds nothing was counted.
    pub(super) fn idle(&self, second: u32) -> u32 {
        second.saturating_sub(self.used.load(Ordering::Relaxed))
    }
}
