//! A connection's bytes, in plaintext or in TLS, for as long as they may travel so.

mod both;

use std::fmt;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use mesh_core::state::ConnectionPermit;
use mesh_core::store::TargetEntry;
use mesh_core::tls::{Certificates, ForeignPeer, MaterialReader, Peer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::TlsStream;

pub(crate) use both::{Both, Half};

/// How a connection's bytes travel.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// As they are.
    Plaintext(TcpStream),
    /// In TLS, after the handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Bytes {
    fn socket(&self) -> &TcpStream {
        match self {
            Bytes::Plaintext(socket) => socket,
            Bytes::Tls(stream) => stream.get_ref().0,
        }
    }
}

/// A connection's bytes, for as long as they may travel. From then on every use of them is an error, and the peer sees the
/// end of the connection.
pub(crate) struct Io {
    bytes: Bytes,
    forbidden: Both<Arc<str>>,
    /// Why they may not travel any more.
    reason: Option<Arc<str>>,
    retired: Retired,
    /// Runs until the connection is too old.
    ages: Option<Pin<Box<Sleep>>>,
    /// Its place among the connections of its cluster.
    permit: Option<ConnectionPermit>,
    /// What was read before, to be read first.
    first: bytes::Bytes,
    /// Where a gateway sends it, where nobody looks into it.
    onward: Option<Arc<TargetEntry>>,
}

/// Whether a connection should carry no new request: it ends soon.
#[derive(Clone, Debug, Default)]
pub(crate) struct Retired(Arc<AtomicBool>);

impl Retired {
    #[inline]
    pub(crate) fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How long the answers that are on their way may take when nobody trusted vouches for their server any more: they were
/// asked for when it was trusted, and a rotation of roots is to fail nothing.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Waits until a connection that will end at `end` should be replaced by another one.
pub(crate) async fn ends_soon(end: SystemTime) {
    let retirement = retirement(SystemTime::now(), end);
    let left = || retirement.duration_since(SystemTime::now()).ok().filter(|left| !left.is_zero());
    while let Some(left) = left() {
        tokio::time::sleep(left.min(LONGEST_LOOK)).await;
    }
}

/// When to retire a connection that was made at `now` and will end at `end`: with a tenth of its time left for the
/// requests that it carries then.
fn retirement(now: SystemTime, end: SystemTime) -> SystemTime {
    now + end.duration_since(now).unwrap_or_default().mul_f64(0.9)
}

impl Io {
    /// Bytes that may travel until `forbidden` says why they may not. Whoever reads or writes is woken then.
    pub(crate) fn new(bytes: Bytes, forbidden: impl Future<Output = Arc<str>> + Send + 'static) -> Self {
        let (forbidden, retired) = (Both::new(forbidden), Retired::default());
        let first = bytes::Bytes::new();
        Io { bytes, forbidden, reason: None, retired, ages: None, permit: None, first, onward: None }
    }

    /// The same, where this was read before, and is to be read first.
    pub(crate) fn begun_with(mut self, first: impl Into<bytes::Bytes>) -> Self {
        self.first = first.into();
        self
    }

    /// The same, which a gateway sends on as it is.
    pub(crate) fn going_to(mut self, onward: Option<Arc<TargetEntry>>) -> Self {
        self.onward = onward;
        self
    }

    /// Where a gateway sends it, where nobody looks into it.
    pub(crate) fn onward(&self) -> Option<&Arc<TargetEntry>> {
        self.onward.as_ref()
    }

    /// Retires the connection after this time.
    pub(crate) fn retire_in(&mut self, time: Duration) {
        self.ages = Some(Box::pin(tokio::time::sleep(time)));
    }

    /// Keeps the connection's place among those of its cluster as long as it lives.
    pub(crate) fn hold(&mut self, permit: ConnectionPermit) {
        self.permit = Some(permit);
    }

    /// The same for a client's connection, which ends in three ways: it retires once it is `replaceable`; once the peer is
    /// `distrusted` it retires at once, and the answers that are on their way have a moment left; once it is `unwanted`
    /// nothing travels any more.
    pub(crate) fn of_client(
        bytes: Bytes,
        replaceable: impl Future<Output = ()> + Send + 'static,
        distrusted: impl Future<Output = Arc<str>> + Send + 'static,
        unwanted: impl Future<Output = Arc<str>> + Send + 'static,
    ) -> Self {
        let retired = Retired::default();
        let told = retired.clone();
        let ends = async move {
            let mut distrusted = pin!(distrusted);
            let reason = tokio::select! {
                biased;
                reason = &mut distrusted => reason,
                () = replaceable => {
                    told.set();
                    distrusted.await
                }
            };
            told.set();
            tokio::time::sleep(LAST_ANSWERS).await;
            reason
        };
        let forbidden = async move {
            tokio::select! {
                biased;
                reason = unwanted => reason,
                reason = ends => reason,
            }
        };
        Io { retired, ..Io::new(bytes, forbidden) }
    }

    /// Whether it should be used for something new, now and later.
    pub(crate) fn retired(&self) -> &Retired {
        &self.retired
    }

