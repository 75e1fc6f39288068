//! What belongs into the status of an object: Istio's (`meta.v1alpha1.IstioStatus`: the condition `Reconciled`, codes of its analyzers,
//! the generation that this is about), of a route of Gateway API what became of it at each of its parents, of a Gateway or a ListenerSet
//! what became of each of its listeners, and of a GatewayClass whether its Gateways are served. Pure.
//!
//! Whatever others wrote there stays as it is. Nothing that is said names what is in another namespace unless the object does: whoever may
//! read the object may read this.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::facts::Fact;
use super::webhook::{cut, in_words};
use crate::config::gateway_api::{CLASSES, GATEWAY_GROUP, ParentKind};
use crate::config::store::Standing;
use crate::config::support::{ObjectKind, listening_kind};
use crate::config::{Code, Diagnostic, Severity};
use crate::plane::Verdict;
use crate::policy::gateway_api::Condition;

/// Who says what we say of routes (`controllerName`), unless it is to be said in another's place.
pub(super) const CONTROLLER: &str = "policy.mesh-control/mesh";
/// The condition that we say of all other objects.
const RECONCILED: &str = "Reconciled";

/// What Gateways of ours have of Gateway API beyond its core, of which nothing is claimed: of a cluster neither Secrets nor labels of
/// namespaces are read. In the order of the alphabet, as Gateway API wants it.
const FEATURES: [&str; 19] = [
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteSchemeRedirect",
];

/// The longest message.
const LONGEST: usize = 1000;
/// The most codes, and parents and ancestors (Gateway API's own bounds).
const MOST_CODES: usize = 20;
const MOST_PARENTS: usize = 32;
const MOST_ANCESTORS: usize = 16;

/// What is to be written.
#[derive(Debug, PartialEq)]
pub(super) struct Wanted {
    /// What is other than it is now, as a merge patch of `status`.
    pub(super) patch: Value,
    /// What we say, without the times.
    pub(super) words: Value,
}

/// What is to be written of an object by this controller, unless it is there: since this time, where it was not so before.
pub(super) fn wanted(fact: &Fact, verdict: &Verdict, controller: &str, now: &str) -> Option<Wanted> {
    match ObjectKind::ALL.into_iter().find(|kind| kind.title() == fact.resource.title) {
        Some(kind) if kind.is_gateway_route() => route(fact, verdict, controller, now),
        Some(ObjectKind::KubernetesGateway | ObjectKind::ListenerSet) => gateway(fact, verdict, now),
        Some(ObjectKind::BackendTlsPolicy | ObjectKind::BackendTrafficPolicy) => policy(fact, verdict, controller, now),
        _ => istio(fact, verdict, now),
    }
}

/// A condition, since the time that one like it is there.
fn condition(of: &Conditions<'_>, content: Value, now: &str) -> Value {
    let mut content = content;
    let before = of.get(content.get("type").and_then(Value::as_str).unwrap_or_default());
    let is_as_before = before.is_some_and(|before| before.get("status") == content.get("status"));
    let since = before.filter(|_| is_as_before).and_then(|before| before.get("lastTransitionTime"));
    if let Some(content) = content.as_object_mut() {
        content.insert("lastTransitionTime".to_owned(), since.cloned().unwrap_or_else(|| now.into()));
    }
    content
}

type Conditions<'v> = BTreeMap<&'v str, &'v Value>;

/// Conditions by their type.
fn by_type(conditions: &[Value]) -> Conditions<'_> {
    conditions.iter().filter_map(|one| Some((one.get("type")?.as_str()?, one))).collect()
}

fn list<'v>(of: Option<&'v Value>, key: &str) -> &'v [Value] {
    of.and_then(|of| of.get(key)).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text<'v>(of: &'v Value, key: &str) -> &'v str {
    of.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn boolean(holds: bool) -> &'static str {
    if holds { "True" } else { "False" }
}

/// The same without the times.
fn timeless(value: &Value) -> Value {
    match value {
        Value::Object(all) => {
            let others = all.iter().filter(|(key, _)| *key != "lastTransitionTime");
            others.map(|(key, value)| (key.clone(), timeless(value))).collect::<Map<_, _>>().into()
        }
        Value::Array(all) => all.iter().map(timeless).collect(),
        other => other.clone(),
    }
}

/// What is wrong with an object, in words.
fn reasons(verdict: &Verdict) -> String {
    let wrong: Vec<String> = verdict.findings.iter().filter(|one| one.rejects_object()).map(in_words).collect();
    wrong.join("; ")
}

/// Whether an object is in force, why, and what is not, for people. Of what does not make it wrong only the places are told: words might
/// name what is in other namespaces.
fn state(kind: &str, verdict: &Verdict) -> (bool, &'static str, String) {
    if let Some(standing) = verdict.standing {
        let reason = match standing {
            Standing::Held => "LastGoodState",
            Standing::FailsClosed => "FailsClosed",
            Standing::NotInForce => "NotInForce",
            Standing::Unread => "Unread",
        };
        return (false, reason, format!("in force instead is {}: {}", standing.instead(kind), reasons(verdict)));
    }
    let has_no_effect = |one: &&Diagnostic| {
        matches!(one.code, Code::NotSupportedYet | Code::Unenforced | Code::Refused | Code::Ignored)
    };
    let is_error = |one: &&Diagnostic| one.severity == Severity::Error;
    let all = verdict.findings.iter().filter(|one| one.severity != Severity::Info);
    let lacking: Vec<&Diagnostic> = all.filter(|one| has_no_effect(one) || is_error(one)).collect();
    if lacking.is_empty() {
        return (true, "InForce", String::new());
    }
    let is_nothing_left = lacking.iter().any(|one| one.code == Code::NotSupportedYet && one.field.is_none());
    let place = |one: &&Diagnostic| format!("{} [{}]", one.field.as_deref().unwrap_or("all of it"), one.code.as_str());
    let places: Vec<String> = lacking.iter().map(place).collect();
    let message = format!("not in force, or not as it is written: {}", places.join(", "));
    match is_nothing_left {
        true => (false, "NotInForce", message),
        false => (!lacking.iter().any(is_error), "PartlyInForce", message),
    }
}

