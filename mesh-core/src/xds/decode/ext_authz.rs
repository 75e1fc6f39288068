//! `ext_authz` (`envoy.extensions.filters.http.ext_authz.v3`). As with RBAC, what is not known here, or cannot be done here,
//! makes the resource invalid.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::google::protobuf::{self, Any};
use http::{HeaderName, Uri};

use super::common::{positive, status_from, string_test};
use super::jwt::unsupported;
use super::notes::Notes;
use super::rbac::complete;
use crate::authz::external::settable;
use crate::error::Invalid;
use crate::model::{
    CheckProtocol, CheckedBody, ExtAuthz, FilterConfig, HeaderTarget, HeaderText, HttpCheck, IN_PROCESS, StringTest,
};
use crate::request::split_authority;

/// Where an RBAC filter notes its decisions, and what the name of what its shadow rules decided ends with.
const RBAC: &str = "envoy.filters.http.rbac";
const SHADOW_POLICY: &str = "shadow_effective_policy_id";

/// A listener's filter.
pub(super) fn ext_authz(notes: &mut Notes<'_>, any: &Any) -> Result<FilterConfig, Invalid> {
    let pb::ExtAuthz {
        transport_api_version: _,
        failure_mode_allow,
        failure_mode_allow_header_add,
        with_request_body,
        // The route is found after the answer, and what an answer changes is always looked at.
        clear_route_cache: _,
        validate_mutations: _,
        status_on_error,
        metadata_context_namespaces,
        typed_metadata_context_namespaces,
        route_metadata_context_namespaces,
        route_typed_metadata_context_namespaces,
        filter_enabled,
        filter_enabled_metadata,
        deny_at_disable,
        include_peer_certificate,
        stat_prefix: _,
        bootstrap_metadata_labels_key,
        allowed_headers,
        disallowed_headers,
        include_tls_session,
        charge_cluster_response_stats: _,
        encode_raw_headers,
        decoder_header_mutation_rules,
        enable_dynamic_metadata_ingestion,
        filter_metadata,
        emit_filter_state_stats: _,
        max_denied_response_body_bytes,
        enforce_response_header_limits: _,
        shadow_mode,
        emit_client_span: _,
        services,
    } = complete(any)?;
    unsupported([
        ("failure_mode_allow_header_add", failure_mode_allow_header_add),
        ("metadata_context_namespaces", !metadata_context_namespaces.is_empty()),
        ("typed_metadata_context_namespaces", !typed_metadata_context_namespaces.is_empty()),
        ("route_metadata_context_namespaces", !route_metadata_context_namespaces.is_empty()),
        ("route_typed_metadata_context_namespaces", !route_typed_metadata_context_namespaces.is_empty()),
        ("filter_enabled", filter_enabled.is_some()),
        ("deny_at_disable", deny_at_disable.is_some()),
        ("include_peer_certificate", include_peer_certificate),
        ("bootstrap_metadata_labels_key", !bootstrap_metadata_labels_key.is_empty()),
        ("disallowed_headers", disallowed_headers.is_some()),
        ("include_tls_session", include_tls_session),
        ("encode_raw_headers", encode_raw_headers),
        ("decoder_header_mutation_rules", decoder_header_mutation_rules.is_some()),
        ("enable_dynamic_metadata_ingestion", enable_dynamic_metadata_ingestion.is_some()),
        ("filter_metadata", filter_metadata.is_some()),
        ("max_denied_response_body_bytes", max_denied_response_body_bytes != 0),
        ("shadow_mode", shadow_mode),
    ])?;
    let (target, protocol, timeout) = match services {
        Some(pb::ext_authz::Services::HttpService(service)) => {
            notes.field("http_service", |notes| http_service(notes, service))?
        }
        Some(pb::ext_authz::Services::GrpcService(service)) => {
            notes.field("grpc_service", |_| grpc_service(service))?
        }
        None => return Err(Invalid::new("no known service")),
    };
    let mut config = ExtAuthz::new(target, protocol);
    config.timeout = timeout.unwrap_or(config.timeout);
    config.fail_open = failure_mode_allow;
    if let Some(status) = status_on_error {
        config.status_on_error = status_from(400, &status)
            .ok_or_else(|| Invalid::new("not a status from 400 to 599").at("status_on_error"))?;
    }
    config.asked_by = notes.optional("filter_enabled_metadata", filter_enabled_metadata, |_, it| asked_by(it))?;
    config.shown = notes.optional("allowed_headers", allowed_headers, names)?;
    config.body = notes.optional("with_request_body", with_request_body, |_, it| body(it))?;
    Ok(FilterConfig::ExtAuthz(Arc::new(config)))
}

