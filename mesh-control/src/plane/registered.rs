//! Workloads that register themselves: who may, what becomes of one that comes, goes or says how it is, and what people are
//! told of those that are there.

use std::sync::Arc;

use tokio::sync::watch;
use tracing::warn;

use super::{Plane, WorkloadSummary};
use crate::catalog::Client;
use crate::config::Meta;
use crate::policy::Policy;
use crate::registry::told::is_own;
use crate::registry::{Services, Workload};

impl Plane {
    /// Why a workload may not be registered as what it says it is: it has not proven that it is a gateway of its namespace, there is no
    /// such group, or that is for another service account.
    pub(crate) fn objection(&self, client: &Client, service_account: &str) -> Option<String> {
        let snapshot = self.snapshot();
        let Policy { services, .. } = &snapshot.compiled.policy;
        let is_believed = snapshot.is_believed(&client.namespace, client.identity.as_ref());
        if client.is_gateway && !is_believed {
            return Some(
                "a gateway is an endpoint where its certificate says that it is of its namespace, and this stream came without one \
                 of this mesh that does: its id alone says that it is a gateway (`mesh-control token create` makes a token for one)"
                    .to_owned(),
            );
        }
        let group = client.group.as_ref()?;
        let name = format!("WorkloadGroup {}/{group}", client.namespace);
        let wanted = match services.account_of_group(&client.namespace, group) {
            Some(wanted) => wanted,
            // What a wrong one says is not known: its members are registered with what they say themselves.
            None if services.refused_group(&client.namespace, Some(group)).is_some() => None,
            None => return Some(format!("there is no {name}, which this workload says it belongs to")),
        };
        if let Some(wanted) = wanted.filter(|wanted| *wanted != service_account) {
            return Some(format!(
                "the {name} is for the service account {wanted:?}, and this workload's is {service_account:?}"
            ));
        }
        // A member is an endpoint also of services whose others are told by a cluster.
        (!is_believed).then(|| {
            let account = wanted.unwrap_or("any");
            format!(
                "the {name} is for workloads of its namespace (service account: {account}), and this stream came without a \
                 certificate that says so: `mesh-control token create` makes a token for one"
            )
        })
    }

    /// Takes in a workload, in place of an earlier one with the same key.
    pub fn register(&self, workload: Workload) {
        let mut live = self.inner.live();
        let compiled = live.compiled.clone();
        let workload = Arc::new(workload);
        self.inner.events().note_workload("Workload", "add");
        self.inner.registrations.send_replace(());
        if live.endpoints.register(&compiled.policy.services, workload.clone()) {
            if live.endpoints.served_by(&compiled.policy.services, &workload.key).is_empty() {
                let why = no_requests(&compiled.policy.services, &workload);
                warn!(node = &*workload.node, "registered, and is nobody's endpoint: {why}");
            } else if let Some(group) = compiled.policy.services.group_passed_by(&workload) {
                warn!(node = &*workload.node, "registered: {}", passes_by(group));
            }
            self.inner.publish_soon(live);
        }
    }

    /// Takes in how a workload is, by the probe of its group.
    pub(crate) fn report(&self, key: &str, is_well: bool) {
        let mut live = self.inner.live();
        let compiled = live.compiled.clone();
        let Some(workload) = live.endpoints.reported(key, is_well) else { return };
        self.inner.registrations.send_replace(());
        if live.endpoints.register(&compiled.policy.services, workload) {
            self.inner.events().note_workload("Workload", "update");
            self.inner.publish_soon(live);
        }
    }

    /// Tells whenever a workload registers, or no longer does.
    pub(crate) fn registrations(&self) -> watch::Receiver<()> {
        self.inner.registrations.subscribe()
    }

    /// Everyone who is registered now, in the order of their keys.
    pub(crate) fn registered(&self) -> Vec<Arc<Workload>> {
        self.inner.live().endpoints.workloads()
    }

    /// The members of groups that are registered with this replica and may get requests, but for gateways: each as it registered, and
    /// with what its group adds.
    pub(crate) fn members(&self) -> Vec<(Arc<Workload>, Arc<Workload>)> {
        let live = self.inner.live();
        let services = &live.compiled.policy.services;
        let own = live.endpoints.workloads().into_iter();
        let own = own.filter(|workload| workload.group.is_some() && !workload.is_gateway && is_own(&workload.key));
        let members = own.map(|workload| {
            let placed = services.with_group(&workload);
            (workload, placed)
        });
        members.filter(|(_, placed)| !placed.is_unwell).collect()
    }

    /// Forgets a workload.
    pub fn unregister(&self, key: &str) {
        let mut live = self.inner.live();
        let compiled = live.compiled.clone();
        self.inner.registrations.send_replace(());
        if live.endpoints.unregister(&compiled.policy.services, key) {
            self.inner.events().note_workload("Workload", "delete");
            self.inner.publish_soon(live);
        }
    }

    /// Everyone who registered, and which ports they serve, for people to look at.
    pub fn workloads(&self) -> Vec<WorkloadSummary> {
        let live = self.inner.live();
        let services = &live.compiled.policy.services;
        let hosts: std::collections::HashMap<_, _> =
            services.iter().map(|(id, service)| (id, service.host.clone())).collect();
        let workloads = live.endpoints.workloads().into_iter();
        let summaries = workloads.map(|workload| {
            let served = live.endpoints.served_by(services, &workload.key);
            let serves: Vec<String> =
                served.into_iter().filter_map(|(id, port)| Some(format!("{}:{port}", hosts.get(&id)?))).collect();
            let note = if serves.is_empty() {
                Some(no_requests(services, &workload))
            } else if services.is_unasked(&workload) {
                Some(UNASKED.to_owned())
            } else {
                services.group_passed_by(&workload).map(passes_by)
            };
            let health = services.is_asked(&workload).then_some(match workload.reported {
                Some(true) => "healthy",
                Some(false) => "unhealthy",
                None => "unreported",
            });
            WorkloadSummary {
                key: workload.key.to_string(),
                node: workload.node.to_string(),
                name: workload.name.to_string(),
                namespace: workload.namespace.to_string(),
                address: workload.address.to_string(),
                labels: services.labels_in_group(&workload.namespace, workload.group.as_ref(), &workload.labels),
                group: workload.group.as_deref().map(str::to_owned),
                health,
                serves,
                selected_by: services.hosts_selecting(&workload).iter().map(ToString::to_string).collect(),
                note,
            }
        });
        summaries.collect()
    }
}

/// Why a workload is nobody's endpoint that may be selected.
const UNWELL: &str = "it gets no requests: it is not well by the probe of its WorkloadGroup, as was reported";

/// The same before anybody has reported.
const UNREPORTED: &str =
    "it gets no requests: nobody has reported yet that it is well by the probe of its WorkloadGroup";

/// What becomes of the probe of its group where nobody can ask a workload.
const UNASKED: &str =
    "nobody asks it how it is, as the probe of its WorkloadGroup wants: it is well while it is connected";

/// That a workload gets requests for which members of a group have to be more than it says it is.
fn passes_by(group: &Meta) -> String {
    format!(
        "it gets requests of a service whose others are of {}, and names no group: nobody asks it for the group's service account, or by its probe",
        group.id()
    )
}

/// Why a workload is nobody's endpoint.
fn no_requests(services: &Services, workload: &Arc<Workload>) -> String {
    if services.is_unwell(workload) {
        return if workload.reported.is_some() { UNWELL } else { UNREPORTED }.to_owned();
    }
    let (namespace, port) = (&workload.namespace, workload.address.port());
    format!("no service of namespace {namespace} selects its labels and has a port for {port}")
}
