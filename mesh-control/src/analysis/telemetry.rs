//! Telemetry objects that name who takes what they tell: providers that there are not, that are of another use, or that nothing
//! is sent to; and what they say of metrics that there are not. Nothing is left out without a word.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::model::CelExpression;

use crate::config::decode::Text;
use crate::config::diagnostic::{Code, Diagnostic, Severity, Span, quoted};
use crate::config::file::{Governs, Meta, Object, Objects, Refused, Workloads, is_namespace};
use crate::config::istio::mesh_config::{ExtensionProvider, LogEncoding};
use crate::config::istio::security::selected;
use crate::config::istio::telemetry::{AccessLogging, METRICS, Metric, Override, Telemetry};
use crate::policy::Policy;
use crate::policy::telemetry::{Found, LEGACY, Side, default_logs, find, has_format_of_mesh, names};

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
        check_providers(&object.meta, &object.spec, policy, found);
        check_logs(&object.meta, &object.spec, policy, found);
        check_metrics(&object.meta, &object.spec, found);
        check_disabled(&object.meta, &object.spec, policy, found);
        check_scope(&object.meta, &object.spec, &policy.mesh.fixed.root_namespace, found);
    }
    found.extend(objects.refused.iter().filter_map(|object| withheld(object, &policy.mesh.fixed.root_namespace)));
    check_format(policy, found);
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
}

/// Entries of access logs that nothing is written by, or that a later one of the object goes before.
fn check_logs(meta: &Meta, spec: &Telemetry, policy: &Policy, found: &mut Vec<Diagnostic>) {
    let mut told = BTreeSet::new();
    for side in [Side::Client, Side::Server] {
        let mut providers = inherited(meta, spec, policy);
        let mut entries = Vec::new();
        let is_meant = |(_, entry): &(usize, &AccessLogging)| side.is_of(entry.side.as_ref());
        for (index, entry) in spec.access_logging.iter().enumerate().filter(is_meant) {
            // One that names nobody is for those of the entry before it.
            if !entry.providers.is_empty() {
                providers = names(&entry.providers).collect();
            }
            entries.push((index, entry, providers.clone()));
        }
        // Where the object names any, what it says of others is over.
        let first = entries.iter().find(|(_, entry, _)| !entry.providers.is_empty()).map(|(index, ..)| *index);
        let named: BTreeSet<&str> = entries.iter().flat_map(|(_, entry, _)| names(&entry.providers)).collect();
        for (place, (index, entry, providers)) in entries.iter().enumerate() {
            let counting = |name: &&str| named.is_empty() || named.contains(name);
            let mut counting = providers.iter().filter(|name| counting(name)).peekable();
            if counting.peek().is_none() {
                let message = match first {
                    Some(first) => format!(
                        "without effect: it names no provider, and those of accessLogging[{first}] are the only ones \
                         that count; name one here, too"
                    ),
                    None if entry.disabled == Some(true) => continue,
                    None => NOT_WRITTEN.to_owned(),
                };
                told.insert((*index, "providers", message));
                continue;
            }
            let is_disabled = entry.disabled == Some(true);
            let field = match (is_disabled, is_filtered(entry)) {
                (true, _) => "disabled",
                (false, true) => "filter",
                (false, false) => continue,
            };
            for name in counting {
                let later = entries.iter().skip(place + 1).find(|(_, later, of)| {
                    let goes_before = is_disabled || is_filtered(later) || later.disabled == Some(true);
                    goes_before && of.contains(name)
                });
                if let Some((later, ..)) = later {
                    let of = if *name == LEGACY { "accessLogFile".to_owned() } else { quoted(name) };
                    let message = format!("without effect on {of}: accessLogging[{later}] is for it, too, and counts");
                    told.insert((*index, field, message));
                }
            }
        }
    }
    for (index, field, message) in told {
        let Some(entry) = spec.access_logging.get(index) else { continue };
        let is_for_nobody = message == NOT_WRITTEN;
        let field = format!("accessLogging[{index}].{field}");
        say(meta, entry.span, &field, (Severity::Warning, Code::Ignored), message, found);
        if let Some(last) = found.last_mut().filter(|_| is_for_nobody) {
            last.istio = Some("IST0157");
        }
    }
}

const NOT_WRITTEN: &str = "nothing is written: no provider is named here, in a wider Telemetry or in \
    defaultProviders.accessLogging of the mesh, and it has no accessLogFile; `providers: [{name: envoy}]` is the standard output";

fn is_filtered(entry: &AccessLogging) -> bool {
    let expression = entry.filter.as_ref().and_then(|filter| filter.expression.as_ref());
    expression.is_some_and(|expression| !expression.is_empty())
}

/// The objects that are for all of whom an object is for, and for others.
fn wider<'a>(meta: &Meta, spec: &Telemetry, policy: &'a Policy) -> impl Iterator<Item = &'a Object<Telemetry>> {
    let is_narrow = |spec: &Telemetry| !selected(spec.selector.as_ref()).is_empty() || !spec.targets().is_empty();
    let (root, own, is_own_narrow) =
        (policy.mesh.fixed.root_namespace.clone(), meta.namespace.clone(), is_narrow(spec));
    let is_wider = move |other: &&Arc<Object<Telemetry>>| {
        let is_of_mesh = other.meta.namespace == root && root != own;
        let is_of_namespace = other.meta.namespace == own && is_own_narrow;
        (is_of_mesh || is_of_namespace) && !is_narrow(&other.spec)
    };
    policy.telemetries.iter().filter(is_wider).map(|object| &**object)
}

