//! What Istio's validation refuses of a rule's actions, and what can only fail: places that are none, actions that
//! exclude each other, and values that say nothing.

use std::time::Duration;

use http::uri::{Authority, PathAndQuery};
use mesh_core::model::{PathRewrite, RetryCondition};

use super::{
    DirectResponse, Fault, FaultAbort, HeaderOperations, Headers, HttpRoute, Redirect, RegexRewrite, ResponseBody,
    Retry, Rewrite, decode_base64, grpc_status_code, has_no_body, is_authority, is_header_name,
};
use crate::config::decode::{At, Decoder};
use crate::config::diagnostic::{Code, Severity, Span, quoted};
use crate::config::istio::regex_cost::cost;
use crate::config::istio::string_match::TOO_MUCH;

/// Checks the actions of a rule.
pub(super) fn check(route: &HttpRoute, path: &str, d: &mut Decoder<'_>) {
    let mut checker = Checker { path, d };
    checker.exclusions(route);
    if let Some(redirect) = &route.redirect {
        checker.redirect(redirect);
    }
    if let Some(answer) = &route.direct_response {
        checker.direct_response(answer);
    }
    if let Some(fault) = &route.fault {
        checker.fault(fault);
    }
    if let Some(rewrite) = &route.rewrite {
        checker.rewrite(rewrite);
    }
    if let Some(retries) = &route.retries {
        checker.retries(retries);
    }
    checker.headers(route);
    for (index, destination) in route.route.iter().enumerate() {
        let host = &destination.destination.host;
        if *host.value == *"*" {
            checker.error(host.span, &format!("route[{index}].destination.host"), "`*` is not a host");
        }
    }
}

struct Checker<'c, 'd> {
    path: &'c str,
    d: &'c mut Decoder<'d>,
}

impl Checker<'_, '_> {
    fn error(&mut self, span: Span, field: &str, message: impl Into<String>) {
        let path = format!("{}.{field}", self.path);
        self.d.report_at(span, path, Severity::Error, Code::InvalidValue, message);
    }

    /// Something that is written and says nothing.
    fn idle(&mut self, span: Span, field: &str) {
        let path = format!("{}.{field}", self.path);
        self.d.report_at(span, path, Severity::Warning, Code::Ignored, "empty, so it has no effect");
    }

    fn exclusions(&mut self, route: &HttpRoute) {
        let answers = [("redirect", route.redirect.is_some()), ("directResponse", route.direct_response.is_some())];
        for (answer, _) in answers.into_iter().filter(|(_, is_set)| *is_set) {
            let others = [("fault", route.fault.is_some()), ("rewrite", route.rewrite.is_some())];
            for (other, _) in others.into_iter().filter(|(_, is_set)| *is_set) {
                self.error(route.span, other, format!("only one of `{other}` and `{answer}` can be set"));
            }
        }
        if route.mirror.is_some() && !route.mirrors.is_empty() {
            self.error(route.span, "mirrors", "only one of `mirror` and `mirrors` can be set");
        }
        let mirrors = if route.mirror.is_some() { "mirror" } else { "mirrors" };
        let mut ignored = |field: &str, why: &str| {
            let path = format!("{}.{field}", self.path);
            self.d.report_at(route.span, path, Severity::Warning, Code::Ignored, format!("without effect: {why}"));
        };
        if route.mirrored().next().is_some()
            && let Some((answer, _)) = answers.into_iter().find(|(_, is_set)| *is_set)
        {
            ignored(mirrors, &format!("`{answer}` answers, and there is nothing to copy"));
        }
        if route.mirror_percentage.is_some() && route.mirror_percent.is_some() {
            ignored("mirrorPercent", "`mirrorPercentage` counts");
        }
        for (field, is_set) in
            [("mirrorPercentage", route.mirror_percentage.is_some()), ("mirrorPercent", route.mirror_percent.is_some())]
        {
            if is_set && route.mirror.is_none() {
                ignored(field, "there is no `mirror`; each of `mirrors` has its own `percentage`");
            }
        }
    }

