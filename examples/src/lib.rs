//! What the example programs share: small tools, echo and curl for a mesh, and bookinfo.
//!
//! The programs are in `src/bin`. Those that are meant to be read, `hello_http`, `hello_grpc` and
//! `existing_client`, use nothing of this library.

pub mod bookinfo;
pub mod cli;
pub mod curl;
pub mod echo;
pub mod grpc;
pub mod load;
pub mod node;
pub mod stats;
pub mod text;

/// The README's example compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
