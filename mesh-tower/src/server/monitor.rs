//! What a connection is doing, seen from outside: a slow request's head is told from a slow body, and both from
//! idling.
//!
//! The connection only counts. Timers of its own would cost every request; so would hyper's, which also takes
//! the time between two requests for a part of the second one's head.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::ConnectionInfo;
use crate::listeners::ListenerGuard;
use crate::server::accept::MeshIo;
use crate::server::limits::Limits;
use crate::server::protocol::Protocol;
use crate::server::stalled;
use crate::server::unseen::lets_out;

/// What happens on one connection, and what it is told.
#[derive(Debug)]
pub(super) struct Activity {
    /// Bytes of an HTTP/1.1 request came, and the request has not.
    head: AtomicBool,
    requests: AtomicUsize,
    busy: AtomicUsize,
    /// How many of those wait for the client alone: the application has nothing to do but for what was not taken yet.
    handed: AtomicUsize,
    /// How many bytes the socket has taken.
    written: AtomicUsize,
    /// Somebody wants to know whether the client has closed its side.
    look: AtomicBool,
    /// It has.
    half_closed: AtomicBool,
    signal: AtomicU8,
    task: OnceLock<Waker>,
    /// Whose it is, for what is asked of it seldom.
    whose: OnceLock<(ListenerGuard, Arc<ConnectionInfo>)>,
}

/// What a connection is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Signal {
    /// Nothing.
    GoOn,
    /// To end with its last request.
    End,
    /// To end at once: a request's head takes too long.
    CutHead,
    /// To end at once: the client has closed its side, and the answer takes too long.
    CutHalfClosed,
    /// To end at once: it was to end, and its client takes no notice.
    CutStalled,
    /// To end at once: its client takes nothing of what is there for it.
    CutUnread,
    /// To end at once: an answer would go past the mesh's policies.
    CutUnseen,
    /// To end at once: it is broken.
    CutBroken,
}

/// A request in progress, to the end of its response.
#[derive(Debug)]
pub(super) struct BusyGuard {
    activity: Arc<Activity>,
    is_handed: bool,
}

impl BusyGuard {
    /// Whether it waits for the client: something of the response was handed out, and no more is asked for.
    pub(super) fn note_handed(&mut self, is_handed: bool) {
        stalled::note(is_handed);
        match (is_handed, std::mem::replace(&mut self.is_handed, is_handed)) {
            (true, false) => _ = self.activity.handed.fetch_add(1, Ordering::Relaxed),
            (false, true) => _ = self.activity.handed.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
    }
}

impl BusyGuard {
    /// The layer did not see the request. Returns whether its answer may leave all the same; if not, the connection ends.
    #[cold]
    pub(super) fn lets_out_unseen(&self) -> bool {
        let lets_out = self.activity.whose.get().is_some_and(|(listener, connection)| lets_out(listener, connection));
        if !lets_out {
            self.activity.tell(Signal::CutUnseen);
        }
        lets_out
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        if self.is_handed {
            self.activity.handed.fetch_sub(1, Ordering::Relaxed);
        }
        self.activity.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Activity {
    /// A new connection owes its first request.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Activity {
            head: AtomicBool::new(true),
            requests: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            handed: AtomicUsize::new(0),
            written: AtomicUsize::new(0),
            look: AtomicBool::new(false),
            half_closed: AtomicBool::new(false),
            signal: AtomicU8::new(Signal::GoOn as u8),
            task: OnceLock::new(),
            whose: OnceLock::new(),
        })
    }

    /// It is this connection's.
    pub(super) fn belongs_to(&self, listener: ListenerGuard, connection: &Arc<ConnectionInfo>) {
        _ = self.whose.set((listener, Arc::clone(connection)));
    }

