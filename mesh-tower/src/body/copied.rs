//! A body of which a copy is made while it is read.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::sync::oneshot;

use super::{BoxError, Streamed};

/// A body that is known: its data, and its trailers.
pub(crate) type Whole = (Bytes, Option<HeaderMap>);

/// A copy of a body.
pub(crate) enum CopyOf {
    /// All of it is known.
    Whole(Bytes),
    /// It is made while the body is read.
    Growing(Growing),
}

/// A copy that is made while its body is read. What there is of it ends with it, however long the body takes.
pub(crate) struct Growing {
    kept: Arc<Mutex<BytesMut>>,
    end: oneshot::Receiver<End>,
}

/// The trailers of a body that was read to its end.
type End = Result<Option<HeaderMap>, NoCopy>;

/// Why there is no copy of a body.
pub(crate) enum NoCopy {
    /// It is larger than what is kept.
    TooLarge,
    /// It is not read to its end.
    BrokenOff,
}

impl Growing {
    /// All of it, when the body was read to its end.
    pub(crate) async fn whole(self) -> Result<Whole, NoCopy> {
        let Growing { kept, end } = self;
        let trailers = end.await.unwrap_or(Err(NoCopy::BrokenOff))?;
        let data = std::mem::take(&mut *lock(&kept));
        Ok((data.freeze(), trailers))
    }
}

fn lock(kept: &Mutex<BytesMut>) -> MutexGuard<'_, BytesMut> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A body of which a copy is made while it is read.
pub(super) struct Copied {
    body: Streamed,
    /// How much more is kept of it.
    room: usize,
    /// The copy's: gone where nobody wants it any more.
    kept: Weak<Mutex<BytesMut>>,
    /// Whether there is no more data: trailers may follow, if who reads it asks for them.
    has_all_data: bool,
    tell: Option<oneshot::Sender<End>>,
}

impl http_body::Body for Copied {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(self.body.as_mut().poll_frame(cx));
        if self.tell.is_none() {
            return Poll::Ready(frame);
        }
        match &frame {
            Some(Ok(frame)) => {
                let trailers = frame.trailers_ref();
                let more = frame.data_ref().map_or(0, Bytes::len) + trailers.map_or(0, size_of_headers);
                match self.room.checked_sub(more) {
                    Some(room) => {
                        self.room = room;
                        if let (Some(data), Some(kept)) = (frame.data_ref(), self.kept.upgrade()) {
                            lock(&kept).extend_from_slice(data);
                        }
                        self.has_all_data = self.body.size_hint().exact() == Some(0);
                        // Who reads it need not ask once more.
                        if trailers.is_some() || self.body.is_end_stream() {
                            self.tell(Ok(trailers.cloned()));
                        }
                    }
                    None => self.tell(Err(NoCopy::TooLarge)),
                }
            }
            Some(Err(_)) => self.tell = None,
            None => self.tell(Ok(None)),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Copied {
    /// A way to put this around a body, and the copy that it makes, of so many bytes at most.
    pub(super) fn around(most: usize) -> (impl FnOnce(Streamed) -> Streamed, Growing) {
        let (tell, end) = oneshot::channel();
        let copy = Growing { kept: Arc::default(), end };
        let kept = Arc::downgrade(&copy.kept);
        let around = move |body| -> Streamed {
            Box::pin(Copied { body, room: most, kept, has_all_data: false, tell: Some(tell) })
        };
        (around, copy)
    }

    fn tell(&mut self, end: End) {
        if let Some(tell) = self.tell.take() {
            // Nobody may want to know any more.
            _ = tell.send(end);
        }
    }
}

impl Drop for Copied {
    /// Who sends it by its length asks for no trailers.
    fn drop(&mut self) {
        if self.has_all_data {
            self.tell(Ok(None));
        }
    }
}

fn size_of_headers(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}
