//! What routing files mean for the callers of each service, read independently of the mesh that obeys them.
//!
//! It understands as much of VirtualService and DestinationRule as can be seen from outside in bookinfo: routes by
//! header and path, weights, subsets, faults, and TLS modes. What it does not understand it says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::bookinfo::service::{App, Service};
use crate::bookinfo::{USER, ratings};
use crate::{grpc, text};

/// A Kubernetes object, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
struct Object {
    #[serde(default, rename = "apiVersion")]
    api_version: String,
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: Map<String, Value>,
}

#[derive(Clone, Debug, Deserialize)]
struct Metadata {
    name: String,
    #[serde(default = "default_namespace")]
    namespace: String,
}

fn default_namespace() -> String {
    "default".to_owned()
}

impl Object {
    /// `Kind namespace/name`, as mesh-control calls it.
    fn id(&self) -> String {
        // There are two kinds of this name.
        let is_kubernetes = self.kind == "Gateway" && self.api_version.starts_with("gateway.networking.k8s.io/");
        let kind = if is_kubernetes { "KubernetesGateway" } else { &self.kind };
        format!("{kind} {}/{}", self.metadata.namespace, self.metadata.name)
    }
}

/// What several texts mean together; of an object that is written twice, the last one counts.
#[derive(Clone, Debug)]
pub struct Meaning {
    objects: Vec<Object>,
}

/// What a caller of a service should see.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    /// How the calls should end, and which share of them each way.
    pub outcomes: BTreeMap<Outcome, f64>,
    /// Whether the shares follow from weights. If not, the mesh balances as it likes.
    pub weighted: bool,
    /// Which share of the calls takes so long at least.
    pub delay: Option<(f64, Duration)>,
}

/// How a call can end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// This version answered.
    Version(String),
    /// It failed with this status.
    Failed(String),
    /// It failed.
    Closed,
}

/// Something that is written and not understood here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotUnderstood(pub String);

impl Meaning {
    /// What these texts mean, in this order.
    ///
    /// # Errors
    /// If a text is not YAML, or not of objects.
    pub fn of(texts: &[&str]) -> Result<Meaning, NotUnderstood> {
        let mut objects: Vec<Object> = Vec::new();
        for text in texts {
            let documents: Vec<Value> =
                serde_saphyr::from_multiple(text).map_err(|error| NotUnderstood(error.to_string()))?;
            for document in documents.into_iter().filter(|document| !document.is_null()) {
                let object: Object =
                    serde_json::from_value(document).map_err(|error| NotUnderstood(error.to_string()))?;
                objects.retain(|earlier| earlier.id() != object.id());
                objects.push(object);
            }
        }
        Ok(Meaning { objects })
    }

    /// All objects by id, and whether they are ones whose effect on bookinfo can be told.
    pub fn objects(&self) -> impl Iterator<Item = (String, bool)> {
        self.objects.iter().map(|object| (object.id(), self.is_about_bookinfo(object)))
    }

    fn is_about_bookinfo(&self, object: &Object) -> bool {
        match object.kind.as_str() {
            "VirtualService" => applies_in_mesh(&object.spec) && App::ALL.iter().any(|app| has_host(object, *app)),
            "DestinationRule" => App::ALL.iter().any(|app| has_host(object, *app)),
            "Service" => App::ALL.iter().any(|app| app.name() == object.metadata.name),
            _ => false,
        }
    }

    /// The hosts that are not those of bookinfo, with their ports for HTTP, and the objects that speak of them.
    pub fn foreign_hosts(&self) -> BTreeMap<(String, u64), BTreeSet<String>> {
        let mut hosts = BTreeMap::<(String, u64), BTreeSet<String>>::new();
        for entry in self.objects.iter().filter(|object| object.kind == "ServiceEntry") {
            let is_http = |port: &&Value| {
                let protocol = port.get("protocol").and_then(Value::as_str);
                protocol.is_some_and(|protocol| matches!(protocol, "HTTP" | "HTTP2" | "GRPC"))
            };
            let ports = list(&entry.spec, "ports").filter(is_http);
            let ports: Vec<u64> = ports.filter_map(|port| port.get("number")?.as_u64()).collect();
            for host in list(&entry.spec, "hosts").filter_map(Value::as_str).filter(|host| !host.contains('*')) {
                for port in &ports {
                    let names = |object: &&Object| {
                        let spec = &object.spec;
                        let exact = spec.get("host").and_then(Value::as_str) == Some(host);
                        exact || list(spec, "hosts").any(|named| named.as_str() == Some(host))
                    };
                    let objects = self.objects.iter().filter(names).map(Object::id);
                    hosts.entry((host.to_owned(), *port)).or_default().extend(objects);
                }
            }
        }
        hosts
    }

