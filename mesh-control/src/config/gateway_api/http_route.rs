//! `HTTPRoute` (gateway.networking.k8s.io): what becomes of requests to what it is attached to.

use super::filters::{FilterType, HttpFilter, PathModifierType, Retry, Timeouts, check_filters};
use super::{
    DefaultGateways, ObjectReference, ParentReference, Placement, SessionPersistence, ValueMatch, backend_ref,
    check_hostnames, check_names, check_parents, check_reference, check_values, check_weight, fault,
};
use crate::config::decode::{Decoder, Text, keywords, message};
use crate::config::diagnostic::quoted;
use crate::config::istio::string_match::expression_fault;

message! {
    /// The specification.
    pub struct HttpRoute {
        /// What it is attached to.
        parent_refs: Vec<ParentReference> = "parentRefs",
        /// Whether default Gateways are among its parents.
        use_default_gateways: DefaultGateways = "useDefaultGateways",
        /// Hosts, which are for Gateways.
        hostnames: Vec<Text> = "hostnames",
        /// The rules.
        rules: Vec<HttpRule> = "rules",
    }
    /// A rule.
    pub struct HttpRule {
        /// Its name.
        name: Option<Text> = "name",
        /// Conditions of which one must hold.
        matches: Vec<HttpRouteMatch> = "matches",
        /// What happens on the way.
        filters: Vec<HttpFilter> = "filters",
        /// Where requests go.
        backend_refs: Vec<HttpBackendRef> = "backendRefs",
        /// Limits on their time.
        timeouts: Option<Timeouts> = "timeouts",
        /// When to try again.
        retry: Option<Retry> = "retry",
        /// Whether sessions stay where they are.
        session_persistence: Option<SessionPersistence> = "sessionPersistence",
    }
    /// Conditions that must all hold.
    pub struct HttpRouteMatch {
        /// On the path; any where nothing is written.
        path: Option<PathMatch> = "path",
        /// On headers.
        headers: Vec<ValueMatch> = "headers",
        /// On query parameters.
        query_params: Vec<ValueMatch> = "queryParams",
        /// On the method.
        method: Option<Method> = "method",
    }
    /// A condition on the path.
    pub struct PathMatch {
        /// How it is compared.
        kind: PathMatchType = "type",
        /// The path, a prefix of it, or an expression; `/` where nothing is written.
        value: Option<Text> = "value",
    }
}

backend_ref! {
    /// Where requests go, with their share.
    HttpBackendRef, HttpFilter
}

keywords! {
    /// How paths are compared.
    pub enum PathMatchType {
        /// Segment by segment, from the start.
        PathPrefix = "PathPrefix",
        /// As they are.
        Exact = "Exact",
        /// By an expression for the whole path.
        RegularExpression = "RegularExpression",
    }
    /// Methods.
    pub enum Method {
        /// GET.
        Get = "GET",
        /// HEAD.
        Head = "HEAD",
        /// POST.
        Post = "POST",
        /// PUT.
        Put = "PUT",
        /// DELETE.
        Delete = "DELETE",
        /// CONNECT.
        Connect = "CONNECT",
        /// OPTIONS.
        Options = "OPTIONS",
        /// TRACE.
        Trace = "TRACE",
        /// PATCH.
        Patch = "PATCH",
    }
}

impl Method {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Connect => "CONNECT",
            Method::Options => "OPTIONS",
            Method::Trace => "TRACE",
            Method::Patch => "PATCH",
        }
    }
}

impl PathMatch {
    /// How it is compared, and with what.
    pub fn compared(&self) -> (PathMatchType, &str) {
        (self.kind, self.value.as_ref().map_or("/", |value| value.value.as_str()))
    }
}

impl HttpBackendRef {
    /// A backend with this share, and what happens on the way there.
    pub fn new(to: ObjectReference, weight: Option<i32>, filters: Vec<HttpFilter>) -> HttpBackendRef {
        let ObjectReference { span, group, kind, name, namespace, port } = to;
        HttpBackendRef { span, group, kind, name, namespace, port, weight, filters }
    }

