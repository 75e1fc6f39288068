//! One protocol machine on a bench: events go in by hand, time passes by hand.

use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::discovery::v3::{self as discovery, ResourceError, ResourceName};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc::Status;

use crate::resources::{Change, ResourceKey, ResourceType};
use crate::testing::resources::{api_listener, eds_cluster, endpoints, pack, routes_to};
use crate::xds::bootstrap::Server;
use crate::xds::cache::{Cache, Step};
use crate::xds::client_status::{ResourceState, ResourceStatus};
use crate::xds::decode::Options;
use crate::xds::delta::Delta;
use crate::xds::names::type_url;
use crate::xds::sotw::Sotw;

pub(crate) use crate::resources::ResourceType::{Cluster, Endpoints, Listener, Route};

/// A machine with its cache, server and clock.
pub(crate) struct Rig<M> {
    pub(crate) machine: M,
    pub(crate) cache: Cache,
    server: Server,
    node: core::Node,
    options: Options,
    start: Instant,
    pub(crate) now: Instant,
    changes: Vec<Change>,
}

impl<M: Default> Rig<M> {
    pub(crate) fn new(features: &[&str]) -> Self {
        let start = Instant::now();
        Rig {
            machine: M::default(),
            cache: Cache::new("node-1"),
            server: features.iter().fold(Server::new("mesh:1"), |server, feature| server.feature(*feature)),
            node: core::Node { id: "node-1".into(), ..Default::default() },
            options: Options::default(),
            start,
            now: start,
            changes: Vec::new(),
        }
    }
}

impl<M> Rig<M> {
    /// What the store was told since the last time.
    pub(crate) fn told(&mut self) -> Vec<String> {
        let told = std::mem::take(&mut self.changes);
        told.iter()
            .map(|change| match change {
                Change::Put(key, _) => format!("put {}", key.name),
                Change::Absent(key, reason) => {
                    assert!(reason.contains("mesh:1") && reason.contains("node-1"), "{reason}");
                    assert!(reason.starts_with(&key.to_string()), "{reason}");
                    format!("absent {}", key.name)
                }
            })
            .collect()
    }

    pub(crate) fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    pub(crate) fn reasons(&mut self) -> Vec<String> {
        let told = std::mem::take(&mut self.changes);
        told.into_iter()
            .filter_map(|change| match change {
                Change::Absent(_, reason) => Some(reason.to_string()),
                Change::Put(..) => None,
            })
            .collect()
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    pub(crate) fn status(&self, kind: ResourceType, name: &str) -> ResourceStatus {
        let key = ResourceKey::new(kind, name);
        let mut all = self.cache.status(self.now, std::time::SystemTime::now());
        all.find(|status| status.key == key).unwrap_or_else(|| panic!("{key} is not subscribed"))
    }

    pub(crate) fn state(&self, kind: ResourceType, name: &str) -> ResourceState {
        self.status(kind, name).state
    }

    fn subscribe(&mut self, add: &[(ResourceType, &str)], remove: &[(ResourceType, &str)]) -> Vec<ResourceKey> {
        let mut changed = Vec::new();
        for (kind, name) in remove {
            let key = ResourceKey::new(*kind, *name);
            if self.cache.unsubscribe(&key, self.now) {
                changed.push(key);
            }
        }
        for (kind, name) in add {
            let key = ResourceKey::new(*kind, *name);
            if self.cache.subscribe(&key, &mut self.changes) {
                changed.push(key);
            }
        }
        changed
    }
}

macro_rules! machine {
    ($machine:ident, $request:ident, $response:ident) => {
        impl Rig<$machine> {
            pub(crate) fn want(&mut self, add: &[(ResourceType, &str)]) -> Vec<discovery::$request> {
                self.interest(add, &[])
            }

            pub(crate) fn interest(
                &mut self,
                add: &[(ResourceType, &str)],
                remove: &[(ResourceType, &str)],
            ) -> Vec<discovery::$request> {
                let changed = self.subscribe(add, remove);
                let step = Step { index: 0, server: &self.server, now: self.now, out: &mut self.changes };
                self.machine.changed(&self.cache, &step, &changed)
            }

            pub(crate) fn open(&mut self) -> Vec<discovery::$request> {
                let step = Step { index: 0, server: &self.server, now: self.now, out: &mut self.changes };
                self.machine.opened(&self.cache, &step, &self.node)
            }

            pub(crate) fn close(&mut self) {
                self.machine.closed();
            }

            pub(crate) fn receive(&mut self, response: discovery::$response) -> Option<discovery::$request> {
                let mut step = Step { index: 0, server: &self.server, now: self.now, out: &mut self.changes };
                self.machine.response(&mut self.cache, &mut step, response, &self.options).1
            }

            /// Lets time pass and every timer fire that is due by then.
            pub(crate) fn wait(&mut self, seconds: u64) {
                self.pass(Duration::from_secs(seconds));
                let mut step = Step { index: 0, server: &self.server, now: self.now, out: &mut self.changes };
                self.machine.expire(&mut self.cache, &mut step);
                self.cache.forget(self.now);
            }
        }
    };
}

machine!(Sotw, DiscoveryRequest, DiscoveryResponse);
machine!(Delta, DeltaDiscoveryRequest, DeltaDiscoveryResponse);

/// A valid resource. `variant` makes resources of the same name differ.
pub(crate) fn good(kind: ResourceType, name: &str, variant: u16) -> Any {
    match kind {
        Listener => pack(&api_listener(name, &format!("routes-{variant}"))),
        Route => pack(&routes_to(name, &format!("cluster-{variant}"))),
        Cluster => {
            let mut cluster = eds_cluster(name);
            if let Some(config) = &mut cluster.eds_cluster_config {
                config.service_name = format!("endpoints-{variant}");
            }
            pack(&cluster)
        }
        Endpoints => pack(&endpoints(name, &[("10.0.0.1", 1 + variant)])),
        ResourceType::Secret => unreachable!("secrets are like any other resource that is asked for by name"),
    }
}

/// A resource that has a name and nothing else that it needs.
pub(crate) fn bad(kind: ResourceType, name: &str) -> Any {
    match kind {
        // An assignment with nothing in it is fine, so this one has an endpoint without an address.
        Endpoints => {
            let mut assignment = endpoints(name, &[]);
            assignment.endpoints[0].lb_endpoints.push(Default::default());
            pack(&assignment)
        }
        Route => {
            let mut routes = routes_to(name, "c");
            routes.virtual_hosts[0].domains.clear();
            pack(&routes)
        }
        _ => {
            let value = [&[0x0a, name.len() as u8], name.as_bytes()].concat();
            Any { type_url: type_url(kind).into(), value }
        }
    }
}

/// Bytes that are no Protobuf.
pub(crate) fn garbage(kind: ResourceType) -> Any {
    Any { type_url: type_url(kind).into(), value: vec![0xff, 0xff] }
}

pub(crate) fn resource_error(name: &str, code: i32) -> ResourceError {
    ResourceError {
        resource_name: Some(ResourceName { name: name.into(), ..Default::default() }),
        error_detail: Some(Status { code, message: "because".into(), details: vec![] }),
    }
}
