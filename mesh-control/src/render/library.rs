//! Routes and clusters for this project's own library: everything that the configuration means, in the
//! terms of xDS, whether or not the library enforces it already (`config::support` reports what it does
//! not).

use std::num::NonZeroU32;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::thresholds::RetryBudget;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy,
};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HashPolicy, HostRewriteSpecifier, RequestMirrorPolicy,
};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::{
    ClusterWeight, RandomValueSpecifier, cluster_weight,
};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as cors_pb;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, StringMatcher};
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value, UInt64Value};
use mesh_core::model::{RetryBackOff, RetryCondition};

use super::cluster::nowhere;
use super::endpoints::{dns_assignment, single_assignment};
use super::extensions::{health_check, in_subset, own_policy, simple_policy};
use super::proto::{CORS_FILTER, FAULT_FILTER, ads, any, duration, its_own_server, number, regex, text_metadata};
use super::tls::Security;
use super::{Found, PASSTHROUGH, fault, found_by, hash_policy, http, share};
use crate::policy::Cluster;
use crate::policy::mesh::MeshSettings;
use crate::policy::route::{
    Action, Body, Changes, ClusterKey, Condition, Cors, Forward, HeaderChanges, PathRewrite, RedirectTo, Response,
    Retry, Route, StickySplit, Target,
};
use crate::policy::text::TextMatch;
use crate::policy::traffic::{
    Balancer, Bound, CONNECT_TIMEOUT, HashedBy, LocalOrigin, OutlierDetection, TcpKeepalive, TrafficPolicy, Warmup,
};
use crate::registry::WrittenEndpoint;

/// Istio answers with up to 1 MiB; Envoy's own limit is 4 KiB.
const LARGEST_BODY: u32 = 1 << 20;

/// What the routes of one address stand in.
pub(super) fn route_configuration(name: &str, domains: Vec<String>, mesh: &MeshSettings) -> route::RouteConfiguration {
    let host = route::VirtualHost {
        name: name.to_owned(),
        domains,
        retry_policy: Some(retries(mesh.retry.as_ref())),
        ..Default::default()
    };
    configuration(name, vec![host])
}

/// Virtual hosts under this name.
pub(super) fn configuration(name: &str, virtual_hosts: Vec<route::VirtualHost>) -> route::RouteConfiguration {
    route::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts,
        max_direct_response_body_size_bytes: number(LARGEST_BODY),
        ..Default::default()
    }
}

pub(super) fn render_routes(routes: &[Route], mesh: &MeshSettings) -> Vec<route::Route> {
    routes.iter().map(|route| render_route(route, mesh)).collect()
}

/// A route of a virtual host that says of [`retries`] what the mesh does.
pub(super) fn render_route(rendered: &Route, mesh: &MeshSettings) -> route::Route {
    #[cfg(test)]
    RENDERED.with(|rendered| rendered.set(rendered.get() + 1));
    let mut own = HeaderOptions::default();
    own.extend(&rendered.headers);
    let action = match &rendered.action {
        Action::Forward(forward) => {
            let (action, of_target) = render_forward(forward, mesh);
            // The last change wins (Istio: processDestination).
            own.extend(&of_target);
            route::route::Action::Route(action)
        }
        Action::Redirect(redirect) => route::route::Action::Redirect(render_redirect(redirect)),
        Action::Respond(response) => route::route::Action::DirectResponse(render_response(response)),
        Action::Fail(reason) => route::route::Action::DirectResponse(unavailable(reason)),
    };
    let fault = fault(&rendered.faults).map(|fault| (FAULT_FILTER.to_owned(), any(&fault)));
    let cors = rendered.cors.as_deref().map(|cors| (CORS_FILTER.to_owned(), any(&cors_policy(cors))));
    let coalesces = matches!(&rendered.action, Action::Forward(forward) if forward.coalesces);
    route::Route {
        name: rendered.name.clone(),
        metadata: coalesces.then(|| text_metadata("mesh-control", "coalesce", "get".to_owned())),
        r#match: Some(render_match(&rendered.condition)),
        typed_per_filter_config: fault.into_iter().chain(cors).collect(),
        request_headers_to_add: own.request_add,
        request_headers_to_remove: own.request_remove,
        response_headers_to_add: own.response_add,
        response_headers_to_remove: own.response_remove,
        action: Some(action),
        ..Default::default()
    }
}

