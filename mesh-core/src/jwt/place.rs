//! Where a request's tokens are, and how they are taken away before the application sees them.

use std::borrow::Cow;

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderValue, Uri};

use super::Refusal;
use crate::model::TokenLocation;
use crate::request::RequestHead;

const TWICE: Refusal = Refusal::Malformed("Jwt is given more than once");

/// Where a provider without places of its own looks (Envoy, Istio).
pub(super) fn defaults() -> Vec<TokenLocation> {
    vec![
        TokenLocation::Header(AUTHORIZATION, "Bearer ".to_owned()),
        TokenLocation::Parameter("access_token".to_owned()),
    ]
}

/// The token in any of these places, and in which. More than one is refused: nobody can tell which of them the application
/// would take (hazard J12).
pub(super) fn find<'r>(
    locations: &[TokenLocation],
    head: &RequestHead<'r>,
) -> Result<Option<(usize, &'r str)>, Refusal> {
    let mut found = None;
    for (index, location) in locations.iter().enumerate() {
        if let Some(token) = token(location, head)? {
            if found.is_some() {
                return Err(TWICE);
            }
            found = Some((index, token));
        }
    }
    Ok(found)
}

fn token<'r>(location: &TokenLocation, head: &RequestHead<'r>) -> Result<Option<&'r str>, Refusal> {
    match location {
        TokenLocation::Header(name, prefix) => {
            let mut values = head.headers.get_all(name).iter();
            let mut tokens = head.headers.get_all(name).iter().filter_map(|value| behind(value, prefix));
            let Some(token) = tokens.next() else { return Ok(None) };
            if values.nth(1).is_some() {
                return Err(TWICE);
            }
            let token = std::str::from_utf8(token).map_err(|_| Refusal::Malformed("Jwt is not text"))?;
            Ok(Some(token.trim_matches(' ')))
        }
        TokenLocation::Parameter(name) => only(parameters(head.query().unwrap_or_default(), name)),
        TokenLocation::Cookie(name) => {
            let cookies = head.headers.get_all(COOKIE).iter();
            only(cookies.filter_map(|value| value.to_str().ok()).flat_map(|value| {
                value.split(';').filter_map(|pair| pair.trim_matches(' ').strip_prefix(&**name)?.strip_prefix('='))
            }))
        }
    }
}

fn only<'r>(mut values: impl Iterator<Item = &'r str>) -> Result<Option<&'r str>, Refusal> {
    let first = values.next();
    if values.next().is_some() { Err(TWICE) } else { Ok(first) }
}

fn parameters<'q>(query: &'q str, name: &str) -> impl Iterator<Item = &'q str> {
    query.split('&').filter_map(move |pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// What stands behind a prefix, whose case does not count (RFC 9110, 11.1).
fn behind<'v>(value: &'v HeaderValue, prefix: &str) -> Option<&'v [u8]> {
    let (start, rest) = value.as_bytes().split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix.as_bytes()).then_some(rest)
}

/// Takes the token away from its place.
pub(super) fn remove(location: &TokenLocation, headers: &mut HeaderMap, uri: &mut Uri) {
    match location {
        TokenLocation::Header(name, _) => _ = headers.remove(name),
        TokenLocation::Parameter(name) => {
            if let Some(stripped) = without_parameter(uri, name) {
                *uri = stripped;
            }
        }
        TokenLocation::Cookie(name) => {
            let is_kept = |pair: &&str| {
                let pair = pair.trim_matches(' ');
                !pair.is_empty() && pair.strip_prefix(&**name).is_none_or(|rest| !rest.starts_with('='))
            };
            let kept: Vec<HeaderValue> = headers
                .get_all(COOKIE)
                .iter()
                .filter_map(|value| {
                    let Ok(text) = value.to_str() else { return Some(value.clone()) };
                    let pairs: Vec<&str> = text.split(';').filter(is_kept).map(|pair| pair.trim_matches(' ')).collect();
                    HeaderValue::try_from(pairs.join("; ")).ok().filter(|value| !value.is_empty())
                })
                .collect();
            headers.remove(COOKIE);
            for value in kept {
                headers.append(COOKIE, value);
            }
        }
    }
}

fn without_parameter(uri: &Uri, name: &str) -> Option<Uri> {
    let is_kept = |pair: &&str| pair.strip_prefix(name).is_none_or(|rest| !rest.starts_with('='));
    let kept: Vec<&str> = uri.query()?.split('&').filter(is_kept).collect();
    let path = match kept.is_empty() {
        true => Cow::Borrowed(uri.path()),
        false => Cow::Owned(format!("{}?{}", uri.path(), kept.join("&"))),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path.parse().ok()?);
    Uri::from_parts(parts).ok()
}