fn istio(fact: &Fact, verdict: &Verdict, now: &str) -> Option<Wanted> {
    let status = fact.status.as_ref();
    let (holds, reason, message) = state(fact.resource.kind, verdict);
    let message = cut(&message, LONGEST);
    let before = list(status, "conditions");
    let content = json!({"type": RECONCILED, "status": boolean(holds), "reason": reason, "message": message});
    let ours = condition(&by_type(before), content, now);
    let mut conditions: Vec<Value> = before.iter().filter(|one| text(one, "type") != RECONCILED).cloned().collect();
    conditions.push(ours.clone());

    let codes = codes(&verdict.findings);
    let (known, others): (Vec<&Value>, Vec<&Value>) =
        list(status, "validationMessages").iter().partition(|one| is_ours(one));
    let generation = status.and_then(|status| status.get("observedGeneration")).and_then(number);
    let said = by_type(before).get(RECONCILED).map(|one| timeless(one));
    let is_there = said.as_ref() == Some(&timeless(&ours))
        && known.iter().copied().eq(codes.iter())
        && generation == Some(fact.generation);
    if is_there {
        return None;
    }
    let words = json!([timeless(&ours), codes, fact.generation]);
    let messages: Vec<Value> = others.into_iter().cloned().chain(codes).collect();
    let messages = if messages.is_empty() { Value::Null } else { messages.into() };
    let mut patch = json!({"conditions": conditions, "observedGeneration": fact.generation});
    let has_messages = status.is_some_and(|status| status.get("validationMessages").is_some());
    if let Some(patch) = patch.as_object_mut().filter(|_| has_messages || !messages.is_null()) {
        patch.insert("validationMessages".to_owned(), messages);
    }
    Some(Wanted { patch, words })
}

/// A number that Istio may have written as a text.
fn number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

/// What Istio's status says of findings: codes, and no words. Each once.
fn codes(findings: &[Diagnostic]) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    for finding in findings.iter().filter(|finding| finding.severity != Severity::Info) {
        let mut kind = json!({"name": finding.code.as_str()});
        let mut message = json!({"level": finding.severity.as_str().to_uppercase()});
        if let (Some(code), Some(kind), Some(message)) = (finding.istio, kind.as_object_mut(), message.as_object_mut())
        {
            kind.insert("code".to_owned(), code.into());
            let page = format!("https://istio.io/latest/docs/reference/config/analysis/{}/", code.to_lowercase());
            message.insert("documentationUrl".to_owned(), page.into());
        }
        if let Some(message) = message.as_object_mut() {
            message.insert("type".to_owned(), kind);
        }
        if !all.contains(&message) && all.len() < MOST_CODES {
            all.push(message);
        }
    }
    all
}

/// Istio's own names of findings are in capitals.
fn is_ours(message: &Value) -> bool {
    let name = message.get("type").map(|kind| text(kind, "name")).unwrap_or_default();
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
}

/// Conditions of Gateway API, since the time that ones like them are there.
fn conditions(said: &[Condition], before: &Conditions<'_>, fact: &Fact, now: &str) -> Vec<Value> {
    let all = said.iter().map(|one| {
        let content = json!({
            "type": one.name, "status": boolean(one.holds), "reason": one.reason,
            "message": cut(&one.message, LONGEST), "observedGeneration": fact.generation,
        });
        condition(before, content, now)
    });
    all.collect()
}

/// Of an object that is wrong: another state of it is in force.
fn not_accepted(standing: Standing, reason: &'static str, fact: &Fact, verdict: &Verdict) -> Condition {
    let message = format!("in force instead is {}: {}", standing.instead(fact.resource.kind), reasons(verdict));
    Condition { name: "Accepted", holds: false, reason, message }
}

/// Whether a controller of this name is this one: what it said by its own name is its to take back, too.
fn is_said_by(name: &str, controller: &str) -> bool {
    name == controller || name == CONTROLLER
}

/// The controller of a GatewayClass whose Gateways are served here, where that is somebody else: nobody here says so in its status.
pub(super) fn foreign_controller(fact: &Fact, controller: &str) -> Option<String> {
    let object: Value = serde_json::from_str(&fact.text).ok()?;
    let name = text(object.get("spec")?, "controllerName");
    let is_served = CLASSES.contains(&text(object.get("metadata")?, "name"));
    (is_served && !is_said_by(name, controller)).then(|| name.to_owned())
}

