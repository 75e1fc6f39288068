//! What is told of the requests of a workload: which Telemetry objects are for it, and what they come to together with the
//! settings of the mesh (Istio: pilot/pkg/model/telemetry.go). Of the root namespace, of its own namespace and for the workload
//! itself one object each counts, the oldest; the narrower goes before the wider, field by field.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::model::{AccessLog, CelExpression, DEFAULT_JSON, DEFAULT_LINE, LogDestination};

use super::mesh::MeshSettings;
use super::tracing::{Provider, Tag, Tracing};
use super::view::Applied;
use super::workloads::{is_one_of, is_one_of_all};
use crate::config::decode::Text;
use crate::config::file::{Governs, Meta, Object, Objects, Workloads, is_namespace};
use crate::config::istio::mesh_config::{
    ExtensionProvider, FileAccessLog, LogEncoding, MeshConfig, OtelAccessLog, STDOUT_LOG, is_empty,
};
use crate::config::istio::telemetry::{AccessLogging, METRICS, Metric, ProviderRef, TagOperation, Telemetry};
use crate::config::{Code, Diagnostic, Severity};
use crate::registry::Services;

/// All Telemetry objects.
#[derive(Debug, Default)]
pub struct Telemetries {
    root: Arc<str>,
    /// In the order in which they compete.
    entries: Vec<Entry>,
    /// Those that are wrong, and whom each is for. Its namespace may be none that can be: then it is for all.
    wrong: Vec<(Arc<str>, Workloads)>,
}

#[derive(Debug)]
struct Entry {
    object: Arc<Object<Telemetry>>,
    workloads: Workloads,
}

/// Whose requests are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Those that a workload makes.
    Client,
    /// Those that it serves.
    Server,
    /// Those that come to a gateway.
    Gateway,
}

/// An access log in a file, or at a collector of OpenTelemetry's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogFile {
    /// Where it goes.
    pub to: LogDestination,
    /// What is written for each request.
    pub lines: LogLines,
    /// Which requests, in CEL; `None` for all.
    pub filter: Option<String>,
    /// Where the collector is, for who has none of its own.
    pub collector: Option<Collector>,
}

/// A collector of access logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    /// The host of its service.
    pub host: String,
    /// Its port there.
    pub port: u16,
    /// What the log is called.
    pub log_name: String,
}

impl Collector {
    /// The name of a log that says none of its own (Istio: otelEnvoyAccessLogFriendlyName).
    const LOG: &str = "otel_envoy_accesslog";

    /// The one that a provider names.
    pub fn of(provider: &OtelAccessLog) -> Collector {
        let service = provider.service.as_str();
        let host = service.split_once('/').map_or(service, |(_, host)| host).to_owned();
        let log_name = Some(&*provider.log_name).filter(|name| !name.is_empty()).unwrap_or(Collector::LOG).to_owned();
        Collector { host, port: provider.port.0, log_name }
    }
}

/// A request in an access log, in Envoy's words (`%RESPONSE_CODE%`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogLines {
    /// A line of text.
    Text(String),
    /// An object of JSON; for a collector with the body under [`AccessLog::BODY`].
    Json(serde_json::Value),
}

/// What is otherwise than usual of one metric.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricOverride {
    /// It is not there.
    pub is_disabled: bool,
    /// Labels that are set, by an expression of CEL, or taken off.
    pub labels: BTreeMap<String, Option<String>>,
}

/// The access log that the settings of the mesh name without a provider (`accessLogFile`): the default, where there is no other.
pub const LEGACY: &str = "";

