//! What the ADS server (`serve/`) asks of the rest of mesh-control: one resource, as one client sees it.
//!
//! `policy/` and `registry/` decide what a resource means, `render/` encodes it once per kind of client;
//! `serve/` only compares versions and moves bytes. A catalog is immutable: a change publishes a new one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::service::health::v3::HealthCheckSpecifier;
use mesh_core::identity::SpiffeId;
use mesh_core::model::ForwardedClientCert;

pub use crate::period::Unit;

/// The kinds of resource, in make-before-break order: a new cluster and its endpoints travel before the
/// route that names them (xDS protocol, "eventual consistency considerations").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// `envoy.config.cluster.v3.Cluster`
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`
    Endpoints,
    /// `envoy.config.listener.v3.Listener`
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration`
    Route,
    /// `envoy.extensions.transport_sockets.tls.v3.Secret`: certificates of hosts, for gateways.
    Secret,
}

impl Kind {
    /// All kinds, in the order in which they are pushed.
    pub const ALL: [Kind; 5] = [Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::Route, Kind::Secret];

    /// The type URL on the wire.
    pub const fn type_url(self) -> &'static str {
        match self {
            Kind::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Kind::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Kind::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Kind::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Kind::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    /// The kind of a type URL, if it is one that mesh-control serves.
    pub fn from_type_url(url: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.type_url() == url)
    }
}

/// Which dialect of xDS a client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ClientClass {
    /// This project's own library: everything that mesh-control can express.
    Library,
    /// gRPC's xDS clients: the subset that they accept without a NACK.
    Grpc,
    /// Envoy.
    Envoy,
}

impl ClientClass {
    /// All classes.
    pub const ALL: [ClientClass; 3] = [ClientClass::Library, ClientClass::Grpc, ClientClass::Envoy];

    /// `library`, `grpc` or `envoy`.
    pub const fn name(self) -> &'static str {
        match self {
            ClientClass::Library => "library",
            ClientClass::Grpc => "grpc",
            ClientClass::Envoy => "envoy",
        }
    }
}

/// What mesh-control knows of a connected client, from its node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Client {
    /// `node.id`, as sent.
    pub node_id: Arc<str>,
    /// The dialect to render.
    pub class: ClientClass,
    /// The namespace that short host names are resolved in.
    pub namespace: Arc<str>,
    /// Workload labels: match `sourceLabels` and service selectors.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The addresses that the workload calls its own (`INSTANCE_IPS`).
    pub instance_ips: Vec<IpAddr>,
    /// The address that the stream comes from.
    pub peer_ip: IpAddr,
    /// Named container ports (`POD_PORTS`): name and number.
    pub ports: Vec<(String, u16)>,
    /// `region/zone/subzone`, empty parts allowed.
    pub locality: [Arc<str>; 3],
    /// An empty first request for listeners or clusters means all of them, as the protocol has it. gRPC's clients and
    /// this project's library never mean that: they send such a request after they gave up their last name.
    pub empty_means_all: bool,
    /// The WorkloadGroup that it says it belongs to (`AUTO_REGISTER_GROUP`).
    pub group: Option<Arc<str>>,
    /// Who it is, where its stream came with a certificate of the mesh.
    pub identity: Option<SpiffeId>,
    /// What it is a proxy for, where it is one beside a workload (an Envoy whose node id begins with `sidecar~`).
    pub sidecar: Option<Sidecar>,
    /// Whether it is a gateway: a node whose id begins with `router~`, an Envoy or a program of this project.
    pub is_gateway: bool,
    /// What is in front of it, as far as a gateway says it of itself (`PROXY_CONFIG`).
    pub topology: Topology,
}

/// What is in front of a gateway (Istio: `gatewayTopology`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Topology {
    /// How many proxies are believed what `X-Forwarded-For` says; `None` where it is not said.
    pub forwarded_hops: Option<u32>,
    /// What becomes of `X-Forwarded-Client-Cert`; `None` where it is not said.
    pub client_cert: Option<ForwardedClientCert>,
    /// Whether connections begin with a header of the PROXY protocol; `None` where it is not said.
    pub proxy_protocol: Option<bool>,
}

impl Topology {
    /// The same, where this says what it does not say itself.
    pub fn or(self, other: Topology) -> Topology {
        Topology {
            forwarded_hops: self.forwarded_hops.or(other.forwarded_hops),
            client_cert: self.client_cert.or(other.client_cert),
            proxy_protocol: self.proxy_protocol.or(other.proxy_protocol),
        }
    }
}

