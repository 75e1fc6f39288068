//! Routes and clusters for gRPC's own xDS clients: only what they accept without rejecting the resource,
//! and for everything that they cannot do, what they do instead (`Degraded`).
//!
//! gRFC A28 routes, A31 timeouts, A33 faults, A37 logical DNS, A39 filters, A44 retries, A52 balancing.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy,
};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::{FilterState, PolicySpecifier};
use envoy_types::pb::envoy::config::route::v3::route_action::{ClusterSpecifier, HashPolicy, MaxStreamDuration};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use envoy_types::pb::envoy::extensions::load_balancing_policies::ring_hash::v3::RingHash;
use envoy_types::pb::envoy::extensions::load_balancing_policies::ring_hash::v3::ring_hash::HashFunction;
use envoy_types::pb::envoy::extensions::load_balancing_policies::round_robin::v3::RoundRobin;
use envoy_types::pb::envoy::extensions::load_balancing_policies::wrr_locality::v3::WrrLocality;
use envoy_types::pb::google::protobuf::{BoolValue, UInt64Value};
use mesh_core::model::RetryCondition;

use super::cluster::nowhere;
use super::endpoints::single_assignment;
use super::extensions::{in_subset, simple_policy, weighted_by_load};
use super::library::{back_off, retry_on, threshold};
use super::proto::{FAULT_FILTER, ads, any, duration, extension, its_own_server, number, regex};
use super::tls::Security;
use super::{BLACK_HOLE, Degraded, Found, fault, found_by, hash_policy};
use crate::policy::Cluster;
use crate::policy::destination_rules::{Around, MergedRule};
use crate::policy::locality::LocalitySetting;
use crate::policy::route::{AbortWith, Action, Condition, Faults, Forward, PathRewrite, Retry, Route};
use crate::policy::text::TextMatch;
use crate::policy::traffic::{Balancer, Bound, HashedBy, LocalOrigin, OutlierDetection, OwnBalancer};
use crate::registry::WrittenEndpoint;

/// Beyond this many conditions on missing headers, their combinations are too many.
const MOST_ALTERNATIVES: usize = 8;

/// The most points on the ring of a gRPC client, where its application does not say otherwise (gRFC A42).
const GRPC_RING: u64 = 4096;
/// How many points a ring has at least where nothing is said (gRFC A42, Envoy).
const DEFAULT_RING: u64 = 1024;

/// What the routes of one address stand in.
pub(super) fn route_configuration(name: &str, domains: Vec<String>) -> route::RouteConfiguration {
    let host = route::VirtualHost { name: name.to_owned(), domains, ..Default::default() };
    route::RouteConfiguration { name: name.to_owned(), virtual_hosts: vec![host], ..Default::default() }
}

