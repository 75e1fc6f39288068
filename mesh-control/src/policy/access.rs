//! Who may do what to a server: the AuthorizationPolicies that are for its workload, sorted by what they do.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::authorizer::Authorizer;
use super::mesh::MeshSettings;
use crate::config::file::{Meta, Object};
use crate::config::istio::authorization::conditions;
pub use crate::config::istio::authorization::{Condition, Conditions, Fact, Value};
use crate::config::istio::security::{Action, AuthorizationPolicy, DRY_RUN};

/// One rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRule {
    /// Its name in logs and answers: `AuthorizationPolicy/namespace/name#index`.
    pub id: Arc<str>,
    /// What it asks for.
    pub conditions: Conditions,
}

/// A policy that can be enforced as it is written.
#[derive(Debug)]
pub struct AccessPolicy {
    /// What it does.
    pub effect: Effect,
    /// Who is asked, of one that asks.
    pub authorizer: Option<Arc<Authorizer>>,
    /// Whether it is only tried.
    pub is_dry_run: bool,
    /// Its rules.
    pub rules: Vec<AccessRule>,
}

/// What a policy does with requests that one of its rules is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// They are let in, and nothing else is.
    Allow,
    /// They are refused.
    Deny,
    /// They are told of.
    Audit,
    /// Somebody is asked about them.
    Ask,
}

/// Rules by what they do. Where there are no rules that let somebody in, nobody is; `None` lets in everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulesByEffect<'p> {
    /// Who is refused, whatever else there is.
    pub deny: Vec<&'p AccessRule>,
    /// Who is let in.
    pub allow: Option<Vec<&'p AccessRule>>,
}

/// All that is in force for one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access<'p> {
    /// What is enforced.
    pub enforced: RulesByEffect<'p>,
    /// What is only tried.
    pub tried: RulesByEffect<'p>,
    /// What is told of.
    pub audit: Vec<&'p AccessRule>,
    /// Who is asked, and about what.
    pub asks: Vec<(&'p Authorizer, Vec<&'p AccessRule>)>,
    /// The port that the server bound.
    pub bound: u16,
    /// The ports that rules may call it by: its own, and the target ports that it stands for.
    pub ports: BTreeSet<u16>,
    /// Ports that it may stand for or not; `None` for any.
    pub doubtful_ports: Option<BTreeSet<u16>>,
    /// The names of the mesh's trust domain, where identities of others are trusted, too: a namespace that is let in is one of it.
    pub home: Vec<String>,
}

/// What becomes of a policy.
#[derive(Debug)]
pub enum Enforcement {
    /// It is enforced.
    Enforced(AccessPolicy),
    /// It concerns nobody.
    Idle,
    /// Nobody may be served without it, and it cannot be enforced: for this reason.
    Unenforced(String),
}

impl Enforcement {
    /// Of a policy. One that asks for what nobody looks at yet is enforced as a whole or not at all.
    pub fn of(object: &Object<AuthorizationPolicy>, mesh: &MeshSettings) -> Enforcement {
        let is_dry_run = object.meta.annotations.get(DRY_RUN).is_some_and(|value| value == "true");
        let has_rules = !object.spec.rules.is_empty();
        let effect = match object.spec.action {
            // Without rules, it lets nobody in.
            Action::Allow => Effect::Allow,
            Action::Deny if has_rules => Effect::Deny,
            Action::Audit if has_rules => Effect::Audit,
            Action::Custom if has_rules && !is_dry_run => Effect::Ask,
            Action::Deny | Action::Audit | Action::Custom => return Enforcement::Idle,
        };
        let name = object.spec.provider.as_ref().map(|provider| provider.name.as_str()).unwrap_or_default();
        let authorizer = (effect == Effect::Ask).then(|| Authorizer::named(name, mesh).map(Arc::new)).transpose();
        let authorizer = match authorizer {
            Ok(authorizer) => authorizer,
            Err(why) => return Enforcement::Unenforced(why),
        };
        let mut rules = Vec::new();
        for (index, rule) in object.spec.rules.iter().enumerate() {
            let read =
                conditions(rule).map(|conditions| renamed(qualified(conditions, &object.meta), &mesh.trust_domains()));
            let reason = match &read {
                None => Some("a rule is wrong".to_owned()),
                Some(conditions) => unknown(conditions).map(|name| format!("{name} is not looked at")),
            };
            match (read, reason) {
                (Some(conditions), None) => rules.push(AccessRule { id: id(&object.meta, index), conditions }),
                // What only tells of requests refuses nobody.
                _ if is_dry_run || effect == Effect::Audit => return Enforcement::Idle,
                (_, reason) => return Enforcement::Unenforced(reason.unwrap_or_default()),
            }
        }
        Enforcement::Enforced(AccessPolicy { effect, authorizer, is_dry_run, rules })
    }
}

