//! From words to an expression whose every part is of the right kind.

use std::collections::BTreeSet;

use http::HeaderName;

use super::attributes::{CelAttribute, Kind, Moment};
use super::eval::{Arithmetic, CelValue, Comparison, Node, TextTest};
use super::lex::{Placed, Token, fault, lex};
use super::{CelExpression, CelFault, LONGEST_EXPRESSION};
use crate::model::FullRegex;

/// How deep brackets may stand in each other.
const DEEPEST: usize = 32;
/// Of how many parts an expression may be.
const MOST_PARTS: usize = 256;

pub(super) fn condition(text: &str) -> Result<CelExpression, CelFault> {
    bool_of(text, whole(text, Reader::Telemetry)?)
}

/// A condition of a rule on requests.
pub(super) fn rule(text: &str) -> Result<CelExpression, CelFault> {
    bool_of(text, whole(text, Reader::Rule)?)
}

fn bool_of(text: &str, (expression, kind): (CelExpression, Kind)) -> Result<CelExpression, CelFault> {
    match kind {
        Kind::Bool => Ok(expression),
        kind => Err(fault(text, 0, format!("it is {}, and a condition is a bool", kind.name()))),
    }
}

/// What a label of a metric is set to.
pub(super) fn label(text: &str) -> Result<CelExpression, CelFault> {
    one_value(text, whole(text, Reader::Label)?)
}

/// What requests are told apart by.
pub(super) fn key(text: &str) -> Result<CelExpression, CelFault> {
    let expression = one_value(text, whole(text, Reader::Key)?)?;
    match expression {
        one if one.looks_at_answer => Err(fault(text, 0, "requests are counted before there is an answer")),
        one if one.is_constant() => Err(fault(text, 0, "it is the same for every request")),
        one => Ok(one),
    }
}

fn one_value(text: &str, (expression, kind): (CelExpression, Kind)) -> Result<CelExpression, CelFault> {
    match kind {
        Kind::Map => Err(fault(text, 0, "it is a map, and not one value: name a key, as in request.headers['x']")),
        _ => Ok(expression),
    }
}

fn whole(text: &str, reader: Reader) -> Result<(CelExpression, Kind), CelFault> {
    if text.len() > LONGEST_EXPRESSION {
        return Err(fault(text, 0, format!("is longer than {LONGEST_EXPRESSION} bytes")));
    }
    let tokens = lex(text)?;
    let (rewrites, moments) = (Vec::new(), [None, None]);
    let (needs_head, needs_token, is_constant) = (false, false, true);
    let mut parser = Parser {
        text,
        tokens,
        at: 0,
        depth: 0,
        parts: 0,
        needs_head,
        needs_token,
        is_constant,
        reader,
        moments,
        rewrites,
    };
    let typed = parser.expression()?;
    let next = parser.peek();
    if next.token != Token::End {
        let message = format!("{} is not expected here", parser.shown(&next));
        return Err(fault(text, next.start, message));
    }
    let [of_request, of_answer] = parser.moments;
    if let (Some((at, attribute)), Some(_)) = (of_request, of_answer) {
        let message = format!("{} is not known any more when there is an answer", attribute.path());
        return Err(fault(text, at, message));
    }
    let standard = parser.standard();
    let expression = CelExpression {
        text: standard.into(),
        root: typed.node.into(),
        needs_head: parser.needs_head,
        looks_at_answer: of_answer.is_some(),
        needs_token: parser.needs_token,
        is_constant: parser.is_constant,
    };
    Ok((expression, typed.kind))
}

/// What an expression is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// Access logs, when a request is over; Envoys read them, too.
    Telemetry,
    /// Labels of metrics, when a request is over.
    Label,
    /// Rules on requests.
    Rule,
    /// Limits: what requests are told apart by.
    Key,
}

struct Parser<'t> {
    text: &'t str,
    tokens: Vec<Placed>,
    at: usize,
    depth: usize,
    parts: usize,
    needs_head: bool,
    needs_token: bool,
    is_constant: bool,
    reader: Reader,
    /// What rules know of a request only while it is decided on, and what only when there is an answer: the first of each.
    moments: [Option<(usize, CelAttribute)>; 2],
    /// Parts of the text that other readers know by other words, in order.
    rewrites: Vec<(usize, usize, String)>,
}

