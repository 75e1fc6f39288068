//! A Kubernetes cluster as a source of configuration: the objects that it holds, and who serves its services.
//!
//! `access` says where the API server is and how to prove who asks, `client` asks it, `kinds` is the one table of what is
//! watched. `known` decides what a list or an event means for one kind: nothing that goes wrong on the way looks like a
//! deletion. `list` lists, and `follow` lists and watches one kind for good. `places` puts EndpointSlices, Pods and Nodes together to
//! endpoints, and `hub` gathers it all. `webhook` says whether an object may be stored.
//!
//! Of several replicas one writes: `lease` decides which (`elected` asks for it), `status` what belongs into an object's status, of
//! which `facts` are known, and `write` writes it, never more often than `attempts` lets it. Which members of WorkloadGroups are
//! registered they tell each other by WorkloadEntries (`members`).
//!
//! Objects are read as JSON by the reader of files: there is one meaning of an object, wherever it is written.

#![warn(clippy::indexing_slicing, clippy::string_slice)]

mod access;
mod attempts;
mod client;
mod elected;
mod facts;
mod follow;
mod hub;
pub(crate) mod kinds;
mod known;
mod lease;
mod list;
mod members;
pub(crate) mod objects;
mod places;
mod status;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod webhook;
mod write;

pub(crate) use access::Access;
pub(crate) use client::{Client, Failure};
pub(crate) use elected::{ControllerName, Elected, LeaseName};
pub(crate) use hub::Cluster;
pub(crate) use list::{list, list_any};
pub(crate) use members::Members;
