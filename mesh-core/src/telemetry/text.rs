//! What Prometheus reads (text format 0.0.4).

use std::borrow::Cow;
use std::fmt::{Display, Write};
use std::time::Instant;

use super::writer::{Kind, MetricsWriter, Value};

/// A text for Prometheus, written family by family. No value of a label can end it, whatever is in it. Names with points in them
/// are OpenTelemetry's, and become what its own exporters make of them: `grpc.x.failure`, a counter, is `grpc_x_failure_total`.
///
/// ```
/// use mesh_core::telemetry::{Exposition, Kind, MetricsWriter, Value};
///
/// let mut text = Exposition::default();
/// text.family("mesh_requests", Kind::Gauge, "Requests in flight.");
/// text.sample(&[("cluster", "a\"b\n")], Value::Count(3), None);
/// assert!(text.finish().ends_with("mesh_requests{cluster=\"a\\\"b\\n\"} 3\n"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    text: String,
    /// Of the family that was begun last.
    name: Cow<'static, str>,
}

impl MetricsWriter for Exposition {
    fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.name = match (name.contains('.'), kind) {
            (false, _) => name.into(),
            (true, "counter") => format!("{}_total", underscored(name)).into(),
            (true, _) => underscored(name).into(),
        };
        _ = writeln!(self.text, "# HELP {0} {help}\n# TYPE {0} {kind}", self.name);
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: Value<'_>, _: Option<Instant>) {
        match value {
            Value::Count(count) => self.line("", labels, None, count),
            Value::Amount(amount) => self.line("", labels, None, amount),
            Value::Histogram { bounds, counts, sum } => {
                let mut total = 0;
                for (at, count) in counts.iter().enumerate() {
                    total += count;
                    let bound = bounds.get(at).map_or_else(|| "+Inf".to_owned(), f64::to_string);
                    self.line("_bucket", labels, Some(("le", &bound)), total);
                }
                self.line("_sum", labels, None, sum);
                self.line("_count", labels, None, total);
            }
        }
    }
}

fn underscored(name: &str) -> String {
    name.replace('.', "_")
}

impl Exposition {
    /// The content type of the text.
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    fn line(&mut self, of: &str, labels: &[(&str, &str)], more: Option<(&str, &str)>, value: impl Display) {
        self.text.push_str(&self.name);
        self.text.push_str(of);
        let mut separator = '{';
        for (label, value) in labels.iter().copied().chain(more) {
            self.text.push(separator);
            separator = ',';
            self.label(label, value);
        }
        if separator == ',' {
            self.text.push('}');
        }
        _ = writeln!(self.text, " {value}");
    }

    fn label(&mut self, label: &str, value: &str) {
        match label.contains('.') {
            true => self.text.push_str(&underscored(label)),
            false => self.text.push_str(label),
        }
        self.text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => self.text.push_str("\\\\"),
                '"' => self.text.push_str("\\\""),
                '\n' => self.text.push_str("\\n"),
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }
}
