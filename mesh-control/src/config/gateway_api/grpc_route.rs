//! `GRPCRoute` (gateway.networking.k8s.io): what becomes of calls to what it is attached to.

use super::filters::{GrpcFilter, HttpFilter, check_filters};
use super::http_route::HttpBackendRef;
use super::{
    DefaultGateways, MatchType, ParentReference, Placement, SessionPersistence, ValueMatch, backend_ref,
    check_hostnames, check_names, check_parents, check_reference, check_values, check_weight, fault,
};
use crate::config::decode::{Decoder, Text, message};
use crate::config::diagnostic::quoted;
use crate::config::istio::string_match::expression_fault;

message! {
    /// The specification.
    pub struct GrpcRoute {
        /// What it is attached to.
        parent_refs: Vec<ParentReference> = "parentRefs",
        /// Whether default Gateways are among its parents.
        use_default_gateways: DefaultGateways = "useDefaultGateways",
        /// Hosts, which are for Gateways.
        hostnames: Vec<Text> = "hostnames",
        /// The rules.
        rules: Vec<GrpcRule> = "rules",
    }
    /// A rule.
    pub struct GrpcRule {
        /// Its name.
        name: Option<Text> = "name",
        /// Conditions of which one must hold.
        matches: Vec<GrpcRouteMatch> = "matches",
        /// What happens on the way.
        filters: Vec<GrpcFilter> = "filters",
        /// Where calls go.
        backend_refs: Vec<GrpcBackendRef> = "backendRefs",
        /// Whether sessions stay where they are.
        session_persistence: Option<SessionPersistence> = "sessionPersistence",
    }
    /// Conditions that must all hold.
    pub struct GrpcRouteMatch {
        /// On the method; any where nothing is written.
        method: Option<MethodMatch> = "method",
        /// On headers.
        headers: Vec<ValueMatch> = "headers",
    }
    /// A condition on the method.
    pub struct MethodMatch {
        /// How it is compared.
        kind: MatchType = "type",
        /// The service.
        service: Option<Text> = "service",
        /// The method of the service.
        method: Option<Text> = "method",
    }
}

backend_ref! {
    /// Where calls go, with their share.
    GrpcBackendRef, GrpcFilter
}

impl GrpcBackendRef {
    /// The same as a backend of an HTTPRoute.
    pub fn of_http(&self) -> HttpBackendRef {
        HttpBackendRef::new(self.reference(), self.weight, self.filters.iter().map(GrpcFilter::of_http).collect())
    }
}

impl GrpcRoute {
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

impl GrpcRule {
    fn check(&self, path: &str, d: &mut Decoder<'_>) {
        for (index, condition) in self.matches.iter().enumerate() {
            let path = format!("{path}.matches[{index}]");
            check_values(&condition.headers, &format!("{path}.headers"), true, d);
            if let Some(method) = &condition.method {
                method.check(&format!("{path}.method"), d);
            }
        }
        let filters: Vec<HttpFilter> = self.filters.iter().map(GrpcFilter::of_http).collect();
        check_filters(&filters, path, d);
        for (index, backend) in self.backend_refs.iter().enumerate() {
            let path = format!("{path}.backendRefs[{index}]");
            let backend = backend.of_http();
            check_reference(&backend.reference(), &path, d);
            check_weight(backend.weight, backend.span, &path, d);
            check_filters(&backend.filters, &path, d);
        }
    }
}

impl MethodMatch {
    fn check(&self, path: &str, d: &mut Decoder<'_>) {
        let parts = [("service", &self.service), ("method", &self.method)];
        if parts.iter().all(|(_, part)| part.as_ref().is_none_or(|part| part.is_empty())) {
            fault(d, self.span, path.to_owned(), "one of `service` and `method` is needed");
        }
        for (field, part) in parts {
            let Some(part) = part.as_ref().filter(|part| !part.is_empty()) else { continue };
            let message = match self.kind {
                MatchType::RegularExpression => expression_fault(part, d),
                MatchType::Exact => {
                    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || (c == '.' && field == "service");
                    let message = || format!("{} is not the name of a {field}", quoted(part));
                    (!part.chars().all(is_name)).then(message)
                }
            };
            if let Some(message) = message {
                fault(d, part.span, format!("{path}.{field}"), message);
            }
        }
    }
}
