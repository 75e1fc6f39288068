//! What an API server is told that asks whether an object may be stored (a validating webhook, `admission.k8s.io/v1`): what
//! `validate` says of it, beside everything that is in force. What is wrong with the object itself refuses it; the rest is a
//! warning.
//!
//! Who may write in a namespace need not know what is in others: what is said names nothing of them. An object that is on its
//! way out may go, whatever is wrong with it.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::kinds::{RESOURCES, Use};
use super::objects::{text, text_name};
use crate::config::{Diagnostic, Severity};

/// What Kubernetes shows of warnings: so many characters each, and about so many of them.
const LONGEST: usize = 250;
const MOST: usize = 12;

#[derive(Deserialize)]
struct Review {
    request: Request,
}

#[derive(Deserialize)]
struct Request {
    uid: String,
    kind: Kind,
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    object: Value,
}

#[derive(Deserialize)]
struct Kind {
    group: String,
    version: String,
    kind: String,
}

/// Instead of words that would name what is in other namespaces.
const ELSEWHERE: &str = "it does not go with what is in other namespaces; `mesh-control validate` says more";

/// The answer to a question, where `review` finds what there is to say of a text of this name, in this namespace: all of it, and
/// what is known by the objects of that namespace alone.
///
/// # Errors
/// Why it is no such question.
pub(crate) fn answer(
    question: &[u8],
    review: impl FnOnce(Arc<str>, &str, Arc<str>) -> [Vec<Diagnostic>; 2],
) -> Result<Vec<u8>, String> {
    let Review { request } =
        serde_json::from_slice(question).map_err(|error| format!("no AdmissionReview: {error}"))?;
    let Kind { group, version, kind } = &request.kind;
    let of_kind = RESOURCES.iter().find(|known| {
        known.use_ == Use::Object
            && known.group == group
            && known.kind == kind
            && known.versions.contains(&version.as_str())
    });
    // What is deleted has no object, what is being deleted is only to lose its finalizers, and what is not read here is nobody's
    // business here.
    let is_going = request.object.pointer("/metadata/deletionTimestamp").is_some_and(Value::is_string);
    let found = match of_kind.filter(|_| request.object.is_object() && !is_going) {
        Some(resource) => {
            let object = named(request.object, &request.name);
            let name = object.get("metadata").and_then(|metadata| metadata.get("name")?.as_str()).unwrap_or_default();
            let name = (request.namespace.as_str().into(), name.into());
            let found = review(text_name(resource, &name), &request.namespace, text(resource, version, &object));
            discreet(found)
        }
        None => Vec::new(),
    };
    // What it refers to may come after it: objects are applied in any order.
    let (wrong, others): (Vec<&Diagnostic>, Vec<_>) = found.iter().partition(|finding| finding.rejects_object());
    let errors: Vec<String> = wrong.into_iter().take(MOST).map(|finding| cut(&in_words(finding), LONGEST)).collect();
    let others = others.into_iter().filter(|finding| finding.severity != Severity::Info);
    let warnings: Vec<String> = others.take(MOST).map(|finding| cut(&in_words(finding), LONGEST)).collect();
    let mut response =
        Map::from_iter([("uid".to_owned(), request.uid.into()), ("allowed".to_owned(), errors.is_empty().into())]);
    if !errors.is_empty() {
        let status = json!({"code": 422, "reason": "Invalid", "message": errors.join("; ")});
        response.insert("status".to_owned(), status);
    }
    if !warnings.is_empty() {
        response.insert("warnings".to_owned(), warnings.into());
    }
    let answer = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    Ok(answer.to_string().into_bytes())
}

/// What was found, in words that name nothing of other namespaces.
fn discreet([mut all, beside]: [Vec<Diagnostic>; 2]) -> Vec<Diagnostic> {
    for finding in all.iter_mut().filter(|finding| !beside.contains(finding)) {
        let mut others = beside.iter().filter(|other| (other.code, &other.field) == (finding.code, &finding.field));
        finding.message = others.next().map_or_else(|| ELSEWHERE.to_owned(), |other| other.message.clone());
    }
    all
}

