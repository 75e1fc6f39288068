//! Ports of ServiceEntries that speak TLS, and are called in plaintext: a client of the mesh speaks what a DestinationRule says,
//! and not what the port's protocol is.

use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::config::file::{Object, Objects};
use crate::config::istio::service_entry::{ServiceEntry, ServicePort};
use crate::config::istio::virtual_service::AnyRoute;
use crate::config::locate::locate;
use crate::policy::Policy;
use crate::policy::destination_rules::Around;
use crate::policy::route::ClusterKey;
use crate::policy::traffic::Tls;
use crate::registry::host::{covers, in_namespace, plain};
use crate::registry::protocol::{Protocol, of_entry_port};

pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in &objects.service_entries {
        for (index, port) in object.spec.ports.iter().enumerate() {
            let protocol = of_entry_port(port.protocol.as_deref(), &port.name, port.number.0);
            if matches!(protocol, Protocol::Https | Protocol::Tls) {
                found.extend(in_plaintext(object, index, port, (objects, policy)));
            }
        }
    }
}

fn in_plaintext(
    object: &Object<ServiceEntry>,
    index: usize,
    port: &ServicePort,
    (objects, policy): (&Objects, &Policy),
) -> Option<Diagnostic> {
    let hosts = object.spec.hosts.iter().map(|host| plain(host));
    let is_called = |host: &String| {
        !is_secured(object, host, port.number.0, policy) && !has_bytes_of_others(objects, host, port.number.0)
    };
    let hosts: Vec<String> = hosts.filter(is_called).collect();
    // A short one would be that of a service.
    let first = hosts.first().map(|host| if host.contains('.') { host.clone() } else { format!("{host}.") })?;
    let field = if port.protocol.as_deref().is_some_and(|protocol| !protocol.is_empty()) { "protocol" } else { "name" };
    let field = format!("ports[{index}].{field}");
    let number = port.number.0;
    let message = format!(
        "called in plaintext: it speaks TLS, and no DestinationRule secures port {number} of {}; write one with `host: {first}` and \
         `trafficPolicy: {{portLevelSettings: [{{port: {{number: {number}}}, tls: {{mode: SIMPLE}}}}]}}`",
        hosts.join(", ")
    );
    let origin = locate(&object.meta.origin, &field);
    Some(Diagnostic::at(&origin, Severity::Warning, Code::Insecure, message).object(object.meta.id()).field(field))
}

/// Whether some client calls it by TLS: by any rule, by itself where a rule on TLS connections (`tls`) is for the host, or since its
/// endpoints are of the mesh.
fn is_secured(object: &Object<ServiceEntry>, host: &str, port: u16, policy: &Policy) -> bool {
    let key = |subset: &str| ClusterKey { host: host.into(), port, subset: subset.into() };
    let is_tls = |tls: &Tls| !matches!(tls, Tls::Automatic | Tls::Plaintext);
    let by_rule = policy.destination_rules.of_host(host).any(|rule| {
        let mut subsets = std::iter::once("").chain(rule.subset_names());
        // Of a wrong rule nobody knows what it says, and nobody calls.
        rule.refused().is_some()
            || subsets.any(|subset| is_tls(&rule.traffic_policy(&key(subset), Around::default()).tls))
    });
    // Who speaks TLS through it does so itself (`Mesh::connect`, a sidecar's application).
    let by_itself = policy.virtual_services.iter().any(|entry| {
        let rules = entry.object.iter().flat_map(|object| &object.spec.tls).flat_map(|rule| &rule.matches);
        let mut is_for_port = rules.map(|rule| rule.port.is_none_or(|wanted| wanted.0 == port));
        entry.hosts.iter().any(|pattern| covers(pattern, host)) && is_for_port.any(|is_it| is_it)
    });
    let known = policy.services.exact(host, &object.meta.namespace);
    let is_of_mesh = known.is_some_and(|(id, service)| {
        service.takes_registrations() || policy.services.written(id).any(|written| written.mutual_tls)
    });
    by_rule || by_itself || is_of_mesh
}

/// Whether a rule on TLS connections, of whatever host, leads there, or one on any connections of a gateway: these speak TLS themselves,
/// or may.
fn has_bytes_of_others(objects: &Objects, host: &str, port: u16) -> bool {
    objects.virtual_services.iter().any(|object| {
        let is_at_gateways = object.spec.is_at_gateways();
        let routes = object.spec.routes().filter(|(_, route)| match route {
            AnyRoute::Http(_) => false,
            AnyRoute::Tls(_) => true,
            AnyRoute::Tcp(_) => is_at_gateways,
        });
        routes.flat_map(|(_, route)| route.destinations()).any(|to| {
            let is_for_port = to.port.as_ref().is_none_or(|wanted| wanted.number.0 == port);
            is_for_port && in_namespace(&to.host, &object.meta.namespace) == host
        })
    })
}
