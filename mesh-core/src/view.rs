//! One target's configuration, compiled: what a request finds its way by.
//!
//! A view is made as a whole and never changes (gRFC A74). What an update did not touch is shared with the view
//! before it: the compiled routes, and every cluster whose cluster and endpoints are the same.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use smallvec::{SmallVec, smallvec};

use crate::balance::{Levels, LoadBalancer, built_in};
use crate::call::Call;
use crate::error::{ErrorKind, Invalid, MeshError};
use crate::filter::{Filter, FilterRegistry};
use crate::id::{Address, ClusterName, EndpointId, Target};
use crate::matcher::{DomainIndex, RouteIndex};
use crate::model::{
    BalancerPolicy, Cluster, ClusterKind, Clusters, Endpoints, FilterConfig, Forward, HeaderChange, HeaderMutations,
    HttpManager, NamedFilter, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};
use crate::request::RequestHead;
use crate::state::{ClusterState, InFlight};

/// What the application adds to the built-in parts, by name.
#[derive(Clone, Debug, Default)]
pub struct Extensions {
    /// HTTP filters.
    pub filters: FilterRegistry,
    /// Balancing policies.
    pub balancers: HashMap<Arc<str>, Arc<dyn LoadBalancer>>,
}

/// The routes of a listener, compiled.
pub struct RouteTable {
    config: Arc<RouteConfiguration>,
    filters: Vec<NamedFilter>,
    domains: DomainIndex,
    hosts: Vec<Host>,
    clusters: Vec<ClusterName>,
    /// Whether the first route of the only host is for every path: most servers have no more than that.
    catches_all: bool,
}

struct Host {
    index: RouteIndex,
    routes: Vec<CompiledRoute>,
}

struct CompiledRoute {
    /// One, or several by weight; the only one in place, since a large table is as fast as it is near.
    destinations: SmallVec<[Destination; 1]>,
    total_weight: u64,
}

/// One way that a route can send a request. Small, so that what is asked of a route is in one cache line.
pub struct Destination {
    /// Position in the table's and the view's clusters; `None` where the route goes to no cluster.
    cluster: Option<u32>,
    weight: u32,
    filters: Box<[Arc<dyn Filter>]>,
    /// Mostly none.
    changes: Option<Box<Changes>>,
}

/// Header changes, in order.
struct Changes {
    request: Vec<HeaderChange>,
    response: Vec<HeaderChange>,
}

impl Destination {
    /// The filters to pass, in order.
    pub fn filters(&self) -> &[Arc<dyn Filter>] {
        &self.filters
    }

    /// Header changes of the request, in order.
    pub fn request_changes(&self) -> &[HeaderChange] {
        self.changes.as_ref().map_or(&[], |changes| &changes.request)
    }

    /// Header changes of the response, in order.
    pub fn response_changes(&self) -> &[HeaderChange] {
        self.changes.as_ref().map_or(&[], |changes| &changes.response)
    }
}

impl RouteTable {
    /// Compiles a route configuration under a listener's filters.
    pub fn compile(
        config: Arc<RouteConfiguration>,
        http: &HttpManager,
        registry: &FilterRegistry,
    ) -> Result<RouteTable, Invalid> {
        let mut table = RouteTable {
            domains: DomainIndex::new(&config.virtual_hosts),
            hosts: Vec::with_capacity(config.virtual_hosts.len()),
            clusters: Vec::new(),
            filters: http.filters.clone(),
            catches_all: catches_all(&config),
            config: Arc::clone(&config),
        };
        let mut known = HashMap::new();
        for (position, host) in config.virtual_hosts.iter().enumerate() {
            let compiled = table.compile_host(host, &mut known, registry);
            table.hosts.push(compiled.map_err(|invalid| invalid.at(format!("virtual_hosts[{position}]")))?);
        }
        Ok(table)
    }

