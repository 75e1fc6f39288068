//! When to try again, as configured.

use std::time::Duration;

/// When to try again, as configured. What an outcome means for it is decided by [`crate::retry`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// After which outcomes.
    pub on: RetryConditions,
    /// Attempts after the first.
    pub retries: u32,
    /// The back-off before the first retry; doubles. 25 ms by default.
    pub base_interval: Duration,
    /// The longest back-off. Ten times the base by default.
    pub max_interval: Duration,
}

/// One condition of a retry policy. Envoy knows more of them: what is not here has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryCondition {
    /// `connect-failure`: no connection could be made.
    ConnectFailure,
    /// `refused-stream`: the peer refused the stream unseen.
    RefusedStream,
    /// `reset`: no answer came. As far as nothing was processed.
    Reset,
    /// `5xx`: a server error, or no answer came. As far as nothing was processed.
    ServerError,
    /// `unavailable`: gRPC's status of that name. As far as nothing was processed.
    Unavailable,
}

impl RetryCondition {
    const ALL: [RetryCondition; 5] = [
        RetryCondition::ConnectFailure,
        RetryCondition::RefusedStream,
        RetryCondition::Reset,
        RetryCondition::ServerError,
        RetryCondition::Unavailable,
    ];

    /// Envoy's word for it.
    pub const fn word(self) -> &'static str {
        match self {
            RetryCondition::ConnectFailure => "connect-failure",
            RetryCondition::RefusedStream => "refused-stream",
            RetryCondition::Reset => "reset",
            RetryCondition::ServerError => "5xx",
            RetryCondition::Unavailable => "unavailable",
        }
    }
}

/// Some of the conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryConditions(u32);

impl RetryConditions {
    /// None of them.
    pub const NONE: RetryConditions = RetryConditions(0);

    /// These and one more.
    pub const fn with(self, condition: RetryCondition) -> Self {
        RetryConditions(self.0 | 1 << condition as u32)
    }

    /// Whether one is among them.
    pub const fn contains(self, condition: RetryCondition) -> bool {
        self.0 & 1 << condition as u32 != 0
    }

    /// Whether they have one in common.
    #[inline]
    pub const fn intersects(self, other: RetryConditions) -> bool {
        self.0 & other.0 != 0
    }

    /// Those that are named in a list of Envoy's words, separated by commas. Other words are passed over, as Envoy does
    /// with those that it does not know.
    ///
    /// ```
    /// use mesh_core::model::{RetryCondition, RetryConditions};
    ///
    /// let on = RetryConditions::parse("connect-failure, unavailable,,moonlight");
    /// assert!(on.contains(RetryCondition::ConnectFailure) && !on.contains(RetryCondition::Reset));
    /// ```
    pub fn parse(words: &str) -> Self {
        let known = |word: &str| RetryCondition::ALL.into_iter().find(|condition| condition.word() == word);
        words.split(',').filter_map(|word| known(word.trim())).fold(Self::NONE, Self::with)
    }
}
