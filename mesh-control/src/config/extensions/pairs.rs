//! The form of a value that has several parts: `name=value, name=value`.

use crate::config::diagnostic::quoted;
use crate::config::spelling::nearest;

/// The parts of a value, by name.
#[derive(Debug)]
pub struct Pairs<'t>(Vec<(&'t str, &'t str)>);

impl<'t> Pairs<'t> {
    /// Reads them: each of the known names once at most, and none without a value.
    pub fn parse(text: &'t str, known: &[&'static str]) -> Result<Pairs<'t>, String> {
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) if !value.trim().is_empty() => (name.trim(), value.trim()),
                _ => return Err(format!("{} is not `name=value`", quoted(part))),
            };
            if !known.contains(&name) {
                return Err(match nearest(name, known) {
                    Some(near) => format!("{} is not known; did you mean `{near}`?", quoted(name)),
                    None => format!("{} is none of {}", quoted(name), known.join(", ")),
                });
            }
            if pairs.iter().any(|(earlier, _)| *earlier == name) {
                return Err(format!("`{name}` is written twice"));
            }
            pairs.push((name, value));
        }
        Ok(Pairs(pairs))
    }

    /// The value of a name, where it is written.
    pub fn get(&self, name: &str) -> Option<&'t str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_by_name() {
        let pairs = Pairs::parse("host=a.b:80 ,subset = v1", &["host", "subset", "path"]).unwrap();
        assert_eq!((pairs.get("host"), pairs.get("subset"), pairs.get("path")), (Some("a.b:80"), Some("v1"), None));
        for (text, message) in [
            ("", "`` is not `name=value`"),
            ("host", "`host` is not `name=value`"),
            ("host=", "`host=` is not `name=value`"),
            ("host=a,", "`` is not `name=value`"),
            ("hots=a", "`hots` is not known; did you mean `host`?"),
            ("colour=a", "`colour` is none of host, subset, path"),
            ("host=a, host=b", "`host` is written twice"),
        ] {
            assert_eq!(Pairs::parse(text, &["host", "subset", "path"]).unwrap_err(), message, "{text}");
        }
    }
}
