//! `mesh-control/load-balancer`: policies that Istio has no name for.

use std::str::FromStr;
use std::time::Duration;

use super::Pairs;
use crate::config::decode::parse_duration;
use crate::config::diagnostic::quoted;

/// A policy in the place of `loadBalancer.simple`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadBalancer {
    /// One after the other, in proportion to what endpoints can do for their load as they report it (gRFC A58).
    WeightedByLoad {
        /// For how long the first reports of an endpoint do not count; 10 s by default.
        blackout: Duration,
        /// For how long the last one counts; 3 min by default.
        expiration: Duration,
        /// How much errors count, in thousandths; 1000 by default.
        error_penalty: u32,
        /// How often endpoints are to report on a stream of their own, and not with their answers.
        out_of_band: Option<Duration>,
        /// Metrics, the highest of which counts where no application utilization is reported.
        metrics: Vec<String>,
    },
    /// Of two random ones the one that answers sooner.
    PeakEwma {
        /// How long it takes until an answer counts for a third; 10 s by default.
        decay: Duration,
    },
    /// The application's own, by the name that it is registered by.
    Custom(String),
}

impl FromStr for LoadBalancer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pairs =
            Pairs::parse(text, &["policy", "blackout", "expiration", "errorPenalty", "metrics", "outOfBand", "decay"])?;
        let without = |names: &[&str], policy: &str| match names.iter().find(|name| pairs.get(name).is_some()) {
            Some(name) => Err(format!("`{name}` has no meaning for {policy}")),
            None => Ok(()),
        };
        match pairs.get("policy") {
            Some(policy @ "weighted-by-load") => {
                without(&["decay"], policy)?;
                Ok(LoadBalancer::WeightedByLoad {
                    blackout: time(&pairs, "blackout")?.unwrap_or(Duration::from_secs(10)),
                    expiration: time(&pairs, "expiration")?.unwrap_or(Duration::from_secs(180)),
                    error_penalty: penalty(&pairs)?,
                    out_of_band: match time(&pairs, "outOfBand")? {
                        Some(period) if period < Duration::from_millis(10) => {
                            return Err("outOfBand is less than 10ms".to_owned());
                        }
                        period => period,
                    },
                    metrics: metrics(&pairs)?,
                })
            }
            Some(policy @ "peak-ewma") => {
                without(&["blackout", "expiration", "errorPenalty", "metrics", "outOfBand"], policy)?;
                let decay = time(&pairs, "decay")?.unwrap_or(Duration::from_secs(10));
                let is_right = (Duration::from_millis(1)..=Duration::from_secs(86_400)).contains(&decay);
                is_right.then_some(LoadBalancer::PeakEwma { decay }).ok_or("decay is not from 1ms to 24h".to_owned())
            }
            Some(policy) if is_custom(policy) => {
                without(&["blackout", "expiration", "errorPenalty", "metrics", "outOfBand", "decay"], policy)?;
                Ok(LoadBalancer::Custom(policy.to_owned()))
            }
            Some(other) => Err(format!(
                "policy {} is none of weighted-by-load, peak-ewma, and no name of the application's own, such as acme.Last",
                quoted(other)
            )),
            None => Err("`policy` is missing: weighted-by-load or peak-ewma".to_owned()),
        }
    }
}

/// Whether it is a name for a balancer of the application's own: words of letters, digits and `_`, with dots between them. Those
/// of Envoy's extensions are none.
fn is_custom(policy: &str) -> bool {
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    policy.contains('.') && !policy.starts_with("envoy.") && policy.split('.').all(is_word)
}

fn time(pairs: &Pairs<'_>, name: &str) -> Result<Option<Duration>, String> {
    let Some(text) = pairs.get(name) else { return Ok(None) };
    let wrong = || format!("{name} {} is not a duration such as 10s or 3m", quoted(text));
    parse_duration(text).ok_or_else(wrong).map(Some)
}

