//! One target: its routes and the clusters that they lead to.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use super::{ClusterView, Destination, Explanation, RoutePosition, RouteTable};
use crate::error::MeshError;
use crate::id::Target;
use crate::model::{AccessLog, HttpManager, MetricRules, Route, RouteAction, Tracing};
use crate::request::RequestHead;

/// Everything that a request to one target needs, compiled.
#[derive(Debug)]
pub struct TargetView {
    target: Target,
    host: Option<HeaderValue>,
    told: Told,
    content: Result<Content, MeshError>,
}

/// What is told of its requests.
#[derive(Clone, Debug, Default)]
struct Told {
    access_logs: Arc<[AccessLog]>,
    metrics: Option<Arc<MetricRules>>,
    tracing: Option<Arc<Tracing>>,
    is_blocked: bool,
}

impl Told {
    fn of(http: &HttpManager) -> Told {
        let (metrics, tracing) = (http.metrics.clone(), http.tracing.clone());
        Told { access_logs: Arc::clone(&http.access_logs), metrics, tracing, is_blocked: false }
    }
}

#[derive(Debug)]
struct Content {
    max_stream_duration: Option<Duration>,
    routes: Arc<RouteTable>,
    /// Those of the routes, then those of the connections.
    clusters: Vec<Arc<ClusterView>>,
    connections: Option<Arc<TargetView>>,
}

/// Where a request goes, as long as its view is borrowed.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct RouteRef<'v> {
    /// The route, as configured.
    pub route: &'v Route,
    /// The cluster; `None` where the route goes to none.
    pub cluster: Option<&'v Arc<ClusterView>>,
    /// Filters and header changes, all levels of the configuration together.
    pub destination: &'v Destination,
    /// The listener's limit of streams.
    pub max_stream_duration: Option<Duration>,
    position: RoutePosition,
}

impl RouteRef<'_> {
    /// Whether identical GETs that are under way at the same time may be one.
    pub fn coalesces(&self) -> bool {
        matches!(&self.route.action, RouteAction::Forward(forward) if forward.coalesces)
    }

    /// What a cookie is made of that the request is to be given, where its split has gone by that.
    pub fn made(&self) -> Option<u64> {
        self.position.made()
    }
}

/// Where a request goes, for as long as it lasts: the view stays with it to the end of its body.
#[derive(Clone, Debug)]
pub struct SelectedRoute {
    view: Arc<TargetView>,
    position: RoutePosition,
}

impl SelectedRoute {
    /// Finds the route of a request: to be kept, and to be looked at for now. Allocates nothing unless it fails.
    ///
    /// # Errors
    /// As [`TargetView::find`].
    #[inline]
    pub fn find<'v>(
        view: &'v Arc<TargetView>,
        head: &RequestHead<'_>,
        random: &mut fastrand::Rng,
    ) -> Result<(Self, RouteRef<'v>), MeshError> {
        let found = view.find(head, random)?;
        Ok((SelectedRoute { view: Arc::clone(view), position: found.position }, found))
    }

    /// The view that it was found in.
    pub fn view(&self) -> &Arc<TargetView> {
        &self.view
    }

    /// What was found.
    #[inline]
    pub fn get(&self) -> RouteRef<'_> {
        self.view.at(self.position).expect("`find` found it in this very view, which does not change")
    }
}

impl TargetView {
    /// A view of these routes; `clusters` are those that the table names, in its order.
    pub fn new(target: Target, http: &HttpManager, routes: Arc<RouteTable>, clusters: Vec<Arc<ClusterView>>) -> Self {
        let host = HeaderValue::from_str(target.as_str()).ok();
        TargetView {
            target,
            host,
            told: Told::of(http),
            content: Ok(Content { max_stream_duration: http.max_stream_duration, routes, clusters, connections: None }),
        }
    }

    /// The same, with routes of their own for connections whose bytes are not HTTP: `clusters` are those that the table
    /// names, in its order.
    pub fn with_connections(
        mut self,
        http: &HttpManager,
        table: Arc<RouteTable>,
        clusters: Vec<Arc<ClusterView>>,
    ) -> Self {
        if let Ok(content) = &mut self.content {
            content.clusters.extend(clusters.iter().cloned());
            content.connections = Some(Arc::new(TargetView::new(self.target.clone(), http, table, clusters)));
        }
        self
    }

    /// The same with its clusters renewed, in the same order; `None` if it is a failure.
    pub fn with_clusters(&self, clusters: Vec<Arc<ClusterView>>) -> Option<Self> {
        let Content { max_stream_duration, routes, connections, .. } = self.content.as_ref().ok()?;
        let (max_stream_duration, routes) = (*max_stream_duration, Arc::clone(routes));
        let connections = match connections {
            Some(connections) => {
                let own = clusters.get(routes.clusters().len()..)?;
                Some(Arc::new(connections.with_clusters(own.to_vec())?))
            }
            None => None,
        };
        let content = Ok(Content { max_stream_duration, routes, clusters, connections });
        let (target, host, told) = (self.target.clone(), self.host.clone(), self.told.clone());
        Some(TargetView { target, host, told, content })
    }

    /// The same with other routes, which have its clusters at the same places.
    pub(crate) fn with_routes(mut self, routes: Arc<RouteTable>) -> Self {
        if let Ok(content) = &mut self.content {
            content.routes = routes;
        }
        self
    }

