//! Retries under way, by cluster: how many there may be is exact however many requests ask at once.

use std::sync::Arc;

use super::{ClusterState, Shared};
use crate::model::RetryLimit;

/// One retry under way, from the decision that there is to be one until it is answered or fails.
#[derive(Debug)]
pub struct RetryPermit(Arc<Shared>);

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.0.usage.retries.leave();
    }
}

impl ClusterState {
    /// Counts a retry in, if the cluster allows one more.
    pub fn retry(&self, limit: RetryLimit) -> Option<RetryPermit> {
        let usage = &self.shared.usage;
        let most = match limit {
            RetryLimit::AtMost(most) => most,
            RetryLimit::Budget { share, at_least } => share.of(usage.requests()).max(at_least),
        };
        usage.retries.enter(most)?;
        Some(RetryPermit(Arc::clone(&self.shared)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::EndpointId;
    use crate::model::Fraction;

    #[test]
    fn there_are_never_more_retries_than_the_limit_however_many_ask() {
        let cluster = Arc::new(ClusterState::default());
        let limit = RetryLimit::AtMost(10);
        let held = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        held.lock().unwrap().extend(cluster.retry(limit));
                        assert!(cluster.usage().retries() <= 10);
                    }
                });
            }
        });
        assert_eq!((held.lock().unwrap().len(), cluster.usage().retries()), (10, 10));
        held.lock().unwrap().clear();
        assert_eq!(cluster.usage().retries(), 0);
    }

    #[test]
    fn a_budget_is_a_share_of_what_is_in_flight_and_some_in_any_case() {
        let cluster = Arc::new(ClusterState::default());
        let endpoint =
            |port| cluster.endpoint(&EndpointId::new(std::net::SocketAddr::from(([10, 0, 0, 1], port))), false);
        let endpoints = [endpoint(1), endpoint(2)];
        for (share, at_least, in_flight, expected) in
            [(20, 3, 0, 3), (20, 3, 10, 3), (20, 3, 100, 20), (0, 0, 100, 0), (100, 0, 7, 7), (25, 0, 7, 1)]
        {
            let limit = RetryLimit::Budget { share: Fraction::new(share, 100), at_least };
            let _busy: Vec<_> = (0..in_flight).map(|at| endpoints[at % 2].enter()).collect();
            let held: Vec<_> = std::iter::from_fn(|| cluster.retry(limit)).collect();
            assert_eq!(held.len(), expected, "{share}% of {in_flight}, at least {at_least}");
        }
    }
}
