//! The routes of a listener: which one a request takes, and by which filters to which cluster.
//!
//! A table shares with the one before it what both are made of: parts of lists of routes that are the same allocations, under
//! filters and header changes that say the same. So one changed route of thousands costs its part of the list.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

use http::HeaderValue;
use smallvec::{SmallVec, smallvec};

use super::route_filters::{Access, FilterBuilder, FilterLevel, Filters, RouteLimits, askers, authenticator};
use crate::authz::external::Asker;
use crate::authz::{AccessRequest, Authorizer, Connection, Verdict, verdict};
use crate::error::{ErrorKind, Invalid, MeshError};
use crate::filter::{Filter, FilterRegistry};
use crate::hashing::hash_of_request;
use crate::id::ClusterName;
use crate::jwt::{Authenticator, Claims};
use crate::list::List;
use crate::matcher::{DomainIndex, RouteIndex};
use crate::model::{
    Clusters, CorsPolicy, Fault, FilterConfig, Forward, HeaderChange, HeaderMutations, HttpManager, NamedFilter, Route,
    RouteAction, RouteConfiguration, RouteMatch, SplitBy, VirtualHost, WeightedCluster,
};
use crate::request::RequestHead;
use crate::state::States;
use crate::view::Passed;

/// The routes of a listener, compiled.
pub struct RouteTable {
    config: Arc<RouteConfiguration>,
    /// Where the filters' state belongs.
    place: Box<str>,
    filters: Arc<[NamedFilter]>,
    /// The listener's own, built.
    base: Arc<FilterLevel>,
    domains: Arc<DomainIndex>,
    hosts: Vec<Host>,
    clusters: Vec<ClusterName>,
    /// The places of those that requests go to.
    routed: Arc<HashMap<ClusterName, u32>>,
    /// How many places there are for these, which come first; the others get copies only.
    places: usize,
    /// The places of clusters that have lost their routes: the next new ones get them.
    free: BTreeSet<u32>,
    /// Who is let in where a route says nothing else of it, and where there is no route.
    access: Arc<[Arc<Authorizer>]>,
    /// Whose tokens are good.
    authenticator: Option<Arc<Authenticator>>,
    /// Who else is asked, in order.
    askers: Arc<[Asker]>,
    /// The filters that come before tokens are looked at, and before policies are; mostly none.
    early: Option<Arc<[Filters; 2]>>,
    /// Whether any request needs a verdict.
    needs_verdict: bool,
    /// Whether processors are shown requests, which is for servers.
    is_processed: bool,
    /// Whether any verdict may be a refusal.
    is_guarded: bool,
    /// Whether the first route of the only host is for every path: most servers have no more than that.
    catches_all: bool,
}

/// How many routes there are at least for each place that is free: with fewer, a table from nothing costs little.
const ROUTES_OF_A_FREE_PLACE: usize = 64;

struct Host {
    index: Arc<RouteIndex>,
    /// In parts, as they are configured.
    routes: List<CompiledRoute>,
    /// What its parts come to.
    sums: Vec<Arc<Sum>>,
    /// What it says of filters itself, built.
    filters: FilterLevel,
}

/// What some routes come to together.
#[derive(Default)]
struct Sum {
    needs_verdict: bool,
    is_guarded: bool,
    /// The clusters that they go to, by their places.
    clusters: BTreeSet<u32>,
    /// Those that get copies.
    mirrors: Vec<ClusterName>,
    /// The position of the first of them, where a filter keeps its state by the position of a route.
    position: Option<usize>,
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
    /// Whether a filter reads what is noted of requests.
    is_noted: bool,
    /// Whether a filter may hold responses back.
    holds_responses: bool,
    filters: Filters,
    /// Who is let in, where it is not as the listener says; mostly none.
    access: Option<Box<Access>>,
    /// Mostly none.
    changes: Option<Box<Changes>>,
}

/// Header changes, a list for each level that has some, in the order of levels; and the authority that a cluster asks for.
struct Changes {
    request: Vec<Vec<HeaderChange>>,
    response: Vec<Vec<HeaderChange>>,
    authority: Option<HeaderValue>,
}

impl Destination {
    pub(super) fn takes_load(&self) -> bool {
        self.weight > 0
    }

    /// The cluster, by its place in [`RouteTable::clusters`]; `None` where the route goes to none.
    pub fn cluster(&self) -> Option<usize> {
        self.cluster.map(|position| position as usize)
    }

