//! What several callers wait for: requests that are under way, by what is asked for, and what their answers are for everybody.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, SET_COOKIE, TRAILER, VARY};
use http::{HeaderMap, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use mesh_core::error::MeshError;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::response_body::ResponseBody;

/// The longest body that is shared, in bytes.
const LARGEST: u64 = 1 << 20;

/// Headers that tell requests apart and say nothing of what is wanted.
pub(super) const OF_ONE_REQUEST: [&str; 12] = [
    "traceparent",
    "tracestate",
    "x-request-id",
    "x-correlation-id",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-cloud-trace-context",
    "x-amzn-trace-id",
];

/// What is under way and shared, by what is asked for.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    /// Whether any request has taken a route that wants it: nobody else pays for looking.
    is_wanted: AtomicBool,
    shared: Mutex<HashMap<Key, Weak<Shared>>>,
}

/// Everything of a request that its answer may depend on.
pub(crate) type Key = Arc<[u8]>;

/// One request for several.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) key: Key,
    pub(super) of: Arc<Coalescer>,
    pub(super) outcome: watch::Receiver<Option<SharedOutcome>>,
    pub(super) task: AbortHandle,
}

/// What it came to.
#[derive(Clone, Debug)]
pub(super) enum SharedOutcome {
    /// An answer for everybody.
    Answer(Arc<(http::response::Parts, Bytes)>),
    /// A failure.
    Failed(MeshError),
    /// An answer for one, whoever is first to take it.
    OfOne(Arc<Mutex<Option<Response<ResponseBody>>>>),
}

impl Drop for Shared {
    /// Nobody waits any more.
    fn drop(&mut self) {
        self.task.abort();
        self.of.forget(&self.key);
    }
}

impl Coalescer {
    /// A request has taken a route that wants it.
    pub(super) fn want(&self) {
        self.is_wanted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<Key, Weak<Shared>>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a request out that is over, and not another one in its place that is not.
    fn forget(&self, key: &Key) {
        let mut shared = self.lock();
        if shared.get(key).is_some_and(|shared| shared.strong_count() == 0) {
            shared.remove(key);
        }
    }

    /// From here on, the same is asked for anew.
    pub(super) fn close(&self, key: &Key) {
        self.lock().remove(key);
    }
}

/// What a response is for everybody. Its body is read to the end where it may be shared.
pub(super) async fn shared_outcome(response: Result<Response<ResponseBody>, MeshError>) -> SharedOutcome {
    let response = match response {
        Ok(response) => response,
        Err(error) => return SharedOutcome::Failed(error),
    };
    let length = response.body().size_hint().exact();
    if !may_be_shared(response.status(), response.headers()) || length.is_none_or(|length| length > LARGEST) {
        return SharedOutcome::OfOne(Arc::new(Mutex::new(Some(response))));
    }
    let (head, body) = response.into_parts();
    match body.collect().await {
        Ok(whole) => SharedOutcome::Answer(Arc::new((head, whole.to_bytes()))),
        Err(error) => SharedOutcome::Failed(error),
    }
}

/// Whether an answer is for everybody who asked the same.
fn may_be_shared(status: StatusCode, headers: &HeaderMap) -> bool {
    let words = |name| {
        let values = headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        values.map(<[u8]>::trim_ascii)
    };
    let is_private = |directive: &[u8]| {
        let name = directive.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
        name.eq_ignore_ascii_case(b"private") || name.eq_ignore_ascii_case(b"no-store")
    };
    let tells_apart =
        |name: &[u8]| name == b"*" || OF_ONE_REQUEST.iter().any(|other| other.as_bytes().eq_ignore_ascii_case(name));
    status != StatusCode::SWITCHING_PROTOCOLS
        && !headers.contains_key(SET_COOKIE)
        && !headers.contains_key(TRAILER)
        && !words(CACHE_CONTROL).any(is_private)
        && !words(VARY).any(tells_apart)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_one_caller_is_not_shared() {
        for (name, value, is_shared) in [
            ("content-type", "text/plain", true),
            ("cache-control", "max-age=60, public", true),
            ("cache-control", "no-cache", true),
            ("cache-control", "max-age=0, Private", false),
            ("cache-control", "private=\"x\"", false),
            ("cache-control", "no-store", false),
            ("set-cookie", "a=b", false),
            ("trailer", "x-sum", false),
            ("vary", "accept, cookie", true),
            ("vary", "accept, *", false),
            ("vary", "Traceparent", false),
        ] {
            let headers = [(name.parse().unwrap(), value.parse().unwrap())].into_iter().collect();
            assert_eq!(may_be_shared(StatusCode::OK, &headers), is_shared, "{name}: {value}");
        }
        assert!(!may_be_shared(StatusCode::SWITCHING_PROTOCOLS, &HeaderMap::new()));
        assert!(may_be_shared(StatusCode::NOT_FOUND, &HeaderMap::new()));
    }
}
