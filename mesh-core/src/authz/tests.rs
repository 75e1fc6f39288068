//! The rules, one by one; and random policies and requests against an evaluator that is slow and obvious.

use std::net::SocketAddr;

use http::{HeaderMap, Request};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::{
    ClaimTest, FullRegex, HeaderTest, IpPrefix, PeerTest, RbacCondition, RbacPolicy, SegmentTemplate, StringTest,
    TemplatePart, TokenTest,
};

use RbacCondition::{
    All, Always, Any, DestinationIp, DestinationPort, Header, Not, Path, PathTemplate, RemoteIp, ServerName, SourceIp,
};

fn exact(value: &str) -> StringTest {
    StringTest::Exact { value: value.to_owned(), ignore_case: false }
}

fn regex(pattern: &str) -> StringTest {
    StringTest::Regex(FullRegex::new(pattern).expect("an expression"))
}

fn header(name: &str, test: StringTest) -> RbacCondition {
    Header(HeaderTest::Value { name: name.into(), test, invert: false, missing_is_empty: false })
}

fn not(condition: RbacCondition) -> RbacCondition {
    Not(Box::new(condition))
}

fn peer(test: PeerTest) -> RbacCondition {
    RbacCondition::Peer(test)
}

/// A request by its parts.
#[derive(Clone, Debug)]
struct Asked {
    request: Request<()>,
    peer: Option<SpiffeId>,
    source: SocketAddr,
    /// Where that is another one.
    remote: Option<SocketAddr>,
    destination: SocketAddr,
    server_name: Option<&'static str>,
    token: Option<Claims>,
}

impl Asked {
    fn new(method: &str, uri: &str) -> Asked {
        Asked {
            request: Request::builder().method(method).uri(uri).body(()).expect("a request"),
            peer: None,
            source: "10.0.0.1:5000".parse().expect("an address"),
            remote: None,
            destination: "10.0.0.2:8080".parse().expect("an address"),
            server_name: None,
            token: None,
        }
    }

    fn get(uri: &str) -> Asked {
        Asked::new("GET", uri)
    }

    fn with(mut self, name: &'static str, value: &[u8]) -> Asked {
        self.request.headers_mut().append(name, http::HeaderValue::from_bytes(value).expect("a value"));
        self
    }

    fn of(mut self, id: &str) -> Asked {
        self.peer = Some(id.parse().expect("an ID"));
        self
    }

