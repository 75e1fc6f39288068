//! Requests that somebody else is asked about (`model/ext_authz.rs`): which ones, what is asked, and what an answer means.
//! All of it is a plain function; the data plane carries questions and answers.
//!
//! No answer, and one that nobody understands, lets nobody in, unless the configuration says so.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, COOKIE, HOST, LOCATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version};
use tokio::sync::Semaphore;

use super::{AccessRequest, RuleSet, Seen};
use crate::error::Invalid;
use crate::model::{CheckProtocol, ExtAuthz, HeaderChange, HeaderText, HttpCheck, RbacAction, RbacRules, StringTest};
use crate::request::RequestHead;

/// The header that says to an authorizer whether it is shown less than the whole body.
pub const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// How many requests may wait for one authorizer's word at a time.
pub const MOST_CHECKS: usize = 1024;

/// Somebody who is asked.
pub struct Asker {
    config: Arc<ExtAuthz>,
    /// Which requests it is asked about; all, where nothing is said.
    condition: Option<RuleSet>,
    permits: Arc<Semaphore>,
}

/// What an authorizer says of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It passes, so changed.
    Allow(CheckedChanges),
    /// It is refused like this.
    Deny(Denial),
}

/// What an authorizer wants changed of what it lets in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckedChanges {
    /// Of the request.
    pub request: Vec<HeaderChange>,
    /// Of the response.
    pub response: Vec<HeaderChange>,
    /// Whether somebody gave no answer, and the request passes since that is written (`failOpen`).
    pub is_unchecked: bool,
}

/// How an authorizer refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Denial {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Where nobody has refused it, why there was no answer: for people.
    pub no_answer: Option<Box<str>>,
}

impl Denial {
    /// A refusal with this status.
    pub fn new(status: StatusCode) -> Self {
        Denial { status, headers: HeaderMap::new(), body: Bytes::new(), no_answer: None }
    }

    /// What is answered where there was no answer, for this reason.
    pub fn without_answer(status: StatusCode, body: impl Into<Bytes>, why: impl Into<Box<str>>) -> Self {
        Denial { body: body.into(), no_answer: Some(why.into()), ..Denial::new(status) }
    }
}

impl Asker {
    /// One that is asked about requests that one of these rules is for, or about all. No more than the permits wait for it at
    /// a time.
    ///
    /// # Errors
    /// Rules that cannot be decided by, and rules that say nothing about whom to ask.
    pub fn new(config: &Arc<ExtAuthz>, rules: Option<&RbacRules>, permits: Arc<Semaphore>) -> Result<Self, Invalid> {
        // DENY names what it is for, and in doubt it is for a request.
        if rules.is_some_and(|rules| rules.action != RbacAction::Deny) {
            return Err(Invalid::new("shadow rules that somebody is asked by are of action DENY"));
        }
        let condition = rules.map(RuleSet::new).transpose()?;
        Ok(Asker { config: Arc::clone(config), condition, permits })
    }

    /// What it was made of.
    pub fn config(&self) -> &Arc<ExtAuthz> {
        &self.config
    }

    /// How many may ask it.
    pub fn permits(&self) -> &Arc<Semaphore> {
        &self.permits
    }

    /// The rule by which it is asked about a request, if it is.
    pub fn asked_by(&self, request: &AccessRequest<'_>) -> Option<&str> {
        match &self.condition {
            Some(rules) => rules.matched(&Seen::new(request)),
            None => Some(""),
        }
    }

    /// Takes headers off that only its answers may set, whoever sent them. What a client proves itself by stays where nobody is
    /// asked: it is his own.
    pub fn strip(&self, headers: &mut HeaderMap, is_asked: bool) {
        let CheckProtocol::Http(HttpCheck { to_upstream, .. }) = &self.config.protocol else { return };
        if to_upstream.is_empty() {
            return;
        }
        let is_own = |name: &HeaderName| !is_asked && (*name == AUTHORIZATION || *name == COOKIE);
        let taken = headers.keys().filter(|name| is_one(to_upstream, name) && !is_fixed(name) && !is_own(name));
        let taken: Vec<HeaderName> = taken.cloned().collect();
        for name in taken {
            headers.remove(name);
        }
    }

