//! Which word was meant by one that nobody knows.

use std::collections::BTreeMap;

/// Nobody mistypes more than this.
const LONGEST: usize = 64;
/// Nor makes more edits of a word.
const MOST_EDITS: usize = 2;

/// The characters of a word that count.
fn plain(text: &str) -> impl Iterator<Item = char> {
    text.chars().filter(|c| !matches!(c, '_' | '-')).map(|c| c.to_ascii_lowercase())
}

/// Whether a long word most likely means this one: with an edit for every five of its characters at most.
pub(crate) fn is_like(name: &str, word: &str) -> bool {
    let is_as_long = name.len() <= word.len() * 2 && name.len() * 5 >= word.len() * 4;
    is_as_long && distance(name, word, word.len() / 5).is_some()
}

/// The known name that a mistyped one most likely means.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a &'a str>) -> Option<&'a str> {
    if name.len() > LONGEST {
        return None;
    }
    known
        .into_iter()
        .filter_map(|candidate| Some((distance(name, candidate, MOST_EDITS)?, *candidate)))
        .filter(|(distance, candidate)| *distance * 2 <= candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Known names by how many of their characters count: one that is far longer or shorter than another is never meant by it.
#[derive(Debug)]
pub(crate) struct Names<'a>(BTreeMap<usize, Vec<&'a str>>);

impl<'a> Names<'a> {
    pub(crate) fn new(known: impl IntoIterator<Item = &'a str>) -> Names<'a> {
        let mut names = BTreeMap::<usize, Vec<&str>>::new();
        known.into_iter().for_each(|name| names.entry(plain(name).count()).or_default().push(name));
        Names(names)
    }

    /// [`nearest`] among them.
    pub(crate) fn nearest(&self, name: &str) -> Option<&str> {
        let length = plain(name).count();
        let like = self.0.range(length.saturating_sub(MOST_EDITS)..=length.saturating_add(MOST_EDITS));
        nearest(name, like.flat_map(|(_, names)| names))
    }
}

/// How many edits apart two words are: a character more, less or different, or two neighbours that changed places. `None` where that
/// is more than `most`, which most words are: one by its length, another by its first characters.
fn distance(a: &str, b: &str, most: usize) -> Option<usize> {
    if plain(a).count().abs_diff(plain(b).count()) > most {
        return None;
    }
    let b: Vec<char> = plain(b).collect();
    let mut before = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    let mut last = None;
    for (i, from) in plain(a).enumerate() {
        let mut next = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let at = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX - 1);
            let mut edits = (at(&row, j) + usize::from(from != *to)).min(at(&row, j + 1) + 1).min(at(&next, j) + 1);
            let swapped = j.checked_sub(1).filter(|other| last == Some(*to) && b.get(*other) == Some(&from));
            if let Some(other) = swapped {
                edits = edits.min(at(&before, other) + 1);
            }
            next.push(edits);
        }
        // What follows makes none of these fewer.
        if next.iter().all(|edits| *edits > most) {
            return None;
        }
        before = std::mem::replace(&mut row, next);
        last = Some(from);
    }
    row.last().copied().filter(|edits| *edits <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (a, b, edits) in [("", "", 0), ("web", "web", 0), ("wbe", "web", 1), ("we", "web", 1), ("xweb", "web", 1)] {
            assert_eq!((distance(a, b, 9), distance(b, a, 9)), (Some(edits), Some(edits)), "{a} {b}");
        }
        assert_eq!((distance("kitten", "sitting", 3), distance("kitten", "sitting", 2)), (Some(3), None));
        assert_eq!((distance("Re-views", "reviwes", 1), distance("a_-b", "ab", 0)), (Some(1), Some(0)));
        assert_eq!(nearest("wbe", &["cart", "web"]), Some("web"));
        assert_eq!(nearest("other", &["cart", "web"]), None);
        let known = ["cart", "web", "reviews", "review-s-v2"];
        for name in ["wbe", "reviews-v", "re_views", "catr", "reviewsv", "revie", "other", "we", "", "reviews-v2x"] {
            assert_eq!(Names::new(known).nearest(name), nearest(name, &known), "{name}");
        }
        assert_eq!(Names::new(known).nearest("re_view"), Some("reviews"));
        assert!(
            is_like("authorizationpolicies", "AuthorizationPolicy") && !is_like("NetworkPolicy", "AuthorizationPolicy")
        );
    }
}
