//! `Gateway` (gateway.networking.k8s.io): at which ports a gateway listens, for which hosts, and which routes may come there.

use std::collections::{BTreeMap, BTreeSet};

use super::{DefaultGateways, LocalReference, check_name, check_namespace, fault, hostname_fault};
use crate::config::decode::{Decoder, PortNumber, Text, keywords, message};
use crate::config::diagnostic::{Code, Severity, Span, quoted};
use crate::config::support::NAMESPACE_NAME;

message! {
    /// The specification.
    pub struct KubernetesGateway {
        /// Whose it is.
        gateway_class_name: Text = "gatewayClassName" required,
        /// Where it listens.
        listeners: Vec<Listener> = "listeners" required,
        /// Where it is to be found.
        addresses: Vec<GatewayAddress> = "addresses",
        /// Of what a cluster makes for it.
        infrastructure: Option<Infrastructure> = "infrastructure",
        /// Whose ListenerSets may be attached to it.
        allowed_listeners: Option<AllowedListeners> = "allowedListeners",
        /// How it proves who it is, and who its clients have to be.
        tls: Option<GatewayTls> = "tls",
        /// Of which routes it is the default.
        default_scope: DefaultGateways = "defaultScope",
    }
    /// Of what a cluster makes for a Gateway.
    pub struct Infrastructure {
        /// Its labels.
        labels: BTreeMap<String, String> = "labels",
        /// Its annotations.
        annotations: BTreeMap<String, String> = "annotations",
        /// What else is to be known of it.
        parameters_ref: Option<LocalReference> = "parametersRef",
    }
    /// Whose ListenerSets may be attached.
    pub struct AllowedListeners {
        /// Those of which namespaces.
        namespaces: ListenerNamespaces = "namespaces",
    }
    /// The namespaces of ListenerSets.
    pub struct ListenerNamespaces {
        /// Which; none where nothing is written.
        from: Option<FromNamespaces> = "from",
        /// Their labels.
        selector: Option<LabelSelector> = "selector",
    }
    /// A port, with a host that is served there.
    pub struct Listener {
        /// The name.
        name: Text = "name" required,
        /// The host, possibly with a wildcard; all of them where nothing is written.
        hostname: Option<Text> = "hostname",
        /// The port.
        port: PortNumber = "port" required,
        /// What is spoken.
        protocol: Text = "protocol" required,
        /// How connections are taken.
        tls: Option<ListenerTls> = "tls",
        /// Which routes may be attached.
        allowed_routes: AllowedRoutes = "allowedRoutes",
    }
    /// How connections are taken.
    pub struct ListenerTls {
        /// Whether TLS ends here.
        mode: TlsMode = "mode",
        /// Secrets with certificates.
        certificate_refs: Vec<SecretReference> = "certificateRefs",
        /// What an implementation lets be said.
        options: BTreeMap<String, String> = "options",
    }
    /// A Secret.
    pub struct SecretReference {
        /// Its group.
        group: Option<Text> = "group",
        /// Its kind; `Secret` where nothing is written.
        kind: Option<Text> = "kind",
        /// Its name.
        name: Text = "name" required,
        /// Its namespace; the Gateway's own where nothing is written.
        namespace: Option<Text> = "namespace",
    }
    /// Which routes may be attached.
    pub struct AllowedRoutes {
        /// Those of which namespaces.
        namespaces: RouteNamespaces = "namespaces",
        /// Those of which kinds; all that go with the protocol where nothing is written.
        kinds: Vec<RouteKind> = "kinds",
    }
    /// Namespaces.
    pub struct RouteNamespaces {
        /// Which.
        from: FromNamespaces = "from",
        /// Their labels.
        selector: Option<LabelSelector> = "selector",
    }
    /// Labels.
    pub struct LabelSelector {
        /// With their values.
        match_labels: BTreeMap<String, String> = "matchLabels",
        /// Conditions on their values.
        match_expressions: Vec<LabelExpression> = "matchExpressions",
    }
    /// A condition on a label.
    pub struct LabelExpression {
        /// The label.
        key: String = "key" required,
        /// The condition.
        operator: LabelOperator = "operator" required,
        /// Its values.
        values: Vec<String> = "values",
    }
    /// A kind of route.
    pub struct RouteKind {
        /// Its group; that of Gateways where nothing is written.
        group: Option<Text> = "group",
        /// Its name.
        kind: Text = "kind" required,
    }
    /// Where a gateway is to be found.
    pub struct GatewayAddress {
        /// What it is; `IPAddress` where nothing is written.
        kind: Option<Text> = "type",
        /// The address; any where nothing is written.
        value: Text = "value",
    }
    /// How a gateway proves who it is, and who its clients have to be.
    pub struct GatewayTls {
        /// To what is behind it.
        backend: Option<BackendTls> = "backend",
        /// Its clients.
        frontend: Option<FrontendTls> = "frontend",
    }
    /// How a gateway proves who it is.
    pub struct BackendTls {
        /// By the certificate of this Secret.
        client_certificate_ref: Option<SecretReference> = "clientCertificateRef",
    }
    /// Who clients have to be.
    pub struct FrontendTls {
        /// Where no port says otherwise.
        default: Option<FrontendPolicy> = "default",
        /// Of single ports.
        per_port: Vec<PortPolicy> = "perPort",
    }
    /// Who clients of a port have to be.
    pub struct PortPolicy {
        /// The port.
        port: PortNumber = "port" required,
        /// Who they have to be.
        tls: FrontendPolicy = "tls" required,
    }
    /// Who clients have to be.
    pub struct FrontendPolicy {
        /// By whose certificates; of any where nothing is written.
        validation: Option<FrontendValidation> = "validation",
    }
    /// By whose certificates clients are let in.
    pub struct FrontendValidation {
        /// Whose.
        ca_certificate_refs: Vec<SecretReference> = "caCertificateRefs",
        /// What becomes of others.
        mode: ValidationMode = "mode",
    }
}

