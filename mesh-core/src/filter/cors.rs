//! Cross-origin requests (`envoy.extensions.filters.http.cors.v3`): the mesh answers what browsers ask before a request
//! (preflights), and adds to answers who may read them. It refuses nothing: a browser does, where the headers are missing.

use std::sync::Arc;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, response};

use super::{Decision, Filter, Reply};
use crate::model::CorsPolicy;
use crate::request_info::RequestInfo;

const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");
const TRUE: HeaderValue = HeaderValue::from_static("true");

/// Answers preflights, and adds headers to answers.
#[derive(Debug)]
pub struct CorsFilter(Arc<CorsPolicy>);

impl CorsFilter {
    /// By this policy.
    pub fn new(policy: &Arc<CorsPolicy>) -> Self {
        CorsFilter(Arc::clone(policy))
    }

    /// Whether pages of an origin may read answers. A test that `*` passes lets in everybody.
    fn allows(&self, origin: &HeaderValue) -> bool {
        self.0.allow_origins.iter().any(|test| test.is_match(b"*") || test.is_match(origin.as_bytes()))
    }

    /// What the answer to a preflight says.
    fn preflight(&self, asked: &HeaderMap, answer: &mut HeaderMap) {
        let policy = &self.0;
        let lists = [
            (ACCESS_CONTROL_ALLOW_METHODS, &policy.allow_methods, ACCESS_CONTROL_REQUEST_METHOD),
            (ACCESS_CONTROL_ALLOW_HEADERS, &policy.allow_headers, ACCESS_CONTROL_REQUEST_HEADERS),
        ];
        for (name, allowed, asked_by) in lists {
            let Some(allowed) = allowed else { continue };
            let value = if allowed == "*" { asked.get(asked_by) } else { Some(allowed) };
            answer.extend(value.map(|value| (name, value.clone())));
        }
        answer.extend(policy.max_age.clone().map(|age| (ACCESS_CONTROL_MAX_AGE, age)));
        let asks_for_private = asked.get(REQUEST_PRIVATE_NETWORK).is_some_and(|value| value == "true");
        if policy.allow_private_network_access == Some(true) && asks_for_private {
            answer.insert(ALLOW_PRIVATE_NETWORK, TRUE);
        }
    }
}

