//! Tests on strings, on bytes: a header value need not be UTF-8, and one that is not must still be matched
//! (a deny rule that skips it would fail open, CVE-2026-73552).

use std::fmt;

use regex::bytes::{Regex, RegexBuilder};

use super::re2;
use crate::error::Invalid;

/// A regular expression that must match the whole subject, in linear time (RE2 semantics).
#[derive(Clone)]
pub struct FullRegex {
    source: String,
    compiled: Regex,
}

impl FullRegex {
    /// Compiles `source`, an expression of RE2; the program may take at most 1 MiB, so that no resource can exhaust memory.
    ///
    /// ```
    /// use mesh_core::model::FullRegex;
    ///
    /// let regex = FullRegex::new("(?i)/users/[0-9]+").unwrap();
    /// assert!(regex.is_match(b"/Users/7") && !regex.is_match(b"/users/7/name"));
    /// ```
    pub fn new(source: &str) -> Result<Self, Invalid> {
        let invalid = |error: &dyn fmt::Display| Invalid::new(format!("invalid regex {source:?}: {error}"));
        let pattern = re2::translate(source).map_err(|error| invalid(&error))?;
        // `a)|(b` would be a regex inside the anchoring group; what was translated has closed every group of its own.
        let mut builder = RegexBuilder::new(&format!("^(?:{pattern})$"));
        let compiled = builder.size_limit(1 << 20).dfa_size_limit(1 << 20).build().map_err(|error| invalid(&error))?;
        Ok(FullRegex { source: source.to_owned(), compiled })
    }

    /// The expression as it was written.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Whether the whole of `subject` matches.
    pub fn is_match(&self, subject: &[u8]) -> bool {
        self.compiled.is_match(subject)
    }
}

impl PartialEq for FullRegex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for FullRegex {}

impl fmt::Debug for FullRegex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.source)
    }
}

/// A test on one string (`envoy.type.matcher.v3.StringMatcher`). `ignore_case` folds ASCII only and does not
/// apply to a regex.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are the same in every kind and told above")]
pub enum StringTest {
    /// The whole value.
    Exact { value: String, ignore_case: bool },
    /// How it starts.
    Prefix { value: String, ignore_case: bool },
    /// How it ends.
    Suffix { value: String, ignore_case: bool },
    /// A part of it.
    Contains { value: String, ignore_case: bool },
    /// The whole value, by expression.
    Regex(FullRegex),
}

impl StringTest {
    /// Whether `subject` passes.
    pub fn is_match(&self, subject: &[u8]) -> bool {
        match self {
            StringTest::Exact { value, ignore_case } => bytes_equal(subject, value.as_bytes(), *ignore_case),
            StringTest::Prefix { value, ignore_case } => {
                subject.get(..value.len()).is_some_and(|head| bytes_equal(head, value.as_bytes(), *ignore_case))
            }
            StringTest::Suffix { value, ignore_case } => subject
                .len()
                .checked_sub(value.len())
                .and_then(|start| subject.get(start..))
                .is_some_and(|tail| bytes_equal(tail, value.as_bytes(), *ignore_case)),
            StringTest::Contains { value, ignore_case } => {
                value.is_empty()
                    || subject.windows(value.len()).any(|part| bytes_equal(part, value.as_bytes(), *ignore_case))
            }
            StringTest::Regex(regex) => regex.is_match(subject),
        }
    }
}

fn bytes_equal(a: &[u8], b: &[u8], ignore_case: bool) -> bool {
    if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_string_test() {
        let text = |value: &str, ignore_case| (value.to_owned(), ignore_case);
        let cases: &[(StringTest, &[u8], bool)] = &[
            (exact(text("abc", false)), b"abc", true),
            (exact(text("abc", false)), b"ABC", false),
            (exact(text("abc", true)), b"ABC", true),
            (prefix(text("ab", false)), b"abc", true),
            (prefix(text("abcd", false)), b"abc", false),
            (suffix(text("BC", true)), b"abc", true),
            (suffix(text("bc", false)), b"c", false),
            (contains(text("", false)), b"", true),
            (contains(text("b", false)), b"abc", true),
            (contains(text("x", false)), b"abc", false),
            (StringTest::Regex(FullRegex::new("a.c").unwrap()), b"abc", true),
            (StringTest::Regex(FullRegex::new("a|b").unwrap()), b"ab", false),
            (StringTest::Regex(FullRegex::new("b").unwrap()), b"abc", false),
        ];
        for (test, subject, expected) in cases {
            assert_eq!(test.is_match(subject), *expected, "{test:?} on {:?}", String::from_utf8_lossy(subject));
        }
    }

    #[test]
    fn a_regex_sees_bytes_that_are_not_utf8() {
        assert!(FullRegex::new(r".*blocked\C*").unwrap().is_match(b"blocked\xff"));
    }

    #[test]
    fn a_regex_cannot_break_out_of_its_anchors() {
        assert!(FullRegex::new("a)|(b").is_err());
    }

    #[test]
    fn a_regex_that_would_need_much_memory_is_invalid() {
        assert!(FullRegex::new(r"(\w{1,1000}){1,1000}").is_err());
    }

    fn exact((value, ignore_case): (String, bool)) -> StringTest {
        StringTest::Exact { value, ignore_case }
    }
    fn prefix((value, ignore_case): (String, bool)) -> StringTest {
        StringTest::Prefix { value, ignore_case }
    }
    fn suffix((value, ignore_case): (String, bool)) -> StringTest {
        StringTest::Suffix { value, ignore_case }
    }
    fn contains((value, ignore_case): (String, bool)) -> StringTest {
        StringTest::Contains { value, ignore_case }
    }
}
