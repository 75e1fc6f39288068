//! The layer that puts a service behind the mesh: what an application says of it, and its requests one by one, which
//! `request` decides on.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{Extensions, Request, Response, Version};
use mesh_core::identity::SpiffeId;
use mesh_core::model::{EdgeTrust, HeadersWithUnderscores};
use mesh_core::request::is_grpc;
use mesh_core::request_info::{Deadline, Inherited};
use mesh_core::rewrite::complete_path;
use mesh_core::seldom::Seldom;
use mesh_core::store::{ChainView, ServerState};
use tower_layer::Layer;
use tower_service::Service;

use crate::body::Body;
use crate::connection::ConnectionInfo;
use crate::listeners::ListenerState;
use crate::mesh::Mesh;
use crate::server::authorizer::{Authorizer, Authorizers, Own};
use crate::server::request::{Admission, ConnectionOf, ServerContext};
use crate::server::request_body::{Bodies, RequestBody};
use crate::server::response::{ActiveRequest, ServerBody};
use crate::server::response_future::ResponseFuture;

/// Puts a service behind the mesh: see [`Mesh::server_layer`].
#[derive(Clone, Debug)]
pub struct ServerLayer {
    context: Arc<ServerContext>,
}

impl ServerLayer {
    pub(super) fn of(mesh: &Mesh, listener: Option<Arc<ListenerState>>) -> Self {
        mesh.listeners().note_layer();
        let context = ServerContext {
            mesh: mesh.clone(),
            listener,
            connection_of: connection_extension,
            trusted_proxies: Arc::default(),
            underscores: HeadersWithUnderscores::Allow,
            authorizers: Authorizers::default(),
            bodies: known_bodies(),
            untold: Seldom::default(),
            live_traces: Arc::clone(mesh.store().live_traces()),
        };
        ServerLayer { context: Arc::new(context) }
    }

    /// The same, for a server whose clients are proxies: what these send is believed that only a proxy may say. Those are
    /// `x-forwarded-client-cert` and all headers whose names begin with `x-envoy-` or `x-mesh-`; they are taken off what
    /// anybody else sends, before policies, filters and the application see it. A peer is who its certificate says, never an
    /// address.
    ///
    /// ```
    /// use mesh_core::fixed::Fixed;
    /// use mesh_tower::Mesh;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mesh = Mesh::builder().source(Fixed::new()).start()?;
    /// let layer = mesh.server_layer().trusted_proxies(["spiffe://cluster.local/ns/istio-system/sa/gateway".parse()?]);
    /// # drop(layer);
    /// # Ok(()) }
    /// ```
    pub fn trusted_proxies(mut self, peers: impl IntoIterator<Item = SpiffeId>) -> Self {
        Arc::make_mut(&mut self.context).trusted_proxies = peers.into_iter().collect();
        self
    }

    /// The same, with another idea of headers whose names have an underscore. The stricter of this and of what the
    /// configuration says counts; by default both let them pass.
    pub fn headers_with_underscores(mut self, action: HeadersWithUnderscores) -> Self {
        Arc::make_mut(&mut self.context).underscores = action;
        self
    }

    /// The same, for servers that keep the connection's addresses in an extension of their own. Under
    /// [`crate::server::serve`] they are known without.
    pub fn connection_by(mut self, connection_of: ConnectionOf) -> Self {
        Arc::make_mut(&mut self.context).connection_of = connection_of;
        self
    }

