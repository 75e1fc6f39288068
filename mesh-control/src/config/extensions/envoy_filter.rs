//! The `EnvoyFilter`s that are understood: the rate limits that Istio documents ("Enabling Rate Limits using Envoy"), local and
//! global ones (`global.rs`). A filter that is put into the inbound chain of workloads, and what virtual hosts and routes say
//! in its place or count by, in the same object or in another one. What it says besides is told, and then nothing of it is
//! in force: a part of it might refuse what the whole would not.

#![allow(missing_docs, reason = "the fields are Envoy's")]

mod counted;
mod global;
mod written;

use std::mem::discriminant;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use mesh_core::limits::KeyedBuckets;
use mesh_core::model::{
    Fraction, HeaderChange, HeaderTarget, HeaderText, LocalRateLimit, LocalRule, OfHost, RateLimit as Counted,
    RestHeaders, TokenBucket,
};
use mesh_core::xds::decode::changeable;

use self::counted::{RateLimitEntry, shared};
use self::global::Global;
use super::rate_limit::{Counter, Fault, RateLimit, WhoseRequests, too_many_buckets};
use crate::config::decode::{At, Decode, Decoder, PortNumber, Text, keywords, message};
use crate::config::diagnostic::{Code, Severity, Span, quoted};
use crate::config::istio::security::{Selector, check_selector};
use crate::config::node::{Node, Value};

/// The filters, and the types of their configurations.
const LOCAL: &str = "envoy.filters.http.local_ratelimit";
const LOCAL_TYPE: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const GLOBAL: &str = "envoy.filters.http.ratelimit";
const GLOBAL_TYPE: &str = "envoy.extensions.filters.http.ratelimit.v3.RateLimit";
/// A configuration by the name of its type.
const STRUCTS: [&str; 2] = ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"];

message! {
    /// The specification.
    pub struct Spec {
        workload_selector: WorkloadSelector = "workloadSelector",
        config_patches: Vec<Patch> = "configPatches",
        priority: Option<i32> = "priority",
    }
    pub struct WorkloadSelector {
        labels: std::collections::BTreeMap<String, String> = "labels",
    }
    pub struct Patch {
        apply_to: Text = "applyTo" required,
        matches: Match = "match",
        patch: Change = "patch" required,
    }
    pub struct Match {
        context: Option<Text> = "context",
        listener: ListenerMatch = "listener",
        routes: RoutesMatch = "routeConfiguration",
    }
    pub struct ListenerMatch {
        port: Option<PortNumber> = "portNumber",
        chain: ChainMatch = "filterChain",
    }
    pub struct ChainMatch {
        filter: FilterMatch = "filter",
    }
    pub struct FilterMatch {
        name: Option<Text> = "name",
        sub_filter: SubFilterMatch = "subFilter",
    }
    pub struct SubFilterMatch {
        name: Option<Text> = "name",
    }
    pub struct RoutesMatch {
        port: Option<PortNumber> = "portNumber",
        vhost: VhostMatch = "vhost",
    }
    pub struct VhostMatch {
        name: Option<Text> = "name",
        route: RouteMatch = "route",
    }
    pub struct RouteMatch {
        name: Option<Text> = "name",
        action: Option<Text> = "action",
    }
    pub struct Change {
        operation: Text = "operation" required,
        value: Patched = "value",
    }
    /// A filter, a virtual host or a route.
    pub struct Patched {
        name: Option<Text> = "name",
        typed_config: Option<Config> = "typed_config",
        per_filter: PerFilter = "typed_per_filter_config",
        rate_limits: Vec<RateLimitEntry> = "rate_limits",
        route: RouteAction = "route",
    }
    pub struct RouteAction {
        rate_limits: Vec<RateLimitEntry> = "rate_limits",
    }
    pub struct PerFilter {
        local: Option<Config> = "envoy.filters.http.local_ratelimit",
    }
    /// `LocalRateLimit`.
    pub struct Local {
        stat_prefix: Text = "stat_prefix" required,
        status: HttpStatus = "status",
        token_bucket: Option<Bucket> = "token_bucket",
        filter_enabled: Option<Share> = "filter_enabled",
        filter_enforced: Option<Share> = "filter_enforced",
        response_headers: Vec<AddedHeader> = "response_headers_to_add",
        request_headers: Vec<AddedHeader> = "request_headers_to_add_when_not_enforced",
        descriptors: Vec<DescriptorEntry> = "descriptors",
        rate_limits: Vec<RateLimitEntry> = "rate_limits",
        per_connection: Option<bool> = "local_rate_limit_per_downstream_connection",
        always_consumes: Option<bool> = "always_consume_default_token_bucket",
        is_exhaustion: Option<bool> = "rate_limited_as_resource_exhausted",
        max_dynamic: Option<At<u32>> = "max_dynamic_descriptors",
        retry_after: Option<bool> = "enable_retry_after_header",
        rest: RestWord = "enable_x_ratelimit_headers",
    }
    pub struct HttpStatus {
        code: Option<Code16> = "code",
    }
    pub struct Bucket {
        max_tokens: u32 = "max_tokens" required,
        tokens_per_fill: Option<u32> = "tokens_per_fill",
        fill_interval: At<Duration> = "fill_interval" required,
    }
    pub struct Share {
        runtime_key: Option<Text> = "runtime_key",
        default_value: Percent = "default_value" required,
    }
    pub struct Percent {
        numerator: Option<u32> = "numerator",
        denominator: Denominator = "denominator",
    }
    pub struct AddedHeader {
        append: Option<bool> = "append",
        action: AppendAction = "append_action",
        header: HeaderPair = "header" required,
    }
    pub struct HeaderPair {
        key: Text = "key" required,
        value: String = "value",
    }
    pub struct DescriptorEntry {
        entries: Vec<Entry> = "entries",
        token_bucket: Bucket = "token_bucket" required,
        shadow: Option<bool> = "shadow_mode",
    }
    pub struct Entry {
        key: String = "key" required,
        value: String = "value",
    }
}

