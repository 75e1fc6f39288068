//! Which HTTP endpoints are called with, and how many requests and streams a connection has, as the protocol options of an
//! Envoy cluster.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream;
use envoy_types::pb::google::protobuf::Any;

use super::proto;
use crate::policy::Cluster;
use crate::policy::traffic::Bound;
use crate::registry::protocol::Protocol;

/// The HTTP settings of a cluster, where any differ from HTTP/1.1 with Envoy's defaults.
pub(super) fn options(seen: &Cluster<'_>) -> HashMap<String, Any> {
    use upstream::http_protocol_options::explicit_http_config::ProtocolConfig;
    use upstream::http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions};
    let explicit =
        |protocol| UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(protocol) });
    let pool = &seen.traffic.connection_pool;
    let is_http2 = seen.is_http2();
    let idle_timeout = pool.idle_timeout;
    let max_requests = pool.max_requests_per_connection.and_then(Bound::number);
    let longest = pool.max_connection_duration;
    if !is_http2 && !pool.as_caller && idle_timeout.is_none() && max_requests.is_none() && longest.is_none() {
        return HashMap::new();
    }
    let http2 = core::Http2ProtocolOptions {
        // More than this the protocol has no number for.
        max_concurrent_streams: pool
            .max_concurrent_streams
            .and_then(Bound::number)
            .filter(|streams| *streams < i32::MAX as u32)
            .and_then(proto::number),
        connection_keepalive: pool.http2_keepalive.map(|(interval, timeout)| core::KeepaliveSettings {
            interval: Some(proto::duration(interval)),
            timeout: Some(proto::duration(timeout)),
            ..Default::default()
        }),
        ..Default::default()
    };
    let protocol = match (pool.as_caller, is_http2) {
        (true, _) => UpstreamProtocolOptions::UseDownstreamProtocolConfig(as_caller(http2)),
        (false, true) => explicit(ProtocolConfig::Http2ProtocolOptions(http2)),
        (false, false) => explicit(ProtocolConfig::HttpProtocolOptions(Default::default())),
    };
    let options = upstream::HttpProtocolOptions {
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: idle_timeout.map(proto::duration),
            max_connection_duration: longest.map(proto::duration),
            max_requests_per_connection: max_requests.and_then(proto::number),
            ..Default::default()
        }),
        upstream_protocol_options: Some(protocol),
        ..Default::default()
    };
    extension(&options)
}

/// The HTTP that a workload speaks: HTTP/1.1 where it is that, and as its caller where nobody says.
pub(super) fn options_for(protocol: Protocol) -> HashMap<String, Any> {
    use upstream::http_protocol_options::explicit_http_config::ProtocolConfig::Http2ProtocolOptions;
    use upstream::http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions};
    match protocol {
        Protocol::Unspecified => callers(),
        protocol if protocol.is_http2() => {
            let http2 = ExplicitHttpConfig { protocol_config: Some(Http2ProtocolOptions(Default::default())) };
            extension(&upstream::HttpProtocolOptions {
                upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(http2)),
                ..Default::default()
            })
        }
        _ => HashMap::new(),
    }
}

/// HTTP/1.1 or HTTP/2, as the caller has it.
pub(super) fn callers() -> HashMap<String, Any> {
    use upstream::http_protocol_options::UpstreamProtocolOptions::UseDownstreamProtocolConfig;
    extension(&upstream::HttpProtocolOptions {
        upstream_protocol_options: Some(UseDownstreamProtocolConfig(as_caller(Default::default()))),
        ..Default::default()
    })
}

fn as_caller(http2: core::Http2ProtocolOptions) -> upstream::http_protocol_options::UseDownstreamHttpConfig {
    upstream::http_protocol_options::UseDownstreamHttpConfig {
        http_protocol_options: Some(Default::default()),
        http2_protocol_options: Some(http2),
        ..Default::default()
    }
}

fn extension(options: &upstream::HttpProtocolOptions) -> HashMap<String, Any> {
    [("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(), proto::any(options))].into()
}
