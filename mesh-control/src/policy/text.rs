//! Conditions on texts.

use crate::config::istio::string_match::{StringMatch, whole_text_regex};

/// A condition on a text.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TextMatch {
    /// There is one, whatever it says.
    #[default]
    Present,
    /// This text.
    Exact(String),
    /// A text that starts with this.
    Prefix(String),
    /// A text that this RE2 expression matches as a whole.
    Regex(String),
}

impl TextMatch {
    /// Whether a text satisfies the condition.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            TextMatch::Present => true,
            TextMatch::Exact(exact) => exact == text,
            TextMatch::Prefix(prefix) => text.starts_with(prefix.as_str()),
            TextMatch::Regex(regex) => whole_text_regex(regex).is_some_and(|regex| regex.is_match(text.as_bytes())),
        }
    }
}

impl From<&StringMatch> for TextMatch {
    fn from(written: &StringMatch) -> TextMatch {
        match written {
            StringMatch::Present => TextMatch::Present,
            StringMatch::Exact(text) => TextMatch::Exact(text.clone()),
            StringMatch::Prefix(text) => TextMatch::Prefix(text.clone()),
            // Istio's word for "anything" (route.go, `metadataMatch: "*"`).
            StringMatch::Regex(text) if text == "*" => TextMatch::Present,
            StringMatch::Regex(text) => TextMatch::Regex(text.clone()),
        }
    }
}

/// Conditions with the names of what they are on, in order. All must hold; a name may have several.
pub type TextMatches = Vec<(String, TextMatch)>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_matches_the_whole_text_and_a_star_is_any() {
        for (condition, text, expected) in [
            (StringMatch::Present, "", true),
            (StringMatch::Exact("a".to_owned()), "a", true),
            (StringMatch::Exact("a".to_owned()), "ab", false),
            (StringMatch::Prefix("a".to_owned()), "ab", true),
            (StringMatch::Regex("a+".to_owned()), "aa", true),
            (StringMatch::Regex("a+".to_owned()), "ab", false),
            (StringMatch::Regex("*".to_owned()), "anything", true),
        ] {
            assert_eq!(TextMatch::from(&condition).matches(text), expected, "{condition:?} {text}");
        }
        assert_eq!(TextMatch::from(&StringMatch::Regex("*".to_owned())), TextMatch::Present);
    }
}
