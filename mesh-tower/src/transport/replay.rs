//! What it takes to send a request once more, kept while it is on its way. Up to four headers cost no
//! allocation.

use http::request::Parts;
use http::{Extensions, HeaderName, HeaderValue, Method, Request, Uri, Version};
use smallvec::SmallVec;

use crate::body::{self, Body};

/// Nothing, until it is told to [`keep`](Replay::keep) a request. It is filled where it stands: as large as it is,
/// moving it about would cost more than filling it.
pub(crate) struct Replay {
    method: Method,
    uri: Uri,
    version: Version,
    headers: SmallVec<[(HeaderName, HeaderValue); 4]>,
    extensions: Extensions,
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
            extensions: Extensions::new(),
            body: body::Replay::Gone,
        }
    }
}

impl Replay {
    /// Keeps a request that is about to be sent. Its extensions are of use to another client only, and not on the wire.
    #[inline]
    pub(crate) fn keep(&mut self, head: &Parts, body: &mut Body, with_extensions: bool) {
        self.method = head.method.clone();
        self.uri = head.uri.clone();
        self.version = head.version;
        self.headers.clear();
        for (name, value) in &head.headers {
            self.headers.push((name.clone(), value.clone()));
        }
        if with_extensions {
            self.extensions = head.extensions.clone();
        }
        self.body = body.replay();
    }

    /// Whether sending it twice does no more harm than sending it once.
    pub(crate) fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }

    /// The request, whole again; `None` if some of its body is gone.
    pub(crate) fn restore(&mut self) -> Option<(Parts, Body)> {
        let body = std::mem::take(&mut self.body).take()?;
        let (mut head, ()) = Request::new(()).into_parts();
        head.method = self.method.clone();
        head.uri = self.uri.clone();
        head.version = self.version;
        head.extensions = std::mem::take(&mut self.extensions);
        for (name, value) in self.headers.drain(..) {
            head.headers.append(name, value);
        }
        Some((head, body))
    }

    /// Forgets the request: it was answered.
    #[inline]
    pub(crate) fn forget(&mut self) {
        self.headers.clear();
        self.body = body::Replay::Gone;
    }
}
