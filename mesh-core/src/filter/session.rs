//! Sessions that stay at their endpoint (`envoy.extensions.filters.http.stateful_session.v3`): the answer names the endpoint
//! that gave it, and the next request names it again.

use std::fmt::Write as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::SET_COOKIE;
use http::request::Parts;
use http::{HeaderValue, response};

use super::{Decision, Filter};
use crate::id::Address;
use crate::model::{SessionCarrier, StatefulSession};
use crate::request::cookie;
use crate::request_info::{Pinned, RequestInfo};

/// Sends requests back to the endpoint that they name.
#[derive(Debug)]
pub struct SessionFilter(Arc<StatefulSession>);

impl SessionFilter {
    /// For these sessions.
    pub fn new(session: &Arc<StatefulSession>) -> Self {
        SessionFilter(Arc::clone(session))
    }
}

impl Filter for SessionFilter {
    fn on_request(&self, request: &mut RequestInfo, head: &mut Parts) -> Decision {
        let named = match &self.0.carrier {
            SessionCarrier::Header(name) => head.headers.get(name).map(HeaderValue::as_bytes),
            SessionCarrier::Cookie { name, path, .. } if covers(path, head.uri.path()) => cookie(&head.headers, name),
            SessionCarrier::Cookie { .. } => return Decision::Continue,
        };
        let address = named.and_then(address);
        request.pinned = Some(Box::new(Pinned { address, is_strict: self.0.is_strict }));
        Decision::Continue
    }

    fn on_response(&self, request: &mut RequestInfo, head: &mut response::Parts) {
        let Some(pinned) = &request.pinned else { return };
        let Some(Address::Socket(at)) = request.endpoint().and_then(|endpoint| endpoint.id().addresses().first())
        else {
            return;
        };
        let is_known = pinned.address == Some(Address::Socket(*at));
        match &self.0.carrier {
            SessionCarrier::Header(name) => {
                if let Ok(value) = HeaderValue::try_from(BASE64_STANDARD.encode(at.to_string())) {
                    head.headers.insert(name, value);
                }
            }
            SessionCarrier::Cookie { name, path, ttl, attributes } if !is_known => {
                // As Envoy has it: `Cookie { address = 1 }`.
                let address = at.to_string();
                let mut message = vec![1 << 3 | 2, address.len() as u8];
                message.extend(address.as_bytes());
                let mut text = format!("{name}=\"{}\"", BASE64_STANDARD.encode(message));
                // A string takes everything.
                if let Some(ttl) = ttl {
                    _ = write!(text, "; Max-Age={}", ttl.as_secs());
                }
                if !path.is_empty() {
                    _ = write!(text, "; Path={path}");
                }
                for (name, value) in attributes {
                    _ = if value.is_empty() { write!(text, "; {name}") } else { write!(text, "; {name}={value}") };
                }
                text.push_str("; HttpOnly");
                if let Ok(value) = HeaderValue::try_from(text) {
                    head.headers.append(SET_COOKIE, value);
                }
            }
            SessionCarrier::Cookie { .. } => {}
        }
    }
}

/// Whether a cookie for this path is for a request (RFC 6265, 5.1.4).
fn covers(path: &str, requested: &str) -> bool {
    match requested.strip_prefix(path) {
        Some(rest) => path.is_empty() || path.ends_with('/') || rest.is_empty() || rest.starts_with(['/', '?']),
        None => false,
    }
}

/// The address in a value: Envoy's message, its older form without one, or gRPC's, which names the cluster behind it.
fn address(value: &[u8]) -> Option<Address> {
    let bytes = BASE64_STANDARD.decode(value).ok()?;
    let text = match bytes.as_slice() {
        [0x0a, length, rest @ ..] => rest.get(..usize::from(*length))?,
        text => text,
    };
    let text = std::str::from_utf8(text).ok()?;
    let text = text.split_once(';').map_or(text, |(address, _)| address);
    text.parse().ok().map(Address::Socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_others_are_understood_and_nothing_else_is_an_address() {
        let encoded = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
        let expected = Some(Address::Socket("10.0.0.1:80".parse().unwrap()));
        for (value, known) in [
            (encoded(b"10.0.0.1:80"), true),
            (encoded(b"10.0.0.1:80;cluster:a"), true),
            (encoded(b"\x0a\x0b10.0.0.1:80"), true),
            (encoded(b"\x0a\x0b10.0.0.1:80\x10\x05"), true),
            (encoded(b"\x0a\xff10.0.0.1:80"), false),
            (encoded(b"web.shop:80"), false),
            (encoded(b"\xff\xfe"), false),
            ("10.0.0.1:80".into(), false),
            (String::new(), false),
        ] {
            assert_eq!(address(value.as_bytes()), expected.clone().filter(|_| known), "{value}");
        }
    }

    #[test]
    fn a_cookie_is_for_its_path() {
        for (path, requested, expected) in [
            ("", "/a", true),
            ("/", "/a", true),
            ("/a", "/a", true),
            ("/a", "/a/b", true),
            ("/a", "/ab", false),
            ("/a/", "/a/b", true),
            ("/b", "/a", false),
        ] {
            assert_eq!(covers(path, requested), expected, "{path} {requested}");
        }
    }
}
