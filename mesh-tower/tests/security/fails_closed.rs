//! What is wrong or not enforced yet never lets anything through: a control plane that was started again on
//! configuration with a mistake, and objects of security that nobody enforces.

use std::fs;
use std::path::Path;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_control::plane::PlaneOptions;
use mesh_core::error::ErrorKind;
use mesh_core::xds::Bootstrap;
use mesh_tower::Mesh;
use serde_json::json;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: ratings}
spec: {selector: {app: ratings}, ports: [{name: http, port: 9080}]}
";

const SUBSETS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
";

const ONLY_V1: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}}]}]}
";

const RATINGS_WITH_A_TYPO: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings}
spec: {hosts: [ratings], http: [{rout: [{destination: {host: ratings}}]}]}
";

fn config(files: &[(&str, String)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// A control plane that was just started, with nothing but what the directory holds.
async fn start(dir: &Path) -> Embedded {
    Embedded::start(Config::dir(dir), Options::default()).await.unwrap()
}

/// The same, told to serve what is guarded by objects that are not enforced.
async fn start_unguarded(dir: &Path) -> Embedded {
    let options = Options::default().plane(PlaneOptions::default().allow_unenforced(true));
    Embedded::start(Config::dir(dir), options).await.unwrap()
}

fn mesh(control: &Embedded, app: &str, version: &str) -> Mesh {
    let bootstrap = Bootstrap::new("embedded")
        .node_id(format!("mesh~127.0.0.1~{app}-{version}.default~default.svc.cluster.local"))
        .metadata("NAMESPACE", "default")
        .metadata("LABELS", json!({"app": app, "version": version}));
    Mesh::builder().source(control.source(bootstrap)).cold_start_wait(Duration::from_secs(10)).start().unwrap()
}

/// A server that answers with its version; it registers itself.
async fn serve(control: &Embedded, app: &str, version: &'static str) -> Mesh {
    let mesh = mesh(control, app, version);
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let app = axum::Router::new().route("/", axum::routing::get(move || async move { version }));
    let app = app.layer(mesh.server_layer());
    tokio::spawn(async move { mesh_tower::server::serve(listener, app).await });
    mesh
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn is(&self, status: u16, parts: &[&str]) -> bool {
        self.status == status && parts.iter().all(|part| self.body.contains(part))
    }
}

async fn ask(client: &Mesh, host: &str) -> Result<Answer, ErrorKind> {
    let response = client.client().get(&format!("http://{host}:9080/")).await.map_err(|error| error.kind())?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| error.kind())?.to_bytes();
    Ok(Answer { status: head.status, headers: head.headers, body: String::from_utf8_lossy(&body).into_owned() })
}

/// Asks until the answer is as it should be, and then once more many times: nothing else comes any more.
async fn becomes(client: &Mesh, host: &str, fits: impl Fn(&Result<Answer, ErrorKind>) -> bool) {
    let mut last = None;
    let settled = async {
        loop {
            let answer = ask(client, host).await;
            if fits(&answer) {
                return;
            }
            last = Some(answer);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let settled = tokio::time::timeout(Duration::from_secs(20), settled).await;
    assert!(settled.is_ok(), "{host}: {last:?}");
    for _ in 0..20 {
        let answer = ask(client, host).await;
        assert!(fits(&answer), "{host}: {answer:?}");
    }
}

fn is_refused(answer: &Result<Answer, ErrorKind>, parts: &[&str]) -> bool {
    answer.as_ref().is_ok_and(|answer| answer.is(503, parts))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_a_wrong_object_keeps_itself_out_and_nothing_else() {
    let rules = format!("{SUBSETS}---{ONLY_V1}---{RATINGS_WITH_A_TYPO}");
    let dir = config(&[("services.yaml", SERVICES.to_owned()), ("rules.yaml", rules)]);
    let control = start(dir.path()).await;
    let _servers = [
        serve(&control, "reviews", "v1").await,
        serve(&control, "reviews", "v2").await,
        serve(&control, "ratings", "v1").await,
    ];
    let client = mesh(&control, "web", "v1");
    becomes(&client, "reviews", |answer| answer.as_ref().is_ok_and(|answer| answer.is(200, &["v1"]))).await;
    // What it says is not known, so nobody is sent anywhere by it.
    becomes(&client, "ratings", |answer| is_refused(answer, &["VirtualService default/ratings", "http[0].rout"])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_tls_that_stands_beside_a_mistake_is_not_plaintext() {
    let tls = |typo: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews}}\n\
             spec: {{host: reviews, trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL}}{typo}}}}}\n"
        )
    };
    // In another object of the file, and in the object itself.
    for rules in [format!("{}---{RATINGS_WITH_A_TYPO}", tls("")), tls(", conectionPool: {}")] {
        let dir = config(&[("services.yaml", SERVICES.to_owned()), ("rules.yaml", rules.clone())]);
        let control = start(dir.path()).await;
        let _server = serve(&control, "reviews", "v1").await;
        let client = mesh(&control, "web", "v1");
        becomes(&client, "reviews", |answer| match rules.contains("conectionPool") {
            true => is_refused(answer, &["DestinationRule default/reviews", "trafficPolicy.conectionPool"]),
            false => *answer == Err(ErrorKind::Security),
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_destination_rule_fails_the_routes_to_its_host_and_no_others() {
    let to = |host: &str, destination: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {host}}}\n\
             spec: {{hosts: [{host}], http: [{{match: [{{uri: {{prefix: /}}}}], route: [{{destination: {{host: {destination}, subset: v1}}}}]}}]}}\n"
        )
    };
    let wrong = SUBSETS.replace("subsets:", "subset: []\n  subsets:");
    let rules = format!("{wrong}---\n{}", to("front", "reviews"));
    let dir = config(&[("services.yaml", SERVICES.to_owned()), ("rules.yaml", rules)]);
    let control = start(dir.path()).await;
    let _servers = [serve(&control, "reviews", "v2").await, serve(&control, "ratings", "v1").await];
    let client = mesh(&control, "web", "v1");
    let why = ["DestinationRule default/reviews", "subset: unknown field"];
    for host in ["reviews", "front"] {
        becomes(&client, host, |answer| is_refused(answer, &why)).await;
    }
    becomes(&client, "ratings", |answer| answer.as_ref().is_ok_and(|answer| answer.is(200, &["v1"]))).await;
}

