//! What Prometheus reads (text format 0.0.4).

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::families::{FAMILIES, Family, Read};
use super::labels::Labels;
use super::series::Series;
use crate::histogram::{BOUNDS, Histogram};

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

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// A text for Prometheus, written family by family. No value of a label can end it, whatever is in it.
///
/// ```
/// use mesh_core::telemetry::{Exposition, Kind};
///
/// let mut text = Exposition::default();
/// text.family("mesh_requests", Kind::Gauge, "Requests in flight.");
/// text.sample("mesh_requests", [("cluster", "a\"b\n")], 3);
/// assert!(text.finish().ends_with("mesh_requests{cluster=\"a\\\"b\\n\"} 3\n"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// The content type of the text.
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Begins a family.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {}", kind.name());
    }

    /// One number, of the family that was begun last.
    pub fn sample<'a>(
        &mut self,
        name: &str,
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
        value: impl Display,
    ) {
        self.0.push_str(name);
        let mut separator = '{';
        for (label, value) in labels {
            self.0.push(separator);
            separator = ',';
            self.label(label, value);
        }
        if separator == ',' {
            self.0.push('}');
        }
        _ = writeln!(self.0, " {value}");
    }

    fn label(&mut self, label: &str, value: &str) {
        self.0.push_str(label);
        self.0.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
        self.0.push('"');
    }

    /// Istio's standard metrics.
    pub fn standard(&mut self, all: &[Arc<Series>]) {
        for (place, Family { name, help, is_of, read }) in FAMILIES.into_iter().enumerate() {
            let mut all = all.iter().filter(|series| is_of(series) && series.shown().has(place)).peekable();
            if all.peek().is_none() {
                continue;
            }
            match read {
                Read::Counter(read) => {
                    self.family(name, Kind::Counter, help);
                    for series in all {
                        self.sample(name, texts(&series.labels), read(series).load(Ordering::Relaxed));
                    }
                }
                Read::Histogram(read) => {
                    self.family(name, Kind::Histogram, help);
                    for series in all {
                        self.histogram(name, &series.labels, read(series));
                    }
                }
            }
        }
    }

    fn histogram(&mut self, name: &str, labels: &Labels, histogram: &Histogram) {
        let (bucket, (counts, sum), mut total) = (format!("{name}_bucket"), histogram.read(), 0);
        for (at, count) in counts.into_iter().enumerate() {
            total += count;
            let bound = BOUNDS.get(at).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            self.sample(&bucket, texts(labels).chain([("le", &*bound)]), total);
        }
        self.sample(&format!("{name}_sum"), texts(labels), sum);
        self.sample(&format!("{name}_count"), texts(labels), total);
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }
}

fn texts(labels: &Labels) -> impl Iterator<Item = (&str, &str)> {
    labels.iter().map(|(label, value)| (label, &**value))
}