/// The object with its name, which is not known yet where the API server makes it.
fn named(mut object: Value, name: &str) -> Value {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
        && !metadata.contains_key("name")
    {
        let start = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default();
        let name = if name.is_empty() { format!("{start}0") } else { name.to_owned() };
        metadata.insert("name".to_owned(), name.into());
    }
    object
}

/// Where it is, whoever asks knows.
pub(super) fn in_words(finding: &Diagnostic) -> String {
    let field = finding.field.as_deref().map(|field| format!("{field}: ")).unwrap_or_default();
    format!("{field}{} [{}]", finding.message, finding.code.as_str())
}

pub(super) fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plane::{Plane, PlaneOptions};

    const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{port: 80, name: http}], selector: {app: web}}
";

    fn asked(kind: &str, object: Value) -> Value {
        asked_of(&Plane::from_yaml(SERVICE).expect("good"), kind, object)
    }

    fn asked_of(plane: &Plane, kind: &str, object: Value) -> Value {
        let version = if kind == "EnvoyFilter" { "v1alpha3" } else { "v1" };
        let group = "networking.istio.io";
        let namespace = object.pointer("/metadata/namespace").cloned().unwrap_or_else(|| json!("shop"));
        let question = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u-1", "kind": {"group": group, "version": version, "kind": kind},
                "namespace": namespace, "operation": "CREATE", "object": object,
            },
        });
        let before = (plane.objects(), plane.diagnostics().len());
        let answer = answer(question.to_string().as_bytes(), |name, of, text| plane.review(&name, of, text))
            .expect("a question");
        // It was a question, and changed nothing.
        assert_eq!((plane.objects(), plane.diagnostics().len()), before);
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!((&answer["kind"], &answer["response"]["uid"]), (&json!("AdmissionReview"), &json!("u-1")));
        answer["response"].clone()
    }

    fn rule(spec: Value) -> Value {
        json!({"metadata": {"name": "a", "namespace": "shop", "resourceVersion": "1"}, "spec": spec})
    }

    #[test]
    fn what_is_wrong_is_refused_with_the_words_of_validate() {
        let refused = asked("VirtualService", rule(json!({"hosts": ["web"], "htpp": []})));
        assert_eq!((&refused["allowed"], &refused["status"]["code"]), (&json!(false), &json!(422)));
        let message = refused["status"]["message"].as_str().expect("a text");
        assert!(message.starts_with("htpp: unknown field; did you mean `http`? [unknown-field]; "), "{message}");
    }

    #[test]
    fn what_refers_to_nothing_is_a_warning_and_what_is_right_has_none() {
        let to = |host: &str| rule(json!({"hosts": ["web"], "http": [{"route": [{"destination": {"host": host}}]}]}));
        let right = asked("VirtualService", to("web"));
        assert_eq!(right, json!({"uid": "u-1", "allowed": true}));
        let warned = asked("VirtualService", to("wbe"));
        assert_eq!(warned["allowed"], true);
        assert!(warned["warnings"][0].as_str().is_some_and(|text| text.contains("wbe")), "{warned}");
        // The API server makes its name later.
        let mut unnamed = to("web");
        unnamed["metadata"] = json!({"generateName": "a-"});
        assert_eq!(asked("VirtualService", unnamed)["allowed"], true);
    }

    #[test]
    fn what_is_said_names_nothing_of_other_namespaces() {
        let service = |namespace: &str, name: &str, exported: &str| {
            SERVICE.replace("name: web, namespace: shop", &format!("name: {name}, namespace: {namespace}{exported}"))
        };
        let hidden = ", annotations: {networking.istio.io/exportTo: '.'}";
        let secret = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: salaries, namespace: hr}
spec: {hosts: [web.shop.svc.cluster.local], http: [{directResponse: {status: 403}}]}
";
        let pods = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: bonus, namespace: hr}
