//! DestinationRules for hosts and ports that nobody answers to, and TLS that does not come from where it seems to.

use std::collections::BTreeMap;

use super::alias_finding;
use super::unknown::unknown_host;
use crate::config::diagnostic::{Code, Diagnostic, Severity, quoted};
use crate::config::extensions as config;
use crate::config::file::{Meta, Object, Objects};
use crate::config::istio::destination_rule::{DestinationRule, LoadBalancer, TlsMode, TrafficPolicy};
use crate::config::istio::virtual_service::has_no_body;
use crate::config::locate::locate;
use crate::policy::Policy;
use crate::policy::route::ClusterKey;
use crate::policy::view::View;
use crate::registry::Discovery;
use crate::registry::host::{covers, in_namespace, split_port};

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
            found.push(finding.istio("IST0174").object(object.meta.id()).field("host"));
        }
        check_balancer(object, found);
        check_ports(object, policy, &host, found);
        check_subsets(object, policy, &host, found);
        check_fallback(object, policy, &host, found);
        check_localities(object, policy, &host, found);
        check_outliers(object, policy, found);
        check_secrets(object, (objects, &host), policy, found);
        check_wider_tls(object, objects, (&host, &policy.mesh.fixed.root_namespace), found);
    }
}

/// The policies of a rule, with their paths.
fn policies(spec: &DestinationRule) -> impl Iterator<Item = (String, &TrafficPolicy)> {
    let whole = spec.traffic_policy.iter().map(|policy| ("trafficPolicy".to_owned(), policy));
    let of_subsets = spec.subsets.iter().enumerate().filter_map(|(index, subset)| {
        Some((format!("subsets[{index}].trafficPolicy"), subset.traffic_policy.as_ref()?))
    });
    whole.chain(of_subsets)
}

/// The balancers of a rule, with their paths.
pub(super) fn balancers(spec: &DestinationRule) -> Vec<(String, &LoadBalancer)> {
    let mut all = Vec::new();
    for (path, written) in policies(spec) {
        for (index, settings) in written.port_level_settings.iter().enumerate() {
            let path = format!("{path}.portLevelSettings[{index}].loadBalancer");
            all.extend(settings.load_balancer.as_ref().map(|balancer| (path, balancer)));
        }
        all.extend(written.load_balancer.as_ref().map(|balancer| (format!("{path}.loadBalancer"), balancer)));
    }
    all
}

/// Secrets that nobody is told, for the rule does not say for whom it is; and those that are not there, or do not have what a rule
/// takes from them.
fn check_secrets(
    object: &Object<DestinationRule>,
    (objects, host): (&Objects, &str),
    policy: &Policy,
    found: &mut Vec<Diagnostic>,
) {
    let is_for_some = object.spec.workload_selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty());
    for (path, written) in policies(&object.spec) {
        let of_ports = written.port_level_settings.iter().enumerate().filter_map(|(index, settings)| {
            Some((format!("{path}.portLevelSettings[{index}].tls"), settings.tls.as_ref()?))
        });
        let of_all = written.tls.iter().map(|tls| (format!("{path}.tls"), tls));
        for (path, tls) in of_all.chain(of_ports) {
            let (namespace, mode) = (&*object.meta.namespace, tls.mode());
            let name = tls.credential_name.as_deref().filter(|name| !name.is_empty());
            let Some(name) = name.filter(|_| matches!(mode, TlsMode::Simple | TlsMode::Mutual)) else { continue };
            let origin = object.meta.origin.at(tls.span);
            if !is_for_some {
                let message = "without a `workloadSelector` only gateways of its namespace are told a Secret: calls of others fail \
                    instead of travelling unprotected";
                let is_behind_gateway = is_behind_gateway(objects, host);
                let severity = if is_behind_gateway { Severity::Info } else { Severity::Error };
                let finding = Diagnostic::at(&origin, severity, Code::NotSupportedYet, message);
                found.push(finding.object(object.meta.id()).field(format!("{path}.credentialName")));
                if !is_behind_gateway {
                    continue;
                }
            }
            let has_pair = policy.secrets.get(namespace, name).is_some_and(|secret| secret.identity.is_some());
            let is_verified = tls.insecure_skip_verify != Some(true);
            let lacks = if mode == TlsMode::Mutual && !has_pair {
                "a certificate with its key"
            } else if is_verified && policy.secrets.authorities(namespace, name).is_none() {
                "authorities that vouch for the server"
            } else {
                continue;
            };
            let message = format!("no Secret {} of namespace {namespace} has {lacks}: calls fail", quoted(name));
            let finding = Diagnostic::at(&origin, Severity::Warning, Code::UnknownReference, message);
            found.push(finding.object(object.meta.id()).field(format!("{path}.credentialName")));
        }
    }
}