    fn ask<T>(&self, ask: impl FnOnce(&AccessRequest<'_>) -> T) -> T {
        let (method, uri, headers) = (self.request.method(), self.request.uri(), self.request.headers());
        let connection = Connection {
            peer: self.peer.as_ref(),
            source: self.source,
            remote: self.remote.unwrap_or(self.source),
            destination: self.destination,
            server_name: self.server_name,
        };
        let head = Some(RequestHead::of_parts(method, uri, headers));
        ask(&AccessRequest { head, connection: Some(connection), tokens: self.token.as_slice() })
    }
}

fn filter(action: RbacAction, policies: &[(&str, RbacPolicy)]) -> Arc<Authorizer> {
    let mut rules = RbacRules::new(action);
    rules.policies = policies.iter().map(|(name, policy)| ((*name).into(), policy.clone())).collect();
    Arc::new(Authorizer::new(&Rbac { rules: Some(rules), shadow_rules: None, ..Rbac::default() }).expect("valid"))
}

/// Whether a request is let in by ALLOW of this condition, and by DENY of it.
fn both(condition: &RbacCondition, asked: &Asked) -> (bool, bool) {
    let let_in = |action| {
        let policy = RbacPolicy::new([condition.clone()], [Always]);
        asked.ask(|request| verdict(&[filter(action, &[("p", policy)])], request).is_allowed)
    };
    (let_in(RbacAction::Allow), let_in(RbacAction::Deny))
}

/// Matches for sure: let in by ALLOW, refused by DENY.
const YES: (bool, bool) = (true, false);
/// Does not match for sure.
const NO: (bool, bool) = (false, true);
/// Nobody is let in.
const DOUBT: (bool, bool) = (false, false);

fn check(condition: RbacCondition, asked: Asked, expected: (bool, bool)) {
    assert_eq!(both(&condition, &asked), expected, "{condition:?} on {asked:?}");
}

/// The same with its negation, which is as doubtful as what it negates.
fn check_both(condition: RbacCondition, asked: Asked, expected: (bool, bool)) {
    let negated = if expected == DOUBT { DOUBT } else { (!expected.0, !expected.1) };
    check(not(not(condition.clone())), asked.clone(), expected);
    check(not(condition.clone()), asked.clone(), negated);
    check(condition, asked, expected);
}

#[test]
fn the_first_policy_that_matches_is_named_and_the_first_filter_that_refuses_decides() {
    let any = || RbacPolicy::new([Always], [Always]);
    let none = || RbacPolicy::new([not(Always)], [Always]);
    let deny = filter(RbacAction::Deny, &[("d#0", none()), ("d#1", any()), ("d#2", any())]);
    let harmless = filter(RbacAction::Deny, &[("d#0", none())]);
    let allow = filter(RbacAction::Allow, &[("a#0", none()), ("a#1", any())]);
    let nobody = filter(RbacAction::Allow, &[]);
    let log = filter(RbacAction::Log, &[("l#0", any())]);
    let cases = [
        (&[][..], true, None),
        (&[&nobody], false, None),
        (&[&deny, &allow], false, Some("d#1")),
        (&[&harmless, &allow], true, Some("a#1")),
        (&[&harmless, &nobody], false, None),
        (&[&log, &allow], true, Some("a#1")),
        (&[&log, &nobody], false, None),
    ];
    for (filters, is_allowed, policy) in cases {
        let filters: Vec<_> = filters.iter().map(|filter| Arc::clone(filter)).collect();
        Asked::get("http://h/").ask(|request| {
            let verdict = verdict(&filters, request);
            assert_eq!((verdict.is_allowed, verdict.policy), (is_allowed, policy), "{filters:?}");
        });
    }
}

#[test]
fn what_is_only_tried_is_told_of_and_changes_nothing() {
    let rules = |action, matches: bool| {
        let mut rules = RbacRules::new(action);
        let condition = if matches { Always } else { not(Always) };
        rules.policies.insert("try".into(), RbacPolicy::new([condition], [Always]));
        Some(rules)
    };
    for enforced in [None, rules(RbacAction::Deny, true), rules(RbacAction::Allow, true)] {
        for (tried, shadow) in [
            (None, None),
            (rules(RbacAction::Deny, true), Some((false, Some("try")))),
            (rules(RbacAction::Deny, false), Some((true, None))),
            (rules(RbacAction::Allow, false), Some((false, None))),
            (Some(RbacRules::new(RbacAction::Allow)), Some((false, None))),
        ] {
            let alone = Authorizer::new(&Rbac { rules: enforced.clone(), shadow_rules: None, ..Rbac::default() })
                .expect("valid");
            let both = Authorizer::new(&Rbac { rules: enforced.clone(), shadow_rules: tried, ..Rbac::default() })
                .expect("valid");
            Asked::get("http://h/").ask(|request| {
                let (alone, both) = ([Arc::new(alone)], [Arc::new(both)]);
                let (alone, both) = (verdict(&alone, request), verdict(&both, request));
                assert_eq!((alone.is_allowed, alone.policy), (both.is_allowed, both.policy));
                assert_eq!(both.shadow.map(|shadow| (shadow.is_allowed, shadow.policy)), shadow);
            });
        }
    }
}

#[test]
fn a3_a4_a_path_is_without_query_and_fragment() {
    for uri in ["http://h/admin", "http://h/admin?x", "http://h/admin?", "http://h/admin#x", "/admin?x#y"] {
        check_both(Path(exact("/admin")), Asked::get(uri), YES);
    }
    check_both(Path(exact("/admin")), Asked::get("http://h/admin/"), NO);
}

#[test]
fn a7_a_star_is_a_character_of_paths() {
    let literal = |text: &str| TemplatePart::Literal(text.to_owned());
    let one = SegmentTemplate { parts: vec![literal("a"), TemplatePart::One] };
    for (uri, expected) in [("/a/b*c", YES), ("/a/*", YES), ("/a/", NO), ("/a", NO), ("/a/b/c", NO)] {
        check_both(PathTemplate(one.clone()), Asked::get(uri), expected);
    }
    let many = SegmentTemplate { parts: vec![literal("a"), TemplatePart::Many, literal("z")] };
    for (uri, expected) in [("/a/b/z", YES), ("/a/b/c/z", YES), ("/a//z", YES), ("/a/z", DOUBT), ("/a/z/b", NO)] {
        check_both(PathTemplate(many.clone()), Asked::get(uri), expected);
    }
}

#[test]
fn a9_a_host_is_the_same_in_any_case_with_any_port_and_with_a_dot_at_the_end() {
    let host = |value: &str| header(":authority", exact(value));
    for uri in ["http://httpbin.foo/", "http://Httpbin.Foo/", "http://httpbin.foo:8080/", "http://httpbin.foo.:8080/"] {
        check_both(host("httpbin.foo"), Asked::get(uri), YES);
        check_both(host("HTTPBIN.foo"), Asked::get(uri), YES);
        check_both(header("host", exact("httpbin.foo")), Asked::get(uri), YES);
    }
    for written in ["httpbin.foo.", "httpbin.foo:", "httpbin.foo.:"] {
        check_both(host("httpbin.foo"), Asked::get("/").with("host", written.as_bytes()), YES);
    }
    check_both(host("httpbin.foo"), Asked::get("http://httpbin.foo.bar/"), NO);
    check_both(host("httpbin.foo:80"), Asked::get("http://httpbin.foo:8080/"), NO);
    check_both(host("httpbin.foo:80"), Asked::get("http://httpbin.foo.:80/"), YES);
    check_both(host("[::1]"), Asked::get("http://[::1]:80/"), YES);
    let suffix = header(":authority", StringTest::Suffix { value: ".foo".into(), ignore_case: true });
    check_both(suffix, Asked::get("http://a.FOO.:1/"), YES);
}

#[test]
fn a11_of_several_values_one_is_enough_to_be_refused_and_all_are_needed_to_be_let_in() {
    let several = || Asked::get("/").with("x-role", b"user").with("x-role", b"admin");
    check(header("x-role", exact("admin")), several(), DOUBT);
    check(header("x-role", exact("user")), several(), DOUBT);
    check(not(header("x-role", exact("admin"))), several(), DOUBT);
    check_both(header("x-role", exact("user,admin")), several(), DOUBT);
    check_both(header("x-role", exact("other")), several(), NO);
    check_both(header("X-Role", regex("[a-z,]+")), several(), YES);
    // In HTTP/2 a cookie may come in crumbs.
    let crumbs = Asked::get("/").with("cookie", b"a=1").with("cookie", b"b=2");
    check(header("cookie", exact("a=1; b=2")), crumbs, DOUBT);
}

#[test]
fn a12_the_names_of_headers_have_no_case_and_some_are_not_for_policies() {
    check_both(header("X-ROLE", exact("a")), Asked::get("/").with("x-role", b"a"), YES);
    for name in ["grpc-status", "Grpc-Timeout", ":scheme"] {
        for condition in [header(name, exact("a")), not(All(vec![Any(vec![header(name, exact("a"))])]))] {
            let mut rules = RbacRules::new(RbacAction::Deny);
            rules.policies.insert("p".into(), RbacPolicy::new([condition], [Always]));
            let invalid =
                Authorizer::new(&Rbac { rules: Some(rules), shadow_rules: None, ..Rbac::default() }).expect_err(name);
            assert!(invalid.to_string().contains("rules.policies[\"p\"].permissions"), "{invalid}");
        }
    }
}

#[test]
fn a13_a_value_that_is_no_text_is_no_way_around_an_expression() {
    let blocked = || Asked::get("/").with("x-a", b"blocked\xff");
    for condition in [header("x-a", regex(".*blocked.*")), header("x-a", regex(".*"))] {
        check_both(condition, blocked(), DOUBT);
    }
    // Everything else compares bytes.
    check_both(header("x-a", exact("blocked")), blocked(), NO);
    check_both(header("x-a", StringTest::Prefix { value: "blocked".into(), ignore_case: false }), blocked(), YES);
}

#[test]
fn a14_the_parts_of_an_identity_are_compared_as_they_are() {
    let of = |account: &str| Asked::get("/").of(&format!("spiffe://td/ns/shop/sa/{account}"));
    let account = |value: &str| peer(PeerTest::ServiceAccount(exact(value)));
    check_both(account("cert-manager.io"), of("cert-manager.io"), YES);
    check_both(account("cert-manager.io"), of("cert-manager-io"), NO);
    let suffix = PeerTest::Id(StringTest::Suffix { value: "[x".into(), ignore_case: false });
    check_both(peer(suffix), of("x"), NO);
    check_both(peer(PeerTest::Namespace(exact("shop"))), of("web"), YES);
    // Another part is no namespace.
    let other = Asked::get("/").of("spiffe://shop/x/ns/shop/sa/web");
    check_both(peer(PeerTest::Namespace(exact("shop"))), other, NO);
    check_both(peer(PeerTest::TrustDomain(exact("td"))), of("td"), YES);
}

#[test]
fn a25_who_is_not_known_fits_nobody_and_is_refused_behind_a_not() {
    let plaintext = || Asked::get("/");
    for test in [
        PeerTest::Known,
        PeerTest::Id(exact("spiffe://td/ns/shop/sa/web")),
        PeerTest::Namespace(regex(".*")),
        PeerTest::TrustDomain(StringTest::Prefix { value: String::new(), ignore_case: false }),
    ] {
        check(peer(test.clone()), plaintext(), NO);
        check(not(peer(test.clone())), plaintext(), DOUBT);
        check(not(not(peer(test.clone()))), plaintext(), NO);
        check(Any(vec![not(All(vec![peer(test), Always]))]), plaintext(), DOUBT);
    }
}

#[test]
fn a27_presence_is_exact_and_a_missing_header_has_no_value() {
    let present = |present| Header(HeaderTest::Present { name: "x-a".into(), present });
    let (with, without) = (|| Asked::get("/").with("x-a", b""), || Asked::get("/"));
    check_both(present(true), with(), YES);
    check_both(present(true), without(), NO);
    check_both(present(false), without(), YES);
    check_both(header("x-a", exact("")), with(), YES);
    check_both(header("x-a", exact("")), without(), NO);
    let empty = HeaderTest::Value { name: "x-a".into(), test: exact(""), invert: false, missing_is_empty: true };
    check_both(Header(empty), without(), YES);
    let inverted = HeaderTest::Value { name: "x-a".into(), test: exact("b"), invert: true, missing_is_empty: false };
    check_both(Header(inverted.clone()), without(), NO);
    check_both(Header(inverted.clone()), with(), YES);
    check(Header(inverted), with().with("x-a", b"b"), DOUBT);
}

#[test]
fn addresses_ports_and_names_of_connections() {
    let net = |ip: &str, length| IpPrefix::new(ip.parse().expect("an address"), length).expect("a prefix");
    check_both(SourceIp(net("10.0.0.0", 8)), Asked::get("/"), YES);
    check_both(SourceIp(net("10.0.0.2", 32)), Asked::get("/"), NO);
    check_both(SourceIp(net("::ffff:10.0.0.0", 104)), Asked::get("/"), YES);
    check_both(DestinationIp(net("10.0.0.2", 32)), Asked::get("/"), YES);
    check_both(DestinationPort(8080, 8080), Asked::get("/"), YES);
    check_both(DestinationPort(8081, 9000), Asked::get("/"), NO);
    let mut dual = Asked::get("/");
    dual.source = "[::ffff:10.0.0.1]:1".parse().expect("an address");
    check_both(SourceIp(net("10.0.0.1", 32)), dual, YES);
    check_both(RemoteIp(net("10.0.0.1", 32)), Asked::get("/"), YES);
    let mut behind = Asked::get("/");
    behind.remote = Some("192.0.2.1:1".parse().expect("an address"));
    for (condition, expected) in [
        (RemoteIp(net("192.0.2.1", 32)), YES),
        (RemoteIp(net("10.0.0.1", 32)), NO),
        (SourceIp(net("10.0.0.1", 32)), YES),
        (SourceIp(net("192.0.2.1", 32)), NO),
    ] {
        check_both(condition, behind.clone(), expected);
    }
    let mut named = Asked::get("/");
    named.server_name = Some("shop");
    check_both(ServerName(exact("shop")), named, YES);
    check_both(ServerName(exact("")), Asked::get("/"), YES);
}

#[test]
fn a15_what_nobody_knows_lets_nobody_in() {
    let net = IpPrefix::new("10.0.0.0".parse().expect("an address"), 8).expect("a prefix");
    let of_connections =
        [SourceIp(net), RemoteIp(net), DestinationIp(net), DestinationPort(1, 2), peer(PeerTest::Known)];
    let of_requests = [Path(exact("/")), header("x", exact("")), header(":method", exact("GET"))];
    let check = |conditions: &[RbacCondition], request: &AccessRequest<'_>| {
        for condition in conditions.iter().flat_map(|it| [it.clone(), not(it.clone())]) {
            for action in [RbacAction::Allow, RbacAction::Deny] {
                let filter = filter(action, &[("p", RbacPolicy::new([condition.clone()], [Always]))]);
                assert!(!verdict(&[filter], request).is_allowed, "{action:?} {condition:?}");
            }
        }
    };
    Asked::get("/").ask(|request| {
        check(&of_connections, &AccessRequest { connection: None, ..*request });
        check(&of_requests, &AccessRequest { head: None, ..*request });
    });
}

