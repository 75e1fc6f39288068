//! The control plane without its server: configuration and workloads in, [`Snapshot`]s out.
//!
//! A change of the configuration compiles a new policy; a workload that comes or goes changes the endpoints
//! of its services and nothing else. Every change publishes a new, immutable [`Snapshot`] to everyone who
//! watches. What was in force stays in force while a new configuration is wrong.

mod ended;
mod events;
mod followed;
mod gateway;
mod keys;
mod origins;
mod recent;
mod registered;
mod servers;
mod sidecar;
mod snapshot;
mod source;
mod summary;
mod verdict;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use mesh_core::identity::{SpiffeId, TrustDomain};
use tokio::sync::watch;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use crate::analysis::{examine, is_told_to_nobody};
use crate::catalog::Client;
use crate::config::istio::security::PLAINTEXT_KEYS;
use crate::config::load::Reach;
use crate::config::source::{ConfigStore, Directory};
use crate::config::store::{Loaded, Standing, Store, Update, Wrong};
use crate::config::support::ObjectKind;
use crate::config::{Code, Diagnostic, Objects, Severity};
use crate::jwks::KeyFetching;
use crate::policy::Policy;
use crate::policy::mesh::{Fixed, Given, MeshSettings};
pub use crate::policy::outbound::OutboundTrafficPolicy;
pub use crate::policy::paths::PathNormalization;
use crate::policy::tokens::{FetchedKeys, KeySource};
use crate::policy::traffic::ServerTls;
use crate::registry::{Discovered, Discovery, Endpoints, ServiceName};
use crate::render::judge::Judge;
use events::{Counts, Events};
use recent::Recent;
use snapshot::Compiled;
pub use snapshot::Snapshot;
use source::Source;
pub(crate) use source::Stale;
pub use summary::{EndpointSummary, PortSummary, ServiceSummary, WorkloadSummary};
pub(crate) use verdict::{Asked, Verdict};

/// The first workload that comes or goes is published at once; more of them within this time together.
const COALESCE: Duration = Duration::from_millis(10);

/// What a plane is made of.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct PlaneOptions {
    /// The directory with the configuration, read again whenever it changes.
    pub config_dir: Option<PathBuf>,
    /// Read the directories below it, too.
    pub recursive: bool,
    /// Take a directory that has been emptied at its word, instead of keeping what it held.
    pub allow_empty: bool,
    /// A file with the settings of the mesh (Istio's `MeshConfig`), read again whenever it changes. Without it, they are read
    /// from the ConfigMap `istio` of `istio-system`.
    pub mesh_config: Option<PathBuf>,
    /// What becomes of calls to hosts that no object describes. `None` leaves it to the mesh's settings, or to ALLOW_ANY.
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    /// What servers make of the paths of requests before anything looks at them. `None` leaves it to the mesh's settings.
    pub path_normalization: Option<PathNormalization>,
    /// Where the last good state of the directory's objects is kept, so that it survives a restart. It is for one server
    /// and its one directory alone: the start fails where another one uses it, or where it is of another configuration. An embedded one uses it
    /// until its `shutdown` has ended.
    pub state_dir: Option<PathBuf>,
    /// Let workloads serve that a `PeerAuthentication`, a `RequestAuthentication` or an `AuthorizationPolicy` guards which cannot
    /// be enforced: one that is wrong, that asks somebody whom nothing describes (CUSTOM), or that is STRICT where no
    /// certificates are issued; or that an `EnvoyFilter` or a `WasmPlugin` guards, or a file that cannot be read may guard. Without this, such workloads answer every request with 503 and the reason.
    pub allow_unenforced: bool,
    /// The trust domain of the mesh: whose identities its workloads have. `None` leaves it to the mesh's settings, or to
    /// `cluster.local`.
    pub trust_domain: Option<TrustDomain>,
    /// How the keys of issuers are fetched that a `RequestAuthentication` does not write down; see [`Plane::fetch_keys`].
    pub key_fetching: KeyFetching,
    /// Whether workloads get certificates of that trust domain from the server that this plane is behind.
    pub issues_certificates: bool,
    /// Whether workloads may do without: one that came with a certificate uses mutual TLS with others that did, and everybody
    /// else is called, and let in, in plaintext (PERMISSIVE) where no PeerAuthentication asks for more. Without this, mutual TLS
    /// is STRICT wherever certificates are issued.
    pub permissive: bool,
    /// Development mode: who a workload says it is counts without proof. Without this, the identity of a workload is that of the
    /// certificate that its stream came with, and nobody's where it came without one.
    pub trust_claims: bool,
    /// Whether workloads trust identities of foreign domains
    /// ([`CertificateAuthority::trust_bundles`](crate::ca::CertificateAuthority::trust_bundles)): a policy that lets in a namespace
    /// or a service account then means one of the mesh's own trust domain or its aliases.
    pub federated: bool,
}

