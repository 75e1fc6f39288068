//! The mesh of one process: one store of configuration, one drain, and the faces that applications use.

use std::collections::HashSet;
use std::fmt;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use http::uri::Authority;
use mesh_core::balance::LoadBalancer;
use mesh_core::client_status::{ClientStatus, ResourceStatus, StatusHandle};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::filter::FilterFactory;
use mesh_core::hashing::Caller;
use mesh_core::id::Target;
use mesh_core::model::{AccessLog, LogFormat};
use mesh_core::request_info::{Direction, Observer, Observers};
use mesh_core::store::{Source, Store};
use mesh_core::telemetry::{MetricsReader, MetricsWriter, SpanSink};
use mesh_core::tls::{Certificates, Credentials};
use mesh_core::view::{EndpointStatus, Extensions};
use serde_json::json;

#[cfg(feature = "otel")]
use crate::access_log::Begin;
use crate::access_log::{AccessLogs, ConnectionLog, LogSink};
use crate::drain::Drain;
use crate::listeners::Listeners;
use crate::outbound::{Coalescer, FixedTarget, MirrorCounts, Mirrors, OutboundContext};
#[cfg(feature = "xds")]
use crate::processors::Processors;
#[cfg(feature = "xds")]
use crate::rate_limits::RateLimits;
use crate::telemetry::Telemetry;
use crate::threads;
use crate::trace::Tracer;
#[cfg(feature = "xds")]
use crate::unary::MeshClient;

/// The longest time that can be set. Longer ones mean "for ever", and a clock cannot add them to the present.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The mesh of this process. Cheap to clone; when the last clone, client and listener are gone, its
/// configuration thread stops.
///
/// ```
/// use mesh_core::fixed::Fixed;
/// use mesh_tower::Mesh;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let source = Fixed::new().service("reviews:9080", ["127.0.0.1:8080".parse()?]);
/// let mesh = Mesh::builder().source(source).start()?;
/// let client = mesh.client();
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Mesh {
    inner: Arc<Inner>,
}

/// A mesh that is not kept alive.
#[derive(Clone)]
pub(crate) struct WeakMesh(Weak<Inner>);

impl WeakMesh {
    pub(crate) fn upgrade(&self) -> Option<Mesh> {
        self.0.upgrade().map(|inner| Mesh { inner })
    }
}

struct Inner {
    store: Store,
    observers: Observers,
    drain: Drain,
    listeners: Arc<Listeners>,
    cold_start_wait: Duration,
    background: tokio::runtime::Handle,
    status: StatusHandle,
    limits_told: Arc<Mutex<HashSet<Target>>>,
    passed_unchecked: AtomicU64,
    mirrors: Arc<Mirrors>,
    coalescer: Arc<Coalescer>,
    telemetry: Option<Arc<Telemetry>>,
    tracer: Option<Arc<Tracer>>,
    metrics_reader: Option<Box<dyn MetricsReader>>,
    access_logs: Arc<AccessLogs>,
    /// Who is told of connections that are not HTTP.
    connections_told: Observers,
    /// By which this process is known to others, without a port.
    address: Arc<str>,
}

impl Mesh {
    /// A mesh to be configured in code.
    pub fn builder() -> MeshBuilder {
        MeshBuilder::default()
    }

    /// A mesh that the environment configures, as every xDS client: by `GRPC_XDS_BOOTSTRAP` (a file) or
    /// `GRPC_XDS_BOOTSTRAP_CONFIG` (its text). `mesh-control bootstrap` prints one.
    ///
    /// With filters of its own, metrics, traces or logs it is built by [`MeshBuilder::source_from_env`].
    ///
    /// It returns at once: the control plane need not be up yet. Requests wait for the configuration of their
    /// target, see [`MeshBuilder::cold_start_wait`].
    ///
    /// ```no_run
    /// # async fn service(app: tower::util::BoxCloneSyncService<
    /// #     http::Request<hyper::body::Incoming>, http::Response<String>, std::convert::Infallible>)
    /// # -> Result<(), Box<dyn std::error::Error>> {
    /// use mesh_tower::{Mesh, server};
    /// use tower::Layer;
    ///
    /// let mesh = Mesh::from_env()?;
    /// mesh.drain_on_signals()?;
    /// let listener = mesh.bind("0.0.0.0:8080").await?;
    /// server::serve(listener, mesh.server_layer().layer(app)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`StartError`] when there is no bootstrap or it is wrong; the text names the file, line, column or key.
    #[cfg(feature = "xds")]
    pub fn from_env() -> Result<Mesh, StartError> {
        Mesh::builder().source_from_env().start()
    }

