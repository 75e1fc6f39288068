//! A rewrite of a path by expression, within the length that a path may have.

use std::borrow::Cow;

use super::re2;
use crate::error::Invalid;

/// The longest result that is made; no URI may have a longer path, so that a longer one is refused whatever it is. The
/// peer chooses what the expression matches, and how often.
const LONGEST: usize = u16::MAX as usize;

/// A rewrite of the path by expression (`regex_rewrite`).
#[derive(Clone, Debug)]
pub struct PathRewrite {
    pattern: regex::Regex,
    substitution: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Group(usize),
}

impl PathRewrite {
    /// Every match of `pattern` becomes `substitution`, in which `\\1` to `\\9` are the groups and `\\0` the
    /// whole match (RE2's syntax).
    pub fn new(pattern: &str, substitution: &str) -> Result<Self, Invalid> {
        let invalid =
            |error: &dyn std::fmt::Display| Invalid::new(format!("invalid regex {pattern:?}: {error}")).at("pattern");
        let translated = re2::translate(pattern).map_err(|error| invalid(&error))?;
        let mut builder = regex::RegexBuilder::new(&translated);
        let pattern = builder.size_limit(1 << 20).build().map_err(|error| invalid(&error))?;
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut chars = substitution.chars();
        while let Some(c) = chars.next() {
            if c != '\\' {
                text.push(c);
                continue;
            }
            match chars.next() {
                Some('\\') => text.push('\\'),
                Some(digit) if digit.is_ascii_digit() => {
                    let group = digit.to_digit(10).map_or(0, |group| group as usize);
                    if group >= pattern.captures_len() {
                        return Err(Invalid::new(format!("no group {group} in the pattern")).at("substitution"));
                    }
                    parts.push(Part::Text(std::mem::take(&mut text)));
                    parts.push(Part::Group(group));
                }
                _ => return Err(Invalid::new("a backslash must be followed by a digit").at("substitution")),
            }
        }
        parts.push(Part::Text(text));
        parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
        Ok(PathRewrite { pattern, substitution: parts })
    }

    /// The expression, in the words of the `regex` crate.
    pub fn pattern(&self) -> &str {
        self.pattern.as_str()
    }

    /// The rewritten path; where it would be longer than 65,535 bytes, something else that is.
    pub fn apply<'p>(&self, path: &'p str) -> Cow<'p, str> {
        let mut matches = self.pattern.captures_iter(path).peekable();
        if matches.peek().is_none() {
            return Cow::Borrowed(path);
        }
        let mut made = String::new();
        let mut rest = 0;
        for found in matches {
            let Some(whole) = found.get(0) else { continue };
            made.push_str(path.get(rest..whole.start()).unwrap_or_default());
            rest = whole.end();
            for part in &self.substitution {
                match part {
                    Part::Text(text) => made.push_str(text),
                    Part::Group(group) => made.push_str(found.get(*group).map_or("", |group| group.as_str())),
                }
                if made.len() > LONGEST {
                    return Cow::Owned(made);
                }
            }
        }
        made.push_str(path.get(rest..).unwrap_or_default());
        Cow::Owned(made)
    }
}

impl PartialEq for PathRewrite {
    fn eq(&self, other: &Self) -> bool {
        self.pattern.as_str() == other.pattern.as_str() && self.substitution == other.substitution
    }
}

impl Eq for PathRewrite {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_match_is_replaced_with_its_groups() {
        let rewrite = PathRewrite::new("^/a/(.*)$", r"/b/\1$x").unwrap();
        assert_eq!(rewrite.apply("/a/c"), "/b/c$x");
        assert_eq!(rewrite.apply("/z"), "/z");
        assert_eq!(PathRewrite::new("a(b)?", r"\\<\0\1>").unwrap().apply("/ab-a-x"), r"/\<abb>-\<a>-x");
        assert_eq!(PathRewrite::new("x*", "-").unwrap().apply("ab"), "-a-b-");
        assert!(PathRewrite::new("a", r"\1").is_err());
        assert!(PathRewrite::new("a", r"\").is_err());
        assert!(PathRewrite::new("(", "").is_err());
    }

    #[test]
    fn what_no_path_can_be_is_not_made_in_full() {
        let path = format!("/{}", "a".repeat(60_000));
        for substitution in ["b".repeat(200_000), r"\0".repeat(10_000), r"\1".repeat(10_000)] {
            let made = PathRewrite::new("(a+?)", &substitution).unwrap().apply(&path).into_owned();
            assert!((LONGEST..300_000).contains(&made.len()), "{}", made.len());
        }
        let made = PathRewrite::new("(.*)", &r"\1".repeat(10_000)).unwrap().apply(&path).into_owned();
        assert!((LONGEST..200_000).contains(&made.len()), "{}", made.len());
    }
}
