//! Views of any size, compiled from configuration made in code, and requests that find their way by them.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use http::Request;
use http::request::Parts;
use mesh_core::error::Invalid;
use mesh_core::filter::{FilterRegistry, LocalLimit, LocalRateLimitFilter};
use mesh_core::fixed::route_to;
use mesh_core::id::{ListenerName, Target};
use mesh_core::list::List;
use mesh_core::model::{
    ApiListener, BalancerPolicy, Cluster, ClusterKind, DescriptorAction, Endpoints, FilterConfig, HeaderTest,
    HttpManager, Listener, LocalRateLimit, LocalRule, NamedFilter, PathTest, PeerTest, RateLimit, Rbac, RbacAction,
    RbacCondition, RbacPolicy, RbacRules, Route, RouteConfiguration, RouteSource, StringTest, TokenBucket, VirtualHost,
};
use mesh_core::request::RequestHead;
use mesh_core::resources::{Change, Progress, Resource, ResourceKey, ResourceType, Update};
use mesh_core::state::States;
use mesh_core::store::{Sink, Source, Store};
use mesh_core::view::{ClusterView, Extensions, Leaf, RouteTable, TargetView};

use crate::Result;
use crate::clients::HOST;

/// What the routes of a view look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routes {
    /// Whole paths.
    Exact,
    /// Starts of paths.
    Prefix,
    /// By turns: a prefix with a header, the same prefix without, a whole path, a path and what is below it.
    Mixed,
}

impl Routes {
    fn path(self, position: usize) -> PathTest {
        let value = format!("/api/v1/service-{:05}", self.service(position));
        match (self, position % 4) {
            (Routes::Exact, _) | (Routes::Mixed, 2) => {
                PathTest::Exact { value: format!("{value}/items"), ignore_case: false }
            }
            (Routes::Mixed, 3) => PathTest::Separated { value, ignore_case: false },
            _ => PathTest::Prefix { value: format!("{value}/"), ignore_case: false },
        }
    }

    /// Two routes of a mixed view share a path: the first wants a header.
    fn service(self, position: usize) -> usize {
        if self == Routes::Mixed && position % 4 == 1 { position - 1 } else { position }
    }

    fn wants_header(self, position: usize) -> bool {
        self == Routes::Mixed && position.is_multiple_of(4)
    }

    /// The route at a position.
    pub fn route(self, position: usize) -> Route {
        let mut route = route_to("all");
        route.name = position.to_string().into();
        route.matches.path = self.path(position);
        if self.wants_header(position) {
            route.matches.headers.push(HeaderTest::Value {
                name: "end-user".into(),
                test: StringTest::Exact { value: "jason".into(), ignore_case: false },
                invert: false,
                missing_is_empty: false,
            });
        }
        route
    }

    /// A request that finds the route at this position.
    pub fn request(self, position: usize) -> Result<Parts> {
        let path = format!("/api/v1/service-{:05}/items", self.service(position));
        let mut request = Request::get(format!("http://{HOST}{path}")).header("accept", "application/json");
        if self.wants_header(position) {
            request = request.header("end-user", "jason");
        }
        Ok(request.body(())?.into_parts().0)
    }

    /// A view of this many routes, all of them to one cluster of three endpoints.
    pub fn view(self, count: usize) -> Result<TargetView> {
        let routes = (0..count).map(|position| self.route(position)).collect();
        let config = Arc::new(configuration(routes));
        let http = manager(&config);
        let table = RouteTable::compile(config, &http, &FilterRegistry::default(), &States::default(), HOST);
        let table = Arc::new(table.map_err(|invalid| anyhow::anyhow!("{invalid}"))?);
        let cluster = Arc::new(cluster(BalancerPolicy::default(), 3));
        Ok(TargetView::new(HOST.into(), &http, table, vec![cluster]))
    }
}

