//! One endpoint changes while many clients hold many services: how long until all of them have accepted,
//! and what the server needs for it.
//!
//! The test keeps small. `MESH_SCALE=500,10,200` (services, endpoints each, clients), in release and with
//! `--nocapture`, prints the figures of the whole size.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use mesh_control::catalog::Kind;
use tokio::sync::mpsc;
use tonic::transport::Channel;

use crate::certificates::{create, request, secured};
use crate::certificates_process::{Logged, plugged_in};
use crate::embedded::labelled;
use crate::process::Control;
use crate::secured::Authority;
use crate::support::{Delta, PATIENCE, node};

const CHANGES: usize = 20;

/// Services with fixed endpoints, and one whose workloads register themselves.
fn config(services: usize, endpoints: usize) -> String {
    let mut yaml = String::from(
        "apiVersion: v1\nkind: Service\nmetadata: {name: moving, namespace: shop}\n\
         spec: {selector: {app: moving}, ports: [{name: http, port: 9080}]}\n",
    );
    for service in 1..services {
        let _ = write!(
            yaml,
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: service-{service}, namespace: shop}}\n\
             spec:\n  hosts: [service-{service}.shop.example]\n  ports: [{{name: http, number: 9080, protocol: HTTP}}]\n  \
             resolution: STATIC\n  location: MESH_INTERNAL\n  endpoints:\n"
        );
        for endpoint in 0..endpoints {
            let _ = writeln!(yaml, "  - {{address: 10.{}.{}.{endpoint}}}", service / 250, service % 250);
        }
    }
    yaml
}

fn names(services: usize) -> BTreeMap<Kind, Vec<String>> {
    let moving = "moving.shop.svc.cluster.local".to_owned();
    let hosts = (1..services).map(|service| format!("service-{service}.shop.example"));
    let hosts: Vec<String> = std::iter::once(moving).chain(hosts).collect();
    let of = |kind| {
        let name = |host: &String| match kind {
            Kind::Listener => format!("{host}:9080"),
            _ => format!("outbound|9080||{host}"),
        };
        (kind, hosts.iter().map(name).collect())
    };
    Kind::ALL.into_iter().map(of).collect()
}

