//! Limits against other objects, and what others than the library cannot do of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::model::{DescriptorAction, HeaderTest, LocalRule, RateLimit as Counted, StringTest};
use mesh_core::request::miscased_method;

use super::tokens::{self, may_be_same};
use super::unknown::meant_in_full;
use crate::config::diagnostic::{Code, Diagnostic, Severity, quoted};
use crate::config::extensions::overload::Overload;
use crate::config::extensions::rate_limit::{Counter, RateLimit, WhoseRequests};
use crate::config::file::{Meta, Object, Objects, Workloads};
use crate::config::locate::locate;
use crate::config::support::ObjectKind;
use crate::policy::Policy;
use crate::policy::limits::{needs_answer, workloads};
use crate::registry::protocol::Protocol;
use crate::registry::service::{Service, Target};
use crate::render::limits::is_for_envoy;

pub(super) fn say(meta: &Meta, field: &str, code: Code, message: String, found: &mut Vec<Diagnostic>) {
    let finding = Diagnostic::at(&locate(&meta.origin, field), Severity::Warning, code, message);
    found.push(finding.object(meta.id()).field(field));
}

/// Where an object says which service is asked.
fn service(meta: &Meta) -> &'static str {
    if meta.kind == ObjectKind::EnvoyFilter { "configPatches" } else { "service" }
}

/// Targets and hosts that there are not.
pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    let limits = policy.limits.rate_limits().iter().map(|object| {
        let whom = workloads(objects, &object.meta, object.spec.selector.as_ref(), &object.spec.target_refs);
        Meant { object, whom }
    });
    let limits: Vec<Meant<'_>> = limits.collect();
    for limit in &limits {
        check_ports(limit, policy, found);
        check_hosts(&limit.object.meta, &limit.object.spec.hosts, "hosts", (objects, policy), found);
    }
    for object in policy.limits.overloads() {
        check_hosts(&object.meta, &object.spec.hosts, "throttle.hosts", (objects, policy), found);
        let queue = object.spec.concurrency.as_ref().and_then(|limit| limit.queue.as_ref());
        let field = queue.filter(|queue| needs_token(&queue.by)).map(|_| "concurrency.queue.by".to_owned());
        let whom = workloads(objects, &object.meta, object.spec.selector.as_ref(), &object.spec.target_refs);
        tokens::check(&object.meta, &whom, field, (objects, policy), found);
    }
    check_services(policy, found);
    check_counted(&limits, policy, found);
    for limit in &limits {
        check_descriptors(limit, &limits, policy, found);
        check_methods(limit.object, found);
        check_doubled(limit.object, found);
        let meta = &limit.object.meta;
        tokens::check(meta, &limit.whom, of_tokens(&limit.object.spec), (objects, policy), found);
    }
}

/// A limit, and the workloads that it is for.
struct Meant<'a> {
    object: &'a Object<RateLimit>,
    whom: Workloads,
}

impl Meant<'_> {
    /// Whether both may be for the same workload.
    fn may_meet(&self, other: &Meant<'_>, policy: &Policy) -> bool {
        policy.limits.may_meet(&self.object.meta.namespace, &other.object.meta.namespace)
            && may_be_same(&self.whom, &other.whom)
    }

    /// Whether its workloads may be endpoints of a service, as far as that says whose labels they have.
    fn may_be_behind(&self, service: &Service, policy: &Policy) -> bool {
        let is_selected = |labels: &BTreeMap<_, _>| may_be_same(&self.whom, &Workloads::Labelled(labels.clone()));
        policy.limits.may_meet(&self.object.meta.namespace, &service.namespace)
            && service.selector.as_ref().is_none_or(is_selected)
    }
}

/// Ports that none of its workloads has by a service.
fn check_ports(limit: &Meant<'_>, policy: &Policy, found: &mut Vec<Diagnostic>) {
    let spec = &limit.object.spec;
    let limited = spec.limits.iter().filter_map(|(port, _)| *port);
    let ports = limited.chain(spec.counted.iter().filter_map(|(port, _)| *port));
    for port in ports.collect::<BTreeSet<_>>() {
        let services = policy.services.iter().filter(|(_, service)| limit.may_be_behind(service, policy));
        let mut known = services.flat_map(|(_, service)| &service.ports);
        if !known.any(|known| known.number == port || known.target == Target::Number(port)) {
            let message = format!("no service of these workloads has a port {port}, so that nothing is counted there");
            say(&limit.object.meta, "configPatches", Code::UnknownReference, message, found);
        }
    }
}