impl Telemetries {
    /// Those of these objects, and what is to be said about them.
    pub fn new(objects: &Objects, root: &Arc<str>) -> (Telemetries, Vec<Diagnostic>) {
        let mut sorted: Vec<_> = objects.telemetries.iter().collect();
        sorted.sort_by(|a, b| a.meta.order().cmp(&b.meta.order()));
        let entry = |object: &Arc<Object<Telemetry>>| Entry {
            workloads: objects.workloads(&object.meta, object.spec.selector.as_ref(), &object.spec.targets()),
            object: Arc::clone(object),
        };
        let entries: Vec<Entry> = sorted.into_iter().map(entry).collect();
        let mut found = Vec::new();
        for (place, entry) in entries.iter().enumerate() {
            let meta = &entry.object.meta;
            let is_rival =
                |other: &&Entry| other.workloads == entry.workloads && other.object.meta.namespace == meta.namespace;
            if let Some(winner) = entries.iter().take(place).find(is_rival) {
                let winner = &winner.object.meta;
                let message = format!("{} ({}) is for the same workloads, and counts", winner.id(), winner.origin);
                let is_for_all = entry.workloads == Workloads::Labelled(BTreeMap::new());
                let finding = Diagnostic::at(&meta.origin, Severity::Warning, Code::Conflict, message);
                found.push(finding.istio(if is_for_all { "IST0160" } else { "IST0159" }).object(meta.id()));
            }
        }
        let wrong = objects.refused.iter().filter_map(|object| match &object.governs {
            Governs::Logs(workloads) => Some((Arc::clone(&object.meta.namespace), workloads.clone())),
            _ => None,
        });
        (Telemetries { root: Arc::clone(root), entries, wrong: wrong.collect() }, found)
    }