    fn compile_host(
        &mut self,
        host: &VirtualHost,
        known: &mut HashMap<ClusterName, u32>,
        registry: &FilterRegistry,
    ) -> Result<Host, Invalid> {
        let index = RouteIndex::new(host.routes.iter().map(|route| &route.matches))?;
        let mut routes = Vec::with_capacity(host.routes.len());
        for (position, route) in host.routes.iter().enumerate() {
            let compiled = self.compile_route(host, route, known, registry);
            routes.push(compiled.map_err(|invalid| invalid.at(format!("routes[{position}]")))?);
        }
        Ok(Host { index, routes })
    }

    fn compile_route(
        &mut self,
        host: &VirtualHost,
        route: &Route,
        known: &mut HashMap<ClusterName, u32>,
        registry: &FilterRegistry,
    ) -> Result<CompiledRoute, Invalid> {
        let none = (HeaderMutations::default(), BTreeMap::new());
        let mut destination = |name: Option<&ClusterName>, weight, (mutations, overrides): (&HeaderMutations, _)| {
            let cluster = name.map(|name| {
                *known.entry(name.clone()).or_insert_with(|| {
                    self.clusters.push(name.clone());
                    (self.clusters.len() - 1) as u32
                })
            });
            // Weighted cluster, route, virtual host, route configuration: the order in which Envoy applies them.
            let mut levels = [mutations, &route.mutations, &host.mutations, &self.config.mutations];
            if self.config.most_specific_mutations_win {
                levels.reverse();
            }
            let request: Vec<_> = levels.iter().flat_map(|level| level.request.clone()).collect();
            let response: Vec<_> = levels.iter().flat_map(|level| level.response.clone()).collect();
            let changes = !(request.is_empty() && response.is_empty());
            let filters = effective_filters(&self.filters, [overrides, &route.filters, &host.filters], registry)?;
            Ok::<_, Invalid>(Destination {
                cluster,
                weight,
                filters: filters.into(),
                changes: changes.then(|| Box::new(Changes { request, response })),
            })
        };
        let destinations: SmallVec<[Destination; 1]> = match &route.action {
            RouteAction::Forward(Forward { clusters: Clusters::One(name), .. }) => {
                smallvec![destination(Some(name), 1, (&none.0, &none.1))?]
            }
            RouteAction::Forward(Forward { clusters: Clusters::Weighted(clusters), .. }) => clusters
                .iter()
                .map(|it| destination(Some(&it.name), it.weight, (&it.mutations, &it.filters)))
                .collect::<Result<_, _>>()?,
            _ => smallvec![destination(None, 1, (&none.0, &none.1))?],
        };
        let total_weight = destinations.iter().map(|destination| u64::from(destination.weight)).sum();
        Ok(CompiledRoute { destinations, total_weight })
    }

    /// Whether it was compiled from these very inputs.
    pub fn is_of(&self, config: &Arc<RouteConfiguration>, http: &HttpManager) -> bool {
        Arc::ptr_eq(&self.config, config) && self.filters == http.filters
    }

    /// The clusters that its routes name, each once.
    pub fn clusters(&self) -> &[ClusterName] {
        &self.clusters
    }

    /// The first route that a request matches, and of its destinations one by weight.
    #[inline]
    pub fn find(&self, head: &RequestHead<'_>, call: &mut Call) -> Result<(Place, &Route, &Destination), MeshError> {
        let no_route = |what: &str| {
            let name = self.config.name.as_ref().map_or("inline", |name| name.as_str());
            let at = format!("{} {}{}", head.method, head.authority, head.path());
            MeshError::new(ErrorKind::NoRoute, format!("route configuration {name}: {what} {at}"))
        };
        let (host, route) = if self.catches_all && head.path_and_query.starts_with('/') {
            (0, 0)
        } else {
            let host = self.domains.find(head.authority).ok_or_else(|| no_route("no virtual host for"))?;
            let compiled = self.hosts.get(host).ok_or_else(|| no_route("no virtual host for"))?;
            (host, compiled.index.find(head, &mut call.random).ok_or_else(|| no_route("no route for"))?)
        };
        let found = self.hosts.get(host).zip(self.config.virtual_hosts.get(host));
        let found = found.and_then(|(host, config)| host.routes.get(route).zip(config.routes.get(route)));
        let (compiled, config) = found.ok_or_else(|| no_route("no route for"))?;
        let chosen = compiled.choose(call).and_then(|chosen| Some((chosen, compiled.destinations.get(chosen)?)));
        let (chosen, destination) = chosen.ok_or_else(|| no_route("no destination for"))?;
        Ok((Place { host, route, destination: chosen }, config, destination))
    }

