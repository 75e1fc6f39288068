//! Active health checks (`envoy.config.core.v3.HealthCheck`).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::health_check as pb;
use envoy_types::pb::envoy::r#type::v3::{CodecClientType, Int64Range};
use envoy_types::pb::google::protobuf;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderName, HeaderValue, Method};

use super::common::{duration, positive, string_test};
use super::headers::fixed;
use super::notes::{Notes, ignored};
use crate::error::Invalid;
use crate::model::{GrpcProbe, HealthCheck, HttpProbe, Probe, TcpProbe};

/// How much of an answer is looked at, at most: one that says how it is with more is none.
const MOST_BYTES: u64 = 64 << 10;

/// The checks of a cluster: there is one at most (Envoy).
pub(super) fn health_checks(
    notes: &mut Notes<'_>,
    values: Vec<core::HealthCheck>,
) -> Result<Option<Arc<HealthCheck>>, Invalid> {
    if values.len() > 1 {
        return Err(Invalid::new("there is more than one").at("health_checks"));
    }
    let mut checks = notes.each("health_checks", values, health_check)?;
    Ok(checks.pop().map(Arc::new))
}

/// A check that is told outside of any resource; what of it has no effect is not listed.
pub(crate) fn health_check_alone(value: core::HealthCheck) -> Result<HealthCheck, Invalid> {
    let options = super::Options::default();
    health_check(&mut Notes::new(&options), value)
}

fn health_check(notes: &mut Notes<'_>, value: core::HealthCheck) -> Result<HealthCheck, Invalid> {
    let at_least_one = |name: &'static str, value: Option<protobuf::UInt32Value>| match value.map(|value| value.value) {
        Some(0) => Err(Invalid::new("must be more than zero").at(name)),
        Some(count) => Ok(count),
        None => Err(Invalid::new("missing").at(name)),
    };
    let interval = notes.required("interval", value.interval, |_, value| positive(&value));
    let timeout = notes.required("timeout", value.timeout, |_, value| positive(&value))?;
    notes.ignore_if_set("event_logger", &value.event_logger);
    notes.ignore_if_set("event_service", &value.event_service);
    notes.ignore_if_set("always_log_health_check_failures", &value.always_log_health_check_failures);
    notes.ignore_if_set("always_log_health_check_success", &value.always_log_health_check_success);
    for (name, is_set) in [
        ("alt_port", value.alt_port.is_some()),
        ("tls_options", value.tls_options.is_some()),
        ("transport_socket_match_criteria", value.transport_socket_match_criteria.is_some()),
    ] {
        // A check that asks somebody else, or in another way, would say something else.
        if is_set {
            return Err(Invalid::new("not supported").at(name));
        }
    }
    let probe = match value.health_checker {
        Some(pb::HealthChecker::HttpHealthCheck(http)) => {
            Probe::Http(notes.field("http_health_check", |notes| http_probe(notes, http))?)
        }
        Some(pb::HealthChecker::TcpHealthCheck(tcp)) => {
            Probe::Tcp(notes.field("tcp_health_check", |notes| tcp_probe(notes, tcp))?)
        }
        Some(pb::HealthChecker::GrpcHealthCheck(grpc)) => {
            Probe::Grpc(notes.field("grpc_health_check", |notes| grpc_probe(notes, grpc))?)
        }
        Some(pb::HealthChecker::CustomHealthCheck(custom)) => {
            return Err(Invalid::new(format!("{:?} is not supported", custom.name)).at("custom_health_check"));
        }
        None => return Err(Invalid::new("nothing says how to check").at("health_checker")),
    };
    let mut check = HealthCheck::new(probe, interval?);
    check.timeout = timeout;
    check.unhealthy_threshold = at_least_one("unhealthy_threshold", value.unhealthy_threshold)?;
    check.healthy_threshold = at_least_one("healthy_threshold", value.healthy_threshold)?;
    check.reuse_connection = value.reuse_connection.is_none_or(|reuses| reuses.value);
    check.interval_jitter_percent = value.interval_jitter_percent;
    let mut time = |name, value: Option<protobuf::Duration>, read: Read| -> Result<Option<Duration>, Invalid> {
        notes.optional(name, value, |_, value| read(&value))
    };
    check.initial_jitter = time("initial_jitter", value.initial_jitter, duration)?.unwrap_or_default();
    check.interval_jitter = time("interval_jitter", value.interval_jitter, duration)?.unwrap_or_default();
    if let Some(interval) = time("no_traffic_interval", value.no_traffic_interval, positive)? {
        check.no_traffic_interval = interval;
    }
    check.no_traffic_healthy_interval =
        time("no_traffic_healthy_interval", value.no_traffic_healthy_interval, positive)?;
    check.unhealthy_interval = time("unhealthy_interval", value.unhealthy_interval, positive)?;
    check.unhealthy_edge_interval = time("unhealthy_edge_interval", value.unhealthy_edge_interval, positive)?;
    check.healthy_edge_interval = time("healthy_edge_interval", value.healthy_edge_interval, positive)?;
    Ok(check)
}