/// The routes of one address, and what they cannot do.
pub(super) fn render_routes(routes: &[Route], degraded: &mut Vec<Degraded>) -> Vec<route::Route> {
    let mut rendered = Vec::new();
    for route in routes {
        let mut note = |field: &str, what: String| {
            if let Some(written) = &route.written {
                degraded.push(Degraded::new(written, field, what));
            }
        };
        let conditions = render_matches(&route.condition, &mut note);
        let template = render_route(route, &mut note);
        rendered.extend(
            conditions.into_iter().map(|condition| route::Route { r#match: Some(condition), ..template.clone() }),
        );
    }
    if rendered.is_empty() {
        rendered.push(failing_route());
    }
    rendered
}

/// Calls that no route is for fail. Said in so many words, since some clients refuse a virtual host without routes.
fn failing_route() -> route::Route {
    let everything = PathSpecifier::Prefix(String::new());
    route::Route {
        name: "none".to_owned(),
        r#match: Some(route::RouteMatch { path_specifier: Some(everything), ..Default::default() }),
        action: Some(route::route::Action::Route(to_nowhere())),
        ..Default::default()
    }
}

fn render_route(route: &Route, note: &mut impl FnMut(&str, String)) -> route::Route {
    let mut faults = route.faults.clone();
    let action = match &route.action {
        Action::Forward(forward) => render_forward(forward, note),
        // An action that they do not know is not accepted by all of them; a fault of the same status is.
        Action::Redirect(redirect) => {
            let status = redirect.status;
            note("redirect", format!("calls fail with the gRPC status that HTTP {status} maps to"));
            always_abort(&mut faults, status)
        }
        Action::Respond(response) => {
            let status = response.status;
            note("directResponse", format!("calls fail with the gRPC status that HTTP {status} maps to"));
            always_abort(&mut faults, status)
        }
        Action::Fail(_) => always_abort(&mut faults, 503),
    };
    if route.cors.is_some() {
        note("corsPolicy", "no header of it is added, and nothing is answered by it".to_owned());
    }
    if !route.headers.is_none() {
        note("headers", "headers stay as they are".to_owned());
    }
    let fault = fault(&faults).map(|fault| (FAULT_FILTER.to_owned(), any(&fault)));
    route::Route {
        name: route.name.clone(),
        typed_per_filter_config: fault.into_iter().collect(),
        action: Some(route::route::Action::Route(action)),
        ..Default::default()
    }
}

fn always_abort(faults: &mut Faults, status: u32) -> route::RouteAction {
    faults.abort = Some((AbortWith::Http(status), 1_000_000));
    to_nowhere()
}

/// The way of calls that go nowhere.
pub(super) fn to_nowhere() -> route::RouteAction {
    route::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(BLACK_HOLE.to_owned())),
        ..Default::default()
    }
}

fn render_forward(forward: &Forward, note: &mut impl FnMut(&str, String)) -> route::RouteAction {
    if forward.rewrite != PathRewrite::None || forward.authority.is_some() {
        note("rewrite", "path and authority stay as they are".to_owned());
    }
    let changed = |target: &crate::policy::route::Target| !target.headers.is_none() || target.authority.is_some();
    if forward.targets.iter().any(changed) {
        note("route.headers", "headers stay as they are".to_owned());
    }
    if !forward.mirrors.is_empty() {
        note("mirror", "nothing is mirrored".to_owned());
    }
    let specifier = match forward.targets.as_slice() {
        [only] => ClusterSpecifier::Cluster(only.cluster_name()),
        several => {
            if forward.sticky_split.is_some() {
                note("route", "calls are split by chance, whoever makes them (mesh-control/sticky-split)".to_owned());
            }
            let clusters = several.iter().map(|target| ClusterWeight {
                name: target.cluster_name(),
                weight: number(target.weight),
                ..Default::default()
            });
            let clusters = clusters.collect();
            ClusterSpecifier::WeightedClusters(route::WeightedCluster { clusters, ..Default::default() })
        }
    };
    route::RouteAction {
        cluster_specifier: Some(specifier),
        // gRFC A31: 0 leaves the deadline to the application.
        max_stream_duration: Some(MaxStreamDuration {
            max_stream_duration: Some(duration(forward.timeout.map_or(Duration::ZERO, told_by_java))),
            ..Default::default()
        }),
        retry_policy: forward.retry.as_ref().and_then(|retry| render_retry(retry, note)),
        hash_policy: forward.hashed_by.iter().filter_map(grpc_hash_policy).collect(),
        ..Default::default()
    }
}

/// A time limit as grpc-java can have it. It hands it on as the text of a floating-point number, which Java writes with an exponent
/// where it is shorter than a millisecond or has more than seven digits of seconds (115 days); calls by such a limit fail.
fn told_by_java(limit: Duration) -> Duration {
    limit.clamp(Duration::from_millis(1), Duration::from_secs(9_999_999))
}

/// grpc-java knows no larger numbers of requests, and its channels panic at one.
const MOST_REQUESTS: u32 = i32::MAX.unsigned_abs();

