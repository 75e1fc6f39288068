//! The admin port of a mesh: what it counts, knows and follows, for people and for Prometheus. Off unless it is asked for,
//! read only, and without a secret in it.
//!
//! Nobody has to prove anything to read it, so that it is served on the loopback address, unless the application says
//! otherwise. A web page must not be a way around that, with a name of its own that it lets point at this machine (DNS
//! rebinding): requests are for an address or for `localhost`, or are refused.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST};
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_core::client_status::{ResourceState, ResourceStatus};
use mesh_core::health_check::Checked;
use mesh_core::live_trace::Side;
use mesh_core::resources::ResourceType;
use mesh_core::telemetry::Exposition;
use mesh_core::view::EndpointStatus;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::health::Health;
use crate::mesh::{Mesh, StartError, WeakMesh};
use crate::uri::unescaped;

/// How long a client may take for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that are open at a time. The oldest gives way to a new one: nobody holds the port shut, and pages that nobody reads take
/// no more memory than so many.
const CONNECTIONS: usize = 32;
/// Pages that are made at a time: with many series, each is long.
const PAGES: usize = 2;
const READY: &str = "/ready";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const NOSNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

impl Mesh {
    /// Serves what this process counts, knows and follows, at an address of the loopback, for as long as the mesh lives; returns
    /// the address. There are `/stats/prometheus` (and `/metrics`), `/ready`, `/clusters`, `/certs`, `/config_dump`, `/requests` and `/explain`. It
    /// is read only, nobody is asked who he is, and no secret is in it.
    ///
    /// # Errors
    /// [`StartError`] for an address that is not of the loopback, and if it cannot be bound.
    ///
    /// ```
    /// use mesh_core::fixed::Fixed;
    /// use mesh_tower::Mesh;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mesh = Mesh::builder().source(Fixed::new()).metrics().start()?;
    /// let address = mesh.serve_admin("127.0.0.1:0".parse()?)?;
    /// println!("admin listening on {address}");
    /// assert!(mesh.serve_admin("0.0.0.0:0".parse()?).is_err());
    /// # Ok(()) }
    /// ```
    pub fn serve_admin(&self, address: SocketAddr) -> Result<SocketAddr, StartError> {
        if !address.ip().to_canonical().is_loopback() {
            return Err(StartError::new(format!(
                "the admin port {address} is not on the loopback address, and whoever reaches it reads the configuration: \
                 say so if that is meant (serve_admin_anywhere)"
            )));
        }
        self.serve_admin_anywhere(address)
    }

    /// The same at any address: whoever reaches it reads what this process knows of its mesh.
    ///
    /// # Errors
    /// [`StartError`] if it cannot be bound.
    pub fn serve_admin_anywhere(&self, address: SocketAddr) -> Result<SocketAddr, StartError> {
        let failed = |error: io::Error| StartError::new(format!("cannot serve the admin port {address}: {error}"));
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        self.store().live_traces().keep_under_way();
        // It ends with the configuration thread.
        self.background().spawn(serve(self.downgrade(), async || {
            let listener = TcpListener::from_std(listener)?;
            Ok(async move || Ok(listener.accept().await?.0))
        }));
        Ok(bound)
    }

    /// The same over a Unix socket at this path, which nobody but the user of this process may open (mode 0600). A socket that is
    /// there is replaced: one process has it, the last one.
    ///
    /// # Errors
    /// [`StartError`] where something else is there, or it cannot be made.
    ///
    /// ```
    /// use mesh_core::fixed::Fixed;
    /// use mesh_tower::Mesh;
    ///
    /// # let directory = std::env::temp_dir().join(format!("mesh-admin-{}", std::process::id()));
    /// # std::fs::create_dir_all(&directory)?;
    /// let mesh = Mesh::builder().source(Fixed::new()).metrics().start()?;
    /// // curl --unix-socket PATH http://localhost/clusters
    /// mesh.serve_admin_unix(directory.join("admin.sock"))?;
    /// # std::fs::remove_dir_all(&directory)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(unix)]
    pub fn serve_admin_unix(&self, path: impl AsRef<Path>) -> Result<(), StartError> {
        let path = path.as_ref();
        let failed =
            |error: io::Error| StartError::new(format!("cannot serve the admin port {}: {error}", path.display()));
        let listener = own_socket(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        self.store().live_traces().keep_under_way();
        self.background().spawn(serve(self.downgrade(), async || {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            Ok(async move || Ok(listener.accept().await?.0))
        }));
        Ok(())
    }
}

/// A socket that is nobody else's at any time: it is made in a directory of its own, and moved.
#[cfg(unix)]
fn own_socket(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    use std::fs::{self, DirBuilder, Permissions};
    use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};