/// Where a workload listens whose sidecar binds addresses itself (Istio's default endpoint).
pub const WORKLOAD_IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// How connections come to a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Sidecar {
    /// Where others reach the workload (the address in the node's id).
    pub ip: IpAddr,
    /// The address on which it listens for its own workload, where that has to call it (`MESH_OUTBOUND_IP`).
    pub outbound_ip: IpAddr,
    /// Whether the system redirects the workload's connections to it (`INTERCEPTION_MODE` REDIRECT), or it binds each address
    /// itself (NONE).
    pub redirects: bool,
    /// Whether it may bind ports below 1024 (`UNPRIVILEGED_POD` says that it may not).
    pub is_privileged: bool,
}

impl Sidecar {
    /// Whether what comes for the workload would have to be taken where the workload itself listens.
    pub fn is_where_its_workload_is(&self) -> bool {
        self.ip.is_unspecified() || (!self.redirects && self.ip == WORKLOAD_IP)
    }
}

/// Istio's label of a workload that has a certificate of the mesh.
pub const TLS_MODE: &str = "security.istio.io/tlsMode";

impl Client {
    /// Whether it has a certificate of the mesh, where everybody can have one: our library gets one, and others say so.
    pub fn has_certificate(&self) -> bool {
        self.class == ClientClass::Library || self.shows_certificate()
    }

    /// Whether it has a certificate of the mesh, as far as can be seen: it came with one, or it says so by Istio's label
    /// `security.istio.io/tlsMode: istio`.
    pub fn shows_certificate(&self) -> bool {
        self.identity.is_some() || self.labels.get(TLS_MODE).is_some_and(|mode| mode == "istio")
    }

    /// A client of the namespace `default` that says nothing else of itself.
    ///
    /// ```
    /// use mesh_control::catalog::{Client, ClientClass};
    ///
    /// let client = Client::new("web-1", ClientClass::Grpc, [127, 0, 0, 1].into()).namespace("shop").labels([("app", "web")]);
    /// assert_eq!(client.labels["app"], "web");
    /// ```
    pub fn new(node_id: impl Into<Arc<str>>, class: ClientClass, peer_ip: IpAddr) -> Client {
        Client {
            node_id: node_id.into(),
            class,
            namespace: "default".into(),
            labels: Arc::default(),
            instance_ips: Vec::new(),
            peer_ip,
            ports: Vec::new(),
            locality: Default::default(),
            empty_means_all: class == ClientClass::Envoy,
            group: None,
            identity: None,
            sidecar: None,
            is_gateway: false,
            topology: Topology::default(),
        }
    }

    /// The same client as a gateway.
    pub fn gateway(mut self) -> Client {
        self.is_gateway = true;
        self
    }

    /// The same client as a sidecar whose workload is reached at `ip`, and which binds addresses itself unless the system
    /// `redirects` connections to it.
    pub fn sidecar(mut self, ip: impl Into<IpAddr>, redirects: bool) -> Client {
        let (ip, outbound_ip) = (ip.into(), WORKLOAD_IP);
        self.sidecar = Some(Sidecar { ip, outbound_ip, redirects, is_privileged: true });
        self
    }

    /// The same client in this namespace.
    pub fn namespace(mut self, namespace: impl Into<Arc<str>>) -> Client {
        self.namespace = namespace.into();
        self
    }

    /// The same client with these labels.
    pub fn labels<'a>(mut self, labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Client {
        self.labels = Arc::new(labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect());
        self
    }
}

/// One resource, encoded once and shared by every stream that carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Encoded {
    /// The name it was asked for.
    pub name: Arc<str>,
    /// A hash of the content: equal on every replica and after every restart.
    pub version: Arc<str>,
    /// The message itself (the `value` of its `Any`).
    pub body: Bytes,
    /// Endpoints of workloads that registered themselves: incomplete while mesh-control settles after its
    /// own start.
    pub self_registered: bool,
    /// Endpoints only: how many there are. Their version says so, too.
    pub endpoints: usize,
}

impl Encoded {
    /// A resource other than a set of endpoints.
    pub fn new(name: impl Into<Arc<str>>, version: impl Into<Arc<str>>, body: impl Into<Bytes>) -> Encoded {
        Encoded { name: name.into(), version: version.into(), body: body.into(), self_registered: false, endpoints: 0 }
    }

