//! The value of a header that configuration adds: fixed text, or text with facts of the message in it (Envoy's
//! substitution format, `%REQ(x-user)%`).
//!
//! Read once, when the configuration is read. Of Envoy's commands these are known, since a library in the caller's own
//! process can honour them exactly: `%%`, `%REQ(X?Y):Z%` and `%PROTOCOL%` in headers of requests, `%RESP(X?Y):Z%` and
//! `%RESPONSE_CODE%` in headers of responses. Any other makes the value invalid: sent as it stands it would be a lie.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};

use super::command::{Command, Piece, pieces};
use crate::error::Invalid;
use crate::request::RequestHead;

/// The value of a header that configuration adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderText {
    /// Always this one.
    Fixed(HeaderValue),
    /// Put together for each message.
    Format(Arc<HeaderFormat>),
}

/// Which messages a header is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderTarget {
    /// Requests.
    Request,
    /// Responses.
    Response,
}

/// A value that is put together for each message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderFormat {
    parts: Vec<Part>,
    keep_empty: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Vec<u8>),
    Fact(Fact, Option<usize>),
}

/// What a command stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fact {
    /// The first value of the first of these headers that is there.
    Header(Vec<Name>),
    Protocol,
    ResponseCode,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Header(HeaderName),
    Method,
    Path,
    Authority,
    Scheme,
    Status,
}

impl From<HeaderValue> for HeaderText {
    fn from(value: HeaderValue) -> Self {
        HeaderText::Fixed(value)
    }
}

impl HeaderText {
    /// Reads a value as Envoy's configuration has it. With `keep_empty`, a value in which no fact is known adds an empty
    /// header; without, it adds none.
    ///
    /// ```
    /// use mesh_core::model::{HeaderTarget, HeaderText};
    ///
    /// let parse = |text: &str| HeaderText::parse(text.as_bytes(), HeaderTarget::Request, false);
    /// assert_eq!(parse("100%%").unwrap(), http::HeaderValue::from_static("100%").into());
    /// assert!(matches!(parse("%REQ(x-user)%"), Ok(HeaderText::Format(_))));
    /// assert!(parse("100%").is_err());
    /// ```
    pub fn parse(text: &[u8], target: HeaderTarget, keep_empty: bool) -> Result<HeaderText, Invalid> {
        // What is put in between are values of headers, so that the whole is one if the rest is.
        let is_value = |bytes: &[u8]| HeaderValue::from_bytes(bytes).map_err(|_| Invalid::new("not a header value"));
        let parts = pieces(text)?.into_iter().map(|piece| match piece {
            Piece::Text(text) => is_value(&text).map(|_| Part::Text(text)),
            Piece::Command(command) => part(&command, target),
        });
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        match parts.as_slice() {
            [] => is_value(b"").map(HeaderText::Fixed),
            [Part::Text(text)] => is_value(text).map(HeaderText::Fixed),
            _ => Ok(HeaderText::Format(Arc::new(HeaderFormat { parts, keep_empty }))),
        }
    }

    /// The value for a request, as it is before its route changes path and authority; `None` where it adds no header.
    pub fn of_request(&self, head: &RequestHead<'_>, version: Version) -> Option<HeaderValue> {
        match self {
            HeaderText::Fixed(value) => Some(value.clone()),
            HeaderText::Format(format) => format.of_request(head, version),
        }
    }

    /// The value, where it is the same for every message.
    pub fn fixed(&self) -> Option<&HeaderValue> {
        match self {
            HeaderText::Fixed(value) => Some(value),
            HeaderText::Format(_) => None,
        }
    }

    /// It as Envoy's configuration has it: what [`parse`](HeaderText::parse) reads.
    pub fn written(&self, target: HeaderTarget) -> String {
        let escaped = |text: &[u8]| String::from_utf8_lossy(text).replace('%', "%%");
        let written = |part: &Part| match part {
            Part::Text(text) => escaped(text),
            Part::Fact(fact, None) => format!("%{}%", fact.written(target)),
            Part::Fact(fact, Some(length)) => format!("%{}:{length}%", fact.written(target)),
        };
        match self {
            HeaderText::Fixed(value) => escaped(value.as_bytes()),
            HeaderText::Format(format) => format.parts.iter().map(written).collect(),
        }
    }
}

