//! What a route makes of a request and of its answer: headers, path, authority, and the place that a redirect names.

use std::fmt::Write as _;

use http::header::HOST;
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use smallvec::SmallVec;

use crate::error::{ErrorKind, MeshError};
use crate::model::{Forward, HeaderChange, HeaderFormat, HeaderText, PathChange, PathTest, Redirect, RouteMatch};
use crate::request::{RequestHead, split_authority};

/// Makes a request what its route wants the cluster to see: headers, path, authority. `own` is the authority that one of several
/// clusters asks for; that of the route goes before it. An authority that is written is in `Host`, and in the URI there is none
/// then.
///
/// # Errors
/// [`ErrorKind::BadRequest`] where its path becomes none.
#[inline]
pub fn rewrite(
    head: &mut Parts,
    changes: &[Vec<HeaderChange>],
    own: Option<&HeaderValue>,
    forward: &Forward,
    matches: &RouteMatch,
) -> Result<(), MeshError> {
    if !changes.is_empty() {
        apply_to_request(changes, head);
    }
    if let Some(change) = &forward.path {
        let mut path = change_path(change, &matches.path, head.uri.path())?;
        // What stands behind it would never be sent.
        if path.contains('#') {
            let message = "the path that the route makes of the request's has a # in it";
            return Err(MeshError::new(ErrorKind::BadRequest, message));
        }
        // A new path may bring parameters of its own; the request's come behind them.
        if let Some(query) = head.uri.query() {
            path.push(if path.contains('?') { '&' } else { '?' });
            path.push_str(query);
        }
        let path = PathAndQuery::try_from(path).map_err(|error| {
            MeshError::new(ErrorKind::BadRequest, "the rewritten path is malformed").caused_by(error)
        })?;
        edit(&mut head.uri, |uri| uri.path_and_query = Some(path));
    }
    if let Some(host) = forward.authority.as_ref().or(own) {
        head.headers.insert(HOST, host.clone());
        edit(&mut head.uri, |uri| uri.authority = None);
    }
    Ok(())
}

/// Applies the changes that a route makes to the headers of a request, level by level. The rest of its head is as it was before
/// the route changes it.
pub fn apply_to_request(changes: &[Vec<HeaderChange>], head: &mut http::request::Parts) {
    let (method, uri, version) = (&head.method, &head.uri, head.version);
    apply(changes, &mut head.headers, |format, headers| {
        format.of_request(&RequestHead::of_parts(method, uri, headers), version)
    });
}

/// Applies the changes that a route makes to the headers of a response, level by level.
pub fn apply_to_response(changes: &[Vec<HeaderChange>], head: &mut http::response::Parts) {
    let status: StatusCode = head.status;
    apply(changes, &mut head.headers, |format, headers| format.of_response(status, headers));
}

/// `value_of` puts a value together from the headers as a level of changes found them, without those that it takes off (Envoy:
/// header_parser.cc).
fn apply(
    levels: &[Vec<HeaderChange>],
    headers: &mut HeaderMap,
    value_of: impl Fn(&HeaderFormat, &HeaderMap) -> Option<HeaderValue>,
) {
    for changes in levels {
        if !changes.iter().any(|change| matches!(change.text(), Some(HeaderText::Format(_)))) {
            // As most are: values are what they are.
            changes.iter().for_each(|change| apply_one(change, change.text().and_then(HeaderText::fixed), headers));
            continue;
        }
        let removed = changes.iter().take_while(|change| matches!(change, HeaderChange::Remove(_))).count();
        let (removed, written) = changes.split_at_checked(removed).unwrap_or_default();
        removed.iter().for_each(|change| drop(headers.remove(change.name())));
        let made = written.iter().filter_map(|change| match change.text()? {
            HeaderText::Fixed(_) => None,
            HeaderText::Format(format) => Some(format),
        });
        let mut values = made.map(|format| value_of(format, headers)).collect::<SmallVec<[_; 2]>>().into_iter();
        for change in written {
            match change.text() {
                Some(HeaderText::Format(_)) => apply_one(change, values.next().flatten().as_ref(), headers),
                fixed => apply_one(change, fixed.and_then(HeaderText::fixed), headers),
            }
        }
    }
}

