//! The kinds of Kubernetes' Gateway API, one file each but for TLSRoute and TCPRoute, which are `connection_route.rs`, and what
//! they share.
//!
//! Every field of their schemas is here, those of the experimental channel too, whether it is enforced or not:
//! `config::support` says which ones are.

pub mod backend_tls_policy;
pub mod backend_traffic_policy;
pub mod connection_route;
pub mod filters;
pub mod gateway;
pub mod grpc_route;
pub mod http_route;
pub mod listener_set;
pub mod reference_grant;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::decode::{Decode, Decoder, PortNumber, Text, keywords, message, parse_duration};
use super::diagnostic::{Code, Severity, Span, quoted};
use super::istio::names::{host_fault, is_label};
use super::istio::string_match::expression_fault;
use super::node::Node;
use super::schema::Schema;
use super::support::{ObjectKind, is_core_service, listening_kind};

/// Declares a backend as each kind of route has it: what it refers to, its share, and the filters of that kind, where it has some.
macro_rules! backend_ref {
    ($(#[doc = $doc:literal])* $name:ident $(, $filter:ty)?) => {
        message! {
            $(#[doc = $doc])*
            pub struct $name {
                /// Its group.
                group: Option<Text> = "group",
                /// Its kind; `Service` where nothing is written.
                kind: Option<Text> = "kind",
                /// Its name.
                name: Text = "name" required,
                /// Its namespace; the route's own where nothing is written.
                namespace: Option<Text> = "namespace",
                /// Its port.
                port: Option<$crate::config::decode::PortNumber> = "port",
                /// Its share; 1 where nothing is written.
                weight: Option<i32> = "weight",
                $(
                /// What happens on the way there.
                filters: Vec<$filter> = "filters",
                )?
            }
        }

        impl $name {
            /// What it refers to.
            pub fn reference(&self) -> $crate::config::gateway_api::ObjectReference {
                $crate::config::gateway_api::ObjectReference {
                    span: self.span,
                    group: self.group.clone(),
                    kind: self.kind.clone(),
                    name: self.name.clone(),
                    namespace: self.namespace.clone(),
                    port: self.port,
                }
            }
        }
    };
}
use backend_ref;

/// The group of Gateways and of routes.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// The label of the workloads that a Gateway is, whose value is its name.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Whose Gateways are served.
pub const CLASSES: [&str; 2] = ["istio", "mesh-control"];
/// The group of what Istio adds: ServiceEntries as parents, hosts as backends.
pub const ISTIO_GROUP: &str = "networking.istio.io";

message! {
    /// What a route is attached to.
    pub struct ParentReference {
        /// Its group; that of Gateways where nothing is written.
        group: Option<Text> = "group",
        /// Its kind; `Gateway` where nothing is written.
        kind: Option<Text> = "kind",
        /// Its namespace; the route's own where nothing is written.
        namespace: Option<Text> = "namespace",
        /// Its name.
        name: Text = "name" required,
        /// The name of one of its ports.
        section_name: Option<Text> = "sectionName",
        /// One of its ports.
        port: Option<PortNumber> = "port",
    }
    /// Something that requests are sent to.
    pub struct ObjectReference {
        /// Its group.
        group: Option<Text> = "group",
        /// Its kind; `Service` where nothing is written.
        kind: Option<Text> = "kind",
        /// Its name.
        name: Text = "name" required,
        /// Its namespace; the route's own where nothing is written.
        namespace: Option<Text> = "namespace",
        /// Its port.
        port: Option<PortNumber> = "port",
    }
    /// An object of the route's own namespace.
    pub struct LocalReference {
        /// Its group.
        group: String = "group" required,
        /// Its kind.
        kind: String = "kind" required,
        /// Its name.
        name: String = "name" required,
    }
    /// A condition on a header or a query parameter.
    pub struct ValueMatch {
        /// How it is compared.
        kind: MatchType = "type",
        /// Its name.
        name: Text = "name" required,
        /// The text, or the expression.
        value: Text = "value" required,
    }
    /// Whether a session stays where it is.
    pub struct SessionPersistence {
        /// Its name.
        session_name: Option<String> = "sessionName",
        /// When it is over.
        absolute_timeout: Option<GatewayDuration> = "absoluteTimeout",
        /// When it is over, if nothing happens.
        idle_timeout: Option<GatewayDuration> = "idleTimeout",
        /// What carries it.
        kind: SessionType = "type",
        /// Of a cookie.
        cookie_config: Option<CookieConfig> = "cookieConfig",
    }
    /// Of a cookie that carries a session.
    pub struct CookieConfig {
        /// Whether a browser keeps it.
        lifetime_type: LifetimeType = "lifetimeType",
    }
}

keywords! {
    /// How texts are compared.
    pub enum MatchType {
        /// As they are.
        Exact = "Exact",
        /// By an expression for the whole text.
        RegularExpression = "RegularExpression",
    }
    /// What carries a session.
    pub enum SessionType {
        /// A cookie.
        Cookie = "Cookie",
        /// A header.
        Header = "Header",
    }
    /// How long a cookie is kept.
    pub enum LifetimeType {
        /// As long as the browser is open.
        Session = "Session",
        /// Until it ends.
        Permanent = "Permanent",
    }
    /// Whether a route is attached to the cluster's default Gateways.
    pub enum DefaultGateways {
        /// To none.
        None = "None",
        /// To all.
        All = "All",
    }
}

/// A duration as Gateway API writes it (GEP-2257): up to four whole numbers with the units h, m, s and ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GatewayDuration(pub Duration);

impl Decode for GatewayDuration {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let Some(text) = node.as_str() else {
            d.wrong_type(node, "a duration such as 10s");
            return None;
        };
        let read = is_gateway_duration(text).then(|| parse_duration(text)).flatten();
        if read.is_none() {
            let message = format!("{} is not a duration such as 1h, 1m30s or 500ms", quoted(text));
            d.error(node.span, Code::InvalidValue, message);
        }
        read.map(GatewayDuration)
    }

    fn schema() -> Schema {
        Schema::Like("^([0-9]{1,5}(h|m|s|ms)){1,4}$")
    }
}

fn is_gateway_duration(text: &str) -> bool {
    let mut rest = text;
    for _ in 0..4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let after = rest.get(digits..).unwrap_or_default();
        let unit = ["ms", "h", "m", "s"].into_iter().find(|unit| after.starts_with(unit));
        let (1..=5, Some(unit)) = (digits, unit) else { return false };
        rest = after.get(unit.len()..).unwrap_or_default();
        if rest.is_empty() {
            return true;
        }
    }
    false
}

