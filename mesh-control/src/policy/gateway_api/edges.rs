//! Routes at the listeners of Gateways and of ListenerSets: which come where, and for which hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::compile::{self, Compiled, Problem, Rules};
use super::listeners::{Attachment, OwnGateway};
use super::status::Fault;
use super::{GatewayRoutes, ParentStatus, in_order, report_idle, routes};
use crate::config::decode::Text;
use crate::config::file::{Meta, Refused};
use crate::config::gateway_api::{DefaultGateways, ParentReference, Placement};
use crate::config::support::ObjectKind;
use crate::config::{Code, Diagnostic, Severity};
use crate::policy::route::{ClusterKey, Route, Written};
use crate::registry::host::covers;

/// A route, and what it says of where it is to be.
pub(super) struct IncomingRoute<'o> {
    pub(super) meta: Arc<Meta>,
    pub(super) parents: &'o [ParentReference],
    pub(super) hostnames: &'o [Text],
    pub(super) rules: Arc<Vec<Compiled>>,
    pub(super) connections: Arc<Vec<(ClusterKey, u32)>>,
    pub(super) problems: Vec<Problem>,
    /// How many rules there are.
    pub(super) count: usize,
}

/// A route at a listener.
#[derive(Debug)]
pub(super) struct AtListener {
    pub(super) meta: Arc<Meta>,
    /// For which hosts.
    pub(super) hosts: Vec<String>,
    pub(super) rules: Arc<Vec<Compiled>>,
    /// Where connections go; nowhere without any.
    pub(super) connections: Arc<Vec<(ClusterKey, u32)>>,
}

impl<'o> IncomingRoute<'o> {
    pub(super) fn new(
        meta: &Meta,
        place: Placement<'o>,
        rules: Rules,
        found: &mut Vec<Diagnostic>,
    ) -> IncomingRoute<'o> {
        let Placement { parents, default_gateways, hostnames, has_rules } = place;
        let has_no_parents = parents.is_empty() && default_gateways == DefaultGateways::None;
        report_idle(meta, has_no_parents, !has_rules, found);
        if let Some(first) = hostnames.first().filter(|_| parents.iter().all(|one| one.listening_kind().is_none())) {
            let message = "without effect: hosts are for Gateways, and the others are called by their own names";
            let finding = Diagnostic::at(&meta.origin.at(first.span), Severity::Warning, Code::Ignored, message);
            found.push(finding.object(meta.id()).field("hostnames"));
        }
        for problem in rules.problems.iter().filter(|problem| problem.reason != compile::UNSUPPORTED) {
            let message = format!("{} (ResolvedRefs is False: {})", problem.message, problem.reason);
            let origin = meta.origin.at(problem.span);
            let finding = Diagnostic::at(&origin, Severity::Error, Code::UnknownReference, message);
            found.push(finding.object(meta.id()).field(problem.field.as_str()));
        }
        let Rules { compiled, connections, problems, count } = rules;
        let connections = Arc::new(connections);
        IncomingRoute {
            meta: Arc::new(meta.clone()),
            parents,
            hostnames,
            rules: Arc::new(compiled),
            connections,
            problems,
            count,
        }
    }
}

impl GatewayRoutes {
    /// Those of a listener, as a server is named, by their hosts, in the order in which they are tried there.
    pub fn at_listener(&self, name: &str, port: u16) -> BTreeMap<String, Vec<Route>> {
        let there = self.by_listener.get(name).map(Vec::as_slice).unwrap_or_default();
        let hosts: BTreeSet<&String> = there.iter().flat_map(|at| &at.hosts).collect();
        let of = |host: &String| {
            let own = there.iter().filter(|at| at.hosts.contains(host));
            routes(in_order(own.flat_map(|at| at.rules.iter().map(|rule| (&*at.meta, rule)))), port)
        };
        hosts.into_iter().map(|host| (host.clone(), of(host))).collect()
    }