fn body(value: pb::BufferSettings) -> Result<CheckedBody, Invalid> {
    let pb::BufferSettings { max_request_bytes, allow_partial_message, pack_as_bytes } = value;
    let most = usize::try_from(max_request_bytes).unwrap_or(usize::MAX);
    if !(1..=CheckedBody::LIMIT).contains(&most) {
        let what = format!("{most} is not from 1 to {}", CheckedBody::LIMIT);
        return Err(Invalid::new(what).at("max_request_bytes"));
    }
    let (allow_partial, as_bytes) = (allow_partial_message, pack_as_bytes);
    Ok(CheckedBody { allow_partial, as_bytes, ..CheckedBody::whole(most) })
}

type Service = (Arc<str>, CheckProtocol, Option<Duration>);

fn http_service(notes: &mut Notes<'_>, value: pb::HttpService) -> Result<Service, Invalid> {
    let pb::HttpService {
        server_uri,
        path_prefix,
        path_override,
        authorization_request,
        authorization_response,
        retry_policy,
    } = value;
    unsupported([("path_override", !path_override.is_empty()), ("retry_policy", retry_policy.is_some())])?;
    let core::HttpUri { uri, timeout, http_upstream_type: _ } =
        server_uri.ok_or_else(|| Invalid::new("missing").at("server_uri"))?;
    // The mesh's own client calls it by the name in its URI; how it is secured is for the mesh to say.
    let place: Uri = uri.parse().map_err(|_| Invalid::new("malformed").at("server_uri.uri"))?;
    let is_plain = place.scheme_str() == Some("http") && place.path_and_query().is_none_or(|path| path == "/");
    let target = place.authority().filter(|_| is_plain).map(|authority| target(authority.as_str()));
    let target = target.ok_or_else(|| Invalid::new("expected http://HOST:PORT").at("server_uri.uri"))?;
    let target = target.map_err(|invalid| invalid.at("server_uri.uri"))?;
    if in_process(&target).is_some() {
        return Err(Invalid::new("an authorizer in the server's own process is a grpc_service").at("server_uri.uri"));
    }
    let mut check = HttpCheck { path_prefix, ..HttpCheck::default() };
    if let Some(pb::AuthorizationRequest { headers_to_add, .. }) = &authorization_request {
        for core::HeaderValue { key, value, raw_value } in headers_to_add {
            let value = if raw_value.is_empty() { value.as_bytes() } else { raw_value };
            let header = added(key, value).map_err(|invalid| invalid.at("authorization_request.headers_to_add"))?;
            check.added.push(header);
        }
    }
    no_older_list(authorization_request.as_ref())?;
    if let Some(response) = authorization_response {
        let pb::AuthorizationResponse {
            allowed_upstream_headers,
            allowed_upstream_headers_to_append,
            allowed_client_headers,
            allowed_client_headers_on_success,
            dynamic_metadata_from_headers,
        } = response;
        unsupported([
            ("allowed_upstream_headers_to_append", allowed_upstream_headers_to_append.is_some()),
            ("dynamic_metadata_from_headers", dynamic_metadata_from_headers.is_some()),
        ])?;
        for (name, list, into) in [
            ("allowed_upstream_headers", allowed_upstream_headers, &mut check.to_upstream),
            ("allowed_client_headers", allowed_client_headers, &mut check.to_client_on_deny),
            ("allowed_client_headers_on_success", allowed_client_headers_on_success, &mut check.to_client_on_allow),
        ] {
            *into = notes.optional(name, list, names)?.unwrap_or_default();
        }
    }
    Ok((target, CheckProtocol::Http(check), timed(timeout)?))
}

