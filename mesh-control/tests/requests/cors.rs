//! Cross-origin rules of a VirtualService (`corsPolicy`), by what a browser would be told.

use http::Request;
use mesh_control::analysis::validate;
use mesh_tower::body::Body;

use crate::support::{Answer, World, rules, server, web};

/// What a page of `https://<host>` asks for, with or without asking first.
async fn ask(world: &World, method: &str, host: &str, preflight: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri("http://web.example.com/a");
    request = request.header("origin", format!("https://{host}"));
    for (name, value) in preflight {
        request = request.header(*name, *value);
    }
    world.ask(request.body(Body::empty()).unwrap()).await.unwrap()
}

/// The headers of cross-origin requests in an answer, without what they begin with.
fn told(answer: &Answer) -> Vec<String> {
    let headers = answer.headers.iter().filter_map(|(name, value)| {
        let name = name.as_str().strip_prefix("access-control-")?;
        Some(format!("{name}: {}", value.to_str().unwrap()))
    });
    let mut told: Vec<String> = headers.collect();
    told.sort();
    told
}

async fn world(rule: &str) -> World {
    let web = web(&[("v1", server("v1").await)]);
    World::new(&format!("{web}{}", rules(rule))).await
}

const FIRST: &[(&str, &str)] =
    &[("access-control-request-method", "PUT"), ("access-control-request-headers", "content-type")];

#[tokio::test]
async fn a_browser_is_told_who_may_ask_and_a_server_is_asked_only_by_who_may() {
    let world = world(
        "  - corsPolicy:
      allowOrigins: [{exact: 'https://a.example'}, {regex: 'https://[a-z]+\\.b\\.example'}]
      allowMethods: [GET, PUT]
      allowHeaders: [content-type]
      exposeHeaders: [x-answer]
      maxAge: 24h
      allowCredentials: true
    fault: {delay: {fixedDelay: 1ms, percentage: {value: 100}}}
    route: [{destination: {host: web.example.com}}]
",
    )
    .await;
    for host in ["a.example", "x.b.example"] {
        let origin = format!("allow-origin: https://{host}");
        let answer = ask(&world, "OPTIONS", host, FIRST).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, ""), "the mesh answers: {answer:?}");
        let expected = [
            "allow-credentials: true",
            "allow-headers: content-type",
            "allow-methods: GET,PUT",
            &origin,
            "expose-headers: x-answer",
            "max-age: 86400",
        ];
        assert_eq!(told(&answer), expected);
        let answer = ask(&world, "PUT", host, &[]).await;
        assert!(answer.body.starts_with("v1\nPUT /a\n"), "the server answers: {answer:?}");
        assert_eq!(told(&answer), ["allow-credentials: true", &origin, "expose-headers: x-answer"]);
    }
    // Who may not is answered by the server, and a browser sees no leave in it.
    for (method, preflight) in [("OPTIONS", FIRST), ("PUT", &[])] {
        let answer = ask(&world, method, "c.example", preflight).await;
        assert!(answer.body.starts_with(&format!("v1\n{method} /a\n")), "{answer:?}");
        assert!(told(&answer).is_empty(), "{answer:?}");
    }
    // What is no cross-origin request stays as it is.
    let answer = world.get("http://web.example.com/a").await.unwrap();
    assert!(told(&answer).is_empty(), "{answer:?}");
}

#[tokio::test]
async fn preflights_of_others_reach_the_server_or_not_as_is_written() {
    for (written, reaches) in [("FORWARD", true), ("IGNORE", false), ("UNSPECIFIED", true)] {
        let rule = format!(
            "  - corsPolicy: {{allowOrigins: [{{prefix: 'https://a.'}}], allowMethods: [GET], unmatchedPreflights: {written}}}\n    \
             route: [{{destination: {{host: web.example.com}}}}]\n"
        );
        let answer = ask(&world(&rule).await, "OPTIONS", "c.example", FIRST).await;
        assert_eq!((answer.status, answer.body.is_empty()), (200, !reaches), "{written}: {answer:?}");
        let expected: &[&str] = if reaches { &[] } else { &["allow-methods: GET"] };
        assert_eq!(told(&answer), expected, "{written}");
    }
}

#[tokio::test]
async fn stars_and_the_older_list_of_origins_mean_what_they_do_in_istio() {
    let to_web = "route: [{destination: {host: web.example.com}}]";
    let all = format!(
        "  - {{corsPolicy: {{allowOrigins: [{{exact: '*'}}], allowMethods: ['*'], allowHeaders: ['*']}}, {to_web}}}\n"
    );
    let answer = ask(&world(&all).await, "OPTIONS", "c.example", FIRST).await;
    let expected = ["allow-headers: content-type", "allow-methods: PUT", "allow-origin: https://c.example"];
    assert_eq!(told(&answer), expected, "what is asked for, and for whom");
    let older = format!("  - {{corsPolicy: {{allowOrigin: ['https://a.example']}}, {to_web}}}\n");
    let older = world(&older).await;
    assert_eq!(told(&ask(&older, "GET", "a.example", &[]).await), ["allow-origin: https://a.example"]);
    assert!(told(&ask(&older, "GET", "b.example", &[]).await).is_empty());
}