/// A client makes no more than that, whatever it is told (gRFC A6).
const MOST_RETRIES: u32 = 4;

/// Whether a condition is lost on gRPC's clients. What was not processed they try again by themselves (gRFC A6, transparent
/// retries), and a condition that nothing meets is no loss.
fn is_lost(on: RetryCondition, retry: &Retry) -> bool {
    match on {
        RetryCondition::ConnectFailure | RetryCondition::RefusedStream => false,
        RetryCondition::Http3PostConnectFailure | RetryCondition::RetriableHeaders => false,
        RetryCondition::RetriableStatusCodes => !retry.statuses.is_empty(),
        on => !on.is_grpc_status(),
    }
}

/// gRFC A44: five conditions, one retry at least; what is left out would be ignored or rejected.
fn render_retry(retry: &Retry, note: &mut impl FnMut(&str, String)) -> Option<route::RetryPolicy> {
    if retry.per_try_timeout.is_some() {
        note("retries.perTryTimeout", "a try lasts as long as the call may".to_owned());
    }
    if retry.hedges {
        note("retries", "no try begins beside another one (mesh-control/hedge)".to_owned());
    }
    if retry.leaves_priorities {
        note("retries.retryRemoteLocalities", "a retry goes where the first try does".to_owned());
    }
    let conditions: Vec<RetryCondition> = retry.conditions.iter().copied().filter(|on| on.is_grpc_status()).collect();
    if conditions.is_empty() {
        note("retries.retryOn", "nothing is tried again".to_owned());
        return None;
    }
    let lost: Vec<&str> = retry.conditions.iter().filter(|on| is_lost(**on, retry)).map(|on| on.word()).collect();
    if !lost.is_empty() {
        note("retries.retryOn", format!("after {} nothing is tried again", lost.join(", ")));
    }
    if retry.attempts.get() > MOST_RETRIES {
        note("retries.attempts", format!("a call is tried {} times at most", MOST_RETRIES + 1));
    }
    Some(route::RetryPolicy {
        retry_on: retry_on(conditions.into_iter()),
        num_retries: number(retry.attempts.get()),
        retry_back_off: retry.backoff.map(back_off),
        ..Default::default()
    })
}

/// The conditions under which a call meets this one: none if no call can, several if "this header is
/// missing or different" has to be said, for which a gRPC client has no single matcher.
fn render_matches(condition: &Condition, note: &mut impl FnMut(&str, String)) -> Vec<route::RouteMatch> {
    if !meets_pseudo_headers(condition, note) {
        return Vec::new();
    }
    if !condition.query.is_empty() {
        note("match.queryParams", "a call has no query, so the rule is left out".to_owned());
        return Vec::new();
    }
    let mut names = condition.headers.iter().chain(&condition.without_headers).map(|(name, _)| name);
    if let Some(name) = names.find(|name| name.ends_with("-bin")) {
        note("match.headers", format!("{name} is binary and never matches, so the rule is left out"));
        return Vec::new();
    }
    let path_specifier = match &condition.path {
        TextMatch::Present => PathSpecifier::Prefix(String::new()),
        TextMatch::Exact(path) => PathSpecifier::Path(path.clone()),
        TextMatch::Prefix(prefix) => PathSpecifier::Prefix(prefix.clone()),
        TextMatch::Regex(text) => PathSpecifier::SafeRegex(regex(text)),
    };
    let mut alternatives: Vec<Vec<route::HeaderMatcher>> =
        vec![condition.headers.iter().map(|(name, value)| header_matcher(name, value, false)).collect()];
    for (name, value) in &condition.without_headers {
        let missing = header_matcher(name, &TextMatch::Present, true);
        if *value == TextMatch::Present {
            alternatives.iter_mut().for_each(|headers| headers.push(missing.clone()));
            continue;
        }
        // A value that differs, or, since a missing one counts as empty, none at all.
        let different = header_matcher(name, value, true);
        let mut both: Vec<Vec<route::HeaderMatcher>> = Vec::new();
        for headers in alternatives {
            if !value.matches("") {
                both.push(headers.iter().cloned().chain([missing.clone()]).collect());
            }
            both.push(headers.into_iter().chain([different.clone()]).collect());
        }
        alternatives = both;
        if alternatives.len() > MOST_ALTERNATIVES {
            note("match.withoutHeaders", "there are too many, so the rule is left out".to_owned());
            return Vec::new();
        }
    }
    let case_sensitive = condition.ignore_path_case.then_some(BoolValue { value: false });
    let rendered = alternatives.into_iter().map(|headers| route::RouteMatch {
        path_specifier: Some(path_specifier.clone()),
        case_sensitive,
        headers,
        ..Default::default()
    });
    rendered.collect()
}

