//! What happened to a request, told once when it is over.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::ErrorKind;
use crate::state::EndpointState;

/// One finished request.
#[derive(Debug)]
#[non_exhaustive]
pub struct Event<'e> {
    /// What the application asked for.
    pub authority: &'e str,
    /// The route's name; empty where none was found.
    pub route: &'e str,
    /// The cluster; empty where none was chosen.
    pub cluster: &'e str,
    /// The endpoint of the last try.
    pub endpoint: Option<&'e Arc<EndpointState>>,
    /// The HTTP status, where an answer came.
    pub status: Option<http::StatusCode>,
    /// Why the mesh failed it, where it did. Neither status nor error: the caller gave it up.
    pub error: Option<ErrorKind>,
    /// Tries; 0 where no endpoint was picked.
    pub attempts: u32,
    /// From the start to the end of the response's head.
    pub duration: Duration,
}

impl<'e> Event<'e> {
    /// An event about a request to `authority`, with nothing else known.
    pub fn new(authority: &'e str) -> Self {
        Event {
            authority,
            route: "",
            cluster: "",
            endpoint: None,
            status: None,
            error: None,
            attempts: 0,
            duration: Duration::ZERO,
        }
    }
}

/// Someone who wants to know. Called on the request's task: must not block.
pub trait Observer: Send + Sync + fmt::Debug {
    /// A request is over.
    fn on_event(&self, event: &Event<'_>);
}
