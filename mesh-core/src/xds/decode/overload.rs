//! How many requests there may be at a time (`adaptive_concurrency`), and which are held back (`admission_control`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{RuntimeFeatureFlag, RuntimePercent};
use envoy_types::pb::envoy::config::route::v3::RateLimit;
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3 as concurrency;
use envoy_types::pb::envoy::extensions::filters::http::admission_control::v3 as admission;
use envoy_types::pb::envoy::r#type::v3::{Int32Range, Percent};
use envoy_types::pb::google::protobuf::{Any, Duration as ProtoDuration, UInt32Value};
use prost::Message;

use super::common::{duration, parse, percent, positive, status_from, unpack};
use super::notes::Notes;
use super::rate_limits::rate_limit;
use crate::error::Invalid;
use crate::model::{AdaptiveConcurrency, AdmissionControl, ConcurrencyQueue, FilterConfig, Fraction, UnloadedTime};

/// Envoy takes no interval that is shorter.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);

/// The longest window of admission control here: each of its seconds is kept.
const LONGEST_WINDOW: Duration = Duration::from_secs(3600);

/// What `mesh-control` says besides, to the library alone: behind the fields that Envoy knows, in the same message.
#[derive(Clone, PartialEq, Message)]
pub struct AdaptiveConcurrencyBesides {
    /// How much of the limit requests may take that can be left out.
    #[prost(message, optional, tag = "1000")]
    pub sheddable: Option<Percent>,
    /// Where requests wait for a place.
    #[prost(message, optional, tag = "1001")]
    pub queue: Option<QueueBesides>,
}

/// Where requests wait for a place: [`ConcurrencyQueue`], field by field.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "its model says it")]
pub struct QueueBesides {
    #[prost(uint32, tag = "1")]
    pub most: u32,
    #[prost(message, optional, tag = "2")]
    pub wait: Option<ProtoDuration>,
    #[prost(message, optional, tag = "3")]
    pub by: Option<RateLimit>,
    #[prost(btree_map = "string, uint32", tag = "4")]
    pub weights: BTreeMap<String, u32>,
}

pub(super) fn adaptive_concurrency(notes: &mut Notes<'_>, any: &Any) -> Result<FilterConfig, Invalid> {
    use concurrency::adaptive_concurrency::ConcurrencyControllerConfig::GradientControllerConfig;
    let concurrency::AdaptiveConcurrency { enabled, concurrency_limit_exceeded_status, concurrency_controller_config } =
        unpack(any)?;
    let AdaptiveConcurrencyBesides { sheddable, queue: waiting } = parse(&any.value)?;
    let Some(GradientControllerConfig(gradient)) = concurrency_controller_config else {
        return Err(Invalid::new("missing").at("gradient_controller_config"));
    };
    let mut config = notes.field("gradient_controller_config", |notes| gradient_controller(notes, gradient))?;
    if let Some(share) = share(notes, "sheddable", sheddable)? {
        config.sheddable = share;
    }
    config.queue = notes.optional("queue", waiting, queue)?.map(Arc::new);
    // As in Envoy, what is no error is 503.
    config.status =
        concurrency_limit_exceeded_status.and_then(|status| status_from(400, &status)).unwrap_or(config.status);
    Ok(if is_off(enabled) { FilterConfig::Disabled } else { FilterConfig::AdaptiveConcurrency(Arc::new(config)) })
}

fn queue(notes: &mut Notes<'_>, value: QueueBesides) -> Result<ConcurrencyQueue, Invalid> {
    let QueueBesides { most, wait, by, weights } = value;
    let mut queue = ConcurrencyQueue::new(most);
    if !(1..=ConcurrencyQueue::MOST).contains(&most) {
        return Err(Invalid::new(format!("must be 1 to {}", ConcurrencyQueue::MOST)).at("most"));
    }
    queue.wait = notes.required("wait", wait, |_, value| positive(&value))?;
    if queue.wait > ConcurrencyQueue::LONGEST {
        return Err(Invalid::new(format!("longer than {:?}", ConcurrencyQueue::LONGEST)).at("wait"));
    }
    if let Some(by) = notes.optional("by", by, rate_limit)? {
        queue.by = by.map(Arc::new).ok_or_else(|| Invalid::new("nothing that is known here").at("by"))?;
    }
    if weights.values().any(|weight| !(1..=ConcurrencyQueue::HEAVIEST).contains(weight)) {
        return Err(Invalid::new(format!("must be 1 to {}", ConcurrencyQueue::HEAVIEST)).at("weights"));
    }
    queue.weights = weights;
    Ok(queue)
}

