//! The faces of an outbound request: the [`Client`], a [layer](ClientLayer) around a client that the application has,
//! and a [connector](Connector) below one. All of them go the same way, see `outbound/`.

mod connector;
mod explain;
mod layer;
#[cfg(feature = "reqwest")]
pub mod reqwest;
mod tcp;

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::request::Parts;
use http::{Request, Response, Uri};
use mesh_core::error::{ErrorKind, MeshError};
use tower_service::Service;

use crate::body::{Body, BoxError};
use crate::mesh::Mesh;
use crate::outbound::{self, OutboundContext};
use crate::transport::pooled;

pub use crate::outbound::{Follow, Placement, ResponseBody, ResponseFuture};
pub use crate::uri::SentHost;

pub use connector::{Connector, ConnectorStream};
pub use layer::{ClientLayer, ClientService};
pub use tcp::MeshStream;

/// A client of the mesh: `tower::Service<http::Request<B>>` for any body. Cheap to clone, always ready.
///
/// The URI's authority (or the `Host` header) names the target. A failure of the mesh is an
/// [`MeshError`]; an answer of the mesh that the configuration asks for (redirect, direct response, injected
/// fault) is a response. Dropping a future cancels the request. Each request sees one configuration from its
/// start to the end of its body.
///
/// A request is tried again as its route's retry policy says, whatever its method; a
/// [`Repeat`](crate::Repeat) in its extensions says less. A body that is streamed comes again as far as
/// 64 KiB of it are kept; more is sent once. A request that is made for another one that the mesh is serving inherits from it
/// ([`inherited`](crate::inherited)): it is given up when nobody waits for its answer any more, and is not tried again where a
/// hop further out tries again already, unless nobody processed it. Where a cluster fails requests to their last try, there are few
/// retries until some of them help, unless the configuration says how many there may be.
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
    context: Arc<OutboundContext>,
}

impl Mesh {
    /// A client for every target; each request names its own.
    pub fn client(&self) -> Client {
        Client { context: self.outbound(None) }
    }

    /// A client for what a [gateway](crate::gateway) sends on: each request goes where the routes of the listener say that it came
    /// by, and no other request goes anywhere.
    pub fn gateway_client(&self) -> Client {
        Client { context: self.outbound_of_gateway() }
    }

    /// A client whose every request goes to one target, whatever its URI says: `host:port` or
    /// `xds:///name`. The target stays subscribed as long as the client lives.
    ///
    /// # Errors
    /// [`ErrorKind::BadRequest`] if the source cannot name the target.
    pub fn client_for(&self, target: &str) -> Result<Client, MeshError> {
        Ok(Client { context: self.outbound_to(target)? })
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
                ResponseFuture::ready(Err(error))
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
        let (head, body) = request.into_parts();
        self.send(head, Body::new(body))
    }

    /// Not generic, so that it is compiled once, and not again in each crate that sends another body.
    #[inline(never)]
    fn send(&self, head: Parts, body: Body) -> ResponseFuture {
        match outbound::key(&self.context, &head, &body) {
            None => outbound::send(&self.context, pooled(), head, body),
            Some(key) => ResponseFuture::waiting(outbound::join(&self.context, key, head)),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.context.target.as_ref().map(|target| target.entry.target());
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