    fn redirect(&mut self, redirect: &Redirect) {
        if let Some(code) = &redirect.redirect_code
            && !matches!(code.value, 301 | 302 | 303 | 307 | 308)
        {
            let message = format!("{} is none of 301, 302, 303, 307, 308", code.value);
            self.error(code.span, "redirect.redirectCode", message);
        }
        if redirect.uri.is_some() && redirect.prefix_rewrite.is_some() {
            self.error(redirect.span, "redirect", "only one of `uri` and `prefixRewrite` can be set");
        }
        if redirect.port.is_some() && redirect.derive_port.is_some() {
            self.error(redirect.span, "redirect", "only one of `port` and `derivePort` can be set");
        }
        let texts = [
            ("redirect.uri", &redirect.uri),
            ("redirect.prefixRewrite", &redirect.prefix_rewrite),
            ("redirect.authority", &redirect.authority),
            ("redirect.scheme", &redirect.scheme),
        ];
        let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let leads_elsewhere = texts.iter().any(|(_, text)| is_set(text));
        if !leads_elsewhere && redirect.port.is_none() && redirect.derive_port.is_none() {
            let message = "one of `uri`, `prefixRewrite`, `authority`, `scheme`, `port` and `derivePort` is needed: this \
                           redirects a request to itself";
            self.error(redirect.span, "redirect", message);
            return;
        }
        for (field, text) in texts.into_iter().filter_map(|(field, text)| Some((field, text.as_deref()?))) {
            match field {
                _ if text.is_empty() => self.idle(redirect.span, field),
                "redirect.scheme" if !matches!(text, "http" | "https") => {
                    self.error(redirect.span, field, format!("{} is neither http nor https", quoted(text)));
                }
                "redirect.authority" => self.authority(redirect.span, field, text),
                "redirect.uri" | "redirect.prefixRewrite" => self.path(redirect.span, field, text),
                _ => {}
            }
        }
    }

    fn direct_response(&mut self, answer: &DirectResponse) {
        self.status(&answer.status, "directResponse.status");
        if let Some(body) = &answer.body {
            self.body(body);
            let is_written = [&body.string, &body.bytes].into_iter().flatten().any(|text| !text.is_empty());
            if is_written && has_no_body(answer.status.value) {
                let message = format!("without effect: an answer with status {} has no body", answer.status.value);
                let field = format!("{}.directResponse.body", self.path);
                self.d.report_at(body.span, field, Severity::Warning, Code::Ignored, message);
            }
        }
    }

    fn body(&mut self, body: &ResponseBody) {
        // core/route/route.go: a direct response may carry 1 MB.
        const LONGEST: usize = 1 << 20;
        let length = match (&body.string, &body.bytes) {
            (Some(_), Some(_)) => {
                let message = "only one of `string` and `bytes` can be set";
                return self.error(body.span, "directResponse.body", message);
            }
            (Some(text), None) => text.len(),
            (None, Some(text)) => match decode_base64(text) {
                None => return self.error(body.span, "directResponse.body.bytes", "not base64"),
                Some(bytes) => bytes.len(),
            },
            (None, None) => 0,
        };
        if length > LONGEST {
            self.error(body.span, "directResponse.body", "larger than 1 MiB");
        }
    }

    fn fault(&mut self, fault: &Fault) {
        if fault.abort.is_none() && fault.delay.is_none() {
            self.error(fault.span, "fault", "one of `delay` and `abort` is needed");
        }
        if let Some(abort) = &fault.abort {
            self.abort(abort);
        }
        if let Some(delay) = &fault.delay
            && delay.fixed_delay.is_none()
            && delay.exponential_delay.is_none()
        {
            self.error(delay.span, "fault.delay", "field `fixedDelay` is missing");
        }
        if let Some(delay) = &fault.delay {
            if delay.fixed_delay.is_some_and(|delay| delay < Duration::from_millis(1)) {
                self.error(delay.span, "fault.delay.fixedDelay", "less than 1ms");
            }
            self.percent(delay.span, delay.percent, "fault.delay.percent");
        }
    }

    fn percent(&mut self, span: Span, percent: Option<i32>, field: &str) {
        if percent.is_some_and(|percent| !(0..=100).contains(&percent)) {
            self.error(span, field, "not from 0 to 100");
        }
    }

