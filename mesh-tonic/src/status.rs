//! Failures of the mesh as gRPC statuses: one code for each kind of error, and the mesh's own message.
//!
//! The codes that applications own (gRFC A54) are never among them: a caller that sees NOT_FOUND knows that the
//! server's own code said so.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::request::is_grpc;
use mesh_tower::reply;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

/// The status of a request that the mesh failed. The error stays with it; see [`mesh_error`]. Its metadata is what the
/// request's route sets on its responses.
///
/// ```
/// use mesh_core::error::{ErrorKind, MeshError};
/// use mesh_tonic::status::{mesh_error, status};
///
/// let error = MeshError::new(ErrorKind::NoHealthyEndpoint, "cluster payments: no healthy endpoint (3 known)");
/// let status = status(error);
/// assert_eq!(status.code(), tonic::Code::Unavailable);
/// assert_eq!(status.message(), "cluster payments: no healthy endpoint (3 known)");
/// assert_eq!(mesh_error(&status).map(|error| error.kind()), Some(ErrorKind::NoHealthyEndpoint));
/// ```
pub fn status(error: MeshError) -> Status {
    let metadata = error.response_headers().cloned().map(MetadataMap::from_headers).unwrap_or_default();
    let mut status = Status::with_metadata(code(&error), format!("{error:#}"), metadata);
    status.set_source(Arc::new(Behind(error)));
    status
}

/// The mesh's error behind a status, if the mesh failed the call; `None` if the server answered.
pub fn mesh_error(status: &Status) -> Option<&MeshError> {
    status.source()?.downcast_ref::<Behind>().map(|Behind(error)| error)
}

/// The error behind a status. The status has its text with all causes, since it may go over the wire; here is only
/// the kind, so that whoever prints a chain of errors reads each of them once.
struct Behind(MeshError);

impl fmt::Debug for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.kind())
    }
}

impl Error for Behind {}

/// The status of an answer that is not one of gRPC, such as an error page of a gateway: it has no `grpc-status`, and
/// another HTTP status than 200 or another content type (gRPC's `http-grpc-status-mapping`).
pub(crate) fn of_foreign_answer(head: &http::response::Parts) -> Option<Status> {
    if head.status == http::StatusCode::OK && !is_foreign(&head.headers) {
        return None;
    }
    if head.headers.contains_key(Status::GRPC_STATUS) {
        return None;
    }
    let content_type = head.headers.get(http::header::CONTENT_TYPE);
    let content_type = content_type.map_or_else(|| "none".into(), |value| String::from_utf8_lossy(value.as_bytes()));
    let message =
        format!("the server answered without a gRPC status: HTTP {}, content type {content_type}", head.status);
    Some(Status::new(code_of(reply::grpc_code(head.status)), message))
}

/// Whether these headers say that a body is not gRPC's.
fn is_foreign(headers: &http::HeaderMap) -> bool {
    headers.contains_key(http::header::CONTENT_TYPE) && !is_grpc(headers)
}

fn code(error: &MeshError) -> Code {
    let reset = (error.kind() == ErrorKind::ConnectionLost).then(|| reset_by(error)).flatten();
    reset.map_or_else(|| code_of(error.kind().grpc_code()), code_of_reset)
}

fn code_of(number: u32) -> Code {
    i32::try_from(number).map_or(Code::Unknown, Code::from)
}

/// The reason for which the peer reset the stream, if that is what happened.
fn reset_by(error: &MeshError) -> Option<h2::Reason> {
    let mut cause = error.source();
    while let Some(present) = cause {
        if let Some(error) = present.downcast_ref::<h2::Error>() {
            return error.reason().filter(|_| error.is_reset() && error.is_remote());
        }
        cause = present.source();
    }
    None
}

