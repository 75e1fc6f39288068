//! What became of a route at one of its parents, of a policy at one of its targets, and of a Gateway or a ListenerSet and its
//! listeners, as Gateway API says it: conditions.

use std::sync::Arc;

use super::compile::{Problem, UNSUPPORTED};
use crate::config::file::Meta;

/// The status of a route at one of its parents (`status.parents[]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentStatus {
    /// The route, `HTTPRoute namespace/name`.
    pub route: Arc<str>,
    /// Which of its `parentRefs`.
    pub parent_ref: usize,
    /// What that is, `Service namespace/name`.
    pub parent: String,
    /// The conditions.
    pub conditions: Vec<Condition>,
}

/// The status of a policy at one of its targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetStatus {
    /// The policy, `BackendTLSPolicy namespace/name`.
    pub policy: Arc<str>,
    /// Which of its `targetRefs`.
    pub target_ref: usize,
    /// The conditions.
    pub conditions: Vec<Condition>,
}

/// Why something is not as it is written: the reason, as a condition has it, and the same for people.
pub(in crate::policy) type Fault = (&'static str, String);

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its type, such as `Accepted` or `ResolvedRefs`.
    pub name: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// The reason, one of Gateway API's words.
    pub reason: &'static str,
    /// The same for people; empty where there is nothing to say.
    pub message: String,
}

impl Condition {
    /// One that holds, or not and why.
    pub(in crate::policy) fn of(name: &'static str, good: &'static str, fault: Option<Fault>) -> Condition {
        let holds = fault.is_none();
        let (reason, message) = fault.unwrap_or_else(|| (good, String::new()));
        Condition { name, holds, reason, message }
    }
}

/// The status of a Gateway, or of a ListenerSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayStatus {
    /// The object, as findings name it.
    pub gateway: Arc<str>,
    /// Its conditions.
    pub conditions: Vec<Condition>,
    /// The hosts at which it is to be found.
    pub addresses: Vec<String>,
    /// What became of each listener.
    pub listeners: Vec<ListenerStatus>,
    /// Of a Gateway: how many ListenerSets are attached to it.
    pub attached_listener_sets: Option<usize>,
}

/// The status of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// How many routes are attached to it.
    pub attached_routes: usize,
    /// The kinds of routes that may be.
    pub supported_kinds: Vec<&'static str>,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

impl ParentStatus {
    /// The status of a route of so many rules with these problems. `unmatched` says why it is not attached: the reason, and what
    /// the parent lacks.
    pub(super) fn new(
        meta: &Meta,
        parent_ref: usize,
        parent: String,
        unmatched: Option<Fault>,
        (problems, rules): (&[Problem], usize),
    ) -> ParentStatus {
        let unsupported: Vec<&Problem> = problems.iter().filter(|problem| problem.reason == UNSUPPORTED).collect();
        let is_affected = |rule: usize| unsupported.iter().any(|problem| problem.rule == rule);
        let is_whole = rules > 0 && (0..rules).all(is_affected);
        let told = |problem: &Problem| format!("{}: {}", problem.field, problem.message);
        let fault = |problem: &Problem| (problem.reason, told(problem));
        let first = unsupported.first();
        let not_accepted = unmatched.or_else(|| first.filter(|_| is_whole).map(|problem| fault(problem)));
        let unresolved = problems.iter().find(|problem| problem.reason != UNSUPPORTED).map(fault);
        let mut conditions = vec![
            Condition::of("Accepted", "Accepted", not_accepted),
            Condition::of("ResolvedRefs", "ResolvedRefs", unresolved),
        ];
        if let Some(problem) = first.filter(|_| !is_whole) {
            let (name, message) = ("PartiallyInvalid", told(problem));
            conditions.push(Condition { name, holds: true, reason: UNSUPPORTED, message });
        }
        ParentStatus { route: meta.id(), parent_ref, parent, conditions }
    }
}
