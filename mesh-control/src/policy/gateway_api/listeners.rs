//! Gateways of Gateway API, in the form of Istio's: which of their listeners are served, who is such a gateway, and which routes come
//! there (Istio: config/kube/gateway/conversion.go).

use std::sync::Arc;

use super::guards;
use super::references::References;
use super::status::{Condition, GatewayStatus, ListenerStatus};
use crate::config::decode::Text;
use crate::config::file::{Meta, Object, Objects};
use crate::config::gateway_api::gateway::{
    FromNamespaces, KubernetesGateway, Listener, ListenerTls, RouteKind, SecretReference, TlsMode as Ends,
    ValidationMode,
};
use crate::config::gateway_api::{CLASSES, GATEWAY_GROUP, GATEWAY_NAME};
use crate::config::istio::gateway::{Gateway, Port, Server, ServerTls, TlsMode};
use crate::config::support::{ObjectKind, TERMINATE_MODE};
use crate::config::{Code, Diagnostic, Severity};
use crate::policy::gateways::Speaks;
use crate::policy::secrets::Secrets;
use crate::registry::host::{covers, in_namespace, plain};
use crate::registry::{Service, Services};

/// Why something is not as it is written: the reason, as a condition has it, and the same for people.
pub(super) type Fault = (&'static str, String);

/// A Gateway that is served, as one of Istio's.
#[derive(Clone, Debug)]
pub struct KubernetesServed {
    /// Its listeners as servers, by their names.
    pub gateway: Arc<Object<Gateway>>,
    /// The Services whose workloads it is, by their hosts. Without any it is the workloads of its own namespace that its
    /// selector selects.
    pub services: Vec<Arc<str>>,
}

/// A Gateway of one of our classes.
pub(super) struct OwnGateway<'o> {
    object: &'o Object<KubernetesGateway>,
    services: Vec<Arc<str>>,
    /// Why it is at no address.
    fault: Option<Fault>,
    pub(super) listeners: Vec<ListenerState>,
}

/// A listener.
pub(super) struct ListenerState {
    /// The kinds of routes that may come.
    kinds: Vec<ObjectKind>,
    /// Why it is not accepted.
    refused: Option<Fault>,
    /// Which other listener is in its way.
    conflict: Option<Fault>,
    /// What of that which it refers to is not there.
    unresolved: Option<Fault>,
    tls: Option<ServerTls>,
    /// How many routes are attached.
    pub(super) attached: usize,
}

/// What a route says of a Gateway that it is to be attached to.
pub(super) struct Attachment<'r> {
    pub(super) kind: ObjectKind,
    pub(super) namespace: &'r str,
    pub(super) section: Option<&'r str>,
    pub(super) port: Option<u16>,
    pub(super) hostnames: &'r [Text],
}

/// Whom to ask about what a listener refers to.
struct Lookup<'a> {
    references: &'a References<'a>,
    secrets: &'a Secrets,
}

impl Lookup<'_> {
    /// Whether a Gateway may be the workloads of a Service: those of another namespace where a grant there says so.
    fn may_take(&self, gateway: &Meta, service: &Service) -> bool {
        let (own, target) = (&*gateway.namespace, &*service.namespace);
        let from = (ObjectKind::KubernetesGateway, own);
        target == own || self.references.is_granted(from, "Service", target, &service.meta.name)
    }
}

/// Those of these objects that are ours, and what is to be said about all of them.
pub(super) fn own_gateways<'o>(
    objects: &'o Objects,
    services: &Services,
    references: &References<'_>,
    secrets: &Secrets,
    root: &str,
    found: &mut Vec<Diagnostic>,
) -> Vec<OwnGateway<'o>> {
    let lookup = Lookup { references, secrets };
    let mut all = Vec::new();
    for object in &objects.kubernetes_gateways {
        let class = &object.spec.gateway_class_name;
        if !CLASSES.contains(&class.as_str()) {
            let message = format!(
                "without effect: class {} is another controller's, ours are {}",
                class.value,
                CLASSES.join(" and ")
            );
            let finding = Diagnostic::at(&object.meta.origin.at(class.span), Severity::Warning, Code::Ignored, message);
            found.push(finding.object(object.meta.id()).field("gatewayClassName"));
            continue;
        }
        let mut gateway = OwnGateway::new(object, services, &lookup);
        if *object.meta.namespace != *root && gateway.is_elsewhere(services) {
            gateway.fault = gateway.fault.or(guards::unenforced(&object.meta, objects, found));
        }
        gateway.report(found);
        all.push(gateway);
    }
    all
}