/// A server's routes, guarded by this many policies: ALLOW, each for one account, for the paths below one prefix and for one
/// method. `by_account` says whether the account is written whole, by which it is found, or as a pattern, which is tried.
pub fn guarded(policies: usize, by_account: bool) -> Result<RouteTable> {
    let text = |value: String| match by_account {
        true => StringTest::Exact { value, ignore_case: false },
        false => StringTest::Suffix { value, ignore_case: false },
    };
    let mut rules = RbacRules::new(RbacAction::Allow);
    for number in 0..policies {
        let account = match by_account {
            true => PeerTest::Id(text(account(number))),
            false => PeerTest::ServiceAccount(text(format!("-{number:03}"))),
        };
        let method = HeaderTest::Value {
            name: ":method".into(),
            test: StringTest::Exact { value: "GET".into(), ignore_case: false },
            invert: false,
            missing_is_empty: false,
        };
        let path = StringTest::Prefix { value: "/api/v1/".into(), ignore_case: false };
        let what = RbacCondition::All(vec![RbacCondition::Header(method), RbacCondition::Path(path)]);
        let policy = RbacPolicy::new([what], [RbacCondition::Peer(account)]);
        rules.policies.insert(format!("AuthorizationPolicy/shop/p-{number:03}#0").into(), policy);
    }
    let mut rbac = Rbac::default();
    rbac.rules = Some(rules);
    let config = Arc::new(configuration(vec![Routes::Prefix.route(0)]));
    let mut http = manager(&config);
    http.filters.push(NamedFilter::new("rbac", FilterConfig::Rbac(Arc::new(rbac))));
    let table = RouteTable::compile(config, &http, &FilterRegistry::default(), &States::default(), HOST);
    table.map_err(|invalid| anyhow::anyhow!("{invalid}"))
}

/// The account that the policy of this number is for.
pub fn account(number: usize) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/web-{number:03}")
}

fn configuration(routes: Vec<Route>) -> RouteConfiguration {
    RouteConfiguration::new(vec![VirtualHost::new(["*"], routes)])
}

fn manager(routes: &Arc<RouteConfiguration>) -> HttpManager {
    HttpManager::new(RouteSource::Inline(Arc::clone(routes)))
}

/// A cluster of this many endpoints, compiled.
pub fn cluster(policy: BalancerPolicy, count: usize) -> ClusterView {
    let endpoints = Arc::new(endpoints(0, count));
    let mut cluster = Cluster::new("all", ClusterKind::Eds { service_name: "all".into() });
    cluster.balancer = policy;
    let leaf = Leaf::new(Arc::new(cluster), Some(endpoints), Arc::default());
    ClusterView::compile("all".into(), vec![leaf], &Extensions::default(), None)
}

/// So many endpoints, those of one `group` unlike those of any other.
pub fn endpoints(group: usize, count: usize) -> Endpoints {
    let address = |one: usize| {
        let number = (group * 256 + one) as u32;
        SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + number), 8080))
    };
    Endpoints::fixed((0..count).map(address))
}

/// Random choices that repeat.
pub fn random() -> fastrand::Rng {
    fastrand::Rng::with_seed(7)
}

/// The name of the route that a request finds.
pub fn find_name(view: &TargetView, parts: &Parts) -> Result<String> {
    Ok(view.find(&RequestHead::of(parts)?, &mut random())?.route.name.to_string())
}

/// A source of configuration that is played by hand: a target with one route and one cluster for each of its
/// services.
pub struct Played {
    /// The application's side.
    pub store: Store,
    /// The source's side.
    pub sink: Sink,
    listener: Arc<Listener>,
    clusters: Vec<Arc<Cluster>>,
}

/// The one target of a [`Played`] source.
pub const TARGET: &str = "all:80";

impl Played {
    /// A store whose target has this many clusters, none of which has endpoints yet; and what is still wanted:
    /// the endpoints.
    pub fn new(clusters: usize) -> Result<(Self, Progress)> {
        let (store, sink) = Store::new(Arc::new(Named), Extensions::default(), std::time::Duration::from_secs(3600));
        let name = |number: usize| format!("cluster-{number:04}");
        let routes = (0..clusters).map(|number| {
            let mut route = route_to(&name(number));
            route.matches = Routes::Prefix.route(number).matches;
            route
        });
        let config = Arc::new(configuration(routes.collect()));
        let listener = Listener::Api(ApiListener::new(TARGET, manager(&config)));
        let cluster = |number| {
            let kind = ClusterKind::Eds { service_name: name(number).into() };
            Arc::new(Cluster::new(name(number), kind))
        };
        let clusters = (0..clusters).map(cluster).collect();
        let mut played = Played { store, sink, listener: Arc::new(listener), clusters };
        played.store.target(TARGET)?;
        let mut progress = futures_util::FutureExt::now_or_never(played.sink.changed()).flatten();
        loop {
            let wanted = progress.context("nothing is wanted")?;
            if wanted.subscribe.iter().all(|key| key.kind == ResourceType::Endpoints) {
                return Ok((played, wanted));
            }
            progress = Some(played.answer(wanted));
        }
    }