#[cfg(test)]
thread_local! {
    /// How many routes were rendered: what it costs to say something of a few of them is counted, not timed.
    pub(crate) static RENDERED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn render_match(condition: &Condition) -> route::RouteMatch {
    let path_specifier = match &condition.path {
        TextMatch::Present => PathSpecifier::Prefix("/".to_owned()),
        TextMatch::Exact(path) => PathSpecifier::Path(path.clone()),
        TextMatch::Prefix(prefix) => PathSpecifier::Prefix(prefix.clone()),
        TextMatch::Regex(text) => PathSpecifier::SafeRegex(regex(text)),
    };
    let pseudo = [(":method", &condition.method), (":scheme", &condition.scheme), (":authority", &condition.authority)];
    let pseudo = pseudo.into_iter().filter_map(|(name, value)| Some(header_matcher(name, value.as_ref()?)));
    let headers = condition.headers.iter().map(|(name, value)| header_matcher(name, value));
    let without = condition.without_headers.iter().map(|(name, value)| route::HeaderMatcher {
        invert_match: true,
        // A header that is missing is a header that does not match (Istio: route.go).
        treat_missing_header_as_empty: *value != TextMatch::Present,
        ..header_matcher(name, value)
    });
    route::RouteMatch {
        path_specifier: Some(path_specifier),
        // For an expression, Envoy ignores it.
        case_sensitive: condition.ignore_path_case.then_some(BoolValue { value: false }),
        headers: pseudo.chain(headers).chain(without).collect(),
        query_parameters: condition.query.iter().map(|(name, value)| query_matcher(name, value)).collect(),
        ..Default::default()
    }
}

fn string_matcher(value: &TextMatch) -> Option<StringMatcher> {
    let pattern = match value {
        TextMatch::Exact(text) => MatchPattern::Exact(text.clone()),
        TextMatch::Prefix(text) => MatchPattern::Prefix(text.clone()),
        TextMatch::Regex(text) => MatchPattern::SafeRegex(regex(text)),
        TextMatch::Present => return None,
    };
    Some(StringMatcher { match_pattern: Some(pattern), ignore_case: false })
}

fn header_matcher(name: &str, value: &TextMatch) -> route::HeaderMatcher {
    let specifier = match string_matcher(value) {
        Some(matcher) => HeaderMatchSpecifier::StringMatch(matcher),
        None => HeaderMatchSpecifier::PresentMatch(true),
    };
    route::HeaderMatcher { name: name.to_owned(), header_match_specifier: Some(specifier), ..Default::default() }
}

fn query_matcher(name: &str, value: &TextMatch) -> route::QueryParameterMatcher {
    let specifier = match string_matcher(value) {
        Some(matcher) => QueryParameterMatchSpecifier::StringMatch(matcher),
        None => QueryParameterMatchSpecifier::PresentMatch(true),
    };
    route::QueryParameterMatcher { name: name.to_owned(), query_parameter_match_specifier: Some(specifier) }
}

/// The action, and the changes to headers of its only destination; several destinations have their own.
fn render_forward(forward: &Forward, mesh: &MeshSettings) -> (route::RouteAction, HeaderChanges) {
    let literal = |authority: &String| HostRewriteSpecifier::HostRewriteLiteral(authority.clone());
    let mut host_rewrite = forward.authority.as_ref().map(literal);
    let (specifier, of_target) = match forward.targets.as_slice() {
        [only] => {
            host_rewrite = host_rewrite.or_else(|| only.authority.as_ref().map(literal));
            (ClusterSpecifier::Cluster(only.cluster_name()), only.headers.clone())
        }
        several => {
            let of_target = |target: &Target, weight: u32| {
                let mut headers = HeaderOptions::default();
                headers.extend(&target.headers);
                let authority = target.authority.clone();
                ClusterWeight {
                    name: target.cluster_name(),
                    weight: number(weight),
                    request_headers_to_add: headers.request_add,
                    request_headers_to_remove: headers.request_remove,
                    response_headers_to_add: headers.response_add,
                    response_headers_to_remove: headers.response_remove,
                    host_rewrite_specifier: authority.map(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
                    ..Default::default()
                }
            };
            let by_chance = || several.iter().map(|target| of_target(target, target.weight)).collect();
            let by_hash = |split: &StickySplit| {
                let parts = split.parts.iter();
                parts.filter_map(|part| Some(of_target(several.get(part.destination)?, part.length))).collect()
            };
            let split = forward.sticky_split.as_deref();
            let by_users = RandomValueSpecifier::UseHashPolicy(BoolValue { value: true });
            let clusters = route::WeightedCluster {
                clusters: split.map_or_else(by_chance, by_hash),
                random_value_specifier: split.map(|_| by_users),
                ..Default::default()
            };
            (ClusterSpecifier::WeightedClusters(clusters), HeaderChanges::default())
        }
    };
    let mut action = route::RouteAction {
        cluster_specifier: Some(specifier),
        host_rewrite_specifier: host_rewrite,
        // Without a value Envoy's own default of 15 s would hold; Istio's is none, which is written 0.
        timeout: Some(duration(forward.timeout.unwrap_or_default())),
        // What most of thousands of routes say is said once, by their virtual host.
        retry_policy: (forward.retry != mesh.retry).then(|| retries(forward.retry.as_ref())),
        hedge_policy: forward
            .retry
            .as_ref()
            .filter(|retry| retry.hedges && retry.per_try_timeout.is_some())
            .map(|_| route::HedgePolicy { hedge_on_per_try_timeout: true, ..Default::default() }),
        hash_policy: hash_policies(forward),
        request_mirror_policies: forward.mirrors.iter().map(mirror).collect(),
        ..Default::default()
    };
    match &forward.rewrite {
        PathRewrite::None => {}
        PathRewrite::Matched(path) => action.prefix_rewrite.clone_from(path),
        PathRewrite::Regex(pattern, substitution) => {
            action.regex_rewrite =
                Some(RegexMatchAndSubstitute { pattern: Some(regex(pattern)), substitution: substitution.clone() });
        }
    }
    (action, of_target)
}

/// A split goes by the same hash as the choice of an endpoint. So the users of a sticky one come first, and where they are
/// known, nothing else counts. Where a destination makes the cookie that tells who they are, they are known from the first
/// request on.
fn hash_policies(forward: &Forward) -> Vec<HashPolicy> {
    let made = |by: &HashedBy| {
        forward.hashed_by.iter().find(|hashed| match (by, hashed) {
            (HashedBy::Cookie { name, .. }, HashedBy::Cookie { name: other, ttl: Some(_), .. }) => name == other,
            _ => false,
        })
    };
    let users = forward.sticky_split.iter().map(|split| made(&split.by).unwrap_or(&split.by));
    let users = users.map(|by| HashPolicy { terminal: true, ..hash_policy(by) });
    users.chain(forward.hashed_by.iter().map(hash_policy)).collect()
}

/// Copies keep their host (Istio: route.go).
fn mirror((cluster, millionths): &(ClusterKey, u32)) -> RequestMirrorPolicy {
    let share = core::RuntimeFractionalPercent { default_value: Some(share(*millionths)), ..Default::default() };
    RequestMirrorPolicy {
        cluster: cluster.to_string(),
        runtime_fraction: Some(share),
        disable_shadow_host_suffix_append: true,
        ..Default::default()
    }
}

/// Without a policy, the client would do as it thinks best; one without conditions tries nothing again.
pub(super) fn retries(retry: Option<&Retry>) -> route::RetryPolicy {
    retry.map(render_retry).unwrap_or_default()
}

fn render_retry(retry: &Retry) -> route::RetryPolicy {
    let avoids_tried = retry.avoids_tried.unwrap_or(true);
    route::RetryPolicy {
        retry_on: retry_on(retry.conditions.iter().copied()),
        num_retries: number(retry.attempts.get()),
        per_try_timeout: retry.per_try_timeout.map(duration),
        retriable_status_codes: retry.statuses.clone(),
        retry_back_off: retry.backoff.map(back_off),
        retry_host_predicate: avoids_tried.then(previous_hosts).into_iter().collect(),
        // Istio's (core/route/retry/retry.go).
        host_selection_retry_max_attempts: if avoids_tried { 5 } else { 0 },
        retry_priority: retry.leaves_priorities.then(previous_priorities),
        ..Default::default()
    }
}

/// The predicate by which a retry looks for an endpoint that was not tried yet.
fn previous_hosts() -> route::retry_policy::RetryHostPredicate {
    use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
    use route::retry_policy::retry_host_predicate::ConfigType;
    let config = Some(ConfigType::TypedConfig(any(&PreviousHostsPredicate::default())));
    let name = "envoy.retry_host_predicates.previous_hosts".to_owned();
    route::retry_policy::RetryHostPredicate { name, config_type: config }
}

/// Retries prefer other priorities after every second try, as Istio wants it.
fn previous_priorities() -> route::retry_policy::RetryPriority {
    use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
    use route::retry_policy::retry_priority::ConfigType;
    let config = Some(ConfigType::TypedConfig(any(&PreviousPrioritiesConfig { update_frequency: 2 })));
    let name = "envoy.retry_priorities.previous_priorities".to_owned();
    route::retry_policy::RetryPriority { name, config_type: config }
}

/// Conditions as Envoy lists them.
pub(super) fn retry_on(conditions: impl Iterator<Item = RetryCondition>) -> String {
    conditions.map(RetryCondition::word).collect::<Vec<_>>().join(",")
}

pub(super) fn back_off(pauses: RetryBackOff) -> route::retry_policy::RetryBackOff {
    route::retry_policy::RetryBackOff {
        base_interval: Some(duration(pauses.base)),
        max_interval: Some(duration(pauses.max)),
    }
}

fn render_redirect(redirect: &RedirectTo) -> route::RedirectAction {
    let code = match redirect.status {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    let path = redirect.path.clone().map(PathRewriteSpecifier::PathRedirect);
    let prefix = redirect.prefix.clone().map(PathRewriteSpecifier::PrefixRewrite);
    route::RedirectAction {
        host_redirect: redirect.authority.clone().unwrap_or_default(),
        port_redirect: redirect.port.map_or(0, u32::from),
        response_code: code.into(),
        scheme_rewrite_specifier: redirect.scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: path.or(prefix),
        ..Default::default()
    }
}

/// The answer of who must not or cannot go on, and why.
pub(super) fn unavailable(reason: &str) -> route::DirectResponseAction {
    render_response(&Response { status: 503, body: Body::Text(reason.to_owned()) })
}

fn render_response(response: &Response) -> route::DirectResponseAction {
    use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
    let specifier = match &response.body {
        Body::Empty => None,
        Body::Text(text) => Some(Specifier::InlineString(text.clone())),
        Body::Bytes(bytes) => Some(Specifier::InlineBytes(bytes.clone())),
    };
    route::DirectResponseAction {
        status: response.status,
        body: specifier.map(|specifier| core::DataSource { specifier: Some(specifier), ..Default::default() }),
        ..Default::default()
    }
}

#[derive(Default)]
struct HeaderOptions {
    request_add: Vec<core::HeaderValueOption>,
    request_remove: Vec<String>,
    response_add: Vec<core::HeaderValueOption>,
    response_remove: Vec<String>,
}

impl HeaderOptions {
    fn extend(&mut self, changes: &HeaderChanges) {
        if changes.is_none() {
            return;
        }
        let options = |changes: &Changes| {
            let set = changes.set.iter().map(|pair| (pair, HeaderAppendAction::OverwriteIfExistsOrAdd));
            let add = changes.add.iter().map(|pair| (pair, HeaderAppendAction::AppendIfExistsOrAdd));
            let all = set.chain(add).map(|((name, value), action)| core::HeaderValueOption {
                header: Some(core::HeaderValue { key: name.clone(), value: value.clone(), ..Default::default() }),
                append_action: action.into(),
                ..Default::default()
            });
            all.collect::<Vec<_>>()
        };
        self.request_add.extend(options(&changes.request));
        self.response_add.extend(options(&changes.response));
        self.request_remove.extend(changes.request.remove.iter().cloned());
        self.response_remove.extend(changes.response.remove.iter().cloned());
    }
}

/// Cross-origin rules (Istio: TranslateCORSPolicy).
fn cors_policy(cors: &Cors) -> cors_pb::CorsPolicy {
    let flag = |value: Option<bool>| value.map(|value| BoolValue { value });
    cors_pb::CorsPolicy {
        allow_origin_string_match: cors.origins.iter().filter_map(string_matcher).collect(),
        allow_methods: cors.methods.clone(),
        allow_headers: cors.headers.clone(),
        expose_headers: cors.exposed.clone(),
        max_age: cors.max_age.map(|age| age.as_secs().to_string()).unwrap_or_default(),
        allow_credentials: flag(cors.credentials),
        filter_enabled: Some(core::RuntimeFractionalPercent {
            default_value: Some(share(1_000_000)),
            ..Default::default()
        }),
        forward_not_matching_preflights: flag(cors.forwards_others),
        ..Default::default()
    }
}

/// A cluster. `written` are the endpoints of a service that is found by DNS.
pub(super) fn render_cluster(
    seen: &Cluster<'_>,
    written: &[(&WrittenEndpoint, u16)],
    security: Security,
) -> cluster::Cluster {
    let name = seen.key.to_string();
    let mut rendered = cluster::Cluster {
        name: name.clone(),
        connect_timeout: Some(duration(seen.traffic.connection_pool.connect_timeout_or_default())),
        lb_policy: lb_policy(seen.traffic.balancer).into(),
        lb_config: lb_config(seen.traffic.balancer, seen.traffic.warmup),
        circuit_breakers: Some(circuit_breakers(&seen.traffic)),
        upstream_connection_options: seen.traffic.connection_pool.tcp_keepalive.map(keepalive),
        outlier_detection: seen.traffic.outlier_detection.as_ref().map(outlier_detection),
        health_checks: seen.traffic.health_check.iter().map(|check| health_check(seen, check)).collect(),
        common_lb_config: common_lb(seen),
        typed_extension_protocol_options: http::options(seen),
        transport_socket: security.socket,
        transport_socket_matches: security.matches,
        lrs_server: Some(its_own_server()),
        ..Default::default()
    };
    if let Some(own) = &seen.traffic.own_balancer {
        rendered.load_balancing_policy = Some(own_policy(own, seen.traffic.warmup));
        (rendered.lb_policy, rendered.lb_config) = (LbPolicy::RoundRobin.into(), None);
    }
    if let Some(subset) = seen.traffic.subset_in_force() {
        let whole = rendered.load_balancing_policy.take();
        let whole = whole.unwrap_or_else(|| simple_policy(seen.traffic.balancer, seen.traffic.warmup));
        rendered.load_balancing_policy = Some(in_subset(subset, whole));
        (rendered.lb_policy, rendered.lb_config) = (LbPolicy::RoundRobin.into(), None);
    }
    if seen.is_refused {
        return nowhere(&name);
    }
    let discovery = match found_by(seen) {
        Found::Endpoints => {
            rendered.eds_cluster_config = Some(EdsClusterConfig { eds_config: Some(ads()), service_name: name });
            DiscoveryType::Eds
        }
        Found::Host => {
            rendered.load_assignment = Some(single_assignment(&name, &seen.key.host, seen.port.number));
            DiscoveryType::StrictDns
        }
        Found::Dns { logical } => {
            rendered.load_assignment = Some(dns_assignment(seen, written));
            // One name only: Envoy rejects more for a logical cluster.
            if logical && written.len() == 1 { DiscoveryType::LogicalDns } else { DiscoveryType::StrictDns }
        }
    };
    rendered.cluster_discovery_type = Some(ClusterDiscoveryType::Type(discovery.into()));
    rendered
}

/// The cluster of calls that go where their own authority says, over the HTTP that they came in.
pub(super) fn passthrough() -> cluster::Cluster {
    cluster::Cluster {
        name: PASSTHROUGH.to_owned(),
        connect_timeout: Some(duration(CONNECT_TIMEOUT)),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into())),
        lb_policy: LbPolicy::ClusterProvided.into(),
        circuit_breakers: Some(circuit_breakers(&TrafficPolicy::default())),
        typed_extension_protocol_options: http::callers(),
        lrs_server: Some(its_own_server()),
        ..Default::default()
    }
}

fn lb_policy(balancer: Balancer) -> LbPolicy {
    match balancer {
        // Istio's own clients without a sidecar take turns where they cannot pass through (grpcgen/cds.go).
        Balancer::RoundRobin | Balancer::Passthrough => LbPolicy::RoundRobin,
        Balancer::Random => LbPolicy::Random,
        Balancer::RingHash(_) => LbPolicy::RingHash,
        Balancer::Maglev(_) => LbPolicy::Maglev,
        Balancer::Unspecified | Balancer::LeastRequest => LbPolicy::LeastRequest,
    }
}

fn lb_config(balancer: Balancer, warmup: Option<Warmup>) -> Option<LbConfig> {
    let size = |value| Some(UInt64Value { value });
    let double = |default_value| Some(core::RuntimeDouble { default_value, ..Default::default() });
    let slow_start_config = warmup.map(|warmup| cluster::cluster::SlowStartConfig {
        slow_start_window: Some(duration(warmup.duration)),
        aggression: double(warmup.aggression),
        min_weight_percent: Some(Percent { value: warmup.minimum_percent }),
    });
    match balancer {
        Balancer::RingHash(minimum) => Some(LbConfig::RingHashLbConfig(cluster::cluster::RingHashLbConfig {
            minimum_ring_size: size(minimum),
            ..Default::default()
        })),
        Balancer::Maglev(table) => {
            Some(LbConfig::MaglevLbConfig(cluster::cluster::MaglevLbConfig { table_size: size(table) }))
        }
        Balancer::Random => None,
        _ if slow_start_config.is_none() => None,
        Balancer::RoundRobin | Balancer::Passthrough => {
            Some(LbConfig::RoundRobinLbConfig(cluster::cluster::RoundRobinLbConfig { slow_start_config }))
        }
        Balancer::Unspecified | Balancer::LeastRequest => {
            let config = cluster::cluster::LeastRequestLbConfig { slow_start_config, ..Default::default() };
            Some(LbConfig::LeastRequestLbConfig(config))
        }
    }
}

/// Istio's limits are 2³²−1 where nothing is said, not Envoy's 1024 and 3 (cluster_traffic_policy.go).
fn circuit_breakers(traffic: &TrafficPolicy) -> cluster::CircuitBreakers {
    let pool = &traffic.connection_pool;
    let budget = traffic.retry_budget.map(|budget| RetryBudget {
        budget_percent: Some(Percent { value: budget.percent }),
        min_retry_concurrency: number(budget.at_least),
        budget_interval: budget.interval.map(duration),
    });
    cluster::CircuitBreakers {
        thresholds: vec![cluster::circuit_breakers::Thresholds {
            max_connections: threshold(pool.max_connections),
            max_pending_requests: threshold(pool.max_pending_requests),
            max_requests: threshold(pool.max_requests),
            max_retries: threshold(pool.max_retries),
            retry_budget: budget,
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Probes on idle connections; whole seconds, as the operating system has them, and never none.
fn keepalive(probes: TcpKeepalive) -> cluster::UpstreamConnectionOptions {
    let seconds = |time: Option<Duration>| {
        let seconds = time.map(|time| time.as_secs() + u64::from(time.subsec_nanos() > 0));
        seconds.and_then(|seconds| number(u32::try_from(seconds).unwrap_or(u32::MAX)))
    };
    cluster::UpstreamConnectionOptions {
        tcp_keepalive: Some(core::TcpKeepalive {
            keepalive_probes: probes.probes.and_then(number),
            keepalive_time: seconds(probes.time),
            keepalive_interval: seconds(probes.interval),
        }),
        ..Default::default()
    }
}

pub(super) fn threshold(limit: Bound) -> Option<UInt32Value> {
    number(limit.number().unwrap_or(u32::MAX))
}

fn outlier_detection(detection: &OutlierDetection) -> cluster::OutlierDetection {
    let enforced = |count: u32| number(if count > 0 { 100 } else { 0 });
    let in_a_row = detection.consecutive_5xx.map_or(0, NonZeroU32::get);
    let gateway = detection.consecutive_gateway_errors.map_or(0, NonZeroU32::get);
    let (split, local) = match detection.local_origin {
        LocalOrigin::Answers => (false, None),
        LocalOrigin::Failures(in_a_row) => (true, in_a_row),
    };
    cluster::OutlierDetection {
        consecutive_5xx: number(in_a_row),
        enforcing_consecutive_5xx: enforced(in_a_row),
        consecutive_gateway_failure: number(gateway),
        enforcing_consecutive_gateway_failure: enforced(gateway),
        // Istio turns success rates off (cluster_traffic_policy.go).
        enforcing_success_rate: number(0),
        split_external_local_origin_errors: split,
        consecutive_local_origin_failure: local.and_then(number),
        enforcing_consecutive_local_origin_failure: local.and_then(enforced),
        interval: detection.interval.map(duration),
        base_ejection_time: detection.base_ejection_time.map(duration),
        max_ejection_percent: detection.max_ejection_percent.and_then(number),
        ..Default::default()
    }
}

/// Istio's panic threshold, and its idea of who keeps a session (cluster_builder.go).
fn common_lb(seen: &Cluster<'_>) -> Option<CommonLbConfig> {
    use core::HealthStatus::{Degraded, Draining, Healthy, Unknown};
    let panic = seen.traffic.outlier_detection.as_ref().map(|detection| f64::from(detection.min_health_percent));
    let statuses = || [Healthy, Draining, Unknown, Degraded].map(i32::from).to_vec();
    let sessions = seen.service.session.as_ref().map(|_| core::HealthStatusSet { statuses: statuses() });
    (panic.is_some() || sessions.is_some()).then(|| CommonLbConfig {
        healthy_panic_threshold: panic.map(|value| Percent { value }),
        override_host_status: sessions,
        ..Default::default()
    })
}
