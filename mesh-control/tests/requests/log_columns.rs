//! Istio's default line of an access log, column by column, for what can become of a request: on the client and, where it got
//! there, on the server.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::model::LogFormat;
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use serde_json::json;
use tower_layer::Layer;

use crate::access_logs::columns;
use crate::support::{introduced, mesh_settings, nobody};

const PATIENCE: Duration = Duration::from_secs(5);

/// A rule for each thing that can become of a request, by its path.
const OBJECTS: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {selector: {app: empty}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - {name: to-empty, match: [{uri: {prefix: /empty}}], route: [{destination: {host: empty}}], retries: {attempts: 0}}
  - {name: abort, match: [{uri: {prefix: /abort}}], fault: {abort: {percentage: {value: 100}, httpStatus: 418}}, route: [{destination: {host: reviews}}]}
  - {name: delay, match: [{uri: {prefix: /delay}}], fault: {delay: {percentage: {value: 100}, fixedDelay: 1ms}}, route: [{destination: {host: reviews}}]}
  - {name: late, match: [{uri: {prefix: /hang/late}}], timeout: 0.05s, route: [{destination: {host: reviews}}]}
  - {name: direct, match: [{uri: {prefix: /direct}}], directResponse: {status: 203}}
  - {name: moved, match: [{uri: {prefix: /moved}}], redirect: {uri: /}}
  - {name: rewritten, match: [{uri: {prefix: /old}}], rewrite: {uri: /new}, route: [{destination: {host: reviews}}]}
  - {name: usual, match: [{uri: {prefix: /s}}, {uri: {prefix: /hang}}, {uri: {prefix: /denied}}, {uri: {prefix: /upgrade}}], route: [{destination: {host: reviews}}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {selector: {matchLabels: {app: reviews}}, action: DENY, rules: [{to: [{operation: {paths: [/denied]}}]}]}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec: {selector: {matchLabels: {app: reviews}}, jwtRules: [{issuer: a, jwks: '{\"keys\": [{\"kty\": \"OKP\", \"crv\": \"Ed25519\", \"x\": \"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}]}'}]}
";

type Lines = Arc<Mutex<Vec<String>>>;

struct World {
    _control: Embedded,
    client: Mesh,
    _server: Mesh,
    lines: [Lines; 2],
}

async fn answer(request: axum::extract::Request) -> http::Response<axum::body::Body> {
    let path = request.uri().path().to_owned();
    if path.starts_with("/hang") {
        std::future::pending::<()>().await;
    }
    if path.starts_with("/upgrade") {
        let upgraded = http::Response::builder().status(101).header("connection", "upgrade").header("upgrade", "echo");
        return upgraded.body(axum::body::Body::empty()).unwrap();
    }
    let pieces = ["ab", "cde"].map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::from_static(piece.as_bytes()))));
    http::Response::new(axum::body::Body::new(StreamBody::new(futures_util::stream::iter(pieces))))
}

impl World {
    async fn start(more: &str) -> World {
        let control =
            Embedded::start(Config::yaml(format!("{OBJECTS}{more}")), Options::default().dev()).await.unwrap();
        let start = |app: &str| {
            let lines = Lines::default();
            let told = Arc::clone(&lines);
            let note = move |line: &str| told.lock().unwrap().push(line.trim_end().to_owned());
            let bootstrap = introduced(&format!("{app}-1"), json!({"app": app})).metadata("SERVICE_ACCOUNT", app);
            let builder = Mesh::builder().source(control.source(bootstrap)).cold_start_wait(PATIENCE);
            (builder.access_log_to(LogFormat::default(), note).start().unwrap(), lines)
        };
        let ((client, of_client), (server, of_server)) = (start("web"), start("reviews"));
        let listener = server.bind("127.0.0.1:0").await.unwrap();
        let app = server.server_layer().layer(axum::Router::new().fallback(answer));
        tokio::spawn(mesh_tower::server::serve(listener, app).into_future());
        server.serving().await.unwrap();
        World { _control: control, client, _server: server, lines: [of_client, of_server] }
    }