    /// Its share among those of its route.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// The filters to pass, in order.
    pub fn filters(&self) -> &[Arc<dyn Filter>] {
        &self.filters
    }

    /// Whether one of them reads what is noted of requests.
    #[inline]
    pub fn is_noted(&self) -> bool {
        self.is_noted
    }

    /// Whether one of them may hold responses back.
    #[inline]
    pub fn holds_responses(&self) -> bool {
        self.holds_responses
    }

    /// Header changes of the request: lists for the levels that have some, in order.
    pub fn request_changes(&self) -> &[Vec<HeaderChange>] {
        self.changes.as_ref().map_or(&[], |changes| &changes.request)
    }

    /// Header changes of the response: lists for the levels that have some, in order.
    pub fn response_changes(&self) -> &[Vec<HeaderChange>] {
        self.changes.as_ref().map_or(&[], |changes| &changes.response)
    }

    /// What the authority becomes where its route does not say so.
    pub fn authority(&self) -> Option<&HeaderValue> {
        self.changes.as_ref()?.authority.as_ref()
    }
}

impl RouteTable {
    /// Compiles a route configuration under a listener's filters. `listener` names the place where the filters' state
    /// belongs, which is kept in `states`.
    pub fn compile(
        config: Arc<RouteConfiguration>,
        http: &HttpManager,
        registry: &FilterRegistry,
        states: &States,
        listener: &str,
    ) -> Result<RouteTable, Invalid> {
        RouteTable::from_nothing(config, http, &FilterBuilder { filters: &http.filters, registry, states }, listener)
    }

    /// The same, by the same registry and states, for a listener that had this table until now, if any: what both have in
    /// common is shared.
    pub fn compile_after(
        before: Option<&RouteTable>,
        config: Arc<RouteConfiguration>,
        http: &HttpManager,
        registry: &FilterRegistry,
        states: &States,
        listener: &str,
    ) -> Result<RouteTable, Invalid> {
        let builder = FilterBuilder { filters: &http.filters, registry, states };
        if let Some(before) = before.filter(|before| before.goes_by(&config, http, listener)) {
            let mut table = before.emptied(&config);
            table.add_hosts(Some(before), &builder)?;
            // Clusters have the places that they had, and not too many of these are free.
            let routes: usize = table.hosts.iter().map(|host| host.routes.len()).sum();
            if table.free.len() <= routes / ROUTES_OF_A_FREE_PLACE {
                return Ok(table);
            }
        }
        RouteTable::from_nothing(config, http, &builder, listener)
    }

    fn from_nothing(
        config: Arc<RouteConfiguration>,
        http: &HttpManager,
        builder: &FilterBuilder<'_>,
        listener: &str,
    ) -> Result<RouteTable, Invalid> {
        let askers = askers(&http.filters, builder.states, listener)?;
        let authenticator = authenticator(&http.filters)?;
        let base = builder.base(listener)?;
        let mut table = RouteTable {
            place: listener.into(),
            domains: Arc::new(DomainIndex::new(&config.virtual_hosts)),
            hosts: Vec::new(),
            clusters: Vec::new(),
            routed: Arc::default(),
            places: 0,
            free: BTreeSet::new(),
            filters: http.filters.as_slice().into(),
            access: builder.effective(&[&base], true, &((&[], false), &[]))?.1.into(),
            authenticator,
            askers,
            early: builder.early(&base),
            base: Arc::new(base),
            needs_verdict: false,
            is_processed: http.filters.iter().any(|filter| matches!(filter.config, FilterConfig::ExtProc(_))),
            is_guarded: false,
            catches_all: catches_all(&config),
            config,
        };
        table.add_hosts(None, builder)?;
        Ok(table)
    }

    /// Whether what stands above its virtual hosts is this.
    fn goes_by(&self, config: &RouteConfiguration, http: &HttpManager, listener: &str) -> bool {
        *self.place == *listener
            && *self.filters == *http.filters
            && self.config.mutations == config.mutations
            && self.config.most_specific_mutations_win == config.most_specific_mutations_win
    }