    /// Targets and their views.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The key and certificate that this process shows where TLS is asked for: until when they hold, and what is wrong with
    /// their renewal, with lists of revoked certificates and with files that clusters name.
    ///
    /// ```
    /// use std::time::SystemTime;
    ///
    /// use mesh_tower::Mesh;
    ///
    /// /// For a metric and a check of health: seconds left, the serial number, and what to look into.
    /// fn certificate(mesh: &Mesh, now: SystemTime) -> (Option<u64>, Option<String>, Vec<String>) {
    ///     let current = mesh.certificates().current();
    ///     let left = current.as_ref().map(|current| current.not_after().duration_since(now).unwrap_or_default());
    ///     let serial = current.as_ref().map(|current| current.serial().to_owned());
    ///     (left.map(|left| left.as_secs()), serial, mesh.certificates().problems(now))
    /// }
    /// # let mesh = Mesh::builder().source(mesh_core::fixed::Fixed::new()).start().unwrap();
    /// # assert_eq!(certificate(&mesh, SystemTime::now()), (None, None, Vec::new()));
    /// ```
    pub fn certificates(&self) -> &Arc<Certificates> {
        self.inner.store.certificates()
    }

    /// What the control plane told this process and what became of it, as CSDS has it: the servers, every resource
    /// with its version, its error and its fields without effect. A tenth of a second old at most; empty where
    /// nothing is followed, as with configuration made in code.
    ///
    /// ```
    /// use mesh_core::client_status::ResourceState;
    /// use mesh_tower::Mesh;
    ///
    /// /// One line for each resource whose last version was rejected; an older one stays in use.
    /// fn rejected(mesh: &Mesh) -> Vec<String> {
    ///     let status = mesh.client_status();
    ///     let rejected = status.resources.iter().filter(|resource| resource.state == ResourceState::Nacked);
    ///     rejected.map(|resource| format!("{}: {:?}", resource.key, resource.error)).collect()
    /// }
    /// # let mesh = Mesh::builder().source(mesh_core::fixed::Fixed::new()).start().unwrap();
    /// # assert!(rejected(&mesh).is_empty());
    /// ```
    pub fn client_status(&self) -> Arc<ClientStatus> {
        self.inner.status.get()
    }

