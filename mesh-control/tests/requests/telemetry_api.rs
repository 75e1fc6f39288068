//! What Telemetry objects say of access logs and metrics: by the lines that clients and servers write, and by what they count.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;
use mesh_control::analysis::validate;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::model::LogFormat;
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use serde_json::json;
use tower_layer::Layer;

use crate::support::introduced;

const PATIENCE: Duration = Duration::from_secs(5);

/// The client `web` and the server `reviews` of the namespace `shop`.
struct World {
    _control: Embedded,
    client: Mesh,
    server: Mesh,
    logs: tempfile::TempDir,
    /// Requests that are over, on both sides.
    over: Arc<AtomicUsize>,
    asked: AtomicUsize,
}

/// A Telemetry.
fn telemetry(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// Settings with a provider `file`, of lines `STATUS PATH CLUSTER`, and with these.
fn settings(logs: &Path, more: &str) -> String {
    let file = logs.join("file.log");
    let more: String = more.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    \
         extensionProviders:\n    - name: file\n      envoyFileAccessLog: {{path: {}, logFormat: {{text: '%RESPONSE_CODE% %REQ(:PATH)% %UPSTREAM_CLUSTER%'}}}}\n{more}",
        file.display()
    )
}

const SERVICE: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80}]}
";

impl World {
    async fn start(more_settings: &str, objects: &str) -> World {
        let logs = tempfile::tempdir().unwrap();
        let more = more_settings.replace("LOGS", &logs.path().display().to_string());
        let yaml = format!("{SERVICE}{}{objects}", settings(logs.path(), &more));
        // A folder: what is wrong in it does not keep the rest from being served.
        let config = logs.path().join("config");
        std::fs::create_dir(&config).unwrap();
        std::fs::write(config.join("all.yaml"), yaml).unwrap();
        let control = Embedded::start(Config::dir(config), Options::default().dev()).await.unwrap();
        let over = Arc::new(AtomicUsize::new(0));
        let start = |app: &str| {
            let bootstrap = introduced(&format!("{app}-1"), json!({"app": app}))
                .metadata("SERVICE_ACCOUNT", app)
                .metadata("CLUSTER_ID", "east");
            let over = Arc::clone(&over);
            let note = move |_: &str| _ = over.fetch_add(1, Ordering::SeqCst);
            let builder = Mesh::builder().source(control.source(bootstrap)).cold_start_wait(PATIENCE).metrics();
            builder.access_log_files_in(logs.path()).access_log_to(LogFormat::default(), note).start().unwrap()
        };
        let (client, server) = (start("web"), start("reviews"));
        let listener = server.bind("127.0.0.1:0").await.unwrap();
        let answer = |request: axum::extract::Request| async move {
            let status = if request.uri().path() == "/missing" { 404 } else { 200 };
            http::StatusCode::from_u16(status).unwrap()
        };
        let app = server.server_layer().layer(axum::Router::new().fallback(answer));
        tokio::spawn(mesh_tower::server::serve(listener, app).into_future());
        server.serving().await.unwrap();
        World { _control: control, client, server, logs, over, asked: AtomicUsize::new(0) }
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) {
        let mut request = http::Request::get(format!("http://reviews.shop{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.client.client().request(request.body(Body::empty()).unwrap()).await.unwrap();
        response.into_body().collect().await.unwrap();
        self.asked.fetch_add(1, Ordering::SeqCst);
    }

    /// Waits until both sides were told that every request is over.
    async fn settle(&self) {
        let settled = async {
            while self.over.load(Ordering::SeqCst) < 2 * self.asked.load(Ordering::SeqCst) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.expect("both sides are told of every request");
    }

    /// The lines of the client, which have a cluster, and those of the server.
    async fn lines(&self) -> (Vec<String>, Vec<String>) {
        self.settle().await;
        self.client.flush_access_logs();
        self.server.flush_access_logs();
        let text = std::fs::read_to_string(self.logs.path().join("file.log")).unwrap_or_default();
        text.lines().map(str::to_owned).partition(|line| !line.ends_with(" -"))
    }

    /// Gives the configuration other objects than those of the start.
    fn rewrite(&self, objects: &str) {
        let config = self.logs.path().join("config");
        let yaml = format!("{SERVICE}{}{objects}", settings(self.logs.path(), ""));
        std::fs::write(self.logs.path().join("next"), yaml).unwrap();
        std::fs::rename(self.logs.path().join("next"), config.join("all.yaml")).unwrap();
    }

    /// What a side counts, line by line, but for what it says of itself.
    async fn counted(&self, is_client: bool) -> Vec<String> {
        self.settle().await;
        let text = if is_client { self.client.prometheus() } else { self.server.prometheus() };
        let is_of_istio = |line: &&str| line.starts_with("istio_re") || line.starts_with("istio_tcp");
        text.lines().filter(is_of_istio).map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn only_requests_of_which_the_expression_holds_are_in_the_log() {
    for (expression, client, server) in [
        ("response.code >= 400", 1, 1),
        ("response.code < 400", 1, 1),
        ("response.code >= 500", 0, 0),
        ("has(request.headers['x-log'])", 1, 1),
        ("!has(request.headers['x-log'])", 1, 1),
        ("connection.mtls && request.url_path == '/missing'", 0, 1),
        ("has(xds.cluster_name) && request.method == 'GET'", 2, 0),
        ("node.metadata['CLUSTER_ID'] == 'east'", 2, 2),
    ] {
        let spec =
            format!("{{accessLogging: [{{providers: [{{name: file}}], filter: {{expression: \"{expression}\"}}}}]}}");
        let world = World::start("", &telemetry("shop", "all", &spec)).await;
        world.get("/missing", &[]).await;
        world.get("/", &[("x-log", "a\" 200 - \u{202e}")]).await;
        let (of_client, of_server) = world.lines().await;
        assert_eq!((of_client.len(), of_server.len()), (client, server), "{expression}: {of_client:?} {of_server:?}");
    }
}

#[tokio::test]
async fn the_narrower_object_goes_before_the_wider_and_each_side_has_its_own() {
    let logged = "{accessLogging: [{providers: [{name: file}]}]}";
    let of = |app: &str, spec: &str| {
        format!("{{selector: {{matchLabels: {{app: {app}}}}}, {}", spec.trim_start_matches('{'))
    };
    let (off, client_only) = (
        "{accessLogging: [{disabled: true}]}",
        "{accessLogging: [{match: {mode: CLIENT}, providers: [{name: file}]}]}",
    );
    let target = "{targetRefs: [{kind: Service, name: reviews, group: ''}], accessLogging: [{disabled: true}]}";
    let legacy = "accessLogFile: LOGS/file.log\naccessLogFormat: '%RESPONSE_CODE% %REQ(:PATH)% %UPSTREAM_CLUSTER%'";
    for (more, objects, client, server) in [
        ("", telemetry("istio-system", "mesh", logged), 1, 1),
        ("", telemetry("elsewhere", "other", logged), 0, 0),
        ("", telemetry("istio-system", "mesh", logged) + &telemetry("shop", "silent", off), 0, 0),
        ("", telemetry("istio-system", "mesh", logged) + &telemetry("shop", "one", &of("web", off)), 0, 1),
        ("", telemetry("shop", "all", logged) + &telemetry("shop", "one", target), 1, 0),
        ("", telemetry("shop", "all", client_only), 1, 0),
        // The older of two counts; here, where neither has an age, the first by name.
        ("", telemetry("shop", "a", off) + &telemetry("shop", "b", logged), 0, 0),
        ("defaultProviders: {accessLogging: [file]}", String::new(), 1, 1),
        ("defaultProviders: {accessLogging: [file]}", telemetry("shop", "silent", off), 0, 0),
        (
            "defaultProviders: {accessLogging: [file]}",
            telemetry("shop", "few", "{accessLogging: [{filter: {expression: 'response.code == 404'}}]}"),
            0,
            0,
        ),
        (legacy, String::new(), 1, 1),
        (legacy, telemetry("shop", "silent", off), 0, 0),
        (legacy, telemetry("shop", "few", "{accessLogging: [{match: {mode: SERVER}, disabled: true}]}"), 1, 0),
    ] {
        let world = World::start(more, &objects).await;
        world.get("/", &[]).await;
        let (of_client, of_server) = world.lines().await;
        assert_eq!((of_client.len(), of_server.len()), (client, server), "{more} {objects}");
    }
}

#[test]
fn who_takes_what_is_told_and_what_is_wrong_is_said_by_name_and_place() {
    let settings = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    extensionProviders: [{name: als, envoyHttpAls: {service: a.example.com, port: 80}}, {name: st, stackdriver: {}}]\n";
    for (spec, expected) in [
        (
            "{accessLogging: [{providers: [{name: nobody}]}]}",
            "error[unknown-reference]: Telemetry shop/t: accessLogging.providers.name: there is no provider `nobody`",
        ),
        ("{accessLogging: [{providers: [{name: als}]}]}", "the provider `als` is envoyHttpAls, which is not supported"),
        (
            "{metrics: [{providers: [{name: st}]}]}",
            "the provider `st` is stackdriver, which is not supported: no metrics go there",
        ),
        ("{metrics: [{providers: [{name: envoy}]}]}", "the provider `envoy` is a file of access logs"),
        ("{accessLogging: [{filter: {expression: 'response.code > 1'}}]}", "nothing is written: no provider is named"),
        (
            "{accessLogging: [{providers: [{name: envoy}], filter: {expression: 'response.cod > 1'}}]}",
            "accessLogging[0].filter.expression: line 1, column 1: there is no attribute response.cod",
        ),
        (
            "{accessLogging: [{providers: [{name: envoy}], filter: {expression: 'response.code'}}]}",
            "line 1, column 1: it is an int, and a condition is a bool",
        ),
        (
            "{metrics: [{overrides: [{tagOverrides: {x: {value: 'request.nope'}}}]}]}",
            "metrics[0].overrides[0].tagOverrides[x].value: line 1, column 1: there is no attribute request.nope",
        ),
        ("{metrics: [{overrides: [{tagOverrides: {x: {operation: REMOVE, value: a}}}]}]}", "REMOVE takes no value"),
        ("{metrics: [{overrides: [{tagOverrides: {'x-y': {value: \"'a'\"}}}]}]}", "is not the name of a label"),
        ("{metrics: [{overrides: [{match: {customMetric: mine}, disabled: true}]}]}", "there is no metric `mine`"),
        ("{metrics: [{reportingInterval: 5s}]}", "metrics[0].reportingInterval: not supported yet"),
        ("{tracing: [{randomSamplingPercentage: 101}]}", "101 is not a percentage"),
        ("{tracing: [{providers: [{name: jaeger}]}]}", "there is no provider `jaeger`"),
        ("{}", "it says nothing"),
        ("{accessLogging: [{filters: {}}]}", "did you mean `filter`?"),
        (
            "{targetRefs: [{kind: Service, group: '', name: none}], accessLogging: [{providers: [{name: envoy}]}]}",
            "there is no Service shop/none",
        ),
    ] {
        let yaml = format!("{SERVICE}{settings}{}", telemetry("shop", "t", spec));
        let found: Vec<_> = validate([("t.yaml", yaml.as_str())]).iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|one| one.contains(expected)), "{spec}: {found:#?}");
    }
}

#[test]
fn labels_of_a_metric_that_a_wider_object_takes_away_are_told_unless_it_is_brought_back() {
    let mesh = telemetry("istio-system", "mesh", "{metrics: [{overrides: [{match: {mode: CLIENT}, disabled: true}]}]}");
    let labels = "tagOverrides: {team: {value: \"'a'\"}}";
    for (spec, is_told) in [
        (format!("{{metrics: [{{overrides: [{{match: {{metric: REQUEST_COUNT}}, {labels}}}]}}]}}"), true),
        (
            format!("{{metrics: [{{overrides: [{{match: {{metric: REQUEST_COUNT}}, disabled: false, {labels}}}]}}]}}"),
            false,
        ),
        (
            format!("{{metrics: [{{overrides: [{{match: {{metric: REQUEST_COUNT, mode: SERVER}}, {labels}}}]}}]}}"),
            false,
        ),
        (format!("{{metrics: [{{overrides: [{{disabled: false}}, {{{labels}}}]}}]}}"), false),
    ] {
        let yaml = format!("{SERVICE}{mesh}{}", telemetry("shop", "t", &spec));
        let found: Vec<_> = validate([("t.yaml", yaml.as_str())]).iter().map(ToString::to_string).collect();
        let expected =
            "without effect on requests_total, which Telemetry istio-system/mesh takes away: `disabled: false`";
        assert_eq!(found.iter().any(|one| one.contains(expected)), is_told, "{spec}: {found:#?}");
    }
}

#[test]
fn entries_for_access_logs_that_another_one_goes_before_are_told() {
    let (all, few, fewer) = ("{providers: [{name: envoy}]}", "response.code >= 400", "response.code != 200");
    let filter = |text: &str| format!("{{filter: {{expression: '{text}'}}}}");
    let of_envoy = |text: &str| format!("{{providers: [{{name: envoy}}], filter: {{expression: '{text}'}}}}");
    let side = |mode: &str, rest: &str| format!("{{match: {{mode: {mode}}}, providers: [{{name: envoy}}], {rest}}}");
    let (file, none) = ("accessLogFile: /dev/stdout\n", "");
    let without = "accessLogging[0].providers: without effect: it names no provider, and those of accessLogging[1]";
    let later = "accessLogging[0].filter: without effect on `envoy`: accessLogging[1] is for it, too, and counts";
    for (settings, entries, expected) in [
        // It is for those of the entry before it.
        (none, [all.to_owned(), filter(few)], None),
        (file, [filter(fewer), all.to_owned()], Some(without)),
        (none, [filter(fewer), all.to_owned()], Some(without)),
        (none, ["{disabled: true}".to_owned(), all.to_owned()], Some(without)),
        (none, [of_envoy(fewer), of_envoy(few)], Some(later)),
        (none, [of_envoy(fewer), "{disabled: true}".to_owned()], Some(later)),
        (none, [of_envoy(fewer), all.to_owned()], None),
        (
            none,
            ["{providers: [{name: envoy}], disabled: true}".to_owned(), all.to_owned()],
            Some("accessLogging[0].disabled: without effect on `envoy`"),
        ),
        (file, [filter(fewer), filter(few)], Some("accessLogging[0].filter: without effect on accessLogFile")),
        (none, [side("CLIENT", "disabled: true"), side("SERVER", "filter: {expression: 'response.code > 1'}")], None),
        (none, [filter(few), "{disabled: true}".to_owned()], Some("accessLogging[0].providers: nothing is written")),
    ] {
        let object = telemetry("shop", "t", &format!("{{accessLogging: [{}]}}", entries.join(", ")));
        let yaml = format!("{SERVICE}{}{object}", settings_of(settings));
        let found: Vec<_> = validate([("t.yaml", yaml.as_str())]).iter().map(ToString::to_string).collect();
        let told: Vec<_> = found.iter().filter(|one| one.contains("Telemetry shop/t")).collect();
        assert_eq!(told.len(), usize::from(expected.is_some()), "{settings}{entries:?}: {found:#?}");
        assert!(told.iter().all(|one| one.contains(expected.unwrap())), "{settings}{entries:?}: {found:#?}");
    }
}

/// Settings, without any provider.
fn settings_of(more: &str) -> String {
    let more = if more.is_empty() { "enableTracing: false" } else { more };
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n{}",
        more.lines().map(|line| format!("    {line}\n")).collect::<String>()
    )
}

#[test]
fn a_format_of_the_mesh_is_without_effect_where_no_log_has_it() {
    let of_envoy = telemetry("shop", "t", "{accessLogging: [{providers: [{name: envoy}]}]}");
    let own = "extensionProviders: [{name: envoy, envoyFileAccessLog: {logFormat: {text: a}}}]\n";
    for (format, field) in
        [("accessLogFormat: 'a'\n", "accessLogFormat"), ("accessLogEncoding: JSON\n", "accessLogEncoding")]
    {
        for (more, objects, is_told) in [
            ("", "", true),
            ("", &*of_envoy, false),
            ("defaultProviders: {accessLogging: [envoy]}", "", false),
            ("accessLogFile: /dev/stdout", "", false),
            (own, &*of_envoy, true),
        ] {
            let yaml = format!("{SERVICE}{}{objects}", settings_of(&format!("{format}{more}")));
            let found: Vec<_> = validate([("t.yaml", yaml.as_str())]).iter().map(ToString::to_string).collect();
            let expected = format!("{field}: without effect: accessLogFile is not set");
            assert_eq!(found.iter().any(|one| one.contains(&expected)), is_told, "{format}{more}: {found:#?}");
        }
    }
}

#[tokio::test]
async fn the_provider_envoy_writes_in_the_format_of_the_mesh_and_no_labels_are_the_default_json() {
    let here = "- name: envoy\n  envoyFileAccessLog: {path: LOGS/file.log}\n";
    let labels = "- name: json\n  envoyFileAccessLog: {path: LOGS/file.log, logFormat: {labels: {}}}\n";
    for (settings, provider, expected) in [
        (format!("{here}accessLogFormat: 'mesh %RESPONSE_CODE%'"), "envoy", "mesh 200"),
        (format!("{here}accessLogEncoding: JSON"), "envoy", "\"response_code\":200"),
        (format!("{labels}accessLogFormat: 'mesh %RESPONSE_CODE%'"), "json", "\"response_code\":200"),
    ] {
        let object = telemetry("shop", "t", &format!("{{accessLogging: [{{providers: [{{name: {provider}}}]}}]}}"));
        let world = World::start(&settings, &object).await;
        world.get("/", &[]).await;
        let (one, other) = world.lines().await;
        let all: Vec<String> = one.into_iter().chain(other).collect();
        assert!(all.len() == 2 && all.iter().all(|line| line.contains(expected)), "{settings}: {all:?}");
    }
}

/// Without a good state of it nobody knows which requests it would have kept out.
#[tokio::test]
async fn a_telemetry_that_is_wrong_keeps_the_access_logs_of_its_scope_from_being_written() {
    let wrong = "accessLogging: [{filter: {expression: 'response.cod > 1'}}]";
    let default = "defaultProviders: {accessLogging: [file]}";
    for (namespace, selector, client, server) in [
        ("shop", "", 0, 0),
        ("istio-system", "", 0, 0),
        ("other", "", 1, 1),
        ("shop", "selector: {matchLabels: {app: web}}, ", 0, 1),
        ("shop", "targetRefs: [{kind: Service, group: '', name: reviews}], ", 1, 0),
        ("istio-system", "selector: {matchLabels: {app: web}}, ", 1, 1),
    ] {
        let world = World::start(default, &telemetry(namespace, "t", &format!("{{{selector}{wrong}}}"))).await;
        world.get("/", &[]).await;
        let (of_client, of_server) = world.lines().await;
        assert_eq!((of_client.len(), of_server.len()), (client, server), "{namespace} {selector}");
    }
    let yaml = format!("{SERVICE}{}", telemetry("shop", "t", &format!("{{{wrong}}}")));
    let found: Vec<_> = validate([("t.yaml", yaml.as_str())]).iter().map(ToString::to_string).collect();
    let expected = "Telemetry shop/t: until it is right, no access log of workloads of namespace shop is written; metrics and \
        traces are told as if it were not there";
    assert!(found.iter().any(|one| one.contains(expected)), "{found:#?}");
}

#[tokio::test]
async fn metrics_and_labels_are_those_that_the_object_leaves() {
    let disabled = "{metrics: [{overrides: [{match: {metric: REQUEST_COUNT, mode: CLIENT}, disabled: true}]}]}";
    let world = World::start("", &telemetry("istio-system", "mesh", disabled)).await;
    world.get("/", &[]).await;
    let (client, server) = (world.counted(true).await, world.counted(false).await);
    let has = |lines: &[String], name: &str| lines.iter().any(|line| line.starts_with(name));
    assert!(!has(&client, "istio_requests_total{") && has(&server, "istio_requests_total{"), "{client:#?}");
    assert!(has(&client, "istio_request_bytes_count{") && has(&client, "istio_request_duration_milliseconds_sum{"));

    let nothing = "{metrics: [{overrides: [{disabled: true}]}]}";
    let again = "{metrics: [{overrides: [{match: {metric: REQUEST_SIZE}, disabled: false}]}]}";
    let world =
        World::start("", &(telemetry("istio-system", "mesh", nothing) + &telemetry("shop", "own", again))).await;
    world.get("/", &[]).await;
    for side in [true, false] {
        let lines = world.counted(side).await;
        assert!(has(&lines, "istio_request_bytes_count{"), "{lines:#?}");
        assert!(lines.iter().all(|line| line.starts_with("istio_request_bytes_")), "{lines:#?}");
    }
}

#[tokio::test]
async fn what_an_object_takes_away_is_gone_from_processes_that_run_and_nobody_calls() {
    let world = World::start("", "").await;
    world.get("/", &[]).await;
    let is_whole = |lines: &[String]| {
        let has = |name: &str, part: &str| lines.iter().any(|line| line.starts_with(name) && line.contains(part));
        has("istio_requests_total{", "") && has("istio_request_duration_milliseconds_sum{", "source_principal=")
    };
    for side in [true, false] {
        assert!(is_whole(&world.counted(side).await));
    }
    let spec = "{metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, disabled: true}, \
        {match: {metric: REQUEST_DURATION}, tagOverrides: {source_principal: {operation: REMOVE}}}]}]}";
    world.rewrite(&telemetry("istio-system", "mesh", spec));
    let is_gone = |lines: &[String]| {
        !lines.iter().any(|line| {
            line.starts_with("istio_requests_total{")
                || line.starts_with("istio_request_duration") && line.contains("source_principal=")
        })
    };
    for side in [true, false] {
        let gone = async {
            while !is_gone(&world.counted(side).await) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("it is gone");
        let rest = world.counted(side).await;
        assert!(rest.iter().any(|line| line.starts_with("istio_request_bytes_count{")), "{rest:#?}");
    }
}

#[tokio::test]
async fn labels_are_taken_off_and_set_and_nobody_breaks_out_of_one() {
    let tags = "{metrics: [{overrides: [{match: {metric: ALL_METRICS}, tagOverrides: {\
        source_principal: {operation: REMOVE}, \
        request_host: {value: request.host}, \
        who: {operation: UPSERT, value: \"has(request.headers['x-user']) ? request.headers['x-user'] : 'nobody'\"}, \
        where: {value: \"node.metadata['CLUSTER_ID']\"}, \
        destination_app: {value: \"'fixed'\"}, \
        none: {value: \"request.headers['none']\"}}}]}]}";
    let world = World::start("", &telemetry("shop", "tags", tags)).await;
    world.get("/", &[]).await;
    let hostile = "a\"} 1\\n\u{e9}";
    world.get("/", &[("x-user", hostile)]).await;
    for is_client in [true, false] {
        let lines = world.counted(is_client).await;
        assert!(lines.iter().all(|line| !line.contains("source_principal=")), "{lines:#?}");
        let totals: Vec<_> = lines.iter().filter(|line| line.starts_with("istio_requests_total{")).collect();
        assert_eq!(totals.len(), 2, "{totals:#?}");
        for line in &totals {
            for label in
                ["request_host=\"reviews.shop\"", "where=\"east\"", "destination_app=\"fixed\"", "none=\"unknown\""]
            {
                assert!(line.contains(label), "{label}: {line}");
            }
            assert!(line.ends_with("} 1"), "{line}");
        }
        assert!(totals.iter().any(|line| line.contains("who=\"nobody\"")), "{totals:#?}");
        assert!(totals.iter().any(|line| line.contains("who=\"a\\\"} 1\\\\n\u{e9}\"")), "{totals:#?}");
    }
}
