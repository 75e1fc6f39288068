//! Tables of which outcome is tried again under which policy, and after which pause.

use http::HeaderValue;

use super::*;
use crate::model::{HeaderTest, RateLimitedBackOff};

fn policy(words: &str, retries: u32) -> RetryPolicy {
    RetryPolicy { on: RetryConditions::parse(words), retries, ..RetryPolicy::default() }
}

/// A request after so many tries.
fn request(attempts: u32) -> RequestInfo {
    let mut request = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
    request.attempts = attempts;
    request
}

fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

fn is_retried(policy: &RetryPolicy, outcome: TryOutcome<'_>, mut request: RequestInfo) -> bool {
    let now = request.started;
    decide(policy, outcome, &mut request, now) != RetryDecision::Stop
}

/// Envoy's own list (`x-envoy-retry-on`, `x-envoy-retry-grpc-on`), which Istio passes on.
#[test]
fn each_of_envoys_words_is_a_condition() {
    let of_http = "5xx,gateway-error,reset,reset-before-request,connect-failure,envoy-ratelimited,retriable-4xx,refused-stream,\
                   retriable-status-codes,retriable-headers,http3-post-connect-failure";
    let of_grpc = "cancelled,deadline-exceeded,internal,resource-exhausted,unavailable";
    for (words, is_grpc) in [(of_http, false), (of_grpc, true)] {
        for word in words.split(',') {
            let condition = RetryCondition::parse(word).unwrap();
            assert_eq!((condition.word(), condition.is_grpc_status()), (word, is_grpc));
        }
    }
    assert_eq!(RetryCondition::parse("5XX"), None);
}

#[test]
fn what_failed_is_tried_again_as_the_policy_says() {
    use ErrorKind::{ConnectFailure, ConnectionLost, Overflow, RefusedStream, Security, Timeout};
    // The words, and those of the failures that they are about.
    let cases: [(&str, &[ErrorKind]); 12] = [
        ("connect-failure", &[ConnectFailure]),
        ("refused-stream", &[RefusedStream]),
        ("reset", &[ConnectFailure, RefusedStream, ConnectionLost, Timeout]),
        ("reset-before-request", &[ConnectFailure]),
        ("5xx", &[ConnectFailure, RefusedStream, ConnectionLost, Timeout]),
        ("gateway-error", &[ConnectFailure, RefusedStream, ConnectionLost, Timeout]),
        ("unavailable", &[ConnectFailure, RefusedStream]),
        ("cancelled,deadline-exceeded,internal,resource-exhausted", &[]),
        ("retriable-4xx,retriable-headers,retriable-status-codes,envoy-ratelimited", &[]),
        ("http3-post-connect-failure", &[]),
        (
            "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
            &[ConnectFailure, RefusedStream],
        ),
        ("", &[]),
    ];
    for (words, about) in cases {
        for kind in [ConnectFailure, RefusedStream, ConnectionLost, Timeout, Overflow, Security] {
            let retried = is_retried(&policy(words, 1), TryOutcome::Failed(kind), request(1));
            assert_eq!(retried, about.contains(&kind), "{words}: {kind:?}");
        }
    }
}

#[test]
fn a_hedged_request_has_as_many_tries_as_there_are_retries_whatever_the_conditions() {
    let hedged = RetryPolicy { hedges: true, ..policy("", 2) };
    let decided = |policy: &RetryPolicy, attempts, repeat, deadline: Option<Duration>| {
        let mut request = request(attempts);
        let now = request.started;
        (request.repeat, request.deadline) = (repeat, deadline.map(|left| now + left));
        hedge(policy, &mut request, now) != RetryDecision::Stop
    };
    for (attempts, repeat, deadline, expected) in [
        (1, None, None, true),
        (2, None, None, true),
        (3, None, None, false),
        (1, Some(Repeat::Idempotent), None, true),
        (1, Some(Repeat::IfUnprocessed), None, false),
        (1, Some(Repeat::Never), None, false),
        (1, None, Some(Duration::ZERO), false),
        (1, None, Some(Duration::from_secs(1)), true),
    ] {
        assert_eq!(decided(&hedged, attempts, repeat, deadline), expected, "{attempts} {repeat:?} {deadline:?}");
    }
    assert!(!decided(&policy("5xx", 2), 1, None, None), "not without the policy");
}