/// Hosts of calls that nothing has. Clients may call them all the same, by the very name.
pub(super) fn check_hosts(
    meta: &Meta,
    hosts: &[String],
    field: &str,
    (objects, policy): (&Objects, &Policy),
    found: &mut Vec<Diagnostic>,
) {
    let is_routed = |host: &str| {
        let mut routed = objects.virtual_services.iter().flat_map(|object| &object.spec.hosts);
        routed.any(|known| *known.value == *host)
    };
    let has = |host: &str| policy.services.exact(host, &meta.namespace).is_some() || is_routed(host);
    for host in hosts.iter().filter(|host| !has(host)) {
        let meant = meant_in_full(policy, host, &meta.namespace);
        let message = format!(
            "nothing has the host {host:?}: it is for calls to exactly that name outside of the mesh alone{meant}"
        );
        say(meta, field, Code::UnknownReference, message, found);
    }
}

/// What is said of somebody at `HOST:PORT` who is asked about requests over gRPC, and is known not to answer.
pub(super) fn not_answering(target: &str, does: &str, namespace: &str, policy: &Policy) -> Option<String> {
    let (host, port) = target.rsplit_once(':').unwrap_or((target, ""));
    let service = policy.services.exact(host, namespace);
    let meant = if service.is_none() { meant_in_full(policy, host, namespace) } else { String::new() };
    let port = service.and_then(|(_, service)| service.ports.iter().find(|known| port.parse() == Ok(known.number)));
    let why = match port.map(|port| port.protocol) {
        None => "nothing has it",
        Some(Protocol::Unspecified) => return None,
        Some(protocol) if protocol.is_http2() => return None,
        Some(_) => "it speaks no gRPC, by the name of its port",
    };
    Some(format!("{target:?} {does}, since {why}: the failure mode decides{meant}"))
}

/// Services that cannot be asked.
fn check_services(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.limits.rate_limits() {
        let counters = object.spec.limits.iter().filter_map(|(_, counter)| match counter {
            Counter::Service(limit) => Some(&limit.target),
            Counter::Process(_) => None,
        });
        // Those of an EnvoyFilter may differ by port.
        for target in counters.collect::<BTreeSet<_>>() {
            if let Some(message) = not_answering(target, "gives no answers", &object.meta.namespace, policy) {
                say(&object.meta, service(&object.meta), Code::UnknownReference, message, found);
            }
        }
    }
}

/// Limits that no object says what to count by, and what is to be counted by that no limit takes up.
fn check_counted(limits: &[Meant<'_>], policy: &Policy, found: &mut Vec<Diagnostic>) {
    let is_open = |limit: &RateLimit| limit.limits.iter().any(|(_, counter)| counter.is_open());
    let is_idle = |limit: &RateLimit| counters(limit).any(Counter::is_open);
    let says = |limit: &RateLimit| !limit.counted.is_empty();
    for limit in limits {
        let object = limit.object;
        let has = |wanted: &dyn Fn(&RateLimit) -> bool| {
            limits.iter().any(|other| wanted(&other.object.spec) && limit.may_meet(other, policy))
        };
        let is_asked = object.spec.limits.iter().any(|(_, counter)| matches!(counter, Counter::Service(_)));
        let message = if is_idle(&object.spec) && !has(&says) {
            match is_asked {
                true => {
                    "nothing says what requests are counted by (`rate_limits` of virtual hosts), so that no service is asked"
                }
                false => {
                    "nothing says what requests are counted by (`rate_limits` of virtual hosts), so that no descriptor is counted"
                }
            }
        } else if says(&object.spec) && !has(&is_open) {
            "no rate limit is counted by this"
        } else {
            continue;
        };
        say(&object.meta, "configPatches", Code::UnknownReference, message.to_owned(), found);
    }
}

/// Who counts for the ports that are meant: a filter of every port is there for those that say what they count by, where some do.
fn counters(limit: &RateLimit) -> impl Iterator<Item = &Counter> {
    let says_for_ports = limit.limits.iter().any(|(port, counter)| port.is_some() && !counter.is_open());
    let is_meant =
        move |(port, counter): &&(Option<u16>, Counter)| port.is_some() || !counter.is_open() || !says_for_ports;
    limit.limits.iter().filter(is_meant).map(|(_, counter)| counter)
}

/// What requests are counted by where an object has its effect: as it says, or as others do that may be for the same workloads.
fn counted_by<'a>(limit: &Meant<'a>, counter: &'a Counter, limits: &[Meant<'a>], policy: &Policy) -> Vec<&'a Counted> {
    if !counter.is_open() {
        return counter.counted().iter().map(|counted| &**counted).collect();
    }
    let others = limits.iter().filter(|other| limit.may_meet(other, policy)).map(|other| other.object);
    others.flat_map(|other| &other.spec.counted).flat_map(|(_, counted)| counted).map(|counted| &**counted).collect()
}

