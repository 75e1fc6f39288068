//! Local rate limits over xDS: of a listener, and of a route in its place.

use std::sync::Arc;
use std::time::Instant;

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::config::route::v3::rate_limit::Action;
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::{ActionSpecifier, GenericKey};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::LocalRateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit as LocalRateLimitProto;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, TokenBucket};
use envoy_types::pb::google::protobuf::{Any, Duration, UInt32Value};
use http::Request;
use prost::{Message, Name};

use super::{accept, all_rejected};
use crate::filter::{Decision, FilterRegistry};
use crate::model::{HttpManager, Listener, RouteSource};
use crate::request::RequestHead;
use crate::request_info::RequestInfo;
use crate::resources::{Resource, ResourceType};
use crate::state::States;
use crate::testing::resources::{http_filter, http_manager, pack, route_of, routes, virtual_host};
use crate::view::RouteTable;
use crate::xds::decode::LocalRateLimitBesides;

const NAME: &str = "envoy.filters.http.local_ratelimit";

fn all() -> Option<RuntimeFractionalPercent> {
    let default_value = Some(FractionalPercent { numerator: 100, denominator: 0 });
    Some(RuntimeFractionalPercent { default_value, ..Default::default() })
}

fn bucket(tokens: u32) -> Option<TokenBucket> {
    let fill_interval = Some(Duration { seconds: 3600, nanos: 0 });
    Some(TokenBucket { max_tokens: tokens, tokens_per_fill: Some(UInt32Value { value: tokens }), fill_interval })
}

fn limit(tokens: u32) -> LocalRateLimitProto {
    LocalRateLimitProto {
        stat_prefix: "limit".to_owned(),
        token_bucket: bucket(tokens),
        filter_enabled: all(),
        filter_enforced: all(),
        ..Default::default()
    }
}

fn counted(value: &str) -> route::RateLimit {
    let key = GenericKey { descriptor_value: value.to_owned(), ..Default::default() };
    let action = Action { action_specifier: Some(ActionSpecifier::GenericKey(key)) };
    route::RateLimit { actions: vec![action], ..Default::default() }
}

fn descriptor(value: &str, tokens: u32) -> LocalRateLimitDescriptor {
    let entry = Entry { key: "generic_key".to_owned(), value: value.to_owned() };
    LocalRateLimitDescriptor { entries: vec![entry], token_bucket: bucket(tokens), shadow_mode: false }
}

/// A route of this prefix, with a limit in the place of the listener's, and what it is counted by.
fn route_to(prefix: &str, own: Option<LocalRateLimitProto>, by: Vec<route::RateLimit>) -> route::Route {
    let action = route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster("a".to_owned())),
        rate_limits: by,
        ..Default::default()
    };
    let mut route = route_of(prefix, route::route::Action::Route(action));
    route.typed_per_filter_config.extend(own.map(|own| (NAME.to_owned(), pack(&own))));
    route
}

/// A listener with this limit, and these routes.
fn table(
    limit: LocalRateLimitProto,
    of_routes: Vec<route::Route>,
    of_host: Vec<route::RateLimit>,
    states: &States,
) -> RouteTable {
    let host = route::VirtualHost { rate_limits: of_host, ..virtual_host("all", &["*"], of_routes) };
    let decoded = accept(ResourceType::Route, &routes("r", vec![host]));
    assert_eq!(decoded.ignored, [""; 0]);
    let Resource::Route(config) = decoded.resource else { panic!("another kind") };
    let http = manager(&limit);
    RouteTable::compile(config, &http, &FilterRegistry::default(), states, "l").unwrap()
}

fn listener(limit: &LocalRateLimitProto) -> envoy_types::pb::envoy::config::listener::v3::Listener {
    let mut manager = http_manager(crate::testing::resources::rds("r"));
    manager.http_filters = vec![http_filter(NAME, pack(limit)), http_filter("router", pack(&Router::default()))];
    crate::testing::resources::api_listener_of("l", &manager)
}

fn manager(limit: &LocalRateLimitProto) -> HttpManager {
    let Resource::Listener(listener) = accept(ResourceType::Listener, &listener(limit)).resource else {
        panic!("another kind");
    };
    let Listener::Api(listener) = &*listener else { panic!("another kind") };
    assert!(matches!(listener.http.routes, RouteSource::Named(_)));
    listener.http.clone()
}

/// How many of so many requests pass.
fn passed(table: &RouteTable, path: &str, asked: usize) -> usize {
    let ask = |_: &usize| {
        let (mut parts, ()) = Request::get(format!("http://h{path}")).body(()).unwrap().into_parts();
        let mut random = fastrand::Rng::with_seed(1);
        let (_, _, destination) = table.find(&RequestHead::of(&parts).unwrap(), &mut random).unwrap();
        let mut info = RequestInfo::new(Instant::now(), random);
        let mut decide = |filter: &Arc<dyn crate::filter::Filter>| filter.on_request(&mut info, &mut parts);
        destination.filters().iter().all(|filter| matches!(decide(filter), Decision::Continue))
    };
    (0..asked).filter(ask).count()
}

#[test]
fn a_route_has_a_limit_of_its_own_in_the_place_of_the_listeners_which_the_others_share() {
    let of_routes =
        vec![route_to("/own", Some(limit(1)), vec![]), route_to("/a", None, vec![]), route_to("/", None, vec![])];
    let states = States::default();
    let table = table(limit(5), of_routes, vec![], &states);
    assert_eq!(passed(&table, "/own", 10), 1);
    assert_eq!(passed(&table, "/a", 3), 3);
    assert_eq!(passed(&table, "/", 10), 2);
}

