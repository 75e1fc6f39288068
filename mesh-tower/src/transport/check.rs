//! One health check of one endpoint: over the same connections as requests, or one of its own, secured alike. The limits of
//! the cluster are no limits of its checks: what is busy is not unwell.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::health_check::CheckOutcome;
use mesh_core::model::{CircuitBreakers, Cluster, ClusterProtocol, GrpcProbe, HealthCheck, HttpProbe, Probe, TcpProbe};
use mesh_core::request_info::{RequestInfo, grpc_status};
use mesh_core::state::EndpointState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::pool::exchange;
use super::{HttpVersion, Security, dial};
use crate::body::Body;
use crate::grpc_wire::{framed, note_call, only_message, put_field};

/// How much is looked at of what comes over a connection or in a gRPC answer, in bytes.
const MOST_BYTES: usize = 64 << 10;

/// Who answers, as Envoy's filter for health checks says it.
const CHECKED_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-upstream-healthchecked-cluster");
/// The endpoint wants to be picked after all others.
const DEGRADED: HeaderName = HeaderName::from_static("x-envoy-degraded");
/// The endpoint is to get no more requests.
pub(crate) const FAIL: HeaderName = HeaderName::from_static("x-envoy-immediate-health-check-fail");

/// Asks an endpoint how it is, in the time that there is for it; at a host of its own, where it has one.
pub(super) async fn check(
    cluster: &Arc<Cluster>,
    config: &HealthCheck,
    host: Option<&str>,
    endpoint: &Arc<EndpointState>,
) -> CheckOutcome {
    let checked = async {
        match &config.probe {
            Probe::Http(probe) => http(cluster, config, probe, host, endpoint).await,
            Probe::Grpc(probe) => grpc(cluster, config, probe, host, endpoint).await,
            Probe::Tcp(probe) => tcp(cluster, probe, endpoint).await,
        }
    };
    match tokio::time::timeout(config.timeout, checked).await {
        Ok(Ok(outcome)) => outcome,
        // What this process lacks says nothing of the endpoint.
        Ok(Err(error)) if matches!(error.kind(), ErrorKind::Security | ErrorKind::Overflow | ErrorKind::BadRequest) => {
            tracing::debug!(cluster = %cluster.name, endpoint = %endpoint.id(), error = %format_args!("{error:#}"), "a health check could not be made");
            CheckOutcome::Skipped
        }
        Ok(Err(error)) => {
            tracing::debug!(cluster = %cluster.name, endpoint = %endpoint.id(), error = %format_args!("{error:#}"), "a health check failed");
            CheckOutcome::Failed
        }
        Err(_) => {
            tracing::debug!(cluster = %cluster.name, endpoint = %endpoint.id(), timeout = ?config.timeout, "a health check was not answered in time");
            CheckOutcome::Failed
        }
    }
}

async fn http(
    cluster: &Arc<Cluster>,
    config: &HealthCheck,
    probe: &HttpProbe,
    host: Option<&str>,
    endpoint: &Arc<EndpointState>,
) -> Result<CheckOutcome, MeshError> {
    let uri = uri(cluster, endpoint, host.or(probe.host.as_deref()), &probe.path)?;
    let body = probe.send.as_ref().map_or_else(Body::empty, |bytes| Body::from(Bytes::copy_from_slice(bytes)));
    let mut request = Request::builder().method(&probe.method).uri(uri).body(body).map_err(unsendable)?;
    request.headers_mut().extend(probe.headers.iter().cloned());
    let version = if probe.is_http2 { HttpVersion::Http2 } else { HttpVersion::Http1 };
    let answer = ask(cluster, endpoint, (version, config.reuse_connection), request, |head, body| {
        let status = head.status.as_u16();
        let is_expected = probe.expected.iter().any(|range| range.contains(&status));
        let says = head.headers.get(CHECKED_CLUSTER);
        let is_the_one =
            probe.service.as_ref().is_none_or(|test| says.is_some_and(|name| test.is_match(name.as_bytes())));
        let seen = body.get(..probe.response_bytes).unwrap_or(body);
        let passes = is_expected && is_the_one && contains_in_order(seen, &probe.receive);
        match passes {
            _ if head.headers.contains_key(FAIL) => CheckOutcome::Unhealthy,
            true if head.headers.contains_key(DEGRADED) => CheckOutcome::Degraded,
            true => CheckOutcome::Passed,
            false if !is_expected && probe.retriable.iter().any(|range| range.contains(&status)) => {
                CheckOutcome::Failed
            }
            false => CheckOutcome::Unhealthy,
        }
    });
    answer.await
}

async fn grpc(
    cluster: &Arc<Cluster>,
    config: &HealthCheck,
    probe: &GrpcProbe,
    host: Option<&str>,
    endpoint: &Arc<EndpointState>,
) -> Result<CheckOutcome, MeshError> {
    let uri = uri(cluster, endpoint, host.or(probe.authority.as_deref()), "/grpc.health.v1.Health/Check")?;
    let body = Body::from(health_request(&probe.service));
    let mut request = Request::builder().method(Method::POST).uri(uri).body(body).map_err(unsendable)?;
    request.headers_mut().extend(probe.headers.iter().cloned());
    note_call(request.headers_mut());
    let version = (HttpVersion::Http2, config.reuse_connection);
    let answer = ask(cluster, endpoint, version, request, |head, body| {
        let is_ok = head.status == StatusCode::OK && head.grpc_status == Some(0);
        if is_ok && is_serving(body) { CheckOutcome::Passed } else { CheckOutcome::Unhealthy }
    });
    answer.await
}

