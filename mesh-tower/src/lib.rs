//! The HTTP data plane of the mesh.

pub mod drain;
pub mod health;
mod mesh;
pub mod server;

pub use mesh::{Mesh, MeshBuilder, StartError};
pub use mesh_core as core;
