//! An echo: tells the caller what arrived, by HTTP/1.1, HTTP/2 and gRPC on one port, and misbehaves when asked.

mod control;
pub mod proto;
mod rpc;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::{Extensions, HeaderMap, HeaderValue, StatusCode};
use mesh_core::jwt::Claims;
use mesh_tonic::health::HealthService;
use mesh_tower::Mesh;
use mesh_tower::server::{ConnectionInfo, MeshTcpListener, TlsInfo};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tonic::Status;

use crate::grpc;

pub use control::{Control, HELP};

/// The header that says which instance answered.
pub const BACKEND: &str = "x-mesh-backend";

/// The most that a request's body may have; above it, 413.
const MAX_BODY: usize = 4 << 20;

/// Who answers.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The service's name.
    pub name: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
    /// Which instance it is: `name-version-ip:port`.
    pub backend: Arc<str>,
}

impl Identity {
    /// The instance of a service at this address.
    pub fn new(name: &str, version: &str, address: SocketAddr) -> Self {
        let backend = format!("{name}-{version}-{address}").into();
        Identity { name: name.into(), version: version.into(), backend }
    }

    /// The instance as a header's value.
    pub fn header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.backend).unwrap_or(HeaderValue::from_static("not-a-header-value"))
    }
}

/// What arrived, as JSON.
#[derive(Debug, Serialize)]
struct Echo<'e> {
    backend: &'e str,
    name: &'e str,
    version: &'e str,
    http: String,
    method: &'e str,
    path: &'e str,
    query: Option<&'e str>,
    headers: BTreeMap<&'e str, String>,
    body: String,
    #[serde(flatten)]
    caller: Caller,
}

/// Who asks, and over what connection.
#[derive(Clone, Debug, Default, Serialize)]
struct Caller {
    /// Its SPIFFE ID, where mutual TLS told.
    peer: Option<String>,
    peer_address: Option<SocketAddr>,
    /// `None` in plaintext.
    tls: Option<Tls>,
    /// What its token says, where a good one came.
    claims: Option<Map<String, Value>>,
}

/// What the handshake came to.
#[derive(Clone, Debug, Serialize)]
struct Tls {
    version: Option<String>,
    alpn: Option<String>,
    sni: Option<String>,
}

impl Caller {
    /// The one that this task answers; its token is known by the extensions of the request.
    fn current(request: &Extensions) -> Caller {
        let claims = request.get::<Claims>().map(|claims| claims.all().clone());
        let Some(connection) = ConnectionInfo::current() else { return Caller { claims, ..Caller::default() } };
        let text = |text: &Option<Arc<str>>| text.as_deref().map(str::to_owned);
        let tls = |tls: &TlsInfo| Tls { version: text(&tls.version), alpn: text(&tls.alpn), sni: text(&tls.sni) };
        Caller {
            peer: connection.peer_identity().map(ToString::to_string),
            peer_address: Some(connection.peer),
            tls: connection.tls().map(tls),
            claims,
        }
    }
}

/// The echo as a service: gRPC at `/mesh.echo.v1.Echo/…` and, as the mesh knows it, health at
/// `/grpc.health.v1.Health/…`; HTTP everywhere else.
pub fn app(mesh: &Mesh, identity: Identity) -> Router {
    let health = HealthService::new(mesh).named(proto::SERVICE).into_server();
    let rpc = |method: &str| format!("/{}/{method}", proto::SERVICE);
    let (one, two, three, four, rest) =
        (identity.clone(), identity.clone(), identity.clone(), identity.clone(), identity);
    Router::new()
        .route_service("/grpc.health.v1.Health/{method}", health)
        .route(&rpc("Unary"), post(move |request| rpc::unary(one.clone(), request)))
        .route(&rpc("ServerStream"), post(move |request| rpc::server_stream(two.clone(), request)))
        .route(&rpc("ClientStream"), post(move |request| rpc::client_stream(three.clone(), request)))
        .route(&rpc("BidiStream"), post(move |request| rpc::bidi_stream(four.clone(), request)))
        .fallback(move |request| http_echo(rest.clone(), request))
}

/// Sends back what comes over each connection, until nobody is let in any more.
pub async fn bytes(mut listener: MeshTcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Some((io, _)) = accepted else { break };
                connections.spawn(async move {
                    let (mut reader, mut writer) = tokio::io::split(io);
                    // Whoever breaks off has had enough.
                    _ = tokio::io::copy(&mut reader, &mut writer).await;
                    _ = writer.shutdown().await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
    // Those that are open have as long as the drain gives them.
    while connections.join_next().await.is_some() {}
}

async fn http_echo(identity: Identity, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if grpc::is_grpc(&parts.headers) {
        return grpc::status(&Status::unimplemented(format!("no method {}", parts.uri.path())));
    }
    let control = match Control::of(&parts.headers, parts.uri.query()) {
        Ok(control) => control,
        Err(what) => return (StatusCode::BAD_REQUEST, what).into_response(),
    };
    control.wait().await;
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return (StatusCode::PAYLOAD_TOO_LARGE, "the body is too large, or did not arrive").into_response();
    };
    let echo = Echo {
        backend: &identity.backend,
        name: &identity.name,
        version: &identity.version,
        http: format!("{:?}", parts.version),
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query(),
        headers: texts(&parts.headers),
        body: String::from_utf8_lossy(&body).into_owned(),
        caller: Caller::current(&parts.extensions),
    };
    let status = control.status.unwrap_or(StatusCode::OK);
    (status, [(BACKEND, identity.header())], axum::Json(echo)).into_response()
}

/// Headers as text; of several that have one name, the values are joined.
fn texts(headers: &HeaderMap) -> BTreeMap<&str, String> {
    let mut texts = BTreeMap::<&str, String>::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let text = texts.entry(name.as_str()).or_default();
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&value);
    }
    texts
}
