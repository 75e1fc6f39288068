//! Who has a stream: what all services hold a client to, whatever is said on the stream.
//!
//! A client is who its certificate says, for as long as that holds: a stream ends when the certificate is revoked or ends, also
//! while nothing is said on it. How many streams one identity has is bounded.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::config::core::v3::Node;
use tokio::sync::watch;
use tonic::{Request, Status, Streaming};

use crate::catalog::Client;
use crate::serve::clients::clock::now;
use crate::serve::clients::fleet::{Place, Who};
use crate::serve::clients::node;
use crate::serve::clients::refusals::Reason;
use crate::serve::clients::state::ServerState;
use crate::serve::io::server::Peer;

/// A client that has opened a stream says who it is within this time.
pub(super) const FIRST: Duration = Duration::from_secs(15);
/// Long enough to be never, short enough for the timer.
pub(super) const FAR: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A client on a stream beside that of the resources, which has a share of the streams of its identity until it is dropped.
pub(super) struct Guest {
    state: Arc<ServerState>,
    peer: Peer,
    revoked: watch::Receiver<()>,
    _place: Place,
}

impl Guest {
    /// Lets a client in who opens a stream.
    ///
    /// # Errors
    /// Its certificate is not good any more, or its identity has too many streams.
    pub(super) fn enter<M>(state: &Arc<ServerState>, request: &Request<M>) -> Result<Guest, Status> {
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            return Err(Status::internal("a connection without an address"));
        };
        let refused = |reason, status: Status| {
            state.refusals.note(peer.ip, reason, "", status.message(), now());
            status
        };
        // From before the look at the certificate, so that nothing is missed in between.
        let revoked = state.revoked.subscribe();
        still_holds(state, &peer).map_err(|status| refused(Reason::Identity, status))?;
        let identity = peer.identity.as_ref().and_then(|identity| identity.as_ref().ok());
        let place = state.fleet.place(Who::of(identity, peer.ip));
        let place = place.map_err(|why| refused(Reason::Limit, Status::resource_exhausted(why)))?;
        Ok(Guest { state: Arc::clone(state), peer, revoked, _place: place })
    }

    /// The first message, by which a client says who it is; `None` where it leaves without one.
    ///
    /// # Errors
    /// It says nothing, or the stream is [over](Self::over).
    pub(super) async fn first<M>(&self, messages: &mut Streaming<M>) -> Result<Option<M>, Status> {
        tokio::select! {
            biased;
            status = self.over() => Err(status),
            first = tokio::time::timeout(FIRST, messages.message()) => {
                first.map_err(|_| Status::deadline_exceeded("the client does not say who it is"))?
            }
        }
    }

    /// Who the client is, by its certificate, which the node of its first message may not contradict; and that node.
    ///
    /// # Errors
    /// There is no node, or it claims to be somebody else.
    pub(super) fn client(&self, node: Option<Node>) -> Result<(Client, Node), Status> {
        let node = node.ok_or_else(|| Status::invalid_argument("the first message has no node"))?;
        match identify(&node, &self.peer) {
            Ok(client) => Ok((client, node)),
            Err((reason, status)) => Err(self.refused(reason, &node, status)),
        }
    }

    /// The namespace that its certificate says, where it has one.
    pub(super) fn namespace(&self) -> Option<Arc<str>> {
        let identity = self.peer.identity.as_ref()?;
        // Of one that names nobody it is that of nobody.
        Some(identity.as_ref().ok().and_then(|id| id.workload()).map_or("", |(namespace, _)| namespace).into())
    }

    /// Where it comes from.
    pub(super) fn ip(&self) -> IpAddr {
        self.peer.ip
    }

    /// Notes that the client is turned away.
    pub(super) fn refused(&self, reason: Reason, node: &Node, status: Status) -> Status {
        self.state.refusals.note(self.peer.ip, reason, &node.id, status.message(), now());
        status
    }

    /// Waits until the stream is over, whatever the client says, and returns why: the server stops, or the certificate is revoked
    /// or ends. Whoever serves a guest looks at this first.
    pub(super) fn over(&self) -> impl Future<Output = Status> + Send + use<> {
        let (state, peer, mut revoked) = (Arc::clone(&self.state), self.peer.clone(), self.revoked.clone());
        async move {
            let mut stop = state.stop.clone();
            let cut_off = async {
                // Others are revoked, too. The sender lives as long as `state`.
                while revoked.changed().await.is_ok() {
                    if let Err(status) = still_holds(&state, &peer) {
                        return status;
                    }
                }
                leaving()
            };
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => leaving(),
                status = cut_off => status,
                () = certificate_ends(peer.expires) => ended(),
            }
        }
    }
}

fn leaving() -> Status {
    Status::unavailable("the server stops")
}

fn ended() -> Status {
    Status::unauthenticated("the client certificate has ended: come back with the next one")
}

/// Waits until the certificate of a client ends; for ever where it has none.
pub(super) async fn certificate_ends(expires: Option<SystemTime>) {
    let Some(expires) = expires else { return std::future::pending().await };
    while let Some(left) = expires.duration_since(SystemTime::now()).ok().filter(|left| !left.is_zero()) {
        tokio::time::sleep(left.min(FAR)).await;
    }
}

/// Whether the certificate of a client still says who it is: it may have ended or been revoked since the connection was made.
pub(super) fn still_holds(state: &ServerState, peer: &Peer) -> Result<(), Status> {
    let now = SystemTime::now();
    if peer.expires.is_some_and(|expires| expires <= now) {
        return Err(ended());
    }
    let (Some(desk), Some(chain)) = (&state.desk, &peer.chain) else { return Ok(()) };
    let verified = desk.authority().verify(chain, now);
    verified.map_err(|why| Status::unauthenticated(format!("the client certificate is not good any more: {why:#}")))
}

/// A client with a certificate is who that says; its node may not claim to be somebody else.
pub(super) fn identify(node: &Node, peer: &Peer) -> Result<Client, (Reason, Status)> {
    let refused = |why: String| Err((Reason::Identity, Status::permission_denied(why)));
    if let Some(unreadable) = node::unreadable(node) {
        return Err((Reason::Node, Status::invalid_argument(unreadable)));
    }
    let mut client = node::read(node, peer.ip);
    match &peer.identity {
        None => {}
        Some(Err(anonymous)) => {
            return refused(format!("the client certificate names nobody: {anonymous}"));
        }
        Some(Ok(identity)) => {
            if let Some(contradiction) = node::contradiction(node, identity) {
                return refused(contradiction);
            }
            if let Some((namespace, _)) = identity.workload() {
                client.namespace = Arc::from(namespace);
            }
            client.identity = Some(identity.clone());
        }
    }
    Ok(client)
}
