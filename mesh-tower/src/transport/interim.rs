//! Answers before the answer (1xx). hyper passes over them, and a peer could send them for ever, so a connection is read no
//! further than its requests allow. Over HTTP/2 nobody else says that there are too many of them, nor that 101, which is
//! none of its statuses (RFC 9113, 8.6), is no answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use mesh_core::state::{Disconnect, Subchannel};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::io::Io;

/// What looks at all that comes on a connection.
pub(super) trait Limit: Unpin {
    /// Takes note of the next bytes.
    ///
    /// # Errors
    /// It is more than may come.
    fn note(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// The stream failed.
    fn failed(&mut self, _: &io::Error) {}
}

/// A stream that is read from as far as it is allowed.
pub(super) struct Limited<L> {
    pub(super) stream: Io,
    pub(super) limit: L,
}

/// The most bytes from a request until the head of its answer over HTTP/1.1. hyper reads a few of its buffers, of some
/// 400 KiB, ahead of who waits for the answer.
const BEFORE_ANSWER: usize = 2 << 20;
/// More than ever comes.
const UNLIMITED: usize = usize::MAX / 2;

/// How many bytes may still come: HTTP/1.1, one request at a time.
#[derive(Clone)]
pub(super) struct Allowance(Arc<AtomicUsize>);

impl Default for Allowance {
    fn default() -> Self {
        Allowance(Arc::new(AtomicUsize::new(UNLIMITED)))
    }
}

impl Allowance {
    /// A request goes out.
    #[inline]
    pub(super) fn begin(&self) {
        self.0.store(BEFORE_ANSWER, Ordering::Relaxed);
    }

    /// The head of its answer is there.
    #[inline]
    pub(super) fn end(&self) {
        self.0.store(UNLIMITED, Ordering::Relaxed);
    }
}

impl Limit for Allowance {
    fn note(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.0.fetch_sub(bytes.len(), Ordering::Relaxed) >= bytes.len() {
            return Ok(());
        }
        Err(io::Error::other(format!("{BEFORE_ANSWER} bytes came, and no answer but interim ones (1xx)")))
    }
}

/// What each request over HTTP/2 allows, and what that may add up to. A head of an answer takes 1, and 1 more for each KiB.
const PER_REQUEST: u32 = 128;
const MOST: u32 = 16 << 10;

/// A frame's head (RFC 9113, 4.1).
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 0x1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// As much of a block of fields as it takes to see a status: what may come before it is padding's length, a priority, and
/// sizes of tables.
const BEGINNING: usize = 24;

/// Frames of HTTP/2, of which heads that are not the end of their stream count: there is one of them in an answer, besides
/// interim ones.
pub(super) struct Heads {
    /// How many requests there were.
    requests: Arc<AtomicU32>,
    seen: u32,
    left: u32,
    /// What is known of the head of a frame, and then how much of its payload is still to come.
    head: [u8; FRAME_HEAD],
    known: usize,
    payload: usize,
    /// The beginning of the payload, where it may have a status in it.
    beginning: Option<([u8; BEGINNING], usize)>,
    /// The connection, where these are counted: it ends with this.
    subchannel: Option<Subchannel>,
}

impl Heads {
    /// Counts against the requests that this counts.
    pub(super) fn new(requests: Arc<AtomicU32>, subchannel: Option<Subchannel>) -> Self {
        let head = [0; FRAME_HEAD];
        Heads { requests, seen: 0, left: 0, head, known: 0, payload: 0, beginning: None, subchannel }
    }

    fn note_end(&self, why: impl Into<Disconnect>) {
        if let Some(subchannel) = &self.subchannel {
            subchannel.ending().note(why.into());
        }
    }

    /// The head of a frame is known.
    fn begin(&mut self) -> io::Result<()> {
        let [high, middle, low, kind, flags, ..] = self.head;
        let length = u32::from_be_bytes([0, high, middle, low]);
        (self.known, self.payload) = (0, usize::try_from(length).unwrap_or(usize::MAX));
        if kind != HEADERS || flags & END_STREAM != 0 {
            if kind == GOAWAY && self.subchannel.is_some() && self.payload > 0 {
                self.beginning = Some(([0; BEGINNING], 0));
            }
            return Ok(());
        }
        let requests = self.requests.load(Ordering::Relaxed);
        let allowed = requests.wrapping_sub(std::mem::replace(&mut self.seen, requests)).saturating_mul(PER_REQUEST);
        self.left = self.left.saturating_add(allowed).min(MOST);
        let Some(left) = self.left.checked_sub(1 + length / 1024) else {
            return Err(io::Error::other("many heads of answers came, and hardly any but interim ones (1xx)"));
        };
        self.left = left;
        self.beginning = Some(([0; BEGINNING], 0));
        Ok(())
    }

