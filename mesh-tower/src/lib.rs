//! The HTTP data plane of the mesh: what an application puts around its clients and its servers.
//!
//! Everything begins with a [`Mesh`], one for a process: it holds the configuration, follows the control plane, and is
//! cheap to clone. `Mesh::from_env()` makes it from a bootstrap file; [`Mesh::builder`] from code.
//!
//! # Clients: which of the three
//!
//! | | for whom | what it does |
//! |---|---|---|
//! | [`Mesh::client`] | code of its own, and everything that takes a `tower::Service` of `http` requests | everything: routes, filters, retries, timeouts, balancing, over connections of the mesh |
//! | [`Mesh::client_layer`] | a client that is there already and can be wrapped, such as reqwest | the same, request by request; the client sends each try to the address that the mesh chose, over its own connections. `https` to a host outside of the mesh is the client's own; the mesh's mutual TLS it does not speak |
//! | [`Mesh::connector`] | a client that only takes a connector | chooses where each connection goes, and ends it when the configuration no longer allows it. It sees no requests: what it cannot honour is logged once for each target |
//!
//! ```
//! # use std::net::SocketAddr;
//! use http_body_util::BodyExt;
//! use mesh_tower::Mesh;
//! use mesh_tower::core::fixed::Fixed;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! # let address: SocketAddr = listener.local_addr()?;
//! # let app = axum::Router::new().route("/", axum::routing::get(|| async { "hello" }));
//! # tokio::spawn(async move { axum::serve(listener, app).await });
//! // Configuration in code, as in a test. With a control plane: `Mesh::from_env()`.
//! let mesh = Mesh::builder().source(Fixed::new().service("hello:80", [address])).start()?;
//! let response = mesh.client().get("http://hello/").await?;
//! assert_eq!(response.into_body().collect().await?.to_bytes(), "hello");
//! # Ok(()) }
//! ```
//!
//! # Servers
//!
//! [`Mesh::bind`](Mesh::bind) gives a listener, which hands out connections only while the configuration lets it serve;
//! [`Mesh::server_layer`] goes around the application, and finds each request's route and filters. The listener runs below
//! [`server::serve`], or below `axum::serve` with feature `axum`. [`Mesh::serving`] says when requests are wanted,
//! [`Mesh::drained`] when the process may end, and [`drain`] how it leaves without losing a request.
//!
//! Failures are [`MeshError`]s: of which kind, whose fault, and whether to try again.

#![warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod access_log;
mod admin;
pub mod body;
pub mod client;
pub mod connection;
pub mod drain;
mod filters;
mod followed;
pub mod gateway;
mod grpc_wire;
mod headers;
pub mod health;
pub mod inherited;
mod io;
mod listeners;
mod mesh;
mod metrics;
mod onward;
#[cfg(feature = "otel")]
pub mod otel;
mod outbound;
#[cfg(feature = "xds")]
mod processors;
#[cfg(feature = "xds")]
mod rate_limits;
pub mod reply;
pub mod server;
mod telemetry;
mod threads;
pub mod trace;
mod transport;
#[cfg(feature = "xds")]
mod unary;
mod uri;

pub use access_log::LogSink;
pub use client::Client;
pub use mesh::{Mesh, MeshBuilder, StartError};
pub use mesh_core as core;
pub use mesh_core::error::MeshError;
pub use mesh_core::model::{AccessLog, LogFormat};
pub use mesh_core::request_info::{Deadline, Repeat};
#[cfg(feature = "xds")]
pub use mesh_core::xds::Bootstrap;
pub use outbound::MirrorCounts;