/// Whether a rule of a gateway leads to this host, or to one of those that it stands for.
fn is_behind_gateway(objects: &Objects, host: &str) -> bool {
    objects.virtual_services.iter().filter(|object| object.spec.is_at_gateways()).any(|object| {
        let mut all = object.spec.routes().flat_map(|(_, route)| route.destinations());
        all.any(|to| covers(host, &in_namespace(&to.host, &object.meta.namespace)))
    })
}

/// Subsets of a service whose endpoints are all written down, and that none of them is in.
fn check_subsets(object: &Object<DestinationRule>, policy: &Policy, host: &str, found: &mut Vec<Diagnostic>) {
    let Some((id, service)) = policy.services.find(host, &object.meta.namespace) else { return };
    if service.takes_registrations() || service.discovery != Discovery::Registry || service.alias.is_some() {
        return;
    }
    let has_any = policy.services.written(id).next().is_some();
    for (index, subset) in object.spec.subsets.iter().enumerate().filter(|_| has_any) {
        let is_in = |labels: &BTreeMap<String, String>| {
            subset.labels.iter().all(|(label, value)| labels.get(label) == Some(value))
        };
        if !policy.services.written(id).any(|written| is_in(&written.labels)) {
            let message = format!("no endpoint of {} has its labels: every call to it fails", service.host);
            let finding = Diagnostic::at(
                &object.meta.origin.at(subset.name.span),
                Severity::Warning,
                Code::UnknownReference,
                message,
            );
            found.push(finding.istio("IST0173").object(object.meta.id()).field(format!("subsets[{index}].labels")));
        }
    }
}

/// Ports for which nothing stands in: of a service that there is not, that lacks them, or that is the same one; or an answer whose
/// body is never sent.
fn check_fallback(object: &Object<DestinationRule>, policy: &Policy, host: &str, found: &mut Vec<Diagnostic>) {
    let field = "metadata.annotations.mesh-control/fallback";
    let (target, subset) = match &object.meta.extensions.fallback {
        None => return,
        Some(config::Fallback::Service { target, subset }) => (target, subset),
        Some(config::Fallback::Response { status, body }) => {
            if has_no_body(u32::from(*status)) && !body.is_empty() {
                let message = format!("without effect: an answer with status {status} has no body");
                let origin = locate(&object.meta.origin, field);
                let finding = Diagnostic::at(&origin, Severity::Warning, Code::Ignored, message);
                found.push(finding.object(object.meta.id()).field(field));
            }
            return;
        }
    };
    let view = View::of_namespace(&object.meta.namespace);
    let Some((_, service)) = policy.services.find(host, &object.meta.namespace) else { return };
    let Some(rule) = policy.destination_rules.find(host, &service.namespace, &view) else { return };
    let stand_in =
        |port: u16, subset: &str| policy.fallback(rule, &ClusterKey { host: host.into(), port, subset: subset.into() });
    let has_one = |port: u16| {
        let mut all = std::iter::once("").chain(rule.subset_names()).filter_map(|subset| stand_in(port, subset));
        all.any(|stand_in| policy.is_there(&stand_in, &view))
    };
    let missing: Vec<u16> = service.ports.iter().map(|port| port.number).filter(|port| !has_one(*port)).collect();
    let Some(first) = missing.first().copied() else { return };
    let at = match split_port(target) {
        Some((host, None)) => format!("{host}:{first}"),
        _ => target.clone(),
    };
    let is_no_service = || format!("{} is not a service that this namespace can call", quoted(target));
    let reason = match stand_in(first, "") {
        Some(_) if !subset.is_empty() => "the service has no such subset".to_owned(),
        Some(_) => is_no_service(),
        None if policy.resolve(&at, &view).is_some() => "it is the service itself".to_owned(),
        None => policy.absence(&at, &view).unwrap_or_else(is_no_service),
    };
    let numbers = missing.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let ports = if missing.len() == 1 { "port" } else { "ports" };
    let message = format!("{reason}: nothing stands in for {ports} {numbers}");
    let finding = Diagnostic::at(&locate(&object.meta.origin, field), Severity::Error, Code::UnknownReference, message);
    found.push(finding.object(object.meta.id()).field(field));
}

