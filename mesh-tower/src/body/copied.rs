//! A body of which a copy is kept while it is read.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::{BoxError, Streamed};

/// A body that is known: its data, and its trailers.
pub(crate) type Whole = (Bytes, Option<HeaderMap>);

type Tell = Box<dyn FnOnce(Option<Whole>) + Send>;

/// A body of which a copy is kept while it is read.
pub(super) struct Copied {
    body: Streamed,
    most: usize,
    kept: BytesMut,
    trailers: Option<HeaderMap>,
    /// Whether there is no more data: trailers may follow, if who reads it asks for them.
    has_all_data: bool,
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
                let trailers = frame.trailers_ref();
                let more = data.len() + trailers.map_or(0, size_of_headers);
                if self.kept.len() + more > self.most {
                    self.kept = BytesMut::new();
                    self.tell.take().into_iter().for_each(|tell| tell(None));
                } else {
                    self.kept.extend_from_slice(data);
                    self.trailers = trailers.cloned();
                    self.has_all_data = self.body.size_hint().exact() == Some(0);
                    // Who reads it need not ask once more.
                    if self.trailers.is_some() || self.body.is_end_stream() {
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
    pub(super) fn new(body: Streamed, most: usize, tell: impl FnOnce(Option<Whole>) + Send + 'static) -> Self {
        let (kept, trailers) = (BytesMut::new(), None);
        Copied { body, most, kept, trailers, has_all_data: false, tell: Some(Box::new(tell)) }
    }

    fn complete(&mut self) {
        if let Some(tell) = self.tell.take() {
            tell(Some((std::mem::take(&mut self.kept).freeze(), self.trailers.take())));
        }
    }
}

impl Drop for Copied {
    /// Who sends it by its length asks for no trailers.
    fn drop(&mut self) {
        if self.has_all_data {
            self.complete();
        }
    }
}

fn size_of_headers(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}