impl PlaneOptions {
    /// Reads the configuration from this directory.
    pub fn config_dir(mut self, dir: impl Into<PathBuf>) -> PlaneOptions {
        self.config_dir = Some(dir.into());
        self
    }

    /// Reads the directories below that of the configuration, too, where they are asked for: copies that are out of force may lie
    /// there.
    pub fn recursive(mut self, is_recursive: bool) -> PlaneOptions {
        self.recursive = is_recursive;
        self
    }

    /// Reads the mesh's settings from this file.
    pub fn mesh_config(mut self, file: impl Into<PathBuf>) -> PlaneOptions {
        self.mesh_config = Some(file.into());
        self
    }

    /// What becomes of calls to hosts that no object describes.
    pub fn outbound_traffic_policy(mut self, policy: OutboundTrafficPolicy) -> PlaneOptions {
        self.outbound_traffic_policy = Some(policy);
        self
    }

    /// What servers make of the paths of requests before anything looks at them.
    pub fn path_normalization(mut self, normalization: PathNormalization) -> PlaneOptions {
        self.path_normalization = Some(normalization);
        self
    }

    /// Whether a directory that has been emptied is taken at its word.
    pub fn allow_empty(mut self, allowed: bool) -> PlaneOptions {
        self.allow_empty = allowed;
        self
    }

    /// Keeps the last good state in this directory, which is made if need be.
    pub fn state_dir(mut self, dir: impl Into<PathBuf>) -> PlaneOptions {
        self.state_dir = Some(dir.into());
        self
    }

    /// Whether workloads serve although what guards them is not enforced; see
    /// [`allow_unenforced`](field@Self::allow_unenforced).
    pub fn allow_unenforced(mut self, allowed: bool) -> PlaneOptions {
        self.allow_unenforced = allowed;
        self
    }

    /// The trust domain of the mesh, in place of `cluster.local`.
    pub fn trust_domain(mut self, domain: TrustDomain) -> PlaneOptions {
        self.trust_domain = Some(domain);
        self
    }

    /// What goes before the mesh's settings.
    fn given(&self) -> Given {
        Given {
            trust_domain: self.trust_domain.clone(),
            outbound: self.outbound_traffic_policy,
            paths: self.path_normalization,
            default_tls: self.issues_certificates.then_some(match self.permissive {
                true => ServerTls::Permissive,
                false => ServerTls::Strict,
            }),
            is_federated: self.federated,
        }
    }

    /// The directory, with the file of the mesh's settings.
    fn directory(&self) -> Option<Directory> {
        let reach = Reach::recursive(self.recursive);
        Some(Directory::new(self.config_dir.as_deref()?, reach, self.mesh_config.as_deref()))
    }

    /// Whether who a workload says it is counts without proof; see [`trust_claims`](field@Self::trust_claims).
    pub fn trust_claims(mut self, trusted: bool) -> PlaneOptions {
        self.trust_claims = trusted;
        self
    }

    /// Whether workloads may do without certificates; see [`permissive`](field@Self::permissive).
    pub fn permissive(mut self, permissive: bool) -> PlaneOptions {
        self.permissive = permissive;
        self
    }

    /// Fetches the keys of issuers like this.
    pub fn key_fetching(mut self, fetching: KeyFetching) -> PlaneOptions {
        self.key_fetching = fetching;
        self
    }

    /// Whether workloads trust foreign domains; see [`federated`](field@Self::federated).
    pub fn federated(mut self, federated: bool) -> PlaneOptions {
        self.federated = federated;
        self
    }

    /// Whether the server issues certificates; see [`issues_certificates`](field@Self::issues_certificates).
    pub fn issues_certificates(mut self, issues: bool) -> PlaneOptions {
        self.issues_certificates = issues;
        self
    }
}

