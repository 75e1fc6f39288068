//! Following one live request through the mesh, for somebody who asks why it went where it went.
//!
//! An [`Order`] is what a control plane asks a process to follow: requests that fit begin a trace, and requests that come with
//! the [`Mark`] of one go on with it. What a process sees of such a request on one side is a [`Hop`]. Nothing is looked at and
//! nothing is kept while there is no order; all that there is then is one flag. It is the same one for who wants to see all requests
//! that are [under way](UnderWay), which the admin port of a process does.

mod condition;
mod hop;
mod under_way;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use http::{HeaderName, HeaderValue};
use tokio::sync::Notify;

use crate::request::RequestHead;

pub use condition::{Condition, Where};
pub use hop::{End, Hop, LARGEST_HOP, MOST_EVENTS, Side};
pub use under_way::{Place, Stage, UnderWay};

use under_way::Seats;

/// The header in which a request that is followed says so to the next process. Servers take it off what they hand to the
/// application.
pub const MARK: HeaderName = HeaderName::from_static("x-mesh-trace");

/// So many orders are in force at a time; others are passed over.
pub const MOST_ORDERS: usize = 16;

/// So many hops one order gets from one process.
pub const MOST_HOPS: u32 = 256;

/// So many hops wait to be told; others are lost, and counted.
const MOST_WAITING: usize = 256;

/// Which trace a request belongs to, and what it was made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Mark {
    /// The trace. Nobody knows its number who is not asked to follow it.
    pub trace: u64,
    /// The hop that made the request.
    pub hop: u64,
    /// Which of its attempts; 0 for a request that a server's handler made.
    pub attempt: u32,
}

impl Mark {
    /// Of a hop of a trace.
    pub fn new(trace: u64, hop: u64, attempt: u32) -> Self {
        Mark { trace, hop, attempt }
    }

    /// What a header says; `None` where that is no mark.
    ///
    /// ```
    /// use mesh_core::live_trace::Mark;
    ///
    /// let mark = Mark::new(7, 0xff, 2);
    /// assert_eq!(mark.to_string(), "0000000000000007-00000000000000ff-2");
    /// assert_eq!(Mark::parse(mark.to_string().as_bytes()), Some(mark));
    /// assert_eq!(Mark::parse(b"soon"), None);
    /// ```
    pub fn parse(header: &[u8]) -> Option<Mark> {
        let mut parts = std::str::from_utf8(header).ok()?.splitn(3, '-');
        let mut number = || parts.next().filter(|part| part.len() == 16);
        let trace = u64::from_str_radix(number()?, 16).ok()?;
        let hop = u64::from_str_radix(number()?, 16).ok()?;
        Some(Mark { trace, hop, attempt: parts.next()?.parse().ok()? })
    }

    /// The same as a header's value.
    pub fn to_header(self) -> Option<HeaderValue> {
        HeaderValue::try_from(self.to_string()).ok()
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}-{}", self.trace, self.hop, self.attempt)
    }
}

/// What a process is asked to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Order {
    /// The number of the trace.
    pub trace: u64,
    /// Which requests begin it here; `None`: those alone are followed that are marked already.
    pub start: Option<Where>,
    /// How many requests begin it here.
    pub next: u32,
    /// When it is over.
    pub until: Instant,
}

impl Order {
    /// To follow what is marked, until then.
    pub fn new(trace: u64, until: Instant) -> Self {
        Order { trace, start: None, next: 0, until }
    }

    /// Also to begin with so many requests that fit.
    pub fn starting(mut self, start: Where, next: u32) -> Self {
        (self.start, self.next) = (Some(start), next);
        self
    }
}

/// An order in force.
#[derive(Debug)]
struct Armed {
    order: Order,
    /// How many requests have begun it.
    begun: u32,
    /// How many more hops are told.
    hops: u32,
}

