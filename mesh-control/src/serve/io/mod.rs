//! Sockets, connections and streams: bytes to the state machines and back. Nothing is decided here.

pub(crate) mod access_log;
pub(crate) mod admin;
pub(crate) mod ads;
pub(crate) mod api;
mod blocks;
pub(crate) mod bundle;
pub(crate) mod certificates;
mod console;
pub(crate) mod csds;
mod door;
mod guest;
mod health_checks;
mod https;
pub(crate) mod live_trace;
pub(crate) mod load_stats;
pub(crate) mod openapi;
mod own_tls;
mod process;
pub(crate) mod quotas;
mod rate_limits;
mod secrets;
pub(crate) mod server;
pub(crate) mod tls;
mod verifier;
pub(crate) mod webhook;
pub(crate) mod wire;
