//! Everybody who is connected.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mesh_core::identity::SpiffeId;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::catalog::Client;
use crate::serve::clients::feed::Feed;
use crate::serve::clients::metrics::short;
use crate::serve::clients::node::About;
use crate::serve::clients::traffic::Caller;
use crate::serve::protocol::ledger::Report;
use crate::serve::protocol::session::Session;

/// One stream. Its session is locked for the time of one decision, by its own task and by a status
/// request, and never across an await.
pub(crate) struct ClientStream {
    pub(crate) id: u64,
    pub(crate) since: SystemTime,
    pub(crate) about: About,
    pub(crate) peer_ip: IpAddr,
    /// That of the certificate that the stream came with, and until when it holds.
    pub(crate) certificate: Option<(String, SystemTime)>,
    session: Mutex<Session>,
    /// Why it is to end, once it is.
    dismissed: watch::Sender<Option<String>>,
    /// Changes when it is to look at the newest catalog.
    news: watch::Sender<()>,
}

impl ClientStream {
    pub(crate) fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes when there is a newer catalog that may concern the stream, or none comes any more.
    pub(crate) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Has it look at the newest catalog. Where nothing in that concerns it, it is not woken, and just has that one from now on.
    fn tell(&self, feed: &Feed) {
        let passes_over = {
            let mut session = self.session();
            // Under its lock: it never goes back to an older one.
            let catalog = feed.latest();
            // Where a proxy serves may have changed.
            let is_proxy = session.client().sidecar.is_some() || session.client().is_gateway;
            !is_proxy && session.passes_over(&catalog)
        };
        if !passes_over {
            self.news.send_replace(());
        }
    }

    /// Waits until the stream is to end. Returns why.
    pub(crate) async fn dismissal(&self) -> String {
        let mut dismissed = self.dismissed.subscribe();
        let why = dismissed.wait_for(Option::is_some).await;
        // The sender lives as long as `self`.
        why.ok().and_then(|why| why.clone()).unwrap_or_default()
    }
}

/// Whose streams are counted together: an identity's that was proven, or those that come from one address without one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Identity(SpiffeId),
    Address(IpAddr),
}

impl Who {
    pub(crate) fn of(identity: Option<&SpiffeId>, ip: IpAddr) -> Who {
        identity.cloned().map_or(Who::Address(ip), Who::Identity)
    }

    fn of_client(client: &Client) -> Who {
        Who::of(client.identity.as_ref(), client.peer_ip)
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Who::Identity(identity) => write!(f, "{identity}"),
            Who::Address(address) => write!(f, "{address}, without a certificate,"),
        }
    }
}

/// How much one identity may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) streams: usize,
    pub(crate) name_bytes: usize,
}

#[derive(Debug, Default)]
struct Share {
    streams: usize,
    name_bytes: usize,
}

/// What each has.
type Shares = Mutex<BTreeMap<Who, Share>>;

fn lock(shares: &Shares) -> MutexGuard<'_, BTreeMap<Who, Share>> {
    shares.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts out a stream that asked for so many bytes of names.
fn leave(shares: &Shares, who: &Who, name_bytes: usize) {
    let mut shares = lock(shares);
    if let Some(share) = shares.get_mut(who) {
        share.streams = share.streams.saturating_sub(1);
        share.name_bytes = share.name_bytes.saturating_sub(name_bytes);
        if share.streams == 0 {
            shares.remove(who);
        }
    }
}

/// A place among the streams of somebody, until it is dropped.
pub(crate) struct Place {
    shares: Arc<Shares>,
    who: Who,
}

impl Drop for Place {
    fn drop(&mut self) {
        leave(&self.shares, &self.who, 0);
    }
}

/// All streams.
pub(crate) struct Fleet {
    streams: Mutex<BTreeMap<u64, Arc<ClientStream>>>,
    shares: Arc<Shares>,
    limits: Limits,
    last: AtomicU64,
}

impl Fleet {
    pub(crate) fn new(limits: Limits) -> Fleet {
        Fleet { streams: Mutex::default(), shares: Arc::default(), limits, last: AtomicU64::default() }
    }

