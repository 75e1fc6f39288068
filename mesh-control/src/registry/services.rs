//! All services of a configuration, and who answers to which host.

use std::collections::HashMap;
use std::sync::Arc;

use super::host;
use super::service::{self, Service, WrittenEndpoint};
use super::workload::Workload;
use crate::config::file::{Object, Objects};
use crate::config::istio::workload_entry::WorkloadEntry;
use crate::config::istio::workload_group::WorkloadGroup;
use crate::config::{Code, Diagnostic, Severity};

/// The place of a service among all, and of its endpoints in [`super::Endpoints`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub(super) usize);

/// All services of a configuration.
#[derive(Debug, Default)]
pub struct Services {
    all: Vec<Arc<Service>>,
    by_host: HashMap<Arc<str>, Vec<ServiceId>>,
    /// Services of the cluster, by their names without a namespace.
    by_name: HashMap<Arc<str>, Vec<ServiceId>>,
    /// The longest suffix first.
    wildcards: Vec<(Arc<str>, Vec<ServiceId>)>,
    /// Aliases, by the host that they stand for.
    aliases: HashMap<Arc<str>, Vec<ServiceId>>,
    /// Services that take registrations, by namespace and the first label of their selector.
    by_selector: HashMap<NamespacedLabel, Vec<ServiceId>>,
    /// WorkloadEntries that each service selects.
    selected: Vec<Vec<WrittenEndpoint>>,
    groups: HashMap<NamespacedName, Arc<Object<WorkloadGroup>>>,
}

type NamespacedName = (Arc<str>, Arc<str>);
pub(super) type NamespacedLabel = (Arc<str>, String, String);

impl Services {
    /// The services of these objects, and what is to be said about them.
    pub fn new(objects: &Objects) -> (Services, Vec<Diagnostic>) {
        let mut services = Services::default();
        let mut found = Vec::new();
        let mut all: Vec<Service> = objects.services.iter().map(|object| service::of_service(object)).collect();
        all.extend(objects.service_entries.iter().flat_map(|object| service::of_entry(object)));
        all.sort_by(|a, b| {
            (&a.host, &a.namespace, a.rank(&a.namespace)).cmp(&(&b.host, &b.namespace, b.rank(&b.namespace)))
        });
        for service in all {
            services.add(service, &mut found);
        }
        for (host, ids) in &services.by_host {
            if host.starts_with('*') {
                services.wildcards.push((host.clone(), ids.clone()));
            }
        }
        services.wildcards.sort_by(|a, b| (b.0.len(), &a.0).cmp(&(a.0.len(), &b.0)));
        let entries = entries_by_namespace(objects);
        services.selected = services.all.iter().map(|service| selected(service, &entries)).collect();
        for group in &objects.workload_groups {
            let key = (group.meta.namespace.clone(), group.meta.name.clone());
            services.groups.insert(key, group.clone());
        }
        (services, found)
    }

    fn add(&mut self, service: Service, found: &mut Vec<Diagnostic>) {
        let ids = self.by_host.entry(service.host.clone()).or_default();
        let same = ids.iter().find_map(|id| self.all.get(id.0).filter(|other| other.namespace == service.namespace));
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
        if let Some(real) = &service.alias {
            self.aliases.entry(real.clone()).or_default().push(id);
        }
        if let Some(name) = host::name_in_cluster(&service.host) {
            self.by_name.entry(name.into()).or_default().push(id);
        }
        if let Some(label) = first_label(&service) {
            self.by_selector.entry(label).or_default().push(id);
        }
        self.all.push(Arc::new(service));
    }

    pub(super) fn get(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.all.get(id.0)
    }

    /// All services, with their places.
    pub fn iter(&self) -> impl Iterator<Item = (ServiceId, &Arc<Service>)> {
        self.all.iter().enumerate().map(|(index, service)| (ServiceId(index), service))
    }

    /// The service of this exact host that a client of this namespace sees.
    pub fn exact(&self, host: &str, client_namespace: &str) -> Option<(ServiceId, &Arc<Service>)> {
        self.best(self.by_host.get(host)?, client_namespace)
    }

    /// Services of this name in any namespace, as far as a client of this namespace sees them.
    pub fn namesakes(&self, name: &str, client_namespace: &str) -> impl Iterator<Item = &Arc<Service>> {
        let ids = self.by_name.get(name).into_iter().flatten();
        let services = ids.filter_map(|id| self.all.get(id.0));
        services.filter(move |service| service.visibility.includes(client_namespace))
    }

