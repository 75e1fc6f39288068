//! What an exchange says, above all one that failed: about the request, the connection, the endpoint.

use http::{HeaderMap, StatusCode};
use hyper_util::client::legacy;
use mesh_core::error::{ErrorKind, MeshError, OVERLOADED};
use mesh_core::limits::RATE_LIMITED;
use mesh_core::outlier::Outcome;
use mesh_core::request_info::grpc_status;

use crate::body::BoxError;
use crate::transport::dial::is_lack_of_this_process;

/// What the head of an answer says of the endpoint; `None` where the trailers will.
pub(crate) fn outcome_of(status: StatusCode, headers: &HeaderMap, is_grpc: bool) -> Option<Outcome> {
    if !is_grpc && status.as_u16() < 500 {
        return Some(Outcome::Status(status.as_u16()));
    }
    // A limit says nothing of how well the endpoint is, whatever code it answers with.
    if headers.contains_key(RATE_LIMITED) || headers.contains_key(OVERLOADED) {
        return Some(Outcome::Status(StatusCode::TOO_MANY_REQUESTS.as_u16()));
    }
    match grpc_status(headers).filter(|_| is_grpc) {
        Some(code) => Some(Outcome::of_grpc(code)),
        None if is_grpc && status == StatusCode::OK => None,
        None => Some(Outcome::Status(status.as_u16())),
    }
}

/// Whether an outcome is a success to reports of load: of gRPC's statuses OK alone is one, and the others stand for 400 and up.
pub(crate) fn is_success(outcome: Outcome, is_grpc: bool) -> bool {
    let least = if is_grpc { 400 } else { 500 };
    matches!(outcome, Outcome::Status(status) if status < least)
}

/// An exchange that failed.
pub(crate) struct Failure {
    /// Why.
    pub(crate) error: MeshError,
    /// What it says about the connection.
    pub(crate) cause: FailureCause,
    /// Whether it says that the endpoint cannot be reached.
    pub(crate) unreachable: bool,
}

/// What a failure says about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureCause {
    /// Nothing in particular: it is the endpoint that failed.
    Endpoint,
    /// It had closed while nobody used it, and nothing was sent: any other connection will do, and no try was made.
    Stale,
    /// It closed without an answer. The server may have been about to close it, or the request may have been too
    /// much for it: once more, over a new connection (RFC 9112, 9.3.1; RFC 9110, 9.2.2 forbids a third time).
    Cut,
}

impl Failure {
    /// What to make of an error of hyper's. A request that was never written was not processed, nor was one whose stream was
    /// refused unseen, nor one that there was nothing to send by, of which hyper says nothing. `reused` says whether the
    /// connection had carried requests before: then it may have been closed since.
    #[cold]
    pub(super) fn of_exchange(cause: Option<hyper::Error>, reused: bool, http1: bool, is_idempotent: bool) -> Failure {
        let Some(cause) = cause else {
            let cause = if reused { FailureCause::Stale } else { FailureCause::Endpoint };
            return Failure { error: MeshError::new(ErrorKind::ConnectFailure, UNSENT), cause, unreachable: false };
        };
        if let Some(error) = of_body(&cause) {
            return error;
        }
        // hyper cancels only what it has not sent.
        let unsent = cause.is_canceled();
        let refused = !unsent && was_refused(&cause);
        let cut = !unsent && http1 && reused && is_idempotent && was_closed(&cause);
        // A connection that ends drops the one request that waits in it for a stream, and says no more than of one that
        // was sent.
        let dropped = !unsent && !http1 && cause.is_user() && is_idempotent;
        let error = match () {
            () if refused => MeshError::new(ErrorKind::RefusedStream, "the stream was refused"),
            () if unsent || dropped => MeshError::new(ErrorKind::ConnectFailure, UNSENT),
            () => MeshError::new(ErrorKind::ConnectionLost, "the connection failed before a response came"),
        };
        let conclusion = match () {
            () if cut => FailureCause::Cut,
            () if unsent && reused => FailureCause::Stale,
            () => FailureCause::Endpoint,
        };
        Failure { error: error.caused_by(cause), cause: conclusion, unreachable: false }
    }

