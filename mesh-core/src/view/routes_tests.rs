//! A table that shares with the one before it is the table that is compiled from nothing, over random changes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::fixed::route_to;
use crate::list::Run;
use crate::model::{
    CookieKey, FaultDelay, Fraction, HashKey, HashPolicy, HeaderText, LocalRateLimit, Mirror, MirrorHost, PathTest,
    Rbac, RbacAction, RbacRules, RouteSource, TokenBucket,
};
use crate::request_info::RequestInfo;

fn http(config: &Arc<RouteConfiguration>, filters: &[NamedFilter]) -> HttpManager {
    let mut http = HttpManager::new(RouteSource::Inline(Arc::clone(config)));
    http.filters = filters.to_vec();
    http
}

fn compile(
    before: Option<&RouteTable>,
    config: &RouteConfiguration,
    filters: &[NamedFilter],
    states: &States,
) -> RouteTable {
    let config = Arc::new(config.clone());
    let http = http(&config, filters);
    RouteTable::compile_after(before, config, &http, &FilterRegistry::default(), states, "l").expect("routes")
}

/// All that a table says of each request, in words.
fn said(table: &RouteTable) -> Vec<String> {
    let cluster = |place: usize| table.clusters().get(place).map(ClusterName::as_str);
    let refusals = |access: &[Arc<Authorizer>]| access.iter().map(|one| one.may_refuse()).collect::<Vec<_>>();
    let mut said = Vec::new();
    for (host, compiled) in table.hosts.iter().enumerate() {
        for (route, compiled) in compiled.routes.iter().enumerate() {
            for to in &compiled.destinations {
                let (request, response) = (to.request_changes(), to.response_changes());
                let (filters, access) = (to.filters(), to.access.as_ref().map(|access| refusals(access)));
                let cluster = to.cluster().map(cluster);
                said.push(format!(
                    "{host}.{route} {cluster:?} {} of {} {request:?} {response:?} {filters:?} {access:?}",
                    to.weight, compiled.total_weight
                ));
            }
        }
    }
    let (routed, mirrors) = table.clusters().split_at(table.places);
    for (from, clusters) in [(0, routed), (routed.len(), mirrors)] {
        let mut clusters: Vec<_> =
            (from..).zip(clusters).filter(|(place, _)| !table.is_free(*place)).map(|(_, name)| name).collect();
        clusters.sort();
        said.push(format!("{clusters:?}"));
    }
    assert!((0..table.clusters().len()).all(|place| table.is_mirror(place) == (place >= routed.len())));
    let routes: usize = table.hosts.iter().map(|host| host.routes.len()).sum();
    assert!(
        table.free.len() <= routes / ROUTES_OF_A_FREE_PLACE && table.routed.len() == table.places - table.free.len()
    );
    let flags = (table.needs_verdict, table.is_guarded, table.catches_all, table.is_processed);
    said.push(format!("{flags:?} {:?}", refusals(&table.access)));
    for domain in ["a", "b", "c"] {
        said.push(format!("{:?}", table.domains.find(domain)));
    }
    for (compiled, config) in table.hosts.iter().zip(&table.config.virtual_hosts) {
        for path in 0..6 {
            let request = http::Request::get(format!("http://a/{path}")).body(()).expect("a request");
            let head = RequestHead::of_parts(request.method(), request.uri(), request.headers());
            let found = compiled.index.find(&head, &mut fastrand::Rng::with_seed(1));
            assert_eq!(
                found.is_some(),
                config.routes.iter().any(|route| crate::matcher::path_matches(&route.matches.path, &head))
            );
            said.push(format!("{path} {found:?}"));
        }
    }
    said
}

fn fault(milliseconds: u64) -> FilterConfig {
    let delay = FaultDelay::new(Duration::from_millis(milliseconds), Fraction::ALL);
    FilterConfig::Fault(Arc::new(Fault { delay: Some(delay), ..Fault::default() }))
}

fn guard(refuses: bool) -> FilterConfig {
    let rules = refuses.then(|| RbacRules::new(RbacAction::Allow));
    FilterConfig::Rbac(Arc::new(Rbac { rules, ..Rbac::default() }))
}

fn mutations(value: u8) -> HeaderMutations {
    let text = HeaderText::from(HeaderValue::from(u16::from(value)));
    HeaderMutations { request: vec![HeaderChange::Set(http::HeaderName::from_static("x"), text)], response: Vec::new() }
}