/// The control plane without its server. Cheap to clone; the last clone ends its task.
#[derive(Clone, Debug)]
pub struct Plane {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: PlaneOptions,
    /// Locked before `live` where both are needed.
    store: Mutex<Store>,
    live: Mutex<Live>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    /// Workloads have come or gone, whether or not that is different for anybody.
    registrations: watch::Sender<()>,
    /// Those that follow where the configuration comes from.
    followers: Mutex<Vec<AbortHandle>>,
    /// What only a start takes: that of the first configuration.
    fixed: OnceLock<Fixed>,
    fetcher: OnceLock<AbortHandle>,
    /// What it has accepted stays accepted when the configuration changes.
    judge: Arc<Judge>,
    events: Mutex<Events>,
}

#[derive(Debug, Default)]
struct Live {
    compiled: Arc<Compiled>,
    endpoints: Endpoints,
    generation: u64,
    config_generation: u64,
    /// Where the configuration comes from, by name.
    sources: BTreeMap<String, Source>,
    published: Option<Instant>,
    is_due: bool,
    keys: Arc<FetchedKeys>,
    /// Why keys of some sources could not be fetched the last time.
    key_problems: BTreeMap<KeySource, String>,
    recent: Recent,
}

/// A text that is wrong; what it said before, if anything, stays in force.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// Why.
    pub diagnostics: Vec<Diagnostic>,
}

