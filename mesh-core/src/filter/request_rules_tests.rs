use std::time::Instant;

use http::{HeaderName, HeaderValue, Request};
use serde_json::json;

use super::*;
use crate::jwt::Claims;
use crate::model::{HeaderChange, Refusal};
use crate::request_info::Observers;

/// `POST /items/7?debug=1` to `web`, by `spiffe://cluster.local/ns/shop/sa/caller` with a token.
fn info() -> RequestInfo {
    let mut info = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
    info.observe(&Observers::from([]), Direction::Inbound, &http::Method::POST);
    info.note_authority("web:80");
    info.note_peer("10.0.0.1:5".parse().unwrap());
    let claims = json!({
        "iss": "https://issuer", "sub": "me", "tier": "gold", "age": 7, "groups": ["dev", "ops"],
        "realm": {"role": "admin"}, "https://acme.example/tenant": "a"
    });
    let tokens = [Claims::unverified(claims.as_object().unwrap().clone(), &[].into())];
    info.note_client(Some(&"spiffe://cluster.local/ns/shop/sa/caller".parse().unwrap()), &tokens);
    info
}

fn head() -> request::Parts {
    let request = Request::post("/items/7?debug=1").header("host", "web:80").header("x-user", "jason");
    let request = request.header("twice", "a").header("twice", "b").header("bytes", &b"\xff"[..]).header("n", "12");
    request.body(()).unwrap().into_parts().0
}

/// The same over HTTP/2, where no header says whom it is for.
fn head_of_http2() -> request::Parts {
    let mut head = head();
    head.headers.remove("host");
    (head.uri, head.version) = ("http://web:80/items/7?debug=1".parse().unwrap(), http::Version::HTTP_2);
    head
}

/// Whether the request is refused, if the condition of a rule does that.
fn refused(when: &str) -> bool {
    refuses(when, head())
}

fn refuses(when: &str, mut head: request::Parts) -> bool {
    let mut rule = RequestRule::new("r");
    rule.when = Some(CelExpression::rule(when).unwrap_or_else(|fault| panic!("{when}: {fault}")));
    rule.deny = Some(Refusal::new(StatusCode::FORBIDDEN, "no"));
    let filter = RequestRulesFilter::new(&Arc::new(RequestRules::new(vec![rule])));
    matches!(filter.on_request(&mut info(), &mut head), Decision::Reply(_))
}

/// It was not over HTTP/2, so that a client chose whether a rule was for it.
#[test]
fn whom_a_request_is_for_is_known_by_every_name_in_every_protocol() {
    for name in [":authority", "host", "Host", "HOST"] {
        for head in [head, head_of_http2] {
            assert!(refuses(&format!("request.headers['{name}'] == 'web:80'"), head()), "{name}");
            assert!(refuses(&format!("'{name}' in request.headers"), head()), "{name}");
        }
    }
    assert!(refuses("has(request.headers.host) && request.headers[':scheme'] == 'http'", head_of_http2()));
    // One that nobody is named in has none.
    let mut nobody = head();
    nobody.headers.remove("host");
    assert!(!refuses("'host' in request.headers || request.headers['host'] == ''", nobody));
}

