//! What rules of AuthorizationPolicies ask for that nobody has: ports that no workload listens on by its services, callers that the mesh
//! does not know, and requests and TLS where there are none.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use mesh_core::identity::SpiffeId;

use super::limits::say;
use crate::config::diagnostic::{Code, Diagnostic, quoted};
use crate::config::file::{Meta, Object, Objects};
use crate::config::istio::authorization::{Condition, Conditions, Fact, Unseen, Value, conditions, written};
use crate::config::istio::security::{Action, AuthorizationPolicy, Rule, TargetRef, is_gateway_target, selected};
use crate::config::spelling::nearest;
use crate::policy::Policy;
use crate::policy::security::Served;
use crate::policy::traffic::ServerTls;
use crate::registry::protocol::Protocol;
use crate::registry::service::{Service, Target};

pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    if objects.authorization_policies.is_empty() {
        return;
    }
    let known = Known::new(objects, policy);
    for object in &objects.authorization_policies {
        let ports = TargetPorts::new(
            policy,
            &object.meta.namespace,
            &selected(object.spec.selector.as_ref()),
            &object.spec.targets(),
        );
        check_let_in(object, (&ports, policy), found);
        check_plaintext(object, (&ports, policy), found);
        for (index, rule) in object.spec.rules.iter().enumerate() {
            check_bytes(object, index, rule, &ports, found);
            for (path, condition) in written(rule) {
                let path = format!("rules[{index}].{path}");
                check_condition(object, &path, &condition, (&known, &ports), found);
            }
        }
    }
}

/// A rule that refuses by what only requests have, for a port that carries none: there it refuses by the rest.
fn check_bytes(
    object: &Object<AuthorizationPolicy>,
    index: usize,
    rule: &Rule,
    ports: &TargetPorts<'_>,
    found: &mut Vec<Diagnostic>,
) {
    if object.spec.action != Action::Deny {
        return;
    }
    let (written, Some(read)) = (written(rule), conditions(rule)) else { return };
    let Some((path, _)) = written.iter().find(|(_, condition)| condition.fact.is_of_requests()) else { return };
    if let Some(port) = ports.known.iter().find(|port| port.carries_bytes && read.may_be_at(&[port.target])) {
        let message = format!(
            "{port} carries no requests: this is taken to hold there, so that the rule refuses connections by the rest of it"
        );
        say(&object.meta, &format!("rules[{index}].{path}"), Code::Ignored, message, found);
    }
}

/// A policy that lets in by what only requests have, for a port that carries none.
fn check_let_in(
    object: &Object<AuthorizationPolicy>,
    (ports, policy): (&TargetPorts<'_>, &Policy),
    found: &mut Vec<Diagnostic>,
) {
    if object.spec.action != Action::Allow || !ports.known.iter().any(|port| port.carries_bytes) {
        return;
    }
    let rules: Option<Vec<Conditions>> = object.spec.rules.iter().map(conditions).collect();
    let rules = rules.filter(|rules| !rules.is_empty() && rules.iter().all(Conditions::ask_about_requests));
    let is_meant = |port: &&KnownPort<'_>| {
        rules.iter().flatten().any(|rule| rule.may_be_at(&[port.target])) && !port.is_of_gateways(policy)
    };
    if let Some(port) = ports.known.iter().filter(|port| port.carries_bytes).find(is_meant) {
        let message =
            format!("{port} carries no requests: all of these rules ask about some, and let no connection in there");
        say(&object.meta, "rules", Code::Ignored, message, found);
    }
}

