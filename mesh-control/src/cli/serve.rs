//! `mesh-control serve`: the control plane.

use std::net::{SocketAddr, ToSocketAddrs};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use mesh_core::identity::{SpiffeId, TrustDomain};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::Printing;
use super::etcd::Etcd;
use super::secret::Secret;
use crate::ca::{BundleEndpoint, CertificateAuthority, MAX_TTL, Tokens};
use crate::calls::Calls;
use crate::config::file::is_namespace;
use crate::config::{Code, Diagnostic};
use crate::etcd;
use crate::jwks::KeyFetching;
use crate::kubernetes::{self, Access, Cluster, ControllerName, Elected, LeaseName, Members};
use crate::plane::{OutboundTrafficPolicy, PathNormalization, Plane, PlaneOptions, Synced};
use crate::policy::mesh::ROOT_NAMESPACE;
use crate::quota::{self, Quotas};
use crate::ratelimit::{MOST_KEYS, RateLimits, RedisUrl, Store};
use crate::serve::kubernetes::{AUDIENCE, CA_FILE, TOKEN_FILE};
use crate::serve::{Certificates, Feed, KubernetesTokens, Options, Server, TlsFiles, api, bundle, status, webhook};

/// Serves the configuration in a directory over xDS.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// The directory with the configuration; it is read again whenever it changes.
    #[arg(long, value_name = "DIR", required_unless_present_any = ["kubernetes", "etcd"])]
    config: Option<PathBuf>,
    /// Reads the directories below it, too. Without this, it is told that they are not read.
    #[arg(short = 'R', long, requires = "config")]
    recursive: bool,
    /// Serves what a Kubernetes cluster holds: Istio's objects, those of Gateway API and of our own, and Services with their
    /// endpoints. In a Pod, its service account is who asks. Nothing is served before all of it is known; while the API server is
    /// away, what it said last stays in force. With --config or --etcd, all of them count.
    #[arg(long)]
    kubernetes: bool,
    /// Reaches that cluster as the current context of this file says. Without it, as a Pod does: at
    /// https://kubernetes.default.svc, by --kubernetes-ca and --kubernetes-token-file.
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    kubeconfig: Option<PathBuf>,
    /// A namespace whose objects and services are served, in place of all; objects of the root namespace always count, since they
    /// are for the whole mesh. May be given several times, or as a list with commas.
    #[arg(long, value_name = "NAMESPACE", value_delimiter = ',', requires = "kubernetes", value_parser = namespace)]
    kubernetes_namespaces: Vec<String>,
    #[command(flatten)]
    etcd: Etcd,
    /// Writes into that cluster what became of its objects (their status), for as long as this process holds this Lease, which is made
    /// where there is none. Replicas stand for the same one, and one of them writes. Without it, nothing is written.
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "kubernetes")]
    kubernetes_lease: Option<LeaseName>,
    /// Writes members of WorkloadGroups that register with this process into that cluster as WorkloadEntries, as Istio does, so that
    /// other replicas know them. Without it, those that others have written are known here, and nothing is written.
    #[arg(long, requires = "kubernetes")]
    kubernetes_workload_entries: bool,
    /// As which controller of Gateway API it says what became of GatewayClasses, routes and policies; without it, as
    /// policy.mesh-control/mesh. After a move from Istio, istio.io/gateway-controller takes over the GatewayClass `istio`, and what its
    /// controller said of routes: where no istiod runs any more.
    #[arg(long, value_name = "DOMAIN/PATH", requires = "kubernetes_lease")]
    gateway_controller: Option<ControllerName>,
    /// Keeps the last good state of the configuration's objects in this directory, so that it survives a restart. It is for
    /// one server and one configuration, and not inside it.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Development mode: gives everybody on this machine a certificate for whatever namespace and service account they
    /// name, without any proof. Listens on loopback addresses only. Without --state-dir or --ca-dir, each start makes an authority
    /// of its own, and certificates of the one before are good for nothing.
    #[arg(long, conflicts_with = "insecure_allow_remote")]
    dev: bool,
    /// The settings of the mesh, as Istio's MeshConfig in YAML; the file is read again whenever it changes. Without it they are
    /// read from the ConfigMap `istio` of namespace istio-system in --config, under `mesh`. An option that says something
    /// else than they do is an error.
    #[arg(long, value_name = "FILE", requires = "config")]
    mesh_config: Option<PathBuf>,
    /// The trust domain of the mesh: whose identities its workloads have. If nothing says it, cluster.local.
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<TrustDomain>,
    /// Signs certificates with the authority in this directory, in Istio's layout: ca-cert.pem, ca-key.pem, cert-chain.pem,
    /// root-cert.pem. Without it, --state-dir keeps an authority of its own, unless --client-ca names one. With --ca-dir or
    /// --dev, mutual TLS is STRICT unless a PeerAuthentication says otherwise, and with --state-dir alone PERMISSIVE.
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,
    /// Has workloads trust the identities of a foreign trust domain: the roots in the file vouch for them, and for nobody else. PEM,
    /// or a bundle in SPIFFE's form (JSON); the file is read again whenever it changes. May be given several times, or as a list
    /// with commas. Policies that let in a namespace or a service account go on meaning those of the mesh's own trust domain.
    #[arg(long, value_name = "DOMAIN=FILE", value_delimiter = ',', value_parser = trust_bundle)]
    trust_bundle: Vec<(TrustDomain, PathBuf)>,
    /// The same by a bundle that is fetched from this URL, as often as it says: its host has a certificate for its name
    /// (SPIFFE Federation, https_web). The last good bundle stays in force while none can be fetched; with --state-dir,
    /// over a restart.
    #[arg(long, value_name = "DOMAIN=URL", value_delimiter = ',', value_parser = web_endpoint)]
    trust_bundle_web: Vec<BundleEndpoint>,
    /// The authorities that vouch for those hosts, as PEM; those of the system unless set.
    #[arg(long, value_name = "FILE", requires = "trust_bundle_web")]
    trust_bundle_roots: Option<PathBuf>,
    /// A bundle that is fetched from this workload, SPIFFE-ID@URL (https_spiffe): the bundle in force of its own trust domain vouches for it. Where
    /// that is the domain itself, --trust-bundle names a first one, which counts until another one is fetched.
    #[arg(long, value_name = "DOMAIN=ID@URL", value_delimiter = ',', value_parser = spiffe_endpoint)]
    trust_bundle_spiffe: Vec<BundleEndpoint>,
    /// How often those are asked at most, in seconds, whatever a bundle says: with other roots in one, streams of workloads end and come back.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    trust_bundle_least_refresh: Duration,
    /// Where to serve the bundle of the mesh's own trust domain to others, over HTTPS at /, to whoever reaches it (SPIFFE Federation):
    /// with --bundle-cert as https_web; without, as https_spiffe, as spiffe://TRUST-DOMAIN/mesh-control.
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    bundle_addr: Option<SocketAddr>,
    /// The certificate chain of that endpoint, as PEM, for the name in its URL.
    #[arg(long, value_name = "FILE", requires_all = ["bundle_addr", "bundle_key"])]
    bundle_cert: Option<PathBuf>,
    /// The private key of that endpoint, as PEM.
    #[arg(long, value_name = "FILE", requires = "bundle_cert")]
    bundle_key: Option<PathBuf>,
    /// How long the certificates of workloads hold, which are renewed after half of that. Seven days at most.
    #[arg(long, value_name = "SECONDS", default_value = "86400", value_parser = certificate_ttl)]
    certificate_ttl: Duration,
    /// Takes service account tokens of Kubernetes in the place of one-time tokens: the API server at this address, https://HOST:PORT,
    /// says whose they are (TokenReview). They have to be bound to a pod. Certificates are then given to them by whoever signs.
    #[arg(long, value_name = "URL")]
    kubernetes_tokens: Option<String>,
    /// The audience that those tokens are made for.
    #[arg(long, value_name = "AUDIENCE", default_value = AUDIENCE)]
    kubernetes_audience: String,
    /// The authority that vouches for that API server, as PEM.
    #[arg(long, value_name = "FILE", default_value = CA_FILE)]
    kubernetes_ca: PathBuf,
    /// The token by which mesh-control asks it; its account may create tokenreviews (the role system:auth-delegator).
    #[arg(long, value_name = "FILE", default_value = TOKEN_FILE)]
    kubernetes_token_file: PathBuf,
    /// Gives workloads that have proven who they are a private key of this server's making with their certificate, over Envoy's
    /// secret discovery service (`default`). The key leaves this server. Without it, they get there whom to trust (`ROOTCA`) alone.
    #[arg(long)]
    sds_private_keys: bool,
    /// Refuses to start if any object of the configuration is wrong, or if there is none, and if a rule of --ratelimit-config is.
    #[arg(long)]
    strict: bool,
    /// Lets workloads serve that a PeerAuthentication, RequestAuthentication or AuthorizationPolicy guards which cannot be
    /// enforced: one that is wrong, that asks somebody whom nothing describes (CUSTOM), or that is STRICT where no certificates
    /// are issued; or that an EnvoyFilter or WasmPlugin guards, or a file that cannot be read may guard. Without this, they
    /// answer every request with 503 and the reason.
    #[arg(long)]
    allow_unenforced: bool,
    /// Where to serve xDS in plaintext, to whoever reaches it: on this machine, every process reads the configuration there and
    /// registers as whatever nobody has proven to be. Port 0 takes a free one, and `none` serves nobody in plaintext.
    #[arg(long, alias = "listen", value_name = "HOST:PORT|none", default_value = "127.0.0.1:15010", value_parser = listen)]
    xds_addr: Listen,
    /// Where to serve xDS over TLS; needs --tls-cert and --tls-key.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15012", value_parser = address)]
    secure_addr: SocketAddr,
    /// Where to serve the console, status and metrics over HTTP, to whoever reaches it, or `none`.
    #[arg(long, value_name = "HOST:PORT|none", default_value = "127.0.0.1:15014", value_parser = listen)]
    status_addr: Listen,
    /// A name by which requests for status and metrics may ask for this server, beside its addresses and localhost: whatever
    /// else they ask for is answered with 421, since a web page may have let its own name point here. May be given several
    /// times, or as a list with commas.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    status_host: Vec<String>,
    /// The certificate chain of the secured listener, as PEM.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of the secured listener, as PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Whose certificates clients of the secured listener must have, as PEM. A client is then held to the
    /// SPIFFE id in its certificate, which has to be of the --trust-domain. With --dev or --ca-dir, the mesh's own authority
    /// alone vouches for its identities, and this only says that clients must have a certificate.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    client_ca: Option<PathBuf>,
    /// What becomes of calls to hosts that no object describes: ALLOW_ANY lets them pass, REGISTRY_ONLY fails them. If nothing
    /// says it, ALLOW_ANY.
    #[arg(long, value_name = "POLICY", value_parser = outbound_traffic_policy)]
    outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    /// The authorities that vouch for the servers that keys of issuers are fetched from (`jwksUri`, discovery), as PEM; those
    /// of the system unless set.
    #[arg(long, value_name = "FILE")]
    jwks_roots: Option<PathBuf>,
    /// How often keys that are known are fetched again.
    #[arg(long, value_name = "SECONDS", default_value = "1200", value_parser = seconds)]
    jwks_refresh: Duration,
    /// For development: fetches keys over plain HTTP, and from loopback, link-local and metadata addresses, too.
    #[arg(long)]
    jwks_allow_insecure: bool,
    /// What servers make of the paths of requests, in the words of Istio's pathNormalization: NONE, BASE, MERGE_SLASHES or
    /// DECODE_AND_MERGE_SLASHES. DEFAULT is BASE; and MERGE_SLASHES where policies guard a workload, which then refuses %2F
    /// and %5C. If nothing says it, DEFAULT.
    #[arg(long, value_name = "MODE")]
    path_normalization: Option<PathNormalization>,
    /// Serves plaintext xDS to other machines, too: whoever reaches the port can read the configuration
    /// and register workloads.
    #[arg(long)]
    insecure_allow_remote: bool,
    /// For how long after the start clients are given no fewer endpoints than they had, while workloads come back.
    #[arg(long, value_name = "SECONDS", default_value = "4", value_parser = seconds)]
    settle: Duration,
    /// How long a workload stays an endpoint after its connection broke.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    grace: Duration,
    /// Ends a client's stream at about this age, so that clients spread over servers again.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    max_stream_age: Option<Duration>,
    /// Keeps no records of who called what, and workloads make none: `authz suggest` and `authz preview` have nothing to go by.
    #[arg(long)]
    no_call_records: bool,
    /// How many streams one identity may have at a time: of xDS, of secrets, of load, of calls and of live requests. Those without a certificate are counted by their address.
    #[arg(long, value_name = "COUNT", default_value = "10000")]
    streams_per_identity: NonZeroUsize,
    /// How many MiB of names all streams of one identity may ask for together, 64 bytes of bookkeeping each included.
    #[arg(long, value_name = "MIB", default_value = "256")]
    name_mib_per_identity: NonZeroUsize,
    /// Where to be a rate limit service of Envoy's protocol (envoy.service.ratelimit.v3); needs --ratelimit-config. It speaks TLS where
    /// there are --tls-cert and --tls-key, and asks for certificates of --client-ca; otherwise plaintext, to whoever reaches it.
    #[arg(long, value_name = "HOST:PORT", value_parser = address, requires = "ratelimit_config")]
    ratelimit_addr: Option<SocketAddr>,
    /// The directory with the rules of that service, in the format of envoyproxy/ratelimit; it is read again whenever it
    /// changes, and the last good rules stay in force while something in it is wrong.
    #[arg(long, value_name = "DIR", requires = "ratelimit_addr")]
    ratelimit_config: Option<PathBuf>,
    /// Counts in this Redis, which replicas share: redis://, redis+sentinel:// or redis+cluster://, or rediss for TLS. While it
    /// is away requests are not decided about, and no shares of quotas are assigned; those who ask have a failure mode for that.
    /// Without it, counters are in memory, and quotas in --state-dir, where there is one.
    #[arg(long, value_name = "URL", value_parser = Secret(RedisUrl::from_str), env = "MESH_CONTROL_REDIS_URL", hide_env_values = true)]
    redis_url: Option<RedisUrl>,
    /// How many counters are kept in memory, of which the least used go first; with --redis-url, how many of those that are
    /// over their limits.
    #[arg(long, value_name = "COUNT", default_value_t = MOST_KEYS)]
    ratelimit_keys: usize,
    /// Answers with headers for the client that say what is left of its limit: ratelimit-limit, ratelimit-remaining and
    /// ratelimit-reset.
    #[arg(long)]
    ratelimit_headers: bool,
    /// Where to answer an API server that asks whether objects may be stored, at /validate, with what `validate` says of them (a
    /// validating webhook); needs --tls-cert and --tls-key.
    #[arg(long, value_name = "HOST:PORT", value_parser = address, requires = "tls_cert")]
    admission_addr: Option<SocketAddr>,
    /// Whose certificate an API server must have that asks there, as PEM. Best an authority that signs for nobody else. Without it,
    /// whoever reaches the port may ask.
    #[arg(long, value_name = "FILE", requires = "admission_addr")]
    admission_client_ca: Option<PathBuf>,
    /// Where to serve the API by which objects in etcd are read and changed, over TLS (docs/openapi.json); needs --etcd, --tls-cert and
    /// --tls-key. Who asks is known by a certificate of the mesh, or by a token of --api-tokens.
    #[arg(long, value_name = "HOST:PORT", value_parser = address, requires_all = ["etcd", "tls_cert"])]
    api_addr: Option<SocketAddr>,
    /// Who may change objects there, and read them: a SPIFFE ID, or the name of a token. Nobody may unless named. May be given several
    /// times, or as a list with commas.
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "api_addr")]
    api_writer: Vec<String>,
    /// Who may read objects there, in the same way.
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "api_addr")]
    api_reader: Vec<String>,
    /// A file with tokens, `NAME TOKEN` a line, that nobody else can read. It is read for each request.
    #[arg(long, value_name = "FILE", requires = "api_addr")]
    api_tokens: Option<PathBuf>,
    #[command(flatten)]
    printing: Printing,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    // Taken over before anything is said: whoever reads an address may send a signal at once.
    let mut signals = Signals::new()?;
    if let Some(address) = args.xds_addr.0.filter(|address| !address.ip().is_loopback())
        && !args.insecure_allow_remote
    {
        bail!(
            "--xds-addr {address} is reachable from other machines, and plaintext xDS neither encrypts nor knows its \
             clients; use a loopback address, serve others on --secure-addr, or say --insecure-allow-remote"
        );
    }
    if args.tls_key.is_some() || args.bundle_key.is_some() {
        super::ca::leave_no_core()?;
    }
    if args.xds_addr.0.is_none() && args.tls_cert.is_none() {
        bail!(
            "--xds-addr none, and there is no --tls-cert and --tls-key to serve --secure-addr with: nobody is served"
        );
    }
    if let Some(address) = args.ratelimit_addr.filter(|address| !address.ip().is_loopback())
        && args.tls_cert.is_none()
        && !args.insecure_allow_remote
    {
        bail!(
            "--ratelimit-addr {address} is reachable from other machines, and without --tls-cert and --tls-key it neither \
             encrypts nor knows its clients; use a loopback address, or say --insecure-allow-remote"
        );
    }
    if args.jwks_refresh < Duration::from_secs(1) {
        bail!("--jwks-refresh {:?} is less than a second, and issuers would be asked all the time", args.jwks_refresh);
    }
    if args.dev {
        only_loopback(args)?;
    }
    if args.bundle_addr.is_some() && !has_authority(args) {
        bail!(
            "--bundle-addr, and there is no authority whose bundle that would be: --state-dir, --ca-dir or --dev is needed"
        );
    }
    if args.sds_private_keys && !has_authority(args) {
        bail!("--sds-private-keys, and nobody signs for their owners: --state-dir, --ca-dir or --dev is needed");
    }
    let mut options = PlaneOptions::default()
        .issues_certificates(has_authority(args))
        // An authority that only has a place gives certificates to who brings a token, so nobody is held to one.
        .permissive(!is_authority_named(args))
        .trust_claims(args.dev)
        .federated(trusts_others(args))
        .allow_unenforced(args.allow_unenforced)
        .recursive(args.recursive);
    options.config_dir.clone_from(&args.config);
    options.trust_domain.clone_from(&args.trust_domain);
    options.outbound_traffic_policy = args.outbound_traffic_policy;
    options.path_normalization = args.path_normalization;
    options.mesh_config.clone_from(&args.mesh_config);
    options.key_fetching = KeyFetching::default().refresh(args.jwks_refresh).allow_insecure(args.jwks_allow_insecure);
    options.key_fetching.roots.clone_from(&args.jwks_roots);
    options.state_dir.clone_from(&args.state_dir);
    let cluster = args.kubernetes.then(|| cluster(args)).transpose()?;
    let etcd = args.etcd.client().context("--etcd")?;
    let objects = etcd.clone().map(|client| etcd::Store::new(client, args.etcd.prefix()));
    let known = async {
        let cluster = async { Synced::of(cluster.clone()?).await };
        let objects = async { Synced::of(objects?).await };
        let (cluster, objects) = tokio::join!(cluster, objects);
        cluster.into_iter().chain(objects).collect()
    };
    let known = tokio::select! {
        known = known => known,
        () = signals.next() => return Ok(()),
    };
    let plane = Plane::start_beside(options, known).with_context(|| cannot_start(args))?;
    if let Some(why) = left_out(&args.kubernetes_namespaces, &plane.root_namespace()) {
        bail!(why);
    }
    let _replicas = match &etcd {
        Some(client) => Some(tokio::select! {
            replicas = etcd::Replicas::start(client.clone(), args.etcd.prefix(), plane.clone()) => replicas,
            () = signals.next() => return Ok(()),
        }),
        None => None,
    };
    let _telling = cluster.as_ref().map(|cluster| Following(tokio::spawn(cluster.tell(&plane))));
    let writes = args.kubernetes_workload_entries;
    let _members = cluster.as_ref().map(|cluster| Members::start(cluster, &plane, writes));
    if args.strict {
        let faults: String = strict_faults(&plane).iter().map(|fault| format!("\n  {fault}")).collect();
        if !faults.is_empty() {
            bail!("--strict, and the configuration in {} is wrong:{faults}", sources(args));
        }
    }
    plane.fetch_keys().await;
    // After the state directory is locked: the authority may have its place there.
    let authority = authority(args, &plane.trust_domain())?;
    if authority.is_some() && !is_authority_named(args) {
        tracing::warn!(
            "mutual TLS is PERMISSIVE: the authority in --state-dir signs for those who bring a token, they use mutual TLS among \
             themselves, and everybody else is let in and called in plaintext; a PeerAuthentication (STRICT), --dev or --ca-dir \
             asks for more"
        );
    }
    if args.dev && args.ca_dir.is_none() && args.state_dir.is_none() {
        tracing::warn!(
            "--dev without --state-dir: this authority ends with this process, and the next start makes another. Workloads that hold \
             certificates of one and of the other do not trust each other until all have new ones; --state-dir keeps it"
        );
    }
    let bundle_of = args.bundle_addr.zip(authority.clone());
    let certificates = authority.map(|authority| {
        Certificates::new(authority).dev(args.dev).ttl(args.certificate_ttl).hands_out_keys(args.sds_private_keys)
    });
    let certificates = match &args.kubernetes_tokens {
        Some(api) => {
            let Some(offers) = certificates else {
                bail!(
                    "--kubernetes-tokens, and nobody signs for their owners: --state-dir, --ca-dir or --dev is needed"
                )
            };
            let (ca, token) = (&args.kubernetes_ca, &args.kubernetes_token_file);
            let tokens = KubernetesTokens::new(api, &args.kubernetes_audience, ca, token);
            Some(offers.kubernetes(tokens.context("--kubernetes-tokens")?))
        }
        None => certificates,
    };
    let tokens = args.state_dir.as_deref().map(Tokens::of).filter(|_| certificates.is_some());
    if let Some(tokens) = &tokens {
        tokens.keep_to(&plane.trust_domain())?;
    }
    let shared = etcd.clone().map(|client| etcd::SharedTokens::new(client, args.etcd.prefix()));
    let certificates = certificates.map(|offers| offers.tokens(tokens).shared_tokens(shared));
    let options = Options::default().settle(args.settle).grace(args.grace).max_stream_age(args.max_stream_age);
    let options = options
        .streams_per_identity(args.streams_per_identity.get())
        .name_bytes_per_identity(args.name_mib_per_identity.get().saturating_mul(1 << 20));
    let options = options.certificates(certificates).trust_domain(plane.trust_domain()).calls(calls(args)?);
    let limits = rate_limits(args)?;
    let options = options.quotas(quotas(args)?);
    let options = options.rate_limits(limits.clone());
    let following = limits.zip(args.ratelimit_config.clone());
    let following = following.map(|(limits, dir)| Following(tokio::spawn(limits.follow(dir.into()))));
    let server = Arc::new(Server::new(Feed::of(&plane), Arc::new(plane.clone()), &options));
    let (stop, stopped) = watch::channel(false);

    let cannot = |what: &str, address: SocketAddr| format!("cannot serve {what} on {address}");
    let listening = |name: &str, address: SocketAddr| {
        let json = json!({ "listener": name, "address": address });
        args.printing.say(&format!("{name} listening on {address}"), &json)
    };
    let not_listening = |name: &str, why: &str| {
        let json = json!({ "listener": name, "address": null, "reason": why });
        args.printing.say(&format!("{name} not listening: {why}"), &json)
    };
    match args.xds_addr.0 {
        Some(address) => listening("xds", server.listen(address).await.with_context(|| cannot("xDS", address))?)?,
        None => not_listening("xds", "--xds-addr none")?,
    }
    match tls_files(args) {
        Some(files) => {
            let bound = server.listen_tls(args.secure_addr, &files).await;
            let bound = bound.with_context(|| cannot("secured xDS", args.secure_addr))?;
            listening("secured xds", bound)?;
        }
        None => not_listening("secured xds", "no --tls-cert and --tls-key")?,
    }
    if let Some(address) = args.ratelimit_addr {
        let bound = server.listen_rate_limits(address, tls_files(args).as_ref()).await;
        listening("rate limits", bound.with_context(|| cannot("rate limits", address))?)?;
    }
    // Who serves already, and only then writes.
    let elected = cluster.zip(args.kubernetes_lease.clone());
    let controller = args.gateway_controller.clone().unwrap_or_default();
    let elected = elected.map(|(cluster, lease)| Elected::start(&cluster, &plane, lease, controller));
    let webhook = match (args.admission_addr, tls_files(args)) {
        (Some(address), Some(files)) => {
            let (files, domain) = (files.client_ca(args.admission_client_ca.clone()), plane.trust_domain());
            let served = webhook::listen(address, files, domain, plane.clone(), &server, stopped.clone()).await;
            let (bound, task) = served.with_context(|| cannot("admission", address))?;
            listening("admission", bound)?;
            Some(task)
        }
        _ => None,
    };
    let bundle = match bundle_of {
        Some((address, authority)) => {
            let files = args.bundle_cert.as_ref().zip(args.bundle_key.as_ref());
            let files = files.map(|(cert, key)| TlsFiles::new(cert, key));
            let served = bundle::listen(address, files, authority, &server, stopped.clone()).await;
            let (bound, task) = served.with_context(|| cannot("the bundle", address))?;
            listening("bundle", bound)?;
            Some(task)
        }
        None => None,
    };
    let api = match (args.api_addr, tls_files(args), etcd) {
        (Some(address), Some(files), Some(client)) => {
            let objects = etcd::Objects::new(client, args.etcd.prefix());
            let served = api::listen(address, files, objects, allowed(args), &server, stopped.clone()).await;
            let (bound, task) = served.with_context(|| cannot("the API", address))?;
            listening("api", bound)?;
            Some(task)
        }
        _ => None,
    };
    let status = match args.status_addr.0 {
        Some(address) => {
            let names = args.status_host.clone();
            let served = status::listen(address, names, server.clone(), Arc::new(plane), stopped).await;
            let (bound, task) = served.with_context(|| cannot("status", address))?;
            listening("status", bound)?;
            Some(task)
        }
        None => {
            not_listening("status", "--status-addr none")?;
            None
        }
    };

    signals.next().await;
    let told = Instant::now();
    tracing::info!("stopping");
    let leaving = async {
        if let Some(elected) = elected {
            elected.stop().await;
        }
    };
    tokio::select! {
        ((), ()) = async { tokio::join!(server.shutdown(), leaving) } => {}
        () = after(told + SAME_SIGNAL, async || signals.next().await) => tracing::warn!("stopping at once"),
    }
    drop(following);
    stop.send_replace(true);
    for task in [webhook, bundle, api, status].into_iter().flatten() {
        task.await.context("the status page, the bundle, the API, or the webhook")?;
    }
    Ok(())
}