    /// The beginning of a block of fields, or of a GOAWAY, is known.
    fn look(&mut self) -> io::Result<()> {
        let Some((bytes, known)) = self.beginning.take() else { return Ok(()) };
        let [.., kind, flags, _, _, _, _] = self.head;
        if kind == GOAWAY {
            // Behind the last stream that is answered.
            let code = bytes.get(..known).and_then(|bytes| bytes.get(4..8)?.try_into().ok());
            code.into_iter().for_each(|code| self.note_end(Disconnect::GoAway(u32::from_be_bytes(code))));
            return Ok(());
        }
        let before = usize::from(flags & PADDED != 0) + if flags & PRIORITY != 0 { 5 } else { 0 };
        let block = bytes.get(before..known).unwrap_or_default();
        match switches_protocols(block) {
            false => Ok(()),
            true => Err(io::Error::other("the server switched to another protocol, which HTTP/2 cannot do (101)")),
        }
    }
}

/// Whether a block of fields begins with `:status: 101` (RFC 7541): where it is written out, as it is the first time.
fn switches_protocols(mut block: &[u8]) -> bool {
    // Sizes of the table of those who write.
    while let [size, rest @ ..] = block
        && size & 0xe0 == 0x20
    {
        let more = if size & 0x1f == 0x1f { rest.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1 } else { 0 };
        block = rest.get(more..).unwrap_or_default();
    }
    // One of the names `:status` of the static table; the value as it is, or by Huffman's code.
    let is_status = |name: u8| matches!(name, 0x48..=0x4e | 0x08..=0x0e | 0x18..=0x1e);
    matches!(block, [name, 3, b'1', b'0', b'1', ..] | [name, 0x82, 0x08, 0x03, ..] if is_status(*name))
}

/// Puts as many bytes as there is room for behind those that are known; how many.
fn fill(room: &mut [u8], known: usize, bytes: &[u8]) -> usize {
    let room = room.get_mut(known..).unwrap_or_default();
    let count = room.len().min(bytes.len());
    if let Some((room, bytes)) = room.get_mut(..count).zip(bytes.get(..count)) {
        room.copy_from_slice(bytes);
    }
    count
}

impl Limit for Heads {
    fn note(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            self.note_end(Disconnect::Unknown);
        }
        while !bytes.is_empty() {
            if self.payload == 0
                && self.known == 0
                && let Some((head, rest)) = bytes.split_first_chunk()
            {
                (self.head, bytes) = (*head, rest);
                self.begin()?;
                continue;
            }
            let wanted = if self.payload > 0 { self.payload } else { FRAME_HEAD - self.known };
            let (part, rest) = bytes.split_at(wanted.min(bytes.len()));
            bytes = rest;
            if self.payload > 0 {
                self.payload -= part.len();
                if let Some((beginning, known)) = &mut self.beginning {
                    *known += fill(beginning, *known, part);
                    if *known == BEGINNING || self.payload == 0 {
                        self.look()?;
                    }
                }
                continue;
            }
            self.known += fill(&mut self.head, self.known, part);
            if self.known == FRAME_HEAD {
                self.begin()?;
            }
        }
        Ok(())
    }

    fn failed(&mut self, error: &io::Error) {
        self.note_end(error);
    }
}

impl<L: Limit> Limited<L> {
    /// Tells of what failed.
    fn told<T>(&mut self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled {
            self.limit.failed(error);
        }
        polled
    }
}

impl<L: Limit> AsyncRead for Limited<L> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        ready!(self.told(polled))?;
        Poll::Ready(self.limit.note(buffer.filled().get(before..).unwrap_or_default()))
    }
}

impl<L: Limit> AsyncWrite for Limited<L> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.told(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.told(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: u8 = 0;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.extend(payload);
        frame
    }

    /// What becomes of bytes that come in pieces of this length, after this many requests.
    fn read(requests: u32, bytes: &[u8], piece: usize) -> io::Result<()> {
        let mut heads = Heads::new(Arc::new(AtomicU32::new(requests)), None);
        bytes.chunks(piece).try_for_each(|piece| heads.note(piece))
    }

    #[test]
    fn each_request_allows_some_heads_and_ends_and_bodies_do_not_count() {
        let head = frame(HEADERS, 0, b"\x88");
        let end = frame(HEADERS, END_STREAM, b"\x88");
        let data = frame(DATA, 0, &[HEADERS; 1000]);
        for piece in [1, 7, 10_000_000] {
            read(1, &[head.repeat(128), end.repeat(1000), data.repeat(100)].concat(), piece).unwrap();
            read(1, &[data.repeat(3), end.repeat(3), head.repeat(129)].concat(), piece).unwrap_err();
            read(2, &head.repeat(256), piece).unwrap();
            read(1, &frame(HEADERS, 0, &[0; 128 << 10]), piece).unwrap_err();
            read(u32::MAX, &head.repeat(MOST as usize), piece).unwrap();
            read(u32::MAX, &head.repeat(MOST as usize + 1), piece).unwrap_err();
        }
    }

    #[test]
    fn a_status_101_is_seen_however_it_is_written_and_no_other_is_taken_for_it() {
        let plain = b"\x08\x03101".as_slice();
        for block in
            [plain, b"\x48\x82\x08\x03", b"\x1e\x03101\x88", b"\x20\x48\x82\x08\x03", b"\x3f\xe1\x1f\x20\x08\x03101"]
        {
            for (flags, before) in [(0, &b""[..]), (PADDED, &[2]), (PRIORITY, &[0; 5]), (PADDED | PRIORITY, &[0; 6])] {
                for piece in [1, 100] {
                    let bytes = frame(HEADERS, flags, &[before, block].concat());
                    read(1, &bytes, piece).unwrap_err();
                }
            }
        }
        for block in
            [&b"\x88"[..], b"\x08\x03103", b"\x48\x03100", b"\x0f\x03101", b"\x54\x03101", b"\x20", b"\x3f", b""]
        {
            read(1, &frame(HEADERS, 0, block), 1).unwrap();
        }
        // What looks like it further on is another field's.
        read(1, &frame(HEADERS, 0, &[b"\x88", plain].concat()), 3).unwrap();
    }
}