#[test]
fn of_bytes_a_policy_that_lets_in_by_requests_lets_nobody_in_by_its_other_conditions_either() {
    let policy = RbacPolicy::new([Path(exact("/")), DestinationPort(8080, 8080)], [Always]);
    let [allow, log] = [RbacAction::Allow, RbacAction::Log].map(|action| [filter(action, &[("p", policy.clone())])]);
    // What refuses by them refuses by the rest.
    let of_port = RbacPolicy::new([All(vec![not(Path(exact("/"))), DestinationPort(8080, 8080)])], [Always]);
    let deny = [filter(RbacAction::Deny, &[("p", of_port)])];
    let mut elsewhere = Asked::get("http://h/");
    elsewhere.destination.set_port(81);
    Asked::get("http://h/").ask(|request| {
        let bytes = AccessRequest { head: None, ..*request };
        assert!(verdict(&allow, request).is_allowed && !verdict(&allow, &bytes).is_allowed);
        assert_eq!((verdict(&log, request).logged, verdict(&log, &bytes).logged), (Some("p"), None));
        assert!(verdict(&deny, request).is_allowed && !verdict(&deny, &bytes).is_allowed);
    });
    elsewhere.ask(|request| assert!(verdict(&deny, &AccessRequest { head: None, ..*request }).is_allowed));
}

