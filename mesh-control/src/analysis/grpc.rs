//! What gRPC's own clients and servers cannot do, at the field that asks for it.

use crate::catalog::ClientClass;
use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::config::file::Meta;
use crate::config::locate::locate;
use crate::policy::Policy;
use crate::policy::access::Effect;
use crate::policy::route::ClusterKey;
use crate::policy::view::View;
use crate::registry::protocol::Protocol;
use crate::render::{self, access::not_for, judge::Judge};

/// Looks at every port that may speak gRPC as a client of the service's own namespace does.
pub(super) fn check(judge: &Judge, policy: &Policy, found: &mut Vec<Diagnostic>) {
    check_servers(policy, found);
    check_telemetry(policy, found);
    check_backend_tls(policy, found);
    check_backend_traffic(policy, found);
    super::limits::check_grpc(policy, found);
    super::filters::check_grpc(policy, found);
    super::quotas::check_grpc(policy, found);
    super::groups::check(policy, ClientClass::Grpc, found);
    for (_, service) in policy.services.iter() {
        let view = View::of_namespace(&service.namespace);
        let never = |protocol| matches!(protocol, Protocol::Https | Protocol::Tls | Protocol::Tcp);
        for port in service.ports.iter().filter(|port| !never(port.protocol)) {
            let name = ClusterKey { host: service.host.clone(), port: port.number, subset: "".into() }.to_string();
            let routes = render::render_routes(judge, policy, ClientClass::Grpc, &view, &name);
            let cluster = render::render_cluster(judge, policy, ClientClass::Grpc, &view, &name, false, &[]);
            for degraded in routes.into_iter().chain(cluster).flat_map(|rendered| rendered.degraded) {
                let (origin, field) = degraded.place();
                found.push(degraded.diagnostic_at(&locate(origin, field)));
            }
        }
    }
}

/// What of Telemetry gRPC's clients and servers cannot do: all of it.
fn check_telemetry(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.telemetries.iter() {
        for (field, what, is_written) in [
            ("accessLogging", "they write no access log", !object.spec.access_logging.is_empty()),
            ("metrics", "they count as their application says", !object.spec.metrics.is_empty()),
            ("tracing", "they trace as their application says", !object.spec.tracing.is_empty()),
        ] {
            if is_written {
                let origin = locate(&object.meta.origin, field);
                let message = format!("gRPC's own clients and servers cannot do this: {what}");
                let finding = Diagnostic::at(&origin, Severity::Warning, Code::Degraded, message);
                found.push(finding.object(object.meta.id()).field(field));
            }
        }
    }
}

/// What BackendTLSPolicies ask of gRPC's clients.
fn check_backend_tls(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in &policy.backend_tls.policies {
        let message = "gRPC's own clients cannot do this: they do not call these Services";
        let origin = locate(&object.meta.origin, "targetRefs");
        let finding = Diagnostic::at(&origin, Severity::Warning, Code::Degraded, message);
        found.push(finding.object(object.meta.id()).field("targetRefs"));
    }
}

/// What XBackendTrafficPolicies ask of them.
fn check_backend_traffic(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in &policy.backend_traffic.policies {
        let retries = object.spec.retry_constraint.as_ref().map(|_| ("retryConstraint", "they have no such limit"));
        let sessions = object.spec.session_persistence.as_ref();
        let sessions = sessions.map(|_| ("sessionPersistence", "calls of a session go to any endpoint"));
        for (field, what) in retries.into_iter().chain(sessions) {
            let message = format!("gRPC's own clients cannot do this: {what}");
            let origin = locate(&object.meta.origin, field);
            let finding = Diagnostic::at(&origin, Severity::Warning, Code::Degraded, message);
            found.push(finding.object(object.meta.id()).field(field));
        }
    }
}

/// What of the objects that guard workloads a gRPC server that they are for cannot do. What would have to refuse fails every
/// call instead; what only tells of requests tells nothing.
fn check_servers(policy: &Policy, found: &mut Vec<Diagnostic>) {
    let mut say = |meta: &Meta, field: &str, what: &str| {
        let origin = locate(&meta.origin, field);
        let message = format!("a gRPC server cannot do this: {what}");
        let finding = Diagnostic::at(&origin, Severity::Warning, Code::Degraded, message);
        found.push(finding.object(meta.id()).field(field));
    };
    for (meta, access) in policy.security.policies() {
        if access.is_dry_run {
            say(meta, "rules", "policies are not tried (istio.io/dry-run), so nothing is told of its requests");
        } else if access.effect == Effect::Ask {
            say(meta, "action", "nobody is asked (CUSTOM); every call to one that it is for fails");
        } else if access.effect == Effect::Audit {
            say(meta, "action", "AUDIT is passed over, so nothing is told of its requests");
        } else {
            for (index, rule) in access.rules.iter().enumerate() {
                if let Some(what) = not_for(ClientClass::Grpc, rule, access.effect) {
                    say(meta, &format!("rules[{index}]"), &format!("{what}; every call to one that it is for fails"));
                }
            }
        }
    }
    for meta in policy.security.permissive() {
        say(
            meta,
            "mtls",
            "it takes either mutual TLS or plaintext; one with a certificate is STRICT where this says PERMISSIVE",
        );
    }
    for meta in policy.security.of_tokens() {
        say(meta, "jwtRules", "tokens are not looked at; every call to one that it is for fails");
    }
}
