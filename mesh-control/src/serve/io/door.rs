//! How connections get in: from accepted to known. Each has its own task, and a client a share of what there is, so that none of
//! them holds up the others.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_core::error::Invalid;
use mesh_core::request::client_of;
use mesh_core::tls::svid;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::serve::clients::clock::now;
use crate::serve::clients::refusals::{Port, Reason};
use crate::serve::clients::state::ServerState;
use crate::serve::io::server::{Conn, Io, Peer};

/// Connections that are on their way in at a time: a byte is waited for, or a handshake goes on. The others wait for their turn.
const TURNS: usize = 256;
/// And of one client.
const TURNS_OF_A_CLIENT: usize = 64;
/// Connections of one client that wait or have their turn. It is closed what comes beyond that. Two thousand workloads behind one
/// address may renew at once.
const WAITING_OF_A_CLIENT: usize = 2048;
/// How long a client may take to its first byte. Whoever speaks TLS or HTTP/2 begins at once.
const FIRST_BYTE: Duration = Duration::from_secs(3);
/// How long a handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);

/// What a listener does with the connections that it accepts.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) connections: mpsc::Sender<Conn>,
    port: Port,
    state: Arc<ServerState>,
    turns: Turns,
    /// Whether everybody has to show a certificate.
    verifies: bool,
}

impl Door {
    pub(crate) fn new(connections: mpsc::Sender<Conn>, port: Port, state: Arc<ServerState>, verifies: bool) -> Door {
        Door { connections, port, state, turns: Turns::default(), verifies }
    }

    pub(crate) async fn plaintext(&self, stream: TcpStream, peer: SocketAddr) {
        self.hand_over(Conn::plaintext(stream, peer)).await;
    }

    /// Lets a connection in when it is its turn and its client has begun to speak: `open` is given the first byte, which is still to
    /// be read. It waits for nobody.
    pub(crate) fn let_in<O>(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        open: impl FnOnce(Door, TcpStream, u8) -> O + Send + 'static,
    ) where
        O: Future<Output = Option<Conn>> + Send,
    {
        let Some(turn) = self.turns.enter(peer.ip()) else {
            let why =
                format!("its address has {WAITING_OF_A_CLIENT} connections that are not open yet, and gets no more");
            return self.refused(peer, Reason::Limit, &why);
        };
        let door = self.clone();
        tokio::spawn(async move {
            let connection = turn
                .taken(async {
                    let mut first = [0];
                    match tokio::time::timeout(FIRST_BYTE, stream.peek(&mut first)).await {
                        Ok(Ok(1)) => open(door.clone(), stream, first[0]).await,
                        // It is gone.
                        Ok(_) => None,
                        Err(_) => {
                            door.refused(
                                peer,
                                Reason::Handshake,
                                &format!("it said nothing within {} s", FIRST_BYTE.as_secs()),
                            );
                            None
                        }
                    }
                })
                .await;
            if let Some(connection) = connection.flatten() {
                door.hand_over(connection).await;
            }
        });
    }

    /// A connection whose handshake comes to a good end.
    pub(crate) async fn tls(&self, acceptor: TlsAcceptor, stream: TcpStream, peer: SocketAddr) -> Option<Conn> {
        let stream = match tokio::time::timeout(HANDSHAKE_PATIENCE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.refused(peer, reason_of(&error), &error.to_string());
                return None;
            }
            Err(_) => {
                self.refused(peer, Reason::Handshake, "it did not come to an end in time");
                return None;
            }
        };
        let chain = stream.get_ref().1.peer_certificates();
        let identity = match chain.and_then(|chain| chain.first()) {
            Some(leaf) => Some(svid::id(leaf)),
            None if self.verifies => Some(Err(Invalid::new("there is none"))),
            None => None,
        };
        let expires = chain.and_then(|chain| svid::not_after(chain.first()?).ok());
        let chain = chain.map(|chain| chain.iter().cloned().map(CertificateDer::into_owned).collect());
        let peer = Peer { ip: peer.ip(), is_secured: true, identity, chain, expires, asked: Arc::default() };
        Some(Conn { peer, io: Io::Tls(Box::new(stream)) })
    }

    fn refused(&self, peer: SocketAddr, reason: Reason, why: &str) {
        self.state.refusals.note_at(self.port, peer.ip(), reason, why, now());
    }

    async fn hand_over(&self, connection: Conn) {
        // The server may have stopped meanwhile.
        let _ = self.connections.send(connection).await;
    }
}