impl std::fmt::Display for Rejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the configuration is wrong")?;
        for finding in self.diagnostics.iter().filter(|finding| finding.rejects_object()) {
            write!(f, "\n{finding}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Rejected {}

impl Plane {
    /// Reads the configuration and keeps reading it. Fails only where the directory cannot be read at all;
    /// what is wrong in its files is a matter of [`Plane::diagnostics`].
    ///
    /// Must be called within a Tokio runtime where there is a directory to watch.
    pub fn start(options: PlaneOptions) -> io::Result<Plane> {
        Plane::start_beside(options, Vec::new())
    }

    /// The same, with what other places hold beside the directory: nothing is in force before all of it is known.
    pub(crate) fn start_beside(options: PlaneOptions, others: Vec<Synced>) -> io::Result<Plane> {
        let store = match &options.state_dir {
            Some(dir) => Store::with_state(options.allow_empty, dir, options.config_dir.as_deref())?,
            None => Store::new(options.allow_empty),
        };
        let plane = Plane::new(options, store);
        let mut all = others;
        if let Some(directory) = plane.inner.options.directory() {
            let watched = directory.watch()?;
            let first = Update::Directory(Ok(watched.scan()?));
            all.push(Synced { store: Box::new(watched), first });
        }
        if all.is_empty() {
            return Ok(plane);
        }
        let mut followed = Vec::new();
        let mut store = plane.inner.store.lock().unwrap_or_else(PoisonError::into_inner);
        for Synced { store: place, first } in all {
            store.take(first);
            followed.push(place);
        }
        drop(store);
        // Nothing is in force before that.
        plane.check_settings().map_err(io::Error::other)?;
        plane.inner.apply(|_| true);
        let follow = |place| tokio::spawn(follow(Arc::downgrade(&plane.inner), place)).abort_handle();
        *plane.inner.followers.lock().unwrap_or_else(PoisonError::into_inner) =
            followed.into_iter().map(follow).collect();
        Ok(plane)
    }

    /// Whether the mesh's settings can be started with: they are right, and say nothing else than the options.
    pub(crate) fn check_settings(&self) -> Result<(), String> {
        let store = self.inner.store.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = store.loaded();
        drop(store);
        let mut refused = loaded.objects.refused.iter();
        if let Some(wrong) = refused.find(|refused| refused.meta.kind == ObjectKind::MeshConfig) {
            return Err(format!("the settings of the mesh are wrong: {}", wrong.reason));
        }
        let (_, found) = MeshSettings::new(&loaded.objects, &self.inner.options.given(), None);
        found.first().map_or(Ok(()), |finding| Err(finding.to_string()))
    }

    /// The trust domain of the mesh.
    pub fn trust_domain(&self) -> TrustDomain {
        self.inner.live().compiled.policy.mesh.fixed.trust_domain.clone()
    }

    /// The namespace whose objects are for the whole mesh.
    pub(crate) fn root_namespace(&self) -> Arc<str> {
        self.inner.live().compiled.policy.mesh.fixed.root_namespace.clone()
    }

    /// A plane whose configuration is this text alone.
    pub fn from_yaml(text: &str) -> Result<Plane, Rejected> {
        let plane = Plane::empty();
        plane.set_yaml("config.yaml", text)?;
        Ok(plane)
    }

    /// A plane without any configuration.
    pub fn empty() -> Plane {
        Plane::new(PlaneOptions::default(), Store::default())
    }

    fn new(options: PlaneOptions, store: Store) -> Plane {
        // Whoever asks before there is any configuration is told the same.
        let mut live = Live::default();
        let (settings, _) = MeshSettings::new(&Objects::default(), &options.given(), None);
        let (mut policy, _) = Policy::new(&Objects::default(), settings);
        policy.trust_domain = options.issues_certificates.then(|| policy.mesh.fixed.trust_domain.clone());
        policy.security.is_permissive = options.permissive;
        policy.filters.is_lenient = options.allow_unenforced;
        let PlaneOptions { allow_unenforced, trust_claims, .. } = options;
        let judge = Arc::<Judge>::default();
        let compiled = Compiled { policy, allow_unenforced, trust_claims, judge: judge.clone(), ..Compiled::default() };
        live.compiled = Arc::new(compiled);
        let snapshot = Snapshot { compiled: live.compiled.clone(), ..Snapshot::default() };
        let inner = Inner {
            store: Mutex::new(store),
            options,
            live: Mutex::new(live),
            snapshots: watch::Sender::new(Arc::new(snapshot)),
            registrations: watch::Sender::new(()),
            followers: Mutex::default(),
            fixed: OnceLock::new(),
            fetcher: OnceLock::new(),
            judge,
            events: Mutex::default(),
        };
        Plane { inner: Arc::new(inner) }
    }

    /// Takes in a text under a name, as if it were a file of that name, in place of an earlier one. Returns
    /// the generation of the configuration in which it is in force.
    pub fn set_yaml(&self, name: &str, text: &str) -> Result<u64, Rejected> {
        let mut wrong = Vec::new();
        let generation = self.inner.apply(|store| {
            let (changed, diagnostics) = store.set_text(name, text);
            wrong = diagnostics;
            changed
        });
        if wrong.is_empty() { Ok(generation) } else { Err(Rejected { diagnostics: wrong }) }
    }

    /// Forgets a text. Returns the generation of the configuration without it.
    pub fn remove_yaml(&self, name: &str) -> u64 {
        self.inner.apply(|store| store.remove_text(name))
    }

    /// Reads the directory now, instead of soon. Returns the generation of the configuration in which what
    /// the directory holds at the time of the call is in force.
    pub async fn reload(&self) -> u64 {
        let inner = self.inner.clone();
        let reloaded = spawn_blocking(move || inner.rescan()).await;
        reloaded.unwrap_or_else(|_| self.inner.live().config_generation)
    }

    /// Leaves the state directory to another server: tasks that end may hold this plane a little longer.
    pub(crate) fn leave_state(&self) {
        self.inner.store.lock().unwrap_or_else(PoisonError::into_inner).leave_state();
    }

    /// The snapshots, as they are published.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.inner.snapshots.subscribe()
    }

    /// The snapshot as it is now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.inner.snapshots.borrow().clone()
    }

    /// Waits until a configuration of at least this generation is in force.
    pub async fn wait_for_config(&self, generation: u64) {
        let mut snapshots = self.subscribe();
        // It cannot fail: the sender lives as long as `self`.
        let _ = snapshots.wait_for(|snapshot| snapshot.config_generation() >= generation).await;
    }

    /// Who a workload is by mutual TLS: who its certificate says, or, in development mode, where none was seen, the service
    /// account that it names; `None` where it has no certificate, or nobody can have such a name.
    pub(crate) fn identity(&self, client: &Client, service_account: &str) -> Option<SpiffeId> {
        let snapshot = self.snapshot();
        let domain = snapshot.compiled.policy.trust_domain.as_ref().filter(|_| snapshot.is_certified(client))?;
        match &client.identity {
            Some(identity) => Some(identity.clone()),
            None => SpiffeId::of_workload(domain, &client.namespace, service_account).ok(),
        }
    }

    /// Everything there is to say: of the configuration, and of what was found when it was rendered for those who
    /// asked.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        self.diagnostics_at(SystemTime::now())
    }

    fn diagnostics_at(&self, now: SystemTime) -> Vec<Diagnostic> {
        let (compiled, unfetched) = {
            let live = self.inner.live();
            (live.compiled.clone(), keys::findings(&live))
        };
        let mut all = compiled.diagnostics.clone();
        compiled.pass_over_gateways(&mut all);
        all.extend(unfetched);
        all.extend(compiled.ended(now));
        let known: HashSet<String> = all.iter().map(ToString::to_string).collect();
        all.extend(compiled.found().into_iter().filter(|finding| !known.contains(&finding.to_string())));
        all
    }

    /// What is wrong, and what is in force instead.
    pub fn wrong(&self) -> Vec<Wrong> {
        self.inner.live().compiled.wrong.clone()
    }

    /// What there would be to say of this object of a cluster, beside everything that is in force: the same in the words of
    /// whoever knows the objects of its namespace alone comes second.
    pub(crate) fn review(&self, name: &Arc<str>, namespace: &str, text: Arc<str>) -> [Vec<Diagnostic>; 2] {
        let store = self.inner.store.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = store.with_resource(name, text);
        drop(store);
        let mut beside = loaded.clone();
        beside.objects.retain_namespace(namespace);
        [loaded, beside].map(|loaded| self.judged(name, loaded))
    }

    /// What there is to say of this object of a cluster among those that are loaded.
    fn judged(&self, name: &Arc<str>, loaded: Loaded) -> Vec<Diagnostic> {
        let (options, fixed) = (&self.inner.options, self.inner.fixed.get());
        let (_, mut found) = examine(loaded, &options.given(), fixed, &Judge::default());
        found.retain(|finding| finding.file == *name);
        self.inner.pass_over(&mut found);
        let may_be = self.inner.options.allow_unenforced;
        for finding in found.iter_mut().filter(|finding| may_be && finding.code == Code::Unenforced) {
            finding.severity = Severity::Warning;
        }
        found
    }

    /// What of the configuration comes from a place that is gone, and how old that is; of several, the one that is gone for the
    /// longest time.
    pub(crate) fn stale(&self) -> Option<Stale> {
        let now = Instant::now();
        let live = self.inner.live();
        live.sources.values().filter_map(|source| source.stale(now)).max_by_key(|stale| stale.age)
    }

    /// Takes in who serves these services, as a cluster says, in the place of what it said of them before.
    pub(crate) fn discover(&self, services: impl IntoIterator<Item = (ServiceName, Arc<[Discovered]>)>) {
        let mut live = self.inner.live();
        let compiled = live.compiled.clone();
        if live.endpoints.discover(&compiled.policy.services, services) {
            self.inner.events().note_workload("Endpoints", "update");
            self.inner.publish_soon(live);
        }
    }

    /// How often objects of the configuration, and workloads, came, changed and went.
    pub(crate) fn events(&self) -> [Counts; 2] {
        let events = self.inner.events();
        [events.of_objects.clone(), events.of_workloads.clone()]
    }

    /// How many objects of the configuration are in force.
    pub fn objects(&self) -> usize {
        self.inner.live().compiled.objects
    }

    /// Waits until the workloads that are registered now are published: for as long as their changes are gathered, at most.
    pub(crate) async fn published(&self) {
        let mut snapshots = self.inner.snapshots.subscribe();
        if self.inner.live().is_due {
            // The plane is still there, and so is who publishes.
            let _ = snapshots.changed().await;
        }
    }

    /// Every object of the configuration, those that are wrong among them: `Kind namespace/name`, and `file:line`.
    pub(crate) fn object_places(&self) -> Vec<(String, String)> {
        let store = self.inner.store.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = store.loaded();
        drop(store);
        loaded.objects.metas().map(|meta| (meta.id().to_string(), meta.origin.to_string())).collect()
    }

    /// All services, for people to look at.
    pub fn services(&self) -> Vec<ServiceSummary> {
        let snapshot = self.snapshot();
        let services = snapshot.compiled.policy.services.iter();
        let summaries = services.map(|(id, service)| {
            let endpoints = snapshot.endpoints.of(id);
            let ports = service.ports.iter().map(|port| PortSummary {
                number: port.number,
                name: port.name.to_string(),
                protocol: port.protocol.as_str(),
                endpoints: endpoints
                    .map(|endpoints| endpoints.of_port(port.number))
                    .unwrap_or_default()
                    .iter()
                    .map(|endpoint| EndpointSummary {
                        address: endpoint.address.to_string(),
                        workload: format!("{}/{}", endpoint.namespace, endpoint.workload),
                        weight: endpoint.weight,
                        self_registered: endpoint.key.is_some(),
                    })
                    .collect(),
            });
            ServiceSummary {
                host: service.host.to_string(),
                namespace: service.namespace.to_string(),
                object: service.meta.id().to_string(),
                written: service.meta.origin.to_string(),
                discovery: match service.discovery {
                    Discovery::Registry => "registry",
                    Discovery::Dns => "dns",
                    Discovery::LogicalDns => "logical-dns",
                    Discovery::Passthrough => "passthrough",
                    Discovery::Dynamic => "dynamic-dns",
                },
                ports: ports.collect(),
            }
        });
        summaries.collect()
    }
}

