//! From the rules of a VirtualService to the routes of one client.
//!
//! Everything that depends on the client or on the port (`sourceLabels`, `sourceNamespace`, `port`,
//! `gateways`) is decided here; what is left are conditions on requests alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::request::split_authority;

use super::retry;
use super::route::{
    AbortWith, Action, Body, Changes, ClusterKey, Condition, Cors, Faults, Forward, HeaderChanges, PathRewrite,
    RedirectTo, Response, Retry, Route, StickySplit, Target, Written,
};
use super::split::{self, Part};
use super::text::{TextMatch, TextMatches};
use super::traffic::HashedBy;
use super::view::View;
use crate::config::extensions::{self as config, Extensions};
use crate::config::istio::string_match::StringMatch;
use crate::config::istio::virtual_service::{
    AddedValue, CorsPolicy, DerivePort, Destination, DirectResponse, Fault, FaultAbort, HeaderOperations,
    HttpDestination, HttpMatch, HttpRoute, Percent, Redirect, Rewrite, UnmatchedPreflights, decode_base64,
    grpc_status_code, is_authority, is_for_mesh,
};
use crate::registry::host::in_namespace;
use crate::registry::service::is_subset;

/// A rule of a VirtualService, with what a delegate brought along merged in.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The rule.
    pub route: HttpRoute,
    /// The namespace in which its short host names are resolved.
    pub namespace: Arc<str>,
    /// Where it is written.
    pub written: Written,
    /// Why nobody knows where it leads: the object that says so is wrong.
    pub refused: Option<Arc<str>>,
    /// What annotations of its object say.
    pub extensions: Extensions,
}

/// What a full host name stands for: the host itself or that which it is an alias of, and its ports. `None` where there
/// is no such service.
pub type ServiceOf<'a> = dyn Fn(&str) -> Option<(Arc<str>, Vec<u16>)> + 'a;

/// What rules are read with.
pub struct Surroundings<'a> {
    /// What host names stand for.
    pub service_of: &'a ServiceOf<'a>,
    /// When a route tries again that does not say it.
    pub default_retry: Option<&'a Retry>,
    /// The gateway that requests come in by, `NAMESPACE/NAME`; `None` where a workload makes them.
    pub gateway: Option<&'a str>,
}

/// The routes that these rules are for a client that addresses this port.
pub fn routes(rules: &[Rule], view: &View, port: u16, around: &Surroundings<'_>) -> Vec<Route> {
    // Mostly each is one, and thousands of them are not moved while they are made.
    let mut routes: Vec<Route> = Vec::with_capacity(rules.len());
    let unconditional = [HttpMatch::default()];
    for rule in rules {
        let matches = if rule.route.matches.is_empty() { &unconditional[..] } else { &rule.route.matches };
        for condition in matches {
            if !applies(condition, view, port, around.gateway) {
                continue;
            }
            let Some(route) = compile_one(rule, condition, port, around) else {
                continue;
            };
            let is_last = route.condition.is_catch_all();
            routes.push(route);
            if is_last {
                return routes;
            }
        }
    }
    routes
}

/// Every route that these rules can be, whoever the client is.
pub fn routes_of_anybody(rules: &[Rule], port: u16, around: &Surroundings<'_>) -> Vec<Route> {
    let mut routes = Vec::with_capacity(rules.len());
    let unconditional = [HttpMatch::default()];
    for rule in rules {
        let matches = if rule.route.matches.is_empty() { &unconditional[..] } else { &rule.route.matches };
        routes.extend(matches.iter().filter_map(|condition| compile_one(rule, condition, port, around)));
    }
    routes
}

/// Whether a condition can hold for requests of this client to this port.
fn applies(condition: &HttpMatch, view: &View, port: u16, gateway: Option<&str>) -> bool {
    let is_there = is_at(condition.gateways.iter().map(|name| name.value.as_str()), gateway);
    let labels = condition.source_labels.is_empty() || is_subset(&condition.source_labels, &view.labels);
    let namespace = condition.source_namespace.is_empty() || *condition.source_namespace == *view.namespace;
    let port = condition.port.is_none_or(|wanted| wanted.0 == port);
    // Claims of a token are not looked at.
    let claims = condition.headers.keys().chain(condition.without_headers.keys());
    let answerable = !claims.clone().any(|name| name.starts_with('@'));
    labels && namespace && port && is_there && answerable
}

