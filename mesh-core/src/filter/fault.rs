//! Faults on purpose (gRFC A33, `envoy.extensions.filters.http.fault.v3`).

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;

use super::{Decision, Filter, Reply};
use crate::error::Invalid;
use crate::matcher::{Field, header_matches};
use crate::model::{Fault, HeaderTest};
use crate::request::RequestHead;
use crate::request_info::RequestInfo;

/// Delays and aborts. The draws for the two are independent.
#[derive(Debug)]
pub struct FaultFilter {
    fault: Arc<Fault>,
    headers: Vec<(Field, HeaderTest)>,
}

impl FaultFilter {
    /// A filter for this fault; an unusable header name is invalid.
    pub fn new(fault: &Arc<Fault>) -> Result<Self, Invalid> {
        let headers = fault.headers.iter().map(|test| Ok((Field::of(test)?, test.clone())));
        Ok(FaultFilter { headers: headers.collect::<Result<_, Invalid>>()?, fault: Arc::clone(fault) })
    }
}

impl Filter for FaultFilter {
    fn on_request(&self, request: &mut RequestInfo, head: &mut Parts) -> Decision {
        if !self.headers.is_empty() {
            // A request without an authority has headers all the same.
            let seen = RequestHead::of(head).unwrap_or_else(|_| RequestHead::with_authority(head, ""));
            if !self.headers.iter().all(|(field, test)| header_matches(field, test, &seen)) {
                return Decision::Continue;
            }
        }
        let mut hit = |fraction: crate::model::Fraction| fraction.contains(request.random.u32(0..1_000_000));
        let delay = self.fault.delay.as_ref().filter(|delay| hit(delay.fraction)).map(|delay| delay.duration);
        let reply = self.fault.abort.as_ref().filter(|abort| hit(abort.fraction)).map(|abort| Reply {
            status: abort.http_status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK),
            grpc_code: abort.grpc_code,
            body: Bytes::from_static(b"fault filter abort"),
        });
        match (delay, reply) {
            (None, None) => Decision::Continue,
            (Some(delay), reply) => Decision::Delay(delay, reply),
            (None, Some(reply)) => Decision::Reply(reply),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::model::{FaultAbort, FaultDelay, Fraction, StringTest};

    fn decide(fault: Fault, user: &str, seed: u64) -> Decision {
        let filter = FaultFilter::new(&Arc::new(fault)).unwrap();
        let request = http::Request::get("http://h/").header("end-user", user).body(()).unwrap();
        let mut info = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(seed));
        filter.on_request(&mut info, &mut request.into_parts().0)
    }

    #[test]
    fn a_fault_hits_its_share_of_the_requests_whose_headers_match() {
        let abort = |fraction| Some(FaultAbort { http_status: Some(555), grpc_code: None, fraction });
        let jason = HeaderTest::Value {
            name: "end-user".into(),
            test: StringTest::Exact { value: "jason".into(), ignore_case: false },
            invert: false,
            missing_is_empty: false,
        };
        let all = Fault { abort: abort(Fraction::ALL), headers: vec![jason], ..Fault::default() };
        assert!(matches!(decide(all.clone(), "jason", 1), Decision::Reply(reply) if reply.status == 555));
        assert!(matches!(decide(all, "other", 1), Decision::Continue));
        let half = Fault { abort: abort(Fraction::new(50, 100)), ..Fault::default() };
        let hits = (0..2000).filter(|seed| matches!(decide(half.clone(), "x", *seed), Decision::Reply(_))).count();
        assert!((900..1100).contains(&hits), "{hits}");
    }

    #[test]
    fn a_delay_comes_before_the_abort() {
        let delay = Some(FaultDelay { duration: Duration::from_secs(7), fraction: Fraction::ALL });
        let abort = Some(FaultAbort { http_status: Some(500), grpc_code: None, fraction: Fraction::ALL });
        let decision = decide(Fault { delay, abort, headers: vec![] }, "x", 1);
        assert!(matches!(decision, Decision::Delay(Duration { .. }, Some(reply)) if reply.status == 500));
    }
}
