//! Why a request goes where it goes, in words: what [`RouteTable::find`] decided, which condition each route before did not
//! hold by, and the settings that are in force for it.

mod passed;
mod settings;

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Value, json};

use super::routes::brought;
use super::{Destination, RoutePosition, RouteTable};
use crate::error::MeshError;
use crate::id::ClusterName;
use crate::matcher::{DomainIndex, Unmet, conditions};
use crate::model::{Cluster, Clusters, CorsPolicy, Fault, Forward, HeaderMutations, Route, RouteAction, SplitBy};
use crate::request::RequestHead;
use crate::rewrite::{location, rewrite};

pub use passed::Passed;
pub use settings::plain_weights;
use settings::{
    Settings, cors, faults, fields, hashed_by, header_changes, object, origin_of, path_change, percent, printed, retry,
    said, settings, time, with_settings,
};

/// Why a request goes where it goes. Displays as text, and serializes as an object for programs, as [`to_json`](Explanation::to_json)
/// says.
///
/// Values of headers are shown as the request has them, but for those that are credentials.
///
/// ```
/// use std::sync::Arc;
///
/// use mesh_core::filter::FilterRegistry;
/// use mesh_core::fixed::route_to;
/// use mesh_core::model::{HttpManager, PathTest, RouteConfiguration, RouteSource, VirtualHost};
/// use mesh_core::request::RequestHead;
/// use mesh_core::state::States;
/// use mesh_core::view::RouteTable;
///
/// let mut first = route_to("new");
/// first.matches.path = PathTest::Prefix { value: "/v2".into(), ignore_case: false };
/// let config = Arc::new(RouteConfiguration::new(vec![VirtualHost::new(["*"], vec![first, route_to("old")])]));
/// let http = HttpManager::new(RouteSource::Inline(Arc::clone(&config)));
/// let table = RouteTable::compile(config, &http, &FilterRegistry::default(), &States::default(), "l").unwrap();
///
/// let (parts, ()) = http::Request::get("http://reviews/v1").body(()).unwrap().into_parts();
/// let explained = table.explain(&RequestHead::of(&parts).unwrap(), &mut fastrand::Rng::new());
/// assert_eq!(explained.passed_over[0].unmet.to_string(), r#"path: prefix "/v2", request has "/v1""#);
/// assert_eq!(explained.to_json()["clusters"][0]["name"], "old");
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explanation {
    /// The request: `GET reviews:9080/x`.
    pub request: String,
    /// The route configuration; `None` where it has no name.
    pub route_configuration: Option<Arc<str>>,
    /// The virtual host that has the authority; `None` where there is none.
    pub virtual_host: Option<HostChoice>,
    /// The routes before the one that the request takes, in order, or all of them.
    pub passed_over: Vec<PassedOver>,
    /// The route that it takes; `None` where there is none.
    pub route: Option<RouteChoice>,
    /// Where it goes, by weight.
    pub clusters: Vec<ClusterChoice>,
    /// The servers that it goes to, where something is known of what they do to requests: `mesh-control explain` says it.
    pub servers: Vec<ServerChoice>,
    /// What else there is to know: `mesh-control explain` says it.
    pub notes: Vec<String>,
    /// Why it fails, where that is known by now.
    pub error: Option<MeshError>,
}

/// A virtual host that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostChoice {
    /// Its name.
    pub name: Arc<str>,
    /// By which of its domains.
    pub domain: Arc<str>,
}

/// A route that a request does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PassedOver {
    /// Its place among those of its virtual host, from 0.
    pub position: usize,
    /// Its name; may be empty.
    pub name: Arc<str>,
    /// The first condition that the request does not meet.
    pub unmet: Unmet,
    /// Where it is written, where that is known: `mesh-control explain` does.
    pub origin: Option<Arc<str>>,
}

