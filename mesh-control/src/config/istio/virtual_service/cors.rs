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
