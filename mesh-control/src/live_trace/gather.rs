//! Hops as they come, in any order, put together to the requests that they are of.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::Traced;
use super::cause::causes;

/// The most hops that wait to be placed.
const MOST_WAITING: usize = 4096;
/// Others are made by nobody who is near.
const DEEPEST: u64 = 32;

/// Hops of one trace.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    /// Those that were not handed out, each with the process that told of it.
    hops: Vec<(u64, Value)>,
    /// Those that were.
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

/// Whether nobody made it who is followed.
pub(crate) fn is_first(hop: &Value) -> bool {
    parent(hop).is_none()
}

impl Gathering {
    /// Takes in what a process tells. A hop is what the process says that told of it first.
    pub(crate) fn add(&mut self, process: u64, hop: Value) {
        let id = text(&hop, "hop");
        // What comes too late for its request is of no use.
        let is_late = self.told.contains(id) || parent(&hop).is_some_and(|(made_by, _)| self.told.contains(made_by));
        if is_late || !hop.is_object() {
            return;
        }
        if let Some((of, before)) = self.hops.iter_mut().find(|(_, before)| text(before, "hop") == id) {
            // One that was told of before it was over is told of anew.
            if *of == process && is_unfinished(before) {
                *before = hop;
            }
            return;
        }
        if self.hops.len() < MOST_WAITING {
            self.hops.push((process, hop));
        }
    }

    /// The next request whose first hop is there, and which is whole, or has to do as it is. Its hops are handed out once.
    pub(crate) fn next(&mut self, has_to_do: bool) -> Option<Traced> {
        let made = self.made();
        let begun = self.hops.iter().enumerate().filter(|(_, (_, hop))| is_first(hop));
        let begun = begun.map(|(first, _)| self.follow(first, &made));
        // Who was given up soon hears of it, and then tells what it waited for itself.
        let is_over = |placed: &[(usize, u64)]| {
            placed.iter().all(|(at, _)| self.hops.get(*at).is_none_or(|(_, hop)| !is_unfinished(hop)))
        };
        let (placed, complete) =
            begun.into_iter().find(|(placed, complete)| has_to_do || *complete && is_over(placed))?;
        let mut left: Vec<Option<(u64, Value)>> = std::mem::take(&mut self.hops).into_iter().map(Some).collect();
        let mut hops = Vec::with_capacity(placed.len());
        for (at, depth) in placed {
            let Some((_, mut hop)) = left.get_mut(at).and_then(Option::take) else { continue };
            if let Some(fields) = hop.as_object_mut() {
                fields.insert("depth".to_owned(), depth.into());
            }
            self.told.insert(text(&hop, "hop").to_owned());
            hops.push(hop);
        }
        self.hops = left.into_iter().flatten().collect();
        Some(Traced { causes: causes(&hops), hops, complete })
    }

    /// Whether the first hop of a request is there that was not handed out yet.
    pub(crate) fn has_begun(&self) -> bool {
        self.hops.iter().any(|(_, hop)| is_first(hop))
    }

