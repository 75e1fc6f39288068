//! The clients that are compared: hyper's bare connection, hyper-util's pool, tonic's channels, the mesh.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::HOST as HOST_HEADER;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::fixed::Fixed;
use mesh_tower::{Client, Mesh};
use tokio::net::TcpStream;
use tonic::body::Body as GrpcBody;
use tower::Service;

use crate::Result;

/// Which HTTP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Version {
    /// HTTP/1.1
    Http1,
    /// HTTP/2
    Http2,
}

/// The host by which the mesh knows the server.
pub const HOST: &str = "server.bench:8080";

/// URIs are parsed once by everybody who is measured.
static MESH_URI: LazyLock<Uri> = LazyLock::new(|| Uri::from_static("http://server.bench:8080/echo"));
static PATH: LazyLock<Uri> = LazyLock::new(|| Uri::from_static("/echo"));

/// The URI of a server for those who know its address.
pub fn direct_uri(address: SocketAddr) -> Result<Uri> {
    Ok(format!("http://{address}/echo").parse()?)
}

/// A bare connection, driven by a task of its own.
pub enum Raw {
    /// HTTP/1.1
    Http1(http1::SendRequest<Full<Bytes>>),
    /// HTTP/2
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Raw {
    /// Connects.
    pub async fn connect(address: SocketAddr, version: Version) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        Ok(match version {
            Version::Http1 => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection);
                Raw::Http1(sender)
            }
            Version::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                Raw::Http2(sender)
            }
        })
    }

    /// One request, its response read to the end; how many bytes it had.
    pub async fn send(&mut self, body: Bytes) -> Result<usize> {
        let response = match self {
            Raw::Http1(sender) => {
                let host = const { HeaderValue::from_static(HOST) };
                let request = Request::post(PATH.clone()).header(HOST_HEADER, host).body(Full::new(body))?;
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Raw::Http2(sender) => {
                let request = Request::post(MESH_URI.clone()).body(Full::new(body))?;
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        read(response).await
    }
}

/// hyper-util's pooled client.
pub type Pooled = legacy::Client<legacy::connect::HttpConnector, Full<Bytes>>;

/// A pooled client.
pub fn pooled(version: Version) -> Pooled {
    let mut connector = legacy::connect::HttpConnector::new();
    connector.set_nodelay(true);
    legacy::Client::builder(TokioExecutor::new()).http2_only(version == Version::Http2).build(connector)
}

/// One request through a pooled client.
pub async fn send_pooled(client: &Pooled, uri: &Uri, body: Bytes) -> Result<usize> {
    let request = Request::post(uri.clone()).body(Full::new(body))?;
    read(client.request(request).await?).await
}

/// A mesh that knows one service under [`HOST`].
pub fn mesh(addresses: impl IntoIterator<Item = SocketAddr>) -> Result<Mesh> {
    Ok(Mesh::builder().source(Fixed::new().service(HOST, addresses)).start()?)
}

/// One request through the mesh.
pub async fn send_mesh(client: &Client, version: Version, body: Bytes) -> Result<usize> {
    let version = match version {
        Version::Http1 => http::Version::HTTP_11,
        Version::Http2 => http::Version::HTTP_2,
    };
    let request = Request::post(MESH_URI.clone()).version(version).body(Full::new(body))?;
    read(client.request(request).await?).await
}

async fn read<B>(response: Response<B>) -> Result<usize>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    anyhow::ensure!(response.status().is_success(), "status {}", response.status());
    let mut body = response.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(bytes)
}

/// tonic's codec over hyper's bare connection.
#[derive(Clone)]
pub struct RawGrpc(http2::SendRequest<GrpcBody>);

impl RawGrpc {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(RawGrpc(sender))
    }
}

impl Service<Request<GrpcBody>> for RawGrpc {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<GrpcBody>) -> Self::Future {
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = Some(http::uri::Authority::from_static(HOST));
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        Box::pin(self.0.send_request(request))
    }
}