    /// A table without routes that has of this one what stands above virtual hosts, and the places of clusters.
    fn emptied(&self, config: &Arc<RouteConfiguration>) -> RouteTable {
        let (hosts, others) = (&self.config.virtual_hosts, &config.virtual_hosts);
        let same_domains =
            hosts.len() == others.len() && hosts.iter().zip(others).all(|(host, other)| host.domains == other.domains);
        RouteTable {
            config: Arc::clone(config),
            place: self.place.clone(),
            filters: Arc::clone(&self.filters),
            base: Arc::clone(&self.base),
            domains: if same_domains { Arc::clone(&self.domains) } else { Arc::new(DomainIndex::new(others)) },
            hosts: Vec::new(),
            clusters: self.clusters.iter().take(self.places).cloned().collect(),
            routed: Arc::clone(&self.routed),
            places: self.places,
            free: self.free.clone(),
            access: Arc::clone(&self.access),
            authenticator: self.authenticator.clone(),
            askers: Arc::clone(&self.askers),
            early: self.early.clone(),
            needs_verdict: false,
            is_processed: self.is_processed,
            is_guarded: false,
            catches_all: catches_all(config),
        }
    }

    fn add_hosts(&mut self, before: Option<&RouteTable>, builder: &FilterBuilder<'_>) -> Result<(), Invalid> {
        let config = Arc::clone(&self.config);
        self.needs_verdict = !self.access.is_empty() || !self.askers.is_empty();
        self.is_guarded = !self.askers.is_empty() || self.access.iter().any(|access| access.may_refuse());
        let mut before = before.map(HostsBefore::of);
        for (position, host) in config.virtual_hosts.iter().enumerate() {
            let before = before.as_mut().and_then(|before| before.find(host));
            let compiled = self.compile_host(host, before, builder);
            self.hosts.push(compiled.map_err(|invalid| invalid.at(format!("virtual_hosts[{position}]")))?);
        }
        self.places = self.clusters.len();
        self.free_places();
        let mut mirrors = HashSet::new();
        for sum in self.hosts.iter().flat_map(|host| &host.sums) {
            self.needs_verdict |= sum.needs_verdict;
            self.is_guarded |= sum.is_guarded;
            for cluster in &sum.mirrors {
                if !self.routed.contains_key(cluster) && mirrors.insert(cluster) {
                    self.clusters.push(cluster.clone());
                }
            }
        }
        Ok(())
    }

    /// Frees the places of clusters to which no route leads.
    fn free_places(&mut self) {
        let mut is_free = vec![true; self.places];
        for place in self.hosts.iter().flat_map(|host| &host.sums).flat_map(|sum| &sum.clusters) {
            if let Some(is_free) = is_free.get_mut(*place as usize) {
                *is_free = false;
            }
        }
        for (place, (cluster, _)) in
            (0..).zip(self.clusters.iter_mut().zip(is_free)).filter(|(_, (_, is_free))| *is_free)
        {
            if self.free.insert(place) {
                let name = std::mem::replace(cluster, ClusterName::from(""));
                Arc::make_mut(&mut self.routed).remove(&name);
            }
        }
    }

    /// `before` is a host of the table before that differs in its domains and routes only.
    fn compile_host(
        &mut self,
        host: &VirtualHost,
        before: Option<(&VirtualHost, &Host)>,
        builder: &FilterBuilder<'_>,
    ) -> Result<Host, Invalid> {
        let have_same_matches =
            |one: &Arc<Route>, other: &Arc<Route>| Arc::ptr_eq(one, other) || one.matches == other.matches;
        let index = match before {
            Some((known, compiled)) if host.routes.agrees(&known.routes, have_same_matches) => {
                Arc::clone(&compiled.index)
            }
            _ => Arc::new(RouteIndex::new(host.routes.iter().map(|route| &route.matches))?),
        };
        let (place, base) = (format!("{}/{}", self.place, host.name), Arc::clone(&self.base));
        let filters = match before {
            Some((_, compiled)) => compiled.filters.clone(),
            None => builder.level(&host.filters, || place.clone())?,
        };
        let mut kept = before.map(|(known, _)| host.routes.shared_with(&known.routes));
        let (mut parts, mut sums, mut start) = (Vec::new(), Vec::new(), 0);
        for part in host.routes.parts() {
            let kept = kept.as_mut().and_then(Iterator::next).flatten().and_then(|at| {
                let (_, compiled) = before?;
                Some((compiled.routes.parts().get(at)?, compiled.sums.get(at)?))
            });
            match kept.filter(|(_, sum)| sum.position.is_none_or(|position| position == start)) {
                Some((part, sum)) => {
                    parts.push(Arc::clone(part));
                    sums.push(Arc::clone(sum));
                }
                None => {
                    let mut sum = Sum::default();
                    let compiled = part.iter().enumerate().map(|(at, route)| {
                        let position = start + at;
                        let compiled = self.compile_route(
                            host,
                            (position, &**route),
                            &mut sum,
                            builder,
                            &[&filters, &*base],
                            &place,
                        );
                        compiled.map_err(|invalid| invalid.at(format!("routes[{position}]")))
                    });
                    parts.push(compiled.collect::<Result<_, _>>()?);
                    sum.position = sum.position.map(|_| start);
                    sums.push(Arc::new(sum));
                }
            }
            start += part.len();
        }
        Ok(Host { index, routes: List::of_parts(parts), sums, filters })
    }

