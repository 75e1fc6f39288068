//! Gateways and ListenerSets that are wrong: where they would listen, as far as that can be read. Meanwhile nobody else is given their
//! hosts there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::spec::{Spec, labels, like, plain, texts};
use super::{Meta, Object};
use crate::config::decode::{Decode, Decoder, PortNumber, Text};
use crate::config::gateway_api::CLASSES;
use crate::config::gateway_api::gateway::{AllowedListeners, GatewayAddress, KubernetesGateway, Listener};
use crate::config::gateway_api::listener_set::{ListenerSet, ParentGateway};
use crate::config::istio::gateway::{Gateway, Port, Server, split_host};
use crate::config::istio::names::host_fault;
use crate::config::node::{Node, Value};
use crate::config::spelling::nearest;
use crate::config::support::ObjectKind;

/// Where an object that is wrong would listen.
#[derive(Clone, Debug)]
pub struct Closes {
    /// The same object, with nothing else in it.
    pub listens: Listens,
    /// Whether that is all of it.
    pub is_whole: bool,
}

/// An object that says where a gateway listens.
#[derive(Clone, Debug)]
pub enum Listens {
    /// Istio's Gateway.
    Servers(Arc<Object<Gateway>>),
    /// Gateway API's Gateway.
    Gateway(Arc<Object<KubernetesGateway>>),
    /// A ListenerSet.
    Set(Arc<Object<ListenerSet>>),
}

/// What can be read of an object; `None` where that is nothing, or where nobody can tell at which gateway.
pub(super) fn read(spec: &Spec<'_>, meta: &Meta) -> Option<Closes> {
    let span = meta.origin.span;
    let meta = meta.clone();
    match meta.kind {
        ObjectKind::Gateway => {
            let selector = match spec.get("selector") {
                Some(written) => labels(written)?,
                // It is for all of them, unless it is `selector` that is mistyped.
                None if spec.is_known() => BTreeMap::new(),
                None => return None,
            };
            let (servers, is_whole) = each(spec.get("servers")?, |node| Some(vec![server(node)?]))?;
            let spec = Gateway { span, selector, servers };
            Some(Closes { listens: Listens::Servers(Arc::new(Object { meta, spec })), is_whole })
        }
        ObjectKind::KubernetesGateway => {
            let written = spec.get("gatewayClassName")?;
            let class = plain(written)?;
            let class = nearest(&class, &CLASSES).map_or(class, str::to_owned);
            let (listeners, has_all) = each(spec.get("listeners")?, listeners)?;
            let allowed = spec.get("allowedListeners");
            let allowed_listeners = allowed.and_then(|written| allowed_by(written, &meta));
            let is_whole = has_all && allowed.is_some() == allowed_listeners.is_some();
            let addresses = spec.get("addresses").map(Node::items).unwrap_or_default();
            let spec = KubernetesGateway {
                span,
                gateway_class_name: text(class, written),
                listeners,
                allowed_listeners,
                addresses: addresses.iter().filter_map(address).collect(),
                ..KubernetesGateway::default()
            };
            Some(Closes { listens: Listens::Gateway(Arc::new(Object { meta, spec })), is_whole })
        }
        ObjectKind::ListenerSet => {
            const FIELDS: [&str; 4] = ["group", "kind", "namespace", "name"];
            let parent = spec.get("parentRef")?;
            let field = |name: &str| like(parent, name, &FIELDS);
            let name = field("name")?;
            let namespace = match field("namespace") {
                Some(written) => Some(text(plain(written)?, written)),
                None => None,
            };
            let parent_ref = ParentGateway {
                span: parent.span,
                name: text(plain(name)?, name),
                namespace,
                ..ParentGateway::default()
            };
            let (listeners, is_whole) = each(spec.get("listeners")?, listeners)?;
            let spec = ListenerSet { span, parent_ref, listeners };
            Some(Closes { listens: Listens::Set(Arc::new(Object { meta, spec })), is_whole })
        }
        _ => None,
    }
}

/// What can be read of the items of a list, and whether that is all of them.
fn each<T>(list: &Node, read: impl Fn(&Node) -> Option<Vec<T>>) -> Option<(Vec<T>, bool)> {
    let all: Vec<Option<Vec<T>>> = list.items().iter().map(read).collect();
    let is_whole = all.iter().all(Option::is_some);
    let found: Vec<T> = all.into_iter().flatten().flatten().collect();
    (!found.is_empty()).then_some((found, is_whole))
}

