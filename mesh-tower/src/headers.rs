//! Headers that clients may not send.

use http::{HeaderMap, HeaderName};
use mesh_core::request::is_reserved;

/// Whether there is a header that only a proxy may set. The first two bytes are looked at first: few names begin so.
#[inline]
pub(crate) fn are_reserved(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| matches!(name.as_str().as_bytes(), [b'x', b'-' | b'_', ..]) && is_reserved(name.as_str()))
}

/// Takes off what only a proxy may set.
#[cold]
pub(crate) fn strip_reserved(headers: &mut HeaderMap) {
    strip(headers, |name| is_reserved(name.as_str()));
}

/// Whether there is a header whose name has an underscore.
#[inline]
pub(crate) fn have_underscores(headers: &HeaderMap) -> bool {
    headers.keys().any(has_underscore)
}

fn has_underscore(name: &HeaderName) -> bool {
    name.as_str().contains('_')
}

/// Takes off what has an underscore in its name.
#[cold]
pub(crate) fn strip_underscores(headers: &mut HeaderMap) {
    strip(headers, has_underscore);
}

fn strip(headers: &mut HeaderMap, is_meant: fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| is_meant(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}
