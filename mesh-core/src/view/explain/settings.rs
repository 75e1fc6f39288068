//! Settings of routes and clusters, by their names, as values and in words.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue, PROXY_AUTHORIZATION, SET_COOKIE};
use serde_json::{Map, Value, json};

use super::written;
use crate::matcher::string;
use crate::model::{
    BalancerPolicy, CircuitBreakers, Cluster, ClusterKind, ClusterProtocol, ClusterTls, Consecutive, CorsPolicy, Fault,
    Fraction, HashKey, HashPolicy, HashedHeader, HeaderChange, HeaderMutations, HeaderTarget, HeaderText, HealthCheck,
    OutlierDetection, PathChange, RetryLimit, RetryPolicy, Roots, TlsMaterial,
};

/// Settings with their names, and where each is written.
pub(super) type Settings = Vec<(&'static str, Value)>;
pub(super) type Origins = [(&'static str, Arc<str>)];

pub(super) fn origin_of<'o>(origins: &'o Origins, name: &str) -> Option<&'o Arc<str>> {
    origins.iter().find(|(of, _)| *of == name).map(|(_, origin)| origin)
}

pub(super) fn with_settings(mut object: Map<String, Value>, settings: Settings, origins: &Origins) -> Value {
    object.extend(settings.into_iter().map(|(name, value)| (name.to_owned(), value)));
    let origins = origins.iter().map(|(name, origin)| ((*name).to_owned(), Value::from(&**origin)));
    object.insert("origins".to_owned(), Value::Object(origins.collect()));
    Value::Object(object)
}

pub(super) fn printed(f: &mut fmt::Formatter<'_>, indent: &str, settings: Settings, origins: &Origins) -> fmt::Result {
    for (name, value) in settings {
        let title = name.replace('_', " ");
        write!(f, "\n{indent}{title}: {}{}", said(&value), written(origin_of(origins, name)))?;
    }
    Ok(())
}

/// A setting as text.
pub(super) fn said(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            // Where one ends and the next begins has to be seen.
            let item = |item: &Value| if item.is_object() { format!("({})", said(item)) } else { said(item) };
            items.iter().map(item).collect::<Vec<_>>().join(" and ")
        }
        Value::Object(fields) => {
            /// What names the rest.
            const FIRST: [&str; 5] = ["name", "policy", "status", "attempts", "on"];
            let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| FIRST.iter().position(|first| first == name).unwrap_or(FIRST.len()));
            let fields = fields.into_iter().filter_map(|(name, value)| {
                let title = name.replace('_', " ");
                match value {
                    Value::Bool(is_so) => is_so.then_some(title),
                    value if *name == "policy" => Some(said(value)),
                    value => Some(format!("{title} {}", said(value))),
                }
            });
            fields.collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Map::new(),
    }
}

/// An object without what is null.
pub(super) fn fields(value: Value) -> Value {
    Value::Object(object(value))
}

pub(super) fn time(duration: Duration) -> Value {
    format!("{duration:?}").into()
}

/// What a route hashes of requests: header x-user, or else, where requests may lack it, what comes after it.
pub(super) fn hashed_by(policies: &[HashPolicy]) -> String {
    let mut kept: Vec<&HashPolicy> = Vec::new();
    for policy in policies {
        // What was not there to be hashed is not there the second time either.
        if !kept.iter().any(|earlier| earlier.terminal && earlier.key == policy.key) {
            kept.push(policy);
        }
    }
    let mut text = String::new();
    for (at, policy) in kept.iter().enumerate() {
        let by = match &policy.key {
            HashKey::Header(HashedHeader::Real(name), _) => format!("header {name}"),
            HashKey::Header(HashedHeader::Method, _) => "method".to_owned(),
            HashKey::Header(HashedHeader::Path, _) => "path".to_owned(),
            HashKey::Header(HashedHeader::Authority, _) => "authority".to_owned(),
            HashKey::Header(HashedHeader::Scheme, _) => "scheme".to_owned(),
            HashKey::Cookie(cookie) => format!("cookie {}", cookie.name),
            HashKey::Query(name) => format!("query parameter {name}"),
            HashKey::SourceAddress => "address of the process".to_owned(),
            HashKey::Channel => "client of the process".to_owned(),
        };
        let before = at.checked_sub(1).and_then(|before| kept.get(before));
        text += before.map_or("", |before| if before.terminal { ", else " } else { " and " });
        text += &by;
    }
    text
}

