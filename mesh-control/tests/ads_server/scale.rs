//! One endpoint changes while many clients hold many services: how long until all of them have accepted.
//!
//! The test keeps small. `MESH_SCALE=500,10,200` (services, endpoints each, clients), in release, prints
//! the figures of the whole size.

use std::time::{Duration, Instant};

use mesh_control::catalog::Kind;

use crate::support::{Delta, Fixture, PATIENCE, Shelf, node};

const CHANGES: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_has_accepted_a_change_soon_after_it() {
    let sizes = std::env::var("MESH_SCALE").unwrap_or_else(|_| "50,10,20".to_owned());
    let sizes: Vec<usize> = sizes.split(',').map(|size| size.parse().unwrap()).collect();
    let (services, endpoints, clients) = (sizes[0], sizes[1], sizes[2]);
    let names: Vec<String> =
        (0..services).map(|n| format!("outbound|9080||service-{n:04}.shop.svc.cluster.local")).collect();
    let mut shelf = Shelf::default();
    for name in &names {
        shelf.put(Kind::Cluster, name, &"c".repeat(400));
        shelf.put(Kind::Endpoints, name, &"e".repeat(90 * endpoints));
        shelf.put(Kind::Route, name, &"r".repeat(600));
        shelf.put(Kind::Listener, name, &"l".repeat(300));
    }
    let fixture = Fixture::plain(shelf).await;
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    let (seen, mut all_seen) = tokio::sync::mpsc::channel::<Instant>(clients);
    for _ in 0..clients {
        let (channel, names, seen) = (fixture.channel().await, names.clone(), seen.clone());
        tasks.spawn(async move {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut client = Delta::open(channel, node("mesh-core")).await.unwrap();
            for kind in Kind::ALL {
                client.send(kind, &names, &[]).await;
            }
            let mut held = 0;
            while held < 4 * names.len() {
                let response = client.next().await;
                client.answer(&response, None).await;
                held += response.resources.len();
            }
            seen.send(Instant::now()).await.unwrap();
            for _ in 0..CHANGES {
                let response = client.next().await;
                assert_eq!(response.resources.len(), 1);
                client.answer(&response, None).await;
                seen.send(Instant::now()).await.unwrap();
            }
        });
    }
    let mut round = async |since: Instant| {
        let mut times = Vec::new();
        while times.len() < clients {
            let at = tokio::time::timeout(PATIENCE, all_seen.recv()).await.unwrap().unwrap();
            times.push(at.duration_since(since));
        }
        times
    };
    let first = round(start).await;
    println!("all {clients} clients hold {services} services after {:?}", first.iter().max().unwrap());
    let mut times = Vec::new();
    for change in 0..CHANGES {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let name = &names[change % names.len()];
        fixture.publish(|shelf| shelf.put(Kind::Endpoints, name, &format!("{change}{}", "e".repeat(90 * endpoints))));
        times.extend(round(Instant::now()).await);
    }
    times.sort();
    println!(
        "p50 {:?}, p99 {:?}, max {:?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        times[times.len() - 1]
    );
    println!("resident {:?} MiB, clients included", resident().map(|bytes| bytes >> 20));
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}