/// The access logs that an object is for that names none.
fn inherited<'a>(meta: &Meta, spec: &Telemetry, policy: &'a Policy) -> Vec<&'a str> {
    let wider = wider(meta, spec, policy).flat_map(|other| &other.spec.access_logging);
    let named: Vec<&str> = wider.flat_map(|entry| names(&entry.providers)).collect();
    match named.is_empty() {
        true => default_logs(policy.mesh.object.as_ref().map(|object| &object.spec)),
        false => named,
    }
}

/// A format of the mesh's settings that nothing is written in.
fn check_format(policy: &Policy, found: &mut Vec<Diagnostic>) {
    let Some(settings) = &policy.mesh.object else { return };
    let spec = &settings.spec;
    let of_objects = policy.telemetries.iter().flat_map(|object| &object.spec.access_logging);
    let mut logs = of_objects.flat_map(|entry| names(&entry.providers)).chain(default_logs(Some(spec)));
    if logs.any(|name| has_format_of_mesh(name, spec)) || !spec.access_log_file.is_empty() {
        return;
    }
    let message = "without effect: accessLogFile is not set, neither defaultProviders nor a Telemetry names the provider \
        `envoy` without a format of its own, and other providers have theirs";
    let how = (Severity::Warning, Code::Ignored);
    if let Some(format) = spec.access_log_format.as_ref().filter(|format| !format.is_empty()) {
        say(&settings.meta, format.span, "accessLogFormat", how, message.to_owned(), found);
    } else if spec.access_log_encoding == Some(LogEncoding::Json) {
        say(&settings.meta, spec.span, "accessLogEncoding", how, message.to_owned(), found);
    }
}

/// What is wrong may have kept requests out of access logs.
fn withheld(refused: &Refused, root: &str) -> Option<Diagnostic> {
    let Governs::Logs(workloads) = &refused.governs else { return None };
    let namespace = &refused.meta.namespace;
    let is_for_all = *workloads == Workloads::Labelled(BTreeMap::new());
    let whom = if is_for_all { "" } else { "the selected " };
    let place = match !is_namespace(namespace) || (**namespace == *root && is_for_all) {
        true => "of every namespace".to_owned(),
        false => format!("of namespace {namespace}"),
    };
    let message = format!(
        "until it is right, no access log of {whom}workloads {place} is written; metrics and traces are told as if it were not there"
    );
    let origin = refused.meta.origin.at(refused.place);
    Some(Diagnostic::at(&origin, Severity::Warning, Code::Unenforced, message).object(refused.id()))
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
        (Some(Found::File(_) | Found::Stdout | Found::Collector(_)), Use::Logs)
        | (Some(Found::Prometheus), Use::Metrics) => return,
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
        (Some(Found::Collector(_)), _) => {
            format!("the provider {} is for access logs: no {} go there", quoted(name), of.name())
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

/// Whether an object, or the mesh, has something told to a provider that there is not: that is not in force.
pub(crate) fn is_told_to_nobody(finding: &Diagnostic) -> bool {
    let is_of_telemetry = |object: &str| ["Telemetry ", "MeshConfig "].iter().any(|kind| object.starts_with(kind));
    let names_providers = |field: &str| field.ends_with(".providers.name") || field.starts_with("defaultProviders.");
    (finding.severity, finding.code) == (Severity::Error, Code::UnknownReference)
        && finding.object.as_deref().is_some_and(is_of_telemetry)
        && finding.field.as_deref().is_some_and(names_providers)
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
                tag.value.as_ref().filter(|value| CelExpression::label(value).is_ok_and(|read| !read.is_constant()));
            if let Some(value) = value {
                let message = format!("{label}: nothing of a request is known of connections; it is `unknown`");
                let how = (Severity::Warning, Code::NotSupportedYet);
                say(meta, value.span, "metrics.overrides.tagOverrides.value", how, message, found);
            }
        }
    }
}

/// Labels of metrics that a wider object has taken away, and this one does not bring back.
fn check_disabled(meta: &Meta, spec: &Telemetry, policy: &Policy, found: &mut Vec<Diagnostic>) {
    let is_meant = |one: &Override, metric: Metric, is_client: bool| {
        let named = one.selector.metric.as_ref().map(|metric| metric.value);
        one.selector.mode.has(is_client) && named.is_none_or(|named| named == metric || named == Metric::All)
    };
    let mut told = BTreeSet::new();
    for ((metric, name), is_client) in METRICS.into_iter().flat_map(|metric| [(metric, true), (metric, false)]) {
        let before =
            wider(meta, spec, policy).flat_map(|other| other.spec.metrics.iter().map(move |it| (Some(other), it)));
        let all = before.chain(spec.metrics.iter().map(|own| (None, own)));
        let mut taken_by = None;
        let all = all.flat_map(|(of, metrics)| metrics.overrides.iter().map(move |one| (of, one)));
        for (of, one) in all.filter(|(_, one)| is_meant(one, metric, is_client)) {
            match (one.disabled, of) {
                (Some(true), of) => taken_by = of,
                (Some(false), _) => taken_by = None,
                (None, None) if let Some(taker) = taken_by.filter(|_| !one.tag_overrides.is_empty()) => {
                    if told.insert(name) {
                        let why = format!(
                            "without effect on {name}, which {} takes away: `disabled: false` beside them has it back",
                            taker.meta.id()
                        );
                        let how = (Severity::Warning, Code::Ignored);
                        say(meta, one.span, "metrics.overrides.tagOverrides", how, why, found);
                    }
                }
                (None, _) => {}
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