/// A part of an expression.
struct Typed {
    node: Node,
    kind: Kind,
    /// Where it begins, in bytes.
    at: usize,
}

type Read = Result<Typed, CelFault>;

impl Parser<'_> {
    fn peek(&self) -> Placed {
        let end = Placed { token: Token::End, start: self.text.len(), end: self.text.len() };
        self.tokens.get(self.at).cloned().unwrap_or(end)
    }

    fn next(&mut self) -> Placed {
        let next = self.peek();
        self.at += 1;
        next
    }

    fn shown(&self, placed: &Placed) -> String {
        match self.text.get(placed.start..placed.end) {
            Some("") | None => "the end".to_owned(),
            Some(word) => format!("`{word}`"),
        }
    }

    fn wrong<T>(&self, at: usize, message: impl Into<String>) -> Result<T, CelFault> {
        Err(fault(self.text, at, message))
    }

    /// Takes one of these marks, if it is the next word.
    fn mark(&mut self, marks: &[&'static str]) -> Option<&'static str> {
        let Token::Mark(mark) = self.peek().token else { return None };
        marks.contains(&mark).then(|| {
            self.at += 1;
            mark
        })
    }

    fn expect(&mut self, mark: &'static str) -> Result<usize, CelFault> {
        let next = self.next();
        match next.token {
            Token::Mark(found) if found == mark => Ok(next.end),
            _ => self.wrong(next.start, format!("expected `{mark}`, found {}", self.shown(&next))),
        }
    }

    fn made(&mut self, at: usize, kind: Kind, node: Node) -> Read {
        self.parts += 1;
        match self.parts > MOST_PARTS {
            true => self.wrong(at, format!("an expression has {MOST_PARTS} parts at most")),
            false => Ok(Typed { node, kind, at }),
        }
    }

    fn of_kind(&self, typed: Typed, kind: Kind) -> Read {
        match typed.kind == kind {
            true => Ok(typed),
            false => self.wrong(typed.at, format!("expected {}, found {}", kind.name(), typed.kind.name())),
        }
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, CelFault>) -> Result<T, CelFault> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return self.wrong(self.peek().start, format!("an expression is {DEEPEST} deep at most"));
        }
        let read = read(self);
        self.depth -= 1;
        read
    }

    fn expression(&mut self) -> Read {
        self.deeper(|parser| {
            let condition = parser.either()?;
            if parser.mark(&["?"]).is_none() {
                return Ok(condition);
            }
            let condition = parser.of_kind(condition, Kind::Bool)?;
            let yes = parser.expression()?;
            parser.expect(":")?;
            let no = parser.expression()?;
            let no = parser.of_kind(no, yes.kind)?;
            parser.made(condition.at, yes.kind, Node::Choice(Box::new([condition.node, yes.node, no.node])))
        })
    }

    fn either(&mut self) -> Read {
        let mut left = self.both()?;
        while self.mark(&["||"]).is_some() {
            let (a, b) = (self.of_kind(left, Kind::Bool)?, self.both()?);
            let b = self.of_kind(b, Kind::Bool)?;
            left = self.made(a.at, Kind::Bool, Node::Or(a.node.into(), b.node.into()))?;
        }
        Ok(left)
    }

    fn both(&mut self) -> Read {
        let mut left = self.relation()?;
        while self.mark(&["&&"]).is_some() {
            let (a, b) = (self.of_kind(left, Kind::Bool)?, self.relation()?);
            let b = self.of_kind(b, Kind::Bool)?;
            left = self.made(a.at, Kind::Bool, Node::And(a.node.into(), b.node.into()))?;
        }
        Ok(left)
    }

    fn relation(&mut self) -> Read {
        let left = self.sum()?;
        if self.peek().token == Token::Name("in".to_owned()) {
            self.at += 1;
            return self.membership(left);
        }
        let Some(mark) = self.mark(&["==", "!=", "<=", ">=", "<", ">"]) else { return Ok(left) };
        let right = self.sum()?;
        let is_comparable =
            left.kind == right.kind && left.kind != Kind::Map || left.kind.is_number() && right.kind.is_number();
        if !is_comparable {
            let message = format!("{} and {} cannot be compared", left.kind.name(), right.kind.name());
            return self.wrong(left.at, message);
        }
        if matches!(mark, "==" | "!=") {
            self.may_be(&left.node, &right.node, right.at)?;
            self.may_be(&right.node, &left.node, left.at)?;
        }
        let comparison = match mark {
            "==" => Comparison::Equal,
            "!=" => Comparison::Unequal,
            "<=" => Comparison::LessOrEqual,
            ">=" => Comparison::GreaterOrEqual,
            "<" => Comparison::Less,
            _ => Comparison::Greater,
        };
        let node = Node::Compare(comparison, Box::new([left.node, right.node]));
        let made = self.made(left.at, Kind::Bool, node)?;
        match self.mark(&["==", "!=", "<=", ">=", "<", ">"]) {
            Some(_) => self.wrong(made.at, "comparisons in a row: put one into brackets"),
            None => Ok(made),
        }
    }

    /// What follows `in`: a map, or a list of values.
    fn membership(&mut self, left: Typed) -> Read {
        if self.mark(&["["]).is_none() {
            let map = self.sum()?;
            return match (map.kind, map.node) {
                (Kind::Map, Node::Attribute(attribute)) => {
                    let left = self.of_kind(left, Kind::Text)?;
                    let entry = self.under(attribute, left.node, left.at)?;
                    self.made(left.at, Kind::Bool, Node::Has(entry.into()))
                }
                // A claim may be a list.
                (_, Node::Entry(CelAttribute::RequestClaims, key)) => {
                    let left = self.of_kind(left, Kind::Text)?;
                    let nodes = Box::new([left.node, *key]);
                    self.made(left.at, Kind::Bool, Node::HasItem(CelAttribute::RequestClaims, nodes))
                }
                _ => self.wrong(map.at, "expected a list in brackets, or a map such as request.headers"),
            };
        }
        let mut list = Vec::new();
        while self.mark(&["]"]).is_none() {
            if !list.is_empty() {
                self.expect(",")?;
            }
            let item = self.expression()?;
            if item.kind != left.kind {
                let message = format!("{} is looked for, and this is {}", left.kind.name(), item.kind.name());
                return self.wrong(item.at, message);
            }
            self.may_be(&left.node, &item.node, item.at)?;
            list.push(item.node);
        }
        self.made(left.at, Kind::Bool, Node::In(left.node.into(), list))
    }

    fn sum(&mut self) -> Read {
        let mut left = self.product()?;
        while let Some(mark) = self.mark(&["+", "-"]) {
            let right = self.product()?;
            let arithmetic = if mark == "+" { Arithmetic::Add } else { Arithmetic::Subtract };
            left = self.calculation(arithmetic, left, right)?;
        }
        Ok(left)
    }

    fn product(&mut self) -> Read {
        let mut left = self.unary()?;
        while let Some(mark) = self.mark(&["*", "/", "%"]) {
            let right = self.unary()?;
            let arithmetic = match mark {
                "*" => Arithmetic::Multiply,
                "/" => Arithmetic::Divide,
                _ => Arithmetic::Remainder,
            };
            left = self.calculation(arithmetic, left, right)?;
        }
        Ok(left)
    }

    fn calculation(&mut self, arithmetic: Arithmetic, left: Typed, right: Typed) -> Read {
        let is_sum = matches!(arithmetic, Arithmetic::Add | Arithmetic::Subtract);
        let is_fine = match left.kind {
            Kind::Int => true,
            Kind::Double => arithmetic != Arithmetic::Remainder,
            Kind::Duration => is_sum,
            Kind::Text => arithmetic == Arithmetic::Add,
            Kind::Bool | Kind::Time | Kind::Map => false,
        };
        if left.kind != right.kind || !is_fine {
            let message = format!("{} and {} cannot be taken together so", left.kind.name(), right.kind.name());
            return self.wrong(left.at, message);
        }
        self.made(left.at, left.kind, Node::Calculate(arithmetic, Box::new([left.node, right.node])))
    }

    fn unary(&mut self) -> Read {
        let at = self.peek().start;
        match self.mark(&["!", "-"]) {
            Some("!") => {
                let inner = self.deeper(Self::unary)?;
                let inner = self.of_kind(inner, Kind::Bool)?;
                self.made(at, Kind::Bool, Node::Not(inner.node.into()))
            }
            Some(_) => {
                let inner = self.deeper(Self::unary)?;
                if !inner.kind.is_number() {
                    return self.wrong(inner.at, format!("expected a number, found {}", inner.kind.name()));
                }
                self.made(at, inner.kind, Node::Negate(inner.node.into()))
            }
            None => self.member(),
        }
    }

    /// A value with what is asked of it: `.startsWith('x')`, `['key']`, `.key`.
    fn member(&mut self) -> Read {
        let mut value = self.primary()?;
        loop {
            value = if self.mark(&["["]).is_some() {
                let key = self.expression()?;
                let key = self.of_kind(key, Kind::Text)?;
                self.expect("]")?;
                self.entry(value, key.node)?
            } else if self.mark(&["."]).is_some() {
                let name = self.next();
                let Token::Name(word) = &name.token else {
                    return self.wrong(name.start, format!("expected a name, found {}", self.shown(&name)));
                };
                match self.mark(&["("]) {
                    Some(_) => self.method(value, word, name.start)?,
                    None => self.entry(value, Node::Literal(CelValue::Text(word.clone().into())))?,
                }
            } else {
                return Ok(value);
            };
        }
    }

    fn entry(&mut self, map: Typed, key: Node) -> Read {
        match (map.kind, map.node) {
            (Kind::Map, Node::Attribute(attribute)) => {
                let entry = self.under(attribute, key, map.at)?;
                self.made(map.at, Kind::Text, entry)
            }
            (kind, _) => self.wrong(map.at, format!("{} has no fields and no keys", kind.name())),
        }
    }

    /// What a map has under a key. A name that no header has would be missed in every request.
    fn under(&self, map: CelAttribute, key: Node, at: usize) -> Result<Node, CelFault> {
        if let Node::Literal(CelValue::Text(name)) = &key {
            let is_header = HeaderName::from_bytes(name.as_bytes()).is_ok();
            let is_known = match (map, &**name) {
                (CelAttribute::RequestHeaders, ":method" | ":path" | ":authority") => true,
                (CelAttribute::RequestHeaders, ":scheme") => matches!(self.reader, Reader::Rule | Reader::Key),
                (CelAttribute::RequestHeaders | CelAttribute::ResponseHeaders | CelAttribute::ResponseTrailers, _) => {
                    is_header
                }
                _ => true,
            };
            if !is_known {
                return self.wrong(at, format!("there is no header {name} in {}", map.path()));
            }
        }
        Ok(Node::Entry(map, key.into()))
    }

    /// Tells of a text that an attribute never is, where that decides about requests.
    fn may_be(&self, left: &Node, right: &Node, at: usize) -> Result<(), CelFault> {
        let attribute = match left {
            Node::Attribute(attribute) => *attribute,
            Node::Entry(CelAttribute::RequestHeaders, key) if is_text(key, ":method") => CelAttribute::RequestMethod,
            _ => return Ok(()),
        };
        match (self.reader, right) {
            (Reader::Rule | Reader::Key, Node::Literal(CelValue::Text(text))) => {
                attribute.never(text).map_or(Ok(()), |why| self.wrong(at, why))
            }
            _ => Ok(()),
        }
    }

    /// What is asked of a value; its arguments are to come.
    fn method(&mut self, value: Typed, name: &str, at: usize) -> Read {
        let test = match name {
            "contains" => Some(TextTest::Contains),
            "startsWith" => Some(TextTest::StartsWith),
            "endsWith" => Some(TextTest::EndsWith),
            "matches" => None,
            "size" => {
                self.expect(")")?;
                return self.size(value);
            }
            _ => {
                let known = "contains, startsWith, endsWith, matches and size are";
                return self.wrong(at, format!("the function {name} is not supported; {known}"));
            }
        };
        let value = self.of_kind(value, Kind::Text)?;
        let argument = self.expression()?;
        let argument = self.of_kind(argument, Kind::Text)?;
        self.expect(")")?;
        let node = match (test, argument.node) {
            (Some(test), node) => Node::Text(test, Box::new([value.node, node])),
            (None, Node::Literal(CelValue::Text(pattern))) => {
                // The whole of a text that has it somewhere.
                let regex =
                    FullRegex::new(&pattern).and_then(|_| FullRegex::new(&format!("(?s:.*)(?:{pattern})(?s:.*)")));
                match regex {
                    Ok(regex) => Node::Matches(value.node.into(), regex),
                    Err(invalid) => return self.wrong(argument.at, invalid.reason),
                }
            }
            (None, _) => return self.wrong(argument.at, "an expression of matches is written out: a text in quotes"),
        };
        self.made(value.at, Kind::Bool, node)
    }

    fn size(&mut self, value: Typed) -> Read {
        let value = self.of_kind(value, Kind::Text)?;
        self.made(value.at, Kind::Int, Node::Size(value.node.into()))
    }

    fn primary(&mut self) -> Read {
        let next = self.next();
        let at = next.start;
        match next.token {
            Token::Text(text) => self.made(at, Kind::Text, Node::Literal(CelValue::Text(text.into()))),
            Token::Int(number) => self.made(at, Kind::Int, Node::Literal(CelValue::Int(number))),
            Token::Double(number) => self.made(at, Kind::Double, Node::Literal(CelValue::Double(number))),
            Token::Mark("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Name(name) => self.named(name, at),
            Token::Mark(_) | Token::End => self.wrong(at, format!("expected a value, found {}", self.shown(&next))),
        }
    }

    fn named(&mut self, name: String, at: usize) -> Read {
        match name.as_str() {
            "true" | "false" => return self.made(at, Kind::Bool, Node::Literal(CelValue::Bool(name == "true"))),
            _ if self.mark(&["("]).is_some() => return self.function(&name, at),
            _ => {}
        }
        let mut path = name;
        loop {
            if let Some(attribute) = CelAttribute::of(&path) {
                self.known_here(attribute, at)?;
                self.needs_head |= attribute.needs_head();
                self.needs_token |= attribute.is_of_token();
                self.is_constant = false;
                return self.made(at, attribute.kind(), Node::Attribute(attribute));
            }
            let is_part = CelAttribute::ALL
                .iter()
                .any(|(known, _)| known.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('.')));
            let (dot, name) = (self.peek().token, self.tokens.get(self.at + 1).map(|placed| placed.token.clone()));
            match (is_part, dot, name) {
                (true, Token::Mark("."), Some(Token::Name(name))) => {
                    self.at += 2;
                    path = format!("{path}.{name}");
                }
                _ => return self.wrong(at, self.unknown(&path)),
            }
        }
    }

    /// Whether an attribute is known where the expression is for.
    fn known_here(&mut self, attribute: CelAttribute, at: usize) -> Result<(), CelFault> {
        let path = attribute.path();
        match self.reader {
            Reader::Telemetry if attribute.is_of_rules() => {
                return self.wrong(at, format!("{path} is known to rules on requests and to labels of metrics only"));
            }
            Reader::Telemetry | Reader::Label => return Ok(()),
            Reader::Rule | Reader::Key => {}
        }
        if self.reader == Reader::Key && attribute.is_new_each_time() {
            let message =
                format!("{path} is new with each connection or request, so that nothing would be counted together");
            return self.wrong(at, message);
        }
        let slot = match attribute.in_rules() {
            Some(Moment::Both) => return Ok(()),
            Some(Moment::Request) => 0,
            Some(Moment::Answer) => 1,
            None => return self.wrong(at, format!("{path} is not known to rules on requests")),
        };
        self.moments[slot].get_or_insert((at, attribute));
        Ok(())
    }

    /// What there is in the place of an attribute that there is not.
    fn unknown(&self, path: &str) -> String {
        let parent = path.split('.').next().unwrap_or_default();
        let is_like = |known: &&str| known.split('.').next() == Some(parent);
        let is_here = |one: CelAttribute| match self.reader {
            Reader::Telemetry => !one.is_of_rules(),
            Reader::Label => true,
            Reader::Rule | Reader::Key => one.in_rules().is_some(),
        };
        let here = CelAttribute::ALL.iter().filter(|(_, one)| is_here(*one)).map(|(known, _)| *known);
        let known: Vec<&str> = here.clone().filter(is_like).collect();
        if known.is_empty() {
            let parents: BTreeSet<&str> = here.filter_map(|known| known.split('.').next()).collect();
            let parents = parents.into_iter().collect::<Vec<_>>().join(", ");
            return format!(
                "there is no attribute {path} here; they are of {parents}, and a text is in quotes: '{path}'"
            );
        }
        format!("there is no attribute {path} here, there are {}", known.join(", "))
    }

    /// A function; its arguments are to come.
    fn function(&mut self, name: &str, at: usize) -> Read {
        let key_at = self.at;
        let argument = self.expression()?;
        let end = self.expect(")")?;
        let argument_at = argument.at;
        match name {
            "has" => {
                match &argument.node {
                    Node::Attribute(_) if argument.kind != Kind::Map => {}
                    Node::Entry(map, key) => self.has_entry(*map, key, (at, end), key_at)?,
                    _ => return self.wrong(argument_at, "has() takes a field, such as request.useragent"),
                }
                self.made(at, Kind::Bool, Node::Has(argument.node.into()))
            }
            "size" => self.size(argument),
            "string" if argument.kind != Kind::Map => self.made(at, Kind::Text, Node::ToText(argument.node.into())),
            "int" if matches!(argument.kind, Kind::Int | Kind::Double | Kind::Text | Kind::Time) => {
                self.made(at, Kind::Int, Node::ToInt(argument.node.into()))
            }
            "string" | "int" => self.wrong(argument_at, format!("{name}() does not take {}", argument.kind.name())),
            "duration" => match &argument.node {
                Node::Literal(CelValue::Text(text)) => match duration(text) {
                    Some(nanos) => self.made(at, Kind::Duration, Node::Literal(CelValue::Duration(nanos))),
                    None => self.wrong(argument_at, format!("{text:?} is not a duration, such as '1.5s' or '1h30m'")),
                },
                _ => self.wrong(argument_at, "a duration is written out: duration('1s')"),
            },
            _ => {
                let known = "has, size, string, int and duration are";
                self.wrong(at, format!("the function {name} is not supported; {known}"))
            }
        }
    }

    /// `has(m['k'])`, which the standard has as `'k' in m`; `has(m.k)` is standard.
    fn has_entry(
        &mut self,
        map: CelAttribute,
        key: &Node,
        (start, end): (usize, usize),
        first: usize,
    ) -> Result<(), CelFault> {
        let tokens = self.tokens.get(first..self.at).unwrap_or_default();
        let Some(open) = tokens.iter().position(|placed| placed.token == Token::Mark("[")) else { return Ok(()) };
        let written = tokens.get(open + 1).and_then(|placed| self.text.get(placed.start..placed.end));
        match (key, written) {
            (Node::Literal(_), Some(written)) => {
                self.rewrites.push((start, end, format!("({written} in {})", map.path())));
                Ok(())
            }
            _ => self.wrong(start, format!("has() takes a key that is written out; write `KEY in {}`", map.path())),
        }
    }

    fn standard(&self) -> String {
        let (mut standard, mut at) = (String::with_capacity(self.text.len()), 0);
        for (start, end, text) in &self.rewrites {
            standard.push_str(self.text.get(at..*start).unwrap_or_default());
            standard.push_str(text);
            at = *end;
        }
        standard + self.text.get(at..).unwrap_or_default()
    }
}

fn is_text(node: &Node, text: &str) -> bool {
    matches!(node, Node::Literal(CelValue::Text(own)) if own == text)
}

/// `1h30m`, `1.5s`, `-2ms`, in nanoseconds.
fn duration(text: &str) -> Option<i64> {
    const UNITS: [(&str, f64); 7] =
        [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text),
    };
    let mut nanos = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at_checked(number)?;
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(unit)?;
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
        nanos += number.parse::<f64>().ok()? * scale;
        rest = after;
    }
    (nanos < 9e18).then_some((sign * nanos) as i64)
}
