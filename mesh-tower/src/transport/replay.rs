//! What it takes to send a request once more, kept while it is on its way. Up to four headers cost no
//! allocation.

use http::{HeaderName, HeaderValue, Method, Request, Uri, Version};
use smallvec::SmallVec;

use crate::body::{self, Body};

/// Nothing, until it is told to [`keep`](Replay::keep) a request. It is filled where it stands: as large as it is,
/// moving it about would cost more than filling it.
pub(crate) struct Replay {
    method: Method,
    uri: Uri,
    version: Version,
    headers: SmallVec<[(HeaderName, HeaderValue); 4]>,
    body: body::Replay,
}

impl Default for Replay {
    #[inline(always)]
    fn default() -> Self {
        Replay {
            method: Method::GET,
            uri: Uri::default(),
            version: Version::HTTP_11,
            headers: SmallVec::new(),
            body: body::Replay::Gone,
        }
    }
}

impl Replay {
    /// Keeps a request that is about to be sent. Extensions are not kept: they are of no use on the wire.
    #[inline]
    pub(crate) fn keep(&mut self, request: &mut Request<Body>) {
        self.method = request.method().clone();
        self.uri = request.uri().clone();
        self.version = request.version();
        self.headers.clear();
        for (name, value) in request.headers() {
            self.headers.push((name.clone(), value.clone()));
        }
        self.body = request.body_mut().replay();
    }

    /// Whether sending it twice does no more harm than sending it once.
    pub(crate) fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }

    /// The request, whole again; `None` if some of its body is gone.
    pub(crate) fn restore(&mut self) -> Option<Request<Body>> {
        let mut request = Request::new(std::mem::take(&mut self.body).take()?);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        for (name, value) in self.headers.drain(..) {
            request.headers_mut().append(name, value);
        }
        Some(request)
    }

    /// Forgets the request: it was answered.
    #[inline]
    pub(crate) fn forget(&mut self) {
        self.headers.clear();
        self.body = body::Replay::Gone;
    }
}
