//! `mesh-control/health-check`: how clients ask the endpoints of a service whether they are well.

use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery};

use super::Pairs;
use crate::config::decode::parse_duration;
use crate::config::diagnostic::quoted;

/// Active health checks, as `protocol=http, path=/healthz, interval=10s`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// The host that is asked for, in place of the service's own.
    pub host: Option<String>,
    /// From one check to the next; 10 s by default.
    pub interval: Duration,
    /// How long an answer may take; 1 s by default.
    pub timeout: Duration,
    /// By how much intervals differ, by chance; a tenth of the interval by default.
    pub jitter: Duration,
    /// Successes in a row before an endpoint is healthy again; 1 by default.
    pub healthy_threshold: u32,
    /// Failures in a row before it is unhealthy; 3 by default.
    pub unhealthy_threshold: u32,
    /// The interval of unhealthy endpoints, where it is another.
    pub unhealthy_interval: Option<Duration>,
    /// The interval while nobody has called the service yet; that of the others by default.
    pub no_traffic_interval: Option<Duration>,
    /// Whether checks share connections with requests; they do by default.
    pub reuse_connection: bool,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A path, which healthy endpoints answer with one of these statuses.
    Http {
        /// The path.
        path: String,
        /// The statuses; 200 by default.
        statuses: Vec<RangeInclusive<u16>>,
    },
    /// `grpc.health.v1.Health/Check` about a service, or about the server as a whole.
    Grpc {
        /// The service.
        service: String,
    },
    /// Whether a connection can be made.
    Tcp,
}

const NAMES: [&str; 13] = [
    "protocol",
    "path",
    "statuses",
    "service",
    "host",
    "interval",
    "timeout",
    "jitter",
    "healthyThreshold",
    "unhealthyThreshold",
    "unhealthyInterval",
    "noTrafficInterval",
    "reuseConnection",
];

/// Checks are no more frequent than that.
const SHORTEST: Duration = Duration::from_millis(10);

impl FromStr for HealthCheck {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pairs = Pairs::parse(text, &NAMES)?;
        let protocol = pairs.get("protocol").unwrap_or("http");
        let misplaced = match protocol {
            "http" => ["service"].as_slice(),
            "grpc" => &["path", "statuses"],
            "tcp" => &["path", "statuses", "service", "host"],
            other => return Err(format!("protocol {} is none of http, grpc, tcp", quoted(other))),
        };
        if let Some(name) = misplaced.iter().find(|name| pairs.get(name).is_some()) {
            return Err(format!("`{name}` has no meaning for protocol {protocol}"));
        }
        let probe = match protocol {
            "http" => Probe::Http { path: path(&pairs)?, statuses: statuses(&pairs)? },
            "grpc" => Probe::Grpc { service: pairs.get("service").unwrap_or_default().to_owned() },
            _ => Probe::Tcp,
        };
        let interval = time(&pairs, "interval")?.unwrap_or(Duration::from_secs(10));
        let host = pairs.get("host").map(str::to_owned);
        if let Some(host) = host.as_deref().filter(|host| !is_host(host)) {
            return Err(format!("host {} is not a host", quoted(host)));
        }
        Ok(HealthCheck {
            probe,
            host,
            interval,
            timeout: time(&pairs, "timeout")?.unwrap_or(Duration::from_secs(1)),
            jitter: match pairs.get("jitter") {
                Some(text) => parse_duration(text).ok_or_else(|| no_time("jitter", text))?,
                None => interval / 10,
            },
            healthy_threshold: count(&pairs, "healthyThreshold")?.unwrap_or(1),
            unhealthy_threshold: count(&pairs, "unhealthyThreshold")?.unwrap_or(3),
            unhealthy_interval: time(&pairs, "unhealthyInterval")?,
            no_traffic_interval: time(&pairs, "noTrafficInterval")?,
            reuse_connection: match pairs.get("reuseConnection") {
                None | Some("true") => true,
                Some("false") => false,
                Some(other) => return Err(format!("reuseConnection {} is neither true nor false", quoted(other))),
            },
        })
    }
}

fn path(pairs: &Pairs<'_>) -> Result<String, String> {
    match pairs.get("path") {
        None => Err("`path` is missing: protocol http asks for one".to_owned()),
        // What is behind a `#` would never be sent.
        Some(path) if path.starts_with('/') && !path.contains('#') && PathAndQuery::try_from(path).is_ok() => {
            Ok(path.to_owned())
        }
        Some(path) => Err(format!("path {} is not a path", quoted(path))),
    }
}

/// Whether it is a host, with a port or without, and nothing besides.
fn is_host(text: &str) -> bool {
    let Ok(authority) = Authority::try_from(text) else { return false };
    let is_port = |port: &str| port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<NonZeroU16>().is_ok();
    match text.strip_prefix(authority.host()) {
        Some(_) if authority.host().is_empty() => false,
        Some(rest) => rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port),
        None => false,
    }
}

