//! Who called what: a bounded record of the calls that a server decided on, for policies that are to be written.
//!
//! A call is an identity, a method, the form of a path ([`template`]) and the verdict; neither bodies nor queries nor headers.
//! Calls that are alike are one entry with a count. What is kept is bounded: a caller has so many entries, and all that are
//! refused together have so many, so that nobody drives the calls of others out; what finds no place is counted, and told.
//!
//! [`Recorder`] is what a server writes to on every request, and [`Book`] what is kept, there and by whoever gathers it.

mod book;
mod recorder;
mod template;

use std::sync::Arc;
use std::time::SystemTime;

pub use book::{Book, Counted, Lost, MOST_CALLS, MOST_OF_CALLER};
pub use recorder::{Recorder, Report};
pub use template::{ANY, REST, template};

/// One call, as a server sees it.
#[derive(Clone, Copy, Debug)]
pub struct Call<'c> {
    /// Who called, where mutual TLS told.
    pub principal: Option<&'c str>,
    /// The port that the server bound.
    pub port: u16,
    /// Whether it is gRPC.
    pub is_grpc: bool,
    /// The method.
    pub method: &'c str,
    /// The path. What is behind a `?` is not looked at.
    pub path: &'c str,
    /// Whether it was let in.
    pub is_allowed: bool,
    /// The rule that decided; `None` where none was for it.
    pub rule: Option<&'c str>,
}

/// Calls that are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct CallKey {
    /// Who called, where mutual TLS told.
    pub principal: Option<Arc<str>>,
    /// The port that the server bound.
    pub port: u16,
    /// Whether they are gRPC.
    pub is_grpc: bool,
    /// The method; empty where it is none that a policy could name.
    pub method: Arc<str>,
    /// The form of the path: see [`template`].
    pub path: Arc<str>,
    /// Whether they were let in.
    pub is_allowed: bool,
}

impl CallKey {
    /// What is remembered of a call.
    pub fn of(call: &Call<'_>) -> CallKey {
        CallKey {
            principal: call.principal.map(Arc::from),
            port: call.port,
            is_grpc: call.is_grpc,
            method: method_of(call.method).into(),
            path: template(call.path, call.is_grpc).into(),
            is_allowed: call.is_allowed,
        }
    }

    /// As a call with the path that is its form.
    pub fn call<'c>(&'c self, rule: Option<&'c str>) -> Call<'c> {
        Call {
            principal: self.principal.as_deref(),
            port: self.port,
            is_grpc: self.is_grpc,
            method: &self.method,
            path: &self.path,
            is_allowed: self.is_allowed,
            rule,
        }
    }
}

/// Methods are words; a `*` in one would be a wildcard in a policy.
fn method_of(method: &str) -> &str {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if method.len() <= 32 && method.bytes().all(is_word) { method } else { "" }
}

/// Seconds since 1970.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
