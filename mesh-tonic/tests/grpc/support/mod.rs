//! A service with a method of each kind, written by hand so that nothing here needs protoc, and a mesh around it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{Request, Response};
use mesh_core::fixed::Fixed;
use mesh_tonic::Channel;
use mesh_tower::Mesh;
use tokio::task::JoinHandle;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;
use tower::Service;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Number {
    #[prost(int64, tag = "1")]
    pub value: i64,
}

pub fn number(value: i64) -> Number {
    Number { value }
}

pub type Numbers = Pin<Box<dyn Stream<Item = Result<Number, Status>> + Send>>;

/// What the methods do; `next` is where `Relay` passes its request on to.
#[derive(Clone, Default)]
pub struct Calculator {
    pub next: Option<Channel>,
}

impl NamedService for Calculator {
    const NAME: &'static str = "test.Calculator";
}

impl Calculator {
    /// Unary: the double. Negative numbers are refused; above 1,000 it takes that many milliseconds.
    async fn double(self, request: tonic::Request<Number>) -> Result<tonic::Response<Number>, Status> {
        assert!(request.remote_addr().is_none_or(|peer| peer.ip().is_loopback()));
        let value = request.into_inner().value;
        if value < 0 {
            return Err(Status::invalid_argument("no negative numbers, please"));
        }
        if value > 1000 {
            tokio::time::sleep(Duration::from_millis(value.unsigned_abs())).await;
        }
        Ok(tonic::Response::new(number(value * 2)))
    }

    /// Unary: what the next server says to `Left`, asked within the deadline of this call.
    async fn relay(self, request: tonic::Request<Number>) -> Result<tonic::Response<Number>, Status> {
        let next = self.next.ok_or_else(|| Status::failed_precondition("nobody is next"))?;
        CalculatorClient(next).unary("Left", tonic::Request::new(request.into_inner())).await
    }

    /// Unary: the milliseconds of `grpc-timeout` that came with the call, or -1; rounded down.
    async fn left(self, request: tonic::Request<Number>) -> Result<tonic::Response<Number>, Status> {
        let timeout = request.metadata().get("grpc-timeout").and_then(|it| mesh_tonic::deadline::parse(it.as_bytes()));
        let millis = timeout.map_or(-1, |timeout| i64::try_from(timeout.as_millis()).unwrap());
        Ok(tonic::Response::new(number(millis)))
    }

    /// Server streaming: counts down, one a millisecond.
    async fn count(self, request: tonic::Request<Number>) -> Result<tonic::Response<Numbers>, Status> {
        let from = request.into_inner().value;
        let ticks = tokio_stream::iter((0..from).rev()).then(|value| async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(number(value))
        });
        Ok(tonic::Response::new(Box::pin(ticks)))
    }

    /// Client streaming: the sum.
    async fn sum(self, request: tonic::Request<Streaming<Number>>) -> Result<tonic::Response<Number>, Status> {
        let mut numbers = request.into_inner();
        let mut sum = 0;
        while let Some(next) = numbers.next().await {
            sum += next?.value;
        }
        Ok(tonic::Response::new(number(sum)))
    }

    /// Bidirectional: the sum so far, after each number.
    async fn sums(self, request: tonic::Request<Streaming<Number>>) -> Result<tonic::Response<Numbers>, Status> {
        let mut sum = 0;
        let sums = request.into_inner().map(move |next| {
            sum += next?.value;
            Ok(number(sum))
        });
        Ok(tonic::Response::new(Box::pin(sums)))
    }
}

/// A method as tonic wants it: a service of its own.
#[derive(Clone)]
struct Method<F>(F);

type Answer<T> = Pin<Box<dyn Future<Output = Result<tonic::Response<T>, Status>> + Send>>;

macro_rules! method {
    ($kind:ident, $request:ty, $response:ty, $($stream:ident)?) => {
        impl<F, A> tonic::server::$kind<Number> for Method<F>
        where
            F: Fn(tonic::Request<$request>) -> A,
            A: Future<Output = Result<tonic::Response<$response>, Status>> + Send + 'static,
        {
            type Response = Number;
            $(type $stream = $response;)?
            type Future = Answer<$response>;

            fn call(&mut self, request: tonic::Request<$request>) -> Self::Future {
                Box::pin((self.0)(request))
            }
        }
    };
}

