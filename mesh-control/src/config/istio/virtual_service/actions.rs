//! What Istio's validation refuses of a rule's actions, and what can only fail: places that are none, actions that
//! exclude each other, and values that say nothing.

use http::uri::{Authority, PathAndQuery};

use super::{Headers, HttpRoute, Redirect, Retry, Rewrite, is_authority};
use crate::config::decode::Decoder;
use crate::config::diagnostic::{Code, Severity, Span, quoted};

/// Checks the actions of a rule.
pub(super) fn check(route: &HttpRoute, path: &str, d: &mut Decoder<'_>) {
    let mut checker = Checker { path, d };
    checker.exclusions(route);
    if let Some(redirect) = &route.redirect {
        checker.redirect(redirect);
    }
    if let Some(rewrite) = &route.rewrite {
        checker.rewrite(rewrite);
    }
    if let Some(retries) = &route.retries {
        checker.retries(retries);
    }
    if let Some(fault) = &route.fault
        && fault.abort.is_none()
        && fault.delay.is_none()
    {
        checker.error(fault.span, "fault", "one of `delay` and `abort` is needed");
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
    }

    fn redirect(&mut self, redirect: &Redirect) {
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

    fn rewrite(&mut self, rewrite: &Rewrite) {
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

    /// No attempts turn retries off, so that there is nothing more to be said of them.
    fn retries(&mut self, retries: &Retry) {
        let says_more = [
            retries.retry_on.as_ref().is_some_and(|on| !on.is_empty()),
            retries.per_try_timeout.is_some(),
            retries.retry_remote_localities.is_some(),
        ];
        if retries.attempts == 0 && says_more.contains(&true) {
            let message = "0 turns retries off, so nothing else of them can be set";
            self.error(retries.span, "retries.attempts", message);
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

    fn authority(&mut self, span: Span, field: &str, text: &str) {
        if Authority::try_from(text).is_err() {
            self.error(span, field, format!("{} is not an authority", quoted(text)));
        }
    }

    fn path(&mut self, span: Span, field: &str, text: &str) {
        if !text.starts_with('/') || PathAndQuery::try_from(text).is_err() {
            self.error(span, field, format!("{} is not a path: it begins with / and has no spaces", quoted(text)));
        }
    }
}
