//! `Overload` (policy.mesh-control/v1alpha1): how many requests the workloads that it is for take on at a time, and how they hold
//! back calls that would fail. An object of our own, since Istio has none; what it comes to are Envoy's own filters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::SpiffeId;
use mesh_core::model::{
    AdaptiveConcurrency, AdmissionControl, ClientPart, ConcurrencyQueue, DescriptorAction, Fraction, RateLimit,
    UnloadedTime,
};
use mesh_core::request::miscased_method;

use super::rate_limit::{Fault, Key, keyed, report, status_of};
use crate::config::decode::{At, Decode, Decoder, Text, message};
use crate::config::diagnostic::{Span, quoted};
use crate::config::istio::security::{Selector, TargetRef, check_whom};
use crate::config::node::Node;
use crate::config::schema::Schema;

message! {
    /// The specification.
    pub struct OverloadSpec {
        /// The workloads; absent means all of the namespace.
        selector: Option<Selector> = "selector",
        /// The objects whose workloads are meant.
        target_refs: Vec<TargetRef> = "targetRefs",
        /// How many requests they take on at a time.
        concurrency: Option<ConcurrencySpec> = "concurrency",
        /// How they hold back calls that would fail.
        throttle: Option<ThrottleSpec> = "throttle",
    }
    /// How many requests a workload takes on at a time.
    pub struct ConcurrencySpec {
        /// The most.
        max: At<u32> = "max" required,
        /// How the limit follows what requests take; absent means that it stays at the most.
        adaptive: Option<AdaptiveSpec> = "adaptive",
        /// How much of it requests may take that can be left out, in percent.
        sheddable_percent: Option<At<f64>> = "sheddablePercent",
        /// The status of those that find no place.
        status: Option<At<u16>> = "status",
        /// Where they wait for one; absent means that they do not.
        queue: Option<QueueSpec> = "queue",
    }
    /// Where requests wait for a place, in turns of their callers.
    pub struct QueueSpec {
        /// The most that wait at a time.
        max: At<u32> = "max" required,
        /// The longest that one waits.
        timeout: Option<At<Duration>> = "timeout",
        /// What callers are told apart by; absent means who they are by mutual TLS.
        by: Vec<Key> = "by",
        /// How many requests of a caller are let in at its turn, by what `by` says of it.
        weights: BTreeMap<String, At<u32>> = "weights",
    }
    /// How a limit follows what requests take.
    pub struct AdaptiveSpec {
        /// The least.
        min: Option<At<u32>> = "min",
        /// How often it is calculated.
        interval: Option<At<Duration>> = "interval",
        /// The share of requests, in percent, that is faster than the time that counts.
        percentile: Option<At<f64>> = "percentile",
        /// So much more than the time without load is no load yet, in percent of it.
        tolerance_percent: Option<At<f64>> = "tolerancePercent",
        /// What they take without load.
        unloaded: UnloadedSpec = "unloaded",
    }
    /// What requests take without load: known, or measured.
    pub struct UnloadedSpec {
        /// It is known.
        time: Option<At<Duration>> = "time",
        /// How often it is measured.
        every: Option<At<Duration>> = "every",
        /// With how many requests.
        requests: Option<At<u32>> = "requests",
        /// With how many at a time.
        concurrency: Option<At<u32>> = "concurrency",
    }
    /// How a workload holds back calls that would fail.
    pub struct ThrottleSpec {
        /// To which hosts; absent means all.
        hosts: Vec<Text> = "hosts",
        /// Below this share of successes, in percent, some are held back.
        success_percent: Option<At<f64>> = "successPercent",
        /// The time that counts.
        window: Option<At<Duration>> = "window",
        /// The most that are held back, in percent.
        max_rejected_percent: Option<At<f64>> = "maxRejectedPercent",
        /// Of fewer requests a second, none is held back.
        min_requests_per_second: Option<At<u32>> = "minRequestsPerSecond",
        /// How fast more are held back as fewer succeed: 1 is in step.
        aggression: Option<At<f64>> = "aggression",
    }
}

/// An overload's limits.
#[derive(Clone, Debug, Default)]
pub struct Overload {
    /// Where it is written.
    pub span: Span,
    /// The workloads; absent means all of the namespace.
    pub selector: Option<Selector>,
    /// The objects whose workloads are meant.
    pub target_refs: Vec<TargetRef>,
    /// How many requests they take on at a time.
    pub concurrency: Option<Arc<AdaptiveConcurrency>>,
    /// How they hold back calls.
    pub throttle: Option<Arc<AdmissionControl>>,
    /// Calls to which hosts; none for all.
    pub hosts: Vec<String>,
}

