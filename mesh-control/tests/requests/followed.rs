//! `mesh-control trace`: a live request is followed over real sockets through the processes that it passes, and what decided is the
//! first thing that is said. Each fault here was planted by somebody.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::Request as Received;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_control::live_trace::{Traced, Wanted};
use mesh_core::error::Invalid;
use mesh_core::filter::{Decision, Filter, FilterFactory, Reply};
use mesh_core::request_info::RequestInfo;
use mesh_tower::body::Body;
use mesh_tower::{Mesh, inherited};
use serde_json::json;
use tower_layer::Layer;

use crate::support::introduced;

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const SERVICES: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: shop}
spec: {selector: {app: ratings}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v9, labels: {version: v9}}
";

/// A mesh of `web`, which calls `reviews`, which calls `ratings` where it is asked for `/stars`.
pub(crate) struct World {
    control: Embedded,
    pub(crate) web: Mesh,
    _others: Vec<Mesh>,
    /// How many requests have come to an application that answers them never.
    pub(crate) hanging: Arc<AtomicUsize>,
}

fn workload(control: &Embedded, app: &str) -> Mesh {
    let bootstrap = introduced(&format!("{app}-v1-7"), json!({"app": app, "version": "v1"}))
        .metadata("SERVICE_ACCOUNT", app)
        .metadata("WORKLOAD_NAME", format!("{app}-v1"));
    let mesh = Mesh::builder().filter("acme.guard", guard()).source(control.source(bootstrap));
    mesh.cold_start_wait(PATIENCE).start().unwrap()
}

/// Answers requests that ask for it with `x-guard`, by its configuration `{side: ..}`.
#[derive(Debug)]
struct Guard(String);

impl Filter for Guard {
    fn on_request(&self, _: &mut RequestInfo, head: &mut http::request::Parts) -> Decision {
        match head.headers.get("x-guard").is_some_and(|asked| asked == self.0.as_str()) {
            true => Decision::Reply(Reply::new(StatusCode::IM_A_TEAPOT, "not you")),
            false => Decision::Continue,
        }
    }
}

fn guard() -> FilterFactory {
    Arc::new(|config, _| {
        let config: serde_json::Value = serde_json::from_str(config).map_err(|why| Invalid::new(why.to_string()))?;
        Ok(Arc::new(Guard(config["side"].as_str().unwrap_or_default().to_owned())))
    })
}

async fn serve(mesh: &Mesh, hanging: &Arc<AtomicUsize>) -> SocketAddr {
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let (client, hanging) = (mesh.client(), Arc::clone(hanging));
    let app = axum::Router::new().fallback(move |request: Received| {
        let (client, hanging) = (client.clone(), Arc::clone(&hanging));
        async move {
            let (status, body) = match request.uri().path() {
                "/broken" => (StatusCode::INTERNAL_SERVER_ERROR, String::new()),
                "/missing" => (StatusCode::NOT_FOUND, String::new()),
                "/busy" => (StatusCode::TOO_MANY_REQUESTS, String::new()),
                "/panic" => panic!("as it is asked to"),
                "/cut" => {
                    let end = async {
                        // Until what was before is on its way.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        Err(std::io::Error::other("and no end"))
                    };
                    let beginning = futures_util::stream::iter([Ok("the beginning")]);
                    let pieces = beginning.chain(futures_util::stream::once(end));
                    return Response::new(axum::body::Body::from_stream(pieces));
                }
                "/hang" => {
                    hanging.fetch_add(1, Ordering::Relaxed);
                    std::future::pending().await
                }
                "/slow" => {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    (StatusCode::OK, String::new())
                }
                "/page" => {
                    let onward = Request::get("http://ratings/").extension(inherited::current());
                    // A page without stars is a page, too.
                    _ = client.request(onward.body(Body::empty()).unwrap()).await;
                    (StatusCode::OK, String::new())
                }
                path if path.starts_with("/stars") => {
                    let onward = format!("http://ratings{}", path.strip_prefix("/stars").unwrap_or_default());
                    let onward = Request::get(onward).extension(inherited::current());
                    match client.request(onward.body(Body::empty()).unwrap()).await {
                        Ok(stars) => (stars.status(), String::new()),
                        Err(error) => (error.kind().http_status(), error.to_string()),
                    }
                }
                path => (StatusCode::OK, format!("{path} {}", request.headers().contains_key("x-mesh-trace"))),
            };
            (status, body).into_response()
        }
    });
    let app = mesh.server_layer().layer(app);
    tokio::spawn(mesh_tower::server::serve(listener, app).readable_bodies().into_future());
    mesh.serving().await.unwrap();
    address
}

