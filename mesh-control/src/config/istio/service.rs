//! `Service` of Kubernetes (v1): a name, its ports, and the labels of the workloads behind it.

use std::collections::BTreeMap;
use std::time::Duration;

use http::HeaderName;

use super::names::is_domain;
use super::{check_labels, is_protocol};
use crate::config::decode::{Decode, Decoder, Opaque, PortNumber, Text, message};
use crate::config::diagnostic::{Code, Severity, quoted};
use crate::config::node::{Node, Value};
use crate::config::schema::Schema;

message! {
    /// The specification.
    pub struct Service {
        /// Labels of the workloads behind it.
        selector: BTreeMap<String, String> = "selector",
        /// Its ports.
        ports: Vec<Port> = "ports",
        /// ClusterIP, NodePort, LoadBalancer or ExternalName.
        service_type: Option<String> = "type",
        /// A virtual address, or `None`.
        cluster_ip: Option<String> = "clusterIP",
        /// Virtual addresses.
        cluster_ips: Vec<String> = "clusterIPs",
        /// Another name, for the type ExternalName.
        external_name: Option<Text> = "externalName",
        /// More addresses.
        external_ips: Vec<String> = "externalIPs",
        /// `None` or `ClientIP`.
        session_affinity: Option<String> = "sessionAffinity",
        /// Its settings.
        session_affinity_config: Option<Opaque> = "sessionAffinityConfig",
        /// Address families.
        ip_families: Vec<String> = "ipFamilies",
        /// Address families.
        ip_family_policy: Option<String> = "ipFamilyPolicy",
        /// Whether endpoints count before they are ready.
        publish_not_ready_addresses: Option<bool> = "publishNotReadyAddresses",
        /// Of traffic from inside.
        internal_traffic_policy: Option<String> = "internalTrafficPolicy",
        /// Of traffic from outside.
        external_traffic_policy: Option<String> = "externalTrafficPolicy",
        /// Preference for near endpoints.
        traffic_distribution: Option<String> = "trafficDistribution",
        /// Of the load balancer in front.
        load_balancer_ip: Option<String> = "loadBalancerIP",
        /// Of the load balancer in front.
        load_balancer_class: Option<String> = "loadBalancerClass",
        /// Of the load balancer in front.
        load_balancer_source_ranges: Vec<String> = "loadBalancerSourceRanges",
        /// Of the load balancer in front.
        allocate_load_balancer_node_ports: Option<bool> = "allocateLoadBalancerNodePorts",
        /// Of the load balancer in front.
        health_check_node_port: Option<u32> = "healthCheckNodePort",
    }
    /// A port.
    pub struct Port {
        /// Its name; may be left out where there is one port.
        name: String = "name",
        /// Its number.
        port: PortNumber = "port" required,
        /// TCP, UDP or SCTP.
        protocol: Option<String> = "protocol",
        /// The port of the workloads, where it is another one.
        target_port: Option<TargetPort> = "targetPort",
        /// The application's protocol.
        app_protocol: Option<String> = "appProtocol",
        /// The port of the nodes.
        node_port: Option<u32> = "nodePort",
    }
}

/// A port of the workloads: a number, or the name of a container port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// A number.
    Number(PortNumber),
    /// A name.
    Name(String),
    /// The service's own number.
    Same,
}

impl Decode for TargetPort {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        match &node.value {
            // A numeric string is a number for Kubernetes too.
            Value::Str(text) => match text.parse() {
                Ok(number) if number > 0 => Some(TargetPort::Number(PortNumber(number))),
                _ => Some(TargetPort::Name(text.clone())),
            },
            // Kubernetes writes 0 for "the same as port".
            Value::Int(0) => Some(TargetPort::Same),
            _ => PortNumber::decode(node, d).map(TargetPort::Number),
        }
    }

    fn schema() -> Schema {
        Schema::IntegerOrText
    }
}

/// The annotation that says who sees a service.
pub const EXPORT_TO: &str = "networking.istio.io/exportTo";

/// What that annotation says of a service with these.
pub fn exported_to(annotations: &BTreeMap<String, String>) -> impl Iterator<Item = &str> + Clone {
    let text = annotations.get(EXPORT_TO).map(|text| text.trim()).filter(|text| !text.is_empty());
    text.into_iter().flat_map(|text| text.split(',')).map(str::trim)
}

