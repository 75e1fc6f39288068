//! Bodies: what the mesh sends (any body, without a box where it is complete) and what it answers with.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use mesh_core::error::{ErrorKind, MeshError};
use tokio::time::Sleep;

/// An error of somebody else's body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body. One that is empty or complete is held as bytes and can be sent again; any other is
/// streamed.
pub struct Body(Kind);

enum Kind {
    Full(Bytes),
    Other(Other),
}

/// By itself, so that a body is no larger than `Bytes`: a request is moved several times on its way.
enum Other {
    Stream(Streamed),
    /// Shared with a [`Replay`], which takes the stream back if nobody read from it.
    Shared(Arc<Mutex<Option<Streamed>>>),
    Done,
}

const _: () = assert!(size_of::<Body>() == size_of::<Bytes>());
const DONE: Kind = Kind::Other(Other::Done);

type Streamed = Pin<Box<dyn http_body::Body<Data = Bytes, Error = BoxError> + Send>>;

impl Body {
    /// No body.
    pub fn empty() -> Self {
        Body(Kind::Full(Bytes::new()))
    }

    /// Any body. Full and empty ones of `http-body-util` cost no allocation.
    pub fn new<B>(body: B) -> Self
    where
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        if body.is_end_stream() {
            return Body::empty();
        }
        let mut body = Some(body);
        let any: &mut dyn Any = &mut body;
        if let Some(full) = any.downcast_mut::<Option<Full<Bytes>>>().and_then(Option::take) {
            return Body::from(full);
        }
        if any.downcast_ref::<Option<Empty<Bytes>>>().is_some() {
            return Body::empty();
        }
        if let Some(body) = any.downcast_mut::<Option<Body>>().and_then(Option::take) {
            return body;
        }
        match body {
            Some(body) => {
                let bytes = |mut data: B::Data| data.copy_to_bytes(data.remaining());
                Body(Kind::Other(Other::Stream(Box::pin(
                    body.map_frame(move |frame| frame.map_data(bytes)).map_err(Into::into),
                ))))
            }
            None => Body::empty(),
        }
    }

    /// Makes a copy of what can be sent again, and a way to get back what cannot be copied.
    pub(crate) fn replay(&mut self) -> Replay {
        match std::mem::replace(&mut self.0, DONE) {
            Kind::Full(bytes) => {
                self.0 = Kind::Full(bytes.clone());
                Replay::Bytes(bytes)
            }
            Kind::Other(Other::Stream(stream)) => {
                let shared = Arc::new(Mutex::new(Some(stream)));
                self.0 = Kind::Other(Other::Shared(Arc::clone(&shared)));
                Replay::Unread(shared)
            }
            Kind::Other(Other::Shared(shared)) => {
                self.0 = Kind::Other(Other::Shared(Arc::clone(&shared)));
                Replay::Unread(shared)
            }
            Kind::Other(Other::Done) => Replay::Gone,
        }
    }
}

/// A body that may have to be sent again.
#[derive(Default)]
pub(crate) enum Replay {
    Bytes(Bytes),
    Unread(Arc<Mutex<Option<Streamed>>>),
    #[default]
    Gone,
}

impl Replay {
    /// The body once more; `None` if any of it was read.
    pub(crate) fn take(self) -> Option<Body> {
        match self {
            Replay::Bytes(bytes) => Some(Body(Kind::Full(bytes))),
            Replay::Unread(shared) => {
                let stream = shared.lock().unwrap_or_else(PoisonError::into_inner).take()?;
                Some(Body(Kind::Other(Other::Stream(stream))))
            }
            Replay::Gone => None,
        }
    }
}