    /// Which hops each one made, the oldest first.
    fn made(&self) -> HashMap<String, Vec<usize>> {
        let mut made: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, (_, hop)) in self.hops.iter().enumerate() {
            if let Some((by, _)) = parent(hop) {
                made.entry(by.to_owned()).or_default().push(at);
            }
        }
        let started = |at: &usize| self.hops.get(*at).and_then(|(_, hop)| hop.get("started_us")?.as_u64());
        made.values_mut().for_each(|all| all.sort_by_key(started));
        made
    }

    /// Where a hop is and those that it made, with their depth, and whether all are there that it heard of. Each has one that made
    /// it, and the first has none: none of them is met twice, and who says to have made himself is not met at all.
    fn follow(&self, first: usize, made: &HashMap<String, Vec<usize>>) -> (Vec<(usize, u64)>, bool) {
        let (mut placed, mut is_whole, mut open) = (Vec::new(), true, vec![(first, 0)]);
        while let Some((at, depth)) = open.pop() {
            let Some((_, hop)) = self.hops.get(at) else { continue };
            placed.push((at, depth));
            let made = made.get(text(hop, "hop")).map(Vec::as_slice).unwrap_or_default();
            is_whole &= text(hop, "side") != "client" || self.has_heard_all(hop, made);
            if depth < DEEPEST {
                open.extend(made.iter().rev().map(|at| (*at, depth + 1)));
            }
        }
        (placed, is_whole)
    }

    /// Whether the servers told what they saw that were sent something, and those all of it that answered.
    fn has_heard_all(&self, hop: &Value, made: &[usize]) -> bool {
        let mut by_attempt: HashMap<u64, &Value> = HashMap::new();
        for (_, other) in made.iter().filter_map(|at| self.hops.get(*at)) {
            by_attempt.entry(parent(other).map_or(0, |(_, attempt)| attempt)).or_insert(other);
        }
        let told = |attempt: u64| by_attempt.get(&attempt);
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
        gathering.add(1, hop("c", "client", Some(("b", 0)), json!([])));
        assert!(gathering.next(true).is_none(), "nobody began it");
        gathering.add(1, hop("a", "client", None, answered()));
        assert!(gathering.next(false).is_none(), "its server has answered, and did not tell");
        let mut unfinished = hop("b", "server", Some(("a", 1)), json!([]));
        unfinished["unfinished"] = true.into();
        gathering.add(1, unfinished);
        assert!(gathering.next(false).is_none(), "it has not told all");
        gathering.add(1, hop("b", "server", Some(("a", 1)), json!([])));
        let traced = gathering.next(false).unwrap();
        assert_eq!((order(&traced), traced.complete), (vec![("a", 0), ("b", 1), ("c", 2)], true));
        assert!(gathering.next(true).is_none(), "it is told once");
        // A server that was given up: it soon tells what it waited for itself.
        let sent = json!([{"what": "picked", "attempt": 1}, {"what": "sent", "attempt": 1}, {"what": "failed"}]);
        gathering.add(1, hop("e", "client", None, sent));
        let mut given_up = hop("f", "server", Some(("e", 1)), json!([]));
        given_up["unfinished"] = true.into();
        gathering.add(1, given_up.clone());
        assert!(gathering.next(false).is_none(), "it is not over");
        given_up["unfinished"] = false.into();
        gathering.add(1, given_up);
        assert!(gathering.next(false).unwrap().complete);
        gathering.add(1, hop("d", "client", None, answered()));
        assert!(gathering.has_begun() && gathering.next(false).is_none());
        assert!(!gathering.next(true).unwrap().complete);
    }

    #[test]
    fn who_lies_about_hops_keeps_nobody_busy() {
        let mut gathering = Gathering::default();
        gathering.add(1, hop("a", "client", None, json!([])));
        for _ in 0..50 {
            gathering.add(1, hop("x", "server", Some(("a", 1)), json!([])));
        }
        gathering.add(1, json!("no hop"));
        gathering.add(1, json!({"hop": 7, "parent": 3, "events": {"a": 1}}));
        gathering.add(1, hop("self", "server", Some(("self", 1)), json!([])));
        gathering.add(1, hop("y", "server", Some(("z", 1)), json!([])));
        gathering.add(1, hop("z", "server", Some(("y", 1)), json!([])));
        // Somebody else's hop, and one that is over, are not told anew.
        gathering.add(2, hop("a", "client", Some(("x", 1)), json!([])));
        let mut unfinished = hop("b", "server", Some(("a", 2)), json!([]));
        unfinished["unfinished"] = true.into();
        gathering.add(1, unfinished);
        gathering.add(2, hop("b", "server", Some(("y", 1)), json!([])));
        let traced = gathering.next(true).unwrap();
        assert_eq!(order(&traced), [("a", 0), ("x", 1), ("b", 1)]);
        assert!(gathering.next(true).is_none());
        // What comes too late takes no room.
        let before = gathering.hops.len();
        gathering.add(1, hop("late", "server", Some(("x", 1)), json!([])));
        gathering.add(1, hop("a", "client", None, json!([])));
        assert_eq!(gathering.hops.len(), before);
    }

    #[test]
    fn a_chain_of_hops_that_is_told_of_ends_somewhere() {
        let mut gathering = Gathering::default();
        gathering.add(0, hop("0", "server", None, json!([])));
        for n in 1..MOST_WAITING {
            let by = (n - 1).to_string();
            gathering.add(n as u64, hop(&n.to_string(), "server", Some((&by, 0)), json!([])));
        }
        assert_eq!(gathering.next(true).unwrap().hops.len() as u64, DEEPEST + 1);
    }
}