/// What is looked at of the head of an answer, with what its trailers say.
struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    grpc_status: Option<u32>,
}

/// Sends a request, and judges its answer; the connection goes back where it is to be used again.
async fn ask(
    cluster: &Arc<Cluster>,
    endpoint: &Arc<EndpointState>,
    (version, reuses): (HttpVersion, bool),
    request: Request<Body>,
    judge: impl FnOnce(&Answered, &[u8]) -> CheckOutcome,
) -> Result<CheckOutcome, MeshError> {
    // Its protocol is that of the check, and its limits are those of requests.
    let unlimited = Arc::new(without_limits(cluster, version));
    let info = RequestInfo::new(Instant::now(), fastrand::Rng::new());
    let (response, connection) = exchange(&unlimited, endpoint, &info, reuses, request).await?;
    let (answered, body, is_read) = read(response).await?;
    let outcome = judge(&answered, &body);
    if is_read {
        connection.give_back(endpoint);
    }
    Ok(outcome)
}

/// The same cluster without the limits of requests, and with this protocol. Whatever there is about connections is kept.
pub(super) fn without_limits(cluster: &Cluster, version: HttpVersion) -> Cluster {
    let mut unlimited = cluster.clone();
    unlimited.circuit_breakers = CircuitBreakers::default();
    unlimited.protocol = match version {
        HttpVersion::Http1 => ClusterProtocol::Http1,
        HttpVersion::Http2 => ClusterProtocol::Http2,
    };
    unlimited
}

/// The beginning of an answer, and whether that was all of it.
async fn read(response: Response<Incoming>) -> Result<(Answered, BytesMut, bool), MeshError> {
    let (head, mut body) = response.into_parts();
    let mut answered = Answered { status: head.status, grpc_status: grpc_status(&head.headers), headers: head.headers };
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let lost = |error| MeshError::new(ErrorKind::ConnectionLost, "its answer broke off").caused_by(error);
        let frame = frame.map_err(lost)?;
        if let Some(trailers) = frame.trailers_ref() {
            answered.grpc_status = grpc_status(trailers).or(answered.grpc_status);
        }
        if let Some(data) = frame.data_ref() {
            let room = MOST_BYTES.saturating_sub(read.len());
            read.extend_from_slice(data.get(..room).unwrap_or(data));
            if data.len() > room {
                return Ok((answered, read, false));
            }
        }
    }
    Ok((answered, read, true))
}

async fn tcp(
    cluster: &Arc<Cluster>,
    probe: &TcpProbe,
    endpoint: &Arc<EndpointState>,
) -> Result<CheckOutcome, MeshError> {
    let security = Security::of(cluster, endpoint.is_mutual_tls())?;
    let permit = endpoint.open(&CircuitBreakers::default());
    let permit = permit.ok_or_else(|| MeshError::new(ErrorKind::Overflow, "no connection is permitted"))?;
    let mut connection = dial(cluster, endpoint, security, None, permit).await?;
    let lost = |error| MeshError::new(ErrorKind::ConnectionLost, "the connection broke off").caused_by(error);
    if let Some(bytes) = &probe.send {
        connection.write_all(bytes).await.map_err(lost)?;
        connection.flush().await.map_err(lost)?;
    }
    let (mut seen, mut search) = (BytesMut::new(), Search::new(&probe.receive));
    while !search.is_over(&seen) {
        if seen.len() >= MOST_BYTES || connection.read_buf(&mut seen).await.map_err(lost)? == 0 {
            return Ok(CheckOutcome::Failed);
        }
    }
    Ok(CheckOutcome::Passed)
}

/// Where a check is sent: to the host that it names, else to the cluster's name, else to the endpoint's own.
pub(super) fn uri(
    cluster: &Cluster,
    endpoint: &EndpointState,
    host: Option<&str>,
    path: &str,
) -> Result<Uri, MeshError> {
    let own = || endpoint.id().addresses().first().map(ToString::to_string).unwrap_or_default();
    let authority = match host {
        Some(host) => Authority::try_from(host),
        None => Authority::try_from(cluster.name.as_str()).or_else(|_| Authority::try_from(own())),
    };
    let path = PathAndQuery::try_from(path).map_err(unsendable)?;
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority.map_err(unsendable)?).path_and_query(path);
    uri.build().map_err(unsendable)
}

fn unsendable(error: impl Into<http::Error>) -> MeshError {
    MeshError::new(ErrorKind::BadRequest, "the health check is no request").caused_by(error.into())
}

/// Whether all of these are there, one after the other, with anything in between.
fn contains_in_order(bytes: &[u8], parts: &[Arc<[u8]>]) -> bool {
    Search::new(parts).is_over(bytes)
}