/// Where a route is to be, whatever its kind.
#[derive(Clone, Copy, Debug)]
pub struct Placement<'r> {
    /// What it is attached to.
    pub parents: &'r [ParentReference],
    /// Whether default Gateways are among these.
    pub default_gateways: DefaultGateways,
    /// Its hosts there.
    pub hostnames: &'r [Text],
    /// Whether it has rules.
    pub has_rules: bool,
}

/// What a route can be attached to in a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ParentKind {
    /// A Service of Kubernetes.
    Service,
    /// A ServiceEntry of Istio.
    ServiceEntry,
}

impl ParentKind {
    /// The kind of this group and name; `None` where it is something else, such as a Gateway.
    pub fn of(group: Option<&str>, kind: Option<&str>) -> Option<ParentKind> {
        match (group.unwrap_or(GATEWAY_GROUP), kind.unwrap_or("Gateway")) {
            (group, kind) if is_core_service(group, kind) => Some(ParentKind::Service),
            (ISTIO_GROUP, "ServiceEntry") => Some(ParentKind::ServiceEntry),
            _ => None,
        }
    }

    /// The word after `kind:`.
    pub const fn name(self) -> &'static str {
        match self {
            ParentKind::Service => "Service",
            ParentKind::ServiceEntry => "ServiceEntry",
        }
    }
}

impl ParentReference {
    /// What it is, where it is something of the mesh.
    pub fn parent_kind(&self) -> Option<ParentKind> {
        let (group, kind) = self.group_and_kind();
        ParentKind::of(Some(group), Some(kind))
    }

    /// Its kind, where it has listeners: a Gateway, or a ListenerSet.
    pub fn listening_kind(&self) -> Option<ObjectKind> {
        let (group, kind) = self.group_and_kind();
        listening_kind(Some(group), Some(kind))
    }

    fn group_and_kind(&self) -> (&str, &str) {
        let group = self.group.as_ref().map_or(GATEWAY_GROUP, |group| group.value.as_str());
        (group, self.kind.as_ref().map_or("Gateway", |kind| kind.value.as_str()))
    }
}