    async fn send(&self, request: http::request::Builder) {
        if let Ok(response) = self.client.client().request(request.body(Body::empty()).unwrap()).await {
            _ = response.into_body().collect().await;
        }
    }

    /// The columns of the next line of a side.
    async fn next(&self, side: usize) -> Vec<String> {
        let come = async {
            loop {
                let next = self.lines[side].lock().unwrap().pop();
                match next {
                    Some(line) => return line,
                    None => tokio::task::yield_now().await,
                }
            }
        };
        let line = tokio::time::timeout(PATIENCE, come).await.unwrap_or_else(|_| panic!("a line of side {side}"));
        let columns = columns(&line);
        assert_eq!(columns.len(), 22, "{line}");
        assert!(columns[0].ends_with('Z') && columns[9].parse::<u64>().is_ok(), "{line}");
        // What there is none of in a process without a proxy.
        assert_eq!((&*columns[5], &*columns[17]), ("-", "-"), "{line}");
        // Why there was no connection, where there was none.
        assert_eq!(columns[6] != "-", columns[4].contains("connection_failure"), "{line}");
        columns
    }
}

/// Request line, status, flags, details.
fn told(columns: &[String]) -> [&str; 4] {
    [&*columns[1], &*columns[2], &*columns[3], &*columns[4]]
}

const REVIEWS: &str = "outbound|80||reviews.shop.svc.cluster.local";
const EMPTY: &str = "outbound|80||empty.shop.svc.cluster.local";

#[tokio::test]
async fn each_outcome_has_its_status_flags_details_cluster_and_route_on_both_sides() {
    let world = World::start("").await;
    for (path, status, flags, details, cluster, route, server) in [
        ("/stream", "200", "-", "via_upstream", REVIEWS, "usual", Some(["200", "-", "via_upstream"])),
        ("/old/a?b", "200", "-", "via_upstream", REVIEWS, "rewritten", Some(["200", "-", "via_upstream"])),
        ("/delay", "200", "DI", "via_upstream", REVIEWS, "delay", Some(["200", "-", "via_upstream"])),
        ("/abort", "418", "FI", "fault_filter_abort", REVIEWS, "abort", None),
        ("/empty", "503", "UH", "no_healthy_upstream", EMPTY, "to-empty", None),
        ("/none", "404", "NR", "route_not_found", "-", "-", None),
        ("/direct", "203", "-", "direct_response", "-", "direct", None),
        ("/moved", "301", "-", "direct_response", "-", "moved", None),
        (
            "/denied",
            "403",
            "-",
            "via_upstream",
            REVIEWS,
            "usual",
            Some(["403", "-", "rbac_access_denied_matched_policy[AuthorizationPolicy/shop/nobody#0]"]),
        ),
    ] {
        world.send(http::Request::get(format!("http://reviews.shop{path}")).header("user-agent", "test")).await;
        let columns = world.next(0).await;
        let line = format!("GET {path} HTTP/1.1");
        assert_eq!(told(&columns), [&*line, status, flags, details], "{path}: {columns:?}");
        assert_eq!((&*columns[16], &*columns[21]), (cluster, route), "{path}: {columns:?}");
        assert_eq!((&*columns[12], &*columns[14]), ("test", "reviews.shop"), "{path}: {columns:?}");
        // Who answered, where somebody did.
        assert_eq!(columns[15].starts_with("127.0.0.1:"), server.is_some(), "{path}: {columns:?}");
        let Some(expected) = server else { continue };
        let columns = world.next(1).await;
        assert_eq!(told(&columns)[1..], expected, "{path} on the server: {columns:?}");
        assert!(columns[18].starts_with("127.0.0.1:") && columns[19].starts_with("127.0.0.1:"), "{columns:?}");
        assert_eq!(columns[16], "-", "{columns:?}");
    }
    world.send(http::Request::get("http://reviews.shop/stream").header("authorization", "Bearer x.y.z")).await;
    assert_eq!(told(&world.next(0).await)[1..], ["401", "-", "via_upstream"]);
    let refused = world.next(1).await;
    assert_eq!((&*refused[2], &*refused[3]), ("401", "-"), "{refused:?}");
    assert!(refused[4].starts_with("jwt_authn_access_denied"), "{refused:?}");
}

