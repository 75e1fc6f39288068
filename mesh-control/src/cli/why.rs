//! `mesh-control why`: what the name of a rule stands for.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::anyhow;
use mesh_core::state::NO_RULE;
use serde_json::json;

use super::directory::Configuration;
use super::{Format, Printing};
use crate::config::diagnostic::quoted;
use crate::config::file::{Target, Workloads};
use crate::config::node::lines_of_item;
use crate::config::spelling::nearest;
use crate::policy::access::Effect;
use crate::policy::security::NamedRule;

/// Says what a name stands for by which logs, metrics, records of calls and live traces tell which rule decided about a request:
/// what the rule does, for whom, and how and where it is written.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// The name: AuthorizationPolicy/NAMESPACE/NAME#INDEX, or `none`.
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    configuration: Configuration,
    #[command(flatten)]
    printing: Printing,
}

/// What is said of no rule.
const NOBODY: &str =
    "no rule is for the request, and its server has policies that let in (ALLOW): whom none of them is for, is refused";

/// What is said where no name is like the one that is asked for.
const NAMES: &str = "the names are AuthorizationPolicy/NAMESPACE/NAME#INDEX and `none`; where limits and rules on requests are \
                     written, `mesh-control explain` tells for a request";

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = super::runtime()?;
    let _entered = runtime.enter();
    let plane = args.configuration.plane()?;
    let snapshot = plane.snapshot();
    let id = &*args.id;
    let (text, json) = match snapshot.rule_called(id) {
        Some(rule) => said(id, &rule),
        None if id == NO_RULE => (format!("{id}: {NOBODY}\n"), json!({"id": id, "effect": "DENY", "reason": NOBODY})),
        None => {
            let known: Vec<&str> = snapshot.rule_ids().collect();
            let meant = nearest(id, &known).map(|meant| format!("did you mean {}?", quoted(meant)));
            return Err(anyhow!(
                "no rule that is in force is called {}; {}",
                quoted(id),
                meant.unwrap_or_else(|| NAMES.to_owned())
            ));
        }
    };
    match args.printing.format() {
        Format::Text => super::say(&text)?,
        Format::Json => super::say(&format!("{json:#}\n"))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn said(id: &str, rule: &NamedRule<'_>) -> (String, serde_json::Value) {
    let NamedRule { meta, workloads, policy, origin } = rule;
    let effect = match policy.effect {
        Effect::Allow => "ALLOW",
        Effect::Deny => "DENY",
        Effect::Audit => "AUDIT",
        Effect::Ask => "CUSTOM",
    };
    let asked = policy.authorizer.as_ref().map(|authorizer| &*authorizer.name);
    let tried = if policy.is_dry_run { ", which is only tried (istio.io/dry-run)" } else { "" };
    let asks = asked.map(|name| format!(", which asks {name}")).unwrap_or_default();
    let whom = match workloads {
        Workloads::Labelled(labels) if labels.is_empty() => "all workloads".to_owned(),
        Workloads::Labelled(labels) => {
            let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("workloads with {}", labels.join(", "))
        }
        Workloads::OfTargets(targets) => {
            let names: BTreeSet<&str> = targets.iter().map(Target::name).collect();
            format!("workloads of {}", names.into_iter().collect::<Vec<_>>().join(", "))
        }
    };
    let lines = lines_of_item(&origin.source, origin.span).unwrap_or_default();
    let mut text = format!("{id}\n  {origin}\n  {effect}{asks}{tried}: for {whom} of namespace {}\n", meta.namespace);
    for (number, line) in lines.iter().enumerate() {
        text += if number == 0 { "  - " } else { "    " };
        text += line;
        text.push('\n');
    }
    let json = json!({
        "id": id, "origin": origin.to_string(), "effect": effect, "dry_run": policy.is_dry_run, "authorizer": asked,
        "namespace": &*meta.namespace, "workloads": whom, "rule": lines.join("\n"),
    });
    (text, json)
}
