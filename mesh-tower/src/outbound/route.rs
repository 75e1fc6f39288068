//! The first steps: the target's view, the route, the route's filters, and what the route wants.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;
use http::uri::Scheme;
use http::{Response, Uri, Version};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::filter::Resume;
use mesh_core::model::{Forward, RouteAction};
use mesh_core::request::{RequestHead, has_port, host_and_port, is_grpc};
use mesh_core::request_info::{Deadline, Direction, RequestInfo};
use mesh_core::store::TargetEntry;
use mesh_core::view::{RouteRef, SelectedRoute, TargetView};

use super::request::{ActiveRequest, FOUND, NOT_SENT, OutboundContext, Step, Woken, too_late};
use super::response_body::Content;
use super::rewrite::rewrite;
use crate::filters::{self, Passage};
use crate::reply;
use crate::transport::Transport;
use crate::uri::strip_user;

/// What is known of a request before it is routed.
#[inline]
pub(super) fn info_of(context: &OutboundContext, head: &Parts) -> RequestInfo {
    let mut info = RequestInfo::new(Instant::now(), fastrand::Rng::new());
    info.is_grpc = is_grpc(&head.headers);
    info.is_http2 = head.version == Version::HTTP_2;
    info.deadline = head.extensions.get::<Deadline>().map(|deadline| deadline.0);
    if !context.observers.is_empty() {
        info.observe(&context.observers, Direction::Outbound, &head.method);
        info.note_authority(head_of(context, head).map_or("", |head| head.authority));
    }
    info
}

/// What is looked at of a request; a fixed target's authority stands above the request's own.
#[inline]
fn head_of<'r>(context: &'r OutboundContext, head: &'r Parts) -> Result<RequestHead<'r>, MeshError> {
    match &context.target {
        Some(target) => Ok(RequestHead::with_authority(head, target.authority.as_str())),
        None => RequestHead::of(head),
    }
}

/// The view of the request's target, or the entry to wait at: the first request to a target subscribes to it.
#[allow(clippy::type_complexity, reason = "a view or where it will appear")]
#[inline]
fn view(context: &OutboundContext, head: &mut Parts) -> Result<Result<Arc<TargetView>, Arc<TargetEntry>>, MeshError> {
    refuse_tls(&head.uri)?;
    if let Some(target) = &context.target {
        return Ok(target.entry.view().ok_or_else(|| Arc::clone(&target.entry)));
    }
    // A name that the store knows has no user in it, nor anything else that would have to be taken out.
    if let Some(authority) = head.uri.authority()
        && has_port(authority.as_str())
        && let Some(view) = context.store.view(authority.as_str())
    {
        return Ok(Ok(view));
    }
    view_by_name(context, head)
}

#[allow(clippy::type_complexity, reason = "as above")]
fn view_by_name(
    context: &OutboundContext,
    head: &mut Parts,
) -> Result<Result<Arc<TargetView>, Arc<TargetEntry>>, MeshError> {
    let entry = entry(context, head)?;
    Ok(entry.view().ok_or(entry))
}

/// The entry of the target that a request names.
pub(crate) fn entry(context: &OutboundContext, head: &mut Parts) -> Result<Arc<TargetEntry>, MeshError> {
    strip_user(head)?;
    let head = RequestHead::of(head)?;
    context.store.target(&host_and_port(head.authority, head.scheme)?)
}

/// Refuses what would go out in plaintext against the caller's will: nobody on the way would speak TLS.
#[inline]
pub(crate) fn refuse_tls(uri: &Uri) -> Result<(), MeshError> {
    match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS => Err(MeshError::new(
            ErrorKind::Security,
            "https is not for the mesh: it secures connections itself, where its configuration says so; ask for http",
        )),
        _ => Ok(()),
    }
}

impl<T: Transport> ActiveRequest<T> {
    /// Begins the walk.
    #[inline]
    pub(super) fn start(&mut self) -> Step<T> {
        self.resolve().unwrap_or_else(|error| self.fail(error))
    }

    #[inline]
    fn resolve(&mut self) -> Result<Step<T>, MeshError> {
        let (head, _) = self.request.as_mut().expect(NOT_SENT);
        match view(&self.context, head)? {
            Ok(view) => self.select(view),
            Err(entry) => {
                let until = self.info.started + self.context.cold_start_wait;
                Ok(Step::Wait(Box::pin(async move { Woken::View(entry.wait(until).await) })))
            }
        }
    }