impl From<Full<Bytes>> for Body {
    fn from(mut full: Full<Bytes>) -> Self {
        // A full body is ready at once and in one piece.
        let frame = http_body::Body::poll_frame(Pin::new(&mut full), &mut Context::from_waker(Waker::noop()));
        match frame {
            Poll::Ready(Some(Ok(frame))) => Body(Kind::Full(frame.into_data().unwrap_or_default())),
            _ => Body::empty(),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Body(Kind::Full(bytes))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Kind::Other(Other::Shared(shared)) = &self.0 {
            // The first read: from here on the stream is this body's alone.
            let stream = shared.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.0 = stream.map_or(DONE, |stream| Kind::Other(Other::Stream(stream)));
        }
        match &mut self.0 {
            Kind::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = DONE;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Other(Other::Stream(stream)) => stream.as_mut().poll_frame(cx),
            Kind::Other(Other::Shared(_) | Other::Done) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Other(Other::Stream(stream)) => stream.is_end_stream(),
            Kind::Other(Other::Shared(_)) => false,
            Kind::Other(Other::Done) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Other(Other::Stream(stream)) => stream.size_hint(),
            Kind::Other(Other::Shared(shared)) => {
                let stream = shared.lock().unwrap_or_else(PoisonError::into_inner);
                stream.as_ref().map_or(SizeHint::default(), |stream| stream.size_hint())
            }
            Kind::Other(Other::Done) => SizeHint::with_exact(0),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Full(bytes) => write!(f, "Body({} bytes)", bytes.len()),
            Kind::Other(Other::Stream(_) | Other::Shared(_)) => f.write_str("Body(stream)"),
            Kind::Other(Other::Done) => f.write_str("Body(done)"),
        }
    }
}

/// A response's body. While it is read, the request counts as in flight and its connection is in use; both end
/// with the last frame, or when it is dropped.
pub struct ResponseBody {
    content: Content,
    guard: crate::client::Guard,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// The failure of a response that takes too long.
pub(crate) fn too_late() -> MeshError {
    MeshError::new(ErrorKind::Timeout, "the response did not end by the deadline")
}

enum Content {
    Incoming(Incoming),
    Full(Bytes),
}

impl ResponseBody {
    /// A body that the mesh answers with itself.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        ResponseBody { content: Content::Full(bytes.into()), guard: Default::default(), deadline: None }
    }

    #[inline]
    pub(crate) fn incoming(
        incoming: Incoming,
        mut guard: crate::client::Guard,
        deadline: Option<Pin<Box<Sleep>>>,
    ) -> Self {
        let ended = http_body::Body::is_end_stream(&incoming);
        if ended {
            guard.finished();
        }
        let deadline = deadline.filter(|_| !ended);
        ResponseBody { content: Content::Incoming(incoming), guard, deadline }
    }

    /// When a response has to have ended.
    pub(crate) fn until(deadline: std::time::Instant) -> Pin<Box<Sleep>> {
        Box::pin(tokio::time::sleep_until(deadline.into()))
    }

    /// The bytes of a body that the mesh answers with itself; of any other, none.
    pub(crate) fn into_bytes(self) -> Bytes {
        match self.content {
            Content::Full(bytes) => bytes,
            Content::Incoming(_) => Bytes::new(),
        }
    }

    fn finish(&mut self) {
        self.guard.finished();
        self.deadline = None;
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = MeshError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, MeshError>>> {
        let body = &mut *self;
        // First, so that a reader who always finds something to read is not exempt.
        if body.deadline.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready()) {
            body.content = Content::Full(Bytes::new());
            body.guard.failed();
            body.finish();
            return Poll::Ready(Some(Err(too_late())));
        }
        let frame = match &mut body.content {
            Content::Full(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Content::Full(bytes) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Content::Incoming(incoming) => ready!(Pin::new(incoming).poll_frame(cx)),
        };
        Poll::Ready(match frame {
            None => {
                body.finish();
                None
            }
            Some(Ok(frame)) => {
                if http_body::Body::is_end_stream(body) {
                    body.finish();
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                body.guard.failed();
                body.finish();
                let lost = MeshError::new(ErrorKind::ConnectionLost, "the response ended early").caused_by(error);
                Some(Err(lost))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Incoming(incoming) => incoming.is_end_stream(),
            Content::Full(bytes) => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Incoming(incoming) => incoming.size_hint(),
            Content::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseBody")
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body::Body as _;
    use http_body_util::StreamBody;

    use super::*;

    fn collect(body: Body) -> Bytes {
        body.collect().now_or_never().expect("ready at once").expect("no error").to_bytes()
    }

    fn stream(parts: &[&'static str]) -> Body {
        let frames: Vec<_> =
            parts.iter().map(|part| Ok::<_, BoxError>(Frame::data(Bytes::from_static(part.as_bytes())))).collect();
        Body::new(StreamBody::new(futures_util::stream::iter(frames)))
    }

    #[test]
    fn a_complete_body_keeps_its_length_and_can_be_sent_again() {
        let mut body = Body::new(Full::new(Bytes::from_static(b"abc")));
        assert_eq!(body.size_hint().exact(), Some(3));
        let replay = body.replay();
        assert_eq!(collect(body), "abc");
        assert_eq!(collect(replay.take().unwrap()), "abc");
        assert!(Body::new(Empty::<Bytes>::new()).is_end_stream());
    }

    #[test]
    fn a_stream_can_be_sent_again_only_while_nobody_has_read_it() {
        let mut body = stream(&["a", "b"]);
        let replay = body.replay();
        drop(body);
        assert_eq!(collect(replay.take().unwrap()), "ab");

        let mut body = stream(&["a", "b"]);
        let replay = body.replay();
        body.frame().now_or_never();
        assert!(replay.take().is_none());
        assert_eq!(collect(body), "b");
    }
}
