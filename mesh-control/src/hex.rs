//! Bytes as text.

use std::fmt::Write;

/// Two digits for each byte. Its room is made once, so that nothing of a secret is left behind as it grows.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
