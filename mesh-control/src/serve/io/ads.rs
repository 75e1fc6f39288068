//! The gRPC service. One task per stream moves requests into its [`Session`] and responses out of it, one
//! at a time and only when the client has taken the one before; it decides nothing.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use futures_util::FutureExt;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use mesh_core::tls::svid;
use mesh_core::xds::access_log::CALLS;
use mesh_core::xds::istio_ca::ROOTS;
use mesh_core::xds::live_trace::TRACES;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};

use crate::catalog::{Catalog, Client, Kind};
use crate::serve::clients::clock::now;
use crate::serve::clients::fleet::ClientStream;
use crate::serve::clients::metrics::short;
use crate::serve::clients::node::About;
use crate::serve::clients::presence::Workload;
use crate::serve::clients::refusals::Reason;
use crate::serve::clients::state::ServerState;
use crate::serve::io::blocks::Blocks;
use crate::serve::io::guest::{FAR, FIRST, certificate_ends, identify, still_holds};
use crate::serve::io::server::Peer;
use crate::serve::io::wire::{self, Requests};
use crate::serve::protocol::session::{Answer, Heard, Opening, Response, Session, Variant};
use crate::serve::protocol::{delta, sotw};

/// The largest request; a list of a hundred thousand long names, with versions.
const MAX_REQUEST: usize = 32 << 20;

/// One of the two methods of the service.
trait Method: Send + 'static {
    type Request: Message + Default + Send + 'static;
    const VARIANT: Variant;
    fn node(request: &Self::Request) -> Option<&Node>;
    fn hear(session: &mut Session, request: &Self::Request, now: Instant) -> Heard;
}

struct Sotw;

impl Method for Sotw {
    type Request = DiscoveryRequest;
    const VARIANT: Variant = Variant::Sotw;

    fn node(request: &DiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn hear(session: &mut Session, request: &DiscoveryRequest, now: Instant) -> Heard {
        sotw::on_request(session, request, now)
    }
}

struct Delta;

impl Method for Delta {
    type Request = DeltaDiscoveryRequest;
    const VARIANT: Variant = Variant::Delta;

    fn node(request: &DeltaDiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn hear(session: &mut Session, request: &DeltaDiscoveryRequest, now: Instant) -> Heard {
        delta::on_request(session, request, now)
    }
}

/// The `AggregatedDiscoveryService` as a tower service.
#[derive(Clone)]
pub(crate) struct Ads {
    state: Arc<ServerState>,
    blocks: Arc<Blocks>,
}

impl Ads {
    pub(crate) fn new(state: Arc<ServerState>) -> Ads {
        Ads { state, blocks: Arc::default() }
    }
}

impl NamedService for Ads {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl tonic::codegen::Service<http::Request<Body>> for Ads {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let ads = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path().rsplit('/').next() {
                Some("StreamAggregatedResources") => answer::<Sotw>(ads, request),
                Some("DeltaAggregatedResources") => answer::<Delta>(ads, request),
                _ => Err(Status::unimplemented("no such method")),
            }
            .unwrap_or_else(Status::into_http))
        })
    }
}

/// Begins a stream, unless too many do.
fn answer<M: Method>(ads: Ads, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
    let Ads { state, blocks } = ads;
    let peer = request.extensions().get::<Peer>().cloned();
    let peer = peer.ok_or_else(|| Status::internal("a connection without an address"))?;
    if request.headers().get("grpc-encoding").is_some_and(|encoding| encoding != "identity") {
        return Err(Status::unimplemented("requests may not be compressed"));
    }
    let admitted = {
        let mut admission = state.admission.lock().unwrap_or_else(PoisonError::into_inner);
        admission.admit(now())
    };
    let Ok(wait) = admitted else {
        state.metrics.turned_away();
        return Err(Status::unavailable("too many streams began at once; try again later"));
    };
    state.settling.on_stream(wait, now());
    let requests = Requests::new(request.into_body(), MAX_REQUEST);
    // One response of room: what a slow client has not taken is not made yet.
    let (sender, receiver) = mpsc::channel(1);
    let mut response = http::Response::new(wire::responses(receiver, blocks));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if let Some(roots) = state.desk.as_ref().and_then(|desk| desk.authority().roots_name().parse().ok()) {
        headers.insert(ROOTS, roots);
    }
    headers.insert(TRACES, HeaderValue::from_static("1"));
    if state.calls.is_some() {
        headers.insert(CALLS, HeaderValue::from_static("1"));
    }
    tokio::spawn(converse::<M>(state, peer, wait, requests, sender));
    Ok(response)
}

// A channel has memory for more than it may hold: 32 at a time.
type Sender = mpsc::Sender<Result<Box<Response>, Status>>;

