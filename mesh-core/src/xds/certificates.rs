//! Keeps the workload's certificate: from files, from the authority of its control plane, or from the agent of its machine.
//!
//! Nothing happens before TLS is asked for. A certificate is renewed after half of its life; until a renewal succeeds, the
//! one before it serves on, to its end. Whoever has a live certificate proves by it who they are, and needs no token any more:
//! a one-time token is good for the first one. Neither key nor certificate is kept on disk, so a process that starts again
//! needs a new token, unless its token is one that is replaced in its file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use serde_json::Value as Json;
use tonic::client::Grpc;
use tonic_prost::ProstCodec;

use crate::error::Invalid;
use crate::request::{is_this_machine, split_authority};
use crate::tls::{
    CertificateRequest, Certificates, Credentials, NewestBundles, NewestLists, Revoked, SpiffeBundleMap, material,
};
use crate::xds::backoff::pause;
use crate::xds::bootstrap::{Bootstrap, CertificateProvider, ChannelCredentials, Node, Server};
use crate::xds::connect::Connector;
use crate::xds::istio_ca::{
    CREATE_CERTIFICATE, IstioCertificateRequest, IstioCertificateResponse, MAX_RESPONSE, NAMESPACE, SERVICE_ACCOUNT,
};
use crate::xds::place::Place;
use crate::xds::transport::{self, Keepalive};
use crate::xds::workload_api::{self, Ended};

/// The provider in the bootstrap that the mesh's own TLS takes its certificate from (gRFC A29).
const PROVIDER: &str = "default";

/// The plugin that reads files (gRFC A29).
const FILE_WATCHER: &str = "file_watcher";

/// The plugin that asks the control plane: what a bootstrap without a provider means.
const MESH_CA: &str = "mesh_ca";

/// The plugin that follows the agent of this machine that speaks SPIFFE's Workload API. Its `socket` is `unix:///path`.
const WORKLOAD_API: &str = "spiffe_workload_api";

/// How often an agent that says nothing is asked whether it is there.
const AGENT_PING: Duration = Duration::from_secs(30);

/// How often files are looked at, unless the bootstrap says otherwise (gRFC A65).
const REFRESH: Duration = Duration::from_secs(600);

/// What to do where a token is not taken.
const SPENT: &str = " (a one-time token is good for one certificate, which is renewed as long as the process lives and kept \
                     nowhere else: give this start a new one, by `mesh-control token create` and `mesh-control bootstrap \
                     --token`)";

/// How long an authority may take to sign, and how long at least, however soon the present certificate ends.
const SIGNING: Duration = Duration::from_secs(10);
const SIGNING_AT_LEAST: Duration = Duration::from_secs(1);

/// How long a stream waits for the workload's first certificate.
const FIRST: Duration = Duration::from_secs(5);

/// The shortest pause between two certificates.
const PAUSE: Duration = Duration::from_secs(1);

