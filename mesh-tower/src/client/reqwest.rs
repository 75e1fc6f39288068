//! reqwest behind the mesh: its builder, URL, timeout and JSON as they are, and [`send_through`](SendThrough::send_through)
//! in place of `send`.
//!
//! The mesh goes around reqwest's client (see [`Mesh::client_layer`](crate::Mesh::client_layer)), and does all that it does
//! for its own: routes, retries, faults, balancing. reqwest sends each try to the endpoint that the mesh chose, over its
//! own connections, with its own settings: default headers, connect timeout, pool, TLS for hosts outside of the mesh. Below
//! it the mesh cannot go: what reqwest calls a connector layer is neither told where a connection leads, nor may it
//! bring one of its own (reqwest 0.13.5). So it does not speak the mesh's mutual TLS, which
//! [`Mesh::client`](crate::Mesh::client) does.
//!
//! Two settings of reqwest's client belong to the mesh. A redirect is for the caller to follow, by a name and not by an
//! address: `redirect(Policy::none())`. And no proxy is between the mesh and its endpoints: `no_proxy()`.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use ::reqwest::ResponseBuilderExt;
use http::header::CONTENT_LENGTH;
use http_body::Body as _;
use http_body_util::BodyExt;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::request_info::Deadline;
use tower_service::Service;

use super::ClientService;
use crate::body::Body;

/// reqwest's client as a service of `http` requests, for the mesh to go around.
///
/// ```
/// # use std::net::SocketAddr;
/// use mesh_core::fixed::Fixed;
/// use mesh_tower::Mesh;
/// use mesh_tower::client::reqwest::{Reqwest, SendThrough};
/// use reqwest::redirect::Policy;
/// use tower_layer::Layer;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// # let address: SocketAddr = listener.local_addr()?;
/// # let app = axum::Router::new().route("/", axum::routing::post(|body: String| async move { body }));
/// # tokio::spawn(async move { axum::serve(listener, app).await });
/// let mesh = Mesh::builder().source(Fixed::new().service("echo:80", [address])).start()?;
/// let client = reqwest::Client::builder().redirect(Policy::none()).no_proxy().build()?;
/// let through = mesh.client_layer().layer(Reqwest(client.clone()));
///
/// let response = client.post("http://echo/").body("hello").send_through(&through).await?;
/// assert_eq!(response.error_for_status()?.text().await?, "hello");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Reqwest(pub ::reqwest::Client);

impl Service<http::Request<Body>> for Reqwest {
    type Response = http::Response<::reqwest::Body>;
    type Error = ::reqwest::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ::reqwest::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ::reqwest::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let client = self.0.clone();
        // A stream does not say how long it is.
        if let Some(length) = request.body().size_hint().exact().filter(|length| *length > 0) {
            request.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        let request = request.map(|body| match body.is_end_stream() {
            true => ::reqwest::Body::default(),
            false => ::reqwest::Body::wrap_stream(body.into_data_stream()),
        });
        Box::pin(async move { Ok(client.execute(request.try_into()?).await?.into()) })
    }
}

/// What stands in place of [`RequestBuilder::send`](::reqwest::RequestBuilder::send).
pub trait SendThrough {
    /// Sends the request through the mesh; its timeout holds for all tries together, from now to the response's head. Dropping
    /// the future cancels the request.
    ///
    /// # Errors
    ///
    /// `BadRequest` for what reqwest's builder refuses, with its error as the cause; else those of
    /// [`ClientLayer`](super::ClientLayer), also `DeadlineExceeded` past the timeout. A status is no error.
    fn send_through(
        self,
        mesh: &ClientService<Reqwest>,
    ) -> impl Future<Output = Result<::reqwest::Response, MeshError>> + Send;
}

impl SendThrough for ::reqwest::RequestBuilder {
    async fn send_through(self, mesh: &ClientService<Reqwest>) -> Result<::reqwest::Response, MeshError> {
        let refused =
            |error| MeshError::new(ErrorKind::BadRequest, "reqwest cannot build the request").caused_by(error);
        let request = self.build().map_err(refused)?;
        let url = request.url().clone();
        let deadline = request.timeout().and_then(|timeout| Instant::now().checked_add(*timeout));
        let mut request = http::Request::try_from(request).map_err(refused)?;
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(Deadline(deadline));
        }
        let mut mesh = mesh.clone();
        std::future::poll_fn(|cx| Service::<http::Request<::reqwest::Body>>::poll_ready(&mut mesh, cx)).await?;
        let (head, body) = mesh.call(request).await?.into_parts();
        let mut response = http::Response::new(::reqwest::Body::wrap_stream(body.into_data_stream()));
        *response.status_mut() = head.status;
        *response.version_mut() = head.version;
        *response.headers_mut() = head.headers;
        // It is only with a builder that reqwest takes the URL.
        if let Ok(with_url) = http::Response::builder().url(url).body(()) {
            *response.extensions_mut() = with_url.into_parts().0.extensions;
        }
        Ok(response.into())
    }
}
