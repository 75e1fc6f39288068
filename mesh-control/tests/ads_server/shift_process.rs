//! `mesh-control shift` as people run it: against a server in a process of its own, its files, and real requests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use http::StatusCode;
use mesh_core::xds::{Bootstrap, XdsSource};
use mesh_tower::Mesh;
use serde_json::{Value, json};

use crate::process::{Control, command, text};
use crate::support::PATIENCE;

/// A server that fails one of twenty requests while it is told to.
async fn upstream(fails: Arc<AtomicBool>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let answer = move || {
        let is_bad = fails.load(Relaxed) && count.fetch_add(1, Relaxed) % 20 == 19;
        async move { if is_bad { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK } }
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    address
}

fn config(v1: SocketAddr, v2: SocketAddr) -> String {
    let endpoint = |version: &str, at: SocketAddr| {
        format!("  - {{address: {}, ports: {{http: {}}}, labels: {{version: {version}}}}}\n", at.ip(), at.port())
    };
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: reviews, namespace: shop}}
spec:
  hosts: [reviews.example.com]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints:
{}{}---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: reviews, namespace: shop}}
spec:
  host: reviews.example.com
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews, namespace: shop}}
spec:
  hosts: [reviews.example.com]
  http:
  - route:   # who gets what
    - destination: {{host: reviews.example.com, subset: v1}}
      weight: 100
    - destination: {{host: reviews.example.com, subset: v2}}
      weight: 0
",
        endpoint("v1", v1),
        endpoint("v2", v2)
    )
}

struct Shop {
    _control: Control,
    status: String,
    dir: tempfile::TempDir,
    mesh: Mesh,
}

impl Shop {
    fn start(yaml: &str) -> Shop {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("reviews.yaml"), yaml).unwrap();
        let (control, xds, status) = Control::listening(dir.path());
        let bootstrap = Bootstrap::new(xds.to_string())
            .node_id("mesh~127.0.0.1~web-7.shop~shop.svc.cluster.local")
            .metadata("NAMESPACE", "shop")
            .metadata("WORKLOAD_NAME", "web")
            .metadata("LABELS", json!({"app": "web"}));
        let mesh = Mesh::builder().source(XdsSource::new(bootstrap)).cold_start_wait(PATIENCE).start().unwrap();
        Shop { _control: control, status, dir, mesh }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("reviews.yaml")
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap()
    }

    fn history(&self) -> PathBuf {
        self.dir.path().join("history.jsonl")
    }

    fn shift(&self, more: &[&str]) -> Child {
        let (dir, history) = (path(self.dir.path()), self.history());
        let common = [
            "shift",
            "reviews.example.com",
            "-n",
            "shop",
            "--to",
            "v2",
            "--config",
            &dir,
            "--status-addr",
            &self.status,
        ];
        let mut command = command(&[&common[..], &["--history", &path(&history)], more].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs")
    }

    /// Requests until it ends: how it ended, how many there were, and how many of them failed.
    async fn under_load(&self, shift: Child) -> (Output, u64, u64) {
        let ended = tokio::task::spawn_blocking(move || shift.wait_with_output().unwrap());
        let (mut all, mut failed) = (0, 0);
        while !ended.is_finished() {
            let answer = self.mesh.client().get("http://reviews.example.com/").await;
            all += 1;
            failed += u64::from(!answer.is_ok_and(|answer| answer.status().is_success()));
        }
        (ended.await.unwrap(), all, failed)
    }

    /// Waits until the file says so, with requests on the way.
    async fn until_written(&self, what: &str) {
        let come = async {
            while !self.text().contains(what) {
                _ = self.mesh.client().get("http://reviews.example.com/").await;
            }
        };
        tokio::time::timeout(PATIENCE, come).await.expect("it is written");
    }
}

