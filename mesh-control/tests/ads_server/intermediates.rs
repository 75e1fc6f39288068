//! Replicas that sign with intermediates of their own, of one root whose key none of them has.

use std::fs;
use std::path::Path;

use mesh_tower::Mesh;

use crate::certificates_process::Logged;
use crate::federation::{WEB, abroad, becomes, put};
use crate::process::{output, page, text};
use crate::renewal::{CALLER, bootstrap, mesh, serve};
use crate::support::until;

/// A mesh-control with an intermediate of its own.
struct Replica {
    control: Logged,
    config: tempfile::TempDir,
    state: tempfile::TempDir,
    ca: tempfile::TempDir,
}

impl Replica {
    fn start(root: &Path, name: &str) -> Replica {
        let [config, state, ca] = [(), (), ()].map(|()| tempfile::tempdir().unwrap());
        assert_eq!(give(root, name, ca.path(), &["--ttl", "864000"]), Ok(()));
        fs::write(config.path().join("web.yaml"), WEB).unwrap();
        let (state_dir, ca_dir) = (state.path().to_str().unwrap(), ca.path().to_str().unwrap());
        let control = Logged::start(config.path(), &["--state-dir", state_dir, "--ca-dir", ca_dir, "--settle", "0"]);
        Replica { control, config, state, ca }
    }

    fn workload(&self, account: &str) -> Mesh {
        mesh(bootstrap(self.state.path(), self.control.xds, account))
    }

    fn status(&self) -> serde_json::Value {
        let status = output(&["status", "--addr", &self.control.status.to_string(), "-o", "json"]);
        serde_json::from_slice::<serde_json::Value>(&status.stdout).unwrap()["authority"].clone()
    }
}

/// Makes the intermediate of a replica, in its directory.
fn give(root: &Path, name: &str, ca: &Path, more: &[&str]) -> Result<(), String> {
    let (root, ca) = (root.to_str().unwrap(), ca.to_str().unwrap());
    let made = output(&[&["ca", "intermediate", "--name", name, "--out", ca, "--state-dir", root], more].concat());
    if made.status.success() { Ok(()) } else { Err(text(&made.stderr)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn workloads_of_two_replicas_with_intermediates_of_one_root_call_each_other_also_after_one_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let replicas = ["r1", "r2"].map(|name| Replica::start(root.path(), name));
    let webs = replicas.each_ref().map(|replica| replica.workload("web"));
    let ports = [serve(&webs[0]).await.port(), serve(&webs[1]).await.port()];
    for (here, there) in [(0, 1), (1, 0)] {
        let replica = &replicas[here];
        let abroad = abroad(ports[there], "spiffe://cluster.local/ns/shop/sa/web");
        put(&replica.config.path().join("abroad.yaml"), &abroad);
        becomes(&replica.workload("caller"), |told| told.as_deref() == Ok(CALLER)).await;
    }

    // The next one is taken in while the server runs.
    let expires = || replicas[0].status()["chain_expires"].as_u64();
    let before = expires();
    assert_eq!(give(root.path(), "r1", replicas[0].ca.path(), &["--ttl", "1728000"]), Ok(()));
    until("it has the new intermediate", || expires() > before).await;
    becomes(&replicas[0].workload("caller"), |told| told.as_deref() == Ok(CALLER)).await;

    // One that cannot be used is told, and the one in force goes on.
    let [key, kept] = ["ca-key.pem", "kept.pem"].map(|name| replicas[0].ca.path().join(name));
    fs::rename(&key, &kept).unwrap();
    let has = |wanted: &str| page(replicas[0].control.status, "/metrics").contains(&format!("\n{wanted}\n"));
    until("it is told", || has("mesh_ca_wrong 1")).await;
    assert!(replicas[0].status()["problem"].as_str().unwrap().contains("ca-key.pem"));
    let ready = page(replicas[0].control.status, "/ready");
    assert!(ready.contains("200 OK") && ready.contains("certificate authority: "), "{ready}");
    becomes(&replicas[0].workload("caller"), |told| told.as_deref() == Ok(CALLER)).await;
    fs::rename(&kept, &key).unwrap();
    until("it is right again", || has("mesh_ca_wrong 0")).await;
}

#[test]
fn ca_intermediate_replaces_no_key_of_somebody_else() {
    let [root, ca] = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let give = |name: &str, more: &[&str]| give(root.path(), name, ca.path(), more);
    let key = || fs::read_to_string(ca.path().join("ca-key.pem")).unwrap();
    assert_eq!(give("r1", &[]), Ok(()));
    let first = key();
    let why = give("r2", &[]).unwrap_err();
    assert!(why.contains("--force") && why.contains("mesh intermediate r1 "), "{why}");
    fs::rename(ca.path().join("ca-cert.pem"), ca.path().join("kept.pem")).unwrap();
    let why = give("r1", &[]).unwrap_err();
    assert!(why.contains("--force") && why.contains("ca-cert.pem"), "{why}");
    for (name, ttl, why) in [("r 1", "60", "letters"), ("r1", "0", "a second"), ("r1", "400000000", "before its root")]
    {
        let said = give(name, &["--force", "--ttl", ttl]).unwrap_err();
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(key(), first);
    assert_eq!(give("r2", &["--force"]), Ok(()));
    assert_ne!(key(), first);
}
