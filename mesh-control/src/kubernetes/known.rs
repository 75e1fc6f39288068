//! What is known of one kind, and what a list or an event means for it: plain decisions, with `now` as an argument.
//!
//! Only two things say that an object is gone: an event that says so, and a list without it. A list that is suddenly empty
//! is not believed at once: an API server that has just started, or lost its store, answers like that. It is when it is
//! still empty half a minute later, and no older than what was known.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::client::in_words;
use crate::config::doubt::Doubt;

/// An object's namespace and name.
pub(super) type Name = (Arc<str>, Arc<str>);

/// An object that is another one now, or is gone.
#[derive(Debug, PartialEq)]
pub(super) struct Change {
    pub(super) name: Name,
    pub(super) object: Option<Value>,
}

/// The objects of one kind, by name.
#[derive(Debug, Default)]
pub(super) struct Known {
    names: BTreeSet<Name>,
    /// The version up to which events were seen.
    pub(super) version: String,
    doubt: Doubt,
}

/// What a whole list means.
#[derive(Debug, PartialEq)]
pub(super) enum Listed {
    Taken(Vec<Change>),
    /// It is empty, and nobody believes it yet.
    Doubted,
}

/// What a line of a watch means.
#[derive(Debug, PartialEq)]
pub(super) enum Event {
    Changed(Change),
    /// Only the version is another one.
    Bookmark,
    /// Versions of that time are gone: a list has to say what there is.
    Expired,
    /// The server cannot go on, for this reason.
    Failed(String),
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

impl Known {
    /// Takes in all that there is, as of a version.
    pub(super) fn list(&mut self, items: Vec<Value>, version: String, now: Instant) -> Result<Listed, String> {
        let items: Vec<(Name, Value)> =
            items.into_iter().map(|item| Ok((name(&item)?, item))).collect::<Result<_, String>>()?;
        if items.is_empty() && !self.names.is_empty() && self.doubts(&version, now) {
            return Ok(Listed::Doubted);
        }
        self.doubt = Doubt::default();
        let names: BTreeSet<Name> = items.iter().map(|(name, _)| name.clone()).collect();
        let gone = self.names.difference(&names).map(|name| Change { name: name.clone(), object: None });
        let mut changes: Vec<Change> = gone.collect();
        changes.extend(items.into_iter().map(|(name, item)| Change { name, object: Some(item) }));
        (self.names, self.version) = (names, version);
        Ok(Listed::Taken(changes))
    }

    /// Nobody serves the kind any more: as if it were empty.
    pub(super) fn absent(&mut self, now: Instant) -> Listed {
        let version = self.version.clone();
        self.list(Vec::new(), version, now).unwrap_or(Listed::Doubted)
    }

    fn doubts(&mut self, version: &str, now: Instant) -> bool {
        // Versions are numbers that grow (Kubernetes 1.35); what is none is compared with nothing.
        let numbers = version.parse::<u128>().ok().zip(self.version.parse::<u128>().ok());
        let is_older = numbers.is_some_and(|(now, known)| now < known);
        !self.doubt.is_over(is_older, now)
    }

