//! The HTTP data plane of the mesh.

#![warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

pub mod body;
pub mod client;
pub mod connection;
pub mod drain;
mod filters;
mod headers;
pub mod health;
mod listeners;
mod mesh;
mod outbound;
pub mod reply;
pub mod server;
mod transport;
mod uri;

pub use client::Client;
pub use mesh::{Mesh, MeshBuilder, StartError};
pub use mesh_core as core;
pub use mesh_core::error::MeshError;
pub use mesh_core::request_info::Deadline;
#[cfg(feature = "xds")]
pub use mesh_core::xds::Bootstrap;
