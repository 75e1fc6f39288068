//! RE2's expressions (github.com/google/re2/wiki/Syntax) in the syntax of the `regex` crate, which is close to it: what
//! both take and read alike goes through as it is.
//!
//! What differs: RE2 has `\Q...\E`, `\C` and octal numbers; a brace that repeats nothing is a brace; in a class there
//! are no classes but `[:name:]`, and no operators; `\d`, `\s`, `\w` and `\b` mean ASCII; every escaped punctuation mark
//! stands for itself.

use std::fmt::Write as _;
use std::iter::Peekable;
use std::str::Chars;

/// An expression of RE2 as the `regex` crate has to have it; the error says what RE2 would not take either. Its groups are
/// closed, so that it stays one expression inside another group.
pub(super) fn translate(pattern: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern;
    let mut open = 0_usize;
    while let Some(c) = rest.chars().next() {
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        rest = match c {
            '\\' => escape(after, &mut out)?,
            '[' => class(after, &mut out)?,
            '(' => {
                open += 1;
                group(after, &mut out)?
            }
            ')' => {
                open = open.checked_sub(1).ok_or("a closing parenthesis that no group has")?;
                out.push(')');
                after
            }
            '{' => brace(after, &mut out)?,
            '}' | ']' => {
                _ = write!(out, "\\{c}");
                after
            }
            c => {
                out.push(c);
                after
            }
        };
    }
    if open == 0 { Ok(out) } else { Err("a group without an end") }
}

/// What follows an opening brace: `n}`, `n,}` or `n,m}`, or the brace is one.
fn brace<'p>(after: &'p str, out: &mut String) -> Result<&'p str, &'static str> {
    /// RE2's limit.
    const MOST: u32 = 1000;
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (count, rest) = after.split_once('}').unwrap_or_default();
    let (least, most) = count.split_once(',').unwrap_or((count, ""));
    if least.is_empty() || !is_number(least) || !is_number(most) {
        out.push_str("\\{");
        return Ok(after);
    }
    let is_too_much = |text: &str| !text.is_empty() && text.parse().is_ok_and(|count: u32| count > MOST);
    if is_too_much(least) || is_too_much(most) {
        return Err("more than 1000 repetitions");
    }
    _ = write!(out, "{{{count}}}");
    Ok(rest)
}

/// What follows an opening parenthesis: the flags that RE2 knows, or a name.
fn group<'p>(after: &'p str, out: &mut String) -> Result<&'p str, &'static str> {
    out.push('(');
    let Some(special) = after.strip_prefix('?') else { return Ok(after) };
    if special.starts_with("P<") || special.starts_with('<') {
        return Ok(after);
    }
    let end = special.find([':', ')']).ok_or("a group without an end")?;
    match special.get(..end) {
        Some(flags) if flags.bytes().all(|flag| b"imsU-".contains(&flag)) => Ok(after),
        _ => Err("a kind of group that RE2 does not have"),
    }
}

/// An escape outside of a class.
fn escape<'p>(after: &'p str, out: &mut String) -> Result<&'p str, &'static str> {
    let c = after.chars().next().ok_or("a backslash at the end")?;
    let rest = after.get(c.len_utf8()..).unwrap_or_default();
    match c {
        'Q' => {
            let (literal, rest) = rest.split_once("\\E").unwrap_or((rest, ""));
            literal.chars().for_each(|c| push_literal(c, out));
            return Ok(rest);
        }
        // The end of a quotation that has not begun.
        'E' => return Ok(rest),
        'C' => out.push_str("(?s-u:.)"),
        'A' | 'z' => _ = write!(out, "\\{c}"),
        'b' | 'B' => _ = write!(out, "(?-u:\\{c})"),
        _ => {
            let mut chars = after.chars().peekable();
            match item(&mut chars)? {
                Item::Char(c) => push_literal(c, out),
                Item::Class(class) => _ = write!(out, "[{class}]"),
            }
            return Ok(remainder(after, chars));
        }
    }
    Ok(rest)
}

fn remainder<'p>(text: &'p str, left: Peekable<Chars<'p>>) -> &'p str {
    let left: usize = left.map(char::len_utf8).sum();
    text.get(text.len() - left..).unwrap_or_default()
}

