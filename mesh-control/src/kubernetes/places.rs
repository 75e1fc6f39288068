//! Who serves a cluster's services: EndpointSlices, the Pods behind them, and the Nodes that these are on, put together.
//!
//! Conditions are read as Istio reads them: an endpoint is called while it is `ready`; one that ends and still serves goes on
//! with the requests of its sessions, where the service has any. `publishNotReadyAddresses` is Kubernetes' own to apply.

mod read;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::identity::{SpiffeId, TrustDomain};

use super::kinds::Use;
use super::known::{Change, Name};
use crate::catalog::TLS_MODE;
use crate::registry::service::parse_locality;
use crate::registry::workload::Health;
use crate::registry::{Discovered, ServiceName};

/// Where a Pod says where it is, in place of its node (Istio's).
const LOCALITY: &str = "istio-locality";

/// All that is known of who serves what.
#[derive(Debug, Default)]
pub(super) struct Places {
    services: HashMap<ServiceName, ServiceFacts>,
    slices: BTreeMap<Name, Slice>,
    /// The slices of each service.
    of_service: HashMap<ServiceName, BTreeSet<Name>>,
    /// The services of each Pod.
    of_pod: HashMap<Name, HashSet<ServiceName>>,
    pods: HashMap<Name, Pod>,
    nodes: HashMap<Arc<str>, [Arc<str>; 3]>,
}

#[derive(Debug, Default, PartialEq)]
struct ServiceFacts {
    /// The family of addresses that comes first.
    family: Option<String>,
    has_sessions: bool,
}

#[derive(Debug, PartialEq)]
struct Slice {
    service: ServiceName,
    family: String,
    ports: Arc<BTreeMap<String, u16>>,
    endpoints: Vec<SliceEndpoint>,
}

#[derive(Debug, PartialEq)]
struct SliceEndpoint {
    addresses: Vec<IpAddr>,
    is_ready: bool,
    is_leaving: bool,
    pod: Option<Name>,
    node: Option<Arc<str>>,
    zone: Option<Arc<str>>,
}

#[derive(Debug, PartialEq)]
struct Pod {
    labels: Arc<BTreeMap<String, String>>,
    account: String,
    node: Option<Arc<str>>,
    workload: Arc<str>,
}

impl Places {
    /// Takes in a change, and adds the services that it concerns.
    ///
    /// # Errors
    /// Why an object cannot be read; what was known of it stays.
    pub(super) fn take(
        &mut self,
        of: Use,
        Change { name, object }: &Change,
        touched: &mut BTreeSet<ServiceName>,
    ) -> Result<(), String> {
        match of {
            Use::Slice => self.slice(name, object.as_ref().map(read::slice).transpose()?.flatten(), touched),
            Use::Pod => {
                let pod = object.as_ref().map(|object| read::pod(name, object)).transpose()?;
                let is_other = match pod {
                    Some(pod) if self.pods.get(name) == Some(&pod) => false,
                    Some(pod) => {
                        self.pods.insert(name.clone(), pod);
                        true
                    }
                    None => self.pods.remove(name).is_some(),
                };
                if is_other {
                    touched.extend(self.of_pod.get(name).into_iter().flatten().cloned());
                }
            }
            Use::Node => {
                let before = match object.as_ref().map(read::node).transpose()? {
                    Some(node) => self.nodes.insert(name.1.clone(), node),
                    None => self.nodes.remove(&name.1),
                };
                if before.as_ref() != self.nodes.get(&name.1) {
                    self.of_node(&name.1, touched);
                }
            }
            Use::Service => {
                let before = match object.as_ref().map(read::service).transpose()? {
                    Some(facts) => self.services.insert(name.clone(), facts),
                    None => self.services.remove(name),
                };
                if before.as_ref() != self.services.get(name) {
                    touched.insert(name.clone());
                }
            }
            Use::Object | Use::Settings | Use::Class => {}
        }
        Ok(())
    }

