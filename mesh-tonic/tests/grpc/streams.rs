//! Streams that last move to servers that come later, and whoever reads them does not notice.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::{Calculator, CalculatorClient, Number, number, within};
use mesh_core::error::Invalid;
use mesh_core::fixed::route_to;
use mesh_core::id::{ListenerName, Target};
use mesh_core::model::{
    ApiListener, Cluster, ClusterKind, ClusterProtocol, Endpoints, HttpManager, Listener, RouteConfiguration,
    RouteSource, VirtualHost,
};
use mesh_core::resources::{Change, Resource, ResourceKey, ResourceType, Update};
use mesh_core::store::{Sink, Source};
use mesh_tonic::Channel;
use mesh_tonic::streams::{Leveling, MoveAdvice, resuming};
use mesh_tower::Mesh;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// A source whose every target has these endpoints, which change.
struct Changing(watch::Receiver<Vec<SocketAddr>>);

impl Changing {
    fn answer(&self, key: ResourceKey) -> Change {
        let resource = match key.kind {
            ResourceType::Listener => {
                let host = VirtualHost::new(["*"], vec![route_to("all")]);
                let config = RouteConfiguration::new(vec![host]);
                let http = HttpManager::new(RouteSource::Inline(Arc::new(config)));
                Resource::Listener(Arc::new(Listener::Api(ApiListener::new(&*key.name, http))))
            }
            _ => {
                let endpoints = Endpoints::fixed(self.0.borrow().iter().copied());
                let mut cluster = Cluster::new("all", ClusterKind::Static(endpoints));
                cluster.protocol = ClusterProtocol::Http2;
                Resource::Cluster(Arc::new(cluster))
            }
        };
        Change::Put(key, resource)
    }
}

impl Source for Changing {
    fn listener_name(&self, target: &Target) -> Result<ListenerName, Invalid> {
        Ok(target.as_str().into())
    }

    fn server_listener_name(&self, address: SocketAddr) -> Result<ListenerName, Invalid> {
        Ok(format!("server/{address}").into())
    }

    fn run(self: Arc<Self>, mut sink: Sink) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let mut endpoints = self.0.clone();
            loop {
                let mut wanted = tokio::select! {
                    progress = sink.changed() => match progress {
                        Some(progress) => progress.subscribe,
                        None => return,
                    },
                    Ok(()) = endpoints.changed() => vec![ResourceKey::new(ResourceType::Cluster, "all")],
                };
                while !wanted.is_empty() {
                    let changes = wanted.into_iter().map(|key| self.answer(key)).collect();
                    wanted = sink.apply(Update { changes }).subscribe;
                }
            }
        })
    }
}

async fn servers(count: usize) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for _ in 0..count {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        let (reporter, health) = tonic_health::server::health_reporter();
        let server = Server::builder().add_service(Calculator::default()).add_service(health);
        tokio::spawn(async move {
            _ = server.serve_with_incoming(TcpListenerStream::new(listener)).await;
            drop(reporter);
        });
    }
    addresses
}

fn channel(endpoints: watch::Receiver<Vec<SocketAddr>>) -> Channel {
    let mesh = Mesh::builder().source(Changing(endpoints)).start().unwrap();
    mesh_tonic::channel(&mesh, "xds:///calculator:50051").following()
}

/// Looks as often as this, at streams of any age.
fn every(interval: Duration) -> Leveling {
    let mut leveling = Leveling::default();
    (leveling.interval, leveling.min_age) = (interval, Duration::ZERO);
    leveling
}

