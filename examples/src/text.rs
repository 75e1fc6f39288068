//! Words of the command line: durations and labels.

use std::time::Duration;

/// A duration as people write it: `250ms`, `1.5s`, `2m`; a number alone is in seconds.
///
/// # Errors
/// With a sentence for the user.
///
/// ```
/// use std::time::Duration;
/// use mesh_examples::text::duration;
///
/// assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
/// assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
/// assert!(duration("soon").is_err());
/// ```
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        _ => return Err(format!("{text:?} is not a duration such as 250ms, 1.5s or 2m")),
    };
    let number: f64 = digits.parse().map_err(|_| format!("{text:?} is not a duration such as 250ms, 1.5s or 2m"))?;
    Duration::try_from_secs_f64(number * unit).map_err(|error| format!("{text:?}: {error}"))
}

/// A label as `key=value`.
///
/// # Errors
/// With a sentence for the user.
pub fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not a label: expected key=value")),
    }
}

/// A duration in milliseconds with three decimals, as the tools print it.
pub fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_duration_or_label_says_so() {
        for text in ["", "ms", "-1s", "1h", "1e400s", "ſ"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
        assert_eq!(label("app=reviews"), Ok(("app".into(), "reviews".into())));
        assert_eq!(label("app="), Ok(("app".into(), String::new())));
        assert!(label("app").is_err() && label("=x").is_err());
    }

    #[test]
    fn milliseconds_have_three_decimals() {
        assert_eq!(millis(Duration::from_nanos(1_234_567)).to_string(), "1.235");
    }
}