/// Of a GatewayClass of this controller; others are nobody's business here. Whether Gateways are served goes by the names of their
/// classes.
pub(super) fn class(fact: &Fact, controller: &str, now: &str) -> Option<Wanted> {
    let object: Value = serde_json::from_str(&fact.text).ok()?;
    let (metadata, spec) = (object.get("metadata")?, object.get("spec")?);
    if !is_said_by(text(spec, "controllerName"), controller) {
        return None;
    }
    let is_served = CLASSES.contains(&text(metadata, "name"));
    let (holds, reason, message) = match (is_served, spec.get("parametersRef")) {
        (false, _) => {
            (false, "Unsupported", format!("Gateways of the classes {} are served here", CLASSES.join(" and ")))
        }
        (true, Some(_)) => {
            (false, "InvalidParameters", "no parameters are taken: its Gateways are served without them".to_owned())
        }
        (true, None) => (true, "Accepted", String::new()),
    };
    let said = [Condition { name: "Accepted", holds, reason, message }];
    let status = fact.status.as_ref();
    let before = list(status, "conditions");
    let others = before.iter().filter(|one| text(one, "type") != "Accepted").cloned();
    let all: Vec<Value> = others.chain(conditions(&said, &by_type(before), fact, now)).collect();
    let features = FEATURES.iter().filter(|_| holds).map(|name| json!({"name": name}));
    let patch = json!({"conditions": all, "supportedFeatures": features.collect::<Vec<_>>()});
    let there = json!({"conditions": before, "supportedFeatures": list(status, "supportedFeatures")});
    let words = timeless(&patch);
    (timeless(&there) != words).then_some(Wanted { patch, words })
}

/// Of a Gateway of a class of ours, or a ListenerSet of one; others are nobody's business here.
fn gateway(fact: &Fact, verdict: &Verdict, now: &str) -> Option<Wanted> {
    let ours = verdict.gateway.as_ref()?;
    let status = fact.status.as_ref();
    let before = list(status, "conditions");
    let mut said = ours.conditions.clone();
    if let Some(standing) = verdict.standing {
        said.retain(|one| one.name != "Accepted");
        said.insert(0, not_accepted(standing, "Invalid", fact, verdict));
    }
    let own = conditions(&said, &by_type(before), fact, now);
    let is_own = |one: &Value| said.iter().any(|own| own.name == text(one, "type"));
    let others = before.iter().filter(|one| !is_own(one)).cloned();
    let all: Vec<Value> = others.chain(own).collect();
    let addresses: Vec<Value> = ours.addresses.iter().map(|host| json!({"type": "Hostname", "value": host})).collect();
    let known = list(status, "listeners");
    let listeners = ours.listeners.iter().map(|listener| {
        let before = known.iter().find(|one| text(one, "name") == listener.name);
        let kinds = listener.supported_kinds.iter().map(|kind| json!({"group": GATEWAY_GROUP, "kind": kind}));
        json!({
            "name": listener.name,
            "attachedRoutes": listener.attached_routes,
            "supportedKinds": kinds.collect::<Vec<_>>(),
            "conditions": conditions(&listener.conditions, &by_type(list(before, "conditions")), fact, now),
        })
    });
    let mut patch = json!({"conditions": all, "listeners": listeners.collect::<Vec<_>>()});
    let mut there = json!({"conditions": before, "listeners": known});
    if let (Some(sets), Some(patch), Some(there)) =
        (ours.attached_listener_sets, patch.as_object_mut(), there.as_object_mut())
    {
        patch.insert("addresses".to_owned(), addresses.into());
        there.insert("addresses".to_owned(), list(status, "addresses").into());
        // A cluster that knows no ListenerSets does not keep their number.
        const SETS: &str = "attachedListenerSets";
        let before = status.and_then(|status| status.get(SETS));
        if sets > 0 || before.is_some() {
            patch.insert(SETS.to_owned(), sets.into());
            there.insert(SETS.to_owned(), before.cloned().unwrap_or_default());
        }
    }
    let words = timeless(&patch);
    (timeless(&there) != words).then_some(Wanted { patch, words })
}

/// What is said at each of these references, beside what others say: the names of the list and of a reference in it, and how many there
/// may be.
fn at_each(
    fact: &Fact,
    (all, one, most): (&str, &str, usize),
    said: &[(Value, Vec<Condition>)],
    controller: &str,
    now: &str,
) -> Option<Wanted> {
    let before = list(fact.status.as_ref(), all);
    let (known, others): (Vec<&Value>, Vec<&Value>) =
        before.iter().partition(|entry| is_said_by(text(entry, "controllerName"), controller));
    let entry = |(reference, said): &(Value, Vec<Condition>)| {
        let before = known.iter().find(|entry| entry.get(one) == Some(reference));
        let before = by_type(list(before.copied(), "conditions"));
        json!({one: reference, "controllerName": controller, "conditions": conditions(said, &before, fact, now)})
    };
    let ours: Vec<Value> = said.iter().map(entry).collect();
    let words = timeless(&json!(ours));
    if timeless(&json!(known)) == words {
        return None;
    }
    let entries: Vec<Value> = others.into_iter().cloned().chain(ours).take(most).collect();
    Some(Wanted { patch: json!({all: entries}), words })
}

fn route(fact: &Fact, verdict: &Verdict, controller: &str, now: &str) -> Option<Wanted> {
    let object: Value = serde_json::from_str(&fact.text).ok()?;
    let references = list(object.get("spec"), "parentRefs");
    let said: Vec<(Value, Vec<Condition>)> = match verdict.standing {
        None => {
            let of = |index: usize| references.get(index).cloned();
            verdict.parents.iter().filter_map(|one| Some((of(one.parent_ref)?, one.conditions.clone()))).collect()
        }
        // What is in force is another state of it.
        Some(standing) => {
            let said = not_accepted(standing, "UnsupportedValue", fact, verdict);
            let is_meant = |one: &&Value| is_ours_to_judge(one, fact.namespace(), verdict);
            references.iter().filter(is_meant).map(|one| (one.clone(), vec![said.clone()])).collect()
        }
    };
    at_each(fact, ("parents", "parentRef", MOST_PARENTS), &said, controller, now)
}

