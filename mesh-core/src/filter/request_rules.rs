//! Rules on requests without code: which of them hold for a request, and what that makes of it.
//!
//! A rule that refuses is in doubt, too, where what it asks about can be read in two ways (a header that is there twice, or is no
//! text) or cannot be calculated: then it refuses. A rule that changes headers does nothing then. What is not there is unequal to
//! everything.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;

use http::{HeaderMap, StatusCode, request, response};

use super::{Decision, Filter, Reply};
use crate::jwt::{self, InDoubt};
use crate::limits::Tells;
use crate::model::{CelAttribute, CelExpression, CelValue, Facts, RequestRule, RequestRules, protocol};
use crate::request::{RequestHead, is_authority};
use crate::request_info::{Direction, RequestInfo};
use crate::rewrite;

/// Rules that requests go by.
#[derive(Debug)]
pub struct RequestRulesFilter {
    rules: Arc<RequestRules>,
    of_answers: bool,
}

impl RequestRulesFilter {
    /// These rules.
    pub fn new(rules: &Arc<RequestRules>) -> Self {
        let of_answers = rules.rules.iter().any(RequestRule::looks_at_answer);
        RequestRulesFilter { rules: Arc::clone(rules), of_answers }
    }
}

impl Filter for RequestRulesFilter {
    fn on_request(&self, info: &mut RequestInfo, head: &mut request::Parts) -> Decision {
        for rule in self.rules.rules.iter().filter(|rule| !rule.looks_at_answer()) {
            let holds = match &rule.when {
                None => Some(true),
                Some(when) => Known::now(info, head).holds(when),
            };
            if let (Some(refusal), None | Some(true)) = (&rule.deny, holds) {
                info.note_details(format!("request_rule[{}]", rule.name));
                return Decision::Reply(Reply::new(refusal.status, refusal.body.clone()));
            }
            if holds == Some(true) {
                if !rule.request.is_empty() {
                    rewrite::apply_to_request(std::slice::from_ref(&rule.request), head);
                }
                if !rule.response.is_empty() {
                    info.answer_changes.get_or_insert_default().push(Arc::clone(&rule.response));
                }
                if rule.allow {
                    break;
                }
            }
        }
        Decision::Continue
    }

    fn on_response(&self, info: &mut RequestInfo, head: &mut response::Parts) {
        for changes in info.answer_changes.take().into_iter().flat_map(|all| *all) {
            rewrite::apply_to_response(&[changes.to_vec()], head);
        }
        if !self.of_answers {
            return;
        }
        for rule in self.rules.rules.iter().filter(|rule| rule.looks_at_answer()) {
            let answer = Some((head.status, &head.headers));
            let known = Known { info, head: None, answer, is_in_doubt: Cell::new(false) };
            if rule.when.as_ref().is_some_and(|when| known.holds(when) == Some(true)) {
                rewrite::apply_to_response(&[rule.response.to_vec()], head);
            }
        }
    }
}

/// What is known of a request that has come, or of its answer.
pub(super) struct Known<'r> {
    info: &'r RequestInfo,
    head: Option<(RequestHead<'r>, http::Version)>,
    answer: Option<(StatusCode, &'r HeaderMap)>,
    /// Whether something was asked for that can be read in two ways.
    is_in_doubt: Cell<bool>,
}

impl<'r> Known<'r> {
    /// Of one that is decided on.
    pub(super) fn now(info: &'r RequestInfo, head: &'r request::Parts) -> Self {
        Self::of(info, RequestHead::of_parts(&head.method, &head.uri, &head.headers), head.version)
    }

    /// The same of one whose head is at hand.
    #[inline]
    pub(super) fn of(info: &'r RequestInfo, seen: RequestHead<'r>, version: http::Version) -> Self {
        Known { info, head: Some((seen, version)), answer: None, is_in_doubt: Cell::new(false) }
    }

    /// Whether an expression holds; `None` where nobody can tell.
    fn holds(&self, when: &CelExpression) -> Option<bool> {
        let holds = when.is_true(self);
        holds.filter(|_| !self.is_in_doubt.get())
    }

    fn in_doubt<T>(&self) -> Option<T> {
        self.is_in_doubt.set(true);
        None
    }

    /// The head of one that is decided on.
    #[inline]
    pub(super) fn head(&self) -> Option<&RequestHead<'r>> {
        self.head.as_ref().map(|(head, _)| head)
    }

    fn header<'h>(&self, headers: &'h HeaderMap, name: &str) -> Option<Cow<'h, str>> {
        let mut values = headers.get_all(name).iter();
        let value = values.next()?;
        match (std::str::from_utf8(value.as_bytes()), values.next()) {
            (Ok(text), None) => Some(text.into()),
            _ => self.in_doubt(),
        }
    }

    fn of_request(&self, name: &str) -> Option<Cow<'_, str>> {
        self.header(self.head()?.headers, name)
    }

    /// What tokens say.
    fn said<T>(&self, said: Result<T, InDoubt>) -> Option<T> {
        said.map_or_else(|InDoubt| self.in_doubt(), Some)
    }
}

