//! `mesh-control schema`: what may be written, for editors and for Kubernetes.

use anyhow::bail;

use crate::config::schemas::{custom_resource, json_schema, json_schema_of_all};
use crate::config::support::ObjectKind;

/// Prints what may be written in objects, as it is read: JSON Schema for editors, or CustomResourceDefinitions of the kinds that
/// are our own.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// A kind; without it, all.
    #[arg(value_name = "KIND", value_parser = kind)]
    kind: Option<ObjectKind>,
    /// In which form.
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORM")]
    form: Form,
}

/// What is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// JSON Schema (2020-12).
    #[default]
    JsonSchema,
    /// CustomResourceDefinitions, as YAML for `kubectl apply`.
    Crd,
}

fn kind(text: &str) -> Result<ObjectKind, String> {
    let found = ObjectKind::ALL.into_iter().find(|kind| kind.title().eq_ignore_ascii_case(text));
    found.ok_or_else(|| format!("there are {}", ObjectKind::ALL.map(ObjectKind::title).join(", ")))
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let text = match (args.form, args.kind) {
        (Form::JsonSchema, None) => pretty(&json_schema_of_all())?,
        (Form::JsonSchema, Some(kind)) => pretty(&json_schema(kind))?,
        (Form::Crd, None) => ObjectKind::OWN.into_iter().filter_map(custom_resource).collect::<Vec<_>>().join("---\n"),
        (Form::Crd, Some(kind)) => match custom_resource(kind) {
            Some(text) => text,
            None => bail!("{} is none of our own: whoever defines it has its CustomResourceDefinition", kind.name()),
        },
    };
    Ok(super::say(&text)?)
}

fn pretty(schema: &serde_json::Value) -> serde_json::Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(schema)?))
}
