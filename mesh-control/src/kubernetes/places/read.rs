//! What is read of EndpointSlices, Pods, Nodes and Services.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::{Pod, ServiceFacts, Slice, SliceEndpoint};
use crate::config::istio::service;
use crate::kubernetes::known::Name;

/// Where an EndpointSlice says whose it is.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Where a node says where it is: the word of today, and one that went before.
pub(super) const REGION: [&str; 2] = ["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"];
pub(super) const ZONE: [&str; 2] = ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"];
const SUBZONE: [&str; 1] = ["topology.istio.io/subzone"];
/// What a Deployment's ReplicaSets have at the end of their names.
pub(super) const TEMPLATE_HASH: &str = "pod-template-hash";

type Labels = BTreeMap<String, String>;

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Meta {
    labels: Labels,
    owner_references: Vec<Owner>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Owner {
    kind: String,
    name: String,
    controller: bool,
}

#[derive(Deserialize)]
struct WithMeta {
    #[serde(default)]
    metadata: Meta,
}

#[derive(Deserialize)]
struct ServiceText {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    spec: ServiceSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceSpec {
    ip_families: Vec<String>,
}

#[derive(Deserialize)]
struct PodText {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    spec: PodSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    service_account_name: String,
    node_name: Option<Arc<str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SliceText {
    #[serde(default)]
    metadata: Meta,
    address_type: String,
    ports: Option<Vec<PortText>>,
    endpoints: Option<Vec<EndpointText>>,
}

#[derive(Deserialize)]
struct PortText {
    name: Option<String>,
    port: Option<u16>,
    protocol: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointText {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Conditions,
    target_ref: Option<Target>,
    node_name: Option<Arc<str>>,
    zone: Option<Arc<str>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize)]
struct Target {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
}

fn read<T: for<'de> Deserialize<'de>>(object: &Value) -> Result<T, String> {
    T::deserialize(object).map_err(|error| error.to_string())
}

/// `None` of one that is nobody's, or has names in the place of addresses.
pub(super) fn slice(object: &Value) -> Result<Option<Slice>, String> {
    let namespace = object.get("metadata").and_then(|metadata| metadata.get("namespace")?.as_str()).unwrap_or_default();
    let SliceText { metadata, address_type, ports, endpoints } = read(object)?;
    let Some(service) = metadata.labels.get(SERVICE_NAME).filter(|_| address_type != "FQDN") else { return Ok(None) };
    let is_tcp = |port: &PortText| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    let ports = ports.into_iter().flatten().filter(is_tcp);
    let ports = ports.filter_map(|port| Some((port.name.unwrap_or_default(), port.port?))).collect();
    let endpoints = endpoints.into_iter().flatten().map(|endpoint| {
        let Conditions { ready, serving, terminating } = endpoint.conditions;
        let is_ready = ready.unwrap_or(true);
        let pod = endpoint.target_ref.filter(|target| target.kind.as_deref() == Some("Pod"));
        SliceEndpoint {
            addresses: endpoint.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
            is_ready,
            is_leaving: serving.unwrap_or(is_ready) && terminating == Some(true),
            pod: pod.and_then(|pod| {
                Some((pod.namespace.as_deref().unwrap_or(namespace).into(), pod.name?.as_str().into()))
            }),
            node: endpoint.node_name,
            zone: endpoint.zone,
        }
    });
    Ok(Some(Slice {
        service: (namespace.into(), service.as_str().into()),
        family: address_type,
        ports: Arc::new(ports),
        endpoints: endpoints.collect(),
    }))
}

pub(super) fn pod(name: &Name, object: &Value) -> Result<Pod, String> {
    let PodText { metadata, spec } = read(object)?;
    let workload = workload(&metadata).unwrap_or_else(|| name.1.clone());
    let account = if spec.service_account_name.is_empty() { "default".to_owned() } else { spec.service_account_name };
    Ok(Pod { labels: Arc::new(metadata.labels), account, node: spec.node_name, workload })
}

/// What made a Pod: of a ReplicaSet, its Deployment.
fn workload(metadata: &Meta) -> Option<Arc<str>> {
    let owner = metadata.owner_references.iter().find(|owner| owner.controller && !owner.name.is_empty())?;
    let hash = metadata.labels.get(TEMPLATE_HASH).filter(|_| owner.kind == "ReplicaSet");
    let deployment = hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    Some(deployment.unwrap_or(&owner.name).into())
}

/// Where a node is.
pub(super) fn node(object: &Value) -> Result<[Arc<str>; 3], String> {
    let Meta { labels, .. } = read::<WithMeta>(object)?.metadata;
    let first = |keys: &[&str]| keys.iter().find_map(|key| labels.get(*key)).map(|text| text.as_str().into());
    Ok([first(&REGION), first(&ZONE), first(&SUBZONE)].map(Option::unwrap_or_default))
}

/// How to read the slices of a service.
pub(super) fn service(object: &Value) -> Result<ServiceFacts, String> {
    let ServiceText { metadata, spec } = read(object)?;
    Ok(ServiceFacts {
        family: spec.ip_families.into_iter().next(),
        has_sessions: matches!(service::session(&metadata.labels), Ok(Some(_))),
    })
}