/// Limits for descriptors that nothing makes.
fn check_descriptors(limit: &Meant<'_>, limits: &[Meant<'_>], policy: &Policy, found: &mut Vec<Diagnostic>) {
    for counter in counters(&limit.object.spec) {
        let Counter::Process(counting) = counter else { continue };
        let counted = counted_by(limit, counter, limits, policy);
        // Where nobody says it, that is told.
        for rule in counting.rules.iter().filter(|_| !counted.is_empty()) {
            if !counted.iter().any(|counted| may_make(&counted.actions, &rule.entries)) {
                let entries = LocalRule::in_words(&rule.entries).join(", ");
                let message =
                    format!("no action makes the descriptor {}, so that its limit never counts", quoted(&entries));
                say(&limit.object.meta, "configPatches", Code::UnknownReference, message, found);
            }
        }
    }
}

/// Whether actions may come to a descriptor that a rule with these entries is for.
fn may_make(actions: &[DescriptorAction], entries: &[(Arc<str>, Arc<str>)]) -> bool {
    // How many entries there may be so far, all of them as the rule has them.
    let mut so_far: Vec<bool> = (0..=entries.len()).map(|count| count == 0).collect();
    for action in actions {
        let after = |count: usize| {
            let is_skipped = action.may_be_absent() && so_far.get(count) == Some(&true);
            let before = count.checked_sub(1);
            let is_made = before.is_some_and(|before| {
                so_far.get(before) == Some(&true) && entries.get(before).is_some_and(|entry| makes(action, entry))
            });
            is_skipped || is_made
        };
        so_far = (0..so_far.len()).map(after).collect();
    }
    so_far.last() == Some(&true)
}

/// Whether an action may come to an entry; an empty value is any.
fn makes(action: &DescriptorAction, (key, value): &(Arc<str>, Arc<str>)) -> bool {
    use DescriptorAction as Action;
    let is_any = value.is_empty();
    match action {
        Action::SourceCluster => &**key == "source_cluster",
        Action::DestinationCluster => &**key == "destination_cluster",
        Action::RemoteAddress => &**key == "remote_address",
        Action::MaskedRemoteAddress { .. } => &**key == "masked_remote_address",
        Action::Header { key: own, name, .. } => {
            own == key && (&**name != ":method" || miscased_method(value).is_none())
        }
        Action::Query { key: own, .. }
        | Action::Claim { key: own, .. }
        | Action::Client { key: own, .. }
        | Action::Expression { key: own, .. } => own == key,
        Action::RemoteAddressMatch { key: own, value: only, .. }
        | Action::Constant { key: own, value: only }
        | Action::HeaderMatch { key: own, value: only, .. }
        | Action::QueryMatch { key: own, value: only, .. } => own == key && (is_any || only == value),
        Action::PathTemplate { key: own, templates } => {
            own == key && (is_any || templates.iter().any(|(text, _)| text == value))
        }
    }
}

/// Rules that make one descriptor of some requests, which a service counts by its keys and values alone, and so twice.
fn check_doubled(object: &Object<RateLimit>, found: &mut Vec<Diagnostic>) {
    let services = object.spec.limits.iter().filter_map(|(_, counter)| match counter {
        Counter::Service(limit) if object.meta.kind != ObjectKind::EnvoyFilter => Some(limit),
        _ => None,
    });
    for limit in services {
        for (index, counted) in limit.rate_limits.iter().enumerate() {
            let earlier = limit.rate_limits.iter().take(index).position(|earlier| may_be_one(earlier, counted));
            let Some(earlier) = earlier else { continue };
            let message = format!(
                "of some requests it makes the same descriptor as rules[{earlier}], and the service counts them twice; \
                 a limit beside another one has another unit of time, or a domain of its own"
            );
            say(&object.meta, &format!("rules[{index}]"), Code::Conflict, message, found);
        }
    }
}

/// Whether both may make the same descriptor, under one counter: those of two units are apart.
fn may_be_one(one: &Counted, other: &Counted) -> bool {
    let is_apart = one.limit.zip(other.limit).is_some_and(|(one, other)| one.unit != other.unit);
    let meet = |(one, other): (&DescriptorAction, &DescriptorAction)| {
        let (mine, theirs) = (values(one), values(other));
        one.key() == other.key() && mine.zip(theirs).is_none_or(|(a, b)| a.iter().any(|value| b.contains(value)))
    };
    !is_apart && one.actions.len() == other.actions.len() && one.actions.iter().zip(&other.actions).all(meet)
}

/// The values that an action can yield; `None` where they are those of requests.
fn values(action: &DescriptorAction) -> Option<Vec<&str>> {
    match action {
        DescriptorAction::Constant { value, .. } | DescriptorAction::HeaderMatch { value, .. } => Some(vec![&**value]),
        DescriptorAction::PathTemplate { templates, .. } => Some(templates.iter().map(|(text, _)| &**text).collect()),
        _ => None,
    }
}

