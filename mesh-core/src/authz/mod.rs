//! Whether a request is let in: RBAC policies, compiled (`model/rbac.rs`), and the verdict on one request.
//!
//! A verdict is a plain function of the request's head, its connection and the policies; nothing is allocated for it
//! unless a header that a policy asks about came several times. `RouteTable::admit` asks for it on a server, before
//! anybody is told of a route.
//!
//! What cannot be known for sure never lets a request in. Beside true and false there is *doubt*: a value that is not text
//! where an expression is to be matched, several values of which some fit, a connection that nobody knows of. In doubt a
//! policy that refuses is for the request, and one that lets in is not, behind a `not` as well.

mod condition;
pub mod external;
mod index;
mod seen;
#[cfg(test)]
mod tests;
mod token;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::error::{ErrorKind, Invalid, MeshError};
use crate::identity::SpiffeId;
use crate::jwt::Claims;
use crate::model::{Rbac, RbacAction, RbacRules};
use crate::request::RequestHead;

use condition::Condition;
use index::Index;
use seen::Seen;

/// What a verdict is about.
#[derive(Clone, Copy, Debug)]
pub struct AccessRequest<'r> {
    /// The request; `None` for bytes that nobody looks into. A policy that asks about requests refuses those.
    pub head: Option<RequestHead<'r>>,
    /// The connection; `None` where nobody knows it.
    pub connection: Option<Connection<'r>>,
    /// What its tokens say, which were verified; none where no good one was there.
    pub tokens: &'r [Claims],
}

/// What is known of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'r> {
    /// Who the peer is, where mutual TLS told.
    pub peer: Option<&'r SpiffeId>,
    /// Where it connected from.
    pub source: SocketAddr,
    /// Who the client is: the same, unless a proxy in front that is believed tells of another one.
    pub remote: SocketAddr,
    /// Where it connected to.
    pub destination: SocketAddr,
    /// The name that it asked for by TLS.
    pub server_name: Option<&'r str>,
}

/// What policies say of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Verdict<'p> {
    /// Whether it is let in.
    pub is_allowed: bool,
    /// The policy that decided; `None` where none was for it.
    pub policy: Option<&'p str>,
    /// What those that are only tried would have said, where there are any.
    pub shadow: Option<Shadow<'p>>,
    /// A policy that only wants to be told.
    pub logged: Option<&'p str>,
}

/// What policies that are only tried would have said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shadow<'p> {
    /// Whether they would have let it in.
    pub is_allowed: bool,
    /// The policy that would have decided.
    pub policy: Option<&'p str>,
}

impl Verdict<'_> {
    /// Where there are no policies.
    pub const ALLOWED: Verdict<'static> = Verdict { is_allowed: true, policy: None, shadow: None, logged: None };

    /// The request goes on, or fails as Envoy says it.
    pub fn check(&self) -> Result<(), MeshError> {
        if self.is_allowed { Ok(()) } else { Err(MeshError::new(ErrorKind::AccessDenied, "RBAC: access denied")) }
    }
}

/// One RBAC filter, compiled.
#[derive(Debug)]
pub struct Authorizer {
    rules: Option<RuleSet>,
    shadow_rules: Option<RuleSet>,
}

impl Authorizer {
    /// Compiles a filter's configuration.
    ///
    /// # Errors
    /// A condition on a header that is none, or that is not to be tested.
    pub fn new(config: &Rbac) -> Result<Self, Invalid> {
        let rules = |rules: &Option<RbacRules>| rules.as_ref().map(RuleSet::new).transpose();
        Ok(Authorizer {
            rules: rules(&config.rules).map_err(|invalid| invalid.at("rules"))?,
            shadow_rules: rules(&config.shadow_rules).map_err(|invalid| invalid.at("shadow_rules"))?,
        })
    }

    /// Whether it may refuse anybody: what is only tried, and what only tells, does not.
    pub fn may_refuse(&self) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.action != RbacAction::Log)
    }
}