    /// The same as an answer of CSDS (`envoy.service.status.v3`): a `ClientStatusResponse` to a `ClientStatusRequest`, as messages of
    /// Protobuf. Certificates and keys are left out. `mesh_tonic::client_status` has the service.
    ///
    /// # Errors
    /// Why the question has no answer.
    ///
    /// ```
    /// let mesh = mesh_tower::Mesh::builder().source(mesh_core::fixed::Fixed::new()).start()?;
    /// // It follows no control plane.
    /// assert_eq!(mesh.answer_csds(&[]).as_deref(), Ok(&[][..]));
    /// # Ok::<(), mesh_tower::StartError>(())
    /// ```
    pub fn answer_csds(&self, request: &[u8]) -> Result<bytes::Bytes, &'static str> {
        self.inner.status.answer(request)
    }

    /// A resource of the status in the form of Envoy's dump, in part.
    pub(crate) fn show(&self, resource: &ResourceStatus) -> serde_json::Value {
        self.inner.status.show(resource)
    }

    /// What this process knows of the endpoints of the clusters in use: who is ejected, fails health checks, cannot be
    /// reached, and who gets requests. For a page of status and for metrics; it costs as much as there are endpoints.
    ///
    /// ```
    /// use mesh_tower::Mesh;
    ///
    /// /// How many endpoints there are, and one line for each that gets no requests.
    /// fn endpoints(mesh: &Mesh) -> (usize, Vec<String>) {
    ///     let all = mesh.endpoints();
    ///     let idle = all.iter().filter(|one| !one.takes_load).map(ToString::to_string);
    ///     (all.len(), idle.collect())
    /// }
    /// # let mesh = Mesh::builder().source(mesh_core::fixed::Fixed::new()).start().unwrap();
    /// # assert_eq!(endpoints(&mesh), (0, Vec::new()));
    /// ```
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        let mut seen = HashSet::new();
        let mut all = Vec::new();
        for entry in self.inner.store.targets().list() {
            let Some(view) = entry.peek() else { continue };
            for cluster in view.clusters().iter().filter(|cluster| seen.insert(cluster.name().clone())) {
                all.extend(cluster.endpoints());
            }
        }
        all
    }

    /// Those who are told of every finished request.
    pub fn observers(&self) -> &Observers {
        &self.inner.observers
    }

    /// How long the first request to a target waits for configuration, if its own deadline does not end it
    /// sooner.
    pub fn cold_start_wait(&self) -> Duration {
        self.inner.cold_start_wait
    }

    /// The drain that all listeners of this mesh share.
    pub fn drain(&self) -> &Drain {
        &self.inner.drain
    }

    /// Where chores run that must not cost the application's threads anything: on a thread of the mesh, for as
    /// long as its source lives.
    pub(crate) fn background(&self) -> &tokio::runtime::Handle {
        &self.inner.background
    }

    /// What the requests of one client have in common.
    pub(crate) fn outbound(&self, target: Option<FixedTarget>) -> Arc<OutboundContext> {
        Arc::new(self.outbound_context(target))
    }

    /// The same of requests that come to a gateway, each of which says where it goes on to.
    pub(crate) fn outbound_of_gateway(&self) -> Arc<OutboundContext> {
        Arc::new(OutboundContext { is_gateway: true, ..self.outbound_context(None) })
    }

    fn outbound_context(&self, target: Option<FixedTarget>) -> OutboundContext {
        OutboundContext {
            store: self.inner.store.clone(),
            observers: Arc::clone(&self.inner.observers),
            cold_start_wait: self.inner.cold_start_wait,
            target,
            is_gateway: false,
            mirrors: Arc::clone(&self.inner.mirrors),
            coalescer: Arc::clone(&self.inner.coalescer),
            telemetry: self.inner.telemetry.clone(),
            live_traces: Arc::clone(self.inner.store.live_traces()),
            tracer: self.inner.tracer.clone(),
            caller: Caller::new(Arc::clone(&self.inner.address), fastrand::u64(..)),
        }
    }

    /// What the requests of a client of one target have in common.
    pub(crate) fn outbound_to(&self, target: &str) -> Result<Arc<OutboundContext>, MeshError> {
        let entry = self.store().target(target)?;
        let host = target.rsplit_once('/').map_or(target, |(_, host)| host);
        let malformed = |_| MeshError::new(ErrorKind::BadRequest, format!("target {target}: malformed authority"));
        let authority = Authority::try_from(host).map_err(malformed)?;
        Ok(self.outbound(Some(FixedTarget { entry, authority })))
    }

    /// What became of copies of requests that routes mirror, since the start.
    pub fn mirror_counts(&self) -> MirrorCounts {
        self.inner.mirrors.counts()
    }

    /// How many requests an authorizer gave no answer about and were let in, since the configuration says so (`failOpen`).
    /// Whoever is told of requests knows which ([`RequestInfo::is_unchecked`](mesh_core::request_info::RequestInfo::is_unchecked)).
    pub fn passed_unchecked(&self) -> u64 {
        self.inner.passed_unchecked.load(Ordering::Relaxed)
    }

    pub(crate) fn count_unchecked(&self) {
        self.inner.passed_unchecked.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn downgrade(&self) -> WeakMesh {
        WeakMesh(Arc::downgrade(&self.inner))
    }

    /// How many lines of access logs were left out, since their file was too slow or could not be written, or a collector did not
    /// take them.
    pub fn lost_log_lines(&self) -> u64 {
        self.inner.access_logs.lost()
    }

    /// Waits until the lines of access logs that are under way are written, for a second at most: for a process that is about
    /// to exit while somebody still has a part of the mesh. Where nobody has, the last part that is dropped does the same.
    pub fn flush_access_logs(&self) {
        self.inner.access_logs.flush();
    }

    /// Has a connection that is not HTTP in the access logs, once it is over.
    pub(crate) fn connection_log(&self, direction: Direction) -> ConnectionLog {
        ConnectionLog::new(&self.inner.connections_told, direction)
    }

    /// Waits until the spans that were recorded and what was counted until now are sent, or a few seconds: before the process
    /// ends.
    pub async fn flush_telemetry(&self) {
        if let Some(tracer) = &self.inner.tracer {
            tracer.flush().await;
        }
        if let Some(reader) = &self.inner.metrics_reader {
            reader.flush().await;
        }
    }

    /// What keeps the metrics, where they are kept.
    #[inline]
    pub(crate) fn telemetry(&self) -> Option<&Arc<Telemetry>> {
        self.inner.telemetry.as_ref()
    }

    /// How many numbers of metrics were sent and not taken, where they are sent.
    pub(crate) fn rejected_points(&self) -> Option<u64> {
        self.inner.metrics_reader.as_ref().map(|reader| reader.rejected())
    }

    /// Who takes spans, where somebody does.
    #[inline]
    pub(crate) fn tracer(&self) -> Option<&Arc<Tracer>> {
        self.inner.tracer.as_ref()
    }

    /// The targets of which it was said what a connector cannot honour.
    pub(crate) fn limits_told(&self) -> &Arc<Mutex<HashSet<Target>>> {
        &self.inner.limits_told
    }

    /// The listeners that are bound now.
    pub(crate) fn listeners(&self) -> &Arc<Listeners> {
        &self.inner.listeners
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("store", &self.inner.store).finish_non_exhaustive()
    }
}

