//! HTTP filters: what may look at a request before it is balanced, answer it, or hold it back.
//!
//! A filter decides and does not act: it returns a [`Decision`], and the data plane waits or replies. The
//! application's own filters are registered by name and configured from YAML like the built-in ones.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;

use crate::call::Call;
use crate::error::Invalid;
use crate::matcher::{Field, header_matches};
use crate::model::{Fault, FilterConfig, HeaderTest};
use crate::request::RequestHead;

/// What becomes of a request after a filter saw it.
#[derive(Debug)]
pub enum Decision {
    /// It goes on.
    Continue,
    /// It is held back for this long, then goes on, or is answered where there is a reply.
    Wait(Duration, Option<Reply>),
    /// It is answered here.
    Reply(Reply),
}

/// An answer of the mesh itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status. A caller that speaks gRPC gets 200 and a gRPC status instead.
    pub status: StatusCode,
    /// The gRPC code, where the filter was told one; else it follows from the HTTP status.
    pub grpc_code: Option<u32>,
    /// The body for HTTP callers, the message for gRPC callers.
    pub body: Bytes,
}

/// Something that requests pass on their way to the balancer.
pub trait Filter: Send + Sync + fmt::Debug {
    /// Looks at a request, and may change its head.
    fn on_request(&self, call: &mut Call, parts: &mut Parts) -> Decision;
}

/// Makes a filter from its configuration (canonical JSON).
pub type FilterFactory = Arc<dyn Fn(&str) -> Result<Arc<dyn Filter>, Invalid> + Send + Sync>;

/// The application's own filters by name. The builder fills it; it does not change after.
#[derive(Clone, Default)]
pub struct FilterRegistry {
    factories: HashMap<Arc<str>, FilterFactory>,
}

impl FilterRegistry {
    /// Adds a filter under a name; a second one of the same name replaces the first.
    pub fn register(&mut self, name: impl Into<Arc<str>>, factory: FilterFactory) {
        self.factories.insert(name.into(), factory);
    }

    /// The name as it was registered, if it was.
    pub fn registered(&self, name: &str) -> Option<&Arc<str>> {
        self.factories.get_key_value(name).map(|(name, _)| name)
    }

    /// The filter of a configuration; `None` where it is turned off.
    pub fn build(&self, config: &FilterConfig) -> Result<Option<Arc<dyn Filter>>, Invalid> {
        match config {
            FilterConfig::Disabled => Ok(None),
            FilterConfig::Fault(fault) => Ok(Some(Arc::new(FaultFilter::new(fault)?))),
            FilterConfig::Custom(name, json) => match self.factories.get(name) {
                Some(factory) => factory(json).map(Some),
                None => Err(Invalid::new(format!("no filter is registered as {name:?}"))),
            },
        }
    }
}

impl fmt::Debug for FilterRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.factories.keys()).finish()
    }
}

/// Delays and aborts on purpose (gRFC A33, `envoy.extensions.filters.http.fault.v3`). The draws for delay and
/// abort are independent.
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
    fn on_request(&self, call: &mut Call, parts: &mut Parts) -> Decision {
        if !self.headers.is_empty() {
            let Ok(head) = RequestHead::of(parts) else { return Decision::Continue };
            if !self.headers.iter().all(|(field, test)| header_matches(field, test, &head)) {
                return Decision::Continue;
            }
        }
        let mut hit = |fraction: crate::model::Fraction| fraction.contains(call.random.u32(0..1_000_000));
        let delay = self.fault.delay.as_ref().filter(|delay| hit(delay.fraction)).map(|delay| delay.duration);
        let reply = self.fault.abort.as_ref().filter(|abort| hit(abort.fraction)).map(|abort| Reply {
            status: abort.http_status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK),
            grpc_code: abort.grpc_code,
            body: Bytes::from_static(b"fault filter abort"),
        });
        match (delay, reply) {
            (None, None) => Decision::Continue,
            (Some(delay), reply) => Decision::Wait(delay, reply),
            (None, Some(reply)) => Decision::Reply(reply),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::model::{FaultAbort, FaultDelay, Fraction, StringTest};

    fn decide(fault: Fault, user: &str, seed: u64) -> Decision {
        let filter = FaultFilter::new(&Arc::new(fault)).unwrap();
        let request = http::Request::get("http://h/").header("end-user", user).body(()).unwrap();
        let mut call = Call::new(Instant::now(), fastrand::Rng::with_seed(seed));
        filter.on_request(&mut call, &mut request.into_parts().0)
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
        assert!(matches!(decision, Decision::Wait(Duration { .. }, Some(reply)) if reply.status == 500));
    }
}