    fn answer(&mut self, wanted: Progress) -> Progress {
        let changes = wanted.subscribe.into_iter().filter_map(|key| {
            let resource = match key.kind {
                ResourceType::Listener => Resource::Listener(Arc::clone(&self.listener)),
                ResourceType::Cluster => {
                    let cluster = self.clusters.iter().find(|cluster| cluster.name.as_str() == &*key.name)?;
                    Resource::Cluster(Arc::clone(cluster))
                }
                _ => return None,
            };
            Some(Change::Put(key, resource))
        });
        let changes = changes.collect();
        self.sink.apply(Update { changes })
    }

    /// The endpoints of a cluster, as an update.
    pub fn assign(key: ResourceKey, endpoints: Endpoints) -> Change {
        Change::Put(key, Resource::Endpoints(Arc::new(endpoints)))
    }

    /// Other routes for its target, as an update.
    pub fn routed(routes: &List<Arc<Route>>) -> Change {
        let mut host = VirtualHost::new(["*"], Vec::new());
        host.routes = routes.clone();
        let config = Arc::new(RouteConfiguration::new(vec![host]));
        let listener = Listener::Api(ApiListener::new(TARGET, manager(&config)));
        Change::Put(ResourceKey::new(ResourceType::Listener, TARGET), Resource::Listener(Arc::new(listener)))
    }

    /// The view that the application sees now.
    pub fn view(&self) -> Option<Arc<TargetView>> {
        self.store.find(TARGET)?.peek()
    }
}

struct Named;

impl Source for Named {
    fn listener_name(&self, target: &Target) -> Result<ListenerName, Invalid> {
        Ok(target.as_str().into())
    }

    fn server_listener_name(&self, address: SocketAddr) -> Result<ListenerName, Invalid> {
        Ok(address.to_string().into())
    }

    /// Whoever holds the sink is the source.
    fn run(self: Arc<Self>, _: Sink) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::ready(()))
    }
}

/// A limit with so many rules, of which three are for each request of [`limited_request`]: its tenant's, one for its user, whom
/// nobody named, and one for its method.
pub fn limited(rules: usize) -> Result<LocalRateLimitFilter> {
    let by = |key: &str, name: &str| {
        let action = DescriptorAction::Header { key: key.into(), name: name.into(), skip_if_absent: false };
        Arc::new(RateLimit::by(vec![action]))
    };
    let bucket = TokenBucket::new(u32::MAX, 1_000_000_000, Duration::from_secs(1))?;
    let rule =
        |key: &str, value: &str| LocalRule::new(format!("{key}={value}"), vec![(key.into(), value.into())], bucket);
    let mut config = LocalRateLimit::new("limit", None);
    config.most_keys = 10_000;
    config.rate_limits = vec![by("tenant", "x-tenant"), by("user", "x-user"), by("method", ":method")];
    config.rules = vec![rule("user", ""), rule("method", "GET")];
    config.rules.extend((2..rules).map(|number| rule("tenant", &format!("tenant-{number}"))));
    let (states, name) = (States::default(), Arc::from("limit"));
    let limit = LocalLimit::new(&Arc::new(config), &states.filter("listener", &name), Instant::now());
    Ok(limit.filter((&[], false), &[])?)
}

/// A request of one of the tenants, by a user of this number.
pub fn limited_request(tenant: usize, user: usize) -> Result<Parts> {
    let request = http::Request::get("http://shop/cart")
        .header("accept", "*/*")
        .header("x-tenant", format!("tenant-{tenant}"))
        .header("x-user", format!("user-{user}"));
    Ok(request.body(())?.into_parts().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_finds_the_route_that_it_is_for() {
        for kind in [Routes::Exact, Routes::Prefix, Routes::Mixed] {
            let view = kind.view(100).unwrap();
            for position in 0..100 {
                let found = find_name(&view, &kind.request(position).unwrap()).unwrap();
                assert_eq!(found, position.to_string(), "{kind:?}");
            }
        }
    }

    #[test]
    fn a_played_target_has_a_view_once_its_endpoints_are_there() {
        let (mut played, wanted) = Played::new(3).unwrap();
        assert_eq!(wanted.subscribe.len(), 3);
        assert!(played.view().is_none());
        let changes = wanted.subscribe.into_iter().map(|key| Played::assign(key, endpoints(0, 2))).collect();
        played.sink.apply(Update { changes });
        assert_eq!(played.view().unwrap().clusters().len(), 3);
    }
}
