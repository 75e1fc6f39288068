//! The endpoints of all services as workloads come and go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::discovered::{Discovered, ServiceName};
use super::endpoints::{self, ServiceEndpoints};
use super::host::service_host;
use super::service::{Discovery, Service};
use super::services::{NamespacedLabel, ServiceId, Services, first_label};
use super::workload::Workload;
use crate::config::support::ObjectKind;

/// The endpoints of all services at one moment, immutable.
#[derive(Clone, Debug, Default)]
pub struct EndpointsSnapshot {
    by_service: Vec<Arc<ServiceEndpoints>>,
    /// Counts how often a service came to have other identities behind it.
    identities: u64,
}

impl EndpointsSnapshot {
    /// Counts how often a service came to have other identities behind it.
    pub fn identities(&self) -> u64 {
        self.identities
    }

    /// The endpoints of a service.
    pub fn of(&self, id: ServiceId) -> Option<&Arc<ServiceEndpoints>> {
        self.by_service.get(id.0)
    }
}

/// The endpoints of all services, and who registered: the state that [`EndpointsSnapshot`]s are taken of.
#[derive(Debug, Default)]
pub struct Endpoints {
    by_service: Vec<Arc<ServiceEndpoints>>,
    /// As they registered.
    workloads: HashMap<Arc<str>, Arc<Workload>>,
    /// With what their group adds, by every label and then by key.
    by_label: HashMap<NamespacedLabel, BTreeMap<Arc<str>, Arc<Workload>>>,
    /// What a cluster tells of its services.
    discovered: HashMap<ServiceName, Arc<[Discovered]>>,
    /// Counts how often a service came to have other identities behind it.
    identities: u64,
    /// Whose sets were replaced since somebody asked.
    replaced: BTreeSet<ServiceId>,
}

