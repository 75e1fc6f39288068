//! Active health checks of the endpoints of one cluster: which are due, and what they came to.

use std::sync::Arc;
use std::time::Instant;

use super::{ClusterState, EndpointPart, EndpointState, lock};
use crate::health_check::{CheckOutcome, Checked};
use crate::model::{HealthCheck, OutlierDetection};

/// An endpoint that has health checks.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CheckedEndpoint {
    /// The endpoint.
    pub endpoint: Arc<EndpointState>,
    /// The host that it is asked for, where it has one of its own.
    pub host: Option<Arc<str>>,
}

impl EndpointState {
    /// What health checks made of it so far.
    #[inline]
    pub fn checked(&self) -> Checked {
        self.checks.checked()
    }

    /// Notes that an answer of it said that it is to get no more requests (`x-envoy-immediate-health-check-fail`). Counts
    /// where it is checked, until it passes its checks again.
    pub fn note_unwell(&self) {
        if self.checks.fail() {
            tracing::info!(endpoint = %self.id, "an endpoint says that it is not well: it gets no requests until it passes its health checks");
            self.shared.teller.tell();
        }
    }
}

impl ClusterState {
    /// The endpoints that are checked from now on, unless they are left out of checks.
    pub(crate) fn set_checked(&self, parts: Vec<EndpointPart>) {
        let before = std::mem::replace(&mut *lock(&self.checked), parts);
        // Endpoints that are gone are dropped here, after the lock.
        drop(before);
    }

    /// The endpoints, `most` of them, that are to be checked now, each of which is under way from here on until
    /// [`ClusterState::note_check`]; and when the next one is due.
    pub fn to_check(
        &self,
        config: &HealthCheck,
        now: Instant,
        most: usize,
        random: &mut fastrand::Rng,
    ) -> (Vec<CheckedEndpoint>, Option<Instant>) {
        let (mut taken, mut next, is_called) = (Vec::new(), None::<Instant>, self.usage().was_called());
        let parts = lock(&self.checked);
        for (endpoint, state) in parts.iter().flat_map(EndpointPart::iter).filter(|(one, _)| one.is_checked) {
            let Some(due) = state.checks.due(config, is_called, now, random) else { continue };
            if due <= now && taken.len() < most {
                state.checks.begin();
                taken.push(CheckedEndpoint { endpoint: Arc::clone(state), host: endpoint.check_host.clone() });
            } else {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        (taken, next)
    }

    /// Notes what a check of one of its endpoints came to. One that is well is not an outlier any more, where `detection`
    /// says so.
    pub fn note_check(
        &self,
        config: &HealthCheck,
        detection: Option<&OutlierDetection>,
        endpoint: &EndpointState,
        outcome: CheckOutcome,
        now: Instant,
        random: &mut fastrand::Rng,
    ) {
        let mut is_news = endpoint.checks.note(config, outcome, self.usage().was_called(), now, random);
        if is_news {
            let health = endpoint.checked();
            tracing::info!(endpoint = %endpoint.id, ?health, "health checks have found an endpoint to be something else");
        }
        let is_well = matches!(outcome, CheckOutcome::Passed | CheckOutcome::Degraded)
            && matches!(endpoint.checked(), Checked::Healthy | Checked::Degraded);
        if is_well && detection.is_some_and(|detection| detection.readmits_checked) {
            is_news |= lock(&self.outliers).readmit(&endpoint.record);
        }
        if is_news {
            self.shared.teller.tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Endpoints, Probe, TcpProbe};
    use crate::outlier::Outcome;

    fn cluster(count: u16) -> (Arc<ClusterState>, Vec<EndpointPart>) {
        let cluster = Arc::new(ClusterState::default());
        let at = |port: u16| std::net::SocketAddr::from(([10, 0, 0, 1], port));
        let (parts, _) = cluster.resolve(&Endpoints::fixed((1..=count).map(at)), None);
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        cluster.set_checked(parts.clone());
        (cluster, parts)
    }

    #[test]
    fn no_more_checks_are_under_way_than_there_may_be_and_none_twice() {
        let (cluster, _) = cluster(10);
        let config = HealthCheck::new(Probe::Tcp(TcpProbe::default()), Duration::from_secs(10));
        let (now, random) = (Instant::now(), &mut fastrand::Rng::with_seed(1));
        let (first, next) = cluster.to_check(&config, now, 4, random);
        assert_eq!((first.len(), next), (4, Some(now)), "others wait");
        let (second, next) = cluster.to_check(&config, now, 100, random);
        assert_eq!((second.len(), next), (6, None));
        assert!(!second.iter().any(|one| first.iter().any(|other| Arc::ptr_eq(&one.endpoint, &other.endpoint))));
        cluster.note_check(&config, None, &first[0].endpoint, CheckOutcome::Passed, now, random);
        // Nobody has called it yet.
        let minute = now + Duration::from_secs(60);
        assert_eq!(cluster.to_check(&config, now, 100, random).1, Some(minute));
        assert_eq!(cluster.to_check(&config, minute, 100, random).0.len(), 1);
    }

    #[test]
    fn an_endpoint_that_passes_is_no_outlier_any_more_unless_that_is_not_wanted() {
        for readmits_checked in [true, false] {
            let (cluster, parts) = cluster(1);
            let endpoint = &parts[0].states()[0];
            let detection =
                OutlierDetection { readmits_checked, max_ejection_percent: 100, ..OutlierDetection::default() };
            cluster.set_hosts(parts.iter());
            let (now, random) = (Instant::now(), &mut fastrand::Rng::with_seed(1));
            for _ in 0..5 {
                cluster.note_outcome(&detection, endpoint, Outcome::Status(500), || now, random);
            }
            assert!(endpoint.is_ejected());
            let config = HealthCheck::new(Probe::Tcp(TcpProbe::default()), Duration::from_secs(10));
            cluster.note_check(&config, Some(&detection), endpoint, CheckOutcome::Passed, now, random);
            assert_eq!(endpoint.is_ejected(), !readmits_checked);
        }
    }
}