#[test]
fn of_many_policies_those_are_looked_at_that_name_what_few_others_do() {
    let part = |value: &str, starts: bool| match starts {
        true => StringTest::Prefix { value: value.to_owned(), ignore_case: false },
        false => StringTest::Suffix { value: value.to_owned(), ignore_case: false },
    };
    // By how an account ends and begins, and by its name; what they ask of paths is the same.
    let by_account: [&dyn Fn(usize) -> PeerTest; 3] = [
        &|number| PeerTest::ServiceAccount(part(&format!("-{number:03}"), false)),
        &|number| PeerTest::ServiceAccount(part(&format!("w{number:03}-"), true)),
        &|number| PeerTest::Id(exact(&format!("spiffe://td/ns/shop/sa/w{number:03}-{number:03}"))),
    ];
    for account in by_account {
        let mut rules = RbacRules::new(RbacAction::Allow);
        for number in 0..100 {
            let policy = RbacPolicy::new([Path(part("/api/", true))], [peer(account(number))]);
            rules.policies.insert(format!("p{number:03}").into(), policy);
        }
        let rules = RuleSet::new(&rules).expect("good rules");
        Asked::get("/api/x").of("spiffe://td/ns/shop/sa/w042-042").ask(|request| {
            let looked = std::cell::Cell::new(0);
            let found = rules.index.first(&Seen::new(request), |_| {
                looked.set(looked.get() + 1);
                true
            });
            assert_eq!((found, looked.get()), (Some(42), 1));
        });
    }
}

