//! The one clock of the client.

use std::time::Instant;

/// The runtime's clock: tests stop and turn it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Ends at that time; without one, never.
pub(crate) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
