//! Rules on requests without code: what requests experience of them, and what is said of those that are wrong.

use mesh_control::analysis::validate;

use crate::plugins::World;

fn rules(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.mesh-control/v1alpha1\nkind: RequestRules\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n{spec}\n"
    )
}

/// Of the server `web`.
fn served(list: &str) -> String {
    rules("served", &format!("  selector: {{matchLabels: {{app: web}}}}\n  rules:\n{list}"))
}

const TENANTS: &str = "
  - name: no-tenant
    when: request.method == 'GET' && !has(request.headers['x-tenant'])
    deny: {status: 400, body: which tenant?}
  - name: blocked
    when: request.headers['x-tenant'] == 'mallory'
    deny: {}
  - name: gold
    when: request.headers['x-tenant'].startsWith('gold-')
    headers: {request: {set: {passed: gold}, remove: [wanted]}, response: {set: {returned: gold}}}
  - name: told
    when: response.code == 200 && response.headers['returned'] != 'gold'
    headers: {response: {set: {returned: plain}}}
";

#[tokio::test]
async fn rules_refuse_requests_and_change_their_headers_and_those_of_their_answers() {
    let world = World::new(&served(TENANTS)).await;
    let ask = async |headers: &[(&str, &str)]| {
        let answer = world.ask(headers).await;
        (answer.status, answer.body, answer.returned.join(","))
    };
    let is = |status: u16, body: &str, returned: &str| (status, body.to_owned(), returned.to_owned());
    assert_eq!(ask(&[]).await, is(400, "which tenant?", ""));
    assert_eq!(ask(&[("x-tenant", "mallory")]).await, is(403, "refused by a rule", ""));
    // Said twice, nobody can tell which one the application takes.
    assert_eq!(ask(&[("x-tenant", "a"), ("x-tenant", "mallory")]).await, is(403, "refused by a rule", ""));
    assert_eq!(ask(&[("x-tenant", "gold-1")]).await, is(200, "gold", "gold"));
    assert_eq!(ask(&[("x-tenant", "a")]).await, is(200, "", "plain"));
    // They come after policies, and change live.
    world.becomes(&served("  - {name: none, when: 'false', deny: {}}"), (200, "")).await;
    world.becomes(&served("  - {name: all, deny: {status: 418, body: 'all of them'}}"), (418, "all of")).await;
}

const ALLOWED: &str = "
  - name: staff
    when: request.headers['x-group'] == 'staff'
    allow: true
    headers: {request: {set: {passed: staff}}}
  - name: others
    deny: {status: 418}
  - name: told
    when: response.code == 200
    headers: {response: {set: {returned: told}}}
";

#[tokio::test]
async fn whom_a_rule_allows_the_rules_after_it_are_not_asked_about() {
    let world = World::new(&served(ALLOWED)).await;
    let answer = world.ask(&[("x-group", "staff")]).await;
    assert_eq!((answer.status, &*answer.body, answer.returned.join(",")), (200, "staff", "told".to_owned()));
    // In doubt nobody is allowed.
    for headers in [&[][..], &[("x-group", "guests")], &[("x-group", "staff"), ("x-group", "guests")]] {
        assert_eq!(world.ask(headers).await.status, 418, "{headers:?}");
    }
}

#[tokio::test]
async fn rules_of_a_client_are_for_what_it_calls() {
    let calls = |hosts: &str| {
        let list = "  rules: [{name: all, headers: {request: {set: {passed: client}}}}]";
        rules("calls", &format!("  mode: CLIENT\n{hosts}{list}"))
    };
    for (hosts, expected) in [
        ("", "client"),
        ("  hosts: [web.shop.svc.cluster.local]\n", "client"),
        ("  hosts: [other.shop.svc.cluster.local]\n", ""),
        ("  selector: {matchLabels: {app: web}}\n", ""),
    ] {
        let world = World::new(&calls(hosts)).await;
        assert_eq!(world.ask(&[]).await.body, expected, "{hosts}");
    }
}

fn limit(spec: &str) -> String {
    rules("limit", spec).replace("RequestRules", "RateLimit")
}

#[tokio::test]
async fn on_either_side_limits_count_what_rules_let_pass_as_they_have_made_it() {
    for (mode, app) in [("SERVER", "web"), ("CLIENT", "caller")] {
        let whose = format!("  mode: {mode}\n  selector: {{matchLabels: {{app: {app}}}}}\n  rules:\n");
        let list = "  - {name: bad, when: \"has(request.headers['x-bad'])\", deny: {}}\n  \
                    - {name: all, headers: {request: {set: {x-user: ada}}}}";
        let each = "  - {name: each, by: [{header: x-user}], limit: {requests: 1, per: 1h}}";
        let world =
            World::new(&[rules("made", &format!("{whose}{list}")), limit(&format!("{whose}{each}"))].concat()).await;
        for (headers, expected) in [(&[("x-bad", "1")][..], 403), (&[("x-bad", "1")], 403), (&[], 200), (&[], 429)] {
            assert_eq!(world.ask(headers).await.status, expected, "{mode} {headers:?}");
        }
    }
}