    /// A request's head is complete.
    pub(super) fn begin(self: &Arc<Self>) -> BusyGuard {
        self.head.store(false, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.busy.fetch_add(1, Ordering::Relaxed);
        BusyGuard { activity: Arc::clone(self), is_handed: false }
    }

    /// How many requests there were.
    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Whether all its requests wait for the client.
    pub(super) fn waits_for_its_client(&self) -> bool {
        self.handed.load(Ordering::Relaxed) == self.busy.load(Ordering::Relaxed)
    }

    /// What the connection is told. `task` is woken when that changes; it must be the same every time.
    pub(super) fn signal(&self, task: &Waker) -> Signal {
        if self.task.get().is_none() {
            _ = self.task.set(task.clone());
        }
        match self.signal.load(Ordering::Acquire) {
            0 => Signal::GoOn,
            1 => Signal::End,
            2 => Signal::CutHead,
            3 => Signal::CutHalfClosed,
            4 => Signal::CutStalled,
            5 => Signal::CutUnread,
            6 => Signal::CutUnseen,
            _ => Signal::CutBroken,
        }
    }

    /// Tells the connection; what it was told before is not taken back.
    pub(super) fn tell(&self, signal: Signal) {
        if self.signal.fetch_max(signal as u8, Ordering::AcqRel) < signal as u8
            && let Some(task) = self.task.get()
        {
            task.wake_by_ref();
        }
    }

    /// Asks its task to look whether the client has closed its side. While a request is answered nobody reads.
    fn ask_to_look(&self) {
        self.look.store(true, Ordering::Release);
        if let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
    }

    /// The client has closed its side. What is called for it is to know.
    fn note_half_closed(&self) {
        self.half_closed.store(true, Ordering::Relaxed);
        if let Some((_, connection)) = self.whose.get() {
            connection.note_half_closed();
        }
    }

    fn read(&self) {
        if self.busy.load(Ordering::Relaxed) == 0 {
            self.head.store(true, Ordering::Relaxed);
        }
    }
}

/// Watches one connection from outside: it takes no time of the requests, and looks now and then.
#[derive(Debug)]
pub(super) struct ConnectionMonitor {
    activity: Weak<Activity>,
    requests: usize,
    /// Since when it has looked as it looks now.
    head_since: Option<Instant>,
    half_closed_since: Option<Instant>,
    /// And how many bytes had been written then.
    unread_since: Option<(Instant, usize)>,
    idle_since: Instant,
}

/// What a client that reads takes within `stall_timeout`, at the least: less is no more than answers to pings.
const LEAST_READ: usize = 16 << 10;

impl ConnectionMonitor {
    pub(super) fn on(activity: &Arc<Activity>, now: Instant) -> Self {
        ConnectionMonitor {
            activity: Arc::downgrade(activity),
            requests: 0,
            head_since: Some(now),
            half_closed_since: None,
            unread_since: None,
            idle_since: now,
        }
    }

    /// The connection, if there still is one.
    pub(super) fn connection(&self) -> Option<Arc<Activity>> {
        self.activity.upgrade()
    }

