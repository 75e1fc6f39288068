//! A request as a line has it, read strictly, and as a workload would make it.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context, bail};
use http::header::{CONTENT_TYPE, HOST};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, Request, Uri, Version};
use mesh_core::request::split_authority;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::cli::input::{Values, object, too_long};
use crate::explain::workload::Workload;

/// A line.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    id: serde_json::Value,
    #[serde(default)]
    kind: Kind,
    #[serde(default, deserialize_with = "source")]
    source: Option<Workload>,
    #[serde(default)]
    gateway: Option<String>,
    #[serde(default)]
    protocol: Option<Protocol>,
    #[serde(default)]
    scheme: Option<String>,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    headers: Option<BTreeMap<String, Values>>,
    #[serde(default)]
    tls: Option<bool>,
    #[serde(default)]
    sni: Option<String>,
    #[serde(default)]
    alpn: Option<Values>,
    #[serde(default)]
    address: Option<String>,
}

/// A workload as an object: a list would be read by the places of its items.
fn source<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Workload>, D::Error> {
    let fields = Option::<serde_json::Map<String, serde_json::Value>>::deserialize(from)?;
    fields.map(|fields| serde_json::from_value(fields.into()).map_err(D::Error::custom)).transpose()
}

/// Where a request is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// Where it leaves a workload of the mesh.
    #[default]
    Mesh,
    /// Where it comes in through a gateway.
    Gateway,
    /// Where it reaches the server of a workload.
    Inbound,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Bytes that nobody looks into.
    Tcp,
}

/// A request.
pub(super) struct Asked {
    pub(super) id: serde_json::Value,
    pub(super) kind: Kind,
    /// The workload: who makes it, or of [`Kind::Inbound`] who gets it.
    pub(super) source: Workload,
    pub(super) gateway: Option<String>,
    pub(super) protocol: Protocol,
    /// Its authority as it is asked for.
    pub(super) host: String,
    /// The host without a port.
    pub(super) name: String,
    pub(super) port: u16,
    /// Whether the caller speaks TLS itself.
    pub(super) is_tls: bool,
    pub(super) sni: Option<String>,
    pub(super) alpn: bool,
    pub(super) address: Option<String>,
    /// Its head; of bytes, that of the request whose route they follow.
    pub(super) head: Parts,
}

/// A line that is no request.
pub(super) struct NoRequest {
    /// What it calls itself, where that can be read.
    pub(super) id: serde_json::Value,
    pub(super) why: anyhow::Error,
}

impl NoRequest {
    /// Longer than any request is.
    pub(super) fn too_long() -> NoRequest {
        NoRequest { id: serde_json::Value::Null, why: anyhow::Error::msg(too_long()) }
    }
}

impl Asked {
    /// Reads a line. A field that is not known, or is for something else, is an error.
    pub(super) fn read(line: &[u8]) -> Result<Asked, NoRequest> {
        let parsed = object::<Line>(line).and_then(Asked::of);
        parsed.map_err(|why| {
            let any: Result<serde_json::Value, _> = serde_json::from_slice(line);
            let id = any.ok().and_then(|any| any.get("id").cloned()).unwrap_or_default();
            NoRequest { id, why }
        })
    }

