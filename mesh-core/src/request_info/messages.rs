//! Counts the messages of a gRPC body as its bytes pass: each one has a byte and its length, in four bytes, before it.

use bytes::{Buf, Bytes};

/// How far the bytes of a body are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    count: u64,
    /// Bytes of the present message that are still to come.
    left: u32,
    /// The beginning of a length, and how many bytes there are of it.
    prefix: [u8; 5],
    known: u8,
}

impl Messages {
    /// How many there were; one counts when its length is there.
    pub fn count(self) -> u64 {
        self.count
    }

    /// Takes in what comes next.
    #[inline]
    pub fn pass(&mut self, data: &Bytes) {
        let mut data = data.as_ref();
        while !data.is_empty() {
            let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(data.len());
            data.advance(skipped);
            self.left -= u32::try_from(skipped).unwrap_or(self.left);
            while let (true, Some((first, rest)), Some(place)) =
                (self.left == 0, data.split_first(), self.prefix.get_mut(usize::from(self.known)))
            {
                (*place, data) = (*first, rest);
                self.known += 1;
                if self.known == 5 {
                    let [_, length @ ..] = self.prefix;
                    (self.left, self.known) = (u32::from_be_bytes(length), 0);
                    self.count += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_their_bytes_are_cut() {
        let whole = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0], &[1, 0, 0, 1, 0], &[7; 256]].concat();
        for step in [1, 2, 3, 5, 7, 300] {
            let mut messages = Messages::default();
            whole.chunks(step).for_each(|piece| messages.pass(&Bytes::copy_from_slice(piece)));
            assert_eq!((messages.count(), messages.left, messages.known), (3, 0, 0), "{step}");
        }
        let mut cut = Messages::default();
        cut.pass(&Bytes::from_static(&[0, 255, 255, 255, 255, 1]));
        cut.pass(&Bytes::from_static(&[9; 100]));
        assert_eq!(cut.count(), 1, "the rest is still to come");
    }
}
