//! The ADS server over real sockets.

mod streams;
mod support;
