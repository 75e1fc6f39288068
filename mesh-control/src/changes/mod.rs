//! Changes of objects that are kept in a store: who an object is there, what a set of documents would change, whether that may be, and
//! what it comes to as text. Where they are kept, and how many change at once, is for the store: `store` is the seam, `cluster` a
//! Kubernetes cluster, and etcd the other one. `carry_out` is what commands and the API ask for.

#![warn(clippy::indexing_slicing, clippy::string_slice)]

mod carry_out;
mod check;
mod cluster;
mod diff;
mod documents;
mod store;
mod wanted;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(crate) use carry_out::carry_out;
pub(crate) use cluster::ClusterObjects;
pub(crate) use documents::Documents;
pub(crate) use store::{Outcome, Past, VersionedStore};
pub(crate) use wanted::{Done, DoneWith, Kept, Listed, Refusal, Wanted, What};

use crate::config::support::group_of;
use crate::hex::hex;
use crate::kubernetes::kinds::{RESOURCES, Resource, SETTINGS, Use};

/// Who an object is: its kind, namespace and name.
#[derive(Clone, Debug)]
pub(crate) struct Id {
    pub(crate) resource: &'static Resource,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl Id {
    fn new(resource: &'static Resource, namespace: &str, name: &str) -> Result<Id, String> {
        let is_good = |text: &str| {
            let is_known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
            let is_whole = |part: &str| !part.is_empty() && !part.starts_with('-') && !part.ends_with('-');
            text.len() <= 253 && text.bytes().all(is_known) && text.split('.').all(is_whole)
        };
        for (what, text) in [("namespace", namespace), ("name", name)] {
            if !is_good(text) {
                return Err(format!("metadata.{what}: {text:?} is no name of Kubernetes"));
            }
        }
        if resource.use_ == Use::Settings && name != SETTINGS {
            return Err(format!("of ConfigMaps, {SETTINGS} alone is of the mesh"));
        }
        Ok(Id { resource, namespace: namespace.into(), name: name.into() })
    }

    /// Who an object is that says so itself.
    pub(crate) fn of(object: &Value) -> Result<Id, String> {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let (version, kind) = (text(object.get("apiVersion")), text(object.get("kind")));
        let (version, kind) = version.zip(kind).ok_or("no `apiVersion` and `kind`")?;
        let group = group_of(&version);
        let resource = kept().find(|known| known.group == group && known.kind == kind);
        let resource = resource.ok_or_else(|| format!("{kind} of {version} is not read by the mesh"))?;
        let metadata = |key: &str| text(object.get("metadata").and_then(|metadata| metadata.get(key)));
        let namespace = metadata("namespace").unwrap_or_else(|| "default".to_owned());
        Id::new(resource, &namespace, &metadata("name").unwrap_or_default())
    }

    /// Of a kind as people say it: `VirtualService`, `virtualservices`.
    pub(crate) fn named(kind: &str, namespace: &str, name: &str) -> Result<Id, String> {
        Id::new(resource_named(kind)?, namespace, name)
    }

    /// What it is called in a store: `virtualservices.networking.istio.io/shop/reviews`.
    pub(crate) fn path(&self) -> String {
        let dot = if self.resource.group.is_empty() { "" } else { "." };
        format!("{}{dot}{}/{}/{}", self.resource.plural, self.resource.group, self.namespace, self.name)
    }

    /// The reverse of [`path`](Self::path).
    pub(crate) fn parse_path(path: &str) -> Result<Id, String> {
        let wrong = || format!("{path:?} is the name of no object");
        let mut parts = path.split('/');
        let (Some(kind), Some(namespace), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let (plural, group) = kind.split_once('.').unwrap_or((kind, ""));
        let resource = kept().find(|known| (known.plural, known.group) == (plural, group)).ok_or_else(wrong)?;
        Id::new(resource, namespace, name)
    }

    /// What `apiVersion` is of a version of its group.
    pub(crate) fn api_version(&self, version: &str) -> String {
        let slash = if self.resource.group.is_empty() { "" } else { "/" };
        format!("{}{slash}{version}", self.resource.group)
    }

    /// Whether it is of this kind, this namespace and this name, those that are given.
    pub(crate) fn matches(&self, kind: Option<&Resource>, namespace: Option<&str>, name: Option<&str>) -> bool {
        kind.is_none_or(|kind| (kind.kind, kind.group) == (self.resource.kind, self.resource.group))
            && namespace.is_none_or(|namespace| *namespace == *self.namespace)
            && name.is_none_or(|name| *name == *self.name)
    }

    fn parts(&self) -> (&str, &str, &str, &str) {
        (self.resource.kind, &self.namespace, &self.name, self.resource.group)
    }
}

/// The kinds that are kept in a store.
fn kept() -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter().filter(|known| matches!(known.use_, Use::Object | Use::Service | Use::Settings))
}

