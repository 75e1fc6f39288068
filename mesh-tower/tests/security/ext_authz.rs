//! CUSTOM policies from YAML to the answer: embedded control plane, the library's server, an authorizer of the test's own, and
//! bytes over sockets.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue as PbHeader, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3 as pb;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::rpc::Status;
use http_body_util::{BodyExt, Full};
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_tower::Mesh;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::shop::workload;

const REVIEWS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 9080}]}
";

const GUARDED: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: shop}
spec:
  selector: {matchLabels: {app: reviews}}
  action: CUSTOM
  provider: {name: authz}
  rules: [{to: [{operation: {paths: [/private*]}}]}]
";

/// The settings of a mesh with a provider `authz` that says this, and its service at a port of this machine.
fn mesh_with(provider: &str, port_name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    \
         extensionProviders:\n    - name: authz\n      {provider}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: authz, namespace: shop}}\n\
         spec: {{hosts: [authz.example.com], ports: [{{number: 8000, name: {port_name}, targetPort: {port}}}], \
         resolution: STATIC, endpoints: [{{address: 127.0.0.1}}]}}\n---{REVIEWS}---{GUARDED}"
    )
}

fn http_provider(more: &str) -> String {
    format!("envoyExtAuthzHttp: {{service: authz.example.com, port: 8000, timeout: 5s{more}}}")
}

/// A server of `reviews` that tells which headers it was sent.
async fn serve(control: &Embedded) -> (Mesh, SocketAddr) {
    let mesh = workload(control, "reviews");
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let tell = |request: axum::extract::Request| async move {
        let headers = request.headers().iter();
        let lines = headers.map(|(name, value)| format!("{name}={}\n", String::from_utf8_lossy(value.as_bytes())));
        lines.collect::<String>()
    };
    let app = axum::Router::new().fallback(tell).layer(mesh.server_layer());
    tokio::spawn(async move { mesh_tower::server::serve(listener, app).await });
    mesh.serving().await.unwrap();
    (mesh, address)
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// Sends one request, and reads the whole answer.
async fn ask(address: SocketAddr, head: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{head}\r\nhost: reviews\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut bytes));
    read.await.expect("an answer").unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

/// What an authorizer does with whatever it is asked.
#[derive(Clone)]
enum Script {
    Say(String),
    Stall,
    HangUp,
}

/// An authorizer that speaks HTTP by script, and keeps what it was asked.
struct Authorizer {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    script: Arc<Mutex<Script>>,
}

