//! Faults on purpose (gRFC A33, `envoy.extensions.filters.http.fault.v3`).

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, StatusCode};

use super::{Decision, Filter, Reply};
use crate::error::Invalid;
use crate::matcher::{Field, header_matches};
use crate::model::{Fault, FaultAbort, FaultDelay, Fraction, HeaderTest};
use crate::request::RequestHead;
use crate::request_info::RequestInfo;
use crate::response_flags::ResponseFlags;

const NODE: HeaderName = HeaderName::from_static("x-envoy-downstream-service-node");
const DELAY: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request");
const DELAY_SHARE: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request-percentage");
const ABORT: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request");
const ABORT_GRPC: HeaderName = HeaderName::from_static("x-envoy-fault-abort-grpc-request");
const ABORT_SHARE: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request-percentage");

/// Delays and aborts. The draws for the two are independent.
#[derive(Debug)]
pub struct FaultFilter {
    fault: Arc<Fault>,
    headers: Vec<(Field, HeaderTest)>,
    active: Arc<ActiveFaults>,
}

/// How many requests suffer from a fault now.
#[derive(Debug, Default)]
pub struct ActiveFaults(AtomicU32);

/// One of them.
struct Active(Arc<ActiveFaults>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl FaultFilter {
    /// A filter for this fault; an unusable header name is invalid.
    pub fn new(fault: &Arc<Fault>) -> Result<Self, Invalid> {
        let headers = fault.headers.iter().map(|test| Ok((Field::of(test)?, test.clone())));
        let headers = headers.collect::<Result<_, Invalid>>()?;
        Ok(FaultFilter { headers, fault: Arc::clone(fault), active: Arc::default() })
    }

    /// The same, counting where another one did, whose place it takes.
    pub fn counted(self, active: Arc<ActiveFaults>) -> Self {
        FaultFilter { active, ..self }
    }

    /// Whether a request is one of those that are meant.
    fn is_for(&self, request: &RequestInfo, head: &Parts) -> bool {
        if let Some(cluster) = &self.fault.cluster
            && request.cluster().is_none_or(|of_request| *of_request.as_str() != **cluster)
        {
            return false;
        }
        let node = || head.headers.get(NODE).map(|node| node.as_bytes());
        if !self.fault.nodes.is_empty() && !self.fault.nodes.iter().any(|meant| node() == Some(meant.as_bytes())) {
            return false;
        }
        if self.headers.is_empty() {
            return true;
        }
        // A request without an authority has headers all the same.
        let seen = RequestHead::of(head).unwrap_or_else(|_| RequestHead::with_authority(head, ""));
        self.headers.iter().all(|(field, test)| header_matches(field, test, &seen))
    }

    /// Counts a request in, unless as many suffer as may.
    fn begin(&self, request: &mut RequestInfo) -> bool {
        let Some(most) = self.fault.max_active else { return true };
        let more = |active: u32| (active < most).then_some(active + 1);
        let is_in = self.active.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if is_in {
            request.hold(Active(Arc::clone(&self.active)));
        }
        is_in
    }
}

impl Filter for FaultFilter {
    fn on_request(&self, request: &mut RequestInfo, head: &mut Parts) -> Decision {
        if !self.is_for(request, head) {
            return Decision::Continue;
        }
        let mut hit = |fraction: Fraction| fraction.contains(request.random.u32(0..1_000_000));
        let delay = self.fault.delay.as_ref().and_then(|delay| pause(delay, &head.headers, &mut hit));
        let reply = self.fault.abort.as_ref().and_then(|abort| answer(abort, &head.headers, &mut hit));
        if (delay.is_none() && reply.is_none()) || !self.begin(request) {
            return Decision::Continue;
        }
        if delay.is_some() {
            request.note_flags(ResponseFlags::DELAY_INJECTED);
        }
        if reply.is_some() {
            request.note_flags(ResponseFlags::FAULT_INJECTED);
            request.note_details("fault_filter_abort");
        }
        match (delay, reply) {
            (Some(delay), reply) => Decision::Delay(delay, reply),
            (None, Some(reply)) => Decision::Reply(reply),
            (None, None) => Decision::Continue,
        }
    }
}

/// How long the request waits.
fn pause(delay: &FaultDelay, headers: &HeaderMap, hit: &mut impl FnMut(Fraction) -> bool) -> Option<Duration> {
    match delay.duration {
        Some(duration) => hit(delay.fraction).then_some(duration),
        None => {
            let pause = number(headers, &DELAY).map(Duration::from_millis)?;
            hit(share(headers, &DELAY_SHARE, delay.fraction, delay.unit)).then_some(pause)
        }
    }
}

/// What the request is answered.
fn answer(abort: &FaultAbort, headers: &HeaderMap, hit: &mut impl FnMut(Fraction) -> bool) -> Option<Reply> {
    let (status, grpc_code, fraction) = match (abort.http_status, abort.grpc_code) {
        (None, None) => {
            let status = number(headers, &ABORT).filter(|status| (200..=599).contains(status));
            let code = if status.is_none() { Some(number(headers, &ABORT_GRPC)?) } else { None };
            (status, code, share(headers, &ABORT_SHARE, abort.fraction, abort.unit))
        }
        (status, code) => (status, code, abort.fraction),
    };
    hit(fraction).then(|| Reply {
        status: status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK),
        grpc_code,
        body: abort.body.clone().unwrap_or(Bytes::from_static(b"fault filter abort")),
        headers: None,
    })
}

