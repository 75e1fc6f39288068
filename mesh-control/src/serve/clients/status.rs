//! What the server knows, for people and for Prometheus.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::catalog::Client;
use crate::config::store::Standing;
use crate::quota::QuotaStatus;
use crate::ratelimit::RateLimitStatus;
use crate::serve::clients::authority::AuthorityStatus;
use crate::serve::clients::clock::now;
use crate::serve::clients::fleet::{ClientStatus, seconds, unix};
use crate::serve::clients::graph::{self, Graph};
use crate::serve::clients::issued::IssuedStatus;
use crate::serve::clients::metrics::{family, single};
use crate::serve::clients::presence::{Registered, Workload};
use crate::serve::clients::refusals::TurnedAwayStatus;
use crate::serve::clients::state::ServerState;
use crate::serve::clients::traffic::Caller;

/// What the rest of mesh-control has to say in a status report.
pub trait Inspect: Send + Sync + 'static {
    /// Whether there is a configuration to serve, and it is known what all of it governs.
    fn is_ready(&self) -> bool {
        true
    }

    /// What became of the source of the configuration that has been gone for the longest time, if any is, and for how long.
    fn stale(&self) -> Option<(String, Duration)> {
        None
    }

    /// What is wrong with the configuration.
    fn diagnostics(&self) -> Vec<DiagnosticStatus> {
        Vec::new()
    }

    /// What is wrong so that it is not in force, and what is instead.
    fn wrong(&self) -> Vec<WrongStatus> {
        Vec::new()
    }

    /// How often the configuration has changed since the start, and how often endpoints alone.
    fn changes(&self) -> Option<(u64, u64)> {
        None
    }

    /// How often objects of the configuration, and workloads, came (`add`), changed (`update`) and went (`delete`): by kind.
    fn events(&self) -> [BTreeMap<(&'static str, &'static str), u64>; 2] {
        Default::default()
    }

    /// How many services are known.
    fn services(&self) -> usize {
        0
    }

    /// Adds to what a client tells of a live request where the reasons are written.
    fn locate(&self, _client: &Client, _hop: &mut Value) {}

    /// Which services are known.
    fn service_list(&self) -> Vec<ServiceStatus> {
        Vec::new()
    }

    /// The objects of the configuration, those that are wrong among them.
    fn objects(&self) -> Vec<ObjectStatus> {
        Vec::new()
    }

    /// Why a request goes where it goes, as `mesh-control explain -o json` says it.
    ///
    /// # Errors
    /// What is wrong with the question.
    fn explain(&self, _question: &Question) -> Result<serde_json::Value, String> {
        Err("this server explains nothing".to_owned())
    }

    /// The routes that a workload (`NAMESPACE/NAME`) has to `HOST:PORT`.
    ///
    /// # Errors
    /// What is wrong with the question.
    fn routes(&self, _from: &str, _target: &str) -> Result<serde_json::Value, String> {
        Err("this server explains nothing".to_owned())
    }

    /// What the workloads that registered serve, by the text form of their keys.
    fn serving(&self) -> BTreeMap<String, Serving> {
        BTreeMap::new()
    }
}

/// A request that is asked about.
#[derive(Clone, Debug, Default, Deserialize)]
#[non_exhaustive]
pub struct Question {
    /// Who asks: `NAMESPACE/NAME`.
    pub from: String,
    /// The method.
    pub method: String,
    /// Where to: `http://HOST[:PORT]/PATH`.
    pub url: String,
    /// Headers, `NAME:VALUE`, one a line.
    #[serde(default)]
    pub headers: String,
}

/// A service that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ServiceStatus {
    /// Its full host name.
    pub host: String,
    /// Its namespace.
    pub namespace: String,
    /// `Kind namespace/name`.
    pub object: String,
    /// `file:line`.
    pub written: String,
    /// Its ports.
    pub ports: Vec<u16>,
    /// How many endpoints are known; those of one workload on several ports are as many.
    pub endpoints: usize,
}

/// An object of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ObjectStatus {
    /// `Kind namespace/name`.
    pub object: String,
    /// `file:line`.
    pub written: String,
    /// `in-force`, or the standing of what is wrong: `held`, `fails-closed`, `not-in-force` or `unread`.
    pub standing: String,
}

impl ObjectStatus {
    /// One that is written there.
    pub fn new(object: String, written: String, standing: &str) -> ObjectStatus {
        ObjectStatus { object, written, standing: standing.to_owned() }
    }
}

