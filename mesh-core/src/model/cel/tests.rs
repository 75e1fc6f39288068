use std::borrow::Cow;

use super::*;

/// A request: `GET /api/v1beta3/x?a=1`, answered with 503 after 1.5 s.
struct Request;

impl Facts for Request {
    fn get(&self, attribute: CelAttribute) -> Option<CelValue<'_>> {
        Some(match attribute {
            CelAttribute::RequestMethod => CelValue::Text("GET".into()),
            CelAttribute::RequestUrlPath => CelValue::Text("/api/v1beta3/x".into()),
            CelAttribute::RequestDuration => CelValue::Duration(1_500_000_000),
            CelAttribute::ResponseCode => CelValue::Int(503),
            CelAttribute::ResponseFlags => CelValue::Int(2),
            CelAttribute::ConnectionMtls => CelValue::Bool(true),
            _ => return None,
        })
    }

    fn entry(&self, map: CelAttribute, key: &str) -> Option<Cow<'_, str>> {
        let is_it = map == CelAttribute::RequestHeaders && key == "x-user";
        is_it.then_some("jason".into())
    }
}

#[test]
fn what_istios_users_write_is_evaluated() {
    for (text, expected) in [
        ("response.code >= 400", true),
        ("response.code >= 400 && response.code < 500", false),
        ("connection.mtls && request.url_path.contains('v1beta3')", true),
        ("!has(request.headers['x'])", true),
        ("has(request.headers['x-user'])", true),
        ("has(request.headers.host)", false),
        ("'x-user' in request.headers && !('x' in request.headers)", true),
        ("request.method == 'GET'", true),
        ("request.method in ['POST', \"GET\"]", true),
        ("request.method in []", false),
        ("request.duration > duration('1s')", true),
        ("request.duration < duration('1s500ms') + duration('1ns')", true),
        ("response.flags != 0", true),
        ("request.url_path.startsWith('/api') && request.url_path.endsWith(\"/x\")", true),
        ("request.url_path.matches('v[0-9]+beta')", true),
        ("request.url_path.matches('^v[0-9]+beta')", false),
        ("request.headers['x-user'].matches(r'^ja\\w+$')", true),
        ("request.method == 'GET' ? response.code > 500 : true", true),
        ("!has(request.useragent) || !request.useragent.startsWith('kube-probe')", true),
        ("request.headers['x-user'] + '!' == 'jason!'", true),
        ("size(request.method) == 3 && request.method.size() - 1 == 2", true),
        ("string(response.code) == '503' && int('5') * 100 <= response.code % 1000", true),
        ("-1 < 0 && 0x10 == 16 && 1.5 > 1", true),
        // What is not there decides nothing; the other side may.
        ("request.headers['x'] == 'a'", false),
        ("request.headers['x'] != 'a'", false),
        ("request.headers['x'] == 'a' || response.code == 503", true),
        ("!(request.headers['x'] == 'a' && response.code == 200)", true),
        ("9223372036854775807 + 1 > 0 || false", false),
        ("response.code / 0 == 1", false),
    ] {
        let expression = CelExpression::condition(text).unwrap_or_else(|fault| panic!("{text}: {fault}"));
        assert_eq!(expression.holds(&Request), expected, "{text}");
    }
}

