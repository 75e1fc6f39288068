//! `Sidecar` (networking.istio.io): what the workloads of a namespace see of the mesh. What it says of a proxy's own
//! listeners is about nothing here.

use std::collections::BTreeMap;

use super::mesh_config::OutboundMode;
use super::names::{host_fault, is_label, selector_fault};
use crate::config::decode::{Decoder, Opaque, Text, message};
use crate::config::diagnostic::{Code, Severity, quoted};

message! {
    /// The specification.
    pub struct Sidecar {
        /// The workloads of the namespace that it is for; absent means all.
        workload_selector: Option<WorkloadSelector> = "workloadSelector",
        /// What a proxy would listen on for its workload.
        ingress: Opaque = "ingress",
        /// What workloads may call; empty means everything.
        egress: Vec<Egress> = "egress",
        /// Limits of a proxy's connections to its workload.
        inbound_connection_pool: Opaque = "inboundConnectionPool",
        /// What becomes of calls to hosts that nothing describes; absent means as the mesh has it.
        outbound_traffic_policy: Option<OutboundPolicy> = "outboundTrafficPolicy",
    }
    /// Labels of workloads.
    pub struct WorkloadSelector {
        /// All of them.
        labels: BTreeMap<String, String> = "labels",
    }
    /// Hosts that workloads may call.
    pub struct Egress {
        /// Where a proxy would listen.
        port: Opaque = "port",
        /// The address of that.
        bind: Opaque = "bind",
        /// How a proxy would come by the connections.
        capture_mode: Opaque = "captureMode",
        /// `NAMESPACE/HOST`, either with wildcards.
        hosts: Vec<Text> = "hosts",
    }
    /// What becomes of calls to hosts that nothing describes.
    pub struct OutboundPolicy {
        /// Whether they pass.
        mode: Option<OutboundMode> = "mode",
        /// A proxy that they pass through.
        egress_proxy: Opaque = "egressProxy",
    }
}

impl Sidecar {
    /// The labels of the workloads that it is for; none are all.
    pub fn selector(&self) -> Option<&BTreeMap<String, String>> {
        let labels = &self.workload_selector.as_ref()?.labels;
        (!labels.is_empty()).then_some(labels)
    }

    /// What Istio's own validation refuses.
    pub fn check(&self, d: &mut Decoder<'_>) {
        if let Some(selector) = &self.workload_selector
            && let Some(message) = selector_fault(&selector.labels)
        {
            d.report_at(selector.span, "workloadSelector.labels", Severity::Error, Code::InvalidValue, message);
        }
        for (index, egress) in self.egress.iter().enumerate() {
            if egress.hosts.is_empty() {
                let message = "at least one of `hosts` is needed, such as `./*` or `~/*`";
                d.report_at(egress.span, format!("egress[{index}]"), Severity::Error, Code::MissingField, message);
            }
            for (position, host) in egress.hosts.iter().enumerate() {
                if let Some(message) = egress_fault(host) {
                    let field = format!("egress[{index}].hosts[{position}]");
                    d.report_at(host.span, field, Severity::Error, Code::InvalidValue, message);
                }
            }
        }
    }
}

/// What is wrong with an entry: it is `NAMESPACE/HOST`, with `*`, `.` or `~` in the place of a name, and `~` before it for what
/// is left out.
fn egress_fault(entry: &str) -> Option<String> {
    let Some((namespace, host)) = entry.split_once('/') else {
        return Some(format!("{} is not NAMESPACE/HOST, such as `./*` or `*/a.example.com`", quoted(entry)));
    };
    let name = namespace.strip_prefix('~').unwrap_or(namespace);
    let is_namespace =
        matches!(name, "*" | ".") || is_label(name) && !name.bytes().any(|byte| byte.is_ascii_uppercase());
    match namespace {
        "~" if host == "*" => None,
        "~" => Some(format!("{}: `~/*` is nothing, and has no other host", quoted(entry))),
        _ if is_namespace => host_fault(host),
        _ => Some(format!("{} is not the name of a namespace", quoted(namespace))),
    }
}
