//! 100 changes of the configuration in a second, each of a route and of the endpoints of its cluster, of which there are
//! 10,000: requests are as fast as without, and none sees half a change. Once with that route alone, and once with 10,000 before it.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response};
use http_body_util::{BodyExt, Full};
use mesh_benches::Result;
use mesh_benches::stats::judge;
use mesh_core::error::Invalid;
use mesh_core::fixed::route_to;
use mesh_core::id::{EndpointId, ListenerName, Locality, Target};
use mesh_core::list::{List, Run};
use mesh_core::model::{
    ApiListener, Cluster, ClusterKind, Endpoint, Endpoints, HeaderChange, HttpManager, Listener, LocalityEndpoints,
    PathTest, Route, RouteConfiguration, RouteSource, VirtualHost,
};
use mesh_core::resources::{Change, Resource, ResourceKey, ResourceType, Update};
use mesh_core::store::{Sink, Source};
use mesh_tower::{Client, Mesh};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::load::{Load, Sample, latency};
use crate::upstream;

/// Requests a second.
const RATE: u32 = 500;
const CHANGES: u32 = 100;
const ENDPOINTS: u32 = 10_000;
/// How much slower 999 of 1,000 requests may be.
const BAR: f64 = 1.5;
/// How long each of the two runs is, and how often they come by turns.
const RUN: Duration = Duration::from_secs(4);
const ROUNDS: usize = 4;

const GROUP: HeaderName = HeaderName::from_static("x-group");

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Whole,
    /// It went by the route of one configuration to the endpoints of another.
    Half,
    Failed,
}

/// How many routes there are besides.
const ROUTES: [usize; 2] = [0, 10_000];

pub(crate) async fn run() -> Result<bool> {
    let mut is_met = true;
    for routes in ROUTES {
        is_met &= with_routes(routes).await?;
    }
    Ok(is_met)
}

async fn with_routes(routes: usize) -> Result<bool> {
    let groups = [serve(0)?, serve(1)?];
    let changing = watch::Sender::new(false);
    let applied = watch::Sender::new(0);
    let spare = (2..ENDPOINTS).map(|number| endpoint((Ipv4Addr::from(0x0a00_0000 + number), 8080).into())).collect();
    let [one, other] = groups;
    let endpoints = [(one, other), (other, one)].map(|(at, off_duty)| Arc::new(endpoints(at, off_duty, &spare)));
    let source = Changing { routes: others(routes), endpoints, is_on: changing.subscribe(), applied: applied.clone() };
    let mesh = Mesh::builder().source(source).start()?;
    let client = mesh.client();
    for _ in 0..100 {
        anyhow::ensure!(call(client.clone()).await == Outcome::Whole, "a request before anything changes fails");
    }
    let (mut quiet, mut changed) = (Vec::new(), Vec::new());
    let before = *applied.borrow();
    for _ in 0..ROUNDS {
        for is_on in [false, true] {
            changing.send_replace(is_on);
            let caller = client.clone();
            let load = Load::start(RATE, move || call(caller.clone()));
            tokio::time::sleep(RUN).await;
            if is_on { &mut changed } else { &mut quiet }.append(&mut load.end().await?);
        }
    }
    let changes = *applied.borrow() - before;
    let rate = f64::from(changes) / (RUN.as_secs_f64() * ROUNDS as f64);
    let all = |samples: &[Sample<Outcome>], share| {
        latency(samples, Instant::now() - Duration::from_secs(3600), Instant::now(), share)
    };
    println!("{rate:.0} changes a second, {} routes, {ENDPOINTS} endpoints, {RATE} requests a second:", routes + 1);
    for share in [0.5, 0.99, 0.999] {
        println!("  p{}: {:?} quiet, {:?} with changes", share * 100.0, all(&quiet, share), all(&changed, share));
    }
    let count = |outcome| quiet.iter().chain(&changed).filter(|sample| sample.outcome == outcome).count();
    let (half, failed) = (count(Outcome::Half), count(Outcome::Failed));
    let ratio = all(&changed, 0.999).as_secs_f64() / all(&quiet, 0.999).as_secs_f64();
    let met = [
        judge(
            &format!("{rate:.0} changes a second are applied (bar {CHANGES}, within a tenth)"),
            rate >= 0.9 * f64::from(CHANGES),
        ),
        judge(&format!("p99.9 is {ratio:.2} times that of the quiet run (bar {BAR})"), ratio <= BAR),
        judge(
            &format!("{half} of {} requests see half a change, {failed} fail (bar 0)", quiet.len() + changed.len()),
            half + failed == 0,
        ),
    ];
    Ok(met.into_iter().all(|is_met| is_met))
}

