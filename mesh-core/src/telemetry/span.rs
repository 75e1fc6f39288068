//! Spans of a request that is over: its own, and one for each try, in OpenTelemetry's words and in Istio's.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::{HeaderName, Version};

use crate::id::Address;
use crate::model::{TagValue, Tracing, protocol};
use crate::request::split_authority;
use crate::request_info::{AttemptEnd, AttemptNotes, Direction, RequestInfo, SpanNotes};
use crate::trace::{REQUEST_ID, SpanId, TraceContext};
use crate::workload::Workload;

/// Who takes spans.
///
/// ```
/// use std::sync::Mutex;
/// use mesh_core::telemetry::{Span, SpanSink};
///
/// /// Keeps their names.
/// #[derive(Debug, Default)]
/// struct Names(Mutex<Vec<String>>);
///
/// impl SpanSink for Names {
///     fn take(&self, span: Span) {
///         self.0.lock().unwrap().push(span.name);
///     }
/// }
/// ```
pub trait SpanSink: Send + Sync + fmt::Debug + 'static {
    /// A span is over. Told on the request's task: must not block, and must not panic.
    fn take(&self, span: Span);

    /// How requests are traced of which the configuration says nothing: one of a hundred, unless something else is said.
    fn tracing(&self) -> Tracing {
        Tracing::default()
    }

    /// Who this process is, before the first span.
    fn begin(&self, own: &Workload) {
        _ = own;
    }

    /// Waits until what it took until now is sent, and not for ever: the process is about to end.
    fn flush(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }

    /// How many spans were lost, since whoever gets them was too slow.
    fn dropped(&self) -> u64 {
        0
    }
}

/// A span that is over.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Span {
    /// The trace, and its own id.
    pub context: TraceContext,
    /// The span that it is a part of.
    pub parent: Option<SpanId>,
    /// Whether that is one of another process.
    pub is_parent_remote: bool,
    /// What it is of.
    pub name: String,
    /// Which side.
    pub kind: SpanKind,
    /// When it began.
    pub started: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// What is known of it.
    pub attributes: Vec<(Cow<'static, str>, SpanValue)>,
    /// Why it failed, if it did.
    pub error: Option<Cow<'static, str>>,
}

/// Which side of a request a span is of. Exhaustive: whoever tells of it has to know each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// A server answers it.
    Server,
    /// A client makes it: all of it, or one try.
    Client,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum SpanValue {
    /// A text.
    Text(Cow<'static, str>),
    /// A number.
    Number(i64),
    /// Whether it is so.
    Flag(bool),
}

impl From<&'static str> for SpanValue {
    fn from(text: &'static str) -> Self {
        SpanValue::Text(Cow::Borrowed(text))
    }
}

impl From<String> for SpanValue {
    fn from(text: String) -> Self {
        SpanValue::Text(Cow::Owned(text))
    }
}

impl From<bool> for SpanValue {
    fn from(is_so: bool) -> Self {
        SpanValue::Flag(is_so)
    }
}

