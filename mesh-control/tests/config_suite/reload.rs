//! Files that change under a running plane, and workloads that come in numbers.

use std::fs;
use std::path::Path;
use std::time::Duration;

use mesh_control::analysis::validate_dir;
use mesh_control::catalog::Kind;
use mesh_control::config::Code;
use mesh_control::plane::{Plane, PlaneOptions};
use tokio::time::timeout;

use crate::support::{Seen, client, testdata, workload};

const LONG: Duration = Duration::from_secs(30);

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {name}}}, ports: [{{port: 80}}]}}\n"
    )
}

fn options(dir: &Path) -> PlaneOptions {
    PlaneOptions::default().config_dir(dir)
}

fn knows(plane: &Plane, name: &str) -> bool {
    let cluster = format!("outbound|80||{name}.default.svc.cluster.local");
    Seen::new(plane, client("default")).get(Kind::Cluster, &cluster).is_some()
}

#[tokio::test]
async fn a_change_of_a_file_is_in_force_soon_and_a_reload_says_when() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
    let plane = Plane::start(options(dir.path())).unwrap();
    assert!(knows(&plane, "a"));

    let mut snapshots = plane.subscribe();
    fs::write(dir.path().join("b.yaml"), service("b")).unwrap();
    let changed = snapshots.wait_for(|snapshot| snapshot.config_generation() >= 2);
    timeout(LONG, changed).await.expect("noticed").unwrap();
    assert!(knows(&plane, "b"));

    fs::write(dir.path().join("c.yaml"), service("c")).unwrap();
    let generation = plane.reload().await;
    assert!(knows(&plane, "c"));
    timeout(LONG, plane.wait_for_config(generation)).await.expect("it is in force already");
    assert_eq!(plane.reload().await, plane.snapshot().config_generation());
}

#[tokio::test]
async fn a_bad_file_and_an_emptied_directory_change_nothing_and_are_visible() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
    let plane = Plane::start(options(dir.path())).unwrap();
    fs::write(dir.path().join("a.yaml"), "nonsense: [").unwrap();
    plane.reload().await;
    assert!(knows(&plane, "a"));
    assert!(plane.diagnostics().iter().any(|finding| finding.code == Code::Syntax));
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    plane.reload().await;
    assert!(knows(&plane, "a"));
    assert!(plane.diagnostics().iter().any(|finding| finding.code == Code::Vanished));
    // A text that was handed in lives beside the directory.
    plane.set_yaml("b.yaml", &service("b")).unwrap();
    fs::write(dir.path().join("c.yaml"), service("c")).unwrap();
    plane.reload().await;
    assert!(!knows(&plane, "a") && knows(&plane, "b") && knows(&plane, "c"));
    plane.remove_yaml("b.yaml");
    assert!(!knows(&plane, "b"));
    assert!(plane.diagnostics().is_empty(), "{:?}", plane.diagnostics());
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_an_error_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Plane::start(options(&dir.path().join("none"))).is_err());
    assert!(validate_dir(&dir.path().join("none")).is_err());
    let report = validate_dir(&testdata("shop")).unwrap();
    assert_eq!(report.count(mesh_control::config::Severity::Error), 0, "{:?}", report.diagnostics);
    assert_eq!(report.objects, 8);
}

#[tokio::test(start_paused = true)]
async fn the_first_of_many_workloads_is_published_at_once_and_the_others_together() {
    let plane = Plane::from_yaml(&service("a")).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let count =
        |plane: &Plane| Seen::new(plane, client("default")).addresses("outbound|80||a.default.svc.cluster.local").len();
    let generation = plane.snapshot().generation();
    for number in 1..=50 {
        plane.register(workload(&format!("k{number}"), "a", "v1", &format!("10.0.0.{number}:80")));
    }
    assert_eq!((count(&plane), plane.snapshot().generation()), (1, generation + 1));
    tokio::time::sleep(Duration::from_millis(9)).await;
    assert_eq!(count(&plane), 1);
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!((count(&plane), plane.snapshot().generation()), (50, generation + 2));
    plane.unregister("k1");
    tokio::time::sleep(Duration::from_millis(11)).await;
    assert_eq!(count(&plane), 49);
}

#[tokio::test(start_paused = true)]
async fn the_last_clone_ends_the_task() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
    let plane = Plane::start(options(dir.path())).unwrap();
    let mut snapshots = plane.clone().subscribe();
    drop(plane);
    assert!(snapshots.changed().await.is_err(), "nobody publishes any more");
}

#[tokio::test]
async fn a_guard_of_a_namespace_that_cannot_be_guards_every_one() {
    for namespace in ["Default", "'default '", "istio_system"] {
        let dir = tempfile::tempdir().unwrap();
        let strict = format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: strict, namespace: {namespace}}}\nspec: {{mtls: {{mode: STRICT}}}}\n"
        );
        fs::write(dir.path().join("pa.yaml"), strict).unwrap();
        fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
        let plane = Plane::start(options(dir.path())).unwrap();
        let seen = Seen::new(&plane, client("default"));
        let listener = seen.get(Kind::Listener, "xds.istio.io/grpc/lds/inbound/10.0.0.1:80").unwrap();
        assert!(String::from_utf8_lossy(&listener.body).contains("PeerAuthentication"), "{namespace}");
    }
}

#[tokio::test]
async fn a_host_and_a_namespace_with_a_blank_still_govern_what_is_meant() {
    for (kind, metadata, spec) in [
        (
            "VirtualService",
            "{name: a, namespace: 'default '}",
            "{hosts: [a], http: [{route: [{destination: {host: a}}]}]}",
        ),
        ("VirtualService", "{name: a}", "{hosts: ['a '], http: [{rout: []}]}"),
        ("DestinationRule", "{name: a}", "{host: 'A ', trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {metadata}\nspec: {spec}\n");
        fs::write(dir.path().join("rule.yaml"), text).unwrap();
        fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
        let plane = Plane::start(options(dir.path())).unwrap();
        let routes = format!("{:?}", Seen::new(&plane, client("default")).routes_of("a:80"));
        assert!(routes.contains("is wrong, and no good state of it is known"), "{kind} {metadata}: {routes}");
    }
}
