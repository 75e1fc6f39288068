//! What all measurements share: the servers, the clients that are compared, the load, the figures.

pub mod beside;
pub mod clients;
pub mod counts;
pub mod envoy;
pub mod exchange;
pub mod fixtures;
pub mod generation;
pub mod grpc;
pub mod load;
pub mod process;
pub mod servers;
pub mod stats;

/// A result with any error.
pub type Result<T = (), E = anyhow::Error> = std::result::Result<T, E>;
