//! Who was turned away, and why: counted, told in status, and logged at a bounded rate, since whoever reaches the
//! port can be turned away as often as he likes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::serve::clients::admission::Admission;
use crate::serve::clients::fleet::seconds;
use crate::serve::clients::metrics::family;

/// How many are remembered: the one that came longest ago makes room.
const MOST: usize = 64;
/// How long the same client is not logged again for the same reason.
const AGAIN: Duration = Duration::from_secs(60);
/// Log lines per second, whoever is turned away, after a burst of so many.
const LINES: (u32, u32) = (1, 10);
/// How much of a text that a client chose is kept, in characters.
const TEXT: usize = 300;

/// Where a client was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Port {
    /// Where workloads ask.
    Xds,
    /// The rate limit service.
    RateLimits,
    /// The validating webhook.
    Admission,
    /// The endpoint of the mesh's bundle.
    Bundle,
    /// The API.
    Api,
}

impl Port {
    const fn name(self) -> &'static str {
        match self {
            Port::Xds => "xds",
            Port::RateLimits => "rate-limits",
            Port::Admission => "admission",
            Port::Bundle => "bundle",
            Port::Api => "api",
        }
    }
}

/// Why a client was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// No TLS connection came about.
    Handshake,
    /// It showed no certificate where one is asked for.
    NoCertificate,
    /// Its certificate is not of the authority that clients must be of, or has expired.
    BadCertificate,
    /// Its certificate names nobody, or somebody else than its node.
    Identity,
    /// Its node says in a form that cannot be read who it is.
    Node,
    /// Nothing is served to clients of its class.
    Class,
    /// It registers what is somebody else's, or what the configuration does not allow.
    Registration,
    /// Its identity has too many streams, or asks for too much.
    Limit,
}

impl Reason {
    const ALL: [Reason; 8] = [
        Reason::Handshake,
        Reason::NoCertificate,
        Reason::BadCertificate,
        Reason::Identity,
        Reason::Node,
        Reason::Class,
        Reason::Registration,
        Reason::Limit,
    ];

    const fn name(self) -> &'static str {
        match self {
            Reason::Handshake => "handshake",
            Reason::NoCertificate => "no-certificate",
            Reason::BadCertificate => "bad-certificate",
            Reason::Identity => "identity",
            Reason::Node => "node",
            Reason::Class => "class",
            Reason::Registration => "registration",
            Reason::Limit => "limit",
        }
    }
}

/// Clients that were turned away for one reason, from one address.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TurnedAwayStatus {
    /// Where it came to: `xds`, `rate-limits`, `admission`, `bundle` or `api`.
    #[serde(default)]
    pub port: String,
    /// Where the last one came from.
    pub peer: IpAddr,
    /// Its `node.id`; empty where it did not come as far as saying it.
    pub node: String,
    /// `handshake`, `no-certificate`, `bad-certificate`, `identity`, `node`, `class`, `registration` or `limit`.
    pub reason: String,
    /// In words.
    pub text: String,
    /// How often.
    pub count: u64,
    /// How long ago the last time was, in seconds.
    pub seconds_ago: f64,
}

/// Everybody who was turned away.
#[derive(Debug)]
pub(crate) struct Refusals(Mutex<Book>);

#[derive(Debug)]
struct Book {
    counts: BTreeMap<(Port, Reason), u64>,
    recent: BTreeMap<(Port, IpAddr, Reason), Refusal>,
    lines: Admission,
}

#[derive(Debug)]
struct Refusal {
    node: String,
    text: String,
    count: u64,
    last: Instant,
    logged: Option<Instant>,
}

impl Default for Refusals {
    fn default() -> Self {
        let (rate, burst) = LINES;
        let lines = Admission::new(rate, burst, Duration::ZERO);
        Refusals(Mutex::new(Book { counts: BTreeMap::new(), recent: BTreeMap::new(), lines }))
    }
}

impl Refusals {
    /// Notes that a client of xDS was turned away. `node` is empty where the client did not come as far as saying who it is.
    pub(crate) fn note(&self, peer: IpAddr, reason: Reason, node: &str, text: &str, now: Instant) {
        let brief = |text: &str| text.chars().take(TEXT).collect::<String>();
        let (node, text) = (brief(node), brief(text));
        let times = self.book().note(Port::Xds, peer, reason, &node, &text, now);
        if let Some(times) = times {
            tracing::warn!(%peer, node, reason = reason.name(), times, "xDS client refused: {text:?}");
        }
    }

    /// Notes that somebody was turned away before it could say who it is.
    pub(crate) fn note_at(&self, port: Port, peer: IpAddr, reason: Reason, text: &str, now: Instant) {
        if port == Port::Xds {
            return self.note(peer, reason, "", text, now);
        }
        let text: String = text.chars().take(TEXT).collect();
        if let Some(times) = self.book().note(port, peer, reason, "", &text, now) {
            let port = port.name();
            tracing::warn!(%peer, port, reason = reason.name(), times, "connection to the {port} port refused: {text:?}");
        }
    }

