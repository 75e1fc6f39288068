//! The client: a tower service for any request, routed, balanced and sent by the mesh.
//!
//! A request's walk is these files in order: here the faces of the client, then `route` (view, route, deadline),
//! `filter` (faults and the like), `attempt` (tries), `balance` (an endpoint), `connect` (a connection, and the
//! exchange over it), then hyper. The outcome comes home the same way. Where none of them has to wait for
//! anything, `direct` passes them all at once: that is how most requests go.

mod attempt;
mod balance;
mod change;
mod connect;
mod connector;
mod direct;
mod filter;
mod layer;
mod route;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::uri::Authority;
use http::{Request, Response, Uri};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::store::TargetEntry;
use tower_service::Service;

use crate::body::{Body, BoxError, ResponseBody};
use crate::mesh::Mesh;

pub use connector::{Connection, Connector};
pub use layer::{LayerBody, MeshLayer, MeshService};

pub(crate) use connect::{Guard, close_idle};

/// A client of the mesh: `tower::Service<http::Request<B>>` for any body. Cheap to clone, always ready.
///
/// The URI's authority (or the `Host` header) names the target. A failure of the mesh is an
/// [`MeshError`]; an answer of the mesh that the configuration asks for (redirect, direct response, injected
/// fault) is a response. Dropping a future cancels the request. Each request sees one configuration from its
/// start to the end of its body.
///
/// ```
/// # use std::net::SocketAddr;
/// use http_body_util::BodyExt;
/// use mesh_core::fixed::Fixed;
/// use mesh_tower::Mesh;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// # let address: SocketAddr = listener.local_addr()?;
/// # let app = axum::Router::new().route("/reviews/1", axum::routing::get(|| async { "five stars" }));
/// # tokio::spawn(async move { axum::serve(listener, app).await });
/// let mesh = Mesh::builder().source(Fixed::new().service("reviews:9080", [address])).start()?;
/// let response = mesh.client().get("http://reviews:9080/reviews/1").await?;
/// assert_eq!(response.into_body().collect().await?.to_bytes(), "five stars");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    mesh: Mesh,
    target: Option<Arc<FixedTarget>>,
}

/// The one target of a client that has one, such as a gRPC channel.
pub(crate) struct FixedTarget {
    pub(crate) entry: Arc<TargetEntry>,
    pub(crate) authority: Authority,
}

impl Mesh {
    /// A client for every target; each request names its own.
    pub fn client(&self) -> Client {
        Client { mesh: self.clone(), target: None }
    }

    /// A client whose every request goes to one target, whatever its URI says: `host:port` or
    /// `xds:///name`. The target stays subscribed as long as the client lives.
    ///
    /// # Errors
    /// [`ErrorKind::BadRequest`] if the source cannot name the target.
    pub fn client_for(&self, target: &str) -> Result<Client, MeshError> {
        let entry = self.store().target(target)?;
        let host = target.rsplit_once('/').map_or(target, |(_, host)| host);
        let malformed = |_| MeshError::new(ErrorKind::BadRequest, format!("target {target}: malformed authority"));
        let authority = Authority::try_from(host).map_err(malformed)?;
        Ok(Client { mesh: self.clone(), target: Some(Arc::new(FixedTarget { entry, authority })) })
    }
}

impl Client {
    /// Sends a GET request without a body.
    pub fn get<U>(&self, uri: U) -> ResponseFuture
    where
        Uri: TryFrom<U>,
        <Uri as TryFrom<U>>::Error: Into<http::Error>,
    {
        match Request::get(uri).body(Body::empty()) {
            Ok(request) => self.request(request),
            Err(error) => {
                let error = MeshError::new(ErrorKind::BadRequest, "malformed URI").caused_by(error);
                ResponseFuture(Box::pin(std::future::ready(Err(error))))
            }
        }
    }

    /// Sends any request.
    pub fn request<B>(&self, request: Request<B>) -> ResponseFuture
    where
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        route::send(&self.mesh, self.target.as_ref(), request.map(Body::new))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target.as_ref().map(|target| target.entry.target());
        f.debug_struct("Client").field("target", &target).finish_non_exhaustive()
    }
}

impl<B> Service<Request<B>> for Client
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody>;
    type Error = MeshError;
    type Future = ResponseFuture;

    /// Always ready: the destination is not known before the request is.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), MeshError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        self.request(request)
    }
}

/// A response to come: the one boxed future of a request.
pub struct ResponseFuture(Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, MeshError>> + Send>>);

impl Future for ResponseFuture {
    type Output = Result<Response<ResponseBody>, MeshError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseFuture")
    }
}