    fn compile_route(
        &mut self,
        host: &VirtualHost,
        (position, route): (usize, &Route),
        sum: &mut Sum,
        builder: &FilterBuilder<'_>,
        above: &[&FilterLevel; 2],
        place: &str,
    ) -> Result<CompiledRoute, Invalid> {
        let mut goes_by_position = false;
        let mut place = || match &*route.name {
            "" => {
                goes_by_position = true;
                format!("{place}/#{position}")
            }
            name => format!("{place}/{name}"),
        };
        let filters = builder.level(&route.filters, &mut place)?;
        let of_route = match &route.action {
            RouteAction::Forward(forward) => (&*forward.rate_limits, forward.includes_host_rate_limits),
            _ => (&[][..], false),
        };
        let limits: RouteLimits<'_> = (of_route, &host.rate_limits);
        let is_answered = matches!(route.action, RouteAction::Redirect(_) | RouteAction::Direct(_));
        let mut destination = |name: Option<&ClusterName>, weight, own: Option<&WeightedCluster>| {
            let cluster = name.map(|name| self.place_of(name));
            sum.clusters.extend(cluster);
            // Weighted cluster, route, virtual host, route configuration: the order in which Envoy applies them.
            let above_it = [&route.mutations, &host.mutations, &self.config.mutations];
            let mut levels: Vec<_> = own.map(|own| &own.mutations).into_iter().chain(above_it).collect();
            if self.config.most_specific_mutations_win {
                levels.reverse();
            }
            let of_levels = |list: fn(&HeaderMutations) -> &Vec<HeaderChange>| -> Vec<_> {
                levels.iter().map(|level| list(level)).filter(|changes| !changes.is_empty()).cloned().collect()
            };
            let (request, response) = (of_levels(|level| &level.request), of_levels(|level| &level.response));
            let authority = own.and_then(|own| own.authority.clone());
            let changes = !(request.is_empty() && response.is_empty() && authority.is_none());
            let own_filters = match own {
                Some(own) => builder.level(&own.filters, || format!("{}/{}", place(), own.name))?,
                None => FilterLevel::new(),
            };
            let levels = [&own_filters, &filters, above[0], above[1]];
            let (filters, access) = builder.effective(&levels, is_answered, &limits)?;
            let is_as_above = access.len() == self.access.len()
                && access.iter().zip(&*self.access).all(|(own, above)| Arc::ptr_eq(own, above));
            sum.needs_verdict |= !access.is_empty();
            sum.is_guarded |= access.iter().any(|access| access.may_refuse());
            Ok::<_, Invalid>(Destination {
                cluster,
                weight,
                is_noted: filters.iter().any(|filter| filter.reads_notes()),
                holds_responses: filters.iter().any(|filter| filter.holds_responses()),
                filters,
                access: (!is_as_above).then(|| Box::new(access)),
                changes: changes.then(|| Box::new(Changes { request, response, authority })),
            })
        };
        let destinations: SmallVec<[Destination; 1]> = match &route.action {
            RouteAction::Forward(Forward { clusters: Clusters::One(name), .. }) => {
                smallvec![destination(Some(name), 1, None)?]
            }
            RouteAction::Forward(Forward { clusters: Clusters::Weighted(clusters), .. }) => {
                clusters.iter().map(|it| destination(Some(&it.name), it.weight, Some(it))).collect::<Result<_, _>>()?
            }
            _ => smallvec![destination(None, 1, None)?],
        };
        if let RouteAction::Forward(forward) = &route.action {
            sum.mirrors.extend(forward.mirrors.iter().map(|mirror| mirror.cluster.clone()));
        }
        sum.position = sum.position.or(goes_by_position.then_some(position));
        let total_weight = destinations.iter().map(|destination| u64::from(destination.weight)).sum();
        Ok(CompiledRoute { destinations, total_weight })
    }