    /// Where connections go at a listener, as a server is named: by which object, for which names, and with which shares.
    pub fn connections_at(&self, name: &str) -> impl Iterator<Item = (Arc<str>, Vec<String>, &[(ClusterKey, u32)])> {
        let there = self.by_listener.get(name).into_iter().flatten();
        there.map(|at| {
            let names = if at.hosts.iter().any(|host| host == "*") { Vec::new() } else { at.hosts.clone() };
            (at.meta.id(), names, at.connections.as_slice())
        })
    }

    /// Routes come to the listeners of Gateways, the oldest first.
    pub(super) fn attach_to_gateways(
        &mut self,
        mut incoming: Vec<IncomingRoute<'_>>,
        gateways: &mut [OwnGateway<'_>],
        found: &mut Vec<Diagnostic>,
    ) {
        incoming.sort_by(|a, b| a.meta.order_by_namespace().cmp(&b.meta.order_by_namespace()));
        for route in &incoming {
            let mut been = BTreeSet::new();
            for (index, reference) in route.parents.iter().enumerate() {
                let Some(kind) = reference.listening_kind() else { continue };
                let own = &route.meta.namespace;
                let namespace = reference.namespace.as_ref().map_or(&**own, |namespace| namespace.value.as_str());
                let named = format!("{} {namespace}/{}", kind.name(), reference.name.value);
                let is_it = |gateway: &&mut OwnGateway<'_>| {
                    let Meta { kind: own_kind, namespace: own, name, .. } = gateway.meta();
                    !gateway.is_closed() && *own_kind == kind && **own == *namespace && **name == *reference.name.value
                };
                let mut say = |message: String| {
                    let origin = route.meta.origin.at(reference.span);
                    let finding = Diagnostic::at(&origin, Severity::Warning, Code::UnknownReference, message);
                    found.push(finding.object(route.meta.id()).field(format!("parentRefs[{index}]")));
                };
                let Some(gateway) = gateways.iter_mut().find(is_it) else {
                    // Whose it is nobody knows: no condition is ours.
                    say(format!("there is no {named} of a class of ours: the route has no effect there"));
                    continue;
                };
                let section = reference.section_name.as_ref().map(|name| name.value.as_str());
                let attachment = Attachment {
                    kind: route.meta.kind,
                    namespace: own,
                    section: section.filter(|name| !name.is_empty()),
                    port: reference.port.map(|port| port.0),
                    hostnames: route.hostnames,
                };
                let came = self.attach_to_gateway(route, gateway, &attachment, &mut been);
                match &came {
                    Ok(taken) if taken.is_empty() => {}
                    Ok(taken) => {
                        let names = taken.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                        say(format!("without effect there for {names}: an older route has it"));
                    }
                    Err((reason, message)) => {
                        say(format!("{message}: the route has no effect there (Accepted is False: {reason})"));
                    }
                }
                let unmatched = came.err();
                self.statuses.push(ParentStatus::new(
                    &route.meta,
                    index,
                    named,
                    unmatched,
                    (&route.problems, route.count),
                ));
            }
        }
        self.statuses.sort_by(|a, b| (&a.route, a.parent_ref).cmp(&(&b.route, b.parent_ref)));
    }

