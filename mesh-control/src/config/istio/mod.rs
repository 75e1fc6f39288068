//! The kinds that are read, one file each: Istio's field names, typed.
//!
//! Every field that Istio's protos have is here, whether it is enforced or not: `config::support` says
//! which ones are.

pub mod authorization;
pub mod destination_rule;
pub mod gateway;
pub mod mesh_config;
pub mod names;
mod regex_cost;
pub mod secret;
pub mod security;
pub mod service;
pub mod service_entry;
pub mod sidecar;
pub mod string_match;
pub mod telemetry;
pub mod virtual_service;
pub mod wasm_plugin;
pub mod workload_entry;
pub mod workload_group;

use std::collections::BTreeMap;

use super::decode::{Decoder, PortNumber, Text, message};
use super::diagnostic::{Code, Severity, Span};

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

/// Checks the `exportTo` of an object. Only some kinds may be for nobody (`~`).
fn check_export(export_to: &[Text], may_be_nobody: bool, d: &mut Decoder<'_>) {
    let mut error = |index: usize, message: String| {
        let Some(entry) = export_to.get(index) else { return };
        d.report_at(entry.span, format!("exportTo[{index}]"), Severity::Error, Code::InvalidValue, message);
    };
    for (index, message) in names::export_faults(export_to.iter().map(|entry| entry.value.as_str())) {
        error(index, message);
    }
    if let [only] = export_to
        && *only.value == *"~"
        && !may_be_nobody
    {
        error(0, "`~` is nobody, which only a ServiceEntry can be exported to".to_owned());
    }
}

/// Checks the labels by which an object selects workloads.
fn check_labels(labels: &BTreeMap<String, String>, span: Span, path: &str, d: &mut Decoder<'_>) {
    if let Some(message) = names::selector_fault(labels) {
        d.report_at(span, path, Severity::Error, Code::InvalidValue, message);
    } else if let Some(message) = names::empty_label(labels) {
        d.report_at(span, path, Severity::Warning, Code::Ignored, message);
    }
}
