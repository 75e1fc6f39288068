//! What comes in, over real sockets: listeners, the loop, limits, and bytes that can be read in two ways.

mod accept;
mod axum_listener;
mod canonical_request;
mod drain;
mod floods;
mod framing;
mod h2spec;
mod handshakes;
mod headers;
mod limits;
mod route;
mod stalled;
mod tcp;
mod wire;

#[path = "../mtls_support/mod.rs"]
mod mtls_support;
#[path = "../server_support/mod.rs"]
mod server_support;