impl<'o> OwnGateway<'o> {
    fn new(object: &'o Object<KubernetesGateway>, services: &Services, lookup: &Lookup<'_>) -> OwnGateway<'o> {
        let (spec, meta) = (&object.spec, &object.meta);
        let (mut of_addresses, mut fault) = (Vec::new(), None);
        for address in &spec.addresses {
            let host = in_namespace(&address.value, &meta.namespace);
            let found = services.exact(&host, &meta.namespace).map(|(_, service)| service);
            let is_usable = |service: &&Arc<Service>| {
                let is_service = service.meta.kind == ObjectKind::Service && service.selector.is_some();
                address.kind() == "Hostname" && is_service
            };
            match found.filter(is_usable) {
                Some(service) if !lookup.may_take(meta, service) => {
                    let message = format!(
                        "Service {}/{} is of another namespace, where no ReferenceGrant is from Gateway of {}",
                        service.namespace, service.meta.name, meta.namespace
                    );
                    fault.get_or_insert(("AddressNotUsable", message));
                }
                Some(service) => of_addresses.push(service.host.clone()),
                None if address.kind() != "Hostname" => {
                    let message = format!("nobody gives out addresses of type {}", address.kind());
                    fault.get_or_insert(("AddressNotUsable", message));
                }
                None => {
                    fault.get_or_insert((
                        "AddressNotAssigned",
                        format!("there is no Service {host} that selects workloads"),
                    ));
                }
            }
        }
        let mut listeners: Vec<ListenerState> =
            spec.listeners.iter().map(|one| ListenerState::new(one, object, lookup)).collect();
        for (index, state) in listeners.iter_mut().enumerate() {
            state.conflict = conflict(&spec.listeners, index);
        }
        OwnGateway { object, services: of_addresses, fault, listeners }
    }

    /// Whether its workloads may be of another namespace.
    fn is_elsewhere(&self, services: &Services) -> bool {
        let own = &*self.object.meta.namespace;
        let mut named = self.services.iter().filter_map(|host| services.exact(host, own));
        named.any(|(_, service)| *service.namespace != *own)
    }

    pub(super) fn meta(&self) -> &Meta {
        &self.object.meta
    }

    /// A listener, as a server is named.
    pub(super) fn name_of(&self, listener: usize) -> String {
        let name = self.object.spec.listeners.get(listener).map_or("", |listener| listener.name.value.as_str());
        format!("{}/{}", self.object.meta.namespace, internal_name(&self.object.meta.name, name))
    }

    /// The listeners that a route comes to, and for which hosts there; or why it comes to none.
    pub(super) fn hosts_for(&self, attachment: &Attachment<'_>) -> Result<Vec<(usize, Vec<String>)>, Fault> {
        let named = format!("Gateway {}/{}", self.object.meta.namespace, self.object.meta.name);
        let written = self.object.spec.listeners.iter().zip(&self.listeners).enumerate();
        let meant = written.filter(|(_, (listener, _))| {
            attachment.section.is_none_or(|name| *listener.name.value == *name)
                && attachment.port.is_none_or(|port| listener.port.0 == port)
        });
        let mut meant = meant.peekable();
        if meant.peek().is_none() {
            return Err(("NoMatchingParent", format!("{named} has no such listener")));
        }
        let own = &*self.object.meta.namespace;
        let allowed = meant.filter(|(_, (listener, state))| {
            state.kinds.contains(&attachment.kind) && lets_in(listener, own, attachment.namespace)
        });
        let mut allowed = allowed.peekable();
        if allowed.peek().is_none() {
            let message = format!(
                "no listener of {named} lets a {} of namespace {} in",
                attachment.kind.name(),
                attachment.namespace
            );
            return Err(("NotAllowedByListeners", message));
        }
        let shared = allowed.map(|(index, (listener, _))| (index, shared(host_of(listener), attachment.hostnames)));
        let shared: Vec<_> = shared.filter(|(_, hosts)| !hosts.is_empty()).collect();
        if shared.is_empty() {
            let message = format!("no listener of {named} has any of these hosts");
            return Err(("NoMatchingListenerHostname", message));
        }
        Ok(shared)
    }

    /// Of the hosts that a route has at a listener, those that no listener beside it has more closely.
    pub(super) fn isolated(&self, listener: usize, hosts: Vec<String>) -> Vec<String> {
        let all = &self.object.spec.listeners;
        let Some(own) = all.get(listener) else { return hosts };
        let is_closer = |other: &&Listener| {
            other.port == own.port && host_of(other) != host_of(own) && covers(&host_of(own), &host_of(other))
        };
        let closer: Vec<String> = all.iter().filter(is_closer).map(host_of).collect();
        hosts.into_iter().filter(|host| !closer.iter().any(|closer| covers(closer, host))).collect()
    }

    /// The same as one of Istio's; `None` where none of it is served.
    pub(super) fn served(&self) -> Option<KubernetesServed> {
        let meta = &self.object.meta;
        let served = self.object.spec.listeners.iter().zip(&self.listeners).filter(|(_, state)| state.is_served());
        let servers = served.map(|(listener, state)| Server {
            span: listener.span,
            port: Port {
                span: listener.span,
                number: listener.port,
                protocol: listener.protocol.clone(),
                name: Text { value: "default".to_owned(), span: listener.span },
                ..Port::default()
            },
            hosts: vec![Text { value: host_of(listener), span: listener.span }],
            tls: state.tls.clone(),
            name: listener.name.value.clone(),
            ..Server::default()
        });
        let servers: Vec<Server> = servers.collect();
        let selector = [(GATEWAY_NAME.to_owned(), meta.name.to_string())].into();
        (self.fault.is_none() && !servers.is_empty()).then(|| KubernetesServed {
            gateway: Arc::new(Object {
                meta: meta.clone(),
                spec: Gateway { span: self.object.spec.span, selector, servers },
            }),
            services: self.services.clone(),
        })
    }

    pub(super) fn status(&self, services: &Services) -> GatewayStatus {
        let listeners = self.object.spec.listeners.iter().zip(&self.listeners);
        let listeners: Vec<ListenerStatus> = listeners.map(|(listener, state)| state.status(listener)).collect();
        let good = self.listeners.iter().filter(|state| state.is_served() && state.unresolved.is_none()).count();
        let invalid = || ("ListenersNotValid", "not all listeners are valid".to_owned());
        let mut accepted = Condition::of("Accepted", "Accepted", (good < listeners.len()).then(invalid));
        // It is, where one is.
        accepted.holds = good > 0;
        let programmed =
            self.fault.clone().or_else(|| (good == 0).then(|| ("Invalid", "no listener is valid".to_owned())));
        let own = services.iter().map(|(_, service)| service).filter(|service| {
            let label = [(GATEWAY_NAME.to_owned(), self.object.meta.name.to_string())].into();
            *service.namespace == *self.object.meta.namespace && service.selects(&label)
        });
        let addresses = match self.services.as_slice() {
            [] => own.map(|service| service.host.to_string()).collect(),
            named => named.iter().map(ToString::to_string).collect(),
        };
        GatewayStatus {
            gateway: self.object.meta.id(),
            conditions: vec![accepted, Condition::of("Programmed", "Programmed", programmed)],
            addresses,
            listeners,
        }
    }

    fn report(&self, found: &mut Vec<Diagnostic>) {
        let mut say = |span, severity, code, field: String, (reason, message): &Fault, condition: &str| {
            let message = format!("{message} ({condition}: {reason})");
            let finding = Diagnostic::at(&self.object.meta.origin.at(span), severity, code, message);
            found.push(finding.object(self.object.meta.id()).field(field));
        };
        // What is written of the type of an address is a finding of its field already.
        let mut addresses = self.object.spec.addresses.iter();
        let is_told = addresses.any(|address| address.kind.is_some() && address.kind() != "Hostname");
        if let Some(fault) = self.fault.as_ref().filter(|fault| fault.0 != "AddressNotUsable" || !is_told) {
            let span = self.object.spec.addresses.first().map(|address| address.span).unwrap_or_default();
            say(span, Severity::Warning, Code::UnknownReference, "addresses".to_owned(), fault, "Programmed is False");
        }
        for (index, (listener, state)) in self.object.spec.listeners.iter().zip(&self.listeners).enumerate() {
            let field = |name: &str| format!("listeners[{index}]{name}");
            if let Some(fault) = &state.conflict {
                say(
                    listener.span,
                    Severity::Error,
                    Code::Conflict,
                    field(""),
                    fault,
                    "it is left out, Conflicted is True",
                );
            }
            // What is refused is a finding of its field already.
            if let Some(fault) = &state.unresolved {
                let place = match fault.0 {
                    "InvalidRouteKinds" => ".allowedRoutes.kinds",
                    _ => ".tls",
                };
                say(
                    listener.span,
                    Severity::Warning,
                    Code::UnknownReference,
                    field(place),
                    fault,
                    "ResolvedRefs is False",
                );
            }
        }
    }
}

