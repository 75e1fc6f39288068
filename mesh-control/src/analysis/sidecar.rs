//! Sidecars: hosts of their egress that nothing has, so that a workload sees less than somebody meant.

use std::collections::{HashMap, HashSet};

use super::unknown::nearby;
use crate::config::diagnostic::{Code, Diagnostic, Severity, quoted};
use crate::config::file::Objects;
use crate::policy::Policy;
use crate::policy::sidecars::{Import, Namespaces};
use crate::registry::host::candidates;

pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    if objects.sidecars.is_empty() {
        return;
    }
    let known = Known::of(objects, policy);
    for object in &objects.sidecars {
        let own = &object.meta.namespace;
        let is_of_mesh = *own == policy.mesh.fixed.root_namespace && object.spec.selector().is_none();
        for (index, egress) in object.spec.egress.iter().enumerate() {
            for (position, entry) in egress.hosts.iter().enumerate() {
                let Some(import) = Import::parse(entry) else { continue };
                let namespace = match &import.of {
                    Namespaces::Any => None,
                    // Its clients are in any namespace.
                    Namespaces::OfClient if is_of_mesh => None,
                    Namespaces::OfClient => Some(&**own),
                    Namespaces::Named(name) => Some(&**name),
                };
                if known.has(&import, namespace, policy, own) {
                    continue;
                }
                let of = namespace.map_or("any namespace".to_owned(), |of| format!("namespace {of}"));
                let meant = match known.meant(&import, namespace, policy, own) {
                    Some((of, host)) => {
                        let of = if *of == **own && !is_of_mesh { "." } else { of };
                        format!("; did you mean {}?", quoted(&format!("{of}/{host}")))
                    }
                    None => String::new(),
                };
                let message = format!("without effect: nothing of {of} has such a host{meant}");
                let origin = object.meta.origin.at(entry.span);
                let finding = Diagnostic::at(&origin, Severity::Warning, Code::UnknownReference, message);
                found.push(finding.object(object.meta.id()).field(format!("egress[{index}].hosts[{position}]")));
            }
        }
    }
}

/// The hosts that there are.
struct Known<'a> {
    namespaces: HashSet<&'a str>,
    by_host: HashMap<&'a str, Vec<&'a str>>,
}

impl<'a> Known<'a> {
    fn of(objects: &'a Objects, policy: &'a Policy) -> Known<'a> {
        let services = policy.services.iter().map(|(_, service)| (&*service.host, &*service.namespace));
        let rules = policy.virtual_services.iter();
        let rules = rules.flat_map(|rule| rule.hosts.iter().map(|host| (host.as_str(), &*rule.meta.namespace)));
        let mut by_host: HashMap<&str, Vec<&str>> = HashMap::new();
        for (host, namespace) in services.chain(rules) {
            by_host.entry(host).or_default().push(namespace);
        }
        Known { namespaces: objects.metas().map(|meta| &*meta.namespace).collect(), by_host }
    }

    fn has(&self, import: &Import, namespace: Option<&str>, policy: &Policy, own: &str) -> bool {
        let of_namespace = |namespaces: &Vec<&str>| namespace.is_none_or(|wanted| namespaces.contains(&wanted));
        match import.host.strip_prefix('*') {
            // Whatever there will be: the root namespace is often named before anything is in it.
            Some("") => namespace.is_none_or(|wanted| {
                wanted == own || *wanted == *policy.mesh.fixed.root_namespace || self.namespaces.contains(wanted)
            }),
            Some(_) => self.by_host.iter().any(|(host, of)| import.covers(host) && of_namespace(of)),
            None => {
                self.by_host.get(import.host.as_str()).is_some_and(of_namespace)
                    || policy.services.refused(&import.host, own).is_some()
                    || policy.virtual_services.describes(&import.host, own)
            }
        }
    }

    /// What there is, as an entry would name it, with its namespace: hosts are written in full.
    fn meant(&self, import: &Import, namespace: Option<&str>, policy: &Policy, own: &str) -> Option<(&'a str, String)> {
        let full = candidates(&import.host, namespace.unwrap_or(own));
        let full = full.into_iter().skip(1).find(|host| self.by_host.contains_key(host.as_str()));
        let elsewhere = || self.by_host.contains_key(import.host.as_str()).then(|| import.host.clone());
        let host = full.or_else(elsewhere).or_else(|| nearby(policy, &import.host, ""))?;
        let of = self.by_host.get(host.as_str())?;
        let of = *of.iter().find(|of| namespace == Some(**of)).or(of.first())?;
        Some((of, host))
    }
}
