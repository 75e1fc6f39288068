//! The kinds that are read, one file each: Istio's field names, typed.
//!
//! Every field that Istio's protos have is here, whether it is enforced or not: `config::support` says
//! which ones are.

pub mod destination_rule;
pub mod names;
pub mod security;
pub mod service;
pub mod service_entry;
pub mod string_match;
pub mod virtual_service;
pub mod workload_entry;
pub mod workload_group;

use super::decode::{PortNumber, message};

/// The protocols that Istio knows (pkg/config/protocol), however they are capitalised.
pub(crate) const PROTOCOLS: [&str; 14] = [
    "tcp",
    "udp",
    "grpc",
    "grpc-web",
    "http",
    "http_proxy",
    "http2",
    "https",
    "tls",
    "mongo",
    "redis",
    "mysql",
    "hbone",
    "doublehbone",
];

fn is_protocol(name: &str) -> bool {
    PROTOCOLS.iter().any(|known| known.eq_ignore_ascii_case(name))
}

message! {
    /// A port by its number.
    pub struct PortSelector {
        /// The number.
        number: PortNumber = "number" required,
    }
}