    /// What to tell a connection: to be cut when a request's head takes too long, or an answer takes too long for a client
    /// that may be gone, or when that takes nothing of it; to end when it is idle, and to be cut when it does not end then.
    pub(super) fn judge(&mut self, seen: &Activity, limits: &Limits, now: Instant) -> Signal {
        let requests = seen.requests.load(Ordering::Relaxed);
        let news = requests != std::mem::replace(&mut self.requests, requests);
        let head = seen.head.load(Ordering::Relaxed);
        self.head_since = head.then(|| self.head_since.filter(|_| !news).unwrap_or(now));
        let busy = seen.busy.load(Ordering::Relaxed) > 0;
        let written = seen.written.load(Ordering::Relaxed);
        let reads = |(_, before): &(Instant, usize)| written.wrapping_sub(*before) >= LEAST_READ;
        let is_unread = busy && !news && seen.waits_for_its_client();
        self.unread_since =
            is_unread.then(|| self.unread_since.filter(|since| !reads(since)).unwrap_or((now, written)));
        if news || busy {
            self.idle_since = now;
        }
        if busy && !news {
            seen.ask_to_look();
        }
        let half_closed = seen.half_closed.load(Ordering::Relaxed);
        self.half_closed_since = half_closed.then(|| self.half_closed_since.unwrap_or(now));
        let lasts = |since: Option<Instant>, limit| since.is_some_and(|since| now.duration_since(since) >= limit);
        if lasts(self.head_since, limits.head_timeout) {
            return Signal::CutHead;
        }
        if lasts(self.half_closed_since, limits.half_close_timeout) {
            return Signal::CutHalfClosed;
        }
        if lasts(self.unread_since.map(|(since, _)| since), limits.stall_timeout) {
            return Signal::CutUnread;
        }
        match now.duration_since(self.idle_since).checked_sub(limits.idle_timeout) {
            None => Signal::GoOn,
            Some(longer) if longer < limits.half_close_timeout => Signal::End,
            Some(_) => Signal::CutStalled,
        }
    }
}

/// A connection that notes what is read from it.
#[derive(Debug)]
pub(super) struct Watched {
    io: MeshIo,
    activity: Arc<Activity>,
}

impl Watched {
    pub(super) fn new(io: MeshIo, activity: &Arc<Activity>) -> Self {
        Watched { io, activity: Arc::clone(activity) }
    }

    /// Notes whether the client has closed its side, or the connection altogether.
    #[cold]
    fn look(&mut self, cx: &mut Context<'_>) {
        self.activity.look.store(false, Ordering::Release);
        match self.io.poll_has_ended(cx) {
            Poll::Ready(Ok(true)) => self.activity.note_half_closed(),
            Poll::Ready(Err(_)) => self.activity.tell(Signal::CutBroken),
            Poll::Ready(Ok(false)) | Poll::Pending => {}
        }
    }

    fn note_written(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(count)) = written {
            self.activity.written.fetch_add(*count, Ordering::Relaxed);
        }
    }

    fn note_read(&self) {
        match self.io.protocol() {
            Some(Protocol::Http1) => self.activity.read(),
            // It may idle before its first stream, and its frames may come as slowly as they like.
            Some(Protocol::Http2(frames)) if frames.have_begun() => self.activity.head.store(false, Ordering::Relaxed),
            Some(Protocol::Http2(_) | Protocol::Unknown(_)) | None => {}
        }
    }
}