fn part(&Command { name, arguments, length }: &Command<'_>, target: HeaderTarget) -> Result<Part, Invalid> {
    let fact = match (name, target, arguments) {
        ("REQ", HeaderTarget::Request, Some(names)) | ("RESP", HeaderTarget::Response, Some(names)) => {
            Fact::Header(names_in(names, target)?)
        }
        ("PROTOCOL", HeaderTarget::Request, None) => Fact::Protocol,
        ("RESPONSE_CODE", HeaderTarget::Response, None) => Fact::ResponseCode,
        _ => {
            let known = match target {
                HeaderTarget::Request => "%%, %REQ(name)% and %PROTOCOL%",
                HeaderTarget::Response => "%%, %RESP(name)% and %RESPONSE_CODE%",
            };
            return Err(Invalid::new(format!("%{name}% is not supported here; {known} are")));
        }
    };
    Ok(Part::Fact(fact, length))
}

/// `x-user?x-account`: the second stands in where the first is missing.
fn names_in(text: &str, target: HeaderTarget) -> Result<Vec<Name>, Invalid> {
    let name = |text: &str| {
        Ok(match (text.to_ascii_lowercase().as_str(), target) {
            (":method", HeaderTarget::Request) => Name::Method,
            (":path", HeaderTarget::Request) => Name::Path,
            (":authority" | "host", HeaderTarget::Request) => Name::Authority,
            (":scheme", HeaderTarget::Request) => Name::Scheme,
            (":status", HeaderTarget::Response) => Name::Status,
            _ => Name::Header(
                HeaderName::from_bytes(text.as_bytes())
                    .map_err(|_| Invalid::new(format!("{text:?} is not a header name")))?,
            ),
        })
    };
    let names: Vec<Name> = text.split('?').map(name).collect::<Result<_, Invalid>>()?;
    if names.len() > 2 {
        return Err(Invalid::new(format!("{text:?} is more than a header and one that stands in for it")));
    }
    Ok(names)
}

impl Fact {
    fn written(&self, target: HeaderTarget) -> String {
        let names = match self {
            Fact::Header(names) => names,
            Fact::Protocol => return "PROTOCOL".to_owned(),
            Fact::ResponseCode => return "RESPONSE_CODE".to_owned(),
        };
        let names = names.iter().map(|name| match name {
            Name::Header(name) => name.as_str(),
            Name::Method => ":method",
            Name::Path => ":path",
            Name::Authority => ":authority",
            Name::Scheme => ":scheme",
            Name::Status => ":status",
        });
        let command = if target == HeaderTarget::Request { "REQ" } else { "RESP" };
        format!("{command}({})", names.collect::<Vec<_>>().join("?"))
    }
}

impl HeaderFormat {
    /// The value for a request, as it is before its route changes path and authority; `None` where it adds no header.
    pub fn of_request(&self, head: &RequestHead<'_>, version: Version) -> Option<HeaderValue> {
        self.value(|fact, into| match fact {
            Fact::Header(names) => names.iter().any(|name| match name {
                Name::Header(name) => push_first(head.headers, name, into),
                Name::Method => push(head.method.as_str().as_bytes(), into),
                Name::Path => push(head.path_and_query.as_bytes(), into),
                Name::Authority => push(head.authority.as_bytes(), into),
                Name::Scheme => push(head.scheme.as_bytes(), into),
                Name::Status => false,
            }),
            Fact::Protocol => push(protocol(version).as_bytes(), into),
            Fact::ResponseCode => false,
        })
    }

    /// The value for a response; `None` where it adds no header.
    pub fn of_response(&self, status: StatusCode, headers: &HeaderMap) -> Option<HeaderValue> {
        self.value(|fact, into| match fact {
            Fact::Header(names) => names.iter().any(|name| match name {
                Name::Header(name) => push_first(headers, name, into),
                Name::Status => push(status.as_str().as_bytes(), into),
                Name::Method | Name::Path | Name::Authority | Name::Scheme => false,
            }),
            Fact::ResponseCode => push(status.as_str().as_bytes(), into),
            Fact::Protocol => false,
        })
    }

    fn value(&self, mut fact_into: impl FnMut(&Fact, &mut Vec<u8>) -> bool) -> Option<HeaderValue> {
        let mut value = Vec::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => value.extend_from_slice(text),
                Part::Fact(fact, limit) => {
                    let start = value.len();
                    // What is not known is left out, as in Envoy.
                    fact_into(fact, &mut value);
                    if let Some(limit) = limit {
                        value.truncate(start.saturating_add(*limit));
                    }
                }
            }
        }
        value.truncate(LONGEST);
        if value.is_empty() && !self.keep_empty {
            return None;
        }
        HeaderValue::from_bytes(&value).ok()
    }
}

