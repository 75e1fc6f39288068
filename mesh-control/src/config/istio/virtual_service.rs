//! `VirtualService` (networking.istio.io): which requests go where, and what happens to them on the way.

mod actions;
mod connections;
pub mod cors;
mod routes;
mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_core::model::{HeaderTarget, HeaderText};

use super::names::{host_fault, is_label};
use super::string_match::StringMatch;
use super::{PortSelector, check_export};
use crate::config::decode::{At, Decode, Decoder, Opaque, PortNumber, Text, keywords, message};
use crate::config::diagnostic::{Code, Severity, quoted};
use crate::config::node::Node;
use crate::config::schema::{Field, Schema};

pub use connections::Subnet;
pub use routes::{AnyMatch, AnyRoute};
pub use words::{decode_base64, grpc_status_code};

/// The word that stands for every workload among the gateways of a VirtualService.
pub const MESH: &str = "mesh";

message! {
    /// The specification.
    pub struct VirtualService {
        /// Authorities that the rules are for; short names belong to the object's namespace.
        hosts: Vec<Text> = "hosts",
        /// Gateways, and `mesh` for every workload; empty means `mesh`.
        gateways: Vec<Text> = "gateways",
        /// HTTP rules, the first match wins.
        http: Vec<HttpRoute> = "http",
        /// Rules on SNI.
        tls: Vec<TlsRoute> = "tls",
        /// Rules on connections.
        tcp: Vec<TcpRoute> = "tcp",
        /// Namespaces that see it; empty means all.
        export_to: Vec<Text> = "exportTo",
    }
    /// One HTTP rule.
    pub struct HttpRoute {
        /// A name for logs and statistics.
        name: String = "name",
        /// Conditions of which one must hold; none means always.
        matches: Vec<HttpMatch> = "match",
        /// Where to.
        route: Vec<HttpDestination> = "route",
        /// Answer with a redirect.
        redirect: Option<Redirect> = "redirect",
        /// Answer at once.
        direct_response: Option<DirectResponse> = "directResponse",
        /// Continue with the rules of another object.
        delegate: Option<Delegate> = "delegate",
        /// Change path and authority.
        rewrite: Option<Rewrite> = "rewrite",
        /// For the whole request, retries included; absent means none.
        timeout: Option<Duration> = "timeout",
        /// When to try again.
        retries: Option<Retry> = "retries",
        /// Faults to inject.
        fault: Option<Fault> = "fault",
        /// A copy of the requests goes there.
        mirror: Option<Destination> = "mirror",
        /// Copies of the requests go there.
        mirrors: Vec<Mirror> = "mirrors",
        /// Deprecated form of `mirrorPercentage`.
        mirror_percent: Option<u32> = "mirrorPercent" | "mirror_percent",
        /// How many are copied.
        mirror_percentage: Option<Percent> = "mirrorPercentage",
        /// Cross-origin rules.
        cors_policy: Option<CorsPolicy> = "corsPolicy",
        /// Changes to headers.
        headers: Headers = "headers",
    }
    /// Conditions that must all hold.
    pub struct HttpMatch {
        /// A name, appended to the rule's.
        name: String = "name",
        /// The path.
        uri: Option<StringMatch> = "uri",
        /// The scheme.
        scheme: Option<StringMatch> = "scheme",
        /// The method.
        method: Option<StringMatch> = "method",
        /// The authority.
        authority: Option<StringMatch> = "authority",
        /// Headers that must match; `{}` asks for presence.
        headers: BTreeMap<String, StringMatch> = "headers",
        /// The port that is being addressed.
        port: Option<PortNumber> = "port",
        /// Labels that the client must have.
        source_labels: BTreeMap<String, String> = "sourceLabels",
        /// Overrides the object's `gateways`.
        gateways: Vec<Text> = "gateways",
        /// Query parameters that must match.
        query_params: BTreeMap<String, StringMatch> = "queryParams",
        /// Compare exact paths and prefixes without case.
        ignore_uri_case: bool = "ignoreUriCase",
        /// Headers that must not match.
        without_headers: BTreeMap<String, StringMatch> = "withoutHeaders",
        /// The namespace that the client must be in.
        source_namespace: String = "sourceNamespace",
        /// A prefix for statistics.
        stat_prefix: String = "statPrefix",
    }
    /// A destination with its share.
    pub struct HttpDestination {
        /// Where to.
        destination: Destination = "destination" required,
        /// Share of the requests, relative to the sum.
        weight: Option<At<i32>> = "weight",
        /// Changes to headers on the way to this destination.
        headers: Headers = "headers",
    }
    /// A service, a part of it, and a port.
    pub struct Destination {
        /// The service; short names belong to the object's namespace.
        host: Text = "host" required,
        /// A subset that a DestinationRule defines.
        subset: Option<Text> = "subset",
        /// The port; needed only where the service has several.
        port: Option<PortSelector> = "port",
    }
    /// The answer is a redirect.
    pub struct Redirect {
        /// The new path.
        uri: Option<String> = "uri",
        /// The new authority.
        authority: Option<String> = "authority",
        /// The new port.
        port: Option<PortNumber> = "port",
        /// How to derive the new port.
        derive_port: Option<DerivePort> = "derivePort",
        /// The new scheme.
        scheme: Option<String> = "scheme",
        /// 301 (the default), 302, 303, 307 or 308.
        redirect_code: Option<At<u32>> = "redirectCode",
        /// Replaces the matched prefix.
        prefix_rewrite: Option<String> = "prefixRewrite",
    }
    /// The answer is given at once.
    pub struct DirectResponse {
        /// The HTTP status.
        status: At<u32> = "status" required,
        /// The body.
        body: Option<ResponseBody> = "body",
    }
    /// A body: text, or bytes in base64.
    pub struct ResponseBody {
        /// Text.
        string: Option<String> = "string",
        /// Bytes in base64.
        bytes: Option<String> = "bytes",
    }
    /// Another object whose rules continue this one.
    pub struct Delegate {
        /// Its name.
        name: Text = "name" required,
        /// Its namespace; absent means this one's.
        namespace: String = "namespace",
    }
    /// Changes to path and authority before the request leaves.
    pub struct Rewrite {
        /// Replaces the matched prefix, or the path.
        uri: Option<String> = "uri",
        /// Replaces the authority.
        authority: Option<String> = "authority",
        /// Replaces what an expression matches.
        uri_regex_rewrite: Option<RegexRewrite> = "uriRegexRewrite",
    }
    /// An expression and what replaces it.
    pub struct RegexRewrite {
        /// RE2.
        matches: String = "match" required,
        /// The replacement, with `\1` for groups.
        rewrite: String = "rewrite",
    }
    /// When to try again.
    pub struct Retry {
        /// Retries after the first try; 0 or less turns them off.
        attempts: i32 = "attempts",
        /// The limit of each try.
        per_try_timeout: Option<Duration> = "perTryTimeout",
        /// Comma-separated conditions.
        retry_on: Option<String> = "retryOn",
        /// May a retry go to another locality.
        retry_remote_localities: Option<bool> = "retryRemoteLocalities",
        /// Must a retry avoid the hosts tried before; on by default.
        retry_ignore_previous_hosts: Option<bool> = "retryIgnorePreviousHosts",
        /// The first pause; 25 ms by default.
        backoff: Option<Duration> = "backoff",
    }
    /// Faults to inject.
    pub struct Fault {
        /// Wait before sending.
        delay: Option<FaultDelay> = "delay",
        /// Answer with an error instead of sending.
        abort: Option<FaultAbort> = "abort",
    }
    /// A pause.
    pub struct FaultDelay {
        /// Deprecated: whole percents.
        percent: Option<i32> = "percent",
        /// How long.
        fixed_delay: Option<Duration> = "fixedDelay",
        /// Istio has the field and does not implement it.
        exponential_delay: Option<Duration> = "exponentialDelay",
        /// How many requests; none if absent.
        percentage: Option<Percent> = "percentage",
    }
    /// An error.
    pub struct FaultAbort {
        /// An HTTP status.
        http_status: Option<At<u32>> = "httpStatus",
        /// A gRPC status by name or number.
        grpc_status: Option<Text> = "grpcStatus",
        /// Istio has the field and does not implement it.
        http2_error: Option<Opaque> = "http2Error",
        /// How many requests; none if absent.
        percentage: Option<Percent> = "percentage",
        /// Deprecated: whole percents.
        percent: Option<i32> = "percent",
    }
    /// A copy of the requests.
    pub struct Mirror {
        /// Where to.
        destination: Destination = "destination" required,
        /// How many.
        percentage: Option<Percent> = "percentage",
    }
    /// Cross-origin rules.
    pub struct CorsPolicy {
        /// Deprecated: exact origins.
        allow_origin: Vec<String> = "allowOrigin",
        /// Origins.
        allow_origins: Vec<StringMatch> = "allowOrigins",
        /// Methods.
        allow_methods: Vec<String> = "allowMethods",
        /// Request headers.
        allow_headers: Vec<String> = "allowHeaders",
        /// Response headers that the page may read.
        expose_headers: Vec<String> = "exposeHeaders",
        /// How long a browser may remember.
        max_age: Option<Duration> = "maxAge",
        /// Whether credentials may travel.
        allow_credentials: Option<bool> = "allowCredentials",
        /// What happens to other preflight requests.
        unmatched_preflights: Option<UnmatchedPreflights> = "unmatchedPreflights",
    }
    /// Changes to headers.
    pub struct Headers {
        /// Of the request.
        request: HeaderOperations = "request",
        /// Of the response.
        response: HeaderOperations = "response",
    }
    /// Changes to one set of headers, applied in this order: remove, set, add.
    pub struct HeaderOperations {
        /// Replace.
        set: BTreeMap<String, AddedValue> = "set",
        /// Append.
        add: BTreeMap<String, AddedValue> = "add",
        /// Remove.
        remove: Vec<String> = "remove",
    }
    /// A rule on SNI.
    pub struct TlsRoute {
        /// Conditions of which one must hold.
        matches: Vec<TlsMatch> = "match",
        /// Where to.
        route: Vec<RouteDestination> = "route",
    }
    /// Conditions on a TLS connection.
    pub struct TlsMatch {
        /// Server names.
        sni_hosts: Vec<String> = "sniHosts",
        /// Destination addresses.
        destination_subnets: Vec<String> = "destinationSubnets",
        /// The port that is being addressed.
        port: Option<PortNumber> = "port",
        /// Deprecated: client addresses.
        source_subnet: Option<String> = "sourceSubnet",
        /// Labels that the client must have.
        source_labels: BTreeMap<String, String> = "sourceLabels",
        /// Gateways.
        gateways: Vec<String> = "gateways",
        /// The namespace that the client must be in.
        source_namespace: String = "sourceNamespace",
    }
    /// A rule on connections.
    pub struct TcpRoute {
        /// Conditions of which one must hold.
        matches: Vec<TcpMatch> = "match",
        /// Where to.
        route: Vec<RouteDestination> = "route",
    }
    /// Conditions on a connection.
    pub struct TcpMatch {
        /// Destination addresses.
        destination_subnets: Vec<String> = "destinationSubnets",
        /// The port that is being addressed.
        port: Option<PortNumber> = "port",
        /// Deprecated: client addresses.
        source_subnet: Option<String> = "sourceSubnet",
        /// Labels that the client must have.
        source_labels: BTreeMap<String, String> = "sourceLabels",
        /// Gateways.
        gateways: Vec<String> = "gateways",
        /// The namespace that the client must be in.
        source_namespace: String = "sourceNamespace",
    }
    /// A destination of connections with its share.
    pub struct RouteDestination {
        /// Where to.
        destination: Destination = "destination" required,
        /// Share of the connections.
        weight: Option<At<i32>> = "weight",
    }
}

