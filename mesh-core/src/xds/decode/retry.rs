//! When a route tries again (`envoy.config.route.v3.RetryPolicy`), and how many retries a cluster allows.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use http::{HeaderName, StatusCode};
use prost::Name;

use super::common::{duration, percent, positive, unpack};
use super::notes::{Notes, ignored};
use super::route_match::header_test;
use crate::error::Invalid;
use crate::model::{Fraction, RateLimitedBackOff, RetryBackOff, RetryConditions, RetryLimit, RetryPolicy};

/// The longest that an answer can ask a retry to wait where the policy does not say (`rate_limited_retry_back_off`).
const RATE_LIMITED_MAX: Duration = Duration::from_secs(300);

/// A retry policy (gRFC A44's rules on its numbers).
pub(super) fn policy(notes: &mut Notes<'_>, value: pb::RetryPolicy) -> Result<Arc<RetryPolicy>, Invalid> {
    notes.retry(value, own_policy)
}

fn own_policy(notes: &mut Notes<'_>, value: pb::RetryPolicy) -> Result<RetryPolicy, Invalid> {
    let pb::RetryPolicy {
        retry_on,
        num_retries,
        per_try_timeout,
        per_try_idle_timeout,
        retry_priority,
        retry_host_predicate,
        retry_options_predicates,
        // A retry looks for another endpoint until it has found one.
        host_selection_retry_max_attempts: _,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off,
        retriable_headers,
        retriable_request_headers,
        refresh_cluster_on_retry,
    } = value;
    ignored!(notes;
        per_try_idle_timeout, retry_options_predicates, refresh_cluster_on_retry);
    let retries = num_retries.map_or(1, |retries| retries.value);
    if retries == 0 {
        return Err(Invalid::new("must be at least 1").at("num_retries"));
    }
    let back_off = notes.optional("retry_back_off", retry_back_off, back_off)?.unwrap_or(RetryBackOff::DEFAULT);
    let per_try_timeout = notes.optional("per_try_timeout", per_try_timeout, |_, value| duration(&value))?;
    let predicates = notes.each("retry_host_predicate", retry_host_predicate, |notes, predicate| {
        let is_previous_hosts = predicate.name == PREVIOUS_HOSTS;
        if !is_previous_hosts {
            notes.ignore("name");
        }
        Ok(is_previous_hosts)
    })?;
    Ok(RetryPolicy {
        on: RetryConditions::parse(&retry_on),
        retries,
        statuses: notes.each("retriable_status_codes", retriable_status_codes, |_, code| status(code))?,
        headers: notes.each("retriable_headers", retriable_headers, header_test)?,
        request_headers: notes.each("retriable_request_headers", retriable_request_headers, header_test)?,
        // Zero is as long as the request may take.
        per_try_timeout: per_try_timeout.filter(|limit| !limit.is_zero()),
        avoids_tried: predicates.contains(&true),
        // Said beside the policy.
        hedges: false,
        previous_priorities: notes.optional("retry_priority", retry_priority, priorities)?.flatten(),
        back_off,
        rate_limited: notes.optional("rate_limited_retry_back_off", rate_limited_retry_back_off, rate_limited)?,
    })
}

/// Whether tries that take too long go on beside the next ones.
pub(super) fn hedges(notes: &mut Notes<'_>, value: pb::HedgePolicy) -> Result<bool, Invalid> {
    let pb::HedgePolicy { initial_requests, additional_request_chance, hedge_on_per_try_timeout } = value;
    if initial_requests.as_ref().is_some_and(|requests| requests.value == 0) {
        return Err(Invalid::new("must be at least 1").at("initial_requests"));
    }
    if initial_requests.is_some_and(|requests| requests.value > 1) {
        notes.ignore("initial_requests");
    }
    ignored!(notes; additional_request_chance);
    Ok(hedge_on_per_try_timeout)
}

