//! Which route a request takes: domains, then the first route in order whose every condition holds.
//!
//! The order of routes is what users write and rely on, so the index (`matcher/index.rs`) never changes it: it only
//! narrows the candidates. Rules: `envoy.config.route.v3`, gRFC A28, A63.

mod index;
mod unmet;

use std::collections::HashMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::error::Invalid;
use crate::model::{HeaderTest, PathTest, QueryTest, SegmentTemplate, StringTest, TemplatePart, VirtualHost};
use crate::request::{RequestHead, is_authority};

pub use index::RouteIndex;
pub(crate) use unmet::string;
pub use unmet::{Unmet, conditions};

/// Finds the virtual host of an authority: exact, then the longest `*.suffix`, then the longest `prefix.*`,
/// then `*`. Case is folded.
#[derive(Debug, Default)]
pub struct DomainIndex {
    exact: HashMap<Box<str>, usize, foldhash::fast::RandomState>,
    suffixes: Vec<(Box<str>, usize)>,
    prefixes: Vec<(Box<str>, usize)>,
    /// Hosts with any port (`host:*`), with their colon: they are as many as hosts, and found without looking at all.
    with_ports: HashMap<Box<str>, usize, foldhash::fast::RandomState>,
    any: Option<usize>,
}

impl DomainIndex {
    /// Indexes the domains of all hosts; where one is listed twice, the first host has it.
    pub fn new(hosts: &[VirtualHost]) -> Self {
        let mut index = DomainIndex::default();
        for (position, host) in hosts.iter().enumerate() {
            for domain in &host.domains {
                let domain = domain.to_ascii_lowercase();
                if domain == "*" {
                    index.any.get_or_insert(position);
                } else if let Some(suffix) = domain.strip_prefix('*') {
                    index.suffixes.push((suffix.into(), position));
                } else if let Some(host) = domain.strip_suffix('*').filter(|host| host.ends_with(':')) {
                    index.with_ports.entry(host.into()).or_insert(position);
                } else if let Some(prefix) = domain.strip_suffix('*') {
                    index.prefixes.push((prefix.into(), position));
                } else {
                    index.exact.entry(domain.into()).or_insert(position);
                }
            }
        }
        // Longest first; the sort is stable, so the first host listed wins among equals.
        index.suffixes.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        index.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        index
    }

    /// The position of the host of `authority`.
    pub fn find(&self, authority: &str) -> Option<usize> {
        if let Some(position) = self.exact.get(authority) {
            return Some(*position);
        }
        let only_any =
            self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() && self.with_ports.is_empty();
        if only_any {
            return self.any;
        }
        // Names are kept in lower case, and nearly every caller writes them so.
        if authority.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return self.find_lower(&authority.to_ascii_lowercase());
        }
        self.find_lower(authority)
    }

    /// The domain by which [`find`](DomainIndex::find) gave `authority` to this host: the first of its own in the same order.
    pub fn domain_of<'h>(host: &'h VirtualHost, authority: &str) -> Option<&'h str> {
        let authority = authority.to_ascii_lowercase();
        let rank = |domain: &str| {
            let domain = domain.to_ascii_lowercase();
            let fits = |part: &str, is_part: bool| is_part && authority.len() > part.len();
            match (domain.strip_prefix('*'), domain.strip_suffix('*')) {
                _ if domain == authority => Some((0, 0)),
                (Some(""), _) => Some((3, 0)),
                (Some(suffix), _) => fits(suffix, authority.ends_with(suffix)).then(|| (1, usize::MAX - suffix.len())),
                (None, Some(prefix)) => {
                    fits(prefix, authority.starts_with(prefix)).then(|| (2, usize::MAX - prefix.len()))
                }
                (None, None) => None,
            }
        };
        let ranked = host.domains.iter().filter_map(|domain| Some((rank(domain)?, domain)));
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, domain)| domain.as_str())
    }

    fn find_lower(&self, authority: &str) -> Option<usize> {
        if let Some(position) = self.exact.get(authority) {
            return Some(*position);
        }
        // The part that a wildcard stands for is never empty.
        let longer = |part: &str| authority.len() > part.len();
        let by_suffix = self.suffixes.iter().find(|(suffix, _)| longer(suffix) && authority.ends_with(&**suffix));
        if let Some((_, position)) = by_suffix {
            return Some(*position);
        }
        let by_prefix = self.prefixes.iter().find(|(prefix, _)| longer(prefix) && authority.starts_with(&**prefix));
        let colons = authority.match_indices(':').filter(|_| !self.with_ports.is_empty());
        let hosts = colons.filter_map(|(colon, _)| authority.get(..=colon)).filter(|host| longer(host));
        let with_port = hosts.filter_map(|host| Some((host.len(), *self.with_ports.get(host)?))).next_back();
        match (by_prefix, with_port) {
            (Some((prefix, _)), Some((length, position))) if length > prefix.len() => Some(position),
            (Some((_, position)), _) => Some(*position),
            (None, Some((_, position))) => Some(position),
            (None, None) => self.any,
        }
    }
}

