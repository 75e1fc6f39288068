//! Policies that name a Gateway whose workloads are of another namespace, as `addresses` say. There they have no say: whoever may
//! write in one namespace would rule the workloads of another. Such a Gateway is not served, rather than without them.

use super::status::Fault;
use crate::config::file::{Meta, Objects, Workloads};
use crate::config::support::ObjectKind;
use crate::config::{Code, Diagnostic, Severity};

/// Why such a Gateway is not served, and what is to be said of the policies.
pub(super) fn unenforced(gateway: &Meta, objects: &Objects, found: &mut Vec<Diagnostic>) -> Option<Fault> {
    let mut fault = None;
    let own = objects.targets().filter(|(meta, _)| meta.namespace == gateway.namespace);
    let named = own.flat_map(|(meta, targets)| targets.into_iter().map(move |target| (meta, target)));
    for (meta, target) in named.filter(|(_, target)| target.kind.as_str() == "Gateway") {
        if *target.name.value != *gateway.name {
            continue;
        }
        let (severity, then) = match meta.kind {
            ObjectKind::Telemetry => (Severity::Warning, ""),
            _ => (Severity::Error, ", and the Gateway is not served"),
        };
        let message = format!(
            "without effect{then}: its workloads are of another namespace, where a policy can select their labels"
        );
        let origin = meta.origin.at(target.name.span);
        found.push(Diagnostic::at(&origin, severity, Code::Unenforced, message).object(meta.id()).field("targetRefs"));
        if severity == Severity::Error {
            fault.get_or_insert_with(|| meta.id());
        }
    }
    // Nobody can tell whom a wrong one is for.
    let all = Workloads::Labelled(Default::default());
    let mut wrong = objects.refused.iter().filter(|object| object.meta.namespace == gateway.namespace);
    let id = fault.or_else(|| Some(wrong.find(|object| object.guards().as_ref() == Some(&all))?.id()))?;
    Some(("Invalid", format!("{id} may be for it, and is not enforced at workloads of another namespace")))
}