    /// Those of the latest that are remembered, the last one first.
    pub(crate) fn report(&self, now: Instant) -> Vec<TurnedAwayStatus> {
        let book = self.book();
        let mut recent: Vec<_> = book.recent.iter().collect();
        recent.sort_by_key(|(_, refusal)| std::cmp::Reverse(refusal.last));
        let status = recent.into_iter().map(|((port, peer, reason), refusal)| TurnedAwayStatus {
            port: port.name().to_owned(),
            peer: *peer,
            node: refusal.node.clone(),
            reason: reason.name().to_owned(),
            text: refusal.text.clone(),
            count: refusal.count,
            seconds_ago: seconds(now.saturating_duration_since(refusal.last)),
        });
        status.collect()
    }

    /// Appends the counters as Prometheus text.
    pub(crate) fn write(&self, out: &mut String) {
        let name = "mesh_xds_refused_total";
        family(out, name, "counter", "Clients that were turned away, by reason.");
        let book = self.book();
        for reason in Reason::ALL {
            let count = book.counts.get(&(Port::Xds, reason)).copied().unwrap_or_default();
            let _ = writeln!(out, "{name}{{reason=\"{}\"}} {count}", reason.name());
        }
        let name = "mesh_refused_total";
        family(
            out,
            name,
            "counter",
            "Connections to other ports than those of xDS that were turned away, by port and reason.",
        );
        for ((port, reason), count) in book.counts.iter().filter(|((port, _), _)| *port != Port::Xds) {
            let _ = writeln!(out, "{name}{{port=\"{}\",reason=\"{}\"}} {count}", port.name(), reason.name());
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// How often this client was turned away for this reason, if that is to be logged now.
    fn note(&mut self, port: Port, peer: IpAddr, reason: Reason, node: &str, text: &str, now: Instant) -> Option<u64> {
        *self.counts.entry((port, reason)).or_default() += 1;
        let key = (port, peer, reason);
        if self.recent.len() >= MOST && !self.recent.contains_key(&key) {
            let oldest = self.recent.iter().min_by_key(|(_, refusal)| refusal.last).map(|(key, _)| *key);
            oldest.map(|key| self.recent.remove(&key));
        }
        let new = Refusal { node: String::new(), text: String::new(), count: 0, last: now, logged: None };
        let refusal = self.recent.entry(key).or_insert(new);
        refusal.count += 1;
        refusal.last = now;
        node.clone_into(&mut refusal.node);
        text.clone_into(&mut refusal.text);
        let is_due = refusal.logged.is_none_or(|at| at + AGAIN <= now);
        if is_due && self.lines.admit(now).is_ok() {
            refusal.logged = Some(now);
            return Some(refusal.count);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn a_client_that_is_turned_away_again_and_again_is_logged_once_a_minute() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let note = |at: u64| {
            refusals.book().note(Port::Xds, peer(1), Reason::Identity, "n", "no", start + Duration::from_secs(at))
        };
        let logged: Vec<_> = (0..180).step_by(2).filter_map(note).collect();
        assert_eq!(logged, [1, 31, 61]);
        let report = refusals.report(start + Duration::from_secs(180));
        assert_eq!((report.len(), report[0].count, report[0].seconds_ago), (1, 90, 2.0));
        assert_eq!((&*report[0].reason, &*report[0].node, &*report[0].text), ("identity", "n", "no"));
    }

    #[test]
    fn a_crowd_costs_few_lines_and_little_memory_and_is_counted() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let logged = (0..=255)
            .filter(|last| refusals.book().note(Port::Xds, peer(*last), Reason::Handshake, "", "no", now).is_some());
        assert_eq!(logged.count(), 11);
        assert_eq!(refusals.report(now).len(), MOST);
        let mut text = String::new();
        refusals.write(&mut text);
        assert!(text.contains("mesh_xds_refused_total{reason=\"handshake\"} 256\n"), "{text}");
        assert!(text.contains("mesh_xds_refused_total{reason=\"class\"} 0\n"), "{text}");
    }

    #[test]
    fn who_is_turned_away_from_another_port_is_no_client_of_xds() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        refusals.note_at(Port::Admission, peer(1), Reason::NoCertificate, "no", now);
        refusals.note_at(Port::Xds, peer(1), Reason::NoCertificate, "no", now);
        let report = refusals.report(now);
        assert_eq!(report.iter().map(|one| &*one.port).collect::<Vec<_>>(), ["xds", "admission"]);
        let mut text = String::new();
        refusals.write(&mut text);
        assert!(text.contains("mesh_xds_refused_total{reason=\"no-certificate\"} 1\n"), "{text}");
        assert!(text.contains("mesh_refused_total{port=\"admission\",reason=\"no-certificate\"} 1\n"), "{text}");
    }
}