/// What a listener of a Gateway is called, as Istio calls it.
pub(crate) fn internal_name(gateway: &str, listener: &str) -> String {
    format!("{gateway}-istio-autogenerated-k8s-gateway-{listener}")
}

/// The host of a listener; `*` is all.
fn host_of(listener: &Listener) -> String {
    let written = listener.hostname.as_ref().filter(|host| !host.is_empty());
    written.map_or_else(|| "*".to_owned(), |host| plain(host))
}

/// The hosts of a route that a listener has, each as the narrower of both has it.
fn shared(listener: String, hostnames: &[Text]) -> Vec<String> {
    if hostnames.is_empty() {
        return vec![listener];
    }
    let hosts = hostnames.iter().map(|host| plain(host)).filter_map(|host| match () {
        () if covers(&listener, &host) => Some(host),
        () if covers(&host, &listener) => Some(listener.clone()),
        () => None,
    });
    let mut hosts: Vec<String> = hosts.collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

/// Whether a listener of a namespace lets routes of another in.
fn lets_in(listener: &Listener, own: &str, of: &str) -> bool {
    let namespaces = &listener.allowed_routes.namespaces;
    match namespaces.from {
        FromNamespaces::Same => own == of,
        FromNamespaces::All => true,
        FromNamespaces::None => false,
        FromNamespaces::Selector => namespaces.selector.as_ref().is_some_and(|selector| selector.selects(of)),
    }
}

/// The kinds of routes that go with a listener; none where it is not served.
fn kinds_of(listener: &Listener) -> &'static [ObjectKind] {
    let passes = listener.tls.as_ref().is_some_and(|tls| tls.mode == Ends::Passthrough);
    match listener.protocol.as_str() {
        "HTTP" | "HTTPS" => &[ObjectKind::HttpRoute, ObjectKind::GrpcRoute],
        "TLS" if passes => &[ObjectKind::TlsRoute],
        "TLS" => &[ObjectKind::TlsRoute, ObjectKind::TcpRoute],
        "TCP" => &[ObjectKind::TcpRoute],
        _ => &[],
    }
}

