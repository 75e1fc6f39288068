//! The labels of the Pods that a cluster makes of a document which is none of ours, such as a Deployment: selectors may mean them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::node::Node;

/// What some workloads are known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLabels {
    /// Their namespace.
    pub namespace: Arc<str>,
    /// Their labels.
    pub labels: BTreeMap<String, String>,
}

/// Those of a document of this kind; `None` where no Pods are made of it.
pub(super) fn of(document: &Node, kind: &str) -> Option<PodLabels> {
    let spec = || document.get("spec");
    let metadata = match kind {
        "Pod" => document.get("metadata"),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            spec()?.get("template")?.get("metadata")
        }
        "CronJob" => spec()?.get("jobTemplate")?.get("spec")?.get("template")?.get("metadata"),
        _ => None,
    }?;
    let labels = metadata.get("labels")?.entries().iter();
    let labels = labels.filter_map(|(key, value)| Some((key.name.clone(), value.as_str()?.to_owned())));
    let namespace = document.get("metadata").and_then(|of| of.get("namespace")).and_then(Node::as_str);
    Some(PodLabels { namespace: namespace.unwrap_or("default").into(), labels: labels.collect() })
}
