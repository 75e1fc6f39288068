//! A streamed request body while it is on its way. Its request can send it once more as long as nobody has read from it,
//! or where what was read is kept ([`MOST_KEPT`]), and ends it when the response has ended: nobody waits for it any more, and a peer that does not read would hold it, its
//! task and its connection for ever.
//!
//! Over HTTP/1.1 the connection ends with it. Over HTTP/2 hyper sends it in a task of its own, which does not ask for more
//! as long as the peer opens no window: that task is ended, too ([`Upload::bound`]). Which upload a task is for, hyper
//! does not say; but it makes the task where it has just asked for the first frame ([`while_starting`]). What hyper has in
//! hand it gives to the connection whole as soon as there is room for a byte, and with the last of it the task is over. So a
//! large frame goes out in pieces, and the last byte by itself: the task lasts until the window has taken the others.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::request_info::Messages;
use pin_project_lite::pin_project;
use smallvec::SmallVec;

use super::{BoxError, Streamed};

/// The most of a frame that goes out at a time over HTTP/2: as much as a DATA frame holds unless peers agree on more.
pub(super) const PIECE: usize = 16 << 10;

/// The most of a body that is kept for another try. Istio's sidecars keep 32 KiB.
pub(super) const MOST_KEPT: usize = 64 << 10;
/// The most frames of a body that are kept: each costs something, however small it is.
const MOST_FRAMES: usize = 1024;

/// The stream, as one try of its request knows it.
#[derive(Clone)]
pub(crate) struct Upload {
    state: Arc<Mutex<State>>,
    /// Which of the tries.
    turn: u32,
}

struct State {
    /// Elsewhere while it is polled: whoever polls it may let go of the request.
    stream: Option<Streamed>,
    /// Whether the stream has said that it has come to its end.
    has_ended: bool,
    /// The try that reads. Those before it read no more.
    turn: u32,
    /// What was read, for the next try; `None` where nobody wants it, or where it is too much.
    kept: Option<Kept>,
    /// How much of what is kept this try has read.
    had: usize,
    /// What came for a try that was over by then.
    handed: Option<Received>,
    was_read: bool,
    /// Read to its end, or dropped by whoever was to send it.
    is_over: bool,
    is_cut: bool,
    /// Whether whoever sends it has a task, which may hold what was read.
    has_task: bool,
    /// Whether large frames go out in pieces.
    in_pieces: bool,
    /// What is left of a frame.
    rest: Bytes,
    waker: Option<Waker>,
    /// How many bytes the present try has read, and messages of gRPC, where these are counted.
    sent: u64,
    messages: Messages,
    is_grpc: bool,
}

/// What a stream gave; `None` at its end.
type Received = Option<Result<Frame<Bytes>, BoxError>>;

/// What was read of a stream, whole.
#[derive(Default)]
struct Kept {
    frames: SmallVec<[Bytes; 1]>,
    bytes: usize,
    trailers: Option<Box<HeaderMap>>,
}

impl Kept {
    /// Takes a frame in. Whether there was room for it.
    fn take(&mut self, frame: &Frame<Bytes>) -> bool {
        if let Some(data) = frame.data_ref() {
            self.bytes = self.bytes.saturating_add(data.len());
            self.frames.push(data.clone());
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(Box::new(trailers.clone()));
        }
        self.bytes <= MOST_KEPT && self.frames.len() <= MOST_FRAMES
    }

    fn len(&self) -> usize {
        self.frames.len() + usize::from(self.trailers.is_some())
    }

    fn get(&self, at: usize) -> Option<Frame<Bytes>> {
        match self.frames.get(at) {
            Some(data) => Some(Frame::data(data.clone())),
            None if at == self.frames.len() => self.trailers.as_deref().cloned().map(Frame::trailers),
            None => None,
        }
    }

    /// How many bytes there are from this frame on.
    fn bytes_from(&self, at: usize) -> usize {
        self.frames.iter().skip(at).map(Bytes::len).sum()
    }
}