keywords! {
    pub enum Denominator {
        Hundred = "HUNDRED",
        TenThousand = "TEN_THOUSAND",
        Million = "MILLION",
    }
    pub enum AppendAction {
        Append = "APPEND_IF_EXISTS_OR_ADD",
        AddIfAbsent = "ADD_IF_ABSENT",
        Overwrite = "OVERWRITE_IF_EXISTS_OR_ADD",
        OverwriteIfExists = "OVERWRITE_IF_EXISTS",
    }
    pub enum RestWord {
        Off = "OFF",
        Draft = "DRAFT_VERSION_03",
    }
}

/// A status, by its number or by Envoy's word for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Code16(u16);

impl Decode for Code16 {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        match node.as_str() {
            Some("TooManyRequests") => Some(Code16(429)),
            Some("ServiceUnavailable") => Some(Code16(503)),
            _ => match u16::decode(node, d)? {
                code @ 100..=599 => Some(Code16(code)),
                code => {
                    d.error(node.span, Code::InvalidValue, format!("{code} is no status"));
                    None
                }
            },
        }
    }
}

/// A configuration of a filter, in either of its two forms.
#[derive(Clone, Debug)]
pub enum Config {
    Local(Local),
    Global(Global),
}

impl Decode for Config {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let of = |name: &str| node.get(name).and_then(Node::as_str).map(|url| url.rsplit('/').next().unwrap_or(url));
        let (kind, value) = match (of("@type"), of("type_url")) {
            (Some(wrapper), Some(kind)) if STRUCTS.contains(&wrapper) => (Some(kind), node.get("value").cloned()),
            (kind, None) => {
                let mut plain = node.clone();
                if let Value::Map(entries) = &mut plain.value {
                    entries.retain(|(key, _)| key.name != "@type");
                }
                (kind, Some(plain))
            }
            _ => (None, None),
        };
        match (kind, value) {
            (Some(LOCAL_TYPE), Some(value)) => Local::decode(&value, d).map(Config::Local),
            (Some(GLOBAL_TYPE), Some(value)) => Global::decode(&value, d).map(Config::Global),
            _ => {
                d.error(node.span, Code::InvalidValue, format!("a configuration of {LOCAL} or {GLOBAL} is expected"));
                None
            }
        }
    }
}