fn security(kind: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workloads_that_an_unenforced_policy_selects_answer_with_the_reason() {
    let for_reviews = "selector: {matchLabels: {app: reviews}}";
    let custom = "action: CUSTOM, provider: {name: opa}, rules: [{}]";
    let cases = [
        security("PeerAuthentication", "default", &format!("{{{for_reviews}, mtls: {{mode: STRICT}}}}")),
        // It is bound to another port, which stands for the service's target port.
        security(
            "PeerAuthentication",
            "default",
            &format!("{{{for_reviews}, portLevelMtls: {{9080: {{mode: STRICT}}}}}}"),
        ),
        security("AuthorizationPolicy", "default", &format!("{{{for_reviews}, {custom}}}")),
        security("AuthorizationPolicy", "istio-system", &format!("{{{for_reviews}, {custom}}}")),
        security(
            "AuthorizationPolicy",
            "default",
            &format!("{{targetRefs: [{{kind: Service, name: reviews, group: ''}}], {custom}}}"),
        ),
        security("AuthorizationPolicy", "default", &format!("{{{for_reviews}, rulez: []}}")),
    ];
    for policy in cases {
        let dir = config(&[("services.yaml", SERVICES.to_owned()), ("policy.yaml", policy.clone())]);
        let control = start(dir.path()).await;
        let _servers = [serve(&control, "reviews", "v1").await, serve(&control, "ratings", "v1").await];
        let client = mesh(&control, "web", "v1");
        let kind = policy.lines().nth(1).unwrap().trim_start_matches("kind: ");
        let why = [kind, "/p", "--allow-unenforced"];
        becomes(&client, "reviews", |answer| is_refused(answer, &why)).await;
        becomes(&client, "ratings", |answer| answer.as_ref().is_ok_and(|answer| answer.is(200, &["v1"]))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_guards_nobody_or_is_allowed_not_to_be_enforced_is_in_nobodys_way() {
    let custom = security("AuthorizationPolicy", "default", "{action: CUSTOM, provider: {name: opa}, rules: [{}]}");
    let cases = [
        (security("PeerAuthentication", "istio-system", "{mtls: {mode: PERMISSIVE}}"), false),
        (security("PeerAuthentication", "default", "{mtls: {mode: DISABLE}}"), false),
        (
            security(
                "PeerAuthentication",
                "default",
                "{selector: {matchLabels: {app: reviews}}, mtls: {mode: STRICT}, portLevelMtls: {9080: {mode: DISABLE}}}",
            ),
            false,
        ),
        (security("AuthorizationPolicy", "default", "{action: AUDIT, rules: [{}]}"), false),
        (security("AuthorizationPolicy", "default", "{action: AUDIT}"), false),
        (security("AuthorizationPolicy", "other", "{}"), false),
        (custom, true),
    ];
    for (policy, allowed) in cases {
        let dir = config(&[("services.yaml", SERVICES.to_owned()), ("policy.yaml", policy)]);
        let control = match allowed {
            true => start_unguarded(dir.path()).await,
            false => start(dir.path()).await,
        };
        let _server = serve(&control, "reviews", "v1").await;
        let client = mesh(&control, "web", "v1");
        becomes(&client, "reviews", |answer| answer.as_ref().is_ok_and(|answer| answer.is(200, &["v1"]))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guarded_server_fails_grpc_calls_with_the_reason_from_the_next_request_on() {
    let dir = config(&[("services.yaml", SERVICES.to_owned())]);
    let control = start(dir.path()).await;
    let _server = serve(&control, "reviews", "v1").await;
    let client = mesh(&control, "web", "v1");
    becomes(&client, "reviews", |answer| answer.as_ref().is_ok_and(|answer| answer.is(200, &["v1"]))).await;
    let custom = "{action: CUSTOM, provider: {name: opa}, rules: [{}]}";
    control.set_yaml("policy.yaml", &security("AuthorizationPolicy", "istio-system", custom)).unwrap();
    becomes(&client, "reviews", |answer| is_refused(answer, &["AuthorizationPolicy istio-system/p"])).await;
    let call = http::Request::post("http://reviews:9080/a.B/C").header("content-type", "application/grpc");
    let call = call.body(mesh_tower::body::Body::empty()).unwrap();
    let response = client.client().request(call).await.unwrap();
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!((response.status().as_u16(), header("grpc-status").as_str()), (200, "14"));
    assert!(header("grpc-message").contains("AuthorizationPolicy istio-system/p"), "{:?}", response.headers());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_of_a_rule_holds_for_a_port_whose_own_settings_say_nothing_of_it() {
    let of_port = "portLevelSettings: [{port: {number: 9080}, loadBalancer: {simple: RANDOM}}]";
    let in_subset = format!("subsets: [{{name: v1, labels: {{version: v1}}, trafficPolicy: {{{of_port}}}}}]");
    for spec in [
        format!("{{host: reviews, trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL}}, {of_port}}}}}"),
        format!("{{host: reviews, trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL}}}}, {in_subset}}}"),
    ] {
        let rule = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews}}\nspec: {spec}\n"
        );
        let rules = if spec.contains("subsets") { format!("{rule}---{ONLY_V1}") } else { rule };
        let dir = config(&[("services.yaml", SERVICES.to_owned()), ("rules.yaml", rules)]);
        let control = start(dir.path()).await;
        let _server = serve(&control, "reviews", "v1").await;
        let client = mesh(&control, "web", "v1");
        becomes(&client, "reviews", |answer| *answer == Err(ErrorKind::Security)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_peer_authentications_that_are_as_old_the_strict_one_counts() {
    let named = |name: &str, mode: &str| {
        security("PeerAuthentication", "default", &format!("{{mtls: {{mode: {mode}}}}}"))
            .replace("name: p", &format!("name: {name}"))
    };
    let both = format!("{}---\n{}", named("a", "PERMISSIVE"), named("b", "STRICT"));
    let dir = config(&[("services.yaml", SERVICES.to_owned()), ("policy.yaml", both)]);
    let control = start(dir.path()).await;
    let _server = serve(&control, "reviews", "v1").await;
    let client = mesh(&control, "web", "v1");
    becomes(&client, "reviews", |answer| is_refused(answer, &["PeerAuthentication default/b"])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_selector_with_a_wildcard_is_refused_and_guards_its_whole_namespace() {
    for kind in ["PeerAuthentication", "AuthorizationPolicy"] {
        let policy = security(kind, "default", "{selector: {matchLabels: {app: 'rev*'}}}");
        let dir = config(&[("services.yaml", SERVICES.to_owned()), ("policy.yaml", policy)]);
        let control = start(dir.path()).await;
        let _server = serve(&control, "reviews", "v1").await;
        let client = mesh(&control, "web", "v1");
        becomes(&client, "reviews", |answer| is_refused(answer, &[kind, "has a wildcard"])).await;
    }
}
