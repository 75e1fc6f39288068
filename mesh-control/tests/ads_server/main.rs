//! The ADS server over real sockets.

mod scale;
mod streams;
mod support;
