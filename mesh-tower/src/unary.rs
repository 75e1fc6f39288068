//! Calls of gRPC by the mesh's own client, with one message each way unless somebody goes on: what it asks authorizers, rate limit
//! services and external processors by.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Limited};
use mesh_core::error::MeshError;
use mesh_core::request_info::grpc_status;
use tokio::sync::Semaphore;

use crate::body::Body;
use crate::grpc_wire::{framed, note_call, only_message};
use crate::outbound::{OutboundContext, ResponseBody};

/// What requests to a target go by; `None` when the mesh is gone.
type To = dyn Fn(&str) -> Option<Result<Arc<OutboundContext>, MeshError>> + Send + Sync;

/// What calls go by, for those that are made before the mesh whose client makes them.
#[derive(Clone, Default)]
pub(crate) struct MeshClient(Arc<OnceLock<Box<To>>>);

impl MeshClient {
    /// Calls go by this.
    pub(crate) fn set(
        &self,
        to: impl Fn(&str) -> Option<Result<Arc<OutboundContext>, MeshError>> + Send + Sync + 'static,
    ) {
        // There is one mesh, which says it once.
        let _ = self.0.set(Box::new(to));
    }

    /// What a call to a target goes by.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn to(&self, target: &str) -> Result<Arc<OutboundContext>, String> {
        let context = self.0.get().and_then(|to| to(target));
        context.ok_or("the mesh is gone")?.map_err(|error| format!("{error:#}"))
    }
}

/// How many calls to one target wait for a word at a time: one that hangs takes the turns of no other.
pub(crate) struct Turns {
    most: usize,
    /// Of each target that requests wait for.
    of: Mutex<HashMap<Arc<str>, Weak<Semaphore>>>,
}

impl Turns {
    /// So many of each.
    pub(crate) fn new(most: usize) -> Turns {
        Turns { most, of: Mutex::default() }
    }

    /// Those of a target.
    pub(crate) fn of(&self, target: &Arc<str>) -> Arc<Semaphore> {
        let mut turns = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = turns.get(target).and_then(Weak::upgrade) {
            return known;
        }
        turns.retain(|_, of| of.strong_count() > 0);
        let new = Arc::new(Semaphore::new(self.most));
        turns.insert(Arc::clone(target), Arc::downgrade(&new));
        new
    }
}

/// A call of `path` at `target`.
///
/// # Errors
/// One of them is no part of a URI.
pub(crate) fn call(target: &str, path: &str, message: &[u8]) -> Result<Request<Body>, String> {
    stream(target, path, Body::from(framed(message)))
}

/// A call with these messages, each [`framed`].
///
/// # Errors
/// One of both is no part of a URI.
pub(crate) fn stream(target: &str, path: &str, messages: Body) -> Result<Request<Body>, String> {
    let call = Request::post(format!("http://{target}{path}")).version(Version::HTTP_2).body(messages);
    let mut call = call.map_err(|error| error.to_string())?;
    note_call(call.headers_mut());
    Ok(call)
}

/// The message of an answer, of so many bytes at most.
///
/// # Errors
/// The call failed, or it is not one message.
pub(crate) async fn message(response: Response<ResponseBody>, most: usize) -> Result<Bytes, String> {
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(format!("the answer is {}", head.status));
    }
    let body = Limited::new(body, most).collect().await.map_err(|error| format!("its answer: {error}"))?;
    let trailers = body.trailers().cloned();
    ended(trailers.as_ref(), &head.headers)?;
    let bytes = body.to_bytes();
    let message = only_message(&bytes).map(|message| bytes.slice_ref(message));
    message.ok_or_else(|| "the answer is not one message".to_owned())
}

/// How a call ended, by its trailers or else the head of its answer.
///
/// # Errors
/// It failed, or nobody says.
pub(crate) fn ended(trailers: Option<&http::HeaderMap>, head: &http::HeaderMap) -> Result<(), String> {
    let status = |headers: &http::HeaderMap| grpc_status(headers).map(|status| status == 0);
    match trailers.and_then(status).or_else(|| status(head)) {
        Some(true) => Ok(()),
        Some(false) => Err("the call failed".to_owned()),
        None => Err("the answer has no gRPC status".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_hangs_takes_the_turns_of_no_other() {
        let turns = Turns::new(3);
        let [slow, quick]: [Arc<str>; 2] = ["slow:9000".into(), "quick:9000".into()];
        let of_slow = turns.of(&slow);
        let _all = of_slow.try_acquire_many(3).expect("there are so many");
        assert_eq!(turns.of(&slow).available_permits(), 0, "they are those of all requests");
        assert_eq!(turns.of(&quick).available_permits(), 3);
    }
}