/// Whether rules of these gateways, by their full names, are for requests that come in by this one, or for those of workloads.
pub(super) fn is_at<'a>(mut gateways: impl Iterator<Item = &'a str> + Clone, gateway: Option<&str>) -> bool {
    match gateway {
        None => is_for_mesh(gateways),
        // Where none is named, those of the object count.
        Some(gateway) => gateways.clone().next().is_none() || gateways.any(|name| name == gateway),
    }
}

fn compile_one(rule: &Rule, condition: &HttpMatch, port: u16, around: &Surroundings<'_>) -> Option<Route> {
    let route = &rule.route;
    let action = if let Some(reason) = &rule.refused {
        Action::Fail(reason.clone())
    } else if let Some(redirect) = &route.redirect {
        Action::Redirect(redirect_to(redirect, port))
    } else if let Some(response) = &route.direct_response {
        Action::Respond(respond(response))
    } else {
        Action::Forward(forward(rule, port, around)?)
    };
    let name = match (route.name.as_str(), condition.name.as_str()) {
        ("", name) | (name, "") => name.to_owned(),
        (route, condition) => format!("{route}.{condition}"),
    };
    Some(Route {
        name,
        condition: condition_of(condition),
        action,
        faults: route.fault.as_ref().map(faults).unwrap_or_default(),
        cors: route.cors_policy.as_ref().map(|policy| Box::new(cors(policy))),
        headers: changes(&route.headers.request, &route.headers.response),
        written: Some(rule.written.clone()),
    })
}

/// What a condition asks of a request, whoever makes it.
pub fn condition_of(condition: &HttpMatch) -> Condition {
    let text = |written: &Option<StringMatch>| written.as_ref().map(TextMatch::from);
    let lower = |headers: &BTreeMap<String, StringMatch>| {
        let headers = headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.into()));
        let mut headers: TextMatches = headers.collect();
        headers.sort();
        headers
    };
    Condition {
        path: text(&condition.uri).unwrap_or_default(),
        ignore_path_case: condition.ignore_uri_case,
        method: text(&condition.method),
        scheme: text(&condition.scheme),
        authority: text(&condition.authority),
        headers: lower(&condition.headers),
        without_headers: lower(&condition.without_headers),
        query: condition.query_params.iter().map(|(name, value)| (name.clone(), value.into())).collect(),
    }
}

fn forward(rule: &Rule, port: u16, around: &Surroundings<'_>) -> Option<Forward> {
    let route = &rule.route;
    let several = route.route.len() > 1;
    // Of several destinations, those of weight 0 get nothing (Istio: route.go).
    let kept = route.route.iter().filter(|destination| !several || weight(destination) > 0);
    let targets: Vec<Target> = kept
        .map(|destination| Target {
            cluster: cluster_of(&destination.destination, &rule.namespace, port, around.service_of),
            weight: weight(destination).max(1),
            headers: changes(&destination.headers.request, &destination.headers.response),
            authority: authority_in(&destination.headers.request),
            falls_back: false,
        })
        .collect();
    if targets.is_empty() {
        return None;
    }
    let rewritten = route.rewrite.as_ref();
    let mut retry = retry::of(route.retries.as_ref(), around.default_retry);
    if let Some(retry) = &mut retry {
        retry.hedges = rule.extensions.hedge.is_some();
    }
    Some(Forward {
        rewrite: rewritten.map(path_rewrite).unwrap_or_default(),
        authority: rewritten
            .and_then(|rewrite| rewrite.authority.clone())
            .filter(|authority| !authority.is_empty())
            .or_else(|| authority_in(&route.headers.request)),
        timeout: route.timeout.filter(|timeout| !timeout.is_zero()),
        retry,
        hashed_by: Vec::new(),
        coalesces: rule.extensions.coalesce.is_some(),
        sticky_split: rule.extensions.sticky_split.as_ref().and_then(|by| sticky_split(by, route, &targets)),
        targets,
        mirrors: route
            .mirrored()
            .filter(|(_, to, millionths)| *millionths > 0 && !to.host.is_empty())
            .map(|(_, to, millionths)| (cluster_of(to, &rule.namespace, port, around.service_of), millionths))
            .collect(),
    })
}

