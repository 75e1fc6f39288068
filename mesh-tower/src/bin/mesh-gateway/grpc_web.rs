//! gRPC-Web: gRPC as browsers speak it, who see no trailers and may have no bytes (PROTOCOL-WEB.md of gRPC). Services behind the
//! gateway are asked by gRPC.
//!
//! Messages are framed alike in both. Trailers are a last frame of the body, and of `grpc-web-text` all of the body is base64. As in
//! Envoy, `Accept` says whether the answer is text.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use http_body::Frame;
use http_body_util::BodyExt as _;
use mesh_tower::body::{Body, BoxError};
use mesh_tower::core::request::is_grpc;
use pin_project_lite::pin_project;

use crate::forward::Answer;

const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
/// The mark of a frame that has trailers.
const TRAILERS: u8 = 0x80;

/// How a client speaks gRPC-Web.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Web {
    /// Whether it sends text.
    sends_text: bool,
    /// Whether it is answered in text.
    takes_text: bool,
}

impl Web {
    /// How a request is one of gRPC-Web; `None` where it is another one.
    pub(crate) fn of<B>(request: &Request<B>) -> Option<Web> {
        let headers = request.headers();
        let (sends_text, _) = written(headers.get(CONTENT_TYPE)?).filter(|_| *request.method() == Method::POST)?;
        let accepted = headers.get_all(ACCEPT).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        let takes_text = accepted.filter_map(|one| of_type(one.trim_ascii())).any(|(is_text, _)| is_text);
        Some(Web { sends_text, takes_text })
    }

    /// The request as one of gRPC.
    pub(crate) fn request(self, request: Request<Body>) -> Request<Body> {
        let (mut head, body) = request.into_parts();
        let headers = &mut head.headers;
        // Protocol buffers are what gRPC means where it says nothing.
        let format = headers.get(CONTENT_TYPE).and_then(written).map(|(_, format)| format);
        let content_type =
            content_type(b"application/grpc", format.filter(|format| *format != b"+proto").unwrap_or_default());
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONTENT_TYPE, content_type);
        headers.insert(TE, HeaderValue::from_static("trailers"));
        // A client that does not say how messages may be compressed can read those alone that are not.
        headers.entry(GRPC_ACCEPT_ENCODING).or_insert(HeaderValue::from_static("identity"));
        let body = match self.sends_text {
            true => Body::new(FromText { body, rest: Vec::new() }),
            false => body,
        };
        Request::from_parts(head, body)
    }

    /// The answer to it. What is none of gRPC stays as it is.
    pub(crate) fn answer(self, answer: Answer) -> Answer {
        if !is_grpc(answer.headers()) {
            return answer;
        }
        let (mut head, body) = answer.into_parts();
        let format = head.headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let format = format.strip_prefix(b"application/grpc").filter(|rest| !rest.is_empty()).unwrap_or(b"+proto");
        let name: &[u8] = if self.takes_text { b"application/grpc-web-text" } else { b"application/grpc-web" };
        let content_type = content_type(name, format);
        head.headers.insert(CONTENT_TYPE, content_type);
        head.headers.remove(CONTENT_LENGTH);
        let body = body.map_frame(move |frame| {
            let bytes = match frame.into_data().map_err(Frame::into_trailers) {
                Ok(data) => data,
                Err(Ok(trailers)) => as_frame(&trailers),
                // There is no third kind of frame.
                Err(Err(_)) => Bytes::new(),
            };
            Frame::data(if self.takes_text { STANDARD.encode(bytes).into() } else { bytes })
        });
        Answer::from_parts(head, Body::new(body))
    }
}

/// Whether a content type is the text of gRPC-Web, and how messages are written: `+proto` or the like, or nothing.
fn written(value: &HeaderValue) -> Option<(bool, &[u8])> {
    of_type(value.as_bytes())
}

fn of_type(value: &[u8]) -> Option<(bool, &[u8])> {
    let rest = value.strip_prefix(b"application/grpc-web")?;
    let (is_text, format) = match rest.strip_prefix(b"-text") {
        Some(format) => (true, format),
        None => (false, rest),
    };
    let format = format.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
    matches!(format.first(), None | Some(b'+')).then_some((is_text, format))
}

fn content_type(name: &[u8], format: &[u8]) -> HeaderValue {
    // What is left of the value of a header is one.
    HeaderValue::from_bytes(&[name, format].concat()).unwrap_or(HeaderValue::from_static("application/grpc"))
}

