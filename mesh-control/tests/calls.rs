//! Audit before enforcing, as people do it: workloads serve, others call them, and the command writes policies from what was
//! seen and says what they would change. Real processes, real sockets, real mutual TLS.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use mesh_control::calls::{Protocol, Record, Verdict};
use mesh_core::error::MeshError;
use mesh_core::xds::{Bootstrap, XdsSource};
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Generous: it only bounds a test that fails.
const PATIENCE: Duration = Duration::from_secs(60);

const CONFIG: &str = "
apiVersion: v1
kind: Service
metadata: {name: productpage, namespace: default}
spec: {selector: {app: productpage}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: details, namespace: default}
spec: {selector: {app: details}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: default}
spec: {selector: {app: ratings}, ports: [{name: http, port: 9080}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: page, namespace: default}
spec: {selector: {matchLabels: {app: productpage}}, mtls: {mode: PERMISSIVE}}
";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn command(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
    command.args(arguments).env("RUST_LOG", "warn").output().unwrap()
}

/// A service that runs.
struct Served {
    mesh: Mesh,
    address: SocketAddr,
    serving: tokio::task::JoinHandle<Result<(), MeshError>>,
}

impl Served {
    /// Serves the last request, and is gone.
    async fn leave(self) {
        self.mesh.drain().begin().await;
        self.serving.await.unwrap().unwrap();
    }
}

/// A server with a place for its state.
struct Control {
    child: Child,
    xds: SocketAddr,
    status: String,
    config: TempDir,
    state: TempDir,
}

impl Control {
    fn start() -> Control {
        let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(config.path().join("shop.yaml"), CONFIG).unwrap();
        let (child, xds, status) = Control::spawn(config.path(), state.path(), "127.0.0.1:0");
        Control { child, xds, status, config, state }
    }

