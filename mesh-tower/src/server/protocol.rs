//! What a connection speaks, told by its first bytes; and of HTTP/2 the frames that carry no request, each of which costs a server
//! more than it says (RFC 9113, 10.5), and trailers that are malformed.
//!
//! Bytes are looked at as they are read, whoever serves the connection. Nothing is kept of them. Where the loop is not ours, those
//! that are written are looked at, too: it is the HTTP library that ends a flood of frames that do carry requests, and says so to the
//! client alone.

use std::fmt;
use std::time::{Duration, Instant};

use crate::server::trailers::Blocks;
use crate::server::unseen::{Head, head_of_block};

/// The first bytes of HTTP/2. No method of HTTP/1.1 begins with them.
const HTTP2: &[u8] = b"PRI";

/// How many bytes stand before the first frame (RFC 9113, 3.4).
const PREFACE: usize = 24;

/// A client that sends so many frames which carry no request within a [`WINDOW`] floods its server. One that measures the way by
/// pings, as grpc-go does for its windows, sends one for each round trip at the most.
const MOST_CONTROL: u32 = 20_000;
const WINDOW: Duration = Duration::from_secs(1);

/// What a connection speaks.
#[derive(Debug)]
pub(super) enum Protocol {
    /// This many bytes of HTTP/2's beginning were seen, and no other.
    Unknown(usize),
    /// HTTP/1.1, or something else.
    Http1,
    /// HTTP/2.
    Http2(Frames),
}

/// Why a connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The client speaks something else than was agreed on in the handshake (RFC 7301).
    NotAgreed,
    /// It floods its server with frames that carry no request.
    Flood,
    /// A request's trailers have a pseudo header.
    Trailers,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Broken::NotAgreed => "another protocol than was agreed on",
            Broken::Flood => "too many frames that carry no request",
            Broken::Trailers => "a pseudo header in trailers",
        })
    }
}

impl std::error::Error for Broken {}

impl Protocol {
    /// Nothing was read yet.
    pub(super) const fn new() -> Self {
        Protocol::Unknown(0)
    }

    /// Takes in what was read. `agreed` is what the handshake has agreed on, if there was one.
    ///
    /// # Errors
    /// The connection has to end.
    #[inline]
    pub(super) fn hear<'a>(
        &mut self,
        bytes: &[u8],
        agreed: impl FnOnce() -> Option<&'a str>,
        now: impl Fn() -> Instant,
    ) -> Result<(), Broken> {
        if let Protocol::Unknown(seen) = *self {
            *self = Protocol::after(seen, bytes);
            let is_agreed = match self {
                Protocol::Unknown(_) => true,
                Protocol::Http1 => agreed() != Some("h2"),
                Protocol::Http2(_) => agreed() != Some("http/1.1"),
            };
            if !is_agreed {
                return Err(Broken::NotAgreed);
            }
        }
        match self {
            Protocol::Http2(frames) => frames.hear(bytes, now),
            Protocol::Unknown(_) | Protocol::Http1 => Ok(()),
        }
    }

    fn after(seen: usize, bytes: &[u8]) -> Protocol {
        let rest = HTTP2.get(seen..).unwrap_or_default();
        let compared = rest.len().min(bytes.len());
        match rest.get(..compared) == bytes.get(..compared) {
            false => Protocol::Http1,
            true if compared == rest.len() => Protocol::Http2(Frames::behind(PREFACE - seen)),
            true => Protocol::Unknown(seen + compared),
        }
    }
}

/// The heads of frames, among the bytes of one direction.
#[derive(Clone, Debug)]
struct Heads {
    /// How many bytes there are before the next head.
    left: usize,
    /// What was read of that head; of a GOAWAY (RFC 9113, 6.8) and of HEADERS, with what they say first.
    head: [u8; GOAWAY],
    read: usize,
    /// How much of a block of headers belongs to its head.
    status: usize,
}

/// The head of a frame, and that of a GOAWAY with its last stream and its code.
const HEAD: usize = 9;
const GOAWAY: usize = HEAD + 8;

/// How much of an answer's block of headers tells its status (RFC 7541, 6).
const STATUS: usize = 3;

