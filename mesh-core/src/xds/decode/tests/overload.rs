//! How many requests there may be at a time, and which are held back.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{RuntimeDouble, RuntimePercent, RuntimeUInt32};
use envoy_types::pb::envoy::config::route::v3::RateLimit;
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3 as concurrency;
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::gradient_controller_config as gradient;
use envoy_types::pb::envoy::extensions::filters::http::admission_control::v3 as admission;
use envoy_types::pb::envoy::r#type::v3::{HttpStatus, Int32Range, Percent};
use envoy_types::pb::google::protobuf::{Any, Duration as ProtoDuration, UInt32Value};
use prost::{Message, Name};

use super::super::notes::Notes;
use super::super::overload::{adaptive_concurrency, admission_control};
use super::super::{AdaptiveConcurrencyBesides, Options, QueueBesides};
use crate::error::Invalid;
use crate::model::{AdaptiveConcurrency, AdmissionControl, ConcurrencyQueue, FilterConfig, Fraction, UnloadedTime};

const OFTEN: ProtoDuration = ProtoDuration { seconds: 0, nanos: 100_000_000 };
const MINUTE: ProtoDuration = ProtoDuration { seconds: 60, nanos: 0 };

fn usual() -> concurrency::GradientControllerConfig {
    concurrency::GradientControllerConfig {
        sample_aggregate_percentile: None,
        concurrency_limit_params: Some(gradient::ConcurrencyLimitCalculationParams {
            concurrency_update_interval: Some(OFTEN),
            ..Default::default()
        }),
        min_rtt_calc_params: Some(gradient::MinimumRttCalculationParams {
            interval: Some(MINUTE),
            ..Default::default()
        }),
    }
}

fn filter(gradient: concurrency::GradientControllerConfig) -> concurrency::AdaptiveConcurrency {
    use concurrency::adaptive_concurrency::ConcurrencyControllerConfig::GradientControllerConfig;
    concurrency::AdaptiveConcurrency {
        concurrency_controller_config: Some(GradientControllerConfig(gradient)),
        ..Default::default()
    }
}

fn decoded(filter: &concurrency::AdaptiveConcurrency, besides: &[u8]) -> Result<(FilterConfig, Vec<String>), Invalid> {
    let value = [filter.encode_to_vec(), besides.to_vec()].concat();
    let any = Any { type_url: concurrency::AdaptiveConcurrency::type_url(), value };
    let options = Options::default();
    let mut notes = Notes::new(&options);
    let config = adaptive_concurrency(&mut notes, &any)?;
    Ok((config, notes.into_ignored().0))
}

