//! Deadlines of gRPC calls: `grpc-timeout` as the specification has it, and the deadline that a call inherits
//! from the one that it is made for.

mod layer;

use std::time::Instant;

use http::{Extensions, HeaderMap};
use mesh_tower::core::request_info::Inherited;
use mesh_tower::inherited;

pub use layer::{DeadlineBody, DeadlineFuture, DeadlineLayer, DeadlineService};
pub use mesh_core::grpc_timeout::{GRPC_TIMEOUT, format, parse};
pub use mesh_core::request_info::Deadline;

/// The deadline of the call that this task is answering, if it has one: what [`DeadlineLayer`] found in its
/// headers. Calls that [`crate::Channel`] makes in the same task keep it by themselves; hand it to those of other
/// tasks in their request's extensions.
///
/// ```
/// use mesh_tonic::deadline;
///
/// let mut request = tonic::Request::new("from another task");
/// if let Some(deadline) = deadline::current() {
///     request.extensions_mut().insert(deadline);
/// }
/// ```
pub fn current() -> Option<Deadline> {
    inherited::current().deadline.map(Deadline)
}

/// What calls inherit that are made for one with this deadline, which is a part of the present traces.
fn until(deadline: Option<Deadline>) -> Inherited {
    let mut until = Inherited::default();
    until.deadline = deadline.map(|deadline| deadline.0);
    let current = inherited::current();
    (until.trace, until.mark) = (current.trace, current.mark);
    until
}

/// A `grpc-timeout` that cannot be understood.
#[derive(Debug)]
pub(crate) struct Malformed;

/// The deadline that a request's own `grpc-timeout` sets; `None` also where it is too far away to be told.
pub(crate) fn of_headers(headers: &HeaderMap, now: Instant) -> Result<Option<Deadline>, Malformed> {
    let Some(value) = headers.get(GRPC_TIMEOUT) else { return Ok(None) };
    let timeout = parse(value.as_bytes()).ok_or(Malformed)?;
    Ok(now.checked_add(timeout).map(Deadline))
}

/// The deadline of a call that is about to be made: the nearest of its own timeout, the one in its extensions
/// and the current one.
pub(crate) fn of_call(
    headers: &HeaderMap,
    extensions: &Extensions,
    now: Instant,
) -> Result<Option<Deadline>, Malformed> {
    let own = of_headers(headers, now)?;
    let handed = extensions.get::<Deadline>().copied();
    Ok([own, handed, current()].into_iter().flatten().min())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_call_keeps_the_nearest_of_its_deadlines() {
        let now = Instant::now();
        let at = |millis| Deadline(now + Duration::from_millis(millis));
        // (its own timeout, the extension, the current one) -> the deadline
        let table = [
            (None, None, None, Ok(None)),
            (Some("20m"), None, None, Ok(Some(at(20)))),
            (None, Some(at(30)), None, Ok(Some(at(30)))),
            (None, None, Some(at(40)), Ok(Some(at(40)))),
            (Some("20m"), Some(at(30)), Some(at(40)), Ok(Some(at(20)))),
            (Some("50m"), Some(at(30)), Some(at(40)), Ok(Some(at(30)))),
            (Some("50m"), None, Some(at(40)), Ok(Some(at(40)))),
            (Some("nonsense"), None, None, Err(())),
        ];
        for (own, handed, current, expected) in table {
            let (mut headers, mut extensions) = (HeaderMap::new(), Extensions::new());
            own.map(|own| headers.insert(GRPC_TIMEOUT, own.parse().unwrap()));
            handed.map(|handed| extensions.insert(handed));
            let deadline = inherited::sync_scope(until(current), || of_call(&headers, &extensions, now));
            assert_eq!(deadline.map_err(|_| ()), expected, "{own:?} {handed:?} {current:?}");
        }
    }
}
