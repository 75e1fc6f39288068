//! YAML as a tree in which every value and every key knows its place in the file.
//!
//! `decode` turns the tree into typed objects and `config::support` walks it to find what is written and
//! not enforced: one parse for both, so nothing that was written can escape both. The limits hold for any
//! input: a bomb, a deep nest or a huge file is an error with a position, in bounded memory.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Location, Spanned};

use super::diagnostic::{Code, Diagnostic, Origin, Severity, Source, Span, is_resource};

/// The largest file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 16 << 20;
const MAX_NODES: usize = 1_000_000;
const MAX_DOCUMENTS: usize = 50_000;
/// Nodes that come out of aliases; each was written by six characters, not by itself.
const MAX_REPLAYED: usize = 200_000;
const MAX_DEPTH: usize = 64;
const STACK_BYTES: usize = 16 << 20;

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it is written.
    pub span: Span,
    /// What it is.
    pub value: Value,
}

/// What a node can be: JSON's types, with integers apart.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing at all.
    Null,
    /// A boolean, in any of YAML 1.1's spellings (as kubectl reads them).
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A string.
    Str(String),
    /// A sequence.
    Seq(Vec<Node>),
    /// A mapping, in the order in which it is written; no key occurs twice.
    Map(Vec<(Key, Node)>),
}

/// The key of a mapping and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// The key.
    pub name: String,
    /// Where it is written.
    pub span: Span,
}

impl Node {
    /// The value under a key, where this is a mapping that has it and it is not null.
    pub fn get(&self, name: &str) -> Option<&Node> {
        self.entries()
            .iter()
            .find(|(key, value)| key.name == name && value.value != Value::Null)
            .map(|(_, value)| value)
    }