    /// Its share.
    pub fn share(&self) -> u32 {
        u32::try_from(self.weight.unwrap_or(1)).unwrap_or(0)
    }
}

impl HttpRoute {
    /// Where it is to be.
    pub fn placement(&self) -> Placement<'_> {
        Placement {
            parents: &self.parent_refs,
            default_gateways: self.use_default_gateways,
            hostnames: &self.hostnames,
            has_rules: !self.rules.is_empty(),
        }
    }

    /// What the schema refuses, and what cannot be.
    pub fn check(&self, d: &mut Decoder<'_>) {
        check_parents(&self.parent_refs, d);
        check_hostnames(&self.hostnames, d);
        for (index, rule) in self.rules.iter().enumerate() {
            rule.check(&format!("rules[{index}]"), d);
        }
        check_names(self.rules.iter().map(|rule| (rule.name.as_ref(), rule.span)), d);
    }
}

impl HttpRule {
    fn check(&self, path: &str, d: &mut Decoder<'_>) {
        for (index, condition) in self.matches.iter().enumerate() {
            condition.check(&format!("{path}.matches[{index}]"), d);
        }
        check_filters(&self.filters, path, d);
        for (index, backend) in self.backend_refs.iter().enumerate() {
            let path = format!("{path}.backendRefs[{index}]");
            check_reference(&backend.reference(), &path, d);
            check_weight(backend.weight, backend.span, &path, d);
            check_filters(&backend.filters, &path, d);
        }
        let redirect = self.filters.iter().find(|filter| filter.kind == FilterType::RequestRedirect);
        if let Some(redirect) = redirect.filter(|_| !self.backend_refs.is_empty()) {
            fault(d, redirect.span, format!("{path}.backendRefs"), "a redirect goes to no backend");
        }
        let of_backends = self.backend_refs.iter().flat_map(|backend| &backend.filters);
        for filter in self.filters.iter().chain(of_backends) {
            let Some((field, modifier)) = filter.path_modifier() else { continue };
            if modifier.kind == PathModifierType::ReplacePrefixMatch && !self.has_one_prefix() {
                let message = "what a prefix becomes is said for rules with exactly one match, by PathPrefix";
                fault(d, modifier.span, format!("{path}.filters.{field}"), message);
            }
        }
        if let Some(timeouts) = &self.timeouts {
            timeouts.check(&format!("{path}.timeouts"), d);
        }
        if let Some(retry) = &self.retry {
            retry.check(&format!("{path}.retry"), d);
        }
    }

    fn has_one_prefix(&self) -> bool {
        match self.matches.as_slice() {
            [] => true,
            [only] => only.path.as_ref().is_none_or(|path| path.kind == PathMatchType::PathPrefix),
            _ => false,
        }
    }
}

impl HttpRouteMatch {
    fn check(&self, path: &str, d: &mut Decoder<'_>) {
        check_values(&self.headers, &format!("{path}.headers"), true, d);
        check_values(&self.query_params, &format!("{path}.queryParams"), false, d);
        let Some(written) = &self.path else { return };
        let (kind, value) = written.compared();
        let span = written.value.as_ref().map_or(written.span, |value| value.span);
        let path = format!("{path}.path.value");
        match kind {
            PathMatchType::RegularExpression => {
                if let Some(message) = expression_fault(value, d) {
                    fault(d, span, path, message);
                }
            }
            PathMatchType::Exact | PathMatchType::PathPrefix => {
                let is_plain = !value.contains(['?', '#']) && !value.contains("//");
                let is_path = value.starts_with('/') && is_plain && !value.to_ascii_lowercase().contains("%2f");
                let has_dots = value.split('/').any(|segment| matches!(segment, "." | ".."));
                if !is_path || has_dots {
                    fault(d, span, path, format!("{} is not a path such as /a/b", quoted(value)));
                }
            }
        }
    }
}
