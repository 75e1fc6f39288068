//! HTTP filters of a listener, and their overrides per route (gRFC A39).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3::FilterConfig as Wrapper;
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::AdaptiveConcurrency;
use envoy_types::pb::envoy::extensions::filters::http::admission_control::v3::AdmissionControl;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::{Cors, CorsPolicy};
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::ExtAuthz;
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::ExternalProcessor;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::JwtAuthentication;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::http::rate_limit_quota::v3::{
    RateLimitQuotaFilterConfig, RateLimitQuotaOverride,
};
use envoy_types::pb::envoy::extensions::filters::http::ratelimit::v3::{RateLimit, RateLimitPerRoute};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::{Rbac, RbacPerRoute};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::{
    StatefulSession, StatefulSessionPerRoute,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::google::protobuf::Any;

use super::common::{TypedStruct, filled, holds, type_name, unpack};
use super::cors;
use super::ext_authz::ext_authz;
use super::ext_proc;
use super::fault::fault;
use super::jwt::jwt;
use super::local_rate_limit::local_rate_limit;
use super::metrics;
use super::notes::Notes;
use super::overload;
use super::plugin::plugin;
use super::quota;
use super::rate_limit_service;
use super::rbac::{rbac, rbac_per_route};
use super::request_rules::request_rules;
use super::session;
use crate::error::Invalid;
use crate::model::{FilterConfig, MetricRules, NamedFilter, REQUEST_RULES};
use crate::state::States;

/// Filters that decide who may do what. Passing requests without one would be a hole, so a control plane cannot
/// make them optional.
const SECURITY: [&str; 9] = [
    "envoy.extensions.filters.http.rbac.v3.",
    "envoy.extensions.filters.http.jwt_authn.v3.",
    "envoy.extensions.filters.http.ext_authz.v3.",
    "envoy.extensions.filters.http.ext_proc.v3.",
    "envoy.extensions.filters.http.basic_auth.v3.",
    "envoy.extensions.filters.http.api_key_auth.v3.",
    "envoy.extensions.filters.http.oauth2.v3.",
    "envoy.extensions.filters.http.csrf.v3.",
    "envoy.extensions.filters.http.gcp_authn.v3.",
];

/// A filter's configuration, once its type is known.
enum Known {
    Filter(FilterConfig),
    Router,
    /// It only says how requests are counted.
    Metrics(MetricRules),
    /// It says that gRPC-Web is spoken, too.
    GrpcWeb,
    /// Not known, and the control plane says that it may be left out.
    Skipped,
}

/// What the filters of a listener come to.
pub(super) struct Chain {
    /// Those that requests pass, without the router that must end the list.
    pub(super) filters: Vec<NamedFilter>,
    /// How requests are counted.
    pub(super) metrics: Option<Arc<MetricRules>>,
    /// Whether gRPC-Web is spoken, too.
    pub(super) grpc_web: bool,
}

/// The filters of a listener.
pub(super) fn chain(notes: &mut Notes<'_>, filters: Vec<hcm::HttpFilter>) -> Result<Chain, Invalid> {
    if filters.is_empty() {
        return Err(Invalid::new("the list is empty").at("http_filters"));
    }
    let last = filters.len() - 1;
    let mut names = BTreeSet::new();
    let (mut position, mut metrics, mut grpc_web) = (0, None, false);
    let decoded = notes.each("http_filters", filters, |notes, filter| {
        let is_last = position == last;
        position += 1;
        let (name, known) = http_filter(notes, filter)?;
        if !names.insert(Arc::clone(&name)) {
            return Err(Invalid::new(format!("the name {name:?} is used twice")).at("name"));
        }
        match known {
            Known::Router if is_last => Ok(None),
            Known::Router => Err(Invalid::new("the router must be the last filter")),
            _ if is_last => Err(Invalid::new("the last filter must be the router")),
            Known::Filter(config) => Ok(Some(NamedFilter { name, config })),
            Known::Metrics(rules) => {
                metrics = Some(Arc::new(rules));
                Ok(None)
            }
            Known::GrpcWeb => {
                grpc_web = true;
                Ok(None)
            }
            Known::Skipped => Ok(None),
        }
    })?;
    let decoded: Vec<NamedFilter> = decoded.into_iter().flatten().collect();
    if decoded.iter().filter(|filter| matches!(filter.config, FilterConfig::Jwt(_))).count() > 1 {
        return Err(Invalid::new("a second JWT filter is not supported").at("http_filters"));
    }
    Ok(Chain { filters: decoded, metrics, grpc_web })
}

fn http_filter(notes: &mut Notes<'_>, filter: hcm::HttpFilter) -> Result<(Arc<str>, Known), Invalid> {
    use hcm::http_filter::ConfigType;
    let hcm::HttpFilter { name, is_optional, disabled, config_type } = filter;
    let name: Arc<str> = filled("name", name)?.into();
    let known = match config_type {
        Some(ConfigType::TypedConfig(any)) => notes.field("typed_config", |notes| {
            if holds::<Rbac>(&any) {
                return rbac(notes, &any).map(Known::Filter);
            }
            if holds::<JwtAuthentication>(&any) {
                return jwt(notes, &any).map(Known::Filter);
            }
            if holds::<ExtAuthz>(&any) {
                return ext_authz(notes, &any).map(Known::Filter);
            }
            if metrics::is_one(&any) {
                return metrics::decode(notes, &any).map(Known::Metrics);
            }
            if holds::<GrpcWeb>(&any) {
                return unpack::<GrpcWeb>(&any).map(|_| Known::GrpcWeb);
            }
            config(notes, &any, is_optional)
        })?,
        Some(ConfigType::ConfigDiscovery(_)) if is_optional => {
            notes.ignore("config_discovery");
            Known::Skipped
        }
        Some(ConfigType::ConfigDiscovery(_)) => return Err(Invalid::new("not supported").at("config_discovery")),
        None => return Err(Invalid::new("missing").at("typed_config")),
    };
    let known = match known {
        Known::Filter(FilterConfig::Jwt(_) | FilterConfig::ExtAuthz(_)) if disabled => {
            return Err(Invalid::new("a JWT or ext_authz filter that is turned off is not supported").at("disabled"));
        }
        // Off unless a route turns it on with a configuration of its own.
        Known::Filter(_) if disabled => Known::Filter(FilterConfig::Disabled),
        Known::Metrics(_) | Known::GrpcWeb if disabled => Known::Skipped,
        Known::Router if disabled => return Err(Invalid::new("the router cannot be turned off").at("disabled")),
        known => known,
    };
    Ok((name, known))
}

/// The overrides of a route, virtual host or weighted cluster.
pub(super) fn overrides(
    notes: &mut Notes<'_>,
    configs: HashMap<String, Any>,
) -> Result<BTreeMap<Arc<str>, FilterConfig>, Invalid> {
    let mut overrides = BTreeMap::new();
    for (name, any) in BTreeMap::from_iter(configs) {
        let config = notes.entry("typed_per_filter_config", &name, |notes| override_config(notes, &any))?;
        if let Some(config) = config {
            overrides.insert(Arc::from(name), config);
        }
    }
    Ok(overrides)
}

fn override_config(notes: &mut Notes<'_>, any: &Any) -> Result<Option<FilterConfig>, Invalid> {
    let known = if holds::<Wrapper>(any) {
        let Wrapper { config: inner, is_optional, disabled } = unpack(any)?;
        if disabled {
            return Ok(Some(FilterConfig::Disabled));
        }
        match inner {
            Some(inner) if holds::<Wrapper>(&inner) => {
                return Err(Invalid::new("a FilterConfig inside a FilterConfig").at("config"));
            }
            Some(inner) => notes.field("config", |notes| config_per_route(notes, &inner, is_optional))?,
            None => {
                // It would turn a filter back on that the listener turned off; this model has lost what to.
                notes.ignore("config");
                Known::Skipped
            }
        }
    } else {
        config_per_route(notes, any, false)?
    };
    match known {
        Known::Filter(config) => Ok(Some(config)),
        Known::Skipped => Ok(None),
        Known::Router | Known::Metrics(_) | Known::GrpcWeb => {
            notes.ignore("(it has no effect on one route)");
            Ok(None)
        }
    }
}

fn config_per_route(notes: &mut Notes<'_>, any: &Any, is_optional: bool) -> Result<Known, Invalid> {
    if holds::<StatefulSessionPerRoute>(any) {
        return session::per_route(notes, unpack(any)?).map(Known::Filter);
    }
    if holds::<CorsPolicy>(any) {
        return Ok(Known::Filter(FilterConfig::Cors(Arc::new(cors::policy(notes, unpack(any)?)?))));
    }
    if holds::<LocalRateLimit>(any) {
        return local_rate_limit(notes, any, true)
            .map(|limit| Known::Filter(FilterConfig::LocalRateLimit(Arc::new(limit))));
    }
    if holds::<RateLimitPerRoute>(any) {
        let here = rate_limit_service::per_route(notes, any)?;
        return Ok(Known::Filter(FilterConfig::RateLimitPerRoute(Arc::new(here))));
    }
    if holds::<RateLimitQuotaOverride>(any) {
        return Ok(Known::Filter(FilterConfig::QuotaPerRoute(Arc::new(quota::per_route(notes, any)?))));
    }
    match holds::<RbacPerRoute>(any) {
        true => rbac_per_route(notes, any).map(Known::Filter),
        false => config(notes, any, is_optional),
    }
}

fn config(notes: &mut Notes<'_>, any: &Any, is_optional: bool) -> Result<Known, Invalid> {
    if holds::<Router>(any) {
        return unpack::<Router>(any).map(|_| Known::Router);
    }
    if holds::<HttpFault>(any) {
        return Ok(Known::Filter(FilterConfig::Fault(Arc::new(fault(notes, unpack(any)?)?))));
    }
    // It has no policy: routes and virtual hosts have.
    if holds::<Cors>(any) {
        return unpack::<Cors>(any).map(|_| Known::Filter(FilterConfig::Cors(Arc::default())));
    }
    if holds::<LocalRateLimit>(any) {
        let limit = local_rate_limit(notes, any, false)?;
        return Ok(Known::Filter(FilterConfig::LocalRateLimit(Arc::new(limit))));
    }
    if holds::<RateLimit>(any) {
        let limit = rate_limit_service::rate_limit_service(notes, any)?;
        return Ok(Known::Filter(FilterConfig::RateLimit(Arc::new(limit))));
    }
    if holds::<ExternalProcessor>(any) {
        return ext_proc::ext_proc(notes, any).map(Known::Filter);
    }
    if holds::<RateLimitQuotaFilterConfig>(any) {
        return Ok(Known::Filter(FilterConfig::RateLimitQuota(Arc::new(quota::quota(notes, any)?))));
    }
    if holds::<AdaptiveConcurrency>(any) {
        return overload::adaptive_concurrency(notes, any).map(Known::Filter);
    }
    if holds::<AdmissionControl>(any) {
        return overload::admission_control(notes, unpack(any)?).map(Known::Filter);
    }
    if holds::<StatefulSession>(any) {
        return session::session(notes, unpack(any)?).map(Known::Filter);
    }
    let custom = TypedStruct::from_any(any)?;
    let name = custom.as_ref().map_or(&any.type_url, |custom| &custom.type_url);
    let name = type_name(name);
    if let Some(custom) = custom.as_ref().filter(|_| name == REQUEST_RULES) {
        return Ok(Known::Filter(FilterConfig::RequestRules(Arc::new(request_rules(&custom.json()?)?))));
    }
    if let Some(custom) = &custom
        && let Some(config) = plugin(notes, any, custom)?
    {
        return Ok(Known::Filter(config));
    }
    if let Some(custom) = &custom
        && let Some(registered) = notes.options.custom_filters.registered(name)
    {
        let config = FilterConfig::Custom(Arc::clone(registered), custom.json()?);
        // Tried out here, so that what the filter refuses is rejected and the last good configuration stays in force.
        // A trial: what is made of it here, its state too, is dropped.
        notes.options.custom_filters.build(&config, &States::default().filter("", registered))?;
        return Ok(Known::Filter(config));
    }
    if SECURITY.iter().any(|package| name.starts_with(package)) {
        return Err(Invalid::new(format!("the security filter {name:?} is not supported here")));
    }
    if is_optional {
        notes.ignore(&format!("({name})"));
        return Ok(Known::Skipped);
    }
    Err(Invalid::new(format!("the filter {name:?} is not supported and not optional")))
}