    /// The entries of a mapping; none for anything else.
    pub fn entries(&self) -> &[(Key, Node)] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a sequence; none for anything else.
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::Seq(items) => items,
            _ => &[],
        }
    }

    /// The text, where this is a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The same as JSON, without places. Keys are in order.
    pub fn json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::Str(text) => text.as_str().into(),
            Value::Seq(items) => items.iter().map(Node::json).collect(),
            Value::Map(entries) => entries.iter().map(|(key, value)| (key.name.clone(), value.json())).collect(),
        }
    }

    /// The type's name, for messages.
    pub fn type_name(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Str(_) => "a string",
            Value::Seq(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// A part of a text: its bytes, and what it says or why it cannot be read.
pub type Part = (Range<usize>, Result<Vec<Node>, Diagnostic>);

/// Reads every document of a text. Documents that say nothing are left out.
pub fn parse(source: &Source) -> Result<Vec<Node>, Diagnostic> {
    if is_resource(&source.name) {
        return resource(&source.text).map(|node| vec![node]).map_err(|why| unreadable(source, &why));
    }
    on_large_stack(source, || read(&source.text).map_err(|wrong| wrong.in_text(source, &Place::default())))
}

/// An object of a cluster: JSON, without places.
fn resource(text: &str) -> Result<Node, String> {
    let json = serde_json::from_str(text).map_err(|error| error.to_string())?;
    of_json(json, MAX_DEPTH).ok_or_else(|| in_words("limits breached: Depth "))
}

fn of_json(json: serde_json::Value, depth: usize) -> Option<Node> {
    use serde_json::Value as Json;
    let span = Span::default();
    let value = match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(value),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::Str(text),
        Json::Array(items) => {
            let depth = depth.checked_sub(1)?;
            Value::Seq(items.into_iter().map(|item| of_json(item, depth)).collect::<Option<_>>()?)
        }
        Json::Object(entries) => {
            let depth = depth.checked_sub(1)?;
            let entries = entries.into_iter().map(|(name, value)| Some((Key { name, span }, of_json(value, depth)?)));
            Value::Map(entries.collect::<Option<_>>()?)
        }
    };
    Some(Node { span, value })
}

/// Reads a text that is wrong somewhere, each document by itself, so that it is known which one is wrong. A line that begins
/// with `---` begins a document whatever comes before it (YAML 1.2, 9.1.2). `None` where there is only one, or too much.
pub fn parse_each(source: &Source) -> Option<Vec<Part>> {
    let places = documents(&source.text);
    if !(2..=MAX_DOCUMENTS).contains(&places.len()) {
        return None;
    }
    let parts = on_large_stack(source, || {
        let mut left = MAX_NODES;
        let parts = places.iter().map(|place| {
            let text = source.text.get(place.bytes.clone()).unwrap_or_default();
            let mut read = if left == 0 { Err(Wrong::too_much()) } else { read(text) };
            if let Ok(documents) = &mut read {
                documents.iter_mut().for_each(|document| place.shift(document));
                left = left.saturating_sub(documents.iter().map(count).sum());
            }
            (place.bytes.clone(), read.map_err(|wrong| wrong.in_text(source, place)))
        });
        Ok(parts.collect())
    });
    parts.ok()
}

/// The documents of the one part of a text, divided by `---`, that a byte is in: what it costs has nothing to do with the rest.
pub fn parse_around(source: &Source, byte: usize) -> Option<Vec<Node>> {
    if is_resource(&source.name) {
        return None;
    }
    let place = documents(&source.text).into_iter().find(|place| place.bytes.contains(&byte))?;
    parse_part(source, source.text.get(place.bytes.clone())?, &place)
}

/// The item of a list in block style that begins at a place. `None` where it is written otherwise, or says something that is
/// said elsewhere (an alias).
pub fn parse_item(source: &Source, at: Span) -> Option<Node> {
    let Item { line, indent, text } = item(source, at)?;
    let part = format!("{}{text}", " ".repeat(indent));
    let place = Place { lines: at.line.checked_sub(1)?, bytes: line..line + part.len() };
    parse_part(source, &part, &place)?.pop()
}

/// Such an item as it is written, a line each, without its indentation.
pub fn lines_of_item(source: &Source, at: Span) -> Option<Vec<&str>> {
    let Item { indent, text, .. } = item(source, at)?;
    // The first one begins behind its indentation.
    let rest = text.lines().skip(1).map(|line| line.get(indent..).unwrap_or_default());
    let mut lines: Vec<&str> = text.lines().take(1).chain(rest).map(str::trim_end).collect();
    while lines.last().is_some_and(|line| line.is_empty() || line.starts_with('#')) {
        lines.pop();
    }
    Some(lines)
}

/// An item of a list in block style: where its first line begins, how far it is indented, and its text from there on.
struct Item<'s> {
    line: usize,
    indent: usize,
    text: &'s str,
}

fn item(source: &Source, at: Span) -> Option<Item<'_>> {
    let (text, start) = (&source.text, usize::try_from(at.start).ok()?);
    let line = text.get(..start)?.rfind('\n').map_or(0, |end| end + 1);
    let before = text.get(line..start).filter(|before| before.bytes().all(|byte| matches!(byte, b' ' | b'-')))?;
    let indent = Some(before.len()).filter(|indent| *indent > 0)?;
    let belongs = |line: &&str| {
        let said = line.trim_start_matches(' ');
        line.len() - said.len() >= indent || said.trim_end().is_empty() || said.starts_with('#')
    };
    let rest = text.get(start..)?;
    let mut lines = rest.split_inclusive('\n');
    let length = lines.next()?.len() + lines.take_while(belongs).map(str::len).sum::<usize>();
    Some(Item { line, indent, text: rest.get(..length)? })
}

fn parse_part(source: &Source, part: &str, place: &Place) -> Option<Vec<Node>> {
    let read = on_large_stack(source, || read(part).map_err(|wrong| wrong.in_text(source, place)));
    let mut documents = read.ok()?;
    documents.iter_mut().for_each(|document| place.shift(document));
    Some(documents)
}

/// Reading recurses once per level of nesting, with frames that are large in a debug build: the depth limit and this stack
/// belong together, whatever thread the caller is on.
fn on_large_stack<T: Send>(
    source: &Source,
    read: impl FnOnce() -> Result<T, Diagnostic> + Send,
) -> Result<T, Diagnostic> {
    if source.text.len() as u64 > MAX_FILE_BYTES {
        let message = format!("larger than {} MiB; split it", MAX_FILE_BYTES >> 20);
        return Err(unreadable(source, &message));
    }
    let outcome = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("yaml".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, read)
            .map(|handle| handle.join())
    });
    match outcome {
        Ok(Ok(read)) => read,
        Ok(Err(_)) => Err(unreadable(source, "the YAML reader failed on it")),
        Err(error) => Err(unreadable(source, &format!("no thread to read it on: {error}"))),
    }
}