/// Who may use the API.
fn allowed(args: &Args) -> api::Allowed {
    api::Allowed {
        readers: args.api_reader.iter().cloned().collect(),
        writers: args.api_writer.iter().cloned().collect(),
        tokens: args.api_tokens.clone(),
    }
}

/// The files of the secured listeners.
fn tls_files(args: &Args) -> Option<TlsFiles> {
    let (cert, key) = args.tls_cert.as_ref().zip(args.tls_key.as_ref())?;
    Some(TlsFiles::new(cert, key).client_ca(args.client_ca.clone()))
}

/// Where quotas are kept.
fn quotas(args: &Args) -> anyhow::Result<Arc<Quotas>> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let store = match (&args.redis_url, &args.state_dir) {
        (Some(url), _) => quota::Store::in_redis(url.clone()),
        (None, Some(dir)) => quota::Store::in_dir(dir, now)
            .with_context(|| format!("cannot keep quotas in --state-dir {}", dir.display()))?,
        (None, None) => quota::Store::in_memory(),
    };
    Ok(Arc::new(Quotas::new(store)))
}

/// The rules of rate limits and their counters, where there is such a service.
fn rate_limits(args: &Args) -> anyhow::Result<Option<Arc<RateLimits>>> {
    let Some(dir) = &args.ratelimit_config else { return Ok(None) };
    let store = match &args.redis_url {
        Some(url) => Store::in_redis(url.clone(), args.ratelimit_keys),
        None => Store::in_memory(args.ratelimit_keys),
    };
    let limits = RateLimits::new(store).tells_headers(args.ratelimit_headers);
    limits.read(dir).with_context(|| format!("cannot read --ratelimit-config {}", dir.display()))?;
    if args.strict {
        let faults: String = limits.faults().iter().map(|fault| format!("\n  {fault}")).collect();
        if !faults.is_empty() {
            bail!("--strict, and the rules of rate limits in {} are wrong:{faults}", dir.display());
        }
    }
    Ok(Some(Arc::new(limits)))
}