/// The most bytes of a value that is put together. Values can be made of one another, so that each may double the one
/// before: what is beyond is cut, as by a length in the operator.
const LONGEST: usize = 64 << 10;

fn push(text: &[u8], into: &mut Vec<u8>) -> bool {
    let room = LONGEST.saturating_sub(into.len()).min(text.len());
    into.extend_from_slice(text.get(..room).unwrap_or_default());
    true
}

/// Of several values the first one counts (Envoy).
fn push_first(headers: &HeaderMap, name: &HeaderName, into: &mut Vec<u8>) -> bool {
    headers.get(name).is_some_and(|value| push(value.as_bytes(), into))
}

/// In Envoy's words.
pub(crate) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, Uri};

    use super::*;

    fn parse(text: &str, target: HeaderTarget) -> Result<HeaderText, String> {
        HeaderText::parse(text.as_bytes(), target, false).map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn what_envoy_would_refuse_and_what_is_not_known_here_is_invalid() {
        use HeaderTarget::{Request, Response};
        for (text, target) in [
            ("100%", Request),
            ("%", Response),
            ("%20", Request),
            ("a%20b%20c", Request),
            ("%REQ(x)", Request),
            ("%REQ(x%", Request),
            ("%REQ%", Request),
            ("%REQ()%", Request),
            ("%REQ(a?b?c)%", Request),
            ("%REQ(a b)%", Request),
            ("%REQ(:status)%", Request),
            ("%REQ(x):%", Request),
            ("%REQ(x):99999999999999999999999%", Request),
            ("%req(x)%", Request),
            ("%REQ(x)%", Response),
            ("%RESP(x)%", Request),
            ("%RESP(:path)%", Response),
            ("%PROTOCOL(x)%", Request),
            ("%START_TIME%", Request),
            ("%DOWNSTREAM_REMOTE_ADDRESS%", Request),
            ("%ENVIRONMENT(HOME)%", Request),
            ("a\nb", Request),
            ("%REQ(x)%\n", Request),
            ("\n%REQ(x)%", Request),
        ] {
            assert!(parse(text, target).is_err(), "{text:?}");
        }
    }

    #[test]
    fn facts_of_a_request_are_put_in() {
        let (method, uri) = (Method::PUT, "http://shop:80/a?b=1".parse::<Uri>().unwrap());
        let mut headers = HeaderMap::new();
        headers.append("x-user", HeaderValue::from_static("jason"));
        headers.append("x-user", HeaderValue::from_static("second"));
        let head = RequestHead::of_parts(&method, &uri, &headers);
        for (text, expected) in [
            ("%REQ(X-User)%", Some("jason")),
            ("<%REQ(x-user):3%>", Some("<jas>")),
            ("%REQ(x-user):0%", None),
            ("%REQ(x-none?x-user)%", Some("jason")),
            ("%REQ(x-none)%", None),
            ("a%REQ(x-none)%b", Some("ab")),
            ("%REQ(:method)% %REQ(:authority)%%REQ(:path)% 100%%", Some("PUT shop:80/a?b=1 100%")),
            ("%REQ(:scheme)%", Some("http")),
            ("%PROTOCOL%", Some("HTTP/1.1")),
        ] {
            let Ok(HeaderText::Format(format)) = parse(text, HeaderTarget::Request) else { panic!("{text}") };
            let value = format.of_request(&head, Version::HTTP_11);
            assert_eq!(value.as_ref().map(HeaderValue::as_bytes), expected.map(str::as_bytes), "{text}");
        }
        let kept = HeaderText::parse(b"%REQ(x-none)%", HeaderTarget::Request, true).unwrap();
        let HeaderText::Format(kept) = kept else { panic!("no format") };
        assert_eq!(kept.of_request(&head, Version::HTTP_2).unwrap(), "");
    }

    #[test]
    fn facts_of_a_response_are_put_in() {
        let headers: HeaderMap = [("server".parse().unwrap(), HeaderValue::from_static("a"))].into_iter().collect();
        for (text, expected) in
            [("%RESP(server)%/%RESPONSE_CODE%", Some("a/404")), ("%RESP(:status)%", Some("404")), ("%RESP(x)%", None)]
        {
            let Ok(HeaderText::Format(format)) = parse(text, HeaderTarget::Response) else { panic!("{text}") };
            let value = format.of_response(StatusCode::NOT_FOUND, &headers);
            assert_eq!(value.as_ref().map(HeaderValue::as_bytes), expected.map(str::as_bytes), "{text}");
        }
    }
}