    /// The objects that say how a service is called.
    pub fn about(&self, app: App) -> BTreeSet<String> {
        let routing = |object: &&Object| matches!(object.kind.as_str(), "VirtualService" | "DestinationRule");
        self.objects.iter().filter(routing).filter(|object| has_host(object, app)).map(Object::id).collect()
    }

    /// Whether there is a route for a service.
    pub fn has_route(&self, app: App) -> bool {
        self.routes(app).is_some()
    }

    /// The names of a service's subsets that somebody runs.
    pub fn running_subsets(&self, app: App) -> Vec<String> {
        let all = self.subsets(app).into_iter();
        all.filter(|(_, version)| runs(app, version)).map(|(name, _)| name).collect()
    }

    /// What this user should see of a service.
    ///
    /// # Errors
    /// With what is not understood.
    pub fn expect(&self, app: App, user: Option<&str>) -> Result<Expectation, NotUnderstood> {
        if self.is_closed(app) {
            let outcomes = BTreeMap::from([(Outcome::Closed, 1.0)]);
            return Ok(Expectation { outcomes, weighted: true, delay: None });
        }
        let Some(object) = self.routes(app) else {
            return Ok(self.balanced(app));
        };
        for rule in list(&object.spec, "http") {
            let rule = rule.as_object().ok_or_else(|| NotUnderstood("http is not a list of rules".to_owned()))?;
            if self.rule_matches(app, rule, user)? {
                return self.expect_rule(app, rule);
            }
        }
        Ok(failing(app, "404"))
    }

    fn routes(&self, app: App) -> Option<&Object> {
        let is_route = |object: &&Object| {
            object.kind == "VirtualService" && has_host(object, app) && applies_in_mesh(&object.spec)
        };
        self.objects.iter().find(is_route)
    }

    fn rule(&self, app: App) -> Option<&Object> {
        self.objects.iter().find(|object| object.kind == "DestinationRule" && has_host(object, app))
    }

    /// Whether calls must fail: TLS by files is asked for, which this mesh cannot do yet, or plaintext, which only the
    /// product page takes.
    pub fn is_closed(&self, app: App) -> bool {
        let mode = self.rule(app).and_then(|rule| rule.spec.get("trafficPolicy")?.get("tls")?.get("mode")?.as_str());
        mode.is_some_and(|mode| matches!(mode, "SIMPLE" | "MUTUAL") || (mode == "DISABLE" && app != App::Productpage))
    }

    /// Version by subset.
    fn subsets(&self, app: App) -> BTreeMap<String, String> {
        let subset = |subset: &Value| {
            let name = subset.get("name")?.as_str()?;
            let version = subset.get("labels")?.get("version")?.as_str()?;
            Some((name.to_owned(), version.to_owned()))
        };
        self.rule(app).into_iter().flat_map(|rule| list(&rule.spec, "subsets")).filter_map(subset).collect()
    }

    /// Without a route: any version that runs.
    fn balanced(&self, app: App) -> Expectation {
        let versions: Vec<Service> = Service::all().into_iter().filter(|service| service.app == app).collect();
        let share = 1.0 / versions.len() as f64;
        let outcomes = versions.into_iter().map(|service| (Outcome::Version(service.version), share)).collect();
        Expectation { outcomes, weighted: false, delay: None }
    }