#[test]
fn what_is_never_so_is_told_with_its_place() {
    for (when, column, expected) in [
        ("request.headers[':scheme2'] == 'a'", 1, "there is no header :scheme2 in request.headers"),
        ("true || 'a b' in request.headers", 9, "there is no header a b in request.headers"),
        ("response.headers[':status'] == '500'", 1, "there is no header :status in response.headers"),
        ("request.method == 'post'", 19, "no request has the method post; did you mean POST?"),
        ("request.method in ['PUT', 'Delete']", 27, "no request has the method Delete; did you mean DELETE?"),
        ("request.headers[':method'] != 'get'", 31, "did you mean GET?"),
        ("'spiffe://td/ns/a/sa/b' == source.principal", 1, "a principal is written without spiffe://"),
        ("connection.uri_san_peer_certificate == 'td/ns/a/sa/b'", 40, "it begins with spiffe://"),
        ("request.url_path == '/a?b=1'", 21, "it has no query: request.path has"),
        ("request.protocol == 'HTTP/2.0'", 21, "it is HTTP/1.0, HTTP/1.1 or HTTP/2"),
    ] {
        let fault = CelExpression::rule(when).expect_err(when);
        assert!(fault.message.contains(expected) && fault.column == column, "{when}: {fault}");
    }
    for when in [
        "request.method == 'PURGE' && connection.uri_san_peer_certificate != ''",
        "request.method == request.headers['x-method']",
        "request.url_path.startsWith('/a?')",
    ] {
        CelExpression::rule(when).unwrap_or_else(|fault| panic!("{when}: {fault}"));
    }
    // A log decides about nothing, and is for Envoys, too; a scheme is not kept for it.
    CelExpression::condition("request.method == 'get'").unwrap();
    CelExpression::condition("request.headers[':scheme'] == 'http'").unwrap_err();
}

#[test]
fn a_condition_knows_the_request_its_client_and_its_tokens() {
    for (when, expected) in [
        ("request.method == 'POST' && request.url_path.startsWith('/items/') && request.query == 'debug=1'", true),
        ("request.path == '/items/7?debug=1' && request.host == 'web:80'", true),
        ("request.headers['x-user'] == 'jason' && request.headers['X-User'] == 'jason'", true),
        ("request.headers[':path'] == request.path && request.headers[':authority'] == 'web:80'", true),
        ("request.headers['Host'] == 'web:80' && has(request.headers['host'])", true),
        ("request.headers[':scheme'] == 'http' && ':scheme' in request.headers", true),
        ("source.principal == 'cluster.local/ns/shop/sa/caller' && source.namespace == 'shop'", true),
        ("connection.mtls && source.address == '10.0.0.1:5' && source.port == 5", true),
        ("request.auth.principal == 'https://issuer/me'", true),
        ("request.auth.claims['tier'] == 'gold' && request.auth.claims.age == '7'", true),
        (
            "request.auth.claims['realm.role'] == 'admin' && request.auth.claims['https://acme.example/tenant'] == 'a'",
            true,
        ),
        ("'ops' in request.auth.claims['groups'] && !('qa' in request.auth.claims['groups'])", true),
        ("'gold' in request.auth.claims.tier && !('x' in request.auth.claims['none'])", true),
        ("int(request.headers['n']) > 11", true),
        // What is not there is unequal to everything.
        ("request.headers['none'] == 'a'", false),
        ("request.headers['none'] != 'a'", true),
        ("request.headers['none'].startsWith('a') || request.headers['none'].matches('.*')", false),
        ("!request.headers['none'].contains('a')", true),
        ("has(request.headers['none']) || 'none' in request.headers || request.headers['none'] in ['a', 'b']", false),
        ("request.auth.claims['none'] == 'a'", false),
        (
            "!has(request.headers['twice']) || !has(request.headers['bytes']) || !has(request.auth.claims['groups'])",
            false,
        ),
        // In doubt it refuses.
        ("request.headers['twice'] == 'c'", true),
        ("request.headers['bytes'] == 'c'", true),
        ("request.headers['bytes'] != 'c'", true),
        ("request.auth.claims['groups'] == 'c'", true),
        ("int(request.headers['x-user']) > 5", true),
        ("int(request.headers['x-user']) == 5", true),
        ("9223372036854775807 + int(request.headers['n']) in [5]", true),
        // What is not asked leaves none.
        ("request.method == 'GET' && request.headers['twice'] == 'c'", false),
    ] {
        assert_eq!(refused(when), expected, "{when}");
    }
}

