//! What becomes of a request by two versions of the files, where that is not the same.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::answer::Answer;
use super::request::{Asked, Kind};

/// An answer that changes.
#[derive(Debug, Serialize)]
pub(super) struct Difference {
    id: Value,
    /// The request, for people.
    request: String,
    /// The fields that are not the same.
    changed: Vec<String>,
    before: Answer,
    after: Answer,
}

impl Difference {
    /// That between two answers to a request; `None` where there is none.
    pub(super) fn between(
        asked: &Asked,
        mut before: Answer,
        mut after: Answer,
    ) -> serde_json::Result<Option<Difference>> {
        if before == after {
            return Ok(None);
        }
        before.leave_out_same_treatment(&mut after);
        let (one, other) = (serde_json::to_value(&before)?, serde_json::to_value(&after)?);
        let fields = |answer: &Value| answer.as_object().into_iter().flat_map(|of| of.keys().cloned()).collect();
        let known: BTreeSet<String> = fields(&one);
        let all: BTreeSet<String> = known.union(&fields(&other)).cloned().collect();
        let changed = all.into_iter().filter(|field| one.get(field) != other.get(field)).collect();
        let method = &asked.head.method;
        let path = asked.head.uri.path_and_query().map_or("/", |path| path.as_str());
        let namespace = &asked.source.namespace;
        let place = match (asked.kind, &asked.gateway) {
            (Kind::Mesh, _) => format!("from {namespace}"),
            (Kind::Gateway, Some(gateway)) => format!("at {gateway}"),
            (Kind::Inbound | Kind::Gateway, _) => format!("at {namespace}"),
        };
        let request = format!("{method} {}{path} {place}", asked.host);
        Ok(Some(Difference { id: asked.id.clone(), request, changed, before, after }))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.id {
            Value::Null => writeln!(f, "{}", self.request)?,
            Value::String(id) => writeln!(f, "{id}: {}", self.request)?,
            id => writeln!(f, "{id}: {}", self.request)?,
        }
        for field in &self.changed {
            for (sign, answer) in [('-', &self.before), ('+', &self.after)] {
                if let Some(value) = answer.said(field) {
                    writeln!(f, "  {sign} {field}: {value}")?;
                }
            }
        }
        Ok(())
    }
}
