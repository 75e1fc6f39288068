//! Nouns and decisions of the mesh, and the xDS client: what `mesh-tower` and `mesh-control` are built on.
//!
//! An application needs little of it by name:
//!
//! - [`fixed::Fixed`], configuration in code, for tests and for a mesh without a control plane;
//! - [`error::MeshError`] and [`error::ErrorKind`], what a request fails with;
//! - [`request_info::Deadline`], how long a request may take, as an extension of it;
//! - [`request_info::Inherited`], what a request hands on to those that are made for it, as an extension of these;
//! - [`request_info::Repeat`], whether it may be sent more than once, as an extension of it;
//! - [`request_info::Observer`], who is told of every request that ended;
//! - [`filter`] and [`balance`], for filters and balancers of its own;
//! - `xds::Bootstrap` and `xds::XdsSource` (feature `xds`), who a process is, and which control plane it follows.
//!
//! ```
//! use mesh_core::fixed::Fixed;
//!
//! // `http://reviews:9080/` is one of these two.
//! let source = Fixed::new().service("reviews:9080", ["127.0.0.1:8080".parse()?, "127.0.0.1:8081".parse()?]);
//! # Ok::<(), std::net::AddrParseError>(())
//! ```

#![warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

pub mod authz;
pub mod balance;
pub mod calls;
pub mod client_status;
pub mod error;
pub mod filter;
pub mod fixed;
pub mod grpc_timeout;
pub mod hashing;
pub mod health_check;
mod histogram;
pub mod id;
pub mod identity;
pub mod jwt;
pub mod limits;
pub mod list;
pub mod live_trace;
pub mod load_report;
pub mod matcher;
pub mod model;
pub mod outlier;
pub mod path;
pub mod printable;
pub mod proxy_protocol;
pub mod recycled;
pub mod request;
pub mod request_info;
pub mod resources;
pub mod response_flags;
pub mod retry;
pub mod rewrite;
pub mod seldom;
pub mod state;
pub mod store;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tls;
pub mod trace;
pub mod view;
pub mod workload;
#[cfg(feature = "xds")]
pub mod xds;