    /// The same, for a server with request bodies of another type than [`Body`], axum's (Cargo feature `axum`) or tonic's
    /// (`mesh-tonic`): this makes one of what was read of it. It is needed where an authorizer is to be shown bodies
    /// (`includeRequestBodyInCheck`); else requests that have one, and that it is asked about, are answered with 503 and the
    /// reason. For [`crate::server::serve`] there is [`crate::server::Serve::readable_bodies`].
    ///
    /// A body that is shown reaches the application whole. It is held in memory until then, up to as much as the authorizer
    /// wants to see, and all bodies of a layer together up to 64 MiB. Of those a client, by its address, has no more than it
    /// leaves to others. It gets 60 s to send one.
    ///
    /// ```
    /// use http_body_util::BodyExt;
    /// use http_body_util::combinators::UnsyncBoxBody;
    /// use mesh_core::fixed::Fixed;
    /// use mesh_tower::Mesh;
    /// use mesh_tower::server::RequestBody;
    ///
    /// type Body = UnsyncBoxBody<bytes::Bytes, mesh_tower::body::BoxError>;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mesh = Mesh::builder().source(Fixed::new()).start()?;
    /// let layer = mesh.server_layer().bodies_by(|read: RequestBody<Body>| read.boxed_unsync());
    /// # drop(layer);
    /// # Ok(()) }
    /// ```
    pub fn bodies_by<B>(mut self, rebuild: fn(RequestBody<B>) -> B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
    {
        Arc::make_mut(&mut self.context).bodies.add(rebuild);
        self
    }

    /// Asks the application about every request, where policies ask authorizers outside of it (CUSTOM): after its tokens were
    /// looked at, after those, and before DENY and ALLOW, which still count. Whoever it refuses does not reach the application.
    /// An error, a panic, and no decision in time refuse with 403. It sees the path that the application will see, so that both
    /// decide by the same one, in the form that `pathNormalization` of the mesh's settings says: with NONE, and without a control
    /// plane, as it came. What could be read in two ways is refused as for a workload that policies guard.
    ///
    /// ```
    /// use http::{HeaderName, HeaderValue, StatusCode};
    /// use mesh_core::fixed::Fixed;
    /// use mesh_tower::Mesh;
    /// use mesh_tower::server::{Allow, AuthorizationRequest, Decision, Deny};
    /// use tower::{ServiceExt, service_fn};
    /// use tower_layer::Layer;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mesh = Mesh::builder().source(Fixed::new()).start()?;
    /// let listener = mesh.bind("127.0.0.1:0").await?;
    /// mesh.serving().await?;
    /// let decide = |request: AuthorizationRequest| async move {
    ///     let plan = HeaderName::from_static("x-plan");
    ///     Ok(match request.path_and_query.starts_with("/admin") {
    ///         true => Decision::from(Deny::new(StatusCode::FORBIDDEN).body("not for you").detail("no admin")),
    ///         false => Decision::from(Allow::new().header(plan, HeaderValue::from_static("free"))),
    ///     })
    /// };
    /// let hello = service_fn(|_| async { Ok::<_, std::io::Error>(http::Response::new("hello".to_owned())) });
    /// let service = mesh.server_layer().authorizer(decide).layer(hello);
    /// for (path, status) in [("/", 200), ("/admin", 403), ("/admin/users", 403)] {
    ///     let request = http::Request::get(path).header("host", "hello").body(())?;
    ///     assert_eq!(service.clone().oneshot(request).await?.status(), status);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn authorizer(mut self, authorizer: impl Authorizer) -> Self {
        Arc::make_mut(&mut self.context).authorizers.every = Some(Own::new(authorizer));
        self
    }

    /// Asks the application about those requests that a policy of action CUSTOM is for, as one of the authorizers that policies
    /// know. To policies its name is the provider of the mesh's settings whose service is `NAME.in-process.invalid`, under
    /// `envoyExtAuthzGrpc` (its port is written since Istio wants one, and leads nowhere):
    ///
    /// ```yaml
    /// extensionProviders:
    /// - name: plans
    ///   envoyExtAuthzGrpc: {service: plans.in-process.invalid, port: 9000}
    /// ```
    ///
    /// Otherwise as [`ServerLayer::authorizer`]: it comes in the order of the policies, and DENY and ALLOW after it. `timeout`,
    /// `failOpen` and `statusOnError` of the provider count for it; of the two times the shorter. A request that a policy asks an
    /// authorizer about whose name nobody registered is refused with the reason, also with `failOpen`.
    ///
    /// ```
    /// use mesh_core::fixed::Fixed;
    /// use mesh_tower::Mesh;
    /// use mesh_tower::server::{Allow, AuthorizationRequest, Decision, Deny};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mesh = Mesh::builder().source(Fixed::new()).start()?;
    /// let paid = |request: AuthorizationRequest| async move {
    ///     Ok(match request.headers.contains_key("x-plan") {
    ///         true => Decision::from(Allow::new()),
    ///         false => Decision::from(Deny::new(http::StatusCode::PAYMENT_REQUIRED)),
    ///     })
    /// };
    /// let layer = mesh.server_layer().named_authorizer("plans", paid);
    /// # drop(layer);
    /// # Ok(()) }
    /// ```
    pub fn named_authorizer(mut self, name: &str, authorizer: impl Authorizer) -> Self {
        let named = &mut Arc::make_mut(&mut self.context).authorizers.named;
        named.insert(name.to_ascii_lowercase(), Own::new(authorizer));
        self
    }
}

impl ServerLayer {
    /// What the configuration has a gateway believe of those in front of it, for the connection that this task works for: what it says
    /// of its clients in [`ClientAddress`](crate::server::ClientAddress) counts for policies, and the rest is the gateway's to do.
    pub fn edge_trust(&self) -> EdgeTrust {
        self.of_chain(|chain| chain.trust)
    }