#[test]
fn what_a_route_is_counted_by_goes_before_what_its_virtual_host_says() {
    let config = LocalRateLimitProto {
        token_bucket: None,
        descriptors: vec![descriptor("route", 1), descriptor("host", 2)],
        ..limit(1)
    };
    let of_routes = vec![route_to("/r", None, vec![counted("route")]), route_to("/", None, vec![])];
    let states = States::default();
    let first = table(config.clone(), of_routes.clone(), vec![counted("host")], &states);
    assert_eq!((passed(&first, "/r", 10), passed(&first, "/", 10)), (1, 2));
    // Another configuration: the buckets are those.
    let second = table(config.clone(), of_routes.clone(), vec![counted("host")], &states);
    assert_eq!((passed(&second, "/r", 10), passed(&second, "/", 10)), (0, 0));
    // What it says itself is all that counts.
    let own = LocalRateLimitProto { rate_limits: vec![counted("nobody's")], ..config };
    let third = table(own, of_routes, vec![counted("host")], &states);
    assert_eq!((passed(&third, "/r", 10), passed(&third, "/", 10)), (10, 10));
}

#[test]
fn what_is_not_enabled_counts_nothing_and_what_is_not_enforced_refuses_nobody() {
    let states = States::default();
    let off = LocalRateLimitProto { filter_enabled: None, ..limit(1) };
    assert_eq!(accept(ResourceType::Listener, &listener(&off)).ignored.len(), 1, "it is told");
    let of_routes = || vec![route_to("/", None, vec![])];
    assert_eq!(passed(&table(off, of_routes(), vec![], &states), "/", 5), 5);
    let tried = LocalRateLimitProto { filter_enforced: None, ..limit(1) };
    assert_eq!(passed(&table(tried, of_routes(), vec![], &states), "/", 5), 5);
}

#[test]
fn what_mesh_control_says_besides_stands_behind_envoys_fields() {
    let mut value = LocalRateLimitProto { descriptors: vec![descriptor("x", 1)], ..limit(1) }.encode_to_vec();
    value.extend(LocalRateLimitBesides { tells_rest: true, names: vec!["mine".to_owned()] }.encode_to_vec());
    let any = Any { type_url: LocalRateLimitProto::type_url(), value };
    let mut manager = http_manager(crate::testing::resources::rds("r"));
    manager.http_filters = vec![http_filter(NAME, any), http_filter("router", pack(&Router::default()))];
    let decoded = accept(ResourceType::Listener, &crate::testing::resources::api_listener_of("l", &manager));
    let Resource::Listener(listener) = decoded.resource else { panic!("another kind") };
    let Listener::Api(listener) = &*listener else { panic!("another kind") };
    let crate::model::FilterConfig::LocalRateLimit(limit) = &listener.http.filters[0].config else {
        panic!("another filter");
    };
    assert_eq!((limit.tells, &*limit.rules[0].name), (crate::model::RestHeaders::RateLimit, "mine"));
}

#[test]
fn what_cannot_be_a_limit_is_refused() {
    fn of_route(routes: &mut route::RouteConfiguration, limit: &LocalRateLimitProto) {
        routes.virtual_hosts[0].routes[0].typed_per_filter_config.insert(NAME.to_owned(), pack(limit));
    }
    let valid = routes("r", vec![virtual_host("all", &["*"], vec![route_to("/", Some(limit(1)), vec![])])]);
    all_rejected(
        ResourceType::Route,
        &valid,
        &[
            ("stat_prefix: must not be empty", |routes| {
                of_route(routes, &LocalRateLimitProto { stat_prefix: String::new(), ..limit(1) });
            }),
            ("token_bucket: missing", |routes| {
                of_route(routes, &LocalRateLimitProto { token_bucket: None, ..limit(1) });
            }),
            ("max_tokens: must be more than zero", |routes| of_route(routes, &limit(0))),
            ("fill_interval: shorter than 50ms", |routes| {
                let short = Some(Duration { seconds: 0, nanos: 1_000_000 });
                let bucket = bucket(1).map(|bucket| TokenBucket { fill_interval: short, ..bucket });
                of_route(routes, &LocalRateLimitProto { token_bucket: bucket, ..limit(1) });
            }),
            ("fill_interval: it takes more than ten years to fill", |routes| {
                let bucket = bucket(u32::MAX).map(|bucket| TokenBucket { tokens_per_fill: None, ..bucket });
                of_route(routes, &LocalRateLimitProto { token_bucket: bucket, ..limit(1) });
            }),
            ("descriptors[1]: another one has the same entries", |routes| {
                let descriptors = vec![descriptor("x", 1), descriptor("x", 2)];
                of_route(routes, &LocalRateLimitProto { descriptors, ..limit(1) });
            }),
            ("stage: more than 10", |routes| of_route(routes, &LocalRateLimitProto { stage: 11, ..limit(1) })),
            ("max_dynamic_descriptors: must be 1 to", |routes| {
                let max_dynamic_descriptors = Some(UInt32Value { value: 0 });
                of_route(routes, &LocalRateLimitProto { max_dynamic_descriptors, ..limit(1) });
            }),
            ("too many buckets", |routes| {
                let max_dynamic_descriptors = Some(UInt32Value { value: 1 << 20 });
                let other = LocalRateLimitDescriptor {
                    entries: vec![Entry { key: "user".to_owned(), value: String::new() }],
                    ..descriptor("", 1)
                };
                let descriptors = vec![descriptor("", 1), other];
                of_route(routes, &LocalRateLimitProto { descriptors, max_dynamic_descriptors, ..limit(1) });
            }),
        ],
    );
}