/// The life of one stream. It ends when the client goes, when the connection breaks (both ends of the
/// channels then close), by age, or when the server stops.
async fn converse<M: Method>(
    state: Arc<ServerState>,
    peer: Peer,
    wait: Duration,
    mut requests: Requests<M::Request>,
    sender: Sender,
) {
    let mut stop = state.stop.clone();
    let first = async {
        tokio::time::sleep(wait).await;
        tokio::time::timeout(FIRST, requests.message()).await
    };
    let first = tokio::select! {
        first = first => first,
        _ = stop.wait_for(|stop| *stop) => return,
        () = sender.closed() => return,
    };
    let request = match first {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) => return,
        Ok(Err(status)) => return fail(&sender, status).await,
        Err(_) => {
            return fail(&sender, Status::deadline_exceeded("no request on this stream")).await;
        }
    };
    let anonymous = Node::default();
    let node = M::node(&request).unwrap_or(&anonymous);
    let catalog = state.feed.latest();
    // From before the look at the certificate, so that nothing is missed in between.
    let revoked = state.revoked.subscribe();
    let client = identify(node, &peer).and_then(|client| match still_holds(&state, &peer) {
        Ok(()) => Ok(client),
        Err(status) => Err((Reason::Identity, status)),
    });
    let client = client.and_then(|client| served(client, &*catalog));
    let client = match client {
        Ok(client) => client,
        Err((reason, status)) => {
            state.refusals.note(peer.ip, reason, &node.id, status.message(), now());
            return fail(&sender, status).await;
        }
    };
    let opening = Opening {
        client,
        catalog,
        pace: state.pace,
        settles_at: state.settling.ends_at(),
        tag: fastrand::u32(..),
        interner: state.interner.clone(),
    };
    let session = Session::new(M::VARIANT, opening, now());
    let mut about = About::read(node);
    // A certificate decides who somebody is, whatever the node leaves out.
    if let Some(Ok(identity)) = &peer.identity
        && let Some((_, account)) = identity.workload()
    {
        account.clone_into(&mut about.service_account);
    }
    let stream = match state.fleet.enter(session, about, certificate_of(&peer)) {
        Ok(stream) => stream,
        Err(why) => {
            state.refusals.note(peer.ip, Reason::Limit, &node.id, &why, now());
            return fail(&sender, Status::resource_exhausted(why)).await;
        }
    };
    let is_proxy = {
        let session = stream.session();
        session.client().sidecar.is_some() || session.client().is_gateway
    };
    let stay = Stay {
        stream,
        state: &state,
        expires: peer.expires,
        name_bytes: AtomicUsize::default(),
        served_at: is_proxy.then(Mutex::default),
    };
    state.metrics.stream_opened();
    tracing::debug!(node = node.id, peer = %peer.ip, protocol = M::VARIANT.name(), "stream opened");
    let end = exchange::<M>(&stay, request, &mut requests, &sender, revoked, stop).await;
    // A goodbye may lie unread behind the end of the stream: it makes the difference between an endpoint
    // that is gone and one that is waited for.
    while let Some(Ok(Some(request))) = requests.message().now_or_never() {
        if stay.hear::<M>(&request).is_err() {
            break;
        }
    }
    tracing::debug!(node = &*stay.stream.session().client().node_id, end = ?end, "stream ended");
    drop(stay);
    if let Err(status) = end {
        if status.code() == Code::Internal {
            state.metrics.failed();
        }
        fail(&sender, status).await;
    }
}

/// What a status report says of the certificate of a client.
fn certificate_of(peer: &Peer) -> Option<(String, SystemTime)> {
    let leaf = peer.chain.as_ref()?.first()?;
    Some((svid::serial(leaf)?, peer.expires?))
}

/// A client for which there is nothing is told so: an empty list would pass for all that there is.
fn served(client: Client, catalog: &dyn Catalog) -> Result<Client, (Reason, Status)> {
    match catalog.refusal(&client) {
        None => Ok(client),
        Some(why) => Err((Reason::Class, Status::unimplemented(why))),
    }
}

async fn fail(sender: &Sender, status: Status) {
    // The client may be gone: then there is nobody to tell.
    let _ = sender.send(Err(status)).await;
}

/// A stream's presence in the fleet, and its end in every case.
struct Stay<'a> {
    stream: Arc<ClientStream>,
    state: &'a Arc<ServerState>,
    /// Until when it is known who the client is.
    expires: Option<SystemTime>,
    /// How many bytes of names it asks for.
    name_bytes: AtomicUsize,
    /// Where it is registered, if it is a sidecar or a gateway: it announces itself by taking its listeners, and not by a name.
    served_at: Option<Mutex<ServedAt>>,
}