/// Three truths, as slow as that: what is true, what is false, and what nobody can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    No,
    Unclear,
    Yes,
}

impl Truth {
    fn of(holds: bool) -> Truth {
        if holds { Truth::Yes } else { Truth::No }
    }

    fn not(self) -> Truth {
        match self {
            Truth::No => Truth::Yes,
            Truth::Unclear => Truth::Unclear,
            Truth::Yes => Truth::No,
        }
    }

    fn all_of(truths: impl IntoIterator<Item = Truth>) -> Truth {
        truths.into_iter().fold(Truth::Yes, |a, b| if (a as u8) < (b as u8) { a } else { b })
    }
}

/// The reference: no index, strings and lists made anew for everything, written down from the rules and not from the code.
fn reference(condition: &RbacCondition, asked: &Asked, is_negated: bool) -> Truth {
    let head = &asked.request;
    let target = head.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let path = target.split('?').next().unwrap_or_default().to_owned();
    match condition {
        Always => Truth::Yes,
        All(all) => Truth::all_of(all.iter().map(|it| reference(it, asked, is_negated))),
        Any(any) => Truth::all_of(any.iter().map(|it| reference(it, asked, is_negated).not())).not(),
        Not(it) => reference(it, asked, !is_negated).not(),
        Path(test) => Truth::of(text(test, path.as_bytes())),
        PathTemplate(template) => {
            let segments: Vec<&str> = path.split('/').skip(1).collect();
            match (fits(&template.parts, &segments, 1), fits(&template.parts, &segments, 0)) {
                (true, _) => Truth::Yes,
                (false, true) => Truth::Unclear,
                (false, false) => Truth::No,
            }
        }
        Header(HeaderTest::Value { name, test, .. }) if &**name == ":authority" => {
            let authority = head.uri().authority().expect("an authority").as_str().to_lowercase();
            let (host, port) = authority.split_once(':').map_or((&*authority, ""), |(host, port)| (host, port));
            let host = host.trim_end_matches('.');
            let forms = [authority.clone(), host.to_owned(), format!("{host}:{port}")];
            let test = match test {
                StringTest::Exact { value, .. } => exact(&value.to_lowercase()),
                other => other.clone(),
            };
            let with_port = if port.is_empty() { &forms[..2] } else { &forms[..] };
            Truth::of(with_port.iter().any(|form| text(&test, form.as_bytes())))
        }
        Header(HeaderTest::Value { name, test, .. }) if &**name == ":method" => {
            Truth::of(text(test, head.method().as_str().as_bytes()))
        }
        Header(HeaderTest::Value { name, test, .. }) => values(head.headers(), name, test),
        Header(_) => unreachable!("no such test is made here"),
        DestinationIp(prefix) => Truth::of(prefix.contains(asked.destination.ip())),
        DestinationPort(first, last) => Truth::of((*first..=*last).any(|port| port == asked.destination.port())),
        SourceIp(prefix) => Truth::of(prefix.contains(asked.source.ip())),
        RemoteIp(prefix) => Truth::of(prefix.contains(asked.remote.unwrap_or(asked.source).ip())),
        ServerName(test) => Truth::of(text(test, asked.server_name.unwrap_or_default().as_bytes())),
        RbacCondition::Peer(test) => match &asked.peer {
            // Positively nobody; negatively nobody can tell.
            None if is_negated => Truth::Unclear,
            None => Truth::No,
            Some(id) => {
                let parts: Vec<&str> = id.as_str().split('/').collect();
                let part = |at: usize| parts.get(at).copied();
                let is_istio = parts.len() == 7 && part(3) == Some("ns") && part(5) == Some("sa");
                let of = |part: Option<&str>, test| Truth::of(part.is_some_and(|part| text(test, part.as_bytes())));
                match test {
                    PeerTest::Known => Truth::Yes,
                    PeerTest::Id(test) => of(Some(id.as_str()), test),
                    PeerTest::TrustDomain(test) => of(part(2), test),
                    PeerTest::Namespace(test) => of(part(4).filter(|_| is_istio), test),
                    PeerTest::ServiceAccount(test) => of(part(6).filter(|_| is_istio), test),
                }
            }
        },
        RbacCondition::Token(test) => {
            let said = asked.token.as_ref().and_then(|claims| match test {
                TokenTest::Principal(_) => claims.principal().map(serde_json::Value::from),
                TokenTest::Claim(path, _) => claims.get(&[path.first()?]).cloned(),
            });
            let (TokenTest::Principal(test) | TokenTest::Claim(_, ClaimTest::Text(test))) = test else {
                unreachable!("no such test is made here")
            };
            match said {
                None if is_negated => Truth::Unclear,
                None => Truth::No,
                Some(serde_json::Value::String(said)) => Truth::of(text(test, said.as_bytes())),
                Some(other) if text(test, other.to_string().as_bytes()) => Truth::Unclear,
                Some(_) => Truth::No,
            }
        }
    }
}

