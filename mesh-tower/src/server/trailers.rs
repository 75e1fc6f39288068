//! Pseudo headers in the trailers of requests over HTTP/2. They make a message malformed (RFC 9113, 8.1), and the HTTP library drops
//! them unseen: whoever stands in front of this server may have read a `:path` there, where we read none.
//!
//! A field may be named by its place in the table of the fields before (HPACK, RFC 7541), so that all blocks of a connection are
//! walked. Strings are passed over, and of the table only that is kept which of its entries are pseudo headers.

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The first entries of the static table are the pseudo headers; behind it begins that of the fields before.
const PSEUDO: std::ops::RangeInclusive<u64> = 1..=14;
const DYNAMIC: u64 = 62;

/// The blocks of fields that a client sends.
#[derive(Debug)]
pub(super) struct Blocks {
    /// The last stream that was opened: a later block for it, or for one before it, is of trailers.
    last: u32,
    is_trailers: bool,
    /// Of the frame: whether the length of its padding comes next, how many bytes there are before its part of the block, and how
    /// many are left of that part.
    pad: bool,
    before: usize,
    left: usize,
    step: Step,
    /// Which of the fields before are pseudo headers, the newest in the lowest bit. A server of the HTTP library keeps 4,096 bytes of
    /// them, of 32 each at the least.
    table: u128,
    found: bool,
}

/// What comes next in a block.
#[derive(Clone, Copy, Debug)]
enum Step {
    Field,
    /// More of a number, of which this much is known.
    Number(What, u64, u32),
    Length(Text),
    /// The first byte of a name.
    Name {
        is_coded: bool,
        length: u64,
        is_kept: bool,
    },
    /// So much more of a text.
    Rest(Text, u64),
}

/// What a number says.
#[derive(Clone, Copy, Debug)]
enum What {
    /// Which one of the table a field is.
    Whole,
    /// Which one of the table has its name; it `is_kept` in the table itself.
    NameOf { is_kept: bool },
    /// How large the table may be.
    Size,
    /// How long a text is.
    Length { of: Text, is_coded: bool },
}

#[derive(Clone, Copy, Debug)]
enum Text {
    Name { is_kept: bool },
    Value,
}

impl Blocks {
    pub(super) const fn new() -> Self {
        let step = Step::Field;
        Blocks { last: 0, is_trailers: false, pad: false, before: 0, left: 0, step, table: 0, found: false }
    }

    /// A frame begins.
    #[inline]
    pub(super) fn begin(&mut self, kind: u8, flags: u8, stream: u32, length: usize) {
        if kind == HEADERS {
            self.is_trailers = stream <= self.last;
            self.last = self.last.max(stream);
            (self.pad, self.before) = (flags & PADDED != 0, if flags & PRIORITY != 0 { 5 } else { 0 });
            (self.left, self.step) = (length, Step::Field);
        } else if kind == CONTINUATION {
            (self.pad, self.before, self.left) = (false, 0, length);
        }
    }

    /// Takes in what was read of the frame, and says whether trailers have a pseudo header.
    #[inline]
    pub(super) fn hear(&mut self, mut bytes: &[u8]) -> bool {
        if self.left == 0 {
            return false;
        }
        if self.pad
            && let Some((padding, rest)) = bytes.split_first()
        {
            bytes = rest;
            self.pad = false;
            self.left = self.left.saturating_sub(1 + usize::from(*padding));
        }
        let before = self.before.min(bytes.len());
        self.before -= before;
        self.left = self.left.saturating_sub(before);
        let part = self.left.min(bytes.len() - before);
        self.left -= part;
        self.walk(bytes.get(before..before + part).unwrap_or_default());
        self.found
    }