impl Config {
    fn filter(&self) -> &'static str {
        match self {
            Config::Local(_) => LOCAL,
            Config::Global(_) => GLOBAL,
        }
    }

    /// What is taken as in Envoy, and hardly meant.
    fn check(&self, at: &str, d: &mut Decoder<'_>) {
        match self {
            Config::Local(local) => {
                local.check_shares(at, d);
                local.status.check(400, 429, &format!("{at}.status"), d);
            }
            Config::Global(global) => {
                global.status.check(400, 429, &format!("{at}.rate_limited_status"), d);
                global.status_on_error.check(200, 500, &format!("{at}.status_on_error"), d);
            }
        }
    }

    fn counter(&self, at: &str, faults: &mut Vec<Fault>) -> Counter {
        match self {
            Config::Local(local) => Counter::Process(Arc::new(local.limit(at, faults))),
            Config::Global(global) => Counter::Service(Arc::new(global.limit(at, faults))),
        }
    }
}

/// Whether an `EnvoyFilter` is about rate limits, and those of workloads where it is not local ones: then it is read, with all that
/// it says, and else it is reported as a whole.
pub fn is_limit(document: &Node) -> bool {
    let patches = document.get("spec").and_then(|spec| spec.get("configPatches")).map_or(&[][..], Node::items);
    let is_of_it = |patch: &Node| {
        let value = patch.get("patch").and_then(|patch| patch.get("value"));
        let counts = |value: &Node| value.get("rate_limits").or_else(|| value.get("rateLimits")).is_some();
        value.is_some_and(|value| {
            says(value, LOCAL) || says(value, GLOBAL) || counts(value) || value.get("route").is_some_and(counts)
        })
    };
    let is_meant = |patch: &Node| {
        let context = patch.get("match").and_then(|matches| matches.get("context")).and_then(Node::as_str);
        context == Some("SIDECAR_INBOUND") || patch.get("patch").is_some_and(|patch| says(patch, LOCAL))
    };
    patches.iter().any(is_of_it) && patches.iter().any(is_meant)
}

/// Limits that no `EnvoyFilter` is read for, and the objects of our own that say them, at gateways too.
const INSTEAD: [(&str, &str); 4] = [
    (GLOBAL, "a RateLimit with a `service`"),
    ("envoy.filters.http.adaptive_concurrency", "an Overload with a `concurrency`"),
    ("envoy.filters.http.admission_control", "an Overload with a `throttle`"),
    ("envoy.filters.http.rate_limit_quota", "a Quota"),
];

/// What is said in the place of one that is reported as a whole.
pub fn instead(document: &Node) -> Option<String> {
    let (filter, object) = INSTEAD.into_iter().find(|(filter, _)| says(document, filter))?;
    Some(format!("{object} is for what {filter} does"))
}

fn says(node: &Node, filter: &str) -> bool {
    match &node.value {
        Value::Map(entries) => entries.iter().any(|(key, value)| key.name == filter || says(value, filter)),
        Value::Seq(items) => items.iter().any(|item| says(item, filter)),
        _ => node.as_str() == Some(filter),
    }
}

/// Where a patch has its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Filter,
    Host,
    Route,
}

/// A patch that has its effect here, on one port or on all.
struct Placed {
    level: Level,
    port: Option<u16>,
    /// Who counts requests, where it says that.
    counter: Option<Counter>,
    /// What it says that requests are counted by.
    counted: Vec<Arc<Counted>>,
}

impl Placed {
    /// Whether both put a filter of one name into the chain of one port.
    fn doubles(&self, earlier: &Placed) -> bool {
        let filter = |one: &Placed| one.counter.as_ref().map(discriminant);
        let is_same_port = self.port.is_none() || earlier.port.is_none() || self.port == earlier.port;
        self.level == Level::Filter && earlier.level == Level::Filter && filter(self) == filter(earlier) && is_same_port
    }
}