/// So many headers are looked through faster than a name is hashed.
const FEW_HEADERS: usize = 6;

/// Where a header condition looks.
#[derive(Clone, Debug)]
pub enum Field {
    /// `:method`
    Method,
    /// `:path`
    Path,
    /// `:authority`, also written `host`, in any case
    Authority,
    /// `:scheme`
    Scheme,
    /// A real header.
    Header(HeaderName),
}

impl Field {
    /// The field that a test names.
    pub fn of(test: &HeaderTest) -> Result<Field, Invalid> {
        let name = match test {
            HeaderTest::Value { name, .. } | HeaderTest::Range { name, .. } | HeaderTest::Present { name, .. } => name,
        };
        Field::named(name)
    }

    /// The field of this name.
    pub(crate) fn named(name: &str) -> Result<Field, Invalid> {
        Ok(match name {
            ":method" => Field::Method,
            ":path" => Field::Path,
            ":scheme" => Field::Scheme,
            name if is_authority(name) => Field::Authority,
            name => Field::Header(
                HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| Invalid::new(format!("{name:?} is no header name")).at("name"))?,
            ),
        })
    }

    /// The first value of it that a request has.
    #[inline]
    pub(crate) fn first_value<'r>(&self, head: &RequestHead<'r>) -> Option<&'r [u8]> {
        Some(match self {
            Field::Method => head.method.as_str().as_bytes(),
            Field::Path => head.path_and_query.as_bytes(),
            Field::Authority => head.authority.as_bytes(),
            Field::Scheme => head.scheme.as_bytes(),
            Field::Header(name) => first_header(head.headers, name)?.as_bytes(),
        })
    }
}

/// The first value of a header.
#[inline]
fn first_header<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    if headers.len() > FEW_HEADERS {
        return headers.get(name);
    }
    headers.iter().find_map(|(one, value)| (one == name).then_some(value))
}

/// Whether a request passes a test on its path.
pub fn path_matches(test: &PathTest, head: &RequestHead<'_>) -> bool {
    match test {
        PathTest::Prefix { value, ignore_case } => starts_with(head.path_and_query, value, *ignore_case),
        PathTest::Exact { value, ignore_case: false } => head.path() == value,
        PathTest::Exact { value, ignore_case: true } => head.path().eq_ignore_ascii_case(value),
        PathTest::Regex(regex) => regex.is_match(head.path().as_bytes()),
        PathTest::Separated { value, ignore_case } => {
            let path = head.path();
            starts_with(path, value, *ignore_case) && matches!(path.as_bytes().get(value.len()), None | Some(b'/'))
        }
        PathTest::Template(template) => template_matches(template, head.path()),
    }
}

fn starts_with(path: &str, prefix: &str, ignore_case: bool) -> bool {
    let Some(head) = path.as_bytes().get(..prefix.len()) else { return false };
    if ignore_case { head.eq_ignore_ascii_case(prefix.as_bytes()) } else { head == prefix.as_bytes() }
}

/// Whether a path fits a template. `{**}` may stand anywhere; the path is walked once per position of it.
pub fn template_matches(template: &SegmentTemplate, path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|path| segments_match(&template.parts, path, 0))
}

/// Whether a path without its first slash fits these parts, of which each `{**}` stands for at least so many segments.
pub(crate) fn segments_match(parts: &[TemplatePart], path: &str, least: usize) -> bool {
    let segments: SmallVec<[&str; 16]> = path.split('/').collect();
    // Two cursors and one place to go back to: linear in practice, quadratic at worst, never exponential.
    let (mut part, mut segment, mut retry) = (0, 0, None);
    loop {
        match (parts.get(part), segments.get(segment)) {
            (None, None) => return true,
            (Some(TemplatePart::Many), _) => {
                if segment + least > segments.len() {
                    return false;
                }
                retry = Some((part + 1, segment + least));
                (part, segment) = (part + 1, segment + least);
                continue;
            }
            (Some(TemplatePart::Literal(literal)), Some(text)) if literal == text => {}
            (Some(TemplatePart::One), Some(text)) if !text.is_empty() => {}
            _ => {
                let Some((after, from)) = retry.filter(|(_, from)| *from < segments.len()) else { return false };
                retry = Some((after, from + 1));
                (part, segment) = (after, from + 1);
                continue;
            }
        }
        part += 1;
        segment += 1;
    }
}

