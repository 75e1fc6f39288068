//! Outlier detection: which endpoints fail so much that they get no requests for a while.
//!
//! [`Record`] is what is known of one endpoint: each try that ends is noted in it, which costs a few counters.
//! [`Detector`] is asked where a record says that something is wrong, and once an interval; `now` and chance are
//! arguments. Rules and formulas are Envoy's (`outlier_detection_impl.cc`); what gRPC does otherwise stands in gRFC A50.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::list::List;
use crate::model::{Consecutive, OutlierDetection};

/// How a try ended, as far as its endpoint is concerned. What the mesh or the caller ended by itself says nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer of this HTTP status.
    Status(u16),
    /// Without an answer: no connection could be made, or it was lost.
    LocalFailure,
    /// Without an answer in time.
    LocalTimeout,
}

impl Outcome {
    /// With an answer of this gRPC status, by the HTTP status that stands for it (Envoy's `grpcToHttpStatus`).
    ///
    /// ```
    /// use mesh_core::outlier::Outcome;
    ///
    /// assert_eq!(Outcome::of_grpc(14), Outcome::Status(503)); // UNAVAILABLE
    /// assert_eq!(Outcome::of_grpc(5), Outcome::Status(404)); // NOT_FOUND
    /// ```
    pub fn of_grpc(code: u32) -> Outcome {
        Outcome::Status(match code {
            0 => 200,
            1 => 499,
            3 | 9 | 11 => 400,
            4 => 504,
            5 => 404,
            6 | 10 => 409,
            7 => 403,
            8 => 429,
            12 => 501,
            14 => 503,
            16 => 401,
            _ => 500,
        })
    }
}

/// Why an endpoint is taken for an outlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Reason {
    /// Answers of 5xx in a row.
    Consecutive5xx,
    /// Answers of 502, 503 or 504 in a row.
    ConsecutiveGatewayFailure,
    /// Failures without an answer in a row.
    ConsecutiveLocalOriginFailure,
    /// It succeeds far less often than the others.
    SuccessRate,
    /// It fails too often.
    FailurePercentage,
}

impl Reason {
    /// In the words of gRPC (gRFC A91), and of Envoy where gRPC has none.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Consecutive5xx => "consecutive_5xx",
            Reason::ConsecutiveGatewayFailure => "consecutive_gateway_failure",
            Reason::ConsecutiveLocalOriginFailure => "consecutive_local_origin_failure",
            Reason::SuccessRate => "success_rate",
            Reason::FailurePercentage => "failure_percentage",
        }
    }
}

/// How often endpoints were taken for outliers, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ejections {
    /// They were ejected.
    pub enforced: u64,
    /// They were not, since only a share of them is (`enforcing`).
    pub spared: u64,
    /// They were not, since too many were out.
    pub overflows: u64,
}

/// What is known of one endpoint.
#[derive(Debug, Default)]
pub struct Record {
    consecutive_5xx: AtomicU32,
    consecutive_gateway_failure: AtomicU32,
    consecutive_local_origin_failure: AtomicU32,
    external: Bucket,
    local: Bucket,
    is_ejected: AtomicBool,
    turn: Mutex<Turn>,
}

/// What came of the tries of one interval.
#[derive(Debug, Default)]
struct Bucket {
    successes: AtomicU32,
    total: AtomicU32,
}

impl Bucket {
    fn note(&self, success: bool) {
        self.total.fetch_add(1, Ordering::Relaxed);
        self.successes.fetch_add(u32::from(success), Ordering::Relaxed);
    }

    /// Successes and all, and from the beginning again.
    fn take(&self) -> (u32, u32) {
        let total = self.total.swap(0, Ordering::Relaxed);
        (self.successes.swap(0, Ordering::Relaxed).min(total), total)
    }
}

/// Since when an endpoint is out, and how often it was.
#[derive(Debug, Default)]
struct Turn {
    ejected_at: Option<Instant>,
    jitter: Duration,
    /// How many times the first time it is out, or would be.
    multiplier: u32,
}

impl Record {
    /// Whether it gets no requests now.
    #[inline]
    pub fn is_ejected(&self) -> bool {
        self.is_ejected.load(Ordering::Relaxed)
    }