    /// The place of a cluster that requests go to.
    fn place_of(&mut self, name: &ClusterName) -> u32 {
        if let Some(place) = self.routed.get(name) {
            return *place;
        }
        let free = self.free.pop_first();
        let place = free.unwrap_or(self.clusters.len() as u32);
        match self.clusters.get_mut(place as usize) {
            Some(free) => *free = name.clone(),
            None => self.clusters.push(name.clone()),
        }
        Arc::make_mut(&mut self.routed).insert(name.clone(), place);
        place
    }

    /// Whether it was compiled from these very inputs.
    pub fn is_of(&self, config: &Arc<RouteConfiguration>, http: &HttpManager) -> bool {
        Arc::ptr_eq(&self.config, config) && *self.filters == *http.filters
    }

    /// The clusters that its routes name, each once. A place that is [free](RouteTable::is_free) has no name.
    pub fn clusters(&self) -> &[ClusterName] {
        &self.clusters
    }

    /// Whether each of its clusters has the place that it has in another table, and the other way round.
    pub(crate) fn has_places_of(&self, other: &RouteTable) -> bool {
        self.places == other.places && self.free == other.free && self.clusters == other.clusters
    }

    /// Whether the cluster at a position gets copies of requests only, so that none has to wait for it.
    pub fn is_mirror(&self, position: usize) -> bool {
        position >= self.places
    }

    /// Whether the place is that of no cluster: the one that it was has lost its routes, and the others have the places that they
    /// had.
    pub fn is_free(&self, position: usize) -> bool {
        u32::try_from(position).is_ok_and(|place| self.free.contains(&place))
    }

    /// The first route that a request matches, and of its destinations one by weight.
    ///
    /// # Errors
    /// [`ErrorKind::NoRoute`]; [`ErrorKind::Security`] where nobody may be let in without [`RouteTable::admit`].
    #[inline]
    pub fn find(&self, head: &RequestHead<'_>, random: &mut fastrand::Rng) -> Result<Found<'_>, MeshError> {
        if self.needs_verdict || self.is_processed || self.authenticator.is_some() {
            let what = "the listener has RBAC, JWT, ext_authz or ext_proc, which are for servers";
            return Err(MeshError::new(ErrorKind::Security, what));
        }
        self.route(head, random)
    }

    /// Whose tokens are good: what a server asks before [`RouteTable::admit`], where there is one.
    #[inline]
    pub fn authenticator(&self) -> Option<&Arc<Authenticator>> {
        self.authenticator.as_ref()
    }

    /// Who else is asked about a request, and before it has a verdict, in order.
    #[inline]
    pub fn askers(&self) -> &[Asker] {
        &self.askers
    }

    /// The filters that a request passes before its tokens are looked at, and those before it is said who may do what: plugins
    /// that stand before the filters of that kind. They are the listener's, since there is no route yet.
    #[inline]
    pub fn early(&self) -> Option<&[Filters; 2]> {
        self.early.as_deref()
    }

    /// Whether a request needs a verdict, for which its connection should be known.
    #[inline]
    pub fn needs_verdict(&self) -> bool {
        self.needs_verdict
    }

    /// Whether anybody may be refused: then what can be read in two ways is no way in. Policies that are only tried, or only
    /// tell of requests, refuse nobody.
    #[inline]
    pub fn is_guarded(&self) -> bool {
        self.is_guarded
    }

    /// What a server asks: whether a request is let in, and only then its route. Who is refused does not learn whether
    /// there is one. The most specific RBAC counts: that of the route, else of the virtual host, else of the listener.
    #[inline]
    pub fn admit(
        &self,
        head: &RequestHead<'_>,
        connection: Option<Connection<'_>>,
        tokens: &[Claims],
        random: &mut fastrand::Rng,
    ) -> Admission<'_> {
        let found = self.route(head, random);
        if !self.needs_verdict {
            return Admission { verdict: Verdict::ALLOWED, found };
        }
        let access: &[Arc<Authorizer>] = match &found {
            Ok((_, _, Destination { access: Some(own), .. })) => own,
            _ => &self.access,
        };
        Admission { verdict: verdict(access, &AccessRequest { head: Some(*head), connection, tokens }), found }
    }

