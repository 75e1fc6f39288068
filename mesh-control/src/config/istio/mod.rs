//! The kinds that are read, one file each: Istio's field names, typed.
//!
//! Every field that Istio's protos have is here, whether it is enforced or not: `config::support` says
//! which ones are.

pub mod destination_rule;
pub mod security;
pub mod service;
pub mod service_entry;
pub mod string_match;
pub mod virtual_service;
pub mod workload_entry;
pub mod workload_group;

use super::decode::{PortNumber, message};

message! {
    /// A port by its number.
    pub struct PortSelector {
        /// The number.
        number: PortNumber = "number" required,
    }
}
