//! The gRPC face of the mesh: a channel for clients that tonic generates, and what a tonic server needs.
//!
//! A generated client takes [`channel()`] where it takes tonic's own `Channel`; a tonic server goes behind
//! [`server_layer`], or is run by [`serve`].
//!
//! ```
//! use mesh_tower::Mesh;
//! use mesh_tower::core::fixed::Fixed;
//! use tonic_health::pb::health_client::HealthClient;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let source = Fixed::new().service("xds:///orders:50051", ["127.0.0.1:50051".parse()?]);
//! let mesh = Mesh::builder().source(source).start()?;
//! let client = HealthClient::new(mesh_tonic::channel(&mesh, "xds:///orders:50051"));
//! # Ok(()) }
//! ```
//!
//! | file | what |
//! |---|---|
//! | `channel` | [`channel()`]: a `GrpcService` whose requests the mesh routes, balances and sends |
//! | `status` | every failure of the mesh as exactly one `tonic::Status`, with the mesh's own message |
//! | `deadline` | `grpc-timeout` in and out; a call never outlives the one that it is made for |
//! | `server` | [`serve`] and [`server_layer`]: a tonic server behind the mesh, from bound to drained |
//! | `streams` | [`streams::resuming`]: streams that last move to servers that come later |
//! | `health` | `grpc.health.v1`, told by the mesh |
//! | `codec` | [`codec::Raw`]: messages as they are on the wire |
//! | `load_reports` | reports of load on a stream, for clients that balance by it (ORCA) |
//! | `client_status` | what the control plane told this process, for gRPC's tools (CSDS) |

#![warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

pub mod channel;
pub mod client_status;
pub mod codec;
pub mod deadline;
pub mod health;
pub mod load_reports;
pub mod server;
pub mod status;
pub mod streams;

pub use channel::{Channel, channel};
pub use deadline::Deadline;
pub use server::{layer_of, serve, server_layer};
