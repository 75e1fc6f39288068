//! Members of a WorkloadGroup that nobody asks how they are, although its `probe` wants it: which can ask is a matter of who is
//! beside them.

use crate::catalog::ClientClass;
use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::config::locate::locate;
use crate::policy::Policy;

/// What members of this class make of probes.
pub(super) fn check(policy: &Policy, class: ClientClass, found: &mut Vec<Diagnostic>) {
    let who = match class {
        ClientClass::Envoy => "an Envoy asks by HTTP and TCP",
        _ => "gRPC's own servers have nobody beside them who asks",
    };
    for (meta, probe) in policy.services.probes() {
        if probe.is_for(class) {
            continue;
        }
        let origin = locate(&meta.origin, "probe");
        let message = format!("{who}: such a member is healthy while it is connected");
        let finding = Diagnostic::at(&origin, Severity::Warning, Code::Degraded, message);
        found.push(finding.object(meta.id()).field("probe"));
    }
}
