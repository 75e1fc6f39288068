//! RequestAuthentication from YAML to the answer: embedded control plane, the library's server, and bytes over sockets.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use mesh_control::embedded::{Config, Embedded, KeyFetching, Options, PlaneOptions};
use mesh_core::jwt::Claims;
use mesh_core::testing::TokenIssuer;
use mesh_tower::{Mesh, MeshBuilder};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::shop::{ask, workload_with};

const REVIEWS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 9080}]}
";

fn authentication(rules: &str) -> String {
    authentication_of("jwt", rules)
}

fn authentication_of(name: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {{selector: {{matchLabels: {{app: reviews}}}}, \
         jwtRules: [{rules}]}}\n"
    )
}

/// A server of `reviews` that answers with who calls, and with what it sees of the request.
async fn serve(policies: &str) -> (Embedded, Mesh, SocketAddr) {
    serve_with(Config::yaml(format!("{REVIEWS}{policies}")), Options::default()).await
}

async fn serve_with(config: Config, options: Options) -> (Embedded, Mesh, SocketAddr) {
    let control = Embedded::start(config, options).await.unwrap();
    let mesh = workload_with(&control, "reviews", MeshBuilder::metrics);
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let tell = |request: Request| async move {
        let claims = request.extensions().get::<Claims>();
        let caller = claims.and_then(Claims::principal).unwrap_or("nobody").to_owned();
        let names: Vec<String> =
            request.headers().iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        format!("{caller} {} {}", request.uri(), names.join(" "))
    };
    let app = axum::Router::new().fallback(tell).layer(mesh.server_layer());
    tokio::spawn(async move { mesh_tower::server::serve(listener, app).await });
    mesh.serving().await.unwrap();
    (control, mesh, address)
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_token_tells_who_calls_none_is_accepted_and_a_bad_one_is_refused() {
    let issuer = TokenIssuer::new("a");
    let rule = format!(
        "{{issuer: 'https://issuer', audiences: [shop], jwks: '{}', outputPayloadToHeader: x-payload, \
         outputClaimToHeaders: [{{header: x-sub, claim: sub}}, {{header: x-role, claim: realm.role}}]}}",
        issuer.jwks()
    );
    let (_control, _mesh, address) = serve(&authentication(&rule)).await;
    let claims = |audience: &str, rest: &str| {
        issuer.token(&format!(r#"{{"iss":"https://issuer","sub":"me","aud":"{audience}"{rest}}}"#))
    };
    let good = claims("shop", r#","realm":{"role":"cook"}"#);
    let spoofed = "x-sub: root\r\nx-role: root\r\nx-payload: root\r\n";

    let (status, answer) = ask(address, "/", &format!("{spoofed}{}", bearer(&good))).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer.contains("https://issuer/me / "), "{answer}");
    assert!(answer.contains("x-sub=me") && answer.contains("x-role=cook"), "{answer}");
    assert!(answer.contains(&format!("x-payload={}", good.split('.').nth(1).unwrap())), "{answer}");
    assert!(!answer.contains("root") && !answer.contains(&good) && !answer.contains("authorization"), "{answer}");

    let (status, answer) = ask(address, &format!("/a?b=1&access_token={good}&c"), "").await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer.contains("https://issuer/me /a?b=1&c "), "{answer}");

    let (status, answer) = ask(address, "/", spoofed).await;
    assert!(status == 200 && answer.contains("nobody / ") && !answer.contains("root"), "{answer}");

    let other = TokenIssuer::new("a").token(r#"{"iss":"https://issuer","sub":"me","aud":"shop"}"#);
    for (headers, status, says) in [
        (bearer(&other), 401, "Jwt verification fails"),
        (bearer(&claims("shop", r#","exp":0"#)), 401, "Jwt is expired"),
        (bearer(&claims("shop", r#","exp":"9999999999""#)), 401, "Jwt payload [exp] field is not"),
        (bearer(&claims("shop", r#","nbf":9999999999"#)), 401, "Jwt not yet valid"),
        (bearer(&issuer.token(r#"{"iss":"who","aud":"shop"}"#)), 401, "Jwt issuer is not configured"),
        (bearer("a.b"), 401, "Jwt is not in the form of"),
        (bearer(&good).repeat(2), 401, "Jwt is given more than once"),
        (bearer(&claims("bakery", "")), 403, "Audiences in Jwt are not allowed"),
    ] {
        let (seen, answer) = ask(address, "/", &headers).await;
        assert_eq!(seen, status, "{answer}");
        assert!(answer.contains(says), "{answer}");
        assert_eq!(answer.contains("www-authenticate: Bearer error=\"invalid_token\""), status == 401, "{answer}");
        let (_, answer) = ask(address, "/", &format!("content-type: application/grpc\r\n{headers}")).await;
        let code = if status == 401 { "grpc-status: 16" } else { "grpc-status: 7" };
        assert!(answer.contains(code), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_rules_and_objects_are_alternatives_and_a_forwarded_token_stays() {
    let (a, b, c) = (TokenIssuer::new("a"), TokenIssuer::new("b"), TokenIssuer::new("c"));
    let rule =
        |issuer: &TokenIssuer, name: &str, rest: &str| format!("{{issuer: {name}, jwks: '{}'{rest}}}", issuer.jwks());
    let two = format!("{}, {}", rule(&a, "a", ""), rule(&b, "b", ", forwardOriginalToken: true"));
    let third = rule(&c, "c", ", fromHeaders: [{name: x-token, prefix: 'T '}], fromCookies: [token], fromParams: [t]");
    let policies = authentication_of("two", &two) + &authentication_of("third", &third);
    let (_control, _mesh, address) = serve(&policies).await;
    let [a, b, c] = [(&a, "a"), (&b, "b"), (&c, "c")]
        .map(|(issuer, name)| issuer.token(&format!(r#"{{"iss":"{name}","sub":"me"}}"#)));
    for (headers, caller, stays) in [
        (bearer(&a), Some("a/me"), false),
        (bearer(&b), Some("b/me"), true),
        (format!("x-token: T {c}\r\n"), Some("c/me"), false),
        (format!("cookie: x=1; token={c}\r\n"), Some("c/me"), false),
        // In a place that is not its own.
        (bearer(&c), None, false),
        (format!("x-token: T {a}\r\n"), None, false),
        (String::new(), Some("nobody"), false),
    ] {
        let (status, answer) = ask(address, "/", &headers).await;
        match caller {
            None => assert_eq!(status, 401, "{answer}"),
            Some(caller) => {
                assert_eq!(status, 200, "{answer}");
                assert!(answer.contains(&format!("{caller} / ")), "{answer}");
                assert_eq!(answer.contains(&b), stays, "{answer}");
                assert!(!answer.contains(&a) && !answer.contains(&c), "{answer}");
            }
        }
    }
    let (status, answer) = ask(address, &format!("/?x=1&t={c}"), "").await;
    assert!(status == 200 && answer.contains("c/me /?x=1 "), "{answer}");
}

fn access(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {{selector: {{matchLabels: {{app: reviews}}}}, {spec}}}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_decide_on_what_a_token_says_and_a_missing_one_is_on_the_safe_side() {
    let issuer = TokenIssuer::new("a");
    let rule = format!("{{issuer: 'https://idp', jwks: '{}', spaceDelimitedClaims: [roles]}}", issuer.jwks());
    let token = |sub: &str, rest: &str| {
        bearer(&issuer.token(&format!(r#"{{"iss":"https://idp","sub":"{sub}","aud":["shop","bank"]{rest}}}"#)))
    };
    let me = token("me", "");
    let cook =
        token("me", r#","azp":"web","groups":["cook","guest"],"realm":{"role":"cook"},"roles":"a b","scope":"r w""#);
    let from = |source: &str| format!("rules: [{{from: [{{source: {{{source}}}}}]}}]");
    let when = |key: &str, values: &str| format!("rules: [{{when: [{{key: '{key}', {values}}}]}}]");
    let none = String::new();
    type Case<'c> = (&'c str, String, [(&'c String, bool); 3]);
    let cases: [Case<'_>; 15] = [
        // Istio's most used policy on tokens.
        ("DENY", from("notRequestPrincipals: ['*']"), [(&none, false), (&me, true), (&cook, true)]),
        ("DENY", from("requestPrincipals: ['https://idp/me']"), [(&none, true), (&me, false), (&cook, false)]),
        ("DENY", from("notRequestPrincipals: ['https://idp/me']"), [(&none, false), (&me, true), (&cook, true)]),
        ("ALLOW", from("requestPrincipals: ['*']"), [(&none, false), (&me, true), (&cook, true)]),
        ("ALLOW", from("requestPrincipals: ['https://idp/*']"), [(&none, false), (&me, true), (&cook, true)]),
        ("ALLOW", from("requestPrincipals: ['*/you', 'you*']"), [(&none, false), (&me, false), (&cook, false)]),
        ("ALLOW", from("notRequestPrincipals: ['https://idp/you']"), [(&none, false), (&me, true), (&cook, true)]),
        ("ALLOW", when("request.auth.principal", "values: ['*/me']"), [(&none, false), (&me, true), (&cook, true)]),
        ("ALLOW", when("request.auth.audiences", "values: [bank]"), [(&none, false), (&me, true), (&cook, true)]),
        ("ALLOW", when("request.auth.presenter", "values: [web]"), [(&none, false), (&me, false), (&cook, true)]),
        ("ALLOW", when("request.auth.claims[groups]", "values: [cook]"), [(&none, false), (&me, false), (&cook, true)]),
        (
            "DENY",
            when("request.auth.claims[groups]", "notValues: [guest]"),
            [(&none, false), (&me, false), (&cook, true)],
        ),
        (
            "ALLOW",
            when("request.auth.claims[realm][role]", "values: [co*]"),
            [(&none, false), (&me, false), (&cook, true)],
        ),
        ("ALLOW", when("request.auth.claims[roles]", "values: [b]"), [(&none, false), (&me, false), (&cook, true)]),
        // A claim that is not there is not known to be another one.
        ("ALLOW", when("request.auth.claims[scope]", "notValues: [x]"), [(&none, false), (&me, false), (&cook, true)]),
    ];
    for (action, rules, asked) in cases {
        let policies = authentication(&rule) + &access("p", &format!("action: {action}, {rules}"));
        let (_control, _mesh, address) = serve(&policies).await;
        for (headers, is_allowed) in asked {
            let (status, answer) = ask(address, "/", headers).await;
            let expected = if is_allowed { 200 } else { 403 };
            assert_eq!(status, expected, "{action} {rules} {headers}: {answer}");
            assert!(is_allowed || answer.contains("RBAC: access denied"), "{answer}");
        }
    }
}

/// Where an issuer has its keys, over HTTP: what it answers, and how often it was asked.
#[derive(Clone)]
struct KeyServer {
    address: SocketAddr,
    keys: Arc<Mutex<Option<String>>>,
    asked: watch::Sender<usize>,
}

impl KeyServer {
    async fn start(keys: Option<String>) -> KeyServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = KeyServer { address, keys: Arc::new(Mutex::new(keys)), asked: watch::Sender::new(0) };
        let own = server.clone();
        let answer = move |request: Request| async move {
            own.asked.send_modify(|asked| *asked += 1);
            if request.uri().path().ends_with("/.well-known/openid-configuration") {
                return Ok(own.document());
            }
            own.keys.lock().unwrap().clone().ok_or(StatusCode::INTERNAL_SERVER_ERROR)
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        server
    }

    fn document(&self) -> String {
        format!(r#"{{"issuer": "http://{0}", "jwks_uri": "http://{0}/keys"}}"#, self.address)
    }

    fn answer(&self, keys: Option<String>) {
        *self.keys.lock().unwrap() = keys;
    }

    /// Until it has been asked so many times more.
    async fn asked(&self, more: usize) {
        let before = *self.asked.borrow();
        let asked = self.asked.subscribe().wait_for(|asked| *asked >= before + more).await.map(|_| ());
        asked.unwrap();
    }
}

fn fetching() -> KeyFetching {
    KeyFetching::default().allow_insecure(true).refresh(Duration::from_millis(50))
}

/// Asks until the answer has this status.
async fn until(address: SocketAddr, token: &str, status: u16) {
    let reached = async {
        while ask(address, "/", &bearer(token)).await.0 != status {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reached).await.expect("the status");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_fetched_once_for_all_and_a_new_key_is_known_soon() {
    let (first, second) = (TokenIssuer::new("a"), TokenIssuer::new("b"));
    let keys = KeyServer::start(Some(first.jwks())).await;
    let uri = format!("http://{}", keys.address);
    let options = || Options::default().plane(PlaneOptions::default().key_fetching(fetching()));
    for (rule, issuer) in [
        (format!("{{issuer: me, jwksUri: '{uri}/keys'}}"), "me"),
        // Discovery: the issuer says where.
        (format!("{{issuer: '{uri}'}}"), &*uri),
    ] {
        keys.answer(Some(first.jwks()));
        let (control, _mesh, address) =
            serve_with(Config::yaml(format!("{REVIEWS}{}", authentication(&rule))), options()).await;
        let claims = format!(r#"{{"iss":"{issuer}","sub":"me"}}"#);
        // From the first request on: the start waits for the keys.
        let (status, answer) = ask(address, "/", &bearer(&first.token(&claims))).await;
        assert!(status == 200 && answer.contains(&format!("{issuer}/me / ")), "{answer}");
        assert_eq!(ask(address, "/", &bearer(&second.token(&claims))).await.0, 401);
        keys.answer(Some(second.jwks()));
        until(address, &second.token(&claims), 200).await;
        // What was verified before counts no more.
        assert_eq!(ask(address, "/", &bearer(&first.token(&claims))).await.0, 401);
        drop(control);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j6_the_last_good_keys_stay_in_force_also_over_a_restart() {
    let issuer = TokenIssuer::new("a");
    let keys = KeyServer::start(Some(issuer.jwks())).await;
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let rule = format!("{{issuer: me, jwksUri: 'http://{}/keys'}}", keys.address);
    std::fs::write(dir.path().join("all.yaml"), format!("{REVIEWS}{}", authentication(&rule))).unwrap();
    let options = || Options::default().plane(PlaneOptions::default().key_fetching(fetching()).state_dir(state.path()));
    let token = issuer.token(r#"{"iss":"me","sub":"me"}"#);
    let (control, mesh, address) = serve_with(Config::dir(dir.path()), options()).await;
    assert_eq!(ask(address, "/", &bearer(&token)).await.0, 200);
    keys.answer(None);
    keys.asked(2).await;
    assert_eq!(ask(address, "/", &bearer(&token)).await.0, 200);
    drop(mesh);
    control.shutdown().await;

    let (control, _mesh, address) = serve_with(Config::dir(dir.path()), options()).await;
    assert_eq!(ask(address, "/", &bearer(&token)).await.0, 200);
    keys.asked(1).await;
    let said = loop {
        let found = control.status().diagnostics;
        if let Some(found) = found.into_iter().find(|found| found.message.contains("cannot be fetched")) {
            break found.message;
        }
        tokio::task::yield_now().await;
    };
    assert!(said.contains("answered 500") && said.contains("the last good ones"), "{said}");
    assert_eq!(ask(address, "/", &bearer(&token)).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_keys_an_issuers_tokens_are_refused_and_requests_without_one_pass() {
    let issuer = TokenIssuer::new("a");
    let down = KeyServer::start(None).await;
    let strict = Options::default();
    let loose = || Options::default().plane(PlaneOptions::default().key_fetching(fetching()));
    for (rules, options, why) in [
        ("{issuer: me}".to_owned(), strict.clone(), "/openid-configuration is no URL"),
        (
            format!("{{issuer: me, jwksUri: 'http://{}/keys'}}", down.address),
            strict.clone(),
            "only https:// is fetched",
        ),
        (format!("{{issuer: me, jwksUri: 'https://{}/keys'}}", down.address), strict, "a loopback address"),
        (format!("{{issuer: me, jwksUri: 'http://{}/keys'}}", down.address), loose(), "answered 500"),
    ] {
        let other = TokenIssuer::new("b");
        let third = "{issuer: third, fromHeaders: [{name: x-third}]}";
        let rules = format!("{rules}, {{issuer: other, jwks: '{}'}}, {third}", other.jwks());
        let config = Config::yaml(format!("{REVIEWS}{}", authentication(&rules)));
        let (control, _mesh, address) = serve_with(config, options).await;
        let bad = issuer.token(r#"{"iss":"me","sub":"me"}"#);
        let (status, answer) = ask(address, "/", &bearer(&bad)).await;
        assert!(status == 401 && answer.contains("Jwks remote fetch is failed"), "{answer}");
        assert!(!answer.contains("keys from"), "where they would be is nobody's business: {answer}");
        assert_eq!(ask(address, "/", "").await.0, 200);
        // Hazard J7: two of them at once.
        let both = format!("{}x-third: {}\r\n", bearer(&bad), issuer.token(r#"{"iss":"third","sub":"me"}"#));
        assert_eq!(ask(address, "/", &both).await.0, 401);
        let (status, answer) = ask(address, "/", &bearer(&other.token(r#"{"iss":"other","sub":"me"}"#))).await;
        assert_eq!(status, 200, "{answer}");
        let found = control.status().diagnostics;
        let is_told = found.iter().any(|it| it.message.contains(why) && it.message.contains("refused with 401"));
        assert!(is_told, "{why}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_of_a_metric_is_what_a_token_says() {
    let issuer = TokenIssuer::new("a");
    let rule = format!("{{issuer: a, jwks: '{}'}}", issuer.jwks());
    let labels = "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: tiers, namespace: shop}\n\
        spec: {metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, tagOverrides: {\
        tier: {value: \"request.auth.claims['tier'] == 'gold' ? 'gold' : 'other'\"}, \
        staff: {value: \"'staff' in request.auth.claims['groups']\"}, \
        who: {value: request.auth.principal}}}]}]}\n";
    let (_control, mesh, address) = serve(&(authentication(&rule) + labels)).await;
    let claims = |more: &str| bearer(&issuer.token(&format!(r#"{{"iss":"a","sub":"me"{more}}}"#)));
    for (headers, tier, staff, who) in [
        (claims(r#","tier":"gold","groups":["staff"]"#), "gold", "true", "a/me"),
        (claims(r#","tier":"tin""#), "other", "false", "a/me"),
        (claims(r#","tier":["gold"],"groups":7"#), "unknown", "unknown", "a/me"),
        (String::new(), "unknown", "false", "unknown"),
    ] {
        assert_eq!(ask(address, "/", &headers).await.0, 200);
        let labels = [format!("tier=\"{tier}\""), format!("staff=\"{staff}\""), format!("who=\"{who}\"")];
        let is_counted = || {
            let text = mesh.prometheus();
            let mut lines = text.lines().filter(|line| line.starts_with("istio_requests_total{"));
            lines.any(|line| labels.iter().all(|label| line.contains(label)) && line.ends_with("} 1"))
        };
        // It is counted when its answer has gone out.
        let counted = async {
            while !is_counted() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), counted)
            .await
            .unwrap_or_else(|_| panic!("{}", mesh.prometheus()));
    }
}