async fn connect(address: std::net::SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::disallowed_methods, reason = "how large to go is asked of whoever runs it")]
async fn every_client_has_accepted_a_change_soon_after_it() {
    let sizes = std::env::var("MESH_SCALE").unwrap_or_else(|_| "50,10,20".to_owned());
    let sizes: Vec<usize> = sizes.split(',').map(|size| size.parse().unwrap()).collect();
    let (services, endpoints, clients) = (sizes[0], sizes[1], sizes[2]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mesh.yaml"), config(services, endpoints)).unwrap();
    let mut control = Control::start(dir.path(), &["--settle", "0"]);
    let address = control.address("xds listening on ");

    let mut workload = Delta::open(connect(address).await, labelled("moving-1", "moving")).await.unwrap();
    let listeners: Vec<String> =
        (0..=endpoints).map(|n| format!("xds.istio.io/grpc/lds/inbound/127.0.0.1:{}", 20_000 + n)).collect();
    let listeners: Vec<&str> = listeners.iter().map(String::as_str).collect();
    workload.send(Kind::Listener, &listeners[1..], &[]).await;
    workload.take().await;
    println!("without clients: resident {} MiB", control.resident() >> 20);

    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    let (seen, mut all_seen) = mpsc::channel::<Instant>(clients);
    for _ in 0..clients {
        tasks.spawn(client(connect(address).await, names(services), seen.clone()));
    }
    let mut round = async |since: Instant| {
        let mut times = Vec::new();
        while times.len() < clients {
            let at = tokio::time::timeout(PATIENCE, all_seen.recv()).await.unwrap().unwrap();
            times.push(at.saturating_duration_since(since));
        }
        times
    };
    let first = round(start).await;
    println!("{clients} clients hold {services} services after {:?}", first.iter().max().unwrap());
    println!("with clients: resident {} MiB", control.resident() >> 20);
    let mut times = Vec::new();
    for change in 0..CHANGES {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let since = Instant::now();
        match change % 2 {
            0 => workload.send(Kind::Listener, &listeners[..1], &[]).await,
            _ => workload.send(Kind::Listener, &[], &listeners[..1]).await,
        }
        times.extend(round(since).await);
    }
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("accepted by all: p50 {:?}, p99 {:?}, max {:?}", at(50), at(99), at(100));
    println!("after {CHANGES} changes: resident {} MiB", control.resident() >> 20);
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

/// Asks for everything, and says when it has it, and when it has accepted each change.
async fn client(channel: Channel, names: BTreeMap<Kind, Vec<String>>, seen: mpsc::Sender<Instant>) {
    let mut client = Delta::open(channel, node("mesh-core")).await.unwrap();
    let mut missing = 0;
    for (kind, names) in &names {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        missing += names.len();
        client.send(*kind, &names, &[]).await;
    }
    while missing > 0 {
        let response = client.next().await;
        client.answer(&response, None).await;
        missing -= response.resources.len() + response.removed_resources.len();
    }
    seen.send(Instant::now()).await.unwrap();
    for _ in 0..CHANGES {
        let response = client.next().await;
        assert_eq!(response.resources.len(), 1, "only what changed");
        client.answer(&response, None).await;
        seen.send(Instant::now()).await.unwrap();
    }
}

/// A server in a process of its own with a plugged-in authority, and that authority.
struct Issuing {
    address: std::net::SocketAddr,
    /// Who vouches for the server.
    operator: Authority,
    authority: mesh_control::ca::CertificateAuthority,
    began: std::time::SystemTime,
    _control: Logged,
    _dirs: [tempfile::TempDir; 3],
}

impl Issuing {
    fn start() -> Issuing {
        let (config, ca, files) = (tempfile::tempdir().unwrap(), plugged_in(), tempfile::tempdir().unwrap());
        let operator = Authority::new();
        let tls = crate::certificates::files(files.path(), &operator);
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (secure, ca_dir) = (address.to_string(), ca.path().to_str().unwrap());
        let tls = ["--tls-cert", tls.cert.to_str().unwrap(), "--tls-key", tls.key.to_str().unwrap()];
        let more = [&["--ca-dir", ca_dir, "--settle", "0", "--secure-addr", &secure], &tls[..]].concat();
        let control = Logged::saying("error", "127.0.0.1:0", config.path(), &more);
        let began = std::time::SystemTime::now();
        let domain = "cluster.local".parse().unwrap();
        let authority = mesh_control::ca::CertificateAuthority::plugged_in(ca.path(), None, domain, began).unwrap();
        Issuing { address, operator, authority, began, _control: control, _dirs: [config, ca, files] }
    }

    /// The key of a workload, and its certificate.
    fn workload(&self, name: &str) -> (String, mesh_control::ca::Issued) {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}");
        let (key, issued) = self.authority.issue_with_key(&identity.parse().unwrap(), 600, self.began).unwrap();
        (key.to_string(), issued)
    }

    /// A connection of that workload.
    async fn connect(&self, (key, issued): &(String, mesh_control::ca::Issued)) -> Channel {
        let (_, chain) = issued.chain.split_last().unwrap();
        secured(self.address, &[self.operator.0.der().clone()], Some((key, chain))).await.unwrap()
    }
}

/// One identity asks a thousand times a second, and two hundred others once each.
///
/// `cargo test --release -p mesh-control --test ads_server c14_one_identity -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, for the release profile"]
async fn c14_one_identity_that_asks_without_end_holds_up_nobody_else() {
    const BAR: Duration = Duration::from_millis(100);
    let server = Issuing::start();
    let mut others = Vec::new();
    for number in 0..200 {
        others.push(server.connect(&server.workload(&format!("web-{number}"))).await);
    }
    let channel = server.connect(&server.workload("flood")).await;
    let (requests, request) = (request(&[]), request(&[]));
    let flood = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        let mut asked = tokio::task::JoinSet::new();
        loop {
            ticks.tick().await;
            asked.spawn(create(channel.clone(), requests.clone(), None));
            while asked.try_join_next().is_some() {}
        }
    });
    let mut times = Vec::new();
    for channel in others {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let began = Instant::now();
        create(channel, request.clone(), None).await.unwrap();
        times.push(began.elapsed());
    }
    flood.abort();
    times.sort();
    let (half, most) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("beside 1,000 requests a second of one identity, others wait {half:?} (median), {most:?} (99 %)");
    assert!(most < BAR, "the bar is {BAR:?}");
}

/// Two thousand workloads with live certificates, each over a connection of its own, to a server of its own process.
///
/// `cargo test --release -p mesh-control --test ads_server two_thousand_over_tls -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, for the release profile"]
async fn two_thousand_over_tls_renew_at_once() {
    const WORKLOADS: usize = 2_000;
    const BAR: Duration = Duration::from_secs(10);
    let server = Issuing::start();
    for (who, accounts) in [("as many identities", WORKLOADS), ("one identity", 1)] {
        let workloads: Vec<_> = (0..WORKLOADS)
            .map(|number| (server.workload(&format!("web-{}", number % accounts)), request(&[])))
            .collect();
        let (address, trusted) = (server.address, server.operator.0.der().clone());
        let began = Instant::now();
        let all = workloads.into_iter().map(|((key, issued), request)| {
            let trusted = trusted.clone();
            tokio::spawn(async move {
                let (_, chain) = issued.chain.split_last().unwrap();
                let channel =
                    secured(address, &[trusted], Some((&key, chain))).await.map_err(|error| format!("{error:?}"))?;
                let signed = create(channel, request, None).await.map_err(|status| status.to_string())?;
                Ok::<_, String>((began.elapsed(), signed.len()))
            })
        });
        let mut times = Vec::new();
        let mut errors = Vec::new();
        for one in futures_util::future::join_all(all).await {
            match one.unwrap() {
                Ok((time, certificates)) => {
                    assert_eq!(certificates, 3, "leaf, intermediate, roots");
                    times.push(time);
                }
                Err(error) => errors.push(error),
            }
        }
        times.sort();
        let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default();
        let all = times.last().copied().unwrap_or_default();
        println!(
            "{WORKLOADS} workloads of {who}: half within {:?}, 99 % within {:?}, all within {all:?}; {} errors{}",
            at(0.5),
            at(0.99),
            errors.len(),
            errors.first().map(|error| format!(", the first: {error}")).unwrap_or_default(),
        );
        assert!(errors.is_empty() && all < BAR, "the bar is {BAR:?}, and no error");
    }
}
