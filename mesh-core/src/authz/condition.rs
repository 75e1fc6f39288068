//! One condition of a policy, compiled: header names are parsed, and everything else is compared as it is.

use http::HeaderName;
use http::header::COOKIE;
use smallvec::SmallVec;

use super::seen::{Peer, Seen};
use super::token;
use crate::error::Invalid;
use crate::matcher::{Field, segments_match};
use crate::model::{
    HeaderTest, IpPrefix, PeerTest, RbacCondition, SegmentTemplate, StringTest, TemplatePart, TokenTest,
};
use crate::request::RequestHead;

/// What a request or its caller must be like.
#[derive(Debug)]
pub(super) enum Condition {
    Always,
    All(Box<[Condition]>),
    Any(Box<[Condition]>),
    Not(Box<Condition>),
    Header(Field, HeaderTest),
    Path(StringTest),
    PathTemplate(SegmentTemplate),
    DestinationIp(IpPrefix),
    DestinationPort(u16, u16),
    SourceIp(IpPrefix),
    RemoteIp(IpPrefix),
    ServerName(StringTest),
    Peer(PeerTest),
    Token(TokenTest),
}

impl Condition {
    /// Any of these.
    pub(super) fn any(conditions: &[RbacCondition]) -> Result<Self, Invalid> {
        match conditions {
            [only] => Self::new(only),
            several => Ok(Condition::Any(Self::each(several)?)),
        }
    }

    fn each(conditions: &[RbacCondition]) -> Result<Box<[Condition]>, Invalid> {
        conditions.iter().map(Self::new).collect()
    }

    fn new(condition: &RbacCondition) -> Result<Self, Invalid> {
        Ok(match condition {
            RbacCondition::Always => Condition::Always,
            RbacCondition::All(conditions) => Condition::All(Self::each(conditions)?),
            RbacCondition::Any(conditions) => Condition::Any(Self::each(conditions)?),
            RbacCondition::Not(condition) => Condition::Not(Box::new(Self::new(condition)?)),
            RbacCondition::Header(test) => Condition::Header(field(test)?, test.clone()),
            RbacCondition::Path(test) => Condition::Path(test.clone()),
            RbacCondition::PathTemplate(template) => Condition::PathTemplate(template.clone()),
            RbacCondition::DestinationIp(prefix) => Condition::DestinationIp(*prefix),
            RbacCondition::DestinationPort(first, last) => Condition::DestinationPort(*first, *last),
            RbacCondition::SourceIp(prefix) => Condition::SourceIp(*prefix),
            RbacCondition::RemoteIp(prefix) => Condition::RemoteIp(*prefix),
            RbacCondition::ServerName(test) => Condition::ServerName(test.clone()),
            RbacCondition::Peer(test) => Condition::Peer(test.clone()),
            RbacCondition::Token(test) => Condition::Token(test.clone()),
        })
    }

    /// Whether it looks at requests: of bytes that nobody looks into, it cannot be told.
    pub(super) fn is_on_requests(&self) -> bool {
        match self {
            Condition::All(conditions) | Condition::Any(conditions) => conditions.iter().any(Self::is_on_requests),
            Condition::Not(condition) => condition.is_on_requests(),
            Condition::Header(..) | Condition::Path(_) | Condition::PathTemplate(_) | Condition::Token(_) => true,
            Condition::Always
            | Condition::DestinationIp(_)
            | Condition::DestinationPort(..)
            | Condition::SourceIp(_)
            | Condition::RemoteIp(_)
            | Condition::ServerName(_)
            | Condition::Peer(_) => false,
        }
    }

