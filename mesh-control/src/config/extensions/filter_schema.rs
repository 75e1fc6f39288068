//! `FilterSchema` (policy.mesh-control/v1alpha1): what the configuration of a filter may be that an application has compiled in
//! and registered under a name. The application prints it (`MeshBuilder::filter_schemas`), so that what is wrong with a
//! `pluginConfig` is found where it is written.

use super::json_schema::Schema;
use crate::config::decode::{Decode, Decoder, Raw, Text, message};
use crate::config::diagnostic::{Code, Severity, Span};
use crate::config::node::Node;

message! {
    /// The specification.
    pub struct FilterSchemaSpec {
        /// The name of the filter.
        filter: Text = "filter" required,
        /// Its schema, as JSON Schema.
        schema: Option<Raw> = "schema" required,
    }
}

/// What the configuration of a filter may be.
#[derive(Clone, Debug, Default)]
pub struct FilterSchema {
    /// Where it is written.
    pub span: Span,
    /// The filter.
    pub filter: String,
    /// What its configuration may be.
    pub schema: Schema,
}

impl Decode for FilterSchema {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let spec = FilterSchemaSpec::decode(node, d)?;
        let raw = spec.schema?;
        match Schema::read(&raw.0) {
            Ok(schema) => Some(FilterSchema { span: spec.span, filter: spec.filter.value, schema }),
            Err((span, message)) => {
                d.report_at(span, "schema", Severity::Error, Code::InvalidValue, message);
                None
            }
        }
    }

    fn fields(prefix: &str, out: &mut Vec<String>) {
        FilterSchemaSpec::fields(prefix, out);
    }

    fn schema() -> crate::config::schema::Schema {
        FilterSchemaSpec::schema()
    }
}
