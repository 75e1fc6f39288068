//! What becomes of the fields of a `Sidecar`.

use super::Support::{Enforced, Indifferent, NotYet};
use super::{Row, Tables, both};

pub(super) const TABLES: Tables = &[("", SIDECAR)];

const SIDECAR: &[Row] = &[
    both("workloadSelector.labels", Enforced),
    both(
        "ingress",
        NotYet(
            "there is no proxy in front of an application: it listens where it binds, and a defaultEndpoint is nowhere",
        ),
    ),
    both("egress.port", NotYet("its hosts are seen at each of their ports")),
    both("egress.bind", Indifferent),
    both("egress.captureMode", Indifferent),
    both("egress.hosts", Enforced),
    both("inboundConnectionPool", NotYet("the limits of a server are those that its application gives it (`Limits`)")),
    // To gRPC's clients, a host that nothing describes is none in any case.
    Row { path: "outboundTrafficPolicy.mode", library: Enforced, grpc: Indifferent },
    both("outboundTrafficPolicy.egressProxy", NotYet("calls go where they ask for, and through no proxy")),
];