fn text(value: String, at: &Node) -> Text {
    Text { value, span: at.span }
}

fn server(node: &Node) -> Option<Server> {
    const FIELDS: [&str; 6] = ["port", "bind", "hosts", "tls", "defaultEndpoint", "name"];
    const PORT: [&str; 4] = ["number", "protocol", "name", "targetPort"];
    const KNOWN: [&str; 8] = ["HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTPS", "TLS", "TCP", "MONGO"];
    let port = like(node, "port", &FIELDS)?;
    let has_tls = like(node, "tls", &FIELDS).is_some();
    let protocol = like(port, "protocol", &PORT)?;
    let hosts = like(node, "hosts", &FIELDS)?;
    Some(Server {
        span: node.span,
        port: Port {
            span: port.span,
            number: number(like(port, "number", &PORT)?)?,
            protocol: text(spoken(protocol, &KNOWN, has_tls)?, protocol),
            name: text(like(port, "name", &PORT).and_then(plain).unwrap_or_default(), port),
            ..Port::default()
        },
        bind: like(node, "bind", &FIELDS).and_then(plain).map(|bind| text(bind, node)).unwrap_or_default(),
        hosts: read_hosts(hosts)?.into_iter().map(|host| text(host, hosts)).collect(),
        ..Server::default()
    })
}

/// A listener, once for each of its hosts: there may be several by mistake.
fn listeners(node: &Node) -> Option<Vec<Listener>> {
    const FIELDS: [&str; 6] = ["name", "hostname", "port", "protocol", "tls", "allowedRoutes"];
    const KNOWN: [&str; 4] = ["HTTP", "HTTPS", "TLS", "TCP"];
    let has_tls = like(node, "tls", &FIELDS).is_some();
    let written = like(node, "protocol", &FIELDS)?;
    let protocol = spoken(written, &KNOWN, has_tls)?;
    let port = number(like(node, "port", &FIELDS)?)?;
    let name = node.get("name").and_then(plain).unwrap_or_default();
    let hosts: Vec<Option<String>> = match like(node, "hostname", &FIELDS) {
        Some(written) => read_hosts(written)?.into_iter().map(Some).collect(),
        None => vec![None],
    };
    let of = |host: Option<String>| Listener {
        span: node.span,
        name: text(name.clone(), node),
        hostname: host.map(|host| text(host, node)),
        port,
        protocol: text(protocol.clone(), written),
        ..Listener::default()
    };
    Some(hosts.into_iter().map(of).collect())
}

/// Whose ListenerSets a Gateway lets in, where nothing is wrong with that.
fn allowed_by(node: &Node, meta: &Meta) -> Option<AllowedListeners> {
    let mut d = Decoder::new(&meta.origin.source);
    AllowedListeners::decode(node, &mut d).filter(|_| !d.is_rejected())
}

fn address(node: &Node) -> Option<GatewayAddress> {
    let value = like(node, "value", &["type", "value"])?;
    let kind = Some(text("Hostname".to_owned(), node));
    Some(GatewayAddress { span: node.span, kind, value: text(plain(value)?, value) })
}

fn number(node: &Node) -> Option<PortNumber> {
    let number: u16 = match &node.value {
        Value::Int(number) => u16::try_from(*number).ok()?,
        Value::Str(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    (number > 0).then_some(PortNumber(number))
}

/// A protocol, or the one that is most likely meant: of TLS where something is said of it.
fn spoken(written: &Node, known: &[&'static str], has_tls: bool) -> Option<String> {
    let word = written.as_str()?.trim().to_ascii_uppercase();
    if known.iter().any(|one| *one == word) {
        return Some(word);
    }
    let is_tls = |one: &str| matches!(one, "HTTPS" | "TLS");
    let likely: Vec<&str> = known.iter().copied().filter(|one| is_tls(one) == has_tls).collect();
    nearest(&word, &likely).map(str::to_owned)
}

/// The hosts that are hosts, each possibly behind a namespace; `None` where none is.
fn read_hosts(written: &Node) -> Option<Vec<String>> {
    let mut hosts = texts(written).read;
    hosts.retain(|host| host_fault(split_host(host).1).is_none());
    (!hosts.is_empty()).then_some(hosts)
}
