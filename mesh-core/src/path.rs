//! Paths of requests in the one form that everybody who decides by them sees: routes, policies, the application.
//!
//! `/a/../admin`, `/%61dmin` and `\admin` may all be `/admin` to an application. A rule that was written for `/admin` has to
//! see that, and the application has to see what the rule saw.

use std::borrow::Cow;

use crate::error::{ErrorKind, MeshError};

/// What is made of the paths of requests. The constants are Istio's `pathNormalization`.
///
/// ```
/// use mesh_core::path::PathNormalization;
///
/// let canonical = |modes: PathNormalization, path| modes.canonical(path, false).map(|path| path.into_owned());
/// assert_eq!(canonical(PathNormalization::BASE, "/a/..\\%61dmin//x").unwrap(), "/admin//x");
/// assert_eq!(canonical(PathNormalization::MERGE_SLASHES, "/admin//x").unwrap(), "/admin/x");
/// assert_eq!(canonical(PathNormalization::DECODE_AND_MERGE_SLASHES, "/admin%2Fx").unwrap(), "/admin/x");
/// assert!(canonical(PathNormalization::NONE, "/a%00b").is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PathNormalization {
    /// Whether escapes of letters, digits and `-._~` are decoded, `\` is `/`, and `.` and `..` are resolved (RFC 3986, 6.2.2).
    pub resolve: bool,
    /// Whether slashes that follow each other are one.
    pub merge_slashes: bool,
    /// What `%2F` and `%5C` are.
    pub escaped_slashes: EscapedSlashes,
}

/// What becomes of `%2F` and `%5C`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// They stay as they are.
    #[default]
    Keep,
    /// The request is refused.
    Reject,
    /// They are slashes (with `resolve` off, `%5C` is a backslash).
    Decode,
}

/// Which bytes `ones` marks: the highest bit of each byte of `word` that is `byte`. A byte above one that was found may be
/// marked, too, so that only whether there is any is exact, and where the first one is.
#[inline]
const fn marks(word: u64, byte: u8) -> u64 {
    let zero = word ^ (ONES * byte as u64);
    zero.wrapping_sub(ONES) & !zero & (ONES << 7)
}

const ONES: u64 = u64::from_le_bytes([1; 8]);

impl PathNormalization {
    /// Paths stay as they were sent.
    pub const NONE: Self = Self { resolve: false, merge_slashes: false, escaped_slashes: EscapedSlashes::Keep };
    /// RFC 3986, and `\` is `/`. Istio's default.
    pub const BASE: Self = Self { resolve: true, ..Self::NONE };
    /// `BASE`, and slashes are merged.
    pub const MERGE_SLASHES: Self = Self { merge_slashes: true, ..Self::BASE };
    /// `MERGE_SLASHES`, and `%2F` and `%5C` are slashes.
    pub const DECODE_AND_MERGE_SLASHES: Self = Self { escaped_slashes: EscapedSlashes::Decode, ..Self::MERGE_SLASHES };

