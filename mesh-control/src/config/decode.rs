//! From the tree to typed values, strictly: every field by name, every type exact, all faults at once.
//!
//! `message!` declares a message as a plain struct and derives its reader and the list of its fields; a
//! field that is not in the list is an error with its position. A reader that returns `None` has said why.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::diagnostic::{Code, Diagnostic, Origin, Severity, Source, Span, quoted};
use super::node::{Node, Value};
use super::schema::Schema;
use super::spelling::nearest;

/// Reads one document, keeps the path to where it is, collects what it finds.
pub struct Decoder<'a> {
    source: &'a Source,
    object: Option<Arc<str>>,
    path: Vec<Step>,
    found: Vec<Diagnostic>,
    /// How many there are of each severity, those left out included.
    counts: BTreeMap<Severity, usize>,
    idle: BTreeMap<(&'static str, String), (Span, usize)>,
    /// What the expressions of the present object cost so far.
    cost: u64,
    /// The first finding that makes the present object unusable.
    rejection: Option<Diagnostic>,
    /// Whether the last finding was one too many.
    is_left_out: bool,
    /// Whether nobody may see a line of the present object.
    is_concealed: bool,
}

/// Some five thousand small expressions, or thirty as large as one may be.
const MOST_EXPRESSIONS: u64 = 32 << 20;

/// A file that is wrong in more places than this is not read on by anybody. Each severity has its own: notes must not
/// keep errors out.
const MOST_FINDINGS: usize = 200;

enum Step {
    Field(&'static str),
    Key(String),
    Index(usize),
}

/// A value that can be read from YAML.
pub trait Decode: Sized {
    /// Reads the value; `None` where it cannot be, after saying so to the decoder.
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self>;

    /// Appends the dotted paths of the fields below this one; none for a scalar.
    fn fields(_prefix: &str, _out: &mut Vec<String>) {}

    /// What may be written.
    fn schema() -> Schema {
        Schema::Any
    }
}

impl<'a> Decoder<'a> {
    /// A decoder for one document of this text.
    pub fn new(source: &'a Source) -> Decoder<'a> {
        Decoder {
            source,
            object: None,
            path: Vec::new(),
            found: Vec::new(),
            counts: BTreeMap::new(),
            idle: BTreeMap::new(),
            cost: 0,
            rejection: None,
            is_left_out: false,
            is_concealed: false,
        }
    }

    /// From here on, findings are about this object, and paths start anew.
    pub fn object(&mut self, object: Arc<str>) {
        self.object = Some(object);
        self.path.clear();
        self.cost = 0;
        self.is_concealed = false;
    }

    /// From here on, findings about the present object show no line of it.
    pub fn conceal(&mut self) {
        self.is_concealed = true;
    }

    /// Takes the cost of an expression, in bytes, from what the expressions of one object may cost together. Returns whether
    /// there was as much left.
    pub fn afford(&mut self, cost: u64) -> bool {
        self.cost = self.cost.saturating_add(cost);
        self.cost <= MOST_EXPRESSIONS
    }

    /// Everything found, up to a bound.
    pub fn into_found(mut self) -> Vec<Diagnostic> {
        for ((kind, field), (span, count)) in std::mem::take(&mut self.idle) {
            let times = if count > 1 { format!(" (here and {} times more)", count - 1) } else { String::new() };
            let message = format!("without effect in this mesh{times}");
            let origin = Origin { source: self.source.clone(), span };
            let note = Diagnostic::at(&origin, Severity::Info, Code::Ignored, message);
            self.found.push(note.object(kind).field(field));
        }
        for (severity, count) in self.counts {
            if count > MOST_FINDINGS {
                let message = format!("{} more findings like these are left out", count - MOST_FINDINGS);
                let name = self.source.name.clone();
                self.found.push(Diagnostic::of_file(name, severity.min(Severity::Warning), Code::File, message));
            }
        }
        self.found
    }

    /// Notes a field that says nothing to this mesh. Kubernetes writes many by itself: they are told once a file.
    pub fn idle(&mut self, kind: &'static str, field: &str, span: Span) {
        let (_, count) = self.idle.entry((kind, field.to_owned())).or_insert((span, 0));
        *count += 1;
    }

    /// Whether anything found makes the present object unusable.
    pub fn is_rejected(&self) -> bool {
        self.rejection.is_some()
    }

    /// The first finding that makes the present object unusable; from here on, another one is read.
    pub fn take_rejection(&mut self) -> Option<Diagnostic> {
        self.rejection.take()
    }

    /// The text that is being read.
    pub fn source(&self) -> &'a Source {
        self.source
    }

