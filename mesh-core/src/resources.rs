//! Resources as they are known now, and what they ask for next: LDS → RDS → CDS → EDS as data.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::model::{Cluster, Endpoints, Listener, RouteConfiguration, Secret};

/// The kinds of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ResourceType {
    /// LDS
    Listener,
    /// RDS
    Route,
    /// CDS
    Cluster,
    /// EDS
    Endpoints,
    /// SDS
    Secret,
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ResourceType::Listener => "listener",
            ResourceType::Route => "route configuration",
            ResourceType::Cluster => "cluster",
            ResourceType::Endpoints => "endpoints",
            ResourceType::Secret => "secret",
        })
    }
}

/// One resource by kind and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceKey {
    /// Its kind.
    pub kind: ResourceType,
    /// Its name.
    pub name: Arc<str>,
}

impl ResourceKey {
    /// The key of a resource.
    pub fn new(kind: ResourceType, name: impl Into<Arc<str>>) -> Self {
        ResourceKey { kind, name: name.into() }
    }

    /// All of a kind that there are, whatever their names: what a server has for this client. Of listeners alone it can be asked for.
    pub fn all(kind: ResourceType) -> Self {
        ResourceKey::new(kind, "*")
    }

    /// Whether it is [all](ResourceKey::all) listeners. Of another kind it is a name that nothing can have.
    pub fn is_all(&self) -> bool {
        self.kind == ResourceType::Listener && &*self.name == "*"
    }

    /// Where the addresses of a STRICT_DNS cluster arrive once its names are resolved.
    pub fn resolved(cluster: &str) -> Self {
        ResourceKey::new(ResourceType::Endpoints, format!("dns:{cluster}"))
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// The validated content of a resource.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Resource {
    /// LDS
    Listener(Arc<Listener>),
    /// RDS
    Route(Arc<RouteConfiguration>),
    /// CDS
    Cluster(Arc<Cluster>),
    /// EDS
    Endpoints(Arc<Endpoints>),
    /// SDS
    Secret(Arc<Secret>),
}

/// One thing learned.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The resource is now this.
    Put(ResourceKey, Resource),
    /// There is no such resource, and this is how that is known. The text names the resource, the server and
    /// the node.
    Absent(ResourceKey, Arc<str>),
}

/// Things learned together; they become visible together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Update {
    /// In the order learned.
    pub changes: Vec<Change>,
}

/// What a source should ask for from now on, and what no longer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Wanted since the last time.
    pub subscribe: Vec<ResourceKey>,
    /// No longer wanted.
    pub unsubscribe: Vec<ResourceKey>,
}

impl Progress {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.subscribe.is_empty() && self.unsubscribe.is_empty()
    }
}

/// What is known of one resource that somebody asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Known<T> {
    /// Nothing yet.
    Unknown,
    /// That it does not exist or cannot be used, and why.
    Absent(Arc<str>),
    /// Its content.
    Present(T),
}

/// Everything that is wanted, with what is known of it.
#[derive(Debug, Default)]
pub struct Resources {
    entries: HashMap<ResourceKey, Entry>,
}

#[derive(Debug)]
struct Entry {
    known: Known<Resource>,
    users: usize,
}

impl Resources {
    /// Counts one more user of a resource; `true` if it is the first.
    pub fn acquire(&mut self, key: &ResourceKey) -> bool {
        let entry = self.entries.entry(key.clone()).or_insert(Entry { known: Known::Unknown, users: 0 });
        entry.users += 1;
        entry.users == 1
    }

    /// Counts one user less; `true` if it was the last. What is known stays until it is [forgotten](Resources::forget), for who
    /// wants it again before the source is told that nobody does.
    pub fn release(&mut self, key: &ResourceKey) -> bool {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.users > 0) else { return false };
        entry.users -= 1;
        entry.users == 0
    }

    /// Forgets a resource that nobody uses; `true` if there was one.
    pub fn forget(&mut self, key: &ResourceKey) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.users == 0) && self.entries.remove(key).is_some()
    }

    /// Takes in what was learned; the key if somebody uses the resource and it is news to them.
    pub fn merge(&mut self, change: Change) -> Option<ResourceKey> {
        let (key, known) = match change {
            Change::Put(key, resource) => (key, Known::Present(resource)),
            Change::Absent(key, reason) => (key, Known::Absent(reason)),
        };
        let entry = self.entries.get_mut(&key)?;
        if entry.known == known {
            return None;
        }
        entry.known = known;
        Some(key)
    }

    /// A listener.
    pub fn listener(&self, name: &str) -> Known<Arc<Listener>> {
        self.get(ResourceType::Listener, name, |resource| match resource {
            Resource::Listener(listener) => Some(Arc::clone(listener)),
            _ => None,
        })
    }

    /// A route configuration.
    pub fn route(&self, name: &str) -> Known<Arc<RouteConfiguration>> {
        self.get(ResourceType::Route, name, |resource| match resource {
            Resource::Route(route) => Some(Arc::clone(route)),
            _ => None,
        })
    }

    /// A cluster.
    pub fn cluster(&self, name: &str) -> Known<Arc<Cluster>> {
        self.get(ResourceType::Cluster, name, |resource| match resource {
            Resource::Cluster(cluster) => Some(Arc::clone(cluster)),
            _ => None,
        })
    }

    /// The endpoints of a service.
    pub fn endpoints(&self, name: &str) -> Known<Arc<Endpoints>> {
        self.get(ResourceType::Endpoints, name, |resource| match resource {
            Resource::Endpoints(endpoints) => Some(Arc::clone(endpoints)),
            _ => None,
        })
    }

    /// A secret.
    pub fn secret(&self, name: &str) -> Known<Arc<Secret>> {
        self.get(ResourceType::Secret, name, |resource| match resource {
            Resource::Secret(secret) => Some(Arc::clone(secret)),
            _ => None,
        })
    }

    fn get<T>(&self, kind: ResourceType, name: &str, content: impl Fn(&Resource) -> Option<T>) -> Known<T> {
        match self.entries.get(&ResourceKey::new(kind, name)).map(|entry| &entry.known) {
            None | Some(Known::Unknown) => Known::Unknown,
            Some(Known::Absent(reason)) => Known::Absent(Arc::clone(reason)),
            Some(Known::Present(resource)) => match content(resource) {
                Some(content) => Known::Present(content),
                None => Known::Absent(format!("{kind} {name}: a resource of another kind was delivered").into()),
            },
        }
    }
}