impl Filter for CorsFilter {
    fn on_request(&self, request: &mut RequestInfo, head: &mut Parts) -> Decision {
        let policy = &self.0;
        let mut origins = head.headers.get_all(ORIGIN).iter();
        let Some(origin) = origins.next().filter(|origin| !origin.is_empty()) else { return Decision::Continue };
        if policy.enabled.is_some_and(|share| !share.contains(request.random.u32(0..1_000_000))) {
            return Decision::Continue;
        }
        // A request has one origin. Of one with several nobody knows which one a browser goes by.
        let allowed = Some(origin).filter(|origin| origins.next().is_none() && self.allows(origin));
        let asks_for_method = head.headers.get(ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|method| !method.is_empty());
        let is_preflight = head.method == Method::OPTIONS && asks_for_method;
        let travels_on = !is_preflight || policy.forward_not_matching_preflights.unwrap_or(true);
        if allowed.is_none() && travels_on {
            return Decision::Continue;
        }
        let mut answer = HeaderMap::new();
        answer.extend(allowed.map(|origin| (ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone())));
        if policy.allow_credentials == Some(true) {
            answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        // What a page may read, it is told with what it reads: with the answer to a preflight, too, as by Envoy.
        if allowed.is_some() {
            answer.extend(policy.expose_headers.clone().map(|names| (ACCESS_CONTROL_EXPOSE_HEADERS, names)));
        }
        if is_preflight {
            self.preflight(&head.headers, &mut answer);
        }
        request.answer_headers = Some(Box::new(answer));
        match is_preflight {
            true => {
                request.note_details("cors_response");
                Decision::Reply(Reply::new(StatusCode::OK, ""))
            }
            false => Decision::Continue,
        }
    }

    fn on_response(&self, request: &mut RequestInfo, head: &mut response::Parts) {
        let Some(headers) = request.answer_headers.take() else { return };
        // In the place of what the server says itself.
        for (name, value) in headers.iter() {
            head.headers.insert(name, value.clone());
        }
    }

    fn reads_notes(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::model::{FullRegex, StringTest};

    const PREFLIGHT: &[(&str, &str)] = &[
        ("origin", "https://a.example"),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "x-a,x-b"),
    ];

    fn exact(value: &str) -> StringTest {
        StringTest::Exact { value: value.to_owned(), ignore_case: false }
    }

    fn full() -> CorsPolicy {
        let text = |text| Some(HeaderValue::from_static(text));
        CorsPolicy {
            allow_methods: text("GET,PUT"),
            allow_headers: text("x-c"),
            expose_headers: text("x-d"),
            max_age: text("60"),
            allow_credentials: Some(true),
            ..CorsPolicy::for_origins(vec![exact("https://a.example")])
        }
    }

    /// Whether the mesh answers, and the headers that an answer gets, a line for each.
    fn pass(policy: &CorsPolicy, method: &str, headers: &[(&str, &str)]) -> (bool, String) {
        let mut request = http::Request::builder().method(method).uri("http://h/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut head = request.body(()).unwrap().into_parts().0;
        let mut info = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
        let filter = CorsFilter::new(&Arc::new(policy.clone()));
        let decision = filter.on_request(&mut info, &mut head);
        let (mut answer, ()) = http::Response::builder().header("x-own", "1").body(()).unwrap().into_parts();
        filter.on_response(&mut info, &mut answer);
        answer.headers.remove("x-own").unwrap();
        let mut lines: Vec<String> = answer
            .headers
            .iter()
            .map(|(name, value)| {
                let name = name.as_str().trim_start_matches("access-control-");
                format!("{name}: {}", value.to_str().unwrap())
            })
            .collect();
        lines.sort();
        let is_answered = match decision {
            Decision::Continue => false,
            Decision::Reply(reply) => reply == Reply::new(StatusCode::OK, ""),
            other => panic!("{other:?}"),
        };
        (is_answered, lines.join(", "))
    }

    #[test]
    fn a_preflight_is_answered_and_an_answer_says_who_may_read_it() {
        let allowed = "allow-credentials: true, allow-headers: x-c, allow-methods: GET,PUT, allow-origin: https://a.example, \
                       expose-headers: x-d, max-age: 60";
        let read = "allow-credentials: true, allow-origin: https://a.example, expose-headers: x-d";
        assert_eq!(pass(&full(), "OPTIONS", PREFLIGHT), (true, allowed.to_owned()));
        let origin = &[("origin", "https://a.example")][..];
        for (method, headers, expected) in [
            ("GET", origin, read),
            ("PUT", PREFLIGHT, read),
            // OPTIONS that asks for no method is a request like any other.
            ("OPTIONS", origin, read),
            ("OPTIONS", &[("origin", "https://a.example"), ("access-control-request-method", "")], read),
            ("GET", &[], ""),
            ("GET", &[("origin", "")], ""),
            ("GET", &[("origin", "https://b.example")], ""),
            ("GET", &[("origin", "https://a.example"), ("origin", "https://b.example")], ""),
            ("OPTIONS", &[("access-control-request-method", "PUT")], ""),
            ("OPTIONS", &[("origin", "https://b.example"), ("access-control-request-method", "PUT")], ""),
        ] {
            assert_eq!(pass(&full(), method, headers), (false, expected.to_owned()), "{method} {headers:?}");
        }
    }

    #[test]
    fn a_preflight_of_another_origin_is_answered_without_permission_where_it_may_not_travel_on() {
        let other = &[("origin", "https://b.example"), ("access-control-request-method", "PUT")][..];
        let ignoring = CorsPolicy { forward_not_matching_preflights: Some(false), ..full() };
        let expected = "allow-credentials: true, allow-headers: x-c, allow-methods: GET,PUT, max-age: 60";
        assert_eq!(pass(&ignoring, "OPTIONS", other), (true, expected.to_owned()));
        assert_eq!(pass(&ignoring, "GET", other), (false, String::new()));
        let forwarding = CorsPolicy { forward_not_matching_preflights: Some(true), ..full() };
        assert_eq!(pass(&forwarding, "OPTIONS", other), (false, String::new()));
    }

    #[test]
    fn stars_stand_for_what_is_asked_for_and_for_every_origin() {
        let star = || Some(HeaderValue::from_static("*"));
        let open =
            CorsPolicy { allow_methods: star(), allow_headers: star(), ..CorsPolicy::for_origins(vec![exact("*")]) };
        let expected = "allow-headers: x-a,x-b, allow-methods: PUT, allow-origin: https://a.example";
        assert_eq!(pass(&open, "OPTIONS", PREFLIGHT), (true, expected.to_owned()));
        assert_eq!(pass(&open, "OPTIONS", &PREFLIGHT[..2]).1, "allow-methods: PUT, allow-origin: https://a.example");
        for (test, is_allowed) in [
            (StringTest::Prefix { value: "https://a.".into(), ignore_case: false }, true),
            (StringTest::Prefix { value: "https://b.".into(), ignore_case: false }, false),
            (StringTest::Regex(FullRegex::new("https://[a-z]+\\.example").unwrap()), true),
            (StringTest::Regex(FullRegex::new("https://a").unwrap()), false),
        ] {
            let policy = CorsPolicy::for_origins(vec![test]);
            let expected = if is_allowed { "allow-origin: https://a.example" } else { "" };
            assert_eq!(pass(&policy, "GET", PREFLIGHT).1, expected, "{policy:?}");
        }
    }

    #[test]
    fn a_page_of_a_public_network_may_call_into_a_private_one_where_that_is_said() {
        let asking = &[PREFLIGHT, &[("access-control-request-private-network", "true")]].concat();
        for (allows, expected) in [(Some(true), true), (Some(false), false), (None, false)] {
            let policy = CorsPolicy { allow_private_network_access: allows, ..full() };
            assert_eq!(pass(&policy, "OPTIONS", asking).1.contains("allow-private-network: true"), expected);
            assert!(!pass(&policy, "OPTIONS", PREFLIGHT).1.contains("private"));
        }
    }

    #[test]
    fn a_level_says_what_the_one_below_it_leaves_open() {
        let below = CorsPolicy { allow_credentials: Some(false), ..CorsPolicy::for_origins(vec![exact("https://b")]) };
        let merged = below.clone().or(&full());
        assert_eq!((&merged.allow_origins, merged.allow_credentials), (&below.allow_origins, Some(false)));
        assert_eq!((merged.max_age, merged.allow_methods), (full().max_age, full().allow_methods));
    }
}