impl Inner {
    fn events(&self) -> MutexGuard<'_, Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the texts, and puts what they say now in force. Returns the configuration's generation.
    fn apply(&self, change: impl FnOnce(&mut Store) -> bool) -> u64 {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if !change(&mut store) {
            return self.live().config_generation;
        }
        let mut loaded = store.loaded();
        self.events().note(loaded.objects.metas());
        let objects = loaded.objects.len();
        let mut wrong = std::mem::take(&mut loaded.wrong);
        let (mut policy, mut diagnostics) = examine(loaded, &self.options.given(), self.fixed.get(), &self.judge);
        let untold = diagnostics.iter().filter(|finding| is_told_to_nobody(finding));
        wrong.extend(untold.map(|finding| Wrong::of_finding(finding, Standing::NotInForce)));
        self.fixed.get_or_init(|| policy.mesh.fixed.clone());
        let (unread, lets_any_pass) = (held_back(&wrong), policy.lets_any_pass());
        if unread.is_some() {
            policy.hold_back();
        }
        let held_back = unread.filter(|_| lets_any_pass);
        policy.trust_domain = self.options.issues_certificates.then(|| policy.mesh.fixed.trust_domain.clone());
        policy.security.is_permissive = self.options.permissive;
        policy.filters.is_lenient = self.options.allow_unenforced;
        self.pass_over(&mut diagnostics);
        let PlaneOptions { allow_unenforced, trust_claims, .. } = self.options;
        let (judge, cache) = (self.judge.clone(), Mutex::default());
        let compiled =
            Compiled { judge, policy, diagnostics, wrong, objects, held_back, allow_unenforced, trust_claims, cache };
        let compiled = Arc::new(compiled);
        let mut live = self.live();
        tell(&live.compiled, &compiled);
        let old = std::mem::replace(&mut live.compiled, compiled.clone());
        live.endpoints = Endpoints::new(&compiled.policy.services, &live.endpoints, &old.policy.services);
        live.config_generation += 1;
        let generation = live.config_generation;
        self.publish(&mut live);
        generation
    }

