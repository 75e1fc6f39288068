//! Filters of the application's own, by a WasmPlugin: what requests experience of every field of it, on both sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderValue, StatusCode, request, response};
use http_body_util::BodyExt;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_control::plane::PlaneOptions;
use mesh_core::error::Invalid;
use mesh_core::filter::{Decision, Filter, FilterFactory, Reply, Resume};
use mesh_core::request_info::RequestInfo;
use mesh_tower::body::Body;
use mesh_tower::{Mesh, MeshBuilder};
use serde_json::json;
use tower_layer::Layer;

use crate::support::introduced;

const PATIENCE: Duration = Duration::from_secs(10);

const SERVICES: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec: {selector: {app: other}, ports: [{name: http, port: 81}]}
";

/// A WasmPlugin of the namespace `shop`.
fn plugin(name: &str, spec: &str) -> String {
    plugin_in("shop", name, spec)
}

fn plugin_in(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// Adds its word to the header `passed`, and does what the header `wanted` says.
#[derive(Debug)]
struct Stamp {
    word: String,
    passed: Arc<AtomicU64>,
}

impl Filter for Stamp {
    fn on_request(&self, _: &mut RequestInfo, head: &mut request::Parts) -> Decision {
        let wanted = head.headers.get("wanted").cloned();
        let passed = self.passed.fetch_add(1, Ordering::Relaxed) + 1;
        head.headers.append("passed", HeaderValue::from_str(&self.word).unwrap());
        head.headers.insert("so-many", passed.into());
        match wanted.as_ref().and_then(|wanted| wanted.to_str().ok()) {
            Some("panic") => panic!("as the request wants it"),
            Some("refusal") => Decision::Reply(Reply::new(StatusCode::IM_A_TEAPOT, self.word.clone())),
            Some("user") => {
                head.headers.insert("user", HeaderValue::from_static("jason"));
                Decision::Continue
            }
            Some("question") => Decision::Callout(Box::pin(async {
                tokio::task::yield_now().await;
                let resume: Resume = Box::new(|_, head| {
                    head.headers.insert("user", HeaderValue::from_static("jason"));
                    Decision::Continue
                });
                resume
            })),
            _ => Decision::Continue,
        }
    }

    fn on_response(&self, _: &mut RequestInfo, head: &mut response::Parts) {
        head.headers.append("returned", HeaderValue::from_str(&self.word).unwrap());
    }
}

/// Its configuration is `{word: ..}`, and nothing else.
fn stamp() -> FilterFactory {
    Arc::new(|config, state| {
        let config: serde_json::Value = serde_json::from_str(config).map_err(|why| Invalid::new(why.to_string()))?;
        let word = config["word"].as_str().ok_or_else(|| Invalid::new("a text is expected").at("word"))?;
        Ok(Arc::new(Stamp { word: word.to_owned(), passed: state.get(AtomicU64::default) }))
    })
}

/// A client, and a server of `web` that answers with the header `passed` of its requests.
pub(crate) struct World {
    control: Embedded,
    client: Mesh,
    server: Mesh,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) returned: Vec<String>,
}

impl World {
    /// Both have the filter `acme.stamp`.
    pub(crate) async fn new(objects: &str) -> World {
        World::of(objects, |_, builder| builder.filter("acme.stamp", stamp())).await
    }

    async fn of(objects: &str, with: impl Fn(&str, MeshBuilder) -> MeshBuilder) -> World {
        let control = Embedded::start(Config::yaml(format!("{SERVICES}{objects}")), Options::default()).await.unwrap();
        let start = |app: &str| {
            let bootstrap = introduced(&format!("{app}-1"), json!({"app": app}));
            let builder = Mesh::builder().source(control.source(bootstrap)).cold_start_wait(PATIENCE);
            with(app, builder).start().unwrap()
        };
        let (client, server) = (start("caller"), start("web"));
        let listener = server.bind("127.0.0.1:0").await.unwrap();
        let answer = |request: axum::extract::Request| async move {
            let all = request.headers().get_all("passed").iter().chain(request.headers().get("so-many"));
            let all: Vec<_> = all.map(|value| value.to_str().unwrap().to_owned()).collect();
            all.join(" ")
        };
        let app = server.server_layer().layer(axum::Router::new().fallback(answer));
        tokio::spawn(mesh_tower::server::serve(listener, app).into_future());
        server.serving().await.unwrap();
        World { control, client, server }
    }

