//! What can go wrong, said once: [`MeshError`] for a request, [`Invalid`] for a resource.
//!
//! A `MeshError` answers the three questions of whoever reads it: what kind of failure, whose fault, and
//! whether to try again. Its text reads outward and names the resources on the way:
//! `route default/v2: cluster payments: no healthy endpoint (3 known)`.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, StatusCode};

use crate::response_flags::ResponseFlags;

/// In an answer: a limit of the mesh was in the way, one more request would make it worse, and nothing is wrong with the server
/// (Envoy's).
pub const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// gRPC's names of its status codes, each at the place of its number.
///
/// ```
/// assert_eq!(mesh_core::error::GRPC_STATUSES[14], "UNAVAILABLE");
/// ```
pub const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The ways in which the mesh itself fails a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request cannot be understood: no authority, a malformed one, or an unusable scheme.
    BadRequest,
    /// No configuration is known for the target (yet), or the control plane says that there is none.
    UnknownTarget,
    /// No virtual host or no route matches the request.
    NoRoute,
    /// The route names a cluster that does not exist or cannot be used.
    NoCluster,
    /// The cluster has no endpoint that may be picked.
    NoHealthyEndpoint,
    /// No connection to the endpoint could be made.
    ConnectFailure,
    /// The peer refused the stream without looking at it (HTTP/2 REFUSED_STREAM).
    RefusedStream,
    /// The connection failed after the request was sent.
    ConnectionLost,
    /// The deadline of the request has passed.
    Timeout,
    /// A limit of the mesh was reached.
    Overflow,
    /// A fault filter aborted the request.
    FaultInjected,
    /// On a server: a policy does not let this request in.
    AccessDenied,
    /// On a server: the request's token is missing or no good.
    Unauthenticated,
    /// The configuration asks for TLS that cannot be provided. Never plaintext instead.
    Security,
    /// On a server: the application returned an error instead of a response, or its response's body broke off.
    Application,
    /// A server may not serve here: its configuration says no, or cannot be used.
    NotServing,
    /// A server may not serve here yet: its configuration is not known.
    NotServingYet,
    /// No listener of the mesh is bound, or none at the address in question, or it cannot be told which one, or which of
    /// its filter chains, a request came by.
    NoListener,
    /// The mesh is draining or shut down.
    Draining,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The application that made the request.
    Caller,
    /// The configuration, or its absence.
    Config,
    /// The network or the endpoint.
    Upstream,
    /// The mesh, by design: a limit, a fault, a drain.
    Mesh,
}

/// May the caller try again?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryAdvice {
    /// The request was not processed: safe to send again, whatever its method.
    Safe,
    /// It may have been processed: only where the operation is idempotent.
    IfIdempotent,
    /// It will fail again until something changes.
    Never,
}

impl ErrorKind {
    /// Whose fault it is.
    pub fn origin(self) -> Origin {
        match self {
            ErrorKind::BadRequest | ErrorKind::NoListener | ErrorKind::AccessDenied | ErrorKind::Unauthenticated => {
                Origin::Caller
            }
            ErrorKind::UnknownTarget
            | ErrorKind::NoRoute
            | ErrorKind::NoCluster
            | ErrorKind::Security
            | ErrorKind::NotServing
            | ErrorKind::NotServingYet => Origin::Config,
            ErrorKind::NoHealthyEndpoint
            | ErrorKind::ConnectFailure
            | ErrorKind::RefusedStream
            | ErrorKind::ConnectionLost
            | ErrorKind::Application
            | ErrorKind::Timeout => Origin::Upstream,
            ErrorKind::Overflow | ErrorKind::FaultInjected | ErrorKind::Draining => Origin::Mesh,
        }
    }

    /// May the caller try again?
    pub fn retry(self) -> RetryAdvice {
        match self {
            ErrorKind::ConnectFailure
            | ErrorKind::RefusedStream
            | ErrorKind::NoHealthyEndpoint
            | ErrorKind::Overflow
            | ErrorKind::NotServing
            | ErrorKind::NotServingYet
            | ErrorKind::NoListener
            | ErrorKind::Draining => RetryAdvice::Safe,
            ErrorKind::ConnectionLost | ErrorKind::Application | ErrorKind::Timeout => RetryAdvice::IfIdempotent,
            ErrorKind::BadRequest
            | ErrorKind::AccessDenied
            | ErrorKind::Unauthenticated
            | ErrorKind::UnknownTarget
            | ErrorKind::NoRoute
            | ErrorKind::NoCluster
            | ErrorKind::FaultInjected
            | ErrorKind::Security => RetryAdvice::Never,
        }
    }

