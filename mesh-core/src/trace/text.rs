//! Values of headers that are made for requests: many share one piece of memory, so that a request costs no allocation.

use std::cell::RefCell;

use bytes::BytesMut;
use http::HeaderValue;

/// How much is allocated at a time. A value that is kept keeps all of it.
const PIECE: usize = 4096;

/// The value with this text, of visible ASCII; an empty one where it is no value.
pub(super) fn header_value(text: &[u8]) -> HeaderValue {
    thread_local!(static MEMORY: RefCell<BytesMut> = RefCell::default());
    let value = MEMORY.try_with(|memory| {
        let mut memory = memory.try_borrow_mut().ok()?;
        if memory.capacity() < text.len() {
            *memory = BytesMut::with_capacity(PIECE.max(text.len()));
        }
        memory.extend_from_slice(text);
        HeaderValue::from_maybe_shared(memory.split().freeze()).ok()
    });
    // Where the thread is ending.
    let alone = || HeaderValue::from_bytes(text).unwrap_or(HeaderValue::from_static(""));
    value.ok().flatten().unwrap_or_else(alone)
}

/// Writes a number in hexadecimal digits, as many as there is room for.
pub(super) fn write_hex(mut number: u64, room: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for place in room.iter_mut().rev() {
        *place = DIGITS[usize::from(number as u8 & 0xf)];
        number >>= 4;
    }
}

/// The same of a longer one.
pub(super) fn write_long_hex(number: u128, room: &mut [u8; 32]) {
    let (high, low) = room.split_at_mut(16);
    write_hex((number >> 64) as u64, high);
    write_hex(number as u64, low);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_share_memory_and_stay_what_they_are() {
        let text = |number: usize| format!("{number:055}");
        let values: Vec<HeaderValue> = (0..1000).map(|number| header_value(text(number).as_bytes())).collect();
        for (number, value) in values.iter().enumerate() {
            assert_eq!(value.to_str().unwrap(), text(number));
        }
    }
}
