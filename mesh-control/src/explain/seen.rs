//! What a workload is told of a target, and what it makes of it: rendered as it is published, read by the library's own
//! decoder, compiled as the library compiles it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::filter::FilterRegistry;
use mesh_core::id::{ClusterName, RouteName};
use mesh_core::model::{
    Cluster, ClusterKind, FilterConfig, HttpManager, Listener, RouteConfiguration, RouteSource, ServerTls,
};
use mesh_core::path::PathNormalization;
use mesh_core::request::RequestHead;
use mesh_core::resources::{Resource, ResourceType};
use mesh_core::state::States;
use mesh_core::store::{ChainView, ServerView};
use mesh_core::view::RouteTable;
use mesh_core::xds::decode::{Options, decode};

use super::workload::Workload;
use crate::catalog::{Catalog, Client, ClientClass, Kind};
use crate::plane::Snapshot;
use crate::render::BLACK_HOLE;
use crate::render::listener::SERVER_PREFIX;

/// How deep aggregates may be in one another: deeper than they are rendered.
const DEEPEST: usize = 4;

/// The routes of a listener as a workload is told of them.
pub(crate) struct Seen {
    pub(crate) table: RouteTable,
    /// The routes of connections whose bytes are not HTTP, where they have any of their own: by the name of a server.
    pub(crate) connections: Option<RouteTable>,
    /// The listener's limit of streams.
    pub(crate) max_stream: Option<Duration>,
    /// What a server makes of paths.
    pub(crate) paths: PathNormalization,
    /// What clusters are made of that were asked about.
    pub(crate) clusters: HashMap<ClusterName, Told>,
    /// Why the workload does not see what the target would be to others.
    pub(crate) hidden: Option<String>,
}

/// A cluster as a workload is told of it.
pub(crate) enum Told {
    /// What it is made of: itself, or those of an aggregate.
    Leaves(Vec<Arc<Cluster>>),
    /// Nothing can be called by it, and this is why.
    Nowhere(String),
}

impl Told {
    pub(crate) fn leaves(&self) -> &[Arc<Cluster>] {
        match self {
            Told::Leaves(leaves) => leaves,
            Told::Nowhere(_) => &[],
        }
    }

    pub(crate) fn passes_through(&self) -> bool {
        matches!(self.leaves(), [only] if only.kind == ClusterKind::PassThrough)
    }
}

/// A workload, as `mesh-control` knows its own clients.
pub(crate) fn client(workload: &Workload) -> Client {
    let labels = workload.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    Client::new("explain", ClientClass::Library, IpAddr::V4(Ipv4Addr::LOCALHOST))
        .namespace(&*workload.namespace)
        .labels(labels)
}

/// A gateway, in the same way.
pub(crate) fn gateway(workload: &Workload) -> Client {
    client(workload).gateway()
}

/// Somebody outside, of whom nothing is known (RFC 5737).
const OUTSIDE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 0);

impl Seen {
    /// What a client is told of `host:port`.
    pub(crate) fn of_target(snapshot: &Snapshot, client: &Client, target: &str) -> Result<Seen, MeshError> {
        let Some(listener) = resource(snapshot, client, Kind::Listener, target)? else {
            let why = snapshot.absence(client, Kind::Listener, target);
            let why = why.unwrap_or_else(|| {
                "an object describes it that has nothing for this client, and such hosts are not called".to_owned()
            });
            return Err(MeshError::new(ErrorKind::UnknownTarget, format!("listener {target}: {why}")));
        };
        let Resource::Listener(listener) = listener else { return Err(other(target)) };
        let Listener::Api(listener) = &*listener else { return Err(other(target)) };
        if let Some(why) = listener.blocks() {
            return Err(MeshError::new(ErrorKind::UnknownTarget, format!("listener {target}: {why}")));
        }
        let mut seen = Seen::of(snapshot, client, &listener.http, target)?;
        seen.connections = listener.connections.as_ref().map(|routes| unfiltered(routes, target)).transpose()?;
        seen.hidden = snapshot.hidden(client, target);
        Ok(seen)
    }

