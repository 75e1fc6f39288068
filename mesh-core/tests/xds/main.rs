//! The xDS client, against a control plane of the test: over real sockets, into the store.

mod bootstrap;
mod rules;
mod store;
mod stream;
mod support;
mod told;