/// Weights as somebody would write them who wants these shares: in percent where that is exact, else the smallest whole numbers.
/// A sticky split comes in parts of a million, each rounded.
///
/// ```
/// use mesh_core::view::plain_weights;
///
/// assert_eq!(plain_weights(&[700_000, 300_000]), [70, 30]);
/// assert_eq!(plain_weights(&[333_333, 666_667]), [1, 2]);
/// ```
pub fn plain_weights(weights: &[u32]) -> Vec<u32> {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let scaled = |to: u64| {
        let plain = weights.iter().map(|weight| {
            let weight = u64::from(*weight);
            let plain = (weight * to + total / 2).checked_div(total)?;
            let is_exact = (plain * total / to).abs_diff(weight) <= 1 && (plain > 0) == (weight > 0);
            u32::try_from(plain).ok().filter(|_| is_exact)
        });
        plain.collect::<Option<Vec<u32>>>()
    };
    let scaled = (total == 1_000_000).then(|| std::iter::once(100).chain(1..=1000).find_map(scaled)).flatten();
    scaled.unwrap_or_else(|| weights.to_vec())
}

/// Whether who vouches for servers, or what the client shows, stands in files of this process.
fn reads_files(tls: &TlsMaterial) -> bool {
    matches!(tls.roots, Roots::File(_)) || tls.revoked.is_some() || tls.identity.is_some()
}

/// How a cluster is called.
pub(super) fn settings(cluster: &Cluster) -> Settings {
    let protocol = match cluster.protocol {
        ClusterProtocol::Http1 => "HTTP/1.1",
        ClusterProtocol::Http2 => "HTTP/2",
        ClusterProtocol::AsCaller => "as the caller",
    };
    let found_by = match &cluster.kind {
        ClusterKind::Eds { .. } => "endpoints from the control plane",
        ClusterKind::Static(_) => "fixed endpoints",
        ClusterKind::StrictDns { .. } | ClusterKind::LogicalDns(_) => "DNS",
        ClusterKind::Aggregate(_) => "other clusters",
        ClusterKind::PassThrough => "the address that the caller asked for",
    };
    let tls = match &cluster.tls {
        ClusterTls::None => "plaintext".to_owned(),
        ClusterTls::Mutual(_) => "mutual TLS".to_owned(),
        ClusterTls::MutualWhereMarked(_) => "mutual TLS with those that speak it".to_owned(),
        ClusterTls::Foreign(_) if cluster.tls.secrets().next().is_some() => "TLS by a secret".to_owned(),
        ClusterTls::Foreign(tls) if reads_files(&tls.material) => "TLS by files".to_owned(),
        ClusterTls::Foreign(_) => "TLS".to_owned(),
        ClusterTls::Unusable(why) => format!("no connection: {why}"),
    };
    let probes = cluster.tcp_keepalive.unwrap_or_default();
    let limits = json!({
        "connect_timeout": time(cluster.connect_timeout),
        "idle_timeout": cluster.idle_timeout.map(time),
        "max_requests_per_connection": cluster.max_requests_per_connection,
        "max_connection_duration": cluster.max_connection_duration.map(time),
        "max_concurrent_streams": cluster.max_concurrent_streams,
        "tcp_keepalive": cluster.tcp_keepalive.is_some().then_some(true),
        "tcp_keepalive_time": probes.time.map(time),
        "tcp_keepalive_interval": probes.interval.map(time),
        "tcp_keepalive_probes": probes.probes,
    });
    let mut all: Settings = vec![
        ("balancer", balancer(cluster)),
        ("outlier_detection", cluster.outlier_detection.as_ref().map_or(Value::Null, outlier_detection)),
        ("circuit_breakers", circuit_breakers(&cluster.circuit_breakers)),
        ("connections", fields(limits)),
        ("protocol", protocol.into()),
        ("tls", tls.into()),
        ("found_by", found_by.into()),
    ];
    all.extend(cluster.health_check.as_deref().map(|check| ("health_check", health_check(check))));
    let answer = cluster.fallback.as_ref();
    all.extend(answer.map(|answer| ("fallback", format!("answer {}", answer.status.as_u16()).into())));
    all
}

