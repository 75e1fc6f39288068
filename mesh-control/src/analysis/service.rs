//! Services: endpoints that cannot be used.

use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::policy::Policy;
use crate::registry::{Discovery, Service, ServiceId};

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
        for port in service.ports.iter().filter(|port| written.is_of(port) && written.port_for(port).is_none()) {
            say(format!("it has no port for port {} of {}", port.number, service.host));
        }
    }
}
