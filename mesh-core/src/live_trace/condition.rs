//! Which requests a trace begins with: where they go, and what else has to be so of them, as a person writes it.

use std::fmt;
use std::str::FromStr;

use http::{HeaderName, HeaderValue, Method};

use crate::error::Invalid;
use crate::request::{RequestHead, split_authority};

/// Which requests a trace begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Where {
    /// The host that they ask for, with or without a port. A short name and a long one mean the same service where the one is
    /// the start of the other: `reviews`, and `reviews.default.svc.cluster.local`. Empty: any.
    pub host: Box<str>,
    /// What has to be so besides.
    pub conditions: Vec<Condition>,
}

/// What has to be so of a request.
///
/// ```
/// use mesh_core::live_trace::Condition;
///
/// for text in ["header end-user=jason", "header x-canary", "path /reviews/1", "path /reviews/*", "method POST"] {
///     let condition: Condition = text.parse()?;
///     assert_eq!(condition.to_string(), text);
/// }
/// assert!("colour red".parse::<Condition>().is_err());
/// # Ok::<(), mesh_core::error::Invalid>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition {
    /// A header is there, with this value where one is said.
    Header(HeaderName, Option<HeaderValue>),
    /// The path is this one, its query aside, or begins so.
    Path {
        /// The path, or its start.
        path: Box<str>,
        /// Whether more may follow.
        is_prefix: bool,
    },
    /// The method.
    Method(Method),
}

impl Where {
    /// Requests to this host.
    pub fn to(host: &str) -> Self {
        Where { host: host.to_ascii_lowercase().into(), conditions: Vec::new() }
    }

    /// Those of them of which this is so, too.
    pub fn and(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }

    /// Whether a request is one of them.
    pub fn fits(&self, head: &RequestHead<'_>) -> bool {
        is_host(&self.host, head.authority) && self.conditions.iter().all(|condition| condition.holds(head))
    }

    /// The headers that are looked at.
    pub fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.conditions.iter().filter_map(|condition| match condition {
            Condition::Header(name, _) => Some(name),
            Condition::Path { .. } | Condition::Method(_) => None,
        })
    }
}

/// Whether an authority is that of a host, as far as both say.
fn is_host(wanted: &str, authority: &str) -> bool {
    if wanted.is_empty() {
        return true;
    }
    fn parts(text: &str) -> (String, Option<&str>) {
        let (host, port) = split_authority(text).unwrap_or((text, None));
        (host.trim_end_matches('.').to_ascii_lowercase(), port)
    }
    let ((wanted, wanted_port), (host, port)) = (parts(wanted), parts(authority));
    let starts = |long: &str, short: &str| long.strip_prefix(short).is_some_and(|rest| rest.starts_with('.'));
    let is_same = wanted == host || (is_name(&host) && (starts(&wanted, &host) || starts(&host, &wanted)));
    is_same && wanted_port.is_none_or(|wanted| wanted == port.unwrap_or("80"))
}

fn is_name(host: &str) -> bool {
    host.bytes().any(|byte| byte.is_ascii_alphabetic())
}

impl Condition {
    fn holds(&self, head: &RequestHead<'_>) -> bool {
        match self {
            Condition::Header(name, wanted) => {
                let mut values = head.headers.get_all(name).iter();
                values.any(|value| wanted.as_ref().is_none_or(|wanted| wanted.as_bytes() == value.as_bytes()))
            }
            Condition::Path { path, is_prefix: true } => head.path().starts_with(&**path),
            Condition::Path { path, is_prefix: false } => head.path() == &**path,
            Condition::Method(method) => head.method == method,
        }
    }
}

impl FromStr for Condition {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || {
            let help = "expected `header NAME=VALUE`, `header NAME`, `path /PATH`, `path /START*` or `method METHOD`";
            Invalid::new(format!("{text:?}: {help}"))
        };
        let (what, rest) = text.trim().split_once(char::is_whitespace).ok_or_else(wrong)?;
        let rest = rest.trim();
        match what {
            "header" => {
                let (name, value) = rest.split_once('=').map_or((rest, None), |(name, value)| (name, Some(value)));
                let value = value.map(|value| HeaderValue::from_str(value.trim())).transpose().map_err(|_| wrong())?;
                Ok(Condition::Header(name.trim().parse().map_err(|_| wrong())?, value))
            }
            "path" if rest.starts_with('/') => Ok(match rest.strip_suffix('*') {
                Some(start) => Condition::Path { path: start.into(), is_prefix: true },
                None => Condition::Path { path: rest.into(), is_prefix: false },
            }),
            "method" => Ok(Condition::Method(rest.parse().map_err(|_| wrong())?)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Condition::Header(name, None) => write!(f, "header {name}"),
            Condition::Header(name, Some(value)) => {
                write!(f, "header {name}={}", String::from_utf8_lossy(value.as_bytes()))
            }
            Condition::Path { path, is_prefix } => write!(f, "path {path}{}", if *is_prefix { "*" } else { "" }),
            Condition::Method(method) => write!(f, "method {method}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_meant_by_its_short_and_by_its_long_name() {
        const LONG: &str = "reviews.default.svc.cluster.local";
        for (wanted, authority, expected) in [
            ("reviews", "reviews", true),
            ("reviews", "reviews:80", true),
            ("reviews", "reviews:9080", true),
            ("reviews:9080", "reviews:9080", true),
            ("reviews:80", "reviews", true),
            ("reviews:81", "reviews", false),
            ("reviews", LONG, true),
            (LONG, "reviews.default", true),
            ("reviews.default", "REVIEWS.default.svc", true),
            ("reviews", "reviews2", false),
            ("reviews.a", "reviews.b", false),
            ("10.0.0.1", "10.0.0.1:80", true),
            ("10.0.0.1", "10.0.0", false),
            ("", "anybody", true),
        ] {
            assert_eq!(is_host(&wanted.to_ascii_lowercase(), authority), expected, "{wanted} {authority}");
        }
    }

    #[test]
    fn all_conditions_have_to_hold() {
        let request = http::Request::post("http://a/x/y?z=1").header("end-user", "jason").body(()).unwrap();
        let (parts, ()) = request.into_parts();
        let head = RequestHead::of(&parts).unwrap();
        for (conditions, expected) in [
            (&["header end-user=jason", "path /x/*", "method POST"][..], true),
            (&["header end-user", "path /x/y"], true),
            (&["header end-user=jane"], false),
            (&["header end-users"], false),
            (&["path /x"], false),
            (&["path /x/*", "method GET"], false),
        ] {
            let wanted = conditions.iter().fold(Where::to("a"), |wanted, text| wanted.and(text.parse().unwrap()));
            assert_eq!(wanted.fits(&head), expected, "{conditions:?}");
        }
        for text in ["header", "header =x", "path x", "method", "method a b", "", "header a=\u{7}"] {
            assert!(text.parse::<Condition>().is_err(), "{text}");
        }
    }
}