    /// Takes out what this server does, or was told to do.
    fn pass_over(&self, diagnostics: &mut Vec<Diagnostic>) {
        diagnostics.retain(|finding| !self.options.issues_certificates || finding.code != Code::NeedsCertificates);
        diagnostics.retain(|finding| !self.options.key_fetching.allow_insecure || finding.message != PLAINTEXT_KEYS);
    }

    fn rescan(&self) -> u64 {
        match self.options.directory() {
            Some(directory) => {
                let scan = directory.scan();
                self.take(&directory.name(), Update::Directory(scan))
            }
            None => self.live().config_generation,
        }
    }

    /// Takes in what a place says that it holds. Returns the configuration's generation.
    fn take(&self, place: &str, update: Update) -> u64 {
        let lost = match &update {
            Update::Resources { lost, .. } => lost.clone(),
            Update::Directory(_) => None,
        };
        let is_directory = matches!(update, Update::Directory(_));
        let mut is_held = false;
        let generation = self.apply(|store| {
            let changed = store.take(update);
            is_held = store.is_held();
            changed
        });
        let lost = match is_directory {
            true => is_held.then(|| "the directory of the configuration is gone, or empty".to_owned()),
            false => lost,
        };
        let mut live = self.live();
        let source = live.sources.entry(place.to_owned()).or_default();
        if let Some(stale) = source.look(lost, Instant::now()) {
            warn!(seconds = stale.age.as_secs(), "a part of the configuration is old: {}", stale.why);
        }
        generation
    }

