//! Which services there are and where they are reached: from `Service` and `ServiceEntry`, with endpoints
//! that are written down, selected by labels, or registered by the workloads themselves.
//!
//! [`Services`] changes with the configuration; [`Endpoints`] changes with every workload that comes or
//! goes, and shares everything that a change does not touch.

pub mod endpoints;
pub mod host;
pub mod protocol;
pub mod service;
pub mod workload;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::config::file::{Object, Objects};
use crate::config::istio::workload_entry::WorkloadEntry;
use crate::config::istio::workload_group::WorkloadGroup;
use crate::config::{Code, Diagnostic, Severity};

pub use endpoints::{Endpoint, ServiceEndpoints};
pub use service::{Discovery, Service, ServicePort, Visibility, WrittenEndpoint};
pub use workload::{Health, Workload};

/// The place of a service in [`Services`], and of its endpoints in [`Endpoints`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(usize);

/// All services of a configuration.
#[derive(Debug, Default)]
pub struct Services {
    all: Vec<Arc<Service>>,
    by_host: HashMap<Arc<str>, Vec<ServiceId>>,
    /// The longest suffix first.
    wildcards: Vec<(Arc<str>, Vec<ServiceId>)>,
    by_namespace: HashMap<Arc<str>, Vec<ServiceId>>,
    /// WorkloadEntries that each service selects.
    selected: Vec<Vec<WrittenEndpoint>>,
    groups: HashMap<(Arc<str>, Arc<str>), Arc<Object<WorkloadGroup>>>,
}

impl Services {
    /// The services of these objects, and what is to be said about them.
    pub fn new(objects: &Objects) -> (Services, Vec<Diagnostic>) {
        let mut services = Services::default();
        let mut found = Vec::new();
        let mut all: Vec<Service> = objects
            .services
            .iter()
            .map(|object| service::of_service(object))
            .collect();
        all.extend(
            objects
                .service_entries
                .iter()
                .flat_map(|object| service::of_entry(object)),
        );
        all.sort_by(|a, b| {
            (&a.host, &a.namespace, a.rank(&a.namespace)).cmp(&(
                &b.host,
                &b.namespace,
                b.rank(&b.namespace),
            ))
        });
        for service in all {
            services.add(service, &mut found);
        }
        for (host, ids) in &services.by_host {
            if host.starts_with('*') {
                services.wildcards.push((host.clone(), ids.clone()));
            }
        }
        services
            .wildcards
            .sort_by(|a, b| (b.0.len(), &a.0).cmp(&(a.0.len(), &b.0)));
        services.selected = services
            .all
            .iter()
            .map(|service| selected(service, objects))
            .collect();
        for group in &objects.workload_groups {
            let key = (group.meta.namespace.clone(), group.meta.name.clone());
            services.groups.insert(key, group.clone());
        }
        (services, found)
    }

    fn add(&mut self, service: Service, found: &mut Vec<Diagnostic>) {
        let ids = self.by_host.entry(service.host.clone()).or_default();
        let same = ids.iter().find_map(|id| {
            self.all
                .get(id.0)
                .filter(|other| other.namespace == service.namespace)
        });
        if let Some(other) = same {
            let message = format!(
                "host {} is already that of {} ({}), which is the one that counts",
                service.host,
                other.meta.id(),
                other.meta.origin
            );
            let origin = &service.meta.origin;
            let finding = Diagnostic::at(origin, Severity::Warning, Code::Conflict, message);
            found.push(finding.object(service.meta.id()));
            return;
        }
        let id = ServiceId(self.all.len());
        ids.push(id);
        self.by_namespace
            .entry(service.namespace.clone())
            .or_default()
            .push(id);
        self.all.push(Arc::new(service));
    }

    /// All services, with their places.
    pub fn iter(&self) -> impl Iterator<Item = (ServiceId, &Arc<Service>)> {
        self.all
            .iter()
            .enumerate()
            .map(|(index, service)| (ServiceId(index), service))
    }

    /// The service of this exact host that a client of this namespace sees.
    pub fn exact(&self, host: &str, client_namespace: &str) -> Option<(ServiceId, &Arc<Service>)> {
        self.best(self.by_host.get(host)?, client_namespace)
    }