/// The route that a request takes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RouteChoice {
    /// Its place among those of its virtual host, from 0.
    pub position: usize,
    /// What it says.
    pub route: Route,
    /// How long a request may take on it; `None`: as long as the caller waits.
    pub time_limit: Option<Duration>,
    /// Where the request asks for with the route's changes of path and authority, or the place that the route redirects to;
    /// `None` where neither is the case. Headers apart, it is what would be sent.
    pub becomes: Option<String>,
    /// The cluster that what the request brings along leads to, where the route's split does not go by chance; `None` where it does,
    /// or the request has nothing that it goes by.
    pub leads_to: Option<ClusterName>,
    /// What goes wrong on purpose before anything else happens.
    pub fault: Option<Arc<Fault>>,
    /// What requests pass before they are sent, in order: limits, rules, filters of the application's.
    pub passes: Vec<Passed>,
    /// What pages of other origins may do.
    pub cors: Option<CorsPolicy>,
    /// What happens to headers, whichever cluster is chosen; where that makes a difference, the clusters say it.
    pub headers: HeaderMutations,
    /// Where it is written, where that is known.
    pub origin: Option<Arc<str>>,
    /// The same of some of its settings, by their name.
    pub origins: Vec<(&'static str, Arc<str>)>,
}

/// A cluster that requests of the route go to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClusterChoice {
    /// Its name.
    pub name: ClusterName,
    /// Its share.
    pub weight: u32,
    /// What it is made of, as far as it is known: the cluster itself, or those of an aggregate.
    pub leaves: Vec<Arc<Cluster>>,
    /// How many endpoints there are, and how many of them take load; `None` where nobody knows.
    pub endpoints: Option<(usize, usize)>,
    /// What happens to headers, where other clusters of the route have other changes.
    pub headers: HeaderMutations,
    /// Why it cannot be used.
    pub problem: Option<Arc<str>>,
    /// Where some of its settings are written, by their name, where that is known.
    pub origins: Vec<(&'static str, Arc<str>)>,
}

/// The servers of a cluster, and what they do to requests.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ServerChoice {
    /// Who they are.
    pub name: Arc<str>,
    /// What requests pass before the application gets them, in order.
    pub passes: Vec<Passed>,
    /// Why they serve nobody.
    pub problem: Option<Arc<str>>,
}

impl ServerChoice {
    /// Servers whose requests pass nothing.
    ///
    /// ```
    /// assert!(mesh_core::view::ServerChoice::new("shop/reviews").passes.is_empty());
    /// ```
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        ServerChoice { name: name.into(), passes: Vec::new(), problem: None }
    }

    fn to_json(&self) -> Value {
        let passes: Vec<Value> = self.passes.iter().map(Passed::to_json).collect();
        json!({"name": &*self.name, "passes": passes, "problem": self.problem.as_deref()})
    }
}

impl fmt::Display for ServerChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "server {}", self.name)?;
        self.passes.iter().try_for_each(|passed| writeln!(f, "  {passed}"))?;
        self.problem.iter().try_for_each(|problem| writeln!(f, "  problem: {problem}"))
    }
}

impl Explanation {
    /// That of a request which fails before any route is looked at.
    pub fn failed(request: String, error: MeshError) -> Self {
        Explanation::of(request, Some(error))
    }

    fn of(request: String, error: Option<MeshError>) -> Self {
        Explanation {
            request,
            route_configuration: None,
            virtual_host: None,
            passed_over: Vec::new(),
            route: None,
            clusters: Vec::new(),
            servers: Vec::new(),
            notes: Vec::new(),
            error,
        }
    }

    /// The same without what the query of the URL says, and without values of headers but of those that `tells` names: for who may
    /// know the way of a request, and not what is in it.
    ///
    /// ```
    /// use mesh_core::error::{ErrorKind, MeshError};
    /// use mesh_core::request::RequestHead;
    /// use mesh_core::view::Explanation;
    ///
    /// let (parts, ()) = http::Request::get("http://reviews/x?token=secret").body(()).unwrap().into_parts();
    /// let error = MeshError::new(ErrorKind::NoRoute, "no route");
    /// let explained = Explanation::failed("GET reviews/x?token=secret".to_owned(), error);
    /// assert_eq!(explained.discreet(&RequestHead::of(&parts).unwrap(), &|_| false).request, "GET reviews/x");
    /// ```
    pub fn discreet(mut self, head: &RequestHead<'_>, tells: &dyn Fn(&str) -> bool) -> Self {
        self.request = format!("{} {}{}", head.method, head.authority, head.path());
        self.passed_over.iter_mut().for_each(|over| over.unmet.discreet(head, tells));
        if let Some(becomes) = self.route.as_mut().and_then(|route| route.becomes.as_mut()) {
            becomes.truncate(becomes.find('?').unwrap_or(becomes.len()));
        }
        self
    }

