//! Path templates, as they are written (`envoy.path.match.uri_template`).

use super::{SegmentTemplate, TemplatePart};

impl SegmentTemplate {
    /// A template such as `/users/{id}/*/{rest=**}`: `*` is one segment, `**` any number of them with nothing but literals
    /// behind it, a variable is `{name}` or `{name=pattern}`.
    ///
    /// ```
    /// use mesh_core::model::SegmentTemplate;
    ///
    /// assert_eq!(SegmentTemplate::parse("/users/{id}").unwrap().parts.len(), 2);
    /// assert!(SegmentTemplate::parse("users").is_err());
    /// ```
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.strip_prefix('/').ok_or("must start with /")?;
        let mut parts = Vec::new();
        let mut rest = Some(text);
        while let Some(text) = rest {
            let end = segment_end(text)?;
            let (segment, after) = text.split_at(end);
            rest = after.strip_prefix('/');
            match segment.strip_prefix('{') {
                Some(variable) => {
                    let variable = variable.strip_suffix('}').ok_or("a variable must be a whole segment")?;
                    let (name, pattern) = variable.split_once('=').unwrap_or((variable, "*"));
                    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                    if name.is_empty() || !is_name {
                        return Err("not a variable name");
                    }
                    for part in pattern.split('/') {
                        parts.push(template_part(part)?);
                    }
                }
                None => parts.push(template_part(segment)?),
            }
        }
        let mut after_many = parts.iter().skip_while(|part| **part != TemplatePart::Many).skip(1);
        if after_many.any(|part| matches!(part, TemplatePart::One | TemplatePart::Many)) {
            return Err("behind ** there are literals only");
        }
        Ok(SegmentTemplate { parts })
    }
}

/// Where the first segment ends; a variable may contain slashes.
fn segment_end(text: &str) -> Result<usize, &'static str> {
    let from = if text.starts_with('{') { text.find('}').ok_or("a { without }")? } else { 0 };
    Ok(text.get(from..).and_then(|rest| rest.find('/')).map_or(text.len(), |at| from + at))
}

fn template_part(segment: &str) -> Result<TemplatePart, &'static str> {
    match segment {
        "*" => Ok(TemplatePart::One),
        "**" => Ok(TemplatePart::Many),
        literal if literal.contains(['*', '{', '}', '?', '#']) => Err("* { } ? # cannot be part of a literal"),
        literal => Ok(TemplatePart::Literal(literal.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_of_paths() {
        let literal = |text: &str| TemplatePart::Literal(text.to_owned());
        let cases: &[(&str, Option<Vec<TemplatePart>>)] = &[
            ("/", Some(vec![literal("")])),
            ("/a/b", Some(vec![literal("a"), literal("b")])),
            ("/a/*", Some(vec![literal("a"), TemplatePart::One])),
            ("/a/**", Some(vec![literal("a"), TemplatePart::Many])),
            ("/{country}/x", Some(vec![TemplatePart::One, literal("x")])),
            ("/{rest=**}", Some(vec![TemplatePart::Many])),
            ("/{v=a/*}/b", Some(vec![literal("a"), TemplatePart::One, literal("b")])),
            ("a", None),
            ("/**/a", Some(vec![TemplatePart::Many, literal("a")])),
            ("/**/*", None),
            ("/**/{a}", None),
            ("/**/a/**", None),
            ("/a*", None),
            ("/{a", None),
            ("/{a}b", None),
            ("/{}", None),
            ("/{a=b{c}}", None),
            ("/{a-b}", None),
        ];
        for (text, expected) in cases {
            assert_eq!(SegmentTemplate::parse(text).ok().map(|template| template.parts), *expected, "{text}");
        }
    }
}
