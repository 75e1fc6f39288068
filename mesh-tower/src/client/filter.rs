//! The second station: the route's filters, in order. They may change the request's head, hold it back, or
//! answer it.

use http::Response;
use http::request::Parts;
use mesh_core::call::Call;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::filter::Decision;
use mesh_core::view::Routed;

use crate::body::ResponseBody;
use crate::reply;

/// Passes the filters; an answer of theirs ends the walk here.
pub(super) async fn pass(
    routed: &Routed<'_>,
    call: &mut Call,
    parts: &mut Parts,
) -> Result<Option<Response<ResponseBody>>, MeshError> {
    for filter in routed.filters {
        let (delay, answer) = match filter.on_request(call, parts) {
            Decision::Continue => continue,
            Decision::Wait(delay, answer) => (delay, answer),
            Decision::Reply(answer) => return Ok(Some(reply::filter(answer, call.is_grpc))),
        };
        let wait = tokio::time::sleep(delay);
        match call.deadline {
            None => wait.await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), wait).await.map_err(|_| {
                MeshError::new(ErrorKind::Timeout, "the deadline passed while a filter held the request back")
            })?,
        }
        if let Some(answer) = answer {
            return Ok(Some(reply::filter(answer, call.is_grpc)));
        }
    }
    Ok(None)
}
