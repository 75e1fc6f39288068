//! Where connections go whose bytes are not HTTP: `tls` and `tcp` of a VirtualService, as Istio has them
//! (core/networkfilter.go, core/tls.go).
//!
//! Everything that depends on the client, on the port and on the address is decided here; what is left is the name that a
//! client asks a server for.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::compile::{ServiceOf, cluster_of, is_at};
use super::route::ClusterKey;
use super::traffic::Tunnel;
use super::view::View;
use super::virtual_services::gateway_name;
use crate::config::file::Object;
use crate::config::istio::virtual_service::{RouteDestination, Subnet, TcpMatch, TlsMatch, VirtualService};
use crate::registry::service::is_subset;

/// A way of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connections {
    /// What it is called: the rule, `tls[0]`.
    pub name: String,
    /// Names of servers, in lower case; empty is for all, and for those that ask for none.
    pub server_names: Vec<String>,
    /// Where to, and with which share: at least one.
    pub targets: Vec<(ClusterKey, u32)>,
    /// How long one may be idle.
    pub idle_timeout: Option<Duration>,
    /// What the endpoints, which are proxies, are asked for, if they are.
    pub tunnel: Option<Tunnel>,
}

/// What connections are addressed to.
pub struct Addressed<'a> {
    /// The port.
    pub port: u16,
    /// Its addresses, as far as they are known: a host that is one, those of a service.
    pub addresses: &'a [IpAddr],
    /// Whether applications speak TLS to it; `None` where nobody says.
    pub is_tls: Option<bool>,
    /// The gateway that they come in by, `NAMESPACE/NAME`; `None` where a workload makes them.
    pub gateway: Option<&'a str>,
}

/// The ways that the rules of an object are for a client; the last one is for what no other one takes, where there is one.
/// `None` where none of them is for this client and port.
pub fn ways(
    object: &Object<VirtualService>,
    view: &View,
    to: &Addressed<'_>,
    service_of: &ServiceOf<'_>,
) -> Vec<Connections> {
    let mut ways = Vec::new();
    let namespace = &object.meta.namespace;
    let mut taken = BTreeSet::new();
    let tls = object.spec.tls.iter().enumerate().filter(|_| to.is_tls != Some(false));
    for (index, rule) in tls {
        for (position, condition) in rule.matches.iter().enumerate() {
            if !condition.applies(namespace, view, to) {
                continue;
            }
            let names = condition.sni_hosts.iter().map(|name| name.to_ascii_lowercase());
            // Of two rules for a name, the first one has it.
            let names: Vec<String> = names.filter(|name| taken.insert(name.clone())).collect();
            if names.is_empty() {
                continue;
            }
            let name = format!("tls[{index}].match[{position}]");
            ways.extend(way(name, without_star(names), &rule.route, namespace, to.port, service_of));
        }
    }
    // For names of which there are rules, others would be a way around them.
    let is_tls = to.is_tls.unwrap_or(!ways.is_empty());
    let tcp = object.spec.tcp.iter().enumerate().filter(|_| !is_tls);
    for (index, rule) in tcp {
        if rule.matches.is_empty() || rule.matches.iter().any(|condition| condition.applies(namespace, view, to)) {
            ways.extend(way(format!("tcp[{index}]"), Vec::new(), &rule.route, namespace, to.port, service_of));
            break;
        }
    }
    ways
}

/// `*` is every name, and none.
fn without_star(names: Vec<String>) -> Vec<String> {
    if names.iter().any(|name| name == "*") { Vec::new() } else { names }
}

fn way(
    name: String,
    server_names: Vec<String>,
    route: &[RouteDestination],
    namespace: &Arc<str>,
    port: u16,
    service_of: &ServiceOf<'_>,
) -> Option<Connections> {
    let weight = |to: &RouteDestination| to.weight.as_ref().map_or(0, |weight| weight.value);
    let several = route.len() > 1;
    // Of several destinations, those of weight 0 get nothing (Istio: networkfilter.go).
    let kept = route.iter().filter(|to| !several || weight(to) > 0);
    let targets: Vec<_> = kept
        .map(|to| {
            let share = u32::try_from(weight(to)).unwrap_or(0).max(1);
            (cluster_of(&to.destination, namespace, port, service_of), share)
        })
        .collect();
    (!targets.is_empty()).then_some(Connections { name, server_names, targets, idle_timeout: None, tunnel: None })
}

/// A condition on connections.
trait Applies {
    /// Whether it can hold for connections of this client to there, in an object of a namespace.
    fn applies(&self, own: &str, view: &View, to: &Addressed<'_>) -> bool;
}

macro_rules! applies {
    ($($kind:ty),*) => {$(
        impl Applies for $kind {
            fn applies(&self, own: &str, view: &View, to: &Addressed<'_>) -> bool {
                let gateways: Vec<String> = self.gateways.iter().map(|name| gateway_name(name, own)).collect();
                let is_there = is_at(gateways.iter().map(String::as_str), to.gateway);
                let labels = self.source_labels.is_empty() || is_subset(&self.source_labels, &view.labels);
                let namespace = self.source_namespace.is_empty() || *self.source_namespace == *view.namespace;
                let port = self.port.is_none_or(|wanted| wanted.0 == to.port);
                is_there && labels && namespace && port && is_in(&self.destination_subnets, to.addresses)
            }
        }
    )*};
}

applies!(TlsMatch, TcpMatch);

/// Whether one of these addresses is in one of the subnets, where there are any.
fn is_in(subnets: &[String], addresses: &[IpAddr]) -> bool {
    let subnets: Vec<Subnet> = match subnets {
        [] => return true,
        subnets => subnets.iter().filter_map(|text| Subnet::parse(text)).collect(),
    };
    // What is everywhere is there, too, where nobody knows the address.
    subnets.iter().any(|subnet| subnet.is_everywhere() || addresses.iter().any(|address| subnet.contains(*address)))
}
