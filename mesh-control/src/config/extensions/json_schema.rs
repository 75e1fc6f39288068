//! JSON Schema, as much of it as says what a configuration may be: what is wrong with a value, where it is written.
//!
//! The words are those of draft 2020-12 that schema generators write. One that is not known here is an error of the schema, since
//! what is passed over would be a check that somebody counts on. `format` and what only describes have no effect, as the standard
//! has it. Expressions are not anchored, and are those of the `regex` crate.

use std::collections::BTreeMap;

use regex::{Regex, RegexBuilder};
use serde_json::Value as Json;

use crate::config::diagnostic::{Span, quoted};
use crate::config::node::{Node, Value};

/// How deep a schema, and what it is compared with, may be; references count.
const DEEPEST: usize = 64;
/// The most that an expression may come to, in bytes.
const LARGEST_REGEX: usize = 1 << 20;
/// How often parts of a schema may be compared with parts of a value, since alternatives multiply.
const MOST_STEPS: usize = 100_000;

/// Below it, each whole number is a float of its own.
const WHOLE_IN_FLOATS: f64 = 9_007_199_254_740_992.0;

/// What is told of one value: nobody reads on, and whoever asks must not make as many words as both are long together.
const MOST_FAULTS: usize = 20;
const MOST_LISTED: usize = 12;
const LONGEST_VALUE: usize = 100;

/// What is wrong, and where it is written.
pub type Fault = (Span, String);

/// A schema.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    root: Part,
    named: BTreeMap<String, Part>,
}

/// One of its parts. What is not said allows everything.
#[derive(Clone, Debug, Default)]
struct Part {
    /// `false`: nothing is allowed.
    is_never: bool,
    reference: Option<String>,
    types: Vec<String>,
    allowed: Option<Vec<Json>>,
    /// At least, more than, at most, less than, a multiple of.
    numbers: [Option<f64>; 5],
    /// Least and most characters of a text, items of a list, entries of a mapping.
    sizes: [[Option<u64>; 2]; 3],
    pattern: Option<Regex>,
    items: Option<Box<Part>>,
    properties: BTreeMap<String, Part>,
    required: Vec<String>,
    others: Option<Box<Part>>,
    all: Vec<Part>,
    any: Vec<Part>,
    one: Vec<Part>,
    not: Option<Box<Part>>,
}

/// Words that describe, and check nothing.
const DESCRIBING: [&str; 13] = [
    "$schema",
    "$id",
    "$comment",
    "title",
    "description",
    "default",
    "example",
    "examples",
    "format",
    "deprecated",
    "readOnly",
    "writeOnly",
    "nullable",
];
const TYPES: [&str; 7] = ["null", "boolean", "object", "array", "number", "string", "integer"];
const NUMBERS: [&str; 5] = ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"];
const SIZES: [[&str; 2]; 3] =
    [["minLength", "maxLength"], ["minItems", "maxItems"], ["minProperties", "maxProperties"]];

impl Schema {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn read(node: &Node) -> Result<Schema, Fault> {
        let mut schema = Schema::default();
        schema.root = part(node, &mut schema.named, 0)?;
        let parts = || schema.named.values().chain([&schema.root]);
        let unknown = parts().find_map(|part| part.unknown_reference(&schema.named)).map(quoted);
        match unknown {
            Some(unknown) => Err((node.span, format!("nothing is defined as {unknown}"))),
            None => Ok(schema),
        }
    }

    /// What is wrong with a value: each place once, with its path below the value.
    pub fn faults(&self, value: &Node) -> Vec<(String, Fault)> {
        let mut check = Check { schema: self, found: Vec::new(), steps: 0 };
        check.value(&self.root, value, "", 0);
        check.found
    }
}

