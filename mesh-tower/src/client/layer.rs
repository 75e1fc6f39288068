//! Routing and balancing in front of a client that the application already has.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use http_body::{Frame, SizeHint};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::{ClusterTls, RouteAction};
use mesh_core::request::RequestHead;
use mesh_core::state::InFlight;
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

use super::route::Journey;
use super::{change, filter, route};
use crate::body::{BoxError, ResponseBody};
use crate::mesh::Mesh;
use crate::reply;

/// Puts the mesh in front of another client: requests are routed and an endpoint is picked, and the inner
/// client sends them to the endpoint's address, with connections, retries and timeouts of its own.
///
/// The mesh's answers and the inner client's are one response type, [`LayerBody`].
#[derive(Clone, Debug)]
pub struct MeshLayer {
    mesh: Mesh,
}

impl Mesh {
    /// A layer for a client that the application already has.
    pub fn layer(&self) -> MeshLayer {
        MeshLayer { mesh: self.clone() }
    }
}

impl<S> Layer<S> for MeshLayer {
    type Service = MeshService<S>;

    fn layer(&self, inner: S) -> MeshService<S> {
        MeshService { mesh: self.mesh.clone(), inner }
    }
}

/// A client behind the mesh. Made by [`MeshLayer`].
#[derive(Clone)]
pub struct MeshService<S> {
    mesh: Mesh,
    inner: S,
}

impl<S: fmt::Debug> fmt::Debug for MeshService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, B, R> Service<Request<B>> for MeshService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Send + 'static,
    R: 'static,
{
    type Response = Response<LayerBody<R>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The service that was polled ready is the one to call; its clone takes its place.
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(send(self.mesh.clone(), inner, request))
    }
}

async fn send<S, B, R>(mesh: Mesh, mut inner: S, request: Request<B>) -> Result<Response<LayerBody<R>>, BoxError>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
{
    let mut journey = Journey::of(&mesh, None, &request);
    match through(&mesh, &mut journey, &mut inner, request).await {
        Ok(response) => {
            journey.answered(response.status());
            Ok(response)
        }
        Err(error) => match error.downcast::<MeshError>() {
            Ok(error) => Err(journey.failed(*error).into()),
            Err(error) => {
                journey.failed(MeshError::new(ErrorKind::ConnectionLost, "the inner client failed"));
                Err(error)
            }
        },
    }
}

async fn through<S, B, R>(
    mesh: &Mesh,
    journey: &mut Journey,
    inner: &mut S,
    mut request: Request<B>,
) -> Result<Response<LayerBody<R>>, BoxError>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
{
    route::refuse_tls(request.uri())?;
    change::strip_user(&mut request)?;
    let (mut parts, body) = request.into_parts();
    let view = match route::view(mesh, None, &RequestHead::of(&parts)?)? {
        Ok(view) => view,
        Err(entry) => route::first_view(mesh, &entry, &journey.call).await?,
    };
    let routed = view.find(&RequestHead::of(&parts)?, &mut journey.call)?;
    journey.note(&routed);
    let call = &mut journey.call;
    if let Some(reply) = filter::pass(&routed, call, &mut parts).await? {
        return Ok(reply.map(LayerBody::mesh));
    }
    let forward = match &routed.route.action {
        RouteAction::Forward(forward) => forward,
        RouteAction::Redirect(redirect) => {
            return Ok(
                reply::redirect(redirect, &routed.route.matches, &RequestHead::of(&parts)?)?.map(LayerBody::mesh)
            );
        }
        RouteAction::Direct(direct) => return Ok(reply::direct(direct).map(LayerBody::mesh)),
        RouteAction::Unusable(reason) => return Err(MeshError::new(ErrorKind::NoRoute, Arc::clone(reason)).into()),
        RouteAction::NonForwarding => {
            return Err(MeshError::new(ErrorKind::NoRoute, "the route is for a server and leads nowhere").into());
        }
    };
    let cluster = routed.cluster.ok_or_else(|| MeshError::new(ErrorKind::NoCluster, "the route has no cluster"))?;
    let mut request = Request::from_parts(parts, body);
    route::limit(call, forward, &routed);
    let deadline = call.deadline;
    if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
        return Err(route::too_late(cluster).into());
    }
    let authority = route::own_destination(cluster, &RequestHead::of_request(&request)?)?;
    change::prepare(&mut request, forward, &routed, None)?;
    route::tell_deadline(call, request.headers_mut());
    let pick = cluster.pick(call, || authority.as_deref().unwrap_or_default())?;
    if call.is_observed {
        call.endpoint = Some(Arc::clone(pick.in_flight.endpoint()));
    }
    if let ClusterTls::Unusable(reason) = &pick.cluster.tls {
        return Err(MeshError::new(ErrorKind::Security, format!("cluster {}: {reason}", pick.cluster.name)).into());
    }
    aim(&mut request, &pick.in_flight)?;
    let answer = inner.call(request);
    let response = route::in_time(deadline, cluster, async { answer.await.map_err(Into::<BoxError>::into) }).await?;
    let mut response = response.map(|body| LayerBody {
        body: Either::Inner { body },
        in_flight: Some(pick.in_flight),
        deadline: deadline.map(ResponseBody::until),
    });
    change::apply(routed.response_changes, response.headers_mut());
    Ok(response)
}

