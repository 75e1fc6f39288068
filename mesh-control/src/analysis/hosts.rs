//! Hosts that several objects claim: which of them counts for whom.

use crate::config::diagnostic::{Code, Diagnostic, Severity, quoted};
use crate::config::locate::locate;
use crate::config::support::ObjectKind;
use crate::policy::Policy;
use crate::registry::host::candidates;
use crate::registry::{Service, Visibility};

pub(super) fn check(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for services in policy.services.of_same_host() {
        check_same_host(services, found);
    }
    for (_, service) in policy.services.iter() {
        check_short_name(policy, service, found);
    }
}

/// Services of one host, in the order in which they count for a client of yet another namespace.
fn check_same_host(services: Vec<&Service>, found: &mut Vec<Diagnostic>) {
    for (position, loser) in services.iter().enumerate() {
        let earlier = services.iter().take(position);
        let lost = earlier.filter_map(|winner| Some((winner, seen_of_both(winner, loser)?)));
        let Some((winner, clients)) = lost.into_iter().next() else { continue };
        let message = format!(
            "host {} is also that of {} ({}), which counts for clients of {clients}",
            loser.host,
            winner.meta.id(),
            winner.meta.origin
        );
        found.push(conflict(loser, message));
    }
}

/// Whose clients see both, and take the winner: those of the loser's namespace take the loser, and a namespace that has its
/// own means to.
fn seen_of_both(winner: &Service, loser: &Service) -> Option<String> {
    let own = &*loser.namespace;
    let is_third = |namespace: &&str| *namespace != own && *namespace != &*winner.namespace;
    let namespaces = match (&winner.visibility, &loser.visibility) {
        (Visibility::All, Visibility::All) => return Some(format!("every namespace but {own}")),
        (Visibility::Namespaces(some), other) | (other, Visibility::Namespaces(some)) => {
            some.iter().map(String::as_str).filter(is_third).filter(|namespace| other.includes(namespace))
        }
    };
    let namespaces: Vec<&str> = namespaces.collect();
    (!namespaces.is_empty()).then(|| namespaces.join(", "))
}

/// An entry whose host is the short name of a service: a host as it is written goes before what it may be short for.
fn check_short_name(policy: &Policy, entry: &Service, found: &mut Vec<Diagnostic>) {
    if entry.meta.kind != ObjectKind::ServiceEntry {
        return;
    }
    let name = entry.host.split('.').next().unwrap_or_default();
    let is_hidden = |service: &&Service| {
        let is_short = *service.host != *entry.host
            && candidates(&entry.host, &service.namespace).iter().any(|full| **full == *service.host);
        is_short && entry.visibility.includes(&service.namespace) && service.visibility.includes(&service.namespace)
    };
    let hidden = policy.services.of_name(name).find(is_hidden);
    if let Some(hidden) = hidden {
        let message = format!(
            "calls to {} reach this host, and not {} ({})",
            quoted(&entry.host),
            hidden.meta.id(),
            hidden.meta.origin
        );
        found.push(conflict(entry, message));
    }
}

fn conflict(service: &Service, message: String) -> Diagnostic {
    let field = if service.meta.kind == ObjectKind::ServiceEntry { "hosts" } else { "metadata.name" };
    let origin = locate(&service.meta.origin, field);
    Diagnostic::at(&origin, Severity::Warning, Code::Conflict, message).object(service.meta.id()).field(field)
}
