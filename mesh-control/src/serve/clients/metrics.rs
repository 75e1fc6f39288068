//! Counters of the ADS server, under Istiod's names where it has one, as Prometheus text.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::catalog::Kind;

/// Upper bounds of the convergence histogram, in seconds: Istiod's.
const BOUNDS: [f64; 10] = [0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0];

/// Upper bounds of the sizes of responses, in bytes: Istiod's.
const SIZES: [u64; 6] = [1, 10_000, 1_000_000, 4_000_000, 10_000_000, 40_000_000];

/// Upper bounds of the time that it takes to make a response, in seconds: Istiod's.
const PUSH_TIMES: [f64; 8] = [0.01, 0.1, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];

/// How long it took to make responses of one type, by bucket.
#[derive(Debug, Default)]
struct Times {
    buckets: [AtomicU64; PUSH_TIMES.len()],
    micros: AtomicU64,
}

/// The sizes of responses of one type, by bucket.
#[derive(Debug, Default)]
struct Sizes {
    buckets: [AtomicU64; SIZES.len()],
    sum: AtomicU64,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pushes: [AtomicU64; Kind::ALL.len()],
    acks: [AtomicU64; Kind::ALL.len()],
    nacks: [AtomicU64; Kind::ALL.len()],
    sizes: [Sizes; Kind::ALL.len()],
    times: [Times; Kind::ALL.len()],
    failed: AtomicU64,
    validated: AtomicU64,
    invalid: AtomicU64,
    streams: AtomicU64,
    turned_away: AtomicU64,
    convergence: [AtomicU64; BOUNDS.len()],
    convergence_count: AtomicU64,
    convergence_micros: AtomicU64,
}

impl Metrics {
    /// A response was sent that took so long to make.
    pub(crate) fn pushed(&self, kind: Kind, bytes: usize, took: Duration) {
        let times = &self.times[kind as usize];
        let within = |(bound, _): &(&f64, &AtomicU64)| took.as_secs_f64() <= **bound;
        PUSH_TIMES.iter().zip(&times.buckets).filter(within).for_each(|(_, bucket)| add(bucket, 1));
        add(&times.micros, micros(took));
        add(&self.pushes[kind as usize], 1);
        let (sizes, bytes) = (&self.sizes[kind as usize], bytes as u64);
        SIZES.iter().zip(&sizes.buckets).filter(|(bound, _)| bytes <= **bound).for_each(|(_, bucket)| add(bucket, 1));
        add(&sizes.sum, bytes);
    }

    pub(crate) fn acked(&self, kind: Kind) {
        add(&self.acks[kind as usize], 1);
    }

    pub(crate) fn nacked(&self, kind: Kind) {
        add(&self.nacks[kind as usize], 1);
    }

    /// A stream ended for a fault of this server.
    pub(crate) fn failed(&self) {
        add(&self.failed, 1);
    }

    /// An API server asked about an object.
    pub(crate) fn validated(&self, is_good: bool) {
        add(if is_good { &self.validated } else { &self.invalid }, 1);
    }

    pub(crate) fn stream_opened(&self) {
        add(&self.streams, 1);
    }

    pub(crate) fn turned_away(&self) {
        add(&self.turned_away, 1);
    }

    /// A client has all that a change brought, this long after it.
    pub(crate) fn converged(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        for (bound, bucket) in BOUNDS.iter().zip(&self.convergence) {
            if seconds <= *bound {
                add(bucket, 1);
            }
        }
        add(&self.convergence_count, 1);
        add(&self.convergence_micros, micros(time));
    }

    /// Appends the text form.
    pub(crate) fn write(&self, out: &mut String) {
        family(out, "pilot_xds_pushes", "counter", "Responses sent, by type.");
        per_kind(out, "pilot_xds_pushes", &self.pushes);
        family(out, "mesh_xds_acks_total", "counter", "Responses that clients accepted, by type.");
        per_kind(out, "mesh_xds_acks_total", &self.acks);
        family(out, "mesh_xds_rejects_total", "counter", "Responses that clients refused, by type.");
        per_kind(out, "mesh_xds_rejects_total", &self.nacks);
        let rejects: u64 = self.nacks.iter().map(get).sum();
        single(out, "pilot_total_xds_rejects", "counter", "Responses that clients refused.", rejects);
        for (kind, nacks) in Kind::ALL.into_iter().zip(&self.nacks) {
            let name = format!("pilot_xds_{}_reject", short(kind));
            single(out, &name, "counter", "Responses of this type that clients refused.", get(nacks));
        }
        let sent = self.sizes.iter().map(|sizes| get(&sizes.sum)).sum();
        single(out, "mesh_xds_sent_bytes_total", "counter", "Bytes of resources sent.", sent);
        self.write_sizes(out);
        self.write_times(out);
        let help = "Streams that ended for a fault of this server.";
        single(out, "pilot_total_xds_internal_errors", "counter", help, get(&self.failed));
        for (name, what, count) in [("passed", "good", &self.validated), ("failed", "wrong", &self.invalid)] {
            let help = format!("Objects that an API server asked about and that are {what}.");
            single(out, &format!("galley_validation_{name}"), "counter", &help, get(count));
        }
        single(out, "mesh_xds_streams_total", "counter", "Streams opened since the start.", get(&self.streams));
        let crowded = get(&self.turned_away);
        single(
            out,
            "mesh_xds_turned_away_total",
            "counter",
            "Streams refused because too many began at once.",
            crowded,
        );

        let name = "pilot_proxy_convergence_time";
        family(out, name, "histogram", "Seconds from a change to the moment when a client has accepted all of it.");
        for (bound, bucket) in BOUNDS.iter().zip(&self.convergence) {
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {}", get(bucket));
        }
        let count = get(&self.convergence_count);
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum {}", Duration::from_micros(get(&self.convergence_micros)).as_secs_f64());
        let _ = writeln!(out, "{name}_count {count}");
    }
}