keywords! {
    /// Whether TLS ends at the gateway.
    pub enum TlsMode {
        /// It does.
        Terminate = "Terminate",
        /// It goes on as it is, by the name that is asked for.
        Passthrough = "Passthrough",
    }
    /// Namespaces.
    pub enum FromNamespaces {
        /// The Gateway's own.
        Same = "Same",
        /// All.
        All = "All",
        /// Those with these labels.
        Selector = "Selector",
        /// None.
        None = "None",
    }
    /// A condition on the value of a label.
    pub enum LabelOperator {
        /// It is one of these.
        In = "In",
        /// It is none of these.
        NotIn = "NotIn",
        /// There is one.
        Exists = "Exists",
        /// There is none.
        DoesNotExist = "DoesNotExist",
    }
    /// What becomes of clients without a certificate, or with another.
    pub enum ValidationMode {
        /// They are not let in.
        AllowValidOnly = "AllowValidOnly",
        /// They are.
        AllowInsecureFallback = "AllowInsecureFallback",
    }
}

impl FromNamespaces {
    /// Whether a namespace is one of them, to an object of the namespace `own`.
    pub fn includes(self, selector: Option<&LabelSelector>, own: &str, namespace: &str) -> bool {
        match self {
            FromNamespaces::Same => own == namespace,
            FromNamespaces::All => true,
            FromNamespaces::None => false,
            FromNamespaces::Selector => selector.is_some_and(|selector| selector.selects(namespace)),
        }
    }
}

impl LabelSelector {
    /// Whether a namespace is selected, of whose labels only its name is known: one that is asked for any other is not.
    pub fn selects(&self, namespace: &str) -> bool {
        let holds = |one: &LabelExpression| {
            let is_one = || one.values.iter().any(|value| value == namespace);
            one.key == NAMESPACE_NAME
                && match one.operator {
                    LabelOperator::In => is_one(),
                    LabelOperator::NotIn => !is_one(),
                    LabelOperator::Exists => true,
                    LabelOperator::DoesNotExist => false,
                }
        };
        self.match_labels.iter().all(|(key, value)| key == NAMESPACE_NAME && value == namespace)
            && self.match_expressions.iter().all(holds)
    }
}