/// What tells connections to a port apart: listeners of two of these cannot share it, nor two of the last one.
fn told_apart_by(listener: &Listener) -> Speaks {
    match listener.protocol.as_str() {
        "HTTP" => Speaks::Http,
        "HTTPS" | "TLS" => Speaks::Tls,
        _ => Speaks::Bytes,
    }
}

/// Why a listener cannot be beside the others of its Gateway: of those that are in each other's way, none is served.
fn conflict(all: &[Listener], index: usize) -> Option<Fault> {
    let own = all.get(index)?;
    let is_served = |listener: &Listener| !kinds_of(listener).is_empty();
    let others = all
        .iter()
        .enumerate()
        .filter(|(place, other)| *place != index && other.port == own.port && is_served(other) && is_served(own));
    for (_, other) in others {
        let message = |what: &str| format!("listener {} has port {} for {what}", other.name.value, own.port.0);
        if told_apart_by(other) != told_apart_by(own) || told_apart_by(own) == Speaks::Bytes {
            return Some(("ProtocolConflict", message(&other.protocol)));
        }
        if host_of(other) == host_of(own) {
            return Some(("HostnameConflict", message(&host_of(own))));
        }
    }
    None
}

impl ListenerState {
    fn new(listener: &Listener, object: &Object<KubernetesGateway>, lookup: &Lookup<'_>) -> ListenerState {
        let mut state = ListenerState {
            kinds: Vec::new(),
            refused: None,
            conflict: None,
            unresolved: None,
            tls: None,
            attached: 0,
        };
        let known = kinds_of(listener);
        state.kinds = known.to_vec();
        if known.is_empty() {
            state.refused = Some(("UnsupportedProtocol", format!("{} is not served", listener.protocol.value)));
        }
        let written = &listener.allowed_routes.kinds;
        if !written.is_empty() {
            let is_it = |kind: &ObjectKind, group: Option<&str>, name: &str| {
                group.is_none_or(|group| group == GATEWAY_GROUP) && kind.name() == name
            };
            let meant = |one: &RouteKind| {
                let group = one.group.as_ref().map(|group| group.value.as_str());
                known.iter().copied().find(|kind| is_it(kind, group, &one.kind))
            };
            state.kinds = written.iter().filter_map(meant).collect();
            if let Some(other) = written.iter().find(|one| meant(one).is_none()).filter(|_| !known.is_empty()) {
                let message = format!("{} is no kind of route for {}", other.kind.value, listener.protocol.value);
                state.unresolved = Some(("InvalidRouteKinds", message));
            }
        }
        if let Some(written) = listener.tls.as_ref().filter(|_| listener.is_tls()) {
            state.secure(listener, written, object, lookup);
        }
        state
    }

