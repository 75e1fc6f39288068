//! Whether a workload is one of those that a policy is for, or is a Gateway of Gateway API.

use std::collections::BTreeMap;

use crate::config::file::{GatewayTarget, Target, Workloads};
use crate::config::gateway_api::GATEWAY_NAME;
use crate::registry::Services;
use crate::registry::host::in_namespace;
use crate::registry::service::is_subset;

/// Whether a policy of the namespace `own` is for a workload. In the root namespace, labels and Gateways are those of any namespace;
/// services are always its own, as with Istio.
pub(super) fn is_for(
    workloads: &Workloads,
    (own, root): (&str, &str),
    namespace: &str,
    labels: &BTreeMap<String, String>,
    services: &Services,
) -> bool {
    (*own == *namespace && is_one_of(workloads, namespace, labels, services))
        || (*own == *root && is_one_of_all(workloads, namespace, labels, services))
}

/// Whether a workload of their namespace is one of them.
pub(super) fn is_one_of(
    workloads: &Workloads,
    namespace: &str,
    labels: &BTreeMap<String, String>,
    services: &Services,
) -> bool {
    match workloads {
        Workloads::Labelled(wanted) => wanted.is_empty() || is_subset(wanted, labels),
        Workloads::OfTargets(targets) => targets.iter().any(|target| has(target, namespace, labels, services)),
    }
}

/// Whether a workload of any namespace is one of those of a policy in the root namespace, whose services are its own.
pub(super) fn is_one_of_all(
    workloads: &Workloads,
    namespace: &str,
    labels: &BTreeMap<String, String>,
    services: &Services,
) -> bool {
    match workloads {
        Workloads::Labelled(_) => is_one_of(workloads, namespace, labels, services),
        Workloads::OfTargets(targets) => {
            let mut gateways = targets.iter().filter(|target| matches!(target, Target::Gateway(_)));
            gateways.any(|target| has(target, namespace, labels, services))
        }
    }
}

/// Whether a workload is one of an object's; a service is one of the workload's namespace.
fn has(target: &Target, namespace: &str, labels: &BTreeMap<String, String>, services: &Services) -> bool {
    match target {
        Target::Service(name) => services.any_selects(namespace, std::slice::from_ref(name), labels),
        Target::Gateway(GatewayTarget { namespace: own, name, addresses }) => {
            is_gateway((own, name), addresses, (namespace, labels), services)
        }
    }
}

/// Whether a workload is the Gateway of Gateway API with this namespace and name: one of the Services at whose addresses it is, of
/// whatever namespace, or without any, one of its own namespace with the label of its name.
pub(super) fn is_gateway(
    (own, name): (&str, &str),
    addresses: &[impl AsRef<str>],
    (namespace, labels): (&str, &BTreeMap<String, String>),
    services: &Services,
) -> bool {
    if addresses.is_empty() {
        return *own == *namespace && labels.get(GATEWAY_NAME).is_some_and(|label| *label == *name);
    }
    let named = addresses.iter().filter_map(|host| services.exact(&in_namespace(host.as_ref(), own), namespace));
    let mut named = named.map(|(_, service)| service);
    named.any(|service| *service.namespace == *namespace && service.selects(labels))
}