#[test]
fn what_a_rule_cannot_know_is_refused_with_its_place() {
    for (when, column, expected) in [
        ("request.duration > duration('1s')", 1, "request.duration is not known to rules"),
        ("request.method == 'GET' || upstream.address == 'a'", 28, "upstream.address is not known to rules"),
        (
            "response.code == 500 && request.path == '/'",
            25,
            "request.path is not known any more when there is an answer",
        ),
        ("request.headers['a'] == response.headers['b']", 1, "request.headers is not known any more"),
        ("request.auth.claim['a'] == 'b'", 1, "there are request.method"),
        ("'a' in request.headers['b']", 8, "expected a list in brackets"),
        ("request.headers[':protocol'] == 'websocket'", 1, "there is no header :protocol in request.headers"),
        ("!has(request.headers['x user'])", 6, "there is no header x user in request.headers"),
        ("'x:user' in request.headers", 1, "there is no header x:user in request.headers"),
    ] {
        let fault = CelExpression::rule(when).expect_err(when);
        assert!(fault.message.contains(expected) && fault.column == column, "{when}: {fault}");
    }
    // And the other way round.
    let fault = CelExpression::condition("source.principal == 'a'").unwrap_err();
    assert!(
        fault.message.contains("source.principal is known to rules on requests and to labels of metrics only"),
        "{fault}"
    );
    assert!(CelExpression::rule("response.code >= 500 && request.method == 'GET'").unwrap().looks_at_answer());
}

#[test]
fn headers_change_where_a_condition_holds_and_later_rules_see_it() {
    let set = |name: &'static str, value: &'static str| {
        HeaderChange::Set(HeaderName::from_static(name), HeaderValue::from_static(value).into())
    };
    let rule = |when: &str| {
        let mut rule = RequestRule::new("r");
        rule.when = (!when.is_empty()).then(|| CelExpression::rule(when).unwrap());
        rule
    };
    let mut rules = vec![rule("request.auth.claims['tier'] == 'gold'"), rule("request.headers['x-tier'] == 'gold'")];
    rules[0].request = vec![HeaderChange::Remove(HeaderName::from_static("x-user")), set("x-tier", "gold")];
    rules[1].response = [set("x-seen", "yes")].into();
    // In doubt, nothing changes.
    rules.push(rule("request.headers['twice'] != 'c'"));
    rules[2].request = vec![set("x-doubt", "yes")];
    rules.push(rule("response.code >= 500 && response.headers['retry'] != 'no' && request.method == 'POST'"));
    rules[3].response = [set("x-failed", "yes"), HeaderChange::Remove(HeaderName::from_static("server"))].into();
    let filter = RequestRulesFilter::new(&Arc::new(RequestRules::new(rules)));
    for (status, failed) in [(200, false), (503, true)] {
        let (mut info, mut head) = (info(), head());
        assert!(matches!(filter.on_request(&mut info, &mut head), Decision::Continue));
        assert!(!head.headers.contains_key("x-user") && !head.headers.contains_key("x-doubt"));
        assert_eq!(head.headers["x-tier"], "gold");
        let (mut answer, ()) =
            http::Response::builder().status(status).header("server", "a").body(()).unwrap().into_parts();
        filter.on_response(&mut info, &mut answer);
        assert_eq!(answer.headers["x-seen"], "yes");
        assert_eq!((answer.headers.contains_key("x-failed"), !answer.headers.contains_key("server")), (failed, failed));
    }
}

#[test]
fn a_request_of_an_old_version_is_known_as_such() {
    let (mut info, mut head) = (info(), head());
    for (version, shown) in [(http::Version::HTTP_10, "HTTP/1.0"), (http::Version::HTTP_2, "HTTP/2")] {
        let mut rule = RequestRule::new("r");
        rule.when = Some(CelExpression::rule(&format!("request.protocol == '{shown}'")).unwrap());
        rule.deny = Some(Refusal::new(StatusCode::FORBIDDEN, "no"));
        let filter = RequestRulesFilter::new(&Arc::new(RequestRules::new(vec![rule])));
        head.version = version;
        assert!(matches!(filter.on_request(&mut info, &mut head), Decision::Reply(_)), "{shown}");
    }
}
