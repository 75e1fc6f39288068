//! Protobuf without a schema: bytes as something to read.

use std::fmt::Write as _;

use bytes::Bytes;
use prost::Message;

/// A message whose field 1 is this text: an `EchoRequest`, a `google.protobuf.StringValue`, and many others.
pub fn text_message(text: &str) -> Bytes {
    crate::echo::proto::EchoRequest { body: text.to_owned(), count: 0 }.encode_to_vec().into()
}

/// A message to read: `{"1": "text", "2": 5}`, fields by number in the order in which they came. Lengths that
/// are text are shown as text, other bytes in hexadecimal.
pub(super) fn describe(message: &[u8]) -> String {
    let mut shown = String::from("{");
    let mut rest = message;
    while !rest.is_empty() {
        let Some((number, value)) = field(&mut rest) else {
            return hex(message);
        };
        let comma = if shown.len() > 1 { ", " } else { "" };
        _ = write!(shown, "{comma}\"{number}\": {value}");
    }
    shown.push('}');
    shown
}

/// The next field's number and its value as JSON; `None` if this is no message.
fn field(rest: &mut &[u8]) -> Option<(u64, String)> {
    let key = varint(rest)?;
    let value = match key & 7 {
        0 => varint(rest)?.to_string(),
        1 => u64::from_le_bytes(take(rest, 8)?.try_into().ok()?).to_string(),
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            let bytes = take(rest, length)?;
            match std::str::from_utf8(bytes) {
                Ok(text) => serde_json::to_string(text).ok()?,
                Err(_) => hex(bytes),
            }
        }
        5 => u32::from_le_bytes(take(rest, 4)?.try_into().ok()?).to_string(),
        _ => return None,
    };
    (key >> 3 > 0).then_some((key >> 3, value))
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(rest).ok()
}

fn take<'b>(rest: &mut &'b [u8], length: usize) -> Option<&'b [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::from("\"0x");
    bytes.iter().for_each(|byte| _ = write!(text, "{byte:02x}"));
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::echo::proto::EchoReply;

    #[test]
    fn a_message_is_shown_by_field_number() {
        let reply = EchoReply { name: "a\"b".into(), index: 300, ..EchoReply::default() };
        assert_eq!(describe(&reply.encode_to_vec()), r#"{"1": "a\"b", "6": 300}"#);
        assert_eq!(describe(&text_message("hi")), r#"{"1": "hi"}"#);
        assert_eq!(describe(b""), "{}");
    }

    #[test]
    fn what_is_no_message_is_shown_as_bytes() {
        for bytes in [&b"\xff"[..], b"\x0a\x05a", b"\x00\x01", b"\x0f"] {
            assert!(describe(bytes).starts_with("\"0x"), "{bytes:?}");
        }
    }
}
