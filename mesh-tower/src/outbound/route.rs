//! The first steps: the target's view, the route, the route's filters, and what the route wants.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::request::Parts;
use http::uri::Scheme;
use http::{Extensions, Method, Uri, Version};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::filter::Resume;
use mesh_core::hashing;
use mesh_core::live_trace::Side;
use mesh_core::matcher::request_matches_any;
use mesh_core::model::{BLOCK_ALL, Forward, RouteAction};
use mesh_core::request::{RequestHead, has_port, host_and_port, is_grpc};
use mesh_core::request_info::{Deadline, Direction, Inherited, Interest, Repeat, RequestInfo, interest_of};
use mesh_core::rewrite::{complete_path, edit};
use mesh_core::store::TargetEntry;
use mesh_core::view::{RouteRef, SelectedRoute, TargetView};

use super::mirror::Copies;
use super::placement::Follow;
use super::request::{ActiveRequest, FOUND, OutboundContext, Step, Woken, too_late};
use super::rewrite::rewrite;
use crate::filters::{self, Passage};
use crate::followed;
use crate::inherited;
use crate::onward::Onward;
use crate::reply;
use crate::telemetry::Telemetry;
use crate::transport::Transport;
use crate::uri::strip_user;

/// Notes what is known of a request before it is routed.
#[inline]
fn look_at(info: &mut RequestInfo, context: &OutboundContext, head: &Parts) {
    info.is_grpc = is_grpc(&head.headers);
    info.is_http2 = head.version == Version::HTTP_2;
    if let Some(inherited) = inherited_by(head) {
        info.inherited = inherited;
    }
    info.deadline = head.extensions.get::<Deadline>().map(|deadline| deadline.0);
    if let Some(deadline) = info.inherited.deadline {
        info.not_after(deadline);
    }
    info.repeat = head.extensions.get::<Repeat>().copied();
    let interest = interest_of(&context.observers);
    if interest > Interest::Nothing {
        observe_by(info, context, head, interest);
    }
    if context.is_gateway
        && let Some(Onward { upstream: Some(upstream), .. }) = head.extensions.get()
    {
        if !info.is_observed() {
            observe(info, context, head);
        }
        if info.head().is_none() {
            note_head(info, head);
        }
        info.note_upstream(upstream);
    }
    if context.live_traces.is_looking() {
        follow(info, context, head);
    }
}

/// Somebody looks at requests: at all of them, as the admin port does, or at some, of which this may be one.
#[inline(never)]
fn follow(info: &mut RequestInfo, context: &OutboundContext, head: &Parts) {
    let Ok(seen) = head_of(context, head) else { return };
    let place = context.live_traces.enter(Side::Client, &seen, info.started);
    let arrival = || (info.inherited.mark, info.started, SystemTime::now());
    let hop = context.live_traces.begin(Side::Client, &seen, arrival);
    if place.is_none() && hop.is_none() {
        return;
    }
    if !info.is_observed() {
        observe(info, context, head);
    }
    if let Some(place) = place {
        info.take_place(place);
    }
    let Some(hop) = hop else { return };
    if info.head().is_none() {
        note_head(info, head);
    }
    info.follow(hop);
}

/// What a request inherits, if anything: as it says itself, or else from the one that this task serves. A trace that it does not
/// say is that one's in any case.
#[inline]
pub(super) fn inherited_by(head: &Parts) -> Option<Inherited> {
    let Some(own) = head.extensions.get::<Inherited>() else { return inherited::look(Inherited::clone) };
    let mut own = own.clone();
    if own.trace.is_empty() {
        own.trace = inherited::look(|inherited| inherited.trace.clone()).unwrap_or_default();
    }
    Some(own)
}

/// What a gateway's listener says of a request that came by it.
#[inline]
fn onward<'r>(context: &OutboundContext, extensions: &'r Extensions) -> Option<&'r Onward> {
    if context.is_gateway { extensions.get() } else { None }
}

/// Notes from here on what becomes of the request.
fn observe(info: &mut RequestInfo, context: &OutboundContext, head: &Parts) {
    observe_by(info, context, head, interest_of(&context.observers));
}

