//! What happens to a request on its way: the filters of routes and of backends.

use super::{GatewayDuration, LocalReference, ObjectReference, check_reference, fault};
use crate::config::decode::{At, Decoder, PortNumber, Text, keywords, message};
use crate::config::diagnostic::{Code, Severity, Span, quoted};
use crate::config::istio::names::is_domain;
use crate::config::istio::virtual_service::cors::Doubts;

message! {
    /// A filter of an HTTPRoute.
    pub struct HttpFilter {
        /// Which one it is; the field of that name says more.
        kind: FilterType = "type" required,
        /// Changes to the headers of requests.
        request_header_modifier: Option<HeaderModifier> = "requestHeaderModifier",
        /// Changes to the headers of responses.
        response_header_modifier: Option<HeaderModifier> = "responseHeaderModifier",
        /// A copy for somebody else.
        request_mirror: Option<RequestMirror> = "requestMirror",
        /// The answer is where to go instead.
        request_redirect: Option<RequestRedirect> = "requestRedirect",
        /// Another host or path.
        url_rewrite: Option<UrlRewrite> = "urlRewrite",
        /// Cross-origin rules.
        cors: Option<Cors> = "cors",
        /// Who is asked about a request.
        external_auth: Option<ExternalAuth> = "externalAuth",
        /// Something that Gateway API does not know.
        extension_ref: Option<LocalReference> = "extensionRef",
    }
    /// A filter of a GRPCRoute.
    pub struct GrpcFilter {
        /// Which one it is; the field of that name says more.
        kind: GrpcFilterType = "type" required,
        /// Changes to the headers of requests.
        request_header_modifier: Option<HeaderModifier> = "requestHeaderModifier",
        /// Changes to the headers of responses.
        response_header_modifier: Option<HeaderModifier> = "responseHeaderModifier",
        /// A copy for somebody else.
        request_mirror: Option<RequestMirror> = "requestMirror",
        /// Something that Gateway API does not know.
        extension_ref: Option<LocalReference> = "extensionRef",
    }
    /// Changes to headers.
    pub struct HeaderModifier {
        /// Replace.
        set: Vec<Header> = "set",
        /// Append.
        add: Vec<Header> = "add",
        /// Remove.
        remove: Vec<Text> = "remove",
    }
    /// A header.
    pub struct Header {
        /// Its name.
        name: Text = "name" required,
        /// Its value, as it is.
        value: Text = "value" required,
    }
    /// A copy of the requests.
    pub struct RequestMirror {
        /// Where to.
        backend_ref: ObjectReference = "backendRef" required,
        /// How many in a hundred.
        percent: Option<At<i32>> = "percent",
        /// How many.
        fraction: Option<Fraction> = "fraction",
    }
    /// A share.
    pub struct Fraction {
        /// So many.
        numerator: i32 = "numerator" required,
        /// Of so many; 100 where nothing is written.
        denominator: Option<i32> = "denominator",
    }
    /// A redirect.
    pub struct RequestRedirect {
        /// The new scheme.
        scheme: Option<RedirectScheme> = "scheme",
        /// The new host.
        hostname: Option<Text> = "hostname",
        /// The new path.
        path: Option<PathModifier> = "path",
        /// The new port.
        port: Option<PortNumber> = "port",
        /// The status; 302 where nothing is written.
        status_code: Option<At<u32>> = "statusCode",
    }
    /// A rewrite.
    pub struct UrlRewrite {
        /// The new host.
        hostname: Option<Text> = "hostname",
        /// The new path.
        path: Option<PathModifier> = "path",
    }
    /// Another path.
    pub struct PathModifier {
        /// All of it, or what the condition matched.
        kind: PathModifierType = "type" required,
        /// The path.
        replace_full_path: Option<Text> = "replaceFullPath",
        /// What takes the place of the prefix.
        replace_prefix_match: Option<Text> = "replacePrefixMatch",
    }
    /// Cross-origin rules.
    pub struct Cors {
        /// Origins.
        allow_origins: Vec<Text> = "allowOrigins",
        /// Whether credentials may travel.
        allow_credentials: Option<bool> = "allowCredentials",
        /// Methods.
        allow_methods: Vec<CorsMethod> = "allowMethods",
        /// Request headers.
        allow_headers: Vec<String> = "allowHeaders",
        /// Response headers that the page may read.
        expose_headers: Vec<String> = "exposeHeaders",
        /// How many seconds a browser may remember.
        max_age: Option<u32> = "maxAge",
    }
    /// Who is asked about a request.
    pub struct ExternalAuth {
        /// How.
        protocol: AuthProtocol = "protocol" required,
        /// Who.
        backend_ref: ObjectReference = "backendRef" required,
        /// What is told over gRPC.
        grpc: Option<GrpcAuth> = "grpc",
        /// What is told over HTTP.
        http: Option<HttpAuth> = "http",
        /// How much of a body is told.
        forward_body: Option<ForwardBody> = "forwardBody",
    }
    /// What is told over gRPC.
    pub struct GrpcAuth {
        /// Headers of the request.
        allowed_headers: Vec<String> = "allowedHeaders",
    }
    /// What is told over HTTP.
    pub struct HttpAuth {
        /// In front of the path.
        path: Option<String> = "path",
        /// Headers of the request.
        allowed_headers: Vec<String> = "allowedHeaders",
        /// Headers of the answer that go on.
        allowed_response_headers: Vec<String> = "allowedResponseHeaders",
    }
    /// How much of a body is told.
    pub struct ForwardBody {
        /// So many bytes.
        max_size: Option<u32> = "maxSize",
    }
    /// Limits on the time of a request.
    pub struct Timeouts {
        /// For all of it.
        request: Option<GatewayDuration> = "request",
        /// For each try.
        backend_request: Option<GatewayDuration> = "backendRequest",
    }
    /// When to try again.
    pub struct Retry {
        /// HTTP statuses that are tried again.
        codes: Vec<At<u32>> = "codes",
        /// Retries after the first try.
        attempts: Option<At<i32>> = "attempts",
        /// The least pause.
        backoff: Option<GatewayDuration> = "backoff",
    }
}

