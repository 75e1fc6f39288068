//! The mesh around a client that the application already has.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Method, Request, Response};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::Cluster;
use mesh_core::request_info::RequestInfo;
use mesh_core::rewrite::edit;
use mesh_core::state::EndpointState;
use tower_layer::Layer;
use tower_service::Service;

use super::ResponseFuture;
use crate::body::{Body, BoxError};
use crate::mesh::Mesh;
use crate::outbound::{self, OutboundContext};
use crate::transport::{Connecting, Failure, HttpVersion, Security, Transport};
use crate::uri::to_http1;

/// Puts the mesh in front of another client. The mesh does what its own [`Client`](super::Client) does, from the route to
/// the retries; only that the other client sends each try to the endpoint's address, over connections of its own.
///
/// The other client sends [`Body`], so that a request can be tried once more. A failure of it is an [`MeshError`] with
/// the client's own error as its cause, and is tried at another endpoint as the route's policy says: without one where
/// nothing was sent, that is the connection was refused, or the stream.
///
/// `https` to a host outside of the mesh, one that the configuration lets pass without describing it, is the other
/// client's own TLS, by the host's name. To any other host it fails with `Security`, since the request goes to an
/// endpoint's address, and the mesh secures connections itself.
///
/// The other client is given the endpoint's address in the URI, and the authority in `Host`. Over HTTP/1.1 that is what the
/// server sees; over HTTP/2 such a client makes the address `:authority`, beside `host`: where the server goes by its
/// name, use the mesh's own client.
///
/// ```
/// # use std::net::SocketAddr;
/// use http_body_util::BodyExt;
/// use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// use mesh_core::fixed::Fixed;
/// use mesh_tower::Mesh;
/// use mesh_tower::body::Body;
/// use tower::ServiceExt;
/// use tower_layer::Layer;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// # let address: SocketAddr = listener.local_addr()?;
/// # let app = axum::Router::new().route("/", axum::routing::get(|| async { "hello" }));
/// # tokio::spawn(async move { axum::serve(listener, app).await });
/// let mesh = Mesh::builder().source(Fixed::new().service("hello:80", [address])).start()?;
/// let own = Client::builder(TokioExecutor::new()).build_http::<Body>();
/// let client = mesh.client_layer().layer(own);
/// let response = client.oneshot(http::Request::get("http://hello/").body(Body::empty())?).await?;
/// assert_eq!(response.into_body().collect().await?.to_bytes(), "hello");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ClientLayer {
    mesh: Mesh,
}

impl Mesh {
    /// A layer for a client that the application already has; beside it stands [`Mesh::server_layer`].
    pub fn client_layer(&self) -> ClientLayer {
        ClientLayer { mesh: self.clone() }
    }
}

impl<S> Layer<S> for ClientLayer {
    type Service = ClientService<S>;

    fn layer(&self, inner: S) -> ClientService<S> {
        ClientService { context: self.mesh.outbound(None), inner }
    }
}

/// A client behind the mesh. Made by [`ClientLayer`].
#[derive(Clone)]
pub struct ClientService<S> {
    context: Arc<OutboundContext>,
    inner: S,
}

impl<S: fmt::Debug> fmt::Debug for ClientService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, B, R> Service<Request<B>> for ClientService<S>
where
    S: Service<Request<Body>, Response = Response<R>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    R: http_body::Body<Data = Bytes, Error: Into<BoxError>> + 'static,
{
    type Response = Response<super::ResponseBody<R>>;
    type Error = MeshError;
    type Future = ResponseFuture<R>;

    /// As the other client is.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), MeshError>> {
        self.inner.poll_ready(cx).map_err(|error| Failure::of_other_client(error.into(), false).error)
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture<R> {
        // The service that was polled ready is the one to call; its clone takes its place.
        let clone = self.inner.clone();
        let ready = std::mem::replace(&mut self.inner, clone.clone());
        let (head, body) = request.into_parts();
        let is_https = head.uri.scheme() == Some(&Scheme::HTTPS);
        let scheme = if is_https { Scheme::HTTPS } else { Scheme::HTTP };
        let transport = OtherClient { ready: Some(ready), inner: clone, scheme };
        outbound::send(&self.context, transport, head, Body::new(body))
    }
}

/// A client that the application brought, as a transport: what a request needs of it is that it is ready.
struct OtherClient<S> {
    /// Ready for one request.
    ready: Option<S>,
    /// For the ones after it.
    inner: S,
    /// `https` comes this far only on its way to a host outside of the mesh.
    scheme: Scheme,
}

impl<S, R> Transport for OtherClient<S>
where
    S: Service<Request<Body>, Response = Response<R>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    R: http_body::Body<Data = Bytes, Error: Into<BoxError>> + 'static,
{
    type Connection = S;
    type Body = R;
    type Error = S::Error;
    type Exchange = S::Future;
    const READS_EXTENSIONS: bool = true;
    const SPEAKS_TLS: bool = true;
    const SPEAKS_CLUSTER_TLS: bool = false;

    /// What the authority was stays in `Host`; the version is the other client's to choose.
    fn form(
        &self,
        head: &mut Parts,
        _: &Cluster,
        info: &RequestInfo,
        host: Option<&HeaderValue>,
    ) -> Result<HttpVersion, MeshError> {
        if head.method == Method::CONNECT {
            let reason = "CONNECT is for the mesh's own client: another one would open the tunnel to the endpoint";
            return Err(MeshError::new(ErrorKind::BadRequest, reason));
        }
        let version = head.version;
        to_http1(head, host)?;
        head.version = version;
        if !head.headers.contains_key(HOST) {
            return Err(MeshError::new(ErrorKind::BadRequest, "no authority"));
        }
        Ok(if info.is_http2 { HttpVersion::Http2 } else { HttpVersion::Http1 })
    }

    fn ready(&mut self, _: &Cluster, _: &EndpointState, _: HttpVersion, _: Security) -> Option<S> {
        self.ready.take()
    }

    fn connect(&self, _: &Arc<Cluster>, _: &Arc<EndpointState>, _: HttpVersion, _: Security, _: bool) -> Connecting<S> {
        let mut inner = self.inner.clone();
        Box::pin(async move {
            let ready = std::future::poll_fn(|cx| inner.poll_ready(cx)).await;
            ready.map_err(|error| Failure::of_other_client(error.into(), false).error)?;
            Ok(inner)
        })
    }

    /// The endpoint's address takes the place of the authority.
    fn send(&self, ready: &mut S, mut request: Request<Body>, endpoint: &EndpointState) -> S::Future {
        let authority = Authority::try_from(endpoint.id().to_string()).ok();
        edit(request.uri_mut(), |uri| {
            uri.scheme = Some(self.scheme.clone());
            uri.authority = authority;
        });
        ready.call(request)
    }

    fn failure(&self, error: S::Error, _: Option<S>, is_idempotent: bool) -> Failure {
        Failure::of_other_client(error.into(), is_idempotent)
    }

    fn may_go_on(&self, _: &S, _: &Cluster) -> bool {
        true
    }

    fn hand_over(&self, _: S) {}

    fn release(&self, _: S, _: &EndpointState) {}
}
