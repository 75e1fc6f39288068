//! A streamed request body while it is on its way. Its request can take it back as long as nobody has read from it, and
//! ends it when the response has ended: nobody waits for it any more, and a peer that does not read would hold it, its
//! task and its connection for ever.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::{BoxError, Streamed};

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
    waker: Option<Waker>,
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
        if state.is_over {
            return false;
        }
        state.is_cut = true;
        let (stream, waker) = (state.stream.take(), state.waker.take());
        drop(state);
        // What belongs to the application is dropped outside of the lock.
        drop(stream);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

/// The stream, as whoever sends it reads it. There is one for each upload.
pub(super) struct Reader(Upload);

impl Reader {
    pub(super) fn new(stream: Streamed) -> Self {
        let state = State { stream: Some(stream), was_read: false, is_over: false, is_cut: false, waker: None };
        Reader(Upload(Arc::new(Mutex::new(state))))
    }

    pub(super) fn upload(&self) -> Upload {
        self.0.clone()
    }

    /// Puts another stream around this one.
    pub(super) fn map(&self, change: impl FnOnce(Streamed) -> Streamed) {
        let mut state = self.0.lock();
        state.stream = state.stream.take().map(change);
    }

    pub(super) fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut state = self.0.lock();
        state.was_read = true;
        let Some(mut stream) = state.stream.take() else {
            return Poll::Ready(state.is_cut.then(|| Err(cut_off())));
        };
        drop(state);
        let polled = stream.as_mut().poll_frame(cx);
        let mut state = self.0.lock();
        match &polled {
            Poll::Pending if state.is_cut => {
                drop(state);
                return Poll::Ready(Some(Err(cut_off())));
            }
            Poll::Pending => match &mut state.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                waker => *waker = Some(cx.waker().clone()),
            },
            Poll::Ready(Some(Ok(frame))) => state.is_over = frame.is_trailers() || stream.is_end_stream(),
            Poll::Ready(_) => state.is_over = true,
        }
        if !state.is_cut {
            state.stream = Some(stream);
        }
        polled
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let state = self.0.lock();
        !state.is_cut && (state.is_over || state.stream.as_ref().is_some_and(|stream| stream.is_end_stream()))
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.0.lock().stream.as_ref().map_or(SizeHint::default(), |stream| stream.size_hint())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_over = true;
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