keywords! {
    /// The filters of an HTTPRoute.
    pub enum FilterType {
        /// Changes to the headers of requests.
        RequestHeaderModifier = "RequestHeaderModifier",
        /// Changes to the headers of responses.
        ResponseHeaderModifier = "ResponseHeaderModifier",
        /// A copy for somebody else.
        RequestMirror = "RequestMirror",
        /// The answer is where to go instead.
        RequestRedirect = "RequestRedirect",
        /// Another host or path.
        UrlRewrite = "URLRewrite",
        /// Cross-origin rules.
        Cors = "CORS",
        /// Who is asked about a request.
        ExternalAuth = "ExternalAuth",
        /// Something that Gateway API does not know.
        ExtensionRef = "ExtensionRef",
    }
    /// The filters of a GRPCRoute.
    pub enum GrpcFilterType {
        /// Changes to the headers of requests.
        RequestHeaderModifier = "RequestHeaderModifier",
        /// Changes to the headers of responses.
        ResponseHeaderModifier = "ResponseHeaderModifier",
        /// A copy for somebody else.
        RequestMirror = "RequestMirror",
        /// Something that Gateway API does not know.
        ExtensionRef = "ExtensionRef",
    }
    /// A method that pages may use.
    pub enum CorsMethod {
        /// Any.
        Any = "*",
        /// GET.
        Get = "GET",
        /// HEAD.
        Head = "HEAD",
        /// POST.
        Post = "POST",
        /// PUT.
        Put = "PUT",
        /// DELETE.
        Delete = "DELETE",
        /// CONNECT.
        Connect = "CONNECT",
        /// OPTIONS.
        Options = "OPTIONS",
        /// TRACE.
        Trace = "TRACE",
        /// PATCH.
        Patch = "PATCH",
    }
    /// The scheme of a redirect.
    pub enum RedirectScheme {
        /// In plaintext.
        Http = "http",
        /// Over TLS.
        Https = "https",
    }
    /// How a path changes.
    pub enum PathModifierType {
        /// All of it.
        ReplaceFullPath = "ReplaceFullPath",
        /// What the condition matched.
        ReplacePrefixMatch = "ReplacePrefixMatch",
    }
    /// How somebody is asked.
    pub enum AuthProtocol {
        /// Over HTTP.
        Http = "HTTP",
        /// Over gRPC.
        Grpc = "GRPC",
    }
}

