//! What becomes of a request (`envoy.config.route.v3.Route.action`, gRFC A28, A31, A44).
//!
//! An action that is valid and not built makes its route unusable: requests that match it fail with the reason,
//! and are not sent to wherever the next route leads.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use http::{HeaderName, HeaderValue, StatusCode};

use super::common::{duration, filled, fraction};
use super::headers::{self, mutations};
use super::notes::{Notes, ignored};
use super::{filter, hashing, rate_limits, retry};
use crate::error::Invalid;
use crate::model::{
    Clusters, DirectResponse, Forward, Fraction, HashKey, HashPolicy, MaxStreamDuration, Mirror, MirrorHost,
    PathChange, PathRewrite, Redirect, RetryPolicy, RouteAction, SplitBy, WeightedCluster,
};

/// The largest body of a direct response, in bytes.
const MAX_BODY: usize = 1 << 20;

/// What a route inherits from its virtual host and route configuration.
pub(super) struct Inherited {
    /// Cluster specifier plugins by name; the value says whether they are optional. None is supported.
    pub(super) plugins: HashMap<String, bool>,
    /// The retry policy of the virtual host; a route's own replaces it.
    pub(super) retry: Option<Arc<RetryPolicy>>,
    /// Whether requests are hedged; what a route says of it goes before.
    pub(super) hedges: bool,
}

pub(super) fn action(
    notes: &mut Notes<'_>,
    value: Option<pb::route::Action>,
    inherited: &Inherited,
) -> Result<RouteAction, Invalid> {
    use pb::route::Action;
    match value {
        Some(Action::Route(value)) => notes.field("route", |notes| forward(notes, value, inherited)),
        Some(Action::Redirect(value)) => notes.field("redirect", |notes| redirect(notes, value)),
        Some(Action::DirectResponse(value)) => notes.field("direct_response", |notes| direct(notes, value)),
        Some(Action::NonForwardingAction(_)) => Ok(RouteAction::NonForwarding),
        Some(Action::FilterAction(_)) => Ok(unusable("filter_action is not supported")),
        None => Ok(unusable("the route has no known action")),
    }
}

pub(super) fn unusable(reason: &str) -> RouteAction {
    RouteAction::Unusable(Arc::from(reason))
}

fn forward(notes: &mut Notes<'_>, value: pb::RouteAction, inherited: &Inherited) -> Result<RouteAction, Invalid> {
    let pb::RouteAction {
        cluster_not_found_response_code,
        metadata_match,
        prefix_rewrite,
        regex_rewrite,
        path_rewrite_policy,
        path_rewrite,
        append_x_forwarded_host,
        timeout,
        idle_timeout,
        flush_timeout,
        early_data_policy,
        retry_policy,
        retry_policy_typed_config,
        request_mirror_policies,
        priority,
        rate_limits,
        include_vh_rate_limits,
        hash_policy,
        cors,
        max_grpc_timeout,
        grpc_timeout_offset,
        upgrade_configs,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects,
        hedge_policy,
        max_stream_duration,
        cluster_specifier,
        host_rewrite_specifier,
    } = value;
    ignored!(notes;
        cluster_not_found_response_code, append_x_forwarded_host, idle_timeout, flush_timeout, early_data_policy,
        retry_policy_typed_config, priority, cors, max_grpc_timeout, grpc_timeout_offset, upgrade_configs, internal_redirect_policy,
        internal_redirect_action, max_internal_redirects);
    let path = match (prefix_rewrite, regex_rewrite) {
        (prefix, None) if prefix.is_empty() => None,
        (prefix, None) => Some(PathChange::Prefix(prefix)),
        (prefix, Some(regex)) if prefix.is_empty() => {
            Some(PathChange::Regex(notes.field("regex_rewrite", |_| path_rewrite_regex(regex))?))
        }
        _ => return Err(Invalid::new("prefix_rewrite and regex_rewrite exclude each other")),
    };
    let authority = match host_rewrite(notes, host_rewrite_specifier)? {
        Ok(authority) => authority,
        Err(reason) => return Ok(unusable(reason)),
    };
    let (clusters, split_by) = match clusters(notes, cluster_specifier, inherited)? {
        Ok(clusters) => clusters,
        Err(reason) => return Ok(unusable(reason)),
    };
    let mut retry = notes.optional("retry_policy", retry_policy, retry::policy)?.or_else(|| inherited.retry.clone());
    let hedges = notes.optional("hedge_policy", hedge_policy, retry::hedges)?.unwrap_or(inherited.hedges);
    match &mut retry {
        // Those who share it may not be hedged.
        Some(policy) if hedges && policy.per_try_timeout.is_some() => Arc::make_mut(policy).hedges = true,
        // Without the time of a try, nothing is ever late.
        _ if hedges => notes.ignore("hedge_policy (without per_try_timeout)"),
        _ => {}
    }
    let forward = Forward {
        clusters,
        split_by,
        path,
        authority,
        timeout: notes.optional("timeout", timeout, |_, value| duration(&value))?,
        max_stream_duration: notes.optional("max_stream_duration", max_stream_duration, stream_duration)?,
        retry,
        mirrors: notes
            .each("request_mirror_policies", request_mirror_policies, mirror)?
            .into_iter()
            .flatten()
            .collect(),
        coalesces: false,
        rate_limits: rate_limits::rate_limits(notes, rate_limits)?,
        includes_host_rate_limits: include_vh_rate_limits.is_some_and(|includes| includes.value),
        idle_timeout: None,
        tunnel: None,
        hash_policies: notes.each("hash_policy", hash_policy, hashing::hash_policy)?.into_iter().flatten().collect(),
    };
    let is_of_caller = |policy: &HashPolicy| matches!(policy.key, HashKey::SourceAddress | HashKey::Channel);
    if forward.split_by == SplitBy::HashPolicies && forward.hash_policies.iter().any(is_of_caller) {
        notes.ignore("weighted_clusters.use_hash_policy of what tells callers apart");
    }
    // These choose among endpoints or change what is sent, so that going on without them is no option.
    for (is_set, reason) in [
        (metadata_match.is_some(), "metadata_match (subsets of a cluster) is not supported"),
        (path_rewrite_policy.is_some(), "path_rewrite_policy is not supported yet"),
        (!path_rewrite.is_empty(), "path_rewrite is not supported yet"),
    ] {
        if is_set {
            return Ok(unusable(reason));
        }
    }
    Ok(RouteAction::Forward(forward))
}

