//! The application's own authorizer, from YAML to the answer: embedded control plane, the library's server, and bytes over
//! sockets.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::Request;
use http::{HeaderName, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::testing::TokenIssuer;
use mesh_tower::Mesh;
use mesh_tower::server::{Allow, AuthorizationRequest, Authorizer, AuthorizerError, Decision, Deny, ServerLayer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::shop::workload;

const REVIEWS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 9080}]}
";

/// A server of `reviews` behind an authorizer, which counts what it serves and tells which headers it was sent.
struct Served {
    control: Embedded,
    _mesh: Mesh,
    address: SocketAddr,
    served: Arc<AtomicUsize>,
}

impl Served {
    async fn start(policies: &str, options: Options, authorizer: impl Authorizer) -> Served {
        let control = Embedded::start(Config::yaml(format!("{REVIEWS}{policies}")), options).await.unwrap();
        Served::layered(control, |layer| layer.authorizer(authorizer)).await
    }

    async fn layered(control: Embedded, with: impl FnOnce(ServerLayer) -> ServerLayer) -> Served {
        let mesh = workload(&control, "reviews");
        let listener = mesh.bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr();
        let served = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&served);
        let tell = move |request: Request| async move {
            counted.fetch_add(1, Ordering::SeqCst);
            let headers = request.headers().iter();
            headers.map(|(name, value)| format!("{name}={}\n", value.to_str().unwrap())).collect::<String>()
        };
        let app = axum::Router::new().fallback(tell).layer(with(mesh.server_layer()));
        tokio::spawn(async move { mesh_tower::server::serve(listener, app).await });
        mesh.serving().await.unwrap();
        Served { control, _mesh: mesh, address, served }
    }

    /// The whole answer to a request with these header lines.
    async fn ask(&self, line: &str, headers: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!("{line} HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut answer));
        read.await.expect("an answer").unwrap();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }
}

static USER: HeaderName = HeaderName::from_static("x-user");

/// Decides by the path, and does what goes wrong.
struct ByPath;