    /// Notes how a try ended. What that is the last straw for is to be told to [`Detector::eject`].
    pub fn note(&self, config: &OutlierDetection, outcome: Outcome) -> [Option<Reason>; 2] {
        let status = match outcome {
            Outcome::Status(status) => status,
            Outcome::LocalFailure | Outcome::LocalTimeout if config.split_external_local_origin_errors => {
                self.local.note(false);
                let is_last = reaches(&self.consecutive_local_origin_failure, config.consecutive_local_origin_failure);
                return [is_last.then_some(Reason::ConsecutiveLocalOriginFailure), None];
            }
            Outcome::LocalFailure => 503,
            Outcome::LocalTimeout => 504,
        };
        if config.split_external_local_origin_errors {
            self.local.note(true);
            reset(&self.consecutive_local_origin_failure);
        }
        let is_failure = (500..600).contains(&status);
        self.external.note(!is_failure);
        if !is_failure {
            reset(&self.consecutive_5xx);
            reset(&self.consecutive_gateway_failure);
            return [None, None];
        }
        let is_gateway_failure = (502..=504).contains(&status)
            && reaches(&self.consecutive_gateway_failure, config.consecutive_gateway_failure);
        if !(502..=504).contains(&status) {
            reset(&self.consecutive_gateway_failure);
        }
        let is_5xx = reaches(&self.consecutive_5xx, config.consecutive_5xx);
        [is_gateway_failure.then_some(Reason::ConsecutiveGatewayFailure), is_5xx.then_some(Reason::Consecutive5xx)]
    }

    fn turn(&self) -> std::sync::MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reset_consecutive(&self) {
        reset(&self.consecutive_5xx);
        reset(&self.consecutive_gateway_failure);
        reset(&self.consecutive_local_origin_failure);
    }
}

/// One failure more in a row: whether that is as many as it takes. What is above goes on to count, as in Envoy.
fn reaches(counter: &AtomicU32, consecutive: Consecutive) -> bool {
    counter.fetch_add(1, Ordering::Relaxed).wrapping_add(1) == consecutive.failures
}

/// A success is the usual case: it writes nothing where nothing is to be reset.
fn reset(counter: &AtomicU32) {
    if counter.load(Ordering::Relaxed) != 0 {
        counter.store(0, Ordering::Relaxed);
    }
}

/// Decides for the endpoints of one cluster.
#[derive(Debug, Default)]
pub struct Detector {
    hosts: List<Arc<Record>>,
    next_sweep: Option<Instant>,
    by_reason: BTreeMap<Reason, Ejections>,
}

impl Detector {
    /// The endpoints that there are now.
    pub fn set_hosts(&mut self, hosts: List<Arc<Record>>) {
        self.hosts = hosts;
    }

    /// There is no detection any more: who is out is back.
    pub fn end(&mut self) {
        for host in &std::mem::take(&mut self.hosts) {
            self.readmit(host);
        }
    }

    /// How many endpoints were ejected since the start.
    pub fn ejections(&self) -> u64 {
        self.by_reason.values().map(|counts| counts.enforced).sum()
    }

    /// How often an endpoint was not ejected since too many are out.
    pub fn overflows(&self) -> u64 {
        self.by_reason.values().map(|counts| counts.overflows).sum()
    }

    /// Both, by the reason.
    pub fn by_reason(&self) -> &BTreeMap<Reason, Ejections> {
        &self.by_reason
    }

    /// When [`Detector::sweep`] is due; `None` before the first.
    pub fn next_sweep(&self) -> Option<Instant> {
        self.next_sweep
    }

    /// Begins the first interval.
    pub fn begin(&mut self, config: &OutlierDetection, now: Instant) {
        self.next_sweep = now.checked_add(config.interval);
    }

    /// Puts an endpoint out, if the reason counts this time and not too many are out already. Whether it does.
    pub fn eject(
        &mut self,
        config: &OutlierDetection,
        host: &Record,
        reason: Reason,
        now: Instant,
        random: &mut fastrand::Rng,
    ) -> bool {
        match reason {
            Reason::Consecutive5xx => reset(&host.consecutive_5xx),
            Reason::ConsecutiveGatewayFailure => reset(&host.consecutive_gateway_failure),
            Reason::ConsecutiveLocalOriginFailure => reset(&host.consecutive_local_origin_failure),
            Reason::SuccessRate | Reason::FailurePercentage => {}
        }
        let enforcing = match reason {
            Reason::Consecutive5xx => config.consecutive_5xx.enforcing,
            Reason::ConsecutiveGatewayFailure => config.consecutive_gateway_failure.enforcing,
            Reason::ConsecutiveLocalOriginFailure => config.consecutive_local_origin_failure.enforcing,
            Reason::SuccessRate => config.success_rate.enforcing,
            Reason::FailurePercentage => config.failure_percentage.enforcing,
        };
        self.enforce(config, host, (reason, enforcing), now, random)
    }

    fn enforce(
        &mut self,
        config: &OutlierDetection,
        host: &Record,
        (reason, enforcing): (Reason, u32),
        now: Instant,
        random: &mut fastrand::Rng,
    ) -> bool {
        let is_known = self.hosts.iter().any(|known| std::ptr::eq(&**known, host));
        if host.is_ejected() || !is_known {
            return false;
        }
        let counts = self.by_reason.entry(reason).or_default();
        if random.u32(0..100) >= enforcing {
            counts.spared += 1;
            return false;
        }
        let ejected = self.hosts.iter().filter(|host| host.is_ejected()).count() as u64;
        let is_within = (ejected + 1) * 100 <= u64::from(config.max_ejection_percent) * self.hosts.len() as u64;
        let is_the_one = config.always_eject_one_host && ejected == 0;
        if !is_within && !is_the_one {
            counts.overflows += 1;
            return false;
        }
        let mut turn = host.turn();
        // It grows no further than it takes to be out for the longest time.
        let longest = longest(config);
        if config.base_ejection_time.saturating_mul(turn.multiplier) < longest {
            turn.multiplier += 1;
        }
        turn.ejected_at = Some(now);
        turn.jitter = config.max_ejection_time_jitter.mul_f64(random.f64());
        host.is_ejected.store(true, Ordering::Relaxed);
        counts.enforced += 1;
        true
    }

