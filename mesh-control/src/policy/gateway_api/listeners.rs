//! Gateways of Gateway API, and the ListenerSets that are attached to them, in the form of Istio's Gateways: which of their listeners
//! are served, who is such a gateway, and which routes come there (Istio: config/kube/gateway/conversion.go).

use std::sync::Arc;

use super::guards;
use super::references::References;
use super::status::{Condition, Fault, GatewayStatus, ListenerStatus};
use crate::config::decode::Text;
use crate::config::file::{Listens, Meta, Object, Objects};
use crate::config::gateway_api::gateway::{
    KubernetesGateway, Listener, ListenerTls, RouteKind, RouteNamespaces, SecretReference, TlsMode as Ends,
    ValidationMode,
};
use crate::config::gateway_api::listener_set::ListenerSet;
use crate::config::gateway_api::{CLASSES, GATEWAY_GROUP, GATEWAY_NAME};
use crate::config::istio::gateway::{Gateway, Port, Server, ServerTls, TlsMode};
use crate::config::locate::locate;
use crate::config::support::{ObjectKind, TERMINATE_MODE};
use crate::config::{Code, Diagnostic, Severity, Span};
use crate::policy::gateways::{Speaks, is_closer};
use crate::policy::secrets::Secrets;
use crate::registry::host::{covers, in_namespace, plain};
use crate::registry::{Service, Services};

/// A Gateway that is served, or a ListenerSet, as a Gateway of Istio's.
#[derive(Clone, Debug)]
pub struct KubernetesServed {
    /// Its listeners as servers, by their names.
    pub gateway: Arc<Object<Gateway>>,
    /// The Gateway that they are listeners of: itself, or the one that a ListenerSet is attached to.
    pub of: Arc<Meta>,
    /// The Services whose workloads it is, by their hosts. Without any it is the workloads of the Gateway's namespace that its
    /// selector selects.
    pub services: Vec<Arc<str>>,
    /// Why nothing is served there: it is wrong.
    pub closed: Option<Arc<str>>,
}

/// A Gateway of one of our classes, or a ListenerSet of such a one.
pub(super) struct OwnGateway<'o> {
    meta: &'o Meta,
    /// Where what it says is written.
    span: Span,
    written: &'o [Listener],
    /// The Gateway: itself, or the one that a ListenerSet is to be attached to.
    gateway: &'o Object<KubernetesGateway>,
    services: Vec<Arc<str>>,
    /// Why a ListenerSet is not attached.
    apart: Option<Fault>,
    /// Why it is at no address.
    fault: Option<Fault>,
    pub(super) listeners: Vec<ListenerState>,
    /// The port and the host of every listener that the Gateway has, those of ListenerSets among them.
    around: Vec<(u16, String)>,
    /// How many ListenerSets are attached to it.
    attached_sets: usize,
    /// What is answered where it listens, since it is wrong.
    closed: Option<Arc<str>>,
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
        let of_gateway = with_sets(gateway, objects, &lookup);
        of_gateway.iter().filter(|one| !one.is_closed()).for_each(|one| one.report(found));
        all.extend(of_gateway);
    }
    for object in &objects.refused {
        let Some(Listens::Gateway(gateway)) = object.closes.as_ref().map(|closes| &closes.listens) else { continue };
        if CLASSES.contains(&gateway.spec.gateway_class_name.as_str()) {
            let closed = Some(object.answer());
            let gateway = OwnGateway { closed, ..OwnGateway::new(gateway, services, &lookup) };
            all.extend(with_sets(gateway, objects, &lookup));
        }
    }
    report_apart(objects, &all, found);
    all
}

/// A Gateway, and the ListenerSets behind it. While it is wrong they keep their hosts, and serve nothing there either.
fn with_sets<'o>(gateway: OwnGateway<'o>, objects: &'o Objects, lookup: &Lookup<'_>) -> Vec<OwnGateway<'o>> {
    let mut sets = Vec::new();
    for (set, closed) in sets_of(objects, gateway.meta) {
        let closed = closed.or_else(|| gateway.closed.clone());
        let next = OwnGateway { closed, ..OwnGateway::of_set(set, &gateway, &sets, lookup) };
        sets.push(next);
    }
    let mut of_gateway = vec![gateway];
    of_gateway.extend(sets);
    merge(&mut of_gateway);
    of_gateway
}

