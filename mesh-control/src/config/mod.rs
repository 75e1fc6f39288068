//! Istio's YAML and that of Gateway API, typed, with the place of everything in its file.
//!
//! `node` reads text into a tree with positions, `decode` types it, `schema` and `schemas` say what may be written, `spelling` knows what was meant, `locate` finds a field again, `istio/` and `gateway_api/` have one file
//! for each kind, `extensions/` the annotations of our own, `file` makes objects of a text, `load` reads a directory, `overlooked` says what beside it may have been meant, `source` is the seam for whatever else holds objects, `doubt` what is to be made of one that is suddenly empty, `store` decides what of it is in force.

#![warn(clippy::indexing_slicing, clippy::string_slice)]

pub mod decode;
pub mod diagnostic;
pub(crate) mod doubt;
pub mod extensions;
pub mod file;
pub mod gateway_api;
pub mod istio;
pub mod load;
pub mod locate;
pub mod node;
mod overlooked;
pub mod schema;
pub mod schemas;
pub(crate) mod source;
pub(crate) mod spelling;
mod state;
pub mod store;
pub mod support;
pub mod watch;
pub(crate) mod yaml;

pub use diagnostic::{Code, Diagnostic, Origin, Severity, Source, Span};
pub use file::{Meta, Object, Objects, ParsedFile};
