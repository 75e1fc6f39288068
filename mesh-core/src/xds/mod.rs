//! The xDS client: it keeps what the application asked for up to date, from a bootstrap on.

pub(crate) mod backoff;
pub mod bootstrap;
pub(crate) mod cache;
pub mod client;
pub mod client_status;
pub(crate) mod connect;
pub mod decode;
pub(crate) mod delta;
pub mod dns;
pub(crate) mod intake;
pub(crate) mod names;
pub(crate) mod session;
pub(crate) mod sotw;
pub(crate) mod stream;
pub(crate) mod task;
pub(crate) mod timers;
pub(crate) mod transport;

pub use bootstrap::Bootstrap;
pub use client::{Consumer, XdsSource};
pub use client_status::{ClientStatus, StatusHandle};
pub use connect::{Connector, Io};
pub use dns::Resolver;

#[cfg(test)]
#[path = "tests/histories.rs"]
mod histories;
#[cfg(test)]
#[path = "tests/rig.rs"]
pub(crate) mod rig;