/// Takes a header off, or writes this value, if there is any.
fn apply_one(change: &HeaderChange, value: Option<&HeaderValue>, headers: &mut HeaderMap) {
    let name = change.name();
    let applies = match change {
        HeaderChange::Remove(_) => {
            headers.remove(name);
            return;
        }
        HeaderChange::AddIfAbsent(..) => !headers.contains_key(name),
        HeaderChange::ReplaceIfPresent(..) => headers.contains_key(name),
        HeaderChange::Append(..) | HeaderChange::Set(..) => true,
    };
    match value.filter(|_| applies).cloned() {
        None => {}
        Some(value) if matches!(change, HeaderChange::Append(..)) => _ = headers.append(name.clone(), value),
        Some(value) => _ = headers.insert(name.clone(), value),
    }
}

/// Where a redirect sends a request, as an absolute URI.
///
/// # Errors
/// [`ErrorKind::BadRequest`] where its path becomes none.
pub fn location(redirect: &Redirect, matches: &RouteMatch, head: &RequestHead<'_>) -> Result<String, MeshError> {
    let scheme = redirect.scheme.as_deref().unwrap_or(head.scheme);
    let written = redirect.host.as_deref().unwrap_or(head.authority);
    let (host, port) = split_authority(written).unwrap_or((written, None));
    let port = port.filter(|port| !port.is_empty());
    let mut location = format!("{scheme}://{host}");
    let standard = |scheme: &str, port: &str| matches!((scheme, port), ("http", "80") | ("https", "443"));
    match (redirect.port, port) {
        (Some(port), _) if !standard(scheme, &port.to_string()) => _ = write!(location, ":{port}"),
        (Some(_), _) | (None, None) => {}
        // The standard port of the old scheme does not belong to the new one (Envoy: processRequestHost).
        (None, Some(port)) if redirect.host.is_none() && scheme != head.scheme && standard(head.scheme, port) => {}
        (None, Some(port)) => _ = write!(location, ":{port}"),
    }
    let path = match &redirect.path {
        Some(change) => change_path(change, &matches.path, head.path())?,
        None => head.path().to_owned(),
    };
    // A whole path brings its own query, and another prefix none in the place of the request's.
    let is_whole = matches!(redirect.path, Some(PathChange::Full(_))) && path.contains('?');
    let query = head.query().filter(|_| !redirect.strip_query && !is_whole);
    let joined = if path.contains('?') { '&' } else { '?' };
    location.push_str(&path);
    if let Some(query) = query {
        _ = write!(location, "{joined}{query}");
    }
    Ok(location)
}

