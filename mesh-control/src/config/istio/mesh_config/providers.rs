//! Who can be asked and where telemetry goes: the `extensionProviders` of a mesh.

use std::collections::BTreeMap;
use std::time::Duration;

use http::HeaderName;
use mesh_core::error::Invalid;
use mesh_core::model::{
    AccessLog, CheckedBody, DEFAULT_LINE, HeaderTarget, HeaderText, IN_PROCESS, LogFormat, LogText,
};

use crate::config::decode::{At, Decode, Decoder, Opaque, PortNumber, Text, message};
use crate::config::diagnostic::{Span, quoted};
use crate::config::istio::names;
use crate::config::node::{Node, Value};

message! {
    /// Somebody who can be asked, or a place that telemetry goes to.
    pub struct ExtensionProvider {
        /// Its name.
        name: Text = "name" required,
        /// An authorizer that speaks HTTP.
        http: Option<HttpAuthorizer> = "envoyExtAuthzHttp",
        /// An authorizer that speaks gRPC.
        grpc: Option<GrpcAuthorizer> = "envoyExtAuthzGrpc",
        /// Of telemetry.
        zipkin: Option<Opaque> = "zipkin",
        /// Of telemetry.
        lightstep: Option<Opaque> = "lightstep",
        /// Of telemetry.
        datadog: Option<Opaque> = "datadog",
        /// Of telemetry.
        stackdriver: Option<Opaque> = "stackdriver",
        /// Of telemetry.
        opencensus: Option<Opaque> = "opencensus",
        /// Of telemetry.
        skywalking: Option<Opaque> = "skywalking",
        /// Of telemetry.
        opentelemetry: Option<Opaque> = "opentelemetry",
        /// Of telemetry.
        prometheus: Option<Opaque> = "prometheus",
        /// Of telemetry.
        envoy_file_access_log: Option<FileAccessLog> = "envoyFileAccessLog",
        /// Of telemetry.
        envoy_http_als: Option<Opaque> = "envoyHttpAls",
        /// Of telemetry.
        envoy_tcp_als: Option<Opaque> = "envoyTcpAls",
        /// Of telemetry.
        envoy_otel_als: Option<OtelAccessLog> = "envoyOtelAls",
        /// Certificates.
        sds: Option<Opaque> = "sds",
    }
    /// An access log in a file.
    pub struct FileAccessLog {
        /// Where it is.
        path: String = "path",
        /// What a line is made of.
        log_format: Option<FileLogFormat> = "logFormat",
        /// Whether what is not there is left out.
        omit_empty_values: bool = "omitEmptyValues",
    }
    /// An access log at a collector of OpenTelemetry's.
    pub struct OtelAccessLog {
        /// Where it is.
        service: Text = "service" required,
        /// Its port.
        port: PortNumber = "port" required,
        /// What the log is called.
        log_name: String = "logName",
        /// What a record is made of.
        log_format: Option<FileLogFormat> = "logFormat",
    }
    /// What a line is made of: one of these. Of a record, the text is the body, and each label an attribute.
    pub struct FileLogFormat {
        /// A text with commands in it.
        text: Option<Text> = "text",
        /// An object of JSON whose texts have commands in them.
        labels: Option<At<Json>> = "labels",
    }
    /// How much of a request's body an authorizer is shown.
    pub struct BodyInCheck {
        /// The most, in bytes.
        max_request_bytes: u32 = "maxRequestBytes",
        /// Whether the first bytes of a longer one are enough.
        allow_partial_message: bool = "allowPartialMessage",
        /// Whether it is bytes to an authorizer that speaks gRPC, else text.
        pack_as_bytes: bool = "packAsBytes",
    }
    /// An authorizer that speaks HTTP.
    pub struct HttpAuthorizer {
        /// Its service: `HOST` or `NAMESPACE/HOST`.
        service: Text = "service" required,
        /// Its port.
        port: PortNumber = "port" required,
        /// How long an answer may take.
        timeout: Option<Duration> = "timeout",
        /// What stands before the path of the request that it is asked about.
        path_prefix: String = "pathPrefix",
        /// Whether requests pass that it does not answer about.
        fail_open: bool = "failOpen",
        /// What clients are answered where it does not answer.
        status_on_error: Option<Text> = "statusOnError",
        /// The same as `includeRequestHeadersInCheck`.
        include_headers_in_check: Vec<Text> = "includeHeadersInCheck",
        /// Headers of the request that it is shown.
        include_request_headers_in_check: Vec<Text> = "includeRequestHeadersInCheck",
        /// Headers that it is sent besides.
        include_additional_headers_in_check: BTreeMap<String, String> = "includeAdditionalHeadersInCheck",
        /// How much of the body it is shown.
        include_request_body_in_check: Option<BodyInCheck> = "includeRequestBodyInCheck",
        /// Headers of its answer that the application sees.
        headers_to_upstream_on_allow: Vec<Text> = "headersToUpstreamOnAllow",
        /// Headers of its answer that the client sees where it is refused.
        headers_to_downstream_on_deny: Vec<Text> = "headersToDownstreamOnDeny",
        /// Headers of its answer that the client sees where it is let in.
        headers_to_downstream_on_allow: Vec<Text> = "headersToDownstreamOnAllow",
        /// Whether the route is looked for again.
        clear_route_cache: bool = "clearRouteCache",
    }
    /// An authorizer that speaks gRPC.
    pub struct GrpcAuthorizer {
        /// Its service: `HOST` or `NAMESPACE/HOST`.
        service: Text = "service" required,
        /// Its port.
        port: PortNumber = "port" required,
        /// How long an answer may take.
        timeout: Option<Duration> = "timeout",
        /// Whether requests pass that it does not answer about.
        fail_open: bool = "failOpen",
        /// What clients are answered where it does not answer.
        status_on_error: Option<Text> = "statusOnError",
        /// How much of the body it is shown.
        include_request_body_in_check: Option<BodyInCheck> = "includeRequestBodyInCheck",
        /// Whether the route is looked for again.
        clear_route_cache: bool = "clearRouteCache",
    }
}

