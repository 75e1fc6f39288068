//! Nothing that is rendered for gRPC's own xDS clients is anything that they reject
//! (gRFCs A27, A28, A31, A33, A37, A39, A44, A52), and what they cannot do is
//! reported.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy,
};
use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster};
use envoy_types::pb::envoy::config::core::v3::ConfigSource;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType as NetworkConfig;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::PolicySpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter,
};
use envoy_types::pb::google::protobuf::{Duration, UInt32Value};
use mesh_control::catalog::{ClientClass, Kind};
use mesh_control::plane::Plane;
use prost::Message;

use crate::support::{Seen, address_of, client_of, grpc_client, plane_from, plane_of, told};

const FAULT: &str = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const ROUND_ROBIN: &str = "type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin";

fn check_source(source: Option<&ConfigSource>) {
    let source = source.and_then(|source| source.config_source_specifier.as_ref());
    assert!(matches!(source, Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_))));
}

fn check_client_listener(listener: &Listener) -> String {
    assert!(!listener.name.is_empty());
    let api = listener.api_listener.clone();
    assert_eq!(*listener, Listener { name: listener.name.clone(), api_listener: api, ..Default::default() });
    let any = listener.api_listener.as_ref().unwrap().api_listener.as_ref().unwrap();
    let manager = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
    check_manager(&manager);
    let Some(RouteSpecifier::Rds(rds)) = &manager.route_specifier else { panic!("routes by RDS") };
    check_source(rds.config_source.as_ref());
    assert!(!rds.route_config_name.is_empty());
    rds.route_config_name.clone()
}

fn check_manager(manager: &HttpConnectionManager) {
    let known = HttpConnectionManager {
        stat_prefix: manager.stat_prefix.clone(),
        http_filters: manager.http_filters.clone(),
        route_specifier: manager.route_specifier.clone(),
        ..Default::default()
    };
    assert_eq!(*manager, known, "nothing but what gRPC looks at");
    let names: HashSet<&str> = manager.http_filters.iter().map(|filter| filter.name.as_str()).collect();
    assert_eq!(names.len(), manager.http_filters.len(), "names of filters are unique");
    let kind = |filter: &HttpFilter| match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => any.type_url.clone(),
        other => panic!("{other:?}"),
    };
    let (last, others) = manager.http_filters.split_last().expect("a filter");
    assert_eq!(kind(last), ROUTER);
    assert!(others.iter().all(|filter| kind(filter) == FAULT));
}

fn check_server_listener(listener: &Listener, bound: &str) {
    assert_eq!(address_of(listener.address.as_ref().unwrap()), bound);
    assert!(
        listener.listener_filters.is_empty() && listener.use_original_dst.is_none() && listener.api_listener.is_none()
    );
    let [chain] = &listener.filter_chains[..] else { panic!("one chain") };
    assert!(chain.filter_chain_match.is_none() && chain.transport_socket.is_none());
    let [filter] = &chain.filters[..] else { panic!("one filter") };
    let Some(NetworkConfig::TypedConfig(any)) = &filter.config_type else { panic!("typed") };
    let manager = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
    check_manager(&manager);
    let Some(RouteSpecifier::RouteConfig(routes)) = &manager.route_specifier else { panic!("inline routes") };
    for route in routes.virtual_hosts.iter().flat_map(|host| &host.routes) {
        assert!(matches!(route.action, Some(Action::NonForwardingAction(_))));
    }
}

