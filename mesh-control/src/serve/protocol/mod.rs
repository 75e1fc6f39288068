//! The xDS transport protocol as state machines without I/O: what a stream asked for, was told and confirmed,
//! and what it is told next, in both variants of the protocol.

pub(crate) mod delta;
pub(crate) mod ledger;
pub(crate) mod push;
pub(crate) mod session;
pub(crate) mod sotw;
#[cfg(test)]
pub(crate) mod tests;