pub(super) fn balancer(cluster: &Cluster) -> Value {
    fn named(policy: &BalancerPolicy) -> Value {
        match policy {
            BalancerPolicy::LeastRequest { choices, .. } => json!({"policy": "least request", "choices": choices}),
            BalancerPolicy::RoundRobin => json!({"policy": "round robin"}),
            BalancerPolicy::Random => json!({"policy": "random"}),
            BalancerPolicy::RingHash { min_size, .. } => json!({"policy": "ring hash", "minimum_ring_size": min_size}),
            BalancerPolicy::Maglev { table_size, .. } => json!({"policy": "maglev", "table_size": table_size}),
            BalancerPolicy::WeightedByLoad(_) => json!({"policy": "weighted by load"}),
            BalancerPolicy::PeakEwma { decay } => json!({"policy": "peak EWMA", "decay": time(*decay)}),
            BalancerPolicy::RandomSubset { size, child } => {
                let mut of = object(named(child));
                of.insert("subset_size".to_owned(), (*size).into());
                Value::Object(of)
            }
            BalancerPolicy::Custom(name) => json!({"policy": &**name}),
        }
    }
    let mut named = object(named(&cluster.balancer));
    if let Some(slow) = cluster.slow_start {
        named.insert("warm_up".to_owned(), time(slow.window));
    }
    Value::Object(named)
}

pub(super) fn outlier_detection(outliers: &OutlierDetection) -> Value {
    let in_a_row = |of: Consecutive| (of.enforcing > 0 && of.failures > 0).then_some(of.failures);
    let local = outliers.split_external_local_origin_errors;
    fields(json!({
        "consecutive_5xx": in_a_row(outliers.consecutive_5xx),
        "consecutive_gateway_failures": in_a_row(outliers.consecutive_gateway_failure),
        "consecutive_local_failures": in_a_row(outliers.consecutive_local_origin_failure).filter(|_| local),
        "interval": time(outliers.interval),
        "base_ejection_time": time(outliers.base_ejection_time),
        "max_ejection_percent": outliers.max_ejection_percent,
    }))
}

/// Those that are limits; null where there is none.
pub(super) fn circuit_breakers(limits: &CircuitBreakers) -> Value {
    let limit = |number: u32| (number != u32::MAX).then_some(number);
    let (retries, budget) = match limits.retries {
        RetryLimit::PaidBySuccesses => (None, None),
        RetryLimit::AtMost(number) => (Some(number), None),
        RetryLimit::Budget { share, at_least, .. } => {
            (None, Some(json!({"percent": percent(share.per_million()), "at_least": at_least})))
        }
    };
    let all = object(json!({
        "max_connections": limit(limits.max_connections),
        "max_connections_per_host": limit(limits.max_connections_per_host),
        "max_pending_requests": limit(limits.max_pending_requests),
        "max_requests": limit(limits.max_requests),
        "max_retries": retries,
        "retry_budget": budget,
    }));
    if all.is_empty() { Value::Null } else { Value::Object(all) }
}

pub(super) fn health_check(check: &HealthCheck) -> Value {
    json!({"interval": time(check.interval), "timeout": time(check.timeout)})
}

pub(super) fn retry(policy: &RetryPolicy) -> Value {
    let on = policy.on.words().collect::<Vec<_>>();
    if policy.retries == 0 || on.is_empty() {
        return Value::Null;
    }
    let statuses: Vec<String> = policy.statuses.iter().map(|status| status.as_u16().to_string()).collect();
    // What asks for more ends the retries, but for headers that a policy names: there it is passed over.
    let obeys = match &policy.rate_limited {
        None => format!("Retry-After up to {:?}", policy.back_off.max),
        Some(limited) => {
            let headers: Vec<&str> = limited.headers.iter().map(HeaderName::as_str).collect();
            format!("{} up to {:?}", headers.join(" or "), limited.max_interval)
        }
    };
    fields(json!({
        "attempts": policy.retries,
        "on": on.join(","),
        "statuses": (!statuses.is_empty()).then(|| statuses.join(",")),
        "back_off": format!("{:?} to {:?}", policy.back_off.base, policy.back_off.max),
        "obeys": obeys,
        "avoids_tried_endpoints": policy.avoids_tried,
        "hedges": policy.hedges.then_some(true),
    }))
}

