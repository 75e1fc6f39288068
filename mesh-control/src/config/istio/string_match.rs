//! `StringMatch`: the one way in which Istio compares text.

use mesh_core::model::FullRegex;

use super::regex_cost::cost;
use crate::config::decode::{Decode, Decoder};
use crate::config::diagnostic::{Code, quoted};
use crate::config::node::Node;
use crate::config::schema::{Field, Schema};

/// A condition on a text. `{}` asks only that there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum StringMatch {
    /// Any text.
    #[default]
    Present,
    /// This text.
    Exact(String),
    /// A text that starts with this; empty for the path alone.
    Prefix(String),
    /// A text that this RE2 expression matches as a whole.
    Regex(String),
}

const FIELDS: [&str; 3] = ["exact", "prefix", "regex"];

impl Decode for StringMatch {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        d.message(node, &FIELDS)?;
        let exact: Option<String> = d.optional(node, "exact")?;
        let prefix: Option<Prefix> = d.optional(node, "prefix")?;
        let regex: Option<Expression> = d.optional(node, "regex")?;
        match (exact, prefix, regex) {
            (None, None, None) => Some(StringMatch::Present),
            (Some(text), None, None) => Some(StringMatch::Exact(text)),
            (None, Some(Prefix(text)), None) => Some(StringMatch::Prefix(text)),
            (None, None, Some(Expression(text))) => Some(StringMatch::Regex(text)),
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

    fn schema() -> Schema {
        let field = |name| Field { name, about: "", is_required: false, schema: Schema::Text };
        Schema::OneOf(FIELDS.map(field).into())
    }
}

struct Prefix(String);

impl Decode for Prefix {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let text = String::decode(node, d)?;
        // As Istio's validation has it: Envoy takes an empty prefix for the path, and for nothing else.
        if text.is_empty() && !d.is_inside("uri") {
            d.error(node.span, Code::InvalidValue, "must not be empty; `{}` asks only that there is one");
            return None;
        }
        Some(Prefix(text))
    }
}

struct Expression(String);

impl Decode for Expression {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let text = String::decode(node, d)?;
        if let Some(message) = expression_fault(&text, d) {
            d.error(node.span, Code::InvalidValue, message);
            d.amend(|finding| finding.istio("IST0122"));
            return None;
        }
        Some(Expression(text))
    }
}

/// What is wrong with an expression, by itself or since the object has others.
pub fn expression_fault(text: &str, d: &mut Decoder<'_>) -> Option<String> {
    if text.is_empty() {
        return Some("must not be empty; `.*` is any text".to_owned());
    }
    if !d.afford(cost(text)) {
        return Some(TOO_MUCH.to_owned());
    }
    let is_wrong = whole_text_regex(text).is_none();
    is_wrong.then(|| format!("{} is not a regular expression: {}", quoted(text), why_not(text)))
}

/// What is said of an object whose expressions cost too much.
pub(super) const TOO_MUCH: &str =
    "the expressions of this object are too large together: write fewer or simpler ones, or divide it";

/// The longest expression that is taken; RE2 programs beyond what Envoy would run are no use to anybody.
const LONGEST_REGEX: usize = 8 << 10;

/// An expression as Istio means it: RE2, matching the whole text. It is the data plane's own.
pub fn whole_text_regex(text: &str) -> Option<FullRegex> {
    if text.len() > LONGEST_REGEX {
        return None;
    }
    // Istio writes `*` for "anything" (route.go, `metadataMatch: "*"`).
    FullRegex::new(if text == "*" { ".*" } else { text }).ok()
}

/// Why an expression is none: the parser's own last line, without its drawing of the place.
pub fn why_not(text: &str) -> String {
    if text.len() > LONGEST_REGEX {
        return format!("longer than {LONGEST_REGEX} bytes");
    }
    let said = FullRegex::new(text).err().map(|invalid| invalid.to_string()).unwrap_or_default();
    let reason = said.lines().last().unwrap_or_default();
    let reason = reason.strip_prefix(&format!("invalid regex {text:?}: ")).unwrap_or(reason);
    reason.trim_start_matches("error: ").to_owned()
}
