//! The control plane of the mesh: Istio YAML in, xDS out.
//!
//! Most people run it as the command `mesh-control`. As a library it is
//!
//! - [`embedded::Embedded`], a control plane in the application's own process, or in a test: the same configuration, the
//!   same protocol, no server to run;
//! - [`analysis::validate`], all that `mesh-control validate` has to say about some texts;
//! - [`plane::Plane`], the decisions without a server, for whoever brings their own.
//!
//! ```
//! use mesh_control::analysis::validate;
//!
//! let rule = "
//! apiVersion: networking.istio.io/v1
//! kind: VirtualService
//! metadata: {name: reviews}
//! spec: {hosts: [reviews], http: [{route: [{destination: {host: reveiws}}]}]}
//! ";
//! let found = validate([("reviews.yaml", rule)]);
//! assert!(found[0].to_string().starts_with("reviews.yaml:5:"));
//! ```

#![warn(clippy::unwrap_used)]

pub mod analysis;
pub mod ca;
pub mod calls;
pub mod catalog;
mod changes;
pub mod cli;
pub mod config;
pub mod conformance;
pub mod embedded;
mod etcd;
mod explain;
mod fetch;
mod hex;
mod http1;
mod journal;
mod jwks;
mod kubernetes;
pub mod live_trace;
mod period;
pub mod plane;
pub mod policy;
pub mod quota;
pub mod ratelimit;
pub mod registry;
pub mod render;
pub mod serve;
mod shift;

#[doc(hidden)]
pub use etcd::fuzz;
