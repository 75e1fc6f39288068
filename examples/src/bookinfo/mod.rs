//! Bookinfo: four small services that call each other through the mesh, and a program that moves their traffic.
//!
//! ```text
//! traffic ─▶ productpage ─┬─▶ details
//!                         └─▶ reviews v1
//!                             reviews v2 (black stars) ─┬─▶ ratings (gRPC; plain HTTP on the same port)
//!                             reviews v3 (red stars)  ──┘
//! ```
//!
//! Each service is a server of its own with a [`Mesh`](mesh_tower::Mesh) of its own, as it would be in a process
//! of its own: it registers itself by its labels, and finds the others by name. Each has a service account, by which
//! the others know it: all connections are mutual TLS, and only the arrows above are allowed.

mod application;
mod details;
pub mod manifests;
mod onward;
mod page;
mod productpage;
pub mod ratings;
mod reviews;
pub mod service;
pub mod tour;

pub use application::Bookinfo;
pub use onward::{Leg, USER};
pub use productpage::{Part, Product, product};
pub use service::{App, Running, Service};

/// The port of every service's name. Workloads listen wherever they like.
pub const PORT: u16 = 9080;