/// What this process follows now.
///
/// ```
/// use std::sync::Arc;
/// use std::time::{Duration, Instant, SystemTime};
///
/// use mesh_core::live_trace::{LiveTraces, Order, Side, Where};
/// use mesh_core::request::RequestHead;
///
/// let traces = Arc::new(LiveTraces::default());
/// let (parts, ()) = http::Request::get("http://reviews/").body(()).unwrap().into_parts();
/// let head = RequestHead::of(&parts).unwrap();
/// let (now, wall) = (Instant::now(), SystemTime::now());
/// assert!(!traces.is_armed());
///
/// let order = Order::new(1, now + Duration::from_secs(60)).starting(Where::to("reviews"), 1);
/// traces.set(vec![order], now);
/// assert!(traces.begin(Side::Client, &head, || (None, now, wall)).is_some());
/// assert!(traces.begin(Side::Client, &head, || (None, now, wall)).is_none(), "one was asked for");
/// ```
#[derive(Debug, Default)]
pub struct LiveTraces {
    is_looking: AtomicBool,
    is_armed: AtomicBool,
    seats: OnceLock<Seats>,
    armed: Mutex<Vec<Armed>>,
    told: Mutex<Told>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Told {
    hops: VecDeque<String>,
    lost: u64,
}

impl LiveTraces {
    /// Whether somebody looks at requests.
    #[inline]
    pub fn is_looking(&self) -> bool {
        self.is_looking.load(Ordering::Relaxed)
    }

    /// Whether there is an order.
    #[inline]
    pub fn is_armed(&self) -> bool {
        self.is_armed.load(Ordering::Relaxed)
    }

    /// Keeps from now on who is under way.
    pub fn keep_under_way(&self) {
        self.seats.get_or_init(Seats::default);
        self.is_looking.store(true, Ordering::Relaxed);
    }

    /// A request begins: its place among those that are under way, where these are kept and there is room.
    pub fn enter(&self, side: Side, head: &RequestHead<'_>, started: Instant) -> Option<Place> {
        self.seats.get()?.enter(side, head, started)
    }

    /// Who is under way, the oldest first, and how many found no room since the start; nobody where nothing is kept.
    pub fn under_way(&self, now: Instant) -> (Vec<UnderWay>, u64) {
        self.seats.get().map(|seats| seats.list(now)).unwrap_or_default()
    }

    fn look(&self, armed: &[Armed]) {
        self.is_armed.store(!armed.is_empty(), Ordering::Relaxed);
        self.is_looking.store(!armed.is_empty() || self.seats.get().is_some(), Ordering::Relaxed);
    }

    /// Follows these from now on, and no others. What is counted of an order that stays goes on.
    pub fn set(&self, orders: Vec<Order>, now: Instant) {
        let mut armed = self.armed();
        let before = std::mem::take(&mut *armed);
        *armed = orders
            .into_iter()
            .filter(|order| order.until > now)
            .take(MOST_ORDERS)
            .map(|order| match before.iter().find(|one| one.order.trace == order.trace) {
                Some(one) => Armed { begun: one.begun, hops: one.hops, order },
                None => Armed { begun: 0, hops: MOST_HOPS, order },
            })
            .collect();
        self.look(&armed);
    }

    /// Gives up those whose time is over; when the next one's is.
    pub fn expire(&self, now: Instant) -> Option<Instant> {
        let mut armed = self.armed();
        armed.retain(|one| one.order.until > now);
        self.look(&armed);
        armed.iter().map(|one| one.order.until).min()
    }

    /// Begins a hop, where the request is one to be followed: it comes with a mark, or is one that a trace begins with. What mark
    /// that is, and when it comes, is asked for only where there is an order.
    pub fn begin(
        self: &Arc<Self>,
        side: Side,
        head: &RequestHead<'_>,
        arrival: impl FnOnce() -> (Option<Mark>, Instant, SystemTime),
    ) -> Option<Box<Hop>> {
        if !self.is_armed() {
            return None;
        }
        let (mark, now, wall) = arrival();
        let mut armed = self.armed();
        let is_due = |one: &Armed| one.order.until > now && one.hops > 0;
        let one = match mark {
            Some(mark) => armed.iter_mut().find(|one| is_due(one) && one.order.trace == mark.trace)?,
            None => {
                let fits = |one: &Armed| one.order.start.as_ref().is_some_and(|start| start.fits(head));
                let one = armed.iter_mut().find(|one| is_due(one) && one.begun < one.order.next && fits(one))?;
                one.begun += 1;
                one
            }
        };
        one.hops -= 1;
        Some(Box::new(Hop::new(
            Arc::clone(self),
            one.order.trace,
            side,
            mark,
            head,
            one.order.start.as_ref(),
            (now, wall),
        )))
    }

