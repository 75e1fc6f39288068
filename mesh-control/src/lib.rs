//! The control server of the mesh: Istio YAML in, xDS out.

#![warn(clippy::unwrap_used)]

pub mod analysis;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod embedded;
pub mod plane;
pub mod policy;
pub mod registry;
pub mod render;
pub mod serve;
