//! Istio's retry defaults (core/route/retry/retry.go).

use super::route::Retry;
use crate::config::istio::virtual_service;

/// What is tried again where nobody says anything. There is no 503 among the statuses: the list is empty.
const DEFAULT_CONDITIONS: [&str; 5] =
    ["connect-failure", "refused-stream", "unavailable", "cancelled", "retriable-status-codes"];
const DEFAULT_ATTEMPTS: u32 = 2;

/// The policy of a route that has none.
pub fn default_policy() -> Retry {
    Retry {
        attempts: DEFAULT_ATTEMPTS,
        conditions: DEFAULT_CONDITIONS.map(str::to_owned).to_vec(),
        statuses: Vec::new(),
        per_try_timeout: None,
        backoff: None,
    }
}

/// The policy that a route means. No attempts means no retries at all.
pub fn of(written: Option<&virtual_service::Retry>) -> Option<Retry> {
    let Some(written) = written else {
        return Some(default_policy());
    };
    let attempts = u32::try_from(written.attempts).ok().filter(|attempts| *attempts > 0)?;
    let mut policy = Retry {
        attempts,
        per_try_timeout: written.per_try_timeout.filter(|limit| !limit.is_zero()),
        backoff: written.backoff.filter(|pause| !pause.is_zero()),
        ..default_policy()
    };
    let tokens = written.retry_on.as_deref().unwrap_or_default();
    if !tokens.trim().is_empty() {
        policy.conditions = Vec::new();
        for token in tokens.split(',').map(str::trim).filter(|token| !token.is_empty()) {
            // A number is a status, and statuses need the condition that looks at them.
            match token.parse() {
                Ok(status) => policy.statuses.push(status),
                Err(_) => policy.conditions.push(token.to_owned()),
            }
        }
        let by_status = "retriable-status-codes";
        if !policy.statuses.is_empty() && !policy.conditions.iter().any(|token| token == by_status) {
            policy.conditions.push(by_status.to_owned());
        }
    }
    Some(policy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn written(attempts: i32, retry_on: Option<&str>) -> virtual_service::Retry {
        virtual_service::Retry {
            attempts,
            retry_on: retry_on.map(str::to_owned),
            per_try_timeout: Some(Duration::ZERO),
            ..Default::default()
        }
    }

    #[test]
    fn the_defaults_are_istios() {
        let policy = of(None).unwrap();
        assert_eq!(policy.attempts, 2);
        assert_eq!(
            policy.conditions.join(","),
            "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
        );
        assert!(policy.statuses.is_empty());
    }

    #[test]
    fn no_attempts_mean_no_retries_and_numbers_are_statuses() {
        assert_eq!(of(Some(&written(0, Some("5xx")))), None);
        assert_eq!(of(Some(&written(-1, None))), None);
        let policy = of(Some(&written(3, Some("503, 5xx,")))).unwrap();
        assert_eq!((policy.attempts, policy.statuses), (3, vec![503]));
        assert_eq!(policy.conditions, ["5xx", "retriable-status-codes"]);
        assert_eq!(policy.per_try_timeout, None);
        assert_eq!(of(Some(&written(1, Some("")))).unwrap().conditions, default_policy().conditions);
    }
}