    fn spawn(config: &Path, state: &Path, xds: &str) -> (Child, SocketAddr, String) {
        let [config, state] = [config, state].map(|path| path.to_str().unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
        command.args(["serve", "--dev", "--config", config, "--state-dir", state, "--xds-addr", xds]);
        command.args(["--status-addr", "127.0.0.1:0", "--settle", "0"]).env("RUST_LOG", "error");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut address = |name: &str| loop {
            let mut line = String::new();
            assert!(stdout.read_line(&mut line).unwrap() > 0, "it has ended before it was listening: {name}");
            if let Some(address) = line.trim().strip_prefix(&format!("{name} listening on ")) {
                return address.to_owned();
            }
        };
        let (xds, status) = (address("xds"), address("status"));
        (child, xds.parse().unwrap(), status)
    }

    /// Killed, as by a machine that fails, and started again in the same place.
    fn restart(&mut self) {
        self.kill();
        let (child, _, status) = Control::spawn(self.config.path(), self.state.path(), &self.xds.to_string());
        (self.child, self.status) = (child, status);
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn mesh(&self, app: &str, account: &str) -> Mesh {
        let bootstrap = Bootstrap::new(self.xds.to_string())
            .node_id(format!("mesh~127.0.0.1~{app}-{:x}.default~default.svc.cluster.local", fastrand::u64(..)))
            .metadata("NAMESPACE", "default")
            .metadata("SERVICE_ACCOUNT", account)
            .metadata("LABELS", json!({"app": app, "version": "v1", "pod-template-hash": "x"}));
        Mesh::builder().source(XdsSource::new(bootstrap)).cold_start_wait(PATIENCE).start().unwrap()
    }

    /// A service that answers whatever it is asked.
    async fn serve(&self, app: &str) -> Served {
        let mesh = self.mesh(app, &format!("bookinfo-{app}"));
        let listener = mesh.bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr();
        let app = axum::Router::new().fallback(|| async { "here" }).layer(mesh.server_layer());
        let serving = tokio::spawn(mesh_tower::server::serve(listener, app).into_future());
        mesh.serving().await.unwrap();
        Served { mesh, address, serving }
    }

    async fn records(&self) -> Vec<Record> {
        let mut stream = tokio::net::TcpStream::connect(&self.status).await.unwrap();
        stream.write_all(b"GET /calls HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(!answer.contains("secret") && !answer.contains("pod-template-hash"), "{answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        body.lines().map(|line| Record::parse(line.as_bytes()).unwrap()).collect()
    }

    /// Waits until the records are as they should be.
    async fn until(&self, what: &str, is_so: impl Fn(&[Record]) -> bool) -> Vec<Record> {
        let come = async {
            loop {
                let records = self.records().await;
                if is_so(&records) {
                    return records;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, come).await {
            Ok(records) => records,
            Err(_) => panic!("{what}: {:#?}", self.records().await),
        }
    }

    fn suggest(&self, workload: &str, more: &[&str]) -> Output {
        command(&[&["authz", "suggest", "--workload", workload, "--control", &self.status], more].concat())
    }

    fn preview(&self, file: &Path, more: &[&str]) -> Output {
        let (file, config) = (file.to_str().unwrap(), self.config.path().to_str().unwrap());
        command(&[&["authz", "preview", file, "--config", config, "--control", &self.status], more].concat())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn call(mesh: &Mesh, method: &str, to: &str, path: &str) -> u16 {
    let mut request = Request::builder().method(method).uri(format!("http://{to}.default:9080{path}"));
    if method == "POST" && path.contains('.') {
        request = request.header("content-type", "application/grpc");
    }
    let response = mesh.client().request(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    status
}

/// A caller without TLS.
async fn in_plaintext(address: SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: productpage\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn count(records: &[Record], app: &str, method: &str, path: &str) -> u64 {
    let fits = |record: &&Record| {
        (&*record.workload.name, &*record.method, &*record.path) == (app, method, path) && record.principal.is_some()
    };
    records.iter().filter(fits).map(|record| record.count).sum()
}

fn write(dir: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// A bookinfo that has been used: the services, and what they were seen to do.
async fn used(control: &Control) -> (Vec<Served>, Mesh) {
    let mut services = Vec::new();
    for app in ["productpage", "details", "reviews", "ratings"] {
        services.push(control.serve(app).await);
    }
    let reader = control.mesh("reader", "default");
    let [page, _, reviews, _] = &services[..] else { panic!("four services") };
    for number in 0..20 {
        for path in ["/productpage?user=secret".to_owned(), format!("/api/v1/products/{number}/reviews")] {
            assert_eq!(call(&reader, "GET", "productpage", &path).await, 200);
        }
        assert_eq!(call(&page.mesh, "GET", "details", &format!("/details/{number}")).await, 200);
        assert_eq!(call(&page.mesh, "GET", "reviews", &format!("/reviews/{number}?token=secret")).await, 200);
        assert_eq!(call(&reviews.mesh, "GET", "ratings", &format!("/ratings/{number}")).await, 200);
        assert_eq!(call(&reviews.mesh, "POST", "ratings", "/bookinfo.Ratings/Get").await, 200);
    }
    assert!(in_plaintext(page.address, "/health").await.contains("200"));
    (services, reader)
}

fn is_complete(records: &[Record]) -> bool {
    [
        ("productpage", "GET", "/productpage"),
        ("productpage", "GET", "/api/v1/products/{*}/reviews"),
        ("details", "GET", "/details/{*}"),
        ("reviews", "GET", "/reviews/{*}"),
        ("ratings", "GET", "/ratings/{*}"),
        ("ratings", "POST", "/bookinfo.Ratings/Get"),
    ]
    .iter()
    .all(|(app, method, path)| count(records, app, method, path) >= 19)
        && records.iter().any(|record| record.principal.is_none() && &*record.path == "/health")
}

const APPS: [&str; 4] = ["productpage", "details", "reviews", "ratings"];

/// What the evaluator of the data plane says of requests, one verdict each.
fn verdicts(config: &Path, requests: &[Value]) -> Vec<String> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mesh-control"))
        .args(["authz", "test", "--config", config.to_str().unwrap(), "--requests", "-", "-o", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: String = requests.iter().map(|request| format!("{request}\n")).collect();
    let mut stdin = child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || stdin.write_all(lines.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    let answers = text(&output.stdout);
    answers
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["verdict"].as_str().unwrap().into())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_seen_is_allowed_and_hardly_anything_else() {
    let control = Control::start();
    let (_services, reader) = used(&control).await;
    let records = control.until("all calls are recorded", is_complete).await;
    assert!(records.iter().all(|record| record.verdict == Verdict::Allow && record.port > 0));
    assert!(records.iter().any(|record| record.protocol == Protocol::Grpc));

    // The caller without an identity is told of, and makes the command fail until it is allowed by name.
    let refused = control.suggest("default/productpage", &[]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(text(&refused.stdout).contains("# NOT LET IN, though it was:"), "{}", text(&refused.stdout));
    assert!(text(&refused.stderr).contains("GET /health"), "{}", text(&refused.stderr));
    for app in APPS {
        let suggested = control.suggest(&format!("default/{app}"), &["--allow-plaintext"]);
        assert_eq!(suggested.status.code(), Some(0), "{}", text(&suggested.stderr));
        write(control.config.path(), &format!("suggested-{app}.yaml"), &text(&suggested.stdout));
    }
    let valid = command(&["validate", control.config.path().to_str().unwrap()]);
    assert_eq!(valid.status.code(), Some(0), "{}", text(&valid.stdout));

    // Every (identity, method, path) that there could be.
    let identities: BTreeSet<_> = records.iter().filter_map(|record| record.principal.as_deref()).collect();
    let strangers = ["spiffe://cluster.local/ns/default/sa/spy", "spiffe://cluster.local/ns/other/sa/default"];
    let paths: BTreeSet<_> = records.iter().map(|record| record.path.replace("{*}", "7")).collect();
    let unseen =
        ["/", "/admin", "/reviews", "/reviews/7/8", "/api/v1/products", "/bookinfo.Ratings/Set", "/ratings/7/"];
    let paths: Vec<&str> = paths.iter().map(String::as_str).chain(unseen).collect();
    let (mut seen, mut others) = (Vec::new(), Vec::new());
    for app in APPS {
        for identity in identities.iter().copied().chain(strangers).map(Some).chain([None]) {
            for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"] {
                for path in &paths {
                    let request = json!({
                        "workload": {"namespace": "default", "labels": {"app": app, "version": "v1"}},
                        "principal": identity, "method": method, "path": path, "destination_port": 9080,
                    });
                    let is_seen = records.iter().any(|record| {
                        &*record.workload.name == app
                            && record.principal.as_deref() == identity
                            && &*record.method == method
                            && record.path.replace("{*}", "7") == *path
                    });
                    if is_seen { seen.push(request) } else { others.push(request) }
                }
            }
        }
    }
    let allowed = |requests: &[Value]| {
        let verdicts = verdicts(control.config.path(), requests);
        assert_eq!(verdicts.len(), requests.len());
        verdicts.iter().filter(|verdict| *verdict == "allow").count()
    };
    let (of_seen, of_others) = (allowed(&seen), allowed(&others));
    println!("{of_seen} of {} seen are allowed, {of_others} of {} others", seen.len(), others.len());
    assert!(seen.len() >= 7 && others.len() > 1000);
    assert_eq!(of_seen, seen.len());
    assert!((others.len() - of_others) as f64 >= 0.99 * others.len() as f64, "{of_others} of {}", others.len());

    // And the mesh itself, with them in force.
    let refused = async {
        while call(&reader, "DELETE", "productpage", "/productpage").await != 403 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("the suggestions are in force");
    assert_eq!(call(&reader, "GET", "productpage", "/productpage").await, 200);
    let records = control.until("what was refused is recorded", |records| {
        records.iter().any(|record| record.verdict == Verdict::Deny && &*record.method == "DELETE")
    });
    let records = records.await;
    let page = records.iter().find(|record| &*record.path == "/productpage" && &*record.method == "GET").unwrap();
    assert!(page.count >= 19);
    assert!(!text(&std::fs::read(control.state.path().join("calls.jsonl")).unwrap()).contains("secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_says_whose_calls_a_policy_would_refuse_before_it_is_applied() {
    let control = Control::start();
    let _services = used(&control).await;
    control.until("all calls are recorded", is_complete).await;
    let new = tempfile::tempdir().unwrap();
    let suggested = text(&control.suggest("default/reviews", &[]).stdout);
    let good = write(new.path(), "good.yaml", &suggested);
    let same = control.preview(&good, &[]);
    assert_eq!(same.status.code(), Some(0), "{}{}", text(&same.stdout), text(&same.stderr));
    assert!(text(&same.stdout).contains("0 (0 calls) would be refused"), "{}", text(&same.stdout));

    let strict = write(new.path(), "strict.yaml", &suggested.replace("\"GET\"", "\"PUT\""));
    let refused = control.preview(&strict, &["-o", "json"]);
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused.stderr));
    let lines: Vec<Value> = text(&refused.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [difference] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(difference["workload"], "default/reviews");
    assert_eq!(difference["principal"], "spiffe://cluster.local/ns/default/sa/bookinfo-productpage");
    assert_eq!((&difference["method"], &difference["path"]), (&json!("GET"), &json!("/reviews/{*}")));
    assert_eq!(difference["before"], json!({"verdict": "allow", "rule": null}));
    assert_eq!(difference["after"], json!({"verdict": "deny", "rule": null}));
    assert!(difference["count"].as_u64().unwrap() >= 19);
    assert_eq!(control.preview(&strict, &["--workload", "default/details"]).status.code(), Some(0));

    // An object that is there already is replaced, and who is let in again is told, too; rules on what nobody recorded are named.
    std::fs::copy(&strict, control.config.path().join("strict.yaml")).unwrap();
    let back = control.preview(&good, &[]);
    assert_eq!(back.status.code(), Some(0), "{}", text(&back.stderr));
    assert!(text(&back.stdout).starts_with("allow: "), "{}", text(&back.stdout));
    let by_header = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: by-header, namespace: default}
spec: {action: DENY, rules: [{when: [{key: 'request.headers[x-role]', values: [guest]}]}]}
";
    let by_header = control.preview(&write(new.path(), "header.yaml", by_header), &[]);
    assert!(text(&by_header.stderr).contains("AuthorizationPolicy/default/by-header#0"), "{}", text(&by_header.stderr));
    let by_value = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: by-value, namespace: default}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/reviews/7]}}]}, {to: [{operation: {paths: [/admin]}}]}]}
";
    let by_value = text(&control.preview(&write(new.path(), "value.yaml", by_value), &[]).stderr);
    assert!(by_value.contains("by-value#0") && !by_value.contains("by-value#1"), "{by_value}");
    let wrong = control.preview(&write(new.path(), "wrong.yaml", "kind: [\n"), &[]);
    assert_eq!(wrong.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_lose_no_call() {
    let mut control = Control::start();
    let (mut services, _reader) = used(&control).await;
    let before = control.until("all calls are recorded", is_complete).await;
    control.restart();
    assert_eq!(control.records().await, before, "a server that was killed knows them again");

    // Calls while it is away are told when it is back.
    control.kill();
    for _ in 0..5 {
        assert_eq!(call(&services[0].mesh, "PUT", "details", "/details/1").await, 200);
    }
    control.restart();
    let told = |records: &[Record]| count(records, "details", "PUT", "/details/{*}") >= 4;
    control.until("the calls in between are told", told).await;

    // A workload that starts again adds to what its predecessor told, and one that leaves tells what is left.
    let gone = services.remove(2);
    let old = count(&control.records().await, "reviews", "GET", "/reviews/{*}");
    // Without a time to settle, a workload is no endpoint until it is back.
    let back = async {
        while services[0].mesh.client().get("http://reviews.default:9080/reviews/8").await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.expect("it comes back");
    gone.leave().await;
    let told = |records: &[Record]| count(records, "reviews", "GET", "/reviews/{*}") > old;
    control.until("the last call is told", told).await;
    let _fresh = control.serve("reviews").await;
    // Its callers learn of it in their own time.
    let found = async {
        while services[0].mesh.client().get("http://reviews.default:9080/fresh").await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("the new one is found");
    assert_eq!(call(&services[0].mesh, "PUT", "reviews", "/reviews/8").await, 200);
    let told = |records: &[Record]| count(records, "reviews", "PUT", "/reviews/{*}") > 0;
    let records = control.until("the new one tells", told).await;
    assert!(count(&records, "reviews", "GET", "/reviews/{*}") > old);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_one_caller_is_bounded_and_told_and_the_others_are_all_there() {
    let control = Control::start();
    let _page = control.serve("productpage").await;
    let (spy, reader) = (control.mesh("spy", "spy"), control.mesh("reader", "default"));
    for number in 0..700_u32 {
        let name: String = (0..4).map(|place| char::from(b'g' + (number / 9_u32.pow(place) % 9) as u8)).collect();
        assert_eq!(call(&spy, "GET", "productpage", &format!("/{name}")).await, 200);
    }
    // A form that is new at the moment of a report may be missed, and is found when it comes again.
    for _ in 0..3 {
        assert_eq!(call(&reader, "GET", "productpage", "/late").await, 200);
    }
    let records = control.until("the honest call is told", |records| {
        count(records, "productpage", "GET", "/late") >= 2
            && records.iter().map(|record| record.lost).sum::<u64>() == 188
    });
    assert_eq!(records.await.iter().filter(|record| record.lost == 0).count(), 512 + 1);
    let suggested = control.suggest("default/productpage", &[]);
    assert_eq!(suggested.status.code(), Some(3));
    let said = text(&suggested.stderr);
    assert!(said.contains("calls of spiffe://cluster.local/ns/default/sa/spy: they found no place"), "{said}");
    assert!(text(&suggested.stdout).contains("\"/late\""));
}

fn record(turn: u64) -> String {
    let workload = json!({"namespace": "default", "name": "reviews", "service_account": "reviews", "proven": true,
                          "labels": {"app": "reviews"}});
    let principal = format!("spiffe://cluster.local/ns/default/sa/caller-{}", turn % 100);
    format!(
        "{}\n",
        json!({"workload": workload, "principal": principal, "method": "GET", "path": format!("/reviews/{turn:x}/z"),
               "port": 9080, "verdict": "allow", "rule": null, "count": 1, "first": 1, "last": 2})
    )
}

/// A preview of so many records, and how long it took.
fn preview_of(count: u64) -> Duration {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("config")).unwrap();
    write(&dir.path().join("config"), "shop.yaml", CONFIG);
    let policy = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: some, namespace: default}
spec: {rules: [{from: [{source: {principals: ['cluster.local/ns/default/sa/caller-1*']}}], to: [{operation: {methods: [GET], paths: ['/reviews/{*}/z']}}]}]}
";
    let policy = write(dir.path(), "some.yaml", policy);
    let mut records = std::io::BufWriter::new(std::fs::File::create(dir.path().join("records.jsonl")).unwrap());
    (0..count).for_each(|turn| records.write_all(record(turn).as_bytes()).unwrap());
    records.flush().unwrap();
    let file = dir.path().join("records.jsonl");
    let config = dir.path().join("config");
    let [policy, config, file] = [&policy, &config, &file].map(|path| path.to_str().unwrap().to_owned());
    let start = std::time::Instant::now();
    let output = command(&["authz", "preview", &policy, "--config", &config, "--records", &file]);
    let took = start.elapsed();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let refused = count - count / 100 * 11;
    let said = text(&output.stdout);
    assert!(
        said.contains(&format!("of {count} ({count} calls) that were recorded, {refused} ({refused} calls)")),
        "{}",
        said.lines().last().unwrap_or_default()
    );
    took
}

#[test]
fn a_preview_of_records_in_a_file_says_the_same() {
    preview_of(1000);
}

/// `cargo test --release -p mesh-control --test calls -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, for the release profile"]
fn a_preview_of_a_million_records_takes_ten_seconds_at_most() {
    let took = preview_of(1_000_000);
    println!("a preview of 1,000,000 records: {took:.1?}");
    assert!(took <= Duration::from_secs(10), "{took:?}");
}
