//! Rules on requests without code: a condition in CEL, and what becomes of the requests that it holds for.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use crate::model::{CelExpression, HeaderChange};

/// The type under which they are told over xDS, in a `TypedStruct`.
pub const REQUEST_RULES: &str = "mesh.filters.http.request_rules";

/// What becomes of requests, rule by rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestRules {
    /// In their order: each sees what those before it have made of a request.
    pub rules: Vec<RequestRule>,
}

/// What becomes of some requests.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestRule {
    /// Its name, for logs and people.
    pub name: Arc<str>,
    /// Which requests; `None` means all.
    pub when: Option<CelExpression>,
    /// They pass: the rules after it are not asked about them.
    pub allow: bool,
    /// They are refused.
    pub deny: Option<Refusal>,
    /// Their headers change.
    pub request: Vec<HeaderChange>,
    /// The headers of their answers change.
    pub response: Arc<[HeaderChange]>,
}

/// How requests are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// What is said.
    pub body: Bytes,
}

impl Refusal {
    /// With this status and text.
    pub fn new(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Refusal { status, body: body.into() }
    }
}

impl RequestRules {
    /// These rules, in this order.
    pub fn new(rules: Vec<RequestRule>) -> Self {
        RequestRules { rules }
    }
}

impl RequestRule {
    /// For all requests, and with nothing to do yet.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        let (request, response) = (Vec::new(), Arc::default());
        RequestRule { name: name.into(), when: None, allow: false, deny: None, request, response }
    }

    /// Whether it is about answers, and so decided when there is one.
    pub fn looks_at_answer(&self) -> bool {
        self.when.as_ref().is_some_and(CelExpression::looks_at_answer)
    }
}