fn text(test: &StringTest, value: &[u8]) -> bool {
    let value = String::from_utf8(value.to_vec()).expect("only headers are other than text");
    match test {
        StringTest::Exact { value: whole, .. } => value == *whole,
        StringTest::Prefix { value: prefix, .. } => value.starts_with(prefix),
        StringTest::Suffix { value: suffix, .. } => value.ends_with(suffix),
        StringTest::Contains { value: part, .. } => value.contains(part),
        // The only expressions that are made here.
        StringTest::Regex(pattern) => {
            let suffix = pattern.as_str().strip_prefix(".*").expect("a suffix").replace('\\', "");
            value.ends_with(&suffix)
        }
    }
}

fn values(headers: &HeaderMap, name: &str, test: &StringTest) -> Truth {
    let mut values: Vec<Vec<u8>> = headers.get_all(name).iter().map(|value| value.as_bytes().to_vec()).collect();
    if values.is_empty() {
        return Truth::No;
    }
    if values.len() > 1 {
        values.push(values.join(&b","[..]));
    }
    let truths: Vec<Truth> = values
        .iter()
        .map(|value| match test {
            StringTest::Regex(_) if String::from_utf8(value.clone()).is_err() => Truth::Unclear,
            StringTest::Exact { value: whole, .. } => Truth::of(value == whole.as_bytes()),
            StringTest::Prefix { value: prefix, .. } => Truth::of(value.starts_with(prefix.as_bytes())),
            StringTest::Suffix { value: suffix, .. } => Truth::of(value.ends_with(suffix.as_bytes())),
            test => Truth::of(text(test, value)),
        })
        .collect();
    let first = truths[0];
    if truths.iter().all(|truth| *truth == first) { first } else { Truth::Unclear }
}