    /// What is at a place; `None` only where it is another table's.
    pub fn at(&self, place: Place) -> Option<(&Route, &Destination)> {
        let route = self.config.virtual_hosts.get(place.host)?.routes.get(place.route)?;
        let compiled = self.hosts.get(place.host)?.routes.get(place.route)?;
        Some((route, compiled.destinations.get(place.destination)?))
    }
}

/// Where in a table a request's route and destination are, for who comes back to them later in its walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    host: usize,
    route: usize,
    destination: usize,
}

fn catches_all(config: &RouteConfiguration) -> bool {
    let [host] = config.virtual_hosts.as_slice() else { return false };
    let every_path = host.routes.first().is_some_and(|route| route.matches == RouteMatch::any());
    every_path && host.domains.iter().any(|domain| domain == "*")
}

impl CompiledRoute {
    /// By weight, in the order listed (Envoy, `weighted_clusters`).
    fn choose(&self, call: &mut Call) -> Option<usize> {
        if self.destinations.len() == 1 {
            return Some(0);
        }
        let mut ticket = call.random.u64(0..self.total_weight.max(1));
        self.destinations.iter().position(|destination| {
            let weight = u64::from(destination.weight);
            let taken = ticket < weight;
            ticket = ticket.saturating_sub(weight);
            taken
        })
    }
}

impl fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RouteTable({:?}, {} clusters)", self.config.name, self.clusters.len())
    }
}

/// The listener's filters with the most specific override of each (gRFC A39).
fn effective_filters(
    filters: &[NamedFilter],
    overrides: [&BTreeMap<Arc<str>, FilterConfig>; 3],
    registry: &FilterRegistry,
) -> Result<Vec<Arc<dyn Filter>>, Invalid> {
    let mut effective = Vec::new();
    for filter in filters {
        let config = overrides.iter().find_map(|level| level.get(&filter.name)).unwrap_or(&filter.config);
        let built = registry.build(config).map_err(|invalid| invalid.at(format!("filter {:?}", filter.name)))?;
        effective.extend(built);
    }
    Ok(effective)
}

/// One cluster, compiled: ready to pick from.
#[derive(Debug)]
pub struct ClusterView {
    name: ClusterName,
    leaves: Vec<Leaf>,
    levels: Levels,
    /// Why it cannot be used at all.
    unusable: Option<Arc<str>>,
}

/// What a compiled cluster was made of. An aggregate has several leaves, any other cluster one.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// Its endpoints; `None` where the caller's own address is dialled.
    pub endpoints: Option<Arc<Endpoints>>,
    /// What outlives this view.
    pub state: Arc<ClusterState>,
}

/// A chosen endpoint. It counts as a request in flight until dropped.
#[derive(Debug)]
pub struct Pick<'v> {
    /// The cluster that the endpoint belongs to: for an aggregate, the leaf.
    pub cluster: &'v Arc<Cluster>,
    /// Which of [`ClusterView::leaves`] that is.
    pub leaf: usize,
    /// The endpoint, counted in.
    pub in_flight: InFlight,
}