impl AsyncRead for Watched {
    #[inline]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() && buf.filled().len() > before {
            self.note_read();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note_written(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.note_written(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// hyper calls it each time it runs and has nothing to write.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.activity.look.load(Ordering::Acquire) {
            self.look(cx);
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Looks every second of `seconds` what a connection is told then.
    fn look(monitor: &mut ConnectionMonitor, activity: &Activity, now: &mut Instant, seconds: u64) -> Signal {
        let limits = Limits::default();
        (0..seconds).fold(Signal::GoOn, |signal, _| {
            *now += Duration::from_secs(1);
            signal.max(monitor.judge(activity, &limits, *now))
        })
    }

    #[test]
    fn a_head_is_slow_but_a_body_and_a_pause_between_requests_are_not() {
        let mut now = Instant::now();
        let activity = Activity::new();
        let mut monitor = ConnectionMonitor::on(&activity, now);
        assert_eq!(look(&mut monitor, &activity, &mut now, 9), Signal::GoOn);
        let busy = activity.begin();
        activity.read();
        assert_eq!(look(&mut monitor, &activity, &mut now, 100), Signal::GoOn, "a body");
        drop(busy);
        assert_eq!(look(&mut monitor, &activity, &mut now, 100), Signal::GoOn, "a pause");
        for _ in 0..30 {
            activity.read();
            assert_eq!(
                look(&mut monitor, &activity, &mut now, 1),
                Signal::GoOn,
                "the head of another request each time"
            );
            activity.begin();
        }
        activity.read();
        assert_eq!(look(&mut monitor, &activity, &mut now, 9), Signal::GoOn);
        assert_eq!(look(&mut monitor, &activity, &mut now, 2), Signal::CutHead, "the next head");
    }

    #[test]
    fn a_connection_that_never_sends_a_head_is_cut() {
        let mut now = Instant::now();
        let activity = Activity::new();
        let mut monitor = ConnectionMonitor::on(&activity, now);
        assert_eq!(look(&mut monitor, &activity, &mut now, 10), Signal::CutHead);
    }

    #[test]
    fn a_connection_is_idle_only_without_requests() {
        let mut now = Instant::now();
        let activity = Activity::new();
        let mut monitor = ConnectionMonitor::on(&activity, now);
        let busy = activity.begin();
        assert_eq!(look(&mut monitor, &activity, &mut now, 10_000), Signal::GoOn);
        drop(busy);
        drop(activity.begin());
        assert_eq!(look(&mut monitor, &activity, &mut now, 65 * 60), Signal::GoOn);
        assert_eq!(look(&mut monitor, &activity, &mut now, 30), Signal::End);
        assert_eq!(look(&mut monitor, &activity, &mut now, 1), Signal::CutStalled);
    }

    #[test]
    fn a_client_that_may_be_gone_is_waited_for_only_so_long() {
        let mut now = Instant::now();
        let activity = Activity::new();
        let mut monitor = ConnectionMonitor::on(&activity, now);
        let _busy = activity.begin();
        look(&mut monitor, &activity, &mut now, 1);
        assert!(!activity.look.load(Ordering::Relaxed), "the request is new");
        look(&mut monitor, &activity, &mut now, 1);
        assert!(activity.look.load(Ordering::Relaxed));
        activity.half_closed.store(true, Ordering::Relaxed);
        assert_eq!(look(&mut monitor, &activity, &mut now, 30), Signal::GoOn);
        assert_eq!(look(&mut monitor, &activity, &mut now, 1), Signal::CutHalfClosed);
    }

    #[test]
    fn a_signal_is_not_taken_back_and_wakes_the_task() {
        let activity = Activity::new();
        assert_eq!(activity.signal(Waker::noop()), Signal::GoOn);
        for signal in [
            Signal::End,
            Signal::CutHead,
            Signal::CutHalfClosed,
            Signal::CutStalled,
            Signal::CutUnread,
            Signal::CutUnseen,
            Signal::CutBroken,
        ] {
            activity.tell(signal);
            activity.tell(Signal::GoOn);
            assert_eq!(activity.signal(Waker::noop()), signal);
        }
    }

    #[test]
    fn a_client_that_takes_nothing_of_an_answer_is_cut_off_and_an_application_may_take_its_time() {
        let (activity, mut now) = (Activity::new(), Instant::now());
        let mut monitor = ConnectionMonitor::on(&activity, now);
        let mut request = activity.begin();
        assert_eq!(look(&mut monitor, &activity, &mut now, 1000), Signal::GoOn, "the application is at work");
        request.note_handed(true);
        let other = activity.begin();
        assert_eq!(look(&mut monitor, &activity, &mut now, 1000), Signal::GoOn, "and on another request");
        drop(other);
        for _ in 0..4 {
            assert_eq!(look(&mut monitor, &activity, &mut now, 299), Signal::GoOn);
            activity.written.fetch_add(LEAST_READ, Ordering::Relaxed);
        }
        request.note_handed(false);
        assert_eq!(look(&mut monitor, &activity, &mut now, 1000), Signal::GoOn, "it is at work again");
        request.note_handed(true);
        assert_eq!(look(&mut monitor, &activity, &mut now, 299), Signal::GoOn);
        activity.written.fetch_add(LEAST_READ - 1, Ordering::Relaxed);
        assert_eq!(look(&mut monitor, &activity, &mut now, 2), Signal::CutUnread);
    }
}