keywords! {
    /// How the port of a redirect is derived.
    pub enum DerivePort {
        /// 80 for http, 443 for https.
        FromProtocolDefault = "FROM_PROTOCOL_DEFAULT",
        /// The request's own.
        FromRequestPort = "FROM_REQUEST_PORT",
    }
    /// What happens to a preflight request that no rule allows.
    pub enum UnmatchedPreflights {
        /// The default.
        Unspecified = "UNSPECIFIED",
        /// It travels on.
        Forward = "FORWARD",
        /// It is answered without permission.
        Ignore = "IGNORE",
    }
}

/// The value of a header: text in which facts of the message may stand (Envoy's `%...%`), as the data plane reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddedValue(pub String);

impl Decode for AddedValue {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let text = String::decode(node, d)?;
        let target = if d.is_inside("response") { HeaderTarget::Response } else { HeaderTarget::Request };
        if let Err(invalid) = HeaderText::parse(text.as_bytes(), target, false) {
            // Istio's own validation counts them. What it takes and the data plane does not makes one route fail.
            let is_paired = text.bytes().filter(|byte| *byte == b'%').count() % 2 == 0;
            let is_taken = is_paired && http::HeaderValue::from_str(&text).is_ok();
            let code = if is_taken { Code::Refused } else { Code::InvalidValue };
            d.error(node.span, code, format!("{}: {}", quoted(&text), invalid.reason));
        }
        Some(AddedValue(text))
    }

    fn schema() -> Schema {
        Schema::Text
    }
}

