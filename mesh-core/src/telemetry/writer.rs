//! Who reads metrics, whatever the format: family by family, number by number.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::histogram::BOUNDS;
use crate::workload::Workload;

use super::families::{FAMILIES, Family, Read};
use super::series::{Histograms, Series};

/// What a family of metrics counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What only grows.
    Counter,
    /// What is so now.
    Gauge,
    /// Values by their size.
    Histogram,
}

/// What a metric says.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value<'a> {
    /// How many.
    Count(u64),
    /// How much.
    Amount(f64),
    /// How many values there are by their size.
    Histogram {
        /// The upper bounds of the buckets.
        bounds: &'a [f64],
        /// How many values are in each bucket, and beyond the last one.
        counts: &'a [u64],
        /// The sum of all values.
        sum: f64,
    },
}

impl From<u64> for Value<'_> {
    fn from(count: u64) -> Self {
        Value::Count(count)
    }
}

impl From<f64> for Value<'_> {
    fn from(amount: f64) -> Self {
        Value::Amount(amount)
    }
}

/// Somebody to whom metrics are told. [`Exposition`](super::Exposition) is one.
pub trait MetricsWriter {
    /// A family begins.
    fn family(&mut self, name: &'static str, kind: Kind, help: &'static str);

    /// One metric of the family that was begun last, and since when it has been counted where that is not since this process
    /// began.
    fn sample(&mut self, labels: &[(&str, &str)], value: Value<'_>, since: Option<Instant>);
}

/// Tells Istio's standard metrics.
pub fn write_standard(all: &[Arc<Series>], to: &mut dyn MetricsWriter) {
    for (place, Family { name, help, is_of, read }) in FAMILIES.into_iter().enumerate() {
        let mut all = all.iter().filter(|series| is_of(series) && series.shown().has(place)).peekable();
        if all.peek().is_none() {
            continue;
        }
        let kind = match read {
            Read::Counter(_) => Kind::Counter,
            Read::Histogram(_) => Kind::Histogram,
        };
        to.family(name, kind, help);
        for series in all {
            let labels: Vec<(&str, &str)> = series.labels.iter().map(|(label, value)| (label, &**value)).collect();
            match read {
                Read::Counter(read) => {
                    to.sample(&labels, read(series).load(Ordering::Relaxed).into(), Some(series.since));
                }
                Read::Histogram(read) => {
                    let (counts, sum) = read(series).read();
                    let value = Value::Histogram { bounds: &BOUNDS, counts: &counts, sum };
                    to.sample(&labels, value, Some(series.since));
                }
            }
        }
    }
}

/// Tells all metrics of a mesh, and says whether there still is one.
pub type ReadMetrics = Box<dyn Fn(&mut dyn MetricsWriter) -> bool + Send + Sync>;

/// Somebody who reads the metrics of a mesh again and again, to send them on.
pub trait MetricsReader: Send + Sync + fmt::Debug + 'static {
    /// The mesh has started: who it is, and what its metrics are read by. Once it is gone there is nothing more to read.
    fn begin(&self, own: &Workload, read: ReadMetrics);

    /// Histograms that are told of each request besides, where what is read is not enough. They are asked for when the mesh starts.
    fn histograms(&self) -> Option<Arc<dyn Histograms>> {
        None
    }

    /// How many numbers were sent and not taken (`mesh_metric_points_rejected_total`).
    fn rejected(&self) -> u64 {
        0
    }

    /// Waits until what was counted until now is sent, and not for ever: the process is about to end.
    fn flush(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}