/// The kind of a frame of HEADERS, and its flag for the end of a stream (RFC 9113, 6.2).
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

impl Heads {
    fn behind(left: usize, status: usize) -> Self {
        Heads { left, head: [0; GOAWAY], read: 0, status }
    }

    /// How long the frame of this head is, without it.
    #[inline]
    fn length(&self) -> usize {
        let [high, middle, low, ..] = self.head;
        usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)
    }

    /// How much of the frame is read with its head.
    #[inline]
    fn more(&self) -> usize {
        match self.head[3] {
            7 if self.length() >= GOAWAY - HEAD => GOAWAY - HEAD,
            HEADERS => self.length().min(self.status),
            _ => 0,
        }
    }

    /// The next head that is complete, and what follows it.
    #[inline]
    fn next<'b>(&mut self, mut bytes: &'b [u8]) -> Option<([u8; GOAWAY], &'b [u8])> {
        let passed = self.left.min(bytes.len());
        self.left -= passed;
        bytes = bytes.get(passed..).unwrap_or_default();
        if self.read == 0
            && let Some((whole, rest)) = bytes.split_first_chunk()
            && let Some(head) = self.head.first_chunk_mut::<HEAD>()
        {
            (*head, self.read, bytes) = (*whole, HEAD, rest);
            if self.more() == 0 {
                (self.left, self.read) = (self.length(), 0);
                return Some((self.head, bytes));
            }
        }
        loop {
            let more = if self.read >= HEAD { self.more() } else { 0 };
            let missing = self.head.iter_mut().take(HEAD + more).skip(self.read);
            let taken = missing.zip(bytes).map(|(byte, read)| *byte = *read).count();
            self.read += taken;
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.read < HEAD + more {
                return None;
            }
            if self.read == HEAD && self.more() > 0 {
                continue;
            }
            self.left = self.length() - (self.read - HEAD);
            self.read = 0;
            return Some((self.head, bytes));
        }
    }
}

/// The frames of HTTP/2 that a client sends, by their heads.
#[derive(Debug)]
pub(super) struct Frames {
    /// How much of what stands before the first one is yet to come.
    preface: usize,
    heads: Heads,
    blocks: Blocks,
    /// How many came that carry no request, and since when.
    control: u32,
    since: Option<Instant>,
}

impl Frames {
    fn behind(left: usize) -> Self {
        Frames { preface: left, heads: Heads::behind(left, 0), blocks: Blocks::new(), control: 0, since: None }
    }

    /// Whether all was read that stands before the first frame.
    pub(super) fn have_begun(&self) -> bool {
        self.preface == 0
    }

    /// Takes in what was read.
    ///
    /// # Errors
    /// It is too much of what carries no request, or malformed.
    fn hear(&mut self, mut bytes: &[u8], now: impl Fn() -> Instant) -> Result<(), Broken> {
        self.preface = self.preface.saturating_sub(bytes.len());
        loop {
            let payload = bytes.get(..self.heads.left.min(bytes.len())).unwrap_or_default();
            if self.blocks.hear(payload) {
                return Err(Broken::Trailers);
            }
            let Some(([_, _, _, kind, flags, stream @ ..], rest)) = self.heads.next(bytes) else { return Ok(()) };
            bytes = rest;
            if carries_no_request(kind) {
                if self.is_flood(&now) {
                    return Err(Broken::Flood);
                }
            } else {
                let [a, b, c, d, ..] = stream;
                self.blocks.begin(kind, flags, u32::from_be_bytes([a & 0x7f, b, c, d]), self.heads.left);
            }
        }
    }

    fn is_flood(&mut self, now: impl Fn() -> Instant) -> bool {
        let since = *self.since.get_or_insert_with(&now);
        self.control += 1;
        if self.control < MOST_CONTROL {
            return false;
        }
        let now = now();
        (self.control, self.since) = (0, Some(now));
        now.duration_since(since) < WINDOW
    }
}

/// The frames of HTTP/2 that a server sends.
#[derive(Clone, Debug)]
pub(super) struct Sent(Heads);