/// What has no effect beside a policy of our own. `simple` beside it is for clients that do not know it.
fn check_balancer(object: &Object<DestinationRule>, found: &mut Vec<Diagnostic>) {
    let (own, subset) = (&object.meta.extensions.load_balancer, object.meta.extensions.endpoint_subset);
    if let (Some(config::LoadBalancer::Custom(name)), Some(_)) = (own, subset) {
        let field = "metadata.annotations.mesh-control/endpoint-subset";
        let message =
            format!("without effect: {name} of the annotation mesh-control/load-balancer is asked for every endpoint");
        let finding = Diagnostic::at(&locate(&object.meta.origin, field), Severity::Warning, Code::Ignored, message);
        found.push(finding.object(object.meta.id()).field(field));
    }
    for (path, balancer) in balancers(&object.spec) {
        let warms = balancer.warmup.is_some() || balancer.warmup_duration_secs.is_some();
        let ignored = [
            ("consistentHash", balancer.consistent_hash.is_some() && own.is_some()),
            (
                "warmup",
                warms && matches!(own, Some(config::LoadBalancer::PeakEwma { .. } | config::LoadBalancer::Custom(_))),
            ),
        ];
        for (field, _) in ignored.into_iter().filter(|(_, is_written)| *is_written) {
            let message = "without effect: the annotation mesh-control/load-balancer stands in its place";
            let origin = object.meta.origin.at(balancer.span);
            let finding = Diagnostic::at(&origin, Severity::Warning, Code::Ignored, message);
            found.push(finding.object(object.meta.id()).field(format!("{path}.{field}")));
        }
        if subset.is_some() && own.is_none() && balancer.consistent_hash.is_some() {
            let message = "requests go by their hash, which is the same for all clients only among all endpoints: the annotation mesh-control/endpoint-subset is without effect here";
            let origin = object.meta.origin.at(balancer.span);
            let finding = Diagnostic::at(&origin, Severity::Warning, Code::Ignored, message);
            found.push(finding.object(object.meta.id()).field(format!("{path}.consistentHash")));
        }
    }
}

/// Settings for ports that the service lacks, and those that keep the `tls` of the level above.
fn check_ports(object: &Object<DestinationRule>, policy: &Policy, host: &str, found: &mut Vec<Diagnostic>) {
    let service = policy.services.find(host, &object.meta.namespace).map(|(_, service)| service);
    let service = service.filter(|service| service.alias.is_none());
    let of_rule = object.spec.traffic_policy.as_ref();
    for (path, written) in policies(&object.spec) {
        for (index, settings) in written.port_level_settings.iter().enumerate() {
            let number = settings.port.number.0;
            let mut say = |code: Code, message: String| {
                let finding = Diagnostic::at(&object.meta.origin.at(settings.span), Severity::Warning, code, message);
                found.push(finding.object(object.meta.id()).field(format!("{path}.portLevelSettings[{index}]")));
            };
            if let Some(service) = service.filter(|service| service.port(number).is_none()) {
                say(
                    Code::UnknownReference,
                    format!("{} has no port {number}: these settings are for no call", service.host),
                );
            }
            let of_port = of_rule.and_then(|rule| rule.port_level_settings.iter().find(|s| s.port.number.0 == number));
            let above =
                [written.tls.as_ref(), of_port.and_then(|s| s.tls.as_ref()), of_rule.and_then(|r| r.tls.as_ref())];
            let kept = above.into_iter().flatten().next().filter(|tls| tls.mode() != TlsMode::Disable);
            if settings.tls.is_none() && kept.is_some() {
                let message = "says nothing of tls: that of the level above stays in force, where Istio leaves it to its \
                               automatic mTLS; `tls: {mode: DISABLE}` asks for plaintext";
                say(Code::Conflict, message.to_owned());
            }
        }
    }
}