    /// Whether it is shown a header.
    pub fn is_shown(&self, name: &HeaderName) -> bool {
        let is_named = |shown: &Vec<StringTest>| *name == AUTHORIZATION || is_one(shown, name);
        !is_fixed(name) && self.config.shown.as_ref().is_none_or(is_named)
    }
}

/// The question about a request over HTTP: one like it, without its body.
///
/// # Errors
/// It cannot be asked.
pub fn http_question(
    asker: &Asker,
    check: &HttpCheck,
    head: &RequestHead<'_>,
    version: Version,
) -> Result<Request<()>, String> {
    let uri = format!("http://{}{}{}", asker.config.target, check.path_prefix, head.path_and_query);
    let mut question =
        Request::builder().method(head.method.clone()).uri(uri).body(()).map_err(|error| error.to_string())?;
    let headers = question.headers_mut();
    for (name, value) in head.headers.iter().filter(|(name, _)| asker.is_shown(name)) {
        headers.append(name.clone(), value.clone());
    }
    for (name, text) in &check.added {
        match text.of_request(head, version) {
            Some(value) => _ = headers.insert(name.clone(), value),
            // Of nothing there is no header, and not the client's either: it would pass for the configuration's word.
            None => _ = headers.remove(name),
        }
    }
    Ok(question)
}

/// What an answer over HTTP means: 200 lets in, 5xx is no answer, and everything else refuses, as for Envoy.
///
/// # Errors
/// It is no answer.
pub fn http_answer(check: &HttpCheck, status: StatusCode, headers: &HeaderMap, body: Bytes) -> Result<Answer, String> {
    if status == StatusCode::OK {
        return Ok(Answer::Allow(CheckedChanges {
            request: changes(headers, &check.to_upstream),
            response: changes(headers, &check.to_client_on_allow),
            is_unchecked: false,
        }));
    }
    if status.is_server_error() {
        return Err(format!("the authorizer answered {status}"));
    }
    // Another success would say to the client that the application had done something.
    let is_told_as_it_is = status.is_redirection() || status.is_client_error();
    let mut denial = Denial { body, ..Denial::new(if is_told_as_it_is { status } else { StatusCode::FORBIDDEN }) };
    let is_told = |name: &HeaderName| {
        check.to_client_on_deny.is_empty()
            || *name == LOCATION
            || *name == WWW_AUTHENTICATE
            || is_one(&check.to_client_on_deny, name)
    };
    for (name, value) in headers.iter().filter(|(name, _)| !is_fixed(name) && is_told(name)) {
        denial.headers.append(name.clone(), value.clone());
    }
    Ok(Answer::Deny(denial))
}

fn changes(headers: &HeaderMap, named: &[StringTest]) -> Vec<HeaderChange> {
    let mut changes = Vec::new();
    for name in headers.keys().filter(|name| is_one(named, name) && !is_fixed(name)) {
        for (index, value) in headers.get_all(name).iter().enumerate() {
            let value = HeaderText::Fixed(value.clone());
            changes.push(match index {
                0 => HeaderChange::Set(name.clone(), value),
                _ => HeaderChange::Append(name.clone(), value),
            });
        }
    }
    changes
}

fn is_one(tests: &[StringTest], name: &HeaderName) -> bool {
    tests.iter().any(|test| test.is_match(name.as_str().as_bytes()))
}

/// Whether a header is one that no authorizer may set, and none is shown: of a connection, of framing, or the host.
pub fn is_fixed(name: &HeaderName) -> bool {
    const OF_THE_CONNECTION: [&str; 11] = [
        "connection",
        "content-length",
        "expect",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    *name == HOST || OF_THE_CONNECTION.contains(&name.as_str())
}

/// A header that an authorizer wants set, if it may be.
///
/// # Errors
/// It is no header, or not the authorizer's to set.
pub fn settable(name: &str, value: &[u8]) -> Result<(HeaderName, HeaderValue), String> {
    let wrong = || format!("the authorizer sets {name:?}, which is not for it to set");
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
    match HeaderValue::from_bytes(value) {
        Ok(value) if !is_fixed(&name) => Ok((name, value)),
        _ => Err(wrong()),
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").field("config", &self.config).finish_non_exhaustive()
    }
}