/// Sends the request to the endpoint's address; its authority stays in `Host`.
fn aim<B>(request: &mut Request<B>, endpoint: &InFlight) -> Result<(), MeshError> {
    let malformed = |error: http::Error| MeshError::new(ErrorKind::BadRequest, "malformed authority").caused_by(error);
    if let Some(authority) = request.uri().authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|error| malformed(error.into()))?;
        request.headers_mut().insert(HOST, host);
    }
    let address = endpoint.endpoint().id().to_string();
    let mut uri = std::mem::take(request.uri_mut()).into_parts();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(Authority::try_from(address).map_err(|error| malformed(error.into()))?);
    *request.uri_mut() = Uri::from_parts(uri).map_err(|error| malformed(error.into()))?;
    Ok(())
}

pin_project_lite::pin_project! {
    /// The body of a response through [`MeshLayer`]: the inner client's, or the mesh's own. The request counts
    /// as in flight until it has ended.
    pub struct LayerBody<R> {
        #[pin]
        body: Either<R>,
        in_flight: Option<InFlight>,
        deadline: Option<Pin<Box<Sleep>>>,
    }
}

pin_project_lite::pin_project! {
    #[project = EitherProjection]
    enum Either<R> {
        Inner { #[pin] body: R },
        Mesh { #[pin] body: ResponseBody },
    }
}

impl<R> LayerBody<R> {
    fn mesh(body: ResponseBody) -> Self {
        LayerBody { body: Either::Mesh { body }, in_flight: None, deadline: None }
    }
}

impl<R> fmt::Debug for LayerBody<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LayerBody")
    }
}

impl<R> http_body::Body for LayerBody<R>
where
    R: http_body::Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        // First, so that a reader who always finds something to read is not exempt.
        if this.deadline.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready()) {
            this.body.set(Either::Mesh { body: ResponseBody::full(Bytes::new()) });
            (*this.in_flight, *this.deadline) = (None, None);
            return Poll::Ready(Some(Err(crate::body::too_late().into())));
        }
        let frame = match this.body.project() {
            EitherProjection::Inner { body } => body.poll_frame(cx).map_err(Into::into),
            EitherProjection::Mesh { body } => body.poll_frame(cx).map_err(Into::into),
        };
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            (*this.in_flight, *this.deadline) = (None, None);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Either::Inner { body } => body.is_end_stream(),
            Either::Mesh { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Either::Inner { body } => body.size_hint(),
            Either::Mesh { body } => body.size_hint(),
        }
    }
}