    /// Those that are for a workload.
    pub fn of(&self, namespace: &str, labels: &BTreeMap<String, String>, services: &Services) -> Applied {
        let find = |is_meant: &dyn Fn(&Entry) -> bool| self.entries.iter().position(is_meant);
        let is_in = |entry: &Entry, namespace: &str| *entry.object.meta.namespace == *namespace;
        let root = find(&|entry| is_in(entry, &self.root) && entry.is_for_all());
        let own = find(&|entry| is_in(entry, namespace) && entry.is_for_all());
        let workload = find(&|entry| {
            let is_own = is_in(entry, namespace) && is_one_of(&entry.workloads, namespace, labels, services);
            !entry.is_for_all()
                && (is_own || (is_in(entry, &self.root) && entry.is_for_gateway(namespace, labels, services)))
        });
        let is_withheld = self.wrong.iter().any(|(of, workloads)| {
            let is_of_mesh = !is_namespace(of) || (*of == self.root && *workloads == everybody());
            is_of_mesh || (**of == *namespace && is_one_of(workloads, namespace, labels, services))
        });
        Applied { places: [root, own.filter(|_| *namespace != *self.root), workload], is_withheld }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Object<Telemetry>>> {
        self.entries.iter().map(|entry| &entry.object)
    }

    /// Who they are that are for a workload.
    pub fn metas(&self, applied: Applied) -> impl Iterator<Item = &Meta> {
        self.scopes(applied).map(|object| &object.meta)
    }

    /// The wider first.
    fn scopes(&self, applied: Applied) -> impl Iterator<Item = &Object<Telemetry>> {
        applied.places.into_iter().flatten().filter_map(|place| Some(&*self.entries.get(place)?.object))
    }

    /// Where the requests of a side are logged. One file that several providers name is written for each.
    pub fn access_logs(&self, applied: Applied, side: Side, mesh: &MeshSettings) -> Vec<AccessLogFile> {
        if applied.is_withheld {
            return Vec::new();
        }
        let spec = mesh.object.as_ref().map(|object| &object.spec);
        let defaults = default_logs(spec);
        let is_meant = |logging: &&AccessLogging| side.is_of(logging.side.as_ref());
        // The providers of the narrowest scope that names any; what a wider one says of others is over.
        let mut counting: BTreeSet<&str> = defaults.iter().copied().collect();
        for object in self.scopes(applied) {
            let logging = object.spec.access_logging.iter().filter(is_meant);
            let named: BTreeSet<&str> = logging.flat_map(|logging| names(&logging.providers)).collect();
            if !named.is_empty() {
                counting = named;
            }
        }
        let mut logs: BTreeMap<&str, Option<String>> = BTreeMap::new();
        if !self.scopes(applied).flat_map(|object| &object.spec.access_logging).any(|logging| is_meant(&logging)) {
            logs.extend(defaults.iter().map(|name| (*name, None)));
        }
        let mut providers = defaults;
        for logging in self.scopes(applied).flat_map(|object| &object.spec.access_logging) {
            if !logging.providers.is_empty() {
                providers = names(&logging.providers).collect();
            }
            if !is_meant(&logging) {
                continue;
            }
            for name in providers.iter().filter(|name| counting.contains(*name)) {
                if logging.disabled == Some(true) {
                    logs.remove(name);
                    continue;
                }
                let expression = logging.filter.as_ref().and_then(|filter| filter.expression.as_ref());
                let expression = expression.filter(|expression| !expression.is_empty());
                // What is wrong with it was said where it is read. Whoever understands it gets it in words that all know.
                let filter = expression.and_then(|text| Some(CelExpression::condition(text).ok()?.text().to_owned()));
                let known = logs.entry(name).or_default();
                *known = filter.or_else(|| known.take());
            }
        }
        let file = |(name, filter): (&str, Option<String>)| {
            let (to, lines) = file_log(name, spec)?;
            let collector = match find(name, spec) {
                Some(Found::Collector(provider)) => Some(Collector::of(provider)),
                _ => None,
            };
            Some(AccessLogFile { to, lines, filter, collector })
        };
        logs.into_iter().filter_map(file).collect()
    }

    /// What is otherwise than usual of the metrics of a side, by the names of Istio's statistics.
    pub fn metrics(&self, applied: Applied, side: Side, mesh: &MeshSettings) -> BTreeMap<String, MetricOverride> {
        let spec = mesh.object.as_ref().map(|object| &object.spec);
        let mut providers = spec.map(|spec| default_providers(spec).metrics).unwrap_or_default();
        if providers.is_empty() {
            providers.push(PROMETHEUS);
        }
        let mut overrides: BTreeMap<String, MetricOverride> = BTreeMap::new();
        for metrics in self.scopes(applied).flat_map(|object| &object.spec.metrics) {
            if !metrics.providers.is_empty() {
                providers = names(&metrics.providers).collect();
            }
            if !providers.iter().any(|name| is_prometheus(name, spec)) {
                continue;
            }
            for one in metrics.overrides.iter().filter(|one| one.selector.mode.has(side.is_client())) {
                let named = one.selector.metric.as_ref().map(|metric| metric.value);
                let is_one = |metric: Metric| named.is_none_or(|named| named == metric || named == Metric::All);
                let standard = METRICS.iter().filter(|(metric, _)| is_one(*metric)).map(|(_, name)| (*name).to_owned());
                let meant: Vec<String> = match &one.selector.custom_metric {
                    Some(custom) if !custom.is_empty() => vec![custom.value.clone()],
                    _ => standard.collect(),
                };
                for name in meant {
                    let metric = overrides.entry(name).or_default();
                    metric.is_disabled = one.disabled.unwrap_or(metric.is_disabled);
                    for (label, tag) in &one.tag_overrides {
                        let value = tag.value.as_ref().filter(|_| tag.operation == TagOperation::Upsert);
                        metric.labels.insert(label.clone(), value.map(|value| value.value.clone()));
                    }
                }
            }
        }
        overrides.retain(|_, metric| *metric != MetricOverride::default());
        overrides
    }

    /// How the requests of a side are traced; `None` where nobody says anything of it, so that it is the application's to say.
    pub fn tracing(&self, applied: Applied, side: Side, mesh: &MeshSettings) -> Option<Tracing> {
        let spec = mesh.object.as_ref().map(|object| &object.spec);
        let mut tracing = mesh.tracing();
        let mut provider = spec.and_then(|spec| default_providers(spec).tracing.first().copied());
        for written in self.scopes(applied).flat_map(|object| &object.spec.tracing) {
            if !side.is_of(written.side.as_ref()) {
                continue;
            }
            let merged = tracing.get_or_insert_default();
            if let Some(first) = names(&written.providers).next() {
                // Whoever names one wants spans.
                (provider, merged.is_disabled) = (Some(first), false);
            }
            merged.sampling = written.random_sampling_percentage.or(merged.sampling);
            merged.is_disabled = written.disable_span_reporting.unwrap_or(merged.is_disabled);
            if !written.custom_tags.is_empty() {
                let tags = written.custom_tags.iter();
                merged.custom_tags =
                    tags.filter_map(|(name, tag)| Some((name.clone(), Tag::of(&tag.custom_tag())?))).collect();
            }
        }
        if let Some(provider) = provider.and_then(|name| find(name, spec)) {
            let kind = match provider {
                Found::Other(provider) if provider.zipkin.is_some() => Some(Provider::Zipkin),
                Found::Other(provider) if provider.opentelemetry.is_some() => Some(Provider::OpenTelemetry),
                _ => None,
            };
            tracing = tracing.map(|tracing| Tracing { provider: kind.or(tracing.provider), ..tracing });
        }
        tracing
    }
}

impl Entry {
    fn is_for_all(&self) -> bool {
        self.workloads == everybody()
    }