    fn rule_matches(&self, app: App, rule: &Map<String, Value>, user: Option<&str>) -> Result<bool, NotUnderstood> {
        let conditions: Vec<&Value> = list(rule, "match").collect();
        if conditions.is_empty() {
            return Ok(true);
        }
        for condition in conditions {
            let condition = condition.as_object().ok_or_else(|| NotUnderstood("match is not a list".to_owned()))?;
            if condition_holds(app, condition, user)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn expect_rule(&self, app: App, rule: &Map<String, Value>) -> Result<Expectation, NotUnderstood> {
        let known = ["name", "match", "route", "fault", "timeout", "retries"];
        if let Some(other) = rule.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(NotUnderstood(format!("http.{other}")));
        }
        let mut expected = self.expect_route(app, rule)?;
        let Some(fault) = rule.get("fault") else { return Ok(expected) };
        if let Some(delay) = fault.get("delay") {
            let time = delay.get("fixedDelay").and_then(Value::as_str).and_then(|time| text::duration(time).ok());
            let time = time.ok_or_else(|| NotUnderstood("fault.delay.fixedDelay".to_owned()))?;
            expected.delay = Some((percentage(delay), time));
            if let Some(budget) = budget(app).filter(|budget| time >= *budget) {
                // The caller does not wait that long.
                expected.delay = Some((percentage(delay), budget));
                expected = overlay(expected, percentage(delay), Outcome::Failed(in_words(app, 504)));
            }
        }
        if let Some(abort) = fault.get("abort") {
            let status = abort.get("httpStatus").and_then(Value::as_u64);
            let status = status.ok_or_else(|| NotUnderstood("fault.abort without httpStatus".to_owned()))?;
            expected = overlay(expected, percentage(abort), Outcome::Failed(in_words(app, status)));
        }
        Ok(expected)
    }

    fn expect_route(&self, app: App, rule: &Map<String, Value>) -> Result<Expectation, NotUnderstood> {
        let destinations: Vec<&Value> = list(rule, "route").collect();
        let weight = |destination: &&Value| destination.get("weight").and_then(Value::as_f64);
        let total: f64 = destinations.iter().filter_map(weight).sum();
        let mut expected = Expectation { outcomes: BTreeMap::new(), weighted: true, delay: None };
        for destination in &destinations {
            let share = match destinations.len() {
                1 => 1.0,
                _ => weight(destination).unwrap_or(0.0) / total.max(f64::MIN_POSITIVE),
            };
            let target = destination.get("destination").and_then(Value::as_object);
            let host = target.and_then(|target| target.get("host")?.as_str()).unwrap_or_default();
            if share > 0.0 && !is_host_of(host, app) {
                return Err(NotUnderstood(format!("a route to {host:?}")));
            }
            match target.and_then(|target| target.get("subset")?.as_str()) {
                _ if share <= 0.0 => {}
                Some(subset) => {
                    let version = self.subsets(app).remove(subset);
                    let outcome = match version.filter(|version| runs(app, version)) {
                        Some(version) => Outcome::Version(version),
                        None => Outcome::Failed(in_words(app, 503)),
                    };
                    *expected.outcomes.entry(outcome).or_default() += share;
                }
                None => {
                    expected.weighted = false;
                    let any = self.balanced(app).outcomes.into_iter();
                    any.for_each(|(outcome, part)| *expected.outcomes.entry(outcome).or_default() += share * part);
                }
            }
        }
        Ok(expected)
    }
}

/// A share of the calls ends this way, the others as before.
fn overlay(mut expected: Expectation, share: f64, outcome: Outcome) -> Expectation {
    expected.outcomes.values_mut().for_each(|before| *before *= 1.0 - share);
    expected.outcomes.retain(|_, before| *before > 0.0);
    if share > 0.0 {
        *expected.outcomes.entry(outcome).or_default() += share;
    }
    expected
}

fn failing(app: App, status: &str) -> Expectation {
    let status = status.parse().map_or_else(|_| status.to_owned(), |status| in_words(app, status));
    Expectation { outcomes: BTreeMap::from([(Outcome::Failed(status), 1.0)]), weighted: true, delay: None }
}

/// How long the caller of a service waits.
fn budget(app: App) -> Option<Duration> {
    match app {
        App::Productpage => Some(super::BUDGET),
        App::Details | App::Reviews => Some(crate::bookinfo::productpage::BUDGET),
        App::Ratings => Some(crate::bookinfo::reviews::BUDGET),
    }
}

/// A status of the mesh as the caller of a service sees it. Ratings are called over gRPC, where HTTP statuses become
/// codes (gRPC, "HTTP to gRPC Status Code Mapping"); deadlines have a code of their own.
fn in_words(app: App, status: u64) -> String {
    if app != App::Ratings {
        return status.to_string();
    }
    let code = match status {
        400 => tonic::Code::Internal,
        401 => tonic::Code::Unauthenticated,
        403 => tonic::Code::PermissionDenied,
        404 => tonic::Code::Unimplemented,
        504 => tonic::Code::DeadlineExceeded,
        429 | 502 | 503 => tonic::Code::Unavailable,
        _ => tonic::Code::Unknown,
    };
    grpc::code_name(code).to_owned()
}

/// The share of calls that a fault hits.
fn percentage(fault: &Value) -> f64 {
    let percentage = fault.get("percentage").and_then(|percentage| percentage.get("value")?.as_f64());
    percentage.unwrap_or(100.0) / 100.0
}

fn list<'v>(map: &'v Map<String, Value>, key: &str) -> impl Iterator<Item = &'v Value> + use<'v> {
    map.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn runs(app: App, version: &str) -> bool {
    Service::all().contains(&Service::new(app, version))
}

fn applies_in_mesh(spec: &Map<String, Value>) -> bool {
    let mut gateways = list(spec, "gateways").peekable();
    gateways.peek().is_none() || gateways.any(|gateway| gateway.as_str() == Some("mesh"))
}

fn has_host(object: &Object, app: App) -> bool {
    let one = object.spec.get("host").into_iter();
    one.chain(list(&object.spec, "hosts")).filter_map(Value::as_str).any(|host| is_host_of(host, app))
}

fn is_host_of(host: &str, app: App) -> bool {
    let rest = host.strip_prefix(app.name());
    matches!(rest, Some("" | ".default" | ".default.svc" | ".default.svc.cluster.local"))
}

/// Whether a condition holds for the one request that a service gets in bookinfo.
fn condition_holds(app: App, condition: &Map<String, Value>, user: Option<&str>) -> Result<bool, NotUnderstood> {
    let path = match app {
        App::Productpage => "/api/v1/products/0",
        App::Details => "/details/0",
        App::Reviews => "/reviews/0",
        App::Ratings => ratings::GET,
    };
    for (key, wanted) in condition {
        let holds = match key.as_str() {
            "name" => true,
            "uri" => text_matches(wanted, Some(path))?,
            "headers" => {
                let headers = wanted.as_object().ok_or_else(|| NotUnderstood("match.headers".to_owned()))?;
                let mut all = true;
                for (name, wanted) in headers {
                    all &= text_matches(wanted, user.filter(|_| name.eq_ignore_ascii_case(USER)))?;
                }
                all
            }
            other => return Err(NotUnderstood(format!("match.{other}"))),
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}

fn text_matches(wanted: &Value, text: Option<&str>) -> Result<bool, NotUnderstood> {
    let exact = wanted.get("exact").and_then(Value::as_str);
    let prefix = wanted.get("prefix").and_then(Value::as_str);
    match (exact, prefix) {
        (Some(exact), None) => Ok(text == Some(exact)),
        (None, Some(prefix)) => Ok(text.is_some_and(|text| text.starts_with(prefix))),
        _ => Err(NotUnderstood("a match that is neither exact nor a prefix".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bookinfo::manifests;

    fn expect(texts: &[&str], app: App, user: Option<&str>) -> Vec<(String, f64)> {
        let base = manifests::base();
        let texts: Vec<&str> = std::iter::once(&*base).chain(texts.iter().copied()).collect();
        let expected = Meaning::of(&texts).unwrap().expect(app, user).unwrap();
        let word = |outcome: Outcome| match outcome {
            Outcome::Version(version) => version,
            Outcome::Failed(status) => format!("!{status}"),
            Outcome::Closed => "!".to_owned(),
        };
        expected.outcomes.into_iter().map(|(outcome, share)| (word(outcome), share)).collect()
    }

    fn route(app: &str, http: &str) -> String {
        format!("kind: VirtualService\nmetadata: {{name: {app}}}\nspec: {{hosts: [{app}], http: {http}}}")
    }

    #[test]
    fn weights_and_subsets_become_shares_of_versions() {
        let yaml = route(
            "reviews",
            "[{route: [{destination: {host: reviews, subset: v1}, weight: 80},
                       {destination: {host: reviews, subset: v3}, weight: 20}]}]",
        );
        assert_eq!(expect(&[&yaml], App::Reviews, None), [("v1".into(), 0.8), ("v3".into(), 0.2)]);
    }

    #[test]
    fn a_header_sends_one_user_elsewhere() {
        let yaml = route(
            "reviews",
            "[{match: [{headers: {end-user: {exact: jason}}}], route: [{destination: {host: reviews, subset: v2}}]},
              {route: [{destination: {host: reviews, subset: v3}}]}]",
        );
        assert_eq!(expect(&[&yaml], App::Reviews, Some("jason")), [("v2".into(), 1.0)]);
        assert_eq!(expect(&[&yaml], App::Reviews, Some("jasonx")), [("v3".into(), 1.0)]);
        assert_eq!(expect(&[&yaml], App::Reviews, None), [("v3".into(), 1.0)]);
    }

    #[test]
    fn faults_take_their_share_in_the_words_of_the_protocol() {
        let fault = "fault: {abort: {httpStatus: 500, percentage: {value: 25}}}";
        let yaml =
            |app: &str| route(app, &format!("[{{{fault}, route: [{{destination: {{host: {app}, subset: v1}}}}]}}]"));
        assert_eq!(expect(&[&yaml("details")], App::Details, None), [("v1".into(), 0.75), ("!500".into(), 0.25)]);
        assert_eq!(expect(&[&yaml("ratings")], App::Ratings, None), [("v1".into(), 0.75), ("!UNKNOWN".into(), 0.25)]);
        let delay = "fault: {delay: {fixedDelay: 7s, percentage: {value: 100.0}}}";
        let yaml = route("ratings", &format!("[{{{delay}, route: [{{destination: {{host: ratings, subset: v1}}}}]}}]"));
        assert_eq!(expect(&[&yaml], App::Ratings, None), [("!DEADLINE_EXCEEDED".into(), 1.0)]);
    }

    #[test]
    fn subsets_that_nobody_runs_or_knows_fail() {
        let yaml = |subset: &str| {
            route("ratings", &format!("[{{route: [{{destination: {{host: ratings, subset: {subset}}}}}]}}]"))
        };
        assert_eq!(expect(&[&yaml("v2-mysql")], App::Ratings, None), [("!UNAVAILABLE".into(), 1.0)]);
        assert_eq!(expect(&[&yaml("unheard")], App::Ratings, None), [("!UNAVAILABLE".into(), 1.0)]);
    }

    #[test]
    fn tls_that_cannot_be_had_closes_a_service() {
        let yaml = |mode: &str| {
            format!(
                "kind: DestinationRule\nmetadata: {{name: reviews}}\n\
                 spec: {{host: reviews, trafficPolicy: {{tls: {{mode: {mode}}}}}}}"
            )
        };
        assert_eq!(expect(&[&yaml("SIMPLE")], App::Reviews, None), [("!".into(), 1.0)]);
        assert_eq!(expect(&[&yaml("DISABLE")], App::Reviews, None), [("!".into(), 1.0)]);
        assert!(!Meaning::of(&[&yaml("ISTIO_MUTUAL")]).unwrap().is_closed(App::Reviews));
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let yaml = route("reviews", "[{mirror: {host: reviews}, route: [{destination: {host: reviews}}]}]");
        let meaning = Meaning::of(&[&yaml]).unwrap();
        assert_eq!(meaning.expect(App::Reviews, None), Err(NotUnderstood("http.mirror".into())));
        let gateway = "kind: VirtualService\nmetadata: {name: g}\nspec: {hosts: ['*'], gateways: [outside], http: []}";
        let meaning = Meaning::of(&[gateway]).unwrap();
        assert_eq!(meaning.objects().collect::<Vec<_>>(), [("VirtualService default/g".to_owned(), false)]);
        assert!(Meaning::of(&["a: [b"]).is_err());
    }
}
