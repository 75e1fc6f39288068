//! Bodies that the mesh sends: any body, without a box where it is complete.

mod copied;
pub(crate) mod length;
mod upload;

use std::any::Any;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use mesh_core::request_info::{Messages, RequestInfo};
use pin_project_lite::pin_project;

pub(crate) use copied::{CopyOf, Growing, NoCopy, Whole};

use copied::Copied;
use upload::{Reader, Upload};

pub(crate) use upload::{Started, started, while_starting};

/// An error of somebody else's body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body. One that is empty or complete is held as bytes and can be sent again; any other is streamed, and
/// can be sent again as long as nobody has read more of it than 64 KiB, where its route has a retry policy.
///
/// ```
/// use http_body::Body as _;
/// use mesh_tower::body::Body;
///
/// let request = http::Request::post("http://orders/").body(Body::from(r#"{"item": "book"}"#))?;
/// assert_eq!(request.body().size_hint().exact(), Some(16));
/// # Ok::<(), http::Error>(())
/// ```
pub struct Body(Kind);

enum Kind {
    Full(Bytes),
    Other(Other),
}

/// By itself, so that a body is no larger than `Bytes`: a request is moved several times on its way.
enum Other {
    Stream(Streamed),
    /// Shared with the [`Replay`] of its request.
    Shared(Reader),
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

    /// Whether its bytes may be yet to come.
    #[inline]
    pub(crate) fn is_streamed(&self) -> bool {
        matches!(self.0, Kind::Other(_))
    }

    /// Makes a copy of what can be sent again, and a way to get back what cannot be copied; what is read of a stream is kept
    /// where `is_kept` says so, as far as there is room. Over HTTP/2 it goes out in pieces where it is large.
    pub(crate) fn replay(&mut self, is_http2: bool, is_kept: bool) -> Replay {
        if let Kind::Full(bytes) = &self.0
            && !(is_http2 && bytes.len() > upload::PIECE)
        {
            return Replay::Bytes(bytes.clone());
        }
        match std::mem::replace(&mut self.0, DONE) {
            Kind::Full(bytes) => {
                let full = Full::new(bytes.clone()).map_err(|never| match never {});
                let reader = Reader::new(Box::pin(full), true, false);
                let replay = Replay::Pieces(Box::new((bytes, reader.upload())));
                self.0 = Kind::Other(Other::Shared(reader));
                replay
            }
            Kind::Other(Other::Stream(stream)) => self.share(Reader::new(stream, is_http2, is_kept)),
            Kind::Other(Other::Shared(reader)) => {
                reader.set_in_pieces(is_http2);
                self.share(reader)
            }
            Kind::Other(Other::Done) => Replay::Gone,
        }
    }

    fn share(&mut self, reader: Reader) -> Replay {
        let upload = reader.upload();
        self.0 = Kind::Other(Other::Shared(reader));
        Replay::Stream(upload)
    }

    /// A copy, with so many bytes at most where it is made piece by piece.
    pub(crate) fn copied(&mut self, most: usize) -> CopyOf {
        match &self.0 {
            Kind::Full(bytes) => CopyOf::Whole(bytes.clone()),
            Kind::Other(_) => {
                let (around, copy) = Copied::around(most);
                self.map_stream(around);
                CopyOf::Growing(copy)
            }
        }
    }

    /// A body that is known, with the trailers that it ends with.
    pub(crate) fn of_frames(data: impl IntoIterator<Item = Bytes>, trailers: Option<HeaderMap>) -> Body {
        let frames = data.into_iter().map(Frame::data).chain(trailers.map(Frame::trailers));
        Body::new(Frames(frames.collect()))
    }

