//! What a cluster may have under way, and which of its endpoints are left out (`envoy.config.cluster.v3.CircuitBreakers`
//! and `OutlierDetection`; of the latter's numbers gRFC A50 has the same rules).

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::{Duration as ProtoDuration, UInt32Value};

use super::common::{duration, positive};
use super::notes::{Notes, ignored};
use super::retry;
use crate::error::Invalid;
use crate::model::{
    CircuitBreakers, Consecutive, FailurePercentage, OutlierDetection, RetryLimit, SuccessRate, TcpKeepalive,
};

/// Only the priority DEFAULT is looked at: no request has another. Of several entries for it, the first counts, as in Envoy.
pub(super) fn circuit_breakers(notes: &mut Notes<'_>, value: pb::CircuitBreakers) -> Result<CircuitBreakers, Invalid> {
    let pb::CircuitBreakers { thresholds, per_host_thresholds } = value;
    let mut breakers = CircuitBreakers::ENVOY;
    let mut is_known = false;
    notes.each("thresholds", thresholds, |notes, threshold| {
        // The largest number is how a control plane says that there is no limit (Istio's default).
        let limit = |limit: Option<UInt32Value>| limit.filter(|limit| limit.value < u32::MAX);
        let max_connection_pools = limit(threshold.max_connection_pools);
        ignored!(notes; max_connection_pools);
        let budget = notes.optional("retry_budget", threshold.retry_budget, retry::budget)?;
        if threshold.priority != core::RoutingPriority::Default as i32 || is_known {
            notes.ignore("(of another priority)");
            return Ok(());
        }
        is_known = true;
        let set = |limit: &mut u32, value: Option<UInt32Value>| *limit = value.map_or(*limit, |value| value.value);
        set(&mut breakers.max_connections, threshold.max_connections);
        set(&mut breakers.max_pending_requests, threshold.max_pending_requests);
        set(&mut breakers.max_requests, threshold.max_requests);
        // A budget goes before a number (`CircuitBreakers.Thresholds.retry_budget`). The largest number is what Istio's control
        // plane says where its user has said none.
        let max_retries = threshold.max_retries.map(|max| match max.value {
            u32::MAX => RetryLimit::PaidBySuccesses,
            most => RetryLimit::AtMost(most),
        });
        breakers.retries = budget.or(max_retries).unwrap_or(breakers.retries);
        Ok(())
    })?;
    let mut is_known = false;
    notes.each("per_host_thresholds", per_host_thresholds, |notes, threshold| {
        if threshold.priority != core::RoutingPriority::Default as i32 || is_known {
            notes.ignore("(of another priority)");
            return Ok(());
        }
        is_known = true;
        if let Some(max) = threshold.max_connections {
            breakers.max_connections_per_host = max.value;
        }
        let pb::circuit_breakers::Thresholds { max_pending_requests, max_requests, max_retries, .. } = threshold;
        // Envoy refuses them here.
        for (name, limit) in [
            ("max_pending_requests", max_pending_requests),
            ("max_requests", max_requests),
            ("max_retries", max_retries),
        ] {
            if limit.is_some() {
                return Err(Invalid::new("only max_connections has a meaning for each host").at(name));
            }
        }
        Ok(())
    })?;
    Ok(breakers)
}

