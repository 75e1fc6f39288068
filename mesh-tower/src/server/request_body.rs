//! Bodies of requests that authorizers want to see: read in part or to their end, and put together again for the application.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use mesh_core::request::client_of;
use mesh_core::request_info::Messages;

use crate::body::Body;

/// The most bytes of bodies that the requests of one layer hold in memory: more requests are refused.
pub(super) const MOST_HELD: usize = 64 << 20;

/// The body of a request of which authorizers have seen something: the same bytes that the client sent. It is given to
/// [`crate::server::ServerLayer::bodies_by`].
///
/// What was read is in one piece: a client chooses how small its frames are, and each would cost more than it has in it.
pub struct RequestBody<B> {
    reading: BytesMut,
    bytes: Bytes,
    trailers: Option<HeaderMap>,
    rest: Pin<Box<B>>,
    is_over: bool,
    held: Held,
    /// Where what the application reads is counted.
    count: Option<Arc<BodyCount>>,
}

/// How much of a body the application has read.
#[derive(Debug, Default)]
pub(super) struct BodyCount {
    is_grpc: bool,
    read: Mutex<(u64, Messages)>,
}

impl BodyCount {
    /// Nothing yet; messages of gRPC are counted where it `is_grpc`.
    pub(super) fn new(is_grpc: bool) -> Self {
        BodyCount { is_grpc, read: Mutex::default() }
    }

    /// So many bytes, and messages.
    pub(super) fn get(&self) -> (u64, Messages) {
        *self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, data: &Bytes) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.0 = read.0.saturating_add(data.len() as u64);
        if self.is_grpc {
            read.1.pass(data);
        }
    }
}

/// Which bodies a layer can read, and how much of them it holds.
#[derive(Clone, Default)]
pub(super) struct Bodies {
    known: Vec<Arc<dyn Any + Send + Sync>>,
    room: Arc<Mutex<Room>>,
    told: Arc<AtomicBool>,
}

/// How a body is made again of what was read of it and of its rest.
type Rebuild<B> = fn(RequestBody<B>) -> B;

/// What is known of bodies of one type.
struct Known<B> {
    read: Box<dyn Fn(B, Held) -> Box<dyn Reading<B>> + Send + Sync>,
    count: Box<dyn Fn(B, Held, Arc<BodyCount>) -> B + Send + Sync>,
}

impl Bodies {
    /// Bodies of this type can be read.
    pub(super) fn add<B>(&mut self, rebuild: Rebuild<B>)
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
    {
        let unread = |body, held, count| {
            let (reading, bytes, trailers) = (BytesMut::new(), Bytes::new(), None);
            RequestBody { reading, bytes, trailers, rest: Box::pin(body), is_over: false, held, count }
        };
        self.known.push(Arc::new(Known {
            read: Box::new(move |body, held| Box::new(Begun { body: unread(body, held, None), rebuild })),
            count: Box::new(move |body, held, count| rebuild(unread(body, held, Some(count)))),
        }));
    }

    /// Begins to read a body of this client; it comes back where nobody said how that is done.
    pub(super) fn read<B: 'static>(&self, body: B, client: Option<IpAddr>) -> Result<Box<dyn Reading<B>>, B> {
        let held = self.held(client);
        match self.known.iter().find_map(|known| known.downcast_ref::<Known<B>>()) {
            Some(known) => Ok((known.read)(body, held)),
            None => Err(body),
        }
    }

    /// A body whose bytes are counted as the application reads them; it comes back where nobody said how it is made.
    pub(super) fn counted<B: 'static>(&self, body: B, count: BodyCount) -> Result<(B, Arc<BodyCount>), B> {
        match self.known.iter().find_map(|known| known.downcast_ref::<Known<B>>()) {
            Some(known) => {
                let count = Arc::new(count);
                Ok(((known.count)(body, self.held(None), Arc::clone(&count)), count))
            }
            None => Err(body),
        }
    }

    fn held(&self, client: Option<IpAddr>) -> Held {
        Held { room: Arc::clone(&self.room), client: client.map(client_of), bytes: 0 }
    }

    /// Whether this is the first time that it is told of a type of bodies that nobody can read.
    pub(super) fn tells_of_unknown(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }
}

/// Whether a body is known to be empty, so that nobody has to say how it is read: hyper's, and those that are complete.
pub(super) fn is_empty<B: 'static>(body: &B) -> bool {
    let body: &dyn Any = body;
    body.downcast_ref::<Incoming>().is_some_and(Incoming::is_end_stream)
        || body.downcast_ref::<Full<Bytes>>().is_some_and(Full::is_end_stream)
        || body.downcast_ref::<Body>().is_some_and(Body::is_end_stream)
        || body.is::<Empty<Bytes>>()
}

/// A body that is read.
pub(super) trait Reading<B>: Send {
    /// Reads as much as is wanted.
    fn poll_read(&mut self, wanted: Wanted, cx: &mut Context<'_>) -> Poll<Result<(), Unread>>;

    /// The first bytes of what was read, so many at most, and whether they are not all of the body.
    fn shown(&self, most: usize) -> (Bytes, bool);

    /// The whole body again.
    fn finish(self: Box<Self>) -> B;
}

/// How much of a body has to be read: to its end, which has to come within so many bytes; or only its first bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// It has to end within so many.
    pub(super) whole: Option<usize>,
    /// The first so many are enough.
    pub(super) part: usize,
}