    /// What to make of an error of a client that the application brought. Only what it says itself, or what the
    /// network says, is known of the request.
    #[cold]
    pub(crate) fn of_other_client(cause: BoxError, is_idempotent: bool) -> Failure {
        if let Some(error) = of_body(&*cause) {
            return error;
        }
        let refused = was_refused(&*cause);
        // That somebody refused a connection may be about another one that the client makes for the request.
        let unsent = !refused && (was_not_connected(&*cause) || (is_idempotent && dial_was_refused(&*cause)));
        let unreachable = !refused && could_not_connect(&*cause);
        let error = match () {
            () if refused => MeshError::new(ErrorKind::RefusedStream, "the inner client: the stream was refused"),
            () if unsent => MeshError::new(ErrorKind::ConnectFailure, "the inner client cannot connect"),
            () => MeshError::new(ErrorKind::ConnectionLost, "the inner client failed"),
        };
        Failure { error: error.caused_by(cause), cause: FailureCause::Endpoint, unreachable }
    }
}

const UNSENT: &str = "the connection closed before the request was sent";

/// What was wrong with the request's body while it was sent: it says nothing of the endpoint.
fn of_body(error: &(dyn std::error::Error + 'static)) -> Option<Failure> {
    let found = chain(error).find_map(|cause| cause.downcast_ref::<MeshError>());
    let error = match found.filter(|error| error.kind() == ErrorKind::BadRequest) {
        Some(error) => error.clone(),
        None if was_broken_off(error) => MeshError::new(ErrorKind::BadRequest, "the request's body broke off"),
        None => return None,
    };
    Some(Failure { error, cause: FailureCause::Endpoint, unreachable: false })
}

/// Whether hyper has reset the stream since its body failed: over HTTP/2 nobody is told more of it.
fn was_broken_off(error: &(dyn std::error::Error + 'static)) -> bool {
    let Some(error) = chain(error).find_map(|cause| cause.downcast_ref::<h2::Error>()) else { return false };
    let is_ours = error.is_reset() && !error.is_remote() && !error.is_library();
    is_ours && error.reason() == Some(h2::Reason::INTERNAL_ERROR)
}

/// The errors of a chain, the first included.
fn chain<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// Whether the peer says that it has not looked at the stream: REFUSED_STREAM, or a GOAWAY below it (RFC 9113,
/// 8.7 and 6.8; gRFC A6 calls the retry of it transparent).
fn was_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let Some(error) = chain(error).find_map(|cause| cause.downcast_ref::<h2::Error>()) else { return false };
    let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM) && error.is_remote();
    let leaving = error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
    refused || leaving
}

/// Whether an HTTP/1.1 connection ended before any response came: closed, or reset.
fn was_closed(error: &hyper::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    let reset = io.is_some_and(|io| matches!(io.kind(), ConnectionReset | ConnectionAborted | BrokenPipe));
    reset || error.is_incomplete_message()
}

/// Whether a client says that it has not sent the request: it could not connect, or hyper gave the request back.
fn was_not_connected(error: &(dyn std::error::Error + 'static)) -> bool {
    chain(error).any(|cause| {
        cause.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect)
            || cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
    })
}

/// Whether a client says that it could not connect: nobody listens, there is no way, or it took too long.
fn could_not_connect(error: &(dyn std::error::Error + 'static)) -> bool {
    let says_so = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect)
    };
    let is_own = chain(error).any(|cause| cause.downcast_ref().is_some_and(is_lack_of_this_process));
    !is_own && (chain(error).any(says_so) || dial_was_refused(error))
}

/// Whether a dial was refused: nobody listens, there is no way, or no port of this machine for it.
fn dial_was_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable};
    let nobody = |io: &std::io::Error| {
        matches!(io.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | AddrNotAvailable)
    };
    chain(error).any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(nobody))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_could_be_sent_by_was_not_sent_whatever_its_method() {
        for (reused, cause) in [(true, FailureCause::Stale), (false, FailureCause::Endpoint)] {
            let failure = Failure::of_exchange(None, reused, true, false);
            assert_eq!((failure.error.kind(), failure.cause), (ErrorKind::ConnectFailure, cause));
        }
    }
}