thread_local! {
    static IS_STARTING: Cell<bool> = const { Cell::new(false) };
    /// The upload that was read from last, unless a task was made for it.
    static STARTED: RefCell<Option<Started>> = const { RefCell::new(None) };
}

/// The upload whose first frames a task is made to send.
pub(crate) enum Started {
    /// There may be more of it.
    Begun(Upload),
    /// All of it was read.
    Over,
}

/// Polls what sends the first frames of uploads, and makes tasks for the rest: [`started`] says for which.
pub(crate) fn while_starting<R>(poll: impl FnOnce() -> R) -> R {
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            IS_STARTING.set(false);
        }
    }
    IS_STARTING.set(true);
    let _end = End;
    poll()
}

/// The upload that a task is made for, if it is made for one.
pub(crate) fn started() -> Option<Started> {
    if IS_STARTING.get() { STARTED.take() } else { None }
}

impl Upload {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream once more from its beginning, for another try: if nobody has read from it, or if all that was read is
    /// kept. The try before reads no more.
    pub(super) fn restart(&self) -> Option<Reader> {
        let mut state = self.lock();
        if state.turn != self.turn || state.is_cut || (state.was_read && state.kept.is_none()) {
            return None;
        }
        state.turn += 1;
        (state.had, state.rest, state.is_over, state.has_task) = (0, Bytes::new(), false, false);
        (state.sent, state.messages) = (0, Messages::default());
        let (turn, waker) = (state.turn, state.waker.take());
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Some(Reader(Upload { state: Arc::clone(&self.state), turn }))
    }

    /// All of it by itself, if it has come to its end and is kept: the try that sends it goes on.
    pub(super) fn copy(&self) -> Option<(Vec<Bytes>, Option<HeaderMap>)> {
        let state = self.lock();
        let kept = state.kept.as_ref().filter(|_| state.has_ended() && !state.is_cut && state.turn == self.turn)?;
        Some((kept.frames.to_vec(), kept.trailers.as_deref().cloned()))
    }

    /// Keeps nothing of it any more: there will be no other try.
    pub(super) fn stop_keeping(&self) {
        let mut state = self.lock();
        // What this try has not read yet goes on being read.
        let is_replaying = state.kept.as_ref().is_some_and(|kept| state.had < kept.len());
        if is_replaying {
            return;
        }
        let kept = state.kept.take();
        // Unread, it would have been kept by whoever was to send it.
        let stream = if kept.is_some() && state.is_over { state.stream.take() } else { None };
        drop(state);
        drop((kept, stream));
    }

    /// Whether messages of gRPC are counted in it.
    pub(super) fn count_messages(&self, is_grpc: bool) {
        self.lock().is_grpc = is_grpc;
    }

    /// How many bytes of it the present try has sent, and messages of gRPC.
    pub(super) fn sent(&self) -> (u64, Messages) {
        let state = self.lock();
        (state.sent, state.messages)
    }

    /// Ends it. Whether there was something to end.
    pub(super) fn cut_off(&self) -> bool {
        let mut state = self.lock();
        if state.is_over && !state.has_task {
            return false;
        }
        state.is_cut = true;
        state.rest = Bytes::new();
        let (stream, kept, waker) = (state.stream.take(), state.kept.take(), state.waker.take());
        let handed = state.handed.take();
        drop(state);
        // What belongs to the application is dropped outside of the lock.
        drop((stream, kept, handed));
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// The task that sends it, until it is cut off.
    pub(crate) fn bound<F: Future<Output = ()>>(self, task: F) -> impl Future<Output = ()> {
        Bound { task: Some(task), upload: self }
    }
}

pin_project! {
    struct Bound<F> {
        #[pin]
        task: Option<F>,
        upload: Upload,
    }
}

impl<F: Future<Output = ()>> Future for Bound<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let is_cut = {
            let mut state = this.upload.lock();
            let is_mine = state.turn == this.upload.turn;
            if is_mine {
                state.wake_by(cx);
            }
            state.is_cut || !is_mine
        };
        if let Some(task) = this.task.as_mut().as_pin_mut().filter(|_| !is_cut) {
            ready!(task.poll(cx));
        }
        this.task.set(None);
        Poll::Ready(())
    }
}