    pub(crate) async fn ask(&self, headers: &[(&str, &str)]) -> Answer {
        self.ask_at("http://web.shop/path", headers).await
    }

    pub(crate) async fn ask_at(&self, uri: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = http::Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.client.client().request(request.body(Body::empty()).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let returned = head.headers.get_all("returned").iter().map(|value| value.to_str().unwrap().to_owned());
        let body = String::from_utf8(body.to_vec()).unwrap();
        Answer { status: head.status.as_u16(), body, returned: returned.collect() }
    }

    async fn get(&self) -> (u16, String) {
        let answer = self.ask(&[]).await;
        (answer.status, answer.body)
    }

    /// Changes the objects, and waits until a request gets this status and passes these.
    pub(crate) async fn becomes(&self, objects: &str, expected: (u16, &str)) {
        self.control.set_yaml("config.yaml", &format!("{SERVICES}{objects}")).unwrap();
        let become_so = async {
            loop {
                let (status, body) = self.get().await;
                if (status, body.rsplit_once(' ').map_or("", |(words, _)| words)) == expected {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, become_so).await.unwrap_or_else(|_| panic!("{expected:?} of {objects}"));
    }
}

/// It may be a rule for calls, too.
#[tokio::test]
async fn a_file_of_which_nothing_can_be_told_fails_the_calls_of_everybody() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("services.yaml"), SERVICES).unwrap();
    std::fs::write(dir.path().join("secret.yaml"), b"\0GITCRYPT\0\x9f\xb1\x02\xff\x17\xd8").unwrap();
    for (allows, expected) in [(false, "nobody can tell what guards this workload: secret.yaml"), (true, "")] {
        let options = Options::default().plane(PlaneOptions::default().allow_unenforced(allows));
        let control = Embedded::start(Config::dir(dir.path()), options).await.unwrap();
        let bootstrap = introduced("caller-1", json!({"app": "caller"}));
        let client = Mesh::builder().source(control.source(bootstrap)).cold_start_wait(PATIENCE).start().unwrap();
        let request = http::Request::get("http://web.shop/path").body(Body::empty()).unwrap();
        match client.client().request(request).await {
            Ok(answer) => {
                assert_eq!(answer.status(), 500, "{allows}");
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                assert!(!allows && String::from_utf8_lossy(&body).contains(expected), "{body:?}");
            }
            // There is no server.
            Err(error) => assert!(allows, "{error:#}"),
        }
    }
}

const ON_SERVER: &str = "match: [{mode: SERVER}]";

#[tokio::test]
async fn a_filter_is_selected_by_its_name_and_has_its_configuration_which_changes_live() {
    let spec = |word: &str| {
        plugin("stamp", &format!("{{pluginName: acme.stamp, pluginConfig: {{word: {word}}}, {ON_SERVER}}}"))
    };
    let world = World::new(&spec("one")).await;
    let answer = world.ask(&[]).await;
    assert_eq!((answer.status, answer.body.as_str(), answer.returned), (200, "one 1", vec!["one".to_owned()]));
    let refused = world.ask(&[("wanted", "refusal")]).await;
    assert_eq!((refused.status, refused.body.as_str()), (418, "one"));
    // What it keeps outlives its configuration.
    world.becomes(&spec("two"), (200, "two")).await;
    assert_eq!(world.get().await.1.split(' ').nth(1).unwrap().parse::<u64>().unwrap().min(4), 4);
    // What it does not take leaves the one before in force.
    let other = plugin("b", "{pluginName: acme.stamp, pluginConfig: {word: b}}");
    world.becomes(&format!("{}{other}", spec("[]")), (200, "b b two")).await;
    // Without a name, the object's own is meant.
    let own = "{pluginConfig: {word: own}}";
    world.becomes(&plugin("acme.stamp", own), (200, "own own")).await;
    // And without an object, nothing.
    world.becomes("", (200, "")).await;
}

#[tokio::test]
async fn each_side_passes_those_that_are_for_it_and_its_ports() {
    for (matches, expected) in [
        ("[]", "w w 1"),
        ("[{}]", "w w 1"),
        ("[{mode: UNDEFINED}]", "w w 1"),
        ("[{mode: CLIENT_AND_SERVER}]", "w w 1"),
        ("[{mode: CLIENT}]", "w 1"),
        ("[{mode: SERVER}]", "w 1"),
        ("[{ports: [{number: 80}]}]", "w w 1"),
        ("[{ports: [{number: 79}]}]", ""),
        ("[{mode: CLIENT, ports: [{number: 79}, {number: 80}]}, {mode: SERVER, ports: [{number: 79}]}]", "w 1"),
    ] {
        let spec = format!("{{pluginName: acme.stamp, pluginConfig: {{word: w}}, match: {matches}}}");
        let world = World::new(&plugin("a", &spec)).await;
        let (status, body) = world.get().await;
        assert_eq!((status, body.as_str()), (200, expected), "{matches}");
    }
}

#[tokio::test]
async fn it_is_for_the_workloads_that_it_selects() {
    let spec = "pluginName: acme.stamp, pluginConfig: {word: w}";
    for (object, expected) in [
        (plugin("a", &format!("{{{spec}, selector: {{matchLabels: {{app: web}}}}}}")), 1),
        (plugin("a", &format!("{{{spec}, selector: {{matchLabels: {{app: caller}}}}}}")), 1),
        (plugin("a", &format!("{{{spec}, selector: {{matchLabels: {{app: nobody}}}}}}")), 0),
        (plugin("a", &format!("{{{spec}, targetRefs: [{{kind: Service, name: web}}]}}")), 1),
        (plugin("a", &format!("{{{spec}, targetRef: {{kind: Service, name: other}}}}")), 0),
        (plugin_in("elsewhere", "a", &format!("{{{spec}}}")), 0),
        (plugin_in("istio-system", "a", &format!("{{{spec}}}")), 2),
    ] {
        let world = World::new(&object).await;
        let (_, body) = world.get().await;
        assert_eq!(body.split(' ').filter(|word| *word == "w").count(), expected, "{object}: {body}");
    }
}

/// A program that there is elsewhere is none here: requests that have to pass it are refused where nothing has its name.
#[tokio::test]
async fn a_filter_that_is_not_there_is_what_its_strategy_says() {
    let url = "url: 'oci://registry.example.com/auth:1', sha256: abc, imagePullPolicy: Always";
    for (strategy, expected) in [
        ("", 500),
        ("failStrategy: FAIL_CLOSE", 500),
        ("failStrategy: FAIL_RELOAD", 500),
        ("failStrategy: FAIL_OPEN", 200),
    ] {
        for (phase, mode) in [("AUTHN", "SERVER"), ("STATS", "SERVER"), ("UNSPECIFIED_PHASE", "CLIENT")] {
            let spec =
                format!("{{{url}, pluginName: basic-auth, phase: {phase}, match: [{{mode: {mode}}}], {strategy}}}");
            let world = World::new(&plugin("auth", &spec)).await;
            let (status, body) = world.get().await;
            assert_eq!(status, expected, "{spec}: {body}");
            assert!(status == 200 || body.contains("\"basic-auth\""), "{body}");
            let told = if mode == "SERVER" { &world.server } else { &world.client };
            let is_told = async {
                let names = || told.client_status().resources.clone();
                while !names().iter().any(|one| one.ignored.iter().any(|field| field.contains("basic-auth"))) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(PATIENCE, is_told).await.expect("the status has it");
        }
    }
}

#[tokio::test]
async fn what_the_schema_of_a_filter_refuses_is_told_to_nobody_and_is_what_its_strategy_says() {
    let schema = |namespace: &str| {
        format!(
            "---\napiVersion: policy.mesh-control/v1alpha1\nkind: FilterSchema\nmetadata: {{name: s, namespace: {namespace}}}\n\
             spec: {{filter: acme.stamp, schema: {{properties: {{word: {{enum: [good]}}}}}}}}\n"
        )
    };
    let spec = |word: &str, strategy: &str| {
        plugin(
            "a",
            &format!(
                "{{pluginName: acme.stamp, pluginConfig: {{word: {word}}}, failStrategy: {strategy}, {ON_SERVER}}}"
            ),
        )
    };
    // The filter itself would take it.
    for (namespace, word, strategy, expected) in [
        ("shop", "good", "FAIL_CLOSE", (200, "good 1")),
        ("shop", "bad", "FAIL_OPEN", (200, "")),
        ("istio-system", "bad", "FAIL_OPEN", (200, "")),
        ("elsewhere", "bad", "FAIL_OPEN", (200, "bad 1")),
    ] {
        let world = World::new(&format!("{}{}", schema(namespace), spec(word, strategy))).await;
        let (status, body) = world.get().await;
        assert_eq!((status, body.as_str()), expected, "{namespace} {word} {strategy}");
    }
    let world = World::new(&format!("{}{}", schema("shop"), spec("bad", "FAIL_CLOSE"))).await;
    let (status, body) = world.get().await;
    assert!(status == 500 && body.contains("whose configuration its FilterSchema refuses"), "{status} {body}");
}

#[tokio::test]
async fn a_filter_that_panics_is_what_its_strategy_says() {
    for (strategy, panics, after) in
        [("FAIL_CLOSE", 500, "w 3"), ("FAIL_OPEN", 200, "w 3"), ("FAIL_RELOAD", 500, "w 1")]
    {
        let spec =
            format!("{{pluginName: acme.stamp, pluginConfig: {{word: w}}, failStrategy: {strategy}, {ON_SERVER}}}");
        let world = World::new(&plugin("a", &spec)).await;
        assert_eq!(world.get().await, (200, "w 1".to_owned()));
        assert_eq!(world.ask(&[("wanted", "panic")]).await.status, panics, "{strategy}");
        assert_eq!(world.get().await, (200, after.to_owned()), "{strategy}");
    }
}

#[tokio::test]
async fn phases_come_in_istios_order_and_within_one_the_higher_priority_first() {
    let stamp = |name: &str, phase: &str, priority: &str| {
        let word = format!("pluginName: acme.stamp, pluginConfig: {{word: {name}}}, {ON_SERVER}");
        plugin(name, &format!("{{{word}, phase: {phase}{priority}}}"))
    };
    let all = [
        stamp("e", "UNSPECIFIED_PHASE", ""),
        stamp("d", "STATS", ""),
        stamp("low", "AUTHZ", ", priority: -1"),
        stamp("b", "AUTHZ", ", priority: 10"),
        stamp("c", "AUTHZ", ""),
        stamp("c2", "AUTHZ", ", priority: 0"),
        stamp("a", "AUTHN", ""),
    ];
    let world = World::new(&all.concat()).await;
    let answer = world.ask(&[]).await;
    assert_eq!(answer.body, "a b c c2 low d e 1");
    assert_eq!(answer.returned, ["e", "d", "low", "c2", "c", "b", "a"]);
}

/// Those of the phases AUTHN and AUTHZ come before policies, which see what they make of a request; the others come after.
#[tokio::test]
async fn policies_see_what_filters_of_the_phases_before_them_make_of_a_request() {
    let policy = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: users, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, rules: [{when: [{key: 'request.headers[user]', values: [jason]}]}]}
";
    for (phase, expected) in [("AUTHN", 200), ("AUTHZ", 200), ("STATS", 403), ("UNSPECIFIED_PHASE", 403)] {
        let spec = format!("{{pluginName: acme.stamp, pluginConfig: {{word: w}}, phase: {phase}, {ON_SERVER}}}");
        let world = World::new(&format!("{policy}{}", plugin("a", &spec))).await;
        let refused = world.ask(&[]).await;
        assert_eq!(refused.status, 403, "{phase}");
        // It was there for those that are refused after it, and sees their answers.
        assert_eq!(refused.returned.len(), usize::from(expected == 200), "{phase}");
        for wanted in ["user", "question"] {
            let answer = world.ask(&[("wanted", wanted)]).await;
            assert_eq!(answer.status, expected, "{phase} {wanted}: {}", answer.body);
        }
        let answered = world.ask(&[("wanted", "refusal")]).await;
        assert_eq!(answered.status, if expected == 200 { 418 } else { 403 }, "{phase}");
    }
}

/// What nobody knows to be right lets nobody by: neither those who call a workload, nor the calls that it makes.
#[tokio::test]
async fn one_that_is_wrong_keeps_its_workloads_from_serving_and_from_calling_unless_it_is_not_insisted_on() {
    let stamp = |spec: &str| plugin("a", &format!("{{pluginName: acme.stamp, {spec}}}"));
    let own = |kind: &str, spec: &str| {
        let own = plugin("b", &format!("{{{spec}}}"));
        own.replace("extensions.istio.io", "policy.mesh-control").replace("WasmPlugin", kind)
    };
    let rules = |spec: &str| own("RequestRules", &format!("{spec}, rules: [{{name: a, deny: {{status: 200}}}}]"));
    let schema = |filter: &str| own("FilterSchema", &format!("filter: {filter}, schema: {{type: text}}"));
    for (objects, expected) in [
        (stamp("type: NETWORK, match: [{mode: SERVER}]"), 503),
        (stamp("phase: AUTH, match: [{mode: SERVER}]"), 503),
        (stamp("pluginconfig: {}, match: [{mode: SERVER}]"), 503),
        (stamp("type: NETWORK, failStrategy: FAIL_OPEN"), 200),
        (stamp("phase: NEVER"), 500),
        (stamp("phase: NEVER, match: [{mode: CLIENT}]"), 500),
        (stamp("phase: NEVER, match: [{mode: CLEINT}]"), 500),
        (stamp("phase: NEVER, match: [{mode: CLIENT}], selector: {matchLabels: {app: web}}"), 200),
        (stamp("phase: NEVER, match: [{mode: CLIENT}], failStrategy: FAIL_OPEN"), 200),
        (rules("mode: SERVER"), 503),
        (rules("mode: CLIENT"), 500),
        (rules("mode: CLIENT, hosts: [web.shop.svc.cluster.local]"), 500),
        (rules("mode: CLIENT, hosts: [1]"), 500),
        (rules("mode: CLIENT, hosts: [other.shop.svc.cluster.local]"), 200),
        (rules("mode: CLIENT, selector: {matchLabels: {app: caller}}"), 500),
        (rules("mode: CLIENT, selector: {matchLabels: {app: web}}"), 200),
        // Nobody can tell whether the plugin's configuration is right.
        (stamp("match: [{mode: CLIENT}]") + &schema("acme.stamp"), 500),
        (stamp("match: [{mode: CLIENT}]") + &schema("1"), 500),
        (stamp("match: [{mode: CLIENT}], failStrategy: FAIL_OPEN") + &schema("acme.stamp"), 200),
    ] {
        let (status, body) = asked(&objects, Options::default()).await;
        assert_eq!(status, expected, "{objects}: {body}");
        assert!(status == 200 || body.contains("wrong"), "{objects}: {body}");
    }
    let lenient = Options::default().plane(PlaneOptions::default().allow_unenforced(true));
    assert_eq!(asked(&rules("mode: CLIENT"), lenient).await.0, 200);
}

/// What `web` answers, by a control plane that begins with these objects, of which some are wrong.
async fn asked(objects: &str, options: Options) -> (u16, String) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("all.yaml"), format!("{SERVICES}{objects}")).unwrap();
    let control = Embedded::start(Config::dir(dir.path()), options).await.unwrap();
    let start = |app: &str| {
        let source = control.source(introduced(&format!("{app}-1"), json!({"app": app})));
        Mesh::builder().filter("acme.stamp", passing()).source(source).cold_start_wait(PATIENCE).start().unwrap()
    };
    let (client, server) = (start("caller"), start("web"));
    let listener = server.bind("127.0.0.1:0").await.unwrap();
    let app = server.server_layer().layer(axum::Router::new().fallback(async || "served"));
    tokio::spawn(mesh_tower::server::serve(listener, app).into_future());
    server.serving().await.unwrap();
    let response = client.client().get("http://web.shop/").await.unwrap();
    let status = response.status().as_u16();
    (status, String::from_utf8_lossy(&response.into_body().collect().await.unwrap().to_bytes()).into_owned())
}

/// Takes any configuration.
fn passing() -> FilterFactory {
    Arc::new(|_, state| Ok(Arc::new(Stamp { word: "w".to_owned(), passed: state.get(AtomicU64::default) })))
}
