//! The hash of a request by its route's policies, as Envoy computes it (`envoy.config.route.v3.RouteAction.HashPolicy`):
//! so that our clients and Envoy's send what is alike to the same endpoint.

use std::borrow::Cow;
use std::sync::Arc;

use http::HeaderValue;
use smallvec::SmallVec;
use xxhash_rust::xxh64::xxh64;

use crate::model::{CookieKey, HashKey, HashPolicy, HashedHeader, PathRewrite};
use crate::request::{RequestHead, cookie};

/// Who makes requests, for policies that hash by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caller {
    /// The address of the process, without a port.
    pub address: Arc<str>,
    /// One client of it, by a random number.
    pub channel: u64,
}

impl Caller {
    /// This client of the process at this address.
    pub fn new(address: impl Into<Arc<str>>, channel: u64) -> Self {
        Caller { address: address.into(), channel }
    }
}

/// What a route's policies make of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hashed {
    /// The hash; `None` where the request has nothing of what is hashed.
    pub hash: Option<u64>,
    /// Cookies that were made for the caller, for the response: `Set-Cookie`.
    pub set_cookies: Vec<HeaderValue>,
}

/// The hash of a request. `made` is what the value of a cookie is made of that is made for it.
pub fn hash(policies: &[HashPolicy], head: &RequestHead<'_>, caller: &Caller, made: u64) -> Hashed {
    let mut set_cookies = Vec::new();
    let hash = of_all(policies, |key| {
        brought(key, head).or_else(|| match key {
            HashKey::Cookie(key) => {
                let value = value_of(made);
                set_cookies.push(key.set_cookie(&value)?);
                Some(xxh64(value.as_bytes(), 0))
            }
            HashKey::SourceAddress => Some(xxh64(caller.address.as_bytes(), 0)),
            HashKey::Channel => Some(caller.channel),
            HashKey::Header(..) | HashKey::Query(_) => None,
        })
    });
    Hashed { hash, set_cookies }
}

/// The hash of what a request itself brings, whoever makes it. A cookie that is made for who brings none is of what `make` says,
/// and counts only where that says something.
pub fn hash_of_request(
    policies: &[HashPolicy],
    head: &RequestHead<'_>,
    mut make: impl FnMut() -> Option<u64>,
) -> Option<u64> {
    of_all(policies, |key| {
        brought(key, head).or_else(|| match key {
            HashKey::Cookie(key) if key.is_made() => Some(xxh64(value_of(make()?).as_bytes(), 0)),
            HashKey::Cookie(_)
            | HashKey::Header(..)
            | HashKey::Query(_)
            | HashKey::SourceAddress
            | HashKey::Channel => None,
        })
    })
}

/// The hash of all policies, by those of their keys.
fn of_all(policies: &[HashPolicy], mut of: impl FnMut(&HashKey) -> Option<u64>) -> Option<u64> {
    let mut hash = None;
    for policy in policies {
        hash = combined(hash, of(&policy.key));
        if policy.terminal && hash.is_some() {
            break;
        }
    }
    hash
}

/// The value of a cookie that is made of this.
fn value_of(made: u64) -> String {
    format!("{made:016x}")
}

/// Turned, so that a policy that is listed twice does not cancel itself.
fn combined(old: Option<u64>, new: Option<u64>) -> Option<u64> {
    match new {
        Some(new) => Some(old.map_or(0, |old| old.rotate_left(1)) ^ new),
        None => old,
    }
}

fn brought(key: &HashKey, head: &RequestHead<'_>) -> Option<u64> {
    match key {
        HashKey::Header(header, rewrite) => of_header(header, rewrite.as_ref(), head),
        HashKey::Cookie(key) => of_cookie(key, head),
        HashKey::Query(name) => of_query(name, head),
        HashKey::SourceAddress | HashKey::Channel => None,
    }
}

fn of_header(header: &HashedHeader, rewrite: Option<&PathRewrite>, head: &RequestHead<'_>) -> Option<u64> {
    let mut values: SmallVec<[Cow<'_, [u8]>; 4]> = match header {
        HashedHeader::Method => [head.method.as_str().as_bytes().into()].into_iter().collect(),
        HashedHeader::Path => [head.path_and_query.as_bytes().into()].into_iter().collect(),
        HashedHeader::Authority => [head.authority.as_bytes().into()].into_iter().collect(),
        HashedHeader::Scheme => [head.scheme.as_bytes().into()].into_iter().collect(),
        HashedHeader::Real(name) => {
            head.headers.get_all(name).iter().map(|value| Cow::Borrowed(value.as_bytes())).collect()
        }
    };
    if values.is_empty() {
        return None;
    }
    if let Some(rewrite) = rewrite {
        for value in &mut values {
            // What is no text has no match.
            let rewritten = std::str::from_utf8(value).ok().map(|text| rewrite.apply(text).into_owned());
            if let Some(rewritten) = rewritten {
                *value = Cow::Owned(rewritten.into_bytes());
            }
        }
    }
    // The order in which they come does not count.
    values.sort_unstable();
    Some(values.iter().fold(0, |seed, value| xxh64(value, seed)))
}

fn of_cookie(key: &CookieKey, head: &RequestHead<'_>) -> Option<u64> {
    cookie(head.headers, &key.name).filter(|value| !value.is_empty()).map(|value| xxh64(value, 0))
}

