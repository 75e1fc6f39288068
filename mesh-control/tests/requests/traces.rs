//! Traces, as the settings of the mesh want them (`enableTracing`, `defaultConfig.tracing`): by the spans that workloads record,
//! and by the headers that requests come with. No handler does anything for it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::HOST;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::model::{LogFormat, LogText};
use mesh_core::telemetry::{Span, SpanKind, SpanSink, SpanValue};
use mesh_core::trace::TraceContext;
use mesh_tower::body::Body;
use mesh_tower::{Mesh, inherited};
use serde_json::json;
use tower_layer::Layer;

use crate::support::{introduced, mesh_settings};

const PATIENCE: Duration = Duration::from_secs(10);
const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Everything that was recorded, by everybody.
#[derive(Clone, Debug, Default)]
struct Spans(Arc<Mutex<Vec<Span>>>);

impl SpanSink for Spans {
    fn take(&self, span: Span) {
        self.0.lock().unwrap().push(span);
    }
}

impl Spans {
    fn all(&self) -> Vec<Span> {
        self.0.lock().unwrap().clone()
    }

    /// Waits until there are so many.
    async fn count(&self, count: usize) -> Vec<Span> {
        let come = async {
            while self.all().len() < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, come).await.unwrap_or_else(|_| panic!("{count} of {:#?}", self.all()));
        self.all()
    }
}

/// What the last service of the chain got.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<HeaderMap>>>, Arc<AtomicU32>);

/// `web` calls `reviews`, whose handler calls `ratings`, once in the task and once in another one.
struct World {
    _control: Embedded,
    web: Mesh,
    _servers: [Mesh; 2],
    spans: Spans,
    seen: Seen,
}

fn service(name: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80}}]}}
"
    )
}

const RETRIES: &str = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings, namespace: shop}
spec:
  hosts: [ratings]
  http:
  - route: [{destination: {host: ratings}}]
    retries: {attempts: 2, retryOn: 5xx, backoff: 1ms}
";

impl World {
    async fn start(mesh: &str, records: bool) -> World {
        let yaml = [service("reviews"), service("ratings"), RETRIES.to_owned(), mesh_settings(mesh)].concat();
        let control = Embedded::start(Config::yaml(yaml), Options::default()).await.unwrap();
        let spans = Spans::default();
        let start = |app: &str| {
            let bootstrap = introduced(&format!("{app}-1"), json!({"app": app, "version": "v1"}));
            let builder = Mesh::builder().source(control.source(bootstrap)).cold_start_wait(PATIENCE);
            let builder = if records { builder.traces(spans.clone()) } else { builder };
            builder.start().unwrap()
        };
        let (web, reviews, ratings) = (start("web"), start("reviews"), start("ratings"));
        let seen = Seen::default();
        let app = axum::Router::new().fallback(rate).with_state(seen.clone());
        serve(&ratings, app).await;
        serve(&reviews, axum::Router::new().fallback(review).with_state(reviews.clone())).await;
        World { _control: control, web, _servers: [reviews, ratings], spans, seen }
    }