/// Rules that go by what TLS tells, for a port that takes plaintext alone.
fn check_plaintext(
    object: &Object<AuthorizationPolicy>,
    (ports, policy): (&TargetPorts<'_>, &Policy),
    found: &mut Vec<Diagnostic>,
) {
    let lets_in = matches!(object.spec.action, Action::Allow | Action::Audit);
    let read = object.spec.rules.iter().enumerate().filter_map(|(index, rule)| Some((index, conditions(rule)?)));
    let lost = read.filter_map(|(index, read)| {
        let why = nobody_by(read.lost(Unseen::ALL, lets_in)?);
        Some((index, read, why))
    });
    let lost: Vec<_> = lost.collect();
    if lost.is_empty() || !policy.security.has_plaintext() {
        return;
    }
    let plain: Vec<_> = ports.known.iter().filter_map(|port| Some((port, port.in_plaintext_by(policy)?))).collect();
    for (index, read, why) in lost {
        let Some((port, peers)) = plain.iter().find(|(port, _)| read.may_be_at(&[port.target])) else { continue };
        let follows = as_it_is(object.spec.action, false);
        let message = format!("{port} takes plaintext by {} ({}): {why}; {follows} there", peers.id(), peers.origin);
        say(&object.meta, &format!("rules[{index}]"), Code::Ignored, message, found);
    }
}

/// Why nobody fits a condition on what TLS tells, where it tells nothing.
pub(super) fn nobody_by(lost: &Condition) -> &'static str {
    match lost.fact {
        Fact::ServerName => "no client asks for a name there (`connection.sni`)",
        _ => "no client shows there who it is",
    }
}

fn as_it_is(action: Action, is_negated: bool) -> &'static str {
    match (is_negated, action) {
        (true, _) => "as it is, it excludes nobody",
        (false, Action::Allow) => "as it is, it lets nobody in",
        (false, Action::Deny) => "as it is, it refuses nobody",
        (false, Action::Audit | Action::Custom) => "as it is, it is for nobody",
    }
}

fn check_condition(
    object: &Object<AuthorizationPolicy>,
    path: &str,
    condition: &Condition,
    (known, ports): (&Known<'_>, &TargetPorts<'_>),
    found: &mut Vec<Diagnostic>,
) {
    for (index, value) in condition.values.iter().enumerate() {
        let unmet = match (&condition.fact, value) {
            (Fact::Port, Value::Port(port)) => ports.unknown(*port),
            (Fact::Principal, value) => known.principal(value, &object.meta.namespace),
            (Fact::Namespace, value) => known.namespaces_like(value),
            (Fact::TrustDomain, Value::Exact(domain)) => known.domain(domain),
            (Fact::ServiceAccount, Value::Account(namespace, name)) => {
                known.account(namespace.as_deref().unwrap_or(&object.meta.namespace), name)
            }
            _ => None,
        };
        let Some(unmet) = unmet else { continue };
        let follows = as_it_is(object.spec.action, condition.is_negated);
        say(&object.meta, &format!("{path}[{index}]"), Code::UnknownReference, format!("{unmet}; {follows}"), found);
    }
}

/// The ports that the workloads of an object listen on, as far as their services tell.
pub(super) struct TargetPorts<'p> {
    /// None where any of them is a name.
    known: Vec<KnownPort<'p>>,
}

/// A port that workloads listen on.
struct KnownPort<'p> {
    target: u16,
    /// The port that it stands behind, and its service.
    number: u16,
    service: &'p Service,
    /// Whether what is spoken there is not HTTP.
    carries_bytes: bool,
}

impl KnownPort<'_> {
    /// Whether its workloads are gateways, which listen where their Gateways say.
    fn is_of_gateways(&self, policy: &Policy) -> bool {
        let Service { namespace, selector, .. } = self.service;
        selector.as_ref().is_some_and(|labels| policy.gateways.select(namespace, labels, &policy.services))
    }

    /// The PeerAuthentication by which no TLS is taken there, if there is one.
    fn in_plaintext_by<'m>(&self, policy: &'m Policy) -> Option<&'m Meta> {
        let Service { namespace, selector, .. } = self.service;
        let served = Served { namespace, labels: selector.as_ref()?, port: self.target };
        let (meta, tls) = policy.security.mode_of(served, &policy.services)?;
        (tls == ServerTls::Plaintext && !self.is_of_gateways(policy)).then_some(meta)
    }
}

impl fmt::Display for KnownPort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Service { namespace, name, .. } = self.service;
        write!(f, "port {} of {namespace}/{name}", self.target)
    }
}