/// Where a part of a text begins, and its bytes.
#[derive(Clone, Debug, Default)]
struct Place {
    /// The lines before it.
    lines: u32,
    bytes: Range<usize>,
}

impl Place {
    /// The place of something in the whole text, by its place in the part.
    fn of(&self, span: Span) -> Span {
        let start = u32::try_from(self.bytes.start).unwrap_or(u32::MAX);
        let (first, end) = (span.start.saturating_add(start), span.end.saturating_add(start));
        match span.line {
            0 => span,
            line => Span { line: line.saturating_add(self.lines), start: first, end, ..span },
        }
    }

    fn shift(&self, node: &mut Node) {
        node.span = self.of(node.span);
        match &mut node.value {
            Value::Seq(items) => items.iter_mut().for_each(|item| self.shift(item)),
            Value::Map(entries) => entries.iter_mut().for_each(|(key, value)| {
                key.span = self.of(key.span);
                self.shift(value);
            }),
            _ => {}
        }
    }
}

/// The documents of a text, as they are divided by `---`.
fn documents(text: &str) -> Vec<Place> {
    let mut places = vec![Place::default()];
    let mut at = 0;
    for (lines, line) in (0..).zip(text.split_inclusive('\n')) {
        if line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])) {
            places.push(Place { lines, bytes: at..at });
        }
        at += line.len();
        if let Some(place) = places.last_mut() {
            place.bytes.end = at;
        }
    }
    // Before the first one there may be comments, and directives.
    let is_said = |line: &str| !line.trim().is_empty() && !line.starts_with(['#', '%']) && !line.starts_with("...");
    places.retain(|place| text.get(place.bytes.clone()).is_some_and(|part| part.lines().any(is_said)));
    places
}

fn count(node: &Node) -> usize {
    let inside: usize = match &node.value {
        Value::Seq(items) => items.iter().map(count).sum(),
        Value::Map(entries) => entries.iter().map(|(_, value)| 1 + count(value)).sum(),
        _ => 0,
    };
    1 + inside
}

/// What is wrong with a text, and where.
struct Wrong {
    span: Span,
    message: String,
}

impl Wrong {
    fn too_much() -> Wrong {
        Wrong { span: Span::default(), message: in_words("limits breached: Nodes ") }
    }

    /// As a finding about the text that this is a part of.
    fn in_text(self, source: &Source, place: &Place) -> Diagnostic {
        let origin = Origin { source: source.clone(), span: place.of(self.span) };
        Diagnostic::at(&origin, Severity::Error, Code::Syntax, self.message)
    }
}

fn read(text: &str) -> Result<Vec<Node>, Wrong> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::Error,
        with_snippet: false,
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED,
            max_replay_stack_depth: 16,
        },
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 4 * MAX_NODES,
            max_documents: MAX_DOCUMENTS,
            max_aliases: 10_000,
            max_anchors: 10_000,
            max_recorded_anchor_events: MAX_REPLAYED,
            max_recorded_anchor_bytes: 8 << 20,
            max_total_scalar_bytes: 16 << 20,
        },
    };
    match serde_saphyr::from_multiple_with_options::<Node>(text, options) {
        Ok(mut documents) => {
            documents.retain(|document| document.value != Value::Null);
            Ok(documents)
        }
        Err(error) => Err(syntax_error(text, &error)),
    }
}

fn unreadable(source: &Source, message: &str) -> Diagnostic {
    Diagnostic::of_file(source.name.clone(), Severity::Error, Code::Syntax, message)
}

