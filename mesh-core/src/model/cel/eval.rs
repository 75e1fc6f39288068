//! What an expression comes to for one request.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use super::attributes::{CelAttribute, Facts};
use crate::model::FullRegex;

/// The longest text that is put together, in bytes.
const LONGEST_TEXT: usize = 64 << 10;

/// A value of an expression.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum CelValue<'a> {
    /// Whether something is so.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Double(f64),
    /// A text.
    Text(Cow<'a, str>),
    /// A time, in nanoseconds.
    Duration(i64),
    /// A moment, in nanoseconds since 1970.
    Time(i64),
}

impl fmt::Display for CelValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CelValue::Bool(is_so) => is_so.fmt(f),
            CelValue::Int(number) => number.fmt(f),
            CelValue::Double(number) => number.fmt(f),
            CelValue::Text(text) => f.write_str(text),
            CelValue::Duration(nanos) | CelValue::Time(nanos) => write!(f, "{}s", *nanos as f64 / 1e9),
        }
    }
}

impl CelValue<'_> {
    fn compare(&self, other: &CelValue<'_>) -> Option<Ordering> {
        match (self, other) {
            (CelValue::Bool(a), CelValue::Bool(b)) => Some(a.cmp(b)),
            (CelValue::Int(a), CelValue::Int(b)) => Some(a.cmp(b)),
            (CelValue::Int(a), CelValue::Double(b)) => (*a as f64).partial_cmp(b),
            (CelValue::Double(a), CelValue::Int(b)) => a.partial_cmp(&(*b as f64)),
            (CelValue::Double(a), CelValue::Double(b)) => a.partial_cmp(b),
            (CelValue::Text(a), CelValue::Text(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
            (CelValue::Duration(a), CelValue::Duration(b)) | (CelValue::Time(a), CelValue::Time(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextTest {
    Contains,
    StartsWith,
    EndsWith,
}

/// An expression that was read: what is in it is of the right kind.
#[derive(Debug)]
pub(super) enum Node {
    Literal(CelValue<'static>),
    Attribute(CelAttribute),
    Entry(CelAttribute, Box<Node>),
    Has(Box<Node>),
    Not(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Choice(Box<[Node; 3]>),
    Compare(Comparison, Box<[Node; 2]>),
    Calculate(Arithmetic, Box<[Node; 2]>),
    Negate(Box<Node>),
    /// Among these.
    In(Box<Node>, Vec<Node>),
    /// In a list that a map has under a key: the item and the key.
    HasItem(CelAttribute, Box<[Node; 2]>),
    Text(TextTest, Box<[Node; 2]>),
    Matches(Box<Node>, FullRegex),
    Size(Box<Node>),
    ToText(Box<Node>),
    ToInt(Box<Node>),
}

impl Comparison {
    fn is_of_equality(self) -> bool {
        matches!(self, Comparison::Equal | Comparison::Unequal)
    }
}

impl Node {
    /// `None` where a fact is missing, or a number is too large. Each part is asked once at most: one that is asked twice is asked
    /// for twice as long with each bracket around it.
    pub(super) fn value<'a>(&'a self, facts: &'a dyn Facts) -> Option<CelValue<'a>> {
        let is_so = |node: &'a Node| match node.value(facts) {
            Some(CelValue::Bool(is_so)) => Some(is_so),
            _ => None,
        };
        let both = |nodes: &'a [Node; 2]| Some((nodes[0].value(facts)?, nodes[1].value(facts)?));
        let in_doubt = || {
            facts.note_doubt();
            None
        };
        // A text that is not there passes no test.
        let no_text = || facts.are_total().then_some(CelValue::Bool(false));
        Some(match self {
            Node::Literal(value) => value.clone(),
            Node::Attribute(attribute) => facts.get(*attribute)?,
            Node::Entry(map, key) => match key.value(facts)? {
                CelValue::Text(key) => CelValue::Text(facts.entry(*map, &key)?),
                _ => return None,
            },
            Node::Has(node) => CelValue::Bool(match &**node {
                Node::Entry(map, key) => match key.value(facts) {
                    Some(CelValue::Text(key)) => facts.has_entry(*map, &key),
                    _ => false,
                },
                node => node.value(facts).is_some(),
            }),
            Node::Not(node) => CelValue::Bool(!is_so(node)?),
            // One side may decide alone, whatever the other one lacks.
            Node::And(a, b) => match (is_so(a), || is_so(b)) {
                (Some(false), _) => CelValue::Bool(false),
                (a, b) => match (a, b()) {
                    (_, Some(false)) => CelValue::Bool(false),
                    (Some(true), Some(true)) => CelValue::Bool(true),
                    _ => return None,
                },
            },
            Node::Or(a, b) => match (is_so(a), || is_so(b)) {
                (Some(true), _) => CelValue::Bool(true),
                (a, b) => match (a, b()) {
                    (_, Some(true)) => CelValue::Bool(true),
                    (Some(false), Some(false)) => CelValue::Bool(false),
                    _ => return None,
                },
            },
            Node::Choice(nodes) => match is_so(&nodes[0])? {
                true => nodes[1].value(facts)?,
                false => nodes[2].value(facts)?,
            },
            Node::Compare(comparison, nodes) => {
                let order = match (nodes[0].value(facts), nodes[1].value(facts)) {
                    (Some(a), Some(b)) => a.compare(&b),
                    _ if comparison.is_of_equality() && facts.are_total() => None,
                    _ => return None,
                };
                CelValue::Bool(match comparison {
                    Comparison::Equal => order == Some(Ordering::Equal),
                    Comparison::Unequal => order != Some(Ordering::Equal),
                    Comparison::Less => order == Some(Ordering::Less),
                    Comparison::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
                    Comparison::Greater => order == Some(Ordering::Greater),
                    Comparison::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
                })
            }
            Node::Calculate(arithmetic, nodes) => {
                let (a, b) = both(nodes)?;
                calculate(*arithmetic, a, b).or_else(in_doubt)?
            }
            Node::Negate(node) => match node.value(facts)? {
                CelValue::Int(number) => number.checked_neg().map(CelValue::Int).or_else(in_doubt)?,
                CelValue::Double(number) => CelValue::Double(-number),
                _ => return None,
            },
            Node::In(node, list) => {
                let value = match node.value(facts) {
                    Some(value) => value,
                    None if facts.are_total() => return Some(CelValue::Bool(false)),
                    None => return None,
                };
                let is_it =
                    |one: &Node| one.value(facts).is_some_and(|one| one.compare(&value) == Some(Ordering::Equal));
                CelValue::Bool(list.iter().any(is_it))
            }
            Node::HasItem(map, nodes) => match both(nodes)? {
                (CelValue::Text(item), CelValue::Text(key)) => CelValue::Bool(facts.has_item(*map, &key, &item)?),
                _ => return None,
            },
            Node::Text(test, nodes) => {
                let Some(text) = nodes[0].value(facts) else { return no_text() };
                let (CelValue::Text(text), CelValue::Text(part)) = (text, nodes[1].value(facts)?) else { return None };
                CelValue::Bool(match test {
                    TextTest::Contains => text.contains(&*part),
                    TextTest::StartsWith => text.starts_with(&*part),
                    TextTest::EndsWith => text.ends_with(&*part),
                })
            }
            Node::Matches(node, regex) => match node.value(facts) {
                Some(CelValue::Text(text)) => CelValue::Bool(regex.is_match(text.as_bytes())),
                Some(_) => return None,
                None => return no_text(),
            },
            Node::Size(node) => match node.value(facts)? {
                CelValue::Text(text) => CelValue::Int(i64::try_from(text.chars().count()).ok()?),
                _ => return None,
            },
            Node::ToText(node) => CelValue::Text(node.value(facts)?.to_string().into()),
            Node::ToInt(node) => match node.value(facts)? {
                CelValue::Int(number) => CelValue::Int(number),
                CelValue::Double(number) if number.abs() < 9e18 => CelValue::Int(number as i64),
                CelValue::Text(text) => text.parse().ok().map(CelValue::Int).or_else(in_doubt)?,
                CelValue::Time(nanos) => CelValue::Int(nanos / 1_000_000_000),
                _ => return in_doubt(),
            },
        })
    }
}

fn calculate<'a>(arithmetic: Arithmetic, a: CelValue<'a>, b: CelValue<'a>) -> Option<CelValue<'a>> {
    use CelValue::{Double, Duration, Int, Text};
    let whole = |a: i64, b: i64| match arithmetic {
        Arithmetic::Add => a.checked_add(b),
        Arithmetic::Subtract => a.checked_sub(b),
        Arithmetic::Multiply => a.checked_mul(b),
        Arithmetic::Divide => a.checked_div(b),
        Arithmetic::Remainder => a.checked_rem(b),
    };
    Some(match (a, b) {
        (Int(a), Int(b)) => Int(whole(a, b)?),
        (Duration(a), Duration(b)) => Duration(whole(a, b)?),
        (Double(a), Double(b)) => Double(match arithmetic {
            Arithmetic::Add => a + b,
            Arithmetic::Subtract => a - b,
            Arithmetic::Multiply => a * b,
            Arithmetic::Divide => a / b,
            Arithmetic::Remainder => return None,
        }),
        // Texts of clients, put together as often as the expression says.
        (Text(a), Text(b)) if arithmetic == Arithmetic::Add && a.len() + b.len() <= LONGEST_TEXT => Text(a + b),
        _ => return None,
    })
}