pub(super) fn faults(fault: &Fault) -> Value {
    let delay = fault
        .delay
        .as_ref()
        .map(|delay| json!({"for": delay.duration.map(time), "percent": percent(delay.fraction.per_million())}));
    let abort = fault.abort.as_ref().map(|abort| {
        let with = json!({
            "status": abort.http_status,
            "grpc_status": abort.grpc_code,
            "percent": percent(abort.fraction.per_million()),
        });
        fields(with)
    });
    fields(json!({"delay": delay, "abort": abort}))
}

/// What happens to headers, in the order in which it does.
pub(super) fn header_changes(changes: &HeaderMutations) -> Settings {
    let all = [
        ("request_headers", &changes.request, HeaderTarget::Request),
        ("response_headers", &changes.response, HeaderTarget::Response),
    ];
    let all = all.into_iter().filter(|(_, changes, _)| !changes.is_empty());
    all.map(|(name, changes, target)| (name, changes.iter().map(|one| header_change(one, target)).collect())).collect()
}

pub(super) fn header_change(change: &HeaderChange, target: HeaderTarget) -> Value {
    let to = |name: &HeaderName, text: &HeaderText| match [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, SET_COOKIE]
        .contains(name)
    {
        true => format!("{name} (not shown)"),
        false => format!("{name}: {}", text.written(target)),
    };
    let said = match change {
        HeaderChange::Append(name, text) => format!("add {}", to(name, text)),
        HeaderChange::Set(name, text) => format!("set {}", to(name, text)),
        HeaderChange::AddIfAbsent(name, text) => format!("add {}, where there is none", to(name, text)),
        HeaderChange::ReplaceIfPresent(name, text) => format!("set {}, where there is one", to(name, text)),
        HeaderChange::Remove(name) => format!("remove {name}"),
    };
    said.into()
}

pub(super) fn cors(policy: &CorsPolicy) -> Value {
    let text = |value: &Option<HeaderValue>| {
        value.as_ref().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let origins: Vec<String> = policy.allow_origins.iter().map(string).collect();
    fields(json!({
        "origins": if origins.is_empty() { "none".to_owned() } else { origins.join(" or ") },
        "methods": text(&policy.allow_methods),
        "headers": text(&policy.allow_headers),
        "exposed": text(&policy.expose_headers),
        "max_age": text(&policy.max_age),
        "credentials": policy.allow_credentials,
        "share": policy.enabled.filter(|share| *share != Fraction::ALL).map(|share| format!("{} % of requests", percent(share.per_million()))),
        "preflights_of_others": match policy.forward_not_matching_preflights {
            Some(false) => "answered",
            _ => "go on",
        },
    }))
}

pub(super) fn path_change(change: &PathChange) -> Value {
    match change {
        PathChange::Prefix(new) => json!({"prefix_becomes": new}),
        PathChange::Full(new) => json!({"becomes": new}),
        PathChange::Regex(rewrite) => json!({"rewritten_by": rewrite.pattern()}),
    }
}

pub(super) fn percent(per_million: u32) -> f64 {
    f64::from(per_million) / 10_000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RateLimitedBackOff;

    #[test]
    fn what_a_request_lacks_is_hashed_no_second_time() {
        let by = |name: &'static str, terminal| {
            let header = HashedHeader::Real(HeaderName::from_static(name));
            HashPolicy { key: HashKey::Header(header, None), terminal }
        };
        assert_eq!(hashed_by(&[by("x-user", true), by("x-user", false)]), "header x-user");
        let three = [by("x-user", true), by("x-user", false), by("x-session", false)];
        assert_eq!(hashed_by(&three), "header x-user, else header x-session");
        assert_eq!(hashed_by(&[by("x-user", false), by("x-session", false)]), "header x-user and header x-session");
    }

    #[test]
    fn retries_say_how_long_an_answer_may_ask_to_wait() {
        let mut policy = crate::retry::DEFAULT_POLICY.clone();
        assert_eq!(retry(&policy)["obeys"], "Retry-After up to 250ms");
        let headers = vec![HeaderName::from_static("x-reset"), HeaderName::from_static("retry-after")];
        policy.rate_limited = Some(RateLimitedBackOff { headers, max_interval: Duration::from_secs(300) });
        assert_eq!(retry(&policy)["obeys"], "x-reset or retry-after up to 300s");
    }
}
