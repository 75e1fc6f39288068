//! `WorkloadGroup` (networking.istio.io): what workloads that register themselves have in common.

use std::collections::BTreeMap;

use http::uri::Authority;

use super::workload_entry::WorkloadEntry;
use crate::config::decode::{Decoder, PortNumber, message};
use crate::config::diagnostic::{Code, Severity, quoted};

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
    /// What Istio's own validation refuses.
    pub fn check(&self, d: &mut Decoder<'_>) {
        if let Some(probe) = &self.probe {
            probe.check(d);
        }
    }
}

impl Probe {
    fn check(&self, d: &mut Decoder<'_>) {
        let ways = [
            ("httpGet", self.http_get.as_ref().map(|get| (get.span, get.port.is_some()))),
            ("tcpSocket", self.tcp_socket.as_ref().map(|socket| (socket.span, socket.port.is_some()))),
            ("exec", self.exec.as_ref().map(|command| (command.span, true))),
            ("grpc", self.grpc.as_ref().map(|grpc| (grpc.span, grpc.port.is_some()))),
        ];
        match ways.iter().filter(|(_, way)| way.is_some()).count() {
            0 => {
                let message = "it says nothing to ask: a member is healthy while it is connected";
                d.report_at(self.span, "probe", Severity::Warning, Code::InvalidValue, message);
            }
            1 => {}
            _ => {
                let message = "only one of `httpGet`, `tcpSocket`, `exec` and `grpc` can be set";
                d.report_at(self.span, "probe", Severity::Error, Code::InvalidValue, message);
            }
        }
        for (name, way) in ways {
            if let Some((span, false)) = way {
                let message = "field `port` is missing";
                d.report_at(span, format!("probe.{name}.port"), Severity::Error, Code::MissingField, message);
            }
        }
        for (name, number) in [
            ("initialDelaySeconds", self.initial_delay_seconds),
            ("timeoutSeconds", self.timeout_seconds),
            ("periodSeconds", self.period_seconds),
            ("successThreshold", self.success_threshold),
            ("failureThreshold", self.failure_threshold),
        ] {
            if let Some(number) = number.filter(|number| *number < 0) {
                let message = format!("{number} is less than zero");
                d.report_at(self.span, format!("probe.{name}"), Severity::Error, Code::InvalidValue, message);
            }
        }
        for header in self.http_get.iter().flat_map(|get| &get.http_headers) {
            if header.name.eq_ignore_ascii_case("host") && Authority::try_from(header.value.as_str()).is_err() {
                let message = format!("{} is no host", quoted(&header.value));
                let field = "probe.httpGet.httpHeaders";
                d.report_at(header.span, field, Severity::Error, Code::InvalidValue, message);
            }
        }
    }
}