#[tokio::test]
async fn streams_level_out_over_servers_that_come_later_with_one_move_each_at_most_and_no_error() {
    const STREAMS: usize = 200;
    let all = servers(10).await;
    let (tell, endpoints) = watch::channel(all[..3].to_vec());
    let client = HealthClient::new(channel(endpoints));
    let at: Arc<Mutex<Vec<(String, u64)>>> = Arc::new(Mutex::new(vec![Default::default(); STREAMS]));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..STREAMS {
        let (client, at) = (client.clone(), Arc::clone(&at));
        tasks.spawn(async move {
            // From one look to the next, the last moves are counted: streams that move at once all look at the same loads, and a
            // stream that has moved to where too many are stays there.
            let mut states = resuming(every(Duration::from_millis(250)), move |_| {
                let mut client = client.clone();
                async move { client.watch(HealthCheckRequest::default()).await }
            });
            loop {
                // Nothing is lost with the future; and a stream that says nothing may move as well.
                let read = tokio::time::timeout(Duration::from_millis(50), states.message()).await;
                if let Ok(read) = read {
                    assert_eq!(read.unwrap().unwrap().status().as_str_name(), "SERVING");
                }
                if let Some(placement) = states.placement() {
                    at.lock().unwrap()[number] = (placement.endpoint().id().to_string(), states.moves());
                }
            }
        });
    }
    let counts = || {
        let mut counts = BTreeMap::<String, usize>::new();
        let at = at.lock().unwrap();
        at.iter().filter(|(id, _)| !id.is_empty()).for_each(|(id, _)| *counts.entry(id.clone()).or_default() += 1);
        counts
    };
    let wait = async |is_so: &dyn Fn(&BTreeMap<String, usize>) -> bool| {
        let started = Instant::now();
        while !is_so(&counts()) {
            assert!(started.elapsed() < Duration::from_secs(60), "{:?}", counts());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    wait(&|counts| counts.values().sum::<usize>() == STREAMS).await;
    assert_eq!(counts().len(), 3);
    tell.send(all.clone()).unwrap();
    // The most loaded has a fifth more than the mean at most.
    wait(&|counts| counts.len() == 10 && counts.values().all(|count| *count <= STREAMS / 10 * 12 / 10)).await;
    assert!(at.lock().unwrap().iter().all(|(_, moves)| *moves <= 1), "{at:?}");
    assert!(tasks.try_join_next().is_none(), "no reader fails");
}

#[tokio::test]
async fn a_stream_goes_on_after_its_last_message_when_its_server_leaves() {
    let all = servers(2).await;
    let (tell, endpoints) = watch::channel(all[..1].to_vec());
    let client = CalculatorClient(channel(endpoints));
    let mut count = resuming(every(Duration::from_millis(10)), move |last: Option<Number>| {
        let (client, from) = (client.clone(), last.map_or(300, |last| last.value));
        async move { client.counting(tonic::Request::new(number(from))).await }
    });
    let mut expected = 300;
    while let Some(next) = within(count.message()).await.unwrap() {
        expected -= 1;
        assert_eq!(next.value, expected, "none is missing, and none comes twice");
        if expected == 250 {
            tell.send(all[1..].to_vec()).unwrap();
        }
    }
    assert_eq!((expected, count.moves()), (0, 1));
    assert!(within(count.message()).await.unwrap().is_none(), "it is over");
}

#[tokio::test]
async fn a_call_that_cannot_be_made_elsewhere_stays_where_it_is() {
    let all = servers(2).await;
    let (tell, endpoints) = watch::channel(all[..1].to_vec());
    let client = CalculatorClient(channel(endpoints));
    let refused = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&refused);
    let mut count = resuming(every(Duration::from_millis(10)), move |last: Option<Number>| {
        let (client, seen) = (client.clone(), Arc::clone(&seen));
        async move {
            if last.is_some() {
                *seen.lock().unwrap() += 1;
                return Err(tonic::Status::unavailable("not now"));
            }
            client.counting(tonic::Request::new(number(200))).await
        }
    });
    let mut read = 0;
    while within(count.message()).await.unwrap().is_some() {
        read += 1;
        if read == 50 {
            tell.send(all[1..].to_vec()).unwrap();
        }
    }
    assert_eq!((read, count.moves()), (200, 0));
    assert!(*refused.lock().unwrap() > 0);
}

#[tokio::test]
async fn a_stream_goes_on_where_it_is_while_another_endpoint_does_not_answer() {
    let all = servers(2).await;
    let (tell, endpoints) = watch::channel(all[..1].to_vec());
    let client = CalculatorClient(channel(endpoints));
    let asked = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&asked);
    let mut count = resuming(every(Duration::from_millis(10)), move |last: Option<Number>| {
        let (client, seen) = (client.clone(), Arc::clone(&seen));
        async move {
            if last.is_some() {
                *seen.lock().unwrap() += 1;
                return std::future::pending().await;
            }
            client.counting(tonic::Request::new(number(2000))).await
        }
    });
    let mut expected = 2000;
    while *asked.lock().unwrap() == 0 {
        let next = within(count.message()).await.unwrap().unwrap();
        expected -= 1;
        assert_eq!(next.value, expected, "none is missing, and none comes twice");
        if expected == 1950 {
            tell.send(all[1..].to_vec()).unwrap();
        }
    }
    assert!(expected > 0, "it was not over");
    assert_eq!(count.moves(), 0);
}

#[tokio::test]
async fn a_stream_that_never_looks_is_one_that_stays() {
    let (_tell, endpoints) = watch::channel(servers(1).await);
    let client = CalculatorClient(channel(endpoints));
    let mut count = resuming(every(Duration::MAX), move |_: Option<Number>| {
        let client = client.clone();
        async move { client.counting(tonic::Request::new(number(2))).await }
    });
    assert_eq!(within(count.message()).await.unwrap().unwrap().value, 1);
}

#[tokio::test]
async fn only_a_channel_that_follows_says_where_its_calls_are() {
    let all = servers(1).await;
    let (_tell, endpoints) = watch::channel(all.clone());
    let mesh = Mesh::builder().source(Changing(endpoints)).start().unwrap();
    let plain = mesh_tonic::channel(&mesh, "xds:///calculator:50051");
    for (channel, follows) in [(plain.clone(), false), (plain.following(), true)] {
        let answer = HealthClient::new(channel).watch(HealthCheckRequest::default()).await.unwrap();
        let advice = MoveAdvice::of(answer.extensions(), Leveling::default(), None);
        let at = advice.map(|advice| advice.placement().endpoint().id().to_string());
        assert_eq!(at, follows.then(|| all[0].to_string()));
    }
}
