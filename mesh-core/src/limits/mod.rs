//! How much of something requests may have, and what they are counted by: what local limits and the clients of rate limit
//! services share. How many requests there may be at a time, whose turn it is where they wait, and which are
//! held back since they would fail.

mod admission;
mod bucket;
mod concurrency;
mod descriptor;
mod fair_queue;
mod local;
mod quota;
mod quotas;
mod service;

use http::HeaderName;

pub use admission::Admission;
pub use bucket::{Bucket, Epoch, KeyedBuckets, Rate, Taken, Ticks};
pub use concurrency::Concurrency;
pub use descriptor::{Descriptor, DescriptorMaker, Entries, Entry, LimitedRequest, Tells, Value};
pub(crate) use fair_queue::{Arrival, FairQueue, Joined, Ticket};
pub use local::{LocalBuckets, LocalLimiter, LocalPlan, LocalVerdict};
pub use quota::{QuotaBucket, QuotaUsage, QuotaVerdict};
pub use quotas::{Due, Kept, MOST_BUCKETS, QuotaDomain, Quotas};
pub use service::{Answer, Answering, AskedDescriptor, Left, Question, RateLimitService};

/// In an answer: a rate limit was in the way, and nothing is wrong with the server (Envoy's).
pub const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