fn of_query(name: &str, head: &RequestHead<'_>) -> Option<u64> {
    let value = head.query()?.split('&').find_map(|pair| match pair.split_once('=') {
        Some((key, value)) => (key == name).then_some(value),
        None => (pair == name).then_some(""),
    })?;
    Some(xxh64(value.as_bytes(), 0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Request;

    use super::*;

    fn hashed(keys: Vec<(HashKey, bool)>, uri: &str, headers: &[(&str, &str)]) -> Hashed {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let policies: Vec<_> =
            keys.into_iter().map(|(key, terminal)| HashPolicy { terminal, ..HashPolicy::by(key) }).collect();
        let caller = Caller::new("10.0.0.1", 7);
        hash(&policies, &RequestHead::of(&parts).unwrap(), &caller, 1)
    }

    fn header(name: &str) -> HashKey {
        HashKey::Header(HashedHeader::named(name).unwrap(), None)
    }

    #[test]
    fn each_policy_hashes_what_it_names() {
        let rewrite = PathRewrite::new("^(u)-.*$", r"\1").unwrap();
        let query = HashKey::Query("q".into());
        let cookie = || HashKey::Cookie(CookieKey::new("c").unwrap());
        let rewritten = HashKey::Header(HashedHeader::named("x-a").unwrap(), Some(rewrite));
        let uri = "http://h/p?a=1&q=x%20y&q=2";
        /// A policy, headers, and what is hashed.
        type Case<'c> = (HashKey, &'c [(&'c str, &'c str)], Option<&'c str>);
        let cases: Vec<Case<'_>> = vec![
            (header("x-a"), &[("x-a", "v")], Some("v")),
            (header("x-a"), &[], None),
            (header(":path"), &[], Some("/p?a=1&q=x%20y&q=2")),
            (header(":authority"), &[], Some("h")),
            (header(":method"), &[], Some("GET")),
            (rewritten, &[("x-a", "u-123")], Some("u")),
            (query, &[], Some("x%20y")),
            (HashKey::Query("none".into()), &[], None),
            (cookie(), &[("cookie", "b=1; c=v; c=w")], Some("v")),
            (cookie(), &[("cookie", "b=1"), ("cookie", "c=\"v\"")], Some("v")),
            (cookie(), &[("cookie", "cc=1; c=")], None),
            (HashKey::SourceAddress, &[], Some("10.0.0.1")),
        ];
        for (key, headers, expected) in cases {
            let shown = format!("{key:?} {headers:?}");
            let expected = expected.map(|text| xxh64(text.as_bytes(), 0));
            assert_eq!(hashed(vec![(key, false)], uri, headers).hash, expected, "{shown}");
        }
        assert_eq!(hashed(vec![(HashKey::Channel, false)], uri, &[]).hash, Some(7));
    }

    #[test]
    fn policies_are_combined_until_a_terminal_one_has_a_hash() {
        let (x, y) = (xxh64(b"x", 0), xxh64(b"y", 0));
        let both = [("x-a", "x"), ("x-b", "y")];
        let of = |first, second, headers| {
            hashed(vec![(header("x-a"), first), (header("x-b"), second)], "http://h/", headers).hash
        };
        assert_eq!(of(false, false, &both), Some(x.rotate_left(1) ^ y));
        assert_eq!(of(true, false, &both), Some(x));
        assert_eq!(of(true, false, &both[1..]), Some(y), "the first has nothing to hash");
        assert_eq!(
            hashed(vec![(header("x-a"), false), (header("x-a"), false)], "http://h/", &both).hash,
            Some(x.rotate_left(1) ^ x)
        );
    }

    #[test]
    fn the_order_of_a_headers_values_does_not_count() {
        let of = |headers: &[(&str, &str)]| hashed(vec![(header("x-a"), false)], "http://h/", headers).hash;
        assert_eq!(of(&[("x-a", "1"), ("x-a", "2")]), of(&[("x-a", "2"), ("x-a", "1")]));
        assert_ne!(of(&[("x-a", "1"), ("x-a", "2")]), of(&[("x-a", "12")]));
    }

    #[test]
    fn who_has_no_cookie_is_given_one_whose_hash_counts() {
        let key = CookieKey::new("c").unwrap();
        let made = key.clone().made(Duration::from_secs(60), "/p", [("SameSite", "Strict"), ("Secure", "")]).unwrap();
        let first = hashed(vec![(HashKey::Cookie(made.clone()), false)], "http://h/", &[]);
        let [set] = first.set_cookies.as_slice() else { panic!("{first:?}") };
        let set = set.to_str().unwrap();
        let (pair, attributes) = set.split_once(';').unwrap();
        assert_eq!(attributes, " Max-Age=60; Path=/p; SameSite=Strict; Secure; HttpOnly");
        let second = hashed(vec![(HashKey::Cookie(made), false)], "http://h/", &[("cookie", pair)]);
        assert_eq!((second.hash, second.set_cookies), (first.hash, vec![]));
        let session = key.clone().made(Duration::ZERO, "", []).unwrap();
        assert_eq!(session.set_cookie("1").unwrap(), "c=\"1\"; HttpOnly");
        let once = key.clone().made(Duration::ZERO, "", [("httponly", ""), ("Secure", "")]).unwrap();
        assert_eq!(once.set_cookie("1").unwrap(), "c=\"1\"; httponly; Secure");
        for wrong in ["a;b", "a\nb", "é"] {
            assert!(key.clone().made(Duration::ZERO, wrong, []).is_err(), "{wrong}");
            assert!(key.clone().made(Duration::ZERO, "", [(wrong, "")]).is_err(), "{wrong}");
        }
        assert!(CookieKey::new("a b").is_err());
    }
}
