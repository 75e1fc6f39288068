//! What becomes of the fields of Kubernetes' `Service`.

use super::Support::{Enforced, Indifferent, Partly};
use super::{Row, Tables, both, unneeded_by_grpc};
use crate::config::diagnostic::quoted;
use crate::config::node::Node;

pub(super) const TABLES: Tables = &[("", SERVICE)];

const SERVICE: &[Row] = &[
    both("selector", Enforced),
    both("ports.name", Enforced),
    both("ports.port", Enforced),
    both("ports.protocol", Partly(transport)),
    both("ports.targetPort", Enforced),
    unneeded_by_grpc("ports.appProtocol"),
    both("ports.nodePort", Indifferent),
    both("type", Enforced),
    both("clusterIP", Indifferent),
    both("clusterIPs", Indifferent),
    both("externalName", Enforced),
    both("externalIPs", Indifferent),
    both("sessionAffinity", Partly(session_affinity)),
    both("sessionAffinityConfig", Indifferent),
    both("ipFamilies", Indifferent),
    both("ipFamilyPolicy", Indifferent),
    both("publishNotReadyAddresses", Indifferent),
    both("internalTrafficPolicy", Partly(internal_traffic_policy)),
    both("externalTrafficPolicy", Indifferent),
    both("trafficDistribution", Partly(traffic_distribution)),
    both("loadBalancerIP", Indifferent),
    both("loadBalancerClass", Indifferent),
    both("loadBalancerSourceRanges", Indifferent),
    both("allocateLoadBalancerNodePorts", Indifferent),
    both("healthCheckNodePort", Indifferent),
];

fn transport(node: &Node) -> Option<String> {
    let protocol = node.as_str()?;
    (protocol != "TCP").then(|| format!("{protocol}; the port is left out"))
}

fn session_affinity(node: &Node) -> Option<String> {
    (node.as_str()? != "None").then(|| "requests are balanced without affinity".to_owned())
}

fn traffic_distribution(node: &Node) -> Option<String> {
    match node.as_str()? {
        "PreferClose" | "PreferSameZone" => None,
        "PreferSameNode" => Some("endpoints in the client's zone go first; nodes are not known".to_owned()),
        other => Some(format!("{}; every endpoint is used", quoted(other))),
    }
}

fn internal_traffic_policy(node: &Node) -> Option<String> {
    (node.as_str()? != "Cluster").then(|| "every endpoint is used, wherever it runs".to_owned())
}
