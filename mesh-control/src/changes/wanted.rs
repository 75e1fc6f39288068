//! What a store holds, what somebody wants of it, and what becomes of that: said on a command line, or over HTTP.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Id, Stored};

/// A set of changes that is made as a whole, or not at all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Wanted {
    pub(crate) what: What,
    /// Why, for the history.
    #[serde(default)]
    pub(crate) message: String,
    /// Only says what would become of it.
    #[serde(default)]
    pub(crate) dry_run: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum What {
    /// The objects in these texts, by the names of their files, are to be there as they are written.
    Apply(BTreeMap<String, String>),
    /// These objects are to be gone: `virtualservices.networking.istio.io/shop/reviews`.
    Delete(Vec<String>),
    /// All objects are to be as they were after this change; without a number, before the last one.
    Rollback(Option<u64>),
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Done {
    /// The number of the change; none where nothing had to change, or nothing was to.
    pub(crate) number: Option<u64>,
    pub(crate) objects: Vec<DoneWith>,
    /// Which documents are no objects of the mesh, and why.
    pub(crate) left_out: Vec<String>,
}

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DoneWith {
    /// `VirtualService shop/reviews`.
    pub(crate) object: String,
    /// `created`, `configured`, `unchanged` or `deleted`.
    pub(crate) verb: String,
    /// The difference, line by line, as YAML.
    pub(crate) diff: String,
}

/// What a store holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub(crate) objects: Vec<Kept>,
    /// Keys beside them that are those of no object.
    pub(crate) strange: Vec<String>,
}

/// An object of a store. Its name is that of its key: what it says itself is only what somebody has written there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// [`Id::path`].
    object: String,
    version: i64,
    /// The object; what is none, as the text that it is.
    value: Value,
}

impl Kept {
    pub(crate) fn new(id: &Id, stored: &Stored) -> Kept {
        let object = serde_json::from_str::<Map<String, Value>>(&stored.text);
        let value = object.map_or_else(|_| Value::from(&*stored.text), Value::Object);
        Kept { object: id.path(), version: stored.version, value }
    }

    /// The reverse.
    ///
    /// # Errors
    /// Nothing can be called so.
    pub(crate) fn stored(self) -> Result<(Id, Stored), String> {
        let text = match self.value {
            Value::String(text) => text.into(),
            object => object.to_string().into(),
        };
        Ok((Id::parse_path(&self.object)?, Stored { text, version: self.version }))
    }
}

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is wrong; each finding with its place.
    Invalid(Vec<String>),
    /// There is no such thing.
    Unknown(String),
    /// Somebody else has changed it meanwhile.
    Conflict(String),
    /// The store says no, or nothing.
    Store(String),
}

impl Refusal {
    /// Why, in words.
    pub(crate) fn reason(&self) -> String {
        match self {
            Refusal::Invalid(findings) => findings.join("\n"),
            Refusal::Unknown(why) | Refusal::Conflict(why) | Refusal::Store(why) => why.clone(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Invalid(_) => write!(f, "nothing was changed:\n{}", self.reason()),
            Refusal::Unknown(why) | Refusal::Conflict(why) => write!(f, "nothing was changed: {why}"),
            Refusal::Store(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Refusal {}