    /// Whether it holds. `doubt` is what is taken for true where nobody can tell; behind a `not` it is the other way
    /// round. `refuses` says whether the policy is one that refuses, which a `not` does not change.
    pub(super) fn holds(&self, seen: &Seen<'_>, doubt: bool, refuses: bool) -> bool {
        match self {
            Condition::Always => true,
            Condition::All(conditions) => conditions.iter().all(|condition| condition.holds(seen, doubt, refuses)),
            Condition::Any(conditions) => conditions.iter().any(|condition| condition.holds(seen, doubt, refuses)),
            Condition::Not(condition) => !condition.holds(seen, !doubt, refuses),
            Condition::Header(field, test) => match &seen.head {
                Some(head) => header_holds(field, test, head, seen, doubt),
                None => doubt,
            },
            Condition::Path(test) => match seen.head {
                Some(_) => text_holds(test, seen.path().as_bytes(), doubt),
                None => doubt,
            },
            Condition::PathTemplate(template) => match seen.head {
                Some(_) => template_holds(&template.parts, seen.path(), doubt),
                None => doubt,
            },
            Condition::DestinationIp(prefix) => match &seen.connection {
                Some(ends) => prefix.contains(ends.destination.ip()),
                None => doubt,
            },
            Condition::DestinationPort(first, last) => match &seen.connection {
                Some(ends) => (*first..=*last).contains(&ends.destination.port()),
                None => doubt,
            },
            Condition::SourceIp(prefix) => match &seen.connection {
                Some(ends) => prefix.contains(ends.source.ip()),
                None => doubt,
            },
            Condition::RemoteIp(prefix) => match &seen.connection {
                Some(ends) => prefix.contains(ends.remote.ip()),
                None => doubt,
            },
            Condition::ServerName(test) => match &seen.connection {
                Some(ends) => text_holds(test, ends.server_name.as_bytes(), doubt),
                None => doubt,
            },
            Condition::Peer(test) => match &seen.connection {
                Some(ends) => match &ends.peer {
                    Some(peer) => peer_holds(test, peer, doubt),
                    // Nobody fits, and behind a `not` everybody is refused: by a policy that lets in, too.
                    None => doubt && !refuses,
                },
                None => doubt,
            },
            Condition::Token(test) => match seen.head {
                Some(_) => token::holds(test, seen.tokens, doubt, refuses),
                None => doubt,
            },
        }
    }
}

/// Where a test on a header looks. The names that gRPC keeps to itself cannot be counted on, so a policy must not (A41).
fn field(test: &HeaderTest) -> Result<Field, Invalid> {
    let field = Field::of(test)?;
    let is_usable = match &field {
        Field::Scheme => false,
        Field::Header(name) => !name.as_str().starts_with("grpc-"),
        Field::Method | Field::Path | Field::Authority => true,
    };
    if is_usable {
        Ok(field)
    } else {
        Err(Invalid::new("`:scheme` and `grpc-*` are not for policies").at("header.name"))
    }
}

/// A value that is no text is a doubt for an expression, and a value like any other for the rest (hazard A13).
fn text_holds(test: &StringTest, value: &[u8], doubt: bool) -> bool {
    match test {
        StringTest::Regex(_) if std::str::from_utf8(value).is_err() => doubt,
        test => test.is_match(value),
    }
}

fn peer_holds(test: &PeerTest, peer: &Peer<'_>, doubt: bool) -> bool {
    let text = |test: &StringTest, value: &str| text_holds(test, value.as_bytes(), doubt);
    match test {
        PeerTest::Known => true,
        PeerTest::Id(test) => text(test, peer.id),
        PeerTest::TrustDomain(test) => text(test, peer.trust_domain),
        PeerTest::Namespace(test) => peer.workload.is_some_and(|(namespace, _)| text(test, namespace)),
        PeerTest::ServiceAccount(test) => peer.workload.is_some_and(|(_, account)| text(test, account)),
    }
}

