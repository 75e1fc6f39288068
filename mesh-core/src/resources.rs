//! Scratch copy of the boundary between the xDS client and the store.

use std::sync::Arc;

use crate::model::{Cluster, Endpoints, Listener, RouteConfiguration};

/// The kinds of resources, in the order in which one leads to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// LDS.
    Listener,
    /// RDS.
    Route,
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
}

/// What names a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceKey {
    /// Its kind.
    pub kind: ResourceType,
    /// Its name.
    pub name: Arc<str>,
}

/// A validated resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// LDS.
    Listener(Arc<Listener>),
    /// RDS.
    Route(Arc<RouteConfiguration>),
    /// CDS.
    Cluster(Arc<Cluster>),
    /// EDS.
    Endpoints(Arc<Endpoints>),
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The resource is there, new or changed.
    Put(ResourceKey, Resource),
    /// It is not, and why.
    Absent(ResourceKey, Arc<str>),
}

/// Changes that become visible together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// In order.
    pub changes: Vec<Change>,
}

/// What the store wants next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Names to subscribe to.
    pub subscribe: Vec<ResourceKey>,
    /// Names to give up.
    pub unsubscribe: Vec<ResourceKey>,
}
