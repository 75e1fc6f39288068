//! Answers that leave a server although the layer did not see what was asked: the application has routes outside of it, or no
//! layer at all. Then no policy, token or limit was looked at.
//!
//! Where there is no layer at all, nothing leaves that policies are for. A route beside the layer may be meant (health, metrics, what
//! layers in front of it answer): that is said, and not held back.
//!
//! Under `serve` each request is known to have come to the layer or not. In other loops there are only bytes: the heads of answers
//! are counted as far as they can be told, and never are there more of them than requests that the layer saw.

use std::cell::Cell;

use mesh_core::store::ServerState;

use crate::connection::ConnectionInfo;
use crate::listeners::ListenerGuard;

thread_local! {
    /// Whether the layer saw the request whose service is at work on this thread; `None` where that is nobody's.
    static SEEN: Cell<Option<bool>> = const { Cell::new(None) };
}

/// The layer sees a request. Returns whether that was asked about it.
#[inline]
pub(super) fn note() -> bool {
    let is_asked = SEEN.get().is_some();
    if is_asked {
        SEEN.set(Some(true));
    }
    is_asked
}

/// Lets a service work on its request, and notes whether the layer sees that.
#[inline]
pub(super) fn watch<T>(is_seen: &mut bool, work: impl FnOnce() -> T) -> T {
    let _before = Before(SEEN.replace(Some(*is_seen)));
    let done = work();
    *is_seen = SEEN.get() == Some(true);
    done
}

/// What was asked before, and is again, also after a panic.
struct Before(Option<bool>);

impl Drop for Before {
    #[inline]
    fn drop(&mut self) {
        SEEN.set(self.0);
    }
}

/// Whether an answer may leave whose request the layer did not see: not where there is no layer, and the configuration has something
/// that looks at requests, or does not let anybody be answered. It is said in the log either way.
#[cold]
pub(super) fn lets_out(guard: &ListenerGuard, connection: &ConnectionInfo) -> bool {
    if guard.listeners().sees_unknown() {
        return true;
    }
    let listener = guard.listener();
    let is_guarded = match &**listener.state() {
        ServerState::Serving(view) => connection.chain(view).is_none_or(|chain| chain.routes.guards_requests()),
        ServerState::Waiting | ServerState::NotServing(_) => true,
    };
    guard.listeners().note_unseen(listener, is_guarded)
}

/// The answers on a connection whose loop is not ours, by their heads.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    /// How many began of those that the layer saw.
    begun: usize,
    /// Something was read since the last bytes were written: an answer may be next.
    is_due: bool,
}

/// What of an answer's status is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// Another one follows.
    Interim,
    /// Nothing of the application's: HTTP libraries, and layers around the mesh's, refuse so by themselves.
    Failure,
    /// Any other.
    Success,
}

impl Answers {
    pub(super) fn new() -> Self {
        Answers { begun: 0, is_due: false }
    }

    /// Something was read.
    #[inline]
    pub(super) fn note_read(&mut self) {
        self.is_due = true;
    }

    /// Something of HTTP/1.1 is about to be written. Returns whether the layer has to have seen more requests than `seen`. What
    /// is written next to what was read begins with an answer's head, or is the rest of one.
    #[inline]
    pub(super) fn is_unseen(&mut self, bytes: &[u8], seen: usize) -> bool {
        if !std::mem::take(&mut self.is_due) {
            return false;
        }
        match head(bytes) {
            None if self.begun > 0 => false,
            Some(Head::Interim) => false,
            Some(Head::Failure) => {
                self.begin(seen);
                false
            }
            None | Some(Head::Success) => self.begin(seen),
        }
    }

    /// The same of an answer of HTTP/2 that begins. One whose head is all that there is looks like trailers, and is not told.
    #[inline]
    pub(super) fn is_unseen_head(&mut self, head: Head, is_all: bool, seen: usize) -> bool {
        head == Head::Success && !is_all && self.begin(seen)
    }

