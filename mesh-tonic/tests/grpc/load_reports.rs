//! Servers that report their load on a stream, and clients that go by it: YAML, the control plane, real sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Calculator, CalculatorClient, within};
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::fixed::Fixed;
use mesh_core::load_report::LoadReport;
use mesh_core::request_info::{Observer, RequestInfo};
use mesh_core::xds::Bootstrap;
use mesh_tonic::load_reports::LoadReports;
use mesh_tower::Mesh;
use mesh_tower::server::MeshListener;
use tonic::transport::Server;

/// How many calls a server answered that are no streams of reports.
#[derive(Clone, Debug, Default)]
struct Calls(Arc<AtomicU32>);

impl Observer for Calls {
    fn on_end(&self, _: &RequestInfo) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Reporting {
    mesh: Mesh,
    port: u16,
    calls: Calls,
    reports: Arc<AtomicU32>,
    ended: tokio::task::JoinHandle<Result<(), mesh_core::error::MeshError>>,
}

/// A server that says it can do so many requests a second, or a ninth of that where `is_slow`.
async fn reporting(rate: f64, is_slow: Arc<AtomicBool>) -> Reporting {
    let calls = Calls::default();
    let mesh = Mesh::builder().source(Fixed::new()).observer(calls.clone());
    let mesh = mesh.lame_duck(Duration::ZERO).start().unwrap();
    let listener: MeshListener = mesh.bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().port();
    let reports = Arc::<AtomicU32>::default();
    let counted = Arc::clone(&reports);
    let load = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        let mut report = LoadReport::default();
        let rate = if is_slow.load(Ordering::SeqCst) { rate / 9.0 } else { rate };
        (report.application_utilization, report.requests_per_second) = (0.5, rate);
        report
    };
    let service = LoadReports::new(&mesh, load).least_interval(Duration::from_millis(50));
    let mut server = Server::builder().layer(mesh_tonic::server_layer(&mesh));
    let server = server.add_service(Calculator::default()).add_service(service);
    let ended = tokio::spawn(mesh_tonic::serve(listener, server));
    mesh.serving().await.unwrap();
    Reporting { mesh, port, calls, reports, ended }
}

#[tokio::test]
async fn servers_that_report_on_a_stream_get_calls_by_what_they_say_and_leave_without_waiting() {
    let is_slow = Arc::<AtomicBool>::default();
    let (large, small) = (reporting(300.0, Arc::clone(&is_slow)).await, reporting(100.0, Arc::default()).await);
    let yaml = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: calculator}}
spec:
  hosts: [calculator.example.com]
  resolution: STATIC
  ports: [{{number: 80, name: grpc, protocol: GRPC}}]
  endpoints: [{{address: 127.0.0.1, ports: {{grpc: {}}}}}, {{address: 127.0.0.1, ports: {{grpc: {}}}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: calculator
  annotations: {{mesh-control/load-balancer: 'policy=weighted-by-load, blackout=1ms, outOfBand=100ms'}}
spec: {{host: calculator.example.com}}
",
        large.port, small.port
    );
    let control = Embedded::start(Config::yaml(yaml), Options::default()).await.unwrap_or_else(|why| panic!("{why}"));
    let mesh = Mesh::builder().source(control.source(Bootstrap::new("embedded"))).start().unwrap();
    let client = CalculatorClient(mesh_tonic::channel(&mesh, "xds:///calculator.example.com:80"));
    let started = Instant::now();
    // How many of 40 calls the first one gets.
    let share = async || {
        let before = large.calls.0.load(Ordering::SeqCst);
        for _ in 0..40 {
            assert_eq!(within(client.double(2)).await.unwrap(), 4);
        }
        large.calls.0.load(Ordering::SeqCst) - before
    };
    while share().await.abs_diff(30) > 2 {
        assert!(started.elapsed() < Duration::from_secs(20), "its weights never count");
    }
    is_slow.store(true, Ordering::SeqCst);
    while share().await.abs_diff(10) > 2 {
        assert!(started.elapsed() < Duration::from_secs(20), "what changed is never taken in");
    }
    assert!(small.reports.load(Ordering::SeqCst) > 1, "they come again and again");
    // By the names of gRPC: some of it was not known at first, and all of it later.
    let text = mesh.prometheus();
    let place = r#"grpc_target="xds:///calculator.example.com:80",grpc_lb_backend_service="#;
    let counted = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("grpc_lb_wrr_{name}{{{place}")));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or_else(|| panic!("{name}: {text}"))
    };
    assert!(counted("rr_fallback_total") > 0 && counted("endpoint_weight_not_yet_usable_total") > 0, "{text}");
    assert!(counted("endpoint_weights_count") > 1, "{text}");
    assert_eq!(counted("endpoint_weight_stale_total"), 0);
    for server in [large, small] {
        server.mesh.drain().begin().await;
        within(server.ended).await.unwrap().unwrap();
    }
}
