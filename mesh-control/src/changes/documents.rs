//! Documents that somebody wants to have in a store, as the objects that they are there.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::{All, Change, Id};
use crate::config::load::Scan;
use crate::config::node;
use crate::config::{Diagnostic, Source};
use crate::kubernetes::objects;

/// Objects that somebody wrote.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    pub(crate) objects: BTreeMap<Id, Written>,
    /// Which documents are no objects of the mesh, and why.
    pub(crate) left_out: Vec<String>,
}

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// As it is stored.
    pub(crate) text: Arc<str>,
    /// The version that it has to have in the store, where it says so (`metadata.resourceVersion`).
    pub(crate) version: Option<i64>,
}

impl Documents {
    /// The objects in some files.
    ///
    /// # Errors
    /// What cannot be read, or is there twice.
    pub(crate) fn read(scan: &Scan) -> Result<Documents, Vec<Diagnostic>> {
        let (mut documents, mut wrong) = (Documents::default(), Vec::new());
        for (name, text) in &scan.files {
            // What cannot be read is said when all of them are checked.
            let Ok(text) = text else { continue };
            match node::parse(&Source { name: name.clone(), text: text.clone() }) {
                Ok(found) => {
                    for document in found {
                        if let Err(why) = documents.add(document.json()) {
                            let why = format!("line {}: {why}", document.span.line);
                            let (severity, code) = (crate::config::Severity::Error, crate::config::Code::InvalidValue);
                            wrong.push(Diagnostic::of_file(name.clone(), severity, code, why));
                        }
                    }
                }
                Err(finding) => wrong.push(finding),
            }
        }
        if wrong.is_empty() { Ok(documents) } else { Err(wrong) }
    }

    /// Adds what a document says: an object, or a list of them.
    pub(crate) fn add(&mut self, document: Value) -> Result<(), String> {
        let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default();
        if let (true, Some(items)) = (kind.ends_with("List"), document.get("items").and_then(Value::as_array)) {
            return items.iter().try_for_each(|item| self.add(item.clone()));
        }
        match Id::of(&document) {
            Ok(id) => {
                let version = document.get("metadata").and_then(|metadata| metadata.get("resourceVersion"));
                let version = version.map(|version| {
                    let text = version.as_str().map_or_else(|| version.to_string(), str::to_owned);
                    text.parse::<i64>().map_err(|_| format!("{id}: metadata.resourceVersion: {text:?} is no version"))
                });
                let written = Written { text: stored(&id, document)?, version: version.transpose()? };
                match self.objects.insert(id.clone(), written) {
                    None => Ok(()),
                    Some(_) => Err(format!("{id} is there twice")),
                }
            }
            Err(why) => {
                self.left_out.push(why);
                Ok(())
            }
        }
    }

    /// What they would change.
    ///
    /// # Errors
    /// An object has another version in the store than its document says.
    pub(crate) fn changes(&self, all: &All) -> Result<Vec<Change>, String> {
        let mut changes = Vec::new();
        for (id, written) in &self.objects {
            let present = all.get(id).map_or(0, |stored| stored.version);
            if let Some(version) = written.version.filter(|version| *version != present) {
                let now = if present == 0 { "there is none".to_owned() } else { format!("it is {present} now") };
                return Err(format!(
                    "{id} was changed by somebody else: its resourceVersion is to be {version}, and {now}"
                ));
            }
            changes.push(Change { id: id.clone(), text: Some(written.text.clone()) });
        }
        Ok(changes)
    }
}

/// The text of an object in a store: what a person wrote, and the namespace that it is in.
pub(crate) fn stored(id: &Id, mut object: Value) -> Result<Arc<str>, String> {
    let version = object.get("apiVersion").and_then(Value::as_str).and_then(|text| text.rsplit('/').next());
    let version = version.unwrap_or_default().to_owned();
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut).ok_or("no metadata")?;
    metadata.insert("namespace".to_owned(), Value::from(&*id.namespace));
    Ok(objects::text(id.resource, &version, &object))
}