    if fs::symlink_metadata(path).is_ok_and(|there| !there.file_type().is_socket()) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "what is there is no socket"));
    }
    // Short, since the path of a socket has a bound.
    let parent = path.parent().unwrap_or(Path::new(""));
    let private = parent.join(format!(".{:08x}", fastrand::u32(..)));
    DirBuilder::new().mode(0o700).create(&private)?;
    let made = || {
        let socket = private.join("s");
        let listener = std::os::unix::net::UnixListener::bind(&socket)?;
        fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        fs::rename(&socket, path)?;
        Ok(listener)
    };
    let listener = made();
    // What is left of a failure.
    _ = fs::remove_dir_all(&private);
    listener
}

async fn serve<S, A>(mesh: WeakMesh, listen: impl AsyncFnOnce() -> io::Result<A>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    A: AsyncFn() -> io::Result<S>,
{
    let accept = match listen().await {
        Ok(accept) => accept,
        Err(error) => return tracing::error!(%error, "the admin port is not served"),
    };
    let (pages, mut open) = (Arc::new(Semaphore::new(PAGES)), VecDeque::<AbortHandle>::new());
    loop {
        let Ok(stream) = accept().await else {
            // Out of descriptors, as a rule: they come back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let connection = tokio::spawn(serve_one(stream, mesh.clone(), Arc::clone(&pages)));
        open.push_back(connection.abort_handle());
    }
}

/// Serves a connection, of whose requests each has a turn of `pages`.
async fn serve_one<S>(stream: S, mesh: WeakMesh, pages: Arc<Semaphore>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let answer = service_fn(|request: Request<_>| {
        let (request, mesh, pages) = (request.into_parts().0, mesh.clone(), Arc::clone(&pages));
        async move {
            // A probe is answered, whatever else is asked for.
            let turn = if request.uri.path() == READY { None } else { pages.acquire_owned().await.ok() };
            // Pages are long, and this thread is the one that configuration is taken in by.
            let page = tokio::task::spawn_blocking(move || {
                // Whoever asked and left keeps it until the page is made.
                let _turn = turn;
                answer(&Request::from_parts(request, ()), &mesh)
            });
            Ok::<_, Infallible>(page.await.unwrap_or_else(|_| no_page()))
        }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), answer).await {
        tracing::debug!(%error, "a connection to the admin port failed");
    }
}

fn answer<B>(request: &Request<B>, mesh: &WeakMesh) -> Response<Full<Bytes>> {
    if !is_for_us(request) {
        let what = "this page is served for an address or for localhost only\n";
        return page(StatusCode::MISDIRECTED_REQUEST, TEXT, what.to_owned());
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET is answered here\n".to_owned());
    }
    let Some(mesh) = mesh.upgrade() else {
        return page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the mesh is gone\n".to_owned());
    };
    match request.uri().path() {
        "/stats/prometheus" | "/metrics" => page(StatusCode::OK, Exposition::CONTENT_TYPE, mesh.prometheus()),
        READY => match mesh.health().now() {
            // A process that only calls others is ready as soon as it is there.
            Health::Serving => page(StatusCode::OK, TEXT, ready(&mesh)),
            Health::Starting if mesh.listeners().load().is_empty() => page(StatusCode::OK, TEXT, ready(&mesh)),
            Health::Starting => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "starting\n".to_owned()),
            Health::NotServing(why) => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not serving: {why}\n")),
            Health::Draining => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n".to_owned()),
        },
        "/clusters" => page(StatusCode::OK, TEXT, clusters(&mesh)),
        "/certs" => page(StatusCode::OK, JSON, certificates(&mesh).to_string()),
        "/requests" => page(StatusCode::OK, JSON, requests(&mesh).to_string()),
        "/explain" => explain(&mesh, request.uri().query().unwrap_or_default()),
        "/config_dump" => page(StatusCode::OK, JSON, configuration(&mesh).to_string()),
        _ => {
            let there =
                "there are /stats/prometheus, /metrics, /ready, /clusters, /certs, /config_dump, /requests, /explain\n";
            page(StatusCode::NOT_FOUND, TEXT, there.to_owned())
        }
    }
}

/// What whoever may call is told: of a gateway, which of its listeners are not bound, too.
fn ready(mesh: &Mesh) -> String {
    let problems = mesh.listeners().problems().unwrap_or_default();
    let lines = problems.iter().map(|(name, problem)| format!("listener {name}: {problem}\n"));
    ["ready\n".to_owned()].into_iter().chain(lines).collect()
}

/// The mesh ends while a page is made.
fn no_page() -> Response<Full<Bytes>> {
    page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the mesh is gone\n".to_owned())
}

fn page(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut page = Response::new(Full::new(text.into()));
    *page.status_mut() = status;
    let headers = page.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(NOSNIFF, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    page
}

/// Who is under way, the oldest first.
fn requests(mesh: &Mesh) -> Value {
    let (all, without_room) = mesh.store().live_traces().under_way(Instant::now());
    let requests = all.iter().map(|one| {
        json!({
            "side": match one.side { Side::Client => "client", Side::Server => "server" },
            "method": one.method.as_str(),
            "authority": one.authority,
            "path": one.path,
            "endpoint": one.endpoint.as_ref().map(ToString::to_string),
            "age_ms": u64::try_from(one.age.as_millis()).unwrap_or(u64::MAX),
            "waits_for": one.stage.as_str(),
        })
    });
    json!({"requests": requests.collect::<Vec<_>>(), "without_room": without_room})
}

/// Why a request would go where it would go: `method`, `url` and `header` (NAME:VALUE, as often as there are any), and `format=text`.
/// Of targets that this process has asked for alone: whoever reads has it subscribe to nothing.
fn explain(mesh: &Mesh, query: &str) -> Response<Full<Bytes>> {
    let wrong = |what: String| page(StatusCode::BAD_REQUEST, TEXT, format!("{what}\n"));
    let (mut request, mut has_url, mut is_text) = (Request::builder(), false, false);
    for (name, value) in
        query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    {
        let Some(value) = value_of(value) else { return wrong(format!("{name}: not what a URL can say")) };
        request = match name {
            "method" => request.method(value.as_str()),
            "url" => {
                has_url = true;
                request.uri(value)
            }
            "header" => match value.split_once(':') {
                Some((name, value)) => request.header(name.trim(), value.trim()),
                None => return wrong("header: expected NAME:VALUE".to_owned()),
            },
            "format" => {
                is_text = value == "text";
                request
            }
            name => return wrong(format!("there is no {name}: give method, url, header, format")),
        };
    }
    let request = match request.body(()) {
        Ok(request) if has_url => request,
        Ok(_) => return wrong("url is missing: /explain?url=http://reviews:9080/".to_owned()),
        Err(error) => return wrong(error.to_string()),
    };
    match mesh.explain_known(&request) {
        Ok(explained) if is_text => page(StatusCode::OK, TEXT, explained.to_string()),
        Ok(explained) => {
            page(StatusCode::OK, JSON, format!("{}\n", serde_json::to_string_pretty(&explained).unwrap_or_default()))
        }
        Err(error) => page(StatusCode::NOT_FOUND, TEXT, format!("{error:#}\n")),
    }
}

/// A value of a query, without the escapes of a URL.
fn value_of(escaped: &str) -> Option<String> {
    String::from_utf8(unescaped(&escaped.replace('+', " "))?).ok()
}

/// Whether each host that a request names is an address or `localhost`.
fn is_for_us<B>(request: &Request<B>) -> bool {
    let own = request.uri().authority().map(|authority| Some(authority.as_str()));
    let named = request.headers().get_all(HOST).iter().map(|host| host.to_str().ok());
    let mut hosts = own.into_iter().chain(named).peekable();
    match hosts.peek() {
        // Checks of health are made so, and no browser's requests are.
        None => request.version() < Version::HTTP_11,
        Some(_) => hosts.all(|host| host.is_some_and(is_ours)),
    }
}

fn is_ours(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let host = authority.host();
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    // A user before the host is nobody's way to ask for a page.
    !authority.as_str().contains('@')
        && (host.parse::<IpAddr>().is_ok()
            || v6.is_some_and(|host| host.parse::<Ipv6Addr>().is_ok())
            || host.eq_ignore_ascii_case("localhost"))
}

/// In the form of Envoy's page.
fn clusters(mesh: &Mesh) -> String {
    let mut text = String::new();
    for EndpointStatus {
        cluster,
        endpoint,
        priority,
        checked,
        is_ejected,
        is_reachable,
        in_flight,
        locality,
        told,
        ..
    } in mesh.endpoints()
    {
        let mut flags = Vec::new();
        let fails = checked == Some(Checked::Unhealthy);
        let flagged = [
            (fails, "/failed_active_hc"),
            (is_ejected, "/failed_outlier_check"),
            (!told.is_pickable(), "/failed_eds_health"),
            (!is_reachable, "/unreachable"),
        ];
        flags.extend(flagged.into_iter().filter(|(is_so, _)| *is_so).map(|(_, flag)| flag));
        let health = if flags.is_empty() { "healthy".to_owned() } else { flags.concat() };
        for (key, value) in [
            ("rq_active", in_flight.to_string()),
            ("health_flags", health),
            ("region", locality.region.to_string()),
            ("zone", locality.zone.to_string()),
            ("sub_zone", locality.sub_zone.to_string()),
            ("priority", priority.to_string()),
        ] {
            text += &format!("{cluster}::{endpoint}::{key}::{value}\n");
        }
    }
    text
}

fn certificates(mesh: &Mesh) -> Value {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let current = mesh.certificates().current();
    let chain = current.iter().map(|own| {
        let left = own.not_after().duration_since(SystemTime::now()).unwrap_or_default();
        json!({
            "serial_number": own.serial(),
            "subject_alt_names": [{"uri": own.id().as_str()}],
            "days_until_expiration": left.as_secs() / 86_400,
            "expires_at_unix_seconds": seconds(own.not_after()),
        })
    });
    let chain: Vec<Value> = chain.collect();
    json!({ "certificates": [{ "cert_chain": chain }], "problems": mesh.certificates().problems(SystemTime::now()) })
}

/// What the control plane told, with its versions, in the form of Envoy's dump, which `istioctl proxy-config -f` reads.
fn configuration(mesh: &Mesh) -> Value {
    let status = mesh.client_status();
    let of = |kind: ResourceType, key: &str| {
        let resources = status.resources.iter().filter(|resource| resource.key.kind == kind);
        resources.map(|resource| told(resource, key, mesh.show(resource))).collect::<Vec<_>>()
    };
    let url = |name: &str| format!("type.googleapis.com/envoy.admin.v3.{name}ConfigDump");
    json!({ "configs": [
        { "@type": url("Bootstrap"), "bootstrap": { "node": { "id": status.node_id } } },
        { "@type": url("Clusters"), "dynamic_active_clusters": of(ResourceType::Cluster, "cluster") },
        { "@type": url("Listeners"), "dynamic_listeners": of(ResourceType::Listener, "listener") },
        { "@type": url("Routes"), "dynamic_route_configs": of(ResourceType::Route, "route_config") },
        { "@type": url("Endpoints"), "dynamic_endpoint_configs": of(ResourceType::Endpoints, "endpoint_config") },
    ] })
}

/// One resource and what became of it. A listener has a state of its own in which it is.
fn told(resource: &ResourceStatus, key: &str, content: Value) -> Value {
    let state = match resource.state {
        ResourceState::Acked => "ACKED",
        ResourceState::Nacked => "NACKED",
        ResourceState::Requested => "REQUESTED",
        ResourceState::DoesNotExist => "DOES_NOT_EXIST",
        ResourceState::ReceivedError => "RECEIVED_ERROR",
        ResourceState::Timeout => "TIMEOUT",
        _ => "UNKNOWN",
    };
    let is_there = !resource.version.is_empty();
    let content = json!({ key: content, "version_info": resource.version });
    let mut shown = match (resource.key.kind, is_there) {
        (ResourceType::Listener, true) => json!({ "name": &*resource.key.name, "active_state": content }),
        (ResourceType::Listener, false) => json!({ "name": &*resource.key.name }),
        _ => content,
    };
    shown["client_status"] = state.into();
    if let Some(error) = &resource.error {
        shown["error_state"] = json!({ "details": &*error.details, "version_info": error.version });
    }
    if !resource.ignored.is_empty() {
        shown["without_effect"] = json!(&*resource.ignored);
    }
    shown
}

#[cfg(test)]
mod tests {
    use mesh_core::fixed::Fixed;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn the_oldest_connection_gives_way_to_a_new_one() {
        let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
        let address = mesh.serve_admin("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut open = Vec::new();
        for _ in 0..=CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
            open.push(stream);
        }
        // Long before it would have asked for too little.
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(HEAD_TIMEOUT / 2, open.swap_remove(0).read_to_end(&mut rest)).await;
        _ = ended.expect("it ends");
    }

    #[test]
    fn what_a_url_says_is_read_without_its_escapes() {
        for (escaped, expected) in [
            ("http%3A%2F%2Fa%3A80%2Fx", Some("http://a:80/x")),
            ("a+b", Some("a b")),
            ("http://a/", Some("http://a/")),
            ("%", None),
            ("%2", None),
            ("%zz", None),
            ("%ff", None),
        ] {
            assert_eq!(value_of(escaped).as_deref(), expected, "{escaped}");
        }
    }

    #[test]
    fn a_page_is_for_an_address_or_for_localhost() {
        for (host, expected) in [
            ("127.0.0.1:15000", true),
            ("[::1]:15000", true),
            ("LocalHost", true),
            ("localhost.evil.example", false),
            ("127.0.0.1@evil.example", false),
            ("evil.example", false),
            ("", false),
        ] {
            assert_eq!(is_ours(host), expected, "{host}");
        }
    }
}