/// Reads one that is about rate limits; `None` where something in it has no effect here, which is said.
pub fn read(spec: &Node, d: &mut Decoder<'_>) -> Option<RateLimit> {
    let mut faults = Vec::new();
    let read = Spec::decode(&written::read(spec, &mut faults), d);
    if !faults.is_empty() {
        tell(&faults, d);
        return None;
    }
    let read = read?;
    let selector = Selector { span: read.workload_selector.span, match_labels: read.workload_selector.labels.clone() };
    check_selector(read.span, Some(&selector), d);
    if read.priority.is_some_and(|priority| priority != 0) {
        faults.push((read.span, "priority".to_owned(), "an order among EnvoyFilters is not supported".to_owned()));
    }
    let mut all: Vec<Placed> = Vec::new();
    for (index, patch) in read.config_patches.iter().enumerate() {
        let at = format!("configPatches[{index}]");
        let Some(placed) = patch.placed(&at, &mut faults) else { continue };
        // Envoy passes requests through both, and here the first one would be of no effect.
        if all.iter().any(|earlier| placed.doubles(earlier)) {
            let message = "a second filter of this name in the chain of one port: write two EnvoyFilters";
            faults.push((patch.span, format!("{at}.patch"), message.to_owned()));
        }
        all.push(placed);
    }
    let says = |is_it: fn(&Counter) -> bool| all.iter().any(|one| one.counter.as_ref().is_some_and(is_it));
    let is_local = says(|counter| matches!(counter, Counter::Process(_)));
    if is_local && says(|counter| matches!(counter, Counter::Service(_))) {
        let message = format!("{LOCAL} and {GLOBAL} in one: write two");
        faults.push((read.span, "configPatches".to_owned(), message));
    }
    let has_filter = all.iter().any(|one| one.level == Level::Filter);
    if is_local && !has_filter {
        let message = format!("no patch puts {LOCAL} into a chain, so that nothing is limited");
        faults.push((read.span, "configPatches".to_owned(), message));
    }
    for (index, patch) in read.config_patches.iter().enumerate() {
        if let Some(config) = patch.patch.value.config() {
            config.check(&format!("configPatches[{index}].patch.value"), d);
        }
    }
    tell(&faults, d);
    if !faults.is_empty() {
        return None;
    }
    // For each port that is named, and for all others: what is in force there, the most specific first.
    let mut ports: Vec<Option<u16>> = all.iter().map(|one| one.port).chain([None]).collect();
    ports.sort_unstable();
    ports.dedup();
    let at = |level: Level, port: Option<u16>| {
        all.iter().filter(move |one| one.level == level && (one.port.is_none() || one.port == port))
    };
    let counted = |port: Option<u16>| {
        let counted = |level| at(level, port).flat_map(|one| one.counted.iter().cloned()).collect::<Vec<_>>();
        let of_route = counted(Level::Route);
        if of_route.is_empty() { counted(Level::Host) } else { of_route }
    };
    let in_force = |port: Option<u16>| {
        at(Level::Filter, port).next()?;
        let mut counters = [Level::Route, Level::Host, Level::Filter]
            .into_iter()
            .filter_map(|level| at(level, port).filter_map(|one| one.counter.as_ref()).next_back());
        Some((port, counters.next()?.clone().or_by(&counted(port))))
    };
    Some(RateLimit {
        span: read.span,
        selector: Some(selector).filter(|selector| !selector.match_labels.is_empty()),
        target_refs: Vec::new(),
        mode: WhoseRequests::Server,
        hosts: Vec::new(),
        limits: ports.iter().filter_map(|port| in_force(*port)).collect(),
        counted: if has_filter { Vec::new() } else { ports.iter().map(|port| (*port, counted(*port))).collect() },
    })
}

/// Tells what has no effect here.
fn tell(faults: &[Fault], d: &mut Decoder<'_>) {
    for (span, field, message) in faults {
        let message = format!("not supported, and so nothing of this EnvoyFilter is in force: {message}");
        d.report_at(*span, field.clone(), Severity::Error, Code::NotSupportedYet, message);
    }
}