impl GatewayAddress {
    /// What it is.
    pub fn kind(&self) -> &str {
        self.kind.as_ref().map_or("IPAddress", |kind| kind.value.as_str())
    }
}

impl SecretReference {
    /// Its group and its kind.
    pub fn group_and_kind(&self) -> (&str, &str) {
        (
            self.group.as_ref().map_or("", |group| group.value.as_str()),
            self.kind.as_ref().map_or("Secret", |kind| kind.value.as_str()),
        )
    }
}

impl KubernetesGateway {
    /// Who the clients of a port have to be.
    pub fn validation(&self, port: u16) -> Option<&FrontendValidation> {
        let frontend = self.tls.as_ref()?.frontend.as_ref()?;
        let own = frontend.per_port.iter().find(|one| one.port.0 == port).map(|one| &one.tls);
        own.or(frontend.default.as_ref())?.validation.as_ref()
    }

    /// Whether ListenerSets of a namespace may be attached, to a Gateway of the namespace `own`.
    pub fn allows_listeners(&self, own: &str, namespace: &str) -> bool {
        let allowed = self.allowed_listeners.as_ref().map(|allowed| &allowed.namespaces);
        allowed.is_some_and(|allowed| {
            allowed.from.is_some_and(|from| from.includes(allowed.selector.as_ref(), own, namespace))
        })
    }

    /// What the schema refuses, but for listeners that are in each other's way: those are told one by one.
    pub fn check(&self, d: &mut Decoder<'_>) {
        if self.gateway_class_name.is_empty() {
            fault(d, self.gateway_class_name.span, "gatewayClassName".to_owned(), "an empty name is none");
        }
        check_listeners(&self.listeners, self.span, d);
        let allowed = self.allowed_listeners.iter().map(|allowed| &allowed.namespaces);
        for allowed in allowed {
            if allowed.from == Some(FromNamespaces::Selector) && allowed.selector.is_none() {
                let path = "allowedListeners.namespaces.selector";
                d.report_at(allowed.span, path, Severity::Error, Code::MissingField, "`from: Selector` needs one");
            }
        }
        let frontend = self.tls.iter().filter_map(|tls| tls.frontend.as_ref());
        for frontend in frontend {
            let all = frontend.per_port.iter().enumerate();
            let all = all.map(|(index, one)| (format!("perPort[{index}].tls"), &one.tls));
            for (path, policy) in frontend.default.iter().map(|one| ("default".to_owned(), one)).chain(all) {
                let Some(validation) = &policy.validation else { continue };
                let path = format!("tls.frontend.{path}.validation.caCertificateRefs");
                if validation.ca_certificate_refs.is_empty() {
                    d.report_at(
                        validation.span,
                        path.clone(),
                        Severity::Error,
                        Code::MissingField,
                        "at least one is needed",
                    );
                }
                check_secrets(&validation.ca_certificate_refs, &path, d);
            }
            for (index, one) in frontend.per_port.iter().enumerate() {
                if frontend.per_port.iter().take(index).any(|earlier| earlier.port == one.port) {
                    fault(d, one.span, format!("tls.frontend.perPort[{index}].port"), "the same port twice");
                }
            }
        }
    }
}

/// The listeners of an object that is written here.
pub(super) fn check_listeners(listeners: &[Listener], span: Span, d: &mut Decoder<'_>) {
    if listeners.is_empty() {
        let message = "at least one of `listeners` is needed";
        d.report_at(span, "listeners", Severity::Error, Code::MissingField, message);
    }
    let mut names = BTreeSet::new();
    for (index, listener) in listeners.iter().enumerate() {
        let path = format!("listeners[{index}]");
        listener.check(&path, d);
        if !names.insert(listener.name.as_str()) {
            let message = format!("{} is also the name of another listener", quoted(&listener.name));
            fault(d, listener.name.span, format!("{path}.name"), message);
        }
    }
}