impl CorsMethod {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            CorsMethod::Any => "*",
            CorsMethod::Get => "GET",
            CorsMethod::Head => "HEAD",
            CorsMethod::Post => "POST",
            CorsMethod::Put => "PUT",
            CorsMethod::Delete => "DELETE",
            CorsMethod::Connect => "CONNECT",
            CorsMethod::Options => "OPTIONS",
            CorsMethod::Trace => "TRACE",
            CorsMethod::Patch => "PATCH",
        }
    }
}

impl RedirectScheme {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            RedirectScheme::Http => "http",
            RedirectScheme::Https => "https",
        }
    }
}

impl GrpcFilter {
    /// The same as a filter of an HTTPRoute.
    pub fn of_http(&self) -> HttpFilter {
        HttpFilter {
            span: self.span,
            kind: match self.kind {
                GrpcFilterType::RequestHeaderModifier => FilterType::RequestHeaderModifier,
                GrpcFilterType::ResponseHeaderModifier => FilterType::ResponseHeaderModifier,
                GrpcFilterType::RequestMirror => FilterType::RequestMirror,
                GrpcFilterType::ExtensionRef => FilterType::ExtensionRef,
            },
            request_header_modifier: self.request_header_modifier.clone(),
            response_header_modifier: self.response_header_modifier.clone(),
            request_mirror: self.request_mirror.clone(),
            extension_ref: self.extension_ref.clone(),
            ..HttpFilter::default()
        }
    }
}

impl HttpFilter {
    fn check(&self, path: &str, d: &mut Decoder<'_>) {
        let said = [
            (FilterType::RequestHeaderModifier, "requestHeaderModifier", self.request_header_modifier.is_some()),
            (FilterType::ResponseHeaderModifier, "responseHeaderModifier", self.response_header_modifier.is_some()),
            (FilterType::RequestMirror, "requestMirror", self.request_mirror.is_some()),
            (FilterType::RequestRedirect, "requestRedirect", self.request_redirect.is_some()),
            (FilterType::UrlRewrite, "urlRewrite", self.url_rewrite.is_some()),
            (FilterType::Cors, "cors", self.cors.is_some()),
            (FilterType::ExternalAuth, "externalAuth", self.external_auth.is_some()),
            (FilterType::ExtensionRef, "extensionRef", self.extension_ref.is_some()),
        ];
        for (kind, field, is_there) in said {
            match (kind == self.kind, is_there) {
                (true, false) => {
                    let message = format!("the filter of this type needs `{field}`");
                    d.report_at(self.span, path, Severity::Error, Code::MissingField, message);
                }
                (false, true) => fault(d, self.span, format!("{path}.{field}"), "it is for a filter of another type"),
                _ => {}
            }
        }
        let modifiers = [
            ("requestHeaderModifier", &self.request_header_modifier),
            ("responseHeaderModifier", &self.response_header_modifier),
        ];
        for (field, modifier) in modifiers {
            if let Some(modifier) = modifier {
                modifier.check(&format!("{path}.{field}"), d);
            }
        }
        if let Some(mirror) = &self.request_mirror {
            mirror.check(&format!("{path}.requestMirror"), d);
        }
        if let Some(redirect) = &self.request_redirect {
            redirect.check(&format!("{path}.requestRedirect"), d);
        }
        if let Some(rewrite) = &self.url_rewrite {
            let path = format!("{path}.urlRewrite");
            check_hostname(&rewrite.hostname, &path, d);
            if let Some(modifier) = &rewrite.path {
                modifier.check(&format!("{path}.path"), d);
            }
        }
        if let Some(cors) = &self.cors {
            cors.check(&format!("{path}.cors"), d);
        }
        if let Some(auth) = &self.external_auth {
            check_reference(&auth.backend_ref, &format!("{path}.externalAuth.backendRef"), d);
        }
    }

    /// The new path, where it changes one, and its field.
    pub fn path_modifier(&self) -> Option<(&'static str, &PathModifier)> {
        let of_redirect = self.request_redirect.as_ref().and_then(|redirect| redirect.path.as_ref());
        let of_rewrite = self.url_rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref());
        let redirect = of_redirect.map(|path| ("requestRedirect.path", path));
        redirect.or_else(|| of_rewrite.map(|path| ("urlRewrite.path", path)))
    }
}