fn added(headers: &[AddedHeader], target: HeaderTarget, at: &str, faults: &mut Vec<Fault>) -> Vec<HeaderChange> {
    headers.iter().filter_map(|header| header.change(at, target, faults)).collect()
}

impl Patch {
    /// What it does where it has its effect; `None` where that is not known, which is said.
    fn placed(&self, at: &str, faults: &mut Vec<Fault>) -> Option<Placed> {
        let (level, port) = self.place(at, faults)?;
        let value = &self.patch.value;
        let counter = value.config().map(|config| config.counter(&format!("{at}.patch.value"), faults));
        let mut counted = shared(&value.rate_limits, at, faults);
        counted.extend(shared(&value.route.rate_limits, at, faults));
        Some(Placed { level, port, counter, counted })
    }

    /// Where it has its effect, and on which port; `None` where that is not known, which is said.
    fn place(&self, at: &str, faults: &mut Vec<Fault>) -> Option<(Level, Option<u16>)> {
        let before = faults.len();
        let mut wrong =
            |span: Span, field: &str, message: String| faults.push((span, format!("{at}.{field}"), message));
        let (level, operations): (_, &[&str]) = match self.apply_to.as_str() {
            "HTTP_FILTER" => (Level::Filter, &["INSERT_BEFORE", "INSERT_FIRST", "INSERT_AFTER"]),
            "VIRTUAL_HOST" => (Level::Host, &["MERGE"]),
            "HTTP_ROUTE" => (Level::Route, &["MERGE"]),
            other => {
                wrong(self.apply_to.span, "applyTo", format!("patches of {other}"));
                return None;
            }
        };
        let operation = &self.patch.operation;
        if !operations.contains(&operation.as_str()) {
            wrong(operation.span, "patch.operation", format!("{} of {}", operation.value, self.apply_to.value));
        }
        match &self.matches.context {
            Some(context) if context.value == "SIDECAR_INBOUND" => {}
            Some(context) => wrong(context.span, "match.context", format!("context {}", context.value)),
            None => wrong(self.span, "match.context", "any context: name SIDECAR_INBOUND".to_owned()),
        }
        if let Some(name) = &self.matches.listener.chain.filter.name
            && name.value != "envoy.filters.network.http_connection_manager"
        {
            wrong(name.span, "match.listener.filterChain.filter.name", format!("the filter {}", quoted(name)));
        }
        if let Some(name) = &self.matches.listener.chain.filter.sub_filter.name
            && name.value != "envoy.filters.http.router"
        {
            let message = format!("a place before {}", quoted(name));
            wrong(name.span, "match.listener.filterChain.filter.subFilter.name", message);
        }
        if let Some(name) = self.matches.routes.vhost.route.name.as_ref().filter(|name| name.value != "default") {
            let message = format!("the route {}: a port has one, `default`", quoted(name));
            wrong(name.span, "match.routeConfiguration.vhost.route.name", message);
        }
        // Whatever comes in is handed to the workload.
        let is_every = |action: &&Text| ["ANY", "ROUTE"].contains(&action.as_str());
        if let Some(action) = self.matches.routes.vhost.route.action.as_ref().filter(|action| !is_every(action)) {
            wrong(action.span, "match.routeConfiguration.vhost.route.action", format!("action {}", action.value));
        }
        let mut port = self.matches.listener.port.or(self.matches.routes.port).map(|port| port.0);
        if let Some(name) = self.matches.routes.vhost.name.as_ref().filter(|name| !name.is_empty()) {
            let named = name.strip_prefix("inbound|http|").and_then(|port| port.parse().ok());
            if named.is_none() {
                let message = format!("the virtual host {}: inbound|http|PORT is expected", quoted(name));
                wrong(name.span, "match.routeConfiguration.vhost.name", message);
            }
            port = port.or(named);
        }
        let value = &self.patch.value;
        let filter = value.typed_config.as_ref().map_or(LOCAL, Config::filter);
        if let Some(name) = value.name.as_ref().filter(|name| level != Level::Filter || name.value != filter) {
            wrong(name.span, "patch.value.name", format!("the name {}", quoted(name)));
        }
        if value.per_filter.local.as_ref().is_some_and(|config| config.filter() != LOCAL) {
            wrong(value.span, "patch.value.typed_per_filter_config", format!("this value for {LOCAL}"));
        }
        for (field, why) in value.misplaced(level) {
            wrong(value.span, &format!("patch.value.{field}"), why.to_owned());
        }
        if (level == Level::Filter) != value.typed_config.is_some() {
            wrong(value.span, "patch.value", format!("this value for {}", self.apply_to.value));
        }
        (faults.len() == before).then_some((level, port))
    }
}