    /// The same, with what all clusters are made of that its routes name.
    pub(crate) fn whole_of_target(snapshot: &Snapshot, client: &Client, target: &str) -> Result<Seen, MeshError> {
        let mut seen = Seen::of_target(snapshot, client, target)?;
        seen.learn_all(snapshot, client)?;
        Ok(seen)
    }

    /// Finds out what clusters are made of: there may be thousands, of which a request goes to one.
    pub(crate) fn learn<'n>(
        &mut self,
        snapshot: &Snapshot,
        client: &Client,
        names: impl IntoIterator<Item = &'n ClusterName>,
    ) -> Result<(), MeshError> {
        for name in names {
            if !self.clusters.contains_key(name) {
                self.clusters.insert(name.clone(), told(snapshot, client, name, DEEPEST)?);
            }
        }
        Ok(())
    }

    /// The same of all clusters that routes name.
    pub(crate) fn learn_all(&mut self, snapshot: &Snapshot, client: &Client) -> Result<(), MeshError> {
        let tables = [Some(&self.table), self.connections.as_ref()].into_iter().flatten();
        let names: Vec<ClusterName> = tables.flat_map(|table| table.clusters()).cloned().collect();
        self.learn(snapshot, client, &names)
    }

    /// What a server is told that is bound to an address.
    pub(crate) fn of_server(snapshot: &Snapshot, client: &Client, bound: SocketAddr) -> Result<Seen, MeshError> {
        let name = format!("{SERVER_PREFIX}{bound}");
        let Some(Resource::Listener(listener)) = resource(snapshot, client, Kind::Listener, &name)? else {
            return Err(MeshError::new(ErrorKind::UnknownTarget, format!("there is no server at {bound}")));
        };
        let Listener::Server(server) = &*listener else { return Err(other(&name)) };
        let chain = server.chains().next().ok_or_else(|| other(&name))?;
        Seen::of(snapshot, client, &chain.http, &name)
    }

    /// What a gateway is told of a listener, where a client comes in: in plaintext, or by TLS for this name.
    pub(crate) fn of_gateway(
        snapshot: &Snapshot,
        client: &Client,
        name: &str,
        server_name: Option<&str>,
    ) -> Result<Seen, MeshError> {
        let entrance = Entrance::of(snapshot, client, name)?;
        let place = entrance.place(server_name.is_some(), server_name)?;
        entrance.seen(snapshot, client, place)
    }

    fn of(snapshot: &Snapshot, client: &Client, http: &HttpManager, name: &str) -> Result<Seen, MeshError> {
        let named = |routes: &RouteName| {
            // Of thousands of routes the bytes take longer than all that is asked.
            if let Some(read) = snapshot.read_routes(client, routes.as_str()) {
                return Ok(read);
            }
            match resource(snapshot, client, Kind::Route, routes.as_str())? {
                Some(Resource::Route(routes)) => Ok(routes),
                _ => {
                    let why = format!("listener {name}: there is no route configuration {routes}");
                    Err(MeshError::new(ErrorKind::UnknownTarget, why))
                }
            }
        };
        let routes = match &http.routes {
            RouteSource::Inline(routes) => Arc::clone(routes),
            RouteSource::Named(routes) => named(routes)?,
            _ => return Err(other(name)),
        };
        let table = compile(routes, http, name)?;
        let (max_stream, paths) = (http.max_stream_duration, http.paths);
        Ok(Seen { table, connections: None, max_stream, paths, clusters: HashMap::new(), hidden: None })
    }

    /// Whether requests go on to where they ask for, as far as the clusters are known.
    pub(crate) fn passes_through(&self, table: &RouteTable) -> bool {
        table.clusters().iter().any(|name| self.clusters.get(name).is_some_and(Told::passes_through))
    }

    /// Why nothing can be called by a cluster.
    pub(crate) fn problem(&self, cluster: &ClusterName) -> Option<&str> {
        match self.clusters.get(cluster) {
            Some(Told::Nowhere(why)) => Some(why),
            _ => None,
        }
    }
}