impl ObjectReference {
    /// Its group, `""` where nothing is written.
    pub fn group(&self) -> &str {
        self.group.as_ref().map_or("", |group| group.value.as_str())
    }

    /// Its kind.
    pub fn kind(&self) -> &str {
        self.kind.as_ref().map_or("Service", |kind| kind.value.as_str())
    }

    /// Whether it is a Service of Kubernetes.
    pub fn is_service(&self) -> bool {
        is_core_service(self.group(), self.kind())
    }
}

impl SessionPersistence {
    /// Whether its cookie outlives the caller's session.
    pub fn is_permanent(&self) -> bool {
        self.cookie_config.as_ref().is_some_and(|cookie| cookie.lifetime_type == LifetimeType::Permanent)
    }

    /// What the schema refuses.
    fn check(&self, path: &str, d: &mut Decoder<'_>) {
        if self.is_permanent() && self.absolute_timeout.is_none() {
            fault(
                d,
                self.span,
                format!("{path}.cookieConfig.lifetimeType"),
                "a cookie that stays needs `absoluteTimeout`",
            );
        }
        if self.session_name.as_ref().is_some_and(|name| name.len() > MOST_SESSION_NAME) {
            let message = format!("longer than {MOST_SESSION_NAME} characters");
            fault(d, self.span, format!("{path}.sessionName"), message);
        }
    }
}

/// As the schema has it.
const MOST_SESSION_NAME: usize = 128;
const MOST_TARGETS: usize = 16;

/// Reports an invalid value of a field.
fn fault(d: &mut Decoder<'_>, span: Span, path: String, message: impl Into<String>) {
    d.report_at(span, path, Severity::Error, Code::InvalidValue, message);
}

fn check_namespace(namespace: &Option<Text>, path: &str, d: &mut Decoder<'_>) {
    if let Some(text) = namespace.as_ref().filter(|text| !is_namespace(text)) {
        fault(d, text.span, format!("{path}.namespace"), format!("{} is not the name of a namespace", quoted(text)));
    }
}

fn is_namespace(text: &str) -> bool {
    is_label(text) && !text.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn check_name(name: &Text, path: &str, d: &mut Decoder<'_>) {
    if name.is_empty() || name.len() > 253 {
        fault(d, name.span, format!("{path}.name"), format!("{} is not a name", quoted(name)));
    }
}

/// A name is that of one rule.
fn check_names<'r>(rules: impl Iterator<Item = (Option<&'r Text>, Span)>, d: &mut Decoder<'_>) {
    let mut known = BTreeSet::new();
    for (index, (name, span)) in rules.enumerate() {
        if name.is_some_and(|name| !known.insert(name.value.as_str())) {
            fault(d, span, format!("rules[{index}].name"), "another rule has the same name");
        }
    }
}

fn check_parents(parents: &[ParentReference], d: &mut Decoder<'_>) {
    for (index, parent) in parents.iter().enumerate() {
        let path = format!("parentRefs[{index}]");
        check_name(&parent.name, &path, d);
        check_namespace(&parent.namespace, &path, d);
        let key = |parent: &ParentReference| {
            let text = |text: &Option<Text>| text.as_ref().map(|text| text.value.clone()).unwrap_or_default();
            let kind = (text(&parent.group), text(&parent.kind), text(&parent.namespace), parent.name.value.clone());
            (kind, text(&parent.section_name), parent.port)
        };
        if parents.iter().take(index).any(|earlier| key(earlier) == key(parent)) {
            fault(d, parent.span, path, "the same parent twice: each has a port or a section of its own");
        }
    }
}

/// What a policy is for, of whichever kind of policy it is.
struct TargetRef<'t> {
    /// Where it is written.
    span: Span,
    group: &'t str,
    kind: &'t str,
    name: &'t Text,
    /// The name of a port, where one is meant.
    section: Option<&'t str>,
}

