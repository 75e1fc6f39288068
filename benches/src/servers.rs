//! The servers: hyper alone, tonic's service over hyper, and both behind the mesh's listener and layer.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::fixed::Fixed;
use mesh_core::xds::{Bootstrap, XdsSource};
use mesh_tower::Mesh;
use mesh_tower::server::{self, MeshListener};
use tokio::net::{TcpListener, TcpStream};
use tower::Layer;

use crate::Result;
use crate::clients::{HOST, Unsampled, Version, observed};
use crate::exchange::{PLAIN_PREFIX, STREAM_PATH, bytes};
use crate::grpc::EchoServer;

/// Where a process serves.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// HTTP/1.1 and HTTP/2.
    pub http: SocketAddr,
    /// gRPC.
    pub grpc: SocketAddr,
}

/// Whether the mesh is in front of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ServerKind {
    /// hyper, and tonic's service over hyper.
    Bare,
    /// `mesh.bind`, `mesh_tower::server::serve` and `mesh.server_layer()`.
    Mesh,
    /// The same, recording traces, which the requests are no part of.
    Traced,
    /// The same, counting requests, too, with the admin port.
    Observed,
}

/// Any free port of this machine.
const FREE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

type Answer = Either<Full<Bytes>, Incoming>;

/// Answers with as many bytes as the path says, once the request is read; or with the request's own stream.
async fn echo(request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    if request.uri().path() == STREAM_PATH {
        return Ok(Response::new(Either::Right(request.into_body())));
    }
    let count = request.uri().path().strip_prefix(PLAIN_PREFIX).and_then(|count| count.parse().ok());
    let mut incoming = request.into_body();
    while let Some(Ok(_)) = incoming.frame().await {}
    let mut response = Response::new(Either::Left(Full::new(bytes(count.unwrap_or(0)))));
    if count.is_none() {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    Ok(response)
}

/// Serves both protocols on free ports of this machine, on the present runtime.
pub async fn start(kind: ServerKind) -> Result<Served> {
    Ok(Served { http: http(kind).await?, grpc: grpc(kind).await? })
}

/// A control plane that gives identities, and knows the server of [`following`] under [`HOST`], as one that speaks this version. Calls
/// are by mutual TLS, or, where `is_open`, in plaintext.
pub async fn control(version: Version, is_open: bool) -> Result<Embedded> {
    let (host, port) = HOST.split_once(':').unwrap_or((HOST, "80"));
    let (name, namespace) = host.split_once('.').unwrap_or((host, "default"));
    let protocol = match version {
        Version::Http1 => "http",
        Version::Http2 => "http2",
    };
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{selector: {{app: server}}, ports: [{{name: {protocol}, port: {port}}}]}}\n"
    );
    if is_open {
        yaml += "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                 metadata: {name: open, namespace: istio-system}\nspec: {mtls: {mode: DISABLE}}\n";
    }
    Ok(Embedded::start(Config::yaml(yaml), Options::default().dev()).await?)
}

/// Serves HTTP/1.1 and HTTP/2 on a free port of this machine, as the service [`HOST`] of a control plane.
pub async fn following(control: SocketAddr) -> Result<Served> {
    let mesh = identified_mesh(control, "server")?;
    let listener = listen(&mesh, FREE).await?;
    let layer = mesh.server_layer();
    let http = listener.local_addr();
    tokio::spawn(server::serve(listener, layer.layer(tower::service_fn(echo))).into_future());
    // gRPC is not compared.
    Ok(Served { http, grpc: http })
}

/// A mesh that follows a control plane, as a workload of this name and service account.
pub fn identified_mesh(control: SocketAddr, name: &str) -> Result<Mesh> {
    let bootstrap = Bootstrap::new(control.to_string())
        .node_id(format!("mesh~127.0.0.1~{name}.bench~bench.svc.cluster.local"))
        .metadata("NAMESPACE", "bench")
        .metadata("SERVICE_ACCOUNT", name)
        .metadata("LABELS", serde_json::json!({ "app": name }));
    Ok(Mesh::builder().source(XdsSource::new(bootstrap)).start()?)
}

/// Serves HTTP/1.1 and HTTP/2 on a free port of this machine, on the present runtime.
pub async fn http(kind: ServerKind) -> Result<SocketAddr> {
    http_at(kind, FREE).await
}

/// The same at an address.
pub async fn http_at(kind: ServerKind, address: SocketAddr) -> Result<SocketAddr> {
    if kind != ServerKind::Bare {
        let mesh = serving_mesh(kind)?;
        let listener = listen(&mesh, address).await?;
        let layer = mesh.server_layer();
        let address = listener.local_addr();
        tokio::spawn(server::serve(listener, layer.layer(tower::service_fn(echo))).into_future());
        return Ok(address);
    }
    accept(address, |stream| async move {
        let builder = auto::Builder::new(TokioExecutor::new());
        _ = builder.serve_connection(TokioIo::new(stream), service_fn(echo)).await;
    })
    .await
}

/// Serves gRPC on a free port of this machine, on the present runtime.
pub async fn grpc(kind: ServerKind) -> Result<SocketAddr> {
    if kind != ServerKind::Bare {
        let mesh = serving_mesh(kind)?;
        let listener = listen(&mesh, FREE).await?;
        let layer = mesh_tonic::server_layer(&mesh);
        let address = listener.local_addr();
        tokio::spawn(server::serve(listener, layer.layer(EchoServer)).into_future());
        return Ok(address);
    }
    accept(FREE, |stream| async move {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        _ = builder.http2().serve_connection(TokioIo::new(stream), TowerToHyperService::new(EchoServer)).await;
    })
    .await
}

async fn accept<F>(address: SocketAddr, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Result<SocketAddr>
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            _ = stream.set_nodelay(true);
            tokio::spawn(serve(stream));
        }
    });
    Ok(address)
}

/// A mesh whose servers serve everything.
fn serving_mesh(kind: ServerKind) -> Result<Mesh> {
    let builder = Mesh::builder().source(Fixed::new());
    match kind {
        ServerKind::Traced => Ok(builder.traces(Unsampled).start()?),
        ServerKind::Observed => observed(builder),
        ServerKind::Bare | ServerKind::Mesh => Ok(builder.start()?),
    }
}

/// The one listener of a mesh, once it may serve.
async fn listen(mesh: &Mesh, address: SocketAddr) -> Result<MeshListener> {
    let listener = mesh.bind(address).await?;
    mesh.serving().await?;
    Ok(listener)
}