impl Decode for Overload {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let spec = OverloadSpec::decode(node, d)?;
        let mut check = Check::default();
        let concurrency = spec.concurrency.as_ref().map(|spec| Arc::new(spec.read(&mut check)));
        let throttle = spec.throttle.as_ref().map(|spec| Arc::new(spec.read(&mut check)));
        if concurrency.is_none() && throttle.is_none() {
            check.fault(spec.span, "concurrency", "neither concurrency nor throttle is said");
        }
        report(&check.faults, d);
        if !check.faults.is_empty() {
            return None;
        }
        let hosts = spec.throttle.into_iter().flat_map(|throttle| throttle.hosts);
        Some(Overload {
            span: spec.span,
            selector: spec.selector,
            target_refs: spec.target_refs,
            concurrency,
            throttle,
            hosts: hosts.map(|host| host.value).collect(),
        })
    }

    fn fields(prefix: &str, out: &mut Vec<String>) {
        OverloadSpec::fields(prefix, out);
    }

    fn schema() -> Schema {
        OverloadSpec::schema()
    }
}

impl Overload {
    /// What is wrong with whom it is for.
    pub fn check(&self, namespace: &str, d: &mut Decoder<'_>) {
        check_whom(self.span, namespace, self.selector.as_ref(), &self.target_refs, d);
    }
}

/// Reads values within their ranges, and says which are not.
#[derive(Default)]
struct Check {
    faults: Vec<Fault>,
}

impl Check {
    fn fault(&mut self, span: Span, field: &str, message: impl Into<String>) {
        self.faults.push((span, field.to_owned(), message.into()));
    }

    /// From 1; the usual one where nothing is said.
    fn count(&mut self, value: Option<&At<u32>>, field: &str, usual: u32) -> u32 {
        match value {
            Some(value) if value.value == 0 => self.fault(value.span, field, "must be 1 at least"),
            _ => {}
        }
        value.map_or(usual, |value| value.value)
    }

    /// From 1 to the most.
    fn up_to(&mut self, value: &At<u32>, most: u32, field: &str) -> u32 {
        if !(1..=most).contains(&value.value) {
            self.fault(value.span, field, format!("must be 1 to {most}"));
        }
        value.value
    }

    /// A share, in percent, within a range.
    fn percent(&mut self, value: Option<&At<f64>>, least: f64, field: &str, usual: Fraction) -> Fraction {
        let Some(value) = value else { return usual };
        if !(least..=100.0).contains(&value.value) {
            self.fault(value.span, field, format!("must be {least} to 100"));
        }
        Fraction::of_percent(value.value)
    }

    fn time(
        &mut self,
        value: Option<&At<Duration>>,
        range: (Duration, Duration),
        field: &str,
        usual: Duration,
    ) -> Duration {
        let Some(value) = value else { return usual };
        let (least, most) = range;
        if !(least..=most).contains(&value.value) {
            self.fault(value.span, field, format!("must be {least:?} to {most:?}"));
        }
        value.value
    }
}

/// The longest time of any of it.
const HOUR: Duration = Duration::from_secs(3600);
const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

impl ConcurrencySpec {
    fn read(&self, check: &mut Check) -> AdaptiveConcurrency {
        let most = check.count(Some(&self.max), "concurrency.max", 0);
        let mut limit = match &self.adaptive {
            Some(adaptive) => adaptive.read(most, check),
            None => AdaptiveConcurrency::fixed(most),
        };
        let field = "concurrency.sheddablePercent";
        limit.sheddable = check.percent(self.sheddable_percent.as_ref(), 0.0, field, limit.sheddable);
        limit.status = status_of(self.status.as_ref(), "concurrency.status", limit.status, &mut check.faults);
        limit.queue = self.queue.as_ref().map(|queue| Arc::new(queue.read(check)));
        limit
    }
}

impl QueueSpec {
    fn read(&self, check: &mut Check) -> ConcurrencyQueue {
        const AT: &str = "concurrency.queue";
        let most = check.up_to(&self.max, ConcurrencyQueue::MOST, &format!("{AT}.max"));
        let mut queue = ConcurrencyQueue::new(most);
        let range = (MILLI, ConcurrencyQueue::LONGEST);
        queue.wait = check.time(self.timeout.as_ref(), range, &format!("{AT}.timeout"), queue.wait);
        let by = keyed(&self.by, &format!("{AT}.by"), &mut check.faults);
        if !by.is_empty() {
            queue.by = Arc::new(RateLimit::by(by));
        }
        if self.by.len() > 1 && !self.weights.is_empty() {
            let message = "callers that are told apart by several things have none";
            check.fault(self.span, &format!("{AT}.weights"), message);
        }
        for (caller, weight) in &self.weights {
            let field = format!("{AT}.weights[{caller}]");
            queue.weights.insert(caller.clone(), check.up_to(weight, ConcurrencyQueue::HEAVIEST, &field));
            if let Some(what) = queue.by.actions.first().and_then(|action| is_none_of(action, caller)) {
                let message = format!("{} is no {what}, and no caller is called so", quoted(caller));
                check.fault(weight.span, &field, message);
            }
        }
        queue
    }
}