/// What is to be said of a connection that comes to a gateway which passes it on.
pub(crate) const OPAQUE: &str = "nobody looks into what comes in here: it goes on as it is";

/// The listener of a gateway that takes what clients send to this port, and the port that it is bound to.
pub(crate) fn listener_for(snapshot: &Snapshot, client: &Client, port: u16) -> Result<(String, u16), MeshError> {
    let unknown = || MeshError::new(ErrorKind::UnknownTarget, format!("the gateway does not listen for port {port}"));
    snapshot.gateway_listener(client, port).ok_or_else(unknown)
}

/// A listener of a gateway, and which of its chains a client comes in by.
pub(crate) struct Entrance {
    name: String,
    /// Which chain takes a client has nothing to do with what is in it: there is nothing in these.
    view: ServerView,
}

impl Entrance {
    pub(crate) fn of(snapshot: &Snapshot, client: &Client, name: &str) -> Result<Entrance, MeshError> {
        let Some(Resource::Listener(listener)) = resource(snapshot, client, Kind::Listener, name)? else {
            return Err(MeshError::new(ErrorKind::UnknownTarget, format!("there is no listener {name}")));
        };
        let Listener::Server(server) = &*listener else { return Err(other(name)) };
        let nothing = Arc::new(unfiltered(&Arc::default(), name)?);
        let views = server.chains().map(|_| ChainView::new(Arc::clone(&nothing))).collect();
        Ok(Entrance { name: name.to_owned(), view: ServerView::new(Arc::new(server.clone()), views) })
    }

    /// The place of the chain that takes a client, in plaintext or by TLS for a name.
    pub(crate) fn place(&self, is_tls: bool, server_name: Option<&str>) -> Result<usize, MeshError> {
        let refused = |what: &str| MeshError::new(ErrorKind::Security, format!("listener {}: {what}", self.name));
        let found = self.chain(is_tls, server_name);
        let Some((place, chain)) = found.and_then(|place| Some((place, self.view.listener.chains().nth(place)?)))
        else {
            return Err(match (is_tls, server_name) {
                (true, Some(name)) => refused(&format!("TLS is refused for the name {name:?}")),
                (true, None) => refused("TLS is refused without the name of a server"),
                (false, _) => refused("connections in plaintext are closed"),
            });
        };
        match &chain.tls {
            ServerTls::Unusable(reason) => Err(refused(reason)),
            ServerTls::None if is_tls && chain.connections.is_none() => Err(refused("it takes no TLS")),
            ServerTls::Mutual | ServerTls::Edge(_) if !is_tls => Err(refused("TLS is required")),
            _ => Ok(place),
        }
    }

    /// Whether the chain at a place, which has no route for a host, is not that for the host: there is another one.
    pub(crate) fn is_misdirected(&self, place: usize, is_tls: bool, host: &str) -> bool {
        self.view.asks_for_names() && self.chain(is_tls, Some(host)).is_some_and(|other| other != place)
    }

    fn chain(&self, is_tls: bool, server_name: Option<&str>) -> Option<usize> {
        let found = self.view.chain(self.view.listener.address, OUTSIDE, is_tls, server_name)?;
        self.view.chains.iter().position(|one| std::ptr::eq(one, found))
    }

    /// What the gateway is told of the chain at a place.
    pub(crate) fn seen(&self, snapshot: &Snapshot, client: &Client, place: usize) -> Result<Seen, MeshError> {
        let chain = self.view.listener.chains().nth(place).ok_or_else(|| other(&self.name))?;
        let mut seen = Seen::of(snapshot, client, &chain.http, &self.name)?;
        seen.connections = chain.connections.as_ref().map(|routes| unfiltered(routes, &self.name)).transpose()?;
        Ok(seen)
    }

