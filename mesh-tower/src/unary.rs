//! Calls of gRPC with one message each way, by the mesh's own client: what it asks authorizers and rate limit services by.

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Limited};

use crate::body::Body;
use crate::outbound::ResponseBody;

/// A call of `path` at `target`.
///
/// # Errors
/// One of them is no part of a URI, or the message too long.
pub(crate) fn call(target: &str, path: &str, message: &[u8]) -> Result<Request<Body>, String> {
    let mut frame = Vec::with_capacity(message.len() + 5);
    frame.push(0);
    frame.extend(u32::try_from(message.len()).map_err(|error| error.to_string())?.to_be_bytes());
    frame.extend(message);
    let call = Request::post(format!("http://{target}{path}"))
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    call.body(Body::from(frame)).map_err(|error| error.to_string())
}

/// The message of an answer, of so many bytes at most.
///
/// # Errors
/// The call failed, or it is not one message.
pub(crate) async fn message(response: Response<ResponseBody>, most: usize) -> Result<Bytes, String> {
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(format!("the answer is {}", head.status));
    }
    let body = Limited::new(body, most).collect().await.map_err(|error| format!("its answer: {error}"))?;
    let trailers = body.trailers().cloned();
    let status = |headers: &http::HeaderMap| headers.get("grpc-status").map(|status| status.as_bytes() == b"0");
    match trailers.as_ref().and_then(status).or_else(|| status(&head.headers)) {
        Some(true) => {}
        Some(false) => return Err("the call failed".to_owned()),
        None => return Err("the answer has no gRPC status".to_owned()),
    }
    let bytes = body.to_bytes();
    let message = bytes.split_at_checked(5).and_then(|(prefix, message)| {
        let length = u32::try_from(message.len()).ok()?.to_be_bytes();
        (prefix.first() == Some(&0) && prefix.get(1..) == Some(&length[..])).then(|| bytes.slice_ref(message))
    });
    message.ok_or_else(|| "the answer is not one message".to_owned())
}