/// What a level of the configuration says of the listener's filters.
fn any_filters() -> impl Strategy<Value = BTreeMap<Arc<str>, FilterConfig>> {
    let fault = prop_oneof![(1..3_u64).prop_map(fault), Just(FilterConfig::Disabled)];
    let guard = any::<bool>().prop_map(guard);
    (proptest::option::weighted(0.1, fault), proptest::option::weighted(0.1, guard)).prop_map(|(fault, guard)| {
        let fault = fault.map(|config| ("fault".into(), config));
        let guard = guard.map(|config| ("guard".into(), config));
        fault.into_iter().chain(guard).collect::<BTreeMap<Arc<str>, FilterConfig>>()
    })
}

fn any_route() -> impl Strategy<Value = Arc<Route>> {
    let name = prop_oneof![Just(""), Just("r"), Just("s")];
    let clusters = proptest::collection::vec((0..4_u8, any_filters()), 1..3);
    let mirror = proptest::option::weighted(0.1, 2..6_u8);
    (name, 0..6_u8, clusters, proptest::option::weighted(0.2, 0..3_u8), any_filters(), mirror).prop_map(
        |(name, path, clusters, changed, filters, mirror)| {
            let mut clusters: Vec<_> = clusters
                .into_iter()
                .map(|(cluster, filters)| WeightedCluster { filters, ..WeightedCluster::new(format!("c{cluster}"), 1) })
                .collect();
            let clusters = match clusters.len() {
                1 => Clusters::One(clusters.remove(0).name),
                _ => Clusters::Weighted(clusters),
            };
            let mut forward = Forward::among(clusters);
            forward.mirrors.extend(mirror.map(|cluster| Mirror {
                cluster: format!("c{cluster}").into(),
                fraction: Fraction::ALL,
                host: MirrorHost::Same,
            }));
            let matches = RouteMatch::path(PathTest::Prefix { value: format!("/{path}"), ignore_case: false });
            let route = Route::new(matches, RouteAction::Forward(forward));
            let mutations = changed.map(mutations).unwrap_or_default();
            Arc::new(Route { name: name.into(), mutations, filters, ..route })
        },
    )
}