impl Authorizer {
    async fn start() -> Authorizer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let script = Arc::new(Mutex::new(Script::HangUp));
        let (all, says) = (asked.clone(), script.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (all, says) = (all.clone(), says.clone());
                tokio::spawn(async move {
                    let (mut head, mut buffer) = (String::new(), [0; 4096]);
                    while !head.contains("\r\n\r\n") {
                        match stream.read(&mut buffer).await {
                            Ok(count @ 1..) => head += &String::from_utf8_lossy(&buffer[..count]),
                            _ => return,
                        }
                    }
                    all.lock().unwrap().push(head);
                    let script = says.lock().unwrap().clone();
                    match script {
                        Script::Say(text) => _ = stream.write_all(text.as_bytes()).await,
                        Script::Stall => std::future::pending().await,
                        Script::HangUp => {}
                    }
                });
            }
        });
        Authorizer { port, asked, script }
    }

    fn says(&self, status: &str, headers: &str, body: &str) {
        let length = body.len();
        let text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}");
        self.does(Script::Say(text));
    }

    fn does(&self, script: Script) {
        *self.script.lock().unwrap() = script;
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

async fn start(yaml: &str) -> (Embedded, Mesh, SocketAddr) {
    let control = Embedded::start(Config::yaml(yaml), Options::default()).await.unwrap();
    let (mesh, address) = serve(&control).await;
    (control, mesh, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authorizer_is_asked_about_the_requests_of_the_policy_and_its_word_counts() {
    let authorizer = Authorizer::start().await;
    let more = ", pathPrefix: /check, includeRequestHeadersInCheck: [X-Shown, 'x-also-*'], \
                includeAdditionalHeadersInCheck: {x-mesh: yes-it-is, x-path: '%REQ(:PATH)% of 100%%', \
                x-also-none: '%REQ(x-none)%'}, headersToUpstreamOnAllow: [X-User, 'x-claim-*'], \
                headersToDownstreamOnAllow: [x-told], headersToDownstreamOnDeny: [x-why]";
    let (_control, _mesh, address) = start(&mesh_with(&http_provider(more), "http", authorizer.port)).await;

    let open = ask(address, "GET /open HTTP/1.1\r\nx-user: mallory\r\nx-claim-a: b\r\nx-other: c").await;
    assert_eq!((open.status, authorizer.asked().len()), (200, 0));
    assert!(!open.body.contains("mallory") && !open.body.contains("x-claim-a"), "{}", open.body);
    assert!(open.body.contains("x-other=c"), "{}", open.body);

    authorizer.says("200 OK", "X-User: alice\r\nx-claim-b: 1\r\nx-claim-b: 2\r\nx-told: hello\r\nx-not: named\r\n", "");
    let let_in = ask(
        address,
        "POST /private/../private/a?b=c HTTP/1.1\r\ncontent-length: 0\r\nauthorization: Bearer t\r\nx-shown: 1\r\n\
         x-also-shown: 2\r\nx-hidden: 3\r\nx-user: mallory\r\nx-claim-a: b\r\nx-also-none: mallory\r\nx-path: mallory",
    )
    .await;
    assert_eq!(let_in.status, 200, "{}", let_in.body);
    for expected in ["x-user=alice\n", "x-claim-b=1\n", "x-claim-b=2\n", "x-hidden=3\n", "authorization=Bearer t\n"] {
        assert!(let_in.body.contains(expected), "{expected} is not in {}", let_in.body);
    }
    for unexpected in ["x-user=mallory", "x-claim-a", "x-not", "x-told"] {
        assert!(!let_in.body.contains(unexpected), "{unexpected} is in {}", let_in.body);
    }
    assert!(let_in.head.contains("x-told: hello") && !let_in.head.contains("x-user"), "{}", let_in.head);
    let asked = authorizer.asked();
    assert_eq!(asked.len(), 1);
    let asked = asked[0].to_ascii_lowercase();
    assert!(asked.starts_with("post /check/private/a?b=c http/1.1\r\n"), "{asked}");
    for expected in [
        "host: reviews\r\n",
        "x-shown: 1",
        "x-also-shown: 2",
        "x-mesh: yes-it-is",
        "authorization: bearer t",
        // As it is asked for, whatever is written before it for the authorizer.
        "x-path: /private/a?b=c of 100%\r\n",
    ] {
        assert!(asked.contains(expected), "{expected} is not in {asked}");
    }
    assert!(!asked.contains("x-hidden") && !asked.contains("x-user"), "{asked}");
    // What configuration makes of nothing is not the client's word either.
    assert!(!asked.contains("x-also-none") && !asked.contains("mallory"), "{asked}");

    authorizer.says(
        "401 Unauthorized",
        "www-authenticate: Basic\r\nx-why: because\r\nx-not: named\r\n",
        "who are you?",
    );
    let refused = ask(address, "GET /private HTTP/1.1").await;
    assert_eq!((refused.status, refused.body.as_str()), (401, "who are you?"));
    assert!(refused.head.contains("www-authenticate: basic") && refused.head.contains("x-why: because"));
    assert!(!refused.head.contains("x-not"), "{}", refused.head);
    authorizer.says("302 Found", "location: https://login.example.com/\r\n", "");
    let sent_away = ask(address, "GET /private HTTP/1.1").await;
    assert_eq!(sent_away.status, 302);
    assert!(sent_away.head.contains("location: https://login.example.com/"), "{}", sent_away.head);
    assert_eq!(authorizer.asked().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_and_one_that_makes_no_sense_let_nobody_in_unless_it_is_written() {
    let huge = "x".repeat(1 << 20);
    let long_header = format!("x-long: {}\r\n", "y".repeat(1 << 20));
    for (fail_open, status_on_error, expected) in
        [(false, "", 403), (false, ", statusOnError: '503'", 503), (true, "", 200)]
    {
        let authorizer = Authorizer::start().await;
        let more = format!(", failOpen: {fail_open}{status_on_error}, headersToUpstreamOnAllow: [x-user]");
        let provider = http_provider(&more).replace("timeout: 5s", "timeout: 2s");
        let (control, mesh, address) = start(&mesh_with(&provider, "http", authorizer.port)).await;
        let check = async |what: &str, expected: u16| {
            let answer = ask(address, "GET /private HTTP/1.1\r\nx-user: mallory").await;
            assert_eq!(answer.status, expected, "{what}, failOpen {fail_open}: {}", answer.body);
            // Whoever passes without a word is nobody that he says he is.
            assert!(!answer.body.contains("mallory"), "{what}: {}", answer.body);
        };
        authorizer.does(Script::Stall);
        check("a stall", expected).await;
        authorizer.does(Script::HangUp);
        check("a connection that ends", expected).await;
        authorizer.does(Script::Say("I am no HTTP server\r\n\r\n".to_owned()));
        check("garbage", expected).await;
        for status in ["500 Internal", "503 Unavailable"] {
            authorizer.says(status, "", "");
            check(status, expected).await;
        }
        authorizer.says("200 OK", &long_header, "");
        check("a head without an end", expected).await;
        let broken = "HTTP/1.1 200 OK\r\nx-user: mallory\r\ncontent-length: 9\r\n\r\nwhole".to_owned();
        authorizer.does(Script::Say(broken));
        check("a word that is broken off", expected).await;
        authorizer.says("200 OK", "", &huge);
        check("a long word", 200).await;
        // Only 200 lets in, and only 5xx is no answer.
        for status in ["204 No Content", "202 Accepted", "299 What"] {
            authorizer.says(status, "", "");
            check(status, 403).await;
        }
        // A refusal is one, however long it is.
        authorizer.says("403 Forbidden", "", &huge);
        check("a huge refusal", 403).await;
        assert_eq!(mesh.passed_unchecked(), if fail_open { 7 } else { 0 }, "whoever passes without a word is counted");
        drop(control);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_listens_or_nobody_can_be_asked_nobody_is_let_in() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (_control, _mesh, address) = start(&mesh_with(&http_provider(""), "http", port)).await;
    assert_eq!(ask(address, "GET /private HTTP/1.1").await.status, 403);
    assert_eq!(ask(address, "GET /open HTTP/1.1").await.status, 200);
    let grpc = ask(address, "POST /private/Call HTTP/1.1\r\ncontent-type: application/grpc\r\ncontent-length: 0").await;
    assert!(grpc.status == 200 && grpc.head.contains("grpc-status: 7"), "{}", grpc.head);

    let good = mesh_with(&http_provider(""), "http", port);
    for (yaml, why) in [
        (good.replace("service: authz.example.com", "service: other.example.com"), "no service other.example.com:8000"),
        (good.replace("- name: authz", "- name: other"), "no extension provider `authz`, only `other`"),
        (good.replace("provider: {name: authz}", "provider: {}"), "no extension provider ``, only `authz`"),
        (good.replace(&http_provider(""), "zipkin: {}"), "none that can be asked"),
    ] {
        let (_control, _mesh, address) = start(&yaml).await;
        for path in ["/open", "/private"] {
            let answer = ask(address, &format!("GET {path} HTTP/1.1")).await;
            assert_eq!(answer.status, 503, "{why}: {}", answer.body);
            assert!(answer.body.contains(why), "{why}: {}", answer.body);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_comes_before_deny_and_allow_and_neither_is_skipped() {
    let authorizer = Authorizer::start().await;
    let policy = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let deny = policy("deny", "{action: DENY, rules: [{to: [{operation: {paths: [/private/no]}}]}]}");
    let allow = policy("allow", "{rules: [{when: [{key: 'request.headers[x-user]', values: [alice]}]}]}");
    let yaml = mesh_with(&http_provider(", headersToUpstreamOnAllow: [x-user]"), "http", authorizer.port);
    let (_control, _mesh, address) = start(&format!("{yaml}{deny}{allow}")).await;
    authorizer.says("200 OK", "x-user: alice\r\n", "");
    assert_eq!(ask(address, "GET /private HTTP/1.1").await.status, 200);
    let denied = ask(address, "GET /private/no HTTP/1.1").await;
    assert_eq!((denied.status, denied.body.as_str()), (403, "RBAC: access denied"));
    assert_eq!(authorizer.asked().len(), 2, "it is asked before");
    authorizer.says("200 OK", "x-user: bob\r\n", "");
    assert_eq!(ask(address, "GET /private HTTP/1.1").await.status, 403);
    let spoofed = ask(address, "GET /open HTTP/1.1\r\nx-user: alice").await;
    assert_eq!(spoofed.status, 403, "nobody but the authorizer says who somebody is");
    authorizer.says("403 Forbidden", "", "no");
    assert_eq!(ask(address, "GET /private HTTP/1.1\r\nx-user: alice").await.body, "no");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_asked_for_a_dry_run() {
    let authorizer = Authorizer::start().await;
    let yaml = mesh_with(&http_provider(""), "http", authorizer.port);
    let yaml = yaml
        .replace("name: ask, namespace: shop", "name: ask, namespace: shop, annotations: {istio.io/dry-run: 'true'}");
    let (control, _mesh, address) = start(&yaml).await;
    assert_eq!(ask(address, "GET /private HTTP/1.1").await.status, 200);
    assert!(authorizer.asked().is_empty());
    let said = control.plane().diagnostics();
    assert!(said.iter().any(|finding| finding.to_string().contains("nobody is asked for a dry run")), "{said:?}");
}

type Check = Arc<dyn Fn(pb::CheckRequest) -> GrpcSays + Send + Sync>;

/// What an authorizer over gRPC answers.
enum GrpcSays {
    Answer(Box<pb::CheckResponse>),
    Bytes(Vec<u8>),
    Fails,
}

/// An authorizer over gRPC that is a server of the mesh, and so is called by mutual TLS where there are certificates.
async fn grpc_authorizer(control: &Embedded, check: Check) -> Mesh {
    let mesh = workload(control, "authz");
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let app = axum::Router::new().fallback(move |request: axum::extract::Request| {
        let check = check.clone();
        async move {
            assert_eq!(request.uri().path(), "/envoy.service.auth.v3.Authorization/Check");
            let connection = mesh_tower::server::ConnectionInfo::current().unwrap();
            let caller = connection.peer_identity().expect("mutual TLS").to_string();
            assert_eq!(caller, "spiffe://cluster.local/ns/shop/sa/reviews");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut trailers = http::HeaderMap::new();
            let message = match check(pb::CheckRequest::decode(&body[5..]).unwrap()) {
                GrpcSays::Answer(answer) => {
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    answer.encode_to_vec()
                }
                GrpcSays::Bytes(bytes) => {
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    bytes
                }
                GrpcSays::Fails => {
                    trailers.insert("grpc-status", "13".parse().unwrap());
                    Vec::new()
                }
            };
            let mut frame = vec![0];
            frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
            frame.extend(message);
            let body = Full::new(Bytes::from(frame)).with_trailers(async move { Some(Ok(trailers)) });
            let response = http::Response::builder().header("content-type", "application/grpc");
            response.body(axum::body::Body::new(body)).unwrap()
        }
    });
    let app = app.layer(mesh.server_layer());
    tokio::spawn(async move { mesh_tower::server::serve(listener, app).await });
    mesh.serving().await.unwrap();
    mesh
}

fn grpc_yaml(more: &str) -> String {
    let provider =
        format!("envoyExtAuthzGrpc: {{service: authz.shop.svc.cluster.local, port: 9000, timeout: 5s{more}}}");
    let authz = "---\napiVersion: v1\nkind: Service\nmetadata: {name: authz, namespace: shop}\n\
                 spec: {selector: {app: authz}, ports: [{name: grpc, port: 9000}]}\n";
    format!("{}{authz}", mesh_with(&provider, "http", 1))
}

fn said(code: i32, response: Option<HttpResponse>) -> GrpcSays {
    let status = Some(Status { code, ..Status::default() });
    GrpcSays::Answer(Box::new(pb::CheckResponse { status, http_response: response, ..Default::default() }))
}

fn option(key: &str, value: &str) -> HeaderValueOption {
    let header = PbHeader { key: key.to_owned(), value: value.to_owned(), ..Default::default() };
    HeaderValueOption { header: Some(header), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authorizer_over_grpc_is_called_by_mutual_tls_and_told_who_asks() {
    let control = Embedded::start(Config::yaml(grpc_yaml("")), Options::default().dev()).await.unwrap();
    let seen: Arc<Mutex<Vec<pb::CheckRequest>>> = Arc::default();
    let all = seen.clone();
    let check: Check = Arc::new(move |request| {
        let http = request.attributes.as_ref().unwrap().request.as_ref().unwrap().http.clone().unwrap();
        all.lock().unwrap().push(request);
        let ok = pb::OkHttpResponse {
            headers: vec![option("x-user", "alice")],
            headers_to_remove: vec!["x-secret".to_owned()],
            response_headers_to_add: vec![option("x-told", "hello")],
            ..Default::default()
        };
        let denied = pb::DeniedHttpResponse {
            status: Some(HttpStatus { code: 418 }),
            headers: vec![option("x-why", "because"), option("transfer-encoding", "chunked")],
            body: "no tea".to_owned(),
        };
        match http.path.as_str() {
            "/private/yes?q=1" => said(0, Some(HttpResponse::OkResponse(ok))),
            "/private/no" => said(7, Some(HttpResponse::DeniedResponse(denied))),
            "/private/plain-no" => said(7, None),
            "/private/fails" => GrpcSays::Fails,
            "/private/garbage" => GrpcSays::Bytes(vec![0xff; 9]),
            "/private/unknown" => GrpcSays::Bytes(vec![0x0a, 0x00, 0xf8, 0x7f, 0x01]),
            "/private/empty" => GrpcSays::Bytes(Vec::new()),
            "/private/both" => said(0, Some(HttpResponse::DeniedResponse(denied))),
            "/private/framing" => {
                let headers = vec![option("content-length", "0")];
                said(0, Some(HttpResponse::OkResponse(pb::OkHttpResponse { headers, ..Default::default() })))
            }
            "/private/huge" => {
                let headers = vec![option("x-a", &"a".repeat(1 << 20))];
                said(0, Some(HttpResponse::OkResponse(pb::OkHttpResponse { headers, ..Default::default() })))
            }
            other => panic!("{other}"),
        }
    });
    let _authz = grpc_authorizer(&control, check).await;
    let (reviews, _) = serve(&control).await;
    let web = workload(&control, "web");
    let get = async |path: &str| {
        let request =
            http::Request::get(format!("http://reviews{path}")).header("x-user", "mallory").header("x-secret", "s");
        let response = web.client().request(request.body(mesh_tower::body::Body::empty()).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        (head, String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
    };
    let (head, body) = get("/private/yes?q=1").await;
    assert_eq!(head.status, 200, "{body}");
    assert!(body.contains("x-user=alice\n") && !body.contains("mallory") && !body.contains("x-secret"), "{body}");
    assert_eq!(head.headers["x-told"], "hello");
    let asked = seen.lock().unwrap().pop().unwrap().attributes.unwrap();
    assert_eq!(asked.source.unwrap().principal, "spiffe://cluster.local/ns/shop/sa/web");
    let http = asked.request.unwrap().http.unwrap();
    assert_eq!((http.method.as_str(), http.headers["x-user"].as_str()), ("GET", "mallory"));
    let (head, body) = get("/private/no").await;
    assert_eq!(
        (head.status.as_u16(), body.as_str(), head.headers["x-why"].to_str().unwrap()),
        (418, "no tea", "because")
    );
    for path in ["plain-no", "fails", "garbage", "unknown", "empty", "both", "framing", "huge"] {
        let (head, body) = get(&format!("/private/{path}")).await;
        assert_eq!(head.status, 403, "{path}: {body}");
    }
    drop(reviews);
}

/// Sends one request with a body, and reads the status of its answer.
async fn post(address: SocketAddr, path: &str, body: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut bytes));
    read.await.expect("an answer").unwrap();
    String::from_utf8_lossy(&bytes).split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authorizer_over_grpc_is_shown_bodies_as_text_or_as_bytes() {
    const BODY: &[u8] = b"1234\xff6789";
    for (more, text, raw, is_partial) in [
        ("maxRequestBytes: 9", "1234\u{fffd}6789", &b""[..], "false"),
        ("maxRequestBytes: 9, packAsBytes: true", "", BODY, "false"),
        ("maxRequestBytes: 5, packAsBytes: true, allowPartialMessage: true", "", &BODY[..5], "true"),
    ] {
        let yaml = grpc_yaml(&format!(", includeRequestBodyInCheck: {{{more}}}"));
        let control = Embedded::start(Config::yaml(yaml), Options::default().dev()).await.unwrap();
        let seen: Arc<Mutex<Vec<pb::CheckRequest>>> = Arc::default();
        let all = seen.clone();
        let check: Check = Arc::new(move |request| {
            all.lock().unwrap().push(request);
            said(0, None)
        });
        let _authorizer = grpc_authorizer(&control, check).await;
        // In plaintext: what is asked is the matter here.
        let permissive = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: reviews, namespace: shop}\n\
                          spec: {selector: {matchLabels: {app: reviews}}, mtls: {mode: PERMISSIVE}}\n";
        control.set_yaml("permissive.yaml", permissive).unwrap();
        let (_mesh, address) = serve(&control).await;
        assert_eq!(post(address, "/private", BODY).await, 200, "{more}");
        let http = seen.lock().unwrap().pop().unwrap().attributes.unwrap().request.unwrap().http.unwrap();
        assert_eq!((http.body.as_str(), &*http.raw_body), (text, raw), "{more}");
        assert_eq!(http.headers["x-envoy-auth-partial-body"], is_partial, "{more}");
        if is_partial == "false" {
            assert_eq!(post(address, "/private", b"1234567890").await, 413, "{more}");
            assert!(seen.lock().unwrap().is_empty(), "nobody is asked");
        }
    }
}