    /// The route comes, but for these names, which older ones of its kind have.
    fn attach_to_gateway(
        &mut self,
        route: &IncomingRoute<'_>,
        gateway: &mut OwnGateway<'_>,
        attachment: &Attachment<'_>,
        been: &mut BTreeSet<String>,
    ) -> Result<BTreeSet<String>, Fault> {
        let (mut is_anywhere, mut rival, mut lost) = (false, None, BTreeSet::new());
        for (listener, mut hosts) in gateway.hosts_for(attachment)? {
            let name = gateway.name_of(listener);
            if been.contains(&name) {
                is_anywhere = true;
                continue;
            }
            let there = self.by_listener.entry(name.clone()).or_default();
            let is_shared = |other: &&AtListener| {
                let alike = |a: &String| hosts.iter().any(|b| covers(a, b) || covers(b, a));
                // Nothing tells connections of TCP apart.
                let is_rival = other.meta.kind != route.meta.kind || route.meta.kind == ObjectKind::TcpRoute;
                is_rival && other.hosts.iter().any(alike)
            };
            if let Some(other) = there.iter().find(is_shared) {
                rival = Some(other.meta.id());
                continue;
            }
            // A connection is for one of them, where requests are shared out by their rules.
            if route.meta.kind == ObjectKind::TlsRoute {
                let of = |host: &String| there.iter().find(|other| other.hosts.contains(host));
                let taken: Vec<String> = hosts.extract_if(.., |host| of(host).is_some()).collect();
                if hosts.is_empty() {
                    rival = taken.first().and_then(of).map(|other| other.meta.id());
                    continue;
                }
                lost.extend(taken);
            }
            is_anywhere = true;
            been.insert(name);
            if let Some(state) = gateway.listeners.get_mut(listener) {
                state.attached += 1;
            }
            let hosts = gateway.isolated(listener, hosts);
            // Listeners beside it have all of them.
            if hosts.is_empty() {
                continue;
            }
            let (rules, connections) = (route.rules.clone(), route.connections.clone());
            there.push(AtListener { meta: route.meta.clone(), hosts, rules, connections });
        }
        match rival.filter(|_| !is_anywhere) {
            None => Ok(lost),
            Some(rival) => Err(("HostnameConflict", format!("{rival} has these hosts there, and comes first"))),
        }
    }

    /// What wrong routes would be for is answered with the reason, where good ones leave it to them: they come last, and are in
    /// nobody's way.
    pub(super) fn attach_refused_to_gateways(&mut self, refused: &[Arc<Refused>], gateways: &[OwnGateway<'_>]) {
        let mut wrong = Vec::new();
        for object in refused.iter().filter(|object| object.meta.kind.is_gateway_route()) {
            wrong.extend(self.left_to(object, gateways));
        }
        for (listener, at) in wrong {
            let there = self.by_listener.entry(listener).or_default();
            there.push(at);
            there.sort_by(|a, b| a.meta.order_by_namespace().cmp(&b.meta.order_by_namespace()));
        }
    }

    /// Where a wrong route is in force: at which listeners, as servers are named.
    fn left_to(&self, object: &Refused, gateways: &[OwnGateway<'_>]) -> Vec<(String, AtListener)> {
        let mut left = Vec::new();
        let written = Written { object: object.id(), field: "rules".into(), origin: object.meta.origin.clone() };
        let rules = Arc::new(vec![compile::refused(object.meta.kind, object.answer(), written)]);
        let hostnames: Vec<Text> =
            object.at_gateways.hosts.iter().map(|host| Text { value: host.clone(), ..Text::default() }).collect();
        if hostnames.is_empty() {
            return left;
        }
        let meta = Arc::new(object.meta.clone());
        // It may have had any host, so that none is its own.
        let is_for_any = object.meta.kind == ObjectKind::TcpRoute || hostnames.iter().any(|host| *host.value == *"*");
        for gateway in gateways {
            let name = gateway.named_by_refused();
            if !object.at_gateways.gateways.iter().any(|one| *one == name || one == "*") {
                continue;
            }
            let (kind, namespace) = (object.meta.kind, &*object.meta.namespace);
            let attachment = Attachment { kind, namespace, section: None, port: None, hostnames: &hostnames };
            for (listener, hosts) in gateway.hosts_for(&attachment).unwrap_or_default() {
                let name = gateway.name_of(listener);
                let there = self.by_listener.get(&name).map(Vec::as_slice).unwrap_or_default();
                let is_taken = |host: &String| {
                    there.iter().any(|good| {
                        let goes_first = is_for_any || good.meta.order_by_namespace() < meta.order_by_namespace();
                        let has = |own: &String| match good.meta.kind == kind {
                            true => own == host,
                            false => covers(own, host) || covers(host, own),
                        };
                        goes_first && good.hosts.iter().any(has)
                    })
                };
                let mut hosts = gateway.isolated(listener, hosts);
                hosts.retain(|host| !is_taken(host));
                if !hosts.is_empty() {
                    let (meta, rules) = (meta.clone(), rules.clone());
                    left.push((name, AtListener { meta, hosts, rules, connections: Arc::default() }));
                }
            }
        }
        left
    }
}
