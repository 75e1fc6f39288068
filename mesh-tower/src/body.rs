//! Bodies that the mesh sends: any body, without a box where it is complete.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use http_body_util::{Empty, Full};
use mesh_core::request_info::RequestInfo;
use pin_project_lite::pin_project;

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
            Some(body) => Body(Kind::Other(Other::Stream(Box::pin(LookAhead { body, next: Next::Unknown })))),
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

pin_project! {
    /// Somebody else's body, asked for what follows as soon as it gave some data: many learn of their end only when asked
    /// once more (tonic's do), and the end then costs a frame and a write of its own, on HTTP/1.1 and HTTP/2 alike.
    struct LookAhead<B> {
        #[pin]
        body: B,
        next: Next,
    }
}

/// What follows the frame that was given last.
enum Next {
    Unknown,
    Frame(Result<Frame<Bytes>, BoxError>),
    End,
}

impl<B> LookAhead<B>
where
    B: http_body::Body<Error: Into<BoxError>>,
{
    fn ask(body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<Next> {
        let bytes = |mut data: B::Data| data.copy_to_bytes(data.remaining());
        body.poll_frame(cx).map(|frame| match frame {
            Some(frame) => Next::Frame(frame.map(|frame| frame.map_data(bytes)).map_err(Into::into)),
            None => Next::End,
        })
    }
}

impl<B> http_body::Body for LookAhead<B>
where
    B: http_body::Body<Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        let frame = match std::mem::replace(this.next, Next::Unknown) {
            Next::Unknown => ready!(Self::ask(this.body.as_mut(), cx)),
            known => known,
        };
        let Next::Frame(frame) = frame else {
            *this.next = Next::End;
            return Poll::Ready(None);
        };
        if frame.as_ref().is_ok_and(Frame::is_data)
            && let Poll::Ready(next) = Self::ask(this.body, cx)
        {
            *this.next = next;
        }
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        match self.next {
            Next::Unknown => self.body.is_end_stream(),
            Next::Frame(_) => false,
            Next::End => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        if let Next::Frame(Ok(frame)) = &self.next
            && let Some(data) = frame.data_ref()
        {
            let known = data.len() as u64;
            if let Some(upper) = hint.upper() {
                hint.set_upper(upper.saturating_add(known));
            }
            hint.set_lower(hint.lower().saturating_add(known));
        }
        hint
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

/// Notes a frame of a response's body.
pub(crate) fn note_frame(info: &mut RequestInfo, frame: &Frame<Bytes>) {
    if let Some(data) = frame.data_ref() {
        info.note_response_bytes(data.len());
    } else if let Some(trailers) = frame.trailers_ref() {
        info.note_trailers(trailers);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body::Body as _;
    use http_body_util::{BodyExt, StreamBody};

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
    fn the_last_data_of_a_stream_is_known_to_be_the_last() {
        let mut body = stream(&["a", "bc"]);
        let mut next = || {
            let before = body.size_hint().lower();
            let frame =
                body.frame().now_or_never().expect("ready at once").map(|frame| frame.unwrap().into_data().unwrap());
            (before, frame, body.is_end_stream())
        };
        assert_eq!(next(), (0, Some("a".into()), false));
        assert_eq!(next(), (2, Some("bc".into()), true));
        assert_eq!(next(), (0, None, true));
    }

    #[test]
    fn what_is_not_ready_is_asked_for_later_and_an_error_keeps_its_place() {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<Result<Frame<Bytes>, BoxError>>();
        let mut body = Body::new(StreamBody::new(tokio_stream::wrappers::UnboundedReceiverStream::new(receiver)));
        sender.send(Ok(Frame::data(Bytes::from_static(b"a")))).unwrap();
        assert!(body.frame().now_or_never().expect("ready").is_some());
        assert!(!body.is_end_stream());
        assert!(body.frame().now_or_never().is_none(), "nothing is there yet");
        sender.send(Ok(Frame::data(Bytes::from_static(b"b")))).unwrap();
        sender.send(Err("broken".into())).unwrap();
        assert!(body.frame().now_or_never().expect("ready").unwrap().is_ok());
        assert!(!body.is_end_stream());
        assert_eq!(body.frame().now_or_never().expect("ready").unwrap().unwrap_err().to_string(), "broken");
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
