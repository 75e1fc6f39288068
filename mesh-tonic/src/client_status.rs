//! What the control plane told this process, and what became of it, for gRPC's tools: the client status discovery service (CSDS,
//! gRFC A40), `envoy.service.status.v3.ClientStatusDiscoveryService`.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;
use mesh_tower::Mesh;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tower_service::Service;

use crate::codec::Raw;

const NAME: &str = "envoy.service.status.v3.ClientStatusDiscoveryService";
const FETCH: &str = "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus";
const STREAM: &str = "/envoy.service.status.v3.ClientStatusDiscoveryService/StreamClientStatus";

/// The largest question that is read, in bytes.
const LARGEST: usize = 64 << 10;

/// The service that tells tools such as `grpcdebug` which resources this process has: each as it was received, with its version,
/// and what was wrong with the last one. Whoever reaches it reads the configuration of this process, so put it on a server of its own.
/// Certificates and keys are left out. Its streams end with the drain of the mesh, so that they do not hold it up.
///
/// ```
/// use mesh_core::fixed::Fixed;
/// use mesh_tonic::client_status::ClientStatusService;
/// use mesh_tower::Mesh;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mesh = Mesh::builder().source(Fixed::new()).start()?;
/// let server = tonic::transport::Server::builder().add_service(ClientStatusService::new(&mesh));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ClientStatusService(Mesh);

impl ClientStatusService {
    /// Tells of this mesh.
    pub fn new(mesh: &Mesh) -> Self {
        ClientStatusService(mesh.clone())
    }
}

impl NamedService for ClientStatusService {
    const NAME: &'static str = NAME;
}

impl<B> Service<http::Request<B>> for ClientStatusService
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(Raw).max_decoding_message_size(LARGEST);
            Ok(match request.uri().path() {
                FETCH => grpc.unary(service, request).await,
                STREAM => grpc.streaming(service, request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

fn answer(mesh: &Mesh, question: &[u8]) -> Result<Bytes, Status> {
    mesh.answer_csds(question).map_err(Status::invalid_argument)
}

impl UnaryService<Bytes> for ClientStatusService {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        ready(answer(&self.0, request.get_ref()).map(Response::new))
    }
}

impl StreamingService<Bytes> for ClientStatusService {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Ready<Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (mesh, drained) = (self.0.clone(), Box::pin(self.0.drained()));
        ready(Ok(Response::new(Answers { mesh, questions: request.into_inner(), drained, is_over: false })))
    }
}

/// The answers on one stream: one to each question, which is read once the answer before is taken.
pub struct Answers {
    mesh: Mesh,
    questions: Streaming<Bytes>,
    drained: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_over: bool,
}

impl Stream for Answers {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over || self.drained.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        let question = ready!(Pin::new(&mut self.questions).poll_next(cx));
        let answered = question.map(|question| answer(&self.mesh, &question?));
        self.is_over = !matches!(answered, Some(Ok(_)));
        Poll::Ready(answered)
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").field("is_over", &self.is_over).finish_non_exhaustive()
    }
}
