//! What works and would better be said otherwise: for `analyze`. `validate` is about what does not do what is written.

use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::config::file::{Meta, Objects};
use crate::config::istio::destination_rule::{LoadBalancer, SimpleLb};
use crate::config::istio::security::selected;
use crate::config::locate::locate;
use crate::config::support::ObjectKind;
use crate::policy::Policy;
use crate::registry::Service;
use crate::registry::protocol::Protocol;
use crate::registry::service::is_subset;

use super::rules::TargetPorts;

pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    check_ports(policy, found);
    check_protocols(policy, found);
    check_tokens(objects, policy, found);
    check_deprecated(objects, found);
}

fn say(
    meta: &Meta,
    field: &str,
    (severity, istio): (Severity, &'static str),
    message: String,
    found: &mut Vec<Diagnostic>,
) {
    let finding = Diagnostic::at(&locate(&meta.origin, field), severity, Code::Advice, message);
    found.push(finding.istio(istio).object(meta.id()).field(field));
}

/// Ports that nothing says the protocol of.
fn check_ports(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for (_, service) in policy.services.iter().filter(|(_, service)| service.alias.is_none()) {
        for (index, port) in service.ports.iter().enumerate() {
            if port.protocol == Protocol::Unspecified {
                let by = if service.meta.kind == ObjectKind::ServiceEntry { "protocol" } else { "appProtocol" };
                let message = format!(
                    "port {} says no protocol: it is what its clients speak; `{by}`, or a name such as `http-web`, says it",
                    port.number
                );
                say(&service.meta, &format!("ports[{index}]"), (Severity::Info, "IST0118"), message, found);
            }
        }
    }
}

/// Services that have workloads in common, and say different protocols of one of their ports.
fn check_protocols(policy: &Policy, found: &mut Vec<Diagnostic>) {
    let services: Vec<&Service> = policy.services.iter().map(|(_, service)| &**service).collect();
    let selects = |service: &&Service| service.selector.as_ref().is_some_and(|selector| !selector.is_empty());
    for (position, later) in services.iter().enumerate().filter(|(_, service)| selects(service)) {
        let Some(own) = &later.selector else { continue };
        let earlier =
            services.iter().take(position).filter(|other| selects(other) && other.namespace == later.namespace);
        let shared = earlier.filter(|other| {
            other.selector.as_ref().is_some_and(|selector| is_subset(selector, own) || is_subset(own, selector))
        });
        for other in shared {
            let spoken = |port: &Protocol| *port != Protocol::Unspecified;
            let differ = later.ports.iter().enumerate().find_map(|(index, port)| {
                let same = other.ports.iter().find(|one| one.target == port.target)?;
                let differs = spoken(&port.protocol) && spoken(&same.protocol) && port.protocol != same.protocol;
                differs.then_some((index, port, same))
            });
            let Some((index, port, same)) = differ else { continue };
            let message = format!(
                "its workloads are those of {} ({}), too, by which the same port speaks {} and not {}",
                other.meta.id(),
                other.meta.origin,
                same.protocol.as_str(),
                port.protocol.as_str()
            );
            say(&later.meta, &format!("ports[{index}]"), (Severity::Warning, "IST0116"), message, found);
        }
    }
}

/// Tokens at ports that carry no requests.
fn check_tokens(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in objects.request_authentications.iter().filter(|object| !object.spec.jwt_rules.is_empty()) {
        let labels = selected(object.spec.selector.as_ref());
        let ports = TargetPorts::new(policy, &object.meta.namespace, &labels, &object.spec.targets());
        if let Some(port) = ports.of_bytes() {
            let message = format!("{port} carries no requests: no token is looked at there");
            say(&object.meta, "jwtRules", (Severity::Info, "IST0119"), message, found);
        }
    }
}

/// Fields that have another name by now.
fn check_deprecated(objects: &Objects, found: &mut Vec<Diagnostic>) {
    let mut instead = |meta: &Meta, field: &str, new: &str| {
        let message = format!("a former name: `{new}` says it");
        say(meta, field, (Severity::Info, "IST0002"), message, found);
    };
    for object in &objects.virtual_services {
        for (index, route) in object.spec.http.iter().enumerate() {
            let faults = route.fault.as_ref();
            let has_delay = faults.and_then(|fault| fault.delay.as_ref()).is_some_and(|delay| delay.percent.is_some());
            let has_abort = faults.and_then(|fault| fault.abort.as_ref()).is_some_and(|abort| abort.percent.is_some());
            for (field, new, _) in [
                ("fault.delay.percent", "percentage", has_delay),
                ("fault.abort.percent", "percentage", has_abort),
                ("mirrorPercent", "mirrorPercentage", route.mirror_percent.is_some()),
            ]
            .into_iter()
            .filter(|(_, _, is_said)| *is_said)
            {
                instead(&object.meta, &format!("http[{index}].{field}"), new);
            }
        }
    }
    for object in &objects.destination_rules {
        let balancers = super::destination_rule::balancers(&object.spec);
        for (path, balancer) in balancers {
            let LoadBalancer { simple, warmup_duration_secs, consistent_hash, .. } = balancer;
            let ring = consistent_hash.as_ref().is_some_and(|hash| hash.minimum_ring_size.is_some());
            for (field, new, _) in [
                ("simple", "LEAST_REQUEST", *simple == Some(SimpleLb::LeastConn)),
                ("warmupDurationSecs", "warmup.duration", warmup_duration_secs.is_some()),
                ("consistentHash.minimumRingSize", "ringHash.minimumRingSize", ring),
            ]
            .into_iter()
            .filter(|(_, _, is_said)| *is_said)
            {
                instead(&object.meta, &format!("{path}.{field}"), new);
            }
        }
    }
}