type Read = fn(&protobuf::Duration) -> Result<Duration, Invalid>;

fn http_probe(notes: &mut Notes<'_>, value: pb::HttpHealthCheck) -> Result<HttpProbe, Invalid> {
    let pb::HttpHealthCheck {
        host,
        path,
        send,
        receive,
        response_buffer_size,
        request_headers_to_add,
        request_headers_to_remove,
        expected_statuses,
        retriable_statuses,
        codec_client_type,
        service_name_matcher,
        method,
    } = value;
    if !path.starts_with('/') || PathAndQuery::try_from(path.as_str()).is_err() {
        return Err(Invalid::new(format!("{path:?} is not a path")).at("path"));
    }
    let mut probe = HttpProbe::get(path);
    probe.host = authority("host", host)?;
    probe.method = self::method(method)?;
    probe.send = notes.optional("send", send, payload)?;
    let takes_body = [Method::POST, Method::PUT, Method::PATCH, Method::OPTIONS].contains(&probe.method);
    if probe.send.is_some() && !takes_body {
        return Err(Invalid::new(format!("{} has no body", probe.method)).at("send"));
    }
    probe.receive = notes.each("receive", receive, payload)?;
    probe.response_bytes = match response_buffer_size.map_or(1024, |size| size.value) {
        0 => MOST_BYTES as usize,
        size => usize::try_from(size.min(MOST_BYTES)).unwrap_or(1024),
    };
    probe.headers = headers(notes, "request_headers_to_add", request_headers_to_add)?;
    // There are none but those that are added.
    notes.ignore_if_set("request_headers_to_remove", &request_headers_to_remove);
    let expected = notes.each("expected_statuses", expected_statuses, statuses)?;
    if !expected.is_empty() {
        probe.expected = expected;
    }
    probe.retriable = notes.each("retriable_statuses", retriable_statuses, statuses)?;
    probe.is_http2 = match CodecClientType::try_from(codec_client_type) {
        Ok(CodecClientType::Http1) => false,
        Ok(CodecClientType::Http2) => true,
        Ok(CodecClientType::Http3) => return Err(Invalid::new("HTTP/3 is not supported").at("codec_client_type")),
        Err(_) => return Err(Invalid::new("not a known value").at("codec_client_type")),
    };
    probe.service = notes.optional("service_name_matcher", service_name_matcher, string_test)?;
    Ok(probe)
}

fn method(value: i32) -> Result<Method, Invalid> {
    use core::RequestMethod::*;
    Ok(match core::RequestMethod::try_from(value) {
        Ok(MethodUnspecified | Get) => Method::GET,
        Ok(Head) => Method::HEAD,
        Ok(Post) => Method::POST,
        Ok(Put) => Method::PUT,
        Ok(Delete) => Method::DELETE,
        Ok(Options) => Method::OPTIONS,
        Ok(Trace) => Method::TRACE,
        Ok(Patch) => Method::PATCH,
        Ok(Connect) => return Err(Invalid::new("CONNECT is no check").at("method")),
        Err(_) => return Err(Invalid::new("not a known value").at("method")),
    })
}