fn check_secrets(references: &[SecretReference], path: &str, d: &mut Decoder<'_>) {
    for (index, reference) in references.iter().enumerate() {
        let path = format!("{path}[{index}]");
        check_name(&reference.name, &path, d);
        check_namespace(&reference.namespace, &path, d);
    }
}

impl Listener {
    /// Whether it speaks TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self.protocol.as_str(), "HTTPS" | "TLS")
    }

    fn check(&self, path: &str, d: &mut Decoder<'_>) {
        check_name(&self.name, path, d);
        if self.protocol.is_empty() {
            fault(d, self.protocol.span, format!("{path}.protocol"), "an empty protocol is none");
        }
        if let Some(hostname) = self.hostname.as_ref().filter(|hostname| !hostname.is_empty()) {
            if let Some(message) = hostname_fault(hostname) {
                fault(d, hostname.span, format!("{path}.hostname"), message);
            } else if matches!(self.protocol.as_str(), "TCP" | "UDP") {
                let message = format!("connections of {} name no host", self.protocol.value);
                fault(d, hostname.span, format!("{path}.hostname"), message);
            }
        }
        if self.allowed_routes.namespaces.from == FromNamespaces::Selector
            && self.allowed_routes.namespaces.selector.is_none()
        {
            let path = format!("{path}.allowedRoutes.namespaces.selector");
            let span = self.allowed_routes.namespaces.span;
            d.report_at(span, path, Severity::Error, Code::MissingField, "`from: Selector` needs one");
        }
        let path = format!("{path}.tls");
        match &self.tls {
            None if self.is_tls() => {
                let message = format!("{} needs to say how TLS is taken", self.protocol.value);
                d.report_at(self.span, path, Severity::Error, Code::MissingField, message);
            }
            Some(tls) if matches!(self.protocol.as_str(), "HTTP" | "TCP" | "UDP") => {
                fault(d, tls.span, path, format!("{} is no TLS", self.protocol.value));
            }
            Some(tls) => {
                check_secrets(&tls.certificate_refs, &format!("{path}.certificateRefs"), d);
                if tls.mode == TlsMode::Passthrough && *self.protocol.value == *"HTTPS" {
                    fault(d, tls.span, format!("{path}.mode"), "requests are looked at, so that TLS ends here");
                }
                if tls.mode == TlsMode::Terminate && tls.certificate_refs.is_empty() && tls.options.is_empty() {
                    let message = "certificates are needed where TLS ends";
                    d.report_at(
                        tls.span,
                        format!("{path}.certificateRefs"),
                        Severity::Error,
                        Code::MissingField,
                        message,
                    );
                }
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_selected_by_their_names_and_by_no_other_label() {
        let selects = |key: &str, operator: LabelOperator, values: &[&str]| {
            let values = values.iter().map(|&value| value.to_owned()).collect();
            let one = LabelExpression { key: key.to_owned(), operator, values, ..LabelExpression::default() };
            LabelSelector { match_expressions: vec![one], ..LabelSelector::default() }.selects("shop")
        };
        use LabelOperator::{DoesNotExist, Exists, In, NotIn};
        for (operator, values, expected) in [
            (In, &["hr", "shop"][..], true),
            (In, &["hr"], false),
            (NotIn, &["hr"], true),
            (NotIn, &["hr", "shop"], false),
            (Exists, &[], true),
            (DoesNotExist, &[], false),
        ] {
            assert_eq!(selects(NAMESPACE_NAME, operator, values), expected, "{operator:?} {values:?}");
            assert!(!selects("team", operator, values), "nobody knows it: {operator:?} {values:?}");
        }
    }
}
