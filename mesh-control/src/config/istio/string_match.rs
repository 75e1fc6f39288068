//! `StringMatch`: the one way in which Istio compares text.

use regex::{Regex, RegexBuilder};

use crate::config::decode::{Decode, Decoder};
use crate::config::diagnostic::{Code, quoted};
use crate::config::node::Node;

/// A condition on a text. `{}` asks only that there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum StringMatch {
    /// Any text.
    #[default]
    Present,
    /// This text.
    Exact(String),
    /// A text that starts with this.
    Prefix(String),
    /// A text that this RE2 expression matches as a whole.
    Regex(String),
}

const FIELDS: [&str; 3] = ["exact", "prefix", "regex"];

impl Decode for StringMatch {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        d.message(node, &FIELDS)?;
        let exact: Option<String> = d.optional(node, "exact")?;
        let prefix: Option<String> = d.optional(node, "prefix")?;
        let regex: Option<String> = d.optional(node, "regex")?;
        match (exact, prefix, regex) {
            (None, None, None) => Some(StringMatch::Present),
            (Some(text), None, None) => Some(StringMatch::Exact(text)),
            (None, Some(text), None) => Some(StringMatch::Prefix(text)),
            (None, None, Some(text)) => {
                let span = node.get("regex").map_or(node.span, |node| node.span);
                check_regex(&text, span, d)?;
                Some(StringMatch::Regex(text))
            }
            _ => {
                let message = "only one of exact, prefix and regex can be set";
                d.error(node.span, Code::InvalidValue, message);
                None
            }
        }
    }

    fn fields(prefix: &str, out: &mut Vec<String>) {
        out.extend(FIELDS.map(|field| format!("{prefix}.{field}")));
    }
}

/// The longest expression that is taken; RE2 programs beyond what Envoy would run are no use to anybody.
const LONGEST_REGEX: usize = 8 << 10;

/// An expression as Istio means it: RE2, matching the whole text.
pub fn whole_text_regex(text: &str) -> Option<Regex> {
    if text.len() > LONGEST_REGEX {
        return None;
    }
    // Istio writes `*` for "anything" (route.go, `metadataMatch: "*"`).
    let pattern = if text == "*" { ".*" } else { text };
    RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(1 << 20).build().ok()
}

/// Reports an expression that is no RE2.
pub fn check_regex(text: &str, span: crate::config::diagnostic::Span, d: &mut Decoder<'_>) -> Option<()> {
    if whole_text_regex(text).is_some() {
        return Some(());
    }
    d.error(span, Code::InvalidValue, format!("{} is not a regular expression", quoted(text)));
    None
}
