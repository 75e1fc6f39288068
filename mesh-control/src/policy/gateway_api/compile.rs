//! From the rules of an HTTPRoute or a GRPCRoute to routes.
//!
//! A prefix is compared segment by segment, which takes two routes: the path itself, and what begins with it and a slash.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::model::{RetryBackOff, RetryCondition};

use super::filters::{self, authority_of, header_changes};
use super::references::{References, Unresolved};
use crate::config::diagnostic::Span;
use crate::config::file::{Meta, Object};
use crate::config::gateway_api::connection_route::{ConnectionBackendRef, ConnectionRule};
use crate::config::gateway_api::filters::{
    FilterType, GrpcFilter, HttpFilter, PathModifier, PathModifierType, Retry as WrittenRetry, Timeouts,
};
use crate::config::gateway_api::grpc_route::{GrpcBackendRef, GrpcRoute, GrpcRouteMatch, MethodMatch};
use crate::config::gateway_api::http_route::{HttpBackendRef, HttpRoute, HttpRouteMatch, HttpRule, PathMatchType};
use crate::config::gateway_api::{MatchType, ValueMatch, first_of_each};
use crate::config::support::ObjectKind;
use crate::policy::retry::default_policy;
use crate::policy::route::{
    AbortWith, Action, Body, ClusterKey, Condition, Faults, Forward, HeaderChanges, PathRewrite, RedirectTo, Response,
    Retry, Route, Target, Written,
};
use crate::policy::text::{TextMatch, TextMatches};

/// What goes before what: the larger one does.
pub(super) type Rank = [usize; 5];

/// A route, and where it stands among others.
#[derive(Clone, Debug)]
pub(super) struct Compiled {
    pub(super) rank: Rank,
    /// The rule, and its condition.
    pub(super) position: (usize, usize),
    pub(super) route: Route,
}

/// All that an object says.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) compiled: Vec<Compiled>,
    pub(super) problems: Vec<Problem>,
    /// How many rules there are.
    pub(super) count: usize,
    /// Where connections go that are not looked at, and with which share.
    pub(super) connections: Vec<(ClusterKey, u32)>,
}

/// Something that cannot be done as it is written.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) rule: usize,
    pub(super) span: Span,
    pub(super) field: String,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// The reason of what nobody here can do.
pub(super) const UNSUPPORTED: &str = "UnsupportedValue";

/// What all rules have, of either kind.
struct Way<'r> {
    name: Option<&'r str>,
    span: Span,
    filters: &'r [HttpFilter],
    backends: &'r [HttpBackendRef],
    timeouts: Option<&'r Timeouts>,
    retry: Option<&'r WrittenRetry>,
}

/// A condition on the path, as one route has it, and how what is said of a prefix is said of it.
#[derive(Clone)]
enum PathCase {
    /// The path as a whole.
    Whole(TextMatch),
    /// What begins with the prefix and a slash.
    Below(String),
    /// Any path, or an expression for it.
    Other(TextMatch),
}

pub(super) fn http_rules(object: &Object<HttpRoute>, references: &References<'_>, default: Option<&Retry>) -> Rules {
    let mut compiler =
        Compiler { kind: ObjectKind::HttpRoute, meta: &object.meta, references, default, rules: Rules::default() };
    // The schema's own default: one rule, which has no backends.
    let default_rule = [HttpRule { span: object.spec.span, ..HttpRule::default() }];
    let rules = if object.spec.rules.is_empty() { &default_rule[..] } else { &object.spec.rules };
    for (index, rule) in rules.iter().enumerate() {
        let way = Way {
            name: rule.name.as_ref().map(|name| name.value.as_str()),
            span: rule.span,
            filters: &rule.filters,
            backends: &rule.backend_refs,
            timeouts: rule.timeouts.as_ref(),
            retry: rule.retry.as_ref(),
        };
        let unconditional = [HttpRouteMatch::default()];
        let matches = if rule.matches.is_empty() { &unconditional[..] } else { &rule.matches };
        let conditions =
            matches.iter().map(|condition| (http_rank(condition), http_cases(condition), http_condition(condition)));
        compiler.rule(index, &way, conditions.collect());
    }
    compiler.rules
}

