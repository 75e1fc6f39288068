//! The plane as the server sees it: catalogs, a registry, and something to report.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::request::RequestHead;
use serde_json::Value;

use crate::catalog::{Catalog, Client};
use crate::config::Diagnostic;
use crate::config::store::{Standing, Wrong};
use crate::explain;
use crate::plane::{Plane, Snapshot};
use crate::registry;
use crate::serve::clients::feed::Feed;
use crate::serve::clients::presence::{Workload, WorkloadKey, Workloads};
use crate::serve::clients::status::{
    DiagnosticStatus, Inspect, ObjectStatus, Question, ServiceStatus, Serving, WrongStatus,
};

impl Feed {
    /// Follows the snapshots of a plane. To be called inside a runtime.
    pub fn of(plane: &Plane) -> Feed {
        Feed::new(plane.subscribe(), |snapshot: &Arc<Snapshot>| -> Arc<dyn Catalog> { snapshot.clone() })
    }
}

impl Workloads for Plane {
    fn register(&self, workload: Workload) {
        let key = workload.key().to_string();
        let Workload { client, about, address } = workload;
        let base = registry::Workload::new(&key, &client.namespace, &about.name, address);
        let identity = self.identity(&client, &about.service_account);
        Plane::register(
            self,
            registry::Workload {
                node: client.node_id,
                labels: client.labels,
                ports: client.ports,
                locality: client.locality,
                cluster: about.cluster.into(),
                group: about.group.map(Into::into),
                identity,
                is_proxied: client.sidecar.is_some() || client.is_gateway,
                is_gateway: client.is_gateway,
                class: client.class,
                ..base
            },
        );
    }

    fn objection(&self, workload: &Workload) -> Option<String> {
        Plane::objection(self, &workload.client, &workload.about.service_account)
    }

    fn report(&self, key: &WorkloadKey, is_well: bool) {
        Plane::report(self, &key.to_string(), is_well);
    }

    fn unregister(&self, key: &WorkloadKey) {
        Plane::unregister(self, &key.to_string());
    }

    fn known(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.published())
    }
}

impl Inspect for Plane {
    fn diagnostics(&self) -> Vec<DiagnosticStatus> {
        Plane::diagnostics(self).into_iter().map(Into::into).collect()
    }

    fn is_ready(&self) -> bool {
        Plane::wrong(self).iter().all(|wrong| wrong.standing != Standing::Unread)
    }

    fn stale(&self) -> Option<(String, Duration)> {
        Plane::stale(self).map(|stale| (stale.why, stale.age))
    }

    fn wrong(&self) -> Vec<WrongStatus> {
        Plane::wrong(self).iter().map(Into::into).collect()
    }

    fn changes(&self) -> Option<(u64, u64)> {
        let snapshot = self.snapshot();
        let config = snapshot.config_generation();
        Some((config, snapshot.generation().saturating_sub(config)))
    }

    fn events(&self) -> [BTreeMap<(&'static str, &'static str), u64>; 2] {
        Plane::events(self)
    }

    fn services(&self) -> usize {
        Plane::services(self).len()
    }

    fn locate(&self, client: &Client, hop: &mut Value) {
        self.snapshot().locate_hop(client, hop);
    }

    fn service_list(&self) -> Vec<ServiceStatus> {
        let services = Plane::services(self).into_iter();
        let statuses = services.map(|service| ServiceStatus {
            endpoints: service.ports.iter().map(|port| port.endpoints.len()).sum(),
            ports: service.ports.iter().map(|port| port.number).collect(),
            host: service.host,
            namespace: service.namespace,
            object: service.object,
            written: service.written,
        });
        statuses.collect()
    }

    fn objects(&self) -> Vec<ObjectStatus> {
        let wrong = Plane::wrong(self);
        let standings: BTreeMap<String, &str> = wrong
            .iter()
            .filter_map(|wrong| Some((wrong.object.as_ref()?.to_string(), wrong.standing.as_str())))
            .collect();
        let objects = self.object_places().into_iter();
        let statuses = objects.map(|(object, written)| {
            let standing = standings.get(&object).copied().unwrap_or("in-force");
            ObjectStatus::new(object, written, standing)
        });
        statuses.collect()
    }

    fn explain(&self, question: &Question) -> Result<serde_json::Value, String> {
        let said = |error: anyhow::Error| format!("{error:#}");
        let method = question.method.parse().map_err(|_| format!("{:?} is no method", question.method))?;
        let url = question.url.parse().map_err(|_| format!("{:?} is no URL", question.url))?;
        let headers: Vec<String> =
            question.headers.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
        let head = explain::request(&method, &url, &headers).map_err(said)?;
        let head = RequestHead::of(&head).map_err(|error| error.to_string())?;
        let snapshot = self.snapshot();
        let (client, note) = explain::asker(&snapshot, &question.from).map_err(said)?;
        let mut explained = explain::explain(&snapshot, &client, &head).map_err(said)?;
        explained.notes.extend(note);
        let mut json = explained.to_json();
        // For people: the same in words.
        json["text"] = explained.to_string().into();
        Ok(json)
    }

    fn routes(&self, from: &str, target: &str) -> Result<serde_json::Value, String> {
        let snapshot = self.snapshot();
        let (client, note) = explain::asker(&snapshot, from).map_err(|error| format!("{error:#}"))?;
        let mut routes = explain::routes(&snapshot, &client, target);
        routes["note"] = note.into();
        routes["rules"] = snapshot.rules_on(&client, target).into();
        Ok(routes)
    }

    fn serving(&self) -> BTreeMap<String, Serving> {
        let workloads = Plane::workloads(self).into_iter();
        let serving = workloads.map(|one| {
            let serving = Serving {
                labels: Some(one.labels),
                group: one.group,
                health: one.health.map(str::to_owned),
                selected_by: one.selected_by,
                ..Serving::new(one.serves).note(one.note)
            };
            (one.key, serving)
        });
        serving.collect()
    }
}

impl From<&Wrong> for WrongStatus {
    fn from(wrong: &Wrong) -> WrongStatus {
        WrongStatus {
            object: wrong.object.as_ref().map(ToString::to_string),
            file: wrong.file.to_string(),
            standing: wrong.standing.as_str().to_owned(),
            reason: wrong.reason.to_string(),
        }
    }
}

impl From<Diagnostic> for DiagnosticStatus {
    fn from(finding: Diagnostic) -> DiagnosticStatus {
        let known = |number: u32| usize::try_from(number).ok().filter(|number| *number > 0);
        DiagnosticStatus {
            severity: finding.severity.as_str().to_owned(),
            // The names of codes are those of their JSON form.
            code: serde_json::to_value(finding.code)
                .ok()
                .and_then(|code| code.as_str().map(str::to_owned))
                .unwrap_or_default(),
            message: finding.message,
            object: finding.object.map(|object| object.to_string()),
            field: finding.field.map(|field| field.to_string()),
            file: Some(finding.file.to_string()).filter(|file| !file.is_empty()),
            line: known(finding.line),
            column: known(finding.column),
        }
    }
}