/// What requests are told apart by. What can be read in two ways, or not be calculated, counts as one, so that nobody gets around a
/// limit who says a thing twice, or no number where one is asked for.
impl Tells for Known<'_> {
    fn tell(&self, expression: &CelExpression) -> Option<String> {
        self.is_in_doubt.set(false);
        let told = expression.show(self);
        if self.is_in_doubt.get() { Some("?".to_owned()) } else { told }
    }
}

impl Facts for Known<'_> {
    fn get(&self, attribute: CelAttribute) -> Option<CelValue<'_>> {
        let text = |text: &str| (!text.is_empty()).then(|| CelValue::Text(text.to_owned().into()));
        let client = || self.info.client();
        Some(match attribute {
            CelAttribute::RequestMethod => match self.head() {
                Some(head) => CelValue::Text(head.method.as_str().into()),
                None => CelValue::Text(self.info.method()?.as_str().into()),
            },
            CelAttribute::RequestHost => text(self.head().map_or(self.info.authority(), |head| head.authority))?,
            CelAttribute::RequestPath => CelValue::Text(self.head()?.path_and_query.into()),
            CelAttribute::RequestUrlPath => CelValue::Text(self.head()?.path().into()),
            CelAttribute::RequestQuery => {
                CelValue::Text(self.head()?.path_and_query.split_once('?').map_or("", |(_, query)| query).into())
            }
            CelAttribute::RequestReferer => CelValue::Text(self.of_request("referer")?),
            CelAttribute::RequestUserAgent => CelValue::Text(self.of_request("user-agent")?),
            CelAttribute::RequestId => CelValue::Text(self.of_request("x-request-id")?),
            CelAttribute::RequestProtocol => {
                let (_, version) = self.head.as_ref()?;
                CelValue::Text(protocol(*version).into())
            }
            CelAttribute::ResponseCode => CelValue::Int(self.answer?.0.as_u16().into()),
            CelAttribute::SourceAddress => text(&self.info.peer()?.to_string())?,
            CelAttribute::SourcePort => CelValue::Int(self.info.peer()?.port().into()),
            CelAttribute::ConnectionMtls => {
                CelValue::Bool(self.info.direction() == Some(Direction::Inbound) && client().is_some())
            }
            CelAttribute::ConnectionPeer => text(client()?.as_str())?,
            CelAttribute::SourcePrincipal => text(client()?.as_str().strip_prefix("spiffe://")?)?,
            CelAttribute::SourceNamespace => text(client()?.workload()?.0)?,
            CelAttribute::RequestPrincipal => text(self.said(jwt::principal(self.info.tokens()))??)?,
            _ => return None,
        })
    }

    fn entry(&self, map: CelAttribute, key: &str) -> Option<Cow<'_, str>> {
        match (map, key) {
            (CelAttribute::RequestHeaders, ":method") => Some(self.head()?.method.as_str().into()),
            (CelAttribute::RequestHeaders, ":path") => Some(self.head()?.path_and_query.into()),
            (CelAttribute::RequestHeaders, ":scheme") => Some(self.head()?.scheme.into()),
            (CelAttribute::RequestHeaders, name) if is_authority(name) => {
                Some(self.head()?.authority).filter(|authority| !authority.is_empty()).map(Cow::Borrowed)
            }
            (CelAttribute::RequestHeaders, name) => self.of_request(name),
            (CelAttribute::ResponseHeaders, name) => self.header(self.answer?.1, name),
            (CelAttribute::RequestClaims, name) => self.said(jwt::claim_text(self.info.tokens(), name))?,
            _ => None,
        }
    }

    fn has_entry(&self, map: CelAttribute, key: &str) -> bool {
        match map {
            CelAttribute::RequestHeaders if !key.starts_with(':') && !is_authority(key) => {
                self.head().is_some_and(|head| head.headers.contains_key(key))
            }
            CelAttribute::ResponseHeaders => self.answer.is_some_and(|(_, headers)| headers.contains_key(key)),
            CelAttribute::RequestClaims => self.said(jwt::claim(self.info.tokens(), key)).flatten().is_some(),
            _ => self.entry(map, key).is_some(),
        }
    }

    fn has_item(&self, map: CelAttribute, key: &str, item: &str) -> Option<bool> {
        if map != CelAttribute::RequestClaims {
            return None;
        }
        self.said(jwt::claim_has(self.info.tokens(), key, item))
    }

    fn note_doubt(&self) {
        self.is_in_doubt.set(true);
    }

    fn are_total(&self) -> bool {
        true
    }
}

#[cfg(test)]
#[path = "request_rules_tests.rs"]
mod tests;
