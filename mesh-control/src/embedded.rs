//! The control plane in the application's own process: no server to run, the same configuration, the same
//! protocol. It is also the fixture of whole-system tests.
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use mesh_control::embedded::{Config, Embedded, Options};
//!
//! let yaml = "
//! apiVersion: v1
//! kind: Service
//! metadata: {name: reviews, namespace: shop}
//! spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
//! ";
//! let mesh = Embedded::start(Config::yaml(yaml), Options::default()).await.unwrap();
//! assert!(mesh.xds_addr().ip().is_loopback()); // for gRPC clients of other languages
//! let _stream = mesh.connect().await.unwrap(); // for this process: no socket
//! assert_eq!(mesh.status().services, 1);
//! # });
//! ```

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::xds::{Bootstrap, Connector, XdsSource};
use tokio::io::DuplexStream;

use crate::ca::CertificateAuthority;
use crate::calls::Calls;
pub use crate::jwks::KeyFetching;
use crate::live_trace::Wanted;
pub use crate::plane::{OutboundTrafficPolicy, PathNormalization, PlaneOptions};
use crate::plane::{Plane, Rejected};
use crate::quota::{QuotaStatus, Quotas, Store};
use crate::serve::status::{self, Graph, Status};
use crate::serve::{self, Certificates, Feed, LiveTrace, QuotasIn, Server};

/// Where the configuration comes from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Config {
    /// A directory, read again whenever it changes.
    Dir(PathBuf),
    /// A text, in force until [`Embedded::set_yaml`] changes it.
    Yaml(String),
}

impl Config {
    /// A text.
    pub fn yaml(text: impl Into<String>) -> Config {
        Config::Yaml(text.into())
    }

    /// A directory.
    pub fn dir(path: impl Into<PathBuf>) -> Config {
        Config::Dir(path.into())
    }
}

/// How an embedded control plane behaves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Where it serves xDS to other processes. A free port of the loopback address unless set; plaintext,
    /// so any other address opens the configuration to whoever reaches it.
    pub xds_addr: SocketAddr,
    /// How it serves. It does not settle: its clients start together with it.
    pub serve: serve::Options,
    /// How it takes configuration. The directory is that of [`Config::Dir`]; with [`Config::Yaml`] there is none, so that
    /// `config_dir` and `state_dir` have no effect.
    pub plane: PlaneOptions,
    /// Development mode: a certificate authority of its own, and whoever connects from this machine gets a certificate
    /// for the namespace and service account that they name.
    pub dev: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            xds_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            serve: serve::Options::default().settle(Duration::ZERO),
            plane: PlaneOptions::default(),
            dev: false,
        }
    }
}

impl Options {
    /// Serves xDS at this address; see [`xds_addr`](field@Self::xds_addr).
    pub fn xds_addr(mut self, address: SocketAddr) -> Options {
        self.xds_addr = address;
        self
    }

    /// Takes configuration like this; see [`plane`](field@Self::plane).
    ///
    /// ```
    /// use mesh_control::embedded::{Options, OutboundTrafficPolicy, PlaneOptions};
    ///
    /// // Calls to hosts that no object describes fail.
    /// let plane = PlaneOptions::default().outbound_traffic_policy(OutboundTrafficPolicy::RegistryOnly);
    /// let options = Options::default().plane(plane);
    /// ```
    pub fn plane(mut self, options: PlaneOptions) -> Options {
        self.plane = options;
        self
    }

    /// Gives certificates to everybody on this machine, as `mesh-control serve --dev` does. The authority lives as long as
    /// the control plane, or in the `ca` of its `state_dir` where it has one. xDS has to be served on a loopback address.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use mesh_control::embedded::{Config, Embedded, Options};
    ///
    /// let control = Embedded::start(Config::yaml(""), Options::default().dev()).await.unwrap();
    /// assert_eq!(control.authority().unwrap().trust_domain().as_str(), "cluster.local");
    /// # });
    /// ```
    pub fn dev(mut self) -> Options {
        self.dev = true;
        self
    }

    /// Serves like this; see [`serve`](field@Self::serve).
    pub fn serve(mut self, options: serve::Options) -> Options {
        self.serve = options;
        self
    }
}