/// The longest time that an authorizer is given unless its provider says otherwise (Istio: extension providers).
pub const AUTHORIZER_TIMEOUT: Duration = Duration::from_secs(600);

/// Anything, as JSON has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Json(pub serde_json::Value);

impl Decode for Json {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let inner = |node: &Node, d: &mut Decoder<'_>| Json::decode(node, d).map(|Json(value)| value);
        Some(Json(match &node.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::Str(value) => value.as_str().into(),
            Value::Seq(items) => items.iter().map(|item| inner(item, d)).collect::<Option<Vec<_>>>()?.into(),
            Value::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| Some((key.name.clone(), inner(value, d)?)));
                serde_json::Value::Object(entries.collect::<Option<_>>()?)
            }
        }))
    }
}

/// The name of Istio's own provider of access logs, which every mesh has.
pub const STDOUT_LOG: &str = "envoy";

impl ExtensionProvider {
    /// What is wrong with it, apart from its name.
    pub(super) fn check(&self, at: &str, wrong: &mut impl FnMut(Span, String, String)) {
        if self.kinds() != 1 {
            let message = format!("{} is one kind of provider, and here are {}", self.name.value, self.kinds());
            wrong(self.span, at.to_owned(), message);
        }
        if let Some(log) = &self.envoy_file_access_log
            && let Err((span, field, message)) = log.format()
        {
            wrong(span, format!("{at}.envoyFileAccessLog.logFormat.{field}"), message);
        }
        if let Some(Err((span, field, message))) = self.envoy_otel_als.as_ref().map(OtelAccessLog::formats) {
            wrong(span, format!("{at}.envoyOtelAls.logFormat.{field}"), message);
        }
        if let Some(http) = &self.http {
            http.check(&format!("{at}.envoyExtAuthzHttp"), wrong);
        }
        if let Some(grpc) = &self.grpc {
            let at = format!("{at}.envoyExtAuthzGrpc");
            check_body(&at, grpc.include_request_body_in_check.as_ref(), wrong);
            check_authorizer(&at, &grpc.service, grpc.timeout, grpc.status_on_error.as_ref(), grpc.span, wrong);
        }
    }