/// Whether a request passes a test on one of its headers.
pub fn header_matches(field: &Field, test: &HeaderTest, head: &RequestHead<'_>) -> bool {
    let pseudo = |text: &str, test: &dyn Fn(&[u8]) -> bool| test(text.as_bytes());
    let value_is = |condition: &dyn Fn(&[u8]) -> bool| -> Option<bool> {
        match field {
            Field::Method => Some(pseudo(head.method.as_str(), condition)),
            Field::Path => Some(pseudo(head.path_and_query, condition)),
            Field::Authority => Some(pseudo(head.authority, condition)),
            Field::Scheme => Some(pseudo(head.scheme, condition)),
            Field::Header(name) => any_value(head.headers, name, condition),
        }
    };
    value_passes(test, &value_is)
}

/// Whether a request passes one of some tests on its headers.
pub fn request_matches_any(tests: &[HeaderTest], head: &RequestHead<'_>) -> bool {
    tests.iter().any(|test| Field::of(test).is_ok_and(|field| header_matches(&field, test, head)))
}

/// Whether an answer passes a test on one of its headers.
pub fn answer_matches(test: &HeaderTest, headers: &HeaderMap) -> bool {
    let (HeaderTest::Value { name, .. } | HeaderTest::Range { name, .. } | HeaderTest::Present { name, .. }) = test;
    let name = HeaderName::from_bytes(name.as_bytes());
    // An answer has no pseudo header that could be tested.
    value_passes(test, &|condition| any_value(headers, name.as_ref().ok()?, condition))
}

/// Whether a header has a value that meets a condition.
type ValueIs<'h> = dyn Fn(&dyn Fn(&[u8]) -> bool) -> Option<bool> + 'h;

/// Whether a header passes a test; `value_is` says whether one of its values meets a condition, `None` where there is no
/// such header.
fn value_passes(test: &HeaderTest, value_is: &ValueIs<'_>) -> bool {
    match test {
        HeaderTest::Value { test, invert, missing_is_empty, .. } => {
            tested(value_is(&|value| test.is_match(value)), test.is_match(b""), *missing_is_empty, *invert)
        }
        HeaderTest::Range { start, end, invert, missing_is_empty, .. } => {
            let in_range = |value: &[u8]| {
                let number = std::str::from_utf8(value).ok().and_then(|value| value.parse::<i64>().ok());
                number.is_some_and(|number| (*start..*end).contains(&number))
            };
            tested(value_is(&in_range), false, *missing_is_empty, *invert)
        }
        HeaderTest::Present { present, .. } => value_is(&|_| true).is_some() == *present,
    }
}

/// A missing header fails the test, inverted or not, unless it stands for the empty string.
fn tested(outcome: Option<bool>, outcome_of_empty: bool, missing_is_empty: bool, invert: bool) -> bool {
    match outcome {
        Some(passes) => passes != invert,
        None if missing_is_empty => outcome_of_empty != invert,
        None => false,
    }
}

/// Applies a condition to the values of a header: one that meets it is enough, so that an inverted test fails by any of
/// them. `None` where there is no such header.
fn any_value(headers: &HeaderMap, name: &HeaderName, condition: &dyn Fn(&[u8]) -> bool) -> Option<bool> {
    let mut values = headers.get_all(name).iter().map(|value| value.as_bytes());
    let first = values.next()?;
    Some(condition(first) || values.any(condition))
}

/// Whether a query passes a test on one parameter; the first of several counts.
pub fn query_matches(test: &QueryTest, query: Option<&str>) -> bool {
    match (&test.test, query_value(&test.name, query)) {
        (None, value) => value.is_some(),
        (Some(_), None) => false,
        (Some(test), Some(value)) => StringTest::is_match(test, value.as_bytes()),
    }
}

/// The value of the first parameter of a name.
fn query_value<'q>(wanted: &str, query: Option<&'q str>) -> Option<&'q str> {
    let at = |text: &str, byte| text.bytes().position(|one| one == byte);
    let mut rest = query?;
    loop {
        let end = at(rest, b'&');
        let pair = rest.get(..end.unwrap_or(rest.len()))?;
        let length = at(pair, b'=').unwrap_or(pair.len());
        if !pair.is_empty() && pair.get(..length) == Some(wanted) {
            return Some(pair.get(length + 1..).unwrap_or_default());
        }
        rest = rest.get(end? + 1..)?;
    }
}

#[cfg(test)]
#[path = "matcher_tests.rs"]
mod tests;
