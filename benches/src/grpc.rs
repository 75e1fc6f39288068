//! A gRPC echo, and a stream that lasts, written by hand so that nothing here needs protoc.

use std::convert::Infallible;
use std::future::Ready;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Request, Response};
use tokio_stream::wrappers::IntervalStream;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::server::{ServerStreamingService, UnaryService};
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;
use tower::Service;

/// The message, both ways.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Payload {
    /// Whatever.
    #[prost(bytes = "bytes", tag = "1")]
    pub body: Bytes,
}

/// The method's path.
pub const PATH: &str = "/bench.Echo/Echo";

/// The path of the stream.
pub const WATCH: &str = "/bench.Echo/Watch";

/// How far apart the messages of the stream are.
const PACE: Duration = Duration::from_millis(500);

/// The server's side.
#[derive(Clone, Debug)]
pub struct EchoServer;

#[derive(Clone)]
struct Echo;

impl UnaryService<Payload> for Echo {
    type Response = Payload;
    type Future = Ready<Result<tonic::Response<Payload>, Status>>;

    fn call(&mut self, request: tonic::Request<Payload>) -> Self::Future {
        std::future::ready(Ok(tonic::Response::new(request.into_inner())))
    }
}

#[derive(Clone)]
struct Watch;

impl ServerStreamingService<Payload> for Watch {
    type Response = Payload;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Payload, Status>> + Send>>;
    type Future = Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Payload>) -> Self::Future {
        let payload = request.into_inner();
        let ticks = IntervalStream::new(tokio::time::interval(PACE));
        let messages = ticks.map(move |_| Ok(payload.clone()));
        std::future::ready(Ok(tonic::Response::new(Box::pin(messages))))
    }
}

impl<B> Service<Request<B>> for EchoServer
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Payload, Payload>::default());
            match request.uri().path() {
                WATCH => Ok(grpc.server_streaming(Watch, request).await),
                _ => Ok(grpc.unary(Echo, request).await),
            }
        })
    }
}

impl tonic::server::NamedService for EchoServer {
    const NAME: &'static str = "bench.Echo";
}

/// One call through any gRPC client.
pub async fn call<S>(service: S, body: Bytes) -> Result<Payload, Status>
where
    S: GrpcService<Body>,
    S::ResponseBody: http_body::Body<Data = Bytes> + Send + 'static,
    <S::ResponseBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut grpc = tonic::client::Grpc::new(service);
    grpc.ready().await.map_err(|error| Status::unavailable(error.into().to_string()))?;
    let codec = ProstCodec::<Payload, Payload>::default();
    let request = tonic::Request::new(Payload { body });
    Ok(grpc.unary(request, PathAndQuery::from_static(PATH), codec).await?.into_inner())
}

/// One stream through a channel of the mesh: a message at once, and then one every half second.
pub async fn watch(channel: mesh_tonic::Channel) -> Result<tonic::Response<Streaming<Payload>>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await?;
    let codec = ProstCodec::<Payload, Payload>::default();
    grpc.server_streaming(tonic::Request::new(Payload::default()), PathAndQuery::from_static(WATCH), codec).await
}
