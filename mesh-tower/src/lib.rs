//! The HTTP data plane of the mesh.

#![warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

pub mod body;
pub mod client;
pub mod drain;
mod headers;
pub mod health;
mod mesh;
pub mod reply;
pub mod server;

pub use client::Client;
pub use mesh::{Mesh, MeshBuilder, StartError};
pub use mesh_core as core;
