//! The bootstrap: which management servers to ask, and who asks (gRFC A27, A47, A65, A71).
//!
//! It is read once, before anything runs, so its errors are written for the person who wrote the file: they name
//! the file, the key, and for syntax the line and column. Keys that are not known are ignored as gRPC does, and
//! listed.

mod json;
mod pod;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::Invalid;
use crate::id::{ListenerName, Locality, Target};
use crate::resources::ResourceType;
use crate::xds::names;

/// Names the file.
const FILE_VARIABLE: &str = "GRPC_XDS_BOOTSTRAP";
/// Holds the text itself.
const TEXT_VARIABLE: &str = "GRPC_XDS_BOOTSTRAP_CONFIG";
/// What a node calls the `WorkloadGroup` that it is a member of (Istio: `ISTIO_META_AUTO_REGISTER_GROUP`).
const GROUP: &str = "AUTO_REGISTER_GROUP";

/// Which management servers to ask, and who asks.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Bootstrap {
    /// The servers in order of preference; never empty.
    pub servers: Vec<Server>,
    /// This client.
    pub node: Node,
    /// Certificate providers by instance name; kept for those who need them.
    pub certificate_providers: BTreeMap<String, CertificateProvider>,
    /// The name of a server's listener, `%s` standing for `IP:PORT` (gRFC A36).
    pub server_listener_template: Option<String>,
    /// The name of a target's listener where the target names no authority, `%s` standing for the target.
    pub client_listener_template: String,
    /// Federated authorities by name (gRFC A47).
    pub authorities: BTreeMap<String, Authority>,
    /// The paths of keys that have no effect.
    pub ignored: Vec<String>,
}

/// One management server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Server {
    /// Where it is: `host:port`, `dns:///host:port`, `ipv4:…`, `ipv6:…` or `unix:…`.
    pub uri: String,
    /// What it can do, in the words of `server_features`.
    pub features: BTreeSet<String>,
    /// How it is talked to.
    pub credentials: ChannelCredentials,
}

/// How a management server is talked to (`channel_creds`). A [`Connector`](crate::xds::Connector) of the application's
/// own decides for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChannelCredentials {
    /// In plaintext.
    #[default]
    Insecure,
    /// Over TLS.
    Tls(ClientTlsFiles),
}

/// `tls` channel credentials (gRFC A65). The files hold PEM, and are read for every connection, so that certificates
/// are replaced while the client runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct ClientTlsFiles {
    /// The authority that the server's certificate has to be of.
    pub ca_certificate: PathBuf,
    /// The client's own certificate with its chain, and its private key, for a server that asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl ClientTlsFiles {
    /// A server whose certificate is of this authority; the client shows none.
    pub fn new(ca_certificate: impl Into<PathBuf>) -> Self {
        ClientTlsFiles { ca_certificate: ca_certificate.into(), identity: None }
    }

    /// The same with a certificate of the client, and its private key.
    pub fn identity(mut self, certificate: impl Into<PathBuf>, private_key: impl Into<PathBuf>) -> Self {
        self.identity = Some((certificate.into(), private_key.into()));
        self
    }
}

impl Server {
    /// A plaintext server without features.
    pub fn new(uri: impl Into<String>) -> Self {
        Server { uri: uri.into(), features: BTreeSet::new(), credentials: ChannelCredentials::Insecure }
    }

    /// The same over TLS.
    ///
    /// ```
    /// use mesh_core::xds::bootstrap::{Server, ClientTlsFiles};
    ///
    /// let files = ClientTlsFiles::new("ca.pem").identity("web.pem", "web-key.pem");
    /// let server = Server::new("mesh-control.example:15012").tls(files).feature("delta");
    /// assert!(server.is_incremental());
    /// ```
    pub fn tls(mut self, files: ClientTlsFiles) -> Self {
        self.credentials = ChannelCredentials::Tls(files);
        self
    }

    /// The same with one feature more.
    pub fn feature(mut self, feature: impl Into<String>) -> Self {
        self.features.insert(feature.into());
        self
    }

    /// Whether it speaks incremental xDS (feature `delta`, this mesh's own).
    pub fn is_incremental(&self) -> bool {
        self.features.contains("delta")
    }

    /// Whether a resource that it deletes, or says there is none of, is dropped although it worked (gRFC A88).
    pub fn fails_on_data_errors(&self) -> bool {
        self.features.contains("fail_on_data_errors")
    }

    /// Whether silence about a resource is a fault of the server rather than absence (gRFC A88).
    pub fn timer_is_transient(&self) -> bool {
        self.features.contains("resource_timer_is_transient_error")
    }
}