    /// The service that answers to this full host name, exactly or by its wildcard.
    pub fn find(&self, host: &str, client_namespace: &str) -> Option<(ServiceId, &Arc<Service>)> {
        self.exact(host, client_namespace).or_else(|| {
            let mut covering = self
                .wildcards
                .iter()
                .filter(|(pattern, _)| host::covers(pattern, host));
            covering.find_map(|(_, ids)| self.best(ids, client_namespace))
        })
    }

    fn best(
        &self,
        ids: &[ServiceId],
        client_namespace: &str,
    ) -> Option<(ServiceId, &Arc<Service>)> {
        ids.iter()
            .filter_map(|id| Some((*id, self.all.get(id.0)?)))
            .filter(|(_, service)| service.visibility.includes(client_namespace))
            .min_by(|(_, a), (_, b)| a.rank(client_namespace).cmp(&b.rank(client_namespace)))
    }

    fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = (ServiceId, &Arc<Service>)> {
        let ids = self
            .by_namespace
            .get(namespace)
            .map(Vec::as_slice)
            .unwrap_or_default();
        ids.iter().filter_map(|id| Some((*id, self.all.get(id.0)?)))
    }

    fn written(&self, id: ServiceId) -> impl Iterator<Item = &WrittenEndpoint> {
        let own = self
            .all
            .get(id.0)
            .into_iter()
            .flat_map(|service| &service.endpoints);
        own.chain(self.selected.get(id.0).into_iter().flatten())
    }

    /// Endpoints of a service that is found by DNS: names or addresses.
    pub fn dns_endpoints(&self, id: ServiceId) -> impl Iterator<Item = &WrittenEndpoint> {
        self.written(id)
    }

    fn group_of(&self, workload: &Workload) -> Option<&Object<WorkloadGroup>> {
        let group = workload.group.as_ref()?;
        let key = (workload.namespace.clone(), group.clone());
        self.groups.get(&key).map(|object| &**object)
    }
}

fn selected(service: &Service, objects: &Objects) -> Vec<WrittenEndpoint> {
    let Some(selector) = &service.selector else {
        return Vec::new();
    };
    let own = |object: &&Arc<Object<WorkloadEntry>>| object.meta.namespace == service.namespace;
    let mut entries: Vec<&Arc<Object<WorkloadEntry>>> =
        objects.workload_entries.iter().filter(own).collect();
    entries.sort_by(|a, b| a.meta.order().cmp(&b.meta.order()));
    entries
        .into_iter()
        .filter_map(|object| {
            // The object's own labels win over those of its specification (Istio: conversion.go).
            let mut labels = object.spec.labels.clone();
            labels.extend(object.meta.labels.clone());
            if !service::is_subset(selector, &labels) {
                return None;
            }
            WrittenEndpoint::new(&object.spec, &object.meta, labels)
        })
        .collect()
}

/// The endpoints of all services, and who registered: the state that [`Snapshot`]s are taken of.
#[derive(Debug, Default)]
pub struct Endpoints {
    by_service: Vec<Arc<ServiceEndpoints>>,
    /// As they registered.
    workloads: HashMap<Arc<str>, Arc<Workload>>,
    /// With what their group adds, by namespace and key.
    by_namespace: HashMap<Arc<str>, BTreeMap<Arc<str>, Arc<Workload>>>,
}

/// The endpoints of all services at one moment, immutable.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    by_service: Vec<Arc<ServiceEndpoints>>,
}

impl Snapshot {
    /// The endpoints of a service.
    pub fn of(&self, id: ServiceId) -> Option<&Arc<ServiceEndpoints>> {
        self.by_service.get(id.0)
    }
}

impl Endpoints {
    /// The endpoints of these services, with the workloads that registered so far. Sets that come out as
    /// they were are kept, encodings and all.
    pub fn new(services: &Services, before: &Endpoints, before_services: &Services) -> Endpoints {
        let mut endpoints = Endpoints {
            workloads: before.workloads.clone(),
            ..Endpoints::default()
        };
        for workload in before.workloads.values() {
            endpoints.place(services, workload);
        }
        for (id, service) in services.iter() {
            let fresh = endpoints.collect(services, id, service);
            let old = before_services
                .exact(&service.host, &service.namespace)
                .filter(|(_, old)| old.namespace == service.namespace)
                .and_then(|(old_id, _)| before.by_service.get(old_id.0))
                .filter(|old| old.is_same(&fresh));
            endpoints
                .by_service
                .push(old.cloned().unwrap_or_else(|| Arc::new(fresh)));
        }
        endpoints
    }