impl ClusterView {
    /// Compiles a cluster from its leaves.
    pub fn compile(name: ClusterName, leaves: Vec<Leaf>, extensions: &Extensions) -> Self {
        let mut levels = Levels::default();
        let mut unusable = None;
        for (position, leaf) in leaves.iter().enumerate() {
            let balancer = match &leaf.cluster.balancer {
                BalancerPolicy::Custom(name) => extensions.balancers.get(name).cloned(),
                policy => built_in(policy),
            };
            match (balancer, &leaf.endpoints) {
                (Some(balancer), Some(endpoints)) => {
                    levels.add_leaf(position, endpoints, leaf.cluster.priorities, &balancer, &leaf.state);
                }
                (Some(_), None) => {}
                (None, _) => {
                    unusable = Some(format!("no balancer is registered for {:?}", leaf.cluster.balancer).into());
                }
            }
        }
        levels.settle();
        ClusterView { name, leaves, levels, unusable }
    }

    /// A cluster that cannot be used, and why.
    pub fn unusable(name: ClusterName, reason: Arc<str>) -> Self {
        ClusterView { name, leaves: Vec::new(), levels: Levels::default(), unusable: Some(reason) }
    }

    /// Its name.
    pub fn name(&self) -> &ClusterName {
        &self.name
    }

    /// What it was made of.
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// Whether it was compiled from these very inputs.
    pub fn is_of(&self, leaves: &[Leaf]) -> bool {
        let same_endpoints = |a: &Option<Arc<Endpoints>>, b: &Option<Arc<Endpoints>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        self.unusable.is_none()
            && self.leaves.len() == leaves.len()
            && self
                .leaves
                .iter()
                .zip(leaves)
                .all(|(a, b)| Arc::ptr_eq(&a.cluster, &b.cluster) && same_endpoints(&a.endpoints, &b.endpoints))
    }

    /// Whether requests go to the address that the caller asked for.
    pub fn passes_through(&self) -> bool {
        matches!(self.leaves.as_slice(), [Leaf { endpoints: None, .. }])
    }

    /// Chooses an endpoint. `authority` is what the caller asked for; only a pass-through cluster asks for it.
    #[inline]
    pub fn pick<'a>(&self, call: &mut Call, authority: impl FnOnce() -> &'a str) -> Result<Pick<'_>, MeshError> {
        if let Some((level, endpoint)) = self.levels.pick(call)
            && let Some(leaf) = self.leaves.get(level.leaf)
        {
            return Ok(Pick { cluster: &leaf.cluster, leaf: level.leaf, in_flight: endpoint.enter() });
        }
        self.pick_without_endpoints(authority())
    }

    #[cold]
    fn pick_without_endpoints(&self, authority: &str) -> Result<Pick<'_>, MeshError> {
        let error = |kind, what: &str| MeshError::new(kind, format!("cluster {}: {what}", self.name));
        if let Some(reason) = &self.unusable {
            return Err(error(ErrorKind::NoCluster, reason));
        }
        if let [Leaf { cluster, endpoints: None, state }] = self.leaves.as_slice() {
            let id = address_of(authority).map(EndpointId::new);
            let id =
                id.ok_or_else(|| error(ErrorKind::BadRequest, "the authority is no address to pass through to"))?;
            return Ok(Pick { cluster, leaf: 0, in_flight: state.visit(&id).enter() });
        }
        let known: usize = self.leaves.iter().filter_map(|leaf| leaf.endpoints.as_ref()).map(|all| all.len()).sum();
        Err(error(ErrorKind::NoHealthyEndpoint, &format!("no healthy endpoint ({known} known)")))
    }
}

/// The address that an authority with a port stands for.
fn address_of(authority: &str) -> Option<Address> {
    if let Ok(socket) = authority.parse() {
        return Some(Address::Socket(socket));
    }
    let (host, port) = authority.rsplit_once(':')?;
    Some(Address::Host(host.into(), port.parse().ok()?))
}

/// Everything that a request to one target needs, compiled.
#[derive(Debug)]
pub struct TargetView {
    target: Target,
    host: Option<HeaderValue>,
    content: Result<Content, MeshError>,
}

#[derive(Debug)]
struct Content {
    max_stream_duration: Option<Duration>,
    routes: Arc<RouteTable>,
    clusters: Vec<Arc<ClusterView>>,
}