impl<'p> TargetPorts<'p> {
    /// Those of the workloads that an object in this namespace selects, by labels or by its targets.
    pub(super) fn new(
        policy: &'p Policy,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        targets: &[&TargetRef],
    ) -> TargetPorts<'p> {
        // A gateway listens where its Gateways say, whatever Services lead to it.
        if targets.iter().any(|target| is_gateway_target(&target.kind)) {
            return TargetPorts { known: Vec::new() };
        }
        let is_root = *namespace == *policy.mesh.fixed.root_namespace;
        let services = policy.services.iter().map(|(_, service)| &**service).filter(|service| {
            let is_near = *service.namespace == *namespace || (is_root && targets.is_empty());
            let is_named = targets.is_empty() || targets.iter().any(|target| *target.name.value == *service.name);
            // Both may select one workload, unless they want different values of one label.
            let both = service.selector.as_ref().is_some_and(|selector| {
                labels.iter().all(|(key, value)| selector.get(key).is_none_or(|other| other == value))
            });
            is_near && is_named && both
        });
        let ports: Option<Vec<_>> = services
            .flat_map(|service| service.ports.iter().map(move |port| (service, port)))
            .map(|(service, port)| match port.target {
                Target::Number(target) => Some(KnownPort {
                    target,
                    number: port.number,
                    service,
                    carries_bytes: matches!(port.protocol, Protocol::Tcp | Protocol::Tls | Protocol::Https),
                }),
                // It stands for whatever number the workload says.
                Target::Name(_) => None,
            })
            .collect();
        TargetPorts { known: ports.unwrap_or_default() }
    }

    /// A port that carries no requests, in words.
    pub(super) fn of_bytes(&self) -> Option<String> {
        self.known.iter().find(|port| port.carries_bytes).map(ToString::to_string)
    }

    /// Why none of the workloads listens on a port, as far as that can be told, and which port was meant.
    pub(super) fn unknown(&self, port: u16) -> Option<String> {
        /// How many are named.
        const MOST: usize = 5;
        let targets: BTreeSet<u16> = self.known.iter().map(|port| port.target).collect();
        if targets.is_empty() || targets.contains(&port) {
            return None;
        }
        let more = if targets.len() > MOST { ", ..." } else { "" };
        let targets: Vec<String> = targets.iter().take(MOST).map(u16::to_string).collect();
        let meant = self.known.iter().find(|known| known.number == port);
        let meant = meant.map(|KnownPort { target, service: Service { namespace, name, .. }, .. }| {
            format!("; did you mean `{target}`, the target port of port {port} of {namespace}/{name}?")
        });
        Some(format!(
            "no service of these workloads has the target port {port}, only {}{more}{}",
            targets.join(", "),
            meant.unwrap_or_default()
        ))
    }
}

/// Whom the configuration knows.
struct Known<'a> {
    /// The names of the mesh's trust domain.
    domains: Vec<&'a str>,
    /// Whether there are workloads of others.
    is_federated: bool,
    /// Namespaces that some object is in.
    namespaces: BTreeSet<&'a str>,
    /// Service accounts that are written anywhere, by namespace.
    accounts: BTreeMap<&'a str, BTreeSet<&'a str>>,
}

