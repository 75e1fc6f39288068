//! What an Envoy beside a workload cannot do, at the field that asks for it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::catalog::{Client, ClientClass};
use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::config::file::Meta;
use crate::config::locate::locate;
use crate::policy::Policy;
use crate::policy::telemetry::Collector;
use crate::policy::view::View;
use crate::render::access::not_for;
use crate::render::envoy::{self, Outbound};
use crate::render::{self, judge::Judge};

/// Looks at everything that an Envoy in each namespace with a service would be told.
pub(super) fn check(judge: &Judge, policy: &Policy, found: &mut Vec<Diagnostic>) {
    let namespaces: BTreeSet<&str> = policy.services.iter().map(|(_, service)| &*service.namespace).collect();
    let client = Client::new("", ClientClass::Envoy, Ipv4Addr::LOCALHOST.into()).sidecar(Ipv4Addr::LOCALHOST, true);
    for view in namespaces.into_iter().map(View::of_namespace) {
        let outbound = Outbound::of(policy, &view);
        let clusters = outbound.clusters.iter();
        let clusters = clusters
            .filter_map(|name| render::render_cluster(judge, policy, ClientClass::Envoy, &view, name, false, &[]));
        let routes = outbound.with_routes().filter_map(|port| envoy::routes(judge, policy, &view, &outbound, port));
        let listeners = client.sidecar.iter().flat_map(|sidecar| {
            let listener = |port| envoy::outbound_listener(policy, &view, &outbound, sidecar, "", Some(port));
            outbound.ports().filter_map(listener)
        });
        for degraded in clusters.chain(routes).chain(listeners).flat_map(|rendered| rendered.degraded) {
            let (origin, field) = degraded.place();
            found.push(degraded.diagnostic_at(&locate(origin, field)));
        }
    }
    check_servers(policy, found);
    super::limits::check_envoy(policy, found);
    super::filters::check_envoy(policy, found);
    super::quotas::check_envoy(policy, found);
    super::groups::check(policy, ClientClass::Envoy, found);
    for object in policy.telemetries.iter() {
        let mut say = |field: &str, what: &str| {
            let message = format!("an Envoy is not told of this: {what}");
            let origin = locate(&object.meta.origin, field);
            let finding = Diagnostic::at(&origin, Severity::Warning, Code::Degraded, message);
            found.push(finding.object(object.meta.id()).field(field));
        };
        if !object.spec.metrics.is_empty() {
            say("metrics", "the filter that counts is one of Istio's own proxy");
        }
        if !object.spec.tracing.is_empty() {
            say("tracing", "it reports no spans");
        }
    }
    let Some(settings) = &policy.mesh.object else { return };
    for (index, provider) in settings.spec.extension_providers.iter().enumerate() {
        let collector = provider.envoy_otel_als.as_ref().map(Collector::of);
        let is_called = |collector: &Collector| {
            let called = |namespace: &str| {
                policy.called_by_grpc(&collector.host, collector.port, &View::of_namespace(namespace)).is_some()
            };
            policy.services.iter().all(|(_, service)| called(&service.namespace))
        };
        if let Some(Collector { host, port, .. }) = collector.filter(|collector| !is_called(collector)) {
            let message = format!(
                "an Envoy that sees no service {host} with a port {port} that speaks gRPC is not told of this, and sends no \
                 access log there"
            );
            let origin = settings.meta.origin.at(provider.span);
            let finding = Diagnostic::at(&origin, Severity::Warning, Code::Degraded, message);
            let field = format!("extensionProviders[{index}].envoyOtelAls");
            found.push(finding.object(settings.meta.id()).field(field));
        }
    }
}

/// What of the policies on who may do what an Envoy cannot decide: it answers every request with 503 instead.
fn check_servers(policy: &Policy, found: &mut Vec<Diagnostic>) {
    let mut say = |meta: &Meta, field: &str, what: &str| {
        let message =
            format!("an Envoy cannot do this: {what}; every request to a workload behind one is answered with 503");
        let finding = Diagnostic::at(&locate(&meta.origin, field), Severity::Warning, Code::Degraded, message);
        found.push(finding.object(meta.id()).field(field));
    };
    for (meta, access) in policy.security.policies() {
        for (index, rule) in access.rules.iter().enumerate() {
            if let Some(what) = not_for(ClientClass::Envoy, rule, access.effect) {
                say(meta, &format!("rules[{index}]"), what);
            }
        }
    }
    for (meta, authorizer) in policy.security.authorizers().filter(|(_, authorizer)| authorizer.is_in_process()) {
        say(meta, "provider", &format!("{} is in the process of a server that uses the library", authorizer.target()));
    }
}