    /// The HTTP status of the local reply (Envoy's: 404 NR, 503 UH/UF/UC/UO, 504 UT, 400 DPE).
    pub fn http_status(self) -> StatusCode {
        match self {
            ErrorKind::BadRequest => StatusCode::BAD_REQUEST,
            ErrorKind::AccessDenied => StatusCode::FORBIDDEN,
            ErrorKind::Unauthenticated => StatusCode::UNAUTHORIZED,
            ErrorKind::NoRoute => StatusCode::NOT_FOUND,
            ErrorKind::Application => StatusCode::INTERNAL_SERVER_ERROR,
            ErrorKind::UnknownTarget => StatusCode::BAD_GATEWAY,
            ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The gRPC status code of the local reply. UNAVAILABLE wherever the control plane is the cause
    /// (gRFC A54: it may not surface codes that applications own).
    pub fn grpc_code(self) -> u32 {
        match self {
            ErrorKind::Timeout => 4,          // DEADLINE_EXCEEDED
            ErrorKind::AccessDenied => 7,     // PERMISSION_DENIED
            ErrorKind::Unauthenticated => 16, // UNAUTHENTICATED
            ErrorKind::BadRequest => 13,      // INTERNAL
            _ => 14,                          // UNAVAILABLE
        }
    }

    /// Envoy's response flags, for access logs and metrics.
    pub fn response_flags(self) -> ResponseFlags {
        match self {
            ErrorKind::BadRequest => ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR,
            ErrorKind::UnknownTarget | ErrorKind::NoRoute => ResponseFlags::NO_ROUTE_FOUND,
            ErrorKind::NoCluster => ResponseFlags::NO_CLUSTER_FOUND,
            ErrorKind::NoHealthyEndpoint => ResponseFlags::NO_HEALTHY_UPSTREAM,
            ErrorKind::ConnectFailure | ErrorKind::Security => ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
            ErrorKind::RefusedStream => ResponseFlags::UPSTREAM_REMOTE_RESET,
            ErrorKind::ConnectionLost | ErrorKind::Application => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
            ErrorKind::Timeout => ResponseFlags::UPSTREAM_REQUEST_TIMEOUT,
            ErrorKind::Overflow => ResponseFlags::UPSTREAM_OVERFLOW,
            ErrorKind::FaultInjected => ResponseFlags::FAULT_INJECTED,
            // Envoy has no flag for it, only the response code's details.
            ErrorKind::AccessDenied | ErrorKind::Unauthenticated => ResponseFlags::NONE,
            ErrorKind::NotServing | ErrorKind::NotServingYet | ErrorKind::NoListener | ErrorKind::Draining => {
                ResponseFlags::LOCAL_RESET
            }
        }
    }

    /// Envoy's details of the response code: for each way to fail one word that machines find.
    pub fn response_details(self) -> &'static str {
        match self {
            ErrorKind::BadRequest => "http.invalid_request",
            ErrorKind::UnknownTarget => "route_configuration_not_found",
            ErrorKind::NoRoute => "route_not_found",
            ErrorKind::NoCluster => "cluster_not_found",
            ErrorKind::NoHealthyEndpoint => "no_healthy_upstream",
            ErrorKind::ConnectFailure => "upstream_reset_before_response_started{connection_failure}",
            ErrorKind::Security => "upstream_reset_before_response_started{connection_failure|tls}",
            ErrorKind::RefusedStream => "upstream_reset_before_response_started{remote_refused_stream_reset}",
            ErrorKind::ConnectionLost | ErrorKind::Application => {
                "upstream_reset_before_response_started{connection_termination}"
            }
            ErrorKind::Timeout => "response_timeout",
            ErrorKind::Overflow => "upstream_reset_before_response_started{overflow}",
            ErrorKind::FaultInjected => "fault_filter_abort",
            ErrorKind::AccessDenied => "rbac_access_denied",
            ErrorKind::Unauthenticated => "jwt_authn_access_denied",
            ErrorKind::NotServing => "not_serving",
            ErrorKind::NotServingYet => "not_serving_yet",
            ErrorKind::NoListener => "no_listener",
            ErrorKind::Draining => "draining",
        }
    }
}

/// A request that the mesh failed.
///
/// ```
/// use mesh_core::error::{ErrorKind, MeshError, RetryAdvice};
///
/// let error = MeshError::new(ErrorKind::NoHealthyEndpoint, "cluster payments: no healthy endpoint (3 known)");
/// assert_eq!(error.kind().http_status(), 503);
/// assert_eq!(error.kind().retry(), RetryAdvice::Safe);
/// assert_eq!(error.within("route default").to_string(),
///            "route default: cluster payments: no healthy endpoint (3 known)");
/// ```
#[derive(Clone)]
pub struct MeshError {
    kind: ErrorKind,
    detail: Arc<str>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    response_headers: Option<Arc<HeaderMap>>,
}

impl MeshError {
    /// A failure of this kind; `detail` names what failed, from the outside in.
    pub fn new(kind: ErrorKind, detail: impl Into<Arc<str>>) -> Self {
        MeshError { kind, detail: detail.into(), source: None, response_headers: None }
    }

    /// The same failure with what caused it.
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// The same failure seen from further out. A place that the text names already is not named twice.
    pub fn within(mut self, place: impl fmt::Display) -> Self {
        self.detail = within(place, &self.detail).into();
        self
    }

    /// The same failure, and what did not become of it.
    pub fn followed_by(mut self, what: impl fmt::Display) -> Self {
        self.detail = format!("{}; {what}", self.detail).into();
        self
    }