/// Keeps `certificates` as the bootstrap says, for as long as it is polled.
pub(crate) async fn keep(certificates: Arc<Certificates>, bootstrap: Arc<Bootstrap>, connector: Connector, seed: u64) {
    certificates.wanted().await;
    let mut random = fastrand::Rng::with_seed(seed);
    let configured = bootstrap.certificate_providers.get(PROVIDER);
    let wrong = |invalid: Invalid| {
        certificates.failed(format!("the bootstrap's certificate_providers[{PROVIDER:?}]: {invalid}"))
    };
    if let Some(agent) = configured.filter(|configured| configured.plugin == WORKLOAD_API) {
        return match agent_of(agent) {
            Ok(agent) => keep_as_told(&certificates, &agent, &connector, random).await,
            Err(invalid) => wrong(invalid),
        };
    }
    let provider = match Provider::of(configured) {
        Ok(provider) => provider,
        Err(invalid) => return wrong(invalid),
    };
    let (mut failures, mut known) = (0, Known::default());
    loop {
        let present = certificates.current().filter(|present| present.not_after() > SystemTime::now());
        let ends = present.as_ref().map(|present| present.not_after());
        let left = || ends.and_then(|ends| ends.duration_since(SystemTime::now()).ok());
        let wait = match provider.get(&bootstrap, &connector, present, left(), &mut known).await {
            Ok(credentials) => {
                failures = 0;
                let wait = provider.refresh(&credentials, random.f64());
                certificates.set(Arc::new(credentials));
                wait
            }
            Err(reason) => {
                certificates.failed(reason);
                failures += 1;
                retry_after(failures, random.f64(), left())
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // After a failure it is about to ask again anyhow.
            () = certificates.doubted(), if failures == 0 => tokio::time::sleep(pause(1, random.f64())).await,
        }
    }
}

/// How the workload shows its servers who it is.
#[derive(Clone)]
pub(crate) struct Showing {
    certificates: Arc<Certificates>,
    /// It is nobody without its certificate: it has a token, and so an identity.
    is_required: bool,
}

impl Showing {
    /// `None` where the bootstrap's files say it, or a connection of the application's own.
    pub(crate) fn of(
        bootstrap: &Bootstrap,
        certificates: &Arc<Certificates>,
        connector: &Connector,
    ) -> Option<Showing> {
        let Ok(Provider::Authority { token }) = Provider::of(bootstrap.certificate_providers.get(PROVIDER)) else {
            return None;
        };
        let shown = connector.shows_certificates() || token.is_none();
        shown.then(|| Showing { certificates: Arc::clone(certificates), is_required: token.is_some() })
    }

    /// What to show to a server.
    pub(crate) async fn to(&self, server: &Server) -> Result<Option<Arc<Credentials>>, String> {
        let has_its_own = matches!(&server.credentials, ChannelCredentials::Tls(files) if files.identity.is_some());
        if has_its_own || (!self.is_required && server.credentials == ChannelCredentials::Insecure) {
            return Ok(None);
        }
        if !self.is_required {
            return Ok(self.certificates.current().filter(|present| present.not_after() > SystemTime::now()));
        }
        match tokio::time::timeout(FIRST, self.certificates.get()).await {
            Ok(credentials) => Ok(Some(credentials)),
            Err(_) => Err(self.certificates.missing().to_string()),
        }
    }

    /// The server did not take what was shown, or was not to be trusted.
    pub(crate) fn doubt(&self) {
        self.certificates.doubt();
    }

    /// The server says which roots its authority has.
    pub(crate) fn compare(&self, roots: &str) {
        if self.certificates.current().is_some_and(|present| present.roots() != roots) {
            tracing::info!("the authority has other roots than this workload knows: it asks for a new certificate");
            self.certificates.doubt();
        }
    }
}

/// The same from an agent, which tells by itself what is new.
async fn keep_as_told(certificates: &Certificates, agent: &Server, connector: &Connector, mut random: fastrand::Rng) {
    let keepalive = Keepalive::new(AGENT_PING, SIGNING);
    let mut failures = 0;
    loop {
        match workload_api::follow(certificates, agent, connector, &keepalive, || failures = 0).await {
            Ended::ForGood(reason) => return certificates.failed(format!("{}: {reason}", agent.uri)),
            Ended::ForNow(reason) => certificates.failed(format!("{}: {reason}", agent.uri)),
        }
        failures += 1;
        tokio::time::sleep(pause(failures, random.f64())).await;
    }
}

/// How long to wait after so many failures in a row, where a certificate is good for so long yet. Whoever lets that end needs a
/// token again, which may be spent: the nearer the end, the sooner it is tried.
fn retry_after(failures: u32, jitter: f64, left: Option<Duration>) -> Duration {
    let wait = pause(failures, jitter);
    left.map_or(wait, |left| wait.min((left / 4).max(pause(1, jitter))))
}

/// How long an authority may take to sign, where the present certificate is good for so long yet: so that there is time for
/// another try.
fn signing_time(left: Option<Duration>) -> Duration {
    left.map_or(SIGNING, |left| SIGNING.min((left / 3).max(SIGNING_AT_LEAST)))
}

/// What is remembered from one certificate to the next.
#[derive(Default)]
struct Known {
    /// How new the lists of revoked certificates were in a file.
    newest: NewestLists,
    /// How new the bundles were in a file.
    bundles: NewestBundles,
    /// Why an answer was not understood. The token that it was the answer to is used up: what it says of later tries is no reason.
    unread: Option<String>,
}

/// Why an authority gave no certificate.
enum Unsigned {
    /// It has signed, or may have, and its answer cannot be read.
    Unreadable(String),
    Refused(String),
}

impl From<String> for Unsigned {
    fn from(reason: String) -> Self {
        Unsigned::Refused(reason)
    }
}

/// Where certificates come from.
enum Provider {
    Files {
        certificate: PathBuf,
        key: PathBuf,
        /// The roots of the workload's own trust domain, with the lists of those whom they have revoked.
        roots: Option<PathBuf>,
        /// Bundles of trust domains, which take the place of the roots, and not that of the lists (gRFC A87).
        bundles: Option<PathBuf>,
        refresh: Duration,
    },
    Authority {
        token: Option<Token>,
    },
}

/// What proves to an authority who asks, where there is no certificate yet.
#[derive(Clone)]
enum Token {
    /// A one-time token.
    Once(String),
    /// One that is replaced before it ends, as Kubernetes does: the file is read for every request.
    File(PathBuf),
}

impl Token {
    fn read(&self) -> Result<String, String> {
        match self {
            Token::Once(token) => Ok(token.clone()),
            Token::File(path) => {
                let bytes = material::bytes(path).map_err(|invalid| invalid.to_string())?;
                let text = String::from_utf8(bytes).map_err(|_| format!("{} is no token", path.display()))?;
                Ok(text.trim().to_owned())
            }
        }
    }
}

impl Provider {
    fn of(configured: Option<&CertificateProvider>) -> Result<Self, Invalid> {
        let Some(provider) = configured else { return Ok(Provider::Authority { token: None }) };
        let text = |key: &str| text(provider, key);
        let path = |key: &str| {
            text(key)?.map(PathBuf::from).ok_or_else(|| Invalid::new("missing").at(format!("config.{key}")))
        };
        match provider.plugin.as_str() {
            MESH_CA => Ok(Provider::Authority {
                token: match (text("token")?, text("token_file")?) {
                    (Some(_), Some(_)) => return Err(Invalid::new("beside a token").at("config.token_file")),
                    (once, file) => once.map(Token::Once).or(file.map(|path| Token::File(path.into()))),
                },
            }),
            FILE_WATCHER => Ok(Provider::Files {
                certificate: path("certificate_file")?,
                key: path("private_key_file")?,
                bundles: text("spiffe_trust_bundle_map_file")?.map(PathBuf::from),
                roots: match text("spiffe_trust_bundle_map_file")? {
                    None => Some(path("ca_certificate_file")?),
                    Some(_) => text("ca_certificate_file")?.map(PathBuf::from),
                },
                refresh: match text("refresh_interval")? {
                    None => REFRESH,
                    Some(text) => {
                        let seconds = text.strip_suffix('s').and_then(|number| number.parse().ok());
                        let interval = seconds.and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok());
                        interval
                            .filter(|interval| !interval.is_zero())
                            .ok_or_else(|| Invalid::new("not a duration such as 600s").at("config.refresh_interval"))?
                    }
                },
            }),
            other => {
                let known = [FILE_WATCHER, MESH_CA, WORKLOAD_API].join(", ");
                Err(Invalid::new(format!("{other:?} is none of {known}")).at("plugin_name"))
            }
        }
    }

    /// Newer ones than those that hold now, if any do.
    async fn get(
        &self,
        bootstrap: &Bootstrap,
        connector: &Connector,
        present: Option<Arc<Credentials>>,
        left: Option<Duration>,
        known: &mut Known,
    ) -> Result<Credentials, String> {
        match self {
            Provider::Files { certificate, key, roots, bundles, .. } => {
                let read = |path: &PathBuf| material::bytes(path).map_err(|invalid| invalid.to_string());
                let within = |path: &PathBuf, invalid: Invalid| format!("{}: {invalid}", path.display());
                let (certificate, key) = (read(certificate)?, read(key)?);
                let authority = roots.as_ref().map(read).transpose()?.unwrap_or_default();
                let revoked = Revoked::from_pem(&authority).and_then(|revoked| {
                    revoked.check(SystemTime::now())?;
                    known.newest.check(&revoked).map(|()| revoked)
                });
                let revoked = revoked.map_err(|invalid| within(roots.as_ref().unwrap_or(&PathBuf::new()), invalid))?;
                let map = match bundles {
                    None => None,
                    Some(path) => {
                        let map = SpiffeBundleMap::from_json(&read(path)?);
                        let map = map.and_then(|map| known.bundles.check(&map).map(|()| map));
                        Some(map.map_err(|invalid| within(path, invalid))?)
                    }
                };
                let credentials = match &map {
                    None => Credentials::from_pem(&certificate, &key, &authority),
                    Some(map) => Credentials::with_bundles(&certificate, &key, map, &authority),
                };
                let credentials = credentials.map_err(|invalid| invalid.to_string())?;
                known.newest.note(&revoked);
                map.iter().for_each(|map| known.bundles.note(map));
                Ok(credentials)
            }
            Provider::Authority { token } => {
                let mut reasons = Vec::new();
                let patience = signing_time(left);
                for server in &bootstrap.servers {
                    // Without token and TLS the authority takes a workload's word, and there is nothing to prove.
                    let is_of_use = token.is_some() || server.credentials != ChannelCredentials::Insecure;
                    let present = present.clone().filter(|_| is_of_use && connector.shows_certificates());
                    let renewal = present.map(|present| (Some(present), None));
                    for (present, token) in renewal.into_iter().chain([(None, token.as_ref())]) {
                        let way = if present.is_some() { "renewal by the present certificate: " } else { "" };
                        let asked = ask(server, connector, &bootstrap.node, present, token);
                        let late = |_| Unsigned::from(format!("no answer within {:.1} s", patience.as_secs_f64()));
                        match tokio::time::timeout(patience, asked).await.map_err(late).flatten() {
                            Ok(credentials) => {
                                known.unread = None;
                                return Ok(credentials);
                            }
                            Err(Unsigned::Refused(reason)) => reasons.push(format!("{}: {way}{reason}", server.uri)),
                            // Its answer to a token would be no shorter.
                            Err(Unsigned::Unreadable(reason)) => {
                                known.unread = Some(format!("{}: {way}{reason}", server.uri));
                                break;
                            }
                        }
                    }
                }
                Err(known.unread.iter().cloned().chain(reasons).collect::<Vec<_>>().join("; "))
            }
        }
    }

    /// When to look for newer ones.
    fn refresh(&self, credentials: &Credentials, jitter: f64) -> Duration {
        match self {
            Provider::Files { refresh, .. } => *refresh,
            Provider::Authority { .. } => credentials.renew_after(SystemTime::now(), jitter).max(PAUSE),
        }
    }
}