    fn of(line: Line) -> anyhow::Result<Asked> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let protocol = line.protocol.unwrap_or_default();
        let scheme = given(line.scheme);
        if let Some(other) = scheme.as_deref().filter(|scheme| !["http", "https"].contains(scheme)) {
            bail!("scheme: {other:?} is neither http nor https");
        }
        let Some(host) = given(line.host) else { bail!("host: missing") };
        let (name, of_host) = split_authority(&host).with_context(|| format!("host: {host:?} is no host"))?;
        let of_host = of_host.filter(|port| !port.is_empty()).map(|port| port.parse::<u16>()).transpose()?;
        let port = match (of_host, line.port) {
            (Some(host), Some(port)) if host != port => bail!("port: {port}, and the host says {host}"),
            (of_host, port) => of_host.or(port),
        };
        // What reaches a gateway in TLS is https there. A port is enough to say so, as long as nothing else does.
        let is_gateway = line.kind == Kind::Gateway;
        let is_said = scheme.is_some() || line.tls.is_some();
        let is_usual = line.sni.is_some() || (port == Some(443) && protocol != Protocol::Tcp);
        let is_tls =
            scheme.as_deref() == Some("https") || line.tls == Some(true) || (is_gateway && !is_said && is_usual);
        let is_https = scheme.as_deref() == Some("https") || (is_gateway && is_tls);
        let port = port.unwrap_or(if is_https { 443 } else { 80 });
        if port == 0 {
            bail!("port: 0 is none");
        }
        if line.kind != Kind::Gateway && line.gateway.is_some() {
            bail!("gateway: only a request of kind gateway has one");
        }
        let (method, path) = (given(line.method), given(line.path));
        let headers = line.headers.unwrap_or_default();
        if protocol == Protocol::Tcp && (method.is_some() || path.is_some() || !headers.is_empty()) {
            bail!("protocol: tcp has no method, path or headers");
        }
        let method = method.as_deref().unwrap_or(if protocol == Protocol::Grpc { "POST" } else { "GET" });
        let method = Method::try_from(method).with_context(|| format!("method: {method:?}"))?;
        let path = path.as_deref().unwrap_or("/");
        if !path.starts_with('/') && (path != "*" || method != Method::OPTIONS) {
            bail!("path: {path:?} does not begin with /");
        }
        let mut uri = http::uri::Parts::default();
        uri.path_and_query = Some(PathAndQuery::try_from(path).with_context(|| format!("path: {path:?}"))?);
        uri.authority = Some(Authority::try_from(host.as_str()).with_context(|| format!("host: {host:?}"))?);
        uri.scheme = Some(if is_https { Scheme::HTTPS } else { Scheme::HTTP });
        let (mut head, ()) = Request::new(()).into_parts();
        head.uri = Uri::from_parts(uri)?;
        head.method = method;
        head.version = match protocol {
            Protocol::Http | Protocol::Tcp => Version::HTTP_11,
            Protocol::Http2 | Protocol::Grpc => Version::HTTP_2,
        };
        if protocol == Protocol::Grpc {
            head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        }
        let mut told = HashSet::new();
        for (name, values) in &headers {
            let header = HeaderName::try_from(name).with_context(|| format!("headers: {name:?}"))?;
            if header == HOST {
                bail!("headers: the authority is `host`, which is a field of its own");
            }
            if !told.insert(header.clone()) {
                bail!("headers: {header} is there twice, in letters of another case: its values are a list");
            }
            head.headers.remove(&header);
            for value in values.as_slice() {
                let value = HeaderValue::try_from(value).with_context(|| format!("headers: {name}: {value:?}"))?;
                head.headers.append(&header, value);
            }
        }
        Ok(Asked {
            id: line.id,
            kind: line.kind,
            source: line
                .source
                .unwrap_or_else(|| Workload { namespace: "default".to_owned(), labels: BTreeMap::new() }),
            gateway: line.gateway,
            protocol,
            name: name.to_owned(),
            host,
            port,
            is_tls,
            sni: line.sni,
            alpn: line.alpn.is_some(),
            address: given(line.address),
            head,
        })
    }

    /// The server that TLS asks for: the host, unless another is given. Of bytes nobody knows that.
    pub(super) fn server_name(&self) -> Option<&str> {
        let name = match (&self.sni, self.protocol) {
            _ if !self.is_tls => None,
            (Some(sni), _) => Some(sni.as_str()),
            (None, Protocol::Tcp) => None,
            (None, _) => Some(self.name.as_str()),
        };
        name.filter(|name| !name.is_empty())
    }
}