    fn walk(&mut self, mut bytes: &[u8]) {
        while let Some((byte, rest)) = bytes.split_first() {
            let mut behind = rest;
            self.step = match self.step {
                Step::Field => match byte {
                    0x80.. => self.number(What::Whole, *byte, 7),
                    0x40.. => self.number(What::NameOf { is_kept: true }, *byte, 6),
                    0x20.. => self.number(What::Size, *byte, 5),
                    _ => self.number(What::NameOf { is_kept: false }, *byte, 4),
                },
                Step::Number(what, value, shift) => {
                    // A number that is too large is the end in the HTTP library.
                    let value = value.saturating_add(u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(u64::MAX));
                    match byte & 0x80 {
                        0 => self.known(what, value),
                        _ => Step::Number(what, value, shift.saturating_add(7)),
                    }
                }
                Step::Length(of) => self.number(What::Length { of, is_coded: byte & 0x80 != 0 }, *byte, 7),
                Step::Name { is_coded, length, is_kept } => {
                    self.named(if is_coded { is_coded_colon(*byte) } else { *byte == b':' }, is_kept);
                    rest_of(Text::Name { is_kept }, length - 1)
                }
                Step::Rest(of, length) => {
                    let passed = bytes.len().min(usize::try_from(length).unwrap_or(usize::MAX));
                    behind = bytes.get(passed..).unwrap_or_default();
                    rest_of(of, length - passed as u64)
                }
            };
            bytes = behind;
        }
    }

    /// A number that begins in the lowest bits of a byte.
    fn number(&mut self, what: What, byte: u8, bits: u32) -> Step {
        let most = (1_u64 << bits) - 1;
        match u64::from(byte) & most {
            value if value < most => self.known(what, value),
            value => Step::Number(what, value, 0),
        }
    }

    fn known(&mut self, what: What, value: u64) -> Step {
        match (what, value) {
            (What::Size, _) => Step::Field,
            (What::Whole, index) => {
                self.named(self.is_pseudo(index), false);
                Step::Field
            }
            (What::NameOf { is_kept }, 0) => Step::Length(Text::Name { is_kept }),
            (What::NameOf { is_kept }, index) => {
                self.named(self.is_pseudo(index), is_kept);
                Step::Length(Text::Value)
            }
            (What::Length { of: of @ Text::Name { is_kept }, .. }, 0) => {
                self.named(false, is_kept);
                rest_of(of, 0)
            }
            (What::Length { of: Text::Name { is_kept }, is_coded }, length) => Step::Name { is_coded, length, is_kept },
            (What::Length { of: Text::Value, .. }, length) => rest_of(Text::Value, length),
        }
    }

    fn is_pseudo(&self, index: u64) -> bool {
        let place = index.checked_sub(DYNAMIC).and_then(|place| u32::try_from(place).ok());
        PSEUDO.contains(&index)
            || place.and_then(|place| self.table.checked_shr(place)).is_some_and(|rest| rest & 1 == 1)
    }

    fn named(&mut self, is_pseudo: bool, is_kept: bool) {
        self.found |= is_pseudo && self.is_trailers;
        if is_kept {
            self.table = self.table << 1 | u128::from(is_pseudo);
        }
    }
}

/// So much of a text is left, and then comes what is behind it.
fn rest_of(text: Text, length: u64) -> Step {
    match (length, text) {
        (0, Text::Name { .. }) => Step::Length(Text::Value),
        (0, Text::Value) => Step::Field,
        _ => Step::Rest(text, length),
    }
}

/// Whether Huffman's code for `:`, of seven bits, stands at the beginning.
const fn is_coded_colon(byte: u8) -> bool {
    byte >> 1 == 0b101_1100
}

#[cfg(test)]
mod tests {
    use super::*;