    /// Says something about the value that is being read.
    pub fn report(&mut self, span: Span, severity: Severity, code: Code, message: impl Into<String>) {
        let path = self.path_text();
        self.report_at(span, path, severity, code, message);
    }

    /// Says something about a field by its path.
    pub fn report_at(
        &mut self,
        span: Span,
        path: impl Into<Arc<str>>,
        severity: Severity,
        code: Code,
        message: impl Into<String>,
    ) {
        let mut origin = Origin { source: self.source.clone(), span };
        if self.is_concealed {
            origin.source.text = "".into();
        }
        let mut finding = Diagnostic::at(&origin, severity, code, message);
        finding.object = self.object.clone().filter(|object| !object.is_empty());
        let path = path.into();
        if !path.is_empty() {
            finding.field = Some(path);
        }
        if self.rejection.is_none() && finding.rejects_object() {
            self.rejection = Some(finding.clone());
        }
        let count = self.counts.entry(severity).or_default();
        *count += 1;
        self.is_left_out = *count > MOST_FINDINGS;
        if !self.is_left_out {
            self.found.push(finding);
        }
    }

    /// Says more of the last finding: Istio's code for it, or what to write instead.
    pub fn amend(&mut self, more: impl FnOnce(Diagnostic) -> Diagnostic) {
        if let Some(last) = self.found.pop_if(|_| !self.is_left_out) {
            self.found.push(more(last));
        }
    }

    /// An error about the value that is being read.
    pub fn error(&mut self, span: Span, code: Code, message: impl Into<String>) {
        self.report(span, Severity::Error, code, message);
    }

    /// The value has another type than the field.
    pub fn wrong_type(&mut self, node: &Node, expected: &str) {
        let hint = match node.value {
            Value::Bool(_) | Value::Int(_) | Value::Float(_) if expected == "a string" => "; quote it",
            _ => "",
        };
        let message = format!("expected {expected}, found {}{hint}", node.type_name());
        self.error(node.span, Code::WrongType, message);
        let written = self.source.text.get(node.span.start as usize..node.span.end as usize).map(str::trim);
        if let Some(written) = written.filter(|_| !hint.is_empty()) {
            self.amend(|finding| finding.instead(format!("\"{written}\"")));
        }
    }