/// gRPC does not match on pseudo headers, but it is known what they are: the method is always POST, and of
/// the scheme and the authority a rule cannot be sure.
fn meets_pseudo_headers(condition: &Condition, note: &mut impl FnMut(&str, String)) -> bool {
    if let Some(method) = &condition.method
        && !method.matches("POST")
    {
        note("match.method", "a call is always a POST, so the rule is left out".to_owned());
        return false;
    }
    for (field, value) in [("match.scheme", &condition.scheme), ("match.authority", &condition.authority)] {
        if value.as_ref().is_some_and(|value| *value != TextMatch::Present) {
            note(field, "a gRPC client cannot match on it, so the rule is left out".to_owned());
            return false;
        }
    }
    true
}

// The older forms of the matcher are understood by every release that speaks xDS v3.
#[expect(deprecated, reason = "string_match needs gRFC A63, which older clients lack")]
fn header_matcher(name: &str, value: &TextMatch, invert_match: bool) -> route::HeaderMatcher {
    let specifier = match value {
        TextMatch::Exact(text) => HeaderMatchSpecifier::ExactMatch(text.clone()),
        TextMatch::Prefix(text) if text.is_empty() => HeaderMatchSpecifier::PresentMatch(true),
        TextMatch::Prefix(text) => HeaderMatchSpecifier::PrefixMatch(text.clone()),
        TextMatch::Regex(text) => HeaderMatchSpecifier::SafeRegexMatch(regex(text)),
        TextMatch::Present => HeaderMatchSpecifier::PresentMatch(true),
    };
    route::HeaderMatcher {
        name: name.to_owned(),
        invert_match,
        header_match_specifier: Some(specifier),
        ..Default::default()
    }
}