/// The cluster that is served, which is followed from now on.
fn cluster(args: &Args) -> anyhow::Result<Cluster> {
    let access = match &args.kubeconfig {
        Some(file) => Access::of_kubeconfig(file).context("--kubeconfig")?,
        None => Access::of_pod(&args.kubernetes_ca, &args.kubernetes_token_file)?,
    };
    Ok(Cluster::follow(&kubernetes::Client::new(access), &args.kubernetes_namespaces))
}

/// Why these namespaces are too few of a mesh with this root namespace: what is in it is for all of them.
fn left_out(namespaces: &[String], root: &str) -> Option<String> {
    let is_followed = namespaces.is_empty() || root == ROOT_NAMESPACE || namespaces.iter().any(|name| name == root);
    (!is_followed).then(|| {
        format!(
            "the root namespace of the mesh is {root} (rootNamespace), and --kubernetes-namespaces does not name it: its policies \
             would be left out, which are for the whole mesh"
        )
    })
}

/// A task that follows something; it ends with this.
struct Following(tokio::task::JoinHandle<()>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Signals this soon after the first are the same one: `timeout` tells a process and then its group.
const SAME_SIGNAL: Duration = Duration::from_millis(250);

/// Who is given identities without proof has to be on this machine.
fn only_loopback(args: &Args) -> anyhow::Result<()> {
    let secured = args.tls_cert.as_ref().map(|_| args.secure_addr);
    let listeners = [
        ("--xds-addr", args.xds_addr.0),
        ("--status-addr", args.status_addr.0),
        ("--secure-addr", secured),
        ("--ratelimit-addr", args.ratelimit_addr),
        ("--admission-addr", args.admission_addr),
        ("--bundle-addr", args.bundle_addr),
        ("--api-addr", args.api_addr),
    ];
    for (option, address) in listeners {
        if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
            bail!(
                "--dev gives everybody who connects the identity that they name, and {option} {address} is reachable \
                 from other machines; use a loopback address, or leave --dev out"
            );
        }
    }
    tracing::warn!(
        "DEVELOPMENT MODE (--dev): everybody on this machine gets a certificate for any identity of its trust domain, and is \
         registered as whoever they say they are; never use it where others have an account"
    );
    Ok(())
}