    fn slice(&mut self, name: &Name, slice: Option<Slice>, touched: &mut BTreeSet<ServiceName>) {
        let before = self.slices.remove(name);
        let is_same = before == slice;
        if let Some(before) = before.filter(|_| !is_same) {
            if let Some(slices) = self.of_service.get_mut(&before.service) {
                slices.remove(name);
            }
            self.forget_pods(&before);
            touched.insert(before.service);
        }
        let Some(slice) = slice else { return };
        if !is_same {
            self.of_service.entry(slice.service.clone()).or_default().insert(name.clone());
            for pod in slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.clone()) {
                self.of_pod.entry(pod).or_default().insert(slice.service.clone());
            }
            touched.insert(slice.service.clone());
        }
        self.slices.insert(name.clone(), slice);
    }

    /// Of a slice that is gone, Pods are still the service's where another slice has them.
    fn forget_pods(&mut self, gone: &Slice) {
        let others = self.of_service.get(&gone.service).into_iter().flatten().filter_map(|name| self.slices.get(name));
        let held: HashSet<&Name> =
            others.flat_map(|slice| &slice.endpoints).filter_map(|one| one.pod.as_ref()).collect();
        for pod in gone.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref()) {
            if !held.contains(pod)
                && let Some(services) = self.of_pod.get_mut(pod)
            {
                services.remove(&gone.service);
                if services.is_empty() {
                    self.of_pod.remove(pod);
                }
            }
        }
    }

    fn of_node(&self, node: &str, touched: &mut BTreeSet<ServiceName>) {
        let is_there = |endpoint: &SliceEndpoint| self.node_of(endpoint).is_some_and(|one| **one == *node);
        let slices = self.slices.values().filter(|slice| slice.endpoints.iter().any(is_there));
        touched.extend(slices.map(|slice| slice.service.clone()));
    }

    fn node_of<'s>(&'s self, endpoint: &'s SliceEndpoint) -> Option<&'s Arc<str>> {
        let of_pod = || endpoint.pod.as_ref().and_then(|pod| self.pods.get(pod)?.node.as_ref());
        endpoint.node.as_ref().or_else(of_pod)
    }

    /// Who serves a service, in a fixed order, each address once.
    pub(super) fn of(&self, service: &ServiceName, domain: &TrustDomain) -> Arc<[Discovered]> {
        let slices = self.of_service.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name));
        let slices: Vec<&Slice> = slices.collect();
        let facts = self.services.get(service);
        // Of a service with two families, each Pod has an address of each.
        let first = facts.and_then(|facts| facts.family.as_deref());
        let first = first.filter(|first| slices.iter().any(|slice| slice.family == *first));
        let has_sessions = facts.is_some_and(|facts| facts.has_sessions);
        let mut all: BTreeMap<(IpAddr, Arc<BTreeMap<String, u16>>), Discovered> = BTreeMap::new();
        for slice in slices.into_iter().filter(|slice| first.is_none_or(|first| slice.family == first)) {
            for endpoint in &slice.endpoints {
                for address in &endpoint.addresses {
                    let found = self.discovered(slice, endpoint, *address, has_sessions, domain);
                    let known = all.entry((*address, slice.ports.clone())).or_insert_with(|| found.clone());
                    // While an endpoint moves from slice to slice, it is in both.
                    if rank(&found) < rank(known) {
                        *known = found;
                    }
                }
            }
        }
        all.into_values().collect()
    }

    fn discovered(
        &self,
        slice: &Slice,
        endpoint: &SliceEndpoint,
        address: IpAddr,
        has_sessions: bool,
        domain: &TrustDomain,
    ) -> Discovered {
        let pod = endpoint.pod.as_ref().and_then(|pod| self.pods.get(pod));
        let namespace = &slice.service.0;
        let workload = pod.map_or_else(|| slice.service.1.clone(), |pod| pod.workload.clone());
        let mut found = Discovered::new(address, namespace, &workload, slice.ports.clone());
        found.health = match endpoint {
            SliceEndpoint { is_ready: true, .. } => Some(Health::Healthy),
            SliceEndpoint { is_leaving: true, .. } if has_sessions => Some(Health::Draining),
            _ => None,
        };
        let own = pod.and_then(|pod| pod.labels.get(LOCALITY));
        let of_node = || self.nodes.get(self.node_of(endpoint)?).cloned();
        found.locality = match own {
            // In a label there are no slashes.
            Some(own) if own.contains('/') => parse_locality(own),
            Some(own) => parse_locality(&own.replace('.', "/")),
            None => of_node().filter(|place| place.iter().any(|part| !part.is_empty())).unwrap_or_else(|| {
                let zone = endpoint.zone.clone().unwrap_or_default();
                [Arc::default(), zone, Arc::default()]
            }),
        };
        if let Some(pod) = pod {
            found.labels = pod.labels.clone();
            found.mutual_tls = pod.labels.get(TLS_MODE).is_some_and(|mode| mode == "istio");
            found.identity = SpiffeId::of_workload(domain, namespace, &pod.account).ok();
        }
        found
    }
}

