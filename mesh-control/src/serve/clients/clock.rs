//! The one clock of the server.

use std::time::Instant;

/// The runtime's clock: tests stop and turn it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