/// Whether somebody said which authority the mesh has.
fn is_authority_named(args: &Args) -> bool {
    args.ca_dir.is_some() || args.dev
}

/// Whether it has one. Where there only is a place for it, one that the operator names goes before: a trust domain has one.
fn has_authority(args: &Args) -> bool {
    is_authority_named(args) || (args.state_dir.is_some() && args.client_ca.is_none())
}

/// Who vouches for workloads: a plugged-in authority, or one of our own where there is a place for it, or nobody needs
/// to prove anything to it.
fn authority(args: &Args, domain: &TrustDomain) -> anyhow::Result<Option<Arc<CertificateAuthority>>> {
    if !has_authority(args) {
        if trusts_others(args) {
            bail!(
                "--trust-bundle, and nobody is given certificates to trust others by: --state-dir, --ca-dir or --dev is needed"
            );
        }
        if args.state_dir.is_some() {
            tracing::info!("--client-ca names who vouches for workloads, so there is no authority in --state-dir");
        }
        return Ok(None);
    }
    let authority = super::ca::open(args.ca_dir.as_deref(), args.state_dir.as_deref(), domain)?;
    let authority = authority
        .trust_bundles(args.trust_bundle.clone(), endpoints(args), args.state_dir.as_deref(), SystemTime::now())
        .context("--trust-bundle")?;
    Ok(Some(Arc::new(authority)))
}