/// What several filters say, in their order: the first one that refuses decides.
///
/// ```
/// use std::sync::Arc;
/// use mesh_core::authz::{AccessRequest, Authorizer, verdict};
/// use mesh_core::model::{Rbac, RbacAction, RbacRules};
///
/// // ALLOW without policies lets nobody in.
/// let mut config = Rbac::default();
/// config.rules = Some(RbacRules::new(RbacAction::Allow));
/// let filters = [Arc::new(Authorizer::new(&config)?)];
/// assert!(!verdict(&filters, &AccessRequest { head: None, connection: None, tokens: &[] }).is_allowed);
/// # Ok::<(), mesh_core::error::Invalid>(())
/// ```
pub fn verdict<'p>(filters: &'p [Arc<Authorizer>], request: &AccessRequest<'_>) -> Verdict<'p> {
    let mut verdict = Verdict::ALLOWED;
    if filters.is_empty() {
        return verdict;
    }
    let seen = Seen::new(request);
    for filter in filters {
        if let Some(rules) = &filter.shadow_rules {
            let (is_allowed, policy) = rules.decide(&seen);
            // The first one that would have refused is told of, else the last one.
            if verdict.shadow.is_none_or(|shadow| shadow.is_allowed) {
                verdict.shadow = Some(Shadow { is_allowed, policy });
            }
        }
        let Some(rules) = &filter.rules else { continue };
        let (is_allowed, policy) = rules.decide(&seen);
        if rules.action == RbacAction::Log {
            verdict.logged = verdict.logged.or(policy);
            continue;
        }
        verdict.policy = policy.or(verdict.policy);
        if !is_allowed {
            return Verdict { is_allowed, policy, ..verdict };
        }
    }
    verdict
}

/// The policies of one action.
#[derive(Debug)]
struct RuleSet {
    action: RbacAction,
    policies: Vec<Policy>,
    index: Index,
}

#[derive(Debug)]
struct Policy {
    name: Arc<str>,
    permissions: Condition,
    principals: Condition,
    /// Whether any of its conditions looks at requests.
    is_on_requests: bool,
}

impl RuleSet {
    fn new(rules: &RbacRules) -> Result<Self, Invalid> {
        let mut policies = Vec::with_capacity(rules.policies.len());
        for (name, policy) in &rules.policies {
            let at = |field: &str| format!("policies[{name:?}].{field}");
            let permissions = Condition::any(&policy.permissions).map_err(|invalid| invalid.at(at("permissions")))?;
            let principals = Condition::any(&policy.principals).map_err(|invalid| invalid.at(at("principals")))?;
            let is_on_requests = permissions.is_on_requests() || principals.is_on_requests();
            policies.push(Policy { name: Arc::clone(name), permissions, principals, is_on_requests });
        }
        let index = Index::new(policies.iter().map(|policy| [&policy.principals, &policy.permissions]));
        Ok(RuleSet { action: rules.action, policies, index })
    }

    fn decide(&self, seen: &Seen<'_>) -> (bool, Option<&str>) {
        let policy = self.matched(seen);
        let is_allowed = match self.action {
            RbacAction::Allow => policy.is_some(),
            RbacAction::Deny => policy.is_none(),
            RbacAction::Log => true,
        };
        (is_allowed, policy)
    }

    /// The first policy that is for a request.
    fn matched(&self, seen: &Seen<'_>) -> Option<&str> {
        let doubt = self.action == RbacAction::Deny;
        let holds = |position: &usize| {
            self.policies.get(*position).is_some_and(|policy| {
                // Where nobody sees requests, what lets in by them lets nobody in, by its other conditions neither (Istio).
                (doubt || seen.head.is_some() || !policy.is_on_requests)
                    && policy.principals.holds(seen, doubt, doubt)
                    && policy.permissions.holds(seen, doubt, doubt)
            })
        };
        let first = match (&seen.head, &seen.connection) {
            (Some(_), Some(_)) => self.index.first(seen, holds),
            // In doubt a condition holds that the index would not find.
            _ => (0..self.policies.len()).find(holds),
        };
        first.and_then(|position| self.policies.get(position)).map(|policy| &*policy.name)
    }
}