/// What a mesh is made of.
#[derive(Default)]
pub struct MeshBuilder {
    source: Option<Arc<dyn Source>>,
    extensions: Extensions,
    observers: Vec<Arc<dyn Observer>>,
    cold_start_wait: Option<Duration>,
    target_idle: Option<Duration>,
    lame_duck: Option<Duration>,
    credentials: Option<Credentials>,
    keeps_metrics: bool,
    keeps_grpc_metrics: bool,
    spans: Option<Box<dyn SpanSink>>,
    metrics_reader: Option<Box<dyn MetricsReader>>,
    access_logs: AccessLogs,
    #[cfg(feature = "otel")]
    log_collector: Option<Box<dyn FnOnce(mesh_core::workload::Workload) -> Begin + Send>>,
    /// Why it cannot start.
    failure: Option<StartError>,
}

impl MeshBuilder {
    /// Where configuration comes from. The last one set counts.
    pub fn source(mut self, source: impl Source) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// Configuration comes from where the environment says, as with [`Mesh::from_env`]: for a mesh that is given more, such as
    /// filters or metrics. Without a bootstrap, or with a wrong one, [`MeshBuilder::start`] fails.
    ///
    /// ```no_run
    /// use mesh_tower::Mesh;
    ///
    /// # fn main() -> Result<(), mesh_tower::StartError> {
    /// let mesh = Mesh::builder().source_from_env().metrics().start()?;
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "xds")]
    pub fn source_from_env(self) -> Self {
        match mesh_core::xds::Bootstrap::from_env() {
            Ok(bootstrap) => self.source(mesh_core::xds::XdsSource::new(bootstrap)),
            Err(why) => self.fail(StartError(why.to_string())),
        }
    }

    /// An HTTP filter of the application's own, by the name that configuration uses for it: `pluginName` of a `WasmPlugin`, whose
    /// `failStrategy` says what becomes of requests where `factory` has not taken any configuration yet; the last one that it took
    /// stays in force. Over xDS of others it is the type of a `TypedStruct`: a name that is not registered, or a configuration
    /// that `factory` refuses, is rejected with the resource that has it, and the last good one stays in force.
    ///
    /// [`filter_with_schema`](Self::filter_with_schema) has `mesh-control validate` check configurations, too.
    pub fn filter(mut self, name: &str, factory: FilterFactory) -> Self {
        self.extensions.filters.register(name, factory);
        self
    }

    /// The same, with a JSON Schema of its configuration: `mesh-control validate` then finds what is wrong with a configuration
    /// where it is written, before any process is told. [`MeshBuilder::filter_schemas`] hands it out.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use http::{StatusCode, request};
    /// use mesh_core::error::Invalid;
    /// use mesh_core::filter::{Decision, Filter, Reply};
    /// use mesh_core::request_info::RequestInfo;
    /// use mesh_tower::Mesh;
    ///
    /// /// Lets in who names a tenant.
    /// #[derive(Debug)]
    /// struct NeedsTenant {
    ///     header: String,
    /// }
    ///
    /// impl Filter for NeedsTenant {
    ///     fn on_request(&self, _: &mut RequestInfo, head: &mut request::Parts) -> Decision {
    ///         match head.headers.contains_key(&self.header) {
    ///             true => Decision::Continue,
    ///             false => Decision::Reply(Reply::new(StatusCode::BAD_REQUEST, "which tenant?")),
    ///         }
    ///     }
    /// }
    ///
    /// const SCHEMA: &str = r#"{"type": "object", "required": ["header"], "properties": {"header": {"type": "string"}}}"#;
    ///
    /// let builder = Mesh::builder().filter_with_schema("acme.tenant", SCHEMA, Arc::new(|config, _| {
    ///     let config: serde_json::Value = serde_json::from_str(config).map_err(|why| Invalid::new(why.to_string()))?;
    ///     let header = config["header"].as_str().ok_or_else(|| Invalid::new("missing").at("header"))?;
    ///     Ok(Arc::new(NeedsTenant { header: header.to_owned() }))
    /// }));
    /// // What `mesh-control` reads beside the other objects.
    /// assert!(builder.filter_schemas("istio-system").contains("FilterSchema"));
    /// ```
    ///
    /// A schema that is no JSON keeps the mesh from starting.
    pub fn filter_with_schema(mut self, name: &str, schema: &str, factory: FilterFactory) -> Self {
        match serde_json::from_str(schema) {
            Ok(schema) => self.extensions.filters.describe(name, schema),
            Err(why) => self = self.fail(StartError(format!("the schema of the filter {name:?}: {why}"))),
        }
        self.filter(name, factory)
    }

    /// The schemas of its filters as objects that `mesh-control` reads: for a command of the application that prints them into a
    /// file of the configuration's directory. JSON, which is YAML, too.
    ///
    /// Plugins of `namespace` are held to them. Those of the root namespace, which is `istio-system` where nothing else is said,
    /// are for plugins of every namespace that has none of its own for their filter.
    pub fn filter_schemas(&self, namespace: &str) -> String {
        let object = |(filter, schema): (&Arc<str>, &serde_json::Value)| {
            // Names of objects have fewer letters than those of filters.
            let letter = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
            json!({
                "apiVersion": "policy.mesh-control/v1alpha1",
                "kind": "FilterSchema",
                "metadata": {"name": filter.chars().map(letter).collect::<String>(), "namespace": namespace},
                "spec": {"filter": &**filter, "schema": schema},
            })
        };
        let items: Vec<_> = self.extensions.filters.schemas().iter().map(object).collect();
        format!("{:#}\n", json!({"apiVersion": "v1", "kind": "List", "items": items}))
    }

    /// A balancing policy of the application's own, by the name that configuration uses for it: with mesh-control,
    /// `mesh-control/load-balancer: policy=acme.Last` on a DestinationRule (a name with a dot); over xDS, the type of a
    /// `TypedStruct` in a cluster's `load_balancing_policy`; in code, `BalancerPolicy::Custom`.
    pub fn balancer(mut self, name: &str, balancer: impl LoadBalancer + 'static) -> Self {
        self.extensions.balancers.insert(name.into(), Arc::new(balancer));
        self
    }

    /// Someone to be told of every finished request.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// How long the first request to a target waits for configuration. 20 s by default: a little more than
    /// the 15 s after which a resource is taken not to exist (gRFC A57). One year at most: what is longer counts as that.
    pub fn cold_start_wait(mut self, wait: Duration) -> Self {
        self.cold_start_wait = Some(wait.min(LONGEST));
        self
    }

    /// After how long without a request a target is forgotten and its resources unsubscribed. 10 min by
    /// default, one year at most: what is longer counts as that.
    pub fn target_idle(mut self, idle: Duration) -> Self {
        self.target_idle = Some(idle.min(LONGEST));
        self
    }

    /// For how long a draining server goes on accepting, so that clients learn that it is leaving. 1 s by
    /// default, one year at most: what is longer counts as that.
    pub fn lame_duck(mut self, lame_duck: Duration) -> Self {
        self.lame_duck = Some(lame_duck.min(LONGEST));
        self
    }

    /// What this process shows of itself where TLS is asked for, until its source has newer ones: for a mesh whose source
    /// has no authority to ask. Replace them later by [`Mesh::certificates`].
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// Keeps Istio's standard metrics of all requests, and of connections that are not HTTP: [`Mesh::prometheus`] has them as
    /// a text. To services of the mesh each request then tells who this process is (`x-envoy-peer-metadata`), as Istio's
    /// proxies do.
    pub fn metrics(mut self) -> Self {
        self.keeps_metrics = true;
        self
    }

    /// Keeps metrics, and of calls of gRPC also those that gRPC's own clients and servers have (gRFC A66), by their names:
    /// `grpc.client.attempt.started`, `grpc.client.attempt.duration`, `grpc.client.call.duration`, `grpc.server.call.started`,
    /// `grpc.server.call.duration`, and the sizes of messages; and those of connections over HTTP/2 (A94, `grpc.subchannel.*`) and
    /// outlier detection (A91).
    ///
    /// On a client `grpc.target` is `xds:///HOST:PORT`. On a server a method is named once the application has answered a call of
    /// it, and `other` before; so are methods beyond the first 1,000.
    ///
    /// ```
    /// use mesh_tower::Mesh;
    /// use mesh_tower::core::fixed::Fixed;
    ///
    /// let mesh = Mesh::builder().source(Fixed::new()).grpc_metrics().start()?;
    /// # Ok::<(), mesh_tower::StartError>(())
    /// ```
    pub fn grpc_metrics(mut self) -> Self {
        self.keeps_grpc_metrics = true;
        self.metrics()
    }

    /// Keeps metrics, and has them read by somebody who sends them on. The last one set counts. Feature `otel` has one for
    /// OpenTelemetry.
    ///
    /// ```
    /// use mesh_tower::Mesh;
    /// use mesh_tower::core::fixed::Fixed;
    /// use mesh_tower::core::telemetry::{Exposition, MetricsReader, ReadMetrics};
    /// use mesh_tower::core::workload::Workload;
    ///
    /// #[derive(Debug)]
    /// struct Printer;
    ///
    /// impl MetricsReader for Printer {
    ///     fn begin(&self, _: &Workload, read: ReadMetrics) {
    ///         std::thread::spawn(move || {
    ///             let mut text = Exposition::default();
    ///             if read(&mut text) {
    ///                 println!("{}", text.finish());
    ///             }
    ///         });
    ///     }
    /// }
    ///
    /// let mesh = Mesh::builder().source(Fixed::new()).metrics_to(Printer).start()?;
    /// # Ok::<(), mesh_tower::StartError>(())
    /// ```
    pub fn metrics_to(mut self, reader: impl MetricsReader) -> Self {
        self.metrics_reader = Some(Box::new(reader));
        self.metrics()
    }

    /// Records traces, and gives their spans to somebody: one for each request that a server answers, for each that a client
    /// makes, and for each of its tries. The last one set counts. Feature `otel` has one for OpenTelemetry.
    ///
    /// A request that is a part of a trace which is recorded, is recorded; of others as many as the configuration says, or
    /// else the sink: one of a hundred by default. Without anybody who takes spans nothing is recorded, and what requests say
    /// of a trace is handed on all the same to calls that are made for them.
    ///
    /// ```
    /// use std::sync::Mutex;
    /// use mesh_core::telemetry::{Span, SpanSink};
    /// use mesh_tower::Mesh;
    ///
    /// #[derive(Debug, Default)]
    /// struct Names(Mutex<Vec<String>>);
    ///
    /// impl SpanSink for Names {
    ///     fn take(&self, span: Span) {
    ///         self.0.lock().unwrap().push(span.name);
    ///     }
    /// }
    ///
    /// let builder = Mesh::builder().traces(Names::default());
    /// ```
    pub fn traces(mut self, sink: impl SpanSink) -> Self {
        self.spans = Some(Box::new(sink));
        self
    }

    /// Adds a line for each request that ended to a file: `/dev/stdout` and `/dev/stderr` are this process's own.
    /// [`Mesh::lost_log_lines`] counts those that the file was too slow for. What the configuration wants logged is so without.
    ///
    /// ```
    /// use mesh_tower::{AccessLog, LogFormat, Mesh};
    ///
    /// // Istio's default line, or its JSON (`LogFormat::json()`).
    /// let builder = Mesh::builder().access_log(AccessLog::new("/dev/stdout", LogFormat::default()));
    /// ```
    pub fn access_log(mut self, log: AccessLog) -> Self {
        self.access_logs.add(log);
        self
    }

    /// The same to somebody of the application's own.
    pub fn access_log_to(mut self, format: LogFormat, sink: impl LogSink) -> Self {
        self.access_logs.add_sink(format, Box::new(sink));
        self
    }

    /// Lets the configuration (`accessLogFile`) name files below this directory for access logs. Without, it has stdout and
    /// stderr: whoever writes the configuration must not be able to add to any file of this machine.
    pub fn access_log_files_in(mut self, directory: impl Into<PathBuf>) -> Self {
        self.access_logs.allow(directory.into());
        self
    }

    /// Access logs that are for a collector go to who is made of this, for whose process it is.
    #[cfg(feature = "otel")]
    pub(crate) fn collect_logs_by(
        mut self,
        collector: impl FnOnce(mesh_core::workload::Workload) -> Begin + Send + 'static,
    ) -> Self {
        self.log_collector = Some(Box::new(collector));
        self
    }

    /// It cannot start, for this reason.
    pub(crate) fn fail(mut self, why: StartError) -> Self {
        self.failure.get_or_insert(why);
        self
    }

    /// Starts the mesh, with two threads of its own: one takes in what the source delivers, one looks after connections and
    /// checks health. So a flood of updates stalls neither the application nor those.
    ///
    /// # Errors
    /// [`StartError`] without a source, or if no thread can be had.
    pub fn start(self) -> Result<Mesh, StartError> {
        if let Some(why) = self.failure {
            return Err(why);
        }
        let mut observers = self.observers;
        let source = self.source.ok_or_else(|| StartError("no source of configuration was set".into()))?;
        let idle = self.target_idle.unwrap_or(Duration::from_secs(600));
        let status = source.status();
        #[cfg_attr(not(feature = "xds"), expect(unused_mut, reason = "without xDS nothing is added"))]
        let mut extensions = self.extensions;
        #[cfg(feature = "xds")]
        let client = MeshClient::default();
        #[cfg(feature = "xds")]
        extensions.filters.ask_rate_limits_by(Arc::new(RateLimits::new(client.clone())));
        #[cfg(feature = "xds")]
        extensions.filters.process_by(Arc::new(Processors::new(client.clone())));
        let (store, sink) = Store::new(Arc::clone(&source), extensions, idle);
        if let Some(credentials) = self.credentials {
            store.certificates().set(Arc::new(credentials));
        }
        let telemetry = self.keeps_metrics.then(|| {
            let introductions = source.introductions();
            let telemetry = Telemetry::new(store.own(), introductions, store.certificates(), source.node_metadata());
            Arc::new(if self.keeps_grpc_metrics {
                store.subchannels().keep();
                telemetry.of_grpc()
            } else {
                telemetry
            })
        });
        observers.extend(telemetry.iter().map(|telemetry| Arc::clone(telemetry.metrics()) as Arc<dyn Observer>));
        let tracer = self.spans.map(|sink| Arc::new(Tracer::new(sink, Arc::clone(store.own()))));
        observers.extend(tracer.iter().map(|tracer| Arc::clone(tracer) as Arc<dyn Observer>));
        #[cfg_attr(not(feature = "otel"), expect(unused_mut, reason = "nobody collects them"))]
        let mut access_logs = self.access_logs.of_node(source.node_metadata());
        #[cfg(feature = "otel")]
        if let Some(collector) = self.log_collector {
            access_logs.collect_by(collector(source.workload()));
        }
        let access_logs = Arc::new(access_logs);
        observers.push(Arc::clone(&access_logs) as Arc<dyn Observer>);
        let background = threads::start(source, sink, store.targets())
            .map_err(|error| StartError(format!("cannot start the threads of the mesh: {error}")))?;
        let inner = Inner {
            store,
            observers: observers.into(),
            drain: Drain::new(self.lame_duck.unwrap_or(Duration::from_secs(1))),
            listeners: Arc::default(),
            cold_start_wait: self.cold_start_wait.unwrap_or(Duration::from_secs(20)),
            background,
            status,
            limits_told: Arc::default(),
            passed_unchecked: AtomicU64::new(0),
            mirrors: Arc::default(),
            coalescer: Arc::default(),
            telemetry,
            tracer,
            metrics_reader: self.metrics_reader,
            connections_told: Arc::from([Arc::clone(&access_logs) as Arc<dyn Observer>]),
            access_logs,
            address: own_address(),
        };
        let mesh = Mesh { inner: Arc::new(inner) };
        #[cfg(feature = "xds")]
        client.set({
            let weak = mesh.downgrade();
            move |target: &str| weak.upgrade().map(|mesh| mesh.outbound_to(target))
        });
        if let (Some(reader), Some(telemetry)) = (&mesh.inner.metrics_reader, &mesh.inner.telemetry) {
            if let Some(histograms) = reader.histograms() {
                telemetry.metrics().record_in(histograms);
            }
            let weak = mesh.downgrade();
            let read = move |to: &mut dyn MetricsWriter| weak.upgrade().map(|mesh| mesh.write_metrics(to)).is_some();
            reader.begin(&telemetry.metrics().own().get(), Box::new(read));
        }
        Ok(mesh)
    }
}

impl fmt::Debug for MeshBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshBuilder").field("extensions", &self.extensions).finish_non_exhaustive()
    }
}

/// The address that this process would be seen with from outside; nothing is sent to find out. Where there is no way
/// outside, that of the loopback.
fn own_address() -> Arc<str> {
    // Of a range for documentation (RFC 5737): nobody is there.
    let outside = (Ipv4Addr::new(192, 0, 2, 1), 9);
    let socket =
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| socket.connect(outside).map(|()| socket));
    let own = socket.and_then(|socket| socket.local_addr()).map(|own| own.ip());
    own.unwrap_or(Ipv4Addr::LOCALHOST.into()).to_string().into()
}

/// Why a mesh could not be started.
#[derive(Debug)]
pub struct StartError(String);

impl StartError {
    /// Something that keeps a mesh from starting.
    pub fn new(reason: impl Into<String>) -> Self {
        StartError(reason.into())
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}