/// Who gets a copy; `None` where it is nobody who could be named.
fn mirror(notes: &mut Notes<'_>, value: pb::route_action::RequestMirrorPolicy) -> Result<Option<Mirror>, Invalid> {
    let pb::route_action::RequestMirrorPolicy {
        cluster,
        cluster_header,
        runtime_fraction,
        trace_sampled,
        disable_shadow_host_suffix_append,
        request_headers_mutations,
        host_rewrite_literal,
    } = value;
    ignored!(notes; cluster_header, trace_sampled, request_headers_mutations);
    let host = match (host_rewrite_literal.as_str(), disable_shadow_host_suffix_append) {
        ("", true) => MirrorHost::Same,
        ("", false) => MirrorHost::Suffixed,
        (host, _) => {
            let value = HeaderValue::try_from(host).map_err(|_| Invalid::new("not a host").at("host_rewrite_literal"));
            MirrorHost::Literal(value?)
        }
    };
    if cluster.is_empty() {
        // By a header, or by what is not known yet: no request depends on it.
        notes.ignore("(a mirror without a cluster)");
        return Ok(None);
    }
    let share = runtime_fraction.and_then(|share| share.default_value);
    let share = notes.optional("runtime_fraction", share, |_, share| fraction(&share))?;
    Ok(Some(Mirror {
        fraction: share.unwrap_or(Fraction::ALL),
        host,
        ..Mirror::to(notes.field("cluster", |notes| notes.cluster(&cluster))?)
    }))
}

/// The new authority; the inner error is the reason for which the route cannot be used.
fn host_rewrite(
    notes: &mut Notes<'_>,
    value: Option<pb::route_action::HostRewriteSpecifier>,
) -> Result<Result<Option<HeaderValue>, &'static str>, Invalid> {
    use pb::route_action::HostRewriteSpecifier as Kind;
    Ok(match value {
        None => Ok(None),
        Some(Kind::HostRewriteLiteral(host)) => Ok(literal_host(host)?),
        Some(Kind::AutoHostRewrite(on)) => {
            // gRFC A81: honoured only from a server that is marked as trusted; not built.
            if on.value {
                notes.ignore("auto_host_rewrite");
            }
            Ok(None)
        }
        Some(Kind::HostRewriteHeader(_)) => Err("host_rewrite_header is not supported yet"),
        Some(Kind::HostRewritePathRegex(_)) => Err("host_rewrite_path_regex is not supported yet"),
        Some(Kind::HostRewrite(_)) => Err("host_rewrite is not supported yet"),
    })
}