impl State {
    /// Whether nothing follows what was read so far.
    fn is_at_end(&self) -> bool {
        let is_replaying = self.kept.as_ref().is_some_and(|kept| self.had < kept.len());
        !is_replaying && self.handed.is_none() && self.has_ended()
    }

    /// Whether the stream has nothing more to give.
    fn has_ended(&self) -> bool {
        self.has_ended || self.stream.as_ref().is_some_and(|stream| stream.is_end_stream())
    }

    /// The next frame that an earlier try has read.
    fn next_kept(&mut self) -> Option<Frame<Bytes>> {
        let frame = self.kept.as_ref()?.get(self.had)?;
        self.had += 1;
        Some(self.begin(frame))
    }

    /// What came of the stream, for whoever reads it now.
    fn receive(&mut self, received: Received) -> Received {
        match received {
            Some(Ok(frame)) => {
                if let Some(kept) = &mut self.kept {
                    let has_room = kept.take(&frame);
                    self.had = kept.len();
                    if !has_room {
                        self.kept = None;
                    }
                }
                Some(Ok(self.begin(frame)))
            }
            Some(Err(error)) => {
                // It cannot be read once more.
                (self.kept, self.is_over) = (None, true);
                Some(Err(broke_off(error)))
            }
            None => {
                self.is_over = true;
                None
            }
        }
    }

    /// The next piece of a frame that was begun.
    fn next_piece(&mut self) -> Option<Frame<Bytes>> {
        let is_last = self.is_at_end();
        let length = match self.rest.len() {
            0 => return None,
            1 => 1,
            length if length <= PIECE && is_last => length - 1,
            length => length.min(PIECE),
        };
        let piece = self.rest.split_to(length);
        self.is_over = is_last && self.rest.is_empty();
        Some(Frame::data(piece))
    }

    /// A frame, or its first piece.
    fn begin(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        if let Some(data) = frame.data_ref() {
            self.sent = self.sent.saturating_add(data.len() as u64);
            if self.is_grpc {
                self.messages.pass(data);
            }
        }
        self.is_over = self.is_at_end();
        let is_large = |data: &&Bytes| self.in_pieces && !self.is_cut && data.len() > PIECE;
        match frame.data_ref().filter(is_large) {
            Some(data) => {
                self.rest = data.clone();
                self.next_piece().unwrap_or(frame)
            }
            None => frame,
        }
    }

    fn wake_by(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            waker => *waker = Some(cx.waker().clone()),
        }
    }
}

/// The stream, as whoever sends it reads it. There is one for each try.
pub(super) struct Reader(Upload);

impl Reader {
    /// A stream that goes out in pieces or not, and of which what is read is kept for another try or not.
    pub(super) fn new(stream: Streamed, in_pieces: bool, is_kept: bool) -> Self {
        let state = State {
            stream: Some(stream),
            has_ended: false,
            turn: 0,
            kept: is_kept.then(Kept::default),
            had: 0,
            handed: None,
            was_read: false,
            is_over: false,
            is_cut: false,
            has_task: false,
            in_pieces,
            rest: Bytes::new(),
            waker: None,
            sent: 0,
            messages: Messages::default(),
            is_grpc: false,
        };
        Reader(Upload { state: Arc::new(Mutex::new(state)), turn: 0 })
    }

    pub(super) fn upload(&self) -> Upload {
        self.0.clone()
    }

    /// Whether large frames go out in pieces.
    pub(super) fn set_in_pieces(&self, in_pieces: bool) {
        self.0.lock().in_pieces = in_pieces;
    }

