//! What breaks must not be noticed: services are replaced, and the control plane dies or hangs, under load, with real
//! processes.
//!
//! By default these are short. `MESH_TEST_FULL=1 cargo test --release -p mesh-examples --test faults` makes them as
//! long as they are meant: 20,000 pages over a rolling restart, and a control plane that hangs for 60 s.

mod process;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mesh_examples::bookinfo::{App, Product, Service, manifests, product};
use mesh_examples::load::{self, Pace};
use mesh_examples::node::{Control, Workload};
use mesh_tower::Mesh;
use process::{PATIENCE, Process, program};
use tokio::task::JoinHandle;

#[allow(clippy::disallowed_methods, reason = "how long a test takes is for whoever runs it to say")]
fn is_full() -> bool {
    std::env::var_os("MESH_TEST_FULL").is_some()
}

/// A bookinfo of processes.
struct Processes {
    config: tempfile::TempDir,
    control: ControlPlane,
    services: Vec<(Service, Process)>,
    /// A caller in this process.
    mesh: Mesh,
}

impl Processes {
    async fn start() -> Processes {
        let config = tempfile::tempdir().unwrap();
        std::fs::write(config.path().join("base.yaml"), manifests::base()).unwrap();
        let control = ControlPlane::start(config.path(), "127.0.0.1:0").await;
        let mut services = Vec::new();
        for service in Service::all() {
            let process = start_service(&service, &control.address).await;
            services.push((service, process));
        }
        let server = Control::Server(control.address.clone());
        let mesh = server.mesh(&Workload::new("caller", "v1")).start().unwrap();
        let processes = Processes { config, control, services, mesh };
        processes.until("every service finds the others", 20, Product::is_complete).await;
        processes
    }

