//! Local rate limits: how many requests this process lets pass by itself
//! (`envoy.extensions.filters.http.local_ratelimit.v3`).

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::error::Invalid;
use crate::model::{Fraction, HeaderChange, RateLimit};

/// A local rate limit of a listener, a virtual host or a route.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LocalRateLimit {
    /// What it is called in metrics.
    pub name: Arc<str>,
    /// For requests that no other bucket is for, or for all; `None`: they pass.
    pub bucket: Option<TokenBucket>,
    /// Whether the bucket above is for all requests, and not only for those that no other is for.
    pub is_for_all: bool,
    /// Buckets of their own for what is counted by descriptors.
    pub rules: Vec<LocalRule>,
    /// What requests are counted by; where there is none, what their route says for the stage.
    pub rate_limits: Vec<Arc<RateLimit>>,
    /// The stage of what their route says.
    pub stage: u8,
    /// Which of the virtual host's count.
    pub of_host: OfHost,
    /// How many requests are looked at.
    pub enabled: Fraction,
    /// How many of those that are over the limit are refused; the others are only counted.
    pub enforced: Fraction,
    /// Whether each connection has buckets of its own.
    pub per_connection: bool,
    /// How many values of a rule's keys are kept apart at a time, at most.
    pub most_keys: u32,
    /// What refused requests are answered, 400 and up.
    pub status: StatusCode,
    /// Whether gRPC is told RESOURCE_EXHAUSTED, and not UNAVAILABLE.
    pub is_exhaustion: bool,
    /// Whether the refused are told when to come back (`Retry-After`).
    pub tells_when: bool,
    /// What answers tell of what is left.
    pub tells: RestHeaders,
    /// Header changes of requests that are over the limit and pass all the same.
    pub request_changes: Vec<HeaderChange>,
    /// Header changes of answers to the refused.
    pub response_changes: Vec<HeaderChange>,
}

impl LocalRateLimit {
    /// One bucket for every request, that refuses what is over.
    pub fn new(name: impl Into<Arc<str>>, bucket: Option<TokenBucket>) -> Self {
        LocalRateLimit {
            name: name.into(),
            bucket,
            is_for_all: true,
            rules: Vec::new(),
            rate_limits: Vec::new(),
            stage: 0,
            of_host: OfHost::Without,
            enabled: Fraction::ALL,
            enforced: Fraction::ALL,
            per_connection: false,
            most_keys: 20,
            status: StatusCode::TOO_MANY_REQUESTS,
            is_exhaustion: false,
            tells_when: false,
            tells: RestHeaders::None,
            request_changes: Vec::new(),
            response_changes: Vec::new(),
        }
    }
}

/// A bucket for the requests of one descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LocalRule {
    /// What it is called in metrics.
    pub name: Arc<str>,
    /// Keys and values of the descriptor, all of them in this order. An empty value is any, and each has a bucket of its own.
    pub entries: Vec<(Arc<str>, Arc<str>)>,
    /// The bucket.
    pub bucket: TokenBucket,
    /// Whether it only counts.
    pub is_shadow: bool,
}

impl LocalRule {
    /// A bucket for a descriptor.
    pub fn new(name: impl Into<Arc<str>>, entries: Vec<(Arc<str>, Arc<str>)>, bucket: TokenBucket) -> Self {
        LocalRule { name: name.into(), entries, bucket, is_shadow: false }
    }

    /// Entries in words: `key=value`, and `key` where any value is meant.
    pub fn in_words(entries: &[(Arc<str>, Arc<str>)]) -> Vec<String> {
        let word = |(key, value): &(Arc<str>, Arc<str>)| match &**value {
            "" => key.to_string(),
            value => format!("{key}={value}"),
        };
        entries.iter().map(word).collect()
    }

    /// Whether it has a bucket for each of some values.
    pub fn is_keyed(&self) -> bool {
        self.entries.iter().any(|(_, value)| value.is_empty())
    }
}

/// Which of a virtual host's rate limits count on a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OfHost {
    /// All, where the route has none.
    #[default]
    Without,
    /// All.
    Always,
    /// None.
    Never,
}

/// What answers tell of what is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestHeaders {
    /// Nothing.
    #[default]
    None,
    /// `x-ratelimit-limit`, `-remaining` and `-reset`, as Envoy does (draft-polli-ratelimit-headers-03).
    XRateLimit,
    /// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers).
    RateLimit,
}

/// A bucket that is filled with tokens as time goes by, and of which each request takes some. It begins full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    max: u32,
    per_fill: u32,
    interval: Duration,
}

impl TokenBucket {
    /// The longest that a bucket may take from empty to full: it is kept as a time, which has to have room.
    const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

    /// So many tokens at most, of which so many come in each interval, one after the other.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mesh_core::model::TokenBucket;
    ///
    /// let minute = Duration::from_secs(60);
    /// assert_eq!(TokenBucket::new(10, 10, minute)?.window(), minute);
    /// assert!(TokenBucket::new(0, 1, minute).is_err());
    /// # Ok::<(), mesh_core::error::Invalid>(())
    /// ```
    ///
    /// # Errors
    /// No tokens, no time, less than a token in a century, or one in less than a nanosecond.
    pub fn new(max: u32, per_fill: u32, interval: Duration) -> Result<Self, Invalid> {
        for (value, field) in [(max, "max_tokens"), (per_fill, "tokens_per_fill")] {
            if value == 0 {
                return Err(Invalid::new("must be more than zero").at(field));
            }
        }
        if interval.is_zero() {
            return Err(Invalid::new("must be more than zero").at("fill_interval"));
        }
        let bucket = TokenBucket { max, per_fill, interval };
        if interval > Self::LONGEST || bucket.window() > Self::LONGEST {
            return Err(Invalid::new("it takes more than ten years to fill").at("fill_interval"));
        }
        if interval.as_nanos() < u128::from(per_fill) {
            return Err(Invalid::new("more than a token in a nanosecond").at("tokens_per_fill"));
        }
        Ok(bucket)
    }

    /// How many tokens it has at most.
    pub fn max(&self) -> u32 {
        self.max
    }

    /// How many tokens come in each interval.
    pub fn per_fill(&self) -> u32 {
        self.per_fill
    }

    /// The interval.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// How long it takes from empty to full.
    pub fn window(&self) -> Duration {
        self.time_of(u64::from(self.max))
    }

    /// How long it takes until so many tokens came.
    pub fn time_of(&self, tokens: u64) -> Duration {
        let nanos = u128::from(tokens) * self.interval.as_nanos() / u128::from(self.per_fill.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}
