//! What the environment says of traces, metrics and access logs, in OpenTelemetry's words.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use mesh_core::model::{Fraction, Tracing};

use super::otlp::{Collector, Spans};
use super::{Exporter, Limits};
use crate::mesh::StartError;
use crate::uri::unescaped;

/// The exporter of spans that the environment asks for, if it asks for one.
pub(super) fn exporter(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Exporter>, StartError> {
    let Some(Wanted { collector, limits, tracing }) = wanted(&Variables(variable)).map_err(StartError::new)? else {
        return Ok(None);
    };
    let make = |dropped: &Arc<AtomicU64>| Spans::new(*collector, Arc::clone(dropped));
    Ok(Some(Exporter::made(make, limits)?.tracing(tracing)))
}

/// What it says of spans.
#[derive(Debug)]
struct Wanted {
    collector: Box<Collector>,
    limits: Limits,
    tracing: Tracing,
}

/// What it says of metrics.
#[derive(Debug)]
pub(super) enum WantedMetrics {
    /// Nothing.
    None,
    /// They are kept, for whoever reads them.
    Kept,
    /// They are sent, so often, each time within so long.
    Sent { collector: Box<Collector>, interval: Duration, timeout: Duration },
}

/// The variables of the environment.
struct Variables<F>(F);

impl<F: Fn(&str) -> Option<String>> Variables<F> {
    /// What is empty counts as not set.
    fn said(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// The first of these that is set: one for this kind of data, one for all.
    fn first(&self, names: [&'static str; 2]) -> Option<(&'static str, String)> {
        names.into_iter().find_map(|name| Some((name, self.said(name)?)))
    }

    fn is_disabled(&self) -> bool {
        self.said("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"))
    }

    fn endpoint(&self, names: [&'static str; 2]) -> Result<Option<(&'static str, String)>, String> {
        let Some((name, endpoint)) = self.first(names) else { return Ok(None) };
        let (scheme, rest) = endpoint.split_once("://").unwrap_or(("", endpoint.as_str()));
        // What is before the host is not told: it is a credential, and nobody would send it.
        if rest.split('/').next().unwrap_or_default().contains('@') {
            return Err(format!("{name}: a user in it has no effect; credentials are for OTEL_EXPORTER_OTLP_HEADERS"));
        }
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(format!(
                "{name}={endpoint}: only http:// is supported; a collector beside the process speaks TLS"
            ));
        }
        Ok(Some((name, endpoint)))
    }

    /// Whether gRPC is spoken.
    fn is_grpc(&self, names: [&'static str; 2]) -> Result<bool, String> {
        match self.first(names) {
            None => Ok(false),
            Some((_, protocol)) if protocol == "http/protobuf" => Ok(false),
            Some((_, protocol)) if protocol == "grpc" => Ok(true),
            Some((name, protocol)) => {
                Err(format!("{name}={protocol}: not supported; there are grpc and http/protobuf"))
            }
        }
    }

    fn number(&self, name: &str, least: u64, most: u64, default: u64) -> Result<u64, String> {
        match self.said(name).map(|text| (text.parse::<u64>(), text)) {
            None => Ok(default),
            Some((Ok(number), _)) if (least..=most).contains(&number) => Ok(number),
            Some((_, text)) => Err(format!("{name}={text}: not a number from {least} to {most}")),
        }
    }
}

fn wanted(variables: &Variables<impl Fn(&str) -> Option<String>>) -> Result<Option<Wanted>, String> {
    if variables.is_disabled() {
        return Ok(None);
    }
    let has_endpoint = variables.first(TRACES.endpoints()).is_some();
    match variables.said("OTEL_TRACES_EXPORTER").as_deref() {
        Some("none") => return Ok(None),
        Some("otlp") => {}
        None if has_endpoint => {}
        None => return Ok(None),
        Some(other) => return Err(format!("OTEL_TRACES_EXPORTER={other}: not supported; there are otlp and none")),
    }
    let collector = Box::new(TRACES.collector(variables)?);
    let number = |name, least, default| variables.number(name, least, 1_000_000, default);
    let count =
        |name, default: usize| number(name, 1, default as u64).map(|number| usize::try_from(number).unwrap_or(default));
    let time = |name, default: Duration| {
        let default = u64::try_from(default.as_millis()).unwrap_or_default();
        number(name, 0, default).map(Duration::from_millis)
    };
    let Limits { queue, batch, delay, timeout } = Limits::default();
    let queue = count("OTEL_BSP_MAX_QUEUE_SIZE", queue)?;
    let limits = Limits {
        queue,
        batch: count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", batch)?.min(queue),
        delay: time("OTEL_BSP_SCHEDULE_DELAY", delay)?,
        timeout: time("OTEL_BSP_EXPORT_TIMEOUT", timeout)?,
    };
    let tracing = sampled(
        variables.said("OTEL_TRACES_SAMPLER").as_deref(),
        variables.said("OTEL_TRACES_SAMPLER_ARG").as_deref(),
    )?;
    Ok(Some(Wanted { collector, limits, tracing }))
}

/// What the environment says of metrics.
pub(super) fn metrics(variable: impl Fn(&str) -> Option<String>) -> Result<WantedMetrics, String> {
    let variables = Variables(variable);
    if variables.is_disabled() {
        return Ok(WantedMetrics::None);
    }
    let (mut is_sent, mut is_kept) = (false, false);
    match variables.said("OTEL_METRICS_EXPORTER") {
        None => is_sent = variables.first(METRICS.endpoints()).is_some(),
        Some(wanted) => {
            for one in wanted.split(',').map(str::trim) {
                match one {
                    "otlp" => is_sent = true,
                    "prometheus" => is_kept = true,
                    "none" => {}
                    other => {
                        return Err(format!(
                            "OTEL_METRICS_EXPORTER={other}: not supported; there are otlp, prometheus and none"
                        ));
                    }
                }
            }
        }
    }
    if !is_sent {
        return Ok(if is_kept { WantedMetrics::Kept } else { WantedMetrics::None });
    }
    let preference = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
    if let Some(other) = variables.said(preference).filter(|said| !said.eq_ignore_ascii_case("cumulative")) {
        return Err(format!("{preference}={other}: not supported; there is cumulative"));
    }
    let collector = METRICS.collector(&variables)?;
    let time = |name: &str, default| variables.number(name, 1, LONGEST, default).map(Duration::from_millis);
    Ok(WantedMetrics::Sent {
        collector: Box::new(collector),
        interval: time("OTEL_METRIC_EXPORT_INTERVAL", 60_000)?,
        timeout: time("OTEL_METRIC_EXPORT_TIMEOUT", 30_000)?,
    })
}

/// Who takes access logs, as the environment says.
pub(super) fn logs(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Box<Collector>>, String> {
    let variables = Variables(variable);
    if variables.is_disabled() {
        return Ok(None);
    }
    match variables.said("OTEL_LOGS_EXPORTER").as_deref() {
        Some("none") => return Ok(None),
        Some("otlp") => {}
        None if variables.first(LOGS.endpoints()).is_some() => {}
        None => return Ok(None),
        Some(other) => return Err(format!("OTEL_LOGS_EXPORTER={other}: not supported; there are otlp and none")),
    }
    LOGS.collector(&variables).map(|collector| Some(Box::new(collector)))
}

/// The longest time that can be said, in milliseconds: a day.
const LONGEST: u64 = 86_400_000;

/// The variables that are about one kind of data, and where it is taken.
struct Signal {
    endpoint: &'static str,
    protocol: &'static str,
    headers: &'static str,
    timeout: &'static str,
    compression: &'static str,
    grpc: &'static str,
    http: &'static str,
    /// What OpenTelemetry's own exporters go by, and these do not.
    unread: &'static [&'static str],
}

const TRACES: Signal = Signal {
    endpoint: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    protocol: "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    headers: "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    timeout: "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    compression: "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
    grpc: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    http: "/v1/traces",
    unread: &[
        "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
        "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
        "OTEL_ATTRIBUTE_COUNT_LIMIT",
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
        "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    ],
};

const METRICS: Signal = Signal {
    endpoint: "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    protocol: "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
    headers: "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
    timeout: "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT",
    compression: "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION",
    grpc: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    http: "/v1/metrics",
    unread: &[
        "OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY",
        "OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
        "OTEL_METRICS_EXEMPLAR_FILTER",
    ],
};

const LOGS: Signal = Signal {
    endpoint: "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
    protocol: "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL",
    headers: "OTEL_EXPORTER_OTLP_LOGS_HEADERS",
    timeout: "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT",
    compression: "OTEL_EXPORTER_OTLP_LOGS_COMPRESSION",
    grpc: "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    http: "/v1/logs",
    unread: &[
        "OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY",
        "OTEL_EXPORTER_OTLP_LOGS_CLIENT_CERTIFICATE",
        "OTEL_BLRP_SCHEDULE_DELAY",
        "OTEL_BLRP_EXPORT_TIMEOUT",
        "OTEL_BLRP_MAX_QUEUE_SIZE",
        "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",
        "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT",
        "OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    ],
};

/// The same of all three.
const UNREAD: [&str; 4] = [
    "OTEL_CONFIG_FILE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
];
/// What requests are told of a trace in, whatever is asked for.
const PROPAGATED: [&str; 4] = ["tracecontext", "baggage", "b3", "b3multi"];

impl Signal {
    fn endpoints(&self) -> [&'static str; 2] {
        [self.endpoint, "OTEL_EXPORTER_OTLP_ENDPOINT"]
    }

    /// Variables that are set and have no effect.
    fn without_effect(&self, variables: &Variables<impl Fn(&str) -> Option<String>>) -> Vec<&'static str> {
        let is_set = |name: &&&str| variables.said(name).is_some();
        let unread = UNREAD.iter().chain(self.unread).filter(is_set).copied();
        let propagators = variables.said("OTEL_PROPAGATORS").unwrap_or_default();
        let is_known = |one: &str| one.is_empty() || PROPAGATED.contains(&one);
        let others = propagators.split(',').any(|one| !is_known(one.trim()));
        unread.chain(others.then_some("OTEL_PROPAGATORS")).collect()
    }

    /// Who takes it.
    fn collector(&self, variables: &Variables<impl Fn(&str) -> Option<String>>) -> Result<Collector, String> {
        for variable in self.without_effect(variables) {
            tracing::warn!(variable, "has no effect on what the mesh sends to {}", self.http);
        }
        if variables.said(RESOURCE_ATTRIBUTES).is_some_and(|text| attributes(&text).is_none()) {
            return Err(format!("{RESOURCE_ATTRIBUTES}: not a list of NAME=VALUE, both escaped as in URLs"));
        }
        for name in [self.compression, "OTEL_EXPORTER_OTLP_COMPRESSION"] {
            if let Some(other) = variables.said(name).filter(|said| said != "none") {
                return Err(format!("{name}={other}: not supported; there is none"));
            }
        }
        let is_grpc = variables.is_grpc([self.protocol, "OTEL_EXPORTER_OTLP_PROTOCOL"])?;
        let (port, endpoints) = (if is_grpc { 4317 } else { 4318 }, self.endpoints());
        let default = || (endpoints[1], format!("http://localhost:{port}"));
        let (name, endpoint) = variables.endpoint(endpoints)?.unwrap_or_else(default);
        let base = endpoint.trim_end_matches('/');
        let uri = match (is_grpc, name == self.endpoint) {
            (true, _) => format!("{base}{}", self.grpc),
            // Its own endpoint is where it goes; below that for all it has a place.
            (false, true) => endpoint.clone(),
            (false, false) => format!("{base}{}", self.http),
        };
        let uri: Uri = uri.parse().map_err(|error| format!("{name}={endpoint}: {error}"))?;
        let headers = match variables.first([self.headers, "OTEL_EXPORTER_OTLP_HEADERS"]) {
            // What is wrong is not told: there are credentials in it.
            Some((name, text)) => headers(&text).ok_or_else(|| format!("{name}: not a list of NAME=VALUE"))?,
            None => HeaderMap::new(),
        };
        let all = variables.number("OTEL_EXPORTER_OTLP_TIMEOUT", 1, LONGEST, 10_000)?;
        let timeout = Duration::from_millis(variables.number(self.timeout, 1, LONGEST, all)?);
        Ok(Collector::new(uri, headers, is_grpc, timeout))
    }
}

/// `NAME=VALUE,...`, values as in URLs.
fn headers(text: &str) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
        let (name, value) = one.split_once('=')?;
        let decoded = unescaped(value.trim())?;
        headers.try_append(HeaderName::try_from(name.trim()).ok()?, HeaderValue::from_bytes(&decoded).ok()?).ok()?;
    }
    Some(headers)
}

/// Of whom everything is that is sent.
pub(super) const RESOURCE_ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";

/// `NAME=VALUE,...`, both as in URLs.
pub(super) fn attributes(text: &str) -> Option<Vec<(String, String)>> {
    let part = |text: &str| String::from_utf8(unescaped(text.trim())?).ok();
    let pair = |one: &str| {
        let (name, value) = one.split_once('=')?;
        Some((part(name).filter(|name| !name.is_empty())?, part(value)?))
    };
    text.split(',').map(str::trim).filter(|one| !one.is_empty()).map(pair).collect()
}

/// How many traces begin here, of which the configuration says nothing. A parent's decision counts in any case.
fn sampled(sampler: Option<&str>, argument: Option<&str>) -> Result<Tracing, String> {
    let mut tracing = Tracing::default();
    tracing.random = match sampler {
        None => return Ok(tracing),
        Some("always_on" | "parentbased_always_on") => Fraction::ALL,
        Some("always_off") => {
            tracing.overall = Fraction::default();
            Fraction::default()
        }
        Some("parentbased_always_off") => Fraction::default(),
        Some("traceidratio" | "parentbased_traceidratio") => match argument.unwrap_or("1").parse::<f64>() {
            // Between 0 and 1, so that it is a number of millionths.
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Fraction::of_million((ratio * 1e6).round() as u64),
            _ => return Err("OTEL_TRACES_SAMPLER_ARG: not a share from 0 to 1".to_owned()),
        },
        Some(other) => {
            return Err(format!(
                "OTEL_TRACES_SAMPLER={other}: not supported; there are always_on, always_off, traceidratio, and the same with \
                 parentbased_"
            ));
        }
    };
    Ok(tracing)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share of traces that begin, or why there is nothing to be had.
    fn check(variables: &[(&str, &str)], expected: Result<Option<u32>, &str>) {
        let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, text)| (*text).to_owned());
        match (wanted(&Variables(variable)), expected) {
            (Ok(wanted), Ok(expected)) => {
                assert_eq!(wanted.map(|wanted| wanted.tracing.random.per_million()), expected, "{variables:?}");
            }
            (Err(why), Err(expected)) => assert!(why.contains(expected), "{variables:?}: {why}"),
            (said, _) => panic!("{variables:?}: {said:?}"),
        }
    }

    #[test]
    fn the_environment_says_whether_and_how_many() {
        const AT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        check(&[], Ok(None));
        check(&[AT], Ok(Some(10_000)));
        check(&[("OTEL_TRACES_EXPORTER", "otlp")], Ok(Some(10_000)));
        check(&[AT, ("OTEL_TRACES_EXPORTER", "none")], Ok(None));
        check(&[AT, ("OTEL_SDK_DISABLED", "true")], Ok(None));
        check(&[AT, ("OTEL_TRACES_EXPORTER", "zipkin")], Err("there are otlp and none"));
        check(&[AT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], Ok(Some(10_000)));
        check(&[AT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")], Err("there are grpc and http/protobuf"));
        check(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318")], Err("only http://"));
        check(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], Ok(None));
        for endpoint in
            ["http://user:secret@collector:4318", "https://secret@collector/v1", "user:secret@collector:4318"]
        {
            let why =
                wanted(&Variables(|name: &str| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| endpoint.to_owned())));
            let why = why.unwrap_err();
            assert!(why.contains("OTEL_EXPORTER_OTLP_HEADERS") && !why.contains("secret"), "{why}");
        }
        check(&[AT, ("OTEL_RESOURCE_ATTRIBUTES", "a=%zz")], Err("OTEL_RESOURCE_ATTRIBUTES: not a list"));
        check(&[AT, ("OTEL_RESOURCE_ATTRIBUTES", "a=b%20c")], Ok(Some(10_000)));
        check(&[AT, ("OTEL_TRACES_SAMPLER", "always_on")], Ok(Some(1_000_000)));
        check(&[AT, ("OTEL_TRACES_SAMPLER", "parentbased_always_off")], Ok(Some(0)));
        let ratio = ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio");
        check(&[AT, ratio, ("OTEL_TRACES_SAMPLER_ARG", "0.25")], Ok(Some(250_000)));
        check(&[AT, ratio, ("OTEL_TRACES_SAMPLER_ARG", "25")], Err("from 0 to 1"));
        check(&[AT, ("OTEL_TRACES_SAMPLER", "jaeger_remote")], Err("there are always_on"));
        check(&[AT, ("OTEL_BSP_MAX_QUEUE_SIZE", "0")], Err("OTEL_BSP_MAX_QUEUE_SIZE=0"));
    }

    #[test]
    fn attributes_of_the_resource_are_read_without_their_escapes() {
        for (text, expected) in [
            ("", Some(vec![])),
            ("team=shop, k8s.pod.name = web-1 ,", Some(vec![("team", "shop"), ("k8s.pod.name", "web-1")])),
            ("a=b%20c%2Cd%3D,%C3%A9=%E2%82%AC", Some(vec![("a", "b c,d="), ("é", "€")])),
            ("a=Zm8=", Some(vec![("a", "Zm8=")])),
            ("a=", Some(vec![("a", "")])),
            ("a", None),
            ("=b", None),
            ("a=%", None),
            ("a=%ff", None),
        ] {
            let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
            let expected = expected.map(|all: Vec<_>| all.into_iter().map(owned).collect::<Vec<_>>());
            assert_eq!(attributes(text), expected, "{text}");
        }
    }

    #[test]
    fn what_has_no_effect_is_named() {
        for (name, value, is_named) in [
            ("OTEL_BLRP_MAX_QUEUE_SIZE", "1", true),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem", true),
            ("OTEL_PROPAGATORS", "tracecontext, baggage,b3", false),
            ("OTEL_PROPAGATORS", "tracecontext,jaeger", true),
            ("OTEL_PROPAGATORS", "none", true),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "1", false),
            ("OTEL_CONFIG_FILE", "", false),
        ] {
            let variables = Variables(|asked: &str| (asked == name).then(|| value.to_owned()));
            let expected = if is_named { vec![name] } else { Vec::new() };
            assert_eq!(LOGS.without_effect(&variables), expected, "{name}={value}");
        }
    }

    #[test]
    fn the_environment_says_where_access_logs_go() {
        const AT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        for (variables, expected) in [
            (&[][..], Ok(None)),
            (&[AT], Ok(Some("http://localhost:4318/v1/logs"))),
            (&[("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://a/b"), AT], Ok(Some("http://a/b"))),
            (
                &[AT, ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "grpc")],
                Ok(Some("http://localhost:4318/opentelemetry.proto.collector.logs.v1.LogsService/Export")),
            ),
            (&[AT, ("OTEL_LOGS_EXPORTER", "none")], Ok(None)),
            (&[AT, ("OTEL_SDK_DISABLED", "true")], Ok(None)),
            (&[AT, ("OTEL_LOGS_EXPORTER", "console")], Err("there are otlp and none")),
            (&[AT, ("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "gzip")], Err("there is none")),
        ] {
            let variable =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, text)| (*text).to_owned());
            match (logs(variable), expected) {
                (Ok(collector), Ok(expected)) => {
                    assert_eq!(collector.map(|it| it.uri().to_string()).as_deref(), expected, "{variables:?}");
                }
                (Err(why), Err(expected)) => assert!(why.contains(expected), "{variables:?}: {why}"),
                (said, _) => panic!("{variables:?}: {said:?}"),
            }
        }
    }

    #[test]
    fn the_environment_says_whether_and_where_metrics_go() {
        const AT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318/");
        const GRPC: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        const OTLP: (&str, &str) = ("OTEL_METRICS_EXPORTER", "otlp");
        fn said(variables: &[(&str, &str)]) -> String {
            let variable =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, text)| (*text).to_owned());
            match metrics(variable) {
                Ok(WantedMetrics::Sent { collector, interval, .. }) => {
                    format!("{} {}", collector.uri(), interval.as_millis())
                }
                Ok(other) => format!("{other:?}"),
                Err(why) => why,
            }
        }
        let grpc = "http://localhost:4317/opentelemetry.proto.collector.metrics.v1.MetricsService/Export 60000";
        for (variables, expected) in [
            (&[][..], "None"),
            (&[AT], "http://localhost:4318/v1/metrics 60000"),
            (&[AT, ("OTEL_METRIC_EXPORT_INTERVAL", "5000")], "http://localhost:4318/v1/metrics 5000"),
            (&[OTLP], "http://localhost:4318/v1/metrics 60000"),
            (&[OTLP, GRPC], grpc),
            (&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://a/b"), AT], "http://a/b 60000"),
            (&[AT, ("OTEL_METRICS_EXPORTER", "none")], "None"),
            (&[AT, ("OTEL_METRICS_EXPORTER", "prometheus")], "Kept"),
            (&[AT, ("OTEL_METRICS_EXPORTER", "prometheus,otlp")], "http://localhost:4318/v1/metrics 60000"),
            (&[AT, ("OTEL_SDK_DISABLED", "true")], "None"),
        ] {
            assert_eq!(said(variables), expected, "{variables:?}");
        }
        for (name, value, why) in [
            ("OTEL_METRICS_EXPORTER", "console", "there are otlp, prometheus and none"),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://a", "only http://"),
            ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json", "there are grpc and http/protobuf"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta", "there is cumulative"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", "there is none"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "0", "OTEL_METRIC_EXPORT_INTERVAL=0"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret", "OTEL_EXPORTER_OTLP_HEADERS: not a list of NAME=VALUE"),
        ] {
            let text = said(&[AT, (name, value)]);
            assert!(text.contains(why), "{name}={value}: {text}");
        }
        assert_eq!(headers("a=b%20c, D=e").unwrap()["a"], "b c");
        assert!(["a=%2", "a=%zz", "a b=c", "a=%0a"].iter().all(|text| headers(text).is_none()));
    }
}