    /// The canonical form of a path, which has no query. It is the path itself where nothing has to change, and the canonical
    /// form of a canonical path is that path. What does not begin with a slash (`*`) is no path, and stays as it is.
    ///
    /// `is_guarded` says that somebody may be refused for the path: then what only some applications take for `.` or `..`
    /// (`..;x`) is refused where dots are resolved, since a rule can see it in one way only.
    ///
    /// # Errors
    /// A bad request: `%00`, whatever the mode; an escape that decoding would make (`%2%65`); an escaped slash where those are
    /// rejected; and parameters of dot segments, as above.
    #[inline]
    pub fn canonical<'p>(&self, path: &'p str, is_guarded: bool) -> Result<Cow<'p, str>, MeshError> {
        if self.is_plain(path.as_bytes()) { Ok(Cow::Borrowed(path)) } else { self.change(path, is_guarded) }
    }

    /// Whether there is nothing in a path that any mode could change or refuse: most paths are so, and are looked at once,
    /// eight bytes at a time. What is said to be not plain may yet turn out to be canonical.
    #[inline]
    fn is_plain(&self, path: &[u8]) -> bool {
        let mut after_slash = 0;
        let (blocks, rest) = path.as_chunks::<8>();
        for block in blocks {
            let word = u64::from_le_bytes(*block);
            if self.suspects(word, &mut after_slash) {
                return false;
            }
        }
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        !self.suspects(u64::from_le_bytes(last), &mut after_slash)
    }

    /// Whether a word has an escape, a backslash, or a dot or a second slash after a slash.
    #[inline]
    fn suspects(&self, word: u64, after_slash: &mut u64) -> bool {
        let slashes = marks(word, b'/');
        let followed = (slashes << 8) | *after_slash;
        *after_slash = slashes >> 56;
        // `.` and `/` differ in the lowest bit.
        let follower = if self.merge_slashes { marks(word | ONES, b'/') } else { marks(word, b'.') };
        (marks(word, b'%') | marks(word, b'\\') | (followed & follower)) != 0
    }

    #[cold]
    fn change<'p>(&self, path: &'p str, is_guarded: bool) -> Result<Cow<'p, str>, MeshError> {
        if !path.starts_with('/') {
            return Ok(Cow::Borrowed(path));
        }
        let mut bytes = self.decoded(path.as_bytes())?;
        if self.resolve {
            if is_guarded && segments(&bytes).any(is_dots_with_parameters) {
                return Err(bad("a dot segment with parameters in the path"));
            }
            if segments(&bytes).any(|segment| matches!(segment, b"." | b"..")) {
                bytes = Cow::Owned(without_dots(&bytes));
            }
        }
        if self.merge_slashes && bytes.windows(2).any(|pair| pair == b"//") {
            bytes.to_mut().dedup_by(|next, before| *next == b'/' && *before == b'/');
        }
        match bytes {
            Cow::Borrowed(_) => Ok(Cow::Borrowed(path)),
            // Whole ASCII characters have been taken out of a text, and put in.
            Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|_| bad("the path is not text")),
        }
    }

    /// Escapes decoded, once, and backslashes turned.
    fn decoded<'p>(&self, path: &'p [u8]) -> Result<Cow<'p, [u8]>, MeshError> {
        // What is changed already; nothing as long as that would be the path itself.
        let mut changed: Option<Vec<u8>> = None;
        let mut rest = path;
        while let Some((first, after)) = rest.split_first() {
            let (replaced, taken) = match (first, escaped(after)) {
                (b'%', Some(0)) => return Err(bad("%00 in the path")),
                (b'%', Some(byte)) => (self.decoded_escape(byte)?, 3),
                (b'\\', _) if self.resolve => (Some(b'/'), 1),
                _ => (None, 1),
            };
            let (piece, after) = rest.split_at_checked(taken).unwrap_or((rest, &[]));
            if let Some(byte) = replaced {
                let position = path.len() - rest.len();
                let before = path.get(..position).unwrap_or_default();
                let changed = changed.get_or_insert_with(|| before.to_vec());
                if byte.is_ascii_hexdigit() && ends_in_half_an_escape(changed) {
                    return Err(bad("an escape within an escape in the path"));
                }
                changed.push(byte);
            } else if let Some(changed) = &mut changed {
                changed.extend_from_slice(piece);
            }
            rest = after;
        }
        Ok(changed.map_or(Cow::Borrowed(path), Cow::Owned))
    }

    /// What an escape of this byte is replaced by, if it is.
    fn decoded_escape(&self, byte: u8) -> Result<Option<u8>, MeshError> {
        let is_unreserved = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        match (byte, self.escaped_slashes) {
            (b'/' | b'\\', EscapedSlashes::Keep) => Ok(None),
            (b'/' | b'\\', EscapedSlashes::Reject) => Err(bad("an escaped slash in the path")),
            (b'\\', EscapedSlashes::Decode) if !self.resolve => Ok(Some(b'\\')),
            (b'/' | b'\\', EscapedSlashes::Decode) => Ok(Some(b'/')),
            _ => Ok((self.resolve && is_unreserved).then_some(byte)),
        }
    }
}

fn bad(what: &'static str) -> MeshError {
    MeshError::new(ErrorKind::BadRequest, what)
}

/// The byte of two hexadecimal digits.
fn escaped(digits: &[u8]) -> Option<u8> {
    let digit = |position: usize| char::from(*digits.get(position)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

/// Whether `%` or `%` and one digit stand at the end: one more digit would make an escape of them that nobody sent.
fn ends_in_half_an_escape(bytes: &[u8]) -> bool {
    match bytes {
        [.., b'%'] => true,
        [.., b'%', digit] => digit.is_ascii_hexdigit(),
        _ => false,
    }
}

/// What is between slashes; the first is what stands before the first of them.
fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
}

/// Whether a segment is `.` or `..` to those who take parameters away first. They may decode what is before or after.
fn is_dots_with_parameters(segment: &[u8]) -> bool {
    let parameters = segment.strip_prefix(b"..").or_else(|| segment.strip_prefix(b"."));
    matches!(parameters, Some([b';', ..] | [b'%', b'3', b'b' | b'B', ..]))
}

/// The path with `.` and `..` resolved (RFC 3986, 5.2.4). Above the root is the root.
fn without_dots(path: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut ends_in_dots = false;
    for segment in segments(path).skip(1) {
        ends_in_dots = matches!(segment, b"." | b"..");
        match segment {
            b"." => {}
            b".." => _ = kept.pop(),
            segment => kept.push(segment),
        }
    }
    if ends_in_dots {
        kept.push(b"");
    }
    let mut resolved = Vec::with_capacity(path.len());
    for segment in kept {
        resolved.push(b'/');
        resolved.extend_from_slice(segment);
    }
    resolved
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