/// Trailers as the last frame of a body.
fn as_frame(trailers: &HeaderMap) -> Bytes {
    let mut lines = BytesMut::new();
    for (name, value) in trailers {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.put_u8(b':');
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    let mut frame = BytesMut::with_capacity(5 + lines.len());
    frame.put_u8(TRAILERS);
    frame.put_u32(u32::try_from(lines.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&lines);
    frame.freeze()
}

pin_project! {
    /// The bytes of a body that is base64, as they come.
    struct FromText {
        #[pin]
        body: Body,
        // What is too short to be read yet: three letters at most.
        rest: Vec<u8>,
    }
}

impl http_body::Body for FromText {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        loop {
            let Some(frame) = ready!(this.body.as_mut().poll_frame(cx)) else {
                let is_whole = std::mem::take(this.rest).is_empty();
                return Poll::Ready((!is_whole).then(|| Err("the text of gRPC-Web ends too early".into())));
            };
            let data = match frame.map(Frame::into_data) {
                Ok(Ok(data)) => data,
                // What a client says in trailers is nothing that gRPC knows.
                Ok(Err(_)) => continue,
                Err(error) => return Poll::Ready(Some(Err(error))),
            };
            this.rest.extend_from_slice(&data);
            let bytes = match decoded(this.rest) {
                Ok(bytes) => bytes,
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            };
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(bytes.into()))));
            }
        }
    }
}

/// Takes what can be read out of a text that goes on. It may be several that each have an end of their own.
fn decoded(text: &mut Vec<u8>) -> Result<Vec<u8>, base64::DecodeError> {
    let rest = text.split_off(text.len() - text.len() % 4);
    let whole = std::mem::replace(text, rest);
    let mut bytes = Vec::with_capacity(whole.len() / 4 * 3);
    let mut left = &whole[..];
    while !left.is_empty() {
        let end = left.iter().position(|byte| *byte == b'=').map_or(left.len(), |first| (first / 4 + 1) * 4);
        let (one, others) = left.split_at(end);
        STANDARD.decode_vec(one, &mut bytes)?;
        left = others;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_web_is_told_by_the_whole_content_type_of_a_post() {
        let of = |method: Method, content_type: &str, accept: &str| {
            let request = Request::builder().method(method).header(CONTENT_TYPE, content_type).header(ACCEPT, accept);
            Web::of(&request.body(()).unwrap()).map(|web| (web.sends_text, web.takes_text))
        };
        for (content_type, accept, expected) in [
            ("application/grpc-web", "*/*", Some((false, false))),
            ("application/grpc-web+proto", "application/grpc-web+proto", Some((false, false))),
            ("application/grpc-web-text", "application/grpc-web-text", Some((true, true))),
            ("application/grpc-web-text+proto", "*/*, application/grpc-web-text+proto", Some((true, true))),
            ("application/grpc-web; charset=utf-8", "text/html", Some((false, false))),
            ("application/grpc-website", "*/*", None),
            ("application/grpc-web-texts", "*/*", None),
            ("application/grpc", "application/grpc-web-text", None),
        ] {
            assert_eq!(of(Method::POST, content_type, accept), expected, "{content_type}");
            assert_eq!(of(Method::OPTIONS, content_type, accept), None);
        }
    }

    #[test]
    fn a_text_is_read_however_it_is_cut_and_wherever_a_part_of_it_ends() {
        let texts = ["", "AAAA", "AAECAw==AAECAw==", "AAE=AAEC", "AA==AA==AA=="];
        for text in texts {
            let parts = text.as_bytes().chunks(4).map(|four| STANDARD.decode(four).unwrap());
            let expected: Vec<u8> = parts.flatten().collect();
            for size in 1..=5 {
                let (mut rest, mut bytes) = (Vec::new(), Vec::new());
                for part in text.as_bytes().chunks(size) {
                    rest.extend_from_slice(part);
                    bytes.extend(decoded(&mut rest).unwrap());
                    assert!(rest.len() < 4);
                }
                assert!(rest.is_empty() && bytes == expected, "{text} {size}");
            }
        }
        for wrong in ["AAA\n", "====", "A===", "=AAA"] {
            assert!(decoded(&mut wrong.as_bytes().to_vec()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn trailers_are_a_frame_with_a_mark_and_their_length() {
        let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        assert_eq!(as_frame(&trailers), &b"\x80\0\0\0\x0fgrpc-status:0\r\n"[..]);
    }
}