/// A cluster, and what it cannot do. `written` are the endpoints of a service that is found by DNS.
pub(super) fn render_cluster(
    seen: &Cluster<'_>,
    written: &[(&WrittenEndpoint, u16)],
    security: Option<Security>,
    degraded: &mut Vec<Degraded>,
) -> cluster::Cluster {
    let name = seen.key.to_string();
    let mut rendered = cluster::Cluster {
        name: name.clone(),
        lb_policy: LbPolicy::RoundRobin.into(),
        circuit_breakers: Some(circuit_breakers(seen)),
        lrs_server: Some(its_own_server()),
        ..Default::default()
    };
    if seen.is_refused {
        return nowhere(&name);
    }
    let Some(security) = security else {
        // With plain channel credentials a gRPC client calls in plaintext, whatever the transport socket says
        // (gRFC A29), and one that has no such certificate provider refuses the resource and goes on with the
        // last one, in plaintext, too. Without endpoints, calls fail from the moment the rule is in force.
        return nowhere(&name);
    };
    rendered.transport_socket = security.socket;
    note_limits(seen, degraded);
    rendered.outlier_detection =
        seen.traffic.outlier_detection.as_ref().and_then(|detection| outlier_detection(seen.rule, detection, degraded));
    if let (Some(_), Some(rule)) = (seen.traffic.warmup, seen.rule) {
        let what = "new endpoints take their full share at once".to_owned();
        degraded.push(Degraded::of_rule(rule, "loadBalancer.warmup", what));
    }
    note_extensions(seen, degraded);
    let balancer = match seen.traffic.own_balancer {
        None => seen.traffic.balancer,
        Some(OwnBalancer::PeakEwma { .. } | OwnBalancer::Custom(_)) => Balancer::LeastRequest,
        Some(OwnBalancer::WeightedByLoad { .. }) => Balancer::Unspecified,
    };
    if let Some(by_load) = seen.traffic.own_balancer.as_ref().and_then(weighted_by_load) {
        let by_load = extension("envoy.load_balancing_policies.client_side_weighted_round_robin", &by_load);
        rendered.load_balancing_policy = Some(by_locality(seen, or_round_robin(by_load)));
    }
    match balancer {
        Balancer::LeastRequest => {
            let least = extension("envoy.load_balancing_policies.least_request", &LeastRequest::default());
            rendered.load_balancing_policy = Some(by_locality(seen, or_round_robin(least)));
        }
        Balancer::RingHash(_) | Balancer::Maglev(_) => {
            rendered.load_balancing_policy = Some(or_round_robin(ring_hash(seen, degraded)));
        }
        Balancer::Random | Balancer::Passthrough => {
            if let Some(rule) = seen.rule {
                let what = "calls are balanced by round robin".to_owned();
                degraded.push(Degraded::of_rule(rule, "loadBalancer.simple", what));
            }
        }
        Balancer::Unspecified | Balancer::RoundRobin => {}
    }
    if let Some(subset) = seen.traffic.subset_in_force() {
        let whole = rendered.load_balancing_policy.take();
        let whole = whole.unwrap_or_else(|| simple_policy(Balancer::RoundRobin, None));
        rendered.load_balancing_policy = Some(in_subset(subset, whole));
    }
    // What a policy says of sessions is told of there.
    if seen.service.has_session_labels() {
        let what = "calls of a session go to any endpoint".to_owned();
        degraded.push(Degraded::of_service(seen, "metadata.labels", what));
    }
    let discovery = match found_by(seen) {
        Found::Endpoints => {
            let eds_config = Some(ads());
            rendered.eds_cluster_config = Some(EdsClusterConfig { eds_config, service_name: name });
            DiscoveryType::Eds
        }
        Found::Host => {
            rendered.load_assignment = Some(single_assignment(&name, &seen.key.host, seen.port.number));
            DiscoveryType::LogicalDns
        }
        Found::Dns { .. } => {
            // gRFC A37: one name and no more.
            if written.len() > 1 {
                degraded.push(Degraded::of_service(seen, "endpoints", "the first name is used".to_owned()));
            }
            let first = written.first();
            let (host, port) = first.map_or((&seen.key.host, seen.port.number), |(e, port)| (&e.address, *port));
            rendered.load_assignment = Some(single_assignment(&name, host, port));
            DiscoveryType::LogicalDns
        }
    };
    rendered.cluster_discovery_type = Some(ClusterDiscoveryType::Type(discovery.into()));
    rendered
}

/// A policy for the endpoints of each locality, where localities have shares: without that, they do not count (gRFC A52).
fn by_locality(seen: &Cluster<'_>, policy: cluster::LoadBalancingPolicy) -> cluster::LoadBalancingPolicy {
    if !seen.traffic.locality.as_ref().is_some_and(LocalitySetting::has_shares) {
        return policy;
    }
    let by_locality = WrrLocality { endpoint_picking_policy: Some(policy) };
    or_round_robin(extension("envoy.load_balancing_policies.wrr_locality", &by_locality))
}

