//! The HTTP data plane of the mesh.

pub mod drain;
mod mesh;

pub use mesh::{Mesh, MeshBuilder, StartError};
pub use mesh_core as core;
