//! The first station: find the target's view, the route, the deadline; the last: tell the observers.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use http::Response;
use http::request::Parts;
use mesh_core::call::{Call, Deadline};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::{Route, RouteAction};
use mesh_core::observe::Event;
use mesh_core::request::{RequestHead, host_and_port, is_grpc};
use mesh_core::store::TargetEntry;
use mesh_core::view::{Routed, TargetView};

use super::{FixedTarget, attempt, change, filter};
use crate::body::{Body, ResponseBody};
use crate::mesh::Mesh;
use crate::reply;

/// Sends one request through the mesh.
pub(super) async fn send(
    mesh: Mesh,
    target: Option<Arc<FixedTarget>>,
    parts: Parts,
    body: Body,
) -> Result<Response<ResponseBody>, MeshError> {
    let mut call = Call::new(Instant::now(), fastrand::Rng::new());
    call.is_grpc = is_grpc(&parts.headers);
    call.deadline = parts.extensions.get::<Deadline>().map(|deadline| deadline.0);
    if mesh.observers().is_empty() {
        let view = view(&mesh, target.as_deref(), &parts, &call).await?;
        return walk(&view, target.as_deref(), &mut call, parts, body).await;
    }
    observed(&mesh, target.as_deref(), &mut call, parts, body).await
}

/// The same, telling the observers how it ended.
async fn observed(
    mesh: &Mesh,
    target: Option<&FixedTarget>,
    call: &mut Call,
    parts: Parts,
    body: Body,
) -> Result<Response<ResponseBody>, MeshError> {
    let authority = RequestHead::of(&parts).map(|head| head.authority.to_owned()).unwrap_or_default();
    let result = match view(mesh, target, &parts, call).await {
        Ok(view) => walk(&view, target, call, parts, body).await,
        Err(error) => Err(error),
    };
    let mut event = Event::new(target.map_or(&authority, |target| target.authority.as_str()));
    event.status = result.as_ref().ok().map(Response::status);
    event.error = result.as_ref().err().map(MeshError::kind);
    event.attempts = call.attempt;
    event.duration = call.started.elapsed();
    mesh.observers().iter().for_each(|observer| observer.on_event(&event));
    result
}

/// The view of the request's target. The first request to a target subscribes to it and waits.
pub(super) async fn view(
    mesh: &Mesh,
    target: Option<&FixedTarget>,
    parts: &Parts,
    call: &Call,
) -> Result<Arc<TargetView>, MeshError> {
    let entry: Cow<'_, Arc<TargetEntry>> = match target {
        Some(target) => Cow::Borrowed(&target.entry),
        None => {
            let head = RequestHead::of(parts)?;
            let name = host_and_port(head.authority, head.scheme)?;
            Cow::Owned(match mesh.store().find(&name) {
                Some(entry) => entry,
                None => mesh.store().target(&name)?,
            })
        }
    };
    match entry.view() {
        Some(view) => Ok(view),
        None => {
            let patience = call.started + mesh.cold_start_wait();
            entry.wait(call.deadline.map_or(patience, |deadline| deadline.min(patience))).await
        }
    }
}

async fn walk(
    view: &TargetView,
    target: Option<&FixedTarget>,
    call: &mut Call,
    mut parts: Parts,
    body: Body,
) -> Result<Response<ResponseBody>, MeshError> {
    let head = match target {
        Some(target) => RequestHead::with_authority(&parts, target.authority.as_str()),
        None => RequestHead::of(&parts)?,
    };
    let routed = view.find(&head, call)?;
    if let Some(reply) = filter::pass(&routed, call, &mut parts).await? {
        return Ok(reply);
    }
    let mut response =
        act(view, &routed, target, call, parts, body).await.map_err(|error| within(error, routed.route))?;
    change::apply(routed.response_changes, response.headers_mut());
    Ok(response)
}

async fn act(
    view: &TargetView,
    routed: &Routed<'_>,
    target: Option<&FixedTarget>,
    call: &mut Call,
    mut parts: Parts,
    body: Body,
) -> Result<Response<ResponseBody>, MeshError> {
    let forward = match &routed.route.action {
        RouteAction::Forward(forward) => forward,
        RouteAction::Redirect(redirect) => return reply::redirect(redirect, &routed.route.matches, &parts),
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
    change::prepare(&mut parts, forward, routed, target.map(|target| &target.authority))?;
    let deadline = call.deadline;
    let tries = attempt::run(view, cluster, forward.retry.as_ref(), call, parts, body);
    let Some(deadline) = deadline else { return tries.await };
    tokio::time::timeout_at(deadline.into(), tries).await.unwrap_or_else(|_| {
        let detail = format!("cluster {}: no response by the deadline", cluster.name());
        Err(MeshError::new(ErrorKind::Timeout, detail))
    })
}

fn within(error: MeshError, route: &Route) -> MeshError {
    if route.name.is_empty() { error } else { error.within(format_args!("route {}", route.name)) }
}