/// Returns the clusters that the routes lead to.
fn check_routes(routes: &RouteConfiguration, has_fault_filter: bool) -> BTreeSet<String> {
    let mut domains = HashSet::new();
    let mut clusters = BTreeSet::new();
    let known = RouteConfiguration {
        name: routes.name.clone(),
        virtual_hosts: routes.virtual_hosts.clone(),
        ..Default::default()
    };
    assert_eq!(*routes, known);
    for host in &routes.virtual_hosts {
        let known = VirtualHost {
            name: host.name.clone(),
            domains: host.domains.clone(),
            routes: host.routes.clone(),
            ..Default::default()
        };
        assert_eq!(*host, known);
        assert!(!host.domains.is_empty());
        for domain in &host.domains {
            assert!(!domain.is_empty() && domains.insert(domain.clone()), "{domain}");
        }
        for route in &host.routes {
            let known = Route {
                name: route.name.clone(),
                r#match: route.r#match.clone(),
                action: route.action.clone(),
                typed_per_filter_config: route.typed_per_filter_config.clone(),
                ..Default::default()
            };
            assert_eq!(*route, known);
            check_match(route.r#match.as_ref().expect("a match"));
            for (filter, any) in &route.typed_per_filter_config {
                assert!(has_fault_filter, "a fault without the filter is no fault");
                assert_eq!((filter.as_str(), any.type_url.as_str()), ("envoy.filters.http.fault", FAULT));
                check_fault(&HttpFault::decode(any.value.as_slice()).unwrap());
            }
            let Some(Action::Route(action)) = &route.action else { panic!("{:?}", route.action) };
            clusters.extend(check_action(action));
        }
    }
    clusters
}

fn check_match(condition: &RouteMatch) {
    assert!(condition.query_parameters.is_empty());
    let known = RouteMatch {
        path_specifier: condition.path_specifier.clone(),
        case_sensitive: condition.case_sensitive,
        headers: condition.headers.clone(),
        ..Default::default()
    };
    assert_eq!(*condition, known);
    match condition.path_specifier.as_ref().expect("a path") {
        PathSpecifier::Prefix(_) | PathSpecifier::Path(_) => {}
        PathSpecifier::SafeRegex(regex) => assert!(regex::Regex::new(&regex.regex).is_ok()),
        other => panic!("{other:?}"),
    }
    condition.headers.iter().for_each(check_header);
}

#[expect(deprecated, reason = "the older forms are what every client understands")]
fn check_header(header: &HeaderMatcher) {
    assert!(
        !header.name.is_empty() && !header.name.starts_with(':') && !header.name.ends_with("-bin"),
        "{}",
        header.name
    );
    assert!(!header.treat_missing_header_as_empty, "it would be ignored");
    match header.header_match_specifier.as_ref().expect("a specifier") {
        HeaderMatchSpecifier::ExactMatch(_) | HeaderMatchSpecifier::PresentMatch(_) => {}
        HeaderMatchSpecifier::PrefixMatch(prefix) => assert!(!prefix.is_empty()),
        HeaderMatchSpecifier::SafeRegexMatch(regex) => {
            assert!(regex::Regex::new(&regex.regex).is_ok())
        }
        other => panic!("{other:?}"),
    }
}

fn check_fault(fault: &HttpFault) {
    let known = HttpFault { delay: fault.delay, abort: fault.abort.clone(), ..Default::default() };
    assert_eq!(*fault, known);
    if let Some(delay) = &fault.delay {
        assert!(matches!(delay.fault_delay_secifier, Some(FaultDelaySecifier::FixedDelay(_))));
        assert!(delay.percentage.as_ref().unwrap().numerator <= 1_000_000);
    }
    if let Some(abort) = &fault.abort {
        match abort.error_type.as_ref().expect("an error") {
            ErrorType::HttpStatus(status) => assert!((200..600).contains(status)),
            ErrorType::GrpcStatus(status) => assert!(*status <= 16),
            other => panic!("{other:?}"),
        }
    }
}

fn check_action(action: &RouteAction) -> Vec<String> {
    let known = RouteAction {
        cluster_specifier: action.cluster_specifier.clone(),
        max_stream_duration: action.max_stream_duration,
        retry_policy: action.retry_policy.clone(),
        hash_policy: action.hash_policy.clone(),
        ..Default::default()
    };
    assert_eq!(*action, known);
    for policy in &action.hash_policy {
        // gRFC A42: what it knows.
        match policy.policy_specifier.as_ref().expect("a specifier") {
            PolicySpecifier::Header(header) => assert!(!header.header_name.is_empty()),
            PolicySpecifier::FilterState(state) => assert_eq!(state.key, "io.grpc.channel_id"),
            other => panic!("{other:?}"),
        }
    }
    if let Some(retry) = &action.retry_policy {
        check_retry(retry);
    }
    match action.cluster_specifier.as_ref().expect("a cluster") {
        ClusterSpecifier::Cluster(name) => {
            assert!(!name.is_empty());
            vec![name.clone()]
        }
        ClusterSpecifier::WeightedClusters(clusters) => {
            let weights = clusters.clusters.iter().map(|cluster| u64::from(cluster.weight.as_ref().unwrap().value));
            let sum: u64 = weights.sum();
            assert!(sum > 0 && sum <= u64::from(u32::MAX));
            clusters.clusters.iter().map(|cluster| cluster.name.clone()).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn check_retry(retry: &RetryPolicy) {
    let known = RetryPolicy {
        retry_on: retry.retry_on.clone(),
        num_retries: retry.num_retries,
        retry_back_off: retry.retry_back_off,
        ..Default::default()
    };
    assert_eq!(*retry, known);
    for token in retry.retry_on.split(',') {
        assert!(
            ["cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"].contains(&token),
            "{token}"
        );
    }
    assert!(retry.num_retries.as_ref().unwrap().value >= 1);
    if let Some(pause) = &retry.retry_back_off {
        let nanos = |duration: Option<Duration>| {
            let duration = duration.expect("an interval");
            i128::from(duration.seconds) * 1_000_000_000 + i128::from(duration.nanos)
        };
        assert!(nanos(pause.base_interval) > 0 && nanos(pause.max_interval) >= nanos(pause.base_interval));
    }
}

fn check_cluster(cluster: &Cluster, name: &str) -> bool {
    assert_eq!(cluster.name, name);
    let known = Cluster {
        name: cluster.name.clone(),
        lb_policy: cluster.lb_policy,
        load_balancing_policy: cluster.load_balancing_policy.clone(),
        cluster_discovery_type: cluster.cluster_discovery_type.clone(),
        eds_cluster_config: cluster.eds_cluster_config.clone(),
        load_assignment: cluster.load_assignment.clone(),
        circuit_breakers: cluster.circuit_breakers.clone(),
        outlier_detection: cluster.outlier_detection.clone(),
        metadata: cluster.metadata.clone(),
        connect_timeout: cluster.connect_timeout,
        lrs_server: cluster.lrs_server.clone(),
        ..Default::default()
    };
    assert_eq!(*cluster, known, "nothing but what gRPC takes");
    // gRFC A27: load is reported to the server that the cluster is from, or not at all.
    let reports_to = cluster.lrs_server.as_ref().and_then(|server| server.config_source_specifier.as_ref());
    assert!(cluster.lrs_server.is_none() || matches!(reports_to, Some(ConfigSourceSpecifier::Self_(_))));
    assert_eq!(cluster.lb_policy(), LbPolicy::RoundRobin);
    if let Some(policy) = &cluster.load_balancing_policy {
        let mut kinds = policy.policies.iter().map(|policy| {
            policy.typed_extension_config.as_ref().unwrap().typed_config.as_ref().unwrap().type_url.as_str()
        });
        assert_eq!(kinds.next_back(), Some(ROUND_ROBIN), "there is one that every client knows");
    }
    if let Some(CircuitBreakers { thresholds, per_host_thresholds }) = &cluster.circuit_breakers {
        assert!(per_host_thresholds.is_empty() && thresholds.len() == 1);
    }
    match cluster.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) if kind == DiscoveryType::Eds as i32 => {
            let EdsClusterConfig { eds_config, service_name } = cluster.eds_cluster_config.as_ref().unwrap();
            check_source(eds_config.as_ref());
            assert!(service_name == name || service_name == "BlackHoleCluster");
            service_name == name
        }
        Some(ClusterDiscoveryType::Type(kind)) if kind == DiscoveryType::LogicalDns as i32 => {
            let [locality] = &cluster.load_assignment.as_ref().unwrap().endpoints[..] else { panic!("one locality") };
            let [endpoint] = &locality.lb_endpoints[..] else { panic!("one endpoint") };
            let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else { panic!("an endpoint") };
            assert!(address_of(endpoint.address.as_ref().unwrap()).len() > 3);
            false
        }
        ref other => panic!("{other:?}"),
    }
}

fn check_assignment(assignment: &ClusterLoadAssignment, name: &str) {
    assert_eq!(assignment.cluster_name, name);
    let mut localities = HashSet::new();
    let mut addresses = HashSet::new();
    let mut sum = 0;
    let mut priorities = 0..=0;
    for group in &assignment.endpoints {
        let locality = group.locality.clone().expect("a locality");
        assert!(localities.insert((group.priority, locality.region, locality.zone, locality.sub_zone)));
        // From 0, in order, without gaps.
        assert!(priorities.contains(&group.priority), "{assignment:?}");
        priorities = group.priority..=group.priority + 1;
        let weight = group.load_balancing_weight.as_ref().expect("a weight").value;
        assert!(weight > 0);
        sum += u64::from(weight);
        let mut within = 0;
        for endpoint in &group.lb_endpoints {
            let weight = endpoint.load_balancing_weight.as_ref().unwrap().value;
            assert!(weight > 0);
            within += u64::from(weight);
            let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else { panic!("an endpoint") };
            let address: SocketAddr = address_of(endpoint.address.as_ref().unwrap()).parse().expect("an IP address");
            assert!(addresses.insert(address));
        }
        assert!(within <= u64::from(u32::MAX));
    }
    assert!(sum <= u64::from(u32::MAX));
    assert!(assignment.policy.is_none());
}

/// Walks from every target over routes and clusters to endpoints, and checks all of it. Returns how many
/// resources there were.
pub(crate) fn check_everything(plane: &Plane, seen: &Seen) -> usize {
    let mut targets: Vec<String> = Vec::new();
    for service in plane.services() {
        let host = service.host.replace('*', "sub");
        targets.extend(service.ports.iter().map(|port| format!("{host}:{}", port.number)));
    }
    targets.push("any.web.example.com:80".to_owned());
    let mut count = 0;
    for target in targets {
        let Some(listener) = seen.get(Kind::Listener, &target) else {
            continue;
        };
        let listener = Listener::decode(listener.body).unwrap();
        let name = check_client_listener(&listener);
        let has_fault_filter = seen.filters_of(&target).len() > 1;
        let clusters = check_routes(&seen.routes(&name), has_fault_filter);
        count += 2;
        for name in clusters {
            let Some(cluster) = seen.get(Kind::Cluster, &name) else {
                continue;
            };
            count += 1;
            if check_cluster(&Cluster::decode(cluster.body).unwrap(), &name) {
                check_assignment(&seen.assignment(&name), &name);
                count += 1;
            }
        }
    }
    count
}

#[test]
fn nothing_rendered_for_grpc_is_anything_that_it_rejects() {
    for folder in ["shop", "everything"] {
        let plane = plane_of(folder);
        plane.register(crate::support::workload("a", "catalog", "v1", "10.0.0.1:8080"));
        for namespace in ["default", "shop", "elsewhere"] {
            for labels in [&[][..], &[("tier", "gold")]] {
                let seen = Seen::new(&plane, client_of(ClientClass::Grpc, namespace, labels));
                let count = check_everything(&plane, &seen);
                assert!(count > 20, "{folder} {namespace}: {count}");
            }
        }
    }
    let plane = plane_of("shop");
    let seen = Seen::new(&plane, grpc_client("default"));
    for bound in ["10.0.0.1:50051", "[::]:50051"] {
        check_server_listener(&seen.server_listener(bound), bound);
    }
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, name: grpc}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  SUBSETS
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
";

fn plane_with(http: &str) -> Plane {
    plane_from(&format!("{}{http}", SERVICE.replace("SUBSETS", "subsets: [{name: v1, labels: {v: '1'}}]")))
}

fn degraded(plane: &Plane) -> Vec<String> {
    plane
        .diagnostics()
        .iter()
        .filter(|finding| finding.code == mesh_control::config::Code::Degraded)
        .map(|finding| finding.field.as_deref().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn what_a_grpc_client_cannot_do_is_reported_by_field_and_what_it_does_instead_is_safe() {
    let cluster = "outbound|80||web.shop.svc.cluster.local";
    let to = "    route: [{destination: {host: web}}]";
    let default = format!("* -> {cluster}");
    for (rule, fields, expected) in [
        (format!("  - match: [{{method: {{exact: GET}}}}]\n{to}"), &["http[0].match.method"][..], vec![]),
        (format!("  - match: [{{method: {{exact: POST}}}}]\n{to}"), &[], vec![default.clone()]),
        (format!("  - match: [{{scheme: {{exact: http}}}}]\n{to}"), &["http[0].match.scheme"], vec![]),
        (format!("  - match: [{{authority: {{exact: web}}}}]\n{to}"), &["http[0].match.authority"], vec![]),
        (format!("  - match: [{{queryParams: {{q: {{exact: '1'}}}}}}]\n{to}"), &["http[0].match.queryParams"], vec![]),
        (format!("  - match: [{{headers: {{x-bin: {{exact: '1'}}}}}}]\n{to}"), &["http[0].match.headers"], vec![]),
        (format!("  - rewrite: {{uri: /x}}\n{to}"), &["http[0].rewrite"], vec![default.clone()]),
        (format!("  - headers: {{request: {{set: {{a: b}}}}}}\n{to}"), &["http[0].headers"], vec![default.clone()]),
        (
            "  - route: [{destination: {host: web}, headers: {response: {remove: [a]}}}]".to_owned(),
            &["http[0].route.headers"],
            vec![default.clone()],
        ),
        (
            "  - redirect: {uri: /x}".to_owned(),
            &["http[0].redirect"],
            vec!["* -> BlackHoleCluster abort HttpStatus(301) 1000000".to_owned()],
        ),
        (
            "  - directResponse: {status: 429}".to_owned(),
            &["http[0].directResponse"],
            vec!["* -> BlackHoleCluster abort HttpStatus(429) 1000000".to_owned()],
        ),
        (
            format!("  - retries: {{attempts: 2, retryOn: 5xx, perTryTimeout: 1s, retryRemoteLocalities: true}}\n{to}"),
            &["http[0].retries.perTryTimeout", "http[0].retries.retryOn", "http[0].retries.retryRemoteLocalities"],
            vec![default.clone()],
        ),
        // Some of the conditions are lost, and some of the attempts; what is refused unseen is tried again in any case.
        (
            format!("  - retries: {{attempts: 5, retryOn: 'unavailable,503'}}\n{to}"),
            &["http[0].retries.attempts", "http[0].retries.retryOn"],
            vec![default.clone()],
        ),
        (
            format!("  - retries: {{attempts: 4, retryOn: 'unavailable,connect-failure,refused-stream'}}\n{to}"),
            &[],
            vec![default.clone()],
        ),
        (
            format!("  - match: [{{withoutHeaders: {{a: {{exact: x}}, b: {{}}}}}}]\n{to}"),
            &[],
            vec![format!("* !a !b -> {cluster}"), format!("* !a=x !b -> {cluster}")],
        ),
        (
            format!("  - match: [{{withoutHeaders: {{a: {{regex: '.*'}}}}}}]\n{to}"),
            &[],
            vec![format!("* !a~.* -> {cluster}")],
        ),
    ] {
        let plane = plane_with(&rule);
        let seen = Seen::new(&plane, grpc_client("shop"));
        let expected = if expected.is_empty() { vec!["none: * -> BlackHoleCluster".to_owned()] } else { expected };
        assert_eq!(told(&seen.routes(cluster)), expected, "{rule}");
        assert_eq!(degraded(&plane), fields, "{rule}");
        check_everything(&plane, &seen);
    }
}

#[test]
fn a_cluster_for_grpc_balances_by_round_robin_unless_a_rule_says_otherwise() {
    for (policy, prefers, fields) in [
        ("", false, &[][..]),
        ("simple: LEAST_REQUEST", true, &[]),
        ("simple: LEAST_REQUEST, localityLbSetting: {distribute: [{from: a, to: {b: 100}}]}", true, &[]),
        ("simple: ROUND_ROBIN", false, &[]),
        ("simple: ROUND_ROBIN, warmup: {duration: 1s}", false, &["trafficPolicy.loadBalancer.warmup"]),
        ("simple: RANDOM", false, &["trafficPolicy.loadBalancer.simple"]),
        ("consistentHash: {httpHeaderName: x}", true, &[]),
        (
            "consistentHash: {httpHeaderName: x, ringHash: {minimumRingSize: 5000}}",
            true,
            &["trafficPolicy.loadBalancer.consistentHash"],
        ),
        (
            "consistentHash: {httpHeaderName: x, maglev: {tableSize: 7}}",
            true,
            &["trafficPolicy.loadBalancer.consistentHash.maglev"],
        ),
        ("consistentHash: {httpCookie: {name: x}}", true, &["trafficPolicy.loadBalancer.consistentHash.httpCookie"]),
        (
            "consistentHash: {httpQueryParameterName: x}",
            true,
            &["trafficPolicy.loadBalancer.consistentHash.httpQueryParameterName"],
        ),
        ("consistentHash: {useSourceIp: true}", true, &["trafficPolicy.loadBalancer.consistentHash.useSourceIp"]),
    ] {
        let policy = match policy {
            "" => "subsets: []".to_owned(),
            settings => format!("trafficPolicy: {{loadBalancer: {{{settings}}}}}"),
        };
        let text = SERVICE.replace("SUBSETS", &policy) + "  - route: [{destination: {host: web}}]";
        let plane = plane_from(&text);
        let seen = Seen::new(&plane, grpc_client("shop"));
        let cluster = seen.cluster("outbound|80||web.shop.svc.cluster.local");
        assert_eq!(cluster.load_balancing_policy.is_some(), prefers, "{policy}");
        assert_eq!(degraded(&plane), fields, "{policy}");
    }
    let pool = "trafficPolicy: {connectionPool: {tcp: {connectTimeout: 1s}, http: {idleTimeout: 1s, maxRequestsPerConnection: 2, http2MaxRequests: 5, maxRetries: 1, http2KeepAlive: {interval: 1s, timeout: 1s}}}, retryBudget: {percent: 5}}";
    let plane = plane_from(&(SERVICE.replace("SUBSETS", pool) + "  - route: [{destination: {host: web}}]"));
    let cluster = Seen::new(&plane, grpc_client("shop")).cluster("outbound|80||web.shop.svc.cluster.local");
    assert_eq!(cluster.circuit_breakers.unwrap().thresholds[0].max_requests.as_ref().unwrap().value, 5);
    assert_eq!(degraded(&plane).len(), 6);
}

#[test]
fn annotations_of_our_own_are_told_as_far_as_grpc_knows_them_and_what_is_lost_is_said() {
    let lost = |key: &str| vec![format!("metadata.annotations.mesh-control/{key}")];
    for (annotation, policies, fields) in [
        ("health-check: 'path=/healthz'", &[][..], lost("health-check")),
        ("load-balancer: policy=weighted-by-load", &["ClientSideWeightedRoundRobin", "RoundRobin"], vec![]),
        ("load-balancer: policy=peak-ewma", &["LeastRequest", "RoundRobin"], lost("load-balancer")),
        ("load-balancer: policy=acme.Last", &["LeastRequest", "RoundRobin"], lost("load-balancer")),
        ("endpoint-subset: size=2", &["RandomSubsetting", "RoundRobin"], vec![]),
    ] {
        let text = SERVICE.replace("SUBSETS", "subsets: []") + "  - route: [{destination: {host: web}}]";
        let rule = "kind: DestinationRule\nmetadata: {";
        assert!(text.contains(rule), "{text}");
        let text = text.replace(rule, &format!("{rule}annotations: {{mesh-control/{annotation}}}, "));
        let plane = plane_from(&text);
        let cluster = Seen::new(&plane, grpc_client("shop")).cluster("outbound|80||web.shop.svc.cluster.local");
        let told = cluster.load_balancing_policy.iter().flat_map(|policy| &policy.policies);
        let told = told.map(|policy| policy.typed_extension_config.as_ref().unwrap().typed_config.as_ref().unwrap());
        let told: Vec<_> = told.map(|any| any.type_url.rsplit('.').next().unwrap()).collect();
        assert_eq!(told, policies, "{annotation}");
        assert_eq!(degraded(&plane), fields, "{annotation}");
        assert!(cluster.health_checks.is_empty());
    }
}

#[test]
fn outlier_detection_is_told_as_far_as_grpc_goes_and_what_is_lost_is_said() {
    let field = |name: &str| format!("trafficPolicy.outlierDetection{name}");
    for (written, volume, lost) in [
        ("{}", Some(5), vec![field("")]),
        ("{consecutive5xxErrors: 7}", Some(7), vec![field("")]),
        // At a larger one, channels of grpc-java panic.
        ("{consecutive5xxErrors: 4294967295}", Some(2_147_483_647), vec![field("")]),
        ("{consecutive5xxErrors: 0, consecutiveGatewayErrors: 3}", Some(3), vec![field("")]),
        ("{consecutive5xxErrors: 0}", None, vec![field("")]),
        (
            "{minHealthPercent: 50, splitExternalLocalOriginErrors: true}",
            Some(5),
            vec![field(""), field(".minHealthPercent"), field(".splitExternalLocalOriginErrors")],
        ),
    ] {
        let policy = format!("trafficPolicy: {{outlierDetection: {written}}}");
        let plane = plane_from(&(SERVICE.replace("SUBSETS", &policy) + "  - route: [{destination: {host: web}}]"));
        let cluster = Seen::new(&plane, grpc_client("shop")).cluster("outbound|80||web.shop.svc.cluster.local");
        let told = cluster.outlier_detection;
        assert_eq!(told.is_some(), volume.is_some(), "{written}");
        if let Some(told) = told {
            let value = |value: Option<UInt32Value>| value.map(|value| value.value);
            assert_eq!(value(told.failure_percentage_request_volume), volume, "{written}");
            assert_eq!(value(told.failure_percentage_minimum_hosts), Some(1));
            assert_eq!(value(told.enforcing_failure_percentage), Some(100));
            assert_eq!(value(told.enforcing_success_rate), Some(0), "not set, it would be enforced");
        }
        let mut said = degraded(&plane);
        said.sort();
        assert_eq!(said, lost, "{written}");
    }
}

#[test]
fn timeouts_and_retries_are_told_in_grpc_s_own_terms() {
    let plane = plane_with(
        "  - timeout: 2s
    retries: {attempts: 9, retryOn: 'unavailable,5xx,internal', backoff: 100ms}
    route: [{destination: {host: web}}]",
    );
    let routes = Seen::new(&plane, grpc_client("shop")).routes("outbound|80||web.shop.svc.cluster.local");
    let Some(Action::Route(action)) = &routes.virtual_hosts[0].routes[0].action else { panic!("a route") };
    assert_eq!(action.max_stream_duration.as_ref().unwrap().max_stream_duration.as_ref().unwrap().seconds, 2);
    assert!(action.timeout.is_none(), "gRFC A31 does not use it");
    let retry = action.retry_policy.as_ref().unwrap();
    assert_eq!((retry.retry_on.as_str(), retry.num_retries.as_ref().unwrap().value), ("unavailable,internal", 9));
    assert_eq!(retry.retry_back_off.as_ref().unwrap().max_interval.as_ref().unwrap().seconds, 1);
}

#[test]
fn no_timeout_is_told_by_which_calls_of_a_client_in_java_fail() {
    for (timeout, seconds, nanos) in [("1ns", 0, 1_000_000), ("1s", 1, 0), ("99999h", 9_999_999, 0)] {
        let plane = plane_with(&format!("  - timeout: {timeout}\n    route: [{{destination: {{host: web}}}}]"));
        let routes = Seen::new(&plane, grpc_client("shop")).routes("outbound|80||web.shop.svc.cluster.local");
        let Some(Action::Route(action)) = &routes.virtual_hosts[0].routes[0].action else { panic!("a route") };
        let told = action.max_stream_duration.as_ref().unwrap().max_stream_duration.as_ref().unwrap();
        assert_eq!((told.seconds, told.nanos), (seconds, nanos), "{timeout}");
    }
}

#[test]
fn calls_that_go_nowhere_have_a_cluster_without_endpoints() {
    let plane = plane_of("shop");
    let seen = Seen::new(&plane, grpc_client("default"));
    assert!(check_cluster(&seen.cluster("BlackHoleCluster"), "BlackHoleCluster"));
    let encoded = seen.get(Kind::Endpoints, "BlackHoleCluster").unwrap();
    assert_eq!(encoded.endpoints, 0);
}

#[test]
fn where_no_rule_is_for_grpc_calls_there_is_a_route_that_fails() {
    let plane = plane_from(
        "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, name: grpc}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http: [{match: [{method: {exact: GET}}], route: [{destination: {host: web}}]}]
",
    );
    let routes = Seen::new(&plane, grpc_client("shop")).routes_of("web:80");
    assert_eq!(told(&routes), ["none: * -> BlackHoleCluster"]);
    check_routes(&routes, false);
}