    /// Lets an endpoint back before its time is over. Whether it was out.
    pub fn readmit(&mut self, host: &Record) -> bool {
        let mut turn = host.turn();
        if !host.is_ejected() {
            return false;
        }
        turn.ejected_at = None;
        host.reset_consecutive();
        host.is_ejected.store(false, Ordering::Relaxed);
        true
    }

    /// The end of an interval: who was out long enough comes back, and rates are compared. Whether anything changed.
    pub fn sweep(&mut self, config: &OutlierDetection, now: Instant, random: &mut fastrand::Rng) -> bool {
        self.next_sweep = now.checked_add(config.interval);
        let mut is_changed = false;
        for host in &self.hosts {
            is_changed |= turn_over(config, host, now);
        }
        for (bucket, success_rate, failure_percentage) in [
            (external as fn(&Record) -> &Bucket, config.success_rate.enforcing, config.failure_percentage.enforcing),
            (local, config.success_rate.enforcing_local_origin, config.failure_percentage.enforcing_local_origin),
        ] {
            let rates: Vec<_> = self.hosts.iter().map(|host| (Arc::clone(host), bucket(host).take())).collect();
            for host in below_the_others(config, &rates) {
                is_changed |= self.enforce(config, &host, (Reason::SuccessRate, success_rate), now, random);
            }
            for host in above_the_threshold(config, &rates) {
                is_changed |= self.enforce(config, &host, (Reason::FailurePercentage, failure_percentage), now, random);
            }
        }
        is_changed
    }
}

fn external(host: &Record) -> &Bucket {
    &host.external
}

fn local(host: &Record) -> &Bucket {
    &host.local
}

fn longest(config: &OutlierDetection) -> Duration {
    config.max_ejection_time.max(config.base_ejection_time)
}

/// Lets an endpoint back whose time is over; one that was not out has one time less to answer for. Whether it is back.
fn turn_over(config: &OutlierDetection, host: &Record, now: Instant) -> bool {
    let mut turn = host.turn();
    let Some(ejected_at) = turn.ejected_at.filter(|_| host.is_ejected()) else {
        turn.multiplier = turn.multiplier.saturating_sub(1);
        return false;
    };
    let time = config.base_ejection_time.saturating_mul(turn.multiplier).min(longest(config));
    if now.saturating_duration_since(ejected_at) < time.saturating_add(turn.jitter) {
        return false;
    }
    turn.ejected_at = None;
    host.reset_consecutive();
    host.is_ejected.store(false, Ordering::Relaxed);
    true
}

/// What came of the tries of one interval, by endpoint.
type Rates = [(Arc<Record>, (u32, u32))];

/// Those with enough requests, and how many percent of them succeeded; nobody, where they are too few.
fn measured(rates: &Rates, request_volume: u32, minimum_hosts: u32) -> Vec<(&Arc<Record>, f64)> {
    let enough = rates.iter().filter(|(host, (_, total))| !host.is_ejected() && *total >= request_volume.max(1));
    let measured: Vec<_> =
        enough.map(|(host, (good, total))| (host, f64::from(*good) * 100.0 / f64::from(*total))).collect();
    if measured.len() < minimum_hosts as usize { Vec::new() } else { measured }
}

/// Those who succeed less often than the mean, by more than some standard deviations.
fn below_the_others(config: &OutlierDetection, rates: &Rates) -> Vec<Arc<Record>> {
    let rule = config.success_rate;
    let measured = measured(rates, rule.request_volume, rule.minimum_hosts);
    let count = measured.len() as f64;
    let mean = measured.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    let variance = measured.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
    let threshold = mean - variance.sqrt() * f64::from(rule.stdev_factor) / 1000.0;
    measured.into_iter().filter(|(_, rate)| *rate < threshold).map(|(host, _)| Arc::clone(host)).collect()
}

/// Those who fail as often as the threshold says, or more often.
fn above_the_threshold(config: &OutlierDetection, rates: &Rates) -> Vec<Arc<Record>> {
    let rule = config.failure_percentage;
    let measured = measured(rates, rule.request_volume, rule.minimum_hosts);
    let fails = |rate: f64| 100.0 - rate >= f64::from(rule.threshold);
    measured.into_iter().filter(|(_, rate)| fails(*rate)).map(|(host, _)| Arc::clone(host)).collect()
}

#[cfg(test)]
mod tests;
