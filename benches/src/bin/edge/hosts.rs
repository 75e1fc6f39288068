//! 10,000 hosts on one gateway, `mesh-gateway` and an Envoy that are told the same at once: how long a change takes from its file to
//! the first request or handshake that goes by it, and what handshakes cost.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http::header::HOST;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use mesh_benches::Result;
use mesh_benches::clients::Version;
use mesh_benches::exchange::plain_path;
use mesh_benches::fixtures::random;
use mesh_benches::load::{self, Caller, Figures};
use mesh_benches::process::{cpu_ever, family, free_ports};
use mesh_benches::stats::{Ratio, judge, median};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::Args;
use crate::compare::{judged, per_cpu, resident};
use crate::door::{Authority, Door, shake_hands};
use crate::gateways::{BEHIND, ENVOY, OURS, at};
use crate::objects::{self, HOSTS, OF_A_FILE, OF_A_SERVER, REVISION};
use crate::world::{Programs, World, answered, server};

/// Until a change is in use, in milliseconds.
const CHANGE_BAR: f64 = 500.0;
/// Of handshakes for each second of a CPU, beside Envoy's.
const HANDSHAKES_BAR: f64 = 1.0;
/// How many shake hands at a time.
const SHAKERS: usize = 16;
/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks whether a change is in use.
const LOOK: Duration = Duration::from_millis(2);
/// mesh-control is idle when it needs less processor time than that in such a time.
const IDLE: Duration = Duration::from_millis(20);
const PAUSE: Duration = Duration::from_millis(500);

struct Gateway {
    name: &'static str,
    processes: Vec<u32>,
    address: SocketAddr,
}

/// What the changes of one kind came to, in milliseconds: until they were in use at ours and at the Envoy, and processor time of
/// mesh-control.
#[derive(Default)]
struct Changes {
    until: [Vec<f64>; 2],
    work: Vec<f64>,
}

pub(crate) async fn run(programs: &Programs, args: &Args) -> Result<bool> {
    println!("\n## {HOSTS} hosts on one gateway, and {} certificates", HOSTS / OF_A_SERVER);
    let authority = Authority::new()?;
    let [our_http, our_https, http, https] = free_ports()?;
    let objects = objects::listens(OURS, our_http, our_https)
        + &objects::listens(ENVOY, http, https)
        + &objects::service("server", BEHIND.1, None)
        + &objects::many_hosts();
    let mut files = vec![("objects.yaml".to_owned(), objects)];
    for number in 0..HOSTS / OF_A_SERVER {
        let secret = objects::secret(&objects::credential(number), &authority.issue(&any_host(number))?);
        files.push((secret_file(number), secret));
    }
    files.extend(
        (0..HOSTS).step_by(OF_A_FILE).map(|first| (routes_file(first), objects::many_routes(first, BEHIND, 0))),
    );
    let world = World::start(programs, &files)?;
    let _server = server(Some(world.xds))?;
    let (ours, envoy) = (world.mesh_gateway(OURS)?, world.envoy_gateway(ENVOY)?);
    let gateways = [
        Gateway { name: OURS, processes: family(ours.id())?, address: at(our_https) },
        Gateway { name: ENVOY, processes: family(envoy.id())?, address: at(https) },
    ];
    let client = authority.client(Version::Http1)?;
    for gateway in &gateways {
        for first in (0..HOSTS).step_by(OF_A_SERVER) {
            let (host, tls) = (objects::host(first), Some(Arc::clone(&client)));
            answered(&Door { address: gateway.address, host, version: Version::Http1, tls }).await?;
        }
    }

    let routes = routes(&world, &gateways, &client, args.rounds).await?;
    let certificates = certificates(&world, &gateways, &client, &authority, args.rounds).await?;
    println!("\nUntil a change is in use, median / slowest of {}, both told at once.\n", args.rounds);
    println!("| what | {OURS} | {ENVOY} | processor time of mesh-control |");
    println!("|---|---:|---:|---:|");
    let mut is_met = true;
    for (what, changes) in [("a route", &routes), ("a certificate", &certificates)] {
        let [ours, theirs] = changes.until.each_ref().map(|it| format!("{:.0} / {:.0} ms", median(it), slowest(it)));
        println!("| {what} | {ours} | {theirs} | {:.0} ms |", median(&changes.work));
    }
    println!();
    for (what, changes) in [("a route", &routes), ("a certificate", &certificates)] {
        let slowest = slowest(&changes.until[0]);
        let what = format!("{what} is in use at {OURS} after {slowest:.0} ms (bar {CHANGE_BAR:.0})");
        is_met &= judge(&what, slowest <= CHANGE_BAR);
    }

    let rounds = handshakes(&gateways, &client, args).await?;
    println!("\nTLS handshakes, medians of {} interleaved rounds of {} s.\n", args.rounds, args.seconds);
    println!("| | handshakes/s | p99 µs | handshakes per CPU-second | resident MiB |");
    println!("|---|---:|---:|---:|---:|");
    let values = |who: usize, of: fn(&Figures) -> f64| rounds[who].iter().map(of).collect::<Vec<f64>>();
    for (who, gateway) in gateways.iter().enumerate() {
        let of = |field: fn(&Figures) -> f64| median(&values(who, field));
        let (rate, p99, each) = (of(|it| it.rate), of(|it| it.p99), of(per_cpu));
        println!("| {} | {rate:.0} | {p99:.0} | {each:.0} | {:.1} |", gateway.name, resident(&gateway.processes)?);
    }
    let ratio = Ratio::of(&values(0, per_cpu), &values(1, per_cpu));
    let bar = format!("≥ {HANDSHAKES_BAR:.2}");
    let shown = judged(ratio, Some((bar, ratio.may_reach(HANDSHAKES_BAR))), &mut is_met);
    println!("\nHandshakes per CPU-second, ours beside Envoy's: {shown}.");
    Ok(is_met)
}