    /// The service that answers to this full host name, exactly or by its wildcard.
    pub fn find(&self, host: &str, client_namespace: &str) -> Option<(ServiceId, &Arc<Service>)> {
        self.exact(host, client_namespace).or_else(|| {
            let mut covering = self.wildcards.iter().filter(|(pattern, _)| host::covers(pattern, host));
            covering.find_map(|(_, ids)| self.best(ids, client_namespace))
        })
    }

    /// The host that a full host name stands for: itself, or what it is an alias of. `None` where aliases lead nowhere.
    pub fn real(&self, host: &str, client_namespace: &str) -> Option<Arc<str>> {
        /// Nobody needs as many, and a circle has no end.
        const MOST_ALIASES: usize = 8;
        let mut host: Arc<str> = host.into();
        for _ in 0..MOST_ALIASES {
            let alias = self.exact(&host, client_namespace).and_then(|(_, service)| service.alias.clone());
            let Some(real) = alias else { return Some(host) };
            host = real;
        }
        None
    }

    /// An alias of this host, which is no service itself.
    pub fn alias_of(&self, host: &str, client_namespace: &str) -> Option<(ServiceId, &Arc<Service>)> {
        self.best(self.aliases.get(host)?, client_namespace)
    }

    /// Whether any service, whoever sees it, answers to this full host name.
    pub fn describes(&self, host: &str) -> bool {
        self.by_host.contains_key(host) || self.wildcards.iter().any(|(pattern, _)| host::covers(pattern, host))
    }

    fn best(&self, ids: &[ServiceId], client_namespace: &str) -> Option<(ServiceId, &Arc<Service>)> {
        ids.iter()
            .filter_map(|id| Some((*id, self.all.get(id.0)?)))
            .filter(|(_, service)| service.visibility.includes(client_namespace))
            .min_by(|(_, a), (_, b)| a.rank(client_namespace).cmp(&b.rank(client_namespace)))
    }

    /// The services that a workload is an endpoint of, if it serves any of their ports.
    pub(super) fn selecting<'s>(
        &'s self,
        workload: &'s Workload,
    ) -> impl Iterator<Item = (ServiceId, &'s Arc<Service>)> {
        let labels = workload.labels.iter();
        let keys = labels.map(|(key, value)| (workload.namespace.clone(), key.clone(), value.clone()));
        let ids = keys.filter_map(|key| self.by_selector.get(&key)).flatten();
        let services = ids.filter_map(|id| Some((*id, self.all.get(id.0)?)));
        services.filter(|(_, service)| service.selects(&workload.labels))
    }

    /// The endpoints of a service that are written down, in its own object or in WorkloadEntries.
    pub fn written(&self, id: ServiceId) -> impl Iterator<Item = &WrittenEndpoint> {
        let own = self.all.get(id.0).into_iter().flat_map(|service| &service.endpoints);
        own.chain(self.selected.get(id.0).into_iter().flatten())
    }

    /// A workload with what its group adds to it.
    pub(super) fn with_group(&self, workload: &Arc<Workload>) -> Arc<Workload> {
        let group =
            workload.group.as_ref().and_then(|group| self.groups.get(&(workload.namespace.clone(), group.clone())));
        match group {
            Some(group) => Arc::new(workload.with_group(&group.spec)),
            None => workload.clone(),
        }
    }
}

pub(super) fn first_label(service: &Service) -> Option<NamespacedLabel> {
    let selector = service.selector.as_ref().filter(|_| service.takes_registrations())?;
    let (key, value) = selector.iter().next()?;
    Some((service.namespace.clone(), key.clone(), value.clone()))
}

type Entries<'a> = HashMap<&'a str, Vec<&'a Arc<Object<WorkloadEntry>>>>;

fn entries_by_namespace(objects: &Objects) -> Entries<'_> {
    let mut entries: Entries<'_> = HashMap::new();
    for object in &objects.workload_entries {
        entries.entry(&object.meta.namespace).or_default().push(object);
    }
    for entries in entries.values_mut() {
        entries.sort_by(|a, b| a.meta.order().cmp(&b.meta.order()));
    }
    entries
}

fn selected(service: &Service, entries: &Entries<'_>) -> Vec<WrittenEndpoint> {
    let Some(selector) = &service.selector else {
        return Vec::new();
    };
    let entries = entries.get(&*service.namespace).into_iter().flatten();
    let endpoints = entries.filter_map(|object| {
        // The object's own labels win over those of its specification (Istio: conversion.go).
        let mut labels = object.spec.labels.clone();
        labels.extend(object.meta.labels.clone());
        if !service::is_subset(selector, &labels) {
            return None;
        }
        WrittenEndpoint::new(&object.spec, &object.meta, labels)
    });
    endpoints.collect()
}