#[tokio::test]
async fn limits_of_calls_are_for_hosts_that_nothing_describes_too() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://localhost:{}/", listener.local_addr().unwrap().port());
    tokio::spawn(axum::serve(listener, axum::Router::new().fallback(async || "outside")).into_future());
    for (hosts, expected) in [("", 429), ("  hosts: [localhost]\n", 429), ("  hosts: [other.example.com]\n", 200)] {
        let spec = format!("  mode: CLIENT\n{hosts}  rules: [{{name: all, limit: {{requests: 1, per: 1h}}}}]");
        let world = World::new(&limit(&spec)).await;
        assert_eq!(world.ask_at(&uri, &[]).await.status, 200, "{hosts}");
        assert_eq!(world.ask_at(&uri, &[]).await.status, expected, "{hosts}");
    }
}

#[test]
fn a_rule_that_makes_no_sense_is_an_error_with_its_place() {
    for (rule, expected) in [
        (
            "{name: a, when: request.pth == '/', deny: {}}",
            "t.yaml:8:21: error[invalid-value]: RequestRules shop/served: rules[0].when: line 1, column 1: there is no attribute \
             request.pth here, there are request.method",
        ),
        (
            "{name: a, when: request.method == 5, deny: {}}",
            "rules[0].when: line 1, column 1: a string and an int cannot be compared",
        ),
        ("{name: a, when: request.path.matches('('), deny: {}}", "rules[0].when: line 1, column 22: invalid regex"),
        (
            "{name: a, when: response.code == 5, deny: {}}",
            "rules[0].when: is about the answer, which there is none of yet",
        ),
        (
            "{name: a, when: request.duration > duration('1s'), deny: {}}",
            "request.duration is not known to rules on requests",
        ),
        ("{name: a, deny: {status: 200}}", "rules[0].deny.status: 200 is not a status from 400 to 599"),
        ("{name: a, when: 'true', allow: true}", "rules[0].allow: there is no rule after it"),
        ("{name: a, allow: true}\n  - {name: b, deny: {}}", "rules[0].allow: without a condition, no rule after it"),
        (
            "{name: a, when: \"1 + 1 == 2\", allow: true}\n  - {name: b, deny: {}}",
            "rules[0].allow: without a condition, no rule after it",
        ),
        (
            "{name: a, when: request.method == 'GET', allow: true, deny: {}}\n  - {name: b, deny: {}}",
            "rules[0].deny: who is refused does not pass",
        ),
        (
            "{name: a, when: response.code == 5, allow: true}\n  - {name: b, deny: {}}",
            "rules[0].when: is about the answer",
        ),
        ("{name: a}", "rules[0].deny: nothing becomes of the requests that it is for"),
        (
            "{name: a, deny: {}, headers: {request: {set: {a: b}}}}",
            "rules[0].deny: who is refused has no other headers",
        ),
        (
            "{name: a, headers: {request: {set: {Content-Length: '1'}}}}",
            "rules[0].headers: \"Content-Length\" cannot be changed",
        ),
        ("{name: a, headers: {response: {set: {a b: c}}}}", "rules[0].headers: \"a b\" is not a header name"),
        ("{name: a, deny: {}, else: 1}", "rules[0].else: unknown field"),
    ] {
        let text = served(&format!("  - {rule}"));
        let found = validate([("t.yaml", text.as_str())]);
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|finding| finding.contains(expected)), "{rule}: {found:#?}");
        assert!(found.iter().any(|finding| finding.contains("answer every request with 503")), "{rule}: {found:#?}");
    }
    let long = format!("{{name: a, when: \"{}\", deny: {{}}}}", vec!["true"; 200].join(" && "));
    let found = validate([("t.yaml", served(&format!("  - {long}")).as_str())]);
    assert!(found.iter().any(|finding| finding.message.contains("256 parts at most")), "{found:?}");
    // What it says is done, and was hardly meant.
    for (list, expected) in [
        (
            "{name: a, when: 'false', deny: {}}",
            "info[advice]: RequestRules shop/served: rules[0]: it is for no request, whatever comes",
        ),
        (
            "{name: a, deny: {}}\n  - {name: b, when: request.method == 'PUT', deny: {status: 400}}",
            "warning[conflict]: RequestRules shop/served: rules[1]: never asked: `a` refuses every request",
        ),
        (
            "{name: a, when: 'true', deny: {}}\n  - {name: b, headers: {request: {remove: [x]}}}",
            "rules[1]: never asked",
        ),
    ] {
        let found = validate([("t.yaml", served(&format!("  - {list}")).as_str())]);
        let found: Vec<String> = found.iter().map(ToString::to_string).filter(|one| one.contains("rules[")).collect();
        assert!(matches!(&found[..], [one] if one.contains(expected)), "{list}: {found:#?}");
    }
    let text = served(
        "  - {name: a, deny: {}}\n  - {name: b, when: response.code == 403, headers: {response: {remove: [x]}}}",
    );
    let found = validate([("t.yaml", text.as_str())]);
    assert!(!found.iter().any(|one| one.message.contains("never asked")), "{found:#?}");
    // What is only for calls stops no server, and fails the calls.
    let found = validate([("t.yaml", rules("calls", "  mode: CLIENT\n  rules: []").as_str())]);
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(found.iter().any(|finding| finding.contains("there is no rule")), "{found:#?}");
    assert!(found.iter().any(|finding| finding.contains("have each of their calls fail with 500")), "{found:#?}");
    assert!(!found.iter().any(|finding| finding.contains("503")), "{found:#?}");
}