    fn abort(&mut self, abort: &FaultAbort) {
        self.percent(abort.span, abort.percent, "fault.abort.percent");
        let set = [abort.http_status.is_some(), abort.grpc_status.is_some(), abort.http2_error.is_some()];
        if set.into_iter().filter(|set| *set).count() != 1 {
            self.error(abort.span, "fault.abort", "exactly one of `httpStatus` and `grpcStatus` is needed");
        }
        if let Some(status) = &abort.http_status {
            self.status(status, "fault.abort.httpStatus");
        }
        if let Some(status) = &abort.grpc_status
            && grpc_status_code(status).is_none()
        {
            self.error(status.span, "fault.abort.grpcStatus", format!("{} is not a gRPC status", quoted(status)));
        }
    }

    fn status(&mut self, status: &At<u32>, field: &str) {
        if !(200..=599).contains(&status.value) {
            self.error(status.span, field, format!("{} is not an HTTP status from 200 to 599", status.value));
        }
    }

    fn rewrite(&mut self, rewrite: &Rewrite) {
        if let Some(regex) = &rewrite.uri_regex_rewrite {
            self.regex_rewrite(regex);
        }
        let (uri, authority) = (rewrite.uri.as_deref(), rewrite.authority.as_deref());
        let is_set = |text: Option<&str>| text.is_some_and(|text| !text.is_empty());
        if !is_set(uri) && !is_set(authority) && rewrite.uri_regex_rewrite.is_none() {
            self.error(rewrite.span, "rewrite", "one of `uri`, `uriRegexRewrite` and `authority` is needed");
            return;
        }
        if is_set(uri) && rewrite.uri_regex_rewrite.is_some() {
            self.error(rewrite.span, "rewrite", "only one of `uri` and `uriRegexRewrite` can be set");
        }
        match uri {
            Some("") => self.idle(rewrite.span, "rewrite.uri"),
            // What stands behind a `#` would never be sent.
            Some(uri) if uri.contains('#') => {
                self.error(rewrite.span, "rewrite.uri", format!("{} is not a path", quoted(uri)));
            }
            Some(uri) => self.path(rewrite.span, "rewrite.uri", uri),
            None => {}
        }
        match authority {
            Some("") => self.idle(rewrite.span, "rewrite.authority"),
            Some(authority) => self.authority(rewrite.span, "rewrite.authority", authority),
            None => {}
        }
    }

    fn regex_rewrite(&mut self, regex: &RegexRewrite) {
        if !self.d.afford(cost(&regex.matches)) {
            return self.error(regex.span, "rewrite.uriRegexRewrite.match", TOO_MUCH);
        }
        let mut error = |field: &str, message: &str| {
            self.error(regex.span, &format!("rewrite.uriRegexRewrite.{field}"), message);
        };
        if regex.matches.is_empty() {
            error("match", "must not be empty");
        } else if regex.rewrite.is_empty() {
            error("rewrite", "must not be empty");
        } else if let Err(invalid) = PathRewrite::new(&regex.matches, &regex.rewrite) {
            match invalid.field.as_str() {
                "substitution" => error("rewrite", &invalid.reason),
                _ => error("match", &format!("{} is not a regular expression", quoted(&regex.matches))),
            }
        } else if !is_part_of_path(&regex.rewrite) {
            error("rewrite", &format!("{} is no part of a path", quoted(&regex.rewrite)));
        }
    }

    fn retries(&mut self, retries: &Retry) {
        for (field, message) in retries.faults() {
            self.error(retries.span, &format!("retries.{field}"), &message);
        }
    }

    /// A header is set once, an authority, too, and never on a response.
    fn headers(&mut self, route: &HttpRoute) {
        let rewritten = route.rewrite.as_ref().and_then(|rewrite| rewrite.authority.as_deref());
        let rewritten = rewritten.filter(|authority| !authority.is_empty());
        self.header_operations("headers", &route.headers, rewritten.is_some());
        for (index, destination) in route.route.iter().enumerate() {
            self.header_operations(&format!("route[{index}].headers"), &destination.headers, false);
        }
    }