pub(super) fn grpc_rules(object: &Object<GrpcRoute>, references: &References<'_>, default: Option<&Retry>) -> Rules {
    let mut compiler =
        Compiler { kind: ObjectKind::GrpcRoute, meta: &object.meta, references, default, rules: Rules::default() };
    for (index, rule) in object.spec.rules.iter().enumerate() {
        let filters: Vec<HttpFilter> = rule.filters.iter().map(GrpcFilter::of_http).collect();
        let backends: Vec<HttpBackendRef> = rule.backend_refs.iter().map(GrpcBackendRef::of_http).collect();
        let name = rule.name.as_ref().map(|name| name.value.as_str());
        let way = Way { name, span: rule.span, filters: &filters, backends: &backends, timeouts: None, retry: None };
        let unconditional = [GrpcRouteMatch::default()];
        let matches = if rule.matches.is_empty() { &unconditional[..] } else { &rule.matches };
        let conditions = matches.iter().map(|condition| {
            let headers = values(&condition.headers, true);
            let cases = vec![grpc_case(condition.method.as_ref())];
            (grpc_rank(condition), cases, Condition { headers, ..Condition::default() })
        });
        compiler.rule(index, &way, conditions.collect());
    }
    compiler.rules
}

/// Where connections go by the first of these rules: nowhere where one of its backends leads nowhere.
pub(super) fn connection_rules(meta: &Meta, rules: &[ConnectionRule], references: &References<'_>) -> Rules {
    let mut compiler = Compiler { kind: meta.kind, meta, references, default: None, rules: Rules::default() };
    compiler.rules.count = rules.len();
    for rule in rules.iter().take(1) {
        let backends: Vec<HttpBackendRef> = rule.backend_refs.iter().map(ConnectionBackendRef::of_http).collect();
        let (targets, lost) = compiler.targets(0, &backends);
        let targets = targets.into_iter().filter(|_| lost.is_empty());
        compiler.rules.connections = targets.map(|target| (target.cluster, target.weight)).collect();
    }
    compiler.rules
}

/// The route of an object that is wrong, for whatever it is attached to: before all others, since nobody knows its conditions.
pub(super) fn refused(kind: ObjectKind, answer: Arc<str>, written: Written) -> Compiled {
    let route = Route {
        name: String::new(),
        condition: Condition::default(),
        action: unusable(kind, answer),
        faults: Faults::default(),
        cors: None,
        headers: HeaderChanges::default(),
        written: Some(written),
    };
    Compiled { rank: [usize::MAX; 5], position: (0, 0), route }
}

/// Requests that lead nowhere are answered with 500, calls with UNAVAILABLE.
fn unusable(kind: ObjectKind, reason: Arc<str>) -> Action {
    match kind {
        ObjectKind::GrpcRoute => Action::Fail(reason),
        _ => Action::Respond(Response { status: 500, body: Body::Text(reason.to_string()) }),
    }
}

/// Exact paths, then prefixes by their length, then expressions (Istio: conversion.go); then a method, then more headers,
/// then more parameters.
fn http_rank(condition: &HttpRouteMatch) -> Rank {
    let path = condition.path.clone().unwrap_or_default();
    let (kind, value) = path.compared();
    let (kind, length) = match kind {
        PathMatchType::Exact => (2, value.chars().count()),
        PathMatchType::PathPrefix => (1, value.trim_end_matches('/').chars().count()),
        PathMatchType::RegularExpression => (0, value.chars().count()),
    };
    let headers = first_of_each(&condition.headers, true).len();
    [
        kind,
        length,
        usize::from(condition.method.is_some()),
        headers,
        first_of_each(&condition.query_params, false).len(),
    ]
}

/// What is compared as it is written before expressions, whose characters are no measure (Istio: conversion.go); then the
/// longest service, then the longest method, then more headers.
fn grpc_rank(condition: &GrpcRouteMatch) -> Rank {
    let method = condition.method.clone().unwrap_or_default();
    let length = |part: &Option<_>| part.as_ref().map_or(0, |part: &crate::config::decode::Text| part.chars().count());
    let (service, name) = (length(&method.service), length(&method.method));
    let kind = usize::from(method.kind == MatchType::Exact && service > 0);
    [kind, service, name, first_of_each(&condition.headers, true).len(), 0]
}

fn http_cases(condition: &HttpRouteMatch) -> Vec<PathCase> {
    let path = condition.path.clone().unwrap_or_default();
    let (kind, value) = path.compared();
    match kind {
        PathMatchType::Exact => vec![PathCase::Whole(TextMatch::Exact(value.to_owned()))],
        PathMatchType::RegularExpression => vec![PathCase::Other(expression(value))],
        PathMatchType::PathPrefix => {
            let prefix = value.trim_end_matches('/');
            let below = PathCase::Below(format!("{prefix}/"));
            match prefix {
                "" => vec![below],
                whole => vec![PathCase::Whole(TextMatch::Exact(whole.to_owned())), below],
            }
        }
    }
}

