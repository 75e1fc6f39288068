//! What of a path is worth remembering: its form, without the values in it.
//!
//! A segment that is a number, an identifier, a token or anything else that one caller would not write like the next becomes
//! `{*}`, Istio's word for one segment, and what is too long becomes `{**}`. So a record is small, says what a policy can say,
//! and holds nobody's data. Query and fragment are left out.

use smallvec::SmallVec;

/// One segment, whatever is in it.
pub const ANY: &str = "{*}";
/// The rest of a path, whatever is in it.
pub const REST: &str = "{**}";

/// The longest literal segment of a template; in a gRPC path, which is names only, [`LONGEST_NAME`].
const LONGEST: usize = 40;
const LONGEST_NAME: usize = 128;
/// How many segments are told apart; what is behind them is the rest.
const MOST_SEGMENTS: usize = 12;

/// The form of a path.
pub(super) type Template = SmallVec<[u8; 256]>;

/// The form of a path, as a policy may be written for it: `/users/{*}/orders` for `/users/4711/orders?page=2`. Empty for what
/// is no path. Of a gRPC call, service and method stay as they are.
///
/// ```
/// use mesh_core::calls::template;
///
/// assert_eq!(template("/users/4711/orders?page=2", false), "/users/{*}/orders");
/// assert_eq!(template("/shop.Cart/Add", true), "/shop.Cart/Add");
/// ```
pub fn template(path: &str, is_grpc: bool) -> String {
    let mut template = Template::new();
    write(path, is_grpc, &mut template);
    text(&template).to_owned()
}

/// A template as text: it has ASCII only.
pub(super) fn text(template: &Template) -> &str {
    std::str::from_utf8(template).unwrap_or_default()
}

/// Appends the form of a path. Allocates nothing: the longest one fits the buffer but for gRPC's longest names.
pub(super) fn write(path: &str, is_grpc: bool, out: &mut Template) {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    if is_grpc && is_method(path) {
        return out.extend_from_slice(path.as_bytes());
    }
    let Some(rest) = path.strip_prefix('/') else { return };
    let mut count = 0;
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        // A server that is guarded merges slashes; one at the end has a meaning.
        if segment.is_empty() && segments.peek().is_some() {
            continue;
        }
        out.push(b'/');
        count += 1;
        if count > MOST_SEGMENTS {
            return out.extend_from_slice(REST.as_bytes());
        }
        let is_kept = segment == ANY || !is_value(segment.as_bytes());
        out.extend_from_slice(if is_kept { segment } else { ANY }.as_bytes());
    }
}

/// Whether a path is `/package.Service/Method`.
fn is_method(path: &str) -> bool {
    let is_name = |name: &str, dots: &[u8]| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || dots.contains(&byte);
        (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(plain)
    };
    let parts = path.strip_prefix('/').and_then(|rest| rest.split_once('/'));
    parts.is_some_and(|(service, method)| is_name(service, b".") && is_name(method, b""))
}

/// Whether a segment is somebody's value, and no name of the interface. What a policy would take for a wildcard, or could
/// not say, is a value too.
fn is_value(segment: &[u8]) -> bool {
    let length = segment.len();
    if length > LONGEST || matches!(segment, b"." | b"..") {
        return true;
    }
    let (mut digits, mut lower, mut upper, mut separators, mut changes) = (0, 0, 0, 0, 0);
    let (mut is_hex, mut was_upper) = (true, None);
    for byte in segment {
        match byte {
            b'0'..=b'9' => digits += 1,
            b'a'..=b'z' => {
                lower += 1;
                is_hex &= *byte <= b'f';
                changes += usize::from(was_upper == Some(true));
                was_upper = Some(false);
            }
            b'A'..=b'Z' => {
                upper += 1;
                is_hex &= *byte <= b'F';
                changes += usize::from(was_upper == Some(false));
                was_upper = Some(true);
            }
            b'-' | b'.' | b'_' | b'~' | b':' => separators += 1,
            _ => return true,
        }
    }
    let letters = lower + upper;
    let is_mixed = lower > 0 && upper > 0;
    // Numbers, dates; `order-12345`, UUIDs, names of pods; hashes; keys in base 36, 62 or 64. Words in camel case change the
    // case twice a word, and random letters at every other one.
    (digits > 0 && letters == 0)
        || digits >= 5
        || (is_hex && separators == 0 && digits > 0 && length >= 8)
        || (length >= 16 && digits >= 2 && (separators == 0 || is_mixed))
        || (length >= 20 && is_mixed && changes * 9 > length * 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_folded_and_names_are_kept() {
        for (path, expected) in [
            ("/", "/"),
            ("/api/v1/products", "/api/v1/products"),
            ("/api/v1/products/", "/api/v1/products/"),
            ("/api//products", "/api/products"),
            ("/api/v1/products/0/reviews", "/api/v1/products/{*}/reviews"),
            ("/users/3fa85f64-5717-4562-b3fc-2c963f66afa6", "/users/{*}"),
            ("/commits/deadbee1", "/commits/{*}"),
            ("/orders/order-12345", "/orders/{*}"),
            ("/days/2026-11-28", "/days/{*}"),
            ("/pods/reviews-v1-545db77b95-wwhkq", "/pods/{*}"),
            ("/users/jane@example.com", "/users/{*}"),
            ("/users/J%C3%BCrgen", "/users/{*}"),
            ("/reset/kJ8s0dPq2LmNvXy7", "/reset/{*}"),
            ("/reset/QwErTyUiOpAsDfGhJkLz", "/reset/{*}"),
            ("/a/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "/a/{*}"),
            ("/v1/users:batchGet", "/v1/users:batchGet"),
            ("/oauth2/.well-known/jwks.json", "/oauth2/.well-known/jwks.json"),
            ("/rpc/GetUserAccountPreferences", "/rpc/GetUserAccountPreferences"),
            ("/static/app.css?v=secret#top", "/static/app.css"),
            ("/a#secret", "/a"),
            ("/a/*", "/a/{*}"),
            ("/a/{**}", "/a/{*}"),
            ("/a/{*}", "/a/{*}"),
            ("/*", "/{*}"),
            ("/a/../b", "/a/{*}/b"),
            ("*", ""),
            ("", ""),
            ("host:80", ""),
            ("/1/2/3/4/5/6/7/8/9/10/11/12/13/14", "/{*}/{*}/{*}/{*}/{*}/{*}/{*}/{*}/{*}/{*}/{*}/{*}/{**}"),
        ] {
            assert_eq!(template(path, false), expected, "{path}");
            assert_eq!(template(expected, false), expected, "{path}, once more");
        }
    }

    #[test]
    fn a_grpc_method_is_a_name_and_what_only_says_so_is_not() {
        let long = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources2";
        assert_eq!(template(long, true), long);
        for path in ["/a/b/12345", "/a.B/12345-678", "/a.B/*", "/a.B/x%20"] {
            assert!(template(path, true).contains(ANY), "{path}");
        }
    }

    #[test]
    fn a_template_is_bounded_and_text() {
        for path in [format!("/{}", "a/".repeat(40_000)), format!("/{}", "a".repeat(80_000)), "/\u{fc}/\u{0}".into()] {
            let template = template(&path, false);
            assert!(template.len() <= MOST_SEGMENTS * (LONGEST + 1) + 5, "{}", template.len());
            assert!(template.starts_with('/'));
        }
    }
}