impl HttpRoute {
    /// Who gets a copy: its field, the destination, and of how many requests in a million. Without a percentage, of all.
    pub fn mirrored(&self) -> impl Iterator<Item = (String, &Destination, u32)> {
        let whole = |percent: u32| percent.min(100) * 10_000;
        let percentage = self.mirror_percentage.map(|percentage| percentage.millionths);
        let share = percentage.or(self.mirror_percent.map(whole)).unwrap_or(1_000_000);
        let one = self.mirror.iter().map(move |to| ("mirror".to_owned(), to, share));
        one.chain(self.mirrors.iter().enumerate().map(|(index, mirror)| {
            let share = mirror.percentage.map_or(1_000_000, |percentage| percentage.millionths);
            (format!("mirrors[{index}].destination"), &mirror.destination, share)
        }))
    }
}

/// A percentage with up to four decimals, as Envoy counts it: parts of a million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Percent {
    /// Parts of a million, at most 1,000,000.
    pub millionths: u32,
}

impl Decode for Percent {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        d.message(node, &["value"])?;
        let value: f64 = d.optional(node, "value")?;
        if !(0.0..=100.0).contains(&value) {
            d.error(node.span, Code::InvalidValue, format!("{value} is not between 0 and 100"));
            return None;
        }
        if value > 0.0 && value < 0.0001 {
            d.error(node.span, Code::InvalidValue, format!("{value} hits nothing: 0.0001 is the least"));
            return None;
        }
        // route.go translatePercentToFractionalPercent: truncated to a ten-thousandth of a percent.
        Some(Percent { millionths: (value * 10_000.0) as u32 })
    }

    fn fields(prefix: &str, out: &mut Vec<String>) {
        out.push(format!("{prefix}.value"));
    }

    fn schema() -> Schema {
        Schema::Object(vec![Field { name: "value", about: "", is_required: false, schema: Schema::Number }])
    }
}

