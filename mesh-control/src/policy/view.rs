//! What of a client can change what it is told: its namespace, and those of its labels that rules ask for.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A client, reduced to what matters. Clients with equal views are told the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct View {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its labels that some rule asks for.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Whether it is a gateway.
    pub is_gateway: bool,
    /// The Sidecar that is for it, by its place among all.
    pub sidecar: Option<usize>,
    /// The Telemetry objects that are for it.
    pub telemetry: Applied,
    /// The rate limits that are for what it calls, by their places among all.
    pub limits: Arc<[usize]>,
    /// The filters that are for what it calls, by their places among all.
    pub filters: Arc<[usize]>,
}

/// The Telemetry objects that are for a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Applied {
    /// By their places among all: of the root namespace, of its own, for itself.
    pub places: [Option<usize>; 3],
    /// One that is wrong is, too: it may have kept requests out of access logs, and none is written.
    pub is_withheld: bool,
}

impl View {
    /// A client of this namespace without labels, for whom no Sidecar is, and no Telemetry.
    pub fn of_namespace(namespace: &str) -> View {
        View { namespace: namespace.into(), ..View::default() }
    }
}