/// Where a request goes.
#[derive(Clone, Copy)]
pub struct Routed<'v> {
    /// The route, as configured.
    pub route: &'v Route,
    /// The cluster; `None` where the route goes to none.
    pub cluster: Option<&'v Arc<ClusterView>>,
    /// The filters to pass, in order.
    pub filters: &'v [Arc<dyn Filter>],
    /// Header changes of the request, in order.
    pub request_changes: &'v [HeaderChange],
    /// Header changes of the response, in order.
    pub response_changes: &'v [HeaderChange],
    /// The listener's limit of streams.
    pub max_stream_duration: Option<Duration>,
    /// For [`TargetView::at`].
    pub place: Place,
}

impl TargetView {
    /// A view of these routes; `clusters` are those that the table names, in its order.
    pub fn new(target: Target, http: &HttpManager, routes: Arc<RouteTable>, clusters: Vec<Arc<ClusterView>>) -> Self {
        let host = HeaderValue::from_str(target.as_str()).ok();
        TargetView {
            target,
            host,
            content: Ok(Content { max_stream_duration: http.max_stream_duration, routes, clusters }),
        }
    }

    /// The same with its clusters renewed, in the same order; `None` if it is a failure.
    pub fn with_clusters(&self, clusters: Vec<Arc<ClusterView>>) -> Option<Self> {
        let Content { max_stream_duration, routes, .. } = self.content.as_ref().ok()?;
        let (max_stream_duration, routes) = (*max_stream_duration, Arc::clone(routes));
        let content = Ok(Content { max_stream_duration, routes, clusters });
        Some(TargetView { target: self.target.clone(), host: self.host.clone(), content })
    }

    /// A view that fails every request, because the target's own configuration does not exist.
    pub fn failed(target: Target, error: MeshError) -> Self {
        TargetView { target, host: None, content: Err(error) }
    }

    /// Whose view it is.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The target's name as a `Host` header, made once.
    pub fn host(&self) -> Option<&HeaderValue> {
        self.host.as_ref()
    }

    /// The compiled routes, unless the view is a failure.
    pub fn routes(&self) -> Option<&Arc<RouteTable>> {
        self.content.as_ref().ok().map(|content| &content.routes)
    }

    /// The compiled clusters, in the order of the routes' own list.
    pub fn clusters(&self) -> &[Arc<ClusterView>] {
        self.content.as_ref().map_or(&[], |content| &content.clusters)
    }

    /// Where a request goes. Allocates nothing unless it fails.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownTarget`] or [`ErrorKind::NoRoute`], with a detail that names the resource.
    pub fn find(&self, head: &RequestHead<'_>, call: &mut Call) -> Result<Routed<'_>, MeshError> {
        let content = self.content.as_ref().map_err(MeshError::clone)?;
        let (place, route, destination) = content.routes.find(head, call)?;
        Ok(content.routed(place, route, destination))
    }

    /// Where a request went: what [`Routed::place`] of this same view was found at.
    pub fn at(&self, place: Place) -> Option<Routed<'_>> {
        let content = self.content.as_ref().ok()?;
        let (route, destination) = content.routes.at(place)?;
        Some(content.routed(place, route, destination))
    }
}

impl Content {
    #[inline]
    fn routed<'v>(&'v self, place: Place, route: &'v Route, destination: &'v Destination) -> Routed<'v> {
        Routed {
            route,
            cluster: destination.cluster.and_then(|position| self.clusters.get(position as usize)),
            filters: &destination.filters,
            request_changes: destination.request_changes(),
            response_changes: destination.response_changes(),
            max_stream_duration: self.max_stream_duration,
            place,
        }
    }
}

impl Cluster {
    /// The endpoints that a cluster brings itself, where it does.
    pub fn inline_endpoints(&self) -> Option<&Endpoints> {
        match &self.kind {
            ClusterKind::Static(endpoints) | ClusterKind::LogicalDns(endpoints) => Some(endpoints),
            _ => None,
        }
    }
}
