//! What it takes to send a request once more, kept while it is on its way. Up to eight headers cost no
//! allocation.

use std::thread::LocalKey;

use http::header::UPGRADE;
use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};
use mesh_core::recycled::{Recycle, Recycled, Spare};
use mesh_core::request_info::Messages;
use smallvec::SmallVec;

use crate::body::{self, Body};

/// Nothing, until it is told to [`keep`](Replay::keep) a request.
#[derive(Default)]
pub(crate) struct Replay {
    head: Option<Recycled<Kept>>,
    body: body::Replay,
}

/// The head of a request. It has memory of its own, since it is large, and forgotten long before the request is over.
struct Kept {
    method: Method,
    uri: Uri,
    version: Version,
    headers: SmallVec<[(HeaderName, HeaderValue); 8]>,
    extensions: Extensions,
}

impl Recycle for Kept {
    fn spare() -> &'static LocalKey<Spare<Self>> {
        thread_local!(static SPARE: Spare<Kept> = const { Spare::new(Vec::new()) });
        &SPARE
    }
}

impl Kept {
    /// Copies a head into its final place.
    #[inline]
    fn of(head: &Parts, with_extensions: bool) -> Recycled<Self> {
        let (method, uri, version) = (head.method.clone(), head.uri.clone(), head.version);
        let extensions = if with_extensions { head.extensions.clone() } else { Extensions::new() };
        let mut kept = Recycled::new(|| Kept { method, uri, version, headers: SmallVec::new(), extensions });
        let Kept { headers, .. } = &mut *kept;
        for (name, value) in &head.headers {
            headers.push((name.clone(), value.clone()));
        }
        kept
    }

    fn is_tunnel(&self) -> bool {
        self.method == Method::CONNECT || self.headers.iter().any(|(name, _)| *name == UPGRADE)
    }

    /// It once more.
    fn head(&self) -> Parts {
        let (mut head, ()) = Request::new(()).into_parts();
        head.method = self.method.clone();
        head.uri = self.uri.clone();
        head.version = self.version;
        head.extensions = self.extensions.clone();
        for (name, value) in &self.headers {
            head.headers.append(name, value.clone());
        }
        head
    }
}

/// A body that a try sends; ended with it.
pub(crate) struct Sending(body::Replay);

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.cut_off();
    }
}

impl Replay {
    /// Keeps a request that is about to be sent; of a body that is streamed, what was read is kept if `with_body` says so.
    /// Its extensions are of use to another client only, and not on the wire.
    #[inline]
    pub(crate) fn keep(&mut self, head: &Parts, body: &mut Body, with_body: bool, with_extensions: bool) {
        self.head = Some(Kept::of(head, with_extensions));
        self.body = body.replay(head.version == Version::HTTP_2, with_body);
    }

    /// Whether sending it twice does no more harm than sending it once.
    pub(crate) fn is_idempotent(&self) -> bool {
        self.head.as_ref().is_some_and(|kept| kept.method.is_idempotent())
    }

    /// The request, whole again; `None` if some of its body is gone.
    pub(crate) fn restore(&mut self) -> Option<(Parts, Body)> {
        let body = std::mem::take(&mut self.body).take()?;
        Some((self.head.as_ref()?.head(), body))
    }

    /// The request once more, for a try beside the one that is under way, and what is being sent by that. `None` if not all
    /// of it is known, or if it asks for a tunnel, of which there can be one only.
    #[cold]
    pub(crate) fn beside(&mut self) -> Option<((Parts, Body), Sending)> {
        let kept = self.head.as_ref().filter(|kept| !kept.is_tunnel())?;
        let body = self.body.beside()?;
        let sending = Sending(std::mem::take(&mut self.body));
        Some(((kept.head(), body), sending))
    }

    /// From here on, what another try sends is what is sent of the request.
    pub(crate) fn follow(&mut self, mut sending: Sending) {
        self.body.cut_off();
        self.body = std::mem::take(&mut sending.0);
    }

    /// Forgets the request: it was answered.
    #[inline]
    pub(crate) fn forget(&mut self) {
        self.head = None;
        self.body.forget();
    }

    /// Ends the request's body, if it is a stream that is still being sent. Whether it was.
    #[inline]
    pub(crate) fn cut_off(&self) -> bool {
        self.body.cut_off()
    }

    /// How much of a body that is sent at once is sent, and how many messages of gRPC are in it. Streams are counted as they are
    /// read: see [`Replay::streamed`].
    #[inline]
    pub(crate) fn sent_at_once(&self, is_grpc: bool) -> (u64, Messages) {
        self.body.sent_at_once(is_grpc)
    }

    /// How much of a stream was sent by the present try; `None` where it is none.
    #[inline]
    pub(crate) fn streamed(&self) -> Option<(u64, Messages)> {
        self.body.streamed()
    }

    /// Whether the request asked for the protocols that an answer switches to (RFC 9110, 7.8). Known until it is
    /// forgotten.
    #[cold]
    pub(crate) fn asked_for(&self, upgrade: &HeaderMap) -> bool {
        fn protocols<'v>(values: impl Iterator<Item = &'v HeaderValue>) -> Vec<&'v [u8]> {
            let each = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
            each.map(<[u8]>::trim_ascii).filter(|protocol| !protocol.is_empty()).collect()
        }
        let headers = self.head.iter().flat_map(|kept| &kept.headers);
        let asked = protocols(headers.filter(|(name, _)| *name == UPGRADE).map(|(_, value)| value));
        let agreed = protocols(upgrade.get_all(UPGRADE).iter());
        let was_asked = |protocol: &&[u8]| asked.iter().any(|asked| asked.eq_ignore_ascii_case(protocol));
        !agreed.is_empty() && agreed.iter().all(was_asked)
    }

    /// Whether an answer of this status makes a tunnel of the connection.
    #[inline]
    pub(crate) fn opens_tunnel(&self, status: StatusCode) -> bool {
        status == StatusCode::SWITCHING_PROTOCOLS
            || (status.is_success() && self.head.as_ref().is_some_and(|kept| kept.method == Method::CONNECT))
    }
}