/// The `targetRefs` of a policy: some, and none of them twice.
fn check_targets(policy: Span, targets: &[TargetRef<'_>], twice: &str, d: &mut Decoder<'_>) {
    if targets.is_empty() || targets.len() > MOST_TARGETS {
        let message = format!("between 1 and {MOST_TARGETS} of `targetRefs` are needed");
        d.report_at(policy, "targetRefs", Severity::Error, Code::MissingField, message);
    }
    let mut known = BTreeSet::new();
    for (index, target) in targets.iter().enumerate() {
        let path = format!("targetRefs[{index}]");
        check_name(target.name, &path, d);
        if !known.insert((target.group, target.kind, target.name.value.as_str(), target.section)) {
            fault(d, target.span, path, twice);
        }
    }
}

fn check_reference(reference: &ObjectReference, path: &str, d: &mut Decoder<'_>) {
    check_name(&reference.name, path, d);
    check_namespace(&reference.namespace, path, d);
    if reference.port.is_none() && reference.is_service() {
        d.report_at(
            reference.span,
            format!("{path}.port"),
            Severity::Error,
            Code::MissingField,
            "a Service is referred to with its port",
        );
    }
}

/// What is wrong with the host of a listener or of a route: a name of DNS, with a wildcard for its first label at most.
fn hostname_fault(host: &str) -> Option<String> {
    let is_wildcard = |host: &str| host.starts_with('*') && !host.starts_with("*.");
    let is_name = host_fault(host).is_none() && !is_wildcard(host) && host.parse::<IpAddr>().is_err();
    let is_lower = !host.bytes().any(|byte| byte.is_ascii_uppercase()) && !host.ends_with('.');
    (!is_name || !is_lower).then(|| format!("{} is not a host such as a.example or *.example", quoted(host)))
}

fn check_hostnames(hostnames: &[Text], d: &mut Decoder<'_>) {
    for (index, hostname) in hostnames.iter().enumerate() {
        if let Some(message) = hostname_fault(hostname) {
            fault(d, hostname.span, format!("hostnames[{index}]"), message);
        }
    }
}

fn check_weight(weight: Option<i32>, span: Span, path: &str, d: &mut Decoder<'_>) {
    if weight.is_some_and(|weight| !(0..=1_000_000).contains(&weight)) {
        fault(d, span, format!("{path}.weight"), "a weight is between 0 and 1000000");
    }
}

/// Conditions on headers or on parameters: of several with one name the first one counts.
fn check_values(values: &[ValueMatch], path: &str, are_headers: bool, d: &mut Decoder<'_>) {
    for (index, value) in values.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let is_name = |name: &str| http::HeaderName::from_bytes(name.as_bytes()).is_ok();
        if value.name.is_empty() || are_headers && !is_name(&value.name) {
            let what = if are_headers { "a header" } else { "a parameter" };
            fault(
                d,
                value.name.span,
                format!("{path}.name"),
                format!("{} is not the name of {what}", quoted(&value.name)),
            );
        }
        if value.kind == MatchType::RegularExpression
            && let Some(message) = expression_fault(&value.value, d)
        {
            fault(d, value.value.span, format!("{path}.value"), message);
        }
        let same = |other: &&ValueMatch| match are_headers {
            true => other.name.eq_ignore_ascii_case(&value.name),
            false => other.name.value == value.name.value,
        };
        if values.iter().take(index).any(|other| same(&other)) {
            let message = "without effect: of conditions with the same name, the first one counts";
            d.report_at(value.span, path, Severity::Warning, Code::Ignored, message);
        }
    }
}

/// The conditions that count: of those with one name, the first.
pub fn first_of_each(values: &[ValueMatch], are_headers: bool) -> Vec<(String, &ValueMatch)> {
    let mut kept: Vec<(String, &ValueMatch)> = Vec::new();
    for value in values {
        let name = if are_headers { value.name.to_ascii_lowercase() } else { value.name.value.clone() };
        if kept.iter().all(|(earlier, _)| *earlier != name) {
            kept.push((name, value));
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_gateway_api() {
        for text in ["1h", "1m30s", "500ms", "0s", "1h2m3s4ms", "99999s"] {
            assert!(is_gateway_duration(text), "{text}");
        }
        for text in ["", "1", "1.5s", "-1s", "100000s", "1us", "1h1h1h1h1h", "s", "1s "] {
            assert!(!is_gateway_duration(text), "{text}");
        }
    }

    #[test]
    fn only_services_are_parents_in_a_mesh() {
        assert_eq!(ParentKind::of(Some(""), Some("Service")), Some(ParentKind::Service));
        assert_eq!(ParentKind::of(Some("core"), Some("Service")), Some(ParentKind::Service));
        assert_eq!(ParentKind::of(Some(ISTIO_GROUP), Some("ServiceEntry")), Some(ParentKind::ServiceEntry));
        assert_eq!(ParentKind::of(None, Some("Service")), None);
        assert_eq!(ParentKind::of(None, None), None);
    }
}