/// The better, the less.
fn rank(endpoint: &Discovered) -> u8 {
    match endpoint.health {
        Some(Health::Healthy) => 0,
        Some(_) => 1,
        None => 2,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::read::{REGION, SERVICE_NAME, TEMPLATE_HASH, ZONE};
    use super::*;
    use crate::config::istio::service;

    fn change(namespace: &str, name: &str, object: Option<Value>) -> Change {
        Change { name: (namespace.into(), name.into()), object }
    }

    fn slice(endpoints: Value) -> Value {
        json!({
            "metadata": {"namespace": "shop", "name": "s", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
            "endpoints": endpoints,
        })
    }

    fn web() -> ServiceName {
        ("shop".into(), "web".into())
    }

    fn take(places: &mut Places, of: Use, name: &str, object: Option<Value>) -> Vec<String> {
        let mut touched = BTreeSet::new();
        let namespace = if of == Use::Node { "" } else { "shop" };
        places.take(of, &change(namespace, name, object), &mut touched).expect("readable");
        touched.iter().map(|name| name.1.to_string()).collect()
    }

    fn of(places: &Places) -> Vec<Discovered> {
        places.of(&web(), &TrustDomain::default()).to_vec()
    }

    #[test]
    fn an_endpoint_is_its_pod_on_its_node() {
        let mut places = Places::default();
        let endpoint = json!([{"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "web-1"}}]);
        assert_eq!(take(&mut places, Use::Slice, "s", Some(slice(endpoint.clone()))), ["web"]);
        assert_eq!(take(&mut places, Use::Slice, "s", Some(slice(endpoint))), [""; 0], "the same again");
        let [bare] = of(&places).try_into().expect("one");
        assert_eq!((&*bare.workload, bare.health, bare.identity.is_some()), ("web", Some(Health::Healthy), false));
        let pod = json!({
            "metadata": {
                "labels": {"version": "v2", TEMPLATE_HASH: "5d", TLS_MODE: "istio"},
                "ownerReferences": [{"kind": "ReplicaSet", "name": "web-v2-5d", "controller": true}],
            },
            "spec": {"serviceAccountName": "seller", "nodeName": "n1"},
        });
        assert_eq!(take(&mut places, Use::Pod, "web-1", Some(pod.clone())), ["web"]);
        assert_eq!(take(&mut places, Use::Pod, "web-1", Some(pod)), [""; 0], "the same again");
        assert_eq!(take(&mut places, Use::Pod, "other", Some(json!({}))), [""; 0]);
        let node = json!({"metadata": {"labels": {REGION[0]: "r", ZONE[0]: "z"}}});
        assert_eq!(take(&mut places, Use::Node, "n1", Some(node)), ["web"]);
        let [found] = of(&places).try_into().expect("one");
        assert_eq!((&*found.workload, found.labels["version"].as_str()), ("web-v2", "v2"));
        assert_eq!(found.locality.each_ref().map(|part| &**part), ["r", "z", ""]);
        assert_eq!(found.ports.iter().collect::<Vec<_>>(), [(&"http".to_owned(), &8080)]);
        assert!(found.mutual_tls);
        let identity = found.identity.map(|identity| identity.to_string());
        assert_eq!(identity.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/seller"));
        assert_eq!(take(&mut places, Use::Slice, "s", None), ["web"]);
        assert!(of(&places).is_empty() && places.of_pod.is_empty());
    }

    #[test]
    fn who_is_not_ready_is_not_called_and_who_leaves_keeps_its_sessions() {
        let mut places = Places::default();
        let at = |address: &str, conditions: Value| json!({"addresses": [address], "conditions": conditions});
        let leaving = json!({"ready": false, "serving": true, "terminating": true});
        let endpoints = json!([
            at("10.0.0.1", json!({})),
            at("10.0.0.2", json!({"ready": false, "serving": false})),
            at("10.0.0.3", leaving),
            at("10.0.0.4", json!({"ready": false, "serving": false, "terminating": true})),
            at("no address", json!({})),
        ]);
        take(&mut places, Use::Slice, "s", Some(slice(endpoints)));
        let health = |places: &Places| of(places).iter().map(|one| one.health).collect::<Vec<_>>();
        assert_eq!(health(&places), [Some(Health::Healthy), None, None, None]);
        let sticky = json!({"metadata": {"labels": {service::SESSION_COOKIE: "c"}}, "spec": {}});
        assert_eq!(take(&mut places, Use::Service, "web", Some(sticky)), ["web"]);
        assert_eq!(health(&places), [Some(Health::Healthy), None, Some(Health::Draining), None]);
    }

    #[test]
    fn an_endpoint_that_moves_from_slice_to_slice_is_one_and_so_is_one_of_two_families() {
        let mut places = Places::default();
        let not_ready = json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}]);
        take(&mut places, Use::Slice, "a", Some(slice(json!([{"addresses": ["10.0.0.1"]}]))));
        take(&mut places, Use::Slice, "b", Some(slice(not_ready)));
        let mut six = slice(json!([{"addresses": ["fd00::1"]}]));
        six["addressType"] = "IPv6".into();
        take(&mut places, Use::Slice, "c", Some(six));
        take(&mut places, Use::Service, "web", Some(json!({"spec": {"ipFamilies": ["IPv4", "IPv6"]}})));
        let [found] = of(&places).try_into().expect("one");
        assert_eq!(found.health, Some(Health::Healthy));
        take(&mut places, Use::Service, "web", Some(json!({"spec": {"ipFamilies": ["IPv6", "IPv4"]}})));
        let [found] = of(&places).try_into().expect("one");
        assert_eq!(found.address.to_string(), "fd00::1");
    }

    #[test]
    fn an_object_that_cannot_be_read_leaves_what_was_known() {
        let mut places = Places::default();
        take(&mut places, Use::Slice, "s", Some(slice(json!([{"addresses": ["10.0.0.1"]}]))));
        for wrong in [json!(1), json!({"addressType": 4}), slice(json!([{"addresses": 5}]))] {
            let mut touched = BTreeSet::new();
            assert!(places.take(Use::Slice, &change("shop", "s", Some(wrong)), &mut touched).is_err());
            assert_eq!(of(&places).len(), 1);
        }
    }
}