/// Of a policy of Gateway API: what became of it at each of its targets, which stand for all that is in front of them.
fn policy(fact: &Fact, verdict: &Verdict, controller: &str, now: &str) -> Option<Wanted> {
    let object: Value = serde_json::from_str(&fact.text).ok()?;
    let targets = list(object.get("spec"), "targetRefs");
    let at = |target: &Value| {
        let mut reference = target.clone();
        if let Some(fields) = reference.as_object_mut() {
            fields.insert("namespace".to_owned(), fact.namespace().into());
        }
        reference
    };
    let said: Vec<(Value, Vec<Condition>)> = match verdict.standing {
        None => {
            let of = |index: usize| targets.get(index).map(at);
            verdict.targets.iter().filter_map(|one| Some((of(one.target_ref)?, one.conditions.clone()))).collect()
        }
        Some(standing) => {
            let said = not_accepted(standing, "Invalid", fact, verdict);
            targets.iter().map(|one| (at(one), vec![said.clone()])).collect()
        }
    };
    at_each(fact, ("ancestors", "ancestorRef", MOST_ANCESTORS), &said, controller, now)
}

/// Whether a parent of a route of this namespace is something of the mesh, or a Gateway of ours or a ListenerSet of one.
fn is_ours_to_judge(parent: &Value, namespace: &str, verdict: &Verdict) -> bool {
    let field = |key: &str| parent.get(key).and_then(Value::as_str);
    let Some(kind) = listening_kind(field("group"), field("kind")) else {
        return ParentKind::of(field("group"), field("kind")).is_some();
    };
    let (kind, namespace) = (kind.title(), field("namespace").unwrap_or(namespace));
    verdict.gateways.contains(format!("{kind} {namespace}/{}", text(parent, "name")).as_str())
}

#[cfg(test)]
mod tests {
    use super::super::kinds::{CLASS, RESOURCES};
    use super::super::objects;
    use super::*;
    use crate::config::{Source, file};
    use crate::plane::Plane;

    const T1: &str = "2026-11-30T01:00:00Z";
    const T2: &str = "2026-11-30T02:00:00Z";
    const ISTIOS: &str = "istio.io/gateway-controller";

    /// As the controller that this is where nothing else is said.
    fn wanted(fact: &Fact, verdict: &Verdict, now: &str) -> Option<Wanted> {
        super::wanted(fact, verdict, CONTROLLER, now)
    }

    fn fact(kind: &str, object: &Value) -> Fact {
        let resource = RESOURCES.iter().find(|one| one.kind == kind).expect("a kind");
        let name = ("shop".into(), "a".into());
        let version = resource.versions[0];
        let text = objects::text(resource, version, object);
        Fact::of(resource, version, &name, objects::text_name(resource, &name), text, object)
    }

    fn finding(text: &str) -> Vec<Diagnostic> {
        let found = file::read(Source { name: "t.yaml".into(), text: text.into() }).diagnostics;
        assert!(!found.is_empty());
        found
    }

    fn rule(generation: i64, status: Value) -> Value {
        json!({"metadata": {"name": "a", "namespace": "shop", "generation": generation, "resourceVersion": "1"}, "status": status})
    }

    /// What is stored after a patch.
    fn patched(status: &Value, wanted: &Wanted) -> Value {
        let mut status = status.as_object().cloned().unwrap_or_default();
        for (key, value) in wanted.patch.as_object().expect("an object") {
            status.remove(key);
            if !value.is_null() {
                status.insert(key.clone(), value.clone());
            }
        }
        status.into()
    }

    #[test]
    fn an_object_says_whether_it_is_in_force_what_is_the_matter_and_since_when() {
        let good = Verdict::default();
        let first = wanted(&fact("VirtualService", &rule(3, Value::Null)), &good, T1).expect("nothing is there");
        let reconciled = |status: &str, reason: &str, message: &str, since: &str| json!({"type": "Reconciled", "status": status, "reason": reason, "message": message, "lastTransitionTime": since});
        let expected = json!({"conditions": [reconciled("True", "InForce", "", T1)], "observedGeneration": 3});
        assert_eq!(first.patch, expected);
        let there = patched(&Value::Null, &first);
        assert_eq!(wanted(&fact("VirtualService", &rule(3, there.clone())), &good, T2), None);
        let again =
            wanted(&fact("VirtualService", &rule(4, there.clone())), &good, T2).expect("it is about another one");
        assert_eq!(again.patch["conditions"][0]["lastTransitionTime"], T1, "it has been so since then");

        let text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec: {hosts: [x], htpp: []}\n";
        let wrong = Verdict { standing: Some(Standing::Held), findings: finding(text), ..Verdict::default() };
        let refused = wanted(&fact("VirtualService", &rule(4, there.clone())), &wrong, T2).expect("it is wrong");
        let message = refused.patch["conditions"][0]["message"].as_str().expect("a text");
        assert!(
            message.starts_with("in force instead is its last good state: htpp: unknown field; did you mean `http`?"),
            "{message}"
        );
        assert_eq!(refused.patch["conditions"][0], reconciled("False", "LastGoodState", message, T2));
        let schema = json!({
            "type": {"name": "unknown-field", "code": "IST0106"}, "level": "ERROR",
            "documentationUrl": "https://istio.io/latest/docs/reference/config/analysis/ist0106/",
        });
        assert_eq!(refused.patch["validationMessages"][0], schema);
        let there = patched(&there, &refused);
        assert_eq!(wanted(&fact("VirtualService", &rule(4, there.clone())), &wrong, T1), None);
        let mended = wanted(&fact("VirtualService", &rule(5, there)), &good, T1).expect("it is mended");
        assert_eq!(mended.patch["validationMessages"], Value::Null, "a merge patch takes it away");
    }

