//! How much of something requests may have, and what they are counted by: what local limits and the clients of rate limit
//! services share.

mod descriptor;

pub use descriptor::{Descriptor, DescriptorMaker, Entry, LimitedRequest, Value};
