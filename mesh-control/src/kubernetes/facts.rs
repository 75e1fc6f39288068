//! What is known of an object that has a status, beyond its text.

use std::sync::Arc;

use serde_json::Value;

use super::kinds::Resource;
use super::known::Name;
use crate::plane::Asked;

/// An object as it was seen last.
#[derive(Debug)]
pub(super) struct Fact {
    pub(super) resource: &'static Resource,
    /// In which version of its kind it was seen.
    api: &'static str,
    name: Name,
    /// The name of its text, and the text.
    pub(super) text_name: Arc<str>,
    pub(super) text: Arc<str>,
    /// Which of its specifications that is, counted by the API server.
    pub(super) generation: i64,
    /// The version of the object (`resourceVersion`), which changes with its status, too.
    pub(super) version: String,
    pub(super) status: Option<Value>,
}

impl Fact {
    pub(super) fn of(
        resource: &'static Resource,
        api: &'static str,
        name: &Name,
        text_name: Arc<str>,
        text: Arc<str>,
        object: &Value,
    ) -> Fact {
        let metadata = |key: &str| object.get("metadata").and_then(|metadata| metadata.get(key));
        Fact {
            resource,
            api,
            name: name.clone(),
            text_name,
            text,
            generation: metadata("generation").and_then(Value::as_i64).unwrap_or_default(),
            version: metadata("resourceVersion").and_then(Value::as_str).unwrap_or_default().to_owned(),
            status: object.get("status").cloned(),
        }
    }

    pub(super) fn namespace(&self) -> &str {
        &self.name.0
    }

    /// `Kind namespace/name`.
    pub(super) fn id(&self) -> String {
        format!("{} {}/{}", self.resource.title, self.name.0, self.name.1)
    }

    /// What a plane is asked about it.
    pub(super) fn asked(&self) -> Asked {
        Asked { id: self.id(), name: self.text_name.clone(), text: self.text.clone() }
    }

    /// Where its status is written.
    pub(super) fn status_path(&self) -> String {
        format!("{}/{}/status", self.resource.path(self.api, Some(&self.name.0)), self.name.1)
    }
}