    type Frame<'a> = (u8, u8, u32, &'a [u8]);

    const END: u8 = 5;
    /// `:method: GET`, and `:authority: shop`, which is the newest entry of the table then.
    const HEAD: &[u8] = b"\x82\x41\x04shop";

    /// Which of these frames (kind, flags, stream, payload) has a pseudo header in trailers, read in pieces of so many bytes.
    fn found(frames: &[Frame<'_>], piece: usize) -> Option<usize> {
        let mut blocks = Blocks::new();
        frames.iter().position(|(kind, flags, stream, payload)| {
            blocks.begin(*kind, *flags, *stream, payload.len());
            payload.chunks(piece).fold(false, |found, piece| blocks.hear(piece) | found)
        })
    }

    #[test]
    fn h13_a_pseudo_header_in_trailers_is_seen_however_it_is_written() {
        // How it is written, and whether it is one.
        let trailers: [(&[u8], bool); 18] = [
            (b"\x84", true),                          // `:path: /`, of the static table
            (b"\x8f", false),                         // the first of the static table that is none
            (b"\x04\x01x", true),                     // its name is of the static table
            (b"\x14\x01x", true),                     // and it is never to be kept
            (b"\x00\x05:path\x01x", true),            // it is written out
            (b"\x40\x05:path\x01x", true),            // and is to be kept
            (b"\x00\x84\xb9\x58\xd3\x3f\x01x", true), // by Huffman's code
            (b"\x20\x3f\xe1\x1f\x84", true),          // behind two sizes of the table
            (b"\xbe", true),                          // `:authority: shop` once more
            (b"\x7e\x01x", true),                     // its name, to be kept
            (b"\x0f\x2f\x01x", true),                 // and not to be: a number of two bytes
            (b"\xbf", false),                         // there is no such entry
            (b"\x0f\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", false),
            (b"\x00\x01a\x05:path", false), // it is a value
            (b"\x00\x05a:ath\x01x", false),
            (b"\x40\x01a\x01x\xbe", false), // what is newest by now
            (b"\x40\x01a\x01x\xbf", true),  // and what was before it
            (b"\x00\x7f\x01:", true),       // a long one
        ];
        for (block, expected) in trailers {
            let padded = [&[3, 0, 0, 0, 0, 9][..], block, &[0x84; 3]].concat();
            let (first, second) = block.split_at(block.len() / 2);
            let whole: &[Frame<'_>] = &[(1, END, 1, block)];
            let padded: &[Frame<'_>] = &[(1, END | PADDED | PRIORITY, 1, &padded)];
            let halves: &[Frame<'_>] = &[(1, 1, 1, first), (9, 4, 1, second)];
            let later: &[Frame<'_>] = &[(1, END, 3, b"\x82"), (0, 0, 1, b"\x84\x84"), (1, END, 1, block)];
            let opened: &[Frame<'_>] = &[(1, 4, 1, HEAD)];
            for piece in [1, 2, 3, 100] {
                let is_found = |frames: &[Frame<'_>]| found(&[opened, frames].concat(), piece).is_some();
                for frames in [whole, padded, halves, later] {
                    assert_eq!(is_found(frames), expected, "{frames:?} in pieces of {piece}");
                }
                assert!(!is_found(&[(1, END, 3, block)]), "{block:?} is a head");
            }
        }
    }

    #[test]
    fn of_the_fields_before_as_many_count_as_a_server_keeps() {
        for (others, expected) in [(127, Some(128)), (128, None)] {
            let mut frames = vec![(1, 4, 1, HEAD)];
            frames.extend(vec![(1, 4, 3, &b"\x40\x01a\x01x"[..]); others]);
            // The number of the oldest entry that there can be.
            frames.push((1, END, 1, b"\xff\x3e"));
            assert_eq!(found(&frames, 1), expected);
        }
    }

    #[test]
    fn no_bytes_are_a_panic() {
        let mut random = fastrand::Rng::with_seed(13);
        for _ in 0..2_000 {
            let mut blocks = Blocks::new();
            for _ in 0..20 {
                let payload: Vec<u8> = (0..random.usize(..300)).map(|_| random.u8(..)).collect();
                blocks.begin(random.u8(..12), random.u8(..), random.u32(..9), random.usize(..600));
                payload.chunks(random.usize(1..50)).for_each(|piece| _ = blocks.hear(piece));
            }
        }
    }
}
