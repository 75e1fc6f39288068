//! Telemetry objects that name who takes what they tell: providers that there are not, that are of another use, or that nothing
//! is sent to; and what they say of metrics that there are not. Nothing is left out without a word.

use mesh_core::model::CelExpression;

use super::security::check_targets;
use crate::config::decode::Text;
use crate::config::diagnostic::{Code, Diagnostic, Severity, Span, quoted};
use crate::config::file::{Meta, Objects};
use crate::config::istio::mesh_config::ExtensionProvider;
use crate::config::istio::security::selected;
use crate::config::istio::telemetry::{METRICS, Metric, Telemetry};
use crate::policy::Policy;
use crate::policy::telemetry::{Found, find};

/// What a provider is named for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Logs,
    Metrics,
    Traces,
}

impl Use {
    fn name(self) -> &'static str {
        match self {
            Use::Logs => "access logs",
            Use::Metrics => "metrics",
            Use::Traces => "traces",
        }
    }
}

pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.telemetries.iter() {
        check_targets(objects, &object.meta, &object.spec.targets(), found);
        check_providers(&object.meta, &object.spec, policy, found);
        check_metrics(&object.meta, &object.spec, found);
        check_scope(&object.meta, &object.spec, &policy.mesh.fixed.root_namespace, found);
    }
    if let Some(settings) = &policy.mesh.object
        && let Some(defaults) = &settings.spec.default_providers
    {
        for (field, names, of) in [
            ("tracing", &defaults.tracing, Use::Traces),
            ("metrics", &defaults.metrics, Use::Metrics),
            ("accessLogging", &defaults.access_logging, Use::Logs),
        ] {
            let field = format!("defaultProviders.{field}");
            names.iter().for_each(|name| check_provider(&settings.meta, name, &field, of, policy, found));
        }
    }
}

fn say(
    meta: &Meta,
    span: Span,
    field: &str,
    (severity, code): (Severity, Code),
    message: String,
    found: &mut Vec<Diagnostic>,
) {
    let finding = Diagnostic::at(&meta.origin.at(span), severity, code, message);
    found.push(finding.object(meta.id()).field(field));
}

fn check_providers(meta: &Meta, spec: &Telemetry, policy: &Policy, found: &mut Vec<Diagnostic>) {
    let logs = spec.access_logging.iter().map(|one| ("accessLogging", &one.providers, Use::Logs));
    let metrics = spec.metrics.iter().map(|one| ("metrics", &one.providers, Use::Metrics));
    let traces = spec.tracing.iter().map(|one| ("tracing", &one.providers, Use::Traces));
    for (field, providers, of) in logs.chain(metrics).chain(traces) {
        for provider in providers {
            check_provider(meta, &provider.name, &format!("{field}.providers.name"), of, policy, found);
        }
        if of == Use::Traces && providers.len() > 1 {
            let message = "of several providers of traces the first one counts".to_owned();
            say(meta, spec.span, "tracing.providers", (Severity::Warning, Code::Ignored), message, found);
        }
    }
    let settings = policy.mesh.object.as_ref().map(|object| &object.spec);
    let has_default = settings.is_some_and(|settings| {
        let defaults = settings.default_providers.as_ref();
        !settings.access_log_file.is_empty() || defaults.is_some_and(|defaults| !defaults.access_logging.is_empty())
    });
    let root = &policy.mesh.fixed.root_namespace;
    let wider = policy
        .telemetries
        .iter()
        .filter(|other| other.meta.namespace == *root && *other.meta.namespace != *meta.namespace);
    let is_named = wider.flat_map(|other| &other.spec.access_logging).any(|one| !one.providers.is_empty());
    for logging in &spec.access_logging {
        if logging.providers.is_empty() && logging.disabled != Some(true) && !has_default && !is_named {
            let message = "nothing is written: no provider is named here, in the root namespace or in \
                defaultProviders.accessLogging of the mesh, and it has no accessLogFile; `providers: [{name: envoy}]` is \
                the standard output";
            say(
                meta,
                logging.span,
                "accessLogging.providers",
                (Severity::Warning, Code::Ignored),
                message.to_owned(),
                found,
            );
        }
    }
}