/// What frames that a server sends say of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// It ends, for a flood.
    Flood,
    /// An answer begins, of this status. It may be all of it.
    Answer(Head, bool),
}

impl Sent {
    pub(super) fn new() -> Self {
        Sent(Heads::behind(0, STATUS))
    }

    /// Takes in bytes up to the next frame that says something, and returns what follows.
    #[inline]
    pub(super) fn next<'b>(&mut self, mut bytes: &'b [u8]) -> Option<(Says, &'b [u8])> {
        while let Some((head, rest)) = self.0.next(bytes) {
            bytes = rest;
            match head {
                [_, _, _, 7, _, 0, 0, 0, 0, .., a, b, c, d]
                    if h2::Reason::from(u32::from_be_bytes([a, b, c, d])) == h2::Reason::ENHANCE_YOUR_CALM =>
                {
                    return Some((Says::Flood, rest));
                }
                [_, _, _, HEADERS, flags, _, _, _, _, a, b, c, ..] => {
                    return Some((Says::Answer(head_of_block([a, b, c]), flags & END_STREAM != 0), rest));
                }
                _ => {}
            }
        }
        None
    }
}

/// Whether frames of this kind carry nothing of a request: all but DATA, HEADERS, RST_STREAM, WINDOW_UPDATE and CONTINUATION, which
/// the HTTP library bounds itself.
const fn carries_no_request(kind: u8) -> bool {
    !matches!(kind, 0 | 1 | 3 | 8 | 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7];

    #[test]
    fn the_protocol_is_told_by_the_first_bytes_however_they_come() {
        let cases: [(&[&str], &str); 6] = [
            (&["PRI * HTTP/2.0"], "http2"),
            (&["P", "R", "I"], "http2"),
            (&["PRO"], "http1"),
            (&["P", "OST /"], "http1"),
            (&["PR"], "unknown"),
            (&["GET"], "http1"),
        ];
        for (parts, expected) in cases {
            let mut protocol = Protocol::new();
            for part in parts {
                protocol.hear(part.as_bytes(), || None, Instant::now).unwrap();
            }
            let spoken = match protocol {
                Protocol::Unknown(_) => "unknown",
                Protocol::Http1 => "http1",
                Protocol::Http2(_) => "http2",
            };
            assert_eq!(spoken, expected, "{parts:?}");
        }
    }

    #[test]
    fn what_was_agreed_on_is_spoken() {
        for (bytes, agreed, expected) in [
            (&b"PRI"[..], None, Ok(())),
            (b"PRI", Some("h2"), Ok(())),
            (b"PRI", Some("http/1.1"), Err(Broken::NotAgreed)),
            (b"GET", Some("h2"), Err(Broken::NotAgreed)),
            (b"GET", Some("http/1.1"), Ok(())),
            (b"P", Some("http/1.1"), Ok(())),
        ] {
            assert_eq!(Protocol::new().hear(bytes, || agreed, Instant::now), expected, "{bytes:?} {agreed:?}");
        }
    }

    /// Which of `count` copies of a frame is one too many, if they are read in pieces of `piece` bytes at these times.
    fn one_too_many(frame: &[u8], count: u32, piece: usize, now: impl Fn() -> Instant) -> Option<u32> {
        let mut protocol = Protocol::new();
        let mut heard = 0;
        let said = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame.repeat(count as usize)].concat();
        for piece in said.chunks(piece) {
            heard += piece.len();
            if protocol.hear(piece, || None, &now).is_err() {
                return Some(((heard - PREFACE) / frame.len()) as u32);
            }
        }
        None
    }

    /// All that is said by bytes that are written in pieces of `piece`.
    fn says(written: &[u8], piece: usize) -> Vec<Says> {
        let (mut sent, mut all) = (Sent::new(), Vec::new());
        for mut piece in written.chunks(piece) {
            while let Some((says, rest)) = sent.next(piece) {
                all.push(says);
                piece = rest;
            }
        }
        all
    }

    #[test]
    fn answers_are_told_by_their_heads_however_short_they_are() {
        let headers = |flags: u8, block: &[u8]| [&[0, 0, block.len() as u8, 1, flags, 0, 0, 0, 1][..], block].concat();
        let data = [0, 0, 3, 0, 1, 0, 0, 0, 1, 0x88, 0x88, 0x88];
        // 200 from the static table, alone and with more; 503 and 100 in Huffman's code; trailers.
        let written = [
            headers(4, &[0x88]),
            data.to_vec(),
            headers(4, &[0x88, 0xc0, 0xbf, 0xbe]),
            headers(5, &[0x48, 0x83, 0x6c, 0x19, 0xff]),
            headers(4, &[0x48, 0x82, 0x08, 0x01]),
            headers(5, &[0xc0, 0xbf]),
        ]
        .concat();
        let expected = [
            Says::Answer(Head::Success, false),
            Says::Answer(Head::Success, false),
            Says::Answer(Head::Failure, true),
            Says::Answer(Head::Interim, false),
            Says::Answer(Head::Success, true),
        ];
        for piece in [1, 2, 9, 10, 11, 12, 1000] {
            assert_eq!(says(&written, piece), expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn h7_a_flood_that_the_library_ends_is_told_by_what_it_writes() {
        let goaway = |code: u8| [&[0, 0, 12, 7, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, code][..], b"why?"].concat();
        let headers = [0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88];
        // What an application sends is not looked into.
        let data = [&[0, 0, 21, 0, 0, 0, 0, 0, 1][..], &goaway(11)].concat();
        let short = [0, 0, 0, 7, 0, 0, 0, 0, 0];
        for (sent, expected) in [
            ([&headers[..], &goaway(11)].concat(), true),
            ([&headers[..], &data, &goaway(0)].concat(), false),
            ([&headers[..], &data, &goaway(0), &goaway(11)].concat(), true),
            ([&goaway(1), &short[..], &goaway(2)].concat(), false),
        ] {
            for piece in [1, 3, 9, 17, 100] {
                let told = says(&sent, piece).contains(&Says::Flood);
                assert_eq!(told, expected, "{sent:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn whatever_is_read_in_whatever_pieces_makes_no_difference() {
        let (mut random, start) = (fastrand::Rng::with_seed(7), Instant::now());
        for _ in 0..200 {
            let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            said.truncate(random.usize(..=24));
            // Mostly zeros, so that lengths are short and frames many.
            said.extend((0..random.usize(..400_000)).map(|_| if random.u8(..) < 250 { 0 } else { random.u8(..) }));
            let whole = format!("{:?}", Protocol::new().hear(&said, || None, || start));
            let (mut protocol, mut rest, mut heard) = (Protocol::new(), &said[..], Ok(()));
            while !rest.is_empty() && heard.is_ok() {
                let (piece, behind) = rest.split_at(random.usize(1..=rest.len().min(5000)));
                heard = protocol.hear(piece, || None, || start);
                rest = behind;
            }
            assert_eq!(format!("{heard:?}"), whole);
        }
    }

    #[test]
    fn h7_frames_that_carry_no_request_have_a_rate_however_their_bytes_come() {
        let start = Instant::now();
        for piece in [1, 3, 9, 17, 1000] {
            let found = one_too_many(&PING, 30_000, piece, || start);
            assert!(found.is_some_and(|found| (19_999..20_060).contains(&found)), "{piece}: {found:?}");
            assert_eq!(one_too_many(&PING, 19_999, piece, || start), None);
        }
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let unknown = [0, 0, 1, 99, 0, 0, 0, 0, 1, 0];
        for control in [&settings[..], &unknown] {
            assert!(one_too_many(control, 20_000, 64, || start).is_some());
        }
        let data = [0, 0, 1, 0, 0, 0, 0, 0, 1, 6];
        assert_eq!(one_too_many(&data, 100_000, 64, || start), None, "what is read of a request has other limits");
        // Twenty thousand in a little more than a second, again and again.
        let ticks = std::cell::Cell::new(0_u32);
        let later = || {
            ticks.set(ticks.get() + 1);
            start + WINDOW * ticks.get()
        };
        assert_eq!(one_too_many(&PING, 100_000, 64, later), None);
    }
}