/// A kind as people say it.
///
/// # Errors
/// There is none.
pub(crate) fn resource_named(kind: &str) -> Result<&'static Resource, String> {
    let is_it =
        |known: &&Resource| [known.kind, known.plural, known.title].iter().any(|name| name.eq_ignore_ascii_case(kind));
    kept().find(is_it).ok_or_else(|| {
        let all: Vec<&str> = kept().map(|known| known.kind).collect();
        format!("{kind} is no kind that the mesh reads; those are {}", all.join(", "))
    })
}

impl PartialEq for Id {
    fn eq(&self, other: &Id) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Id {}

impl PartialOrd for Id {
    fn partial_cmp(&self, other: &Id) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Id {
    fn cmp(&self, other: &Id) -> std::cmp::Ordering {
        self.parts().cmp(&other.parts())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.resource.kind, self.namespace, self.name)
    }
}

/// An object as a store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// JSON.
    pub(crate) text: Arc<str>,
    /// Its version there; another one after each change.
    pub(crate) version: i64,
}

/// An object with its version. What is no JSON is shown as the text that it is.
pub(crate) fn versioned(stored: &Stored) -> Value {
    let mut object: Value = serde_json::from_str(&stored.text).unwrap_or_else(|_| json!({"text": &*stored.text}));
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), stored.version.to_string().into());
    }
    object
}

/// All objects of a store, as of one moment.
pub(crate) type All = BTreeMap<Id, Stored>;

/// What is to become of an object: this text, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) id: Id,
    pub(crate) text: Option<Arc<str>>,
}

impl Change {
    /// What it does to those that are there: `created`, `configured`, `deleted`; `None` where nothing is different.
    pub(crate) fn verb(&self, all: &All) -> Option<&'static str> {
        match (all.get(&self.id), &self.text) {
            (None, Some(_)) => Some("created"),
            (Some(_), None) => Some("deleted"),
            (Some(stored), Some(text)) if stored.text != *text => Some("configured"),
            _ => None,
        }
    }

    /// What the history says of it before it is made.
    pub(crate) fn told(&self, verb: &str, all: &All) -> Changed {
        // What is no JSON, since somebody wrote it by hand, is kept as the text that it is.
        let value = |stored: &Stored| serde_json::from_str(&stored.text).unwrap_or_else(|_| Value::from(&*stored.text));
        let before = all.get(&self.id).map(value);
        Changed { object: self.id.path(), verb: verb.to_owned(), before, after: None }
    }
}

/// Who changes something, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Author {
    pub(crate) name: String,
    pub(crate) message: String,
}

/// A change as the history tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Changes are counted from 1.
    pub(crate) number: u64,
    pub(crate) author: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
    /// When, in RFC 3339.
    pub(crate) time: String,
    /// Tells the attempts of one change from those of another.
    #[serde(default)]
    pub(crate) attempt: String,
    pub(crate) objects: Vec<Changed>,
}

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Changed {
    /// [`Id::path`].
    pub(crate) object: String,
    /// `created`, `configured` or `deleted`.
    pub(crate) verb: String,
    /// What it was before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) before: Option<Value>,
    /// The [`mark`] of what it was afterwards, in a store whose versions change for other reasons, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<String>,
}

/// Tells the text of an object from every other one.
fn mark(text: &str) -> String {
    hex(digest(&SHA256, text.as_bytes()).as_ref())
}

