//! Two machines, so to speak: a mesh-control process that asks for client certificates, and the library with a
//! bootstrap that the command prints.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::store::{Source, Store};
use mesh_core::view::Extensions;
use mesh_core::xds::{Bootstrap, XdsSource};
use rcgen::SanType;

use crate::process::{Control, output};
use crate::secured::Authority;
use crate::support::{PATIENCE, until};

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
";

/// Certificates of a new authority for both sides, in the place of those before them.
fn issue(directory: &Path) {
    let authority = Authority::new();
    let write = |name: &str, text: String| std::fs::write(directory.join(name), text).unwrap();
    let (cert, key, _) = authority.issue(SanType::IpAddress([127, 0, 0, 1].into()));
    write("server.pem", cert);
    write("server-key.pem", key.serialize_pem());
    let (cert, key, _) = authority.issue(SanType::URI("spiffe://cluster.local/ns/shop/sa/web".try_into().unwrap()));
    write("client.pem", cert);
    write("client-key.pem", key.serialize_pem());
    write("ca.pem", authority.0.pem());
}

fn start(certificates: &Path, config: &Path, address: &str) -> (Control, std::net::SocketAddr) {
    let file = |name: &str| certificates.join(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (file("server.pem"), file("server-key.pem"), file("ca.pem"));
    let tls = ["--secure-addr", address, "--tls-cert", &cert, "--tls-key", &key, "--client-ca", &ca, "--settle", "0"];
    let mut control = Control::start(config, &tls);
    control.address("xds listening on ");
    let secured = control.address("secured xds listening on ");
    (control, secured)
}

fn bootstrap(certificates: &Path, server: &str) -> Bootstrap {
    let file = |name: &str| certificates.join(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (file("client.pem"), file("client-key.pem"), file("ca.pem"));
    let tls = ["--server", server, "--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
    let printed = output(&[&["bootstrap", "--name", "web", "--namespace", "shop"], &tls[..]].concat());
    Bootstrap::from_json(std::str::from_utf8(&printed.stdout).unwrap(), "printed").unwrap()
}

/// The library, on a runtime of its own.
fn library(bootstrap: Bootstrap) -> (Store, Arc<XdsSource>) {
    let source = Arc::new(XdsSource::new(bootstrap));
    let (store, sink) = Store::new(source.clone(), Extensions::default(), Duration::from_secs(600));
    tokio::spawn(source.clone().run(sink));
    (store, source)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_library_client_is_served_over_mutual_tls_and_follows_certificates_that_are_replaced() {
    let (certificates, config) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    issue(certificates.path());
    std::fs::write(config.path().join("shop.yaml"), SHOP).unwrap();
    let (mut control, secured) = start(certificates.path(), config.path(), "127.0.0.1:0");
    let (store, _source) = library(bootstrap(certificates.path(), &secured.to_string()));
    let view = |target: &'static str| {
        let entry = store.target(target).unwrap();
        async move { entry.wait(Instant::now() + PATIENCE).await.unwrap() }
    };
    assert!(view("reviews:9080").await.routes().is_some());

    // Nobody who knows the old authority alone gets any further: the server starts with the new files.
    issue(certificates.path());
    control.signal("TERM");
    assert_eq!(control.exit_code(), Some(0));
    std::fs::write(config.path().join("shop.yaml"), SHOP.replace("reviews", "ratings")).unwrap();
    let (_control, _) = start(certificates.path(), config.path(), &secured.to_string());
    assert!(view("ratings:9080").await.routes().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_authority_and_a_client_without_a_certificate_get_nowhere_and_say_why() {
    let (certificates, config) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    issue(certificates.path());
    std::fs::write(config.path().join("shop.yaml"), SHOP).unwrap();
    let (_control, secured) = start(certificates.path(), config.path(), "127.0.0.1:0");
    let strangers = tempfile::tempdir().unwrap();
    issue(strangers.path());
    let mut anonymous = bootstrap(certificates.path(), &secured.to_string());
    let ca = certificates.path().join("ca.pem");
    anonymous.servers = vec![
        mesh_core::xds::bootstrap::Server::new(secured.to_string())
            .tls(mesh_core::xds::bootstrap::ClientTlsFiles::new(ca))
            .feature("delta"),
    ];
    // The server ends the connection right behind its alert, which the client then may not get to read.
    let refused = ["CertificateRequired", "reset", "roken pipe", "closed", "broke off"];
    for (bootstrap, why) in [
        (bootstrap(strangers.path(), &secured.to_string()), &["invalid peer certificate"] as &[&str]),
        (anonymous, &refused),
        (bootstrap(Path::new("no/such"), &secured.to_string()), &["no/such/ca.pem"]),
    ] {
        let (store, source) = library(bootstrap);
        let _entry = store.target("reviews:9080").unwrap();
        let error = || source.status().get().servers.first().and_then(|server| server.error.clone());
        until("the attempt failed", || error().is_some()).await;
        let error = error().unwrap();
        assert!(why.iter().any(|why| error.contains(why)), "{why:?} expected: {error}");
        assert!(store.view("reviews:9080").is_none());
    }
}
