//! What an expression costs whoever compiles it: about as many bytes of memory, and time in proportion. It is known before
//! anybody does, so that no object takes down a client, or mesh-control itself.

/// Of any expression: its program has parts that do not depend on it.
const BASE: u64 = 6_000;
/// A character, or a class of some.
const CHARACTER: u64 = 60;
/// Nearly any character: all the ways in which UTF-8 writes one.
const ANY: u64 = 1_100;
/// A class of Unicode's, by its name.
const PROPERTY: u64 = 20_000;

/// The cost of an expression of RE2, rather too high than too low.
pub(super) fn cost(pattern: &str) -> u64 {
    // The sum of each group that is open, and its last part, which may be repeated.
    let mut groups = vec![(0_u64, 0_u64)];
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        let part = match c {
            '\\' => escape(rest.next()),
            '.' => ANY,
            '[' => class(&mut rest),
            '(' => {
                groups.push((0, 0));
                continue;
            }
            ')' if groups.len() > 1 => {
                let (sum, last) = groups.pop().unwrap_or_default();
                sum.saturating_add(last)
            }
            '{' => {
                let inside: String = std::iter::from_fn(|| rest.next_if(|c| c.is_ascii_digit() || *c == ',')).collect();
                rest.next_if_eq(&'}');
                let counts = inside.split(',').filter_map(|count| count.parse::<u64>().ok());
                let times = counts.max().unwrap_or(1).saturating_add(1);
                if let Some((_, last)) = groups.last_mut() {
                    *last = last.saturating_mul(times);
                }
                continue;
            }
            _ => CHARACTER,
        };
        if let Some((sum, last)) = groups.last_mut() {
            *sum = sum.saturating_add(*last);
            *last = part;
        }
    }
    let all = groups.into_iter().fold(0_u64, |all, (sum, last)| all.saturating_add(sum).saturating_add(last));
    // Whoever ignores case has up to four letters for one.
    let times = if pattern.contains("(?") { 6 } else { 1 };
    BASE.saturating_add(all.saturating_mul(times))
}

fn escape(c: Option<char>) -> u64 {
    match c {
        Some('p' | 'P') => PROPERTY,
        Some('D' | 'S' | 'W' | 'C') => ANY,
        _ => CHARACTER,
    }
}

/// Reads a class to its end.
fn class(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> u64 {
    let mut cost = if rest.next_if_eq(&'^').is_some() { ANY } else { CHARACTER };
    // One that begins with its end has it as a character.
    rest.next_if_eq(&']');
    while let Some(c) = rest.next() {
        match c {
            ']' => break,
            '\\' => cost = cost.max(escape(rest.next())),
            // `[:alpha:]`
            '[' if rest.next_if_eq(&':').is_some() => while rest.next().is_some_and(|c| c != ']') {},
            c if !c.is_ascii() => cost = cost.max(ANY),
            _ => {}
        }
    }
    cost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_that_of_its_parts_as_often_as_they_are_repeated() {
        for (pattern, expected) in [
            ("", 0),
            ("abc", 3 * CHARACTER),
            ("a.c", 2 * CHARACTER + ANY),
            ("a{10}", 11 * CHARACTER),
            ("ab{2,10}c", 13 * CHARACTER),
            ("(ab){10}", 22 * CHARACTER),
            ("((a.){9}b){9}", (10 * (CHARACTER + ANY) + CHARACTER) * 10),
            ("[a-z]+", 2 * CHARACTER),
            ("[^/]{99}", 100 * ANY),
            ("[]a][[:alpha:]]x", 3 * CHARACTER),
            ("\\pL", PROPERTY + CHARACTER),
            ("[\\]a]", CHARACTER),
            ("(?i)a", 6 * 3 * CHARACTER),
            ("a)b", 3 * CHARACTER),
            ("(a", CHARACTER),
            ("[a", CHARACTER),
        ] {
            assert_eq!(cost(pattern), BASE + expected, "{pattern}");
        }
        assert_eq!(cost(&format!("{}a{}", "(".repeat(40), "){1000}".repeat(40))), u64::MAX);
    }
}