/// Looks for parts in their order, in bytes that may come bit by bit: no byte is looked at again in which no match can begin.
struct Search<'p> {
    /// What is still to be found.
    parts: &'p [Arc<[u8]>],
    /// Where the next match can begin at the earliest.
    from: usize,
}

impl<'p> Search<'p> {
    fn new(parts: &'p [Arc<[u8]>]) -> Self {
        Search { parts, from: 0 }
    }

    /// Whether all parts are there by now. `bytes` is all that came.
    fn is_over(&mut self, bytes: &[u8]) -> bool {
        while let Some((part, others)) = self.parts.split_first() {
            let rest = bytes.get(self.from..).unwrap_or_default();
            let Some(found) = rest.windows(part.len().max(1)).position(|window| window == &**part) else {
                // The last bytes may be the beginning of it.
                self.from += rest.len().saturating_sub(part.len().saturating_sub(1));
                return false;
            };
            self.from += found + part.len();
            self.parts = others;
        }
        true
    }
}

/// `HealthCheckRequest { service = 1 }`, as one message of gRPC.
fn health_request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        put_field(&mut message, 1, service.as_bytes());
    }
    framed(&message)
}

/// Whether a message of gRPC is `HealthCheckResponse { status = 1: SERVING }`. The last value counts (Protobuf).
fn is_serving(framed: &[u8]) -> bool {
    let Some(mut message) = only_message(framed) else { return false };
    let mut status = 0;
    while let [tag, rest @ ..] = message {
        // Nothing else is in it that is no number of one byte.
        let [value @ 0..0x80, rest @ ..] = rest else { return false };
        if tag & 7 != 0 {
            return false;
        }
        if *tag == 0x08 {
            status = *value;
        }
        message = rest;
    }
    status == 1
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_core::model::{ClusterKind, Http2Keepalive};

    use super::*;

    #[test]
    fn parts_are_found_in_their_order_only() {
        let parts = |parts: &[&str]| -> Vec<Arc<[u8]>> { parts.iter().map(|part| part.as_bytes().into()).collect() };
        for (bytes, wanted, expected) in [
            ("", &[][..], true),
            ("abc", &["abc"], true),
            ("xaxbx", &["a", "b"], true),
            ("xbxax", &["a", "b"], false),
            ("aa", &["a", "a"], true),
            ("a", &["a", "a"], false),
            ("", &["a"], false),
        ] {
            assert_eq!(contains_in_order(bytes.as_bytes(), &parts(wanted)), expected, "{bytes} {wanted:?}");
            let (wanted, mut came) = (parts(wanted), Vec::new());
            let mut search = Search::new(&wanted);
            for byte in bytes.bytes() {
                search.is_over(&came);
                came.push(byte);
            }
            assert_eq!(search.is_over(&came), expected, "{bytes} {wanted:?}: byte by byte");
        }
    }

    #[test]
    fn bytes_in_which_nothing_can_begin_are_not_looked_at_again() {
        let wanted: [Arc<[u8]>; 2] = [b"first".as_slice().into(), b"second".as_slice().into()];
        let mut search = Search::new(&wanted);
        for (came, from) in [("", 0), ("xxxx", 0), ("xxxxxxfi", 4), ("xxxxxxfirst", 11), ("xxxxxxfirstxxxxxxsec", 15)] {
            assert_eq!((search.is_over(came.as_bytes()), search.from), (false, from), "{came}");
        }
        assert!(search.is_over(b"xxxxxxfirstxxxxxxsecond"));
    }

    #[test]
    fn checks_keep_all_of_their_cluster_but_its_limits_and_its_protocol() {
        let mut cluster = Cluster::new("web", ClusterKind::PassThrough);
        cluster.circuit_breakers = CircuitBreakers::ENVOY;
        cluster.protocol = ClusterProtocol::Http1;
        cluster.http2_keepalive =
            Some(Http2Keepalive { interval: Duration::from_secs(1), timeout: Duration::from_secs(2) });
        let unlimited = without_limits(&cluster, HttpVersion::Http2);
        cluster.circuit_breakers = CircuitBreakers::default();
        cluster.protocol = ClusterProtocol::Http2;
        assert_eq!(unlimited, cluster);
    }

    #[test]
    fn health_messages_have_their_form_on_the_wire() {
        assert_eq!(&health_request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&health_request("a.B")[..], [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B']);
        assert_eq!(health_request(&"a".repeat(200)).len(), 5 + 3 + 200);
        for (bytes, expected) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], true),
            (&[0, 0, 0, 0, 2, 8, 2], false),
            (&[0, 0, 0, 0, 0], false),
            (&[0, 0, 0, 0, 4, 8, 2, 8, 1], true),
            (&[0, 0, 0, 0, 4, 8, 1, 0x10, 7], true),
            (&[0, 0, 0, 0, 9, 8, 1], false),
            (&[1, 0, 0, 0, 2, 8, 1], false),
            (&[0, 0, 0, 0, 2, 8, 0x81], false),
            (&[], false),
        ] {
            assert_eq!(is_serving(bytes), expected, "{bytes:?}");
        }
    }
}