/// The same, where it is known what the observers want to know.
fn observe_by(info: &mut RequestInfo, context: &OutboundContext, head: &Parts, interest: Interest) {
    info.observe(&context.observers, Direction::Outbound, &head.method);
    info.note_authority(match &context.target {
        Some(target) => target.authority.as_str(),
        None => RequestHead::of(head).map_or("", |head| head.authority),
    });
    if context.is_gateway {
        info.note_edge();
    }
    if interest == Interest::Head {
        note_head(info, head);
    }
    // What strangers call, and by which name, is bounded by nothing.
    let counts = info.is_grpc && !context.is_gateway;
    if let Some(grpc) = context.telemetry.as_deref().and_then(Telemetry::grpc).filter(|_| counts) {
        let call = grpc.client(head.uri.path(), info.authority());
        info.note_call(Box::new(call));
    }
}

fn note_head(info: &mut RequestInfo, head: &Parts) {
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    info.note_head(path, head.version, &head.headers);
}

/// What is looked at of a request; a fixed target's authority stands above the request's own. There is no user in the
/// request's own any more: [`resolve`] saw to it.
#[inline]
fn head_of<'r>(context: &'r OutboundContext, head: &'r Parts) -> Result<RequestHead<'r>, MeshError> {
    let authority = match &context.target {
        Some(target) => Some(&target.authority),
        None => head.uri.authority(),
    };
    match authority {
        Some(authority) => Ok(RequestHead::with_authority(head, authority.as_str())),
        None => RequestHead::of(head),
    }
}

/// What is known of a target.
enum Resolved {
    /// Its view.
    View(Arc<TargetView>),
    /// Nothing yet: the first view will be here.
    NotYet(Arc<TargetEntry>),
}

/// Finds the target of a request. The first request to a target subscribes to it.
#[inline]
fn resolve(context: &OutboundContext, head: &mut Parts) -> Result<Resolved, MeshError> {
    complete_path(&mut head.uri);
    if context.is_gateway {
        let Some(Onward { entry, .. }) = head.extensions.get() else {
            return Err(MeshError::new(ErrorKind::NoListener, "the request came by no listener of a gateway"));
        };
        return Ok(entry.view().map_or_else(|| Resolved::NotYet(Arc::clone(entry)), Resolved::View));
    }
    if let Some(target) = &context.target {
        // Filters see what is routed by. The target of CONNECT is where the tunnel ends.
        if head.method != Method::CONNECT {
            edit(&mut head.uri, |uri| uri.authority = Some(target.authority.clone()));
        }
        return Ok(target.entry.view().map_or_else(|| Resolved::NotYet(Arc::clone(&target.entry)), Resolved::View));
    }
    // A name that the store knows has no user in it, nor anything else that would have to be taken out.
    if let Some(authority) = head.uri.authority()
        && has_port(authority.as_str())
        && let Some(view) = context.store.view(authority.as_str())
    {
        return Ok(Resolved::View(view));
    }
    let entry = entry(context, head)?;
    Ok(entry.view().map_or_else(|| Resolved::NotYet(Arc::clone(&entry)), Resolved::View))
}

/// The entry of the target that a request names.
pub(crate) fn entry(context: &OutboundContext, head: &mut Parts) -> Result<Arc<TargetEntry>, MeshError> {
    strip_user(head)?;
    let head = RequestHead::of(head)?;
    context.store.target(&host_and_port(head.authority, head.scheme)?)
}

/// Refuses what is no HTTP.
#[inline]
pub(crate) fn refuse_scheme(uri: &Uri) -> Result<(), MeshError> {
    match uri.scheme() {
        Some(scheme) if *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS => {
            let why = format!("{:?} is no scheme of the mesh: ask for http", scheme.as_str());
            Err(MeshError::new(ErrorKind::BadRequest, why))
        }
        _ => Ok(()),
    }
}

/// Refuses what would go out in plaintext against the caller's will: nobody on the way would speak TLS.
#[inline]
pub(crate) fn refuse_tls(uri: &Uri) -> Result<(), MeshError> {
    match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS => Err(MeshError::new(
            ErrorKind::Security,
            "https is not for the mesh, which secures connections itself, where its configuration says so: ask for http. \
             To a host outside of the mesh, let a client that speaks TLS connect: with mesh.client_layer() around it, or with \
             mesh.connector().under_tls() below it",
        )),
        _ => Ok(()),
    }
}

