//! What it takes to send a request once more, kept while it is on its way. Up to four headers cost no
//! allocation.

use http::{HeaderName, HeaderValue, Method, Request, Uri};
use smallvec::SmallVec;

use crate::body::{self, Body};

pub(super) struct Replay {
    method: Method,
    uri: Uri,
    version: http::Version,
    headers: SmallVec<[(HeaderName, HeaderValue); 4]>,
    body: body::Replay,
}

impl Replay {
    pub(super) fn of(request: &mut Request<Body>) -> Self {
        Replay {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            body: request.body_mut().replay(),
        }
    }

    /// Whether sending it twice does no more harm than sending it once.
    pub(super) fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }

    /// The request, whole again; `None` if some of its body is gone. Extensions are not kept: they are of no use
    /// on the wire.
    pub(super) fn restore(self) -> Option<Request<Body>> {
        let mut request = Request::new(self.body.take()?);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.version_mut() = self.version;
        for (name, value) in self.headers {
            request.headers_mut().append(name, value);
        }
        Some(request)
    }
}