    fn kinds(&self) -> usize {
        let others = [
            &self.zipkin,
            &self.lightstep,
            &self.datadog,
            &self.stackdriver,
            &self.opencensus,
            &self.skywalking,
            &self.opentelemetry,
            &self.prometheus,
            &self.envoy_http_als,
            &self.envoy_tcp_als,
            &self.sds,
        ];
        let others = others.into_iter().filter(|kind| kind.is_some()).count();
        let logs = [self.envoy_file_access_log.is_some(), self.envoy_otel_als.is_some()];
        let read = [self.http.is_some(), self.grpc.is_some()].into_iter().chain(logs);
        others + read.filter(|is_there| *is_there).count()
    }
}

impl FileAccessLog {
    /// The log of [`STDOUT_LOG`].
    pub fn to_stdout() -> FileAccessLog {
        FileAccessLog { path: String::new(), log_format: None, omit_empty_values: false, span: Span::default() }
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        if self.path.is_empty() { "/dev/stdout" } else { &self.path }
    }

    /// What a line is made of.
    ///
    /// # Errors
    /// What is wrong with it, in which field, and where.
    pub fn format(&self) -> Result<LogFormat, (Span, String, String)> {
        let Some(written) = &self.log_format else { return Ok(LogFormat::default()) };
        match (written.text.as_ref().filter(|text| !text.is_empty()), &written.labels) {
            (Some(_), Some(labels)) => {
                Err((labels.span, "labels".to_owned(), "beside text: only one of the two can be written".to_owned()))
            }
            (Some(text), None) => {
                let read = LogText::parse(text).map(LogFormat::Text);
                read.map_err(|invalid| (text.span, "text".to_owned(), invalid.to_string()))
            }
            // Istio: without any labels it is the default JSON.
            (None, Some(labels)) if is_empty(&labels.value.0) => Ok(LogFormat::json()),
            (None, Some(labels)) => {
                LogFormat::of_json(&labels.value.0).map_err(|invalid| of_labels(labels.span, invalid))
            }
            (None, None) => Ok(LogFormat::default()),
        }
    }
}

impl OtelAccessLog {
    /// What a record is made of: its body, and its attributes, an object.
    pub fn parts(&self) -> (&str, Option<&serde_json::Value>) {
        let written = self.log_format.as_ref();
        let text = written.and_then(|format| format.text.as_ref()).filter(|text| !text.is_empty());
        let labels = written.and_then(|format| format.labels.as_ref()).map(|labels| &labels.value.0);
        (text.map_or(DEFAULT_LINE, |text| text.value.as_str()), labels.filter(|labels| !is_empty(labels)))
    }

    /// The formats of both, with where they are written.
    ///
    /// # Errors
    /// What is wrong with one, in which field, and where.
    pub fn formats(&self) -> Result<Vec<(Span, LogFormat)>, (Span, String, String)> {
        let Some(written) = &self.log_format else { return Ok(Vec::new()) };
        let mut formats = Vec::new();
        if let Some(text) = written.text.as_ref().filter(|text| !text.is_empty()) {
            let read = LogText::parse(text).map_err(|invalid| (text.span, "text".to_owned(), invalid.to_string()))?;
            formats.push((text.span, LogFormat::Text(read)));
        }
        if let Some(labels) = &written.labels {
            let read = LogFormat::of_json(&labels.value.0).map_err(|invalid| of_labels(labels.span, invalid))?;
            if labels.value.0.get(AccessLog::BODY).is_some() {
                return Err((labels.span, "labels".to_owned(), "an attribute has a name".to_owned()));
            }
            formats.push((labels.span, read));
        }
        Ok(formats)
    }
}

fn of_labels(span: Span, invalid: Invalid) -> (Span, String, String) {
    let field = if invalid.field.is_empty() { "labels".to_owned() } else { format!("labels.{}", invalid.field) };
    (span, field, invalid.reason)
}

/// Whether it is an object of JSON with nothing in it.
pub fn is_empty(value: &serde_json::Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty)
}