impl VirtualService {
    /// What Istio's own validation refuses.
    pub fn check(&self, d: &mut Decoder<'_>) {
        if self.http.is_empty() && self.tls.is_empty() && self.tcp.is_empty() {
            d.error(self.span, Code::MissingField, "one of `http`, `tls` and `tcp` is needed");
        }
        if self.hosts.is_empty() && !self.gateways.is_empty() {
            let message = "without `hosts` it is a delegate, which is for the gateways of those that delegate to it";
            d.report_at(self.span, "gateways", Severity::Error, Code::InvalidValue, message);
        }
        for (index, host) in self.hosts.iter().enumerate() {
            if let Some(message) = host_fault(host) {
                d.report_at(host.span, format!("hosts[{index}]"), Severity::Error, Code::InvalidValue, message);
            }
            let is_in_mesh = self.gateways.is_empty() || self.gateways.iter().any(|gateway| gateway.value == MESH);
            // As Istio: it would be for every service of every namespace that sees it.
            if host.value == "*" && is_in_mesh {
                let message = "`*` is for gateways; inside of the mesh, hosts are named";
                d.report_at(host.span, format!("hosts[{index}]"), Severity::Error, Code::InvalidValue, message);
            }
        }
        check_export(&self.export_to, false, d);
        for (index, route) in self.http.iter().enumerate() {
            route.check(&format!("http[{index}]"), d);
        }
        connections::check(self, d);
    }
}