#[test]
fn answers_are_tried_again_as_the_policy_says() {
    let mut statuses = policy("retriable-status-codes", 1);
    statuses.statuses = vec![StatusCode::TOO_MANY_REQUESTS];
    let mut tested = policy("retriable-headers", 1);
    tested.headers = vec![HeaderTest::Present { name: "x-again".into(), present: true }];
    let cases: [(RetryPolicy, &[u16]); 7] = [
        (policy("5xx", 1), &[500, 502, 503, 504, 599]),
        (policy("gateway-error", 1), &[502, 503, 504]),
        (policy("retriable-4xx", 1), &[409]),
        (statuses, &[429]),
        (policy("retriable-status-codes", 1), &[]),
        (policy("reset,connect-failure,refused-stream,reset-before-request", 1), &[]),
        (tested.clone(), &[]),
    ];
    for (policy, about) in cases {
        for status in [200, 204, 404, 409, 429, 500, 502, 503, 504, 599] {
            let (code, none) = (StatusCode::from_u16(status).unwrap(), HeaderMap::new());
            let retried = is_retried(&policy, TryOutcome::Answered(code, &none), request(1));
            assert_eq!(retried, about.contains(&status), "{:?}: {status}", policy.on);
            assert!(!retried || looks_at_answers(&policy, false), "nobody would look");
        }
    }
    let again = headers(&[("x-again", "")]);
    assert!(is_retried(&tested, TryOutcome::Answered(StatusCode::OK, &again), request(1)));
}

#[test]
fn a_grpc_status_in_the_head_is_looked_at_where_the_request_is_grpc() {
    for (word, code) in [
        ("cancelled", "1"),
        ("deadline-exceeded", "4"),
        ("resource-exhausted", "8"),
        ("internal", "13"),
        ("unavailable", "14"),
    ] {
        let policy = policy(word, 1);
        assert!(looks_at_answers(&policy, true) && !looks_at_answers(&policy, false), "{word}");
        for status in ["0", "1", "2", "4", "8", "13", "14", "x"] {
            let head = headers(&[("grpc-status", status)]);
            for is_grpc in [true, false] {
                let mut request = request(1);
                request.is_grpc = is_grpc;
                let retried = is_retried(&policy, TryOutcome::Answered(StatusCode::OK, &head), request);
                assert_eq!(retried, is_grpc && status == code, "{word}: {status}");
            }
        }
    }
}

#[test]
fn there_are_as_many_retries_as_the_policy_has() {
    let failed = TryOutcome::Failed(ErrorKind::ConnectFailure);
    for (retries, attempts, expected) in [(0, 1, false), (1, 1, true), (1, 2, false), (3, 3, true), (3, 4, false)] {
        assert_eq!(is_retried(&policy("5xx", retries), failed, request(attempts)), expected, "{retries} {attempts}");
    }
}

#[test]
fn the_application_may_forbid_what_the_policy_wants() {
    let every = policy("5xx", 1);
    let (unavailable, none) = (StatusCode::SERVICE_UNAVAILABLE, HeaderMap::new());
    let outcomes = [
        TryOutcome::Failed(ErrorKind::ConnectFailure),
        TryOutcome::Failed(ErrorKind::RefusedStream),
        TryOutcome::Failed(ErrorKind::ConnectionLost),
        TryOutcome::Failed(ErrorKind::Timeout),
        TryOutcome::Answered(unavailable, &none),
    ];
    for (repeat, expected) in [
        (None, [true; 5]),
        (Some(Repeat::Idempotent), [true; 5]),
        (Some(Repeat::IfUnprocessed), [true, true, false, false, false]),
        (Some(Repeat::Never), [false; 5]),
    ] {
        let retried = outcomes.map(|outcome| {
            let mut request = request(1);
            request.repeat = repeat;
            is_retried(&every, outcome, request)
        });
        assert_eq!(retried, expected, "{repeat:?}");
    }
}