    /// Takes in a stream, with the serial number and the end of the certificate that it came with.
    ///
    /// # Errors
    /// Its identity has too many.
    pub(crate) fn enter(
        &self,
        session: Session,
        about: About,
        certificate: Option<(String, SystemTime)>,
    ) -> Result<Arc<ClientStream>, String> {
        self.take_share(Who::of_client(session.client()))?;
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let stream = Arc::new(ClientStream {
            id,
            since: SystemTime::now(),
            about,
            peer_ip: session.client().peer_ip,
            certificate,
            session: Mutex::new(session),
            dismissed: watch::Sender::default(),
            news: watch::Sender::default(),
        });
        self.streams().insert(id, stream.clone());
        Ok(stream)
    }

    /// Counts in a stream of something else than resources, for as long as its place is held.
    ///
    /// # Errors
    /// Its identity has too many.
    pub(crate) fn place(&self, who: Who) -> Result<Place, String> {
        self.take_share(who.clone())?;
        Ok(Place { shares: Arc::clone(&self.shares), who })
    }

    fn take_share(&self, who: Who) -> Result<(), String> {
        let mut shares = self.shares();
        let has = shares.get(&who).map_or(0, |share| share.streams);
        if has >= self.limits.streams {
            return Err(format!(
                "{who} has {has} streams, and one identity gets no more (--streams-per-identity of mesh-control)"
            ));
        }
        shares.entry(who).or_default().streams += 1;
        Ok(())
    }

    /// Notes by how much the names of a stream have become more, from `before` bytes to `now`.
    ///
    /// # Errors
    /// Its identity asks for too many.
    pub(crate) fn grow(&self, client: &Client, before: usize, now: usize) -> Result<(), String> {
        if before == now {
            return Ok(());
        }
        let who = Who::of_client(client);
        let mut shares = self.shares();
        let share = shares.entry(who.clone()).or_default();
        share.name_bytes = (share.name_bytes + now).saturating_sub(before);
        if now > before && share.name_bytes > self.limits.name_bytes {
            let (has, most) = (share.name_bytes >> 20, self.limits.name_bytes >> 20);
            return Err(format!(
                "{who} asks for {has} MiB of names on all its streams together, and one identity gets no more than {most} \
                 (--name-mib-per-identity of mesh-control)"
            ));
        }
        Ok(())
    }

    /// Forgets a stream that asked for so many bytes of names.
    pub(crate) fn exit(&self, stream: &ClientStream, name_bytes: usize) {
        self.streams().remove(&stream.id);
        let who = Who::of_client(stream.session().client());
        leave(&self.shares, &who, name_bytes);
    }

    /// Ends a stream, with the reason.
    pub(crate) fn dismiss(&self, id: u64, why: String) {
        if let Some(stream) = self.streams().get(&id) {
            stream.dismissed.send_replace(Some(why));
        }
    }

    /// Tells the streams of newer catalogs, for as long as it is polled.
    pub(crate) async fn follow(&self, feed: &Feed) {
        let mut pulse = feed.pulse();
        while pulse.changed().await.is_ok() {
            self.tell(feed).await;
        }
        // They see for themselves that none comes any more.
        for stream in self.all() {
            stream.news.send_replace(());
        }
    }

    /// Tells all streams of the newest catalog.
    pub(crate) async fn tell(&self, feed: &Feed) {
        for stream in self.all() {
            stream.tell(feed);
            // There may be thousands of them, and others who wait.
            tokio::task::coop::consume_budget().await;
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.streams().len()
    }

    pub(crate) fn all(&self) -> Vec<Arc<ClientStream>> {
        self.streams().values().cloned().collect()
    }

    fn shares(&self) -> MutexGuard<'_, BTreeMap<Who, Share>> {
        lock(&self.shares)
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<ClientStream>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connected client, as `/status` tells it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ClientStatus {
    /// `node.id`
    pub node: String,
    /// `library`, `grpc` or `envoy`: the dialect it is served.
    pub class: String,
    /// `node.user_agent_name` and version.
    pub user_agent: String,
    /// The namespace in which its short names are resolved.
    pub namespace: String,
    /// The workload that it is of, NAMESPACE/NAME: who calls, in the graph.
    #[serde(default)]
    pub workload: String,
    /// Its labels, as it says them.
    pub labels: BTreeMap<String, String>,
    /// The WorkloadGroup that it says it is a member of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Who it is, where its stream came with a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The serial number of that certificate, in hexadecimal digits with colons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_serial: Option<String>,
    /// Unix time in seconds at which that certificate ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_expires: Option<u64>,
    /// Where its stream comes from.
    pub peer: IpAddr,
    /// `sotw` or `delta`.
    pub protocol: String,
    /// Unix time in seconds at which its stream began.
    pub connected_since: u64,
    /// What it asks for, by kind.
    pub kinds: Vec<KindStatus>,
}

/// What one client asked for of one kind, and what became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KindStatus {
    /// `cds`, `eds`, `lds` or `rds`.
    pub kind: String,
    /// `synced`, `pending` (sent, or to be sent, and not answered yet), `refused`, `settling` or `idle`.
    pub state: String,
    /// It asks for everything.
    pub wildcard: bool,
    /// How many names it asks for.
    pub subscribed: usize,
    /// The names, the first hundred of them unless more were asked for.
    pub names: Vec<NameStatus>,
    /// The version last sent; a hash over names and contents.
    pub sent_version: String,
    /// The version last accepted.
    pub acked_version: String,
    /// How long ago that was, in seconds.
    pub acked_seconds_ago: Option<f64>,
    /// For how long the oldest response has been unanswered, in seconds.
    pub pending_seconds: Option<f64>,
    /// How many names wait to be sent.
    pub unsent: usize,
    /// How many responses were sent.
    pub pushes: u64,
    /// How many of them were refused.
    pub nacks: u64,
    /// The last refusal, whether or not it was overcome since.
    pub last_nack: Option<NackStatus>,
}

/// One name that a client asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NameStatus {
    /// The name.
    pub name: String,
    /// The version that the client was last sent, if any.
    pub version: Option<String>,
    /// `sent`, `absent` (no such resource), `pending` or `refused`.
    pub state: String,
}

