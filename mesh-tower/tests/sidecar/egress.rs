//! Calls that leave the mesh by a gateway of it: the examples of `docs/egress.md`, from YAML by a `mesh-gateway` to servers over sockets.

use mesh_core::error::ErrorKind;

use super::gateway::Gateway;
use super::gateway_api::free_port;
use super::gateway_tls::Caller;
use super::tls_support::{ANY, Authority, Foreign, HOST, ask, ask_over_connector, example, tls};
use super::*;

const BANK: &str = "bank.example.com";
const AT_GATEWAY: [&str; 6] =
    ["--namespace", "istio-system", "--service-account", "egress", "--label", "istio=egressgateway"];
/// What the gateway lets in.
const FOR_SHOP: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: egress, namespace: istio-system}
spec:
  selector: {matchLabels: {istio: egressgateway}}
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/shop]}}], to: [{operation: {hosts: [api.example.com]}}]}]
";

/// A server outside, the files that trust it, and a control plane whose gateway listens at a free port.
struct World {
    outside: Foreign,
    /// With the authority in it.
    _files: tempfile::TempDir,
    control: Embedded,
    yaml: String,
}

impl World {
    async fn start(authority: &Authority) -> World {
        let outside = Foreign::start(tls(&authority.leaf(&[HOST, BANK]), None, ANY)).await;
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("ca.pem"), &authority.pem).unwrap();
        let words: &[(&str, &str)] = &[
            ("targetPort: 8443", &format!("targetPort: {}", free_port().await)),
            ("targetPort: 443}", &format!("targetPort: {}}}", outside.port)),
            ("/etc/egress", &files.path().display().to_string()),
        ];
        let yaml = example("egress-gateway.yaml", words);
        let control = Embedded::start(Config::yaml(&yaml), Options::default().dev()).await.unwrap();
        World { outside, _files: files, control, yaml }
    }
}

/// The host's answer, once it is this status.
async fn answered(mesh: &Mesh, wanted: &str) -> String {
    let asked = async {
        loop {
            match ask(mesh).await {
                Ok(seen) if seen.starts_with(wanted) => break seen,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    within(asked).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_leaves_by_the_gateway_which_proves_who_it_is_and_lets_in_whom_a_policy_names() {
    let World { outside, _files, control, yaml } = World::start(&Authority::named("outside")).await;
    let shop = mesh(&control, "shop").start().unwrap();
    let error = ask(&shop).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoHealthyEndpoint, "nobody is the gateway yet: {error:#}");

    let mut gateway = Gateway::of(control, &AT_GATEWAY);
    gateway.bound().await;
    let seen = answered(&shop, "200").await;
    assert!(seen.contains("sni=api.example.com") && seen.contains("host=api.example.com"), "{seen}");
    let over = ask_over_connector(&shop, HOST).await.unwrap();
    assert!(over.starts_with("200") && over.contains("sni=api.example.com"), "{over}");

    // Who asks has proven it, and the gateway decides by it.
    gateway.control.set_yaml("policy.yaml", FOR_SHOP).unwrap();
    let other = mesh(&gateway.control, "other").start().unwrap();
    answered(&other, "403").await;
    answered(&shop, "200").await;

    // Somebody else than the gateway is asked for nothing.
    let sni = "sni: api.example.com}";
    let names = "sni: api.example.com, subjectAltNames: [spiffe://cluster.local/ns/istio-system/sa/other]}";
    gateway.control.set_yaml("config.yaml", &yaml.replace(sni, names)).unwrap();
    let requests = *outside.requests.borrow();
    let error = ask(&mesh(&gateway.control, "shop").start().unwrap()).await.unwrap_err();
    assert!(format!("{error:#}").contains("istio-system/sa/egress"), "{error:#}");

    // Without the rule, nothing is sent in plaintext to a gateway that takes mutual TLS alone.
    let rule =
        "trafficPolicy: {portLevelSettings: [{port: {number: 443}, tls: {mode: ISTIO_MUTUAL, sni: api.example.com}}]}";
    assert!(yaml.contains(rule));
    gateway.control.set_yaml("config.yaml", &yaml.replace(rule, "labels: {}")).unwrap();
    let error = ask(&mesh(&gateway.control, "shop").start().unwrap()).await.unwrap_err();
    assert!(format!("{error:#}").contains("TLS"), "{error:#}");
    assert_eq!(*outside.requests.borrow(), requests);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_of_an_application_passes_the_gateway_by_the_name_that_it_asks_for_beside_calls_that_end_there() {
    let authority = Authority::named("outside");
    let World { outside, _files, control, .. } = World::start(&authority).await;
    let port = format!("targetPort: {}}}", outside.port);
    control.set_yaml("bank.yaml", &example("egress-passthrough.yaml", &[("targetPort: 443}", &port)])).unwrap();
    let shop = mesh(&control, "shop").start().unwrap();
    let mut gateway = Gateway::of(control, &AT_GATEWAY);
    gateway.bound().await;
    answered(&shop, "200").await;
    // By then the gateway is an endpoint to all: the mesh hears of one cluster as of the other.
    let stream = async {
        loop {
            match shop.connect_by_name(BANK, 443, BANK).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let (status, seen) = Caller::new(&authority).ask_through(within(stream).await, BANK).await.unwrap();
    assert!(status == 200 && seen.contains("sni=bank.example.com") && seen.contains("certificate=false"), "{seen}");
    let error = shop.connect_by_name(BANK, 443, "other.example.com").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute, "{error:#}");
}
