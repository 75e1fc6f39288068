//! The xDS client: it keeps what the application asked for up to date, from a bootstrap on.

pub mod bootstrap;
pub(crate) mod connect;
pub mod decode;
pub(crate) mod names;

pub use bootstrap::Bootstrap;
pub use connect::{Connector, Io};