method!(UnaryService, Number, Number,);
method!(ServerStreamingService, Number, Numbers, ResponseStream);
method!(ClientStreamingService, Streaming<Number>, Number,);
method!(StreamingService, Streaming<Number>, Numbers, ResponseStream);

impl Service<Request<Body>> for Calculator {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Number, Number>::default());
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let response = match method.as_str() {
                "Double" => grpc.unary(Method(|it| this.clone().double(it)), request).await,
                "Relay" => grpc.unary(Method(|it| this.clone().relay(it)), request).await,
                "Left" => grpc.unary(Method(|it| this.clone().left(it)), request).await,
                "Count" => grpc.server_streaming(Method(|it| this.clone().count(it)), request).await,
                "Sum" => grpc.client_streaming(Method(|it| this.clone().sum(it)), request).await,
                "Sums" => grpc.streaming(Method(|it| this.clone().sums(it)), request).await,
                _ => Status::unimplemented("no such method").into_http(),
            };
            Ok(response)
        })
    }
}

/// What protoc would have generated.
#[derive(Clone)]
pub struct CalculatorClient(pub Channel);

impl CalculatorClient {
    fn grpc(&self) -> tonic::client::Grpc<Channel> {
        tonic::client::Grpc::new(self.0.clone())
    }

    fn path(method: &str) -> PathAndQuery {
        PathAndQuery::try_from(format!("/test.Calculator/{method}")).unwrap()
    }

    fn codec() -> ProstCodec<Number, Number> {
        ProstCodec::default()
    }

    pub async fn unary(
        &self,
        method: &str,
        request: tonic::Request<Number>,
    ) -> Result<tonic::Response<Number>, Status> {
        let mut grpc = self.grpc();
        grpc.ready().await?;
        grpc.unary(request, Self::path(method), Self::codec()).await
    }

    pub async fn double(&self, value: i64) -> Result<i64, Status> {
        self.unary("Double", tonic::Request::new(number(value))).await.map(|answer| answer.into_inner().value)
    }

    pub async fn count(&self, request: tonic::Request<Number>) -> Result<Streaming<Number>, Status> {
        self.counting(request).await.map(tonic::Response::into_inner)
    }

    pub async fn counting(
        &self,
        request: tonic::Request<Number>,
    ) -> Result<tonic::Response<Streaming<Number>>, Status> {
        let mut grpc = self.grpc();
        grpc.ready().await?;
        grpc.server_streaming(request, Self::path("Count"), Self::codec()).await
    }

    pub async fn sum(&self, numbers: impl Stream<Item = Number> + Send + 'static) -> Result<i64, Status> {
        let mut grpc = self.grpc();
        grpc.ready().await?;
        let answer = grpc.client_streaming(tonic::Request::new(numbers), Self::path("Sum"), Self::codec()).await;
        answer.map(|answer| answer.into_inner().value)
    }

    pub async fn sums(
        &self,
        numbers: impl Stream<Item = Number> + Send + 'static,
    ) -> Result<Streaming<Number>, Status> {
        let mut grpc = self.grpc();
        grpc.ready().await?;
        let answer = grpc.streaming(tonic::Request::new(numbers), Self::path("Sums"), Self::codec()).await;
        answer.map(tonic::Response::into_inner)
    }
}

/// A server behind a mesh of its own.
pub struct Serving {
    pub mesh: Mesh,
    pub address: SocketAddr,
    pub ended: JoinHandle<Result<(), mesh_core::error::MeshError>>,
}

pub async fn start(calculator: Calculator) -> Serving {
    let source = Fixed::new();
    let mesh = Mesh::builder().source(source).lame_duck(Duration::from_millis(200)).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let health = mesh_tonic::health::HealthService::new(&mesh).with::<Calculator>().into_server();
    let layer = mesh_tonic::server_layer(&mesh);
    let server = Server::builder().layer(layer).add_service(calculator).add_service(health);
    let ended = tokio::spawn(mesh_tonic::serve(listener, server));
    mesh.serving().await.unwrap();
    Serving { mesh, address, ended }
}

/// A channel to these servers, by the name `calculator:50051`.
pub fn channel(addresses: &[SocketAddr]) -> Channel {
    let source = Fixed::new().service("calculator:50051", addresses.iter().copied());
    mesh_tonic::channel(&Mesh::builder().source(source).start().unwrap(), "xds:///calculator:50051")
}

/// Nothing in these tests takes this long.
pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it hangs")
}