    async fn get(&self, headers: &[(&str, &str)]) -> StatusCode {
        let request = headers.iter().fold(http::Request::get("http://reviews.shop/a?b"), |request, (name, value)| {
            request.header(*name, *value)
        });
        let response = self.web.client().request(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status();
        response.into_body().collect().await.unwrap();
        status
    }

    fn seen(&self) -> Vec<HeaderMap> {
        std::mem::take(&mut *self.seen.0.lock().unwrap())
    }
}

async fn serve(mesh: &Mesh, app: axum::Router) {
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let app = mesh.server_layer().layer(app);
    tokio::spawn(mesh_tower::server::serve(listener, app).readable_bodies().into_future());
    mesh.serving().await.unwrap();
}

async fn review(State(mesh): State<Mesh>) -> Response {
    let client = mesh.client();
    let first = client.get("http://ratings.shop/1").await.unwrap();
    first.into_body().collect().await.unwrap();
    let call = async move {
        let second = client.get("http://ratings.shop/2").await.unwrap();
        second.into_body().collect().await.unwrap();
    };
    tokio::spawn(inherited::scope(inherited::current(), call)).await.unwrap();
    "reviews".into_response()
}

/// The first request of all fails. Ports are used again: one who looks for a server of another test may come, and is not noted.
async fn rate(State(seen): State<Seen>, request: Request) -> Response {
    if request.headers().get(HOST).is_none_or(|host| host != "ratings.shop") {
        return StatusCode::MISDIRECTED_REQUEST.into_response();
    }
    seen.0.lock().unwrap().push(request.headers().clone());
    match seen.1.fetch_add(1, Ordering::Relaxed) {
        0 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        _ => "ratings".into_response(),
    }
}

fn text(span: &Span, name: &str) -> String {
    let value = span.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    match value {
        Some(SpanValue::Text(text)) => text.clone().into_owned(),
        Some(SpanValue::Number(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
        None => "none".to_owned(),
    }
}

/// The names of a span and of all that it is a part of, with `server` for those.
fn chain(spans: &[Span], span: &Span) -> Vec<String> {
    let mut chain = Vec::new();
    let mut next = Some(span);
    while let Some(span) = next {
        chain.push(if span.kind == SpanKind::Server { "server".to_owned() } else { span.name.clone() });
        next = span.parent.and_then(|parent| spans.iter().find(|other| other.context.span_id == parent));
    }
    chain
}

#[tokio::test]
async fn a_request_is_one_trace_over_all_services_and_a_retry_is_two_attempts() {
    let world = World::start("defaultConfig:\n  tracing:\n    sampling: 100\n    customTags: {team: {literal: {value: shop}}, who: {header: {name: x-user}}}\n", true).await;
    assert_eq!(world.get(&[("x-user", "eve"), ("user-agent", "test")]).await, 200);
    // web: 1 with 1 try; reviews: 1, and 2 with 2 and 1 tries; ratings: 3.
    let spans = world.spans.count(11).await;
    assert_eq!(spans.len(), 11);
    let trace = spans[0].context.trace_id;
    assert!(spans.iter().all(|span| span.context.trace_id == trace && span.context.is_sampled()));
    let of = "ratings.shop.svc.cluster.local:80/*";
    let (attempt, first) = (format!("Attempt.{of}"), "reviews.shop.svc.cluster.local:80/*");
    let expected =
        ["server", &attempt, of, "server", &format!("Attempt.{first}"), first].map(ToOwned::to_owned).to_vec();
    let servers: Vec<&Span> = spans.iter().filter(|span| span.kind == SpanKind::Server).collect();
    let of_ratings: Vec<_> = servers.iter().map(|span| chain(&spans, span)).filter(|chain| chain.len() == 6).collect();
    assert_eq!(of_ratings, vec![expected; 3]);
    let roots: Vec<&Span> = spans.iter().filter(|span| span.parent.is_none()).collect();
    assert_eq!((roots.len(), roots[0].name.as_str()), (1, first));

    // The call that was tried again, and its tries.
    let tries = |call: &Span| -> Vec<Span> {
        spans.iter().filter(|span| span.parent == Some(call.context.span_id)).cloned().collect()
    };
    let mut calls: Vec<_> = spans.iter().filter(|span| span.name == of).map(|call| (call, tries(call))).collect();
    calls.sort_by_key(|(_, tries)| tries.len());
    let [(_, once), (call, twice)] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!((once.len(), twice.len()), (1, 2));
    let codes =
        |tries: &[Span]| -> Vec<String> { tries.iter().map(|it| text(it, "http.response.status_code")).collect() };
    assert_eq!((codes(once), codes(twice)), (vec!["200".to_owned()], vec!["503".to_owned(), "200".to_owned()]));
    assert!(twice[0].error.is_some() && twice[1].error.is_none() && call.error.is_none());
    assert_eq!(text(&twice[1], "http.request.resend_count"), "1");
    assert!(call.started <= twice[0].started && twice[0].ended <= twice[1].started && twice[1].ended <= call.ended);
    // Each hop was told the try that it got.
    for (headers, attempt) in world.seen().iter().zip(twice) {
        // The server's own span, which the application may go on from.
        let context = TraceContext::parse(headers["traceparent"].as_bytes()).unwrap();
        let server = spans.iter().find(|span| span.context == context).unwrap();
        assert_eq!(server.parent, Some(attempt.context.span_id));
    }

    // In OpenTelemetry's words, in Istio's, and as the settings want it.
    let root = roots[0];
    let id = text(root, "guid:x-request-id");
    assert_eq!(id.len(), 36);
    for (name, expected) in [
        ("http.request.method", "GET"),
        ("url.path", "/a"),
        ("server.address", "reviews.shop"),
        ("http.response.status_code", "200"),
        ("http.status_code", "200"),
        ("response_flags", "-"),
        ("upstream_cluster", "outbound|80||reviews.shop.svc.cluster.local"),
        ("user_agent", "test"),
        ("component", "proxy"),
        ("istio.canonical_service", "web"),
        ("istio.canonical_revision", "v1"),
        ("istio.namespace", "shop"),
        ("team", "shop"),
        ("who", "eve"),
    ] {
        assert_eq!(text(root, name), expected, "{name}");
    }
    assert!(servers.iter().all(|span| text(span, "guid:x-request-id") == id), "one id for all of it");
    assert!(text(&twice[0], "peer.address").starts_with("127.0.0.1:"));
}

#[tokio::test]
async fn lines_of_access_logs_have_the_trace_and_its_request() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let control = Embedded::start(Config::yaml(service("reviews")), Options::default()).await.unwrap();
    let start = |app: &str| {
        let bootstrap = introduced(&format!("{app}-1"), json!({"app": app}));
        let lines = Arc::clone(&lines);
        let format = LogFormat::Text(LogText::parse("%TRACE_ID% %REQ(X-REQUEST-ID)%").unwrap());
        let builder = Mesh::builder().source(control.source(bootstrap)).cold_start_wait(PATIENCE);
        let builder = builder.access_log_to(format, move |line: &str| lines.lock().unwrap().push(line.to_owned()));
        builder.traces(Spans::default()).start().unwrap()
    };
    let (web, reviews) = (start("web"), start("reviews"));
    serve(&reviews, axum::Router::new().fallback(|| async { "hello" })).await;
    let response = web.client().get("http://reviews.shop/").await.unwrap();
    response.into_body().collect().await.unwrap();
    let both = async {
        while lines.lock().unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, both).await.unwrap();
    let lines = lines.lock().unwrap();
    assert_eq!(lines[0], lines[1]);
    assert_eq!(lines[0].trim_end().split(' ').map(str::len).collect::<Vec<_>>(), [32, 36], "{lines:?}");
}

#[tokio::test]
async fn a_parents_decision_counts_and_the_settings_can_turn_all_of_it_off() {
    let world = World::start("defaultConfig: {tracing: {sampling: 0}}\n", true).await;
    world.get(&[]).await;
    assert!(world.spans.all().is_empty());
    // Who calls next does not begin a trace, either.
    for headers in world.seen() {
        assert!(!TraceContext::parse(headers["traceparent"].as_bytes()).unwrap().is_sampled());
        assert!(headers.contains_key("x-request-id"));
    }
    world.get(&[("traceparent", SAMPLED), ("x-request-id", "not a UUID")]).await;
    let spans = world.spans.count(9).await;
    let parent = TraceContext::parse(SAMPLED.as_bytes()).unwrap();
    assert!(spans.iter().all(|span| span.context.trace_id == parent.trace_id));
    assert_eq!(spans.iter().filter(|span| span.parent == Some(parent.span_id)).count(), 1);
    assert!(world.seen().iter().all(|headers| headers["x-request-id"] == "not a UUID"));

    let off = World::start("enableTracing: false\n", true).await;
    off.get(&[("traceparent", SAMPLED), ("tracestate", "a=b")]).await;
    assert!(off.spans.all().is_empty());
    assert!(off.seen().iter().all(|headers| headers["traceparent"] == SAMPLED && headers["tracestate"] == "a=b"));
}

#[tokio::test]
async fn without_anybody_who_takes_spans_what_requests_carry_is_handed_on_as_it_came() {
    let world = World::start("trustDomain: cluster.local\n", false).await;
    let carried = [
        ("x-request-id", "7"),
        ("x-b3-traceid", "80f198ee56343ba864fe8b2a57d3eff7"),
        ("x-b3-spanid", "e457b5a2e4d86bd1"),
        ("x-b3-parentspanid", "05e3ac9a4f6e3b90"),
        ("x-b3-sampled", "1"),
    ];
    for carried in
        [&carried[..], &[("traceparent", SAMPLED), ("tracestate", "a=b"), ("baggage", "user=7")], &[("b3", "0")]]
    {
        world.get(carried).await;
        let seen = world.seen();
        assert!(seen.len() >= 2);
        for (headers, (name, value)) in
            seen.iter().flat_map(|headers| carried.iter().map(move |field| (headers, field)))
        {
            assert_eq!(headers.get(*name).map(|value| value.to_str().unwrap()), Some(*value), "{name} of {headers:?}");
        }
    }
    world.get(&[]).await;
    assert!(
        world
            .seen()
            .iter()
            .all(|headers| !headers.contains_key("traceparent") && !headers.contains_key("x-request-id"))
    );
}