impl World {
    async fn start(yaml: &str) -> World {
        World::start_from(Config::yaml(yaml)).await
    }

    /// A mesh of these objects and [`SERVICES`], which a directory has to have itself.
    pub(crate) async fn start_from(config: Config) -> World {
        let config = match config {
            Config::Yaml(yaml) => Config::yaml(format!("{SERVICES}{yaml}")),
            other => other,
        };
        let control = Embedded::start(config, Options::default().dev()).await.unwrap();
        let (web, reviews, ratings) =
            (workload(&control, "web"), workload(&control, "reviews"), workload(&control, "ratings"));
        let hanging = Arc::default();
        serve(&reviews, &hanging).await;
        serve(&ratings, &hanging).await;
        let world = World { control, web, _others: vec![reviews, ratings], hanging };
        let known = async {
            // What is asked for first may be answered with what was so just before.
            for mesh in [&world.web, &world._others[0]] {
                _ = mesh.client().get("http://ratings/").await;
                while !mesh.endpoints().iter().any(|one| one.cluster.as_str().contains("ratings")) {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, known).await.expect("they are endpoints");
        // Who calls nobody has no stream. From here on all three are asked to follow.
        world.get("http://reviews/", &[]).await;
        let trace = world.control.trace(Wanted::to("x")).unwrap();
        let are_armed = async |expected: bool| {
            for mesh in world._others.iter().chain([&world.web]) {
                while mesh.store().live_traces().is_armed() != expected {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, are_armed(true)).await.expect("they follow");
        drop(trace);
        tokio::time::timeout(PATIENCE, are_armed(false)).await.expect("nobody asks any more");
        world
    }

    /// The status of a request that `web` makes, and its body; 0 where the mesh failed it.
    pub(crate) async fn get(&self, uri: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match self.web.client().request(request.body(Body::empty()).unwrap()).await {
            Ok(answer) => {
                let status = answer.status().as_u16();
                let body = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                (status, String::from_utf8_lossy(&body).into_owned())
            }
            Err(error) => (0, error.to_string()),
        }
    }

    /// Makes requests until one was followed.
    pub(crate) async fn follow(&self, wanted: Wanted, uri: &str, headers: &[(&str, &str)]) -> Traced {
        let mut trace = self.control.trace(wanted).unwrap();
        let calls = async {
            loop {
                self.get(uri, headers).await;
                // The order travels.
                tokio::task::yield_now().await;
            }
        };
        let traced = async {
            tokio::select! {
                traced = trace.next() => traced,
                () = calls => unreachable!("it calls for ever"),
            }
        };
        let traced = tokio::time::timeout(PATIENCE, traced).await.expect("one is followed");
        traced.expect("one is followed")
    }
}

fn web_to_reviews() -> Wanted {
    Wanted::to("reviews").from("shop/web")
}

/// A VirtualService for reviews, or ratings, with these rules.
fn routes(host: &str, http: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {host}, namespace: shop}}\n\
         spec:\n  hosts: [{host}]\n  http:\n{http}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_request_comes_back_from_every_hop_and_both_sides() {
    let world = World::start("").await;
    assert_eq!(world.get("http://reviews/stars", &[]).await.0, 200);
    let wanted = web_to_reviews().and("header end-user=jason").and("path /stars");
    let headers = [("end-user", "jason"), ("authorization", "Bearer secret"), ("x-request-id", "r-7")];
    let traced = world.follow(wanted, "http://reviews/stars", &headers).await;
    let hops: Vec<String> = traced
        .hops
        .iter()
        .map(|hop| format!("{} {} {}", hop["depth"], hop["side"], hop["workload"]).replace('"', ""))
        .collect();
    let expected =
        ["0 client shop/web-v1", "1 server shop/reviews-v1", "2 client shop/reviews-v1", "3 server shop/ratings-v1"];
    assert_eq!(hops, expected, "{traced}");
    assert!(traced.complete);
    let text = traced.to_string();
    assert!(text.contains("x-request-id: r-7") && !text.contains("secret"), "{text}");
    assert!(!serde_json::to_string(&traced).unwrap().contains("secret"));
    assert_eq!(traced.hops[1]["events"][0]["peer"], "spiffe://cluster.local/ns/shop/sa/web");
    assert!(text.contains("picked") && text.contains("let in"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_of_urls_and_values_of_headers_that_nobody_asked_for_are_not_told() {
    let rules = "  - match: [{uri: {exact: /none}}]\n    route: [{destination: {host: reviews}}]\n  \
         - match: [{queryParams: {token: {exact: other}}}]\n    route: [{destination: {host: reviews}}]\n  \
         - match: [{headers: {x-api-key: {exact: other}}}]\n    route: [{destination: {host: reviews}}]\n  \
         - match: [{headers: {end-user: {exact: other}}}]\n    route: [{destination: {host: reviews}}]\n  \
         - rewrite: {uri: /x}\n    route: [{destination: {host: reviews}}]\n";
    let world = World::start(&routes("reviews", rules)).await;
    let headers = [("x-api-key", "secret"), ("end-user", "jason")];
    let wanted = web_to_reviews().and("header end-user=jason");
    let traced = world.follow(wanted, "http://reviews/y?token=secret", &headers).await;
    let all = serde_json::to_string(&traced).unwrap();
    assert!(!all.contains("secret") && !traced.to_string().contains("secret"), "{traced}\n{all}");
    let routed = traced.hops[0]["events"].as_array().unwrap().iter().find(|event| event["what"] == "routed").unwrap();
    let explained = &routed["explanation"];
    assert_eq!(
        (&explained["request"], &explained["route"]["becomes"]),
        (&"GET reviews/y".into(), &"reviews/xy".into())
    );
    let found: Vec<&str> = explained["passed_over"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|over| over["unmet"]["found"].as_str())
        .collect();
    let another = "request has another";
    assert_eq!(found, [r#"request has "/y""#, another, another, r#"request has "jason""#]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_on_the_way_of_a_request_that_did_not_is_told_too() {
    let closed = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: none, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: ratings}}}\n";
    let world = World::start(closed).await;
    let traced = world.follow(web_to_reviews(), "http://reviews/page", &[]).await;
    assert!(traced.causes.iter().any(|cause| cause.starts_with("route 0")), "{traced}");
    let on_the_way =
        traced.causes.iter().find(|cause| cause.starts_with("a call of shop/reviews-v1 failed on the way"));
    assert!(on_the_way.is_some_and(|cause| cause.contains("no policy lets in")), "{traced}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_nobody_asks_for_are_left_alone_and_applications_see_no_mark() {
    let world = World::start("").await;
    let mut trace = world.control.trace(web_to_reviews().and("header end-user=jason").seconds(60)).unwrap();
    let (status, body) = world.get("http://reviews/x", &[]).await;
    assert_eq!((status, &*body), (200, "/x false"));
    let come = async {
        loop {
            assert_eq!(world.get("http://reviews/x", &[("end-user", "jason")]).await.1, "/x false");
            tokio::task::yield_now().await;
        }
    };
    let traced = tokio::select! { traced = trace.next() => traced.unwrap(), () = come => unreachable!() };
    assert_eq!(traced.hops[0]["headers"]["end-user"], "jason");
    assert!(trace.next().await.is_none(), "one was asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_is_on_the_admin_port_with_what_it_waits_for() {
    let world = World::start("").await;
    let mut admins = Vec::new();
    for mesh in [&world.web, &world._others[0]] {
        assert!(!mesh.store().live_traces().is_looking(), "nobody asked");
        admins.push(mesh.serve_admin("127.0.0.1:0".parse().unwrap()).unwrap());
    }
    let request = world.web.client().request(Request::get("http://reviews/hang").body(Body::empty()).unwrap());
    let hanging = tokio::spawn(request);
    for (admin, side, waits_for) in [(admins[0], "client", "answer"), (admins[1], "server", "application")] {
        let seen = async {
            loop {
                let page = page_of(admin, "/requests").await;
                let page: serde_json::Value = serde_json::from_str(&page).unwrap();
                let all = page["requests"].as_array().unwrap();
                if let Some(found) = all.iter().find(|one| one["path"] == "/hang" && one["waits_for"] == waits_for) {
                    break found.clone();
                }
                tokio::task::yield_now().await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("{side}"));
        assert_eq!(
            (&found["side"], &found["method"], &found["authority"]),
            (&side.into(), &"GET".into(), &"reviews".into())
        );
        assert!(found["age_ms"].is_u64());
    }
    hanging.abort();
    let gone = async {
        while !world.web.store().live_traces().under_way(std::time::Instant::now()).0.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it is over");
}

/// The body of a page.
async fn page_of(admin: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(admin).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_waited_for_any_more_is_not_followed_any_more() {
    let world = World::start("").await;
    let trace = world.control.trace(web_to_reviews()).unwrap();
    let is_armed = |expected| async move {
        while world.web.store().live_traces().is_armed() != expected {
            tokio::task::yield_now().await;
        }
        world
    };
    let world = tokio::time::timeout(PATIENCE, is_armed(true)).await.expect("it is asked");
    drop(trace);
    let disarmed = async {
        while world.web.store().live_traces().is_armed() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, disarmed).await.expect("nobody asks any more");
}

/// Two services that nobody serves, and who stands in for them.
const STAND_INS: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: gone, namespace: shop}
spec: {selector: {app: gone}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: gone
  namespace: shop
  annotations: {mesh-control/fallback: host=ratings}
spec: {host: gone}
---
apiVersion: v1
kind: Service
metadata: {name: shut, namespace: shop}
spec: {selector: {app: shut}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: shut
  namespace: shop
  annotations: {mesh-control/fallback: 'status=503, body=closed'}
spec: {host: shut}
";

#[tokio::test(flavor = "multi_thread")]
async fn who_answered_in_anothers_place_and_what_decided_a_split_are_named() {
    let plugin = |name: &str, app: &str, mode: &str| {
        format!(
            "---\napiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{selector: {{matchLabels: {{app: {app}}}}}, pluginName: acme.guard, pluginConfig: {{side: {name}}}, match: [{{mode: {mode}}}]}}\n"
        )
    };
    let split = routes(
        "reviews",
        "  - mirrors: [{destination: {host: ratings}}]\n    route:\n    - {destination: {host: reviews, subset: v1}, weight: 70}\n    - {destination: {host: reviews}, weight: 30}\n",
    )
    .replace("namespace: shop}", "namespace: shop, annotations: {mesh-control/sticky-split: header=end-user}}");
    let filters = [plugin("client", "web", "CLIENT"), plugin("server", "reviews", "SERVER")].concat();
    let world = World::start(&format!("{split}{STAND_INS}{filters}")).await;
    // (URL, header, what is said)
    type Case = (&'static str, (&'static str, &'static str), &'static [&'static str]);
    let cases: &[Case] = &[
        ("http://reviews/", ("end-user", "jason"), &["; its header end-user (", " leads to outbound|80|"]),
        ("http://reviews/", ("x-other", "jason"), &[" was drawn"]),
        ("http://reviews/", ("end-user", "jason"), &["a copy of it was sent to outbound|80||ratings.shop"]),
        ("http://reviews/", ("x-guard", "client"), &["the filter acme.guard answered 418"]),
        (
            "http://reviews/",
            ("x-guard", "server"),
            &["reviews-v1 answered 418 before its application: the filter acme.guard"],
        ),
        ("http://gone/", ("x-other", "x"), &["the fallback outbound|80||ratings.shop.svc.cluster.local took it ("]),
        ("http://shut/", ("x-other", "x"), &["the fallback (", ") answered 503: "]),
    ];
    for (url, header, expected) in cases {
        let traced = world.follow(Wanted::to("").from("shop/web"), url, &[*header]).await;
        let is_said = |cause: &String| expected.iter().all(|part| cause.contains(part));
        assert!(traced.causes.iter().any(is_said), "{url} {header:?} {expected:?}:\n{traced}");
    }
}
