//! What goes over the wire where this crate speaks gRPC itself (gRPC's `PROTOCOL-HTTP2.md`): five bytes before each message say
//! whether it is compressed, which nothing here asks for, and how long it is.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE};

/// Has a request be a call.
pub(crate) fn note_call(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
}

/// A message behind its prefix. (None that is sent here comes near to 4 GiB.)
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// Takes the next message; `None` until all of it is there.
///
/// # Errors
/// It is compressed, or longer than `most` bytes.
pub(crate) fn take_message(buffer: &mut BytesMut, most: usize) -> Result<Option<Bytes>, String> {
    let Some(([compressed, length @ ..], _)) = buffer.split_first_chunk::<5>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if *compressed != 0 || length > most {
        return Err(format!("a message that is compressed, or longer than {most} bytes"));
    }
    if buffer.len() - 5 < length {
        return Ok(None);
    }
    buffer.advance(5);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// The message that is all of this; `None` where it is not one.
pub(crate) fn only_message(bytes: &[u8]) -> Option<&[u8]> {
    let ([0, length @ ..], message) = bytes.split_first_chunk::<5>()? else { return None };
    (usize::try_from(u32::from_be_bytes(*length)).ok()? == message.len()).then_some(message)
}

/// A number of Protobuf.
pub(crate) fn put_varint(message: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        message.put_u8((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    message.put_u8(number as u8);
}

/// A field of Protobuf, below the sixteenth, with bytes in it: a text, or a message.
pub(crate) fn put_field(message: &mut BytesMut, field: u8, bytes: &[u8]) {
    message.put_u8(field << 3 | 2);
    put_varint(message, bytes.len() as u64);
    message.put_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_as_they_become_whole_and_too_large_ones_are_refused() {
        let mut buffer = BytesMut::from(&[0, 0, 0, 0, 2, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..]);
        let take = |buffer: &mut BytesMut| take_message(buffer, 2).unwrap();
        assert_eq!(take(&mut buffer).as_deref(), Some(&[7, 8][..]));
        assert_eq!(take(&mut buffer).as_deref(), Some(&[][..]));
        assert_eq!(take(&mut buffer), None);
        buffer.extend_from_slice(&[0, 1, 9]);
        assert_eq!(take(&mut buffer).as_deref(), Some(&[9][..]));
        for wrong in [[1, 0, 0, 0, 1], [0, 0, 0, 0, 3], [0, 0xff, 0xff, 0xff, 0xff]] {
            take_message(&mut BytesMut::from(&wrong[..]), 2).unwrap_err();
        }
    }

    #[test]
    fn one_message_is_neither_less_nor_more() {
        assert_eq!(only_message(&framed(b"ab")), Some(&b"ab"[..]));
        for none in [&b""[..], &[0, 0, 0, 0], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 1], &[0, 0, 0, 0, 0, 0]] {
            assert_eq!(only_message(none), None, "{none:?}");
        }
    }

    #[test]
    fn long_fields_say_how_long_they_are() {
        let mut message = BytesMut::new();
        put_field(&mut message, 1, &[7; 300]);
        assert_eq!((&message[..3], message.len()), (&[0x0a, 0xac, 0x02][..], 303));
    }
}
