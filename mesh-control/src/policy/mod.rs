//! The meaning of the configuration: what a client in some namespace, with some labels, is to do when it
//! calls a host and port.

pub mod support;
