//! Overload as Envoy's filters: `envoy.filters.http.adaptive_concurrency` and `envoy.filters.http.admission_control`.

use std::ops::Range;

use envoy_types::pb::envoy::config::core::v3::{RuntimeDouble, RuntimePercent, RuntimeUInt32};
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3 as concurrency;
use envoy_types::pb::envoy::extensions::filters::http::admission_control::v3 as admission;
use envoy_types::pb::envoy::r#type::v3::{HttpStatus, Int32Range, Percent};
use envoy_types::pb::google::protobuf::{Any, Duration as ProtoDuration};
use mesh_core::model::{AdaptiveConcurrency, AdmissionControl, Fraction, UnloadedTime};
use mesh_core::xds::decode::{AdaptiveConcurrencyBesides, QueueBesides};
use prost::{Message, Name};

use super::limits::rate_limit;
use super::proto::{any, duration, number};
use crate::catalog::ClientClass;

/// How many requests there may be at a time. What can be left out and who may wait, the library is told besides.
pub(super) fn adaptive_concurrency(config: &AdaptiveConcurrency, class: ClientClass) -> Any {
    use concurrency::adaptive_concurrency::ConcurrencyControllerConfig::GradientControllerConfig;
    use concurrency::gradient_controller_config::{ConcurrencyLimitCalculationParams, MinimumRttCalculationParams};
    let min_rtt = match &config.unloaded {
        UnloadedTime::Fixed(time) => MinimumRttCalculationParams {
            // Envoy wants an interval, and takes none as none.
            interval: Some(ProtoDuration::default()),
            fixed_value: Some(duration(*time)),
            ..Default::default()
        },
        UnloadedTime::Measured { interval, jitter, requests, at_a_time } => MinimumRttCalculationParams {
            interval: Some(duration(*interval)),
            request_count: number(*requests),
            jitter: percent(*jitter),
            min_concurrency: number(*at_a_time),
            ..Default::default()
        },
    };
    let gradient = concurrency::GradientControllerConfig {
        sample_aggregate_percentile: percent(config.percentile),
        concurrency_limit_params: Some(ConcurrencyLimitCalculationParams {
            max_concurrency_limit: number(config.most),
            concurrency_update_interval: Some(duration(config.interval)),
            min_concurrency_limit: number(config.least),
        }),
        min_rtt_calc_params: Some(MinimumRttCalculationParams { buffer: percent(config.buffer), ..min_rtt }),
    };
    let filter = concurrency::AdaptiveConcurrency {
        enabled: None,
        concurrency_limit_exceeded_status: Some(HttpStatus { code: config.status.as_u16().into() }),
        concurrency_controller_config: Some(GradientControllerConfig(gradient)),
    };
    let mut value = filter.encode_to_vec();
    if class == ClientClass::Library {
        let queue = config.queue.as_deref().map(|queue| QueueBesides {
            most: queue.most,
            wait: Some(duration(queue.wait)),
            by: Some(rate_limit(&queue.by)),
            weights: queue.weights.clone(),
        });
        value.extend(AdaptiveConcurrencyBesides { sheddable: percent(config.sheddable), queue }.encode_to_vec());
    }
    Any { type_url: concurrency::AdaptiveConcurrency::type_url(), value }
}

/// Which calls are held back.
pub(super) fn admission_control(config: &AdmissionControl) -> Any {
    use admission::admission_control::success_criteria::{GrpcCriteria, HttpCriteria};
    use admission::admission_control::{EvaluationCriteria, SuccessCriteria};
    let runtime = |share: Fraction| {
        let default_value = percent(share);
        Some(RuntimePercent { default_value, ..Default::default() })
    };
    let range = |range: &Range<u16>| Int32Range { start: range.start.into(), end: range.end.into() };
    any(&admission::AdmissionControl {
        enabled: None,
        sampling_window: Some(duration(config.window)),
        aggression: Some(RuntimeDouble { default_value: f64::from(config.aggression) / 1e3, ..Default::default() }),
        sr_threshold: runtime(config.enough),
        rps_threshold: Some(RuntimeUInt32 { default_value: config.least_per_second, ..Default::default() }),
        max_rejection_probability: runtime(config.most),
        evaluation_criteria: Some(EvaluationCriteria::SuccessCriteria(SuccessCriteria {
            http_criteria: Some(HttpCriteria { http_success_status: config.statuses.iter().map(range).collect() }),
            grpc_criteria: Some(GrpcCriteria { grpc_success_status: config.grpc_statuses.clone() }),
        })),
    })
}

fn percent(share: Fraction) -> Option<Percent> {
    Some(Percent { value: share.percent() })
}