    /// What anything in force says may be different from now on.
    fn publish(&self, live: &mut Live) {
        live.recent = Recent::default();
        live.endpoints.take_replaced();
        self.send(live);
    }

    fn send(&self, live: &mut Live) {
        live.generation += 1;
        live.is_due = false;
        let snapshot = Snapshot {
            generation: live.generation,
            config_generation: live.config_generation,
            compiled: live.compiled.clone(),
            endpoints: live.endpoints.snapshot(),
            keys: live.keys.clone(),
            recent: live.recent.clone(),
        };
        self.snapshots.send_replace(Arc::new(snapshot));
    }

    /// Publishes at once if nothing was published just now, and otherwise a moment later.
    fn publish_soon(self: &Arc<Self>, mut live: MutexGuard<'_, Live>) {
        if live.is_due {
            return;
        }
        let due = live.published.map(|published| published + COALESCE).filter(|due| *due > Instant::now());
        let runtime = tokio::runtime::Handle::try_current();
        match (due, runtime) {
            (Some(due), Ok(runtime)) => {
                live.is_due = true;
                let inner = Arc::downgrade(self);
                runtime.spawn(async move {
                    sleep_until(due).await;
                    if let Some(inner) = inner.upgrade() {
                        let mut live = inner.live();
                        if live.is_due {
                            inner.publish_endpoints(&mut live);
                        }
                    }
                });
            }
            _ => self.publish_endpoints(&mut live),
        }
    }

    /// Only these count as "just now": the first workload after a change of the configuration is not held back.
    fn publish_endpoints(&self, live: &mut Live) {
        let replaced = live.endpoints.take_replaced();
        live.recent.add(live.generation + 1, replaced);
        self.send(live);
        live.published = Some(Instant::now());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let followers = std::mem::take(self.followers.get_mut().unwrap_or_else(PoisonError::into_inner));
        for task in followers.iter().chain(self.fetcher.get()) {
            task.abort();
        }
    }
}

/// A place that holds objects of the configuration, and all that it holds.
pub(crate) struct Synced {
    store: Box<dyn ConfigStore>,
    first: Update,
}

impl Synced {
    /// Waits until it is known what a place holds; `None` if that never will be.
    pub(crate) async fn of(mut store: impl ConfigStore) -> Option<Synced> {
        let first = store.next().await?;
        Some(Synced { store: Box::new(store), first })
    }
}

async fn follow(inner: Weak<Inner>, mut store: Box<dyn ConfigStore>) {
    let name = store.name();
    while let Some(update) = store.next().await {
        let Some(inner) = inner.upgrade() else { return };
        let name = name.clone();
        if spawn_blocking(move || inner.take(&name, update)).await.is_err() {
            error!("reading the configuration failed; the last good state stays");
        }
    }
}

/// Why hosts that no object describes are not called: something may speak of any of them that nobody can read.
fn held_back(wrong: &[Wrong]) -> Option<String> {
    let unread = wrong.iter().find(|wrong| wrong.standing == Standing::Unread)?;
    Some(format!("no object describes it, and such hosts are not called while this cannot be read: {}", unread.reason))
}

/// Logs what was not the matter before.
fn tell(before: &Compiled, now: &Compiled) {
    let count = |severity| now.diagnostics.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    info!(objects = now.objects, errors, warnings, "configuration in force");
    if let Some(why) = now.held_back.as_ref().filter(|why| before.held_back.as_ref() != Some(why)) {
        error!("of a host that is asked for from now on: {why}");
    }
    let known: HashSet<String> = before.diagnostics.iter().map(ToString::to_string).collect();
    for finding in &now.diagnostics {
        let line = finding.to_string();
        if known.contains(&line) {
            continue;
        }
        match finding.severity {
            Severity::Error => error!("{line}"),
            Severity::Warning => warn!("{line}"),
            Severity::Info => {}
        }
    }
    // Of what is held, a finding says so.
    let not_held = now.wrong.iter().filter(|wrong| wrong.standing != Standing::Held);
    for wrong in not_held.filter(|wrong| !before.wrong.contains(wrong)) {
        error!("{wrong}");
    }
}
