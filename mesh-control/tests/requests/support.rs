//! A control plane with some objects, a client of it, and servers that say what reached them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::Request as Received;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use mesh_control::embedded::{Config, Embedded, Options, OutboundTrafficPolicy, PlaneOptions};
use mesh_core::error::MeshError;
use mesh_core::id::Locality;
use mesh_core::request_info::{Observer, RequestInfo};
use mesh_core::xds::Bootstrap;
use mesh_tower::body::Body;
use mesh_tower::{Mesh, MirrorCounts};
use serde_json::json;
use tokio::net::TcpListener;
use tower_layer::Layer;
use tower_service::Service;

/// What a workload of the namespace `shop` says of itself, for an embedded control plane.
pub(crate) fn introduced(name: &str, labels: serde_json::Value) -> Bootstrap {
    Bootstrap::new("embedded")
        .node_id(format!("mesh~127.0.0.1~{name}.shop~shop.svc.cluster.local"))
        .metadata("NAMESPACE", "shop")
        .metadata("LABELS", labels)
}

/// Settings of the mesh, as Istio's users write them.
pub(crate) fn mesh_settings(settings: &str) -> String {
    let indented: String = settings.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n{indented}"
    )
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    /// The value of a header that there is once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter().map(|value| value.to_str().unwrap());
        let first = values.next();
        assert_eq!(values.next(), None, "{name} twice: {self:?}");
        first
    }
}

/// A way into the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Face {
    Client,
    /// Around a client of the application's own.
    Layer,
    /// Below one, which has a connection for each request.
    Connector,
}

impl Face {
    pub(crate) const ALL: [Face; 3] = [Face::Client, Face::Layer, Face::Connector];
    /// Those that see requests.
    pub(crate) const OF_REQUESTS: [Face; 2] = [Face::Client, Face::Layer];
}

/// A client in a mesh of its own.
pub(crate) struct World {
    _control: Embedded,
    dir: Option<tempfile::TempDir>,
    pub(crate) mesh: Mesh,
    /// Which way its requests take.
    pub(crate) face: Face,
    ends: Ends,
}

/// How many tries each request took, which route, and why it failed.
#[derive(Clone, Debug, Default)]
struct Ends(Arc<Mutex<Vec<End>>>);

/// One of them.
type End = (u32, String, String, String);

impl Observer for Ends {
    fn on_end(&self, request: &RequestInfo) {
        let route = request.route().unwrap_or_default().to_owned();
        let (flags, details) = (request.response_flags().to_string(), request.response_details().to_owned());
        self.0.lock().unwrap().push((request.attempts, route, flags, details));
    }
}

impl World {
    /// The same client, whose requests take this way.
    pub(crate) fn through(self, face: Face) -> World {
        World { face, ..self }
    }

    /// Whether the endpoint of `web.example.com` at this address gets requests.
    pub(crate) fn uses(&self, at: SocketAddr) -> bool {
        let view = self.mesh.store().find("web.example.com:80").unwrap().view().unwrap();
        let (cluster, mut used) = (&view.clusters()[0], false);
        cluster.leaves()[0].state.each(|endpoint| {
            used |= endpoint.id().to_string() == at.to_string() && cluster.may_pick(endpoint);
        });
        used
    }

    /// A client in the namespace `default`, without labels.
    pub(crate) async fn new(yaml: &str) -> World {
        World::of("default", &[], yaml).await
    }

    pub(crate) async fn of(namespace: &str, labels: &[(&str, &str)], yaml: &str) -> World {
        World::start(Config::yaml(yaml), namespace, labels).await
    }

    /// A client in the namespace `default` of a directory with this file, in which objects may be wrong.
    pub(crate) async fn of_file(yaml: &str) -> World {
        World::of_file_in("default", yaml).await
    }

    /// The same in another namespace.
    pub(crate) async fn of_file_in(namespace: &str, yaml: &str) -> World {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.yaml"), yaml).unwrap();
        let world = World::start(Config::dir(dir.path()), namespace, &[]).await;
        World { dir: Some(dir), ..world }
    }

    /// A client in the namespace `default` that may call what is described, and nothing else.
    pub(crate) async fn registry_only(yaml: &str) -> World {
        let plane = PlaneOptions::default().outbound_traffic_policy(OutboundTrafficPolicy::RegistryOnly);
        World::start_with(Config::yaml(yaml), Options::default().plane(plane), "default", &[]).await
    }

    async fn start(config: Config, namespace: &str, labels: &[(&str, &str)]) -> World {
        World::start_with(config, Options::default(), namespace, labels).await
    }

    /// A client in the namespace `default`, at this place, with these labels.
    pub(crate) async fn at([region, zone, sub_zone]: [&str; 3], labels: &[(&str, &str)], yaml: &str) -> World {
        let locality = Locality { region: region.into(), zone: zone.into(), sub_zone: sub_zone.into() };
        World::start_at(Config::yaml(yaml), Options::default(), "default", labels, locality).await
    }

    async fn start_with(config: Config, options: Options, namespace: &str, labels: &[(&str, &str)]) -> World {
        World::start_at(config, options, namespace, labels, Locality::default()).await
    }

