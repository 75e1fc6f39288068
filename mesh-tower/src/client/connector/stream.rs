//! A connection that a connector made, and its end when the configuration changes.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::request::Parts;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::{MetricRules, Tunnel};
use mesh_core::request::RequestHead;
use mesh_core::store::TargetEntry;
use mesh_core::telemetry::{Ends, Reporter};
use mesh_core::view::{Leaf, TargetView};
use tokio::time::{Instant, Sleep};

use super::{Bytes, forward};
use crate::io::Io;
use crate::outbound::Attempt;
use crate::transport::Security;

/// How long a connection that is no longer allowed is quiet before it is closed, after the server had the last word: it
/// is taken to carry no request then. And for how long it may go on at most: from then on it is closed at the first pause
/// after a word of the server.
struct Patience {
    quiet: Duration,
    longest: Duration,
}

const HTTP1: Patience = Patience { quiet: Duration::from_millis(250), longest: Duration::from_secs(2) };
/// The server's last word may be about one of many streams, or about none.
const HTTP2: Patience = Patience { quiet: Duration::from_secs(5), longest: Duration::from_secs(60) };

/// Bytes of which nobody knows what a pause means go on for as long as both sides want: ten years are as good as for ever.
const BYTES: Patience = Patience { quiet: FOREVER, longest: FOREVER };
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Bytes whose connection has rules of its own: as long as Istio's Envoy goes on with a connection whose rule is gone.
const ROUTED: Patience = Patience { quiet: DRAIN, longest: DRAIN };
const DRAIN: Duration = Duration::from_secs(45);

/// A connection to an endpoint that the mesh chose.
///
/// When the configuration of its target changes so that its endpoint is no longer where the route leads (weights, another
/// cluster, an endpoint that left or is not healthy), it is closed between two requests, so that its client makes another
/// one: once nothing went over it for 250 ms after the server's last byte, or after 2 s at the first pause. A connection
/// sees no requests, so a response that pauses for so long is cut off. Over HTTP/2, where requests overlap, it is 5 s and
/// 60 s, and what is in flight then is lost: for HTTP/2 the mesh's own client is the better one.
///
/// When its cluster asks for TLS from now on, it fails at once: nothing more travels in plaintext.
pub struct ConnectorStream {
    io: TokioIo<Io>,
    origin: Origin,
    entry: Arc<TargetEntry>,
    next_view: NextView,
    standing: Standing,
    /// Whether the server had the last word.
    answered: bool,
    /// `None` before the client's first byte.
    patience: Option<&'static Patience>,
    idle: Option<Idle>,
}

/// When a connection was idle for too long.
struct Idle {
    longest: Duration,
    until: Pin<Box<Sleep>>,
}

/// What a connection was made for, and how.
pub(super) struct Origin {
    pub(super) attempt: Attempt,
    /// The cluster and its state, which stays the same as long as somebody holds it.
    pub(super) leaf: Option<Leaf>,
    pub(super) head: Parts,
    pub(super) bytes: Bytes,
    /// Of the choices that led here: with the same routes they lead here again.
    pub(super) seed: u64,
    /// The way through its endpoint, where that is a proxy.
    pub(super) tunnel: Option<Arc<Tunnel>>,
}

type NextView = Pin<Box<dyn Future<Output = Arc<TargetView>> + Send>>;

/// What the configuration says of a connection.
enum Standing {
    /// It may be used.
    Allowed,
    /// Its endpoint is not where the route leads, or its certificates expire soon.
    Retired { since: Instant, quiet: Pin<Box<Sleep>> },
    /// It must not be used.
    Forbidden(MeshError),
}

impl ConnectorStream {
    pub(super) fn new(stream: Io, origin: Origin, entry: Arc<TargetEntry>, view: Arc<TargetView>) -> Self {
        ConnectorStream {
            io: TokioIo::new(stream),
            origin,
            next_view: next_view(&entry, view),
            entry,
            standing: Standing::Allowed,
            answered: true,
            patience: None,
            idle: None,
        }
    }