impl<T: Transport> ActiveRequest<T> {
    /// Begins the walk.
    #[inline]
    pub(super) fn start(&mut self, head: &mut Parts) -> Result<Step<T>, MeshError> {
        look_at(&mut self.info, &self.context, head);
        self.follows = head.extensions.get::<Follow>().is_some();
        if !T::SPEAKS_TLS && !self.context.is_gateway && head.uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP)
        {
            refuse_tls(&head.uri)?;
            refuse_scheme(&head.uri)?;
        }
        match resolve(&self.context, head)? {
            Resolved::View(view) => self.select(view, head),
            Resolved::NotYet(entry) => {
                let until = self.info.started + self.context.cold_start_wait;
                Ok(Step::Wait(Box::pin(async move { Woken::View(entry.wait(until).await) })))
            }
        }
    }

    /// Finds the route.
    #[inline]
    pub(super) fn select(&mut self, view: Arc<TargetView>, head: &mut Parts) -> Result<Step<T>, MeshError> {
        if self.context.tracer.is_some() {
            self.trace(&view, head);
        }
        if let Some(logs) = view.access_logs() {
            if !self.info.is_observed() {
                observe(&mut self.info, &self.context, head);
            }
            self.info.note_logs(logs);
            if self.info.head().is_none() {
                note_head(&mut self.info, head);
            }
        }
        if self.info.is_followed()
            && let Ok(seen) = head_of(&self.context, head)
        {
            let random = self.info.random.clone();
            let routed = followed::route(&view, &seen, random, &|name| self.info.tells_header(name));
            self.info.note_event("routed", || routed);
        }
        let onward = onward(&self.context, &head.extensions);
        let rules = onward.and_then(|onward| onward.metrics.as_ref()).or(view.metrics());
        if let Some(rules) = rules.filter(|_| self.info.is_observed()) {
            self.info.note_metric_rules(rules);
            if rules.needs_head() && self.info.head().is_none() {
                note_head(&mut self.info, head);
            }
        }
        let found = SelectedRoute::find(&view, &head_of(&self.context, head)?, &mut self.info.random);
        let (selected, route) = found.map_err(|error| self.unrouted(&view, error))?;
        self.route = Some(selected);
        if T::SPEAKS_TLS && !route.cluster.is_some_and(|cluster| cluster.passes_through()) {
            refuse_tls(&head.uri)?;
        }
        if route.destination.is_noted() && !self.info.is_observed() {
            observe(&mut self.info, &self.context, head);
        }
        self.info.note_route(&route.route.name, route.cluster.map(|cluster| cluster.name()));
        let leaf = route.cluster.and_then(|cluster| cluster.leaves().first());
        self.info.note_service(leaf.and_then(|leaf| leaf.cluster.service.as_ref()));
        match route.destination.filters() {
            [] => self.act(&route, head),
            _ => self.filter(&route, head),
        }
    }

    /// No route is for the request, or its target is not there at all.
    #[cold]
    fn unrouted(&mut self, view: &TargetView, error: MeshError) -> MeshError {
        if view.is_failure() {
            self.info.note_nowhere(if view.is_blocked() { BLOCK_ALL } else { "" });
        }
        self.context.store.traffic().note_nowhere(view.target(), view.is_blocked());
        error
    }

    /// Decides whether spans of the request are recorded.
    fn trace(&mut self, view: &TargetView, head: &mut Parts) {
        let Some(tracer) = &self.context.tracer else { return };
        let onward = onward(&self.context, &head.extensions);
        let tracing = onward.and_then(|onward| onward.tracing.as_ref()).or(view.tracing());
        let tracing = tracing.unwrap_or(tracer.tracing());
        let RequestInfo { inherited, random, .. } = &mut self.info;
        inherited.trace.or_own(&head.headers);
        let begun = inherited.trace.begin(tracing, &head.headers, random);
        let is_logged = view.access_logs().is_some() || self.info.head().is_some();
        if begun.is_none() && !is_logged {
            return;
        }
        // The heads of what is told of it have its id.
        self.info.inherited.trace.tell_request_id(&mut head.headers);
        if let Some(begun) = begun {
            if !self.info.is_observed() {
                observe(&mut self.info, &self.context, head);
            }
            self.info.note_span(begun, tracing);
        }
        if begun.is_some() || self.info.head().is_some() {
            note_head(&mut self.info, head);
        }
    }

    /// Passes the route's filters.
    fn filter(&mut self, route: &RouteRef<'_>, head: &mut Parts) -> Result<Step<T>, MeshError> {
        let filters = route.destination.filters();
        let passage = filters::on_request(filters, &mut self.filters_entered, &mut self.info, head);
        self.passed(passage, route, head)
    }

    /// The filter that held the request back knows more.
    pub(super) fn resume(&mut self, decide: Resume, head: &mut Parts) -> Result<Step<T>, MeshError> {
        let selected = self.route.clone().expect(FOUND);
        let route = selected.get();
        let filters = route.destination.filters();
        let passage = filters::resume(decide, filters, &mut self.filters_entered, &mut self.info, head);
        self.passed(passage, &route, head)
    }

    fn passed(&mut self, passage: Passage, route: &RouteRef<'_>, head: &mut Parts) -> Result<Step<T>, MeshError> {
        match passage {
            Passage::Passed => self.act(route, head),
            Passage::Answered(answer) => Ok(Step::Done(reply::filter(answer, self.info.is_grpc))),
            Passage::Held(callout) => Ok(Step::Wait(Box::pin(async move { Woken::Filter(callout.await) }))),
        }
    }

    /// Does what the route wants.
    #[inline]
    fn act(&mut self, route: &RouteRef<'_>, head: &mut Parts) -> Result<Step<T>, MeshError> {
        let response = match &route.route.action {
            RouteAction::Forward(forward) => {
                limit(&mut self.info, forward, route)?;
                if forward.coalesces {
                    self.context.coalescer.want();
                }
                if !forward.hash_policies.is_empty() {
                    self.hash(route, forward, head)?;
                }
                if let Some(policy) = &forward.retry
                    && !policy.request_headers.is_empty()
                    && !request_matches_any(&policy.request_headers, &head_of(&self.context, head)?)
                {
                    self.info.repeat = Some(Repeat::Never);
                }
                // Where the caller wants to go, if that is where the cluster's requests go: what the route writes over
                // it is only told there.
                if route.cluster.is_some_and(|cluster| cluster.passes_through()) {
                    self.original_destination = Some(original_destination(&head_of(&self.context, head)?)?);
                }
                rewrite(head, forward, route)?;
                if !forward.mirrors.is_empty()
                    && let Some(selected) = &self.route
                {
                    self.copies = Copies::of(&self.context.mirrors, forward, selected.view(), head, &mut self.info);
                }
                return self.try_once(route, head);
            }
            RouteAction::Redirect(redirect) => {
                let seen = head_of(&self.context, head)?;
                reply::redirect(redirect, &route.route.matches, &seen, self.info.is_grpc)?
            }
            RouteAction::Direct(direct) => reply::direct(direct, self.info.is_grpc),
            RouteAction::Unusable(reason) => return Err(MeshError::new(ErrorKind::NoRoute, Arc::clone(reason))),
            RouteAction::NonForwarding => {
                return Err(MeshError::new(ErrorKind::NoRoute, "the route is for a server and leads nowhere"));
            }
        };
        self.info.note_details("direct_response");
        Ok(Step::Done(response))
    }

    /// Hashes the request as the caller made it, before the route writes over anything.
    fn hash(&mut self, route: &RouteRef<'_>, forward: &Forward, head: &Parts) -> Result<(), MeshError> {
        let seen = head_of(&self.context, head)?;
        let made = route.made().unwrap_or_else(|| self.info.random.u64(..));
        let hashed = hashing::hash(&forward.hash_policies, &seen, &self.context.caller, made);
        (self.info.hash, self.set_cookies) = (hashed.hash, hashed.set_cookies.into());
        Ok(())
    }
}

/// The name of what the caller asked for, always with a port.
pub(crate) fn original_destination(head: &RequestHead<'_>) -> Result<Box<str>, MeshError> {
    host_and_port(head.authority, head.scheme).map(Box::from)
}

/// Brings the deadline forward to the route's limit. It runs from here on: what a filter held back does not count, as in
/// Envoy; the time that it takes to send the request's body does, unlike there.
#[inline]
fn limit(info: &mut RequestInfo, forward: &Forward, route: &RouteRef<'_>) -> Result<(), MeshError> {
    let limit = forward.time_limit(info.is_grpc, route.max_stream_duration);
    if info.answer_by().is_none() && limit.is_none() {
        return Ok(());
    }
    let now = Instant::now();
    // What a clock cannot add to the present is no limit.
    if let Some(limit) = limit.and_then(|limit| now.checked_add(limit)) {
        info.not_after(limit);
    }
    if info.answer_by().is_some_and(|by| by <= now) {
        return Err(too_late(route));
    }
    Ok(())
}
