//! What there is, for people to look at.

use std::collections::BTreeMap;

use serde::Serialize;

/// A service, for people to look at.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ServiceSummary {
    /// Its full host name.
    pub host: String,
    /// Its namespace.
    pub namespace: String,
    /// `Kind namespace/name`.
    pub object: String,
    /// `file:line`.
    pub written: String,
    /// How its endpoints are found: `registry`, `dns`, `logical-dns` or `passthrough`.
    pub discovery: &'static str,
    /// Its ports.
    pub ports: Vec<PortSummary>,
}

/// A port, for people to look at.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PortSummary {
    /// Its number.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// What it speaks.
    pub protocol: &'static str,
    /// Its endpoints that mesh-control knows.
    pub endpoints: Vec<EndpointSummary>,
}

/// An endpoint, for people to look at.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EndpointSummary {
    /// `ip:port`.
    pub address: String,
    /// `namespace/name`.
    pub workload: String,
    /// Share of the load.
    pub weight: u32,
    /// Whether it registered itself.
    pub self_registered: bool,
}

/// A workload that registered itself, for people to look at.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct WorkloadSummary {
    /// Its registration.
    pub key: String,
    /// The id of its node.
    pub node: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// `ip:port`.
    pub address: String,
    /// Its labels, with those of its group.
    pub labels: BTreeMap<String, String>,
    /// The WorkloadGroup that it says it is a member of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// How it is by the probe of that group, where somebody asks it: `healthy` or `unhealthy`, as it was reported, or `unreported`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<&'static str>,
    /// `host:port` of what it serves.
    pub serves: Vec<String>,
    /// The hosts of the services that select it, whether or not it gets their requests.
    pub selected_by: Vec<String>,
    /// Why it serves nothing, where it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}