impl From<u64> for SpanValue {
    fn from(number: u64) -> Self {
        SpanValue::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

/// How long a text of a header may be in a span, in bytes.
const LONGEST: usize = 256;

/// The spans of a request that is over `now`; none where they are not recorded. `own` is this process.
pub fn spans_of(info: &RequestInfo, own: &Workload, now: (Instant, SystemTime)) -> Vec<Span> {
    let Some(notes) = info.spans() else { return Vec::new() };
    let seen = Seen { info, notes, now };
    let mut spans = vec![seen.whole(own)];
    spans.extend(notes.attempts.iter().map(|attempt| seen.attempt(attempt)));
    spans
}

struct Seen<'r> {
    info: &'r RequestInfo,
    notes: &'r SpanNotes,
    now: (Instant, SystemTime),
}

/// Attributes as they are gathered.
#[derive(Default)]
struct Attributes(Vec<(Cow<'static, str>, SpanValue)>);

impl Attributes {
    fn add(&mut self, name: &'static str, value: impl Into<SpanValue>) {
        self.0.push((Cow::Borrowed(name), value.into()));
    }

    fn some(&mut self, name: &'static str, value: Option<impl Into<SpanValue>>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }
}

impl Seen<'_> {
    fn at(&self, when: Instant) -> SystemTime {
        let (now, clock) = self.now;
        clock.checked_sub(now.saturating_duration_since(when)).unwrap_or(clock)
    }

    fn is_server(&self) -> bool {
        self.info.direction() == Some(Direction::Inbound)
    }

    /// The span of the request itself.
    fn whole(&self, own: &Workload) -> Span {
        let mut attributes = Attributes::default();
        self.request(&mut attributes);
        self.outcome(&mut attributes);
        self.identity(&mut attributes, own);
        self.custom(&mut attributes.0);
        Span {
            context: self.notes.begun.context,
            parent: self.notes.begun.parent,
            is_parent_remote: self.is_server(),
            name: self.name(),
            kind: if self.is_server() { SpanKind::Server } else { SpanKind::Client },
            started: self.at(self.info.started),
            ended: self.now.1,
            attributes: attributes.0,
            error: self.error(),
        }
    }

    /// The span of a try.
    fn attempt(&self, attempt: &AttemptNotes) -> Span {
        let (info, mut attributes) = (self.info, Attributes::default());
        let AttemptNotes { number, span_id, started, endpoint, ended } = attempt;
        self.method(&mut attributes);
        if *number > 1 {
            let again = u64::from(*number - 1);
            attributes.add("http.request.resend_count", again);
            if info.is_grpc {
                attributes.add("previous-rpc-attempts", again);
            }
        }
        attributes.some("upstream_cluster", info.cluster().map(|cluster| cluster.as_str().to_owned()));
        if let Some(address) = endpoint.id().addresses().first() {
            attributes.add("peer.address", address.to_string());
            let (host, port) = match address {
                Address::Socket(address) => (address.ip().to_string(), address.port()),
                Address::Host(host, port) => (host.to_string(), *port),
            };
            attributes.add("network.peer.address", host);
            attributes.add("network.peer.port", u64::from(port));
        }
        let (ended, error) = match ended {
            Some((when, AttemptEnd::Answered(status, _))) => {
                attributes.add("http.response.status_code", u64::from(status.as_u16()));
                attributes.add("http.status_code", status.as_u16().to_string());
                (self.at(*when), Some(Cow::Owned(format!("answered {}, and tried again", status.as_u16()))))
            }
            Some((when, AttemptEnd::Failed(kind))) => {
                attributes.add("error.type", kind.response_details());
                (self.at(*when), Some(Cow::Borrowed(kind.response_details())))
            }
            Some((when, AttemptEnd::GivenUp)) => {
                attributes.add("mesh.given_up", true);
                (self.at(*when), None)
            }
            None if *number == self.notes.winner => {
                self.outcome(&mut attributes);
                (self.now.1, self.error())
            }
            None => {
                attributes.add("mesh.given_up", true);
                (self.now.1, None)
            }
        };
        Span {
            context: self.notes.begun.context.step(*span_id),
            parent: Some(self.notes.begun.context.span_id),
            is_parent_remote: false,
            name: format!("Attempt.{}", self.name()),
            kind: SpanKind::Client,
            started: self.at(*started),
            ended,
            attributes: attributes.0,
            error,
        }
    }

    /// The method of a gRPC call, or Istio's name for requests to a service: that of its host, and no path, of which there may be
    /// as many as there are requests.
    fn name(&self) -> String {
        let info = self.info;
        if info.is_grpc {
            return self.path().trim_start_matches('/').to_owned();
        }
        let (host, port) = self.server();
        let port = port.unwrap_or(80);
        match (info.service(), host) {
            (Some(service), _) => format!("{}:{port}/*", service.host),
            // Whoever asks a server may name any host.
            (None, Some(host)) if !self.is_server() => format!("{host}:{port}/*"),
            (None, _) => info.method().map_or("HTTP", |method| method.as_str()).to_owned(),
        }
    }

    /// The path without its query, and no longer than wanted.
    fn path(&self) -> &str {
        let path = self.info.head().map_or("", |head| &head.path);
        shortened(path.split('?').next().unwrap_or_default(), self.notes.tracing.max_path_length)
    }

    /// The host and port that were asked for.
    fn server(&self) -> (Option<&str>, Option<u16>) {
        match split_authority(self.info.authority()) {
            Some((host, port)) => (Some(host), port.and_then(|port| port.parse().ok())),
            None => (None, None),
        }
    }

    fn header(&self, name: &HeaderName) -> Option<String> {
        let value = self.info.head()?.request.get(name)?;
        Some(shortened(&String::from_utf8_lossy(value.as_bytes()), LONGEST).to_owned())
    }

    fn method(&self, attributes: &mut Attributes) {
        let info = self.info;
        if info.is_grpc {
            attributes.add("rpc.system", "grpc");
            if let Some((service, method)) = self.path().trim_start_matches('/').split_once('/') {
                attributes.add("rpc.service", service.to_owned());
                attributes.add("rpc.method", method.to_owned());
            }
        }
        attributes.some("http.request.method", info.method().map(|method| method.as_str().to_owned()));
        let (host, port) = self.server();
        attributes.some("server.address", host.map(ToOwned::to_owned));
        attributes.some("server.port", port.map(u64::from));
    }

    /// What was asked for.
    fn request(&self, attributes: &mut Attributes) {
        let info = self.info;
        self.method(attributes);
        attributes.add("url.scheme", "http");
        attributes.add("url.path", self.path().to_owned());
        attributes.add("http.url", format!("http://{}{}", info.authority(), self.path()));
        attributes.some("http.method", info.method().map(|method| method.as_str().to_owned()));
        let version = info.head().map_or(Version::HTTP_11, |head| head.version);
        let protocol = protocol(version);
        attributes.add("network.protocol.version", protocol.trim_start_matches("HTTP/"));
        attributes.add("http.protocol", protocol);
        let agent = self.header(&http::header::USER_AGENT);
        attributes.some("user_agent.original", agent.clone());
        attributes.some("user_agent", agent);
        let id = info.inherited.trace.request_id().map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
        let id = id.or_else(|| self.header(&REQUEST_ID));
        attributes.some("guid:x-request-id", id.map(|id| shortened(&id, LONGEST).to_owned()));
        if let Some(peer) = info.peer() {
            attributes.add("peer.address", peer.ip().to_string());
            attributes.add("client.address", peer.ip().to_string());
        }
        let source = info.source();
        attributes
            .some("peer.identity", source.and_then(|peer| peer.principal.as_ref()).map(|id| id.as_str().to_owned()));
        attributes.some("http.route", info.route().filter(|route| !route.is_empty()).map(ToOwned::to_owned));
        attributes.some("upstream_cluster", info.cluster().map(|cluster| cluster.as_str().to_owned()));
    }

    /// What became of it.
    fn outcome(&self, attributes: &mut Attributes) {
        let info = self.info;
        let code = info.response_code();
        attributes.add("http.status_code", code.to_string());
        if code != 0 {
            attributes.add("http.response.status_code", u64::from(code));
        }
        if let Some(code) = info.grpc_response_status() {
            attributes.add("grpc.status_code", code.to_string());
            attributes.add("rpc.grpc.status_code", u64::from(code));
        }
        attributes.add("response_flags", info.response_flags().to_string());
        attributes.add("request_size", info.request_bytes().to_string());
        attributes.add("response_size", info.response_bytes().to_string());
        if let Some(error) = self.error() {
            attributes.add("error", "true");
            attributes.add("error.type", SpanValue::Text(error));
        }
    }

    /// Whether it failed: for a server, not where the client is to blame (OpenTelemetry).
    fn error(&self) -> Option<Cow<'static, str>> {
        let info = self.info;
        if let Some(error) = info.error() {
            return Some(Cow::Borrowed(error.response_details()));
        }
        if let Some(code) = info.grpc_response_status() {
            // Of those, a server's own: unknown, deadline exceeded, unimplemented, internal, unavailable, data loss.
            let is_error = if self.is_server() { matches!(code, 2 | 4 | 12 | 13 | 14 | 15) } else { code != 0 };
            return is_error.then(|| Cow::Owned(code.to_string()));
        }
        let code = info.response_code();
        let is_error = if self.is_server() { code >= 500 } else { code >= 400 };
        is_error.then(|| Cow::Owned(code.to_string()))
    }

    /// Who this process is, in Istio's words.
    fn identity(&self, attributes: &mut Attributes, own: &Workload) {
        let text = |name: &Option<Arc<str>>| name.as_deref().map(ToOwned::to_owned);
        attributes.add("component", "proxy");
        attributes.some("node_id", text(&own.node));
        attributes.add("istio.canonical_service", text(&own.canonical_name).unwrap_or_else(|| "unknown".to_owned()));
        let revision = text(&own.canonical_revision).unwrap_or_else(|| "latest".to_owned());
        attributes.add("istio.canonical_revision", revision);
        attributes.some("istio.namespace", text(&own.namespace));
        attributes.some("istio.cluster_id", text(&own.cluster));
    }

    /// What the configuration wants besides.
    fn custom(&self, attributes: &mut Vec<(Cow<'static, str>, SpanValue)>) {
        for tag in &self.notes.tracing.custom_tags {
            let (value, default) = match &tag.value {
                TagValue::Text(text) => (Some(text.to_string()), &None),
                TagValue::Environment { name, default } => (variable(name), default),
                TagValue::Header { name, default } => (self.header(name), default),
            };
            if let Some(value) = value.or_else(|| default.as_deref().map(ToOwned::to_owned)) {
                attributes.push((Cow::Owned(tag.name.to_string()), value.into()));
            }
        }
    }
}

/// A name that no variable can have is that of none.
#[expect(clippy::disallowed_methods, reason = "the settings want a variable of the environment as a tag")]
fn variable(name: &str) -> Option<String> {
    (!name.contains(['=', '\0'])).then(|| std::env::var(name).ok()).flatten()
}

/// Its beginning, of so many bytes at most.
fn shortened(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
