//! The first station: find the target's view, the route, the deadline; the last: tell the observers.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use http::uri::Scheme;
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use mesh_core::call::{Call, Deadline};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::grpc_timeout;
use mesh_core::id::ClusterName;
use mesh_core::model::{Forward, RouteAction};
use mesh_core::observe::Event;
use mesh_core::request::{RequestHead, host_and_port, is_grpc};
use mesh_core::store::TargetEntry;
use mesh_core::view::{ClusterView, Routed, TargetView};

use super::attempt::Tries;
use super::{FixedTarget, ResponseFuture, change, direct, filter};
use crate::body::{Body, ResponseBody};
use crate::mesh::Mesh;
use crate::reply;

/// Sends one request through the mesh: directly if nothing is to be waited for, else from station to station.
pub(super) fn send(mesh: &Mesh, target: Option<&Arc<FixedTarget>>, request: Request<Body>) -> ResponseFuture {
    let journey = Journey::of(mesh, target.map(|target| &**target), &request);
    match direct::send(mesh, target.map(|target| &**target), journey, request) {
        Ok(sent) => sent,
        Err((journey, request)) => ResponseFuture(Box::pin(travel(mesh.clone(), target.cloned(), journey, request))),
    }
}

async fn travel(
    mesh: Mesh,
    target: Option<Arc<FixedTarget>>,
    mut journey: Journey,
    request: Request<Body>,
) -> Result<Response<ResponseBody>, MeshError> {
    match walk(&mesh, target.as_deref(), &mut journey, request).await {
        Ok(response) => {
            journey.answered(response.status());
            Ok(response)
        }
        Err(error) => Err(journey.failed(error)),
    }
}

async fn walk(
    mesh: &Mesh,
    target: Option<&FixedTarget>,
    journey: &mut Journey,
    mut request: Request<Body>,
) -> Result<Response<ResponseBody>, MeshError> {
    refuse_tls(request.uri())?;
    change::strip_user(&mut request)?;
    let view = match view(mesh, target, &head(target, &request)?)? {
        Ok(view) => view,
        Err(entry) => first_view(mesh, &entry, &journey.call).await?,
    };
    let routed = view.find(&head(target, &request)?, &mut journey.call)?;
    journey.note(&routed);
    if !routed.filters.is_empty() {
        let (mut parts, body) = request.into_parts();
        if let Some(reply) = filter::pass(&routed, &mut journey.call, &mut parts).await? {
            return Ok(reply);
        }
        request = Request::from_parts(parts, body);
    }
    let answer = match &routed.route.action {
        RouteAction::Forward(forward) => forwarded(&view, &routed, forward, target, &mut journey.call, request).await,
        RouteAction::Redirect(redirect) => {
            reply::redirect(redirect, &routed.route.matches, &RequestHead::of_request(&request)?)
        }
        RouteAction::Direct(direct) => Ok(reply::direct(direct)),
        RouteAction::Unusable(reason) => Err(MeshError::new(ErrorKind::NoRoute, Arc::clone(reason))),
        RouteAction::NonForwarding => {
            Err(MeshError::new(ErrorKind::NoRoute, "the route is for a server and leads nowhere"))
        }
    };
    match answer {
        Ok(mut response) => {
            change::apply(routed.response_changes, response.headers_mut());
            Ok(response)
        }
        Err(error) => Err(within(&routed, error)),
    }
}

/// What is looked at of a request; a fixed target's authority stands above the request's own.
fn head<'r, B>(target: Option<&'r FixedTarget>, request: &'r Request<B>) -> Result<RequestHead<'r>, MeshError> {
    match target {
        Some(target) => Ok(RequestHead::of_request_to(request, target.authority.as_str())),
        None => RequestHead::of_request(request),
    }
}

/// The view of the request's target, or the entry to wait at: the first request to a target subscribes to it.
#[allow(clippy::type_complexity, reason = "a view or where it will appear")]
pub(super) fn view(
    mesh: &Mesh,
    target: Option<&FixedTarget>,
    head: &RequestHead<'_>,
) -> Result<Result<Arc<TargetView>, Arc<TargetEntry>>, MeshError> {
    if let Some(target) = target {
        return Ok(target.entry.view().ok_or_else(|| Arc::clone(&target.entry)));
    }
    let entry = mesh.store().target(&host_and_port(head.authority, head.scheme)?)?;
    Ok(entry.view().ok_or(entry))
}

/// Whether the caller relies on TLS, which nobody on the way would speak.
pub(super) fn asks_for_tls(uri: &Uri) -> bool {
    uri.scheme().is_some_and(|scheme| *scheme == Scheme::HTTPS)
}

/// Refuses what would go out in plaintext against the caller's will.
pub(super) fn refuse_tls(uri: &Uri) -> Result<(), MeshError> {
    if !asks_for_tls(uri) {
        return Ok(());
    }
    let why = "https is not for the mesh: it secures connections itself, where its configuration says so; ask for http";
    Err(MeshError::new(ErrorKind::Security, why))
}

/// Waits for the first view of a target: as long as the mesh is patient, or until the deadline.
pub(super) async fn first_view(mesh: &Mesh, entry: &TargetEntry, call: &Call) -> Result<Arc<TargetView>, MeshError> {
    let patience = call.started + mesh.cold_start_wait();
    let until = call.deadline.map_or(patience, |deadline| deadline.min(patience));
    entry.wait(until).await.map_err(|error| match call.deadline {
        Some(deadline) if deadline <= Instant::now() => {
            MeshError::new(ErrorKind::Timeout, "the deadline passed before there was a configuration").caused_by(error)
        }
        _ => error,
    })
}