    #[test]
    fn what_others_say_in_a_status_stays() {
        let others = json!({
            "conditions": [{"type": "Healthy", "status": "True"}, {"type": "Reconciled", "status": "Unknown"}],
            "validationMessages": [{"type": {"name": "Foreign", "code": "XYZ0999"}, "level": "INFO"}],
            "observedGeneration": "3", "addresses": [{"value": "240.0.0.1"}],
        });
        let first =
            wanted(&fact("WorkloadEntry", &rule(3, others.clone())), &Verdict::default(), T1).expect("ours is missing");
        assert_eq!(first.patch["conditions"][0], others["conditions"][0]);
        assert_eq!(first.patch["conditions"][1]["status"], "True");
        assert_eq!(first.patch["validationMessages"], others["validationMessages"]);
        assert!(first.patch.get("addresses").is_none());
        let mut there = patched(&others, &first);
        // As Istio itself writes it.
        there["observedGeneration"] = "3".into();
        assert_eq!(wanted(&fact("WorkloadEntry", &rule(3, there)), &Verdict::default(), T2), None);
    }

    #[test]
    fn what_has_no_effect_is_not_said_to_be_in_force_and_nothing_of_other_namespaces_is_named() {
        let of = |kind: &str, spec: Value| {
            let (fact, verdict) = judged(kind, &json!({"metadata": {"name": "a", "namespace": "shop"}, "spec": spec}));
            let wanted = wanted(&fact, &verdict, T1).expect("nothing is there");
            let of = &wanted.patch["conditions"][0];
            ["status", "reason", "message"].map(|key| text(of, key).to_owned())
        };
        let to_web = json!([{"route": [{"destination": {"host": "web"}}]}]);
        let to_web = json!([{"match": [{"statPrefix": "a"}], "route": to_web[0]["route"]}]);
        let partly = of("VirtualService", json!({"hosts": ["web"], "http": to_web}));
        let message = "not in force, or not as it is written: http[0].match[0].statPrefix [not-supported-yet]";
        assert_eq!(partly, ["True", "PartlyInForce", message]);
        let patch = json!({"applyTo": "CLUSTER", "patch": {"operation": "MERGE", "value": {"name": "x"}}});
        assert_eq!(of("EnvoyFilter", json!({"configPatches": [patch]}))[..2], ["False", "NotInForce"]);
        let origin = crate::config::Source { name: "t.yaml".into(), text: "".into() };
        let origin = crate::config::diagnostic::Origin { source: origin, span: Default::default() };
        let words = "there is no salaries.hr; did you mean `payroll.hr`?";
        let finding = |severity| Diagnostic::at(&origin, severity, Code::UnknownReference, words).field("http[0]");
        let (error, warning) = (finding(Severity::Error), finding(Severity::Warning));
        let said = |findings: Vec<Diagnostic>| state("VirtualService", &Verdict { findings, ..Verdict::default() });
        let message = "not in force, or not as it is written: http[0] [unknown-reference]".to_owned();
        assert_eq!(said(vec![error]), (false, "PartlyInForce", message));
        assert_eq!(said(vec![warning]), (true, "InForce", String::new()));
    }

    fn gateway(object: &Value) -> (Fact, Verdict) {
        judged("HTTPRoute", object)
    }

    /// What a plane makes of an object beside a service.
    fn judged(kind: &str, object: &Value) -> (Fact, Verdict) {
        let services = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{port: 80, name: http}]}
