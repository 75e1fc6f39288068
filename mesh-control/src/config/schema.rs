//! What may be written, as JSON Schema, and as the structural schema that Kubernetes wants of its own kinds. It is made of the
//! declarations that read the same fields (`decode.rs`), so that it says what is read.

use serde_json::{Map, Value, json};

/// What may stand in a place.
#[derive(Clone, Debug, PartialEq)]
pub enum Schema {
    /// Anything.
    Any,
    /// `true` or `false`.
    Boolean,
    /// A number.
    Number,
    /// A whole number, from the first to the second.
    Integer(i128, i128),
    /// A text.
    Text,
    /// A text that fits an expression.
    Like(&'static str),
    /// One of some words.
    Words(&'static [&'static str]),
    /// A number or a text.
    IntegerOrText,
    /// Several of these.
    List(Box<Schema>),
    /// Such values by any names.
    Named(Box<Schema>),
    /// These fields, and no others.
    Object(Vec<Field>),
    /// One of these fields, or none.
    OneOf(Vec<Field>),
}

/// One field of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub about: &'static str,
    /// Whether it has to be there.
    pub is_required: bool,
    /// What may stand there.
    pub schema: Schema,
}

/// Who reads a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Editors, and whoever knows JSON Schema: other fields are faults.
    Json,
    /// Kubernetes, which takes other fields out and has its own word for what may be anything.
    Kubernetes,
}

impl Schema {
    /// The schema in this form.
    pub fn to_json(&self, reader: Reader) -> Value {
        match self {
            Schema::Any if reader == Reader::Kubernetes => json!({"x-kubernetes-preserve-unknown-fields": true}),
            Schema::Any => json!({}),
            Schema::Boolean => json!({"type": "boolean"}),
            Schema::Number => json!({"type": "number"}),
            Schema::Integer(least, most) => integer(*least, *most, reader),
            Schema::Text => json!({"type": "string"}),
            Schema::Like(pattern) => json!({"type": "string", "pattern": pattern}),
            Schema::Words(words) => json!({"type": "string", "enum": words}),
            Schema::IntegerOrText if reader == Reader::Kubernetes => json!({"x-kubernetes-int-or-string": true}),
            Schema::IntegerOrText => json!({"type": ["integer", "string"]}),
            Schema::List(items) => json!({"type": "array", "items": items.to_json(reader)}),
            Schema::Named(values) => json!({"type": "object", "additionalProperties": values.to_json(reader)}),
            Schema::Object(fields) => object(fields, reader),
            Schema::OneOf(fields) => {
                let mut schema = object(fields, reader);
                if let Value::Object(schema) = &mut schema {
                    schema.insert("maxProperties".to_owned(), json!(1));
                }
                schema
            }
        }
    }
}

fn integer(least: i128, most: i128, reader: Reader) -> Value {
    let mut schema = Map::from_iter([("type".to_owned(), json!("integer"))]);
    // Beyond it no API server can count.
    for (name, bound) in [("minimum", least), ("maximum", most)] {
        let bound = i64::try_from(bound).ok().filter(|bound| ![i64::MIN, i64::MAX].contains(bound));
        schema.extend(bound.map(|bound| (name.to_owned(), json!(bound))));
    }
    if reader == Reader::Kubernetes {
        schema.insert("format".to_owned(), json!("int64"));
    }
    Value::Object(schema)
}

fn object(fields: &[Field], reader: Reader) -> Value {
    let property = |field: &Field| {
        let mut schema = field.schema.to_json(reader);
        if reader == Reader::Json && !field.is_required {
            or_nothing(&mut schema);
        }
        let about = field.about.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Value::Object(schema) = &mut schema
            && !about.is_empty()
        {
            schema.insert("description".to_owned(), json!(about));
        }
        (field.name.to_owned(), schema)
    };
    let mut schema = Map::from_iter([
        ("type".to_owned(), json!("object")),
        ("properties".to_owned(), Value::Object(fields.iter().map(property).collect())),
    ]);
    let required: Vec<&str> = fields.iter().filter(|field| field.is_required).map(|field| field.name).collect();
    if !required.is_empty() {
        schema.insert("required".to_owned(), json!(required));
    }
    if reader == Reader::Json {
        schema.insert("additionalProperties".to_owned(), json!(false));
    }
    Value::Object(schema)
}

/// What is written without a value says nothing, as if it were not written. An API server takes such fields out by itself.
fn or_nothing(schema: &mut Value) {
    if let Some(kind) = schema.get_mut("type") {
        let mut kinds = match kind.take() {
            Value::Array(kinds) => kinds,
            one => vec![one],
        };
        kinds.push(json!("null"));
        *kind = Value::Array(kinds);
    }
    if let Some(Value::Array(words)) = schema.get_mut("enum") {
        words.push(Value::Null);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &'static str, is_required: bool, schema: Schema) -> Field {
        Field { name, about: " Some\n words.", is_required, schema }
    }

    #[test]
    fn kubernetes_gets_a_structural_schema_and_editors_one_that_knows_no_other_fields() {
        let schema = Schema::Object(vec![
            field("port", true, Schema::Integer(1, 65535)),
            field("any", false, Schema::Any),
            field("labels", false, Schema::Named(Box::new(Schema::Text))),
            field("either", false, Schema::IntegerOrText),
            field("large", false, Schema::Integer(0, u64::MAX.into())),
        ]);
        let about = "Some words.";
        let labels = |kind: serde_json::Value| json!({"type": kind, "additionalProperties": {"type": "string"}, "description": about});
        assert_eq!(
            schema.to_json(Reader::Kubernetes),
            json!({
                "type": "object",
                "required": ["port"],
                "properties": {
                    "port": {"type": "integer", "format": "int64", "minimum": 1, "maximum": 65535, "description": about},
                    "any": {"x-kubernetes-preserve-unknown-fields": true, "description": about},
                    "labels": labels(json!("object")),
                    "either": {"x-kubernetes-int-or-string": true, "description": about},
                    "large": {"type": "integer", "format": "int64", "minimum": 0, "description": about},
                },
            })
        );
        assert_eq!(
            schema.to_json(Reader::Json),
            json!({
                "type": "object",
                "required": ["port"],
                "additionalProperties": false,
                "properties": {
                    "port": {"type": "integer", "minimum": 1, "maximum": 65535, "description": about},
                    "any": {"description": about},
                    "labels": labels(json!(["object", "null"])),
                    "either": {"type": ["integer", "string", "null"], "description": about},
                    "large": {"type": ["integer", "null"], "minimum": 0, "description": about},
                },
            })
        );
    }
}
