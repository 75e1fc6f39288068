//! The first station: find the target's view, the route, the deadline; the last: tell the observers.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use http::Response;
use http::request::Parts;
use mesh_core::call::{Call, Deadline};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::{Route, RouteAction};
use mesh_core::observe::Event;
use mesh_core::request::{RequestHead, host_and_port, is_grpc};
use mesh_core::view::{Routed, TargetView};

use super::{FixedTarget, Outgoing, attempt, change, filter};
use crate::body::ResponseBody;
use crate::mesh::Mesh;
use crate::reply;

/// Sends one request through the mesh.
pub(super) async fn send(
    mesh: Mesh,
    target: Option<Arc<FixedTarget>>,
    mut request: Outgoing,
) -> Result<Response<ResponseBody>, MeshError> {
    let mut call = open(&request.parts);
    let target = target.as_deref();
    let observed = (!mesh.observers().is_empty())
        .then(|| target.map(|target| target.authority.clone()).or_else(|| request.parts.uri.authority().cloned()));
    call.is_observed = observed.is_some();
    let result = walk(&mesh, target, &mut call, &mut request).await;
    if let Some(authority) = observed {
        tell(&mesh, authority.as_ref().map_or("", |authority| authority.as_str()), &call, &result);
    }
    result
}

#[cold]
fn tell(mesh: &Mesh, authority: &str, call: &Call, result: &Result<Response<ResponseBody>, MeshError>) {
    let mut event = Event::new(authority);
    event.status = result.as_ref().ok().map(Response::status);
    event.error = result.as_ref().err().map(MeshError::kind);
    event.endpoint = call.endpoint.as_ref();
    event.attempts = call.attempt;
    event.duration = call.started.elapsed();
    mesh.observers().iter().for_each(|observer| observer.on_event(&event));
}

/// Opens the call: what is known of a request before it is routed.
pub(super) fn open(parts: &Parts) -> Call {
    let mut call = Call::new(Instant::now(), fastrand::Rng::new());
    call.is_grpc = is_grpc(&parts.headers);
    call.deadline = parts.extensions.get::<Deadline>().map(|deadline| deadline.0);
    call
}

async fn walk(
    mesh: &Mesh,
    target: Option<&FixedTarget>,
    call: &mut Call,
    request: &mut Outgoing,
) -> Result<Response<ResponseBody>, MeshError> {
    let head = head(target, &request.parts)?;
    let view = match view(mesh, target, &head)? {
        Ok(view) => view,
        Err(entry) => Box::pin(entry.wait(patience(mesh, call))).await?,
    };
    let routed = view.find(&head, call)?;
    if !routed.filters.is_empty()
        && let Some(reply) = Box::pin(filter::pass(&routed, call, &mut request.parts)).await?
    {
        return Ok(reply);
    }
    let mut response = act(&view, &routed, target, call, request).await.map_err(|error| within(error, routed.route))?;
    change::apply(routed.response_changes, response.headers_mut());
    Ok(response)
}

fn head<'r>(target: Option<&'r FixedTarget>, parts: &'r Parts) -> Result<RequestHead<'r>, MeshError> {
    match target {
        Some(target) => Ok(RequestHead::with_authority(parts, target.authority.as_str())),
        None => RequestHead::of(parts),
    }
}

/// The view of the request's target, or the entry to wait at: the first request to a target subscribes to it.
#[allow(clippy::type_complexity, reason = "a view or where it will appear")]
pub(super) fn view(
    mesh: &Mesh,
    target: Option<&FixedTarget>,
    head: &RequestHead<'_>,
) -> Result<Result<Arc<TargetView>, Arc<mesh_core::store::TargetEntry>>, MeshError> {
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

async fn act(
    view: &TargetView,
    routed: &Routed<'_>,
    target: Option<&FixedTarget>,
    call: &mut Call,
    request: &mut Outgoing,
) -> Result<Response<ResponseBody>, MeshError> {
    let forward = match &routed.route.action {
        RouteAction::Forward(forward) => forward,
        RouteAction::Redirect(redirect) => return reply::redirect(redirect, &routed.route.matches, &request.parts),
        RouteAction::Direct(direct) => return Ok(reply::direct(direct)),
        RouteAction::Unusable(reason) => return Err(MeshError::new(ErrorKind::NoRoute, Arc::clone(reason))),
        RouteAction::NonForwarding => {
            return Err(MeshError::new(ErrorKind::NoRoute, "the route is for a server and leads nowhere"));
        }
    };
    let cluster = routed.cluster.ok_or_else(|| MeshError::new(ErrorKind::NoCluster, "the route has no cluster"))?;
    if let Some(limit) = forward.time_limit(call.is_grpc, routed.max_stream_duration) {
        // From here, as in Envoy: what a fault filter held back does not count.
        call.not_after(Instant::now() + limit);
    }
    change::prepare(&mut request.parts, forward, routed, target.map(|target| &target.authority))?;
    let deadline = call.deadline;
    let mut tries = pin!(attempt::run(view, cluster, forward.retry.as_ref(), call, request));
    let Some(deadline) = deadline else { return tries.await };
    tokio::time::timeout_at(deadline.into(), tries.as_mut()).await.unwrap_or_else(|_| {
        let detail = format!("cluster {}: no response by the deadline", cluster.name());
        Err(MeshError::new(ErrorKind::Timeout, detail))
    })
}

fn within(error: MeshError, route: &Route) -> MeshError {
    if route.name.is_empty() { error } else { error.within(format_args!("route {}", route.name)) }
}