/// How the destinations of a rule share users. All of them are in it, those of weight 0 too, and in an order of their own:
/// where they are written, and what comes to take load, moves nobody.
fn sticky_split(by: &config::StickySplit, route: &HttpRoute, targets: &[Target]) -> Option<Box<StickySplit>> {
    if targets.len() < 2 {
        return None;
    }
    let name = |destination: &Destination| {
        let subset = destination.subset.as_ref().map_or("", |subset| subset.value.as_str());
        (destination.host.value.clone(), destination.port.as_ref().map(|port| port.number), subset.to_owned())
    };
    let mut all: Vec<_> = route.route.iter().map(|to| (name(&to.destination), weight(to))).enumerate().collect();
    all.sort_by(|(a, (a_name, _)), (b, (b_name, _))| (a_name, a).cmp(&(b_name, b)));
    let weights: Vec<u32> = all.iter().map(|(_, (_, weight))| *weight).collect();
    // Targets are the destinations that have a weight, in the order in which they are written.
    let target_of = |position: usize| {
        let (written, _) = all.get(position)?;
        Some(route.route.iter().take(*written).filter(|earlier| weight(earlier) > 0).count())
    };
    let parts = split::parts(&weights).into_iter();
    let parts =
        parts.map(|part| Some(Part { destination: target_of(part.destination)?, ..part })).collect::<Option<_>>();
    Some(Box::new(StickySplit { by: HashedBy::from(by), parts: parts? }))
}

impl From<&config::StickySplit> for HashedBy {
    fn from(written: &config::StickySplit) -> HashedBy {
        match written {
            config::StickySplit::Header(name) => HashedBy::Header(name.clone()),
            config::StickySplit::Cookie(name) => {
                HashedBy::Cookie { name: name.clone(), path: String::new(), ttl: None, attributes: Vec::new() }
            }
        }
    }
}

fn weight(destination: &HttpDestination) -> u32 {
    let weight = destination.weight.as_ref().map_or(0, |weight| weight.value);
    u32::try_from(weight).unwrap_or(0)
}

/// The port of a destination is the written one, else the only one that the service has, else the one that
/// is being addressed (Istio: GetDestinationCluster).
pub(super) fn cluster_of(
    destination: &Destination,
    namespace: &str,
    addressed: u16,
    service_of: &ServiceOf<'_>,
) -> ClusterKey {
    let host = in_namespace(&destination.host, namespace);
    let (host, ports) = service_of(&host).unwrap_or_else(|| (host.into(), Vec::new()));
    let port = match (&destination.port, ports.as_slice()) {
        (Some(port), _) => port.number.0,
        (None, [only]) => *only,
        (None, _) => addressed,
    };
    let subset = destination.subset.as_ref().map(|subset| subset.value.as_str()).unwrap_or_default();
    ClusterKey { host, port, subset: subset.into() }
}

fn path_rewrite(rewrite: &Rewrite) -> PathRewrite {
    match (&rewrite.uri_regex_rewrite, &rewrite.uri) {
        (Some(regex), _) => PathRewrite::Regex(regex.matches.clone(), regex.rewrite.clone()),
        (None, Some(uri)) if !uri.is_empty() => PathRewrite::Matched(uri.clone()),
        _ => PathRewrite::None,
    }
}