/// Where a proxy is registered.
#[derive(Default)]
struct ServedAt {
    all: BTreeSet<SocketAddr>,
    /// Where a gateway would be, and cannot be for now: somebody else is.
    refused: BTreeSet<SocketAddr>,
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        self.state.fleet.exit(&self.stream, self.name_bytes.load(Ordering::Relaxed));
        self.state.presence.lose(self.stream.id, now());
    }
}

/// Why a stream ended, if not with an error.
#[derive(Debug)]
enum End {
    ClientLeft,
    Age,
    CertificateEnded,
    Revoked,
    Stop,
}

async fn exchange<M: Method>(
    stay: &Stay<'_>,
    first: M::Request,
    requests: &mut Requests<M::Request>,
    sender: &Sender,
    mut revoked: watch::Receiver<()>,
    mut stop: watch::Receiver<bool>,
) -> Result<End, Status> {
    let state = stay.state;
    let mut news = stay.stream.news();
    // There may be a newer catalog than it began with.
    news.mark_changed();
    let age = state.max_stream_age.map(|age| age.mul_f64(0.9 + 0.2 * fastrand::f64()));
    let mut old = std::pin::pin!(tokio::time::sleep(age.unwrap_or(FAR)));
    // A client is who its certificate says for as long as that holds: it comes back with the next one.
    let mut certificate_ends = std::pin::pin!(certificate_ends(stay.expires));
    let mut dismissal = std::pin::pin!(stay.stream.dismissal());
    // From before the first try, so that nothing is missed in between.
    let mut freed = state.presence.freed();
    stay.attend_proxy(false)?;
    let mut has_registered = stay.hear::<M>(&first)?;
    // Thousands of names may be in it, and the stream may last for weeks.
    drop(first);
    let mut room = None;
    loop {
        if std::mem::take(&mut has_registered) {
            stay.until_known().await;
        }
        let wake = {
            let mut session = stay.stream.session();
            session.on_settling(state.settling.ends_at());
            let began = now();
            match room.take() {
                Some(permit) => match session.next(began) {
                    Some(response) => {
                        let bytes = response.resources.iter().map(|one| one.body.len()).sum();
                        state.metrics.pushed(response.kind, bytes, now().saturating_duration_since(began));
                        mpsc::Permit::send(permit, Ok(Box::new(response)));
                        continue;
                    }
                    None => {
                        room = Some(permit);
                        session.wakes_at(now())
                    }
                },
                None => None,
            }
        };
        tokio::select! {
            permit = sender.reserve(), if room.is_none() => match permit {
                Ok(permit) => room = Some(permit),
                Err(_) => return Ok(End::ClientLeft),
            },
            request = requests.message() => match request? {
                Some(request) => has_registered = stay.hear::<M>(&request)?,
                None => return Ok(End::ClientLeft),
            },
            Ok(()) = news.changed() => {
                if state.feed.has_ended() {
                    return Ok(End::Stop);
                }
                stay.refresh();
                stay.attend_proxy(false)?;
            }
            Ok(()) = freed.changed(), if stay.waits_for_address() => stay.attend_proxy(false)?,
            () = sleep_until(wake), if wake.is_some() => {}
            () = sender.closed() => return Ok(End::ClientLeft),
            why = &mut dismissal => {
                let client = stay.stream.session().client().clone();
                state.refusals.note(client.peer_ip, Reason::Registration, &client.node_id, &why, now());
                return Err(Status::permission_denied(why));
            }
            () = &mut old, if age.is_some() => return Ok(End::Age),
            () = &mut certificate_ends => return Ok(End::CertificateEnded),
            Ok(()) = revoked.changed() => return Ok(End::Revoked),
            _ = stop.wait_for(|stop| *stop) => return Ok(End::Stop),
        }
    }
}

