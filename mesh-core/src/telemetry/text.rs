//! What Prometheus reads (text format 0.0.4).

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::histogram::{BOUNDS, Histogram};
use super::labels::Labels;
use super::series::Series;

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
        let http = || all.iter().filter(|series| !series.is_tcp);
        self.counters("istio_requests_total", "Requests.", http(), |series| &series.requests);
        let name = "istio_request_duration_milliseconds";
        self.histograms(name, "How long requests took, in milliseconds.", http(), |series| &series.duration);
        let what = "How large the bodies of requests were, in bytes.";
        self.histograms("istio_request_bytes", what, http(), |series| &series.request_bytes);
        let what = "How large the bodies of responses were, in bytes.";
        self.histograms("istio_response_bytes", what, http(), |series| &series.response_bytes);
        let grpc = || http().filter(|series| series.is_grpc);
        let name = "istio_request_messages_total";
        self.counters(name, "Messages of gRPC requests.", grpc(), |series| &series.request_messages);
        let name = "istio_response_messages_total";
        self.counters(name, "Messages of gRPC responses.", grpc(), |series| &series.response_messages);
        let tcp = || all.iter().filter(|series| series.is_tcp);
        for (name, help, counter) in TCP {
            self.counters(name, help, tcp(), counter);
        }
    }

    fn counters<'a>(
        &mut self,
        name: &str,
        help: &str,
        all: impl Iterator<Item = &'a Arc<Series>>,
        counter: impl Fn(&Series) -> &AtomicU64,
    ) {
        let mut all = all.peekable();
        if all.peek().is_some() {
            self.family(name, Kind::Counter, help);
        }
        for series in all {
            self.sample(name, texts(&series.labels), counter(series).load(Ordering::Relaxed));
        }
    }

    fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        all: impl Iterator<Item = &'a Arc<Series>>,
        histogram: impl Fn(&Series) -> &Histogram,
    ) {
        let mut all = all.peekable();
        if all.peek().is_some() {
            self.family(name, Kind::Histogram, help);
        }
        let bucket = format!("{name}_bucket");
        for series in all {
            let (counts, sum) = histogram(series).read();
            let mut total = 0;
            for (at, count) in counts.into_iter().enumerate() {
                total += count;
                let bound = BOUNDS.get(at).map_or_else(|| "+Inf".to_owned(), f64::to_string);
                self.sample(&bucket, texts(&series.labels).chain([("le", &*bound)]), total);
            }
            self.sample(&format!("{name}_sum"), texts(&series.labels), sum);
            self.sample(&format!("{name}_count"), texts(&series.labels), total);
        }
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }
}

/// Name, help and counter of a family.
type Counted = (&'static str, &'static str, fn(&Series) -> &AtomicU64);

const TCP: [Counted; 4] = [
    ("istio_tcp_sent_bytes_total", "Bytes that servers sent over connections that are not HTTP.", |series| {
        &series.sent_bytes
    }),
    ("istio_tcp_received_bytes_total", "Bytes that servers received over connections that are not HTTP.", |series| {
        &series.received_bytes
    }),
    ("istio_tcp_connections_opened_total", "Connections that are not HTTP that were opened.", |series| &series.opened),
    ("istio_tcp_connections_closed_total", "Connections that are not HTTP that were closed.", |series| &series.closed),
];

fn texts(labels: &Labels) -> impl Iterator<Item = (&str, &str)> {
    labels.iter().map(|(label, value)| (label, &**value))
}