/// The predicate by which a retry goes to an endpoint that was not tried yet.
const PREVIOUS_HOSTS: &str = "envoy.retry_host_predicates.previous_hosts";

/// How often the priorities that were tried count. Another way to choose among them is told of, and has no effect.
fn priorities(notes: &mut Notes<'_>, value: pb::retry_policy::RetryPriority) -> Result<Option<NonZeroU32>, Invalid> {
    use pb::retry_policy::retry_priority::ConfigType;
    let Some(ConfigType::TypedConfig(any)) = value.config_type else {
        return Err(Invalid::new("missing").at("typed_config"));
    };
    if any.type_url != PreviousPrioritiesConfig::type_url() {
        notes.ignore("typed_config");
        return Ok(None);
    }
    let config: PreviousPrioritiesConfig = unpack(&any).map_err(|invalid| invalid.at("typed_config"))?;
    let frequency = u32::try_from(config.update_frequency).ok().and_then(NonZeroU32::new);
    let invalid = || Invalid::new("must be more than zero").at("update_frequency").at("typed_config");
    frequency.map(Some).ok_or_else(invalid)
}

fn status(code: u32) -> Result<StatusCode, Invalid> {
    let code = u16::try_from(code).ok().filter(|code| (100..=599).contains(code));
    let status = code.and_then(|code| StatusCode::from_u16(code).ok());
    status.ok_or_else(|| Invalid::new("not a status from 100 to 599"))
}

fn rate_limited(
    notes: &mut Notes<'_>,
    value: pb::retry_policy::RateLimitedRetryBackOff,
) -> Result<RateLimitedBackOff, Invalid> {
    use pb::retry_policy::ResetHeaderFormat;
    let pb::retry_policy::RateLimitedRetryBackOff { reset_headers, max_interval } = value;
    let headers = notes.each("reset_headers", reset_headers, |notes, header| {
        let name = HeaderName::try_from(&header.name).map_err(|_| Invalid::new("not a header name").at("name"))?;
        // A time of day: nothing here looks at the clock on the wall.
        let is_duration = header.format == ResetHeaderFormat::Seconds as i32;
        if !is_duration {
            notes.ignore("format");
        }
        Ok(is_duration.then_some(name))
    })?;
    let max_interval = notes.optional("max_interval", max_interval, |_, value| positive(&value))?;
    Ok(RateLimitedBackOff {
        headers: headers.into_iter().flatten().collect(),
        max_interval: max_interval.unwrap_or(RATE_LIMITED_MAX),
    })
}

fn back_off(notes: &mut Notes<'_>, value: pb::retry_policy::RetryBackOff) -> Result<RetryBackOff, Invalid> {
    let base = notes.required("base_interval", value.base_interval, |_, value| positive(&value))?;
    let max = notes.optional("max_interval", value.max_interval, |_, value| positive(&value))?;
    match max {
        Some(max) if max < base => Err(Invalid::new("must not be less than base_interval").at("max_interval")),
        Some(max) => Ok(RetryBackOff { base, max }),
        None => Ok(RetryBackOff::of(base)),
    }
}

/// How many retries there may be for those that are in flight.
pub(super) fn budget(
    notes: &mut Notes<'_>,
    value: cluster::circuit_breakers::thresholds::RetryBudget,
) -> Result<RetryLimit, Invalid> {
    let cluster::circuit_breakers::thresholds::RetryBudget { budget_percent, budget_interval, min_retry_concurrency } =
        value;
    let share = notes.optional("budget_percent", budget_percent, |_, share| percent(&share))?.unwrap_or(20.0);
    // From 0 to 100, so that it fits.
    let share = Fraction::new((share * 10_000.0).round() as u32, 1_000_000);
    let interval = notes.optional("budget_interval", budget_interval, |_, value| duration(&value))?;
    Ok(RetryLimit::Budget {
        share,
        at_least: min_retry_concurrency.map_or(3, |least| least.value),
        interval: interval.unwrap_or_default(),
    })
}
