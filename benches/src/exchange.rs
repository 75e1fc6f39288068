//! What goes back and forth: one body of some bytes each way, or a stream of frames each way.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::Full;

/// The largest plain body, in bytes.
pub const MAX_BYTES: usize = 64 << 10;
/// The size of a streamed frame, in bytes.
pub const FRAME_BYTES: usize = 16 << 10;
/// How many frames a stream has.
pub const FRAMES: usize = 64;
/// Where the server answers a stream, as it comes, with itself.
pub const STREAM_PATH: &str = "/stream";
/// Where the server reads the request and answers with as many bytes as the rest of the path says.
pub const PLAIN_PREFIX: &str = "/bytes/";

static BYTES: [u8; MAX_BYTES] = [b'x'; MAX_BYTES];

/// As many bytes, at no cost.
pub fn bytes(count: usize) -> Bytes {
    Bytes::from_static(BYTES.get(..count).unwrap_or(&BYTES))
}

/// A body of this many bytes, in one piece and with a length.
pub fn plain(count: usize) -> Full<Bytes> {
    Full::new(bytes(count))
}

/// The path under which a server answers with this many bytes.
pub fn plain_path(count: usize) -> String {
    format!("{PLAIN_PREFIX}{count}")
}

/// A body of [`FRAMES`] frames, and no length.
#[derive(Clone, Debug)]
pub struct Frames {
    left: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Frames { left: FRAMES }
    }
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
        self.left = left;
        Poll::Ready(Some(Ok(Frame::data(bytes(FRAME_BYTES)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
