//! How much of something requests may have, and what they are counted by: what local limits and the clients of rate limit
//! services share.

mod bucket;
mod descriptor;
mod local;
mod service;

use http::HeaderName;

pub use bucket::{Bucket, Epoch, KeyedBuckets, Rate, Taken, Ticks};
pub use descriptor::{Descriptor, DescriptorMaker, Entry, LimitedRequest, Value};
pub use local::{LocalBuckets, LocalLimiter, LocalVerdict};
pub use service::{Answer, Answering, AskedDescriptor, Left, Question, RateLimitService};

/// In an answer: a rate limit was in the way, and nothing is wrong with the server (Envoy's).
pub const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
