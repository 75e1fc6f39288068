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

/// The two digits of each byte.
const PAIRS: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let (mut pairs, mut byte) = ([[0; 2]; 256], 0);
    while byte < pairs.len() {
        pairs[byte] = [DIGITS[byte >> 4], DIGITS[byte & 0xf]];
        byte += 1;
    }
    pairs
};

/// Writes a number in hexadecimal digits, as many as there is room for, which is an even number.
pub(super) fn write_hex(number: u64, room: &mut [u8]) {
    for (pair, byte) in room.rchunks_exact_mut(2).zip(number.to_le_bytes()) {
        pair.copy_from_slice(&PAIRS[usize::from(byte)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_as_many_digits_as_there_is_room_for() {
        for (number, length, expected) in [(7, 2, "07"), (0x1ff, 2, "ff"), (0xab_cdef, 16, "0000000000abcdef")] {
            let mut room = vec![b'x'; length];
            write_hex(number, &mut room);
            assert_eq!(String::from_utf8(room).unwrap(), expected);
        }
    }

    #[test]
    fn values_share_memory_and_stay_what_they_are() {
        let text = |number: usize| format!("{number:055}");
        let values: Vec<HeaderValue> = (0..1000).map(|number| header_value(text(number).as_bytes())).collect();
        for (number, value) in values.iter().enumerate() {
            assert_eq!(value.to_str().unwrap(), text(number));
        }
    }
}