spec: {template: {metadata: {labels: {app: bonus}}}}
";
        let all = [SERVICE, &service("hr", "payroll", ""), &service("hr", "bonus", hidden), secret, pods].join("---");
        let plane = Plane::from_yaml(&all).expect("good");
        let to = |host: &str| rule(json!({"hosts": ["web"], "http": [{"route": [{"destination": {"host": host}}]}]}));
        let words = |host: &str| {
            let response = asked_of(&plane, "VirtualService", to(host));
            assert_eq!(response["allowed"], true, "{response}");
            response["warnings"].as_array().cloned().unwrap_or_default()
        };
        // By `validate`, each of these says more.
        for host in
            ["payrol.hr.svc.cluster.local", "bonus.hr.svc.cluster.local", "payroll.hrr.svc.cluster.local", "payroll"]
        {
            let warnings = words(host);
            assert!(!warnings.is_empty(), "{host}");
            for warning in warnings {
                let said = warning.as_str().expect("a text").replace(host, "");
                let names = [".hr", "hr/", "`hr", "salaries", "payroll", "bonus"];
                assert!(!names.iter().any(|name| said.contains(name)), "{host}: {warning}");
            }
        }
        // The root namespace is for workloads of every other one, and no reason to name their labels.
        let mut sidecar = rule(json!({
            "workloadSelector": {"labels": {"app": "bonnus"}}, "egress": [{"hosts": ["./*"]}],
        }));
        sidecar["metadata"]["namespace"] = json!("istio-system");
        let response = asked_of(&plane, "Sidecar", sidecar);
        let said = response["warnings"].to_string();
        assert!(said.contains("workloadSelector.labels.app") && !said.contains("`bonus`"), "{response}");
        // What is beside it may be named, and what can be called is called.
        assert!(words("wbe").iter().any(|warning| warning.as_str().is_some_and(|text| text.contains("`web`"))));
        let to_payroll = words("payroll.hr.svc.cluster.local");
        assert!(to_payroll.iter().all(|warning| !warning.as_str().unwrap_or_default().contains("no service")));
    }

    #[test]
    fn what_is_being_deleted_may_lose_its_finalizers() {
        let mut wrong = rule(json!({"hosts": ["web"], "htpp": []}));
        assert_eq!(asked("VirtualService", wrong.clone())["allowed"], false);
        wrong["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(asked("VirtualService", wrong)["allowed"], true);
    }

    #[tokio::test]
    async fn a_filter_that_guards_servers_is_refused_as_by_validate_and_one_of_a_gateway_is_not() {
        let lua = |context: &str| {
            let filter = json!({"name": "envoy.filters.http.lua"});
            let patch = json!({"operation": "INSERT_BEFORE", "value": filter});
            rule(json!({"configPatches": [{"applyTo": "HTTP_FILTER", "match": {"context": context}, "patch": patch}]}))
        };
        let refused = asked("EnvoyFilter", lua("SIDECAR_INBOUND"));
        let message = refused["status"]["message"].as_str().expect("a text");
        assert!(message.contains("envoy.filters.http.lua") && message.ends_with("[unenforced]"), "{message}");
        assert_eq!(asked("EnvoyFilter", lua("GATEWAY"))["allowed"], true);
        // The operator may have said that such things may be there.
        let lenient = Plane::start(PlaneOptions::default().allow_unenforced(true)).expect("a plane");
        lenient.set_yaml("a.yaml", SERVICE).expect("good");
        let warned = asked_of(&lenient, "EnvoyFilter", lua("SIDECAR_INBOUND"));
        assert_eq!(warned["allowed"], true);
        assert!(warned["warnings"][0].as_str().is_some_and(|text| text.ends_with("[unenforced]")), "{warned}");
    }

    #[test]
    fn what_is_deleted_or_read_by_nobody_may_pass_and_what_is_no_question_is_none() {
        assert_eq!(asked("VirtualService", Value::Null)["allowed"], true);
        assert_eq!(asked("ProxyConfig", rule(json!({"any": 1})))["allowed"], true);
        for wrong in [&b"{}"[..], b"", b"[]", br#"{"request": {"uid": 1}}"#] {
            assert!(answer(wrong, |_, _, _| Default::default()).is_err());
        }
    }
}
