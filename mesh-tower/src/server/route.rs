//! The second station of a server: a request finds its route, passes the filters, and goes on to the
//! application, or is answered here.
//!
//! Each request sees the configuration of its moment, so that a change bites on the next request of a live
//! connection. On the way to the application nothing is allocated unless the configuration or an observer asks
//! for it.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{Extensions, Request, Response, Version};
use mesh_core::call::Call;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::filter::{Decision, Filter, Reply};
use mesh_core::model::{HeaderChange, Route, RouteAction};
use mesh_core::request::{RequestHead, is_grpc};
use mesh_core::store::{ServerState, ServerView};
use mesh_core::view::RouteTable;
use tower_layer::Layer;
use tower_service::Service;

use crate::body::ResponseBody;
use crate::headers;
use crate::mesh::Mesh;
use crate::reply;
use crate::server::accept::Connection;
use crate::server::listening::{Listening, find};
use crate::server::response::{Ending, Report, ResponseFuture, ServerBody};

/// Finds a request's connection in its extensions.
type ConnectionOf = fn(&Extensions) -> Option<Connection>;

/// Puts a service behind the mesh: see [`Mesh::server_layer`].
#[derive(Clone, Debug)]
pub struct ServerLayer {
    shared: Arc<Shared>,
}

#[derive(Clone, Debug)]
struct Shared {
    mesh: Mesh,
    listener: Option<Arc<Listening>>,
    connection_of: ConnectionOf,
    made: Instant,
}

impl ServerLayer {
    pub(super) fn of(mesh: &Mesh, listener: Option<Arc<Listening>>) -> Self {
        let (mesh, made) = (mesh.clone(), Instant::now());
        ServerLayer { shared: Arc::new(Shared { mesh, listener, connection_of: connection_extension, made }) }
    }

    /// The same, for servers that keep the connection's addresses in an extension of their own. Under
    /// [`crate::server::serve`] they are known without.
    pub fn connection_by(mut self, connection_of: fn(&Extensions) -> Option<Connection>) -> Self {
        Arc::make_mut(&mut self.shared).connection_of = connection_of;
        self
    }
}

impl<S> Layer<S> for ServerLayer {
    type Service = ServerService<S>;

    fn layer(&self, inner: S) -> ServerService<S> {
        ServerService { shared: Arc::clone(&self.shared), inner }
    }
}

fn connection_extension(extensions: &Extensions) -> Option<Connection> {
    #[cfg(feature = "axum")]
    if let Some(info) = extensions.get::<axum::extract::ConnectInfo<Connection>>() {
        return Some(info.0);
    }
    extensions.get().copied()
}

/// A service behind the mesh.
#[derive(Clone, Debug)]
pub struct ServerService<S> {
    shared: Arc<Shared>,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for ServerService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
{
    type Response = Response<ServerBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> ResponseFuture<S, B> {
        let mesh = &self.shared.mesh;
        // The clock is read where somebody looks at it: for filters, and here for observers.
        let mut call = Call::new(self.shared.made, fastrand::Rng::new());
        let mut report = (!mesh.observers().is_empty()).then(|| Box::new(Report::of(mesh, &request, Instant::now())));
        let routed = self.shared.route(&mut request, &mut call, report.as_deref_mut());
        let is_http1 = request.version() <= Version::HTTP_11;
        let ending = Ending { in_flight: mesh.drain().enter(), is_http1, changes: routed.response_changes, report };
        match routed.then {
            Then::Forward if routed.delay.is_zero() => ResponseFuture::forward(self.inner.call(request), ending),
            Then::Forward => {
                // The service that is ready is the one that will be called.
                let next = self.inner.clone();
                let ready = std::mem::replace(&mut self.inner, next);
                ResponseFuture::held(routed.delay, ready, request, ending)
            }
            Then::Answer(response) => ResponseFuture::answer(routed.delay, *response, ending),
        }
    }
}

/// What becomes of a request.
struct Routed {
    delay: Duration,
    then: Then,
    /// Mostly none: then there is no box.
    response_changes: Option<Box<[HeaderChange]>>,
}

enum Then {
    /// It goes on to the application.
    Forward,
    /// It is answered here.
    Answer(Box<Response<ResponseBody>>),
}

impl Shared {
    fn route<B>(&self, request: &mut Request<B>, call: &mut Call, mut report: Option<&mut Report>) -> Routed {
        self.find_and_filter(request, call, report.as_deref_mut()).unwrap_or_else(|error| {
            if let Some(report) = report {
                report.error = Some(error.kind());
            }
            let response = reply::error(&error, is_grpc(request.headers()));
            Routed { delay: Duration::ZERO, then: Then::Answer(Box::new(response)), response_changes: None }
        })
    }