/// `*` alone is no expression, and was refused where it was read, unless it is Istio's word for any text.
fn expression(text: &str) -> TextMatch {
    if text == "*" { TextMatch::Present } else { TextMatch::Regex(text.to_owned()) }
}

fn grpc_case(method: Option<&MethodMatch>) -> PathCase {
    let part = |part: &Option<crate::config::decode::Text>| {
        part.as_ref().map(|part| part.value.clone()).filter(|part| !part.is_empty())
    };
    let Some(method) = method else { return PathCase::Other(TextMatch::Present) };
    const ANY: &str = "[^/]+";
    match (method.kind, part(&method.service), part(&method.method)) {
        (_, None, None) => PathCase::Other(TextMatch::Present),
        (MatchType::Exact, Some(service), Some(method)) => {
            PathCase::Other(TextMatch::Exact(format!("/{service}/{method}")))
        }
        (MatchType::Exact, Some(service), None) => PathCase::Other(TextMatch::Prefix(format!("/{service}/"))),
        (MatchType::Exact, None, Some(method)) => PathCase::Other(TextMatch::Regex(format!("/{ANY}/{method}"))),
        (MatchType::RegularExpression, service, method) => {
            let one = |part: Option<String>| part.filter(|part| part != "*").unwrap_or_else(|| ANY.to_owned());
            PathCase::Other(TextMatch::Regex(format!("/(?:{})/(?:{})", one(service), one(method))))
        }
    }
}

fn values(written: &[ValueMatch], are_headers: bool) -> TextMatches {
    let kept = first_of_each(written, are_headers).into_iter();
    let mut values: TextMatches = kept
        .map(|(name, value)| match value.kind {
            MatchType::Exact => (name, TextMatch::Exact(value.value.value.clone())),
            MatchType::RegularExpression => (name, expression(&value.value)),
        })
        .collect();
    values.sort();
    values
}

fn http_condition(condition: &HttpRouteMatch) -> Condition {
    Condition {
        method: condition.method.map(|method| TextMatch::Exact(method.name().to_owned())),
        headers: values(&condition.headers, true),
        query: values(&condition.query_params, false),
        ..Condition::default()
    }
}

struct Compiler<'a> {
    kind: ObjectKind,
    meta: &'a Meta,
    references: &'a References<'a>,
    default: Option<&'a Retry>,
    rules: Rules,
}