/// One thing that is different in the next configuration; places are taken modulo what there is.
#[derive(Clone, Debug)]
enum Edit {
    Routes { host: Index, at: Index, removed: usize, added: Vec<Arc<Route>> },
    SameAgain { host: Index },
    Host { host: Index, changed: u8, filters: BTreeMap<Arc<str>, FilterConfig> },
    Rename { host: Index, name: &'static str },
    Domain { host: Index, domain: &'static str },
    Swap(Index, Index),
    Drop(Index),
    Copy(Index),
    All { changed: u8, most_specific_win: bool },
    Listener(Vec<NamedFilter>),
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let host = any::<Index>;
    let word = || prop_oneof![Just("a"), Just("b"), Just("*")];
    let routes = (host(), host(), 0..40_usize, proptest::collection::vec(any_route(), 0..4));
    let listener =
        (proptest::option::of(1..3_u64), proptest::option::of(any::<bool>())).prop_map(|(delay, refuses)| {
            let fault = delay.map(|delay| NamedFilter::new("fault", fault(delay)));
            fault
                .into_iter()
                .chain(refuses.map(|refuses| NamedFilter::new("guard", guard(refuses))))
                .collect::<Vec<_>>()
        });
    prop_oneof![
        6 => routes.prop_map(|(host, at, removed, added)| Edit::Routes { host, at, removed: removed.saturating_sub(30), added }),
        1 => host().prop_map(|host| Edit::SameAgain { host }),
        1 => (host(), 0..3_u8, any_filters()).prop_map(|(host, changed, filters)| Edit::Host { host, changed, filters }),
        1 => (host(), word()).prop_map(|(host, name)| Edit::Rename { host, name }),
        1 => (host(), word()).prop_map(|(host, domain)| Edit::Domain { host, domain }),
        1 => (host(), host()).prop_map(|(one, other)| Edit::Swap(one, other)),
        1 => host().prop_map(Edit::Drop),
        1 => host().prop_map(Edit::Copy),
        1 => (0..3_u8, any::<bool>()).prop_map(|(changed, win)| Edit::All { changed, most_specific_win: win }),
        1 => listener.prop_map(Edit::Listener),
    ]
}

fn make(edit: Edit, config: &mut RouteConfiguration, filters: &mut Vec<NamedFilter>) {
    let hosts = &mut config.virtual_hosts;
    let place = |index: &Index| index.index(hosts.len());
    match edit {
        Edit::Routes { host, at, removed, added } => {
            let host = place(&host);
            let host = &mut hosts[host];
            let (count, at) = (host.routes.len(), at.index(host.routes.len() + 1));
            let behind = (at + removed).min(count);
            host.routes = host.routes.changed(vec![Run::Kept(0..at), Run::New(added), Run::Kept(behind..count)]);
        }
        Edit::SameAgain { host } => {
            let host = place(&host);
            hosts[host].routes = hosts[host].routes.iter().map(|route| Arc::new(Route::clone(route))).collect();
        }
        Edit::Host { host, changed, filters } => {
            let host = place(&host);
            (hosts[host].mutations, hosts[host].filters) = (mutations(changed), filters);
        }
        Edit::Rename { host, name } => {
            let host = place(&host);
            hosts[host].name = name.into();
        }
        Edit::Domain { host, domain } => {
            let host = place(&host);
            hosts[host].domains.push(domain.to_owned());
        }
        Edit::Swap(one, other) => {
            let (one, other) = (place(&one), place(&other));
            hosts.swap(one, other);
        }
        Edit::Drop(host) if hosts.len() > 1 => {
            let host = place(&host);
            hosts.remove(host);
        }
        Edit::Drop(_) => {}
        Edit::Copy(host) => {
            let copy = hosts[place(&host)].clone();
            hosts.push(copy);
        }
        Edit::All { changed, most_specific_win } => {
            config.mutations = mutations(changed);
            config.most_specific_mutations_win = most_specific_win;
        }
        Edit::Listener(others) => *filters = others,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_shared_is_what_would_be_compiled_from_nothing(
        routes in proptest::collection::vec(any_route(), 0..150),
        edits in proptest::collection::vec(proptest::collection::vec(any_edit(), 1..4), 1..6),
    ) {
        let mut host = VirtualHost::new(["a"], Vec::new());
        host.routes = routes.into();
        let (mut config, mut filters) = (RouteConfiguration::new(vec![host]), vec![NamedFilter::new("fault", fault(9))]);
        let states = States::default();
        let mut table = compile(None, &config, &filters, &states);
        for edits in edits {
            edits.into_iter().for_each(|edit| make(edit, &mut config, &mut filters));
            table = compile(Some(&table), &config, &filters, &states);
            let from_nothing = compile(None, &config, &filters, &States::default());
            prop_assert_eq!(said(&table), said(&from_nothing));
        }
    }
}

fn thousands() -> List<Arc<Route>> {
    let route = |number| {
        let path = PathTest::Exact { value: format!("/{number}"), ignore_case: false };
        Arc::new(Route { matches: RouteMatch::path(path), ..route_to("c") })
    };
    (0..10_000).map(route).collect()
}

fn configured(routes: &List<Arc<Route>>) -> RouteConfiguration {
    let mut host = VirtualHost::new(["*"], Vec::new());
    host.routes = routes.clone();
    RouteConfiguration::new(vec![host])
}

#[test]
fn one_changed_route_of_thousands_leaves_all_parts_but_one_as_they_are() {
    let (states, routes) = (States::default(), thousands());
    let before = compile(None, &configured(&routes), &[], &states);
    let shared = |table: &RouteTable| table.hosts[0].routes.shared_with(&before.hosts[0].routes).flatten().count();
    let parts = routes.parts().len();
    // Another action for the same requests: they are found by the same index.
    let other = Arc::new(Route { mutations: mutations(1), ..Route::clone(&routes[5_000]) });
    let changed = compile(
        Some(&before),
        &configured(&routes.replaced(|at, _| (at == 5_000).then(|| Arc::clone(&other)))),
        &[],
        &states,
    );
    assert_eq!(shared(&changed), parts - 1);
    assert!(Arc::ptr_eq(&changed.hosts[0].index, &before.hosts[0].index));
    assert!(Arc::ptr_eq(&changed.domains, &before.domains));
    // A new one is before the others, which keep what they were compiled to.
    let runs = vec![Run::New(vec![Arc::new(route_to("d"))]), Run::Kept(0..10_000)];
    let longer = compile(Some(&before), &configured(&routes.changed(runs)), &[], &states);
    assert!(shared(&longer) >= parts - 1, "{} of {parts}", shared(&longer));
    assert!(!Arc::ptr_eq(&longer.hosts[0].index, &before.hosts[0].index));
    // Its cluster has the next place, which is free once the route is gone: nothing else is compiled anew for that.
    assert_eq!(longer.clusters(), [ClusterName::from("c"), ClusterName::from("d")]);
    let shorter = compile(Some(&longer), &configured(&routes), &[], &states);
    assert!(shared(&shorter) >= parts - 1, "{} of {parts}", shared(&shorter));
    assert_eq!([0, 1, 2].map(|place| shorter.is_free(place)), [false, true, false]);
    // The next new one has it, and one that gets copies only has a place behind those.
    let mut other = route_to("e");
    if let RouteAction::Forward(forward) = &mut other.action {
        forward.mirrors.push(Mirror::to("d"));
    }
    let again = routes.changed(vec![Run::New(vec![Arc::new(other)]), Run::Kept(0..10_000)]);
    let again = compile(Some(&shorter), &configured(&again), &[], &states);
    assert_eq!(again.clusters(), ["c", "e", "d"].map(ClusterName::from));
    assert_eq!([0, 1, 2].map(|place| again.is_free(place) || again.is_mirror(place)), [false, false, true]);
    // Of few routes a table is made from nothing.
    let few = |clusters: &[&str]| {
        RouteConfiguration::new(vec![VirtualHost::new(["*"], clusters.iter().map(|to| route_to(to)).collect())])
    };
    let before = compile(None, &few(&["a", "b"]), &[], &states);
    assert_eq!(compile(Some(&before), &few(&["b"]), &[], &states).clusters(), [ClusterName::from("b")]);
}

#[test]
fn a_filter_that_keeps_its_state_by_the_position_of_a_route_has_that_of_its_position() {
    let bucket = TokenBucket::new(1, 1, Duration::from_secs(3600)).expect("a bucket");
    let limit = FilterConfig::LocalRateLimit(Arc::new(LocalRateLimit::new("limit", Some(bucket))));
    let route = |name: &str| {
        let filters = [("limit".into(), limit.clone())].into();
        Arc::new(Route { name: name.into(), filters, ..route_to("c") })
    };
    for (name, passes) in [("", true), ("named", false)] {
        let filters =
            [NamedFilter::new("limit", FilterConfig::LocalRateLimit(Arc::new(LocalRateLimit::new("l", None))))];
        let (states, routes) = (States::default(), (0..64).map(|_| route(name)).collect::<List<_>>());
        let ask = |table: &RouteTable, position: usize| {
            let mut head = http::Request::new(()).into_parts().0;
            let mut info = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
            let filter = &table.destinations(RoutePosition::of_route(0, position))[0].filters()[0];
            matches!(filter.on_request(&mut info, &mut head), crate::filter::Decision::Continue)
        };
        let before = compile(None, &configured(&routes), &filters, &states);
        assert!(ask(&before, 10) && !ask(&before, 10));
        let runs = vec![Run::New((0..32).map(|_| route(name)).collect()), Run::Kept(0..64)];
        let after = compile(Some(&before), &configured(&routes.changed(runs)), &filters, &states);
        // Behind 32 others it is the 42nd, of which nobody has taken anything yet.
        assert_eq!(ask(&after, 42), passes, "{name:?}");
        assert!(!ask(&after, 10), "{name:?}");
    }
}

#[test]
fn who_is_given_a_cookie_is_where_it_leads_from_the_first_request_on() {
    let cookie = CookieKey::new("c").unwrap().made(Duration::ZERO, "", []).unwrap();
    let clusters = vec![WeightedCluster::new("v1", 1), WeightedCluster::new("v2", 3)];
    let mut forward = Forward::among(Clusters::Weighted(clusters));
    forward.split_by = SplitBy::HashPolicies;
    forward.hash_policies = vec![HashPolicy::by(HashKey::Cookie(cookie))];
    let policies = forward.hash_policies.clone();
    let route = Route { action: RouteAction::Forward(forward), ..route_to("") };
    let config = RouteConfiguration::new(vec![VirtualHost::new(["*"], vec![route])]);
    let table = compile(None, &config, &[], &States::default());
    let request =
        |cookie: &str| http::Request::get("http://h/").header("cookie", cookie).body(()).unwrap().into_parts().0;
    let (first, mut random, mut taken) = (request("a=b"), fastrand::Rng::with_seed(1), BTreeMap::new());
    for _ in 0..200 {
        let head = RequestHead::of(&first).unwrap();
        let (position, ..) = table.find(&head, &mut random).unwrap();
        let caller = crate::hashing::Caller::default();
        let hashed = crate::hashing::hash(&policies, &head, &caller, position.made().unwrap());
        let pair = hashed.set_cookies[0].to_str().unwrap().split(';').next().unwrap();
        let again = request(pair);
        let (next, ..) = table.find(&RequestHead::of(&again).unwrap(), &mut random).unwrap();
        assert_eq!((next.destination, next.made()), (position.destination, None), "{pair}");
        *taken.entry(position.destination).or_insert(0) += 1;
    }
    assert!(taken.len() == 2 && taken[&0] < taken[&1], "by chance, as the weights are: {taken:?}");
}