/// What a caller of this name would have to be, and is not.
fn is_none_of(by: &DescriptorAction, caller: &str) -> Option<&'static str> {
    let (is_one, what) = match by {
        DescriptorAction::Client { part: ClientPart::Principal, .. } => {
            (caller.parse::<SpiffeId>().is_ok(), "SPIFFE ID (spiffe://...)")
        }
        DescriptorAction::Client { part: ClientPart::Namespace, .. } => {
            (!caller.is_empty() && !caller.contains('/'), "namespace")
        }
        DescriptorAction::Client { part: ClientPart::ServiceAccount, .. } => {
            (caller.split('/').filter(|part| !part.is_empty()).count() == 2, "namespace/account")
        }
        DescriptorAction::Header { name, .. } if &**name == ":method" => {
            (http::Method::from_bytes(caller.as_bytes()).is_ok() && miscased_method(caller).is_none(), "method")
        }
        DescriptorAction::PathTemplate { templates, .. } => {
            (templates.iter().any(|(text, _)| **text == *caller), "template of `by`")
        }
        _ => return None,
    };
    (!is_one).then_some(what)
}

impl AdaptiveSpec {
    fn read(&self, most: u32, check: &mut Check) -> AdaptiveConcurrency {
        let mut limit = AdaptiveConcurrency::default();
        limit.most = most;
        limit.least = check.count(self.min.as_ref(), "concurrency.adaptive.min", limit.least.min(most));
        if limit.least > most {
            let span = self.min.as_ref().map_or(self.span, |min| min.span);
            check.fault(span, "concurrency.adaptive.min", format!("more than the most, {most}"));
        }
        let field = "concurrency.adaptive.interval";
        limit.interval = check.time(self.interval.as_ref(), (MILLI, HOUR), field, limit.interval);
        let field = "concurrency.adaptive.percentile";
        limit.percentile = check.percent(self.percentile.as_ref(), 0.0, field, limit.percentile);
        let field = "concurrency.adaptive.tolerancePercent";
        limit.buffer = check.percent(self.tolerance_percent.as_ref(), 0.0, field, limit.buffer);
        limit.unloaded = self.unloaded.read(limit.unloaded, check);
        limit
    }
}

impl UnloadedSpec {
    fn read(&self, usual: UnloadedTime, check: &mut Check) -> UnloadedTime {
        const AT: &str = "concurrency.adaptive.unloaded";
        let measured = [
            self.every.as_ref().map(|every| (every.span, "every")),
            self.requests.as_ref().map(|requests| (requests.span, "requests")),
            self.concurrency.as_ref().map(|concurrency| (concurrency.span, "concurrency")),
        ];
        if let Some(time) = &self.time {
            for (span, name) in measured.into_iter().flatten() {
                check.fault(span, &format!("{AT}.{name}"), "nothing is measured where the time is said");
            }
            let time = check.time(Some(time), (MILLI / 1000, HOUR), &format!("{AT}.time"), HOUR);
            return UnloadedTime::Fixed(time);
        }
        let UnloadedTime::Measured { interval, jitter, requests, at_a_time } = usual else { return usual };
        UnloadedTime::Measured {
            interval: check.time(self.every.as_ref(), (MILLI, 24 * HOUR), &format!("{AT}.every"), interval),
            jitter,
            requests: check.count(self.requests.as_ref(), &format!("{AT}.requests"), requests),
            at_a_time: check.count(self.concurrency.as_ref(), &format!("{AT}.concurrency"), at_a_time),
        }
    }
}

impl ThrottleSpec {
    fn read(&self, check: &mut Check) -> AdmissionControl {
        let mut throttle = AdmissionControl::default();
        let window = check.time(self.window.as_ref(), (SECOND, HOUR), "throttle.window", throttle.window);
        // It is counted in whole seconds.
        throttle.window = Duration::from_secs(window.as_secs());
        if window.subsec_nanos() > 0 {
            let span = self.window.as_ref().map_or(self.span, |window| window.span);
            check.fault(span, "throttle.window", "must be whole seconds");
        }
        let success = self.success_percent.as_ref();
        throttle.enough = check.percent(success, 1.0, "throttle.successPercent", throttle.enough);
        let rejected = self.max_rejected_percent.as_ref();
        throttle.most = check.percent(rejected, 0.0, "throttle.maxRejectedPercent", throttle.most);
        throttle.least_per_second = self.min_requests_per_second.as_ref().map_or(0, |rate| rate.value);
        if let Some(aggression) = &self.aggression {
            if !(1.0..=100.0).contains(&aggression.value) {
                check.fault(aggression.span, "throttle.aggression", "must be 1 to 100");
            }
            // A cast of a float saturates.
            throttle.aggression = (aggression.value * 1e3).round() as u32;
        }
        throttle
    }
}