/// This client, as it presents itself.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Node {
    /// Its id; in every log line and error.
    pub id: String,
    /// The group it belongs to.
    pub cluster: String,
    /// Where it runs.
    pub locality: Locality,
    /// Anything else that the control plane should know.
    pub metadata: Map<String, Value>,
}

impl Node {
    /// The `WorkloadGroup` that it says it is a member of.
    pub(crate) fn group(&self) -> Option<&str> {
        self.metadata.get(GROUP).and_then(Value::as_str).filter(|group| !group.is_empty())
    }
}

/// A source of certificates (gRFC A29).
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct CertificateProvider {
    /// Its kind, for example `file_watcher`.
    pub plugin: String,
    /// Its configuration.
    pub config: Value,
}

/// The configuration may hold a token.
impl fmt::Debug for CertificateProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateProvider").field("plugin", &self.plugin).finish_non_exhaustive()
    }
}

/// A federated authority (gRFC A47).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Authority {
    /// The name of a target's listener, starting with `xdstp://AUTHORITY/`; `%s` stands for the target.
    pub client_listener_template: String,
    /// Its servers; empty = the bootstrap's own.
    pub servers: Vec<Server>,
}

/// A bootstrap that cannot be used: what is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootstrapError {
    origin: String,
    place: String,
    reason: String,
}

impl fmt::Display for BootstrapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BootstrapError { origin, place, reason } = self;
        match place.is_empty() {
            true => write!(f, "xDS bootstrap {origin}: {reason}"),
            false => write!(f, "xDS bootstrap {origin}: {place}: {reason}"),
        }
    }
}

impl std::error::Error for BootstrapError {}