/// The share that the request asks for, which is never more than what is configured.
fn share(headers: &HeaderMap, name: &HeaderName, most: Fraction, unit: u32) -> Fraction {
    let asked = number::<u32>(headers, name).map(|asked| Fraction::of_million(u64::from(asked) * u64::from(unit)));
    asked.map_or(most, |asked| if asked.per_million() < most.per_million() { asked } else { most })
}

/// The number in a header; `None` where it is none.
fn number<T: FromStr>(headers: &HeaderMap, name: &HeaderName) -> Option<T> {
    std::str::from_utf8(headers.get(name)?.as_bytes()).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::id::ClusterName;
    use crate::model::StringTest;
    use crate::request_info::{Direction, Observers};

    fn decide(fault: Fault, headers: &[(&str, &str)], seed: u64) -> Decision {
        let filter = FaultFilter::new(&Arc::new(fault)).unwrap();
        filter.on_request(&mut info(seed), &mut head(headers))
    }

    fn info(seed: u64) -> RequestInfo {
        let mut info = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(seed));
        info.observe(&Observers::from([]), Direction::Outbound, &http::Method::GET);
        info.note_route(&"r".into(), Some(&ClusterName::from("mine")));
        info
    }

    fn head(headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::get("http://h/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn abort(fault: FaultAbort) -> Fault {
        Fault { abort: Some(fault), ..Fault::default() }
    }

    #[test]
    fn a_fault_hits_its_share_of_the_requests_whose_headers_match() {
        let jason = HeaderTest::Value {
            name: "end-user".into(),
            test: StringTest::Exact { value: "jason".into(), ignore_case: false },
            invert: false,
            missing_is_empty: false,
        };
        let all = Fault { headers: vec![jason], ..abort(FaultAbort::http(555, Fraction::ALL)) };
        let is_hit = |user| matches!(decide(all.clone(), &[("end-user", user)], 1), Decision::Reply(reply) if reply.status == 555);
        assert!(is_hit("jason") && !is_hit("other"));
        let half = abort(FaultAbort::http(555, Fraction::new(50, 100)));
        let hits = (0..2000).filter(|seed| matches!(decide(half.clone(), &[], *seed), Decision::Reply(_))).count();
        assert!((900..1100).contains(&hits), "{hits}");
    }

    #[test]
    fn a_delay_comes_before_the_abort() {
        let delay = Some(FaultDelay::new(Duration::from_secs(7), Fraction::ALL));
        let decision = decide(Fault { delay, ..abort(FaultAbort::http(500, Fraction::ALL)) }, &[], 1);
        assert!(matches!(decision, Decision::Delay(Duration { .. }, Some(reply)) if reply.status == 500));
    }

    #[test]
    fn a_request_says_what_goes_wrong_and_never_more_often_than_is_configured() {
        let all = Fault {
            delay: Some(FaultDelay::by_header(Fraction::ALL)),
            ..abort(FaultAbort::by_header(Fraction::new(50, 100)))
        };
        let said = |headers: &[(&str, &str)]| {
            let (mut delays, mut replies) = (0, Vec::new());
            for seed in 0..400 {
                let (delay, reply) = match decide(all.clone(), headers, seed) {
                    Decision::Delay(delay, reply) => (Some(delay), reply),
                    Decision::Reply(reply) => (None, Some(reply)),
                    _ => (None, None),
                };
                delays += usize::from(delay == Some(Duration::from_millis(30)));
                replies.extend(reply.map(|reply| (reply.status.as_u16(), reply.grpc_code)));
            }
            (delays, replies)
        };
        assert_eq!(said(&[]), (0, vec![]));
        assert_eq!(said(&[("x-envoy-fault-delay-request", "30")]).0, 400);
        assert_eq!(said(&[("x-envoy-fault-delay-request", "-1")]).0, 0);
        let tenth = [("x-envoy-fault-delay-request", "30"), ("x-envoy-fault-delay-request-percentage", "10")];
        assert!((20..60).contains(&said(&tenth).0));
        for (headers, expected) in [
            (&[("x-envoy-fault-abort-request", "503")][..], (503, None)),
            (&[("x-envoy-fault-abort-grpc-request", "14")], (200, Some(14))),
            (&[("x-envoy-fault-abort-request", "503"), ("x-envoy-fault-abort-request-percentage", "100")], (503, None)),
        ] {
            let replies = said(headers).1;
            assert!(
                replies.iter().all(|reply| *reply == expected) && (160..240).contains(&replies.len()),
                "{replies:?}"
            );
        }
        assert!(said(&[("x-envoy-fault-abort-request", "700")]).1.is_empty());
        // In the terms of what is configured: 100 of a million.
        let rare = abort(FaultAbort { unit: 1, ..FaultAbort::by_header(Fraction::ALL) });
        let headers = [("x-envoy-fault-abort-request", "503"), ("x-envoy-fault-abort-request-percentage", "100")];
        assert!((0..400).all(|seed| matches!(decide(rare.clone(), &headers, seed), Decision::Continue)));
    }

    #[test]
    fn only_requests_to_its_cluster_and_of_its_nodes_are_meant() {
        let base = abort(FaultAbort { body: Some("mine".into()), ..FaultAbort::http(500, Fraction::ALL) });
        let node = |node| [("x-envoy-downstream-service-node", node)];
        for (cluster, nodes, headers, is_meant) in [
            (Some("mine"), vec![], &node("a"), true),
            (Some("other"), vec![], &node("a"), false),
            (None, vec!["a".to_owned(), "b".to_owned()], &node("b"), true),
            (None, vec!["a".to_owned()], &node("c"), false),
        ] {
            let fault = Fault { cluster: cluster.map(Arc::from), nodes, ..base.clone() };
            let decision = decide(fault.clone(), headers, 1);
            let is_hit = matches!(&decision, Decision::Reply(reply) if reply.body == "mine");
            assert_eq!(is_hit, is_meant, "{fault:?} {headers:?}");
        }
    }

    #[test]
    fn no_more_requests_suffer_at_a_time_than_may() {
        let fault = Fault { max_active: Some(2), ..abort(FaultAbort::http(500, Fraction::ALL)) };
        let filter = FaultFilter::new(&Arc::new(fault.clone())).unwrap();
        let mut requests: Vec<_> = (0..3).map(info).collect();
        let hit = |filter: &FaultFilter, info: &mut RequestInfo| {
            matches!(filter.on_request(info, &mut head(&[])), Decision::Reply(_))
        };
        assert_eq!(requests.iter_mut().map(|info| hit(&filter, info)).collect::<Vec<_>>(), [true, true, false]);
        // Those of the configuration before count too.
        let next = FaultFilter::new(&Arc::new(fault)).unwrap().counted(Arc::clone(&filter.active));
        assert!(!hit(&next, &mut info(4)));
        requests.remove(0);
        assert!(hit(&next, &mut info(5)), "one has ended");
    }
}