impl<'p> Access<'p> {
    /// Adds a policy.
    pub fn add(&mut self, policy: &'p AccessPolicy) {
        let rules = if policy.is_dry_run { &mut self.tried } else { &mut self.enforced };
        match policy.effect {
            Effect::Allow => rules.allow.get_or_insert_default().extend(&policy.rules),
            Effect::Deny => rules.deny.extend(&policy.rules),
            Effect::Audit => self.audit.extend(&policy.rules),
            Effect::Ask => {
                let Some(authorizer) = &policy.authorizer else { return };
                match self.asks.iter_mut().find(|(known, _)| *known == &**authorizer) {
                    Some((_, rules)) => rules.extend(&policy.rules),
                    None => self.asks.push((authorizer, policy.rules.iter().collect())),
                }
            }
        }
    }

    /// Whether anybody may be refused.
    pub fn is_guarded(&self) -> bool {
        self.enforced.allow.is_some() || !self.enforced.deny.is_empty() || !self.asks.is_empty()
    }
}

fn id(meta: &Meta, index: usize) -> Arc<str> {
    format!("{}/{}/{}#{index}", meta.kind.name(), meta.namespace, meta.name).into()
}

/// A service account without a namespace is one of the policy's own.
fn qualified(mut conditions: Conditions, meta: &Meta) -> Conditions {
    let lists = conditions.from.iter_mut().flatten().chain(&mut conditions.when);
    for value in lists.flat_map(|condition| &mut condition.values) {
        if let Value::Account(namespace, _) = value {
            namespace.get_or_insert_with(|| meta.namespace.to_string());
        }
    }
    conditions
}

/// Principals and trust domains by every name of the mesh's trust domain, as Istio does it (trustdomain/bundle.go): whoever is
/// written by one of them is meant by all, and `cluster.local` is the mesh's own, whatever that is.
fn renamed(mut conditions: Conditions, domains: &[&str]) -> Conditions {
    let lists = conditions.from.iter_mut().flatten().chain(&mut conditions.when);
    for condition in lists {
        let rename: fn(&Value, &[&str]) -> Vec<Value> = match condition.fact {
            Fact::Principal => principals,
            Fact::TrustDomain => trust_domains,
            _ => continue,
        };
        let mut renamed = Vec::new();
        for value in condition.values.iter().flat_map(|value| rename(value, domains)) {
            if !renamed.contains(&value) {
                renamed.push(value);
            }
        }
        condition.values = renamed;
    }
    conditions
}

fn trust_domains(value: &Value, domains: &[&str]) -> Vec<Value> {
    match value {
        Value::Exact(domain) if domains.contains(&domain.as_str()) => {
            domains.iter().map(|domain| Value::Exact((*domain).to_owned())).collect()
        }
        other => vec![other.clone()],
    }
}

fn principals(value: &Value, domains: &[&str]) -> Vec<Value> {
    let as_is = || vec![value.clone()];
    let (text, is_suffix) = match value {
        Value::Exact(text) | Value::Prefix(text) => (text, false),
        Value::Suffix(text) => (text, true),
        _ => return as_is(),
    };
    let Some((domain, path)) = text.split_once('/') else { return as_is() };
    // `*/ns/a/sa/b` is of any trust domain.
    if path.split('/').count() != 4 || (is_suffix && domain.is_empty()) {
        return as_is();
    }
    let is_meant = |known: &&&str| if is_suffix { known.ends_with(domain) } else { **known == domain };
    let is_known = domains.iter().any(|known| is_meant(&known)) || (!is_suffix && domain == "cluster.local");
    if !is_known {
        return as_is();
    }
    let renamed = domains.iter().map(|known| match value {
        Value::Suffix(_) if is_meant(&known) => value.clone(),
        Value::Prefix(_) => Value::Prefix(format!("{known}/{path}")),
        _ => Value::Exact(format!("{known}/{path}")),
    });
    renamed.collect()
}

/// What a rule asks for that nobody looks at.
fn unknown(conditions: &Conditions) -> Option<&str> {
    conditions.all().find_map(|condition| match &condition.fact {
        Fact::Unknown(name) => Some(name.as_str()),
        _ => None,
    })
}
