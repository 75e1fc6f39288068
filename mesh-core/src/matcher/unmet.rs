//! Conditions of routes in words, and which one a request does not meet. Decided by the matchers that find routes; this only
//! says it.

use std::fmt;

use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use serde::Serialize;

use super::Field;
use crate::model::{Fraction, HeaderTest, PathTest, QueryTest, RouteMatch, SegmentTemplate, StringTest, TemplatePart};
use crate::request::RequestHead;

/// So much of a text is shown.
const LONGEST_TEXT: usize = 200;

/// The first condition of a route that a request does not meet.
///
/// Displays as `header x-tier: exact "gold", request has "silver"`; serializes as an object with its fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Unmet {
    /// What it is: `request has "silver"` or `is absent`. Credentials are not shown.
    pub found: String,
    /// What it would have to be: `exact "gold"`.
    pub wanted: String,
    /// What is looked at: `path`, `header x-tier`, `query parameter v`.
    pub what: String,
}

impl Unmet {
    /// The same without what the query of the URL says, and without values of headers but of those that may be told.
    pub(crate) fn discreet(&mut self, head: &RequestHead<'_>, tells: &dyn Fn(&str) -> bool) {
        let is_told = match &*self.what {
            "path" | "header :path" => {
                self.found = has(head.path().as_bytes());
                true
            }
            SHARE => true,
            what => what.strip_prefix("header ").is_some_and(|name| name.starts_with(':') || tells(name)),
        };
        if !is_told && self.found != ABSENT {
            self.found = ANOTHER.to_owned();
        }
    }

    pub(super) fn of_path(test: &PathTest, head: &RequestHead<'_>) -> Unmet {
        Unmet { what: "path".to_owned(), wanted: path(test), found: has(head.path_and_query.as_bytes()) }
    }

    pub(super) fn of_grpc(head: &RequestHead<'_>) -> Unmet {
        let (what, wanted) = grpc();
        let field = Field::Header(http::header::CONTENT_TYPE);
        Unmet { what, wanted, found: found(&field, head) }
    }

    pub(super) fn of_header(field: &Field, test: &HeaderTest, head: &RequestHead<'_>) -> Unmet {
        let (what, wanted) = header(test);
        Unmet { what, wanted, found: found(field, head) }
    }

    pub(super) fn of_query(test: &QueryTest, head: &RequestHead<'_>) -> Unmet {
        let (what, wanted) = query(test);
        let value = super::query_value(&test.name, head.query());
        let found = value.map_or_else(|| ABSENT.to_owned(), |value| has(value.as_bytes()));
        Unmet { what, wanted, found }
    }

    pub(super) fn of_share(share: Fraction) -> Unmet {
        let (what, wanted) = of_requests(share);
        Unmet { what, wanted, found: "this one was not drawn".to_owned() }
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, {}", self.what, self.wanted, self.found)
    }
}

/// Every condition of a route in words, in the order in which they are looked at.
///
/// ```
/// use mesh_core::matcher::conditions;
/// use mesh_core::model::RouteMatch;
///
/// assert_eq!(conditions(&RouteMatch::any()), [r#"path: prefix "/""#]);
/// ```
pub fn conditions(route: &RouteMatch) -> Vec<String> {
    let path = ("path".to_owned(), path(&route.path));
    let all = std::iter::once(path).chain(route.grpc.then(grpc));
    let all = all.chain(route.headers.iter().map(header)).chain(route.query.iter().map(query));
    all.chain(route.fraction.map(of_requests)).map(|(what, wanted)| format!("{what}: {wanted}")).collect()
}

const ABSENT: &str = "is absent";
const ANOTHER: &str = "request has another";
const SHARE: &str = "share";

fn grpc() -> (String, String) {
    ("header content-type".to_owned(), "that of gRPC".to_owned())
}

