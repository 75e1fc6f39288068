//! The ADS server over real sockets.

mod embedded;
mod process;
mod rules_table;
mod scale;
mod secured;
mod streams;
mod support;
mod wildcards;
