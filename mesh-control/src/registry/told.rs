//! Workloads as replicas tell each other of them, and by which keys those of others are known.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::workload::{Health, Workload};
use crate::catalog::ClientClass;

/// A workload, as replicas tell each other of it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Told {
    node: Arc<str>,
    name: Arc<str>,
    namespace: Arc<str>,
    labels: Arc<BTreeMap<String, String>>,
    address: SocketAddr,
    ports: Vec<(String, u16)>,
    locality: [Arc<str>; 3],
    cluster: Arc<str>,
    group: Option<Arc<str>>,
    weight: u32,
    health: String,
    identity: Option<String>,
    is_proxied: bool,
    /// Who asks it how it is, by the name of its class; nobody where a replica of an older version does not say.
    #[serde(default)]
    class: String,
    #[serde(default)]
    reported: Option<bool>,
    #[serde(default)]
    is_gateway: bool,
}

impl Told {
    pub(crate) fn of(workload: &Workload) -> Told {
        let Workload { node, name, namespace, labels, address, ports, locality, cluster, group, identity, .. } =
            workload.clone();
        let health = match workload.health {
            Health::Healthy => "healthy",
            Health::Draining => "draining",
            Health::Unhealthy => "unhealthy",
        };
        Told {
            node,
            name,
            namespace,
            labels,
            address,
            ports,
            locality,
            cluster,
            group,
            weight: workload.weight,
            health: health.to_owned(),
            identity: identity.map(|id| id.to_string()),
            is_proxied: workload.is_proxied,
            class: workload.class.name().to_owned(),
            reported: workload.reported,
            is_gateway: workload.is_gateway,
        }
    }

    /// The workload of this key. Its identity counts, which the replica that it is registered with has seen proven.
    pub(crate) fn workload(self, key: &str) -> Result<Workload, String> {
        let health = match self.health.as_str() {
            "healthy" => Health::Healthy,
            "draining" => Health::Draining,
            "unhealthy" => Health::Unhealthy,
            other => return Err(format!("{other:?} is no health")),
        };
        let identity = self.identity.map(|id| id.parse().map_err(|why| format!("{id:?}: {why}"))).transpose()?;
        let class = ClientClass::ALL.into_iter().find(|class| class.name() == self.class);
        Ok(Workload {
            node: self.node,
            labels: self.labels,
            ports: self.ports,
            locality: self.locality,
            cluster: self.cluster,
            group: self.group,
            weight: self.weight,
            health,
            identity,
            is_proxied: self.is_proxied,
            class: class.unwrap_or(ClientClass::Grpc),
            reported: self.reported,
            is_gateway: self.is_gateway,
            ..Workload::new(key, &self.namespace, &self.name, self.address)
        })
    }
}

/// The key here of a workload that is registered at another replica. No workload can have it that registers here, whatever it says of
/// itself: those keys end with an address. Of one address, who is registered here goes before.
pub(crate) fn elsewhere(registered: &str, replica: &str) -> String {
    format!("{registered} at replica {replica}")
}

/// Whether a key is that of a workload which is registered here.
pub(crate) fn is_own(key: &str) -> bool {
    key.rsplit_once('@').is_some_and(|(_, address)| address.parse::<SocketAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_registers_by_the_key_of_a_workload_of_another_replica() {
        for address in ["10.0.0.1:80", "[fe80::1]:80"] {
            let own = format!("mesh~{address}~web@{address}");
            assert!(is_own(&own));
            let elsewhere = elsewhere(&own, "5f0c");
            assert!(!is_own(&elsewhere) && own < elsewhere);
            assert!(is_own(&format!("{elsewhere}@{address}")), "it says that of itself");
        }
    }

    #[test]
    fn a_workload_is_told_as_it_is() {
        let mut workload = Workload::new("k", "shop", "web", "10.0.0.1:80".parse().expect("an address"));
        workload = workload.labelled([("app", "web")]);
        workload.identity = Some("spiffe://cluster.local/ns/shop/sa/web".parse().expect("an id"));
        (workload.weight, workload.health, workload.group) = (3, Health::Draining, Some("vms".into()));
        (workload.class, workload.reported) = (ClientClass::Library, Some(false));
        (workload.ports, workload.locality[1]) = (vec![("http".to_owned(), 80)], "zone".into());
        (workload.is_proxied, workload.is_gateway) = (true, true);
        let text = serde_json::to_string(&Told::of(&workload)).expect("JSON");
        let told: Told = serde_json::from_str(&text).expect("JSON");
        assert_eq!(told.workload("k"), Ok(workload));
        for (from, to) in [("draining", "ill"), ("spiffe://", "https://")] {
            let told: Told = serde_json::from_str(&text.replace(from, to)).expect("JSON");
            assert!(told.workload("k").is_err(), "{to}");
        }
    }
}
