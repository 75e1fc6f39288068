//! Requests that are under way now, for people: how old each is, and what it waits for.
//!
//! There are so many seats, made when somebody turns it on. A request that begins takes one, and writes there who it is, into
//! memory that is used again; one that finds none is counted. Nothing waits for anything.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::Method;

use super::Side;
use crate::id::EndpointId;
use crate::request::RequestHead;

/// So many requests are seen at a time.
const SEATS: usize = 4096;
/// So many seats are tried: of the thread's own first, and then anywhere.
const OWN_TRIES: usize = 8;
const TRIES: usize = 16;
/// The longest text that is kept of a request.
const LONGEST: usize = 256;

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Its configuration, or it does not wait at all.
    View,
    /// A filter holds it back.
    Filter,
    /// Authorizers are asked.
    Authorizer,
    /// A connection: for room on one, or until one is dialled.
    Connection,
    /// The pause before another try.
    Pause,
    /// The head of the answer of an endpoint.
    Answer,
    /// The head of the answer of the application.
    Application,
    /// The rest of the answer, until it was read.
    Body,
}

impl Stage {
    const ALL: [Stage; 8] = [
        Stage::View,
        Stage::Filter,
        Stage::Authorizer,
        Stage::Connection,
        Stage::Pause,
        Stage::Answer,
        Stage::Application,
        Stage::Body,
    ];

    /// Its name for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::View => "view",
            Stage::Filter => "filter",
            Stage::Authorizer => "authorizer",
            Stage::Connection => "connection",
            Stage::Pause => "pause before a retry",
            Stage::Answer => "answer",
            Stage::Application => "application",
            Stage::Body => "body",
        }
    }
}

/// All seats.
pub(super) struct Seats {
    // Each counted by itself: the count of all of them would be written by every thread for every request.
    seats: Box<[Arc<Seat>]>,
    without: AtomicU64,
}

#[derive(Default)]
struct Seat {
    is_taken: AtomicBool,
    stage: AtomicU8,
    about: Mutex<About>,
}

#[derive(Default)]
struct About {
    side: Option<Side>,
    started: Option<Instant>,
    method: Method,
    authority: String,
    path: String,
    /// Where it goes, if it does, or else where one before it went.
    endpoint: Option<EndpointId>,
    goes: bool,
}

/// A request's seat, until this is dropped.
pub struct Place(Arc<Seat>);

/// One request that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnderWay {
    /// Who makes it, or who answers it, is this process.
    pub side: Side,
    /// Its method.
    pub method: Method,
    /// Host and port that it asks for.
    pub authority: String,
    /// Its path, without the query.
    pub path: String,
    /// The endpoint of the present try.
    pub endpoint: Option<EndpointId>,
    /// How long it has been there.
    pub age: Duration,
    /// What it waits for.
    pub stage: Stage,
}

impl Default for Seats {
    fn default() -> Self {
        Seats { seats: (0..SEATS).map(|_| Arc::default()).collect(), without: AtomicU64::new(0) }
    }
}