/// `200`, `200-299`, or several of them with `|` between them.
fn statuses(pairs: &Pairs<'_>) -> Result<Vec<RangeInclusive<u16>>, String> {
    let Some(text) = pairs.get("statuses") else { return Ok(vec![200..=200]) };
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = first.trim().parse::<u16>().ok()?..=last.trim().parse().ok()?;
        (*range.start() >= 100 && *range.end() <= 599 && !range.is_empty()).then_some(range)
    };
    let wrong = |part: &str| format!("statuses {} is not a status from 100 to 599, or a range of them", quoted(part));
    text.split('|').map(|part| range(part).ok_or_else(|| wrong(part))).collect()
}

fn time(pairs: &Pairs<'_>, name: &str) -> Result<Option<Duration>, String> {
    match pairs.get(name) {
        None => Ok(None),
        Some(text) => match parse_duration(text) {
            Some(time) if time >= SHORTEST => Ok(Some(time)),
            Some(_) => Err(format!("{name} is less than 10ms")),
            None => Err(no_time(name, text)),
        },
    }
}

fn no_time(name: &str, text: &str) -> String {
    format!("{name} {} is not a duration such as 10s or 500ms", quoted(text))
}

fn count(pairs: &Pairs<'_>, name: &str) -> Result<Option<u32>, String> {
    let Some(text) = pairs.get(name) else { return Ok(None) };
    match text.parse() {
        Ok(count @ 1..=1000) => Ok(Some(count)),
        _ => Err(format!("{name} {} is not a number from 1 to 1000", quoted(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_read_with_their_defaults_and_wrong_ones_say_why() {
        let read: HealthCheck = "path=/healthz".parse().unwrap();
        assert_eq!(read.probe, Probe::Http { path: "/healthz".into(), statuses: vec![200..=200] });
        assert_eq!((read.interval, read.timeout), (Duration::from_secs(10), Duration::from_secs(1)));
        assert_eq!((read.jitter, read.healthy_threshold, read.unhealthy_threshold), (Duration::from_secs(1), 1, 3));
        let read: HealthCheck = "protocol=grpc, service=a.B, host=b.shop, interval=5s, jitter=0s".parse().unwrap();
        assert_eq!((read.probe, read.jitter), (Probe::Grpc { service: "a.B".into() }, Duration::ZERO));
        for host in ["a.shop", "a.shop:8080", "10.0.0.1:80", "[::1]", "[::1]:80"] {
            let read: HealthCheck = format!("path=/, host={host}").parse().unwrap();
            assert_eq!(read.host.as_deref(), Some(host));
        }
        let read: HealthCheck = "path=/, statuses=200-299|404, reuseConnection=false".parse().unwrap();
        assert_eq!(read.probe, Probe::Http { path: "/".into(), statuses: vec![200..=299, 404..=404] });
        assert!(!read.reuse_connection && "protocol=tcp".parse::<HealthCheck>().unwrap().probe == Probe::Tcp);
        for (text, message) in [
            ("interval=5s", "`path` is missing: protocol http asks for one"),
            ("path=healthz", "path `healthz` is not a path"),
            ("protocol=udp", "protocol `udp` is none of http, grpc, tcp"),
            ("protocol=tcp, path=/", "`path` has no meaning for protocol tcp"),
            ("path=/, service=a", "`service` has no meaning for protocol http"),
            ("path=/, interval=5", "interval `5` is not a duration such as 10s or 500ms"),
            ("path=/, timeout=1ms", "timeout is less than 10ms"),
            ("path=/, statuses=600", "statuses `600` is not a status from 100 to 599, or a range of them"),
            ("path=/, statuses=299-200", "statuses `299-200` is not a status from 100 to 599, or a range of them"),
            ("path=/, healthyThreshold=0", "healthyThreshold `0` is not a number from 1 to 1000"),
            ("path=/, host=a b", "host `a b` is not a host"),
            ("path=/, host=u@h", "host `u@h` is not a host"),
            ("path=/, host=a:99999", "host `a:99999` is not a host"),
            ("path=/, host=a:0", "host `a:0` is not a host"),
            ("path=/, host=a:", "host `a:` is not a host"),
            ("path=/, host=:80", "host `:80` is not a host"),
            ("path=/#x", "path `/#x` is not a path"),
            ("path=/, reuseConnection=no", "reuseConnection `no` is neither true nor false"),
            ("path=/, intervall=5s", "`intervall` is not known; did you mean `interval`?"),
        ] {
            assert_eq!(text.parse::<HealthCheck>().unwrap_err(), message, "{text}");
        }
    }
}
