//! Trace context: which trace a request belongs to, and how requests tell each other, in W3C's headers and in B3's. Plain data
//! and functions; ids and randomness are arguments.
//!
//! A request that is not sampled costs no allocation: its context is a few words, and the values of headers share memory
//! (`text.rs`).

mod b3;
mod carried;
mod text;
mod w3c;

use std::fmt;
use std::num::NonZeroU64;

use http::HeaderValue;

use text::{header_value, write_hex};

pub use carried::{Begun, REQUEST_ID, TRACEPARENT, Tables, Trace, new_request_id};

/// The id of a trace: all spans that one request of a user led to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId {
    // In halves: a `u128` is aligned to 16 bytes, which pads everything that has one.
    high: u64,
    low: u64,
}

/// The id of a span: one step of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId(NonZeroU64);

impl TraceId {
    /// This number; zero is none.
    pub fn new(id: u128) -> Option<Self> {
        (id != 0).then_some(TraceId { high: (id >> 64) as u64, low: id as u64 })
    }

    /// A new one.
    pub fn random(random: &mut fastrand::Rng) -> Self {
        TraceId { high: random.u64(..), low: random.u64(..).max(1) }
    }

    /// As a number.
    pub fn get(self) -> u128 {
        u128::from(self.high) << 64 | u128::from(self.low)
    }

    /// Where it stands among all, in parts per million: everybody who samples a share of traces takes the same ones.
    fn position(self) -> u32 {
        // W3C, level 2: the last 56 bits are random.
        const BITS: u32 = 56;
        let random = u128::from(self.low & ((1 << BITS) - 1));
        u32::try_from((random * 1_000_000) >> BITS).unwrap_or_default()
    }
}

impl SpanId {
    /// This number; zero is none.
    pub fn new(id: u64) -> Option<Self> {
        NonZeroU64::new(id).map(SpanId)
    }

    /// A new one.
    pub fn random(random: &mut fastrand::Rng) -> Self {
        SpanId(NonZeroU64::new(random.u64(..)).unwrap_or(NonZeroU64::MIN))
    }

    /// As a number.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

/// 32 digits, as in `traceparent` and in every viewer of traces.
impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.get())
    }
}

/// 16 digits.
impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A step of a trace, as the requests that are made for it are told.
///
/// ```
/// use mesh_core::trace::TraceContext;
///
/// let context = TraceContext::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
/// assert_eq!(context.trace_id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
/// assert!(context.is_sampled());
/// assert_eq!(context.to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The step.
    pub span_id: SpanId,
    /// W3C's flags.
    flags: u8,
}

impl TraceContext {
    const SAMPLED: u8 = 1;
    /// The trace's id was made at random (W3C, level 2).
    const RANDOM: u8 = 2;

    /// A step of a trace, whose spans are recorded or not.
    pub fn new(trace_id: TraceId, span_id: SpanId, is_sampled: bool) -> Self {
        TraceContext { trace_id, span_id, flags: if is_sampled { Self::SAMPLED } else { 0 } }
    }

    /// Reads the value of a `traceparent`; `None` for what is none.
    pub fn parse(value: &[u8]) -> Option<Self> {
        w3c::parse(value)
    }

    /// Whether its spans are recorded.
    #[inline]
    pub fn is_sampled(self) -> bool {
        self.flags & Self::SAMPLED != 0
    }

    /// Another step of the same trace.
    #[inline]
    pub fn step(self, span_id: SpanId) -> Self {
        TraceContext { span_id, ..self }
    }
}

impl TraceContext {
    /// As the value of a `traceparent`.
    fn to_value(self) -> HeaderValue {
        let mut value = [b'-'; w3c::LENGTH];
        write_hex(0, &mut value[..2]);
        write_hex(self.trace_id.high, &mut value[3..19]);
        write_hex(self.trace_id.low, &mut value[19..35]);
        write_hex(self.span_id.get(), &mut value[36..52]);
        write_hex(u64::from(self.flags), &mut value[53..]);
        header_value(&value)
    }
}

/// As in `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

/// A number in hexadecimal digits of lower case, as many as there are bytes.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0_u128, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some((number << 4) | u128::from(digit))
    })
}