    /// Whether the request fails for what is known by now.
    pub fn is_failure(&self) -> bool {
        self.outcome() == "error"
    }

    /// The same for programs: an object with `request`, `outcome` (`forward`, `redirect`, `direct`, `serve`, `error`),
    /// `virtual_host`, `passed_over`, `route`, `clusters`, `servers` and `notes`. Durations are texts such as `250ms`.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn outcome(&self) -> &'static str {
        match self.route.as_ref().map(|route| &route.route.action) {
            _ if self.error.is_some() => "error",
            Some(RouteAction::Forward(_)) if self.unusable().is_some() => "error",
            Some(RouteAction::Forward(_)) => "forward",
            Some(RouteAction::Redirect(_)) => "redirect",
            Some(RouteAction::Direct(_)) => "direct",
            Some(RouteAction::NonForwarding) => "serve",
            Some(RouteAction::Unusable(_)) | None => "error",
        }
    }

    /// Why none of the clusters can be used that get requests.
    fn unusable(&self) -> Option<&Arc<str>> {
        let mut asked =
            self.clusters.iter().filter(|cluster| cluster.weight > 0).map(|cluster| cluster.problem.as_ref());
        let first = asked.next()??;
        asked.all(|problem| problem.is_some()).then_some(first)
    }

    fn error(&self) -> Option<String> {
        let of_route = || match self.route.as_ref().map(|route| &route.route.action) {
            Some(RouteAction::Unusable(reason)) => Some(reason.to_string()),
            Some(RouteAction::Forward(_)) => self.unusable().map(ToString::to_string),
            _ => None,
        };
        self.error.as_ref().map(ToString::to_string).or_else(of_route)
    }
}

impl Serialize for Explanation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let host = self.virtual_host.as_ref().map(|host| json!({"name": &*host.name, "domain": &*host.domain}));
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("clusters", &self.clusters.iter().map(ClusterChoice::to_json).collect::<Vec<_>>())?;
        object.serialize_entry("error", &self.error())?;
        object.serialize_entry("notes", &self.notes)?;
        object.serialize_entry("outcome", self.outcome())?;
        // There may be thousands of them, which are written as they are.
        object.serialize_entry("passed_over", &self.passed_over)?;
        object.serialize_entry("request", &self.request)?;
        object.serialize_entry("route", &self.route.as_ref().map(RouteChoice::to_json))?;
        object.serialize_entry("route_configuration", &self.route_configuration.as_deref())?;
        object.serialize_entry("servers", &self.servers.iter().map(ServerChoice::to_json).collect::<Vec<_>>())?;
        object.serialize_entry("virtual_host", &host)?;
        object.end()
    }
}

/// How many routes of those that a request does not take are printed one by one, from each end: the others are in the JSON.
const MOST_PRINTED: usize = 50;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.request)?;
        if let Some(HostChoice { name, domain }) = &self.virtual_host {
            writeln!(f, "virtual host {name}, by its domain {domain}")?;
        }
        let count = self.passed_over.len();
        for (at, over) in self.passed_over.iter().enumerate() {
            match count > 2 * MOST_PRINTED {
                true if at == MOST_PRINTED => writeln!(f, "  ... and {} more", count - 2 * MOST_PRINTED)?,
                true if (MOST_PRINTED..count - MOST_PRINTED).contains(&at) => {}
                _ => writeln!(f, "  not {over}")?,
            }
        }
        if let Some(route) = &self.route {
            writeln!(f, "{route}")?;
        }
        self.clusters.iter().try_for_each(|cluster| write!(f, "{cluster}"))?;
        self.servers.iter().try_for_each(|server| write!(f, "{server}"))?;
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))?;
        match self.error() {
            Some(error) => writeln!(f, "error: {error}"),
            None => Ok(()),
        }
    }
}

fn titled(position: usize, name: &str, origin: Option<&Arc<str>>) -> String {
    let name = if name.is_empty() { String::new() } else { format!(" {name}") };
    format!("route {position}{name}{}", written(origin))
}

fn written(origin: Option<&Arc<str>>) -> String {
    origin.map(|origin| format!(" ({origin})")).unwrap_or_default()
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", titled(self.position, &self.name, self.origin.as_ref()), self.unmet)
    }
}