fn header_holds(field: &Field, test: &HeaderTest, head: &RequestHead<'_>, seen: &Seen<'_>, doubt: bool) -> bool {
    let (invert, missing) = match test {
        HeaderTest::Present { present, .. } => {
            let is_there = !matches!(field, Field::Header(name) if !head.headers.contains_key(name));
            return is_there == *present;
        }
        HeaderTest::Value { test, invert, missing_is_empty, .. } => {
            (*invert, missing_is_empty.then(|| test.is_match(b"")))
        }
        HeaderTest::Range { invert, missing_is_empty, .. } => (*invert, missing_is_empty.then_some(false)),
    };
    let doubt = doubt != invert;
    let value_holds = |value: &[u8]| match test {
        HeaderTest::Value { test, .. } => text_holds(test, value, doubt),
        HeaderTest::Range { start, end, .. } => {
            let number = std::str::from_utf8(value).ok().and_then(|value| value.parse::<i64>().ok());
            number.is_some_and(|number| (*start..*end).contains(&number))
        }
        HeaderTest::Present { present, .. } => *present,
    };
    let holds = match field {
        Field::Method => Some(value_holds(head.method.as_str().as_bytes())),
        Field::Path => Some(value_holds(head.path_and_query.as_bytes())),
        Field::Scheme => Some(value_holds(head.scheme.as_bytes())),
        Field::Authority => Some(match test {
            HeaderTest::Value { test, .. } => host_holds(test, seen, doubt),
            _ => value_holds(head.authority.as_bytes()),
        }),
        Field::Header(name) => values_hold(head, name, value_holds, doubt),
    };
    match (holds, missing) {
        (Some(holds), _) => holds != invert,
        (None, Some(of_empty)) => of_empty != invert,
        // It fails, inverted or not (Envoy).
        (None, None) => false,
    }
}

/// The values of a header, and all of them joined, as somebody behind may see them (hazard A11): in doubt any of them is
/// enough, and otherwise all of them are needed. `None` where there is no such header.
fn values_hold(head: &RequestHead<'_>, name: &HeaderName, holds: impl Fn(&[u8]) -> bool, doubt: bool) -> Option<bool> {
    let mut values = head.headers.get_all(name).iter().map(|value| value.as_bytes());
    let first = values.next()?;
    let Some(second) = values.next() else { return Some(holds(first)) };
    // HTTP/2 may send a cookie in crumbs (RFC 9113, 8.2.3).
    let separator: &[u8] = if name == COOKIE { b"; " } else { b"," };
    let mut joined: SmallVec<[u8; 256]> = SmallVec::from_slice(first);
    let mut is_decided = holds(first) == doubt;
    for value in std::iter::once(second).chain(values) {
        is_decided |= holds(value) == doubt;
        joined.extend_from_slice(separator);
        joined.extend_from_slice(value);
    }
    Some(if is_decided || holds(&joined) == doubt { doubt } else { !doubt })
}

/// Hosts are the same in any case, and with a dot at the end; a port counts where the test has one (hazard A9).
fn host_holds(test: &StringTest, seen: &Seen<'_>, doubt: bool) -> bool {
    let Some(host) = seen.host() else { return doubt };
    let equal = |a: &[u8], b: &[u8]| a.eq_ignore_ascii_case(b);
    match test {
        StringTest::Exact { value, .. } => host.any(|form| equal(form, value.as_bytes())),
        StringTest::Prefix { value, .. } => {
            host.any(|form| form.get(..value.len()).is_some_and(|head| equal(head, value.as_bytes())))
        }
        StringTest::Suffix { value, .. } => host.any(|form| {
            let tail = form.len().checked_sub(value.len()).and_then(|start| form.get(start..));
            tail.is_some_and(|tail| equal(tail, value.as_bytes()))
        }),
        StringTest::Contains { value, .. } => {
            host.any(|form| value.is_empty() || form.windows(value.len()).any(|part| equal(part, value.as_bytes())))
        }
        StringTest::Regex(_) => host.any(|form| text_holds(test, form, doubt)),
    }
}

/// Whether a path fits a template. Whether `{**}` stands for no segment at all, Istio and Envoy disagree: a doubt.
fn template_holds(parts: &[TemplatePart], path: &str, doubt: bool) -> bool {
    path.strip_prefix('/').map_or(doubt, |path| segments_match(parts, path, usize::from(!doubt)))
}