    /// What the listener's policies say of bytes that nobody looks into.
    pub fn verdict_on_bytes(&self, connection: Connection<'_>) -> Verdict<'_> {
        let request = AccessRequest { head: None, connection: Some(connection), tokens: &[] };
        // There is no question about bytes.
        match self.askers.iter().find_map(|asker| asker.asked_by(&request)) {
            Some(rule) => Verdict { is_allowed: false, policy: Some(rule), ..Verdict::ALLOWED },
            None => verdict(&self.access, &request),
        }
    }

    /// Why bytes that nobody looks into may not go to the application, where they may not: requests are answered here, or what
    /// decides on them or changes them would have to see them.
    pub fn why_no_bytes(&self) -> Option<Arc<str>> {
        let mut routes = self.config.virtual_hosts.iter().flat_map(|host| &host.routes).peekable();
        if routes.peek().is_none() {
            return Some("there is no route".into());
        }
        if let Some(reason) = routes.find_map(|route| match &route.action {
            RouteAction::NonForwarding => None,
            RouteAction::Unusable(reason) => Some(Arc::clone(reason)),
            RouteAction::Direct(direct) => Some(String::from_utf8_lossy(&direct.body).into()),
            RouteAction::Forward(_) | RouteAction::Redirect(_) => Some("a route leads elsewhere".into()),
        }) {
            return Some(reason);
        }
        let has_own_access = |destination: &Destination| destination.access.is_some();
        let mut destinations = self.hosts.iter().flat_map(|host| &host.routes).flat_map(|route| &route.destinations);
        match () {
            () if self.has_filters() || self.early.is_some() => Some("its filters look at requests".into()),
            () if destinations.any(has_own_access) => Some("a route has policies of its own".into()),
            () => None,
        }
    }

    /// The virtual host of a request, by its place.
    pub(super) fn host_of(&self, head: &RequestHead<'_>) -> Option<usize> {
        self.domains.find(head.authority)
    }

    /// The index of the routes of a virtual host.
    pub(super) fn index(&self, host: usize) -> Option<&RouteIndex> {
        self.hosts.get(host).map(|host| &*host.index)
    }

    /// The way of [`find`](RouteTable::find), for whoever asks besides what policies say.
    #[inline]
    pub(super) fn route(&self, head: &RequestHead<'_>, random: &mut fastrand::Rng) -> Result<Found<'_>, MeshError> {
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
            (host, compiled.index.find(head, random).ok_or_else(|| no_route("no route for"))?)
        };
        let found = self.hosts.get(host).zip(self.config.virtual_hosts.get(host));
        let found = found.and_then(|(host, config)| host.routes.get(route).zip(config.routes.get(route)));
        let (compiled, config) = found.ok_or_else(|| no_route("no route for"))?;
        let chosen = compiled.choose(config, head, random);
        let chosen = chosen.and_then(|(chosen, made)| Some((chosen, made, compiled.destinations.get(chosen)?)));
        let (chosen, made, destination) = chosen.ok_or_else(|| no_route("no destination for"))?;
        let position = RoutePosition { host: host as u32, route: route as u32, destination: chosen as u32, made };
        Ok((position, &**config, destination))
    }

    /// What it was compiled from.
    pub fn config(&self) -> &Arc<RouteConfiguration> {
        &self.config
    }

    /// Whether a request that nobody looks at would get past something: policies that may refuse it, tokens, limits or other
    /// filters.
    pub fn guards_requests(&self) -> bool {
        let says_nothing = |config: &FilterConfig| matches!(config, FilterConfig::Rbac(_) | FilterConfig::Disabled);
        self.is_guarded || self.filters.iter().any(|filter| !says_nothing(&filter.config))
    }

    /// Whether requests pass any filter on any of its routes.
    pub fn has_filters(&self) -> bool {
        let routes = self.hosts.iter().flat_map(|host| &host.routes);
        routes.flat_map(|route| &route.destinations).any(|destination| !destination.filters.is_empty())
    }

    /// The virtual host of a position.
    pub fn virtual_host(&self, position: RoutePosition) -> Option<&VirtualHost> {
        self.config.virtual_hosts.get(position.host())
    }

    /// What goes wrong on purpose on the route at a position: its own word for it, else that of its virtual host or the listener.
    pub fn fault_of(&self, position: RoutePosition) -> Option<&Arc<Fault>> {
        let host = self.virtual_host(position)?;
        let route = host.routes.get(position.route())?;
        let configs = self.filters.iter().map(|filter| {
            let mut levels = [&route.filters, &host.filters].into_iter();
            levels.find_map(|level| level.get(&filter.name)).unwrap_or(&filter.config)
        });
        let mut faults = configs.filter_map(|config| match config {
            FilterConfig::Fault(fault) => Some(fault),
            _ => None,
        });
        faults.find(|fault| fault.delay.is_some() || fault.abort.is_some())
    }

    /// What requests pass, in order, in words, where their route says nothing else of it.
    pub fn passed(&self) -> Vec<Passed> {
        self.filters.iter().filter_map(|filter| Passed::of(&filter.name, &filter.config, None)).collect()
    }

    /// The same on the route at a position: of each filter the route's own word for it, else that of its virtual host or the
    /// listener.
    pub fn passed_at(&self, position: RoutePosition) -> Vec<Passed> {
        let host = self.virtual_host(position);
        let route = host.and_then(|host| host.routes.get(position.route()));
        let levels = || [route.map(|route| &route.filters), host.map(|host| &host.filters)].into_iter().flatten();
        let passed = self.filters.iter().map(|filter| {
            let own = levels().find_map(|level| level.get(&filter.name));
            Passed::of(&filter.name, &filter.config, own)
        });
        passed.flatten().collect()
    }

    /// What pages of other origins may do on the route at a position, each level completed by the one above; `None` where that is
    /// nothing, or the route answers itself.
    pub fn cors_of(&self, position: RoutePosition) -> Option<CorsPolicy> {
        let host = self.virtual_host(position)?;
        let route =
            host.routes.get(position.route()).filter(|route| matches!(route.action, RouteAction::Forward(_)))?;
        self.filters.iter().find_map(|filter| {
            let levels = [&route.filters, &host.filters].into_iter().filter_map(|level| level.get(&filter.name));
            let policies = levels.chain([&filter.config]).map_while(|config| match config {
                FilterConfig::Cors(policy) => Some(&**policy),
                _ => None,
            });
            let policy = policies.cloned().reduce(|own, above| own.or(&above))?;
            (!policy.is_idle()).then_some(policy)
        })
    }

    /// All that the route at a position may choose among, by weight.
    pub fn destinations(&self, position: RoutePosition) -> &[Destination] {
        let route = self.hosts.get(position.host as usize).and_then(|host| host.routes.get(position.route as usize));
        route.map_or(&[], |route| &route.destinations)
    }

    /// What is at a position; `None` only where it is another table's.
    pub fn at(&self, position: RoutePosition) -> Option<(&Route, &Destination)> {
        let route: &Route =
            self.config.virtual_hosts.get(position.host as usize)?.routes.get(position.route as usize)?;
        let compiled = self.hosts.get(position.host as usize)?.routes.get(position.route as usize)?;
        Some((route, compiled.destinations.get(position.destination as usize)?))
    }
}

/// A request's route: where it is, what it says, and which of its destinations it is to be.
pub type Found<'t> = (RoutePosition, &'t Route, &'t Destination);

/// Whether a request is let in. The route comes out of it only where it is.
#[must_use]
pub struct Admission<'t> {
    verdict: Verdict<'t>,
    found: Result<Found<'t>, MeshError>,
}