fn header(test: &HeaderTest) -> (String, String) {
    let not = |invert: bool| if invert { "not " } else { "" };
    let (name, wanted) = match test {
        HeaderTest::Value { name, test, invert, .. } => (name, format!("{}{}", not(*invert), string(test))),
        HeaderTest::Range { name, start, end, invert, .. } => {
            (name, format!("{}a number of {start} or more and less than {end}", not(*invert)))
        }
        HeaderTest::Present { name, present: true } => (name, "present".to_owned()),
        HeaderTest::Present { name, present: false } => (name, "absent".to_owned()),
    };
    (format!("header {name}"), wanted)
}

fn query(test: &QueryTest) -> (String, String) {
    let wanted = test.test.as_ref().map_or_else(|| "present".to_owned(), string);
    (format!("query parameter {}", test.name), wanted)
}

fn of_requests(share: Fraction) -> (String, String) {
    (SHARE.to_owned(), format!("{} % of requests", f64::from(share.per_million()) / 10_000.0))
}

/// A test of a text in words.
pub(crate) fn string(test: &StringTest) -> String {
    match test {
        StringTest::Exact { value, ignore_case } => text("exact", value, *ignore_case),
        StringTest::Prefix { value, ignore_case } => text("prefix", value, *ignore_case),
        StringTest::Suffix { value, ignore_case } => text("suffix", value, *ignore_case),
        StringTest::Contains { value, ignore_case } => text("containing", value, *ignore_case),
        StringTest::Regex(regex) => text("regex", regex.as_str(), false),
    }
}

fn path(test: &PathTest) -> String {
    match test {
        PathTest::Prefix { value, ignore_case } => text("prefix", value, *ignore_case),
        PathTest::Exact { value, ignore_case } => text("exact", value, *ignore_case),
        PathTest::Separated { value, ignore_case } => text("at or below", value, *ignore_case),
        PathTest::Regex(regex) => text("regex", regex.as_str(), false),
        PathTest::Template(SegmentTemplate { parts }) => {
            let parts = parts.iter().map(|part| match part {
                TemplatePart::Literal(literal) => format!("/{literal}"),
                TemplatePart::One => "/{*}".to_owned(),
                TemplatePart::Many => "/{**}".to_owned(),
            });
            text("template", &parts.collect::<String>(), false)
        }
    }
}

fn text(kind: &str, value: &str, ignore_case: bool) -> String {
    let case = if ignore_case { " in any case" } else { "" };
    [kind, " ", &quoted(value.as_bytes()), case].concat()
}

/// What a request has in a field. Of several values, all count.
fn found(field: &Field, head: &RequestHead<'_>) -> String {
    match field {
        Field::Method => has(head.method.as_str().as_bytes()),
        Field::Path => has(head.path_and_query.as_bytes()),
        Field::Authority => has(head.authority.as_bytes()),
        Field::Scheme => has(head.scheme.as_bytes()),
        Field::Header(name) => {
            let values: Vec<_> = head.headers.get_all(name).iter().collect();
            match values.as_slice() {
                [] => ABSENT.to_owned(),
                _ if [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION].contains(name) => ANOTHER.to_owned(),
                values if values.iter().any(|value| value.is_sensitive()) => ANOTHER.to_owned(),
                values => {
                    let values: Vec<String> = values.iter().map(|value| quoted(value.as_bytes())).collect();
                    format!("request has {}", values.join(" and "))
                }
            }
        }
    }
}

fn has(value: &[u8]) -> String {
    ["request has ", &quoted(value)].concat()
}

/// A text between quotes, not too long.
fn quoted(value: &[u8]) -> String {
    let shown = String::from_utf8_lossy(value.get(..LONGEST_TEXT).unwrap_or(value));
    let more = if value.len() > LONGEST_TEXT { "..." } else { "" };
    // Of most there is nothing to escape, and there may be thousands.
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    if value.iter().all(is_plain) { ["\"", &*shown, "\"", more].concat() } else { format!("{shown:?}{more}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_with_their_escapes_and_long_ones_are_cut() {
        for byte in u8::MIN..=u8::MAX {
            let text = [b'a', byte];
            assert_eq!(quoted(&text), format!("{:?}", String::from_utf8_lossy(&text)));
        }
        let long = |length: usize| quoted("x".repeat(length).as_bytes());
        assert_eq!((long(200).len(), long(201)), (202, format!("{}...", long(200))));
    }
}