/// Tests on methods that no request has.
fn check_methods(object: &Object<RateLimit>, found: &mut Vec<Diagnostic>) {
    let own = object.spec.limits.iter().flat_map(|(_, counter)| counter.counted());
    let all = own.chain(object.spec.counted.iter().flat_map(|(_, counted)| counted));
    let tests = all.flat_map(|counted| &counted.actions).filter_map(|action| match action {
        DescriptorAction::HeaderMatch { tests, .. } => Some(tests),
        _ => None,
    });
    let meant = tests.flatten().filter_map(|test| match test {
        HeaderTest::Value { name, test: StringTest::Exact { value, ignore_case: false }, .. }
            if &**name == ":method" =>
        {
            miscased_method(value).map(|meant| (value, meant))
        }
        _ => None,
    });
    for (value, meant) in meant.collect::<BTreeSet<_>>() {
        let message = format!("no request has the method {}; did you mean `{meant}`?", quoted(value));
        say(&object.meta, "configPatches", Code::InvalidValue, message, found);
    }
}

/// Whether a claim is needed.
pub(super) fn needs_token(counted: &Counted) -> bool {
    counted.actions.iter().any(|action| match action {
        DescriptorAction::Claim { default, .. } => default.is_none(),
        DescriptorAction::Expression { expression, .. } => expression.needs_token(),
        _ => false,
    })
}

/// The field in which a claim is needed, where one is.
fn of_tokens(limit: &RateLimit) -> Option<String> {
    let mut counted = limit.limits.iter().flat_map(|(_, counter)| counter.counted());
    counted.any(|counted| needs_token(counted)).then(|| "rules".to_owned())
}

/// What becomes of requests where nobody counts them.
pub(super) fn uncounted(is_closed: bool) -> &'static str {
    match is_closed {
        true => "every request to a server that it is for fails (failureMode)",
        false => "they let every request pass",
    }
}

/// Whether servers refuse what nobody counts.
fn is_closed(limit: &RateLimit) -> bool {
    let mut counters = limit.limits.iter().map(|(_, counter)| counter);
    limit.mode == WhoseRequests::Server
        && counters.any(|counter| matches!(counter, Counter::Service(limit) if needs_answer(limit)))
}

/// What gRPC's own clients and servers do of them: nothing.
pub(super) fn check_grpc(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.limits.rate_limits() {
        let becomes = uncounted(is_closed(&object.spec));
        let message = format!("gRPC's own clients and servers cannot do this: {becomes}");
        say(&object.meta, "rules", Code::Degraded, message, found);
    }
    for object in policy.limits.overloads() {
        for (field, is_said) in of_overload(&object.spec) {
            let message = "gRPC's own clients and servers cannot do this: they let every request pass".to_owned();
            if is_said {
                say(&object.meta, field, Code::Degraded, message, found);
            }
        }
    }
}

/// The parts of an overload, and which of them are said.
fn of_overload(overload: &Overload) -> [(&'static str, bool); 2] {
    [("concurrency", overload.concurrency.is_some()), ("throttle", overload.throttle.is_some())]
}

/// What an Envoy beside a workload does not do of them.
pub(super) fn check_envoy(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.limits.rate_limits() {
        if object.spec.mode == WhoseRequests::Client {
            let message = "an Envoy is not told of this: what its workload calls is not limited".to_owned();
            say(&object.meta, "mode", Code::Degraded, message, found);
            continue;
        }
        if object.spec.limits.iter().any(|(_, counter)| matches!(counter, Counter::Service(_))) {
            let becomes = uncounted(is_closed(&object.spec));
            let message = format!("Envoys are not told of this, and ask no service: {becomes}");
            say(&object.meta, service(&object.meta), Code::Degraded, message, found);
            continue;
        }
        let mut counted = object.spec.limits.iter().flat_map(|(_, counter)| counter.counted());
        if !counted.all(|counted| is_for_envoy(counted)) {
            let message = "an Envoy cannot do this: it counts neither by who the client is nor by templates of paths, \
                           and lets pass what such rules are for";
            say(&object.meta, "rules", Code::Degraded, message.to_owned(), found);
        }
    }
    for object in policy.limits.overloads() {
        if object.spec.throttle.is_some() {
            let message = "an Envoy is not told of this: what its workload calls is not held back".to_owned();
            say(&object.meta, "throttle", Code::Degraded, message, found);
        }
        if object.spec.concurrency.as_ref().is_some_and(|limit| limit.queue.is_some()) {
            let message = "an Envoy cannot do this: it answers at once who finds no place".to_owned();
            say(&object.meta, "concurrency.queue", Code::Degraded, message, found);
        }
    }
}
