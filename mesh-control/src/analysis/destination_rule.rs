//! DestinationRules for hosts that nobody answers to.

use super::alias_finding;
use super::unknown::unknown_host;
use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::config::file::Objects;
use crate::policy::Policy;
use crate::registry::host::in_namespace;

pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in &objects.destination_rules {
        let host = in_namespace(&object.spec.host, &object.meta.namespace);
        let is_known = host.starts_with('*')
            || policy.services.find(&host, &object.meta.namespace).is_some()
            || policy.services.refused(&host, &object.meta.namespace).is_some()
            || policy.services.alias_of(&host, &object.meta.namespace).is_some()
            || policy.virtual_services.names(&host, &object.meta.namespace);
        let origin = object.meta.origin.at(object.spec.host.span);
        if let Some(message) = alias_finding(policy, &object.spec.host, &object.meta.namespace) {
            let finding = Diagnostic::at(&origin, Severity::Warning, Code::Conflict, message);
            found.push(finding.object(object.meta.id()).field("host"));
        }
        if !is_known {
            let message = unknown_host(policy, &host, &object.meta.namespace);
            let finding = Diagnostic::at(&origin, Severity::Warning, Code::UnknownReference, message);
            found.push(finding.object(object.meta.id()).field("host"));
        }
    }
}
