//! Workloads that live longer than their certificates.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;
use mesh_core::xds::{Bootstrap, XdsSource};
use mesh_tower::Mesh;
use mesh_tower::server::ConnectionInfo;

use crate::certificates_process::{Logged, audit, plug_in, plugged_in};
use crate::process::{output, text};
use crate::secured::Authority;
use crate::support::{PATIENCE, until};

pub(crate) const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
";

/// What the command prints for a workload of the namespace `shop`, called like its account, with a new token.
pub(crate) fn bootstrap(state: &Path, server: SocketAddr, account: &str) -> Bootstrap {
    let state = state.to_str().unwrap();
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{account}");
    let made = output(&["token", "create", "--identity", &identity, "--state-dir", state]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let token = text(&made.stdout).trim().to_owned();
    let (server, label) = (server.to_string(), format!("app={account}"));
    let who = ["--namespace", "shop", "--name", account, "--service-account", account, "--label", &label];
    let made = output(&[&["bootstrap", "--server", &server, "--token", &token], &who[..]].concat());
    assert!(made.status.success(), "{}", text(&made.stderr));
    Bootstrap::from_json(&text(&made.stdout), "printed").unwrap()
}

pub(crate) fn mesh(bootstrap: Bootstrap) -> Mesh {
    Mesh::builder().source(XdsSource::new(bootstrap)).cold_start_wait(PATIENCE).start().unwrap()
}

/// Serves, and tells in its answers who asked; where.
pub(crate) async fn serve(mesh: &Mesh) -> SocketAddr {
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let tell = || async {
        let connection = ConnectionInfo::current().unwrap();
        connection.peer_identity().map_or("nobody".to_owned(), ToString::to_string)
    };
    let app = axum::Router::new().route("/", axum::routing::get(tell)).layer(mesh.server_layer());
    tokio::spawn(mesh_tower::server::serve(listener, app).into_future());
    mesh.serving().await.unwrap();
    address
}

pub(crate) async fn get(client: &Mesh) -> Result<String, String> {
    let response = client.client().get("http://web.shop/").await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    if status.is_success() { Ok(body) } else { Err(format!("{status}: {body}")) }
}

/// Requests one after the other, until it is dropped.
pub(crate) struct Load {
    sent: Arc<AtomicU64>,
    failed: Arc<std::sync::Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    pub(crate) fn start(client: &Mesh, expected: &'static str) -> Load {
        let (sent, failed) = (Arc::<AtomicU64>::default(), Arc::<std::sync::Mutex<Vec<String>>>::default());
        let (counted, noted, client) = (sent.clone(), failed.clone(), client.clone());
        let task = tokio::spawn(async move {
            loop {
                let answer = get(&client).await;
                counted.fetch_add(1, Ordering::Relaxed);
                if answer.as_deref() != Ok(expected) {
                    noted.lock().unwrap().push(format!("{answer:?}"));
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Load { sent, failed, task }
    }

    pub(crate) fn end(self) {
        self.task.abort();
        let failed = self.failed.lock().unwrap();
        assert!(failed.is_empty(), "{} of {}: {:?}", failed.len(), self.sent.load(Ordering::Relaxed), failed.first());
        assert!(self.sent.load(Ordering::Relaxed) > 0);
    }
}

fn serial(mesh: &Mesh) -> String {
    mesh.certificates().current().map(|current| current.serial().to_owned()).unwrap_or_default()
}

/// Waits until each of them has had so many new certificates.
pub(crate) async fn renewed(meshes: &[&Mesh], times: usize) {
    for _ in 0..times {
        let before: Vec<String> = meshes.iter().map(|mesh| serial(mesh)).collect();
        until("all have a new certificate", || {
            meshes.iter().zip(&before).all(|(mesh, before)| serial(mesh) != *before)
        })
        .await;
    }
}

pub(crate) const CALLER: &str = "spiffe://cluster.local/ns/shop/sa/caller";

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_with_one_token_lives_through_renewals_without_a_failed_request() {
    let (config, state, ca) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), plugged_in());
    std::fs::write(config.path().join("shop.yaml"), SHOP).unwrap();
    let (state_dir, ca_dir) = (state.path().to_str().unwrap(), ca.path().to_str().unwrap());
    let more = ["--state-dir", state_dir, "--ca-dir", ca_dir, "--certificate-ttl", "4", "--settle", "0"];
    let control = Logged::start(config.path(), &more);
    let web = mesh(bootstrap(state.path(), control.xds, "web"));
    let caller = mesh(bootstrap(state.path(), control.xds, "caller"));
    serve(&web).await;
    assert_eq!(get(&caller).await.as_deref(), Ok(CALLER));
    let load = Load::start(&caller, CALLER);
    renewed(&[&web, &caller], 3).await;
    load.end();
    let log = control.log();
    let methods = |method: &str| audit(&log).iter().filter(|line| line["fields"]["method"] == method).count();
    assert_eq!(methods("token"), 2, "each token was used once, and not sent again: {log}");
    assert!(methods("renewal") >= 6, "{log}");
    assert!(!log.contains("denied"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_token_gets_nothing_and_the_error_says_what_to_do() {
    let (config, state, ca) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), plugged_in());
    std::fs::write(config.path().join("shop.yaml"), SHOP).unwrap();
    let (state_dir, ca_dir) = (state.path().to_str().unwrap(), ca.path().to_str().unwrap());
    let control = Logged::start(config.path(), &["--state-dir", state_dir, "--ca-dir", ca_dir, "--settle", "0"]);
    let written = bootstrap(state.path(), control.xds, "caller");
    let first = mesh(written.clone());
    first.certificates().get().await;
    // The same process, started again.
    let again =
        Mesh::builder().source(XdsSource::new(written)).cold_start_wait(Duration::from_secs(8)).start().unwrap();
    let refused = get(&again).await.unwrap_err();
    assert!(refused.contains("mesh-control token create"), "{refused}");
    let problem = again.certificates().problem().expect("the last attempt failed");
    let problems = again.certificates().problems(std::time::SystemTime::now());
    assert!(problem.contains("mesh-control token create") && problems.len() == 1 && problems[0].contains(&*problem));
    assert_eq!(first.certificates().problem(), None);
    // A caller that does not wait that long is told as well.
    let soon = async || {
        let deadline = mesh_core::request_info::Deadline(std::time::Instant::now() + Duration::from_millis(300));
        let request = http::Request::get("http://other.shop/").extension(deadline);
        again.client().request(request.body(mesh_tower::body::Body::empty()).unwrap()).await.unwrap_err().to_string()
    };
    let told = soon().await;
    assert!(told.contains("mesh-control token create") && told.contains("the deadline passed"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn f2_f13_f14_rotations_of_leaf_intermediate_and_root_and_an_authority_that_is_down_fail_no_request() {
    let (config, state, ca) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(config.path().join("shop.yaml"), SHOP).unwrap();
    let (state_dir, ca_dir) = (state.path().to_str().unwrap(), ca.path().to_str().unwrap());
    // It settles after each start, as it does unless it is told otherwise: nobody is missed who has not come back yet.
    let more = ["--state-dir", state_dir, "--ca-dir", ca_dir, "--certificate-ttl", "16"];
    let (old, new) = (Authority::signing(), Authority::signing());
    plug_in(ca.path(), &old.intermediate(), &[&old]);
    let mut control = Logged::start(config.path(), &more);
    let address = control.xds.to_string();
    let web = mesh(bootstrap(state.path(), control.xds, "web"));
    let caller = mesh(bootstrap(state.path(), control.xds, "caller"));
    serve(&web).await;
    assert_eq!(get(&caller).await.as_deref(), Ok(CALLER));
    let load = Load::start(&caller, CALLER);
    renewed(&[&web, &caller], 2).await;
    let signer = new.intermediate();
    for (signer, roots) in [
        // The next root is known before it signs, and the old one until nobody has a certificate of it.
        (&old.intermediate(), &[&old, &new][..]),
        (&signer, &[&old, &new]),
        (&signer, &[&new]),
    ] {
        drop(control);
        plug_in(ca.path(), signer, roots);
        control = Logged::at(&address, config.path(), &more);
        renewed(&[&web, &caller], 1).await;
    }
    // Down for half of a certificate's life, from the moment on when both have a new one.
    drop(control);
    tokio::time::sleep(Duration::from_secs(8)).await;
    let _control = Logged::at(&address, config.path(), &more);
    renewed(&[&web, &caller], 1).await;
    load.end();
}

/// A workload of `shop` in development mode, called like its account.
pub(crate) fn developing(server: SocketAddr, account: &str) -> Bootstrap {
    Bootstrap::new(server.to_string())
        .node_id(format!("mesh~127.0.0.1~{account}.shop~shop.svc.cluster.local"))
        .metadata("NAMESPACE", "shop")
        .metadata("SERVICE_ACCOUNT", account)
        .metadata("LABELS", serde_json::json!({"app": account}))
}

#[tokio::test(flavor = "multi_thread")]
async fn workloads_get_over_an_authority_that_lost_its_root_in_a_restart() {
    let config = tempfile::tempdir().unwrap();
    std::fs::write(config.path().join("shop.yaml"), SHOP).unwrap();
    let more = ["--dev", "--settle", "0"];
    let control = Logged::start(config.path(), &more);
    let address = control.xds;
    let web = mesh(developing(address, "web"));
    let caller = mesh(developing(address, "caller"));
    serve(&web).await;
    assert_eq!(get(&caller).await.as_deref(), Ok(CALLER));
    drop(control);
    // Without a state directory it has a new root.
    let _control = Logged::at(&address.to_string(), config.path(), &more);
    renewed(&[&web, &caller], 1).await;
    // Who knows the new root alone, and who was there before: they understand each other.
    let young = mesh(developing(address, "caller"));
    let reaches = async |client: &Mesh| while get(client).await.as_deref() != Ok(CALLER) {};
    for client in [&young, &caller] {
        tokio::time::timeout(PATIENCE, reaches(client)).await.expect("it gets through");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_state_directory_alone_who_has_a_certificate_uses_it_and_everybody_else_gets_in() {
    let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(config.path().join("shop.yaml"), SHOP).unwrap();
    let control = Logged::start(config.path(), &["--state-dir", state.path().to_str().unwrap(), "--settle", "0"]);
    let web = mesh(bootstrap(state.path(), control.xds, "web"));
    serve(&web).await;
    let caller = mesh(bootstrap(state.path(), control.xds, "caller"));
    assert_eq!(get(&caller).await.as_deref(), Ok(CALLER), "mutual TLS");
    let nobody = mesh(developing(control.xds, "nobody"));
    assert_eq!(get(&nobody).await.as_deref(), Ok("nobody"), "plaintext");
    let status = output(&["status", "--addr", &control.status.to_string(), "-o", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let workload = &status["workloads"][0];
    assert_eq!(workload["certificate"], "seen", "{status}");
    assert_eq!(workload["identity"], "spiffe://cluster.local/ns/shop/sa/web");
    // Until when who is connected is known, and by which certificate.
    let of_caller = status["clients"].as_array().unwrap().iter().find(|client| client["identity"] == CALLER).unwrap();
    let own = caller.certificates().current().unwrap();
    let ends = own.not_after().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(of_caller["certificate_expires"].as_u64(), Some(ends), "{of_caller}");
    assert_eq!(of_caller["certificate_serial"].as_str(), Some(own.serial()), "{of_caller}");
    let log = control.log();
    assert!(log.contains("mutual TLS is PERMISSIVE"), "{log}");

    // Whoever wants more says so, and nobody without a certificate gets in.
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: all, namespace: shop}\n\
                  spec: {mtls: {mode: STRICT}}\n";
    std::fs::write(config.path().join("strict.yaml"), strict).unwrap();
    let control = Logged::start(config.path(), &["--state-dir", state.path().to_str().unwrap(), "--settle", "0"]);
    let web = mesh(bootstrap(state.path(), control.xds, "web"));
    serve(&web).await;
    let caller = mesh(bootstrap(state.path(), control.xds, "caller"));
    assert_eq!(get(&caller).await.as_deref(), Ok(CALLER));
    let nobody = mesh(developing(control.xds, "nobody"));
    get(&nobody).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_called_is_proven_by_the_certificate_of_its_stream() {
    let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(config.path().join("shop.yaml"), SHOP).unwrap();
    let server = Logged::start(config.path(), &["--state-dir", state.path().to_str().unwrap(), "--settle", "0"]);
    let web = mesh(bootstrap(state.path(), server.xds, "web"));
    serve(&web).await;
    let client = mesh(bootstrap(state.path(), server.xds, "client"));
    let expected = "spiffe://cluster.local/ns/shop/sa/client";
    assert_eq!(get(&client).await.as_deref(), Ok(expected));
    let status = server.status.to_string();
    let suggest = || output(&["authz", "suggest", "--workload", "shop/web", "--control", &status]);
    until("the call is told", || suggest().status.success()).await;
    let yaml = text(&suggest().stdout);
    assert!(yaml.contains("cluster.local/ns/shop/sa/client") && !yaml.contains("not known by a certificate"), "{yaml}");
}

#[tokio::test(flavor = "multi_thread")]
async fn m18_a_workload_that_is_revoked_is_cut_off_while_everybody_else_goes_on() {
    let (config, state, ca) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = Authority::signing();
    let signer = root.intermediate();
    plug_in(ca.path(), &signer, &[&root]);
    let list = ca.path().join("ca-crl.pem");
    let revoke = |serials: &[rcgen::SerialNumber]| {
        let new = list.with_extension("new");
        std::fs::write(&new, root.revoked(&[]) + &signer.revoked(serials)).unwrap();
        std::fs::rename(&new, &list).unwrap();
    };
    revoke(&[]);
    std::fs::write(config.path().join("shop.yaml"), SHOP).unwrap();
    let (state_dir, ca_dir) = (state.path().to_str().unwrap(), ca.path().to_str().unwrap());
    let control = Logged::start(config.path(), &["--state-dir", state_dir, "--ca-dir", ca_dir, "--settle", "0"]);
    let [web, caller, other] =
        ["web", "caller", "other"].map(|account| mesh(bootstrap(state.path(), control.xds, account)));
    serve(&web).await;
    assert_eq!(get(&caller).await.as_deref(), Ok(CALLER));
    assert_eq!(get(&other).await.as_deref(), Ok("spiffe://cluster.local/ns/shop/sa/other"));
    let load = Load::start(&other, "spiffe://cluster.local/ns/shop/sa/other");
    let serial = serial(&caller).replace(':', "");
    let serial: Vec<u8> =
        (0..serial.len() / 2).map(|at| u8::from_str_radix(&serial[2 * at..2 * at + 2], 16).unwrap()).collect();
    revoke(&[rcgen::SerialNumber::from_slice(&serial)]);
    let cut_off = async { while get(&caller).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, cut_off).await.expect("it is cut off");
    load.end();
    assert!(control.log().contains("the lists of revoked certificates were replaced"));
}
