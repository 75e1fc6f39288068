//! RequestAuthentication from YAML to the answer: embedded control plane, the library's server, and bytes over sockets.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::Request;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::jwt::Claims;
use mesh_core::testing::TokenIssuer;
use mesh_core::xds::Bootstrap;
use mesh_tower::Mesh;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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
    let config = Config::yaml(format!("{REVIEWS}{policies}"));
    let control = Embedded::start(config, Options::default()).await.unwrap();
    let bootstrap = Bootstrap::new("embedded")
        .node_id("mesh~127.0.0.1~reviews.shop~shop.svc.cluster.local")
        .metadata("NAMESPACE", "shop")
        .metadata("LABELS", json!({"app": "reviews"}));
    let source = control.source(bootstrap);
    let mesh = Mesh::builder().source(source).cold_start_wait(Duration::from_secs(10)).start().unwrap();
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

/// The whole answer to a request with these header lines.
async fn ask(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("an answer").unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
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
    let third = rule(&c, "c", ", fromHeaders: [{name: x-token, prefix: 'T '}], fromCookies: [token]");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_whose_keys_are_not_there_lets_nobody_in_and_says_why() {
    let issuer = TokenIssuer::new("a");
    for (rules, why) in [
        ("{issuer: me, jwksUri: 'https://me/keys'}".to_owned(), "the keys of me are not fetched from https://me/keys"),
        (
            format!("{{issuer: me, jwks: '{}'}}, {{issuer: you, jwksUri: 'https://you/keys'}}", issuer.jwks()),
            "the keys of you are not fetched from https://you/keys",
        ),
        ("{issuer: me}".to_owned(), "the keys of me are not looked for"),
    ] {
        let (_control, _mesh, address) = serve(&authentication(&rules)).await;
        let (status, answer) = ask(address, "/", "").await;
        assert!(status == 503 && answer.contains(why), "{answer}");
    }
}
