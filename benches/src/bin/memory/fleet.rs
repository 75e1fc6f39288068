//! Clients of mesh-control, each of a node and a connection of its own, which come back when it is gone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use mesh_benches::Result;
use mesh_control::catalog::Kind;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::config::PORT;
use crate::stream::Stream;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Before somebody who was not let in tries again.
const AGAIN: Duration = Duration::from_millis(50);

/// What a client says.
#[derive(Clone, Copy, Debug)]
enum Said {
    /// It has everything that it asked for.
    Holds,
    /// It was told of so many resources, and has accepted them.
    Took(usize),
}

/// All clients, for as long as it is there.
pub(crate) struct Fleet {
    clients: usize,
    said: mpsc::Receiver<(Said, Instant)>,
    _tasks: JoinSet<()>,
}

impl Fleet {
    /// Connects so many, each of which asks for the services of these hosts.
    pub(crate) fn connect(xds: SocketAddr, clients: usize, hosts: impl Fn(usize) -> Vec<String>) -> Fleet {
        let (say, said) = mpsc::channel(clients.max(1));
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            tasks.spawn(client(xds, number, hosts(number), say.clone()));
        }
        Fleet { clients, said, _tasks: tasks }
    }

    /// Waits until all have everything; how long that took since then, in milliseconds.
    pub(crate) async fn hold(&mut self, since: Instant) -> Result<f64> {
        let mut last = since;
        for _ in 0..self.clients {
            // What was told before the server ended may still be heard.
            last = loop {
                match self.next().await? {
                    (Said::Holds, at) => break at,
                    (Said::Took(_), _) => {}
                }
            };
        }
        Ok(milliseconds(since, last))
    }

    /// Waits until so many have accepted a change of one resource; how long each took since then, in milliseconds.
    pub(crate) async fn accept(&mut self, concerned: usize, since: Instant) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        while times.len() < concerned {
            let (said, at) = self.next().await?;
            anyhow::ensure!(matches!(said, Said::Took(1)), "a client says {said:?} of a change of one resource");
            times.push(milliseconds(since, at));
        }
        Ok(times)
    }

    /// How often anybody was told of anything that was not waited for.
    pub(crate) fn beside(&mut self) -> usize {
        std::iter::from_fn(|| self.said.try_recv().ok()).count()
    }

    async fn next(&mut self) -> Result<(Said, Instant)> {
        let next = tokio::time::timeout(PATIENCE, self.said.recv()).await;
        next.context("clients wait for what does not come")?.context("the clients have ended")
    }
}

fn milliseconds(since: Instant, at: Instant) -> f64 {
    at.saturating_duration_since(since).as_secs_f64() * 1000.0
}

async fn client(xds: SocketAddr, number: usize, hosts: Vec<String>, say: mpsc::Sender<(Said, Instant)>) {
    // It ends with those who listen to it.
    while !say.is_closed() {
        _ = stay(xds, number, &hosts, &say).await;
        tokio::time::sleep(AGAIN).await;
    }
}

/// One stream, until it breaks.
async fn stay(xds: SocketAddr, number: usize, hosts: &[String], say: &mpsc::Sender<(Said, Instant)>) -> Result {
    let mut stream = Stream::open(xds, &format!("web-{number}"), Some(&format!("web-{}", number % 10))).await?;
    let mut missing = 0;
    for kind in Kind::ALL {
        let names: Vec<String> = hosts.iter().map(|host| name(kind, host)).collect();
        missing += names.len();
        stream.ask(kind, names, Vec::new()).await?;
    }
    while missing > 0 {
        missing -= stream.take().await?.min(missing);
    }
    say.send((Said::Holds, Instant::now())).await?;
    loop {
        let count = stream.wait().await?;
        say.send((Said::Took(count), Instant::now())).await?;
    }
}

/// The name of what there is of a kind for a service.
pub(crate) fn name(kind: Kind, host: &str) -> String {
    match kind {
        Kind::Listener => format!("{host}:{PORT}"),
        _ => format!("outbound|{PORT}||{host}"),
    }
}
