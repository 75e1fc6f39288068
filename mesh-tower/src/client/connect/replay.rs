//! What it takes to send a request once more, kept while it is on its way. Up to eight headers cost no
//! allocation.

use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use smallvec::SmallVec;

use crate::body::{self, Body};

pub(super) struct Replay {
    method: Method,
    uri: Uri,
    version: http::Version,
    headers: SmallVec<[(HeaderName, HeaderValue); 8]>,
    body: body::Replay,
}

impl Replay {
    pub(super) fn of(parts: &Parts, body: &mut Body) -> Self {
        Replay {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            version: parts.version,
            headers: parts.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            body: body.replay(),
        }
    }

    /// The request once more, unless some of its body is gone. Extensions are not kept: they are of no use on
    /// the wire.
    pub(super) fn take(self) -> Option<(Parts, Body)> {
        let body = self.body.take()?;
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = self.method;
        parts.uri = self.uri;
        parts.version = self.version;
        for (name, value) in self.headers {
            parts.headers.append(name, value);
        }
        Some((parts, body))
    }
}