impl<'t> Admission<'t> {
    /// What the policies say.
    pub fn verdict(&self) -> &Verdict<'t> {
        &self.verdict
    }

    /// The route of a request that is let in.
    ///
    /// # Errors
    /// [`ErrorKind::AccessDenied`], else [`ErrorKind::NoRoute`].
    pub fn into_route(self) -> Result<Found<'t>, MeshError> {
        self.verdict.check()?;
        self.found
    }
}

impl fmt::Debug for Admission<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let route = self.found.as_ref().map(|(_, route, _)| &route.name);
        f.debug_struct("Admission").field("verdict", &self.verdict).field("route", &route).finish()
    }
}

/// Where in a table a request's route and destination are, for who comes back to them later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutePosition {
    host: u32,
    route: u32,
    destination: u32,
    /// What a cookie is made of by which the destination was chosen.
    made: Option<NonZeroU64>,
}

impl RoutePosition {
    /// The route of a virtual host, by their places; of its destinations the first.
    pub(super) fn of_route(host: usize, route: usize) -> Self {
        RoutePosition { host: host as u32, route: route as u32, destination: 0, made: None }
    }

    pub(super) fn host(self) -> usize {
        self.host as usize
    }

    pub(super) fn route(self) -> usize {
        self.route as usize
    }

