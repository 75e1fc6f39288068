//! The ADS server over real sockets.

mod scale;
mod secured;
mod streams;
mod support;
