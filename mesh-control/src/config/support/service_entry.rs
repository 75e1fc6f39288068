//! What becomes of the fields of a `ServiceEntry`.

use super::Support::{Enforced, Indifferent, NotYet};
use super::{Row, Tables, both, unneeded_by_grpc, workload_entry};

pub(super) const TABLES: Tables = &[("", SERVICE_ENTRY), ("endpoints", workload_entry::ENDPOINT)];

const SERVICE_ENTRY: &[Row] = &[
    both("hosts", Enforced),
    both("addresses", NotYet("the service answers to its hosts only")),
    both("ports.number", Enforced),
    unneeded_by_grpc("ports.protocol"),
    both("ports.name", Enforced),
    both("ports.targetPort", Enforced),
    // It decides on mutual TLS and on labels of metrics, neither of which depends on it yet.
    both("location", Indifferent),
    both("resolution", Enforced),
    both("workloadSelector.labels", Enforced),
    both("exportTo", Enforced),
    both("subjectAltNames", NotYet("no certificate is checked, as no connection is secured")),
];
