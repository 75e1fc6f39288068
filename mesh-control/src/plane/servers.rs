//! Who serves a cluster, as far as the configuration says it, and where what guards and limits requests there is written.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use mesh_core::identity::SpiffeId;

use super::Snapshot;
use crate::catalog::{Catalog, Client, ClientClass};
use crate::config::file::Meta;
use crate::config::locate::locate;
use crate::policy::Policy;
use crate::policy::route::{ClusterKey, FallbackName};
use crate::policy::security::Served;
use crate::registry::service::Target;

/// The workloads behind a cluster: they may have more labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServedAs {
    pub(crate) namespace: Arc<str>,
    pub(crate) labels: BTreeMap<String, String>,
    /// Where they listen; of a target port by name nobody knows it, and the service's own stands for it.
    pub(crate) port: u16,
    identity: Option<SpiffeId>,
}

impl ServedAs {
    /// One of them, as a client of mesh-control. It is taken to have a certificate, where there are any.
    pub(crate) fn client(&self) -> Client {
        let labels = self.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let client = Client::new("explain", ClientClass::Library, IpAddr::V4(Ipv4Addr::LOCALHOST));
        Client { identity: self.identity.clone(), ..client.namespace(&*self.namespace).labels(labels) }
    }
}

impl fmt::Display for ServedAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels: Vec<String> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        write!(f, "{} in {}, port {}", labels.join(","), self.namespace, self.port)
    }
}

impl Snapshot {
    /// The workloads behind a cluster of a client. `None` where its endpoints are written down, or nobody of the mesh.
    pub(crate) fn served_as(&self, client: &Client, cluster: &str) -> Option<ServedAs> {
        let policy = &self.compiled.policy;
        let view = policy.view(&client.namespace, &client.labels);
        let seen = policy.cluster(ClusterKey::parse(cluster).or_else(|| FallbackName::parse(cluster))?, &view)?;
        let mut labels = seen.service.selector.clone().filter(|_| seen.service.takes_registrations())?;
        labels.extend(
            seen.labels.iter().flat_map(|subset| subset.iter()).map(|(key, value)| (key.clone(), value.clone())),
        );
        let port = match seen.port.target {
            Target::Number(number) => number,
            Target::Name(_) => seen.port.number,
        };
        let domain = policy.trust_domain.as_ref();
        let identity = domain.and_then(|domain| SpiffeId::of_workload(domain, &seen.service.namespace, "any").ok());
        Some(ServedAs { namespace: Arc::clone(&seen.service.namespace), labels, port, identity })
    }

    /// Where a filter is written whose name says the object: `mesh-control.KIND/OBJECT`, or `mesh-control.KIND/OBJECT/RULE`.
    pub(crate) fn filter_origin(&self, name: &str) -> Option<String> {
        let (kind, object) = name.strip_prefix("mesh-control.")?.split_once('/')?;
        let end = object.match_indices('/').nth(1).map_or(object.len(), |(at, _)| at);
        let (id, rule) = (object.get(..end)?, object.get(end + 1..));
        let Policy { limits, filters, .. } = &self.compiled.policy;
        let meta = limits.objects().chain(filters.objects()).find(|meta| *meta.id() == *id)?;
        let field = match (kind, rule) {
            ("rate_limit_quota", Some(rule)) => {
                let quota = limits.quotas().iter().find(|quota| *quota.meta.id() == *id)?;
                let position = quota.spec.rules.iter().position(|one| *one.name == *rule)?;
                format!("rules[{position}]")
            }
            ("adaptive_concurrency", _) => "concurrency".to_owned(),
            ("admission_control", _) => "throttle".to_owned(),
            _ => String::new(),
        };
        Some(written(meta, &field))
    }

    /// How much of a quota each identity has whose filter has such a name: `100 in a month`.
    pub(crate) fn quota_of_filter(&self, name: &str) -> Option<String> {
        let object = name.strip_prefix("mesh-control.rate_limit_quota/")?;
        let end = object.match_indices('/').nth(1).map(|(at, _)| at)?;
        let limit = self.quota(None, object.get(..end)?, object.get(end + 1..)?)?;
        Some(format!("{} in {}", limit.requests, limit.unit.with_article()))
    }

    /// Where what guards a server is written: its policies on who may do what, or those on tokens.
    pub(crate) fn guard_origin(&self, client: &Client, port: u16, kind: &str) -> Option<String> {
        let Policy { services, security, .. } = &self.compiled.policy;
        let labels = self.labels(client);
        let served = Served { namespace: &client.namespace, labels: &labels, port };
        let all: Vec<String> = match kind {
            "policies" => security.policies_of(served, services).map(|meta| written(meta, "")).collect(),
            "tokens" => security.tokens_of(served, services).map(|meta| written(meta, "")).collect(),
            _ => return None,
        };
        (!all.is_empty()).then(|| all.join("; "))
    }
}

fn written(meta: &Meta, field: &str) -> String {
    match field {
        "" => format!("{}, {}", meta.origin, meta.id()),
        field => format!("{}, {} {field}", locate(&meta.origin, field), meta.id()),
    }
}
