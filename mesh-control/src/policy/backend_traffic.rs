//! XBackendTrafficPolicies of Gateway API: how many retries Services get, where no DestinationRule says anything of that, and what
//! their sessions stay by, where their own labels do not.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::gateway_api::{Condition, Fault, INVALID, TargetStatus, by_age, own_service};
use super::traffic::{RetryBudget, Session};
use crate::config::diagnostic::quoted;
use crate::config::file::{Object, Objects};
use crate::config::gateway_api::backend_traffic_policy::{BackendTrafficPolicy, RetryConstraint, TrafficTarget};
use crate::config::gateway_api::{SessionPersistence, SessionType};
use crate::config::{Code, Diagnostic, Origin, Severity};
use crate::registry::Services;

/// Those that are in force.
#[derive(Debug, Default)]
pub struct BackendTraffic {
    by_host: HashMap<Arc<str>, OfService>,
    /// The policies, those that come first before the others.
    pub policies: Vec<Arc<Object<BackendTrafficPolicy>>>,
    /// What became of each policy at each of its targets.
    pub statuses: Vec<TargetStatus>,
}

/// What a policy says of a Service, besides its sessions.
#[derive(Debug)]
struct OfService {
    /// The policy.
    id: Arc<str>,
    /// How many retries it gets, and where that is written.
    budget: Option<(RetryBudget, Origin)>,
}

impl BackendTraffic {
    /// Those of these objects, and what is to be said about them. What sessions stay by, the services say from then on.
    pub fn new(objects: &Objects, services: &mut Services) -> (BackendTraffic, Vec<Diagnostic>) {
        let (mut all, mut found) = (BackendTraffic::default(), Vec::new());
        all.policies = by_age(&objects.backend_traffic_policies);
        for object in all.policies.clone() {
            for (index, target) in object.spec.target_refs.iter().enumerate() {
                let mut say = |field: String, message: String| {
                    let origin = object.meta.origin.at(object.spec.span);
                    let finding = Diagnostic::at(&origin, Severity::Warning, Code::UnknownReference, message);
                    found.push(finding.object(object.meta.id()).field(field));
                };
                let fault = match all.add(&object, target, services) {
                    Ok(true) => None,
                    Ok(false) => {
                        let message = "its own labels say what sessions stay by";
                        let message = format!("Service {}: {message}: without effect there", target.name.value);
                        say("sessionPersistence".to_owned(), message);
                        None
                    }
                    Err(fault) => Some(fault),
                };
                if let Some((reason, message)) = &fault {
                    let field = match *reason {
                        INVALID => "sessionPersistence.sessionName".to_owned(),
                        _ => format!("targetRefs[{index}]"),
                    };
                    say(field, format!("{message}: without effect there (Accepted is False: {reason})"));
                }
                all.statuses.push(TargetStatus {
                    policy: object.meta.id(),
                    target_ref: index,
                    conditions: vec![Condition::of("Accepted", "Accepted", fault)],
                });
            }
        }
        (all, found)
    }

    /// Adds what a policy says of a target, unless there is none, or an older policy has it. Whether it does so of sessions, too, if
    /// it says anything of them.
    fn add(
        &mut self,
        object: &Object<BackendTrafficPolicy>,
        target: &TrafficTarget,
        services: &mut Services,
    ) -> Result<bool, Fault> {
        let own = &*object.meta.namespace;
        let named = format!("{} {own}/{}", target.kind.value, target.name.value);
        if !target.is_service() {
            return Err(("TargetNotFound", format!("{named} is no Service")));
        }
        let Some((service_id, service)) = own_service(services, own, &target.name.value) else {
            return Err(("TargetNotFound", format!("there is no {named}")));
        };
        if let Some(real) = &service.alias {
            return Err(("TargetNotFound", format!("{named} is an alias of {real}, and is called as that is")));
        }
        if let Some(older) = self.by_host.get(&service.host) {
            return Err(("Conflicted", format!("{} is for the same target, and comes first", older.id)));
        }
        let host = service.host.clone();
        let written = object.spec.session_persistence.as_ref();
        let session = written.map(|written| session(written, &host)).transpose()?;
        let constraint = object.spec.retry_constraint.as_ref();
        let budget = constraint.map(|written| (budget(written), object.meta.origin.at(written.span)));
        self.by_host.insert(host, OfService { id: object.meta.id(), budget });
        Ok(session.is_none_or(|session| services.set_session(service_id, session)))
    }

    /// How many retries a Service gets, where a policy says so, and where that is written.
    pub fn retry_budget(&self, host: &str) -> Option<&(RetryBudget, Origin)> {
        self.by_host.get(host)?.budget.as_ref()
    }
}

/// The schema's own defaults, where no API server has put them there. A rate has no place in a budget: so many retries may be under way.
fn budget(written: &RetryConstraint) -> RetryBudget {
    let share = written.budget.as_ref();
    let percent = share.and_then(|share| share.percent).unwrap_or(20);
    let interval = share.and_then(|share| share.interval).map_or(Duration::from_secs(10), |interval| interval.0);
    let at_least = written.min_retry_rate.as_ref().and_then(|rate| rate.count).unwrap_or(10);
    RetryBudget { percent: percent.into(), at_least, interval: Some(interval) }
}

/// What sessions stay by; without a name, by one that no other Service has.
fn session(written: &SessionPersistence, host: &str) -> Result<Session, Fault> {
    let named = written.session_name.as_deref().filter(|name| !name.is_empty());
    let name = named.map_or_else(|| format!("mesh-session-{host}"), str::to_owned);
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err((INVALID, format!("{} is the name of neither a cookie nor a header", quoted(&name))));
    }
    let life = written.absolute_timeout.filter(|life| written.is_permanent() && !life.0.is_zero());
    // Cookies know whole seconds.
    let life = life.map(|life| Duration::from_secs(life.0.as_secs() + u64::from(life.0.subsec_nanos() > 0)));
    Ok(match written.kind {
        SessionType::Cookie => Session::Cookie(name, "/".to_owned(), life),
        SessionType::Header => Session::Header(name.to_ascii_lowercase()),
    })
}