    /// The routes of what is seen at a place without what lets requests in or not, by who asks or by how many there are: with what
    /// the routes say themselves. And whether that leaves anything out.
    pub(crate) fn routes_alone(&self, seen: &Seen, place: usize) -> Result<(RouteTable, bool), MeshError> {
        let chain = self.view.listener.chains().nth(place).ok_or_else(|| other(&self.name))?;
        let mut http = chain.http.clone();
        http.filters.retain(|filter| {
            // One that is off is there for what routes say in its place.
            let config = &filter.config;
            matches!(config, FilterConfig::Fault(_) | FilterConfig::Cors(_) | FilterConfig::StatefulSession(_))
                || *config == FilterConfig::Disabled
        });
        let is_less = http.filters.len() < chain.http.filters.len();
        Ok((compile(Arc::clone(seen.table.config()), &http, &self.name)?, is_less))
    }
}

/// The path of a request, with its query, in the form that a server decides by.
pub(crate) fn canonical(
    head: &RequestHead<'_>,
    paths: PathNormalization,
    table: &RouteTable,
) -> Result<String, MeshError> {
    let path = paths.canonical(head.path(), table.is_guarded())?;
    Ok(head.query().map_or_else(|| path.to_string(), |query| format!("{path}?{query}")))
}

/// That a client which speaks TLS over the mesh is for hosts that nothing describes.
pub(crate) fn not_by_tls() -> MeshError {
    let why = "https is not for the mesh, which secures connections itself: ask for http. Rules on TLS connections (tls) hold at \
               ports whose protocol is TLS or HTTPS, or is not said";
    MeshError::new(ErrorKind::Security, why)
}

/// Routes that are behind no filters.
fn unfiltered(routes: &Arc<RouteConfiguration>, name: &str) -> Result<RouteTable, MeshError> {
    compile(Arc::clone(routes), &HttpManager::new(RouteSource::Inline(Arc::clone(routes))), name)
}

fn compile(routes: Arc<RouteConfiguration>, http: &HttpManager, name: &str) -> Result<RouteTable, MeshError> {
    let compiled = RouteTable::compile(routes, http, &FilterRegistry::default(), &States::default(), name);
    compiled.map_err(|invalid| MeshError::new(ErrorKind::UnknownTarget, invalid.to_string()))
}

fn other(name: &str) -> MeshError {
    MeshError::new(ErrorKind::UnknownTarget, format!("listener {name} is not of the kind that is needed"))
}

fn resource(snapshot: &Snapshot, client: &Client, kind: Kind, name: &str) -> Result<Option<Resource>, MeshError> {
    let of = match kind {
        Kind::Listener => ResourceType::Listener,
        Kind::Route => ResourceType::Route,
        Kind::Cluster => ResourceType::Cluster,
        Kind::Endpoints => ResourceType::Endpoints,
        Kind::Secret => return Ok(None),
    };
    let Some(encoded) = snapshot.resource(client, kind, name) else { return Ok(None) };
    let decoded = decode(of, &encoded.body, &Options::default());
    let decoded = decoded.map_err(|invalid| MeshError::new(ErrorKind::UnknownTarget, invalid.to_string()))?;
    Ok(Some(decoded.resource))
}

fn told(snapshot: &Snapshot, client: &Client, name: &ClusterName, depth: usize) -> Result<Told, MeshError> {
    let nowhere = || Told::Nowhere(format!("cluster {name} leads nowhere: nothing describes what it would be made of"));
    let Some(Resource::Cluster(cluster)) = resource(snapshot, client, Kind::Cluster, name.as_str())? else {
        return Ok(nowhere());
    };
    Ok(match &cluster.kind {
        _ if cluster.leads_nowhere() || cluster.name.as_str() == BLACK_HOLE => nowhere(),
        ClusterKind::Aggregate(parts) if depth > 0 => {
            let parts =
                parts.iter().map(|part| told(snapshot, client, part, depth - 1)).collect::<Result<Vec<_>, _>>()?;
            Told::Leaves(parts.iter().flat_map(Told::leaves).cloned().collect())
        }
        _ => Told::Leaves(vec![cluster]),
    })
}
