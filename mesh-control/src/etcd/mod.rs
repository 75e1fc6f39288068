//! etcd as a source of configuration, and as the place where it is changed.
//!
//! `link` reaches it: one member at a time, and the next one where that does not answer. `keys` says where things are, `known`
//! decides what a list or an event means: nothing that goes wrong on the way looks like a deletion. `follow` lists and watches for
//! good. `replicas` tells other replicas of the workloads of this one, and `tokens` which one-time tokens there are, and which were
//! used. `commit` is how whole sets of objects change in one transaction, each with its author in the history, as commands and the API
//! ask for it.
//!
//! The protocol (`proto`) is spoken by tonic over our own TLS. The crate `etcd-client` would make everybody who builds this have a
//! protoc, and bring a second way of securing connections.

#![warn(clippy::indexing_slicing, clippy::string_slice)]

mod commit;
mod follow;
pub mod fuzz;
mod keys;
mod known;
mod link;
mod proto;
mod replicas;
#[cfg(test)]
pub(crate) mod tests;
mod tokens;

pub(crate) use commit::Objects;
pub(crate) use follow::Store;
pub(crate) use keys::Prefix;
pub(crate) use link::{Access, Client, Failure};
pub(crate) use replicas::Replicas;
pub(crate) use tokens::SharedTokens;
