//! Services: endpoints that cannot be used.

use crate::catalog::TLS_MODE;
use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::policy::Policy;
use crate::registry::{Discovery, Service, ServiceId, WrittenEndpoint};

pub(super) fn check(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for (id, service) in policy.services.iter() {
        check_endpoints(policy, id, service, found);
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