fn part(node: &Node, named: &mut BTreeMap<String, Part>, depth: usize) -> Result<Part, Fault> {
    let fault = |node: &Node, message: &str| Err((node.span, message.to_owned()));
    if depth > DEEPEST {
        return fault(node, "the schema is too deep");
    }
    let entries = match &node.value {
        Value::Bool(is_any) => return Ok(Part { is_never: !is_any, ..Part::default() }),
        Value::Map(entries) => entries,
        _ => return fault(node, "a schema is a mapping, or true or false"),
    };
    let mut read = Part::default();
    for (key, value) in entries {
        let one = |value: &Node, named: &mut BTreeMap<String, Part>| part(value, named, depth + 1);
        let each = |value: &Node, named: &mut BTreeMap<String, Part>| -> Result<Vec<Part>, Fault> {
            match value.items() {
                [] => Err((value.span, "a list of schemas is expected".to_owned())),
                items => items.iter().map(|item| part(item, named, depth + 1)).collect(),
            }
        };
        match key.name.as_str() {
            describing if DESCRIBING.contains(&describing) => {}
            "$ref" => read.reference = Some(reference(value)?),
            "$defs" | "definitions" => {
                for (name, value) in value.entries() {
                    let defined = one(value, named)?;
                    named.insert(name.name.clone(), defined);
                }
            }
            "type" => read.types = types(value)?,
            "enum" => read.allowed = Some(value.items().iter().map(Node::json).collect()),
            "const" => read.allowed = Some(vec![value.json()]),
            "pattern" => read.pattern = Some(pattern(value)?),
            "items" => read.items = Some(Box::new(one(value, named)?)),
            "properties" => {
                for (name, value) in value.entries() {
                    let property = one(value, named)?;
                    read.properties.insert(name.name.clone(), property);
                }
            }
            "required" => read.required = texts(value)?,
            "additionalProperties" => read.others = Some(Box::new(one(value, named)?)),
            "allOf" => read.all = each(value, named)?,
            "anyOf" => read.any = each(value, named)?,
            "oneOf" => read.one = each(value, named)?,
            "not" => read.not = Some(Box::new(one(value, named)?)),
            name => {
                let number = NUMBERS.iter().position(|known| *known == name);
                let size = SIZES.iter().zip(&mut read.sizes).find(|(known, _)| known.contains(&name));
                if let Some(slot) = number.and_then(|at| read.numbers.get_mut(at)) {
                    let limit = number_of(value).ok_or_else(|| (value.span, "a number is expected".to_owned()))?;
                    if name == "multipleOf" && limit <= 0.0 {
                        return Err((value.span, "a number above 0 is expected".to_owned()));
                    }
                    *slot = Some(limit);
                } else if let Some((_, [least, most])) = size {
                    let count = number_of(value).filter(|count| *count >= 0.0 && count.fract() == 0.0);
                    let count = count.ok_or_else(|| (value.span, "a whole number from 0 is expected".to_owned()))?;
                    *if name.starts_with("max") { most } else { least } = Some(count as u64);
                } else {
                    return Err((key.span, format!("{} is not checked here: take it out", quoted(name))));
                }
            }
        }
    }
    Ok(read)
}

fn number_of(node: &Node) -> Option<f64> {
    match node.value {
        Value::Int(value) => Some(value as f64),
        Value::Float(value) => Some(value),
        _ => None,
    }
}

fn texts(node: &Node) -> Result<Vec<String>, Fault> {
    let text = |item: &Node| item.as_str().map(str::to_owned).ok_or((item.span, "a text is expected".to_owned()));
    node.items().iter().map(text).collect()
}

fn types(node: &Node) -> Result<Vec<String>, Fault> {
    let types = node.as_str().map_or_else(|| texts(node), |only| Ok(vec![only.to_owned()]))?;
    match types.iter().find(|known| !TYPES.contains(&known.as_str())) {
        Some(unknown) => Err((node.span, format!("{} is no type: there are {}", quoted(unknown), TYPES.join(", ")))),
        None => Ok(types),
    }
}

fn reference(node: &Node) -> Result<String, Fault> {
    let text = node.as_str().unwrap_or_default();
    let name = text.strip_prefix("#/$defs/").or_else(|| text.strip_prefix("#/definitions/"));
    match name {
        Some(name) if !name.contains('/') => Ok(name.to_owned()),
        _ => Err((node.span, "a reference begins with #/$defs/".to_owned())),
    }
}

fn pattern(node: &Node) -> Result<Regex, Fault> {
    let text = node.as_str().unwrap_or_default();
    let regex = RegexBuilder::new(text).size_limit(LARGEST_REGEX).build();
    regex.map_err(|_| (node.span, format!("{} is no expression that is known here", quoted(text))))
}

impl Part {
    fn unknown_reference(&self, named: &BTreeMap<String, Part>) -> Option<&str> {
        let own = self.reference.as_deref().filter(|name| !named.contains_key(*name));
        let boxed = [&self.items, &self.others, &self.not].into_iter().flatten().map(|part| &**part);
        let listed = self.all.iter().chain(&self.any).chain(&self.one).chain(self.properties.values());
        own.or_else(|| boxed.chain(listed).find_map(|part| part.unknown_reference(named)))
    }
}

struct Check<'s> {
    schema: &'s Schema,
    found: Vec<(String, Fault)>,
    steps: usize,
}