/// What is lost of annotations of our own.
fn note_extensions(seen: &Cluster<'_>, degraded: &mut Vec<Degraded>) {
    let Some(rule) = seen.rule else { return };
    let mut note = |key: &str, what: &str| {
        degraded.push(Degraded::of_annotation(rule, key, what.to_owned()));
    };
    if seen.traffic.health_check.is_some() {
        note("mesh-control/health-check", "endpoints are not asked how they are");
    }
    if matches!(seen.traffic.own_balancer, Some(OwnBalancer::PeakEwma { .. } | OwnBalancer::Custom(_))) {
        note("mesh-control/load-balancer", "of two random endpoints, the one with fewer calls under way is picked");
    }
}

/// gRPC's clients have their own ways with connections.
fn note_limits(seen: &Cluster<'_>, degraded: &mut Vec<Degraded>) {
    let Some(rule) = seen.rule else {
        return;
    };
    // What the mesh says of all of them, or a policy, is not the rule's.
    let own = rule.traffic_policy(&seen.key, Around::default());
    let pool = &own.connection_pool;
    let limits = [
        ("tcp.connectTimeout", pool.connect_timeout.is_some()),
        ("tcp.tcpKeepalive", pool.tcp_keepalive.is_some()),
        ("tcp.maxConnectionDuration", pool.max_connection_duration.is_some()),
        ("tcp.maxConnections", pool.max_connections != Bound::Unlimited),
        ("http.idleTimeout", pool.idle_timeout.is_some()),
        ("http.maxRequestsPerConnection", pool.max_requests_per_connection.is_some()),
        ("http.http1MaxPendingRequests", pool.max_pending_requests != Bound::Unlimited),
        ("http.http2KeepAlive", pool.http2_keepalive.is_some()),
        ("http.maxConcurrentStreams", pool.max_concurrent_streams.is_some()),
    ];
    let retries = [
        ("connectionPool.http.maxRetries", pool.max_retries != Bound::Unlimited),
        ("retryBudget", own.retry_budget.is_some()),
    ];
    if seen.traffic.tunnel.is_some() {
        let what = "the client makes requests, for which there are no tunnels".to_owned();
        degraded.push(Degraded::of_rule(rule, "tunnel", what));
    }
    for (field, _) in retries.into_iter().filter(|(_, is_set)| *is_set) {
        degraded.push(Degraded::of_rule(rule, field, "the client has no such limit".to_owned()));
    }
    for (field, _) in limits.into_iter().filter(|(_, is_set)| *is_set) {
        let what = "the client's own setting holds".to_owned();
        degraded.push(Degraded::of_rule(rule, &format!("connectionPool.{field}"), what));
    }
}

/// gRFC A50 knows no failures in a row. What comes next to them: an endpoint of whose calls in an interval, as many at least
/// as would be enough in a row, nearly all failed. Rates are compared with nobody's, as in Istio; and gRPC's clients
/// always may eject one endpoint.
fn outlier_detection(
    rule: Option<&Arc<MergedRule>>,
    detection: &OutlierDetection,
    degraded: &mut Vec<Degraded>,
) -> Option<cluster::OutlierDetection> {
    let mut note = |field: &str, what: String| {
        if let Some(rule) = rule {
            degraded.push(Degraded::of_rule(rule, &format!("outlierDetection{field}"), what));
        }
    };
    if let LocalOrigin::Failures(_) = detection.local_origin {
        let what = "where calls cannot be made, the client goes to another endpoint by itself";
        note(".splitExternalLocalOriginErrors", what.to_owned());
    }
    if detection.min_health_percent > 0 {
        note(".minHealthPercent", "those that fail stay out, however few are left".to_owned());
    }
    let Some(in_a_row) = detection.consecutive_5xx.or(detection.consecutive_gateway_errors) else {
        note("", "nothing is left of it: no endpoint is ejected".to_owned());
        return None;
    };
    note(
        "",
        format!(
            "it counts no failures in a row: an endpoint is ejected of whose calls in an interval, {in_a_row} at least, \
             {FAILURE_PERCENT} % fail or more"
        ),
    );
    Some(cluster::OutlierDetection {
        interval: detection.interval.map(duration),
        base_ejection_time: detection.base_ejection_time.map(duration),
        max_ejection_percent: detection.max_ejection_percent.and_then(number),
        enforcing_success_rate: number(0),
        failure_percentage_threshold: number(FAILURE_PERCENT),
        enforcing_failure_percentage: number(100),
        failure_percentage_minimum_hosts: number(1),
        failure_percentage_request_volume: number(in_a_row.get().min(MOST_REQUESTS)),
        ..Default::default()
    })
}