    /// Its two ends.
    pub(in crate::client) fn both_ends(&self) -> Ends<'_> {
        let Origin { attempt, leaf, .. } = &self.origin;
        let mut ends = Ends::new(Reporter::Source);
        ends.endpoint = Some(attempt.endpoint());
        ends.service = leaf.as_ref().and_then(|leaf| leaf.cluster.service.as_ref());
        ends.name = leaf.as_ref().map_or("", |leaf| leaf.cluster.name.as_str());
        ends.is_secured = attempt.security.is_tls();
        ends
    }

    /// How it is counted, where that is otherwise than usual.
    pub(in crate::client) fn metric_rules(&self) -> Option<Arc<MetricRules>> {
        self.entry.view()?.metrics().cloned()
    }

    /// The same, for bytes that are not HTTP.
    pub(in crate::client) fn of_bytes(mut self) -> Self {
        let has_rules = self.entry.view().is_some_and(|view| view.connections().is_some());
        self.patience = Some(if has_rules { &ROUTED } else { &BYTES });
        self
    }

    /// The same, to end when nothing went over it for so long.
    pub(super) fn idle_for(mut self, longest: Option<Duration>) -> Self {
        self.idle = longest.map(|longest| Idle { longest, until: Box::pin(tokio::time::sleep(longest)) });
        self
    }

    /// # Errors
    /// Where nothing went over it for too long.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(idle) = &mut self.idle else { return Ok(()) };
        match idle.until.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => {
                let what = format!("nothing went over the connection for {:?} (idle timeout)", idle.longest);
                Err(io::Error::new(io::ErrorKind::TimedOut, what))
            }
        }
    }

    /// Takes in what the configuration says by now.
    ///
    /// # Errors
    /// Where the connection must not be used any more.
    fn follow(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Poll::Ready(view) = self.next_view.as_mut().poll(cx) {
            match (self.origin.judge(&view), &self.standing) {
                (Err(error), _) => self.standing = Standing::Forbidden(error),
                (Ok(true), Standing::Retired { .. }) => self.standing = Standing::Allowed,
                (Ok(false), Standing::Allowed) => self.retire(),
                _ => {}
            }
            self.next_view = next_view(&self.entry, view);
        }
        self.note_age();
        match &self.standing {
            Standing::Forbidden(error) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, error.clone())),
            _ => Ok(()),
        }
    }

    /// Retires where the connection is old, or its certificates end soon.
    fn note_age(&mut self) {
        if self.io.inner().retired().is()
            && let Standing::Allowed = self.standing
        {
            self.retire();
        }
    }

    fn retire(&mut self) {
        let quiet = Box::pin(tokio::time::sleep(self.patience().quiet));
        self.standing = Standing::Retired { since: Instant::now(), quiet };
    }

    fn patience(&self) -> &'static Patience {
        self.patience.unwrap_or(&HTTP1)
    }

    /// Bytes went over it.
    fn used(&mut self, answered: bool) {
        self.answered = answered;
        if let Some(idle) = &mut self.idle {
            idle.until.as_mut().reset(Instant::now() + idle.longest);
        }
        let patience = self.patience();
        if let Standing::Retired { quiet, .. } = &mut self.standing {
            quiet.as_mut().reset(Instant::now() + patience.quiet);
        }
    }

    /// Whether it ends here, where nothing is to be read.
    fn ends(&mut self, cx: &mut Context<'_>) -> bool {
        // Reading has just found out.
        self.note_age();
        let patience = self.patience();
        match &mut self.standing {
            Standing::Retired { since, quiet } if self.answered => {
                quiet.as_mut().poll(cx).is_ready() || since.elapsed() >= patience.longest
            }
            _ => false,
        }
    }

    fn write(
        &mut self,
        cx: &mut Context<'_>,
        first: &[u8],
        write: impl FnOnce(Pin<&mut TokioIo<Io>>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.follow(cx)?;
        // No method of HTTP/1.1 begins as the preface of HTTP/2 does (RFC 9113, 3.4).
        self.patience.get_or_insert(if first.starts_with(b"PRI") { &HTTP2 } else { &HTTP1 });
        let Poll::Ready(written) = write(Pin::new(&mut self.io), cx)? else {
            self.poll_idle(cx)?;
            return Poll::Pending;
        };
        self.used(false);
        Poll::Ready(Ok(written))
    }
}

fn next_view(entry: &Arc<TargetEntry>, present: Arc<TargetView>) -> NextView {
    let entry = Arc::clone(entry);
    Box::pin(async move { entry.changed(&present).await })
}

impl Origin {
    /// Whether the connection may go on under a view.
    ///
    /// # Errors
    /// [`Security`](mesh_core::error::ErrorKind::Security) where it must not, from now on.
    fn judge(&self, view: &Arc<TargetView>) -> Result<bool, MeshError> {
        let endpoint = self.attempt.endpoint();
        let (view, head) = match self.bytes.routes(view) {
            Some(connections) => (connections, self.bytes.head(&self.head)),
            None => match RequestHead::of(&self.head) {
                Ok(head) => (view, head),
                Err(_) => return Ok(false),
            },
        };
        let Ok(route) = view.find(&head, &mut fastrand::Rng::with_seed(self.seed)) else { return Ok(false) };
        if !forward(&route).is_ok_and(|forward| forward.tunnel == self.tunnel) {
            return Ok(false);
        }
        let mut allowed = false;
        for cluster in view.alternatives(&route) {
            for (place, leaf) in cluster.leaves().iter().enumerate() {
                let known = leaf.endpoints.as_ref().map(|_| cluster.endpoint_of(place, endpoint.id()));
                let own = self.leaf.as_ref().filter(|own| own.cluster.name == leaf.cluster.name);
                let is_marked = matches!(known, Some(Some(known)) if known.mutual_tls);
                if own.is_some() || !matches!(known, Some(None)) {
                    let security = Security::of(&leaf.cluster, is_marked)?;
                    if security.is_tls() && !self.attempt.security.is_tls() {
                        let what = format!("cluster {}: TLS is required by now", leaf.cluster.name);
                        return Err(MeshError::new(ErrorKind::Security, what));
                    }
                }
                if own.is_some_and(|own| own.cluster.tls != leaf.cluster.tls) {
                    return Ok(false);
                }
            }
            allowed |= cluster.may_pick(endpoint);
        }
        Ok(allowed)
    }
}

impl Connection for ConnectorStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for ConnectorStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        self.follow(cx)?;
        match Pin::new(&mut self.io).poll_read(cx, buf) {
            Poll::Pending if self.ends(cx) => Poll::Ready(Ok(())),
            Poll::Pending => {
                self.poll_idle(cx)?;
                Poll::Pending
            }
            Poll::Ready(read) => {
                self.used(true);
                Poll::Ready(read)
            }
        }
    }
}

impl Write for ConnectorStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, buf, |io, cx| io.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
        self.write(cx, first, |io, cx| io.poll_write_vectored(cx, bufs))
    }
}

impl fmt::Debug for ConnectorStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectorStream").field("endpoint", self.origin.attempt.endpoint()).finish_non_exhaustive()
    }
}