    /// Checks that a node is a mapping whose keys are all among `known`, and reports those that are not.
    pub fn message(&mut self, node: &Node, known: &[&'static str]) -> Option<()> {
        let Value::Map(entries) = &node.value else {
            self.wrong_type(node, "a mapping");
            return None;
        };
        for (key, _) in entries {
            if !known.contains(&key.name.as_str()) {
                let mut message = "unknown field".to_owned();
                let is_heard = self.found.len() < MOST_FINDINGS;
                let near = is_heard.then(|| nearest(&key.name, known)).flatten();
                if let Some(near) = near {
                    message.push_str(&format!("; did you mean `{near}`?"));
                }
                let name = quoted(&key.name).trim_matches('`').to_owned();
                let parent = self.path_text();
                let path = if parent.is_empty() { name } else { format!("{parent}.{name}") };
                self.report_at(key.span, path, Severity::Error, Code::UnknownField, message);
                if let Some(near) = near.filter(|near| !entries.iter().any(|(other, _)| other.name == **near)) {
                    self.amend(|finding| finding.instead(near));
                }
            }
        }
        Some(())
    }

    /// Reads a field that may be absent.
    pub fn optional<T: Decode + Default>(&mut self, node: &Node, name: &'static str) -> Option<T> {
        match node.get(name) {
            Some(value) => self.within(Step::Field(name), |d| T::decode(value, d)),
            None => Some(T::default()),
        }
    }

    /// Reads a field that may be absent, by either of its names.
    pub fn optional_by<T: Decode + Default>(
        &mut self,
        node: &Node,
        name: &'static str,
        other: &'static str,
    ) -> Option<T> {
        match (node.get(name), node.get(other)) {
            (Some(_), Some(value)) => {
                let message = format!("only one of `{name}` and `{other}` can be set: they are one field");
                self.error(value.span, Code::InvalidValue, message);
                None
            }
            (None, Some(_)) => self.optional(node, other),
            _ => self.optional(node, name),
        }
    }

    /// Reads a field that must be there.
    pub fn required<T: Decode>(&mut self, node: &Node, name: &'static str) -> Option<T> {
        match node.get(name) {
            Some(value) => self.within(Step::Field(name), |d| T::decode(value, d)),
            None => {
                self.error(node.span, Code::MissingField, format!("field `{name}` is missing"));
                None
            }
        }
    }

    /// Whether what is being read is, or is inside, a field of this name.
    pub fn is_inside(&self, field: &str) -> bool {
        self.path.iter().any(|step| matches!(step, Step::Field(name) if *name == field))
    }

    fn within<R>(&mut self, step: Step, body: impl FnOnce(&mut Self) -> R) -> R {
        self.path.push(step);
        let result = body(self);
        self.path.pop();
        result
    }

    fn path_text(&self) -> String {
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Field(name) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(name);
                }
                Step::Key(name) => path.push_str(&format!("[{}]", quoted(name).trim_matches('`'))),
                Step::Index(index) => path.push_str(&format!("[{index}]")),
            }
        }
        path
    }
}

/// Declares messages: `field: Type = "jsonName" required,`; or `= "jsonName" | "other_name",` where it may be written by another name.
macro_rules! message {
    ($(
        $(#[doc = $doc:literal])*
        $vis:vis struct $name:ident {
            $(
                $(#[doc = $field_doc:literal])*
                $field:ident : $ty:ty = $json:literal $(| $other:literal)? $($required:ident)?,
            )*
        }
    )+) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Debug, Default)]
        $vis struct $name {
            /// Where it is written.
            $vis span: $crate::config::diagnostic::Span,
            $($(#[doc = $field_doc])* $vis $field: $ty,)*
        }

        impl $crate::config::decode::Decode for $name {
            fn decode(
                node: &$crate::config::node::Node,
                d: &mut $crate::config::decode::Decoder<'_>,
            ) -> Option<Self> {
                d.message(node, &[$($json $(, $other)?),*])?;
                $(let $field = $crate::config::decode::message!(@read d, node, $json $(| $other)? $(, $required)?);)*
                Some(Self { span: node.span, $($field: $field?,)* })
            }

            fn fields(prefix: &str, out: &mut Vec<String>) {
                $($crate::config::decode::field_paths::<$ty>(prefix, $json, out);)*
            }

            fn schema() -> $crate::config::schema::Schema {
                $crate::config::schema::Schema::Object(vec![$(
                    $crate::config::schema::Field {
                        name: $json,
                        about: concat!($($field_doc),*),
                        is_required: $crate::config::decode::message!(@is_required $($required)?),
                        schema: <$ty as $crate::config::decode::Decode>::schema(),
                    },
                    $($crate::config::schema::Field {
                        name: $other,
                        about: concat!("Another name of `", $json, "`."),
                        is_required: false,
                        schema: <$ty as $crate::config::decode::Decode>::schema(),
                    },)?
                )*])
            }
        }
    )+};
    (@is_required) => { false };
    (@is_required required) => { true };
    (@read $d:ident, $node:ident, $json:literal) => { $d.optional($node, $json) };
    (@read $d:ident, $node:ident, $json:literal | $other:literal) => { $d.optional_by($node, $json, $other) };
    (@read $d:ident, $node:ident, $json:literal, required) => { $d.required($node, $json) };
}
pub(crate) use message;

