//! 1,000 streams that last, on three servers; seven more come: within a minute all ten have alike, without an error to whoever
//! reads, and with one move a stream at most.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use mesh_benches::stats::judge;
use mesh_benches::{Result, grpc};
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::xds::Bootstrap;
use mesh_tonic::streams::{Leveling, resuming};
use mesh_tower::Mesh;
use tokio::task::JoinSet;

use crate::endpoint;
use crate::load::after;
use crate::upstream::Task;

const STREAMS: usize = 1_000;
/// How many servers there are, and how many at last.
const SERVERS: (usize, usize) = (3, 10);
/// How old streams are when the others come: they have lasted.
const AGE: Duration = Duration::from_secs(15);
/// When they have to be level.
const LEVEL: Duration = Duration::from_secs(60);
/// How much more than the mean the most loaded one may have.
const BAR: f64 = 1.2;
/// The file of the configuration.
const FILE: &str = "streams.yaml";

/// Where each stream is, how often it moved, and what it failed with.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Stream>>>);

#[derive(Clone, Default)]
struct Stream {
    at: Option<String>,
    moves: u64,
    messages: u64,
    error: Option<String>,
}

impl Seen {
    fn with<T>(&self, look: impl FnOnce(&mut [Stream]) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// How many streams each server has.
    fn counts(&self) -> BTreeMap<String, usize> {
        self.with(|streams| {
            let mut counts = BTreeMap::new();
            for at in streams.iter().filter_map(|stream| stream.at.clone()) {
                *counts.entry(at).or_default() += 1;
            }
            counts
        })
    }

    /// The same in words.
    fn of_each(&self) -> String {
        self.counts().values().map(usize::to_string).collect::<Vec<_>>().join(", ")
    }

    /// How much more than the mean the most loaded of so many servers has.
    fn unevenness(&self, servers: usize) -> f64 {
        let counts = self.counts();
        let mean = counts.values().sum::<usize>() as f64 / servers as f64;
        counts.values().copied().max().unwrap_or_default() as f64 / mean.max(1.0)
    }
}

pub(crate) async fn run() -> Result<bool> {
    let servers = (0..SERVERS.1).map(|_| Task::start()).collect::<Result<Vec<_>>>()?;
    let endpoints: Vec<_> = servers.iter().map(|server| server.at).collect();
    let before = endpoints.get(..SERVERS.0).context("too few servers")?;
    let control = Embedded::start(Config::yaml(String::new()), Options::default()).await;
    let control = control.map_err(|error| anyhow::anyhow!("{error}"))?;
    let tell = |yaml: &str| control.set_yaml(FILE, yaml).map_err(|error| anyhow::anyhow!("{error}"));
    tell(&yaml(before))?;
    let mesh = Mesh::builder().source(control.source(Bootstrap::new("embedded"))).start()?;

    let seen = Seen(Arc::new(Mutex::new(vec![Stream::default(); STREAMS])));
    let mut readers = JoinSet::new();
    for number in 0..STREAMS {
        readers.spawn(read(mesh.clone(), number, seen.clone()));
    }
    let opened = Instant::now();
    while seen.counts().values().sum::<usize>() < STREAMS {
        anyhow::ensure!(opened.elapsed() < Duration::from_secs(60), "the streams do not open: {}", seen.of_each());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("{STREAMS} streams on {} servers: {}", SERVERS.0, seen.of_each());
    tokio::time::sleep(AGE).await;

    tell(&yaml(&endpoints))?;
    let came = Instant::now();
    let mut level = None;
    while came.elapsed() < LEVEL {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if level.is_none() && seen.unevenness(SERVERS.1) <= BAR {
            level = Some(came.elapsed());
        }
    }
    let ratio = seen.unevenness(SERVERS.1);
    println!("on {} servers after {LEVEL:?}: {}", SERVERS.1, seen.of_each());
    let (errors, most, moved, messages) = seen.with(|streams| {
        let errors: Vec<String> = streams.iter().filter_map(|stream| stream.error.clone()).collect();
        let moves = streams.iter().map(|stream| stream.moves);
        let moved = moves.clone().filter(|moves| *moves > 0).count();
        (errors, moves.max().unwrap_or_default(), moved, streams.iter().map(|stream| stream.messages).sum::<u64>())
    });
    println!("{moved} of {STREAMS} streams moved, {messages} messages were read; level {}", after(level));
    let met = [
        judge(
            &format!("the most loaded server has {ratio:.2} times the mean after {LEVEL:?} (bar {BAR})"),
            ratio <= BAR,
        ),
        judge(
            &format!(
                "{} streams failed (bar 0){}",
                errors.len(),
                errors.first().map(|error| format!(": {error}")).unwrap_or_default()
            ),
            errors.is_empty(),
        ),
        judge(&format!("{most} moves of one stream at most (bar 1)"), most <= 1),
    ];
    Ok(met.into_iter().all(|is_met| is_met))
}

/// Streams last longer than requests may.
fn yaml(endpoints: &[SocketAddr]) -> String {
    endpoint::yaml(endpoints, endpoint::RETRIES, endpoint::EJECTION)
}

/// Reads a stream for as long as there is one.
async fn read(mesh: Mesh, number: usize, seen: Seen) {
    let channel = mesh_tonic::channel(&mesh, "xds:///web.example.com:81").following();
    let mut stream = resuming(Leveling::default(), move |_| grpc::watch(channel.clone()));
    loop {
        let message = stream.message().await;
        let (at, moves) = (stream.placement().map(|at| at.endpoint().id().to_string()), stream.moves());
        let is_over = !matches!(message, Ok(Some(_)));
        seen.with(|streams| {
            let Some(own) = streams.get_mut(number) else { return };
            own.moves = moves;
            own.at = at.or(own.at.take());
            match message {
                Ok(Some(_)) => own.messages += 1,
                Ok(None) => own.error = Some("it ended".to_owned()),
                Err(error) => own.error = Some(error.to_string()),
            }
        });
        if is_over {
            return;
        }
    }
}