fn penalty(pairs: &Pairs<'_>) -> Result<u32, String> {
    let Some(text) = pairs.get("errorPenalty") else { return Ok(1000) };
    match text.parse::<f64>() {
        Ok(penalty) if (0.0..=1000.0).contains(&penalty) => Ok((penalty * 1000.0).round() as u32),
        _ => Err(format!("errorPenalty {} is not a number from 0 to 1000", quoted(text))),
    }
}

fn metrics(pairs: &Pairs<'_>) -> Result<Vec<String>, String> {
    let names = pairs.get("metrics").into_iter().flat_map(|text| text.split('|')).map(str::trim);
    let is_metric = |name: &str| {
        let known = ["cpu_utilization", "mem_utilization", "application_utilization"];
        let named = name.strip_prefix("named_metrics.").or_else(|| name.strip_prefix("utilization."));
        known.contains(&name) || named.is_some_and(|rest| !rest.is_empty())
    };
    names
        .map(|name| match is_metric(name) {
            true => Ok(name.to_owned()),
            false => Err(format!(
                "metrics {} is no metric: mem_utilization, named_metrics.NAME or utilization.NAME, say",
                quoted(name)
            )),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_with_their_defaults_and_wrong_ones_say_why() {
        let read: LoadBalancer = "policy=weighted-by-load".parse().unwrap();
        let (blackout, expiration) = (Duration::from_secs(10), Duration::from_secs(180));
        let expected = LoadBalancer::WeightedByLoad {
            blackout,
            expiration,
            error_penalty: 1000,
            out_of_band: None,
            metrics: vec![],
        };
        assert_eq!(read, expected);
        let text = "policy=weighted-by-load, blackout=0s, outOfBand=10s, errorPenalty=0.5, metrics=named_metrics.queue|mem_utilization";
        let read: LoadBalancer = text.parse().unwrap();
        let metrics = vec!["named_metrics.queue".to_owned(), "mem_utilization".to_owned()];
        let expected = LoadBalancer::WeightedByLoad {
            blackout: Duration::ZERO,
            expiration,
            error_penalty: 500,
            out_of_band: Some(blackout),
            metrics,
        };
        assert_eq!(read, expected);
        let read: LoadBalancer = "policy=peak-ewma, decay=5s".parse().unwrap();
        assert_eq!(read, LoadBalancer::PeakEwma { decay: Duration::from_secs(5) });
        assert_eq!("policy=acme.Last".parse(), Ok(LoadBalancer::Custom("acme.Last".to_owned())));
        for (text, message) in [
            ("decay=5s", "`policy` is missing: weighted-by-load or peak-ewma"),
            (
                "policy=fastest",
                "policy `fastest` is none of weighted-by-load, peak-ewma, and no name of the application's own, such as acme.Last",
            ),
            (
                "policy=acme.",
                "policy `acme.` is none of weighted-by-load, peak-ewma, and no name of the application's own, such as acme.Last",
            ),
            ("policy=acme.Last, decay=1s", "`decay` has no meaning for acme.Last"),
            ("policy=peak-ewma, blackout=1s", "`blackout` has no meaning for peak-ewma"),
            ("policy=peak-ewma, decay=0", "decay is not from 1ms to 24h"),
            ("policy=weighted-by-load, outOfBand=1ms", "outOfBand is less than 10ms"),
            ("policy=weighted-by-load, decay=1s", "`decay` has no meaning for weighted-by-load"),
            ("policy=weighted-by-load, blackout=x", "blackout `x` is not a duration such as 10s or 3m"),
            ("policy=weighted-by-load, errorPenalty=-1", "errorPenalty `-1` is not a number from 0 to 1000"),
            (
                "policy=weighted-by-load, metrics=queue",
                "metrics `queue` is no metric: mem_utilization, named_metrics.NAME or utilization.NAME, say",
            ),
        ] {
            assert_eq!(text.parse::<LoadBalancer>().unwrap_err(), message, "{text}");
        }
    }
}
