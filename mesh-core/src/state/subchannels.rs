//! Connections over HTTP/2 by the names that gRPC has for them (gRFC A94): how many were made, could not be made and are open,
//! and why they ended.
//!
//! They are told apart by the target, the cluster and the locality that they lead to. Targets share the connections of a cluster:
//! these are of the target that led to it first. Nothing is counted before somebody wants to know.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::{ClusterState, EndpointState, NewPart, lock};
use crate::id::{Locality, Target};

/// How many places have numbers of their own; all others count as one without a name.
const MOST: usize = 1_000;

/// Why connections end, as gRPC says it: the codes of HTTP/2 in their order, and what else there is.
const REASONS: [&str; 20] = [
    "GOAWAY NO_ERROR",
    "GOAWAY PROTOCOL_ERROR",
    "GOAWAY INTERNAL_ERROR",
    "GOAWAY FLOW_CONTROL_ERROR",
    "GOAWAY SETTINGS_TIMEOUT",
    "GOAWAY STREAM_CLOSED",
    "GOAWAY FRAME_SIZE_ERROR",
    "GOAWAY REFUSED_STREAM",
    "GOAWAY CANCEL",
    "GOAWAY COMPRESSION_ERROR",
    "GOAWAY CONNECT_ERROR",
    "GOAWAY ENHANCE_YOUR_CALM",
    "GOAWAY INADEQUATE_SECURITY",
    "GOAWAY HTTP_1_1_REQUIRED",
    "subchannel shutdown",
    "connection reset",
    "connection timed out",
    "connection aborted",
    "socket error",
    "unknown",
];
/// How many of these are codes of HTTP/2.
const CODES: u32 = 14;
/// What stands for a code that there is none of (RFC 9113, 7): INTERNAL_ERROR.
const INTERNAL_ERROR: u8 = 2;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disconnect {
    /// The peer said so, with this code (RFC 9113, 7).
    GoAway(u32),
    /// This side closed it: nobody used it, it was not wanted any more, or the configuration does not allow it.
    Shutdown,
    /// The peer reset it.
    Reset,
    /// The peer was silent.
    TimedOut,
    /// The system gave it up.
    Aborted,
    /// Another failure of the socket.
    Socket,
    /// Nobody said why.
    Unknown,
}

impl Disconnect {
    fn place(self) -> u8 {
        match self {
            Disconnect::GoAway(code) if code < CODES => code as u8,
            Disconnect::GoAway(_) => INTERNAL_ERROR,
            Disconnect::Shutdown => 14,
            Disconnect::Reset => 15,
            Disconnect::TimedOut => 16,
            Disconnect::Aborted => 17,
            Disconnect::Socket => 18,
            Disconnect::Unknown => 19,
        }
    }
}

impl From<&io::Error> for Disconnect {
    /// What the system says is about the socket; that a connection is aborted says this side alone without it.
    fn from(error: &io::Error) -> Self {
        match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::ConnectionAborted, None) => Disconnect::Shutdown,
            (_, None) => Disconnect::Unknown,
            (io::ErrorKind::ConnectionReset, _) => Disconnect::Reset,
            (io::ErrorKind::TimedOut, _) => Disconnect::TimedOut,
            (io::ErrorKind::ConnectionAborted, _) => Disconnect::Aborted,
            _ => Disconnect::Socket,
        }
    }
}

/// Whose endpoints some are, and where they are, in the words of gRPC (gRFC A78, A89).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Backend {
    /// `grpc.lb.backend_service`: the cluster.
    pub service: Arc<str>,
    /// `grpc.lb.locality`; empty where nobody says where they are.
    pub locality: Arc<str>,
}

/// Where connections lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    target: Arc<str>,
    backend: Backend,
}

/// What is counted of the connections to one place.
#[derive(Debug)]
struct Counts {
    since: Instant,
    succeeded: AtomicU64,
    failed: AtomicU64,
    /// In plaintext, and by TLS.
    open: [AtomicU64; 2],
    ended: [AtomicU64; REASONS.len()],
}

/// The connections of a mesh.
#[derive(Debug, Default)]
pub struct Subchannels {
    are_wanted: AtomicBool,
    all: Mutex<BTreeMap<Place, Arc<Counts>>>,
}