fn syntax_error(source: &str, error: &serde_saphyr::Error) -> Wrong {
    let mut span = error.location().map(|location| placed(span_of(location), source)).unwrap_or_default();
    let options = serde_saphyr::render_options! {
        formatter: &serde_saphyr::UserMessageFormatter,
        snippets: serde_saphyr::SnippetMode::Off,
    };
    let text = error.render_with_options(options);
    // The position is a part of the diagnostic: the parser's own would say it twice.
    let message = text.lines().next().unwrap_or("not YAML");
    let message = message.split_once(" at line ").map_or(message, |(message, _)| message);
    let mut message = in_words(message.trim_start_matches("error: "));
    if message.contains("tab")
        && let Some(tab) = tab_in_indentation(source, span.line)
    {
        (span, message) = (tab, "a tab in the indentation; YAML takes spaces only".to_owned());
    }
    Wrong { span, message }
}

/// The first tab before the words of a line, from this line on: the scanner may notice it a token earlier, in the line
/// before.
fn tab_in_indentation(text: &str, from: u32) -> Option<Span> {
    let mut start = 0;
    for (line, content) in (1..).zip(text.split_inclusive('\n')) {
        let indentation = content.len() - content.trim_start_matches([' ', '\t']).len();
        if line >= from
            && let Some(tab) = content.get(..indentation).and_then(|indentation| indentation.find('\t'))
        {
            let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
            let (start, column) = (small(start + tab), small(tab + 1));
            return Some(Span { line, column, start, end: start.saturating_add(1) });
        }
        start += content.len();
    }
    None
}

/// The limits in words: the parser has the names of its own fields for them.
fn in_words(message: &str) -> String {
    let is_limit = |name: &str| message.contains(&format!("limits breached: {name} "));
    match () {
        () if is_limit("Nodes") => format!("more than {MAX_NODES} values in one file; divide it"),
        () if is_limit("Documents") => format!("more than {MAX_DOCUMENTS} documents in one file; divide it"),
        () if is_limit("Depth") || message.starts_with("recursion limit") => {
            format!("nested more than {MAX_DEPTH} levels deep")
        }
        () if is_limit("RecordedAnchorEvents") => "its aliases stand for too much".to_owned(),
        () => message.to_owned(),
    }
}

/// Errors of the scanner have a line and a column only.
fn placed(span: Span, text: &str) -> Span {
    if span.start > 0 || span.line == 0 {
        return span;
    }
    let lines = text.split_inclusive('\n');
    let line_start: usize = lines.clone().take(span.line as usize - 1).map(str::len).sum();
    let line = lines.clone().nth(span.line as usize - 1).unwrap_or_default();
    let within: usize = line.chars().take((span.column as usize).saturating_sub(1)).map(char::len_utf8).sum();
    let start = u32::try_from(line_start + within).unwrap_or(u32::MAX);
    Span { start, end: start.saturating_add(span.end), ..span }
}