impl Patched {
    /// The configuration of a filter, at whichever level.
    fn config(&self) -> Option<&Config> {
        self.typed_config.as_ref().or(self.per_filter.local.as_ref())
    }

    /// What of it has its effect at another level, and where it belongs.
    fn misplaced(&self, level: Level) -> Vec<(&'static str, &'static str)> {
        let at_top = (!self.rate_limits.is_empty(), "rate_limits");
        let in_route = (!self.route.rate_limits.is_empty(), "route.rate_limits");
        let of_filters = (self.per_filter.local.is_some(), "typed_per_filter_config");
        let all = match level {
            Level::Filter => vec![
                (at_top, "it stands beside typed_config, and belongs into it"),
                (in_route, "a filter has no route"),
                (of_filters, "a filter has its own in typed_config"),
            ],
            Level::Host => vec![(in_route, "a virtual host has `rate_limits` at its top")],
            Level::Route => vec![(at_top, "a route has `rate_limits` under `route`")],
        };
        all.into_iter().filter(|((is_there, _), _)| *is_there).map(|((_, field), why)| (field, why)).collect()
    }
}

impl Local {
    /// Limits of no request: what is not said of shares is none, as in Envoy.
    fn check_shares(&self, at: &str, d: &mut Decoder<'_>) {
        let unset = |share: &Option<Share>, field: &str| match share {
            None => Some(field.to_owned()),
            Some(share) => share.default_value.numerator.is_none().then(|| format!("{field}.default_value.numerator")),
        };
        let enabled = unset(&self.filter_enabled, "filter_enabled");
        let (field, what) = match (enabled, unset(&self.filter_enforced, "filter_enforced")) {
            (Some(field), _) => (field, "no request is counted"),
            (None, Some(field)) => (field, "requests over the limit are counted, and none is refused"),
            (None, None) => return,
        };
        // Without a bucket it is there for what virtual hosts and routes say.
        if self.token_bucket.is_some() || !self.descriptors.is_empty() {
            let message = format!("{field} is not set, which is 0 % of requests, as in Envoy: {what}");
            d.report_at(self.span, format!("{at}.{field}"), Severity::Warning, Code::Ignored, message);
        }
    }

    fn limit(&self, at: &str, faults: &mut Vec<Fault>) -> LocalRateLimit {
        let bucket = self.token_bucket.as_ref().and_then(|bucket| bucket.read(&format!("{at}.token_bucket"), faults));
        let mut limit = LocalRateLimit::new(self.stat_prefix.as_str(), bucket);
        for descriptor in &self.descriptors {
            let entries =
                descriptor.entries.iter().map(|entry| (entry.key.as_str().into(), entry.value.as_str().into()));
            let entries: Vec<(Arc<str>, Arc<str>)> = entries.collect();
            let Some(bucket) = descriptor.token_bucket.read(&format!("{at}.descriptors"), faults) else { continue };
            let is_same = |rule: &LocalRule| rule.entries == entries;
            if entries.is_empty() || entries.iter().any(|(key, _)| key.is_empty()) || limit.rules.iter().any(is_same) {
                let message = "a descriptor without entries, or without a key, or with the entries of another one";
                faults.push((descriptor.span, format!("{at}.descriptors"), message.to_owned()));
            }
            let mut rule = LocalRule::new("", entries, bucket);
            rule.is_shadow = descriptor.shadow.unwrap_or(false);
            limit.rules.push(rule);
        }
        limit.rate_limits = shared(&self.rate_limits, at, faults);
        (limit.enabled, limit.enforced) = (Share::read(&self.filter_enabled), Share::read(&self.filter_enforced));
        limit.is_for_all = self.always_consumes.unwrap_or(true);
        limit.per_connection = self.per_connection.unwrap_or(false);
        limit.is_exhaustion = self.is_exhaustion.unwrap_or(false);
        limit.tells_when = self.retry_after.unwrap_or(false);
        limit.of_host = OfHost::Without;
        limit.tells = if self.rest == RestWord::Draft { RestHeaders::XRateLimit } else { RestHeaders::None };
        if let Some(most) = &self.max_dynamic {
            limit.most_keys = most.value;
        }
        let (most, all) = (limit.most_keys, KeyedBuckets::MOST);
        let is_known = (1..=all).contains(&most);
        let message = if is_known { too_many_buckets(&limit) } else { Some(format!("{most} buckets: 1 to {all}")) };
        if let Some(message) = message {
            let span = self.max_dynamic.as_ref().map_or(self.span, |most| most.span);
            faults.push((span, format!("{at}.max_dynamic_descriptors"), message));
        }
        limit.status = self.status.at_least(400).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
        limit.response_changes = added(&self.response_headers, HeaderTarget::Response, at, faults);
        limit.request_changes = added(&self.request_headers, HeaderTarget::Request, at, faults);
        limit
    }
}

