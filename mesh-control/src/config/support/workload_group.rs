//! What becomes of the fields of a `WorkloadGroup`.

use std::net::{IpAddr, Ipv4Addr};

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};

use super::Support::{Enforced, Indifferent, NotYet, Partly};
use super::{Row, Support, Tables, both, workload_entry};
use crate::config::node::Node;

pub(super) const TABLES: Tables = &[("", WORKLOAD_GROUP), ("template", workload_entry::ENDPOINT), ("probe", PROBE)];

const WORKLOAD_GROUP: &[Row] = &[
    both("metadata.labels", Enforced),
    both("metadata.annotations", Indifferent),
    // A member has a certificate, or says that it has none.
    both("template.labels", Enforced),
    both("template.address", NotYet("a member is reached where it registered itself")),
];

/// gRPC's clients have nobody beside the workload who could ask it.
const UNASKED: &str = "a member is healthy while it is connected";

const PROBE: &[Row] = &[
    both("initialDelaySeconds", NotYet("a member is asked at once, and gets requests once it is well")),
    probed("timeoutSeconds", Enforced),
    probed("periodSeconds", Enforced),
    probed("successThreshold", Enforced),
    probed("failureThreshold", Enforced),
    probed("httpGet.path", Partly(path)),
    probed("httpGet.port", Enforced),
    probed("httpGet.host", Partly(host)),
    probed("httpGet.scheme", Partly(scheme)),
    probed("httpGet.httpHeaders.name", Partly(header)),
    probed("httpGet.httpHeaders.value", Partly(value)),
    probed("tcpSocket.host", Partly(host)),
    probed("tcpSocket.port", Enforced),
    both("exec", NotYet("no command is run: a member is healthy while it is connected")),
    probed("grpc.port", Enforced),
    probed("grpc.service", Enforced),
];

const fn probed(path: &'static str, library: Support) -> Row {
    Row { path, library, grpc: NotYet(UNASKED) }
}

fn path(node: &Node) -> Option<String> {
    let path = node.as_str()?;
    probed_path(path).is_none().then(|| format!("no path; {UNASKED}"))
}

fn host(node: &Node) -> Option<String> {
    let host = node.as_str()?;
    probed_ip(host).is_none().then(|| format!("a name that is to be looked up; {UNASKED}"))
}

fn scheme(node: &Node) -> Option<String> {
    let scheme = node.as_str()?;
    (!is_probed_scheme(scheme)).then(|| format!("TLS; {UNASKED}"))
}

fn header(node: &Node) -> Option<String> {
    let name = node.as_str()?;
    (!is_probed_header(name)).then(|| format!("it belongs to the connection; {UNASKED}"))
}

fn value(node: &Node) -> Option<String> {
    let value = node.as_str()?;
    (!is_probed_value(value)).then(|| format!("no value of a header; {UNASKED}"))
}

/// Where a probe asks that names this host: where its workload is, unless it names an address.
pub fn probed_ip(host: &str) -> Option<IpAddr> {
    match host {
        "" | "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        address => address.parse().ok(),
    }
}

/// The path that a probe asks for, as Kubernetes takes it.
pub fn probed_path(path: &str) -> Option<String> {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    // What is behind a `#` would never be sent.
    (PathAndQuery::try_from(path.as_str()).is_ok() && !path.contains('#')).then_some(path)
}

/// Whether a probe can ask by this scheme.
pub fn is_probed_scheme(scheme: &str) -> bool {
    scheme.is_empty() || scheme.eq_ignore_ascii_case("http")
}

/// Whether a probe can have this header: those of the connection are for who makes it.
pub fn is_probed_header(name: &str) -> bool {
    const OF_THE_CONNECTION: [&str; 8] = [
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    HeaderName::try_from(name).is_ok_and(|name| !OF_THE_CONNECTION.contains(&name.as_str()))
}

/// Whether a header of a probe can have this value.
pub fn is_probed_value(value: &str) -> bool {
    HeaderValue::try_from(value).is_ok()
}
