//! Tables of which request passes which condition, and a comparison of the index with a plain walk.

use http::Request;
use proptest::prelude::*;

use super::*;
use crate::model::{Fraction, FullRegex, RouteMatch};

fn request(method: &str, uri: &str, headers: &[(&str, &[u8])]) -> http::request::Parts {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

#[test]
fn the_most_specific_domain_has_the_request() {
    let host = |domains: &[&str]| VirtualHost {
        domains: domains.iter().map(|domain| domain.to_string()).collect(),
        ..VirtualHost::default()
    };
    let index = DomainIndex::new(&[
        host(&["*"]),
        host(&["*.com", "www.*"]),
        host(&["*.foo.com", "www.foo.*"]),
        host(&["www.foo.com", "Foo:80"]),
        host(&["Foo:*", "[::1]:*"]),
        host(&["foo:81*", "f*"]),
    ]);
    let cases = [
        ("www.foo.com", 3),
        ("WWW.foo.COM", 3),
        ("foo:80", 3),
        ("FOO:8080", 4),
        ("foo:8", 4),
        ("foo:8100", 5),
        ("foo:", 5),
        ("fo", 5),
        ("[::1]:9", 4),
        ("a.foo.com", 2),
        ("b.com", 1),
        ("www.foo.org", 2),
        ("www.bar.org", 1),
        (".com", 0),
        ("x", 0),
    ];
    for (authority, expected) in cases {
        assert_eq!(index.find(authority), Some(expected), "{authority}");
    }
    assert_eq!(DomainIndex::new(&[host(&["a"])]).find("b"), None);
}

#[test]
fn paths() {
    use PathTest::{Exact, Prefix, Regex, Separated};
    let text = |value: &str| value.to_owned();
    let cases = [
        (Prefix { value: text("/a"), ignore_case: false }, "/ab", true),
        (Prefix { value: text("/a?x"), ignore_case: false }, "/a?x=1", true),
        (Prefix { value: text("/A"), ignore_case: true }, "/ab", true),
        (Prefix { value: text("/A"), ignore_case: false }, "/ab", false),
        (Exact { value: text("/a"), ignore_case: false }, "/a?q", true),
        (Exact { value: text("/a"), ignore_case: false }, "/a/", false),
        (Exact { value: text("/A"), ignore_case: true }, "/a", true),
        (Regex(FullRegex::new("/a.*").unwrap()), "/abc?q", true),
        (Regex(FullRegex::new("/a").unwrap()), "/abc", false),
        (Separated { value: text("/a"), ignore_case: false }, "/a", true),
        (Separated { value: text("/a"), ignore_case: false }, "/a?q", true),
        (Separated { value: text("/a"), ignore_case: false }, "/a/b", true),
        (Separated { value: text("/a"), ignore_case: false }, "/ab", false),
        (Separated { value: text("/A"), ignore_case: true }, "/a/b", true),
    ];
    for (test, uri, expected) in cases {
        let parts = request("GET", uri, &[]);
        assert_eq!(path_matches(&test, &RequestHead::with_authority(&parts, "h")), expected, "{test:?} on {uri}");
        let index = RouteIndex::new([&RouteMatch { path: test.clone(), ..RouteMatch::any() }]).unwrap();
        let found = index.find(&RequestHead::with_authority(&parts, "h"), &mut fastrand::Rng::with_seed(1));
        assert_eq!(found.is_some(), expected, "the index on {test:?} and {uri}");
    }
}

#[test]
fn templates() {
    use TemplatePart::{Literal, Many, One};
    let literal = |text: &str| Literal(text.to_owned());
    let cases = [
        (vec![literal("a"), One], "/a/b", true),
        (vec![literal("a"), One], "/a/", false),
        (vec![literal("a"), One], "/a/b/c", false),
        // `*` is a legal character of a path (CVE-2025-46821).
        (vec![literal("a"), One], "/a/b*c", true),
        (vec![literal("a"), Many], "/a/b/c", true),
        (vec![literal("a"), Many], "/a", true),
        (vec![Many, literal("z")], "/a/b/z", true),
        (vec![Many, literal("z")], "/a/b/y", false),
        (vec![literal("a"), Many, literal("z"), One], "/a/z/z/q", true),
    ];
    for (parts, path, expected) in cases {
        let template = SegmentTemplate { parts };
        assert_eq!(template_matches(&template, path), expected, "{template:?} on {path}");
    }
}

#[test]
fn headers() {
    let name = |name: &str| std::sync::Arc::<str>::from(name);
    let exact = |header: &str, value: &str, invert, missing_is_empty| HeaderTest::Value {
        name: name(header),
        test: StringTest::Exact { value: value.into(), ignore_case: false },
        invert,
        missing_is_empty,
    };
    let range = |invert| HeaderTest::Range { name: name("n"), start: 1, end: 10, invert, missing_is_empty: false };
    let present = |header: &str, present| HeaderTest::Present { name: name(header), present };
    let plain: &[(&str, &[u8])] = &[("x", b"1"), ("n", b"9"), ("twice", b"a"), ("twice", b"b"), ("raw", b"a\xff")];
    let cases = [
        (exact("x", "1", false, false), true),
        (exact("X", "1", false, false), true),
        (exact("x", "2", false, false), false),
        (exact("x", "2", true, false), true),
        (exact("missing", "1", true, false), false),
        (exact("missing", "", false, true), true),
        (exact("missing", "1", true, true), true),
        // Each value by itself: a second one neither hides the first nor makes another of it.
        (exact("twice", "a", false, false), true),
        (exact("twice", "b", false, false), true),
        (exact("twice", "a,b", false, false), false),
        (exact("twice", "b", true, false), false),
        (exact("twice", "c", true, false), true),
        (exact(":method", "GET", false, false), true),
        (exact(":path", "/p?q", false, false), true),
        (exact(":authority", "h", false, false), true),
        (exact("host", "h", false, false), true),
        (exact(":scheme", "http", false, false), true),
        (range(false), true),
        (range(true), false),
        (HeaderTest::Range { name: name("x"), start: 2, end: 9, invert: true, missing_is_empty: false }, true),
        (present("x", true), true),
        (present("x", false), false),
        (present("missing", false), true),
        (
            HeaderTest::Value {
                name: name("raw"),
                test: StringTest::Prefix { value: "a".into(), ignore_case: false },
                invert: false,
                missing_is_empty: false,
            },
            true,
        ),
    ];
    let parts = request("GET", "/p?q", plain);
    for (test, expected) in cases {
        let field = Field::of(&test).unwrap();
        assert_eq!(header_matches(&field, &test, &RequestHead::with_authority(&parts, "h")), expected, "{test:?}");
    }
}

#[test]
fn query_parameters() {
    let exact = |value: &str| Some(StringTest::Exact { value: value.into(), ignore_case: false });
    let cases = [
        ("a", exact("1"), Some("a=1"), true),
        ("a", exact("1"), Some("b=2&a=1"), true),
        ("a", exact("2"), Some("a=1&a=2"), false),
        ("a", None, Some("a"), true),
        ("a", None, None, false),
        ("a", exact(""), Some("a"), true),
        ("a", exact("b=c"), Some("a=b=c"), true),
        ("a", exact("1"), Some("aa=1&&a=1&"), true),
        ("a", None, Some("aa&b=a"), false),
        ("a", None, Some(""), false),
        ("", None, Some("&&"), false),
        ("", exact("1"), Some("=1"), true),
    ];
    for (name, test, query, expected) in cases {
        let test = QueryTest { name: name.into(), test };
        assert_eq!(query_matches(&test, query), expected, "{test:?} on {query:?}");
    }
}

#[test]
fn a_fraction_takes_its_share_and_leaves_the_rest_to_the_next_route() {
    let tenth = RouteMatch { fraction: Some(Fraction::new(10, 100)), ..RouteMatch::any() };
    let index = RouteIndex::new([&tenth, &RouteMatch::any()]).unwrap();
    let parts = request("GET", "/", &[]);
    let mut random = fastrand::Rng::with_seed(7);
    let head = RequestHead::with_authority(&parts, "h");
    let taken = (0..10_000).filter(|_| index.find(&head, &mut random) == Some(0)).count();
    assert!((800..1200).contains(&taken), "{taken}");
}

#[test]
fn the_first_value_of_a_header_is_found_among_few_and_among_many() {
    for more in 0..3 * FEW_HEADERS {
        let names: Vec<String> = (0..more).map(|number| format!("x-{number}")).collect();
        let mut headers: Vec<(&str, &[u8])> =
            vec![("content-type", b"text/plain"), ("x-user", b"jo"), ("accept", b"*/*"), ("x-user", b"mo")];
        headers.extend(names.iter().map(|name| (name.as_str(), name.as_bytes())));
        let parts = request("GET", "http://h/", &headers);
        let head = RequestHead::of(&parts).unwrap();
        let first = |name: &str| Field::named(name).unwrap().first_value(&head);
        assert_eq!(first("X-User"), Some(&b"jo"[..]), "{more} more");
        assert_eq!(first("content-type"), Some(&b"text/plain"[..]), "{more} more");
        assert_eq!(first("x-none"), None, "{more} more");
        assert_eq!([":authority", "host", "HOST"].map(first), [Some(&b"h"[..]); 3], "{more} more");
        for name in &names {
            assert_eq!(first(name), Some(name.as_bytes()));
        }
    }
}

#[test]
fn two_thousand_routes_of_as_many_lengths_keep_their_order() {
    // Every third one is a prefix of the path, the longest first; none of the others is.
    let route = |position: usize| {
        let letter = if position.is_multiple_of(3) { "a" } else { "b" };
        RouteMatch {
            path: PathTest::Prefix { value: format!("/{}", letter.repeat(2_000 - position)), ignore_case: false },
            ..RouteMatch::any()
        }
    };
    let routes: Vec<RouteMatch> = (0..2_000).map(route).collect();
    let index = RouteIndex::new(&routes).unwrap();
    for (length, expected) in [(2_000, Some(0)), (1_999, Some(3)), (1_000, Some(1_002)), (2, Some(1_998)), (1, None)] {
        let parts = request("GET", &format!("/{}", "a".repeat(length)), &[]);
        let found = index.find(&RequestHead::with_authority(&parts, "h"), &mut fastrand::Rng::with_seed(1));
        assert_eq!(found, expected, "{length}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_index_finds_what_a_plain_walk_in_order_finds(
        routes in proptest::collection::vec(any_route("/[ab/]{0,4}|/[ab/?]{0,12}|"), 0..40),
        path in "/[ab/]{0,14}(\\?[ab/]{0,3})?",
        marked in any::<bool>(),
    ) {
        compare(&routes, &path, marked)?;
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// More keys that are starts of one another than are followed side by side.
    #[test]
    fn the_index_finds_the_first_of_many_nested_prefixes(
        routes in proptest::collection::vec(any_route("/a{0,60}"), 40..120),
        path in "/a{20,70}(/a)?",
        marked in any::<bool>(),
    ) {
        compare(&routes, &path, marked)?;
    }
}

/// A route of any kind, with a text that fits it and by turns with a header to ask for.
fn any_route(text: &'static str) -> impl Strategy<Value = RouteMatch> {
    (0..5u8, text, proptest::bool::weighted(0.2), proptest::bool::weighted(0.4)).prop_map(
        |(kind, value, ignore_case, marked)| {
            let path = match kind {
                0 => PathTest::Exact { value, ignore_case },
                1 | 2 => PathTest::Prefix { value, ignore_case },
                3 => PathTest::Separated { value: value.trim_end_matches('/').into(), ignore_case },
                _ => PathTest::Regex(FullRegex::new(&value.replace('?', "")).unwrap()),
            };
            let present = HeaderTest::Present { name: "marked".into(), present: true };
            RouteMatch { path, headers: marked.then_some(present).into_iter().collect(), ..RouteMatch::any() }
        },
    )
}

fn compare(routes: &[RouteMatch], path: &str, marked: bool) -> Result<(), TestCaseError> {
    let headers: &[(&str, &[u8])] = if marked { &[("marked", b"")] } else { &[] };
    let parts = request("GET", path, headers);
    let head = RequestHead::with_authority(&parts, "h");
    let walked = routes.iter().position(|route| {
        let mut headers = route.headers.iter();
        path_matches(&route.path, &head) && headers.all(|test| header_matches(&Field::of(test).unwrap(), test, &head))
    });
    let index = RouteIndex::new(routes).unwrap();
    prop_assert_eq!(index.find(&head, &mut fastrand::Rng::with_seed(1)), walked);
    let first = (0..routes.len()).find(|at| index.unmet(*at, &routes[*at], &head).is_none());
    prop_assert_eq!(first, walked, "what is said of each route before");
    Ok(())
}

#[test]
fn the_first_condition_that_a_request_does_not_meet_in_words() {
    let exact = |value: &str| StringTest::Exact { value: value.into(), ignore_case: false };
    let header = |name: &str, test: StringTest, invert| HeaderTest::Value {
        name: name.into(),
        test,
        invert,
        missing_is_empty: false,
    };
    let headers = |test: HeaderTest| RouteMatch { headers: vec![test], ..RouteMatch::any() };
    let query = |name: &str, test| RouteMatch { query: vec![QueryTest::new(name, test)], ..RouteMatch::any() };
    let path = RouteMatch::path;
    let cases = [
        (
            path(PathTest::Prefix { value: "/v2".into(), ignore_case: true }),
            r#"path: prefix "/v2" in any case, request has "/v1?a=1""#,
        ),
        (path(PathTest::Regex(FullRegex::new("/x.*").unwrap())), r#"path: regex "/x.*", request has "/v1?a=1""#),
        (
            path(PathTest::Template(SegmentTemplate {
                parts: vec![TemplatePart::Literal("a".into()), TemplatePart::One],
            })),
            r#"path: template "/a/{*}", request has "/v1?a=1""#,
        ),
        (headers(header("x-tier", exact("gold"), false)), r#"header x-tier: exact "gold", request has "silver""#),
        (headers(header("x-none", exact("gold"), false)), r#"header x-none: exact "gold", is absent"#),
        (
            headers(header("x-tier", exact("silver"), true)),
            r#"header x-tier: not exact "silver", request has "silver""#,
        ),
        (headers(header("twice", exact("c"), false)), r#"header twice: exact "c", request has "a" and "b""#),
        (headers(header(":method", exact("PUT"), false)), r#"header :method: exact "PUT", request has "GET""#),
        (
            headers(header("authorization", exact("x"), false)),
            r#"header authorization: exact "x", request has another"#,
        ),
        (
            headers(HeaderTest::Present { name: "x-tier".into(), present: false }),
            r#"header x-tier: absent, request has "silver""#,
        ),
        (query("a", Some(exact("2"))), r#"query parameter a: exact "2", request has "1""#),
        (query("b", None), "query parameter b: present, is absent"),
        (RouteMatch { grpc: true, ..RouteMatch::any() }, "header content-type: that of gRPC, is absent"),
        (
            RouteMatch { fraction: Some(Fraction::new(1, 1000)), ..RouteMatch::any() },
            "share: 0.1 % of requests, this one was not drawn",
        ),
    ];
    let own: &[(&str, &[u8])] =
        &[("x-tier", b"silver"), ("twice", b"a"), ("twice", b"b"), ("authorization", b"secret")];
    let parts = request("GET", "/v1?a=1", own);
    for (route, expected) in cases {
        let index = RouteIndex::new([&route]).unwrap();
        let unmet = index.unmet(0, &route, &RequestHead::with_authority(&parts, "h")).unwrap();
        assert_eq!(unmet.to_string(), expected);
        assert!(conditions(&route).contains(&format!("{}: {}", unmet.what, unmet.wanted)), "{expected}");
    }
}
