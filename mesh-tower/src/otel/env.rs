//! What the environment says of traces, in OpenTelemetry's words.

use std::time::Duration;

use mesh_core::model::{Fraction, Tracing};
use opentelemetry_otlp::SpanExporter;

use super::{Exporter, Limits};
use crate::mesh::StartError;

/// Where spans go.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

/// The exporter that the environment asks for, if it asks for one.
pub(super) fn exporter(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Exporter>, StartError> {
    let Some(wanted) = wanted(&variable).map_err(StartError::new)? else { return Ok(None) };
    let make = || SpanExporter::builder().build().map_err(|error| error.to_string());
    Ok(Some(Exporter::made(make, wanted.limits)?.tracing(wanted.tracing)))
}

/// What it says besides what is read where the exporter is made.
#[derive(Debug)]
struct Wanted {
    limits: Limits,
    tracing: Tracing,
}

fn wanted(variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Wanted>, String> {
    // What is empty counts as not set.
    let said = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    let first = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, said(name)?)));
    if said("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let endpoint = first(ENDPOINTS);
    match said("OTEL_TRACES_EXPORTER").as_deref() {
        Some("none") => return Ok(None),
        Some("otlp") => {}
        None if endpoint.is_some() => {}
        None => return Ok(None),
        Some(other) => return Err(format!("OTEL_TRACES_EXPORTER={other}: not supported; there are otlp and none")),
    }
    if let Some((name, endpoint)) = endpoint {
        let scheme = endpoint.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        if scheme.as_deref() != Some("http") {
            return Err(format!(
                "{name}={endpoint}: only http:// is supported; a collector beside the process speaks TLS"
            ));
        }
    }
    if let Some((name, protocol)) = first(PROTOCOLS).filter(|(_, it)| !["grpc", "http/protobuf"].contains(&it.as_str()))
    {
        return Err(format!("{name}={protocol}: not supported; there are grpc and http/protobuf"));
    }
    let number = |name: &str, least: u64, default: u64| match said(name).map(|text| (text.parse::<u64>(), text)) {
        None => Ok(default),
        Some((Ok(number), _)) if (least..=1_000_000).contains(&number) => Ok(number),
        Some((_, text)) => Err(format!("{name}={text}: not a number from {least} to 1000000")),
    };
    let count =
        |name, default: usize| number(name, 1, default as u64).map(|number| usize::try_from(number).unwrap_or(default));
    let time = |name, default: Duration| {
        let default = u64::try_from(default.as_millis()).unwrap_or_default();
        number(name, 0, default).map(Duration::from_millis)
    };
    let Limits { queue, batch, delay, timeout } = Limits::default();
    let queue = count("OTEL_BSP_MAX_QUEUE_SIZE", queue)?;
    let limits = Limits {
        queue,
        batch: count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", batch)?.min(queue),
        delay: time("OTEL_BSP_SCHEDULE_DELAY", delay)?,
        timeout: time("OTEL_BSP_EXPORT_TIMEOUT", timeout)?,
    };
    let tracing = sampled(said("OTEL_TRACES_SAMPLER").as_deref(), said("OTEL_TRACES_SAMPLER_ARG").as_deref())?;
    Ok(Some(Wanted { limits, tracing }))
}

/// How many traces begin here, of which the configuration says nothing. A parent's decision counts in any case.
fn sampled(sampler: Option<&str>, argument: Option<&str>) -> Result<Tracing, String> {
    let mut tracing = Tracing::default();
    tracing.random = match sampler {
        None => return Ok(tracing),
        Some("always_on" | "parentbased_always_on") => Fraction::ALL,
        Some("always_off") => {
            tracing.overall = Fraction::default();
            Fraction::default()
        }
        Some("parentbased_always_off") => Fraction::default(),
        Some("traceidratio" | "parentbased_traceidratio") => match argument.unwrap_or("1").parse::<f64>() {
            // Between 0 and 1, so that it is a number of millionths.
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Fraction::of_million((ratio * 1e6).round() as u64),
            _ => return Err("OTEL_TRACES_SAMPLER_ARG: not a share from 0 to 1".to_owned()),
        },
        Some(other) => {
            return Err(format!(
                "OTEL_TRACES_SAMPLER={other}: not supported; there are always_on, always_off, traceidratio, and the same with \
                 parentbased_"
            ));
        }
    };
    Ok(tracing)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share of traces that begin, or why there is nothing to be had.
    fn check(variables: &[(&str, &str)], expected: Result<Option<u32>, &str>) {
        let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, text)| (*text).to_owned());
        match (wanted(&variable), expected) {
            (Ok(wanted), Ok(expected)) => {
                assert_eq!(wanted.map(|wanted| wanted.tracing.random.per_million()), expected, "{variables:?}");
            }
            (Err(why), Err(expected)) => assert!(why.contains(expected), "{variables:?}: {why}"),
            (said, _) => panic!("{variables:?}: {said:?}"),
        }
    }

    #[test]
    fn the_environment_says_whether_and_how_many() {
        const AT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        check(&[], Ok(None));
        check(&[AT], Ok(Some(10_000)));
        check(&[("OTEL_TRACES_EXPORTER", "otlp")], Ok(Some(10_000)));
        check(&[AT, ("OTEL_TRACES_EXPORTER", "none")], Ok(None));
        check(&[AT, ("OTEL_SDK_DISABLED", "true")], Ok(None));
        check(&[AT, ("OTEL_TRACES_EXPORTER", "zipkin")], Err("there are otlp and none"));
        check(&[AT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], Ok(Some(10_000)));
        check(&[AT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")], Err("there are grpc and http/protobuf"));
        check(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318")], Err("only http://"));
        check(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], Ok(None));
        check(&[AT, ("OTEL_TRACES_SAMPLER", "always_on")], Ok(Some(1_000_000)));
        check(&[AT, ("OTEL_TRACES_SAMPLER", "parentbased_always_off")], Ok(Some(0)));
        let ratio = ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio");
        check(&[AT, ratio, ("OTEL_TRACES_SAMPLER_ARG", "0.25")], Ok(Some(250_000)));
        check(&[AT, ratio, ("OTEL_TRACES_SAMPLER_ARG", "25")], Err("from 0 to 1"));
        check(&[AT, ("OTEL_TRACES_SAMPLER", "jaeger_remote")], Err("there are always_on"));
        check(&[AT, ("OTEL_BSP_MAX_QUEUE_SIZE", "0")], Err("OTEL_BSP_MAX_QUEUE_SIZE=0"));
    }
}
