//! Which requests an access log has.

use std::time::Duration;

use super::{CelExpression, Fraction};

/// Which requests an access log has. Exhaustive: whoever writes a log has to know each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFilter {
    /// Those of which this holds.
    Expression(CelExpression),
    /// Those whose status compares so; 0 where there was no answer.
    Status(Comparison, u32),
    /// Those that took so long.
    Duration(Comparison, Duration),
    /// Those with one of these flags; with any, where none is named.
    Flags(Vec<String>),
    /// So many of all.
    Sample(Fraction),
    /// Those that fit in every one.
    All(Vec<LogFilter>),
    /// Those that fit in any one.
    Any(Vec<LogFilter>),
}

/// How two numbers compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// They are the same.
    Equal,
    /// They are not.
    Unequal,
    /// The first is as large, or larger.
    AtLeast,
    /// The first is as large, or smaller.
    AtMost,
}

impl Comparison {
    /// Whether these compare so.
    pub fn holds<T: PartialOrd>(self, value: T, than: T) -> bool {
        match self {
            Comparison::Equal => value == than,
            Comparison::Unequal => value != than,
            Comparison::AtLeast => value >= than,
            Comparison::AtMost => value <= than,
        }
    }
}