    /// How it takes TLS. Where something is missing nobody is let in.
    fn secure(
        &mut self,
        listener: &Listener,
        written: &ListenerTls,
        object: &Object<KubernetesGateway>,
        lookup: &Lookup<'_>,
    ) {
        let option = written.options.get(TERMINATE_MODE).map(String::as_str);
        let other = written.options.keys().find(|key| *key != TERMINATE_MODE);
        let mode = match (written.mode, option) {
            (Ends::Passthrough, _) => TlsMode::Passthrough,
            (Ends::Terminate, None | Some("SIMPLE")) => TlsMode::Simple,
            (Ends::Terminate, Some("MUTUAL")) => TlsMode::Mutual,
            (Ends::Terminate, Some("OPTIONAL_MUTUAL")) => TlsMode::OptionalMutual,
            (Ends::Terminate, Some("ISTIO_MUTUAL")) => TlsMode::IstioMutual,
            (Ends::Terminate, Some(mode)) => {
                self.refused = Some(("UnsupportedValue", format!("option {TERMINATE_MODE} has no {mode}")));
                return;
            }
        };
        if let Some(other) = other {
            self.refused = Some(("UnsupportedValue", format!("option {other} is not known")));
            return;
        }
        let mut tls = ServerTls { span: written.span, mode, ..ServerTls::default() };
        if !mode.terminates() || mode == TlsMode::IstioMutual {
            self.tls = Some(tls);
            return;
        }
        let has_key = |namespace: &str, name: &str| {
            lookup.secrets.get(namespace, name).is_some_and(|secret| secret.identity.is_some())
        };
        for reference in &written.certificate_refs {
            match resolve(reference, object, lookup, "InvalidCertificateRef", &has_key) {
                Ok(name) => tls.credential_names.push(name),
                Err(fault) => self.unresolved = Some(fault),
            }
        }
        if written.certificate_refs.is_empty() {
            self.unresolved = Some(("InvalidCertificateRef", "there are no certificateRefs".to_owned()));
        }
        if let Some(validation) = object.spec.validation(listener.port.0) {
            tls.mode = match validation.mode {
                ValidationMode::AllowValidOnly => TlsMode::Mutual,
                ValidationMode::AllowInsecureFallback => TlsMode::OptionalMutual,
            };
            let has_roots = |namespace: &str, name: &str| lookup.secrets.authorities(namespace, name).is_some();
            let resolved = validation.ca_certificate_refs.iter().map(|reference| {
                if reference.group_and_kind().1 != "Secret" {
                    let message = format!("{} is no Secret, and nothing else is read", reference.group_and_kind().1);
                    return Err(("InvalidCACertificateKind", message));
                }
                resolve(reference, object, lookup, "InvalidCACertificateRef", &has_roots)
            });
            let resolved: Result<Vec<Text>, Fault> = resolved.collect();
            match resolved.as_deref() {
                Ok([only]) => tls.ca_cert_credential_name = only.clone(),
                Ok(several) => {
                    let message =
                        format!("{} caCertificateRefs: one Secret says whose clients are let in", several.len());
                    self.unresolved = Some(("InvalidCACertificateRef", message));
                    tls.credential_names.clear();
                }
                Err(fault) => {
                    self.unresolved = Some(fault.clone());
                    tls.credential_names.clear();
                }
            }
        }
        self.tls = Some(tls);
    }

