//! Services: endpoints that cannot be used.

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
        let mut say = |message: String| {
            let finding = Diagnostic::at(&written.origin, Severity::Warning, Code::UnknownReference, message);
            found.push(finding.object(written.object.clone()).field("address"));
        };
        if service.discovery == Discovery::Registry && written.ip().is_none() {
            say(format!("a name, but {} takes addresses only; it is no endpoint", service.host));
            continue;
        }
        if written.mutual_tls {
            check_identity(policy, id, service, written, found);
        }
        let mut say = |message: String| {
            let finding = Diagnostic::at(&written.origin, Severity::Warning, Code::UnknownReference, message);
            found.push(finding.object(written.object.clone()).field("address"));
        };
        for port in service.ports.iter().filter(|port| written.is_of(port) && written.port_for(port).is_none()) {
            say(format!("it has no port for port {} of {}", port.number, service.host));
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
    let mut say = |code, message: &str| {
        let finding = Diagnostic::at(&written.origin, Severity::Warning, code, message);
        found.push(finding.object(written.object.clone()).field("serviceAccount"));
    };
    say(
        Code::NeedsCertificates,
        "it speaks the mesh's mutual TLS, and is called in plaintext where the control plane issues no certificates",
    );
    let is_known = |written: &WrittenEndpoint| written.mutual_tls && written.identity.is_some();
    if service.peers.is_empty() && !policy.services.written(id).any(is_known) {
        say(
            Code::UnknownReference,
            "it speaks the mesh's mutual TLS, and nobody knows who it is: it is no endpoint, unless a workload that \
             registers has its identity or a DestinationRule says how to call it; write its serviceAccount, or \
             subjectAltNames of the ServiceEntry",
        );
    }
}