/// The ListenerSets that are to be attached to a Gateway, in the order in which they compete: the oldest first, and those that say
/// nothing of their age last, as Gateways. Those that are wrong keep their hosts, and say what is answered there.
fn sets_of<'o>(objects: &'o Objects, gateway: &Meta) -> Vec<(&'o Object<ListenerSet>, Option<Arc<str>>)> {
    let (namespace, name) = (&gateway.namespace, &gateway.name);
    let good = objects.listener_sets.iter().map(|set| (&**set, None));
    let wrong = objects.refused.iter().filter_map(|object| match &object.closes.as_ref()?.listens {
        Listens::Set(set) => Some((&**set, Some(object.answer()))),
        _ => None,
    });
    let mut sets: Vec<(&Object<ListenerSet>, Option<Arc<str>>)> = good.chain(wrong).collect();
    sets.retain(|(set, _)| set.spec.parent_ref.is(&set.meta.namespace, namespace, name));
    // Of the same age by `namespace/name`, as Gateway API has it.
    sets.sort_by_cached_key(|&(set, _)| (set.meta.age(), format!("{}/{}", set.meta.namespace, set.meta.name)));
    sets
}

/// What a Gateway and the ListenerSets behind it know of each other.
fn merge(of_gateway: &mut [OwnGateway<'_>]) {
    let listeners = of_gateway.iter().flat_map(|one| one.claims());
    let around: Vec<(u16, String)> = listeners.map(|listener| (listener.port.0, host_of(listener))).collect();
    let attached = of_gateway
        .iter()
        .filter(|one| one.is_set() && !one.is_closed() && one.apart.is_none() && one.good() > 0)
        .count();
    for one in of_gateway {
        one.around.clone_from(&around);
        one.attached_sets = attached;
    }
}

/// ListenerSets whose Gateway is wrong, or none of ours: whose that is nobody knows, and no condition is ours.
fn report_apart(objects: &Objects, all: &[OwnGateway<'_>], found: &mut Vec<Diagnostic>) {
    for set in objects.listener_sets.iter().filter(|set| set.spec.parent_ref.is_gateway()) {
        let parent = &set.spec.parent_ref;
        let (namespace, name) = (parent.namespace(&set.meta.namespace), &parent.name.value);
        let message = match all.iter().find(|one| one.meta.key() == set.meta.key()) {
            Some(own) if !own.is_closed() => continue,
            Some(_) => format!("Gateway {namespace}/{name} is wrong: nothing is served there until it is right"),
            None => format!("there is no Gateway {namespace}/{name} of a class of ours: nobody listens there"),
        };
        let origin = set.meta.origin.at(parent.span);
        let finding = Diagnostic::at(&origin, Severity::Warning, Code::UnknownReference, message);
        found.push(finding.object(set.meta.id()).field("parentRef"));
    }
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
        OwnGateway {
            meta,
            span: spec.span,
            written: &spec.listeners,
            gateway: object,
            services: of_addresses,
            apart: None,
            fault,
            listeners: states(&spec.listeners, meta, object, lookup),
            around: Vec::new(),
            attached_sets: 0,
            closed: None,
        }
    }

    /// A ListenerSet of a Gateway, behind these others of it. Of listeners that are in each other's way that of the earlier object is
    /// served.
    fn of_set(
        set: &'o Object<ListenerSet>,
        gateway: &OwnGateway<'o>,
        earlier: &[OwnGateway<'o>],
        lookup: &Lookup<'_>,
    ) -> OwnGateway<'o> {
        let (meta, spec, parent) = (&set.meta, &set.spec, gateway.gateway);
        let named = gateway.named();
        let apart = match () {
            () if !parent.spec.allows_listeners(&parent.meta.namespace, &meta.namespace) => {
                Some(("NotAllowed", format!("{named} lets no ListenerSet of namespace {} in", meta.namespace)))
            }
            // Of one that is wrong not all of its listeners are known.
            () if gateway.good() == 0 && !gateway.is_closed() => {
                Some(("ParentNotAccepted", format!("{named} has no valid listener")))
            }
            () => None,
        };
        let fault = gateway.fault.as_ref().map(|_| ("ParentNotProgrammed", format!("{named} is not served")));
        let mut listeners = states(&spec.listeners, meta, parent, lookup);
        for (listener, state) in spec.listeners.iter().zip(&mut listeners) {
            let mut others = std::iter::once(gateway).chain(earlier).flat_map(|one| one.claims());
            // Whose the other one is, is not for everybody to know who may read this one.
            let taken = others.find_map(|other| collision(listener, other)).map(|(reason, what)| {
                (reason, format!("another listener of the Gateway has port {} for {what}", listener.port.0))
            });
            state.conflict = state.conflict.take().or(taken);
        }
        OwnGateway {
            meta,
            span: spec.span,
            written: &spec.listeners,
            gateway: parent,
            services: gateway.services.clone(),
            apart,
            fault,
            listeners,
            around: Vec::new(),
            attached_sets: 0,
            closed: None,
        }
    }

    fn is_set(&self) -> bool {
        self.meta.kind == ObjectKind::ListenerSet
    }

    /// Whether it is wrong: it keeps its hosts, and serves nothing.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// What people call it.
    fn named(&self) -> String {
        format!("{} {}/{}", self.meta.kind.name(), self.meta.namespace, self.meta.name)
    }

    /// What a route that is wrong calls it ([`crate::config::file::AtGateways`]).
    pub(super) fn named_by_refused(&self) -> String {
        match self.is_set() {
            true => self.named(),
            false => format!("{}/{}", self.meta.namespace, self.meta.name),
        }
    }

    /// The listeners whose ports and hosts no others have: those of the Gateway, be they served or not, and of a ListenerSet those
    /// that are in nobody's way.
    fn claims(&self) -> impl Iterator<Item = &'o Listener> {
        let all = self.written.iter().zip(&self.listeners).filter(|_| self.apart.is_none());
        all.filter(|(_, state)| !self.is_set() || state.conflict.is_none()).map(|(listener, _)| listener)
    }

    /// How many of its listeners there is nothing to be said against.
    fn good(&self) -> usize {
        self.listeners.iter().filter(|state| state.is_served() && state.unresolved.is_none()).count()
    }

    /// Whether its workloads may be of another namespace.
    fn is_elsewhere(&self, services: &Services) -> bool {
        let own = &*self.meta.namespace;
        let mut named = self.services.iter().filter_map(|host| services.exact(host, own));
        named.any(|(_, service)| *service.namespace != *own)
    }

    pub(super) fn meta(&self) -> &Meta {
        self.meta
    }

    /// A listener, as a server is named.
    pub(super) fn name_of(&self, listener: usize) -> String {
        let name = self.written.get(listener).map_or("", |listener| listener.name.value.as_str());
        format!("{}/{}", self.meta.namespace, internal_name(self.meta, name))
    }

    /// The listeners that a route comes to, and for which hosts there; or why it comes to none.
    pub(super) fn hosts_for(&self, attachment: &Attachment<'_>) -> Result<Vec<(usize, Vec<String>)>, Fault> {
        let named = self.named();
        if self.apart.is_some() {
            return Err(("NoMatchingParent", format!("{named} is not attached to its Gateway")));
        }
        let written = self.written.iter().zip(&self.listeners).enumerate();
        let meant = written.filter(|(_, (listener, _))| {
            attachment.section.is_none_or(|name| *listener.name.value == *name)
                && attachment.port.is_none_or(|port| listener.port.0 == port)
        });
        let mut meant = meant.peekable();
        if meant.peek().is_none() {
            return Err(("NoMatchingParent", format!("{named} has no such listener")));
        }
        let own = &*self.meta.namespace;
        let allowed = meant.filter(|(_, (listener, state))| {
            let RouteNamespaces { from, selector, .. } = &listener.allowed_routes.namespaces;
            state.kinds.contains(&attachment.kind) && from.includes(selector.as_ref(), own, attachment.namespace)
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

    /// Of the hosts that a route has at a listener, those that no other listener of the Gateway has more closely.
    pub(super) fn isolated(&self, listener: usize, mut hosts: Vec<String>) -> Vec<String> {
        let Some(own) = self.written.get(listener) else { return hosts };
        let own_host = host_of(own);
        hosts.retain(|host| {
            let has_it = |(port, other): &(u16, String)| *port == own.port.0 && is_closer(other, &own_host, host);
            !self.around.iter().any(has_it)
        });
        hosts
    }

    /// The same as one of Istio's; `None` where none of it is served.
    pub(super) fn served(&self) -> Option<KubernetesServed> {
        let served = self.written.iter().zip(&self.listeners).filter(|(_, state)| state.is_served());
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
        let of = &self.gateway.meta;
        let selector = [(GATEWAY_NAME.to_owned(), of.name.to_string())].into();
        let is_served = self.apart.is_none() && self.fault.is_none() && !servers.is_empty();
        is_served.then(|| KubernetesServed {
            gateway: Arc::new(Object { meta: self.meta.clone(), spec: Gateway { span: self.span, selector, servers } }),
            of: Arc::new(of.clone()),
            services: self.services.clone(),
            closed: self.closed.clone(),
        })
    }

    pub(super) fn status(&self, services: &Services) -> GatewayStatus {
        // Nobody looks at those of one that is not attached.
        let listeners = self.written.iter().zip(&self.listeners).filter(|_| self.apart.is_none());
        let listeners: Vec<ListenerStatus> = listeners.map(|(listener, state)| state.status(listener)).collect();
        let good = self.good();
        let invalid = || ("ListenersNotValid", "not all listeners are valid".to_owned());
        let not_accepted = self.apart.clone().or_else(|| (good < listeners.len()).then(invalid));
        let mut accepted = Condition::of("Accepted", "Accepted", not_accepted);
        // It is, where one is.
        accepted.holds = self.apart.is_none() && good > 0;
        let none_valid = || (good == 0).then(|| ("Invalid", "no listener is valid".to_owned()));
        let programmed = self.apart.clone().or_else(|| self.fault.clone()).or_else(none_valid);
        let own = services.iter().map(|(_, service)| service).filter(|service| {
            let label = [(GATEWAY_NAME.to_owned(), self.meta.name.to_string())].into();
            *service.namespace == *self.meta.namespace && service.selects(&label)
        });
        let addresses = match self.services.as_slice() {
            _ if self.is_set() => Vec::new(),
            [] => own.map(|service| service.host.to_string()).collect(),
            named => named.iter().map(ToString::to_string).collect(),
        };
        GatewayStatus {
            gateway: self.meta.id(),
            conditions: vec![accepted, Condition::of("Programmed", "Programmed", programmed)],
            addresses,
            listeners,
            attached_listener_sets: (!self.is_set()).then_some(self.attached_sets),
        }
    }

    fn report(&self, found: &mut Vec<Diagnostic>) {
        if let Some((reason, message)) = &self.apart {
            let message = format!("{message}: nobody listens there (Accepted is False: {reason})");
            let origin = locate(&self.meta.origin, "parentRef");
            let finding = Diagnostic::at(&origin, Severity::Warning, Code::UnknownReference, message);
            found.push(finding.object(self.meta.id()).field("parentRef"));
            return;
        }
        let mut say = |span, severity, code, field: String, (reason, message): &Fault, condition: &str| {
            let message = format!("{message} ({condition}: {reason})");
            let finding = Diagnostic::at(&self.meta.origin.at(span), severity, code, message);
            found.push(finding.object(self.meta.id()).field(field));
        };
        // What is written of the type of an address is a finding of its field already.
        let addresses = &self.gateway.spec.addresses;
        let is_told = addresses.iter().any(|address| address.kind.is_some() && address.kind() != "Hostname");
        let of_gateway = self.fault.as_ref().filter(|_| !self.is_set());
        if let Some(fault) = of_gateway.filter(|fault| fault.0 != "AddressNotUsable" || !is_told) {
            let span = addresses.first().map(|address| address.span).unwrap_or_default();
            say(span, Severity::Warning, Code::UnknownReference, "addresses".to_owned(), fault, "Programmed is False");
        }
        for (index, (listener, state)) in self.written.iter().zip(&self.listeners).enumerate() {
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

/// What a listener of a Gateway is called, as Istio calls it, and one of a ListenerSet.
pub(crate) fn internal_name(of: &Meta, listener: &str) -> String {
    let kind = if of.kind == ObjectKind::ListenerSet { "listenerset" } else { "gateway" };
    format!("{}-istio-autogenerated-k8s-{kind}-{listener}", of.name)
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

/// Why a listener cannot be beside the others of its object: of those that are in each other's way, none is served.
fn conflict(all: &[Listener], index: usize) -> Option<Fault> {
    let own = all.get(index)?;
    let mut others = all.iter().enumerate().filter(|(place, _)| *place != index);
    others.find_map(|(_, other)| {
        let (reason, what) = collision(own, other)?;
        Some((reason, format!("listener {} has port {} for {what}", other.name.value, own.port.0)))
    })
}

/// Why a listener cannot be beside another one, and what that one has.
fn collision(own: &Listener, other: &Listener) -> Option<Fault> {
    let is_served = |listener: &Listener| !kinds_of(listener).is_empty();
    if other.port != own.port || !is_served(own) || !is_served(other) {
        return None;
    }
    if told_apart_by(other) != told_apart_by(own) || told_apart_by(own) == Speaks::Bytes {
        return Some(("ProtocolConflict", other.protocol.value.clone()));
    }
    (host_of(other) == host_of(own)).then(|| ("HostnameConflict", host_of(own)))
}

/// What becomes of the listeners of an object, by itself: of a Gateway, or of a ListenerSet of it.
fn states(
    all: &[Listener],
    meta: &Meta,
    gateway: &Object<KubernetesGateway>,
    lookup: &Lookup<'_>,
) -> Vec<ListenerState> {
    let of = |(index, one)| ListenerState {
        conflict: conflict(all, index),
        ..ListenerState::new(one, meta, gateway, lookup)
    };
    all.iter().enumerate().map(of).collect()
}

impl ListenerState {
    fn new(
        listener: &Listener,
        meta: &Meta,
        gateway: &Object<KubernetesGateway>,
        lookup: &Lookup<'_>,
    ) -> ListenerState {
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
            state.secure(listener, written, (meta, gateway), lookup);
        }
        state
    }

    /// How it takes TLS. Where something is missing nobody is let in.
    fn secure(
        &mut self,
        listener: &Listener,
        written: &ListenerTls,
        (meta, gateway): (&Meta, &Object<KubernetesGateway>),
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
            match resolve(reference, meta, lookup, "InvalidCertificateRef", &has_key) {
                Ok(name) => tls.credential_names.push(name),
                Err(fault) => self.unresolved = Some(fault),
            }
        }
        if written.certificate_refs.is_empty() {
            self.unresolved = Some(("InvalidCertificateRef", "there are no certificateRefs".to_owned()));
        }
        if let Some(validation) = gateway.spec.validation(listener.port.0) {
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
                resolve(reference, &gateway.meta, lookup, "InvalidCACertificateRef", &has_roots)
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
                Err((reason, message)) => {
                    // What a Gateway refers to is not for everybody to know who may read a ListenerSet.
                    let message = match meta.kind {
                        ObjectKind::ListenerSet => "whose clients are let in the Gateway does not say".to_owned(),
                        _ => message.clone(),
                    };
                    self.unresolved = Some((*reason, message));
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
    of: &Meta,
    lookup: &Lookup<'_>,
    reason: &'static str,
    has: &dyn Fn(&str, &str) -> bool,
) -> Result<Text, Fault> {
    let own = &*of.namespace;
    let (group, kind) = reference.group_and_kind();
    if !matches!(group, "" | "core") || kind != "Secret" {
        return Err((reason, format!("{kind} of group {group:?} is no Secret")));
    }
    let namespace = reference.namespace.as_ref().map_or(own, |namespace| namespace.value.as_str());
    let name = &reference.name.value;
    let from = (of.kind, own);
    if namespace != own && !lookup.references.is_granted(from, "Secret", namespace, name) {
        let message = format!(
            "Secret {namespace}/{name} is of another namespace, where no ReferenceGrant is from {} of {own}",
            of.kind.name()
        );
        return Err(("RefNotPermitted", message));
    }
    match has(namespace, name) {
        true => Ok(Text { value: format!("{namespace}/{name}"), span: reference.span }),
        false => Err((reason, format!("there is no Secret {namespace}/{name} with it: connections are closed"))),
    }
}
