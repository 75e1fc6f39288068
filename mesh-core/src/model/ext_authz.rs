//! Somebody who is asked about requests (Envoy's `ext_authz`), as data.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};

use crate::model::{HeaderText, StringTest};

/// Who is asked about which requests, and what becomes of those that nobody answers about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExtAuthz {
    /// The authorizer, as the mesh's client calls it: `host:port`.
    pub target: Arc<str>,
    /// How it is asked.
    pub protocol: CheckProtocol,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Whether a request passes that it did not answer about. Never, unless it is written.
    pub fail_open: bool,
    /// What a request is answered with that it did not answer about.
    pub status_on_error: StatusCode,
    /// It is asked about requests that shadow rules are for: those of the RBAC filter that notes its decisions under this
    /// prefix. About all, where there is none.
    pub asked_by: Option<Arc<str>>,
    /// The headers of the request that it is shown; `None` are all.
    pub shown: Option<Vec<StringTest>>,
    /// How much of the body it is shown; `None` is nothing.
    pub body: Option<CheckedBody>,
}

/// How much of a request's body an authorizer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckedBody {
    /// The most that it is shown, in bytes.
    pub most: usize,
    /// Whether the first bytes of a longer one are enough. Else requests with a longer one are refused with 413.
    pub allow_partial: bool,
    /// Whether it is bytes in a question over gRPC, else text.
    pub as_bytes: bool,
}

impl CheckedBody {
    /// The most that can be asked for: what is read of bodies is held in memory.
    pub const LIMIT: usize = 16 << 20;

    /// The whole body, of so many bytes at most.
    pub fn whole(most: usize) -> Self {
        CheckedBody { most, allow_partial: false, as_bytes: false }
    }
}

impl ExtAuthz {
    /// One that is asked about all requests, for 200 ms (Envoy's default), and without whose word none passes.
    pub fn new(target: impl Into<Arc<str>>, protocol: CheckProtocol) -> Self {
        ExtAuthz {
            target: target.into(),
            protocol,
            timeout: Duration::from_millis(200),
            fail_open: false,
            status_on_error: StatusCode::FORBIDDEN,
            asked_by: None,
            shown: None,
            body: None,
        }
    }
}

/// The hosts of authorizers that are in the server's own process: `plans.in-process.invalid` is the one that the application
/// calls `plans`. A name under `invalid` leads nowhere (RFC 6761), so that whoever does not know of it lets nobody in.
pub const IN_PROCESS: &str = ".in-process.invalid";

/// How an authorizer is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckProtocol {
    /// By a request like the one that it is asked about: 200 lets it in.
    Http(HttpCheck),
    /// By `envoy.service.auth.v3.Authorization/Check`.
    Grpc,
    /// In the server's own process: it is the one that the application calls so.
    InProcess(Arc<str>),
}

/// What a question over HTTP and its answer have in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpCheck {
    /// What stands before the request's path.
    pub path_prefix: String,
    /// Headers that are sent besides, made of the request that it is asked about. A client cannot send one in their place.
    pub added: Vec<(HeaderName, HeaderText)>,
    /// Headers of an answer that lets in, for the application. Nobody else may set them.
    pub to_upstream: Vec<StringTest>,
    /// Headers of an answer that refuses, for the client; all, where none is named.
    pub to_client_on_deny: Vec<StringTest>,
    /// Headers of an answer that lets in, for the client.
    pub to_client_on_allow: Vec<StringTest>,
}
