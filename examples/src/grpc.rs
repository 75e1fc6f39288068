//! gRPC without generated code: methods as routes of an axum router, and codes by name.
//!
//! A gRPC method is a POST to `/package.Service/Method`, so HTTP and gRPC can share one router and one port.

use axum::extract::Request;
use axum::response::Response;
use mesh_core::error::GRPC_STATUSES;
use prost::Message;
use tokio_stream::Stream;
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

/// Serves a method that takes one message and gives one.
pub async fn unary<Q, R, F>(request: Request, method: impl FnMut(tonic::Request<Q>) -> F + Send) -> Response
where
    Q: Message + Default + 'static,
    R: Message + Default + 'static,
    F: Future<Output = Result<tonic::Response<R>, Status>> + Send,
{
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<R, Q>::default());
    grpc.unary(tower::service_fn(method), request).await.map(axum::body::Body::new)
}

/// Serves a method that takes one message and gives a stream of them.
pub async fn server_stream<Q, R, S, F>(request: Request, method: impl FnMut(tonic::Request<Q>) -> F + Send) -> Response
where
    Q: Message + Default + 'static,
    R: Message + Default + 'static,
    S: Stream<Item = Result<R, Status>> + Send + 'static,
    F: Future<Output = Result<tonic::Response<S>, Status>> + Send,
{
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<R, Q>::default());
    grpc.server_streaming(tower::service_fn(method), request).await.map(axum::body::Body::new)
}

/// Serves a method that takes a stream of messages and gives one.
pub async fn client_stream<Q, R, F>(
    request: Request,
    method: impl FnMut(tonic::Request<Streaming<Q>>) -> F + Send,
) -> Response
where
    Q: Message + Default + 'static,
    R: Message + Default + 'static,
    F: Future<Output = Result<tonic::Response<R>, Status>> + Send,
{
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<R, Q>::default());
    grpc.client_streaming(tower::service_fn(method), request).await.map(axum::body::Body::new)
}

/// Serves a method that takes a stream of messages and gives a stream of them.
pub async fn bidi_stream<Q, R, S, F>(
    request: Request,
    method: impl FnMut(tonic::Request<Streaming<Q>>) -> F + Send,
) -> Response
where
    Q: Message + Default + 'static,
    R: Message + Default + 'static,
    S: Stream<Item = Result<R, Status>> + Send + 'static,
    F: Future<Output = Result<tonic::Response<S>, Status>> + Send,
{
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<R, Q>::default());
    grpc.streaming(tower::service_fn(method), request).await.map(axum::body::Body::new)
}

/// Whether a request carries gRPC.
pub fn is_grpc(headers: &http::HeaderMap) -> bool {
    let content_type = headers.get(http::header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The answer to a gRPC request that is a status alone.
pub fn status(status: &Status) -> Response {
    status.clone().into_http()
}

/// The name of a code, as the gRPC specification writes it.
pub fn code_name(code: Code) -> &'static str {
    GRPC_STATUSES.get(code as usize).copied().unwrap_or("UNKNOWN")
}

/// A code by its name or number.
///
/// ```
/// use mesh_examples::grpc::code;
///
/// assert_eq!(code("unavailable"), Some(tonic::Code::Unavailable));
/// assert_eq!(code("14"), Some(tonic::Code::Unavailable));
/// assert_eq!(code("17"), None);
/// ```
pub fn code(text: &str) -> Option<Code> {
    let by_name = || GRPC_STATUSES.iter().position(|name| name.eq_ignore_ascii_case(text));
    let number = text.parse().ok().or_else(by_name)?;
    (number < GRPC_STATUSES.len()).then(|| Code::from_i32(number as i32))
}
