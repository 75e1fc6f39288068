//! `content-length`, held to the body. What follows a body that is shorter than it says is read as a part of it, and
//! what is too much as the next request (RFC 9112, 6.2 and 6.3).

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Version};
use http_body::{Body as _, Frame, SizeHint};
use mesh_core::error::{ErrorKind, MeshError};

use super::{Body, BoxError, Streamed};

/// Refuses a `content-length` that contradicts the body. A stream of which nobody knows how long it is breaks off where
/// it turns out to be another length.
#[inline]
pub(crate) fn check(head: &mut Parts, body: &mut Body) -> Result<(), MeshError> {
    // There are few headers, and seldom this one: looking at their names beats looking it up.
    if head.headers.keys().any(|name| *name == CONTENT_LENGTH) {
        return check_value(&head.headers, body);
    }
    if matches!(head.method, Method::GET | Method::HEAD) && body.size_hint().exact().is_none() {
        tell_of_body(head);
    }
    Ok(())
}

/// A request that seldom has a body has one here: hyper would send it without, unless it is told.
#[cold]
fn tell_of_body(head: &mut Parts) {
    if head.version == Version::HTTP_11 {
        head.headers.entry(TRANSFER_ENCODING).or_insert(HeaderValue::from_static("chunked"));
    }
}

fn check_value(headers: &HeaderMap, body: &mut Body) -> Result<(), MeshError> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let said = match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit())),
        _ => None,
    };
    let Some(said) = said.and_then(|said| said.parse::<u64>().ok()) else {
        return Err(MeshError::new(ErrorKind::BadRequest, "content-length is not one number"));
    };
    let hint = body.size_hint();
    if said < hint.lower() || hint.upper().is_some_and(|upper| said > upper) {
        let reason = match hint.exact() {
            Some(exact) => format!("content-length says {said}, and the body has {exact} bytes"),
            None => format!("content-length says {said}, which the body is not"),
        };
        return Err(MeshError::new(ErrorKind::BadRequest, reason));
    }
    if hint.exact().is_none() {
        body.map_stream(|stream| Box::pin(Promised { stream, left: said }));
    }
    Ok(())
}

/// A stream that was said to be of a certain length.
struct Promised {
    stream: Streamed,
    left: u64,
}

impl Promised {
    fn broken(what: &str) -> BoxError {
        MeshError::new(ErrorKind::BadRequest, format!("the request's body is {what} than its content-length says"))
            .into()
    }
}

impl http_body::Body for Promised {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let polled = ready!(this.stream.as_mut().poll_frame(cx)).transpose()?;
        let Some(data) = polled.as_ref().and_then(Frame::data_ref) else {
            return Poll::Ready(match std::mem::take(&mut this.left) {
                0 => polled.map(Ok),
                _ => Some(Err(Promised::broken("shorter"))),
            });
        };
        // Nobody asks for more than was said: what is too much and known to come is too much already.
        let left = this.left.checked_sub(data.len() as u64).filter(|left| *left >= this.stream.size_hint().lower());
        Poll::Ready(match left {
            Some(left) => {
                this.left = left;
                polled.map(Ok)
            }
            None => Some(Err(Promised::broken("longer"))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