fn span_of(location: Location) -> Span {
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let span = location.span();
    let start = span.byte_offset().unwrap_or(0);
    let len = span.byte_len().unwrap_or(0);
    Span {
        line: small(location.line()),
        column: small(location.column()),
        start: small(start),
        end: small(start.saturating_add(len)),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Node { span: span_of(spanned.referenced), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Key, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Key { name: spanned.value, span: span_of(spanned.referenced) })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    // No field takes numbers beyond 63 bits: what they were exactly makes no difference to the message.
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Int))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Int))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Str(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Str(value))
    }

    fn visit_bytes<E: de::Error>(self, value: &[u8]) -> Result<Value, E> {
        match std::str::from_utf8(value) {
            Ok(text) => Ok(Value::Str(text.to_owned())),
            Err(_) => Err(E::custom("binary data is not a string")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element::<Node>()? {
            items.push(item);
        }
        Ok(Value::Seq(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry::<Key, Node>()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source { name: "t.yaml".into(), text: text.into() }
    }

    #[test]
    fn keys_and_values_know_their_places() {
        let docs = parse(&source("a: 1\nbé:\n  - x\n  - 2.5\n---\n---\nc: true\n")).unwrap();
        assert_eq!(docs.len(), 2);
        let (key, value) = &docs[0].entries()[1];
        assert_eq!((key.name.as_str(), key.span.line, key.span.column), ("bé", 2, 1));
        assert_eq!((key.span.start, key.span.end), (5, 8));
        assert_eq!((value.items()[0].span.line, value.items()[0].span.column), (3, 5));
        assert_eq!(value.items()[1].value, Value::Float(2.5));
        assert_eq!(docs[1].get("c").unwrap().span.line, 7);
    }

    #[test]
    fn json_is_yaml() {
        let docs = parse(&source("{\"a\": {\"b\": [1, null, \"x\"]}}")).unwrap();
        assert_eq!(docs[0].get("a").unwrap().get("b").unwrap().items().len(), 3);
    }

    #[test]
    fn an_integer_key_is_its_spelling() {
        let docs = parse(&source("80: a\n")).unwrap();
        assert_eq!(docs[0].entries()[0].0.name, "80");
    }

    #[test]
    fn an_error_of_the_scanner_shows_the_line_that_it_speaks_of() {
        for (text, line) in
            [("a: 1\nb: *nope\n", "b: *nope"), ("é: 1\nb:\n\tc: d\n", "\tc: d"), ("a: 1\r\nb: [\r\nc: 1\r\n", "c: 1")]
        {
            let error = parse(&source(text)).unwrap_err();
            let rendered = error.render();
            let number = text.lines().position(|one| one == line).unwrap() + 1;
            let shown = rendered.lines().find(|shown| shown.trim_start().starts_with(&format!("{number} |")));
            let tail = line.trim_start();
            assert!(shown.is_some_and(|shown| shown.ends_with(tail)) || error.line as usize != number, "{rendered}");
            assert!(rendered.contains(&format!("t.yaml:{}:", error.line)), "{rendered}");
        }
    }

    #[test]
    fn what_is_too_much_is_told_in_words() {
        let deep = format!("{}1{}", "{a: ".repeat(MAX_DEPTH + 9), "}".repeat(MAX_DEPTH + 9));
        assert!(parse(&source(&deep)).unwrap_err().message.contains("levels deep"));
        let bomb: String = ('b'..'i')
            .zip('a'..'h')
            .map(|(name, of)| format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 9].join(",")))
            .collect();
        let bomb = format!("a: &a [x,x,x,x,x,x,x,x,x]\n{bomb}");
        assert!(parse(&source(&bomb)).unwrap_err().message.contains("aliases"));
        let many: String = "---\na: 1\n".repeat(MAX_DOCUMENTS + 1);
        assert!(parse(&source(&many)).unwrap_err().message.contains("divide it"));
    }

    #[test]
    fn broken_and_hostile_texts_are_errors_with_a_position() {
        let deep_flow = "[".repeat(100_000);
        let deep_block: String = (0..2000).map(|n| " ".repeat(n) + "a:\n").collect();
        let mut bomb = String::from("a: &a [x,x,x,x,x,x,x,x,x]\n");
        for (name, of) in "bcdefghi".chars().zip("abcdefgh".chars()) {
            bomb += &format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 9].join(","));
        }
        let many: String = "---\na: 1\n".repeat(MAX_DOCUMENTS + 1);
        let cases = [
            ("a: [", "unclosed"),
            ("a: 1\na: 2\n", "duplicate key"),
            ("a: *b\n", "unknown anchor"),
            ("a: &a [*a]\n", "self-reference"),
            ("a: \u{0}b\n", "NUL"),
            ("a:\n\tb: c\n", "tab"),
            (deep_flow.as_str(), "deep flow"),
            (deep_block.as_str(), "deep block"),
            (bomb.as_str(), "bomb"),
            (many.as_str(), "documents"),
            ("? [a, b]\n: c\n", "a key that is no scalar"),
            ("a: !!binary x%%\n", "bad base64"),
        ];
        for (text, name) in cases {
            let error = match parse(&source(text)) {
                Err(error) => error,
                Ok(_) => panic!("{name} was accepted"),
            };
            assert_eq!(error.code, Code::Syntax, "{name}");
            eprintln!("{error}");
            assert!(error.line > 0, "{name}: {error}");
            assert!(!error.message.is_empty() && error.message.len() < 300, "{name}: {error}");
        }
    }
}
