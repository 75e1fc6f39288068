//! The ADS server: what was decided elsewhere, on the wire.
//!
//! ```text
//!  catalogs ─▶ feed ─▶ ads ─▶ session (sotw | delta, ledger, push) ─▶ wire
//!                       │
//!                       └──▶ presence ─▶ registry
//! ```
//!
//! Three rooms, each of which uses only those before it: `protocol` decides what each stream is told, `clients` knows
//! who is connected, `io` holds the connections. [`Server`] is all of them, and [`status`] says what became of it.

mod backing;
mod clients;
mod io;
mod protocol;

pub use clients::certificates::Certificates;
pub use clients::feed::Feed;
pub use clients::fleet::{ClientStatus, KindStatus, NackStatus, NameStatus};
pub use clients::kubernetes::KubernetesTokens;
pub use clients::node::About;
pub use clients::presence::{Workload, WorkloadKey, Workloads};
pub use clients::refusals::TurnedAwayStatus;
pub use io::live_trace::LiveTrace;
pub use io::server::{Options, QuotasIn, Server};
pub use io::tls::TlsFiles;
pub use protocol::push::Pace;
pub use protocol::session::SERVER_LISTENER_PREFIX;

/// Where tokens of Kubernetes and what belongs to them usually are.
pub mod kubernetes {
    pub use super::clients::kubernetes::{AUDIENCE, CA_FILE, TOKEN_FILE};
}

/// The endpoint of the mesh's bundle, for other trust domains.
pub(crate) mod bundle {
    pub(crate) use super::io::bundle::listen;
}

/// The webhook by which an API server asks whether objects may be stored.
pub(crate) mod webhook {
    pub(crate) use super::io::webhook::listen;
}

/// The API by which objects in etcd are read and changed.
pub(crate) mod api {
    pub(crate) use super::io::api::{Allowed, listen};
}

/// What the server knows, for people and for Prometheus.
pub mod status {
    pub use super::clients::authority::{AuthorityStatus, RevokedStatus, TrustBundleStatus};
    pub use super::clients::graph::{Edge, Graph, Node};
    pub use super::clients::issued::IssuedStatus;
    pub use super::clients::status::{
        DiagnosticStatus, Inspect, ObjectStatus, Question, ServiceStatus, Serving, Status, WorkloadStatus, WrongStatus,
    };
    pub use super::io::admin::{graph, listen, metrics, quotas, report};
}