    /// Puts another stream around this one.
    pub(super) fn map(&self, change: impl FnOnce(Streamed) -> Streamed) {
        let mut state = self.0.lock();
        state.stream = state.stream.take().map(change);
    }

    pub(super) fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Received> {
        let mut state = self.0.lock();
        if state.turn != self.0.turn || state.is_cut {
            return Poll::Ready(Some(Err(cut_off())));
        }
        state.was_read = true;
        if let Some(piece) = state.next_piece() {
            return Poll::Ready(Some(Ok(piece)));
        }
        if let Some(frame) = state.next_kept() {
            self.note_start(&mut state);
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(handed) = state.handed.take() {
            let received = state.receive(handed);
            self.note_start(&mut state);
            return Poll::Ready(received);
        }
        if state.has_ended {
            return Poll::Ready(None);
        }
        let Some(mut stream) = state.stream.take() else {
            // An earlier try is about to give it back.
            state.wake_by(cx);
            return Poll::Pending;
        };
        drop(state);
        let polled = stream.as_mut().poll_frame(cx);
        let mut state = self.0.lock();
        if state.is_cut {
            drop(state);
            return if polled.is_pending() { Poll::Ready(Some(Err(cut_off()))) } else { polled };
        }
        state.has_ended |= match &polled {
            Poll::Pending => false,
            Poll::Ready(Some(Ok(frame))) => frame.is_trailers(),
            Poll::Ready(_) => true,
        };
        state.stream = Some(stream);
        if state.turn != self.0.turn {
            if let Poll::Ready(received) = polled {
                state.handed = Some(received);
            }
            let waker = state.waker.take();
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
            return Poll::Ready(Some(Err(cut_off())));
        }
        let polled = match polled {
            Poll::Pending => {
                state.wake_by(cx);
                Poll::Pending
            }
            Poll::Ready(received) => Poll::Ready(state.receive(received)),
        };
        self.note_start(&mut state);
        polled
    }

    /// Notes it for the task that is made by whoever starts to send it. It has a task from then on if there is more to read.
    fn note_start(&self, state: &mut State) {
        if state.has_task || !IS_STARTING.get() {
            return;
        }
        state.has_task = !state.is_over;
        STARTED.set(Some(if state.is_over { Started::Over } else { Started::Begun(self.0.clone()) }));
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let state = self.0.lock();
        state.turn == self.0.turn && !state.is_cut && state.rest.is_empty() && (state.is_over || state.is_at_end())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let state = self.0.lock();
        let mut hint = match &state.stream {
            _ if state.has_ended => SizeHint::with_exact(0),
            Some(stream) => stream.size_hint(),
            None => SizeHint::default(),
        };
        let handed = match &state.handed {
            Some(Some(Ok(frame))) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        let kept = state.kept.as_ref().map_or(0, |kept| kept.bytes_from(state.had));
        let known = (state.rest.len() + handed + kept) as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(known));
        }
        hint.set_lower(hint.lower().saturating_add(known));
        hint
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.turn != self.0.turn {
            return;
        }
        state.is_over = true;
        if std::mem::take(&mut state.has_task) && IS_STARTING.get() {
            // Sent at once: there is no task.
            STARTED.take();
        }
        // Unread, or kept, it may be sent once more.
        let stream = if state.was_read && state.kept.is_none() { state.stream.take() } else { None };
        drop(state);
        drop(stream);
    }
}

/// Whoever makes the request has not made all of it: that says nothing of the endpoint that it was for.
fn broke_off(error: BoxError) -> BoxError {
    if error.is::<MeshError>() {
        return error;
    }
    MeshError::new(ErrorKind::BadRequest, "the request's body broke off").caused_by(error).into()
}

/// Over HTTP/2 the stream is reset with this reason; over HTTP/1.1 the connection ends.
fn cut_off() -> BoxError {
    h2::Error::from(h2::Reason::CANCEL).into()
}