    fn is_served(&self) -> bool {
        self.refused.is_none() && self.conflict.is_none()
    }

    fn status(&self, listener: &Listener) -> ListenerStatus {
        let not_accepted = self.refused.clone().or_else(|| self.conflict.clone());
        let is_shut = self.unresolved.as_ref().is_some_and(|fault| fault.0 != "InvalidRouteKinds");
        let has_nothing =
            self.tls.as_ref().is_some_and(|tls| tls.mode.terminates() && tls.credentials().next().is_none());
        let invalid = not_accepted.is_some() || is_shut && has_nothing;
        let invalid = invalid.then(|| ("Invalid", "connections for it are refused or closed".to_owned()));
        let conflicted = match &self.conflict {
            Some((reason, message)) => Condition { name: "Conflicted", holds: true, reason, message: message.clone() },
            None => Condition { name: "Conflicted", holds: false, reason: "NoConflicts", message: String::new() },
        };
        ListenerStatus {
            name: listener.name.value.clone(),
            attached_routes: self.attached,
            supported_kinds: self.kinds.iter().map(|kind| kind.name()).collect(),
            conditions: vec![
                Condition::of("Accepted", "Accepted", not_accepted),
                conflicted,
                Condition::of("ResolvedRefs", "ResolvedRefs", self.unresolved.clone()),
                Condition::of("Programmed", "Programmed", invalid),
            ],
        }
    }
}

/// The Secret that is referred to, `NAMESPACE/NAME`.
fn resolve(
    reference: &SecretReference,
    object: &Object<KubernetesGateway>,
    lookup: &Lookup<'_>,
    reason: &'static str,
    has: &dyn Fn(&str, &str) -> bool,
) -> Result<Text, Fault> {
    let own = &*object.meta.namespace;
    let (group, kind) = reference.group_and_kind();
    if !matches!(group, "" | "core") || kind != "Secret" {
        return Err((reason, format!("{kind} of group {group:?} is no Secret")));
    }
    let namespace = reference.namespace.as_ref().map_or(own, |namespace| namespace.value.as_str());
    let name = &reference.name.value;
    let from = (ObjectKind::KubernetesGateway, own);
    if namespace != own && !lookup.references.is_granted(from, "Secret", namespace, name) {
        let message = format!(
            "Secret {namespace}/{name} is of another namespace, where no ReferenceGrant is from Gateway of {own}"
        );
        return Err(("RefNotPermitted", message));
    }
    match has(namespace, name) {
        true => Ok(Text { value: format!("{namespace}/{name}"), span: reference.span }),
        false => Err((reason, format!("there is no Secret {namespace}/{name} with it: connections are closed"))),
    }
}
