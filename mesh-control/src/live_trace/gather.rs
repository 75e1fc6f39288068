//! Hops as they come, in any order, put together to the requests that they are of.

use std::collections::HashSet;

use serde_json::Value;

use super::Traced;
use super::cause::causes;

/// The most hops that are kept.
const MOST_HOPS: usize = 4096;

/// Hops of one trace.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    hops: Vec<Value>,
    /// The first hops of requests that were handed out.
    told: HashSet<String>,
}

pub(super) fn text<'v>(hop: &'v Value, field: &str) -> &'v str {
    hop.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The events of a hop of this kind.
pub(super) fn events<'v>(hop: &'v Value, what: &str) -> impl DoubleEndedIterator<Item = &'v Value> {
    let all = hop.get("events").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    all.iter().filter(move |event| text(event, "what") == what)
}

/// Whether it was not over when it was told of.
pub(super) fn is_unfinished(hop: &Value) -> bool {
    hop.get("unfinished").and_then(Value::as_bool) == Some(true)
}

pub(super) fn parent(hop: &Value) -> Option<(&str, u64)> {
    let parent = hop.get("parent").filter(|parent| !parent.is_null())?;
    Some((text(parent, "hop"), parent.get("attempt").and_then(Value::as_u64).unwrap_or_default()))
}

impl Gathering {
    /// Takes in what a process tells.
    pub(crate) fn add(&mut self, hop: Value) {
        let id = text(&hop, "hop");
        // One that was told of before is told of anew.
        if let Some(before) = self.hops.iter_mut().find(|before| is_unfinished(before) && text(before, "hop") == id) {
            *before = hop;
        } else if self.hops.len() < MOST_HOPS && hop.is_object() {
            self.hops.push(hop);
        }
    }

    /// The next request whose first hop is there, and which is whole, or has to do as it is.
    pub(crate) fn next(&mut self, has_to_do: bool) -> Option<Traced> {
        let firsts = self.hops.iter().filter(|hop| parent(hop).is_none() && !self.told.contains(text(hop, "hop")));
        let whole = |first: &Value| {
            let mut hops = Vec::new();
            let complete = self.follow(first, 0, &mut hops);
            (complete || has_to_do).then_some((hops, complete))
        };
        let (first, (hops, complete)) = firsts.filter_map(|first| Some((first, whole(first)?))).next()?;
        let first = text(first, "hop").to_owned();
        self.told.insert(first);
        Some(Traced { causes: causes(&hops), hops, complete })
    }

    /// Whether the first hop of a request is there that was not handed out yet.
    pub(crate) fn has_begun(&self) -> bool {
        self.hops.iter().any(|hop| parent(hop).is_none() && !self.told.contains(text(hop, "hop")))
    }

    /// A hop and those that it made, and whether all are there that it heard of.
    fn follow(&self, hop: &Value, depth: u64, into: &mut Vec<Value>) -> bool {
        let id = text(hop, "hop");
        let mut told = hop.clone();
        if let Some(fields) = told.as_object_mut() {
            fields.insert("depth".to_owned(), depth.into());
        }
        into.push(told);
        let mut made: Vec<&Value> =
            self.hops.iter().filter(|other| parent(other).is_some_and(|(of, _)| of == id)).collect();
        made.sort_by_key(|other| other.get("started_us").and_then(Value::as_u64));
        // Nobody can make himself: what somebody tells who lies ends here.
        let is_too_deep = depth >= 32 || into.len() >= MOST_HOPS;
        let mut is_whole = text(hop, "side") != "client" || self.has_heard_all(hop, &made);
        for other in made.into_iter().filter(|_| !is_too_deep) {
            is_whole &= self.follow(other, depth + 1, into);
        }
        is_whole
    }

    /// Whether the servers told what they saw that were sent something, and those all of it that answered.
    fn has_heard_all(&self, hop: &Value, made: &[&Value]) -> bool {
        let told = |attempt: u64| made.iter().find(|other| parent(other).is_some_and(|(_, of)| of == attempt));
        let all = hop.get("events").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut sent = None;
        all.iter().all(|event| match text(event, "what") {
            // Who is not of the mesh is sent no mark.
            "picked" => {
                sent = None;
                true
            }
            "sent" => {
                sent = event.get("attempt").and_then(Value::as_u64);
                sent.is_none_or(|attempt| told(attempt).is_some())
            }
            "answered" | "attempt answered" => sent.and_then(told).is_none_or(|told| !is_unfinished(told)),
            _ => true,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hop(id: &str, side: &str, parent: Option<(&str, u64)>, events: Value) -> Value {
        let parent = parent.map(|(hop, attempt)| json!({"hop": hop, "attempt": attempt}));
        json!({"hop": id, "side": side, "parent": parent, "events": events, "started_us": 1, "status": 200})
    }

    fn order(traced: &Traced) -> Vec<(&str, u64)> {
        traced.hops.iter().map(|hop| (text(hop, "hop"), hop["depth"].as_u64().unwrap())).collect()
    }

    #[test]
    fn hops_come_in_any_order_and_are_waited_for_as_far_as_somebody_has_heard_of_them() {
        let answered = || json!([{"what": "picked", "attempt": 1}, {"what": "sent", "attempt": 1}, {"what": "answered", "status": 200}]);
        let mut gathering = Gathering::default();
        gathering.add(hop("c", "client", Some(("b", 0)), json!([])));
        assert!(gathering.next(true).is_none(), "nobody began it");
        gathering.add(hop("a", "client", None, answered()));
        assert!(gathering.next(false).is_none(), "its server has answered, and did not tell");
        let mut unfinished = hop("b", "server", Some(("a", 1)), json!([]));
        unfinished["unfinished"] = true.into();
        gathering.add(unfinished);
        assert!(gathering.next(false).is_none(), "it has not told all");
        gathering.add(hop("b", "server", Some(("a", 1)), json!([])));
        let traced = gathering.next(false).unwrap();
        assert_eq!((order(&traced), traced.complete), (vec![("a", 0), ("b", 1), ("c", 2)], true));
        assert!(gathering.next(true).is_none(), "it is told once");
        gathering.add(hop("d", "client", None, answered()));
        assert!(gathering.has_begun() && gathering.next(false).is_none());
        assert!(!gathering.next(true).unwrap().complete);
    }

    #[test]
    fn who_lies_about_hops_keeps_nobody_busy() {
        let mut gathering = Gathering::default();
        gathering.add(hop("a", "client", None, json!([])));
        for _ in 0..50 {
            gathering.add(hop("x", "server", Some(("a", 1)), json!([])));
        }
        gathering.add(json!("no hop"));
        gathering.add(json!({"hop": 7, "parent": 3, "events": {"a": 1}}));
        gathering.add(hop("x", "server", Some(("x", 1)), json!([])));
        let traced = gathering.next(true).unwrap();
        assert!(traced.hops.len() <= MOST_HOPS + 33, "{}", traced.hops.len());
    }
}