async fn call(client: Client) -> Outcome {
    let asked = async {
        let response = client.get("http://web:80/").await.ok()?;
        response.into_body().collect().await.ok()
    };
    match asked.await.map(http_body_util::Collected::to_bytes).as_deref() {
        Some(b"whole") => Outcome::Whole,
        Some(b"half") => Outcome::Half,
        _ => Outcome::Failed,
    }
}

/// A server of one group, which knows by a header that the route sets which one the route meant.
fn serve(group: u32) -> Result<SocketAddr> {
    upstream::start(move |request| async move {
        let is_meant = request.headers().get(GROUP) == Some(&HeaderValue::from(group));
        let answer: &[u8] = if is_meant { b"whole" } else { b"half" };
        Response::new(Full::new(Bytes::from_static(answer)))
    })
}

/// A source whose configuration names one group of endpoints, and then the other.
struct Changing {
    /// Those that do not change.
    routes: List<Arc<Route>>,
    /// The endpoints, as one configuration has them and as the other.
    endpoints: [Arc<Endpoints>; 2],
    is_on: watch::Receiver<bool>,
    applied: watch::Sender<u32>,
}

impl Changing {
    /// A resource as it is after so many changes.
    fn resource(&self, key: &ResourceKey, changes: u32) -> Option<Resource> {
        let group = changes % 2;
        Some(match key.kind {
            ResourceType::Listener => {
                let mut route = route_to("all");
                route.mutations.request.push(HeaderChange::Set(GROUP, HeaderValue::from(group).into()));
                let mut host = VirtualHost::new(["*"], Vec::new());
                host.routes =
                    self.routes.changed(vec![Run::Kept(0..self.routes.len()), Run::New(vec![Arc::new(route)])]);
                let config = RouteConfiguration::new(vec![host]);
                let http = HttpManager::new(RouteSource::Inline(Arc::new(config)));
                Resource::Listener(Arc::new(Listener::Api(ApiListener::new("web:80", http))))
            }
            ResourceType::Cluster => {
                let kind = ClusterKind::Eds { service_name: "all".into() };
                Resource::Cluster(Arc::new(Cluster::new("all", kind)))
            }
            ResourceType::Endpoints => Resource::Endpoints(Arc::clone(self.endpoints.get(group as usize)?)),
            _ => return None,
        })
    }
}

/// So many routes, of which none is for a request.
fn others(count: usize) -> List<Arc<Route>> {
    let route = |number| {
        let mut route = route_to("all");
        route.matches.path = PathTest::Prefix { value: format!("/other/{number}/"), ignore_case: false };
        Arc::new(route)
    };
    (0..count).map(route).collect()
}

fn endpoint(at: SocketAddr) -> Endpoint {
    Endpoint::new(EndpointId::new(at))
}

/// The one that serves; all others are there in case that it does not, and last the one that serves next. That one stays an endpoint, so
/// that its connections do: what a change costs is asked, and not what it takes to connect.
fn endpoints(at: SocketAddr, off_duty: SocketAddr, others: &List<Endpoint>) -> Endpoints {
    let of_priority = |priority, endpoints| {
        let mut locality = LocalityEndpoints::new(Locality::default(), Vec::new());
        (locality.endpoints, locality.priority) = (endpoints, priority);
        locality
    };
    let one = |at| std::iter::once(endpoint(at)).collect();
    Endpoints::new(vec![of_priority(0, one(at)), of_priority(1, others.clone()), of_priority(2, one(off_duty))])
}

impl Source for Changing {
    fn listener_name(&self, target: &Target) -> Result<ListenerName, Invalid> {
        Ok(target.as_str().into())
    }

    fn server_listener_name(&self, address: SocketAddr) -> Result<ListenerName, Invalid> {
        Ok(address.to_string().into())
    }

    fn run(self: Arc<Self>, mut sink: Sink) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let (mut changes, mut is_on) = (0, self.is_on.clone());
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / CHANGES);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut wanted = Vec::new();
            loop {
                tokio::select! {
                    progress = sink.changed() => match progress {
                        Some(progress) => wanted = progress.subscribe,
                        None => return,
                    },
                    _ = ticks.tick(), if *is_on.borrow() => {
                        changes += 1;
                        self.applied.send_replace(changes);
                        wanted = vec![
                            ResourceKey::new(ResourceType::Listener, "web:80"),
                            ResourceKey::new(ResourceType::Endpoints, "all"),
                        ];
                    }
                    Ok(()) = is_on.changed() => ticks.reset(),
                }
                while !wanted.is_empty() {
                    let change = |key: ResourceKey| Some(Change::Put(key.clone(), self.resource(&key, changes)?));
                    let changes = wanted.drain(..).filter_map(change).collect();
                    wanted = sink.apply(Update { changes }).subscribe;
                }
            }
        })
    }
}