/// Where bundles of foreign trust domains are fetched.
fn endpoints(args: &Args) -> Vec<BundleEndpoint> {
    let web = args.trust_bundle_web.iter().cloned().map(|endpoint| endpoint.roots(args.trust_bundle_roots.clone()));
    let all = web.chain(args.trust_bundle_spiffe.iter().cloned());
    all.map(|endpoint| endpoint.least_refresh(args.trust_bundle_least_refresh)).collect()
}

/// Whether somebody of another trust domain may be trusted.
fn trusts_others(args: &Args) -> bool {
    !args.trust_bundle.is_empty() || !endpoints(args).is_empty()
}

/// Where records of calls are kept: in the state directory, whose lock this process holds.
fn calls(args: &Args) -> anyhow::Result<Option<Arc<Calls>>> {
    let calls = match &args.state_dir {
        _ if args.no_call_records => return Ok(None),
        None => Calls::in_memory(),
        Some(dir) => Calls::open(dir).with_context(|| format!("cannot keep records of calls in {}", dir.display()))?,
    };
    Ok(Some(Arc::new(calls)))
}

/// What is wrong, or that there is nothing: a mount that is missing looks like that.
fn strict_faults(plane: &Plane) -> Vec<String> {
    let mut faults: Vec<String> = plane.wrong().iter().map(ToString::to_string).collect();
    let is_missing = |finding: &Diagnostic| matches!(finding.code, Code::Vanished | Code::NotRead);
    let vanished = plane.diagnostics().into_iter().filter(is_missing);
    faults.extend(vanished.map(|finding| finding.to_string()));
    if faults.is_empty() && plane.objects() == 0 {
        faults.push("there is no object in it".to_owned());
    }
    faults
}