/// The clusters, and what a split goes by; the inner error is the reason for which the route cannot be used.
fn clusters(
    notes: &mut Notes<'_>,
    value: Option<pb::route_action::ClusterSpecifier>,
    inherited: &Inherited,
) -> Result<Result<(Clusters, SplitBy), &'static str>, Invalid> {
    use pb::route_action::ClusterSpecifier as Kind;
    let plugin = "cluster specifier plugins are not supported";
    Ok(match value {
        Some(Kind::Cluster(name)) => {
            Ok((Clusters::One(notes.field("cluster", |notes| notes.cluster(&name))?), SplitBy::Chance))
        }
        Some(Kind::WeightedClusters(value)) => {
            return notes.field("weighted_clusters", |notes| weighted(notes, value));
        }
        Some(Kind::ClusterHeader(_)) => Err("cluster_header is not supported yet"),
        Some(Kind::ClusterSpecifierPlugin(name)) => match inherited.plugins.get(&name) {
            Some(true) => Err(plugin),
            Some(false) => return Err(Invalid::new(plugin).at("cluster_specifier_plugin")),
            None => return Err(Invalid::new(format!("no plugin is named {name:?}")).at("cluster_specifier_plugin")),
        },
        Some(Kind::InlineClusterSpecifierPlugin(value)) if value.is_optional => Err(plugin),
        Some(Kind::InlineClusterSpecifierPlugin(_)) => {
            return Err(Invalid::new(plugin).at("inline_cluster_specifier_plugin"));
        }
        None => Err("the route names no known kind of cluster"),
    })
}

fn weighted(
    notes: &mut Notes<'_>,
    value: pb::WeightedCluster,
) -> Result<Result<(Clusters, SplitBy), &'static str>, Invalid> {
    use pb::weighted_cluster::RandomValueSpecifier as By;
    let pb::WeightedCluster { clusters, total_weight, runtime_key_prefix, random_value_specifier } = value;
    ignored!(notes; total_weight, runtime_key_prefix);
    let split_by = match random_value_specifier {
        Some(By::UseHashPolicy(by_hash)) if by_hash.value => SplitBy::HashPolicies,
        Some(By::HeaderName(name)) if !name.is_empty() => {
            let name =
                HeaderName::try_from(name).map_err(|_| Invalid::new("not the name of a header").at("header_name"));
            SplitBy::Header(name?)
        }
        Some(By::UseHashPolicy(_) | By::HeaderName(_)) | None => SplitBy::Chance,
    };
    let clusters = notes.each("clusters", clusters, weighted_cluster)?;
    let sum: u64 = clusters.iter().map(|cluster| cluster.as_ref().map_or(0, |cluster| u64::from(cluster.weight))).sum();
    if sum > u64::from(u32::MAX) {
        return Err(Invalid::new("the weights add up to more than 4294967295").at("clusters"));
    }
    let clusters: Result<Vec<WeightedCluster>, &'static str> = clusters.into_iter().collect();
    let mut clusters = match clusters {
        Ok(clusters) => clusters,
        Err(reason) => return Ok(Err(reason)),
    };
    // Zero-weight entries are skipped (gRFC A28).
    clusters.retain(|cluster| cluster.weight > 0);
    if clusters.is_empty() {
        return Err(Invalid::new("every weight is zero").at("clusters"));
    }
    Ok(Ok((Clusters::Weighted(clusters), split_by)))
}

fn weighted_cluster(
    notes: &mut Notes<'_>,
    value: pb::weighted_cluster::ClusterWeight,
) -> Result<Result<WeightedCluster, &'static str>, Invalid> {
    use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier;
    let pb::weighted_cluster::ClusterWeight {
        name,
        cluster_header,
        weight,
        metadata_match,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        typed_per_filter_config,
        host_rewrite_specifier,
    } = value;
    if !cluster_header.is_empty() {
        return Ok(Err("cluster_header is not supported yet"));
    }
    if metadata_match.is_some() {
        return Ok(Err("metadata_match (subsets of a cluster) is not supported"));
    }
    let authority = host_rewrite_specifier.map(|HostRewriteSpecifier::HostRewriteLiteral(host)| literal_host(host));
    Ok(Ok(WeightedCluster {
        name: notes.field("name", |notes| notes.cluster(&name))?,
        weight: weight.map_or(0, |weight| weight.value),
        mutations: mutations(
            notes,
            headers::Lists {
                request_headers_to_add,
                request_headers_to_remove,
                response_headers_to_add,
                response_headers_to_remove,
            },
        )?,
        authority: authority.transpose()?.flatten(),
        filters: filter::overrides(notes, typed_per_filter_config)?,
    }))
}

