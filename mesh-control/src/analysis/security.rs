//! Objects that guard workloads and are not enforced, and those that are for a service that does not exist.

use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::config::file::{Meta, Objects};
use crate::config::istio::security::TargetRef;
use crate::policy::Policy;

pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for meta in policy.security.unenforced() {
        let message = "not enforced yet: workloads that it is for answer every request with 503 and the reason, unless \
                       mesh-control is told --allow-unenforced";
        found.push(
            Diagnostic::at(&meta.origin, Severity::Error, Code::NotSupportedYet, message)
                .object(meta.id())
                .field("spec"),
        );
    }
    for object in &objects.authorization_policies {
        check_targets(objects, &object.meta, &object.spec.targets(), found);
    }
    for object in &objects.request_authentications {
        check_targets(objects, &object.meta, &object.spec.targets(), found);
    }
}

fn check_targets(objects: &Objects, meta: &Meta, targets: &[&TargetRef], found: &mut Vec<Diagnostic>) {
    for target in targets {
        let is_meant = |other: &Meta| *other.name == *target.name.value && other.namespace == meta.namespace;
        let is_known = match target.kind.as_str() {
            "Service" => objects.services.iter().any(|object| is_meant(&object.meta)),
            "ServiceEntry" => objects.service_entries.iter().any(|object| is_meant(&object.meta)),
            _ => true,
        } || objects.refused.iter().any(|object| is_meant(&object.meta));
        if !is_known {
            let message = format!("there is no {} {}/{}", target.kind.value, meta.namespace, target.name.value);
            let origin = meta.origin.at(target.name.span);
            let finding = Diagnostic::at(&origin, Severity::Error, Code::UnknownReference, message);
            found.push(finding.object(meta.id()).field("targetRefs"));
        }
    }
}
