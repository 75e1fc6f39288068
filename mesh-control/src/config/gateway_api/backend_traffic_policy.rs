//! `XBackendTrafficPolicy` (gateway.networking.x-k8s.io): how many retries a Service gets, and what its sessions stay by.

use std::time::Duration;

use super::{GatewayDuration, SessionPersistence, TargetRef, check_targets, fault};
use crate::config::decode::{Decoder, Text, message};
use crate::config::support::is_core_service;

message! {
    /// The specification.
    pub struct BackendTrafficPolicy {
        /// The Services.
        target_refs: Vec<TrafficTarget> = "targetRefs" required,
        /// How many retries they get.
        retry_constraint: Option<RetryConstraint> = "retryConstraint",
        /// What sessions with them stay by.
        session_persistence: Option<SessionPersistence> = "sessionPersistence",
    }
    /// A Service of the policy's own namespace.
    pub struct TrafficTarget {
        /// Its group.
        group: String = "group" required,
        /// Its kind.
        kind: Text = "kind" required,
        /// Its name.
        name: Text = "name" required,
    }
    /// How many retries there are.
    pub struct RetryConstraint {
        /// Their share of the requests.
        budget: Option<RetryShare> = "budget",
        /// So many in any case.
        min_retry_rate: Option<RetryRate> = "minRetryRate",
    }
    /// A share of the requests.
    pub struct RetryShare {
        /// In percent; 20 by default.
        percent: Option<u32> = "percent",
        /// Over which time; 10s by default.
        interval: Option<GatewayDuration> = "interval",
    }
    /// So many in a time.
    pub struct RetryRate {
        /// How many; 10 by default.
        count: Option<u32> = "count",
        /// In which time; 1s by default.
        interval: Option<GatewayDuration> = "interval",
    }
}

/// As the schema has it.
const MOST_RETRIES: u32 = 1_000_000;
const LONGEST: Duration = Duration::from_secs(3600);
const SHORTEST_BUDGET: Duration = Duration::from_secs(1);

impl TrafficTarget {
    /// Whether it is a Service.
    pub fn is_service(&self) -> bool {
        is_core_service(&self.group, &self.kind.value)
    }

    fn target_ref(&self) -> TargetRef<'_> {
        TargetRef { span: self.span, group: &self.group, kind: &self.kind.value, name: &self.name, section: None }
    }
}

impl BackendTrafficPolicy {
    /// What the schema refuses.
    pub fn check(&self, d: &mut Decoder<'_>) {
        let targets: Vec<TargetRef<'_>> = self.target_refs.iter().map(TrafficTarget::target_ref).collect();
        check_targets(self.span, &targets, "the same target twice", d);
        if let Some(constraint) = &self.retry_constraint {
            constraint.check(d);
        }
        if let Some(session) = &self.session_persistence {
            session.check("sessionPersistence", d);
        }
    }
}

impl RetryConstraint {
    fn check(&self, d: &mut Decoder<'_>) {
        let path = |field: &str| format!("retryConstraint.{field}");
        if let Some(budget) = &self.budget {
            if budget.percent.is_some_and(|percent| percent > 100) {
                fault(d, budget.span, path("budget.percent"), "not from 0 to 100");
            }
            if budget.interval.is_some_and(|interval| !(SHORTEST_BUDGET..=LONGEST).contains(&interval.0)) {
                fault(d, budget.span, path("budget.interval"), "not from a second to an hour");
            }
        }
        if let Some(rate) = &self.min_retry_rate {
            if rate.count.is_some_and(|count| !(1..=MOST_RETRIES).contains(&count)) {
                fault(d, rate.span, path("minRetryRate.count"), format!("not from 1 to {MOST_RETRIES}"));
            }
            if rate.interval.is_some_and(|interval| interval.0.is_zero() || interval.0 > LONGEST) {
                fault(d, rate.span, path("minRetryRate.interval"), "not more than nothing, and an hour at most");
            }
        }
    }
}
