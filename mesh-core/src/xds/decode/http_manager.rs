//! HttpConnectionManager: the routes and filters of a listener.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::ForwardClientCertDetails;

use super::common::{duration, same_stream};
use super::notes::{Notes, ignored};
use super::{access_log, filter, route, tracing as traces};
use crate::error::Invalid;
use crate::id::RouteName;
use crate::model::{EdgeTrust, ForwardedClientCert, HeadersWithUnderscores, HttpManager, RouteSource};
use crate::path::{EscapedSlashes, PathNormalization};
use crate::resources::ResourceType;
use crate::xds::names;

pub(super) fn http_manager(notes: &mut Notes<'_>, value: pb::HttpConnectionManager) -> Result<HttpManager, Invalid> {
    let pb::HttpConnectionManager {
        codec_type: _,
        stat_prefix: _,
        http_filters,
        add_user_agent,
        tracing,
        common_http_protocol_options,
        http1_safe_max_connection_duration,
        http_protocol_options,
        http2_protocol_options,
        http3_protocol_options,
        server_name,
        server_header_transformation,
        scheme_header_transformation,
        max_request_headers_kb,
        stream_idle_timeout,
        stream_flush_timeout,
        request_timeout,
        request_headers_timeout,
        drain_timeout,
        drain_timeout_jitter,
        delayed_close_timeout,
        access_log,
        access_log_flush_interval,
        flush_access_log_on_new_request,
        access_log_options,
        use_remote_address,
        xff_num_trusted_hops,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        internal_address_config,
        skip_xff_append,
        via,
        generate_request_id,
        preserve_external_request_id,
        always_set_request_id_in_response,
        forward_client_cert_details,
        set_current_client_cert_details,
        forward_client_cert_matcher,
        proxy_100_continue,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        upgrade_configs,
        normalize_path,
        merge_slashes,
        path_with_escaped_slashes_action,
        request_id_extension,
        local_reply_config,
        strip_matching_host_port,
        stream_error_on_invalid_http_message,
        path_normalization_options,
        strip_trailing_host_dot,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        append_local_overload,
        add_proxy_protocol_connection_state,
        forward_proto_config,
        route_specifier,
        strip_port_mode,
    } = value;
    // gRFC A41: who the caller is must not be taken from a header. At an edge it may be, as the store sees to.
    let is_edge = use_remote_address.as_ref().is_some_and(|on| on.value);
    if xff_num_trusted_hops != 0 && !is_edge {
        return Err(Invalid::new("must be 0").at("xff_num_trusted_hops"));
    }
    if !original_ip_detection_extensions.is_empty() {
        return Err(Invalid::new("must be empty").at("original_ip_detection_extensions"));
    }
    ignored!(notes;
        add_user_agent, http1_safe_max_connection_duration, http_protocol_options, http2_protocol_options,
        http3_protocol_options, server_name, server_header_transformation, scheme_header_transformation,
        max_request_headers_kb, stream_idle_timeout, stream_flush_timeout, request_timeout, request_headers_timeout,
        drain_timeout, drain_timeout_jitter, delayed_close_timeout, access_log_flush_interval,
        flush_access_log_on_new_request, access_log_options, early_header_mutation_extensions,
        internal_address_config, skip_xff_append, via, generate_request_id, preserve_external_request_id,
        always_set_request_id_in_response, set_current_client_cert_details,
        forward_client_cert_matcher, proxy_100_continue, represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        request_id_extension,
        local_reply_config, strip_matching_host_port, stream_error_on_invalid_http_message,
        path_normalization_options, strip_trailing_host_dot, proxy_status_config, typed_header_validation_config,
        append_x_forwarded_port, append_local_overload, add_proxy_protocol_connection_state, forward_proto_config,
        strip_port_mode);
    // What is done anyway: but for an edge, a client is who has connected, and what it says of its certificate is not believed; of the
    // protocols that it may ask for there are WebSockets.
    if use_remote_address.as_ref().is_some_and(|on| !on.value) {
        notes.ignore("use_remote_address");
    }
    let is_set_anew = [ForwardClientCertDetails::Sanitize, ForwardClientCertDetails::SanitizeSet];
    if !is_edge && !is_set_anew.iter().any(|details| *details as i32 == forward_client_cert_details) {
        notes.ignore("forward_client_cert_details");
    }
    let mut trust = EdgeTrust { proxies: xff_num_trusted_hops, ..EdgeTrust::default() };
    if is_edge {
        trust.client_cert =
            notes.field("forward_client_cert_details", |_| client_cert_details(forward_client_cert_details))?;
    }
    if upgrade_configs.iter().any(|one| !one.upgrade_type.eq_ignore_ascii_case("websocket") || !one.filters.is_empty())
    {
        notes.ignore("upgrade_configs");
    }
    let paths = PathNormalization {
        resolve: normalize_path.is_some_and(|on| on.value),
        merge_slashes,
        escaped_slashes: notes.field("path_with_escaped_slashes_action", |notes| {
            escaped_slashes(notes, path_with_escaped_slashes_action)
        })?,
    };
    let common = notes.optional("common_http_protocol_options", common_http_protocol_options, common_options)?;
    let (max_stream_duration, underscores) = common.unwrap_or_default();
    let access_logs = notes.each("access_log", access_log, access_log::decode)?.into_iter().flatten().collect();
    let filter::Chain { filters, metrics, grpc_web } = filter::chain(notes, http_filters)?;
    // Others than gateways are called by whom they know, which speak gRPC.
    if grpc_web && !is_edge {
        notes.ignore("http_filters (gRPC-Web is for gateways)");
    }
    let tracing = notes.optional("tracing", tracing, traces::decode)?.map(Arc::new);
    Ok(HttpManager {
        access_logs,
        metrics,
        tracing,
        paths,
        underscores,
        routes: route_source(notes, route_specifier)?,
        filters,
        max_stream_duration,
        trust,
        grpc_web: grpc_web && is_edge,
    })
}

