//! External processing (`envoy.extensions.filters.http.ext_proc.v3`), headers alone. What is not known here, or cannot be done here, makes
//! the resource invalid: a processor may be what makes a request good.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::{BodySendMode, HeaderSendMode};
use envoy_types::pb::google::protobuf::Any;

use super::common::{positive, status_from};
use super::jwt::unsupported;
use super::notes::Notes;
use super::rate_limit_service::grpc_service;
use super::rbac::complete;
use crate::error::Invalid;
use crate::model::{ExtProc, FilterConfig};

pub(super) fn ext_proc(notes: &mut Notes<'_>, any: &Any) -> Result<FilterConfig, Invalid> {
    let pb::ExternalProcessor {
        grpc_service: service,
        http_service,
        failure_mode_allow,
        processing_mode,
        request_attributes,
        response_attributes,
        message_timeout,
        stat_prefix: _,
        mutation_rules,
        // No processor is given more time.
        max_message_timeout: _,
        forward_rules,
        filter_metadata,
        // As where it is not allowed: a mode is what is configured.
        allow_mode_override,
        disable_immediate_response,
        metadata_options,
        observability_mode,
        // The route is found before, and stays.
        disable_clear_route_cache: _,
        route_cache_action: _,
        deferred_close_timeout: _,
        send_body_without_waiting_for_header_response: _,
        allowed_override_modes: _,
        processing_request_modifier,
        on_processing_response,
        status_on_error,
        allow_content_length_header: _,
        emit_client_span: _,
    } = complete(any)?;
    unsupported([
        ("http_service", http_service.is_some()),
        ("request_attributes", !request_attributes.is_empty()),
        ("response_attributes", !response_attributes.is_empty()),
        ("mutation_rules", mutation_rules.is_some()),
        ("forward_rules", forward_rules.is_some()),
        ("filter_metadata", filter_metadata.is_some()),
        ("allow_mode_override", allow_mode_override),
        ("metadata_options", metadata_options.is_some()),
        ("observability_mode", observability_mode),
        ("processing_request_modifier", processing_request_modifier.is_some()),
        ("on_processing_response", on_processing_response.is_some()),
    ])?;
    let service = service.ok_or_else(|| Invalid::new("missing").at("grpc_service"))?;
    // How long a stream lasts is not for the service to say: each head has its time.
    let (target, _) = grpc_service(notes, service).map_err(|invalid| invalid.at("grpc_service"))?;
    let mut config = ExtProc::new(target);
    (config.request, config.response) =
        modes(&processing_mode.unwrap_or_default()).map_err(|invalid| invalid.at("processing_mode"))?;
    let timeout = message_timeout.as_ref().map(positive).transpose();
    config.timeout = timeout.map_err(|invalid| invalid.at("message_timeout"))?.unwrap_or(config.timeout);
    config.fail_open = failure_mode_allow;
    config.may_answer = !disable_immediate_response;
    if let Some(status) = status_on_error {
        config.status_on_error = status_from(400, &status)
            .ok_or_else(|| Invalid::new("not a status from 400 to 599").at("status_on_error"))?;
    }
    Ok(match (config.request, config.response) {
        (false, false) => FilterConfig::Disabled,
        _ => FilterConfig::ExtProc(Arc::new(config)),
    })
}

/// Whether heads of requests are shown, and those of answers.
fn modes(mode: &pb::ProcessingMode) -> Result<(bool, bool), Invalid> {
    for (name, value) in
        [("request_body_mode", mode.request_body_mode), ("response_body_mode", mode.response_body_mode)]
    {
        if value != i32::from(BodySendMode::None) {
            return Err(Invalid::new("not supported: a processor is shown headers alone").at(name));
        }
    }
    let header_mode = |name: &'static str, value: i32| {
        HeaderSendMode::try_from(value).map_err(|_| Invalid::new("not a known value").at(name))
    };
    for (name, value) in
        [("request_trailer_mode", mode.request_trailer_mode), ("response_trailer_mode", mode.response_trailer_mode)]
    {
        if header_mode(name, value)? == HeaderSendMode::Send {
            return Err(Invalid::new("not supported: a processor is shown no trailers").at(name));
        }
    }
    let is_shown = |name, value| header_mode(name, value).map(|mode| mode != HeaderSendMode::Skip);
    Ok((
        is_shown("request_header_mode", mode.request_header_mode)?,
        is_shown("response_header_mode", mode.response_header_mode)?,
    ))
}
