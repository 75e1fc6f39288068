//! `Telemetry` (telemetry.istio.io): what is told of the requests of workloads: access logs, metrics and traces.

use std::collections::BTreeMap;

use mesh_core::model::{CelExpression, METRIC_NAMES, is_metric_label};

use super::mesh_config::CustomTag;
use super::security::{Selector, TargetRef, check_whom};
use crate::config::decode::{At, Decoder, Opaque, Text, keywords, message};
use crate::config::diagnostic::{Code, Severity, Span, quoted};

message! {
    /// The specification.
    pub struct Telemetry {
        /// The workloads; absent means all of the namespace.
        selector: Option<Selector> = "selector",
        /// The object whose workloads are meant.
        target_ref: Option<TargetRef> = "targetRef",
        /// The objects whose workloads are meant.
        target_refs: Vec<TargetRef> = "targetRefs",
        /// Traces.
        tracing: Vec<Tracing> = "tracing",
        /// Metrics.
        metrics: Vec<Metrics> = "metrics",
        /// Access logs.
        access_logging: Vec<AccessLogging> = "accessLogging",
    }
    /// Somebody who takes what is told.
    pub struct ProviderRef {
        /// The name under which the mesh knows it.
        name: Text = "name" required,
    }
    /// Which side's requests are meant.
    pub struct Side {
        /// Which.
        mode: WorkloadMode = "mode",
    }
    /// How requests are traced.
    pub struct Tracing {
        /// Of which side.
        side: Option<Side> = "match",
        /// Who takes them.
        providers: Vec<ProviderRef> = "providers",
        /// How many of 100 begin a trace.
        random_sampling_percentage: Option<f64> = "randomSamplingPercentage",
        /// Whether no spans are reported.
        disable_span_reporting: Option<bool> = "disableSpanReporting",
        /// What spans have besides.
        custom_tags: BTreeMap<String, SpanTag> = "customTags",
        /// Whether spans say whose they are in Istio's words.
        enable_istio_tags: Option<bool> = "enableIstioTags",
        /// Whether the id of a request says whether it is traced.
        use_request_id: Option<bool> = "useRequestIdForTraceSampling",
        /// Whether others are not told of a trace.
        disable_context_propagation: Option<bool> = "disableContextPropagation",
    }
    /// What is counted.
    pub struct Metrics {
        /// Who takes them.
        providers: Vec<ProviderRef> = "providers",
        /// What is otherwise than usual; the later goes before the earlier.
        overrides: Vec<Override> = "overrides",
        /// How often they are told.
        reporting_interval: Opaque = "reportingInterval",
    }
    /// What is otherwise than usual of some metrics.
    pub struct Override {
        /// Of which; absent means all, of both sides.
        selector: MetricSelector = "match",
        /// Whether they are not there.
        disabled: Option<bool> = "disabled",
        /// What becomes of their labels.
        tag_overrides: BTreeMap<String, TagOverride> = "tagOverrides",
    }
    /// Which metrics are meant.
    pub struct MetricSelector {
        /// One of Istio's, or all.
        metric: Option<At<Metric>> = "metric",
        /// Another one.
        custom_metric: Option<Text> = "customMetric",
        /// Of which side.
        mode: WorkloadMode = "mode",
    }
    /// What becomes of a label.
    pub struct TagOverride {
        /// Whether it is set or taken off.
        operation: TagOperation = "operation",
        /// What it is set to: an expression of CEL.
        value: Option<Text> = "value",
    }
    /// Which requests are in access logs.
    pub struct AccessLogging {
        /// Of which side.
        side: Option<Side> = "match",
        /// Where they are written.
        providers: Vec<ProviderRef> = "providers",
        /// Whether none are.
        disabled: Option<bool> = "disabled",
        /// Which.
        filter: Option<Filter> = "filter",
    }
    /// Which requests are meant.
    pub struct Filter {
        /// Those of which this holds, in CEL.
        expression: Option<Text> = "expression",
    }
    /// What a span has besides: one of these.
    pub struct SpanTag {
        /// A text.
        literal: Option<super::mesh_config::LiteralTag> = "literal",
        /// A variable of the workload's environment.
        environment: Option<super::mesh_config::VariableTag> = "environment",
        /// A header of the request.
        header: Option<super::mesh_config::VariableTag> = "header",
        /// A text with commands in it.
        formatter: Opaque = "formatter",
    }
}

keywords! {
    /// Whose requests are meant.
    pub enum WorkloadMode {
        /// Those that a workload makes and those that it serves.
        Both = "CLIENT_AND_SERVER",
        /// Those that it makes.
        Client = "CLIENT",
        /// Those that it serves.
        Server = "SERVER",
    }
    /// What becomes of a label.
    pub enum TagOperation {
        /// It is set.
        Upsert = "UPSERT",
        /// It is taken off.
        Remove = "REMOVE",
    }
    /// One of Istio's metrics.
    pub enum Metric {
        /// Every one.
        All = "ALL_METRICS",
        /// `istio_requests_total`
        RequestCount = "REQUEST_COUNT",
        /// `istio_request_duration_milliseconds`
        RequestDuration = "REQUEST_DURATION",
        /// `istio_request_bytes`
        RequestSize = "REQUEST_SIZE",
        /// `istio_response_bytes`
        ResponseSize = "RESPONSE_SIZE",
        /// `istio_tcp_connections_opened_total`
        TcpOpened = "TCP_OPENED_CONNECTIONS",
        /// `istio_tcp_connections_closed_total`
        TcpClosed = "TCP_CLOSED_CONNECTIONS",
        /// `istio_tcp_sent_bytes_total`
        TcpSent = "TCP_SENT_BYTES",
        /// `istio_tcp_received_bytes_total`
        TcpReceived = "TCP_RECEIVED_BYTES",
        /// `istio_request_messages_total`
        GrpcRequests = "GRPC_REQUEST_MESSAGES",
        /// `istio_response_messages_total`
        GrpcResponses = "GRPC_RESPONSE_MESSAGES",
    }
}

