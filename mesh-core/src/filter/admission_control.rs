//! What would fail is not sent (`envoy.extensions.filters.http.admission_control.v3`).

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use http::request::Parts;

use super::{Decision, Filter, Reply};
use crate::limits::Admission;
use crate::model::AdmissionControl;
use crate::request_info::RequestInfo;
use crate::response_flags::ResponseFlags;
use crate::state::{FilterState, LimitCounts};

/// Why, in Envoy's words.
const REFUSED: &str = "denied_by_admission_control";

/// Holds requests back, the more of the last ones failed.
#[derive(Debug)]
pub struct AdmissionControlFilter {
    config: Arc<AdmissionControl>,
    admission: Arc<Admission>,
    counts: Arc<LimitCounts>,
}

impl AdmissionControlFilter {
    /// A filter by this configuration, which remembers what became of requests before.
    pub fn new(config: &Arc<AdmissionControl>, state: &FilterState<'_>) -> Self {
        AdmissionControlFilter {
            config: Arc::clone(config),
            admission: state.get(Admission::default),
            counts: state.limited().counts("admission", ""),
        }
    }

    fn is_success(&self, request: &RequestInfo) -> bool {
        match request.grpc_response_status() {
            Some(code) => self.config.grpc_statuses.contains(&code),
            None => {
                let code = request.response_code();
                self.config.statuses.iter().any(|range| range.contains(&code))
            }
        }
    }
}

impl Filter for AdmissionControlFilter {
    #[inline]
    fn on_request(&self, request: &mut RequestInfo, _: &mut Parts) -> Decision {
        let rejection = self.admission.rejection(&self.config, request.started);
        if rejection <= 0.0 || request.random.f64() >= rejection {
            self.counts.note_within();
            return Decision::Continue;
        }
        self.counts.note_over();
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Decision::Reply(Reply::overloaded(request, status, "denied by admission control", REFUSED))
    }

    fn on_end(&self, request: &RequestInfo) {
        let was_sent = !request.response_flags().contains(ResponseFlags::OVERLOAD_MANAGER);
        // A request that its caller gave up says nothing, as in Envoy.
        if was_sent && (request.is_complete() || request.error().is_some()) {
            self.admission.note(&self.config, self.is_success(request), Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::request_info::Direction;
    use crate::state::States;

    #[test]
    fn after_failures_most_are_held_back_and_what_was_held_back_is_no_failure() {
        let states = States::default();
        let name = Arc::from("throttle");
        let filter = AdmissionControlFilter::new(&Arc::default(), &states.filter("", &name));
        let mut random = fastrand::Rng::with_seed(7);
        let mut ask = |status: u16, asked: u32| {
            let sent = (0..asked).filter(|_| {
                let mut info = RequestInfo::new(Instant::now(), random.fork());
                info.observe(&Arc::from([]), Direction::Outbound, &Method::GET);
                let (mut parts, ()) = http::Request::new(()).into_parts();
                let decision = filter.on_request(&mut info, &mut parts);
                let status = StatusCode::from_u16(status).unwrap();
                info.note_response(status, &HeaderMap::new(), true);
                info.note_complete();
                filter.on_end(&info);
                matches!(decision, Decision::Continue)
            });
            sent.count()
        };
        assert_eq!(ask(200, 100), 100);
        assert_eq!(ask(404, 100), 100, "the caller's own failures are none of the server's");
        let sent = ask(503, 1000);
        assert!((200..600).contains(&sent), "{sent}");
        let sent = ask(503, 1000);
        assert!((150..450).contains(&sent), "{sent}");
        assert!(ask(200, 10_000) > 3_000, "it comes back");
    }
}