";
        judged_beside(services, kind, object)
    }

    fn judged_beside(others: &str, kind: &str, object: &Value) -> (Fact, Verdict) {
        let fact = fact(kind, object);
        let plane = Plane::from_yaml(others).expect("good");
        // What is wrong in it is a part of what is asked for.
        drop(plane.set_yaml(&fact.text_name, &fact.text));
        let verdict = plane.verdicts(&[fact.asked()]).pop().flatten().expect("it is known");
        (fact, verdict)
    }

    fn http_route(generation: i64, spec: Value, status: Value) -> Value {
        let metadata = json!({"name": "a", "namespace": "shop", "generation": generation, "resourceVersion": "1"});
        json!({"metadata": metadata, "spec": spec, "status": status})
    }

    #[test]
    fn a_route_says_what_became_of_it_at_each_of_its_services_and_nothing_of_gateways_of_others() {
        let service = |name: &str| json!({"group": "", "kind": "Service", "name": name, "port": 80});
        let gateway_ref = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"});
        let spec = json!({
            "parentRefs": [gateway_ref, service("web"), service("gone")],
            "rules": [{"backendRefs": [{"name": "web", "port": 80}, {"name": "nobody", "port": 80}]}],
        });
        let foreign = json!({"parentRef": gateway_ref, "controllerName": "example.com/edge", "conditions": []});
        let before = json!({"parents": [foreign]});
        let (fact, verdict) = gateway(&http_route(2, spec.clone(), before.clone()));
        let first = wanted(&fact, &verdict, T1).expect("nothing of ours is there");
        let parents = first.patch["parents"].as_array().expect("parents");
        assert_eq!((parents.len(), &parents[0]), (3, &foreign));
        let facts = |parent: &Value| {
            let all = parent["conditions"].as_array().expect("conditions").iter();
            let one = |it: &Value| format!("{}={} {}", text(it, "type"), text(it, "status"), text(it, "reason"));
            assert!(all.clone().all(|it| it["observedGeneration"] == 2 && it["lastTransitionTime"] == T1));
            all.map(one).collect::<Vec<_>>()
        };
        assert_eq!((&parents[1]["parentRef"], &parents[2]["parentRef"]), (&service("web"), &service("gone")));
        assert_eq!(parents[1]["controllerName"], CONTROLLER);
        assert_eq!(facts(&parents[1]), ["Accepted=True Accepted", "ResolvedRefs=False BackendNotFound"]);
        assert_eq!(facts(&parents[2]), ["Accepted=False NoMatchingParent", "ResolvedRefs=False BackendNotFound"]);

        let there = patched(&before, &first);
        let (fact, verdict) = gateway(&http_route(2, spec.clone(), there.clone()));
        assert_eq!(wanted(&fact, &verdict, T2), None);
        // It leaves the mesh: so does what is said of it.
        let (fact, verdict) = gateway(&http_route(3, json!({"parentRefs": [gateway_ref], "rules": []}), there.clone()));
        assert_eq!(wanted(&fact, &verdict, T2).expect("ours goes").patch, before);

        let mut wrong = spec;
        wrong["ruels"] = json!([]);
        let (fact, verdict) = gateway(&http_route(3, wrong, there));
        let refused = wanted(&fact, &verdict, T2).expect("it is wrong");
        let refused = &refused.patch["parents"][1]["conditions"];
        assert_eq!(refused.as_array().map(Vec::len), Some(1));
        assert_eq!((&refused[0]["status"], &refused[0]["reason"]), (&json!("False"), &json!("UnsupportedValue")));
        assert!(text(&refused[0], "message").contains("ruels"), "{refused}");
        let elsewhere = http_route(1, json!({"parentRefs": [gateway_ref], "rules": []}), Value::Null);
        let (fact, verdict) = gateway(&elsewhere);
        assert_eq!(wanted(&fact, &verdict, T1), None, "it is nobody's business here");
    }

    #[test]
    fn a_wrong_route_is_not_accepted_at_gateways_of_ours_and_says_nothing_of_others() {
        let beside = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: infra}