impl Endpoints {
    /// The endpoints of these services, with the workloads that registered so far. Sets that come out as
    /// they were are kept, encodings and all.
    pub fn new(services: &Services, before: &Endpoints, before_services: &Services) -> Endpoints {
        // A change of the configuration is seen as such.
        let (workloads, identities) = (before.workloads.clone(), before.identities);
        let discovered = before.discovered.clone();
        let mut endpoints = Endpoints { workloads, discovered, identities, ..Endpoints::default() };
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
            endpoints.by_service.push(old.cloned().unwrap_or_else(|| Arc::new(fresh)));
        }
        endpoints
    }

    /// The endpoints of a service.
    pub fn of(&self, id: ServiceId) -> Option<&Arc<ServiceEndpoints>> {
        self.by_service.get(id.0)
    }

    /// The services that have other endpoints than when this was asked the last time.
    pub fn take_replaced(&mut self) -> BTreeSet<ServiceId> {
        std::mem::take(&mut self.replaced)
    }

    /// The sets as they are now.
    pub fn snapshot(&self) -> EndpointsSnapshot {
        EndpointsSnapshot { by_service: self.by_service.clone(), identities: self.identities }
    }

    /// Everyone who registered, in the order of their keys.
    pub fn workloads(&self) -> Vec<Arc<Workload>> {
        let mut workloads: Vec<Arc<Workload>> = self.workloads.values().cloned().collect();
        workloads.sort_by(|a, b| a.key.cmp(&b.key));
        workloads
    }

    /// The ports that a workload serves, service by service.
    pub fn served_by(&self, services: &Services, key: &str) -> Vec<(ServiceId, u16)> {
        let Some(workload) = self.workloads.get(key) else {
            return Vec::new();
        };
        let mut served = Vec::new();
        for (id, _) in services.selecting(&services.with_group(workload)) {
            let Some(endpoints) = self.of(id) else {
                continue;
            };
            for (port, endpoints) in endpoints.ports() {
                if endpoints.iter().any(|endpoint| endpoint.key.as_deref() == Some(key)) {
                    served.push((id, port));
                }
            }
        }
        served
    }

    /// A workload with this report of how it is, where that is news.
    pub fn reported(&self, key: &str, is_well: bool) -> Option<Arc<Workload>> {
        let workload = self.workloads.get(key).filter(|workload| workload.reported != Some(is_well))?;
        Some(Arc::new(Workload { reported: Some(is_well), ..Workload::clone(workload) }))
    }

    /// Takes in a workload. Returns whether any set of endpoints is different.
    pub fn register(&mut self, services: &Services, workload: Arc<Workload>) -> bool {
        if self.workloads.get(&workload.key) == Some(&workload) {
            return false;
        }
        let before = self.forget(services, &workload.key);
        self.workloads.insert(workload.key.clone(), workload.clone());
        let placed = self.place(services, &workload);
        let mut touched: Vec<Arc<Workload>> = before.into_iter().collect();
        touched.push(placed);
        self.refresh(services, &touched)
    }

    /// Forgets a workload. Returns whether any set of endpoints is different.
    pub fn unregister(&mut self, services: &Services, key: &str) -> bool {
        match self.forget(services, key) {
            Some(workload) => self.refresh(services, &[workload]),
            None => false,
        }
    }

    /// Takes in who serves these services, as a cluster says, in the place of what it said of them before. Returns whether any
    /// set of endpoints is different.
    pub fn discover(
        &mut self,
        services: &Services,
        told: impl IntoIterator<Item = (ServiceName, Arc<[Discovered]>)>,
    ) -> bool {
        let mut ids = Vec::new();
        for (name, endpoints) in told {
            let host = service_host(&name.1, &name.0);
            let service = services.exact(&host, &name.0).filter(|(_, service)| service.namespace == name.0);
            ids.extend(service.map(|(id, _)| id));
            match endpoints.is_empty() {
                true => drop(self.discovered.remove(&name)),
                false => drop(self.discovered.insert(name, endpoints)),
            }
        }
        self.collect_again(services, ids)
    }

    fn place(&mut self, services: &Services, workload: &Arc<Workload>) -> Arc<Workload> {
        let placed = services.with_group(workload);
        for (key, value) in placed.labels.iter() {
            let label = (placed.namespace.clone(), key.clone(), value.clone());
            let labelled = self.by_label.entry(label).or_default();
            labelled.insert(placed.key.clone(), placed.clone());
        }
        placed
    }

    fn forget(&mut self, services: &Services, key: &str) -> Option<Arc<Workload>> {
        let workload = self.workloads.remove(key)?;
        let placed = services.with_group(&workload);
        for (name, value) in placed.labels.iter() {
            let label = (placed.namespace.clone(), name.clone(), value.clone());
            if let Some(labelled) = self.by_label.get_mut(&label) {
                labelled.remove(key);
                if labelled.is_empty() {
                    self.by_label.remove(&label);
                }
            }
        }
        Some(placed)
    }

    fn refresh(&mut self, services: &Services, touched: &[Arc<Workload>]) -> bool {
        let selecting = touched.iter().flat_map(|workload| services.selecting(workload));
        let ids = selecting.map(|(id, _)| id).collect();
        self.collect_again(services, ids)
    }

    fn collect_again(&mut self, services: &Services, mut ids: Vec<ServiceId>) -> bool {
        let mut changed = false;
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let Some(service) = services.get(id) else {
                continue;
            };
            let fresh = self.collect(services, id, service);
            if let Some(slot) = self.by_service.get_mut(id.0)
                && !slot.is_same(&fresh)
            {
                if slot.identities() != fresh.identities() {
                    self.identities += 1;
                }
                *slot = Arc::new(fresh);
                self.replaced.insert(id);
                changed = true;
            }
        }
        changed
    }

    fn collect(&self, services: &Services, id: ServiceId, service: &Service) -> ServiceEndpoints {
        if service.discovery != Discovery::Registry {
            return endpoints::found_by_clients(service, services.written(id));
        }
        let candidates = first_label(service).and_then(|label| self.by_label.get(&label));
        let candidates = candidates.into_iter().flat_map(BTreeMap::values).filter(|workload| !workload.is_unwell);
        let discovered = self.discovered.get(&(service.namespace.clone(), service.name.clone()));
        let discovered = discovered.filter(|_| service.meta.kind == ObjectKind::Service);
        endpoints::collect(service, services.written(id), candidates, discovered.map_or(&[], AsRef::as_ref))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Severity;
    use crate::config::store::Store;

    fn services(yaml: &str) -> Services {
        let mut store = Store::new(true);
        store.set_text("t.yaml", yaml);
        let loaded = store.loaded();
        assert!(loaded.diagnostics.iter().all(|one| one.severity == Severity::Info), "{:?}", loaded.diagnostics);
        Services::new(&loaded.objects, &mesh_core::identity::TrustDomain::default()).0
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
        endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
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
        assert_eq!(of(&endpoints, reviews, 9080), ["10.0.0.1:9080", "10.0.0.2:40000"]);

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
        assert_eq!(of(&endpoints, reviews, 9080), ["10.0.0.2:40000", "10.0.0.9:9080"]);
        assert!(endpoints.unregister(&services, "a"));
        assert!(!endpoints.unregister(&services, "a"));
        assert_eq!(of(&endpoints, reviews, 9080), ["10.0.0.2:40000"]);
    }

    #[test]
    fn replicas_that_share_a_node_id_are_endpoints_each() {
        let services = services(SHOP);
        let mut endpoints = Endpoints::new(&services, &Endpoints::default(), &Services::default());
        for (key, address) in [("a", "127.0.0.1:9080"), ("b", "127.0.0.1:9081"), ("c", "127.0.0.1:9082")] {
            let mut workload = (*workload(key, "reviews", address)).clone();
            workload.node = "from-one-bootstrap-file".into();
            assert!(endpoints.register(&services, Arc::new(workload)));
        }
        let host = "reviews.shop.svc.cluster.local";
        assert_eq!(addresses(&endpoints, &services, host, 9080).len(), 3);
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
            assert_eq!(addresses(&endpoints, &services, host, 80), ["10.1.0.1:8080", "10.1.0.2:9999", "[::1]:8080"]);
        }
        let (id, _) = services.find("db.internal", "x").unwrap();
        let first = &endpoints.of(id).unwrap().of_port(80)[0];
        assert_eq!((first.weight, &*first.locality[2], first.labels["v"].as_str()), (3, "s", "a"));
        assert_eq!(addresses(&endpoints, &services, "vms.internal", 80), ["10.2.0.1:80"]);
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
        let name = |host, namespace| services.find(host, namespace).map(|(_, s)| s.name.to_string());
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
        assert_eq!(addresses(&after, &new, "a.shop.svc.cluster.local", 1), ["10.0.0.1:9080"]);
        let host = "reviews.shop.svc.cluster.local";
        let (old_id, new_id) = (old.find(host, "x").unwrap().0, new.find(host, "x").unwrap().0);
        assert!(Arc::ptr_eq(before.of(old_id).unwrap(), after.of(new_id).unwrap()));
    }

    #[test]
    fn who_says_the_labels_of_a_group_and_not_its_name_passes_by_what_the_group_asks_for() {
        let of = |asks: &str| {
            services(&format!(
                "{SHOP}---\napiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {{name: vms, namespace: shop}}\n\
                 spec: {{metadata: {{labels: {{app: reviews}}}}, {asks}}}\n"
            ))
        };
        let probe = "probe: {httpGet: {path: /healthz, port: 8090}}";
        for (asks, is_told) in [("template: {serviceAccount: reviews}", true), (probe, true), ("template: {}", false)] {
            let services = of(asks);
            let own = workload("a", "reviews", "10.0.0.1:9080");
            let name = services.group_passed_by(&own).map(|group| group.name.to_string());
            assert_eq!(name.as_deref(), is_told.then_some("vms"), "{asks}");
            let member = Workload { group: Some("vms".into()), ..(*own).clone() };
            assert!(services.group_passed_by(&member).is_none());
            assert!(services.group_passed_by(&workload("b", "other", "10.0.0.2:9080")).is_none());
        }
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
        let (id, _) = services.find("reviews.shop.svc.cluster.local", "shop").unwrap();
        let endpoint = &endpoints.of(id).unwrap().of_port(9080)[0];
        assert_eq!((endpoint.weight, &*endpoint.locality[1]), (5, "z"));
        assert!(endpoints.unregister(&services, "m"));
    }

    #[test]
    fn a_member_is_well_once_a_report_says_so_where_its_group_has_a_probe_that_it_can_be_asked() {
        use crate::catalog::ClientClass::{Envoy, Grpc, Library};
        // A probe, and who can ask it: others are well while they are connected.
        for (probe, asked) in [
            ("httpGet: {path: /, port: 80}", &[Library, Envoy][..]),
            ("tcpSocket: {port: 80}", &[Library, Envoy]),
            ("grpc: {port: 80}", &[Library]),
            ("exec: {command: [ls]}", &[]),
            ("httpGet: {path: /, port: 80, scheme: HTTPS}", &[]),
            ("httpGet: {path: /, port: 80, host: a.example.com}", &[]),
        ] {
            let mut store = Store::new(true);
            store.set_text(
                "t.yaml",
                &format!(
                    "{SHOP}---\napiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {{name: vms, namespace: shop}}\n\
                     spec: {{metadata: {{labels: {{app: reviews}}}}, probe: {{{probe}}}}}\n"
                ),
            );
            let (services, _) = Services::new(&store.loaded().objects, &mesh_core::identity::TrustDomain::default());
            for class in [Library, Envoy, Grpc] {
                let mut endpoints = Endpoints::new(&services, &Endpoints::default(), &Services::default());
                let mut member = Workload::new("m", "shop", "m", "10.0.0.7:9080".parse().unwrap());
                (member.group, member.class) = (Some("vms".into()), class);
                endpoints.register(&services, Arc::new(member));
                let (id, _) = services.find("reviews.shop.svc.cluster.local", "shop").unwrap();
                let is_there = |endpoints: &Endpoints| !endpoints.of(id).unwrap().of_port(9080).is_empty();
                let (is_asked, is_without) = (asked.contains(&class), !asked.contains(&class));
                assert_eq!(is_there(&endpoints), is_without, "{probe} {class:?}");
                for is_well in [true, false] {
                    let reported = endpoints.reported("m", is_well).expect("it is news");
                    assert_eq!(endpoints.register(&services, reported), is_asked, "{probe} {class:?}");
                    assert!(endpoints.reported("m", is_well).is_none(), "it is known");
                    assert_eq!(is_there(&endpoints), is_well || is_without, "{probe} {class:?}");
                }
                // It outlives a change of the configuration.
                let after = Endpoints::new(&services, &endpoints, &services);
                assert_eq!(is_there(&after), is_without, "{probe} {class:?}");
                assert!(endpoints.unregister(&services, "m") || is_asked, "{probe} {class:?}");
            }
        }
    }
}