/// Outlier detection: what is not set is Envoy's default.
pub(super) fn outlier_detection(
    notes: &mut Notes<'_>,
    value: pb::OutlierDetection,
) -> Result<OutlierDetection, Invalid> {
    let default = OutlierDetection::default();
    notes.ignore_if_set("monitors", &value.monitors);
    let count = |value: Option<UInt32Value>, default: u32| value.map_or(default, |value| value.value);
    let share = |name, value: Option<UInt32Value>, default: u32| match count(value, default) {
        share if share > 100 => Err(Invalid::new("more than 100").at(name)),
        share => Ok(share),
    };
    let base = time("base_ejection_time", value.base_ejection_time, default.base_ejection_time, positive)?;
    Ok(OutlierDetection {
        consecutive_5xx: Consecutive {
            failures: count(value.consecutive_5xx, default.consecutive_5xx.failures),
            enforcing: share(
                "enforcing_consecutive_5xx",
                value.enforcing_consecutive_5xx,
                default.consecutive_5xx.enforcing,
            )?,
        },
        consecutive_gateway_failure: Consecutive {
            failures: count(value.consecutive_gateway_failure, default.consecutive_gateway_failure.failures),
            enforcing: share(
                "enforcing_consecutive_gateway_failure",
                value.enforcing_consecutive_gateway_failure,
                default.consecutive_gateway_failure.enforcing,
            )?,
        },
        consecutive_local_origin_failure: Consecutive {
            failures: count(value.consecutive_local_origin_failure, default.consecutive_local_origin_failure.failures),
            enforcing: share(
                "enforcing_consecutive_local_origin_failure",
                value.enforcing_consecutive_local_origin_failure,
                default.consecutive_local_origin_failure.enforcing,
            )?,
        },
        split_external_local_origin_errors: value.split_external_local_origin_errors,
        interval: time("interval", value.interval, default.interval, positive)?,
        base_ejection_time: base,
        max_ejection_time: time("max_ejection_time", value.max_ejection_time, default.max_ejection_time, positive)?,
        max_ejection_time_jitter: time(
            "max_ejection_time_jitter",
            value.max_ejection_time_jitter,
            default.max_ejection_time_jitter,
            duration,
        )?,
        max_ejection_percent: share("max_ejection_percent", value.max_ejection_percent, default.max_ejection_percent)?,
        readmits_checked: value.successful_active_health_check_uneject_host.is_none_or(|readmits| readmits.value),
        always_eject_one_host: value.always_eject_one_host.is_some_and(|always| always.value),
        success_rate: SuccessRate {
            minimum_hosts: count(value.success_rate_minimum_hosts, default.success_rate.minimum_hosts),
            request_volume: count(value.success_rate_request_volume, default.success_rate.request_volume),
            stdev_factor: count(value.success_rate_stdev_factor, default.success_rate.stdev_factor),
            enforcing: share("enforcing_success_rate", value.enforcing_success_rate, default.success_rate.enforcing)?,
            enforcing_local_origin: share(
                "enforcing_local_origin_success_rate",
                value.enforcing_local_origin_success_rate,
                default.success_rate.enforcing_local_origin,
            )?,
        },
        failure_percentage: FailurePercentage {
            threshold: share(
                "failure_percentage_threshold",
                value.failure_percentage_threshold,
                default.failure_percentage.threshold,
            )?,
            minimum_hosts: count(value.failure_percentage_minimum_hosts, default.failure_percentage.minimum_hosts),
            request_volume: count(value.failure_percentage_request_volume, default.failure_percentage.request_volume),
            enforcing: share(
                "enforcing_failure_percentage",
                value.enforcing_failure_percentage,
                default.failure_percentage.enforcing,
            )?,
            enforcing_local_origin: share(
                "enforcing_failure_percentage_local_origin",
                value.enforcing_failure_percentage_local_origin,
                default.failure_percentage.enforcing_local_origin,
            )?,
        },
    })
}

fn time(
    name: &str,
    value: Option<ProtoDuration>,
    default: Duration,
    read: fn(&ProtoDuration) -> Result<Duration, Invalid>,
) -> Result<Duration, Invalid> {
    value.map_or(Ok(default), |value| read(&value).map_err(|invalid| invalid.at(name)))
}

/// How connections are made (`UpstreamConnectionOptions`).
pub(super) fn connection_options(
    notes: &mut Notes<'_>,
    value: pb::UpstreamConnectionOptions,
) -> Result<Option<TcpKeepalive>, Invalid> {
    let pb::UpstreamConnectionOptions {
        tcp_keepalive,
        set_local_interface_name_on_upstream_connections: _,
        happy_eyeballs_config,
    } = value;
    ignored!(notes; happy_eyeballs_config);
    Ok(tcp_keepalive.map(|keepalive| {
        let count = |value: Option<UInt32Value>| value.map(|value| value.value).filter(|value| *value > 0);
        let seconds = |value| count(value).map(|seconds| Duration::from_secs(seconds.into()));
        TcpKeepalive {
            probes: count(keepalive.keepalive_probes),
            time: seconds(keepalive.keepalive_time),
            interval: seconds(keepalive.keepalive_interval),
        }
    }))
}