    /// Of the root namespace, labels are those of its own workloads, and Gateways may be anywhere.
    fn is_for_gateway(&self, namespace: &str, labels: &BTreeMap<String, String>, services: &Services) -> bool {
        matches!(self.workloads, Workloads::OfTargets(_)) && is_one_of_all(&self.workloads, namespace, labels, services)
    }
}

fn everybody() -> Workloads {
    Workloads::Labelled(BTreeMap::new())
}

impl Side {
    /// That of the requests which come to a listener of a server, or of a gateway.
    pub fn serving(is_gateway: bool) -> Side {
        if is_gateway { Side::Gateway } else { Side::Server }
    }

    /// Whether Istio's kinds mean it by `CLIENT`: a gateway is one to them, since it sends on all that comes to it (Istio:
    /// extensions.go, telemetry.go).
    pub fn is_client(self) -> bool {
        self != Side::Server
    }

    /// Whether its requests are meant.
    pub fn is_of(self, side: Option<&crate::config::istio::telemetry::Side>) -> bool {
        side.is_none_or(|side| side.mode.has(self.is_client()))
    }
}

/// The name of Istio's own provider of metrics, which every mesh has.
pub const PROMETHEUS: &str = "prometheus";

/// What a provider is.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// A file.
    File(&'a FileAccessLog),
    /// The standard output, in Istio's default line.
    Stdout,
    /// The collector of OpenTelemetry's that the application has.
    Collector(&'a OtelAccessLog),
    /// Metrics for Prometheus.
    Prometheus,
    /// Another one.
    Other(&'a ExtensionProvider),
}

/// The provider of this name, among those of the settings and those that every mesh has.
pub fn find<'a>(name: &str, spec: Option<&'a MeshConfig>) -> Option<Found<'a>> {
    let written = spec.and_then(|spec| spec.extension_providers.iter().find(|provider| *provider.name.value == *name));
    match (written, name) {
        (Some(provider), _) => {
            let (file, collector) = (provider.envoy_file_access_log.as_ref(), provider.envoy_otel_als.as_ref());
            let log = file.map(Found::File).or_else(|| collector.map(Found::Collector));
            let other = if provider.prometheus.is_some() { Found::Prometheus } else { Found::Other(provider) };
            Some(log.unwrap_or(other))
        }
        (None, STDOUT_LOG) => Some(Found::Stdout),
        (None, PROMETHEUS) => Some(Found::Prometheus),
        _ => None,
    }
}

fn is_prometheus(name: &str, spec: Option<&MeshConfig>) -> bool {
    matches!(find(name, spec), Some(Found::Prometheus))
}

/// The names of providers.
pub fn names(providers: &[ProviderRef]) -> impl Iterator<Item = &str> {
    providers.iter().map(|provider| provider.name.value.as_str())
}

/// The names of those that count where no Telemetry names any.
struct Defaults<'a> {
    tracing: Vec<&'a str>,
    metrics: Vec<&'a str>,
    access_logging: Vec<&'a str>,
}

