//! What Istio's validation refuses of a `corsPolicy`, and what of it has no effect.

use super::{CorsPolicy, HttpRoute, is_header_name};
use crate::config::decode::Decoder;
use crate::config::diagnostic::{Code, Severity, quoted};
use crate::config::istio::string_match::StringMatch;

const METHODS: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

/// Checks the policy of a rule.
pub(super) fn check(route: &HttpRoute, path: &str, d: &mut Decoder<'_>) {
    let Some(policy) = &route.cors_policy else { return };
    for (field, message) in policy.faults() {
        d.report_at(policy.span, format!("{path}.corsPolicy.{field}"), Severity::Error, Code::InvalidValue, message);
    }
    let mut ignored = |field: &str, why: &str| {
        let path = format!("{path}.corsPolicy{field}");
        d.report_at(policy.span, path, Severity::Warning, Code::Ignored, format!("without effect: {why}"));
    };
    if !policy.allow_origin.is_empty() && !policy.allow_origins.is_empty() {
        ignored(".allowOrigin", "`allowOrigins` counts");
    }
    for (answer, is_set) in
        [("redirect", route.redirect.is_some()), ("directResponse", route.direct_response.is_some())]
    {
        if is_set {
            ignored("", &format!("`{answer}` answers, and Envoy adds nothing to such an answer"));
        }
    }
    let is_any = |origin: &StringMatch| match origin {
        StringMatch::Exact(text) => text == "*",
        StringMatch::Prefix(text) => text.is_empty(),
        StringMatch::Regex(text) => text == ".*",
        StringMatch::Present => false,
    };
    let doubts = Doubts {
        allows_none: policy.allow_origins.is_empty() && policy.allow_origin.is_empty(),
        allows_any: policy.allow_origins.iter().any(is_any)
            || policy.allow_origins.is_empty() && policy.allow_origin.iter().any(|origin| origin == "*"),
        with_credentials: policy.allow_credentials == Some(true),
        lists: [
            ("allowMethods", policy.allow_methods.iter().any(|method| method == "*")),
            ("allowHeaders", policy.allow_headers.iter().any(|name| name == "*")),
            ("exposeHeaders", policy.expose_headers.iter().any(|name| name == "*")),
        ],
    };
    for (field, code, message) in doubts.all() {
        d.report_at(policy.span, format!("{path}.corsPolicy.{field}"), Severity::Warning, code, message);
    }
}

/// What of a policy on pages of other origins lets them do less, or more, than whoever wrote it may think.
pub struct Doubts {
    /// Whether no origin is written.
    pub allows_none: bool,
    /// Whether every origin is.
    pub allows_any: bool,
    /// Whether requests may carry a user's credentials.
    pub with_credentials: bool,
    /// Lists, and whether `*` is in them.
    pub lists: [(&'static str, bool); 3],
}

impl Doubts {
    /// Each with its field.
    pub fn all(&self) -> Vec<(&'static str, Code, &'static str)> {
        let mut all = Vec::new();
        if self.allows_none {
            all.push(("allowOrigins", Code::Ignored, "without effect: no page of another origin is allowed anything"));
        }
        if self.allows_any && self.with_credentials {
            let message =
                "pages of every origin may read what a user's credentials are answered with; name the origins";
            all.push(("allowCredentials", Code::Conflict, message));
        }
        let stars = self.lists.iter().filter(|(_, has_star)| *has_star && self.with_credentials);
        let message = "without effect: where there are credentials, a browser takes `*` for a name";
        all.extend(stars.map(|(field, _)| (*field, Code::Ignored, message)));
        all
    }
}

impl CorsPolicy {
    fn faults(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        for (index, origin) in self.allow_origins.iter().enumerate() {
            let message = match origin {
                StringMatch::Present => "one of `exact`, `prefix` and `regex` is needed",
                StringMatch::Exact(text) if text.is_empty() => "must not be empty",
                StringMatch::Regex(text) if text == "*" => {
                    "`*` is not a regular expression: `exact: \"*\"` is every origin"
                }
                _ => continue,
            };
            faults.push((format!("allowOrigins[{index}]"), message.to_owned()));
        }
        for (index, method) in self.allow_methods.iter().enumerate() {
            if method != "*" && !METHODS.contains(&method.as_str()) {
                faults.push((format!("allowMethods[{index}]"), format!("{} is not a method", quoted(method))));
            }
        }
        for (field, names) in [("allowHeaders", &self.allow_headers), ("exposeHeaders", &self.expose_headers)] {
            for (index, name) in names.iter().enumerate().filter(|(_, name)| !is_header_name(name)) {
                faults.push((format!("{field}[{index}]"), format!("{} is not the name of a header", quoted(name))));
            }
        }
        if self.max_age.is_some_and(|age| age.subsec_nanos() > 0) {
            faults.push(("maxAge".to_owned(), "only whole seconds can be told to a browser".to_owned()));
        }
        faults
    }
}