/// A class in brackets, from behind the opening one.
fn class<'p>(after: &'p str, out: &mut String) -> Result<&'p str, &'static str> {
    const NO_END: &str = "a class without an end";
    let mut chars = after.chars().peekable();
    out.push('[');
    if chars.next_if_eq(&'^').is_some() {
        out.push('^');
    }
    let mut is_first = true;
    loop {
        let c = chars.next().ok_or(NO_END)?;
        if c == ']' && !is_first {
            out.push(']');
            return Ok(remainder(after, chars));
        }
        is_first = false;
        let low = match c {
            '[' if chars.peek() == Some(&':') => {
                let name = named(&mut chars).ok_or("not the name of a class")?;
                out.push_str(&name);
                continue;
            }
            '\\' => match item(&mut chars)? {
                Item::Char(c) => c,
                Item::Class(class) => {
                    out.push_str(&class);
                    continue;
                }
            },
            c => c,
        };
        push_literal(low, out);
        let mut ahead = chars.clone();
        if ahead.next() != Some('-') || ahead.peek().is_none_or(|c| *c == ']') {
            continue;
        }
        chars = ahead;
        let high = match chars.next().ok_or(NO_END)? {
            '\\' => match item(&mut chars)? {
                Item::Char(c) => c,
                Item::Class(_) => return Err("a range that ends in a class"),
            },
            c => c,
        };
        out.push('-');
        push_literal(high, out);
    }
}

/// `[:name:]`, from behind the bracket.
fn named(chars: &mut Peekable<Chars<'_>>) -> Option<String> {
    const NAMES: [&str; 14] = [
        "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper",
        "word", "xdigit",
    ];
    let mut text: String = chars.by_ref().take_while(|c| *c != ']').collect();
    let name = text.strip_prefix(':')?.strip_suffix(':')?;
    if !NAMES.contains(&name.strip_prefix('^').unwrap_or(name)) {
        return None;
    }
    text.insert(0, '[');
    text.push(']');
    Some(text)
}

/// What an escape stands for.
enum Item {
    Char(char),
    /// What stands in a class.
    Class(String),
}