/// What one workload serves.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Serving {
    /// `host:port` of every service of which it is an endpoint.
    pub services: Vec<String>,
    /// Why it is an endpoint of none, or gets no requests, or is not checked.
    pub note: Option<String>,
    /// Its labels with those of its group, where that is known.
    pub labels: Option<BTreeMap<String, String>>,
    /// The WorkloadGroup that it says it is a member of.
    pub group: Option<String>,
    /// How it is by the probe of that group: `healthy`, `unhealthy` or `unreported`.
    pub health: Option<String>,
    /// The hosts of the services that select it, whether or not it gets their requests.
    pub selected_by: Vec<String>,
}

/// Everything that a status report says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// The version of mesh-control.
    pub version: String,
    /// Unix time in seconds of its start.
    pub started: u64,
    /// Whether there is a configuration to serve.
    pub ready: bool,
    /// For how long a source of the configuration has been gone, in seconds, if one is: so old is what is in force of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_stale_seconds: Option<f64>,
    /// What became of that source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_stale_reason: Option<String>,
    /// How long it goes on settling after its start, in seconds.
    pub settling_seconds: Option<f64>,
    /// How many services it knows.
    pub services: usize,
    /// The authority that signs certificates, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<AuthorityStatus>,
    /// The certificates that it has issued and that hold, of each identity the last one, the next to end first.
    #[serde(default)]
    pub certificates: Vec<IssuedStatus>,
    /// Who is connected.
    pub clients: Vec<ClientStatus>,
    /// Who was turned away, the last one first.
    #[serde(default)]
    pub turned_away: Vec<TurnedAwayStatus>,
    /// Who registered itself.
    pub workloads: Vec<WorkloadStatus>,
    /// What is wrong with the configuration.
    pub diagnostics: Vec<DiagnosticStatus>,
    /// What is wrong so that it is not in force, and what is instead.
    #[serde(default)]
    pub wrong: Vec<WrongStatus>,
    /// The rate limit service, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limits: Option<RateLimitStatus>,
    /// Where quotas are kept, while that is away: no shares are assigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quotas_away: Option<String>,
}

/// An object or a text that is wrong, and what is in force instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WrongStatus {
    /// `Kind namespace/name`, where it is an object that says who it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The file that it is in.
    pub file: String,
    /// `held`: its last good state is in force. `fails-closed`: there is none, requests that it governs fail, and
    /// access logs that it governs (Telemetry) are not written. `not-in-force`: there is none, and no request fails for it, such as
    /// for a limit. `unread`: there is none, and nobody can tell what it governs.
    pub standing: String,
    /// What is wrong, with its place.
    pub reason: String,
}

/// A workload that registered itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkloadStatus {
    /// `node.id`
    pub node: String,
    /// Where it serves.
    pub address: SocketAddr,
    /// Its namespace.
    pub namespace: String,
    /// Its labels, with those of its WorkloadGroup.
    pub labels: BTreeMap<String, String>,
    /// The WorkloadGroup that it says it is a member of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// How it is by the probe of that group, where somebody asks it: `healthy` or `unhealthy`, as it was reported, or `unreported`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// Who it is, where its stream came with a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Whether it has a certificate of the mesh: `seen` on its stream, `claimed` by its label and not seen, `issued` here to its
    /// service account and not shown (as in development, where streams are plaintext), or `unseen`.
    #[serde(default)]
    pub certificate: String,
    /// `host:port` of every service of which it is an endpoint.
    pub serves: Vec<String>,
    /// The hosts of the services that select it, whether or not it gets their requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selected_by: Vec<String>,
    /// Why it is an endpoint of none, or gets no requests, or is not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Its stream is there.
    pub connected: bool,
    /// When its stream is gone: the seconds until it is no longer an endpoint.
    pub expires_seconds: Option<f64>,
}

/// Something wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DiagnosticStatus {
    /// `error`, `warning` or `info`.
    pub severity: String,
    /// Which kind of thing.
    pub code: String,
    /// In words.
    pub message: String,
    /// The object, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The field, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The file, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line in that file, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The column in that line, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
}

impl Serving {
    /// An endpoint of these services, each as `host:port`.
    pub fn new(services: Vec<String>) -> Serving {
        Serving { services, ..Serving::default() }
    }

    /// With the reason why it is an endpoint of none.
    pub fn note(mut self, note: impl Into<Option<String>>) -> Serving {
        self.note = note.into();
        self
    }
}

impl DiagnosticStatus {
    /// A finding about nothing in particular.
    pub fn new(severity: &str, code: &str, message: &str) -> DiagnosticStatus {
        DiagnosticStatus {
            severity: severity.to_owned(),
            code: code.to_owned(),
            message: message.to_owned(),
            object: None,
            field: None,
            file: None,
            line: None,
            column: None,
        }
    }
}

