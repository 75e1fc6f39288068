//! What it takes to send a request once more, kept while it is on its way. Up to four headers cost no
//! allocation.

use http::{HeaderName, HeaderValue, Method, Request, Uri};
use smallvec::SmallVec;

use super::Outgoing;
use crate::body;

pub(super) struct Replay {
    method: Method,
    uri: Uri,
    version: http::Version,
    headers: SmallVec<[(HeaderName, HeaderValue); 4]>,
    body: body::Replay,
}

impl Replay {
    pub(super) fn of(request: &mut Outgoing) -> Self {
        let Outgoing { parts, body } = request;
        Replay {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            version: parts.version,
            headers: parts.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            body: body.replay(),
        }
    }

    /// Makes the request whole again; `false` if some of its body is gone. Extensions are not kept: they are of
    /// no use on the wire.
    pub(super) fn restore(self, request: &mut Outgoing) -> bool {
        let Some(body) = self.body.take() else { return false };
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = self.method;
        parts.uri = self.uri;
        parts.version = self.version;
        for (name, value) in self.headers {
            parts.headers.append(name, value);
        }
        *request = Outgoing { parts, body };
        true
    }
}
