//! The ADS server over real sockets.

mod certificates;
mod certificates_process;
mod embedded;
mod federation;
mod guests;
mod identity;
mod kubernetes;
mod live_trace_process;
mod names_process;
mod process;
mod rate_limits;
mod renewal;
mod restart;
mod revoked;
mod rules_table;
mod scale;
mod sds;
mod secrets;
mod secured;
mod secured_process;
mod sidecars;
mod streams;
mod support;
mod unknown;
mod unreadable;
mod wildcards;