#[tokio::test]
async fn streams_upgrades_and_requests_that_are_given_up_have_their_line() {
    let world = World::start("").await;
    let request = http::Request::post("http://reviews.shop/stream").body(Body::from("question")).unwrap();
    let answer = world.client.client().request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(answer.len(), 5);
    let columns = world.next(0).await;
    assert_eq!((&*columns[1], &*columns[7], &*columns[8]), ("POST /stream HTTP/1.1", "8", "5"), "{columns:?}");
    let columns = world.next(1).await;
    assert_eq!((&*columns[7], &*columns[8]), ("8", "5"), "{columns:?}");

    let upgrade = http::Request::get("http://reviews.shop/upgrade");
    world.send(upgrade.header("connection", "upgrade").header("upgrade", "echo")).await;
    assert_eq!(told(&world.next(0).await)[1..], ["101", "-", "via_upstream"]);
    assert_eq!(told(&world.next(1).await)[1..3], ["101", "-"]);

    world.send(http::Request::get("http://reviews.shop/hang/late")).await;
    let columns = world.next(0).await;
    assert_eq!(told(&columns)[1..], ["504", "UT", "response_timeout"], "{columns:?}");
    assert_eq!((&*columns[16], &*columns[21]), (REVIEWS, "late"), "{columns:?}");
    assert!(columns[15].starts_with("127.0.0.1:"), "{columns:?}");

    // The caller does not wait for the answer.
    let given_up = world.send(http::Request::get("http://reviews.shop/hang"));
    assert!(tokio::time::timeout(Duration::from_millis(50), given_up).await.is_err());
    assert_eq!(told(&world.next(0).await)[1..], ["0", "DC", "downstream_remote_disconnect"]);
}

#[tokio::test]
async fn a_full_cluster_and_an_endpoint_that_is_gone_have_their_flags() {
    let gone = nobody().await;
    let more = format!(
        "
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: gone, namespace: shop}}
spec: {{hosts: [gone.example.com], resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP}}], endpoints: [{{address: {}, ports: {{http: {}}}}}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: gone, namespace: shop}}
spec: {{hosts: [gone.example.com], http: [{{match: [{{uri: {{prefix: /once}}}}], retries: {{attempts: 0}}, route: [{{destination: {{host: gone.example.com}}}}]}}, {{route: [{{destination: {{host: gone.example.com}}}}]}}]}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: reviews, namespace: shop}}
spec: {{host: reviews, trafficPolicy: {{connectionPool: {{http: {{http2MaxRequests: 1}}}}}}}}
",
        gone.ip(),
        gone.port()
    );
    let world = World::start(&more).await;
    let failure = "upstream_reset_before_response_started{connection_failure}";
    for (path, flags) in [("/once", "UF"), ("/again", "URX,UF")] {
        world.send(http::Request::get(format!("http://gone.example.com{path}"))).await;
        let columns = world.next(0).await;
        assert_eq!(told(&columns)[1..], ["503", flags, failure], "{columns:?}");
    }
    // Of two that hang, one is too many; the other is under way until the end.
    let [first, second] = [(); 2].map(|()| world.send(http::Request::get("http://reviews.shop/hang")));
    let (mut first, mut second) = (Box::pin(first), Box::pin(second));
    let one = async {
        tokio::select! { () = &mut first => {}, () = &mut second => {} }
    };
    tokio::time::timeout(PATIENCE, one).await.expect("one of two is too many");
    let columns = world.next(0).await;
    let details = "upstream_reset_before_response_started{overflow}";
    assert_eq!(told(&columns)[1..], ["503", "UO", details], "{columns:?}");
}

