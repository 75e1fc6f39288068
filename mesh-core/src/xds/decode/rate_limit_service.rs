//! Global rate limits (`envoy.extensions.filters.http.ratelimit.v3`), of a listener, and what virtual hosts and routes say in
//! their place.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::ratelimit::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::ratelimit::v3::rate_limit::XRateLimitHeadersRfcVersion;
use envoy_types::pb::envoy::extensions::filters::http::ratelimit::v3::rate_limit_per_route::VhRateLimitsOptions;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::common::{filled, parse, positive, runtime_share, status_from, unpack};
use super::ext_authz::target;
use super::headers::{self, mutations};
use super::notes::{Notes, ignored};
use super::rate_limits::{rate_limits, stage};
use crate::error::Invalid;
use crate::model::{Fraction, GlobalRateLimit, OfHost, RateLimitPerRoute, RestHeaders};

/// What `mesh-control` says besides, to the library alone: behind the fields that Envoy knows, in the same message.
#[derive(Clone, PartialEq, Message)]
pub struct RateLimitBesides {
    /// Answers tell what is left in `RateLimit-Policy` and `RateLimit`.
    #[prost(bool, tag = "1000")]
    pub tells_rest: bool,
}

/// Of a listener.
pub(super) fn rate_limit_service(notes: &mut Notes<'_>, any: &Any) -> Result<GlobalRateLimit, Invalid> {
    let pb::RateLimit {
        domain,
        stage: of_stage,
        request_type,
        timeout,
        failure_mode_deny: fails_closed,
        rate_limited_as_resource_exhausted: is_exhaustion,
        rate_limit_service,
        enable_x_ratelimit_headers,
        disable_x_envoy_ratelimited_header,
        rate_limited_status,
        response_headers_to_add,
        status_on_error,
        stat_prefix,
        filter_enabled,
        filter_enforced,
        failure_mode_deny_percent,
        rate_limits: own,
        metadata_namespace,
        enable_retry_after_header: tells_when,
    } = unpack(any)?;
    let RateLimitBesides { tells_rest } = parse(&any.value)?;
    ignored!(notes; metadata_namespace);
    match request_type.as_str() {
        "" | "both" => {}
        // Who says of a request that it comes from inside is its client, whom nobody has to believe.
        "internal" | "external" => notes.ignore("request_type (all requests are asked about)"),
        _ => return Err(Invalid::new("none of internal, external and both").at("request_type")),
    }
    if failure_mode_deny_percent.is_some() {
        notes.ignore("failure_mode_deny_percent (failure_mode_deny counts for all)");
    }
    let service = rate_limit_service.and_then(|service| service.grpc_service);
    let service = service.ok_or_else(|| Invalid::new("missing").at("rate_limit_service.grpc_service"))?;
    let (target, of_service) =
        grpc_service(notes, service).map_err(|invalid| invalid.at("rate_limit_service.grpc_service"))?;
    let timeout = timeout.as_ref().map(positive).transpose().map_err(|invalid| invalid.at("timeout"))?;
    let changes = mutations(notes, headers::Lists { response_headers_to_add, ..headers::Lists::default() })?;
    let mut config = GlobalRateLimit::new(filled("domain", domain)?, target);
    if !stat_prefix.is_empty() {
        config.name = stat_prefix.into();
    }
    config.timeout = timeout.or(of_service).unwrap_or(config.timeout);
    config.fails_closed = fails_closed;
    config.is_exhaustion = is_exhaustion;
    config.stage = stage(of_stage)?;
    config.rate_limits = rate_limits(notes, own)?;
    config.enabled = runtime_share(notes, "filter_enabled", filter_enabled)?.unwrap_or(Fraction::ALL);
    config.enforced = runtime_share(notes, "filter_enforced", filter_enforced)?.unwrap_or(Fraction::ALL);
    // As in Envoy, what is no such status is the default.
    config.status = rate_limited_status.and_then(|status| status_from(400, &status)).unwrap_or(config.status);
    config.status_on_error =
        status_on_error.and_then(|status| status_from(200, &status)).unwrap_or(config.status_on_error);
    config.tells_why = !disable_x_envoy_ratelimited_header;
    config.tells_when = tells_when;
    config.tells = match XRateLimitHeadersRfcVersion::try_from(enable_x_ratelimit_headers) {
        Ok(_) if tells_rest => RestHeaders::RateLimit,
        Ok(XRateLimitHeadersRfcVersion::Off) => RestHeaders::None,
        Ok(XRateLimitHeadersRfcVersion::DraftVersion03) => RestHeaders::XRateLimit,
        Err(_) => return Err(Invalid::new("not a known value").at("enable_x_ratelimit_headers")),
    };
    config.response_changes = changes.response;
    Ok(config)
}

/// Of a virtual host or a route.
pub(super) fn per_route(notes: &mut Notes<'_>, any: &Any) -> Result<RateLimitPerRoute, Invalid> {
    let pb::RateLimitPerRoute { vh_rate_limits, override_option, rate_limits: own, domain } = unpack(any)?;
    ignored!(notes; override_option);
    Ok(RateLimitPerRoute {
        domain: (!domain.is_empty()).then(|| domain.into()),
        rate_limits: rate_limits(notes, own)?,
        of_host: match VhRateLimitsOptions::try_from(vh_rate_limits) {
            Ok(VhRateLimitsOptions::Override) => OfHost::Without,
            Ok(VhRateLimitsOptions::Include) => OfHost::Always,
            Ok(VhRateLimitsOptions::Ignore) => OfHost::Never,
            Err(_) => return Err(Invalid::new("not a known value").at("vh_rate_limits")),
        },
    })
}

/// Whom the mesh's client calls, and for how long it may take. As with authorizers it is the authority; where that says no port,
/// the name of the cluster does, as Istio calls it.
pub(super) fn grpc_service(
    notes: &mut Notes<'_>,
    value: core::GrpcService,
) -> Result<(Arc<str>, Option<Duration>), Invalid> {
    let core::GrpcService { timeout, initial_metadata, retry_policy, target_specifier } = value;
    ignored!(notes; initial_metadata, retry_policy);
    let Some(TargetSpecifier::EnvoyGrpc(service)) = target_specifier else {
        return Err(Invalid::new("only envoy_grpc is supported").at("target_specifier"));
    };
    let timeout = timeout.as_ref().map(positive).transpose().map_err(|invalid| invalid.at("timeout"))?;
    let of_cluster = || {
        let mut parts = service.cluster_name.split('|');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("outbound"), Some(port), Some(""), Some(host), None) => target(&format!("{host}:{port}")).ok(),
            _ => None,
        }
    };
    let target =
        target(&service.authority).or_else(|invalid| of_cluster().ok_or(invalid.at("envoy_grpc.authority")))?;
    Ok((target, timeout))
}