impl Compiler<'_> {
    fn rule(&mut self, index: usize, way: &Way<'_>, conditions: Vec<(Rank, Vec<PathCase>, Condition)>) {
        self.rules.count += 1;
        let (action, faults) = self.action(index, way);
        let written = Written {
            object: self.meta.id(),
            field: format!("rules[{index}]").into(),
            origin: self.meta.origin.at(way.span),
        };
        let Meta { namespace, name, .. } = self.meta;
        let name = match way.name {
            Some(rule) => format!("{namespace}.{name}.{index}.{rule}"),
            None => format!("{namespace}.{name}.{index}"),
        };
        let modifier = way.filters.iter().find_map(HttpFilter::path_modifier).map(|(_, modifier)| modifier);
        for (position, (rank, cases, condition)) in conditions.into_iter().enumerate() {
            for case in cases {
                let mut action = action.clone();
                if let Some(modifier) = modifier {
                    change_path(&mut action, modifier, &case);
                }
                let path = match case {
                    PathCase::Whole(path) | PathCase::Other(path) => path,
                    PathCase::Below(prefix) => TextMatch::Prefix(prefix),
                };
                let route = Route {
                    name: name.clone(),
                    condition: Condition { path, ..condition.clone() },
                    action,
                    faults: faults.clone(),
                    cors: filters::cors(way.filters).map(Box::new),
                    headers: header_changes(way.filters),
                    written: Some(written.clone()),
                };
                self.rules.compiled.push(Compiled { rank, position: (index, position), route });
            }
        }
    }

    fn problem(&mut self, rule: usize, span: Span, field: String, unresolved: Unresolved) {
        let Unresolved { reason, message } = unresolved;
        self.rules.problems.push(Problem { rule, span, field, reason, message });
    }

    /// What happens, apart from what depends on the condition.
    fn action(&mut self, index: usize, way: &Way<'_>) -> (Action, Faults) {
        let path = format!("rules[{index}]");
        let id = self.meta.id();
        let why = |message: &str| -> Arc<str> { format!("{id}: {path}: {message}").into() };
        for (position, filter) in way.filters.iter().enumerate() {
            if let FilterType::ExtensionRef | FilterType::ExternalAuth = filter.kind {
                let message = format!("a filter of type {} cannot be honoured", filter_name(filter.kind));
                let field = format!("{path}.filters[{position}]");
                self.problem(index, filter.span, field, Unresolved { reason: UNSUPPORTED, message: message.clone() });
                return (unusable(self.kind, why(&message)), Faults::default());
            }
        }
        if let Some(redirect) = way.filters.iter().find_map(|filter| filter.request_redirect.as_ref()) {
            let scheme = redirect.scheme.map(|scheme| scheme.name().to_owned());
            // Another scheme has another port, written or not.
            let of_scheme = scheme.as_deref().map(|scheme| RedirectTo::standard_port(Some(scheme)));
            return (
                Action::Redirect(RedirectTo {
                    authority: redirect.hostname.as_ref().map(|host| host.value.clone()),
                    port: redirect.port.map(|port| port.0).or(of_scheme),
                    scheme,
                    status: redirect.status_code.as_ref().map_or(302, |code| code.value),
                    ..RedirectTo::default()
                }),
                Faults::default(),
            );
        }
        let (targets, lost) = self.targets(index, way.backends);
        let good: u64 = targets.iter().map(|target| u64::from(target.weight)).sum();
        let bad: u64 = lost.iter().map(|(weight, _)| u64::from(*weight)).sum();
        if good == 0 {
            let reason = match lost.iter().find(|(weight, _)| *weight > 0) {
                Some((_, message)) => message.clone(),
                None if way.backends.is_empty() => "there are no backendRefs".to_owned(),
                None => "no backend has a weight above 0".to_owned(),
            };
            return (unusable(self.kind, why(&reason)), Faults::default());
        }
        let share = u32::try_from((bad * 1_000_000).div_ceil(good + bad)).unwrap_or(1_000_000);
        let with = match self.kind {
            ObjectKind::GrpcRoute => AbortWith::Grpc(UNAVAILABLE),
            _ => AbortWith::Http(500),
        };
        let faults = Faults { delay: None, abort: (share > 0).then_some((with, share)) };
        let mirrors = self.mirrors(index, way.filters);
        let duration = |written: Option<crate::config::gateway_api::GatewayDuration>| {
            written.map(|duration| duration.0).filter(|duration| !duration.is_zero())
        };
        let mut timeout = way.timeouts.and_then(|timeouts| duration(timeouts.request));
        let of_try = way.timeouts.and_then(|timeouts| duration(timeouts.backend_request));
        let retry = retry(way.retry, of_try, self.default);
        if let (None, Some(limit)) = (&retry, of_try) {
            timeout = Some(timeout.map_or(limit, |timeout| timeout.min(limit)));
        }
        let rewritten = way.filters.iter().find_map(|filter| filter.url_rewrite.as_ref()?.hostname.as_ref());
        let authority = rewritten.map(|host| host.value.clone()).or_else(|| authority_of(way.filters));
        let forward = Forward {
            targets,
            rewrite: PathRewrite::None,
            authority,
            timeout,
            retry,
            hashed_by: Vec::new(),
            coalesces: false,
            sticky_split: None,
            mirrors,
        };
        (Action::Forward(forward), faults)
    }

    /// Where requests go, and the weights of those that lead nowhere, with the reasons.
    fn targets(&mut self, index: usize, backends: &[HttpBackendRef]) -> (Vec<Target>, Vec<(u32, String)>) {
        let (mut targets, mut lost) = (Vec::new(), Vec::new());
        for (position, backend) in backends.iter().enumerate() {
            let field = format!("rules[{index}].backendRefs[{position}]");
            let modifies =
                |kind| matches!(kind, FilterType::RequestHeaderModifier | FilterType::ResponseHeaderModifier);
            let other = backend.filters.iter().find(|filter| !modifies(filter.kind));
            let resolved = self.references.resolve(self.kind, &self.meta.namespace, &backend.reference());
            let unsupported = other.map(|filter| Unresolved {
                reason: UNSUPPORTED,
                message: format!("a filter of type {} cannot be honoured for a backend", filter_name(filter.kind)),
            });
            match (resolved, unsupported) {
                (Ok(cluster), None) if backend.share() > 0 => targets.push(Target {
                    cluster,
                    weight: backend.share(),
                    headers: header_changes(&backend.filters),
                    authority: authority_of(&backend.filters),
                    falls_back: false,
                }),
                (Ok(_), None) => {}
                (Err(unresolved), _) | (Ok(_), Some(unresolved)) => {
                    lost.push((backend.share(), unresolved.message.clone()));
                    self.problem(index, backend.span, field, unresolved);
                }
            }
        }
        (targets, lost)
    }

    /// Who gets copies. One that leads nowhere is left out.
    fn mirrors(&mut self, index: usize, filters: &[HttpFilter]) -> Vec<(ClusterKey, u32)> {
        let mut mirrors = Vec::new();
        for (position, filter) in filters.iter().enumerate() {
            let Some(mirror) = &filter.request_mirror else { continue };
            match self.references.resolve(self.kind, &self.meta.namespace, &mirror.backend_ref) {
                Ok(cluster) => mirrors.push((cluster, mirror.millionths())),
                Err(unresolved) => {
                    let field = format!("rules[{index}].filters[{position}].requestMirror.backendRef");
                    self.problem(index, mirror.backend_ref.span, field, unresolved);
                }
            }
        }
        mirrors.retain(|(_, millionths)| *millionths > 0);
        mirrors
    }
}

