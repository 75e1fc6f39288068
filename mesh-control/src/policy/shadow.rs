//! Conditions that never get a turn, since an earlier one takes every request that they are for.
//!
//! Only what is certain is said: of two expressions, nobody here knows which takes more.

use std::collections::HashMap;

use super::route::Condition;
use super::text::{TextMatch, TextMatches};

/// How many earlier conditions with one path are looked at: a table of thousands with the same path costs no more.
const MOST: usize = 100;

/// Conditions in their order, each with what it is called.
#[derive(Debug)]
pub struct Earlier<T> {
    by_path: HashMap<Path, Vec<(Condition, T)>>,
}

/// What a path begins with, is, or matches, without its case; `Below("")` is any.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Path {
    Below(String),
    Whole(String),
    Like(String),
}

impl<T> Default for Earlier<T> {
    fn default() -> Earlier<T> {
        Earlier { by_path: HashMap::new() }
    }
}

impl<T> Earlier<T> {
    /// The next one.
    pub fn push(&mut self, condition: Condition, what: T) {
        let alike = self.by_path.entry(Path::of(&condition)).or_default();
        if alike.len() < MOST {
            alike.push((condition, what));
        }
    }

    /// The first found that takes every request that this one is for.
    pub fn takes_all_of(&self, later: &Condition) -> Option<&T> {
        let find = |path: &Path| {
            let mut alike = self.by_path.get(path)?.iter();
            alike.find(|(earlier, _)| takes_all(earlier, later)).map(|(_, what)| what)
        };
        let own = Path::of(later);
        let begins = match &own {
            Path::Whole(text) | Path::Below(text) => text.as_str(),
            Path::Like(_) => "",
        };
        let shorter = begins.char_indices().map(|(end, _)| begins.get(..end).unwrap_or_default());
        let mut shorter = shorter.chain([begins]).map(|begin| Path::Below(begin.to_owned()));
        find(&own).or_else(|| shorter.find_map(|path| find(&path)))
    }
}

impl Path {
    fn of(condition: &Condition) -> Path {
        match &condition.path {
            _ if condition.has_any_path() => Path::Below(String::new()),
            TextMatch::Present => Path::Below(String::new()),
            TextMatch::Prefix(text) => Path::Below(text.to_ascii_lowercase()),
            TextMatch::Exact(text) => Path::Whole(text.to_ascii_lowercase()),
            TextMatch::Regex(text) => Path::Like(text.clone()),
        }
    }
}

/// Whether every request that meets the later condition meets the earlier one.
fn takes_all(earlier: &Condition, later: &Condition) -> bool {
    let one = |earlier: &Option<TextMatch>, later: &Option<TextMatch>| match (earlier, later) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(earlier), Some(later)) => is_wider(earlier, later),
    };
    let all = |earlier: &TextMatches, later: &TextMatches| {
        earlier.iter().all(|(name, wide)| later.iter().any(|(other, text)| other == name && is_wider(wide, text)))
    };
    takes_path(earlier, later)
        && one(&earlier.method, &later.method)
        && one(&earlier.scheme, &later.scheme)
        && one(&earlier.authority, &later.authority)
        && all(&earlier.headers, &later.headers)
        && all(&earlier.query, &later.query)
        // What the earlier one leaves to others, the later one does as well.
        && earlier.without_headers.iter().all(|(name, left)| {
            later.without_headers.iter().any(|(other, text)| other == name && is_wider(text, left))
        })
}

fn takes_path(earlier: &Condition, later: &Condition) -> bool {
    if earlier.has_any_path() {
        return true;
    }
    match (earlier.ignore_path_case, later.ignore_path_case) {
        (false, false) => is_wider(&earlier.path, &later.path),
        (true, _) => is_wider(&lower(&earlier.path), &lower(&later.path)),
        (false, true) => false,
    }
}

fn lower(path: &TextMatch) -> TextMatch {
    match path {
        TextMatch::Prefix(text) => TextMatch::Prefix(text.to_ascii_lowercase()),
        TextMatch::Exact(text) => TextMatch::Exact(text.to_ascii_lowercase()),
        other => other.clone(),
    }
}

fn is_wider(wide: &TextMatch, narrow: &TextMatch) -> bool {
    match (wide, narrow) {
        (TextMatch::Present, _) => true,
        (TextMatch::Prefix(begin), TextMatch::Exact(text) | TextMatch::Prefix(text)) => {
            text.starts_with(begin.as_str())
        }
        (wide, narrow) => wide == narrow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TextMatch {
        match (text.strip_prefix('~'), text.strip_suffix('*')) {
            (Some(regex), _) => TextMatch::Regex(regex.to_owned()),
            (None, Some(prefix)) => TextMatch::Prefix(prefix.to_owned()),
            (None, None) => TextMatch::Exact(text.to_owned()),
        }
    }

    /// A path, then `name=value` on headers, `?name=value` on parameters, `!name=value` on what must not be; `i` ignores case.
    fn condition(text: &str) -> Condition {
        let mut words = text.split(' ');
        let mut condition = Condition { path: path(words.next().unwrap()), ..Condition::default() };
        for word in words {
            if word == "i" {
                condition.ignore_path_case = true;
                continue;
            }
            let (name, value) = word.split_once('=').unwrap();
            let value = path(value);
            match (name.strip_prefix('?'), name.strip_prefix('!')) {
                (Some(name), _) => condition.query.push((name.to_owned(), value)),
                (_, Some(name)) => condition.without_headers.push((name.to_owned(), value)),
                _ if name == "method" => condition.method = Some(value),
                _ => condition.headers.push((name.to_owned(), value)),
            }
        }
        condition
    }

    #[test]
    fn a_condition_is_taken_by_one_that_asks_for_no_more() {
        for (earlier, later, expected) in [
            ("/a", "/a", true),
            ("/a", "/b", false),
            ("/a*", "/a", true),
            ("/a*", "/a/b*", true),
            ("/a/b*", "/a*", false),
            ("/a", "/a*", false),
            ("/*", "~/x.*", true),
            ("~.*", "/a", true),
            ("~/x.*", "~/x.*", true),
            ("~/x.*", "/x", false),
            ("/A* i", "/a/b", true),
            ("/a* i", "/A/b* i", true),
            ("/a*", "/a/b i", false),
            ("/* x=1", "/a x=1 y=2", true),
            ("/* x=1", "/a x=2", false),
            ("/* x=1", "/a", false),
            ("/* x=1*", "/a x=12", true),
            ("/* ?x=1", "/a ?x=1", true),
            ("/* ?x=1", "/a x=1", false),
            ("/* method=GET", "/a method=GET", true),
            ("/* method=GET", "/a", false),
            ("/* !x=1", "/a !x=1*", true),
            ("/* !x=1*", "/a !x=1", false),
            ("/* !x=1", "/a", false),
        ] {
            let mut all = Earlier::default();
            all.push(condition("/other"), "other");
            all.push(condition(earlier), earlier);
            let found = all.takes_all_of(&condition(later));
            assert_eq!(found.is_some(), expected, "{earlier}, then {later}");
            assert!(found.is_none_or(|found| *found == earlier));
        }
    }
}
