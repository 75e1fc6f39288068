//! The xDS client.

pub mod decode;
pub(crate) mod names;
