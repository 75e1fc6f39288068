//! Authorizers: who is asked about requests, how, and what becomes of those that they do not answer about (Istio's extension
//! providers of the kinds `envoyExtAuthzHttp` and `envoyExtAuthzGrpc`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::model::IN_PROCESS;

use super::access::Value;
use super::mesh::MeshSettings;
use crate::config::decode::Text;
use crate::config::diagnostic::quoted;
use crate::config::istio::mesh_config::{AUTHORIZER_TIMEOUT, BodyInCheck, HttpAuthorizer, status};
use crate::config::spelling::nearest;

/// Somebody who is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorizer {
    /// The name of its provider.
    pub name: Arc<str>,
    /// The host of its service.
    pub host: String,
    /// The port.
    pub port: u16,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Whether requests pass that it does not answer about.
    pub fail_open: bool,
    /// What clients are told where it does not answer.
    pub status_on_error: u16,
    /// What it is asked over HTTP; `None` for gRPC.
    pub http: Option<HttpQuestion>,
    /// How much of the body it is shown.
    pub body: Option<ShownBody>,
}

/// How much of a request's body is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShownBody {
    /// The most, in bytes.
    pub most: u32,
    /// Whether the first bytes of a longer one are enough.
    pub allow_partial: bool,
    /// Whether it is bytes over gRPC, else text.
    pub as_bytes: bool,
}

/// What is in a question over HTTP, and in its answer. Names of headers are exact, or have a star at one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpQuestion {
    /// What stands before the request's path.
    pub path_prefix: String,
    /// Headers of the request that it is shown.
    pub shown: Vec<Value>,
    /// Headers that it is sent besides.
    pub added: BTreeMap<String, String>,
    /// Headers of an answer that lets in, for the application.
    pub to_upstream: Vec<Value>,
    /// Headers of an answer that refuses, for the client; all, where none is named.
    pub to_client_on_deny: Vec<Value>,
    /// Headers of an answer that lets in, for the client.
    pub to_client_on_allow: Vec<Value>,
}

impl Authorizer {
    /// That of a provider of this name; the error says why nobody can be asked.
    pub fn named(name: &str, mesh: &MeshSettings) -> Result<Authorizer, String> {
        let providers = mesh.object.iter().flat_map(|object| &object.spec.extension_providers);
        let mut named = providers.filter(|provider| provider.name.value == name);
        let provider = named.next().ok_or_else(|| unknown(name, mesh))?;
        let made = |service: &Text, port: u16, timeout: Option<Duration>, fail_open, on_error: Option<&Text>| {
            let host = service.split_once('/').map_or(service.as_str(), |(_, host)| host);
            Authorizer {
                name: name.into(),
                host: host.to_ascii_lowercase(),
                port,
                timeout: timeout.unwrap_or(AUTHORIZER_TIMEOUT),
                fail_open,
                status_on_error: on_error.and_then(|text| status(text)).unwrap_or(403),
                http: None,
                body: None,
            }
        };
        match (&provider.http, &provider.grpc) {
            (Some(http), None) => {
                let (on_error, body) =
                    (http.status_on_error.as_ref(), body(http.include_request_body_in_check.as_ref()));
                let made = made(&http.service, http.port.0, http.timeout, http.fail_open, on_error);
                Ok(Authorizer { http: Some(question(http)), body, ..made })
            }
            (None, Some(grpc)) => {
                let (on_error, body) =
                    (grpc.status_on_error.as_ref(), body(grpc.include_request_body_in_check.as_ref()));
                let made = made(&grpc.service, grpc.port.0, grpc.timeout, grpc.fail_open, on_error);
                Ok(Authorizer { body, ..made })
            }
            _ => Err(format!("the extension provider {name} is none that can be asked")),
        }
    }

    /// Whether it is in the process of the server that asks it.
    pub fn is_in_process(&self) -> bool {
        self.host.ends_with(IN_PROCESS)
    }

    /// What the mesh's clients call it by.
    pub fn target(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// What there is in the place of a provider that there is not.
fn unknown(name: &str, mesh: &MeshSettings) -> String {
    const MOST: usize = 10;
    let providers = mesh.object.iter().flat_map(|object| &object.spec.extension_providers);
    let askable = providers.filter(|provider| provider.http.is_some() || provider.grpc.is_some());
    let known: Vec<&str> = askable.map(|provider| provider.name.as_str()).collect();
    let message = format!("the mesh's settings have no extension provider {}", quoted(name));
    if known.is_empty() {
        return format!("{message}, and none that can be asked");
    }
    let meant = nearest(name, &known).map(|meant| format!("; did you mean {}?", quoted(meant))).unwrap_or_default();
    let listed: Vec<String> = known.iter().take(MOST).map(|name| quoted(name)).collect();
    format!("{message}, only {}{meant}", listed.join(", "))
}

fn body(written: Option<&BodyInCheck>) -> Option<ShownBody> {
    written.map(|body| ShownBody {
        most: body.max_request_bytes,
        allow_partial: body.allow_partial_message,
        as_bytes: body.pack_as_bytes,
    })
}

fn question(http: &HttpAuthorizer) -> HttpQuestion {
    let names = |list: &[Text]| -> Vec<Value> { list.iter().map(|text| name(text)).collect() };
    HttpQuestion {
        path_prefix: http.path_prefix.clone(),
        shown: [names(&http.include_headers_in_check), names(&http.include_request_headers_in_check)].concat(),
        added: http.include_additional_headers_in_check.clone(),
        to_upstream: names(&http.headers_to_upstream_on_allow),
        to_client_on_deny: names(&http.headers_to_downstream_on_deny),
        to_client_on_allow: names(&http.headers_to_downstream_on_allow),
    }
}

/// The name of a header, in small letters, with a star at one end at most.
fn name(text: &str) -> Value {
    let text = text.to_ascii_lowercase();
    match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => Value::Present,
        (Some(suffix), _) => Value::Suffix(suffix.to_owned()),
        (None, Some(prefix)) => Value::Prefix(prefix.to_owned()),
        (None, None) => Value::Exact(text),
    }
}