impl Serialize for PassedOver {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("name", &*self.name)?;
        object.serialize_entry("origin", &self.origin.as_deref())?;
        object.serialize_entry("position", &self.position)?;
        object.serialize_entry("unmet", &self.unmet)?;
        object.end()
    }
}

impl RouteChoice {
    /// What it says besides where its requests go, a line each: `timeout: 2s`.
    pub fn said(&self) -> Vec<String> {
        let is_said = |(name, value): &(&str, Value)| {
            !value.is_null() && !["redirect", "direct_response", "action", "this_request_goes_to"].contains(name)
        };
        let settings = self.settings().into_iter().filter(is_said);
        settings.map(|(name, value)| format!("{}: {}", name.replace('_', " "), said(&value))).collect()
    }

    fn to_json(&self) -> Value {
        let start = json!({
            "position": self.position,
            "name": &*self.route.name,
            "origin": self.origin.as_deref(),
            "conditions": conditions(&self.route.matches),
            "passes": self.passes.iter().map(Passed::to_json).collect::<Vec<_>>(),
        });
        let Value::Object(start) = start else { return start };
        with_settings(start, self.settings(), &self.origins)
    }

    fn settings(&self) -> Settings {
        let mut all = Vec::new();
        if let Some(fault) = &self.fault {
            all.push(("fault", faults(fault)));
        }
        match &self.route.action {
            RouteAction::Forward(forward) => self.forwarded(forward, &mut all),
            RouteAction::Redirect(redirect) => {
                let parts = json!({
                    "status": redirect.status.as_u16(),
                    "scheme": redirect.scheme,
                    "host": redirect.host,
                    "port": redirect.port,
                    "path": redirect.path.as_ref().map(path_change),
                });
                all.push(("redirect", fields(parts)));
            }
            RouteAction::Direct(direct) => {
                let body = String::from_utf8_lossy(&direct.body);
                all.push(("direct_response", fields(json!({"status": direct.status.as_u16(), "body": body}))));
            }
            RouteAction::NonForwarding => all.push(("action", "the application answers".into())),
            RouteAction::Unusable(_) => {}
        }
        all.extend(self.cors.as_ref().map(|policy| ("cors", cors(policy))));
        all.extend(header_changes(&self.headers));
        if let Some(becomes) = &self.becomes {
            all.insert(0, ("becomes", becomes.as_str().into()));
        }
        all
    }

    fn forwarded(&self, forward: &Forward, all: &mut Settings) {
        if let Some(change) = &forward.path {
            all.push(("path", path_change(change)));
        }
        if let Some(authority) = &forward.authority {
            all.push(("authority", String::from_utf8_lossy(authority.as_bytes()).into()));
        }
        all.push(("timeout", self.time_limit.map_or(Value::Null, time)));
        all.push(("retry", forward.retry.as_deref().map_or(Value::Null, retry)));
        let of_try = forward.retry.as_ref().and_then(|retry| retry.per_try_timeout);
        all.extend(of_try.map(|limit| ("per_try_timeout", time(limit))));
        let split = match &forward.split_by {
            SplitBy::Chance => None,
            SplitBy::HashPolicies => Some(hashed_by(&forward.hash_policies)),
            SplitBy::Header(name) => Some(format!("header {name}")),
        };
        if let Some(by) = split {
            all.push(("split_by", by.into()));
            let leads_to =
                self.leads_to.as_ref().map_or("any of them, by chance: the request has none", ClusterName::as_str);
            all.push(("this_request_goes_to", leads_to.into()));
        }
        all.extend(forward.coalesces.then(|| ("coalesce", "get".into())));
        let mirrors = forward.mirrors.iter().map(
            |mirror| json!({"cluster": mirror.cluster.as_str(), "percent": percent(mirror.fraction.per_million())}),
        );
        let mirrors: Vec<Value> = mirrors.collect();
        if !mirrors.is_empty() {
            all.push(("mirrors", mirrors.into()));
        }
    }
}

impl fmt::Display for RouteChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let conditions = conditions(&self.route.matches).join(", ");
        write!(f, "{}: {conditions}", titled(self.position, &self.route.name, self.origin.as_ref()))?;
        printed(f, "  ", self.settings(), &self.origins)?;
        self.passes.iter().try_for_each(|passed| write!(f, "\n  {passed}"))
    }
}