    fn header_operations(&mut self, field: &str, headers: &Headers, is_set: bool) {
        let request = &headers.request;
        for (direction, operations) in [("request", request), ("response", &headers.response)] {
            if let Some(message) = header_fault(operations, direction) {
                self.error(operations.span, &format!("{field}.{direction}"), message);
            }
            let mut names: Vec<String> = operations.set.keys().map(|name| name.to_ascii_lowercase()).collect();
            names.sort();
            if let Some([name, ..]) = names.windows(2).find(|pair| pair.first() == pair.last()) {
                let message = format!("{} is set twice: names of headers have no case", quoted(name));
                self.error(operations.span, &format!("{field}.{direction}.set"), message);
            }
        }
        let written = request.set.iter().chain(&request.add).filter(|(name, _)| is_authority(name));
        let field = format!("{field}.request");
        for (position, (_, value)) in written.enumerate() {
            if is_set || position > 0 {
                self.error(request.span, &field, "the authority can be set only once");
            }
            self.authority(request.span, &field, &value.0);
        }
    }

    /// The authority is set to the text as it stands, so that nothing is put in place of a `%`.
    fn authority(&mut self, span: Span, field: &str, text: &str) {
        if text.contains('%') || Authority::try_from(text).is_err() {
            self.error(span, field, format!("{} is not an authority", quoted(text)));
        }
    }

    fn path(&mut self, span: Span, field: &str, text: &str) {
        if !text.starts_with('/') || PathAndQuery::try_from(text).is_err() {
            self.error(span, field, format!("{} is not a path: it begins with / and has no spaces", quoted(text)));
        }
    }
}

/// Whether what replaces a match can stand in a path, whatever its groups are. What is behind a `#` would never be sent.
fn is_part_of_path(substitution: &str) -> bool {
    let text: String = substitution.chars().filter(|c| *c != '\\').collect();
    !text.contains('#') && PathAndQuery::try_from(format!("/{text}")).is_ok()
}

fn header_fault(operations: &HeaderOperations, direction: &str) -> Option<String> {
    let written = || operations.set.keys().chain(operations.add.keys());
    let is_name = |name: &str| is_header_name(name) || is_authority(name);
    if let Some(name) = written().chain(&operations.remove).find(|name| !is_name(name)) {
        return Some(format!("{} is not the name of a header", quoted(name)));
    }
    if operations.remove.iter().any(|name| name.eq_ignore_ascii_case("host") || name.starts_with(':')) {
        return Some("the authority cannot be removed".to_owned());
    }
    let of_a_response = direction == "response" && written().any(|name| is_authority(name));
    of_a_response.then(|| "a response has no authority".to_owned())
}

impl Retry {
    /// What is wrong with it, field by field. No attempts turn retries off, so that there is nothing more to be said of them.
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if self.attempts < 0 {
            faults.push(("attempts", "less than 0".to_owned()));
        }
        if self.backoff.is_some_and(|pause| pause < Duration::from_millis(1)) {
            faults.push(("backoff", "less than 1ms".to_owned()));
        }
        if self.per_try_timeout.is_some_and(|timeout| timeout < Duration::from_millis(1)) {
            faults.push(("perTryTimeout", "less than 1ms".to_owned()));
        }
        if let Some(token) = self.retry_on.as_deref().and_then(unknown_retry_token) {
            faults.push(("retryOn", format!("{} is not a condition that Istio knows", quoted(token))));
        }
        let says_more = [
            self.retry_on.as_ref().is_some_and(|on| !on.is_empty()),
            self.per_try_timeout.is_some(),
            self.retry_remote_localities.is_some(),
        ];
        if self.attempts == 0 && says_more.contains(&true) {
            faults.push(("attempts", "0 turns retries off, so nothing else of them can be set".to_owned()));
        }
        faults
    }
}

fn unknown_retry_token(retry_on: &str) -> Option<&str> {
    retry_on.split(',').map(str::trim).find(|token| {
        let is_status = token.parse::<u32>().is_ok_and(|code| (100..=599).contains(&code));
        !(token.is_empty() || is_status || RetryCondition::parse(token).is_some())
    })
}