/// Checks the filters of a rule or of a backend.
pub(super) fn check_filters(filters: &[HttpFilter], path: &str, d: &mut Decoder<'_>) {
    for (index, filter) in filters.iter().enumerate() {
        let path = format!("{path}.filters[{index}]");
        filter.check(&path, d);
        let may_repeat = matches!(filter.kind, FilterType::RequestMirror | FilterType::ExtensionRef);
        if !may_repeat && filters.iter().take(index).any(|earlier| earlier.kind == filter.kind) {
            fault(d, filter.span, path, "a filter of this type stands there once at most");
        }
    }
    let find = |kind| filters.iter().find(|filter| filter.kind == kind);
    if let (Some(filter), Some(_)) = (find(FilterType::RequestRedirect), find(FilterType::UrlRewrite)) {
        fault(d, filter.span, format!("{path}.filters"), "a redirect and a rewrite exclude each other");
    }
}

fn check_hostname(hostname: &Option<Text>, path: &str, d: &mut Decoder<'_>) {
    if let Some(host) = hostname.as_ref().filter(|host| !is_domain(host) || host.parse::<std::net::IpAddr>().is_ok()) {
        fault(d, host.span, format!("{path}.hostname"), format!("{} is not the name of a host", quoted(host)));
    }
}

impl HeaderModifier {
    fn check(&self, path: &str, d: &mut Decoder<'_>) {
        let names = |field: &'static str, headers: &[Header]| {
            headers.iter().enumerate().map(|(index, header)| (field, index, header.name.clone())).collect::<Vec<_>>()
        };
        let removed = self.remove.iter().enumerate().map(|(index, name)| ("remove", index, name.clone()));
        let all = names("set", &self.set).into_iter().chain(names("add", &self.add)).chain(removed);
        for (field, index, name) in all {
            if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
                let message = format!("{} is not the name of a header", quoted(&name));
                fault(d, name.span, format!("{path}.{field}[{index}]"), message);
            }
        }
        for (field, headers) in [("set", &self.set), ("add", &self.add)] {
            for (index, header) in headers.iter().enumerate() {
                if http::HeaderValue::from_str(&header.value).is_err() {
                    let message = format!("{} is not the value of a header", quoted(&header.value));
                    fault(d, header.value.span, format!("{path}.{field}[{index}].value"), message);
                }
                let mut earlier = headers.iter().take(index);
                if earlier.any(|other| other.name.eq_ignore_ascii_case(&header.name)) {
                    let message = "without effect: of headers with the same name, the first one counts";
                    let path = format!("{path}.{field}[{index}]");
                    d.report_at(header.span, path, Severity::Warning, Code::Ignored, message);
                }
            }
        }
    }
}

impl RequestMirror {
    fn check(&self, path: &str, d: &mut Decoder<'_>) {
        check_reference(&self.backend_ref, &format!("{path}.backendRef"), d);
        if let Some(percent) = self.percent.as_ref().filter(|percent| !(0..=100).contains(&percent.value)) {
            fault(d, percent.span, format!("{path}.percent"), "not between 0 and 100");
        }
        let Some(fraction) = &self.fraction else { return };
        let denominator = fraction.denominator.unwrap_or(100);
        if self.percent.is_some() {
            fault(d, fraction.span, format!("{path}.fraction"), "only one of `percent` and `fraction` can be set");
        }
        if denominator < 1 || !(0..=denominator).contains(&fraction.numerator) {
            let message = "a share is between 0 and 1, and its denominator at least 1";
            fault(d, fraction.span, format!("{path}.fraction"), message);
        }
    }

    /// Of how many requests in a million.
    pub fn millionths(&self) -> u32 {
        let (share, of) = match (&self.percent, &self.fraction) {
            (Some(percent), _) => (i64::from(percent.value), 100),
            (None, Some(fraction)) => (i64::from(fraction.numerator), i64::from(fraction.denominator.unwrap_or(100))),
            (None, None) => (1, 1),
        };
        let millionths = (share * 1_000_000).checked_div(of).unwrap_or(0);
        u32::try_from(millionths.clamp(0, 1_000_000)).unwrap_or(0)
    }
}

