//! Istio's retry defaults (core/route/retry/retry.go).

use std::num::NonZeroU32;

use mesh_core::model::{RetryBackOff, RetryCondition};

use super::route::Retry;
use crate::config::istio::virtual_service;

/// What is tried again where nobody says anything. There is no 503 among the statuses: the list is empty.
const DEFAULT_CONDITIONS: [RetryCondition; 5] = [
    RetryCondition::ConnectFailure,
    RetryCondition::RefusedStream,
    RetryCondition::Unavailable,
    RetryCondition::Cancelled,
    RetryCondition::RetriableStatusCodes,
];
const DEFAULT_ATTEMPTS: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);

/// The policy of a route that has none.
pub fn default_policy() -> Retry {
    Retry {
        attempts: DEFAULT_ATTEMPTS,
        conditions: DEFAULT_CONDITIONS.to_vec(),
        statuses: Vec::new(),
        per_try_timeout: None,
        backoff: None,
        avoids_tried: None,
        leaves_priorities: false,
        hedges: false,
    }
}

/// The policy that a route means, which is the mesh's `default` where nothing is written. No attempts means no retries at
/// all.
pub fn of(written: Option<&virtual_service::Retry>, default: Option<&Retry>) -> Option<Retry> {
    let Some(written) = written else {
        return default.cloned();
    };
    let attempts = u32::try_from(written.attempts).ok().and_then(NonZeroU32::new)?;
    let first_pause = written.backoff.filter(|pause| !pause.is_zero());
    let mut policy = Retry {
        attempts,
        per_try_timeout: written.per_try_timeout.filter(|limit| !limit.is_zero()),
        avoids_tried: written.retry_ignore_previous_hosts,
        leaves_priorities: written.retry_remote_localities.unwrap_or(false),
        backoff: first_pause.map(RetryBackOff::of),
        ..default_policy()
    };
    let tokens = written.retry_on.as_deref().unwrap_or_default();
    if !tokens.trim().is_empty() {
        policy.conditions = Vec::new();
        for token in tokens.split(',').map(str::trim).filter(|token| !token.is_empty()) {
            // A number is a status, and statuses need the condition that looks at them.
            match token.parse() {
                Ok(status) => policy.statuses.push(status),
                // Any other word was refused where it was read.
                Err(_) => policy.conditions.extend(RetryCondition::parse(token)),
            }
        }
        if !policy.statuses.is_empty() && !policy.conditions.contains(&RetryCondition::RetriableStatusCodes) {
            policy.conditions.push(RetryCondition::RetriableStatusCodes);
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
        let policy = of(None, Some(&default_policy())).unwrap();
        assert_eq!(policy.attempts.get(), 2);
        assert_eq!(
            policy.conditions.iter().map(|condition| condition.word()).collect::<Vec<_>>().join(","),
            "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
        );
        assert!(policy.statuses.is_empty());
        assert_eq!(of(None, None), None);
    }

    #[test]
    fn no_attempts_mean_no_retries_and_numbers_are_statuses() {
        assert_eq!(of(Some(&written(0, Some("5xx"))), Some(&default_policy())), None);
        assert_eq!(of(Some(&written(-1, None)), None), None);
        let policy = of(Some(&written(3, Some("503, 5xx,"))), None).unwrap();
        assert_eq!((policy.attempts.get(), policy.statuses), (3, vec![503]));
        assert_eq!(policy.conditions, [RetryCondition::ServerError, RetryCondition::RetriableStatusCodes]);
        assert_eq!(policy.per_try_timeout, None);
        assert_eq!(of(Some(&written(1, Some(""))), None).unwrap().conditions, default_policy().conditions);
    }
}