/// A string of a provider's configuration.
fn text(provider: &CertificateProvider, key: &str) -> Result<Option<String>, Invalid> {
    match provider.config.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Invalid::new("must be a string").at(format!("config.{key}"))),
    }
}

/// Where the agent is: a socket of this machine, since everybody who reaches it is told a key.
fn agent_of(provider: &CertificateProvider) -> Result<Server, Invalid> {
    let at = |invalid: Invalid| invalid.at("config.socket");
    let uri = text(provider, "socket")?.ok_or_else(|| at(Invalid::new("missing")))?;
    match Place::parse(&uri).map_err(at)? {
        Place::Unix(_) => Ok(Server::new(uri)),
        Place::Host(_) => Err(at(Invalid::new(format!("{uri:?} is no socket such as unix:///run/agent.sock")))),
    }
}

/// Asks one authority to sign a new key, for whoever has this certificate or this token.
async fn ask(
    server: &Server,
    connector: &Connector,
    node: &Node,
    present: Option<Arc<Credentials>>,
    token: Option<&Token>,
) -> Result<Credentials, Unsigned> {
    if token.is_some() && server.credentials == ChannelCredentials::Insecure && !is_of_this_machine(&server.uri) {
        let why = "the token is not sent in plaintext to another machine: the bootstrap needs `tls` credentials";
        return Err(Unsigned::Refused(why.to_owned()));
    }
    let request = CertificateRequest::new().map_err(|invalid| invalid.to_string())?;
    let keepalive = Keepalive::new(SIGNING, SIGNING);
    let channel = transport::connect(connector, server, &keepalive, present).await.map_err(|failed| failed.reason)?;
    let message =
        IstioCertificateRequest { csr: request.csr().to_owned(), validity_duration: 0, metadata: Some(names(node)) };
    let mut message = tonic::Request::new(message);
    if let Some(token) = token {
        let bearer = format!("Bearer {}", token.read()?).parse();
        message
            .metadata_mut()
            .insert("authorization", bearer.map_err(|_| "the token is no header's value".to_owned())?);
    }
    let mut client = Grpc::new(channel).max_decoding_message_size(MAX_RESPONSE);
    client.ready().await.map_err(|error| error.to_string())?;
    let codec = ProstCodec::<IstioCertificateRequest, IstioCertificateResponse>::default();
    let path = http::uri::PathAndQuery::from_static(CREATE_CERTIFICATE);
    let answer = client.unary(message, path, codec).await;
    let answer = answer.map_err(|status| {
        if transport::is_unreadable(&status) {
            return Unsigned::Unreadable(format!(
                "the answer of the authority cannot be read, which may be up to {} MiB long with its lists of revoked \
                 certificates and the roots of other trust domains: {:?}: {}",
                MAX_RESPONSE >> 20,
                status.code(),
                status.message()
            ));
        }
        let hint = match (status.code(), token) {
            (tonic::Code::Unauthenticated, Some(Token::Once(_))) => SPENT,
            _ => "",
        };
        Unsigned::Refused(format!("{:?}: {}{hint}", status.code(), status.message()))
    })?;
    let answer = answer.into_inner();
    let signed = request.signed(&answer.cert_chain, &answer.trust_bundles);
    signed.map_err(|invalid| Unsigned::Unreadable(format!("the answer of the authority cannot be used: {invalid}")))
}