    /// Whether the configuration has a gateway make gRPC of gRPC-Web, for the connection that this task works for.
    pub fn translates_grpc_web(&self) -> bool {
        self.of_chain(|chain| chain.grpc_web)
    }

    /// What the chain of the connection says that this task works for.
    fn of_chain<T: Default>(&self, says: impl FnOnce(&ChainView) -> T) -> T {
        let (Some(listener), Some(connection)) = (&self.context.listener, ConnectionInfo::current()) else {
            return T::default();
        };
        match &**listener.state() {
            ServerState::Serving(view) => connection.chain(view).map(says).unwrap_or_default(),
            ServerState::NotServing(_) | ServerState::Waiting => T::default(),
        }
    }
}

impl<S> Layer<S> for ServerLayer {
    type Service = ServerService<S>;

    fn layer(&self, inner: S) -> ServerService<S> {
        ServerService { context: Arc::clone(&self.context), inner }
    }
}

/// Bodies that can be read without a word of the application.
fn known_bodies() -> Bodies {
    let mut bodies = Bodies::default();
    bodies.add::<Body>(Body::new);
    #[cfg(feature = "axum")]
    bodies.add::<axum::body::Body>(axum::body::Body::new);
    bodies
}

/// Looks at the connection where servers are known to keep it, which costs less than to have it.
#[inline]
pub(super) fn look_at_connection<T>(extensions: &Extensions, look: impl FnOnce(&ConnectionInfo) -> T) -> Option<T> {
    #[cfg(feature = "axum")]
    if let Some(info) = extensions.get::<axum::extract::ConnectInfo<ConnectionInfo>>() {
        return Some(look(&info.0));
    }
    extensions.get::<Arc<ConnectionInfo>>().map(|connection| look(connection))
}

fn connection_extension(extensions: &Extensions) -> Option<Arc<ConnectionInfo>> {
    #[cfg(feature = "axum")]
    if let Some(info) = extensions.get::<axum::extract::ConnectInfo<ConnectionInfo>>() {
        return Some(Arc::new(info.0.clone()));
    }
    extensions.get().cloned()
}

/// What a request hands on to those that are made for it. Its headers are read before those are taken off that only a proxy
/// may set: all that they can do is to take time and retries from the request itself.
#[inline]
fn inherited_by<B>(request: &Request<B>) -> Option<Inherited> {
    let mut inherited = Inherited::of_headers(request.headers(), || is_grpc(request.headers()), Instant::now);
    if let Some(Deadline(deadline)) = request.extensions().get() {
        let inherited = inherited.get_or_insert_default();
        inherited.deadline = Some(inherited.deadline.map_or(*deadline, |told| told.min(*deadline)));
    }
    inherited
}

/// A service behind the mesh.
#[derive(Clone, Debug)]
pub struct ServerService<S> {
    context: Arc<ServerContext>,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for ServerService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    B: 'static,
    R: http_body::Body<Data = Bytes>,
{
    type Response = Response<ServerBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> ResponseFuture<S, B> {
        self.context.note_seen(request.extensions());
        complete_path(request.uri_mut());
        let mut inherited = inherited_by(&request);
        let mut facts = self.context.observed(&mut request);
        let admission = self.context.route(&mut request, &mut facts, &mut inherited);
        if let Some(facts) = &mut facts
            && facts.info.is_observed()
            && let Some(count) = facts.counts_body(&request)
        {
            let (head, body) = request.into_parts();
            let body = match self.context.bodies.counted(body, count) {
                Ok((body, count)) => {
                    facts.body_counted_by(count);
                    body
                }
                Err(body) => body,
            };
            request = Request::from_parts(head, body);
        }
        if let Some(hop) = facts.as_ref().and_then(|facts| facts.info.hop()) {
            inherited.get_or_insert_default().mark = Some(hop.mark(0));
        }
        let is_http1 = request.version() <= Version::HTTP_11;
        let mut active = ActiveRequest::new(self.context.in_flight(), is_http1, inherited, facts);
        match admission {
            Admission::Admit => ResponseFuture::forward(active.on_behalf(|| self.inner.call(request)), active),
            Admission::Held(callout) => {
                // The service that is ready is the one that will be called.
                let next = self.inner.clone();
                let ready = std::mem::replace(&mut self.inner, next);
                ResponseFuture::held(callout, Arc::clone(&self.context), ready, request, active)
            }
            Admission::Asked(asked) => {
                let next = self.inner.clone();
                let ready = std::mem::replace(&mut self.inner, next);
                ResponseFuture::asked(asked, Arc::clone(&self.context), ready, request, active)
            }
            Admission::Answer(response) => ResponseFuture::answer(response, active),
        }
    }
}
