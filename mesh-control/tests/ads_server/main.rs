//! The ADS server over real sockets.

mod embedded;
mod process;
mod scale;
mod secured;
mod streams;
mod support;