async fn forwarded(
    view: &TargetView,
    routed: &Routed<'_>,
    forward: &Forward,
    target: Option<&FixedTarget>,
    call: &mut Call,
    mut request: Request<Body>,
) -> Result<Response<ResponseBody>, MeshError> {
    let cluster = routed.cluster.ok_or_else(|| MeshError::new(ErrorKind::NoCluster, "the route has no cluster"))?;
    limit(call, forward, routed);
    let deadline = call.deadline;
    if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
        return Err(too_late(cluster));
    }
    let authority = own_destination(cluster, &head(target, &request)?)?;
    change::prepare(&mut request, forward, routed, target.map(|target| &target.authority))?;
    let tries = Tries { view, cluster, policy: forward.retry.as_ref(), authority: authority.as_deref() };
    let (response, guard) = in_time(deadline, cluster, tries.run(call, request)).await?;
    Ok(response.map(|body| ResponseBody::incoming(body, guard, deadline.map(ResponseBody::until))))
}

/// Where the caller wants to go, if that is where the cluster's requests go: what the route writes over it is only told
/// there.
pub(super) fn own_destination(cluster: &ClusterView, head: &RequestHead<'_>) -> Result<Option<String>, MeshError> {
    let named = || host_and_port(head.authority, head.scheme).map(Cow::into_owned);
    cluster.passes_through().then(named).transpose()
}

/// Brings the deadline forward to the route's limit. It runs from here on: what a filter held back does not count,
/// as in Envoy; the time that it takes to send the request's body does, unlike there.
pub(super) fn limit(call: &mut Call, forward: &Forward, routed: &Routed<'_>) {
    if let Some(limit) = forward.time_limit(call.is_grpc, routed.max_stream_duration) {
        call.not_after(Instant::now() + limit);
    }
}

/// Tells a gRPC server how long it has; of each try.
pub(super) fn tell_deadline(call: &Call, headers: &mut HeaderMap) {
    if let Some(deadline) = call.deadline.filter(|_| call.is_grpc) {
        grpc_timeout::tell(headers, deadline.saturating_duration_since(Instant::now()));
    }
}

/// The tries, up to the deadline.
pub(super) async fn in_time<T, E: From<MeshError>>(
    deadline: Option<Instant>,
    cluster: &ClusterView,
    tries: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let Some(deadline) = deadline else { return tries.await };
    tokio::time::timeout_at(deadline.into(), tries).await.unwrap_or_else(|_| Err(too_late(cluster).into()))
}

/// The failure of a request whose deadline has passed.
pub(super) fn too_late(cluster: &ClusterView) -> MeshError {
    MeshError::new(ErrorKind::Timeout, format!("cluster {}: no response by the deadline", cluster.name()))
}

/// What the route makes of an error.
pub(super) fn within(routed: &Routed<'_>, error: MeshError) -> MeshError {
    let name = &routed.route.name;
    if name.is_empty() { error } else { error.within(format_args!("route {name}")) }
}

/// A call under way. When it is over, however it ends, the observers are told.
pub(super) struct Journey {
    pub(super) call: Call,
    /// Only where somebody wants to know.
    observed: Option<Box<Observed>>,
}

struct Observed {
    mesh: Mesh,
    authority: String,
    route: Option<Arc<str>>,
    cluster: Option<ClusterName>,
    status: Option<StatusCode>,
    error: Option<ErrorKind>,
}

impl Journey {
    /// A call that begins, with what is known of a request before it is routed.
    #[inline]
    pub(super) fn of<B>(mesh: &Mesh, target: Option<&FixedTarget>, request: &Request<B>) -> Self {
        let mut call = Call::new(Instant::now(), fastrand::Rng::new());
        call.is_grpc = is_grpc(request.headers());
        call.is_http2 = request.version() == Version::HTTP_2;
        call.deadline = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
        call.is_observed = !mesh.observers().is_empty();
        let observed = call.is_observed.then(|| Observed::of(mesh, target, request));
        Journey { call, observed }
    }

    /// Notes where the request goes.
    #[inline]
    pub(super) fn note(&mut self, routed: &Routed<'_>) {
        if let Some(observed) = &mut self.observed {
            observed.route = Some(Arc::clone(&routed.route.name));
            observed.cluster = routed.cluster.map(|cluster| cluster.name().clone());
        }
    }

    /// Notes the answer.
    #[inline]
    pub(super) fn answered(&mut self, status: StatusCode) {
        if let Some(observed) = &mut self.observed {
            observed.status = Some(status);
        }
    }

    /// Notes the failure.
    pub(super) fn failed(&mut self, error: MeshError) -> MeshError {
        if let Some(observed) = &mut self.observed {
            observed.error = Some(error.kind());
        }
        error
    }
}

impl Drop for Journey {
    #[inline]
    fn drop(&mut self) {
        if let Some(observed) = &self.observed {
            observed.tell(&self.call);
        }
    }
}

impl Observed {
    #[cold]
    fn of<B>(mesh: &Mesh, target: Option<&FixedTarget>, request: &Request<B>) -> Box<Self> {
        let authority = head(target, request).map_or("", |head| head.authority).to_owned();
        Box::new(Observed { mesh: mesh.clone(), authority, route: None, cluster: None, status: None, error: None })
    }

    #[cold]
    fn tell(&self, call: &Call) {
        let mut event = Event::new(&self.authority);
        event.route = self.route.as_deref().unwrap_or_default();
        event.cluster = self.cluster.as_ref().map_or("", |cluster| cluster.as_str());
        event.status = self.status;
        event.error = self.error;
        event.endpoint = call.endpoint.as_ref();
        event.attempts = if call.endpoint.is_some() { call.attempt } else { 0 };
        event.duration = call.started.elapsed();
        self.mesh.observers().iter().for_each(|observer| observer.on_event(&event));
    }
}