#[tokio::test]
async fn an_answer_of_the_configuration_has_no_cross_origin_headers_and_that_is_told() {
    let rule = "  - corsPolicy: {allowOrigins: [{exact: '*'}]}\n    directResponse: {status: 418}\n";
    for (method, preflight) in [("OPTIONS", FIRST), ("GET", &[])] {
        let answer = ask(&world(rule).await, method, "a.example", preflight).await;
        assert_eq!((answer.status, told(&answer)), (418, Vec::new()));
    }
    let text = rules(rule);
    let said = validate([("t.yaml", text.as_str())]);
    let said: Vec<String> = said.iter().map(ToString::to_string).collect();
    assert!(said.iter().any(|line| line.contains("corsPolicy: without effect: `directResponse` answers")), "{said:?}");
}

#[tokio::test]
async fn the_answer_to_a_preflight_is_called_what_envoy_calls_it() {
    let world = world(
        "  - corsPolicy: {allowOrigins: [{exact: 'https://a.example'}], allowMethods: [PUT]}
    route: [{destination: {host: web.example.com}}]
",
    )
    .await;
    assert_eq!(ask(&world, "OPTIONS", "a.example", FIRST).await.status, 200);
    assert_eq!((world.details(), world.flag()), ("cors_response".to_owned(), "-".to_owned()));
    assert_eq!(ask(&world, "PUT", "a.example", &[]).await.status, 200);
    assert_eq!(world.details(), "via_upstream");
}

/// `*` is for requests without credentials; a VirtualService's is sent as it is, as by Istio.
#[tokio::test]
async fn of_a_route_of_gateway_api_a_star_is_not_exposed_where_there_are_credentials() {
    let web = web(&[("v1", server("v1").await)]);
    let route = |credentials: bool| {
        format!(
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: web}}
spec:
  parentRefs: [{{group: networking.istio.io, kind: ServiceEntry, name: web}}]
  rules:
  - filters: [{{type: CORS, cors: {{allowOrigins: ['https://a.example'], exposeHeaders: ['*', x-a], allowCredentials: {credentials}}}}}]
    backendRefs: [{{group: networking.istio.io, kind: Hostname, name: web.example.com, port: 80}}]
"
        )
    };
    for (credentials, expected) in [(true, "expose-headers: x-a"), (false, "expose-headers: *,x-a")] {
        let world = World::new(&format!("{web}{}", route(credentials))).await;
        let told = told(&ask(&world, "GET", "a.example", &[]).await);
        assert!(told.contains(&expected.to_owned()), "{credentials}: {told:?}");
    }
}

#[test]
fn what_lets_nobody_or_everybody_in_is_told() {
    let rule = |policy: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\nspec: {{hosts: [a.example], http: [{{corsPolicy: {policy}, directResponse: {{status: 200}}}}]}}\n"
        )
    };
    let route = |policy: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: a}}\nspec: {{parentRefs: [{{name: g}}], rules: [{{filters: [{{type: CORS, cors: {policy}}}]}}]}}\n"
        )
    };
    let any = "allowOrigins: [{exact: '*'}]";
    for (text, expected) in [
        (rule("{allowMethods: [GET]}"), Some("corsPolicy.allowOrigins: without effect: no page of another origin")),
        (
            rule(&format!("{{{any}, allowCredentials: true}}")),
            Some("corsPolicy.allowCredentials: pages of every origin may read"),
        ),
        (
            rule("{allowOrigins: [{regex: '.*'}], allowCredentials: true}"),
            Some("corsPolicy.allowCredentials: pages of every origin"),
        ),
        (rule(&format!("{{{any}}}")), None),
        (
            rule("{allowOrigins: [{exact: 'https://a'}], allowCredentials: true, exposeHeaders: ['*']}"),
            Some("corsPolicy.exposeHeaders: without effect: where there are credentials"),
        ),
        (rule("{allowOrigins: [{exact: 'https://a'}], exposeHeaders: ['*'], allowMethods: ['*']}"), None),
        (route("{}"), Some("filters[0].cors.allowOrigins: without effect: no page of another origin")),
        (
            route("{allowOrigins: ['*'], allowCredentials: true}"),
            Some("filters[0].cors.allowCredentials: pages of every origin"),
        ),
        (
            route("{allowOrigins: ['https://a'], allowCredentials: true, exposeHeaders: ['*']}"),
            Some("filters[0].cors.exposeHeaders: without effect"),
        ),
        (route("{allowOrigins: ['*'], exposeHeaders: ['*']}"), None),
    ] {
        let found: Vec<String> = validate([("a.yaml", text.as_str())]).iter().map(ToString::to_string).collect();
        let told: Vec<&String> = found
            .iter()
            .filter(|one| one.contains("ors") && (one.contains("credentials") || one.contains("another origin")))
            .collect();
        match expected {
            Some(expected) => assert!(told.len() == 1 && told[0].contains(expected), "{text}: {found:#?}"),
            None => assert!(told.is_empty(), "{text}: {found:#?}"),
        }
    }
}