impl<'s> Check<'s> {
    fn fault(&mut self, path: &str, node: &Node, message: String) {
        self.found.push((path.to_owned(), (node.span, message)));
    }

    /// Whether a value fits a part, of which nothing is said.
    fn fits(&mut self, part: &'s Part, node: &Node, depth: usize) -> bool {
        let mut alone = Check { schema: self.schema, found: Vec::new(), steps: self.steps };
        alone.value(part, node, "", depth);
        self.steps = alone.steps;
        alone.found.is_empty()
    }

    fn value(&mut self, part: &'s Part, node: &Node, path: &str, depth: usize) {
        if self.found.len() >= MOST_FAULTS {
            return;
        }
        self.steps += 1;
        if depth > DEEPEST || self.steps > MOST_STEPS {
            return self.fault(path, node, "too much to be checked by its schema".to_owned());
        }
        if part.is_never {
            return self.fault(path, node, "nothing is expected here".to_owned());
        }
        if let Some(named) = part.reference.as_ref().and_then(|name| self.schema.named.get(name)) {
            self.value(named, node, path, depth + 1);
        }
        if !part.types.is_empty() && !part.types.iter().any(|kind| is_of_type(node, kind)) {
            let expected = part.types.join(" or ");
            return self.fault(path, node, format!("expected {expected}, found {}", node.type_name()));
        }
        if let Some(allowed) = &part.allowed {
            let value = node.json();
            self.steps += allowed.len();
            if !allowed.iter().any(|one| is_equal(one, &value)) {
                let allowed = listed(allowed.iter().map(|one| short(&one.to_string())), allowed.len());
                self.fault(path, node, format!("{} is none of {allowed}", short(&value.to_string())));
            }
        }
        self.number(part, node, path);
        self.size(part, node, path);
        if let (Some(pattern), Some(text)) = (&part.pattern, node.as_str())
            && !pattern.is_match(text)
        {
            self.fault(path, node, format!("{} does not fit {}", quoted(&short(text)), quoted(pattern.as_str())));
        }
        if let Some(items) = &part.items {
            for (index, item) in node.items().iter().enumerate() {
                self.value(items, item, &format!("{path}[{index}]"), depth + 1);
            }
        }
        self.entries(part, node, path, depth);
        for part in &part.all {
            self.value(part, node, path, depth + 1);
        }
        self.alternatives(part, node, path, depth);
    }

    fn number(&mut self, part: &Part, node: &Node, path: &str) {
        let Some(value) = number_of(node) else { return };
        for (position, limit) in part.numbers.iter().enumerate() {
            let Some(limit) = *limit else { continue };
            let (is_fine, what) = match position {
                0 => (value >= limit, "at least"),
                1 => (value > limit, "more than"),
                2 => (value <= limit, "at most"),
                3 => (value < limit, "less than"),
                _ => (is_multiple(&node.value, limit), "a multiple of"),
            };
            if !is_fine {
                self.fault(path, node, format!("{value} must be {what} {limit}"));
            }
        }
    }

    fn size(&mut self, part: &Part, node: &Node, path: &str) {
        let (size, [least, most], of) = match &node.value {
            Value::Str(text) => (text.chars().count(), part.sizes[0], "characters"),
            Value::Seq(items) => (items.len(), part.sizes[1], "items"),
            Value::Map(entries) => (entries.len(), part.sizes[2], "entries"),
            _ => return,
        };
        let size = size as u64;
        if let Some(least) = least.filter(|least| size < *least) {
            self.fault(path, node, format!("{size} {of} are fewer than {least}"));
        }
        if let Some(most) = most.filter(|most| size > *most) {
            self.fault(path, node, format!("{size} {of} are more than {most}"));
        }
    }

    fn entries(&mut self, part: &'s Part, node: &Node, path: &str, depth: usize) {
        let Value::Map(entries) = &node.value else { return };
        for name in &part.required {
            if !entries.iter().any(|(key, _)| key.name == *name) {
                self.fault(path, node, format!("field `{name}` is missing"));
            }
        }
        for (key, value) in entries {
            self.steps += 1;
            if self.found.len() >= MOST_FAULTS {
                return;
            }
            let name = &key.name;
            let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match (part.properties.get(name), &part.others) {
                (Some(property), _) => self.value(property, value, &below, depth + 1),
                (None, Some(others)) if others.is_never => {
                    let known = listed(part.properties.keys().cloned(), part.properties.len());
                    let message = match part.properties.is_empty() {
                        true => "unknown field; there is none".to_owned(),
                        false => format!("unknown field; there are {known}"),
                    };
                    self.found.push((below, (key.span, message)));
                }
                (None, Some(others)) => self.value(others, value, &below, depth + 1),
                (None, None) => {}
            }
        }
    }

