//! A connector for hyper-util's client: the client keeps its own pool, the mesh chooses where each new
//! connection goes, and ends connections that the configuration no longer allows.

mod stream;
mod tunnel;

use std::collections::HashSet;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use http::request::Parts;
use http::uri::Scheme;
use http::{Request, Uri};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::id::Target;
use mesh_core::model::{BLOCK_ALL, Forward, RetryCondition, RetryPolicy, RouteAction};
use mesh_core::outlier::Outcome;
use mesh_core::request::RequestHead;
use mesh_core::request_info::RequestInfo;
use mesh_core::retry;
use mesh_core::rewrite::complete_path;
use mesh_core::store::TargetEntry;
use mesh_core::view::{RouteRef, SelectedRoute, TargetView};
use tower_service::Service;

use crate::io::Io;
use crate::mesh::Mesh;
use crate::outbound::{self, Attempt, OutboundContext};
use crate::transport::dial;

pub use stream::ConnectorStream;

use stream::Origin;

/// Connects to an endpoint of the target that a URI names: for `hyper_util::client::legacy::Client` and
/// anything else that takes a connector. Where an endpoint refuses, another one is tried, as the route's retry policy has
/// it. A connection counts as in flight as long as it is open.
///
/// A connector sees names and bytes, and no requests. So it follows the route that `GET` and the URI's path find (most
/// clients tell a connector the authority alone, and the path is `/` then); weights divide connections. What it cannot
/// honour is said once for each target, as a warning: other routes, filters such as faults, header changes and rewrites,
/// timeouts, retries after a connection was made, consistent hashing, mirrors. Observers are told of requests, and so of
/// nothing here. Requests that need them need the mesh's own client, or its [layer](super::ClientLayer). Of a cluster's
/// limits that of its connections holds, and of its outlier detection failures to connect count.
///
/// A connection lasts as long as the configuration allows it: see [`ConnectorStream`].
///
/// ```
/// # use std::net::SocketAddr;
/// use http_body_util::{BodyExt, Empty};
/// use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// use mesh_core::fixed::Fixed;
/// use mesh_tower::Mesh;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// # let address: SocketAddr = listener.local_addr()?;
/// # let app = axum::Router::new().route("/", axum::routing::get(|| async { "hello" }));
/// # tokio::spawn(async move { axum::serve(listener, app).await });
/// let mesh = Mesh::builder().source(Fixed::new().service("hello:80", [address])).start()?;
/// let client = Client::builder(TokioExecutor::new()).build::<_, Empty<bytes::Bytes>>(mesh.connector());
/// let response = client.get("http://hello/".parse()?).await?;
/// assert_eq!(response.into_body().collect().await?.to_bytes(), "hello");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Connector {
    context: Arc<OutboundContext>,
    under_tls: bool,
    /// The targets of which it was said what a connector cannot honour.
    told: Arc<Mutex<HashSet<Target>>>,
}

impl Connector {
    /// For a connector that speaks TLS over this one, such as that of `hyper-rustls`: lets `https` pass, which fails with
    /// `Security` otherwise, since nobody would speak TLS.
    pub fn under_tls(mut self) -> Self {
        self.under_tls = true;
        self
    }
}

impl Mesh {
    /// A connector for a client that keeps its own connections.
    pub fn connector(&self) -> Connector {
        Connector { context: self.outbound(None), under_tls: false, told: Arc::clone(self.limits_told()) }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("under_tls", &self.under_tls).finish_non_exhaustive()
    }
}

impl Service<Uri> for Connector {
    type Response = ConnectorStream;
    type Error = MeshError;
    type Future = Pin<Box<dyn Future<Output = Result<ConnectorStream, MeshError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), MeshError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        // Whoever sends requests over it tells of them.
        let mut info = RequestInfo::new(Instant::now(), fastrand::Rng::new());
        Box::pin(async move { connector.open(uri, Bytes::OfRequests, &mut info).await })
    }
}

impl Connector {
    /// A connection to the target that a URI names. What becomes of it is noted.
    pub(super) async fn open(
        self,
        uri: Uri,
        mut bytes: Bytes,
        info: &mut RequestInfo,
    ) -> Result<ConnectorStream, MeshError> {
        match self.under_tls {
            false => outbound::refuse_tls(&uri)?,
            // The client above asks for the host of the URI.
            true if uri.scheme() == Some(&Scheme::HTTPS) => bytes = Bytes::OfTls(uri.host().map(str::to_owned)),
            true => {}
        }
        let (mut head, ()) = Request::new(()).into_parts();
        head.uri = uri;
        complete_path(&mut head.uri);
        let entry = outbound::entry(&self.context, &mut head)?;
        self.open_to(entry, head, bytes, info).await
    }