fn client_cert_details(details: i32) -> Result<ForwardedClientCert, Invalid> {
    match ForwardClientCertDetails::try_from(details) {
        Ok(ForwardClientCertDetails::Sanitize) => Ok(ForwardedClientCert::Sanitize),
        Ok(ForwardClientCertDetails::ForwardOnly) => Ok(ForwardedClientCert::ForwardOnly),
        Ok(ForwardClientCertDetails::AppendForward) => Ok(ForwardedClientCert::AppendForward),
        Ok(ForwardClientCertDetails::SanitizeSet) => Ok(ForwardedClientCert::SanitizeSet),
        Ok(ForwardClientCertDetails::AlwaysForwardOnly) => Ok(ForwardedClientCert::AlwaysForwardOnly),
        Err(_) => Err(Invalid::new("not a known value")),
    }
}

/// A redirect to the decoded path is not given: its request is refused, which nobody takes for the decoded path.
fn escaped_slashes(notes: &mut Notes<'_>, action: i32) -> Result<EscapedSlashes, Invalid> {
    use pb::http_connection_manager::PathWithEscapedSlashesAction as Action;
    match Action::try_from(action) {
        Ok(Action::ImplementationSpecificDefault | Action::KeepUnchanged) => Ok(EscapedSlashes::Keep),
        Ok(Action::RejectRequest) => Ok(EscapedSlashes::Reject),
        Ok(Action::UnescapeAndForward) => Ok(EscapedSlashes::Decode),
        Ok(Action::UnescapeAndRedirect) => {
            notes.ignore("(the request is refused instead of redirected)");
            Ok(EscapedSlashes::Reject)
        }
        Err(_) => Err(Invalid::new("not a known value")),
    }
}

fn route_source(
    notes: &mut Notes<'_>,
    value: Option<pb::http_connection_manager::RouteSpecifier>,
) -> Result<RouteSource, Invalid> {
    use pb::http_connection_manager::RouteSpecifier;
    match value {
        Some(RouteSpecifier::Rds(rds)) => notes.field("rds", |notes| {
            notes.field("config_source", |_| same_stream(rds.config_source.as_ref()))?;
            let name =
                notes.field("route_config_name", |_| names::canonical(ResourceType::Route, &rds.route_config_name))?;
            Ok(RouteSource::Named(RouteName::from(&*name)))
        }),
        Some(RouteSpecifier::RouteConfig(routes)) => {
            let routes = notes.field("route_config", |notes| route::configuration(notes, routes))?;
            Ok(RouteSource::Inline(Arc::new(routes)))
        }
        Some(RouteSpecifier::ScopedRoutes(_)) => Err(Invalid::new("not supported").at("scoped_routes")),
        None => Err(Invalid::new("no known route specifier")),
    }
}

/// How long a stream may last, and what becomes of headers whose names have an underscore.
fn common_options(
    notes: &mut Notes<'_>,
    value: HttpProtocolOptions,
) -> Result<(Option<Duration>, HeadersWithUnderscores), Invalid> {
    let HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter,
        max_headers_count,
        max_response_headers_kb,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = value;
    ignored!(notes;
        idle_timeout, max_connection_duration, max_connection_duration_jitter, max_headers_count,
        max_response_headers_kb, max_requests_per_connection);
    let underscores = match HeadersWithUnderscoresAction::try_from(headers_with_underscores_action) {
        Ok(HeadersWithUnderscoresAction::Allow) => HeadersWithUnderscores::Allow,
        Ok(HeadersWithUnderscoresAction::DropHeader) => HeadersWithUnderscores::Drop,
        Ok(HeadersWithUnderscoresAction::RejectRequest) => HeadersWithUnderscores::Reject,
        Err(_) => return Err(Invalid::new("not a known value").at("headers_with_underscores_action")),
    };
    let longest = notes.optional("max_stream_duration", max_stream_duration, |_, value| duration(&value))?;
    Ok((longest, underscores))
}
