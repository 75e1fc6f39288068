//! How members of a WorkloadGroup are checked: what its `probe` says, as far as whoever is beside a member can do it.

use std::net::SocketAddr;
use std::time::Duration;

use crate::catalog::ClientClass;
use crate::config::decode::PortNumber;
use crate::config::istio::workload_group::{HttpGet, WorkloadGroup};
use crate::config::support::{is_probed_header, is_probed_scheme, is_probed_value, probed_ip, probed_path};

/// What members of a group are asked, where each of them is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Probe {
    /// What.
    pub question: Question,
    /// Where.
    pub at: SocketAddr,
    /// How long an answer may take.
    pub timeout: Duration,
    /// From one check to the next.
    pub period: Duration,
    /// Successes in a row before a member that was not is healthy.
    pub successes: u32,
    /// Failures in a row before it no longer is.
    pub failures: u32,
}

/// What a member is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Question {
    /// A GET, which a status from 200 to 399 answers.
    Http {
        /// Its path.
        path: String,
        /// The host that it asks for, where it is another than the address.
        host: Option<String>,
        /// Its other headers.
        headers: Vec<(String, String)>,
    },
    /// Whether a connection can be made.
    Tcp,
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// About this service; empty is the server as a whole.
        service: String,
    },
}

impl Probe {
    /// How members of a group are checked; `None` where they are not, for which there is a finding where the group has a probe.
    pub fn of(group: &WorkloadGroup) -> Option<Probe> {
        let probe = group.probe.as_ref()?;
        let (question, host, port) = if let Some(get) = &probe.http_get {
            (http(get)?, get.host.as_deref(), get.port)
        } else if let Some(socket) = &probe.tcp_socket {
            (Question::Tcp, socket.host.as_deref(), socket.port)
        } else {
            let grpc = probe.grpc.as_ref()?;
            (Question::Grpc { service: grpc.service.clone().unwrap_or_default() }, None, grpc.port)
        };
        let PortNumber(port) = port?;
        let seconds = |number: Option<i32>, default: u32| at_least_one(number).unwrap_or(default);
        Some(Probe {
            question,
            at: SocketAddr::new(probed_ip(host.unwrap_or_default())?, port),
            // Kubernetes' defaults, which are Istio's.
            timeout: Duration::from_secs(seconds(probe.timeout_seconds, 1).into()),
            period: Duration::from_secs(seconds(probe.period_seconds, 10).into()),
            successes: at_least_one(probe.success_threshold).unwrap_or(1),
            failures: at_least_one(probe.failure_threshold).unwrap_or(3),
        })
    }

    /// Whether a client of this class can ask.
    pub fn is_for(&self, class: ClientClass) -> bool {
        match class {
            ClientClass::Library => true,
            // Its health discovery makes no clusters of HTTP/2.
            ClientClass::Envoy => !matches!(self.question, Question::Grpc { .. }),
            ClientClass::Grpc => false,
        }
    }
}

fn at_least_one(number: Option<i32>) -> Option<u32> {
    number.and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 0)
}

fn http(get: &HttpGet) -> Option<Question> {
    if !is_probed_scheme(get.scheme.as_deref().unwrap_or_default()) {
        return None;
    }
    let (mut host, mut headers) = (None, Vec::new());
    for header in &get.http_headers {
        if !is_probed_header(&header.name) || !is_probed_value(&header.value) {
            return None;
        }
        match header.name.eq_ignore_ascii_case("host") {
            true => host = Some(header.value.clone()),
            false => headers.push((header.name.clone(), header.value.clone())),
        }
    }
    Some(Question::Http { path: probed_path(get.path.as_deref().unwrap_or_default())?, host, headers })
}