fn default_providers(spec: &MeshConfig) -> Defaults<'_> {
    fn of(list: Option<&Vec<Text>>) -> Vec<&str> {
        list.into_iter().flatten().map(|name| name.value.as_str()).collect()
    }
    let defaults = spec.default_providers.as_ref();
    Defaults {
        tracing: of(defaults.map(|defaults| &defaults.tracing)),
        metrics: of(defaults.map(|defaults| &defaults.metrics)),
        access_logging: of(defaults.map(|defaults| &defaults.access_logging)),
    }
}

/// The access logs that count where no Telemetry names any.
pub fn default_logs(spec: Option<&MeshConfig>) -> Vec<&str> {
    let mut defaults = spec.map(|spec| default_providers(spec).access_logging).unwrap_or_default();
    if defaults.is_empty() && spec.is_some_and(|spec| !spec.access_log_file.is_empty()) {
        defaults.push(LEGACY);
    }
    defaults
}

/// Whether what a provider writes is what `accessLogFormat` and `accessLogEncoding` say (Istio: the built-in provider without a
/// format of its own).
pub fn has_format_of_mesh(name: &str, spec: &MeshConfig) -> bool {
    let is_without_format = match find(name, Some(spec)) {
        Some(Found::File(log)) => log.log_format.is_none(),
        found => matches!(found, Some(Found::Stdout)),
    };
    name == LEGACY || (name == STDOUT_LOG && is_without_format)
}

/// Where a provider writes, and what; `None` for one that writes no file. What is wrong with a format was said where it is read.
fn file_log(name: &str, spec: Option<&MeshConfig>) -> Option<(LogDestination, LogLines)> {
    let lines_of_mesh = spec.filter(|spec| has_format_of_mesh(name, spec)).map(lines_of_mesh);
    if let Some(legacy) = spec.filter(|_| name == LEGACY) {
        return Some((LogDestination::File(legacy.access_log_file.as_str().into()), lines_of_mesh??));
    }
    let stdout = FileAccessLog::to_stdout();
    let log = match find(name, spec)? {
        Found::File(log) => log,
        Found::Stdout => &stdout,
        Found::Collector(log) => return Some((LogDestination::Collector, record(log)?)),
        Found::Prometheus | Found::Other(_) => return None,
    };
    log.format().ok()?;
    let written = log.log_format.as_ref();
    let text = written.and_then(|format| format.text.as_ref()).filter(|text| !text.is_empty());
    let labels = written.and_then(|format| format.labels.as_ref());
    let lines = match (lines_of_mesh, text, labels) {
        (Some(lines), ..) => lines?,
        (None, Some(text), _) => LogLines::Text(text.value.clone()),
        (None, None, Some(labels)) if is_empty(&labels.value.0) => default_json(),
        (None, None, Some(labels)) => LogLines::Json(labels.value.0.clone()),
        (None, None, None) => LogLines::Text(DEFAULT_LINE.to_owned()),
    };
    Some((LogDestination::File(log.path().into()), lines))
}

/// What a collector gets of each request.
fn record(log: &OtelAccessLog) -> Option<LogLines> {
    log.formats().ok()?;
    let (body, attributes) = log.parts();
    let Some(attributes) = attributes else { return Some(LogLines::Text(body.to_owned())) };
    let mut fields = attributes.as_object()?.clone();
    fields.insert(AccessLog::BODY.to_owned(), body.into());
    Some(LogLines::Json(fields.into()))
}

fn lines_of_mesh(spec: &MeshConfig) -> Option<LogLines> {
    spec.log_format().ok()?;
    let written = spec.access_log_format.as_ref().map_or("", |text| text.value.as_str());
    Some(match (spec.access_log_encoding == Some(LogEncoding::Json), written) {
        (true, "") => default_json(),
        (true, written) => LogLines::Json(serde_json::from_str(written).ok()?),
        (false, "") => LogLines::Text(DEFAULT_LINE.to_owned()),
        (false, written) => LogLines::Text(written.to_owned()),
    })
}

fn default_json() -> LogLines {
    LogLines::Json(DEFAULT_JSON.map(|(key, text)| (key.to_owned(), text)).into_iter().collect())
}