impl Bootstrap {
    /// The bootstrap that the environment names, as in every xDS client: the file of `GRPC_XDS_BOOTSTRAP`, else
    /// the text in `GRPC_XDS_BOOTSTRAP_CONFIG`. Nothing else in the client reads the environment.
    ///
    /// In a Pod, `MESH_XDS_SERVER` in the place of both names the control plane (`HOST:PORT`, over TLS), and the rest is where
    /// Istio's workloads have it: `POD_NAME`, `POD_NAMESPACE`, `POD_IP` and `SERVICE_ACCOUNT` of the downward API, the Pod's
    /// labels in `/etc/istio/pod/labels`, a token for the audience `istio-ca` in `/var/run/secrets/tokens/istio-token`, and who
    /// vouches for the control plane in `/var/run/secrets/istio/root-cert.pem`.
    ///
    /// # Errors
    /// When none is set, a file cannot be read, or its content is wrong.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub fn from_env() -> Result<Self, BootstrapError> {
        if let Some(path) = std::env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty()) {
            return Self::from_file(Path::new(&path));
        }
        match std::env::var(TEXT_VARIABLE) {
            Ok(text) if !text.is_empty() => Self::from_json(&text, TEXT_VARIABLE),
            Ok(_) | Err(std::env::VarError::NotPresent)
                if let Some(server) = std::env::var(pod::SERVER).ok().filter(|server| !server.is_empty()) =>
            {
                let variable = |name: &str| std::env::var(name).ok();
                let read = |path: &Path| std::fs::read_to_string(path);
                pod::bootstrap(&server, variable, read).map_err(|(place, reason)| BootstrapError {
                    origin: "of a Pod".into(),
                    place,
                    reason,
                })
            }
            Ok(_) | Err(std::env::VarError::NotPresent) => {
                let reason = format!(
                    "neither {FILE_VARIABLE} nor {TEXT_VARIABLE} is set (`mesh-control bootstrap --out FILE` writes a bootstrap), nor {}, \
                     which is enough in a Pod",
                    pod::SERVER
                );
                Err(BootstrapError { origin: "environment".into(), place: String::new(), reason })
            }
            Err(error) => {
                Err(BootstrapError { origin: TEXT_VARIABLE.into(), place: String::new(), reason: error.to_string() })
            }
        }
    }

    /// The bootstrap in a file.
    ///
    /// # Errors
    /// When the file cannot be read, or its content is wrong.
    pub fn from_file(path: &Path) -> Result<Self, BootstrapError> {
        let origin = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::from_json(&text, &origin),
            Err(error) => Err(BootstrapError { origin, place: String::new(), reason: error.to_string() }),
        }
    }

    /// The bootstrap in a text; `origin` says in errors where the text comes from.
    ///
    /// # Errors
    /// When the text is not JSON, or a key has a wrong or missing value.
    ///
    /// ```
    /// use mesh_core::xds::Bootstrap;
    ///
    /// let text = r#"{"xds_servers": [{"server_uri": "127.0.0.1:15010", "channel_creds": [{"type": "alts"}]}]}"#;
    /// let error = Bootstrap::from_json(text, "mesh.json").unwrap_err();
    /// assert_eq!(
    ///     error.to_string(),
    ///     "xDS bootstrap mesh.json: xds_servers[0].channel_creds: no supported kind among [\"alts\"]; supported are \
    ///      \"tls\" and \"insecure\"",
    /// );
    /// ```
    pub fn from_json(text: &str, origin: &str) -> Result<Self, BootstrapError> {
        let value = serde_json::from_str(text).map_err(|error| BootstrapError {
            origin: origin.to_owned(),
            place: format!("line {}, column {}", error.line(), error.column()),
            reason: json::syntax(&error),
        })?;
        json::bootstrap(value).map_err(|invalid| BootstrapError {
            origin: origin.to_owned(),
            place: invalid.field,
            reason: invalid.reason,
        })
    }

    /// A bootstrap in code: this server, in plaintext, asked incrementally.
    ///
    /// ```
    /// use mesh_core::xds::Bootstrap;
    ///
    /// let bootstrap = Bootstrap::new("127.0.0.1:15010").node_id("mesh~10.0.0.1~web.shop~shop.svc.cluster.local");
    /// assert!(bootstrap.servers[0].is_incremental());
    /// ```
    pub fn new(server: impl Into<String>) -> Self {
        Bootstrap {
            servers: vec![Server::new(server).feature("xds_v3").feature("delta")],
            node: Node::default(),
            certificate_providers: BTreeMap::new(),
            server_listener_template: Some("xds.istio.io/grpc/lds/inbound/%s".to_owned()),
            client_listener_template: "%s".to_owned(),
            authorities: BTreeMap::new(),
            ignored: Vec::new(),
        }
    }

    /// The same for a node of this id.
    pub fn node_id(mut self, id: impl Into<String>) -> Self {
        self.node.id = id.into();
        self
    }

    /// The same for a workload, in the words of Istio's agent. `instance` tells it from others of its name: none should have both
    /// of another.
    ///
    /// ```
    /// use mesh_core::xds::Bootstrap;
    ///
    /// let labels = [("app".to_owned(), "web".to_owned())].into();
    /// let bootstrap = Bootstrap::new("127.0.0.1:15010").workload("web-v1", "shop", "web", &labels, 7);
    /// assert_eq!(bootstrap.node.id, "mesh~127.0.0.1~web-v1-00000007.shop~shop.svc.cluster.local");
    /// ```
    pub fn workload(
        mut self,
        name: &str,
        namespace: &str,
        service_account: &str,
        labels: &BTreeMap<String, String>,
        instance: u32,
    ) -> Self {
        let pod = format!("{name}-{instance:08x}");
        self.node.id = format!("mesh~127.0.0.1~{pod}.{namespace}~{namespace}.svc.cluster.local");
        let labels: Map<String, Value> =
            labels.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
        self.metadata("NAME", pod)
            .metadata("NAMESPACE", namespace)
            .metadata("SERVICE_ACCOUNT", service_account)
            .metadata("WORKLOAD_NAME", name)
            .metadata("LABELS", labels)
    }

    /// The same for a member of a `WorkloadGroup` of its namespace, which says the rest of it: labels, ports, where it is, and how it is
    /// checked.
    ///
    /// ```
    /// use mesh_core::xds::Bootstrap;
    ///
    /// let bootstrap = Bootstrap::new("127.0.0.1:15010").workload("web", "shop", "web", &Default::default(), 7).group("vms");
    /// assert_eq!(bootstrap.node.metadata["AUTO_REGISTER_GROUP"], "vms");
    /// ```
    pub fn group(self, name: &str) -> Self {
        self.metadata(GROUP, name)
    }

    /// The same for a gateway: the control plane then says which listeners it has (Istio: `router~IP~...`).
    ///
    /// ```
    /// use mesh_core::xds::Bootstrap;
    ///
    /// let bootstrap = Bootstrap::new("127.0.0.1:15010").workload("edge", "shop", "edge", &Default::default(), 7).gateway();
    /// assert_eq!(bootstrap.node.id, "router~127.0.0.1~edge-00000007.shop~shop.svc.cluster.local");
    /// ```
    pub fn gateway(mut self) -> Self {
        if let Some((_, rest)) = self.node.id.split_once('~') {
            self.node.id = format!("router~{rest}");
        }
        self
    }

    /// The same with one entry of the node's metadata. mesh-control reads `NAMESPACE`, `SERVICE_ACCOUNT` and
    /// `AUTO_REGISTER_GROUP`, which are strings, and `LABELS`, an object of strings; it turns away who says them otherwise.
    ///
    /// ```
    /// use mesh_core::xds::Bootstrap;
    /// use serde_json::json;
    ///
    /// let bootstrap = Bootstrap::new("http://127.0.0.1:15010").node_id("orders-1");
    /// let bootstrap = bootstrap.metadata("NAMESPACE", "shop").metadata("LABELS", json!({"app": "orders", "version": "2"}));
    /// ```
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.node.metadata.insert(key.into(), value.into());
        self
    }

    /// The same with one server more, asked where those before it cannot be reached (gRFC A71).
    pub fn fallback(mut self, server: Server) -> Self {
        self.servers.push(server);
        self
    }

    /// The same with a federated authority (gRFC A47).
    pub fn authority(mut self, name: impl Into<String>, servers: Vec<Server>) -> Self {
        let name = name.into();
        let client_listener_template = default_template(&name);
        self.authorities.insert(name, Authority { client_listener_template, servers });
        self
    }

    /// The listener of a target: `xds:///name` and `xds://authority/name` as in gRPC, anything else as it is.
    pub(crate) fn listener_name(&self, target: &Target) -> Result<ListenerName, Invalid> {
        let target = target.as_str();
        let (template, name) = match target.strip_prefix("xds:") {
            None => (&self.client_listener_template, target),
            Some(rest) => match rest.strip_prefix("//") {
                None => (&self.client_listener_template, rest),
                Some(rest) => match rest.split_once('/') {
                    None => return Err(Invalid::new(format!("{target:?}: expected xds:///name"))),
                    Some(("", name)) => (&self.client_listener_template, name),
                    Some((authority, name)) => match self.authorities.get(authority) {
                        Some(authority) => (&authority.client_listener_template, name),
                        None => {
                            let reason = format!("the authority {authority:?} is not in the xDS bootstrap");
                            return Err(Invalid::new(reason));
                        }
                    },
                },
            },
        };
        if name.is_empty() {
            return Err(Invalid::new("the target has no name"));
        }
        let name = names::canonical(ResourceType::Listener, &fill(template, name))?;
        Ok(ListenerName::from(&*name))
    }

    /// The listener of a server that is bound to `address`.
    pub(crate) fn server_listener_name(&self, address: SocketAddr) -> Result<ListenerName, Invalid> {
        let template = self
            .server_listener_template
            .as_ref()
            .ok_or_else(|| Invalid::new("server_listener_resource_name_template is not set in the xDS bootstrap"))?;
        let name = names::canonical(ResourceType::Listener, &fill(template, &address.to_string()))?;
        Ok(ListenerName::from(&*name))
    }
}

