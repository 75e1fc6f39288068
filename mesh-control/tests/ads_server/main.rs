//! The ADS server over real sockets.

mod embedded;
mod process;
mod restart;
mod rules_table;
mod scale;
mod secured;
mod streams;
mod support;
