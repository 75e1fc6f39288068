//! What all measurements share: bare servers, the clients that are compared, and a mesh without a control
//! plane.

pub mod clients;
pub mod grpc;
pub mod servers;

/// A result with any error.
pub type Result<T = (), E = anyhow::Error> = std::result::Result<T, E>;
