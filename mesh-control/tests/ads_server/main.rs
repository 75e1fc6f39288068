//! The ADS server over real sockets.

mod certificates;
mod certificates_process;
mod embedded;
mod identity;
mod kubernetes;
mod process;
mod renewal;
mod restart;
mod rules_table;
mod scale;
mod secrets;
mod secured;
mod secured_process;
mod streams;
mod support;
mod unknown;
mod wildcards;