    fn alternatives(&mut self, part: &'s Part, node: &Node, path: &str, depth: usize) {
        if !part.any.is_empty() && !part.any.iter().any(|one| self.fits(one, node, depth + 1)) {
            match part.any.as_slice() {
                // What is wrong with the only one that is not nothing, is of more use.
                [only, nothing] | [nothing, only] if nothing.types == ["null"] => {
                    self.value(only, node, path, depth + 1)
                }
                _ => self.fault(path, node, "it fits none of what may be here".to_owned()),
            }
        }
        if !part.one.is_empty() {
            let fitting = part.one.iter().filter(|one| self.fits(one, node, depth + 1)).count();
            if fitting != 1 {
                self.fault(path, node, format!("it has to fit one of what may be here, and fits {fitting}"));
            }
        }
        if let Some(not) = &part.not
            && self.fits(not, node, depth + 1)
        {
            self.fault(path, node, "it fits what must not be here".to_owned());
        }
    }
}

/// The first of some words, and how many more there are.
fn listed(words: impl Iterator<Item = String>, count: usize) -> String {
    let more = count.checked_sub(MOST_LISTED).filter(|more| *more > 0);
    let words: Vec<String> = words.take(MOST_LISTED).collect();
    words.join(", ") + &more.map(|more| format!(" and {more} more")).unwrap_or_default()
}