impl Seats {
    pub(super) fn enter(&self, side: Side, head: &RequestHead<'_>, started: Instant) -> Option<Place> {
        thread_local! {
            /// A thread's requests sit where those before them sat: the memory for their texts is there, and near.
            static OWN: usize = fastrand::usize(..SEATS);
        }
        let from = |first: usize, count| (0..count).map(move |step| (first + step) % SEATS);
        let anywhere = std::iter::once_with(|| from(fastrand::usize(..SEATS), TRIES)).flatten();
        let tried = from(OWN.with(|own| *own), OWN_TRIES).chain(anywhere);
        let mut seats = tried.filter_map(|seat| self.seats.get(seat));
        let Some(seat) = seats.find(|seat| !seat.is_taken.swap(true, Ordering::Acquire)) else {
            self.without.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let place = Place(Arc::clone(seat));
        place.waits_for(Stage::View);
        let mut about = seat.about();
        (about.side, about.started, about.goes) = (Some(side), Some(started), false);
        about.method.clone_from(head.method);
        write(&mut about.authority, head.authority);
        write(&mut about.path, head.path());
        drop(about);
        Some(place)
    }

    /// The oldest first, and how many there were without a seat since the start.
    pub(super) fn list(&self, now: Instant) -> (Vec<UnderWay>, u64) {
        let taken = self.seats.iter().filter(|seat| seat.is_taken.load(Ordering::Relaxed));
        let seen = taken.filter_map(|seat| {
            let about = seat.about();
            Some(UnderWay {
                side: about.side?,
                method: about.method.clone(),
                authority: about.authority.clone(),
                path: about.path.clone(),
                endpoint: about.endpoint.clone().filter(|_| about.goes),
                age: now.saturating_duration_since(about.started?),
                stage: *Stage::ALL.get(usize::from(seat.stage.load(Ordering::Relaxed)))?,
            })
        });
        let mut seen: Vec<UnderWay> = seen.collect();
        seen.sort_by_key(|one| std::cmp::Reverse(one.age));
        (seen, self.without.load(Ordering::Relaxed))
    }
}

/// In the memory that is there.
fn write(into: &mut String, text: &str) {
    into.clear();
    into.push_str(text.get(..text.floor_char_boundary(LONGEST)).unwrap_or_default());
}

impl Seat {
    fn about(&self) -> MutexGuard<'_, About> {
        self.about.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// What it waits for from here on.
    pub fn waits_for(&self, stage: Stage) {
        self.0.stage.store(stage as u8, Ordering::Relaxed);
    }

    /// Where its present try goes.
    pub fn goes_to(&self, endpoint: &EndpointId) {
        let mut about = self.0.about();
        // Mostly that is where the one before it went.
        if about.endpoint.as_ref() != Some(endpoint) {
            about.endpoint = Some(endpoint.clone());
        }
        about.goes = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.is_taken.store(false, Ordering::Release);
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").finish_non_exhaustive()
    }
}

impl fmt::Debug for Seats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seats").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_seen_until_it_is_over_and_one_without_a_seat_is_counted() {
        let (seats, now) = (Seats::default(), Instant::now());
        let (parts, ()) = http::Request::get("http://a/x?secret").body(()).unwrap().into_parts();
        let head = RequestHead::of(&parts).unwrap();
        let place = seats.enter(Side::Client, &head, now).unwrap();
        place.waits_for(Stage::Answer);
        let address: std::net::SocketAddr = "10.0.0.1:80".parse().unwrap();
        place.goes_to(&EndpointId::new(address));
        let (seen, without) = seats.list(now + Duration::from_secs(3));
        assert_eq!((seen.len(), without), (1, 0));
        let UnderWay { path, endpoint, age, stage, .. } = &seen[0];
        let endpoint = endpoint.as_ref().map(ToString::to_string);
        assert_eq!((path.as_str(), endpoint.as_deref()), ("/x", Some("10.0.0.1:80")));
        assert_eq!((*age, *stage), (Duration::from_secs(3), Stage::Answer));
        drop(place);
        assert!(seats.list(now).0.is_empty());
        let next = seats.enter(Side::Client, &head, now).unwrap();
        assert_eq!(seats.list(now).0[0].endpoint, None, "it goes nowhere yet, wherever the one before it went");
        drop(next);
        let all: Vec<_> = (0..2 * SEATS).filter_map(|_| seats.enter(Side::Server, &head, now)).collect();
        let (seen, without) = seats.list(now);
        assert_eq!((seen.len(), all.len() as u64 + without), (all.len(), 2 * SEATS as u64));
        assert!(seen.len() <= SEATS && without >= SEATS as u64);
    }

    #[test]
    fn one_after_the_other_sits_where_the_former_sat() {
        let (seats, now) = (Seats::default(), Instant::now());
        let (parts, ()) = http::Request::get("http://a/x").body(()).unwrap().into_parts();
        let head = RequestHead::of(&parts).unwrap();
        let taken: std::collections::HashSet<_> =
            (0..100).map(|_| Arc::as_ptr(&seats.enter(Side::Client, &head, now).unwrap().0)).collect();
        assert_eq!(taken.len(), 1);
    }

    #[test]
    fn every_stage_has_its_number() {
        for (number, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, number, "{stage:?}");
        }
    }
}
