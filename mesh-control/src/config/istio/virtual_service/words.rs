//! Values that are words of their own: statuses of gRPC, and bytes in base64.

use mesh_core::error::GRPC_STATUSES;

/// A gRPC status by its name, or by its number.
pub fn grpc_status_code(text: &str) -> Option<u32> {
    let by_name = (0u32..).zip(GRPC_STATUSES).find(|(_, name)| *name == text).map(|(code, _)| code);
    by_name.or_else(|| text.parse().ok().filter(|code| *code <= 16))
}

/// Standard base64, padded or not.
pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let mut buffer: u32 = 0;
    let mut bits = 0;
    for c in text.trim_end_matches('=').bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            b'\r' | b'\n' => continue,
            _ => return None,
        };
        buffer = (buffer << 6) | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((buffer >> bits) as u8);
            buffer &= (1 << bits) - 1;
        }
    }
    Some(out)
}
