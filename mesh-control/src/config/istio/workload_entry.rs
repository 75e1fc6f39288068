//! `WorkloadEntry` (networking.istio.io): one endpoint that no orchestrator knows of.

use std::collections::BTreeMap;

use super::names::is_domain;
use crate::config::decode::{Decoder, PortNumber, Text, message};
use crate::config::diagnostic::{Code, Severity, quoted};

message! {
    /// The specification; also the form of a ServiceEntry's own endpoints.
    pub struct WorkloadEntry {
        /// An IP address, a DNS name, or `unix:///path`.
        address: Text = "address",
        /// Ports by the names that the service gives them.
        ports: BTreeMap<String, PortNumber> = "ports",
        /// Labels.
        labels: BTreeMap<String, String> = "labels",
        /// The network it is in.
        network: String = "network",
        /// `region/zone/subzone`.
        locality: String = "locality",
        /// Share of the load, relative to the others; 1 by default.
        weight: u32 = "weight",
        /// The identity that its certificates carry.
        service_account: String = "serviceAccount",
    }
}

impl WorkloadEntry {
    /// What Istio's own validation refuses.
    pub fn check(&self, path: &str, d: &mut Decoder<'_>) {
        let field = |name: &str| {
            if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
        };
        if self.address.is_empty() && self.network.is_empty() {
            let message = "field `address` is missing";
            d.report_at(self.span, field("address"), Severity::Error, Code::MissingField, message);
        }
        let is_ip = self.address.parse::<std::net::IpAddr>().is_ok();
        if !(self.address.is_empty() || is_ip || is_domain(&self.address) || self.address.starts_with("unix://")) {
            let message = format!("{} is no IP address, no name of DNS and no unix:// path", quoted(&self.address));
            d.report_at(self.address.span, field("address"), Severity::Error, Code::InvalidValue, message);
        }
        if self.address.starts_with("unix://") && !self.ports.is_empty() {
            let message = "a unix socket has no ports";
            d.report_at(self.span, field("ports"), Severity::Error, Code::InvalidValue, message);
        }
    }
}