/// Declares an enum of words; the first one is the default.
macro_rules! keywords {
    ($(
        $(#[$meta:meta])*
        $vis:vis enum $name:ident {
            $(#[$first_meta:meta])* $first:ident = $first_word:literal,
            $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)*
        }
    )+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $vis enum $name {
            $(#[$first_meta])* #[default] $first,
            $($(#[$variant_meta])* $variant,)*
        }

        impl $name {
            /// The one that this word says.
            pub(crate) fn from_word(word: &str) -> Option<Self> {
                match word {
                    $first_word => Some(Self::$first),
                    $($word => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }

        impl $crate::config::decode::Decode for $name {
            fn decode(
                node: &$crate::config::node::Node,
                d: &mut $crate::config::decode::Decoder<'_>,
            ) -> Option<Self> {
                Self::from_word($crate::config::decode::word(node, d, &[$first_word $(, $word)*])?)
            }

            fn schema() -> $crate::config::schema::Schema {
                $crate::config::schema::Schema::Words(&[$first_word $(, $word)*])
            }
        }
    )+};
}
pub(crate) use keywords;

/// Appends the paths below a field, or the field itself where it is a scalar.
pub fn field_paths<T: Decode>(prefix: &str, name: &str, out: &mut Vec<String>) {
    let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
    let before = out.len();
    T::fields(&path, out);
    if out.len() == before {
        out.push(path);
    }
}

/// Reads one of several words.
pub fn word<'n>(node: &'n Node, d: &mut Decoder<'_>, words: &[&'static str]) -> Option<&'n str> {
    let Some(text) = node.as_str() else {
        d.wrong_type(node, "a string");
        return None;
    };
    if words.contains(&text) {
        return Some(text);
    }
    let message = format!("{} is none of {}", quoted(text), words.join(", "));
    d.error(node.span, Code::InvalidValue, message);
    if let Some(meant) = words.iter().find(|word| word.eq_ignore_ascii_case(text)) {
        d.amend(|finding| finding.instead(*meant));
    }
    None
}

/// A value and where it is written.
#[derive(Clone, Debug, Default)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Where it is written.
    pub span: Span,
}

impl<T> Deref for At<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Decode> Decode for At<T> {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        Some(At { value: T::decode(node, d)?, span: node.span })
    }

    fn schema() -> Schema {
        T::schema()
    }

    fn fields(prefix: &str, out: &mut Vec<String>) {
        T::fields(prefix, out);
    }
}

/// Text and where it is written.
pub type Text = At<String>;

/// Something that is recognised, and whose inside is of no concern here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opaque;

impl Decode for Opaque {
    fn decode(_: &Node, _: &mut Decoder<'_>) -> Option<Self> {
        Some(Opaque)
    }
}

/// A value as it is written, whatever it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Raw(pub Node);

impl Decode for Raw {
    fn decode(node: &Node, _: &mut Decoder<'_>) -> Option<Self> {
        Some(Raw(node.clone()))
    }
}

impl Decode for String {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        match node.as_str() {
            Some(text) => Some(text.to_owned()),
            None => {
                d.wrong_type(node, "a string");
                None
            }
        }
    }

    fn schema() -> Schema {
        Schema::Text
    }
}

impl Decode for bool {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        match node.value {
            Value::Bool(value) => Some(value),
            _ => {
                d.wrong_type(node, "true or false");
                None
            }
        }
    }

    fn schema() -> Schema {
        Schema::Boolean
    }
}

impl Decode for f64 {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        match node.value {
            Value::Int(value) => Some(value as f64),
            Value::Float(value) if value.is_finite() => Some(value),
            _ => {
                d.wrong_type(node, "a number");
                None
            }
        }
    }

    fn schema() -> Schema {
        Schema::Number
    }
}