impl HttpStatus {
    /// The status; as in Envoy, what is below the least that makes sense is as none.
    fn at_least(&self, least: u16) -> Option<StatusCode> {
        let Code16(code) = self.code.filter(|Code16(code)| *code >= least)?;
        StatusCode::from_u16(code).ok()
    }

    fn check(&self, least: u16, default: u16, at: &str, d: &mut Decoder<'_>) {
        if let Some(Code16(code)) = self.code.filter(|_| self.at_least(least).is_none()) {
            let message = format!("{code} is below {least}: it is {default}, as in Envoy");
            d.report_at(self.span, format!("{at}.code"), Severity::Warning, Code::Ignored, message);
        }
    }
}

impl Bucket {
    fn read(&self, at: &str, faults: &mut Vec<Fault>) -> Option<TokenBucket> {
        let bucket = match *self.fill_interval {
            short if short < Duration::from_millis(50) => Err("fill_interval: shorter than 50ms".to_owned()),
            interval => TokenBucket::new(self.max_tokens, self.tokens_per_fill.unwrap_or(1), interval)
                .map_err(|invalid| format!("{}: {}", invalid.field, invalid.reason)),
        };
        bucket.map_err(|message| faults.push((self.span, at.to_owned(), message))).ok()
    }
}

impl Share {
    /// Unset is none, as in Envoy.
    fn read(share: &Option<Share>) -> Fraction {
        let Some(share) = share else { return Fraction::default() };
        let denominator = match share.default_value.denominator {
            Denominator::Hundred => 100,
            Denominator::TenThousand => 10_000,
            Denominator::Million => 1_000_000,
        };
        Fraction::new(share.default_value.numerator.unwrap_or(0), denominator)
    }
}

impl AddedHeader {
    fn change(&self, at: &str, target: HeaderTarget, faults: &mut Vec<Fault>) -> Option<HeaderChange> {
        let HeaderPair { key, value, .. } = &self.header;
        let name = changeable(key).ok().filter(|_| HeaderValue::from_str(value).is_ok());
        let text = HeaderText::parse(value.as_bytes(), target, true);
        let (Some(name), Ok(text)) = (name, text) else {
            faults.push((key.span, at.to_owned(), format!("the header {}, with this value", quoted(key))));
            return None;
        };
        Some(match (self.append, self.action) {
            (Some(false), _) | (None, AppendAction::Overwrite) => HeaderChange::Set(name, text),
            (Some(true), _) | (None, AppendAction::Append) => HeaderChange::Append(name, text),
            (None, AppendAction::AddIfAbsent) => HeaderChange::AddIfAbsent(name, text),
            (None, AppendAction::OverwriteIfExists) => HeaderChange::ReplaceIfPresent(name, text),
        })
    }
}
