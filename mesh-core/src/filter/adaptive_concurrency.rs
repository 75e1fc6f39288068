//! How many requests there may be at a time (`envoy.extensions.filters.http.adaptive_concurrency.v3`): who has no place is
//! answered before any work is done.

use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;

use super::{Decision, Filter, Reply};
use crate::limits::Concurrency;
use crate::model::AdaptiveConcurrency;
use crate::request_info::{Criticality, RequestInfo};
use crate::response_flags::ResponseFlags;
use crate::state::{FilterState, LimitCounts};

/// Why, in Envoy's words.
const REFUSED: &str = "reached_concurrency_limit";

/// Lets in as many requests as may be, and learns from those how many that is.
#[derive(Debug)]
pub struct AdaptiveConcurrencyFilter {
    config: Arc<AdaptiveConcurrency>,
    concurrency: Arc<Concurrency>,
    /// By how much requests matter.
    critical: Arc<LimitCounts>,
    sheddable: Arc<LimitCounts>,
}

/// The place of a request.
struct Place(Arc<Concurrency>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl AdaptiveConcurrencyFilter {
    /// A filter by this configuration, which goes on from the limit that there is.
    pub fn new(config: &Arc<AdaptiveConcurrency>, state: &FilterState<'_>, now: Instant) -> Self {
        let concurrency = state.get(|| Concurrency::new(config, now));
        concurrency.change(config, now);
        let counts = |rule| state.limited().counts("concurrency", rule);
        AdaptiveConcurrencyFilter {
            config: Arc::clone(config),
            concurrency,
            critical: counts("critical"),
            sheddable: counts("sheddable"),
        }
    }
}

impl Filter for AdaptiveConcurrencyFilter {
    #[inline]
    fn on_request(&self, request: &mut RequestInfo, _: &mut Parts) -> Decision {
        let is_sheddable = request.inherited.criticality == Criticality::Sheddable;
        let counts = if is_sheddable { &self.sheddable } else { &self.critical };
        if !self.concurrency.enter(&self.config, is_sheddable, request.started) {
            counts.note_over();
            let reply = Reply::overloaded(request, self.config.status, "reached concurrency limit", REFUSED);
            return Decision::Reply(reply);
        }
        counts.note_within();
        request.hold(Place(Arc::clone(&self.concurrency)));
        Decision::Continue
    }

    fn on_end(&self, request: &RequestInfo) {
        // Of those that were refused, or not answered, it is not known how long they would have taken.
        if request.is_complete() && !request.response_flags().contains(ResponseFlags::OVERLOAD_MANAGER) {
            self.concurrency.note_answered(&self.config, request.started, Instant::now(), fastrand::f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::OVERLOADED;
    use crate::model::Fraction;
    use crate::state::States;

    #[test]
    fn who_has_no_place_is_answered_and_a_place_is_free_when_a_request_is_over() {
        let states = States::default();
        let name = Arc::from("overload");
        let mut config = AdaptiveConcurrency::fixed(2);
        config.sheddable = Fraction::new(1, 2);
        let filter = AdaptiveConcurrencyFilter::new(&Arc::new(config), &states.filter("", &name), Instant::now());
        let ask = |criticality| {
            let mut info = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
            info.inherited.criticality = criticality;
            let (mut parts, ()) = http::Request::new(()).into_parts();
            match filter.on_request(&mut info, &mut parts) {
                Decision::Continue => Ok(info),
                Decision::Reply(reply) => Err(reply),
                other => panic!("{other:?}"),
            }
        };
        let first = ask(Criticality::Sheddable).ok();
        assert!(first.is_some());
        let refused = ask(Criticality::Sheddable).err().unwrap();
        assert_eq!((refused.status.as_u16(), &refused.headers.unwrap()[OVERLOADED]), (503, &"true".parse().unwrap()));
        let second = ask(Criticality::Critical).ok();
        assert!(second.is_some() && ask(Criticality::Critical).is_err());
        drop(first);
        assert!(ask(Criticality::Sheddable).is_err(), "half of two is one, which is there");
        assert!(ask(Criticality::Critical).is_ok());
        let mut counted = Vec::new();
        let mut look = |limit: &str, rule: &str, counts: &LimitCounts| {
            counted.push((format!("{limit} {rule}"), counts.within(), counts.over()));
        };
        states.limited().each(&mut look);
        assert_eq!(counted, [("concurrency critical".to_owned(), 2, 1), ("concurrency sheddable".to_owned(), 1, 2)]);
    }
}