/// A refusal.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NackStatus {
    /// The client's own words.
    pub text: String,
    /// The resources in question.
    pub names: Vec<String>,
    /// How long ago, in seconds.
    pub seconds_ago: f64,
}

/// How many names of a kind are listed unless all are asked for.
pub(crate) const NAMES: usize = 100;

impl ClientStream {
    /// What there is to say about this stream.
    pub(crate) fn status(&self, names: usize, now: Instant) -> ClientStatus {
        let session = self.session();
        let client = session.client();
        ClientStatus {
            node: client.node_id.to_string(),
            class: client.class.name().to_owned(),
            user_agent: self.about.user_agent.clone(),
            namespace: client.namespace.to_string(),
            workload: Caller::of(client, &self.about).to_string(),
            labels: (*client.labels).clone(),
            group: client.group.as_deref().map(str::to_owned),
            identity: client.identity.as_ref().map(ToString::to_string),
            certificate_serial: self.certificate.as_ref().map(|(serial, _)| serial.clone()),
            certificate_expires: self.certificate.as_ref().map(|(_, expires)| unix(*expires)),
            peer: self.peer_ip,
            protocol: session.variant().name().to_owned(),
            connected_since: unix(self.since),
            kinds: session.reports().into_iter().map(|report| kind(report, names, now)).collect(),
        }
    }
}

fn kind(report: Report, limit: usize, now: Instant) -> KindStatus {
    let ago = |at: Instant| seconds(now.saturating_duration_since(at));
    let state = if report.refused {
        "refused"
    } else if report.settling > 0 && report.settling == report.unsent && report.pending_since.is_none() {
        "settling"
    } else if report.unsent > 0 || report.pending_since.is_some() {
        "pending"
    } else if report.names.is_empty() && !report.wildcard {
        "idle"
    } else {
        "synced"
    };
    let subscribed = report.names.len();
    let names = report.names.into_iter().take(limit).map(|name| NameStatus {
        name: name.name.to_string(),
        version: name.version.map(|version| version.to_string()),
        state: if name.refused {
            "refused"
        } else if name.pending {
            "pending"
        } else if name.absent {
            "absent"
        } else {
            "sent"
        }
        .to_owned(),
    });
    KindStatus {
        kind: short(report.kind).to_owned(),
        state: state.to_owned(),
        wildcard: report.wildcard,
        subscribed,
        names: names.collect(),
        sent_version: report.sent_version,
        acked_version: report.acked_version,
        acked_seconds_ago: report.acked_at.map(ago),
        pending_seconds: report.pending_since.map(ago),
        unsent: report.unsent,
        pushes: report.pushes,
        nacks: report.nacks,
        last_nack: report.nack.map(|nack| NackStatus {
            text: nack.text,
            names: nack.names.iter().map(|name| name.to_string()).collect(),
            seconds_ago: ago(nack.at),
        }),
    }
}

pub(crate) fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

pub(crate) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}
