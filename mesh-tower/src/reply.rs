//! Answers of the mesh itself, in the caller's own tongue: an HTTP status and a text, or, for gRPC, a
//! trailers-only response with a gRPC status (gRPC over HTTP/2, "Responses").

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::filter::Reply;
use mesh_core::model::{DirectResponse, PathChange, PathTest, Redirect, RouteMatch};
use mesh_core::request::{RequestHead, split_authority};

/// The answer to a request that the mesh failed: the status of the error's kind, the error's own text with its causes, and
/// the headers that the request's route sets on its responses.
///
/// ```
/// use mesh_core::error::{ErrorKind, MeshError};
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

/// Tells a caller that a limit was in the way, and that it was not the server's (Envoy's).
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

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
    if is_grpc {
        let code = reply.grpc_code.unwrap_or_else(|| grpc_code(reply.status));
        return trailers_only(code, &String::from_utf8_lossy(&reply.body));
    }
    text(reply.status, reply.body)
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
    let scheme = redirect.scheme.as_deref().unwrap_or(head.scheme);
    let (host, port) = split_authority(head.authority).unwrap_or((head.authority, None));
    let port = port.filter(|port| !port.is_empty());
    let mut location = format!("{scheme}://{}", redirect.host.as_deref().unwrap_or(host));
    let standard = |port: &str| matches!((scheme, port), ("http", "80") | ("https", "443"));
    match (redirect.port, port) {
        (Some(port), _) if !standard(&port.to_string()) => _ = write!(location, ":{port}"),
        // A port of the old scheme does not belong to the new one (Envoy's scheme redirect).
        (None, Some(port)) if redirect.scheme.is_none() && redirect.host.is_none() => _ = write!(location, ":{port}"),
        _ => {}
    }
    let path = match &redirect.path {
        Some(change) => change_path(change, &matches.path, head.path())?,
        None => head.path().to_owned(),
    };
    location.push_str(&path);
    if let Some(query) = head.query().filter(|_| !redirect.strip_query && !path.contains('?')) {
        _ = write!(location, "?{query}");
    }
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

/// What a path becomes; `matched` says how much of it a prefix change replaces. An error where that is no path: it would be
/// taken for a part of the authority, or for the `*` of OPTIONS.
pub(crate) fn change_path(change: &PathChange, matched: &PathTest, path: &str) -> Result<String, MeshError> {
    let changed = match change {
        PathChange::Full(new) => new.clone(),
        PathChange::Regex(rewrite) => rewrite.apply(path).into_owned(),
        PathChange::Prefix(new) => {
            let matched = match matched {
                PathTest::Prefix { value, .. } | PathTest::Separated { value, .. } => value.len().min(path.len()),
                _ => path.len(),
            };
            let rest = path.get(matched..).unwrap_or_default();
            match matched_boundary(new, rest) {
                true => format!("{new}/{rest}"),
                false => format!("{new}{rest}"),
            }
        }
    };
    if !changed.starts_with('/') {
        let message = "the path that the route makes of the request's does not begin with /";
        return Err(MeshError::new(ErrorKind::BadRequest, message));
    }
    Ok(changed)
}

/// Whether a slash is missing between a new prefix and the rest: a path must begin with one.
fn matched_boundary(new: &str, rest: &str) -> bool {
    new.is_empty() && !rest.starts_with('/')
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
    fn redirects() {
        let prefix = |value: &str| PathTest::Prefix { value: value.into(), ignore_case: false };
        let changed = |change: fn(&mut Redirect)| {
            let mut redirect = Redirect::new(StatusCode::MOVED_PERMANENTLY);
            change(&mut redirect);
            redirect
        };
        let cases = [
            (changed(|it| it.host = Some("b".into())), "http://a:1/x?q", "http://b/x?q"),
            (changed(|it| it.scheme = Some("https".into())), "http://a:80/x", "https://a/x"),
            (changed(|it| it.port = Some(8443)), "http://a/x", "http://a:8443/x"),
            (changed(|it| it.strip_query = true), "http://a:1/x?q", "http://a:1/x"),
            (changed(|it| it.path = Some(PathChange::Full("/y".into()))), "http://a/x?q", "http://a/y?q"),
            (changed(|it| it.path = Some(PathChange::Prefix("/y".into()))), "http://a/x/z", "http://a/y/z"),
        ];
        for (it, uri, expected) in cases {
            let parts = http::Request::get(uri).body(()).unwrap().into_parts().0;
            let matches = RouteMatch::path(prefix("/x"));
            let response = redirect(&it, &matches, &RequestHead::of(&parts).unwrap(), false).unwrap();
            assert_eq!((response.status(), response.headers()[LOCATION].to_str().unwrap()), (it.status, expected));
        }
    }

    #[test]
    fn a_grpc_message_is_percent_encoded() {
        let response = trailers_only(14, "50% of a\nb ä");
        assert_eq!(response.headers()["grpc-message"], "50%25 of a%0Ab %C3%A4");
    }
}