/// The gRPC status.
const UNAVAILABLE: u32 = 14;

const fn filter_name(kind: FilterType) -> &'static str {
    match kind {
        FilterType::RequestHeaderModifier => "RequestHeaderModifier",
        FilterType::ResponseHeaderModifier => "ResponseHeaderModifier",
        FilterType::RequestMirror => "RequestMirror",
        FilterType::RequestRedirect => "RequestRedirect",
        FilterType::UrlRewrite => "URLRewrite",
        FilterType::Cors => "CORS",
        FilterType::ExternalAuth => "ExternalAuth",
        FilterType::ExtensionRef => "ExtensionRef",
    }
}

/// Connections that fail, answers that do not come, and the statuses that are written (GEP-1731).
const RETRIED: [RetryCondition; 6] = [
    RetryCondition::ConnectFailure,
    RetryCondition::RefusedStream,
    RetryCondition::Reset,
    RetryCondition::Unavailable,
    RetryCondition::Cancelled,
    RetryCondition::RetriableStatusCodes,
];

fn retry(written: Option<&WrittenRetry>, of_try: Option<Duration>, default: Option<&Retry>) -> Option<Retry> {
    let mut retry = match written {
        None => default?.clone(),
        Some(written) => {
            let policy = default_policy();
            let attempts = match &written.attempts {
                None => policy.attempts,
                Some(attempts) => u32::try_from(attempts.value).ok().and_then(NonZeroU32::new)?,
            };
            let pause = written.backoff.map(|pause| pause.0).filter(|pause| !pause.is_zero());
            Retry {
                attempts,
                conditions: RETRIED.to_vec(),
                statuses: written.codes.iter().map(|code| code.value).collect(),
                backoff: pause.map(RetryBackOff::of),
                ..policy
            }
        }
    };
    retry.per_try_timeout = of_try.or(retry.per_try_timeout);
    Some(retry)
}

/// Another path, for requests that meet this condition.
fn change_path(action: &mut Action, modifier: &PathModifier, case: &PathCase) {
    let some = |path: &str| if path.is_empty() { "/".to_owned() } else { path.to_owned() };
    let text =
        |text: &Option<crate::config::decode::Text>| text.as_ref().map_or("", |text| text.value.as_str()).to_owned();
    let full = some(&text(&modifier.replace_full_path));
    // What stands for the prefix, without the slash that the rest of the path brings along.
    let stem = text(&modifier.replace_prefix_match).trim_end_matches('/').to_owned();
    let matched = match case {
        PathCase::Whole(_) => some(&stem),
        PathCase::Below(_) | PathCase::Other(_) => format!("{stem}/"),
    };
    match (action, modifier.kind) {
        (Action::Redirect(redirect), PathModifierType::ReplaceFullPath) => redirect.path = Some(full),
        (Action::Redirect(redirect), PathModifierType::ReplacePrefixMatch) => redirect.prefix = Some(matched),
        (Action::Forward(forward), PathModifierType::ReplacePrefixMatch) => {
            forward.rewrite = PathRewrite::Matched(matched)
        }
        (Action::Forward(forward), PathModifierType::ReplaceFullPath) => {
            forward.rewrite = match case {
                PathCase::Whole(_) => PathRewrite::Matched(full),
                // All of the path, with what has a meaning in a substitution taken literally.
                _ => PathRewrite::Regex("^.*$".to_owned(), full.replace('\\', r"\\")),
            };
        }
        _ => {}
    }
}