/// Whether nobody else can read what is sent to a server.
fn is_of_this_machine(uri: &str) -> bool {
    match Place::parse(uri) {
        Ok(Place::Host(authority)) => split_authority(&authority).is_some_and(|(host, _)| is_this_machine(host)),
        Ok(Place::Unix(_)) => true,
        // A connector of the application's own knows where that is.
        Err(_) => false,
    }
}

/// Who the workload says it is. Whether that counts is up to the authority.
fn names(node: &Node) -> Struct {
    let text = |key: &str| node.metadata.get(key).and_then(Json::as_str);
    let fields = [NAMESPACE, SERVICE_ACCOUNT].into_iter().filter_map(|key| {
        let value = Value { kind: Some(Kind::StringValue(text(key)?.to_owned())) };
        Some((key.to_owned(), value))
    });
    Struct { fields: fields.collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_nearer_the_end_of_a_certificate_the_sooner_it_is_tried_again() {
        let at = |failures, left: Option<u64>| retry_after(failures, 1.0, left.map(Duration::from_secs)).as_secs_f64();
        // Without one there is nothing to lose; with a day left neither.
        assert_eq!([at(1, None), at(3, None), at(9, None), at(9, Some(86_400))], [1.0, 4.0, 60.0, 60.0]);
        assert_eq!([at(9, Some(120)), at(9, Some(8)), at(9, Some(1)), at(1, Some(120))], [30.0, 2.0, 1.0, 1.0]);
        let within = |left: Option<u64>| signing_time(left.map(Duration::from_secs)).as_secs_f64();
        assert_eq!([within(None), within(Some(86_400)), within(Some(6)), within(Some(1))], [10.0, 10.0, 2.0, 1.0]);
    }

    #[test]
    fn a_provider_that_is_written_wrongly_is_refused_with_the_key() {
        let of = |plugin: &str, config: Json| {
            let provider = CertificateProvider { plugin: plugin.to_owned(), config };
            let found = match plugin {
                WORKLOAD_API => agent_of(&provider).map(|_| ()),
                _ => Provider::of(Some(&provider)).map(|_| ()),
            };
            found.map_err(|invalid| invalid.to_string())
        };
        let files = json!({"certificate_file": "a", "private_key_file": "b", "ca_certificate_file": "c"});
        assert_eq!(of("file_watcher", files), Ok(()));
        let files = json!({"certificate_file": "a", "private_key_file": "b", "spiffe_trust_bundle_map_file": "c"});
        assert_eq!(of("file_watcher", files), Ok(()), "the bundles take the place of the roots");
        assert_eq!(of("mesh_ca", json!({"token": "t"})), Ok(()));
        assert_eq!(of("mesh_ca", json!({"token_file": "t"})), Ok(()));
        for (plugin, config, key) in [
            ("file_watcher", json!({"certificate_file": "a"}), "config.private_key_file"),
            ("file_watcher", json!({"certificate_file": 1}), "config.certificate_file"),
            ("file_watcher", json!({"certificate_file": "a", "private_key_file": "b"}), "config.ca_certificate_file"),
            (
                "file_watcher",
                json!({"certificate_file": "a", "private_key_file": "b", "spiffe_trust_bundle_map_file": {}}),
                "config.spiffe_trust_bundle_map_file",
            ),
            ("mesh_ca", json!({"token": 1}), "config.token"),
            ("mesh_ca", json!({"token": "t", "token_file": "t"}), "config.token_file"),
            ("vault", json!({}), "plugin_name"),
            ("spiffe_workload_api", json!({}), "config.socket"),
            ("spiffe_workload_api", json!({"socket": "127.0.0.1:80"}), "config.socket"),
        ] {
            let refused = of(plugin, config).expect_err("it is wrong");
            assert!(refused.contains(key), "{refused}");
        }
    }
}
