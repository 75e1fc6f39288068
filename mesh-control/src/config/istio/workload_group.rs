//! `WorkloadGroup` (networking.istio.io): what workloads that register themselves have in common.

use std::collections::BTreeMap;

use super::workload_entry::WorkloadEntry;
use crate::config::decode::{Decoder, PortNumber, message};

message! {
    /// The specification.
    pub struct WorkloadGroup {
        /// Labels and annotations of every member.
        metadata: GroupMetadata = "metadata",
        /// The rest of every member.
        template: Option<WorkloadEntry> = "template",
        /// How members are checked.
        probe: Option<Probe> = "probe",
    }
    /// Labels and annotations of every member.
    pub struct GroupMetadata {
        /// Labels.
        labels: BTreeMap<String, String> = "labels",
        /// Annotations.
        annotations: BTreeMap<String, String> = "annotations",
    }
    /// How members are checked.
    pub struct Probe {
        /// Seconds before the first check.
        initial_delay_seconds: Option<i32> = "initialDelaySeconds",
        /// Seconds that a check may take.
        timeout_seconds: Option<i32> = "timeoutSeconds",
        /// Seconds between checks.
        period_seconds: Option<i32> = "periodSeconds",
        /// Successes that make it healthy.
        success_threshold: Option<i32> = "successThreshold",
        /// Failures that make it unhealthy.
        failure_threshold: Option<i32> = "failureThreshold",
        /// By an HTTP request.
        http_get: Option<HttpGet> = "httpGet",
        /// By a connection.
        tcp_socket: Option<TcpSocket> = "tcpSocket",
        /// By a command.
        exec: Option<ExecCommand> = "exec",
        /// By gRPC health checking.
        grpc: Option<GrpcProbe> = "grpc",
    }
    /// An HTTP request.
    pub struct HttpGet {
        /// Its path.
        path: Option<String> = "path",
        /// Its port.
        port: Option<PortNumber> = "port",
        /// Its host.
        host: Option<String> = "host",
        /// Its scheme.
        scheme: Option<String> = "scheme",
        /// Its headers.
        http_headers: Vec<ProbeHeader> = "httpHeaders",
    }
    /// A header.
    pub struct ProbeHeader {
        /// Its name.
        name: String = "name",
        /// Its value.
        value: String = "value",
    }
    /// A connection.
    pub struct TcpSocket {
        /// To this host.
        host: Option<String> = "host",
        /// To this port.
        port: Option<PortNumber> = "port",
    }
    /// A command.
    pub struct ExecCommand {
        /// Its words.
        command: Vec<String> = "command",
    }
    /// gRPC health checking.
    pub struct GrpcProbe {
        /// The port.
        port: Option<PortNumber> = "port",
        /// The service to ask for.
        service: Option<String> = "service",
    }
}

impl WorkloadGroup {
    /// Nothing here can be wrong that the types do not already refuse.
    pub fn check(&self, _d: &mut Decoder<'_>) {}
}