/// What was counted of the connections to one place.
#[derive(Debug)]
#[non_exhaustive]
pub struct SubchannelCounts<'c> {
    /// `grpc.target`.
    pub target: &'c str,
    /// Whose endpoints they lead to.
    pub backend: &'c Backend,
    /// Since when they are counted.
    pub since: Instant,
    /// Connections that were made.
    pub succeeded: u64,
    /// Connections that could not be made.
    pub failed: u64,
    /// Connections that are open, by `grpc.security_level`.
    pub open: [(&'static str, u64); 2],
    /// Connections that ended, by `grpc.disconnect_error`.
    pub ended: [(&'static str, u64); REASONS.len()],
}

impl Subchannels {
    /// Counts from now on. What the configuration said before is not looked at again, so this is to be said before there is any.
    pub fn keep(&self) {
        self.are_wanted.store(true, Ordering::Relaxed);
    }

    /// Shows what was counted, place by place.
    pub fn each(&self, mut look: impl FnMut(SubchannelCounts<'_>)) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let ended_of = |counts: &Counts| {
            let mut ended = REASONS.map(|reason| (reason, 0));
            ended.iter_mut().zip(&counts.ended).for_each(|((_, told), count)| *told = read(count));
            ended
        };
        for (place, counts) in &*lock(&self.all) {
            let [plaintext, tls] = &counts.open;
            look(SubchannelCounts {
                target: &place.target,
                backend: &place.backend,
                since: counts.since,
                succeeded: read(&counts.succeeded),
                failed: read(&counts.failed),
                open: [("none", read(plaintext)), ("privacy_and_integrity", read(tls))],
                ended: ended_of(counts),
            });
        }
    }

    fn are_wanted(&self) -> bool {
        self.are_wanted.load(Ordering::Relaxed)
    }

    fn of(&self, place: Place) -> Arc<Counts> {
        let mut all = lock(&self.all);
        if all.len() >= MOST && !all.contains_key(&place) {
            // Places where nobody is connected now make room first: their numbers begin again should somebody come back.
            all.retain(|_, counts| Arc::strong_count(counts) > 1);
        }
        let is_full = all.len() >= MOST && !all.contains_key(&place);
        let place = if is_full { Place::default() } else { place };
        let new = || Counts {
            since: Instant::now(),
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            open: Default::default(),
            ended: Default::default(),
        };
        Arc::clone(all.entry(place).or_insert_with(|| Arc::new(new())))
    }
}

/// A connection that is being made, where it is counted.
#[derive(Debug)]
pub struct SubchannelAttempt(Arc<Counts>);

impl SubchannelAttempt {
    /// It could not be made.
    pub fn failed(self) {
        self.0.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// It is there. `otherwise`, it ended for this reason if nobody notes another one.
    pub fn succeeded(self, is_secured: bool, otherwise: Disconnect) -> Subchannel {
        self.0.succeeded.fetch_add(1, Ordering::Relaxed);
        let subchannel = Subchannel { counts: self.0, is_secured, otherwise, ending: Ending::default() };
        subchannel.open().fetch_add(1, Ordering::Relaxed);
        subchannel
    }
}

/// An open connection, counted until this is dropped.
#[derive(Debug)]
pub struct Subchannel {
    counts: Arc<Counts>,
    is_secured: bool,
    otherwise: Disconnect,
    ending: Ending,
}

impl Subchannel {
    /// Where it is noted why it ends.
    pub fn ending(&self) -> &Ending {
        &self.ending
    }

    fn open(&self) -> &AtomicU64 {
        let [plaintext, tls] = &self.counts.open;
        if self.is_secured { tls } else { plaintext }
    }
}

impl Drop for Subchannel {
    fn drop(&mut self) {
        self.open().fetch_sub(1, Ordering::Relaxed);
        let reason = self.ending.0.load(Ordering::Relaxed).checked_sub(1).unwrap_or(self.otherwise.place());
        if let Some(count) = self.counts.ended.get(usize::from(reason)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Why a connection ends: the first reason that is noted counts.
#[derive(Clone, Debug, Default)]
pub struct Ending(Arc<AtomicU8>);

impl Ending {
    /// Notes a reason.
    pub fn note(&self, reason: Disconnect) {
        _ = self.0.compare_exchange(0, reason.place() + 1, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl EndpointState {
    /// A connection to it is about to be made, where these are counted.
    pub fn subchannel(&self) -> Option<SubchannelAttempt> {
        let subchannels = &self.shared.subchannels;
        if !subchannels.are_wanted() {
            return None;
        }
        // Where callers name the addresses, many targets lead to one cluster.
        let target = self.shared.target.get().map(|target| target.as_str().to_owned());
        let target = target.unwrap_or_else(|| self.id.to_string());
        let unknown = || Backend { service: self.shared.teller.name().into(), locality: Arc::default() };
        let backend = self.backend().map_or_else(unknown, |backend| Backend::clone(&backend));
        Some(SubchannelAttempt(subchannels.of(Place { target: format!("xds:///{target}").into(), backend })))
    }

    /// Whose it is and where, where that is known and connections are counted.
    #[inline]
    pub fn backend(&self) -> Option<Arc<Backend>> {
        self.backend.load_full()
    }
}

impl ClusterState {
    /// Takes in whose these endpoints are and where, where their connections are counted.
    pub(crate) fn note_backends(&self, news: &[NewPart<'_>]) {
        if !self.shared.subchannels.are_wanted() {
            return;
        }
        for (locality, part) in news {
            let service = self.shared.teller.name().into();
            let backend = Arc::new(Backend { service, locality: named(locality) });
            for state in &**part.states() {
                if state.backend.load().as_ref() != Some(&backend) {
                    state.backend.store(Some(Arc::clone(&backend)));
                }
            }
        }
    }

    /// Takes in that this target leads to it: the first one counts.
    pub(crate) fn note_target(&self, target: &Target) {
        if self.shared.target.get().is_none() {
            _ = self.shared.target.set(target.clone());
        }
    }

    /// The target that led to it first.
    pub fn target(&self) -> Option<&Target> {
        self.shared.target.get()
    }
}

/// A locality as gRPC writes it.
fn named(locality: &Locality) -> Arc<str> {
    let Locality { region, zone, sub_zone } = locality;
    format!("{{region=\"{region}\", zone=\"{zone}\", sub_zone=\"{sub_zone}\"}}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> Place {
        Place { target: name.into(), ..Place::default() }
    }

    #[test]
    fn the_first_reason_counts_and_codes_that_there_are_none_of_are_internal_errors() {
        let subchannels = Subchannels::default();
        let dial = || SubchannelAttempt(subchannels.of(place("c")));
        let end = |reasons: &[Disconnect]| {
            let open = dial().succeeded(true, Disconnect::TimedOut);
            reasons.iter().for_each(|reason| open.ending().note(*reason));
        };
        end(&[Disconnect::GoAway(11), Disconnect::Reset]);
        end(&[Disconnect::GoAway(u32::MAX)]);
        end(&[Disconnect::Shutdown, Disconnect::GoAway(0)]);
        end(&[]);
        dial().failed();
        let open = dial().succeeded(false, Disconnect::Unknown);
        subchannels.each(|counts| {
            assert_eq!(
                (counts.succeeded, counts.failed, counts.open),
                (5, 1, [("none", 1), ("privacy_and_integrity", 0)])
            );
            let ended: Vec<_> = counts.ended.iter().filter(|(_, count)| *count > 0).collect();
            let expected =
                ["GOAWAY INTERNAL_ERROR", "GOAWAY ENHANCE_YOUR_CALM", "subchannel shutdown", "connection timed out"];
            assert_eq!(ended, expected.each_ref().map(|reason| (*reason, 1)).iter().collect::<Vec<_>>());
        });
        drop(open);
    }

    #[test]
    fn places_are_bounded_and_those_where_nobody_is_connected_make_room() {
        let subchannels = Subchannels::default();
        let dial = |name: &str| SubchannelAttempt(subchannels.of(place(name)));
        for n in 0..3 * MOST {
            dial(&n.to_string()).failed();
        }
        let seen = || {
            let mut names = Vec::new();
            subchannels.each(|counts| names.push(counts.target.to_owned()));
            names
        };
        assert!(seen().len() <= MOST);
        let open: Vec<_> =
            (0..=MOST).map(|n| dial(&format!("open {n}")).succeeded(false, Disconnect::Unknown)).collect();
        assert_eq!(seen().len(), MOST + 1);
        assert!(seen().contains(&String::new()), "what finds no room counts without a name");
        drop(open);
        dial("late").failed();
        assert_eq!(seen(), ["late"]);
    }

    #[test]
    fn what_the_system_says_is_told_from_what_this_side_says() {
        for (error, expected) in [
            (io::Error::from_raw_os_error(104), Disconnect::Reset),
            (io::Error::from_raw_os_error(110), Disconnect::TimedOut),
            (io::Error::from_raw_os_error(103), Disconnect::Aborted),
            (io::Error::from_raw_os_error(32), Disconnect::Socket),
            (io::Error::new(io::ErrorKind::ConnectionAborted, "mutual TLS is required by now"), Disconnect::Shutdown),
            (io::Error::from(io::ErrorKind::UnexpectedEof), Disconnect::Unknown),
        ] {
            assert_eq!(Disconnect::from(&error), expected, "{error}");
        }
    }
}