/// The metrics with the names that Istio's statistics have for them: those of Prometheus without `istio_`.
pub const METRICS: [(Metric, &str); 10] = [
    (Metric::RequestCount, METRIC_NAMES[0]),
    (Metric::RequestDuration, METRIC_NAMES[1]),
    (Metric::RequestSize, METRIC_NAMES[2]),
    (Metric::ResponseSize, METRIC_NAMES[3]),
    (Metric::TcpOpened, METRIC_NAMES[8]),
    (Metric::TcpClosed, METRIC_NAMES[9]),
    (Metric::TcpSent, METRIC_NAMES[6]),
    (Metric::TcpReceived, METRIC_NAMES[7]),
    (Metric::GrpcRequests, METRIC_NAMES[4]),
    (Metric::GrpcResponses, METRIC_NAMES[5]),
];

impl WorkloadMode {
    /// Whether the requests of this side are meant: of a client, or of a server.
    pub fn has(self, is_client: bool) -> bool {
        match self {
            WorkloadMode::Both => true,
            WorkloadMode::Client => is_client,
            WorkloadMode::Server => !is_client,
        }
    }
}

impl SpanTag {
    /// The same, as the settings of the mesh have it.
    pub fn custom_tag(&self) -> CustomTag {
        CustomTag {
            literal: self.literal.clone(),
            environment: self.environment.clone(),
            header: self.header.clone(),
            span: self.span,
        }
    }
}

impl Telemetry {
    /// The objects whose workloads are meant.
    pub fn targets(&self) -> Vec<&TargetRef> {
        self.target_ref.iter().chain(&self.target_refs).collect()
    }

    /// What Istio's own validation refuses of one in this namespace, and expressions that cannot be evaluated.
    pub fn check(&self, namespace: &str, d: &mut Decoder<'_>) {
        check_whom(self.span, namespace, self.selector.as_ref(), self.targets(), d);
        let mut wrong = |span: Span, field: String, message: String| {
            d.report_at(span, field, Severity::Error, Code::InvalidValue, message);
        };
        for (index, logging) in self.access_logging.iter().enumerate() {
            if let Some(expression) = logging.filter.as_ref().and_then(|filter| filter.expression.as_ref())
                && !expression.is_empty()
                && let Err(fault) = CelExpression::condition(expression)
            {
                wrong(expression.span, format!("accessLogging[{index}].filter.expression"), fault.to_string());
            }
        }
        for (index, metrics) in self.metrics.iter().enumerate() {
            for (number, one) in metrics.overrides.iter().enumerate() {
                one.check(&format!("metrics[{index}].overrides[{number}]"), &mut wrong);
            }
        }
        for (index, tracing) in self.tracing.iter().enumerate() {
            let at = format!("tracing[{index}]");
            if let Some(share) = tracing.random_sampling_percentage.filter(|share| !(0.0..=100.0).contains(share)) {
                let message = format!("{share} is not a percentage from 0 to 100");
                wrong(tracing.span, format!("{at}.randomSamplingPercentage"), message);
            }
            for (name, tag) in &tracing.custom_tags {
                let at = format!("{at}.customTags[{name}]");
                if name.is_empty() {
                    wrong(tag.span, at.clone(), "a tag has a name".to_owned());
                }
                if tag.literal.is_none() && tag.environment.is_none() && tag.header.is_none() {
                    // What has a formatter is told as not supported.
                    continue;
                }
                for (span, field, message) in tag.custom_tag().faults() {
                    wrong(span, if field.is_empty() { at.clone() } else { format!("{at}.{field}") }, message);
                }
            }
        }
    }
}

impl Override {
    fn check(&self, at: &str, wrong: &mut impl FnMut(Span, String, String)) {
        if let (Some(metric), Some(custom)) = (&self.selector.metric, &self.selector.custom_metric) {
            let message = format!("{} beside metric: only one of the two can be named", quoted(custom));
            wrong(metric.span, format!("{at}.match"), message);
        }
        for (name, tag) in &self.tag_overrides {
            let at = format!("{at}.tagOverrides[{name}]");
            if !is_metric_label(name) {
                wrong(
                    tag.span,
                    at.clone(),
                    format!("{} is not the name of a label: letters, digits and `_`", quoted(name)),
                );
            }
            match (tag.operation, tag.value.as_ref().filter(|value| !value.is_empty())) {
                (TagOperation::Upsert, None) => wrong(tag.span, at, "UPSERT needs a value".to_owned()),
                (TagOperation::Upsert, Some(value)) => {
                    if let Err(fault) = CelExpression::label(value) {
                        wrong(value.span, format!("{at}.value"), fault.to_string());
                    }
                }
                (TagOperation::Remove, Some(value)) => {
                    wrong(value.span, format!("{at}.value"), "REMOVE takes no value".to_owned());
                }
                (TagOperation::Remove, None) => {}
            }
        }
    }
}