fn short(text: &str) -> String {
    match text.char_indices().nth(LONGEST_VALUE) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn is_of_type(node: &Node, kind: &str) -> bool {
    match (&node.value, kind) {
        (Value::Null, "null")
        | (Value::Bool(_), "boolean")
        | (Value::Map(_), "object")
        | (Value::Seq(_), "array")
        | (Value::Str(_), "string")
        | (Value::Int(_), "integer" | "number")
        | (Value::Float(_), "number") => true,
        (Value::Float(value), "integer") => value.fract() == 0.0,
        _ => false,
    }
}

/// 0.3 is a multiple of 0.1, as it is written: what binary fractions lose is no difference.
fn is_multiple(value: &Value, of: f64) -> bool {
    let is_whole = of.fract() == 0.0 && of < WHOLE_IN_FLOATS;
    let value = match *value {
        Value::Int(value) if is_whole => return value.checked_rem(of as i64) == Some(0),
        Value::Int(value) => value as f64,
        Value::Float(value) => value,
        _ => return true,
    };
    let times = value / of;
    (times - times.round()).abs() <= times.abs() * f64::EPSILON * 2.0
}

/// 1 is 1.0; whole numbers that a float cannot tell apart are not the same.
fn is_equal(one: &Json, other: &Json) -> bool {
    if (one.is_i64() || one.is_u64()) && (other.is_i64() || other.is_u64()) {
        return one == other;
    }
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diagnostic::Source;
    use crate::config::node;

    fn node(text: &str) -> Node {
        node::parse(&Source { name: "t".into(), text: text.into() }).unwrap().remove(0)
    }

    #[track_caller]
    fn check(schema: &str, value: &str, expected: &[&str]) {
        let schema = Schema::read(&node(schema)).unwrap();
        let found = schema.faults(&node(value)).into_iter();
        let found: Vec<String> = found.map(|(path, (at, what))| format!("{path}@{}: {what}", at.column)).collect();
        assert_eq!(found, expected, "{value}");
    }

    #[test]
    fn what_is_told_has_nothing_to_do_with_how_large_the_schema_and_the_value_are() {
        let names: String = (0..2000).map(|n| format!("f{n}: {{}}, ")).collect();
        let schema = format!("{{properties: {{{names}}}, additionalProperties: false}}");
        let fields: String = (0..5000).map(|n| format!("x{n}: 1, ")).collect();
        let found = Schema::read(&node(&schema)).unwrap().faults(&node(&format!("{{{fields}}}")));
        assert_eq!(found.len(), MOST_FAULTS);
        assert!(found.iter().all(|(_, (_, what))| what.len() < 200 && what.ends_with("and 1988 more")), "{found:?}");
        let long = "x".repeat(100_000);
        let words: String = (0..2000).map(|n| format!("w{n}, ")).collect();
        let found = Schema::read(&node(&format!("{{enum: [{words}]}}"))).unwrap().faults(&node(&long));
        assert!(found.len() == 1 && found[0].1.1.len() < 300, "{found:?}");
    }

    #[test]
    fn what_is_wrong_is_told_where_it_is_written() {
        let schema = "{type: object, required: [a], additionalProperties: false, properties: {\
             a: {type: integer, minimum: 1, maximum: 9}, b: {type: [string, 'null'], pattern: '^x', maxLength: 3},\
             c: {type: array, minItems: 1, items: {enum: [1, two]}}, d: {exclusiveMinimum: 0, multipleOf: 0.5}}}";
        check(schema, "{a: 1, b: xy, c: [1.0, two], d: 1.5}", &[]);
        check(schema, "{a: 9, b: null}", &[]);
        check(schema, "[]", &["@1: expected object, found a list"]);
        check(schema, "{}", &["@1: field `a` is missing"]);
        check(schema, "{a: 0, z: 1}", &["a@5: 0 must be at least 1", "z@8: unknown field; there are a, b, c, d"]);
        check(schema, "{a: 1.5}", &["a@5: expected integer, found a number"]);
        check(schema, "{a: 2, b: yx}", &["b@11: `yx` does not fit `^x`"]);
        check(schema, "{a: 2, b: xyzt}", &["b@11: 4 characters are more than 3"]);
        check(schema, "{a: 2, c: []}", &["c@11: 0 items are fewer than 1"]);
        check(schema, "{a: 2, c: [1, 3]}", &["c[1]@15: 3 is none of 1, \"two\""]);
        check(schema, "{a: 2, d: 0}", &["d@11: 0 must be more than 0"]);
        for (of, value, holds) in [
            ("0.1", "0.3", true),
            ("0.01", "19.99", true),
            ("0.1", "0.35", false),
            ("2", "9007199254740993", false),
            ("3", "-9", true),
        ] {
            let schema = Schema::read(&node(&format!("{{multipleOf: {of}}}"))).unwrap();
            assert_eq!(schema.faults(&node(value)).is_empty(), holds, "{value} of {of}");
        }
        check("{const: 9007199254740993}", "9007199254740993", &[]);
        check("{const: 9007199254740993}", "9007199254740992", &["@1: 9007199254740992 is none of 9007199254740993"]);
        check("{additionalProperties: false}", "{a: 1}", &["a@2: unknown field; there is none"]);
        check(schema, "{a: 2, d: 0.7}", &["d@11: 0.7 must be a multiple of 0.5"]);
    }

    #[test]
    fn parts_are_put_together_and_may_be_referred_to() {
        let schema = "{anyOf: [{$ref: '#/$defs/n'}, {type: 'null'}], $defs: {n: {type: object, properties: {next: {$ref: '#/$defs/n'}, v: {type: boolean}}}}}";
        check(schema, "{next: {next: {v: true}}}", &[]);
        check(schema, "{next: {next: {v: 3}}}", &["next.next.v@19: expected boolean, found a number"]);
        check("{oneOf: [{minimum: 1}, {maximum: 3}]}", "2", &["@1: it has to fit one of what may be here, and fits 2"]);
        check("{allOf: [{minimum: 1}, {not: {const: 2}}]}", "2", &["@1: it fits what must not be here"]);
        check("{properties: {a: false}, additionalProperties: {type: string}}", "{b: x}", &[]);
        check(
            "{properties: {a: false}, additionalProperties: {type: string}}",
            "{a: 1, b: 2}",
            &["a@5: nothing is expected here", "b@11: expected string, found a number"],
        );
        // Whatever the schema is, comparing ends.
        let schema = "{$ref: '#/$defs/n', $defs: {n: {anyOf: [{$ref: '#/$defs/n'}, {$ref: '#/$defs/n'}]}}}";
        assert!(!Schema::read(&node(schema)).unwrap().faults(&node("1")).is_empty());
    }

    #[test]
    fn a_schema_that_is_not_understood_is_none() {
        for (schema, column, expected) in [
            ("{type: text}", 8, "`text` is no type"),
            ("{minLenght: 1}", 2, "`minLenght` is not checked here"),
            ("{if: {}, then: {}}", 2, "`if` is not checked here"),
            ("{pattern: '('}", 11, "`(` is no expression"),
            ("{$ref: 'other.json'}", 8, "a reference begins with"),
            ("{$ref: '#/$defs/x'}", 1, "nothing is defined as `x`"),
            ("{minItems: -1}", 12, "a whole number"),
            ("{multipleOf: 0}", 14, "a number above 0"),
            ("[]", 1, "a schema is a mapping"),
        ] {
            let (span, message) = Schema::read(&node(schema)).unwrap_err();
            assert!(message.contains(expected) && span.column == column, "{schema}: {} {message}", span.column);
        }
    }
}