/// Why there is no control plane.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// The directory cannot be read.
    Unreadable(PathBuf, io::Error),
    /// The text is wrong. (A wrong file in a directory is no obstacle: it is reported, and the rest is
    /// served.)
    Rejected(Rejected),
    /// The address cannot be served on.
    Unavailable(SocketAddr, io::Error),
    /// There is no certificate authority.
    Authority(anyhow::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Unreadable(path, error) => {
                write!(f, "cannot read {}: {error}", path.display())
            }
            StartError::Rejected(rejected) => write!(f, "{rejected}"),
            StartError::Unavailable(address, error) => {
                write!(f, "cannot serve xDS on {address}: {error}")
            }
            StartError::Authority(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for StartError {}

/// A control plane in this process. Dropping it ends it.
#[derive(Debug)]
pub struct Embedded {
    plane: Plane,
    server: Arc<Server>,
    authority: Option<Arc<CertificateAuthority>>,
    xds_addr: SocketAddr,
}

/// The name under which [`Embedded::start`] keeps its text.
const MAIN: &str = "config.yaml";

impl Embedded {
    /// Starts a control plane inside the runtime that this is called in.
    pub async fn start(config: Config, options: Options) -> Result<Embedded, StartError> {
        let Options { xds_addr, mut serve, mut plane, dev } = options;
        if dev {
            if !xds_addr.ip().is_loopback() {
                let why =
                    anyhow::anyhow!("development mode gives identities away, and {xds_addr} is no loopback address");
                return Err(StartError::Authority(why));
            }
            plane = plane.issues_certificates(true);
        }
        if let Some(certificates) = &serve.certificates {
            plane = plane.trust_domain(certificates.authority.trust_domain()).issues_certificates(true);
        }
        let gives_identities_away = dev || serve.certificates.as_ref().is_some_and(|certificates| certificates.dev);
        plane.trust_claims |= gives_identities_away;
        let state = plane.state_dir.clone().filter(|_| matches!(config, Config::Dir(_)));
        let plane = match config {
            Config::Dir(path) => {
                let options = plane.config_dir(&path);
                Plane::start(options).map_err(|error| StartError::Unreadable(path, error))?
            }
            Config::Yaml(text) => {
                let options = PlaneOptions { config_dir: None, state_dir: None, mesh_config: None, ..plane };
                let plane = Plane::start(options).map_err(|error| StartError::Unreadable(MAIN.into(), error))?;
                plane.set_yaml(MAIN, &text).map_err(StartError::Rejected)?;
                let checked = plane.check_settings().map_err(io::Error::other);
                checked.map_err(|error| StartError::Unreadable(MAIN.into(), error))?;
                plane
            }
        };
        plane.fetch_keys().await;
        if dev {
            let offers = match serve.certificates.take() {
                Some(offers) => offers,
                // The state directory is ours by now, or there would be no plane.
                None => {
                    let authority =
                        CertificateAuthority::own(state.as_deref(), plane.trust_domain(), SystemTime::now());
                    Certificates::new(Arc::new(authority.map_err(StartError::Authority)?))
                }
            };
            serve = serve.certificates(offers.dev(true));
        }
        serve = serve.trust_domain(plane.trust_domain());
        if let (Some(state), true) = (&state, serve.calls.is_some()) {
            let calls = Calls::open(state).map_err(|error| StartError::Unreadable(state.clone(), error))?;
            serve = serve.calls(Arc::new(calls));
        }
        if let (Some(state), QuotasIn::Default) = (&state, &serve.quotas) {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let store = Store::in_dir(state, now).map_err(|error| StartError::Unreadable(state.clone(), error))?;
            serve = serve.quotas(Arc::new(Quotas::new(store)));
        }
        let authority = serve.certificates.as_ref().map(|certificates| certificates.authority.clone());
        let server = Server::new(Feed::of(&plane), Arc::new(plane.clone()), &serve);
        let bound = server.listen(xds_addr).await;
        let xds_addr = bound.map_err(|error| StartError::Unavailable(xds_addr, error))?;
        Ok(Embedded { plane, server: Arc::new(server), authority, xds_addr })
    }

    /// Where it serves xDS in plaintext: the `server_uri` of a gRPC bootstrap.
    pub fn xds_addr(&self) -> SocketAddr {
        self.xds_addr
    }

    /// The authority that vouches for its workloads, where it has one.
    pub fn authority(&self) -> Option<&Arc<CertificateAuthority>> {
        self.authority.as_ref()
    }

    /// A connection that never leaves the process; HTTP/2 is expected on it, as on a socket.
    pub async fn connect(&self) -> io::Result<DuplexStream> {
        self.server.connect().await
    }

    /// A source for a mesh in this process: the bootstrap says who the mesh is, its servers are not used.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use mesh_control::embedded::{Config, Embedded, Options};
    /// use mesh_core::xds::Bootstrap;
    ///
    /// let control = Embedded::start(Config::yaml(""), Options::default()).await.unwrap();
    /// let source = control.source(Bootstrap::new("embedded").node_id("web-1"));
    /// // Mesh::builder().source(source).start()
    /// # });
    /// ```
    pub fn source(&self, bootstrap: Bootstrap) -> XdsSource {
        let server = Arc::downgrade(&self.server);
        XdsSource::new(bootstrap).connector(Connector::new(move |_| {
            let server = server.upgrade();
            async move {
                match server {
                    Some(server) => server.connect().await,
                    None => {
                        Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the embedded control plane has ended"))
                    }
                }
            }
        }))
    }

    /// Puts a text in force under a name, in place of an earlier one of that name; the text given at the
    /// start is called `config.yaml`. A text that is wrong changes nothing. Returns the generation of the
    /// configuration that contains it.
    pub fn set_yaml(&self, name: &str, text: &str) -> Result<u64, Rejected> {
        self.plane.set_yaml(name, text)
    }

    /// The decisions behind it.
    pub fn plane(&self) -> &Plane {
        &self.plane
    }

    /// Follows live requests through the meshes of its workloads, as `mesh-control trace` does: see [`LiveTrace::next`].
    ///
    /// # Errors
    /// With a sentence for whoever asks, where what is wanted makes no sense, or too many ask.
    pub fn trace(&self, wanted: Wanted) -> Result<LiveTrace, String> {
        LiveTrace::start(&self.server, Arc::new(self.plane.clone()), wanted)
    }

    /// The server that carries them.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Who is connected, what they were sent and what they said to it, with every name.
    pub fn status(&self) -> Status {
        status::report(&self.server, &self.plane, true)
    }

    /// What goes between services now, as workloads report it.
    pub fn graph(&self) -> Graph {
        status::graph(&self.server, &self.plane)
    }

    /// How quotas stand, where they are kept.
    pub fn quotas(&self) -> Option<QuotaStatus> {
        status::quotas(&self.server)
    }

    /// The metrics as Prometheus text.
    pub fn metrics(&self) -> String {
        status::metrics(&self.server, &self.plane)
    }

    /// Ends it gracefully: clients see a server that leaves, and keep what they have. Then its state directory is free.
    pub async fn shutdown(self) {
        self.server.shutdown().await;
        self.plane.leave_state();
    }
}