fn gradient_controller(
    notes: &mut Notes<'_>,
    value: concurrency::GradientControllerConfig,
) -> Result<AdaptiveConcurrency, Invalid> {
    let concurrency::GradientControllerConfig {
        sample_aggregate_percentile,
        concurrency_limit_params,
        min_rtt_calc_params,
    } = value;
    let usual = AdaptiveConcurrency::default();
    let percentile = share(notes, "sample_aggregate_percentile", sample_aggregate_percentile)?;
    let (unloaded, buffer, at_a_time) = notes.required("min_rtt_calc_params", min_rtt_calc_params, min_rtt)?;
    let (most, least, interval) =
        notes.required("concurrency_limit_params", concurrency_limit_params, |notes, value| {
            let concurrency::gradient_controller_config::ConcurrencyLimitCalculationParams {
                max_concurrency_limit,
                concurrency_update_interval,
                min_concurrency_limit,
            } = value;
            let most = count("max_concurrency_limit", max_concurrency_limit)?.unwrap_or(usual.most);
            let least = count("min_concurrency_limit", min_concurrency_limit)?.unwrap_or(at_a_time);
            if least > most {
                let reason = format!("the least, {least}, is more than the most, {most}");
                return Err(Invalid::new(reason).at("min_concurrency_limit"));
            }
            let interval = notes
                .required("concurrency_update_interval", concurrency_update_interval, |_, value| positive(&value))?;
            Ok((most, least, interval))
        })?;
    Ok(AdaptiveConcurrency {
        most,
        least,
        interval,
        percentile: percentile.unwrap_or(usual.percentile),
        unloaded,
        buffer: buffer.unwrap_or(usual.buffer),
        ..usual
    })
}

/// The time without load, what counts as none, and the limit while it is measured.
fn min_rtt(
    notes: &mut Notes<'_>,
    value: concurrency::gradient_controller_config::MinimumRttCalculationParams,
) -> Result<(UnloadedTime, Option<Fraction>, u32), Invalid> {
    let concurrency::gradient_controller_config::MinimumRttCalculationParams {
        interval,
        fixed_value,
        request_count,
        jitter,
        min_concurrency,
        buffer,
    } = value;
    let requests = count("request_count", request_count)?.unwrap_or(50);
    let jitter = share(notes, "jitter", jitter)?.unwrap_or(Fraction::new(15, 100));
    let at_a_time = count("min_concurrency", min_concurrency)?.unwrap_or(3);
    let buffer = share(notes, "buffer", buffer)?;
    let interval = notes.optional("interval", interval, |_, value| duration(&value))?.unwrap_or_default();
    let fixed = notes.optional("fixed_value", fixed_value, |_, value| positive(&value))?;
    let unloaded = match (interval, fixed) {
        (Duration::ZERO, None) => return Err(Invalid::new("missing, where interval is not there").at("fixed_value")),
        (Duration::ZERO, Some(fixed)) => UnloadedTime::Fixed(fixed),
        (interval, _) if interval < SHORTEST_INTERVAL => {
            return Err(Invalid::new(format!("shorter than {SHORTEST_INTERVAL:?}")).at("interval"));
        }
        (interval, fixed) => {
            if fixed.is_some() {
                notes.ignore("fixed_value (the time is measured, since there is an interval)");
            }
            UnloadedTime::Measured { interval, jitter, requests, at_a_time }
        }
    };
    Ok((unloaded, buffer, at_a_time))
}