    /// The endpoints of a service.
    pub fn of(&self, id: ServiceId) -> Option<&Arc<ServiceEndpoints>> {
        self.by_service.get(id.0)
    }

    /// The sets as they are now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            by_service: self.by_service.clone(),
        }
    }

    /// Everyone who registered, in the order of their keys.
    pub fn workloads(&self) -> Vec<Arc<Workload>> {
        let mut workloads: Vec<Arc<Workload>> = self.workloads.values().cloned().collect();
        workloads.sort_by(|a, b| a.key.cmp(&b.key));
        workloads
    }

    /// The ports that a workload serves: service by service.
    pub fn served_by(&self, services: &Services, key: &str) -> Vec<(ServiceId, u16)> {
        let Some(workload) = self.workloads.get(key) else {
            return Vec::new();
        };
        let mut served = Vec::new();
        for (id, _) in services.in_namespace(&workload.namespace) {
            let Some(endpoints) = self.of(id) else {
                continue;
            };
            for (port, endpoints) in endpoints.ports() {
                if endpoints
                    .iter()
                    .any(|endpoint| endpoint.key.as_deref() == Some(key))
                {
                    served.push((id, port));
                }
            }
        }
        served
    }

    /// Takes in a workload. Returns whether any set of endpoints is different.
    pub fn register(&mut self, services: &Services, workload: Arc<Workload>) -> bool {
        if self.workloads.get(&workload.key) == Some(&workload) {
            return false;
        }
        let before = self.forget(&workload.key);
        self.workloads
            .insert(workload.key.clone(), workload.clone());
        let placed = self.place(services, &workload);
        let mut touched: Vec<Arc<Workload>> = before.into_iter().collect();
        touched.push(placed);
        self.refresh(services, &touched)
    }

    /// Forgets a workload. Returns whether any set of endpoints is different.
    pub fn unregister(&mut self, services: &Services, key: &str) -> bool {
        match self.forget(key) {
            Some(workload) => self.refresh(services, &[workload]),
            None => false,
        }
    }

    fn place(&mut self, services: &Services, workload: &Arc<Workload>) -> Arc<Workload> {
        let placed = match services.group_of(workload) {
            Some(group) => Arc::new(workload.with_group(&group.spec)),
            None => workload.clone(),
        };
        let namespace = self
            .by_namespace
            .entry(workload.namespace.clone())
            .or_default();
        namespace.insert(workload.key.clone(), placed.clone());
        placed
    }

    fn forget(&mut self, key: &str) -> Option<Arc<Workload>> {
        let workload = self.workloads.remove(key)?;
        self.by_namespace.get_mut(&workload.namespace)?.remove(key)
    }

    fn refresh(&mut self, services: &Services, touched: &[Arc<Workload>]) -> bool {
        let mut changed = false;
        let mut ids: Vec<ServiceId> = Vec::new();
        for workload in touched {
            let hit = services
                .in_namespace(&workload.namespace)
                .filter(|(_, service)| {
                    service.takes_registrations() && service.selects(&workload.labels)
                });
            ids.extend(hit.map(|(id, _)| id));
        }
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let Some(service) = services.all.get(id.0) else {
                continue;
            };
            let fresh = self.collect(services, id, service);
            if let Some(slot) = self.by_service.get_mut(id.0)
                && !slot.is_same(&fresh)
            {
                *slot = Arc::new(fresh);
                changed = true;
            }
        }
        changed
    }

    fn collect(&self, services: &Services, id: ServiceId, service: &Service) -> ServiceEndpoints {
        if service.discovery != Discovery::Registry {
            return ServiceEndpoints::default();
        }
        let workloads = self.by_namespace.get(&service.namespace);
        let workloads = workloads.into_iter().flat_map(BTreeMap::values);
        endpoints::collect(service, services.written(id), workloads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn services(yaml: &str) -> Services {
        let loaded = load::from_texts([("t.yaml", yaml)]).loaded();
        assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
        Services::new(&loaded.objects).0
    }

    const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec:
  selector: {app: reviews}
  ports: [{port: 9080, name: http}]
---
apiVersion: v1
kind: Service
metadata: {name: several, namespace: shop}
spec:
  selector: {app: several}
  ports:
  - {port: 80, name: http, targetPort: 8080}
  - {port: 81, name: admin, targetPort: admin}
";

    fn workload(key: &str, app: &str, address: &str) -> Arc<Workload> {
        Arc::new(Workload::new(key, "shop", key, address.parse().unwrap()).labelled([("app", app)]))
    }

    fn addresses(endpoints: &Endpoints, services: &Services, host: &str, port: u16) -> Vec<String> {
        let (id, _) = services.find(host, "shop").unwrap();
        let endpoints = endpoints.of(id).unwrap().of_port(port);
        endpoints
            .iter()
            .map(|endpoint| endpoint.address.to_string())
            .collect()
    }

    #[test]
    fn a_workload_serves_the_port_that_it_bound() {
        let services = services(SHOP);
        let mut endpoints = Endpoints::new(&services, &Endpoints::default(), &Services::default());
        let reviews = "reviews.shop.svc.cluster.local";
        let several = "several.shop.svc.cluster.local";
        let of = |endpoints: &Endpoints, host, port| addresses(endpoints, &services, host, port);

        // By number, or as the only port there is.
        assert!(endpoints.register(&services, workload("a", "reviews", "10.0.0.1:9080")));
        assert!(endpoints.register(&services, workload("b", "reviews", "10.0.0.2:40000")));
        assert_eq!(
            of(&endpoints, reviews, 9080),
            ["10.0.0.1:9080", "10.0.0.2:40000"]
        );

        // By target port; a port that the service does not name is no endpoint of one with several.
        assert!(endpoints.register(&services, workload("c", "several", "10.0.0.3:8080")));
        assert!(!endpoints.register(&services, workload("d", "several", "10.0.0.4:40000")));
        assert_eq!(of(&endpoints, several, 80), ["10.0.0.3:8080"]);
        assert!(endpoints.served_by(&services, "d").is_empty());
        assert_eq!(endpoints.served_by(&services, "c").len(), 1);

        // By name.
        let mut named = (*workload("e", "several", "10.0.0.5:7000")).clone();
        named.ports = vec![("admin".to_owned(), 7000)];
        assert!(endpoints.register(&services, Arc::new(named)));
        assert_eq!(of(&endpoints, several, 81), ["10.0.0.5:7000"]);

        // The same again changes nothing, another address moves it, and it goes.
        assert!(!endpoints.register(&services, workload("a", "reviews", "10.0.0.1:9080")));
        assert!(endpoints.register(&services, workload("a", "reviews", "10.0.0.9:9080")));
        assert_eq!(
            of(&endpoints, reviews, 9080),
            ["10.0.0.2:40000", "10.0.0.9:9080"]
        );
        assert!(endpoints.unregister(&services, "a"));
        assert!(!endpoints.unregister(&services, "a"));
        assert_eq!(of(&endpoints, reviews, 9080), ["10.0.0.2:40000"]);
    }

    #[test]
    fn a_second_listener_of_a_process_is_no_endpoint_of_a_port_that_the_first_one_serves() {
        let services = services(SHOP);
        let mut endpoints = Endpoints::new(&services, &Endpoints::default(), &Services::default());
        let listener = |key: &str, address: &str| {
            let mut workload = (*workload(key, "reviews", address)).clone();
            workload.node = "pod-1".into();
            Arc::new(workload)
        };
        endpoints.register(&services, listener("admin", "10.0.0.1:15000"));
        endpoints.register(&services, listener("app", "10.0.0.1:9080"));
        let of = |endpoints: &Endpoints| {
            addresses(endpoints, &services, "reviews.shop.svc.cluster.local", 9080)
        };
        assert_eq!(of(&endpoints), ["10.0.0.1:9080"]);
    }

    #[test]
    fn a_workload_of_another_namespace_is_no_endpoint() {
        let services = services(SHOP);
        let mut endpoints = Endpoints::new(&services, &Endpoints::default(), &Services::default());
        let stranger = Workload::new("x", "other", "x", "10.0.0.1:9080".parse().unwrap());
        assert!(!endpoints.register(&services, Arc::new(stranger.labelled([("app", "reviews")]))));
    }

    #[test]
    fn endpoints_that_are_written_down_have_ports_weights_labels_and_localities() {
        let services = services(
            "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: shop}
spec:
  hosts: [db.internal, db2.internal]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints:
  - {address: 10.1.0.1, labels: {v: a}, weight: 3, locality: r/z/s}
  - {address: 10.1.0.2, ports: {http: 9999}}
  - {address: '::1'}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vms, namespace: shop}
spec:
  hosts: [vms.internal]
  resolution: STATIC
  ports: [{number: 80, name: http}]
  workloadSelector: {labels: {app: vm}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm1, namespace: shop, labels: {v: meta}}
spec: {address: 10.2.0.1, labels: {app: vm, v: spec}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm2, namespace: other}
spec: {address: 10.2.0.2, labels: {app: vm}}
",
        );
        let endpoints = Endpoints::new(&services, &Endpoints::default(), &Services::default());
        for host in ["db.internal", "db2.internal"] {
            assert_eq!(
                addresses(&endpoints, &services, host, 80),
                ["10.1.0.1:8080", "10.1.0.2:9999", "[::1]:8080"]
            );
        }
        let (id, _) = services.find("db.internal", "x").unwrap();
        let first = &endpoints.of(id).unwrap().of_port(80)[0];
        assert_eq!(
            (
                first.weight,
                &*first.locality[2],
                first.labels["v"].as_str()
            ),
            (3, "s", "a")
        );
        assert_eq!(
            addresses(&endpoints, &services, "vms.internal", 80),
            ["10.2.0.1:80"]
        );
        let (id, _) = services.find("vms.internal", "x").unwrap();
        assert_eq!(endpoints.of(id).unwrap().of_port(80)[0].labels["v"], "meta");
    }

    #[test]
    fn a_service_is_found_by_host_by_wildcard_and_only_by_those_who_see_it() {
        let services = services(
            "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: shop}
spec: {hosts: ['*.example.com'], ports: [{number: 80, name: http}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wilder, namespace: shop}
spec: {hosts: ['*.com'], ports: [{number: 80, name: http}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: private, namespace: shop}
spec: {hosts: [api.example.com], ports: [{number: 80, name: http}], exportTo: ['.']}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: other, namespace: alpha}
spec: {hosts: [api.example.com], ports: [{number: 80, name: http}], exportTo: ['.']}
",
        );
        let name = |host, namespace| {
            services
                .find(host, namespace)
                .map(|(_, s)| s.name.to_string())
        };
        assert_eq!(name("api.example.com", "shop").as_deref(), Some("private"));
        assert_eq!(name("api.example.com", "alpha").as_deref(), Some("other"));
        assert_eq!(name("api.example.com", "beta").as_deref(), Some("wild"));
        assert_eq!(name("b.com", "beta").as_deref(), Some("wilder"));
        assert_eq!(name("b.org", "beta"), None);
    }

    #[test]
    fn a_configuration_change_keeps_registrations_and_unchanged_sets() {
        let old = services(SHOP);
        let mut before = Endpoints::new(&old, &Endpoints::default(), &Services::default());
        before.register(&old, workload("a", "reviews", "10.0.0.1:9080"));
        let grown = format!(
            "{SHOP}---\napiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: shop}}\nspec: {{selector: {{app: reviews}}, ports: [{{port: 1}}]}}\n"
        );
        let new = services(&grown);
        let after = Endpoints::new(&new, &before, &old);
        assert_eq!(
            addresses(&after, &new, "a.shop.svc.cluster.local", 1),
            ["10.0.0.1:9080"]
        );
        let host = "reviews.shop.svc.cluster.local";
        let (old_id, new_id) = (
            old.find(host, "x").unwrap().0,
            new.find(host, "x").unwrap().0,
        );
        assert!(Arc::ptr_eq(
            before.of(old_id).unwrap(),
            after.of(new_id).unwrap()
        ));
    }

    #[test]
    fn a_group_gives_its_members_labels() {
        let services = services(&format!(
            "{SHOP}---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {{name: vms, namespace: shop}}
spec:
  metadata: {{labels: {{app: reviews}}}}
  template: {{locality: r/z, weight: 5}}
"
        ));
        let mut endpoints = Endpoints::new(&services, &Endpoints::default(), &Services::default());
        let mut member = Workload::new("m", "shop", "m", "10.0.0.7:9080".parse().unwrap());
        member.group = Some("vms".into());
        assert!(endpoints.register(&services, Arc::new(member)));
        let (id, _) = services
            .find("reviews.shop.svc.cluster.local", "shop")
            .unwrap();
        let endpoint = &endpoints.of(id).unwrap().of_port(9080)[0];
        assert_eq!((endpoint.weight, &*endpoint.locality[1]), (5, "z"));
        assert!(endpoints.unregister(&services, "m"));
    }
}
