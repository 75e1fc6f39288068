//! The connected clients: who they are, which workloads they are, when they may begin, and what is told of them
//! to people and to tools.

pub(crate) mod admission;
pub(crate) mod attest;
pub(crate) mod authority;
pub(crate) mod certificates;
pub(crate) mod clock;
pub(crate) mod feed;
pub(crate) mod fleet;
pub(crate) mod following;
pub(crate) mod graph;
pub(crate) mod issued;
pub(crate) mod kubernetes;
pub(crate) mod load;
pub(crate) mod metrics;
pub(crate) mod node;
pub(crate) mod presence;
pub(crate) mod refusals;
pub(crate) mod settling;
pub(crate) mod state;
pub(crate) mod status;
pub(crate) mod traffic;