    /// A connection to wherever the view of this entry says.
    pub(super) async fn open_to(
        self,
        entry: Arc<TargetEntry>,
        head: Parts,
        mut bytes: Bytes,
        info: &mut RequestInfo,
    ) -> Result<ConnectorStream, MeshError> {
        let seed = fastrand::u64(..);
        info.random = fastrand::Rng::with_seed(seed);
        let view = entry.wait(info.started + self.context.cold_start_wait).await?;
        if let Some(logs) = view.access_logs() {
            info.note_logs(logs);
        }
        if view.is_failure() {
            info.note_nowhere(if view.is_blocked() { BLOCK_ALL } else { "" });
        }
        let route = match bytes.routes(&view) {
            Some(connections) => {
                let mut found = SelectedRoute::find(connections, &bytes.head(&head), &mut info.random);
                if matches!(&found, Err(error) if error.kind() == ErrorKind::NoRoute)
                    && let Some(by_name) = bytes.by_name()
                {
                    bytes = by_name;
                    info.random = fastrand::Rng::with_seed(seed);
                    found = SelectedRoute::find(connections, &bytes.head(&head), &mut info.random);
                }
                found.map_err(|error| bytes.explain(error))?.0
            }
            None => SelectedRoute::find(&view, &RequestHead::of(&head)?, &mut info.random)?.0,
        };
        let found = route.get();
        info.note_route(&found.route.name, found.cluster.map(|cluster| cluster.name()));
        let is_of_connections = !Arc::ptr_eq(route.view(), &view);
        let opened = self.open_on(&route, &head, info, is_of_connections).await;
        let (attempt, stream) = opened.map_err(|error| outbound::within(&route, error))?;
        let idle = match &route.get().route.action {
            RouteAction::Forward(forward) => forward.idle_timeout,
            _ => None,
        };
        let tunnel = forward(&route.get())?.tunnel.clone();
        let leaf = route.get().cluster.and_then(|cluster| cluster.leaves().get(attempt.leaf())).cloned();
        let stream = ConnectorStream::new(stream, Origin { attempt, leaf, head, bytes, seed, tunnel }, entry, view);
        Ok(stream.idle_for(idle))
    }

    async fn open_on(
        &self,
        route: &SelectedRoute,
        head: &Parts,
        info: &mut RequestInfo,
        is_of_connections: bool,
    ) -> Result<(Attempt, Io), MeshError> {
        let forward = forward(&route.get())?;
        if !is_of_connections {
            self.tell(route.view(), forward);
        }
        let original_destination = outbound::original_destination(&RequestHead::of(head)?)?;
        let mut retried = None;
        loop {
            let (attempt, cluster) = Attempt::pick(&route.get(), info, &original_destination)?;
            let attempt = attempt.of_connection();
            let Some(permit) = attempt.endpoint().open(&cluster.circuit_breakers) else {
                attempt.endpoint().note_overflow();
                let what = "there are as many connections as its limit allows (circuit breaker max_connections)";
                return Err(MeshError::new(ErrorKind::Overflow, what).within(format_args!("cluster {}", cluster.name)));
            };
            let dialed = async {
                let mut stream = dial(cluster, attempt.endpoint(), attempt.security, None, permit).await?;
                if let Some(tunnel) = &forward.tunnel {
                    tunnel::through(&mut stream, tunnel, cluster.connect_timeout).await?;
                }
                Ok(stream)
            };
            let error = match dialed.await {
                Ok(stream) => {
                    attempt.report(Outcome::Status(200), &route.get(), info);
                    return Ok((attempt, stream));
                }
                Err(error) => error,
            };
            drop(retried.take());
            match attempt.failed(error, &route.get(), info) {
                // It counts as a retry until there is a connection or none.
                (_, Some(next)) => {
                    tokio::time::sleep(next.after).await;
                    retried = Some(next.permit);
                }
                (error, None) => return Err(error),
            }
        }
    }

    /// Says what a connector cannot honour, once for each target.
    fn tell(&self, view: &TargetView, forward: &Forward) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.contains(view.target()) {
            return;
        }
        let limits = not_honoured(view, forward);
        if !limits.is_empty() {
            told.insert(view.target().clone());
            drop(told);
            tracing::warn!(
                target_name = %view.target(),
                "a connector cannot honour all of the configuration: {}; use the mesh's client or layer",
                limits.join(", ")
            );
        }
    }
}

/// What travels over a connection, as far as its route depends on it.
#[derive(Clone, Debug)]
pub(super) enum Bytes {
    /// Requests: their route is that of `GET` and the path.
    OfRequests,
    /// Bytes of which nothing is known, to routes of connections where there are any.
    Unknown,
    /// Bytes of which nothing is known but the host that they are for: where no rule is for any bytes, TLS that asks for it.
    ForHost(String),
    /// TLS that the application makes itself, by which it asks for the server of this name.
    OfTls(Option<String>),
}