spec:
  gatewayClassName: mesh-control
  listeners: [{name: tls, port: 443, protocol: TLS, tls: {mode: Passthrough}, allowedRoutes: {namespaces: {from: All}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: foreign, namespace: shop}
spec: {gatewayClassName: other, listeners: [{name: tls, port: 443, protocol: TLS, tls: {mode: Passthrough}}]}
";
        let ours = json!({"name": "edge", "namespace": "infra"});
        let others = [json!({"name": "edge"}), json!({"name": "foreign"}), json!({"kind": "Gateway", "name": "gone"})];
        let parents: Vec<Value> = std::iter::once(&ours).chain(&others).cloned().collect();
        for kind in ["TLSRoute", "TCPRoute", "HTTPRoute"] {
            let spec = json!({"parentRefs": parents, "ruels": []});
            let (fact, verdict) = judged_beside(beside, kind, &http_route(2, spec, Value::Null));
            assert!(verdict.standing.is_some(), "{kind}");
            let wanted = wanted(&fact, &verdict, T1).unwrap_or_else(|| panic!("{kind} is wrong at a Gateway of ours"));
            let [one] = wanted.patch["parents"].as_array().expect("parents").as_slice() else { panic!("{wanted:?}") };
            assert_eq!((&one["parentRef"], &one["controllerName"]), (&ours, &json!(CONTROLLER)));
            let condition = &one["conditions"][0];
            let said = ["type", "status", "reason"].map(|key| text(condition, key));
            assert_eq!(said, ["Accepted", "False", "UnsupportedValue"], "{kind}");
        }
    }

    #[test]
    fn a_gateway_says_what_became_of_it_and_of_each_of_its_listeners_and_nothing_where_it_is_anothers() {
        let of = |class: &str, status: Value| {
            let listeners = json!([
                {"name": "http", "port": 80, "protocol": "HTTP"},
                {"name": "udp", "port": 53, "protocol": "UDP"},
            ]);
            let metadata = json!({"name": "a", "namespace": "shop", "generation": 2, "resourceVersion": "1"});
            let spec = json!({"gatewayClassName": class, "listeners": listeners});
            json!({"metadata": metadata, "spec": spec, "status": status})
        };
        let resource = RESOURCES.iter().find(|one| one.title == "KubernetesGateway").expect("a kind");
        let asked = |object: &Value| {
            let name = ("shop".into(), "a".into());
            let version = resource.versions[0];
            let text = objects::text(resource, version, object);
            let fact = Fact::of(resource, version, &name, objects::text_name(resource, &name), text, object);
            let plane = Plane::from_yaml("").expect("nothing");
            plane.set_yaml(&fact.text_name, &fact.text).expect("good");
            let verdict = plane.verdicts(&[fact.asked()]).pop().flatten().expect("it is known");
            wanted(&fact, &verdict, T1)
        };
        let pending = json!({"type": "Accepted", "status": "Unknown", "reason": "Pending", "lastTransitionTime": T2});
        let foreign = json!({"type": "example.com/Ready", "status": "True", "lastTransitionTime": T2});
        let before = json!({"conditions": [pending, foreign]});
        let first = asked(&of("istio", before.clone())).expect("nothing of ours is there");
        let conditions = |of: &Value| {
            let all = of["conditions"].as_array().expect("conditions").iter();
            let one = |it: &Value| format!("{}={} {}", text(it, "type"), text(it, "status"), text(it, "reason"));
            all.map(one).collect::<Vec<_>>()
        };
        let expected = ["example.com/Ready=True ", "Accepted=True ListenersNotValid", "Programmed=True Programmed"];
        assert_eq!(conditions(&first.patch), expected);
        let [http, udp] = first.patch["listeners"].as_array().expect("listeners").as_slice() else {
            panic!("{first:?}")
        };
        let good = [
            "Accepted=True Accepted",
            "Conflicted=False NoConflicts",
            "ResolvedRefs=True ResolvedRefs",
            "Programmed=True Programmed",
        ];
        assert_eq!(
            (text(http, "name"), &http["attachedRoutes"], conditions(http)),
            ("http", &json!(0), good.map(str::to_owned).into())
        );
        assert_eq!(http["supportedKinds"][0], json!({"group": GATEWAY_GROUP, "kind": "HTTPRoute"}));
        assert_eq!(conditions(udp)[0], "Accepted=False UnsupportedProtocol");
        assert_eq!(asked(&of("istio", patched(&before, &first))), None, "it is there");
        assert_eq!(asked(&of("other", before)), None);
    }

    #[test]
    fn a_class_of_ours_says_whether_its_gateways_are_served_and_with_what_and_anothers_nothing() {
        let parameters = json!({"group": "", "kind": "ConfigMap", "name": "a"});
        let fact_of = |name: &str, controller: &str, parameters: &Value, status: &Value| {
            let mut spec = json!({"controllerName": controller});
            if !parameters.is_null() {
                spec["parametersRef"] = parameters.clone();
            }
            let object = json!({
                "metadata": {"name": name, "generation": 3, "resourceVersion": "1"}, "spec": spec, "status": status,
            });
            let known = ("".into(), name.into());
            let text = objects::text(&CLASS, "v1", &object);
            Fact::of(&CLASS, "v1", &known, objects::text_name(&CLASS, &known), text, &object)
        };
        let asked = |name: &str, controller: &str, parameters: &Value, status: &Value| {
            class(&fact_of(name, controller, parameters, status), CONTROLLER, T1)
        };
        let (none, pending) = (Value::Null, json!({"type": "Accepted", "status": "Unknown", "lastTransitionTime": T2}));
        let foreign = json!({"type": "SupportedVersion", "status": "True", "lastTransitionTime": T2});
        let before = json!({"conditions": [foreign, pending]});
        for (name, parameters, expected, features) in [
            ("mesh-control", &none, "True Accepted 3", FEATURES.len()),
            ("istio", &none, "True Accepted 3", FEATURES.len()),
            ("mesh-control", &parameters, "False InvalidParameters 3", 0),
            ("other", &none, "False Unsupported 3", 0),
        ] {
            let wanted = asked(name, CONTROLLER, parameters, &before).unwrap_or_else(|| panic!("{name} is ours"));
            let [foreign, ours] = wanted.patch["conditions"].as_array().expect("conditions").as_slice() else {
                panic!("{wanted:?}")
            };
            assert_eq!((text(foreign, "type"), &ours["lastTransitionTime"]), ("SupportedVersion", &json!(T1)));
            let said = format!("{} {} {}", text(ours, "status"), text(ours, "reason"), ours["observedGeneration"]);
            assert_eq!((said.as_str(), list(Some(&wanted.patch), "supportedFeatures").len()), (expected, features));
            assert_eq!(asked(name, CONTROLLER, parameters, &patched(&before, &wanted)), None, "it is there");
        }
        assert_eq!(asked("istio", ISTIOS, &none, &before), None);
        // Whose status nobody writes is known, and it is written in another's place where that is asked for.
        for (name, controller, expected) in
            [("istio", ISTIOS, Some(ISTIOS)), ("other", ISTIOS, None), ("istio", CONTROLLER, None)]
        {
            let fact = fact_of(name, controller, &none, &before);
            assert_eq!(foreign_controller(&fact, CONTROLLER).as_deref(), expected, "{name} {controller}");
            assert_eq!(foreign_controller(&fact, ISTIOS), None, "{name} {controller}");
            assert!(class(&fact, ISTIOS, T1).is_some(), "{name} {controller}");
        }
        assert!(FEATURES.is_sorted());
    }

    #[test]
    fn a_listener_set_says_what_became_of_it_and_its_gateway_how_many_are_attached() {
        let listener = |name: &str, host: &str| json!({"name": name, "port": 80, "protocol": "HTTP", "hostname": host});
        let metadata = json!({"name": "a", "namespace": "shop", "generation": 2, "resourceVersion": "1"});
        let gateway = |name: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: shop}}\n\
                 spec: {{gatewayClassName: mesh-control, allowedListeners: {{namespaces: {{from: Same}}}}, listeners: [{}]}}\n",
                listener("own", "a.example")
            )
        };
        let object = |parent: &str| {
            let listeners = [listener("a", "a.example"), listener("b", "b.example")];
            json!({"metadata": metadata, "spec": {"parentRef": {"name": parent}, "listeners": listeners}})
        };
        let (fact, verdict) = judged_beside(&gateway("edge"), "ListenerSet", &object("edge"));
        let said = wanted(&fact, &verdict, T1).expect("nothing is there").patch;
        let keys: Vec<&str> = said.as_object().expect("a status").keys().map(String::as_str).collect();
        assert_eq!(keys, ["conditions", "listeners"], "it has no addresses");
        let reasons = |of: &Value| {
            let all = of["conditions"].as_array().expect("conditions").iter();
            all.map(|one| text(one, "reason").to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(reasons(&said), ["ListenersNotValid", "Programmed"]);
        assert_eq!(reasons(&said["listeners"][0])[..2], ["HostnameConflict", "HostnameConflict"]);
        assert_eq!(reasons(&said["listeners"][1])[..2], ["Accepted", "NoConflicts"]);
        let (fact, verdict) = judged_beside(&gateway("edge"), "ListenerSet", &object("gone"));
        assert_eq!(wanted(&fact, &verdict, T1), None, "it is nobody's business here");

        let set = |parent: &str| {
            let spec = json!({"parentRef": {"name": parent}, "listeners": [listener("b", "b.example")]});
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {{name: more, namespace: shop}}\nspec: {spec}\n"
            )
        };
        let resource = RESOURCES.iter().find(|one| one.title == "KubernetesGateway").expect("a kind");
        let counted = |beside: &str, status: Value| {
            let allowed = json!({"namespaces": {"from": "Same"}});
            let own = [listener("own", "a.example")];
            let spec = json!({"gatewayClassName": "istio", "allowedListeners": allowed, "listeners": own});
            let object = json!({"metadata": metadata, "spec": spec, "status": status});
            let (name, version) = (("shop".into(), "a".into()), resource.versions[0]);
            let text = objects::text(resource, version, &object);
            let fact = Fact::of(resource, version, &name, objects::text_name(resource, &name), text, &object);
            let plane = Plane::from_yaml(beside).expect("good");
            plane.set_yaml(&fact.text_name, &fact.text).expect("good");
            let verdict = plane.verdicts(&[fact.asked()]).pop().flatten().expect("it is known");
            wanted(&fact, &verdict, T1).map(|wanted| wanted.patch.get("attachedListenerSets").cloned())
        };
        assert_eq!(counted(&set("a"), Value::Null), Some(Some(json!(1))));
        assert_eq!(counted(&set("other"), json!({"attachedListenerSets": 1})), Some(Some(json!(0))), "it was attached");
        assert_eq!(counted(&set("other"), Value::Null), Some(None), "a cluster may not know of them");
    }

    #[test]
    fn a_policy_says_what_became_of_it_at_each_of_its_targets_beside_what_others_say() {
        let target = |name: &str| json!({"group": "", "kind": "Service", "name": name});
        let validation = json!({"hostname": "web.internal", "wellKnownCACertificates": "System"});
        let metadata = json!({"name": "a", "namespace": "shop", "generation": 2, "resourceVersion": "1"});
        let foreign = json!({"ancestorRef": target("web"), "controllerName": "example.com/edge", "conditions": []});
        let before = json!({"ancestors": [foreign]});
        let object = |validation: &Value, status: &Value| {
            let spec = json!({"targetRefs": [target("web"), target("gone")], "validation": validation});
            json!({"metadata": metadata, "spec": spec, "status": status})
        };
        let (fact, verdict) = judged("BackendTLSPolicy", &object(&validation, &before));
        let first = wanted(&fact, &verdict, T1).expect("nothing of ours is there");
        let [others, web, gone] = first.patch["ancestors"].as_array().expect("ancestors").as_slice() else {
            panic!("{first:?}")
        };
        assert_eq!((others, &web["controllerName"]), (&foreign, &json!(CONTROLLER)));
        let at = json!({"group": "", "kind": "Service", "name": "web", "namespace": "shop"});
        assert_eq!(web["ancestorRef"], at);
        let reason = |of: &Value| text(&of["conditions"][0], "reason").to_owned();
        assert_eq!((reason(web), reason(gone)), ("Accepted".to_owned(), "TargetNotFound".to_owned()));
        let (fact, verdict) = judged("BackendTLSPolicy", &object(&validation, &patched(&before, &first)));
        assert_eq!(wanted(&fact, &verdict, T2), None, "it is there");
        let (fact, verdict) = judged("BackendTLSPolicy", &object(&json!({"hostnam": "a"}), &before));
        let wrong = wanted(&fact, &verdict, T1).expect("it is wrong").patch;
        assert_eq!(reason(&wrong["ancestors"][1]), "Invalid");
    }

    #[test]
    fn a_policy_on_retries_says_whether_it_is_accepted_and_nothing_else() {
        let target = |name: &str| json!({"group": "", "kind": "Service", "name": name});
        let metadata = json!({"name": "a", "namespace": "shop", "generation": 2, "resourceVersion": "1"});
        let spec =
            json!({"targetRefs": [target("web"), target("gone")], "retryConstraint": {"budget": {"percent": 30}}});
        let (fact, verdict) = judged("XBackendTrafficPolicy", &json!({"metadata": metadata, "spec": spec}));
        let patch = wanted(&fact, &verdict, T1).expect("nothing is there").patch;
        let said = patch["ancestors"].as_array().expect("ancestors").iter().map(|one| {
            let conditions = one["conditions"].as_array().expect("conditions");
            (conditions.len(), text(&conditions[0], "reason").to_owned())
        });
        assert_eq!(said.collect::<Vec<_>>(), [(1, "Accepted".to_owned()), (1, "TargetNotFound".to_owned())]);
    }

    #[test]
    fn nothing_in_a_status_breaks_anything() {
        for status in [
            json!(1),
            json!([]),
            json!({"conditions": 1, "validationMessages": [1, {"type": 2}]}),
            json!({"parents": [3, {}]}),
        ] {
            assert!(wanted(&fact("Sidecar", &rule(1, status.clone())), &Verdict::default(), T1).is_some());
            let (fact, verdict) = gateway(&http_route(1, json!({"parentRefs": "x"}), status));
            let _ = wanted(&fact, &verdict, T1);
        }
    }
}