/// What has to change so that everything is as it was after the change `to`, by the changes since, the newest first.
///
/// # Errors
/// The history does not go back so far.
pub(crate) fn undo(newest_first: &[Entry], to: u64) -> Result<Vec<Change>, String> {
    let since = newest_first.iter().take_while(|entry| entry.number > to);
    let (mut wanted, mut next) = (BTreeMap::new(), newest_first.first().map_or(0, |entry| entry.number));
    if to > next {
        return Err(format!("there is no change {to}; the last one is {next}"));
    }
    for entry in since {
        if entry.number != next {
            break;
        }
        for changed in &entry.objects {
            let id = Id::parse_path(&changed.object)?;
            wanted.insert(id, changed.before.as_ref().map(|before| before.to_string().into()));
        }
        next -= 1;
    }
    if next != to {
        return Err(format!("the history goes back to change {next}, and {to} is older"));
    }
    Ok(wanted.into_iter().map(|(id, text)| Change { id, text }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_known_by_its_path_and_a_path_by_its_object() {
        for kind in kept() {
            let name = if kind.use_ == Use::Settings { SETTINGS } else { "a.b-c" };
            let id = Id::new(kind, "shop", name).expect("good");
            assert_eq!(Id::parse_path(&id.path()), Ok(id.clone()), "{id}");
            assert_eq!(Id::named(&kind.title.to_lowercase(), "shop", name), Ok(id.clone()));
            let version = id.api_version(kind.versions[0]);
            let object =
                json!({"apiVersion": version, "kind": kind.kind, "metadata": {"namespace": "shop", "name": name}});
            assert_eq!(Id::of(&object), Ok(id));
        }
        for wrong in [
            "",
            "services",
            "services/a",
            "services/a/b/c",
            "services/../b",
            "services.x/a/b",
            "pods/a/b",
            "configmaps/a/b",
        ] {
            assert!(Id::parse_path(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_history_loses_nothing_of_what_an_object_was() {
        let id = Id::named("Service", "shop", "web").expect("a name");
        let change = Change { id: id.clone(), text: None };
        for (text, before) in [("{\"a\": 1}", json!({"a": 1})), ("{", json!("{"))] {
            let all = All::from([(id.clone(), Stored { text: text.into(), version: 1 })]);
            let told = change.told("deleted", &all);
            assert_eq!((&*told.object, &*told.verb, told.before), ("services/shop/web", "deleted", Some(before)));
        }
        assert_eq!(change.told("deleted", &All::new()).before, None);
    }

    #[test]
    fn what_was_changed_since_is_undone_from_the_newest_on() {
        let entry = |number, objects: &[(&str, Option<i32>)]| Entry {
            number,
            author: "a".to_owned(),
            message: String::new(),
            time: String::new(),
            attempt: String::new(),
            objects: objects
                .iter()
                .map(|(name, before)| Changed {
                    object: format!("services/shop/{name}"),
                    verb: String::new(),
                    before: before.map(|before| json!(before)),
                    after: None,
                })
                .collect(),
        };
        let history = [
            entry(4, &[("a", Some(3)), ("b", None)]),
            entry(3, &[("a", Some(2))]),
            entry(2, &[("a", Some(1)), ("c", Some(7))]),
        ];
        let undone = |to| {
            undo(&history, to).map(|changes| {
                let all = changes.into_iter().map(|it| (it.id.name.to_string(), it.text.map(|text| text.to_string())));
                all.collect::<Vec<_>>()
            })
        };
        let was = |name: &str, text: Option<&str>| (name.to_owned(), text.map(str::to_owned));
        assert_eq!(undone(4), Ok(vec![]));
        assert_eq!(undone(3), Ok(vec![was("a", Some("3")), was("b", None)]));
        assert_eq!(undone(1), Ok(vec![was("a", Some("1")), was("b", None), was("c", Some("7"))]));
        assert!(undone(0).is_err_and(|why| why.contains("goes back to change 1")));
        assert!(undone(5).is_err_and(|why| why.contains("last one is 4")));
        let torn = [entry(4, &[]), entry(2, &[])];
        assert!(undo(&torn, 1).is_err_and(|why| why.contains("goes back to change 3")));
    }
}