/// What an escape stands for that means the same inside and outside of a class, from behind the backslash.
fn item(chars: &mut Peekable<Chars<'_>>) -> Result<Item, &'static str> {
    const UNKNOWN: &str = "an escape that RE2 does not have";
    let c = chars.next().ok_or("a backslash at the end")?;
    let ascii = |class: &str| Ok(Item::Class(class.to_owned()));
    match c {
        'd' => ascii("0-9"),
        'D' => ascii("[^0-9]"),
        's' => ascii(r"\t\n\x0C\r "),
        'S' => ascii(r"[^\t\n\x0C\r ]"),
        'w' => ascii("0-9A-Za-z_"),
        'W' => ascii("[^0-9A-Za-z_]"),
        'a' => Ok(Item::Char('\x07')),
        'f' => Ok(Item::Char('\x0c')),
        'n' => Ok(Item::Char('\n')),
        'r' => Ok(Item::Char('\r')),
        't' => Ok(Item::Char('\t')),
        'v' => Ok(Item::Char('\x0b')),
        'x' => {
            let digits: String = match chars.next_if_eq(&'{') {
                Some(_) => chars.by_ref().take_while(|c| *c != '}').collect(),
                None => chars.by_ref().take(2).collect(),
            };
            let number = u32::from_str_radix(&digits, 16).map_err(|_| UNKNOWN)?;
            char::from_u32(number).map(Item::Char).ok_or(UNKNOWN)
        }
        '0'..='7' => {
            let mut number = u32::from(c) - u32::from('0');
            // One digit alone would be a reference to a group.
            let is_octal = |c: &char| ('0'..='7').contains(c);
            if c != '0' && !chars.peek().is_some_and(is_octal) {
                return Err("a reference to a group, which RE2 does not have");
            }
            for _ in 0..2 {
                let Some(digit) = chars.next_if(is_octal) else { break };
                number = number * 8 + u32::from(digit) - u32::from('0');
            }
            char::from_u32(number).map(Item::Char).ok_or(UNKNOWN)
        }
        'p' | 'P' => {
            let name = match chars.next_if_eq(&'{') {
                Some(_) => chars.by_ref().take_while(|c| *c != '}').collect(),
                None => chars.next().map(String::from).ok_or(UNKNOWN)?,
            };
            let (name, is_negated) = match name.strip_prefix('^') {
                Some(name) => (name, c == 'p'),
                None => (&*name, c == 'P'),
            };
            Ok(Item::Class(format!("\\{}{{{name}}}", if is_negated { 'P' } else { 'p' })))
        }
        c if c.is_ascii_punctuation() => Ok(Item::Char(c)),
        _ => Err(UNKNOWN),
    }
}

fn push_literal(c: char, out: &mut String) {
    match c {
        c if c.is_ascii_alphanumeric() || !c.is_ascii() => out.push(c),
        c => _ = write!(out, "\\x{:02X}", u32::from(c)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::FullRegex;

    #[test]
    fn what_re2_takes_means_what_it_means_there() {
        for (pattern, matched, other) in [
            ("(?i)/abc", "/aBC", "/abd"),
            ("(?i:É)x", "éx", "éX"),
            ("/users/{id}", "/users/{id}", "/users/id"),
            ("a{2}b{,3}c{1,}", "aab{,3}cc", "aabbbcc"),
            ("a{,}}", "a{,}}", "a"),
            (r"\Qa.b(\E+", "a.b((", "axb("),
            (r"\Q[", "[", "a"),
            (r"a\Eb", "ab", "aEb"),
            ("[[a]+", "[a[", "b"),
            ("[[:alpha:]_]+", "a_", "1"),
            ("[[:^alpha:]]", "1", "a"),
            ("[a&&b]+", "a&b", "c"),
            ("[+--]", ",", "a"),
            ("[a-c-e]+", "b-e", "d"),
            ("[]a]+", "]a", "b"),
            ("[^]a]+", "b", "]"),
            ("[a~~b]", "~", "c"),
            (r"[\d\-x]+", "1-x", "a"),
            (r"[\]\\]+", r"]\", "a"),
            (r"\d+", "1", "\u{661}"),
            (r"\w+", "a_1", "é"),
            (r"[^\W]+", "a", "é"),
            (r"\S", "é", " "),
            (r"\bé", "", "é"),
            (r"\x41\x{42}\103", "ABC", "abc"),
            (r"\<a\>", "<a>", "a"),
            (r"\/\_\-", "/_-", "_"),
            (r"\pL\p{Greek}\P{^Lu}", "aαB", "1αB"),
            (r"\p{^Greek}", "a", "α"),
            ("]}", "]}", "]"),
            (r"(\)[)]\Q)\E)", ")))", ")"),
            ("(?P<n>a)(?<m>b)", "ab", "a"),
            ("(?sU-i)a.*", "a\nb", "b"),
        ] {
            let regex = FullRegex::new(pattern).unwrap_or_else(|invalid| panic!("{pattern}: {invalid}"));
            assert!(matched.is_empty() || regex.is_match(matched.as_bytes()), "{pattern} does not match {matched}");
            assert!(!regex.is_match(other.as_bytes()), "{pattern} matches {other}");
        }
        assert!(FullRegex::new(r"a\Cb").unwrap().is_match(b"a\xffb"));
    }

    #[test]
    fn what_re2_does_not_take_is_refused() {
        for pattern in [
            "(",
            ")",
            "[",
            "[a",
            r"\",
            "a)|(b",
            "(a",
            "(?i:a",
            r"(\)",
            r"(\Q)\E",
            "([)]",
            "(a))(",
            r"(a)\1",
            r"\8",
            r"\Z",
            r"\y",
            "(?=a)",
            "(?!a)",
            "(?x)a b",
            "(?P=n)",
            "[[:nothing:]]",
            "[b-a]",
            "[a--]",
            r"[a-\d]",
            r"\xg",
            r"\x{110000}",
            r"\p{Nothing}",
            "*",
            "[\\Qa\\E]",
            "a{2,1}",
            "a{1001}",
            "a{1,2000}",
        ] {
            assert!(FullRegex::new(pattern).is_err(), "{pattern}");
        }
    }
}