impl Authorizer for ByPath {
    async fn authorize(&self, request: AuthorizationRequest) -> Result<Decision, AuthorizerError> {
        Ok(match request.path_and_query.as_str() {
            "/" => Allow::new().header(USER.clone(), HeaderValue::from_static("somebody")).into(),
            "/plain" => Allow::new().into(),
            "/private" => Deny::new(StatusCode::FORBIDDEN).body("not for you").detail("a secret reason").into(),
            "/login" => Deny::new(StatusCode::FOUND)
                .header(http::header::LOCATION, HeaderValue::from_static("https://login"))
                .into(),
            "/twice" => Deny::new(StatusCode::UNAUTHORIZED)
                .header(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
                .into(),
            "/error" => return Err("the database is gone".into()),
            "/panic" => panic!("on purpose"),
            "/stall" => std::future::pending().await,
            "/fine" => Deny::new(StatusCode::OK).body("let in").into(),
            "/framing" => Allow::new().header(http::header::CONTENT_LENGTH, HeaderValue::from_static("5")).into(),
            other => return Err(format!("{other} is not for this test").into()),
        })
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(200)
    }

    fn own_headers(&self) -> &[HeaderName] {
        std::slice::from_ref(&USER)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_application_decides_and_what_it_does_not_decide_is_refused() {
    let served = Served::start("", Options::default(), ByPath).await;
    let (status, answer) = served.ask("GET /", "x-user: root\r\n").await;
    assert!(status == 200 && answer.contains("x-user=somebody") && !answer.contains("root"), "{answer}");
    let (status, answer) = served.ask("GET /plain", "x-user: root\r\n").await;
    assert!(status == 200 && !answer.contains("x-user"), "only the authorizer sets it: {answer}");
    assert_eq!(served.served(), 2);
    for (path, expected, told) in [
        ("/private", 403, "not for you"),
        ("/%70rivate", 403, "not for you"),
        ("/a/../private", 403, "not for you"),
        ("/login", 302, "location: https://login"),
        ("/twice", 401, "www-authenticate: Bearer"),
        ("/error", 403, "authorization failed"),
        ("/panic", 403, "authorization failed"),
        ("/stall", 403, "authorization failed"),
        ("/fine", 403, "authorization failed"),
        ("/framing", 403, "authorization failed"),
        ("/a/..;/b", 400, ""),
    ] {
        let (status, answer) = served.ask(&format!("GET {path}"), "").await;
        assert!(status == expected && answer.contains(told), "{path}: {answer}");
        for secret in ["a secret reason", "database", "on purpose", "let in"] {
            assert!(!answer.contains(secret), "{path}: {answer}");
        }
    }
    let (status, answer) = served.ask("GET /private", "content-type: application/grpc\r\n").await;
    assert!(status == 200 && answer.contains("grpc-status: 7") && answer.contains("not for you"), "{answer}");
    assert_eq!(served.served(), 2, "whoever is refused does not reach the application");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_told_who_asks_by_mutual_tls_and_by_tokens_and_does_not_overrule_policies() {
    let issuer = TokenIssuer::new("a");
    let policies = format!(
        "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: jwt, namespace: shop}}\n\
         spec: {{jwtRules: [{{issuer: 'https://issuer', jwks: '{}'}}]}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: denied, namespace: shop}}\n\
         spec: {{action: DENY, rules: [{{to: [{{operation: {{paths: [/denied]}}}}]}}]}}\n",
        issuer.jwks()
    );
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let told = Arc::clone(&seen);
    let authorizer = move |request: AuthorizationRequest| {
        let AuthorizationRequest { method, authority, path_and_query, identity, claims, is_grpc, .. } = &request;
        let identity = identity.as_ref().map_or("nobody", |identity| identity.as_str());
        let claims: Vec<_> = claims.iter().filter_map(|claims| claims.principal()).collect();
        let line = format!("{method} {authority} {path_and_query} {identity} {claims:?} {is_grpc}");
        told.lock().unwrap().push(line);
        let has_source = request.source.is_some_and(|source| source.ip().is_loopback());
        async move { Ok(if has_source { Allow::new().into() } else { Deny::new(StatusCode::FORBIDDEN).into() }) }
    };
    let served = Served::start(&policies, Options::default().dev(), authorizer).await;
    let web = workload(&served.control, "web");
    let token = issuer.token(r#"{"iss":"https://issuer","sub":"me"}"#);
    let get = async |path: &str| {
        let request =
            http::Request::get(format!("http://reviews{path}")).header("authorization", format!("Bearer {token}"));
        let response = web.client().request(request.body(mesh_tower::body::Body::empty()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    };
    assert_eq!(get("/a?b=1").await.0, 200);
    assert_eq!(get("/denied").await.0, 403, "a policy refuses what the application lets in");
    let who = "spiffe://cluster.local/ns/shop/sa/web [\"https://issuer/me\"] false";
    let expected = [format!("GET reviews /a?b=1 {who}"), format!("GET reviews /denied {who}")];
    assert_eq!(*seen.lock().unwrap(), expected);
    assert_eq!(served.served(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_not_shown_what_only_the_authorizers_of_policies_set() {
    let policies = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    \
         extensionProviders:\n    - name: authz\n      envoyExtAuthzHttp: {service: authz.example.com, port: 8000, \
         headersToUpstreamOnAllow: [x-auth-user]}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: authz, namespace: shop}\n\
         spec: {hosts: [authz.example.com], ports: [{number: 8000, name: http}], resolution: STATIC, \
         endpoints: [{address: 127.0.0.1}]}\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: asked, namespace: shop}\n\
         spec: {action: CUSTOM, provider: {name: authz}, rules: [{to: [{operation: {paths: [/asked]}}]}]}\n";
    let authorizer = |request: AuthorizationRequest| {
        let is_shown = request.headers.contains_key("x-auth-user") || !request.headers.contains_key("x-other");
        async move { Ok(if is_shown { Deny::new(StatusCode::FORBIDDEN).into() } else { Allow::new().into() }) }
    };
    let served = Served::start(policies, Options::default(), authorizer).await;
    // The other authorizer is not asked about this path.
    let (status, answer) = served.ask("GET /free", "x-auth-user: root\r\nx-other: 1\r\n").await;
    assert!(status == 200 && !answer.contains("x-auth-user"), "{answer}");
}

/// An extension provider of this name with this in it, whose authorizer is in the server's process.
fn provider(name: &str, more: &str) -> String {
    format!("    - name: {name}\n      envoyExtAuthzGrpc: {{service: {name}.in-process.invalid, port: 9000{more}}}\n")
}

fn asks(provider: &str, path: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: ask-{provider}, namespace: shop}}\n\
         spec: {{action: CUSTOM, provider: {{name: {provider}}}, rules: [{{to: [{{operation: {{paths: [{path}]}}}}]}}]}}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_names_the_applications_authorizers_and_one_that_nobody_registered_lets_nobody_in() {
    let settings = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    \
                    extensionProviders:\n";
    let open = ", failOpen: true, statusOnError: '418'";
    let providers = [provider("plans", ""), provider("slow", ", timeout: 0.2s"), provider("open", open)].concat();
    let providers = providers + &provider("nobody", open);
    let policies =
        [asks("plans", "/plans*"), asks("slow", "/slow*"), asks("open", "/open*"), asks("nobody", "/nobody*")];
    let deny = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: shop}\n\
                spec: {action: DENY, rules: [{to: [{operation: {paths: [/plans/denied]}}]}]}\n";
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let says = |name: &'static str| {
        let asked = Arc::clone(&asked);
        move |request: AuthorizationRequest| {
            asked.lock().unwrap().push(format!("{name} {}", request.path_and_query));
            async move {
                Ok(match request.path_and_query.as_str() {
                    "/plans/private" => Deny::new(StatusCode::PAYMENT_REQUIRED).body("pay").into(),
                    "/slow/stall" => std::future::pending::<Decision>().await,
                    "/open/error" => return Err("the database is gone".into()),
                    _ => Allow::new().header(USER.clone(), HeaderValue::from_static(name)).into(),
                })
            }
        }
    };
    let text = format!("{settings}{providers}{}{deny}", policies.concat());
    let control = Embedded::start(Config::yaml(format!("{REVIEWS}{text}")), Options::default()).await.unwrap();
    let served = Served::layered(control, |layer| {
        let layer = layer.named_authorizer("Plans", says("plans")).named_authorizer("slow", says("slow"));
        layer.named_authorizer("open", says("open")).named_authorizer("idle", ByPath)
    })
    .await;
    for (path, expected, told) in [
        ("/", 200, ""),
        ("/plans", 200, "x-user=plans"),
        ("/plans/private", 402, "pay"),
        ("/plans/denied", 403, "RBAC: access denied"),
        ("/slow", 200, "x-user=slow"),
        ("/slow/stall", 403, "external authorization failed"),
        ("/open/error", 200, ""),
        ("/nobody", 418, "the application has no authorizer \"nobody\""),
    ] {
        let (status, answer) = served.ask(&format!("GET {path}"), "x-user: root\r\n").await;
        assert!(status == expected && answer.contains(told), "{path}: {answer}");
        assert!(!answer.contains("root") && !answer.contains("database"), "{path}: {answer}");
    }
    let (_, answer) = served.ask("POST /nobody", "content-type: application/grpc\r\n").await;
    assert!(answer.contains("grpc-message: external authorization failed") && answer.contains("nobody"), "{answer}");
    let asked = asked.lock().unwrap().clone();
    let expected = [
        "plans /plans",
        "plans /plans/private",
        "plans /plans/denied",
        "slow /slow",
        "slow /slow/stall",
        "open /open/error",
    ];
    assert_eq!(asked, expected, "each is asked about what its policy is for");
}
