//! What routes refer to, and whether they may: of another namespace only where a ReferenceGrant there says so.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::file::Object;
use crate::config::gateway_api::reference_grant::ReferenceGrant;
use crate::config::gateway_api::{GATEWAY_GROUP, ISTIO_GROUP, ObjectReference};
use crate::config::support::ObjectKind;
use crate::policy::route::ClusterKey;
use crate::registry::host::{plain, service_host};
use crate::registry::{Service, Services};

/// Who can be referred to.
pub(super) struct References<'a> {
    services: &'a Services,
    grants: HashMap<&'a str, Vec<&'a ReferenceGrant>>,
}

/// A reference that leads nowhere.
#[derive(Clone, Debug)]
pub(super) struct Unresolved {
    /// The reason, as a condition of the route has it.
    pub(super) reason: &'static str,
    /// The same for people.
    pub(super) message: String,
}

impl<'a> References<'a> {
    pub(super) fn new(services: &'a Services, grants: &'a [Arc<Object<ReferenceGrant>>]) -> References<'a> {
        let mut by_namespace: HashMap<&str, Vec<&ReferenceGrant>> = HashMap::new();
        for grant in grants {
            by_namespace.entry(&grant.meta.namespace).or_default().push(&grant.spec);
        }
        References { services, grants: by_namespace }
    }

    /// The cluster that a route of this kind and namespace refers to.
    pub(super) fn resolve(
        &self,
        kind: ObjectKind,
        namespace: &str,
        reference: &ObjectReference,
    ) -> Result<ClusterKey, Unresolved> {
        let no = |reason, message: String| Unresolved { reason, message };
        let name = &reference.name.value;
        let is_host = reference.group() == ISTIO_GROUP && reference.kind() == "Hostname";
        if !reference.is_service() && !is_host {
            let what = format!("{} of group {:?}", reference.kind(), reference.group());
            return Err(no(
                "InvalidKind",
                format!("{what} is no backend: those are Services, and Hostnames of {ISTIO_GROUP}"),
            ));
        }
        let Some(port) = reference.port else {
            return Err(no("BackendNotFound", format!("{} {name} is referred to without a port", reference.kind())));
        };
        let target = reference.namespace.as_ref().map_or(namespace, |namespace| namespace.value.as_str());
        let (host, client) = match is_host {
            true => (plain(name), namespace),
            false => (service_host(name, target), target),
        };
        let ask = |target: &str, name: &str| match self.is_granted((kind, namespace), "Service", target, name) {
            true => Ok(()),
            false => {
                let message = format!(
                    "Service {target}/{name} is of another namespace, where no ReferenceGrant is from {} of {namespace}",
                    kind.name()
                );
                Err(no("RefNotPermitted", message))
            }
        };
        if !is_host && target != namespace {
            ask(target, name)?;
        }
        let key = |host: Arc<str>| ClusterKey { host, port: port.0, subset: "".into() };
        // The object that is wrong says why.
        if self.services.refused(&host, client).is_some() {
            return Ok(key(host.as_str().into()));
        }
        let found = match is_host {
            true => self.services.find(&host, client),
            false => self.services.exact(&host, client),
        };
        let Some((_, service)) = found else {
            let what = if is_host { format!("host {host}") } else { format!("Service {target}/{name}") };
            return Err(no("BackendNotFound", format!("there is no {what}")));
        };
        // Whose name it is asks no less than a reference by namespace and name.
        let is_of_others = |found: &Service| found.meta.kind == ObjectKind::Service && *found.namespace != *namespace;
        if is_host && is_of_others(service) {
            ask(&service.namespace, &service.meta.name)?;
        }
        if service.alias.is_some() {
            let real = self.services.real(&host, client);
            let real = real.ok_or_else(|| no("BackendNotFound", format!("{host} is an alias that leads nowhere")))?;
            let found = self.services.exact(&real, client).map(|(_, found)| found);
            if let Some(found) = found.filter(|found| is_of_others(found) && found.namespace != service.namespace) {
                ask(&found.namespace, &found.meta.name)?;
            }
            return Ok(key(real));
        }
        if service.port(port.0).is_none() {
            let known: Vec<String> = service.ports.iter().map(|port| port.number.to_string()).collect();
            let message = format!("{host} has no port {}, only {}", port.0, known.join(", "));
            return Err(no("BackendNotFound", message));
        }
        Ok(key(host.as_str().into()))
    }

    /// Whether objects of this kind and namespace may refer to this one of the group without a name.
    pub(super) fn is_granted(&self, (kind, namespace): (ObjectKind, &str), to: &str, target: &str, name: &str) -> bool {
        let grants = self.grants.get(target).into_iter().flatten();
        grants.into_iter().any(|grant| {
            let is_from = grant.from.iter().any(|from| {
                from.group == GATEWAY_GROUP && from.kind.value == kind.name() && from.namespace.value == namespace
            });
            let mut to =
                grant.to.iter().filter(|one| matches!(one.group.as_str(), "" | "core") && *one.kind.value == *to);
            let is_all = |name: &str| name.is_empty();
            is_from && to.any(|one| one.name.as_ref().is_none_or(|only| is_all(only) || only.value == name))
        })
    }
}