/// A header that is sent to an authorizer: its value is a format, as for Envoy.
fn added(key: &str, value: &[u8]) -> Result<(HeaderName, HeaderText), Invalid> {
    let (name, _) = settable(key, b"").map_err(Invalid::new)?;
    let text = HeaderText::parse(value, HeaderTarget::Request, false);
    Ok((name, text.map_err(|invalid| invalid.at(key))?))
}

#[expect(deprecated, reason = "it is looked at to be refused")]
fn no_older_list(request: Option<&pb::AuthorizationRequest>) -> Result<(), Invalid> {
    unsupported([(
        "authorization_request.allowed_headers",
        request.is_some_and(|request| request.allowed_headers.is_some()),
    )])
}

fn grpc_service(value: core::GrpcService) -> Result<Service, Invalid> {
    let core::GrpcService { timeout, initial_metadata, retry_policy, target_specifier } = value;
    unsupported([("initial_metadata", !initial_metadata.is_empty()), ("retry_policy", retry_policy.is_some())])?;
    let Some(TargetSpecifier::EnvoyGrpc(service)) = target_specifier else {
        return Err(Invalid::new("not supported").at("target_specifier"));
    };
    unsupported([
        ("envoy_grpc.retry_policy", service.retry_policy.is_some()),
        ("envoy_grpc.max_receive_message_length", service.max_receive_message_length.is_some()),
    ])?;
    let target = target(&service.authority).map_err(|invalid| invalid.at("envoy_grpc.authority"))?;
    let protocol = in_process(&target).map_or(CheckProtocol::Grpc, |name| CheckProtocol::InProcess(name.into()));
    Ok((target, protocol, timed(timeout)?))
}

/// By which name an authorizer is registered in the server's own process, if it is one of those.
fn in_process(target: &str) -> Option<&str> {
    let (host, _) = split_authority(target)?;
    host.strip_suffix(IN_PROCESS).filter(|name| !name.is_empty())
}

/// What the mesh's client calls: a host and a port.
pub(super) fn target(authority: &str) -> Result<Arc<str>, Invalid> {
    match split_authority(authority) {
        Some((_, Some(port))) if !port.is_empty() => Ok(authority.into()),
        _ => Err(Invalid::new(format!("{authority:?} is not HOST:PORT"))),
    }
}

fn timed(timeout: Option<protobuf::Duration>) -> Result<Option<Duration>, Invalid> {
    timeout.as_ref().map(positive).transpose().map_err(|invalid| invalid.at("timeout"))
}

fn names(notes: &mut Notes<'_>, list: matcher::ListStringMatcher) -> Result<Vec<StringTest>, Invalid> {
    notes.each("patterns", list.patterns, string_test)
}

/// By which RBAC filter's shadow rules somebody is asked: there is one way to say it, Istio's.
fn asked_by(value: matcher::MetadataMatcher) -> Result<Arc<str>, Invalid> {
    use matcher::metadata_matcher::path_segment::Segment;
    use matcher::value_matcher::MatchPattern;
    let matcher::MetadataMatcher { filter, path, value, invert } = value;
    let key = match path.as_slice() {
        [matcher::metadata_matcher::PathSegment { segment: Some(Segment::Key(key)) }] => {
            key.strip_suffix(SHADOW_POLICY)
        }
        _ => None,
    };
    let is_any = matches!(value.and_then(|value| value.match_pattern), Some(MatchPattern::PresentMatch(true)));
    match key {
        Some(prefix) if filter == RBAC && !prefix.is_empty() && is_any && !invert => Ok(prefix.into()),
        _ => Err(Invalid::new("only the presence of a decision of an RBAC filter's shadow rules is supported")),
    }
}