/// Whose turn it is.
#[derive(Clone)]
struct Turns {
    all: Arc<Semaphore>,
    clients: Arc<Mutex<HashMap<IpAddr, Client>>>,
}

struct Client {
    turns: Arc<Semaphore>,
    present: usize,
}

/// A connection that waits for its turn, or has it, until it is dropped.
struct Turn {
    turns: Turns,
    client: IpAddr,
    own: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns { all: Arc::new(Semaphore::new(TURNS)), clients: Arc::default() }
    }
}

impl Turns {
    /// `None` where too many of its client are here already.
    fn enter(&self, address: IpAddr) -> Option<Turn> {
        let client = client_of(address);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Client { turns: Arc::new(Semaphore::new(TURNS_OF_A_CLIENT)), present: 0 };
        let entry = clients.entry(client).or_insert_with(new);
        if entry.present >= WAITING_OF_A_CLIENT {
            return None;
        }
        entry.present += 1;
        Some(Turn { turns: self.clone(), client, own: entry.turns.clone() })
    }
}

impl Turn {
    /// What comes of it, once it is this connection's turn: among those of its client first, and then among all.
    async fn taken<T>(self, work: impl Future<Output = T>) -> Option<T> {
        let _turn: [SemaphorePermit<'_>; 2] = [self.own.acquire().await.ok()?, self.turns.all.acquire().await.ok()?];
        Some(work.await)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut clients = self.turns.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get_mut(&self.client) {
            client.present = client.present.saturating_sub(1);
            if client.present == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

/// The next connection, as long as there is a server to take it.
pub(crate) async fn accept(listener: &TcpListener, server: &mpsc::Sender<Conn>) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = server.closed() => return None,
        };
        match accepted {
            Ok((stream, peer)) => {
                // A response is written in pieces, and each is waited for.
                let _ = stream.set_nodelay(true);
                return Some((stream, peer));
            }
            Err(error) => {
                // Out of file descriptors, most likely: trying again at once would only burn time.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Why a handshake failed.
fn reason_of(error: &io::Error) -> Reason {
    match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::NoCertificatesPresented) => Reason::NoCertificate,
        Some(rustls::Error::InvalidCertificate(_)) => Reason::BadCertificate,
        _ => Reason::Handshake,
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn c14_connections_of_one_client_that_say_nothing_hold_up_nobody_else() {
        let (turns, mut context) = (Turns::default(), Context::from_waker(Waker::noop()));
        let [one, other]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|address| address.parse().unwrap());
        let silent: Vec<Turn> = (0..WAITING_OF_A_CLIENT).map(|_| turns.enter(one).expect("it may wait")).collect();
        assert!(turns.enter(one).is_none(), "it has too many");
        let mut silent: Vec<_> = silent.into_iter().map(|turn| Box::pin(turn.taken(pending::<()>()))).collect();
        assert!(silent.iter_mut().all(|turn| turn.as_mut().poll(&mut context).is_pending()));
        let turn = turns.enter(other).expect("another client");
        assert_eq!(pin!(turn.taken(ready(7))).poll(&mut context), Poll::Ready(Some(7)));
        // Its own wait for their turn, and have it when others have gone.
        silent.truncate(TURNS_OF_A_CLIENT);
        let mut next = pin!(turns.enter(one).expect("others have gone").taken(ready(7)));
        assert!(next.as_mut().poll(&mut context).is_pending());
        silent.clear();
        assert_eq!(next.as_mut().poll(&mut context), Poll::Ready(Some(7)));
        assert!(turns.clients.lock().unwrap().is_empty(), "whoever is gone leaves nothing behind");
    }

    #[test]
    fn two_thousand_workloads_behind_one_address_may_come_at_once() {
        let (turns, gateway) = (Turns::default(), "10.0.0.1".parse().unwrap());
        let all: Vec<Option<Turn>> = (0..2_000).map(|_| turns.enter(gateway)).collect();
        assert!(all.iter().all(Option::is_some));
    }
}
