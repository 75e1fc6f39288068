//! Nouns and decisions of the mesh.

pub mod error;
pub mod id;
pub mod model;