impl<'a> Known<'a> {
    fn new(objects: &'a Objects, policy: &'a Policy) -> Known<'a> {
        let mut accounts: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut add = |namespace: &'a str, account: &'a str| {
            if !account.is_empty() {
                accounts.entry(namespace).or_default().insert(account);
            }
        };
        for object in &objects.workload_entries {
            add(&object.meta.namespace, &object.spec.service_account);
        }
        for object in &objects.workload_groups {
            let template = object.spec.template.as_ref();
            add(&object.meta.namespace, template.map(|template| &*template.service_account).unwrap_or_default());
        }
        for object in &objects.service_entries {
            object.spec.endpoints.iter().for_each(|endpoint| add(&object.meta.namespace, &endpoint.service_account));
        }
        for identity in policy.services.iter().flat_map(|(_, service)| &service.peers) {
            if let Some((namespace, account)) = identity.workload() {
                add(namespace, account);
            }
        }
        let mut namespaces: BTreeSet<&str> = objects.metas().map(|meta| &*meta.namespace).collect();
        namespaces.extend(accounts.keys());
        Known { domains: policy.mesh.trust_domains(), is_federated: policy.mesh.is_federated, namespaces, accounts }
    }

    /// Why nobody has a principal. Of a beginning, as much is looked at as is whole.
    fn principal(&self, value: &Value, own_namespace: &str) -> Option<String> {
        let (text, is_whole) = match value {
            Value::Exact(text) => (text, true),
            Value::Prefix(text) => (text, false),
            _ => return None,
        };
        let ours = self.domains.first().copied().unwrap_or_default();
        let parts: Vec<&str> = text.split('/').collect();
        let [domain, rest @ ..] = parts.as_slice() else { return None };
        if is_whole && rest.is_empty() {
            let meant = format!("{ours}/ns/{own_namespace}/sa/{text}");
            return Some(format!(
                "{}: a principal is TRUST-DOMAIN/ns/NAMESPACE/sa/NAME; did you mean {}?",
                quoted(text),
                quoted(&meant)
            ));
        }
        if rest.is_empty() {
            return None;
        }
        if is_whole && let Err(invalid) = format!("spiffe://{text}").parse::<SpiffeId>() {
            return Some(format!("{}: nobody is called so: {}", quoted(text), invalid.reason));
        }
        if !self.is_ours(domain) {
            return self.domain(domain).map(|why| format!("{}: {why}", quoted(text)));
        }
        match rest {
            ["ns", namespace, "sa", name] if is_whole => {
                self.account(namespace, name).map(|why| format!("{}: {why}", quoted(text)))
            }
            _ if is_whole => Some(format!(
                "{}: workloads of the mesh are called {domain}/ns/NAMESPACE/sa/NAME, unless their certificates come from elsewhere",
                quoted(text)
            )),
            ["ns", namespace, _, ..] => self.namespace(namespace).map(|why| format!("{}: {why}", quoted(text))),
            _ => None,
        }
    }

    /// Whether it is a name of the mesh's trust domain; `cluster.local` stands for that, too.
    fn is_ours(&self, domain: &str) -> bool {
        domain == "cluster.local" || self.domains.contains(&domain)
    }

    /// Why no workload is of a trust domain.
    fn domain(&self, domain: &str) -> Option<String> {
        // Others vouch for foreign ones, and which ones is not written here.
        if self.is_ours(domain) || self.is_federated {
            return None;
        }
        let known = self.domains.join(", ");
        Some(match nearest(domain, &self.domains) {
            Some(meant) => {
                format!("the mesh's trust domain is {known}, not {}; did you mean {}?", quoted(domain), quoted(meant))
            }
            None => format!(
                "the mesh's trust domain is {known}, not {}, whose workloads are known only where `serve --trust-bundle` says who \
                 vouches for them",
                quoted(domain)
            ),
        })
    }

    fn namespace(&self, namespace: &str) -> Option<String> {
        if self.namespaces.contains(namespace) {
            return None;
        }
        let meant = nearest(namespace, &self.namespaces).map(|meant| format!("; did you mean {}?", quoted(meant)));
        Some(format!("no object is in namespace {}{}", quoted(namespace), meant.unwrap_or_default()))
    }

    fn namespaces_like(&self, value: &Value) -> Option<String> {
        let any = |is_meant: &dyn Fn(&str) -> bool| self.namespaces.iter().any(|namespace| is_meant(namespace));
        let (is_any, text) = match value {
            Value::Exact(namespace) => return self.namespace(namespace),
            Value::Prefix(text) => (any(&|namespace| namespace.starts_with(text.as_str())), format!("{text}*")),
            Value::Suffix(text) => (any(&|namespace| namespace.ends_with(text.as_str())), format!("*{text}")),
            _ => return None,
        };
        (!is_any).then(|| format!("no object is in a namespace {}", quoted(&text)))
    }

    /// Why nobody has a service account. Most are written nowhere, so that only one that is nearly like another is doubtful.
    fn account(&self, namespace: &str, name: &str) -> Option<String> {
        let unknown = self.namespace(namespace);
        if unknown.is_some() {
            return unknown;
        }
        let known: Vec<&str> = self.accounts.get(namespace).into_iter().flatten().copied().collect();
        if known.contains(&name) {
            return None;
        }
        let meant = nearest(name, &known)?;
        Some(format!("nothing names the service account {namespace}/{}; did you mean {}?", quoted(name), quoted(meant)))
    }
}