/// Whether there is a configuration to serve, and rules to answer by where rate limits are asked for.
pub(crate) fn is_ready(state: &ServerState, inspect: &dyn Inspect) -> bool {
    inspect.is_ready() && !state.rate_limits.as_ref().is_some_and(|limits| limits.is_without_rules())
}

/// Puts a report together, with so many of the names of each kind that a client asks for.
pub(crate) fn report(state: &ServerState, inspect: &dyn Inspect, names: usize) -> Status {
    let now = now();
    let mut serving = inspect.serving();
    let authority = state.desk.as_ref().map(|desk| desk.status(SystemTime::now()));
    let certificates = state.desk.as_ref().map(|desk| desk.held(SystemTime::now())).unwrap_or_default();
    let holders: HashSet<&str> = certificates.iter().map(|one| &*one.identity).collect();
    let has_one = |of: &Workload| {
        let domain = authority.as_ref().map_or("", |authority| &*authority.trust_domain);
        let (namespace, account) = (&of.client.namespace, &of.about.service_account);
        holders.contains(&*format!("spiffe://{domain}/ns/{namespace}/sa/{account}"))
    };
    let workloads =
        state.presence.registered().into_iter().map(|one| workload(one, &mut serving, has_one, now)).collect();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: unix(state.started),
        ready: is_ready(state, inspect),
        config_stale_seconds: inspect.stale().map(|(_, age)| seconds(age)),
        config_stale_reason: inspect.stale().map(|(why, _)| why),
        settling_seconds: state
            .settling
            .ends_at()
            .checked_duration_since(now)
            .filter(|left| !left.is_zero())
            .map(seconds),
        services: inspect.services(),
        workloads,
        authority,
        certificates,
        clients: state.fleet.all().iter().map(|stream| stream.status(names, now)).collect(),
        turned_away: state.refusals.report(now),
        diagnostics: inspect.diagnostics(),
        wrong: inspect.wrong(),
        rate_limits: state.rate_limits.as_ref().map(|limits| limits.status()),
        quotas_away: state.quotas.as_ref().and_then(|quotas| quotas.away()).map(str::to_owned),
    }
}