/// A host that is written; an empty one is none.
fn literal_host(host: String) -> Result<Option<HeaderValue>, Invalid> {
    let host = (!host.is_empty()).then(|| HeaderValue::try_from(host)).transpose();
    host.map_err(|_| Invalid::new("not a host").at("host_rewrite_literal"))
}

fn stream_duration(
    notes: &mut Notes<'_>,
    value: pb::route_action::MaxStreamDuration,
) -> Result<MaxStreamDuration, Invalid> {
    let pb::route_action::MaxStreamDuration {
        max_stream_duration,
        grpc_timeout_header_max,
        grpc_timeout_header_offset,
    } = value;
    ignored!(notes; grpc_timeout_header_offset);
    Ok(MaxStreamDuration {
        limit: notes.optional("max_stream_duration", max_stream_duration, |_, value| duration(&value))?,
        grpc_timeout_max: notes.optional("grpc_timeout_header_max", grpc_timeout_header_max, |_, v| duration(&v))?,
    })
}

fn redirect(notes: &mut Notes<'_>, value: pb::RedirectAction) -> Result<RouteAction, Invalid> {
    use pb::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let pb::RedirectAction {
        host_redirect,
        port_redirect,
        response_code,
        strip_query,
        scheme_rewrite_specifier,
        path_rewrite_specifier,
    } = value;
    let status = match RedirectResponseCode::try_from(response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
        Ok(RedirectResponseCode::Found) => StatusCode::FOUND,
        Ok(RedirectResponseCode::SeeOther) => StatusCode::SEE_OTHER,
        Ok(RedirectResponseCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
        Ok(RedirectResponseCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
        Err(_) => return Err(Invalid::new("not a known value").at("response_code")),
    };
    let port = u16::try_from(port_redirect)
        .map_err(|_| Invalid::new(format!("{port_redirect} is not a port")).at("port_redirect"))?;
    let path = match path_rewrite_specifier {
        None => None,
        Some(PathRewriteSpecifier::PathRedirect(path)) => {
            HeaderValue::try_from(&path).map_err(|_| Invalid::new("not a path").at("path_redirect"))?;
            Some(PathChange::Full(path))
        }
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => Some(PathChange::Prefix(prefix)),
        Some(PathRewriteSpecifier::RegexRewrite(regex)) => {
            Some(PathChange::Regex(notes.field("regex_rewrite", |_| path_rewrite_regex(regex))?))
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => return Ok(unusable("path_rewrite is not supported yet")),
    };
    let host = (!host_redirect.is_empty()).then_some(host_redirect);
    if let Some(host) = &host {
        HeaderValue::try_from(host).map_err(|_| Invalid::new("not a host").at("host_redirect"))?;
    }
    let scheme = match scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".to_owned()),
        Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => {
            http::uri::Scheme::try_from(scheme.as_str())
                .map_err(|_| Invalid::new("not a scheme").at("scheme_redirect"))?;
            Some(scheme)
        }
    };
    let port = (port > 0).then_some(port);
    Ok(RouteAction::Redirect(Redirect { status, scheme, host, port, path, strip_query }))
}

pub(super) fn path_rewrite_regex(value: RegexMatchAndSubstitute) -> Result<PathRewrite, Invalid> {
    let pattern = value.pattern.ok_or_else(|| Invalid::new("missing").at("pattern"))?;
    PathRewrite::new(&filled("pattern.regex", pattern.regex)?, &value.substitution)
}

fn direct(notes: &mut Notes<'_>, value: pb::DirectResponseAction) -> Result<RouteAction, Invalid> {
    use core::data_source::Specifier;
    let pb::DirectResponseAction { status, body, body_format } = value;
    ignored!(notes; body_format);
    let status = u16::try_from(status)
        .ok()
        .filter(|status| (200..=599).contains(status))
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| Invalid::new(format!("{status} is not a status from 200 to 599")).at("status"))?;
    let body = match body.and_then(|body| body.specifier) {
        None => Vec::new(),
        Some(Specifier::InlineBytes(bytes)) => bytes,
        Some(Specifier::InlineString(text)) => text.into_bytes(),
        // A control plane has no business reading the application's files and environment.
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            return Ok(unusable("a direct response's body must be inline"));
        }
    };
    if body.len() > MAX_BODY {
        return Err(Invalid::new(format!("larger than {MAX_BODY} bytes")).at("body"));
    }
    Ok(RouteAction::Direct(DirectResponse { status, body: body.into() }))
}