    /// The same failure, with headers for the answer that is made of it.
    pub fn with_response_headers(mut self, headers: HeaderMap) -> Self {
        self.response_headers = Some(Arc::new(headers));
        self
    }

    /// The headers that the request's route sets on its responses, for whoever makes an answer of this failure.
    pub fn response_headers(&self) -> Option<&HeaderMap> {
        self.response_headers.as_deref()
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The text, without the causes.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

/// `place: text`, or the text alone if it begins with the place. Reasons come from near and from far: some name what they
/// are about, since they may also stand alone.
pub(crate) fn within(place: impl fmt::Display, text: &str) -> String {
    let place = format!("{place}: ");
    if text.starts_with(&place) { text.to_owned() } else { place + text }
}

/// The text alone, since [`source`](std::error::Error::source) hands out the cause; with the causes as `{:#}`.
impl fmt::Display for MeshError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        if !f.alternate() {
            return Ok(());
        }
        let mut cause = std::error::Error::source(self);
        while let Some(present) = cause {
            write!(f, ": {present}")?;
            cause = present.source();
        }
        Ok(())
    }
}

impl fmt::Debug for MeshError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshError({:?}: {self:#})", self.kind)
    }
}

impl std::error::Error for MeshError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as _)
    }
}

/// What a handler answers when a request of its own failed: the status of the kind, the text with its causes, and the
/// headers that the request's route sets on its responses.
///
/// ```
/// use axum_core::response::IntoResponse;
/// use mesh_core::error::{ErrorKind, MeshError};
///
/// async fn handler() -> Result<String, MeshError> {
///     Err(MeshError::new(ErrorKind::Timeout, "cluster payments: no response by the deadline"))
/// }
/// # let mut polled = Box::pin(handler());
/// # let mut context = std::task::Context::from_waker(std::task::Waker::noop());
/// # let std::task::Poll::Ready(answer) = polled.as_mut().poll(&mut context) else { panic!() };
/// # assert_eq!(answer.into_response().status(), 504);
/// ```
#[cfg(feature = "axum")]
impl axum_core::response::IntoResponse for MeshError {
    fn into_response(self) -> axum_core::response::Response {
        let mut response = (self.kind.http_status(), format!("{self:#}")).into_response();
        if self.kind == ErrorKind::Overflow {
            // As Envoy says it: a limit was in the way.
            response.headers_mut().insert(OVERLOADED, http::HeaderValue::from_static("true"));
        }
        if let Some(set) = self.response_headers() {
            response.headers_mut().extend(set.clone());
        }
        response
    }
}

/// A resource, or a part of one, that cannot be used: what a NACK says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Invalid {
    /// The resource's name; empty while it is not known.
    pub resource: String,
    /// The path of the field: `virtual_hosts[0].routes[2].match.safe_regex`.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Invalid {
    /// Something wrong with the value itself.
    pub fn new(reason: impl Into<String>) -> Self {
        Invalid { resource: String::new(), field: String::new(), reason: reason.into() }
    }

    /// The same, found in this field of something larger.
    pub fn at(mut self, field: impl fmt::Display) -> Self {
        self.field = if self.field.is_empty() {
            field.to_string()
        } else if self.field.starts_with('[') {
            format!("{field}{}", self.field)
        } else {
            format!("{field}.{}", self.field)
        };
        self
    }

    /// The same, in the resource of this name.
    pub fn of(mut self, resource: impl Into<String>) -> Self {
        self.resource = resource.into();
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.resource.is_empty() {
            write!(f, "{:?}: ", self.resource)?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Invalid {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_of_an_error_is_printed_once() {
        let io = std::io::Error::other("connection refused");
        let inner = MeshError::new(ErrorKind::ConnectFailure, "cannot connect").caused_by(io);
        let error = MeshError::new(ErrorKind::ConnectFailure, "no way").caused_by(inner).within("cluster c");
        assert_eq!(error.to_string(), "cluster c: no way");
        assert_eq!(format!("{error:#}"), "cluster c: no way: cannot connect: connection refused");
        // What error reporters do: each error of the chain, once.
        let mut chain = vec![error.to_string()];
        let mut cause = std::error::Error::source(&error);
        while let Some(present) = cause {
            chain.push(present.to_string());
            cause = present.source();
        }
        assert_eq!(chain, ["cluster c: no way", "cannot connect", "connection refused"]);
    }

    #[test]
    fn a_place_is_named_once() {
        let error = MeshError::new(ErrorKind::NoCluster, "cluster c: there is none");
        assert_eq!(error.clone().within("cluster c").to_string(), "cluster c: there is none");
        assert_eq!(error.clone().within("cluster").to_string(), "cluster: cluster c: there is none");
        assert_eq!(error.within("route r").within("route r").to_string(), "route r: cluster c: there is none");
    }

    #[test]
    fn an_invalid_field_reads_as_a_path_from_the_resource_inwards() {
        let invalid = Invalid::new("not a regex").at("safe_regex").at("match").at("[2]").at("routes").of("r1");
        assert_eq!(invalid.to_string(), "\"r1\": routes[2].match.safe_regex: not a regex");
    }
}