/// The share of failed calls that stands for failures in a row (the default of gRFC A50).
const FAILURE_PERCENT: u32 = 85;

/// gRFC A32 looks at `max_requests` only, and takes 1024 where there is none; Istio's default is no limit.
fn circuit_breakers(seen: &Cluster<'_>) -> cluster::CircuitBreakers {
    let max_requests = threshold(seen.traffic.connection_pool.max_requests);
    cluster::CircuitBreakers {
        thresholds: vec![cluster::circuit_breakers::Thresholds { max_requests, ..Default::default() }],
        ..Default::default()
    }
}

/// gRFC A42: a ring, of 4096 points at most where the application does not say otherwise, and no table.
fn ring_hash(seen: &Cluster<'_>, degraded: &mut Vec<Degraded>) -> core::TypedExtensionConfig {
    let mut note = |field: &str, what: &str| {
        if let Some(rule) = seen.rule {
            degraded.push(Degraded::of_rule(rule, &format!("loadBalancer.consistentHash{field}"), what.to_owned()));
        }
    };
    let at_random = "calls are hashed by headers only: each goes to any endpoint";
    match &seen.traffic.hashed_by {
        Some(HashedBy::Header(_)) | None => {}
        Some(HashedBy::Cookie { .. }) => note(".httpCookie", at_random),
        Some(HashedBy::Query(_)) => note(".httpQueryParameterName", at_random),
        Some(HashedBy::SourceAddress) => note(".useSourceIp", "each channel has an endpoint of its own"),
    }
    let minimum = match seen.traffic.balancer {
        Balancer::RingHash(minimum) => minimum,
        _ => {
            note(
                ".maglev",
                "there is a ring of hashes instead of the table, so that keys go to other endpoints than elsewhere",
            );
            DEFAULT_RING
        }
    };
    if minimum > GRPC_RING {
        note("", &format!("the ring has {GRPC_RING} points, unless the application allows for more"));
    }
    let ring = RingHash {
        hash_function: HashFunction::XxHash.into(),
        // Only where it is not the default (gRFC A42): @grpc/grpc-js-xds refuses a cluster that has it in this place, which
        // status tells.
        minimum_ring_size: (minimum != DEFAULT_RING).then_some(UInt64Value { value: minimum }),
        ..Default::default()
    };
    extension("envoy.load_balancing_policies.ring_hash", &ring)
}

/// What gRPC's clients can hash by (gRFC A42).
fn grpc_hash_policy(hashed_by: &HashedBy) -> Option<HashPolicy> {
    match hashed_by {
        HashedBy::Header(_) => Some(hash_policy(hashed_by)),
        HashedBy::SourceAddress => {
            let key = "io.grpc.channel_id".to_owned();
            let channel = PolicySpecifier::FilterState(FilterState { key });
            Some(HashPolicy { terminal: false, policy_specifier: Some(channel) })
        }
        HashedBy::Cookie { .. } | HashedBy::Query(_) => None,
    }
}

/// gRFC A52: the first one that a client knows.
fn or_round_robin(first: core::TypedExtensionConfig) -> cluster::LoadBalancingPolicy {
    let policy = |config| cluster::load_balancing_policy::Policy { typed_extension_config: Some(config) };
    let robin = extension("envoy.load_balancing_policies.round_robin", &RoundRobin::default());
    cluster::LoadBalancingPolicy { policies: vec![policy(first), policy(robin)] }
}
