//! Where the two dialects of regular expressions part: what the library's engine takes and RE2 does not, or takes for
//! something else. Envoy and gRPC's own clients have RE2, and would refuse the resource, or match other requests.
//! (github.com/google/re2/wiki/Syntax)

/// The largest number of repetitions that RE2 has.
const MOST_REPEATED: u32 = 1000;

/// What RE2 would not take as the library's engine does.
pub fn fault(expression: &str) -> Option<&'static str> {
    let mut rest = expression;
    let mut in_class = false;
    while let Some(c) = rest.chars().next() {
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        rest = match (c, in_class) {
            ('\\', _) => {
                let escaped = after.chars().next().unwrap_or_default();
                let behind = after.get(escaped.len_utf8()..).unwrap_or_default();
                match escaped {
                    'u' | 'U' => return Some(r"RE2 has no \u; write \x{...}"),
                    '<' | '>' if !in_class => return Some(r"\< and \> are < and > in RE2; write them so, or \b"),
                    'b' if behind.starts_with('{') => return Some(r"RE2 has no \b{...}"),
                    _ => behind,
                }
            }
            ('[', false) => {
                in_class = true;
                // A `]` that comes first is one of the characters.
                let after = after.strip_prefix('^').unwrap_or(after);
                after.strip_prefix(']').unwrap_or(after)
            }
            (']', true) => {
                in_class = false;
                after
            }
            ('[', true) => match after.strip_prefix(':').and_then(|after| after.split_once(":]")) {
                Some((_, after)) => after,
                None => return Some(r"a [ inside [...] is a character in RE2; write \["),
            },
            ('&' | '-' | '~', true) if after.starts_with(c) => {
                return Some("RE2 has no &&, -- and ~~ inside [...]");
            }
            ('(', false) => match after.strip_prefix('?') {
                Some(flags) if has_other_flags(flags) => return Some("RE2 has the flags i, m, s and U only"),
                _ => after,
            },
            ('{', false) if repeats_too_often(after) => return Some("RE2 repeats at most 1000 times"),
            _ => after,
        };
    }
    None
}

fn has_other_flags(text: &str) -> bool {
    let flags = text.chars().take_while(|c| c.is_ascii_alphabetic() || *c == '-');
    // `(?P<name>` is a group with a name.
    !text.starts_with("P<") && flags.into_iter().any(|flag| !"imsU-".contains(flag))
}

fn repeats_too_often(text: &str) -> bool {
    let numbers = text.split_once('}').map_or("", |(numbers, _)| numbers);
    numbers.split(',').filter_map(|number| number.parse::<u32>().ok()).any(|number| number > MOST_REPEATED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_take_alike_is_no_fault() {
        for expression in [
            "",
            "/a[0-9]+",
            "(?i)/a",
            "(?P<n>a)",
            "(?:a|b)",
            "[]a]",
            "[^]a]",
            "[[:alpha:]_]",
            r"\d{3,1000}",
            r"a\{9999}",
            r"[\[a-]",
            "[a-z-9]",
            "{",
            "[&]",
            r"\\u",
            "é[ü]",
            r"\x{61}",
            "(?s-i:a)",
        ] {
            assert_eq!(fault(expression), None, "{expression}");
        }
    }

    #[test]
    fn what_re2_takes_otherwise_is_one() {
        for expression in [
            "(?x)a b",
            "(?u:a)",
            r"\u{61}",
            r"\<a\>",
            r"\b{start}a",
            "a{1001}",
            "a{1,2000}",
            "[a[b]]",
            "[a&&b]",
            "[a--b]",
            "[a~~b]",
        ] {
            assert!(fault(expression).is_some(), "{expression}");
        }
    }
}