fn fits(parts: &[TemplatePart], segments: &[&str], least: usize) -> bool {
    match (parts.split_first(), segments.split_first()) {
        (None, None) => true,
        (Some((TemplatePart::Many, rest)), _) => {
            (least..=segments.len()).any(|count| fits(rest, &segments[count..], least))
        }
        (Some((TemplatePart::One, rest)), Some((segment, after))) => !segment.is_empty() && fits(rest, after, least),
        (Some((TemplatePart::Literal(literal), rest)), Some((segment, after))) => {
            literal == segment && fits(rest, after, least)
        }
        _ => false,
    }
}

fn by_reference(action: RbacAction, policies: &[RbacPolicy], asked: &Asked) -> (bool, Option<usize>) {
    let refuses = action == RbacAction::Deny;
    let matched = policies.iter().position(|policy| {
        let any = |conditions: &[RbacCondition]| reference(&Any(conditions.to_vec()), asked, false);
        match Truth::all_of([any(&policy.principals), any(&policy.permissions)]) {
            Truth::Yes => true,
            Truth::Unclear => refuses,
            Truth::No => false,
        }
    });
    (matched.is_some() != refuses, matched)
}

fn string_test(values: &'static [&'static str]) -> impl Strategy<Value = StringTest> {
    (0..8, prop::sample::select(values)).prop_map(|(kind, value)| {
        let (value, ignore_case) = (value.to_owned(), false);
        let middle = value.len() / 2;
        match kind {
            0..4 => StringTest::Exact { value, ignore_case },
            4 | 5 => StringTest::Prefix { value: value[..=middle].to_owned(), ignore_case },
            6 => StringTest::Suffix { value: value[middle..].to_owned(), ignore_case },
            _ => regex(&format!(".*{}", regex::escape(&value[middle..]))),
        }
    })
}

const PATHS: &[&str] = &["/a", "/a/b", "/a/b/c", "/b", "/admin", "/a//b", "/a/"];
const HOSTS: &[&str] = &["shop", "shop.example", "shop:80", "other"];
const ROLES: &[&str] = &["admin", "user", "guest"];
const PARTS: &[&str] = &["shop", "web", "td", "guest"];
const IDS: &[&str] =
    &["spiffe://td/ns/shop/sa/web", "spiffe://td/ns/web/sa/shop", "spiffe://shop/x/y", "spiffe://td/ns/guest/sa/web"];

const TOKENS: &[&str] = &["idp/me", "idp/you", "shop/me"];

fn condition() -> impl Strategy<Value = RbacCondition> {
    let net = |(ip, length): (&str, u8)| IpPrefix::new(ip.parse().expect("an address"), length).expect("a prefix");
    let part = || prop::sample::select(&["a", "b", "c"][..]).prop_map(|text| TemplatePart::Literal(text.to_owned()));
    let parts = prop::collection::vec(
        prop_oneof![3 => part(), 1 => Just(TemplatePart::One), 1 => Just(TemplatePart::Many)],
        1..4,
    );
    let nets = || prop::sample::select(&[("10.0.0.0", 8), ("10.0.0.1", 32), ("10.0.0.2", 31), ("::", 0)][..]);
    let whole = |values: &'static [&'static str]| prop::sample::select(values).prop_map(exact);
    let leaf = prop_oneof![
        1 => Just(Always),
        3 => string_test(PATHS).prop_map(Path),
        2 => parts.prop_map(|parts| PathTemplate(SegmentTemplate { parts })),
        2 => whole(HOSTS).prop_map(|test| header(":authority", test)),
        2 => whole(&["GET", "POST", "DELETE"]).prop_map(|test| header(":method", test)),
        3 => string_test(ROLES).prop_map(|test| header("x-role", test)),
        1 => nets().prop_map(move |it| SourceIp(net(it))),
        1 => nets().prop_map(move |it| DestinationIp(net(it))),
        1 => (0u16..3).prop_map(|port| DestinationPort(8080, 8079 + port)),
        1 => whole(&["shop", ""]).prop_map(ServerName),
        3 => string_test(IDS).prop_map(|test| peer(PeerTest::Id(test))),
        2 => string_test(PARTS).prop_map(|test| peer(PeerTest::Namespace(test))),
        1 => string_test(PARTS).prop_map(|test| peer(PeerTest::ServiceAccount(test))),
        1 => string_test(PARTS).prop_map(|test| peer(PeerTest::TrustDomain(test))),
        1 => Just(peer(PeerTest::Known)),
        2 => string_test(TOKENS).prop_map(|test| RbacCondition::Token(TokenTest::Principal(test))),
        2 => string_test(PARTS)
            .prop_map(|test| RbacCondition::Token(TokenTest::Claim(vec!["group".into()], ClaimTest::Text(test)))),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(All),
            prop::collection::vec(inner.clone(), 1..4).prop_map(Any),
            inner.prop_map(not),
        ]
    })
}

