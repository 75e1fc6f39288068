//! A connection that a connector made, and its end when the configuration changes.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::request::Parts;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use mesh_core::error::MeshError;
use mesh_core::request::RequestHead;
use mesh_core::state::EndpointState;
use mesh_core::store::TargetEntry;
use mesh_core::view::TargetView;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::forward;
use crate::outbound::Attempt;
use crate::transport::Plaintext;

/// How long a connection that is no longer allowed is quiet before it is closed, after the server had the last word: it
/// is taken to carry no request then.
const QUIET: Duration = Duration::from_millis(250);
/// For how long it may go on at most: from then on it is closed at the first pause after a word of the server.
const LONGEST: Duration = Duration::from_secs(2);

/// A connection to an endpoint that the mesh chose.
///
/// When the configuration of its target changes so that its endpoint is no longer where the route leads (weights, another
/// cluster, an endpoint that left or is not healthy), it is closed between two requests, so that its client makes another
/// one: once nothing went over it for 250 ms after the server's last byte, or after 2 s at the first pause. A connection
/// sees no requests, so a response that pauses for so long is cut off. When its cluster asks for TLS from now on, it
/// fails at once: nothing more travels in plaintext.
pub struct ConnectorStream {
    io: TokioIo<TcpStream>,
    attempt: Attempt,
    /// What the connection was asked for.
    head: Parts,
    entry: Arc<TargetEntry>,
    next_view: NextView,
    standing: Standing,
    /// Whether the server had the last word.
    answered: bool,
}

type NextView = Pin<Box<dyn Future<Output = Arc<TargetView>> + Send>>;

/// What the configuration says of a connection.
enum Standing {
    /// It may be used.
    Allowed,
    /// Its endpoint is not where the route leads.
    Retired { since: Instant, quiet: Pin<Box<Sleep>> },
    /// It must not be used.
    Forbidden(MeshError),
}

impl ConnectorStream {
    pub(super) fn new(
        stream: TcpStream,
        attempt: Attempt,
        entry: Arc<TargetEntry>,
        view: Arc<TargetView>,
        head: Parts,
    ) -> Self {
        ConnectorStream {
            io: TokioIo::new(stream),
            attempt,
            head,
            next_view: next_view(&entry, view),
            entry,
            standing: Standing::Allowed,
            answered: true,
        }
    }

    /// Takes in what the configuration says by now.
    ///
    /// # Errors
    /// Where the connection must not be used any more.
    fn follow(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Poll::Ready(view) = self.next_view.as_mut().poll(cx) {
            match (judge(&view, &self.head, self.attempt.endpoint()), &self.standing) {
                (Err(error), _) => self.standing = Standing::Forbidden(error),
                (Ok(true), Standing::Retired { .. }) => self.standing = Standing::Allowed,
                (Ok(false), Standing::Allowed) => {
                    let quiet = Box::pin(tokio::time::sleep(QUIET));
                    self.standing = Standing::Retired { since: Instant::now(), quiet };
                }
                _ => {}
            }
            self.next_view = next_view(&self.entry, view);
        }
        match &self.standing {
            Standing::Forbidden(error) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, error.clone())),
            _ => Ok(()),
        }
    }

    /// Bytes went over it.
    fn used(&mut self, answered: bool) {
        self.answered = answered;
        if let Standing::Retired { quiet, .. } = &mut self.standing {
            quiet.as_mut().reset(Instant::now() + QUIET);
        }
    }

    /// Whether it ends here, where nothing is to be read.
    fn ends(&mut self, cx: &mut Context<'_>) -> bool {
        match &mut self.standing {
            Standing::Retired { since, quiet } if self.answered => {
                quiet.as_mut().poll(cx).is_ready() || since.elapsed() >= LONGEST
            }
            _ => false,
        }
    }

    fn write(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TokioIo<TcpStream>>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.follow(cx)?;
        let written = ready!(write(Pin::new(&mut self.io), cx))?;
        self.used(false);
        Poll::Ready(Ok(written))
    }
}

fn next_view(entry: &Arc<TargetEntry>, present: Arc<TargetView>) -> NextView {
    let entry = Arc::clone(entry);
    Box::pin(async move { entry.changed(&present).await })
}

/// Whether connections to an endpoint may go on under a view.
///
/// # Errors
/// [`Security`](mesh_core::error::ErrorKind::Security) where they must not, from now on.
fn judge(view: &TargetView, head: &Parts, endpoint: &EndpointState) -> Result<bool, MeshError> {
    let Ok(head) = RequestHead::of(head) else { return Ok(false) };
    // Any route of those that chance decides among will do: its clusters are all looked at.
    let Ok(route) = view.find(&head, &mut fastrand::Rng::new()) else { return Ok(false) };
    if forward(&route).is_err() {
        return Ok(false);
    }
    let mut allowed = false;
    for cluster in view.alternatives(&route) {
        for leaf in cluster.leaves() {
            let known = leaf.endpoints.as_ref().is_none_or(|endpoints| {
                let mut all = endpoints.localities.iter().flat_map(|locality| &locality.endpoints);
                all.any(|known| known.id == *endpoint.id())
            });
            if known {
                Plaintext::allowed(&leaf.cluster)?;
            }
        }
        allowed |= cluster.may_pick(endpoint);
    }
    Ok(allowed)
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
            Poll::Pending => Poll::Pending,
            Poll::Ready(read) => {
                self.used(true);
                Poll::Ready(read)
            }
        }
    }
}

impl Write for ConnectorStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |io, cx| io.poll_write(cx, buf))
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
        self.write(cx, |io, cx| io.poll_write_vectored(cx, bufs))
    }
}

impl fmt::Debug for ConnectorStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectorStream").field("endpoint", self.attempt.endpoint()).finish_non_exhaustive()
    }
}