    /// A view that fails every request, because the target's own configuration does not exist.
    pub fn failed(target: Target, error: MeshError) -> Self {
        TargetView { target, host: None, told: Told::default(), content: Err(error) }
    }

    /// The same where the configuration says so, and what is told of those requests.
    pub fn blocked(target: Target, http: &HttpManager, error: MeshError) -> Self {
        let told = Told { is_blocked: true, ..Told::of(http) };
        TargetView { told, ..TargetView::failed(target, error) }
    }

    /// Whether it fails every request.
    pub fn is_failure(&self) -> bool {
        self.content.is_err()
    }

    /// Whether it does, and the configuration [says so](TargetView::blocked).
    pub fn is_blocked(&self) -> bool {
        self.told.is_blocked
    }

    /// Whose view it is.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The target's name as a `Host` header, made once.
    pub fn host(&self) -> Option<&HeaderValue> {
        self.host.as_ref()
    }

    /// Where requests are logged.
    #[inline]
    pub fn access_logs(&self) -> Option<&Arc<[AccessLog]>> {
        Some(&self.told.access_logs).filter(|logs| !logs.is_empty())
    }

    /// How requests are counted, where that is otherwise than usual.
    #[inline]
    pub fn metrics(&self) -> Option<&Arc<MetricRules>> {
        self.told.metrics.as_ref()
    }

    /// How requests are traced; `None` where that is the application's to say.
    #[inline]
    pub fn tracing(&self) -> Option<&Arc<Tracing>> {
        self.told.tracing.as_ref()
    }

    /// The compiled routes, unless the view is a failure.
    pub fn routes(&self) -> Option<&Arc<RouteTable>> {
        self.content.as_ref().ok().map(|content| &content.routes)
    }

    /// The view of those of its connections whose bytes are not HTTP, where these have routes of their own.
    pub fn connections(&self) -> Option<&Arc<TargetView>> {
        self.content.as_ref().ok()?.connections.as_ref()
    }

    /// The compiled clusters, in the order of the routes' own list, and then those of the connections.
    pub fn clusters(&self) -> &[Arc<ClusterView>] {
        self.content.as_ref().map_or(&[], |content| &content.clusters)
    }

    /// Has its clusters know that it leads to them; not those to which any target does.
    pub(crate) fn note_target(&self) {
        let leaves = self.clusters().iter().flat_map(|cluster| cluster.leaves());
        leaves.filter(|leaf| leaf.endpoints.is_some()).for_each(|leaf| leaf.state.note_target(&self.target));
    }

    /// Where a request goes. Allocates nothing unless it fails, or a split goes by a cookie that is made for it.
    ///
    /// # Errors
    /// [`UnknownTarget`](crate::error::ErrorKind::UnknownTarget) or [`NoRoute`](crate::error::ErrorKind::NoRoute), with a detail that names the resource.
    pub fn find(&self, head: &RequestHead<'_>, random: &mut fastrand::Rng) -> Result<RouteRef<'_>, MeshError> {
        let content = self.content.as_ref().map_err(MeshError::clone)?;
        let (position, route, destination) = content.routes.find(head, random)?;
        Ok(content.route(position, route, destination))
    }

    /// Why a request goes where [`find`](TargetView::find) sends it.
    pub fn explain(&self, head: &RequestHead<'_>, random: &mut fastrand::Rng) -> Explanation {
        let content = match &self.content {
            Ok(content) => content,
            Err(error) => {
                let request = format!("{} {}{}", head.method, head.authority, head.path_and_query);
                return Explanation::failed(request, error.clone());
            }
        };
        let mut explained = content.routes.explain(head, random);
        if let Some(route) = &mut explained.route
            && let RouteAction::Forward(forward) = &route.route.action
        {
            route.time_limit = forward.time_limit(head.is_grpc(), content.max_stream_duration);
        }
        for choice in &mut explained.clusters {
            let Some(view) = content.clusters.iter().find(|view| *view.name() == choice.name) else { continue };
            choice.leaves = view.leaves().iter().map(|leaf| Arc::clone(&leaf.cluster)).collect();
            choice.problem = view.why_unusable().cloned();
            if !view.passes_through() {
                let endpoints = view.endpoints();
                choice.endpoints = Some((endpoints.len(), endpoints.iter().filter(|one| one.takes_load).count()));
            }
        }
        explained
    }

    /// The clusters that requests on this route may go to: one, or several by weight, without those of none.
    pub fn alternatives(&self, route: &RouteRef<'_>) -> impl Iterator<Item = &Arc<ClusterView>> {
        let content = self.content.as_ref().ok();
        let destinations = content.map_or(&[][..], |content| content.routes.destinations(route.position));
        let cluster = move |destination: &Destination| content?.clusters.get(destination.cluster()?);
        destinations.iter().filter(|destination| destination.takes_load()).filter_map(cluster)
    }

    #[inline]
    fn at(&self, position: RoutePosition) -> Option<RouteRef<'_>> {
        let content = self.content.as_ref().ok()?;
        let (route, destination) = content.routes.at(position)?;
        Some(content.route(position, route, destination))
    }
}

impl Content {
    #[inline]
    fn route<'v>(&'v self, position: RoutePosition, route: &'v Route, destination: &'v Destination) -> RouteRef<'v> {
        let cluster = destination.cluster().and_then(|position| self.clusters.get(position));
        RouteRef { route, cluster, destination, max_stream_duration: self.max_stream_duration, position }
    }
}