    /// Puts another stream around one that nobody has read from.
    fn map_stream(&mut self, change: impl FnOnce(Streamed) -> Streamed) {
        match std::mem::replace(&mut self.0, DONE) {
            Kind::Other(Other::Stream(stream)) => self.0 = Kind::Other(Other::Stream(change(stream))),
            other => {
                if let Kind::Other(Other::Shared(reader)) = &other {
                    reader.map(change);
                }
                self.0 = other;
            }
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

/// What a request keeps of its body while it is on its way: to send it again, or to end it.
#[derive(Default)]
pub(crate) enum Replay {
    Bytes(Bytes),
    /// Complete, and sent as a stream.
    Pieces(Box<(Bytes, Upload)>),
    Stream(Upload),
    #[default]
    Gone,
}

impl Replay {
    /// The body once more; `None` if some of it is gone.
    pub(crate) fn take(self) -> Option<Body> {
        match self {
            Replay::Bytes(bytes) => Some(Body(Kind::Full(bytes))),
            Replay::Pieces(sent) => {
                let (bytes, upload) = *sent;
                upload.cut_off();
                Some(Body(Kind::Full(bytes)))
            }
            Replay::Stream(upload) => Some(Body(Kind::Other(Other::Shared(upload.restart()?)))),
            Replay::Gone => None,
        }
    }

    /// The body for another try beside the one that sends it; `None` if not all of it is known.
    pub(crate) fn beside(&self) -> Option<Body> {
        match self {
            Replay::Bytes(bytes) => Some(Body(Kind::Full(bytes.clone()))),
            Replay::Pieces(sent) => Some(Body(Kind::Full(sent.0.clone()))),
            Replay::Stream(upload) => {
                let (data, trailers) = upload.copy()?;
                Some(Body::of_frames(data, trailers))
            }
            Replay::Gone => None,
        }
    }

    /// It will not be sent again.
    #[inline]
    pub(crate) fn forget(&mut self) {
        match self {
            Replay::Bytes(_) => *self = Replay::Gone,
            Replay::Pieces(sent) => *self = Replay::Stream(sent.1.clone()),
            Replay::Stream(upload) => upload.stop_keeping(),
            Replay::Gone => {}
        }
    }

    pub(crate) fn sent_at_once(&self, is_grpc: bool) -> (u64, Messages) {
        let mut messages = Messages::default();
        match self {
            Replay::Bytes(bytes) => {
                if is_grpc {
                    messages.pass(bytes);
                }
                (bytes.len() as u64, messages)
            }
            Replay::Stream(_) | Replay::Pieces(_) | Replay::Gone => {
                if let Some(upload) = self.upload() {
                    upload.count_messages(is_grpc);
                }
                (0, messages)
            }
        }
    }

    pub(crate) fn streamed(&self) -> Option<(u64, Messages)> {
        self.upload().map(Upload::sent)
    }

    /// What sends it as a stream, where anything does.
    #[inline]
    fn upload(&self) -> Option<&Upload> {
        match self {
            Replay::Stream(upload) => Some(upload),
            Replay::Pieces(sent) => Some(&sent.1),
            Replay::Bytes(_) | Replay::Gone => None,
        }
    }

    /// Ends a stream that is still being sent. Whether there was one.
    #[inline]
    pub(crate) fn cut_off(&self) -> bool {
        self.upload().is_some_and(Upload::cut_off)
    }
}

/// Frames that are known, one after the other.
struct Frames(VecDeque<Frame<Bytes>>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
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

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Body::from(Bytes::from(bytes))
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Body::from(Bytes::from(text))
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Body::from(Bytes::from_static(text.as_bytes()))
    }
}

impl From<&'static [u8]> for Body {
    fn from(bytes: &'static [u8]) -> Self {
        Body::from(Bytes::from_static(bytes))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = DONE;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Other(Other::Stream(stream)) => stream.as_mut().poll_frame(cx),
            Kind::Other(Other::Shared(reader)) => reader.poll_frame(cx),
            Kind::Other(Other::Done) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Other(Other::Stream(stream)) => stream.is_end_stream(),
            Kind::Other(Other::Shared(reader)) => reader.is_end_stream(),
            Kind::Other(Other::Done) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Other(Other::Stream(stream)) => stream.size_hint(),
            Kind::Other(Other::Shared(reader)) => reader.size_hint(),
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
        info.note_response_data(data);
    } else if let Some(trailers) = frame.trailers_ref() {
        info.note_trailers(trailers);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body::Body as _;
    use http_body_util::StreamBody;

    use super::upload::PIECE;
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
        let replay = body.replay(false, false);
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
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, BoxError>>(3);
        let mut body = Body::new(StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver)));
        sender.try_send(Ok(Frame::data(Bytes::from_static(b"a")))).unwrap();
        assert!(body.frame().now_or_never().expect("ready").is_some());
        assert!(!body.is_end_stream());
        assert!(body.frame().now_or_never().is_none(), "nothing is there yet");
        sender.try_send(Ok(Frame::data(Bytes::from_static(b"b")))).unwrap();
        sender.try_send(Err("broken".into())).unwrap();
        assert!(body.frame().now_or_never().expect("ready").unwrap().is_ok());
        assert!(!body.is_end_stream());
        assert_eq!(body.frame().now_or_never().expect("ready").unwrap().unwrap_err().to_string(), "broken");
    }

    #[test]
    fn a_stream_can_be_sent_again_only_while_nobody_has_read_it() {
        let mut body = stream(&["a", "b"]);
        let replay = body.replay(false, false);
        drop(body);
        assert_eq!(collect(replay.take().unwrap()), "ab");

        let mut body = stream(&["a", "b"]);
        let replay = body.replay(false, false);
        body.frame().now_or_never();
        assert!(replay.take().is_none());
        assert_eq!(collect(body), "b");
    }

    #[test]
    fn a_stream_that_is_kept_can_be_sent_again_however_much_of_it_was_read() {
        for read in 0..4 {
            let mut body = stream(&["a", "b"]);
            let mut replay = body.replay(false, true);
            for _ in 0..read {
                body.frame().now_or_never().expect("ready at once");
            }
            for _ in 0..2 {
                let mut again = replay.take().expect("it is kept");
                assert!(again.size_hint().lower() >= read.min(2), "{read}");
                replay = again.replay(false, true);
                assert_eq!(collect(again), "ab", "{read}");
            }
            let late = body.frame().now_or_never().expect("ready at once");
            assert!(late.is_some_and(|frame| frame.is_err()), "{read}: two tries read from it");
        }
    }

    #[test]
    fn more_than_there_is_room_for_is_sent_once() {
        let large = Bytes::from(vec![b'x'; super::upload::MOST_KEPT]);
        let frames = |count| {
            let frames = std::iter::repeat_n(large.clone(), count).map(|data| Ok::<_, BoxError>(Frame::data(data)));
            Body::new(StreamBody::new(futures_util::stream::iter(frames.collect::<Vec<_>>())))
        };
        for (count, is_kept) in [(1, true), (2, false)] {
            let mut body = frames(count);
            let replay = body.replay(false, true);
            assert_eq!(collect(body).len(), count * large.len());
            assert_eq!(replay.take().is_some(), is_kept);
        }
        let empty = std::iter::repeat_n(Bytes::new(), 5000).map(|data| Ok::<_, BoxError>(Frame::data(data)));
        let mut body = Body::new(StreamBody::new(futures_util::stream::iter(empty.collect::<Vec<_>>())));
        let replay = body.replay(false, true);
        collect(body);
        assert!(replay.take().is_none(), "each frame costs something");
    }

    #[test]
    fn what_a_try_asked_for_comes_to_the_next_one() {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, BoxError>>(3);
        let mut body = Body::new(StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver)));
        let replay = body.replay(false, true);
        sender.try_send(Ok(Frame::data(Bytes::from_static(b"a")))).unwrap();
        assert!(body.frame().now_or_never().is_some());
        assert!(body.frame().now_or_never().is_none(), "nothing more is there yet");
        let mut again = replay.take().unwrap();
        drop(body);
        assert!(again.frame().now_or_never().is_some());
        let (woken, waker) = flag_waker();
        assert!(Pin::new(&mut again).poll_frame(&mut Context::from_waker(&waker)).is_pending());
        sender.try_send(Ok(Frame::data(Bytes::from_static(b"b")))).unwrap();
        assert!(woken());
        drop(sender);
        assert_eq!(collect(again), "b");
    }

    #[test]
    fn a_stream_that_is_cut_off_ends_with_an_error_unless_it_was_over() {
        for read in 0..4 {
            let mut body = stream(&["a", "b"]);
            let replay = body.replay(false, false);
            for _ in 0..read {
                body.frame().now_or_never().expect("ready at once");
            }
            // With the last data it is known to be over.
            assert_eq!(replay.cut_off(), read < 2, "{read}");
            assert_eq!(body.is_end_stream(), read >= 2, "{read}");
            let next = body.frame().now_or_never().expect("ready at once");
            assert_eq!(next.map(|frame| frame.is_err()), (read < 2).then_some(true), "{read}");
        }
        let mut body = stream(&["a"]);
        let replay = body.replay(false, false);
        drop(body);
        assert!(!replay.cut_off(), "nobody sends it");
    }

    #[test]
    fn over_http2_large_frames_go_out_in_pieces_and_the_last_byte_by_itself() {
        let large = Bytes::from(vec![b'x'; 40_000]);
        let frames = futures_util::stream::iter([Ok::<_, BoxError>(Frame::data(large.clone()))]);
        for mut body in [Body::from(large.clone()), Body::new(StreamBody::new(frames))] {
            let _replay = body.replay(true, false);
            let mut lengths = Vec::new();
            while !body.is_end_stream() {
                let left = body.size_hint().lower() as usize;
                assert!(left == 0 || left + lengths.iter().sum::<usize>() == large.len());
                let frame = body.frame().now_or_never().expect("ready at once").unwrap().unwrap();
                lengths.push(frame.into_data().unwrap().len());
            }
            assert_eq!(lengths, [PIECE, PIECE, 40_000 - 2 * PIECE - 1, 1]);
        }
        let mut small = Body::from("small");
        small.replay(true, false);
        assert!(matches!(small.0, Kind::Full(_)));
    }

    #[test]
    fn a_large_frame_that_is_cut_off_does_not_pass_for_the_whole_body() {
        let frames = futures_util::stream::iter([Ok::<_, BoxError>(Frame::data(Bytes::from(vec![b'x'; 40_000])))]);
        let mut body = Body::new(StreamBody::new(frames));
        let replay = body.replay(true, true);
        body.frame().now_or_never().expect("ready at once").expect("a piece").expect("no error");
        assert!(replay.cut_off());
        assert!(body.frame().now_or_never().expect("ready at once").expect("no end").is_err());
    }

    #[test]
    fn whoever_waits_for_a_stream_is_woken_when_it_is_cut_off() {
        let pending = futures_util::stream::pending::<Result<Frame<Bytes>, BoxError>>();
        let mut body = Body::new(StreamBody::new(pending));
        let replay = body.replay(false, false);
        let (woken, waker) = flag_waker();
        assert!(Pin::new(&mut body).poll_frame(&mut Context::from_waker(&waker)).is_pending());
        assert!(replay.cut_off() && woken());
    }

    /// A waker, and whether it was woken.
    fn flag_waker() -> (impl Fn() -> bool, Waker) {
        struct Flag(std::sync::atomic::AtomicBool);
        impl std::task::Wake for Flag {
            fn wake(self: std::sync::Arc<Self>) {
                self.0.store(true, std::sync::atomic::Ordering::SeqCst);
            }
        }
        let flag = std::sync::Arc::new(Flag(false.into()));
        let waker = Waker::from(std::sync::Arc::clone(&flag));
        (move || flag.0.load(std::sync::atomic::Ordering::SeqCst), waker)
    }
}