fn some(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

#[test]
fn what_is_not_said_of_concurrency_is_envoys_default() {
    let (FilterConfig::AdaptiveConcurrency(config), ignored) = decoded(&filter(usual()), &[]).unwrap() else {
        panic!("another filter")
    };
    assert_eq!((&*config, ignored), (&AdaptiveConcurrency::default(), Vec::new()));
}

#[test]
fn what_is_said_of_concurrency_counts() {
    let mut all = usual();
    all.sample_aggregate_percentile = Some(Percent { value: 90.0 });
    all.concurrency_limit_params = Some(gradient::ConcurrencyLimitCalculationParams {
        max_concurrency_limit: some(50),
        concurrency_update_interval: Some(MINUTE),
        min_concurrency_limit: some(7),
    });
    all.min_rtt_calc_params = Some(gradient::MinimumRttCalculationParams {
        fixed_value: Some(OFTEN),
        buffer: Some(Percent { value: 10.0 }),
        ..Default::default()
    });
    let all = concurrency::AdaptiveConcurrency {
        concurrency_limit_exceeded_status: Some(HttpStatus { code: 429 }),
        ..filter(all)
    };
    let sheddable = Some(Percent { value: 40.0 });
    let besides = AdaptiveConcurrencyBesides { sheddable, queue: Some(waits()) }.encode_to_vec();
    let (FilterConfig::AdaptiveConcurrency(config), _) = decoded(&all, &besides).unwrap() else {
        panic!("another filter")
    };
    let expected = AdaptiveConcurrency {
        most: 50,
        least: 7,
        sheddable: Fraction::new(40, 100),
        interval: Duration::from_secs(60),
        percentile: Fraction::new(90, 100),
        unloaded: UnloadedTime::Fixed(Duration::from_millis(100)),
        buffer: Fraction::new(10, 100),
        status: http::StatusCode::TOO_MANY_REQUESTS,
        queue: Some(Arc::new(ConcurrencyQueue {
            wait: Duration::from_millis(100),
            weights: [("shop".to_owned(), 3)].into(),
            ..ConcurrencyQueue::new(20)
        })),
    };
    assert_eq!(*config, expected);
}

fn waits() -> QueueBesides {
    QueueBesides { most: 20, wait: Some(OFTEN), by: None, weights: [("shop".to_owned(), 3)].into() }
}

#[test]
fn a_queue_without_bounds_is_refused_with_its_place() {
    let spoil = |spoil: &dyn Fn(&mut QueueBesides)| {
        let mut queue = waits();
        spoil(&mut queue);
        let besides = AdaptiveConcurrencyBesides { sheddable: None, queue: Some(queue) }.encode_to_vec();
        decoded(&filter(usual()), &besides).unwrap_err().to_string()
    };
    for (found, expected) in [
        (spoil(&|it| it.most = 0), "queue.most"),
        (spoil(&|it| it.most = 10_001), "queue.most"),
        (spoil(&|it| it.wait = None), "queue.wait"),
        (spoil(&|it| it.wait = Some(ProtoDuration::default())), "queue.wait"),
        (spoil(&|it| it.wait = Some(ProtoDuration { seconds: 61, nanos: 0 })), "queue.wait"),
        (spoil(&|it| it.by = Some(RateLimit::default())), "queue.by"),
        (spoil(&|it| it.weights = [("shop".to_owned(), 0)].into()), "queue.weights"),
        (spoil(&|it| it.weights = [("shop".to_owned(), 1_001)].into()), "queue.weights"),
    ] {
        assert!(found.contains(expected), "{expected}: {found}");
    }
}

#[test]
fn what_makes_no_sense_of_concurrency_is_refused_with_its_place() {
    let spoil = |spoil: &dyn Fn(&mut concurrency::GradientControllerConfig)| {
        let mut gradient = usual();
        spoil(&mut gradient);
        decoded(&filter(gradient), &[]).unwrap_err().to_string()
    };
    let rtt = |rtt: gradient::MinimumRttCalculationParams| spoil(&|it| it.min_rtt_calc_params = Some(rtt));
    let limit = |it: gradient::ConcurrencyLimitCalculationParams| spoil(&|to| to.concurrency_limit_params = Some(it));
    for (found, expected) in [
        (rtt(gradient::MinimumRttCalculationParams::default()), "min_rtt_calc_params.fixed_value"),
        (
            rtt(gradient::MinimumRttCalculationParams {
                interval: Some(MINUTE),
                request_count: some(0),
                ..Default::default()
            }),
            "request_count",
        ),
        (limit(gradient::ConcurrencyLimitCalculationParams::default()), "concurrency_update_interval"),
        (
            limit(gradient::ConcurrencyLimitCalculationParams {
                max_concurrency_limit: some(2),
                concurrency_update_interval: Some(OFTEN),
                min_concurrency_limit: None,
            }),
            "the least, 3, is more than the most, 2",
        ),
        (
            spoil(&|it| it.sample_aggregate_percentile = Some(Percent { value: f64::NAN })),
            "sample_aggregate_percentile",
        ),
        (spoil(&|it| it.concurrency_limit_params = None), "concurrency_limit_params"),
    ] {
        assert!(found.contains(expected), "{expected}: {found}");
    }
    let none = concurrency::AdaptiveConcurrency::default();
    assert!(decoded(&none, &[]).unwrap_err().to_string().contains("gradient_controller_config"));
}

fn of_admission(spoil: impl FnOnce(&mut admission::AdmissionControl)) -> Result<AdmissionControl, Invalid> {
    use admission::admission_control::{EvaluationCriteria, SuccessCriteria};
    let mut value = admission::AdmissionControl {
        evaluation_criteria: Some(EvaluationCriteria::SuccessCriteria(SuccessCriteria::default())),
        ..Default::default()
    };
    spoil(&mut value);
    let options = Options::default();
    match admission_control(&mut Notes::new(&options), value)? {
        FilterConfig::AdmissionControl(config) => Ok((*config).clone()),
        other => panic!("{other:?}"),
    }
}

fn percent(value: f64) -> Option<RuntimePercent> {
    Some(RuntimePercent { default_value: Some(Percent { value }), ..Default::default() })
}

#[test]
fn what_is_said_of_admission_counts_and_the_rest_is_envoys_default() {
    assert_eq!(of_admission(|_| {}).unwrap(), AdmissionControl::default());
    let all = of_admission(|value| {
        value.sampling_window = Some(ProtoDuration { seconds: 2, nanos: 700_000_000 });
        value.aggression = Some(RuntimeDouble { default_value: 1.5, ..Default::default() });
        value.sr_threshold = percent(50.0);
        value.max_rejection_probability = percent(100.0);
        value.rps_threshold = Some(RuntimeUInt32 { default_value: 9, ..Default::default() });
        let Some(admission::admission_control::EvaluationCriteria::SuccessCriteria(criteria)) =
            &mut value.evaluation_criteria
        else {
            panic!("there is one")
        };
        criteria.http_criteria = Some(admission::admission_control::success_criteria::HttpCriteria {
            http_success_status: vec![Int32Range { start: 200, end: 300 }],
        });
        criteria.grpc_criteria =
            Some(admission::admission_control::success_criteria::GrpcCriteria { grpc_success_status: vec![0] });
    });
    let expected = AdmissionControl {
        window: Duration::from_secs(3),
        enough: Fraction::new(1, 2),
        most: Fraction::ALL,
        least_per_second: 9,
        aggression: 1_500,
        statuses: std::iter::once(200..300).collect(),
        grpc_statuses: vec![0],
    };
    assert_eq!(all.unwrap(), expected);
}

#[test]
fn what_makes_no_sense_of_admission_is_refused_with_its_place() {
    for (found, expected) in [
        (of_admission(|value| value.evaluation_criteria = None), "success_criteria"),
        (of_admission(|value| value.sampling_window = Some(OFTEN)), "sampling_window"),
        (of_admission(|value| value.sr_threshold = percent(0.5)), "sr_threshold"),
        (of_admission(|value| value.max_rejection_probability = percent(101.0)), "max_rejection_probability"),
        (
            of_admission(|value| {
                value.aggression = Some(RuntimeDouble { default_value: f64::NAN, ..Default::default() });
            }),
            "aggression",
        ),
    ] {
        let found = found.unwrap_err().to_string();
        assert!(found.contains(expected), "{expected}: {found}");
    }
}