fn integer(node: &Node, d: &mut Decoder<'_>, range: std::ops::RangeInclusive<i128>) -> Option<i128> {
    let value = match node.value {
        Value::Int(value) => i128::from(value),
        // JSON knows one kind of number: 80.0 is 80.
        Value::Float(value) if value.fract() == 0.0 && value.abs() < 1e15 => value as i128,
        _ => {
            d.wrong_type(node, "a whole number");
            return None;
        }
    };
    if range.contains(&value) {
        return Some(value);
    }
    let message = format!("{value} is not between {} and {}", range.start(), range.end());
    d.error(node.span, Code::InvalidValue, message);
    None
}

macro_rules! integers {
    ($($ty:ty),*) => {$(
        impl Decode for $ty {
            fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
                integer(node, d, i128::from(<$ty>::MIN)..=i128::from(<$ty>::MAX))
                    .and_then(|value| Self::try_from(value).ok())
            }

            fn schema() -> Schema {
                Schema::Integer(<$ty>::MIN.into(), <$ty>::MAX.into())
            }
        }
    )*};
}
integers!(u16, u32, i32, u64, i64);

/// A port number, 1 to 65535.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortNumber(pub u16);

impl Decode for PortNumber {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let number = integer(node, d, 1..=i128::from(u16::MAX))?;
        u16::try_from(number).ok().map(PortNumber)
    }

    fn schema() -> Schema {
        Schema::Integer(1, u16::MAX.into())
    }
}

impl<T: Decode> Decode for Option<T> {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        T::decode(node, d).map(Some)
    }

    fn schema() -> Schema {
        T::schema()
    }

    fn fields(prefix: &str, out: &mut Vec<String>) {
        T::fields(prefix, out);
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let Value::Seq(items) = &node.value else {
            d.wrong_type(node, "a list");
            return None;
        };
        let read: Vec<Option<T>> = items
            .iter()
            .enumerate()
            .map(|(index, item)| d.within(Step::Index(index), |d| T::decode(item, d)))
            .collect();
        read.into_iter().collect()
    }

    fn schema() -> Schema {
        Schema::List(Box::new(T::schema()))
    }

    fn fields(prefix: &str, out: &mut Vec<String>) {
        T::fields(prefix, out);
    }
}

impl<T: Decode> Decode for BTreeMap<String, T> {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            d.wrong_type(node, "a mapping");
            return None;
        };
        let read: Vec<Option<(String, T)>> = entries
            .iter()
            .map(|(key, value)| {
                let name = key.name.clone();
                d.within(Step::Key(name.clone()), |d| T::decode(value, d)).map(|value| (name, value))
            })
            .collect();
        read.into_iter().collect()
    }

    fn schema() -> Schema {
        Schema::Named(Box::new(T::schema()))
    }

    fn fields(prefix: &str, out: &mut Vec<String>) {
        T::fields(prefix, out);
    }
}

impl Decode for Duration {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let Some(text) = node.as_str() else {
            d.wrong_type(node, "a duration such as 1.5s");
            return None;
        };
        match parse_duration(text) {
            Some(duration) => Some(duration),
            None => {
                let message = format!("{} is not a duration such as 1h, 1.5s or 10ms", quoted(text));
                d.error(node.span, Code::InvalidValue, message);
                None
            }
        }
    }

    fn schema() -> Schema {
        Schema::Like(r"^(0|([0-9]*\.?[0-9]+(ns|us|ms|s|m|h))+)$")
    }
}

