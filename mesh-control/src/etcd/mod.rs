//! etcd as a source of configuration, and as the place where it is changed.
//!
//! `link` reaches it: one member at a time, and the next one where that does not answer. `keys` says where things are, `known`
//! decides what a list or an event means: nothing that goes wrong on the way looks like a deletion. `follow` lists and watches for
//! good. `fellows` tells other replicas of the workloads of this one. `commit` changes whole sets of objects in one transaction, each with its author in the history.
//!
//! The protocol (`proto`) is spoken by tonic over our own TLS. The crate `etcd-client` would make everybody who builds this have a
//! protoc, and bring a second way of securing connections.

#![warn(clippy::indexing_slicing, clippy::string_slice)]

mod commit;
mod desk;
mod fellows;
mod follow;
pub mod fuzz;
mod keys;
mod known;
mod link;
mod proto;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use commit::Objects;
pub(crate) use fellows::Fellows;
pub(crate) use follow::Store;
pub(crate) use keys::Prefix;
pub(crate) use link::{Access, Client};
