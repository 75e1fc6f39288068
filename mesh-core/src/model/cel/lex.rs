//! The words of an expression, with the place of each.

use super::CelFault;

/// A word.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Name(String),
    Text(String),
    Int(i64),
    Double(f64),
    /// An operator or a bracket.
    Mark(&'static str),
    End,
}

/// Longer ones first.
const MARKS: [&str; 23] = [
    "&&", "||", "==", "!=", "<=", ">=", "!", "<", ">", "?", ":", "(", ")", "[", "]", ",", ".", "+", "-", "*", "/", "%",
    "{",
];

/// A word, and where it begins and ends, in bytes.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) token: Token,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// What is wrong at a place of a text.
pub(super) fn fault(text: &str, at: usize, message: impl Into<String>) -> CelFault {
    let before = text.get(..at).unwrap_or(text);
    let (line, column) = (before.matches('\n').count() + 1, before.rsplit('\n').next().unwrap_or_default());
    CelFault { line, column: column.chars().count() + 1, message: message.into() }
}

/// All words of a text, the last of which is its end.
pub(super) fn lex(text: &str) -> Result<Vec<Placed>, CelFault> {
    let (mut tokens, mut at) = (Vec::new(), 0);
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let trimmed = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        at += rest.len() - trimmed.len();
        let (token, length) = one(trimmed).map_err(|(offset, message)| fault(text, at + offset, message))?;
        let is_end = token == Token::End;
        tokens.push(Placed { token, start: at, end: at + length });
        if is_end {
            return Ok(tokens);
        }
        at += length;
    }
}

/// The first word, and how long it is.
fn one(rest: &str) -> Result<(Token, usize), (usize, String)> {
    let Some(first) = rest.chars().next() else { return Ok((Token::End, 0)) };
    let quote = |text: &str| text.chars().next().filter(|c| matches!(c, '"' | '\''));
    if let Some(after) = rest.strip_prefix(['r', 'R'])
        && let Some(end) = quote(after)
    {
        let (text, length) = quoted(after, end, true)?;
        return Ok((Token::Text(text), length + 1));
    }
    if let Some(end) = quote(rest) {
        return quoted(rest, end, false).map(|(text, length)| (Token::Text(text), length));
    }
    if first.is_ascii_digit() {
        return number(rest);
    }
    if first.is_ascii_alphabetic() || first == '_' {
        let length = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let name = rest.get(..length).unwrap_or_default();
        return Ok((Token::Name(name.to_owned()), length));
    }
    match MARKS.iter().find(|mark| rest.starts_with(**mark)) {
        Some(mark) => Ok((Token::Mark(mark), mark.len())),
        None => {
            let meant = match first {
                '=' => "; did you mean `==`?",
                '&' => "; did you mean `&&`?",
                '|' => "; did you mean `||`?",
                _ => "",
            };
            Err((0, format!("{first:?} is not expected in an expression{meant}")))
        }
    }
}

fn number(rest: &str) -> Result<(Token, usize), (usize, String)> {
    let length = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(rest.len());
    let word = rest.get(..length).unwrap_or_default();
    let (digits, radix) = match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (word, 10),
    };
    if digits.ends_with(['u', 'U']) {
        return Err((0, format!("{word}: unsigned numbers are not supported")));
    }
    if let Ok(int) = i64::from_str_radix(digits, radix) {
        return Ok((Token::Int(int), length));
    }
    match word.parse::<f64>() {
        Ok(double) if word.contains('.') && !word.ends_with('.') => Ok((Token::Double(double), length)),
        _ => Err((0, format!("{word} is not a number"))),
    }
}

/// A text in quotes, and how long it is with them.
fn quoted(rest: &str, end: char, is_raw: bool) -> Result<(String, usize), (usize, String)> {
    let tripled = format!("{end}{end}{end}");
    if rest.starts_with(&tripled) {
        return Err((0, "texts in three quotes are not supported".to_owned()));
    }
    let (mut text, mut chars) = (String::new(), rest.char_indices().skip(1));
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == end => return Ok((text, at + 1)),
            '\n' => return Err((at, "a line ends inside of a text".to_owned())),
            '\\' if !is_raw => text.push(match chars.next().map(|(_, c)| c) {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some(c @ ('\\' | '"' | '\'' | '`' | '?')) => c,
                _ => return Err((at, "only \\n, \\t, \\r, \\\\ and escaped quotes are supported".to_owned())),
            }),
            c => text.push(c),
        }
    }
    Err((0, "a text has no end".to_owned()))
}