/// gRPC over HTTP/2, "Errors".
fn code_of_reset(reason: h2::Reason) -> Code {
    match reason {
        h2::Reason::REFUSED_STREAM => Code::Unavailable,
        h2::Reason::CANCEL => Code::Cancelled,
        h2::Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
        h2::Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_one_code_and_keeps_its_message() {
        let table = [
            (ErrorKind::BadRequest, Code::Internal),
            (ErrorKind::UnknownTarget, Code::Unavailable),
            (ErrorKind::NoRoute, Code::Unavailable),
            (ErrorKind::NoCluster, Code::Unavailable),
            (ErrorKind::NoHealthyEndpoint, Code::Unavailable),
            (ErrorKind::ConnectFailure, Code::Unavailable),
            (ErrorKind::RefusedStream, Code::Unavailable),
            (ErrorKind::ConnectionLost, Code::Unavailable),
            (ErrorKind::Timeout, Code::DeadlineExceeded),
            (ErrorKind::Overflow, Code::Unavailable),
            (ErrorKind::FaultInjected, Code::Unavailable),
            (ErrorKind::Security, Code::Unavailable),
            (ErrorKind::AccessDenied, Code::PermissionDenied),
            (ErrorKind::Unauthenticated, Code::Unauthenticated),
            (ErrorKind::Application, Code::Unavailable),
            (ErrorKind::NotServing, Code::Unavailable),
            (ErrorKind::NotServingYet, Code::Unavailable),
            (ErrorKind::NoListener, Code::Unavailable),
            (ErrorKind::Draining, Code::Unavailable),
        ];
        // gRFC A54.
        let owned_by_applications = [
            Code::Ok,
            Code::InvalidArgument,
            Code::NotFound,
            Code::AlreadyExists,
            Code::FailedPrecondition,
            Code::Aborted,
            Code::OutOfRange,
            Code::DataLoss,
        ];
        for (kind, code) in table {
            let error = MeshError::new(kind, "cluster payments: it failed").caused_by("a reason");
            let status = status(error);
            assert_eq!(status.code(), code, "{kind:?}");
            assert_eq!(status.message(), "cluster payments: it failed: a reason", "{kind:?}");
            assert!(!owned_by_applications.contains(&status.code()), "{kind:?}");
            assert_eq!(mesh_error(&status).map(MeshError::kind), Some(kind));
            let mut chain = vec![status.to_string()];
            let mut cause = status.source();
            while let Some(present) = cause {
                chain.push(present.to_string());
                cause = present.source();
            }
            assert_eq!(chain.join("\n").matches("it failed").count(), 1, "{chain:?}");
            assert_eq!(chain.join("\n").matches("a reason").count(), 1, "{chain:?}");
        }
        assert!(mesh_error(&Status::unavailable("the server's own")).is_none());
    }

    #[test]
    fn a_stream_that_the_peer_reset_has_the_code_of_the_reason() {
        let table = [
            (h2::Reason::NO_ERROR, Code::Internal),
            (h2::Reason::PROTOCOL_ERROR, Code::Internal),
            (h2::Reason::INTERNAL_ERROR, Code::Internal),
            (h2::Reason::FLOW_CONTROL_ERROR, Code::Internal),
            (h2::Reason::SETTINGS_TIMEOUT, Code::Internal),
            (h2::Reason::FRAME_SIZE_ERROR, Code::Internal),
            (h2::Reason::COMPRESSION_ERROR, Code::Internal),
            (h2::Reason::CONNECT_ERROR, Code::Internal),
            (h2::Reason::REFUSED_STREAM, Code::Unavailable),
            (h2::Reason::CANCEL, Code::Cancelled),
            (h2::Reason::ENHANCE_YOUR_CALM, Code::ResourceExhausted),
            (h2::Reason::INADEQUATE_SECURITY, Code::PermissionDenied),
        ];
        for (reason, code) in table {
            assert_eq!(code_of_reset(reason), code, "{reason:?}");
        }
    }

    #[test]
    fn a_lost_connection_is_unavailable_whatever_broke_it() {
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        for error in [
            MeshError::new(ErrorKind::ConnectionLost, "lost").caused_by(broken),
            MeshError::new(ErrorKind::ConnectionLost, "lost").caused_by(h2::Error::from(h2::Reason::CANCEL)),
        ] {
            assert_eq!(status(error).code(), Code::Unavailable);
        }
    }
}
