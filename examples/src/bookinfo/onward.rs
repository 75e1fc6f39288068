//! What a request takes along to the next service, and what became of it there.

use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::request_info::Deadline;
use serde::{Deserialize, Serialize};

use crate::text::millis;

/// The header that says who is asking.
pub const USER: &str = "end-user";

/// What a request takes along: who is asking, and how long anybody waits for it. The mesh sees to the trace that it belongs to.
#[derive(Clone, Debug, Default)]
pub(super) struct Onward {
    headers: HeaderMap,
    deadline: Option<Deadline>,
}

impl Onward {
    fn of(parts: &Parts) -> Self {
        let user = HeaderName::from_static(USER);
        let headers = parts.headers.get(&user).map(|value| (user.clone(), value.clone()));
        let headers = HeaderMap::from_iter(headers);
        Onward { headers, deadline: parts.extensions.get::<Deadline>().copied() }
    }

    /// The same, on behalf of this user.
    pub(super) fn with_user(mut self, user: Option<&str>) -> Self {
        if let Some(user) = user.and_then(|user| HeaderValue::from_str(user).ok()) {
            self.headers.insert(USER, user);
        }
        self
    }

    /// Who is asking, if anybody says.
    pub(super) fn user(&self) -> Option<&str> {
        self.headers.get(USER).and_then(|user| user.to_str().ok())
    }

    /// The headers to send.
    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// When to give up, if this call may take so long.
    pub(super) fn deadline(&self, budget: Duration) -> Deadline {
        let own = Deadline(Instant::now() + budget);
        self.deadline.map_or(own, |deadline| deadline.min(own))
    }
}

impl<S: Sync> FromRequestParts<S> for Onward {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Onward::of(parts))
    }
}

/// What became of a call to another service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Leg {
    /// The HTTP status; for gRPC, the code's name.
    pub status: String,
    /// Who answered.
    pub backend: Option<String>,
    /// How long it took, in milliseconds.
    pub ms: f64,
    /// Why it failed, if the mesh failed it or the answer says.
    pub error: Option<String>,
}

impl Leg {
    pub(super) fn ended(started: Instant, status: impl ToString) -> Self {
        Leg { status: status.to_string(), ms: millis(started.elapsed()), ..Leg::default() }
    }

    /// Whether the call succeeded.
    pub fn is_ok(&self) -> bool {
        matches!(&*self.status, "200" | "OK")
    }

    /// The version that answered: the middle of `reviews-v2-127.0.0.1:4711`, given the service's name.
    pub fn version(&self, service: &str) -> Option<&str> {
        let rest = self.backend.as_deref()?.strip_prefix(service)?.strip_prefix('-')?;
        rest.rsplit_once('-').map(|(version, _)| version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_tells_its_version() {
        let leg = |backend: &str| Leg { backend: Some(backend.to_owned()), ..Leg::default() };
        assert_eq!(leg("reviews-v2-127.0.0.1:1").version("reviews"), Some("v2"));
        assert_eq!(leg("ratings-v2-mysql-[::1]:1").version("ratings"), Some("v2-mysql"));
        assert_eq!(leg("127.0.0.1:1").version("reviews"), None);
        assert_eq!(Leg::default().version("reviews"), None);
    }

    #[test]
    fn a_call_ends_no_later_than_the_request_that_it_is_made_for() {
        let soon = Deadline(Instant::now() + Duration::from_secs(1));
        let onward = Onward { deadline: Some(soon), ..Onward::default() };
        assert_eq!(onward.deadline(Duration::from_secs(9)), soon);
        assert!(onward.deadline(Duration::ZERO) < soon);
    }
}