/// Near endpoints of a service whose names are looked up by its clients.
fn check_localities(object: &Object<DestinationRule>, policy: &Policy, host: &str, found: &mut Vec<Diagnostic>) {
    let service = policy.services.find(host, &object.meta.namespace).map(|(_, service)| service);
    if service.is_none_or(|service| service.discovery == Discovery::Registry) {
        return;
    }
    for (path, balancer) in balancers(&object.spec) {
        let (near, zones) = (&balancer.locality_lb_setting, &balancer.zone_aware_lb_setting);
        let near = near.iter().map(|near| ("localityLbSetting", near.enabled, near.span));
        let zones = zones.iter().map(|zones| ("zoneAwareLbSetting", zones.enabled, zones.span));
        for (field, _, span) in near.chain(zones).filter(|(_, enabled, _)| *enabled != Some(false)) {
            let message =
                "not supported yet: clients look the names of this host up, and its localities are not told apart";
            let origin = object.meta.origin.at(span);
            let finding = Diagnostic::at(&origin, Severity::Warning, Code::NotSupportedYet, message);
            found.push(finding.object(object.meta.id()).field(format!("{path}.{field}")));
        }
    }
}

/// Without outlier detection, nothing fails over (Istio).
fn check_outliers(object: &Object<DestinationRule>, policy: &Policy, found: &mut Vec<Diagnostic>) {
    if policy.mesh.traffic_policy().is_some_and(|of_mesh| of_mesh.outlier_detection.is_some()) {
        return;
    }
    let mut look = |balancer: Option<&LoadBalancer>, detects: bool, path: &str| {
        let Some(setting) = balancer.and_then(|balancer| balancer.locality_lb_setting.as_ref()) else { return };
        let field = match setting {
            _ if detects || !setting.distribute.is_empty() || setting.enabled == Some(false) => return,
            setting if !setting.failover.is_empty() => "failover",
            setting if !setting.failover_priority.is_empty() => "failoverPriority",
            _ => return,
        };
        let message = "without effect: nothing fails over without `outlierDetection` beside it";
        let origin = object.meta.origin.at(setting.span);
        let finding = Diagnostic::at(&origin, Severity::Warning, Code::Ignored, message);
        found.push(finding.object(object.meta.id()).field(format!("{path}.loadBalancer.localityLbSetting.{field}")));
    };
    let of_rule = object.spec.traffic_policy.as_ref().is_some_and(|whole| whole.outlier_detection.is_some());
    for (path, written) in policies(&object.spec) {
        let detects = of_rule || written.outlier_detection.is_some();
        look(written.load_balancer.as_ref(), detects, &path);
        for (index, port) in written.port_level_settings.iter().enumerate() {
            let path = format!("{path}.portLevelSettings[{index}]");
            look(port.load_balancer.as_ref(), port.outlier_detection.is_some(), &path);
        }
    }
}

/// A rule without `tls` for hosts that a wider rule wants TLS for: it takes that one's place as a whole.
fn check_wider_tls(
    object: &Object<DestinationRule>,
    objects: &Objects,
    (host, root): (&str, &str),
    found: &mut Vec<Diagnostic>,
) {
    let tls = |rule: &DestinationRule| Some(rule.traffic_policy.as_ref()?.tls.as_ref()?.mode());
    if tls(&object.spec).is_some() {
        return;
    }
    let is_heard = |wider: &Meta| wider.namespace == object.meta.namespace || *wider.namespace == *root;
    let wants = |wider: &DestinationRule| tls(wider).is_some_and(|mode| mode != TlsMode::Disable);
    for wider in objects.destination_rules.iter().filter(|wider| wants(&wider.spec) && is_heard(&wider.meta)) {
        let wider_host = in_namespace(&wider.spec.host, &wider.meta.namespace);
        let same_place = wider_host == host && wider.meta.namespace == object.meta.namespace;
        if !same_place && covers(&wider_host, host) {
            let message = format!(
                "says nothing of tls and takes the place of {} ({}), which asks for it: calls to {host} are plaintext",
                wider.meta.id(),
                wider.meta.origin
            );
            let origin = object.meta.origin.at(object.spec.host.span);
            let finding = Diagnostic::at(&origin, Severity::Warning, Code::Conflict, message);
            found.push(finding.object(object.meta.id()).field("trafficPolicy"));
        }
    }
}