impl ClusterChoice {
    /// The subset of its service, where its name says one as Istio writes it: `outbound|port|subset|host`.
    pub fn subset(&self) -> Option<&str> {
        let mut parts = self.name.as_str().split('|');
        let (direction, _, subset, _host) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_named = matches!(direction, "outbound" | "fallback") && parts.next().is_none() && !subset.is_empty();
        is_named.then_some(subset)
    }

    fn to_json(&self) -> Value {
        let services = self.leaves.iter().filter_map(|leaf| leaf.service.as_deref());
        let services = services.map(|of| json!({"host": &*of.host, "name": &*of.name, "namespace": &*of.namespace}));
        let start = json!({
            "name": self.name.as_str(),
            "weight": self.weight,
            "subset": self.subset(),
            "services": services.collect::<Vec<_>>(),
            "endpoints": self.endpoints.map(|(all, taking)| json!({"known": all, "taking_load": taking})),
            "problem": self.problem.as_deref(),
            "leaves": match &*self.leaves {
                [] | [_] => Value::Null,
                leaves => leaves.iter().map(|leaf| with_settings(object(json!({"name": leaf.name.as_str()})), settings(leaf), &[])).collect(),
            },
        });
        let Value::Object(start) = start else { return start };
        let mut own = self.leaves.first().map(|leaf| settings(leaf)).unwrap_or_default();
        own.extend(header_changes(&self.headers));
        with_settings(start, own, &self.origins)
    }
}

impl fmt::Display for ClusterChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut about = format!("weight {}", self.weight);
        if let Some((all, taking)) = self.endpoints {
            let _ = write!(about, ", {taking} of {all} endpoints take load");
        }
        let origin = |name| written(origin_of(&self.origins, name));
        write!(f, "cluster {}: {about}{}", self.name, origin("service"))?;
        if let Some(subset) = self.subset() {
            write!(f, ", subset {subset}{}", origin("subset"))?;
        }
        if let Some(problem) = &self.problem {
            write!(f, "\n  problem: {problem}")?;
        }
        printed(f, "  ", header_changes(&self.headers), &self.origins)?;
        match self.leaves.as_slice() {
            [] => {}
            [only] => printed(f, "  ", settings(only), &self.origins)?,
            leaves => {
                for (at, leaf) in leaves.iter().enumerate() {
                    write!(f, "\n  {} {}", if at == 0 { "of" } else { "else" }, leaf.name)?;
                    printed(f, "    ", settings(leaf), if at == 0 { &self.origins } else { &[] })?;
                }
            }
        }
        writeln!(f)
    }
}

/// What a route makes of where a request asks for.
fn becomes(head: &RequestHead<'_>, route: &Route) -> Option<String> {
    match &route.action {
        RouteAction::Redirect(redirect) => location(redirect, &route.matches, head).ok(),
        RouteAction::Forward(forward) if forward.path.is_some() || forward.authority.is_some() => {
            let (mut parts, ()) = http::Request::new(()).into_parts();
            parts.uri = head.path_and_query.parse().ok()?;
            rewrite(&mut parts, &[], None, forward, &route.matches).ok()?;
            let host = parts.headers.get(http::header::HOST);
            let host = host.map_or(head.authority.into(), |host| String::from_utf8_lossy(host.as_bytes()));
            Some(format!("{host}{}", parts.uri))
        }
        _ => None,
    }
}

/// What a destination makes of headers.
fn changes(to: &Destination) -> HeaderMutations {
    HeaderMutations { request: to.request_changes().concat(), response: to.response_changes().concat() }
}

/// Whether all destinations have the same changes of headers.
fn are_alike(all: &[Destination]) -> bool {
    all.first().is_some_and(|first| all.iter().all(|other| changes(other) == changes(first)))
}

