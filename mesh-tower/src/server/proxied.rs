//! Connections that begin with a header of the PROXY protocol: until it is read, nobody knows whose they are.
//!
//! It is read past no byte of what comes after it, which may be TLS's. A connection without one is closed: whoever reaches the
//! listener past its load balancer must not be taken for the load balancer.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::id::ListenerName;
use mesh_core::proxy_protocol::{Parsed, parse};
use mesh_core::request::client_of;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};

use crate::listeners::{Headless, Listeners};

/// How long a header may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a header takes at most that is on its way.
const USUAL: Duration = Duration::from_secs(1);
/// How many connections may be without theirs at a time. One more takes the place of another one: whoever connects and says nothing
/// must not keep others from being accepted.
const MOST: usize = 1024;
/// How many bytes are looked at in one go: most headers are shorter.
const LOOK: usize = 256;

/// A connection whose header was read.
#[derive(Debug)]
pub(super) struct Proxied {
    pub(super) stream: TcpStream,
    /// Who the client is.
    pub(super) client: SocketAddr,
    /// Who has connected.
    pub(super) direct: SocketAddr,
}

/// Connections whose headers are being read.
#[derive(Debug)]
pub(super) struct Headers {
    reading: JoinSet<Option<Proxied>>,
    /// The same, the oldest first, each with who has connected. Some may be over.
    pending: VecDeque<(SocketAddr, Instant, AbortHandle)>,
    most: usize,
    usual: Duration,
}

impl Default for Headers {
    fn default() -> Self {
        Headers { reading: JoinSet::new(), pending: VecDeque::new(), most: MOST, usual: USUAL }
    }
}

impl Headers {
    /// Reads the header of one more.
    pub(super) fn read(
        &mut self,
        mut stream: TcpStream,
        direct: SocketAddr,
        listener: &ListenerName,
        listeners: &Arc<Listeners>,
    ) {
        self.make_room(listener, listeners);
        let (listener, listeners) = (listener.clone(), Arc::clone(listeners));
        let task = self.reading.spawn(async move {
            let read = tokio::time::timeout(PATIENCE, header(&mut stream)).await.unwrap_or_else(|_| Err(late()));
            match read {
                Ok(client) => Some(Proxied { stream, client: client.unwrap_or(direct), direct }),
                Err(error) => {
                    listeners.note_headless(&listener, direct, why(&error), &error.to_string());
                    None
                }
            }
        });
        self.pending.push_back((direct, Instant::now(), task));
    }

    /// Closes one where there are too many.
    fn make_room(&mut self, listener: &ListenerName, listeners: &Listeners) {
        if self.pending.len() < self.most {
            return;
        }
        self.pending.retain(|(.., task)| !task.is_finished());
        if self.pending.len() < self.most {
            return;
        }
        // The oldest goes where it has had the time to say something; else the oldest of the client that has most.
        let is_silent = self.pending.front().is_some_and(|(_, since, _)| since.elapsed() > self.usual);
        let place = if is_silent {
            Some(0)
        } else {
            let clients: Vec<IpAddr> = self.pending.iter().map(|(direct, ..)| client_of(direct.ip())).collect();
            first_to_go(&clients)
        };
        if let Some((direct, _, task)) = place.and_then(|place| self.pending.remove(place)) {
            task.abort();
            let reason = "no header of the PROXY protocol yet, and too many others wait for theirs";
            listeners.note_headless(listener, direct, Headless::Crowded, reason);
        }
    }

    /// The next one whose header was read. `None` where there is none to wait for. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Proxied> {
        loop {
            if let Ok(Some(proxied)) = self.reading.join_next().await? {
                return Some(proxied);
            }
        }
    }
}

/// Which of these clients' connections has to go, the oldest being first: the oldest of the client that has most of them.
fn first_to_go(clients: &[IpAddr]) -> Option<usize> {
    let mut counts = HashMap::<IpAddr, usize>::new();
    for client in clients {
        *counts.entry(*client).or_default() += 1;
    }
    // Of several that are the most, the last one is found.
    let oldest_last = clients.iter().enumerate().rev();
    oldest_last.max_by_key(|(_, client)| counts.get(client).copied()).map(|(place, _)| place)
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no header of the PROXY protocol in time")
}

