//! A body of which a copy is kept while it is read.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};

use super::{BoxError, Streamed};

type Tell = Box<dyn FnOnce(Option<Bytes>) + Send>;

/// A body of which a copy is kept while it is read.
pub(super) struct Copied {
    body: Streamed,
    most: usize,
    kept: BytesMut,
    tell: Option<Tell>,
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
                let data = frame.data_ref().map_or(&[][..], |data| data);
                if self.kept.len() + data.len() > self.most {
                    self.kept = BytesMut::new();
                    self.tell.take().into_iter().for_each(|tell| tell(None));
                } else {
                    self.kept.extend_from_slice(data);
                    // Who reads it need not ask once more.
                    if self.body.is_end_stream() || self.body.size_hint().exact() == Some(0) {
                        self.complete();
                    }
                }
            }
            Some(Err(_)) => self.tell = None,
            None => self.complete(),
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
    /// Tells of the whole body when it was read, and of none with more than so many bytes.
    pub(super) fn new(body: Streamed, most: usize, tell: impl FnOnce(Option<Bytes>) + Send + 'static) -> Self {
        Copied { body, most, kept: BytesMut::new(), tell: Some(Box::new(tell)) }
    }

    fn complete(&mut self) {
        if let Some(tell) = self.tell.take() {
            tell(Some(std::mem::take(&mut self.kept).freeze()));
        }
    }
}