fn policies() -> impl Strategy<Value = Vec<RbacPolicy>> {
    let conditions = || prop::collection::vec(condition(), 1..3);
    let policy =
        (conditions(), conditions()).prop_map(|(permissions, principals)| RbacPolicy::new(permissions, principals));
    prop::collection::vec(policy, 0..5)
}

fn asked() -> impl Strategy<Value = Asked> {
    let role = prop::sample::select(vec![&b"admin"[..], b"user", b"guest", b"admin\xff", b""]);
    let host = prop::sample::select(&["shop", "SHOP", "shop.", "shop:80", "shop.:80", "shop.example:8080", "x"][..]);
    (
        prop::sample::select(&["GET", "POST", "DELETE"][..]),
        host,
        prop::sample::select(PATHS),
        prop::option::of(Just("?q=/admin")),
        prop::collection::vec(role, 0..3),
        prop::option::of(prop::sample::select(IDS)),
        prop::sample::select(&["10.0.0.1:1", "11.0.0.1:1", "[::ffff:10.0.0.2]:1"][..]),
        prop::option::of(Just("shop")),
        prop::option::of((
            prop::sample::select(TOKENS),
            prop::sample::select(vec![json!(null), json!("shop"), json!("guest"), json!(7), json!(true)]),
        )),
    )
        .prop_map(|(method, host, path, query, roles, id, source, server_name, token)| {
            let mut asked = Asked::new(method, &format!("http://{host}{path}{}", query.unwrap_or_default()));
            for role in roles {
                asked = asked.with("x-role", role);
            }
            asked.peer = id.map(|id| id.parse().expect("an ID"));
            asked.source = source.parse().expect("an address");
            asked.server_name = server_name;
            asked.token = token.map(|(principal, group)| {
                let (issuer, subject) = principal.split_once('/').expect("both");
                let mut claims = json!({"iss": issuer, "sub": subject});
                if !group.is_null() {
                    claims["group"] = group;
                }
                Claims::unverified(claims.as_object().expect("claims").clone(), &[].into())
            });
            asked
        })
}

#[test]
fn a_token_whose_subject_is_a_workload_makes_nobody_that_workload() {
    let claims = |subject: &str| {
        let claims = json!({"iss": "idp", "sub": subject});
        Claims::unverified(claims.as_object().expect("claims").clone(), &[].into())
    };
    let web = "spiffe://td/ns/shop/sa/web";
    let of = |condition| [filter(RbacAction::Allow, &[("p", RbacPolicy::new(vec![Always], vec![condition]))])];
    let by_certificate = of(peer(PeerTest::Id(exact(web))));
    let by_token = of(RbacCondition::Token(TokenTest::Principal(exact("idp/spiffe://td/ns/shop/sa/web"))));
    let mut asked = Asked::new("GET", "http://shop/");
    let is_allowed = |filters, asked: &Asked| asked.ask(|request| verdict(filters, request)).is_allowed;
    asked.token = Some(claims(web));
    assert!(!is_allowed(&by_certificate, &asked) && is_allowed(&by_token, &asked));
    (asked.token, asked.peer) = (None, Some(web.parse().expect("an ID")));
    assert!(is_allowed(&by_certificate, &asked) && !is_allowed(&by_token, &asked));
}

/// Several requests a set of policies: compiling costs more than deciding.
fn agrees(pairs: u32) {
    const REQUESTS: usize = 20;
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: pairs / REQUESTS as u32,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let action = prop::sample::select(&[RbacAction::Allow, RbacAction::Deny][..]);
    let random = (action, policies(), prop::collection::vec(asked(), REQUESTS));
    let outcome = runner.run(&random, |(action, policies, requests)| {
        let names: Vec<String> = (0..policies.len()).map(|position| format!("p{position}")).collect();
        let named: Vec<_> = names.iter().map(String::as_str).zip(policies.iter().cloned()).collect();
        let filters = [filter(action, &named)];
        for asked in requests {
            let (is_allowed, matched) = by_reference(action, &policies, &asked);
            let expected = (is_allowed, matched.and_then(|position| names.get(position)).map(String::as_str));
            let found = asked.ask(|request| verdict(&filters, request));
            prop_assert_eq!((found.is_allowed, found.policy), expected, "{:?}", asked);
        }
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn decisions_equal_those_of_the_reference() {
    agrees(4_000);
}

#[test]
#[ignore = "the bar of 1,000,000 pairs: minutes"]
fn a_million_decisions_equal_those_of_the_reference() {
    agrees(1_000_000);
}