fn any_host(server: usize) -> String {
    format!("*.{}", objects::domain(server))
}

fn secret_file(server: usize) -> String {
    format!("secret-{server}.yaml")
}

fn routes_file(first: usize) -> String {
    format!("routes-{first:05}.yaml")
}

fn slowest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// Changes the route of one host after the other.
async fn routes(
    world: &World<'_>,
    gateways: &[Gateway; 2],
    client: &Arc<ClientConfig>,
    count: usize,
) -> Result<Changes> {
    let (mut changes, mut random) = (Changes::default(), random());
    for revision in 1..=count {
        idle(world).await?;
        let first = random.usize(..HOSTS / OF_A_FILE) * OF_A_FILE;
        let (text, host) = (objects::many_routes(first, BEHIND, revision), objects::host(first));
        let [ours, envoy] = gateways;
        let mut ours = Visitor::open(ours.address, &host, client).await?;
        let mut envoy = Visitor::open(envoy.address, &host, client).await?;
        let (before, since) = (cpu_ever(world.control.id())?, Instant::now());
        world.write(&routes_file(first), &text)?;
        let until = tokio::try_join!(ours.until(revision, since), envoy.until(revision, since))?;
        changes.took(world, until, before).await?;
    }
    Ok(changes)
}

/// Changes the certificate of one server after the other.
async fn certificates(
    world: &World<'_>,
    gateways: &[Gateway; 2],
    client: &Arc<ClientConfig>,
    authority: &Authority,
    count: usize,
) -> Result<Changes> {
    let mut changes = Changes::default();
    for change in 0..count {
        idle(world).await?;
        let server = change % (HOSTS / OF_A_SERVER);
        let (new, host) = (authority.issue(&any_host(server))?, objects::host(server * OF_A_SERVER));
        let (before, since) = (cpu_ever(world.control.id())?, Instant::now());
        world.write(&secret_file(server), &objects::secret(&objects::credential(server), &new))?;
        let [ours, envoy] = gateways.each_ref().map(|it| until_shown(it.address, &host, client, &new.der, since));
        let until = tokio::try_join!(ours, envoy)?;
        changes.took(world, until, before).await?;
    }
    Ok(changes)
}

impl Changes {
    /// Notes one, and what mesh-control had to do for it, whose processor time was `before`.
    async fn took(&mut self, world: &World<'_>, until: (f64, f64), before: Duration) -> Result {
        self.until[0].push(until.0);
        self.until[1].push(until.1);
        // What it does after the gateways are told is a part of the change, too.
        idle(world).await?;
        self.work.push(cpu_ever(world.control.id())?.saturating_sub(before).as_secs_f64() * 1000.0);
        Ok(())
    }
}