fn why(error: &io::Error) -> Headless {
    match error.kind() {
        io::ErrorKind::InvalidData => Headless::Invalid,
        io::ErrorKind::TimedOut => Headless::Late,
        _ => Headless::Ended,
    }
}

/// Who the client is, where the header says so.
async fn header(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut read = Vec::new();
    loop {
        let mut seen = [0; LOOK];
        let count = stream.peek(&mut seen).await?;
        let seen = seen.get_mut(..count).unwrap_or_default();
        if seen.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let before = read.len();
        read.extend_from_slice(seen);
        match parse(&read).map_err(|invalid| io::Error::new(io::ErrorKind::InvalidData, invalid))? {
            Parsed::Header { length, client } => {
                // No more of it is taken than is the header's.
                let own = seen.get_mut(..length.saturating_sub(before)).unwrap_or_default();
                stream.read_exact(own).await?;
                return Ok(client);
            }
            _ => _ = stream.read_exact(seen).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    #[test]
    fn who_has_most_connections_without_a_header_loses_the_oldest() {
        let of = |addresses: &[&str]| -> Vec<IpAddr> {
            addresses.iter().map(|address| address.parse().expect("an address")).collect()
        };
        assert_eq!(first_to_go(&of(&["10.0.0.1", "10.0.0.2", "10.0.0.2", "10.0.0.1", "10.0.0.2"])), Some(1));
        assert_eq!(first_to_go(&of(&["10.0.0.1", "10.0.0.2"])), Some(0));
        assert_eq!(first_to_go(&[]), None);
    }

    /// A connection from this address of the machine's own: what connects, and what is accepted.
    async fn connect(socket: &TcpListener, from: &str) -> (TcpStream, TcpStream, SocketAddr) {
        let client = TcpSocket::new_v4().expect("a socket");
        client.bind(SocketAddr::new(from.parse().expect("an address"), 0)).expect("an address of this machine");
        let at = socket.local_addr().expect("bound");
        let (client, accepted) = tokio::join!(client.connect(at), socket.accept());
        let (accepted, direct) = accepted.expect("accepted");
        (client.expect("connected"), accepted, direct)
    }

    #[tokio::test]
    async fn silent_connections_keep_nobody_out_and_are_counted() {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let (name, listeners) = (ListenerName::from("edge"), Arc::<Listeners>::default());
        let mut headers = Headers { most: 3, usual: PATIENCE, ..Headers::default() };
        let mut silent = Vec::new();
        // A load balancer whose header is on its way; then one address that says nothing.
        let (mut balancer, accepted, direct) = connect(&socket, "127.0.0.1").await;
        headers.read(accepted, direct, &name, &listeners);
        for _ in 0..10 {
            let (client, accepted, direct) = connect(&socket, "127.0.0.2").await;
            headers.read(accepted, direct, &name, &listeners);
            silent.push(client);
        }
        balancer.write_all(b"PROXY TCP4 192.0.2.1 10.0.0.1 5000 443\r\n").await.expect("written");
        let proxied = headers.next().await.expect("its header was read");
        assert_eq!(proxied.client, "192.0.2.1:5000".parse().expect("an address"));
        assert_eq!(listeners.headless(Headless::Crowded), 8);
        let (kept, mut ended) = (silent.split_off(8), silent);
        for client in &mut ended {
            assert_eq!(client.read(&mut [0; 1]).await.unwrap_or_default(), 0, "it was closed");
        }
        let [mut broken, gone] = <[TcpStream; 2]>::try_from(kept).expect("two are left");
        broken.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("written");
        drop(gone);
        assert!(headers.next().await.is_none());
        let counts = [Headless::Invalid, Headless::Ended, Headless::Late].map(|why| listeners.headless(why));
        assert_eq!(counts, [1, 1, 0]);
    }
}
