//! Services: endpoints that cannot be used.

use mesh_core::identity::SpiffeId;

use crate::catalog::TLS_MODE;
use crate::config::diagnostic::{Code, Diagnostic, Severity, quoted};
use crate::config::file::Objects;
use crate::config::istio::service_entry::Location;
use crate::config::locate::locate;
use crate::policy::Policy;
use crate::policy::route::ClusterKey;
use crate::policy::traffic::Tls;
use crate::policy::view::View;
use crate::registry::{Discovery, Service, ServiceId, WrittenEndpoint};

pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    check_upgrades(objects, policy, found);
    for (id, service) in policy.services.iter() {
        check_endpoints(policy, id, service, found);
        check_names(policy, service, found);
    }
}

/// Endpoints that are written down and cannot be used.
fn check_endpoints(policy: &Policy, id: ServiceId, service: &Service, found: &mut Vec<Diagnostic>) {
    for written in policy.services.written(id) {
        if service.discovery == Discovery::Registry && written.ip().is_none() {
            let message = format!("a name, but {} takes addresses only; it is no endpoint", service.host);
            found.push(at(written, "address", Code::UnknownReference, message));
            continue;
        }
        if written.mutual_tls {
            check_identity(policy, id, service, written, found);
        }
        for port in service.ports.iter().filter(|port| written.is_of(port) && written.port_for(port).is_none()) {
            let message = format!("it has no port for port {} of {}", port.number, service.host);
            found.push(at(written, "address", Code::UnknownReference, message));
        }
    }
}

/// Servers outside of the mesh that are called by HTTP/2 in plaintext, which few of them speak, since the mesh is.
fn check_upgrades(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    if policy.mesh.upgrades_to_http2() != Some(true) {
        return;
    }
    let is_outside = |location: Location| location != Location::Internal;
    for object in objects.service_entries.iter().filter(|object| is_outside(object.spec.location)) {
        let view = View::of_namespace(&object.meta.namespace);
        let services = object.spec.hosts.iter().filter_map(|host| policy.services.exact(host, &view.namespace));
        let keys = services.flat_map(|(_, service)| {
            let key = |port: u16| ClusterKey { host: service.host.clone(), port, subset: "".into() };
            service.ports.iter().map(move |port| key(port.number))
        });
        let is_upgraded = |key: &ClusterKey| {
            let Some(seen) = policy.cluster(key.clone(), &view) else { return false };
            let of_rule = seen.rule.map(|rule| rule.traffic_policy(key, Default::default()).connection_pool);
            let is_meant = of_rule.is_some_and(|pool| pool.upgrades_to_http2.is_some());
            let is_plain = matches!(seen.traffic.tls, Tls::Plaintext | Tls::Automatic);
            is_plain && !is_meant && seen.is_http2() && !seen.port.protocol.is_http2()
        };
        let Some(key) = keys.into_iter().find(is_upgraded) else { continue };
        let message = format!(
            "`h2UpgradePolicy: UPGRADE` of the mesh has {}:{}, which is outside of it, called by HTTP/2 in plaintext: a server that \
             speaks HTTP/1.1 alone answers none of it; a DestinationRule with `h2UpgradePolicy: DO_NOT_UPGRADE` keeps HTTP/1.1",
            key.host, key.port
        );
        let origin = locate(&object.meta.origin, "ports");
        let finding = Diagnostic::at(&origin, Severity::Warning, Code::Conflict, message);
        found.push(finding.object(object.meta.id()).field("ports"));
    }
}

/// Names that servers have to prove, where the calls prove none, or not these.
fn check_names(policy: &Policy, service: &Service, found: &mut Vec<Diagnostic>) {
    if service.names.is_empty() {
        return;
    }
    let view = View::of_namespace(&service.namespace);
    for port in &service.ports {
        let key = ClusterKey { host: service.host.clone(), port: port.number, subset: "".into() };
        let Some(seen) = policy.cluster(key, &view).filter(|seen| !seen.is_refused) else { continue };
        let is_mesh = || service.takes_registrations() || policy.services.written(seen.id).any(|one| one.mutual_tls);
        let why = match &seen.traffic.tls {
            Tls::Plaintext => "calls are plaintext, and prove no name".to_owned(),
            Tls::Automatic if !is_mesh() => {
                "calls are plaintext, and prove no name, until a DestinationRule asks for TLS".to_owned()
            }
            Tls::Automatic | Tls::Mesh { .. } => {
                let Some(other) = service.names.iter().find(|name| name.parse::<SpiffeId>().is_err()) else { continue };
                format!("{} is no SPIFFE ID, and nobody shows another name by the mesh's mutual TLS", quoted(other))
            }
            _ => continue,
        };
        let message = format!("without effect for {}:{}: {why}", service.host, port.number);
        let origin = locate(&service.meta.origin, "subjectAltNames");
        let finding = Diagnostic::at(&origin, Severity::Warning, Code::Ignored, message);
        found.push(finding.object(service.meta.id()).field("subjectAltNames"));
        return;
    }
}

/// An endpoint that speaks mutual TLS: whether anybody can call it so.
fn check_identity(
    policy: &Policy,
    id: ServiceId,
    service: &Service,
    written: &WrittenEndpoint,
    found: &mut Vec<Diagnostic>,
) {
    let field = if written.labels.contains_key(TLS_MODE) { "labels" } else { "serviceAccount" };
    let mut say = |code, message: &str| found.push(at(written, field, code, message.to_owned()));
    say(
        Code::NeedsCertificates,
        "it speaks the mesh's mutual TLS, and is called in plaintext where the control plane issues no certificates",
    );
    let is_known = |written: &WrittenEndpoint| written.mutual_tls && written.identity.is_some();
    if service.peers.is_empty() && !policy.services.written(id).any(is_known) {
        say(
            Code::UnknownReference,
            "it speaks the mesh's mutual TLS, and nobody knows who it is: where certificates are issued it is no \
             endpoint, unless a workload that registers has its identity or a DestinationRule says how to call it; \
             write its serviceAccount, or subjectAltNames of the ServiceEntry",
        );
    }
}

fn at(written: &WrittenEndpoint, field: &str, code: Code, message: String) -> Diagnostic {
    Diagnostic::at(&written.origin, Severity::Warning, code, message).object(written.object.clone()).field(field)
}
