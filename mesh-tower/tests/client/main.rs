//! What goes out of a process, over real sockets: by the client, the layer and the connector.

mod connector;
mod early_answers;
mod edges;
mod faults;
mod filters;
mod global_limits;
mod grpc_metrics;
mod health_checks;
mod interim;
mod load;
mod mesh;
mod outside;
mod overload;
mod rate_limits;
mod requests;
mod sessions;
mod walk;
mod wire;

#[path = "../limits_support/mod.rs"]
mod limits_support;
#[path = "../server_support/mod.rs"]
mod server_support;