    /// Finds the route.
    #[inline]
    pub(super) fn select(&mut self, view: Arc<TargetView>) -> Result<Step<T>, MeshError> {
        let (head, _) = self.request.as_ref().expect(NOT_SENT);
        let selected = SelectedRoute::find(view, &head_of(&self.context, head)?, &mut self.info.random)?;
        let route = selected.get();
        self.info.note_route(&route.route.name, route.cluster.map(|cluster| cluster.name()));
        let has_filters = !route.destination.filters().is_empty();
        self.route = Some(selected);
        if has_filters { self.filter() } else { self.act() }
    }

    /// Passes the route's filters.
    fn filter(&mut self) -> Result<Step<T>, MeshError> {
        let filters = self.route.as_ref().expect(FOUND).get().destination.filters();
        let (head, _) = self.request.as_mut().expect(NOT_SENT);
        let passage = filters::on_request(filters, &mut self.filters_entered, &mut self.info, head);
        self.passed(passage)
    }

    /// The filter that held the request back knows more.
    pub(super) fn resume(&mut self, decide: Resume) -> Result<Step<T>, MeshError> {
        let filters = self.route.as_ref().expect(FOUND).get().destination.filters();
        let (head, _) = self.request.as_mut().expect(NOT_SENT);
        let passage = filters::resume(decide, filters, &mut self.filters_entered, &mut self.info, head);
        self.passed(passage)
    }

    fn passed(&mut self, passage: Passage) -> Result<Step<T>, MeshError> {
        match passage {
            Passage::Passed => self.act(),
            Passage::Answered(answer) => Ok(self.reply(reply::filter(answer, self.info.is_grpc))),
            Passage::Held(callout) => Ok(Step::Wait(Box::pin(async move { Woken::Filter(callout.await) }))),
        }
    }

    /// Does what the route wants.
    #[inline]
    fn act(&mut self) -> Result<Step<T>, MeshError> {
        let route = self.route.as_ref().expect(FOUND).get();
        let (head, _) = self.request.as_mut().expect(NOT_SENT);
        let response = match &route.route.action {
            RouteAction::Forward(forward) => {
                if limit(&mut self.info, forward, &route)? {
                    self.deadline = None;
                }
                // Where the caller wants to go, if that is where the cluster's requests go: what the route writes over
                // it is only told there.
                if route.cluster.is_some_and(|cluster| cluster.passes_through()) {
                    self.destination = Some(destination(&head_of(&self.context, head)?)?);
                }
                let authority = self.context.target.as_ref().map(|target| &target.authority);
                rewrite(head, forward, &route, authority)?;
                return self.try_once();
            }
            RouteAction::Redirect(redirect) => {
                reply::redirect(redirect, &route.route.matches, &head_of(&self.context, head)?)?
            }
            RouteAction::Direct(direct) => reply::direct(direct),
            RouteAction::Unusable(reason) => return Err(MeshError::new(ErrorKind::NoRoute, Arc::clone(reason))),
            RouteAction::NonForwarding => {
                return Err(MeshError::new(ErrorKind::NoRoute, "the route is for a server and leads nowhere"));
            }
        };
        Ok(self.reply(response))
    }

    /// The mesh answers itself.
    fn reply(&mut self, response: Response<bytes::Bytes>) -> Step<T> {
        let response = self.pass_back(response);
        self.info.note_response_bytes(response.body().len());
        self.info.note_complete();
        Step::Done(Ok(response.map(|bytes| Content::Mesh { bytes })))
    }
}

/// The name of what the caller asked for, always with a port.
pub(crate) fn destination(head: &RequestHead<'_>) -> Result<String, MeshError> {
    host_and_port(head.authority, head.scheme).map(Cow::into_owned)
}

/// Brings the deadline forward to the route's limit, and tells whether it did. The limit runs from here on: what a
/// filter held back does not count, as in Envoy; the time that it takes to send the request's body does, unlike there.
#[inline]
fn limit(info: &mut RequestInfo, forward: &Forward, route: &RouteRef<'_>) -> Result<bool, MeshError> {
    let limit = forward.time_limit(info.is_grpc, route.max_stream_duration);
    if info.deadline.is_none() && limit.is_none() {
        return Ok(false);
    }
    let now = Instant::now();
    if let Some(limit) = limit {
        info.not_after(now + limit);
    }
    if info.deadline.is_some_and(|deadline| deadline <= now) {
        return Err(too_late(route));
    }
    Ok(limit.is_some())
}
