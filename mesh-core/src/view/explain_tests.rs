//! What is explained is what is found, over random tables; and what it looks like.

use std::time::Instant;

use http::{Request, StatusCode};
use proptest::prelude::*;

use super::*;
use crate::filter::FilterRegistry;
use crate::fixed::route_to;
use crate::model::{
    FilterConfig, Fraction, HeaderTest, HttpManager, LocalRateLimit, NamedFilter, PathTest, QueryTest, Refusal,
    RequestRule, RequestRules, RouteConfiguration, RouteMatch, RouteSource, StringTest, TokenBucket, VirtualHost,
    WeightedCluster,
};
use crate::state::States;

fn table(hosts: Vec<VirtualHost>) -> RouteTable {
    let config = Arc::new(RouteConfiguration::new(hosts));
    let http = HttpManager::new(RouteSource::Inline(Arc::clone(&config)));
    RouteTable::compile(config, &http, &FilterRegistry::default(), &States::default(), "l").expect("routes")
}

fn request(uri: &str, headers: &[(&str, &str)]) -> http::request::Parts {
    let mut request = Request::get(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn text(value: &str) -> StringTest {
    StringTest::Exact { value: value.to_owned(), ignore_case: false }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_is_explained_is_what_is_found(
        hosts in proptest::collection::vec(any_host(), 1..4),
        authority in "[ab]{1,3}(\\.[ab]{1,2})?",
        path in "/[ab/]{0,8}(\\?v=[12])?",
        tier in proptest::option::of("[xy]"),
        seed in any::<u64>(),
    ) {
        // A domain is that of one host.
        let mut seen = std::collections::HashSet::new();
        let mut hosts = hosts;
        for host in &mut hosts {
            host.domains.retain(|domain| seen.insert(domain.clone()));
        }
        let table = table(hosts);
        let tier: Vec<(&str, &str)> = tier.iter().map(|tier| ("x-tier", tier.as_str())).collect();
        let parts = request(&format!("http://{authority}{path}"), &tier);
        let head = RequestHead::of(&parts).unwrap();
        let found = table.find(&head, &mut fastrand::Rng::with_seed(seed));
        let explained = table.explain(&head, &mut fastrand::Rng::with_seed(seed));
        let chosen = explained.route.as_ref().map(|choice| choice.position);
        let host = explained.virtual_host.as_ref().map(|host| &host.domain);
        match &found {
            Ok((position, route, _)) => {
                prop_assert_eq!(chosen, Some(position.route()));
                prop_assert_eq!(&explained.route.as_ref().unwrap().route, *route);
                let config = &table.config().virtual_hosts[position.host()];
                prop_assert!(config.domains.iter().any(|domain| **domain == **host.unwrap()));
                prop_assert!(explained.error.is_none());
            }
            Err(error) => {
                prop_assert_eq!(chosen, None);
                prop_assert_eq!(explained.error.as_ref().map(MeshError::detail), Some(error.detail()));
            }
        }
        // Each route before has its reason.
        let before = chosen.or_else(|| {
            let host = table.host_of(&head)?;
            Some(table.config().virtual_hosts[host].routes.len())
        });
        let said: Vec<usize> = explained.passed_over.iter().map(|over| over.position).collect();
        prop_assert_eq!(said, (0..before.unwrap_or(0)).collect::<Vec<_>>());
        let json = explained.to_json();
        prop_assert_eq!(json["outcome"].as_str(), Some(if found.is_ok() { "forward" } else { "error" }));
    }
}

fn any_host() -> impl Strategy<Value = VirtualHost> {
    let domains = proptest::collection::vec("\\*|[ab]{1,2}|\\*[ab]|\\*\\.[ab]|[ab]\\*|[ab]\\.[ab]", 1..4);
    (domains, proptest::collection::vec(any_route(), 0..8))
        .prop_map(|(domains, routes)| VirtualHost::new(domains, routes))
}

fn any_route() -> impl Strategy<Value = Route> {
    let tier = proptest::option::of("[xy]");
    ("/[ab/]{0,3}", any::<bool>(), tier, proptest::option::of("[12]"), 0..4u32).prop_map(
        |(path, is_exact, tier, query, share)| {
            let mut matches = RouteMatch::path(match is_exact {
                true => PathTest::Exact { value: path, ignore_case: false },
                false => PathTest::Prefix { value: path, ignore_case: false },
            });
            matches.headers.extend(tier.map(|tier| HeaderTest::Value {
                name: "x-tier".into(),
                test: text(&tier),
                invert: false,
                missing_is_empty: false,
            }));
            matches.query.extend(query.map(|value| QueryTest::new("v", Some(text(&value)))));
            matches.fraction = (share == 0).then(|| Fraction::new(1, 2));
            Route { matches, ..route_to("c") }
        },
    )
}

#[test]
fn the_text_has_the_host_the_reasons_the_route_and_its_clusters() {
    let mut gold = route_to("gold");
    gold.name = "gold".into();
    gold.matches.headers.push(HeaderTest::Present { name: "x-tier".into(), present: true });
    let mut split = route_to("");
    let clusters = vec![WeightedCluster::new("v1", 90), WeightedCluster::new("v2", 10)];
    let mut forward = Forward::among(Clusters::Weighted(clusters));
    forward.timeout = Some(Duration::from_millis(1500));
    split.action = RouteAction::Forward(forward);
    let hosts = vec![VirtualHost { name: "reviews".into(), ..VirtualHost::new(["*.shop", "*"], vec![gold, split]) }];
    let table = table(hosts);
    let parts = request("http://reviews.shop/1", &[]);
    let explained = table.explain(&RequestHead::of(&parts).unwrap(), &mut fastrand::Rng::with_seed(1));
    let expected = "GET reviews.shop/1\n\
        virtual host reviews, by its domain *.shop\n  \
        not route 0 gold: header x-tier: present, is absent\n\
        route 1 default: path: prefix \"/\"\n  \
        timeout: 1.5s\n  \
        retry: none\n\
        cluster v1: weight 90\n\
        cluster v2: weight 10\n";
    assert_eq!(explained.to_string(), expected);
}

#[test]
fn what_a_request_passes_is_told_in_its_order_by_the_word_of_its_route() {
    let second = Duration::from_secs(1);
    let limit = |requests| {
        let bucket = TokenBucket::new(requests, requests, second).unwrap();
        FilterConfig::LocalRateLimit(Arc::new(LocalRateLimit::new("calls", Some(bucket))))
    };
    let mut refusing = RequestRule::new("no-tenant");
    refusing.deny = Some(Refusal::new(StatusCode::BAD_REQUEST, ""));
    let rules = RequestRules::new(vec![refusing, RequestRule::new("all")]);
    let own = |path: &str, filters: Vec<(&str, FilterConfig)>| {
        let path = PathTest::Exact { value: path.to_owned(), ignore_case: false };
        let filters = filters.into_iter().map(|(name, config)| (name.into(), config)).collect();
        Route { matches: RouteMatch::path(path), filters, ..route_to("c") }
    };
    let off = vec![("rules", FilterConfig::Disabled), ("limit", FilterConfig::Disabled)];
    let routes = vec![own("/less", vec![("limit", limit(1))]), own("/none", off), route_to("c")];
    let config = Arc::new(RouteConfiguration::new(vec![VirtualHost::new(["*"], routes)]));
    let mut http = HttpManager::new(RouteSource::Inline(Arc::clone(&config)));
    http.filters = vec![
        NamedFilter::new("limit", limit(10)),
        NamedFilter::new("fault", FilterConfig::Fault(Arc::default())),
        NamedFilter::new("rules", FilterConfig::RequestRules(Arc::new(rules))),
    ];
    let table = RouteTable::compile(config, &http, &FilterRegistry::default(), &States::default(), "l").unwrap();
    let rules = "  rules (rules): rules (name no-tenant, refused with 400) and (name all)";
    let rate =
        |limit: u32| format!("  local rate limit (limit): name calls, limit at once {limit}, per 1s, requests {limit}");
    for (path, expected) in
        [("/", vec![rate(10), rules.to_owned()]), ("/less", vec![rate(1), rules.to_owned()]), ("/none", vec![])]
    {
        let parts = request(&format!("http://h{path}"), &[]);
        let explained = table.explain(&RequestHead::of(&parts).unwrap(), &mut fastrand::Rng::with_seed(1));
        let text = explained.to_string();
        let passed = text.lines().filter(|line| line.starts_with("  local rate") || line.starts_with("  rules"));
        assert_eq!(passed.collect::<Vec<_>>(), expected, "{text}");
        let json = explained.to_json();
        assert_eq!(json["route"]["passes"].as_array().map(Vec::len), Some(expected.len()), "{json:#}");
    }
}

#[test]
fn a_text_has_a_hundred_of_many_routes_and_the_json_all() {
    let routes = (0..1_000).map(|at| {
        let path = PathTest::Exact { value: format!("/{at}"), ignore_case: false };
        Route { matches: RouteMatch::path(path), ..route_to("c") }
    });
    let table = table(vec![VirtualHost::new(["*"], routes.collect())]);
    let parts = request("http://h/none", &[]);
    let explained = table.explain(&RequestHead::of(&parts).unwrap(), &mut fastrand::Rng::with_seed(1));
    let text = explained.to_string();
    assert_eq!((text.matches("  not route ").count(), text.contains("... and 900 more")), (100, true));
    assert_eq!(explained.to_json()["passed_over"].as_array().map(Vec::len), Some(1_000));
}

/// Run with `cargo test --release -p mesh-core --lib explained_within -- --ignored`.
#[test]
#[ignore = "a measurement, which means nothing in a debug build"]
fn one_request_among_ten_thousand_routes_is_explained_within_50_ms() {
    let routes = (0..10_000).map(|at| {
        let mut matches = RouteMatch::any();
        matches.headers.push(HeaderTest::Value {
            name: "x-tenant".into(),
            test: text(&format!("tenant-{at}")),
            invert: false,
            missing_is_empty: false,
        });
        Route { matches, ..route_to("c") }
    });
    let table = table(vec![VirtualHost::new(["*"], routes.collect())]);
    let parts = request("http://h/none", &[("x-tenant", "tenant-9999")]);
    let started = Instant::now();
    let explained = table.explain(&RequestHead::of(&parts).unwrap(), &mut fastrand::Rng::with_seed(1));
    let (text, json) = (explained.to_string(), serde_json::to_string_pretty(&explained).unwrap());
    let took = started.elapsed();
    println!("{took:?} for {} routes, {} and {} bytes", explained.passed_over.len(), text.len(), json.len());
    assert!(took <= Duration::from_millis(50), "{took:?}");
}