/// The labels by which requests of a session stay at their endpoint, by a cookie or by a header (Istio's persistent sessions).
pub const SESSION_COOKIE: &str = "istio.io/persistent-session";
/// The same by a header, which goes before.
pub const SESSION_HEADER: &str = "istio.io/persistent-session-header";

/// What carries the endpoint of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Session {
    /// A cookie: its name, the path that it is for, and its life; without one it lives as long as the caller's session.
    Cookie(String, String, Option<Duration>),
    /// A header.
    Header(String),
}

/// What these labels of a service say of sessions, or which of them is wrong.
pub fn session(labels: &BTreeMap<String, String>) -> Result<Option<Session>, (&'static str, String)> {
    let filled = |label: &str| labels.get(label).map(String::as_str).filter(|text| !text.is_empty());
    let is_name = |name: &str| HeaderName::from_bytes(name.as_bytes()).is_ok();
    if let Some(name) = filled(SESSION_HEADER) {
        return match is_name(name) {
            true => Ok(Some(Session::Header(name.to_ascii_lowercase()))),
            false => Err((SESSION_HEADER, format!("{} is not the name of a header", quoted(name)))),
        };
    }
    let Some(text) = filled(SESSION_COOKIE) else { return Ok(None) };
    let (name, path) = text.split_once(':').unwrap_or((text, "/"));
    match is_name(name)
        && path.starts_with('/')
        && path.bytes().all(|byte| (b'!'..0x7f).contains(&byte) && byte != b';')
    {
        true => Ok(Some(Session::Cookie(name.to_owned(), path.to_owned(), None))),
        false => Err((SESSION_COOKIE, format!("{} is not a cookie: `name`, or `name:/path`", quoted(text)))),
    }
}

impl Service {
    /// What Kubernetes' own validation refuses.
    pub fn check(&self, d: &mut Decoder<'_>) {
        let is_external = self.service_type.as_deref() == Some("ExternalName");
        if is_external && self.external_name.is_none() {
            d.error(self.span, Code::MissingField, "field `externalName` is missing");
        }
        if self.ports.is_empty() && !is_external && self.cluster_ip.as_deref() != Some("None") {
            d.error(self.span, Code::MissingField, "field `ports` is missing");
        }
        if let Some(kind) = self.service_type.as_deref()
            && !matches!(kind, "" | "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName")
        {
            let message = format!("{} is none of ClusterIP, NodePort, LoadBalancer, ExternalName", quoted(kind));
            d.report_at(self.span, "type", Severity::Error, Code::InvalidValue, message);
        }
        if let Some(name) = self.external_name.as_ref().filter(|name| is_external && !is_domain(name)) {
            let message = format!("{} is not the name of a host", quoted(name));
            d.report_at(name.span, "externalName", Severity::Error, Code::InvalidValue, message);
        }
        if is_external && !self.ports.is_empty() {
            let message = "without effect: an alias has the ports of the host that it stands for";
            d.report_at(self.span, "ports", Severity::Warning, Code::Ignored, message);
        }
        check_labels(&self.selector, self.span, "selector", d);
        for (index, port) in self.ports.iter().enumerate() {
            let path = format!("ports[{index}]");
            // Kubernetes takes any; Istio knows these, and some of Kubernetes' own.
            let known = |name: &&str| !(is_protocol(name) || name.starts_with("kubernetes.io/"));
            if let Some(protocol) = port.app_protocol.as_deref().filter(known) {
                let message = format!("{} is no protocol of Istio's: the name of the port decides", quoted(protocol));
                d.report_at(port.span, format!("{path}.appProtocol"), Severity::Warning, Code::Ignored, message);
            }
            if port.name.is_empty() && self.ports.len() > 1 {
                let message = "a service with several ports must name them";
                d.report_at(port.span, path.clone(), Severity::Error, Code::MissingField, message);
            }
            let earlier = || self.ports.iter().take(index);
            if !port.name.is_empty() && earlier().any(|other| other.name == port.name) {
                let message = format!("port name {} is used twice", quoted(&port.name));
                d.report_at(port.span, path.clone(), Severity::Error, Code::InvalidValue, message);
            }
            if earlier().any(|other| other.port == port.port && other.protocol == port.protocol) {
                let message = format!("port {} is defined twice", port.port.0);
                d.report_at(port.span, path, Severity::Error, Code::InvalidValue, message);
            }
        }
    }
}
