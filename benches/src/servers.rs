//! Servers without a mesh: hyper alone, and tonic's service over hyper.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;

use crate::Result;

/// Reads the request's body and answers with one of `bytes` bytes.
pub async fn echo(request: Request<Incoming>, body: Bytes) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let mut incoming = request.into_body();
    while let Some(Ok(_)) = incoming.frame().await {}
    Ok(Response::new(Full::new(body)))
}

/// Serves HTTP/1.1 and HTTP/2 on a free port of this machine, on the present runtime.
pub async fn bare(bytes: usize) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let body = Bytes::from(vec![b'x'; bytes]);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let body = body.clone();
            _ = stream.set_nodelay(true);
            tokio::spawn(async move {
                let service = service_fn(move |request| echo(request, body.clone()));
                _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Ok(address)
}

/// Serves the gRPC echo on a free port of this machine, on the present runtime.
pub async fn grpc() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            _ = stream.set_nodelay(true);
            tokio::spawn(async move {
                let service = hyper_util::service::TowerToHyperService::new(crate::grpc::EchoServer);
                let mut builder = auto::Builder::new(TokioExecutor::new());
                _ = builder.http2().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Ok(address)
}
