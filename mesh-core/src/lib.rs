//! Nouns and decisions of the mesh.

#![warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

pub mod balance;
pub mod client_status;
pub mod error;
pub mod filter;
pub mod fixed;
pub mod grpc_timeout;
pub mod id;
pub mod matcher;
pub mod model;
pub mod request;
pub mod request_info;
pub mod resources;
pub mod retry;
pub mod state;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod view;
#[cfg(feature = "xds")]
pub mod xds;