#[tokio::test]
async fn what_servers_and_endpoints_refuse_or_break_off_has_its_flags_and_details() {
    let closing = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = closing.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::AsyncReadExt;
        // It takes the request, and closes.
        while let Ok((mut stream, _)) = closing.accept().await {
            _ = stream.read(&mut [0; 1024]).await;
        }
    });
    let gate = nobody().await;
    let entry = |name: &str, at: std::net::SocketAddr, protocol: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{hosts: [{name}.example.com], resolution: STATIC, ports: [{{number: 80, name: only, protocol: {protocol}}}], \
             endpoints: [{{address: {}, ports: {{only: {}}}}}]}}\n",
            at.ip(),
            at.port()
        )
    };
    let more = [
        entry("closing", at, "HTTP"),
        entry("gate", gate, "HTTP"),
        entry("counts", nobody().await, "GRPC"),
        "---\napiVersion: policy.mesh-control/v1alpha1\nkind: RateLimit\nmetadata: {name: shared, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: reviews}}, service: {host: counts.example.com, port: 80, domain: shop, failureMode: DENY}, rules: [{name: all, match: {path: /several}}]}\n"
            .to_owned(),
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: others, namespace: shop}\n\
         spec:\n  hosts: [closing.example.com]\n  http:\n  \
         - {name: undefined, match: [{uri: {prefix: /undefined}}], route: [{destination: {host: reviews, subset: v9}}]}\n  \
         - {name: closes, retries: {attempts: 0}, route: [{destination: {host: closing.example.com}}]}\n"
            .to_owned(),
        "---\napiVersion: policy.mesh-control/v1alpha1\nkind: RateLimit\nmetadata: {name: one, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: reviews}}, rules: [{name: all, match: {path: /stream}, limit: {requests: 1, per: 1h}}]}\n"
            .to_owned(),
        "---\napiVersion: policy.mesh-control/v1alpha1\nkind: RequestRules\nmetadata: {name: closed, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: reviews}}, rules: [{name: nobody, when: \"request.url_path == '/slow'\", deny: {}}]}\n"
            .to_owned(),
        mesh_settings("extensionProviders:\n- name: gate\n  envoyExtAuthzHttp: {service: gate.example.com, port: 80}\n"),
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: gate, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: reviews}}, action: CUSTOM, provider: {name: gate}, rules: [{to: [{operation: {paths: [/sgate]}}]}]}\n"
            .to_owned(),
    ];
    let world = World::start(&more.concat()).await;
    world.send(http::Request::get("http://reviews.shop/stream")).await;
    assert_eq!((&*world.next(0).await[2], &*world.next(1).await[2]), ("200", "200"), "there is one");
    for (uri, client, server) in [
        ("http://reviews.shop/stream", ["429", "-", "via_upstream"], Some(["429", "RL", "request_rate_limited"])),
        ("http://reviews.shop/several", ["500", "-", "via_upstream"], Some(["500", "RLSE", "rate_limiter_error"])),
        ("http://reviews.shop/s%00", ["400", "-", "via_upstream"], Some(["400", "DPE", "http.invalid_request"])),
        ("http://reviews.shop/slow", ["403", "-", "via_upstream"], Some(["403", "-", "request_rule[nobody]"])),
        ("http://reviews.shop/sgate", ["403", "-", "via_upstream"], Some(["403", "UAEX", "ext_authz_error"])),
        (
            "http://closing.example.com/",
            ["503", "UC", "upstream_reset_before_response_started{connection_termination}"],
            None,
        ),
        ("http://closing.example.com/undefined", ["503", "NC", "cluster_not_found"], None),
    ] {
        world.send(http::Request::get(uri)).await;
        let columns = world.next(0).await;
        assert_eq!(told(&columns)[1..], client, "{uri}: {columns:?}");
        let Some(expected) = server else { continue };
        let columns = world.next(1).await;
        assert_eq!(told(&columns)[1..], expected, "{uri} on the server: {columns:?}");
    }
}