#[test]
fn flags_of_proxies_go_before_statuses() {
    for (words, flags, expected) in [
        ("5xx", &[][..], true),
        ("5xx", &[("x-envoy-ratelimited", "true")], false),
        ("5xx,envoy-ratelimited", &[("x-envoy-ratelimited", "true")], true),
        ("5xx,envoy-ratelimited", &[("x-envoy-overloaded", "true")], false),
    ] {
        let head = headers(flags);
        let outcome = TryOutcome::Answered(StatusCode::SERVICE_UNAVAILABLE, &head);
        assert_eq!(is_retried(&policy(words, 1), outcome, request(1)), expected, "{words} {flags:?}");
    }
}

/// The pause after an answer of 503 with these headers.
fn pause_after(policy: &RetryPolicy, is_grpc: bool, fields: &[(&'static str, &'static str)]) -> Option<Duration> {
    let (mut request, head) = (request(1), headers(fields));
    request.is_grpc = is_grpc;
    let now = request.started;
    match decide(policy, TryOutcome::Answered(StatusCode::SERVICE_UNAVAILABLE, &head), &mut request, now) {
        RetryDecision::Retry { after } => Some(after),
        RetryDecision::Stop => None,
    }
}

#[test]
fn a_server_that_says_when_to_come_back_is_not_asked_before() {
    let second = Duration::from_secs(1);
    let patient =
        RetryPolicy { back_off: RetryBackOff { max: 10 * second, ..RetryBackOff::DEFAULT }, ..policy("5xx", 1) };
    for (value, expected) in [
        ("1", Some(second)),
        ("10", Some(10 * second)),
        ("11", None),
        ("99999999999999999999", None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", None),
        ("-1", None),
    ] {
        assert_eq!(pause_after(&patient, false, &[("retry-after", value)]), expected, "{value}");
    }
    assert!(pause_after(&policy("5xx", 1), false, &[("retry-after", "1")]).is_none(), "longer than it ever waits");
    assert!(pause_after(&policy("5xx", 1), false, &[("retry-after", "0")]).is_some());
}

#[test]
fn the_pushback_of_grpc_is_obeyed_however_long_it_is() {
    let pause = |is_grpc, value| pause_after(&policy("5xx", 1), is_grpc, &[("grpc-retry-pushback-ms", value)]);
    for (value, expected) in [
        ("0", Some(0)),
        ("700", Some(700)),
        ("3600000", Some(3_600_000)),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("9999999999", None),
    ] {
        assert_eq!(pause(true, value), expected.map(Duration::from_millis), "{value}");
    }
    // To other requests it says nothing.
    assert!(pause(false, "-1").is_some());
}

#[test]
fn of_the_headers_of_a_policy_the_first_counts_that_asks_for_no_more_than_its_longest_pause() {
    let second = Duration::from_secs(1);
    let headers = vec![HeaderName::from_static("x-reset"), HeaderName::from_static("x-other")];
    let limited = RateLimitedBackOff { headers, max_interval: 5 * second };
    let limited = RetryPolicy { rate_limited: Some(limited), ..policy("5xx", 1) };
    // (the two headers, and the shortest pause; it is up to half as long again)
    for (reset, other, expected) in
        [("2", "3", 2), ("6", "3", 3), ("x", "3", 3), ("6", "7", 0), ("x", "y", 0), ("0", "3", 0)]
    {
        let pause = pause_after(&limited, false, &[("x-reset", reset), ("x-other", other)]).unwrap();
        let usual = limited.back_off.base;
        let longest = if expected == 0 { usual } else { second * expected * 3 / 2 };
        assert!((second * expected..=longest).contains(&pause), "{reset} {other}: {pause:?}");
    }
    let other_header = pause_after(&limited, false, &[("retry-after", "4")]).unwrap();
    assert!(other_header <= limited.back_off.base, "only those that it names");
}

#[test]
fn no_try_begins_after_the_deadline() {
    let nine = Duration::from_secs(9);
    let policy = RetryPolicy { back_off: RetryBackOff { base: nine, max: nine }, ..RetryPolicy::default() };
    let failed = TryOutcome::Failed(ErrorKind::ConnectFailure);
    for seed in 0..100 {
        let now = Instant::now();
        let decide = |deadline| {
            let mut request = RequestInfo::new(now, fastrand::Rng::with_seed(seed));
            (request.attempts, request.deadline) = (1, deadline);
            decide(&policy, failed, &mut request, now)
        };
        let RetryDecision::Retry { after } = decide(None) else { panic!("it is tried again") };
        assert_eq!(decide(Some(now + after)), RetryDecision::Stop);
        assert_ne!(decide(Some(now + after + Duration::from_nanos(1))), RetryDecision::Stop);
    }
}

#[test]
fn the_backoff_grows_and_has_a_limit() {
    for attempts in [1, 2, 3, 10, 40] {
        let mut random = fastrand::Rng::with_seed(u64::from(attempts));
        let limit = Duration::from_millis(25 * ((1u64 << attempts) - 1)).min(Duration::from_millis(250));
        assert!(usual(RetryBackOff::DEFAULT, attempts, &mut random) <= limit);
    }
}

#[test]
fn what_an_outer_hop_retries_is_not_retried_in_here_unless_nobody_processed_it() {
    let unavailable = headers(&[("grpc-status", "14")]);
    let (policy, none) = (policy("5xx,unavailable", 3), HeaderMap::new());
    for attempt in [1, 2, 7] {
        let inherited = || {
            let mut request = request(1);
            request.inherited.attempt = attempt;
            request
        };
        let retried = |outcome| is_retried(&policy, outcome, inherited());
        assert_eq!(retried(TryOutcome::Answered(StatusCode::SERVICE_UNAVAILABLE, &none)), attempt == 1);
        let mut call = inherited();
        call.is_grpc = true;
        assert_eq!(is_retried(&policy, TryOutcome::Answered(StatusCode::OK, &unavailable), call), attempt == 1);
        assert_eq!(retried(TryOutcome::Failed(ErrorKind::Timeout)), attempt == 1);
        assert_eq!(retried(TryOutcome::Failed(ErrorKind::ConnectionLost)), attempt == 1);
        assert!(
            retried(TryOutcome::Failed(ErrorKind::ConnectFailure))
                && retried(TryOutcome::Failed(ErrorKind::RefusedStream))
        );
        // The application knows better, and only where it says less.
        for (repeat, kind, expected) in [
            (Repeat::Idempotent, ErrorKind::ConnectionLost, attempt == 1),
            (Repeat::IfUnprocessed, ErrorKind::ConnectFailure, true),
            (Repeat::Never, ErrorKind::ConnectFailure, false),
        ] {
            let mut request = inherited();
            request.repeat = Some(repeat);
            assert_eq!(
                is_retried(&policy, TryOutcome::Failed(kind), request),
                expected,
                "{repeat:?} {kind:?} {attempt}"
            );
        }
    }
}

#[test]
fn no_try_begins_when_the_outer_hop_does_not_wait_for_its_answer() {
    let lost = TryOutcome::Failed(ErrorKind::ConnectionLost);
    for (millis, expected) in [(0, false), (1, false), (1000, true)] {
        let mut request = request(1);
        request.inherited.answer_by = Some(request.started + Duration::from_millis(millis));
        let policy = RetryPolicy { back_off: RetryBackOff::of(Duration::from_millis(100)), ..policy("5xx", 3) };
        assert_eq!(is_retried(&policy, lost, request), expected, "{millis} ms");
    }
}
