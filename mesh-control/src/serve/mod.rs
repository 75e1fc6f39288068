//! The ADS server: what was decided elsewhere, on the wire.
//!
//! ```text
//!  catalogs ─▶ feed ─▶ ads ─▶ session (sotw | delta, ledger, push) ─▶ wire
//!                       │
//!                       └──▶ presence ─▶ registry
//! ```
//!
//! [`Server`] holds the connections; `session` decides what each stream is told; [`status`] says what
//! became of it.

mod admin;
mod admission;
mod ads;
mod backing;
mod client;
mod clock;
mod csds;
mod delta;
mod feed;
#[cfg(test)]
mod fixture;
mod fleet;
#[cfg(test)]
mod histories;
mod identity;
mod ledger;
mod load;
mod metrics;
mod presence;
mod push;
#[cfg(test)]
mod rules;
mod server;
mod session;
mod settling;
mod sotw;
mod state;
mod status_report;
mod tls;
mod wire;

pub use client::About;
pub use feed::Feed;
pub use fleet::{ClientStatus, KindStatus, NackStatus, NameStatus};
pub use presence::{Workload, WorkloadKey, Workloads};
pub use push::Pace;
pub use server::{Options, Server};
pub use session::SERVER_LISTENER_PREFIX;
pub use tls::TlsFiles;

/// What the server knows, for people and for Prometheus.
pub mod status {
    pub use super::admin::{listen, metrics, report};
    pub use super::status_report::{DiagnosticStatus, Inspect, Serving, Status, WorkloadStatus};
}
