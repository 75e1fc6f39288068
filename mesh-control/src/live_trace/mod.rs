//! One live request, as all processes tell of it that it passed: what is asked for, the hops put together, the cause that decides,
//! and a text for people. Nothing here waits or sends: `serve/clients/following.rs` asks workloads, and has their answers.

mod cause;
mod gather;
mod text;

use mesh_core::live_trace::Condition;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::explain::workload::WorkloadName;
pub(crate) use gather::{Gathering, is_first};

/// How long requests are waited for, unless it is said.
const TIME: u64 = 60;
/// The longest.
const MOST_TIME: u64 = 3600;
/// The most requests.
const MOST_REQUESTS: u32 = 100;

/// Which live requests somebody wants to follow.
///
/// ```
/// use mesh_control::live_trace::Wanted;
///
/// let wanted = Wanted::to("reviews").from("shop/web").and("header end-user=jason");
/// assert!(wanted.check().is_ok());
/// assert!(Wanted::to("reviews").and("colour red").check().is_err());
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Wanted {
    /// Whose requests: NAMESPACE/WORKLOAD, by the workload's name or its label `app`. Anybody's, unless it is said, also those that
    /// come from outside of the mesh.
    #[serde(default)]
    pub from: Option<String>,
    /// The host that they ask for, with or without a port. Empty: any.
    #[serde(default)]
    pub to: String,
    /// What has to be so of them: see [`Condition`].
    #[serde(default)]
    pub r#where: Vec<String>,
    /// How many of them.
    #[serde(default = "one")]
    pub next: u32,
    /// How long they are waited for, in seconds.
    #[serde(default = "time")]
    pub seconds: u64,
}

fn one() -> u32 {
    1
}

fn time() -> u64 {
    TIME
}

impl Wanted {
    /// The next request to a host, within a minute.
    pub fn to(host: &str) -> Self {
        Wanted { from: None, to: host.to_owned(), r#where: Vec::new(), next: 1, seconds: TIME }
    }

    /// Of this workload: NAMESPACE/WORKLOAD.
    pub fn from(mut self, workload: &str) -> Self {
        self.from = Some(workload.to_owned());
        self
    }

    /// Of which this is so, too.
    pub fn and(mut self, condition: &str) -> Self {
        self.r#where.push(condition.to_owned());
        self
    }

    /// So many of them.
    pub fn next(mut self, next: u32) -> Self {
        self.next = next;
        self
    }

    /// For so many seconds.
    pub fn seconds(mut self, seconds: u64) -> Self {
        self.seconds = seconds;
        self
    }

    /// Whose requests, if it is said.
    pub(crate) fn whose(&self) -> Result<Option<WorkloadName>, String> {
        let parsed = self.from.as_deref().map(str::parse).transpose();
        parsed.map_err(|why: String| format!("from {:?}: {why}", self.from.as_deref().unwrap_or_default()))
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// With a sentence for whoever asks.
    pub fn check(&self) -> Result<(), String> {
        self.whose()?;
        if self.to.len() > 253 || self.r#where.len() > 16 {
            return Err("no host has more than 253 characters, and there may be 16 conditions".to_owned());
        }
        for text in &self.r#where {
            text.parse::<Condition>().map_err(|error| error.reason)?;
        }
        if !(1..=MOST_REQUESTS).contains(&self.next) || !(1..=MOST_TIME).contains(&self.seconds) {
            return Err(format!("1 to {MOST_REQUESTS} requests can be followed, for 1 to {MOST_TIME} s"));
        }
        Ok(())
    }
}

/// One request, as all who saw it tell. Displays as a text for people, the deciding cause first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Traced {
    /// Why it went as it went: what decided comes first.
    pub causes: Vec<String>,
    /// What each hop saw, a hop before those that it made. `depth` says how far from the first.
    pub hops: Vec<Value>,
    /// Whether everybody told what they saw who was heard of.
    pub complete: bool,
}

impl Traced {
    /// The request that hops tell of, in any order; `None` where the first one is missing.
    ///
    /// ```
    /// use mesh_control::live_trace::Traced;
    /// use serde_json::json;
    ///
    /// let hop = json!({"hop": "a", "side": "client", "workload": "shop/web", "status": 503, "flags": "UH",
    ///     "events": [{"what": "failed", "kind": "NoHealthyEndpoint", "error": "no healthy endpoint"}]});
    /// let traced = Traced::of([hop]).unwrap();
    /// assert!(traced.to_string().starts_with("cause: no endpoint can take it"), "{traced}");
    /// ```
    pub fn of(hops: impl IntoIterator<Item = Value>) -> Option<Traced> {
        let mut gathering = Gathering::default();
        hops.into_iter().for_each(|hop| gathering.add(0, hop));
        gathering.next(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        for (wanted, expected) in [
            (Wanted::to("a"), ""),
            (Wanted::to("a").from("web"), "NAMESPACE/NAME"),
            (Wanted::to("a").from("/web"), "NAMESPACE/NAME"),
            (Wanted::to("a").from("a/b/c"), "NAMESPACE/NAME"),
            (Wanted::to("a").from("SHOP/web"), "no namespace"),
            (Wanted::to("a").next(0), "1 to 100"),
            (Wanted::to("a").seconds(1 << 40), "3600 s"),
            (Wanted::to("a").and("header"), "expected `header"),
            (Wanted::to(&"a".repeat(300)), "253"),
        ] {
            let why = wanted.check().err().unwrap_or_default();
            assert!(why.contains(expected) && why.is_empty() == expected.is_empty(), "{why}");
        }
    }
}