fn cannot_start(args: &Args) -> String {
    let state = args.state_dir.iter().map(|dir| format!(", or keep its state in {}", dir.display()));
    format!("cannot read {}{}", sources(args), state.collect::<String>())
}

/// Where the configuration comes from.
fn sources(args: &Args) -> String {
    let dir = args.config.iter().map(|dir| dir.display().to_string());
    let mut all: Vec<String> = dir.chain(args.kubernetes.then(|| "Kubernetes".to_owned())).collect();
    all.extend(args.etcd.is_named().then(|| "etcd".to_owned()));
    all.join(", ")
}

pub(super) fn namespace(text: &str) -> Result<String, String> {
    is_namespace(text).then(|| text.to_owned()).ok_or("expected the name of a namespace".to_owned())
}

/// The signals that end a command.
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub(super) fn new() -> anyhow::Result<Signals> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Ready with the first signal after this time.
async fn after(time: Instant, mut next: impl AsyncFnMut()) {
    loop {
        next().await;
        if Instant::now() > time {
            return;
        }
    }
}

/// Where to listen, if at all.
#[derive(Clone, Copy, Debug)]
struct Listen(Option<SocketAddr>);

fn listen(text: &str) -> Result<Listen, String> {
    if text == "none" { Ok(Listen(None)) } else { address(text).map(|address| Listen(Some(address))) }
}