fn redirect_to(redirect: &Redirect, port: u16) -> RedirectTo {
    let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    RedirectTo {
        path: some(&redirect.uri),
        prefix: some(&redirect.prefix_rewrite),
        authority: some(&redirect.authority).map(|authority| match (redirect.port, redirect.derive_port) {
            (None, None) => authority,
            // The port that is said by itself counts. Envoy would put it behind the other one.
            _ => split_authority(&authority).map_or(authority.as_str(), |(host, _)| host).to_owned(),
        }),
        port: match (redirect.port, redirect.derive_port) {
            (Some(port), _) => Some(port.0),
            // The routes are those of one port, so that is the port of the request (Istio: route.go).
            (None, Some(DerivePort::FromRequestPort)) => Some(port),
            (None, Some(DerivePort::FromProtocolDefault)) => {
                Some(RedirectTo::standard_port(redirect.scheme.as_deref()))
            }
            (None, None) => None,
        },
        scheme: some(&redirect.scheme),
        status: redirect.redirect_code.as_ref().map_or(301, |code| code.value),
    }
}

fn respond(response: &DirectResponse) -> Response {
    let body = response.body.as_ref().and_then(|body| {
        let text = body.string.clone().map(Body::Text);
        text.or_else(|| body.bytes.as_deref().and_then(decode_base64).map(Body::Bytes))
    });
    Response { status: response.status.value, body: body.unwrap_or(Body::Empty) }
}

fn faults(fault: &Fault) -> Faults {
    let share = |percentage: Option<Percent>, percent: Option<i32>| {
        let whole = || percent.map(|percent| percent.clamp(0, 100).unsigned_abs() * 10_000);
        percentage.map(|percentage| percentage.millionths).or_else(whole).filter(|share| *share > 0)
    };
    Faults {
        delay: fault.delay.as_ref().and_then(|delay| {
            let pause = delay.fixed_delay.filter(|pause| !pause.is_zero())?;
            Some((pause, share(delay.percentage, delay.percent)?))
        }),
        abort: fault
            .abort
            .as_ref()
            .and_then(|abort| Some((abort_with(abort)?, share(abort.percentage, abort.percent)?))),
    }
}

fn cors(policy: &CorsPolicy) -> Cors {
    let origins = match policy.allow_origins.as_slice() {
        // What others were called before they could be anything but exact.
        [] => policy.allow_origin.iter().cloned().map(TextMatch::Exact).collect(),
        origins => origins.iter().map(TextMatch::from).collect(),
    };
    Cors {
        origins,
        methods: policy.allow_methods.join(","),
        headers: policy.allow_headers.join(","),
        exposed: policy.expose_headers.join(","),
        max_age: policy.max_age,
        credentials: policy.allow_credentials,
        forwards_others: match policy.unmatched_preflights {
            None | Some(UnmatchedPreflights::Unspecified) => None,
            Some(UnmatchedPreflights::Forward) => Some(true),
            Some(UnmatchedPreflights::Ignore) => Some(false),
        },
    }
}

fn abort_with(abort: &FaultAbort) -> Option<AbortWith> {
    if let Some(status) = &abort.http_status {
        return Some(AbortWith::Http(status.value));
    }
    abort.grpc_status.as_ref().and_then(|status| grpc_status_code(status)).map(AbortWith::Grpc)
}

/// Setting the header `Host` is a rewrite of the authority.
fn authority_in(operations: &HeaderOperations) -> Option<String> {
    operations.set.iter().chain(&operations.add).find(|(name, _)| is_authority(name)).map(|(_, v)| v.0.clone())
}

fn changes(request: &HeaderOperations, response: &HeaderOperations) -> HeaderChanges {
    let one = |operations: &HeaderOperations| {
        let pairs = |map: &BTreeMap<String, AddedValue>| {
            let kept = map.iter().filter(|(name, _)| !is_authority(name));
            kept.map(|(name, value)| (name.to_ascii_lowercase(), value.0.clone())).collect()
        };
        Changes {
            remove: operations.remove.iter().map(|name| name.to_ascii_lowercase()).collect(),
            set: pairs(&operations.set),
            add: pairs(&operations.add),
        }
    };
    HeaderChanges { request: one(request), response: one(response) }
}