    /// Sends all reviews to one version, from now on.
    fn route_reviews_to(&self, version: &str) {
        let yaml = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews}}\n\
             spec: {{hosts: [reviews], http: [{{route: [{{destination: {{host: reviews, subset: {version}}}}}]}}]}}\n"
        );
        std::fs::write(self.config.path().join("reviews.yaml"), yaml).unwrap();
    }

    /// Waits until so many pages in a row are as they should be. Returns how long that took.
    async fn until(&self, what: &str, pages: usize, is_so: impl Fn(&Product) -> bool) -> Duration {
        let started = Instant::now();
        let mut good = 0;
        while good < pages {
            let (call, page) = product(&self.mesh.client(), None, PATIENCE).await;
            good = if page.as_ref().is_some_and(&is_so) { good + 1 } else { 0 };
            assert!(started.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}: {call:?} {page:?}");
        }
        started.elapsed()
    }

    /// Waits until every service and the caller are clients of the control plane and have accepted all that there is
    /// for them, and every service is registered.
    async fn until_all_are_back(&self) -> Duration {
        let started = Instant::now();
        loop {
            let status = self.control.status().await;
            let clients = status["clients"].as_array().cloned().unwrap_or_default();
            let mut kinds = clients.iter().flat_map(|client| client["kinds"].as_array().into_iter().flatten());
            let current = kinds.all(|kind| matches!(kind["state"].as_str(), Some("synced" | "idle")));
            let workloads = status["workloads"].as_array().into_iter().flatten();
            let connected = workloads.filter(|workload| workload["connected"] == true).count();
            if current && clients.len() == self.services.len() + 1 && connected == self.services.len() {
                return started.elapsed();
            }
            assert!(started.elapsed() < PATIENCE, "not all are back: {status:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn until_reviews_are_of(&self, version: &str) -> Duration {
        let of = |page: &Product| page.reviews.call.version("reviews") == Some(version);
        self.until(&format!("reviews are of {version}"), 20, of).await
    }
}

/// A control server.
struct ControlPlane {
    process: Process,
    address: String,
    status: String,
}

impl ControlPlane {
    async fn start(config: &Path, address: &str) -> ControlPlane {
        let config = config.to_str().expect("a temporary directory has a plain name");
        let arguments = ["serve", "--config", config, "--xds-addr", address, "--status-addr", "127.0.0.1:0"];
        let mut process = Process::start(&program("mesh-control"), &arguments);
        let address = process.says("xds listening on ").await;
        let status = process.says("status listening on ").await;
        ControlPlane { process, address, status }
    }

    /// What it says of its clients and of the workloads that registered.
    async fn status(&self) -> serde_json::Value {
        let mut command = tokio::process::Command::new(program("mesh-control"));
        let asked = command.args(["status", "--json", "--addr", &self.status]).output().await.unwrap();
        serde_json::from_slice(&asked.stdout).unwrap_or_default()
    }
}

async fn start_service(service: &Service, control: &str) -> Process {
    let arguments = ["service", service.app.name(), "--version", &service.version, "--control", control];
    let mut process = Process::start(&program("bookinfo"), &arguments);
    process.says(" serving on ").await;
    process
}

/// Pages that are asked for while something happens.
struct Load {
    stop: Arc<AtomicBool>,
    pages: Arc<AtomicU64>,
    running: JoinHandle<Vec<String>>,
}

impl Load {
    /// Asks for pages at this rate until it is stopped.
    fn start(mesh: &Mesh, rate: f64) -> Load {
        let (stop, pages) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted, client) = (Arc::clone(&stop), Arc::clone(&pages), mesh.client());
        let running = tokio::spawn(async move {
            let started = Instant::now();
            let call = |number: u64, _| {
                let client = client.clone();
                async move {
                    let user = number.is_multiple_of(4).then_some("jason");
                    (started.elapsed(), product(&client, user, Duration::from_secs(10)).await)
                }
            };
            let mut failures = Vec::new();
            let each = |(at, (call, page)): (Duration, (_, Option<Product>))| {
                counted.fetch_add(1, Ordering::Relaxed);
                if !page.as_ref().is_some_and(Product::is_complete) {
                    failures.push(format!("at {at:?}: {call:?} {page:?}"));
                }
            };
            let ended = async {
                while !stopped.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let pace = Pace { count: None, time: None, rate: Some(rate), concurrency: 1000 };
            load::run(&pace, ended, call, each).await;
            failures
        });
        Load { stop, pages, running }
    }

    fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    /// Stops, and holds every page to have been complete. Returns how many there were.
    async fn end_without_failure(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let failures = tokio::time::timeout(PATIENCE, self.running).await.expect("the load ends").unwrap();
        let pages = self.pages.load(Ordering::Relaxed);
        let shown = failures.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
        assert!(failures.is_empty(), "{} of {pages} pages were not complete:\n{shown}", failures.len());
        pages
    }
}

fn rate() -> f64 {
    if cfg!(debug_assertions) { 60.0 } else { 400.0 }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_every_service_fails_no_request() {
    let mut processes = Processes::start().await;
    let load = Load::start(&processes.mesh, rate());
    let wanted = if is_full() { 20_000 } else { 500 };
    for position in 0..processes.services.len() {
        let service = processes.services[position].0.clone();
        let fresh = start_service(&service, &processes.control.address).await;
        let mut old = std::mem::replace(&mut processes.services[position].1, fresh);
        old.signal("TERM").await;
        assert!(old.ended().await.success(), "{service} cut requests");
        // The next service is restarted once its share of the pages has seen this one gone.
        let share = wanted * (position as u64 + 1) / processes.services.len() as u64;
        while load.pages() < share {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let pages = load.end_without_failure().await;
    assert!(pages >= wanted);
    report(&format!("rolling restart of {} services: 0 of {pages} pages failed", App::ALL.len() + 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_killed_and_comes_back_fails_no_request() {
    let mut processes = Processes::start().await;
    processes.route_reviews_to("v2");
    processes.until_reviews_are_of("v2").await;
    let load = Load::start(&processes.mesh, rate());
    tokio::time::sleep(Duration::from_secs(1)).await;

    processes.control.process.signal("KILL").await;
    processes.control.process.ended().await;
    tokio::time::sleep(Duration::from_secs(if is_full() { 20 } else { 3 })).await;

    let control = ControlPlane::start(processes.config.path(), &processes.control.address).await;
    processes.control = control;
    let back = Instant::now();
    processes.route_reviews_to("v3");
    processes.until_reviews_are_of("v3").await;
    processes.until_all_are_back().await;
    let back = back.elapsed();
    assert!(back < Duration::from_secs(5), "all are back and up to date only after {back:?}");

    // Past the time for which endpoints were held: those that did not come back would go now.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let pages = load.end_without_failure().await;
    report(&format!("control plane killed: 0 of {pages} pages failed; all clients back and up to date after {back:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_left_while_the_control_plane_was_down_is_known_soon_after_it_is_back() {
    let mut processes = Processes::start().await;
    let details = processes.services.iter().find(|(service, _)| service.app == App::Details).unwrap().0.clone();
    let mut second = start_service(&details, &processes.control.address).await;
    let seen = std::cell::RefCell::new(std::collections::BTreeSet::new());
    let are_both = |page: &Product| {
        seen.borrow_mut().extend(page.details.call.backend.clone());
        seen.borrow().len() == 2
    };
    processes.until("both of details are called", 1, are_both).await;

    processes.control.process.signal("KILL").await;
    processes.control.process.ended().await;
    second.signal("TERM").await;
    assert!(second.ended().await.success(), "the second {details} cut requests");
    tokio::time::sleep(Duration::from_secs(3)).await;

    // Clients keep both until those who come back had the time to, and then have one.
    let control = ControlPlane::start(processes.config.path(), &processes.control.address).await;
    processes.control = control;
    let back = processes.until_all_are_back().await;
    assert!(back < Duration::from_secs(5), "all are back and up to date only after {back:?}");
    processes.until("the one of details is called", 100, Product::is_complete).await;
    report(&format!("an endpoint left while the control plane was down: all clients up to date after {back:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_hangs_fails_no_request() {
    let processes = Processes::start().await;
    processes.route_reviews_to("v2");
    processes.until_reviews_are_of("v2").await;
    let load = Load::start(&processes.mesh, rate());
    tokio::time::sleep(Duration::from_secs(1)).await;

    processes.control.process.signal("STOP").await;
    let hangs = Duration::from_secs(if is_full() { 60 } else { 4 });
    tokio::time::sleep(hangs).await;

    processes.control.process.signal("CONT").await;
    let back = Instant::now();
    processes.route_reviews_to("v3");
    processes.until_reviews_are_of("v3").await;
    processes.until_all_are_back().await;
    let back = back.elapsed();
    assert!(back < Duration::from_secs(5), "all are back and up to date only after {back:?}");
    tokio::time::sleep(Duration::from_secs(8)).await;
    let pages = load.end_without_failure().await;
    report(&format!(
        "control plane hung for {hangs:?}: 0 of {pages} pages failed; all clients back and up to date after {back:?}"
    ));
}

#[allow(clippy::print_stderr, reason = "figures for whoever runs the test with --nocapture")]
fn report(line: &str) {
    eprintln!("{line}");
}