    /// Whether the peer has closed its side, by what the kernel has. Pending while nothing is to be read.
    pub(crate) fn poll_has_ended(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut byte = [0];
        let count = ready!(self.bytes.socket().poll_peek(cx, &mut ReadBuf::new(&mut byte)))?;
        Poll::Ready(Ok(count == 0))
    }

    /// The bytes, if they may travel.
    #[inline]
    fn allowed(&mut self, cx: &mut Context<'_>, half: Half) -> io::Result<&mut Bytes> {
        let is_as_before = self.ages.is_none() && self.reason.is_none() && self.forbidden.is_quiet(cx, half);
        if !is_as_before {
            self.look(cx, half)?;
        }
        Ok(&mut self.bytes)
    }

    /// Looks whether they still may travel.
    #[cold]
    fn look(&mut self, cx: &mut Context<'_>, half: Half) -> io::Result<()> {
        if let Some(ages) = &mut self.ages
            && ages.as_mut().poll(cx).is_ready()
        {
            self.retired.set();
            self.ages = None;
        }
        if self.reason.is_none()
            && let Poll::Ready(reason) = self.forbidden.poll(cx, half)
        {
            tracing::debug!(%reason, "a connection is closed that may not go on");
            // Whoever holds it may take his time.
            _ = SockRef::from(self.bytes.socket()).shutdown(Shutdown::Both);
            self.reason = Some(reason);
        }
        match &self.reason {
            None => Ok(()),
            Some(reason) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, Arc::clone(reason).to_string())),
        }
    }
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io").field("bytes", &self.bytes).field("reason", &self.reason).finish_non_exhaustive()
    }
}

/// The longest time until a peer's certificate is looked at again, should the clock be set meanwhile.
const LONGEST_LOOK: Duration = Duration::from_secs(600);

/// Waits until the handshake with a peer would not succeed any more, and tells why: nobody trusted has signed what it
/// showed, or it has expired.
pub(crate) async fn distrusted(mut peer: Peer, certificates: Arc<Certificates>) -> Arc<str> {
    let mut trusted = certificates.trusted();
    loop {
        let present = Arc::clone(&trusted.borrow_and_update());
        let now = SystemTime::now();
        if let Err(invalid) = peer.check(&present, now) {
            return invalid.to_string().into();
        }
        let left = peer.next_check().and_then(|next| next.duration_since(now).ok());
        tokio::select! {
            // An error would say that the sender is gone, which is `certificates`.
            _ = trusted.changed() => {}
            () = tokio::time::sleep(left.unwrap_or(LONGEST_LOOK).min(LONGEST_LOOK)) => {}
        }
    }
}

/// How often the files are looked at by which a connection was secured.
const LOOK: Duration = Duration::from_secs(2);

/// The same of a server outside of the mesh: files say who vouches for it, and who is revoked.
pub(crate) async fn outdated(mut peer: ForeignPeer, reader: Arc<MaterialReader>) -> Arc<str> {
    loop {
        tokio::time::sleep(LOOK).await;
        let (reader, tls) = (Arc::clone(&reader), Arc::clone(peer.tls()));
        let now = SystemTime::now();
        // All connections share a look.
        let looked = tokio::task::spawn_blocking(move || reader.recent(&tls.material, LOOK / 2, now)).await;
        // What cannot be read any more was good when the connection was made.
        let Ok(Ok(trust)) = looked else { continue };
        if let Err(invalid) = peer.check(&trust, now) {
            return invalid.to_string().into();
        }
    }
}

impl AsyncRead for Io {
    #[inline]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            self.allowed(cx, Half::Reader)?;
            let most = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first.split_to(most));
            return Poll::Ready(Ok(()));
        }
        match self.allowed(cx, Half::Reader)? {
            Bytes::Plaintext(io) => Pin::new(io).poll_read(cx, buf),
            Bytes::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.allowed(cx, Half::Writer)? {
            Bytes::Plaintext(io) => Pin::new(io).poll_write(cx, buf),
            Bytes::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.allowed(cx, Half::Writer)? {
            Bytes::Plaintext(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Bytes::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        match &self.bytes {
            Bytes::Plaintext(io) => io.is_write_vectored(),
            Bytes::Tls(io) => io.is_write_vectored(),
        }
    }

    /// hyper calls it each time it runs, also while it neither reads nor writes: that is how it learns of the end.
    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.allowed(cx, Half::Writer)? {
            Bytes::Plaintext(io) => Pin::new(io).poll_flush(cx),
            Bytes::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.allowed(cx, Half::Writer) {
            Ok(Bytes::Plaintext(io)) => Pin::new(io).poll_shutdown(cx),
            Ok(Bytes::Tls(io)) => Pin::new(io).poll_shutdown(cx),
            // It is.
            Err(_) => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_retires_with_a_tenth_of_its_time_left() {
        let now = SystemTime::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(retirement(now, after(1000)), after(900));
        assert_eq!(retirement(after(1), now), after(1), "it has ended");
    }
}