/// Waits until mesh-control has nothing left to do.
async fn idle(world: &World<'_>) -> Result {
    let (start, mut before) = (Instant::now(), cpu_ever(world.control.id())?);
    loop {
        tokio::time::sleep(PAUSE).await;
        let now = cpu_ever(world.control.id())?;
        if now.saturating_sub(before) < IDLE {
            return Ok(());
        }
        anyhow::ensure!(start.elapsed() < PATIENCE, "mesh-control is busy after {} s", PATIENCE.as_secs());
        before = now;
    }
}

/// Who asks for a host again and again over one connection.
struct Visitor {
    sender: SendRequest<Empty<Bytes>>,
    host: String,
}

impl Visitor {
    async fn open(address: SocketAddr, host: &str, config: &Arc<ClientConfig>) -> Result<Self> {
        let stream = TokioIo::new(shake_hands(address, host, config).await?);
        let (sender, connection) = http1::handshake(stream).await?;
        tokio::spawn(connection);
        let mut visitor = Visitor { sender, host: host.to_owned() };
        visitor.ask().await?;
        Ok(visitor)
    }

    /// The revision of the route that a request was answered by.
    async fn ask(&mut self) -> Result<Option<String>> {
        let request = Request::get(plain_path(1)).header(HOST, &self.host).body(Empty::new())?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        anyhow::ensure!(response.status().is_success(), "{}: status {}", self.host, response.status());
        let revision = response.headers().get(REVISION).and_then(|it| it.to_str().ok()).map(str::to_owned);
        response.into_body().collect().await?;
        Ok(revision)
    }

    /// Until requests go by this revision: milliseconds.
    async fn until(&mut self, revision: usize, since: Instant) -> Result<f64> {
        let revision = revision.to_string();
        while self.ask().await?.as_ref() != Some(&revision) {
            wait(&self.host, since).await?;
        }
        Ok(since.elapsed().as_secs_f64() * 1000.0)
    }
}

/// Until a handshake shows this certificate: milliseconds.
async fn until_shown(
    address: SocketAddr,
    host: &str,
    config: &Arc<ClientConfig>,
    new: &CertificateDer<'static>,
    since: Instant,
) -> Result<f64> {
    loop {
        let stream = shake_hands(address, host, config).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        if shown == Some(new) {
            return Ok(since.elapsed().as_secs_f64() * 1000.0);
        }
        wait(host, since).await?;
    }
}

async fn wait(host: &str, since: Instant) -> Result {
    anyhow::ensure!(since.elapsed() < PATIENCE, "a change of {host} is not in use after {} s", PATIENCE.as_secs());
    tokio::time::sleep(LOOK).await;
    Ok(())
}

/// The rounds of ours, and of the Envoy.
async fn handshakes(gateways: &[Gateway; 2], client: &Arc<ClientConfig>, args: &Args) -> Result<[Vec<Figures>; 2]> {
    let mut rounds = [Vec::new(), Vec::new()];
    for round in 0..args.rounds {
        for turn in 0..2 {
            let who = (round + turn) % 2;
            let shaker = |number: usize| Shaker {
                address: gateways[who].address,
                host: objects::host(number * HOSTS / SHAKERS),
                config: Arc::clone(client),
            };
            let mut crew: Vec<Shaker> = (0..SHAKERS).map(shaker).collect();
            let time = Duration::from_secs_f64(args.seconds);
            rounds[who].push(load::measure(&mut crew, time, &[std::process::id()], &gateways[who].processes).await?);
        }
    }
    Ok(rounds)
}

/// Who connects, shakes hands, and goes.
struct Shaker {
    address: SocketAddr,
    host: String,
    config: Arc<ClientConfig>,
}

impl Caller for Shaker {
    async fn call(&mut self) -> Result {
        let mut stream = shake_hands(self.address, &self.host, &self.config).await?;
        // Until the gateway has come to the end of it, too. How it closes is no matter.
        stream.shutdown().await?;
        _ = stream.read_to_end(&mut Vec::new()).await;
        Ok(())
    }
}
