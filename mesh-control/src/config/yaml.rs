//! JSON as YAML in block style, for people to read and to give back.

use std::fmt::Write as _;

use serde_json::Value;

/// Its text, a line or more.
pub(crate) fn yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(_) | Value::Array(_) => block(value, 0, &mut out),
        other => out = format!("{}\n", scalar(other)),
    }
    out
}

fn block(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            for (key, value) in entries {
                // Writing to a String cannot fail.
                let _ = write!(out, "{pad}{}:", plain_or_quoted(key));
                nested(value, indent + 2, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut text = String::new();
                match item {
                    Value::Object(entries) if !entries.is_empty() => block(item, indent + 2, &mut text),
                    Value::Array(items) if !items.is_empty() => block(item, indent + 2, &mut text),
                    other => text = format!("{pad}  {}\n", scalar(other)),
                }
                let _ = write!(out, "{pad}- {}", text.trim_start());
            }
        }
        other => {
            let _ = writeln!(out, "{pad}{}", scalar(other));
        }
    }
}

/// What follows a key.
fn nested(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            out.push('\n');
            block(value, indent, out);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            block(value, indent - 2, out);
        }
        other => {
            let _ = writeln!(out, " {}", scalar(other));
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => plain_or_quoted(text),
        other => other.to_string(),
    }
}

/// A word that no reader of YAML takes for anything else stays as it is; anything else is quoted as in JSON, which YAML knows.
fn plain_or_quoted(text: &str) -> String {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let is_word = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte));
    let means_more = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf"];
    let is_plain = begins && is_word && !means_more.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is_plain { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::config::{Source, load, node};

    fn read(text: &str) -> Option<Value> {
        let text = load::text_of(text.as_bytes().to_vec()).expect("UTF-8");
        node::parse(&Source { name: "a.yaml".into(), text }).expect("YAML").pop().map(|document| document.json())
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[ -~\u{e9}\n\t]{0,12}".prop_map(Value::from),
            Just(json!("yes")),
            Just(json!("1e3")),
            Just(json!("~")),
            Just(Value::Null),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[ -~]{1,8}", inner, 0..4)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_it_was(value in values()) {
            let value = json!({"it": value});
            prop_assert_eq!(read(&yaml(&value)), Some(value));
        }
    }

    #[test]
    fn it_looks_as_people_write_it() {
        let object = json!({"kind": "A", "spec": {"hosts": ["web", "*"], "http": [{"match": [{"a": 1}], "name": "on"}], "x": {}}});
        let expected = "kind: A\nspec:\n  hosts:\n  - web\n  - \"*\"\n  http:\n  - match:\n    - a: 1\n    name: \"on\"\n  x: {}\n";
        assert_eq!(yaml(&object), expected);
    }
}