/// Statuses from 100 to 599, without the last one.
fn statuses(_: &mut Notes<'_>, range: Int64Range) -> Result<Range<u16>, Invalid> {
    match (u16::try_from(range.start), u16::try_from(range.end)) {
        (Ok(start), Ok(end)) if 100 <= start && start < end && end <= 600 => Ok(start..end),
        _ => Err(Invalid::new(format!("{} to {} is no range of statuses", range.start, range.end))),
    }
}

fn tcp_probe(notes: &mut Notes<'_>, value: pb::TcpHealthCheck) -> Result<TcpProbe, Invalid> {
    let pb::TcpHealthCheck { send, receive, proxy_protocol_config } = value;
    if proxy_protocol_config.is_some() {
        return Err(Invalid::new("not supported").at("proxy_protocol_config"));
    }
    Ok(TcpProbe { send: notes.optional("send", send, payload)?, receive: notes.each("receive", receive, payload)? })
}

fn grpc_probe(notes: &mut Notes<'_>, value: pb::GrpcHealthCheck) -> Result<GrpcProbe, Invalid> {
    let pb::GrpcHealthCheck { service_name, authority, initial_metadata } = value;
    Ok(GrpcProbe {
        service: service_name.into(),
        authority: self::authority("authority", authority)?,
        headers: headers(notes, "initial_metadata", initial_metadata)?,
    })
}

fn authority(name: &str, value: String) -> Result<Option<Arc<str>>, Invalid> {
    if value.is_empty() {
        return Ok(None);
    }
    match Authority::try_from(value.as_str()) {
        Ok(_) => Ok(Some(value.into())),
        Err(_) => Err(Invalid::new(format!("{value:?} is not a host")).at(name)),
    }
}

/// Headers whose values are the same for every request: there is none here that they could be made of.
fn headers(
    notes: &mut Notes<'_>,
    name: &'static str,
    values: Vec<core::HeaderValueOption>,
) -> Result<Vec<(HeaderName, HeaderValue)>, Invalid> {
    let headers = notes.each(name, values, |_, option| fixed(option))?;
    Ok(headers.into_iter().flatten().collect())
}

fn payload(_: &mut Notes<'_>, value: pb::Payload) -> Result<Arc<[u8]>, Invalid> {
    let bytes = match value.payload {
        Some(pb::payload::Payload::Text(text)) => {
            hex(&text).ok_or_else(|| Invalid::new("not an even number of hexadecimal digits").at("text"))?
        }
        Some(pb::payload::Payload::Binary(bytes)) => bytes,
        None => return Err(Invalid::new("empty")),
    };
    match bytes.len() as u64 {
        0 => Err(Invalid::new("empty")),
        length if length > MOST_BYTES => Err(Invalid::new(format!("more than {MOST_BYTES} bytes"))),
        _ => Ok(bytes.into()),
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let (pairs, rest) = digits.as_deref()?.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| (high << 4) | low).collect())
}

/// Whether an endpoint is not checked, and the host that it is asked for.
pub(super) type OwnCheck = (bool, Option<Arc<str>>);

/// What an endpoint says of its checks.
pub(super) fn of_endpoint(
    notes: &mut Notes<'_>,
    value: envoy_types::pb::envoy::config::endpoint::v3::endpoint::HealthCheckConfig,
) -> Result<OwnCheck, Invalid> {
    let envoy_types::pb::envoy::config::endpoint::v3::endpoint::HealthCheckConfig {
        port_value,
        hostname,
        address,
        disable_active_health_check,
    } = value;
    // Its health is told somewhere else, where nobody asks: it is what the control plane says.
    let is_elsewhere = port_value != 0 || address.is_some();
    ignored!(notes; port_value, address);
    Ok((disable_active_health_check || is_elsewhere, authority("hostname", hostname)?))
}