    fn find_and_filter<B>(
        &self,
        request: &mut Request<B>,
        call: &mut Call,
        report: Option<&mut Report>,
    ) -> Result<Routed, MeshError> {
        // Asked for only where there is a choice.
        let connection = || Connection::current().or_else(|| (self.connection_of)(request.extensions()));
        let all;
        let listening = match &self.listener {
            Some(listening) => listening,
            None => {
                all = self.mesh.listeners().load();
                match all.as_slice() {
                    [only] => only,
                    all => find(all, connection())?,
                }
            }
        };
        let state = listening.state();
        let view = match &**state {
            ServerState::Serving(view) => view,
            ServerState::NotServing(reason) => return Err(MeshError::new(ErrorKind::Draining, Arc::clone(reason))),
            ServerState::Waiting => return Err(MeshError::new(ErrorKind::Draining, "no configuration yet")),
        };
        let routes = routes(view, connection)?;
        let (_, route, destination) = routes.find(&RequestHead::of_request(request)?, call)?;
        if let Some(report) = report {
            report.route = Some(Arc::clone(&route.name));
        }
        let (delay, answer) = pass(destination.filters(), call, request);
        let changes = destination.response_changes();
        let response_changes = (!changes.is_empty()).then(|| changes.into());
        let then = match answer {
            Some(answer) => Then::Answer(Box::new(reply::filter(answer, is_grpc(request.headers())))),
            None => {
                for_the_application(route)?;
                headers::apply(destination.request_changes(), request.headers_mut());
                Then::Forward
            }
        };
        Ok(Routed { delay, then, response_changes })
    }
}

/// The routes of a connection's filter chain. Where the connection is not known, those of the only chain.
fn routes(view: &ServerView, connection: impl Fn() -> Option<Connection>) -> Result<&Arc<RouteTable>, MeshError> {
    let refused = |kind, what: &str| MeshError::new(kind, format!("listener {}: {what}", view.listener.name));
    let chain = match (view.listener.filter_chains.as_slice(), view.chains.as_slice()) {
        // The default chain alone.
        ([], [only]) => only,
        (_, chains) => match (connection(), chains) {
            (Some(connection), _) => view
                .chain(connection.local, connection.peer)
                .ok_or_else(|| refused(ErrorKind::NoRoute, "no filter chain matches the connection"))?,
            (None, [only]) => only,
            (None, _) => {
                let what = "several filter chains, and the connection is not known";
                return Err(refused(ErrorKind::Draining, what));
            }
        },
    };
    match &chain.unusable_tls {
        // The connection is older than the demand. It cannot meet it.
        Some(reason) => Err(refused(ErrorKind::Security, reason)),
        None => Ok(&chain.routes),
    }
}

/// Passes the filters; what they hold the request back for adds up, and the first answer ends it.
fn pass<B>(filters: &[Arc<dyn Filter>], call: &mut Call, request: &mut Request<B>) -> (Duration, Option<Reply>) {
    if filters.is_empty() {
        return (Duration::ZERO, None);
    }
    call.started = Instant::now();
    call.is_grpc = is_grpc(request.headers());
    with_parts(request, |parts| {
        let mut delay = Duration::ZERO;
        for filter in filters {
            let (wait, answer) = match filter.on_request(call, parts) {
                Decision::Continue => continue,
                Decision::Wait(wait, answer) => (wait, answer),
                Decision::Reply(answer) => (Duration::ZERO, Some(answer)),
            };
            delay = delay.saturating_add(wait);
            if answer.is_some() {
                return (delay, answer);
            }
        }
        (delay, None)
    })
}

/// Does something with the parts of a request that stays in its place.
fn with_parts<B, T>(request: &mut Request<B>, change: impl FnOnce(&mut Parts) -> T) -> T {
    let (mut parts, ()) = Request::new(()).into_parts();
    let mut swap = |parts: &mut Parts| {
        std::mem::swap(&mut parts.method, request.method_mut());
        std::mem::swap(&mut parts.uri, request.uri_mut());
        std::mem::swap(&mut parts.version, request.version_mut());
        std::mem::swap(&mut parts.headers, request.headers_mut());
        std::mem::swap(&mut parts.extensions, request.extensions_mut());
    };
    swap(&mut parts);
    let result = change(&mut parts);
    swap(&mut parts);
    result
}

/// A server's route has no other action (gRFC A36).
fn for_the_application(route: &Route) -> Result<(), MeshError> {
    let reason = match &route.action {
        RouteAction::NonForwarding => return Ok(()),
        RouteAction::Unusable(reason) => Arc::clone(reason),
        _ => "a server's route must have a non-forwarding action".into(),
    };
    Err(MeshError::new(ErrorKind::NoRoute, reason).within(format_args!("route {}", route.name)))
}
