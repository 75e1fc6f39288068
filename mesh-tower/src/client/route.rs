//! The first station: find the target's view, the route, the deadline; the last: tell the observers.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Request, Response, StatusCode};
use mesh_core::call::{Call, Deadline};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::grpc_timeout;
use mesh_core::model::{Forward, RouteAction};
use mesh_core::observe::Event;
use mesh_core::request::{RequestHead, host_and_port, is_grpc};
use mesh_core::store::TargetEntry;
use mesh_core::view::{ClusterView, Routed, TargetView};

use super::{FixedTarget, ResponseFuture, attempt, change, direct, filter};
use crate::body::{Body, ResponseBody};
use crate::mesh::Mesh;
use crate::reply;

/// Sends one request through the mesh: directly if nothing is to be waited for, else from station to station.
pub(super) fn send(mesh: &Mesh, target: Option<&Arc<FixedTarget>>, request: Request<Body>) -> ResponseFuture {
    let mut call = open(request.headers(), request.extensions());
    call.is_observed = !mesh.observers().is_empty();
    match direct::send(mesh, target.map(|target| &**target), call, request) {
        Ok(sent) => sent,
        Err((call, request)) => ResponseFuture(Box::pin(travel(mesh.clone(), target.cloned(), call, request))),
    }
}

/// Opens the call: what is known of a request before it is routed.
pub(super) fn open(headers: &HeaderMap, extensions: &http::Extensions) -> Call {
    let mut call = Call::new(Instant::now(), fastrand::Rng::new());
    call.is_grpc = is_grpc(headers);
    call.deadline = extensions.get::<Deadline>().map(|deadline| deadline.0);
    call
}

async fn travel(
    mesh: Mesh,
    target: Option<Arc<FixedTarget>>,
    mut call: Call,
    request: Request<Body>,
) -> Result<Response<ResponseBody>, MeshError> {
    let observed = Observed::of(&mesh, target.as_deref(), &call, &request);
    let result = walk(&mesh, target.as_deref(), &mut call, request).await;
    if let Some(observed) = observed {
        observed.tell(&call, result.as_ref().ok().map(Response::status), result.as_ref().err());
    }
    result
}

async fn walk(
    mesh: &Mesh,
    target: Option<&FixedTarget>,
    call: &mut Call,
    mut request: Request<Body>,
) -> Result<Response<ResponseBody>, MeshError> {
    let view = match view(mesh, target, &head(target, &request)?)? {
        Ok(view) => view,
        Err(entry) => entry.wait(patience(mesh, call)).await?,
    };
    let routed = view.find(&head(target, &request)?, call)?;
    if !routed.filters.is_empty() {
        let (mut parts, body) = request.into_parts();
        if let Some(reply) = filter::pass(&routed, call, &mut parts).await? {
            return Ok(reply);
        }
        request = Request::from_parts(parts, body);
    }
    let answer = match &routed.route.action {
        RouteAction::Forward(forward) => forwarded(&view, &routed, forward, target, call, request).await,
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

fn head<'r>(target: Option<&'r FixedTarget>, request: &'r Request<Body>) -> Result<RequestHead<'r>, MeshError> {
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
    // Targets are kept by valid, normal names, so a hit on the name as written needs no look at its form.
    let entry = match mesh.store().find(head.authority) {
        Some(entry) => entry,
        None => mesh.store().target(&host_and_port(head.authority, head.scheme)?)?,
    };
    Ok(entry.view().ok_or(entry))
}

/// Until when a request waits for the first configuration of its target.
pub(super) fn patience(mesh: &Mesh, call: &Call) -> Instant {
    let patience = call.started + mesh.cold_start_wait();
    call.deadline.map_or(patience, |deadline| deadline.min(patience))
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
    change::prepare(&mut request, forward, routed, target.map(|target| &target.authority))?;
    let deadline = call.deadline;
    let (response, guard) =
        in_time(deadline, cluster, attempt::run(view, cluster, forward.retry.as_ref(), call, request, None)).await?;
    Ok(response.map(|body| ResponseBody::incoming(body, guard, deadline.map(ResponseBody::until))))
}

/// Brings the deadline forward to the route's limit. From here, as in Envoy: what a fault filter held back does
/// not count.
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
pub(super) async fn in_time<T>(
    deadline: Option<Instant>,
    cluster: &ClusterView,
    tries: impl Future<Output = Result<T, MeshError>>,
) -> Result<T, MeshError> {
    let Some(deadline) = deadline else { return tries.await };
    tokio::time::timeout_at(deadline.into(), tries).await.unwrap_or_else(|_| Err(too_late(cluster)))
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

/// A request that somebody is told of in the end.
pub(super) struct Observed {
    mesh: Mesh,
    authority: String,
}

impl Observed {
    /// `None` where nobody wants to know.
    pub(super) fn of(
        mesh: &Mesh,
        target: Option<&FixedTarget>,
        call: &Call,
        request: &Request<Body>,
    ) -> Option<Box<Self>> {
        if !call.is_observed {
            return None;
        }
        let authority = head(target, request).map_or("", |head| head.authority).to_owned();
        Some(Box::new(Observed { mesh: mesh.clone(), authority }))
    }

    #[cold]
    pub(super) fn tell(&self, call: &Call, status: Option<StatusCode>, error: Option<&MeshError>) {
        let mut event = Event::new(&self.authority);
        event.status = status;
        event.error = error.map(MeshError::kind);
        event.endpoint = call.endpoint.as_ref();
        event.attempts = call.attempt;
        event.duration = call.started.elapsed();
        self.mesh.observers().iter().for_each(|observer| observer.on_event(&event));
    }
}