    /// Has a hop told that is over.
    fn tell(&self, hop: String) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match told.hops.len() < MOST_WAITING {
            true => told.hops.push_back(hop),
            false => told.lost += 1,
        }
        drop(told);
        self.news.notify_one();
    }

    /// The next hop to be told, as JSON, and how many were lost since the one before. Waits until there is one.
    pub async fn next(&self) -> (String, u64) {
        loop {
            let news = self.news.notified();
            {
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(hop) = told.hops.pop_front() {
                    return (hop, std::mem::take(&mut told.lost));
                }
            }
            news.await;
        }
    }

    fn armed(&self) -> MutexGuard<'_, Vec<Armed>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parts(uri: &str) -> http::request::Parts {
        http::Request::get(uri).body(()).unwrap().into_parts().0
    }

    #[test]
    fn what_is_not_marked_is_followed_as_often_as_was_asked_for_and_what_is_always() {
        let (traces, now, wall) = (Arc::new(LiveTraces::default()), Instant::now(), SystemTime::now());
        let begin = |mark, uri: &str, now| {
            let parts = parts(uri);
            traces.begin(Side::Client, &RequestHead::of(&parts).unwrap(), || (mark, now, wall)).is_some()
        };
        let order = || Order::new(5, now + Duration::from_secs(9)).starting(Where::to("a"), 2);
        assert!(!begin(Some(Mark::new(5, 1, 1)), "http://a/", now), "nobody asked");
        traces.set(vec![Order::new(5, now + Duration::from_secs(9))], now);
        assert!(!begin(None, "http://a/", now), "it does not begin here yet");
        traces.set(vec![order()], now);
        assert!(!begin(None, "http://b/", now));
        assert!(begin(None, "http://a/", now));
        traces.set(vec![order()], now);
        assert!(begin(None, "http://a:80/x", now));
        assert!(!begin(None, "http://a/", now), "two were asked for, and being told again is not asking anew");
        assert!(begin(Some(Mark::new(5, 1, 1)), "http://b/", now), "it is marked");
        assert!(!begin(Some(Mark::new(6, 1, 1)), "http://b/", now), "by nobody who is known");
        let late = now + Duration::from_secs(9);
        assert!(!begin(Some(Mark::new(5, 1, 1)), "http://b/", late), "it is over");
        assert_eq!(traces.expire(late), None);
        assert!(!traces.is_armed());
    }

    #[test]
    fn hops_of_one_order_have_a_bound() {
        let (traces, now, wall) = (Arc::new(LiveTraces::default()), Instant::now(), SystemTime::now());
        traces.set(vec![Order::new(5, now + Duration::from_secs(9))], now);
        let parts = parts("http://a/");
        let head = RequestHead::of(&parts).unwrap();
        let begin = || traces.begin(Side::Server, &head, || (Some(Mark::new(5, 1, 1)), now, wall)).is_some();
        assert_eq!((0..2 * MOST_HOPS).filter(|_| begin()).count(), MOST_HOPS as usize);
    }

    #[test]
    fn a_mark_is_two_numbers_and_an_attempt_or_nothing() {
        for text in ["", "-", "7-7-1", "000000000000000g-0000000000000007-1", "0000000000000007-0000000000000007-x"] {
            assert_eq!(Mark::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Mark::parse(b"0000000000000007-0000000000000007"), None);
        assert_eq!(Mark::parse(&[0xff; 40]), None);
    }
}
