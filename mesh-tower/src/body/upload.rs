//! A streamed request body while it is on its way. Its request can take it back as long as nobody has read from it, and
//! ends it when the response has ended: nobody waits for it any more, and a peer that does not read would hold it, its
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
use http_body::{Body as _, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{BoxError, Streamed};

/// The most of a frame that goes out at a time over HTTP/2: as much as a DATA frame holds unless peers agree on more.
pub(super) const PIECE: usize = 16 << 10;

/// The stream, as its request knows it.
#[derive(Clone)]
pub(crate) struct Upload(Arc<Mutex<State>>);

struct State {
    /// Elsewhere while it is polled: whoever polls it may let go of the request.
    stream: Option<Streamed>,
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
}

thread_local! {
    static IS_STARTING: Cell<bool> = const { Cell::new(false) };
    /// The upload that was read from last, and not to its end.
    static STARTED: RefCell<Option<Upload>> = const { RefCell::new(None) };
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
pub(crate) fn started() -> Option<Upload> {
    if IS_STARTING.get() { STARTED.take() } else { None }
}

impl Upload {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream, if nobody has read from it.
    pub(super) fn take_back(&self) -> Option<Streamed> {
        let mut state = self.lock();
        if state.was_read { None } else { state.stream.take() }
    }

    /// Ends it. Whether there was something to end.
    pub(super) fn cut_off(&self) -> bool {
        let mut state = self.lock();
        if state.is_over && !state.has_task {
            return false;
        }
        state.is_cut = true;
        state.rest = Bytes::new();
        let (stream, waker) = (state.stream.take(), state.waker.take());
        drop(state);
        // What belongs to the application is dropped outside of the lock.
        drop(stream);
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
            state.wake_by(cx);
            state.is_cut
        };
        if let Some(task) = this.task.as_mut().as_pin_mut().filter(|_| !is_cut) {
            ready!(task.poll(cx));
        }
        this.task.set(None);
        Poll::Ready(())
    }
}

impl State {
    /// The next piece of a frame that was begun.
    fn next_piece(&mut self) -> Option<Frame<Bytes>> {
        let is_last = self.stream.as_ref().is_some_and(|stream| stream.is_end_stream());
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

/// The stream, as whoever sends it reads it. There is one for each upload.
pub(super) struct Reader(Upload);

impl Reader {
    pub(super) fn new(stream: Streamed, in_pieces: bool) -> Self {
        let state = State {
            stream: Some(stream),
            was_read: false,
            is_over: false,
            is_cut: false,
            has_task: false,
            in_pieces,
            rest: Bytes::new(),
            waker: None,
        };
        Reader(Upload(Arc::new(Mutex::new(state))))
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

    pub(super) fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut state = self.0.lock();
        state.was_read = true;
        if let Some(piece) = state.next_piece() {
            return Poll::Ready(Some(Ok(piece)));
        }
        let Some(mut stream) = state.stream.take() else {
            return Poll::Ready(state.is_cut.then(|| Err(cut_off())));
        };
        drop(state);
        let mut polled = stream.as_mut().poll_frame(cx);
        let mut state = self.0.lock();
        match &polled {
            Poll::Pending if state.is_cut => {
                drop(state);
                return Poll::Ready(Some(Err(cut_off())));
            }
            Poll::Pending => state.wake_by(cx),
            Poll::Ready(Some(Ok(frame))) => state.is_over = frame.is_trailers() || stream.is_end_stream(),
            Poll::Ready(_) => state.is_over = true,
        }
        if !state.is_cut {
            state.stream = Some(stream);
        }
        if let Poll::Ready(Some(Ok(frame))) = polled {
            polled = Poll::Ready(Some(Ok(state.begin(frame))));
        }
        if !state.is_over && !state.has_task && IS_STARTING.get() {
            state.has_task = true;
            STARTED.set(Some(self.0.clone()));
        }
        polled
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let state = self.0.lock();
        !state.is_cut
            && state.rest.is_empty()
            && (state.is_over || state.stream.as_ref().is_some_and(|stream| stream.is_end_stream()))
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let state = self.0.lock();
        let mut hint = state.stream.as_ref().map_or(SizeHint::default(), |stream| stream.size_hint());
        let rest = state.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(hint.lower().saturating_add(rest));
        hint
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_over = true;
        if std::mem::take(&mut state.has_task) && IS_STARTING.get() {
            // Sent at once: there is no task.
            STARTED.take();
        }
        // Unread, it may be sent once more.
        let stream = if state.was_read { state.stream.take() } else { None };
        drop(state);
        drop(stream);
    }
}

/// Over HTTP/2 the stream is reset with this reason; over HTTP/1.1 the connection ends.
fn cut_off() -> BoxError {
    h2::Error::from(h2::Reason::CANCEL).into()
}