impl RequestRedirect {
    fn check(&self, path: &str, d: &mut Decoder<'_>) {
        check_hostname(&self.hostname, path, d);
        if let Some(code) = self.status_code.as_ref().filter(|code| ![301, 302, 303, 307, 308].contains(&code.value)) {
            let message = format!("{} is none of 301, 302, 303, 307 and 308", code.value);
            fault(d, code.span, format!("{path}.statusCode"), message);
        }
        if let Some(modifier) = &self.path {
            modifier.check(&format!("{path}.path"), d);
        }
    }
}

impl PathModifier {
    fn check(&self, path: &str, d: &mut Decoder<'_>) {
        let (own, other) = match self.kind {
            PathModifierType::ReplaceFullPath => {
                (("replaceFullPath", &self.replace_full_path), ("replacePrefixMatch", &self.replace_prefix_match))
            }
            PathModifierType::ReplacePrefixMatch => {
                (("replacePrefixMatch", &self.replace_prefix_match), ("replaceFullPath", &self.replace_full_path))
            }
        };
        let mut say = |span: Span, field: &str, message: String| fault(d, span, format!("{path}.{field}"), message);
        match own.1 {
            None => say(self.span, own.0, "this type needs it".to_owned()),
            Some(text) if text.contains(['?', '#']) => {
                say(text.span, own.0, format!("{} is more than a path", quoted(text)));
            }
            Some(text) if !text.is_empty() && !text.starts_with('/') => {
                say(text.span, own.0, format!("{} is not a path: it begins with /", quoted(text)));
            }
            Some(_) => {}
        }
        if other.1.is_some() {
            say(self.span, other.0, "it is for another type".to_owned());
        }
    }
}

impl Cors {
    fn check(&self, path: &str, d: &mut Decoder<'_>) {
        for (index, origin) in self.allow_origins.iter().enumerate() {
            let host = origin.split_once("://").map(|(scheme, rest)| (scheme, rest.strip_prefix("*.").unwrap_or(rest)));
            let is_host = |host: &str| !host.is_empty() && !host.contains(['/', '*', ' ']);
            let is_origin = host.is_some_and(|(scheme, host)| matches!(scheme, "http" | "https") && is_host(host));
            if origin.value != "*" && !is_origin {
                let message = format!("{} is no origin such as https://a.example or https://*.example", quoted(origin));
                fault(d, origin.span, format!("{path}.allowOrigins[{index}]"), message);
            }
        }
        for (field, names) in [("allowHeaders", &self.allow_headers), ("exposeHeaders", &self.expose_headers)] {
            for (index, name) in names.iter().enumerate() {
                if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
                    let message = format!("{} is not the name of a header", quoted(name));
                    fault(d, self.span, format!("{path}.{field}[{index}]"), message);
                }
            }
        }
        if self.max_age == Some(0) {
            fault(d, self.span, format!("{path}.maxAge"), "less than 1");
        }
        let doubts = Doubts {
            allows_none: self.allow_origins.is_empty(),
            allows_any: self.allow_origins.iter().any(|origin| origin.value == "*"),
            with_credentials: self.allow_credentials == Some(true),
            lists: [
                ("allowMethods", self.allow_methods.contains(&CorsMethod::Any)),
                ("allowHeaders", self.allow_headers.iter().any(|name| name == "*")),
                ("exposeHeaders", self.expose_headers.iter().any(|name| name == "*")),
            ],
        };
        for (field, code, message) in doubts.all() {
            d.report_at(self.span, format!("{path}.{field}"), Severity::Warning, code, message);
        }
    }
}

impl Timeouts {
    pub(super) fn check(&self, path: &str, d: &mut Decoder<'_>) {
        if let (Some(request), Some(backend)) = (&self.request, &self.backend_request)
            && !request.0.is_zero()
            && backend.0 > request.0
        {
            fault(d, self.span, format!("{path}.backendRequest"), "a try cannot last longer than the request");
        }
    }
}

impl Retry {
    pub(super) fn check(&self, path: &str, d: &mut Decoder<'_>) {
        for (index, code) in self.codes.iter().enumerate() {
            if !(400..=599).contains(&code.value) {
                let message = format!("{} is not between 400 and 599", code.value);
                fault(d, code.span, format!("{path}.codes[{index}]"), message);
            }
        }
        if let Some(attempts) = self.attempts.as_ref().filter(|attempts| attempts.value < 0) {
            fault(d, attempts.span, format!("{path}.attempts"), "less than 0");
        }
    }
}
