//! How requests are traced: which begin a trace, and what their spans have in them.

use std::sync::Arc;

use http::HeaderName;

use crate::model::Fraction;

/// How the requests of a listener are traced.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tracing {
    /// How many requests begin a trace, of those that are no part of one. Whoever is a part of one that is recorded, is
    /// recorded.
    pub random: Fraction,
    /// How many of those that ask for it (`x-client-trace-id`).
    pub client: Fraction,
    /// How many of all these at most. Nothing of it: no request is recorded here, wherever its trace began.
    pub overall: Fraction,
    /// What spans have besides.
    pub custom_tags: Vec<CustomTag>,
    /// How much of a path is in a span, in bytes.
    pub max_path_length: usize,
    /// In which headers a trace is told that begins here. One that came is told in those that it came in.
    pub headers: TraceHeaders,
}

/// Istio's defaults: one request of a hundred.
impl Default for Tracing {
    fn default() -> Self {
        Tracing {
            random: Fraction::new(1, 100),
            client: Fraction::ALL,
            overall: Fraction::ALL,
            custom_tags: Vec::new(),
            max_path_length: 256,
            headers: TraceHeaders::W3c,
        }
    }
}

/// In which headers requests are told of a trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceHeaders {
    /// `traceparent`
    #[default]
    W3c,
    /// The same, and `x-b3-traceid` and its like.
    B3,
}

/// What a span has besides.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CustomTag {
    /// Its name.
    pub name: Arc<str>,
    /// What it says.
    pub value: TagValue,
}

impl CustomTag {
    /// A tag of this name.
    pub fn new(name: impl Into<Arc<str>>, value: TagValue) -> Self {
        CustomTag { name: name.into(), value }
    }
}

/// What a tag says. Exhaustive: whoever makes a span has to know each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagValue {
    /// This text.
    Text(Arc<str>),
    /// A variable of the process's environment.
    Environment {
        /// Its name.
        name: Arc<str>,
        /// What stands there where it is not set; `None`: there is no tag then.
        default: Option<Arc<str>>,
    },
    /// A header of the request.
    Header {
        /// Its name.
        name: HeaderName,
        /// What stands there where the request has none; `None`: there is no tag then.
        default: Option<Arc<str>>,
    },
}