fn check_provider(meta: &Meta, name: &Text, field: &str, of: Use, policy: &Policy, found: &mut Vec<Diagnostic>) {
    let settings = policy.mesh.object.as_ref().map(|object| &object.spec);
    let told = match (find(name, settings), of) {
        (None, _) => {
            let message = format!(
                "there is no provider {} among the extensionProviders of the mesh: no {} go there",
                quoted(name),
                of.name()
            );
            let (severity, code) = (Severity::Error, Code::UnknownReference);
            return say(meta, name.span, field, (severity, code), message, found);
        }
        (Some(Found::File(_) | Found::Stdout), Use::Logs) | (Some(Found::Prometheus), Use::Metrics) => return,
        (Some(Found::Other(provider)), Use::Traces)
            if provider.zipkin.is_some() || provider.opentelemetry.is_some() =>
        {
            return;
        }
        (Some(Found::Other(provider)), _) => {
            format!(
                "the provider {} is {}, which is not supported: no {} go there",
                quoted(name),
                kind(provider),
                of.name()
            )
        }
        (Some(Found::File(_) | Found::Stdout), _) => {
            format!("the provider {} is a file of access logs: no {} go there", quoted(name), of.name())
        }
        (Some(Found::Prometheus), _) => {
            format!("the provider {} is for metrics: no {} go there", quoted(name), of.name())
        }
    };
    say(meta, name.span, field, (Severity::Warning, Code::NotSupportedYet), told, found);
}

fn kind(provider: &ExtensionProvider) -> &'static str {
    let kinds = [
        ("envoyExtAuthzHttp", provider.http.is_some()),
        ("envoyExtAuthzGrpc", provider.grpc.is_some()),
        ("zipkin", provider.zipkin.is_some()),
        ("lightstep", provider.lightstep.is_some()),
        ("datadog", provider.datadog.is_some()),
        ("stackdriver", provider.stackdriver.is_some()),
        ("opencensus", provider.opencensus.is_some()),
        ("skywalking", provider.skywalking.is_some()),
        ("opentelemetry", provider.opentelemetry.is_some()),
        ("envoyHttpAls", provider.envoy_http_als.is_some()),
        ("envoyTcpAls", provider.envoy_tcp_als.is_some()),
        ("envoyOtelAls", provider.envoy_otel_als.is_some()),
        ("sds", provider.sds.is_some()),
    ];
    kinds.into_iter().find(|(_, is_it)| *is_it).map_or("of no kind", |(kind, _)| kind)
}

/// Metrics of other names, and labels of connections that nothing is known of.
fn check_metrics(meta: &Meta, spec: &Telemetry, found: &mut Vec<Diagnostic>) {
    for one in spec.metrics.iter().flat_map(|metrics| &metrics.overrides) {
        if let Some(custom) = one.selector.custom_metric.as_ref().filter(|custom| !custom.is_empty())
            && !METRICS.iter().any(|(_, name)| *name == custom.value)
        {
            let message = format!(
                "there is no metric {}: there are {}",
                quoted(custom),
                METRICS.map(|(_, name)| name).join(", ")
            );
            let how = (Severity::Warning, Code::UnknownReference);
            say(meta, custom.span, "metrics.overrides.match.customMetric", how, message, found);
        }
        let is_of_connections = matches!(
            one.selector.metric.as_ref().map(|metric| metric.value),
            Some(Metric::TcpOpened | Metric::TcpClosed | Metric::TcpSent | Metric::TcpReceived)
        );
        for (label, tag) in one.tag_overrides.iter().filter(|_| is_of_connections) {
            let value =
                tag.value.as_ref().filter(|value| CelExpression::value(value).is_ok_and(|read| !read.is_constant()));
            if let Some(value) = value {
                let message = format!("{label}: nothing of a request is known of connections; it is `unknown`");
                let how = (Severity::Warning, Code::NotSupportedYet);
                say(meta, value.span, "metrics.overrides.tagOverrides.value", how, message, found);
            }
        }
    }
}

/// Objects that are for fewer workloads than they may seem to be, or say nothing.
fn check_scope(meta: &Meta, spec: &Telemetry, root: &str, found: &mut Vec<Diagnostic>) {
    if *meta.namespace == *root && !selected(spec.selector.as_ref()).is_empty() {
        let message = format!(
            "with a selector it is for workloads of namespace {root} alone, although that is the root namespace"
        );
        say(meta, spec.span, "selector", (Severity::Info, Code::Ignored), message, found);
    }
    if spec.access_logging.is_empty() && spec.metrics.is_empty() && spec.tracing.is_empty() {
        let message = "it says nothing: accessLogging, metrics and tracing are empty".to_owned();
        say(meta, spec.span, "spec", (Severity::Warning, Code::Ignored), message, found);
    }
}
