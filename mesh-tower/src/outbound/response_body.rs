//! The body of a response. While it is read, the request counts as in flight and its connection is in use; its end is
//! the end of the request.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use mesh_core::error::{ErrorKind, MeshError};
use pin_project_lite::pin_project;
use tokio::time::Sleep;

use crate::body::BoxError;

/// A request under way, whatever its transport: what the caller's future polls, and what the response's body tells of
/// its progress.
pub(super) trait Underway<B>: Send {
    /// Goes on until the head of the response is there.
    fn poll_response(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Response<ResponseBody<B>>, MeshError>>;

    /// A frame of the body has come. Told only where somebody observes the request.
    fn on_frame(self: Pin<&mut Self>, frame: &Frame<Bytes>);

    /// The body has come to its end. Whether something of the request was still being sent.
    fn on_end(self: Pin<&mut Self>) -> bool;

    /// The body has broken off; what the request makes of the error.
    fn on_error(self: Pin<&mut Self>, error: MeshError) -> MeshError;
}

pin_project! {
    #[project = Projection]
    /// A response's body: that of the server, as the transport has it (`B`), or an answer of the mesh itself. While it
    /// is read, the request counts as in flight and its connection is in use; both end with the last frame, or when it is
    /// dropped. A request that has a deadline fails here, too, with [`ErrorKind::Timeout`].
    pub struct ResponseBody<B = Incoming> {
        #[pin]
        content: Content<B>,
        // What the end of the body is the end of. `None` where nothing is left to be done.
        request: Option<Pin<Box<dyn Underway<B>>>>,
        is_observed: bool,
        deadline: Option<Pin<Box<Sleep>>>,
    }
}

pin_project! {
    #[project = ContentProjection]
    pub(super) enum Content<B> {
        Upstream {
            #[pin]
            body: B,
        },
        Local {
            bytes: Bytes,
        },
    }
}

impl<B> ResponseBody<B> {
    #[inline]
    pub(super) fn new(content: Content<B>, deadline: Option<Pin<Box<Sleep>>>, is_observed: bool) -> Self {
        ResponseBody { content, request: None, is_observed, deadline }
    }
}

/// The failure of a response that takes too long.
fn too_late() -> MeshError {
    MeshError::new(ErrorKind::Timeout, "the response did not end by the deadline")
}

impl<B> ResponseBody<B>
where
    B: http_body::Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
{
    /// Hands the request over to its body, unless the response is over already.
    #[inline]
    pub(super) fn attach(&mut self, mut request: Pin<Box<dyn Underway<B>>>) {
        if self.content.is_end_stream() {
            self.deadline = None;
            if request.as_mut().on_end() {
                self.content = Content::Local { bytes: Bytes::new() };
            }
        } else {
            self.request = Some(request);
        }
    }
}

impl<B> http_body::Body for ResponseBody<B>
where
    B: http_body::Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = MeshError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, MeshError>>> {
        let mut this = self.as_mut().project();
        // First, so that a reader who always finds something to read is not exempt.
        if this.deadline.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready()) {
            this.content.set(Content::Local { bytes: Bytes::new() });
            return Poll::Ready(Some(Err(break_off(&mut this, too_late()))));
        }
        let frame = match this.content.as_mut().project() {
            ContentProjection::Upstream { body } => ready!(body.poll_frame(cx)),
            ContentProjection::Local { bytes } if bytes.is_empty() => None,
            ContentProjection::Local { bytes } => Some(Ok(Frame::data(std::mem::take(bytes)))),
        };
        Poll::Ready(match frame {
            None => {
                end(&mut this);
                None
            }
            Some(Ok(frame)) => {
                if *this.is_observed
                    && let Some(request) = this.request
                {
                    request.as_mut().on_frame(&frame);
                }
                // Nothing comes after trailers.
                if this.content.is_end_stream() || frame.is_trailers() {
                    end(&mut this);
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                let lost = MeshError::new(ErrorKind::ConnectionLost, "the response ended early").caused_by(error);
                Some(Err(break_off(&mut this, lost)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Upstream { body } => body.size_hint(),
            Content::Local { bytes } => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

impl<B: http_body::Body> Content<B> {
    fn is_end_stream(&self) -> bool {
        match self {
            Content::Upstream { body } => body.is_end_stream(),
            Content::Local { bytes } => bytes.is_empty(),
        }
    }
}

/// The end of the body, and with it of the request.
fn end<B>(body: &mut Projection<'_, B>) {
    *body.deadline = None;
    if let Some(mut request) = body.request.take() {
        // Its stream is reset when nobody holds it any more.
        if request.as_mut().on_end() {
            body.content.set(Content::Local { bytes: Bytes::new() });
        }
    }
}

/// The body breaks off, and the request with it.
#[cold]
fn break_off<B>(body: &mut Projection<'_, B>, error: MeshError) -> MeshError {
    *body.deadline = None;
    match body.request.take() {
        Some(mut request) => request.as_mut().on_error(error),
        None => error,
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseBody")
    }
}
