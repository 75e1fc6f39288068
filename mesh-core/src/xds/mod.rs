//! The xDS client: it keeps what the application asked for up to date, from a bootstrap on.
//!
//! The walk of an update: `transport` reads a response → `session` hands it to the machine of its server
//! (`sotw` or `delta`) → `intake` decodes it resource by resource ([`decode`]) → `cache` decides what it means →
//! [`client`] applies the change to the store, then sends the acknowledgement, then asks for what the store misses.
//!
//! Everything but `transport`, [`client`] and [`dns`] is synchronous and takes the time as an argument. The rules
//! and the tests that hold them are listed in `docs/xds-client-rules.md`.
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use mesh_core::store::{Source, Store};
//! use mesh_core::view::Extensions;
//! use mesh_core::xds::{Bootstrap, BootstrapError, XdsSource};
//!
//! # async fn run() -> Result<(), BootstrapError> {
//! let source = Arc::new(XdsSource::new(Bootstrap::from_env()?));
//! let idle = Duration::from_secs(300);
//! let (store, sink) = Store::new(Arc::clone(&source) as Arc<dyn Source>, Extensions::default(), idle);
//! // Not on the application's threads: a large update may keep the one that it is decoded on busy for a while.
//! let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
//! std::thread::spawn(move || runtime.block_on(source.run(sink)));
//! let reviews = store.target("reviews.shop:9080");
//! # Ok(())
//! # }
//! ```

// What a management server or a file says must never end in a panic.
#![warn(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used)]

pub mod access_log;
pub(crate) mod backoff;
pub mod bootstrap;
pub(crate) mod cache;
pub(crate) mod certificates;
pub(crate) mod channels;
pub mod check;
pub mod client;
pub(crate) mod clock;
pub(crate) mod connect;
pub(crate) mod csds;
pub mod decode;
pub(crate) mod delta;
pub mod dns;
pub(crate) mod dump;
pub mod ext_proc;
pub(crate) mod health_discovery;
pub(crate) mod ignored;
pub(crate) mod intake;
pub mod istio_ca;
pub mod live_trace;
pub mod load_stats;
pub(crate) mod names;
pub mod peer_metadata;
pub(crate) mod place;
pub mod quota;
pub mod rate_limit;
pub(crate) mod session;
pub(crate) mod sotw;
pub(crate) mod stream;
pub(crate) mod task;
pub(crate) mod timers;
pub(crate) mod tls;
pub(crate) mod transport;
pub(crate) mod validate;
pub(crate) mod workload_api;

pub use crate::client_status::{self, ClientStatus, StatusHandle};
pub use bootstrap::{Bootstrap, BootstrapError};
pub use client::{Consumer, XdsSource};
pub use connect::Connector;
pub use dns::Resolver;
pub use tls::Io;
pub use validate::validate;

#[cfg(test)]
#[path = "tests/histories.rs"]
mod histories;
#[cfg(test)]
#[path = "tests/rig.rs"]
pub(crate) mod rig;