/// A duration as Istio's YAML writes it: numbers with units, `1h15m`, `1.5s`, `10ms`. Never negative, and
/// below what protobuf can carry (10,000 years).
pub fn parse_duration(text: &str) -> Option<Duration> {
    const LONGEST: f64 = 315_576_000_000.0;
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        if !number.starts_with(|c: char| c.is_ascii_digit()) && !number.starts_with('.') {
            return None;
        }
        let number: f64 = number.parse().ok()?;
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        let nanos_per_unit = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        let seconds = number * nanos_per_unit / 1e9;
        if !(0.0..=LONGEST).contains(&seconds) {
            return None;
        }
        let nanos = (number * nanos_per_unit).round();
        let part = Duration::new((nanos / 1e9) as u64, (nanos % 1e9) as u32);
        total = total.checked_add(part)?;
        rest = after;
    }
    (total.as_secs_f64() <= LONGEST).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::node;

    keywords! {
        /// A colour.
        enum Colour {
            /// Red.
            Red = "RED",
            /// Blue.
            Blue = "BLUE",
        }
    }

    message! {
        /// The inner message.
        struct Inner {
            /// A number.
            port: PortNumber = "port" required,
            /// A colour.
            colour: Colour = "colour",
        }
        /// The outer message.
        struct Outer {
            /// Time.
            timeout: Option<Duration> = "timeout",
            /// Several.
            inner: Vec<Inner> = "inner",
            /// Named ones.
            named: BTreeMap<String, Inner> = "named",
        }
    }

    fn read(text: &str) -> (Option<Outer>, Vec<String>) {
        let source = Source { name: "t".into(), text: text.into() };
        let docs = node::parse(&source).unwrap();
        let mut d = Decoder::new(&source);
        let outer = Outer::decode(&docs[0], &mut d);
        (outer, d.into_found().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_message_reads_into_its_struct() {
        let (outer, found) =
            read("timeout: 1.5s\ninner:\n- port: 80\n- port: 81.0\n  colour: BLUE\nnamed:\n  a: {port: 1}\n");
        assert!(found.is_empty(), "{found:?}");
        let outer = outer.unwrap();
        assert_eq!(outer.span.line, 1);
        assert_eq!(outer.timeout, Some(Duration::from_millis(1500)));
        assert_eq!((outer.inner[1].port.0, outer.inner[1].colour), (81, Colour::Blue));
        assert_eq!(outer.inner[1].span.line, 4);
        assert!(outer.named.contains_key("a"));
    }

    #[test]
    fn every_fault_is_reported_at_its_place_in_one_pass() {
        let (outer, found) =
            read("timeout: 5\ninner:\n- port: 99999\n- colour: GREEN\n  prot: 1\nnamed:\n  x: 3\nTimeOut: 1s\n");
        assert!(outer.is_none());
        assert_eq!(
            found,
            [
                "t:8:1: error[unknown-field]: TimeOut: unknown field; did you mean `timeout`?",
                "t:1:10: error[wrong-type]: timeout: expected a duration such as 1.5s, found a number",
                "t:3:9: error[invalid-value]: inner[0].port: 99999 is not between 1 and 65535",
                "t:5:3: error[unknown-field]: inner[1].prot: unknown field; did you mean `port`?",
                "t:4:3: error[missing-field]: inner[1]: field `port` is missing",
                "t:4:11: error[invalid-value]: inner[1].colour: `GREEN` is none of RED, BLUE",
                "t:7:6: error[wrong-type]: named[x]: expected a mapping, found a number",
            ]
        );
    }

    #[test]
    fn a_field_that_is_null_is_absent() {
        let (outer, found) = read("timeout:\ninner: ~\n");
        assert!(found.is_empty());
        assert!(outer.unwrap().timeout.is_none());
    }

    #[test]
    fn the_paths_of_all_leaves_are_listed() {
        let mut paths = Vec::new();
        Outer::fields("", &mut paths);
        assert_eq!(paths, ["timeout", "inner.port", "inner.colour", "named.port", "named.colour"]);
    }

    #[test]
    fn durations_are_numbers_with_units() {
        for (text, millis) in
            [("1s", 1000), ("1h15m", 4_500_000), ("1.5s", 1500), ("10ms", 10), ("0s", 0), ("0", 0), ("1m0.5s", 60_500)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "-1s", "1", "s", "1x", "1s ", " 1s", "1..2s", "1e3s", "999999999999h", ".s", "∞s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