impl HttpRoute {
    fn check(&self, path: &str, d: &mut Decoder<'_>) {
        let mut error = |span, field: &str, message: String| {
            let field = if field.is_empty() { path.to_owned() } else { format!("{path}.{field}") };
            d.report_at(span, field, Severity::Error, Code::InvalidValue, message);
        };
        let actions =
            [!self.route.is_empty(), self.redirect.is_some(), self.direct_response.is_some(), self.delegate.is_some()];
        match actions.into_iter().filter(|set| *set).count() {
            0 => error(self.span, "", "one of `route`, `redirect`, `directResponse` and `delegate` is needed".into()),
            1 => {}
            _ => error(
                self.span,
                "",
                "only one of `route`, `redirect`, `directResponse` and `delegate` can be set".into(),
            ),
        }
        for (field, to, _) in self.mirrored() {
            if let Some(message) = host_fault(&to.host) {
                error(to.host.span, &format!("{field}.host"), message);
            }
            if let Some(subset) = to.subset.as_ref().filter(|subset| !(subset.is_empty() || is_label(subset))) {
                let message = format!("{} is not the name of a subset", quoted(subset));
                error(subset.span, &format!("{field}.subset"), message);
            }
        }
        if self.mirror_percent.is_some_and(|percent| percent > 100) {
            error(self.span, "mirrorPercent", "more than 100".into());
        }
        let mut total: i64 = 0;
        for (index, destination) in self.route.iter().enumerate() {
            let to = &destination.destination;
            if let Some(message) = host_fault(&to.host) {
                error(to.host.span, &format!("route[{index}].destination.host"), message);
            }
            if let Some(subset) = to.subset.as_ref().filter(|subset| !(subset.is_empty() || is_label(subset))) {
                let message = format!("{} is not the name of a subset", quoted(subset));
                error(subset.span, &format!("route[{index}].destination.subset"), message);
            }
            let Some(weight) = &destination.weight else {
                continue;
            };
            total += i64::from(weight.value);
            if weight.value < 0 {
                error(weight.span, &format!("route[{index}].weight"), "less than 0".into());
            }
        }
        if total > i64::from(u32::MAX) {
            error(self.span, "route", "the weights add up to more than 4294967295".into());
        }
        if self.route.len() > 1 && self.route.iter().all(|d| d.weight.as_ref().is_none_or(|w| w.value == 0)) {
            error(self.span, "route", "no destination has a weight above 0".into());
        }
        self.check_conditions(path, d);
        actions::check(self, path, d);
        cors::check(self, path, d);
    }

    fn check_conditions(&self, path: &str, d: &mut Decoder<'_>) {
        for (index, condition) in self.matches.iter().enumerate() {
            let path = format!("{path}.match[{index}]");
            let named = |field: &'static str, headers: &BTreeMap<String, StringMatch>| {
                headers.keys().map(|name| (field, name.clone())).collect::<Vec<_>>()
            };
            let without = named("withoutHeaders", &condition.without_headers);
            for (field, name) in named("headers", &condition.headers).iter().chain(&without) {
                let path = format!("{path}.{field}");
                if name.starts_with("@request.auth.") {
                    let message = "not supported yet: claims of a token; the condition never holds";
                    d.report_at(condition.span, path, Severity::Warning, Code::NotSupportedYet, message);
                } else if !is_header_name(name) {
                    let message = format!("{} is not the name of a header", quoted(name));
                    d.report_at(condition.span, path, Severity::Error, Code::InvalidValue, message);
                }
            }
            if condition.query_params.contains_key("") {
                let path = format!("{path}.queryParams");
                d.report_at(condition.span, path, Severity::Error, Code::InvalidValue, "a parameter without a name");
            }
        }
    }
}

/// Whether rules of these gateways are for the mesh: there are none, or `mesh` is one of them.
pub fn is_for_mesh<'a>(gateways: impl IntoIterator<Item = &'a str>) -> bool {
    let mut gateways = gateways.into_iter().peekable();
    gateways.peek().is_none() || gateways.any(|name| name == MESH)
}

/// Whether answers with this status have no body (RFC 9110, 6.4.1).
pub fn has_no_body(status: u32) -> bool {
    matches!(status, 204 | 304)
}

/// Whether an operation on this header is one on the authority (Istio: translateHeadersOperations).
pub fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

fn is_header_name(name: &str) -> bool {
    http::HeaderName::from_bytes(name.as_bytes()).is_ok()
}