fn path(path: &Path) -> String {
    path.to_str().expect("a plain path").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shift_goes_back_if_the_subset_fails_and_all_the_way_if_it_does_well() {
    let fails = Arc::new(AtomicBool::new(true));
    let (v1, v2) = (upstream(Arc::default()).await, upstream(Arc::clone(&fails)).await);
    let yaml = config(v1, v2);
    let shop = Shop::start(&yaml);

    let (out, all, failed) = shop.under_load(shop.shift(&["--steps", "5,100", "--every", "20s"])).await;
    let said = text(&out.stdout);
    assert_eq!(out.status.code(), Some(3), "{said}{}", text(&out.stderr));
    assert!(
        said.contains("v2 gets 5 %\n") && said.contains("rolled back") && said.contains("requests failed"),
        "{said}"
    );
    assert_eq!(shop.text(), yaml, "everything is as it was");
    assert!(failed > 0 && failed * 200 <= all, "{failed} of {all} requests failed: more than 0.5 %");

    fails.store(false, Relaxed);
    let (out, _, failed) = shop.under_load(shop.shift(&["--steps", "20,100", "--every", "2s", "-o", "json"])).await;
    assert_eq!((out.status.code(), failed), (Some(0), 0), "{}{}", text(&out.stdout), text(&out.stderr));
    let finished = yaml.replace("weight: 100\n", "weight: @\n").replace("weight: 0\n", "weight: 100\n");
    assert_eq!(shop.text(), finished.replace("weight: @\n", "weight: 0\n"), "comments and all");

    // Somebody else decides otherwise: it is theirs.
    std::fs::write(shop.file(), &yaml).unwrap();
    let shift = shop.shift(&["--every", "60s", "--steps", "20"]);
    shop.until_written("weight: 20\n").await;
    let other = yaml.replace("weight: 100\n", "weight: 50\n").replace("weight: 0\n", "weight: 50\n");
    std::fs::write(shop.file(), &other).unwrap();
    let (out, ..) = shop.under_load(shift).await;
    assert_eq!((out.status.code(), shop.text()), (Some(1), other), "{}", text(&out.stdout));

    // Whoever stops it gets back what there was.
    std::fs::write(shop.file(), &yaml).unwrap();
    let shift = shop.shift(&["--every", "60s", "--steps", "20"]);
    shop.until_written("weight: 20\n").await;
    // Somebody's editor is not done yet, which ends nothing.
    std::fs::write(shop.file(), &yaml[..yaml.len() / 2]).unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    std::fs::write(shop.file(), yaml.replace("weight: 100\n", "weight: 80\n").replace("weight: 0\n", "weight: 20\n"))
        .unwrap();
    let pid = shift.id().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
    let (out, ..) = shop.under_load(shift).await;
    assert_eq!((out.status.code(), shop.text()), (Some(3), yaml), "{}", text(&out.stdout));

    let history = std::fs::read_to_string(shop.history()).unwrap();
    let events: Vec<Value> = history.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    let expected = ["step", "rolled_back", "step", "step", "finished", "step", "left", "step", "rolled_back"];
    assert_eq!(names, expected, "{history}");
    assert!(events[1]["failures"].as_u64() > Some(1) && events[1]["reason"].is_string(), "{}", events[1]);
    assert_eq!((&events[3]["share"], &events[3]["virtual_service"]), (&json!(100), &json!("shop/reviews")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shift_that_makes_no_sense_writes_nothing_and_says_why() {
    let (v1, v2) = (upstream(Arc::default()).await, upstream(Arc::default()).await);
    let yaml = config(v1, v2);
    let shop = Shop::start(&yaml);
    for (more, expected) in [
        (&["--steps", "0,50"][..], "the first step is 0 %, and the subset has 0 % already"),
        (&["--steps", "50,20"], "every step has to be above the one before it"),
        (&["--steps", "50,101"], "101 % is more than all"),
        (&["--to", "v3"], "no VirtualService in"),
        (&["-n", "shop", "--virtual-service", "shop/other"], "no VirtualService in"),
        (&["--status-addr", "127.0.0.1:1"], "cannot reach mesh-control's status at 127.0.0.1:1"),
    ] {
        // What is said last counts.
        let (dir, mut arguments) = (path(shop.dir.path()), vec!["shift", "reviews.example.com"]);
        let standing = ["-n", "shop", "--to", "v2", "--status-addr", &shop.status];
        let pairs = standing.chunks(2).filter(|pair| !more.contains(&pair[0])).flatten();
        arguments.extend(pairs.copied().chain(["--config", &dir]).chain(more.iter().copied()));
        let out = command(&arguments).output().unwrap();
        let why = text(&out.stderr);
        assert!(out.status.code() == Some(1) && why.contains(expected), "{more:?}: {why}");
    }
    let out = shop.shift(&["--dry-run", "--steps", "20,100"]).wait_with_output().unwrap();
    let said = text(&out.stdout);
    assert!(out.status.success() && said.ends_with("[100, 0] -> [80, 20] -> [0, 100]\n"), "{said}");
    let wrong = yaml.replace("  - route:   #", "  - timeout: soon\n    route:   #");
    std::fs::write(shop.file(), &wrong).unwrap();
    let out = shop.shift(&[]).wait_with_output().unwrap();
    assert!(text(&out.stderr).contains("VirtualService shop/reviews is wrong"), "{}", text(&out.stderr));
    assert_eq!((shop.text(), shop.history().exists()), (wrong, false));
}