impl Stay<'_> {
    /// Whether a workload registered by it.
    fn hear<M: Method>(&self, request: &M::Request) -> Result<bool, Status> {
        let heard = M::hear(&mut self.stream.session(), request, now());
        if self.stream.session().owes_answers() {
            // What is asked for now is told as it is now: the next beat of the feed may be a while away.
            self.refresh();
        }
        match &heard.answer {
            Some(Answer::Ack(kind)) => self.state.metrics.acked(*kind),
            Some(Answer::Nack(kind, text)) => self.refused(*kind, text),
            None => {}
        }
        if let Some(time) = heard.converged {
            self.state.metrics.converged(time);
        }
        if heard.overfull {
            return Err(Status::resource_exhausted("this stream asks for too many names"));
        }
        self.count_names()?;
        let has_taken = heard.brought_listeners || heard.answer == Some(Answer::Ack(Kind::Listener));
        if has_taken {
            self.attend_proxy(true)?;
        }
        self.attend(&heard)?;
        Ok(has_taken || !heard.joined.is_empty())
    }

    /// Waits until everybody may know of the workload: it is an endpoint before it is told to serve.
    async fn until_known(&self) {
        self.state.presence.known().await;
        self.refresh();
    }

    /// Tells the registry where a sidecar or a gateway serves. It comes to serve where it `has_taken` listeners, and stops as soon
    /// as the configuration says so.
    fn attend_proxy(&self, has_taken: bool) -> Result<(), Status> {
        let Some(served_at) = &self.served_at else { return Ok(()) };
        let client = self.stream.session().client().clone();
        let refuse = |why: String| {
            let why = format!("this workload cannot register: {why}");
            self.state.refusals.note(client.peer_ip, Reason::Registration, &client.node_id, &why, now());
            if client.is_gateway {
                // It has others to serve: those outside of the mesh.
                tracing::warn!(node = &*client.node_id, "{why}");
                return Ok(());
            }
            Err(Status::permission_denied(why))
        };
        let wanted = match self.state.feed.latest().served_at(&client) {
            Ok(wanted) => wanted,
            Err(why) => return refuse(why),
        };
        let workload = |address: SocketAddr| Workload::at(&client, &self.stream.about, address);
        let mut served_at = served_at.lock().unwrap_or_else(PoisonError::into_inner);
        let ServedAt { all, refused } = &mut *served_at;
        // Who is better proven may have an address by now: this one waits for it.
        all.retain(|address| {
            let is_held = self.state.presence.holds(self.stream.id, &workload(*address).key());
            if !is_held && wanted.contains(address) {
                refused.insert(*address);
            }
            is_held
        });
        // It may wait for an address that it does not want any more.
        let gone: Vec<SocketAddr> = all.union(refused).filter(|address| !wanted.contains(*address)).copied().collect();
        let new = wanted.difference(all).copied().filter(|address| has_taken || refused.contains(address));
        let new: Vec<SocketAddr> = new.collect();
        if gone.is_empty() && new.is_empty() {
            return Ok(());
        }
        for address in gone {
            all.remove(&address);
            refused.remove(&address);
            self.state.presence.leave(self.stream.id, &workload(address).key());
        }
        for address in new {
            match self.state.presence.join(self.stream.id, workload(address)) {
                Ok(()) => {
                    refused.remove(&address);
                    all.insert(address);
                }
                // It is tried again, and told once.
                Err(why) if refused.insert(address) => refuse(why)?,
                Err(_) => {}
            }
        }
        self.refresh();
        Ok(())
    }

    /// Whether a gateway would be where somebody else is.
    fn waits_for_address(&self) -> bool {
        self.served_at.as_ref().is_some_and(|served_at| {
            let served_at = served_at.lock().unwrap_or_else(PoisonError::into_inner);
            !served_at.refused.is_empty()
        })
    }

    /// Holds the identity to the names that it may ask for.
    fn count_names(&self) -> Result<(), Status> {
        let session = self.stream.session();
        let bytes = session.name_bytes();
        let before = self.name_bytes.swap(bytes, Ordering::Relaxed);
        let client = session.client();
        self.state.fleet.grow(client, before, bytes).map_err(|why| {
            self.state.refusals.note(client.peer_ip, Reason::Limit, &client.node_id, &why, now());
            Status::resource_exhausted(why)
        })
    }

    fn refused(&self, kind: Kind, text: &str) {
        self.state.metrics.nacked(kind);
        let text: String = text.chars().take(300).collect();
        let session = self.stream.session();
        tracing::warn!(node = &*session.client().node_id, kind = short(kind), text, "client refused a response");
    }

    /// Tells the registry who came and went, and takes the catalog that knows of it, if it is made already.
    fn attend(&self, heard: &Heard) -> Result<(), Status> {
        if heard.joined.is_empty() && heard.left.is_empty() {
            return Ok(());
        }
        let client = self.stream.session().client().clone();
        let about = &self.stream.about;
        let workloads = |names: &[Arc<str>]| -> Vec<Workload> {
            names.iter().filter_map(|name| Workload::announced(&client, about, name)).collect()
        };
        for workload in workloads(&heard.left) {
            self.state.presence.leave(self.stream.id, &workload.key());
        }
        for workload in workloads(&heard.joined) {
            if let Err(why) = self.state.presence.join(self.stream.id, workload) {
                let why = format!("this workload cannot register: {why}");
                self.state.refusals.note(client.peer_ip, Reason::Registration, &client.node_id, &why, now());
                return Err(Status::permission_denied(why));
            }
        }
        self.refresh();
        Ok(())
    }

    fn refresh(&self) {
        let mut session = self.stream.session();
        // Under its lock: it never goes back to an older one.
        let catalog = self.state.feed.latest();
        session.on_catalog(catalog, now());
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