impl RouteTable {
    /// Why a request goes where [`find`](RouteTable::find) sends it: the decision is its own, and said in words. What clusters
    /// are made of is not known here.
    pub fn explain(&self, head: &RequestHead<'_>, random: &mut fastrand::Rng) -> Explanation {
        let found = self.route(head, random);
        let request = format!("{} {}{}", head.method, head.authority, head.path_and_query);
        let name = self.config().name.as_ref().map(|name| Arc::from(name.as_str()));
        let mut explained = Explanation::of(request, found.as_ref().err().cloned());
        explained.route_configuration = name;
        let position = found.as_ref().ok().map(|(position, ..)| *position);
        let host = position.map_or_else(|| self.host_of(head), |position| Some(position.host()));
        let Some((host_at, host, index)) =
            host.and_then(|at| Some((at, self.config().virtual_hosts.get(at)?, self.index(at)?)))
        else {
            return explained;
        };
        let domain = DomainIndex::domain_of(host, head.authority).unwrap_or("*");
        explained.virtual_host = Some(HostChoice { name: Arc::clone(&host.name), domain: domain.into() });
        let chosen = position.map_or(host.routes.len(), |position| position.route());
        let before = host.routes.iter().enumerate().take(chosen);
        let before = before.filter_map(|(position, route)| {
            let unmet = index.unmet(position, &route.matches, head)?;
            Some(PassedOver { position, name: Arc::clone(&route.name), unmet, origin: None })
        });
        explained.passed_over = before.collect();
        let Some(route) = host.routes.get(chosen) else { return explained };
        let (mut time_limit, mut clusters, mut leads_to) = (None, Vec::new(), None);
        if let RouteAction::Forward(forward) = &route.action {
            time_limit = forward.time_limit(head.is_grpc(), None);
            let weighted = match &forward.clusters {
                Clusters::One(name) => vec![(name, 1)],
                Clusters::Weighted(all) => all.iter().map(|one| (&one.name, one.weight)).collect(),
            };
            // A sticky split has several parts of one cluster.
            for (name, weight) in weighted {
                match clusters.iter_mut().find(|choice: &&mut ClusterChoice| choice.name == *name) {
                    Some(choice) => choice.weight = choice.weight.saturating_add(weight),
                    None => clusters.push(ClusterChoice {
                        name: name.clone(),
                        weight,
                        leaves: Vec::new(),
                        endpoints: None,
                        headers: HeaderMutations::default(),
                        problem: None,
                        origins: Vec::new(),
                    }),
                }
            }
            if forward.split_by == SplitBy::HashPolicies {
                let weights: Vec<u32> = clusters.iter().map(|choice| choice.weight).collect();
                let plain = plain_weights(&weights);
                clusters.iter_mut().zip(plain).for_each(|(choice, weight)| choice.weight = weight);
            }
            let chosen = found.as_ref().ok().filter(|_| brought(route, head, || None).is_some());
            leads_to = chosen.and_then(|(.., to)| to.cluster().and_then(|at| self.clusters().get(at)).cloned());
        }
        let choices = position.map(|position| self.destinations(position)).unwrap_or_default();
        if !are_alike(choices) {
            for choice in &mut clusters {
                let is_it = |to: &&Destination| {
                    to.cluster().and_then(|at| self.clusters().get(at)).is_some_and(|name| *name == choice.name)
                };
                choice.headers = choices.iter().find(is_it).map(changes).unwrap_or_default();
            }
        }
        let said = self.choice(RoutePosition::of_route(host_at, chosen), route);
        explained.route = Some(RouteChoice { time_limit, becomes: becomes(head, route), leads_to, ..said });
        explained.clusters = clusters;
        explained
    }

    /// What each route says whatever the request, host by host, in the order in which they are looked at.
    pub fn choices(&self) -> impl Iterator<Item = RouteChoice> {
        let hosts = self.config().virtual_hosts.iter().enumerate();
        let all = hosts.flat_map(|(host, of)| of.routes.iter().enumerate().map(move |(at, route)| (host, at, route)));
        all.map(|(host, at, route)| {
            let time_limit = match &route.action {
                RouteAction::Forward(forward) => forward.time_limit(false, None),
                _ => None,
            };
            RouteChoice { time_limit, ..self.choice(RoutePosition::of_route(host, at), route) }
        })
    }

    fn choice(&self, position: RoutePosition, route: &Route) -> RouteChoice {
        let destinations = self.destinations(position);
        let common = destinations.first().filter(|_| are_alike(destinations));
        RouteChoice {
            position: position.route(),
            route: route.clone(),
            time_limit: None,
            becomes: None,
            leads_to: None,
            fault: self.fault_of(position).cloned(),
            passes: self.passed_at(position),
            cors: self.cors_of(position),
            headers: common.map(changes).unwrap_or_default(),
            origin: None,
            origins: Vec::new(),
        }
    }
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