#[test]
fn what_is_not_known_or_makes_no_sense_is_told_with_its_place() {
    let deep = format!("{}true{}", "(".repeat(40), ")".repeat(40));
    let bangs = format!("{}true", "!".repeat(100));
    let many = vec!["true"; 200].join(" && ");
    for (text, line, column, expected) in [
        ("response.cod >= 400", 1, 1, "there are response.code, "),
        ("a && b", 1, 1, "no attribute a "),
        ("request.host == shop", 1, 17, "request, response, source, upstream, xds, and a text is in quotes: 'shop'"),
        ("response.code >= 400 &&\n  request.foo == ''", 2, 3, "no attribute request.foo"),
        ("response.code == '404'", 1, 1, "an int and a string cannot be compared"),
        ("response.code", 1, 1, "a condition is a bool"),
        ("!response.code", 1, 2, "expected a bool, found an int"),
        ("request.method.lower() == 'get'", 1, 16, "the function lower is not supported"),
        ("timestamp('x') > request.time", 1, 1, "the function timestamp is not supported"),
        ("request.method = 'GET'", 1, 16, "'=' is not expected in an expression; did you mean `==`?"),
        ("true & false", 1, 6, "did you mean `&&`?"),
        ("request.method == 'GET", 1, 19, "has no end"),
        ("request.method == \"a\\x\"", 1, 21, "escaped quotes"),
        ("request.url_path.matches('(')", 1, 26, "invalid regex"),
        ("request.url_path.matches(request.host)", 1, 26, "written out"),
        ("request.headers == 'x'", 1, 1, "a map and a string"),
        ("has(request.headers)", 1, 5, "takes a field"),
        ("has(request.headers[request.host])", 1, 1, "written out"),
        ("response.code in ['a']", 1, 19, "this is a string"),
        ("response.code > 400u", 1, 17, "unsigned"),
        ("response.code > 4x", 1, 17, "not a number"),
        ("1 < 2 < 3", 1, 1, "in a row"),
        ("true true", 1, 6, "`true` is not expected here"),
        ("(true", 1, 6, "expected `)`, found the end"),
        ("", 1, 1, "expected a value, found the end"),
        ("duration('1 day') > request.duration", 1, 10, "not a duration"),
        (&deep, 1, 33, "32 deep"),
        (&bangs, 1, 33, "32 deep"),
        (&many, 1, 1, "256 parts"),
    ] {
        let fault = CelExpression::condition(text).expect_err(text);
        assert!(fault.message.contains(expected), "{text}: {fault}");
        assert_eq!((fault.line, fault.column), (line, column), "{text}: {fault}");
    }
    assert!(CelExpression::condition(&" ".repeat(5000)).unwrap_err().message.contains("longer than"));
}

#[test]
fn it_is_handed_on_in_the_words_of_the_standard() {
    for (text, expected) in [
        (
            "!has(request.headers['x']) || has(request.headers[\"y\"])",
            "!('x' in request.headers) || (\"y\" in request.headers)",
        ),
        ("has(request.headers.x)", "has(request.headers.x)"),
        ("response.code >= 400", "response.code >= 400"),
    ] {
        let expression = CelExpression::condition(text).unwrap();
        assert_eq!(expression.text(), expected);
        let again = CelExpression::condition(expression.text()).unwrap();
        assert_eq!((again.text(), again.holds(&Request)), (expected, expression.holds(&Request)));
    }
}

#[test]
fn a_value_is_shown_as_a_text() {
    for (text, expected) in [
        ("request.method", Some("GET")),
        ("'literal'", Some("literal")),
        ("response.code", Some("503")),
        ("connection.mtls ? 'yes' : 'no'", Some("yes")),
        ("request.headers['none']", None),
        ("request.duration", Some("1.5s")),
    ] {
        assert_eq!(CelExpression::label(text).unwrap().show(&Request).as_deref(), expected, "{text}");
    }
    assert!(CelExpression::label("request.headers['a']").unwrap().needs_head());
    assert!(!CelExpression::label("response.code").unwrap().needs_head());
}

#[test]
fn what_a_client_has_anew_whenever_it_likes_tells_no_requests_apart() {
    for text in ["source.address", "source.port", "request.id", "request.method + source.address"] {
        let fault = CelExpression::key(text).expect_err(text);
        assert!(fault.to_string().contains("is new with each connection or request"), "{text}: {fault}");
    }
    // A client may leave the header out, and is counted then as well.
    CelExpression::key("has(request.headers['x-plan']) ? request.headers['x-plan'] : 'none'").unwrap();
    CelExpression::rule("source.address == '10.0.0.1:80'").unwrap();
}

/// Facts that count how often they are asked for.
struct Asked(std::cell::Cell<usize>);

impl Facts for Asked {
    fn get(&self, _: CelAttribute) -> Option<CelValue<'_>> {
        self.0.set(self.0.get() + 1);
        Some(CelValue::Text("/a".into()))
    }

    fn entry(&self, _: CelAttribute, _: &str) -> Option<Cow<'_, str>> {
        self.0.set(self.0.get() + 1);
        None
    }

    fn are_total(&self) -> bool {
        true
    }
}

/// Such an expression once took twice as long with each bracket.
#[test]
fn each_part_of_an_expression_is_asked_once_however_deep_it_stands() {
    for test in ["contains('z')", "startsWith('z')", "matches('z')"] {
        for start in ["request.url_path", "request.headers['none']"] {
            let nested = (0..20).fold(start.to_owned(), |text, _| format!("({text}.{test} ? 'y' : 'x')"));
            let asked = Asked(std::cell::Cell::new(0));
            let expression = CelExpression::rule(&format!("{nested} == 'x'")).unwrap();
            assert_eq!((expression.is_true(&asked), asked.0.get()), (Some(true), 1), "{nested}");
        }
    }
}