    pub(super) fn made(self) -> Option<u64> {
        self.made.map(NonZeroU64::get)
    }
}

fn catches_all(config: &RouteConfiguration) -> bool {
    let [host] = config.virtual_hosts.as_slice() else { return false };
    let every_path = host.routes.first().is_some_and(|route| route.matches == RouteMatch::any());
    every_path && host.domains.iter().any(|domain| domain == "*")
}

/// What a request brings along for a route's split, where that does not go by chance; or the cookie that is about to be made for
/// it, of what `make` says.
pub(super) fn brought(route: &Route, head: &RequestHead<'_>, make: impl FnMut() -> Option<u64>) -> Option<u64> {
    let RouteAction::Forward(forward) = &route.action else { return None };
    match &forward.split_by {
        SplitBy::Chance => None,
        SplitBy::HashPolicies => hash_of_request(&forward.hash_policies, head, make),
        SplitBy::Header(name) => {
            let mut values = head.headers.get_all(name).iter();
            let only = values.next().filter(|_| values.next().is_none())?;
            number(only.as_bytes())
        }
    }
}

/// A number of digits alone.
fn number(digits: &[u8]) -> Option<u64> {
    let more = |number: u64, digit: &u8| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    };
    let (first, rest) = digits.split_first()?;
    rest.iter().try_fold(more(0, first)?, more)
}

impl CompiledRoute {
    /// By weight, in the order listed (Envoy, `weighted_clusters`): by chance, or by what the request brings. Who is about to be
    /// given a cookie is where that leads from the first request on, and what it is to be made of is the second.
    fn choose(
        &self,
        route: &Route,
        head: &RequestHead<'_>,
        random: &mut fastrand::Rng,
    ) -> Option<(usize, Option<NonZeroU64>)> {
        if self.destinations.len() == 1 {
            return Some((0, None));
        }
        let (total, mut made) = (self.total_weight.max(1), None);
        let brought = brought(route, head, || Some(*made.get_or_insert_with(|| random.u64(1..))));
        let mut ticket = match brought {
            Some(number) => number % total,
            None => random.u64(0..total),
        };
        let chosen = self.destinations.iter().position(|destination| {
            let weight = u64::from(destination.weight);
            let taken = ticket < weight;
            ticket = ticket.saturating_sub(weight);
            taken
        });
        Some((chosen?, made.and_then(NonZeroU64::new)))
    }
}

/// The virtual hosts of the table before, for those of the next one.
struct HostsBefore<'b> {
    table: &'b RouteTable,
    /// Mostly they come in the same order.
    next: usize,
    places: Option<HashMap<&'b str, usize>>,
}

impl<'b> HostsBefore<'b> {
    fn of(table: &'b RouteTable) -> Self {
        HostsBefore { table, next: 0, places: None }
    }

    /// The host of the same name, if it differs in its domains and routes only.
    fn find(&mut self, host: &VirtualHost) -> Option<(&'b VirtualHost, &'b Host)> {
        let hosts = &self.table.config.virtual_hosts;
        let place = if hosts.get(self.next).is_some_and(|known| known.name == host.name) {
            self.next
        } else {
            let named = || hosts.iter().enumerate().map(|(place, host)| (&*host.name, place)).collect();
            *self.places.get_or_insert_with(named).get(&*host.name)?
        };
        self.next = place + 1;
        let known = hosts.get(place)?;
        let is_alike =
            known.mutations == host.mutations && known.filters == host.filters && known.rate_limits == host.rate_limits;
        Some((known, self.table.hosts.get(place)?)).filter(|_| is_alike)
    }
}

impl fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RouteTable({:?}, {} clusters)", self.config.name, self.clusters.len())
    }
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
