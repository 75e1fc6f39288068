//! Values of options that both programs have.

use std::collections::BTreeMap;
use std::time::Duration;

/// The labels of a workload: `app` is its name, unless others are said.
pub(crate) fn labels(said: &[(String, String)], name: &str) -> BTreeMap<String, String> {
    match said {
        [] => [("app".to_owned(), name.to_owned())].into(),
        labels => labels.iter().cloned().collect(),
    }
}

pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not a label: expected KEY=VALUE")),
    }
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a number of seconds, up to a day");
    let seconds = text.parse().ok().filter(|seconds| (0.0..=86_400.0).contains(seconds)).ok_or_else(wrong)?;
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}