    /// Takes in one line of a watch.
    pub(super) fn event(&mut self, line: &[u8]) -> Result<Event, String> {
        let Line { kind, object } = serde_json::from_slice(line).map_err(|error| format!("no event: {error}"))?;
        if kind == "ERROR" {
            let code = object.get("code").and_then(Value::as_u64);
            let message = object.get("message").and_then(Value::as_str).unwrap_or_default();
            return Ok(if code == Some(410) { Event::Expired } else { Event::Failed(in_words(message)) });
        }
        let version = object.get("metadata").and_then(|metadata| metadata.get("resourceVersion")?.as_str());
        let version = version.ok_or("an event without a version")?.to_owned();
        let event = match kind.as_str() {
            "BOOKMARK" => Event::Bookmark,
            "ADDED" | "MODIFIED" => {
                let name = name(&object)?;
                self.names.insert(name.clone());
                Event::Changed(Change { name, object: Some(object) })
            }
            "DELETED" => {
                let name = name(&object)?;
                self.names.remove(&name);
                Event::Changed(Change { name, object: None })
            }
            other => return Err(format!("an event of the type {other:?}")),
        };
        self.version = version;
        Ok(event)
    }
}

fn name(object: &Value) -> Result<Name, String> {
    let text = |key: &str| object.get("metadata").and_then(|metadata| metadata.get(key)?.as_str());
    let name = text("name").filter(|name| !name.is_empty()).ok_or("an object without a name")?;
    Ok((text("namespace").unwrap_or_default().into(), name.into()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn object(name: &str, version: u32) -> Value {
        json!({"metadata": {"namespace": "shop", "name": name, "resourceVersion": version.to_string()}})
    }

    fn listed(known: &mut Known, names: &[&str], version: u32, now: Instant) -> Option<Vec<(String, bool)>> {
        let items = names.iter().map(|name| object(name, version)).collect();
        match known.list(items, version.to_string(), now).expect("good") {
            Listed::Doubted => None,
            Listed::Taken(changes) => {
                Some(changes.iter().map(|one| (one.name.1.to_string(), one.object.is_some())).collect())
            }
        }
    }

    fn line(kind: &str, object: &Value) -> Vec<u8> {
        json!({"type": kind, "object": object}).to_string().into_bytes()
    }

    #[test]
    fn a_list_after_another_says_what_is_gone() {
        let (mut known, now) = (Known::default(), Instant::now());
        let put = |name: &str| (name.to_owned(), true);
        let gone = |name: &str| (name.to_owned(), false);
        assert_eq!(listed(&mut known, &["a", "b"], 5, now), Some(vec![put("a"), put("b")]));
        assert_eq!(listed(&mut known, &["b", "c"], 9, now), Some(vec![gone("a"), put("b"), put("c")]));
        assert_eq!(known.version, "9");
    }

    #[test]
    fn f30_a_kind_that_is_suddenly_empty_is_not_believed_to_be_unless_it_stays_so() {
        let (mut known, start) = (Known::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        // A kind that never had any is empty.
        assert_eq!(listed(&mut known, &[], 1, at(0)), Some(vec![]));
        listed(&mut known, &["a"], 5, at(0));
        assert_eq!(listed(&mut known, &[], 6, at(1)), None);
        assert_eq!(listed(&mut known, &[], 6, at(2)), None);
        // It was nothing: nobody has to forget anything, and the doubt begins anew.
        assert_eq!(listed(&mut known, &["a"], 7, at(3)).map(|all| all.len()), Some(1));
        assert_eq!(listed(&mut known, &[], 8, at(4)), None);
        assert_eq!(listed(&mut known, &[], 8, at(5)), None);
        assert_eq!(listed(&mut known, &[], 8, at(33)), None, "not for long enough");
        assert_eq!(listed(&mut known, &[], 8, at(34)), Some(vec![("a".to_owned(), false)]));

        // A store that has lost everything counts from the beginning.
        listed(&mut known, &["a"], 50, at(40));
        for seconds in [41, 60, 90, 900] {
            assert_eq!(listed(&mut known, &[], 2, at(seconds)), None);
        }
    }

    #[test]
    fn events_move_the_version_and_what_is_no_event_moves_nothing() {
        let mut known = Known::default();
        let name = || ("shop".into(), "a".into());
        for (kind, version, object) in [("ADDED", 2, true), ("MODIFIED", 3, true), ("DELETED", 4, false)] {
            let event = known.event(&line(kind, &self::object("a", version))).expect("an event");
            let expected = object.then(|| self::object("a", version));
            assert_eq!(event, Event::Changed(Change { name: name(), object: expected }));
            assert_eq!(known.version, version.to_string());
        }
        let bookmark = json!({"metadata": {"resourceVersion": "9"}});
        assert_eq!(known.event(&line("BOOKMARK", &bookmark)), Ok(Event::Bookmark));
        let gone = json!({"kind": "Status", "code": 410, "message": "too old"});
        assert_eq!(known.event(&line("ERROR", &gone)), Ok(Event::Expired));
        let failed = json!({"code": 500, "message": "no"});
        assert_eq!(known.event(&line("ERROR", &failed)), Ok(Event::Failed("no".to_owned())));
        for wrong in [b"{".to_vec(), line("ADDED", &json!({})), line("OTHER", &object("a", 99)), Vec::new()] {
            assert!(known.event(&wrong).is_err());
        }
        assert_eq!(known.version, "9");
    }
}