impl Bytes {
    /// The routes of connections, where these bytes follow them and there are any.
    fn routes<'v>(&self, view: &'v Arc<TargetView>) -> Option<&'v Arc<TargetView>> {
        match self {
            Bytes::OfRequests => None,
            Bytes::Unknown | Bytes::ForHost(_) | Bytes::OfTls(_) => view.connections(),
        }
    }

    /// What routes of connections look at: the name of the server stands in the place of an authority.
    fn head<'r>(&'r self, head: &'r Parts) -> RequestHead<'r> {
        let name = match self {
            Bytes::OfTls(Some(name)) => name.as_str(),
            Bytes::OfTls(None) | Bytes::OfRequests | Bytes::Unknown | Bytes::ForHost(_) => "",
        };
        RequestHead::with_authority(head, name)
    }

    /// What they are taken for where no rule is for any bytes.
    fn by_name(&self) -> Option<Bytes> {
        match self {
            Bytes::ForHost(host) => Some(Bytes::OfTls(Some(host.clone()))),
            Bytes::OfRequests | Bytes::Unknown | Bytes::OfTls(_) => None,
        }
    }

    /// Why there is no route for them.
    fn explain(&self, error: MeshError) -> MeshError {
        if error.kind() != ErrorKind::NoRoute {
            return error;
        }
        let what = match self {
            Bytes::OfTls(Some(name)) => format!("no rule on TLS connections is for the server name {name:?}"),
            _ => "its rules are for TLS connections by the name of their server, and none is said: \
                  ask with mesh.connect_by_name(host, port, server_name)"
                .to_owned(),
        };
        MeshError::new(ErrorKind::NoRoute, what).caused_by(error)
    }
}

/// How much of an answer an error repeats, in characters.
const SAID: usize = 1000;

/// What a route forwards by.
fn forward<'v>(route: &RouteRef<'v>) -> Result<&'v Forward, MeshError> {
    match &route.route.action {
        RouteAction::Forward(forward) => Ok(forward),
        RouteAction::Unusable(reason) => Err(MeshError::new(ErrorKind::NoRoute, Arc::clone(reason))),
        // It may be why nobody is to be called.
        RouteAction::Direct(direct) => {
            let said: String = String::from_utf8_lossy(&direct.body).chars().take(SAID).collect();
            let answer = format!("the route answers with {}, and a connector cannot: {said}", direct.status.as_u16());
            Err(MeshError::new(ErrorKind::NoRoute, answer))
        }
        RouteAction::Redirect(_) | RouteAction::NonForwarding => {
            Err(MeshError::new(ErrorKind::NoRoute, "the route leads to no cluster, and a connector cannot answer"))
        }
    }
}

/// What the configuration of a target has, and a connector does not do.
fn not_honoured(view: &TargetView, forward: &Forward) -> Vec<&'static str> {
    let Some(table) = view.routes() else { return Vec::new() };
    let config = table.config();
    let routes = || config.virtual_hosts.iter().flat_map(|host| &host.routes);
    let forwards = || {
        routes().filter_map(|route| match &route.action {
            RouteAction::Forward(forward) => Some(forward),
            _ => None,
        })
    };
    // Whether a connection can be had is all that it tries again.
    let retries = |forward: &Forward| {
        let asks = |policy: &RetryPolicy| {
            let of_requests = policy.per_try_timeout.is_some() || policy.on.contains(RetryCondition::Reset);
            of_requests || retry::looks_at_answers(policy, false)
        };
        forward.retry.as_deref().is_some_and(asks)
    };
    let limited = |forward: &Forward| forward.time_limit(false, None).is_some();
    let mutates = config.virtual_hosts.iter().any(|host| !host.mutations.is_empty())
        || !config.mutations.is_empty()
        || routes().any(|route| !route.mutations.is_empty())
        || forwards().any(|forward| forward.clusters.mutate_headers());
    let limits = [
        (routes().nth(1).is_some(), "routes other than that of its connections"),
        (table.has_filters(), "filters"),
        (mutates, "header changes"),
        (forward.path.is_some() || forward.authority.is_some(), "rewrites"),
        (forwards().any(limited), "timeouts"),
        (forwards().any(retries), "retries of requests"),
        (forwards().any(|forward| !forward.hash_policies.is_empty()), "consistent hashing"),
        (forwards().any(|forward| !forward.mirrors.is_empty()), "mirrors"),
    ];
    limits.into_iter().filter(|(applies, _)| *applies).map(|(_, what)| what).collect()
}