/// How quotas stand, where there are any.
pub(crate) fn quotas(state: &ServerState) -> Option<QuotaStatus> {
    let catalog = state.feed.latest();
    let limit = |quota: &str, rule: &str| catalog.quota(None, quota, rule);
    state.quotas.as_ref().map(|quotas| quotas.status(limit, since_1970(SystemTime::now())))
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The graph, as of now.
pub(crate) fn graph(state: &ServerState, inspect: &dyn Inspect) -> Graph {
    let mut serving = inspect.serving();
    let mut serves = BTreeMap::new();
    for Registered { workload, .. } in state.presence.registered() {
        let host = serving.remove(&workload.key().to_string()).and_then(|serving| {
            let hosts = serving.services.iter().filter_map(|service| service.rsplit_once(':'));
            hosts.map(|(host, _)| host.to_owned()).min()
        });
        if let Some(host) = host {
            let Caller { namespace, name, .. } = Caller::of(&workload.client, &workload.about);
            serves.entry((namespace, name)).or_insert(host);
        }
    }
    graph::graph(&state.traffic.edges(now()), &serves, &inspect.service_list())
}

fn workload(
    registered: Registered,
    serving: &mut BTreeMap<String, Serving>,
    has_certificate: impl Fn(&Workload) -> bool,
    now: Instant,
) -> WorkloadStatus {
    let Registered { workload, connected, expires } = registered;
    let serving = serving.remove(&workload.key().to_string()).unwrap_or_default();
    WorkloadStatus {
        node: workload.client.node_id.to_string(),
        address: workload.address,
        namespace: workload.client.namespace.to_string(),
        labels: serving.labels.unwrap_or_else(|| (*workload.client.labels).clone()),
        group: serving.group,
        health: serving.health,
        identity: workload.client.identity.as_ref().map(ToString::to_string),
        certificate: match (&workload.client.identity, workload.client.shows_certificate()) {
            (Some(_), _) => "seen",
            (None, true) => "claimed",
            (None, false) if has_certificate(&workload) => "issued",
            (None, false) => "unseen",
        }
        .to_owned(),
        serves: serving.services,
        selected_by: serving.selected_by,
        note: serving.note,
        connected,
        expires_seconds: expires.map(|at| seconds(at.saturating_duration_since(now))),
    }
}

/// The metrics as Prometheus text.
pub(crate) fn metrics(state: &ServerState, inspect: &dyn Inspect) -> String {
    let mut out = String::with_capacity(8 << 10);
    let mut streams: BTreeMap<(&'static str, &'static str), u64> = BTreeMap::new();
    for stream in state.fleet.all() {
        let session = stream.session();
        *streams.entry((session.client().class.name(), session.variant().name())).or_default() += 1;
    }
    let version = env!("CARGO_PKG_VERSION");
    family(&mut out, "istio_build", "gauge", "What runs.");
    let _ = writeln!(out, "istio_build{{component=\"pilot\",tag=\"{version}\"}} 1");
    let started = unix(state.started);
    single(&mut out, "process_start_time_seconds", "gauge", "Unix time of the start, in seconds.", started);
    if let Some((config, endpoints)) = inspect.changes() {
        family(&mut out, "pilot_push_triggers", "counter", "Changes that clients were told of, by what changed.");
        let _ = writeln!(out, "pilot_push_triggers{{type=\"config\"}} {config}");
        let _ = writeln!(out, "pilot_push_triggers{{type=\"endpoint\"}} {endpoints}");
    }
    for (name, counts) in ["pilot_k8s_cfg_events", "pilot_k8s_reg_events"].into_iter().zip(inspect.events()) {
        let of = if name.contains("cfg") { "Objects of the configuration" } else { "Workloads and endpoints" };
        family(&mut out, name, "counter", &format!("{of} that came, changed or went, by kind."));
        for ((kind, event), count) in counts {
            let _ = writeln!(out, "{name}{{type=\"{kind}\",event=\"{event}\"}} {count}");
        }
    }
    family(&mut out, "pilot_xds", "gauge", "Streams that are open.");
    let _ = writeln!(out, "pilot_xds{{version=\"{version}\"}} {}", streams.values().sum::<u64>());
    family(&mut out, "mesh_xds_connections", "gauge", "Streams that are open, by class of client and protocol.");
    for ((class, protocol), count) in streams {
        let _ = writeln!(out, "mesh_xds_connections{{class=\"{class}\",protocol=\"{protocol}\"}} {count}");
    }
    state.metrics.write(&mut out);
    state.load.write(&mut out);
    let (edges, lost) = state.traffic.counts();
    let help = "Pairs of a workload and a service that requests were reported for lately.";
    single(&mut out, "mesh_traffic_edges", "gauge", help, edges as u64);
    single(&mut out, "mesh_traffic_lost_total", "counter", "Reports for which there was no room among them.", lost);
    state.refusals.write(&mut out);
    if let Some(limits) = &state.rate_limits {
        limits.write(&mut out);
    }
    if let Some(quotas) = &state.quotas {
        let catalog = state.feed.latest();
        quotas.write(|quota, rule| catalog.quota(None, quota, rule), since_1970(SystemTime::now()), &mut out);
    }
    if let Some(desk) = &state.desk {
        desk.write(&mut out, SystemTime::now());
    }
    let workloads = state.presence.registered().len() as u64;
    single(&mut out, "mesh_registered_workloads", "gauge", "Workloads that registered themselves.", workloads);
    single(&mut out, "pilot_services", "gauge", "Services that are known.", inspect.services() as u64);
    let mut severities = BTreeMap::from([("error".to_owned(), 0), ("warning".to_owned(), 0), ("info".to_owned(), 0)]);
    for diagnostic in inspect.diagnostics() {
        *severities.entry(diagnostic.severity).or_insert(0) += 1;
    }
    family(&mut out, "mesh_config_diagnostics", "gauge", "What is wrong with the configuration, by severity.");
    for (severity, count) in severities {
        let _ = writeln!(out, "mesh_config_diagnostics{{severity=\"{severity}\"}} {count}");
    }
    let mut standings = BTreeMap::from(Standing::ALL.map(|standing| (standing.as_str().to_owned(), 0)));
    for wrong in inspect.wrong() {
        *standings.entry(wrong.standing).or_insert(0) += 1;
    }
    family(&mut out, "mesh_config_wrong", "gauge", "What is wrong and not in force, by what is in force instead.");
    for (standing, count) in standings {
        let _ = writeln!(out, "mesh_config_wrong{{standing=\"{standing}\"}} {count}");
    }
    let stale = inspect.stale().map_or(0, |(_, age)| age.as_secs().max(1));
    let help =
        "For how long a source of the configuration (its directory, Kubernetes) has been gone; 0 while all are there.";
    single(&mut out, "mesh_config_stale_seconds", "gauge", help, stale);
    single(
        &mut out,
        "mesh_ready",
        "gauge",
        "Whether there is a configuration to serve.",
        is_ready(state, inspect).into(),
    );
    out
}