#[expect(clippy::disallowed_methods, reason = "the command line is read before anything runs")]
fn address(text: &str) -> Result<SocketAddr, String> {
    let mut addresses = text.to_socket_addrs().map_err(|error| format!("expected HOST:PORT: {error}"))?;
    addresses.next().ok_or_else(|| "this host has no address".to_owned())
}

pub(super) fn trust_bundle(text: &str) -> Result<(TrustDomain, PathBuf), String> {
    let (domain, file) = text.split_once('=').filter(|(_, file)| !file.is_empty()).ok_or("expected DOMAIN=FILE")?;
    let domain = domain.parse::<TrustDomain>().map_err(|why| why.to_string())?;
    Ok((domain, PathBuf::from(file)))
}

fn web_endpoint(text: &str) -> Result<BundleEndpoint, String> {
    let (domain, url) = text.split_once('=').ok_or("expected DOMAIN=URL")?;
    let domain = domain.parse::<TrustDomain>().map_err(|why| why.to_string())?;
    BundleEndpoint::web(domain, url).map_err(|why| format!("{why:#}"))
}

fn spiffe_endpoint(text: &str) -> Result<BundleEndpoint, String> {
    let expected = || "expected DOMAIN=SPIFFE-ID@URL".to_owned();
    let (domain, endpoint) = text.split_once('=').ok_or_else(expected)?;
    // There is none in an ID.
    let (server, url) = endpoint.split_once('@').ok_or_else(expected)?;
    let domain = domain.parse::<TrustDomain>().map_err(|why| why.to_string())?;
    let server = server.parse::<SpiffeId>().map_err(|why| why.to_string())?;
    BundleEndpoint::spiffe(domain, server, url).map_err(|why| format!("{why:#}"))
}

/// In Istio's words.
fn outbound_traffic_policy(text: &str) -> Result<OutboundTrafficPolicy, String> {
    match text {
        "ALLOW_ANY" => Ok(OutboundTrafficPolicy::AllowAny),
        "REGISTRY_ONLY" => Ok(OutboundTrafficPolicy::RegistryOnly),
        _ => Err("expected ALLOW_ANY or REGISTRY_ONLY".to_owned()),
    }
}

fn certificate_ttl(text: &str) -> Result<Duration, String> {
    let ttl = seconds(text)?;
    match (1..=MAX_TTL.as_secs()).contains(&ttl.as_secs()) {
        true => Ok(ttl),
        false => Err(format!("expected 1 to {} seconds", MAX_TTL.as_secs())),
    }
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.trim_end_matches('s').parse().map_err(|_| "expected a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_namespaces_never_leave_out_the_root_namespace() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(left_out(&names(&["shop"]), "istio-system"), None, "it is followed anyway");
        assert_eq!(left_out(&[], "mesh-root"), None);
        assert_eq!(left_out(&names(&["shop", "mesh-root"]), "mesh-root"), None);
        assert!(left_out(&names(&["shop"]), "mesh-root").is_some_and(|why| why.contains("mesh-root")));
    }
}
