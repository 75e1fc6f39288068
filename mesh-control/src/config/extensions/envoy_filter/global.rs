//! `envoy.filters.http.ratelimit` in an `EnvoyFilter`: a service is asked, as Istio documents it for global rate limits.

use std::time::Duration;

use mesh_core::model::{Fraction, GlobalRateLimit, HeaderTarget, RestHeaders};
use mesh_core::request::split_authority;

use super::counted::{RateLimitEntry, shared};
use super::{AddedHeader, Fault, HttpStatus, RestWord, Share};
use crate::config::decode::{At, Opaque, Text, keywords, message};
use crate::config::diagnostic::quoted;

message! {
    /// `RateLimit`.
    pub struct Global {
        domain: Text = "domain" required,
        stat_prefix: Text = "stat_prefix",
        request_type: RequestType = "request_type",
        timeout: Option<At<Duration>> = "timeout",
        fails_closed: Option<bool> = "failure_mode_deny",
        service: RateLimitService = "rate_limit_service" required,
        is_exhaustion: Option<bool> = "rate_limited_as_resource_exhausted",
        rest: RestWord = "enable_x_ratelimit_headers",
        hides_why: Option<bool> = "disable_x_envoy_ratelimited_header",
        status: HttpStatus = "rate_limited_status",
        status_on_error: HttpStatus = "status_on_error",
        response_headers: Vec<AddedHeader> = "response_headers_to_add",
        filter_enabled: Option<Share> = "filter_enabled",
        filter_enforced: Option<Share> = "filter_enforced",
        rate_limits: Vec<RateLimitEntry> = "rate_limits",
        retry_after: Option<bool> = "enable_retry_after_header",
    }
    pub struct RateLimitService {
        grpc: GrpcService = "grpc_service" required,
        version: ApiVersion = "transport_api_version",
    }
    pub struct GrpcService {
        envoy: EnvoyGrpc = "envoy_grpc" required,
        timeout: Option<At<Duration>> = "timeout",
    }
    pub struct EnvoyGrpc {
        cluster: Text = "cluster_name" required,
        authority: Opaque = "authority",
    }
}

keywords! {
    pub enum ApiVersion {
        Auto = "AUTO",
        Third = "V3",
    }
    pub enum RequestType {
        Both = "both",
    }
}

impl Global {
    pub(super) fn limit(&self, at: &str, faults: &mut Vec<Fault>) -> GlobalRateLimit {
        let EnvoyGrpc { cluster, .. } = &self.service.grpc.envoy;
        let target = target(cluster).unwrap_or_else(|| {
            let message = format!("the cluster {}: outbound|PORT||HOST is expected", quoted(cluster));
            let field = "rate_limit_service.grpc_service.envoy_grpc.cluster_name";
            faults.push((cluster.span, format!("{at}.{field}"), message));
            String::new()
        });
        let mut limit = GlobalRateLimit::new(self.domain.as_str(), target);
        if self.domain.is_empty() {
            faults.push((self.domain.span, format!("{at}.domain"), "an empty domain".to_owned()));
        }
        if !self.stat_prefix.is_empty() {
            limit.name = self.stat_prefix.as_str().into();
        }
        if let Some(timeout) = self.timeout.as_ref().or(self.service.grpc.timeout.as_ref()) {
            if timeout.is_zero() {
                faults.push((timeout.span, format!("{at}.timeout"), "no time at all".to_owned()));
            }
            limit.timeout = **timeout;
        }
        limit.fails_closed = self.fails_closed.unwrap_or(false);
        limit.is_exhaustion = self.is_exhaustion.unwrap_or(false);
        limit.tells = if self.rest == RestWord::Draft { RestHeaders::XRateLimit } else { RestHeaders::None };
        limit.tells_why = !self.hides_why.unwrap_or(false);
        limit.tells_when = self.retry_after.unwrap_or(false);
        limit.status = self.status.at_least(400).unwrap_or(limit.status);
        limit.status_on_error = self.status_on_error.at_least(200).unwrap_or(limit.status_on_error);
        limit.response_changes = super::added(&self.response_headers, HeaderTarget::Response, at, faults);
        limit.rate_limits = shared(&self.rate_limits, at, faults);
        // Unset is all, other than of local limits.
        let share = |share: &Option<Share>| if share.is_some() { Share::read(share) } else { Fraction::ALL };
        (limit.enabled, limit.enforced) = (share(&self.filter_enabled), share(&self.filter_enforced));
        limit
    }
}

/// Whom a cluster of Istio's is.
fn target(cluster: &str) -> Option<String> {
    let parts: Vec<&str> = cluster.split('|').collect();
    let ["outbound", port, "", host] = parts.as_slice() else { return None };
    let target = format!("{host}:{port}");
    match split_authority(&target) {
        Some((_, Some(port))) if !port.is_empty() => Some(target),
        _ => None,
    }
}
