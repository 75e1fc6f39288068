//! A source that knows everything from the start: configuration built in code, no control plane.
//!
//! ```
//! use mesh_core::fixed::Fixed;
//!
//! let source = Fixed::new().service("reviews:9080", ["127.0.0.1:8080".parse().unwrap()]);
//! ```

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use crate::error::Invalid;
use crate::id::{ListenerName, Target};
use crate::model::{
    ApiListener, Cluster, ClusterKind, Endpoints, FilterChain, Forward, HttpManager, Listener, NamedFilter, Route,
    RouteAction, RouteConfiguration, RouteMatch, RouteSource, ServerListener, VirtualHost,
};
use crate::resources::{Change, Progress, Resource, ResourceKey, ResourceType, Update};
use crate::store::{Sink, Source};

/// Resources that do not change. Whatever is not among them does not exist; every server may serve.
#[derive(Clone, Debug, Default)]
pub struct Fixed {
    resources: HashMap<ResourceKey, Resource>,
    filters: HashMap<Box<str>, Vec<NamedFilter>>,
}

impl Fixed {
    /// Nothing yet.
    pub fn new() -> Self {
        Fixed::default()
    }

    /// A target whose requests all go to these endpoints, over HTTP/1.1 or HTTP/2 as the caller's request is.
    pub fn service(self, target: &str, endpoints: impl IntoIterator<Item = SocketAddr>) -> Self {
        let mut cluster = Cluster::new(target, ClusterKind::Static(Endpoints::fixed(endpoints)));
        cluster.protocol = crate::model::ClusterProtocol::AsCaller;
        self.routes(target, vec![route_to(target)]).cluster(cluster)
    }

    /// A target with routes of its own.
    pub fn routes(mut self, target: &str, routes: Vec<Route>) -> Self {
        let host = VirtualHost { name: target.into(), ..VirtualHost::new(["*"], routes) };
        let config = RouteConfiguration::new(vec![host]);
        let http = HttpManager::new(RouteSource::Inline(Arc::new(config)));
        let listener = Listener::Api(ApiListener::new(target, http));
        self.put(ResourceType::Listener, target, Resource::Listener(Arc::new(listener)));
        self
    }

    /// HTTP filters of a target, in order, whenever the target itself is added. Filters of a target that is never added
    /// are reported as an error when the source starts, and no request passes them.
    pub fn filters(mut self, target: &str, filters: Vec<NamedFilter>) -> Self {
        self.filters.insert(target.into(), filters);
        self
    }

    /// A listener with the filters of its target.
    fn filtered(&self, name: &str, resource: &Resource) -> Resource {
        let mut resource = resource.clone();
        if let Resource::Listener(listener) = &mut resource
            && let Some(filters) = self.filters.get(name)
            && let Listener::Api(listener) = Arc::make_mut(listener)
        {
            listener.http.filters = filters.clone();
        }
        resource
    }

    /// A cluster for routes to name.
    pub fn cluster(mut self, cluster: Cluster) -> Self {
        let name = cluster.name.clone();
        self.put(ResourceType::Cluster, name.as_str(), Resource::Cluster(Arc::new(cluster)));
        self
    }

    fn put(&mut self, kind: ResourceType, name: &str, resource: Resource) {
        self.resources.insert(ResourceKey::new(kind, name), resource);
    }

    fn answer(&self, key: ResourceKey) -> Change {
        match self.resources.get(&key) {
            Some(resource) => {
                let resource = self.filtered(&key.name, resource);
                Change::Put(key, resource)
            }
            None => match key.name.strip_prefix(SERVER).and_then(|address| address.parse().ok()) {
                Some(address) => Change::Put(key, Resource::Listener(Arc::new(serve_everything(address)))),
                None => {
                    let reason = format!("{key}: not among the fixed resources");
                    Change::Absent(key, reason.into())
                }
            },
        }
    }
}

/// A route that sends everything to one cluster, without a time limit.
pub fn route_to(cluster: &str) -> Route {
    let route = Route::new(RouteMatch::any(), RouteAction::Forward(Forward::to(cluster)));
    Route { name: "default".into(), ..route }
}

const SERVER: &str = "server/";

fn serve_everything(address: SocketAddr) -> Listener {
    let route = Route { action: RouteAction::NonForwarding, ..route_to("") };
    let config = RouteConfiguration::new(vec![VirtualHost::new(["*"], vec![route])]);
    let http = HttpManager::new(RouteSource::Inline(Arc::new(config)));
    let mut listener = ServerListener::new(format!("{SERVER}{address}"), address);
    listener.default_filter_chain = Some(FilterChain::new("default", http));
    Listener::Server(listener)
}

impl Source for Fixed {
    fn listener_name(&self, target: &Target) -> Result<ListenerName, Invalid> {
        Ok(target.as_str().into())
    }

    fn server_listener_name(&self, address: SocketAddr) -> Result<ListenerName, Invalid> {
        Ok(format!("{SERVER}{address}").into())
    }

    fn run(self: Arc<Self>, mut sink: Sink) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let added = |target: &str| self.resources.contains_key(&ResourceKey::new(ResourceType::Listener, target));
            for target in self.filters.keys().filter(|target| !added(target)) {
                tracing::error!(%target, "filters were given for a target that was never added");
            }
            while let Some(progress) = sink.changed().await {
                let mut wanted = progress.subscribe;
                while !wanted.is_empty() {
                    let changes = wanted.into_iter().map(|key| self.answer(key)).collect();
                    let Progress { subscribe, .. } = sink.apply(Update { changes });
                    wanted = subscribe;
                }
            }
        })
    }
}
