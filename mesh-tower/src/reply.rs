//! Answers of the mesh itself, in the caller's own tongue: an HTTP status and a text, or, for gRPC, a
//! trailers-only response with a gRPC status (gRPC over HTTP/2, "Responses").

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Method, Response, StatusCode};
use mesh_core::error::{ErrorKind, MeshError, OVERLOADED};
use mesh_core::filter::Reply;
use mesh_core::model::{DirectResponse, Redirect, RouteMatch};
use mesh_core::request::RequestHead;
use mesh_core::rewrite::location;

/// The answer to a request that the mesh failed: the status of the error's kind, the error's own text with its causes, and
/// the headers that the request's route sets on its responses.
///
/// ```
/// use mesh_core::error::{ErrorKind, MeshError, OVERLOADED};
///
/// let error = MeshError::new(ErrorKind::NoRoute, "no route for GET /x");
/// assert_eq!(mesh_tower::reply::error(&error, false).status(), 404);
/// let grpc = mesh_tower::reply::error(&error, true);
/// assert_eq!((grpc.status(), &grpc.headers()["grpc-status"]), (http::StatusCode::OK, &"14".parse().unwrap()));
/// ```
pub fn error(error: &MeshError, is_grpc: bool) -> Response<Bytes> {
    let message = format!("{error:#}");
    let mut response = if is_grpc {
        trailers_only(error.kind().grpc_code(), &message)
    } else {
        text(error.kind().http_status(), message)
    };
    if error.kind() == ErrorKind::Overflow {
        response.headers_mut().insert(OVERLOADED, HeaderValue::from_static("true"));
    }
    if let Some(set) = error.response_headers() {
        response.headers_mut().extend(set.clone());
    }
    response
}

/// An answer of the mesh to a request of this method: to HEAD, the head alone (RFC 9110, 9.3.2).
pub(crate) fn to(method: &Method, mut response: Response<Bytes>) -> Response<Bytes> {
    if method == Method::HEAD {
        let length = std::mem::take(response.body_mut()).len();
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

/// A filter's answer.
pub(crate) fn filter(reply: Reply, is_grpc: bool) -> Response<Bytes> {
    let mut response = if is_grpc {
        let code = reply.grpc_code.unwrap_or_else(|| grpc_code(reply.status));
        trailers_only(code, &String::from_utf8_lossy(&reply.body))
    } else {
        text(reply.status, reply.body)
    };
    if let Some(headers) = reply.headers {
        response.headers_mut().extend(*headers);
    }
    response
}

/// An answer from the configuration. To gRPC its status is the one that stands for the HTTP status, and its body the
/// message.
pub(crate) fn direct(direct: &DirectResponse, is_grpc: bool) -> Response<Bytes> {
    if is_grpc {
        return trailers_only(grpc_code(direct.status), &String::from_utf8_lossy(&direct.body));
    }
    text(direct.status, direct.body.clone())
}

/// Where a request should go instead. gRPC knows no redirects: to it, it is an error that names the place.
pub(crate) fn redirect(
    redirect: &Redirect,
    matches: &RouteMatch,
    head: &RequestHead<'_>,
    is_grpc: bool,
) -> Result<Response<Bytes>, MeshError> {
    let location = location(redirect, matches, head)?;
    let mut response = match is_grpc {
        true => trailers_only(grpc_code(redirect.status), &format!("the route redirects to {location}")),
        false => text(redirect.status, ""),
    };
    let location = HeaderValue::try_from(location).map_err(|error| {
        MeshError::new(ErrorKind::BadRequest, "the redirect has no valid location").caused_by(error)
    })?;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Bytes> {
    let body = body.into();
    let has_text = !body.is_empty();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if has_text {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

fn trailers_only(code: u32, message: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(code));
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => _ = write!(encoded, "%{byte:02X}"),
        }
    }
    if let Ok(message) = HeaderValue::try_from(encoded) {
        headers.insert("grpc-message", message);
    }
    response
}

/// The gRPC code of an HTTP status, where an answer has no gRPC status of its own (gRPC's `http-grpc-status-mapping`).
///
/// ```
/// use mesh_tower::reply::grpc_code;
///
/// // UNAVAILABLE, and UNKNOWN for whatever is not in the table.
/// assert_eq!((grpc_code(http::StatusCode::BAD_GATEWAY), grpc_code(http::StatusCode::FOUND)), (14, 2));
/// ```
pub fn grpc_code(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_message_is_percent_encoded() {
        let response = trailers_only(14, "50% of a\nb ä");
        assert_eq!(response.headers()["grpc-message"], "50%25 of a%0Ab %C3%A4");
    }
}
