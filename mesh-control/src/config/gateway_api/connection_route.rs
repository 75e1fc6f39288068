//! `TLSRoute` and `TCPRoute` (gateway.networking.k8s.io): where connections go whose bytes are not looked at.

use super::http_route::HttpBackendRef;
use super::{
    DefaultGateways, ParentReference, Placement, backend_ref, check_hostnames, check_names, check_parents,
    check_reference, check_weight, fault,
};
use crate::config::decode::{Decoder, Text, message};
use crate::config::diagnostic::{Code, Severity};

message! {
    /// The specification of a TLSRoute.
    pub struct TlsRoute {
        /// What it is attached to.
        parent_refs: Vec<ParentReference> = "parentRefs",
        /// Whether default Gateways are among its parents.
        use_default_gateways: DefaultGateways = "useDefaultGateways",
        /// The names that clients ask for.
        hostnames: Vec<Text> = "hostnames",
        /// The rules, of which the first one is for all connections.
        rules: Vec<ConnectionRule> = "rules",
    }
    /// The specification of a TCPRoute.
    pub struct TcpRoute {
        /// What it is attached to.
        parent_refs: Vec<ParentReference> = "parentRefs",
        /// Whether default Gateways are among its parents.
        use_default_gateways: DefaultGateways = "useDefaultGateways",
        /// The rules, of which the first one is for all connections.
        rules: Vec<ConnectionRule> = "rules",
    }
    /// A rule.
    pub struct ConnectionRule {
        /// Its name.
        name: Option<Text> = "name",
        /// Where connections go.
        backend_refs: Vec<ConnectionBackendRef> = "backendRefs",
    }
}

backend_ref! {
    /// Where connections go, with their share.
    ConnectionBackendRef
}

impl ConnectionBackendRef {
    /// The same as a backend of an HTTPRoute.
    pub fn of_http(&self) -> HttpBackendRef {
        HttpBackendRef::new(self.reference(), self.weight, Vec::new())
    }
}

impl TlsRoute {
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
        check_hostnames(&self.hostnames, d);
        check(&self.parent_refs, &self.rules, d);
    }
}

impl TcpRoute {
    /// Where it is to be.
    pub fn placement(&self) -> Placement<'_> {
        Placement {
            parents: &self.parent_refs,
            default_gateways: self.use_default_gateways,
            hostnames: &[],
            has_rules: !self.rules.is_empty(),
        }
    }

    /// What the schema refuses, and what cannot be.
    pub fn check(&self, d: &mut Decoder<'_>) {
        check(&self.parent_refs, &self.rules, d);
    }
}

/// As the schema has it.
const MOST_BACKENDS: usize = 16;

fn check(parents: &[ParentReference], rules: &[ConnectionRule], d: &mut Decoder<'_>) {
    check_parents(parents, d);
    for (index, rule) in rules.iter().enumerate() {
        // So that their weights add up to what can be told, too.
        if rule.backend_refs.len() > MOST_BACKENDS {
            let message = format!("there are more than {MOST_BACKENDS} of them");
            fault(d, rule.span, format!("rules[{index}].backendRefs"), message);
        }
        for (position, backend) in rule.backend_refs.iter().enumerate() {
            let path = format!("rules[{index}].backendRefs[{position}]");
            check_reference(&backend.reference(), &path, d);
            check_weight(backend.weight, backend.span, &path, d);
        }
        if index > 0 {
            let message = "without effect: the first rule is for all connections";
            d.report_at(rule.span, format!("rules[{index}]"), Severity::Warning, Code::Ignored, message);
        }
    }
    check_names(rules.iter().map(|rule| (rule.name.as_ref(), rule.span)), d);
}
