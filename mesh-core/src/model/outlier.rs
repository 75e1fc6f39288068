//! Which endpoints are taken for failing, and for how long they get no requests (Envoy's outlier detection).

use std::time::Duration;

/// Outlier detection of a cluster. Percentages are up to 100; an enforcing one says how often what was detected counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutlierDetection {
    /// So many answers of 5xx in a row, and how often that counts.
    pub consecutive_5xx: Consecutive,
    /// So many answers of 502, 503 or 504 in a row.
    pub consecutive_gateway_failure: Consecutive,
    /// So many failures without an answer in a row: where they count apart.
    pub consecutive_local_origin_failure: Consecutive,
    /// Whether failures without an answer count apart, and not as 503 and 504.
    pub split_external_local_origin_errors: bool,
    /// Between two looks at rates, and at those who may come back.
    pub interval: Duration,
    /// The first time out; the second one is twice as long, and so on.
    pub base_ejection_time: Duration,
    /// The longest time out. Never shorter than the first.
    pub max_ejection_time: Duration,
    /// By how much a time out may be longer, by chance.
    pub max_ejection_time_jitter: Duration,
    /// How many endpoints may be out.
    pub max_ejection_percent: u32,
    /// Whether one may be out however few there are.
    pub always_eject_one_host: bool,
    /// Whether one that passes a health check is back at once.
    pub readmits_checked: bool,
    /// Endpoints that succeed far less often than the others.
    pub success_rate: SuccessRate,
    /// Endpoints that fail more often than a threshold.
    pub failure_percentage: FailurePercentage,
}

/// A number of failures in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consecutive {
    /// How many.
    pub failures: u32,
    /// How often that counts, in percent; 0 is never.
    pub enforcing: u32,
}

/// Endpoints that succeed far less often than the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    /// Of how many endpoints there have to be enough requests.
    pub minimum_hosts: u32,
    /// How many requests of an interval are enough.
    pub request_volume: u32,
    /// How many standard deviations below the mean are too far, in thousandths.
    pub stdev_factor: u32,
    /// How often that counts, in percent.
    pub enforcing: u32,
    /// The same for failures without an answer, where they count apart.
    pub enforcing_local_origin: u32,
}

/// Endpoints that fail more often than a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailurePercentage {
    /// The share of failures, in percent, from which on it is too much.
    pub threshold: u32,
    /// Of how many endpoints there have to be enough requests.
    pub minimum_hosts: u32,
    /// How many requests of an interval are enough.
    pub request_volume: u32,
    /// How often that counts, in percent.
    pub enforcing: u32,
    /// The same for failures without an answer, where they count apart.
    pub enforcing_local_origin: u32,
}

/// Envoy's (`outlier_detection.proto`).
impl Default for OutlierDetection {
    fn default() -> Self {
        OutlierDetection {
            consecutive_5xx: Consecutive { failures: 5, enforcing: 100 },
            consecutive_gateway_failure: Consecutive { failures: 5, enforcing: 0 },
            consecutive_local_origin_failure: Consecutive { failures: 5, enforcing: 100 },
            split_external_local_origin_errors: false,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_time_jitter: Duration::ZERO,
            max_ejection_percent: 10,
            always_eject_one_host: false,
            readmits_checked: true,
            success_rate: SuccessRate {
                minimum_hosts: 5,
                request_volume: 100,
                stdev_factor: 1900,
                enforcing: 100,
                enforcing_local_origin: 100,
            },
            failure_percentage: FailurePercentage {
                threshold: 85,
                minimum_hosts: 5,
                request_volume: 50,
                enforcing: 0,
                enforcing_local_origin: 0,
            },
        }
    }
}