    async fn start_at(
        config: Config,
        options: Options,
        namespace: &str,
        labels: &[(&str, &str)],
        locality: Locality,
    ) -> World {
        let control = Embedded::start(config, options).await.unwrap_or_else(|e| panic!("{e}"));
        let labels: serde_json::Map<_, _> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let mut bootstrap = Bootstrap::new("embedded")
            .node_id(format!("mesh~127.0.0.1~caller.{namespace}~{namespace}.svc.cluster.local"))
            .metadata("NAMESPACE", namespace)
            .metadata("LABELS", json!(labels));
        bootstrap.node.locality = locality;
        let ends = Ends::default();
        let mesh = Mesh::builder().source(control.source(bootstrap)).observer(ends.clone());
        let mesh = mesh.balancer("acme.Last", crate::load::Last);
        let mesh = mesh.cold_start_wait(Duration::from_secs(5)).start().unwrap();
        World { _control: control, dir: None, mesh, face: Face::Client, ends }
    }

    /// What became of copies of its requests.
    pub(crate) fn mirror_counts(&self) -> MirrorCounts {
        self.mesh.mirror_counts()
    }

    pub(crate) async fn ask(&self, request: Request<Body>) -> Result<Answer, MeshError> {
        match self.face {
            Face::Client => answer(self.mesh.client().request(request).await?).await,
            Face::Layer => self.ask_through_layer(request).await,
            Face::Connector => self.ask_over_connector(request).await,
        }
    }

    /// The same through a client of the application's own, below the mesh.
    pub(crate) async fn ask_through_layer(&self, request: Request<Body>) -> Result<Answer, MeshError> {
        let own = Client::builder(TokioExecutor::new()).build_http::<Body>();
        let mut client = self.mesh.client_layer().layer(own);
        std::future::poll_fn(|cx| Service::<Request<Body>>::poll_ready(&mut client, cx)).await?;
        answer(client.call(request).await?).await
    }

    /// The same over a connection of its own, which the mesh makes.
    async fn ask_over_connector(&self, mut request: Request<Body>) -> Result<Answer, MeshError> {
        let stream = self.mesh.connector().call(request.uri().clone()).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let host = request.uri().authority().unwrap().as_str().parse().unwrap();
        request.headers_mut().insert(http::header::HOST, host);
        Ok(answer(sender.send_request(request).await.unwrap()).await.unwrap())
    }

    pub(crate) async fn get(&self, uri: &str) -> Result<Answer, MeshError> {
        self.with(uri, &[]).await
    }

    /// A GET with these headers.
    pub(crate) async fn with(&self, uri: &str, headers: &[(&str, &str)]) -> Result<Answer, MeshError> {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.ask(request.body(Body::empty()).unwrap()).await
    }

    /// How many tries the last request took.
    pub(crate) fn attempts(&self) -> u32 {
        self.last().0
    }

    /// The name of the route of the last request.
    pub(crate) fn route(&self) -> String {
        self.last().1
    }

    /// Why the mesh failed the last request, as Envoy says it.
    pub(crate) fn flag(&self) -> String {
        self.last().2
    }

    /// Why it was answered as it was, as Envoy says it.
    pub(crate) fn details(&self) -> String {
        self.last().3
    }

    /// Gives the file another text.
    pub(crate) fn rewrite(&self, yaml: &str) {
        let dir = self.dir.as_ref().expect("a world of a file").path();
        // At once, so that no half of it is read.
        std::fs::write(dir.join(".next"), yaml).unwrap();
        std::fs::rename(dir.join(".next"), dir.join("config.yaml")).unwrap();
    }

    fn last(&self) -> End {
        self.ends.0.lock().unwrap().last().expect("a request that is over").clone()
    }
}

/// Reads an answer to its end.
async fn answer<B: http_body::Body>(response: http::Response<B>) -> Result<Answer, B::Error> {
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: String::from_utf8_lossy(&body).into() })
}

/// A server that answers with its name and what reached it, a line for each header; slowly, where it is asked for `/slow`.
pub(crate) async fn server(name: &'static str) -> SocketAddr {
    let app = axum::Router::new().fallback(move |request: Received| async move {
        if request.uri().path() == "/slow" {
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        let (method, uri, version) = (request.method(), request.uri(), request.version());
        let mut seen = format!("{name}\n{method} {uri}\n{version:?}\n");
        for (name, value) in request.headers() {
            seen += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
        }
        ([("x-answer", "server")], seen)
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// A server that answers 503.
pub(crate) async fn failing() -> SocketAddr {
    let app = axum::Router::new().fallback(async || http::StatusCode::SERVICE_UNAVAILABLE);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// An address on which nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    // The port stays taken, so that no other test listens there meanwhile.
    Box::leak(Box::new(socket)).local_addr().unwrap()
}

/// A service `web.example.com:80` with these endpoints, labelled `v: <version>`, and a subset for each version.
pub(crate) fn web(endpoints: &[(&str, SocketAddr)]) -> String {
    service("web", endpoints)
}

/// The same of the host `<name>.example.com`.
pub(crate) fn service(name: &str, endpoints: &[(&str, SocketAddr)]) -> String {
    let listed: String = endpoints
        .iter()
        .map(|(version, at)| {
            format!("\n  - {{address: {}, ports: {{http: {}}}, labels: {{v: {version}}}}}", at.ip(), at.port())
        })
        .collect();
    let subsets: String =
        endpoints.iter().map(|(version, _)| format!("\n  - {{name: {version}, labels: {{v: {version}}}}}")).collect();
    format!(
        "
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec:
  hosts: [{name}.example.com]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints:{listed}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}}}
spec:
  host: {name}.example.com
  subsets:{subsets}
"
    )
}

/// Rules for `web.example.com`.
pub(crate) fn rules(http: &str) -> String {
    virtual_service("web", &format!("  hosts: [web.example.com]\n  http:\n{http}"))
}

pub(crate) fn virtual_service(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec:\n{spec}\n"
    )
}
