//! `ServiceEntry` (networking.istio.io): a service that no orchestrator knows of.

use std::collections::BTreeMap;

use super::names::{host_fault, is_domain, is_label};
use super::virtual_service::Subnet;
use super::workload_entry::WorkloadEntry;
use super::{PROTOCOLS, check_export, check_labels, is_protocol};
use crate::config::decode::{Decoder, PortNumber, Text, keywords, message};
use crate::config::diagnostic::{Code, Severity, quoted};

message! {
    /// The specification.
    pub struct ServiceEntry {
        /// Its names: fully qualified, or `*.suffix`.
        hosts: Vec<Text> = "hosts" required,
        /// Virtual addresses.
        addresses: Vec<String> = "addresses",
        /// Its ports.
        ports: Vec<ServicePort> = "ports",
        /// Inside the mesh or outside.
        location: Location = "location",
        /// How its endpoints are found.
        resolution: Resolution = "resolution",
        /// Its endpoints.
        endpoints: Vec<WorkloadEntry> = "endpoints",
        /// Its endpoints, by labels.
        workload_selector: Option<WorkloadSelector> = "workloadSelector",
        /// Namespaces that see it; empty means all.
        export_to: Vec<Text> = "exportTo",
        /// Names that its servers prove.
        subject_alt_names: Vec<String> = "subjectAltNames",
    }
    /// A port of a service.
    pub struct ServicePort {
        /// Its number.
        number: PortNumber = "number" required,
        /// HTTP, HTTP2, GRPC, HTTPS, TCP, TLS, ...
        protocol: Option<String> = "protocol",
        /// Its name.
        name: String = "name" required,
        /// The port of the endpoints, where it is another one.
        target_port: Option<PortNumber> = "targetPort",
    }
    /// A selection of workloads.
    pub struct WorkloadSelector {
        /// Labels that must all be there.
        labels: BTreeMap<String, String> = "labels",
    }
}

keywords! {
    /// Inside the mesh or outside.
    pub enum Location {
        /// Outside.
        External = "MESH_EXTERNAL",
        /// Inside.
        Internal = "MESH_INTERNAL",
    }
    /// How endpoints are found.
    pub enum Resolution {
        /// The address that the caller asks for.
        None = "NONE",
        /// They are listed.
        Static = "STATIC",
        /// By DNS; every address is an endpoint.
        Dns = "DNS",
        /// By DNS; one address at a time.
        DnsRoundRobin = "DNS_ROUND_ROBIN",
        /// By DNS, of the host that the request names.
        DynamicDns = "DYNAMIC_DNS",
    }
}

impl ServiceEntry {
    /// What Istio's own validation refuses.
    pub fn check(&self, d: &mut Decoder<'_>) {
        let mut error = |span, path: String, message: String| {
            d.report_at(span, path, Severity::Error, Code::InvalidValue, message);
        };
        if self.hosts.is_empty() {
            error(self.span, "hosts".into(), "at least one host is needed".into());
        }
        for (index, host) in self.hosts.iter().enumerate() {
            let path = format!("hosts[{index}]");
            if host.value == "*" {
                error(host.span, path, "a bare `*` is not a host".into());
            } else if let Some(message) = host_fault(host) {
                error(host.span, path, message);
            } else if host.starts_with("*.") && self.resolution == Resolution::Dns && self.endpoints.is_empty() {
                error(host.span, path, "a wildcard has no addresses in DNS; give endpoints".into());
            }
        }
        for (index, text) in self.addresses.iter().enumerate() {
            let path = format!("addresses[{index}]");
            match Subnet::parse(text) {
                None => {
                    error(
                        self.span,
                        path,
                        format!("{} is neither an address nor a subnet such as 10.0.0.0/8", quoted(text)),
                    );
                }
                Some(subnet)
                    if subnet.address().is_none()
                        && !matches!(self.resolution, Resolution::None | Resolution::Static) =>
                {
                    error(self.span, path, "a subnet is for resolution NONE or STATIC only".into());
                }
                Some(_) => {}
            }
        }
        if !self.addresses.is_empty() && matches!(self.resolution, Resolution::None | Resolution::DynamicDns) {
            let message = "without effect: calls go to the address that they ask for, as without it";
            d.report_at(self.span, "addresses", Severity::Warning, Code::Ignored, message);
        }
        check_export(&self.export_to, true, d);
        let mut error = |span, path: String, message: String| {
            d.report_at(span, path, Severity::Error, Code::InvalidValue, message);
        };
        for (index, port) in self.ports.iter().enumerate() {
            if let Some(protocol) = port.protocol.as_deref().filter(|name| !name.is_empty() && !is_protocol(name)) {
                let message = format!("{} is none of {}", quoted(protocol), PROTOCOLS.join(", "));
                error(port.span, format!("ports[{index}].protocol"), message);
            }
            let earlier = self.ports.iter().take(index);
            if earlier.clone().any(|other| other.number == port.number) {
                let message = format!("port {} is defined twice", port.number.0);
                error(port.span, format!("ports[{index}].number"), message);
            }
            if !is_label(&port.name) {
                let message = format!("{} is not the name of a port", quoted(&port.name));
                error(port.span, format!("ports[{index}].name"), message);
            }
            if earlier.clone().any(|other| other.name == port.name) {
                let message = format!("port name {} is used twice", quoted(&port.name));
                error(port.span, format!("ports[{index}].name"), message);
            }
        }
        if let Some(selector) = &self.workload_selector
            && !self.endpoints.is_empty()
        {
            let message = "only one of `endpoints` and `workloadSelector` can be set";
            error(selector.span, "workloadSelector".into(), message.into());
        }
        if self.resolution == Resolution::None && !self.endpoints.is_empty() {
            error(self.span, "endpoints".into(), "resolution NONE takes no endpoints".into());
        }
        if let Some(selector) = &self.workload_selector {
            check_labels(&selector.labels, selector.span, "workloadSelector.labels", d);
            if selector.labels.is_empty() {
                let message = "without labels it selects no workload";
                d.report_at(selector.span, "workloadSelector", Severity::Warning, Code::Ignored, message);
            }
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let path = format!("endpoints[{index}]");
            endpoint.check(&path, d);
            self.check_endpoint(endpoint, &path, d);
        }
    }

    fn check_endpoint(&self, endpoint: &WorkloadEntry, path: &str, d: &mut Decoder<'_>) {
        for name in endpoint.ports.keys() {
            if !self.ports.iter().any(|port| port.name == *name) {
                let message = format!("the service has no port named {}", quoted(name));
                let path = format!("{path}.ports");
                d.report_at(endpoint.span, path, Severity::Error, Code::InvalidValue, message);
            }
        }
        let is_ip = endpoint.address.parse::<std::net::IpAddr>().is_ok();
        if matches!(self.resolution, Resolution::Dns | Resolution::DnsRoundRobin)
            && !(is_ip || is_domain(&endpoint.address))
        {
            let message = format!("{} is neither a name of DNS nor an IP address", quoted(&endpoint.address));
            let path = format!("{path}.address");
            d.report_at(endpoint.address.span, path, Severity::Error, Code::InvalidValue, message);
        }
        let is_unix = endpoint.address.starts_with("unix://");
        if self.resolution == Resolution::Static && !(is_ip || is_unix || endpoint.address.is_empty()) {
            let message = format!("{} is not an IP address, as STATIC needs", quoted(&endpoint.address));
            let path = format!("{path}.address");
            d.report_at(endpoint.address.span, path, Severity::Error, Code::InvalidValue, message);
        }
    }
}
