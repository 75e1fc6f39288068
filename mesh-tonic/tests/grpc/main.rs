//! gRPC by tonic through the mesh, over real sockets.

mod calls;
mod client_status;
mod foreign_answers;
mod health;
mod identities;
mod load_reports;
mod metrics;
mod streams;
mod support;
