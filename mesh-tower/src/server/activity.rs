//! What a connection is doing: what tells a slow request's head from a slow body, and both from idling.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep, sleep_until};

/// The first bytes of HTTP/2. No method of HTTP/1.1 begins with them.
const HTTP2: &[u8] = b"PRI";

/// What happens on one connection. Reading, requests and timers of a connection are all polled by its one task,
/// except for the ends of HTTP/2 streams; so nothing is ordered but the count.
#[derive(Debug)]
pub(super) struct Activity {
    /// Bytes of an HTTP/1.1 request came, and the request has not.
    head: AtomicBool,
    requests: AtomicUsize,
    busy: AtomicUsize,
}

/// A request in progress, to the end of its response.
#[derive(Debug)]
pub(super) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Activity {
    /// A new connection owes its first request.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Activity { head: AtomicBool::new(true), requests: AtomicUsize::new(0), busy: AtomicUsize::new(0) })
    }

    /// A request's head is complete.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.head.store(false, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.busy.fetch_add(1, Ordering::AcqRel);
        Busy(Arc::clone(self))
    }

    /// Ready when a request's head has taken this long. A timer runs only while one is awaited.
    pub(super) async fn slow_head(self: &Arc<Self>, limit: Duration) {
        let mut timer = None;
        std::future::poll_fn(|cx| {
            if !self.head.load(Ordering::Relaxed) {
                timer = None;
                return Poll::Pending;
            }
            timer.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx)
        })
        .await;
    }

    /// Ready when there was no request for this long, or up to twice as long: the time of each request is not
    /// taken, only their number, now and then.
    pub(super) async fn idle(self: &Arc<Self>, limit: Duration) {
        let mut seen = self.requests.load(Ordering::Relaxed);
        let mut next = Instant::now() + limit;
        loop {
            sleep_until(next).await;
            let requests = self.requests.load(Ordering::Relaxed);
            if requests == seen && self.busy.load(Ordering::Acquire) == 0 {
                return;
            }
            seen = requests;
            next += limit;
        }
    }

    fn read(&self) {
        if self.busy.load(Ordering::Acquire) == 0 {
            self.head.store(true, Ordering::Relaxed);
        }
    }
}

/// A connection that notes what is read from it.
#[derive(Debug)]
pub(super) struct Watched<I> {
    io: I,
    activity: Arc<Activity>,
    protocol: Protocol,
}

#[derive(Debug, PartialEq, Eq)]
enum Protocol {
    /// This many bytes of HTTP/2's beginning were seen, and no other.
    Unknown(usize),
    Http1,
    Http2,
}

impl Protocol {
    fn after(self: &Protocol, bytes: &[u8]) -> Protocol {
        let Protocol::Unknown(seen) = *self else { return Protocol::Http1 };
        let rest = HTTP2.get(seen..).unwrap_or_default();
        let compared = rest.len().min(bytes.len());
        match rest.get(..compared) == bytes.get(..compared) {
            false => Protocol::Http1,
            true if compared == rest.len() => Protocol::Http2,
            true => Protocol::Unknown(seen + compared),
        }
    }
}

impl<I> Watched<I> {
    pub(super) fn new(io: I, activity: &Arc<Activity>) -> Self {
        Watched { io, activity: Arc::clone(activity), protocol: Protocol::Unknown(0) }
    }

    fn noted(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if let Protocol::Unknown(_) = self.protocol {
            self.protocol = self.protocol.after(bytes);
            if self.protocol == Protocol::Http2 {
                // It may idle before its first stream, and its frames may come as slowly as they like: it is the
                // pings that tell whether it lives.
                self.activity.head.store(false, Ordering::Relaxed);
            }
        }
        if self.protocol == Protocol::Http1 {
            self.activity.read();
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() {
            self.noted(buf.filled().get(before..).unwrap_or_default());
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_is_told_by_the_first_bytes_however_they_come() {
        let cases: [(&[&str], Protocol); 6] = [
            (&["PRI * HTTP/2.0"], Protocol::Http2),
            (&["P", "R", "I"], Protocol::Http2),
            (&["PRO"], Protocol::Http1),
            (&["P", "OST /"], Protocol::Http1),
            (&["PR"], Protocol::Unknown(2)),
            (&["GET"], Protocol::Http1),
        ];
        for (parts, expected) in cases {
            let mut protocol = Protocol::Unknown(0);
            for part in parts {
                protocol = protocol.after(part.as_bytes());
            }
            assert_eq!(protocol, expected, "{parts:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_slow_but_a_body_and_a_pause_between_requests_are_not() {
        let limit = Duration::from_secs(10);
        let activity = Activity::new();
        let slow = activity.slow_head(limit);
        tokio::pin!(slow);
        let wait = |seconds| sleep(Duration::from_secs(seconds));
        let mut is_slow_after = async |seconds| {
            tokio::select! {
                biased;
                () = wait(seconds) => false,
                () = &mut slow => true,
            }
        };
        assert!(!is_slow_after(9).await);
        let busy = activity.begin();
        activity.read();
        assert!(!is_slow_after(100).await, "a body");
        drop(busy);
        assert!(!is_slow_after(100).await, "a pause");
        activity.read();
        assert!(!is_slow_after(9).await);
        assert!(is_slow_after(2).await, "the next head");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_only_without_requests() {
        let hour = Duration::from_secs(3600);
        let activity = Activity::new();
        let began = Instant::now();
        let idle = activity.idle(hour);
        tokio::pin!(idle);
        let busy = activity.begin();
        assert!(tokio::time::timeout(10 * hour, &mut idle).await.is_err());
        drop(busy);
        idle.await;
        assert!(began.elapsed() <= 12 * hour);
    }
}