    /// One that is let out all the same is none of those that the layer saw.
    fn begin(&mut self, seen: usize) -> bool {
        let is_unseen = self.begun >= seen;
        self.begun = seen.min(self.begun + 1);
        is_unseen
    }
}

/// What bytes of HTTP/1.1 begin with.
fn head(bytes: &[u8]) -> Option<Head> {
    let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', _, b' ', status, ..] = bytes else { return None };
    Some(match status {
        b'1' => Head::Interim,
        b'4' | b'5' => Head::Failure,
        _ => Head::Success,
    })
}

/// What a block of HPACK begins with, which is the status: by its place in the static table, or in Huffman's code, of which the
/// first letter is enough (RFC 7541, appendices A and B).
pub(super) fn head_of_block(block: [u8; 3]) -> Head {
    match block {
        [0x8c..=0x8e, ..] | [0x08 | 0x18 | 0x48, 0x83, 0x68..=0x6f] => Head::Failure,
        [0x08 | 0x18 | 0x48, 0x82 | 0x83, 0x08..=0x0f] => Head::Interim,
        _ => Head::Success,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_http1_are_told_by_what_follows_what_was_read() {
        let ok = &b"HTTP/1.1 200 OK\r\n\r\n"[..];
        // What is written after something was read, how many requests the layer has seen by then, and whether that is too few.
        let histories: [&[(&[u8], usize, bool)]; 9] = [
            &[(ok, 0, true)],
            &[(b"220 ready\r\n", 0, true)],
            &[(ok, 1, false), (ok, 2, false), (ok, 2, true)],
            &[(ok, 1, false), (b"the rest", 1, false), (ok, 1, true)],
            &[(b"HTTP/1.1 100 Continue\r\n\r\n", 0, false), (ok, 0, true)],
            &[(b"HTTP/1.1 400 Bad Request\r\n\r\n", 0, false)],
            &[(ok, 1, false), (b"HTTP/1.1 431 X\r\n\r\n", 1, false)],
            // The layer's own refusal makes no room for another answer.
            &[(b"HTTP/1.1 403 Forbidden\r\n\r\n", 1, false), (ok, 1, true)],
            &[(ok, 2, false), (ok, 2, false), (ok, 2, true)],
        ];
        for history in histories {
            let mut answers = Answers::new();
            for (written, seen, expected) in history {
                answers.note_read();
                let text = String::from_utf8_lossy(written);
                assert_eq!(answers.is_unseen(written, *seen), *expected, "{text:?} of {history:?}");
            }
        }
        let mut answers = Answers::new();
        answers.note_read();
        assert!(!answers.is_unseen(ok, 1));
        assert!(!answers.is_unseen(ok, 1), "a body may begin as a head, and nothing was read meanwhile");
    }

    #[test]
    fn answers_of_http2_are_no_more_than_the_requests_that_were_seen() {
        type Step = ([u8; 3], bool, usize, bool);
        let (ok, refused, interim) = ([0x88, 0, 0], [0x48, 0x83, 0x69], [0x48, 0x82, 0x08]);
        let histories: [&[Step]; 6] = [
            &[(ok, false, 0, true)],
            &[(ok, true, 0, false), (ok, false, 0, true)],
            &[(ok, false, 1, false), (ok, true, 1, false), (ok, false, 1, true)],
            &[(ok, false, 2, false), (ok, true, 2, false), (ok, false, 2, false)],
            &[(refused, true, 0, false), (ok, false, 1, false)],
            &[(interim, false, 0, false), (ok, false, 0, true)],
        ];
        for history in histories {
            let mut answers = Answers::new();
            for (block, is_all, seen, expected) in history {
                assert_eq!(answers.is_unseen_head(head_of_block(*block), *is_all, *seen), *expected, "{history:x?}");
            }
        }
    }
}