impl Metrics {
    fn write_sizes(&self, out: &mut String) {
        let name = "pilot_xds_config_size_bytes";
        family(out, name, "histogram", "Bytes of resources in responses, by type.");
        for (kind, (sizes, count)) in Kind::ALL.into_iter().zip(self.sizes.iter().zip(&self.pushes)) {
            let kind = short(kind);
            for (bound, bucket) in SIZES.iter().zip(&sizes.buckets) {
                let _ = writeln!(out, "{name}_bucket{{type=\"{kind}\",le=\"{bound}\"}} {}", get(bucket));
            }
            let count = get(count);
            let _ = writeln!(out, "{name}_bucket{{type=\"{kind}\",le=\"+Inf\"}} {count}");
            let _ = writeln!(
                out,
                "{name}_sum{{type=\"{kind}\"}} {}\n{name}_count{{type=\"{kind}\"}} {count}",
                get(&sizes.sum)
            );
        }
    }
}

impl Metrics {
    fn write_times(&self, out: &mut String) {
        let name = "pilot_xds_push_time";
        family(out, name, "histogram", "Seconds that it took to make a response, by type.");
        for (kind, (times, count)) in Kind::ALL.into_iter().zip(self.times.iter().zip(&self.pushes)) {
            let kind = short(kind);
            for (bound, bucket) in PUSH_TIMES.iter().zip(&times.buckets) {
                let _ = writeln!(out, "{name}_bucket{{type=\"{kind}\",le=\"{bound}\"}} {}", get(bucket));
            }
            let (count, sum) = (get(count), Duration::from_micros(get(&times.micros)).as_secs_f64());
            let _ = writeln!(out, "{name}_bucket{{type=\"{kind}\",le=\"+Inf\"}} {count}");
            let _ = writeln!(out, "{name}_sum{{type=\"{kind}\"}} {sum}\n{name}_count{{type=\"{kind}\"}} {count}");
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Istiod's short name of a kind.
pub(crate) fn short(kind: Kind) -> &'static str {
    match kind {
        Kind::Cluster => "cds",
        Kind::Endpoints => "eds",
        Kind::Listener => "lds",
        Kind::Route => "rds",
        Kind::Secret => "sds",
    }
}

/// Starts a metric family.
pub(crate) fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A family of one number.
pub(crate) fn single(out: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    family(out, name, kind, help);
    let _ = writeln!(out, "{name} {value}");
}

fn per_kind(out: &mut String, name: &str, values: &[AtomicU64; Kind::ALL.len()]) {
    for (kind, value) in Kind::ALL.into_iter().zip(values) {
        let _ = writeln!(out, "{name}{{type=\"{}\"}} {}", short(kind), get(value));
    }
}

fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_a_line_per_type_and_cumulative_buckets() {
        let metrics = Metrics::default();
        metrics.pushed(Kind::Endpoints, 10, Duration::from_millis(50));
        metrics.validated(false);
        metrics.nacked(Kind::Route);
        metrics.converged(Duration::from_millis(400));
        let mut text = String::new();
        metrics.write(&mut text);
        for line in [
            "pilot_xds_pushes{type=\"eds\"} 1",
            "pilot_xds_pushes{type=\"cds\"} 0",
            "mesh_xds_rejects_total{type=\"rds\"} 1",
            "pilot_total_xds_rejects 1",
            "pilot_xds_rds_reject 1",
            "pilot_xds_cds_reject 0",
            "mesh_xds_sent_bytes_total 10",
            "pilot_xds_config_size_bytes_bucket{type=\"eds\",le=\"1\"} 0",
            "pilot_xds_config_size_bytes_bucket{type=\"eds\",le=\"10000\"} 1",
            "pilot_xds_config_size_bytes_sum{type=\"eds\"} 10",
            "pilot_xds_config_size_bytes_count{type=\"lds\"} 0",
            "pilot_xds_push_time_bucket{type=\"eds\",le=\"0.01\"} 0",
            "pilot_xds_push_time_bucket{type=\"eds\",le=\"0.1\"} 1",
            "pilot_xds_push_time_sum{type=\"eds\"} 0.05",
            "pilot_total_xds_internal_errors 0",
            "galley_validation_passed 0",
            "galley_validation_failed 1",
            "pilot_proxy_convergence_time_bucket{le=\"0.1\"} 0",
            "pilot_proxy_convergence_time_bucket{le=\"0.5\"} 1",
            "pilot_proxy_convergence_time_bucket{le=\"+Inf\"} 1",
            "pilot_proxy_convergence_time_sum 0.4",
            "pilot_proxy_convergence_time_count 1",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} in {text}");
        }
    }
}