impl HttpAuthorizer {
    fn check(&self, at: &str, wrong: &mut impl FnMut(Span, String, String)) {
        check_authorizer(at, &self.service, self.timeout, self.status_on_error.as_ref(), self.span, wrong);
        check_body(at, self.include_request_body_in_check.as_ref(), wrong);
        if self.service.to_ascii_lowercase().ends_with(IN_PROCESS) {
            let message =
                format!("{} is in the process of a server: write it under envoyExtAuthzGrpc", self.service.value);
            wrong(self.service.span, format!("{at}.service"), message);
        }
        if !self.path_prefix.is_empty() && http::uri::PathAndQuery::try_from(self.path_prefix.as_str()).is_err()
            || self.path_prefix.contains(['?', '#'])
            || !self.path_prefix.is_empty() && !self.path_prefix.starts_with('/')
        {
            let message = format!("{} is not a path", quoted(&self.path_prefix));
            wrong(self.span, format!("{at}.pathPrefix"), message);
        }
        for (name, value) in &self.include_additional_headers_in_check {
            let field = format!("{at}.includeAdditionalHeadersInCheck[{name}]");
            match HeaderName::try_from(name.as_str()) {
                Ok(name) if is_of_the_wire(name.as_str()) => {
                    wrong(self.span, field, format!("{} is not for configuration to set", quoted(name.as_str())));
                }
                // Envoy puts facts of the request in for commands, as in headers of a route.
                Ok(_) => {
                    if let Err(invalid) = HeaderText::parse(value.as_bytes(), HeaderTarget::Request, false) {
                        wrong(self.span, field, format!("{}: {}", quoted(value), invalid.reason));
                    }
                }
                Err(_) => wrong(self.span, field, "is not a header".to_owned()),
            }
        }
        for (field, list, sets) in [
            ("includeHeadersInCheck", &self.include_headers_in_check, false),
            ("includeRequestHeadersInCheck", &self.include_request_headers_in_check, false),
            ("headersToUpstreamOnAllow", &self.headers_to_upstream_on_allow, true),
            ("headersToDownstreamOnDeny", &self.headers_to_downstream_on_deny, false),
            ("headersToDownstreamOnAllow", &self.headers_to_downstream_on_allow, true),
        ] {
            for (index, entry) in list.iter().enumerate() {
                let name = entry.strip_suffix('*').or_else(|| entry.strip_prefix('*')).unwrap_or(entry);
                let message = if name.is_empty() && sets {
                    "an authorizer must not set every header: name those that it may set".to_owned()
                } else if !name.is_empty() && HeaderName::try_from(name).is_err() {
                    format!("{} is not the name of a header, with a star at one end at most", quoted(entry))
                } else if sets && is_of_the_wire(&name.to_ascii_lowercase()) {
                    format!("{} is not for an authorizer to set", quoted(entry))
                } else {
                    continue;
                };
                wrong(entry.span, format!("{at}.{field}[{index}]"), message);
            }
        }
    }
}

fn check_authorizer(
    at: &str,
    service: &Text,
    timeout: Option<Duration>,
    status: Option<&Text>,
    span: Span,
    wrong: &mut impl FnMut(Span, String, String),
) {
    let host = service.split_once('/').map_or(service.as_str(), |(_, host)| host);
    if host.is_empty() || host.contains('*') || names::host_fault(host).is_some() {
        let message = format!("{} is not the host of a service, or NAMESPACE/HOST", quoted(service));
        wrong(service.span, format!("{at}.service"), message);
    }
    if timeout == Some(Duration::ZERO) {
        wrong(span, format!("{at}.timeout"), "must be more than 0".to_owned());
    }
    if let Some(status) = status.filter(|status| self::status(status).is_none()) {
        let message = format!("{} is not a status from 400 to 599", quoted(status));
        wrong(status.span, format!("{at}.statusOnError"), message);
    }
}

fn check_body(at: &str, body: Option<&BodyInCheck>, wrong: &mut impl FnMut(Span, String, String)) {
    let Some(BodyInCheck { max_request_bytes, span, .. }) = body else { return };
    if *max_request_bytes == 0 || *max_request_bytes as usize > CheckedBody::LIMIT {
        let message = format!("expected a number of bytes from 1 to {}", CheckedBody::LIMIT);
        wrong(*span, format!("{at}.includeRequestBodyInCheck.maxRequestBytes"), message);
    }
}

/// A status that says that a request failed. One of another kind would say that it was let in.
pub fn status(text: &str) -> Option<u16> {
    text.parse().ok().filter(|status| (400..=599).contains(status))
}

/// Headers that are of a connection or of framing, or that a policy decides by.
fn is_of_the_wire(name: &str) -> bool {
    const NAMES: [&str; 12] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "content-encoding",
    ];
    NAMES.contains(&name)
}