/// What a path becomes; `matched` says how much of it a prefix change replaces. An error where that is no path: it would be
/// taken for a part of the authority, or for the `*` of OPTIONS.
fn change_path(change: &PathChange, matched: &PathTest, path: &str) -> Result<String, MeshError> {
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

/// Gives a path to a URI that has a query alone: `http://host?x=1` asks for `/?x=1` (RFC 9112, 3.2.1).
#[inline]
pub fn complete_path(uri: &mut Uri) {
    if uri.path_and_query().is_some_and(|query| query.as_str().starts_with('?')) {
        add_slash(uri);
    }
}

#[cold]
fn add_slash(uri: &mut Uri) {
    // What has become too long by this stays what it was, and is no path.
    if let Ok(path) = PathAndQuery::try_from(format!("/?{}", uri.query().unwrap_or_default())) {
        edit(uri, |uri| uri.path_and_query = Some(path));
    }
}

/// Changes parts of a URI in place, without copying the others.
pub fn edit(uri: &mut Uri, change: impl FnOnce(&mut http::uri::Parts)) {
    let mut parts = std::mem::take(uri).into_parts();
    change(&mut parts);
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
    }
    if parts.authority.is_some() {
        // A URI of an authority alone had none.
        parts.scheme.get_or_insert(Scheme::HTTP);
    } else {
        parts.scheme = None;
    }
    // With both or neither and a path, the parts always fit.
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;
    use crate::model::HeaderTarget;

    #[test]
    fn values_made_of_one_another_do_not_grow_without_end() {
        let double = |of: u32| {
            let text = format!("%REQ(x{of})%%REQ(x{of})%");
            HeaderText::parse(text.as_bytes(), HeaderTarget::Request, false).expect("a format")
        };
        let name = |of: u32| HeaderName::try_from(format!("x{of}")).unwrap();
        let changes: Vec<_> = (0..40).map(|of| vec![HeaderChange::Set(name(of + 1), double(of))]).collect();
        let (mut head, ()) = http::Request::get("/").header("x0", "ab").body(()).unwrap().into_parts();
        apply_to_request(&changes, &mut head);
        assert_eq!((head.headers["x2"].as_bytes(), head.headers["x40"].len()), (&b"abababab"[..], 64 << 10));
    }

    #[test]
    fn a_value_is_put_together_from_the_headers_as_its_level_finds_them() {
        let format = |text: &str| HeaderText::parse(text.as_bytes(), HeaderTarget::Request, false).expect("a format");
        let set = |name, text| HeaderChange::Set(name, format(text));
        let (accept, cookie) = (http::header::ACCEPT, http::header::COOKIE);
        let exchange = vec![set(accept.clone(), "%REQ(cookie)%"), set(cookie.clone(), "%REQ(accept)%%REQ(etag)%")];
        let above = vec![
            set(accept.clone(), "<%REQ(accept)%>"),
            HeaderChange::Append(cookie.clone(), format("%REQ(accept)%")),
            set(accept.clone(), "%REQ(x-none)%"),
        ];
        let changes = [[vec![HeaderChange::Remove(http::header::ETAG)], exchange].concat(), above];
        let request = http::Request::get("http://shop:80/a?b").header("accept", "a").header("cookie", "c");
        let (mut head, ()) = request.header("etag", "gone").body(()).unwrap().into_parts();
        apply_to_request(&changes, &mut head);
        let cookies: Vec<_> = head.headers.get_all(&cookie).iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!((&head.headers[&accept], &cookies[..]), (&HeaderValue::from_static("<c>"), &["a", "c"][..]));
    }

    #[test]
    fn header_changes_apply_in_order() {
        let (name, value) = (http::header::ACCEPT, HeaderText::from(HeaderValue::from_static("1")));
        let two = HeaderText::from(HeaderValue::from_static("2"));
        let mut headers = HeaderMap::new();
        let mut apply = |change: HeaderChange| {
            super::apply(&[vec![change]], &mut headers, |_, _| None);
            headers.get_all(&name).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(",")
        };
        assert_eq!(apply(HeaderChange::ReplaceIfPresent(name.clone(), value.clone())), "");
        assert_eq!(apply(HeaderChange::AddIfAbsent(name.clone(), value.clone())), "1");
        assert_eq!(apply(HeaderChange::AddIfAbsent(name.clone(), two.clone())), "1");
        assert_eq!(apply(HeaderChange::Append(name.clone(), two.clone())), "1,2");
        assert_eq!(apply(HeaderChange::Set(name.clone(), two)), "2");
        assert_eq!(apply(HeaderChange::Remove(name.clone())), "");
    }

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
            (changed(|it| it.scheme = Some("https".into())), "http://a:81/x", "https://a:81/x"),
            (changed(|it| it.scheme = Some("http".into())), "http://a:80/x", "http://a:80/x"),
            (changed(|it| (it.host, it.port) = (Some("b:1".into()), Some(2))), "http://a/x", "http://b:2/x"),
            (changed(|it| (it.host, it.port) = (Some("b:1".into()), Some(80))), "http://a/x", "http://b/x"),
            (changed(|it| it.port = Some(8443)), "http://a/x", "http://a:8443/x"),
            (changed(|it| it.strip_query = true), "http://a:1/x?q", "http://a:1/x"),
            (changed(|it| it.path = Some(PathChange::Full("/y".into()))), "http://a/x?q", "http://a/y?q"),
            (changed(|it| it.path = Some(PathChange::Full("/y?r".into()))), "http://a/x?q", "http://a/y?r"),
            (changed(|it| it.path = Some(PathChange::Prefix("/y".into()))), "http://a/x/z", "http://a/y/z"),
            (changed(|it| it.path = Some(PathChange::Prefix("/y?r".into()))), "http://a/x?q", "http://a/y?r&q"),
        ];
        for (it, uri, expected) in cases {
            let parts = http::Request::get(uri).body(()).unwrap().into_parts().0;
            let matches = RouteMatch::path(prefix("/x"));
            assert_eq!(location(&it, &matches, &RequestHead::of(&parts).unwrap()).unwrap(), expected);
        }
    }

    #[test]
    fn a_uri_that_is_edited_stays_one() {
        for uri in ["reviews:9080", "http://reviews:9080/p", "http://reviews:9080"] {
            let mut request = head(uri);
            edit(&mut request.uri, |uri| uri.path_and_query = Some(PathAndQuery::from_static("/new")));
            assert_eq!(request.uri, "http://reviews:9080/new", "{uri}");
        }
        let mut path = head("/p");
        edit(&mut path.uri, |uri| uri.path_and_query = Some(PathAndQuery::from_static("/new")));
        assert_eq!(path.uri, "/new");
    }

    fn head(uri: &str) -> Parts {
        http::Request::get(uri).body(()).unwrap().into_parts().0
    }
}
