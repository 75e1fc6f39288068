//! Changes to header maps, as routes and listeners ask for them, and headers that clients may not send.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use mesh_core::model::{HeaderChange, HeaderFormat, HeaderText};
use mesh_core::request::{RequestHead, is_reserved};

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

/// Applies the changes that a route makes to the headers of a request, in their order. The rest of its head is as it was
/// before the route changes it.
pub(crate) fn apply_to_request(changes: &[HeaderChange], head: &mut http::request::Parts) {
    let (method, uri, version) = (&head.method, &head.uri, head.version);
    apply(changes, &mut head.headers, |format, headers| {
        format.of_request(&RequestHead::of_parts(method, uri, headers), version)
    });
}

/// Applies the changes that a route makes to the headers of a response, in their order.
pub(crate) fn apply_to_response(changes: &[HeaderChange], head: &mut http::response::Parts) {
    let status: StatusCode = head.status;
    apply(changes, &mut head.headers, |format, headers| format.of_response(status, headers));
}

/// `value_of` puts a value together from the headers as they are by then.
fn apply(
    changes: &[HeaderChange],
    headers: &mut HeaderMap,
    value_of: impl Fn(&HeaderFormat, &HeaderMap) -> Option<HeaderValue>,
) {
    for change in changes {
        let (name, text) = match change {
            HeaderChange::Remove(name) => {
                headers.remove(name);
                continue;
            }
            HeaderChange::AddIfAbsent(name, _) if headers.contains_key(name) => continue,
            HeaderChange::ReplaceIfPresent(name, _) if !headers.contains_key(name) => continue,
            HeaderChange::Append(name, text)
            | HeaderChange::Set(name, text)
            | HeaderChange::AddIfAbsent(name, text)
            | HeaderChange::ReplaceIfPresent(name, text) => (name, text),
        };
        let value = match text {
            HeaderText::Fixed(value) => value.clone(),
            HeaderText::Format(format) => match value_of(format, headers) {
                Some(value) => value,
                None => continue,
            },
        };
        if let HeaderChange::Append(..) = change {
            headers.append(name.clone(), value);
        } else {
            headers.insert(name.clone(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::model::HeaderTarget;

    use super::*;

    #[test]
    fn values_made_of_one_another_do_not_grow_without_end() {
        let double = |of: u32| {
            let text = format!("%REQ(x{of})%%REQ(x{of})%");
            HeaderText::parse(text.as_bytes(), HeaderTarget::Request, false).expect("a format")
        };
        let name = |of: u32| HeaderName::try_from(format!("x{of}")).unwrap();
        let changes: Vec<_> = (0..40).map(|of| HeaderChange::Set(name(of + 1), double(of))).collect();
        let (mut head, ()) = http::Request::get("/").header("x0", "ab").body(()).unwrap().into_parts();
        apply_to_request(&changes, &mut head);
        assert_eq!((head.headers["x2"].as_bytes(), head.headers["x40"].len()), (&b"abababab"[..], 64 << 10));
    }

    #[test]
    fn a_value_is_put_together_from_the_headers_as_they_are_by_then() {
        let format = |text: &str| HeaderText::parse(text.as_bytes(), HeaderTarget::Request, false).expect("a format");
        let changes = [
            HeaderChange::Set(http::header::ACCEPT, format("%REQ(:path)%")),
            HeaderChange::Append(http::header::COOKIE, format("<%REQ(accept)%>")),
            HeaderChange::Set(http::header::ACCEPT, format("%REQ(x-none)%")),
        ];
        let (mut head, ()) = http::Request::get("http://shop:80/a?b").body(()).unwrap().into_parts();
        apply_to_request(&changes, &mut head);
        let headers = &head.headers;
        assert_eq!((&headers["accept"], &headers["cookie"]), (&"/a?b".parse().unwrap(), &"</a?b>".parse().unwrap()));
    }

    #[test]
    fn header_changes_apply_in_order() {
        let (name, value) = (http::header::ACCEPT, HeaderText::from(HeaderValue::from_static("1")));
        let two = HeaderText::from(HeaderValue::from_static("2"));
        let apply = |changes: &[HeaderChange], headers: &mut HeaderMap| super::apply(changes, headers, |_, _| None);
        let mut headers = HeaderMap::new();
        apply(&[HeaderChange::ReplaceIfPresent(name.clone(), value.clone())], &mut headers);
        assert!(headers.is_empty());
        apply(&[HeaderChange::AddIfAbsent(name.clone(), value.clone())], &mut headers);
        apply(&[HeaderChange::AddIfAbsent(name.clone(), two.clone())], &mut headers);
        assert_eq!(headers[&name], "1");
        apply(&[HeaderChange::Append(name.clone(), two.clone())], &mut headers);
        assert_eq!(headers.get_all(&name).iter().count(), 2);
        apply(&[HeaderChange::Set(name.clone(), two)], &mut headers);
        assert_eq!(headers.get_all(&name).iter().count(), 1);
        apply(&[HeaderChange::Remove(name)], &mut headers);
        assert!(headers.is_empty());
    }
}