/// Why a body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// The client broke off.
    Broken,
    /// There is more than may be read of it.
    TooLarge,
    /// Other requests hold too much.
    NoRoom,
}

impl Wanted {
    /// Whether so many bytes are enough.
    fn is_met(self, bytes: usize) -> Result<bool, Unread> {
        match self.whole {
            Some(most) if bytes > most => Err(Unread::TooLarge),
            Some(_) => Ok(false),
            None => Ok(bytes >= self.part),
        }
    }
}

/// What all requests hold in memory, and those of each client; who is not known counts as one.
#[derive(Debug, Default)]
struct Room {
    all: usize,
    of: HashMap<Option<IpAddr>, usize>,
}

impl Room {
    /// Counts these, too. A client may hold as much as it leaves free: so there is room for another one, however many of its
    /// requests stall.
    fn add(&mut self, client: Option<IpAddr>, bytes: usize) -> bool {
        let of_client = self.of.get(&client).copied().unwrap_or_default().saturating_add(bytes);
        let all = self.all.saturating_add(bytes);
        let fits = of_client <= MOST_HELD.saturating_sub(all);
        if fits {
            self.all = all;
            self.of.insert(client, of_client);
        }
        fits
    }

    fn release(&mut self, client: Option<IpAddr>, bytes: usize) {
        self.all = self.all.saturating_sub(bytes);
        if let Some(of_client) = self.of.get_mut(&client) {
            *of_client = of_client.saturating_sub(bytes);
            if *of_client == 0 {
                self.of.remove(&client);
            }
        }
    }
}

/// What one request holds in memory, until its body is handed on.
struct Held {
    room: Arc<Mutex<Room>>,
    client: Option<IpAddr>,
    bytes: usize,
}

impl Held {
    /// Counts these, too; `false` where there is no room.
    fn add(&mut self, bytes: usize) -> bool {
        // Nobody would take the client out again that holds nothing.
        if bytes == 0 {
            return true;
        }
        let fits = self.room().add(self.client, bytes);
        if fits {
            self.bytes += bytes;
        }
        fits
    }

    fn release(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes > 0 {
            self.room().release(self.client, bytes);
        }
    }

    /// Two numbers cannot be left half-done, so a poisoned lock is as good as any.
    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

struct Begun<B> {
    body: RequestBody<B>,
    rebuild: Rebuild<B>,
}

impl<B: http_body::Body<Data = Bytes> + Send> Reading<B> for Begun<B> {
    fn poll_read(&mut self, wanted: Wanted, cx: &mut Context<'_>) -> Poll<Result<(), Unread>> {
        let read = &mut self.body;
        let announced = usize::try_from(read.rest.size_hint().lower()).unwrap_or(usize::MAX);
        // Nothing of it is read where it says that it is too long.
        if wanted.whole.is_some_and(|most| read.reading.len().saturating_add(announced) > most) {
            return Poll::Ready(Err(Unread::TooLarge));
        }
        while !wanted.is_met(read.reading.len())? && !read.is_over {
            match ready!(read.rest.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !read.held.add(data.len()) => return Poll::Ready(Err(Unread::NoRoom)),
                    Ok(data) => {
                        read.reading.extend_from_slice(&data);
                        read.is_over = read.rest.is_end_stream();
                    }
                    Err(frame) => {
                        read.trailers = frame.into_trailers().ok();
                        read.is_over = true;
                    }
                },
                Some(Err(_)) => return Poll::Ready(Err(Unread::Broken)),
                None => read.is_over = true,
            }
        }
        read.bytes = read.reading.split().freeze();
        Poll::Ready(Ok(()))
    }

    fn shown(&self, most: usize) -> (Bytes, bool) {
        let read = &self.body.bytes;
        (read.slice(..most.min(read.len())), !self.body.is_over || read.len() > most)
    }

    fn finish(self: Box<Self>) -> B {
        (self.rebuild)(self.body)
    }
}

impl<B: http_body::Body<Data = Bytes>> http_body::Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if !self.bytes.is_empty() {
            self.held.release();
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.bytes)))));
        }
        match self.trailers.take() {
            Some(trailers) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            None if self.is_over => Poll::Ready(None),
            None => {
                let polled = self.rest.as_mut().poll_frame(cx);
                if let (Some(count), Poll::Ready(Some(Ok(frame)))) = (&self.count, &polled)
                    && let Some(data) = frame.data_ref()
                {
                    count.add(data);
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty() && self.trailers.is_none() && (self.is_over || self.rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let rest = if self.is_over { SizeHint::with_exact(0) } else { self.rest.size_hint() };
        let read = self.bytes.len() as u64;
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(read));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(read));
        }
        hint
    }
}

impl<B> fmt::Debug for RequestBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").field("read", &self.bytes.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Bodies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bodies").field("room", &self.room).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_remembered_for_a_body_that_is_empty_or_over() {
        let room = Arc::<Mutex<Room>>::default();
        for sizes in [&[0][..], &[0, 0], &[3, 0], &[0, 3]] {
            for last in 0..9 {
                let client = Some(IpAddr::from([10, 0, 0, last]));
                let mut held = Held { room: Arc::clone(&room), client, bytes: 0 };
                assert!(sizes.iter().all(|size| held.add(*size)));
            }
            let room = room.lock().unwrap();
            assert_eq!((room.all, room.of.len()), (0, 0), "{sizes:?}");
        }
    }
}