    /// The version of a set of endpoints: a hash of the content, and how many there are. A client that comes back
    /// after a restart of mesh-control thereby says how many it had.
    pub(crate) fn version_of(hash: u64, endpoints: usize) -> String {
        format!("{hash:016x}-{endpoints}")
    }

    /// How many endpoints a set of that version has, if it says so.
    pub(crate) fn endpoints_of(version: &str) -> Option<usize> {
        version.rsplit_once('-').and_then(|(_, count)| count.parse().ok())
    }
}

/// The key of the entry of a bucket's ID that says which object it is of (`Quota shop/calls`): no header has such a name.
pub const QUOTA: &str = "mesh/quota";
/// The key of the entry that says which rule of that object, by its name.
pub const RULE: &str = "mesh/rule";

/// How much of a quota each identity has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaLimit {
    /// How many requests.
    pub requests: u64,
    /// In which time.
    pub unit: Unit,
    /// How often clients report what they use.
    pub interval: Duration,
}

impl QuotaLimit {
    /// So many requests in each of such a time, reported so often.
    pub fn new(requests: u64, unit: Unit, interval: Duration) -> QuotaLimit {
        QuotaLimit { requests, unit, interval }
    }
}

/// Which resources may be different from what they were.
#[non_exhaustive]
pub enum Changes<'a> {
    /// Any.
    Any,
    /// Those whose names it says yes to.
    Only(Box<dyn Fn(&str) -> bool + 'a>),
}

impl Changes<'_> {
    /// Whether the resource of this name may be one of them.
    pub fn may_concern(&self, name: &str) -> bool {
        match self {
            Changes::Any => true,
            Changes::Only(is_concerned) => is_concerned(name),
        }
    }
}

impl std::fmt::Debug for Changes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Changes::Any => "Any",
            Changes::Only(_) => "Only",
        })
    }
}

/// An immutable picture of everything that can be asked for.
pub trait Catalog: Send + Sync + 'static {
    /// The resource called `name` as `client` sees it, or `None` where no such thing exists.
    fn resource(&self, client: &Client, kind: Kind, name: &str) -> Option<Encoded>;

    /// What a client gets that asks for everything of a kind (the wildcard).
    fn everything(&self, client: &Client, kind: Kind) -> Vec<Arc<str>>;

    /// What more there is to say of a resource that does not exist for a client: where else what it wants may be.
    fn absence(&self, _client: &Client, _kind: Kind, _name: &str) -> Option<String> {
        None
    }

    /// The host of the service that a client means by a target, `host:port`, where there is one.
    fn host_of(&self, _client: &Client, _target: &str) -> Option<Arc<str>> {
        None
    }

    /// What a client gets in the place of a resource that it refused, where it must not go on with what it had.
    fn instead(&self, _client: &Client, _kind: Kind, _name: &str) -> Option<Encoded> {
        None
    }

    /// Why there is nothing for a client: it is refused, rather than given nothing.
    fn refusal(&self, _client: &Client) -> Option<String> {
        None
    }

    /// Where a sidecar serves for its workload, or a gateway: it is an endpoint there for as long as its stream is up.
    ///
    /// # Errors
    /// Why it cannot serve.
    fn served_at(&self, _client: &Client) -> Result<BTreeSet<SocketAddr>, String> {
        Ok(BTreeSet::new())
    }

    /// What a member of a WorkloadGroup is to be asked by the client that is beside it, if anything.
    fn health_checks(&self, _client: &Client) -> Option<HealthCheckSpecifier> {
        None
    }

    /// What a rule of a quota says, by the name of its object, where it is for this client, or whoever it is for.
    fn quota(&self, _client: Option<&Client>, _quota: &str, _rule: &str) -> Option<QuotaLimit> {
        None
    }

    /// What a Secret says by the name that Envoy's secret discovery service has for it, `kubernetes://NAMESPACE/NAME`: the message
    /// itself (the `value` of its `Any`), for who is known to be a workload that may have it.
    fn secret(&self, _workload: &SpiffeId, _name: &str) -> Option<Bytes> {
        None
    }

    /// Which resources of a kind may be different for a client from what they were at an earlier
    /// [`revision`](Self::revision).
    fn changes(&self, _client: &Client, _kind: Kind, _since: u64) -> Changes<'_> {
        Changes::Any
    }

    /// A number that moves whenever any resource of this kind may have changed for any client. Two
    /// catalogs with the same number need not be compared; `None` compares them every time.
    fn revision(&self, _kind: Kind) -> Option<u64> {
        None
    }
}