/// Where an authority says nothing of its listeners (gRFC A47).
fn default_template(authority: &str) -> String {
    format!("xdstp://{authority}/{}/%s", names::type_name(ResourceType::Listener))
}

/// The template with its `%s` filled in; inside a federated name, what is not allowed there is encoded.
fn fill(template: &str, name: &str) -> String {
    match names::is_federated(template) {
        true => template.replace("%s", &names::encode_id(name)),
        false => template.replace("%s", name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_their_listeners() {
        let mut bootstrap = Bootstrap::new("s:1").authority("east", vec![]);
        let name = |bootstrap: &Bootstrap, target: &str| {
            bootstrap.listener_name(&Target::from(target)).map(|name| name.to_string()).map_err(|e| e.to_string())
        };
        for (target, expected) in [
            ("reviews:9080", "reviews:9080"),
            ("reviews", "reviews"),
            ("xds:///orders", "orders"),
            ("xds:orders", "orders"),
            ("xds://east/orders?x", "xdstp://east/envoy.config.listener.v3.Listener/orders%3Fx"),
            ("xds://east/a/b:80", "xdstp://east/envoy.config.listener.v3.Listener/a/b:80"),
        ] {
            assert_eq!(name(&bootstrap, target).as_deref(), Ok(expected), "{target}");
        }
        for target in ["", "xds:///", "xds://east", "xds://west/orders", "*", "a\r\nb"] {
            assert!(name(&bootstrap, target).is_err(), "{target}");
        }
        bootstrap.client_listener_template = "xdstp://east/envoy.config.listener.v3.Listener/%s".into();
        assert_eq!(name(&bootstrap, "a b").as_deref(), Ok("xdstp://east/envoy.config.listener.v3.Listener/a%20b"));
    }

    #[test]
    fn servers_and_their_listeners() {
        let mut bootstrap = Bootstrap::new("s:1");
        let name = bootstrap.server_listener_name("10.0.0.1:80".parse().unwrap()).unwrap();
        assert_eq!(name.as_str(), "xds.istio.io/grpc/lds/inbound/10.0.0.1:80");
        bootstrap.server_listener_template = None;
        assert!(bootstrap.server_listener_name("[::1]:80".parse().unwrap()).is_err());
    }
}