pub(super) fn admission_control(
    notes: &mut Notes<'_>,
    value: admission::AdmissionControl,
) -> Result<FilterConfig, Invalid> {
    use admission::admission_control::EvaluationCriteria::SuccessCriteria;
    let admission::AdmissionControl {
        enabled,
        sampling_window,
        aggression,
        sr_threshold,
        rps_threshold,
        max_rejection_probability,
        evaluation_criteria,
    } = value;
    let mut config = AdmissionControl::default();
    let Some(SuccessCriteria(criteria)) = evaluation_criteria else {
        return Err(Invalid::new("missing").at("success_criteria"));
    };
    notes.field("success_criteria", |notes| {
        let admission::admission_control::SuccessCriteria { http_criteria, grpc_criteria } = criteria;
        if let Some(criteria) = http_criteria {
            config.statuses = notes.field("http_criteria", |notes| {
                let statuses =
                    notes.each("http_success_status", criteria.http_success_status, |_, range| statuses(range))?;
                if statuses.is_empty() {
                    Err(Invalid::new("the list is empty").at("http_success_status"))
                } else {
                    Ok(statuses)
                }
            })?;
        }
        if let Some(criteria) = grpc_criteria {
            if criteria.grpc_success_status.is_empty() {
                return Err(Invalid::new("the list is empty").at("grpc_criteria.grpc_success_status"));
            }
            config.grpc_statuses = criteria.grpc_success_status;
        }
        Ok(())
    })?;
    if let Some(window) = notes.optional("sampling_window", sampling_window, |_, value| duration(&value))? {
        if !(Duration::from_secs(1)..=LONGEST_WINDOW).contains(&window) {
            let reason = format!("must be 1 s to {} s", LONGEST_WINDOW.as_secs());
            return Err(Invalid::new(reason).at("sampling_window"));
        }
        // Envoy counts in whole seconds.
        config.window = Duration::from_secs((window + Duration::from_millis(500)).as_secs());
    }
    if let Some(aggression) = aggression {
        let value = aggression.default_value;
        if !value.is_finite() || value < 0.0 {
            return Err(Invalid::new("must be a number from 0").at("aggression.default_value"));
        }
        // A cast of a float saturates.
        config.aggression = (value.max(1.0) * 1e3) as u32;
    }
    let mut runtime = |name: &'static str, value: Option<RuntimePercent>| {
        notes.field(name, |notes| share(notes, "default_value", value.and_then(|value| value.default_value)))
    };
    if let Some(share) = runtime("sr_threshold", sr_threshold)? {
        if share < Fraction::new(1, 100) {
            return Err(Invalid::new("must be 1 % at least").at("sr_threshold.default_value"));
        }
        config.enough = share;
    }
    if let Some(share) = runtime("max_rejection_probability", max_rejection_probability)? {
        config.most = share;
    }
    config.least_per_second = rps_threshold.map_or(0, |rate| rate.default_value);
    Ok(if is_off(enabled) { FilterConfig::Disabled } else { FilterConfig::AdmissionControl(Arc::new(config)) })
}

fn statuses(range: Int32Range) -> Result<Range<u16>, Invalid> {
    let bound = |value: i32| u16::try_from(value).ok().filter(|status| (100..=600).contains(status));
    match (bound(range.start), bound(range.end)) {
        (Some(start), Some(end)) if start < end => Ok(start..end),
        _ => Err(Invalid::new("must be a range within 100 to 600, the end excluded")),
    }
}

/// There is no runtime here: the default counts.
fn is_off(enabled: Option<RuntimeFeatureFlag>) -> bool {
    enabled.and_then(|flag| flag.default_value).is_some_and(|on| !on.value)
}

fn count(name: &'static str, value: Option<UInt32Value>) -> Result<Option<u32>, Invalid> {
    match value {
        Some(UInt32Value { value: 0 }) => Err(Invalid::new("must be 1 at least").at(name)),
        value => Ok(value.map(|value| value.value)),
    }
}

fn share(notes: &mut Notes<'_>, name: &'static str, value: Option<Percent>) -> Result<Option<Fraction>, Invalid> {
    notes.optional(name, value, |_, value| percent(&value).map(Fraction::of_percent))
}
