//! What becomes of the fields of a `GRPCRoute`.

use super::Support::{Enforced, NotYet, Partly};
use super::gateway::at_gateway;
use super::http_route::{BACKEND_FILTERS, FILTERS, NO_DEFAULT, NO_SESSION, parents};
use super::{Row, Tables, both};

pub(super) const TABLES: Tables =
    &[("", GRPC_ROUTE), ("rules.filters", FILTERS), ("rules.backendRefs.filters", BACKEND_FILTERS)];

const GRPC_ROUTE: &[Row] = &[
    both("parentRefs", Partly(parents)),
    both("parentRefs.group", Enforced),
    both("parentRefs.kind", Enforced),
    both("parentRefs.namespace", Enforced),
    both("parentRefs.name", Enforced),
    both("parentRefs.sectionName", Enforced),
    both("parentRefs.port", Enforced),
    both("useDefaultGateways", NotYet(NO_DEFAULT)),
    at_gateway("hostnames"),
    both("rules.name", Enforced),
    both("rules.matches.method.type", Enforced),
    both("rules.matches.method.service", Enforced),
    both("rules.matches.method.method", Enforced),
    both("rules.matches.headers.type", Enforced),
    both("rules.matches.headers.name", Enforced),
    both("rules.matches.headers.value", Enforced),
    both("rules.backendRefs.group", Enforced),
    both("rules.backendRefs.kind", Enforced),
    both("rules.backendRefs.name", Enforced),
    both("rules.backendRefs.namespace", Enforced),
    both("rules.backendRefs.port", Enforced),
    both("rules.backendRefs.weight", Enforced),
    both("rules.sessionPersistence", NotYet(NO_SESSION)),
];
