//! Nouns and decisions of the mesh.

pub mod error;
pub mod id;
pub mod model;
pub mod resources;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "xds")]
pub mod xds;
