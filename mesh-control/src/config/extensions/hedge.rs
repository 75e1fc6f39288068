//! `mesh-control/hedge`: whether tries that take too long go on beside the next ones.

use std::str::FromStr;

use crate::config::diagnostic::quoted;

/// When another try begins beside one that is under way. There is one word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hedge {
    /// `on-per-try-timeout`: when the time of a try is over.
    OnPerTryTimeout,
}

impl FromStr for Hedge {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on-per-try-timeout" => Ok(Hedge::OnPerTryTimeout),
            other => Err(format!("{} is not known; it can be `on-per-try-timeout`", quoted(other))),
        }
    }
}
